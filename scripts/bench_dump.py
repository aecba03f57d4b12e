"""The measuring part of scripts/bench-dump, which see."""

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings

import datasets
import numpy
import onnxruntime
import torch
import transformers
import zarr
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
from safetensors.torch import save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights, convert_llama_weights

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAMS = pathlib.Path(os.environ.get("TARGET_DIR", ROOT / "target/release"))
LAYER = 1
HOOK = f"blocks.{LAYER}.hook_resid_pre"
LENGTH = 128
OURS, BARE = "activation-dump: text to store", "its model alone"
BFLOAT16 = "transformers in bfloat16"
# What the first one must be, in times the speed of the other. The peers' rows are float32's; bfloat16's are 1000 times as far
# from float64's as ours.
TARGETS = {BARE: 0.95, "transformers": 2.5, BFLOAT16: 1.0, "TransformerLens": 3.0, "SAELens' runner, to disk": 3.0}


def dump(folder, out, arguments):
    """Runs the program; returns its own account of it."""
    shutil.rmtree(out, ignore_errors=True)
    command = [PROGRAMS / "activation-dump", "--model", folder, "--dataset", ROOT / "tests/data", "--layer", LAYER,
               "--context", LENGTH, "--tokens", arguments.tokens, "--threads", arguments.threads, "--device", "cpu",
               "--center", "off", "--out", out, "--json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def bare_model(folder, ids, work, arguments):
    file = work / "ids.safetensors"
    save_file({"ids": ids}, file)
    command = [PROGRAMS / "examples/prefix_speed", folder, HOOK, str(arguments.threads), file]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def run(_):
        process.stdin.write(f"0 {LENGTH}\n")  # as many as activation-dump takes
        process.stdin.flush()
        return float(process.stdout.readline())

    return run


def python_onnxruntime(folder, work, arguments):
    graph = work / "prefix.onnx"
    subprocess.run([PROGRAMS / "examples/prefix_graph", folder, HOOK, graph], check=True, stdout=subprocess.DEVNULL)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(graph.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"ids": ids.numpy()})[0], 8


def transformers_cut(folder, arguments, dtype=torch.float32):
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype)
    if hasattr(model, "h"):
        model.h, model.ln_f = model.h[:LAYER], torch.nn.Identity()
    else:
        model.layers, model.norm = model.layers[:LAYER], torch.nn.Identity()
    return lambda ids: model(ids, use_cache=False).last_hidden_state, arguments.batch


def hooked_transformer(folder):
    """The checkpoint in TransformerLens, without its processing, as SAELens loads it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    if config.model_type == "gpt2":
        kind = dict(
            d_mlp=4 * config.n_embd, d_head=config.n_embd // config.n_head, eps=config.layer_norm_epsilon,
            act_fn=config.activation_function, normalization_type="LN",
        )
    else:
        head = config.hidden_size // config.num_attention_heads
        kind = dict(
            d_mlp=config.intermediate_size, d_head=head, eps=config.rms_norm_eps, act_fn=config.hidden_act,
            normalization_type="RMS", final_rms=True, gated_mlp=True, n_key_value_heads=config.num_key_value_heads,
            positional_embedding_type="rotary", rotary_adjacent_pairs=False, rotary_dim=head,
            rotary_base=int(config.rope_parameters["rope_theta"]),
        )
    hooked = HookedTransformerConfig(
        d_model=config.hidden_size, n_heads=config.num_attention_heads, n_layers=config.num_hidden_layers,
        n_ctx=config.max_position_embeddings, d_vocab=config.vocab_size, default_prepend_bos=False,
        device="cpu", **kind,
    )
    convert = convert_gpt2_weights if config.model_type == "gpt2" else convert_llama_weights
    hooked_model = HookedTransformer(hooked)
    hooked_model.load_state_dict(convert(model, hooked), strict=False)
    return hooked_model.eval()


def transformer_lens_cache(model, arguments):
    """The call in the post author's data generation: it also computes the block behind the hook."""

    def run(ids):
        return model.run_with_cache(ids, names_filter=HOOK, stop_at_layer=LAYER + 1)[1][HOOK]

    return run, arguments.batch


def sae_lens_runner(model, ids, out, arguments):
    """SAELens' cached activations, from ready-made contexts: it does not tokenize."""
    dataset = datasets.Dataset.from_dict({"tokens": ids.tolist()})
    cache_activations_runner.load_model = lambda **_: model

    def run(_):
        shutil.rmtree(out, ignore_errors=True)
        width = model.cfg.d_model
        config = CacheActivationsRunnerConfig(
            dataset_path="contexts", model_name="local", model_batch_size=arguments.batch, hook_name=HOOK, d_in=width,
            training_tokens=ids.numel(), context_size=LENGTH, new_cached_activations_path=str(out), device="cpu",
            buffer_size_gb=min(2.0, ids.numel() * width * 4 / 1e9), prepend_bos=False, streaming=False,
        )
        with contextlib.redirect_stderr(io.StringIO()):
            runner = CacheActivationsRunner(config, override_dataset=dataset)
            start = time.perf_counter()
            rows = len(runner.run()) * LENGTH
        seconds = time.perf_counter() - start
        assert rows == ids.numel(), rows
        return seconds

    return run


