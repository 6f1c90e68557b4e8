"""Training: optimizers, the loop over epochs and mini-batches, its history, and how progress is shown."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from ..geometry import as_int
from .layers import Array, Seed

__all__ = ["OPTIMIZERS", "SGD", "Adam", "EpochRecord", "History", "Momentum", "Network", "Optimizer", "Progress",
           "RichProgress", "TextProgress", "Trainer", "terminal_progress"]


# --- optimizers -----------------------------------------------------------------------------------------------------


class Optimizer(Protocol):
    """What the training loop needs of an optimizer."""

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Change every array of `params` in place, by its gradient of the same name in `grads`."""


def _checked(name: str, value: float, low: float, high: float = math.inf, *, with_low: bool = False) -> float:
    """Return `value` as a Python float, which leaves the dtype of the arrays that it meets as it is."""
    number = float(value)
    if not (low <= number if with_low else low < number) or not number < high:
        raise ValueError(f"{name} must be {'at least' if with_low else 'above'} {low:g} and "
                         f"{'finite' if math.isinf(high) else f'below {high:g}'}, got {value!r}")
    return number


class SGD:
    """Stochastic gradient descent, ``p -= lr * g``."""

    def __init__(self, lr: float = 0.01) -> None:
        self.lr = _checked("lr", lr, 0)

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Take one step."""
        for name, p in params.items():
            p -= self.lr * grads[name]


class Momentum:
    """Gradient descent with a velocity, ``v = momentum * v - lr * g; p += v``."""

    def __init__(self, lr: float = 0.01, momentum: float = 0.9) -> None:
        self.lr = _checked("lr", lr, 0)
        self.momentum = _checked("momentum", momentum, 0, 1, with_low=True)
        self._v: dict[str, Array] = {}

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Take one step."""
        for name, p in params.items():
            v = self._v.setdefault(name, np.zeros_like(p))
            v *= self.momentum
            v -= self.lr * grads[name]
            p += v


class Adam:
    """Adam (Kingma and Ba 2015), in the order of its section 2 that the book uses too.

    ``m += (1-beta1) * (g - m); v += (1-beta2) * (g*g - v); p -= lr_t * m / (sqrt(v) + eps)`` with
    ``lr_t = lr * sqrt(1 - beta2**t) / (1 - beta1**t)``.
    """

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, *, eps: float = 1e-7) -> None:
        self.lr = _checked("lr", lr, 0)
        self.beta1 = _checked("beta1", beta1, 0, 1, with_low=True)
        self.beta2 = _checked("beta2", beta2, 0, 1, with_low=True)
        self.eps = _checked("eps", eps, 0)
        self._steps = 0
        self._m: dict[str, Array] = {}
        self._v: dict[str, Array] = {}

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Take one step."""
        self._steps += 1
        rate = self.lr * math.sqrt(1 - self.beta2 ** self._steps) / (1 - self.beta1 ** self._steps)
        for name, p in params.items():
            g = grads[name]
            m = self._m.setdefault(name, np.zeros_like(p))
            v = self._v.setdefault(name, np.zeros_like(p))
            m += (1 - self.beta1) * (g - m)
            v += (1 - self.beta2) * (g * g - v)
            p -= rate * m / (np.sqrt(v) + self.eps)


#: The optimizers by the name that the command line has for them.
OPTIMIZERS: dict[str, Any] = {"sgd": SGD, "momentum": Momentum, "adam": Adam}


# --- history --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to; the test figures are None where there was nothing to test on."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    seconds: float

    def __str__(self) -> str:
        text = f"loss {self.train_loss:.4f}  accuracy {self.train_accuracy:6.2%}"
        if self.test_loss is not None:
            text += f"  test loss {self.test_loss:.4f}  test accuracy {self.test_accuracy:6.2%}"
        return f"{text}  {self.seconds:.1f} s"


@dataclass
class History:
    """All epochs of a training, and the loss of every mini-batch."""

    epochs: list[EpochRecord] = field(default_factory=list)
    step_loss: list[float] = field(default_factory=list)

    def column(self, name: str) -> list[Any]:
        """Return one field of all epochs, for example ``column("test_accuracy")``."""
        return [getattr(record, name) for record in self.epochs]


# --- progress -------------------------------------------------------------------------------------------------------


class Progress:
    """How a training is shown: this base class shows nothing. The loop calls the methods in the order they are in."""

    def start(self, first: int, last: int, steps: int) -> None:
        """Training begins: the epochs from `first` to `last`, of so many mini-batches each."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A mini-batch is done."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""

    def stop(self) -> None:
        """Training is over, or broke off."""


class TextProgress(Progress):
    """One line of text for each epoch: for pipes, files and logs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._last = 0

    def start(self, first: int, last: int, steps: int) -> None:
        self._last = last

    def _line(self, record: EpochRecord) -> str:
        return f"epoch {record.epoch:{len(str(self._last))}}/{self._last}  {record}"

    def epoch(self, record: EpochRecord) -> None:
        print(self._line(record), file=self._stream, flush=True)


class RichProgress(TextProgress):
    """A bar that moves with the mini-batches, below one line for each epoch: for terminals. Needs rich."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(file=self._stream, highlight=False)
        # Transient: the epochs' lines stay, the bar goes.
        self._bar = Bar(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
                        TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.4f}"), console=self._console,
                        transient=True)

    def start(self, first: int, last: int, steps: int) -> None:
        super().start(first, last, steps)
        self._task = self._bar.add_task(f"epoch {first}/{last}", total=(last - first + 1) * steps, loss=math.nan)
        self._bar.start()

    def step(self, epoch: int, step: int, loss: float) -> None:
        self._bar.update(self._task, advance=1, description=f"epoch {epoch}/{self._last}", loss=loss)

    def epoch(self, record: EpochRecord) -> None:
        self._console.print(self._line(record), markup=False, soft_wrap=True)

    def stop(self) -> None:
        self._bar.stop()


