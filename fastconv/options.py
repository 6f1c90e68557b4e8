"""Settings: what :func:`options` and the environment say, and what this machine has.

A setting comes from, in this order: a ``with options(...)`` block of the running thread, a call of ``options(...)``,
the environment, the default.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from .geometry import as_choice, as_int

BACKENDS = ("cython", "numba", "numpy")
ACCURACIES = ("standard", "strict")

#: What to do where a backend is not there.
_INSTALL = {
    "cython": "build fastconv's extension modules: pip install --force-reinstall --no-binary fastconv fastconv",
    "numba": "install Numba: pip install 'fastconv[numba]'",
}


@dataclass(frozen=True)
class Settings:
    """What the choice of an algorithm may look at. None means: the default."""

    backend: str | None = None
    num_threads: int | None = None
    accuracy: str | None = None
    workspace_limit: int | None = None


# --- reading and checking ---------------------------------------------------------------------------------------------


def backend_available(name: str) -> bool:
    """Can this backend be used here? (Numba is looked for, not imported.)"""
    if name == "cython":
        return native_error() is None
    if name == "numba":
        return importlib.util.find_spec("numba") is not None and \
            importlib.util.find_spec("fastconv.jit") is not None
    return name == "numpy"


@lru_cache(maxsize=1)
def native_error() -> str | None:
    """Why the extension modules are not usable, or None where they are."""
    try:
        from . import native  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "fastconv.native._cpu":
            return f"the extension modules can't be imported ({error})"
        return "no extension modules here: installed with FASTCONV_NO_EXTENSIONS=1, or not built in this source tree"
    except ImportError as error:
        return f"the extension modules can't be imported ({error})"
    return None


def _checked_backend(source: str, name: Any) -> str:
    name = as_choice(source, name, BACKENDS)
    if not backend_available(name):
        raise ImportError(f"{source}={name!r} is not available here; {_INSTALL[name]}")
    return name


def _checked_accuracy(source: str, name: Any) -> str:
    return as_choice(source, name, ACCURACIES)


def _checked_bytes(source: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{source} must be an int (bytes), got {value!r}")
    if value < 0:
        raise ValueError(f"{source} must not be negative, got {value}")
    return int(value)


def _environment_threads(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    try:
        return as_int(name, int(text.split(",")[0]), 1)  # OMP_NUM_THREADS may be a list, one for each level
    except ValueError:
        raise ValueError(f"{name} must be a number of threads, at least 1, got {text!r}") from None


def _cgroup_cpus() -> int | None:
    """CPUs that the cgroup's quota allows, rounded up, where it can be read."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]  # cgroup v2
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")  # cgroup v1
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return max(1, -(-int(quota) // int(period))) if int(quota) > 0 else None
    except ValueError:  # "max"
        return None


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and the cgroup's quota where it can be read."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cpus = os.cpu_count() or 1
    return min(cpus, _cgroup_cpus() or cpus)


@lru_cache(maxsize=1)
def default_num_threads() -> int:
    """Threads by the environment, otherwise the CPUs that this process may use (affinity, the cgroup's quota)."""
    for name in ("FASTCONV_NUM_THREADS", "OMP_NUM_THREADS"):
        threads = _environment_threads(name)
        if threads is not None:
            return threads
    return usable_cpus()


@lru_cache(maxsize=1)
def _default_backend() -> str:
    name = os.environ.get("FASTCONV_BACKEND")
    if name:
        return _checked_backend("FASTCONV_BACKEND", name)
    return next(name for name in BACKENDS if backend_available(name))


# --- the settings in force --------------------------------------------------------------------------------------------

_lock = threading.RLock()  # a signal's handler may come in between, on the same thread
_settled = Settings()  # what calls of `options` have set for the process that can be forgotten one by one
_calls: list[options] = []  # the last of them: one that turns out to open a block is taken back, whatever came after it
_REMEMBERED_CALLS = 64
_global = Settings()  # _settled and then _calls in order
_local = threading.local()


def current() -> Settings:
    """The settings in force in this thread, `backend` and `accuracy` with their defaults filled in."""
    settings = raw()
    if settings.backend is None or settings.accuracy is None:
        return _filled(settings, settings.backend or _default_backend())
    return settings


@lru_cache(maxsize=64)
def _filled(settings: Settings, backend: str) -> Settings:
    return replace(settings, backend=backend, accuracy=settings.accuracy or ACCURACIES[0])


def raw() -> Settings:
    """The settings in force in this thread as they were given: the same object for as long as they stay the same."""
    stack = getattr(_local, "stack", None)
    return stack[-1] if stack else _global


def _all_calls() -> Settings:
    settings = _settled
    for call in tuple(_calls):
        settings = replace(settings, **call._given)
    return settings


def _settle(call: options) -> None:
    global _settled
    _settled = replace(_settled, **call._given)


class options:
    """Set how fastconv computes: for the process, or in a ``with`` block for the running thread.

    Parameters
    ----------
    backend : {"cython", "numba", "numpy"}, optional
        The kernels to use. Default: ``FASTCONV_BACKEND``, otherwise the first of them that is available.
    num_threads : int, optional
        Threads of one call. Default: ``FASTCONV_NUM_THREADS``, ``OMP_NUM_THREADS``, otherwise the CPUs that this
        process may use. Results do not depend on it, not in a single bit.
    accuracy : {"standard", "strict"}, optional
        ``"strict"`` never uses Winograd's algorithm. Default: ``"standard"``.
    workspace_limit : int, optional
        Bytes of scratch memory that one call may use. ``algorithm="auto"`` chooses and tiles within it; a forced
        algorithm that cannot raises MemoryError before it allocates. Default: no limit.

    What is left out stays as it is; ``"default"`` puts a setting back to its default.

    Raises
    ------
    ValueError, TypeError
        Where a value is not one of these.
    ImportError
        Where the backend is not installed.

    Notes
    -----
    ``with options(...)`` is in force in the thread that runs the block, and only until its end. Threads that are
    started inside do not inherit it. What else is set for the process meanwhile reaches the block's thread at its end.

    Examples
    --------
    >>> import fastconv
    >>> with fastconv.options(num_threads=1, accuracy="strict"):
    ...     pass
    """

    def __init__(self, *, backend: str | None = None, num_threads: int | Literal["default"] | None = None,
                 accuracy: str | None = None, workspace_limit: int | Literal["default"] | None = None) -> None:
        global _global
        given = {"backend": backend, "num_threads": num_threads, "accuracy": accuracy,
                 "workspace_limit": workspace_limit}
        given = {name: value for name, value in given.items() if value is not None}
        check: dict[str, Callable[[str, Any], Any]] = {
            "backend": _checked_backend, "accuracy": _checked_accuracy, "workspace_limit": _checked_bytes,
            "num_threads": lambda source, value: as_int(source, value, 1)}
        self._given: dict[str, Any] = {}
        for name, value in given.items():
            is_default = isinstance(value, str) and value == "default"
            self._given[name] = None if is_default else check[name](name, value)
        with _lock:
            _calls.append(self)
            if len(_calls) > _REMEMBERED_CALLS:
                _settle(_calls.pop(0))
            _global = _all_calls()

    def __enter__(self) -> options:
        global _global
        with _lock:  # a block is local to its thread: take back what the constructor set for all
            for i, call in enumerate(_calls):
                if call is self:
                    del _calls[i]
                    _global = _all_calls()
                    break
        _local.__dict__.setdefault("stack", []).append(replace(raw(), **self._given))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 traceback: TracebackType | None) -> None:
        _local.stack.pop()

    def __repr__(self) -> str:
        return f"options({', '.join(f'{name}={value!r}' for name, value in self._given.items())})"


# --- threads ----------------------------------------------------------------------------------------------------------

_forked = threading.local()


def _after_fork() -> None:
    # libgomp's workers do not survive a fork, and the thread that forked would wait for them for ever. Another thread
    # of the child gets workers of its own.
    global _lock
    _forked.serial = True
    _lock = threading.RLock()  # whoever held it is no more


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def effective_threads(settings: Settings) -> int:
    """Threads that a call made now in this thread may use."""
    if getattr(_forked, "serial", False):
        return 1
    threads = settings.num_threads if settings.num_threads is not None else default_num_threads()
    if threads > 1 and native_error() is None:
        from .native import _cpu

        if not _cpu.OPENMP:
            return threads if settings.backend == "numba" else 1  # Numba brings threads of its own
        # threadpoolctl and omp_set_num_threads lower OpenMP's own figure; what they take away stays away
        now = _cpu.openmp_threads()
        if now < _openmp_at_start():
            threads = min(threads, now)
        if threads > getattr(_started, "most", 1):
            threads = _tried_threads(threads)
    return threads


_started = threading.local()


def _tried_threads(threads: int) -> int:
    """`threads` where this process may start that many, otherwise 1.

    OpenMP's run-time library ends the process where it gets no thread (a limit of processes, or of address space, which
    their stacks take). It keeps the threads of each thread that calls it, so one try for each of those will do.
    """
    from .native import _cpu

    if _cpu.startable_threads(threads - 1) < threads - 1:
        return 1
    _started.most = threads
    return threads


@lru_cache(maxsize=1)
def _openmp_at_start() -> int:
    from .native import _cpu

    return _cpu.openmp_threads()


# --- reports ----------------------------------------------------------------------------------------------------------


def configuration() -> dict[str, str]:
    """What :func:`show_config` prints, as a dictionary."""
    import platform

    from . import __version__

    settings = current()
    report = {"fastconv": __version__, "python": f"{platform.python_version()} ({platform.python_implementation()})",
              "numpy": np.__version__, "platform": platform.platform(), "machine": platform.machine()}
    error = native_error()
    if error is None:
        from . import native

        report["isa"] = native.isa
        report["isas built"] = ", ".join(name if name in native.available_isas() else f"{name} (not on this CPU)"
                                         for name in native.ISAS)
        report["compiler"] = native._cpu.COMPILER
        report["openmp"] = str(native._cpu.OPENMP) if native._cpu.OPENMP else \
            "no: the extension modules were built without it, and run with one thread"
    else:
        report["isa"] = f"none: {error}"
        report["isas built"] = report["compiler"] = report["openmp"] = "none"
    report["numba"] = _numba_report()
    report["backends"] = ", ".join(name if backend_available(name) else f"{name} (not available)"
                                   for name in BACKENDS)
    report["backend"] = str(settings.backend)
    report["threads"] = str(effective_threads(settings))
    report["cpus"] = f"{os.cpu_count()}, of which this process may use {usable_cpus()}"
    report["accuracy"] = str(settings.accuracy)
    report["workspace limit"] = "none" if settings.workspace_limit is None else f"{settings.workspace_limit:,} bytes"
    set_variables = {name: value for name, value in os.environ.items()
                     if name.startswith(("FASTCONV_", "OMP_", "GOMP_", "KMP_", "NUMBA_"))}
    report["environment"] = ", ".join(f"{name}={value}" for name, value in sorted(set_variables.items())) or "nothing"
    return report


def _numba_report() -> str:
    """Numba's version; its threads and their layer only where it was used already, for it is not imported for this."""
    if not backend_available("numba"):
        return "not installed"
    from importlib.metadata import version  # slow to import, and only a report needs it

    report = version("numba")
    used = sys.modules.get("fastconv.jit.options")
    return f"{report}, {used.thread_pool_report()}" if used is not None else report


def show_config() -> None:
    """Print version, instruction set, threads and backends: what a bug report needs."""
    report = configuration()
    width = max(map(len, report))
    for name, value in report.items():
        print(f"{name:<{width}}  {value}", file=sys.stdout)
