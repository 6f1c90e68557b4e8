"""Times of fastconv.compat.scipy_signal beside SciPy's and OpenCV's, on one thread: ``python bench/scipy_signal.py``.

The contenders take turns; figures are medians in milliseconds. OpenCV has no complex numbers and no integers of 64 bits.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft  # what SciPy imports in its first call is not what is measured
import scipy.signal

import fastconv
from fastconv.compat import scipy_signal

try:
    import cv2
except ImportError:
    cv2 = None

#: function, dtype, size of the image, size of the filter
ROWS = [*(("correlate2d", "float32", size, k) for size in (64, 512, 1024) for k in (3, 7, 15)),
        ("correlate2d", "float32", 1024, 31), ("correlate2d", "float64", 512, 7), ("correlate2d", "uint8", 512, 7),
        ("correlate2d", "int64", 512, 7), ("correlate2d", "complex64", 512, 7), ("correlate2d", "float32", 512, 128),
        *(("correlate", "float32", size, k) for size, k in ((64, 3), (512, 15), (512, 64), (1024, 31), (1024, 256))),
        ("convolve", "float64", (100_000,), 31), ("convolve", "float64", (100_000,), 5000), ("convolve", "float32", (1000,), 9)]


def median_times(contenders: list[Callable[[], Any]], seconds: float = 0.4) -> list[float]:
    """Milliseconds of each: they take turns, and each has its share of the time."""
    times: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for contender, kept in zip(contenders, times, strict=True):
            began = time.perf_counter()
            contender()
            kept.append(time.perf_counter() - began)
    return [statistics.median(kept) * 1e3 for kept in times]


def main() -> None:
    fastconv.options(num_threads=1)
    if cv2 is not None:
        cv2.setNumThreads(1)
    print(f"{'function':12} {'dtype':10} {'image':>10} {'filter':>6} {'fastconv':>9} {'SciPy':>9} {'OpenCV':>9}   "
          "SciPy's time, OpenCV's time over fastconv's")
    rng = np.random.default_rng(0)
    for name, dtype, size, k in ROWS:
        shape = size if isinstance(size, tuple) else (size, size)
        x, w = (rng.integers(0, 100, s).astype(dtype) if np.dtype(dtype).kind in "iu" else
                rng.standard_normal(s).astype(dtype) for s in (shape, (k,) * len(shape)))
        contenders = [lambda x=x, w=w, name=name: getattr(scipy_signal, name)(x, w, "same"),
                      lambda x=x, w=w, name=name: getattr(scipy.signal, name)(x, w, "same")]
        if cv2 is not None and dtype in ("float32", "float64") and len(shape) == 2:
            contenders.append(lambda x=x, w=w: cv2.filter2D(x, -1, w, borderType=cv2.BORDER_CONSTANT))
        times = median_times(contenders)
        ratios = "  ".join(f"{other / times[0]:8.2f}" for other in times[1:])
        print(f"{name:12} {dtype:10} {'x'.join(map(str, shape)):>10} {k:>6} "
              + " ".join(f"{t:9.3f}" for t in times) + " " * (10 * (3 - len(times))) + f"   {ratios}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
