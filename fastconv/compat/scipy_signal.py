"""``scipy.signal``'s convolutions of one and two axes on fastconv's kernels.

Put these in place of SciPy's and leave the rest of the code as it is::

    from fastconv.compat.scipy_signal import convolve, convolve2d, correlate, correlate2d

Arguments, modes, boundaries, sizes and dtypes of the results are SciPy's. Integers are exact, and wrap around where they
do in SciPy. What differs:

- Arrays of three and more axes are a NotImplementedError. Empty arrays are a ValueError everywhere.
- `float16`, which SciPy refuses, is computed in `float32`.
- Very large filters go over to the FFT in `correlate2d` and `convolve2d` too; where a value is not finite, which an FFT
  would spread over everything, they are computed directly after all.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from .. import functional
from ..geometry import Pads, as_pads

__all__ = ["convolve", "convolve2d", "correlate", "correlate2d"]

Array = np.ndarray

MODES = ("valid", "same", "full")
METHODS = ("auto", "direct", "fft")
#: SciPy's names of what lies around an image, and NumPy's.
BOUNDARIES = {"fill": "constant", "pad": "constant", "wrap": "wrap", "circular": "wrap", "symm": "symmetric",
              "symmetric": "symmetric"}

#: Integers up to these are exact, and so are their sums.
_EXACT_FLOAT32, _EXACT_FLOAT64, _EXACT_FFT = 2**24, 2**53, 2**38
#: Nanoseconds of the direct algorithm for a term of an output, and of all FFTs for a cell and a doubling of the size, in
#: float32; float64 takes twice as long. Fitted on a Zen 5. The choice does not look at the number of threads, as no
#: result may depend on it.
_TERM, _FFT_CELL = 0.0215, 0.37
_FFT_FROM = 200_000.0  # nanoseconds: what is done sooner is not worth a thought


# --- the four functions -----------------------------------------------------------------------------------------------


def correlate(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Array:
    """Cross-correlation of two arrays of one or two axes: ``sum over j of in1[i + j] * conj(in2[j])``.

    Parameters
    ----------
    in1, in2 : array_like
        With the same number of axes.
    mode : {"full", "valid", "same"}
        All positions at which they overlap; those at which one lies inside the other; or as many as `in1` has cells, in
        the middle of all.
    method : {"auto", "direct", "fft"}

    Returns
    -------
    ndarray
        With the dtype ``np.result_type(in1, in2)``.

    Raises
    ------
    ValueError
        Where the arrays do not fit together, or `mode` or `method` is none.
    TypeError
        Where an array is not made of numbers.
    NotImplementedError
        Where they have more than two axes.
    """
    one, two = _as_arrays(in1, in2)
    if one.ndim == 0:
        return np.asarray(one * two.conj())
    return _of_any_rank(one, two.conj(), mode, method)


def convolve(in1: Any, in2: Any, mode: str = "full", method: str = "auto") -> Array:
    """Convolution of two arrays of one or two axes: ``sum over j of in1[i - j] * in2[j]``.

    Parameters, result and errors as :func:`correlate`.
    """
    one, two = _as_arrays(in1, in2)
    if one.ndim == 0:
        return np.asarray(one * two)
    return _of_any_rank(one, _reversed(two), mode, method)


def correlate2d(in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0) -> Array:
    """Cross-correlation of two images.

    Parameters
    ----------
    in1, in2 : array_like
        Of two axes each.
    mode : {"full", "valid", "same"}
        As in :func:`correlate`.
    boundary : {"fill", "wrap", "symm"}
        What lies around `in1`: the `fillvalue`; `in1` over again; or `in1` mirrored, its edges twice.
    fillvalue : number

    Returns
    -------
    ndarray
        With the dtype ``np.result_type(in1, in2)``.

    Raises
    ------
    ValueError
        Where the arrays do not fit together, or an argument is none of these.
    TypeError
        Where an array is not made of numbers.
    """
    one, two = _as_images(in1, in2)
    if _swapped(mode, one.shape, two.shape):
        return np.ascontiguousarray(_reversed(_image(two, one.conj(), mode, boundary, fillvalue, _ODD_LAST)))
    return _image(one, two.conj(), mode, boundary, fillvalue, _ODD_LAST)


def convolve2d(in1: Any, in2: Any, mode: str = "full", boundary: str = "fill", fillvalue: Any = 0) -> Array:
    """Convolution of two images. Parameters, result and errors as :func:`correlate2d`."""
    one, two = _as_images(in1, in2)
    if _swapped(mode, one.shape, two.shape):
        one, two = two, one
    return _image(one, _reversed(two), mode, boundary, fillvalue, _ODD_FIRST)


# --- arguments --------------------------------------------------------------------------------------------------------


def _as_arrays(in1: Any, in2: Any) -> tuple[Array, Array]:
    arrays = np.asarray(in1), np.asarray(in2)
    for name, array in zip(("in1", "in2"), arrays, strict=True):
        if array.dtype.kind not in "biufc":
            raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
        if array.size == 0:
            raise ValueError(f"{name} must have at least one cell, got shape {array.shape}")
    if arrays[0].ndim != arrays[1].ndim:
        raise ValueError(f"in1 and in2 must have the same number of axes, got {arrays[0].ndim} and {arrays[1].ndim}")
    if arrays[0].ndim > 2:
        raise NotImplementedError(f"in1 and in2 must have at most two axes, got {arrays[0].ndim}")
    return arrays


def _as_images(in1: Any, in2: Any) -> tuple[Array, Array]:
    one, two = _as_arrays(in1, in2)
    if one.ndim != 2:
        raise ValueError(f"in1 and in2 must have two axes each, got {one.ndim}")
    return one, two


def _swapped(mode: Any, shape1: tuple[int, ...], shape2: tuple[int, ...]) -> bool:
    """Whether in1 lies inside in2 in the mode "valid", where one of them must."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if mode != "valid" or all(a >= b for a, b in zip(shape1, shape2, strict=True)):
        return False
    if any(a > b for a, b in zip(shape1, shape2, strict=True)):
        raise ValueError(f"one of in1 and in2 must be at least as large as the other along every axis with mode='valid', "
                         f"got shapes {shape1} and {shape2}")
    return True


