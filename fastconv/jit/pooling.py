"""Max and average pooling and their gradients, in Numba. Workers take planes (n, c); none touches another's.

A plane is worked on in bands of rows, so that loops are long (LLVM's vectors take 16 cells at once, and what is left over
one by one) and stay in the first-level cache. Windows are separable: the rows of a window are first folded into one row,
then the columns of all rows of the band in one loop. Where a maximum's place is asked for, rows and columns are instead
laid out as for direct convolution, so that each tap is one flat array, and taps compete in the order of rule 5.

What it compiles to (Numba 0.68 with LLVM 22, on AVX-512; from inspect_asm): maxima are vmaxps and sums vaddps, four zmm
in a turn, and two columns at stride 2 two vpermt2ps more. A tap that competes is vmaxps, vcmpltps and a masked vmovdqa32:
places are 32-bit numbers until they are stored. vmaxps has its own idea of NaN, so bands are looked through for one
first (vcmpunordps, korw), and one that has any is folded with comparisons and masks. Other strides gather, divisors are a
vmulpd and a vcvtpd2ps away from vdivps, and adding at indices is scalar.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .. import memory
from ..geometry import Pool2dGeometry, Window2dGeometry
from .common import AHEAD, U, copy, copy_pairs, copy_row_pairs, fill, inside, prefetch, zero
from .im2col import window
from .options import Kernel, flat, part, prange, usable_workers

Array = np.ndarray

_1, _2 = U(1), U(2)

STEP = 16                # cells of the longest vector
_STEP = U(STEP)

BAND = 1024              # cells of a band, with which everything stays in the first-level cache
MOST_PLACES = 2**31 - 1  # cells of a plane whose indices fit 32 bits, as which they are faster
MOST_FLAT = 2**17        # cells of a flat copy: larger windows than fit there have more work than loops have overhead

#: How a pooling is cut up, and the elements of a worker's pieces of scratch.
POOLING = np.dtype([(name, np.int64) for name in ("band", "pitch", "line", "first", "second", "third")])


# --- folds ------------------------------------------------------------------------------------------------------------
# The same for sums and for maxima: op(best, value) is one of the functions below.

@part
def plus(best, value):
    return best + value


@part
def greater(best, value):
    """The greater one, the first one of equals. One instruction; not for NaN."""
    return value if value > best else best


@part
def greater_or_nan(best, value):
    """A comparison with NaN is false: NaN gets in and never out again (rule 5)."""
    return value if (value > best) | (value != value) else best


def folding(op):
    """Functions that fold columns with `op`, and whole windows. (What takes `op` as an argument can't be cached.)"""

    @part
    def fold_rows(x, at, step, count, row, left, width):
        """row[left + k] = op over `count` rows of x, the first at x[at] and `step` cells from one to the next.

        Zeros without a row: with dilation an average may be of no cell.
        """
        a, b, c, d = U(at), U(at + step), U(at + 2 * step), U(left)
        if count == 0:
            zero(row, left, width)
        elif count == 1:
            for k in range(U(width)):
                row[d + k] = x[a + k]
        elif count == 2:
            for k in range(U(width)):
                row[d + k] = op(x[a + k], x[b + k])
        else:
            for k in range(U(width)):
                row[d + k] = op(op(x[a + k], x[b + k]), x[c + k])
        for i in range(3, count):
            a = U(at + i * step)
            for k in range(U(width)):
                row[d + k] = op(row[d + k], x[a + k])

    @part
    def fold_columns(cells, gap, taps, out, at, count):
        """out[at + q] = op over `taps` cells, `gap` from one to the next, the first at cells[q]."""
        o, a, b = U(at), U(gap), U(2 * gap)
        if taps == 1:
            for q in range(U(count)):
                out[o + q] = cells[q]
        elif taps == 2:
            for q in range(U(count)):
                out[o + q] = op(cells[q], cells[a + q])
        else:
            for q in range(U(count)):
                out[o + q] = op(op(cells[q], cells[a + q]), cells[b + q])
        for j in range(3, taps):
            a = U(j * gap)
            for q in range(U(count)):
                out[o + q] = op(out[o + q], cells[a + q])

    @part
    def fold_pairs(cells, halves, gap, taps, out, at, count):
        """The same for windows two cells apart, the first tap at cells[2*q].

        More than two taps: even and odd cells are parted first, since LLVM makes permutations of pairs, gathers of others.
        """
        o = U(at)
        if taps == 2 and gap == 1:
            for q in range(U(count)):
                out[o + q] = op(cells[q * _2], cells[q * _2 + _1])
            return
        odd = halves.size // 2
        copy_pairs(halves, 0, odd, cells, 0, count + (taps - 1) * gap // 2)
        b, c = U(gap % 2 * odd + gap // 2), U(gap)
        if taps == 1:
            for q in range(U(count)):
                out[o + q] = halves[q]
        elif taps == 2:
            for q in range(U(count)):
                out[o + q] = op(halves[q], halves[b + q])
        else:
            for q in range(U(count)):
                out[o + q] = op(op(halves[q], halves[b + q]), halves[c + q])
        for j in range(3, taps):
            a = U(j * gap % 2 * odd + j * gap // 2)
            for q in range(U(count)):
                out[o + q] = op(out[o + q], halves[a + q])

    @part
    def fold_band(v, p, x, plane, y0, y1, rows, halves, to, at):
        """Each window of output rows [y0, y1), row after row `p.line` cells from to[at] on.

        First the rows of windows are folded into `rows`, which has beside the image's columns what changes nothing.
        """
        ahead = p.band * v.sh * v.w + AHEAD
        for y in range(y0, y1):
            start = y * v.sh - v.top
            first, stop = inside(v.h, start, v.dh, v.kh)
            prefetch(x, plane + start * v.w + ahead, v.sh * v.w)
            fold_rows(x, plane + (start + first * v.dh) * v.w, v.dh * v.w, stop - first, rows,
                      (y - y0) * p.pitch + v.left, v.w)
        count = (y1 - y0 - 1) * p.line + v.ow
        if v.sw == 1:
            fold_columns(rows, v.dw, v.kw, to, at, count)
        elif v.sw == 2:
            fold_pairs(rows, halves, v.dw, v.kw, to, at, count)
        else:
            copy(to, at, rows, 0, v.sw, count)
            o, step = U(at), U(v.sw)
            for j in range(1, v.kw):
                a = U(j * v.dw)
                for q in range(U(count)):
                    to[o + q] = op(to[o + q], rows[q * step + a])

    return fold_columns, fold_band


add_columns, sums = folding(plus)
_, maxima = folding(greater)
_, maxima_or_nan = folding(greater_or_nan)


@part
def copy_rows(to, at, count, source, step, rows):
    """The first `count` of each `step` cells of `source` to to[at], without gaps."""
    for i in range(rows):
        copy(to, at + i * count, source, i * step, 1, count)


# --- maximum ----------------------------------------------------------------------------------------------------------
# Nearly always there is no NaN, and without one a maximum is one instruction. So cells are looked at before they are
# used, and from the first NaN on the rest of a plane goes the careful way.

@part
def has_nan(x, at, count):
    found = False
    for i in range(U(at), U(at + count)):
        found |= x[i] != x[i]
    return found


@part
def take(best, place, count, cells, a, cell_a):
    """Let a tap of each window compete: a value that is greater than `best` gets in there, and its cell in `place`."""
    for q in range(count):
        value, v, p = cells[a + q], best[q], place[q]
        place[q] = cell_a if value > v else p
        best[q] = value if value > v else v


@part
def take2(best, place, count, cells, a, b, cell_a, cell_b):
    for q in range(count):
        value, v, p = cells[a + q], best[q], place[q]
        p = cell_a if value > v else p
        v = value if value > v else v
        value = cells[b + q]
        place[q] = cell_b if value > v else p
        best[q] = value if value > v else v


@part
def take3(best, place, count, cells, a, b, c, cell_a, cell_b, cell_c):
    for q in range(count):
        value, v, p = cells[a + q], best[q], place[q]
        p = cell_a if value > v else p
        v = value if value > v else v
        value = cells[b + q]
        p = cell_b if value > v else p
        v = value if value > v else v
        value = cells[c + q]
        place[q] = cell_c if value > v else p
        best[q] = value if value > v else v


@part
def fill_flat(v, p, x, plane, y0, rows, to):
    """Copy what `rows` rows of windows see, with -inf for padding, so that each tap sees one flat array, shifted.

    As in convolution (:mod:`fastconv.jit.direct`): rows and columns are split by their residues modulo the stride.
    """
    w, sw, length = v.w, v.sw, p.line
    lines = p.band + (v.kh - 1) * v.dh // v.sh
    slot = lines * length
    ahead = p.band * v.sh * w + AHEAD
    first, stop = inside(w, -v.left, sw, length)
    first_2, stop_2 = inside(w, 1 - v.left, sw, length)
    for a in range(min(v.sh, (v.kh - 1) * v.dh + 1)):
        for r in range(rows + (v.kh - 1) * v.dh // v.sh):
            row = (y0 + r) * v.sh - v.top + a
            prefetch(x, plane + row * w + ahead, w)
            line = a * sw * slot + r * length
            if not 0 <= row < v.h:
                for b in range(sw):
                    fill(to, line + b * slot, 1, length, -np.inf)
            elif sw == 2:
                copy_row_pairs(to, line, line + slot, length, x, plane + row * w - v.left, first, stop, first_2, stop_2,
                               -np.inf)
            else:
                for b in range(sw):
                    start = b - v.left
                    begin, end = inside(w, start, sw, length)
                    at = line + b * slot
                    fill(to, at, 1, begin, -np.inf)
                    copy(to, at + begin, x, plane + row * w + start + begin * sw, sw, end - begin)
                    fill(to, at + end, 1, length - end, -np.inf)


@part
def tap_at(v, p, t):
    """How far tap t of a window is in the flat copy, and in the image."""
    i, j = t // v.kw * v.dh, t % v.kw * v.dw
    slot = (p.band + (v.kh - 1) * v.dh // v.sh) * p.line
    return U((i % v.sh * v.sw + j % v.sw) * slot + i // v.sh * p.line + j // v.sw), np.int32(i * v.w + j)


@part
def first_cells(v, p, y0, y1, place):
    """To `place` each window's first cell inside of the image, from which it starts: all may be -inf."""
    fill(place, 0, 1, (y1 - y0) * p.line, 0)
    edge = min((v.left + v.sw - 1) // v.sw, v.ow)
    for y in range(y0, y1):
        at = (y - y0) * p.line
        first, _ = inside(v.h, y * v.sh - v.top, v.dh, v.kh)
        if first > 0:
            fill(place, at, 1, v.ow, np.int32(first * v.dh * v.w))
        for q in range(edge):
            place[at + q] += np.int32((v.left - q * v.sw + v.dw - 1) // v.dw * v.dw)


@part
def max_band_places(v, p, x, plane, y0, y1, flats, best, place, out, indices, to, limit):
    """Maxima of output rows [y0, y1) of a plane without NaN, and the first cells in row-major order that have them.

    Each tap has one number for all windows in `place`: a cell counts from the window's first one.
    """
    fill_flat(v, p, x, plane, y0, y1 - y0, flats)
    first_cells(v, p, y0, y1, place)
    count = U((y1 - y0) * p.line)
    for k in range(count):
        best[k] = -np.inf
    taps = v.kh * v.kw
    t = 0
    while t < taps:
        a, cell_a = tap_at(v, p, t)
        b, cell_b = tap_at(v, p, min(t + 1, taps - 1))
        c, cell_c = tap_at(v, p, min(t + 2, taps - 1))
        if taps - t == 1:
            take(best, place, count, flats, a, cell_a)
        elif taps - t == 2 or taps - t == 4:
            take2(best, place, count, flats, a, b, cell_a, cell_b)
            t += 1
        else:
            take3(best, place, count, flats, a, b, c, cell_a, cell_b, cell_c)
            t += 2
        t += 1
    step = (v.ow + STEP - 1) // STEP
    for y in range(y0, y1):
        o, s = U(to + y * v.ow), U((y - y0) * p.line)
        origin = (y * v.sh - v.top) * v.w - v.left
        if to + y * v.ow + step * STEP <= limit:  # whole vectors: what is too much is overwritten by the next row
            for q in range(U(step) * _STEP):
                out[o + q] = best[s + q]
            for q in range(U(step) * _STEP):
                indices[o + q] = np.int64(place[s + q]) + (np.int64(q) * v.sw + origin)
        else:
            for q in range(U(v.ow)):
                out[o + q] = best[s + q]
                indices[o + q] = np.int64(place[s + q]) + (np.int64(q) * v.sw + origin)


@part
def max_tap(out, indices, o, x, s, step, count, cell):
    """Let one tap of each window compete: a cell that is larger, the first one, or the first NaN (rule 5)."""
    for q in range(count):
        value, best, index = x[s + q * step], out[o + q], indices[o + q]
        wins = (index < 0) | (value > best) | ((value != value) & (best == best))
        out[o + q] = value if wins else best
        indices[o + q] = cell + np.int64(q * step) if wins else index


@part
def max_row_places_or_nan(v, x, plane, y, out, indices, to):
    """The same for one row and any numbers."""
    w, sw = v.w, v.sw
    fill(indices, to, 1, v.ow, -1)
    fill(out, to, 1, v.ow, -np.inf)
    start = y * v.sh - v.top
    rows_first, rows_stop = inside(v.h, start, v.dh, v.kh)
    for i in range(rows_first, rows_stop):
        row = (start + i * v.dh) * w
        for j in range(v.kw):
            base = j * v.dw - v.left
            first, stop = inside(w, base, sw, v.ow)
            cell = row + base + first * sw
            max_tap(out, indices, U(to + first), x, U(plane + cell), U(sw), U(stop - first), cell)


@part
def max_band(v, p, x, plane, y0, y1, out, indices, to, limit, first, second, third):
    """Output rows [y0, y1) of one plane, with indices where they are asked for."""
    begin = max(y0 * v.sh - v.top, 0)
    end = min((y1 - 1) * v.sh - v.top + (v.kh - 1) * v.dh + 1, v.h)
    careful = has_nan(x, plane + begin * v.w, max(end - begin, 0) * v.w)
    if indices.size == 0:
        at = to + y0 * v.ow
        direct = p.line == v.ow
        if careful and direct:
            maxima_or_nan(v, p, x, plane, y0, y1, first, third, out, at)
        elif direct:
            maxima(v, p, x, plane, y0, y1, first, third, out, at)
        elif careful:
            maxima_or_nan(v, p, x, plane, y0, y1, first, third, second, 0)
        else:
            maxima(v, p, x, plane, y0, y1, first, third, second, 0)
        if not direct:
            copy_rows(out, at, v.ow, second, p.line, y1 - y0)
    elif careful or p.band == 0:
        for y in range(y0, y1):
            max_row_places_or_nan(v, x, plane, y, out, indices, to + y * v.ow)
    else:
        max_band_places(v, p, x, plane, y0, y1, first, second, third.view(np.int32), out, indices, to, limit)


@Kernel
def max_planes(workers, windows, poolings, x, out, indices, scratch):
    """`scratch` is (workers, elements); without indices an array of none."""
    for worker in prange(workers):
        v, p = windows[0], poolings[0]
        first, second = scratch[worker, :p.first], scratch[worker, p.first:p.first + p.second]
        third = scratch[worker, p.first + p.second:]
        fill(first, 0, 1, first.size, -np.inf)
        planes = v.n * v.c
        limit = planes * (worker + 1) // workers * v.oh * v.ow  # where this worker's results end
        for i in range(planes * worker // workers, planes * (worker + 1) // workers):
            for y in range(0, v.oh, max(p.band, 1)):
                max_band(v, p, x, i * v.h * v.w, y, min(y + max(p.band, 1), v.oh), out, indices, i * v.oh * v.ow, limit,
                         first, second, third)


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
def avg_band(v, p, x, plane, y0, y1, rows, columns, fixed, out, to, first, second, third):
    """Sums over the cells inside of the image, divided."""
    at = to + y0 * v.ow
    if p.line == v.ow:
        sums(v, p, x, plane, y0, y1, first, third, out, at)
    else:
        sums(v, p, x, plane, y0, y1, first, third, second, 0)
        copy_rows(out, at, v.ow, second, p.line, y1 - y0)
    if fixed != 0:
        divide(out, U(at), U((y1 - y0) * v.ow), 0.0, columns, fixed)
    else:
        for y in range(y0, y1):
            divide(out, U(to + y * v.ow), U(v.ow), rows[y], columns, fixed)


@part
def spread(v, p, shares, count, to):
    """to[k] = the sum of the shares of all windows in a row that have column k of the padded image.

    `shares` has rows p.line cells apart, with zeros between them and p.line zeros before.
    """
    a = U(p.line)
    if v.sw == 1:
        add_columns(shares, v.dw, v.kw, to, 0, count)  # the shares of kw windows that end one after the other
    elif v.sw == 2 and v.kw == 2 and v.dw == 1:
        for q in range(U(count)):
            share = shares[a + q]
            to[q * _2], to[q * _2 + _1] = share, share
    elif v.sw == 2 and v.kw == 3 and v.dw == 1:
        for q in range(U(count)):
            share = shares[a + q]
            to[q * _2], to[q * _2 + _1] = share + shares[a + q - _1], share
    else:
        zero(to, 0, to.size)
        step = U(v.sw)
        for j in range(v.kw):
            gap = U(j * v.dw)
            for q in range(U(count)):
                to[q * step + gap] += shares[a + q]


@part
def avg_plane_backward(v, p, dout, at, rows, columns, fixed, out, plane, first, second):
    """Each window's share, added to its cells: to those of one row of windows first, then to the rows of the image."""
    h, w, ow, line = v.h, v.w, v.ow, p.line
    left, width = U(v.left), U(w)
    zero(first, 0, first.size)
    margin = (v.kw - 1) * v.dw if v.sw == 1 else line
    written = 0  # rows of the image
    if v.dh != 1:
        zero(out, plane, h * w)
        written = h
    for y0 in range(0, v.oh, p.band):
        y1 = min(y0 + p.band, v.oh)
        prefetch(dout, at + y0 * ow + AHEAD, (y1 - y0) * ow)
        for y in range(y0, y1):
            to = margin + (y - y0) * line
            copy(first, to, dout, at + y * ow, 1, ow)
            divide(first, U(to), U(ow), rows[y], columns, fixed)
        spread(v, p, first, (y1 - y0) * line, second)
        for y in range(y0, y1):
            start = y * v.sh - v.top
            begin, stop = inside(h, start, v.dh, v.kh)
            s = U((y - y0) * p.pitch) + left
            for i in range(begin, stop):
                row = start + i * v.dh
                to = U(plane + row * w)
                if row >= written:
                    zero(out, plane + written * w, (row - written) * w)
                    for k in range(width):
                        out[to + k] = second[s + k]
                    written = row + 1
                else:
                    for k in range(width):
                        out[to + k] += second[s + k]
    zero(out, plane + written * w, (h - written) * w)


@Kernel
def avg_planes(workers, windows, poolings, backward, x, rows, columns, fixed, out, scratch):
    """`scratch` is (workers, elements)."""
    for worker in prange(workers):
        v, p = windows[0], poolings[0]
        first, second = scratch[worker, :p.first], scratch[worker, p.first:p.first + p.second]
        third = scratch[worker, p.first + p.second:]
        zero(first, 0, first.size)
        planes = v.n * v.c
        for i in range(planes * worker // workers, planes * (worker + 1) // workers):
            if backward:
                avg_plane_backward(v, p, x, i * v.oh * v.ow, rows, columns, fixed, out, i * v.h * v.w, first, second)
            else:
                for y in range(0, v.oh, p.band):
                    avg_band(v, p, x, i * v.h * v.w, y, min(y + p.band, v.oh), rows, columns, fixed, out,
                             i * v.oh * v.ow, first, second, third)


# --- entry points -----------------------------------------------------------------------------------------------------

_NO_INDICES = np.empty(0, np.int64)


@lru_cache(maxsize=256)
def _layout(geometry: Pool2dGeometry, kind: str) -> Array:
    """How to cut up a pooling of a `kind`: "fold", "places" (maxima with indices) or "spread" (averages backward)."""
    (kh, kw), (sh, sw), (dh, dw), (oh, ow) = geometry.kernel, geometry.stride, geometry.dilation, geometry.out_size
    slack = 64  # loops may run over the end of a row
    if kind == "places":
        line, halo = ow + (kw - 1) * dw // sw, (kh - 1) * dh // sh
        slots = min(sh, geometry.extent[0]) * sw
        band = min(max(4 * BAND // (slots * line) - halo, 1), oh)
        cells = slots * (band + halo) * line
        if cells > MOST_FLAT or geometry.in_size[0] * geometry.in_size[1] > MOST_PLACES:
            return np.array([(0, 0, 0, 0, 0, 0)], POOLING)
        return np.array([(band, 0, line, cells + slack, band * line + slack, band * line + slack)], POOLING)
    # with ceil_mode the last window may reach beyond the padding
    reach = (ow - 1) * sw + geometry.extent[1]
    line = -(-max(geometry.pads[1][0] + geometry.in_size[1], reach) // sw)
    pitch = line * sw
    band = min(max(BAND // pitch, 1), oh)
    if kind == "spread":  # with zeros before and behind
        return np.array([(band, pitch, line, (band + 2) * line + slack, (band + 1) * pitch + slack, 0)], POOLING)
    halves = (band + 1) * pitch + 2 * slack if sw == 2 else 0
    return np.array([(band, pitch, line, (band + 1) * pitch + slack, band * line + slack, halves)], POOLING)


def _scratch(layout: Array, workers: int, dtype: np.dtype) -> Array:
    """The pieces of scratch of all workers, a line of cache more for each."""
    line = 64 // dtype.itemsize
    elements = int(layout["first"][0] + layout["second"][0] + layout["third"][0])
    length = -(-elements // line) * line + line
    nbytes = workers * length * dtype.itemsize
    return memory.scratch(nbytes)[:nbytes].view(dtype).reshape(workers, length)


def max_pool(x: Array, geometry: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None:
    """Maximum of each window of float32 or float64 x into `out`, and its place into int64 `indices` where not None."""
    workers = usable_workers(threads)
    layout = _layout(geometry, "fold" if indices is None else "places")
    max_planes(workers, window(geometry), layout, flat(x), flat(out), _NO_INDICES if indices is None else flat(indices),
               _scratch(layout, workers, x.dtype))


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
    fixed = x.dtype.type(divisor_override or same)
    layout = _layout(geometry, "spread" if backward else "fold")
    avg_planes(workers, window(geometry), layout, backward, flat(x), rows, columns, fixed, flat(out),
               _scratch(layout, workers, x.dtype))
