"""The oracle: every computation of fastconv in plain NumPy, obviously right. It is the ``"numpy"`` backend as well.

How it works: a window has KH * KW taps, and what one tap sees, over all windows, is a strided slice of the padded input
(:func:`_tap`). Everything here is a loop over the taps with one line of arithmetic on such a slice::

    convolution         out += weight[tap] @ slice          (K, C) @ (C, OH*OW) -> (K, OH*OW)
    gradient of x       slice += weight[tap].T @ dout       (C, K) @ (K, OH*OW) -> (C, OH*OW)
    gradient of weight  dweight[tap] = dout @ slice.T       (K, N*OH*OW) @ (N*OH*OW, C) -> (K, C)
    poolings            best = maximum(best, slice); total += slice

and the gradients with respect to the input go the same way backwards, into the slice. Padding cells are zeros that take
part in the arithmetic, as they should in a convolution; gradients that fall on them are cut off.

Numbers: float16, float32 and complex64 are added up in the dtype of twice that precision or more (float64,
complex128) and rounded once, at the end. Every other dtype is computed in itself, so integers wrap around as they do in
:func:`numpy.matmul`. NumPy's floating-point warnings are kept in: infinity times a padding zero is NaN by rule.

There are two layers. The public functions take what the functions of the same name in :mod:`fastconv` take, without
`algorithm` and `out`. The cores below them take arrays of four axes in native byte order, and a geometry that has been
checked; :mod:`fastconv.dispatch` calls these.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, ParamSpec, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastconv.geometry import (
    Conv2dGeometry,
    Pool2dGeometry,
    Window2dGeometry,
    as_int,
    check_padding_mode,
    conv2d_geometry,
    conv_transpose2d_geometry,
    pool2d_geometry,
    unpool2d_geometry,
    window2d_geometry,
)

__all__ = [
    "avg_pool2d",
    "avg_pool2d_backward",
    "col2im",
    "conv2d",
    "conv2d_backward",
    "conv2d_backward_data",
    "conv2d_backward_weight",
    "conv_transpose2d",
    "global_avg_pool2d",
    "global_max_pool2d",
    "im2col",
    "max_pool2d",
    "max_pool2d_backward",
]

Array = NDArray[Any]
Gradients = tuple[Array | None, Array | None, Array | None]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


# --- windows and taps -----------------------------------------------------------------------------------------------


def _quiet(core: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """`core` without NumPy's floating-point warnings: NaN, infinity and overflow are results here, not accidents."""

    @functools.wraps(core)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with np.errstate(all="ignore"):
            return core(*args, **kwargs)

    return call


def _sum_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What to add up in, so that one rounding at the end is the only one that counts."""
    if dtype in (np.float16, np.float32):
        return np.dtype(np.float64)
    return np.dtype(np.complex128) if dtype == np.complex64 else dtype


def _mean_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What an average comes in: float64 for integers and bool, otherwise the dtype itself."""
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype


