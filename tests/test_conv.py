"""Convolution, its gradients and the transposed convolution: every case on every engine against the reference."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest
from cases import CONV_CASES, CORE_CONV_CASES, CORE_TRANSPOSE_CASES, TRANSPOSE_CASES, ConvCase, TransposeCase

import fastconv
from fastconv import reference

FLOATS = ("float32", "float64")


class Problem:
    """The inputs of a case in one dtype, and what must come out, computed in float64 and once for all engines.

    Each ``..._spread`` is the sum of the squares of the terms that each output adds up (rule 14).
    """

    def __init__(self, case: ConvCase, dtype: str) -> None:
        self.case, self.dtype, self.arguments = case, dtype, case.arguments
        self.output_shape = fastconv.plan_conv2d(case.x, case.weight, **case.arguments).output_shape
        rng = np.random.default_rng(list(case.id.encode()))
        self.x = rng.standard_normal(case.x).astype(dtype)
        self.weight = rng.standard_normal(case.weight).astype(dtype)
        self.bias = rng.standard_normal(case.weight[0]).astype(dtype)
        self.dout = rng.standard_normal(self.output_shape).astype(dtype)

    def _wide(self, name: str) -> np.ndarray:
        return getattr(self, name).astype(np.float64)

    @cached_property
    def out(self) -> np.ndarray:
        return reference.conv2d(self._wide("x"), self._wide("weight"), **self.arguments)

    @cached_property
    def out_spread(self) -> np.ndarray:
        return reference.conv2d(self._wide("x") ** 2, self._wide("weight") ** 2, **self.arguments)

    @cached_property
    def dx(self) -> np.ndarray:
        return reference.conv2d_backward_data(self._wide("dout"), self._wide("weight"), self.case.x, **self.arguments)

    @cached_property
    def dx_spread(self) -> np.ndarray:
        return reference.conv2d_backward_data(self._wide("dout") ** 2, self._wide("weight") ** 2, self.case.x,
                                              **self.arguments)

    @cached_property
    def dw(self) -> np.ndarray:
        return reference.conv2d_backward_weight(self._wide("dout"), self._wide("x"), self.case.weight,
                                                **self.arguments)

    @cached_property
    def dw_spread(self) -> np.ndarray:
        return reference.conv2d_backward_weight(self._wide("dout") ** 2, self._wide("x") ** 2, self.case.weight,
                                                **self.arguments)

    @cached_property
    def db(self) -> np.ndarray:
        return self._wide("dout").sum(axis=(0, 2, 3))

    @cached_property
    def db_spread(self) -> np.ndarray:
        return (self._wide("dout") ** 2).sum(axis=(0, 2, 3))

    def algorithm(self, engine: Any, direction: str) -> str:
        """The algorithm that `engine` will take, or "" where it has to refuse."""
        plan = fastconv.plan_conv2d(self.case.x, self.case.weight, **self.arguments, dtype=self.dtype,
                                    direction=direction)
        if engine.algorithm == "auto":
            return plan.algorithm
        return engine.algorithm if engine.algorithm in {c.algorithm for c in plan.candidates} else ""


problem = cache(Problem)


def compute(engine: Any, expected_algorithm: str, call: Any, *args: Any, **kwargs: Any) -> np.ndarray | None:
    """Call it with the engine's algorithm; None where it refuses, as an algorithm that cannot must."""
    if not expected_algorithm:
        with pytest.raises(NotImplementedError, match=engine.algorithm):
            call(*args, algorithm=engine.algorithm, **kwargs)
        return None
    return call(*args, algorithm=engine.algorithm, **kwargs)


def assert_fresh(array: np.ndarray, dtype: str) -> None:
    """Results are C-contiguous, writable and own their memory (section 2)."""
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.owndata


