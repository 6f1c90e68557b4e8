"""Layers: numerical gradients of each, and the contract that networks, optimizers and containers rely on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import nn
from fastconv.functional import relu_backward
from fastconv.nn.layers import Layer
from fastconv.nn.numpy_layers import Im2colConv2d, Im2colMaxPool2d

# --- numerical gradients --------------------------------------------------------------------------------------------


def numerical_gradient(f: Callable[[], float], array: np.ndarray, h: float) -> np.ndarray:
    """Central differences of `f` with respect to each cell of `array`, which `f` reads."""
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + h
        above = f()
        array[index] = value - h
        below = f()
        array[index] = value
        gradient[index] = (above - below) / (2 * h)
    return gradient


def check_gradients(layer: Any, x: np.ndarray, rng: np.random.Generator, *, h: float = 1e-3,
                    tolerance: float = 1e-9, again: Callable[[], None] = lambda: None) -> None:
    """Compare ``backward`` with differences of ``sum(forward(x) * dout)``.

    All layers here are linear between their kinks (the softmax has a test of its own), where a central difference is
    exact but for rounding: about 1e-16 / h of the sum.
    """
    again()
    dout = rng.standard_normal(layer.forward(x).shape)

    def total() -> float:
        again()
        with fastconv.options(num_threads=1):  # hundreds of calls for a few cells each
            return float(np.sum(layer.forward(x) * dout))

    again()
    layer.forward(x)
    dx = layer.backward(dout)
    assert set(layer.grads) == set(layer.params)
    for name, got, array in [("x", dx, x), *((name, layer.grads[name], p) for name, p in layer.params.items())]:
        want = numerical_gradient(total, array, h)
        assert got.shape == array.shape
        assert np.abs(want).max() > 1e-3, f"the gradient of {name} tells nothing"
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max(), err_msg=f"of {name}")


def apart(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values of which no two are nearer than 0.05, and none to 0: no difference crosses a kink of a maximum."""
    values = np.arange(1, np.prod(shape) + 1) * 0.05 * rng.choice([-1, 1], np.prod(shape))
    return rng.permutation(values).reshape(shape)


