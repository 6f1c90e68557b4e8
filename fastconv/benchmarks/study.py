"""What each algorithm costs in memory and in time, on one layer or on all of a network's: the records of fastconv profile."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import dispatch
from ..options import backend_available, current, effective_threads, options
from . import footprint, peers
from .jobs import Job
from .layers import ConvLayer
from .machine import available_memory
from .timing import Samples, interleave

Record = dict[str, Any]

#: What a sweep varies, and what it takes if it is not told.
SWEEPS: dict[str, tuple[int, ...]] = {"batch": (1, 2, 4, 8, 16, 32), "stride": (1, 2, 3, 4), "kernel": (1, 3, 5, 7)}


@dataclass(frozen=True)
class Engine:
    """A backend and one of its algorithms."""

    backend: str
    algorithm: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.algorithm}"


def engines(direction: str, patterns: Iterable[str] = ("*",)) -> list[Engine]:
    """What the dispatch table has for a direction on the backends that are installed, by patterns (``cython-*``).

    Raises
    ------
    ValueError
        Where a pattern matches nothing.
    """
    found = [Engine(backend, algorithm) for backend in dispatch.BACKENDS if backend_available(backend)
             for algorithm in dispatch.algorithms(direction, backend)]
    patterns = tuple(patterns)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(str(engine), pattern) for engine in found):
            raise ValueError(f"no algorithm is called {pattern!r}; there are {', '.join(map(str, found))}")
    return [engine for engine in found if any(fnmatch.fnmatchcase(str(engine), pattern) for pattern in patterns)]


def predict(layer: ConvLayer, engine: Engine, *, dtype: str = "float32", direction: str = "forward") -> Record:
    """What is known of a layer and an algorithm without running it, as a flat record."""
    g = layer.geometry
    with options(backend=engine.backend):
        threads = effective_threads(current())
    itemsize = np.dtype(dtype).itemsize
    items = {"x": g.batch * g.channels * g.in_size[0] * g.in_size[1],
             "out": g.batch * g.out_channels * g.positions, "column": g.batch * g.positions * g.channels * g.taps}
    record: Record = {
        "layer": layer.name, "shape": str(layer), "batch": g.batch, "channels": g.channels, "height": g.in_size[0],
        "width": g.in_size[1], "filters": g.out_channels, "kernel_h": g.kernel[0], "kernel_w": g.kernel[1],
        "stride_h": g.stride[0], "stride_w": g.stride[1], "groups": g.groups, "dtype": dtype, "direction": direction,
        "threads": threads, "backend": engine.backend, "algorithm": engine.algorithm, "isa": None, "chosen": False,
        "expansion": g.taps / (g.stride[0] * g.stride[1]), "input_bytes": items["x"] * itemsize,
        "output_bytes": items["out"] * itemsize, "column_bytes": items["column"] * itemsize,
        "predicted_bytes": None, "measured_bytes": None, "resident_bytes": None, "counted_by": None,
        "flops": g.flops, "seconds": None, "best_seconds": None, "rounds": 0, "gflops": None, "skipped": None}
    compute = dispatch.compute_dtype(np.dtype(dtype))
    kernel = dispatch.TABLE[direction, engine.algorithm, engine.backend]
    plan_of = partial(dispatch.plan_conv2d, layer.x, layer.weight, *layer.arguments, dtype=dtype, direction=direction)
    with options(backend=engine.backend):
        try:
            plan = plan_of(algorithm=engine.algorithm)
            record["isa"], record["predicted_bytes"] = plan.isa, plan.workspace_bytes
            record["chosen"] = plan_of().algorithm == engine.algorithm
        except NotImplementedError as error:
            record["skipped"] = str(error)
        except MemoryError as error:  # over the workspace limit: what it would take without one
            record["predicted_bytes"] = kernel.nbytes(g, compute, 1, None)
            record["skipped"] = str(error)
    return record


def study(layer: ConvLayer, *, dtype: str = "float32", direction: str = "forward", which: Sequence[Engine] | None = None,
          seconds: float = 2.0, turns: int = 5, records: list[Record] | None = None,
          tell: Callable[[str], None] = lambda text: None) -> list[Record]:
    """Run a layer with every algorithm and backend.

    Parameters
    ----------
    layer : ConvLayer
    dtype, direction : str
    which : sequence of Engine, optional
        Default: all.
    seconds, turns
        For the timing: all of them together have so many seconds, and each has at most so many turns, and at least one.
    records : list, optional
        Where the records go, as far as a KeyboardInterrupt lets them come.
    tell : callable
        Told what happens, for a progress bar.

    Returns
    -------
    list of dict
        `records`. What was not run has a reason in ``skipped``.
    """
    records = [] if records is None else records
    job = Job(direction, layer, dtype)
    new: dict[str, Record] = {}
    calls: dict[str, Callable[[], Any]] = {}
    seen: dict[str, float] = {}
    samples: dict[str, Samples] = {}
    for engine in engines(direction) if which is None else which:
        new[str(engine)] = predict(layer, engine, dtype=dtype, direction=direction)
    threads = max((record["threads"] for record in new.values()), default=1)
    try:
        room = available_memory()
        with peers.limited(threads):
            for name, record in new.items():
                if record["skipped"] is not None:
                    continue
                needed = job.input_bytes + job.result_bytes + record["predicted_bytes"]
                if needed > room:
                    record["skipped"] = (f"predicted, not run: it needs {needed:,} bytes, {record['predicted_bytes']:,} of "
                                         f"them scratch, and this machine has {room:,} available")
                    continue
                tell(f"{name} runs")
                call = peers.call_into(job, record["algorithm"])
                with options(backend=record["backend"]):
                    start = time.perf_counter()
                    call()
                    seen[name] = time.perf_counter() - start
                    taken = footprint.measure(call)
                record |= {"measured_bytes": taken.array_bytes, "resident_bytes": taken.resident_bytes,
                           "counted_by": taken.counted_by}
                new[name], calls[name] = record, call
            tell("they take turns")
            interleave(calls, seconds, threads=threads, rounds=(1, turns), seen=seen, samples=samples,
                       inside=lambda name: options(backend=new[name]["backend"]))
    finally:
        for name, entry in samples.items():
            if entry.seconds:
                new[name] |= {"seconds": entry.median, "best_seconds": entry.best, "rounds": len(entry.seconds),
                              "gflops": new[name]["flops"] / entry.median / 1e9}
        records += new.values()
    return records


def swept(layer: ConvLayer, what: str, values: Iterable[int]) -> list[ConvLayer]:
    """Variations of a layer in its batch size, stride or kernel.

    A kernel keeps half its size as padding where the layer's own does.

    Raises
    ------
    ValueError
        Where a variation has no output.
    """
    g = layer.geometry
    found = []
    for value in values:
        name = f"{what} {value}"
        if what == "batch":
            variation = replace(layer.with_batch(value), name=name)
        elif what == "stride":
            variation = replace(layer, name=name, stride=value)
        else:
            half = layer.padding == g.kernel[0] // 2 and g.kernel[0] == g.kernel[1]
            variation = replace(layer, name=name, weight=(*g.weight_shape[:2], value, value),
                                padding=value // 2 if half else layer.padding)
        variation.geometry  # noqa: B018 (raises where there is none)
        found.append(variation)
    return found


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points have no other that is at most as large in both and smaller in one, by the first coordinate."""
    front = [i for i, (a, b) in enumerate(points)
             if not any((c <= a and d <= b) and (c < a or d < b) for c, d in points)]
    return sorted(front, key=lambda i: points[i])


