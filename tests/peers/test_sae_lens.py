"""The autoencoders that `sae` and `sae-trainer` write, opened by SAELens itself."""

import json

import numpy as np
import pytest
import torch
import yaml
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from rounding import bound
from sae_lens import SAE
from safetensors.torch import load_file


@pytest.mark.parametrize("pre_bias", [False, True])
def test_sae_lens_computes_what_the_sae_crate_computes(example, tmp_path, pre_bias):
    folder = tmp_path / "sae"
    flags = ["--pre-bias"] if pre_bias else []
    example("write_sae", folder, *flags)

    sae = SAE.load_from_disk(folder)
    expected = load_file(folder / "expected.safetensors")
    features = sae.encode(expected["x"])
    reconstruction = sae.decode(features)

    assert sae.cfg.apply_b_dec_to_input is pre_bias
    assert (expected["features"] > 0).float().mean() > 0.2  # the comparison is about something
    assert (expected["features"] == 0).float().mean() > 0.2
    # Both are in float32: each may be off by all that its roundings can amount to.
    shifted = expected["x"] - sae.b_dec if pre_bias else expected["x"]
    apart = 2 * bound(shifted, sae.W_enc, sae.b_enc)
    assert ((features - expected["features"]).abs() <= apart).all()
    apart = apart @ sae.W_dec.abs() + 2 * bound(features, sae.W_dec, sae.b_dec)
    assert ((reconstruction - expected["reconstruction"]).abs() <= apart).all()
    # With and without the pre-bias must not be mistaken for one another.
    shift = expected["x"] - sae.b_dec if not pre_bias else expected["x"]
    other = torch.relu(shift @ sae.W_enc + sae.b_enc)
    assert (other - expected["features"]).abs().max() > 0.1


def test_sae_lens_reads_the_metadata(example, tmp_path):
    example("write_sae", tmp_path / "sae")
    sae = SAE.load_from_disk(tmp_path / "sae")
    assert sae.cfg.architecture() == "standard"
    assert sae.cfg.metadata.model_name == "gpt2-small"
    assert sae.cfg.metadata.hook_name == "blocks.1.hook_resid_pre"
    assert sae.cfg.metadata.context_size == 128
    assert sae.cfg.metadata.prepend_bos is True
    assert sae.cfg.metadata.dataset_path == "openwebtext"
    sparsity = load_file(tmp_path / "sae" / "sparsity.safetensors")["sparsity"]
    assert sparsity.shape == (50,)


def write_store(example, folder, centered, width=32, contexts=512, length=8, hook="blocks.1.hook_resid_pre", made_of=None):
    """Writes a store whose rows are an offset and three of 80 directions each; returns the rows."""
    random = np.random.default_rng(1)
    directions = random.standard_normal((80, width)).astype(np.float32)
    count = contexts * length
    strengths = np.zeros((count, 80), dtype=np.float32)
    for _ in range(3):
        strengths[np.arange(count), random.integers(0, 80, count)] = random.uniform(0.5, 1.5, count)
    rows = strengths @ directions + np.linspace(-1, 2, width, dtype=np.float32)
    if made_of is not None:
        rows = made_of(rows)
    spec = dict(
        width=width, context_length=length, contexts=contexts, row_type="float32", mantissa_bits=None,
        clip=False, drop_bos=False, bos_token=0, vocabulary=50257, seed=0,
        layout=dict(window_rows=1024, shard_rows=512, chunk_rows=128, zstd_level=1),
        provenance=dict(model="gpt2-small", model_hash="", hook=hook, layer=1, centered=centered,
                        tokenizer_hash="", dataset=["openwebtext"], dataset_hash="", tool_version="",
                        command_line=""),
    )  # fmt: skip
    work = folder.parent
    (work / "spec.json").write_text(json.dumps(spec))
    (np.arange(count) % length).astype(np.uint32).tofile(work / "tokens.bin")
    rows.astype(np.float32).tofile(work / "rows.bin")
    example("write_store", folder, work / "spec.json", work / "tokens.bin", work / "rows.bin")
    return torch.from_numpy(rows.astype(np.float32))


def counts(active):
    """The metrics that count active features, of [rows, features]."""
    frequencies = active.double().mean(0)
    return dict(
        l0=active.sum(1).double().mean(),
        density=frequencies.mean(),
        dead_features=(frequencies == 0).sum(),
        features_over_1_percent=(frequencies > 0.01).sum(),
        features_over_10_percent=(frequencies > 0.1).sum(),
        features_over_20_percent=(frequencies > 0.2).sum(),
    )


