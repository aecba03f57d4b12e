"""The measuring part of scripts/bench-store, which see."""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ["RAYON_NUM_THREADS"] = "1"  # of rows that are indexed; batches have a number of their own

import activation_store
import activation_store.torch
import datasets
import numpy
import torch
import zarr
from numcodecs import Shuffle, Zstd

warnings.filterwarnings("ignore", message="Numcodecs codecs")

ROOT = pathlib.Path(__file__).resolve().parents[1]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
SPEED = TARGET / "release/examples/store_speed"
ROWS = 64 * 1024  # of the peers' measurements
LENGTH = 128  # a context of the Arrow cache


def ours(*arguments):
    command = [SPEED, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def per_core(amount, work):
    """GB of raw rows a second of processor time, all threads counted."""
    start = time.process_time()
    work()
    return amount / 1e9 / (time.process_time() - start)


def zarr_python(rows, folder):
    """The store's own codecs, written and read by zarr-python: in order, and not mixed."""
    codecs = [
        {"name": "numcodecs.shuffle", "configuration": {"elementsize": rows.itemsize}},
        {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
        {"name": "crc32c"},
    ]
    chunk = 2048 if rows.itemsize == 2 else 1024

    def write():
        array = zarr.create_array(
            folder, shape=rows.shape, dtype=rows.dtype, chunks=(chunk, rows.shape[1]), shards=(16 * chunk, rows.shape[1]),
            compressors=codecs, overwrite=True,
        )
        array[:] = rows

    def read():
        array = zarr.open_array(folder, mode="r")
        for first in range(0, len(rows), 16 * chunk):
            assert array[first : first + 16 * chunk].shape[1] == rows.shape[1]

    written = per_core(rows.nbytes, write)
    size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return rows.nbytes / size, written, per_core(rows.nbytes, read)


def arrow_cache(rows, folder):
    """What SAELens' CacheActivationsRunner writes and its ActivationsStore reads, without its mixing buffer."""
    width = rows.shape[1]
    kind = str(rows.dtype)
    features = datasets.Features(
        {
            "hook": datasets.Array2D((LENGTH, width), kind),
            "token_ids": datasets.Sequence(datasets.Value("int32"), length=LENGTH),
        }
    )
    contexts = rows.reshape(-1, LENGTH, width)
    tokens = numpy.zeros((len(contexts), LENGTH), "int32")

    def write():
        dataset = datasets.Dataset.from_dict({"hook": contexts, "token_ids": tokens}, features=features)
        dataset.save_to_disk(folder)

    def read():
        dataset = datasets.load_from_disk(folder).with_format("torch", dtype=getattr(torch, kind))
        for first in range(0, len(dataset), 32):
            assert dataset[first : first + 32]["hook"].shape[-1] == width

    written = per_core(rows.nbytes, write)
    size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return rows.nbytes / size, written, per_core(rows.nbytes, read)


def python_batches(path, gigabytes):
    """GB/s of raw rows in float32 batches of the Python module with one decoding thread: a core, and by the clock. Rust's
    reader is measured on as many batches after as many to warm up (store_speed.rs)."""
    store = activation_store.Store(path)
    batches = iter(activation_store.torch.Batches(store, held_out=0, threads=1))
    raw = 4096 * store.width * store.dtype.itemsize
    for _ in range(min(len(store) // 4096, 200)):
        next(batches)
    count = int(gigabytes * 1e9) // raw
    start, clock = time.process_time(), time.perf_counter()
    for _ in range(count):
        next(batches)
    amount = count * raw / 1e9
    return amount / (time.process_time() - start), amount / (time.perf_counter() - clock)


def in_python(path, rounds):
    """The store itself, read from Python: shuffled batches, rows in order, and rows from everywhere."""
    store = activation_store.Store(path)
    array = zarr.open_group(path, mode="r")["activations"]
    random = numpy.random.default_rng(0)
    piece, few = 16384, 256
    raw = store.width * store.dtype.itemsize
    rows = min(len(store), ROWS)
    found = {}

    def note(name, core, clock=None):
        found.setdefault(name, []).append((core, clock))

    for _ in range(rounds):
        rust = ours("read", path, 2, 1)
        note("shuffled batches, Rust", rust["core"], rust["wall"])
        note("shuffled batches, activation_store.torch", *python_batches(path, 2))
        for name, source in (("activation_store", store), ("zarr-python", array)):
            in_order = [slice(first, first + piece) for first in range(0, rows, piece)]
            note(f"rows in order, {name}", per_core(rows * raw, lambda: [source[part] for part in in_order]))
            some = numpy.sort(random.integers(0, len(store), few))
            note(f"{few} rows from everywhere, {name}", per_core(few * raw, lambda: source[some] if source is store else source.oindex[some]))
    print(f"\nin Python, this store of {store.dtype}, one decoding thread; GB of raw rows a second; medians of {rounds} turns")
    print(f"{'':44} {'a core':>8} {'by clock':>9}")
    for name, values in found.items():
        core, clock = (None if column[0] is None else statistics.median(column) for column in zip(*values))
        by_clock = "" if clock is None else f"{clock:9.4f}"
        print(f"{name:44} {core:8.4f} {by_clock}".rstrip())


def without_planes(rows):
    """zstd alone and after the byte shuffle, on chunks of 2048 rows: ratio and GB/s each way."""
    chunks = [rows[first : first + 2048].tobytes() for first in range(0, 32 * 2048, 2048)]
    total = sum(map(len, chunks))
    print("\nbyte shuffle, float16, chunks of 2048 rows, zstd 1 (numcodecs, not our code)")
    for name, filters in (("off", []), ("on", [Shuffle(2)])):
        packed = []

        def pack():
            for chunk in chunks:
                for step in filters:
                    chunk = step.encode(chunk)
                packed.append(Zstd(1).encode(chunk))

        def unpack():
            for chunk in packed:
                chunk = Zstd(1).decode(chunk)
                for step in filters:
                    chunk = step.decode(chunk)

        write = per_core(total, pack)
        read = statistics.median(per_core(5 * total, lambda: [unpack() for _ in range(5)]) for _ in range(3))
        print(f"  {name:4} {total / sum(map(len, packed)):6.3f}x   write {write:5.2f}   read {read:5.2f} GB/s a core")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison with other tools")
    parser.add_argument("--layout-rounds", type=int, default=3, help="rounds of the table of layouts")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    print(datetime.date.today(), "scripts/bench-store", *sys.argv[1:])
    wide = zarr.open_group(options.store, mode="r")["activations"][:ROWS]
    if wide.dtype != "float32":
        parser.error("the store must be one of float32 rows (activation-dump --dtype f32)")
    half = wide.astype("float16")
    print(f"{half.shape[1]} numbers a row; GB of raw rows a second of processor time; medians of {options.rounds} turns")
    raw = {"float16": half, "float32": wide}
    chunk_rows = {"float16": 2048, "float32": 1024}

    found = {}

    def note(name, *values):
        found.setdefault(name, []).append(values)

    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.rounds):
            note(("any", "memcpy"), 1, *[ours("memcpy", options.store)["core"]] * 2)
            for kind, rows in raw.items():
                bits = 10 if kind == "float16" else 23
                result = ours("layout", options.store, scratch, kind, bits, chunk_rows[kind], 1)
                for element, read in result["read"].items():
                    note((kind, f"this store, {element} batches"), result["ratio"], result["write"]["core"], read["core"])
                for name, peer in (("zarr-python", zarr_python), ("SAELens' Arrow cache", arrow_cache)):
                    folder = pathlib.Path(scratch) / "peer"
                    note((kind, name), *peer(rows, str(folder)))
                    shutil.rmtree(folder)
        print(f"\n{'rows':8} {'':30} {'smaller':>8} {'write':>6} {'read':>6}")
        for (kind, name), values in sorted(found.items()):
            ratio, write, read = (statistics.median(column) for column in zip(*values))
            print(f"{kind:8} {name:30} {ratio:7.3f}x {write:6.2f} {read:6.2f}")

        print(f"\nlayouts, {options.layout_rounds} turns")
        print(f"{'rows':12} {'bits':>4} {'chunk':>6} {'zstd':>5} {'smaller':>8} {'write':>6} {'read':>6}")
        layouts = [
            ("float16", 10, 2048, 1), ("float16", 10, 512, 1), ("float16", 10, 1024, 1), ("float16", 10, 4096, 1),
            ("float16", 10, 2048, -5), ("float16", 10, 2048, 3), ("float16", 10, 2048, 6),
            ("float16", 7, 2048, 1), ("float16", 5, 2048, 1), ("float16", 4, 2048, 1), ("float32", 23, 1024, 1),
        ]
        table = {}
        for _ in range(options.layout_rounds):
            for layout in layouts:
                result = ours("layout", options.store, scratch, *layout)
                table.setdefault(layout, []).append(
                    (result["ratio"], result["write"]["core"], result["read"]["float32"]["core"])
                )
        for (kind, bits, chunk, level), values in table.items():
            ratio, write, read = (statistics.median(column) for column in zip(*values))
            print(f"{kind:12} {bits:4} {chunk:6} {level:5} {ratio:7.3f}x {write:6.2f} {read:6.2f}")
    without_planes(half)
    in_python(options.store, options.rounds)

    print("\nmixing: pairs of rows of one context in a batch of 4096, against a uniform permutation")
    print("the store's contexts, and 44 times as many (20 GB); default window and K, then others")
    for times, window, k in ((1, 0, 0), (44, 0, 0), (44, 0, 16), (44, 400_000, 64)):
        result = ours("mixing", options.store, times, window, k)
        print(
            f"  {result['rows']:>9} rows, {result['windows']:>3} windows of {result['window_rows']:>8}, K {result['k']:>4}:"
            f" {result['pairs_against_uniform']:.2f}"
        )


main()
