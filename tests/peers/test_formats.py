"""Autoencoders in the files of other tools: what the tools make and save is what the programs read, and what the programs write is
what the tools load."""

import json
import shutil

import pytest
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
from circuit_tracer.transcoder.single_layer_transcoder import load_relu_transcoder
from rounding import bound
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from test_sae_lens import THRESHOLDS, check_evaluation, made_by_a_layer, train_transcoder, write_store

WIDTH, FEATURES = 32, 96
TRAINING = ["--features", 200, "--batch", 256, "--held-out", 0, "--steps", 300, "--lr", "3e-3", "--json"]


def run_sae_lens(folder, x):
    sae = SAE.load_from_disk(folder)
    with torch.no_grad():
        features = sae.encode(x)
        return features, sae.decode(features)


def check_same(found, expected):
    """That features and reconstruction in float32 are the same within what rounding amounts to."""
    assert 0.01 < (expected[0] > 0).float().mean() < 0.9, "the comparison is about something"
    for ours, theirs in zip(found, expected, strict=True):
        apart = (ours - theirs).abs() > 1e-4 * (1 + theirs.abs())
        # A row's k-th and (k + 1)-th, or a feature and its threshold, can be equal within rounding.
        assert apart.any(1).float().mean() < 1e-3, f"{apart.any(1).sum()} rows of {len(ours)}"


