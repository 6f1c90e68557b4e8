"""Train a small network on handwritten digits, compare a training step with im2col in NumPy, and draw pictures.

The data are scikit-learn's digits of 8x8 pixels, or with --data the files of MNIST, Fashion-MNIST or the like.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._command import FAILED, OK, CommandError, describe, natural_int, positive_float, positive_int

if TYPE_CHECKING:  # imported when the command runs: the list of commands must not wait for it
    from ..nn.datasets import Dataset
    from ..nn.models import SimpleConvNet

SUMMARY = "train a network on handwritten digits, and draw its learning curves and filters"

CURVES, FILTERS = "learning_curves.png", "filters.png"

#: Each figure of the comparison is the median of this many steps.
ROUNDS, STEPS_PER_ROUND = 7, 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder with the IDX files of MNIST or Fashion-MNIST, gzipped or not "
        "(default: the digits that scikit-learn brings along)")
    add("--out", type=Path, metavar="DIR", default=Path("fastconv-demo"),
        help=f"folder for {CURVES} and {FILTERS}, made if need be (default: %(default)s)")
    add("--epochs", type=positive_int, metavar="N", default=15, help="(default: %(default)s)")
    add("--batch-size", type=positive_int, metavar="N", default=50, help="(default: %(default)s)")
    add("--train-size", type=positive_int, metavar="N", help="train on only so many of the images (default: all)")
    add("--optimizer", choices=("sgd", "momentum", "adam"), default="adam", help="(default: %(default)s)")
    add("--lr", type=positive_float, metavar="X", default=0.003, help="learning rate (default: %(default)s)")
    add("--seed", type=natural_int, metavar="N", default=0,
        help="of the split, the initial weights and the mini-batches (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Check everything that was asked for, then train, compare and draw."""
    job = _prepare(args)
    from .. import nn

    data, network = job.data, job.build(nn.SimpleConvNet)
    initial = {name: p.copy() for name, p in network.params.items()}
    optimizer = job.make_optimizer()
    print(f"{len(data.x_train):,} images to train on, {len(data.x_test):,} to test on, "
          f"{'x'.join(map(str, data.x_train.shape[2:]))} pixels, {data.classes} classes ({job.source})")
    print(f"network: {_summary(network)}")
    trainer = nn.Trainer(network, optimizer, batch_size=args.batch_size, seed=args.seed)
    try:
        history = trainer.fit(*data, epochs=args.epochs, progress=nn.terminal_progress())
    except FloatingPointError as error:
        raise CommandError(f"{error} (--lr {args.lr:g})", FAILED) from error

    # With the initial weights: the gradients of a network that makes no more mistakes are mostly rounding.
    result = compare_training_step(job.build, job.make_optimizer, initial, data.x_train[:args.batch_size],
                                   data.t_train[:args.batch_size])
    print(result)
    nn.plot_learning_curves(history, job.out / CURVES, title=f"SimpleConvNet on {job.name}")
    nn.plot_filters(initial["W1"], network.params["W1"], job.out / FILTERS)
    print(f"wrote {job.out / CURVES} and {job.out / FILTERS}")
    print(f"test accuracy {history.epochs[-1].test_accuracy:.2%}")
    if not result.same:
        raise CommandError("the two ways gave different gradients: please report this, with the output of "
                           "fastconv info", FAILED)
    return OK


# --- before the training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A request that was found good."""

    data: Dataset
    source: str
    name: str
    build: Callable[..., Any]
    make_optimizer: Callable[[], Any]
    out: Path


def _prepare(args: argparse.Namespace) -> _Job:
    """Load and check all that the training, the comparison and the pictures need, or raise CommandError."""
    from ..nn._extras import require
    from ..nn.datasets import Dataset, load_digits, load_mnist
    from ..nn.models import SimpleConvNet
    from ..nn.train import OPTIMIZERS

    try:
        require("rich", "fastconv demo")
        require("matplotlib", "fastconv demo")
        data = load_digits(seed=args.seed) if args.data is None else load_mnist(args.data, seed=args.seed)
    except ImportError as error:
        raise CommandError(describe(error)) from error
    except (OSError, ValueError) as error:
        raise CommandError(f"argument --data: {describe(error)}") from error
    if args.train_size is not None:
        if args.train_size > len(data.x_train):
            raise CommandError(f"argument --train-size: there are {len(data.x_train)} images to train on, "
                               f"got {args.train_size}")
        data = Dataset(data.x_train[:args.train_size], data.t_train[:args.train_size], data.x_test, data.t_test)
    if args.batch_size > len(data.x_train):
        raise CommandError(f"argument --batch-size: there are {len(data.x_train)} images to train on, "
                           f"got {args.batch_size}")

    # The book's filters of 5x5 on MNIST's 28x28 pixels would leave little of 8x8.
    small = min(data.x_train.shape[2:]) < 12
    arguments = {
        "input_dim": data.x_train.shape[1:],
        "conv_param": {"filter_num": 30, "filter_size": 3 if small else 5, "pad": 1 if small else 0, "stride": 1},
        # Small enough that the filters become something else than they were, large enough to learn from the start.
        "output_size": data.classes, "weight_init_std": 0.1 if small else 0.03, "seed": args.seed,
    }

    def build(kind: type[SimpleConvNet], **more: Any) -> SimpleConvNet:
        return kind(**{**arguments, **more})

    try:
        build(SimpleConvNet).predict(data.x_train[:1])
    except (ValueError, ImportError) as error:  # images of a single pixel, or a setting in the environment
        raise CommandError(describe(error)) from error
    _check_folder(args.out)
    source, name = (str(args.data), args.data.resolve().name) if args.data else ("scikit-learn's digits",) * 2
    return _Job(data, source, name, build, lambda: OPTIMIZERS[args.optimizer](args.lr), args.out)


