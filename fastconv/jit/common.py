"""What the kernel files share.

Every kernel takes one-dimensional C-contiguous arrays and computes its indices itself. Slices inside of the loops would
be easier to read; but they test their bounds, which takes longer than to copy the few pixels of a row.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

import numpy as np

from .options import part

#: For indices, which are never negative here. Numba must otherwise test for it, and that keeps loops from vectorising.
U = np.uintp
_2 = U(2)


@part
def zero(to, at, count):
    for i in range(U(at), U(at + count)):
        to[i] = 0


@part
def fill(to, at, step, count, value):
    """to[at + i*step] = value"""
    t = U(at)
    if step == 1:
        for i in range(U(count)):
            to[t + i] = value
    else:
        for i in range(U(count)):
            to[t + i * U(step)] = value


@part
def copy(to, at, source, start, step, count):
    """to[at + i] = source[start + i*step]"""
    t, s = U(at), U(start)
    if step == 1:
        for i in range(U(count)):
            to[t + i] = source[s + i]
    elif step == 2:  # by itself: with a constant step LLVM loads vectors and takes every other lane
        for i in range(U(count)):
            to[t + i] = source[s + i * _2]
    else:
        for i in range(U(count)):
            to[t + i] = source[s + i * U(step)]


@part
def inside(size, start, step, count):
    """The range [first, stop) of i in [0, count) for which 0 <= start + i*step < size."""
    first = min(max(-(start // step), 0), count)
    return first, max(min(-((start - size) // step), count), first)
