"""Makes steps.json and steps.safetensors: 50 steps of the training step in PyTorch, float64.

    python kernels/example-steps/golden/make.py        (torch and safetensors; rewrites the files beside it)

`steps.json` holds each case's name, spec and schedule. The tensors: `initial/*`, `batches` [50,B,d], and
per case `<name>/weights/*`, `<name>/gradients/*` (of the first step, the decoder's projected) and `<name>/loss` [50].
"""

import json
import pathlib
import sys

import numpy
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "tests/peers"))
import sae_steps  # noqa: E402

WIDTH, FEATURES, BATCH, STEPS = 7, 13, 12, 50


def starting_point():
    """Weights and batches with features that are off, on, dead (0), nearly dead (1) and dense (2), and outlier batches."""
    random = numpy.random.default_rng(20240401)
    w_dec = random.normal(size=(FEATURES, WIDTH))
    w_dec /= numpy.linalg.norm(w_dec, axis=1, keepdims=True)
    b_enc = random.normal(size=FEATURES) * 0.1 - 0.2
    b_enc[:3] = -30.0, -4.0, 30.0
    initial = {
        "W_enc": w_dec.T * 0.8 + random.normal(size=(WIDTH, FEATURES)) * 0.2,
        "b_enc": b_enc,
        "W_dec": w_dec,
        "b_dec": random.normal(size=WIDTH) * 0.1,
        "threshold": numpy.abs(random.normal(size=FEATURES)) * 0.3,
    }
    batches = random.normal(size=(STEPS, BATCH, WIDTH)) * 1.5
    # So small that only the bias decides: all but the dense feature are off, an outlier for the window.
    batches[[20, 33]] *= 0.01
    return {k: v.astype("float32") for k, v in initial.items()}, batches.astype("float32")


def main():
    initial, batches = starting_point()
    cases = sae_steps.cases(WIDTH, FEATURES, BATCH, STEPS, lr=3e-3, coefficient=0.01)
    tensors = {f"initial/{name}": array for name, array in initial.items()} | {"batches": batches}
    for name, case in cases.items():
        weights, gradients, curves, _ = sae_steps.train(case["spec"], case["schedule"], initial, batches)
        tensors |= {f"{name}/weights/{key}": array for key, array in weights.items()}
        tensors |= {f"{name}/gradients/{key}": array for key, array in gradients.items()}
        tensors[f"{name}/loss"] = numpy.array(curves["loss"])
    lines = (f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
    (HERE / "steps.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    save_file({k: numpy.ascontiguousarray(v) for k, v in tensors.items()}, HERE / "steps.safetensors")


if __name__ == "__main__":
    main()
