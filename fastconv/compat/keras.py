"""Keras's convolutions and poolings on fastconv's kernels: images as (N, H, W, C), filters as (H, W, in, out).

The functions take what ``keras.ops.conv``, ``depthwise_conv``, ``conv_transpose``, ``max_pool`` and ``average_pool``
take, in the same order, and give the same numbers for two-dimensional images. ``data_format="channels_first"`` is
(N, C, H, W) instead.

Where the channels are last, 1x1 convolutions are matrix products and poolings go over rows and then over columns, with
the channels in the vectors, so that neither turns the image around; other convolutions do, which takes a small part of
their time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import functional
from ..geometry import Pair, as_pair, as_shape, extent, pool2d_geometry

__all__ = ["avg_pool2d", "conv2d", "conv2d_transpose", "depthwise_conv2d", "max_pool2d"]

Array = np.ndarray

FORMATS = ("channels_last", "channels_first")

#: From so many channels on a pooling with the channels in its vectors is faster than one that turns the image around.
_VECTOR_OF_CHANNELS = 8


# --- arguments --------------------------------------------------------------------------------------------------------


def _checked_format(data_format: Any) -> str:
    if data_format is None:
        return FORMATS[0]
    if data_format not in FORMATS:
        raise ValueError(f"data_format must be None or one of {', '.join(map(repr, FORMATS))}, got {data_format!r}")
    return str(data_format)


def _checked_padding(padding: Any) -> str:
    name = padding.lower() if isinstance(padding, str) else padding
    if name not in ("valid", "same"):
        raise ValueError(f"padding must be 'valid' or 'same', got {padding!r}")
    return str(name)


def _as_nchw(inputs: Any, data_format: str) -> Array:
    """The images as a view (N, C, H, W)."""
    x = np.asarray(inputs)
    as_shape("inputs.shape", x.shape, (4,))
    return x if data_format == "channels_first" else x.transpose(0, 3, 1, 2)


def _from_nchw(planes: Array, data_format: str) -> Array:
    return planes if data_format == "channels_first" else np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _kernel(kernel: Any, *axes: int) -> Array:
    weight = np.asarray(kernel)
    as_shape("kernel.shape", weight.shape, (4,))
    return weight.transpose(axes)


# --- convolution ------------------------------------------------------------------------------------------------------


def conv2d(inputs: Any, kernel: Any, strides: Any = 1, padding: str = "valid", data_format: str | None = None,
           dilation_rate: Any = 1) -> Array:
    """Two-dimensional convolution, as ``keras.ops.conv``.

    Parameters
    ----------
    inputs : array_like, (N, H, W, C)
        Or (N, C, H, W) with ``data_format="channels_first"``.
    kernel : array_like, (KH, KW, C/groups, K)
        Filters. Where they have fewer channels than the image, it is cut into groups, as in Keras.
    strides, dilation_rate : int or pair of int
    padding : {"valid", "same"}
        ``"same"`` gives ``ceil(size/stride)``, with the odd cell of padding at the end.
    data_format : {"channels_last", "channels_first"}, optional

    Returns
    -------
    ndarray, (N, OH, OW, K)
        Or (N, K, OH, OW).

    Raises
    ------
    ValueError, TypeError
        Where shapes and arguments do not fit together.

    Examples
    --------
    >>> conv2d(np.ones((1, 28, 28, 1)), np.ones((3, 3, 1, 10)), padding="same").shape
    (1, 28, 28, 10)
    """
    data_format, padding = _checked_format(data_format), _checked_padding(padding)
    x, weight = _as_nchw(inputs, data_format), _kernel(kernel, 3, 2, 0, 1)
    channels, each = x.shape[1], weight.shape[1]
    if each == 0 or channels % each or weight.shape[0] % (channels // each):
        raise ValueError(f"kernel must have the shape (KH, KW, C/groups, K) with groups that divide {channels} "
                         f"channels and K filters, got {np.shape(kernel)}")
    if data_format == "channels_last" and weight.shape[1:] == (channels, 1, 1) \
            and x.dtype == weight.dtype and x.dtype in (np.float32, np.float64):
        # (N, OH, OW, C) @ (C, K) -> (N, OH, OW, K): the image as it lies is the matrix
        down, right = as_pair("strides", strides)
        as_pair("dilation_rate", dilation_rate)
        seen = np.ascontiguousarray(np.asarray(inputs)[:, ::down, ::right])
        with np.errstate(all="ignore"):
            out = seen.reshape(-1, channels) @ weight[:, :, 0, 0].T
        return np.asarray(out.reshape(*seen.shape[:3], len(weight)))
    planes = functional.conv2d(x, weight, None, strides, padding, dilation_rate, channels // each)
    return _from_nchw(planes, data_format)


def depthwise_conv2d(inputs: Any, kernel: Any, strides: Any = 1, padding: str = "valid",
                     data_format: str | None = None, dilation_rate: Any = 1) -> Array:
    """A convolution of each channel with filters of its own, as ``keras.ops.depthwise_conv``.

    Parameters
    ----------
    inputs, strides, padding, data_format, dilation_rate
        As in :func:`conv2d`.
    kernel : array_like, (KH, KW, C, M)
        M filters for each channel.

    Returns
    -------
    ndarray, (N, OH, OW, C*M)
        Channel c's results are ``c*M`` to ``c*M + M - 1``.

    Raises
    ------
    ValueError, TypeError
        Where shapes and arguments do not fit together.
    """
    data_format = _checked_format(data_format)
    x, weight = _as_nchw(inputs, data_format), _kernel(kernel, 2, 3, 0, 1)
    channels, each, *window = weight.shape
    if channels != x.shape[1]:
        raise ValueError(f"kernel must have the shape (KH, KW, {x.shape[1]}, M) for inputs of {x.shape[1]} channels, got "
                         f"{np.shape(kernel)}")
    planes = functional.conv2d(x, weight.reshape(channels * each, 1, *window), None, strides, _checked_padding(padding),
                               dilation_rate, channels)
    return _from_nchw(planes, data_format)


def conv2d_transpose(inputs: Any, kernel: Any, strides: Any = 1, padding: str = "valid", output_padding: Any = None,
                     data_format: str | None = None, dilation_rate: Any = 1) -> Array:
    """Transposed convolution, as ``keras.ops.conv_transpose``.

    Parameters
    ----------
    inputs, strides, padding, data_format, dilation_rate
        As in :func:`conv2d`.
    kernel : array_like, (KH, KW, K, C)
        Filters: the results' channels before the images'.
    output_padding : int or pair of int, optional
        Without it the result has ``size*stride`` rows with ``"same"`` padding and ``(size-1)*stride + max(e, stride)``
        with ``"valid"``, where ``e = dilation*(KH-1) + 1``. With it there are ``(size-1)*stride + e%2 + output_padding``
        or ``(size-1)*stride + e + output_padding``.

    Returns
    -------
    ndarray, (N, OH, OW, K)

    Raises
    ------
    ValueError, TypeError
        Where shapes and arguments do not fit together.
    """
    data_format, padding = _checked_format(data_format), _checked_padding(padding)
    x, weight = _as_nchw(inputs, data_format), _kernel(kernel, 3, 2, 0, 1)
    step, gaps = as_pair("strides", strides), as_pair("dilation_rate", dilation_rate)
    extra = (None, None) if output_padding is None else as_pair("output_padding", output_padding, 0)
    for axis in (0, 1):
        if (extra[axis] or 0) >= step[axis]:
            raise ValueError(f"output_padding must be smaller than strides, got {output_padding!r} with strides {step}")
    cuts, more = zip(*(_transpose_padding(extent(weight.shape[2 + i], gaps[i]), step[i], padding, extra[i])
                       for i in (0, 1)), strict=True)
    planes = functional.conv_transpose2d(x, weight, None, step, cuts, more, dilation=gaps)
    return _from_nchw(planes, data_format)


def _transpose_padding(e: int, stride: int, padding: str, extra: int | None) -> tuple[Pair, int]:
    """Rows to cut off before and after the whole result, and rows of zeros to add: Keras's rules for one axis.

    The whole result of size ``(size-1)*stride + e`` is what is left with ``e - 1`` rows more on each side of the input
    that was spread by the stride; Keras says how many it puts there.
    """
    if padding == "valid":
        return (0, 0), max(stride - e, 0) if extra is None else extra
    total = stride + e - 2 if extra is None else e + e % 2 - 2 + extra
    before = min(total - total // 2, e - 1)
    after = total - before
    return (e - 1 - before, max(e - 1 - after, 0)), max(after - (e - 1), 0)


# --- pooling ----------------------------------------------------------------------------------------------------------


def max_pool2d(inputs: Any, pool_size: Any, strides: Any = None, padding: str = "valid",
               data_format: str | None = None) -> Array:
    """Maximum of each window, as ``keras.ops.max_pool``.

    Parameters
    ----------
    inputs : array_like, (N, H, W, C)
        Or (N, C, H, W) with ``data_format="channels_first"``. Any numeric dtype, which the result keeps.
    pool_size : int or pair of int
    strides : int or pair of int, optional
        By default `pool_size`.
    padding : {"valid", "same"}
        Padding never wins.

    Returns
    -------
    ndarray, (N, OH, OW, C)

    Raises
    ------
    ValueError, TypeError
        Where shapes and arguments do not fit together.
    """
    return _pool(functional.max_pool2d, {}, inputs, pool_size, strides, padding, data_format)


def avg_pool2d(inputs: Any, pool_size: Any, strides: Any = None, padding: str = "valid",
               data_format: str | None = None) -> Array:
    """Average of each window, as ``keras.ops.average_pool``: of its cells inside the image, padding does not count.

    Parameters and results as :func:`max_pool2d`; integers give float64.
    """
    return _pool(functional.avg_pool2d, {"count_include_pad": False}, inputs, pool_size, strides, padding, data_format)


def _pool(pool: Any, more: dict[str, Any], inputs: Any, pool_size: Any, strides: Any, padding: Any,
          data_format: Any) -> Array:
    data_format, padding = _checked_format(data_format), _checked_padding(padding)
    x = np.asarray(inputs)
    planes = _as_nchw(x, data_format)
    kernel = as_pair("pool_size", pool_size)
    step = kernel if strides is None else as_pair("strides", strides)
    if data_format == "channels_first" or planes.shape[1] < _VECTOR_OF_CHANNELS or x.dtype == np.float16:
        return _from_nchw(pool(planes, kernel, step, padding, **more), data_format)
    geometry = pool2d_geometry(planes.shape, kernel, step, padding, x_name="inputs")
    (n, channels, _, width), (rows, columns) = planes.shape, geometry.out_size
    down, right = geometry.pads
    # First the rows' maxima (averages), of whole lines of W*C cells; then those of W lines of C cells for each row.
    x = np.ascontiguousarray(x).reshape(n, 1, -1, width * channels)
    x = pool(x, (kernel[0], 1), (step[0], 1), (down, (0, 0)), **more).reshape(n * rows, 1, width, channels)
    x = pool(x, (kernel[1], 1), (step[1], 1), (right, (0, 0)), **more)
    return np.asarray(x.reshape(n, rows, columns, channels))
