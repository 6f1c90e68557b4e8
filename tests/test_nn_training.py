"""The network, the optimizers, the training loop with its history and progress, and the pictures."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import nn
from fastconv.nn.numpy_layers import Im2colConvNet
from fastconv.nn.train import OPTIMIZERS, Progress, RichProgress, TextProgress

SMALL = {"input_dim": (1, 8, 8), "conv_param": {"filter_num": 3, "filter_size": 3, "pad": 1, "stride": 1},
         "hidden_size": 6, "output_size": 4}


def bars(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 1, 8, 8) of noise with a bar that is level, upright or in one of the diagonals: four classes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.3, (n, 1, 8, 8)).astype(np.float32)
    t = rng.integers(0, 4, n)
    place, length = rng.integers(0, 5, (n, 2)), np.arange(4)
    for image, label, (row, column) in zip(x[:, 0], t, place, strict=True):
        rows = row + (0 if label == 0 else length)
        columns = column + (0 if label == 1 else length[::-1] if label == 3 else length)
        image[rows, columns] += 1
    return x, t


# --- the network ----------------------------------------------------------------------------------------------------


def test_the_books_network() -> None:
    network = nn.SimpleConvNet()
    assert {name: p.shape for name, p in network.params.items()} == {
        "W1": (30, 1, 5, 5), "b1": (30,), "W2": (4320, 100), "b2": (100,), "W3": (100, 10), "b3": (10,)}
    assert list(network.layers) == ["Conv1", "Relu1", "Pool1", "Flatten", "Affine1", "Relu2", "Affine2"]
    for name, p in network.params.items():
        assert p.dtype == np.float32
        if name.startswith("b"):
            assert not p.any()
        else:
            assert p.std() == pytest.approx(0.01, rel=0.1)
    assert network.predict(np.zeros((3, 1, 28, 28), np.float32)).shape == (3, 10)


def test_arguments_by_position_as_in_the_book() -> None:
    network = nn.SimpleConvNet((3, 9, 12), {"filter_num": 4, "filter_size": 3, "pad": 1, "stride": 2}, 7, 5, 0.1)
    assert {name: p.shape for name, p in network.params.items()} == {
        "W1": (4, 3, 3, 3), "b1": (4,), "W2": (4 * 2 * 3, 7), "b2": (7,), "W3": (7, 5), "b3": (5,)}
    assert network.predict(np.zeros((2, 3, 9, 12))).shape == (2, 5)
    assert nn.SimpleConvNet(conv_param={"filter_num": 8}).params["W1"].shape == (8, 1, 5, 5)


def test_gradient_is_the_losss() -> None:
    rng = np.random.default_rng(0)
    network = nn.SimpleConvNet(**SMALL, weight_init_std=None, seed=rng, dtype=np.float64)
    for name in ("b1", "b2", "b3"):
        network.params[name] += rng.normal(0, 0.1, network.params[name].shape)
    x, t = rng.standard_normal((3, 1, 8, 8)), np.array([0, 3, 1])
    gradient = network.gradient(x, t)
    assert list(gradient) == list(network.params)
    h = 1e-5
    with fastconv.options(num_threads=1):
        for name, p in network.params.items():
            for index in rng.permutation(p.size)[:40]:
                flat, value = p.reshape(-1), p.flat[index]
                flat[index] = value + h
                above = network.loss(x, t)
                flat[index] = value - h
                below = network.loss(x, t)
                flat[index] = value
                assert gradient[name].flat[index] == pytest.approx((above - below) / (2 * h), abs=1e-8), (name, index)


@pytest.mark.parametrize("kind", [nn.SimpleConvNet, Im2colConvNet])
def test_loss_and_gradient_in_float32(kind: Any) -> None:
    x, t = bars(20, 1)
    double = nn.SimpleConvNet(**SMALL, weight_init_std=None, seed=0, dtype=np.float64)
    single = kind(**SMALL, weight_init_std=None, seed=0)
    loss, gradient = single.loss_and_gradient(x, t)
    assert isinstance(loss, float)
    assert loss == single.loss(x, t) == pytest.approx(double.loss(x, t), rel=1e-6)
    for name, want in double.gradient(x, np.eye(4)[t]).items():  # one-hot labels are the same
        assert gradient[name].dtype == np.float32
        np.testing.assert_allclose(gradient[name], want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_seed_decides_the_weights() -> None:
    one, same, other = (nn.SimpleConvNet(**SMALL, seed=seed) for seed in (1, 1, 2))
    for name in ("W1", "W2", "W3"):
        np.testing.assert_array_equal(one.params[name], same.params[name])
        assert not np.array_equal(one.params[name], other.params[name])
    assert not np.array_equal(one.params["W1"].ravel()[:4], one.params["W3"].ravel()[:4])


def test_params_may_be_rebound() -> None:
    network, x = nn.SimpleConvNet(**SMALL, seed=0), bars(5, 0)[0]
    network.params["W3"] = np.zeros_like(network.params["W3"])
    network.params["b3"] = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(network.predict(x), np.tile(np.arange(4), (5, 1)))


def test_accuracy_counts_every_image() -> None:
    network = nn.SimpleConvNet(**SMALL, seed=0, weight_init_std=None)
    x, t = bars(23, 3)
    scores = network.predict(x)
    best = scores.argmax(axis=1)
    labels = np.where(np.arange(23) < 20, best, (best + 1) % 4)  # wrong in the last three, which no full batch has
    for batch_size in (1, 5, 23, 100):
        assert network.accuracy(x, labels, batch_size) == 20 / 23
        assert network.accuracy(x, np.eye(4)[labels], batch_size) == 20 / 23
        assert network.evaluate(x, t, batch_size)[0] == pytest.approx(network.loss(x, t), rel=1e-5)


@pytest.mark.parametrize(("call", "message"), [
    (lambda n: n.predict(np.zeros((2, 1, 8, 9))), r"x must have the shape \(N, 1, 8, 8\), got \(2, 1, 8, 9\)"),
    (lambda n: n.predict(np.zeros((1, 8, 8))), r"x must have the shape \(N, 1, 8, 8\)"),
    (lambda n: n.accuracy(np.zeros((2, 1, 8, 8)), [0]), "the same length of at least 1, got 2 and 1"),
    (lambda n: n.accuracy(np.zeros((0, 1, 8, 8)), []), "the same length of at least 1, got 0 and 0"),
    (lambda n: n.accuracy(np.zeros((2, 1, 8, 8)), [0, 1], 0), "batch_size must be at least 1"),
    (lambda n: n.loss(np.zeros((2, 1, 8, 8)), [0, 4]), "labels of 0 to 3, got 0 to 4"),
    (lambda n: nn.SimpleConvNet(input_dim=(28, 28)), "input_dim must have 3 axes"),
    (lambda n: nn.SimpleConvNet(conv_param={"filters": 3}), "conv_param has filter_num, .*, got 'filters'"),
    (lambda n: nn.SimpleConvNet(input_dim=(1, 4, 4)), "a window of 5 .* does not fit an input height of 4"),
    (lambda n: nn.SimpleConvNet(input_dim=(1, 5, 5)), "a window of 2 .* does not fit an input height of 1"),
    (lambda n: nn.SimpleConvNet(hidden_size=0), "hidden_size must be at least 1"),
])
def test_network_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(nn.SimpleConvNet(**SMALL))


# --- files of parameters --------------------------------------------------------------------------------------------


def test_params_come_back_from_a_file(tmp_path: Path) -> None:
    network, other = nn.SimpleConvNet(**SMALL, seed=0), nn.SimpleConvNet(**SMALL, seed=1)
    path = tmp_path / "weights"
    network.save_params(path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]  # of exactly that name
    held = dict(other.params)
    other.load_params(str(path))
    for name, p in network.params.items():
        np.testing.assert_array_equal(other.params[name], p)
        assert other.params[name] is held[name]  # an optimizer's state stays with its array
    double = nn.SimpleConvNet(**SMALL, dtype=np.float64)
    double.load_params(path)
    assert double.params["W1"].dtype == np.float64
    np.testing.assert_array_equal(double.params["W1"], network.params["W1"])


def _unpickled() -> None:
    raise AssertionError("a file of parameters was unpickled")


class _Mine:
    def __reduce__(self) -> Any:
        return _unpickled, ()


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda p: p.write_bytes(b""), "not an npz file"),
    (lambda p: p.write_bytes(b"no zip at all"), "not an npz file"),
    (lambda p: p.write_bytes(p.read_bytes()[:-200]), "not an npz file"),
    (lambda p: p.write_bytes(p.read_bytes()[:500] + b"\xff" * 50 + p.read_bytes()[550:]), "not an npz file"),
    (lambda p: np.save(p.open("wb"), np.zeros(3)), r"not an npz file of parameters \(a single array\)"),
    (lambda p: np.savez(p.open("wb"), W1=np.zeros((3, 1, 3, 3))), "has no parameter 'b1', only W1"),
    (lambda p: nn.SimpleConvNet(**{**SMALL, "hidden_size": 7}).save_params(p),
     r"parameter 'W2' must be float32 of the shape \(48, 6\), got float32 of the shape \(48, 7\)"),
    (lambda p: np.savez(p.open("wb"), **{n: a + 0j for n, a in nn.SimpleConvNet(**SMALL).params.items()}),
     "'W1' must be float32 .* got complex64"),
    (lambda p: np.savez(p.open("wb"), W1=np.array([_Mine()], dtype=object)), "not an npz file"),
])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_file_that_is_not_of_this_network(spoil: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    network = nn.SimpleConvNet(**SMALL, seed=0)
    network.save_params(path)
    spoil(path)
    before = {name: p.copy() for name, p in network.params.items()}
    with pytest.raises(ValueError, match=message) as caught:
        network.load_params(path)
    assert str(caught.value).startswith(str(path))
    for name, p in network.params.items():
        np.testing.assert_array_equal(p, before[name])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        nn.SimpleConvNet(**SMALL).load_params(tmp_path / "weights.npz")


# --- optimizers -----------------------------------------------------------------------------------------------------


def test_sgd() -> None:
    params = {"w": np.array([1.0, 2.0])}
    nn.SGD(lr=0.1).update(params, {"w": np.array([10.0, -20.0])})
    np.testing.assert_allclose(params["w"], [0, 4], atol=1e-15)


def test_momentum() -> None:
    params, optimizer = {"w": np.array([0.0])}, nn.Momentum(lr=0.1, momentum=0.5)
    for want in (-1, -2.5, -4.25):  # velocities -1, -1.5, -1.75
        optimizer.update(params, {"w": np.array([10.0])})
        np.testing.assert_allclose(params["w"], [want], rtol=1e-15)


def test_adam() -> None:
    """Against the definition, section 2 of the paper, in plain numbers; eps as there before the bias correction."""
    params, optimizer = {"w": np.array([1.0])}, nn.Adam(lr=0.1, beta1=0.8, beta2=0.9, eps=1e-3)
    w, m, v = 1.0, 0.0, 0.0
    for t, g in enumerate([3.0, -1.0, 0.5, 2.0], start=1):
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        w -= 0.1 * math.sqrt(1 - 0.9**t) / (1 - 0.8**t) * m / (math.sqrt(v) + 1e-3)
        optimizer.update(params, {"w": np.array([g])})
        np.testing.assert_allclose(params["w"], [w], rtol=1e-14)


def test_adams_first_step_is_the_learning_rate() -> None:
    params = {"w": np.zeros(3)}
    nn.Adam(lr=0.01).update(params, {"w": np.array([1e-2, -5.0, 700.0])})
    np.testing.assert_allclose(params["w"], [-0.01, 0.01, -0.01], rtol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_optimizers_work_in_place_and_keep_the_dtype(name: str, dtype: Any) -> None:
    params = {"w": np.ones((2, 3), dtype), "b": np.ones(3, dtype)}
    held, optimizer = dict(params), OPTIMIZERS[name](np.float64(0.125))
    for _ in range(3):
        gradients = {"w": np.ones((2, 3), np.float64), "b": np.zeros(3)}
        optimizer.update(params, gradients)
        assert (gradients["w"] == 1).all()
    for key, p in params.items():
        assert p is held[key]
        assert p.dtype == dtype
    assert (params["w"] < 1).all()
    assert (params["b"] == 1).all()


@pytest.mark.parametrize(("build", "message"), [
    (lambda: nn.SGD(0), "lr must be above 0 and finite, got 0"),
    (lambda: nn.SGD(-0.1), "lr must be above 0"),
    (lambda: nn.SGD(math.inf), "lr must be above 0 and finite"),
    (lambda: nn.Momentum(math.nan), "lr must be above 0"),
    (lambda: nn.Momentum(0.1, 1.0), "momentum must be at least 0 and below 1, got 1.0"),
    (lambda: nn.Adam(0.1, beta1=-0.1), "beta1 must be at least 0 and below 1"),
    (lambda: nn.Adam(0.1, beta2=1), "beta2 must be at least 0 and below 1"),
    (lambda: nn.Adam(0.1, eps=0), "eps must be above 0"),
])
def test_optimizer_errors(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# --- the training loop ----------------------------------------------------------------------------------------------


class Recorder:
    """Instead of a network: keeps what the loop gives it. Its loss is the step's number."""

    def __init__(self, losses: Any = None) -> None:
        self.params: dict[str, np.ndarray] = {"w": np.zeros(1)}
        self.batches: list[np.ndarray] = []
        self.evaluated: list[tuple[np.ndarray, int]] = []
        self.losses = losses

    def loss_and_gradient(self, x: np.ndarray, t: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        np.testing.assert_array_equal(x, t * 10)  # images and labels stay together
        self.batches.append(t)
        step = len(self.batches)
        return float(step if self.losses is None else self.losses[step - 1]), {"w": np.ones(1)}

    def evaluate(self, x: np.ndarray, t: np.ndarray, batch_size: int = 100) -> tuple[float, float]:
        self.evaluated.append((t, batch_size))
        return float(len(t)), 1 / len(t)


def test_each_epoch_has_every_image_once_in_another_order() -> None:
    network, labels = Recorder(), np.arange(23)
    trainer = nn.Trainer(network, nn.SGD(0.5), batch_size=5, seed=0, evaluate_samples=7)
    history = trainer.fit(labels * 10, labels, [100, 200], [10, 20], epochs=2)
    assert [len(batch) for batch in network.batches] == [5, 5, 5, 5, 3] * 2
    first, second = np.concatenate(network.batches[:5]), np.concatenate(network.batches[5:])
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order), labels)
        assert not np.array_equal(order, labels)
    assert not np.array_equal(first, second)
    assert network.params["w"] == -5  # ten steps of 0.5
    assert history is trainer.history
    assert history.step_loss == list(range(1, 11))
    assert history.column("epoch") == [1, 2]
    assert [(len(t), size) for t, size in network.evaluated] == [(7, 5), (2, 5)] * 2
    assert (history.epochs[0].train_loss, history.epochs[0].train_accuracy) == (7, 1 / 7)
    assert (history.epochs[0].test_loss, history.epochs[0].test_accuracy) == (2, 1 / 2)


