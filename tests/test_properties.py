"""Any call that is valid gives what the reference gives: problems that Hypothesis makes up, on every engine.

One example is one problem: shapes with zeros and ones, every form of padding, strides, dilation, groups, dtypes, orders in
memory, values that are not finite, `out=` inside larger arrays, threads. All backends, ISA modules and algorithms that can
do it compute it, and what they give is compared with one result of the reference in float64.

A search: ``pytest tests/test_properties.py --hypothesis-profile=long`` (10,000 examples of each operation, hours).
What it finds becomes a case of cases.py or a test of its own, so that it stays found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from arrays import MEMORY_ORDERS, Surroundings, assert_accurate
from hypothesis import given
from hypothesis import strategies as st

import fastconv
from fastconv import dispatch, functional, native, reference
from fastconv.geometry import LAYOUTS, conv2d_geometry, pool2d_geometry
from fastconv.options import BACKENDS, backend_available

FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int8", "uint16", "int32", "int64")
OTHERS = (*INTEGERS, "complex64", "complex128")


# --- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What must not change a result: where its arrays lie, and how many threads compute it."""

    seed: int
    orders: tuple[int, ...]  # of MEMORY_ORDERS for each input; -1 as it is
    out: str  # "" for none, or a memory order that Surroundings knows
    threads: int
    special: int  # so many cells are not finite

    def values(self, shapes: tuple[tuple[int, ...], ...], dtype: str) -> list[np.ndarray]:
        """Random inputs of these shapes. Small whole numbers for what is not a float."""
        rng = np.random.default_rng(self.seed)
        if np.dtype(dtype).kind == "f":
            arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        else:
            arrays = [rng.integers(0 if dtype.startswith("u") else -5, 6, shape).astype(dtype) for shape in shapes]
        for _ in range(self.special if np.dtype(dtype).kind == "f" else 0):
            array = arrays[rng.integers(len(arrays))]
            if array.size:
                array[tuple(rng.integers(array.shape))] = rng.choice([np.nan, np.inf, -np.inf])
        return arrays

    def placed(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [array if order < 0 else MEMORY_ORDERS[order](array) for array, order in zip(arrays, self.orders, strict=False)]


settings_of_calls = st.builds(
    Setting, seed=st.integers(0, 2**32 - 1), out=st.sampled_from(["", "", "C", "F", "spread", "reversed"]),
    orders=st.one_of(st.just((-1, -1, -1)), st.tuples(*[st.integers(-1, len(MEMORY_ORDERS) - 1)] * 3)),
    threads=st.sampled_from([1, 1, 2, 3, 5, 8]), special=st.sampled_from([0, 0, 0, 1, 3]))


@dataclass(frozen=True)
class Problem:
    """An operation's shapes and arguments, and the setting that it is computed in."""

    x: tuple[int, ...]
    weight: tuple[int, ...] | None
    arguments: dict[str, Any]
    dtype: str
    setting: Setting
    options: dict[str, Any] = field(default_factory=dict)


@st.composite
def axes(draw: st.DrawFn, pooling: bool) -> tuple[int, int, int, tuple[int, int], int]:
    """Along one axis: size, kernel, stride, padding and dilation, with at least one window."""
    kernel = draw(st.one_of(st.integers(1, 5), st.sampled_from([3, 3, 1, 7, 11])))
    dilation = draw(st.sampled_from([1, 1, 1, 2, 3]))
    reach = dilation * (kernel - 1)
    pads = st.integers(0, min(reach, 6) if pooling else 7)
    before = draw(pads)
    after = draw(st.one_of(st.just(before), pads))
    smallest = max(reach + 1 - before - after, 1)
    size = smallest + draw(st.one_of(st.integers(0, 24), st.sampled_from([0, 31, 63, 64, 65, 130])))
    return size, kernel, draw(st.sampled_from([1, 1, 1, 2, 2, 3, 4, 7])), (before, after), dilation


def spell(draw: st.DrawFn, pair: tuple[int, int]) -> Any:
    """An int where both are the same, sometimes."""
    return pair[0] if pair[0] == pair[1] and draw(st.booleans()) else pair


@st.composite
def windows(draw: st.DrawFn, pooling: bool = False) -> dict[str, Any]:
    height, width = draw(axes(pooling)), draw(axes(pooling))
    if height[0] * width[0] > 3000:  # both large: nothing new, and slow
        height = (max(height[1] * height[4] + 1, 9), *height[1:])
    size, kernel, stride, pads, dilation = zip(height, width, strict=True)
    padding = pads
    if draw(st.integers(0, 4)) == 0 and not pooling:
        padding = draw(st.sampled_from(["same", "same_lower", "full", "valid"]))
        if padding == "valid":
            size = tuple(max(n, g * (k - 1) + 1) for n, k, g in zip(size, kernel, dilation, strict=True))
    elif pads[0][0] == pads[0][1] and pads[1][0] == pads[1][1]:
        padding = spell(draw, (pads[0][0], pads[1][0]))
    return {"size": size, "kernel": kernel, "stride": spell(draw, stride), "padding": padding,
            "dilation": spell(draw, dilation)}


batches = st.sampled_from([0, 1, 1, 1, 2, 2, 3, 9])


@st.composite
def convolutions(draw: st.DrawFn) -> Problem:
    window = draw(windows())
    groups = draw(st.sampled_from([1, 1, 1, 1, 2, 3, 5]))
    channels = draw(st.one_of(st.integers(1, 5), st.sampled_from([1, 8, 17, 33]))) if groups == 1 else draw(st.integers(1, 3))
    filters = draw(st.one_of(st.integers(1, 8), st.sampled_from([12, 13, 25]))) if groups == 1 else draw(st.integers(1, 4))
    batch = draw(batches)
    dtype = draw(st.sampled_from([*FLOATS[:2] * 4, "float16", *OTHERS]))
    x = (batch, groups * channels, *window["size"])
    if batch == 1 and draw(st.booleans()):
        x = x[1:]
    arguments = {name: window[name] for name in ("stride", "padding", "dilation")}
    return Problem(x, (groups * filters, channels, *window["kernel"]), {**arguments, "groups": groups}, dtype,
                   draw(settings_of_calls), {"bias": draw(st.booleans()), "relu": draw(st.booleans())})


@st.composite
def lowerings(draw: st.DrawFn) -> Problem:
    window = draw(windows())
    x = (draw(batches), draw(st.integers(1, 5)), *window["size"])
    arguments = {"filter_h": window["kernel"][0], "filter_w": window["kernel"][1], "stride": window["stride"],
                 "pad": window["padding"], "dilation": window["dilation"], "layout": draw(st.sampled_from(LAYOUTS))}
    return Problem(x, None, arguments, draw(st.sampled_from([*FLOATS, *OTHERS])), draw(settings_of_calls))


@st.composite
def poolings(draw: st.DrawFn) -> Problem:
    window = draw(windows(pooling=True))
    x = (draw(batches), draw(st.sampled_from([1, 2, 3, 5, 19])), *window["size"])
    arguments = {"kernel_size": spell(draw, window["kernel"]), "stride": window["stride"], "padding": window["padding"],
                 "dilation": window["dilation"], "ceil_mode": draw(st.booleans())}
    average = {"count_include_pad": draw(st.booleans()), "divisor_override": draw(st.sampled_from([None, None, 1, 7, -3]))}
    return Problem(x, None, arguments, draw(st.sampled_from([*FLOATS[:2] * 3, "float16", *INTEGERS])),
                   draw(settings_of_calls), {"ties": draw(st.booleans()), "average": average})


# --- engines ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def setting_of(backend: str, isa: str, threads: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(fastconv.options(backend=backend, num_threads=threads))
        if isa:
            stack.enter_context(native.using_isa(isa))
        yield


def backends() -> list[tuple[str, str]]:
    """Each backend that is there, and each of the ISA modules that this CPU runs."""
    return [(backend, isa) for backend in BACKENDS if backend_available(backend)
            for isa in (native.available_isas() if backend == "cython" else ("",))]


@pytest.fixture(autouse=True, scope="module")
def _threads_for_all():
    """Let every call have all its threads, however little there is to do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "SERIAL_ELEMENTS", 0)
        yield


def run_everywhere(problem: Problem, operation: str | None, check: Callable[..., None],
                   call: Callable[..., Any], inputs: list[np.ndarray], shape: tuple[int, ...], dtype: Any) -> None:
    """Call it on every engine and check each result; the inputs must stay what they are.

    `call` takes the inputs, `out` and, for convolutions, `algorithm`; `check` the result and the algorithm that made it.
    """
    setting = problem.setting
    for backend, isa in backends():
        names = ("auto", *dispatch.algorithms(operation, backend)) if operation else ("",)
        for algorithm in names:
            how = {"algorithm": algorithm} if operation else {}
            surroundings = Surroundings()
            placed = setting.placed(inputs)
            if setting.out:
                how["out"] = surroundings(shape, dtype, setting.out)
            with setting_of(backend, isa, setting.threads):
                # once as it is and once with threads for little work: the second call of a small one takes a shorter way
                for serial in ((2_000_000, 2_000_000, 0) if setting.threads > 1 else (2_000_000, 2_000_000)):
                    dispatch.SERIAL_FLOPS = serial
                    try:
                        got = call(*placed, **how)
                    except NotImplementedError:
                        assert algorithm not in ("", "auto", "im2col")
                        break
                    finally:
                        dispatch.SERIAL_FLOPS = 2_000_000
                        if serial == 0:
                            functional._small_calls.clear()
                    try:
                        assert got.dtype == dtype
                        assert got.shape == shape
                        if setting.out:
                            assert got is how["out"]
                        else:
                            assert got.flags.c_contiguous
                            assert got.flags.owndata
                            assert got.flags.writeable
                        check(got, algorithm)
                        surroundings.check()
                        for before, after in zip(inputs, placed, strict=True):
                            np.testing.assert_array_equal(before, after)
                    except AssertionError as error:
                        error.add_note(f"{backend} {isa} {algorithm}, SERIAL_FLOPS = {serial}")
                        raise


def assert_close(got: np.ndarray, want: np.ndarray, spread: np.ndarray, algorithm: str, weight_gradient: bool = False) -> None:
    """Rule 14 for what is finite; the rest must be the same NaN and infinities (rules 3 and 13)."""
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    if finite.any():
        assert_accurate(got[finite], want[finite], spread[finite], algorithm="auto" if algorithm in ("auto", "winograd")
                        else "direct", weight_gradient=weight_gradient)


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def squares(array: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(array), np.abs(wide(array)), 0) ** 2


def checker(problem: Problem, function: Callable[..., Any], inputs: list[np.ndarray], relu: bool = False,
            weight_gradient: bool = False) -> tuple[Callable[..., None], tuple[int, ...]]:
    """Compares with the reference's result, exactly for whole numbers; and the result's shape."""
    with np.errstate(all="ignore"):
        want = function(*map(wide, inputs))
        kind = np.dtype(problem.dtype).kind
        if kind in "iu":  # sums of whole numbers: exact, and the last bits of those that are too large
            want = want.astype(np.int64).astype(problem.dtype)
        want = np.where(want < 0, 0, want) if relu else want
        if kind in "iu":
            def check(got: np.ndarray, algorithm: str) -> None:
                np.testing.assert_array_equal(got, want)
        elif kind == "c":
            def check(got: np.ndarray, algorithm: str) -> None:
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
        else:
            spread = function(*map(squares, inputs))

            def check(got: np.ndarray, algorithm: str) -> None:
                assert_close(got, want, spread, algorithm, weight_gradient)
    return check, want.shape


def output_of(problem: Problem) -> tuple[int, ...]:
    shape = conv2d_geometry(problem.x, problem.weight, **problem.arguments).output_shape
    return shape if len(problem.x) == 4 else shape[1:]


# --- the operations ---------------------------------------------------------------------------------------------------


@given(problem=convolutions())
def test_conv2d(problem):
    assert problem.weight is not None
    shapes = (problem.x, problem.weight) + ((problem.weight[:1],) if problem.options["bias"] else ())
    inputs = problem.setting.values(shapes, problem.dtype)
    relu = problem.options["relu"] and np.dtype(problem.dtype).kind != "c"
    how = {**problem.arguments, "activation": "relu" if relu else None}

    def want(x, weight, bias=None):
        return reference.conv2d(x, weight, bias, **problem.arguments)

    check, shape = checker(problem, want, inputs, relu)
    run_everywhere(problem, "forward", check, lambda *a, **k: fastconv.conv2d(*a, **how, **k), inputs, shape, problem.dtype)


@given(problem=convolutions())
def test_conv2d_backward_data(problem):
    inputs = problem.setting.values((output_of(problem), problem.weight), problem.dtype)

    def call(function):
        return lambda dout, weight, **k: function(dout, weight, problem.x, **problem.arguments, **k)

    check, shape = checker(problem, call(reference.conv2d_backward_data), inputs)
    run_everywhere(problem, "backward_data", check, call(fastconv.conv2d_backward_data), inputs, shape, problem.dtype)


@given(problem=convolutions())
def test_conv2d_backward_weight(problem):
    inputs = problem.setting.values((output_of(problem), problem.x), problem.dtype)

    def call(function):
        return lambda dout, x, **k: function(dout, x, problem.weight, **problem.arguments, **k)

    check, shape = checker(problem, call(reference.conv2d_backward_weight), inputs, weight_gradient=True)
    run_everywhere(problem, "backward_weight", check, call(fastconv.conv2d_backward_weight), inputs, shape, problem.dtype)


@given(problem=convolutions(), extra=st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_conv_transpose2d(problem, extra):
    """With the output's shape as the image's."""
    stride, dilation = (np.broadcast_to(problem.arguments[name], 2) for name in ("stride", "dilation"))
    named = problem.arguments["padding"] in ("same", "same_lower")
    over = (0, 0) if named else tuple(min(n, max(s, d) - 1) for n, s, d in zip(extra, stride.tolist(), dilation.tolist(),
                                                                              strict=True))
    assert problem.weight is not None
    bias = (problem.weight[1] * problem.arguments["groups"],)
    inputs = problem.setting.values((output_of(problem), problem.weight, bias), problem.dtype)

    def call(function):
        return lambda x, weight, bias, **k: function(x, weight, bias, output_padding=over, **problem.arguments, **k)

    try:
        check, shape = checker(problem, call(reference.conv_transpose2d), inputs)
    except ValueError:  # a named padding of another size may leave no output
        return
    run_everywhere(problem, None, lambda got, _: check(got, "auto"), call(fastconv.conv_transpose2d), inputs, shape,
                   problem.dtype)


@given(problem=convolutions(), mode=st.sampled_from(["reflect", "replicate", "circular"]),
       operation=st.sampled_from(["forward", "backward_data", "backward_weight"]))
def test_padding_modes(problem, mode, operation):
    assert problem.weight is not None
    name, shapes, rest = {
        "forward": ("conv2d", (problem.x, problem.weight), ()),
        "backward_data": ("conv2d_backward_data", (output_of(problem), problem.weight), (problem.x,)),
        "backward_weight": ("conv2d_backward_weight", (output_of(problem), problem.x), (problem.weight,))}[operation]
    inputs = problem.setting.values(shapes, problem.dtype)
    how = {**problem.arguments, "padding_mode": mode}

    def call(function):
        return lambda *arrays, **k: function(*arrays, *rest, **how, **k)

    try:
        check, shape = checker(problem, call(getattr(reference, name)), inputs,
                               weight_gradient=operation == "backward_weight")
    except ValueError:  # more padding than image
        with pytest.raises(ValueError, match="padding"):
            call(getattr(fastconv, name))(*inputs)
        return
    run_everywhere(problem, operation, check, call(getattr(fastconv, name)), inputs, shape, problem.dtype)


def lowered(problem: Problem) -> np.ndarray:
    return reference.im2col(np.zeros(problem.x), **problem.arguments)


@given(problem=lowerings(), pad_value=st.sampled_from([0, 0, 3]))
def test_im2col(problem, pad_value):
    inputs = problem.setting.values((problem.x,), problem.dtype)
    how = {**problem.arguments, "pad_value": pad_value}
    want = reference.im2col(inputs[0], **how)
    run_everywhere(problem, None, lambda got, _: np.testing.assert_array_equal(got, want),
                   lambda x, **k: fastconv.im2col(x, **how, **k), inputs, want.shape, problem.dtype)


@given(problem=lowerings())
def test_col2im(problem):
    inputs = problem.setting.values((lowered(problem).shape,), problem.dtype)

    def call(function):
        return lambda col, **k: function(col, problem.x, **problem.arguments, **k)

    check, shape = checker(problem, call(reference.col2im), inputs)
    run_everywhere(problem, None, check, call(fastconv.col2im), inputs, shape, problem.dtype)


def pooled(problem: Problem, average: bool) -> tuple[int, ...] | None:
    """The output's shape, or None where a window has no cell inside, which is an error (rule 4)."""
    geometry = pool2d_geometry(problem.x, **problem.arguments)
    how = problem.options["average"]
    if geometry.empty_window and not (average and (how["count_include_pad"] or how["divisor_override"] is not None)):
        return None
    return geometry.output_shape


@given(problem=poolings())
def test_max_pool2d(problem):
    x, = problem.setting.values((problem.x,), problem.dtype)
    if problem.options["ties"]:
        x = np.where(np.isfinite(x), np.round(np.clip(x, -1, 1)), x).astype(problem.dtype)
    shape = pooled(problem, average=False)
    if shape is None:
        with pytest.raises(ValueError, match="no cell inside"):
            fastconv.max_pool2d(x, **problem.arguments)
        return
    want, places = reference.max_pool2d(x, **problem.arguments, return_indices=True)
    run_everywhere(problem, None, lambda got, _: np.testing.assert_array_equal(got, want),
                   lambda x, **k: fastconv.max_pool2d(x, **problem.arguments, **k), [x], shape, problem.dtype)
    run_everywhere(problem, None, lambda got, _: np.testing.assert_array_equal(got, places),
                   lambda x, out=None, **k: fastconv.max_pool2d(x, **problem.arguments, return_indices=True, **k)[1]
                   if out is None else np.copyto(out, fastconv.max_pool2d(x, **problem.arguments, return_indices=True)[1])
                   or out, [x], shape, np.int64)


@given(problem=poolings(), size=st.tuples(st.integers(1, 70), st.integers(1, 40)))
def test_max_pool2d_backward(problem, size):
    """Indices that some pooling could have given, and others."""
    rng = np.random.default_rng(problem.setting.seed)
    dout, = problem.setting.values((problem.x,), problem.dtype)
    shape = (*problem.x[:2], *size)
    places = rng.integers(0, size[0] * size[1], problem.x)

    def call(function):
        return lambda dout, places, **k: function(dout, places, shape, **k)

    check, _ = checker(problem, lambda dout: reference.max_pool2d_backward(dout, places, shape), [dout])
    run_everywhere(problem, None, check, call(fastconv.max_pool2d_backward), [dout, places], shape, problem.dtype)


@given(problem=poolings())
def test_avg_pool2d(problem):
    inputs = problem.setting.values((problem.x,), problem.dtype)
    how = {**problem.arguments, **problem.options["average"]}
    if pooled(problem, average=True) is None:
        with pytest.raises(ValueError, match="no cell inside"):
            fastconv.avg_pool2d(inputs[0], **how)
        return
    averages(problem, lambda function: lambda x, **k: function(x, **how, **k), "avg_pool2d", inputs)


@given(problem=poolings())
def test_avg_pool2d_backward(problem):
    shape = pooled(problem, average=True)
    if shape is None:
        return
    inputs = problem.setting.values((shape,), problem.dtype)
    how = {**problem.arguments, **problem.options["average"]}
    averages(problem, lambda function: lambda dout, **k: function(dout, problem.x, **how, **k), "avg_pool2d_backward", inputs)


# Poolings that are made of others: no `out`, and their definitions as loops.


@st.composite
def adaptive_poolings(draw: st.DrawFn) -> Problem:
    size = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    image = (draw(batches), draw(st.integers(1, 4)), *size)
    setting = replace(draw(settings_of_calls), out="")
    return Problem(image if draw(st.booleans()) else image[1:], None,
                   {"output_size": draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))},
                   draw(st.sampled_from([*FLOATS[:2] * 3, "float16", *INTEGERS])), setting, {"ties": draw(st.booleans())})


