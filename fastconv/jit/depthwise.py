"""Convolution of single planes in Numba: depthwise layers, and images of one channel with few filters.

A 3x3 filter does nine multiply-adds for each cell that it reads, so no padded copy is worth making: taps are read from the
image, as vectors of a line of cache, masked where they reach over its edge (:mod:`fastconv.jit.vectors`). A vector of
columns is followed down the rows:

- 3x3, stride 1 and 2: each row is read once, and added to the sums of the rows of output that it belongs to, which are in
  registers; likewise the nine sums of a gradient of 3x3 weights, in which an image's row meets the rows of `dout`.
- other filters: four rows of output at a time, tap by tap.

Backward data with stride 1 is the same on `dout`, with the filters turned; with stride 2 each parity of the columns has its
own sum, and two of them are one vector of cells.

A gradient of weights is the sum of one vector for each CHUNK rows, columns and image: a blocked sum, as in
:mod:`fastconv.jit.direct`. In its masks and beyond the rows of `dout` zeros meet cells of the image, so where these are not
finite it is NaN, and the caller goes another way. Workers take planes, or bands of their rows; none shares a sum.

What it compiles to (Numba 0.68 with LLVM 22, on AVX-512; from inspect_asm): the nine sums of a gradient are nine vfmadd of
zmm for each row, of registers only, and cells are loaded by zero-masked vmovups; with stride 2 vpermt2ps takes every second.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..geometry import Conv2dGeometry
from .common import AHEAD, U, zero
from .im2col import seen_by
from .options import Kernel, inlined, part, prange
from .vectors import (
    ask,
    between,
    evens,
    lanes_of,
    load,
    load_splat,
    load_where,
    mixed_high,
    mixed_low,
    odds,
    plus,
    plus_product,
    relu_of,
    splat,
    stack,
    store,
    store_first,
    where,
)

Array = np.ndarray

MOST_FILTERS = 3    # for each plane; for more, direct convolution's blocks of four read less
MOST_TAPS = 240     # of a sum that is not cut into pieces (direct.REDUCTION): longer ones would be less accurate
BAND_BYTES = 16384  # of a band of the image: vectors side by side share its lines, so it stays in the first-level cache,
LEAST_ROWS = 16     # but a band has at least so many rows, as its first ones are read twice
CHUNK = 256         # rows of a chunk of a gradient's sum

#: A convolution of planes. `each` filters run over one plane of the image: with those of all images counted through,
#: plane i of the output is made of plane i // each by filter i % filters. `first_tap`, `tap_step`: in which order taps are.
JOB = np.dtype([(name, np.int64) for name in (
    "planes", "filters", "each", "h", "w", "oh", "ow", "kh", "kw", "sh", "sw", "dh", "dw", "top", "left",
    "first_tap", "tap_step", "band", "bands")])


# --- forward ----------------------------------------------------------------------------------------------------------

@inlined
def clipped(x, at, w):
    """The lanes of the vector of a row from column `at` on that are in the row, of `w` columns."""
    lanes = lanes_of(x)
    first = min(max(-at, 0), lanes)
    return between(x, first, max(min(w - at, lanes), first))


@inlined
def cells(x, row, at, w, mask, zeros):
    """The cells of a row from column `at` on, zeros outside of it. `mask` has its lanes."""
    begin = row + at
    if begin >= 0 and begin + lanes_of(x) <= x.size:
        return where(mask, load(x, begin), zeros)
    return load_where(x, begin, -at, w - at, zeros)


@inlined
def three(x, row, there, at, w, m0, m1, m2, zeros):
    """What three taps side by side see of a row, with stride 1."""
    if not there:
        return zeros, zeros, zeros
    begin = row + at
    if begin >= 0 and begin + 2 + lanes_of(x) <= x.size:
        return where(m0, load(x, begin), zeros), where(m1, load(x, begin + 1), zeros), where(m2, load(x, begin + 2), zeros)
    return (load_where(x, begin, -at, w - at, zeros), load_where(x, begin + 1, -at - 1, w - at - 1, zeros),
            load_where(x, begin + 2, -at - 2, w - at - 2, zeros))


@inlined
def three_by_two(x, row, there, at, w, m0, m1, m2, m3, zeros):
    """The same with stride 2. Masks are those of the vectors at `at` and behind it, and of those two cells further."""
    lanes = lanes_of(x)
    if not there:
        return zeros, zeros, zeros
    begin = row + at
    if begin >= 0 and begin + 2 + 2 * lanes <= x.size:
        a, b = where(m0, load(x, begin), zeros), where(m1, load(x, begin + lanes), zeros)
        c, d = where(m2, load(x, begin + 2), zeros), where(m3, load(x, begin + lanes + 2), zeros)
    else:
        a, b = load_where(x, begin, -at, w - at, zeros), load_where(x, begin + lanes, -at - lanes, w - at - lanes, zeros)
        at, begin = at + 2, begin + 2
        c, d = load_where(x, begin, -at, w - at, zeros), load_where(x, begin + lanes, -at - lanes, w - at - lanes, zeros)
    return evens(a, b), odds(a, b), evens(c, d)


@inlined
def by_three(total, w0, w1, w2, a, b, c):
    """total + w0*a + w1*b + w2*c"""
    return plus_product(plus_product(plus_product(total, w0, a), w1, b), w2, c)


@inlined
def finish(out, o, total, bias, relu, count, limit):
    total = plus(total, bias)
    store_first(out, o, relu_of(total) if relu else total, count, limit)


@part
def strip_ones(v, x, plane, y0, y1, q, weight, k, bias, relu, out, o, limit):
    """Columns from q on of rows [y0, y1) of output, for a 3x3 filter with stride 1."""
    zeros = splat(x, x.dtype.type(0))
    h, w, ow, s, at = v.h, v.w, v.ow, v.tap_step, q - v.left
    w0, w1, w2 = load_splat(weight, k), load_splat(weight, k + s), load_splat(weight, k + 2 * s)
    w3, w4, w5 = load_splat(weight, k + 3 * s), load_splat(weight, k + 4 * s), load_splat(weight, k + 5 * s)
    w6, w7, w8 = load_splat(weight, k + 6 * s), load_splat(weight, k + 7 * s), load_splat(weight, k + 8 * s)
    m0, m1, m2 = clipped(x, at, w), clipped(x, at + 1, w), clipped(x, at + 2, w)
    r = y0 - v.top
    row = plane + r * w
    a, b, c = three(x, row, 0 <= r < h, at, w, m0, m1, m2, zeros)
    upper = by_three(zeros, w0, w1, w2, a, b, c)  # of the row of output that this one is the first of
    r, row = r + 1, row + w
    a, b, c = three(x, row, 0 <= r < h, at, w, m0, m1, m2, zeros)
    middle = by_three(upper, w3, w4, w5, a, b, c)
    upper = by_three(zeros, w0, w1, w2, a, b, c)
    for _ in range(y0, y1):
        r, row = r + 1, row + w
        ask(x, row + at + AHEAD)
        a, b, c = three(x, row, 0 <= r < h, at, w, m0, m1, m2, zeros)
        finish(out, o, by_three(middle, w6, w7, w8, a, b, c), bias, relu, ow - q, limit)
        middle = by_three(upper, w3, w4, w5, a, b, c)
        upper = by_three(zeros, w0, w1, w2, a, b, c)
        o += ow


@part
def strip_twos(v, x, plane, y0, y1, q, weight, k, bias, relu, out, o, limit):
    """The same for stride 2."""
    lanes = lanes_of(x)
    zeros = splat(x, x.dtype.type(0))
    h, w, ow, s, at = v.h, v.w, v.ow, v.tap_step, 2 * q - v.left
    w0, w1, w2 = load_splat(weight, k), load_splat(weight, k + s), load_splat(weight, k + 2 * s)
    w3, w4, w5 = load_splat(weight, k + 3 * s), load_splat(weight, k + 4 * s), load_splat(weight, k + 5 * s)
    w6, w7, w8 = load_splat(weight, k + 6 * s), load_splat(weight, k + 7 * s), load_splat(weight, k + 8 * s)
    m0, m1, m2, m3 = clipped(x, at, w), clipped(x, at + lanes, w), clipped(x, at + 2, w), clipped(x, at + lanes + 2, w)
    r = 2 * y0 - v.top
    row = plane + r * w
    a, b, c = three_by_two(x, row, 0 <= r < h, at, w, m0, m1, m2, m3, zeros)
    upper = by_three(zeros, w0, w1, w2, a, b, c)
    for _ in range(y0, y1):
        r, row = r + 1, row + w
        ask(x, row + at + AHEAD)
        a, b, c = three_by_two(x, row, 0 <= r < h, at, w, m0, m1, m2, m3, zeros)
        middle = by_three(upper, w3, w4, w5, a, b, c)
        r, row = r + 1, row + w
        ask(x, row + at + AHEAD)
        a, b, c = three_by_two(x, row, 0 <= r < h, at, w, m0, m1, m2, m3, zeros)
        finish(out, o, by_three(middle, w6, w7, w8, a, b, c), bias, relu, ow - q, limit)
        upper = by_three(zeros, w0, w1, w2, a, b, c)
        o += ow


@part
def tap(x, plane, r, h, at, w, step, mask, mask_2, zeros):
    """What a tap sees of row r, with `step` 1 or 2."""
    if not 0 <= r < h:
        return zeros
    row = plane + r * w
    if step == 1:
        return cells(x, row, at, w, mask, zeros)
    return evens(cells(x, row, at, w, mask, zeros), cells(x, row, at + lanes_of(x), w, mask_2, zeros))


@part
def strip_any(v, x, plane, y0, y1, q, weight, k, bias, relu, out, o, limit):
    """The same for any filter, with stride 1 or 2 along the rows."""
    zeros = splat(x, x.dtype.type(0))
    h, w, ow, down, step = v.h, v.w, v.ow, v.sh, v.sw
    for y in range(y0, y1, 4):
        s0 = s1 = s2 = s3 = zeros
        t = k
        for i in range(v.kh):
            r = y * down - v.top + i * v.dh
            for j in range(v.kw):
                at = q * step - v.left + j * v.dw
                mask, mask_2 = clipped(x, at, w), clipped(x, at + lanes_of(x), w)
                value = load_splat(weight, t)
                s0 = plus_product(s0, value, tap(x, plane, r, h, at, w, step, mask, mask_2, zeros))
                s1 = plus_product(s1, value, tap(x, plane, r + down, h, at, w, step, mask, mask_2, zeros))
                s2 = plus_product(s2, value, tap(x, plane, r + 2 * down, h, at, w, step, mask, mask_2, zeros))
                s3 = plus_product(s3, value, tap(x, plane, r + 3 * down, h, at, w, step, mask, mask_2, zeros))
                t += v.tap_step
        finish(out, o, s0, bias, relu, ow - q, limit)
        if y + 1 < y1:
            finish(out, o + ow, s1, bias, relu, ow - q, limit)
        if y + 2 < y1:
            finish(out, o + 2 * ow, s2, bias, relu, ow - q, limit)
        if y + 3 < y1:
            finish(out, o + 3 * ow, s3, bias, relu, ow - q, limit)
        o += 4 * ow


@part
def strip(v, x, plane, y0, y1, q, weight, k, bias, relu, out, o, limit):
    if v.kh == 3 and v.kw == 3 and v.dh == 1 and v.dw == 1 and v.sh == 1 and v.sw == 1:
        strip_ones(v, x, plane, y0, y1, q, weight, k, bias, relu, out, o, limit)
    elif v.kh == 3 and v.kw == 3 and v.dh == 1 and v.dw == 1 and v.sh == 2 and v.sw == 2:
        strip_twos(v, x, plane, y0, y1, q, weight, k, bias, relu, out, o, limit)
    else:
        strip_any(v, x, plane, y0, y1, q, weight, k, bias, relu, out, o, limit)


@Kernel
def filter_planes(workers, jobs, x, weight, bias, relu, out):
    for worker in prange(workers):
        v = jobs[0]
        lanes = lanes_of(x)
        items, bands, in_plane, taps = v.planes * v.bands, v.bands, v.oh * v.ow, v.kh * v.kw
        begin, end = items * worker // workers, items * (worker + 1) // workers
        limit = end // bands * in_plane + end % bands * v.band * v.ow  # where this worker's results end
        for item in range(begin, end):
            plane, y0 = item // bands, item % bands * v.band
            y1, k = min(y0 + v.band, v.oh), plane % v.filters
            q = (v.ow - 1) // lanes * lanes
            while q >= 0:  # backwards: a row's last vector reaches into the next row
                strip(v, x, plane // v.each * v.h * v.w, y0, y1, q, weight, k * taps + v.first_tap, load_splat(bias, k), relu,
                      out, plane * in_plane + y0 * v.ow + q, limit)
                q -= lanes


# --- backward data ----------------------------------------------------------------------------------------------------
# Here `x` is dout, and h, w are its size; oh, ow that of dx.

@inlined
def parity(v, dout, row, t, e, across, weight, k, total, zeros):
    """What the columns e, e + stride, ... from the t-th on get from a row of windows, whose taps are at weight[k]."""
    w = v.w
    stride = v.sw
    taps = (across.size - stride - 1) // 2
    for m in range(across[U(e)], across[U(e + 1)]):
        at = t + across[U(stride + 1 + taps + m)]
        value = load_splat(weight, k + across[U(stride + 1 + m)])
        total = plus_product(total, value, cells(dout, row, at, w, clipped(dout, at, w), zeros))
    return total


@inlined
def pair_strip(v, dout, plane, y0, y1, t, swap, first, second, third, down, weight, k, out, o, limit):
    """Columns from 2*t on for three taps a row and stride 2: one parity sees the second one, the other the two others.

    They see them in windows `first`, `second`, `third` further. With `swap` odd columns see the second one.
    """
    lanes = lanes_of(out)
    zeros = splat(dout, dout.dtype.type(0))
    h, w, ow, sh = v.h, v.w, v.ow, v.sh
    vertical = (down.size - sh - 1) // 2
    m0, m1, m2 = clipped(dout, t + first, w), clipped(dout, t + second, w), clipped(dout, t + third, w)
    for r in range(y0, y1):
        e, n = r % sh, r // sh
        one, two = zeros, zeros
        for m in range(down[U(e)], down[U(e + 1)]):
            y, at = n + down[U(sh + 1 + vertical + m)], k + 3 * down[U(sh + 1 + m)]
            if 0 <= y < h:
                row = plane + y * w
                ask(dout, row + t + AHEAD)
                one = plus_product(one, load_splat(weight, at + 1), cells(dout, row, t + second, w, m1, zeros))
                two = plus_product(two, load_splat(weight, at), cells(dout, row, t + first, w, m0, zeros))
                two = plus_product(two, load_splat(weight, at + 2), cells(dout, row, t + third, w, m2, zeros))
        low, high = (mixed_low(two, one), mixed_high(two, one)) if swap else (mixed_low(one, two), mixed_high(one, two))
        if 2 * t + lanes < ow:  # first what reaches into the next row
            store_first(out, o + lanes, high, ow - 2 * t - lanes, limit)
        store_first(out, o, low, ow - 2 * t, limit)
        o += ow


@part
def any_strip(v, dout, plane, y0, y1, t, down, across, weight, k, out, o, limit):
    """Columns from sw*t on of rows [y0, y1) of dx for any filter; sw is 1 or 2."""
    lanes = lanes_of(out)
    zeros = splat(dout, dout.dtype.type(0))
    h, w, ow, sh, sw, kw = v.h, v.w, v.ow, v.sh, v.sw, v.kw
    vertical = (down.size - sh - 1) // 2
    for r in range(y0, y1):
        e, n = r % sh, r // sh
        a, b = zeros, zeros
        for m in range(down[U(e)], down[U(e + 1)]):
            y, taps = n + down[U(sh + 1 + vertical + m)], k + kw * down[U(sh + 1 + m)]
            if 0 <= y < h:
                a = parity(v, dout, plane + y * w, t, 0, across, weight, taps, a, zeros)
                if sw == 2:
                    b = parity(v, dout, plane + y * w, t, 1, across, weight, taps, b, zeros)
        if sw == 1:
            store_first(out, o, a, ow - t, limit)
        else:
            if 2 * t + lanes < ow:
                store_first(out, o + lanes, mixed_high(a, b), ow - 2 * t - lanes, limit)
            store_first(out, o, mixed_low(a, b), ow - 2 * t, limit)
        o += ow


@Kernel
def spread_planes(workers, jobs, dout, weight, down, across, out):
    """`down` and `across` tell which windows see a cell (`seen_by`)."""
    for worker in prange(workers):
        v = jobs[0]
        lanes = lanes_of(dout)
        items, bands, in_plane, taps, sw = v.planes * v.bands, v.bands, v.oh * v.ow, v.kh * v.kw, v.sw
        begin, end = items * worker // workers, items * (worker + 1) // workers
        limit = end // bands * in_plane + end % bands * v.band * v.ow
        for item in range(begin, end):
            i, y0 = item // bands, item % bands * v.band
            y1, k, plane = min(y0 + v.band, v.oh), i % v.filters * taps, i * v.h * v.w
            t = ((v.ow + sw - 1) // sw - 1) // lanes * lanes
            while t >= 0:
                o = i * in_plane + y0 * v.ow + t * sw
                if sw == 2 and v.kw == 3 and v.dw == 1:
                    left = v.left
                    if left % 2 == 1:
                        pair_strip(v, dout, plane, y0, y1, t, False, (left + 1) // 2, (left - 1) // 2, (left - 1) // 2, down,
                                   weight, k, out, o, limit)
                    else:
                        pair_strip(v, dout, plane, y0, y1, t, True, left // 2, left // 2, left // 2 - 1, down, weight, k, out,
                                   o, limit)
                else:
                    any_strip(v, dout, plane, y0, y1, t, down, across, weight, k, out, o, limit)
                t -= lanes


# --- backward weight --------------------------------------------------------------------------------------------------

@inlined
def add_to(sums, at, a, b, c):
    """Add three vectors to those at sums[at]."""
    lanes = lanes_of(sums)
    store(sums, at, plus(load(sums, at), a))
    store(sums, at + lanes, plus(load(sums, at + lanes), b))
    store(sums, at + 2 * lanes, plus(load(sums, at + 2 * lanes), c))


@inlined
def shares(dout, row, there, q, ow, mask, zeros):
    """The cells of a row of dout from column q on, zeros where there are none."""
    return cells(dout, row, q, ow, mask, zeros) if there else zeros


@part
def meet_ones(v, x, plane, dout, base, y0, y1, q, sums):
    """What columns from q on of rows [y0, y1) of dout give to the nine weights, with stride 1."""
    lanes = lanes_of(x)
    zeros = splat(x, x.dtype.type(0))
    h, w, ow, at = v.h, v.w, v.ow, q - v.left
    m0, m1, m2, there = clipped(x, at, w), clipped(x, at + 1, w), clipped(x, at + 2, w), clipped(dout, q, ow)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = d1 = d2 = zeros
    r = y0 - v.top
    row, line = plane + r * w, base + y0 * ow
    for y in range(y0, y1 + 2):
        ask(x, row + at + AHEAD)
        ask(dout, line + q + AHEAD)
        d0 = shares(dout, line, y < y1, q, ow, there, zeros)
        a, b, c = three(x, row, 0 <= r < h, at, w, m0, m1, m2, zeros)
        s0, s1, s2 = plus_product(s0, d0, a), plus_product(s1, d0, b), plus_product(s2, d0, c)
        s3, s4, s5 = plus_product(s3, d1, a), plus_product(s4, d1, b), plus_product(s5, d1, c)
        s6, s7, s8 = plus_product(s6, d2, a), plus_product(s7, d2, b), plus_product(s8, d2, c)
        d2, d1 = d1, d0
        r, row, line = r + 1, row + w, line + ow
    add_to(sums, 0, s0, s1, s2)
    add_to(sums, 3 * lanes, s3, s4, s5)
    add_to(sums, 6 * lanes, s6, s7, s8)


@part
def meet_twos(v, x, plane, dout, base, y0, y1, q, sums):
    """The same with stride 2."""
    lanes = lanes_of(x)
    zeros = splat(x, x.dtype.type(0))
    h, w, ow, at = v.h, v.w, v.ow, 2 * q - v.left
    m0, m1, m2, m3 = clipped(x, at, w), clipped(x, at + lanes, w), clipped(x, at + 2, w), clipped(x, at + lanes + 2, w)
    there = clipped(dout, q, ow)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = d1 = zeros
    r = 2 * y0 - v.top
    row, line = plane + r * w, base + y0 * ow
    for y in range(y0, y1 + 1):
        ask(x, row + at + AHEAD)
        ask(x, row + w + at + AHEAD)
        d0 = shares(dout, line, y < y1, q, ow, there, zeros)
        a, b, c = three_by_two(x, row, 0 <= r < h, at, w, m0, m1, m2, m3, zeros)
        s0, s1, s2 = plus_product(s0, d0, a), plus_product(s1, d0, b), plus_product(s2, d0, c)
        s6, s7, s8 = plus_product(s6, d1, a), plus_product(s7, d1, b), plus_product(s8, d1, c)
        a, b, c = three_by_two(x, row + w, 0 <= r + 1 < h, at, w, m0, m1, m2, m3, zeros)
        s3, s4, s5 = plus_product(s3, d0, a), plus_product(s4, d0, b), plus_product(s5, d0, c)
        d1 = d0
        r, row, line = r + 2, row + 2 * w, line + ow
    add_to(sums, 0, s0, s1, s2)
    add_to(sums, 3 * lanes, s3, s4, s5)
    add_to(sums, 6 * lanes, s6, s7, s8)


@Kernel
def plane_weights(workers, jobs, x, dout, out):
    """The gradient of 3x3 weights."""
    for worker in prange(workers):
        v = jobs[0]
        lanes = lanes_of(x)
        sums = stack(x)
        for k in range(v.filters * worker // workers, v.filters * (worker + 1) // workers):
            zero(sums, 0, 9 * lanes)
            for i in range(k, v.planes, v.filters):  # this filter's plane of each image
                plane, base = i // v.each * v.h * v.w, i * v.oh * v.ow
                for y in range(0, v.oh, CHUNK):
                    stop = min(y + CHUNK, v.oh)
                    for q in range(0, v.ow, lanes):
                        if v.sw == 1:
                            meet_ones(v, x, plane, dout, base, y, stop, q, sums)
                        else:
                            meet_twos(v, x, plane, dout, base, y, stop, q, sums)
            for t in range(9):
                at, half = U(t * lanes), U(lanes // 2)
                while half > U(0):  # halves are folded onto each other: in a fixed order, and as vectors
                    for lane in range(half):
                        sums[at + lane] += sums[at + half + lane]
                    half //= U(2)
                out[U(9 * k + t)] = sums[at]


# --- jobs -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def job(operation: str, geometry: Conv2dGeometry, itemsize: int) -> Array | None:
    """An operation as kernels take it; None where they cannot do it."""
    g = geometry
    each = g.out_channels // g.groups
    if g.channels != g.groups or not 1 <= each <= MOST_FILTERS or g.stride[1] > 2 or not g.batch \
            or g.taps > MOST_TAPS:
        return None
    size, result, (top, left), turned = g.in_size, g.out_size, (g.pads[0][0], g.pads[1][0]), False
    if operation == "backward_data":
        if each > 1:
            return None
        size, result = result, size
        if g.stride == (1, 1):  # the correlation of dout with the filters turned
            turned = True
            top, left = g.extent[0] - 1 - top, g.extent[1] - 1 - left
    elif operation == "backward_weight" and not (g.kernel == (3, 3) and g.dilation == (1, 1)
                                                 and g.stride in ((1, 1), (2, 2))):
        return None
    down = g.stride[0] if operation == "forward" else 1
    band = min(max(BAND_BYTES // (size[1] * down * itemsize), LEAST_ROWS), result[0])
    return np.array([(g.batch * g.out_channels, g.out_channels, each, *size, *result, *g.kernel, *g.stride, *g.dilation,
                      top, left, g.taps - 1 if turned else 0, -1 if turned else 1, band, -(-result[0] // band))], JOB)


def forward(workers: int, this: Array, x: Array, weight: Array, bias: Array, relu: bool, out: Array) -> None:
    """All arrays flat, of one dtype; the bias is one for each filter."""
    filter_planes(min(workers, int(this["planes"][0] * this["bands"][0])), this, x, weight, bias, relu, out)


def backward_data(workers: int, this: Array, dout: Array, weight: Array, geometry: Conv2dGeometry, no_bias: Array,
                  out: Array) -> None:
    """All weights have to be finite."""
    if this["tap_step"][0] < 0:
        forward(workers, this, dout, weight, no_bias, False, out)
    else:
        spread_planes(min(workers, int(this["planes"][0] * this["bands"][0])), this, dout, weight, seen_by(geometry, 0),
                      seen_by(geometry, 1), out)


def backward_weight(workers: int, this: Array, x: Array, dout: Array, out: Array) -> None:
    """NaN or infinite where a pixel or a cell of `dout` is, which then may be wrong."""
    plane_weights(min(workers, int(this["filters"][0])), this, x, dout, out)
