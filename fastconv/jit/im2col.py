"""im2col and col2im in all layouts, in Numba.

A column matrix has an element for each (n, r, p): image, row r = (channel, kh, kw), position p = (oh, ow). A layout is
the three steps from one element to the next along them:

    layout      step_n  step_r  step_p
    "rows"      P*R     1       R        (N*P, R)
    "columns"   R*P     P       1        (N, R, P); "windows" is the same memory under another shape
    "cs231n"    1       P*N     N        (R, P*N)

Only the order of the loops differs, so that the column matrix, the larger side, is walked through once and in order.
Elements are copied by their size, whatever their type: there is one signature for each size. Workers take (image,
channel), (image, row of output) or (channel, row of output) items.

- "columns": what a tap sees of a row of the image is a vector after the other, masked where it reaches over the image's
  edge; col2im gathers: each row of the image is the sum of the rows of columns that see it, added up in registers.
- "rows": some channels' rows are copied between padding first. Then every row of a window is one move of 4, 8 or 16
  cells, of which the next row overwrites what is too much. On the way back blocks of windows and taps, a vector each, are
  turned on the stack, so that what a tap gives is a row; where windows are more than two apart, one addition of as many cells.
  Windows of 2x2 cells, two apart, are turned in registers: eight vectors are four channels of eight windows.
- "cs231n": plain loops over the images.

Results that no cache holds go past the caches, by way of a buffer on the stack (`vectors.send`).

What it compiles to (Numba 0.68, LLVM 22, AVX-512, from inspect_asm): "columns" loads and stores zmm, at stride 2 with two
vpermt2ps, and masks by vpcmpgtd; "rows" moves xmm; sums are vaddps. Strides beyond 2 are gathered cell by cell.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from ..geometry import Window2dGeometry
from .common import AHEAD, U, copy, fill, inside, zero
from .options import Kernel, flat, inlined, named, part, prange, usable_workers
from .vectors import (
    LINE_BYTES,
    STACK_BYTES,
    ask,
    ask_early,
    between,
    beyond_line,
    even_pairs,
    evens,
    fence,
    few,
    lane,
    lanes_of,
    load,
    load_lane,
    load_splat,
    load_where,
    mixed_high,
    mixed_low,
    odd_pairs,
    odds,
    plus,
    put_whole,
    send,
    splat,
    stack,
    store,
    store_first,
    store_lane,
    stream,
    turn4,
    turn_block,
    where,
)

Array = np.ndarray

#: As which type items of so many bytes are copied.
ITEMS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}

ROWS_LAYOUT, COLUMNS_LAYOUT, CS231N_LAYOUT = 0, 1, 2
LAYOUTS = {"rows": ROWS_LAYOUT, "columns": COLUMNS_LAYOUT, "windows": COLUMNS_LAYOUT, "cs231n": CS231N_LAYOUT}

#: Results from this size on go past the caches.
STREAM_BYTES = 24 * 2**20

#: What is put together before it goes there.
STAGED_BYTES = 8192

#: Cells that caches have room for: what is as far ahead may be asked for already.
NEAR = 2**16

#: Windows that are put together from the same rows, if that are all in a row of output, or at least so many.
FEW_PLACES = 8

#: Channels of a block of 2x2 windows, of which there are twice as many, and what a kernel is told to work in these blocks.
QUAD, QUADS = 4, -1

#: How many cells are moved as one: as long as a row of a window, or the next longer.
MOVES = (2, 4, 8, 16)
MOST_MOVED = MOVES[-1]

#: One copy of a window's numbers.
WINDOW = np.dtype([(name, np.int64) for name in (
    "n", "c", "h", "w", "kh", "kw", "sh", "sw", "dh", "dw", "top", "left", "oh", "ow",
    "layout", "step_n", "step_r", "step_p")])


@lru_cache(maxsize=256)
def window(geometry: Window2dGeometry, layout: str = "columns") -> Array:
    """A geometry and a layout as kernels take them."""
    g = geometry
    rows, places = g.channels * g.taps, g.positions
    steps = {"rows": (places * rows, 1, rows), "cs231n": (1, places * g.batch, g.batch)}.get(
        layout, (rows * places, places, 1))
    return np.array([(g.batch, g.channels, *g.in_size, *g.kernel, *g.stride, *g.dilation, g.pads[0][0], g.pads[1][0],
                      *g.out_size, LAYOUTS[layout], *steps)], WINDOW)


@lru_cache(maxsize=256)
def seen_by(geometry: Window2dGeometry, axis: int) -> Array:
    """Which windows see a cell of the image along an axis, and with which tap.

    Cell t*stride + e is seen by windows ``t + shift[k]`` with taps ``tap[k]`` for k from start[e] to start[e + 1]; here are
    start, tap and shift one behind the other.
    """
    stride, taps = geometry.stride[axis], geometry.kernel[axis]
    before, dilation = geometry.pads[axis][0], geometry.dilation[axis]
    period = stride // math.gcd(dilation, stride)  # of the residues of taps: each comes up once in it
    first = {(j * dilation - before) % stride: j for j in range(min(taps, period))}
    start, tap, shift = [0], list[int](), list[int]()
    for e in range(stride):
        here = range(first.get(e, taps), taps, period)
        tap += here
        shift += [(e + before - j * dilation) // stride for j in here]
        start.append(len(tap))
    return np.array([*start, *tap, *shift], np.int64)


# --- im2col -----------------------------------------------------------------------------------------------------------

@inlined
def tap_cells(x, at, step, mask, first, stop, pad):
    """A vector of x[at + q*step] for q in [first, stop), which `mask` has too, and of `pad`. `step` is 1 or 2."""
    lanes = lanes_of(x)
    if at >= 0 and at + step * lanes <= x.size:
        return where(mask, load(x, at) if step == 1 else evens(load(x, at), load(x, at + lanes)), pad)
    for q in range(first, stop):
        pad = load_lane(x, at + q * step, pad, q)
    return pad


@inlined
def tap_block(x, at, down, step, count, first, stop, to, o, pitch, wanted, limit, pads):
    """One vector of each of `count` rows, which are `down` cells apart in x and `pitch` cells in `to`."""
    lanes = lanes_of(x)
    first, stop = min(max(first, 0), lanes), min(max(stop, 0), lanes)
    mask, pad = between(x, first, stop), load_splat(pads, 0)
    begin, end = 0, count
    while begin < end and at + begin * down < 0:
        begin += 1
    while begin < end and (at + (end - 1) * down + step * lanes > x.size or o + (end - 1) * pitch + lanes > limit):
        end -= 1
    for r in range(begin):
        store_first(to, o + r * pitch, tap_cells(x, at + r * down, step, mask, first, stop, pad), wanted, limit)
    a, t = at + begin * down, o + begin * pitch
    for _ in range(begin, end):
        if step == 1:
            store(to, t, where(mask, load(x, a), pad))
        else:
            store(to, t, where(mask, evens(load(x, a), load(x, a + lanes)), pad))
        a += down
        t += pitch
    for r in range(end, count):
        store_first(to, o + r * pitch, tap_cells(x, at + r * down, step, mask, first, stop, pad), wanted, limit)


@part
def tap_rows(x, at, down, step, rows, first, stop, to, o, pitch, count, limit, pads):
    """to[o + q] = x[at + q*step] for q in [first, stop), the padding's value for the others of `count`, for `rows` rows.

    They are `down` cells apart in x, and `pitch` in `to`. What is from there to to[limit] may be overwritten.
    """
    lanes = lanes_of(x)
    if step <= 2:
        q = (count - 1) // lanes * lanes  # backwards: the last vector of a row reaches into the next row's first one
        while q >= 0:
            if step == 1:
                tap_block(x, at + q, down, 1, rows, first - q, stop - q, to, o + q, pitch, count - q, limit, pads)
            else:
                tap_block(x, at + 2 * q, down, 2, rows, first - q, stop - q, to, o + q, pitch, count - q, limit, pads)
            q -= lanes
    else:
        for _ in range(rows):
            fill(to, o, 1, first, pads[0])
            copy(to, o + first, x, at + first * step, step, stop - first)
            fill(to, o + stop, 1, count - stop, pads[0])
            at += down
            o += pitch


@part
def tap_plane(v, x, image, step_h, i, j, y0, y1, to, o, limit, pads):
    """What tap (i, j) sees of a plane, in rows [y0, y1) of output."""
    first, stop = inside(v.w, j * v.dw - v.left, v.sw, v.ow)
    begin, end = inside(v.h, i * v.dh - v.top, v.sh, v.oh)
    begin, end = min(max(begin, y0), y1), max(min(end, y1), y0)
    if begin >= end or first >= stop:
        fill(to, o, 1, (y1 - y0) * v.ow, pads[0])
        return
    fill(to, o, 1, (begin - y0) * v.ow, pads[0])
    at = image + (begin * v.sh - v.top + i * v.dh) * step_h + j * v.dw - v.left
    tap_rows(x, at, v.sh * step_h, v.sw, end - begin, first, stop, to, o + (begin - y0) * v.ow, v.ow, v.ow,
             limit, pads)
    fill(to, o + (end - y0) * v.ow, 1, (y1 - end) * v.ow, pads[0])


@part
def columns_items(v, begin, end, x, step_n, step_c, step_h, col, pads, bypass):
    """All rows of some (image, channel) items, position by position."""
    kh, kw, oh, ow = v.kh, v.kw, v.oh, v.ow
    staged = stack(col)
    at = begin * kh * kw * oh * ow
    to, o, limit, rows = col, at, end * kh * kw * oh * ow, oh
    if bypass:
        to, o, limit, rows = staged, 0, staged.size, max(STAGED_BYTES // LINE_BYTES * lanes_of(col) // ow, 1)
    for item in range(begin, end):
        image = item // v.c * step_n + item % v.c * step_c
        for tap in range(kh * kw):
            for y in range(0, oh, rows):
                stop = min(y + rows, oh)
                tap_plane(v, x, image, step_h, tap // kw, tap % kw, y, stop, to, o, limit, pads)
                o += (stop - y) * ow
                if bypass:
                    sent = send(col, at, staged, 0, o, item == end - 1 and tap == kh * kw - 1 and stop == oh)
                    at += sent
                    o -= sent
    if bypass:
        fence()


@part
def split_pairs(v, begin, end, x, step_n, step_c, step_h, col, pads, streams):
    """The same for windows of 2x2 cells, two apart and inside of the image: each of its rows goes to two taps at once.

    The last vector of a row reaches into the next row of its tap, but behind the last row is another tap: it goes there cell
    by cell, which costs more than it gains where rows are shorter than a vector.
    """
    lanes = lanes_of(col)
    oh, ow, places = v.oh, v.ow, v.step_r
    pad = load_splat(pads, 0)
    for item in range(begin, end):
        image = item // v.c * step_n + item % v.c * step_c
        for y in range(oh):
            for i in range(2):
                at, o = image + (2 * y + i) * step_h, (item * 4 + 2 * i) * places + y * ow
                limit = (item * 4 + 2 * i + 1) * places
                for q in range(0, ow, lanes):
                    here, left = at + 2 * q, 2 * (ow - q)
                    ask(x, here + AHEAD)
                    ask(x, here + AHEAD + lanes)
                    if here + 2 * lanes <= x.size:
                        a, b = load(x, here), load(x, here + lanes)
                    else:
                        a, b = load_where(x, here, 0, left, pad), load_where(x, here + lanes, 0, left - lanes, pad)
                    if streams:
                        stream(col, o + q, evens(a, b))
                        stream(col, o + places + q, odds(a, b))
                    else:
                        store_first(col, o + q, evens(a, b), ow - q, limit)
                        store_first(col, o + places + q, odds(a, b), ow - q, limit + places)
    if streams:
        fence()


def windows_by(lanes):
    """Functions that move windows, row by row, each as so many cells."""
    move, move_padded = few(lanes)

    @part
    @named(lanes)
    def take(rows, at, line, step, count, width, places, to, o, pitch):
        """`places` windows to to[o], `pitch` cells apart: of `count` rows of `width` cells, the first at rows[at + q*step].

        The last rows of each are moved cell by cell: what is behind them may be there already.
        """
        safe = max(count - (lanes + width - 1) // width + 1, 0)
        for _ in range(places):
            a, t = at, o
            for _ in range(safe):
                move(to, t, rows, a)
                t += width
                a += line
            for _ in range(safe, count):
                for j in range(width):
                    to[U(t + j)] = rows[U(a + j)]
                t += width
                a += line
            at += step
            o += pitch

    @part
    @named(lanes)
    def give(col, at, pitch, count, width, places, rows, line, phases, step):
        """The way back: windows to `rows`, zeros behind each of their rows, of which there are `count`.

        Window q goes to the (q % phases)th of the lines of each row, to its cell q*step: there windows do not overlap.
        """
        safe = max(count - (lanes + width - 1) // width + 1, 0)  # what is behind the others may be outside
        phase = 0
        for q in range(places):
            r, c = phase * line + q * step, at
            for k in range(count * width, 2 * count * width, lanes_of(col)):  # the next channels' piece of this window
                ask(col, c + k)
            for _ in range(safe):
                move_padded(rows, r, col, c, width)
                c += width
                r += phases * line
            for _ in range(safe, count):
                for j in range(lanes):
                    rows[U(r + j)] = col[U(c + j)] if j < width else 0
                c += width
                r += phases * line
            at += pitch
            phase += 1
            phase -= phases if phase == phases else 0

    return take, give


take_2, give_2 = windows_by(2)
take_4, give_4 = windows_by(4)
take_8, give_8 = windows_by(8)
take_16, give_16 = windows_by(MOST_MOVED)


@part
def take(rows, at, line, step, count, width, places, to, o, pitch):
    if width <= 2:
        take_2(rows, at, line, step, count, width, places, to, o, pitch)
    elif width <= 4:
        take_4(rows, at, line, step, count, width, places, to, o, pitch)
    elif width <= 8:
        take_8(rows, at, line, step, count, width, places, to, o, pitch)
    else:
        take_16(rows, at, line, step, count, width, places, to, o, pitch)


@part
def give(col, at, pitch, count, width, places, rows, line, phases, step):
    if width <= 2:
        give_2(col, at, pitch, count, width, places, rows, line, phases, step)
    elif width <= 4:
        give_4(col, at, pitch, count, width, places, rows, line, phases, step)
    elif width <= 8:
        give_8(col, at, pitch, count, width, places, rows, line, phases, step)
    else:
        give_16(col, at, pitch, count, width, places, rows, line, phases, step)


@part
def rows_items(v, begin, end, x, step_n, step_c, step_h, col, pads, channels, line, places, bypass):
    """All positions of some (image, row of output) items, each a full window; `channels` and `places` at a time."""
    kh, kw, sw, ow, c = v.kh, v.kw, v.sw, v.ow, v.c
    padded, staged = stack(x), stack(col)
    pitch = c * kh * kw
    at, left = begin * ow * pitch, 0  # where what is staged will be, if windows are whole, and how much that is
    for item in range(begin, end):
        image, y = item // v.oh * step_n, item % v.oh
        for q0 in range(0, ow, places):
            here = min(places, ow - q0)
            reach = (here - 1) * sw + kw
            first = min(max(v.left - q0 * sw, 0), reach)
            stop = max(min(v.left + v.w - q0 * sw, reach), first)
            for c0 in range(0, c, channels):
                some = min(channels, c - c0)
                for i in range(kh):
                    row = y * v.sh - v.top + i * v.dh
                    if 0 <= row < v.h and first < stop:
                        tap_rows(x, image + c0 * step_c + row * step_h + q0 * sw - v.left, step_c, 1, some, first, stop, padded,
                                 i * line, kh * line, reach, padded.size, pads)
                    else:
                        for k in range(some):
                            fill(padded, (k * kh + i) * line, 1, reach, pads[0])
                count, many = some * kh * kw, here
                to, o, gap = col, (item * ow + q0) * pitch + c0 * kh * kw, pitch
                if bypass:
                    if count < pitch:
                        at, many = o, 1
                    else:
                        many = max(STAGED_BYTES // LINE_BYTES * lanes_of(col) // count, 1)
                    to, o, gap = staged, left, count
                for q in range(0, here, many):
                    number = min(many, here - q)
                    take(padded, q * sw, line, sw, some * kh, kw, number, to, o, gap)
                    if bypass:
                        o += number * count
                        last = item == end - 1 and q0 + q + number == ow
                        sent = send(col, at, staged, 0, o, last or count < pitch)
                        at += sent if count == pitch else pitch
                        o -= sent
                left = o
    if bypass:
        fence()


@part
def take_quads(v, begin, end, x, step_n, step_c, step_h, col, bypass):
    """The same for windows of 2x2 cells, two apart and inside of the image: four channels of eight windows at a time.

    They are eight vectors on both sides. The last ones of a row may be those before once more.
    """
    c, ow = v.c, v.ow
    pitch = 4 * c
    streams = bypass and c % QUAD == 0 and beyond_line(col, 0) == 0
    for item in range(begin, end):
        image = item // v.oh * step_n + item % v.oh * 2 * step_h
        for first in range(0, c, QUAD):
            channel = min(first, c - QUAD)
            for place in range(0, ow, 2 * QUAD):
                q = min(place, ow - 2 * QUAD)
                at = image + channel * step_c + 2 * q
                upper0, lower0 = load(x, at), load(x, at + step_h)
                at += step_c
                upper1, lower1 = load(x, at), load(x, at + step_h)
                at += step_c
                upper2, lower2 = load(x, at), load(x, at + step_h)
                at += step_c
                upper3, lower3 = load(x, at), load(x, at + step_h)
                a, b, d, e = turn4(even_pairs(upper0, lower0), even_pairs(upper1, lower1), even_pairs(upper2, lower2),
                                   even_pairs(upper3, lower3))
                to = (item * ow + q) * pitch + channel * 4
                put_whole(col, to, a, streams)
                put_whole(col, to + 2 * pitch, b, streams)
                put_whole(col, to + 4 * pitch, d, streams)
                put_whole(col, to + 6 * pitch, e, streams)
                a, b, d, e = turn4(odd_pairs(upper0, lower0), odd_pairs(upper1, lower1), odd_pairs(upper2, lower2),
                                   odd_pairs(upper3, lower3))
                to += pitch
                put_whole(col, to, a, streams)
                put_whole(col, to + 2 * pitch, b, streams)
                put_whole(col, to + 4 * pitch, d, streams)
                put_whole(col, to + 6 * pitch, e, streams)
    if streams:
        fence()


@part
def rows_item(v, item, x, step_n, step_c, step_h, col, pad):
    """One such item cell by cell, for windows with holes and those that are longer than what is moved at a time."""
    n, y = item // v.oh, item % v.oh
    channels, kh, kw, dh, dw, h, w = v.c, v.kh, v.kw, v.dh, v.dw, v.h, v.w
    to = U(item * v.ow * channels * kh * kw)
    for q in range(v.ow):
        left = q * v.sw - v.left
        for c in range(channels):
            row = y * v.sh - v.top
            for _ in range(kh):
                at = n * step_n + c * step_c + row * step_h + left
                for j in range(kw):
                    there = 0 <= row < h and 0 <= left + j * dw < w
                    col[to + U(j)] = x[U(at + j * dw)] if there else pad
                to += U(kw)
                row += dh


@part
def cs231n_item(v, item, x, step_n, step_c, step_h, col, pad):
    """One channel's rows for one row of output, over all images (the image runs fastest)."""
    c, y = item // v.oh, item % v.oh
    images, step = U(v.n), U(step_n)
    for i in range(v.kh):
        row = y * v.sh - v.top + i * v.dh
        for j in range(v.kw):
            to = U(((c * v.kh + i) * v.kw + j) * v.step_r + y * v.ow * v.n)
            for q in range(v.ow):
                column = q * v.sw - v.left + j * v.dw
                if 0 <= row < v.h and 0 <= column < v.w:
                    at = U(c * step_c + row * step_h + column)
                    for n in range(images):
                        col[to + n] = x[at + n * step]
                else:
                    for n in range(images):
                        col[to + n] = pad
                to += images


