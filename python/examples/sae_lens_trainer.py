"""SAELens' own trainer on an activation store:

    python sae_lens_trainer.py STORE [STEPS]

`data_provider` is all that it takes. The rest is SAELens.
"""

import sys

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

from activation_store.torch import Batches


def data_provider(store, batch, **options):
    """What SAELens calls a `data_provider`: an iterator of tensors `[batch, d]`, without end."""
    return iter(Batches(store, batch, **options))


def train(store, steps, batch=1024, features=1024, k=16, lr=1e-3):
    """Trains a TopK autoencoder for some steps."""
    width = next(data_provider(store, 1)).shape[1]
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=width, d_sae=features, k=k, device="cpu"))
    config = SAETrainerConfig(
        total_training_samples=steps * batch, train_batch_size_samples=batch, device="cpu", autocast=False,
        lr=lr, lr_end=lr, lr_scheduler_name="constant", lr_warm_up_steps=0, lr_decay_steps=0, n_restart_cycles=1,
        adam_beta1=0.9, adam_beta2=0.999, dead_feature_window=1000, feature_sampling_window=2000,
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    return SAETrainer(config, sae, data_provider=data_provider(store, batch)).fit()


def unexplained(sae, store, batch=256):
    """The share of the variance of held-out rows that the autoencoder leaves unexplained."""
    x = next(data_provider(store, batch, part="held-out"))
    with torch.no_grad():
        return float((sae(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


if __name__ == "__main__":
    path, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
    for count in (1, steps):
        print(f"after {count} steps: {unexplained(train(path, count), path):.3f} of the variance unexplained")