def _full(shape: tuple[int, ...], value: Any, dtype: DTypeLike) -> Array:
    """:func:`numpy.full`; a MemoryError, and not NumPy's ValueError, where no address space could hold the array."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > sys.maxsize:
        raise MemoryError(f"an array of shape {shape} and dtype {np.dtype(dtype)} needs {size} bytes")
    return np.full(shape, value, dtype)


def _padded_full(geometry: Window2dGeometry, value: Any, dtype: DTypeLike) -> Array:
    """``(N, C, ...)`` with room for the padding, and for what the last window of a ceil mode reaches behind it."""
    reach = [max(padded, (out - 1) * stride + e) for padded, out, stride, e in
             zip(geometry.padded_size, geometry.out_size, geometry.stride, geometry.extent, strict=True)]
    return _full((geometry.batch, geometry.channels, *reach), value, dtype)


def _inside(cells: Array, geometry: Window2dGeometry) -> Array:
    """View of the padded `cells` without the padding."""
    (top, _), (left, _) = geometry.pads
    height, width = geometry.in_size
    return cells[..., top:top + height, left:left + width]


def _padded(x: Array, geometry: Window2dGeometry, dtype: DTypeLike, value: Any = 0) -> Array:
    cells = _padded_full(geometry, value, dtype)
    _inside(cells, geometry)[...] = x
    return cells


def _taps(geometry: Window2dGeometry) -> Iterator[tuple[int, int]]:
    """The taps of a window in row-major order."""
    return itertools.product(range(geometry.kernel[0]), range(geometry.kernel[1]))


def _tap(cells: Array, geometry: Window2dGeometry, i: int, j: int) -> Array:
    """View of the padded `cells`, ``(..., OH, OW)``: for every window the cell under its tap (i, j)."""
    down, right = (slice(tap * dilation, tap * dilation + (out - 1) * stride + 1, stride) for tap, dilation, out, stride
                   in zip((i, j), geometry.dilation, geometry.out_size, geometry.stride, strict=True))
    return cells[..., down, right]


def as_windows(col: Array, geometry: Window2dGeometry, layout: str) -> Array:
    """View of a column matrix of any layout as ``(N, C, KH, KW, OH, OW)``."""
    n, c, kernel, out = geometry.batch, geometry.channels, geometry.kernel, geometry.out_size
    if layout == "rows":
        return col.reshape(n, *out, c, *kernel).transpose(0, 3, 4, 5, 1, 2)
    if layout == "cs231n":
        return col.reshape(c, *kernel, *out, n).transpose(5, 0, 1, 2, 3, 4)
    return col.reshape(n, c, *kernel, *out)


def _as_groups(planes: Array, groups: int) -> Array:
    """``(N, C, OH, OW)`` as ``(N, groups, C/groups, OH*OW)``."""
    n, channels, height, width = planes.shape
    return planes.reshape(n, groups, channels // groups, height * width)


def _tap_matrices(weight: Array, geometry: Conv2dGeometry, dtype: np.dtype[Any]) -> Array:
    """``(K, C/groups, KH, KW)`` as ``(KH, KW, groups, K/groups, C/groups)``: a matrix for each tap and group."""
    by_group = weight.reshape(geometry.groups, -1, *weight.shape[1:])
    return np.array(by_group.transpose(3, 4, 0, 1, 2), dtype, order="C")


# --- cores: lowering ------------------------------------------------------------------------------------------------


@_quiet
def im2col_core(x: Array, geometry: Window2dGeometry, layout: str, pad_value: Any = 0) -> Array:
    """``(N, C, H, W)`` -> the column matrix in `layout`, in `x`'s dtype."""
    col = _full(geometry.columns_shape(layout), 0, x.dtype)
    windows, cells = as_windows(col, geometry, layout), _padded(x, geometry, x.dtype, pad_value)
    for i, j in _taps(geometry):
        windows[:, :, i, j] = _tap(cells, geometry, i, j)
    return col


@_quiet
def col2im_core(col: Array, geometry: Window2dGeometry, layout: str) -> Array:
    """The column matrix in `layout` -> ``(N, C, H, W)`` in `col`'s dtype: the sum over all windows that see a cell."""
    windows, cells = as_windows(col, geometry, layout), _padded_full(geometry, 0, _sum_dtype(col.dtype))
    for i, j in _taps(geometry):
        _tap(cells, geometry, i, j)[...] += windows[:, :, i, j]
    return np.array(_inside(cells, geometry), col.dtype, order="C")


# --- cores: convolution ---------------------------------------------------------------------------------------------


@_quiet
def conv2d_core(x: Array, weight: Array, bias: Array | None, geometry: Conv2dGeometry, relu: bool = False) -> Array:
    """``(N, C, H, W) * (K, C/groups, KH, KW) [+ (K,)] -> (N, K, OH, OW)``, in the dtype that all of them make."""
    dtype = np.result_type(x.dtype, weight.dtype, *(() if bias is None else (bias.dtype,)))
    cells = _padded(x, geometry, _sum_dtype(dtype))
    matrices = _tap_matrices(weight, geometry, cells.dtype)
    out = _full(geometry.output_shape, 0, cells.dtype)
    total = _as_groups(out, geometry.groups)
    for i, j in _taps(geometry):
        # (groups, K/groups, C/groups) @ (N, groups, C/groups, OH*OW) -> (N, groups, K/groups, OH*OW)
        total += np.matmul(matrices[i, j], _as_groups(_tap(cells, geometry, i, j), geometry.groups))
    if bias is not None:
        out += bias[:, np.newaxis, np.newaxis]
    if relu:
        np.maximum(out, out.dtype.type(0), out=out)  # maximum, unlike a comparison with 0, keeps NaN
    return out.astype(dtype, copy=False)


