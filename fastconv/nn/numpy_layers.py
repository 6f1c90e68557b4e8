"""The layers of the book *Deep Learning from Scratch* as it does them: im2col in NumPy, and matrix products.

This is what fastconv is measured against in ``fastconv demo``. The algorithm is the book's (chapter 7): one strided
slice for each tap of the filter, the whole column matrix in memory, a transposition of it into rows, ``np.dot``. It
works in the dtype that it is given, where the book's code always ends in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import cleared
from ..geometry import Window2dGeometry, as_pair, conv2d_geometry, pool2d_geometry
from .layers import Affine, Array, Conv2d, MaxPool2d, Relu
from .models import DeepConvNet, Network, SimpleConvNet

__all__ = ["NETWORKS", "DotAffine", "Im2colConv2d", "Im2colConvNet", "Im2colDeepConvNet", "Im2colMaxPool2d", "NumpyRelu"]


def _taps(geometry: Window2dGeometry) -> list[tuple[int, int, slice, slice]]:
    """For each tap (y, x) of the window the rows and columns of the padded image that it meets, one per position."""
    (kernel_h, kernel_w), (stride_h, stride_w), (out_h, out_w) = geometry.kernel, geometry.stride, geometry.out_size
    return [(y, x, slice(y, y + stride_h * out_h, stride_h), slice(x, x + stride_w * out_w, stride_w))
            for y in range(kernel_h) for x in range(kernel_w)]


def im2col_rows(x: Array, geometry: Window2dGeometry) -> Array:
    """Return the windows of `x` as rows, (N*OH*OW, C*KH*KW)."""
    image = np.pad(x, ((0, 0), (0, 0), *geometry.pads))
    col = np.empty((geometry.batch, geometry.channels, *geometry.kernel, *geometry.out_size), x.dtype)
    for ky, kx, rows, columns in _taps(geometry):
        col[:, :, ky, kx] = image[:, :, rows, columns]
    return col.transpose(0, 4, 5, 1, 2, 3).reshape(geometry.columns_shape("rows"))


def col2im_rows(col: Array, geometry: Window2dGeometry) -> Array:
    """Return the image whose cells are the sums of what the rows of `col` (N*OH*OW, C*KH*KW) have for them."""
    (top, _), (left, _) = geometry.pads
    height, width = geometry.in_size
    col = col.reshape(geometry.batch, *geometry.out_size, geometry.channels, *geometry.kernel)
    col = col.transpose(0, 3, 4, 5, 1, 2)
    image = np.zeros((geometry.batch, geometry.channels, *geometry.padded_size), col.dtype)
    for ky, kx, rows, columns in _taps(geometry):
        image[:, :, rows, columns] += col[:, :, ky, kx]
    return image[:, :, top:top + height, left:left + width]


class Im2colConv2d(Conv2d):
    """:class:`fastconv.nn.Conv2d` by im2col in NumPy. It has neither groups nor dilation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.groups != 1 or as_pair("dilation", self.dilation) != (1, 1) or self.padding_mode != "zeros":
            raise NotImplementedError("im2col in NumPy has groups=1, dilation=1 and padding_mode='zeros' only, got "
                                      f"groups={self.groups}, dilation={self.dilation} and padding_mode="
                                      f"{self.padding_mode!r}")
        self._col: Array | None = None

    def forward(self, x: npt.ArrayLike) -> Array:
        x, weight = np.asarray(x), self.params["weight"]
        geometry = conv2d_geometry(x.shape, weight.shape, self.stride, self.padding)
        # (N*OH*OW, C*KH*KW) @ (C*KH*KW, K) -> (N*OH*OW, K)
        col = im2col_rows(x, geometry)
        out = np.dot(col, weight.reshape(len(weight), -1).T)
        if "bias" in self.params:
            out = out + self.params["bias"]
        self._x, self._col = (x, col) if self.training else (None, None)
        return out.reshape(geometry.batch, *geometry.out_size, len(weight)).transpose(0, 3, 1, 2)

    def backward(self, dout: npt.ArrayLike) -> Array | None:
        x, weight = self._kept(self._x), self.params["weight"]
        geometry = conv2d_geometry(x.shape, weight.shape, self.stride, self.padding)
        rows = np.asarray(dout).transpose(0, 2, 3, 1).reshape(-1, len(weight))
        if "bias" in self.params:
            self.grads["bias"] = rows.sum(axis=0)
        # (C*KH*KW, N*OH*OW) @ (N*OH*OW, K) -> (C*KH*KW, K)
        self.grads["weight"] = np.dot(self._kept(self._col).T, rows).T.reshape(weight.shape)
        if not self.input_gradient:
            return None
        # (N*OH*OW, K) @ (K, C*KH*KW) -> (N*OH*OW, C*KH*KW)
        return col2im_rows(np.dot(rows, weight.reshape(len(weight), -1)), geometry)


