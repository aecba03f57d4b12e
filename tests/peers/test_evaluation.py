"""`sae-trainer eval` against SAEBench's and SAELens' own evaluations of the same autoencoder on the same tokens."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import sae_bench.evals.core.main as sae_bench
import sae_lens.evals
import torch
import zarr
from hooks import hook_outputs, next_token_loss, spliced_logits
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

HOOK = "blocks.1.hook_resid_pre"
GROUP = 16  # contexts of a batch


class Hooked:
    """What both evaluations ask of a HookedTransformer, of a `transformers` model: with `centred` its writing weights are."""

    def __init__(self, model, centred):
        self.model, self.centred, self.known = model, centred, {}

    def __call__(self, tokens, return_type, loss_per_token):
        return self.both(tokens, spliced_logits(self.model, tokens))

    def both(self, tokens, logits):
        return logits.reshape(*tokens.shape, -1), next_token_loss(logits, tokens)

    def rows(self, tokens):
        key = tuple(tokens.flatten().tolist())
        if key not in self.known:
            self.known[key] = hook_outputs(self.model, tokens)[HOOK].reshape(*tokens.shape, -1)
        rows = self.known[key]
        mean = rows.mean(-1, keepdim=True) if self.centred else torch.zeros_like(rows[..., :1])
        return rows - mean, mean

    def run_with_cache(self, tokens, names_filter, **_):
        return None, {HOOK: self.rows(tokens)[0]}

    def run_with_hooks(self, tokens, return_type, fwd_hooks, loss_per_token):
        ((name, hook),) = fwd_hooks
        rows, mean = self.rows(tokens)
        # Zeros are zeros there too, and a LayerNorm removes the mean anyway.
        value = hook(rows, None)
        value = value + mean if value.abs().max() > 0 else value
        return self.both(tokens, spliced_logits(self.model, tokens, name, value))


class Contexts:
    """What both ask of an ActivationsStore: batches of contexts, from the first on again after a reset."""

    def __init__(self, tokens):
        self.tokens, self.at, self.context_size = tokens, 0, tokens.shape[1]
        self.store_batch_size_prompts = GROUP

    def get_batch_tokens(self, count):
        self.at += count
        return self.tokens[self.at - count : self.at]

    def reset_input_dataset(self):
        self.at = 0


@pytest.fixture(scope="module")
def smollm2(repository):
    subprocess.run([repository / "scripts/fetch-smollm2"], check=True)
    folder = repository / "models/smollm2-135m"
    return folder, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def random_gpt2(folder):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=3, n_embd=64, n_head=4, vocab_size=49152, bos_token_id=1, initializer_range=0.2)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return folder, model


def dump(program, repository, tmp_path, folder, contexts):
    store = tmp_path / "store"
    tokenizer = repository / "models/smollm2-135m/tokenizer.json"
    program("activation-dump", "--model", folder, "--layer", 1, "--dataset", repository / "tests/data", "--tokens", 32 * contexts,
            "--context", 32, "--tokenizer", tokenizer, "--out", store)  # fmt: skip
    return store


def evaluate(program, tmp_path, store, folder, contexts, train, flags):
    """Trains an autoencoder, and returns it as SAELens opens it, with what our evaluation says of it and the tokens."""
    run = tmp_path / "run"
    program("sae-trainer", "--store", store, "--out", run, "--features", 300, "--batch", 128, "--steps", 200,
            "--lr", "3e-3", *train)  # fmt: skip
    printed = program("sae-trainer", "eval", run, "--store", store, "--held-out", 0, "--model", folder,
                      "--contexts", contexts, "--sparsity-measures", "--json", *flags)  # fmt: skip
    arrays = zarr.open(store, mode="r")
    tokens = torch.from_numpy(np.asarray(arrays["tokens"][:]).astype(np.int64))
    assert tokens.shape == (contexts, 32)
    (found,) = json.loads(printed)
    sae = SAE.load_from_disk(run / "sae")
    with torch.no_grad():
        activations = sae.encode(torch.from_numpy(arrays["activations"][:].astype(np.float32))).numpy()
    expected, rows = sparsity(activations)
    measured = found["on_rows"]["sparsity"]
    assert (measured["rows"], measured["silent_rows"]) == (rows, len(activations) - rows)
    measures = {measure["name"]: measure["mean"] for measure in measured["measures"]}
    # A negative power of activations near 0 is as large as their rounding lets it be.
    assert measures.pop("-lp_negative") == pytest.approx(float(expected["-lp_negative"]), rel=2e-2)
    assert_close(measures, {key: value for key, value in expected.items() if key != "-lp_negative"})
    return sae, found, tokens


def sparsity(activations):
    """The measures of Hurley and Rickard's Table II for each row of [n, F] in float64, means over rows that have any activation."""
    c = np.sort(activations[activations.max(1) > 0].astype(np.float64), 1)
    n = c.shape[1]
    energy = c**2 / (c**2).sum(1, keepdims=True)
    ones, l1, l2 = np.where(c > 0, c, 1), c.sum(1), np.sqrt((c**2).sum(1))
    inside = -(-n // 2)
    narrowest = (c[:, inside - 1 :] - c[:, : n - inside + 1]).min(1)
    measures = {
        "l0": (c == 0).sum(1),
        "l0_epsilon": (c <= 0.1).sum(1),
        "-l1": -l1,
        "-lp": -(np.sqrt(c).sum(1) ** 2),
        "l2/l1": l2 / l1,
        "-tanh": -np.tanh(c).sum(1),
        "-log": -np.log(1 + c**2).sum(1),
        "kappa4": (c**4).sum(1) / (c**2).sum(1) ** 2,
        "u_theta": 1 - narrowest / (c[:, -1] - c[:, 0]),
        "-lp_negative": -np.where(c > 0, ones**-0.5, 0).sum(1),
        "h_gauss": -np.log(ones**2).sum(1),
        "h_shannon": -(energy * np.log(np.where(energy > 0, energy, 1) ** 2)).sum(1),
        "h_shannon_modified": -(c * np.log(ones**2)).sum(1),
        "hoyer": (np.sqrt(n) - l1 / l2) / (np.sqrt(n) - 1),
        "pq_mean": -(np.sqrt(c).mean(1) ** 2) / np.sqrt((c**2).mean(1)),
        "gini": 1 - 2 * (c / l1[:, None] * (n - np.arange(1, n + 1) + 0.5) / n).sum(1),
    }
    return {name: values.mean() for name, values in measures.items()}, len(c)


def assert_close(found, expected, rel=2e-4):
    """Every number that both have."""
    for key, value in expected.items():
        assert found[key] == pytest.approx(float(value), rel=rel, abs=1e-6), key


CASES = {
    "relu": (["--loss", "approx-l0", "--l0-coefficient", "1e-4"], ["--special-tokens", "reconstruct"]),
    "topk, trained without BOS": (["--activation", "topk", "--k", 20, "--drop-bos"], []),
    "batch-topk on scaled rows": (["--activation", "batch-topk", "--k", 20, "--input-scale", "mean-norm"], []),
}


@pytest.mark.parametrize(("name", "case"), [("gpt2", case) for case in CASES] + [("smollm2", "topk, trained without BOS")])
def test_sae_bench_and_sae_lens_measure_the_same(program, repository, tmp_path, smollm2, name, case):
    folder, model = smollm2 if name == "smollm2" else random_gpt2(tmp_path / "model")
    # A model of true size takes its time.
    contexts = GROUP if name == "smollm2" else 2 * GROUP
    store = dump(program, repository, tmp_path, folder, contexts)
    sae, found, tokens = evaluate(program, tmp_path, store, folder, contexts, *CASES[case])
    bos = int(tokens[0, 0])
    keep = case == "topk, trained without BOS"
    assert found["in_model"]["special_tokens"] == ("keep" if keep else "reconstruct")

    hooked = Hooked(model, centred=name == "gpt2")
    cfg = SimpleNamespace(hook_name=HOOK, hook_layer=1, hook_head_index=None, d_sae=300, metadata=sae.cfg.metadata)
    proxy = SimpleNamespace(cfg=cfg, encode=sae.encode, decode=sae.decode, device=torch.device("cpu"))
    core = found["in_model"]["sae_bench"]
    with torch.no_grad():
        predicted = sae_bench.get_downstream_reconstruction_metrics(
            proxy, hooked, Contexts(tokens), compute_kl=True, compute_ce_loss=True, n_batches=contexts // GROUP,
            eval_batch_size_prompts=GROUP, ignore_tokens={bos}, exclude_special_tokens_from_reconstruction=keep,
        )  # fmt: skip
        rows, features = sae_bench.get_sparsity_and_variance_metrics(
            proxy, hooked, Contexts(tokens), n_batches=contexts // GROUP, compute_l2_norms=True, compute_sparsity_metrics=True,
            compute_variance_metrics=True, compute_featurewise_density_statistics=True,
            eval_batch_size_prompts=GROUP, model_kwargs={}, ignore_tokens={bos},
        )  # fmt: skip
        weights = sae_bench.get_featurewise_weight_based_metrics(
            SimpleNamespace(W_enc=sae.W_enc, W_dec=sae.W_dec, b_enc=sae.b_enc, cfg=SimpleNamespace(d_sae=300, architecture_str=""))
        )
    misc = sae_bench.calculate_misc_metrics({**features, **weights})
    for kind in ("encoder", "decoder"):
        key = f"average_max_{kind}_cosine_sim"
        assert found[key] == pytest.approx(misc.pop(key), rel=1e-4)
    ours = {key: value for group in core.values() for key, value in group.items()}
    assert ours.keys() >= predicted.keys() | rows.keys() | misc.keys()
    assert_close(ours, {**predicted, **rows, **misc})
    assert 0.1 < ours["explained_variance"] < 1 and ours["kl_div_with_sae"] > 1e-3, "the comparison is about something"
    assert found["in_model"]["ce_loss_reconstructed"]["mean"] == ours["ce_loss_with_sae"]

    # SAELens never reconstructs the tokens that it ignores.
    if keep:
        with torch.no_grad():
            expected = sae_lens.evals.get_downstream_reconstruction_metrics(
                proxy, hooked, Contexts(tokens), ActivationScaler(), compute_kl=True, compute_ce_loss=True, n_batches=contexts // GROUP,
                eval_batch_size_prompts=GROUP, ignore_tokens=[bos],
            )  # fmt: skip
        assert_close(ours, expected)
