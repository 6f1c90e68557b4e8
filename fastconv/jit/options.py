"""All options that the Numba kernels are compiled with, and how they are compiled, cached and run.

A kernel is written once, as a function with a ``prange`` over workers, and compiled for each dtype on first use, at most
twice: without threads, for calls that use one (they never start Numba's thread pool), and with ``parallel=True``. Both
are cached on disk, beside the sources or where ``NUMBA_CACHE_DIR`` says.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

OLDEST_NUMBA = (0, 59)

try:
    numba: Any = importlib.import_module("numba")
except ImportError as error:
    raise ImportError(f"backend 'numba' needs Numba, which can't be imported ({error}): pip install 'fastconv[numba]'",
                      name="numba") from error

if tuple(int(part) for part in numba.__version__.split(".")[:2]) < OLDEST_NUMBA:
    raise ImportError(f"backend 'numba' needs Numba {'.'.join(map(str, OLDEST_NUMBA))} or newer, and "
                      f"{numba.__version__} is installed: pip install --upgrade 'fastconv[numba]'", name="numba")

#: - ``nogil``: other Python threads run meanwhile (rule 15).
#: - ``error_model="numpy"``: a division is a division, without a test for zero and a branch that raises.
#: - ``fastmath={"contract"}``: ``a*b + c`` may be one FMA. Nothing else of fastmath: reassociation would make sums depend
#:   on how a loop was vectorised (rule 12), ``nnan`` and ``ninf`` break rules 3, 5 and 13, ``nsz`` rule 5's ties of zeros.
#: - ``_nrt=False``, which Numba uses for functions of its own: no reference counts. All arrays are borrowed from the
#:   caller; Numba would count each slice and each call, atomically, on one counter for all threads.
FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}

if hasattr(numba.core.options.DefaultOptions, "_nrt"):
    FLAGS["_nrt"] = False

#: Decorator of the functions that kernels are put together from: compiled into each kernel that calls them.
part = numba.njit(**FLAGS)

#: The same for what is a few instructions long, or is called for each vector: to hand over an array takes seven arguments.
inlined = numba.njit(**FLAGS, forceinline=True)

prange = numba.prange

#: All kernels, in the order in which their modules were imported.
KERNELS: list[Kernel] = []


class Kernel:
    """A function that Python calls: ``kernel(workers, *arguments)``. Also a decorator.

    The function's `prange` must run over its workers, so that what each of them does, and the scratch it does it in,
    follow from the arguments and not from the threading layer.

    Parameters
    ----------
    function : callable
        Takes one-dimensional C-contiguous writable arrays, arrays of records, and ints.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._function = function
        self._variants: dict[bool, Any] = {}
        self._lock = threading.RLock()  # a signal's handler may come in between, on the same thread
        KERNELS.append(self)

    def variant(self, parallel: bool) -> Any:
        """Numba's dispatcher for calls with one worker, or with several."""
        with self._lock:
            if parallel not in self._variants:
                self._variants[parallel] = _dispatcher(self._function, parallel)
            return self._variants[parallel]

    @property
    def dispatchers(self) -> dict[bool, Any]:
        """The dispatchers that were used, by `parallel`."""
        return dict(self._variants)

    def __call__(self, workers: int, *arguments: Any) -> Any:
        if workers == 1:
            serial = self._variants.get(False)
            return (serial or self.variant(False))(1, *arguments)
        with _ThreadPool(workers):
            return self.variant(True)(workers, *arguments)


def _dispatcher(function: Callable[..., Any], parallel: bool) -> Any:
    # The file of the cache is named after the function, not after the options: each variant needs a name of its own.
    name = f"{function.__name__}_{'parallel' if parallel else 'serial'}"
    copy = FunctionType(function.__code__, function.__globals__, name, function.__defaults__, function.__closure__)
    copy.__module__, copy.__qualname__, copy.__doc__ = function.__module__, name, function.__doc__
    copy.__kwdefaults__ = function.__kwdefaults__
    options = {**FLAGS, "parallel": parallel}
    try:
        dispatcher = numba.njit(**options, cache=True)(copy)
    except RuntimeError:  # there is no folder that a cache could be written to
        return numba.njit(**options)(copy)
    _stamp(dispatcher)
    return dispatcher


