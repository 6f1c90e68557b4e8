"""The rules of what is right, one after the other, on every engine that they apply to.

Rule 11 is in test_adjoint.py, 12 and 15 in test_threads.py, the errors of 10 in test_errors.py, the book's layers of 16
in test_compat_dlfs.py; rule 14 is checked with every case of test_conv.py, and here for long sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from arrays import MEMORY_ORDERS, byte_swapped, misaligned, read_only
from cases import CONV_CASES, CORE_CONV_CASES, ConvCase

import fastconv
from fastconv import reference

nan, inf = np.nan, np.inf


def row(*values: float, dtype: str = "float32") -> np.ndarray:
    """A 1xN image (or filter) of one channel."""
    return np.array(values, dtype).reshape(1, 1, 1, -1)


# --- arrays: what goes in and what comes out (section 2) --------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A public function with its arrays, by name, and everything else fixed."""

    id: str
    function: Callable[..., Any]
    arrays: dict[str, tuple[int, ...]]

    def inputs(self, dtype: str) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1)
        made = {name: rng.standard_normal(shape).astype(dtype) for name, shape in self.arrays.items()}
        if "indices" in made:
            made["indices"] = rng.integers(0, 7 * 9, self.arrays["indices"])
        return made

    def __call__(self, **arguments: Any) -> np.ndarray:
        return self.function(**arguments)


CALLS = [
    *(Call(f"im2col-{layout}", lambda x, layout=layout, **out: fastconv.im2col(x, 3, 2, 2, 1, layout=layout, **out),
           {"x": (2, 4, 7, 9)}) for layout in ("rows", "columns", "windows", "cs231n")),
    *(Call(f"col2im-{layout}", lambda col, layout=layout, **out: fastconv.col2im(col, (2, 4, 7, 9), 3, 2, 2, 1,
                                                                                 layout=layout, **out), {"col": shape})
      for layout, shape in (("rows", (40, 24)), ("columns", (2, 24, 20)), ("windows", (2, 4, 3, 2, 4, 5)),
                            ("cs231n", (24, 40)))),
    Call("conv2d", lambda x, weight, bias, **out: fastconv.conv2d(x, weight, bias, 2, 1, groups=2, **out),
         {"x": (2, 4, 7, 9), "weight": (6, 2, 3, 3), "bias": (6,)}),
    Call("conv2d-kernel1", lambda x, weight, **out: fastconv.conv2d(x, weight, **out),
         {"x": (2, 4, 7, 9), "weight": (6, 4, 1, 1)}),
    Call("conv2d-kernel-is-image", lambda x, weight, **out: fastconv.conv2d(x, weight, **out),
         {"x": (2, 4, 7, 9), "weight": (6, 4, 7, 9)}),
    Call("conv2d_backward_data", lambda dout, weight, **out: fastconv.conv2d_backward_data(
        dout, weight, (2, 4, 7, 9), 2, 1, groups=2, **out), {"dout": (2, 6, 4, 5), "weight": (6, 2, 3, 3)}),
    Call("conv2d_backward_weight", lambda dout, x, **out: fastconv.conv2d_backward_weight(
        dout, x, (6, 2, 3, 3), 2, 1, groups=2, **out), {"dout": (2, 6, 4, 5), "x": (2, 4, 7, 9)}),
    *(Call(f"conv2d_backward-{name}", lambda dout, x, weight, i=i, name=name: fastconv.conv2d_backward(
        dout, x, weight, 2, 1, groups=2, need=(name,))[i],
        {"dout": (2, 6, 4, 5), "x": (2, 4, 7, 9), "weight": (6, 2, 3, 3)})
      for i, name in enumerate(("dx", "dw", "db"))),
    Call("conv_transpose2d", lambda x, weight, bias, **out: fastconv.conv_transpose2d(
        x, weight, bias, 2, 1, 1, 2, **out), {"x": (2, 6, 4, 5), "weight": (6, 2, 3, 3), "bias": (4,)}),
    Call("max_pool2d", lambda x, **out: fastconv.max_pool2d(x, 3, 2, 1, **out), {"x": (2, 4, 7, 9)}),
    Call("max_pool2d-indices", lambda x: fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)[1], {"x": (2, 4, 7, 9)}),
    Call("max_pool2d_backward", lambda dout, indices, **out: fastconv.max_pool2d_backward(
        dout, indices, (2, 4, 7, 9), **out), {"dout": (2, 4, 4, 5), "indices": (2, 4, 4, 5)}),
    Call("avg_pool2d", lambda x, **out: fastconv.avg_pool2d(x, 3, 2, 1, **out), {"x": (2, 4, 7, 9)}),
    Call("avg_pool2d_backward", lambda dout, **out: fastconv.avg_pool2d_backward(dout, (2, 4, 7, 9), 3, 2, 1, **out),
         {"dout": (2, 4, 4, 5)}),
    Call("global_avg_pool2d", lambda x: fastconv.global_avg_pool2d(x), {"x": (2, 4, 7, 9)}),
    Call("global_max_pool2d", lambda x: fastconv.global_max_pool2d(x), {"x": (2, 4, 7, 9)}),
]
CALLS_WITH_OUT = [call for call in CALLS if not call.id.startswith(("conv2d_backward-", "global", "max_pool2d-"))]
all_calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.id)
all_calls_with_out = pytest.mark.parametrize("call", CALLS_WITH_OUT, ids=lambda call: call.id)


@pytest.mark.parametrize("reorder", MEMORY_ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@all_calls
def test_any_memory_order_gives_the_same(call, dtype, reorder, engine):
    inputs = call.inputs(dtype)
    want = call(**inputs)
    reordered = {name: reorder(array) for name, array in inputs.items()}
    got = call(**reordered)
    assert got.dtype == want.dtype
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, want)
    for name, array in reordered.items():  # inputs are never written to
        np.testing.assert_array_equal(array, inputs[name])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32"])