CONVOLUTIONS = {
    "plain": (2, 3, 3, {}),
    "stride and padding": (2, 3, 3, {"stride": 2, "padding": 1}),
    "rectangular": (2, 3, (2, 3), {"stride": (1, 2), "padding": (0, 2)}),
    "four-sided": (1, 2, 3, {"padding": ((2, 0), (1, 3)), "stride": 3}),
    "same": (2, 2, 4, {"padding": "same"}),
    "dilated": (2, 2, 3, {"dilation": (2, 1), "padding": 1}),
    "groups": (4, 6, 3, {"groups": 2}),
    "depthwise": (3, 3, 3, {"groups": 3, "padding": 1}),
    "pointwise": (3, 4, 1, {}),
    "no bias": (2, 3, 3, {"bias": False}),
    "reflected": (2, 3, 3, {"padding": 2, "padding_mode": "reflect"}),
    "circular": (2, 3, 3, {"padding": (1, 2), "padding_mode": "circular", "stride": 2}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=list(CONVOLUTIONS))
def test_conv2d_gradients(engine: Any, case: str, rng: np.random.Generator) -> None:
    in_channels, out_channels, kernel, more = CONVOLUTIONS[case]
    layer = nn.Conv2d(in_channels, out_channels, kernel, **more, seed=rng, dtype=np.float64)
    if "bias" in layer.params:
        layer.params["bias"] = rng.standard_normal(out_channels)
    check_gradients(layer, rng.standard_normal((2, in_channels, 6, 5)), rng)


@pytest.mark.parametrize("more", [{}, {"stride": 1}, {"padding": 1, "stride": 2}, {"dilation": 2, "stride": 1},
                                  {"ceil_mode": True}, {"padding": ((1, 0), (0, 1)), "stride": (1, 2)}], ids=str)
def test_max_pool2d_gradients(engine: Any, more: dict[str, Any], rng: np.random.Generator) -> None:
    check_gradients(nn.MaxPool2d((2, 3), **more), apart(rng, (2, 3, 5, 7)), rng)


@pytest.mark.parametrize("more", [{}, {"stride": 1}, {"padding": 1, "stride": 2}, {"dilation": 2, "stride": 1},
                                  {"ceil_mode": True, "padding": 1}, {"padding": 1, "count_include_pad": False},
                                  {"divisor_override": -3}], ids=str)
def test_avg_pool2d_gradients(engine: Any, more: dict[str, Any], rng: np.random.Generator) -> None:
    check_gradients(nn.AvgPool2d((2, 3), **more), rng.standard_normal((2, 3, 5, 7)), rng)


@pytest.mark.parametrize("bias", [True, False])
def test_affine_gradients(bias: bool, rng: np.random.Generator) -> None:
    layer = nn.Affine(5, 4, bias, seed=rng, dtype=np.float64)
    check_gradients(layer, rng.standard_normal((3, 5)), rng)


def test_relu_gradients(rng: np.random.Generator) -> None:
    check_gradients(nn.Relu(), apart(rng, (2, 3, 4, 5)), rng)


def test_flatten_gradients(rng: np.random.Generator) -> None:
    check_gradients(nn.Flatten(), rng.standard_normal((2, 3, 4, 5)), rng)


def test_dropout_gradients(rng: np.random.Generator) -> None:
    layer = nn.Dropout(0.4)

    def again() -> None:  # the same cells are dropped each time
        layer._rng = np.random.default_rng(5)

    check_gradients(layer, rng.standard_normal((4, 30)), rng, again=again)


@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft", "not normalised"])
def test_softmax_with_loss_gradients(kind: str, rng: np.random.Generator) -> None:
    layer, x = nn.SoftmaxWithLoss(), rng.standard_normal((4, 5))
    t = {"labels": np.array([0, 4, 2, 2]), "one-hot": np.eye(5)[[0, 4, 2, 2]],
         "soft": rng.dirichlet(np.ones(5), 4), "not normalised": rng.random((4, 5))}[kind]
    want = numerical_gradient(lambda: layer.forward(x, t), x, 1e-5)
    layer.forward(x, t)
    np.testing.assert_allclose(layer.backward(), want, rtol=0, atol=1e-10)
    np.testing.assert_allclose(layer.backward(3.0), 3 * want, rtol=0, atol=3e-10)


# --- values ---------------------------------------------------------------------------------------------------------


def test_conv2d_gives_the_books_example() -> None:
    x = np.array([[1, 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]], np.float64)[None, None]
    weight = np.array([[2, 0, 1], [0, 1, 2], [1, 0, 2]], np.float64)[None, None]
    np.testing.assert_array_equal(nn.Conv2d.from_arrays(weight).forward(x)[0, 0], [[15, 16], [6, 15]])
    np.testing.assert_array_equal(nn.Conv2d.from_arrays(weight, [3.0]).forward(x)[0, 0], [[18, 19], [9, 18]])
    np.testing.assert_array_equal(nn.Conv2d.from_arrays(weight, padding=1).forward(x)[0, 0],
                                  [[7, 12, 10, 2], [4, 15, 16, 10], [10, 6, 15, 6], [8, 10, 4, 3]])


def test_poolings_give_the_books_example() -> None:
    x = np.array([[1, 2, 1, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 4, 0, 1]], np.float32)[None, None]
    np.testing.assert_array_equal(nn.MaxPool2d(2).forward(x)[0, 0], [[2, 3], [4, 2]])
    np.testing.assert_array_equal(nn.AvgPool2d(2).forward(x)[0, 0], [[1, 1.5], [2.25, 1]])


def test_max_pool2d_gives_a_tie_to_the_first_cell() -> None:
    layer = nn.MaxPool2d(2)
    layer.forward(np.ones((1, 1, 2, 4), np.float32))
    np.testing.assert_array_equal(layer.backward(np.array([[[[5, 7]]]], np.float32))[0, 0], [[5, 0, 7, 0], [0] * 4])


def test_relu_keeps_nan_and_blocks_infinite_gradients() -> None:
    layer = nn.Relu()
    x = np.array([-1, 0, 2, np.nan, -np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(layer.forward(x), np.float32([0, 0, 2, np.nan, 0, np.inf]))
    dout = np.array([np.inf, np.nan, 3, 4, -np.inf, 6], np.float32)
    np.testing.assert_array_equal(layer.backward(dout), np.float32([0, 0, 3, 4, 0, 6]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 15, 16, 33, 70_001])
def test_relu_backward_of_any_size(dtype: str, size: int, rng: np.random.Generator) -> None:
    y, dout = rng.standard_normal((2, size)).astype(dtype)
    y[::5], y[::7], dout[::3] = 0, np.nan, np.inf
    for threads in (1, 2):
        with fastconv.options(num_threads=threads):
            np.testing.assert_array_equal(relu_backward(dout, y), np.where(y <= 0, 0, dout))
    with pytest.raises(ValueError, match=r"dout.*\(\d+,\)"):
        relu_backward(dout[1:], y)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", ">f4"])
def test_relu_backward_in_all_dtypes_and_memory_orders(dtype: str, rng: np.random.Generator) -> None:
    x, dout = rng.standard_normal((2, 2, 3, 4, 5)).astype(dtype)
    layer = nn.Relu()
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)):
        turned = dout.transpose(order)
        layer.forward(x.transpose(order))
        got = layer.backward(turned)
        np.testing.assert_array_equal(got, np.where(x.transpose(order) > 0, turned, 0))
        assert got.dtype == np.dtype(dtype)


def test_softmax_does_not_overflow() -> None:
    x = np.array([[1000, 0, -1000], [-1e30, 0, 1e30]], np.float32)
    np.testing.assert_array_equal(nn.softmax(x), [[1, 0, 0], [0, 0, 1]])
    layer = nn.SoftmaxWithLoss()
    assert layer.forward(x[:1], [1]) == 1000
    assert layer.forward(x[:1], np.eye(3)[[0]]) == 0
    np.testing.assert_array_equal(layer.backward(), [[0, 0, 0]])


def test_softmax_with_loss_value() -> None:
    layer = nn.SoftmaxWithLoss()
    assert layer.forward(np.zeros((7, 10)), np.arange(7)) == pytest.approx(np.log(10), rel=1e-15)
    np.testing.assert_allclose(layer.y, 0.1, rtol=1e-15)
    x = np.log([[0.2, 0.3, 0.5], [0.7, 0.1, 0.2]])
    assert layer.forward(x, [2, 1]) == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2, rel=1e-14)
    np.testing.assert_allclose(layer.y, np.exp(x), rtol=1e-14)


