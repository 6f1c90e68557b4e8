"""The fast layers of Stanford's course cs231n on fastconv's kernels.

Put these in place of the course's own and leave the rest of the code as it is::

    from fastconv.compat.cs231n import conv_forward_fast, conv_backward_fast, max_pool_forward_fast, max_pool_backward_fast
    from fastconv.compat.cs231n import im2col_cython, col2im_cython, col2im_6d_cython

Arguments, their order, the ``conv_param`` and ``pool_param`` dictionaries and ``(out, cache)`` are the course's, and so
are the rules of equal cells in a pooling. What differs:

- No column matrix is kept for `conv_backward_fast`: the cache is ``(x, w, b, conv_param)``, as that of the course's
  `conv_forward_naive`.
- Windows that are not square, which the course's `im2col_cython` lowers to the wrong rows, images in Fortran order,
  which its `conv_forward_fast` misreads, and pools that overlap are right.
- Where the stride does not divide the room for the window, cells at the end are in no window; the course has an
  assertion there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from .. import functional
from ..geometry import as_shape, window2d_geometry

__all__ = ["col2im_6d_cython", "col2im_cython", "conv_backward_fast", "conv_forward_fast", "im2col_cython",
           "max_pool_backward_fast", "max_pool_forward_fast"]

Array = np.ndarray


# --- lowering ---------------------------------------------------------------------------------------------------------


def im2col_cython(x: Any, field_height: int, field_width: int, padding: Any, stride: Any) -> Array:
    """Expand images into a matrix with one column for each position of the window.

    Parameters
    ----------
    x : array_like, (N, C, H, W)
    field_height, field_width : int
        The window.
    padding, stride : int
        Cells of zeros on each side, and step of the window. Mind the order, which is the course's.

    Returns
    -------
    ndarray, (C*field_height*field_width, OH*OW*N)
        In the dtype of `x`; N runs fastest.
    """
    return functional.im2col(_images("x", x), field_height, field_width, stride, padding, layout="cs231n")


def col2im_cython(cols: Any, N: int, C: int, H: int, W: int, field_height: int, field_width: int, padding: Any,
                  stride: Any) -> Array:
    """Add the columns of `cols` up into images (N, C, H, W): the adjoint of :func:`im2col_cython`."""
    return functional.col2im(cols, (N, C, H, W), field_height, field_width, stride, padding, layout="cs231n")


def col2im_6d_cython(cols: Any, N: int, C: int, H: int, W: int, HH: int, WW: int, pad: Any, stride: Any) -> Array:
    """Add columns of the shape (C, HH, WW, N, OH, OW) up into images (N, C, H, W)."""
    cols = np.asarray(cols)
    geometry = window2d_geometry((N, C, H, W), HH, WW, stride, pad, name="(N, C, H, W)")
    expected = (C, HH, WW, N, *geometry.out_size)
    if cols.shape != expected:
        raise ValueError(f"cols must have the shape (C, HH, WW, N, OH, OW) = {expected}, got {cols.shape}")
    return functional.col2im(cols.transpose(3, 0, 1, 2, 4, 5), (N, C, H, W), HH, WW, stride, pad, layout="windows")


# --- convolution ------------------------------------------------------------------------------------------------------


def conv_forward_fast(x: Any, w: Any, b: Any, conv_param: Mapping[str, Any]) -> tuple[Array, tuple[Any, ...]]:
    """Convolution of images with filters.

    Parameters
    ----------
    x : array_like, (N, C, H, W)
    w : array_like, (F, C, HH, WW)
    b : array_like, (F,)
    conv_param : mapping
        ``"stride"`` and ``"pad"``.

    Returns
    -------
    out : ndarray, (N, F, OH, OW)
    cache : tuple
        ``(x, w, b, conv_param)``, for :func:`conv_backward_fast`.
    """
    image, filters = _images("x", x), np.asarray(w)
    stride, pad = _parameters("conv_param", conv_param, "stride", "pad")
    out = functional.conv2d(image, filters, np.asarray(b).reshape(-1), stride, pad)
    return out, (image, filters, b, conv_param)


def conv_backward_fast(dout: Any, cache: tuple[Any, ...]) -> tuple[Array, Array, Array]:
    """The gradients of :func:`conv_forward_fast`: ``(dx, dw, db)`` in the shapes of `x`, `w` and (F,)."""
    x, w, _, conv_param, *_ = cache
    stride, pad = _parameters("conv_param", conv_param, "stride", "pad")
    return cast("tuple[Array, Array, Array]", functional.conv2d_backward(dout, x, w, stride, pad))


# --- pooling ----------------------------------------------------------------------------------------------------------


def max_pool_forward_fast(x: Any, pool_param: Mapping[str, Any]) -> tuple[Array, tuple[str, tuple[Any, ...]]]:
    """Maximum of each window.

    Parameters
    ----------
    x : array_like, (N, C, H, W)
    pool_param : mapping
        ``"pool_height"``, ``"pool_width"`` and ``"stride"``.

    Returns
    -------
    out : ndarray, (N, C, OH, OW)
    cache : tuple
        For :func:`max_pool_backward_fast`. It begins with the name of the way that the course takes:
        ``"reshape"`` where square windows tile the image, ``"im2col"`` elsewhere.
    """
    image = _images("x", x)
    height, width, stride = _parameters("pool_param", pool_param, "pool_height", "pool_width", "stride")
    out, indices = functional.max_pool2d(image, (height, width), stride, return_indices=True)
    tiles = height == width == stride and image.shape[2] % height == image.shape[3] % width == 0
    return out, ("reshape" if tiles else "im2col", (image, out, indices, int(height) if tiles else 0))


def max_pool_backward_fast(dout: Any, cache: tuple[str, tuple[Any, ...]]) -> Array:
    """The gradient of :func:`max_pool_forward_fast`.

    Where several cells of a window are its maximum, the course does one of two things, and so does this function:
    where square windows tile the image they share the gradient in equal parts, elsewhere the first one gets it all.
    """
    _, (x, out, indices, size) = cache
    if not size:
        return functional.max_pool2d_backward(dout, indices, x.shape)
    return _shared_among_equals(np.asarray(dout), x, out, indices, size)


def _shared_among_equals(dout: Array, x: Array, out: Array, first: Array, size: int) -> Array:
    """The gradient of each tile of `x` in equal parts at all its cells that equal its maximum."""
    taps = [np.s_[:, :, i::size, j::size] for i in range(size) for j in range(size)]
    equal = [x[tap] == out for tap in taps]
    counts = np.zeros(out.shape, np.min_scalar_type(size * size))
    for one in equal:
        counts += one
    lost = counts == 0  # NaN, which equals nothing: its first place has the gradient
    share = dout / np.maximum(counts, 1).astype(dout.dtype)
    if lost.any():
        share[lost] = 0
        dx = functional.max_pool2d_backward(np.where(lost, dout, 0).astype(share.dtype), first, x.shape)
    else:
        dx = np.zeros(x.shape, share.dtype)
    for tap, one in zip(taps, equal, strict=True):
        dx[tap] += share * one
    return dx


# --- arguments --------------------------------------------------------------------------------------------------------


def _images(name: str, value: Any) -> Array:
    """The course's functions take batches only."""
    x = np.asarray(value)
    as_shape(name, x.shape, (4,))
    return x


def _parameters(name: str, given: Mapping[str, Any], *keys: str) -> list[Any]:
    missing = [key for key in keys if key not in given]
    if missing:
        raise ValueError(f"{name} must have {', '.join(map(repr, keys))}, got {sorted(given)}")
    return [given[key] for key in keys]