def terminal_progress(stream: TextIO | None = None) -> Progress:
    """Return a bar where `stream` (by default, standard output) is a terminal and rich is installed, otherwise text."""
    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        try:
            return RichProgress(stream)
        except ImportError:
            pass
    return TextProgress(stream)


# --- the loop -------------------------------------------------------------------------------------------------------


class Network(Protocol):
    """What the training loop needs of a network."""

    params: dict[str, Array]

    def loss_and_gradient(self, x: Array, t: Array) -> tuple[float, dict[str, Array]]:
        """Return the mean loss of a batch, and its gradient by the names of `params`."""

    def evaluate(self, x: Array, t: Array, batch_size: int = 100) -> tuple[float, float]:
        """Return the mean loss and the accuracy of many images."""


def _check_finite(loss: float, when: str) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss} in {when}: the training diverged; a smaller learning rate "
                                 "may help")


class Trainer:
    """Trains a network on mini-batches.

    Parameters
    ----------
    network : Network
        For example a :class:`fastconv.nn.SimpleConvNet`.
    optimizer : Optimizer, optional
        By default ``Adam()``.
    batch_size : int
        Images in a mini-batch. The last one of an epoch has what is left.
    seed : int, numpy.random.Generator or None
        Where the order of the images comes from, which is another one in each epoch.
    evaluate_samples : int, optional
        How many of the training images the training loss and accuracy of an epoch are measured on, after it, as the
        test figures are; None for all.

    Attributes
    ----------
    history : History
        It goes on where `fit` is called again.
    """

    def __init__(self, network: Network, optimizer: Optimizer | None = None, *, batch_size: int = 100,
                 seed: Seed = None, evaluate_samples: int | None = 1000) -> None:
        self.network = network
        self.optimizer: Optimizer = Adam() if optimizer is None else optimizer
        self.batch_size = as_int("batch_size", batch_size, 1)
        self.evaluate_samples = (None if evaluate_samples is None
                                 else as_int("evaluate_samples", evaluate_samples, 1))
        self.history = History()
        self._rng = np.random.default_rng(seed)

    def fit(self, x_train: npt.ArrayLike, t_train: npt.ArrayLike, x_test: npt.ArrayLike | None = None,
            t_test: npt.ArrayLike | None = None, *, epochs: int = 10, progress: Progress | None = None) -> History:
        """Train for some epochs and return the history.

        Parameters
        ----------
        x_train, t_train, x_test, t_test : array_like
            Images and labels; without the last two nothing is tested.
        epochs : int
        progress : Progress, optional
            How to show it, for example :func:`terminal_progress`; by default not at all.

        Raises
        ------
        FloatingPointError
            Where the loss is no longer finite: the training diverged.
        """
        x, t = np.asarray(x_train), np.asarray(t_train)
        if len(x) != len(t) or not len(x):
            raise ValueError(f"x_train and t_train must have the same length of at least 1, got {len(x)} and {len(t)}")
        if (x_test is None) != (t_test is None):
            raise ValueError("x_test and t_test go together: one of them was not given")
        test = None if x_test is None or t_test is None else (np.asarray(x_test), np.asarray(t_test))
        epochs = as_int("epochs", epochs, 1)
        progress = Progress() if progress is None else progress

        first = len(self.history.epochs) + 1
        progress.start(first, first + epochs - 1, -(-len(x) // self.batch_size))
        try:
            # What overflows shows as a loss that is not finite, and is reported once, by an exception.
            with np.errstate(over="ignore", invalid="ignore"):
                for epoch in range(first, first + epochs):
                    progress.epoch(self._run_epoch(epoch, x, t, test, progress))
        finally:
            progress.stop()
        return self.history

    def _run_epoch(self, epoch: int, x: Array, t: Array, test: tuple[Array, Array] | None,
                   progress: Progress) -> EpochRecord:
        began = time.perf_counter()
        order = self._rng.permutation(len(x))
        for step, start in enumerate(range(0, len(x), self.batch_size), start=1):
            chosen = order[start:start + self.batch_size]
            loss, grads = self.network.loss_and_gradient(x[chosen], t[chosen])
            _check_finite(loss, f"epoch {epoch}, step {step}")
            self.optimizer.update(self.network.params, grads)
            self.history.step_loss.append(loss)
            progress.step(epoch, step, loss)
        sample = slice(self.evaluate_samples)
        train_loss, train_accuracy = self.network.evaluate(x[sample], t[sample], self.batch_size)
        _check_finite(train_loss, f"epoch {epoch}")
        test_loss, test_accuracy = (None, None) if test is None else self.network.evaluate(*test, self.batch_size)
        record = EpochRecord(epoch, train_loss, train_accuracy, test_loss, test_accuracy,
                             time.perf_counter() - began)
        self.history.epochs.append(record)
        return record