def test_training_goes_on_where_fit_is_called_again() -> None:
    labels = np.arange(6)
    trainer = nn.Trainer(Recorder(), batch_size=4, evaluate_samples=None)
    trainer.fit(labels * 10, labels, epochs=2)
    history = trainer.fit(labels * 10, labels, epochs=1)
    assert history.column("epoch") == [1, 2, 3]
    assert history.column("test_loss") == [None] * 3
    assert history.column("train_loss") == [6.0] * 3
    assert len(history.step_loss) == 6


def test_progress_is_told_of_everything_and_stopped_in_the_end() -> None:
    class Log(Progress):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def start(self, first: int, last: int, steps: int) -> None:
            self.calls.append(("start", first, last, steps))

        def step(self, epoch: int, step: int, loss: float) -> None:
            self.calls.append((epoch, step, loss))

        def epoch(self, record: nn.EpochRecord) -> None:
            self.calls.append(record.epoch)

        def stop(self) -> None:
            self.calls.append("stop")

    log, labels = Log(), np.arange(6)
    nn.Trainer(Recorder(), batch_size=4).fit(labels * 10, labels, epochs=2, progress=log)
    assert log.calls == [("start", 1, 2, 2), (1, 1, 1.0), (1, 2, 2.0), 1, (2, 1, 3.0), (2, 2, 4.0), 2, "stop"]

    log = Log()
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 2, step 1: the training diverged"):
        nn.Trainer(Recorder([1, 2, math.nan]), batch_size=4).fit(labels * 10, labels, epochs=2, progress=log)
    assert log.calls[-2:] == [1, "stop"]


