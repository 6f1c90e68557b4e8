"""Memory that fastconv allocates: results, whose memory is used again when they die, and scratch, kept between calls.

Sizes are Python ints until here, so nothing overflows on the way; what could never be allocated is refused before it is
tried, with the figure.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

#: Scratch of one thread that is kept for its next call. A larger one is given back when the call ends.
KEPT_SCRATCH_BYTES = 64 * 2**20

#: Results from this size on take memory that earlier results have left: below, malloc recycles by itself.
RECYCLED_FROM_BYTES = 2**18

#: Bytes of freed results that are kept for later ones; ``FASTCONV_RECYCLE_LIMIT`` overrides it, 0 keeps none.
RECYCLE_LIMIT = 256 * 2**20

_local = threading.local()
_generation = 0


@lru_cache(maxsize=1)
def physical_memory() -> int:
    """Bytes of memory that this machine has (2**63 - 1 where the system does not tell)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**63 - 1


def check_bytes(what: str | Callable[[], str], nbytes: int, limit: int | None = None) -> None:
    """Raise MemoryError where `nbytes` exceed this machine's memory or `limit`, a workspace limit.

    `what` names it, or is called for its name: making one takes microseconds.
    """
    if limit is not None and nbytes > limit:
        excess = f"bytes of workspace, but workspace_limit is {limit:,}"
    elif nbytes > physical_memory():
        excess = f"bytes, but this machine has {physical_memory():,}"
    else:
        return
    raise MemoryError(f"{what if isinstance(what, str) else what()} needs {nbytes:,} {excess}")


def empty(what: str, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """``np.empty`` that refuses what cannot be had; `what` names it in the error."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < RECYCLED_FROM_BYTES:
        return np.empty(shape, dtype)
    check_bytes(lambda: f"{what} of shape {tuple(shape)} and dtype {dtype}", nbytes)
    recycler = _recycler()
    return np.empty(shape, dtype) if recycler is None else recycler.empty(tuple(shape), dtype)


@lru_cache(maxsize=1)
def _recycler() -> Any:
    """The module that recycles the memory of results, or None where the extension modules are not there."""
    try:
        from .native import _memory
    except ImportError:
        return None
    _memory.set_limit(_checked_recycle_limit())
    return _memory


def _checked_recycle_limit() -> int:
    text = os.environ.get("FASTCONV_RECYCLE_LIMIT", "").strip()
    if not text:
        return RECYCLE_LIMIT
    if not text.isdecimal():
        raise ValueError(f"FASTCONV_RECYCLE_LIMIT must be a number of bytes, got {text!r}")
    return min(int(text), 2**63 - 1)


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


def aligned_bytes(what: str, nbytes: int) -> np.ndarray:
    """`nbytes` of uninitialised bytes that start at a cache line; `what` names them in errors."""
    check_bytes(what, nbytes)
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + nbytes]


def scratch(nbytes: int) -> np.ndarray:
    """At least `nbytes` of uninitialised bytes that start at a cache line; valid until this thread's next call.

    Each thread has a buffer of its own, kept between calls up to `KEPT_SCRATCH_BYTES` and given back by
    :func:`release_memory`. It is for one call of a kernel, which fills and reads it: wherever Python code runs, a signal's
    handler or a finalizer may call fastconv on this thread. What lives longer is in a :func:`scratch_block`.
    """
    watch: ScratchWatch | None = getattr(_local, "watch", None)
    if watch is not None:
        watch.largest = max(watch.largest, nbytes)
    kept: np.ndarray | None = getattr(_local, "buffer", None)
    if kept is not None and kept.size >= nbytes and _local.generation == _generation:
        return kept
    kept = _local.buffer = None  # before there is another one
    buffer = aligned_bytes("scratch memory", nbytes)
    if nbytes <= KEPT_SCRATCH_BYTES:
        _local.buffer, _local.generation = buffer, _generation
    return buffer


@contextmanager
def scratch_block(nbytes: int) -> Iterator[np.ndarray]:
    """As `scratch`, for a ``with`` block: the calls in it, and those of signal handlers, take other memory."""
    buffer = scratch(nbytes)
    kept, generation = getattr(_local, "buffer", None), getattr(_local, "generation", _generation)
    _local.buffer = None
    yield buffer
    if kept is not None:  # after an error it is dropped
        _local.buffer, _local.generation = kept, generation


@contextmanager
def scratch_array(what: str, shape: Sequence[int], dtype: Any) -> Iterator[np.ndarray]:
    """An uninitialised array in a :func:`scratch_block`; `what` names it in errors."""
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    check_bytes(f"{what} of shape {tuple(shape)} and dtype {dtype}", nbytes)
    with scratch_block(nbytes) as buffer:
        yield buffer[:nbytes].view(dtype).reshape(shape)


def release_memory() -> None:
    """Give back the memory that is kept between calls: scratch, and the blocks of results that are no more.

    The calling thread's scratch is freed at once, another thread's when that thread next calls a function of fastconv.
    Arrays that are alive are not touched: they own their memory.
    """
    global _generation
    _generation += 1
    _local.buffer = None
    recycler = _recycler()
    if recycler is not None:
        recycler.release()