def _source_stamp() -> tuple[Any, ...]:
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size)
                 for path in sorted(Path(__file__).parent.glob("*.py")))


def _stamp(dispatcher: Any) -> None:
    """Make cached code obsolete when any file of this folder changes: Numba looks at the kernel's own file only.

    That goes through attributes that Numba does not promise to keep. Without them its own rule holds.
    """
    cache_file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if cache_file is not None and hasattr(cache_file, "_source_stamp"):
        cache_file._source_stamp = _source_stamp()


# --- threads ----------------------------------------------------------------------------------------------------------

_workqueue_lock = threading.RLock()
_pool_started = False
_pool_lost = False


def _after_fork() -> None:
    # The pool's threads stay behind in the parent. GNU OpenMP's layer would end the child that goes parallel, the other
    # layers start anew or not, depending on their versions: a child whose parent had a pool works without one.
    global _pool_lost, _workqueue_lock
    _pool_lost = _pool_lost or _pool_started
    _workqueue_lock = threading.RLock()  # whoever held it is no more, here and below
    for kernel in KERNELS:
        kernel._lock = threading.RLock()


def _watch_forks() -> None:
    """Let a fork wait until no other thread compiles: the child would wait for Numba's lock for ever."""
    os.register_at_fork(after_in_child=_after_fork)
    compiling = getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)
    if compiling is not None:
        os.register_at_fork(before=compiling.acquire, after_in_parent=compiling.release, after_in_child=compiling.release)


if hasattr(os, "register_at_fork"):
    _watch_forks()


def usable_workers(threads: int) -> int:
    """How many of `threads` Numba's pool can have: its size is fixed when it starts, by ``NUMBA_NUM_THREADS``.

    By default that is the number of CPUs. Results do not depend on it.
    """
    return 1 if _pool_lost else min(threads, int(numba.config.NUMBA_NUM_THREADS))


def thread_pool_report() -> str:
    """Which threading layer is in use, for a bug report."""
    layer = numba.threading_layer() if _pool_started else "not started yet"
    return f"threading layer {layer}, {numba.config.NUMBA_NUM_THREADS} threads"


def _start_pool() -> None:
    """Start the threads of Numba's pool, which it does on first use, and not let them wait busily for long.

    GNU libgomp's workers spin for milliseconds after a parallel region, and get in the way of NumPy's matrix products
    (see :mod:`fastconv.native`). It reads the variable once, when it is loaded.
    """
    global _pool_started
    ours = not _pool_started and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    if ours:
        os.environ["GOMP_SPINCOUNT"] = "1000"
    try:
        numba.get_num_threads()
    finally:
        if ours:
            os.environ.pop("GOMP_SPINCOUNT", None)
    _pool_started = True


class _ThreadPool:
    """Let Numba use so many threads in this Python thread, and let it in alone where its threading layer needs that."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> None:
        if not _pool_started:
            _start_pool()
        self.before = numba.get_num_threads()
        # The workqueue layer ends the process when two threads use it at once.
        self.turn: AbstractContextManager[Any] = (_workqueue_lock if numba.threading_layer() == "workqueue"
                                                  else nullcontext())
        self.turn.__enter__()
        numba.set_num_threads(self.workers)

    def __exit__(self, *error: Any) -> None:
        numba.set_num_threads(self.before)
        self.turn.__exit__(*error)


# --- arguments --------------------------------------------------------------------------------------------------------


class _Writable:
    def __init__(self, array: np.ndarray) -> None:
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], False)}
        self.array = array


def flat(array: np.ndarray) -> np.ndarray:
    """A C-contiguous array as kernels take it: one-dimensional, and writable for its type only.

    To Numba a read-only array is of another type, for which it would compile everything once more.
    """
    array = array.reshape(-1)
    return array if array.flags.writeable else np.asarray(_Writable(array))
