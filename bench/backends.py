"""One backend's speed as a part of another's: ``python bench/backends.py --threads 1,2``.

By default Numba's kernels beside the Cython ones, on the rows of the tables in ``fastconv/benchmarks/layers.py``. Of an
operation with several algorithms the fastest direct one counts, so that Winograd's fewer multiplications and what BLAS
does take no part; beside im2col in NumPy (``--than book``) what the backend chooses by itself. Both results are compared before
they are timed; turns are those of ``fastconv bench``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastconv.benchmarks import layers, peers
from fastconv.benchmarks.jobs import OPERATIONS, TRAINING, Job, layer_type
from fastconv.benchmarks.timing import interleave

#: Algorithms that do all multiplications, and do them themselves.
ALGORITHMS = ("direct", "implicit_gemm")

#: The 7x7 filter on one plane is no layer of a network.
EVERY_ROW = tuple(row for row in (*layers.CONV_ROWS, *layers.WINDOW_ROWS) if row.name != "plane-7x7")

SUMMARY = tuple(name for name in OPERATIONS if name not in ("backward_data", "backward_weight", TRAINING))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--backend", default="numba", help="whose speed (default: %(default)s)")
    add("--than", default="cython", help="as a part of whose, or 'book' for im2col in NumPy (default: %(default)s)")
    add("--operations", type=_list, default=list(SUMMARY), help="default: all, with the gradients of a layer together")
    add("--layers", type=_list, default=["*"], help="names or patterns, as fastconv bench --list prints them")
    add("--threads", type=_list, default=["1"])
    add("--dtype", choices=("float32", "float64"), default="float32")
    add("--seconds", type=float, default=0.3, help="for a row (default: %(default)s)")
    args = parser.parse_args(arguments)
    chosen = layers.choose(EVERY_ROW, args.layers)
    for threads in map(int, args.threads):
        for operation in args.operations:
            kind = layer_type(operation)
            parts = {}
            for layer in chosen:
                if isinstance(layer, kind):
                    part = measure(Job(operation, layer, args.dtype, threads), args.backend, args.than, args.seconds)
                    if part is not None:
                        parts[layer.name] = part
            if parts:
                print(f"{operation}, {threads} thread{'s' * (threads > 1)}: geometric mean "
                      f"{statistics.geometric_mean(parts.values()):.2f}", flush=True)
    return 0


def _list(text: str) -> list[str]:
    return text.split(",")


def measure(job: Job, backend: str, than: str, seconds: float) -> float | None:
    """How many times as fast `backend` is, and print it; None where one of the two has no such operation."""
    job = replace(job)
    with peers.limited(job.threads):
        contenders = {name: contender for name in _names(job, backend, than)
                      if (contender := peers.make(job, name)) is not None}
        if peers.AUTO in contenders:
            contenders[backend] = replace(contenders.pop(peers.AUTO), backend=backend)
        seen, results = {}, []
        for name, contender in contenders.items():
            with peers.with_backend(contender.backend):
                contender.call()
                start = time.perf_counter()
                results.append(contender.call())
                seen[name] = time.perf_counter() - start
        for result in results[1:]:
            _compare(job, result, results[0])
        del results
        samples = interleave({name: contender.call for name, contender in contenders.items()}, seconds, threads=job.threads,
                             seen=seen, inside=lambda name: peers.with_backend(contenders[name].backend))
    best: dict[str, float] = {}
    for name, entry in samples.items():
        owner = name.partition("-")[0]
        best[owner] = min(best.get(owner, entry.median), entry.median)
    if backend not in best or than not in best:
        return None
    part = best[than] / best[backend]
    print(f"{job.operation:18} {job.layer.name:22} {job.threads}  {backend} {1e3 * best[backend]:9.3f} ms  "
          f"{than} {1e3 * best[than]:9.3f} ms  {part:6.2f}", flush=True)
    return part


def _names(job: Job, backend: str, than: str) -> list[str]:
    if than == "book":
        return [peers.AUTO, than]
    names = peers.names(job.operation)
    return [name for owner in (backend, than) for name in names
            if name == owner or name in {f"{owner}-{algorithm}" for algorithm in ALGORITHMS}]


def _compare(job: Job, got: object, want: object) -> None:
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) and isinstance(want, tuple) else [(got, want)]
    for one, other in pairs:
        scale = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=2 * job.tolerance * float(scale), err_msg=str(job.layer))


if __name__ == "__main__":
    sys.exit(main())
