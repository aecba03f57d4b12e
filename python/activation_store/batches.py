"""Shuffled batches, in the order in which `sae-trainer` sees them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Union

import numpy.typing as npt

from activation_store import _native
from activation_store._numpy import array, dtype_name
from activation_store.store import Store

Stores = Union[Store, str, "os.PathLike[str]", "Iterable[Store | str | os.PathLike[str]]"]
"""A store, its folder, or several of either, which are read as one."""


class Batches:
    """Shuffled batches of one or several stores of one width, NumPy arrays of `[batch, d]`.

    The order is a pure function of the stores, the seed and the rows left out. It is that of `sae-trainer` with the same
    `--seed`, `--batch`, `--held-out`, `--drop-bos`, `--drop-tokens`, `--max-norm` and `--mixing-chunks`, and the defaults are its
    defaults. Batches go on without end, epoch after epoch, unless `steps` says where to stop; a batch can span two epochs.

    Threads of Rust decode and shuffle ahead of the reader, and an array is the memory that they filled. It stays the
    reader's for as long as it is referred to.

    >>> batches = Batches("acts", batch=64, seed=3, steps=5)
    >>> [batch.shape for batch in batches]
    [(64, 40), (64, 40), (64, 40), (64, 40), (64, 40)]

    Iterating goes on where it stopped. `state_dict` says where that is:

    >>> batches = Batches("acts", batch=64)
    >>> first = next(iter(batches))
    >>> state = batches.state_dict()
    >>> second = next(iter(batches))
    >>> resumed = Batches("acts", batch=64)
    >>> resumed.load_state_dict(state)
    >>> bool((next(iter(resumed)) == second).all())
    True

    Args:
        stores: a store, a folder of one, or several of either.
        batch: rows of a batch.
        seed: of the order.
        dtype: "float32", "float16" or "bfloat16" (for NumPy, with the package ml_dtypes).
        part: "training" for the rows of contexts that are not held out, "held-out" for those that are, or "all".
        held_out: the fraction of the contexts of each store that is held out; the same contexts for all seeds.
        drop_bos: leave out the rows of BOS tokens.
        drop_tokens: leave out the rows of these tokens.
        max_norm: leave out rows whose norm is over so many times the median. Reads every row once before the first batch.
        mixing_chunks: chunks whose rows are shuffled together; by default enough to mix well.
        step: where to begin.
        steps: where to stop: before this step, counted from 0 over all readers.
        rank, ranks: which of the readers that share the batches this is. Of steps 0, 1, 2, … reader `rank` has every one that
            leaves `rank` when divided by `ranks`, if `step` is 0.
        threads: threads that decode; 0 means one per core. The order does not depend on it.
        prefetch: batches made ahead of the reader.
    """

    def __init__(
        self,
        stores: Stores,
        batch: int = 4096,
        *,
        seed: int = 0,
        dtype: Any = "float32",
        part: str = "training",
        held_out: float = 0.01,
        drop_bos: bool = False,
        drop_tokens: Iterable[int] = (),
        max_norm: float | None = None,
        mixing_chunks: int | None = None,
        step: int = 0,
        steps: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 0,
        prefetch: int = 4,
    ) -> None:
        if isinstance(stores, (Store, str, os.PathLike)):
            stores = [stores]
        self.stores = [store if isinstance(store, Store) else Store(store) for store in stores]
        if not 0 <= rank < ranks:
            raise ValueError(f"rank is {rank}, but of {ranks} ranks it must be at least 0 and below {ranks}")
        self.steps = steps
        self._dtype = dtype_name(dtype)
        self._order: dict[str, Any] = {
            "batch": batch,
            "seed": seed,
            "part": part,
            "held_out": held_out,
            "drop_bos": drop_bos,
            "drop_tokens": sorted(set(drop_tokens)),
            "max_norm": max_norm,
            "mixing_chunks": mixing_chunks,
        }
        self._speed: dict[str, Any] = {"threads": threads, "prefetch": prefetch}
        self._rank, self._ranks = rank, ranks
        self._start, self._taken, self._iterators = step, 0, 0
        # What is wrong with the arguments is an error here. The first iterator takes the stream over.
        stream = self._open(step + rank, ranks)
        self._rows_per_epoch, self._mixing_chunks = stream.rows_per_epoch, stream.mixing_chunks
        self._opened: tuple[_native.Stream, tuple[int, int, int]] | None = (stream, (os.getpid(), step + rank, ranks))

    def __getstate__(self) -> dict[str, Any]:
        # Of a stream with its threads there is no copy.
        return {**self.__dict__, "_opened": None}

    @property
    def batch(self) -> int:
        """Rows of a batch."""
        return int(self._order["batch"])

    @property
    def width(self) -> int:
        """d, the numbers of a row."""
        return self.stores[0].width

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one pass over the stores, without those left out."""
        return self._rows_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one pass."""
        return self._rows_per_epoch // self.batch

    @property
    def mixing_chunks(self) -> int:
        """Chunks whose rows are shuffled together."""
        return self._mixing_chunks

    def _share(self) -> tuple[int, int]:
        """Which of the readers of the batches this is, and how many there are."""
        return self._rank, self._ranks

    @property
    def step(self) -> int:
        """The step of the next batch, counted over all readers."""
        reader, readers = self._share()
        return self._start + reader + self._taken * readers

    def _open(self, step: int, every: int) -> _native.Stream:
        natives = [store._native for store in self.stores]
        return _native.Stream(natives, step=step, every=every, dtype=self._dtype, **self._order, **self._speed)

    def _stream(self) -> _native.Stream:
        place = (os.getpid(), self.step, self._share()[1])
        opened, self._opened = self._opened, None
        if opened is not None and opened[1] == place:
            return opened[0]
        return self._open(*place[1:])

    def _batches(self) -> Iterator[_native.Array]:
        self._iterators += 1
        this = self._iterators
        stream = None
        while self.steps is None or self.step < self.steps:
            if stream is None:
                stream = self._stream()
            batch = stream.next()
            self._taken += 1
            yield batch
            if self._iterators != this:
                raise RuntimeError("these batches were moved, or iterated over anew; that iterator goes on, and this one has ended")

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """Batches from the next one on. Another call goes on where this iterator stopped, and ends it."""
        return map(array, self._batches())

    def state_dict(self) -> dict[str, Any]:
        """Where iterating goes on, and the order in which it does: plain numbers and strings."""
        stores = [
            {"rows": len(store), **{key: store.specification[key] for key in ("width", "seed")}, "hook": store.hook}
            for store in self.stores
        ]
        return {"step": self._start, "taken": self._taken, "readers": self._share()[1], "stores": stores, **self._order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the batches stood that returned `state`. They must be of the same order."""
        here = self.state_dict()
        changed = [key for key in ("stores", *self._order) if state.get(key) != here[key]]
        if changed:
            differences = "; ".join(f"{key} was {state.get(key)!r} and is {here[key]!r}" for key in changed)
            raise ValueError(f"the state is that of batches in another order ({differences})")
        self._iterators += 1
        self._start, self._taken = self._resumed(state)

    def _resumed(self, state: dict[str, Any]) -> tuple[int, int]:
        return state["step"] + state["taken"] * state["readers"], 0
