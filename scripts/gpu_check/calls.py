"""The calls and their parts, as data: what runs, in which order, for how long at most. docs/benchmarks/cuda.md says what each
part answers; change both together."""

import dataclasses
import pathlib
import sys

from .runner import Part

SCRIPTS = pathlib.Path(__file__).resolve().parent
# For parts that check: a kernel that waits for too long ends with an error that says for what, instead of waiting for ever.
BOUNDED = {"SAE_TRAINER_CUDA_BOUNDED_WAITS": "1"}
SCREEN = "SAE_TRAINER_CUDA_SCREEN"


@dataclasses.dataclass(frozen=True)
class Sizes:
    # Bytes of a copy, and the side of a product's matrices.
    copy: int
    product: int
    # B,d,F: of screens that are checked; of a step; of a step under a profiler or sanitizer.
    screens: tuple
    step: str
    tiny_screens: tuple
    correctness: str
    steps: int
    dense_steps: int
    # L0 of the crossover's batches, each with so many timed steps.
    densities: tuple
    crossover_steps: int
    # Contexts of 128 rows in the planted store, and steps trained on it.
    contexts: int
    trained: int
    curves: int
    # Which of the kernels' own tests run: all, or those with this in their names.
    tests: tuple
    peers: tuple
    stage_one: tuple
    # Limits are those of a GPU, times this.
    patience: float = 1.0


FULL = Sizes(
    copy=2 << 30, product=8192,
    screens=("1,1,1", "133,70,130", "31,200,257", "700,768,1000", "4096,768,24576"), step="4096,768,24576",
    tiny_screens=("133,70,130", "300,140,257"), correctness="all", steps=200, dense_steps=40,
    densities=("20", "40", "80", "160", "320", "640", "1280"), crossover_steps=15,
    contexts=3072, trained=1500, curves=2000, tests=(), peers=(), stage_one=())
# What an emulated GPU does in seconds.
SMALL = Sizes(
    copy=1 << 20, product=64, screens=("1,1,1", "133,70,130"), step="32,64,512", tiny_screens=("33,70,130",),
    correctness="tiny", steps=3, dense_steps=2, densities=("5", "100"), crossover_steps=2, contexts=16, trained=12, curves=20,
    tests=("every_half_precision_number",),
    peers=("--rows", "32", "--width", "16", "--features", "64", "--runs", "1", "--device", "auto"),
    stage_one=("--tiny", "--device", "auto"), patience=8.0)


@dataclasses.dataclass
class Call:
    # Seconds, of all parts together.
    budget: float
    parts: list


def adapted(results):
    """The best screen that no check has found wrong, for the parts after it."""
    if not results.went_wrong("screens-wgmma"):
        return {}
    return {SCREEN: "plain" if results.went_wrong("screens-mma") else "mma"}


def usable(kernel):
    """Why the screen by this kernel is of no use on this machine, if it is not, given the results so far."""

    def reason(results):
        capability = results.figure("device").get("capability", "9.0")
        if kernel == "wgmma" and capability != "9.0":
            return f"compute capability {capability} has no wgmma"
        return f"screens-{kernel} went wrong" if results.went_wrong(f"screens-{kernel}") else None

    return reason


def ceilings(programs, sizes):
    return Part("ceilings", [programs.gpu_check, "ceilings", str(sizes.copy), str(sizes.product)], 40)


def kernel_tests(name, test, sizes, limit):
    """The kernels' own tests, every launch on the GPU. One of them is about the emulation's address sanitizer."""
    command = [test, "--test-threads", "4", "--skip", "outside_of_its_buffers", *sizes.tests] if test else left_out(name)
    return Part(name, command, limit, checks=True, environment={"KERNEL_TESTS_ON_A_GPU": "1", **BOUNDED})


def left_out(what):
    return ["sh", "-c", f"echo 'there is no {what} here'; exit 77"]


def python(script, *arguments):
    return [sys.executable, SCRIPTS / script, *map(str, arguments)]


