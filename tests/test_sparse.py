"""The gradients of a convolution from what is not zero in dout: against the reference, and when they are taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from arrays import assert_accurate

import fastconv
from fastconv import dispatch, reference
from fastconv.backends import CythonBackend
from fastconv.geometry import conv2d_geometry

native = pytest.importorskip("fastconv.native", reason="without the extension modules")

# x, weight, stride, padding, dilation, the part of dout that is not zero
CASES: dict[str, tuple[Any, ...]] = {
    "mnist": ((17, 1, 28, 28), (30, 1, 5, 5), 1, 0, 1, 0.15),
    "all zero": ((16, 1, 9, 9), (30, 1, 5, 5), 1, 0, 1, 0.0),
    "nothing zero": ((16, 1, 9, 9), (5, 1, 3, 3), 1, 0, 1, 1.0),
    "one cell": ((16, 1, 4, 3), (1, 1, 4, 3), 1, 0, 1, 0.5),
    "one tap": ((16, 2, 5, 6), (4, 2, 1, 1), 1, 0, 1, 0.3),
    "colours": ((16, 3, 12, 13), (24, 3, 3, 3), 1, 1, 1, 0.2),
    "stem": ((16, 3, 11, 12), (9, 3, 7, 7), 1, 3, 1, 0.1),
    "eleven rows": ((16, 2, 15, 12), (7, 2, 11, 4), 1, ((2, 0), (0, 1)), 1, 0.2),
    "more filters than bits": ((16, 1, 8, 9), (70, 1, 2, 5), 1, 1, 1, 0.2),
    "as many filters as bits": ((16, 1, 8, 9), (32, 1, 3, 5), 1, 1, 1, 0.2),
    "several bands": ((16, 1, 40, 50), (3, 1, 3, 4), 1, 0, 1, 0.1),
    "a row is a band": ((16, 1, 4, 1300), (3, 1, 3, 4), 1, 1, 1, 0.1),
    "steps of rows": ((16, 2, 13, 10), (6, 2, 3, 3), (2, 1), 1, 1, 0.2),
    "dilated rows": ((16, 2, 13, 10), (6, 2, 3, 3), 1, (2, 1), (2, 1), 0.2),
    "steps that leave rows over": ((16, 1, 12, 10), (6, 1, 3, 3), (4, 1), 0, (3, 1), 0.2),
    "a vector of taps": ((16, 1, 6, 25), (4, 1, 2, 16), 1, 2, 1, 0.2),
    "more images than runs": ((67, 1, 7, 7), (3, 1, 3, 3), 1, 1, 1, 0.2),
}
#: Taken by every instruction set: a row of four floats.
MOST = ((17, 1, 28, 28), (30, 1, 5, 4), 1, 0, 1)


def problem(case: tuple[Any, ...], dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """dout, x, weight and the convolution's keywords."""
    shape, filters, stride, padding, dilation, part = case
    rng = np.random.default_rng(5)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    cells = conv2d_geometry(shape, filters, **how).output_shape
    dout = np.where(rng.random(cells) < part, rng.standard_normal(cells), rng.choice([0.0, -0.0], cells))
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal(filters).astype(dtype)
    return dout.astype(dtype), x, weight, how