@_quiet
def conv2d_backward_data_core(dout: Array, weight: Array, geometry: Conv2dGeometry) -> Array:
    """``(N, K, OH, OW), (K, C/groups, KH, KW) -> (N, C, H, W)``: the gradient with respect to `x`."""
    dtype = np.result_type(dout.dtype, weight.dtype)
    return np.array(_data_gradient(dout, weight, geometry, _sum_dtype(dtype)), dtype, order="C")


@_quiet
def conv_transpose2d_core(x: Array, weight: Array, bias: Array | None, geometry: Conv2dGeometry) -> Array:
    """:func:`conv2d_backward_data_core` of `x`, plus a bias for each of the result's channels."""
    dtype = np.result_type(x.dtype, weight.dtype, *(() if bias is None else (bias.dtype,)))
    out = _data_gradient(x, weight, geometry, _sum_dtype(dtype))
    if bias is not None:
        out += bias[:, np.newaxis, np.newaxis]
    return np.array(out, dtype, order="C")


def _data_gradient(dout: Array, weight: Array, geometry: Conv2dGeometry, dtype: np.dtype[Any]) -> Array:
    matrices = _tap_matrices(weight, geometry, dtype)
    dout = _as_groups(dout.astype(dtype, copy=False), geometry.groups)
    cells = _padded_full(geometry, 0, dtype)
    for i, j in _taps(geometry):
        # (groups, C/groups, K/groups) @ (N, groups, K/groups, OH*OW) -> (N, groups, C/groups, OH*OW)
        seen = _tap(cells, geometry, i, j)
        seen += np.matmul(matrices[i, j].swapaxes(1, 2), dout).reshape(seen.shape)
    return _inside(cells, geometry)


@_quiet
def conv2d_backward_weight_core(dout: Array, x: Array, geometry: Conv2dGeometry) -> Array:
    """``(N, K, OH, OW), (N, C, H, W) -> (K, C/groups, KH, KW)``: the gradient with respect to `weight`."""
    dtype = np.result_type(dout.dtype, x.dtype)

    def as_matrices(planes: Array) -> Array:  # (N, C, OH, OW) -> (groups, C/groups, N*OH*OW)
        by_group = _as_groups(planes, geometry.groups).transpose(1, 2, 0, 3)
        return by_group.reshape(*by_group.shape[:2], geometry.batch * geometry.positions)

    cells = _padded(x, geometry, _sum_dtype(dtype))
    gradient = as_matrices(dout.astype(cells.dtype, copy=False))
    dweight = _full(geometry.weight_shape, 0, cells.dtype)
    by_group = dweight.reshape(geometry.groups, -1, *dweight.shape[1:])
    for i, j in _taps(geometry):
        # (groups, K/groups, N*OH*OW) @ (groups, N*OH*OW, C/groups) -> (groups, K/groups, C/groups)
        by_group[..., i, j] = np.matmul(gradient, as_matrices(_tap(cells, geometry, i, j)).swapaxes(1, 2))
    return dweight.astype(dtype, copy=False)


@_quiet
def conv2d_backward_bias_core(dout: Array) -> Array:
    """``(N, K, OH, OW) -> (K,)``: the gradient with respect to `bias`."""
    total: Array = dout.sum(axis=(0, 2, 3), dtype=_sum_dtype(dout.dtype))
    return total.astype(dout.dtype, copy=False)


# --- cores: pooling -------------------------------------------------------------------------------------------------


@_quiet
def max_pool2d_core(x: Array, geometry: Pool2dGeometry) -> tuple[Array, NDArray[np.int64]]:
    """``(N, C, H, W) -> (N, C, OH, OW)`` twice: the largest cells, in `x`'s dtype, and where in their plane they are.

    Every window must have a cell inside the image: see :attr:`Pool2dGeometry.empty_window`.
    """
    height, width = geometry.in_size
    cells = _padded(x, geometry, x.dtype)
    numbers = np.full(cells.shape[2:], -1, np.int64)  # of the cells of a plane; -1 is padding
    _inside(numbers, geometry)[...] = np.arange(height * width).reshape(height, width)

    best = _full(geometry.output_shape, 0, x.dtype)
    indices = _full(geometry.output_shape, -1, np.int64)  # -1: the window has met no cell of the image yet
    for i, j in _taps(geometry):
        cell, number = _tap(cells, geometry, i, j), _tap(numbers, geometry, i, j)
        # Taps come in row-major order, and only what is larger takes over: the first of equals and the first NaN stay.
        better = (indices < 0) | (cell > best)
        if x.dtype.kind in "fc":
            better |= np.isnan(cell) & ~np.isnan(best)
        better &= number >= 0
        np.copyto(best, cell, where=better)
        np.copyto(indices, number, where=better)
    return best, indices


