"""The names of the book *Deep Learning from Scratch* (Koki Saitoh) on fastconv's kernels.

Put these in place of the book's own and leave the rest of the code as it is::

    from common.layers import *
    from fastconv.compat.dlfs import Convolution, Pooling

The arguments, the attributes and the order of everything are the book's. Four things differ:

- The column matrix is not kept between `forward` and `backward`, which is where the book's memory goes. ``layer.col``
  is made from ``layer.x`` and ``layer.W`` when somebody reads it, and so is ``layer.col_W``: they show what these hold
  now, not what they held at the time of `forward`.
- Everything works in the dtype it is given, float32 too. The book's `im2col` turns it into float64.
- ``Pooling(pad > 0)``, which fails in the book, pads with cells that never are the maximum.
- A window that does not fit the image is a ValueError with both sizes.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from .. import functional
from ..geometry import pool2d_geometry

__all__ = ["Convolution", "Pooling", "col2im", "im2col"]


def im2col(input_data: Any, filter_h: int, filter_w: int, stride: Any = 1, pad: Any = 0) -> np.ndarray:
    """Expand images into a matrix with one row for each position of the filter.

    Parameters
    ----------
    input_data : array_like, shape (N, C, H, W)
    filter_h, filter_w : int
        Height and width of the filter.
    stride, pad : int
        Step of the filter, and cells of zeros on each side. All forms of :func:`fastconv.im2col` are accepted.

    Returns
    -------
    ndarray, shape (N*OH*OW, C*filter_h*filter_w)
        In the dtype of `input_data`.

    See Also
    --------
    fastconv.im2col : the same with dilation and other layouts.
    """
    return functional.im2col(_images("input_data", input_data), filter_h, filter_w, stride, pad)


def col2im(col: Any, input_shape: tuple[int, int, int, int], filter_h: int, filter_w: int, stride: Any = 1,
           pad: Any = 0) -> np.ndarray:
    """Add the rows of `col` up into images: the adjoint of :func:`im2col`, not its inverse.

    Parameters
    ----------
    col : array_like, shape (N*OH*OW, C*filter_h*filter_w)
    input_shape : tuple of int
        ``(N, C, H, W)``
    filter_h, filter_w, stride, pad
        As in :func:`im2col`.

    Returns
    -------
    ndarray of shape `input_shape`
    """
    return functional.col2im(col, input_shape, filter_h, filter_w, stride, pad)


class Convolution:
    """The book's convolution layer.

    Parameters
    ----------
    W : ndarray, shape (FN, C, FH, FW)
        Filters. May be changed in place or replaced between calls.
    b : scalar or ndarray of shape (FN,) or (1, FN)
        Bias. May be changed in place or replaced between calls.
    stride, pad : int

    Attributes
    ----------
    W, b, stride, pad
        The arguments.
    x : ndarray or None
        The input of the last `forward`, the array itself.
    col, col_W : ndarray or None
        ``im2col(x)`` and ``W.reshape(FN, -1).T``, made from the current `x` and `W` whenever they are read.
    dW, db : ndarray or None
        Gradients, after `backward`; `db` has the shape (FN,) for every shape of `b`.
    """

    def __init__(self, W: Any, b: Any, stride: Any = 1, pad: Any = 0) -> None:
        self.W = W
        self.b = b
        self.stride = stride
        self.pad = pad
        self.x: np.ndarray | None = None
        self.dW: np.ndarray | None = None
        self.db: np.ndarray | None = None

    @property
    def col(self) -> np.ndarray | None:
        if self.x is None:
            return None
        _, _, filter_h, filter_w = np.shape(self.W)
        return im2col(self.x, filter_h, filter_w, self.stride, self.pad)

    @property
    def col_W(self) -> np.ndarray | None:
        if self.x is None:
            return None
        W = np.asarray(self.W)
        return W.reshape(len(W), -1).T

    def forward(self, x: Any) -> np.ndarray:
        """Return the convolution of `x`, shape (N, C, H, W), with `W`, plus `b`: shape (N, FN, OH, OW)."""
        x = _images("x", x)
        out = functional.conv2d(x, self.W, self._bias(x), self.stride, self.pad)
        self.x = x
        return out

    def backward(self, dout: Any) -> np.ndarray:
        """Set `dW` and `db`, and return the gradient of the input. `dout` has the shape of `forward`'s result."""
        x = _kept(self, self.x)
        dx, self.dW, self.db = functional.conv2d_backward(dout, x, self.W, self.stride, self.pad)
        return cast(np.ndarray, dx)

    def _bias(self, x: np.ndarray) -> np.ndarray:
        """`b` in the shape (FN,) of :func:`fastconv.conv2d`."""
        filters = len(self.W)
        b = np.asarray(self.b)
        if b.ndim == 0:
            # A Python number does not raise float32 to float64, as it would not in the book's `np.dot(...) + b`.
            return np.full(filters, b, np.result_type(x, self.W, self.b))
        if b.shape not in ((filters,), (1, filters)):
            raise ValueError(f"b must be a scalar or have the shape {(filters,)} or {(1, filters)} for W of shape "
                             f"{np.shape(self.W)}, got shape {b.shape}")
        return b.reshape(filters)