def test_dropout_drops_and_scales(rng: np.random.Generator) -> None:
    x = np.ones((1000, 100), np.float32)
    layer = nn.Dropout(0.2, seed=1)
    out = layer.forward(x)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(np.unique(out), np.float32([0, 1.25]))
    assert np.mean(out == 0) == pytest.approx(0.2, abs=0.006)  # five standard deviations
    np.testing.assert_array_equal(layer.backward(x), out)
    assert not np.array_equal(layer.forward(x), out)
    np.testing.assert_array_equal(nn.Dropout(0.2, seed=1).forward(x), out)
    layer.training = False
    np.testing.assert_array_equal(layer.forward(x), x)
    np.testing.assert_array_equal(nn.Dropout(0.0).forward(x), x)


# --- the contract ---------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "Conv2d": (lambda dtype: nn.Conv2d(2, 3, 3, dtype=dtype, seed=0), (2, 2, 6, 6)),
    "MaxPool2d": (lambda dtype: nn.MaxPool2d(2), (2, 2, 6, 6)),
    "AvgPool2d": (lambda dtype: nn.AvgPool2d(2), (2, 2, 6, 6)),
    "Relu": (lambda dtype: nn.Relu(), (2, 2, 6, 6)),
    "Flatten": (lambda dtype: nn.Flatten(), (2, 2, 6, 6)),
    "Affine": (lambda dtype: nn.Affine(6, 5, dtype=dtype, seed=0), (4, 6)),
    "Dropout": (lambda dtype: nn.Dropout(0.5, seed=0), (2, 2, 6, 6)),
    "Im2colConv2d": (lambda dtype: Im2colConv2d(2, 3, 3, dtype=dtype, seed=0), (2, 2, 6, 6)),
    "Im2colMaxPool2d": (lambda dtype: Im2colMaxPool2d(2), (2, 2, 6, 6)),
}


