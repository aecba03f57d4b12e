"""Times training steps in PyTorch at one size, for comparison with the CUDA engine on the same machine.

    peers.py [--rows 4096] [--width 768] [--features 24576] [--runs 3] [--device cuda] [--compiled]

A step is forward, autograd backward and Adam on random rows, the same for every kind, that lie in device memory already. Runs
of 10 steps are timed, within which nothing waits for the device but what a kind does of itself; the fastest run counts.
Prints a figure for each kind:
  plain         the approx-l0 loss with min-sparsity, as dense formulas, with the fused Adam; float32, TF32 products, bfloat16
                autocast; with --compiled that one alone, the loss and its gradients compiled
  sae_lens      in the manner of SAELens' standard autoencoder: L1 weighted by the decoder's norms, pre-bias, gradient
                clipping, firing counts; float32 and TF32
  post_author   in the manner of the approx-l0 post's own code: a window of firing fractions as a list of tensors, the
                parallel component removed, unit norm after each step, losses logged in each; float32 and TF32
Exits with 77 where there is no torch, or no device for it.
"""

import argparse
import contextlib
import json
import math
import sys
import time

try:
    import torch
except ImportError:
    print("there is no torch here")
    sys.exit(77)

RUN = 10


class Autoencoder(torch.nn.Module):
    def __init__(self, width, features, device):
        super().__init__()

        def uniform(rows, columns):
            bound = (6 / columns) ** 0.5
            return torch.nn.Parameter((torch.rand(rows, columns, device=device) * 2 - 1) * bound)

        self.w_enc, self.b_enc = uniform(width, features), torch.nn.Parameter(torch.zeros(features, device=device))
        self.w_dec, self.b_dec = uniform(features, width), torch.nn.Parameter(torch.zeros(width, device=device))

    def forward(self, x, pre_bias=False):
        a = torch.relu((x - self.b_dec if pre_bias else x) @ self.w_enc + self.b_enc)
        return a, a @ self.w_dec + self.b_dec


def centered_mse(x, xhat):
    norm = (x - x.mean(0)).norm(dim=-1, keepdim=True).detach()
    return ((xhat - x) ** 2 / norm).mean()


def min_sparsity(a, s, epsilon=0.2, kappa=1e-6, target=1e-5):
    surrogate = (a / (a + epsilon)).mean(0)
    log_s = torch.log10(surrogate + (s - surrogate).detach() + 1e-10)
    return kappa * torch.relu(math.log10(target) - log_s).sum()


def plain(model, precision):
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4, fused=True)
    ring = torch.zeros(300, model.b_enc.numel(), device=model.w_enc.device)
    state = {"step": 0}
    cast = precision == "bf16"

    def loss_of(x, ring):
        context = torch.autocast(x.device.type, torch.bfloat16) if cast else contextlib.nullcontext()
        with context:
            a, xhat = model(x)
        a, xhat = a.float(), xhat.float()
        penalty = 7e-5 * (a / (a + 0.2)).sum(1).mean()
        fired = (a > 0).float().mean(0).detach()
        return centered_mse(x, xhat) + penalty + min_sparsity(a, ring.mean(0)), fired

    if precision == "bf16 compiled":
        cast = True
        loss_of = torch.compile(loss_of)

    def step(x):
        loss, fired = loss_of(x, ring)
        ring[state["step"] % 300] = fired
        state["step"] += 1
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            w, g = model.w_dec, model.w_dec.grad
            g -= (g * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w
            optimizer.step()
            w /= w.norm(dim=1, keepdim=True)

    return step


def sae_lens(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4, betas=(0.9, 0.999))
    fired_in = torch.zeros_like(model.b_enc)
    since = torch.zeros_like(model.b_enc)

    def step(x):
        nonlocal since
        a, xhat = model(x, pre_bias=True)
        with torch.no_grad():
            fired = a > 0
            since = torch.where(fired.any(0), torch.zeros_like(since), since + 1)
            fired_in.add_(fired.float().sum(0))
        mse = ((xhat - x) ** 2).sum(-1).mean()
        sparsity = (a * model.w_dec.norm(dim=1)).norm(p=1, dim=-1).mean()
        optimizer.zero_grad()
        (mse + 8e-5 * sparsity).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def post_author(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)
    window = []

    def step(x):
        a, xhat = model(x)
        with torch.no_grad():
            fractions = (a > 0).float().mean(0)
            window.append(fractions)
            del window[:-300]
            stacked = torch.stack(window)
            levels = torch.log10(stacked.mean(1))
            s = stacked[(levels - levels[-1]).abs() < 0.5].mean(0)
        loss = centered_mse(x, xhat) + 7e-5 * (a / (a + 0.2)).sum(1).mean() + min_sparsity(a, s)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            unit = model.w_dec / model.w_dec.norm(dim=1, keepdim=True)
            model.w_dec.grad -= (model.w_dec.grad * unit).sum(1, keepdim=True) * unit
        optimizer.step()
        with torch.no_grad():
            model.w_dec.div_(model.w_dec.norm(dim=1, keepdim=True))
        loss.item(), (a > 0).float().sum(1).mean().item()  # logged every step

    return step


# Name: the step, and whether float32 products may be rounded to TF32.
KINDS = {
    "plain fp32": (lambda model: plain(model, "fp32"), False),
    "plain tf32": (lambda model: plain(model, "fp32"), True),
    "plain bf16 autocast": (lambda model: plain(model, "bf16"), True),
    "sae_lens fp32": (sae_lens, False),
    "sae_lens tf32": (sae_lens, True),
    "post_author fp32": (post_author, False),
    "post_author tf32": (post_author, True),
}
COMPILED = {"plain bf16 compiled": (lambda model: plain(model, "bf16 compiled"), True)}


def measure(make, arguments, device):
    """Seconds of a step."""
    torch.manual_seed(0)
    model = Autoencoder(arguments.width, arguments.features, device)
    step = make(model)
    batches = [torch.randn(arguments.rows, arguments.width, device=device) for _ in range(4)]
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def run():
        wait()
        start = time.perf_counter()
        for at in range(RUN):
            step(batches[at % 4])
        wait()
        return (time.perf_counter() - start) / RUN

    run()  # warms up
    return min(run() for _ in range(arguments.runs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--features", type=int, default=24576)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda", help="auto: cuda if there is a device, else cpu")
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    if arguments.device == "cuda" and not cuda:
        print("torch finds no CUDA device")
        sys.exit(77)
    device = torch.device(arguments.device if arguments.device != "auto" else "cuda" if cuda else "cpu")
    torch.set_default_device(device)
    failed = []
    for name, (make, tf32) in (COMPILED if arguments.compiled else KINDS).items():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            seconds = measure(make, arguments, device)
        except Exception as error:  # one kind that cannot run here is no reason to lose the others
            first = (str(error).splitlines() or [""])[0][:150]
            print(f"{name:>22}: failed, {type(error).__name__}: {first}", flush=True)
            failed.append(name)
            continue
        rate = arguments.rows / seconds
        print(f"{name:>22}: {seconds * 1e3:9.3f} ms a step, {rate / 1e6:.4f} M tokens/s", flush=True)
        figure = {"figure": name, "seconds": seconds, "tokens_per_second": rate, "torch": torch.__version__}
        print(json.dumps(figure), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
