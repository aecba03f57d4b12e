"""See scripts/bench-methods."""

import argparse
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import typing
import xml.sax.saxutils

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release"


class Method(typing.NamedTuple):
    title: str
    flags: str
    varied: str
    values: tuple[str, ...]
    colour: str


# Meant for L0 from about 15 to 80 after 3,000 steps of 1,024 rows.
L0, L1, K = ("7e-5", "1.8e-4", "4.5e-4"), ("8e-5", "1.6e-4", "3.2e-4"), ("15", "35", "80")
L1_GHOST = "--loss l1 --revive ghost --pre-bias --b-dec-init geometric-median"
L1_MIN = "--loss l1 --min-sparsity-coefficient 1e-6"
L0_ALONE = "--loss approx-l0 --min-sparsity-coefficient 0"
# A narrow rectangle moves thresholds too slowly for a run of this length; this is Anthropic's, of January 2025. Adam divides the
# size of the pre-activation loss's gradient out, since a dead feature has no other.
JUMP = "--activation jump-relu --jump-to-input --bandwidth 2 --threshold-init 0.1 --pre-activation-coefficient 1e-6"
METHODS = {
    "approx-l0-min": Method("approx-l0 + min-sparsity", "--loss approx-l0", "--l0-coefficient", L0, "#0072b2"),
    "approx-l0": Method("approx-l0", L0_ALONE, "--l0-coefficient", L0, "#56b4e9"),
    "l1-ghost": Method("l1 + ghost gradients (reference)", L1_GHOST, "--l1-coefficient", L1, "#d55e00"),
    "l1-min": Method("l1 + min-sparsity", L1_MIN, "--l1-coefficient", L1, "#e69f00"),
    "tanh": Method("tanh + min-sparsity", "--loss tanh", "--tanh-coefficient", ("1e-4", "2.5e-4", "6e-4"), "#cc79a7"),
    "log": Method("log + min-sparsity", "--loss log", "--log-coefficient", ("4e-5", "9e-5", "2e-4"), "#882255"),
    "topk": Method("topk + aux-k", "--activation topk --aux-k half", "--k", K, "#009e73"),
    "batch-topk": Method("batch-topk + aux-k", "--activation batch-topk --aux-k half", "--k", K, "#117733"),
    "jump-relu": Method("jump-relu + pre-activation loss", JUMP, "--l0-coefficient", L0, "#000000"),
}

COLUMNS = {
    "L0": ("l0", 1, "{:.1f}"),
    "MSE centered, 10⁻³": ("mse_centered", 1e3, "{:.3f}"),
    "MSE uncentered, 10⁻³": ("mse_uncentered", 1e3, "{:.3f}"),
    "MSE sum": ("mse_sum", 1, "{:.1f}"),
    "explained variance": ("explained_variance", 1, "{:.4f}"),
    "dead": ("dead_features", 1, "{:.0f}"),
    "over 10 %": ("features_over_10_percent", 1, "{:.0f}"),
    "over 20 %": ("features_over_20_percent", 1, "{:.0f}"),
}

REFERENCE = "l1-ghost"
# At which L0 fronts are compared: as they lie between the points of most of them.
LEVELS = (20, 35, 60)
# Between these frequencies the slope of their distribution is taken: rows are too few below, and a feature cannot fire in more than all.
STRAIGHT = (-4.0, -1.0)

EVALUATED_ON = {
    "held-out-rows": "held-out rows",
    "training-rows": "rows that training saw too",
    "other-stores": "rows of other stores",
}


class Point(typing.NamedTuple):
    """The runs of one method at one coefficient or k, a summary for each seed."""

    method: Method
    value: str
    summaries: list[dict]

    def values(self, metric):
        return [math.nan if (value := of["evaluation"][metric]) is None else value for of in self.summaries]

    def mean(self, metric):
        return statistics.mean(self.values(metric))

    def slope(self):
        """Of the features' density by frequency, as a power law: least squares in logarithms."""
        slopes = []
        for summary in self.summaries:
            histogram = summary["evaluation"]["log10_frequency"]
            lowest, width = histogram["lowest"], histogram["bin_width"]
            bins = [(lowest + (at + 0.5) * width, count) for at, count in enumerate(histogram["counts"])]
            # A bin ten times as far to the right is ten times as wide.
            straight = [(at, math.log10(count) - at) for at, count in bins if STRAIGHT[0] < at < STRAIGHT[1] and count]
            if len(straight) > 2:
                slopes.append(statistics.linear_regression(*zip(*straight)).slope)
        return statistics.mean(slopes) if slopes else math.nan


def main():
    arguments = parse()
    if not arguments.report:
        store = arguments.store or dump(arguments)
        for seed in arguments.seeds:
            for name in arguments.only:
                sweep(arguments, store, name, seed)
    points = read(arguments)
    if not points:
        sys.exit(f"there is no finished sweep in {arguments.out}")
    (arguments.out / "methods.md").write_text(report(points))
    (arguments.out / "methods.svg").write_text(picture(points))
    print(report(points), end="")
    print(f"written to {arguments.out}/methods.md and methods.svg", file=sys.stderr)


