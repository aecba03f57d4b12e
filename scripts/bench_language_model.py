"""The measuring part of scripts/bench-language-model, which see."""

import argparse
import logging
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy
import onnxruntime
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = pathlib.Path(os.environ.get("TARGET_DIR", ROOT / "target/release")) / "examples"
HOOK = "blocks.1.hook_resid_pre"
LENGTH = 128
BATCHES = [1, 2, 4, 8, 16, 32]


def ours(folder, threads):
    command = [EXAMPLES / "prefix_speed", folder, HOOK, str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def run(ids):
        process.stdin.write(f"{ids.shape[0]} {ids.shape[1]}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return run


def python_onnxruntime(folder, threads):
    with tempfile.TemporaryDirectory() as temporary:
        graph = pathlib.Path(temporary) / "prefix.onnx"
        subprocess.run([EXAMPLES / "prefix_graph", folder, HOOK, graph], check=True, stdout=subprocess.DEVNULL)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        session = onnxruntime.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
    return timed(lambda ids: session.run(None, {"ids": ids}))


def transformers_cut(folder, threads):
    torch.set_num_threads(threads)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    if hasattr(model, "h"):
        model.h, model.ln_f = model.h[:1], torch.nn.Identity()
    else:
        model.layers, model.norm = model.layers[:1], torch.nn.Identity()

    def run(ids):
        with torch.inference_mode():
            model(torch.from_numpy(ids), use_cache=False)

    return timed(run)


def timed(run):
    def seconds(ids):
        start = time.perf_counter()
        run(ids)
        return time.perf_counter() - start

    return seconds


def measure(name, folder, vocabulary, threads, rounds):
    peers = {
        "this crate": ours(folder, threads),
        "onnxruntime (Python)": python_onnxruntime(folder, threads),
        "transformers": transformers_cut(folder, threads),
    }
    print(f"\n{name} to {HOOK}, {threads} threads, tokens/s (median of {rounds})")
    print(f"{'contexts':>8} " + " ".join(f"{peer:>22}" for peer in peers))
    for contexts in BATCHES:
        ids = (numpy.arange(contexts * LENGTH) * 7919 % vocabulary).reshape(contexts, LENGTH)
        times = {peer: [] for peer in peers}
        for round in range(rounds + 2):  # the first two warm up
            first = round % len(peers)
            for peer in [*peers][first:] + [*peers][:first]:
                time.sleep(0.05)  # lets the last one's threads stop spinning
                times[peer].append(peers[peer](ids))
        speeds = [contexts * LENGTH / statistics.median(times[peer][2:]) for peer in peers]
        print(f"{contexts:>8} " + " ".join(f"{speed:>22,.0f}" for speed in speeds), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load before the run {load:.1f}; torch {torch.__version__}, "
          f"transformers {transformers.__version__}, onnxruntime {onnxruntime.__version__}")
    measure("SmolLM2-135M", ROOT / "models/smollm2-135m", 49152, arguments.threads, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        transformers.GPT2Model(transformers.GPT2Config()).save_pretrained(folder)
        measure("GPT-2-small's shapes", folder, 50257, arguments.threads, arguments.rounds)


if __name__ == "__main__":
    main()
