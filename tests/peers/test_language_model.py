"""Activations against `transformers`, for models of true size; the fetched SmolLM2 against its GGUF file."""

import gc
import json
import subprocess
import sys

import pytest
import torch
from hooks import hook_outputs
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def smollm2(repository):
    folder = repository / "models/smollm2-135m"
    subprocess.run([repository / "scripts/fetch-smollm2"], check=True)
    return folder


@pytest.fixture
def run_hooks(example, tmp_path):
    """run_hooks(folder, ids, center=False, half=False): every hook's rows as our own program computes them."""

    def run(folder, ids, center=False, half=False):
        save_file({"ids": ids}, tmp_path / "ids.safetensors")
        out, flags = tmp_path / "out.safetensors", ["--center"] * center + ["--half"] * half
        example("hook_outputs", folder, tmp_path / "ids.safetensors", out, *flags)
        return load_file(out)

    return run


def compare(ours, model, ids, center=False):
    """Worst errors against float64 over all hooks: ours, and `transformers`' own in float32.

    float32 has 24 bits, so an absolute error of 1e-4 is out of reach of every float32 implementation
    once activations are in the thousands. A hook where it is missed passes if its error is below 1e-4 of
    its largest activation and, as a root mean square, below twice `transformers`' own.
    """
    theirs = hook_outputs(model.float(), ids, center)
    exact = hook_outputs(model.double(), ids, center)
    assert ours.keys() == exact.keys()
    worst = {"ours": 0.0, "transformers": 0.0, "largest activation": 0.0}
    for name, truth in exact.items():
        our_error, their_error = (ours[name].double() - truth).abs(), (theirs[name].double() - truth).abs()
        largest = truth.abs().max().item()
        if not our_error.max() < TOLERANCE:
            said = f"{name}: {our_error.max():.2e} from float64, transformers {their_error.max():.2e}"
            assert our_error.max() < TOLERANCE * largest, said
            assert our_error.pow(2).mean() < 4 * their_error.pow(2).mean(), said
        for key, value in zip(worst, (our_error.max().item(), their_error.max().item(), largest)):
            worst[key] = max(worst[key], value)
    print("worst over", len(exact), "hooks:", {key: f"{value:.2e}" for key, value in worst.items()})
    return worst


def random_gpt2(scale, outlier=1.0):
    """GPT-2-small's shapes with random weights; `outlier` enlarges what two components of the residual
    stream receive, as the massive activations of trained models."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, scale)
        for block in model.transformer.h:
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight[:, [138, 447]] *= outlier
    return model


def random_ids(vocabulary, contexts, length):
    return torch.randint(0, vocabulary, (contexts, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("scale", "center"), [(0.02, False), (0.02, True), (0.05, False)])
def test_gpt2_of_true_shapes_at_its_initialization_s_scale_and_above(tmp_path, run_hooks, scale, center):
    model = random_gpt2(scale)
    model.save_pretrained(tmp_path / "model")
    ids = random_ids(50257, 2, 64)
    worst = compare(run_hooks(tmp_path / "model", ids, center), model, ids, center)
    assert worst["ours"] < TOLERANCE
    del model
    gc.collect()


def test_gpt2_of_true_shapes_with_massive_activations(tmp_path, run_hooks):
    model = random_gpt2(0.05, outlier=100.0)
    model.save_pretrained(tmp_path / "model")
    ids = random_ids(50257, 2, 64)
    worst = compare(run_hooks(tmp_path / "model", ids), model, ids)
    assert worst["largest activation"] > 1000
    del model
    gc.collect()


def test_smollm2_with_its_real_weights(smollm2, run_hooks):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = (smollm2.parents[1] / "LICENSE-APACHE").read_text()
    ids = torch.tensor(tokenizer(text).input_ids[:256]).reshape(2, 128)
    worst = compare(run_hooks(smollm2, ids), model, ids)
    assert worst["largest activation"] > 1000, "its massive activations are part of the test"
    assert worst["ours"] < 1e-3 * worst["largest activation"]
    del model
    gc.collect()


SMALL = dict(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=700,
    num_hidden_layers=3,
    num_attention_heads=8,
    max_position_embeddings=512,
)
GROUPED = dict(SMALL, num_key_value_heads=2)


def rope(kind, **rest):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=5000.0, **rest))


# Every variant of a family whose graph differs.
VARIANTS = {
    "llama": LlamaConfig(**GROUPED, **rope("default")),
    "llama with biases and wide heads": LlamaConfig(**GROUPED, head_dim=48, attention_bias=True, mlp_bias=True),
    "llama, linear": LlamaConfig(**GROUPED, **rope("linear", factor=4.0)),
    "llama, dynamic": LlamaConfig(**GROUPED, **rope("dynamic", factor=4.0)),
    "llama, llama3": LlamaConfig(
        **GROUPED,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    ),
    "llama, yarn": LlamaConfig(
        **GROUPED, **rope("yarn", factor=4.0, original_max_position_embeddings=128, beta_fast=16.0)
    ),
    "llama, yarn with mscale": LlamaConfig(
        **GROUPED,
        **rope("yarn", factor=4.0, original_max_position_embeddings=128, mscale=0.7, mscale_all_dim=0.3, truncate=False),
    ),
    "mistral": MistralConfig(**GROUPED, sliding_window=300),
    "qwen2": Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "gpt-neox": GPTNeoXConfig(**SMALL),
    "gpt-neox, one after the other": GPTNeoXConfig(**SMALL, use_parallel_residual=False, hidden_act="gelu_new"),
}


def random_model(config):
    """A model with weights large enough that attention is far from uniform, and its norms off centre."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.06)
    return model


