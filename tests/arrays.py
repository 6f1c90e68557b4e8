"""Arrays that give mistakes away, every order that an array may have in memory, and what counts as accurate."""

from __future__ import annotations

from typing import Any

import numpy as np

# --- surroundings ----------------------------------------------------------------------------------------------------

def _sentinel(dtype: np.dtype) -> Any:
    """A value that no result has: NaN where there is one."""
    if dtype.kind in "fc":
        return np.nan
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max


class Surroundings:
    """Arrays that lie inside larger ones full of sentinels, to see what a kernel touches beside them."""

    RIM = 67  # elements: odd, and more than a tile's row of vectors

    def __init__(self) -> None:
        self._placed: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def __call__(self, shape: tuple[int, ...], dtype: Any, memory: str = "C") -> np.ndarray:
        """Return an array of sentinels: `memory` is "C", "F", "spread" (gaps between cells) or "reversed"."""
        dtype = np.dtype(dtype)
        step = 3 if memory == "spread" else 1
        outer_shape = (*shape[:-1], shape[-1] * step) if shape else ()
        size = int(np.prod(outer_shape, dtype=int))
        whole = np.full(size + 2 * self.RIM, _sentinel(dtype), dtype)
        inner = whole[self.RIM:self.RIM + size].reshape(outer_shape, order="F" if memory == "F" else "C")
        inner = inner[..., ::step] if shape else inner
        if memory == "reversed":
            inner = inner[(slice(None, None, -1),) * len(shape)]
        inside = np.zeros(whole.shape, bool)
        np.lib.stride_tricks.as_strided(inside[self._offset(whole, inner):], inner.shape,
                                        [s // dtype.itemsize for s in inner.strides])[...] = True
        self._placed.append((whole, inside, inner))
        return inner

    def place(self, array: np.ndarray) -> np.ndarray:
        """Return a C-contiguous copy of `array` in such surroundings, read-only: NaN from beside it shows."""
        copy = self(array.shape, array.dtype)
        copy[...] = array
        copy.flags.writeable = False
        return copy

    def check(self) -> None:
        """Fail where something beside one of the arrays was written to."""
        for whole, inside, inner in self._placed:
            beside = whole[~inside]
            untouched = np.isnan(beside) if whole.dtype.kind in "fc" else beside == _sentinel(whole.dtype)
            assert untouched.all(), f"{(~untouched).sum()} cells beside an array of shape {inner.shape} were written to"

    @staticmethod
    def _offset(whole: np.ndarray, inner: np.ndarray) -> int:
        address = inner.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        return address // whole.itemsize if inner.size else 0


# --- orders in memory ------------------------------------------------------------------------------------------------


def fortran(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array)


def channels_last(array: np.ndarray) -> np.ndarray:
    """What is a view of an array whose second axis runs fastest, as NHWC images are."""
    axis = min(1, array.ndim - 1)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, axis, -1)), -1, axis)


def negative_strides(array: np.ndarray) -> np.ndarray:
    backwards = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[backwards])[backwards]


def gaps(array: np.ndarray) -> np.ndarray:
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 77, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def crop(array: np.ndarray) -> np.ndarray:
    """The middle of a larger array."""
    large = np.full([n + 3 for n in array.shape], 77, array.dtype)
    middle = large[tuple(slice(1, n + 1) for n in array.shape)]
    middle[...] = array
    return middle


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def byte_swapped(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder())


def misaligned(array: np.ndarray) -> np.ndarray:
    view = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned or array.itemsize == 1 or not array.size
    return view


#: Each gives an array of the same values; no kernel can use any of them as it is, but for the read-only one.
MEMORY_ORDERS = (fortran, channels_last, negative_strides, gaps, crop, read_only, byte_swapped, misaligned)


# --- accuracy (rule 14) ---------------------------------------------------------------------------------------------

#: The largest error over the largest output, by dtype. Winograd may be less accurate in float32.
STRICT = {"float16": 5e-4, "float32": 2e-6, "float64": 1e-12}
STRICT_WEIGHT_GRADIENT = STRICT | {"float32": 5e-6}
STANDARD = STRICT | {"float32": 1e-5}


def assert_accurate(got: np.ndarray, want: np.ndarray, spread: np.ndarray | float = 0.0, *, algorithm: str = "direct",
                     weight_gradient: bool = False) -> None:
    """Fail unless `got` is within rule 14 of `want`, which is float64.

    `spread` is the sum of the squares of each output's terms, whose root is what to divide by where the terms cancel.
    `algorithm` may be Winograd's where it is "auto".
    """
    limits = STANDARD if algorithm in ("winograd", "auto") else STRICT_WEIGHT_GRADIENT if weight_gradient else STRICT
    assert got.shape == want.shape
    if got.size == 0:
        return
    assert np.isfinite(got).all(), f"{(~np.isfinite(got)).sum()} of {got.size} cells are not finite"
    scale = max(np.abs(want).max(), np.sqrt(np.max(spread)))
    error = np.abs(got.astype(np.float64) - want).max()
    limit = limits[got.dtype.name]
    assert error <= limit * scale, \
        f"in {got.dtype} the error is {error / scale:.2g} of the largest output, allowed is {limit:.2g}"