@pytest.fixture(params=LAYERS)
def named(request: pytest.FixtureRequest) -> tuple[Callable[..., Any], tuple[int, ...]]:
    return LAYERS[request.param]


def arrays_kept(layer: Any) -> list[np.ndarray]:
    """All arrays that a layer holds, beside its parameters and gradients."""
    return [value for name, value in vars(layer).items()
            if isinstance(value, np.ndarray) and name not in ("params", "grads")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(named: Any, dtype: Any, rng: np.random.Generator) -> None:
    build, shape = named
    layer = build(dtype)
    out = layer.forward(rng.standard_normal(shape).astype(dtype))
    dx = layer.backward(np.ones_like(out))
    for array in (out, dx, *layer.params.values(), *layer.grads.values()):
        assert array.dtype == dtype
    assert dx.shape == shape
    assert {name: p.shape for name, p in layer.params.items()} == {name: g.shape for name, g in layer.grads.items()}


def test_parameters_are_float32_by_default() -> None:
    for layer in (nn.Conv2d(2, 3, 3), nn.Affine(2, 3)):
        assert {p.dtype for p in layer.params.values()} == {np.dtype(np.float32)}
    for dtype in (np.int32, np.complex64):
        with pytest.raises(TypeError, match="dtype must be a floating-point type"):
            nn.Conv2d(2, 3, 3, dtype=dtype)


def test_what_is_given_is_not_written_to(named: Any, rng: np.random.Generator) -> None:
    build, shape = named
    layer, x = build(np.float32), rng.standard_normal(shape).astype(np.float32)
    x.flags.writeable = False
    out = layer.forward(x)
    dout = np.ones(out.shape, np.float32)
    dout.flags.writeable = False
    first = layer.backward(dout).copy()
    np.testing.assert_array_equal(layer.backward(dout), first)


def test_backward_needs_a_forward_in_training(named: Any, rng: np.random.Generator) -> None:
    build, shape = named
    layer, x = build(np.float32), rng.standard_normal(shape).astype(np.float32)
    out = layer.forward(x)
    name = type(layer).__name__
    with pytest.raises(RuntimeError, match=f"{name}.backward needs a forward with training=True"):
        build(np.float32).backward(out)
    layer.training = False
    evaluated = layer.forward(x)
    if name != "Dropout":
        np.testing.assert_array_equal(evaluated, out)
    assert arrays_kept(layer) == []
    with pytest.raises(RuntimeError, match=name):
        layer.backward(out)


def test_conv2d_keeps_x_alone(rng: np.random.Generator) -> None:
    layer, x = nn.Conv2d(3, 8, 3), rng.standard_normal((2, 3, 9, 9)).astype(np.float32)
    out = layer.forward(x)
    kept = arrays_kept(layer)
    assert len(kept) == 1
    assert kept[0] is x
    layer.backward(out)
    assert arrays_kept(layer) == kept


def test_max_pool2d_keeps_no_input(rng: np.random.Generator) -> None:
    layer, x = nn.MaxPool2d(2), rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    out = layer.forward(x)
    (indices,) = arrays_kept(layer)
    assert indices.shape == out.shape
    assert not np.shares_memory(indices, x)


def test_parameters_may_be_rebound_or_changed_in_place(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 2, 5, 5)).astype(np.float32)
    layer = nn.Conv2d(2, 3, 3, seed=0)
    before = layer.forward(x)
    layer.params["weight"] *= 2
    np.testing.assert_array_equal(layer.forward(x), 2 * before)
    layer.params["weight"] = np.zeros((1, 2, 3, 3), np.float32)
    layer.params["bias"] = np.ones(1, np.float32)
    np.testing.assert_array_equal(layer.forward(x), np.ones((2, 1, 3, 3)))