@pytest.mark.parametrize(
    ("variant", "center"), [(variant, False) for variant in VARIANTS] + [("llama", True), ("gpt-neox", True)]
)
def test_every_variant_of_a_family_with_random_weights(tmp_path, run_hooks, variant, center):
    model = random_model(VARIANTS[variant])
    model.save_pretrained(tmp_path / "model")
    ids = random_ids(1000, 2, 300)
    worst = compare(run_hooks(tmp_path / "model", ids, center), model, ids, center)
    assert worst["ours"] < TOLERANCE


@pytest.mark.parametrize("size", ["distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_the_other_sizes_of_gpt2(tmp_path, run_hooks, size):
    """Their widths and heads, in fewer layers and with a smaller vocabulary."""
    width, heads = {"distilgpt2": (768, 12), "gpt2-medium": (1024, 16), "gpt2-large": (1280, 20), "gpt2-xl": (1600, 25)}[size]
    torch.manual_seed(0)
    config = GPT2Config(n_embd=width, n_head=heads, n_layer=2, vocab_size=500)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    ids = random_ids(500, 1, 100)
    worst = compare(run_hooks(tmp_path / "model", ids), model, ids)
    assert worst["ours"] < TOLERANCE


@pytest.mark.parametrize("variant", ["gpt2", "llama", "gpt-neox"])
def test_half_precision_is_as_near_to_float64_as_float16_is(tmp_path, run_hooks, variant):
    """Nearer than `transformers` in float16, whose residual stream is rounded, too."""
    gpt2 = GPT2Config(n_embd=256, n_head=8, n_layer=3, vocab_size=1000)
    model = random_model(gpt2 if variant == "gpt2" else VARIANTS[variant])
    model.save_pretrained(tmp_path / "model")
    ids = random_ids(1000, 2, 100)
    ours = run_hooks(tmp_path / "model", ids, half=True)
    theirs = hook_outputs(model.half(), ids)
    model = type(model).from_pretrained(tmp_path / "model", dtype=torch.float32).double()
    exact = hook_outputs(model, ids)
    assert ours.keys() == exact.keys()
    rms = lambda x: x.double().pow(2).mean().sqrt().item()
    for name, truth in exact.items():
        our_error, their_error = rms(ours[name] - truth), rms(theirs[name] - truth)
        assert our_error < 2**-9 * rms(truth), f"{name}: {our_error / rms(truth):.1e} of the activations"
        assert our_error < 1.1 * their_error, f"{name}: {our_error:.2e}, transformers in float16 {their_error:.2e}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_exported_onnx_file_gives_what_the_model_gives(tmp_path, example, monkeypatch, family):
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    # Only looks for functions written with the package onnx, which this export has none of.
    monkeypatch.setattr(onnx_proto_utils, "_add_onnxscript_fn", lambda proto, *_: proto)
    gpt2 = GPT2Config(n_embd=64, n_head=4, n_layer=3, vocab_size=1000)
    model = random_model(gpt2 if family == "gpt2" else VARIANTS["llama"]).base_model
    model.set_attn_implementation("eager")

    class Ids(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    ids, free = random_ids(1000, 2, 30), {0: "contexts", 1: "length"}
    torch.onnx.export(
        Ids().eval(), (ids, torch.ones_like(ids)), tmp_path / "model.onnx", dynamo=False, opset_version=17,
        input_names=["input_ids", "attention_mask"], dynamic_axes={"input_ids": free, "attention_mask": free},
    )
    blocks = "h" if family == "gpt2" else "layers"
    tensors = {
        "blocks.1.hook_resid_pre": f"/model/{blocks}.0/Add_1_output_0",
        "blocks.1.hook_resid_mid": f"/model/{blocks}.1/Add_output_0",
        "blocks.2.hook_resid_post": f"/model/{blocks}.2/Add_1_output_0",
    }
    ids = random_ids(1000, 3, 21)
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    files = [tmp_path / name for name in ("model.onnx", "ids.safetensors", "out.safetensors")]
    few, many = (
        int(example("onnx_outputs", *files, *names).split()[2])
        for names in ([tensors["blocks.1.hook_resid_pre"]], tensors.values())
    )
    assert few < 0.6 * many, "what only later blocks need must be gone"
    ours, exact = load_file(files[2]), hook_outputs(model.double(), ids)
    for hook, tensor in tensors.items():
        assert (ours[tensor].double() - exact[hook]).abs().max() < TOLERANCE, hook


@pytest.fixture(scope="module")
def gguf(repository, tmp_path_factory):
    """The GGUF file that models/smollm2-135m is made of."""
    import importlib.machinery
    import importlib.util

    script = repository / "scripts/fetch-smollm2"
    loader = importlib.machinery.SourceFileLoader("fetch_smollm2", str(script))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("fetch_smollm2", loader))
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module.fetch(tmp_path_factory.mktemp("gguf"))


def test_fetched_weights_are_those_that_transformers_reads_from_the_gguf_file(smollm2, gguf):
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ours = load_file(smollm2 / "model.safetensors")
    expected = {name: x for name, x in theirs.state_dict().items() if name != "lm_head.weight"}  # tied
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name]), name
    config = json.loads((smollm2 / "config.json").read_text())
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "bos_token_id", "vocab_size"):
        assert config[key] == getattr(theirs.config, key), key
    assert config["rms_norm_eps"] == pytest.approx(theirs.config.rms_norm_eps)
    del theirs
    gc.collect()


def test_fetched_tokenizer_has_the_gguf_file_s_tokens_and_splits_as_smollm2_does(smollm2, gguf):
    from gguf import GGUFReader

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    fields = GGUFReader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokenizer.convert_ids_to_tokens(range(len(tokens))) == tokens
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    # Ids that the published tokenizer of SmolLM2 gives.
    known = {
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "Hello world": [19556, 905],
        "<|im_start|>": [1],
        "1234": [33, 34, 35, 36],
    }
    for text, ids in known.items():
        assert tokenizer(text).input_ids == ids, text
    for text in ["In 1984, 12 men's 3.14", "  spaces\n\n\tand tabs ", "naïve café 日本語 🙂", "x<|endoftext|>y"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_fetching_again_changes_nothing(repository, smollm2):
    before = {file.name: file.stat().st_mtime_ns for file in smollm2.iterdir()}
    done = subprocess.run([repository / "scripts/fetch-smollm2"], check=True, capture_output=True, text=True)
    assert "there already" in done.stdout
    assert {file.name: file.stat().st_mtime_ns for file in smollm2.iterdir()} == before
