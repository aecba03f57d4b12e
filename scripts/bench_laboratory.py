"""The measuring part of scripts/bench-laboratory, which see."""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy
import sae_bench.evals.core.main as sae_bench
import sae_lens.evals
import torch
import zarr
from sae_lens import SAE, HookedSAETransformer
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

# Last, so that of what both have the environment's is taken.
sys.path.append(os.environ["SAE_DASHBOARD"])
from sae_dashboard.components_config import (  # noqa: E402
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.layout import SaeVisLayoutConfig  # noqa: E402
from sae_dashboard.sae_vis_data import SaeVisConfig  # noqa: E402
from sae_dashboard.sae_vis_runner import SaeVisRunner  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
MODEL = ROOT / "models/smollm2-135m"
# What SAEDashboard's runner for Neuronpedia does at a time by default.
FEATURES, PROMPTS = 128, 32
CONTEXT = 128


def hooked_smollm2():
    """SmolLM2 as TransformerLens runs it, whose list of models it is not on."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    its = model.config
    config = HookedTransformerConfig(
        n_layers=its.num_hidden_layers, d_model=its.hidden_size, n_ctx=2048, d_head=its.head_dim, n_heads=its.num_attention_heads,
        n_key_value_heads=its.num_key_value_heads, d_mlp=its.intermediate_size, d_vocab=its.vocab_size, act_fn="silu", gated_mlp=True,
        normalization_type="RMS", final_rms=True, eps=its.rms_norm_eps, positional_embedding_type="rotary", rotary_dim=its.head_dim,
        rotary_base=int(its.rope_parameters["rope_theta"]), rotary_adjacent_pairs=False, default_prepend_bos=False,
        original_architecture="LlamaForCausalLM", dtype=torch.float32, device="cpu", model_name="smollm2-135m",
    )  # fmt: skip
    hooked = HookedSAETransformer(config, tokenizer=AutoTokenizer.from_pretrained(MODEL))
    hooked.load_state_dict(convert_llama_weights(model, config), strict=False)
    with torch.no_grad():
        ids = torch.arange(1000, 1032)[None]
        assert torch.allclose(hooked(ids), model(ids).logits, atol=1e-3), "the model is another one in TransformerLens"
    return hooked


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def program(name, *arguments):
    subprocess.run([BIN / name, *map(str, arguments)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def dashboard(sae, model, tokens, features, folder):
    """SAEDashboard's pages of the first `features` features as data, as its runner for Neuronpedia makes them: its layout, its sizes,
    the model's activations kept on disk from the first FEATURES on."""
    columns = Column(
        SequencesConfig(stack_mode="stack-all", buffer=None, compute_buffer=True, n_quantiles=5, top_acts_group_size=20, quantile_group_size=5),
        ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3),
    )  # fmt: skip
    for start in range(0, features, FEATURES):
        config = SaeVisConfig(
            hook_point=sae.cfg.metadata.hook_name, features=list(range(start, start + FEATURES)), minibatch_size_features=FEATURES,
            minibatch_size_tokens=PROMPTS, quantile_feature_batch_size=64, feature_centric_layout=SaeVisLayoutConfig(columns=[columns]),
            cache_dir=folder / "cache", ignore_tokens={model.tokenizer.bos_token_id},
        )  # fmt: skip
        SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)


def dump(options, contexts, store):
    """Token ids [contexts, CONTEXT] of a new store, and the seconds that it took."""
    took = seconds(
        lambda: program("activation-dump", "--model", MODEL, "--layer", 1, "--dataset", options.text, "--tokens", contexts * CONTEXT,
                        "--context", CONTEXT, "--out", store)
    )  # fmt: skip
    return torch.from_numpy(numpy.asarray(zarr.open(store, mode="r")["tokens"][:]).astype(numpy.int64)), took


class Contexts:
    """What the evaluations ask of an ActivationsStore: contexts, from the first on again after a reset."""

    store_batch_size_prompts = PROMPTS

    def __init__(self, tokens):
        self.tokens, self.at, self.context_size = tokens, 0, tokens.shape[1]

    def get_batch_tokens(self, count):
        self.at += count
        return self.tokens[self.at - count : self.at]

    def reset_input_dataset(self):
        self.at = 0


