"""The dump on a GPU: is what activation-dump stores right, and how fast is it?

    stage_one.py ACTIVATION_DUMP ONNXRUNTIME [--device cuda] [--tiny]

ONNXRUNTIME is a folder with ONNX Runtime and its CUDA provider, or a .tar.xz of one; `none`: the one that activation-dump finds
by itself. A GPT-2 of random weights and the true shapes, which transformers makes and saves, reads random tokens:
- its rows at the inputs of three blocks, against torch in float64 on the same tokens;
- tokens a second at the input of block 1, from a file of tokens to a finished store, beside torch's own forward pass to there.
Exits with 77 where there is no torch, transformers, device, or ONNX Runtime for it.

The bound. A sum of n products that are rounded at u = 2⁻²⁴ is off by about u·√n of the size of its terms' root mean square sum,
and of millions of such errors the largest is within 8 of their standard deviations, for both sides together. A block chains
sums of 768 (queries and keys), 64 (scores), 128 (their mixture), 768 (output), 768 and 3072 (the MLP) numbers; its norms and
its softmax are shorter. So rows behind L blocks may differ by 8·u·L·Σ√n of the root mean square of all rows: 6e-5 a block. TF32's
u is 2⁻¹¹: it would be off by a few times 10⁻⁴ already behind the first one.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import time

try:
    import numpy
    import torch
    import transformers
except ImportError as error:
    print(f"there is no {error.name} here")
    sys.exit(77)

LENGTH = 128
BATCH = 64
RUN = 10


def bound(layer, config):
    width, head, inner = config.n_embd, config.n_embd // config.n_head, 4 * config.n_embd
    sums = [width, head, LENGTH, width, width, inner]
    return 8 * 2.0**-24 * layer * sum(n**0.5 for n in sums)


def onnxruntime(named, scratch):
    """The options that name it."""
    if named == "none":
        return []
    path = pathlib.Path(named)
    if path.suffix == ".xz":
        folder = scratch / "onnxruntime"
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        path = folder
    return ["--onnxruntime", path]


def dump(program, runtime, device, *options):
    """Runs the program; its own account of it."""
    command = [program, *runtime, "--device", device, "--center", "off", "--context", LENGTH, "--json", *options]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"activation-dump failed on {device}")
    return json.loads(done.stdout)


def stored_rows(program, store):
    """The rows of a store [contexts·T, d], in the order of the text."""
    out = store.with_name(store.name + ".npy")
    subprocess.run([program, "export", store, "--format", "npy", "--out", out], check=True, stdout=subprocess.DEVNULL)
    parts = lambda name: numpy.concatenate([numpy.load(file) for file in sorted(out.glob(f"{name}-*.npy"))])  # noqa: E731
    rows, origin = parts("activations"), parts("origin")
    ordered = numpy.empty_like(rows)
    ordered[origin] = rows
    return torch.from_numpy(ordered)


def check(arguments, runtime, model, folder, scratch):
    """Rows of a few contexts against float64; whether they are within the bound."""
    layers = sorted({1, model.config.n_layer // 2, model.config.n_layer - 1})
    ids = torch.randint(0, model.config.vocab_size - 1, (16, LENGTH))
    numpy.save(scratch / "few.npy", ids.numpy().astype("uint16"))
    dump(arguments.dump, runtime, arguments.device, "--model", folder, "--dataset", scratch / "few.npy", "--layer",
         ",".join(map(str, layers)), "--tokens", ids.numel(), "--dtype", "f32", "--out", scratch / "few")
    with torch.no_grad():
        states = {}
        for dtype in [torch.float64, torch.float32]:
            run = model.to(arguments.device, dtype)(ids.to(arguments.device), output_hidden_states=True)
            states[dtype] = [state.double().cpu().flatten(0, 1) for state in run.hidden_states]
    model.float()
    right = True
    for layer in layers:
        expected = states[torch.float64][layer]
        scale = expected.square().mean().sqrt()
        off = lambda rows: float((rows - expected).abs().max() / scale)  # noqa: E731
        found = off(stored_rows(arguments.dump, scratch / f"few/blocks.{layer}.hook_resid_pre").double())
        torchs, limit = off(states[torch.float32][layer]), bound(layer, model.config)
        good = found <= limit
        right &= good
        print(f"{'ok  ' if good else 'FAIL'} the input of block {layer}: off by {found:.1e} of its size, torch in float32 by "
              f"{torchs:.1e}, the bound is {limit:.1e}", flush=True)
        print(json.dumps({"figure": f"error at block {layer}", "off": found, "torch": torchs, "bound": limit}), flush=True)
    return right


def figure(name, tokens_per_second, **more):
    print(f"{name}: {tokens_per_second / 1e6:.3f} M tokens/s", flush=True)
    print(json.dumps({"figure": name, "tokens_per_second": tokens_per_second, **more}), flush=True)


def time_dump(arguments, runtime, folder, vocabulary, scratch):
    contexts = max(1, arguments.tokens // LENGTH)
    ids = numpy.random.default_rng(1).integers(0, vocabulary - 1, (contexts, LENGTH)).astype("uint16")
    numpy.save(scratch / "many.npy", ids)
    done = dump(arguments.dump, runtime, arguments.device, "--model", folder, "--dataset", scratch / "many.npy", "--layer", 1,
                "--tokens", ids.size, "--out", scratch / "many")
    print(f"activation-dump on {done['provider']}; at work: {done['busy']}, to finish {done['finish_seconds']:.2f} s")
    figure("activation-dump", done["tokens_per_second"], provider=done["provider"], busy=done["busy"], seconds_of_all=done["seconds"])


def time_torch(arguments, model):
    """The forward pass through the embeddings and block 0."""
    device = torch.device(arguments.device)
    model.h, model.ln_f = model.h[:1], torch.nn.Identity()
    ids = torch.randint(0, model.config.vocab_size - 1, (arguments.batch, LENGTH), device=device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    host = torch.empty(arguments.batch, LENGTH, model.config.n_embd, pin_memory=device.type == "cuda")
    for name, dtype, copied in [("torch float32, on the device", torch.float32, False),
                                ("torch float32, copied to the host", torch.float32, True),
                                ("torch bfloat16, on the device", torch.bfloat16, False)]:
        model.to(device, dtype)
        with torch.no_grad():
            for repeat in range(2):  # the first one warms up
                wait()
                start = time.perf_counter()
                for _ in range(RUN):
                    rows = model(ids, use_cache=False).last_hidden_state
                    if copied:
                        host.copy_(rows, non_blocking=True)
                wait()
                seconds = time.perf_counter() - start
        figure(name, RUN * ids.numel() / seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=pathlib.Path)
    parser.add_argument("onnxruntime")
    parser.add_argument("--device", default="cuda", help="auto: cuda if torch finds a device, else cpu")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="a model and texts small enough for the CPU")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    if arguments.device == "cuda" and not cuda:
        print("torch finds no CUDA device")
        sys.exit(77)
    if arguments.device == "auto":
        arguments.device = "cuda" if cuda else "cpu"
    if arguments.device == "cuda" and arguments.onnxruntime == "none":
        print("there is no ONNX Runtime for a GPU here; scripts/gpu-check pack makes one")
        sys.exit(77)
    if arguments.tiny:
        arguments.tokens, arguments.batch = 20_000, 4
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    scratch = pathlib.Path(os.environ["SCRATCH"]) / "stage-one"
    scratch.mkdir()
    runtime = onnxruntime(arguments.onnxruntime, scratch)
    shape = {"n_layer": 4, "n_embd": 96, "n_head": 6} if arguments.tiny else {}
    with torch.device("cpu" if arguments.device == "cpu" else arguments.device):
        model = transformers.GPT2Model(transformers.GPT2Config(attn_implementation="eager", **shape)).eval()
    folder = scratch / "gpt2"
    model.save_pretrained(folder)
    right = check(arguments, runtime, model, folder, scratch)
    time_dump(arguments, runtime, folder, model.config.vocab_size, scratch)
    time_torch(arguments, model)
    if not right:
        sys.exit("rows are further off than rounding explains")


if __name__ == "__main__":
    main()