def test_from_arrays_works_with_the_arrays_themselves(rng: np.random.Generator) -> None:
    weight, bias = rng.standard_normal((4, 1, 3, 3)), rng.standard_normal(4)
    layer = nn.Conv2d.from_arrays(weight, bias, stride=2, padding="same", groups=2)
    x = rng.standard_normal((1, 2, 5, 5))
    np.testing.assert_array_equal(layer.forward(x), fastconv.conv2d(x, weight, bias, 2, "same", groups=2))
    assert layer.params["weight"] is weight
    assert layer.params["bias"] is bias
    with pytest.raises(ValueError, match=r"bias must have the shape \(4,\), got \(3,\)"):
        nn.Conv2d.from_arrays(weight, bias[:3])
    with pytest.raises(ValueError, match="weight must have 4 axes"):
        nn.Conv2d.from_arrays(weight[0])


@pytest.mark.parametrize("build", [lambda: nn.Conv2d(2, 3, 3, seed=0), lambda: nn.Affine(4, 3, seed=0),
                                   lambda: Im2colConv2d(2, 3, 3, seed=0)])
def test_the_first_layers_gradient_can_be_left_out(build: Callable[[], Any], rng: np.random.Generator) -> None:
    layer, other = build(), build()
    layer.input_gradient = False
    shape = (3, 4) if isinstance(layer, nn.Affine) else (2, 2, 5, 5)
    x = rng.standard_normal(shape).astype(np.float32)
    dout = rng.standard_normal(layer.forward(x).shape).astype(np.float32)
    other.forward(x)
    assert layer.backward(dout) is None
    assert other.backward(dout) is not None
    for name, gradient in other.grads.items():
        np.testing.assert_array_equal(layer.grads[name], gradient)


def test_initial_weights() -> None:
    conv, affine = nn.Conv2d(64, 50, 3, groups=2, seed=0), nn.Affine(400, 100, seed=0)
    assert conv.params["weight"].shape == (50, 32, 3, 3)
    assert conv.params["weight"].std() == pytest.approx(np.sqrt(2 / (32 * 9)), rel=0.03)
    assert affine.params["weight"].std() == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    for layer in (conv, affine):
        assert not layer.params["bias"].any()
    assert nn.Conv2d(64, 50, 3, weight_init_std=0.01).params["weight"].std() == pytest.approx(0.01, rel=0.03)
    again, double = nn.Affine(400, 100, seed=0), nn.Affine(400, 100, seed=0, dtype=np.float64)
    np.testing.assert_array_equal(again.params["weight"], affine.params["weight"])
    np.testing.assert_array_equal(double.params["weight"].astype(np.float32), affine.params["weight"])
    assert not np.array_equal(nn.Affine(400, 100, seed=1).params["weight"], affine.params["weight"])
    for std in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="weight_init_std must be"):
            nn.Affine(2, 3, weight_init_std=std)