def test_sae_lens_keeps_the_k_largest_of_a_topk_autoencoder(example, program, tmp_path):
    x = write_store(example, tmp_path / "store", centered=False)
    run = tmp_path / "run"
    printed = program("sae-trainer", "--store", tmp_path / "store", "--out", run, "--features", 200, "--batch", 256,
                      "--held-out", 0, "--steps", 300, "--lr", "3e-3", "--activation", "topk", "--k", 6, "--json")  # fmt: skip
    summary = json.loads(printed)
    sae, x = SAE.load_from_disk(run / "sae", dtype="float64"), x.double()
    assert sae.cfg.architecture() == "topk" and sae.cfg.k == 6 and not sae.cfg.rescale_acts_by_decoder_norm
    with torch.no_grad():
        features = sae.encode(x)
        reconstruction = sae.decode(features)
    l0 = (features > 0).sum(1).double()
    assert l0.max() == 6
    found = summary["evaluation"]
    assert found["explained_variance"] > 0.5, "it has learnt something"
    # Where the sixth and the seventh are equal within rounding, either may be kept.
    assert found["l0"] == pytest.approx(float(l0.mean()), rel=1e-4)
    assert found["l1"] == pytest.approx(float(features.sum(1).mean()), rel=1e-4)
    assert found["mse_sum"] == pytest.approx(float((reconstruction - x).pow(2).sum(1).mean()), rel=1e-3)
    assert summary["loss"] == "topk-6"


def test_sae_lens_folds_the_input_scale_as_the_trainer_does(example, program, tmp_path):
    x = write_store(example, tmp_path / "store", centered=False)
    run = tmp_path / "run"
    program("sae-trainer", "--store", tmp_path / "store", "--out", run, "--features", 200, "--batch", 256, "--steps", 60,
            "--lr", "3e-3", "--pre-bias", "--held-out", 0, "--input-scale", "mean-norm")  # fmt: skip
    unfolded = SAE.load_from_disk(run / "checkpoints" / "step-00000060")
    assert unfolded.cfg.normalize_activations == "expected_average_only_in"
    factor = unfolded.cfg.metadata.input_scale
    assert factor == pytest.approx(32**0.5 / float(x.double().norm(dim=1).mean()), rel=1e-6)
    unfolded.fold_activation_norm_scaling_factor(factor)
    folded = SAE.load_from_disk(run / "sae")
    assert folded.cfg.normalize_activations == "none"
    for name in ["W_enc", "b_enc", "W_dec", "b_dec"]:
        here, there = getattr(folded, name), getattr(unfolded, name)
        torch.testing.assert_close(here, there, rtol=2**-22, atol=0)


def test_sae_lens_scales_each_row_as_the_trainer_does(example, program, tmp_path):
    x = write_store(example, tmp_path / "store", centered=False).double()
    run = tmp_path / "run"
    printed = program("sae-trainer", "--store", tmp_path / "store", "--out", run, "--features", 200, "--batch", 256,
                      "--steps", 300, "--lr", "3e-3", "--held-out", 0, "--input-scale", "row-norm", "--json")  # fmt: skip
    found = json.loads(printed)["evaluation"]
    sae = SAE.load_from_disk(run / "sae", dtype="float64")
    assert sae.cfg.normalize_activations == "constant_norm_rescale"
    with torch.no_grad():
        features = sae.encode(x)
        reconstruction = sae.decode(features)
    # The trainer's errors are those of the scaled rows.
    scale = 32**0.5 / x.norm(dim=1, keepdim=True)
    assert found["l0"] == pytest.approx(float((features > 0).sum(1).double().mean()), rel=1e-4)
    assert found["l1"] == pytest.approx(float(features.sum(1).mean()), rel=1e-4)
    assert found["mse_sum"] == pytest.approx(float(((reconstruction - x) * scale).pow(2).sum(1).mean()), rel=1e-3)
    assert found["explained_variance"] > 0.5, "it has learnt something"


