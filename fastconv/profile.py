"""Time and memory of every algorithm on one layer: :func:`profile_conv2d`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from . import dispatch, memory
from . import options as _options
from .functional import conv2d, conv2d_backward_data, conv2d_backward_weight
from .geometry import conv2d_geometry
from .options import options


def profile_conv2d(x_shape: Any, weight_shape: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                   groups: Any = 1, *, dtype: Any = "float32", direction: str = "forward",
                   repeat: int = 5) -> list[dict[str, Any]]:
    """Run one convolution with every algorithm of every backend, and tell what each took.

    Parameters
    ----------
    x_shape, weight_shape, stride, padding, dilation, groups, dtype, direction
        As in :func:`fastconv.plan_conv2d`. The arrays are random, with a fixed seed.
    repeat : int
        Timed calls of each algorithm, after one that is not timed. The calls are interleaved.

    Returns
    -------
    list of dict
        A record for each algorithm and backend: ``algorithm``, ``backend``, ``isa``, ``predicted_bytes`` (scratch by the
        plan), ``measured_bytes`` (the largest scratch buffer that fastconv asked for in the call), ``seconds`` (median),
        ``gflops`` (per second), ``skipped`` (None, or why it was not run).
    """
    geometry = conv2d_geometry(x_shape, weight_shape, stride, padding, dilation, groups)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(geometry.input_shape).astype(dtype)
    weight = rng.standard_normal(geometry.weight_shape).astype(dtype)
    dout = rng.standard_normal(geometry.output_shape).astype(dtype)
    rest = (stride, padding, dilation, groups)

    def call(algorithm: str) -> None:
        if direction == "forward":
            conv2d(x, weight, None, *rest, algorithm=algorithm)
        elif direction == "backward_data":
            conv2d_backward_data(dout, weight, geometry.input_shape, *rest, algorithm=algorithm)
        else:
            conv2d_backward_weight(dout, x, geometry.weight_shape, *rest, algorithm=algorithm)

    records: list[dict[str, Any]] = []
    for backend in dispatch.BACKENDS:
        if not _options.backend_available(backend):
            continue
        for algorithm in dispatch.algorithms(direction, backend):
            record: dict[str, Any] = {"algorithm": algorithm, "backend": backend, "isa": None, "predicted_bytes": None,
                                      "measured_bytes": None, "seconds": None, "gflops": None, "skipped": None}
            records.append(record)
            with options(backend=backend):
                try:
                    plan = dispatch.plan_conv2d(x_shape, weight_shape, *rest, dtype=dtype, direction=direction,
                                                algorithm=algorithm)
                    record["isa"], record["predicted_bytes"] = plan.isa, plan.workspace_bytes
                    with memory.watch_scratch() as watched:
                        call(algorithm)
                    record["measured_bytes"] = watched.largest
                except (MemoryError, NotImplementedError) as error:
                    record["skipped"] = str(error)
    times: dict[int, list[float]] = {i: [] for i, record in enumerate(records) if record["skipped"] is None}
    for _ in range(repeat):
        for i, taken in times.items():
            with options(backend=records[i]["backend"]):
                start = time.perf_counter()
                call(records[i]["algorithm"])
                taken.append(time.perf_counter() - start)
    for i, taken in times.items():
        records[i]["seconds"] = statistics.median(taken)
        records[i]["gflops"] = geometry.flops / records[i]["seconds"] / 1e9
    return records