def totals(records: Sequence[Record], counts: dict[str, int]) -> list[Record]:
    """A network's layers together, for each engine: time added up, scratch the largest. `counts`: layer -> occurrences.

    An engine that could not do some layer does it with what the backend would choose there; one that could do none, or was
    not run on some layer, has no total.
    """
    by_engine: dict[Engine, dict[str, Record]] = {}
    for record in records:
        by_engine.setdefault(Engine(record["backend"], record["algorithm"]), {})[record["layer"]] = record
    chosen = {(record["layer"], record["backend"]): record for record in records if record["chosen"]}
    found = []
    for engine, layers in by_engine.items():
        used = [chosen.get((name, engine.backend), record) if record["predicted_bytes"] is None else record
                for name, record in layers.items()]
        stood_in = sum(record["algorithm"] != engine.algorithm for record in used)
        if len(used) < len(counts) or stood_in == len(used) or any(record["seconds"] is None for record in used):
            continue
        flops = sum(record["flops"] * counts[record["layer"]] for record in used)
        seconds = sum(record["seconds"] * counts[record["layer"]] for record in used)
        found.append({"backend": engine.backend, "algorithm": engine.algorithm, "seconds": seconds,
                      "gflops": flops / seconds / 1e9,
                      **{name: max(record[name] for record in used) for name in ("predicted_bytes", "measured_bytes")},
                      "stood_in": stood_in})
    return found