@_quiet
def max_pool2d_backward_core(dout: Array, indices: Array, geometry: Window2dGeometry) -> Array:
    """``(N, C, OH, OW)`` twice ``-> (N, C, H, W)``. Of the geometry only the `input_shape` is read."""
    n, c, height, width = geometry.input_shape
    dx = _full(geometry.input_shape, 0, _sum_dtype(dout.dtype))
    first = np.arange(n * c, dtype=np.int64).reshape(n, c, 1, 1) * (height * width)  # cell of each plane
    np.add.at(dx.reshape(-1), first + indices, dout.astype(dx.dtype))
    return dx.astype(dout.dtype, copy=False)


@_quiet
def avg_pool2d_core(x: Array, geometry: Pool2dGeometry, count_include_pad: bool = True,
                    divisor_override: int | None = None) -> Array:
    """``(N, C, H, W) -> (N, C, OH, OW)``, in float64 where `x` has integers, otherwise in `x`'s dtype."""
    divisors = average_divisors(geometry, count_include_pad, divisor_override)
    dtype = _mean_dtype(x.dtype)
    cells = _padded(x, geometry, _sum_dtype(dtype))
    total = _full(geometry.output_shape, 0, cells.dtype)
    for i, j in _taps(geometry):
        total += _tap(cells, geometry, i, j)
    total /= divisors
    return total.astype(dtype, copy=False)


@_quiet
def avg_pool2d_backward_core(dout: Array, geometry: Pool2dGeometry, count_include_pad: bool = True,
                             divisor_override: int | None = None) -> Array:
    """``(N, C, OH, OW) -> (N, C, H, W)``, in float64 where `dout` has integers, otherwise in `dout`'s dtype."""
    divisors = average_divisors(geometry, count_include_pad, divisor_override)
    dtype = _mean_dtype(dout.dtype)
    cells = _padded_full(geometry, 0, _sum_dtype(dtype))
    share = dout.astype(cells.dtype) / divisors
    for i, j in _taps(geometry):
        _tap(cells, geometry, i, j)[...] += share
    return np.array(_inside(cells, geometry), dtype, order="C")


def average_divisors(geometry: Pool2dGeometry, count_include_pad: bool = True,
                     divisor_override: int | None = None) -> NDArray[np.float64]:
    """What each window's sum is divided by, ``(OH, OW)``.

    Raises
    ------
    ValueError
        Where that would be 0: `divisor_override` is, or padding does not count and a window has nothing else.
    TypeError
        Where `divisor_override` is neither None nor an int.
    """
    if divisor_override is not None:
        divisor = as_int("divisor_override", divisor_override)
        if divisor == 0:
            raise ValueError("divisor_override must not be 0")
        return np.full(geometry.out_size, divisor, np.float64)
    if not count_include_pad and geometry.empty_window is not None:
        raise ValueError(f"with count_include_pad=False {geometry.empty_window}")
    rows, columns = (np.array(geometry.divisors(axis, count_include_pad), np.float64) for axis in (0, 1))
    return np.outer(rows, columns)


# --- arguments ------------------------------------------------------------------------------------------------------


def _as_numeric(name: str, value: ArrayLike) -> Array:
    """`value` as an array of numbers in native byte order."""
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _as_common(**arrays: ArrayLike) -> list[Array]:
    """`arrays` in the one dtype that they make together."""
    numeric = [_as_numeric(name, value) for name, value in arrays.items()]
    dtype = np.result_type(*(array.dtype for array in numeric))
    return [array.astype(dtype, copy=False) for array in numeric]


def _as_batch(array: Array, rank: int = 3) -> Array:
    """`array`, with an axis for the batch put in front where it has none, that is where it has `rank` axes."""
    return array[np.newaxis] if array.ndim == rank else array