def parse():
    parser = argparse.ArgumentParser(prog="scripts/bench-methods")
    parser.add_argument("--text", type=pathlib.Path, default=pathlib.Path("tests/data"))
    parser.add_argument("--rows", default="3M")
    parser.add_argument("--store", type=pathlib.Path, help="train on this store instead of dumping one")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/methods"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--eval-rows", default="1M", help="at most, of those that are held out")
    parser.add_argument("--seeds", default="0,1", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--threads", type=int, help="of a sweep [default: one per core]")
    parser.add_argument("--only", default=list(METHODS), type=lambda text: text.split(","), help="of " + ", ".join(METHODS))
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.only if name not in METHODS]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the methods are {', '.join(METHODS)}")
    return arguments


def dump(arguments):
    """The store of the rows, which is made or completed where it is not complete."""
    store = arguments.out / "store"
    model = ["--model", "models/smollm2-135m", "--layer", "1"]
    run("activation-dump", *model, "--dataset", arguments.text, "--tokens", arguments.rows, "--out", store)
    return store


def sweep(arguments, store, name, seed):
    """Trains a method's sweep with one seed, or what is left of it."""
    method, folder = METHODS[name], folder_of(arguments, name, seed)
    points = points_of(folder)
    done = [point for point in points if is_done(point, arguments.steps)]
    if points and len(done) == len(points):
        return print(f"{folder} is finished", file=sys.stderr)
    print(f"{folder}: {method.title}", file=sys.stderr)
    # A feature that is silent for a tenth of the run is dead, where that is fewer rows than the trainer's 1M: only the training
    # of ghost gradients and aux-k depends on it.
    dead_rows = min(1_000_000, arguments.steps * arguments.batch // 10)
    common = ["--store", store, "--expansion", 8, "--batch", arguments.batch, "--steps", arguments.steps, "--drop-bos"]
    common += ["--dead-rows", dead_rows, "--eval-rows", arguments.eval_rows, "--seed", seed]
    common += ["--checkpoint-every", 500]
    if arguments.threads is not None:
        common += ["--threads", arguments.threads]
    values = [method.varied, ",".join(method.values)]
    # Exit code 1: a point diverged, which the report leaves out.
    run("sae-trainer", "sweep", *common, *method.flags.split(), *values, "--out", folder, "--resume", accepted=(0, 1))
    if not all(is_done(point, arguments.steps) for point in points_of(folder)):
        sys.exit(f"the sweep in {folder} did not end")


def folder_of(arguments, name, seed):
    return arguments.out / f"{name}-seed-{seed}"


def points_of(folder):
    record = folder / "sweep.json"
    return json.loads(record.read_text())["points"] if record.exists() else []


def is_done(point, steps):
    summary = point.get("summary")
    return point["state"] == "diverged" or (summary is not None and summary["steps"] >= steps)


def run(program, *words, accepted=(0,)):
    # Ctrl-C reaches the program too, which saves what it has; subprocess would kill it at that.
    signal.signal(signal.SIGINT, lambda *_: None)
    code = subprocess.run([BIN / program, *map(str, words)], stdout=subprocess.DEVNULL).returncode
    if code not in accepted:
        sys.exit(code)


def read(arguments):
    """The points of the finished sweeps."""
    found = {}
    for name in arguments.only:
        for seed in arguments.seeds:
            for point in points_of(folder_of(arguments, name, seed)):
                if point.get("summary") is not None:
                    (value,) = point["varied"].values()
                    found.setdefault((name, value), []).append(point["summary"])
    # Methods in their own order, whatever order they were trained in.
    found = dict(sorted(found.items(), key=lambda item: list(METHODS).index(item[0][0])))
    return [Point(METHODS[name], value, summaries) for (name, value), summaries in found.items()]


def report(points):
    """A table of each method, in Markdown."""
    first = points[0].summaries[0]
    evaluation = first["evaluation"]
    seeds = max(len(point.summaries) for point in points)
    means = f"Means of {seeds} seeds, ± half of what the seeds differ by." if seeds > 1 else "One seed."
    lines = [
        f"d {first['width']}, F {first['features']:,}, {first['steps']:,} steps of {first['batch']:,} rows;"
        f" {evaluation['rows']:,} {EVALUATED_ON[evaluation['evaluated_on']]}. {means}",
        "",
        "| method | at | " + " | ".join(COLUMNS) + " | slope of the density |",
        "|---|---|" + "---|" * len(COLUMNS) + "---|",
    ]
    for point in points:
        cells = [cell(point.values(metric), factor, form) for metric, factor, form in COLUMNS.values()]
        cells.append(f"{point.slope():.2f}")
        lines.append(f"| {point.method.title} | {point.method.varied[2:]} {point.value} | {' | '.join(cells)} |")
    lines += ["", *fronts(points)]
    return "\n".join(lines) + "\n"


def fronts(points):
    """A table of the methods' errors at equal L0, beside that of the reference."""
    methods = list(dict.fromkeys(point.method for point in points))
    lines = [
        "Centered MSE, 10⁻³, at equal L0, interpolated between the means of a method's points (straight in logarithms), and how much that"
        " is more or less than the reference's; — where a front does not reach.",
        "",
        "| method | " + " | ".join(f"L0 {level}" for level in LEVELS) + " |",
        "|---|" + "---|" * len(LEVELS),
    ]
    reference = {level: error_at(points, METHODS[REFERENCE], level) for level in LEVELS}
    for method in methods:
        cells = []
        for level in LEVELS:
            error, against = error_at(points, method, level), reference[level]
            cell = "—" if error is None else f"{1e3 * error:.2f}"
            if None not in (error, against) and method is not METHODS[REFERENCE]:
                cell += f" ({100 * (error / against - 1):+.0f} %)"
            cells.append(cell)
        lines.append(f"| {method.title} | {' | '.join(cells)} |")
    return lines


def error_at(points, method, level):
    """The centered MSE of a method's front at an L0; None beyond its ends."""
    own = sorted((p.mean("l0"), p.mean("mse_centered")) for p in points if p.method is method)
    for (l0, error), (next_l0, next_error) in zip(own, own[1:]):
        if l0 <= level <= next_l0:
            share = math.log(level / l0) / math.log(next_l0 / l0)
            return error * (next_error / error) ** share
    return None


def cell(values, factor, form):
    mean, spread = statistics.mean(values), (max(values) - min(values)) / 2
    text = form.format(factor * mean)
    return text if len(values) == 1 else f"{text} ± {form.format(factor * spread)}"


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 560, 80, 290, 30, 60


def picture(points):
    """L0 against error as SVG: each method's means are joined, small dots are seeds. Both axes are logarithmic."""
    metrics = ("l0", "mse_centered")
    places = [[pair for pair in zip(*map(point.values, metrics)) if min(pair) > 0] for point in points]
    axes = [Axis([pair[at] for pairs in places for pair in pairs]) for at in (0, 1)]
    x = lambda value: LEFT + axes[0].share(value) * (WIDTH - LEFT - RIGHT)
    y = lambda value: HEIGHT - BOTTOM - axes[1].share(value) * (HEIGHT - TOP - BOTTOM)
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in axes[0].ticks():
        svg.append(f'<path d="M{x(tick):.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        svg.append(f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in axes[1].ticks():
        svg.append(f'<path d="M{LEFT} {y(tick):.1f}H{right}" stroke="#ddd"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    svg.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" stroke="#444" fill="none"/>')
    svg.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 18}" text-anchor="middle">L0</text>')
    svg.append(f'<text transform="translate(20 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">centered MSE</text>')
    for at, method in enumerate(dict.fromkeys(point.method for point in points)):
        own = [(point, pairs) for point, pairs in zip(points, places) if point.method is method and pairs]
        means = sorted(tuple(statistics.mean(values) for values in zip(*pairs)) for _, pairs in own)
        line = " ".join(f"{x(l0):.1f},{y(mse):.1f}" for l0, mse in means)
        svg.append(f'<g fill="{method.colour}" stroke="{method.colour}">')
        svg.append(f'<polyline points="{line}" fill="none" stroke-width="2"/>')
        svg += [f'<circle cx="{x(l0):.1f}" cy="{y(mse):.1f}" r="4.5" stroke="none"/>' for l0, mse in means]
        seeds = [pair for _, pairs in own for pair in pairs]
        svg += [f'<circle cx="{x(l0):.1f}" cy="{y(mse):.1f}" r="2" fill="white"/>' for l0, mse in seeds]
        height = TOP + 20 + 24 * at
        svg.append(f'<path d="M{right + 20} {height}h24" stroke-width="3"/></g>')
        svg.append(f'<text x="{right + 52}" y="{height + 4}">{xml.sax.saxutils.escape(method.title)}</text>')
    return "\n".join([*svg, "</svg>"]) + "\n"


class Axis:
    """A logarithmic axis with a margin around its values."""

    def __init__(self, values):
        margin = 0.05 * math.log(max(values) / min(values)) + 0.02
        self.least, self.most = math.log(min(values)) - margin, math.log(max(values)) + margin

    def share(self, value):
        return (math.log(value) - self.least) / (self.most - self.least)

    def ticks(self):
        """Round numbers, as many as are easily told apart."""
        decades = range(math.floor(self.least / math.log(10)), math.ceil(self.most / math.log(10)) + 1)
        for steps in ([1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], [1 + at / 10 for at in range(90)]):
            ticks = [float(f"{step:g}e{decade}") for decade in decades for step in steps]
            ticks = [tick for tick in ticks if self.least <= math.log(tick) <= self.most]
            if len(ticks) >= 4:
                break
        return ticks


if __name__ == "__main__":
    main()