@pytest.fixture(params=native.ISAS)
def kernel(request: pytest.FixtureRequest) -> Iterator[CythonBackend]:
    """The backend that has the kernel, with each instruction set in turn."""
    if request.param not in native.available_isas():
        pytest.skip(f"this CPU cannot run {request.param}")
    with fastconv.options(backend="cython"), native.using_isa(request.param):
        yield CythonBackend()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the kernel answered in each call."""
    real = CythonBackend.sparse_backward
    found: list[bool] = []

    def spy(self: CythonBackend, *args: Any) -> bool:
        found.append(real(self, *args))
        return found[-1]

    monkeypatch.setattr(CythonBackend, "sparse_backward", spy)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name: str, dtype: str, kernel: CythonBackend) -> None:
    dout, x, weight, how = problem(CASES[name], dtype)
    geometry = conv2d_geometry(x.shape, weight.shape, **how)
    if kernel.sparse_backward_unsupported(geometry, dout.dtype) is not None:
        assert weight.shape[3] * dout.itemsize > 16  # a row that is longer than a vector of the instruction set
        pytest.skip("a row of taps is longer than a vector")
    wide = [a.astype(np.float64) for a in (dout, x, weight)]
    want = reference.conv2d_backward(*wide, **how)
    squares = reference.conv2d_backward(*(a ** 2 for a in wide), **how)
    results = []
    for threads, data in ((1, True), (2, True), (5, True), (1, False), (3, False)):
        dx, dw, db = (np.full(a.shape, np.nan, dtype) for a in (x, weight, weight[:, 0, 0, 0]))
        assert kernel.sparse_backward(dout, x, weight, geometry, dx if data else None, dw, db, 1.0, threads)
        results.append((dx if data else results[0][0], dw, db))
    for got, right, spread, filters in zip(results[0], want, squares, (False, True, True), strict=True):
        assert got.dtype == dtype
        assert_accurate(got, right, spread, weight_gradient=filters)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("need", [("dx", "dw", "db"), ("dx", "dw"), ("dw", "db"), ("dw",), ("dx", "db")], ids="-".join)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_by_the_public_function(need: tuple[str, ...], dtype: str, kernel: CythonBackend, answers: list[bool]) -> None:
    dout, x, weight, how = problem((*MOST, 0.05), dtype)
    if dtype == "float64" and kernel.sparse_backward_unsupported(conv2d_geometry(x.shape, weight.shape, **how), dout.dtype):
        pytest.skip("a row of taps is longer than a vector")
    got = fastconv.conv2d_backward(dout, x, weight, **how, need=need)
    # floats gain nothing without the image's gradient, and without the filters' there is no kernel
    assert answers == ([True] if "dw" in need and ("dx" in need or dtype == "float64") else [])
    wide = [a.astype(np.float64) for a in (dout, x, weight)]
    want, squares = reference.conv2d_backward(*wide, **how), reference.conv2d_backward(*(a ** 2 for a in wide), **how)
    for name, one, right, spread in zip(("dx", "dw", "db"), got, want, squares, strict=True):
        assert (one is not None) == (name in need)
        if one is not None:
            assert one.dtype == dtype
            assert one.flags.writeable
            assert one.flags.owndata
            assert_accurate(one, right, spread, weight_gradient=name != "dx")


def test_when_it_is_taken(kernel: CythonBackend, answers: list[bool]) -> None:
    def asked(part: float = 0.05, images: int = 16, options: dict[str, Any] | None = None, **more: Any) -> list[bool]:
        dout, x, weight, how = problem(((images, *MOST[0][1:]), *MOST[1:], part), "float32")
        answers.clear()
        with fastconv.options(**(options or {})):
            fastconv.conv2d_backward(dout, x, weight, **how, **more)
        return list(answers)

    assert asked() == [True]
    assert asked(part=1.0) == [False]
    assert asked(images=15) == []
    assert asked(algorithm="implicit_gemm") == []
    assert asked(options={"workspace_limit": 2**24}) == []
    found = dispatch.sparse_backward(conv2d_geometry((16, 1, 28, 28), (30, 1, 5, 4)), np.dtype("f"), True)
    assert found is not None
    assert 0.1 < (limit := found[1]) < 0.4
    assert asked(part=0.7 * limit) == [True]
    assert asked(part=1.3 * limit) == [False]
    assert dispatch.sparse_backward(conv2d_geometry((16, 1, 28, 28), (30, 1, 5, 4)), np.dtype("f"), False) is None
    some = conv2d_geometry((16, 12, 28, 28), (12, 12, 3, 3))  # Winograd takes less
    assert kernel.sparse_backward_unsupported(some, np.dtype("f")) is None
    assert dispatch.sparse_backward(some, np.dtype("f"), True) is None
    many = conv2d_geometry((16, 64, 28, 28), (64, 64, 3, 3))
    assert "cache" in str(kernel.sparse_backward_unsupported(many, np.dtype("f")))
    for more, why in (({"stride": (1, 2)}, "strides"), ({"groups": 2}, "group"), ({"dilation": 2}, "dilation")):
        odd = conv2d_geometry((16, 2, 28, 28), (2, 2 // more.get("groups", 1), 3, 3), **more)  # type: ignore[call-overload]
        assert why in str(kernel.sparse_backward_unsupported(odd, np.dtype("f")))
    assert kernel.sparse_backward_unsupported(conv2d_geometry((16, 1, 28, 28), (2, 1, 3, 17)), np.dtype("f"))
    assert kernel.sparse_backward_unsupported(conv2d_geometry((16, 1, 600, 600), (2, 1, 3, 3)), np.dtype("f"))
    assert kernel.sparse_backward_unsupported(conv2d_geometry((16, 1, 28, 28), (2, 1, 3, 3)), np.dtype("i4"))


def test_zeros_that_the_sample_takes_for_all(kernel: CythonBackend, answers: list[bool]) -> None:
    """Where the rows that were looked at are the only ones with zeros the result is as right."""
    dout, x, weight, how = problem((*MOST, 1.0), "float32")
    rows = dout.reshape(-1, dout.shape[3])
    rows[[(len(rows) * i // 256 + i % dout.shape[2]) % len(rows) for i in range(256)]] = 0
    got = fastconv.conv2d_backward(dout, x, weight, **how)
    assert answers == [True]
    wide = [a.astype(np.float64) for a in (dout, x, weight)]
    want, squares = reference.conv2d_backward(*wide, **how), reference.conv2d_backward(*(a ** 2 for a in wide), **how)
    for one, right, spread, filters in zip(got, want, squares, (False, True, True), strict=True):
        assert_accurate(one, right, spread, weight_gradient=filters)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize("where", ["dout", "x", "weight"])
@pytest.mark.parametrize("name", ["most", "colours", "stem", "one cell"])
def test_what_is_not_finite(name: str, where: str, value: float, kernel: CythonBackend) -> None:
    """Zeros times infinity are NaN (rule 3): as the direct algorithm has it, or left to that."""
    dout, x, weight, how = problem((*MOST, 0.05) if name == "most" else CASES[name], "float32")
    geometry = conv2d_geometry(x.shape, weight.shape, **how)
    if kernel.sparse_backward_unsupported(geometry, dout.dtype) is not None:
        pytest.skip("a row of taps is longer than a vector")
    arrays = {"dout": dout, "x": x, "weight": weight}
    spoiled = arrays[where]
    spoiled[3 if where != "weight" else 0, 0, spoiled.shape[2] // 2, spoiled.shape[3] // 2] = value
    dx, dw, db = got = [np.full(a.shape, 7, np.float32) for a in (x, weight, weight[:, 0, 0, 0])]
    taken = kernel.sparse_backward(dout, x, weight, geometry, dx, dw, db, 1.0, 2)
    assert taken == (where == "dout")
    with np.errstate(invalid="ignore"):
        if not taken:
            assert all((one == 7).all() for one in got)
            got = fastconv.conv2d_backward(dout, x, weight, **how)
        want = fastconv.conv2d_backward(dout, x, weight, **how, algorithm="direct")
    for one, right in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(right))
        np.testing.assert_array_equal(one[np.isinf(right)], right[np.isinf(right)])
        finite = np.isfinite(right)
        np.testing.assert_allclose(one[finite], right[finite], rtol=0, atol=1e-4)


def test_a_long_sum_is_accurate(kernel: CythonBackend) -> None:
    """10^5 terms of one sign: a running sum in float32 loses 1e-5."""
    x, dout = np.ones((16, 1, 84, 84), np.float32), np.full((16, 1, 80, 80), 0.1, np.float32)
    weight = np.ones((1, 1, 5, 4), np.float32)
    x, dout = x[..., :83], np.ascontiguousarray(dout)
    geometry = conv2d_geometry(x.shape, weight.shape)
    dw, db = np.empty_like(weight), np.empty(1, np.float32)
    assert kernel.sparse_backward(dout, np.ascontiguousarray(x), weight, geometry, None, dw, db, 1.0, 2)
    want = np.float64(np.float32(0.1)) * dout.size
    np.testing.assert_allclose(dw, want, rtol=2e-6)
    np.testing.assert_allclose(db, want, rtol=1e-6)