def _without_batch(result: Array, single: bool) -> Array:
    """`result`, or a copy of its only image where the input was a `single` one: results own their memory."""
    return result[0].copy() if single else result


def _check_shape(name: str, array: Array, expected: tuple[int, ...], single: bool = False) -> None:
    expected = expected[1:] if single else expected
    if array.shape != expected:
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")


def _as_pad_value(value: Any, dtype: np.dtype[Any]) -> Any:
    """`value` in `dtype`, where that does not change it but by rounding."""
    number = np.asarray(value)
    if number.ndim or number.dtype.kind not in "biufc":
        raise TypeError(f"pad_value must be a number, got {value!r}")
    holds = number.dtype.kind != "c" or dtype.kind == "c"
    with np.errstate(all="ignore"):
        cast = number.astype(dtype) if holds else number
    if not holds or (dtype.kind in "biu" and cast != number):
        raise ValueError(f"pad_value must be a number that dtype {dtype} can hold, got {value!r}")
    return cast


# --- public functions: lowering -------------------------------------------------------------------------------------


def im2col(x: ArrayLike, filter_h: int, filter_w: int, stride: Any = 1, pad: Any = 0, *, dilation: Any = 1,
           layout: str = "rows", pad_value: Any = 0) -> Array:
    """The windows of an image as a matrix. Parameters and result as :func:`fastconv.im2col`."""
    x = _as_numeric("x", x)
    geometry = window2d_geometry(x.shape, filter_h, filter_w, stride, pad, dilation)
    geometry.columns_shape(layout)
    col = im2col_core(_as_batch(x), geometry, layout, _as_pad_value(pad_value, x.dtype))
    return _without_batch(col, x.ndim == 3 and layout in ("columns", "windows"))


def col2im(col: ArrayLike, input_shape: Any, filter_h: int, filter_w: int, stride: Any = 1, pad: Any = 0, *,
           dilation: Any = 1, layout: str = "rows") -> Array:
    """The adjoint of :func:`im2col`. Parameters and result as :func:`fastconv.col2im`."""
    col = _as_numeric("col", col)
    geometry = window2d_geometry(input_shape, filter_h, filter_w, stride, pad, dilation, name="input_shape")
    single = len(input_shape) == 3
    _check_shape("col", col, geometry.columns_shape(layout), single and layout in ("columns", "windows"))
    return _without_batch(col2im_core(col, geometry, layout), single)


# --- public functions: convolution ----------------------------------------------------------------------------------


def conv2d(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, stride: Any = 1, padding: Any = 0,
           dilation: Any = 1, groups: int = 1, *, activation: Literal["relu"] | None = None,
           padding_mode: str = "zeros") -> Array:
    """Convolution (cross-correlation). Parameters and result as :func:`fastconv.conv2d`."""
    x, weight = _as_numeric("x", x), _as_numeric("weight", weight)
    geometry = conv2d_geometry(x.shape, weight.shape, stride, padding, dilation, groups)
    x, geometry = _continued(x, geometry, padding_mode)
    bias = _as_bias(bias, geometry.out_channels)
    if activation not in (None, "relu"):
        raise ValueError(f"activation must be None or 'relu', got {activation!r}")
    if activation is not None and "c" in (x.dtype.kind, weight.dtype.kind, "" if bias is None else bias.dtype.kind):
        raise TypeError("activation 'relu' needs real numbers, got complex ones")
    return _without_batch(conv2d_core(_as_batch(x), weight, bias, geometry, activation == "relu"), x.ndim == 3)


#: What np.pad calls the padding modes.
_NUMPY_MODES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _continued(x: Array, geometry: Conv2dGeometry, mode: str) -> tuple[Array, Conv2dGeometry]:
    """`x`, with the padding around it where that is not zeros, and the geometry of the rest of the convolution."""
    if check_padding_mode(mode, geometry) == "zeros":
        return x, geometry
    return np.pad(x, ((0, 0),) * (x.ndim - 2) + geometry.pads, mode=_NUMPY_MODES[mode]), geometry.of_padded


