"""Products of two matrices, which the fully connected layers are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv.functional import matrix_product

# rows, terms, columns
SHAPES = ((1, 1, 1), (2, 2, 5), (1, 7, 3), (9, 1, 70), (100, 700, 100), (100, 100, 700), (700, 100, 100), (7, 300, 3),
          (3, 5, 130), (10, 100, 100), (100, 100, 10), (530, 600, 33), (33, 577, 67), (1030, 40, 20), (6, 288, 64),
          (17, 300, 516))


def matrices(shape: tuple[int, int, int], turned: tuple[bool, bool], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(sum(shape))
    rows, terms, columns = shape
    a, b = (rng.standard_normal(size).astype(dtype) for size in ((rows, terms), (terms, columns)))
    return tuple(np.asfortranarray(array) if turn else array for array, turn in zip((a, b), turned, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)], ids=["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(shape: tuple[int, int, int], turned: tuple[bool, bool], dtype: str, engine: Any) -> None:
    a, b = matrices(shape, turned, dtype)
    out = matrix_product(a, b)
    assert out.dtype == dtype
    assert out.flags.c_contiguous
    exact = a.astype(np.float64) @ b.astype(np.float64)
    scale = np.sqrt((a.astype(np.float64)**2) @ (b.astype(np.float64)**2)).max()
    assert np.abs(out - exact).max() <= (2e-6 if dtype == "float32" else 1e-12) * scale  # rule 14
    for threads in (1, 3, 4):
        with fastconv.options(num_threads=threads):
            assert np.array_equal(matrix_product(a, b), out)  # rule 12


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)], ids=["nn", "nt", "tn", "tt"])
def test_what_is_not_finite_stays_in_its_row_and_column(turned: tuple[bool, bool], engine: Any) -> None:
    a, b = matrices((40, 300, 37), turned, "float32")
    a, b = a.copy(order="K"), b.copy(order="K")
    a[3, 290], b[7, 36], b[8, 0] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        want = a @ b
    out = matrix_product(a, b)
    assert np.array_equal(np.isnan(out), np.isnan(want))
    assert np.array_equal(np.isinf(out), np.isinf(want))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)], ids=str)
def test_empty_products(shape: tuple[int, int, int], engine: Any) -> None:
    a, b = matrices(shape, (False, False), "float32")
    assert np.array_equal(matrix_product(a, b), a @ b)


@pytest.mark.parametrize(("left", "right"), [("float32", "float64"), ("int32", "int32"), ("float16", "float16"),
                                               (">f4", "<f4")])
def test_other_dtypes_are_numpys(left: str, right: str, engine: Any) -> None:
    a, b = (np.arange(12).reshape(size).astype(dtype) for size, dtype in (((3, 4), left), ((4, 3), right)))
    out = matrix_product(a, b)
    assert out.dtype == (a @ b).dtype
    assert np.array_equal(out, a @ b)


def test_any_strides(engine: Any) -> None:
    a, b = matrices((60, 50, 40), (False, False), "float64")
    want = matrix_product(a[::-2, ::3].copy(), b[1:18, ::-1].copy())
    assert np.array_equal(matrix_product(a[::-2, ::3], b[1:18, ::-1]), want)
