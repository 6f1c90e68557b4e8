"""scipy.signal's names: by hand, by the definition as loops, and against SciPy itself over a wide sweep."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv.compat import scipy_signal as ours
from fastconv.compat.scipy_signal import _by_fft, _by_taps, _good_size

MODES = ("full", "same", "valid")
REAL, INTEGER, COMPLEX = ("float32", "float64"), ("int8", "uint8", "int32", "uint64"), ("complex64", "complex128")


@pytest.fixture(scope="module")
def scipy_signal() -> Any:
    return pytest.importorskip("scipy.signal", reason="SciPy is not installed")


def numbers(shape: Any, dtype: Any, seed: int = 0) -> np.ndarray:
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if dtype.kind in "iu":
        return rng.integers(0 if dtype.kind == "u" else -100, 100, shape).astype(dtype)
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if dtype.kind == "c" else x).astype(dtype)


def assert_same(got: np.ndarray, want: np.ndarray, what: Any) -> None:
    assert got.dtype == want.dtype, what
    assert got.shape == want.shape, what
    assert got.flags.writeable
    if got.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, str(what))
    else:
        tolerance = 3e-6 if got.dtype in (np.float32, np.complex64) else 1e-13
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1), err_msg=str(what))


# --- by hand --------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    assert ours.correlate([1, 2, 3], [0, 1, 0.5]).tolist() == [0.5, 2, 3.5, 3, 0]
    assert ours.convolve([1, 2, 3], [0, 1, 0.5], "same").tolist() == [1, 2.5, 4]
    assert ours.convolve([1, 2, 3], [1, 10]).tolist() == [1, 12, 23, 30]
    assert ours.correlate([1, 2, 3, 4], [1, 10], "same").tolist() == [10, 21, 32, 43]
    assert ours.convolve([1, 2, 3, 4], [1, 10], "same").tolist() == [1, 12, 23, 34]
    assert ours.correlate([1j], [1j]).tolist() == [1]
    assert ours.convolve([1j], [1j]).tolist() == [-1]
    assert ours.correlate(3j, 2j) == 6
    assert ours.convolve(3, 2) == 6
    image = np.array([[1, 2], [3, 4]])
    assert ours.correlate2d(image, image, "valid").tolist() == [[30]]
    assert ours.correlate2d(image, [[1, 10]], "same").tolist() == [[21, 2], [43, 4]]
    assert ours.convolve2d(image, [[1, 10]], "same").tolist() == [[1, 12], [3, 34]]
    assert ours.convolve2d(image, [[1, 10]], "full", "wrap").tolist() == [[21, 12, 21], [43, 34, 43]]
    assert ours.convolve2d(image, [[1, 10]], "full", "symm").tolist() == [[11, 12, 22], [33, 34, 44]]
    assert ours.convolve2d(image, [[1, 10]], "full", "fill", 5).tolist() == [[51, 12, 25], [53, 34, 45]]


@pytest.mark.parametrize("dtype", ["float64", "int32", "complex128"])
@pytest.mark.parametrize(("n", "k"), [((7, 8), (3, 4)), ((5, 5), (1, 5)), ((4, 6), (4, 6)), ((3, 4), (5, 2))], ids=str)
def test_the_definition(n: Any, k: Any, dtype: str) -> None:
    x, w = numbers(n, dtype), numbers(k, dtype, 1)
    full = np.zeros([a + b - 1 for a, b in zip(n, k, strict=True)], dtype)
    for i, j in np.ndindex(*n):
        full[i:i + k[0], j:j + k[1]] += x[i, j] * w
    middle = tuple(slice((b - 1) // 2, (b - 1) // 2 + a) for a, b in zip(n, k, strict=True))
    for mode, want in (("full", full), ("same", full[middle])):
        assert_same(ours.convolve(x, w, mode), want, mode)
        assert_same(ours.convolve2d(x, w, mode), want, mode)
        turned = np.conj(w[::-1, ::-1])
        assert_same(ours.correlate(x, turned, mode), want, mode)
        assert_same(ours.convolve(x, w, mode, "direct"), want, mode)
        assert_same(ours.convolve(x, w, mode, "fft"), want, mode)
        assert_same(_by_taps(x, w[::-1, ::-1], "full", x.dtype), full, "taps")


# --- SciPy itself ---------------------------------------------------------------------------------------------------

SHAPES_1D = [((1,), (1,)), ((9,), (3,)), ((9,), (4,)), ((4,), (9,)), ((3,), (8,)), ((5,), (5,)), ((100,), (33,))]
SHAPES_2D = [((1, 1), (1, 1)), ((8, 9), (3, 3)), ((8, 9), (4, 2)), ((3, 4), (8, 9)), ((5, 9), (7, 2)), ((6, 6), (6, 6)),
             ((20, 31), (5, 7))]
PAIRS = [(a, a) for a in (*REAL, *INTEGER, *COMPLEX)] + [
    ("float32", "int8"), ("int32", "float32"), ("uint8", "int8"), ("float64", "complex64"), ("complex64", "float32"),
    ("int8", "bool"), ("bool", "float32"), ("uint64", "int8"), ("longdouble", "float32")]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_any_rank_against_scipy(pair: Any, scipy_signal: Any) -> None:
    for (n, k), mode, name in itertools.product(SHAPES_1D + SHAPES_2D, MODES, ("correlate", "convolve")):
        x, w = numbers(n, pair[0]), numbers(k, pair[1], 1)
        call = getattr(scipy_signal, name)
        try:
            with np.errstate(invalid="ignore"):  # SciPy converts its result before it is written, and warns of what memory held
                want = call(x, w, mode, "direct")
        except ValueError:
            with pytest.raises(ValueError, match="one of in1 and in2 must be at least as large"):
                getattr(ours, name)(x, w, mode)
            continue
        for method in ("auto", "direct"):
            assert_same(getattr(ours, name)(x, w, mode, method), want, (name, n, k, mode, method))


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_images_against_scipy(pair: Any, scipy_signal: Any) -> None:
    for (n, k), mode, name, how in itertools.product(
            SHAPES_2D, MODES, ("correlate2d", "convolve2d"), ({}, {"boundary": "wrap"}, {"boundary": "symm"},
                                                             {"boundary": "fill", "fillvalue": 3})):
        x, w = numbers(n, pair[0]), numbers(k, pair[1], 1)
        try:
            want = getattr(scipy_signal, name)(x, w, mode, **how)
        except ValueError:
            with pytest.raises(ValueError, match="one of in1 and in2 must be at least as large"):
                getattr(ours, name)(x, w, mode, **how)
            continue
        assert_same(getattr(ours, name)(x, w, mode, **how), want, (name, n, k, mode, how))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "int32", "uint8"])
def test_large_filters_against_scipy(dtype: str, scipy_signal: Any) -> None:
    """Where the FFT is taken: the same to rounding, integers exactly."""
    x, w = numbers((150, 141), dtype), numbers((90, 77), dtype, 1)
    for mode in MODES:
        want = scipy_signal.convolve(x.astype(complex) if dtype == "complex64" else x.astype(float),
                                     w.astype(complex) if dtype == "complex64" else w.astype(float), mode, "fft")
        want = np.around(want).astype(np.int64).astype(dtype) if x.dtype.kind in "iu" else want.astype(dtype)
        for got in (ours.convolve(x, w, mode), ours.convolve2d(x, w, mode)):
            assert_same(got, want, mode)


# --- what SciPy does not say -----------------------------------------------------------------------------------------


def test_integers_are_exact() -> None:
    """Beyond 2**24 and 2**53, and where they wrap around."""
    for largest in (2**11, 2**14 + 1, 2**25 + 1, 2**29 + 1, 2**40 + 1):
        x = np.array([[largest, 2 - largest], [2, largest]])
        want = sum(int(a) * int(b) for a, b in zip(x.ravel(), x.ravel(), strict=True))
        assert int(ours.correlate2d(x, x, "valid")[0, 0]) == (want + 2**63) % 2**64 - 2**63
    assert ours.correlate2d(np.full((1, 3), 100, np.int8), np.full((1, 3), 100, np.int8), "valid").tolist() == [[48]]
    ones = np.ones((300, 300), np.uint8)
    assert ours.convolve2d(ones, ones, "valid").tolist() == [[90_000 % 256]]
    assert ours.convolve2d(np.ones((3, 3), bool), np.ones((2, 2), bool), "valid").tolist() == [[True] * 2] * 2
    assert ours.correlate(np.full((60, 60), 2**62), np.full((50, 50), 2), "valid").ravel()[0] == np.int64(0)


def test_values_that_are_not_finite_stay_where_they_are() -> None:
    x, w = numbers((150, 140), "float32"), numbers((91, 77), "float32")
    x[3, 4] = np.nan
    out = ours.correlate2d(x, w, "same")
    assert np.isnan(out[3, 4])
    assert np.isfinite(out[-1, -1])
    assert np.isnan(ours.correlate(x, w, "same", "fft")).all()


def test_inputs_of_other_memory() -> None:
    x, w = numbers((20, 30), "float32"), numbers((5, 3), "float32", 1)
    want = ours.correlate2d(x, w)
    for other in (np.asfortranarray(x), x[::-1, ::-1].copy()[::-1, ::-1], np.repeat(x, 2, axis=1)[:, ::2], x.astype(">f4")):
        kept = other.copy()
        other.flags.writeable = False
        np.testing.assert_array_equal(ours.correlate2d(other, w), want)
        np.testing.assert_array_equal(other, kept)
    half = ours.correlate2d(x.astype(np.float16), w.astype(np.float16))
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, want, atol=0.02)


def test_the_same_bits_for_any_number_of_threads() -> None:
    for k in (7, 120):
        x, w = numbers((200, 220), "float32"), numbers((k, k), "float32", 1)
        results = []
        for threads in (1, 2, 3):
            with fastconv.options(num_threads=threads):
                results.append(ours.correlate2d(x, w, "same"))
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = numbers((40, 50), "float64"), numbers((9, 8), "float64", 1)
    want = ours.correlate2d(x, w, "valid")
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    np.testing.assert_allclose(_by_fft(x, w, "valid", x.dtype), want, rtol=0, atol=1e-11)
    for n in range(1, 2000):
        good, rest = _good_size(n), _good_size(n)
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
        assert n <= good < 2 * n or n == good


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda x: ours.correlate(x, x[0]), ValueError, "in1 and in2 must have the same number of axes, got 2 and 1"),
    (lambda x: ours.correlate(x[None], x[None]), NotImplementedError, "at most two axes, got 3"),
    (lambda x: ours.correlate2d(x[0], x[0]), ValueError, "in1 and in2 must have two axes each, got 1"),
    (lambda x: ours.convolve(x, x, "SAME"), ValueError, "mode must be one of 'valid', 'same', 'full', got 'SAME'"),
    (lambda x: ours.convolve2d(x, x, None), ValueError, "mode must be one of .*, got None"),
    (lambda x: ours.convolve(x, x, method="overlap"), ValueError, "method must be one of 'auto', 'direct', 'fft', got"),
    (lambda x: ours.convolve2d(x, x, boundary="reflect"), ValueError, "boundary must be one of 'fill', 'wrap', 'symm', got"),
    (lambda x: ours.convolve2d(x, x, fillvalue=1j), ValueError, "fillvalue must fit the dtype of the result, float64, got 1j"),
    (lambda x: ours.convolve2d(x, x, fillvalue=[1, 2]), ValueError, r"fillvalue must be a number, got \[1, 2\]"),
    (lambda x: ours.convolve2d(x[:0], x), ValueError, r"in1 must have at least one cell, got shape \(0, 5\)"),
    (lambda x: ours.convolve2d(x, x.astype(object)), TypeError, "in2 must be an array of numbers, got dtype object"),
    (lambda x: ours.convolve2d(x, x.T, "valid"), ValueError, r"got shapes \(4, 5\) and \(5, 4\)"),
])
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.ones((4, 5)))
