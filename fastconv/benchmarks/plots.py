"""Pictures of records, written as PNG files. Needs matplotlib, which is imported when it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..nn._extras import require
from . import peers
from .report import best_peer, grouped, ratio
from .study import pareto

Record = dict[str, Any]

# Colours that stay apart for the colour-blind and in grey (Okabe and Ito).
BLUE, ORANGE, GREEN, SKY, RED, PURPLE, YELLOW = \
    "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC3311", "#CC79A7", "#E69F00"
ALGORITHM_COLOURS = {"direct": BLUE, "im2col": ORANGE, "implicit_gemm": GREEN, "winograd": PURPLE}
BACKEND_MARKERS = {"cython": "o", "numba": "^", "numpy": "s"}
SHORT = {"forward": "fwd", "backward": "bwd", "backward_data": "bwd data", "backward_weight": "bwd weight"}


def _figure(width: float, height: float) -> Any:
    """A figure that is drawn without a display, and beside the caller's own."""
    figure = require("matplotlib.figure", "drawing").Figure(figsize=(width, height), layout="constrained")
    require("matplotlib.backends.backend_agg", "drawing").FigureCanvasAgg(figure)
    return figure


def _plain_numbers(axis: Any) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written as numbers are."""
    ticker = require("matplotlib.ticker", "drawing")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25, which="major")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# --- fastconv bench ---------------------------------------------------------------------------------------------------


def plot_bench(records: Sequence[Record], ceilings: Sequence[Record], path: Path, *, title: str = "") -> None:
    """For each number of threads: how fastconv compares on every layer, and the roofline of the convolutions.

    Parameters
    ----------
    records : sequence of dict
        As :class:`fastconv.benchmarks.rows.Row` gives them.
    ceilings : sequence of dict
        ``threads``, and the multiply-add and copy rates by ``float32``, ``float64`` and ``copy``.
    path : path
        The file.
    title : str
        Above everything.
    """
    by_threads = grouped(records, "threads")
    rows = {threads: grouped(group, "operation", "layer", "dtype") for (threads,), group in by_threads.items()}
    height = max(5.5, 0.21 * max(map(len, rows.values()), default=1) + 1.8)
    figure = _figure(8 * max(len(rows), 1) + 1, height + 5.5)
    if title:
        figure.suptitle(title)
    axes = figure.subplots(2, max(len(rows), 1), squeeze=False, height_ratios=[height, 5.5])
    for column, (threads, groups) in enumerate(rows.items()):
        numbers = {key: i for i, key in enumerate(groups, 1)}
        several_dtypes = len({dtype for _, _, dtype in groups}) > 1
        _ratios(axes[0][column], groups, numbers, several_dtypes)
        axes[0][column].set_title(f"{threads} thread{'s' if threads > 1 else ''}: how many times as fast as the best peer")
        of_machine = next((entry for entry in ceilings if entry["threads"] == threads), {})
        _roofline(axes[1][column], groups, numbers, of_machine)
    figure.savefig(path, format="png", dpi=110)


def _ratios(axes: Any, groups: dict[tuple[Any, ...], list[Record]], numbers: dict[tuple[Any, ...], int],
            several_dtypes: bool) -> None:
    ticker = require("matplotlib.ticker", "drawing")
    labels = []
    for key, group in groups.items():
        operation, layer, dtype = key
        quotient, best, y = ratio(group), best_peer(group), numbers[key]
        labels.append(f"{layer}, {SHORT.get(operation, operation)}{f', {dtype}' if several_dtypes else ''}  {y}")
        if quotient is None or best is None:
            axes.text(1, y, " no peer", va="center", fontsize=7, color="0.5")
            continue
        # From 1, where both are as fast: to the right fastconv is faster.
        axes.barh(y, quotient - 1, left=1, height=0.7, color=BLUE if quotient >= 1 else ORANGE)
        name = peers.title(best["contender"]).replace("\n", " ")
        axes.text(max(quotient, 1) * 1.03, y, f"{quotient:.2f}  ({name})", va="center", fontsize=7)
    quotients = [q for q in map(ratio, groups.values()) if q is not None] or [1.0]
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(0.45, min(quotients) / 1.15), max(6.0, max(quotients) * 5))
    axes.axvline(1, color="0.2", linewidth=1)
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(list(numbers.values()), labels, fontsize=7)
    axes.set_ylim(len(groups) + 0.6, 0.4)
    axes.set_xlabel("time of the best peer (named behind the bar) / time of fastconv; right of 1 fastconv is faster")
    _plain(axes)
    axes.grid(axis="y", visible=False)


def _roofline(axes: Any, groups: dict[tuple[Any, ...], list[Record]], numbers: dict[tuple[Any, ...], int],
              ceilings: Record) -> None:
    points = []
    for key, group in groups.items():
        for record, ours in ((next((r for r in group if r["contender"] == peers.AUTO), None), True),
                             (best_peer(group), False)):
            if record is not None and record["seconds"] is not None and record["flops"]:
                points.append((record["flops"] / record["bytes"], record["flop_rate"] / 1e9, ours, numbers[key]))
    axes.set(xscale="log", yscale="log", xlabel="flops for each byte that must be read or written",
             ylabel="GFLOP/s (by the definition of a convolution)")
    axes.set_title("roofline of the convolutions; the numbers are those of the bars above", fontsize="medium")
    _plain(axes)
    if not points:
        axes.text(0.5, 0.5, "no convolutions in this run", ha="center", transform=axes.transAxes, color="0.5")
        return
    for ours, colour, marker, label in ((False, ORANGE, "D", "best peer"), (True, BLUE, "o", "fastconv")):
        of_kind = [point for point in points if point[2] is ours]
        axes.plot([p[0] for p in of_kind], [p[1] for p in of_kind], marker, color=colour, markersize=5,
                  fillstyle="full" if ours else "none", label=label)
    for x, y, ours, number in points:
        if ours:
            axes.annotate(str(number), (x, y), (4, -3), textcoords="offset points", fontsize=6.5)
    lo, hi = min(p[0] for p in points) / 2, max(p[0] for p in points) * 2
    low, high = min(p[1] for p in points) / 2, max(p[1] for p in points) * 1.6
    bandwidth = ceilings.get("copy")
    dtypes = [dtype for dtype in ("float32", "float64") if any(key[2] == dtype for key in groups)]
    for dtype, style in zip(dtypes, ("-", "--"), strict=False):
        peak = ceilings.get(dtype)
        if peak is None:
            continue
        peak /= 1e9
        high = max(high, 1.6 * peak)
        if bandwidth is None:
            axes.plot([lo, hi], [peak, peak], style, color="0.3")
        else:
            knee = peak / (bandwidth / 1e9)
            lo = start = min(lo, knee / 8)
            axes.plot([start, knee, max(hi, 2 * knee)], [start * bandwidth / 1e9, peak, peak], style, color="0.3",
                      linewidth=1.2)
            if style == "-":
                middle = (lo * knee) ** 0.5
                axes.text(middle, middle * bandwidth / 1e9 * 1.12, f"memory, copying: {bandwidth / 1e9:.0f} GB/s",
                          ha="center", va="bottom", fontsize=8, rotation_mode="anchor",
                          rotation=math.degrees(math.atan(bandwidth / 1e9)),  # the line's, where axes are linear
                          transform_rotates_text=True)
        axes.text(max(lo, 0.0 if bandwidth is None else 1.1 * knee), peak * 1.04, f"{dtype} multiply-adds: {peak:.0f} GFLOP/s",
                  va="bottom", fontsize=8)
    axes.set(xlim=(lo, hi * 1.2), ylim=(low, high))
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.legend(loc="lower right", frameon=False)


# --- fastconv profile -------------------------------------------------------------------------------------------------


def plot_profile(costs: Sequence[Record], curves: dict[str, list[Record]], path: Path, *, title: str,
                 batch: int | None = None) -> None:
    """Time against memory with the Pareto front, and memory against what was varied.

    Parameters
    ----------
    costs : sequence of dict
        For each engine ``backend``, ``algorithm``, ``seconds`` and ``measured_bytes``.
    curves : dict of str to list of dict
        For each thing that was varied ("batch size", ...) records with ``value``, ``backend``, ``algorithm``,
        ``predicted_bytes`` and ``measured_bytes`` (None where it was not run).
    path : path
        The file.
    title : str
        What was measured.
    batch : int, optional
        The batch size that the first picture is for.
    """
    rows = -(-(1 + len(curves)) // 2)
    figure = _figure(14, 5.4 * rows + 0.4)
    figure.suptitle(title)
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    _costs(axes[0], [record for record in costs if record["seconds"] is not None], batch)
    for panel, (what, records) in zip(axes[1:], curves.items(), strict=False):
        _curves(panel, what, records)
    for panel in axes[1 + len(curves):]:
        panel.set_axis_off()
    figure.savefig(path, format="png", dpi=120)


def _style(record: Record) -> dict[str, Any]:
    return {"color": ALGORITHM_COLOURS.get(record["algorithm"], YELLOW),
            "marker": BACKEND_MARKERS.get(record["backend"], "D")}


def _mb(nbytes: float) -> float:
    """Bytes in MB, at least one kilobyte: the axis is logarithmic."""
    return max(nbytes, 1e3) / 1e6


def _costs(axes: Any, records: Sequence[Record], batch: int | None) -> None:
    points = [(_mb(record["measured_bytes"]), record["seconds"] * 1e3) for record in records]
    front = [points[i] for i in pareto(points)]
    axes.set(xscale="log", yscale="log", xlabel="scratch memory of one call, measured (MB)", ylabel="time of one call (ms)")
    axes.set_title("time against memory" + (f", batch size {batch}" if batch else ""), fontsize="medium")
    _plain(axes)
    if not points:
        axes.text(0.5, 0.5, "nothing was run", ha="center", transform=axes.transAxes, color="0.5")
        return
    x, y = [p[0] for p in points], [p[1] for p in points]
    xlim, ylim = (min(x) / 3, max(x) * 12), (min(y) / 2, max(y) * 2)
    # To the right of the front and above it everything is worse in both.
    steps = [(front[0][0], ylim[1])]
    for before, after in zip(front, [*front[1:], (xlim[1], front[-1][1])], strict=True):
        steps += [before, (after[0], before[1])]
    axes.plot([p[0] for p in steps], [p[1] for p in steps], color="0.6", linewidth=1, zorder=1,
              label="Pareto front: nothing is better in both")
    axes.set(xlim=xlim, ylim=ylim)
    for record, (a, b) in zip(records, points, strict=True):
        axes.plot(a, b, markersize=8, **_style(record))
    _label(axes, [f"{record['backend']} {record['algorithm']}" for record in records], points)
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.legend(loc="upper right", frameon=False, fontsize=8)


def _label(axes: Any, texts: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Write a text beside each point, where it covers neither another text nor another point."""
    figure = axes.figure
    figure.canvas.draw()  # settles the layout, which the positions depend on
    point = figure.dpi / 72
    centres = axes.transData.transform(points)
    taken = [(x - 5 * point, y - 5 * point, x + 5 * point, y + 5 * point) for x, y in centres]
    for text, at, (x, y) in zip(texts, points, centres, strict=True):
        width, height = 4.6 * point * len(text), 9 * point
        places = [(8, 3, "left"), (8, -11, "left"), (-8, 3, "right"), (-8, -11, "right"), (8, 14, "left"), (8, -22, "left")]
        for right, up, align in places:
            left = x + right * point - (width if align == "right" else 0)
            bottom = y + up * point
            box = left, bottom, left + width, bottom + height
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                break
        taken.append(box)
        axes.annotate(text, at, (right, up), textcoords="offset points", fontsize=8, ha=align)


