"""im2col and col2im: every case, layout and dtype on every engine against the reference."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import pytest
from cases import CORE_CONV_CASES, LOWERING_CASES, ConvCase

import fastconv
from fastconv import reference
from fastconv.geometry import LAYOUTS

FLOATS = ("float32", "float64")
OTHERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "complex64",
          "complex128")


@cache
def images(case: ConvCase, dtype: str) -> np.ndarray:
    """Small whole numbers, of which sums are exact in every dtype, so that results can be compared bit by bit."""
    rng = np.random.default_rng(list(case.id.encode()))
    return rng.integers(0 if dtype.startswith("u") else -2, 3, case.x).astype(dtype)


@cache
def expected_columns(case: ConvCase, layout: str) -> np.ndarray:
    return reference.im2col(images(case, "float64"), *case.window, dilation=case.dilation, layout=layout)


@cache
def columns(case: ConvCase, layout: str, dtype: str) -> np.ndarray:
    rng = np.random.default_rng(list(case.id.encode()))
    shape = expected_columns(case, layout).shape
    return rng.integers(0 if dtype.startswith("u") else -2, 2, shape).astype(dtype)


@cache
def expected_images(case: ConvCase, layout: str, unsigned: bool) -> np.ndarray:
    col = columns(case, layout, "uint64" if unsigned else "int64").astype(np.float64)
    return reference.col2im(col, case.x, *case.window, dilation=case.dilation, layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", LOWERING_CASES, ids=str)
def test_im2col(case, layout, engine, poisoned):
    want = expected_columns(case, layout)
    for dtype in FLOATS:
        out = poisoned(want.shape, dtype)
        got = fastconv.im2col(poisoned.place(images(case, dtype)), *case.window, dilation=case.dilation,
                              layout=layout, out=out)
        assert got is out
        np.testing.assert_array_equal(got, want, err_msg=dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", LOWERING_CASES, ids=str)
def test_col2im(case, layout, engine, poisoned):
    want = expected_images(case, layout, unsigned=False)
    for dtype in FLOATS:
        out = poisoned(case.x, dtype)
        got = fastconv.col2im(poisoned.place(columns(case, layout, dtype)), case.x, *case.window,
                              dilation=case.dilation, layout=layout, out=out)
        assert got is out
        np.testing.assert_array_equal(got, want, err_msg=dtype)


@pytest.mark.parametrize("dtype", [*FLOATS, "uint8", "int16", "complex64", "complex128"])
@pytest.mark.parametrize("side", [2, 3, 4, 8])
def test_windows_side_by_side(side, dtype, engine):
    """Their rows may be moved whole, or woven of those of two taps, where sizes and addresses allow it."""
    cells = np.arange(3 * 6 * 17 * 42).astype(dtype)
    for height, width, begin in ((16, 40, 0), (16, 40, 1), (17, 41, 0), (16, 41, 2), (17, 40, 3)):
        x = cells[begin:begin + 3 * 6 * height * width].reshape(3, 6, height, width)
        for image in (x, x[::-1, ::-1, ::-1], x[:, :, 1:, 1:], x[..., :-1]):
            for stride in (side, (side + 1, side), (side - 1, side)):
                for layout in ("rows", "columns"):
                    got = fastconv.im2col(image, side, side, stride, pad_value=1, layout=layout)
                    np.testing.assert_array_equal(got, reference.im2col(image, side, side, stride, layout=layout))
                    if dtype in FLOATS:
                        np.testing.assert_array_equal(
                            fastconv.col2im(got, image.shape, side, side, stride, layout=layout),
                            reference.col2im(got, image.shape, side, side, stride, layout=layout))


@pytest.mark.parametrize("window", [(3, 1, 1), (2, 2, 0), (3, 2, 1), (1, 1, 0)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_larger_than_caches(layout, window, engine):
    """They may be stored in another way. A part of it is computed as if it were alone, which is smaller."""
    if engine.backend == "numpy":
        pytest.skip("the reference has one way")
    (k, stride, pad), shape = window, (3, 6, 653, 579)
    channels = 1 if k == 3 and stride == 1 else 2
    x = np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32)
    x = x if k == 1 or stride == 2 else x[:, :2]
    whole = fastconv.im2col(x, k, k, stride, pad, layout="windows")
    assert whole.nbytes > 24 * 2**20
    for c in range(0, x.shape[1], channels):
        part = fastconv.im2col(x[:, c:c + channels], k, k, stride, pad, layout="windows")
        np.testing.assert_array_equal(whole[:, c:c + channels], part)
    col = fastconv.im2col(x, k, k, stride, pad, layout=layout)
    axes = {"rows": (0, 4, 5, 1, 2, 3), "cs231n": (1, 2, 3, 4, 5, 0)}.get(layout, range(6))
    np.testing.assert_array_equal(col, whole.transpose(axes).reshape(col.shape))
    back = fastconv.col2im(col, x.shape, k, k, stride, pad, layout=layout)
    np.testing.assert_array_equal(back, fastconv.col2im(whole, x.shape, k, k, stride, pad, layout="windows"))


@lru_cache(maxsize=1)
def large_rows(shape: tuple[int, ...], window: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, its windows as rows, and the image that these add up to."""
    kernel, *rest = window
    x = np.random.default_rng(0).integers(-4, 5, shape).astype(dtype)
    rows = reference.im2col(x, kernel, kernel, *rest)
    return x, rows, reference.col2im(rows, shape, kernel, kernel, *rest)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "window"), [((4, 16, 320, 336), (2, 2, 0)), ((1, 48, 130, 113), (3, 1, 1)),
                                               ((2, 16, 304, 320), (3, 2, 1)), ((1, 32, 512, 528), (1, 1, 0)),
                                               # less windows in a row than a piece has, and rows that need padding or none
                                               ((52, 64, 71, 3), (3, 1, 1)), ((40, 64, 72, 6), (3, 1, ((1, 0), (0, 0)))),
                                               ((1, 256, 56, 56), (3, 1, 1))], ids=str)