def _continued_data_gradient(dout: Array, weight: Array, geometry: Conv2dGeometry, mode: str) -> Array:
    """:func:`conv2d_backward_data_core`; what padding gets goes to the cells that it was made from."""
    if check_padding_mode(mode, geometry) == "zeros":
        return conv2d_backward_data_core(dout, weight, geometry)
    cells = conv2d_backward_data_core(dout, weight, geometry.of_padded)
    height, width = geometry.in_size
    numbers = np.pad(np.arange(height * width).reshape(height, width), geometry.pads, mode=_NUMPY_MODES[mode])
    planes = geometry.batch * geometry.channels
    first = np.arange(planes)[:, np.newaxis] * (height * width)  # cell of each plane
    dx = _full((planes * height * width,), 0, _sum_dtype(cells.dtype))
    with np.errstate(all="ignore"):
        np.add.at(dx, first + numbers.ravel(), cells.reshape(planes, numbers.size).astype(dx.dtype))
        return dx.reshape(geometry.input_shape).astype(cells.dtype, copy=False)


def _as_bias(bias: ArrayLike | None, channels: int) -> Array | None:
    if bias is None:
        return None
    bias = _as_numeric("bias", bias)
    _check_shape("bias", bias, (channels,))
    return bias


def conv2d_backward(dout: ArrayLike, x: ArrayLike, weight: ArrayLike, stride: Any = 1, padding: Any = 0,
                    dilation: Any = 1, groups: int = 1, *, need: Iterable[str] = ("dx", "dw", "db"),
                    padding_mode: str = "zeros") -> Gradients:
    """The gradients of :func:`conv2d`. Parameters and result as :func:`fastconv.conv2d_backward`."""
    dout, x, weight = _as_common(dout=dout, x=x, weight=weight)
    geometry = conv2d_geometry(x.shape, weight.shape, stride, padding, dilation, groups)
    _check_shape("dout", dout, geometry.output_shape, x.ndim == 3)
    need = (need,) if isinstance(need, str) else tuple(need)
    for name in need:
        if name not in ("dx", "dw", "db"):
            raise ValueError(f"need must be made of 'dx', 'dw' and 'db', got {name!r}")
    single, dout, x = x.ndim == 3, _as_batch(dout), _as_batch(x)
    seen, without = _continued(x, geometry, padding_mode)
    return (
        _without_batch(_continued_data_gradient(dout, weight, geometry, padding_mode), single) if "dx" in need else None,
        conv2d_backward_weight_core(dout, seen, without) if "dw" in need else None,
        conv2d_backward_bias_core(dout) if "db" in need else None,
    )


def conv2d_backward_data(dout: ArrayLike, weight: ArrayLike, input_shape: Any, stride: Any = 1, padding: Any = 0,
                         dilation: Any = 1, groups: int = 1, *, padding_mode: str = "zeros") -> Array:
    """The gradient of :func:`conv2d` in `x`. Parameters and result as :func:`fastconv.conv2d_backward_data`."""
    dout, weight = _as_numeric("dout", dout), _as_numeric("weight", weight)
    geometry = conv2d_geometry(input_shape, weight.shape, stride, padding, dilation, groups, x_name="input_shape")
    single = len(input_shape) == 3
    _check_shape("dout", dout, geometry.output_shape, single)
    return _without_batch(_continued_data_gradient(_as_batch(dout), weight, geometry, padding_mode), single)


def conv2d_backward_weight(dout: ArrayLike, x: ArrayLike, weight_shape: Any, stride: Any = 1, padding: Any = 0,
                           dilation: Any = 1, groups: int = 1, *, padding_mode: str = "zeros") -> Array:
    """The gradient of :func:`conv2d` in `weight`. Parameters and result as :func:`fastconv.conv2d_backward_weight`."""
    dout, x = _as_numeric("dout", dout), _as_numeric("x", x)
    geometry = conv2d_geometry(x.shape, weight_shape, stride, padding, dilation, groups, weight_name="weight_shape")
    _check_shape("dout", dout, geometry.output_shape, x.ndim == 3)
    return conv2d_backward_weight_core(_as_batch(dout), *_continued(_as_batch(x), geometry, padding_mode))


def conv_transpose2d(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, stride: Any = 1, padding: Any = 0,
                     output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Array:
    """Transposed convolution. Parameters and result as :func:`fastconv.conv_transpose2d`."""
    x, weight = _as_numeric("x", x), _as_numeric("weight", weight)
    geometry = conv_transpose2d_geometry(x.shape, weight.shape, stride, padding, output_padding, groups, dilation)
    bias = _as_bias(bias, geometry.channels)
    return _without_batch(conv_transpose2d_core(_as_batch(x), weight, bias, geometry), x.ndim == 3)


# --- public functions: pooling --------------------------------------------------------------------------------------


@overload
def max_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = ..., padding: Any = ..., dilation: Any = ...,
               ceil_mode: bool = ..., return_indices: Literal[False] = ...) -> Array: ...
