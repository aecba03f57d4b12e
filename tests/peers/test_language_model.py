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
    LlamaConfig,
    LlamaForCausalLM,
)

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def smollm2(repository):
    folder = repository / "models/smollm2-135m"
    subprocess.run([repository / "scripts/fetch-smollm2"], check=True)
    return folder


@pytest.fixture
def run_hooks(example, tmp_path):
    """run_hooks(folder, ids, center=False): every hook's rows as our own program computes them."""

    def run(folder, ids, center=False):
        save_file({"ids": ids}, tmp_path / "ids.safetensors")
        out = tmp_path / "out.safetensors"
        example("hook_outputs", folder, tmp_path / "ids.safetensors", out, *["--center"] * center)
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
    del model
    gc.collect()


@pytest.mark.parametrize("center", [False, True])
def test_a_random_grouped_query_llama(tmp_path, run_hooks, center):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=700,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_theta=5000.0,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.06)
    model.save_pretrained(tmp_path / "model")
    ids = random_ids(1000, 2, 300)
    worst = compare(run_hooks(tmp_path / "model", ids, center), model, ids, center)
    assert worst["ours"] < TOLERANCE


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
