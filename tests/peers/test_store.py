"""The store as zarr-python sees it: every row, its origin, its tokens, the statistics."""

import json
import re
import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    # zarr-python calls every codec that is not in Zarr's core specification "numcodecs.…" and warns once.
    warnings.simplefilter("ignore")
    import zarr

BOS = 3


def write(example, folder, contexts=300, length=16, width=40, **changes):
    """Writes a store of random rows with a few outlying columns; returns (tokens, rows)."""
    random = np.random.default_rng(5)
    spec = dict(
        width=width, context_length=length, contexts=contexts, row_type="float16", mantissa_bits=None,
        clip=False, drop_bos=False, bos_token=BOS, vocabulary=50257, seed=11,
        layout=dict(window_rows=2048, shard_rows=512, chunk_rows=128, zstd_level=1),
        provenance=dict(model="random", model_hash="", hook="blocks.0.hook_resid_pre", layer=0, centered=True,
                        tokenizer_hash="", dataset=["random"], dataset_hash="", tool_version="", command_line=""),
    )  # fmt: skip
    spec.update(changes)
    tokens = random.integers(0, spec["vocabulary"], (contexts, length), dtype=np.uint32)
    tokens[:, 0] = BOS
    tokens[::7, 9] = BOS
    rows = random.standard_normal((contexts * length, width), dtype=np.float32)
    rows[:, 3] *= 1000
    rows[:, 4] += 50
    rows[:, 5] *= 1e-7  # subnormal and zero in float16
    work = folder.parent
    (work / "spec.json").write_text(json.dumps(spec))
    tokens.tofile(work / "tokens.bin")
    rows.tofile(work / "rows.bin")
    example("write_store", folder, work / "spec.json", work / "tokens.bin", work / "rows.bin")
    return tokens, rows


@pytest.mark.parametrize("row_type", ["float16", "float32"])
@pytest.mark.parametrize("drop_bos", [False, True])
@pytest.mark.parametrize("vocabulary", [50257, 128256])
def test_zarr_python_agrees_on_every_row(example, tmp_path, row_type, drop_bos, vocabulary):
    tokens, rows = write(example, tmp_path / "acts", row_type=row_type, drop_bos=drop_bos, vocabulary=vocabulary)
    store = zarr.open(tmp_path / "acts", mode="r")
    activations, origin = store["activations"][:], store["origin"][:]
    assert activations.dtype == row_type
    expected_origin = np.arange(tokens.size)
    if drop_bos:
        expected_origin = expected_origin[tokens.ravel() != BOS]
    assert (np.sort(origin) == expected_origin).all()
    assert (origin != expected_origin).any(), "the rows are shuffled"
    # Bit for bit: -0.0 is not 0.0 here.
    bits = "u2" if row_type == "float16" else "u4"
    assert (activations.view(bits) == rows.astype(row_type)[origin].view(bits)).all()
    assert (store["tokens"][:] == tokens).all()
    assert store["tokens"].dtype == ("uint16" if vocabulary <= 65536 else "uint32")

    exact = activations.astype(np.float64)
    np.testing.assert_allclose(store["stats/mean"][:], exact.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(store["stats/variance"][:], exact.var(axis=0), rtol=1e-10)
    np.testing.assert_allclose(store["stats/mean_norm"][()], np.linalg.norm(exact, axis=1).mean(), rtol=1e-12)
    assert store["stats/rows"][()] == len(activations)


def test_the_attributes_say_what_the_store_is(example, tmp_path):
    write(example, tmp_path / "acts")
    attributes = zarr.open(tmp_path / "acts", mode="r").attrs
    assert attributes["format"] == "activation-store"
    assert attributes["complete"] is True
    assert (attributes["rows"], attributes["contexts"]) == (4800, 300)
    assert attributes["specification"]["provenance"]["hook"] == "blocks.0.hook_resid_pre"


def test_few_mantissa_bits_are_the_nearest_values(example, tmp_path):
    _, rows = write(example, tmp_path / "acts", mantissa_bits=4)
    store = zarr.open(tmp_path / "acts", mode="r")
    activations = store["activations"][:]
    assert (activations.view("u2") & 0x3F == 0).all()
    # All float16 numbers with four mantissa bits, and the distance of each value to the nearest.
    grid = np.arange(0, 0x7C00, 1 << 6, dtype=np.uint16).view(np.float16).astype(np.float64)
    values = np.abs(rows[store["origin"][:]].astype(np.float64))
    above = np.searchsorted(grid, values).clip(1, len(grid) - 1)
    nearest = np.minimum(np.abs(grid[above] - values), np.abs(grid[above - 1] - values))
    assert (np.abs(np.abs(activations.astype(np.float64)) - values) == nearest).all()


def test_the_example_of_the_format_page_finds_a_rows_text(example, repository, tmp_path, monkeypatch, capsys):
    tokens, rows = write(example, tmp_path / "acts")
    page = (repository / "docs/store-format.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    origin = int(names["origin"][0])
    assert (names["rows"][0] == rows.astype(np.float16)[origin]).all()
    assert names["token"] == tokens.ravel()[origin]
    assert str(names["token"]) in capsys.readouterr().out


@pytest.mark.parametrize("row_type", ["float16", "float32"])
def test_numpy_loads_an_export(example, tmp_path, row_type):
    tokens, rows = write(example, tmp_path / "acts", row_type=row_type)
    assert example("export_store", tmp_path / "acts", "npy", tmp_path / "npy") == "4800 rows in 3 files, 0 left out\n"
    activations = np.load(tmp_path / "npy/activations-00000.npy")
    origin = np.load(tmp_path / "npy/origin-00000.npy")
    assert activations.dtype == row_type
    assert (np.sort(origin) == np.arange(4800)).all()
    assert (activations == rows.astype(row_type)[origin]).all()
    assert (np.load(tmp_path / "npy/tokens.npy") == tokens).all()


@pytest.mark.parametrize("row_type", ["float16", "float32"])
@pytest.mark.parametrize("drop_bos", [False, True])
def test_sae_lens_trains_from_an_export(example, tmp_path, row_type, drop_bos):
    import torch
    from sae_lens import ActivationsStore

    tokens, rows = write(example, tmp_path / "acts", row_type=row_type, drop_bos=drop_bos)
    out = example("export_store", tmp_path / "acts", "sae-lens", tmp_path / "cache")
    kept = int((tokens != BOS).sum()) if drop_bos else 4800
    assert out == f"{kept - kept % 16} rows in 3 files, {kept % 16} left out\n"
    origin = zarr.open(tmp_path / "acts", mode="r")["origin"][:]

    # SAELens' own reader, without its set-up of a language model and a text.
    store = ActivationsStore.__new__(ActivationsStore)
    store.cached_activations_path = str(tmp_path / "cache")
    store.hook_name, store.context_size, store.d_in = "blocks.0.hook_resid_pre", 16, 40
    store.device, store.dtype = torch.device("cpu"), torch.float32
    store.cached_activation_dataset = store.load_cached_activation_dataset()
    store.store_batch_size_prompts = len(store.cached_activation_dataset)
    read, ids = store._load_raw_llm_batch_from_cached(raise_on_epoch_end=False)
    expected = rows.astype(row_type)[origin[: len(read)]].astype(np.float32)
    assert (read.numpy() == expected).all()
    assert (ids.numpy() == tokens.ravel()[origin[: len(read)]]).all()
