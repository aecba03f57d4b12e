"""`sae-trainer features`: the index against SAELens' activations and in delphi, and the figures against numpy on the index."""

import json

import numpy as np
import pytest
import torch
import zarr
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents.loader import LatentDataset, TensorBuffer
from sae_lens import SAE
from test_evaluation import dump, random_gpt2
from transformers import PreTrainedTokenizerFast

F, T = 300, 32
HOOK = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def made(program, repository, tmp_path_factory):
    """The folder of an autoencoder with its index, and the store that both were made of."""
    folder = tmp_path_factory.mktemp("features")
    model, _ = random_gpt2(folder / "model")
    store = dump(program, repository, folder, model, contexts=32)
    program("sae-trainer", "--store", store, "--out", folder / "run", "--features", F, "--batch", 256, "--steps", 100,
            "--lr", "3e-3", "--loss", "approx-l0", "--l0-coefficient", "1e-4")  # fmt: skip
    program("sae-trainer", "features", folder / "run", "--store", store,
            "--tokenizer", repository / "models/smollm2-135m/tokenizer.json")  # fmt: skip
    return folder / "run/sae", zarr.open(store, mode="r")


def half(numbers):
    """What JSON writes in as few digits as float32 takes."""
    return list(np.asarray(numbers, np.float16))


def loaded(sae):
    """Activations [contexts, T, F] and tokens, read by delphi."""
    folder, dense, tokens = sae / "features/latents" / HOOK, None, None
    edges = sorted(tuple(map(int, file.stem.split("_"))) for file in folder.glob("*.safetensors"))
    assert [start for start, _ in edges] == [0] + [end + 1 for _, end in edges[:-1]] and edges[-1][1] == F - 1
    for start, end in edges:
        locations, activations, found = TensorBuffer(f"{folder}/{start}_{end}.safetensors", HOOK).load()
        tokens = found.numpy()
        dense = np.zeros((*tokens.shape, F), np.float16) if dense is None else dense
        context, position, feature = locations.numpy().T
        # `pool_max_activation_windows` takes runs of equal windows for windows: a feature's places must ascend.
        assert (np.diff(np.ravel_multi_index((feature, context, position), (F, *tokens.shape))) > 0).all()
        dense[context, position, feature] = activations.numpy()
    return dense, tokens


def test_delphi_makes_its_examples_of_the_index(made, repository):
    sae, _ = made
    dense, tokens = loaded(sae)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(repository / "models/smollm2-135m/tokenizer.json"))
    fewest = 5
    dataset = LatentDataset(
        sae / "features/latents", SamplerConfig(), ConstructorConfig(example_ctx_len=T, min_examples=fewest, n_non_activating=2),
        tokenizer,
    )  # fmt: skip
    assert (dataset.tokens.numpy() == tokens).all()
    contexts = (dense > 0).any(1).sum(0)
    found = {record.latent.latent_index: record for record in dataset}
    assert sorted(found) == [int(j) for j in np.flatnonzero(contexts >= fewest)] and len(found) > 20
    for j, record in found.items():
        a = dense[:, :, j]
        assert record.per_token_frequency == pytest.approx((a > 0).mean())
        assert len(record.examples) == contexts[j]
        for example in record.examples:
            (context,) = np.flatnonzero((tokens == example.tokens.numpy()).all(1))
            assert (example.activations.numpy() == a[context]).all()
        assert len(record.not_active) == 2 or len(tokens) - contexts[j] < 2
        # It divides the examples by ten quantiles.
        assert len(record.train) > 0 or contexts[j] < 20


def test_the_index_has_what_sae_lens_encodes(made):
    sae, store = made
    dense, tokens = loaded(sae)
    assert (tokens == store["tokens"][:]).all()
    rows, origin = torch.from_numpy(store["activations"][:].astype(np.float32)), store["origin"][:].astype(np.int64)
    with torch.no_grad():
        expected = SAE.load_from_disk(sae).encode(rows).numpy()
    ours = dense.reshape(-1, F)[origin].astype(np.float32)
    assert (ours > 0).sum() > 1000, "the comparison is about something"
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=1e-4)


