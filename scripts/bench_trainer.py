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
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLU, JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, Step
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release"
NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]
ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jump-relu"}
L0_COEFFICIENT = 7e-5  # of approx-l0, and of the number of active features with jump-relu
BANDWIDTH = 0.05  # of an autoencoder with thresholds; of synthetic ones a tenth of the threshold


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    weights, rows = data(arguments)
    width, features = weights["W_enc"].shape
    kind = arguments.activation
    if kind in ("topk", "batch-topk"):
        active = arguments.k
    else:
        active = (rows @ weights["W_enc"] + weights["b_enc"] > weights.get("threshold", 0)).sum(1).float().mean().item()
    print(
        f"{kind}, d {width}, F {features}, batch {len(rows)}, L0 {active:.1f}, {arguments.threads} threads,"
        f" {arguments.rounds} rounds; tokens/s"
    )
    contestants = {"sae-trainer": None} | peers(arguments, weights, rows)
    speeds = {name: [] for name in contestants}
    for turn in range(arguments.rounds):
        for name, step in contestants.items():
            speed = ours(arguments) if step is None else time_step(step, len(rows), warm_up=turn == 0)
            speeds[name].append(speed)
            print(f"  round {turn + 1}: {name} {speed:.0f}", flush=True)
    reference = speeds["sae-trainer"]
    print(f"{'':26}{'median':>9}{'least':>9}{'most':>9}   ours / it, median of the rounds' ratios")
    for name, of_name in speeds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(reference, of_name))
        print(f"{name:26}{statistics.median(of_name):9.0f}{min(of_name):9.0f}{max(of_name):9.0f}   {ratio:.1f}")