def test_a_training_that_diverges_says_so() -> None:
    x, t = bars(100, 0)
    network = nn.SimpleConvNet(**SMALL, seed=0)
    with pytest.raises(FloatingPointError, match="the training diverged; a smaller learning rate may help"):
        nn.Trainer(network, nn.SGD(1e30), batch_size=10, seed=0).fit(x, t)
    network = nn.SimpleConvNet(**SMALL, seed=0)  # here it is the last step of the epoch that spoils the weights
    with pytest.raises(FloatingPointError, match="in epoch 1: the training diverged"):
        nn.Trainer(network, nn.SGD(1e38), batch_size=100, seed=0).fit(x * 1e3, t)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: nn.Trainer(Recorder(), batch_size=0), "batch_size must be at least 1"),
    (lambda: nn.Trainer(Recorder(), evaluate_samples=0), "evaluate_samples must be at least 1"),
    (lambda: nn.Trainer(Recorder()).fit([1], [1, 2]), "x_train and t_train must have the same length"),
    (lambda: nn.Trainer(Recorder()).fit([], []), "x_train and t_train must have the same length of at least 1"),
    (lambda: nn.Trainer(Recorder()).fit([1], [1], [2]), "x_test and t_test go together"),
    (lambda: nn.Trainer(Recorder()).fit([1], [1], epochs=0), "epochs must be at least 1"),
])
def test_trainer_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("optimizer", [lambda: nn.SGD(0.2), lambda: nn.Momentum(0.05), lambda: nn.Adam(0.01)],
                         ids=["sgd", "momentum", "adam"])
