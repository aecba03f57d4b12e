"""A finished activation store."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import numpy as np
import numpy.typing as npt

from activation_store import _native
from activation_store._numpy import Where, array, dtype_name, numbers


@dataclass(frozen=True)
class Statistics:
    """Statistics over all rows of a store, computed when it was written."""

    rows: int
    """Rows counted."""
    mean: npt.NDArray[np.float64]
    """Mean of each component, `[d]`."""
    variance: npt.NDArray[np.float64]
    """Variance of each component, divided by the number of rows, `[d]`."""
    mean_norm: float
    """Mean over the rows of their Euclidean norm."""


class Origins(NamedTuple):
    """Where rows come from in the text."""

    context: npt.NDArray[np.int64]
    """The context, counted from 0 over the whole dump, `[n]`."""
    position: npt.NDArray[np.int64]
    """The position in the context, from 0, `[n]`."""


@dataclass(frozen=True)
class Problem:
    """A damaged or missing part of a store."""

    file: str
    """The file, relative to the store's folder."""
    chunk: int | None
    """The damaged chunk of a shard, if one can be named."""
    what: str
    """What is wrong."""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found. It is true if nothing is damaged."""

    files: int
    """Files read."""
    bytes: int
    """Bytes read."""
    problems: tuple[Problem, ...]
    """Everything that is damaged."""

    def __bool__(self) -> bool:
        return not self.problems


def verify(path: str | os.PathLike[str], progress: Callable[[int], object] | None = None) -> VerifyReport:
    """Reads every byte of the store in `path` and holds it against the recorded checksums.

    `progress` is called now and then with the bytes read so far. What it raises ends the check.

    Damage is no exception but a `Problem` of the report.

    >>> bool(verify("acts"))
    True
    """
    files, read, problems = _native.verify(os.fspath(path), progress)
    return VerifyReport(files, read, tuple(Problem(*problem) for problem in problems))


class Store:
    """A finished activation store, opened for reading.

    Opening checks the checksums of all small files, and the size and index of every shard; reading checks the checksum of every
    chunk. A chunk (some thousand rows) is the least that can be decoded, so rows side by side are read much faster than as many
    from everywhere. Rows are stored shuffled: those side by side in the store are from all over the text.

    >>> store = Store("acts")
    >>> len(store), store.width, store.dtype
    (4800, 40, dtype('float16'))

    Rows are indexed like those of an array, and come in the stored type:

    >>> store[7].shape, store[10:20].shape, store[[3, 1, 3]].shape
    ((40,), (10, 40), (3, 40))
    >>> bool((store[[-1]] == store[-1:]).all())
    True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._native = _native.Store(os.fspath(path))
        self._provenance = self.provenance

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (str(self.path),)

    def __repr__(self) -> str:
        return f"<activation store {self.path!r}: {len(self)} rows of {self.width} {self.dtype}, {self.hook} of {self.model}>"

    @property
    def path(self) -> str:
        """Its folder."""
        return os.fspath(self._native.path)

    def __len__(self) -> int:
        """Rows stored."""
        return self._native.rows

    @property
    def width(self) -> int:
        """d, the numbers of a row."""
        return self._native.width

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, d)`."""
        return len(self), self.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type: float16 or float32."""
        return np.dtype(self._native.dtype)

    @property
    def context_count(self) -> int:
        """Contexts stored."""
        return self._native.contexts

    @property
    def context_length(self) -> int:
        """T, the tokens of a context."""
        return self._native.context_length

    @property
    def stored_bytes(self) -> int:
        """Bytes of all files."""
        return self._native.stored_bytes

    @property
    def clipped(self) -> int:
        """Values that were beyond the stored type and became its largest value."""
        return self._native.clipped

    @property
    def specification(self) -> dict[str, Any]:
        """What was dumped and how, by the names of the page on the store's format."""
        specification: dict[str, Any] = json.loads(self._native.specification())
        return specification

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the rows come from: model, hook, text, and the command that wrote them."""
        provenance: dict[str, Any] = self.specification["provenance"]
        return provenance

    @property
    def hook(self) -> str:
        """The hook point, in TransformerLens' names."""
        return str(self._provenance["hook"])

    @property
    def layer(self) -> int:
        """The hook's block."""
        return int(self._provenance["layer"])

    @property
    def model(self) -> str:
        """Hub id or folder of the language model."""
        return str(self._provenance["model"])

    @property
    def statistics(self) -> Statistics:
        """Statistics over all rows.

        >>> store = Store("acts")
        >>> store.statistics.mean.shape, store.statistics.rows
        ((40,), 4800)
        """
        mean, variance, mean_norm = self._native.statistics()
        return Statistics(len(self), np.array(mean), np.array(variance), mean_norm)

    def rows(self, where: Where = slice(None), dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
        """Rows in the order of `where`, `[n, d]`, or `[d]` if `where` is a number.

        They are of `dtype` float16, bfloat16 (with the package ml_dtypes) or float32, rounded to nearest even where that is
        narrower; by default of the stored type. A row may be named more than once.

        >>> Store("acts").rows(range(0, 100, 2), dtype="float32").dtype
        dtype('float32')
        """
        found, one = numbers(where, len(self))
        dtype = self._native.dtype if dtype is None else dtype_name(dtype)
        rows = array(self._native.read(found.tobytes(), dtype))
        return rows[0] if one else rows

    def __getitem__(self, where: Where) -> npt.NDArray[Any]:
        return self.rows(where)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a store is on disk, so its rows cannot be had without a copy")
        rows = self.rows()
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def origins(self, where: Where = slice(None)) -> Origins:
        """Where in the text rows come from: their contexts `[n]` and the positions in them `[n]`.

        >>> context, position = Store("acts").origins([0, 1, 2])
        >>> bool((position < 16).all())
        True
        """
        found, one = numbers(where, len(self))
        places = array(self._native.origins(found.tobytes())).astype(np.int64)
        context, position = np.divmod(places, self.context_length)
        return Origins(context[0], position[0]) if one else Origins(context, position)

    def context_tokens(self, where: Where = slice(None)) -> npt.NDArray[np.uint32]:
        """The tokens of contexts, `[n, T]`, or `[T]` if `where` is a number.

        >>> Store("acts").context_tokens([2, 0]).shape
        (2, 16)
        """
        found, one = numbers(where, self.context_count, "context")
        tokens = np.empty((len(found), self.context_length), np.uint32)
        # A few contexts from everywhere are read one by one, others with all that lies between.
        order = np.argsort(found, kind="stable")
        if len(found):
            found = found[order].astype(np.int64)
            for run in np.split(np.arange(len(found)), np.flatnonzero(np.diff(found) > _GAP) + 1):
                first, last = int(found[run[0]]), int(found[run[-1]])
                between = array(self._native.context_tokens(first, last + 1))
                tokens[order[run]] = between[found[run] - first]
        return tokens[0] if one else tokens

    def tokens(self, where: Where = slice(None)) -> npt.NDArray[np.uint32]:
        """The token at which each row was computed, `[n]`.

        >>> Store("acts").tokens([5, 6]).dtype
        dtype('uint32')
        """
        _, one = numbers(where, len(self))
        origins = self.origins(where)
        context, position = np.atleast_1d(origins.context), np.atleast_1d(origins.position)
        contexts, of_row = np.unique(context, return_inverse=True)
        tokens = np.empty(len(context), np.uint32)
        for first in range(0, len(contexts), _CONTEXTS_AT_ONCE):
            some = self.context_tokens(contexts[first : first + _CONTEXTS_AT_ONCE])
            here = (of_row >= first) & (of_row < first + len(some))
            tokens[here] = some[of_row[here] - first, position[here]]
        return tokens[0] if one else tokens

    def verify(self, progress: Callable[[int], object] | None = None) -> VerifyReport:
        """`verify` of its folder."""
        return verify(self.path, progress)


_GAP = 256
"""Contexts between two that are read rather than passed over."""

_CONTEXTS_AT_ONCE = 65_536
"""Contexts whose tokens are in memory at a time."""
