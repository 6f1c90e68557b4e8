"""Max and average pooling and their gradients, in Numba. Workers take planes (n, c); none touches another's.

Planes are worked on in bands of rows, which stay in the first-level cache; a band may go on from one plane to the next.
Windows are separable: the rows of a window are first folded into one row, then its columns. The gradient of an average is
an average, too, if windows are one apart; else the shares of the rows of windows that see a row of the image are added up,
and that one row is spread over the columns. Rows are vectors of a line of cache, of which the last one may reach into the
next row (:mod:`fastconv.jit.vectors`). Where a maximum's place is asked for, rows and columns are instead laid out as for
direct convolution, so that each tap is one flat array, and taps compete in the order of rule 5.

What it compiles to (Numba 0.68 with LLVM 22, on AVX-512; from inspect_asm): maxima are vmaxps and sums vaddps of zmm, and
at stride 2 a vpermt2ps for each column. vmaxps has its own idea of NaN, so there is a vcmpunordps with each, and a band
with any NaN is folded once more with comparisons and masks. A tap that competes is vmaxps, vcmpltps and a masked vmovdqa32:
places are 32-bit numbers until they are stored. Strides beyond 2 gather, and adding at indices is scalar.

The gradient of a maximum knows indices only. Where a plane's could all come from a common window (2x2 or 3x3, one or two apart)
they are compared with their windows' places, and each cell takes what the windows that see it gave; any others are added up
at their indices.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from .. import memory
from ..geometry import Pool2dGeometry, Window2dGeometry
from .common import AHEAD, U, copy, copy_row_pairs, fill, inside, prefetch, zero
from .im2col import STREAM_BYTES, seen_by, window
from .options import Kernel, flat, inlined, named, part, prange, usable_workers
from .vectors import (
    STACK_BYTES,
    ask,
    ask_early,
    between,
    beyond_line,
    chosen_sums,
    either,
    equal_places,
    evens,
    fence,
    greater,
    greater_or_nan,
    lanes_of,
    last_cells,
    load,
    load_where,
    mixed_high,
    mixed_low,
    nan_in,
    next_cells,
    odds,
    over,
    plus,
    put_whole,
    rolled,
    send,
    some,
    splat,
    stack,
    store,
    store_first,
    store_lane,
    store_places,
    stream,
    times,
    where,
    window_places,
)

Array = np.ndarray

STEP = 16                # cells of the longest vector
_STEP = U(STEP)

WIDE = 3                 # vectors of a row that is gone through in the order of memory; loops over shorter ones go down
BAND = 6144              # cells of a band, with which everything stays in the first-level cache
SPREAD = 2048           # cells of a band of a gradient: what they are made from stays there, too, and they fit the stack
MOST_PLACES = 2**31 - 1  # cells of a plane whose indices fit 32 bits, as which they are faster
MOST_FLAT = 2**17        # cells of a flat copy: larger windows than fit there have more work than loops have overhead

#: Which way averages go; doubled: back from windows of 2x2 cells, two apart, which all cells are in.
FORWARD, BACKWARD, DOUBLED = 0, 1, 2

#: How a pooling is cut up, and the elements of a worker's pieces of scratch.
POOLING = np.dtype([(name, np.int64) for name in (
    "band", "rows", "pitch", "line", "margin", "first", "second", "third")])


# --- folds ------------------------------------------------------------------------------------------------------------
# The same for sums and for maxima.

@part
def has_nan(x, begin, end):
    """Is there a NaN in x[begin:end]?"""
    lanes = lanes_of(x)
    zeros = splat(x, x.dtype.type(0))
    nan = nan_in(zeros, zeros)
    whole = begin + (end - begin) // (2 * lanes) * 2 * lanes
    for at in range(begin, whole, 2 * lanes):
        nan = either(nan, nan_in(load(x, at), load(x, at + lanes)))
    for at in range(whole, end, lanes):
        value = load_where(x, at, 0, end - at, zeros)
        nan = either(nan, nan_in(value, value))
    return some(nan)


def folding(op, averages, careful):
    """A function that folds windows with `op`: to averages, or to maxima, of which one is `careful` with NaN."""
    looks_for_nan = not averages and not careful
    called = named("averages" if averages else "careful" if careful else "maxima")

    @inlined
    @called
    def fold_cells(x, at, mask, first, whole, nothing):
        if first < 0:  # all
            return load(x, at)
        if whole:
            return where(mask, load(x, at), nothing)
        return load_where(x, at, 0, first, nothing)

    @inlined
    @called
    def fold_tap(x, at, step, count, mask, first, whole, nothing, nan):
        """A vector of `op` over `count` rows of x, `nothing` in lanes from `first` on, and the lanes where a NaN was seen."""
        best = fold_cells(x, at, mask, first, whole, nothing)
        for _ in range(1, count):
            at += step
            value = fold_cells(x, at, mask, first, whole, nothing)
            if looks_for_nan:
                nan = either(nan, nan_in(best, value))
            best = op(best, value)
        if looks_for_nan and count == 1:
            nan = either(nan, nan_in(best, best))
        return best, nan

    @inlined
    @called
    def fold_rows(x, at, step, count, down, rows, line, pitch, repeat, width, nothing, nan):
        """rows[line + r*pitch + k] = op over `count` rows of x, `repeat` times, `down` cells further each time.

        Behind the `width` cells of a row goes `nothing`, perhaps into the next one: columns are taken from behind.
        """
        lanes = lanes_of(x)
        k = (width - 1) // lanes * lanes
        if width >= WIDE * lanes:  # in the order of memory, which reads are faster in
            rows_each = 2 if down >= 2 * width else 1
            while repeat > 0 and at + k + (count - 1) * step + lanes <= x.size:
                mask, asked = between(x, 0, width - k), at + (count - rows_each) * step + AHEAD
                for q in range(0, k, lanes):
                    ask(x, asked)
                    if rows_each == 2:
                        ask(x, asked + lanes)
                    asked += rows_each * lanes
                    rolled()
                    best, nan = fold_tap(x, at + q, step, count, mask, -1, True, nothing, nan)
                    store(rows, line + q, best)
                ask(x, asked)
                if rows_each == 2:
                    ask(x, asked + lanes)
                best, nan = fold_tap(x, at + k, step, count, mask, width - k, True, nothing, nan)
                store(rows, line + k, best)
                at += down
                line += pitch
                repeat -= 1
        ahead = max(AHEAD, repeat * down) + max(count - 2, 0) * step
        while k >= 0:
            mask, end = between(x, 0, min(width - k, lanes)), repeat
            while end > 0 and at + k + (end - 1) * down + (count - 1) * step + lanes > x.size:
                end -= 1
            a, t = at + k, line + k
            for _ in range(end):
                rolled()
                ask(x, a + ahead)  # of the last two rows: others were the last ones before
                if count > 1:
                    ask(x, a + ahead + step)
                best, nan = fold_tap(x, a, step, count, mask, width - k, True, nothing, nan)
                store(rows, t, best)
                a += down
                t += pitch
            for _ in range(end, repeat):
                rolled()
                best, nan = fold_tap(x, a, step, count, mask, width - k, False, nothing, nan)
                store(rows, t, best)
                a += down
                t += pitch
            k -= lanes
        return nan

    @part
    @called
    def fold_some(x, at, step, count, down, rows, line, pitch, repeat, width, nothing, nan):
        if count == 2:
            return fold_rows(x, at, step, 2, down, rows, line, pitch, repeat, width, nothing, nan)
        if count == 3:
            return fold_rows(x, at, step, 3, down, rows, line, pitch, repeat, width, nothing, nan)
        if count > 0:
            return fold_rows(x, at, step, count, down, rows, line, pitch, repeat, width, nothing, nan)
        for r in range(repeat):  # with dilation an average may be of no cell
            for k in range(0, width, lanes_of(x)):
                store(rows, line + r * pitch + k, nothing)
        return nan

    @inlined
    @called
    def fold_column(rows, at, step, gap, taps):
        """A vector of op over `taps` columns of `rows`, `gap` apart; windows are `step` apart, 1 or 2."""
        best = load(rows, at) if step == 1 else evens(load(rows, at), load(rows, at + lanes_of(rows)))
        for _ in range(1, taps):
            at += gap
            best = op(best, load(rows, at) if step == 1 else evens(load(rows, at), load(rows, at + lanes_of(rows))))
        return best

    @inlined
    @called
    def fold_columns(rows, line, pitch, step, gap, taps, repeat, y, oh, out, o, ow, limit, down, across, fixed):
        """`repeat` rows of windows to out[o]; the first one is row y of a plane. `down`, `across`, `fixed`: the divisors."""
        lanes = lanes_of(out)
        q = (ow - 1) // lanes * lanes
        if ow >= WIDE * lanes and not (averages and fixed == 0):
            divisor = splat(out, fixed)
            for _ in range(repeat):
                for t in range(0, q, lanes):
                    rolled()
                    best = fold_column(rows, line + t * step, step, gap, taps)
                    store(out, o + t, over(best, divisor) if averages else best)
                best = fold_column(rows, line + q * step, step, gap, taps)
                store_first(out, o + q, over(best, divisor) if averages else best, ow - q, limit)
                line += pitch
                o += ow
            return
        while q >= 0:
            end = repeat
            while end > 0 and o + q + (end - 1) * ow + lanes > limit:
                end -= 1
            a, t = line + q * step, o + q
            if averages and fixed == 0:
                columns = load(across, q)
                for _ in range(repeat):
                    divisor = times(splat(out, down[U(y)]), columns)
                    store_first(out, t, over(fold_column(rows, a, step, gap, taps), divisor), ow - q, limit)
                    y += 1
                    y -= oh if y == oh else 0
                    a += pitch
                    t += ow
                y = (y - repeat) % oh
            else:
                divisor = splat(out, fixed)
                for _ in range(end):
                    rolled()
                    best = fold_column(rows, a, step, gap, taps)
                    store(out, t, over(best, divisor) if averages else best)
                    a += pitch
                    t += ow
                for _ in range(end, repeat):
                    rolled()
                    best = fold_column(rows, a, step, gap, taps)
                    store_first(out, t, over(best, divisor) if averages else best, ow - q, limit)
                    a += pitch
                    t += ow
            q -= lanes

    @part
    @called
    def fold_pairs(x, at, count, ow, out, o, limit, divisor, nothing, nan):
        """`count` rows of windows of 2x2 cells, two apart, without any cells beside them. False where a NaN was in the way."""
        lanes, w = lanes_of(x), 2 * ow
        divisors = splat(out, divisor)
        for _ in range(count):
            asked = at + AHEAD  # in the order of memory
            for q in range(0, ow, lanes):
                for i in range(4):
                    ask(x, asked + i * lanes)
                asked += 4 * lanes
                here, left = at + 2 * q, w - 2 * q
                if left >= 2 * lanes:
                    a, b, c, d = load(x, here), load(x, here + lanes), load(x, here + w), load(x, here + w + lanes)
                else:
                    a, b = load_where(x, here, 0, left, nothing), load_where(x, here + lanes, 0, left - lanes, nothing)
                    c, d = load_where(x, here + w, 0, left, nothing), load_where(x, here + w + lanes, 0, left - lanes, nothing)
                if looks_for_nan:
                    nan = either(nan, either(nan_in(a, c), nan_in(b, d)))
                a, b = op(a, c), op(b, d)
                best = op(evens(a, b), odds(a, b))
                store_first(out, o + q, over(best, divisors) if averages else best, ow - q, limit)
            at += 2 * w
            o += ow
        return not (looks_for_nan and some(nan))

    @part
    @called
    def fold_band(v, p, x, r0, r1, rows, taps, identity, out, limit, down, across, fixed):
        """Each window of rows [r0, r1) of output, counted over all planes. False where a NaN was in the way.

        First the rows of windows are folded into `rows`, which has beside the image's columns what changes nothing. Then
        the columns; what is between out[r1*ow] and out[limit] may be overwritten.
        """
        nothing = splat(x, identity)
        nan = nan_in(nothing, nothing)
        h, w, oh, ow, sh, dh, kh, kw, sw, dw, top = v.h, v.w, v.oh, v.ow, v.sh, v.dh, v.kh, v.kw, v.sw, v.dw, v.top
        pitch = p.pitch
        pairs = kh == kw == sh == sw == 2 and dh == dw == 1 and h == 2 * oh and w == 2 * ow and top == 0 and v.left == 0
        if pairs and ow >= WIDE * lanes_of(x) and (not averages or fixed != 0):
            return fold_pairs(x, r0 * 2 * w, r1 - r0, ow, out, r0 * ow, limit, fixed, nothing, nan)
        r, line = r0, p.margin
        while r < r1:
            plane, y = r // oh * h * w, r % oh
            start = y * sh - top
            first, stop = inside(h, start, dh, kh)
            repeat = 1
            if stop - first == kh:  # and so on, as far as there are whole windows
                repeat = min(max((h - 1 - (kh - 1) * dh - start) // sh + 1, 1), min(oh - y, r1 - r))
                if h == oh * sh and top == 0 and (kh - 1) * dh < sh:  # in all planes, which follow each other likewise
                    repeat = r1 - r
            nan = fold_some(x, plane + (start + first * dh) * w, dh * w, stop - first, sh * w, rows, line, pitch, repeat, w,
                            nothing, nan)
            line += repeat * pitch
            r += repeat
        if looks_for_nan and some(nan):
            return False
        y, o, line = r0 % oh, r0 * ow, p.margin - v.left
        if sw == 1 and kw == 3:
            fold_columns(rows, line, pitch, 1, dw, 3, r1 - r0, y, oh, out, o, ow, limit, down, across, fixed)
        elif sw == 1:
            fold_columns(rows, line, pitch, 1, dw, kw, r1 - r0, y, oh, out, o, ow, limit, down, across, fixed)
        elif sw == 2 and kw == 2:
            fold_columns(rows, line, pitch, 2, dw, 2, r1 - r0, y, oh, out, o, ow, limit, down, across, fixed)
        elif sw == 2:
            fold_columns(rows, line, pitch, 2, dw, kw, r1 - r0, y, oh, out, o, ow, limit, down, across, fixed)
        else:
            for r in range(r1 - r0):
                for j in range(kw):  # LLVM makes gathers of that
                    copy(taps, j * p.line, rows, line + r * pitch + j * dw, sw, ow)
                fold_columns(taps, 0, 0, 1, p.line, kw, 1, (y + r) % oh, oh, out, o + r * ow, ow, limit, down, across, fixed)
        return True

    return fold_band


averages = folding(plus, True, False)
maxima = folding(greater, False, False)
maxima_or_nan = folding(greater_or_nan, False, True)


# --- maximum ----------------------------------------------------------------------------------------------------------
# Nearly always there is no NaN, and without one a maximum is one instruction. So cells are looked at before they are
# used, and from the first NaN on the rest of a plane goes the careful way.

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
def max_band_indices(v, p, x, plane, y0, y1, out, indices, to, limit, first, second, third):
    """Output rows [y0, y1) of one plane, with indices."""
    begin = max(y0 * v.sh - v.top, 0)
    end = min((y1 - 1) * v.sh - v.top + (v.kh - 1) * v.dh + 1, v.h)
    if p.band == 0 or has_nan(x, plane + begin * v.w, plane + max(end, begin) * v.w):
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
        if indices.size == 0:
            begin, end = planes * v.oh * worker // workers, planes * v.oh * (worker + 1) // workers
            lowest, one = x.dtype.type(-np.inf), x.dtype.type(1)
            for r in range(begin, end, p.band):
                stop = min(r + p.band, end)
                if not maxima(v, p, x, r, stop, first, second, lowest, out, end * v.ow, x, x, one):
                    maxima_or_nan(v, p, x, r, stop, first, second, lowest, out, end * v.ow, x, x, one)
        else:
            limit = planes * (worker + 1) // workers * v.oh * v.ow  # where this worker's results end
            for i in range(planes * worker // workers, planes * (worker + 1) // workers):
                for y in range(0, v.oh, max(p.band, 1)):
                    max_band_indices(v, p, x, i * v.h * v.w, y, min(y + max(p.band, 1), v.oh), out, indices, i * v.oh * v.ow,
                                     limit, first, second, third)


@inlined
def add_one(out, at, value):
    """out[at] += value. Returns what rounding lost (Knuth's TwoSum), or NaN where something is not finite."""
    before = out[at]
    total = before + value
    added = total - before
    out[at] = total
    return (before - (total - added)) + (value - added)


@inlined
def add_lost(out, at, lost):
    if lost - lost == 0:  # finite
        out[at] += lost


@part
def add_exactly(dout, indices, first, stop, out, base, cells, lost, owners):
    """out[base + indices[i]] += dout[i] for i in [first, stop), and in the end what rounding lost of that, in `lost`.

    With `owners` the plane has more cells than `lost`: a cell that comes to another one's place takes it over.
    """
    places = owners.size or cells
    zero(lost, 0, places)
    if owners.size == 0:
        for i in range(U(first), U(stop)):
            lost[U(indices[i])] += add_one(out, base + U(indices[i]), dout[i])
        for i in range(U(cells)):
            add_lost(out, base + i, lost[i])
        return
    zero(owners, 0, places)
    for i in range(U(first), U(stop)):
        at = U(indices[i])
        place = (at + at // U(places) * U(0x9e37)) % U(places)
        if U(owners[place]) != at:
            add_lost(out, base + U(owners[place]), lost[place])
            owners[place], lost[place] = at, 0
        lost[place] += add_one(out, base + at, dout[i])
    for i in range(U(places)):
        add_lost(out, base + U(owners[i]), lost[i])


@part
def add_counted(dout, indices, first, stop, out, base, shift, times, limit):
    """out[base + indices[i]] += dout[i] for i from `first` on, until many fall together; returns where that is.

    A random one of each eight windows is counted: 1 << `shift` cells have one of `times`, of which there are a power of two.
    """
    random, most, i = U(0), U(0), U(first)
    while i < U(stop) and most < U(limit):
        zero(times, 0, times.size)
        end = min(U(stop), i + U(8 * times.size))
        while i + U(8) <= end and most < U(limit):
            for k in range(U(8)):
                out[base + U(indices[i + k])] += dout[i + k]
            random = U((random * U(1664525) + U(1013904223)) & U(0xffffffff))
            at = (U(indices[i + (random >> U(29))]) >> U(shift)) & U(times.size - 1)
            times[at] += 1
            most = max(most, U(times[at]))
            i += U(8)
        if i + U(8) > end and most < U(limit):
            for k in range(i, end):
                out[base + U(indices[k])] += dout[k]
            i = U(end)
    return i


@part
def begin_plane(indices, first, stop, plane, cells, out):
    """Zeros in the plane, if indices [first, stop) are in it. Returns whether; they are in a cache now when they are used."""
    low, high = np.int64(0), np.int64(0)
    for i in range(U(first), U(stop)):
        low, high = min(low, indices[i]), max(high, indices[i])
    if low < 0 or high >= cells:
        return False
    zero(out, plane * cells, cells)
    return True


@Kernel
def add_at(workers, dout, indices, places, cells, out, wrong):
    """Add `places` values of dout up in the `cells` of each plane. In `wrong` each worker counts planes with other indices."""
    planes = indices.size // places
    for worker in prange(workers):
        wrong[worker] = 0
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            base, first, stop = U(plane * cells), U(plane * places), U((plane + 1) * places)
            if begin_plane(indices, first, stop, plane, cells, out):
                for i in range(first, stop):
                    out[base + U(indices[i])] += dout[i]
            else:
                wrong[worker] += 1


@inlined
def put(to, at, vector, count, limit, streams):
    """to[at:at + count] = vector[:count], past the caches or with cells behind it that may be overwritten."""
    if streams:
        stream(to, at, vector)
    else:
        store_first(to, at, vector, count, limit)


# Where all windows of a plane are common ones and chose one of their own cells, which is looked at first, nothing is added at
# indices: each cell asks the few windows that see it whether they chose it. No cell is in more than nine of them.

@inlined
def could_be(v, window, indices, first):
    """Could a plane's indices come from a common window? Some of the middle row are looked at."""
    size, step, pad = window.size, window.step, window.pad
    y = v.oh // 2
    for q in range(min(v.ow, 4)):
        place = indices[U(first + y * v.ow + q)] - ((y * step - pad) * v.w + q * step - pad)
        row = 0
        while row < size and not 0 <= place < size:
            place -= v.w
            row += 1
        if row == size:
            return False
    return True


@part
def lay_out(v, window, indices, first, dout, near):
    """How far a plane's chosen cells lie behind their windows' first ones, to `near`. False where one is not its window's."""
    size, step, pad, w, ow, line = window.size, window.step, window.pad, v.w, v.ow, v.line
    cells, lanes = v.h * w, lanes_of(dout)
    zeros = splat(dout, dout.dtype.type(0))
    wrong = nan_in(zeros, zeros)
    for y in range(v.oh):
        top = y * step - pad
        at, to = first + y * ow, v.margin + y * line
        begin = 0
        if at + ow + lanes <= indices.size:
            begin = ow
            for q in range(0, ow, lanes):
                rolled()
                ask_early(indices, at + q + AHEAD)
                ask_early(indices, at + q + AHEAD + lanes // 2)
                ask_early(dout, at + q + AHEAD)
                column = q * step - pad
                places, no = window_places(indices, at + q, top * w + column, column, step, w, size, cells, ow - q, dout)
                store_places(near, to + q, places)
                wrong = either(wrong, no)
        for i in range(begin, ow):
            index = indices[U(at + i)]
            column, row = index % w - (i * step - pad), index // w - top
            if not (0 <= index < cells and 0 <= column < size and 0 <= row < size):
                return False
            near[U(to + i)] = row * w + column
    return not some(wrong)


@inlined
def pair_row(indices, dout, at, own, w, ow, cells, wrong, zeros, out, o, streams):
    """A row of windows to two rows of cells. Behind these a vector more may be overwritten."""
    lanes = lanes_of(out)
    q = (w - 1) // (2 * lanes) * lanes
    while q >= 0:  # backwards: the upper row's last vector reaches into the lower row
        rolled()
        ask_early(indices, at + q + AHEAD)
        ask_early(indices, at + q + AHEAD + lanes // 2)
        ask_early(dout, at + q + AHEAD)
        places, no = window_places(indices, at + q, own + 2 * q, 2 * q, 2, w, 2, cells, ow - q, dout)
        wrong = either(wrong, no)
        gradient, to = load(dout, at + q), o + 2 * q
        a, b = where(equal_places(places, 0), gradient, zeros), where(equal_places(places, 1), gradient, zeros)
        c, d = where(equal_places(places, w), gradient, zeros), where(equal_places(places, w + 1), gradient, zeros)
        if w - 2 * q > lanes:
            put_whole(out, to + lanes, mixed_high(a, b), streams)
        put_whole(out, to, mixed_low(a, b), streams)
        if w - 2 * q > lanes:
            put_whole(out, to + w + lanes, mixed_high(c, d), streams)
        put_whole(out, to + w, mixed_low(c, d), streams)
        q -= lanes
    return wrong


@part
def pair_plane(v, indices, dout, first, out, o, limit, streams):
    """A plane to out[o] from windows of 2x2 cells, two apart: each cell is in one, so it is written while that is looked at.

    False where one did not choose a cell of its own; then the plane may hold anything.
    """
    h, oh, w, ow, cells, lanes = v.h, v.oh, v.w, v.ow, v.h * v.w, lanes_of(out)
    zeros = splat(out, out.dtype.type(0))
    wrong = nan_in(zeros, zeros)
    reach = (w - 1) // (2 * lanes) * lanes + lanes
    for y in range(oh):
        at, own = first + y * ow, 2 * y * w
        to, two = o + own, 2 * y + 1 < h
        if at + reach <= dout.size and two and (streams or to + 2 * w + lanes <= limit):
            if streams:
                wrong = pair_row(indices, dout, at, own, w, ow, cells, wrong, zeros, out, to, True)
            else:
                wrong = pair_row(indices, dout, at, own, w, ow, cells, wrong, zeros, out, to, False)
        else:
            zero(out, to, (1 + two) * w)
            for i in range(ow):
                index = indices[U(at + i)]
                if not (0 <= index < cells and index // w // 2 == y and index % w // 2 == i):
                    return False
                out[U(o + index)] = dout[U(at + i)]
    if 2 * oh < h:
        zero(out, o + 2 * oh * w, w)
    return not some(wrong)


def gathering(size, step, pad):
    add_row = chosen_sums(size)
    named_window = named(f"{size}{step}{pad}")

    @inlined
    @named_window
    def add_rows(near, dout, q, first, second, third, rows, zeros):
        """For a vector of columns of windows: in sum j what those of all rows that see a row of cells gave to their column j.

        Of each such row (where `near` and `dout` have it, and the cells' row in the window times the plane's width).
        """
        sums = add_row(near, first[0] + q, dout, first[1] + q, first[2], (zeros, zeros, zeros))
        if rows > 1:
            sums = add_row(near, second[0] + q, dout, second[1] + q, second[2], sums)
        if rows > 2:
            sums = add_row(near, third[0] + q, dout, third[1] + q, third[2], sums)
        return sums

    @inlined
    @named_window
    def cells_one_apart(near, dout, first, second, third, zeros, out, o, w, ow, streams):
        lanes = lanes_of(out)
        none = zeros, zeros, zeros
        before, here = none, add_rows(near, dout, 0, first, second, third, size, zeros)
        for c in range(0, w, lanes):
            rolled()
            behind = none
            if c + lanes < ow:
                behind = add_rows(near, dout, c + lanes, first, second, third, size, zeros)
            if pad == 1:  # cell c is column 1 of window c
                total = plus(plus(next_cells(here[0], behind[0]), here[1]), last_cells(before[2], here[2]))
            else:  # column 0
                total = plus(here[0], last_cells(before[1], here[1]))
                if size == 3:
                    total = plus(total, last_cells(last_cells(zeros, before[2]), last_cells(before[2], here[2])))
            before, here = here, behind
            put_whole(out, o + c, total, streams)

    @inlined
    @named_window
    def cells_two_apart(near, dout, first, second, rows, zeros, out, o, w, ow, streams):
        lanes = lanes_of(out)
        none = zeros, zeros, zeros
        before, here = none, add_rows(near, dout, 0, first, second, second, rows, zeros)
        for c in range(0, w, 2 * lanes):
            rolled()
            behind = none
            if c // 2 + lanes < ow:
                behind = add_rows(near, dout, c // 2 + lanes, first, second, second, rows, zeros)
            if pad == 1:
                even, odd = here[1], plus(next_cells(here[0], behind[0]), here[2])
            else:
                even, odd = plus(here[0], last_cells(before[2], here[2])), here[1]
            before, here = here, behind
            put_whole(out, o + c, mixed_low(even, odd), streams)
            if c + lanes < w:
                put_whole(out, o + c + lanes, mixed_high(even, odd), streams)

    @inlined
    @named_window
    def cell_by_cell(v, near, dout, start, r, out, o):
        """A row near the end of `dout` or `out`, where there are no whole vectors."""
        for c in range(v.w):
            total = out.dtype.type(0)
            for j in range(size):
                part = out.dtype.type(0)
                for i in range(size):
                    y, q = r + pad - i, c + pad - j
                    if y % step == 0 and q % step == 0 and 0 <= y < v.oh * step and 0 <= q < v.ow * step:
                        y, q = y // step, q // step
                        if near[U(v.margin + y * v.line + q)] == i * v.w + j:
                            part += dout[U(start + y * v.ow + q)]
                total += part
            out[U(o + c)] = total

    @inlined
    @named_window
    def seen(v, start, y, place):
        """Row y of windows; one that is not there is a row of near in which no window chose any cell."""
        there = 0 <= y < v.oh
        return v.margin + (y if there else v.oh) * v.line, start + (y if there else 0) * v.ow, place

    @inlined
    @named_window
    def row(v, near, dout, start, r, zeros, out, o, streams):
        w, ow, y, i = v.w, v.ow, (r + pad) // step, (r + pad) % step
        if step == 1:
            first, second, third = seen(v, start, y, 0), seen(v, start, y - 1, w), seen(v, start, y - 2, 2 * w)
            cells_one_apart(near, dout, first, second, third, zeros, out, o, w, ow, streams)
        elif i == 0:
            cells_two_apart(near, dout, seen(v, start, y, 0), seen(v, start, y - 1, 2 * w), 2, zeros, out, o, w, ow, streams)
        else:
            here = seen(v, start, y, i * w)
            cells_two_apart(near, dout, here, here, 1, zeros, out, o, w, ow, streams)

    @part
    @named_window
    def gather(v, near, dout, start, out, o, limit, streams):
        """A plane to out[o], whose windows' gradients begin at dout[start]."""
        w, lanes = v.w, lanes_of(out)
        zeros = splat(out, out.dtype.type(0))
        for r in range(v.h):
            if start + min((r + pad) // step, v.oh - 1) * v.ow + v.line > dout.size or (
                    not streams and o + w + lanes > limit):
                cell_by_cell(v, near, dout, start, r, out, o)
            elif streams:
                row(v, near, dout, start, r, zeros, out, o, True)
            else:
                row(v, near, dout, start, r, zeros, out, o, False)
            o += w

    return gather


#: Common windows, in the order in which they are tried.
COMMON = ((3, 1, 1), (3, 1, 0), (2, 1, 0), (2, 2, 0), (3, 2, 1), (3, 2, 0))
_gather_311, _gather_310, _gather_210, _gather_321, _gather_320 = (gathering(*window) for window in COMMON
                                                                   if window != (2, 2, 0))


@part
def gather_window(v, window, dout, indices, plane, out, limit, near, streams):
    """Plane `plane` if all its windows are such ones. False where they are not; then the plane may hold anything."""
    first, o = plane * v.oh * v.ow, plane * v.h * v.w
    if window.step == 2 and window.size == 2:
        return pair_plane(v, indices, dout, first, out, o, limit, streams)
    if not lay_out(v, window, indices, first, dout, near):
        return False
    if window.step == 1:
        if window.size == 2:
            _gather_210(v, near, dout, first, out, o, limit, streams)
        elif window.pad == 1:
            _gather_311(v, near, dout, first, out, o, limit, streams)
        else:
            _gather_310(v, near, dout, first, out, o, limit, streams)
    elif window.pad == 1:
        _gather_321(v, near, dout, first, out, o, limit, streams)
    else:
        _gather_320(v, near, dout, first, out, o, limit, streams)
    return True


@Kernel
def add_many_at(workers, dout, indices, places, cells, out, shift, times, limit, lost, owners, wrong, shapes, windows, nears):
    """The same of planes where too many may be added up in one cell; `times`, `lost` and `owners` are (workers, elements).

    No pooling needs to have given the indices, and a large window's may name a cell thousands of times: a plane is gone on
    with exactly where `limit` of the windows that are counted fall together. `windows` are those that the shape allows, and
    `nears` is (workers, cells) of room for what they chose.
    """
    planes = indices.size // places
    for worker in prange(workers):
        v = shapes[0]
        wrong[worker] = 0
        near = nears[worker]
        fill(near, 0, 1, near.size, np.int32(-1))
        until = planes * (worker + 1) // workers
        streams = v.streams != 0 and v.w % lanes_of(out) == 0 and beyond_line(out, 0) == 0
        for plane in range(planes * worker // workers, until):
            base, first, stop = U(plane * cells), U(plane * places), U((plane + 1) * places)
            done = False
            for i in range(windows.size):
                if not done and could_be(v, windows[U(i)], indices, plane * places):
                    done = gather_window(v, windows[U(i)], dout, indices, plane, out, until * cells, near, streams)
            if done:
                continue
            if streams:
                fence()  # what was written is written again
            if begin_plane(indices, first, stop, plane, cells, out):
                reached = add_counted(dout, indices, first, stop, out, base, shift, times[worker], limit)
                if reached < stop:
                    add_exactly(dout, indices, reached, stop, out, base, cells, lost[worker], owners[worker])
            else:
                wrong[worker] += 1
        if streams:
            fence()


# --- average ----------------------------------------------------------------------------------------------------------

@part
def double_rows(dout, begin, end, ow, share, out, limit, streams):
    """Windows of 2x2 cells, two apart: each cell of rows [begin, end), counted over all planes, to two rows of two cells."""
    lanes = lanes_of(out)
    zeros, shares = splat(dout, dout.dtype.type(0)), splat(dout, share)
    w = 2 * ow
    at, o = begin * ow, 2 * begin * w
    together = ow <= lanes or ow % lanes == 0  # else the upper row's last vector would lie on what the lower one has
    for _ in range(begin, end):
        ask(dout, at + AHEAD)
        whole = at + ow + lanes <= dout.size
        for q in range(0, ow, lanes):
            value = times(load(dout, at + q) if whole else load_where(dout, at + q, 0, ow - q, zeros), shares)
            first, second, more = mixed_low(value, value), mixed_high(value, value), 2 * q + lanes < w
            put(out, o + 2 * q, first, w - 2 * q, limit, streams)
            if more:
                put(out, o + 2 * q + lanes, second, w - 2 * q - lanes, limit, streams)
            if together:
                put(out, o + w + 2 * q, first, w - 2 * q, limit, streams)
                if more:
                    put(out, o + w + 2 * q + lanes, second, w - 2 * q - lanes, limit, streams)
        if not together:
            for q in range(0, ow, lanes):
                value = times(load(dout, at + q) if whole else load_where(dout, at + q, 0, ow - q, zeros), shares)
                put(out, o + w + 2 * q, mixed_low(value, value), w - 2 * q, limit, streams)
                if 2 * q + lanes < w:
                    put(out, o + w + 2 * q + lanes, mixed_high(value, value), w - 2 * q - lanes, limit, streams)
        at += ow
        o += 2 * w


@inlined
def sum_rows(dout, at, pitch, count, down, y, left, zeros):
    """A vector of the sum of `count` rows of shares, `pitch` cells apart, the first of windows y; `left` cells are there."""
    total = zeros
    for m in range(count):
        cells = load(dout, at) if left < 0 else load_where(dout, at, 0, left, zeros)
        cells = times(cells, splat(dout, down[U(y + m)]))
        total = plus(total, cells) if m > 0 else cells
        at += pitch
    return total


@inlined
def sum_row(dout, at, ow, count, down, y, to, o, zeros):
    """The same for a row of windows, with zeros behind it."""
    lanes = lanes_of(dout)
    for q in range(0, ow - lanes + 1, lanes):
        store(to, o + q, sum_rows(dout, at + q, ow, count, down, y, -1, zeros))
    q = ow // lanes * lanes
    if q < ow:
        store(to, o + q, sum_rows(dout, at + q, ow, count, down, y, ow - q, zeros))


@part
def sum_windows(v, p, dout, plane, r0, r1, down, across, even, below, to):
    """For rows [r0, r1) of the image a row each: the sum of what each column of windows gives to a cell.

    `below` tells which windows see a row (`seen_by`), `even` whether columns of windows all have one divisor.
    """
    lanes = lanes_of(dout)
    zeros = splat(dout, dout.dtype.type(0))
    oh, ow, kh, sh, top = v.oh, v.ow, v.kh, v.sh, v.top
    base, vertical, o = plane * oh * ow, (below.size - sh - 1) // 2, p.margin
    for r in range(r0, r1):
        ask(dout, base + r // sh * ow + AHEAD)
        if v.dh == 1:  # rows of windows one behind the other
            low = min((r + top) // sh, oh - 1)
            y = max(-((kh - 1 - r - top) // sh), 0)
            at, count = base + y * ow, low + 1 - y
            if count == 1:
                sum_row(dout, at, ow, 1, down, y, to, o, zeros)
            elif count == 2:
                sum_row(dout, at, ow, 2, down, y, to, o, zeros)
            else:
                sum_row(dout, at, ow, count, down, y, to, o, zeros)
        else:
            for q in range(0, ow, lanes):
                total = zeros
                for m in range(below[U(r % sh)], below[U(r % sh + 1)]):
                    y = r // sh + below[U(sh + 1 + vertical + m)]
                    if 0 <= y < oh:
                        cells = load_where(dout, base + y * ow + q, 0, ow - q, zeros)
                        total = plus(total, times(cells, splat(dout, down[U(y)])))
                store(to, o + q, total)
        if not even:
            for q in range(0, ow, lanes):
                store(to, o + q, times(load(to, o + q), load(across, q)))
        o += p.line


@inlined
def sum_shares(shares, at, gap, taps):
    """A vector of sums of `taps` cells, `gap` apart."""
    total = load(shares, at)
    for _ in range(1, taps):
        at += gap
        total = plus(total, load(shares, at))
    return total


@inlined
def spread_ones(shares, at, line, gap, taps, out, o, rows, width, limit, streams):
    """What each column of the image gets from its windows, one apart: `rows` rows, `line` cells apart, to out[o]."""
    lanes = lanes_of(out)
    for _ in range(rows):
        for t in range(0, width, lanes):
            put(out, o + t, sum_shares(shares, at + t, gap, taps), width - t, limit, streams)
        at += line
        o += width


@inlined
def spread_twos(shares, at, line, left, even, odd, out, o, rows, width, limit, streams):
    """The same for windows two apart: even and odd columns see so many taps, every second one."""
    lanes = lanes_of(out)
    zeros = splat(out, out.dtype.type(0))
    to_even, to_odd = left // 2, (1 + left) // 2
    for _ in range(rows):
        for t in range(0, (width + 1) // 2, lanes):
            first = sum_shares(shares, at + t + to_even, -1, even) if even > 0 else zeros
            second = sum_shares(shares, at + t + to_odd, -1, odd) if odd > 0 else zeros
            put(out, o + 2 * t, mixed_low(first, second), width - 2 * t, limit, streams)
            if 2 * t + lanes < width:
                put(out, o + 2 * t + lanes, mixed_high(first, second), width - 2 * t - lanes, limit, streams)
        at += line
        o += width


@part
def spread(v, p, shares, r0, r1, row, beside, out, o, limit, streams):
    """Rows [r0, r1) of the image to out[o] from a row of sums each. `beside` tells which windows see a column.

    Where windows are further apart than two, a row is made in `row`, once for all that see the same windows.
    """
    lanes = lanes_of(out)
    zeros = splat(out, out.dtype.type(0))
    w, kw, sw, dw, sh, top, left, margin, line = v.w, v.kw, v.sw, v.dw, v.sh, v.top, v.left, p.margin, p.line
    if sw == 1:
        if kw == 3:
            spread_ones(shares, margin + left, line, -dw, 3, out, o, r1 - r0, w, limit, streams)
        else:
            spread_ones(shares, margin + left, line, -dw, kw, out, o, r1 - r0, w, limit, streams)
    elif sw == 2 and dw == 1:
        # a column sees tap j = (its own residue + left) % 2 first, then every second one
        even, odd = (kw - left % 2 + 1) // 2, (kw - (1 + left) % 2 + 1) // 2
        if even == 1 and odd == 2:
            spread_twos(shares, margin, line, left, 1, 2, out, o, r1 - r0, w, limit, streams)
        else:
            spread_twos(shares, margin, line, left, even, odd, out, o, r1 - r0, w, limit, streams)
    else:
        horizontal = (beside.size - sw - 1) // 2
        for r in range(r0, r1):
            if r == r0 or v.dh > 1 or v.kh > sh or (r + top) % sh == 0 or (r + top) % sh == v.kh:
                for e in range(sw):
                    for t in range(0, (w + sw - 1) // sw, lanes):
                        total = zeros
                        for k in range(beside[U(e)], beside[U(e + 1)]):
                            total = plus(total, load(shares, margin + (r - r0) * line + t + beside[U(sw + 1 + horizontal + k)]))
                        for i in range(lanes):
                            store_lane(row, (t + i) * sw + e, total, i)
            for k in range(0, w, lanes):
                put(out, o + k, load(row, k), w - k, limit, streams)
            o += w


@Kernel
def avg_planes(workers, windows, poolings, way, x, down, across, fixed, below, beside, out, scratch, bypass):
    """`way`: FORWARD, BACKWARD or DOUBLED. `scratch` is (workers, elements); `down` and `across` have the divisors.

    Backward they are reciprocals: of one divisor for all windows, if `fixed` is 1 and not 0, only `down` has it.
    """
    for worker in prange(workers):
        v, p = windows[0], poolings[0]
        first, second = scratch[worker, :p.first], scratch[worker, p.first:p.first + p.second]
        zero(first, 0, first.size)
        planes, in_plane = v.n * v.c, v.h * v.w
        if way == FORWARD:
            begin, end = planes * v.oh * worker // workers, planes * v.oh * (worker + 1) // workers
            for r in range(begin, end, p.band):
                averages(v, p, x, r, min(r + p.band, end), first, second, x.dtype.type(0), out, end * v.ow, down, across, fixed)
        else:
            staged = stack(out)
            begin, end = planes * worker // workers, planes * (worker + 1) // workers
            o, limit = begin * in_plane, end * in_plane
            # rows of whole lines need not be put together before they go past the caches
            streams = bypass and v.w % lanes_of(out) == 0 and beyond_line(out, o) == 0
            if way == DOUBLED and (streams or not bypass):
                double_rows(x, begin * v.oh, end * v.oh, v.ow, down[0], out, limit, streams)
            else:
                to = out
                if bypass and not streams:
                    to, o, limit = staged, 0, staged.size
                for plane in range(begin, end):
                    for r in range(0, v.h, p.rows):
                        stop = min(r + p.rows, v.h)
                        sum_windows(v, p, x, plane, r, stop, down, across, fixed != 0, below, first)
                        spread(v, p, first, r, stop, second, beside, to, o, limit, streams)
                        o += (stop - r) * v.w
                        if bypass and not streams:
                            o -= send(out, plane * in_plane + stop * v.w - o, staged, 0, o, plane == end - 1 and stop == v.h)
            if bypass:
                fence()


# --- entry points -----------------------------------------------------------------------------------------------------

_NO_INDICES = np.empty(0, np.int64)


@lru_cache(maxsize=256)
def _layout(geometry: Pool2dGeometry, kind: str) -> Array:
    """How to cut up a pooling of a `kind`: "fold", "places" (maxima with indices) or "spread" (averages backward)."""
    (kh, kw), (sh, sw), (dh, dw), (oh, ow) = geometry.kernel, geometry.stride, geometry.dilation, geometry.out_size
    left, (h, w), halo = geometry.pads[1][0], geometry.in_size, (kh - 1) * dh // sh
    slack = 64  # loops may run over the end of a row
    fields = dict.fromkeys(POOLING.names or (), 0)

    def whole(cells: int) -> int:
        return -(-cells // STEP) * STEP

    if kind == "places":
        line = ow + (kw - 1) * dw // sw
        slots = min(sh, geometry.extent[0]) * sw
        band = min(max(BAND // (slots * line) - halo, 1), oh)
        cells = slots * (band + halo) * line
        if cells <= MOST_FLAT and h * w <= MOST_PLACES:
            fields |= {"band": band, "line": line, "first": cells + slack, "second": band * line + slack,
                       "third": band * line + slack}
    elif kind == "fold":
        # with ceil_mode the last window may reach beyond the padding
        # stores of rows begin where lines of cache do
        margin, line = whole(left), ow + slack
        pitch = margin + whole(max(w, (ow - 1) * sw + geometry.extent[1] - left))
        band = max(BAND // (sh * w + pitch), 1)  # with what is read, of which the next band's is asked for
        fields |= {"band": band, "pitch": pitch, "line": line, "margin": margin, "first": band * pitch + slack,
                   "second": kw * line if sw > 2 else 0}
    else:
        steps, margin = -(-w // sw), -(-(kw - 1) * dw // sw) + 1
        rows = min(max(SPREAD // w, 1), h)
        line = margin + whole(max(ow, steps + left // sw + 1)) + STEP
        fields |= {"rows": rows, "line": line, "margin": margin, "first": rows * line + margin + slack,
                   "second": sw * whole(steps) + slack if sw > 2 or dw > 1 else 0}
    return np.array([tuple(fields.values())], POOLING)


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


#: Additions that are within rule 14 whatever the values, equal ones (which lose most) of float32 1.97e-6 for 130; and how many
#: of those that are counted, a random one of each eight, may fall together before sums are exact. 5x5 windows do not get there.
_MOST_ADDED = {"float32": (128, 12), "float64": (8192, 1024)}
#: Of planes with more windows than so many what they chose takes too much room.
_MOST_NEAR = 1 << 18

#: A plane, how far rows of what its windows chose are apart, and how many cells are before their first ones.
CHOSEN = np.dtype([(name, np.int64) for name in ("h", "w", "oh", "ow", "line", "margin", "streams")])
COMMON_WINDOW = np.dtype([(name, np.int64) for name in ("size", "step", "pad")])


@lru_cache(maxsize=256)
def _chosen(geometry: Window2dGeometry, streams: bool) -> tuple[Array, Array]:
    """The plane, and the common windows that its shape allows."""
    (h, w), (oh, ow) = geometry.in_size, geometry.out_size

    def fits(size: int, out: int, window: tuple[int, int, int]) -> bool:
        kernel, step, pad = window
        more = size + 2 * pad - kernel
        return out in (more // step + 1, -(-more // step) + 1) and (out - 1) * step < size + pad  # the latter with ceil_mode

    windows = [window for window in COMMON if fits(h, oh, window) and fits(w, ow, window) and w > window[0]]
    line = STEP + -(-max(w, ow) // STEP) * STEP + 2 * STEP  # a vector more is looked at
    if (oh + 1) * line > _MOST_NEAR or h * w > MOST_PLACES:
        windows = []
    return (np.array([(h, w, oh, ow, line, STEP, streams)], CHOSEN), np.array(windows, COMMON_WINDOW))


#: Counts at most; bytes of what rounding loses of a plane, and of how many cells of a larger one it is kept.
_COUNTS, _LOST_BYTES, _OWNERS = 1 << 18, 1 << 18, 1 << 14


def max_pool_backward(dout: Array, indices: Array, geometry: Window2dGeometry, out: Array, threads: int) -> bool:
    """Add dout up in the cells of `out` that `indices` name; False where one is in no plane: then `out` may hold anything."""
    workers, dtype, places, cells = usable_workers(threads), out.dtype, geometry.positions, math.prod(geometry.in_size)
    most, limit = _MOST_ADDED[dtype.name]
    wrong = np.empty(workers, np.int64)
    if places <= most:
        add_at(workers, flat(dout), flat(indices), places, cells, flat(out), wrong)
        return not wrong.any()
    shift = max(min((cells // places).bit_length() - 1, 6), 0)
    fits = cells * dtype.itemsize <= _LOST_BYTES
    shape, windows = _chosen(geometry, out.nbytes >= STREAM_BYTES)
    counts = np.dtype(np.uint8 if dtype == np.float32 else np.uint16)
    kinds: tuple[tuple[np.dtype[Any], int], ...] = (
        (counts, min(1 << (cells >> shift).bit_length(), _COUNTS)),
        (dtype, cells if fits else _OWNERS),
        (np.dtype(np.int64), 0 if fits else _OWNERS),
        (np.dtype(np.int32), int((shape["oh"][0] + 1) * shape["line"][0]) if windows.size else 0))
    nbytes = [-(-kind.itemsize * workers * size // 64) * 64 for kind, size in kinds]
    whole, at, parts = memory.scratch(sum(nbytes)), 0, []
    for (kind, size), length in zip(kinds, nbytes, strict=True):
        parts.append(whole[at:at + length].view(kind)[:workers * size].reshape(workers, size))
        at += length
    times, lost, owners, near = parts
    add_many_at(workers, flat(dout), flat(indices), places, cells, flat(out), shift, times, limit, lost, owners, wrong, shape,
                windows, near)
    return not wrong.any()


@lru_cache(maxsize=256)
def _divisors(geometry: Pool2dGeometry, count_include_pad: bool, dtype: np.dtype) -> tuple[Array, Array, float]:
    """Each window's divisor as ``down[y] * across[q]``, and the one of all windows, or 0 where they differ."""
    down, across = (np.array(geometry.divisors(axis, count_include_pad), dtype) for axis in (0, 1))
    same = np.ptp(down) == 0 and np.ptp(across) == 0
    return down, np.append(across, np.ones(STEP, dtype)), float(down[0]) * float(across[0]) if same else 0.0


@lru_cache(maxsize=256)
def _shares(geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None,
            dtype: np.dtype) -> tuple[Array, Array, float]:
    """Reciprocals of the divisors, likewise, and 1 where `down` has all of them and `across` none, or 0."""
    down, across, same = _divisors(geometry, count_include_pad, dtype)
    fixed = divisor_override or same
    with np.errstate(divide="ignore"):  # a window may have no cell, and then no cell sees it
        if fixed:
            return np.full(down.size, dtype.type(1) / dtype.type(fixed), dtype), across, 1.0
        return dtype.type(1) / down, dtype.type(1) / across, 0.0


@lru_cache(maxsize=256)
def _seen_from_windows(geometry: Pool2dGeometry) -> Pool2dGeometry:
    """The gradient of an average over windows one apart is an average itself: over the windows that see a cell."""
    (top, bottom), (left, right) = geometry.pads
    down, across = (extent - 1 for extent in geometry.extent)
    return replace(geometry, in_size=geometry.out_size, out_size=geometry.in_size,
                   pads=((down - top, down - bottom), (across - left, across - right)))


def avg_pool(x: Array, geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None, backward: bool,
             out: Array, threads: int) -> None:
    """Average pooling of float32 or float64 x into `out`; with `backward`, x is dout and `out` the input's gradient."""
    workers = usable_workers(threads)
    way, bypass = FORWARD, False
    down, across, same = _divisors(geometry, count_include_pad, x.dtype)
    fixed = divisor_override or same
    if backward:
        if geometry.stride == (1, 1) and fixed and out.nbytes < STREAM_BYTES:
            geometry = _seen_from_windows(geometry)
        else:
            down, across, fixed = _shares(geometry, count_include_pad, divisor_override, x.dtype)
            doubled = (fixed and geometry.kernel == geometry.stride == (2, 2) and geometry.dilation == (1, 1)
                       and geometry.pads[0][0] == geometry.pads[1][0] == 0
                       and geometry.in_size == (2 * geometry.out_size[0], 2 * geometry.out_size[1]))
            way = DOUBLED if doubled else BACKWARD
            bypass = out.nbytes >= STREAM_BYTES and geometry.in_size[1] * out.itemsize <= STACK_BYTES // 2
    layout = _layout(geometry, "spread" if way else "fold")
    avg_planes(workers, window(geometry), layout, way, flat(x), down, across, x.dtype.type(fixed), seen_by(geometry, 0),
               seen_by(geometry, 1), flat(out), _scratch(layout, workers, x.dtype), bypass)
