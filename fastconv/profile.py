"""Time and memory of every algorithm on one layer: :func:`profile_conv2d`."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import dispatch
from .geometry import as_int, as_shape, conv2d_geometry


def profile_conv2d(x_shape: Any, weight_shape: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                   groups: Any = 1, *, dtype: Any = "float32", direction: str = "forward", repeat: int = 5,
                   seconds: float = 2.0) -> list[dict[str, Any]]:
    """Run one convolution with every algorithm of every backend, and tell what each took.

    Parameters
    ----------
    x_shape, weight_shape, stride, padding, dilation, groups, dtype, direction
        As in :func:`fastconv.plan_conv2d`. The arrays are random, with a fixed seed.
    repeat : int
        The most timed calls of each algorithm. They take turns, so that a machine that slows down slows all of them.
    seconds : float
        For the timing of all of them together: one that is slow has fewer calls, and at least one.

    Returns
    -------
    list of dict
        A flat record for each algorithm and backend, as ``pandas.DataFrame`` takes them:

        - what was asked for: ``shape``, ``batch``, ``channels``, ``height``, ``width``, ``filters``, ``kernel_h``,
          ``kernel_w``, ``stride_h``, ``stride_w``, ``groups``, ``dtype``, ``direction``;
        - ``backend``, ``algorithm``, ``isa``, ``threads``, and ``chosen``: whether ``algorithm="auto"`` takes it;
        - ``predicted_bytes``: scratch by the plan. ``measured_bytes``: the most array data that was alive at one time of
          what the call allocated, into an ``out`` that was there. ``resident_bytes``: by how much the call raised the
          resident set's high-water mark, which sees what no allocator hook sees, in whole pages (None where the system
          does not tell). See :mod:`fastconv.benchmarks.footprint`;
        - ``expansion``, ``KH*KW/(stride_h*stride_w)``: how much larger than the image a column matrix is;
          ``input_bytes``, ``output_bytes``, and ``column_bytes``, the column matrix's;
        - ``seconds`` (median), ``best_seconds``, ``rounds``, ``flops`` and ``gflops`` (per second);
        - ``skipped``: None, or why it was not run: the algorithm cannot do this, or it would need more memory than this
          machine has available, which is predicted and not tried.

    Raises
    ------
    ValueError, TypeError
        Where shapes and parameters do not fit together.

    Examples
    --------
    >>> records = profile_conv2d((1, 3, 32, 32), (8, 3, 3, 3), padding=1, repeat=1)
    >>> {record["algorithm"]: record["predicted_bytes"] for record in records if record["backend"] == "numpy"}["im2col"] > 0
    True
    """
    if direction not in dispatch.OPERATIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, dispatch.OPERATIONS))}, got {direction!r}")
    number = np.dtype(dtype)
    if number.kind not in "biufc":
        raise TypeError(f"dtype must be one of numbers, got {dtype!r}")
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds!r}")
    from .benchmarks.layers import ConvLayer  # here: nobody else needs them, and they need this package
    from .benchmarks.study import study

    conv2d_geometry(x_shape, weight_shape, stride, padding, dilation, groups)
    x = as_shape("x_shape", x_shape, (3, 4))
    layer = ConvLayer("", (1, *x) if len(x) == 3 else x, as_shape("weight_shape", weight_shape, (4,)), stride, padding,
                      dilation, groups)
    return study(layer, dtype=number.name, direction=direction, turns=as_int("repeat", repeat, 1), seconds=seconds)