class Pooling:
    """The book's max pooling layer.

    Parameters
    ----------
    pool_h, pool_w : int
        Height and width of the window.
    stride, pad : int
        Cells of padding are never the maximum, and `pad` is smaller than the window.

    Attributes
    ----------
    pool_h, pool_w, stride, pad
        The arguments.
    x : ndarray or None
        The input of the last `forward`, the array itself.
    arg_max : ndarray of int64, shape (N*OH*OW*C,), or None
        Where in its window each maximum was found, ``row*pool_w + column``, in the book's order: image, output row,
        output column, channel.
    """

    def __init__(self, pool_h: int, pool_w: int, stride: Any = 2, pad: Any = 0) -> None:
        self.pool_h = pool_h
        self.pool_w = pool_w
        self.stride = stride
        self.pad = pad
        self.x: np.ndarray | None = None
        self._indices: np.ndarray | None = None

    @property
    def arg_max(self) -> np.ndarray | None:
        if self.x is None or self._indices is None:
            return None
        g = pool2d_geometry(self.x.shape, (self.pool_h, self.pool_w), self.stride, self.pad)
        # From the place in the image to the place in the window, which starts at position*stride - padding.
        row, column = np.divmod(self._indices, g.in_size[1])
        row -= (np.arange(g.out_size[0]) * g.stride[0] - g.pads[0][0])[:, np.newaxis]
        column -= np.arange(g.out_size[1]) * g.stride[1] - g.pads[1][0]
        return (row * self.pool_w + column).transpose(0, 2, 3, 1).ravel()

    def forward(self, x: Any) -> np.ndarray:
        """Return the maximum of each window of `x`, shape (N, C, H, W): shape (N, C, OH, OW)."""
        x = _images("x", x)
        out, indices = functional.max_pool2d(x, (self.pool_h, self.pool_w), self.stride, self.pad, return_indices=True)
        self.x, self._indices = x, indices
        return out

    def backward(self, dout: Any) -> np.ndarray:
        """Return the gradient of the input: each cell of `dout` goes to the cell that was the maximum."""
        x, indices = _kept(self, self.x), _kept(self, self._indices)
        return functional.max_pool2d_backward(dout, indices, x.shape)


def _images(name: str, value: Any) -> np.ndarray:
    """The book's functions take batches only."""
    x = np.asarray(value)
    if x.ndim != 4:
        raise ValueError(f"{name} must have the shape (N, C, H, W), got shape {x.shape}")
    return x


def _kept(layer: Convolution | Pooling, array: np.ndarray | None) -> np.ndarray:
    """What the layer's last `forward` has kept for `backward`."""
    if array is None:
        raise RuntimeError(f"{type(layer).__name__}.backward needs a call of forward before it")
    return array
