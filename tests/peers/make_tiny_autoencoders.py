"""Makes shared/sae/tests/data: small autoencoders in the files of other tools, with what the tools compute of them.

    python tests/peers/make_tiny_autoencoders.py

Beside the files of each lies `golden.safetensors` with rows `x` [5, d], `features` [5, F] and `reconstruction` [5, d], in float32
by the tool's own loader.
"""

import pathlib
import shutil

import torch
from autoencoders import (
    DICTIONARIES,
    SPARSE_CODERS,
    dictionary,
    run_dictionary,
    run_sparse_coder,
    save_dictionary,
    save_old_sae_lens,
    sparse_coder,
)
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "shared/sae/tests/data"
D, F = 4, 12


def keep(folder, x, features, reconstruction):
    tensors = dict(x=x, features=features, reconstruction=reconstruction)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "golden.safetensors")


def run_sae_lens(folder, x):
    sae = SAE.load_from_disk(folder)
    with torch.no_grad():
        features = sae.encode(x)
        return features, sae.decode(features)


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    for kind in DICTIONARIES:
        folder = FOLDER / "dictionary_learning" / kind
        save_dictionary(dictionary(kind, D, F), folder)
        keep(folder, x, *run_dictionary(folder, x))
    save_dictionary(dictionary("gated", D, F), FOLDER / "dictionary_learning/gated")
    for kind in SPARSE_CODERS:
        folder = FOLDER / "sparsify" / kind
        sparse_coder(kind, D, F).save_to_disk(folder)
        keep(folder, x, *run_sparse_coder(folder, x))

    folder = FOLDER / "sae_lens/old"
    save_old_sae_lens(folder, D, F)
    keep(folder, x, *run_sae_lens(folder, x))
    folder = FOLDER / "sae_lens/batchtopk_in_training"
    config = BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=2.5, rescale_acts_by_decoder_norm=True)
    sae = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.ndim)) * 0.5)
        sae.topk_threshold.fill_(0.4)
    sae.save_model(folder)
    sae.save_inference_model(FOLDER / "inference")
    keep(folder, x, *run_sae_lens(FOLDER / "inference", x))
    shutil.rmtree(FOLDER / "inference")

    # Before version 1.6, torch wrote several pickles one after the other.
    torch.save({"bias": torch.zeros(D)}, FOLDER / "old.pt", _use_new_zipfile_serialization=False)
    # A module instead of its state dict.
    torch.save(dictionary("standard", D, F), FOLDER / "module.pt")


if __name__ == "__main__":
    main()