@pytest.mark.parametrize(("size", "kernel", "offset"), [((256, 256), 3, 0), ((256, 256), 1, 0), ((256, 256), 3, 3),
                                                        ((250, 262), 3, 0)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_results_too_large_for_the_caches(forward_engine, rng, dtype, size, kernel, offset):
    """They go past them, in whole lines where they lie so: image by image it is the same that stays in the caches."""
    if forward_engine.algorithm == "im2col" or forward_engine.backend != "cython":
        pytest.skip("stores past the caches are the Cython backend's")
    if forward_engine.algorithm == "auto":
        pytest.skip("may take another algorithm for one image than for two")
    filters = 56 if dtype == "float32" else 28
    x = rng.standard_normal((2, 2, *size)).astype(dtype)
    weight = rng.standard_normal((filters, 2, kernel, kernel)).astype(dtype)
    bias = rng.standard_normal(filters).astype(dtype)
    cells = 2 * filters * size[0] * size[1]
    assert cells * x.itemsize >= 24 * 2**20 > cells * x.itemsize // 2
    room = np.full(cells + 64, np.nan, dtype)
    start = -(room.ctypes.data // room.itemsize) % (64 // room.itemsize) + offset  # from the beginning of a line
    out = room[start:start + cells].reshape(2, filters, *size)
    forward_engine(fastconv.conv2d, x, weight, bias, padding="same", activation="relu", out=out)
    for image in range(2):
        alone = forward_engine(fastconv.conv2d, x[image:image + 1], weight, bias, padding="same", activation="relu")
        np.testing.assert_array_equal(out[image:image + 1], alone)
    assert np.isnan(room[:start]).all()
    assert np.isnan(room[start + cells:]).all()


@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_forward(case, forward_engine, poisoned, assert_accurate):
    for dtype in FLOATS:
        p = problem(case, dtype)
        algorithm = p.algorithm(forward_engine, "forward")
        out = poisoned(p.output_shape, dtype)
        got = compute(forward_engine, algorithm, fastconv.conv2d, poisoned.place(p.x), poisoned.place(p.weight),
                      **p.arguments, out=out)
        if got is not None:
            assert got is out
            assert_accurate(got, p.out, p.out_spread, algorithm=algorithm)


@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_forward_with_bias_and_relu(case, forward_engine, poisoned, assert_accurate):
    for dtype in FLOATS:
        p = problem(case, dtype)
        algorithm = p.algorithm(forward_engine, "forward")
        got = compute(forward_engine, algorithm, fastconv.conv2d, poisoned.place(p.x), poisoned.place(p.weight),
                      poisoned.place(p.bias), **p.arguments, activation="relu")
        if got is not None:
            assert_fresh(got, dtype)
            want = np.maximum(p.out + p.bias[:, np.newaxis, np.newaxis], 0)
            assert_accurate(got, want, p.out_spread, algorithm=algorithm)
            assert (got >= 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
@pytest.mark.parametrize(("bias", "activation"), [(True, None), (False, "relu")])
def test_forward_with_bias_or_relu(case, dtype, bias, activation, forward_engine, assert_accurate):
    p = problem(case, dtype)
    algorithm = p.algorithm(forward_engine, "forward")
    got = compute(forward_engine, algorithm, fastconv.conv2d, p.x, p.weight, p.bias if bias else None, **p.arguments,
                  activation=activation)
    if got is not None:
        want = p.out + p.bias[:, np.newaxis, np.newaxis] if bias else np.maximum(p.out, 0)
        assert_accurate(got, want, p.out_spread, algorithm=algorithm)


@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_backward_data(case, data_engine, poisoned, assert_accurate):
    for dtype in FLOATS:
        p = problem(case, dtype)
        algorithm = p.algorithm(data_engine, "backward_data")
        dx = poisoned(case.x, dtype)
        got = compute(data_engine, algorithm, fastconv.conv2d_backward_data, poisoned.place(p.dout),
                      poisoned.place(p.weight), case.x, **p.arguments, out=dx)
        if got is not None:
            assert got is dx
            assert_accurate(got, p.dx, p.dx_spread, algorithm=algorithm)


def data_plus_bias(dout, weight, bias, shape, *, algorithm, out, **arguments):
    """What conv_transpose2d does, which has no algorithm to choose."""
    plan = fastconv.plan_conv2d(shape, weight.shape, **arguments, dtype=dout.dtype, direction="backward_data",
                                algorithm=algorithm)
    plan.run(dout, weight, out, bias=bias)
    return out


@pytest.mark.parametrize("case", [case for case in CONV_CASES if len(case.x) == 4], ids=str)
def test_backward_data_plus_bias(case, data_engine, poisoned, assert_accurate):
    for dtype in FLOATS:
        p = problem(case, dtype)
        algorithm = p.algorithm(data_engine, "backward_data")
        bias = np.linspace(-2, 3, case.x[1], dtype=dtype)
        got = compute(data_engine, algorithm, data_plus_bias, p.dout, p.weight, poisoned.place(bias), case.x, **p.arguments,
                      out=np.full(case.x, np.nan, dtype))
        if got is not None:
            assert_accurate(got, p.dx + bias[:, None, None].astype(np.float64), p.dx_spread, algorithm=algorithm)


@pytest.mark.parametrize("broken", ["weight", "dout"])
def test_bias_where_something_is_not_finite(broken, data_engine):
    """Rules 3 and 13: what is computed anew has the bias once."""
    rng = np.random.default_rng(0)
    arrays = {"dout": rng.standard_normal((1, 16, 40, 12)), "weight": rng.standard_normal((16, 8, 3, 3))}
    arrays[broken][0, 0, 1, 1] = np.inf
    x, bias = (1, 8, 40, 12), np.arange(8.0)
    got, dx = np.empty(x), np.empty(x)
    how = {"padding": 1, "algorithm": data_engine.algorithm}
    data_plus_bias(arrays["dout"], arrays["weight"], bias, x, out=got, **how)
    data_plus_bias(arrays["dout"], arrays["weight"], None, x, out=dx, **how)
    np.testing.assert_allclose(got, dx + bias[:, None, None], rtol=0, atol=1e-12)
    assert np.isfinite(dx).any()
    assert not np.isfinite(dx).all()


@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_backward_weight(case, weight_engine, poisoned, assert_accurate):
    for dtype in FLOATS:
        p = problem(case, dtype)
        algorithm = p.algorithm(weight_engine, "backward_weight")
        dw = poisoned(case.weight, dtype)
        got = compute(weight_engine, algorithm, fastconv.conv2d_backward_weight, poisoned.place(p.dout),
                      poisoned.place(p.x), case.weight, **p.arguments, out=dw)
        if got is not None:
            assert got is dw
            assert_accurate(got, p.dw, p.dw_spread, algorithm=algorithm, weight_gradient=True)


@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_backward(case, backward_engine, poisoned, assert_accurate):
    for dtype in FLOATS:
        p = problem(case, dtype)
        data, weight = (p.algorithm(backward_engine, direction) for direction in ("backward_data", "backward_weight"))
        gradients = compute(backward_engine, data and weight, fastconv.conv2d_backward, poisoned.place(p.dout),
                            poisoned.place(p.x), poisoned.place(p.weight), **p.arguments)
        if gradients is not None:
            dx, dw, db = gradients
            for gradient in gradients:
                assert_fresh(gradient, dtype)
            assert_accurate(dx, p.dx, p.dx_spread, algorithm=data)
            assert_accurate(dw, p.dw, p.dw_spread, algorithm=weight, weight_gradient=True)
            assert_accurate(db, p.db, p.db_spread)


@pytest.mark.parametrize("case", [case for case in CONV_CASES if case.weight[1] > 12], ids=str)
def test_strict_accuracy(case, engine, assert_accurate):
    """With enough channels for Winograd to be chosen, were it not for the setting."""
    p = problem(case, "float32")
    with fastconv.options(accuracy="strict"):
        out = fastconv.conv2d(p.x, p.weight, **p.arguments)
        dx, dw, _ = fastconv.conv2d_backward(p.dout, p.x, p.weight, **p.arguments)
    assert_accurate(out, p.out, p.out_spread)
    assert_accurate(dx, p.dx, p.dx_spread)
    assert_accurate(dw, p.dw, p.dw_spread, weight_gradient=True)


@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_float16(case, conv_engine, assert_accurate):
    p = problem(case, "float16")
    plans = [p.algorithm(conv_engine, direction) for direction in ("forward", "backward_data", "backward_weight")]
    out = compute(conv_engine, plans[0], fastconv.conv2d, p.x, p.weight, **p.arguments)
    dx = compute(conv_engine, plans[1], fastconv.conv2d_backward_data, p.dout, p.weight, case.x, **p.arguments)
    dw = compute(conv_engine, plans[2], fastconv.conv2d_backward_weight, p.dout, p.x, case.weight, **p.arguments)
    for got, want, spread in ((out, p.out, p.out_spread), (dx, p.dx, p.dx_spread), (dw, p.dw, p.dw_spread)):
        if got is not None:
            assert_fresh(got, "float16")
            assert_accurate(got, want, spread)


@pytest.mark.parametrize("need", [(), ("dx",), ("dw",), ("db",), ("dx", "dw"), ("db", "dx"), ["dw", "db"]], ids=str)
def test_backward_computes_what_is_needed(need, engine):
    p = problem(next(case for case in CORE_CONV_CASES if case.id == "pads-all-differ"), "float32")
    everything = fastconv.conv2d_backward(p.dout, p.x, p.weight, **p.arguments)
    some = fastconv.conv2d_backward(p.dout, p.x, p.weight, **p.arguments, need=need)
    for name, whole, got in zip(("dx", "dw", "db"), everything, some, strict=True):
        if name in need:
            np.testing.assert_array_equal(got, whole)
        else:
            assert got is None


def test_three_axes_are_a_batch_of_one(conv_engine):
    name = "kernel3" if conv_engine.algorithm == "winograd" else "pads-all-differ"  # whose filter is not square
    p = problem(next(case for case in CORE_CONV_CASES if case.id == name), "float32")
    x, dout = p.x[1], p.dout[1]
    how = {**p.arguments, "algorithm": conv_engine.algorithm}
    out = fastconv.conv2d(x, p.weight, p.bias, **how)
    np.testing.assert_array_equal(out, fastconv.conv2d(x[np.newaxis], p.weight, p.bias, **how)[0])
    dx = fastconv.conv2d_backward_data(dout, p.weight, x.shape, **how)
    np.testing.assert_array_equal(dx, fastconv.conv2d_backward_data(dout[None], p.weight, (1, *x.shape), **how)[0])
    dw = fastconv.conv2d_backward_weight(dout, x, p.weight.shape, **how)
    np.testing.assert_array_equal(dw, fastconv.conv2d_backward_weight(dout[None], x[None], p.weight.shape, **how))
    together = fastconv.conv2d_backward(dout, x, p.weight, **how)
    for got, want in zip(together, (dx, dw, dout.sum(axis=(1, 2))), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# --- transposed convolution -----------------------------------------------------------------------------------------


class TransposeProblem:
    """The inputs of a transposed convolution, and what must come out."""

    def __init__(self, case: TransposeCase, dtype: str) -> None:
        rng = np.random.default_rng(list(case.id.encode()))
        self.arguments = case.arguments
        self.x = rng.standard_normal(case.x).astype(dtype)
        self.weight = rng.standard_normal(case.weight).astype(dtype)
        self.bias = rng.standard_normal(case.weight[1] * case.groups).astype(dtype)
        x, weight, bias = (a.astype(np.float64) for a in (self.x, self.weight, self.bias))
        self.out = reference.conv_transpose2d(x, weight, bias, **case.arguments)
        self.spread = reference.conv_transpose2d(x**2, weight**2, bias**2, **case.arguments)


transpose_problem = cache(TransposeProblem)


@pytest.mark.parametrize("case", TRANSPOSE_CASES, ids=str)
def test_transpose(case, engine, poisoned, assert_accurate):
    for dtype in FLOATS:
        p = transpose_problem(case, dtype)
        out = poisoned(p.out.shape, dtype)
        got = fastconv.conv_transpose2d(poisoned.place(p.x), poisoned.place(p.weight), poisoned.place(p.bias),
                                        **p.arguments, out=out)
        assert got is out
        assert_accurate(got, p.out, p.spread, algorithm="auto")


@pytest.mark.parametrize("dtype", ["float16", *FLOATS])
@pytest.mark.parametrize("case", CORE_TRANSPOSE_CASES, ids=str)
def test_transpose_without_bias(case, dtype, engine, assert_accurate):
    p = transpose_problem(case, dtype)
    got = fastconv.conv_transpose2d(p.x, p.weight, **p.arguments)
    assert_fresh(got, dtype)
    assert_accurate(got, p.out - p.bias.astype(np.float64)[:, np.newaxis, np.newaxis], p.spread, algorithm="auto")


def test_transpose_of_three_axes(engine):
    p = transpose_problem(CORE_TRANSPOSE_CASES[0], "float32")
    np.testing.assert_array_equal(fastconv.conv_transpose2d(p.x[1], p.weight, p.bias, **p.arguments),
                                  fastconv.conv_transpose2d(p.x[1:], p.weight, p.bias, **p.arguments)[0])