def _reversed(array: Array) -> Array:
    return array[(slice(None, None, -1),) * array.ndim]


#: What `padding` is in :func:`fastconv.conv2d`: of an even filter's half, one cell more lies before the image, or behind.
_ODD_FIRST = {"valid": "valid", "full": "full", "same": "same_lower"}
_ODD_LAST = {"valid": "valid", "full": "full", "same": "same"}


def _pads(padding: str, image: Array, kernel: Array) -> Pads:
    """`padding` in cells."""
    (height, width), (kernel_h, kernel_w) = image.shape, kernel.shape
    return as_pads("padding", padding, (height, width), (kernel_h, kernel_w), (1, 1), (1, 1))


def _of_any_rank(one: Array, kernel: Array, mode: Any, method: Any) -> Array:
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    swapped = _swapped(mode, one.shape, kernel.shape)
    if swapped or (mode == "full" and kernel.size > one.size):
        # a convolution does not mind which is which: the smaller one goes over the larger one
        one, kernel = _reversed(kernel), _reversed(one)
    if one.ndim == 1:
        return _correlation(one[None], kernel[None], _ODD_FIRST[mode], method)[0]
    return _correlation(one, kernel, _ODD_FIRST[mode], method)


def _image(image: Array, kernel: Array, mode: str, boundary: Any, fillvalue: Any,
           paddings: dict[str, str]) -> Array:
    if not isinstance(boundary, str) or boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of 'fill', 'wrap', 'symm', got {boundary!r}")
    padding = paddings[mode]
    if BOUNDARIES[boundary] == "constant" and type(fillvalue) is int and fillvalue == 0:
        return _correlation(image, kernel, padding, "auto")
    dtype = np.result_type(image, kernel)
    around: dict[str, Any] = {}
    if BOUNDARIES[boundary] == "constant":
        around["constant_values"] = _checked_fill(fillvalue, dtype)
    if mode != "valid":
        pads = _pads(padding, image, kernel)
        image = np.pad(image.astype(dtype, copy=False), pads, BOUNDARIES[boundary], **around)  # type: ignore[call-overload]
    return _correlation(image, kernel, "valid", "auto")


