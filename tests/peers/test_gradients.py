"""The CPU engine's gradients and trained weights against PyTorch's, at sizes beyond the golden files'."""

import functools
import json

import numpy
import pytest
import sae_steps
import torch
from safetensors.numpy import load_file, save_file

WIDTH, FEATURES, BATCH, STEPS = 48, 300, 128, 100
SIZES = WIDTH, FEATURES, BATCH, STEPS
TRANSCODERS = sae_steps.transcoder_cases(*SIZES, lr=1e-3, coefficient=1e-3)
CASES = sae_steps.cases(*SIZES, lr=1e-3, coefficient=1e-3) | TRANSCODERS
# Rows to choose from: where float32 puts an activation on the other side of 0, weights end up to 8e-5 away.
SPARE = 32


torch.set_num_threads(1)  # The products are small: more threads wait longer than they work.


@functools.cache
def start():
    """Weights under which features are off, on, dead and dense, and rows made of few directions."""
    random = numpy.random.default_rng(5)
    w_dec = random.normal(size=(FEATURES, WIDTH))
    w_dec /= numpy.linalg.norm(w_dec, axis=1, keepdims=True)
    b_enc = random.normal(size=FEATURES) * 0.1 - 0.3
    b_enc[:10], b_enc[10:13], b_enc[13:23] = -50.0, 50.0, -2.5
    codes = random.exponential(size=(STEPS, BATCH + SPARE, FEATURES))
    codes *= random.random(size=codes.shape) < 0.03
    batches = codes @ w_dec + 0.1 * random.normal(size=(STEPS, BATCH + SPARE, WIDTH))
    weights = {
        "W_enc": w_dec.T + random.normal(size=(WIDTH, FEATURES)) * 0.1,
        "b_enc": b_enc,
        "W_dec": w_dec,
        "b_dec": random.normal(size=WIDTH) * 0.1,
        "threshold": numpy.abs(random.normal(size=FEATURES)) * 0.1,
        "W_skip": random.normal(size=(WIDTH, WIDTH)) * 0.05,
    }
    return {name: array.astype("float32") for name, array in weights.items()}, batches.astype("float32")


def target(x):
    """What a transcoder is to make of rows x: partly linear in them."""
    return 0.7 * x.roll(5, dims=1) - 0.4 * torch.relu(x) + 0.2


def engine(example, folder, case, weights, batches, density, targets=None):
    """What the engine makes of the case on the sparse path (density 1) or the dense one (-1)."""
    (folder / "case.json").write_text(json.dumps(case))
    tensors = {**weights, "batches": batches} | ({} if targets is None else {"targets": targets})
    save_file(
        {name: numpy.ascontiguousarray(array) for name, array in tensors.items()},
        folder / "input.safetensors",
    )
    example(
        "engine_steps", folder / "case.json", folder / "input.safetensors", folder / "output.safetensors", density
    )
    return load_file(folder / "output.safetensors")


def relative(got, expected):
    return numpy.linalg.norm(got.astype("float64") - expected) / numpy.linalg.norm(expected)


@functools.cache
def pytorch(name):
    """Trained weights, first gradients and curves in float64, and the batches."""
    of_its_own = {"target": target} if name in TRANSCODERS else {}
    return sae_steps.train(CASES[name]["spec"], CASES[name]["schedule"], *start(), **of_its_own)


@pytest.mark.parametrize("density", [1, -1], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_and_fifty_steps_equal_pytorchs(example, tmp_path, name, density):
    case, weights = CASES[name], start()[0]
    trained, gradients, curves, batches = pytorch(name)
    active = numpy.maximum(batches[0] @ weights["W_enc"] + weights["b_enc"], 0) > 0
    fractions = active.mean(0)
    assert (fractions == 0).sum() >= 10 and (fractions == 1).sum() >= 3, "dead and dense features"
    assert ((fractions > 0) & (fractions < 0.5)).sum() > 100, "features that are on and off"

    targets = None
    if name in TRANSCODERS:
        # Those of the batches as the engine gets them.
        targets = target(torch.tensor(batches, dtype=torch.float64).flatten(0, 1)).numpy()
        targets = targets.astype("float32").reshape(batches.shape)
    got = engine(example, tmp_path, case, weights, batches, density, targets)
    # Float64 runs that are disturbed as float32's may be (rounding.Float32Products) end up to 8e-7 away in a gradient
    # and up to 2e-6 in weights, where Adam divides a gradient of almost 0 by its like; the engine a third of that.
    for key in sae_steps.names(case["spec"]):
        assert relative(got[f"gradient/{key}"], gradients[key]) < 4e-6, f"gradient of {key}"
        assert relative(got[key], trained[key]) < 1e-5, key
    assert relative(got["loss"], curves["loss"]) < 4e-6
    assert (got["l0"] == curves["l0"].astype("float32")).all()