@overload
def max_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = ..., padding: Any = ..., dilation: Any = ...,
               ceil_mode: bool = ..., *, return_indices: Literal[True]) -> tuple[Array, NDArray[np.int64]]: ...
@overload
def max_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = ..., padding: Any = ..., dilation: Any = ...,
               ceil_mode: bool = ..., return_indices: bool = ...) -> Array | tuple[Array, NDArray[np.int64]]: ...
def max_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False) -> Array | tuple[Array, NDArray[np.int64]]:
    """The largest cell of each window. Parameters and result as :func:`fastconv.max_pool2d`."""
    x = _as_numeric("x", x)
    geometry = pool2d_geometry(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    if geometry.empty_window is not None:
        raise ValueError(geometry.empty_window)
    values, indices = (_without_batch(result, x.ndim == 3) for result in max_pool2d_core(_as_batch(x), geometry))
    return (values, indices) if return_indices else values


def max_pool2d_backward(dout: ArrayLike, indices: ArrayLike, input_shape: Any) -> Array:
    """The gradient of :func:`max_pool2d`. Parameters and result as :func:`fastconv.max_pool2d_backward`."""
    dout, indices = _as_numeric("dout", dout), _as_numeric("indices", indices)
    geometry = unpool2d_geometry(dout.shape, indices.shape, input_shape)
    cells = math.prod(geometry.in_size)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {indices.dtype}")
    if indices.size and not 0 <= indices.min() <= indices.max() < cells:
        raise ValueError(f"indices must be from 0 to {cells - 1} with an input_shape of {tuple(input_shape)}, got "
                         f"{indices.min()} to {indices.max()}")
    dx = max_pool2d_backward_core(_as_batch(dout), _as_batch(indices.astype(np.int64, copy=False)), geometry)
    return _without_batch(dx, dout.ndim == 3)


def avg_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None, *, dilation: Any = 1) -> Array:
    """The mean of each window. Parameters and result as :func:`fastconv.avg_pool2d`."""
    x = _as_numeric("x", x)
    geometry = pool2d_geometry(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return _without_batch(avg_pool2d_core(_as_batch(x), geometry, count_include_pad, divisor_override), x.ndim == 3)


def avg_pool2d_backward(dout: ArrayLike, input_shape: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
                        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None, *,
                        dilation: Any = 1) -> Array:
    """The gradient of :func:`avg_pool2d`. Parameters and result as :func:`fastconv.avg_pool2d_backward`."""
    dout = _as_numeric("dout", dout)
    geometry = pool2d_geometry(input_shape, kernel_size, stride, padding, dilation, ceil_mode, x_name="input_shape")
    single = len(input_shape) == 3
    _check_shape("dout", dout, geometry.output_shape, single)
    dx = avg_pool2d_backward_core(_as_batch(dout), geometry, count_include_pad, divisor_override)
    return _without_batch(dx, single)


def _as_planes(x: ArrayLike) -> Array:
    """`x`, whose shape a pooling with a window of its whole size takes."""
    x = _as_numeric("x", x)
    pool2d_geometry(x.shape, x.shape[-2:] if x.ndim in (3, 4) else 1)
    return x


@_quiet
def global_avg_pool2d(x: ArrayLike) -> Array:
    """The mean of each plane, ``(N, C, 1, 1)``. Parameters and result as :func:`fastconv.global_avg_pool2d`."""
    x = _as_planes(x)
    dtype = _mean_dtype(x.dtype)
    total: Array = x.sum(axis=(-2, -1), keepdims=True, dtype=_sum_dtype(dtype))
    return (total / math.prod(x.shape[-2:])).astype(dtype, copy=False)


@_quiet
def global_max_pool2d(x: ArrayLike) -> Array:
    """The largest cell of each plane, ``(N, C, 1, 1)``. Parameters and result as :func:`fastconv.global_max_pool2d`."""
    maximum: Array = _as_planes(x).max(axis=(-2, -1), keepdims=True)
    return maximum