@all_calls
def test_results_are_contiguous_and_own_their_memory(call, dtype, engine):
    inputs = call.inputs(dtype)
    before = {name: array.copy() for name, array in inputs.items()}
    first, second = call(**inputs), call(**inputs)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    assert first.flags.owndata
    assert not any(np.shares_memory(first, array) for array in (second, *inputs.values()))
    kept = first.copy()
    second[...] = 99  # a result is nobody else's, and not a buffer that a later call recycles
    call(**inputs)
    np.testing.assert_array_equal(first, kept)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_large_result_is_nobody_elses(engine):
    """Also where the memory of results that are no more is used again for later ones."""
    x, weight = np.ones((1, 2, 300, 300), np.float32), np.ones((3, 2, 1, 1), np.float32)
    first = fastconv.conv2d(x, weight)
    row_of_it, kept = fastconv.conv2d(2 * x, weight)[0, 1, 7], fastconv.max_pool2d(x, 2, 1)
    for i in range(8):
        alive = [fastconv.conv2d(i * x, weight) for _ in range(2)]
        assert not np.shares_memory(*alive)
        assert not any(np.shares_memory(array, other) for array in alive for other in (first, row_of_it, kept))
        for array in alive:
            array[...] = np.nan
        if i == 4:
            fastconv.release_memory()
    assert (first == 2).all()
    assert (row_of_it == 4).all()
    assert (kept == 1).all()
    first.resize((2, 500_000), refcheck=False)
    np.testing.assert_array_equal(first.ravel()[:3 * 300 * 300], 2)


@all_calls
def test_nested_lists_are_arrays(call, engine):
    inputs = call.inputs("float64")
    np.testing.assert_array_equal(call(**{name: array.tolist() for name, array in inputs.items()}), call(**inputs))


@pytest.mark.parametrize("memory", ["C", "F", "spread", "reversed"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@all_calls_with_out
def test_out_may_have_any_strides(call, dtype, memory, engine, poisoned):
    inputs = call.inputs(dtype)
    want = call(**inputs)
    out = poisoned(want.shape, dtype, memory)
    assert call(**inputs, out=out) is out
    np.testing.assert_array_equal(out, want)


@all_calls_with_out
def test_out_may_be_misaligned(call, engine):
    inputs = call.inputs("float32")
    want = call(**inputs)
    out = misaligned(np.full_like(want, nan))
    assert call(**inputs, out=out) is out
    np.testing.assert_array_equal(out, want)


@all_calls_with_out
def test_wrong_out_is_an_error(call, engine):
    inputs = call.inputs("float32")
    good = call(**inputs)
    for shape in ((*good.shape[:-1], good.shape[-1] + 1), good.shape[1:], (1, *good.shape)):
        with pytest.raises(ValueError, match=r"out\b.*shape"):
            call(**inputs, out=np.empty(shape, good.dtype))
    for dtype in (np.float64, np.float16, np.int32, np.complex64):
        with pytest.raises(TypeError, match=r"out\b.*float32"):
            call(**inputs, out=np.empty(good.shape, dtype))
    with pytest.raises(TypeError, match=r"out\b.*float32.*f4"):  # another byte order is another dtype
        call(**inputs, out=byte_swapped(good))
    with pytest.raises(TypeError, match="out"):
        call(**inputs, out=good.tolist())
    with pytest.raises(ValueError, match=r"out\b.*overlap"):  # all cells in one place
        call(**inputs, out=np.lib.stride_tricks.as_strided(good, good.shape, (0,) * good.ndim))
    with pytest.raises(ValueError, match=r"out\b.*(read-only|writ)"):
        call(**inputs, out=read_only(good))


@all_calls_with_out
def test_out_over_an_input_is_an_error(call, engine):
    inputs = call.inputs("float32")
    shape = call(**inputs).shape
    for name, array in inputs.items():
        # One block of memory that holds the input, and the output over its last cells.
        size = int(np.prod(shape))
        block = np.zeros(max(array.nbytes + 4 * size - 8, array.nbytes), np.uint8)
        over = block[:array.nbytes].view(array.dtype).reshape(array.shape)
        over[...] = array
        out = block[array.nbytes - 8:array.nbytes - 8 + 4 * size].view(np.float32).reshape(shape)
        before = over.copy()
        with pytest.raises(ValueError, match=r"out.*overlap"):
            call(**{**inputs, name: over}, out=out)
        np.testing.assert_array_equal(over, before)


def test_out_beside_an_input_is_none(engine):
    """Memory that only lies between an input's first and last byte is no overlap."""
    both = np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32)
    x, out = both[:, 0:1], both[:, 1:2]
    want = fastconv.max_pool2d(x, 3, 1, 1)
    np.testing.assert_array_equal(fastconv.max_pool2d(x, 3, 1, 1, out=out), want)


@pytest.mark.parametrize("bad", [np.array([["a"]]), np.array([[object()]]), [["1"]], None, "x",
                                 np.zeros((1, 1, 4, 4), "datetime64[s]"), np.zeros((1, 1, 4, 4), "V4")],
                         ids=["strings", "objects", "list-of-strings", "none", "str", "datetime", "void"])
@all_calls
def test_what_is_no_array_of_numbers_is_a_type_error(call, bad, engine):
    for name in call.arrays:
        if name == "bias" and bad is None:
            continue
        with pytest.raises(TypeError, match=name):
            call(**{**call.inputs("float32"), name: bad})


def test_subclasses_and_array_likes_give_plain_arrays(engine):
    class Wrapped:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.ones((1, 1, 4, 4), np.float32)

    class Subclass(np.ndarray):
        pass

    for x in (Wrapped(), np.ones((1, 1, 4, 4), np.float32).view(Subclass)):
        for result in (fastconv.conv2d(x, np.ones((1, 1, 2, 2), np.float32)), fastconv.max_pool2d(x, 2),
                       fastconv.im2col(x, 2, 2)):
            assert type(result) is np.ndarray
            assert result.dtype == np.float32


# --- rule 1: output sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kernel", "stride", "pads", "dilation"), [
    ((7, 7), (3, 3), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    ((28, 31), (5, 5), (3, 3), ((2, 2), (2, 2)), (1, 1)),
    ((9, 10), (2, 3), (4, 1), ((1, 0), (0, 3)), (3, 2)),
    ((1, 1), (1, 1), (3, 3), ((0, 0), (0, 0)), (5, 5)),
    ((5, 5), (3, 3), (1, 7), ((0, 0), (0, 0)), (2, 1)),
])
def test_rule_01_output_size(size, kernel, stride, pads, dilation, forward_engine):
    # Counted, not computed: a window starts wherever it still ends inside the padded image.
    want = tuple(sum(start % stride[i] == 0 and start + dilation[i] * (kernel[i] - 1) < size[i] + sum(pads[i])
                     for start in range(size[i] + sum(pads[i]))) for i in (0, 1))
    assert fastconv.conv_output_size(size, kernel, stride, pads, dilation) == want
    x, weight = np.ones((2, 3, *size), np.float32), np.ones((4, 3, *kernel), np.float32)
    out = forward_engine(fastconv.conv2d, x, weight, None, stride, pads, dilation)
    assert out.shape == (2, 4, *want)