def test_whole_lines(shape, window, dtype, engine):
    """Rows of a large result may be stored in whole cache lines, wherever these begin."""
    if engine.backend == "numpy":
        pytest.skip("the reference has one way")
    kernel, *rest = window
    x, want, image = large_rows(shape, window, dtype)
    assert max(want.nbytes, image.nbytes) > 24 * 2**20
    for begin in (0, 7):  # elements
        memory = np.zeros(want.size + 16, dtype)
        col = memory[begin:begin + want.size].reshape(want.shape)
        np.testing.assert_array_equal(fastconv.im2col(x, kernel, kernel, *rest, out=col), want)
        assert not memory[:begin].any()
        assert not memory[begin + want.size:].any()
        memory[:] = 0
        back = memory[begin:begin + x.size].reshape(shape)
        np.testing.assert_array_equal(fastconv.col2im(want, shape, kernel, kernel, *rest, out=back), image)
        assert not memory[:begin].any()
        assert not memory[begin + x.size:].any()


@lru_cache(maxsize=1)
def large_columns(shape: tuple[int, ...], window: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As large_rows, in the layout "columns"."""
    kernel, *rest = window
    x = np.random.default_rng(0).integers(-4, 5, shape).astype(dtype)
    columns = reference.im2col(x, kernel, kernel, *rest, layout="columns")
    return x, columns, reference.col2im(columns, shape, kernel, kernel, *rest, layout="columns")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("shape", "window"), [((2, 8, 641, 643), (2, 2, 0)), ((1, 16, 431, 446), (3, 2, 1)),
                                               ((1, 17, 430, 445), (3, 2, (0, 1)))], ids=str)
def test_columns_past_the_caches(shape, window, dtype, engine):
    """Each tap's part of a large result may be a stream of its own, and rows of the image may be woven."""
    if engine.backend == "numpy":
        pytest.skip("the reference has one way")
    kernel, *rest = window
    x, want, image = large_columns(shape, window, dtype)
    assert want.nbytes > 24 * 2**20
    memory = np.zeros(max(want.size, x.size) + 48, dtype)
    line = -memory.ctypes.data % 64 // memory.itemsize  # where a cache line begins
    for begin in (line, line + 7):  # elements
        col = memory[begin:begin + want.size].reshape(want.shape)
        np.testing.assert_array_equal(fastconv.im2col(x, kernel, kernel, *rest, layout="columns", out=col), want)
        assert not memory[:begin].any()
        assert not memory[begin + want.size:].any()
        memory[:] = 0
        back = memory[begin:begin + x.size].reshape(shape)
        np.testing.assert_array_equal(fastconv.col2im(want, shape, kernel, kernel, *rest, layout="columns", out=back), image)
        assert not memory[:begin].any()
        assert not memory[begin + x.size:].any()
        memory[:] = 0


@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_other_dtypes(case, layout, dtype, engine):
    x, col = images(case, dtype), columns(case, layout, dtype)
    got = fastconv.im2col(x, *case.window, dilation=case.dilation, layout=layout)
    assert got.dtype == dtype
    assert got.flags.c_contiguous
    assert got.flags.writeable
    assert got.flags.owndata
    np.testing.assert_array_equal(got, reference.im2col(x, *case.window, dilation=case.dilation, layout=layout))
    got = fastconv.col2im(col, case.x, *case.window, dilation=case.dilation, layout=layout)
    assert got.dtype == dtype
    assert got.flags.c_contiguous
    assert got.flags.writeable
    assert got.flags.owndata
    np.testing.assert_array_equal(got, expected_images(case, layout, unsigned=dtype.startswith("u")))


@pytest.mark.parametrize("pad_value", [7, -2.5, np.nan, -np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_pad_value(case, layout, pad_value, engine):
    got = fastconv.im2col(images(case, "float32"), *case.window, dilation=case.dilation, layout=layout,
                          pad_value=pad_value)
    # Where the image has a cell, by lowering an image of ones.
    inside = reference.im2col(np.ones(case.x), *case.window, dilation=case.dilation, layout=layout) == 1
    np.testing.assert_array_equal(got, np.where(inside, expected_columns(case, layout), pad_value))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_three_axes_drop_the_batch(layout, engine):
    x = np.arange(3 * 6 * 7, dtype=np.float32).reshape(3, 6, 7)
    got = fastconv.im2col(x, 2, 3, 2, 1, layout=layout)
    batch = fastconv.im2col(x[np.newaxis], 2, 3, 2, 1, layout=layout)
    # "rows" and "cs231n" run the batch into an axis of positions, so that only the others have one to drop.
    assert got.shape == (batch.shape if layout in ("rows", "cs231n") else batch.shape[1:])
    np.testing.assert_array_equal(got, batch.reshape(got.shape))
    back = fastconv.col2im(got, x.shape, 2, 3, 2, 1, layout=layout)
    assert back.shape == x.shape
    np.testing.assert_array_equal(back, fastconv.col2im(batch, (1, *x.shape), 2, 3, 2, 1, layout=layout)[0])


def test_layouts_hold_the_same_cells(engine):
    """What each layout means, said with transpositions of one another."""
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5))
    window, (n, c, kh, kw, oh, ow) = (3, 2, 2, 1), (2, 3, 3, 2, 3, 3)
    windows = fastconv.im2col(x, *window, layout="windows")
    assert windows.shape == (n, c, kh, kw, oh, ow)
    np.testing.assert_array_equal(fastconv.im2col(x, *window, layout="rows"),
                                  windows.transpose(0, 4, 5, 1, 2, 3).reshape(n * oh * ow, c * kh * kw))
    np.testing.assert_array_equal(fastconv.im2col(x, *window, layout="columns"),
                                  windows.reshape(n, c * kh * kw, oh * ow))
    np.testing.assert_array_equal(fastconv.im2col(x, *window, layout="cs231n"),
                                  windows.transpose(1, 2, 3, 4, 5, 0).reshape(c * kh * kw, oh * ow * n))