def adaptive_windows(size: tuple[int, ...], out: tuple[int, int]) -> Iterator[tuple[tuple[int, int], tuple[slice, slice]]]:
    """Places of the output, and the rows and columns of their windows."""
    for i, j in np.ndindex(out):
        rows, columns = (slice(k * n // o, -(-(k + 1) * n // o)) for k, n, o in zip((i, j), size, out, strict=True))
        yield (i, j), (rows, columns)


@given(problem=adaptive_poolings())
def test_adaptive_pooling(problem):
    x, = problem.setting.values((problem.x,), problem.dtype)
    if problem.options["ties"]:
        x = np.where(np.isfinite(x), np.round(np.clip(x, -1, 1)), x).astype(problem.dtype)
    out = problem.arguments["output_size"]
    shape = (*problem.x[:-2], *out)
    mean, spread, values, places = np.empty(shape), np.empty(shape), np.empty(shape, x.dtype), np.empty(shape, np.int64)
    for (i, j), (rows, columns) in adaptive_windows(problem.x[-2:], out):
        part = x[..., rows, columns]
        first = part.reshape(*shape[:-2], part.shape[-2] * part.shape[-1]).argmax(axis=-1)  # the first one; NaN if there is any
        down, right = np.divmod(first, part.shape[-1])
        places[..., i, j] = (down + rows.start) * problem.x[-1] + right + columns.start
        values[..., i, j] = part.max(axis=(-2, -1))
        with np.errstate(all="ignore"):
            mean[..., i, j] = wide(part).mean(axis=(-2, -1))
        spread[..., i, j] = squares(part).mean(axis=(-2, -1))
    exactly = np.testing.assert_array_equal
    run_everywhere(problem, None, lambda got, _: exactly(got, values),
                   lambda x: fastconv.adaptive_max_pool2d(x, out), [x], shape, problem.dtype)
    run_everywhere(problem, None, lambda got, _: exactly(got, places),
                   lambda x: fastconv.adaptive_max_pool2d(x, out, return_indices=True)[1], [x], shape, np.int64)
    run_everywhere(problem, None, lambda got, _: assert_close(got, mean, spread, "direct"),
                   lambda x: fastconv.adaptive_avg_pool2d(x, out), [x], shape,
                   problem.dtype if x.dtype.kind == "f" else "float64")


@given(problem=adaptive_poolings())
def test_adaptive_avg_pool2d_backward(problem):
    out = problem.arguments["output_size"]
    dout, = problem.setting.values(((*problem.x[:-2], *out),), problem.dtype)
    want, spread = np.zeros(problem.x), np.zeros(problem.x)
    with np.errstate(all="ignore"):
        for (i, j), (rows, columns) in adaptive_windows(problem.x[-2:], out):
            count = (rows.stop - rows.start) * (columns.stop - columns.start)
            want[..., rows, columns] += wide(dout)[..., i:i + 1, j:j + 1] / count
            spread[..., rows, columns] += squares(dout)[..., i:i + 1, j:j + 1] / count
    run_everywhere(problem, None, lambda got, _: assert_close(got, want, spread, "direct"),
                   lambda dout: fastconv.adaptive_avg_pool2d_backward(dout, problem.x), [dout], problem.x,
                   problem.dtype if dout.dtype.kind == "f" else "float64")


@given(problem=poolings(), p=st.sampled_from([1, 2, 3, 2.5]))
def test_lp_pooling(problem, p):
    """And its gradient; of positive numbers, so that there is a root."""
    kernel, stride, ceil_mode = (problem.arguments[name] for name in ("kernel_size", "stride", "ceil_mode"))
    problem = replace(problem, setting=replace(problem.setting, out="", special=0))
    geometry = pool2d_geometry(np.maximum(problem.x, (0, 1, *np.broadcast_to(kernel, 2))).tolist(), kernel, stride, 0, 1,
                               ceil_mode)
    dtype = problem.dtype if np.dtype(problem.dtype).kind == "f" else "float64"
    x, dout = (np.abs(array) + array.dtype.type(1) for array in problem.setting.values(
        (geometry.input_shape, geometry.output_shape), dtype))
    average = {"kernel_size": kernel, "stride": stride, "ceil_mode": ceil_mode}
    total = reference.avg_pool2d(wide(x) ** p, **average) * geometry.taps
    share = wide(dout) * geometry.taps * total ** (1 / p - 1)
    dx = reference.avg_pool2d_backward(share, x.shape, **average) * wide(x) ** (p - 1)
    limit = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-12}[dtype]

    def check(want):
        return lambda got, _: np.testing.assert_allclose(got, want, rtol=limit, atol=limit * np.abs(want).max(initial=0))

    run_everywhere(problem, None, check(total ** (1 / p)), lambda x: fastconv.lp_pool2d(x, p, kernel, stride, ceil_mode), [x],
                   total.shape, dtype)
    run_everywhere(problem, None, check(dx), lambda dout, x: fastconv.lp_pool2d_backward(dout, x, p, kernel, stride, ceil_mode),
                   [dout, x], x.shape, dtype)


@given(problem=adaptive_poolings(), extra=st.tuples(st.integers(0, 2), st.integers(0, 2)))
def test_unpooling(problem, extra):
    """Of any cells with any indices, and its gradient."""
    size = tuple(3 * n - e for n, e in zip(problem.x[-2:], extra, strict=True))
    shape = (*problem.x[:-2], *size)
    x, dout = problem.setting.values((problem.x, shape), problem.dtype)
    places = np.random.default_rng(problem.setting.seed).integers(0, size[0] * size[1], problem.x)
    want, back = np.zeros(shape, x.dtype), np.zeros(x.shape, x.dtype)
    for index in np.ndindex(x.shape):  # the last one stays
        to = (*index[:-2], *divmod(int(places[index]), size[1]))
        want[to] = x[index]
        back[index] = dout[to]
    exactly = np.testing.assert_array_equal
    run_everywhere(problem, None, lambda got, _: exactly(got, want),
                   lambda x, places: fastconv.max_unpool2d(x, places, 3, output_size=size), [x, places], shape, problem.dtype)
    run_everywhere(problem, None, lambda got, _: exactly(got, back),
                   lambda dout, places: fastconv.max_unpool2d_backward(dout, places), [dout, places], x.shape, problem.dtype)


def averages(problem: Problem, call: Callable[..., Any], name: str, inputs: list[np.ndarray]) -> None:
    with np.errstate(all="ignore"):
        want = call(getattr(reference, name))(*map(wide, inputs))
        one = [np.abs(squares(array)) for array in inputs]
        spread = np.abs(call(getattr(reference, name))(*one))
    dtype = problem.dtype if np.dtype(problem.dtype).kind == "f" else "float64"
    run_everywhere(problem, None, lambda got, _: assert_close(got, want, spread, "direct"), call(getattr(fastconv, name)),
                   inputs, want.shape, dtype)
