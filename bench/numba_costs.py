"""What ``auto`` takes on the Numba backend beside what is fastest: ``python bench/numba_costs.py``.

Times direct and Winograd's convolution in turns, forward and both gradients, and compares them with the estimates of
``fastconv/jit/costs.py``: prints each geometry where the slower one is estimated to be the faster one, by how much that is
slower, and quantiles of the estimates over the times (in units of the definition's arithmetic at the peak that is measured
for the tables, so that only their spread tells something). A minute on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import fastconv
from fastconv import dispatch
from fastconv.geometry import Conv2dGeometry, conv2d_geometry

CHANNELS = ((1, 8), (1, 32), (3, 16), (3, 64), (4, 4), (8, 8), (16, 16), (16, 64), (32, 32), (64, 64), (128, 128), (256, 256),
            (512, 512), (64, 16), (128, 512))
SIZES = (2, 4, 7, 10, 14, 20, 28, 56, 112)
BATCHES = (1, 8)
FLOPS = 2e5, 6e8
DIRECTIONS = ("forward", "backward_data", "backward_weight")


def geometries(taps: int) -> Iterator[Conv2dGeometry]:
    for (channels, filters), size, batch in itertools.product(CHANNELS, SIZES, BATCHES):
        found = conv2d_geometry((batch, channels, size, size), (filters, channels, taps, taps), 1, taps // 2)
        if FLOPS[0] <= found.flops <= FLOPS[1]:
            yield found


def calls(direction: str, geometry: Conv2dGeometry) -> Callable[[str], Any]:
    rng = np.random.default_rng(0)
    x, weight, dout = (rng.standard_normal(shape, dtype=np.float32) for shape in
                       (geometry.input_shape, geometry.weight_shape, geometry.output_shape))
    padding = geometry.pads[0][0]
    if direction == "forward":
        return lambda algorithm: fastconv.conv2d(x, weight, None, 1, padding, algorithm=algorithm)
    if direction == "backward_weight":
        return lambda algorithm: fastconv.conv2d_backward_weight(dout, x, weight.shape, 1, padding, algorithm=algorithm)
    return lambda algorithm: fastconv.conv2d_backward_data(dout, weight, x.shape, 1, padding, algorithm=algorithm)


def times(call: Callable[[str], Any], names: Sequence[str], rounds: int) -> dict[str, float]:
    """The median of the rounds, in which they take turns."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        call(name)
    for i in range(rounds):
        for name in names if i % 2 else reversed(names):
            start = time.perf_counter()
            call(name)
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(samples) for name, samples in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--taps", type=int, choices=(3, 4, 5), default=3, help="rows of the filters (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.02, help="for a geometry, about (default: %(default)s)")
    args = parser.parse_args(arguments)
    names = ("direct", "winograd")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    right = within = 0
    with fastconv.options(backend="numba", num_threads=1):
        for direction in DIRECTIONS:
            for geometry in geometries(args.taps):
                rounds = int(min(max(args.seconds * 6e10 / geometry.flops, 3), 30))
                measured = times(calls(direction, geometry), names, rounds)
                estimates = {name: dispatch.estimate(name, direction, geometry, "numba") for name in names}
                for name in names:
                    ratios[name].append(estimates[name] * geometry.flops / 118e9 / measured[name])
                taken = min(names, key=estimates.__getitem__)
                loss = measured[taken] / min(measured.values())
                right += loss == 1
                within += loss <= 1.1
                if loss > 1:
                    print(f"{direction:14} {geometry.input_shape} -> {geometry.out_channels}: {taken} is estimated to be the "
                          f"faster one, and takes {loss:.2f} times as long", flush=True)
    count = len(ratios[names[0]])
    print(f"{right} of {count} right, {within} within a tenth")
    for name, values in ratios.items():
        print(f"{name}: estimate over time", *(f"{q:.2f}" for q in statistics.quantiles(values, n=10)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
