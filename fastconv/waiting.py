"""How long the threads of the libraries below wait busily for work, where that can still be said.

Code that alternates our kernels with matrix products of NumPy's (a training step does) has two pools of threads on the same
cores. One that waits busily takes half of a core from the other: GNU libgomp's workers do for milliseconds after a parallel
region (a step of a small network took six times as long), those of NumPy's OpenBLAS for 20 (two threads were slower than one
in the convolutions of a network whose other layers are NumPy's; its step takes 0.8 of the time without). But a worker that
sleeps takes 25 microseconds and more to wake up, a quarter of a pooling of a few megabytes.

Both libraries read a variable of the environment once, when they are loaded. It is put back at once, and whoever has set it
has their way. Where another package loads the library first, it stays as it is: NumPy, too, if it is imported before us.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


@contextmanager
def _while_loading(name: str, value: str, *others: str) -> Iterator[None]:
    """Set a variable of the environment, unless it or one of the others is set, and remove it again."""
    ours = not {name, *others} & set(os.environ)
    if ours:
        os.environ[name] = value
    try:
        yield
    finally:
        if ours:
            os.environ.pop(name, None)


def while_openmp_is_loaded() -> AbstractContextManager[None]:
    """A context in which GNU libgomp may be loaded: its workers wait for 40 microseconds, as long as Python takes from one
    call to the next."""
    return _while_loading("GOMP_SPINCOUNT", "2000", "OMP_WAIT_POLICY")  # of 20 ns


#: NumPy is imported here, if it is not yet: the threads of its OpenBLAS wait for 2**20 ticks, 0.3 to 0.5 ms.
if "numpy" not in sys.modules:
    with _while_loading("OPENBLAS_THREAD_TIMEOUT", "20"):
        import numpy  # noqa: F401
