"""What this machine is, and what it does at most: multiply-adds and memory, measured with the loops of native/machine.h.

A figure is the best of several tries, since whatever disturbs a loop makes it slower, never faster. The best so far is kept
for the process and only rises, so it may be asked for again and again while other things are measured.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import memory
from ..options import configuration, native_error, usable_cpus

#: Seconds that one look at a ceiling takes, and the least number of tries in it.
LOOK_SECONDS, TRIES = 0.05, 3

#: Below this a buffer's figure is that of a loop's start.
SMALLEST_BUFFER = 2**16


class Ceilings:
    """The best multiply-add rate and memory bandwidths seen so far in this process."""

    def __init__(self) -> None:
        self._best: dict[tuple[str, str | int, int], float] = {}
        self._buffers: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def available(self) -> bool:
        """Whether there are loops to measure with: the extension modules must be there."""
        return native_error() is None

    def fma(self, dtype: str, threads: int, look: bool = True) -> float:
        """Floating-point operations per second in multiply-adds of `dtype`, on `threads` threads."""
        from ..native import kernels

        itemsize = np.dtype(dtype).itemsize
        return self._measure(("fma", dtype, threads), lambda rounds: kernels.fma_loop(rounds, itemsize, threads), look)

    def copy(self, threads: int, nbytes: int | None = None, look: bool = True) -> float:
        """Bytes per second, read and written ones, of copying a buffer; `nbytes` of both together, None: in memory.

        A working set that fits a cache is faster than memory, so what moves few bytes is held against a copy of as many.
        """
        from ..native import kernels

        to, source = self._views(nbytes)
        return self._measure(("copy", to.nbytes, threads), lambda n: _times(n, kernels.copy_loop, to, source, threads),
                             look)

    def store(self, threads: int, look: bool = True) -> float:
        """Bytes per second of filling a buffer in memory."""
        from ..native import kernels

        to, _ = self._views(None)
        return self._measure(("store", to.nbytes, threads), lambda n: _times(n, kernels.store_loop, to, threads), look)

    def read(self, threads: int, look: bool = True) -> float:
        """Bytes per second of reading a buffer in memory."""
        from ..native import kernels

        _, source = self._views(None)
        return self._measure(("read", source.nbytes, threads), lambda n: _times(n, kernels.read_loop, source, threads),
                             look)

    def release(self) -> None:
        """Give the buffers back. The figures stay."""
        self._buffers = None

    def _views(self, nbytes: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Two buffers, of `nbytes` together rounded up to a power of two, and at most those that lie in memory."""
        if self._buffers is None:
            size = buffer_bytes()
            self._buffers = np.full(size, 1, np.uint8), np.full(size, 2, np.uint8)  # touched: pages there
        to, source = self._buffers
        if nbytes is None:
            return to, source
        size = SMALLEST_BUFFER
        while 2 * size < nbytes and size < to.nbytes:
            size *= 2
        return to[:size], source[:size]

    def _measure(self, key: tuple[str, str | int, int], work: Callable[[int], float], look: bool) -> float:
        if not look and key in self._best:
            return self._best[key]
        end, amount, tries = time.perf_counter() + LOOK_SECONDS, 1, 0
        best = self._best.get(key, 0.0)
        while tries < TRIES or time.perf_counter() < end:
            start = time.perf_counter()
            done = work(amount)
            stop = time.perf_counter()
            if stop - start < LOOK_SECONDS / 20 and amount < 2**40:  # too short to trust; longer from now on
                amount *= 4
            else:
                best, tries = max(best, done / (stop - start)), tries + 1
        self._best[key] = best
        return best


#: Those of this process.
CEILINGS = Ceilings()


def _times(count: int, loop: Callable[..., int], *arguments: Any) -> int:
    return sum(loop(*arguments) for _ in range(count))


@lru_cache(maxsize=1)
def last_level_cache() -> int:
    """Bytes of the largest cache; where the system does not tell, a size that is more than most have."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(text[-1:], 1))
        except (OSError, ValueError):
            continue
    return max(sizes, default=64 * 2**20)


def buffer_bytes() -> int:
    """Size of a buffer that no cache holds, and this machine does with room to spare."""
    return min(max(128 * 2**20, 4 * last_level_cache()), available_memory() // 8) // 4096 * 4096


def available_memory() -> int:
    """Bytes that this process can have without making the system swap or kill: the kernel's estimate, the cgroup's limit."""
    found = [memory.physical_memory()]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            root = Path("/sys/fs/cgroup")
            found.append(max(int((root / limit).read_text()) - int((root / used).read_text()), 0))
        except (OSError, ValueError):  # no cgroup, or "max"
            continue
    return min(found)


def describe(peers: dict[str, str] | None = None) -> dict[str, Any]:
    """What the machine and the software on it are, for the head of a table: flat, and made of strings and numbers."""
    settings = configuration()
    found: dict[str, Any] = {
        "cpu": _cpu_model(), "cpus": usable_cpus(), "isa": settings["isa"],
        "last level cache MB": round(last_level_cache() / 2**20), "memory GB": round(memory.physical_memory() / 2**30),
        "system": f"{platform.system()} {platform.release()}", "compiler": settings.get("compiler", "none"),
        "python": platform.python_version(), "numpy": np.__version__, "fastconv": settings["fastconv"]}
    found.update(peers or {})
    return found


def _cpu_model() -> str:
    try:
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for name, value in lines:
        fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name", "").strip() or platform.processor() or platform.machine()
    if "cpu family" in fields:  # virtual machines often hide the name, never these
        model += f" (family {fields['cpu family']}, model {fields.get('model', '?')})"
    return model


def load() -> float | None:
    """Processes that want a CPU besides this one, as an average of the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
