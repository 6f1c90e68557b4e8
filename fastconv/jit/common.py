"""What the kernel files share.

Every kernel takes one-dimensional C-contiguous arrays and computes its indices itself. Slices inside of the loops would
be easier to read; but they test their bounds, which takes longer than to copy the few pixels of a row.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from typing import Any

import numpy as np

from .options import numba, part

#: For indices, which are never negative here. Numba must otherwise test for it, and that keeps loops from vectorising.
U = np.uintp
_1, _2 = U(1), U(2)

#: How far ahead of its use memory is asked for, in cells: hardware looks ahead too, but not across pages.
AHEAD = 1024
_LINE = U(16)  # cells: a cache line of float32, half of one of float64


@numba.extending.intrinsic
def _prefetch(typing: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from llvmlite import ir

        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # for reading, to be kept, data
        builder.call(function, [builder.bitcast(builder.gep(data, [args[1]]), byte), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return numba.void(array, index), generate


@part
def prefetch(source, at, count):
    """Ask for `count` cells from source[at] on. (A loop of its own: one with a prefetch in it is not vectorised.)"""
    for i in range(U(at), min(U(at + count), U(source.size)), _LINE):
        _prefetch(source, i)


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
    if step == 1:  # most often, and without divisions
        first = min(max(-start, 0), count)
        return first, max(min(size - start, count), first)
    first = min(max(-(start // step), 0), count)
    return first, max(min(-((start - size) // step), count), first)


@part
def copy_pairs(to, at, other, source, start, count):
    """Every second cell from source[start] on to to[at], those between to to[other].

    Both at once: from a loop over one of them LLVM makes gathers, from this one loads and permutations.
    """
    t, o, s = U(at), U(other), U(start)
    for i in range(U(count)):
        to[t + i], to[o + i] = source[s + i * _2], source[s + i * _2 + _1]


@part
def copy_row_pairs(to, at, other, length, source, start, first, stop, first_2, stop_2, pad):
    """One row of an image, split in two of `length` cells: its cells start + 2*i and those after them.

    The first ones lie in the image for i in [first, stop), the second ones in [first_2, stop_2); else it is `pad`.
    """
    if first == 0 and first_2 == 0 and stop_2 == length:
        copy_pairs(to, at, other, source, start, length)
        return
    both = max(stop_2 - first, 0)
    fill(to, at, 1, first, pad)
    fill(to, other, 1, first_2, pad)
    if first_2 < min(first, stop_2):  # the second one may begin a cell earlier
        to[other + first_2] = source[start + 1 + first_2 * 2]
    copy_pairs(to, at + first, other + first, source, start + first * 2, both)
    if first + both < stop:  # and end a cell earlier
        to[at + stop - 1] = source[start + (stop - 1) * 2]
    fill(to, at + stop, 1, length - stop, pad)
    fill(to, other + stop_2, 1, length - stop_2, pad)
