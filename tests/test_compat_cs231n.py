"""The course cs231n's fast layers. What is expected is computed by its algorithms, written anew as plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastconv.compat import cs231n

# --- the course's algorithms ------------------------------------------------------------------------------------------


def course_im2col(x: np.ndarray, height: int, width: int, padding: int, stride: int) -> np.ndarray:
    """Row (c, i, j), column (y, x, n): n runs fastest."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out_h, out_w = (h + 2 * padding - height) // stride + 1, (w + 2 * padding - width) // stride + 1
    cols = np.zeros((c * height * width, n * out_h * out_w), x.dtype)
    for channel, i, j in np.ndindex(c, height, width):
        for top, left, image in np.ndindex(out_h, out_w, n):
            cols[(channel * height + i) * width + j, (top * out_w + left) * n + image] = \
                padded[image, channel, top * stride + i, left * stride + j]
    return cols


def course_conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int, pad: int) -> np.ndarray:
    filters, _, height, width = w.shape
    n, _, h, wide = x.shape
    out_h, out_w = (h + 2 * pad - height) // stride + 1, (wide + 2 * pad - width) // stride + 1
    res = w.reshape(filters, -1) @ course_im2col(x, height, width, pad, stride) + b.reshape(-1, 1)
    return res.reshape(filters, out_h, out_w, n).transpose(3, 0, 1, 2)


def course_max_pool_backward(dout: np.ndarray, x: np.ndarray, height: int, width: int, stride: int) -> np.ndarray:
    """Tiles: all equal maxima share. Other windows: the first one in the window has it all."""
    tiles = height == width == stride and x.shape[2] % height == 0 and x.shape[3] % width == 0
    dx = np.zeros_like(x)
    for n, c, i, j in np.ndindex(dout.shape):
        part = (n, c, slice(i * stride, i * stride + height), slice(j * stride, j * stride + width))
        equal = x[part] == x[part].max()
        if not tiles:
            only = np.zeros_like(equal)
            only.flat[equal.argmax()] = True
            equal = only
        dx[part] += equal * dout[n, c, i, j] / equal.sum()
    return dx


# --- lowering ---------------------------------------------------------------------------------------------------------

WINDOWS = [((2, 3, 5, 6), (3, 3, 1, 1)), ((2, 2, 6, 7), (2, 2, 0, 2)), ((3, 2, 5, 8), (2, 3, 1, 1)),
           ((1, 1, 7, 5), (4, 1, 2, 3)), ((2, 3, 4, 4), (4, 4, 0, 1))]


def test_star_import_takes_the_courses_names() -> None:
    assert sorted(cs231n.__all__) == ["col2im_6d_cython", "col2im_cython", "conv_backward_fast", "conv_forward_fast",
                                      "im2col_cython", "max_pool_backward_fast", "max_pool_forward_fast"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("shape", "window"), WINDOWS, ids=str)
def test_lowering(shape: Any, window: Any, order: str) -> None:
    rng = np.random.default_rng(0)
    x = np.asarray(rng.integers(-9, 10, shape).astype(np.float64), order=order)
    want = course_im2col(x, *window)
    np.testing.assert_array_equal(cs231n.im2col_cython(x, *window), want)

    height, width, padding, stride = window
    cols = rng.integers(-9, 10, want.shape).astype(np.float64)
    image = cs231n.col2im_cython(cols, *shape, *window)
    # the adjoint: <im2col(x), cols> = <x, col2im(cols)>, here for every cell of x
    cells = np.eye(x.size).reshape(-1, *shape)
    np.testing.assert_array_equal(image.ravel(), [np.vdot(course_im2col(cell, *window), cols) for cell in cells])

    n, c, h, w = shape
    out = (h + 2 * padding - height) // stride + 1, (w + 2 * padding - width) // stride + 1
    six = cols.reshape(c, height, width, *out, n).transpose(0, 1, 2, 5, 3, 4)
    np.testing.assert_array_equal(cs231n.col2im_6d_cython(six, *shape, height, width, padding, stride), image)


def test_col2im_6d_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"cols must have the shape \(C, HH, WW, N, OH, OW\) = \(3, 2, 2, 1, 4, 5\), "
                                         r"got \(3, 2, 2, 4, 5, 1\)"):
        cs231n.col2im_6d_cython(np.zeros((3, 2, 2, 4, 5, 1)), 1, 3, 5, 6, 2, 2, 0, 1)


# --- convolution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [((3, 3), 1, 1), ((3, 2), 2, 0), ((1, 4), 1, 2), ((4, 4), 3, 1)])
def test_convolution(kernel: tuple[int, int], stride: int, pad: int, order: str) -> None:
    rng = np.random.default_rng(0)
    x = np.asarray(rng.standard_normal((3, 2, 7, 8)), order=order)
    w, b = rng.standard_normal((4, 2, *kernel)), rng.standard_normal(4)
    out, cache = cs231n.conv_forward_fast(x, w, b, {"stride": stride, "pad": pad})
    want = course_conv(x, w, b, stride, pad)
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
    dout = rng.standard_normal(out.shape)
    dx, dw, db = cs231n.conv_backward_fast(dout, cache)
    # out is linear in each of the three: <dout, out(direction) - out(0)> = <gradient, direction>
    for gradient, array, at in ((dx, x, lambda d: (d, w, 0 * b)), (dw, w, lambda d: (x, d, 0 * b)),
                                (db, b, lambda d: (0 * x, w, d))):
        assert gradient.shape == array.shape
        direction = rng.standard_normal(array.shape)
        got = np.vdot(gradient, direction)
        assert got == pytest.approx(np.vdot(dout, course_conv(*at(direction), stride, pad)), abs=1e-10)


