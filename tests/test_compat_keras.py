"""Keras's names: checked by worked numbers, by the definition written as loops, and by Keras itself where it is."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest

from fastconv.compat import keras

FORMATS = ("channels_last", "channels_first")


def in_format(nhwc: np.ndarray, data_format: str) -> np.ndarray:
    return nhwc if data_format == "channels_last" else nhwc.transpose(0, 3, 1, 2)


def padded(x: np.ndarray, e: tuple[int, int], stride: tuple[int, int], padding: str, value: float = 0) -> np.ndarray:
    """TensorFlow's rule: as much as ceil(size/stride) windows need, the odd cell at the end."""
    pads = []
    for size, extent, step in zip(x.shape[1:3], e, stride, strict=True):
        total = max((-(-size // step) - 1) * step + extent - size, 0) if padding == "same" else 0
        pads.append((total // 2, total - total // 2))
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def windows(x: np.ndarray, e: tuple[int, int], stride: tuple[int, int], gaps: tuple[int, int] = (1, 1)) -> np.ndarray:
    """(N, H, W, C) -> (N, OH, OW, C, KH, KW)"""
    view = np.lib.stride_tricks.sliding_window_view(x, e, axis=(1, 2))
    return view[:, ::stride[0], ::stride[1], :, ::gaps[0], ::gaps[1]]


def definition(x: np.ndarray, kernel: np.ndarray, stride: tuple[int, int], padding: str, gaps: tuple[int, int],
               ) -> np.ndarray:
    e = tuple(g * (k - 1) + 1 for g, k in zip(gaps, kernel.shape, strict=False))
    seen = windows(padded(x, e, stride, padding), e, stride, gaps)
    groups = x.shape[3] // kernel.shape[2]
    parts = [np.einsum("nyxchw,hwck->nyxk", s, k) for s, k in
             zip(np.split(seen, groups, axis=3), np.split(kernel, groups, axis=3), strict=True)]
    return np.concatenate(parts, axis=3)


# --- convolution ------------------------------------------------------------------------------------------------------

CONVOLUTIONS = [((3, 3), 1, 1, (5, 4)), ((1, 1), 1, 1, (6, 7)), ((1, 1), 2, 1, (6, 4)), ((2, 3), (2, 1), 1, (6, 4)),
                ((5, 5), 3, 1, (2, 4)), ((3, 2), 1, (2, 3), (3, 6)), ((4, 4), 2, 1, (6, 5)), ((1, 1), 1, 2, (1, 1))]


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("padding", ["valid", "same", "SAME"])
@pytest.mark.parametrize(("size", "strides", "dilation", "channels"), CONVOLUTIONS, ids=str)
def test_conv2d(size: Any, strides: Any, dilation: Any, channels: Any, padding: str, data_format: str) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 9, 11, channels[0])), rng.standard_normal((*size, *channels))
    got = keras.conv2d(in_format(x, data_format), kernel, strides, padding, data_format, dilation)
    pair = (strides, strides) if isinstance(strides, int) else strides
    gaps = (dilation, dilation) if isinstance(dilation, int) else dilation
    want = definition(x, kernel, pair, padding.lower(), gaps)
    np.testing.assert_allclose(got, in_format(want, data_format), rtol=0, atol=1e-12)
    assert got.flags.c_contiguous
    single = keras.conv2d(in_format(x, data_format).astype(np.float32), kernel.astype(np.float32), strides, padding,
                          data_format, dilation)
    assert single.dtype == np.float32


def test_conv2d_groups_and_depthwise() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 7, 6))
    kernel = rng.standard_normal((3, 3, 2, 9))  # three groups of two channels and three filters
    np.testing.assert_allclose(keras.conv2d(x, kernel, 2, "same"), definition(x, kernel, (2, 2), "same", (1, 1)),
                               rtol=0, atol=1e-12)
    depthwise = rng.standard_normal((3, 2, 6, 2))
    want = definition(x, depthwise.reshape(3, 2, 1, 12), (1, 1), "same", (2, 1))
    for data_format in FORMATS:
        got = keras.depthwise_conv2d(in_format(x, data_format), depthwise, 1, "same", data_format, (2, 1))
        np.testing.assert_allclose(got, in_format(want, data_format), rtol=0, atol=1e-12)


def test_the_odd_cell_of_padding_is_at_the_end() -> None:
    x = np.arange(1.0, 7.0).reshape(1, 1, 6, 1)
    ones = np.ones((1, 3, 1, 1))
    np.testing.assert_array_equal(keras.conv2d(x, ones, 2, "same").ravel(), [6, 12, 11])
    np.testing.assert_array_equal(keras.conv2d(x, ones, 1, "same").ravel(), [3, 6, 9, 12, 15, 11])
    np.testing.assert_array_equal(keras.conv2d(x, ones, 2, "valid").ravel(), [6, 12])
    np.testing.assert_array_equal(keras.max_pool2d(-x, (1, 3), (1, 2), "same").ravel(), [-1, -3, -5])
    np.testing.assert_array_equal(keras.avg_pool2d(x, (1, 3), (1, 2), "same").ravel(), [2, 4, 5.5])


def test_transposed_by_hand() -> None:
    x = np.array([1.0, 10, 100]).reshape(1, 1, 3, 1)
    kernel = np.array([1.0, 2, 3]).reshape(1, 3, 1, 1)
    for arguments, want in (((1, "valid"), [1, 12, 123, 230, 300]), ((1, "same"), [12, 123, 230]),
                            (((1, 2), "valid"), [1, 2, 13, 20, 130, 200, 300]), (((1, 2), "same"), [1, 2, 13, 20, 130, 200]),
                            (((1, 4), "valid"), [1, 2, 3, 0, 10, 20, 30, 0, 100, 200, 300, 0]),
                            (((1, 4), "same"), [1, 2, 3, 0, 10, 20, 30, 0, 100, 200, 300, 0]),
                            (((1, 2), "valid", (0, 1)), [1, 2, 13, 20, 130, 200, 300, 0]),
                            (((1, 2), "same", (0, 0)), [2, 13, 20, 130, 200]),
                            (((1, 2), "same", (0, 1)), [1, 2, 13, 20, 130, 200])):
        np.testing.assert_array_equal(keras.conv2d_transpose(x, kernel, *arguments).ravel(), want, str(arguments))


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(("size", "strides", "dilation"), [((3, 3), 1, 1), ((2, 5), 2, 1), ((3, 3), 3, 1), ((2, 2), 1, 3)])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_transposed_is_the_gradient(size: Any, strides: int, dilation: int, padding: str, data_format: str) -> None:
    """<conv2d(y), x> = <y, conv2d_transpose(x)> with the same kernel, where the sizes leave no choice."""
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((*size, 4, 3)), rng.standard_normal((2, 3, 4, 3))
    got = keras.conv2d_transpose(in_format(x, data_format), kernel, strides, padding, None, data_format, dilation)
    got = got if data_format == "channels_last" else got.transpose(0, 2, 3, 1)
    if padding == "same":
        assert got.shape[1:] == (3 * strides, 4 * strides, 4)
    y = rng.standard_normal(got.shape)
    image = keras.conv2d(y, kernel, strides, padding, None, dilation)
    assert np.vdot(image, x) == pytest.approx(np.vdot(y, got), abs=1e-10)


# --- pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("channels", [3, 17])  # either way of going about it
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("pool", "strides"), [(2, None), ((3, 2), 2), (3, (1, 3)), ((2, 3), (3, 1)), (1, 2)])
def test_pooling(pool: Any, strides: Any, padding: str, channels: int, data_format: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 8, channels))
    kernel = (pool, pool) if isinstance(pool, int) else pool
    step = kernel if strides is None else (strides, strides) if isinstance(strides, int) else strides
    for function, reduce in ((keras.max_pool2d, np.nanmax), (keras.avg_pool2d, np.nanmean)):
        want = reduce(windows(padded(x, kernel, step, padding, np.nan), kernel, step), axis=(-2, -1))
        got = function(in_format(x, data_format), pool, strides, padding, data_format)
        np.testing.assert_allclose(got, in_format(want, data_format), rtol=0, atol=1e-14)
        assert got.flags.c_contiguous


