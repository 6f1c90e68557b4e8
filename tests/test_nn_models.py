"""The networks: their sizes, gradients and files, training through Sequential, and accuracy on real digits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import nn
from fastconv.nn.numpy_layers import Im2colDeepConvNet


def small(**more: Any) -> nn.Sequential:
    made = {"seed": np.random.default_rng(0), **more}
    return nn.Sequential([nn.Conv2d(1, 4, 3, padding=1, **made), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Affine(64, 8, **made), nn.Relu(), nn.Affine(8, 3, **made)], (1, 8, 8))


def stripes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of noise with level, upright or no stripes: three classes."""
    rng = np.random.default_rng(seed)
    x, t = rng.normal(0, 0.5, (n, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, n)
    wave = np.tile([1.0, -1], 4).astype(np.float32)
    x[t == 0] += wave
    x[t == 1] += wave[:, None]
    return x, t


def check_sampled_gradient(network: nn.Network, x: np.ndarray, t: np.ndarray, count: int) -> None:
    """Compare the gradient of some of each parameter's largest cells with differences of the loss."""
    for part in network.layers.values():
        if isinstance(part, nn.Dropout):
            part.p = 0.0  # the loss is measured without it
    gradient, h = network.gradient(x, t), 1e-5
    assert list(gradient) == list(network.params)
    for name, p in network.params.items():
        largest = np.argsort(np.abs(gradient[name]).ravel())[-3 * count::3]
        assert np.abs(gradient[name]).max() > 1e-6, f"the gradient of {name} tells nothing"
        for index in largest:
            value = p.flat[index]
            p.flat[index] = value + h
            above = network.loss(x, t)
            p.flat[index] = value - h
            below = network.loss(x, t)
            p.flat[index] = value
            assert gradient[name].flat[index] == pytest.approx((above - below) / (2 * h), rel=1e-4, abs=1e-9), (name, index)


# --- Sequential -----------------------------------------------------------------------------------------------------


def test_sequential() -> None:
    network = small()
    assert list(network.layers) == ["Conv2d1", "Tanh1", "MaxPool2d1", "Flatten1", "Affine1", "Relu1", "Affine2"]
    assert list(network.params) == ["Conv2d1.weight", "Conv2d1.bias", "Affine1.weight", "Affine1.bias", "Affine2.weight",
                                    "Affine2.bias"]
    assert network.output_shapes() == {"Conv2d1": (4, 8, 8), "Tanh1": (4, 8, 8), "MaxPool2d1": (4, 4, 4),
                                       "Flatten1": (64,), "Affine1": (8,), "Relu1": (8,), "Affine2": (3,)}
    x, t = stripes(10, 0)
    scores = network.predict(x)
    assert scores.shape == (10, 3)
    np.testing.assert_allclose(network.predict(x, batch_size=3), scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(network.probabilities(x), nn.softmax(scores))
    assert network.evaluate(x, t) == pytest.approx(network.evaluate(x, np.eye(3)[t], 4))
    check_sampled_gradient(small(dtype=np.float64), x.astype(np.float64), t, 5)


def test_a_network_may_begin_with_a_layer_that_learns_nothing() -> None:
    network = nn.Sequential([nn.Flatten(), nn.Affine(64, 3, seed=0)], (1, 8, 8))
    x, t = stripes(5, 0)
    assert network.gradient(x, t)["Affine1.weight"].shape == (64, 3)


def test_fit_learns_and_keeps_its_history() -> None:
    network, train, test = small(), stripes(600, 0), stripes(200, 1)
    history = network.fit(*train, epochs=6, batch_size=20, validation_data=test, optimizer=nn.Adam(0.01), seed=0)
    assert [record.epoch for record in history.epochs] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "accuracy"):
        for part in ("train", "test"):
            assert all(value is not None for value in history.column(f"{part}_{name}"))
    last = history.epochs[-1]
    assert last.test_accuracy == network.evaluate(*test)[1] > 0.95
    assert last.train_loss < history.epochs[0].train_loss
    again = small()
    again.fit(*train, epochs=6, batch_size=20, optimizer=nn.Adam(0.01), seed=0)
    for name, p in network.params.items():
        np.testing.assert_array_equal(again.params[name], p)  # looking at the test images changes nothing


@pytest.mark.parametrize(("build", "error", "message"), [
    (lambda: nn.Sequential([], (1, 8, 8)), ValueError, "layers must have at least one layer"),
    (lambda: nn.Sequential([nn.Relu], (1, 8, 8)), TypeError, "layers must be layers, got <class"),
    (lambda: nn.Sequential([nn.Relu()] * 2, (1, 8, 8)), ValueError, r"layers must be different objects, got the same Relu\(\)"),
    (lambda: nn.Sequential([nn.Flatten(), nn.Affine(60, 3)], (1, 8, 8)), ValueError,
     r"layer Affine1, Affine\(60, 3, bias=True\), cannot take an input of shape \(64,\): x must have the shape \(N, 60\)"),
    (lambda: nn.Sequential([nn.Conv2d(3, 4, 3)], (1, 8, 8)), ValueError, "layer Conv2d1, .* cannot take an input"),
    (lambda: small().predict(np.zeros((2, 1, 8, 9))), ValueError, r"x must have the shape \(N, 1, 8, 8\)"),
])
def test_sequential_errors(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_files(tmp_path: Path) -> None:
    path, network, other = tmp_path / "weights.npz", small(), small(seed=5)
    network.save(path)
    held = other.params["Affine1.weight"]
    other.load(path)
    assert other.params["Affine1.weight"] is held
    for name, p in network.params.items():
        np.testing.assert_array_equal(other.params[name], p)
    wider = nn.Sequential([*small().layers.values()][:-1], (1, 8, 8))
    with pytest.raises(ValueError, match=r"weights\.npz: has a parameter 'Affine2.weight', which this network has not"):
        wider.load(path)
    wider.save(path)
    with pytest.raises(ValueError, match=r"weights\.npz: has no parameter 'Affine2.weight'"):
        network.load(path)
    nn.LeNet5().save(path)
    with pytest.raises(ValueError, match=r"parameter 'Conv2d1.weight' must be float32 of the shape \(4, 1, 3, 3\), got "
                                         r"float32 of the shape \(6, 1, 5, 5\)"):
        network.load(path)


# --- the networks ---------------------------------------------------------------------------------------------------


def summary(network: nn.Network) -> list[str]:
    lines: list[str] = []
    network.summary(lines.append)
    return lines


def test_kerass_network() -> None:
    assert summary(nn.KerasConvNet()) == [
        "layer       type       output    parameters",
        "-------------------------------------------",
        "Conv2d1     Conv2d     10x28x28         100",
        "Relu1       Relu       10x28x28           0",
        "MaxPool2d1  MaxPool2d  10x14x14           0",
        "Flatten1    Flatten    1960               0",
        "Dropout1    Dropout    1960               0",
        "Affine1     Affine     100          196,100",
        "Relu2       Relu       100                0",
        "Affine2     Affine     10             1,010",
        "-------------------------------------------",
        "197,210 parameters"]


def test_summary_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    nn.LeNet5().summary()
    assert capsys.readouterr().out.splitlines()[-1] == "61,706 parameters"


@pytest.mark.parametrize("form", ["relu", "tanh", "sigmoid"])
def test_lenet5(form: str) -> None:
    network = nn.LeNet5(form=form, seed=0)
    kinds = [type(part).__name__ for part in network.layers.values()]
    activation, pool = {"relu": ("Relu", "MaxPool2d"), "tanh": ("Tanh", "AvgPool2d"), "sigmoid": ("Sigmoid", "AvgPool2d")}[form]
    assert kinds == ["Conv2d", activation, pool] * 2 + ["Flatten"] + ["Affine", activation] * 2 + ["Affine"]
    shapes = list(network.output_shapes().values())
    assert [shapes[i] for i in (0, 2, 3, 5, 6, 7, 9, 11)] == [
        (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (400,), (120,), (84,), (10,)]
    rng = np.random.default_rng(0)
    double = nn.LeNet5((2, 20, 24), form, classes=4, padding=0, seed=0, dtype=np.float64)
    check_sampled_gradient(double, rng.standard_normal((3, 2, 20, 24)), np.array([0, 3, 1]), 4)
    assert nn.LeNet5((1, 32, 32), padding=0).params["Affine1.weight"].shape == (400, 120)


def test_the_books_deep_network() -> None:
    network = nn.DeepConvNet(seed=0)
    assert {name: p.shape for name, p in network.params.items() if name[0] == "W"} == {
        "W1": (16, 1, 3, 3), "W2": (16, 16, 3, 3), "W3": (32, 16, 3, 3), "W4": (32, 32, 3, 3), "W5": (64, 32, 3, 3),
        "W6": (64, 64, 3, 3), "W7": (1024, 50), "W8": (50, 10)}
    assert network.output_shapes()["Pool3"] == (64, 4, 4)
    assert network.params["W7"].std() == pytest.approx(np.sqrt(2 / 1024), rel=0.05)
    rng = np.random.default_rng(0)
    filters = [{"filter_num": n, "pad": 1} for n in (2, 3, 4, 3, 2, 4)]
    double = nn.DeepConvNet((2, 16, 9), filters, 7, 5, seed=0, dtype=np.float64)
    check_sampled_gradient(double, rng.standard_normal((3, 2, 16, 9)), np.array([0, 3, 1]), 4)


def test_the_books_algorithm_has_the_same_gradients() -> None:
    x, t = np.random.default_rng(0).standard_normal((4, 1, 28, 28)), np.arange(4)
    ours, books = (kind(seed=0, dtype=np.float64) for kind in (nn.DeepConvNet, Im2colDeepConvNet))
    loss, gradient = ours.loss_and_gradient(x, t)
    book_loss, book_gradient = books.loss_and_gradient(x, t)
    assert loss == pytest.approx(book_loss, rel=1e-12)
    for name, want in book_gradient.items():
        np.testing.assert_allclose(gradient[name], want, rtol=0, atol=1e-11 * max(np.abs(want).max(), 1))


def test_a_relu_behind_a_convolution_is_done_by_it(rng: np.random.Generator) -> None:
    """The network gives what its layers give one by one, and leaves the ReLU as its `forward` does."""
    network = nn.Sequential([nn.Conv2d(2, 5, 3, padding=1, seed=0), nn.Relu(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3, seed=1),
                             nn.Relu(), nn.Relu(), nn.Flatten(), nn.Affine(16, 3, seed=2)], input_dim=(2, 8, 8))
    x, t = rng.standard_normal((3, 2, 8, 8), dtype=np.float32), np.array([0, 1, 2])
    calls = []
    for part in network.layers.values():
        if isinstance(part, nn.Conv2d):
            def forward(x: Any, relu: Any = part.forward_relu, name: str = repr(part)) -> Any:
                calls.append(name)
                return relu(x)

            def pooled(x: Any, *layers: Any, both: Any = part.forward_pooled, name: str = repr(part)) -> Any:
                calls.append(name)
                return both(x, *layers)

            part.forward_relu, part.forward_pooled = forward, pooled  # type: ignore[method-assign]
    got = network.gradient(x, t)
    assert len(calls) == 2
    one_by_one = network.activations(x)
    assert one_by_one["Conv2d1"].min() < 0 <= one_by_one["Relu1"].min()
    np.testing.assert_array_equal(list(one_by_one.values())[-1], network.predict(x))

    class Loud(nn.Conv2d):
        """A `forward` of its own is not passed over."""

        def forward(self, x: Any) -> Any:
            return super().forward(x)

        forward_relu: Any = None

    loud = nn.Sequential([Loud(2, 5, 3, padding=1, seed=0), nn.Relu(), nn.MaxPool2d(2), Loud(5, 4, 3, seed=1), nn.Relu(),
                          nn.Relu(), nn.Flatten(), nn.Affine(16, 3, seed=2)], input_dim=(2, 8, 8))
    for name, gradient in zip(got, loud.gradient(x, t).values(), strict=True):
        np.testing.assert_allclose(got[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [(2,), (3, 2, 1), (3, 1)], ids=str)
def test_a_pooling_behind_a_relu_does_its_gradient(pool: tuple[int, ...], rng: np.random.Generator) -> None:
    """Bit for bit what the two give one by one, with NaN and with windows that overlap, too; and y is let go."""
    relu, pooling = nn.Relu(), nn.MaxPool2d(*pool)
    x = rng.standard_normal((3, 5, 8, 8), dtype=np.float32) - 0.8  # the maximum of some windows is 0
    x[1, 0, 4, 4] = np.nan
    y = relu.forward(x)
    out = pooling.forward(y)
    dout = rng.standard_normal(out.shape, dtype=np.float32)
    alone = relu.backward(pooling.backward(dout))
    np.testing.assert_array_equal(pooling.forward_rectified(y, relu), out)
    assert relu._y is None  # so much memory that is free until the backward pass
    np.testing.assert_array_equal(relu.backward(pooling.backward(dout)), alone)
    assert (out == 0).any()
    assert alone[1, 0, 4, 4] != 0
    pooling.forward(relu.forward(x))  # as before
    np.testing.assert_array_equal(relu.backward(pooling.backward(dout)), alone)


def test_a_pooling_with_a_pass_of_its_own_leaves_the_relu_alone(rng: np.random.Generator) -> None:
    class Loud(nn.MaxPool2d):
        def backward(self, dout: Any) -> Any:
            return super().backward(dout)

    def build(pool: type[nn.MaxPool2d]) -> nn.Sequential:
        return nn.Sequential([nn.Conv2d(1, 4, 3, seed=0), nn.Relu(), pool(2), nn.Flatten(), nn.Affine(36, 3, seed=2)],
                             input_dim=(1, 8, 8))

    x, t = rng.standard_normal((3, 1, 8, 8), dtype=np.float32), np.array([0, 1, 2])
    networks = build(nn.MaxPool2d), build(Loud)
    for name, gradient in networks[0].gradient(x, t).items():
        other = networks[1].gradient(x, t)[name.replace("MaxPool2d", "Loud")]  # its sums are in another order
        np.testing.assert_allclose(gradient, other, rtol=0, atol=1e-6 * np.abs(other).max())
    assert [list(network.layers.values())[1]._y is None for network in networks] == [True, False]


def test_alexnet_in_small() -> None:
    network = nn.AlexNet((3, 67, 67), classes=5, hidden_size=20, seed=0, dtype=np.float64)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 3, 67, 67)), np.array([1, 4])
    check_sampled_gradient(network, x, t, 2)
    before = network.loss(x, t)
    nn.SGD(1e-3).update(network.params, network.gradient(x, t))
    assert network.loss(x, t) < before


def test_alexnets_sizes() -> None:
    network = nn.AlexNet((3, 227, 227), hidden_size=1, classes=1000)  # the affine layers alone would take 235 MB
    shapes = network.output_shapes()
    assert [shapes[name] for name in ("Conv2d1", "MaxPool2d1", "Conv2d2", "MaxPool2d2", "Conv2d3", "Conv2d5", "MaxPool2d3",
                                      "Flatten1")] == [(96, 55, 55), (96, 27, 27), (256, 27, 27), (256, 13, 13),
                                                       (384, 13, 13), (256, 13, 13), (256, 6, 6), (9216,)]
    convolutions = sum(p.size for name, p in network.params.items() if name.startswith("Conv2d"))
    affine = (9216 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    assert convolutions + affine == 60_965_224


@pytest.mark.parametrize(("build", "message"), [
    (lambda: nn.LeNet5(form="elu"), "form must be one of 'relu', 'tanh', 'sigmoid', got 'elu'"),
    (lambda: nn.LeNet5((1, 12, 12), padding=0), "input_dim must leave something"),
    (lambda: nn.AlexNet((3, 66, 80)), "input_dim must be of at least 67 x 67 pixels"),
    (lambda: nn.DeepConvNet(conv_params=[{"filter_num": 3}]), "conv_params must be six mappings, got 1"),
    (lambda: nn.DeepConvNet(conv_params=[{"filters": 3}] * 6), "conv_params must have filter_num"),
])
def test_errors(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# --- real digits ----------------------------------------------------------------------------------------------------

MNIST = Path(os.environ.get("FASTCONV_MNIST") or Path(__file__).parents[2] / "shared" / "data" / "mnist")


chosen = pytest.mark.skipif("FASTCONV_SLOW_TESTS" not in os.environ, reason="slow: FASTCONV_SLOW_TESTS is not set")


@chosen
@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no MNIST files: {MNIST} (FASTCONV_MNIST) is not there")
@pytest.mark.parametrize(("kind", "moved", "epochs"), [(nn.LeNet5, False, 8), (nn.KerasConvNet, True, 7)])
def test_98_percent_of_mnist(kind: Any, moved: bool, epochs: int) -> None:
    data = nn.load_mnist(MNIST, seed=0)
    x, t, test = data.x_train[:8000], data.t_train[:8000], (data.x_test[:2000], data.t_test[:2000])
    assert (len(x), len(test[0])) == (8000, 2000)
    if moved:  # one convolution of ten filters learns the 8,000 by heart: let it see them a pixel to each side as well
        around = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        x = np.concatenate([around[:, :, i:i + 28, j:j + 28] for i, j in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))])
        t = np.tile(t, 5)
    network, optimizer = kind(seed=0), nn.Adam(0.002)
    network.fit(x, t, epochs=epochs, batch_size=50, optimizer=optimizer, seed=0)
    optimizer.lr /= 5  # settles down: rounding, which differs between CPUs, must not decide
    network.fit(x, t, epochs=3, batch_size=50, optimizer=optimizer, seed=1)
    accuracy = network.evaluate(*test)[1]
    print(f"{kind.__name__}: {accuracy:.2%}")
    assert accuracy >= 0.98


@chosen
@pytest.mark.slow
def test_one_training_step_of_alexnet() -> None:
    network = nn.AlexNet(seed=0)
    assert sum(p.size for p in network.params.values()) == 60_965_224
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((4, 3, 227, 227), dtype=np.float32), np.array([1, 2, 3, 999])
    loss, gradient = network.loss_and_gradient(x, t)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in gradient.values())
    for part in network.layers.values():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    before, gradient = network.loss_and_gradient(x, t)
    nn.SGD(1e-3).update(network.params, gradient)
    assert network.loss(x, t) < before
    fastconv.release_memory()