@Kernel
def gather(workers, windows, x, step_n, step_c, step_h, pads, col, channels, line, places, bypass):
    """`channels`, `line`, `places`: of how many channels "rows" takes how many cells for how many windows at a time; or 0.

    Or `channels` is QUADS: windows of 2x2 cells, in "rows" or in "columns".
    """
    for worker in prange(workers):
        v = windows[0]
        if v.layout == COLUMNS_LAYOUT:
            items = v.n * v.c
        elif v.layout == ROWS_LAYOUT:
            items = v.n * v.oh
        else:
            items = v.c * v.oh
        begin, end = items * worker // workers, items * (worker + 1) // workers
        whole = v.ow % lanes_of(col) == 0 and beyond_line(col, 0) == 0  # rows of whole lines can go past the caches as they are
        if v.layout == COLUMNS_LAYOUT and channels == QUADS and (whole or not bypass) and v.ow >= lanes_of(col):
            split_pairs(v, begin, end, x, step_n, step_c, step_h, col, pads, bypass)
        elif v.layout == COLUMNS_LAYOUT:
            columns_items(v, begin, end, x, step_n, step_c, step_h, col, pads, bypass)
        elif v.layout == ROWS_LAYOUT and channels == QUADS:
            take_quads(v, begin, end, x, step_n, step_c, step_h, col, bypass)
        elif v.layout == ROWS_LAYOUT and channels > 0:
            rows_items(v, begin, end, x, step_n, step_c, step_h, col, pads, channels, line, places, bypass)
        else:
            for item in range(begin, end):
                if v.layout == ROWS_LAYOUT:
                    rows_item(v, item, x, step_n, step_c, step_h, col, pads[0])
                else:
                    cs231n_item(v, item, x, step_n, step_c, step_h, col, pads[0])


