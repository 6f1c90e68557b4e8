"""Rule 11: each gradient is the adjoint of its operation, for geometries that Hypothesis makes up.

Inputs are small whole numbers, so that both sides of each identity are exact in float64, and equal to the last bit for
every algorithm that adds and multiplies nothing but the inputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastconv
from fastconv.geometry import LAYOUTS, conv2d_geometry, conv_output_size, pool2d_geometry

# The engine fixtures set up one engine for all examples of a test, which is what is meant.
for_one_engine = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def axes(draw: st.DrawFn, pad_below_window: bool = False) -> tuple[int, int, int, tuple[int, int], int]:
    """Along one axis: size, kernel, stride, padding and dilation, with at least one window."""
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    reach = dilation * (kernel - 1)
    pads = st.integers(0, min(reach, 4) if pad_below_window else 6)
    before, after = draw(pads), draw(pads)
    smallest = max(reach + 1 - before - after, 1)
    return draw(st.integers(smallest, smallest + 20)), kernel, draw(st.integers(1, 4)), (before, after), dilation


@st.composite
def windows(draw: st.DrawFn, pad_below_window: bool = False) -> dict[str, Any]:
    """Size of the image, kernel, stride, padding and dilation, each for both axes."""
    names = ("size", "kernel", "stride", "padding", "dilation")
    both = zip(draw(axes(pad_below_window)), draw(axes(pad_below_window)), strict=True)
    return dict(zip(names, both, strict=True))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """The shapes of `x` and `weight`, and the arguments from `stride` to `groups`."""
    window = draw(windows())
    groups, channels, filters = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 9))
    arguments = {name: window[name] for name in ("stride", "padding", "dilation")}
    x_shape = draw(st.integers(0, 3)), groups * channels, *window["size"]
    return x_shape, (groups * filters, channels, *window["kernel"]), {**arguments, "groups": groups}


seeds = st.integers(0, 2**32 - 1)


def whole_numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float64)


def dot(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float((a * b).sum())


@for_one_engine
@given(window=windows(), batch=st.integers(0, 3), channels=st.integers(1, 5), layout=st.sampled_from(LAYOUTS),
       seed=seeds)
def test_im2col_and_col2im(engine, window, batch, channels, layout, seed):
    rng = np.random.default_rng(seed)
    x = whole_numbers(rng, (batch, channels, *window["size"]))
    how = (*window["kernel"], window["stride"], window["padding"])
    col = fastconv.im2col(x, *how, dilation=window["dilation"], layout=layout)
    y = whole_numbers(rng, col.shape)
    assert dot(col, y) == dot(x, fastconv.col2im(y, x.shape, *how, dilation=window["dilation"], layout=layout))


@for_one_engine
@given(convolution=convolutions(), seed=seeds)
def test_conv2d_and_its_gradients(conv_engine, convolution, seed):
    x_shape, weight_shape, arguments = convolution
    rng = np.random.default_rng(seed)
    x, weight = whole_numbers(rng, x_shape), whole_numbers(rng, weight_shape)
    dout = whole_numbers(rng, conv2d_geometry(x_shape, weight_shape, **arguments).output_shape)
    arguments["algorithm"] = conv_engine.algorithm
    try:
        out = fastconv.conv2d(x, weight, **arguments)
        dx = fastconv.conv2d_backward_data(dout, weight, x.shape, **arguments)
        dw = fastconv.conv2d_backward_weight(dout, x, weight.shape, **arguments)
    except NotImplementedError:  # test_conv.py tells which algorithms may refuse what
        assert conv_engine.algorithm not in ("auto", "direct", "im2col")
        return
    # Winograd multiplies with the square roots of its points, which are no whole numbers.
    tolerance = 1e-11 * np.sqrt(dout.size + 1) if conv_engine.algorithm in ("auto", "winograd") else 0
    assert dot(out, dout) == pytest.approx(dot(x, dx), rel=0, abs=tolerance)
    assert dot(out, dout) == pytest.approx(dot(weight, dw), rel=0, abs=tolerance)


@for_one_engine
@given(convolution=convolutions(), seed=seeds, data=st.data())
def test_transposed_convolution(engine, convolution, seed, data):
    """conv_transpose2d is conv2d_backward_data, plus a bias: the adjoint of conv2d."""
    image, weight_shape, arguments = convolution
    rng = np.random.default_rng(seed)
    weight = whole_numbers(rng, weight_shape)
    size = conv_output_size(image[2:], weight_shape[2:], **{k: v for k, v in arguments.items() if k != "groups"})
    x = whole_numbers(rng, (image[0], weight_shape[0], *size))
    # What the windows leave over at the end of the image is what output_padding puts back.
    over = [(image[2 + i] + sum(arguments["padding"][i]) - arguments["dilation"][i] * (weight_shape[2 + i] - 1) - 1)
            % arguments["stride"][i] for i in (0, 1)]
    bias = whole_numbers(rng, (image[1],))
    out = fastconv.conv_transpose2d(x, weight, bias, output_padding=over, **arguments)
    assert out.shape == image
    out -= bias[:, np.newaxis, np.newaxis]
    np.testing.assert_allclose(out, fastconv.conv2d_backward_data(x, weight, image, **arguments), rtol=0, atol=1e-11)
    y = whole_numbers(rng, image)
    assert dot(out, y) == pytest.approx(dot(x, fastconv.conv2d(y, weight, **arguments)), rel=0, abs=1e-9)


@for_one_engine
@given(window=windows(pad_below_window=True), batch=st.integers(0, 3), channels=st.integers(1, 5),
       ceil_mode=st.booleans(), seed=seeds)
def test_max_pool2d(engine, window, batch, channels, ceil_mode, seed):
    """Linear where the indices stay the same: <max_pool(x), y> == <x, max_pool_backward(y)>."""
    rng = np.random.default_rng(seed)
    x = whole_numbers(rng, (batch, channels, *window["size"]))
    how = (window["kernel"], window["stride"], window["padding"], window["dilation"], ceil_mode)
    if pool2d_geometry(x.shape, *how).empty_window:  # of padding only: rule 4
        with pytest.raises(ValueError, match="no cell inside"):
            fastconv.max_pool2d(x, *how)
        return
    out, indices = fastconv.max_pool2d(x, *how, return_indices=True)
    planes = x.reshape(batch, channels, x.shape[2] * x.shape[3])
    picked = np.take_along_axis(planes, indices.reshape(batch, channels, out.shape[2] * out.shape[3]), axis=2)
    np.testing.assert_array_equal(out, picked.reshape(out.shape))
    y = whole_numbers(rng, out.shape)
    assert dot(out, y) == dot(x, fastconv.max_pool2d_backward(y, indices, x.shape))


@for_one_engine
@given(window=windows(pad_below_window=True), batch=st.integers(0, 3), channels=st.integers(1, 5),
       ceil_mode=st.booleans(), count_include_pad=st.booleans(), divisor_override=st.sampled_from([None, 1, -3, 16]),
       seed=seeds)
def test_avg_pool2d(engine, window, batch, channels, ceil_mode, count_include_pad, divisor_override, seed):
    rng = np.random.default_rng(seed)
    x = whole_numbers(rng, (batch, channels, *window["size"]))
    pooling = {"kernel_size": window["kernel"], "stride": window["stride"], "padding": window["padding"],
               "dilation": window["dilation"], "ceil_mode": ceil_mode}
    how = {**pooling, "count_include_pad": count_include_pad, "divisor_override": divisor_override}
    if not count_include_pad and divisor_override is None and pool2d_geometry(x.shape, **pooling).empty_window:
        with pytest.raises(ValueError, match="no cell inside"):  # nothing to divide by
            fastconv.avg_pool2d(x, **how)
        return
    out = fastconv.avg_pool2d(x, **how)
    y = whole_numbers(rng, out.shape)
    assert dot(out, y) == pytest.approx(dot(x, fastconv.avg_pool2d_backward(y, x.shape, **how)), rel=0, abs=1e-9)