def test_rule_01_strict_raises_where_cells_are_left_over():
    assert fastconv.conv_output_size(7, 3, 2, strict=True) == 3
    with pytest.raises(ValueError, match=r"stride.*8|8.*stride"):
        fastconv.conv_output_size(8, 3, 2, strict=True)


def test_rule_01_a_size_below_one_names_the_sizes(conv_engine):
    x, weight = np.ones((1, 1, 4, 6), np.float32), np.ones((1, 1, 5, 2), np.float32)
    with pytest.raises(ValueError, match=r"height.*5.*4"):
        conv_engine(fastconv.conv2d, x, weight)
    with pytest.raises(ValueError, match=r"width.*9.*6"):
        fastconv.max_pool2d(x, (1, 9))


def test_rule_01_a_batch_of_none_gives_an_empty_result(forward_engine):
    x, weight = np.zeros((0, 2, 5, 6), np.float32), np.zeros((4, 2, 3, 3), np.float32)
    assert forward_engine(fastconv.conv2d, x, weight, np.ones(4, np.float32)).shape == (0, 4, 3, 4)


def test_rule_01_a_batch_of_none_gives_zero_gradients(weight_engine):
    x, weight, dout = (np.zeros(shape, np.float32) for shape in ((0, 2, 5, 6), (4, 2, 3, 3), (0, 4, 3, 4)))
    dw = np.full(weight.shape, nan, np.float32)
    weight_engine(fastconv.conv2d_backward_weight, dout, x, weight.shape, out=dw)
    np.testing.assert_array_equal(dw, np.zeros(weight.shape))
    dx, dw, db = weight_engine(fastconv.conv2d_backward, dout, x, weight)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros(weight.shape))
    np.testing.assert_array_equal(db, np.zeros(4))


# --- rule 2: named paddings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "want"), [
    ("valid", [3, 5, 7]), ("same", [3, 5, 7, 4]), ("same_lower", [1, 3, 5, 7]), ("full", [1, 3, 5, 7, 4])])
def test_rule_02_where_the_odd_cell_goes(padding, want, forward_engine):
    out = forward_engine(fastconv.conv2d, row(1, 2, 3, 4), row(1, 1), padding=padding)
    np.testing.assert_array_equal(out, row(*want))


def test_rule_02_where_the_odd_cell_of_poolings_and_im2col_goes(engine):
    np.testing.assert_array_equal(fastconv.max_pool2d(row(1, 2, 4, 3), (1, 2), 1, "same"), row(2, 4, 4, 3))
    np.testing.assert_array_equal(fastconv.max_pool2d(row(1, 2, 4, 3), (1, 2), 1, "same_lower"), row(1, 2, 4, 4))
    np.testing.assert_array_equal(fastconv.avg_pool2d(row(2, 4), (1, 2), 1, "same"), row(3, 2))
    np.testing.assert_array_equal(fastconv.avg_pool2d(row(2, 4), (1, 2), 1, "same_lower"), row(1, 3))
    np.testing.assert_array_equal(fastconv.im2col(row(1, 2), 1, 2, 1, "same"), [[1, 2], [2, 0]])