# --- col2im -----------------------------------------------------------------------------------------------------------

@inlined
def sum_windows(col, bases, rows, places, across, steps, e, t, ow, ahead):
    """The sum of what the cells t, t + 1, ... of residue e got, from rows of windows of which cell 0, tap 0 is at `bases`."""
    lanes = lanes_of(col)
    zeros = splat(col, col.dtype.type(0))
    total = zeros
    taps = (across.size - steps - 1) // 2
    for k in range(across[U(e)], across[U(e + 1)]):
        tap, q = across[U(steps + 1 + k)], t + across[U(steps + 1 + taps + k)]
        at = tap * places + q
        if q >= 0 and q + lanes <= ow:
            for m in range(rows):
                ask(col, bases[U(m)] + at + ahead)
                total = plus(total, load(col, bases[U(m)] + at))
        elif q + lanes > 0 and q < ow:
            for m in range(rows):
                ask(col, bases[U(m)] + at + ahead)
                total = plus(total, load_where(col, bases[U(m)] + at, -q, ow - q, zeros))
    return total


@inlined
def image_row(v, col, bases, rows, across, to, o, limit, ahead):
    """A row of the image, the sum of `rows` rows of windows. What is between it and to[limit] may be overwritten."""
    lanes = lanes_of(col)
    w, sw, ow, places = v.w, v.sw, v.ow, v.step_r
    if sw <= 2:
        for t in range(0, (w + sw - 1) // sw, lanes):
            a = sum_windows(col, bases, rows, places, across, sw, 0, t, ow, ahead)
            if sw == 1:
                store_first(to, o + t, a, w - t, limit)
            else:
                b = sum_windows(col, bases, rows, places, across, sw, 1, t, ow, ahead)
                store_first(to, o + 2 * t, mixed_low(a, b), w - 2 * t, limit)
                if 2 * t + lanes < w:
                    store_first(to, o + 2 * t + lanes, mixed_high(a, b), w - 2 * t - lanes, limit)
    else:
        for e in range(min(sw, w)):
            for t in range(0, (w - e + sw - 1) // sw, lanes):
                a = sum_windows(col, bases, rows, places, across, sw, e, t, ow, ahead)
                for i in range(min(lanes, (w - e + sw - 1) // sw - t)):
                    store_lane(to, o + (t + i) * sw + e, a, i)


@part
def sum_columns(v, begin, end, col, down, across, out, bypass):
    """Some (image, channel) planes, row by row."""
    h, w, sh, ow, oh, kw = v.h, v.w, v.sh, v.ow, v.oh, v.kw
    taps = (down.size - sh - 1) // 2
    staged, bases = stack(col), stack(down)
    many = max(STAGED_BYTES // LINE_BYTES * lanes_of(col) // w, 1)
    # as many streams as taps are too many for the processor to see: ask for the next plane's, if they are not far
    ahead = v.kh * kw * v.step_r
    if ahead > NEAR:
        ahead = AHEAD
    at = begin * h * w
    to, o, limit = out, at, end * h * w
    if bypass:
        to, o, limit = staged, 0, staged.size
    for plane in range(begin, end):
        base = plane * v.kh * kw * v.step_r
        e, t = 0, 0
        for r in range(h):
            rows = 0
            for k in range(down[U(e)], down[U(e + 1)]):
                y = t + down[U(sh + 1 + taps + k)]
                if 0 <= y < oh:
                    bases[U(rows)] = base + down[U(sh + 1 + k)] * kw * v.step_r + y * ow
                    rows += 1
            image_row(v, col, bases, rows, across, to, o, limit, ahead)
            o += w
            if bypass and (r % many == many - 1 or r == h - 1):
                sent = send(out, at, staged, 0, o, plane == end - 1 and r == h - 1)
                at += sent
                o -= sent
            e += 1
            if e == sh:
                e, t = 0, t + 1
    if bypass:
        fence()


@part
def weave_pairs(v, begin, end, col, out, streams):
    """The same for windows of 2x2 cells, two apart, which cover the image: each of its rows is woven from two taps."""
    lanes = lanes_of(col)
    oh, ow, places = v.oh, v.ow, v.step_r
    zeros, limit = splat(col, col.dtype.type(0)), end * 4 * places
    for plane in range(begin, end):
        o = plane * 4 * places
        for y in range(oh):
            for i in range(2):
                at = (plane * 4 + 2 * i) * places + y * ow
                for q in range(0, ow, lanes):
                    ask(col, at + q + AHEAD)
                    ask(col, at + places + q + AHEAD)
                    if at + places + q + lanes <= col.size:
                        a, b = load(col, at + q), load(col, at + places + q)
                    else:
                        a = load_where(col, at + q, 0, ow - q, zeros)
                        b = load_where(col, at + places + q, 0, ow - q, zeros)
                    if streams:
                        stream(out, o + 2 * q, mixed_low(a, b))
                        stream(out, o + 2 * q + lanes, mixed_high(a, b))
                    else:
                        store_first(out, o + 2 * q, mixed_low(a, b), 2 * (ow - q), limit)
                        if q + lanes // 2 < ow:
                            store_first(out, o + 2 * q + lanes, mixed_high(a, b), 2 * (ow - q) - lanes, limit)
                o += 2 * ow
    if streams:
        fence()


@inlined
def sum_phases(rows, at, line, phases, first, stop, zeros):
    """The sum of a vector of each line of a row, with zeros outside of the lanes [first, stop)."""
    total = load_where(rows, at, first, stop, zeros)
    for phase in range(1, phases):
        total = plus(total, load_where(rows, at + phase * line, first, stop, zeros))
    return total


@part
def add_row(rows, at, line, phases, first, stop, out, o, limit, overwrites):
    """Add the sum of a row's lines to cells [first, stop) of the image's row at out[o], or put it there.

    With `overwrites` what is behind them up to out[limit] may be overwritten.
    """
    lanes = lanes_of(out)
    zeros = splat(out, out.dtype.type(0))
    for k in range(first, stop, lanes):
        total = sum_phases(rows, at + k, line, phases, 0, stop - k, zeros)
        if overwrites:
            store_first(out, o + k, total, stop - k, limit)
        elif o + k + lanes <= limit:
            store(out, o + k, plus(load(out, o + k), total))
        else:
            for q in range(min(stop - k, lanes)):
                out[U(o + k + q)] += lane(total, q)


@part
def sum_rows(v, n, c0, c1, col, out, channels, line, places, phases, bypass):
    """Some channels of one image from "rows".

    Of `channels` and `places` at a time windows are laid out in lines, and rows of the image are sums of these.
    """
    h, w, kh, kw, sh, sw, ow, top = v.h, v.w, v.kh, v.kw, v.sh, v.sw, v.ow, v.top
    rows, summed = stack(col), stack(col)
    zero(rows, 0, min(channels, c1 - c0) * kh * phases * line)
    written = 0  # rows of the image: others are not added to, but overwritten
    if places < ow or (v.dh > 1 and kh > 1):
        written = h
        zero(out, (n * v.c + c0) * h * w, (c1 - c0) * h * w)
    alone = bypass and places >= ow and (kh == 1 or (kh - 1) * v.dh < sh)  # is a row of the image in one row of windows?
    for y in range(v.oh):
        before = written
        for q0 in range(0, ow, places):
            here = min(places, ow - q0)
            if here < places:  # windows would be among these that are left from before
                zero(rows, 0, min(channels, c1 - c0) * kh * phases * line)
            start = q0 * sw - v.left
            first, stop = max(start, 0), min(start + (here - 1) * sw + kw, w)
            for c in range(c0, c1, channels):
                some = min(channels, c1 - c)
                give(col, n * v.step_n + (y * ow + q0) * v.step_p + c * kh * kw, v.step_p, some * kh, kw, here, rows, line,
                     phases, sw)
                written = before
                for i in range(kh):
                    r = y * sh - top + i * v.dh
                    if not 0 <= r < h:
                        continue
                    for k in range(some):
                        plane, s = (n * v.c + c + k) * h * w, (k * kh + i) * phases * line - start
                        o = plane + r * w
                        if r < written:
                            add_row(rows, s, line, phases, first, stop, out, o, plane + h * w, False)
                            continue
                        zero(out, plane + written * w, (r - written) * w)
                        if alone and start <= 0 and stop == w:
                            add_row(rows, s, line, phases, 0, w, summed, 0, summed.size, True)
                            send(out, o, summed, 0, w, True)
                        else:
                            zero(out, o, first)
                            add_row(rows, s, line, phases, first, stop, out, o, plane + h * w, True)
                            zero(out, o + stop, w - stop)
                    written = max(written, r + 1)
    for c in range(c0, c1):
        plane = (n * v.c + c) * h * w
        zero(out, plane + written * w, (h - written) * w)
    if bypass:
        fence()


@inlined
def sum_taps(turned, row, line, first, step, shift, gap, count, zeros):
    """The sum of `count` taps of a row of windows: first, first + step, ..., each seen `gap` cells before the last one."""
    total = load(turned, row + first * line + shift) if count > 0 else zeros
    for k in range(1, count):
        total = plus(total, load(turned, row + (first + k * step) * line + shift - k * gap))
    return total


@inlined
def put_row(turned, row, line, tables, taps, steps, out, o, w, limit, adds, zeros):
    """A row of the image from a row of windows, one or two `steps` apart; what is from there to out[limit] is written later.

    `tables`: the `residue` of even and odd cells. `taps`: how many of them see even cells, and odd cells one more; 0 if not so.
    """
    lanes = lanes_of(out)
    even, odd = tables
    for t in range(0, w, steps * lanes):
        if steps == 1:
            first = sum_taps(turned, row + t, line, even[0], 1, even[2], even[3], taps if taps else even[4], zeros)
            second = first
        else:
            a = sum_taps(turned, row + t // 2, line, even[0], even[1], even[2], even[3], taps if taps else even[4], zeros)
            b = sum_taps(turned, row + t // 2, line, odd[0], odd[1], odd[2], odd[3], taps + 1 if taps else odd[4], zeros)
            first, second = mixed_low(a, b), mixed_high(a, b)
        for i in range(steps):
            at, left, value = o + t + i * lanes, w - t - i * lanes, second if i else first
            if left <= 0:
                break
            if not adds:
                store_first(out, at, value, left, limit)
            elif left >= lanes:
                store(out, at, plus(load(out, at), value))
            else:
                value = plus(load_where(out, at, 0, left, zeros), value)
                if at + lanes <= limit:  # what is behind it is as it was
                    store(out, at, where(between(out, 0, left), value, load(out, at)))
                else:
                    for q in range(left):
                        store_lane(out, at + q, value, q)


@inlined
def residue(across, steps, e):
    """Of the taps that see cells of residue e: the first, how far the next is, the first shift, what others miss, how many."""
    taps = (across.size - steps - 1) // 2
    first, stop = across[U(e)], across[U(e + 1)]
    here = steps + 1 + first
    count = stop - first
    if count == 0:
        return 0, 0, 0, 0, 0
    if count == 1:
        return across[U(here)], 0, across[U(here + taps)], 0, 1
    return (across[U(here)], across[U(here + 1)] - across[U(here)], across[U(here + taps)],
            across[U(here + taps)] - across[U(here + taps + 1)], count)


@part
def turn_rows(v, n, c0, c1, col, across, out, channels, line, margin):
    """The same by way of "columns": some channels of a row of windows are turned, so that each tap is a row of places."""
    h, w, kh, kw, sh, sw, oh, ow, top = v.h, v.w, v.kh, v.kw, v.sh, v.sw, v.oh, v.ow, v.top
    taps, lanes, pitch = kh * kw, lanes_of(col), v.step_p
    turned = stack(col)
    tables = residue(across, sw, 0), residue(across, sw, sw - 1)
    zeros = splat(out, out.dtype.type(0))
    zero(turned, 0, min(channels, c1 - c0) * taps * line)
    written = 0  # rows of the image: others are not added to, but overwritten
    if v.dh > 1 and kh > 1:
        written = h
        zero(out, (n * v.c + c0) * h * w, (c1 - c0) * h * w)
    for y in range(oh):
        before = written
        for c in range(c0, c1, channels):
            first = max(min(c, c1 - channels), c0)  # the last ones may have been turned before
            some = min(channels, c1 - first)
            at = n * v.step_n + y * ow * pitch + first * taps
            for q in range(0, ow, lanes):
                for r in range(0, some * taps, lanes):
                    begin = min(r, some * taps - lanes)
                    for i in range(lanes):  # the next channels' piece of these windows
                        ask_early(col, at + (q + i) * pitch + begin + some * taps)
                    turn_block(turned, begin * line + margin + q, line, col, at + q * pitch + begin, pitch, ow - q)
            written = before
            for i in range(kh):
                r = y * sh - top + i * v.dh
                if not 0 <= r < h:
                    continue
                for k in range(c - first, some):
                    plane, row = (n * v.c + first + k) * h * w, (k * kh + i) * kw * line + margin
                    if r >= written:
                        zero(out, plane + written * w, (r - written) * w)
                    o, adds = plane + r * w, r < written
                    if sw == 1 and kw == 3:
                        put_row(turned, row, line, tables, 3, 1, out, o, w, plane + h * w, adds, zeros)
                    elif sw == 1:
                        put_row(turned, row, line, tables, 0, 1, out, o, w, plane + h * w, adds, zeros)
                    elif tables[0][4] == 1 and tables[1][4] == 2:
                        put_row(turned, row, line, tables, 1, 2, out, o, w, plane + h * w, adds, zeros)
                    else:
                        put_row(turned, row, line, tables, 0, 2, out, o, w, plane + h * w, adds, zeros)
                written = max(written, r + 1)
    for c in range(c0, c1):
        plane = (n * v.c + c) * h * w
        zero(out, plane + written * w, (h - written) * w)


@part
def give_quads(v, begin, end, col, out, bypass):
    """`take_quads` the other way round, for (image, row of windows) items, if windows cover the image."""
    c, h, w, ow = v.c, v.h, v.w, v.ow
    pitch = 4 * c
    streams = bypass and ow % (2 * QUAD) == 0 and beyond_line(out, 0) == 0
    for item in range(begin, end):
        image = item // v.oh * c * h * w + item % v.oh * 2 * w
        for first in range(0, c, QUAD):
            channel = min(first, c - QUAD)
            for place in range(0, ow, 2 * QUAD):
                q = min(place, ow - 2 * QUAD)
                at = (item * ow + q) * pitch + channel * 4
                even0, even1, even2, even3 = turn4(load(col, at), load(col, at + 2 * pitch), load(col, at + 4 * pitch),
                                                   load(col, at + 6 * pitch))
                at += pitch
                odd0, odd1, odd2, odd3 = turn4(load(col, at), load(col, at + 2 * pitch), load(col, at + 4 * pitch),
                                               load(col, at + 6 * pitch))
                to = image + channel * h * w + 2 * q
                put_whole(out, to, even_pairs(even0, odd0), streams)
                put_whole(out, to + w, odd_pairs(even0, odd0), streams)
                to += h * w
                put_whole(out, to, even_pairs(even1, odd1), streams)
                put_whole(out, to + w, odd_pairs(even1, odd1), streams)
                to += h * w
                put_whole(out, to, even_pairs(even2, odd2), streams)
                put_whole(out, to + w, odd_pairs(even2, odd2), streams)
                to += h * w
                put_whole(out, to, even_pairs(even3, odd3), streams)
                put_whole(out, to + w, odd_pairs(even3, odd3), streams)
    if streams:
        fence()


@part
def add_columns(v, plane, col, out):
    """Add all rows of one channel of one image into its plane, cell by cell, whatever the layout."""
    n, c = plane // v.c, plane % v.c
    h, w, sw, ow, step_p = v.h, v.w, v.sw, v.ow, v.step_p
    zero(out, plane * h * w, h * w)
    for i in range(v.kh):
        for j in range(v.kw):
            start = j * v.dw - v.left
            first, stop = inside(w, start, sw, ow)
            row = i * v.dh - v.top
            block = n * v.step_n + ((c * v.kh + i) * v.kw + j) * v.step_r + first * step_p
            for _ in range(v.oh):
                if 0 <= row < h:
                    at, to = U(block), U((plane * h + row) * w + start + first * sw)
                    for x in range(U(stop - first)):
                        out[to + x * U(sw)] += col[at + x * U(step_p)]
                block += ow * step_p
                row += v.sh


@Kernel
def scatter(workers, windows, col, down, across, blocks, channels, line, places, phases, out, bypass):
    """`channels`, `line`, `places`, `phases`: of how many channels "rows" lays out how many windows in how long lines; or 0.

    Or `channels` is QUADS: windows of 2x2 cells, in "rows" or in "columns".
    """
    for worker in prange(workers):
        v = windows[0]
        begin, end = v.n * v.c * worker // workers, v.n * v.c * (worker + 1) // workers
        whole = v.ow % lanes_of(out) == 0 and beyond_line(out, 0) == 0  # rows of whole lines can go past the caches as they are
        if v.layout == COLUMNS_LAYOUT and channels == QUADS and (whole or not bypass):
            weave_pairs(v, begin, end, col, out, bypass)
        elif v.layout == COLUMNS_LAYOUT and channels != 0:
            sum_columns(v, begin, end, col, down, across, out, bypass)
        elif v.layout == ROWS_LAYOUT and channels == QUADS:
            give_quads(v, v.n * v.oh * worker // workers, v.n * v.oh * (worker + 1) // workers, col, out, bypass)
        elif v.layout == ROWS_LAYOUT and channels > 0:
            for item in range(v.n * blocks * worker // workers, v.n * blocks * (worker + 1) // workers):
                block = item % blocks
                first, stop = block * v.c // blocks, (block + 1) * v.c // blocks
                if places == 0:
                    turn_rows(v, item // blocks, first, stop, col, across, out, channels, line, phases)
                    continue
                sum_rows(v, item // blocks, block * v.c // blocks, (block + 1) * v.c // blocks, col, out, channels, line,
                         places, phases, bypass)
        else:
            for plane in range(begin, end):
                add_columns(v, plane, col, out)


# --- entry points -----------------------------------------------------------------------------------------------------


def _movable(geometry: Window2dGeometry) -> bool:
    """Are windows' rows without holes, and not longer than what is moved as one?"""
    return geometry.dilation[1] == 1 and geometry.kernel[1] <= MOST_MOVED


def _pairs(geometry: Window2dGeometry) -> bool:
    """Are windows 2x2 cells, two apart and inside of the image?"""
    g = geometry
    return bool(g.kernel == g.stride == (2, 2) and g.dilation == (1, 1) and g.pads[0][0] == g.pads[1][0] == 0
                and all(2 * count <= size for count, size in zip(g.out_size, g.in_size, strict=True)))


def _blocks(geometry: Window2dGeometry, layout: str, itemsize: int) -> bool:
    """And are these what a kernel has for them? In "rows" it is for cells of 4 bytes, and enough windows for a block."""
    if layout == "rows" and (itemsize != 4 or geometry.channels < QUAD or geometry.out_size[1] < 2 * QUAD):
        return False
    return LAYOUTS[layout] != CS231N_LAYOUT and _pairs(geometry)


def _turned(geometry: Window2dGeometry, phases: int, itemsize: int, whole: bool) -> tuple[int, int, int]:
    """Of how many channels "rows" puts how many cells on the stack at a time, and for how many windows; or zeros.

    `phases` lines for each row of a window. Is it better to have `whole` windows, or whole rows of windows?
    """
    if not _movable(geometry):
        return 0, 0, 0
    (kh, kw), step, columns = geometry.kernel, geometry.stride[1], geometry.out_size[1]
    room, slack = (STACK_BYTES - LINE_BYTES) // (kh * phases * itemsize), LINE_BYTES // itemsize

    def places(channels: int) -> int:
        return (room // channels - slack - kw) // step + 1

    channels = geometry.channels
    if places(channels) < (min(FEW_PLACES, columns) if whole else columns):  # it costs to turn few at a time
        wanted = ((min(4 * FEW_PLACES, columns) if whole else columns) - 1) * step + kw + slack
        channels = min(max(room // wanted, 1), channels)
    many = min(places(channels), columns)
    return (channels, (many - 1) * step + kw + slack, many) if many > 0 else (0, 0, 0)


def _turned_taps(geometry: Window2dGeometry, itemsize: int) -> tuple[int, int, int, int] | None:
    """Of how many channels a row of windows is turned on the stack, how long the lines are, 0, and where they begin in these.

    None where that has less than a vector of taps, or windows are too far apart.
    """
    (_, kw), step, ow, w = geometry.kernel, geometry.stride[1], geometry.out_size[1], geometry.in_size[1]
    lanes, left, far = LINE_BYTES // itemsize, geometry.pads[1][0], (kw - 1) * geometry.dilation[1]
    margin = -(-far // lanes) * lanes
    line = margin + -(-(max(ow, -(-w // step) + left) + lanes) // lanes) * lanes
    channels = min((STACK_BYTES - LINE_BYTES) // (geometry.taps * line * itemsize), geometry.channels)
    return (channels, line, 0, margin) if step <= 2 and channels * geometry.taps >= lanes else None


def im2col(x: Array, geometry: Window2dGeometry, layout: str, pad: Array, out: Array, threads: int) -> None:
    """Lower x into `out`, a C-contiguous column matrix of the same item size (one of ITEMS).

    x needs to be contiguous along its width only. `pad` is an array of one item.
    """
    size = x.itemsize
    steps = [step // size for step in x.strides[:3]]
    if x.flags.c_contiguous:
        cells = flat(x)
    else:  # what lies between the first cell and the last
        span = 1 + sum(step * (extent - 1) for step, extent in zip((*steps, 1), x.shape, strict=True))
        cells = flat(np.lib.stride_tricks.as_strided(x, (span,), (size,)))
    turned = (QUADS, 0, 0) if _blocks(geometry, layout, size) else _turned(geometry, 1, size, True)
    bypass = out.nbytes >= STREAM_BYTES and (geometry.out_size[1] * size <= STACK_BYTES // 2 or layout == "rows")
    gather(usable_workers(threads), window(geometry, layout), cells.view(ITEMS[size]), *steps,
           pad.reshape(-1).view(ITEMS[size]), flat(out).view(ITEMS[size]), *turned, bypass)


def col2im(col: Array, geometry: Window2dGeometry, layout: str, out: Array, threads: int) -> None:
    """Add the columns up in the image `out`, all C-contiguous float32 or float64. Each row of the image has one worker."""
    workers = usable_workers(threads)
    down, across = (seen_by(geometry, axis) for axis in (0, 1))
    # channels are split in blocks only where there are too few images; the sums do not depend on it
    blocks = min(geometry.channels, -(-2 * workers // max(geometry.batch, 1))) if workers > 1 else 1
    moved = next((lanes for lanes in MOVES if geometry.kernel[1] <= lanes), MOST_MOVED)
    phases = -(-moved // geometry.stride[1])
    covered = geometry.in_size == (2 * geometry.out_size[0], 2 * geometry.out_size[1])
    if covered and _blocks(geometry, layout, col.itemsize):
        channels, line, places = QUADS, 0, 0
    elif layout == "rows":
        channels, line, places = _turned(geometry, phases, col.itemsize, False)
        if turned := _turned_taps(geometry, col.itemsize):
            channels, line, places, phases = turned
            blocks = min(blocks, geometry.channels // -(-LINE_BYTES // (col.itemsize * geometry.taps)))
    else:  # for "columns": a row of the image is the sum of rows of which the stack holds the places
        channels, line, places = int(geometry.kernel[0] * 8 <= STACK_BYTES), 0, 0
    bypass = out.nbytes >= STREAM_BYTES and geometry.in_size[1] * col.itemsize <= STACK_BYTES // 2
    scatter(workers, window(geometry, layout), flat(col), down, across, blocks, channels, line, places, phases,
            flat(out), bypass)