def test_training_learns(optimizer: Any) -> None:
    train, test = bars(1000, 0), bars(200, 1)
    larger = {**SMALL, "conv_param": {"filter_num": 12, "filter_size": 3, "pad": 1}, "hidden_size": 20}
    network = nn.SimpleConvNet(**larger, weight_init_std=None, seed=0)
    before = network.accuracy(*test)
    history = nn.Trainer(network, optimizer(), batch_size=20, seed=0).fit(*train, *test, epochs=12)
    last = history.epochs[-1]
    assert before < 0.6
    assert last.test_accuracy > 0.9
    assert last.test_accuracy == network.accuracy(*test)
    assert last.test_loss == pytest.approx(network.loss(*test), rel=1e-5)
    assert last.train_loss < history.epochs[0].train_loss / 3
    assert len(history.step_loss) == 12 * 50


def test_the_same_seeds_give_the_same_network() -> None:
    def trained(seed: int) -> nn.SimpleConvNet:
        network = nn.SimpleConvNet(**SMALL, seed=0)
        nn.Trainer(network, nn.Adam(0.01), batch_size=16, seed=seed).fit(*bars(50, 0), epochs=2)
        return network

    one, same, other = trained(1), trained(1), trained(2)
    for name, p in one.params.items():
        np.testing.assert_array_equal(same.params[name], p)
        assert not np.array_equal(other.params[name], p)


