"""Maximum and average pooling and their gradients: every case on every engine against the reference."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from cases import CORE_POOL_CASES, POOL_CASES, PoolCase
from processes import output_of

import fastconv
from fastconv import reference
from fastconv.options import backend_available

FLOATS = ("float32", "float64")
OTHERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16")
#: count_include_pad, divisor_override
DIVISORS = ((True, None), (False, None), (True, 3), (False, -2))


@cache
def images(case: PoolCase, dtype: str) -> np.ndarray:
    """Few different values, so that there are ties in most windows."""
    rng = np.random.default_rng(list(case.id.encode()))
    return rng.integers(0 if dtype.startswith("u") else -3, 4, case.x).astype(dtype)


@cache
def expected_maximum(case: PoolCase) -> tuple[np.ndarray, np.ndarray]:
    return reference.max_pool2d(images(case, "float64"), **case.arguments, return_indices=True)


@cache
def output_gradient(case: PoolCase, dtype: str) -> np.ndarray:
    """Small whole numbers: their sums are exact."""
    rng = np.random.default_rng(list(case.id.encode()))
    return rng.integers(-4, 5, expected_maximum(case)[0].shape).astype(dtype)


@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_max_pool(case, engine, poisoned):
    want, _ = expected_maximum(case)
    for dtype in FLOATS:
        out = poisoned(want.shape, dtype)
        got = fastconv.max_pool2d(poisoned.place(images(case, dtype)), **case.arguments, out=out)
        assert got is out
        np.testing.assert_array_equal(got, want, err_msg=dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_max_pool_of_different_values(case, dtype, engine):
    """Where no two cells are equal, and no cell is above the padding's zero."""
    x = -1 - np.random.default_rng(list(case.id.encode())).permutation(np.prod(case.x)).reshape(case.x).astype(dtype)
    got, indices = fastconv.max_pool2d(x, **case.arguments, return_indices=True)
    want, want_indices = reference.max_pool2d(x, **case.arguments, return_indices=True)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(indices, want_indices)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_max_pool_with_indices(case, dtype, engine, poisoned):
    want, want_indices = expected_maximum(case)
    out = poisoned(want.shape, dtype)
    got, indices = fastconv.max_pool2d(poisoned.place(images(case, dtype)), **case.arguments, return_indices=True,
                                       out=out)
    assert got is out
    np.testing.assert_array_equal(got, want)
    assert indices.dtype == np.int64
    assert indices.flags.c_contiguous
    assert indices.flags.owndata
    np.testing.assert_array_equal(indices, want_indices)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_max_pool_backward(case, dtype, engine, poisoned):
    _, indices = expected_maximum(case)
    dout = output_gradient(case, dtype)
    dx = poisoned(case.x, dtype)
    got = fastconv.max_pool2d_backward(poisoned.place(dout), poisoned.place(indices), case.x, out=dx)
    assert got is dx
    np.testing.assert_array_equal(got, reference.max_pool2d_backward(dout.astype(np.float64), indices, case.x))


#: Windows that the indices of a plane are guessed to come from, and one that nobody would guess.
GUESSES = ((2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), (3, 1, 0), (2, 1, 0), (4, 3, 1))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("window", GUESSES, ids=str)
def test_indices_of_any_origin(window, dtype, engine):
    """max_pool2d_backward is not told which windows the indices come from."""
    rng, shape = np.random.default_rng(5), (1, 3, 12, 70)
    y, indices = fastconv.max_pool2d(rng.permutation(np.prod(shape)).reshape(shape).astype(dtype), *window,
                                     return_indices=True)
    dout = rng.integers(-4, 5, y.shape).astype(dtype)
    indices[0, 1, -1, -1] = 3  # one window of one plane is another
    np.testing.assert_array_equal(fastconv.max_pool2d_backward(dout, indices, shape),
                                  reference.max_pool2d_backward(dout, indices, shape))
    indices[0, 2] = rng.integers(0, 12 * 70, indices.shape[2:])
    np.testing.assert_array_equal(fastconv.max_pool2d_backward(dout, indices, shape),
                                  reference.max_pool2d_backward(dout, indices, shape))


