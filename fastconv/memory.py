"""Memory that fastconv allocates: outputs, and scratch that is kept between calls.

Sizes are Python ints until here, so nothing overflows on the way; what could never be allocated is refused before it is
tried, with the figure.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

#: Scratch of one thread that is kept for its next call. A larger one is given back when the call ends.
KEPT_SCRATCH_BYTES = 64 * 2**20

_local = threading.local()
_generation = 0


@lru_cache(maxsize=1)
def physical_memory() -> int:
    """Bytes of memory that this machine has (2**63 - 1 where the system does not tell)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**63 - 1


def check_bytes(what: str, nbytes: int, limit: int | None = None) -> None:
    """Raise MemoryError where `nbytes` exceed this machine's memory or `limit`, a workspace limit."""
    if limit is not None and nbytes > limit:
        raise MemoryError(f"{what} needs {nbytes:,} bytes of workspace, but workspace_limit is {limit:,}")
    if nbytes > physical_memory():
        raise MemoryError(f"{what} needs {nbytes:,} bytes, but this machine has {physical_memory():,}")


def empty(what: str, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """``np.empty`` that refuses what cannot be had; `what` names it in the error."""
    dtype = np.dtype(dtype)
    check_bytes(f"{what} of shape {tuple(shape)} and dtype {dtype}", math.prod(shape) * dtype.itemsize)
    return np.empty(shape, dtype)


@dataclass
class ScratchWatch:
    """The largest scratch buffer, in bytes, that this thread asked for inside a `watch_scratch` block."""

    largest: int = 0


@contextmanager
def watch_scratch() -> Iterator[ScratchWatch]:
    """Watch the scratch memory that calls of this thread ask for."""
    before = getattr(_local, "watch", None)
    _local.watch = ScratchWatch()
    try:
        yield _local.watch
    finally:
        _local.watch = before


def scratch(nbytes: int) -> np.ndarray:
    """At least `nbytes` of uninitialised bytes that start at a cache line; valid until this thread's next call.

    Each thread has a buffer of its own, kept between calls up to `KEPT_SCRATCH_BYTES` and given back by
    :func:`release_memory`.
    """
    watch: ScratchWatch | None = getattr(_local, "watch", None)
    if watch is not None:
        watch.largest = max(watch.largest, nbytes)
    kept: np.ndarray | None = getattr(_local, "buffer", None)
    if kept is not None and kept.size >= nbytes and _local.generation == _generation:
        return kept
    _local.buffer = None
    check_bytes("scratch memory", nbytes)
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    buffer = raw[start:start + nbytes]
    if nbytes <= KEPT_SCRATCH_BYTES:
        _local.buffer, _local.generation = buffer, _generation
    return buffer


def scratch_array(what: str, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An uninitialised array in this thread's scratch memory; `what` names it in errors."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    check_bytes(f"{what} of shape {tuple(shape)} and dtype {dtype}", nbytes)
    return scratch(nbytes)[:nbytes].view(dtype).reshape(shape)


def release_memory() -> None:
    """Give back the scratch memory that is kept between calls.

    The calling thread's is freed at once, another thread's when that thread next calls a function of fastconv. Results
    are not touched: they own their memory.
    """
    global _generation
    _generation += 1
    _local.buffer = None
