"""`sae-trainer export --to neuronpedia`: every number of its batch files against numpy and PyTorch on the same store and autoencoder,
and the files in SAEDashboard's own classes."""

import functools
import gzip
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from sae_lens import SAE
from test_evaluation import dump, random_gpt2
from test_features import loaded
from tokenizers import Tokenizer

F, T, CONTEXTS = 300, 32, 32
BOS = 1
# What rounding to three decimals leaves, and what float32 sums in another order add to it.
ROUNDED = 5e-4 + 2e-5


@pytest.fixture(scope="module", params=["unit", "free"])
def made(request, program, repository, tmp_path_factory):
    """An autoencoder with decoder rows of norm 1, or of other norms and with an index of its own: its folder, the export's, the store and the language model."""
    folder = tmp_path_factory.mktemp("neuronpedia")
    model_folder, model = random_gpt2(folder / "model")
    store = dump(program, repository, folder, model_folder, contexts=CONTEXTS)
    program("sae-trainer", "--store", store, "--out", folder / "run", "--features", F, "--batch", 256, "--steps", 150,
            "--lr", "3e-3", "--loss", "l1", "--l1-coefficient", "1e-3", "--decoder-norm", request.param)  # fmt: skip
    if request.param == "free":
        # An index that has activations at BOS.
        program("sae-trainer", "features", folder / "run", "--store", store)
    tokenizer = repository / "models/smollm2-135m/tokenizer.json"
    program("sae-trainer", "export", folder / "run", "--to", "neuronpedia", "--store", store, "--model", model_folder,
            "--tokenizer", tokenizer, "--model-id", "tiny", "--out", folder / "out")  # fmt: skip
    return folder / "run/sae", folder / "out", zarr.open(store, mode="r"), model