@pytest.mark.parametrize("padding", ["same", "same_lower"])
def test_rule_02_same_is_size_over_stride_rounded_up(padding, forward_engine):
    for size, kernel, stride, dilation in itertools.product((1, 2, 5, 8), (1, 2, 3, 4), (1, 2, 3), (1, 2)):
        x, weight = np.ones((1, 1, size, 3)), np.ones((1, 1, kernel, 1))
        out = forward_engine(fastconv.conv2d, x, weight, None, (stride, 1), padding, (dilation, 1))
        assert out.shape == (1, 1, -(-size // stride), 3)


def test_rule_02_full_is_the_dilated_window(forward_engine):
    out = forward_engine(fastconv.conv2d, row(1, 2, 4), row(10, 1), padding="full", dilation=2)
    np.testing.assert_array_equal(out, row(1, 2, 14, 20, 40))


# --- rule 3: padding takes part in the arithmetic ---------------------------------------------------------------------


@pytest.mark.parametrize("width", [3, 9, 33, 70])
def test_rule_03_an_infinite_weight_over_padding_gives_nan(width, forward_engine):
    weight = np.ones((1, 1, 3, 3), np.float32)
    weight[0, 0, 0, 0] = inf
    out = forward_engine(fastconv.conv2d, np.ones((1, 1, 4, width), np.float32), weight, padding=1)
    want = np.full((1, 1, 4, width), inf)
    want[0, 0, 0, :] = want[0, 0, :, 0] = nan  # where the infinite tap lies over padding: inf * 0
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize(("kernel", "padding", "stride"), [(1, 2, 1), (2, 4, 3), (3, 5, 2)])
def test_rule_03_also_where_the_whole_window_is_padding(kernel, padding, stride, forward_engine):
    weight = np.full((2, 1, kernel, kernel), inf, np.float32)
    x = np.ones((1, 1, 3, 3), np.float32)
    out = forward_engine(fastconv.conv2d, x, weight, None, stride, padding)
    want = reference.conv2d(x, weight, None, stride, padding)
    assert np.isnan(want).any()
    np.testing.assert_array_equal(out, want)


def test_rule_03_an_infinite_gradient_over_padding_gives_nan(weight_engine):
    dout = np.ones((1, 1, 4, 5), np.float32)
    dout[0, 0, 0, 0] = inf  # its window's first row and column are padding
    x = np.ones((1, 1, 4, 5), np.float32)
    dw = weight_engine(fastconv.conv2d_backward_weight, dout, x, (1, 1, 3, 3), padding=1)
    np.testing.assert_array_equal(dw, [[[[nan, nan, nan], [nan, inf, inf], [nan, inf, inf]]]])


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (1, 1, 1), (2, 1, 1), (3, 0, 2), (2, 2, 2)])
def test_rule_03_dx_sums_over_the_gradients_that_exist(stride, padding, dilation, data_engine):
    """An infinite weight does not meet zeros that somebody put between or around the cells of `dout`."""
    weight = np.ones((1, 1, 3, 3), np.float32)
    weight[0, 0, 0, 2] = inf
    dout = np.ones_like(fastconv.conv2d(np.ones((1, 1, 9, 20), np.float32), weight, None, stride, padding, dilation))
    how = (stride, padding, dilation)
    dx = data_engine(fastconv.conv2d_backward_data, dout, weight, (1, 1, 9, 20), *how)
    assert not np.isnan(dx).any()
    np.testing.assert_array_equal(dx, reference.conv2d_backward_data(dout, weight, (1, 1, 9, 20), *how))


def test_rule_03_the_transposed_convolution_too(engine):
    weight = np.array([[[[1, inf, 2]]]], np.float32)
    out = fastconv.conv_transpose2d(row(1, 3), weight, stride=(1, 3), output_padding=(0, 1))
    np.testing.assert_array_equal(out, row(1, inf, 2, 3, inf, 6, 0))


def test_rule_03_infinities_that_meet_in_a_bias_are_no_warning(engine):
    """The suite turns warnings into errors."""
    bias = np.array([-inf], np.float32)
    np.testing.assert_array_equal(fastconv.conv_transpose2d(row(1, inf), row(1), bias), row(-inf, nan))
    np.testing.assert_array_equal(fastconv.conv2d(row(1, inf), row(1), bias), row(-inf, nan))
    np.testing.assert_array_equal(fastconv.conv2d_backward(row(inf, -inf), row(1, 1), row(1))[2], [nan])


def test_rule_03_relu_keeps_nan(forward_engine):
    x = row(*[nan, -1, 2, -inf, inf] * 15)
    out = forward_engine(fastconv.conv2d, x, row(1), activation="relu")
    np.testing.assert_array_equal(out, row(*[nan, 0, 2, 0, inf] * 15))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rule_03_infinities_that_meet_in_col2im_are_no_warning(dtype, engine):
    """Two windows see one cell, and one says inf of it and the other -inf."""
    col = np.array([[[1, inf], [-inf, 2]]], dtype)
    np.testing.assert_array_equal(fastconv.col2im(col, (1, 1, 1, 3), 1, 2, layout="columns"), row(1, nan, 2))


# --- rules 4 to 6: max pooling ----------------------------------------------------------------------------------------


def test_rule_04_padding_never_wins(engine):
    x = row(-5, -3, -4)
    out, indices = fastconv.max_pool2d(x, 3, 1, 1, return_indices=True)
    np.testing.assert_array_equal(out, row(-3, -3, -3))
    np.testing.assert_array_equal(indices, row(1, 1, 1))
    for dtype in ("int8", "int64", "float16", "float64"):
        np.testing.assert_array_equal(fastconv.max_pool2d(x.astype(dtype), 3, 1, 1), row(-3, -3, -3))
    lowest = np.full((1, 1, 4, 4), np.iinfo(np.int16).min, np.int16)
    np.testing.assert_array_equal(fastconv.max_pool2d(lowest, 3, 1, 1), lowest)


@pytest.mark.parametrize("call", [lambda **how: fastconv.max_pool2d(np.ones((1, 1, 9, 9)), **how),
                                  lambda **how: fastconv.avg_pool2d(np.ones((1, 1, 9, 9)), **how)], ids=["max", "avg"])
def test_rule_04_padding_is_smaller_than_the_window(call, engine):
    assert call(kernel_size=3, stride=1, padding=2).shape == (1, 1, 11, 11)
    assert call(kernel_size=2, stride=1, padding=3, dilation=3).shape == (1, 1, 12, 12)
    with pytest.raises(ValueError, match=r"padding.*3.*3"):
        call(kernel_size=3, stride=1, padding=3)
    with pytest.raises(ValueError, match=r"padding.*4"):
        call(kernel_size=2, stride=1, padding=((0, 0), (4, 0)), dilation=3)


@pytest.mark.parametrize("width", [3, 40])
def test_rule_04_a_window_of_minus_infinity(width, engine):
    x = np.full((1, 1, 3, width), -inf, np.float32)
    out, indices = fastconv.max_pool2d(x, 3, 1, 1, return_indices=True)
    np.testing.assert_array_equal(out, x)
    first = np.arange(3 * width).reshape(3, width)[np.ix_([0, 0, 1], [0, *range(width - 1)])]
    np.testing.assert_array_equal(indices[0, 0], first)
    dx = fastconv.max_pool2d_backward(np.ones_like(out), indices, x.shape)
    assert dx.sum() == out.size


