"""The choice: plans and their fields, the pure function behind them, forced algorithms, packed weights, profiles."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cases import CONV_CASES, CORE_CONV_CASES

import fastconv
from fastconv import dispatch
from fastconv.geometry import conv2d_geometry
from fastconv.options import Settings, backend_available, current

try:
    from fastconv import native
except ImportError:
    pytest.skip("the extension modules are not built", allow_module_level=True)

DIRECTIONS = ("forward", "backward_data", "backward_weight")
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


# --- plans ------------------------------------------------------------------------------------------------------------


@every_direction
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_fields_of_a_plan(case, direction, engine):
    plan = fastconv.plan_conv2d(case.x, case.weight, **case.arguments, direction=direction)
    assert plan.algorithm in dispatch.algorithms(direction, engine.backend)
    assert plan.backend == engine.backend
    assert (plan.isa or "") == engine.isa
    n, k, oh, ow = fastconv.plan_conv2d(case.x, case.weight, **case.arguments).output_shape
    assert plan.flops == 2 * n * k * oh * ow * int(np.prod(case.weight[1:]))
    assert plan.output_shape == {"forward": (n, k, oh, ow), "backward_data": case.x,
                                 "backward_weight": case.weight}[direction]
    assert isinstance(plan.workspace_bytes, int)
    assert plan.workspace_bytes >= 0
    names = [candidate.algorithm for candidate in plan.candidates]
    assert len(set(names)) == len(names)
    assert set(names) <= set(dispatch.algorithms(direction, engine.backend))
    assert {plan.algorithm, "im2col"} <= set(names)  # im2col can do everything
    for candidate in plan.candidates:
        assert isinstance(candidate.workspace_bytes, int)
        assert candidate.reason
        if candidate.algorithm == plan.algorithm:
            assert candidate.workspace_bytes == plan.workspace_bytes


def test_a_plan_is_frozen():
    plan = fastconv.plan_conv2d((1, 1, 4, 4), (1, 1, 3, 3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.algorithm = "im2col"
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.candidates[0].reason = ""


@every_direction
def test_a_plan_of_three_axes_is_that_of_the_call(direction, engine):
    x, weight, dout = (np.ones(shape, np.float32) for shape in ((2, 6, 7), (5, 2, 3, 3), (5, 4, 5)))
    result = {"forward": lambda: fastconv.conv2d(x, weight),
              "backward_data": lambda: fastconv.conv2d_backward_data(dout, weight, x.shape),
              "backward_weight": lambda: fastconv.conv2d_backward_weight(dout, x, weight.shape)}[direction]()
    assert fastconv.plan_conv2d(x.shape, weight.shape, direction=direction).output_shape == result.shape


@every_direction
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_forced_algorithms(case, direction, engine):
    """Each is taken where it is a candidate, and refused by name where it is not: nothing falls back silently."""
    how = {**case.arguments, "direction": direction}
    candidates = {candidate.algorithm for candidate in fastconv.plan_conv2d(case.x, case.weight, **how).candidates}
    for name in dispatch.ALGORITHMS:
        if name in candidates:
            plan = fastconv.plan_conv2d(case.x, case.weight, **how, algorithm=name)
            assert plan.algorithm == name
            assert {candidate.algorithm for candidate in plan.candidates} == candidates
        else:
            with pytest.raises(NotImplementedError, match=name):
                fastconv.plan_conv2d(case.x, case.weight, **how, algorithm=name)


def test_forced_algorithms_that_do_not_exist_for_a_geometry_are_refused_by_the_calls(engine):
    """Winograd is for small kernels at stride 1; where there is none at all, it is refused too."""
    x, weight, dout = (np.ones(shape, np.float32) for shape in ((1, 2, 9, 9), (3, 2, 7, 7), (1, 3, 3, 3)))
    for call in (lambda how: fastconv.conv2d(x, weight, None, **how),
                 lambda how: fastconv.conv2d_backward(dout, x, weight, **how),
                 lambda how: fastconv.conv2d_backward_data(dout, weight, x.shape, **how),
                 lambda how: fastconv.conv2d_backward_weight(dout, x, weight.shape, **how),
                 lambda how: fastconv.pack_weight(weight, x.shape, **how)):
        with pytest.raises(NotImplementedError, match="winograd"):
            call({"algorithm": "winograd"})


@pytest.mark.parametrize("dtype", ["int32", "complex64", "longdouble"])
def test_dtypes_without_kernels_go_through_im2col(dtype):
    plan = fastconv.plan_conv2d((1, 2, 6, 6), (3, 2, 3, 3), dtype=dtype)
    if plan.backend == "cython":
        assert plan.algorithm == "im2col"
        with pytest.raises(NotImplementedError, match=f"direct.*{np.dtype(dtype)}"):
            fastconv.conv2d(np.ones((1, 2, 6, 6), dtype), np.ones((3, 2, 3, 3), dtype), algorithm="direct")


def test_float16_is_planned_as_float32():
    plans = [fastconv.plan_conv2d((1, 2, 6, 6), (3, 2, 3, 3), dtype=dtype) for dtype in (np.float16, np.float32, ">f4")]
    assert plans[0] == plans[1] == plans[2]


# --- select() is a pure function --------------------------------------------------------------------------------------


@every_direction
def test_select_is_pure(direction, engine):
    """The same arguments give an equal plan, and no thread count changes the choice."""
    settings = current()
    for case in CONV_CASES:
        geometry = conv2d_geometry(case.x, case.weight, **case.arguments)
        arguments = (direction, geometry, np.dtype(np.float32), settings)
        first = dispatch.select(*arguments)
        with fastconv.options(num_threads=7, workspace_limit=10**15):  # not its arguments: without influence
            assert dispatch.select(*arguments) == first
        assert dispatch.select(*arguments) == first
        for threads in (1, 2, 5, 64):
            assert dispatch.select(*arguments, threads=threads).algorithm == first.algorithm
    assert current() == settings


def test_select_obeys_its_settings():
    geometry = conv2d_geometry((1, 64, 56, 56), (64, 64, 3, 3), padding=1)

    def select(limit: int | None = None, **how: object) -> dispatch.Plan:
        settings = Settings(backend="numpy", accuracy="strict", workspace_limit=limit)
        return dispatch.select("forward", geometry, np.dtype(np.float32), settings, **how)

    assert select().backend == "numpy"
    assert select().algorithm != "winograd"
    assert select(algorithm="im2col").workspace_bytes > 10**6
    assert select(10**6, algorithm="im2col").workspace_bytes <= 10**6
    with pytest.raises(MemoryError, match=r"100\b"):
        select(100)


def test_the_table_has_an_algorithm_for_everything():
    for backend in dispatch.BACKENDS:
        for direction in DIRECTIONS:
            names = dispatch.algorithms(direction, backend)
            assert "im2col" in names
            assert set(names) <= set(dispatch.ALGORITHMS)
    assert dispatch.algorithms("forward", "nobody") == ()


def test_an_isa_that_is_in_use_is_the_plans():
    before = native.isa
    for isa in native.available_isas():
        with native.using_isa(isa), fastconv.options(backend="cython"):
            assert fastconv.plan_conv2d((1, 1, 4, 4), (1, 1, 3, 3)).isa == isa
    assert native.isa == before
    for isa in (name for name in native.ISAS if name not in native.available_isas()):
        with pytest.raises(ValueError, match=f"{isa}.*{native.available_isas()[0]}"), native.using_isa(isa):
            pass


# --- packed weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_a_packed_weight_takes_the_weights_place(case, forward_engine):
    rng = np.random.default_rng(0)
    shapes = case.x, case.weight, case.weight[:1]
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    how = {**case.arguments, "algorithm": forward_engine.algorithm}
    try:
        want = fastconv.conv2d(x, weight, bias, **how, activation="relu")
    except NotImplementedError:
        with pytest.raises(NotImplementedError, match=forward_engine.algorithm):
            fastconv.pack_weight(weight, case.x, **how)
        return
    packed = fastconv.pack_weight(weight, case.x, **how)
    weight[...] = np.nan  # the handle has a copy
    np.testing.assert_array_equal(fastconv.conv2d(x, packed, bias, **how, activation="relu"), want)
    np.testing.assert_array_equal(fastconv.conv2d(x, packed, bias, **case.arguments, activation="relu"), want)
    two = np.concatenate([x, x])  # where the last pixels lie, and so their last bits, may be another matter there
    np.testing.assert_allclose(fastconv.conv2d(two, packed, bias, **how, activation="relu")[len(x):], want, rtol=0,
                               atol=1e-5 * np.abs(want).max(initial=0))


def test_a_packed_weight_is_for_one_geometry(engine):
    x, weight = np.ones((1, 2, 8, 9), np.float32), np.ones((4, 2, 3, 3), np.float32)
    packed = fastconv.pack_weight(weight, x.shape, 1, 1)
    for wrong, names in (({"stride": 2}, "stride"), ({"padding": 0}, "pad"), ({"dilation": 2}, "dilation")):
        with pytest.raises(ValueError, match=names):
            fastconv.conv2d(x, packed, **{"padding": 1, **wrong})
    with pytest.raises(ValueError, match=r"\(8, 9\).*\(8, 8\)"):
        fastconv.conv2d(x[..., :8], packed, padding=1)
    with pytest.raises(ValueError, match="channels"):
        fastconv.conv2d(np.ones((1, 3, 8, 9), np.float32), packed, padding=1)
    other = "im2col" if packed.algorithm != "im2col" else "direct"
    with pytest.raises(ValueError, match="algorithm"):
        fastconv.conv2d(x, packed, padding=1, algorithm=other)


# --- profiles ---------------------------------------------------------------------------------------------------------


@every_direction
def test_profile(direction):
    records = fastconv.profile_conv2d((2, 8, 20, 21), (6, 8, 3, 3), padding=1, direction=direction, repeat=1)
    found = [(record["backend"], record["algorithm"]) for record in records]
    assert found == [(backend, algorithm) for backend in dispatch.BACKENDS if backend_available(backend)
                     for algorithm in dispatch.algorithms(direction, backend)]
    for record in records:
        assert record["skipped"] is None
        assert record["seconds"] > 0
        assert record["gflops"] > 0
        if record["backend"] == "cython":  # what is predicted is what is taken, but for small change
            assert 0 <= record["measured_bytes"] - record["predicted_bytes"] <= 1024


def test_profile_tells_what_it_skipped():
    records = fastconv.profile_conv2d((1, 2, 6, 6), (3, 2, 3, 3), dtype="int64", repeat=1)
    skipped = {(record["backend"], record["algorithm"]): record["skipped"] for record in records}
    assert "int64" in skipped["cython", "direct"]
    assert skipped["cython", "im2col"] is None