def _curves(axes: Any, what: str, records: Sequence[Record]) -> None:
    ticker = require("matplotlib.ticker", "drawing")
    for (backend, algorithm), group in grouped(records, "backend", "algorithm").items():
        group = sorted((r for r in group if r["predicted_bytes"] is not None), key=lambda record: record["value"])
        if not group:
            continue
        style = _style(group[0])
        line = {"linestyle": "-" if backend == "cython" else "--" if backend == "numpy" else ":", "color": style["color"]}
        axes.plot([r["value"] for r in group], [_mb(r["predicted_bytes"]) for r in group], **line)
        run = [r for r in group if r["measured_bytes"] is not None]
        axes.plot([r["value"] for r in run], [_mb(r["measured_bytes"]) for r in run], markersize=7, **style | {"linestyle": ""})
        axes.plot([], [], label=f"{backend} {algorithm}", markersize=6, **style | line)
    values = sorted({record["value"] for record in records})
    sizes = {record["value"]: _mb(record["input_bytes"]) for record in records}
    axes.plot(values, [sizes[value] for value in values], color="0.6", linewidth=1, label="the image itself")
    axes.set(yscale="log", xlabel=what, ylabel="scratch memory of one call (MB)")
    _plain_numbers(axes.yaxis)
    if len(values) > 1 and values[-1] >= 16 * values[0]:
        axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_title(f"memory against {what}: lines predicted, marks measured", fontsize="medium")
    _plain(axes)
    axes.legend(frameon=False, fontsize=8)