@pytest.mark.parametrize("channels", [3, 17])
def test_dtypes_and_nan_of_poolings(channels: int) -> None:
    x = np.random.default_rng(0).integers(-100, 100, (1, 4, 4, channels)).astype(np.int16)
    assert keras.max_pool2d(x, 2).dtype == np.int16
    assert keras.avg_pool2d(x, 2).dtype == np.float64
    np.testing.assert_array_equal(keras.avg_pool2d(x, 2), keras.avg_pool2d(x.astype(np.float64), 2))
    half = x.astype(np.float16)
    assert keras.avg_pool2d(half, 2).dtype == np.float16
    np.testing.assert_array_equal(keras.avg_pool2d(half, 2), keras.avg_pool2d(x, 2).astype(np.float16))
    single = x.astype(np.float32)
    single[0, 1, 1, 0] = np.nan
    for function in (keras.max_pool2d, keras.avg_pool2d):
        assert np.isnan(function(single, 2)).sum() == 1


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: keras.conv2d(x, np.ones((3, 3, 4, 2))), r"kernel must have the shape \(KH, KW, C/groups, K\) .* 6 channels"),
    (lambda x: keras.conv2d(x, np.ones((3, 3, 3, 3))), "with groups that divide 6 channels and K filters"),
    (lambda x: keras.conv2d(x, np.ones((3, 3, 6, 3)), padding="full"), "padding must be 'valid' or 'same', got 'full'"),
    (lambda x: keras.max_pool2d(x, 2, padding=1), "padding must be 'valid' or 'same', got 1"),
    (lambda x: keras.conv2d(x, np.ones((3, 3, 6, 3)), data_format="NHWC"), "data_format must be None or one of"),
    (lambda x: keras.conv2d(x[0], np.ones((3, 3, 6, 3))), "inputs.shape must have 4 axes, got 3"),
    (lambda x: keras.conv2d(x, np.ones((3, 3, 3))), "kernel.shape must have 4 axes, got 3"),
    (lambda x: keras.conv2d(x, np.ones((1, 1, 6, 2)), 0), "strides must be at least 1"),
    (lambda x: keras.depthwise_conv2d(x, np.ones((3, 3, 5, 1))), r"kernel must have the shape \(KH, KW, 6, M\)"),
    (lambda x: keras.conv2d_transpose(x, np.ones((3, 3, 2, 6)), 2, output_padding=2),
     r"output_padding must be smaller than strides, got 2 with strides \(2, 2\)"),
    (lambda x: keras.max_pool2d(x, 9), "does not fit an input height of 5"),
])
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.ones((1, 5, 5, 6)))


