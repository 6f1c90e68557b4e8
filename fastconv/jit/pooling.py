"""Max and average pooling and their gradients, in Numba. Workers take planes (n, c); none touches another's.

Windows are separable: forward, the rows of a window are first combined into one row, then the columns of that, which at
stride 2 is split in even and odd cells before. Only the search for the first maximum (indices) looks at whole windows.

What it compiles to (Numba 0.68, LLVM 22, AVX-512, from inspect_asm): a maximum is vcmpltps, vcmpunordps, korw and a
masked move, since NaN must win, and vmaxps has another idea of that; the split is two loads and two vpermt2ps; the
search compares ymm of values and moves zmm of 64-bit indices under the same mask. Sums are vaddps, divisors a vmulpd and
a vcvtpd2ps away from vdivps. What has other strides gathers, and adding at indices is scalar.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .. import memory
from ..geometry import Pool2dGeometry, Window2dGeometry
from .common import U, copy, fill, inside, zero
from .im2col import window
from .options import Kernel, flat, part, prange, usable_workers

Array = np.ndarray

_1, _2 = U(1), U(2)


# --- maximum ----------------------------------------------------------------------------------------------------------

@part
def larger(value, best):
    """The larger one, or NaN: a comparison with NaN is false, so that it gets in and never out again (rule 5)."""
    return value if (value > best) | (value != value) else best


@part
def split(row, halves, count):
    """Even cells of `row` to the first half of `halves`, odd ones to the second.

    Both at once: from a loop over one of them LLVM makes gathers, from this one loads and permutations.
    """
    odd = U(halves.size // 2)
    for q in range(U(count)):
        halves[q], halves[odd + q] = row[q * _2], row[q * _2 + _1]


@part
def tap_row(row, halves, sw, tap):
    """Where tap `tap` of the first window is, in `halves` at stride 2 and in `row` otherwise."""
    return tap % 2 * (halves.size // 2) + tap // 2 if sw == 2 else tap


@part
def max_columns(v, row, out, to, halves):
    """The maximum of each window's columns in the combined row."""
    kw, sw, dw, count = v.kw, v.sw, v.dw, U(v.ow)
    if sw == 2:
        split(row, halves, v.ow + (kw - 1) * dw // 2)
    cells = halves if sw == 2 else row
    step, o = U(1 if sw == 2 else sw), U(to)
    if kw == 1 or step != _1:
        copy(out, to, cells, 0, step, count)
    for j in range(1, kw):
        s = U(tap_row(row, halves, sw, j * dw))
        if step != _1:
            for q in range(count):
                out[o + q] = larger(cells[s + q * step], out[o + q])
        elif j == 1:
            for q in range(count):
                out[o + q] = larger(cells[s + q], cells[q])
        else:
            for q in range(count):
                out[o + q] = larger(cells[s + q], out[o + q])


@part
def max_plane(v, x, plane, out, to, row, halves):
    """Values only. `row` is at least as wide as the combined row with its padding, which holds -inf."""
    h, w, kh = v.h, v.w, v.kh
    fill(row, 0, 1, row.size, -np.inf)
    left, width = U(v.left), U(w)
    for y in range(v.oh):
        start = y * v.sh - v.top
        first, stop = inside(h, start, v.dh, kh)
        s = U(plane + (start + first * v.dh) * w)
        if stop - first == 1:
            for k in range(width):
                row[left + k] = x[s + k]
        else:
            t = U(plane + (start + (first + 1) * v.dh) * w)
            for k in range(width):
                row[left + k] = larger(x[t + k], x[s + k])
            for i in range(first + 2, stop):
                s = U(plane + (start + i * v.dh) * w)
                for k in range(width):
                    row[left + k] = larger(x[s + k], row[left + k])
        max_columns(v, row, out, to + y * v.ow, halves)


@part
def max_tap(out, indices, o, x, s, step, count, cell):
    """Let one tap of each window compete: a cell that is larger, the first one, or the first NaN (rule 5)."""
    for q in range(count):
        value, best, index = x[s + q * step], out[o + q], indices[o + q]
        wins = (index < 0) | (value > best) | ((value != value) & (best == best))
        out[o + q] = value if wins else best
        indices[o + q] = cell + np.int64(q * step) if wins else index


@part
def max_plane_indices(v, x, plane, out, indices, to):
    """Values and the first cell in row-major order that has them."""
    w, sw = v.w, v.sw
    for y in range(v.oh):
        o = to + y * v.ow
        fill(indices, o, 1, v.ow, -1)
        fill(out, o, 1, v.ow, -np.inf)
        start = y * v.sh - v.top
        rows_first, rows_stop = inside(v.h, start, v.dh, v.kh)
        for i in range(rows_first, rows_stop):
            row = (start + i * v.dh) * w
            for j in range(v.kw):
                base = j * v.dw - v.left
                first, stop = inside(w, base, sw, v.ow)
                cell = row + base + first * sw
                count = U(stop - first)
                if sw == 1:
                    max_tap(out, indices, U(o + first), x, U(plane + cell), U(1), count, cell)
                elif sw == 2:
                    max_tap(out, indices, U(o + first), x, U(plane + cell), _2, count, cell)
                else:
                    max_tap(out, indices, U(o + first), x, U(plane + cell), U(sw), count, cell)


@Kernel
def max_planes(workers, windows, x, out, indices, rows, halves):
    """`rows` and `halves` are (workers, width); without indices an array of none."""
    for worker in prange(workers):
        v = windows[0]
        planes = v.n * v.c
        for i in range(planes * worker // workers, planes * (worker + 1) // workers):
            if indices.size == 0:
                max_plane(v, x, i * v.h * v.w, out, i * v.oh * v.ow, rows[worker], halves[worker])
            else:
                max_plane_indices(v, x, i * v.h * v.w, out, indices, i * v.oh * v.ow)


@Kernel
def add_at(workers, dout, indices, places, cells, out):
    """Add `places` values of dout up in the `cells` of each plane, if all indices are in there. Returns whether."""
    low, high = np.int64(0), np.int64(0)
    for i in range(indices.size):
        low, high = min(low, indices[i]), max(high, indices[i])
    if low < 0 or high >= cells:
        return False
    planes = indices.size // places
    for worker in prange(workers):
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            zero(out, plane * cells, cells)
            base = U(plane * cells)
            for i in range(U(plane * places), U((plane + 1) * places)):
                out[base + U(indices[i])] += dout[i]
    return True


# --- average ----------------------------------------------------------------------------------------------------------

@part
def divide(out, o, count, row, columns, fixed):
    """Divide by row * columns, or by `fixed` where that is not 0. (In place: what overlaps is not vectorised.)"""
    if fixed != 0:
        for q in range(count):
            out[o + q] /= fixed
    else:
        for q in range(count):
            out[o + q] /= out.dtype.type(row * columns[q])


@part
def add_columns(v, row, out, to, halves):
    """The sum of each window's columns in the combined row."""
    kw, sw, dw, count = v.kw, v.sw, v.dw, U(v.ow)
    if sw == 2:
        split(row, halves, v.ow + (kw - 1) * dw // 2)
    cells = halves if sw == 2 else row
    step, o = U(1 if sw == 2 else sw), U(to)
    if kw == 1 or step != _1:
        copy(out, to, cells, 0, step, count)
    for j in range(1, kw):
        s = U(tap_row(row, halves, sw, j * dw))
        if step != _1:
            for q in range(count):
                out[o + q] += cells[s + q * step]
        elif j == 1:
            for q in range(count):
                out[o + q] = cells[q] + cells[s + q]
        else:
            for q in range(count):
                out[o + q] += cells[s + q]


@part
def avg_plane(v, x, plane, rows, columns, fixed, out, to, row, halves):
    """Sum over the cells inside of the image, divided."""
    h, w, ow = v.h, v.w, v.ow
    zero(row, 0, row.size)
    left, width = U(v.left), U(w)
    for y in range(v.oh):
        start = y * v.sh - v.top
        first, stop = inside(h, start, v.dh, v.kh)
        s, t = U(plane + (start + first * v.dh) * w), U(plane + (start + (first + 1) * v.dh) * w)
        if first == stop:  # with dilation a window may have no cell inside
            zero(row, v.left, w)
        elif first + 1 == stop:
            copy(row, v.left, x, s, 1, w)
        else:
            for k in range(width):
                row[left + k] = x[s + k] + x[t + k]
        for i in range(first + 2, stop):
            s = U(plane + (start + i * v.dh) * w)
            for k in range(width):
                row[left + k] += x[s + k]
        add_columns(v, row, out, to + y * ow, halves)
        divide(out, U(to + y * ow), U(ow), rows[y], columns, fixed)


@part
def avg_plane_backward(v, dout, at, rows, columns, fixed, out, plane, row):
    """Each window's share, added to its cells: to those of one row of windows first, then to the rows of the image."""
    h, w, sw, dw, ow = v.h, v.w, v.sw, v.dw, v.ow
    share = U(row.size - ow)  # the shares lie at the end of `row`
    left, width, step = U(v.left), U(w), U(sw)
    zero(out, plane, h * w)
    for y in range(v.oh):
        zero(row, 0, row.size - ow)
        copy(row, share, dout, at + y * ow, 1, ow)
        divide(row, share, U(ow), rows[y], columns, fixed)
        for j in range(v.kw):
            gap = U(j * dw)
            for q in range(U(ow)):
                row[q * step + gap] += row[share + q]
        start = y * v.sh - v.top
        first, stop = inside(h, start, v.dh, v.kh)
        for i in range(first, stop):
            to = U(plane + (start + i * v.dh) * w)
            for k in range(width):
                out[to + k] += row[left + k]


@Kernel
def avg_planes(workers, windows, backward, x, rows, columns, fixed, out, scratch, halves):
    for worker in prange(workers):
        v = windows[0]
        row = scratch[worker]
        planes = v.n * v.c
        for i in range(planes * worker // workers, planes * (worker + 1) // workers):
            if backward:
                avg_plane_backward(v, x, i * v.oh * v.ow, rows, columns, fixed, out, i * v.h * v.w, row)
            else:
                avg_plane(v, x, i * v.h * v.w, rows, columns, fixed, out, i * v.oh * v.ow, row, halves[worker])


# --- entry points -----------------------------------------------------------------------------------------------------

_NO_INDICES = np.empty(0, np.int64)


def _rows(geometry: Pool2dGeometry, more: int, workers: int, dtype: np.dtype) -> Array:
    """Two rows for each worker, at least as wide as the image with the padding that windows reach, and `more`."""
    # with ceil_mode the last window may reach beyond the padding
    reach = (geometry.out_size[1] - 1) * geometry.stride[1] + geometry.extent[1]
    width = max(geometry.pads[1][0] + geometry.in_size[1], reach) + 2 + more
    line = 64 // dtype.itemsize
    return memory.scratch_array("scratch memory", (2, workers, -(-width // line) * line + line), dtype)


def max_pool(x: Array, geometry: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None:
    """Maximum of each window of float32 or float64 x into `out`, and its place into int64 `indices` where not None."""
    workers = usable_workers(threads)
    max_planes(workers, window(geometry), flat(x), flat(out), _NO_INDICES if indices is None else flat(indices),
               *_rows(geometry, 0, workers, x.dtype))


def max_pool_backward(dout: Array, indices: Array, geometry: Window2dGeometry, out: Array, threads: int) -> bool:
    """Add dout up in the cells of `out` that `indices` name; False, with `out` untouched, where one is in no plane."""
    return bool(add_at(usable_workers(threads), flat(dout), flat(indices), geometry.positions,
                       geometry.in_size[0] * geometry.in_size[1], flat(out)))


@lru_cache(maxsize=256)
def _divisors(geometry: Pool2dGeometry, count_include_pad: bool) -> tuple[Array, Array, float]:
    """Each window's divisor as ``rows[y] * columns[q]``, and the one of all windows, or 0 where they differ."""
    rows, columns = (np.array(geometry.divisors(axis, count_include_pad), np.float64) for axis in (0, 1))
    same = np.ptp(rows) == 0 and np.ptp(columns) == 0
    return rows, columns, float(rows[0] * columns[0]) if same else 0.0


def avg_pool(x: Array, geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None, backward: bool,
             out: Array, threads: int) -> None:
    """Average pooling of float32 or float64 x into `out`; with `backward`, x is dout and `out` the input's gradient."""
    workers = usable_workers(threads)
    rows, columns, same = _divisors(geometry, count_include_pad)
    scratch = _rows(geometry, geometry.out_size[1] if backward else 0, workers, x.dtype)
    fixed = x.dtype.type(divisor_override or same)
    avg_planes(workers, window(geometry), backward, flat(x), rows, columns, fixed, flat(out), *scratch)
