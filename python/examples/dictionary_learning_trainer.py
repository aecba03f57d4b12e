"""dictionary_learning's own trainer on an activation store:

    python dictionary_learning_trainer.py STORE [STEPS]

`Buffer` is all that it takes, in place of that package's `ActivationBuffer`. The rest is dictionary_learning.
"""

import sys
import tempfile

import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE

from activation_store.torch import Batches


class Buffer:
    """What dictionary_learning calls a buffer: an iterator of tensors `[batch, d]`, with what it is to record of itself."""

    def __init__(self, store, batch, **options):
        self.batches = iter(Batches(store, batch, **options))
        self.config = {"store": str(store), "batch": batch, **options}

    def __iter__(self):
        return self.batches


def train(store, steps, batch=1024, features=1024, k=16, lr=1e-3):
    """Trains a TopK autoencoder for some steps."""
    width = next(iter(Buffer(store, 1))).shape[1]
    trainer = dict(
        trainer=TopKTrainer, activation_dim=width, dict_size=features, k=k, lr=lr, steps=steps, warmup_steps=0, seed=0,
        layer=0, lm_name="unknown", device="cpu",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainSAE(Buffer(store, batch), [trainer], steps, save_dir=folder, device="cpu")
        return AutoEncoderTopK.from_pretrained(f"{folder}/trainer_0/ae.pt", k=k, device="cpu")


def unexplained(sae, store, batch=256):
    """The share of the variance of held-out rows that the autoencoder leaves unexplained."""
    x = next(iter(Buffer(store, batch, part="held-out")))
    with torch.no_grad():
        return float((sae(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


if __name__ == "__main__":
    path, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
    for count in (1, steps):
        print(f"after {count} steps: {unexplained(train(path, count), path):.3f} of the variance unexplained")