# --- Keras itself -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ops() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    return pytest.importorskip("keras", reason="Keras is not installed").ops


def test_against_keras(ops: Any) -> None:
    rng = np.random.default_rng(0)

    def check(name: str, got: np.ndarray, want: Any) -> None:
        want = np.asarray(want)
        assert got.shape == want.shape, name
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * max(np.abs(want).max(), 1), err_msg=name)

    for size, stride, padding, gap in itertools.product((1, 2, 3, 4), (1, 2, 3), ("valid", "same"), (1, 2)):
        if stride > 1 and gap > 1:
            continue  # Keras has no such thing
        name = f"{size} {stride} {padding} {gap}"
        x = rng.standard_normal((2, 9, 10, 12)).astype(np.float32)
        kernel = rng.standard_normal((size, size, 12, 5)).astype(np.float32)
        check(name, keras.conv2d(x, kernel, stride, padding, None, gap),
              ops.conv(x, kernel, stride, padding, dilation_rate=gap))
        grouped = kernel[:, :, :3, :4]
        check(name, keras.conv2d(x, grouped, stride, padding, None, gap),
              ops.conv(x, grouped, stride, padding, dilation_rate=gap))
        check(name, keras.depthwise_conv2d(x, kernel[..., :2], stride, padding, None, gap),
              ops.depthwise_conv(x, kernel[..., :2], stride, padding, dilation_rate=gap))
        turned = kernel.transpose(0, 1, 3, 2)
        for extra in (None, *range(stride)):
            check(f"{name} {extra}", keras.conv2d_transpose(x, turned, stride, padding, extra, None, gap),
                  ops.conv_transpose(x, turned, stride, padding, extra, dilation_rate=gap))
        check(name, keras.max_pool2d(x, size, stride, padding), ops.max_pool(x, size, stride, padding))
        check(name, keras.avg_pool2d(x, size, stride, padding), ops.average_pool(x, size, stride, padding))