def test_figures_are_those_of_numpy(made, program):
    sae, _ = made
    dense, tokens = loaded(sae)
    dense, rows = dense.astype(np.float64), tokens.size
    lines = [json.loads(line) for line in (sae / "features/features.jsonl").read_text().splitlines()]
    assert [line["feature"] for line in lines] == list(range(F))
    firing = [line for line in lines if line["firings"] > 20]
    assert len(firing) > 20, "the comparison is about something"
    for line in lines:
        a = dense[:, :, line["feature"]]
        values = np.sort(a[a > 0])
        assert (line["firings"], half([line["maximum"]])) == (len(values), [a.max()])
        assert line["density"] == pytest.approx(len(values) / rows)
        if len(values) == 0:
            assert line["kinds"][0] == "dead" and line["quantiles"] == []
            continue
        assert half(line["quantiles"]) == list(np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9], method="lower"))
        assert line["histogram"] == list(np.histogram(values, 20, (0, a.max()))[0])
        between = ((a.mean(0) - a.mean()) ** 2).mean()
        assert line["positional_share"] == pytest.approx(between / a.var(), abs=1e-9)
        sums = np.bincount(tokens.ravel(), a.ravel())
        assert line["token"] == {"token": int(sums.argmax()), "share": pytest.approx(sums.max() / a.sum())}
        before = np.bincount(tokens[:, :-1].ravel(), a[:, 1:].ravel())
        if before.max() > 0:
            share = pytest.approx(before.max() / a.sum())
            assert line["token_before"] == {"token": int(before.argmax()), "share": share}
    decoder = SAE.load_from_disk(sae).W_dec.detach().numpy()
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    cosines = decoder @ decoder.T - 2 * np.eye(F)
    assert [line["nearest"]["cosine"] for line in lines] == pytest.approx(list(cosines.max(1)), abs=1e-5)


@pytest.mark.parametrize("rank", [0, 3, 20])
def test_a_feature_is_shown_as_numpy_finds_it(made, program, rank):
    sae, _ = made
    dense, tokens = loaded(sae)
    dense = dense.astype(np.float64)
    feature = int(np.argsort(-(dense > 0).sum((0, 1)))[rank])
    found = json.loads(program("sae-trainer", "features", sae, "--id", feature, "--json"))
    a = dense[:, :, feature]
    largest = a.max(1)
    contexts = [int(c) for c in np.argsort(-largest, kind="stable")[:20] if largest[c] > 0]
    assert [top["context"] for top in found["top"]] == contexts
    for top in found["top"]:
        context, position, start = top["context"], top["position"], top["start"]
        assert position == a[context].argmax() and half([top["activation"]]) == [largest[context]]
        shown = slice(start, start + len(top["tokens"]))
        assert top["tokens"] == list(tokens[context, shown]) and half(top["activations"]) == list(a[context, shown])
    values = np.sort(a[a > 0])
    for tenth, sample in enumerate(found["samples"][:10]):
        low, high = values[tenth * len(values) // 10], values[(tenth + 1) * len(values) // 10 - 1]
        assert all(low <= a <= high for a in half([excerpt["activation"] for excerpt in sample["excerpts"]]))
    near = np.sort(np.abs(values - a.max() / 10))[:5]
    assert [abs(e["activation"] - a.max() / 10) for e in found["samples"][10]["excerpts"]] == pytest.approx(list(near), abs=1e-5)
    assert found["mean_by_position"] == pytest.approx(list(a.mean(0)))
    both = ((a > 0)[:, :, None] & (dense > 0)).sum((0, 1))
    jaccard = both / ((a > 0)[:, :, None] | (dense > 0)).sum((0, 1))
    jaccard[feature] = -1
    order = [int(j) for j in np.argsort(-jaccard, kind="stable")[:10] if jaccard[j] > 0]
    assert [other["feature"] for other in found["cofiring"]] == order
    assert [other["both"] for other in found["cofiring"]] == [int(both[j]) for j in order]
