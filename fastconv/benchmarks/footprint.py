"""How much memory a call takes, measured in two ways that check each other.

*Array bytes*: the data of the NumPy arrays that were alive at one time, of those that the call allocated. It is counted by
an allocator hook (NEP 49; ``fastconv.native._allocations``), exactly, also for arrays that NumPy or a backend makes and
drops inside the call. Where the extension modules are not there, ``tracemalloc`` counts instead, to which NumPy reports its
arrays as well; that includes Python's own objects, some kilobytes in a call.

*Resident bytes*: by how much the call raised the high-water mark of the process's resident set (Linux: ``VmHWM``, set back
before the call). It sees everything, also what a library takes from C's malloc behind NumPy's back, but only pages that were
touched, and not what fits into memory that the process has and does not use. So it is the check: where it is clearly above
the array bytes, somebody allocates where no hook looks.

A call is made twice, and the second one counts: what the first one fills (plans, compiled code, the packing buffers that a
BLAS library keeps for good) is no scratch of a call.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import memory

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Footprint:
    """What one call took.

    Attributes
    ----------
    array_bytes : int
        Peak of the array data that the call allocated.
    counted_by : str
        "allocator" or "tracemalloc".
    resident_bytes : int or None
        Rise of the resident set's high-water mark, None where the system does not tell.
    """

    array_bytes: int
    counted_by: str
    resident_bytes: int | None


def measure(call: Callable[[], Any]) -> Footprint:
    """Make a call, and tell what it took. Make it once before, without measuring.

    What fastconv keeps between calls is given back first, so that the call has to allocate what it uses. What it returns
    counts if it allocated that: give it an ``out=``.
    """
    gc.collect()
    memory.release_memory()
    _trim()
    before = _reset_high_water()
    array_bytes, counted_by = count_arrays(call)
    after = _status("VmHWM")
    resident = None if before is None or after is None else max(after - before, 0)
    return Footprint(array_bytes, counted_by, resident)


def count_arrays(call: Callable[[], Any]) -> tuple[int, str]:
    """The array bytes of a call alone, and who counted them: "allocator" or "tracemalloc"."""
    memory.release_memory()
    watch = _allocations()
    if watch is None:
        return _traced(call), "tracemalloc"
    with _results_from_numpy(), watch:
        call()
    return int(watch.peak), "allocator"


@contextmanager
def _results_from_numpy() -> Iterator[None]:
    """A block in which large results are ordinary arrays. Recycled ones come from an allocator beside the one that counts."""
    before = memory.RECYCLED_FROM_BYTES
    memory.RECYCLED_FROM_BYTES = sys.maxsize
    try:
        yield
    finally:
        memory.RECYCLED_FROM_BYTES = before


def _allocations() -> Any:
    """A new counter of array data, or None without the extension modules."""
    try:
        from ..native._allocations import ArrayAllocations
    except ImportError:
        return None
    return ArrayAllocations()


def _traced(call: Callable[[], Any]) -> int:
    """Peak of what Python and NumPy allocate in a call."""
    started = not tracemalloc.is_tracing()
    if started:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        call()
        return max(tracemalloc.get_traced_memory()[1] - before, 0)
    finally:
        if started:
            tracemalloc.stop()


def _status(name: str) -> int | None:
    """A size of ``/proc/self/status`` in bytes, or None."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _reset_high_water() -> int | None:
    """Set the high-water mark back to what is resident now, and return that; None where that can't be done."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


@lru_cache(maxsize=1)
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc, not Linux, Windows
        return None


def _trim() -> None:
    """Give memory that malloc holds and nobody uses back to the system, or the call could take it without a trace."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
