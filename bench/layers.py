"""Which jobs the benchmarks ask: every row at every number of threads, and one row in variations.

The rows themselves are in ``fastconv/benchmarks/layers.py``, where the installed ``fastconv bench`` finds them as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastconv.benchmarks.jobs import CONVOLUTIONS, Job
from fastconv.benchmarks.layers import CONV_ROWS, WINDOW_ROWS, Layer, choose
from fastconv.benchmarks.study import swept
from fastconv.options import usable_cpus

#: What the sweeps vary: a layer in the middle of everything, 3x3, 64 channels, 56 pixels.
BASE = next(row for row in CONV_ROWS if row.name == "resnet-conv2_3x3")

BATCHES, STRIDES, PADDINGS = (1, 2, 4, 16, 32), (1, 2, 3, 4), (0, 1, 2)

#: Pure NumPy takes seconds on larger ones: it takes part there if it is asked for by ``--peers``.
NUMPY_FLOPS = 4 * 10**8


def jobs(operation: str, threads: Sequence[int], patterns: Sequence[str] | None) -> list[Job]:
    """An operation on all rows that match one of the patterns (None: all)."""
    rows: tuple[Layer, ...] = CONV_ROWS if operation in CONVOLUTIONS else WINDOW_ROWS
    if patterns is not None:
        chosen = choose((*CONV_ROWS, *WINDOW_ROWS), patterns)
        rows = tuple(row for row in rows if row in chosen)
    return [Job(operation, row, "float32", n) for n in threads for row in rows]


def sweeps(patterns: Sequence[str] | None) -> list[Job]:
    """The base layer, forward, in other batch sizes, strides, paddings, a wider dtype and with more threads."""
    if patterns is not None and BASE not in choose((*CONV_ROWS, *WINDOW_ROWS), patterns):
        return []
    layers = [*swept(BASE, "batch", BATCHES), *swept(BASE, "stride", STRIDES[1:]),
              *(replace(BASE, name=f"padding {n}", padding=n) for n in PADDINGS if n != BASE.padding)]
    found = [Job("forward", layer) for layer in layers]
    found.append(Job("forward", replace(BASE, name="float64"), "float64"))
    found += [Job("forward", replace(BASE, name=f"threads {n}"), "float32", n) for n in range(2, usable_cpus() + 1)
              if n & (n - 1) == 0 or n == usable_cpus()]
    return found


def identify(job: Job) -> str:
    """A job in a test's name, by which results are compared: it must not change."""
    return f"{job.layer.name.replace(' ', '')}-{job.dtype}-{job.threads}thread{'s' if job.threads > 1 else ''}"