KINDS = {
    "batchtopk": ["--activation", "batch-topk", "--k", "6", "--aux-k", "half", "--dead-rows", "5k"],
    "matryoshka_batchtopk": ["--activation", "batch-topk", "--k", "6", "--matryoshka", "0.25,0.5"],
    "jumprelu": ["--activation", "jump-relu", "--mse", "sum", "--l0-coefficient", "0.05", "--clip-gradient", "1"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_sae_lens_uses_thresholds_as_the_evaluation_did(example, program, tmp_path, kind):
    x = write_store(example, tmp_path / "store", centered=False)
    run = tmp_path / "run"
    printed = program("sae-trainer", "--store", tmp_path / "store", "--out", run, "--features", 200, "--batch", 256,
                      "--steps", 300, "--lr", "3e-3", "--held-out", 0, "--json", *KINDS[kind])  # fmt: skip
    found = json.loads(printed)["evaluation"]
    sae, x = SAE.load_from_disk(run / "sae", dtype="float64"), x.double()
    assert sae.cfg.architecture() == "jumprelu"
    metadata = sae.cfg.metadata
    assert metadata.training_architecture == kind and metadata.l0 == found["l0"]
    assert metadata.num_dead_features == found["dead_features"]
    assert (sae.threshold > 0).any()
    with torch.no_grad():
        features = sae.encode(x)
        reconstruction = sae.decode(features)
    assert found["explained_variance"] > 0.5, "it has learnt something"
    # What is equal to its threshold within rounding may fall on either side of it.
    assert found["l0"] == pytest.approx(float((features > 0).sum(1).double().mean()), rel=1e-4)
    assert found["l1"] == pytest.approx(float(features.sum(1).mean()), rel=1e-4)
    assert found["mse_sum"] == pytest.approx(float((reconstruction - x).pow(2).sum(1).mean()), rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*non-empty model_from_pretrained_kwargs")
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("flags", [["--loss", "approx-l0"], ["--loss", "l1", "--pre-bias", "--b-dec-init", "mean"]])
def test_a_trained_autoencoder_has_sae_lens_metrics(example, program, tmp_path, flags, centered):
    x = write_store(example, tmp_path / "store", centered)
    run = tmp_path / "run"
    printed = program("sae-trainer", "--store", tmp_path / "store", "--out", run, "--features", 200, "--batch", 256,
                      "--held-out", 0, "--steps", 300, "--lr", "3e-3", "--json", *flags)  # fmt: skip
    found = json.loads(printed)["evaluation"]
    assert found["rows"] == len(x)  # every row, once

    sae, x = SAE.load_from_disk(run / "sae", dtype="float64"), x.double()
    with torch.no_grad():
        features = sae.encode(x)
        reconstruction = sae.decode(features)
        shifted = sae.process_sae_in(x)
        hidden, undecided = shifted @ sae.W_enc + sae.b_enc, bound(shifted, sae.W_enc, sae.b_enc)
    error = reconstruction - x
    expected = dict(
        l1=features.sum(1).mean(),
        mse_sum=error.pow(2).sum(1).mean(),
        mse_uncentered=(error.pow(2).mean(1) / x.norm(dim=1)).mean(),
        explained_variance=1 - error.pow(2).sum() / (x - x.mean(0)).pow(2).sum(),
        explained_variance_uncentered=1 - error.pow(2).sum() / x.pow(2).sum(),
        cosine_similarity=torch.cosine_similarity(reconstruction, x).mean(),
        l2_ratio=(reconstruction.norm(dim=1) / x.norm(dim=1)).mean(),
        decoder_norm_mean=sae.W_dec.detach().norm(dim=1).mean(),
    )
    assert expected["explained_variance"] > 0.5, "it has learnt something"
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5), name
    # What is counted lies between the features that are active whatever rounding does and those that may be.
    surely, perhaps = hidden > undecided, hidden > -undecided
    assert 0 <= (perhaps.sum() - surely.sum()) < 1e-4 * surely.sum(), "little is left open"
    least, most = counts(surely), counts(perhaps)
    for name in least:
        ends = sorted([float(least[name]), float(most[name])])
        assert ends[0] * (1 - 1e-9) <= found[name] <= ends[1] * (1 + 1e-9), name
    open_in_a_row = (perhaps.sum(1) - surely.sum(1)).double().pow(2).mean().sqrt()
    assert abs(found["l0_std"] - surely.sum(1).double().std(unbiased=False)) <= open_in_a_row + 1e-9
    sparsity = load_file(run / "sae" / "sparsity.safetensors")["sparsity"].double()
    frequencies = [active.double().mean(0) for active in (surely, perhaps)]
    least, most = (torch.log10(frequency + 1e-10) for frequency in frequencies)
    assert ((least - 1e-6 <= sparsity) & (sparsity <= most + 1e-6)).all()
    # What SAELens gives to TransformerLens' from_pretrained_no_processing.
    assert sae.cfg.metadata.model_from_pretrained_kwargs == ({"center_writing_weights": True} if centered else {})
    assert sae.cfg.apply_b_dec_to_input is ("--pre-bias" in flags)


def made_by_a_layer(rows):
    """What a layer could make of rows: a part that is linear in them, and one that is not."""
    return (0.8 * np.roll(rows, 3, axis=1) + np.maximum(np.roll(rows, 9, axis=1), 0) - 0.5).astype(np.float32)


def train_transcoder(example, program, tmp_path, flags):
    """Trains a transcoder from one store to another; returns its folder, what it reads, and its evaluation on all rows."""
    hooks = {"in": "blocks.0.ln2.hook_normalized", "out": "blocks.0.hook_mlp_out"}
    x = write_store(example, tmp_path / "in", centered=False, hook=hooks["in"])
    write_store(example, tmp_path / "out", centered=False, hook=hooks["out"], made_of=made_by_a_layer)
    printed = program("sae-trainer", "--store", tmp_path / "in", "--target", tmp_path / "out", "--out", tmp_path / "run",
                      "--features", 200, "--batch", 256, "--held-out", 0, "--steps", 300, "--lr", "3e-3", "--json",
                      *flags)  # fmt: skip
    return tmp_path / "run/sae", x.double(), json.loads(printed)["evaluation"]


def check_evaluation(found, features, reconstruction, y):
    """That the trainer's figures are those of these features and of this reconstruction of y."""
    error = (reconstruction - y).pow(2)
    assert found["l0"] == pytest.approx(float((features > 0).sum(1).double().mean()), rel=1e-4)
    assert found["l1"] == pytest.approx(float(features.sum(1).mean()), rel=1e-4)
    assert found["mse_sum"] == pytest.approx(float(error.sum(1).mean()), rel=1e-3)
    assert found["explained_variance"] > 0.5, "it has learnt something"


THRESHOLDS = ["--activation", "jump-relu", "--loss", "step", "--l0-coefficient", "1e-3"]


@pytest.mark.parametrize(
    ("flags", "architecture"),
    [
        ([], "transcoder"),
        (["--skip"], "skip_transcoder"),
        (THRESHOLDS, "jumprelu_transcoder"),
        (["--skip", *THRESHOLDS], "jumprelu_skip_transcoder"),
    ],
)
def test_sae_lens_computes_what_a_transcoder_computes(example, program, tmp_path, flags, architecture):
    folder, x, found = train_transcoder(example, program, tmp_path, flags)
    transcoder = SAE.load_from_disk(folder, dtype="float64")
    assert transcoder.cfg.architecture() == architecture and transcoder.cfg.d_out == 32
    assert transcoder.cfg.metadata.hook_name == "blocks.0.ln2.hook_normalized"
    assert transcoder.cfg.metadata.hook_name_out == "blocks.0.hook_mlp_out"
    with torch.no_grad():
        reconstruction, features = transcoder.forward_with_activations(x)
    check_evaluation(found, features, reconstruction, torch.from_numpy(made_by_a_layer(x.numpy())))
    if "--skip" in flags:
        # Turned round it must not pass for what it is.
        skip = transcoder.W_skip.detach()
        assert (skip - skip.T).norm() > 0.3 * skip.norm() > 0


def load_into_circuit_tracer(folder):
    """A set as circuit-tracer's own code loads it, once its hub code has read the configuration."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    hooks = {name: config[name] for name in ("feature_input_hook", "feature_output_hook")}
    layers = {at: str(folder / f"layer_{at}.safetensors") for at in range(len(list(folder.glob("layer_*.safetensors"))))}
    transcoders = load_transcoder_set(
        layers, scan="a set", **hooks, device=torch.device("cpu"), dtype=torch.float64, lazy_decoder=False
    )
    if config.get("activation") == "topk":
        # 0.5.0 takes these for ReLU; the version after it goes by `activation` and `k`.
        for transcoder in transcoders:
            transcoder.activation_function = TopK(config["k"])
    return config, transcoders


@pytest.mark.parametrize("flags", [[], ["--skip"], THRESHOLDS, ["--skip", "--activation", "topk", "--k", "6"]])
def test_circuit_tracer_runs_an_exported_transcoder(example, program, tmp_path, flags):
    folder, x, found = train_transcoder(example, program, tmp_path, flags)
    program("sae-trainer", "export", folder, "--to", "circuit-tracer", "--out", tmp_path / "set")
    config, transcoders = load_into_circuit_tracer(tmp_path / "set")
    assert transcoders.feature_input_hook == "ln2.hook_normalized"
    assert transcoders.feature_output_hook == "hook_mlp_out"
    assert config["model_name"] == "gpt2-small"
    with torch.no_grad():
        features = transcoders[0].encode(x)
        output = transcoders[0].decode(features, x)
        assert torch.equal(transcoders[0](x), output)
    check_evaluation(found, features, output, torch.from_numpy(made_by_a_layer(x.numpy())))