def _checked_fill(fillvalue: Any, dtype: np.dtype) -> Any:
    fill = np.asarray(fillvalue)
    if fill.size != 1 or fill.dtype.kind not in "biufc":
        raise ValueError(f"fillvalue must be a number, got {fillvalue!r}")
    if fill.dtype.kind == "c" and dtype.kind != "c":
        raise ValueError(f"fillvalue must fit the dtype of the result, {dtype}, got {fillvalue!r}")
    with np.errstate(all="ignore"):
        return fill.reshape(()).astype(dtype)[()]


# --- one plane --------------------------------------------------------------------------------------------------------


def _correlation(image: Array, kernel: Array, padding: str, method: str) -> Array:
    """``out[y, x] = sum of image[y + a - top, x + b - left] * kernel[a, b]``, with zeros around the image."""
    dtype = np.result_type(image, kernel).newbyteorder("=")
    by_fft = method == "fft" or (method == "auto" and _fft_is_faster(image, kernel, padding, dtype))
    if dtype.kind in "biu":
        limit = _largest(image) * _largest(kernel) * min(kernel.size, image.size)
        if by_fft and (method == "fft" or limit < _EXACT_FFT):
            return np.around(_by_fft(image, kernel, padding, dtype)).astype(np.int64).astype(dtype)
        if limit >= _EXACT_FLOAT64:
            return _by_taps(image, kernel, padding, dtype)
        exact = np.dtype(np.float32 if limit < _EXACT_FLOAT32 else np.float64)
        # by way of int64: what is too large for the dtype wraps around
        out = _by_kernels(image.astype(exact), kernel.astype(exact), padding)
        return out.astype(np.int64).astype(dtype, copy=False)
    if by_fft:
        out = _by_fft(image, kernel, padding, dtype)
        # one value that is not finite spoils them all, so any cell tells
        if method == "fft" or np.isfinite(out.flat[0]):
            with np.errstate(over="ignore"):
                return out.astype(dtype, copy=False)
    if dtype in (np.float32, np.float64):
        return _by_kernels(image.astype(dtype, copy=False), kernel.astype(dtype, copy=False), padding)
    if dtype == np.float16:
        out = _by_kernels(image.astype(np.float32), kernel.astype(np.float32), padding)
        with np.errstate(over="ignore"):
            return out.astype(dtype)
    if dtype in (np.complex64, np.complex128):
        return _by_parts(image, kernel, padding, np.dtype(np.float32 if dtype.itemsize == 8 else np.float64))
    return _by_taps(image, kernel, padding, dtype)


def _largest(array: Array) -> int:
    """The largest absolute value; of bools 1, or 0."""
    return max(abs(int(array.max())), abs(int(array.min())))


def _by_kernels(image: Array, kernel: Array, padding: str) -> Array:
    # Always direct: Winograd's points are no integers, and sums of integers must be exact.
    return functional.conv2d(image[None, None], np.ascontiguousarray(kernel)[None, None], padding=padding,
                             algorithm="direct")[0, 0]


def _by_parts(image: Array, kernel: Array, padding: str, real: np.dtype) -> Array:
    """Complex numbers as two channels: (a + ib) * (c + id) = (ac - bd) + i(ad + bc)."""
    x = np.stack([image.real, image.imag] if image.dtype.kind == "c" else [image]).astype(real, copy=False)
    w = np.stack([kernel.real, kernel.imag] if kernel.dtype.kind == "c" else [kernel]).astype(real, copy=False)
    if len(x) == 1:  # (2, 1, KH, KW): the two parts of the result from the one of the image
        planes = functional.conv2d(x, w[:, None], padding=padding, algorithm="direct")
    elif len(w) == 1:  # the same filter for either part
        planes = functional.conv2d(x[:, None], w[None], padding=padding, algorithm="direct")[:, 0]
    else:
        planes = functional.conv2d(x, np.stack([[w[0], -w[1]], [w[1], w[0]]]), padding=padding, algorithm="direct")
    out = np.empty(planes.shape[1:], np.result_type(real, np.complex64))
    out.real, out.imag = planes
    return out


