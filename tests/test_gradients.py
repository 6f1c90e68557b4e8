"""What only the gradients have: small calls made ready once, the kernel of the bias gradient, columns gathered in cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import functional, native
from fastconv.options import backend_available


@pytest.fixture(params=["cython", "numba"])
def small_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, Any]]:
    if not backend_available(request.param):
        pytest.skip(f"{request.param} is not installed")
    cache: dict[Any, Any] = {}
    monkeypatch.setattr(functional, "_small_calls", cache)
    with fastconv.options(backend=request.param, num_threads=2):
        yield cache


def arrays(dtype: Any = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return tuple(rng.standard_normal(shape).astype(dtype)  # type: ignore[return-value]
                 for shape in ((2, 4, 8, 9), (2, 3, 8, 9), (4, 3, 3, 3)))


def the_long_way(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[Any, ...]:
    """The gradients one by one, which are never kept."""
    batch = dout[None] if dout.ndim == 3 else dout
    db = np.empty(len(weight), dout.dtype)
    fastconv.dispatch.backend().bias_gradient(batch, db, 1)
    return (fastconv.conv2d_backward_data(dout, weight, x.shape, 1, 1),
            fastconv.conv2d_backward_weight(dout, x, weight.shape, 1, 1), db)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("need", [("dx", "dw", "db"), ("dx",), ("dw",), ("db",), ("db", "dx"), ()])
def test_small_gradients_are_the_same_bits_as_those_of_long_calls(dtype, isa, need, small_calls, monkeypatch):
    if fastconv.dispatch.backend().name == "numba" and isa != native.available_isas()[0]:
        pytest.skip("Numba has no choice of instructions")
    dout, x, weight = arrays(dtype)
    with native.using_isa(isa):
        for some, image in ((dout, x), (dout[0], x[0])):
            first = fastconv.conv2d_backward(some, image, weight, 1, 1, need=need)
            assert len(small_calls) > 0
            with monkeypatch.context() as patch:  # the second call asks nothing
                patch.setattr(functional, "_as_array", None)
                second = fastconv.conv2d_backward(some, image, weight, 1, 1, need=need)
            for name, one, two, want in zip(("dx", "dw", "db"), first, second, the_long_way(some, image, weight), strict=True):
                if name not in need:
                    assert one is None
                    assert two is None
                    continue
                np.testing.assert_array_equal(one, want)
                np.testing.assert_array_equal(two, want)
                assert two.dtype == want.dtype
                assert two.flags.c_contiguous
                assert two.flags.owndata
        small_calls.clear()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_small_gradients_of_what_is_not_finite(value, which, small_calls):
    for _ in range(2):
        three = arrays()
        three[which][0, 1, 0, 0] = value
        for one, want in zip(fastconv.conv2d_backward(*three, 1, 1), the_long_way(*three), strict=True):
            np.testing.assert_array_equal(one, want)
    assert len(small_calls) == 1


@pytest.mark.parametrize("stride", [1, 2])
def test_small_gradients_of_planes_by_themselves(stride, small_calls):
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((2, 3, 8, 9)), rng.standard_normal((3, 1, 3, 3))
    dout = rng.standard_normal(fastconv.conv2d(x, weight, None, stride, 1, 1, 3).shape)
    first, second = (fastconv.conv2d_backward(dout, x, weight, stride, 1, 1, 3) for _ in range(2))
    assert len([key for key in small_calls if key[0] == "backward"]) == 1
    want = fastconv.reference.conv2d_backward(dout, x, weight, stride, 1, 1, 3)
    for one, two, exact in zip(first, second, want, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(two, exact, rtol=0, atol=1e-12)


def test_small_gradients_of_other_memory_and_settings(small_calls):
    dout, x, weight = arrays()
    want = fastconv.conv2d_backward(dout, x, weight, 1, 1)
    turned = np.asfortranarray(dout), np.asfortranarray(x), np.asfortranarray(weight)
    for one, other in zip(fastconv.conv2d_backward(*turned, 1, 1), want, strict=True):
        np.testing.assert_array_equal(one, other)
    with fastconv.options(backend="numpy"):
        reference = fastconv.conv2d_backward(dout, x, weight, 1, 1)
    for one, other in zip(reference, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
        assert (one != other).any()  # computed in another way, and not taken from what was kept
    for wrong in (lambda: fastconv.conv2d_backward(dout, x, weight, 1, True),
                  lambda: fastconv.conv2d_backward(dout, x, weight, 1.0, 1)):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ValueError, match="dout must have the shape"):
        fastconv.conv2d_backward(dout[:, :, 1:], x, weight, 1, 1)
    with pytest.raises(TypeError, match="need"):
        fastconv.conv2d_backward(dout, x, weight, 1, 1, need=("dx", []))  # type: ignore[list-item]


def test_a_forced_algorithm_that_cannot_do_all_gradients_does_those_that_are_asked_for(small_calls):
    if fastconv.dispatch.backend().name == "numba":
        pytest.skip("Numba has no such algorithm")
    dout, x, weight = arrays()
    dx, dw, db = fastconv.conv2d_backward(dout, x, weight, 1, 1, need=("dx",), algorithm="winograd")
    np.testing.assert_allclose(dx, fastconv.conv2d_backward_data(dout, weight, x.shape, 1, 1), rtol=0, atol=1e-4)
    assert dw is None
    assert db is None


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float64", 1e-13)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 9), (2, 3, 224, 224), (100_000, 2, 1, 1), (0, 4, 3, 3)])
@pytest.mark.parametrize("isa", [*native.available_isas(), "numba"])
def test_bias_gradients_are_exact_over_any_number_of_pixels(dtype, tolerance, shape, isa):
    backend = "numba" if isa == "numba" else "cython"
    if not backend_available(backend):
        pytest.skip(f"{backend} is not installed")
    dout = np.random.default_rng(8).random(shape).astype(dtype)  # all positive: a running sum in float32 loses 1e-5
    want = dout.sum(axis=(0, 2, 3), dtype=np.longdouble)
    weight = np.zeros((shape[1], 1, 1, 1), dtype)
    with fastconv.options(backend=backend), contextlib.nullcontext() if isa == "numba" else native.using_isa(isa):
        found = []
        for threads in (1, 2, 5):
            with fastconv.options(num_threads=threads):
                found.append(fastconv.conv2d_backward(dout, dout[:, :1], weight, need=("db",))[2])
    np.testing.assert_allclose(found[0], want, rtol=tolerance)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 4e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize(("batch", "channels", "filters", "size", "kernel", "stride", "padding", "dilation", "groups"), [
    (7, 20, 12, (6, 6), (5, 5), 1, 0, 1, 1),           # several images in one panel
    (1, 3, 40, (130, 140), (7, 7), 2, 3, 1, 1),        # bands that overlap
    (2, 3, 300, (40, 90), (3, 3), (2, 3), 1, 1, 1),    # many channels of dout, three parity classes
    (2, 3, 4, (9, 50), (1, 2), 1, 0, (1, 20), 1),      # taps farther apart than a vector
    (2, 2, 3, (25, 61), (2, 2), (5, 18), 0, 1, 1),     # more parity classes than taps or lanes: pixels that no window sees
    (3, 8, 6, (1, 3), (1, 1), 1, 0, 1, 2),             # rows shorter than a vector
    (2, 70, 530, (16, 17), (3, 3), 1, 1, 1, 1),        # several blocks of output and of input channels
])
def test_columns_in_cache(isa, dtype, tolerance, batch, channels, filters, size, kernel, stride, padding, dilation, groups):
    """Implicit GEMM's gradients where its blocks, bands and classes have ends."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((batch, channels, *size)).astype(dtype)
    weight = rng.standard_normal((filters, channels // groups, *kernel)).astype(dtype)
    how = stride, padding, dilation, groups
    dout = rng.standard_normal(fastconv.plan_conv2d(x.shape, weight.shape, *how).output_shape).astype(dtype)
    wide = [array.astype(np.float64) for array in (dout, x, weight)]
    want = (fastconv.reference.conv2d_backward_data(wide[0], wide[2], x.shape, *how),
            fastconv.reference.conv2d_backward_weight(wide[0], wide[1], weight.shape, *how))
    with fastconv.options(backend="cython"), native.using_isa(isa):
        for threads in (1, 3):
            with fastconv.options(num_threads=threads):
                dx = fastconv.conv2d_backward_data(dout, weight, x.shape, *how, algorithm="implicit_gemm")
                dw = fastconv.conv2d_backward_weight(dout, x, weight.shape, *how, algorithm="implicit_gemm")
            if threads == 1:
                first = dx, dw
            for one, other, exact in zip((dx, dw), first, want, strict=True):
                np.testing.assert_array_equal(one, other)
                assert np.abs(one - exact).max() <= tolerance * np.abs(exact).max()