def features_of(out):
    batches = sorted((out / "dashboard").glob("batch-*.json"), key=lambda path: int(path.stem.split("-")[1]))
    all = [json.loads(path.read_text()) for path in batches]
    # numpy.array_split, as SAEDashboard's runner has it.
    sizes = [len(part) for part in np.array_split(np.arange(F), -(-F // 128))]
    assert [len(batch["features"]) for batch in all] == sizes
    assert all[0]["model_id"] == "tiny" and all[0]["layer"] == 1 and all[0]["sae_set"] == f"res-{F}"
    return [feature for batch in all for feature in batch["features"]]


def activations_of(sae, tokens):
    """Of the index, [contexts, T, F], with 0 at BOS, and scaled as SAELens' fold_W_dec_norm scales them."""
    dense, _ = loaded(sae)
    dense = dense.astype(np.float32)
    dense[tokens == BOS] = 0
    norms = np.linalg.norm(SAE.load_from_disk(sae).W_dec.detach().numpy().astype(np.float64), axis=1).astype(np.float32)
    norms[np.abs(norms - 1) < 1e-5] = 1
    return dense * norms


def percent(share):
    return float(f"{share:.3%}".rstrip("%")) / 100


def bars(numbers):
    """Values and heights as HistogramData.from_data of SAEDashboard makes and its converter rounds them."""
    least, largest = numbers.min().item(), numbers.max().item()
    edges = torch.linspace(least, largest, 51)
    middles = [round(x, 5) for x in (edges[:-1] + (largest - least) / 50 / 2).tolist()]
    return np.round(middles, 3), torch.histc(numbers, bins=50).int().tolist()


def test_the_numbers_of_activations_are_those_of_numpy_and_torch(made):
    sae, out, store, _ = made
    tokens = store["tokens"][:].astype(np.int64)
    dense = activations_of(sae, tokens)
    firing = 0
    for feature, a in zip(features_of(out), np.moveaxis(dense, 2, 0), strict=True):
        assert (feature["n_prompts_total"], feature["n_tokens_in_prompt"]) == (CONTEXTS, T)
        active = torch.from_numpy(a[a > 0])
        assert feature["frac_nonzero"] == percent(len(active) / a.size)
        if len(active) == 0:
            assert feature["freq_hist_data_bar_heights"] == feature["activations"] == []
            continue
        values, heights = bars(active)
        assert feature["freq_hist_data_bar_heights"] == heights
        assert feature["freq_hist_data_bar_values"] == pytest.approx(values, abs=1.001e-3)
        firing += len(active) > 20
    assert firing > 50, "the comparison is about something"


def test_the_activations_are_those_that_sae_lens_encodes(made):
    sae, out, store, _ = made
    tokens, origin = store["tokens"][:].astype(np.int64), store["origin"][:].astype(np.int64)
    folded = SAE.load_from_disk(sae)
    folded.fold_W_dec_norm()
    with torch.no_grad():
        rows = folded.encode(torch.from_numpy(store["activations"][:].astype(np.float32))).numpy()
    dense = np.zeros((tokens.size, F), np.float32)
    dense[origin] = rows
    dense = dense.reshape(*tokens.shape, F)
    dense[tokens == BOS] = 0
    shown = 0
    for feature in features_of(out):
        a = dense[:, 1:, feature["feature_index"]]
        for activation in feature["activations"]:
            values = np.array(activation["values"])
            # In float16, then three decimals.
            near = np.abs(a - values).max(1) <= 2**-10 * values.max() + 1e-3
            assert near.any()
            shown += 1
    assert shown > 1000, "the comparison is about something"


def test_contexts_are_chosen_and_shown_as_a_plain_rule_says(made, repository):
    sae, out, store, _ = made
    tokens = store["tokens"][:].astype(np.int64)
    text = texts(repository)
    for feature, a in zip(features_of(out), np.moveaxis(activations_of(sae, tokens), 2, 0), strict=True):
        expected = []
        if a.max() > 0:
            places = [place for place in np.flatnonzero(a.ravel() > 0) if place % T > 0]
            flat = a.ravel()
            top = sorted(places, key=lambda place: (-flat[place], place))[:20]
            expected += [(-1.0, float(f"{a.max():.3f}"), -1.0, place) for place in top]
            edges = torch.linspace(0, float(a.max()), 6).numpy()
            for at in (4, 3, 2, 1, 0):
                lower, upper = edges[at], edges[at + 1]
                contains = percent(np.float32(((lower <= a) & (a <= upper)).sum()) / np.float32(a.size))
                members = [place for place in places if lower <= flat[place] <= upper]
                count = min(len(members), 5)
                chosen = [members[(2 * i + 1) * len(members) // (2 * count)] for i in range(count)]
                expected += [(float(f"{lower:.3f}"), float(f"{upper:.3f}"), contains, place) for place in chosen]
        found = feature["activations"]
        assert len(found) == len(expected)
        for activation, (least, largest, contains, place) in zip(found, expected):
            assert (activation["bin_min"], activation["bin_max"]) == pytest.approx((least, largest), abs=1.001e-3)
            assert activation["bin_contains"] == pytest.approx(contains, abs=1e-12)
            context, position = divmod(int(place), T)
            assert activation["qualifying_token_index"] == position - 1
            assert activation["tokens"] == [text(token) for token in tokens[context, 1:]]
            values = np.round([round(x, 4) for x in a[context, 1:].astype(np.float64).tolist()], 3)
            assert activation["values"] == list(values)


def texts(repository):
    tokenizer = Tokenizer.from_file(str(repository / "models/smollm2-135m/tokenizer.json"))

    @functools.cache
    def text(token):
        decoded = tokenizer.decode([int(token)], skip_special_tokens=False)
        return decoded.replace("\0", " ") or "<|outofrange|>"

    return text


def test_effects_on_logits_are_those_of_the_processed_unembedding(made, repository):
    sae, out, _, model = made
    decoder = SAE.load_from_disk(sae).W_dec.detach().numpy().astype(np.float64)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    # TransformerLens' default processing: the final norm is folded in, and both means are taken away.
    unembedding = model.lm_head.weight.detach().numpy().astype(np.float64) * model.transformer.ln_f.weight.detach().numpy()
    unembedding -= unembedding.mean(1, keepdims=True)
    unembedding -= unembedding.mean(0, keepdims=True)
    text, known = texts(repository), {}
    for feature, logits in zip(features_of(out), decoder @ unembedding.T, strict=True):
        order = np.argsort(logits)
        for names, numbers, expected in [("pos_str", "pos_values", order[::-1][:10]), ("neg_str", "neg_values", order[:10])]:
            assert feature[numbers] == pytest.approx(logits[expected], abs=ROUNDED)
            for name, value in zip(feature[names], feature[numbers]):
                near = np.flatnonzero(np.abs(logits - value) <= 2 * ROUNDED)
                assert any(known.setdefault(int(token), text(token)) == name for token in near)
        heights = np.array(feature["logits_hist_data_bar_heights"])
        assert heights.sum() == len(logits)
        edges = np.linspace(logits.min(), logits.max(), 51)
        middles = (edges[:-1] + edges[1:]) / 2
        assert feature["logits_hist_data_bar_values"] == pytest.approx(middles, abs=ROUNDED + 1e-4)
        # A logit so near an edge may be on either side of it.
        below, ordered, near = np.cumsum(heights)[:-1], np.sort(logits), 1e-5 * np.abs(logits).max()
        assert (np.searchsorted(ordered, edges[1:-1] - near) <= below).all()
        assert (below <= np.searchsorted(ordered, edges[1:-1] + near)).all()


def assert_largest(indices, pearsons, cosines, of, cosine):
    """A list of the three largest correlations, as far as they are above 0."""
    expected = [x for x in np.sort(of)[::-1][:3] if x > 0]
    assert pearsons == pytest.approx(expected, abs=ROUNDED)
    assert [of[i] for i in indices] == pytest.approx(pearsons, abs=ROUNDED)
    assert [cosine[i] for i in indices] == pytest.approx(cosines, abs=ROUNDED)


def test_correlations_and_alignments_are_those_of_numpy(made):
    sae, out, store, _ = made
    tokens, origin = store["tokens"][:].astype(np.int64), store["origin"][:].astype(np.int64)
    decoder = SAE.load_from_disk(sae).W_dec.detach().numpy().astype(np.float64)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    kept = tokens.ravel()[origin] != BOS
    rows = store["activations"][:].astype(np.float64)[kept]
    dense = activations_of(sae, tokens).reshape(-1, F)[origin[kept]].astype(np.float64)

    # SAEDashboard's RollingCorrCoef, in float64.
    def cosine(x, y):
        return x.T @ y / (np.sqrt(np.outer((x**2).sum(0), (y**2).sum(0))) + 1e-6)

    def pearson(x, y):
        n = len(x)
        spreads = np.outer(*(n * (z**2).sum(0) - z.sum(0) ** 2 for z in (x, y)))
        return (n * x.T @ y - np.outer(x.sum(0), y.sum(0))) / (np.sqrt(spreads.clip(0)) + 1e-6)

    neurons, of_neurons = pearson(dense, rows), cosine(dense, rows)
    others, of_others = pearson(dense, dense), cosine(dense, dense)
    np.fill_diagonal(others, 0)
    listed = 0
    for j, feature in enumerate(features_of(out)):
        aligned = np.sort(decoder[j])[::-1][:3]
        assert feature["neuron_alignment_values"] == pytest.approx(aligned, abs=ROUNDED)
        assert [decoder[j, i] for i in feature["neuron_alignment_indices"]] == pytest.approx(aligned, abs=ROUNDED)
        share = np.abs(aligned) / np.abs(decoder[j]).sum()
        assert feature["neuron_alignment_l1"] == pytest.approx(share, abs=ROUNDED)
        for kind, of, cosines in [("neurons", neurons, of_neurons), ("features", others, of_others)]:
            names = [f"correlated_{kind}_{part}" for part in ("indices", "pearson", "l1")]
            assert_largest(*(feature[name] for name in names), of[j], cosines[j])
            listed += len(feature[names[0]])
    assert listed > 500, "the comparison is about something"


@pytest.fixture(scope="module")
def sae_dashboard():
    """The module with SAEDashboard's classes of batch files, which asks for nothing but numpy; the rest of it wants other versions."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "sae-trainer/sae-dashboard-0.8.0-alone"
    if not (cache / "complete").exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", cache, "sae-dashboard==0.8.0"],
                       check=True)  # fmt: skip
        (cache / "complete").touch()
    path = cache / "sae_dashboard/neuronpedia/neuronpedia_dashboard.py"
    spec = importlib.util.spec_from_file_location("neuronpedia_dashboard", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sae_dashboard_reads_and_writes_the_same_batch(made, sae_dashboard):
    _, out, _, _ = made
    for path in (out / "dashboard").glob("batch-*.json"):
        text = path.read_text()
        batch = sae_dashboard.NeuronpediaDashboardBatch(**json.loads(text))
        assert json.dumps(batch.to_dict(), separators=(",", ":"), ensure_ascii=False) == json.dumps(
            json.loads(text), separators=(",", ":"), ensure_ascii=False
        )
        assert len(batch.features) >= 100 and any(feature.activations for feature in batch.features)


# Columns that Neuronpedia's data base needs and has no default for (apps/webapp/prisma/schema.prisma), and their types.
NEURON = {"modelId": str, "layer": str, "index": str}
ACTIVATION = {"id": str, "tokens": list, "index": str, "layer": str, "modelId": str, "maxValue": float, "minValue": float,
              "maxValueTokenIndex": int, "values": list, "creatorId": str}  # fmt: skip


def test_the_bulk_folder_has_every_feature_and_context(made):
    _, out, _, _ = made
    source = out / f"bulk/tiny/1-res-{F}"
    for name in ("release", "model", "sourceset", "source"):
        (line,) = (source / f"{name}.jsonl").read_text().splitlines()
        assert json.loads(line)
    assert json.loads((source / "model.jsonl").read_text())["layers"] == 3

    def lines(part):
        files = sorted((source / part).glob("batch-*.jsonl.gz"), key=lambda path: int(path.name.split("-")[1].split(".")[0]))
        return [json.loads(line) for path in files for line in gzip.open(path, "rt")]

    features, neurons, activations = features_of(out), lines("features"), lines("activations")
    assert [neuron["index"] for neuron in neurons] == [str(j) for j in range(F)]
    assert len(activations) == sum(len(feature["activations"]) for feature in features)
    assert len({activation["id"] for activation in activations}) == len(activations)
    for rows, columns in [(neurons, NEURON), (activations, ACTIVATION)]:
        assert all(isinstance(row[name], kind) for row in rows for name, kind in columns.items())
    for neuron, feature in zip(neurons, features):
        assert all(neuron[name] == value for name, value in feature.items() if name in neuron and name != "activations")