def describe_features(options, model, sae, tokens, store):
    """Seconds of both for all features, from the tokens on, a round each."""
    count = sae.cfg.d_sae
    batches = -(-count // FEATURES)
    times = []
    for turn in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            # Its first FEATURES run the model; each of the others costs what the second do.
            first = seconds(lambda: dashboard(sae, model, tokens, FEATURES, folder))
            both = seconds(lambda: dashboard(sae, model, tokens, 2 * FEATURES, folder))
            another = both / 2
            index = seconds(
                lambda: program("sae-trainer", "features", options.sae, "--store", store, "--out", folder / "index", "--threads", options.threads,
                                "--model", MODEL)
            )  # fmt: skip
            copy = folder / "run"
            subprocess.run(["cp", "-r", options.sae, copy], check=True)
            saved = copy / "sae" if (copy / "sae").is_dir() else copy
            subprocess.run(["rm", "-rf", saved / "features"], check=True)
            (folder / "index").rename(saved / "features")
            pages = seconds(
                lambda: program("sae-trainer", "report", copy, "--out", folder / "report", "--model", MODEL, "--threads", options.threads)
            )
            print(f"  round {turn + 1}: SAEDashboard {first:.1f} s for the first {FEATURES} features, {another:.1f} s for each {FEATURES} more; "
                  f"features {index:.1f} s and report {pages:.1f} s for all {count}")  # fmt: skip
            times.append((first + (batches - 1) * another, index + pages))
    return times


def predict(options, model, sae, tokens, store):
    """Seconds of SAEBench, SAELens and ours for cross-entropies and KL divergence, a round each."""
    config = SimpleNamespace(hook_name=sae.cfg.metadata.hook_name, hook_layer=1, hook_head_index=None, d_sae=sae.cfg.d_sae, metadata=sae.cfg.metadata)
    proxy = SimpleNamespace(cfg=config, encode=sae.encode, decode=sae.decode, device=torch.device("cpu"))
    contexts = len(tokens)
    settings = {"compute_kl": True, "compute_ce_loss": True, "n_batches": contexts // PROMPTS, "eval_batch_size_prompts": PROMPTS}

    def bench():
        sae_bench.get_downstream_reconstruction_metrics(
            proxy, model, Contexts(tokens), ignore_tokens=set(), exclude_special_tokens_from_reconstruction=False, **settings
        )

    def lens():
        sae_lens.evals.get_downstream_reconstruction_metrics(
            proxy, model, Contexts(tokens), ActivationScaler(), ignore_tokens=[], **settings
        )

    def ours():
        program("sae-trainer", "eval", options.sae, "--store", store, "--held-out", 0, "--model", MODEL, "--contexts", contexts,
                "--rows", 1024, "--threads", options.threads, "--json")  # fmt: skip

    times = []
    for turn in range(options.rounds):
        with torch.no_grad():
            times.append((seconds(bench), seconds(lens), seconds(ours)))
        print(f"  round {turn + 1}: SAEBench {times[-1][0]:.1f} s, SAELens {times[-1][1]:.1f} s, eval {times[-1][2]:.1f} s")
    return times


def table(rows, times, tokens):
    print(f"{'':28}{'seconds':>10}{'tokens/s':>10}   it / ours, median of the rounds' ratios")
    for at, name in enumerate(rows):
        median = statistics.median(of[at] for of in times)
        ratio = statistics.median(of[at] / of[-1] for of in times)
        print(f"{name:28}{median:10.1f}{tokens / median:10.0f}   {ratio:.1f}")


def count(text):
    return int(float(text[:-1]) * 1e3) if text.endswith("k") else int(text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=pathlib.Path, default=ROOT / "tests/data")
    parser.add_argument("--sae", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=count, default=32_000)
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.sae, options.text = options.sae.resolve(), options.text.resolve()
    torch.set_num_threads(options.threads)

    saved = options.sae / "sae" if (options.sae / "sae").is_dir() else options.sae
    sae, model = SAE.load_from_disk(saved), hooked_smollm2()
    print(f"contexts of {CONTEXT} tokens, d {sae.cfg.d_in}, F {sae.cfg.d_sae}, {options.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        tokens, dumping = dump(options, options.tokens // CONTEXT, folder / "features")
        print(f"Features: contexts at quantiles, histograms, logit tables, neighbours; {tokens.numel()} tokens, dumped in {dumping:.1f} s")
        times = describe_features(options, model, sae, tokens, folder / "features")
        times = [(theirs, ours + dumping) for theirs, ours in times]
        table(["SAEDashboard (reckoned)", "dump, features and report"], times, tokens.numel())
        tokens, _ = dump(options, options.contexts // PROMPTS * PROMPTS, folder / "predictions")
        print(f"Cross-entropy clean, reconstructed and zero-ablated, KL divergence; {tokens.numel()} tokens")
        times = predict(options, model, sae, tokens, folder / "predictions")
        table(["SAEBench's core", "SAELens", "eval"], times, tokens.numel())


if __name__ == "__main__":
    main()