def _by_taps(image: Array, kernel: Array, padding: str, dtype: np.dtype) -> Array:
    """In the dtype itself, one filter tap after another over blocks of rows that stay in the cache."""
    cells = np.pad(image.astype(dtype, copy=False), _pads(padding, image, kernel))
    weight = kernel.astype(dtype, copy=False)
    (kernel_h, kernel_w) = kernel.shape
    height, width = cells.shape[0] - kernel_h + 1, cells.shape[1] - kernel_w + 1
    out = np.zeros((height, width), dtype)
    rows = max(1, 2**15 // (width * dtype.itemsize))
    with np.errstate(all="ignore"):
        for top in range(0, height, rows):
            block = out[top:top + rows]
            for i, j in np.ndindex(kernel.shape):
                block += cells[top + i:top + i + len(block), j:j + width] * weight[i, j]
    return out


# --- FFT --------------------------------------------------------------------------------------------------------------


def _fft_is_faster(image: Array, kernel: Array, padding: str, dtype: np.dtype) -> bool:
    if min(image.size, kernel.size) * max(image.size, kernel.size) * _TERM < _FFT_FROM:  # an upper limit, quickly
        return False
    if dtype.kind in "fc" and dtype.itemsize > (16 if dtype.kind == "c" else 8):
        return False
    out, size = 1, 1
    for n, k, pad in zip(image.shape, kernel.shape, _pads(padding, image, kernel), strict=True):
        out *= n + sum(pad) - k + 1
        size *= _good_size(max(n + max(pad), k))
    wide = 1.0 if dtype in (np.float16, np.float32, np.complex64) else 2.0
    direct = out * kernel.size * _TERM * wide * (4 if dtype.kind == "c" else 1)
    return direct > _FFT_FROM and size * math.log2(size) * _FFT_CELL * wide * (2 if dtype.kind == "c" else 1) < direct


def _by_fft(image: Array, kernel: Array, padding: str, dtype: np.dtype) -> Array:
    """By the convolution theorem, integers in float64; any value that is not finite spoils all."""
    try:
        from scipy import fft  # three times as fast as NumPy's
    except ImportError:
        fft = np.fft
    real = np.dtype(np.float32 if dtype in (np.float16, np.float32, np.complex64) else np.float64)
    pads = _pads(padding, image, kernel)
    # Cyclic, so what lies behind the end comes back at the start: as long as only cells that are cut off are hit by it.
    shape = tuple(_good_size(max(n + max(pad), k)) for n, k, pad in zip(image.shape, kernel.shape, pads, strict=True))
    flipped = _reversed(kernel)
    axes = tuple(axis for axis in (0, 1) if shape[axis] > 1) or (1,)
    lengths = [shape[axis] for axis in axes]
    with np.errstate(all="ignore"):
        if "c" in (image.dtype.kind, kernel.dtype.kind):
            compute = np.result_type(real, np.complex64)
            product = fft.fftn(image.astype(compute), lengths, axes)
            product = product * fft.fftn(flipped.astype(compute), lengths, axes)
            whole = fft.ifftn(product, lengths, axes)
        else:
            product = fft.rfftn(image.astype(real, copy=False), lengths, axes)
            product = product * fft.rfftn(flipped.astype(real, copy=False), lengths, axes)
            whole = fft.irfftn(product, lengths, axes)
    parts = []
    for n, k, (before, after) in zip(image.shape, kernel.shape, pads, strict=True):
        parts.append(slice(k - 1 - before, n + after))
    return np.ascontiguousarray(whole[tuple(parts)])


@lru_cache(maxsize=256)
def _good_size(n: int) -> int:
    """The smallest number from `n` on that has no prime factor above 5: FFTs of these are fast."""
    best = 1 << (n - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            two = three << max(-(-n // three) - 1, 0).bit_length()
            best = min(best, two)
            three *= 3
        five *= 5
    return best