def test_the_courses_own_numbers() -> None:
    """The first cells of the notebook's check of conv_forward: linspace inputs of (2, 3, 4, 4), three 4x4 filters."""
    x = np.linspace(-0.1, 0.5, num=2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    w = np.linspace(-0.2, 0.3, num=3 * 3 * 4 * 4).reshape(3, 3, 4, 4)
    out, _ = cs231n.conv_forward_fast(x, w, np.linspace(-0.1, 0.2, num=3), {"stride": 2, "pad": 1})
    np.testing.assert_allclose(out[0], [[[-0.08759809, -0.10987781], [-0.18387192, -0.2109216]],
                                        [[0.21027089, 0.21661097], [0.22847626, 0.23004637]],
                                        [[0.50813986, 0.54309974], [0.64082444, 0.67101435]]], atol=1e-8)


def test_dtype_and_bias_of_other_shapes() -> None:
    x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((3, 2, 3, 3), np.float32)
    for b in (np.arange(3, dtype=np.float32), np.arange(3, dtype=np.float32).reshape(3, 1)):
        out, cache = cs231n.conv_forward_fast(x, w, b, {"stride": 1, "pad": 0})
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out[0, :, 0, 0], [18, 19, 20])
        assert cs231n.conv_backward_fast(out, cache)[2].shape == (3,)


# --- pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("values", [2, 1000])
@pytest.mark.parametrize(("size", "window"), [
    ((6, 8), (2, 2, 2)), ((9, 6), (3, 3, 3)), ((7, 8), (2, 2, 2)), ((7, 7), (3, 3, 2)), ((6, 9), (2, 3, 2)),
    ((6, 6), (2, 2, 1))], ids=str)
def test_max_pool(size: Any, window: Any, values: int, order: str) -> None:
    rng = np.random.default_rng(0)
    x = np.asarray(rng.integers(0, values, (2, 3, *size)).astype(np.float64), order=order)  # of 2 values: many ties
    out, cache = cs231n.max_pool_forward_fast(x, dict(zip(("pool_height", "pool_width", "stride"), window, strict=True)))
    height, width, stride = window
    for n, c, i, j in np.ndindex(out.shape):
        assert out[n, c, i, j] == x[n, c, i * stride:i * stride + height, j * stride:j * stride + width].max()
    dout = rng.standard_normal(out.shape)
    np.testing.assert_allclose(cs231n.max_pool_backward_fast(dout, cache),
                               course_max_pool_backward(dout, x, *window), rtol=0, atol=1e-15)


def test_ties_by_hand() -> None:
    x = np.array([[[[1.0, 1], [0, 1]]]], np.float32)
    for stride, want in ((2, [[4, 4], [0, 4]]), (1, [[12, 0], [0, 0]])):  # tiles share; a stride of 1 does not tile
        out, cache = cs231n.max_pool_forward_fast(x, {"pool_height": 2, "pool_width": 2, "stride": stride})
        assert cache[0] == ("reshape" if stride == 2 else "im2col")
        for dtype in (np.float32, np.float64, np.int64):
            dx = cs231n.max_pool_backward_fast(np.full(out.shape, 12, dtype), cache)
            assert dx.dtype == dtype or dtype == np.int64
            np.testing.assert_array_equal(dx, [[want]])


def test_nan_has_its_gradient() -> None:
    x = np.array([[[[1.0, np.nan], [np.nan, 1]]]])
    out, cache = cs231n.max_pool_forward_fast(x, {"pool_height": 2, "pool_width": 2, "stride": 2})
    assert np.isnan(out).all()
    np.testing.assert_array_equal(cs231n.max_pool_backward_fast(np.ones_like(out), cache), [[[[0, 1], [0, 0]]]])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "message"), [
    (lambda: cs231n.conv_forward_fast(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)), [0], {"stride": 1}),
     r"conv_param must have 'stride', 'pad', got \['stride'\]"),
    (lambda: cs231n.max_pool_forward_fast(np.ones((1, 1, 4, 4)), {"pool_height": 2, "stride": 2}),
     "pool_param must have 'pool_height', 'pool_width', 'stride'"),
    (lambda: cs231n.im2col_cython(np.ones((1, 4, 4)), 3, 3, 1, 1), "x must have 4 axes, got 3"),
    (lambda: cs231n.conv_forward_fast(np.ones((1, 1, 4, 4)), np.ones((2, 1, 3, 3)), [0], {"stride": 1, "pad": 0}),
     "bias must have shape"),
])
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
