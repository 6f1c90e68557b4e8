"""All options that the Numba kernels are compiled with, and how they are compiled, cached and run.

A kernel is written once, as a function with a ``prange`` over workers, and compiled for each dtype on first use, at most
twice: without threads, for calls that use one (they never start Numba's thread pool), and with ``parallel=True``. Both
are cached on disk, beside the sources or where ``NUMBA_CACHE_DIR`` says.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from ..waiting import while_openmp_is_loaded

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

_parts: set[tuple[str, str]] = set()


def _part(**more: Any) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        name = function.__module__, function.__qualname__
        if name in _parts:
            raise ValueError(f"another part of kernels is called {'.'.join(name)}: see fastconv.jit.options.named")
        _parts.add(name)
        return numba.njit(**FLAGS, **more)(function)

    return decorate


#: Decorator of the functions that kernels are put together from: compiled into each kernel that calls them.
part = _part()

#: The same for what is a few instructions long, or is called for each vector: to hand over an array takes seven arguments.
inlined = _part(forceinline=True)


def named(suffix: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a part that a function makes, which may make it more than once: give each a name of its own.

    What is not inlined is a symbol in the code of each kernel that calls it: its name, the types of its arguments, and how
    many functions the process had compiled before. Of symbols of one name the first that is loaded counts, for all
    kernels. In kernels from the cache, which several processes compiled, two parts of one name may have the same number.
    """
    def rename(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__name__ += f"_{suffix}"
        function.__qualname__ += f"_{suffix}"
        return function

    return rename


def with_globals(function: Callable[..., Any], name: str, **values: Any) -> Callable[..., Any]:
    """`function` with a name of its own and globals beside those of its module, to make several kernels of one.

    Not a function in a function: the cache's key has what such a one takes from around it, and of Numba's functions that is
    another value in each process.
    """
    copy = FunctionType(function.__code__, {**function.__globals__, **values}, name, function.__defaults__)
    copy.__module__, copy.__qualname__, copy.__doc__ = function.__module__, name, function.__doc__
    return copy


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
    if _source_stamp() == _STAMP:  # else what is imported is not what is on disk
        try:
            dispatcher = numba.njit(**options, cache=True)(copy)
        except RuntimeError:  # there is no folder that a cache could be written to
            pass
        else:
            if _CacheFile.replaces_numbas(dispatcher):
                return dispatcher
    return numba.njit(**options)(copy)


def _source_stamp() -> str:
    """Of the contents of all files of this folder."""
    contents = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        contents.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return contents.hexdigest()[:16]


_STAMP = _source_stamp()


class _CacheFile:
    """Where compiled code is kept on disk: a file for each signature, named by all that the code follows from.

    In place of Numba's, which has an index of numbered files. That looks at the kernel's own file only, where parts are in
    others; and between two writes the index is of the new code and the file of the old: another process that came in
    between, or any one if there was no second write, would run that. It is also lost between two processes which write at
    once: one finds the other's dtype, and fails.
    """

    def __init__(self, files: Any) -> None:
        self.files = files
        self.base = files._index_name.removesuffix(".nbi")

    @classmethod
    def replaces_numbas(cls, dispatcher: Any) -> bool:
        """Whether Numba keeps its cache as it did when this was written. Where it does not, there is none."""
        cache = getattr(dispatcher, "_cache", None)
        files = getattr(cache, "_cache_file", None)
        if cache is None or not all(hasattr(files, name) for name in ("_index_name", "_cache_path", "_load_data", "_save_data",
                                                                      "load", "save", "flush")):
            return False
        cache._cache_file = cls(files)
        return True

    def _name(self, key: Any) -> str:
        # of the signature, the processor, the kernel's own code
        text = repr((numba.__version__, importlib.import_module("llvmlite").__version__, key))
        return f"{self.base}.{_STAMP}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.nbc"

    def load(self, key: Any) -> Any:
        """What was saved, or None."""
        try:
            return self.files._load_data(self._name(key))
        except (OSError, EOFError, pickle.UnpicklingError):  # none yet, or one that a crash of the system emptied
            return None

    def save(self, key: Any, data: Any) -> None:
        """Write a file at once, and remove those of other sources."""
        self.files._save_data(self._name(key), data)
        for path in Path(self.files._cache_path).glob(f"{self.base}.*nb[ci]"):
            if not path.name.startswith(f"{self.base}.{_STAMP}."):
                with suppress(OSError):
                    path.unlink()

    def flush(self) -> None:
        """Forget what was saved."""
        for path in Path(self.files._cache_path).glob(f"{self.base}.*nb[ci]"):
            with suppress(OSError):
                path.unlink()


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
    """Start the threads of Numba's pool, which it does on first use, and not let them wait busily for long."""
    global _pool_started
    with while_openmp_is_loaded():
        numba.get_num_threads()
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
