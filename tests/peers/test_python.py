"""The module activation_store against zarr-python, torch, and the trainers of sae-lens and dictionary_learning; and its order
against that of sae-trainer. scripts/python-module builds it and says what to put on PYTHONPATH."""

import doctest
import json
import os
import pickle
import signal
import subprocess
import sys
import warnings

import activation_store
import activation_store.batches
import activation_store.store
import activation_store.torch
import numpy as np
import pytest
import torch
from activation_store.torch import Batches
from sae_lens import SAE
from test_sae_lens import write_store as write_learnable
from test_store import BOS, write
from torch.utils.data import DataLoader

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import zarr


@pytest.fixture(scope="module")
def acts(example, tmp_path_factory):
    """A store of 4,800 rows of 40 float16 numbers, and what zarr-python reads from it."""
    folder = tmp_path_factory.mktemp("python") / "acts"
    write(example, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open(folder, mode="r")
        return folder, {name: group[name][:] for name in ("activations", "origin", "tokens", "stats/mean", "stats/variance")}


@pytest.fixture(scope="module")
def learnable(example, tmp_path_factory):
    """A store from which an autoencoder can learn."""
    folder = tmp_path_factory.mktemp("learnable") / "store"
    write_learnable(example, folder, centered=False)
    return folder


def bits(array):
    return array.view("u2" if array.dtype.itemsize == 2 else "u4")


def test_rows_are_those_that_zarr_python_reads(acts):
    folder, expected = acts
    store, rows = activation_store.Store(folder), expected["activations"]
    assert (store.shape, store.dtype, len(store)) == ((4800, 40), np.float16, 4800)
    mask = np.arange(4800) % 700 == 3
    for where in (slice(10, 20), slice(None), slice(4799, 3, -511), 7, -1, [5, 4799, 0, 5], range(3, 900, 64),
                  np.array([[1, 2], [3, 4]])[0], np.uint8([200, 0]), mask, [], slice(0, 0)):  # fmt: skip
        assert (bits(store[where]) == bits(rows[where])).all(), where
        assert store[where].shape == rows[where].shape
    assert (np.asarray(store, dtype="float32") == rows.astype("float32")).all()
    assert (store.rows([3, 1], "float32") == rows[[3, 1]].astype("float32")).all()
    brain = activation_store.torch.rows(store, slice(0, 300), torch.bfloat16)
    assert torch.equal(brain, torch.from_numpy(rows[:300]).to(torch.bfloat16))
    assert activation_store.torch.rows(store, 5).dtype == torch.float16


def test_rows_that_are_not_there_or_no_numbers_are_refused(acts):
    store = activation_store.Store(acts[0])
    for where in (4800, -4801, [0, 4800], np.zeros(4799, bool)):
        with pytest.raises(IndexError, match="4800"):
            store[where]
    for where in (1.5, [[1, 2]], "seven", None):
        with pytest.raises(TypeError, match="whole numbers"):
            store[where]
    with pytest.raises(ValueError, match="float64"):
        store.rows([1], "float64")


def test_what_a_row_was_computed_at_is_told(acts):
    folder, expected = acts
    store = activation_store.Store(folder)
    origin, tokens = expected["origin"].astype(int), expected["tokens"]
    for where in (slice(None), slice(100, 90, -3), [4000, 7, 4000], 12):
        context, position = store.origins(where)
        assert (np.asarray(context) == origin[where] // 16).all()
        assert (np.asarray(position) == origin[where] % 16).all()
        assert (store.tokens(where) == tokens.ravel()[origin[where]]).all()
    for where in (slice(None), [299, 0, 299], 7, []):
        assert (store.context_tokens(where) == tokens[where]).all()
    with pytest.raises(IndexError, match="no context 300"):
        store.context_tokens(300)


def test_the_store_says_what_it_is(acts):
    folder, expected = acts
    store = activation_store.Store(str(folder))
    statistics = store.statistics
    assert (statistics.mean == expected["stats/mean"]).all() and (statistics.variance == expected["stats/variance"]).all()
    norms = np.linalg.norm(expected["activations"].astype(float), axis=1)
    assert (statistics.rows, statistics.mean_norm) == (4800, pytest.approx(norms.mean(), rel=1e-12))
    assert (store.hook, store.layer, store.model) == ("blocks.0.hook_resid_pre", 0, "random")
    assert (store.context_count, store.context_length, store.clipped) == (300, 16, 0)
    assert store.specification["bos_token"] == BOS and store.provenance["dataset"] == ["random"]
    assert store.stored_bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert store.path in repr(store) and "4800 rows of 40 float16" in repr(store)
    assert pickle.loads(pickle.dumps(store)).shape == store.shape


def test_docstrings_show_what_happens(acts, monkeypatch):
    monkeypatch.chdir(acts[0].parent)
    for module in (activation_store, activation_store.store, activation_store.batches, activation_store.torch):
        failed, tried = doctest.testmod(module)
        assert tried > 0 and failed == 0, module


def test_damage_and_absence_are_exceptions_of_their_own(example, tmp_path):
    with pytest.raises(activation_store.StoreNotFoundError, match="no activation store at .*nothing"):
        activation_store.Store(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        activation_store.Store(tmp_path)
    write(example, tmp_path / "acts")
    assert activation_store.verify(tmp_path / "acts")
    shard = tmp_path / "acts/activations/c/1/0"
    store = activation_store.Store(tmp_path / "acts")
    content = bytearray(shard.read_bytes())
    content[50] ^= 1
    times = shard.stat()
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(activation_store.DamagedStoreError, match="activations/c/1/0"):
        store[:]
    assert store[:512].shape == (512, 40), "rows of other shards"
    with pytest.raises(activation_store.DamagedStoreError, match="activations/c/1/0"):
        list(activation_store.Batches(store, batch=64, steps=80, held_out=0))
    seen = []
    report = store.verify(seen.append)
    assert not report and [(problem.file, problem.chunk) for problem in report.problems] == [("activations/c/1/0", 0)]
    assert seen[-1] == report.bytes == store.stored_bytes
    shard.unlink()
    with pytest.raises(OSError) as caught:
        activation_store.Store(tmp_path / "acts")
    assert "activations/c/1/0" in str(caught.value)


def test_batches_of_every_type_are_the_same_rows(acts):
    folder, expected = acts
    sorted_rows = np.sort(expected["activations"].astype("float32"), axis=0)
    options = dict(batch=480, seed=9, held_out=0, steps=10)
    wide = list(activation_store.Batches(folder, **options))
    assert (np.sort(np.concatenate(wide), axis=0) == sorted_rows).all(), "an epoch is every row once"
    assert not (np.concatenate(wide) == expected["activations"]).all()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        batches = list(Batches(folder, dtype=dtype, **options))
        assert all(batch.dtype == dtype for batch in batches)
        assert torch.equal(torch.stack(batches), torch.from_numpy(np.stack(wide)).to(dtype))
    other = next(iter(activation_store.Batches(folder, **{**options, "seed": 10})))
    assert not (other == wide[0]).all()


def test_a_batch_stays_what_it_is_while_others_come(acts):
    batches = iter(Batches(acts[0], batch=100, held_out=0))
    kept = [(batch, batch.clone()) for batch, _ in zip(batches, range(200))]
    assert all(torch.equal(batch, copy) for batch, copy in kept)
    kept[0][0].zero_()  # and it is the reader's to write to
    assert torch.equal(kept[1][0], kept[1][1])


def test_held_out_rows_are_those_of_no_training_batch(acts):
    options = dict(batch=20, held_out=0.1)
    training, held_out = (activation_store.Batches(acts[0], part=part, **options) for part in ("training", "held-out"))
    assert (training.rows_per_epoch, held_out.rows_per_epoch) == (270 * 16, 30 * 16)
    assert activation_store.Batches(acts[0], batch=20, part="all").rows_per_epoch == 4800
    train = {row.tobytes() for _, batch in zip(range(training.steps_per_epoch), training) for row in batch}
    test = {row.tobytes() for _, batch in zip(range(held_out.steps_per_epoch), held_out) for row in batch}
    assert len(train) == 4320 and len(test) == 480 and not train & test


@pytest.mark.parametrize("start_method, ranks", [("fork", 1), ("fork", 3), ("spawn", 1)])
def test_workers_and_ranks_have_each_batch_once_in_the_order_of_one(acts, start_method, ranks):
    options = dict(batch=64, seed=4, steps=24)
    expected = torch.stack(list(Batches(acts[0], **options)))
    for rank in range(ranks):
        dataset = Batches(acts[0], rank=rank, ranks=ranks, **options)
        # What the parent's threads have begun is not the children's.
        activation_store.torch.rows(dataset.stores[0], slice(0, 1000))
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start_method)
        assert torch.equal(torch.stack(list(loader)), expected[rank::ranks]), rank
        assert torch.equal(torch.stack(list(dataset)), expected[rank::ranks])


def test_a_stream_of_another_process_is_refused_and_let_go(acts):
    batches = iter(activation_store.Batches(acts[0], batch=64))
    next(batches)
    if os.fork() == 0:
        try:
            next(batches)
        except RuntimeError as error:
            del batches  # waits for no thread that is not there
            os._exit(0 if "another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    assert next(batches).shape == (64, 40)


def test_resuming_is_exact(acts):
    def dataset(**changes):
        return Batches(acts[0], **{"batch": 64, "seed": 6, "drop_tokens": [9, 8], **changes})

    expected = [batch for batch, _ in zip(dataset(), range(12))]
    stopped = dataset()
    for batch, _ in zip(stopped, range(4)):
        pass
    state = json.loads(json.dumps(stopped.state_dict()))  # plain numbers and strings
    assert stopped.step == 5
    resumed = dataset()
    resumed.load_state_dict(state)
    assert all(torch.equal(batch, other) for batch, other in zip(resumed, expected[5:]))
    assert torch.equal(next(iter(dataset(step=9))), expected[9])
    # Goes on with workers, and with another number of readers.
    resumed.load_state_dict(state)
    loader = DataLoader(resumed, batch_size=None, num_workers=2)
    assert all(torch.equal(batch, other) for batch, other in zip(loader, expected[5:]))
    with pytest.raises(ValueError, match="seed was 6 and is 7"):
        dataset(seed=7).load_state_dict(state)
    with pytest.raises(ValueError, match="drop_tokens"):
        dataset(drop_tokens=[]).load_state_dict(state)


def test_an_iterator_ends_when_another_one_goes_on(acts):
    batches = activation_store.Batches(acts[0], batch=64)
    first = iter(batches)
    expected = [next(first) for _ in range(3)]
    again = activation_store.Batches(acts[0], batch=64)
    old = iter(again)
    assert (next(old) == expected[0]).all()
    assert (next(iter(again)) == expected[1]).all()
    with pytest.raises(RuntimeError, match="anew"):
        next(old)


def test_impossible_batches_are_refused_at_once(acts):
    for changes in (dict(batch=0), dict(held_out=1.0), dict(max_norm=-1.0), dict(part="some"), dict(dtype="int8"),
                    dict(rank=2, ranks=2), dict(mixing_chunks=0)):  # fmt: skip
        with pytest.raises(ValueError):
            activation_store.Batches(acts[0], **changes)
    with pytest.raises(ValueError, match="no store"):
        activation_store.Batches([])


@pytest.mark.parametrize("flags, options", [
    ([], {}),
    (["--held-out", 0.2, "--seed", 5, "--drop-bos", "--mixing-chunks", 3],
     dict(held_out=0.2, seed=5, drop_bos=True, mixing_chunks=3)),
    (["--max-norm", 1.2, "--drop-tokens", "3,1"], dict(max_norm=1.2, drop_tokens=[3, 1])),
])  # fmt: skip
def test_the_order_is_that_of_the_trainer(program, learnable, tmp_path, flags, options):
    """A run whose weights stay as they are logs the error of every batch: that of our batches through its autoencoder."""
    program("sae-trainer", "--store", learnable, "--out", tmp_path / "run", "--features", 64, "--batch", 200, "--steps", 40,
            "--lr", "1e-30", "--log-every", 1, *flags)  # fmt: skip
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    logged = [line["mse_sum"] for line in lines if line["kind"] == "step"]
    sae = SAE.load_from_disk(tmp_path / "run/sae", dtype="float64")

    def errors(**options):
        with torch.no_grad():
            batches = (batch.double() for batch in Batches(learnable, 200, steps=40, **options))
            return [float((sae.decode(sae.encode(x)) - x).pow(2).sum(1).mean()) for x in batches]

    assert len(logged) == 40
    assert errors(**options) == pytest.approx(logged, rel=1e-5)
    # The flags change what is read.
    assert not options or Batches(learnable, 200, **options).rows_per_epoch < Batches(learnable, 200).rows_per_epoch
    # Batches of another order are told from these.
    others = errors(**{**options, "seed": 77})
    assert min(abs(other / this - 1) for other, this in zip(others, logged)) > 0 and others != pytest.approx(logged, rel=1e-3)


def ctrl_c(code, *arguments):
    """Runs the code in another process, which is interrupted once it has printed a line."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert told.rstrip().endswith("KeyboardInterrupt"), told
    assert process.returncode != 0


def test_ctrl_c_ends_reading(acts):
    ctrl_c(
        """
import sys
from activation_store import Batches
batches = iter(Batches(sys.argv[1], batch=64))
next(batches)
print("begun", flush=True)
for batch in batches: pass
""",
        acts[0],
    )


def test_sae_lens_trains_on_a_store(learnable, repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "python/examples")
    import sae_lens_trainer

    runs = [sae_lens_trainer.train(learnable, steps, batch=256, features=160) for steps in (1, 200)]
    losses = [sae_lens_trainer.unexplained(run, learnable) for run in runs]
    assert losses[1] < 0.6 * losses[0], losses


def test_dictionary_learning_trains_on_a_store(learnable, repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "python/examples")
    import dictionary_learning_trainer

    runs = [dictionary_learning_trainer.train(learnable, steps, batch=256, features=160) for steps in (1, 200)]
    losses = [dictionary_learning_trainer.unexplained(run, learnable) for run in runs]
    assert losses[1] < 0.6 * losses[0], losses
