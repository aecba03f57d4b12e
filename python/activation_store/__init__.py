"""Activation stores in Python: rows as NumPy arrays, and the batches that `sae-trainer` trains on.

A store holds the rows of one hook point of one language model over one text, in shuffled order. `activation-dump` writes it.

>>> import activation_store
>>> store = activation_store.Store("acts")
>>> store.shape, store.dtype, store.hook
((4800, 40), dtype('float16'), 'blocks.0.hook_resid_pre')
>>> store[10:20].shape
(10, 40)

`activation_store.torch` has the batches as a torch dataset.
"""

from activation_store._native import __version__
from activation_store.batches import Batches
from activation_store.errors import (
    DamagedStoreError,
    IncompleteStoreError,
    StoreError,
    StoreNotFoundError,
)
from activation_store.store import Origins, Problem, Statistics, Store, VerifyReport, verify

__all__ = [
    "Batches",
    "DamagedStoreError",
    "IncompleteStoreError",
    "Origins",
    "Problem",
    "Statistics",
    "Store",
    "StoreError",
    "StoreNotFoundError",
    "VerifyReport",
    "__version__",
    "verify",
]
