"""Activation stores in torch: rows as tensors, and the batches that `sae-trainer` trains on as a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from activation_store import _native, batches
from activation_store._numpy import Where, dtype_name, numbers
from activation_store.store import Store


def rows(store: Store, where: Where = slice(None), dtype: torch.dtype | None = None) -> torch.Tensor:
    """Rows of a store in the order of `where`, `[n, d]`, or `[d]` if `where` is a number.

    They are of `dtype` float16, bfloat16 or float32; by default of the stored type.

    >>> rows(Store("acts"), [3, 1], torch.bfloat16).dtype
    torch.bfloat16
    """
    found, one = numbers(where, len(store))
    name = store._native.dtype if dtype is None else dtype_name(dtype)
    read = _tensor(store._native.read(found.tobytes(), name))
    return read[0] if one else read


class Batches(batches.Batches, IterableDataset[torch.Tensor]):
    """Shuffled batches of one or several stores, tensors of `[batch, d]` on the CPU: `activation_store.Batches` as a dataset.

    A `DataLoader` takes it with `batch_size=None`, as its elements are batches:

    >>> from torch.utils.data import DataLoader
    >>> loader = DataLoader(Batches("acts", batch=64, dtype=torch.bfloat16, steps=2), batch_size=None)
    >>> [(batch.shape, batch.dtype) for batch in loader]
    [(torch.Size([64, 40]), torch.bfloat16), (torch.Size([64, 40]), torch.bfloat16)]

    Threads of Rust decode ahead of the reader, so workers are not needed for speed. With workers, each batch still comes once
    and in the same order, but every worker decodes nearly all chunks, for its share of the rows of each, and torch copies each
    batch between processes.

    To resume, `state_dict` and `load_state_dict` are exact without workers. With workers a plain `DataLoader` does not tell
    its dataset what has been consumed: begin again with `step=` the number of batches trained on (times `ranks`), or use
    torchdata's `StatefulDataLoader`, which asks every worker.

    For training on several machines, give each process its `rank` and the number of `ranks`.

    Args: those of `activation_store.Batches`; `dtype` is torch.float32, torch.float16 or torch.bfloat16.
    """

    def __init__(
        self,
        stores: batches.Stores,
        batch: int = 4096,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
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
        super().__init__(
            stores, batch, dtype=dtype, seed=seed, part=part, held_out=held_out, drop_bos=drop_bos, drop_tokens=drop_tokens,
            max_norm=max_norm, mixing_chunks=mixing_chunks, step=step, steps=steps, rank=rank, ranks=ranks, threads=threads,
            prefetch=prefetch,
        )  # fmt: skip

    def _share(self) -> tuple[int, int]:
        worker = get_worker_info()
        if worker is None:
            return self._rank, self._ranks
        # A DataLoader takes a batch of each worker in turn.
        return worker.id * self._ranks + self._rank, worker.num_workers * self._ranks

    def _open(self, step: int, every: int) -> _native.Stream:
        worker = get_worker_info()
        if worker is not None and self._speed["threads"] == 0:
            self._speed["threads"] = max(1, (os.cpu_count() or 1) // worker.num_workers)
        return super()._open(step, every)

    def _resumed(self, state: dict[str, Any]) -> tuple[int, int]:
        if get_worker_info() is None:
            return super()._resumed(state)
        # A worker's own state: the others have theirs.
        if state["readers"] != self._share()[1]:
            raise ValueError(f"the state is that of one of {state['readers']} readers, and there are {self._share()[1]}")
        return state["step"], state["taken"]

    def __iter__(self) -> Iterator[torch.Tensor]:  # type: ignore[override]
        """Batches from the next one on. Another call goes on where this iterator stopped, and ends it."""
        return map(_tensor, self._batches())


def _tensor(native: _native.Array) -> torch.Tensor:
    """The native array, not copied."""
    numbers = np.asarray(native)
    if native.dtype == "bfloat16":
        # Two bytes are two bytes; older versions of torch know no unsigned ones.
        return torch.from_numpy(numbers.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(numbers)