@pytest.mark.parametrize("width", [32000, 32001, 32767, 65535, 65537])
@pytest.mark.parametrize("window", [(3, 1, 1), (3, 1, 0), (2, 1, 0)], ids=str)
def test_wide_planes(window, width, engine):
    """How far what a window chose lies from it may be compared by 16 bits."""
    rng, shape = np.random.default_rng(8), (1, 1, 4, width)
    y, indices = fastconv.max_pool2d(rng.permutation(np.prod(shape)).reshape(shape).astype(np.float32), *window,
                                     return_indices=True)
    dout = rng.integers(-4, 5, y.shape).astype(np.float32)
    np.testing.assert_array_equal(fastconv.max_pool2d_backward(dout, indices, shape),
                                  reference.max_pool2d_backward(dout, indices, shape))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("window", GUESSES, ids=str)
@pytest.mark.parametrize("size", [(7, 7), (8, 5), (3, 3), (4, 4), (5, 2), (6, 1)], ids=str)
def test_many_small_planes(size, window, dtype, engine):
    """They are looked at together, and one by one where one of them is another."""
    if min(size) + 2 * window[2] < window[0]:
        return
    rng, shape = np.random.default_rng(5), (2, 150, *size)
    y, indices = fastconv.max_pool2d(rng.permutation(np.prod(shape)).reshape(shape).astype(dtype), *window,
                                     return_indices=True)
    dout = rng.integers(-4, 5, y.shape).astype(dtype)
    np.testing.assert_array_equal(fastconv.max_pool2d_backward(dout, indices, shape),
                                  reference.max_pool2d_backward(dout, indices, shape))
    for n, c in ((0, 0), (0, 77), (1, 149)):
        indices[n, c] = rng.integers(0, np.prod(size), indices.shape[2:])
        np.testing.assert_array_equal(fastconv.max_pool2d_backward(dout, indices, shape),
                                      reference.max_pool2d_backward(dout, indices, shape))
    indices[1, 40, -1, -1] = np.prod(size)
    with pytest.raises(ValueError, match="indices"):
        fastconv.max_pool2d_backward(dout, indices, shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("window", [(3, 2, 1, 1), (3, 1, 1, 1), (5, 1, 2, 1), (4, 3, 1, 1), (3, 1, 2, 2),
                                    ((2, 5), (3, 1), (1, 2), (2, 1))], ids=str)
@pytest.mark.parametrize("size", [(7, 7), (9, 10), (20, 31)], ids=str)
def test_planes_that_do_not_fill_the_last_vector(size, window, dtype, engine):
    """Of small planes a vector holds some side by side; the last ones are less than that."""
    kernel, stride, padding, dilation = window
    rng, shape = np.random.default_rng(6), (1, 37, *size)
    x = rng.integers(-3, 4, shape).astype(dtype)
    x[0, 5], x[0, 36, 2, 3], x[0, 20, 4:, 1] = -np.inf, np.nan, np.nan
    expected = reference.max_pool2d(x, kernel, stride, padding, dilation, return_indices=True)
    for found, right in zip(fastconv.max_pool2d(x, kernel, stride, padding, dilation, return_indices=True), expected,
                            strict=True):
        np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(fastconv.max_pool2d(x, kernel, stride, padding, dilation), expected[0])
    x = rng.integers(1, 9, shape).astype(dtype)
    y = fastconv.avg_pool2d(x, kernel, stride, padding, dilation=dilation)
    np.testing.assert_allclose(y, reference.avg_pool2d(x, kernel, stride, padding, dilation=dilation), rtol=1e-6)
    dout = rng.integers(1, 9, y.shape).astype(dtype)
    np.testing.assert_allclose(
        fastconv.avg_pool2d_backward(dout, shape, kernel, stride, padding, dilation=dilation),
        reference.avg_pool2d_backward(dout, shape, kernel, stride, padding, dilation=dilation), rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("window", GUESSES, ids=str)
def test_one_index_outside_its_plane(window, dtype, engine):
    """Also where the window would have a cell there, if the image went on."""
    x = np.random.default_rng(5).standard_normal((1, 2, 12, 70)).astype(dtype)
    y, indices = fastconv.max_pool2d(x, *window, return_indices=True)
    for place in ((0, 0), (0, -1), (-1, 0), (-1, -1), (1, 5)):
        right = int(indices[0, 1][place])
        for index in (right + 12 * 70, right - 12 * 70, right + 2**32, right - 2**32, right + 2**62, -2**63, 2**63 - 1):
            wrong = indices.copy()
            wrong[0, 1][place] = index
            with pytest.raises(ValueError, match="indices"):
                fastconv.max_pool2d_backward(y, wrong, x.shape)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("window", GUESSES, ids=str)
def test_indices_beside_their_windows(window, ceil_mode, dtype, engine):
    """Of cells where a window at the plane's edge would have a row or column, if the image went on: they are others' there."""
    rng = np.random.default_rng(5)
    for height, width in ((9, 41), (10, 40), (11, 67), (12, 64), (6, 33)):
        x = rng.permutation(2 * height * width).reshape(1, 2, height, width).astype(dtype)
        y, indices = fastconv.max_pool2d(x, *window, ceil_mode=ceil_mode, return_indices=True)
        dout = rng.integers(-4, 5, y.shape).astype(dtype)
        for place in ((0, 0), (0, -1), (-1, 0), (-1, -1), (1, 0), (1, -1), (1, 9), (1, 5)):
            right = int(indices[0, 1][place])
            for step in (*range(-3, 4), -width - 1, -width, width, width + 1):
                if 0 <= right + step < height * width:
                    other = indices.copy()
                    other[0, 1][place] = right + step
                    np.testing.assert_array_equal(fastconv.max_pool2d_backward(dout, other, x.shape),
                                                  reference.max_pool2d_backward(dout, other, x.shape),
                                                  err_msg=f"{height}x{width}, {place} {step}")


@pytest.mark.parametrize(("operation", "shape", "window"), [
    ("max", (2, 15, 463, 517), (2, 1)), ("max", (2, 15, 463, 517), (5, 1)),
    ("max", (2, 15, 925, 1033), (3, 2, 1)), ("indices", (2, 10, 461, 519), (3, 1, 1)),
    ("max_backward", (2, 14, 467, 521), (2, 2)), ("max_backward", (2, 14, 467, 521), (3, 2, 1)),
    ("max_backward", (2, 14, 467, 521), (4, 3)), ("max_backward", (2, 14, 467, 521), (3, 1, 1)),
    ("max_backward", (2, 14, 467, 521), (2, 1)), ("avg", (2, 15, 463, 517), (3, 1, 1)),
    ("avg_backward", (2, 15, 463, 517), (3, 2, 1)), ("avg_backward", (2, 15, 463, 517), (4, 3)),
], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_results_larger_than_caches(operation, shape, window, threads, engine):
    """They may be stored in another way. An image's part of it is computed as if it were alone, which is smaller."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)

    def pooled(x):
        y, indices = fastconv.max_pool2d(x, *window, return_indices=True)
        match operation:
            case "max":
                return fastconv.max_pool2d(x, *window)
            case "indices":
                return indices
            case "max_backward":
                return fastconv.max_pool2d_backward(y, indices, x.shape)
            case "avg":
                return fastconv.avg_pool2d(x, *window)
        return fastconv.avg_pool2d_backward(y, x.shape, *window)

    if engine.backend == "numpy":
        pytest.skip("the reference has one way")
    with fastconv.options(num_threads=threads):
        whole = pooled(x)
        assert whole.nbytes > 24 * 2**20
        for i in range(2):
            np.testing.assert_array_equal(whole[i:i + 1], pooled(x[i:i + 1]))


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("case", CORE_POOL_CASES, ids=str)
def test_max_pool_of_other_dtypes(case, dtype, engine):
    x = images(case, dtype)
    want, want_indices = reference.max_pool2d(x.astype(np.float64), **case.arguments, return_indices=True)
    got, indices = fastconv.max_pool2d(x, **case.arguments, return_indices=True)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(indices, want_indices)
    np.testing.assert_array_equal(fastconv.max_pool2d(x, **case.arguments), got)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_avg_pool(case, dtype, engine, poisoned, assert_accurate):
    x = np.random.default_rng(list(case.id.encode())).standard_normal(case.x).astype(dtype)
    for include, override in DIVISORS:
        how = {**case.arguments, "count_include_pad": include, "divisor_override": override}
        want = reference.avg_pool2d(x.astype(np.float64), **how)
        out = poisoned(want.shape, dtype)
        got = fastconv.avg_pool2d(poisoned.place(x), **how, out=out)
        assert got is out
        assert_accurate(got, want)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_avg_pool_backward(case, dtype, engine, poisoned, assert_accurate):
    dout = output_gradient(case, dtype)
    for include, override in DIVISORS:
        how = {**case.arguments, "count_include_pad": include, "divisor_override": override}
        want = reference.avg_pool2d_backward(dout.astype(np.float64), case.x, **how)
        dx = poisoned(case.x, dtype)
        got = fastconv.avg_pool2d_backward(poisoned.place(dout), case.x, **how, out=dx)
        assert got is dx
        assert_accurate(got, want)


@pytest.mark.parametrize("case", CORE_POOL_CASES, ids=str)
def test_avg_pool_of_float16(case, engine, assert_accurate):
    x, dout = images(case, "float16"), output_gradient(case, "float16")
    got = fastconv.avg_pool2d(x, **case.arguments)
    assert got.dtype == np.float16
    assert_accurate(got, reference.avg_pool2d(x.astype(np.float64), **case.arguments))
    got = fastconv.avg_pool2d_backward(dout, case.x, **case.arguments)
    assert got.dtype == np.float16
    assert_accurate(got, reference.avg_pool2d_backward(dout.astype(np.float64), case.x, **case.arguments))


@pytest.mark.parametrize("call", [
    lambda x: fastconv.max_pool2d(x, 3, 2, 1),
    lambda x: fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)[1],
    lambda x: fastconv.avg_pool2d(x, 3, 2, 1),
    lambda x: fastconv.max_pool2d_backward(x[..., :4, :4], np.zeros(x[..., :4, :4].shape, int), x.shape),
    lambda x: fastconv.avg_pool2d_backward(x[..., :4, :4], x.shape, 3, 2, 1),
    fastconv.global_avg_pool2d,
    fastconv.global_max_pool2d,
], ids=["max", "indices", "avg", "max-backward", "avg-backward", "global-avg", "global-max"])
def test_three_axes_are_a_batch_of_one(call, engine):
    x = np.random.default_rng(0).standard_normal((3, 7, 8)).astype(np.float32)
    got = call(x)
    assert got.ndim == call(x[np.newaxis]).ndim - 1
    np.testing.assert_array_equal(got, call(x[np.newaxis])[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 1, 1, 1), (3, 5, 1, 65), (1, 2, 130, 70), (0, 2, 3, 3)], ids=str)
def test_global_pools(shape, dtype, engine, assert_accurate):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    mean, largest = fastconv.global_avg_pool2d(x), fastconv.global_max_pool2d(x)
    assert mean.dtype == largest.dtype == dtype
    spread = (x.astype(np.float64) ** 2).mean(axis=(2, 3)) / np.prod(shape[2:])
    assert_accurate(mean, reference.global_avg_pool2d(x.astype(np.float64)), spread)
    np.testing.assert_array_equal(largest, reference.global_max_pool2d(x))
    # A pooling whose window is the image.
    np.testing.assert_array_equal(largest.ravel(), fastconv.max_pool2d(x, shape[2:]).ravel())


@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 6, 9])
@pytest.mark.parametrize("stride", [3, 4, 5, 6, 8, 12, 31])
def test_residues_of_taps(stride, dilation, engine, assert_accurate):
    """Taps whose places are equal modulo the stride: kernels keep tables of them, of as many as come before they repeat."""
    rng = np.random.default_rng(stride * dilation)
    x = rng.integers(-9, 10, (1, 2, 40, 61)).astype(np.float64)
    how = {"kernel_size": (4, 7), "stride": stride, "padding": 3, "dilation": dilation}
    values, places = fastconv.max_pool2d(x, **how, return_indices=True)
    want = reference.max_pool2d(x, **how, return_indices=True)
    np.testing.assert_array_equal(values, want[0])
    np.testing.assert_array_equal(places, want[1])
    np.testing.assert_allclose(fastconv.avg_pool2d(x, **how), reference.avg_pool2d(x, **how), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(fastconv.avg_pool2d_backward(values, x.shape, **how),
                               reference.avg_pool2d_backward(values, x.shape, **how), rtol=1e-13, atol=1e-13)
    how = {"stride": stride, "dilation": dilation}
    col = fastconv.im2col(x, 4, 7, pad=3, **how)
    np.testing.assert_array_equal(col, reference.im2col(x, 4, 7, pad=3, **how))
    for layout in ("rows", "columns"):
        part = fastconv.im2col(x, 4, 7, pad=3, **how, layout=layout)
        np.testing.assert_array_equal(fastconv.col2im(part, x.shape, 4, 7, pad=3, **how, layout=layout),
                                      reference.col2im(part, x.shape, 4, 7, pad=3, **how, layout=layout))
    weight = rng.integers(-9, 10, (3, 2, 4, 7)).astype(np.float64)
    out = fastconv.conv2d(x, weight, padding=3, **how, algorithm="direct")
    np.testing.assert_array_equal(out, reference.conv2d(x, weight, padding=3, **how))
    np.testing.assert_array_equal(fastconv.conv2d_backward_data(out, weight, x.shape, padding=3, **how, algorithm="direct"),
                                  reference.conv2d_backward_data(out, weight, x.shape, padding=3, **how))


@pytest.mark.skipif(not backend_available("cython"), reason="without the extension modules")
@pytest.mark.parametrize("axis", ["width", "height"])
def test_windows_of_a_long_signal(axis):
    """Of a hundred thousand cells, moved by as many: to number their taps took minutes, hours in the gradients."""
    printed = output_of("""
    import sys
    import numpy as np
    import fastconv
    length, k = 1_000_000, 100_000
    x = np.random.default_rng(0).integers(-9, 10, (2, 1, length)).astype("f4")
    parts = x.reshape(2, 1, length // k, k)
    shape, window = ((1, 2, length), (1, k)) if sys.argv[1] == "width" else ((2, length, 1), (k, 1))
    signal, small = x.reshape(shape), lambda values: values.reshape(2, 1, length // k)
    values, where = fastconv.max_pool2d(signal, window, return_indices=True)
    mean = fastconv.avg_pool2d(signal, window)
    spread = fastconv.avg_pool2d_backward(np.ones_like(mean), shape, window)
    weight = np.ones((shape[0], 1, *window), "f4")
    data = fastconv.conv2d_backward_data(values, weight, shape, window, groups=shape[0], algorithm="direct")
    back = fastconv.col2im(fastconv.im2col(signal, *window, window), shape, *window, window)
    wide = np.repeat(parts.max(3), k, 2)
    print(np.array_equal(small(values), parts.max(3)), np.abs(small(mean) - parts.mean(3)).max() < 1e-4,
          np.array_equal(signal.ravel()[(where + np.arange(shape[0])[:, None, None] * signal[0].size).ravel()], values.ravel()),
          np.allclose(spread, 1 / k), np.array_equal(data.reshape(2, 1, length), wide), np.array_equal(back, signal))
    """, axis)
    assert printed == "True " * 5 + "True\n"


@pytest.mark.parametrize("cells", [(1, 1), (16, 16)])
def test_thousands_of_gradients_in_one_cell(cells, engine, rng, assert_accurate):
    """No pooling gives such indices, but they are valid: rule 14 holds for their sums."""
    dout = rng.standard_normal((1, 2, 400, 250)).astype("float32")
    indices = np.zeros(dout.shape, np.int64)
    got = fastconv.max_pool2d_backward(dout, indices, (1, 2, *cells))
    want = np.zeros(got.shape)
    want[:, :, 0, 0] = dout.astype(np.float64).sum(axis=(2, 3))
    assert_accurate(got, want, (dout.astype(np.float64) ** 2).sum(axis=(2, 3)).max())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("cells", "kernel", "dilation"), [
    ((127, 127), 64, 1), ((300, 320), 31, 3), ((600, 600), (64, 32), (1, 5)), ((1, 2000), (1, 800), 1),
    ((400, 40), (200, 1), 2)])
def test_a_cell_that_is_the_largest_of_thousands_of_windows(cells, kernel, dilation, dtype, engine, assert_accurate):
    """Equal gradients, as of a mean: what rounding loses of each sum has the same sign."""
    x = np.zeros((1, 1, *cells), dtype)
    x[:, :, cells[0] // 2, cells[1] // 2] = 1
    out, indices = fastconv.max_pool2d(x, kernel, 1, 0, dilation, return_indices=True)
    dout = np.full(out.shape, 0.1, dtype)
    want = reference.max_pool2d_backward(dout.astype(np.float64), indices, x.shape)
    assert_accurate(fastconv.max_pool2d_backward(dout, indices, x.shape), want)


def test_infinite_gradients_of_a_cell_of_thousands_of_windows(engine):
    """What rounding loses beside them is no number, and must not come into the sums."""
    dout = np.ones((1, 1, 100, 100), "float32")
    dout[0, 0, 50, 0] = np.inf
    indices = np.zeros(dout.shape, np.int64)
    indices[0, 0, 60:] = 7
    for cells in ((20, 30), (300, 300)):
        got = fastconv.max_pool2d_backward(dout, indices, (1, 1, *cells)).ravel()
        np.testing.assert_array_equal(got[[0, 7, 8]], [np.inf, 4000, 0])