def test_rule_04_a_window_without_a_cell_is_an_error(engine):
    # Taps at -2 and 3 of an image with cells 0 to 2.
    with pytest.raises(ValueError, match=r"no cell inside"):
        fastconv.max_pool2d(np.ones((1, 1, 5, 3)), (1, 2), 1, ((0, 0), (2, 2)), (1, 5))


@pytest.mark.parametrize("width", [4, 37])
def test_rule_05_the_first_of_equals_wins_and_gets_the_whole_gradient(width, engine):
    x = np.zeros((1, 1, 4, width), np.float32)
    out, indices = fastconv.max_pool2d(x, 3, 1, return_indices=True)
    want = np.arange(2)[:, np.newaxis] * width + np.arange(width - 2)
    np.testing.assert_array_equal(indices[0, 0], want)
    dx = fastconv.max_pool2d_backward(np.full_like(out, 3), indices, x.shape)
    expected = np.zeros_like(x)
    expected[0, 0, :2, :width - 2] = 3
    np.testing.assert_array_equal(dx, expected)


def test_rule_05_minus_zero_equals_zero(engine):
    out, indices = fastconv.max_pool2d(row(-0.0, 0.0, 0.0, -0.0), (1, 2), return_indices=True)
    np.testing.assert_array_equal(indices, row(0, 2))
    np.testing.assert_array_equal(np.signbit(out), [[[[True, False]]]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rule_05_nan_wins_and_the_first_one(dtype, engine):
    x = np.zeros((1, 1, 3, 40), dtype)
    x[0, 0, 0, 0::5], x[0, 0, 1, 1::5], x[0, 0, 2, 2::5], x[0, 0, 1, 3::5] = inf, nan, nan, -inf
    out, indices = fastconv.max_pool2d(x, (3, 5), return_indices=True)
    np.testing.assert_array_equal(out, np.full((1, 1, 1, 8), nan))
    np.testing.assert_array_equal(indices[0, 0, 0], 40 + 1 + 5 * np.arange(8))
    np.testing.assert_array_equal(fastconv.max_pool2d(x, (3, 5)), out)
    np.testing.assert_array_equal(fastconv.global_max_pool2d(x).ravel(), [nan])
    for k, s, p in ((2, 2, 0), (3, 2, 1), (3, 1, 1)):
        got = fastconv.max_pool2d(x, k, s, p, return_indices=True)
        for mine, want in zip(got, reference.max_pool2d(x, k, s, p, return_indices=True), strict=True):
            np.testing.assert_array_equal(mine, want)


def test_rule_06_indices_count_within_a_plane(engine):
    x = np.zeros((2, 3, 5, 7), np.float32)
    x[:, :, 2, 3] = 1
    _, indices = fastconv.max_pool2d(x, (5, 7), return_indices=True)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, np.full((2, 3, 1, 1), 2 * 7 + 3))


# --- rules 7 and 8: rounding up, and divisors -------------------------------------------------------------------------


def windows_along(size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int, ceil_mode: bool,
                  ) -> list[list[int]]:
    """The cells of each window along one axis, counted out one by one; the image's are 0 to size - 1."""
    e = dilation * (kernel - 1) + 1
    found, start = [], -pads[0]
    while start + e <= size + pads[1] or (ceil_mode and start < size and start - stride + e < size + pads[1]):
        found.append([start + tap * dilation for tap in range(kernel)])
        start += stride
    return found


POOL_AXES = [(size, kernel, stride, pads, dilation)
             for size, kernel, stride, dilation in itertools.product((1, 4, 5, 8), (1, 2, 3), (1, 2, 3), (1, 2))
             for pads in ((0, 0), (1, 0), (0, 1), (1, 2), (2, 2))
             if max(pads) <= dilation * (kernel - 1) and size + sum(pads) > dilation * (kernel - 1)]


def test_rule_07_ceil_mode(engine):
    for size, kernel, stride, pads, dilation in POOL_AXES:
        want = len(windows_along(size, kernel, stride, pads, dilation, True))
        out = fastconv.avg_pool2d(np.ones((1, 1, size, 2)), (kernel, 1), (stride, 1), (pads, (0, 0)), True,
                                  dilation=(dilation, 1))
        assert out.shape == (1, 1, want, 2), (size, kernel, stride, pads, dilation)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_rule_08_divisors(count_include_pad, ceil_mode, engine):
    """The sum of ones is the number of cells in the image, so that the mean tells the divisor."""
    for size, kernel, stride, pads, dilation in POOL_AXES:
        cells = windows_along(size, kernel, stride, pads, dilation, ceil_mode)
        inside = [sum(0 <= cell < size for cell in window) for window in cells]
        counted = [sum(cell < size + pads[1] for cell in window) for window in cells] if count_include_pad else inside
        how = ((kernel, 1), (stride, 1), (pads, (0, 0)), ceil_mode, count_include_pad)
        if 0 in counted:
            with pytest.raises(ValueError, match="no cell inside"):
                fastconv.avg_pool2d(np.ones((1, 1, size, 2)), *how, dilation=(dilation, 1))
            continue
        out = fastconv.avg_pool2d(np.ones((1, 1, size, 2)), *how, dilation=(dilation, 1))
        want = np.divide(inside, counted)
        case = f"{size=} {kernel=} {stride=} {pads=} {dilation=}"
        np.testing.assert_allclose(out[0, 0, :, 0], want, rtol=1e-15, err_msg=case)
        transposed = fastconv.avg_pool2d(np.ones((1, 1, 2, size)), (1, kernel), (1, stride), ((0, 0), pads), *how[3:],
                                         dilation=(1, dilation))
        np.testing.assert_allclose(transposed[0, 0, 0], want, rtol=1e-15, err_msg=case)


@pytest.mark.parametrize("count_include_pad", [False, True])
def test_rule_08_divisor_override(count_include_pad, engine):
    x = row(1, 2, 3)
    for divisor in (1, 4, -2):
        out = fastconv.avg_pool2d(x, (1, 3), 1, (0, 1), False, count_include_pad, divisor)
        np.testing.assert_allclose(out, row(3, 6, 5) / divisor, rtol=1e-7)
        dx = fastconv.avg_pool2d_backward(row(1, 1, 1), x.shape, (1, 3), 1, (0, 1), False, count_include_pad, divisor)
        np.testing.assert_allclose(dx, row(2, 3, 2) / divisor, rtol=1e-7)
    for call in (lambda: fastconv.avg_pool2d(x, (1, 3), 1, (0, 1), False, count_include_pad, 0),
                 lambda: fastconv.avg_pool2d_backward(x, x.shape, (1, 3), 1, (0, 1), False, count_include_pad, 0)):
        with pytest.raises(ValueError, match=r"divisor_override.*0"):
            call()


# --- rule 9: dtypes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@all_calls
def test_rule_09_floats_stay_what_they_are(call, dtype, engine):
    assert call(**call.inputs(dtype)).dtype == (np.int64 if call.id.endswith("indices") else dtype)


def test_rule_09_float16_is_added_up_in_float32(engine):
    """2048 + 1 is 2048 in float16, but 2048 + 1 + 1 is 2050."""
    x, ones = row(2048, 1, 1, dtype="float16"), np.ones((1, 1, 1, 3), np.float16)
    big, one = np.full((1, 1, 1, 1), 2050, np.float16), np.ones((1, 1, 1, 1), np.float16)
    assert fastconv.conv2d(x, ones) == big
    assert fastconv.conv2d(x, one).dtype == np.float16
    columns_of_three = x.reshape(1, 3, 1, 1)
    assert fastconv.conv2d(columns_of_three, np.ones((1, 3, 1, 1), np.float16)) == big
    assert fastconv.conv2d_backward_data(columns_of_three, np.ones((3, 1, 1, 1), np.float16), (1, 1, 1, 1)) == big
    assert fastconv.conv2d_backward_weight(x, ones, (1, 1, 1, 1)) == big
    assert fastconv.conv2d_backward(x, ones, one)[2] == 2050
    assert fastconv.conv_transpose2d(columns_of_three, np.ones((3, 1, 1, 1), np.float16)) == big
    assert fastconv.avg_pool2d(x, (1, 3), divisor_override=1) == big
    assert fastconv.global_avg_pool2d(x) == np.float16(2050 / 3)
    # Three windows over one cell.
    col = np.array([[0, 0, 2048], [0, 1, 0], [1, 0, 0]], np.float16)
    np.testing.assert_array_equal(fastconv.col2im(col, (1, 1, 1, 5), 1, 3), row(0, 0, 2050, 0, 0))
    assert fastconv.max_pool2d_backward(x, np.zeros((1, 1, 1, 3), int), (1, 1, 1, 1)) == big
    assert fastconv.avg_pool2d_backward(x, (1, 1, 1, 5), (1, 3), 1, divisor_override=1)[0, 0, 0, 2] == 2050


@pytest.mark.parametrize(("dtypes", "want"), [
    (("float32", "float32", None), "float32"),
    (("float32", "float64", None), "float64"),
    (("float64", "float32", None), "float64"),
    (("float32", "float32", "float64"), "float64"),
    (("float64", "float64", "float32"), "float64"),
    (("float16", "float32", "float16"), "float32"),
    (("int8", "float32", None), "float32"),
    (("int32", "float32", None), "float64"),
    (("float16", "int64", None), "float64"),
    (("uint8", "int8", None), "int16"),
    (("int32", "int32", "float32"), "float64"),
    (("float32", "complex64", None), "complex64"),
    (("float64", "float32", "complex64"), "complex128"),
], ids=str)
def test_rule_09_mixed_dtypes(dtypes, want, engine):
    rng = np.random.default_rng(0)
    x, weight, bias = (None if dtype is None else (rng.standard_normal(shape) * 3).astype(dtype)
                       for dtype, shape in zip(dtypes, ((2, 3, 5, 6), (4, 3, 3, 3), (4,)), strict=True))
    out = fastconv.conv2d(x, weight, bias)
    assert out.dtype == want
    wide = np.result_type(want, np.float64)
    expected = reference.conv2d(*(None if a is None else a.astype(wide) for a in (x, weight, bias)))
    tolerance = 1e-5 if want in ("float32", "complex64") else 1e-12  # computed in that precision, not only cast to it
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    transposed = fastconv.conv_transpose2d(x, weight.swapaxes(0, 1), bias)
    assert transposed.dtype == want


@pytest.mark.parametrize(("dtypes", "want"), [
    (("float32", "float32", "float64"), "float64"),
    (("float64", "float32", "float32"), "float64"),
    (("float32", "float64", "float32"), "float64"),
    (("float16", "float16", "float32"), "float32"),
    (("int32", "int32", "int32"), "int32"),
    (("float32", "int32", "float32"), "float64"),
], ids=str)
def test_rule_09_gradients_have_the_dtype_of_all(dtypes, want, engine):
    rng = np.random.default_rng(0)
    dout, x, weight = ((rng.standard_normal(shape) * 3).astype(dtype)
                       for dtype, shape in zip(dtypes, ((2, 4, 3, 4), (2, 3, 5, 6), (4, 3, 3, 3)), strict=True))
    gradients = fastconv.conv2d_backward(dout, x, weight)
    assert [gradient.dtype for gradient in gradients] == [want] * 3
    assert fastconv.conv2d_backward_data(dout, weight, x.shape).dtype == np.result_type(dout, weight)
    assert fastconv.conv2d_backward_weight(dout, x, weight.shape).dtype == np.result_type(dout, x)


INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("algorithm", ["auto", "im2col"])
@pytest.mark.parametrize("dtype", [*INTEGERS, "complex64", "complex128", "longdouble"])
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_rule_09_other_dtypes_give_what_matmul_gives(case, dtype, algorithm, engine):
    """Integers wrap around, where a sum is too large for them, as they do in np.matmul."""
    rng = np.random.default_rng(0)

    def random(shape: tuple[int, ...]) -> np.ndarray:
        if np.dtype(dtype).kind in "iu":
            info = np.iinfo(dtype)
            return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        values = rng.standard_normal(shape)
        return (values + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)

    x, weight, bias = random(case.x), random(case.weight), random(case.weight[:1])
    want = matmul_conv2d(x, weight, case) + bias[:, np.newaxis, np.newaxis]
    dout = random(want.shape)
    how = {**case.arguments, "algorithm": algorithm}
    got = fastconv.conv2d(x, weight, bias, **how)
    dx, dw, db = fastconv.conv2d_backward(dout, x, weight, **how)
    assert got.dtype == dx.dtype == dw.dtype == db.dtype == dtype
    if np.dtype(dtype).kind in "iu":
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(dx, reference.conv2d_backward_data(dout, weight, case.x, **case.arguments))
        np.testing.assert_array_equal(dw, reference.conv2d_backward_weight(dout, x, case.weight, **case.arguments))
        np.testing.assert_array_equal(db, dout.sum(axis=(0, 2, 3), dtype=dtype))
        return
    tolerance = 2e-6 if dtype == "complex64" else 1e-13
    for mine, right in ((got, want), (dx, reference.conv2d_backward_data(dout, weight, case.x, **case.arguments)),
                        (dw, reference.conv2d_backward_weight(dout, x, case.weight, **case.arguments))):
        np.testing.assert_allclose(mine, right, rtol=0, atol=tolerance * np.abs(right).max(initial=0))


def matmul_conv2d(x: np.ndarray, weight: np.ndarray, case: Any) -> np.ndarray:
    """``(K, C*KH*KW) @ (C*KH*KW, OH*OW)`` for each image and group."""
    col = reference.im2col(x, *case.window, dilation=case.dilation, layout="columns")
    col = col.reshape(len(x), case.groups, -1 if len(x) else weight[0].size, col.shape[-1])
    out = np.matmul(weight.reshape(case.groups, -1, weight[0].size), col)
    return out.reshape(fastconv.plan_conv2d(case.x, case.weight, **case.arguments).output_shape)


def test_rule_09_average_of_integers_is_float64(engine):
    x = np.array([1, 2, 4, 250], np.uint8).reshape(1, 1, 1, 4)
    out = fastconv.avg_pool2d(x, (1, 2))
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, row(1.5, 127))
    dx = fastconv.avg_pool2d_backward(np.array([[[[3, 5]]]]), (1, 1, 1, 4), (1, 2))
    assert dx.dtype == np.float64
    np.testing.assert_array_equal(dx, row(1.5, 1.5, 2.5, 2.5))
    assert fastconv.global_avg_pool2d(x).dtype == np.float64
    assert fastconv.global_avg_pool2d(x) == 64.25


