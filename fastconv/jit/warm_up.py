"""Compile every kernel, or load it from the cache on disk, and tell what that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..backends import KERNEL_DTYPES, Budget
from ..geometry import Conv2dGeometry, conv2d_geometry, pool2d_geometry, unpool2d_geometry, window2d_geometry
from . import NumbaBackend


@dataclass(frozen=True)
class Warmed:
    """One kernel for one dtype, ready.

    Attributes
    ----------
    kernel : str
    dtype : str
    threads : bool
        Is it the variant for several threads?
    seconds : float
        What the first call took.
    cached : bool
        Was it loaded from the cache on disk?
    """

    kernel: str
    dtype: str
    threads: bool
    seconds: float
    cached: bool


def warm_up() -> Iterator[Warmed]:
    """Make each kernel ready for float32 and float64 (im2col: items of 4 and 8 bytes), for one thread and several."""
    from .options import KERNELS, usable_workers

    known = {(kernel.name, parallel): len(dispatcher.signatures)
             for kernel in KERNELS for parallel, dispatcher in kernel.dispatchers.items()}
    for dtype in KERNEL_DTYPES:
        for threads in (1, 2)[:usable_workers(2)]:
            for call in _calls(dtype, threads):
                began = time.perf_counter()
                call()
                seconds = time.perf_counter() - began
                for kernel in KERNELS:
                    for parallel, dispatcher in kernel.dispatchers.items():
                        count = len(dispatcher.signatures)
                        if count > known.get((kernel.name, parallel), 0):
                            known[kernel.name, parallel] = count
                            newest = dispatcher.signatures[-1]
                            yield Warmed(kernel.name, dtype.name, parallel, seconds,
                                         bool(dispatcher.stats.cache_hits.get(newest)))
                            seconds = 0.0  # a call's whole time goes to the first of its kernels that is new


def _calls(dtype: np.dtype, threads: int) -> Iterator[Callable[[], Any]]:
    """Calls each of which needs one kernel that those before did not."""
    backend = NumbaBackend()
    budget = Budget(threads, 0)
    geometry = conv2d_geometry((2, 2, 8, 8), (8, 2, 3, 3))
    window = window2d_geometry((2, 2, 8, 8), 2, 2)
    pool = pool2d_geometry((2, 2, 8, 8), 2)
    x, weight = np.zeros(geometry.input_shape, dtype), np.zeros(geometry.weight_shape, dtype)
    out, col = np.zeros(geometry.output_shape, dtype), np.zeros(window.columns_shape("columns"), dtype)
    small, indices = np.zeros(pool.output_shape, dtype), np.zeros(pool.output_shape, np.int64)

    yield lambda: backend.direct_forward(x, weight, None, False, geometry, out, budget)
    yield lambda: _direct().finite(1, weight.reshape(-1))
    # many weights, so that they are turned by several threads too
    large = conv2d_geometry((2, 96, 3, 3), (96, 96, 3, 3))
    many, dout, dx = (np.zeros(shape, dtype) for shape in (large.weight_shape, large.output_shape, large.input_shape))
    yield lambda: backend.direct_backward_data(dout, many, large, dx, budget)
    yield lambda: backend.direct_backward_weight(out, x, geometry, weight, budget)
    flat = conv2d_geometry((2, 1, 64, 64), (8, 1, 5, 5))  # few channels
    one_plane, five, above = (np.zeros(shape, dtype) for shape in (flat.input_shape, flat.weight_shape, flat.output_shape))
    yield lambda: backend.direct_backward_data(above, five, flat, one_plane, budget)
    for taps in (3, 4, 5):  # Winograd's tiles have a kernel each
        yield partial(_by_winograd, backend, "forward", conv2d_geometry((2, 8, 40, 40), (8, 8, taps, taps)), dtype, threads)
    yield partial(_by_winograd, backend, "backward_weight", conv2d_geometry((2, 40, 40, 40), (40, 40, 3, 3)), dtype, threads)
    yield lambda: backend.bias_gradient(out, np.zeros(8, dtype), budget.threads)
    # planes by themselves, with stride 1 and, where the gradient is another kernel's, 2
    one = conv2d_geometry(x.shape, (2, 1, 3, 3), 1, 1, 1, 2)
    two = conv2d_geometry(x.shape, (2, 1, 3, 3), 2, 1, 1, 2)
    planes, shared = np.zeros(one.output_shape, dtype), np.zeros(two.output_shape, dtype)
    filters = np.zeros(one.weight_shape, dtype)
    yield lambda: backend.direct_forward(x, filters, None, False, one, planes, budget)
    yield lambda: backend.direct_backward_data(shared, filters, two, x, budget)
    yield lambda: backend.direct_backward_weight(planes, x, one, filters, budget)
    yield lambda: backend.im2col(x, window, "columns", 0, col, threads)
    yield lambda: backend.col2im(col, window, "columns", x, threads)
    yield lambda: backend.max_pool(x, pool, small, None, threads)
    yield lambda: backend.max_pool_backward(small, indices, unpool2d_geometry(small.shape, small.shape, x.shape), x,
                                            threads)
    spots, places = np.zeros((1, 1, 96, 96), dtype), np.zeros((1, 1, 96, 96), np.int64)  # more than are added up uncounted
    yield lambda: backend.max_pool_backward(spots, places, unpool2d_geometry(spots.shape, spots.shape, (1, 1, 8, 8)),
                                            np.zeros((1, 1, 8, 8), dtype), threads)
    yield lambda: backend.avg_pool(x, pool, True, None, small, threads)


def _by_winograd(backend: NumbaBackend, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> None:
    x, weight, out = (np.zeros(shape, dtype) for shape in (geometry.input_shape, geometry.weight_shape, geometry.output_shape))
    budget = Budget(threads, backend.winograd_bytes(operation, geometry, dtype, threads))
    if operation == "forward":
        backend.winograd_forward(x, weight, None, False, geometry, out, budget)
    else:
        backend.winograd_backward_weight(out, x, geometry, weight, budget)


def _direct() -> Any:
    from . import direct

    return direct