class Im2colMaxPool2d(MaxPool2d):
    """:class:`fastconv.nn.MaxPool2d` by im2col in NumPy. It has neither padding, dilation nor `ceil_mode`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.padding != 0 or self.dilation != 1 or self.ceil_mode:
            raise NotImplementedError("im2col in NumPy has no padding, dilation or ceil_mode for a pooling, "
                                      f"got {self!r}")

    def forward(self, x: npt.ArrayLike) -> Array:
        x = np.asarray(x)
        geometry = pool2d_geometry(x.shape, self.kernel_size, self.stride)
        # Each row of the column matrix has the windows of all channels; split it, (N*OH*OW*C, KH*KW).
        windows = im2col_rows(x, geometry).reshape(-1, geometry.taps)
        winners = windows.argmax(axis=1)
        out = windows.max(axis=1)
        self._indices, self._input_shape = (winners if self.training else None), x.shape
        return out.reshape(geometry.batch, *geometry.out_size, geometry.channels).transpose(0, 3, 1, 2)

    def backward(self, dout: npt.ArrayLike) -> Array:
        winners = self._kept(self._indices)
        geometry = pool2d_geometry(self._input_shape, self.kernel_size, self.stride)
        values = np.asarray(dout).transpose(0, 2, 3, 1).ravel()
        windows = np.zeros((values.size, geometry.taps), values.dtype)
        windows[np.arange(values.size), winners] = values
        return col2im_rows(windows.reshape(geometry.columns_shape("rows")), geometry)


class DotAffine(Affine):
    """:class:`fastconv.nn.Affine` by ``np.dot``."""

    def forward(self, x: npt.ArrayLike) -> Array:
        x = np.asarray(x)
        out = np.dot(x, self.params["weight"])
        if "bias" in self.params:
            out = out + self.params["bias"]
        self._x = x if self.training else None
        return out

    def backward(self, dout: npt.ArrayLike) -> Array | None:
        x, dout = self._kept(self._x), np.asarray(dout)
        self.grads["weight"] = np.dot(x.T, dout)
        if "bias" in self.params:
            self.grads["bias"] = dout.sum(axis=0)
        return np.dot(dout, self.params["weight"].T) if self.input_gradient else None


class NumpyRelu(Relu):
    """:class:`fastconv.nn.Relu` in NumPy, by the quicker of its ways (the book's ``dout[mask] = 0`` takes longer)."""

    def backward(self, dout: npt.ArrayLike) -> Array:
        return cleared(np.asarray(dout), self._kept(self._y) <= 0)


class Im2colConvNet(SimpleConvNet):
    """:class:`fastconv.nn.SimpleConvNet` with the layers of this module: NumPy alone, and all else the same."""

    conv_layer = Im2colConv2d
    pool_layer = Im2colMaxPool2d
    affine_layer = DotAffine
    relu_layer = NumpyRelu


class Im2colDeepConvNet(DeepConvNet):
    """:class:`fastconv.nn.DeepConvNet` likewise."""

    conv_layer = Im2colConv2d
    pool_layer = Im2colMaxPool2d
    affine_layer = DotAffine
    relu_layer = NumpyRelu


#: The networks by the names that they have in :mod:`fastconv.nn`.
NETWORKS: dict[str, type[Network]] = {"SimpleConvNet": Im2colConvNet, "DeepConvNet": Im2colDeepConvNet}