@pytest.mark.parametrize("dtype", [*INTEGERS, "float16", "complex64", "complex128", "longdouble"])
def test_rule_09_lowering_and_max_pooling_keep_the_dtype(dtype, engine):
    x = (np.random.default_rng(0).permutation(2 * 3 * 5 * 4).reshape(2, 3, 5, 4) % 100).astype(dtype)
    gradient = x[..., :2, :2], np.arange(24).reshape(2, 3, 2, 2) % 4, (2, 3, 9, 9)
    for result, want in ((fastconv.im2col(x, 2, 2), reference.im2col(x, 2, 2)),
                         (fastconv.max_pool2d(x, 2), reference.max_pool2d(x, 2)),
                         (fastconv.global_max_pool2d(x), x.max(axis=(2, 3), keepdims=True)),
                         (fastconv.max_pool2d_backward(*gradient), reference.max_pool2d_backward(*gradient))):
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, want)


# --- rule 11: the transposed convolution ------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["same", "same_lower"])
def test_rule_11_same_gives_size_times_stride(padding, engine):
    for size, kernel, stride, dilation in itertools.product((1, 3, 4), (1, 2, 3, 4), (1, 2, 3), (1, 2)):
        x, weight = np.ones((1, 1, size, 2), np.float32), np.ones((1, 1, kernel, 1), np.float32)
        out = fastconv.conv_transpose2d(x, weight, None, (stride, 1), padding, dilation=(dilation, 1))
        assert out.shape == (1, 1, size * stride, 2)