def parse():
    parser = argparse.ArgumentParser(prog="scripts/bench-trainer")
    parser.add_argument("--store", type=pathlib.Path)
    parser.add_argument("--from", dest="sae", type=pathlib.Path, help="an autoencoder trained on the store")
    kinds = ["relu", "topk", "batch-topk", "jump-relu"]
    parser.add_argument("--activation", choices=kinds, help="[default: relu, or the autoencoder's]")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--features", type=int, help="[default: 32 times the width, or the autoencoder's]")
    parser.add_argument("--l0", type=float, default=60)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-bfloat16", action="store_true", help="leave bfloat16 autocast out")
    parser.add_argument("--dense", action="store_true", help="start from random weights")
    arguments = parser.parse_args()
    if (arguments.store is None) != (arguments.sae is None):
        parser.error("--store and --from come together")
    if arguments.sae is not None and arguments.dense:
        parser.error("--dense is of synthetic rows")
    if arguments.sae is not None and arguments.activation is not None:
        parser.error("--activation is of synthetic weights; an autoencoder has its own")
    arguments.features = arguments.features or 32 * arguments.width
    if arguments.dense:
        arguments.l0 = arguments.features / 2
    arguments.k = max(round(arguments.l0), 1)
    if arguments.sae is None:
        arguments.activation = arguments.activation or "relu"
    else:
        config = json.loads((arguments.sae / "cfg.json").read_text())
        arguments.activation = ARCHITECTURES[config["architecture"]]
        arguments.k = config.get("k")
    return arguments


def data(arguments):
    """Weights and a batch of rows, [B,d]; the peers' work does not depend on what the numbers are."""
    if arguments.store:
        weights = load_file(arguments.sae / "sae_weights.safetensors")
        rows = zarr.open(arguments.store)["activations"][: arguments.batch].astype("float32")
        names = [*NAMES, "threshold"] if arguments.activation == "jump-relu" else NAMES
        return {name: weights[name] for name in names}, torch.from_numpy(rows)
    random = torch.Generator().manual_seed(0)
    width, features = arguments.width, arguments.features
    w_dec = torch.nn.functional.normalize(torch.randn(features, width, generator=random), dim=1)
    rows = torch.nn.functional.normalize(torch.randn(arguments.batch, width, generator=random), dim=1)
    z = rows[:64] @ w_dec.T
    bias = -z.flatten().kthvalue(int(z.numel() * (1 - arguments.l0 / features))).values
    weights = {
        "W_enc": w_dec.T.contiguous(),
        "b_enc": bias.expand(features).clone() if arguments.activation == "relu" else torch.zeros(features),
        "W_dec": w_dec,
        "b_dec": torch.zeros(width),
    }
    if arguments.activation == "jump-relu":
        weights["threshold"] = (-bias).clamp(min=0).expand(features).clone()
    return weights, rows


def peers(arguments, weights, rows):
    """The steps of the others with the same activation, by name."""
    kind = arguments.activation
    steps = {"plain PyTorch": plain_pytorch(arguments, weights, rows), "SAELens": saelens(arguments, weights, rows)}
    if kind == "relu":
        steps["dictionary_learning"] = dictionary_learning(weights, rows)
    if not arguments.no_bfloat16:
        steps["plain PyTorch, bfloat16"] = plain_pytorch(arguments, weights, rows, bfloat16=True)
        steps["SAELens, bfloat16"] = saelens(arguments, weights, rows, bfloat16=True)
        if kind == "relu":
            steps["dictionary_learning, bfloat16"] = dictionary_learning(weights, rows, bfloat16=True)
    if kind in ("topk", "batch-topk"):
        # Its activations as a sparse tensor, which it advises for small k in float32. Its TopK then cannot scale them by decoder
        # norms on a CPU; here the norms are 1.
        steps["SAELens, sparse"] = saelens(
            arguments, weights, rows, use_sparse_activations=True, rescale_acts_by_decoder_norm=False
        )
    return steps


def ours(arguments):
    """Tokens a second of whole steps, median of five, by `sae-trainer bench`."""
    flags = ["--batch", arguments.batch, "--threads", arguments.threads, "--repeats", 5, "--json"]
    if arguments.store:
        flags += ["--store", arguments.store, "--from", arguments.sae]
    else:
        flags += ["--width", arguments.width, "--features", arguments.features, "--l0", arguments.l0]
        flags += ["--activation", arguments.activation]
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


def approx_l0():
    """ReLU with the frequency penalty."""
    window = []

    def sparse(z):
        a = torch.relu(z)
        surrogate = a / (a + 0.2)
        window.append((a.detach() > 0).float().mean(0))
        s = torch.stack(window[-300:]).mean(0)
        frequency = surrogate.mean(0)
        frequency = frequency + (s - frequency).detach()
        penalty = L0_COEFFICIENT * surrogate.sum(1).mean()
        return a, penalty + 1e-6 * torch.relu(-5 - torch.log10(frequency + 1e-10)).sum()

    return sparse


def topk(k):
    def sparse(z):
        values, places = z.topk(k)
        return torch.zeros_like(z).scatter(-1, places, torch.relu(values)), 0

    return sparse


def batch_topk(k):
    def sparse(z):
        values, places = z.flatten().topk(k * len(z), sorted=False)
        return torch.zeros_like(z).flatten().scatter(0, places, torch.relu(values)).view_as(z), 0

    return sparse


def jump_relu(threshold, bandwidth):
    def sparse(z):
        of_type = threshold.to(z.dtype)
        l0 = Step.apply(z, of_type, bandwidth, False).float().sum(1).mean()
        return JumpReLU.apply(z, of_type, bandwidth, False), L0_COEFFICIENT * l0

    return sparse


def bandwidth_of(arguments, weights):
    return BANDWIDTH if arguments.store else 0.1 * weights["threshold"][0].item()


def plain_pytorch(arguments, weights, rows, bfloat16=False):
    """Our step as one writes it in PyTorch: the centered error, decoder rows of norm 1, and what the activation asks for."""
    w_enc, b_enc, w_dec, b_dec = parameters = [weights[name].clone().requires_grad_() for name in NAMES]
    if arguments.activation == "relu":
        sparse = approx_l0()
    elif arguments.activation == "topk":
        sparse = topk(arguments.k)
    elif arguments.activation == "batch-topk":
        sparse = batch_topk(arguments.k)
    else:
        parameters.append(weights["threshold"].clone().requires_grad_())
        sparse = jump_relu(parameters[-1], bandwidth_of(arguments, weights))
    optimizer = torch.optim.Adam(parameters, lr=4e-4)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            a, penalty = sparse(rows @ w_enc + b_enc)
            xhat = a @ w_dec + b_dec
        spread = (rows - rows.mean(0)).norm(dim=-1, keepdim=True)
        loss = ((xhat - rows) ** 2 / spread).mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            w_dec.grad -= (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec
            optimizer.step()
            w_dec.div_(w_dec.norm(dim=1, keepdim=True))

    return step


def saelens(arguments, weights, rows, bfloat16=False, **options):
    """SAELens' own trainer of the same kind, with its defaults; of ReLU its standard (L1) autoencoder."""
    width, features = weights["W_enc"].shape
    of_kind = {
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig, lambda: {"l1_coefficient": 1.0}),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig, lambda: {"k": arguments.k}),
        "batch-topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, lambda: {"k": arguments.k}),
        "jump-relu": (
            JumpReLUTrainingSAE,
            JumpReLUTrainingSAEConfig,
            lambda: {"l0_coefficient": L0_COEFFICIENT, "jumprelu_bandwidth": bandwidth_of(arguments, weights)},
        ),
    }
    sae_class, config, own = of_kind[arguments.activation]
    sae = sae_class(config(d_in=width, d_sae=features, dtype="float32", device="cpu", **own(), **options))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(weights[name])
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=1_000_000 * len(rows),
            train_batch_size_samples=len(rows),
            lr=4e-4,
            lr_end=4e-4,
            device="cpu",
            autocast=bfloat16,
        ),
        sae,
        iter(lambda: rows, None),
    )

    def step():
        trainer.step(rows)
        trainer.n_training_steps += 1

    return step


def dictionary_learning(weights, rows, bfloat16=False):
    """dictionary_learning's standard (L1) trainer, as it trains under autocast if `bfloat16`."""
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

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            trainer.update(next(numbers), rows)

    return step


if __name__ == "__main__":
    main()