def test_the_books_algorithm_trains_the_same_network() -> None:
    networks = [kind(**SMALL, weight_init_std=None, seed=0, dtype=np.float64)
                for kind in (nn.SimpleConvNet, Im2colConvNet)]
    for network in networks:
        nn.Trainer(network, nn.Momentum(0.05), batch_size=16, seed=0).fit(*bars(60, 0), epochs=3)
    for name, p in networks[0].params.items():
        np.testing.assert_allclose(networks[1].params[name], p, rtol=0, atol=1e-10)


# --- progress -------------------------------------------------------------------------------------------------------

RECORDS = [nn.EpochRecord(1, 1.5, 0.5, 1.25, 0.4375, 0.25), nn.EpochRecord(10, 0.125, 1.0, None, None, 12.0)]
LINES = ["epoch  1/10  loss 1.5000  accuracy 50.00%  test loss 1.2500  test accuracy 43.75%  0.2 s",
         "epoch 10/10  loss 0.1250  accuracy 100.00%  12.0 s"]


def test_text_progress_is_a_line_for_each_epoch() -> None:
    stream = io.StringIO()
    progress = nn.terminal_progress(stream)
    assert type(progress) is TextProgress
    progress.start(1, 10, 3)
    for record in RECORDS:
        progress.step(record.epoch, 1, 0.5)
        progress.epoch(record)
    progress.stop()
    assert stream.getvalue().splitlines() == LINES


