"""Padding that continues the image: conv2d and its gradients, on every engine, against the reference and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import reference

MODES = ("reflect", "replicate", "circular")

#: x, weight, arguments
CASES = [
    ((2, 3, 7, 8), (4, 3, 3, 3), {"padding": 1}),
    ((2, 4, 6, 5), (6, 2, 3, 2), {"padding": ((2, 0), (1, 3)), "groups": 2}),
    ((1, 2, 5, 9), (3, 2, 5, 5), {"padding": 4, "stride": 2}),
    ((3, 3, 4, 4), (3, 1, 3, 3), {"padding": "same", "groups": 3, "dilation": 2}),
    ((3, 5, 6), (4, 3, 2, 3), {"padding": (0, 2), "stride": (1, 2)}),
]


def arrays(shape: Any, weight_shape: Any, arguments: Any, dtype: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal(weight_shape).astype(dtype)
    dout = rng.standard_normal(reference.conv2d(x, weight, **arguments).shape).astype(dtype)
    return x, weight, dout


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients(case: Any, mode: str, conv_engine: Any, assert_accurate: Any) -> None:
    check_forward_and_gradients(case, mode, "float32", conv_engine, conv_engine.algorithm, assert_accurate)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dtypes(case: Any, dtype: str, assert_accurate: Any) -> None:
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    check_forward_and_gradients(case, "reflect", dtype, call, "auto", assert_accurate)


def check_forward_and_gradients(case: Any, mode: str, dtype: str, call: Any, algorithm: str, assert_accurate: Any) -> None:
    shape, weight_shape, arguments = case
    x, weight, dout = arrays(shape, weight_shape, arguments, dtype)
    double = [array.astype(np.float64) for array in (x, weight, dout)]
    rules = {**arguments, "padding_mode": mode}
    assert_accurate(call(fastconv.conv2d, x, weight, **rules), reference.conv2d(*double[:2], **rules),
                    algorithm=algorithm)
    dx, dw, _ = reference.conv2d_backward(double[2], *double[:2], **rules)
    got = call(fastconv.conv2d_backward, dout, x, weight, need="dx", **rules)[0]
    assert_accurate(got, dx, algorithm=algorithm)
    np.testing.assert_array_equal(call(fastconv.conv2d_backward_data, dout, weight, x.shape, **rules), got)
    got = call(fastconv.conv2d_backward, dout, x, weight, need="dw", **rules)[1]
    assert_accurate(got, dw, algorithm=algorithm, weight_gradient=True)
    np.testing.assert_array_equal(call(fastconv.conv2d_backward_weight, dout, x, weight.shape, **rules), got)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_the_reference_is_the_adjoint(mode: str, case: Any) -> None:
    shape, weight_shape, arguments = case
    x, weight, dout = arrays(shape, weight_shape, arguments, "float64")
    rules = {**arguments, "padding_mode": mode}
    dx, dw, db = reference.conv2d_backward(dout, x, weight, **rules)
    total = np.vdot(dout, reference.conv2d(x, weight, **rules))
    assert np.vdot(dx, x) == pytest.approx(total, abs=1e-10)
    assert np.vdot(dw, weight) == pytest.approx(total, abs=1e-10)
    np.testing.assert_allclose(db, dout.sum(axis=(-2, -1) if dout.ndim == 3 else (0, 2, 3)))


def test_by_hand() -> None:
    x, identity = np.array([[[1.0, 2, 3]]]), np.zeros((5, 1, 1, 5))
    identity[range(5), 0, 0, range(5)] = 1  # filter i takes the cell i - 2 to the right

    def line(mode: str) -> list[float]:
        return fastconv.conv2d(x, identity, padding=(0, 2), padding_mode=mode)[[0, 1, 2, 3, 4], 0, [0, 0, 0, 2, 2]].tolist()

    assert line("zeros") == [0, 0, 1, 0, 0]
    assert line("reflect") == [3, 2, 1, 2, 1]
    assert line("replicate") == [1, 1, 1, 3, 3]
    assert line("circular") == [2, 3, 1, 1, 2]


def test_against_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    x, weight, dout = (rng.standard_normal(shape) for shape in ((2, 4, 6, 7), (6, 2, 3, 3), (2, 6, 4, 9)))
    for mode in MODES:
        layer = torch.nn.Conv2d(4, 6, 3, padding=(0, 2), groups=2, bias=False, padding_mode=mode, dtype=torch.float64)
        layer.weight.data = torch.from_numpy(weight)
        image = torch.from_numpy(x).requires_grad_()
        out = layer(image)
        out.backward(torch.from_numpy(dout))
        rules: Any = {"padding": (0, 2), "groups": 2, "padding_mode": mode}
        np.testing.assert_allclose(fastconv.conv2d(x, weight, **rules), out.detach().numpy(), rtol=0, atol=1e-12)
        dx, dw, _ = fastconv.conv2d_backward(dout, x, weight, **rules)
        np.testing.assert_allclose(dx, image.grad.numpy(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(dw, layer.weight.grad.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_inputs_and_outputs_of_other_memory(mode: str, poisoned: Any) -> None:
    x, weight, dout = arrays(*CASES[1], "float64")
    rules = {**CASES[1][2], "padding_mode": mode}
    want = fastconv.conv2d(x, weight, **rules)
    odd = np.asfortranarray(x).astype(">f8")
    before = odd.copy()
    out = poisoned(want.shape, np.float64, "spread")
    assert fastconv.conv2d(odd, weight, out=out, **rules) is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(odd, before)
    dx = poisoned(x.shape, np.float64, "F")
    np.testing.assert_array_equal(fastconv.conv2d_backward_data(dout, weight, x.shape, out=dx, **rules),
                                  fastconv.conv2d_backward(dout, x, weight, **rules)[0])
    packed = fastconv.pack_weight(weight, x.shape, **CASES[1][2])
    np.testing.assert_array_equal(fastconv.conv2d(x, packed, **rules), want)
    assert fastconv.conv2d(x[:0], weight, **rules).shape == (0, *want.shape[1:])
    integers = fastconv.conv2d(np.arange(9).reshape(1, 3, 3), np.ones((1, 1, 3, 3), int), padding=1, padding_mode=mode)
    assert integers.dtype == np.int64
    assert integers.sum() == {"reflect": 324, "replicate": 324, "circular": 324}[mode]


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"padding_mode": "mirror"}, ValueError, "padding_mode must be one of 'zeros', 'reflect', 'replicate', 'circular', got"),
    ({"padding_mode": None}, TypeError, "padding_mode must be one of .*, got None"),
    ({"padding_mode": "reflect", "padding": (0, 6)}, ValueError,
     r"padding along the width must be at most 5 with padding_mode='reflect' and an image width of 6, got \(6, 6\)"),
    ({"padding_mode": "circular", "padding": ((0, 6), (0, 0))}, ValueError,
     "padding along the height must be at most 5 with padding_mode='circular' and an image height of 5"),
])
def test_errors(arguments: Any, error: type[Exception], message: str) -> None:
    x, weight = np.ones((1, 1, 5, 6)), np.ones((1, 1, 3, 3))
    for call in (lambda: fastconv.conv2d(x, weight, **arguments), lambda: reference.conv2d(x, weight, **arguments)):
        with pytest.raises(error, match=message):
            call()
    dout = np.ones(fastconv.conv2d(x, weight, padding=arguments.get("padding", 0)).shape)
    with pytest.raises(error, match=message):
        fastconv.conv2d_backward(dout, x, weight, **arguments)
    assert fastconv.conv2d(x, weight, padding=5, padding_mode="circular").shape == (1, 1, 13, 14)