def timed(run, batch):
    def seconds(ids):
        start = time.perf_counter()
        with torch.inference_mode():
            for part in ids.split(batch):
                run(part)
        return time.perf_counter() - start

    return seconds


def check_that_all_compute_the_same(rows, peers, ids):
    """`rows` are the store's; it holds float16."""
    for name, (run, _) in peers.items():
        with torch.inference_mode():
            found = torch.as_tensor(run(ids[:2])).reshape(-1, rows.shape[-1])
        error = ((found - rows).norm() / rows.norm()).item()
        assert error < (2e-2 if name == BFLOAT16 else 1e-3), f"{name} computes something else: {error:.1e}"


def rows_of_contexts(store, count):
    """The store's rows of its first contexts, in their order."""
    origin = store["origin"][:]
    places = numpy.empty(len(origin), dtype=numpy.int64)
    places[origin] = numpy.arange(len(origin))
    rows = store["activations"].oindex[places[: count * LENGTH], :]
    return torch.from_numpy(rows.astype(numpy.float32))


def measure(name, folder, work, arguments):
    out = work / "store"
    first = dump(folder, out, arguments)
    store = zarr.open(str(out), mode="r")
    ids = torch.from_numpy(store["tokens"][:].astype(numpy.int64))
    tokens = ids.numel()
    hooked = hooked_transformer(folder)
    peers = {
        "onnxruntime (Python), our graph": python_onnxruntime(folder, work, arguments),
        "transformers": transformers_cut(folder, arguments),
        BFLOAT16: transformers_cut(folder, arguments, torch.bfloat16),
        "TransformerLens": transformer_lens_cache(hooked, arguments),
    }
    check_that_all_compute_the_same(rows_of_contexts(store, 2), peers, ids)
    runs = {
        OURS: lambda _: dump(folder, out, arguments)["seconds"],
        BARE: bare_model(folder, ids, work, arguments),
        **{peer: timed(*parts) for peer, parts in peers.items()},
        "SAELens' runner, to disk": sae_lens_runner(hooked, ids, work / "cache", arguments),
    }
    print(f"\n{name} to {HOOK}: {tokens:,} tokens ({first['text']['documents']:,} documents of tests/data), "
          f"{arguments.threads} threads, contexts of {LENGTH} tokens; batches of 8 contexts through Python's ONNX Runtime, of "
          f"{arguments.batch} elsewhere", flush=True)
    turns = {peer: [] for peer in runs}
    for round in range(arguments.rounds):
        start = round % len(runs)
        for peer in [*runs][start:] + [*runs][:start]:
            time.sleep(0.1)  # lets the last one's threads stop spinning
            turns[peer].append(tokens / runs[peer](ids))
    ours = statistics.median(turns[OURS])
    print(f"\n{'tokens/s, median of ' + str(arguments.rounds):<34}{'':>10}{'ours is':>10}{'target':>8}")
    for peer, speeds in turns.items():
        ratio = ours / statistics.median(speeds)
        target = f"{TARGETS[peer]:.1f}x" if peer in TARGETS else ""
        print(f"{peer:<34}{statistics.median(speeds):>10,.0f}{ratio:>9.2f}x{target:>8}")
    print("\nevery turn, tokens/s")
    for peer, speeds in turns.items():
        print(f"{peer:<34}" + " ".join(f"{speed:>8,.0f}" for speed in speeds), flush=True)


def random_gpt2(folder):
    """GPT-2-small's shapes; SmolLM2's tokenizer, whose ids fit, makes the contexts."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(bos_token_id=1, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    shutil.copy(ROOT / "models/smollm2-135m/tokenizer.json", folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="batch size, in contexts, of torch's models")
    parser.add_argument("--model", choices=["gpt2", "smollm2"], action="append")
    arguments = parser.parse_args()
    step = arguments.batch * LENGTH  # SAELens' runner drops what does not fill a batch
    arguments.tokens = max(step, arguments.tokens // step * step)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # the peers', about their own and each other's interfaces
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    load = os.getloadavg()[0]
    peers = ["torch", "transformers", "transformer-lens", "sae-lens", "onnxruntime"]
    versions = ", ".join(f"{peer} {importlib.metadata.version(peer)}" for peer in peers)
    print(f"{os.cpu_count()} cores, load before the run {load:.1f}; {versions}")
    with tempfile.TemporaryDirectory() as temporary:
        for model in arguments.model or ["gpt2", "smollm2"]:
            work = pathlib.Path(temporary) / model
            work.mkdir()
            if model == "gpt2":
                random_gpt2(work / "model")
                measure("GPT-2-small's shapes", work / "model", work, arguments)
            else:
                measure("SmolLM2-135M", ROOT / "models/smollm2-135m", work, arguments)


if __name__ == "__main__":
    main()
