"""Small autoencoders as other tools make and save them, with random weights, and what the tools compute with them."""

import json
import os

import torch
from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from safetensors.torch import save_file

# sparsify's other decoder takes a GPU.
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
from sparsify import SparseCoder, SparseCoderConfig  # noqa: E402

K = 3
DICTIONARIES = ["standard", "standard_new", "topk", "batch_topk", "matryoshka", "jumprelu"]
SPARSE_CODERS = {
    "sae": dict(),
    "multi_topk": dict(multi_topk=True),
    "transcoder": dict(transcode=True),
    "skip_transcoder": dict(transcode=True, skip_connection=True),
}


def randomize(module, seed):
    """Random weights and biases, of which no two are alike and no decoder row has norm 1; thresholds that matter."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name == "threshold":
                tensor.copy_(0.2 + 0.4 * torch.rand(tensor.shape, generator=random))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=random) * (0.3 if tensor.ndim == 1 else 0.6))
    return module


def dictionary(kind, d, f):
    """An autoencoder of dictionary_learning."""
    groups = [f // 4, f // 4, f - 2 * (f // 4)]
    made = {
        "standard": lambda: AutoEncoder(d, f),
        "standard_new": lambda: AutoEncoderNew(d, f),
        "topk": lambda: AutoEncoderTopK(d, f, K),
        "batch_topk": lambda: BatchTopKSAE(d, f, K),
        "matryoshka": lambda: MatryoshkaBatchTopKSAE(d, f, K, groups),
        "jumprelu": lambda: JumpReluAutoEncoder(d, f),
        "gated": lambda: GatedAutoEncoder(d, f),
    }[kind]()
    return randomize(made, seed=len(kind))


def save_dictionary(module, folder, layer=3):
    """Saves it as dictionary_learning's `trainSAE` does at its end."""
    folder.mkdir(parents=True)
    torch.save({name: tensor.cpu() for name, tensor in module.state_dict().items()}, folder / "ae.pt")
    trainer = dict(
        dict_class=type(module).__name__, activation_dim=module.activation_dim, dict_size=module.dict_size, k=K, layer=layer,
        lm_name="EleutherAI/pythia-70m-deduped", device="cpu", submodule_name=f"resid_post_layer_{layer}",
    )  # fmt: skip
    if hasattr(module, "group_sizes"):
        trainer["group_sizes"] = module.group_sizes.tolist()
    (folder / "config.json").write_text(json.dumps(dict(trainer=trainer, buffer=dict(ctx_len=128)), indent=4))


def run_dictionary(folder, x):
    """Features and reconstruction of x by dictionary_learning's own loader and classes."""
    module, _ = load_dictionary(str(folder), "cpu")
    with torch.no_grad():
        features = module.encode(x)
        return features, module.decode(features)


def sparse_coder(kind, d, f):
    """An autoencoder or transcoder of sparsify."""
    config = SparseCoderConfig(num_latents=f, k=K, **SPARSE_CODERS[kind])
    return randomize(SparseCoder(d, config), seed=len(kind))


def run_sparse_coder(folder, x):
    """Features and reconstruction of x by sparsify's own loader and class."""
    coder = SparseCoder.load_from_disk(folder)
    with torch.no_grad():
        encoded = coder.encode(x)
        features = torch.zeros(len(x), coder.num_latents).scatter(1, encoded.top_indices, encoded.top_acts)
        reconstruction = coder.decode(encoded.top_acts, encoded.top_indices)
        if coder.W_skip is not None:
            reconstruction = reconstruction + x @ coder.W_skip.mT
    return features, reconstruction


OLD_SAE_LENS = dict(
    model_name="gpt2-small", hook_point="blocks.8.hook_resid_pre", hook_point_layer=8, hook_point_head_index=None,
    dataset_path="Skylion007/openwebtext", is_dataset_tokenized=False, context_size=128, prepend_bos=True,
    activation_fn_str="relu", dtype="torch.float32", device="mps", normalize_activations=False, l1_coefficient=8e-05,
    lr=0.0004, expansion_factor=32,
)  # fmt: skip


def save_old_sae_lens(folder, d, f):
    """A folder as SAELens before version 6 wrote it: the keys of the GPT-2 autoencoders of its first releases."""
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(1)
    shapes = dict(W_enc=(d, f), b_enc=(f,), W_dec=(f, d), b_dec=(d,))
    tensors = {name: torch.randn(shape, generator=random) * 0.5 for name, shape in shapes.items()}
    save_file({**tensors, "scaling_factor": torch.ones(f)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**OLD_SAE_LENS, "d_in": d, "d_sae": f}))
