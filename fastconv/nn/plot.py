"""Pictures of a training, written as PNG files. Needs matplotlib, which is imported when it is used."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from ._extras import require
from .layers import Array, softmax
from .models import Network
from .train import History

__all__ = ["plot_feature_maps", "plot_filter_grid", "plot_filters", "plot_learning_curves"]

PathLike = str | os.PathLike[str]

# Two colours that stay apart for the colour-blind and in grey (Okabe and Ito).
_TRAIN, _TEST = "#0072B2", "#D55E00"


def _figure(width: float, height: float) -> Any:
    """Return a figure that draws with Agg: no display needed, and the caller's own pyplot figures are not touched."""
    figure = require("matplotlib.figure", "drawing").Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    require("matplotlib.backends.backend_agg", "drawing").FigureCanvasAgg(figure)
    return figure


def plot_learning_curves(history: History, path: PathLike, *, title: str = "") -> None:
    """Write the loss and the accuracy over the epochs, for training and test, as a PNG file.

    Parameters
    ----------
    history : History
        At least one epoch of it.
    path : path
        The file.
    title : str
        A line above the two curves.
    """
    if not history.epochs:
        raise ValueError("history must have at least one epoch")
    ticker = require("matplotlib.ticker", "drawing")
    figure = _figure(10, 4.2)
    loss, accuracy = figure.subplots(1, 2)
    if title:
        figure.suptitle(title)
    epochs = history.column("epoch")
    tested = history.epochs[-1].test_accuracy is not None

    steps = np.linspace(epochs[0] - 1, epochs[-1], len(history.step_loss) + 1)[1:]
    loss.plot(steps, history.step_loss, color=_TRAIN, alpha=0.25, linewidth=0.8, label="mini-batches")
    for axes, what in ((loss, "loss"), (accuracy, "accuracy")):
        axes.plot(epochs, history.column(f"train_{what}"), "o-", color=_TRAIN, markersize=3.5, label="training")
        if tested:
            axes.plot(epochs, history.column(f"test_{what}"), "s--", color=_TEST, markersize=3.5, label="test")
        axes.set(xlabel="epoch", ylabel=what, xlim=(epochs[0] - 1, epochs[-1] + 0.02 * len(epochs)))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    if max(history.step_loss) > 10 * min(history.step_loss):
        # What happens after the first epoch would otherwise lie flat on the ground.
        loss.set_yscale("log", nonpositive="clip")
        loss.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        loss.yaxis.set_minor_formatter(ticker.NullFormatter())
    loss.legend(frameon=False)
    accuracy.yaxis.set_major_formatter(ticker.PercentFormatter(xmax=1))
    accuracy.legend(frameon=False, loc="lower right")
    if tested:
        last = history.epochs[-1].test_accuracy
        accuracy.set_title(f"test accuracy after epoch {epochs[-1]}: {last:.2%}", fontsize="medium")
    figure.savefig(path, format="png", dpi=120)