def test_initial_weights_by_name() -> None:
    shape = (50, 32, 3, 3)  # 288 terms of an output, 450 outputs for an input
    for name, std in (("he", np.sqrt(2 / 288)), ("lecun", np.sqrt(1 / 288)), ("glorot", np.sqrt(2 / (288 + 450)))):
        weight = nn.Conv2d(32, 50, 3, weight_init_std=name, seed=0).params["weight"]
        assert weight.shape == shape
        assert weight.std() == pytest.approx(std, rel=0.03)
        uniform = np.abs(weight).max() < 1.75 * std
        assert uniform == (name == "glorot")
    limit = np.sqrt(6 / (400 + 100))
    weight = nn.Affine(400, 100, weight_init_std="glorot", seed=0).params["weight"]
    assert 0.99 * limit < np.abs(weight).max() <= limit


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.Tanh()], ids=repr)
def test_activation_gradients(layer: Layer, rng: np.random.Generator) -> None:
    check_gradients(layer, rng.standard_normal((2, 3, 4)), rng, h=1e-4, tolerance=1e-6)


def test_activations_at_the_ends() -> None:
    x = np.array([-1e4, -1, 0, 1, 1e4, np.nan], np.float32)
    with np.errstate(all="raise"):
        np.testing.assert_allclose(nn.Sigmoid().forward(x), [0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1, np.nan], rtol=1e-6)
        np.testing.assert_allclose(nn.Tanh().forward(x), [-1, -0.7615942, 0, 0.7615942, 1, np.nan], rtol=1e-6)
    assert nn.Sigmoid().forward(x).dtype == nn.Tanh().forward(x).dtype == np.float32


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_local_response_norm(size: int, engine: Any, rng: np.random.Generator) -> None:
    layer, x = nn.LocalResponseNorm(size, alpha=0.3, beta=0.7, k=1.5), rng.standard_normal((2, 4, 3, 2))
    got = layer.forward(x)
    for c in range(4):
        around = x[:, max(c - size // 2, 0):c + (size - 1) // 2 + 1]
        np.testing.assert_allclose(got[:, c], x[:, c] / (1.5 + 0.3 / size * (around ** 2).sum(axis=1)) ** 0.7, rtol=1e-12)
    check_gradients(layer, x, rng, h=1e-4, tolerance=1e-6)


def test_local_response_norm_is_torchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.random.default_rng(0).standard_normal((2, 7, 4, 5)) * 20
    for size in (1, 4, 5):
        want = torch.nn.LocalResponseNorm(size, 0.01, 0.75, 2)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(nn.LocalResponseNorm(size, 0.01, 0.75, 2).forward(x), want, rtol=1e-12)


def test_a_batch_of_none_goes_all_the_way() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.Relu(), nn.MaxPool2d(2), nn.LocalResponseNorm(), nn.Tanh(), nn.AvgPool2d(2),
              nn.Sigmoid(), nn.Flatten(), nn.Dropout(),
              nn.Affine(36, 5)]
    out = np.zeros((0, 1, 14, 14), np.float32)
    for layer in layers:
        out = layer.forward(out)
    assert out.shape == (0, 5)
    for layer in reversed(layers):
        out = layer.backward(out)
        assert not any(g.any() for g in layer.grads.values())
    assert out.shape == (0, 1, 14, 14)


def test_other_layers_and_containers_need_the_contract_alone(rng: np.random.Generator) -> None:
    class Sigmoid(Layer):
        def forward(self, x: Any) -> np.ndarray:
            self.out = 1 / (1 + np.exp(-np.asarray(x)))
            return self.out

        def backward(self, dout: Any) -> np.ndarray:
            return dout * self.out * (1 - self.out)

    class Sequential(Layer):
        def __init__(self, *layers: Layer) -> None:
            super().__init__()
            self.layers = layers
            self.params = {f"{i}.{name}": p for i, layer in enumerate(layers) for name, p in layer.params.items()}

        def forward(self, x: Any) -> np.ndarray:
            for layer in self.layers:
                x = layer.forward(x)
            return x

        def backward(self, dout: Any) -> Any:
            for layer in reversed(self.layers):
                dout = layer.backward(dout)
            self.grads = {f"{i}.{name}": g for i, layer in enumerate(self.layers) for name, g in layer.grads.items()}
            return dout

    double = {"dtype": np.float64, "seed": rng}
    network = Sequential(nn.Conv2d(1, 3, 3, padding=1, **double), Sigmoid(), nn.AvgPool2d(2), nn.Flatten(),
                         Sequential(nn.Affine(27, 4, **double), Sigmoid()), nn.Affine(4, 2, **double))
    check_gradients(network, rng.standard_normal((2, 1, 6, 6)), rng, h=1e-4, tolerance=1e-6)
    with pytest.raises(NotImplementedError, match=r"Layer\.forward"):
        Layer().forward([1.0])
    with pytest.raises(NotImplementedError, match=r"Layer\.backward"):
        Layer().backward([1.0])


def test_repr_has_the_arguments() -> None:
    assert repr(nn.Conv2d(4, 6, (3, 5), stride=2, padding="same", groups=2, bias=False)) == \
        "Conv2d(4, 6, (3, 5), stride=2, padding='same', dilation=1, groups=2, bias=False)"
    assert repr(nn.MaxPool2d(3, stride=2)) == "MaxPool2d(3, stride=2, padding=0, dilation=1, ceil_mode=False)"
    assert repr(nn.AvgPool2d(3)) == ("AvgPool2d(3, stride=None, padding=0, ceil_mode=False, count_include_pad=True, "
                                     "divisor_override=None, dilation=1)")
    assert repr(nn.Affine(3, 4)) == "Affine(3, 4, bias=True)"
    assert repr(nn.Dropout(0.25)) == "Dropout(0.25)"
    assert repr(nn.Relu()) == "Relu()"


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "error", "message"), [
    (lambda: nn.Conv2d(0, 3, 3), ValueError, "in_channels must be at least 1, got 0"),
    (lambda: nn.Conv2d(2, 0, 3), ValueError, "out_channels must be at least 1, got 0"),
    (lambda: nn.Conv2d(2, 3.5, 3), TypeError, "out_channels must be an int"),
    (lambda: nn.Conv2d(2, 3, 0), ValueError, "kernel_size must be at least 1"),
    (lambda: nn.Conv2d(2, 3, 3, stride=0), ValueError, "stride must be at least 1, got 0"),
    (lambda: nn.Conv2d(2, 3, 3, stride=1.5), TypeError, "stride must be an int"),
    (lambda: nn.Conv2d(2, 3, 3, padding=-1), ValueError, "padding must be at least 0"),
    (lambda: nn.Conv2d(2, 3, 3, padding="mirror"), ValueError, "padding must be numbers or one of"),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups must divide in_channels: got groups=2"),
    (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "groups must divide the filters"),
    (lambda: nn.MaxPool2d(2, padding=2), ValueError, "padding must be smaller than the window"),
    (lambda: nn.MaxPool2d(2, stride=0), ValueError, "stride must be at least 1"),
    (lambda: nn.AvgPool2d(2, padding=2), ValueError, "padding must be smaller than the window"),
    (lambda: nn.AvgPool2d("2"), TypeError, "kernel_size must be an int or a pair"),
    (lambda: nn.Affine(0, 3), ValueError, "in_features must be at least 1"),
    (lambda: nn.Affine(3, 2.0), TypeError, "out_features must be an int"),
    (lambda: nn.Dropout(1.0), ValueError, "p must be at least 0 and below 1, got 1.0"),
    (lambda: nn.Dropout(-0.1), ValueError, "p must be at least 0"),
    (lambda: nn.Dropout(float("nan")), ValueError, "p must be at least 0"),
    (lambda: nn.Affine(3, 2).forward(np.zeros((4, 5))), ValueError, r"x must have the shape \(N, 3\), got \(4, 5\)"),
    (lambda: nn.Affine(3, 2).forward(np.zeros((4, 3, 1))), ValueError, r"x must have the shape \(N, 3\)"),
    (lambda: nn.Conv2d(3, 2, 3).forward(np.zeros((1, 2, 5, 5))), ValueError, "channels of x"),
    (lambda: nn.Flatten().forward(1.0), ValueError, "x must have at least one axis"),
    (lambda: nn.SoftmaxWithLoss().forward(np.zeros(3), [0]), ValueError, "x must be scores of the shape"),
    (lambda: nn.SoftmaxWithLoss().forward(np.zeros((0, 3)), []), ValueError, "neither of them 0"),
    (lambda: nn.SoftmaxWithLoss().forward(np.zeros((2, 3)), [0]), ValueError, r"t must be labels of the shape \(2,\)"),
    (lambda: nn.SoftmaxWithLoss().forward(np.zeros((2, 3)), [0, 3]), ValueError, "labels of 0 to 2, got 0 to 3"),
    (lambda: nn.SoftmaxWithLoss().forward(np.zeros((2, 3)), [-1, 2]), ValueError, "labels of 0 to 2, got -1 to 2"),
    (lambda: nn.SoftmaxWithLoss().forward(np.zeros((2, 3)), [0.0, 1.0]), TypeError, "t must be integers"),
    (lambda: nn.SoftmaxWithLoss().backward(), RuntimeError, "SoftmaxWithLoss.backward needs a forward"),
    (lambda: Im2colConv2d(2, 2, 3, groups=2), NotImplementedError,
     "groups=1, dilation=1 and padding_mode='zeros' only, got groups=2"),
    (lambda: Im2colConv2d(2, 2, 3, dilation=2), NotImplementedError, "dilation=2"),
    (lambda: Im2colConv2d(2, 2, 3, padding_mode="reflect"), NotImplementedError, "padding_mode='reflect'"),
    (lambda: nn.Conv2d(2, 2, 3, padding_mode="edge"), ValueError, "padding_mode must be one of"),
    (lambda: nn.Conv2d(2, 2, 3, weight_init_std="xavier"), ValueError,
     "weight_init_std must be a number or one of 'he', 'lecun', 'glorot', got 'xavier'"),
    (lambda: nn.LocalResponseNorm(0), ValueError, "size must be at least 1"),
    (lambda: nn.LocalResponseNorm().forward(np.zeros((2, 3))), ValueError, r"x must have the shape \(N, C, H, W\)"),
    (lambda: Im2colMaxPool2d(2, padding=1), NotImplementedError, "no padding, dilation or ceil_mode"),
])
def test_errors_name_the_argument(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


# --- the layers to compare with -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 0), (5, 1, 2), (3, 2, 1), ((2, 3), (3, 2), (1, 0)),
                                                           (2, 3, ((1, 0), (0, 2)))], ids=str)
