"""The Cython backend: one module of kernels for each instruction set, of which the widest that this CPU runs is used.

``FASTCONV_ISA`` (``avx512``, ``avx2``, ``baseline``) overrides the choice when the package is imported.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ..waiting import while_openmp_is_loaded

with while_openmp_is_loaded():
    from . import _cpu  # the first module that is linked with OpenMP

#: For each instruction set that has a module: does this CPU run it? The widest first.
_RUNS: dict[str, bool] = {**_cpu.isa_table(), "baseline": True}

#: Names of the instruction sets that modules were built for, the widest first.
ISAS: tuple[str, ...] = tuple(_RUNS)


def available_isas() -> tuple[str, ...]:
    """Names of the instruction sets that were built and that this CPU runs, the widest first."""
    return tuple(name for name in ISAS if _RUNS[name])


def load(isa: str) -> ModuleType:
    """The kernel module of an instruction set.

    Raises
    ------
    ValueError
        Where there is no such module, or where this CPU cannot run it.
    """
    if isa not in _RUNS:
        raise ValueError(f"FASTCONV_ISA must be one of {', '.join(ISAS)}, got {isa!r}")
    if not _RUNS[isa]:
        raise ValueError(f"FASTCONV_ISA={isa}: this CPU can't run it; it runs {', '.join(available_isas())}")
    return importlib.import_module(f"._{isa}", __name__)


#: The instruction set in use and its kernels. Read both through this module: `using_isa` changes them.
isa: str = os.environ.get("FASTCONV_ISA") or available_isas()[0]
kernels: ModuleType = load(isa)


@contextmanager
def using_isa(name: str) -> Iterator[ModuleType]:
    """Use another instruction set's kernels, in the whole process. For tests and benchmarks."""
    global isa, kernels
    before = isa, kernels
    isa, kernels = name, load(name)
    try:
        yield kernels
    finally:
        isa, kernels = before
