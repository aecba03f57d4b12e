"""Between Python's ways to name rows and to hold numbers, and those of the native module."""

from __future__ import annotations

from typing import Any, Union

import numpy as np
import numpy.typing as npt

from activation_store import _native

Where = Union[int, slice, range, "npt.ArrayLike"]
"""Rows, as NumPy indexes them: a number, a slice, a range, a list of numbers, or an array of numbers or of truth values."""


def numbers(where: Where, length: int, what: str = "row") -> tuple[npt.NDArray[np.uint64], bool]:
    """The numbers that `where` names of `length` things, `[n]`, and whether it is a single one."""
    if isinstance(where, slice):
        where = range(*where.indices(length))
        return np.arange(where.start, where.stop, where.step).astype(np.uint64), False
    if isinstance(where, range):
        found = np.arange(where.start, where.stop, where.step)
    else:
        found = np.asarray(where)
    if found.dtype == bool:
        if found.shape != (length,):
            raise IndexError(f"a mask of {length} {what}s has the shape ({length},), and not {found.shape}")
        return np.flatnonzero(found).astype(np.uint64), False
    if found.size == 0:
        found = found.astype(np.int64)
    if found.ndim > 1 or not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"{what}s are named by whole numbers in one dimension, not by {found.dtype} of shape {found.shape}")
    one, found = found.ndim == 0, np.atleast_1d(found)
    outside = (found >= length) if found.dtype.kind == "u" else (found >= length) | (found < -length)
    if outside.any():
        raise IndexError(f"there is no {what} {found[outside][0]}: the store has {length}")
    return np.where(found < 0, found.astype(np.int64) + length, found).astype(np.uint64), one


def array(native: _native.Array) -> npt.NDArray[Any]:
    """The native array, not copied. Numbers of bfloat16 take the package ml_dtypes."""
    numbers = np.asarray(native)
    if native.dtype != "bfloat16":
        return numbers
    try:
        from ml_dtypes import bfloat16  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(
            "NumPy has bfloat16 from the package ml_dtypes; install it, or ask for float32, or use activation_store.torch"
        ) from error
    return numbers.view(bfloat16)


def dtype_name(dtype: Any) -> str:
    """The name of a type of rows: "float16", "bfloat16" or "float32", of a name, a NumPy type or a torch type."""
    if isinstance(dtype, str):
        return dtype
    if str(dtype).startswith("torch."):
        return str(dtype)[len("torch.") :]
    return str(np.dtype(dtype))
