"""See scripts/bench-trainer."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

import torch
import zarr
from dictionary_learning.trainers.standard import StandardTrainer
from safetensors.torch import load_file
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release"
NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    weights, rows = data(arguments)
    width, features = weights["W_enc"].shape
    active = (rows @ weights["W_enc"] + weights["b_enc"] > 0).sum(1).float().mean().item()
    print(
        f"d {width}, F {features}, batch {len(rows)}, L0 {active:.1f}, float32, {arguments.threads} threads,"
        f" {arguments.rounds} rounds; tokens/s"
    )
    contestants = {
        "sae-trainer": None,
        "plain PyTorch": plain_pytorch(weights, rows),
        "SAELens": saelens(weights, rows),
        "dictionary_learning": dictionary_learning(weights, rows),
    }
    speeds = {name: [] for name in contestants}
    for turn in range(arguments.rounds):
        for name, step in contestants.items():
            speed = ours(arguments) if step is None else time_step(step, len(rows), warm_up=turn == 0)
            speeds[name].append(speed)
            print(f"  round {turn + 1}: {name} {speed:.0f}", flush=True)
    reference = speeds["sae-trainer"]
    print(f"{'':22}{'median':>9}{'least':>9}{'most':>9}   ours / it, median of the rounds' ratios")
    for name, of_name in speeds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(reference, of_name))
        print(f"{name:22}{statistics.median(of_name):9.0f}{min(of_name):9.0f}{max(of_name):9.0f}   {ratio:.1f}")


def parse():
    parser = argparse.ArgumentParser(prog="scripts/bench-trainer")
    parser.add_argument("--store", type=pathlib.Path)
    parser.add_argument("--from", dest="sae", type=pathlib.Path, help="an autoencoder trained on the store")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--features", type=int, help="[default: 32 times the width, or the autoencoder's]")
    parser.add_argument("--l0", type=float, default=60)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dense", action="store_true", help="start from random weights")
    arguments = parser.parse_args()
    if (arguments.store is None) != (arguments.sae is None):
        parser.error("--store and --from come together")
    if arguments.sae is not None and arguments.dense:
        parser.error("--dense is of synthetic rows")
    arguments.features = arguments.features or 32 * arguments.width
    if arguments.dense:
        arguments.l0 = arguments.features / 2
    return arguments


def data(arguments):
    """Weights and a batch of rows, [B,d]; the peers' work does not depend on what the numbers are."""
    if arguments.store:
        weights = load_file(arguments.sae / "sae_weights.safetensors")
        rows = zarr.open(arguments.store)["activations"][: arguments.batch].astype("float32")
        return {name: weights[name] for name in NAMES}, torch.from_numpy(rows)
    random = torch.Generator().manual_seed(0)
    width, features = arguments.width, arguments.features
    w_dec = torch.nn.functional.normalize(torch.randn(features, width, generator=random), dim=1)
    rows = torch.nn.functional.normalize(torch.randn(arguments.batch, width, generator=random), dim=1)
    z = rows[:64] @ w_dec.T
    bias = -z.flatten().kthvalue(int(z.numel() * (1 - arguments.l0 / features))).values
    weights = {
        "W_enc": w_dec.T.contiguous(),
        "b_enc": bias.expand(features).clone(),
        "W_dec": w_dec,
        "b_dec": torch.zeros(width),
    }
    return weights, rows


def ours(arguments):
    """Tokens a second of whole steps, median of five, by `sae-trainer bench`."""
    flags = ["--batch", arguments.batch, "--threads", arguments.threads, "--repeats", 5, "--json"]
    if arguments.store:
        flags += ["--store", arguments.store, "--from", arguments.sae]
    else:
        flags += ["--width", arguments.width, "--features", arguments.features, "--l0", arguments.l0]
    done = subprocess.run(
        [TARGET / "sae-trainer", "bench", *map(str, flags)], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)["tokens_per_second"]


def time_step(step, rows, warm_up):
    """Tokens a second, median of two steps."""
    if warm_up:
        step()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return rows / statistics.median(times)


def plain_pytorch(weights, rows):
    """approx-l0 with the frequency penalty, decoder rows of norm 1: our step, as one writes it in PyTorch."""
    w_enc, b_enc, w_dec, b_dec = parameters = [weights[name].clone().requires_grad_() for name in NAMES]
    optimizer = torch.optim.Adam(parameters, lr=4e-4)
    window = []

    def step():
        a = torch.relu(rows @ w_enc + b_enc)
        xhat = a @ w_dec + b_dec
        spread = (rows - rows.mean(0)).norm(dim=-1, keepdim=True)
        surrogate = a / (a + 0.2)
        window.append((a.detach() > 0).float().mean(0))
        s = torch.stack(window[-300:]).mean(0)
        frequency = surrogate.mean(0)
        frequency = frequency + (s - frequency).detach()
        loss = ((xhat - rows) ** 2 / spread).mean() + 7e-5 * surrogate.sum(1).mean()
        loss = loss + 1e-6 * torch.relu(-5 - torch.log10(frequency + 1e-10)).sum()
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            w_dec.grad -= (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec
            optimizer.step()
            w_dec.div_(w_dec.norm(dim=1, keepdim=True))

    return step


def saelens(weights, rows):
    """SAELens' own trainer with its standard (L1) autoencoder."""
    width, features = weights["W_enc"].shape
    config = StandardTrainingSAEConfig(d_in=width, d_sae=features, dtype="float32", device="cpu", l1_coefficient=1.0)
    sae = StandardTrainingSAE(config)
    with torch.no_grad():
        for name in NAMES:
            getattr(sae, name).copy_(weights[name])
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=1_000_000 * len(rows), train_batch_size_samples=len(rows), lr=4e-4, lr_end=4e-4, device="cpu"
        ),
        sae,
        iter(lambda: rows, None),
    )

    def step():
        trainer.step(rows)
        trainer.n_training_steps += 1

    return step


def dictionary_learning(weights, rows):
    """dictionary_learning's standard (L1) trainer."""
    width, features = weights["W_enc"].shape
    trainer = StandardTrainer(
        steps=100_000, activation_dim=width, dict_size=features, layer=0, lm_name="", lr=4e-4, device="cpu", seed=0
    )
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(weights["W_enc"].T)
        trainer.ae.encoder.bias.copy_(weights["b_enc"])
        trainer.ae.decoder.weight.copy_(weights["W_dec"].T)
        trainer.ae.bias.copy_(weights["b_dec"])
    numbers = iter(range(1, 100_000))
    return lambda: trainer.update(next(numbers), rows)


if __name__ == "__main__":
    main()