def plot_filters(before: npt.ArrayLike, after: npt.ArrayLike, path: PathLike) -> None:
    """Write the filters of a first layer before and after training, side by side, as a PNG file.

    Each filter is scaled for itself, from its smallest weight in black to its largest in white: the weights before are
    much smaller than those after, and what training makes is the pattern.

    Parameters
    ----------
    before, after : array_like
        (K, C, KH, KW). Three channels are shown as red, green and blue, of any other number the first one.
    path : path
        The file.
    """
    before, after = np.asarray(before), np.asarray(after)
    if before.shape != after.shape or before.ndim != 4 or before.size == 0:
        raise ValueError(f"before and after must have the same shape (K, C, KH, KW), got {before.shape} and "
                         f"{after.shape}")
    columns = min(len(before), max(1, round(np.sqrt(len(before) * 1.25))))
    rows = -(-len(before) // columns)
    figure = _figure(max(2 * (0.7 * columns + 0.4), 4.8), 0.7 * rows + 0.5)
    for part, filters, name in zip(figure.subfigures(1, 2, wspace=0.08), (before, after), ("before", "after"),
                                   strict=True):
        part.suptitle(f"{name} training", fontsize="large")
        for index, axes in enumerate(part.subplots(rows, columns, squeeze=False).flat):
            if index < len(filters):
                axes.imshow(_as_picture(filters[index]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set(color="0.6", linewidth=0.6)  # where does a white edge end?
            else:
                axes.set_axis_off()
    figure.savefig(path, format="png", dpi=150)


def plot_filter_grid(filters: npt.ArrayLike, path: PathLike, *, title: str = "") -> None:
    """Write the filters of a layer as a grid of small pictures, a PNG file.

    All are on one scale, on which the middle grey is zero: what is brighter adds, what is darker takes away.

    Parameters
    ----------
    filters : array_like
        (K, C, KH, KW). Three channels are shown as red, green and blue, of any other number the first one.
    path : path
        The file.
    title : str
        A line above the grid.
    """
    filters = np.asarray(filters)
    if filters.ndim != 4 or filters.size == 0:
        raise ValueError(f"filters must have the shape (K, C, KH, KW), got {filters.shape}")
    largest = float(np.abs(filters).max()) or 1.0
    columns = min(len(filters), max(1, round(np.sqrt(len(filters) * 1.6))))
    rows = -(-len(filters) // columns)
    figure = _figure(max(0.8 * columns + 0.3, 3.5), 0.8 * rows + (0.7 if title else 0.3))
    if title:
        figure.suptitle(title)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if index < len(filters):
            picture = filters[index].transpose(1, 2, 0) if filters.shape[1] == 3 else filters[index, 0]
            axes.imshow(0.5 + 0.5 * picture / largest, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="0.6", linewidth=0.6)
        else:
            axes.set_axis_off()
    figure.savefig(path, format="png", dpi=150)


def plot_feature_maps(network: Network, image: npt.ArrayLike, path: PathLike, *, maps: int = 8, title: str = "") -> None:
    """Write what each layer of a network makes of one image, a row of feature maps for each layer, as a PNG file.

    Each map is scaled for itself. Layers behind the last one that makes images are left out, but for the scores, which
    are shown as probabilities in the last row.

    Parameters
    ----------
    network : Network
    image : array_like
        (C, H, W) of the network's input.
    path : path
        The file.
    maps : int
        How many maps of a layer are shown, the first ones.
    title : str
        A line above the pictures.
    """
    x = np.asarray(image)
    made = network.activations(x[None])
    shown = [("input", x[None]), *((name, out) for name, out in made.items() if out.ndim == 4)]
    columns = max(1, min(maps, max(out.shape[1] for _, out in shown)))
    scores = next(reversed(made.values()))
    bars = scores.ndim == 2
    figure = _figure(1.0 * columns + 1.6, 1.0 * len(shown) + (1.6 if bars else 0.2) + (0.5 if title else 0))
    if title:
        figure.suptitle(title)
    grid = figure.add_gridspec(len(shown) + bars, columns, height_ratios=[1] * len(shown) + [1.3] * bars)
    for row, (name, out) in enumerate(shown):
        for column in range(columns):
            axes = figure.add_subplot(grid[row, column])
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(f"{name}\n{'x'.join(map(str, out.shape[1:]))}", rotation=0, ha="right", va="center",
                                fontsize="small")
            if name == "input" and x.shape[0] == 3 and column == 0:
                axes.imshow(_as_picture(x), interpolation="nearest")
            elif column < out.shape[1] and not (name == "input" and x.shape[0] == 3):
                axes.imshow(_as_picture(out[0, column:column + 1]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                axes.axis("off")
    if bars:
        axes = figure.add_subplot(grid[len(shown), :])
        probabilities = softmax(scores)[0]
        axes.bar(np.arange(len(probabilities)), probabilities, color=_TRAIN)
        axes.set(xlabel="class", ylabel="probability", ylim=(0, 1))
        if len(probabilities) <= 20:
            axes.set_xticks(np.arange(len(probabilities)))
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)


def _as_picture(weights: Array) -> Array:
    """One filter (C, KH, KW) as values of 0 to 1, (KH, KW) or (KH, KW, 3)."""
    picture = weights.transpose(1, 2, 0) if len(weights) == 3 else weights[0]
    picture = picture.astype(np.float64)
    low, high = picture.min(), picture.max()
    return np.asarray((picture - low) / (high - low) if high > low else np.full_like(picture, 0.5))