def call_a(programs, sizes):
    check = programs.gpu_check

    def screens(kernel):
        return Part(f"screens-{kernel}", [check, "screens", *sizes.screens], 25, checks=True,
                    environment={SCREEN: kernel, **BOUNDED}, needs=usable(kernel))

    def correctness(precision, kernel):
        return Part(f"correctness-{precision}-{kernel}", [check, "correctness", precision, sizes.correctness], 25, checks=True,
                    environment={SCREEN: kernel, **BOUNDED}, needs=usable(kernel))

    def timed(kernel):
        return Part(f"time-{kernel}", [check, "time-screen", sizes.step], 15, environment={SCREEN: kernel}, needs=usable(kernel))

    return Call(230, [
        Part("machine", ["nvidia-smi"], 10, counts=False),
        ceilings(programs, sizes),
        screens("mma"),
        screens("wgmma"),
        Part("sparse-exact", [check, "bench", "sparse", "exact", sizes.step, str(sizes.steps)], 30),
        Part("ncu", python("ncu.py", check, "profile", sizes.step), 45, counts=False),
        timed("mma"),
        timed("wgmma"),
        correctness("exact", "wgmma"),
        correctness("fp32", "plain"),
        correctness("bf16", "wgmma"),
        correctness("exact", "mma"),
        correctness("bf16", "mma"),
        kernel_tests("cuda_kernels", programs.cuda_kernels, sizes, 45),
    ])


def call_b(programs, sizes):
    check = programs.gpu_check

    def bench(path, precision, steps, limit=25):
        return Part(f"{path}-{precision}", [check, "bench", path, precision, sizes.step, str(steps)], limit)

    def crossover(precision):
        command = [check, "crossover", precision, sizes.step, str(sizes.crossover_steps), *sizes.densities]
        return Part(f"crossover-{precision}", command, 40)

    return Call(235, [
        ceilings(programs, sizes),
        kernel_tests("cuda_step", programs.cuda_step, sizes, 45),
        bench("dense", "exact", sizes.dense_steps),
        bench("dense", "bf16", sizes.dense_steps),
        bench("sparse", "bf16", sizes.steps),
        planted(programs, sizes),
        Part("train-from-store", trained_from_store(programs, sizes), 30),
        Part("peers", python("peers.py", *sizes.peers), 50, counts=False),
        Part("stage-one", python("stage_one.py", programs.dump, programs.onnxruntime or "none", *sizes.stage_one), 60,
             checks=True),
        crossover("exact"),
        crossover("bf16"),
        Part("memcheck", python("sanitize.py", "memcheck", check, "screens", *sizes.tiny_screens), 40, checks=True,
             environment=BOUNDED),
        Part("peers-compiled", python("peers.py", "--compiled", *sizes.peers), 60, counts=False),
    ])


def planted(programs, sizes):
    width_features = sizes.step.split(",", 1)[1]
    return Part("planted", in_scratch(f"{programs.gpu_check} planted $SCRATCH/planted {sizes.contexts} {width_features}"), 30)


def trained_from_store(programs, sizes):
    return python("training.py", programs.trainer, sizes.step.split(",")[0], sizes.trained)


def in_scratch(line):
    return ["sh", "-c", f"exec {line}"]


def call_rest(programs, sizes):
    check, steps = programs.gpu_check, sizes.trained
    store = f"--store $SCRATCH/planted/acts --init-from $SCRATCH/planted/sae --batch {sizes.step.split(',')[0]}"
    store += f" --steps {steps} --lr 1e-4 --eval-rows 65536 --device cuda"
    return Call(300, [
        ceilings(programs, sizes),
        Part("curves", [check, "curves", str(sizes.curves)], 60, checks=True),
        planted(programs, sizes),
        Part("run", in_scratch(f"{programs.trainer} {store} --out $SCRATCH/run"), 40),
        # A point of a sweep is the run alone, bit for bit: its engine shares the device and the batches with another.
        Part("sweep", in_scratch(f"{programs.trainer} sweep {store} --l0-coefficient 7e-5,1.4e-4 --out $SCRATCH/sweep"), 40),
        Part("sweep-is-the-run", in_scratch("cmp $SCRATCH/run/sae/sae_weights.safetensors "
                                            "$SCRATCH/sweep/l0-coefficient-7e-5/sae/sae_weights.safetensors"), 5, checks=True),
        Part("racecheck", python("sanitize.py", "racecheck", check, "screens", *sizes.tiny_screens), 60, checks=True,
             environment=BOUNDED),
        Part("memcheck-steps", python("sanitize.py", "memcheck", check, "correctness", "exact", "small"), 90, checks=True,
             environment=BOUNDED),
    ])


CALLS = {"a": call_a, "b": call_b, "rest": call_rest}
