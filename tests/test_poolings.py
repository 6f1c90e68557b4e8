"""Adaptive and Lp pooling and unpooling: worked numbers, their definitions as loops, gradients, PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastconv

SIZES = [((6, 8), (3, 2)), ((7, 5), (3, 2)), ((5, 7), (4, 7)), ((3, 4), (5, 9)), ((10, 7), (1, 7)), ((1, 1), (3, 1)),
         ((9, 13), (4, 5))]


def windows(size: Any, out: Any) -> Any:
    """Place in the output, and rows and columns of its window."""
    for i, j in np.ndindex(out):
        yield (i, j), tuple(slice(int(np.floor(k * n / o)), int(np.ceil((k + 1) * n / o)))
                            for k, n, o in zip((i, j), size, out, strict=True))


@pytest.mark.parametrize(("size", "out"), SIZES, ids=str)
def test_adaptive(size: Any, out: Any, engine: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, (2, 3, *size)).astype(np.float64)  # with ties
    average = fastconv.adaptive_avg_pool2d(x, out)
    values, indices = fastconv.adaptive_max_pool2d(x, out, return_indices=True)
    np.testing.assert_array_equal(fastconv.adaptive_max_pool2d(x, out), values)
    assert average.shape == values.shape == (2, 3, *out)
    for (i, j), (rows, columns) in windows(size, out):
        part = x[:, :, rows, columns]
        np.testing.assert_allclose(average[:, :, i, j], part.mean(axis=(2, 3)), rtol=0, atol=1e-14)
        np.testing.assert_array_equal(values[:, :, i, j], part.max(axis=(2, 3)))
        down, right = np.divmod(part.reshape(2, 3, -1).argmax(axis=2), part.shape[3])  # argmax: the first one
        np.testing.assert_array_equal(indices[:, :, i, j], (down + rows.start) * size[1] + right + columns.start)

    dout = rng.standard_normal(average.shape)
    dx = fastconv.adaptive_avg_pool2d_backward(dout, x.shape)
    want = np.zeros_like(x)
    for (i, j), (rows, columns) in windows(size, out):
        cells = want[:, :, rows, columns]
        cells += dout[:, :, i:i + 1, j:j + 1] / (cells.shape[2] * cells.shape[3])
    np.testing.assert_allclose(dx, want, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(fastconv.adaptive_avg_pool2d_backward(dout[0], x.shape[1:]), dx[0])
    dx = fastconv.max_pool2d_backward(dout, indices, x.shape)
    assert np.vdot(dx, np.ones_like(x)) == pytest.approx(dout.sum())


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "complex64", ">f8"])
def test_adaptive_dtypes_and_sizes(dtype: str) -> None:
    x = (np.arange(70).reshape(1, 2, 5, 7) % 23).astype(dtype)
    wide = x.astype(complex if dtype == "complex64" else float)
    kept = x.dtype.newbyteorder("=")
    for out, shape in ((3, (3, 3)), ((None, 2), (5, 2)), (None, (5, 7)), ((5, 7), (5, 7))):
        average = fastconv.adaptive_avg_pool2d(x, out)
        assert average.shape == (1, 2, *shape)
        assert average.dtype == (np.float64 if kept.kind == "i" else kept)
        np.testing.assert_allclose(average, fastconv.adaptive_avg_pool2d(wide, out), rtol=1e-3 if dtype == "float16" else 1e-6)
        assert fastconv.adaptive_max_pool2d(x[0], out).dtype == kept
        np.testing.assert_array_equal(fastconv.adaptive_max_pool2d(x[0], out), fastconv.adaptive_max_pool2d(x, out)[0])
    assert fastconv.adaptive_avg_pool2d(x[:0], 3).shape == (0, 2, 3, 3)


def test_adaptive_windows_that_are_not_finite() -> None:
    x = np.zeros((1, 1, 5, 5))
    x[0, 0, 1, 3] = np.nan  # rows 0-2 and 2-4 by columns likewise: only the upper right window has it
    for pool in (fastconv.adaptive_avg_pool2d, fastconv.adaptive_max_pool2d):
        np.testing.assert_array_equal(pool(x, 2), [[[[0, np.nan], [0, 0]]]])
    x[0, 0, 4, 4] = np.inf
    np.testing.assert_array_equal(fastconv.adaptive_avg_pool2d(x, 2), [[[[0, np.nan], [0, np.inf]]]])
    np.testing.assert_array_equal(fastconv.adaptive_max_pool2d(-np.inf * np.ones((1, 3, 4)), (2, 3), True)[1],
                                  [[[0, 1, 2], [4, 5, 6]]])


@pytest.mark.parametrize("norm_type", [1, 2, 3.5, np.inf])
@pytest.mark.parametrize("how", [{}, {"stride": 1}, {"ceil_mode": True}], ids=str)
def test_lp(norm_type: float, how: Any, engine: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 2, (2, 3, 6, 7))
    got = fastconv.lp_pool2d(x, norm_type, (2, 3), **how)
    ones = fastconv.avg_pool2d(np.ones_like(x), (2, 3), **how, divisor_override=1)  # cells of the window inside
    stride = how.get("stride", (2, 3))
    for n, c, i, j in np.ndindex(got.shape):
        top, left = (i * stride, j * stride) if stride == 1 else (i * 2, j * 3)
        part = x[n, c, top:top + 2, left:left + 3]
        want = np.abs(part).max() if norm_type == np.inf else (np.mean(part ** norm_type) * 6) ** (1 / norm_type)
        assert got[n, c, i, j] == pytest.approx(want)
        assert part.size == ones[n, c, i, j]
    if norm_type == np.inf:
        with pytest.raises(ValueError, match="norm_type must be finite, got inf"):
            fastconv.lp_pool2d_backward(got, x, norm_type, (2, 3), **how)
        return
    dout, h = rng.standard_normal(got.shape), 1e-6
    dx = fastconv.lp_pool2d_backward(dout, x, norm_type, (2, 3), **how)
    for index in [(0, 0, 0, 0), (1, 2, 5, 6), (0, 1, 3, 3)]:
        up, down = x.copy(), x.copy()
        up[index] += h
        down[index] -= h
        change = fastconv.lp_pool2d(up, norm_type, (2, 3), **how) - fastconv.lp_pool2d(down, norm_type, (2, 3), **how)
        assert dx[index] == pytest.approx(np.vdot(dout, change) / (2 * h), abs=1e-7)


def test_lp_dtypes_signs_and_zeros() -> None:
    x = np.array([[[3, 4, 0, 0]]])
    assert fastconv.lp_pool2d(x, 2, (1, 2)).tolist() == [[[5, 0]]]
    assert fastconv.lp_pool2d(-x, 2, (1, 2)).tolist() == [[[5, 0]]]
    assert fastconv.lp_pool2d(-x, np.inf, (1, 2)).tolist() == [[[4, 0]]]
    assert np.isnan(fastconv.lp_pool2d(-x, 3, (1, 2))[0, 0, 0])
    for dtype, want in (("int8", "float64"), ("float16", "float16"), ("float32", "float32"), (">f4", "float32")):
        assert fastconv.lp_pool2d(x.astype(dtype), 2, (1, 2)).dtype == want
    dx = fastconv.lp_pool2d_backward(np.ones((1, 1, 2), np.float32), x.astype(np.float32), 2, (1, 2))
    assert dx.dtype == np.float32
    np.testing.assert_allclose(dx, [[[0.6, 0.8, 0, 0]]])


def test_unpooling() -> None:
    x = np.random.default_rng(0).permutation(2 * 3 * 7 * 6).reshape(2, 3, 7, 6).astype(np.float32)
    values, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    out = fastconv.max_unpool2d(values, indices, 2, output_size=x.shape)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, np.where(np.isin(x, values), x, 0))
    back, where = fastconv.max_pool2d(out, 2, return_indices=True)
    np.testing.assert_array_equal(back, values)
    np.testing.assert_array_equal(where, indices)
    np.testing.assert_array_equal(fastconv.max_unpool2d_backward(x, indices), values)
    np.testing.assert_array_equal(fastconv.max_unpool2d(values[0], indices[0], 2, output_size=(7, 6)), out[0])


def test_results_are_contiguous_and_own_their_memory() -> None:
    """Whatever the order of the inputs, and without images as well."""
    for batch in (0, 2):
        x = np.asfortranarray(np.ones((batch, 3, 6, 8)))
        values, indices = fastconv.max_pool2d(x, 2, return_indices=True)
        values, indices = np.asfortranarray(values), np.asfortranarray(indices)
        for result in (fastconv.adaptive_avg_pool2d(x, (3, 5)), fastconv.adaptive_avg_pool2d_backward(values, x.shape),
                       *fastconv.adaptive_max_pool2d(x, (3, 5), True), fastconv.lp_pool2d(x, 2, 2),
                       fastconv.lp_pool2d_backward(values, x, 2, 2), fastconv.max_unpool2d(values, indices, 2),
                       fastconv.max_unpool2d_backward(x, indices)):
            assert result.flags.c_contiguous
            assert result.flags.owndata
            assert result.flags.writeable
            assert len(result) == batch


def test_unpooling_by_hand() -> None:
    cells = np.array([[[1, 2], [3, 4]]])
    assert fastconv.max_unpool2d(cells, [[[0, 0], [5, 6]]], 2).tolist() == [
        [[2, 0, 0, 0], [0, 3, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]  # of equal places the last one stays
    assert fastconv.max_unpool2d(cells, cells, 3, 2, 1).shape == (1, 3, 3)
    assert fastconv.max_unpool2d(cells, cells, 3, 2, 1, (4, 4)).shape == (1, 4, 4)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda x: fastconv.adaptive_avg_pool2d(x, 0), ValueError, "output_size must be at least 1, got 0"),
    (lambda x: fastconv.adaptive_max_pool2d(x, (2, 2, 2)), ValueError, "output_size must be an int or a pair"),
    (lambda x: fastconv.adaptive_max_pool2d(x, 2.5), TypeError, "output_size must be an int"),
    (lambda x: fastconv.adaptive_max_pool2d(x, 2, 1), TypeError, "return_indices must be True or False"),
    (lambda x: fastconv.adaptive_avg_pool2d(x[:, :0], 2), ValueError, "x must have at least one channel, row and column"),
    (lambda x: fastconv.adaptive_avg_pool2d_backward(x, (2, 3, 9, 9)), ValueError, "dout must have the batch and channels"),
    (lambda x: fastconv.lp_pool2d(x, 0, 2), ValueError, "norm_type must be above 0, got 0"),
    (lambda x: fastconv.lp_pool2d(x, "2", 2), TypeError, "norm_type must be a number, got '2'"),
    (lambda x: fastconv.lp_pool2d(x * 1j, 2, 2), TypeError, "x must be real, got dtype complex128"),
    (lambda x: fastconv.lp_pool2d_backward(x, x, 2, 2), ValueError, "dout must have the shape of the output"),
    (lambda x: fastconv.max_unpool2d(x, np.zeros((1, 2, 4, 5), int), 2, output_size=(10, 11)), ValueError,
     r"output_size must differ from \(8, 10\) by less than the stride \(2, 2\), .* got a height of 10"),
    (lambda x: fastconv.max_unpool2d(x, np.zeros((1, 2, 4, 5)), 2), TypeError, "indices must be integers"),
    (lambda x: fastconv.max_unpool2d(x, np.zeros((1, 2, 4, 4), int), 2), ValueError, "indices must have the shape of x"),
    (lambda x: fastconv.max_unpool2d(x, np.full((1, 2, 4, 5), 80), 2), ValueError, "indices must lie in 0 to 79"),
    (lambda x: fastconv.max_unpool2d(x, np.full((1, 2, 4, 5), -1), 2), ValueError, "got -1 to -1"),
    (lambda x: fastconv.max_unpool2d_backward(x, np.zeros((2, 2, 4, 5), int)), ValueError, "batch and channels of dout"),
    (lambda x: fastconv.max_unpool2d_backward(x, np.full((1, 2, 2, 2), 20)), ValueError, "indices must lie in 0 to 19"),
])
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.ones((1, 2, 4, 5)))


def test_against_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    functional, rng = torch.nn.functional, np.random.default_rng(0)

    def check(got: Any, want: Any) -> None:
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-12, atol=1e-12)

    for height, width, rows, columns in itertools.product((1, 4, 7), (3, 8), (1, 3, 5), (2, 3)):
        x = rng.integers(-3, 3, (2, 2, height, width)).astype(np.float64)
        image = torch.from_numpy(x).requires_grad_()
        want = functional.adaptive_avg_pool2d(image, (rows, columns))
        check(fastconv.adaptive_avg_pool2d(x, (rows, columns)), want)
        dout = rng.standard_normal(want.shape)
        want.backward(torch.from_numpy(dout))
        check(fastconv.adaptive_avg_pool2d_backward(dout, x.shape), image.grad)
        values, indices = functional.adaptive_max_pool2d(image, (rows, columns), return_indices=True)
        got = fastconv.adaptive_max_pool2d(x, (rows, columns), return_indices=True)
        check(got[0], values)
        check(got[1], indices)
    for p, stride, ceil in itertools.product((1, 2, 3), (None, 2), (False, True)):
        x = rng.uniform(-1, 3, (2, 2, 7, 8))
        image = torch.from_numpy(x).requires_grad_()
        want = functional.lp_pool2d(image, p, 3, stride, ceil)
        check(fastconv.lp_pool2d(x, p, 3, stride, ceil), want)
        dout = rng.standard_normal(want.shape)
        want.backward(torch.from_numpy(dout))
        check(fastconv.lp_pool2d_backward(dout, x, p, 3, stride, ceil), image.grad)
    for stride, padding, size in ((2, 0, None), (3, 0, (1, 2, 9, 10)), (2, 1, (7, 8))):
        x = rng.standard_normal((1, 2, 8, 8))
        values, indices = functional.max_pool2d(torch.from_numpy(x), 3, stride, padding, return_indices=True)
        try:
            want = functional.max_unpool2d(values, indices, 3, stride, padding, size)
        except (ValueError, RuntimeError):
            with pytest.raises(ValueError):
                fastconv.max_unpool2d(values.numpy(), indices.numpy(), 3, stride, padding, size)
            continue
        if stride == 3:  # no cell twice: there PyTorch does not say which one stays
            check(fastconv.max_unpool2d(values.numpy(), indices.numpy(), 3, stride, padding, size), want)
