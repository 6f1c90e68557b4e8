"""Poolings that are made of the poolings: adaptive ones, Lp, and unpooling, with PyTorch's names and rules."""

from __future__ import annotations

import math
import operator
from functools import cached_property
from numbers import Real
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from . import dispatch, memory
from .functional import (
    _as_array,
    _as_indices,
    _average_dtype,
    _outside,
    _prepared,
    avg_pool2d,
    avg_pool2d_backward,
    max_pool2d,
)
from .geometry import Pair, as_flag, as_int, as_pair, as_shape, pool2d_geometry

__all__ = ["adaptive_avg_pool2d", "adaptive_avg_pool2d_backward", "adaptive_max_pool2d", "lp_pool2d",
           "lp_pool2d_backward", "max_unpool2d", "max_unpool2d_backward"]

Array = np.ndarray


# --- adaptive pooling -------------------------------------------------------------------------------------------------


def _adaptive_size(output_size: Any, size: Pair) -> Pair:
    """`output_size` as a pair; None in it is the size of the image."""
    if hasattr(output_size, "__len__") and len(output_size) == 2 and None in tuple(output_size):
        output_size = tuple(n if asked is None else asked for asked, n in zip(output_size, size, strict=True))
    return as_pair("output_size", size if output_size is None else output_size)


