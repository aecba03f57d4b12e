"""Activations that the tools themselves wrote, imported into a store: every row and every token is there again."""

import json

import numpy as np
import pytest
import torch
import zarr
from datasets import Array2D, Dataset, Features, Sequence, Value
from safetensors.torch import save_file
from sae_lens.cache_activations_runner import CacheActivationsRunner

WIDTH = 24


def rows_and_tokens(count, seed=0):
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, WIDTH)).astype(np.float32)
    return rows, random.integers(0, 70_000, count).astype(np.int64)


def stored(folder):
    """The rows of a store in the order of the text, where each comes from, and its tokens."""
    store = zarr.open(str(folder), mode="r")
    origin = store["origin"][:].astype(np.int64)
    order = np.argsort(origin)
    return store["activations"][:][order], origin[order], store["tokens"][:].astype(np.int64)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sae_lens_cached_activations(program, tmp_path, dtype):
    context, records = 3, 2500
    rows, tokens = rows_and_tokens(context * records)
    rows = rows.astype(dtype).reshape(records, context, WIDTH)
    tokens = tokens.reshape(records, context)
    # The features of the runner, and its own way from shards to one folder.
    hook = "blocks.2.hook_resid_post"
    features = Features({
        hook: Array2D(shape=(context, WIDTH), dtype=dtype),
        "token_ids": Sequence(Value(dtype="int32"), length=context),
    })
    for shard in range(2):
        part = slice(shard * records // 2, (shard + 1) * records // 2)
        columns = {hook: torch.from_numpy(rows[part]), "token_ids": torch.from_numpy(tokens[part]).to(torch.int32)}
        dataset = Dataset.from_dict(columns, features=features)
        dataset.save_to_disk(tmp_path / "shards" / f"shard_{shard:05d}", num_shards=1)
    (tmp_path / "cache").mkdir()
    CacheActivationsRunner._consolidate_shards(tmp_path / "shards", tmp_path / "cache", copy_files=False)

    out = ["--out", tmp_path / "acts", "--dtype", "f16" if dtype == "float16" else "f32"]
    summary = json.loads(program("activation-dump", "import", tmp_path / "cache", "--json", *out))
    assert (summary["rows"], summary["format"], summary["tokens_known"]) == (context * records, "sae-lens", True)
    found, origin, found_tokens = stored(tmp_path / "acts")
    assert (origin == np.arange(context * records)).all()
    assert found.dtype == dtype and (found == rows.reshape(-1, WIDTH)).all()
    assert (found_tokens == tokens).all()


def test_an_export_to_sae_lens_comes_back(program, tmp_path):
    rows, tokens = rows_and_tokens(4000)
    np.save(tmp_path / "acts.npy", rows)
    np.save(tmp_path / "tokens.npy", tokens)
    flags = ["--context", 8, "--hook", "blocks.1.hook_mlp_out", "--tokens", tmp_path / "tokens.npy"]
    program("activation-dump", "import", tmp_path / "acts.npy", *flags, "--out", tmp_path / "acts")
    program("activation-dump", "export", tmp_path / "acts", "--format", "sae-lens", "--out", tmp_path / "cache")
    program("activation-dump", "import", tmp_path / "cache", "--out", tmp_path / "again")
    first, again = (zarr.open(str(tmp_path / name), mode="r") for name in ["acts", "again"])
    # An export's records are rows in the order of the store.
    found, _, found_tokens = stored(tmp_path / "again")
    origin = first["origin"][:].astype(np.int64)
    assert (found == first["activations"][:]).all() and (found == rows.astype(np.float16)[origin]).all()
    assert (found_tokens.reshape(-1) == tokens[origin]).all()
    assert again.attrs["specification"]["provenance"]["hook"] == "blocks.1.hook_mlp_out"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("token_dtype", ["uint32", "int32", "int64"])
def test_numpy_arrays(program, tmp_path, dtype, token_dtype):
    rows, tokens = rows_and_tokens(1003)
    rows = rows.astype(dtype)
    np.save(tmp_path / "acts.npy", rows)
    np.save(tmp_path / "tokens.npy", tokens.astype(token_dtype))
    flags = ["--tokens", tmp_path / "tokens.npy", "--context", 10, "--dtype", "f32", "--out", tmp_path / "acts"]
    program("activation-dump", "import", tmp_path / "acts.npy", *flags)
    found, origin, found_tokens = stored(tmp_path / "acts")
    assert (origin == np.arange(1003)).all() and (found == rows).all()
    assert (found_tokens.reshape(-1)[:1003] == tokens).all()
    # The last context is filled up with a token that no row has.
    padding = zarr.open(str(tmp_path / "acts")).attrs["specification"]["padding"]
    assert (found_tokens.reshape(-1)[1003:] == padding).all() and padding == tokens.max() + 1


def test_hidden_states_of_vllm(program, tmp_path):
    """The files are those of ExampleHiddenStatesConnector._write_tensors in vLLM 0.18: save_file of these two tensors."""
    lengths, layers = [7, 40, 1, 23], 3
    (tmp_path / "states").mkdir()
    expected, tokens = [], []
    for number, length in enumerate(lengths):
        states = torch.randn(length, layers, WIDTH, generator=torch.Generator().manual_seed(number)).to(torch.bfloat16)
        ids = torch.arange(length) + 100 * number
        save_file({"hidden_states": states, "token_ids": ids}, tmp_path / "states" / f"{number}-abc.safetensors")
        expected.append(states[:, 1].to(torch.float32).numpy())
        tokens.append(ids.numpy())
    flags = ["--source-layer", 1, "--dtype", "f32", "--out", tmp_path / "acts", "--model", "Qwen/Qwen3-8B"]
    program("activation-dump", "import", tmp_path / "states", *flags)
    found, origin, found_tokens = stored(tmp_path / "acts")
    assert (found == np.concatenate(expected)).all()
    assert (origin == np.concatenate([40 * c + np.arange(n) for c, n in enumerate(lengths)])).all()
    for context, ids in enumerate(tokens):
        assert (found_tokens[context, : len(ids)] == ids).all()
        assert (found_tokens[context, len(ids) :] == 323).all()  # the largest token is 322


def test_memory_maps_of_an_activation_cache(program, tmp_path):
    """dictionary_learning's ActivationCache (jkminder's fork) keeps bfloat16 as the int16 of the same bits."""
    rows, _ = rows_and_tokens(500)
    brain = torch.from_numpy(rows).to(torch.bfloat16)
    (tmp_path / "cache").mkdir()
    for shard, part in enumerate(brain.split(300)):
        path = tmp_path / "cache" / f"shard_{shard}.memmap"
        mapped = np.memmap(path, dtype=np.int16, mode="w+", shape=tuple(part.shape))
        mapped[:] = part.view(torch.int16).numpy()
        mapped.flush()
        meta = {"shape": list(part.shape), "dtype": "torch.bfloat16"}
        path.with_suffix(".meta").write_text(json.dumps(meta))
    (tmp_path / "cache" / "config.json").write_text(json.dumps({"shard_count": 2, "d_model": WIDTH}))
    program("activation-dump", "import", tmp_path / "cache", "--dtype", "f32", "--out", tmp_path / "acts")
    found, origin, _ = stored(tmp_path / "acts")
    assert (origin == np.arange(500)).all()
    assert (found == brain.to(torch.float32).numpy()).all()