def test_rich_progress_is_a_bar_and_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = nn.terminal_progress(stream)
    assert type(progress) is RichProgress
    progress.start(1, 10, 3)
    for record in RECORDS:
        progress.step(record.epoch, 1, 0.75)
        progress.epoch(record)
    progress.stop()
    text = stream.getvalue()
    for line in LINES:
        assert line in text
    assert "2/30" in text  # steps of all epochs
    assert "loss 0.7500" in text

    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    assert type(nn.terminal_progress(Terminal())) is TextProgress


# --- pictures -------------------------------------------------------------------------------------------------------


def picture(path: Path) -> np.ndarray:
    """Pixels (H, W, 3 or 4) of a PNG file, 0 to 1."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return pytest.importorskip("matplotlib.image").imread(path)


def has_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels[..., :3] * 255 - colour).max(axis=-1) < 2).any())


TRAIN, TEST = (0, 0x72, 0xB2), (0xD5, 0x5E, 0)


def test_learning_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves"
    history = nn.History([nn.EpochRecord(i, 2 / i, 1 - 0.5 / i, 2.2 / i, 1 - 0.6 / i, 1.0) for i in (1, 2, 3)],
                         [2 / i for i in range(1, 31)])
    nn.plot_learning_curves(history, path, title="a title")
    pixels = picture(path)
    assert min(pixels.shape[:2]) > 400
    halves = np.array_split(pixels, 2, axis=1)
    for half in halves:  # the loss and the accuracy
        assert has_colour(half, TRAIN)
        assert has_colour(half, TEST)

    untested = nn.History([nn.EpochRecord(1, 0.5, 0.8, None, None, 1.0)], [0.5])
    nn.plot_learning_curves(untested, path)
    assert has_colour(picture(path), TRAIN)
    assert not has_colour(picture(path), TEST)
    with pytest.raises(ValueError, match="history must have at least one epoch"):
        nn.plot_learning_curves(nn.History(), path)


def test_filters(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, rng = tmp_path / "filters.png", np.random.default_rng(0)
    before = np.linspace(-0.01, 0.01, 25).reshape(1, 1, 5, 5).repeat(30, axis=0)
    after = rng.standard_normal((30, 1, 5, 5))
    nn.plot_filters(before, after, path)
    left, right = np.array_split(picture(path)[60:, :, 0], 2, axis=1)  # below the headings
    for half in (left, right):  # a hundredth of the weight has as much black and white
        assert (half < 0.01).mean() > 0.01
        assert 0.2 < half.std() < 0.5
    # the left filters are steps from black to white, all alike; the right ones are not
    greys = [len(np.unique(np.round(half * 255))) for half in (left, right)]
    assert 25 <= greys[0] < greys[1]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 2, 3, 5), (10, 3, 7, 7)])
def test_filters_of_other_shapes(shape: tuple[int, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    nn.plot_filters(np.zeros(shape), rng.standard_normal(shape), tmp_path / "filters.png")
    pixels = picture(tmp_path / "filters.png")[..., :3]
    assert pixels.std() > 0.05
    assert bool(np.ptp(pixels, axis=-1).any()) == (shape[1] == 3)  # three channels are colours


def test_filters_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="before and after must have the same shape"):
        nn.plot_filters(np.zeros((3, 1, 5, 5)), np.zeros((3, 1, 3, 3)), tmp_path / "filters.png")


def test_a_grid_of_filters(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rng, path = np.random.default_rng(0), tmp_path / "grid.png"
    for shape in ((1, 1, 1, 1), (6, 1, 5, 5), (96, 3, 11, 11), (10, 2, 3, 3)):
        nn.plot_filter_grid(rng.standard_normal(shape), path, title="filters")
        pixels = picture(path)[..., :3]
        assert bool(np.ptp(pixels, axis=-1).any()) == (shape[1] == 3)  # three channels are colours
    nn.plot_filter_grid(np.array([0.5, 0, -1]).reshape(3, 1, 1, 1), path)
    for grey in (0.75, 0.5, 0):  # one scale for all, with zero in the middle
        assert has_colour(picture(path), (round(grey * 255),) * 3)
    with pytest.raises(ValueError, match=r"filters must have the shape \(K, C, KH, KW\), got \(3, 3\)"):
        nn.plot_filter_grid(np.ones((3, 3)), path)


def test_feature_maps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, x = tmp_path / "maps.png", bars(1, 0)[0]
    network = nn.SimpleConvNet(**SMALL, weight_init_std=None, seed=0)
    made = network.activations(x)
    assert list(made) == list(network.layers)
    np.testing.assert_array_equal(made["Affine2"], network.predict(x))
    assert made["Pool1"].shape == (1, 3, 4, 4)
    nn.plot_feature_maps(network, x[0], path, title="an image")
    pixels = picture(path)
    assert has_colour(pixels, TRAIN)  # the bars of the probabilities
    assert pixels.shape[0] > 500
    colours = nn.Sequential([nn.Conv2d(3, 12, 3, seed=0), nn.Relu()], (3, 9, 9))
    nn.plot_feature_maps(colours, np.random.default_rng(0).random((3, 9, 9)), path, maps=4)
    assert np.ptp(picture(path)[..., :3], axis=-1).any()
    with pytest.raises(ValueError, match=r"x must have the shape \(N, 3, 9, 9\), got \(1, 3, 9, 8\)"):
        nn.plot_feature_maps(colours, np.ones((3, 9, 8)), path)


# --- real digits ----------------------------------------------------------------------------------------------------

MNIST = Path(os.environ.get("FASTCONV_MNIST") or Path(__file__).parents[2] / "shared" / "data" / "mnist")


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no MNIST files: {MNIST} (FASTCONV_MNIST) is not there")
def test_97_percent_of_mnist() -> None:
    data = nn.load_mnist(MNIST, seed=0)
    x_train, t_train = data.x_train[:8000], data.t_train[:8000]
    x_test, t_test = data.x_test[:2000], data.t_test[:2000]
    assert (len(x_train), len(x_test)) == (8000, 2000)
    network = nn.SimpleConvNet(weight_init_std=None, seed=0)
    optimizer = nn.Adam(0.002)
    trainer = nn.Trainer(network, optimizer, batch_size=50, seed=0)
    trainer.fit(x_train, t_train, x_test, t_test, epochs=4)
    optimizer.lr /= 4  # settles down: rounding, which differs between CPUs, must not decide
    history = trainer.fit(x_train, t_train, x_test, t_test, epochs=2)
    assert history.epochs[-1].test_accuracy >= 0.97