def check_read(program, folder, store, x, features, reconstruction, target=None):
    """That the trainer's own evaluation of what is in `folder` has these features and this reconstruction."""
    targets = [] if target is None else ["--target", target[0]]
    printed = program("sae-trainer", "eval", folder, "--store", store, *targets, "--held-out", 0, "--json")
    found = json.loads(printed)[0]["on_rows"]
    y = x if target is None else target[1]
    error = (reconstruction - y).double().pow(2)
    assert found["l0"] == pytest.approx(float((features > 0).sum(1).double().mean()), rel=1e-4)
    assert found["l1"] == pytest.approx(float(features.double().sum(1).mean()), rel=1e-4)
    assert found["mse_sum"] == pytest.approx(float(error.sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_a_dictionary_is_read_and_imported(example, program, tmp_path, kind):
    x = write_store(example, tmp_path / "store", centered=False)
    folder = tmp_path / "trainer_0"
    save_dictionary(dictionary(kind, WIDTH, FEATURES), folder)
    features, reconstruction = run_dictionary(folder, x)
    check_read(program, folder, tmp_path / "store", x, features, reconstruction)
    program("sae-trainer", "import", folder, "--out", tmp_path / "imported")
    check_same(run_sae_lens(tmp_path / "imported", x), (features, reconstruction))
    metadata = SAE.load_from_disk(tmp_path / "imported").cfg.metadata
    assert metadata.hook_name == "blocks.3.hook_resid_post" and metadata.model_name == "EleutherAI/pythia-70m-deduped"


@pytest.mark.parametrize("kind", SPARSE_CODERS)
def test_a_sparse_coder_is_read(example, program, tmp_path, kind):
    x = write_store(example, tmp_path / "store", centered=False, hook="blocks.0.ln2.hook_normalized")
    folder = tmp_path / "layers.0"
    sparse_coder(kind, WIDTH, FEATURES).save_to_disk(folder)
    features, reconstruction = run_sparse_coder(folder, x)
    target = None
    if "transcoder" in kind:
        y = write_store(example, tmp_path / "out", centered=False, hook="blocks.0.hook_mlp_out", made_of=made_by_a_layer)
        target = (tmp_path / "out", y)
    check_read(program, folder, tmp_path / "store", x, features, reconstruction, target)
    program("sae-trainer", "import", folder, "--out", tmp_path / "imported")
    if target is None:
        check_same(run_sae_lens(tmp_path / "imported", x), (features, reconstruction))
    # SAELens has no TopK transcoder: back to where it came from.
    program("sae-trainer", "export", tmp_path / "imported", "--to", "sparsify", "--out", tmp_path / "back")
    there, back = (load_file(at / "sae.safetensors") for at in (folder, tmp_path / "back"))
    assert there.keys() == back.keys() and all(torch.equal(there[name], back[name]) for name in there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_old_sae_lens_folder_is_read_in_every_type(example, program, tmp_path, dtype):
    x = write_store(example, tmp_path / "store", centered=False)
    folder = tmp_path / "old"
    save_old_sae_lens(folder, WIDTH, FEATURES)
    path = folder / "sae_weights.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    features, reconstruction = run_sae_lens(folder, x)
    check_read(program, folder, tmp_path / "store", x, features, reconstruction)
    program("sae-trainer", "import", folder, "--out", tmp_path / "imported")
    check_same(run_sae_lens(tmp_path / "imported", x), (features, reconstruction))
    assert SAE.load_from_disk(tmp_path / "imported").cfg.metadata.hook_name == "blocks.8.hook_resid_pre"


OURS = {
    "relu": ["--pre-bias"],
    "relu-without-pre-bias": [],
    "topk": ["--activation", "topk", "--k", 6],
    "batch-topk": ["--activation", "batch-topk", "--k", 6, "--pre-bias"],
    "matryoshka": ["--activation", "batch-topk", "--k", 6, "--matryoshka", "0.25,0.5"],
    "jump-relu": ["--activation", "jump-relu", "--mse", "sum", "--l0-coefficient", 0.05, "--clip-gradient", 1],
    "scaled": ["--activation", "topk", "--k", 6, "--input-scale", "mean-norm", "--pre-bias"],
}
CLASSES = {
    "relu": "AutoEncoder",
    "relu-without-pre-bias": "AutoEncoderNew",
    "topk": "AutoEncoderTopK",
    "batch-topk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
    "jump-relu": "JumpReluAutoEncoder",
    "scaled": "AutoEncoderTopK",
}


@pytest.mark.parametrize("kind", OURS)
def test_what_is_trained_is_loaded_by_other_tools(example, program, tmp_path, kind):
    x = write_store(example, tmp_path / "store", centered=False)
    program("sae-trainer", "--store", tmp_path / "store", "--out", tmp_path / "run", *TRAINING, *OURS[kind])
    expected = run_sae_lens(tmp_path / "run/sae", x)

    def export(to, out):
        program("sae-trainer", "export", tmp_path / "run", "--to", to, "--out", tmp_path / out)
        return tmp_path / out

    folder = export("dictionary-learning", "trainer_0")
    assert json.loads((folder / "config.json").read_text())["trainer"]["dict_class"] == CLASSES[kind]
    state = torch.load(folder / "ae.pt", weights_only=True)
    assert all(tensor.is_contiguous() for tensor in state.values())
    torch.load(folder / "ae.pt", weights_only=True, mmap=True)
    check_same(run_dictionary(folder, x), expected)
    check_same(run_sae_lens(export("sae-lens", "lens"), x), expected)
    tensors = load_file(export("safetensors", "sae.safetensors"))
    z = x @ tensors["W_enc"] + tensors["b_enc"]
    assert z.shape == (len(x), 200) and (bound(x, tensors["W_enc"], tensors["b_enc"]) < 1).all()
    if kind in ("topk", "scaled"):
        check_same(run_sparse_coder(export("sparsify", "coder"), x), expected)
    # And back again.
    program("sae-trainer", "import", folder, "--out", tmp_path / "back")
    check_same(run_sae_lens(tmp_path / "back", x), expected)


@pytest.mark.parametrize("flags", [[], ["--skip"]])
def test_sparsify_loads_a_transcoder(example, program, tmp_path, flags):
    flags = [*flags, "--activation", "topk", "--k", 6]
    folder, x, found = train_transcoder(example, program, tmp_path, flags)
    program("sae-trainer", "export", folder, "--to", "sparsify", "--out", tmp_path / "coder")
    features, reconstruction = run_sparse_coder(tmp_path / "coder", x.float())
    check_evaluation(found, features.double(), reconstruction.double(), torch.from_numpy(made_by_a_layer(x.numpy())))


def test_a_set_of_circuit_tracer_is_read_back(example, program, tmp_path):
    folder, *_ = train_transcoder(example, program, tmp_path, ["--skip", *THRESHOLDS])
    program("sae-trainer", "export", folder, "--to", "circuit-tracer", "--out", tmp_path / "set")
    program("sae-trainer", "import", tmp_path / "set/layer_0.safetensors", "--out", tmp_path / "back")
    there, back = (load_file(at / "sae_weights.safetensors") for at in (folder, tmp_path / "back"))
    assert there.keys() == back.keys() and all(torch.equal(there[name], back[name]) for name in there)
    metadata = SAE.load_from_disk(tmp_path / "back").cfg.metadata
    assert (metadata.hook_name, metadata.hook_name_out) == ("blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out")
    # As circuit-tracer itself writes a set.
    transcoder = load_relu_transcoder(str(tmp_path / "set/layer_0.safetensors"), 0, torch.device("cpu"))
    (tmp_path / "theirs").mkdir()
    transcoder.to_safetensors(str(tmp_path / "theirs/layer_0.safetensors"))
    shutil.copy(tmp_path / "set/config.yaml", tmp_path / "theirs")
    program("sae-trainer", "import", tmp_path / "theirs/layer_0.safetensors", "--out", tmp_path / "again")
    again = load_file(tmp_path / "again/sae_weights.safetensors")
    assert there.keys() == again.keys() and all(torch.equal(there[name], again[name]) for name in there)


def test_a_hostile_pickle_is_refused_unexecuted(example, program, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "trainer").mkdir()
    torch.save({"bias": Hostile()}, tmp_path / "trainer/ae.pt")
    with pytest.raises(AssertionError, match="(?s)names `.*open`.*nothing was executed"):
        program("sae-trainer", "import", tmp_path / "trainer", "--out", tmp_path / "out")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()