def test_im2col_conv2d_gives_the_same(kernel: Any, stride: Any, padding: Any, rng: np.random.Generator) -> None:
    more = {"stride": stride, "padding": padding, "seed": 0, "dtype": np.float64}
    ours, other = nn.Conv2d(3, 4, kernel, **more), Im2colConv2d(3, 4, kernel, **more)
    ours.params["bias"] = other.params["bias"] = rng.standard_normal(4)
    x = rng.standard_normal((2, 3, 8, 9))
    out = ours.forward(x)
    np.testing.assert_allclose(other.forward(x), out, rtol=0, atol=1e-12)
    dout = rng.standard_normal(out.shape)
    np.testing.assert_allclose(other.backward(dout), ours.backward(dout), rtol=0, atol=1e-12)
    for name in ("weight", "bias"):
        np.testing.assert_allclose(other.grads[name], ours.grads[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (2, 3), ((3, 2), (1, 2))], ids=str)
def test_im2col_max_pool2d_gives_the_same(kernel: Any, stride: Any, rng: np.random.Generator) -> None:
    ours, other = nn.MaxPool2d(kernel, stride), Im2colMaxPool2d(kernel, stride)
    x = rng.integers(0, 5, (2, 3, 8, 9)).astype(np.float64)  # with ties
    out = ours.forward(x)
    np.testing.assert_array_equal(other.forward(x), out)
    dout = rng.standard_normal(out.shape)
    np.testing.assert_allclose(other.backward(dout), ours.backward(dout), rtol=0, atol=1e-14)