def _bounds(size: int, out: int) -> Array:
    """First cell of each window along one axis, and the one behind its last, ``(out, 2)``."""
    memory.check_bytes(f"an output_size of {out} along an axis", 4 * 8 * out)
    edges = np.arange(out + 1, dtype=np.int64) * size  # both at most 2**31
    return np.stack([edges[:-1] // out, -(-edges[1:] // out)], axis=1)


class _Windows:
    """The windows of an adaptive pooling, made equal: along each axis, the cells of one window after those of another.

    Where the size of the output divides the image's they are equal and lie side by side as they are. Otherwise windows
    shorter than the longest one are filled up with their last cell, which changes no maximum and not its first place.
    """

    def __init__(self, size: Pair, output_size: Any) -> None:
        self.size, self.out_size = size, _adaptive_size(output_size, size)
        self.equal = size[0] % self.out_size[0] == size[1] % self.out_size[1] == 0
        self.bounds = [_bounds(n, out) for n, out in zip(size, self.out_size, strict=True)]
        self.kernel = tuple(int((axis[:, 1] - axis[:, 0]).max()) for axis in self.bounds)

    @cached_property
    def cells(self) -> tuple[list[Array], list[Array]]:
        """For the rows and for the columns of the equal windows: where each is in the image, and which only fill up."""
        memory.check_bytes(f"an output_size of {self.out_size} for a size of {self.size}",
                           4 * 8 * sum(map(operator.mul, self.out_size, self.kernel)))
        places = [axis[:, :1] + np.arange(longest) for axis, longest in zip(self.bounds, self.kernel, strict=True)]
        stops = [axis[:, 1:] for axis in self.bounds]
        return ([np.minimum(place, stop - 1).ravel() for place, stop in zip(places, stops, strict=True)],
                [np.flatnonzero((place >= stop).ravel()) for place, stop in zip(places, stops, strict=True)])

    def gather(self, x: Array) -> Array:
        if self.equal:
            return x
        rows, columns = self.cells[0]
        shape = (*x.shape[:-2], len(rows), len(columns))
        memory.check_bytes(f"the windows of output_size {self.out_size}, of shape {shape},", math.prod(shape) * x.itemsize)
        return x[..., rows, :][..., columns]

    def counts(self) -> Array:
        """Cells of each window, ``(OH, OW)``."""
        rows, columns = (axis[:, 1] - axis[:, 0] for axis in self.bounds)
        return rows[:, None] * columns


def adaptive_avg_pool2d(x: ArrayLike, output_size: Any) -> Array:
    """Average of windows that are as large as the size of the output asks for.

    Along an axis of size n the window of output i covers the cells from ``floor(i*n/out)`` up to, and without,
    ``ceil((i+1)*n/out)``.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        Dtypes as in :func:`avg_pool2d`.
    output_size : int or pair of int or None
        ``(OH, OW)``; None keeps the size of the image.

    Returns
    -------
    ndarray, (N, C, OH, OW) or (C, OH, OW)

    Raises
    ------
    ValueError, TypeError
        Where `x` has no cells or `output_size` is no size.
    """
    image = _as_array("x", x, (3, 4))
    windows = _Windows(_image_size("x", image.shape), output_size)
    if windows.equal:
        return avg_pool2d(image, windows.kernel)
    dtype = _average_dtype(image.dtype)
    cells = windows.gather(_prepared("x", image, dispatch.compute_dtype(dtype)))
    rows, columns = windows.cells[1]
    cells[..., rows, :] = 0
    cells[..., columns] = 0
    total = avg_pool2d(cells, windows.kernel, divisor_override=1)
    with np.errstate(all="ignore"):
        total /= windows.counts().astype(total.real.dtype)
        return total.astype(dtype, copy=False)


def adaptive_avg_pool2d_backward(dout: ArrayLike, input_shape: Any) -> Array:
    """The gradient of :func:`adaptive_avg_pool2d`.

    Parameters
    ----------
    dout : array_like, (N, C, OH, OW) or (C, OH, OW)
        Gradient with respect to the output.
    input_shape : tuple of int
        Shape of the image, and so of the result.

    Returns
    -------
    ndarray
        Of shape `input_shape`.

    Raises
    ------
    ValueError, TypeError
        Where the shapes do not fit together.
    """
    gradient = _as_array("dout", dout, (3, 4))
    shape = as_shape("input_shape", input_shape, (gradient.ndim,))
    size = _image_size("input_shape", shape)
    if gradient.shape[:-2] != shape[:-2]:
        raise ValueError(f"dout must have the batch and channels of input_shape {shape}, got dout.shape {gradient.shape}")
    dtype = _average_dtype(gradient.dtype)
    compute = dispatch.compute_dtype(dtype)
    memory.check_bytes(f"the result, of input_shape {shape},", math.prod(shape) * compute.itemsize)
    windows = _Windows(size, gradient.shape[-2:])
    if windows.equal:
        return avg_pool2d_backward(gradient, shape, windows.kernel)
    with np.errstate(all="ignore"):
        share = gradient.astype(compute) / windows.counts().astype(compute)
        lines = np.zeros((*shape[:-1], windows.out_size[1]), compute)
        for i, (start, stop) in enumerate(windows.bounds[0]):
            lines[..., start:stop, :] += share[..., i:i + 1, :]
        dx = np.zeros(shape, compute)
        for j, (start, stop) in enumerate(windows.bounds[1]):
            dx[..., start:stop] += lines[..., j:j + 1]
        return dx.astype(dtype, copy=False)


@overload
def adaptive_max_pool2d(x: ArrayLike, output_size: Any, return_indices: Literal[False] = ...) -> Array: ...
@overload
def adaptive_max_pool2d(x: ArrayLike, output_size: Any, return_indices: Literal[True]) -> tuple[Array, Array]: ...
def adaptive_max_pool2d(x: ArrayLike, output_size: Any, return_indices: bool = False) -> Array | tuple[Array, Array]:
    """Maximum of windows that are as large as the size of the output asks for.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        Any numeric dtype, which the result keeps.
    output_size
        As in :func:`adaptive_avg_pool2d`, and so are the windows.
    return_indices : bool
        Also return where the maximum was found, as :func:`max_pool2d` does; :func:`max_pool2d_backward` takes these.

    Returns
    -------
    values : ndarray, (N, C, OH, OW) or (C, OH, OW)
    indices : ndarray of int64
        Only with `return_indices`.

    Raises
    ------
    ValueError, TypeError
        Where `x` has no cells or `output_size` is no size.
    """
    image = _as_array("x", x, (3, 4))
    windows = _Windows(_image_size("x", image.shape), output_size)
    wanted = as_flag("return_indices", return_indices)
    cells = windows.gather(image)
    if not wanted:
        return max_pool2d(cells, windows.kernel)
    values, indices = max_pool2d(cells, windows.kernel, return_indices=True)
    if not windows.equal:
        row, column = np.divmod(indices, cells.shape[-1])
        rows, columns = windows.cells[0]
        indices = rows[row] * windows.size[1] + columns[column]
    return values, indices


def _image_size(name: str, shape: tuple[int, ...]) -> Pair:
    if min(shape[-3:]) < 1:
        raise ValueError(f"{name} must have at least one channel, row and column, got shape {shape}")
    return shape[-2], shape[-1]


# --- Lp pooling -------------------------------------------------------------------------------------------------------


def lp_pool2d(x: ArrayLike, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Array:
    """The `norm_type`-th root of the sum of that power of each window's cells.

    ``(sum of x**p) ** (1/p)``: a sum for p = 1, the Euclidean norm for 2, and for infinity the largest absolute value.
    Finite powers are of the cells themselves, not of their absolute values: the root of a negative sum is NaN. In
    `ceil_mode` a window that ends behind the image counts as if its other cells had the mean of those inside. Both
    rules are PyTorch's.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        Dtypes as in :func:`avg_pool2d`, without complex ones.
    norm_type : float
        p, above 0.
    kernel_size, stride, ceil_mode
        As in :func:`max_pool2d`.

    Returns
    -------
    ndarray, (N, C, OH, OW) or (C, OH, OW)

    Raises
    ------
    ValueError, TypeError
        Where shapes and parameters do not fit together.
    """
    image, p, dtype = _lp_arguments(x, norm_type)
    if math.isinf(p):
        return max_pool2d(np.abs(image.astype(dtype)), kernel_size, stride, ceil_mode=ceil_mode)
    with np.errstate(all="ignore"):
        total = _lp_sums(image.astype(dispatch.compute_dtype(dtype)), p, kernel_size, stride, ceil_mode)
        return np.asarray(total ** (1 / p)).astype(dtype, copy=False)


def lp_pool2d_backward(dout: ArrayLike, x: ArrayLike, norm_type: float, kernel_size: Any, stride: Any = None,
                       ceil_mode: bool = False) -> Array:
    """The gradient of :func:`lp_pool2d`, 0 where the result is.

    Parameters
    ----------
    dout : array_like, (N, C, OH, OW) or (C, OH, OW)
        Gradient with respect to the output.
    x, norm_type, kernel_size, stride, ceil_mode
        As in :func:`lp_pool2d`, with a finite `norm_type`.

    Returns
    -------
    ndarray
        Of the shape of `x`.

    Raises
    ------
    ValueError, TypeError
        Where shapes and parameters do not fit together.
    """
    gradient = _as_array("dout", dout, (3, 4))
    image, p, dtype = _lp_arguments(x, norm_type)
    if math.isinf(p):
        raise ValueError("norm_type must be finite, got inf: max_pool2d_backward has the gradient of a maximum")
    geometry = pool2d_geometry(image.shape, kernel_size, stride, 0, 1, as_flag("ceil_mode", ceil_mode))
    expected = geometry.output_shape if image.ndim == 4 else geometry.output_shape[1:]
    if gradient.shape != expected:
        raise ValueError(f"dout must have the shape of the output, {expected}, got {gradient.shape}")
    dtype = np.result_type(dtype, gradient.dtype)
    with np.errstate(all="ignore"):
        image, gradient = (array.astype(dispatch.compute_dtype(dtype), order="C") for array in (image, gradient))
        total = _lp_sums(image, p, kernel_size, stride, ceil_mode)
        # d/dx (sum x**p)**(1/p) = (sum x**p)**(1/p - 1) * x**(p - 1)
        share = np.where(total == 0, 0, gradient * geometry.taps * total ** (1 / p - 1))
        dx = avg_pool2d_backward(share, image.shape, kernel_size, stride, ceil_mode=ceil_mode)
        return np.asarray(dx * image ** (p - 1)).astype(dtype, copy=False)


def _lp_arguments(x: ArrayLike, norm_type: Any) -> tuple[Array, float, np.dtype]:
    image = _as_array("x", x, (3, 4))
    if image.dtype.kind == "c":
        raise TypeError(f"x must be real, got dtype {image.dtype}")
    if isinstance(norm_type, bool) or not isinstance(norm_type, Real):
        raise TypeError(f"norm_type must be a number, got {norm_type!r}")
    try:
        p = float(norm_type)
    except OverflowError:
        raise ValueError(f"norm_type must be infinity or a number that a float holds, got {norm_type!r}") from None
    if not p > 0:
        raise ValueError(f"norm_type must be above 0, got {norm_type!r}")
    return image, p, _average_dtype(image.dtype)


def _lp_sums(image: Array, p: float, kernel_size: Any, stride: Any, ceil_mode: bool) -> Array:
    height, width = as_pair("kernel_size", kernel_size)
    return avg_pool2d(image ** p, kernel_size, stride, ceil_mode=ceil_mode) * (height * width)


# --- unpooling --------------------------------------------------------------------------------------------------------


def max_unpool2d(x: ArrayLike, indices: ArrayLike, kernel_size: Any, stride: Any = None, padding: Any = 0,
                 output_size: Any = None) -> Array:
    """Put each cell where :func:`max_pool2d` found it, among zeros: the inverse as far as there is one.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        Any numeric dtype, which the result keeps.
    indices : array_like of int, same shape
        As :func:`max_pool2d` returns them. Of cells with the same index the last one in row-major order stays.
    kernel_size, stride : int or pair of int
        Of the pooling.
    padding : int or pair of int
        Of the pooling.
    output_size : tuple of int, optional
        Size of the result, ``(OH, OW)`` or the whole shape; by default ``(H-1)*stride - 2*padding + kernel_size``, from
        which it may differ by less than a stride.

    Returns
    -------
    ndarray, (N, C, OH, OW) or (C, OH, OW)

    Raises
    ------
    ValueError
        Where shapes do not fit together, or an index is outside of the result.
    TypeError
        Where `indices` are not integers.
    """
    cells, places = _as_array("x", x, (3, 4)), _as_indices(indices).astype(np.int64, copy=False)
    if places.shape != cells.shape:
        raise ValueError(f"indices must have the shape of x, {cells.shape}, got {places.shape}")
    out_size = _unpooled_size(cells.shape, kernel_size, stride, padding, output_size)
    _check_range(places, out_size)
    planes, count = math.prod(cells.shape[:-2]), math.prod(out_size)
    memory.check_bytes(f"the result of size {out_size}", planes * count * cells.itemsize)
    out = np.zeros((*cells.shape[:-2], *out_size), cells.dtype.newbyteorder("="))
    first = np.arange(planes).reshape(*cells.shape[:-2], 1, 1) * count
    out.reshape(-1)[(first + places).reshape(-1)] = cells.reshape(-1)  # in row-major order: the last one stays
    return out


def max_unpool2d_backward(dout: ArrayLike, indices: ArrayLike) -> Array:
    """The gradient of :func:`max_unpool2d`: the cells of `dout` at the `indices`.

    Parameters
    ----------
    dout : array_like, (N, C, OH, OW) or (C, OH, OW)
        Gradient with respect to the output.
    indices : array_like of int, (N, C, H, W) or (C, H, W)
        As :func:`max_unpool2d` got them.

    Returns
    -------
    ndarray
        Of the shape of `indices`.

    Raises
    ------
    ValueError, TypeError
        As :func:`max_unpool2d`.
    """
    gradient, places = _as_array("dout", dout, (3, 4)), _as_indices(indices).astype(np.int64, copy=False)
    if places.ndim != gradient.ndim or places.shape[:-2] != gradient.shape[:-2]:
        raise ValueError(f"indices must have the batch and channels of dout, {gradient.shape}, got {places.shape}")
    _check_range(places, (gradient.shape[-2], gradient.shape[-1]))
    planes, count = math.prod(places.shape[:-2]), math.prod(gradient.shape[-2:])
    first = np.arange(planes).reshape(*places.shape[:-2], 1, 1) * count
    flat = gradient.reshape(-1).astype(gradient.dtype.newbyteorder("="), copy=False)
    return flat[np.ascontiguousarray(first + places)]


def _check_range(places: Array, size: Pair) -> None:
    if places.size and not 0 <= places.min() <= places.max() < math.prod(size):
        raise _outside(places, size)


def _unpooled_size(shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, output_size: Any) -> Pair:
    kernel = as_pair("kernel_size", kernel_size)
    step = kernel if stride is None else as_pair("stride", stride)
    pad = as_pair("padding", padding, 0)
    default = [(n - 1) * s - 2 * p + k for n, s, p, k in zip(shape[-2:], step, pad, kernel, strict=True)]
    if output_size is None:
        asked = default
    else:
        whole = as_shape("output_size", output_size, (2, len(shape)))
        if len(whole) > 2 and whole[:-2] != shape[:-2]:
            raise ValueError(f"output_size must have the batch and channels of x, {shape[:-2]}, got {whole}")
        asked = list(whole[-2:])
    for axis, name in enumerate(("height", "width")):
        if abs(asked[axis] - default[axis]) >= step[axis] or asked[axis] < 1:
            raise ValueError(f"output_size must differ from {tuple(default)} by less than the stride {step}, and be at "
                             f"least 1, got a {name} of {asked[axis]}")
    return as_int("output_size[0]", asked[0]), as_int("output_size[1]", asked[1])