def _check_folder(folder: Path) -> None:
    """Make the folder and see whether the pictures can be written there; leave no file behind."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CURVES, FILTERS):
            path = folder / name
            is_new = not path.exists()
            with open(path, "ab"):  # appending leaves a picture of an earlier run as it is
                pass
            if is_new:
                path.unlink()
    except OSError as error:
        raise CommandError(f"argument --out: {describe(error)}") from error


def _summary(network: SimpleConvNet) -> str:
    filters, _, height, width = network.params["W1"].shape
    parameters = sum(p.size for p in network.params.values())
    return (f"conv {filters} {height}x{width} - relu - max pool 2x2 - affine {len(network.params['b2'])} - relu - "
            f"affine {len(network.params['b3'])} - softmax, {parameters:,} parameters")


# --- the comparison ---------------------------------------------------------------------------------------------------

#: How far the gradients of the two ways may be apart, as the norm of their difference over their norm. float64 is the
#: proof. float32 is what is timed: there rounding (1e-6 or so) may also decide which of two nearly equal cells is the
#: larger one, and the gradient of that window then goes to another cell.
TOLERANCE = {"float64": 1e-10, "float32": 1e-3}


@dataclass(frozen=True)
class Comparison:
    """One training step with fastconv's layers and with im2col in NumPy."""

    batch_size: int
    seconds: float
    im2col_seconds: float
    difference: dict[str, float]

    @property
    def same(self) -> bool:
        """Whether both gave the same gradients."""
        return all(self.difference[dtype] <= limit for dtype, limit in TOLERANCE.items())

    def __str__(self) -> str:
        apart = ", ".join(f"{value:.0e} in {dtype}" for dtype, value in self.difference.items())
        return (f"one training step (batch of {self.batch_size}): fastconv {self.seconds * 1e3:.2f} ms, "
                f"im2col in NumPy {self.im2col_seconds * 1e3:.2f} ms, "
                f"{self.im2col_seconds / self.seconds:.1f} times as fast, "
                f"{'the same' if self.same else 'DIFFERENT'} gradients ({apart} apart)")


def compare_training_step(build: Callable[..., Any], make_optimizer: Callable[[], Any], weights: dict[str, Any],
                          x: Any, t: Any) -> Comparison:
    """Time a step (forward, backward, update) of the same network with both kinds of layers.

    Both start every step from the same `weights`, in float32. They take turns; the first step of a turn is not counted,
    because threads of the other one may still be spinning, and its data are in the cache. The figures are medians.
    """
    from ..nn.models import SimpleConvNet
    from ..nn.numpy_layers import Im2colConvNet

    kinds = (SimpleConvNet, Im2colConvNet)
    difference = {}
    for dtype in TOLERANCE:
        gradients = []
        for kind in kinds:
            network = build(kind, dtype=dtype)
            _set_weights(network, weights)
            gradients.append(network.gradient(x.astype(dtype), t))
        difference[dtype] = _distance(*gradients)

    contestants = [(build(kind), make_optimizer()) for kind in kinds]
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for which in ((0, 1), (1, 0))[turn % 2]:
            network, optimizer = contestants[which]
            for step in range(STEPS_PER_ROUND + 1):
                _set_weights(network, weights)
                began = time.perf_counter()
                _, gradient = network.loss_and_gradient(x, t)
                optimizer.update(network.params, gradient)
                if step:
                    seconds[which].append(time.perf_counter() - began)
    return Comparison(len(x), statistics.median(seconds[0]), statistics.median(seconds[1]), difference)


def _set_weights(network: SimpleConvNet, weights: dict[str, Any]) -> None:
    for name, value in weights.items():
        network.params[name][...] = value


def _distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest relative difference of two gradients, over the parameters."""
    import numpy as np

    return max(float(np.linalg.norm(one[name] - other[name]) / max(np.linalg.norm(other[name]), np.finfo(float).tiny))
               for name in other)