def test_rule_11_output_padding_is_below_stride_or_dilation(engine):
    x, weight = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
    assert fastconv.conv_transpose2d(x, weight, stride=2, output_padding=1).shape == (1, 1, 7, 7)
    assert fastconv.conv_transpose2d(x, weight, dilation=3, output_padding=2).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"output_padding.*2"):
        fastconv.conv_transpose2d(x, weight, stride=2, output_padding=2)


# --- rule 13: what is not finite --------------------------------------------------------------------------------------


def spoiled_inputs(case: ConvCase) -> dict[str, np.ndarray]:
    """Random `x`, `weight` and `dout` with some NaN and infinities in each."""
    rng = np.random.default_rng(0)
    output_shape = fastconv.plan_conv2d(case.x, case.weight, **case.arguments).output_shape
    arrays = {name: rng.standard_normal(shape).astype(np.float32)
              for name, shape in (("x", case.x), ("weight", case.weight), ("dout", output_shape))}
    for name, values in (("x", (nan, inf, -inf)), ("weight", (inf,)), ("dout", (nan, -inf))):
        array = arrays[name]
        for i, value in enumerate(values if array.size else (), start=1):
            array.flat[i * array.size // (len(values) + 1)] = value
    return arrays


def assert_as_spoiled(got: np.ndarray, want: np.ndarray) -> None:
    """NaN and infinities in the same cells, and no other cell touched by them."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(np.where(np.isinf(got), got, 0), np.where(np.isinf(want), want, 0))
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=1e-4)


#: The cases in which windows touch few enough cells that some results stay finite, for every algorithm.
SPOILED_CASES = [*CORE_CONV_CASES, *(case for case in CONV_CASES if case.id in (
    "square16", "square13-channels33-filters47", "valid18-channels20", "kernel5-channels16", "batch33-of-5x5"))]
spoiled_cases = pytest.mark.parametrize("case", SPOILED_CASES, ids=str)


@spoiled_cases
def test_rule_13_non_finite_input(case, forward_engine):
    arrays = spoiled_inputs(case)
    got = forward_engine(fastconv.conv2d, arrays["x"], arrays["weight"], **case.arguments)
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    assert_as_spoiled(got, reference.conv2d(wide["x"], wide["weight"], **case.arguments))


@spoiled_cases
def test_rule_13_non_finite_input_of_backward_data(case, data_engine):
    arrays = spoiled_inputs(case)
    got = data_engine(fastconv.conv2d_backward_data, arrays["dout"], arrays["weight"], case.x, **case.arguments)
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    assert_as_spoiled(got, reference.conv2d_backward_data(wide["dout"], wide["weight"], case.x, **case.arguments))


@spoiled_cases
def test_rule_13_non_finite_input_of_backward_weight(case, weight_engine):
    arrays = spoiled_inputs(case)
    got = weight_engine(fastconv.conv2d_backward_weight, arrays["dout"], arrays["x"], case.weight, **case.arguments)
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    assert_as_spoiled(got, reference.conv2d_backward_weight(wide["dout"], wide["x"], case.weight, **case.arguments))


def test_rule_13_finite_input_that_overflows(forward_engine):
    x, weight = np.full((1, 2, 6, 37), 3e38, np.float32), np.ones((3, 2, 1, 1), np.float32)
    weight[1] = [[[1]], [[-1]]]
    out = forward_engine(fastconv.conv2d, x, weight)
    np.testing.assert_array_equal(out[0, :, 0, 0], [inf, 0, inf])
    assert (out == out[..., :1, :1]).all()


def test_rule_13_finite_input_that_overflows_in_a_transform_only(forward_engine):
    """What Winograd adds up on the way is larger than the result, which is finite."""
    x, weight = np.full((1, 2, 8, 37), 3e38, np.float32), np.full((3, 2, 3, 3), 1e-3, np.float32)
    out = forward_engine(fastconv.conv2d, x, weight)
    np.testing.assert_allclose(out, 18 * 3e35, rtol=1e-5)


# --- rule 14: accuracy of long sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rule_14_many_channels(dtype, forward_engine, assert_accurate):
    """Sums of 9,000 numbers of one sign: errors of one plain chain of additions would grow above the limit."""
    rng = np.random.default_rng(0)
    x, weight = rng.random((1, 1000, 5, 6)).astype(dtype), rng.random((4, 1000, 3, 3)).astype(dtype)
    got = forward_engine(fastconv.conv2d, x, weight, padding=1)
    assert_accurate(got, reference.conv2d(x.astype(np.float64), weight.astype(np.float64), padding=1),
                    algorithm=forward_engine.algorithm)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rule_14_many_filters(dtype, data_engine, assert_accurate):
    rng = np.random.default_rng(0)
    dout, weight = rng.random((1, 1000, 5, 6)).astype(dtype), rng.random((1000, 4, 3, 3)).astype(dtype)
    got = data_engine(fastconv.conv2d_backward_data, dout, weight, (1, 4, 5, 6), padding=1)
    want = reference.conv2d_backward_data(dout.astype(np.float64), weight.astype(np.float64), (1, 4, 5, 6), padding=1)
    assert_accurate(got, want, algorithm=data_engine.algorithm)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rule_14_many_pixels(dtype, groups, weight_engine, assert_accurate):
    rng = np.random.default_rng(0)
    x, dout = rng.random((4, 2, 128, 130)).astype(dtype), rng.random((4, 2, 128, 130)).astype(dtype)
    how = {"padding": 1, "groups": groups}
    shape = (2, 2 // groups, 3, 3)
    got = weight_engine(fastconv.conv2d_backward_weight, dout, x, shape, **how)
    want = reference.conv2d_backward_weight(dout.astype(np.float64), x.astype(np.float64), shape, **how)
    assert_accurate(got, want, algorithm=weight_engine.algorithm, weight_gradient=True)
    weight = np.ones(shape, dtype)
    db = fastconv.conv2d_backward(dout, x, weight, **how, need=("db",))[2]
    assert_accurate(db, dout.astype(np.float64).sum(axis=(0, 2, 3)))


@pytest.mark.parametrize("filters", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rule_14_large_kernels(dtype, filters, forward_engine, assert_accurate):
    rng = np.random.default_rng(0)
    x, weight = rng.random((1, 1, 70, 82)).astype(dtype), rng.random((filters, 1, 64, 64)).astype(dtype)
    got = forward_engine(fastconv.conv2d, x, weight)
    assert_accurate(got, reference.conv2d(x.astype(np.float64), weight.astype(np.float64)))


@pytest.mark.parametrize("size", [(250, 260), (1, 100_000), (100_000, 1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rule_14_large_averages(dtype, size, engine, assert_accurate):
    x = np.random.default_rng(0).random((1, 2, *size)).astype(dtype)
    want = x.astype(np.float64).mean(axis=(2, 3), keepdims=True)
    assert_accurate(fastconv.global_avg_pool2d(x), want)
    assert_accurate(fastconv.avg_pool2d(x, size), want)
