"""Direct convolution in Numba: no column matrix, one padded copy of a few rows of the image at a time.

The layout is the Cython backend's ("shifted flat rows"; native/direct.pxi has the picture). A band of the image is
copied to rows of one length L that include the padding, so that a tap (kh, kw) sees all output pixels of the band in
one flat array, shifted by kh*L + kw. With stride s the copy is split by phase, one plane for each residue of a tap
modulo s. Backward data is the same product on the output gradient, once for each parity of the input pixels. Positions
between two rows are no output pixels; they are computed and thrown away.

The kernels are not the Cython ones, because Numba has no vectors to program with: everything rests on what LLVM's loop
vectoriser makes of plain loops. It wants one contiguous inner loop, indices that can't wrap around, and not more than
eight pairs of arrays that might overlap, which it tests when the loop is entered. So it is not the tile that stays in
registers, as in C, but the weights:

    tile[i][p] += sum over six t of a[i][t] * b[offset[t] + p]        four rows i, some hundred pixels p

For each vector of p that is 24 FMAs for 6 + 4 loads and 4 stores, the latter in first-level cache, with 24 weights in
registers. What `rows4` compiles to (Numba 0.68 with LLVM 22, and 0.59 with LLVM 14, on AVX-512; from inspect_asm):

    .loop:  vmovups (b0,p,4), %zmm24             six of them, one vector of each b
            vmovups (tile,p,4), %zmm26           four, one vector of each row
            vfmadd231ps %zmm24, %zmm9, %zmm26    24, of registers only: 24 weights, 4 sums and 4 of b fill all 32
            vmovups %zmm26, (tile,p,4)           four
            addq $16, p; cmpq; jne .loop

Three things make it that. The number of pixels is a multiple of 16 that LLVM can see (`steps * STEP`): otherwise a
scalar loop for the rest keeps the 24 weights in registers a second time, the vectors of them go to the stack, and speed
halves. It is no constant: LLVM unrolls 64 pixels fourfold, which runs at a third of the speed. And 4 x 6 weights are as
many as fit. With AVX2's 16 registers the vectors are ymm, and an FMA reads its weights from the stack, at no cost.

Backward weight is dw[k][r] = sum over p of dout[k][p] * flat[offset[r] + p]: a sum over what is contiguous, and that
vectorises only where its order may change. There are two ways around it:

- wide, for many filters: dout is turned, so that filters are contiguous, and the sum over pixels is `rows4` again with
  filters in place of pixels: (R, P) @ (P, K) -> (R, K).
- narrow, for few filters: `lanes6` keeps 64 partial sums for each element of dw, six elements and four zmm
  of each in a visit (12 FMAs, 20 loads, 6 stores a vector), and folds them once, at the end.

Positions between the rows of dout hold zeros in both; so does the padding of the flat copy of dout in backward data.
Zero times infinity is NaN: where a pixel (for dw) or a weight (for dx) is not finite, the caller goes another way.

Sums are cut into chunks of REDUCTION terms, whose results are added up: a blocked sum (Higham, Accuracy and Stability
of Numerical Algorithms, 2nd ed., section 4.2). Workers take (images, group, band, block of filters), in backward weight
(group, block of rows of dw). No two write one element, and no sum depends on how they are dealt out.

Planes by themselves (depthwise, with few filters each) are :mod:`fastconv.jit.depthwise`'s.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import memory
from ..geometry import Conv2dGeometry
from . import depthwise
from .common import U, copy, copy_row_pairs, inside, zero
from .options import Kernel, flat, part, prange, usable_workers
from .vectors import lane, lanes_of, load, load_where, plus, splat

ROWS, TAPS = 4, 6    # of the block of weights that stays in registers
COLUMNS = 512        # the most columns of a tile
PITCH = 528          # from one of its rows to the next: a power of two would make them share cache sets
STEP = 16            # columns are rounded up to multiples of this: the longest vector there is
REDUCTION = 240      # terms of a chunk of a sum, a multiple of TAPS
LANES = 64           # partial sums of one element of dw in the narrow kernel,
SEGMENTS = 2         # pixels that are added to each of them in one visit
BAND_BYTES = 393216  # of a band's flat copy: with the weights that stream past, it fits an L2 of 1 MB
NARROW_FILTERS = 24  # backward weight is narrow for fewer filters than this,
NARROW_BYTES = 2**20 # if its partial sums fit
CHUNK = 1024         # cells of dout that are added up in the lanes of a vector

# Where things lie in a worker's tile array: the tile, the sum of its chunks, the narrow kernel's partial sums.
TILE, TOTAL, SUMS = 0, ROWS * PITCH, 2 * ROWS * PITCH

_TOTAL, _PITCH, _STEP, _TAPS, _LANES, _REDUCTION = U(TOTAL), U(PITCH), U(STEP), U(TAPS), U(LANES), U(REDUCTION)
_0, _1, _2, _3, _4, _5 = U(0), U(1), U(2), U(3), U(4), U(5)

JOB = np.dtype([(name, np.int64) for name in (
    "items", "batch", "groups",
    "sources", "rows", "taps",           # planes of the source and of the result in one group; KH*KW
    "height", "width",                   # of a source plane
    "step_h", "step_w", "base_h", "base_w",  # band row y is source row (y0 + y)*step_h + phase_h + base_h; columns too
    "slots_h", "slots_w",                # phases
    "length", "halo",                    # L; rows of a band beyond its positions
    "first", "last",                     # rows of positions, [first, last)
    "band", "bands",                     # rows of positions in one band, and bands of an image
    "images", "plane",                   # images in one flat copy (where they are small), and cells of one's plane
    "base_j",                            # column of the output of the flat copy's first column
    "out_h", "out_w", "blocks", "group_weights",
    "cells",                             # of the flat copy
    "pitch",                             # of the rows of the turned dout; length of the flat copy of dout
    "tile", "flat", "side",              # elements of a worker's three pieces of scratch
)])

#: The output pixels that see one set of taps: rows q*step_h + start_h for q in [first_h, last_h), columns likewise.
TAP_CLASS = np.dtype([(name, np.int64) for name in (
    "terms", "weights", "table", "start_h", "step_h", "first_h", "last_h", "start_w", "step_w", "first_w", "last_w")])


# --- tiles ------------------------------------------------------------------------------------------------------------
# The tile and what it reads are always different arrays: LLVM tests whether two arrays overlap, not two parts of one.

@part
def rows4(tile, steps, a, a0, a1, a2, a3, b, offset, first, shift):
    """tile[i, p] += sum over six terms t of a[ai + t] * b[offset[first + t] + shift + p], for four rows i."""
    a00, a01, a02, a03, a04, a05 = a[a0], a[a0 + _1], a[a0 + _2], a[a0 + _3], a[a0 + _4], a[a0 + _5]
    a10, a11, a12, a13, a14, a15 = a[a1], a[a1 + _1], a[a1 + _2], a[a1 + _3], a[a1 + _4], a[a1 + _5]
    a20, a21, a22, a23, a24, a25 = a[a2], a[a2 + _1], a[a2 + _2], a[a2 + _3], a[a2 + _4], a[a2 + _5]
    a30, a31, a32, a33, a34, a35 = a[a3], a[a3 + _1], a[a3 + _2], a[a3 + _3], a[a3 + _4], a[a3 + _5]
    b0, b1, b2 = offset[first] + shift, offset[first + _1] + shift, offset[first + _2] + shift
    b3, b4, b5 = offset[first + _3] + shift, offset[first + _4] + shift, offset[first + _5] + shift
    row1, row2, row3 = _PITCH, _PITCH * _2, _PITCH * _3
    for p in range(steps * _STEP):
        v0, v1, v2, v3, v4, v5 = b[b0 + p], b[b1 + p], b[b2 + p], b[b3 + p], b[b4 + p], b[b5 + p]
        s0, s1, s2, s3 = tile[p], tile[row1 + p], tile[row2 + p], tile[row3 + p]
        s0, s1, s2, s3 = s0 + a00 * v0, s1 + a10 * v0, s2 + a20 * v0, s3 + a30 * v0
        s0, s1, s2, s3 = s0 + a01 * v1, s1 + a11 * v1, s2 + a21 * v1, s3 + a31 * v1
        s0, s1, s2, s3 = s0 + a02 * v2, s1 + a12 * v2, s2 + a22 * v2, s3 + a32 * v2
        s0, s1, s2, s3 = s0 + a03 * v3, s1 + a13 * v3, s2 + a23 * v3, s3 + a33 * v3
        s0, s1, s2, s3 = s0 + a04 * v4, s1 + a14 * v4, s2 + a24 * v4, s3 + a34 * v4
        s0, s1, s2, s3 = s0 + a05 * v5, s1 + a15 * v5, s2 + a25 * v5, s3 + a35 * v5
        tile[p], tile[row1 + p], tile[row2 + p], tile[row3 + p] = s0, s1, s2, s3


@part
def rows4_term(tile, steps, a, a0, a1, a2, a3, b, at):
    """The same for one term, of those that are left of sixes."""
    w0, w1, w2, w3 = a[a0], a[a1], a[a2], a[a3]
    row1, row2, row3 = _PITCH, _PITCH * _2, _PITCH * _3
    for p in range(steps * _STEP):
        v = b[at + p]
        s0, s1, s2, s3 = tile[p], tile[row1 + p], tile[row2 + p], tile[row3 + p]
        tile[p], tile[row1 + p], tile[row2 + p], tile[row3 + p] = s0 + w0 * v, s1 + w1 * v, s2 + w2 * v, s3 + w3 * v


@part
def rows1(tile, steps, a, a0, b, offset, first, shift):
    """The same for one row: what is left of a block of rows, and depthwise convolution."""
    w0, w1, w2, w3, w4, w5 = a[a0], a[a0 + _1], a[a0 + _2], a[a0 + _3], a[a0 + _4], a[a0 + _5]
    b0, b1, b2 = offset[first] + shift, offset[first + _1] + shift, offset[first + _2] + shift
    b3, b4, b5 = offset[first + _3] + shift, offset[first + _4] + shift, offset[first + _5] + shift
    for p in range(steps * _STEP):
        s = tile[p] + w0 * b[b0 + p]
        s += w1 * b[b1 + p]
        s += w2 * b[b2 + p]
        s += w3 * b[b3 + p]
        s += w4 * b[b4 + p]
        tile[p] = s + w5 * b[b5 + p]


@part
def rows1_term(tile, steps, a, a0, b, at):
    w = a[a0]
    for p in range(steps * _STEP):
        tile[p] += w * b[at + p]


@part
def clear(tile, at, rows, steps):
    """The first 1 or 4 rows of the tile that starts at tile[at]."""
    if rows == ROWS:
        for p in range(at, at + steps * _STEP):
            tile[p] = tile[p + _PITCH] = tile[p + _PITCH * _2] = tile[p + _PITCH * _3] = 0
    else:
        for p in range(at, at + steps * _STEP):
            tile[p] = 0


@part
def multiply(tile, rows, steps, a, a0, a1, a2, a3, b, offset, table, terms, shift):
    """(rows, R) @ (R, columns): c[i, p] = sum over all terms t of a[ai + t] * b[offset[table + t] + shift + p].

    `rows` is 1 or 4. Returns where in `tile` c is.
    """
    clear(tile, _0, rows, steps)
    in_chunks = terms > _REDUCTION
    if in_chunks:
        clear(tile, _TOTAL, rows, steps)
    t = _0
    while t < terms:
        stop = min(t + _REDUCTION, terms)
        if rows == ROWS:
            while t + _TAPS <= stop:
                rows4(tile, steps, a, a0 + t, a1 + t, a2 + t, a3 + t, b, offset, table + t, shift)
                t += _TAPS
            while t < stop:
                rows4_term(tile, steps, a, a0 + t, a1 + t, a2 + t, a3 + t, b, offset[table + t] + shift)
                t += _1
        else:
            while t + _TAPS <= stop:
                rows1(tile, steps, a, a0 + t, b, offset, table + t, shift)
                t += _TAPS
            while t < stop:
                rows1_term(tile, steps, a, a0 + t, b, offset[table + t] + shift)
                t += _1
        if in_chunks:
            for i in range(rows):
                row = U(i) * _PITCH
                for p in range(row, row + steps * _STEP):
                    tile[_TOTAL + p] += tile[p]
            clear(tile, _0, rows, steps)
    return TOTAL if in_chunks else TILE


@part
def lanes6(sums, at, d, begin, b, offset, first, shift):
    """sums[at + 64*j + i] += sum over i and i + 64 of d[begin + i] * b[offset[first + j] + shift + i], for six j."""
    b0, b1, b2 = offset[first] + shift, offset[first + _1] + shift, offset[first + _2] + shift
    b3, b4, b5 = offset[first + _3] + shift, offset[first + _4] + shift, offset[first + _5] + shift
    n = _LANES
    for i in range(n):
        d0, d1 = d[begin + i], d[begin + n + i]
        s0, s1, s2 = sums[at + i], sums[at + n + i], sums[at + n * _2 + i]
        s3, s4, s5 = sums[at + n * _3 + i], sums[at + n * _4 + i], sums[at + n * _5 + i]
        s0, s1, s2 = s0 + d0 * b[b0 + i], s1 + d0 * b[b1 + i], s2 + d0 * b[b2 + i]
        s3, s4, s5 = s3 + d0 * b[b3 + i], s4 + d0 * b[b4 + i], s5 + d0 * b[b5 + i]
        s0, s1, s2 = s0 + d1 * b[b0 + n + i], s1 + d1 * b[b1 + n + i], s2 + d1 * b[b2 + n + i]
        s3, s4, s5 = s3 + d1 * b[b3 + n + i], s4 + d1 * b[b4 + n + i], s5 + d1 * b[b5 + n + i]
        sums[at + i], sums[at + n + i], sums[at + n * _2 + i] = s0, s1, s2
        sums[at + n * _3 + i], sums[at + n * _4 + i], sums[at + n * _5 + i] = s3, s4, s5


# --- the flat copy ----------------------------------------------------------------------------------------------------

@part
def fill_flat(job, phases, to, source, at, image_step, images, channels, y0, rows):
    """Copy `rows` + halo rows of some channels of some images, from row y0 of positions on.

    They go to (channel, phases, image). Channels of the first image start at source[at].
    """
    height, width, step, length = job.height, job.width, job.step_w, job.length
    slots_h, slots_w, slot_size = job.slots_h, job.slots_w, job.images * job.plane
    pairs = step == 2 and slots_w == 2 and phases[slots_h + 1] == phases[slots_h] + 1
    for b in range(1 if pairs else slots_w):
        start = phases[slots_h + b] + job.base_w
        first, stop = inside(width, start, step, length)
        first_2, stop_2 = inside(width, start + 1, step, length)
        for c in range(channels):
            for a in range(slots_h):
                slot = ((c * slots_h + a) * slots_w + b) * slot_size
                for n in range(images):
                    line = slot + n * job.plane
                    row = y0 * job.step_h + phases[a] + job.base_h
                    for _ in range(rows + job.halo):
                        cells = at + n * image_step + (c * height + row) * width
                        if not 0 <= row < height:
                            zero(to, line, length)
                            if pairs:
                                zero(to, line + slot_size, length)
                        elif pairs:
                            copy_row_pairs(to, line, line + slot_size, length, source, cells + start, first, stop,
                                           first_2, stop_2, 0)
                        else:
                            zero(to, line, first)
                            copy(to, line + first, source, cells + start + first * step, step, stop - first)
                            zero(to, line + stop, length - stop)
                        line += length
                        row += job.step_h


# --- forward and backward data ----------------------------------------------------------------------------------------

@part
def store_run(out, to, step, tile, at, count, bias, relu):
    """out[to + x*step] = tile[at + x] + bias, with relu not below zero."""
    t, s = U(to), U(at)
    if step != 1:  # of backward data only, which has neither bias nor relu
        for x in range(U(count)):
            out[t + x * U(step)] = tile[s + x]
    elif relu:
        for x in range(U(count)):
            v = tile[s + x] + bias
            out[t + x] = 0 if v < 0 else v  # NaN is not below zero: it stays
    else:
        for x in range(U(count)):
            out[t + x] = tile[s + x] + bias


@part
def store(job, tap, tile, at, rows, columns, p0, q0, q1, out, plane0, bias, bias0, relu):
    """Positions [p0, p0 + columns) of `rows` planes, a tile at tile[at], to where they belong in `out`."""
    length, rows_of_image = job.length, job.plane // job.length
    out_plane, out_w = job.out_h * job.out_w, job.out_w
    image_step = job.groups * job.rows * out_plane
    first_w, last_w, step_w, start_w = tap.first_w, tap.last_w, tap.step_w, tap.start_w
    first_h, last_h = tap.first_h, min(tap.last_h, q1)
    line = p0 // length
    n, y = line // rows_of_image, line % rows_of_image
    begin = line * length - job.base_j  # position of the line's column 0 of the output
    while begin + job.base_j < p0 + columns:
        first, stop = max(p0 - begin, first_w), min(p0 + columns - begin, last_w)
        if first < stop and first_h <= q0 + y < last_h:
            to = plane0 * out_plane + n * image_step
            to += ((q0 + y) * tap.step_h + tap.start_h) * out_w + first * step_w + start_w
            run = at + begin + first - p0
            for i in range(rows):
                store_run(out, to, step_w, tile, run, stop - first, bias[bias0 + i], relu)
                to += out_plane
                run += PITCH
        begin += length
        y += 1
        if y == rows_of_image:
            n, y = n + 1, 0


@part
def correlate_item(job, taps, phases, offset, item, source, weights, bias, relu, out, tile, b):
    """One (images, group, band, block of output planes)."""
    block, item = item % job.blocks, item // job.blocks
    band, item = item % job.bands, item // job.bands
    group, image = item % job.groups, item // job.groups * job.images
    images = min(job.images, job.batch - image)
    q0 = job.first + band * job.band
    q1 = min(q0 + job.band, job.last)
    image_step = job.groups * job.sources * job.height * job.width
    fill_flat(job, phases, b, source, image * image_step + group * job.sources * job.height * job.width, image_step,
              images, job.sources, q0, q1 - q0)
    # units: blocks of four planes, then single ones
    fours = job.rows // ROWS
    units = fours + job.rows % ROWS
    u0, u1 = units * block // job.blocks, units * (block + 1) // job.blocks
    for t in range(taps.size):
        tap = taps[t]
        y0, y1 = max(q0, tap.first_h) - q0, min(q1, tap.last_h) - q0
        if y0 >= y1:
            continue
        p = y0 * job.length + tap.first_w - job.base_j
        end = (images - 1) * job.plane + (y1 - 1) * job.length + tap.last_w - job.base_j
        tiles = -((p - end) // COLUMNS)
        wide = (-((p - end) // tiles) + STEP - 1) // STEP * STEP
        while p < end:
            columns = min(wide, end - p)
            for u in range(u0, u1):
                m = min(u, fours) * ROWS + max(u - fours, 0)
                rows = ROWS if u < fours else 1
                a, n = U(group * job.group_weights + tap.weights + m * tap.terms), U(tap.terms)
                at = multiply(tile, rows, U((columns + STEP - 1) // STEP), weights, a, a + n, a + n * _2, a + n * _3, b,
                              offset, U(tap.table), n, U(p))
                store(job, tap, tile, at, rows, columns, p, q0, q1, out, (image * job.groups + group) * job.rows + m,
                      bias, group * job.rows + m, relu)
            p += columns


@Kernel
def correlate(workers, jobs, taps, phases, offset, source, weights, bias, relu, out, tiles, flats):
    for worker in prange(workers):
        job = jobs[0]  # in here: Numba can't hand a record over to the threads
        tile = tiles[worker * job.tile:(worker + 1) * job.tile]
        b = flats[worker * job.flat:(worker + 1) * job.flat]
        zero(b, job.cells, job.flat - job.cells)
        for item in range(job.items * worker // workers, job.items * (worker + 1) // workers):
            correlate_item(job, taps, phases, offset, item, source, weights, bias, relu, out, tile, b)


@Kernel
def turn_weights(workers, jobs, taps, class_of_tap, weights, to):
    """The weights that each input channel sees: (G, K, C, KH, KW) -> (G, class, C, (K, taps of the class)).

    Eight channels at a time: both sides of the turn have rows some kilobytes apart, and lines that are used again.
    """
    for worker in prange(workers):
        job = jobs[0]
        channels, size = job.rows, class_of_tap.size
        blocks = (channels + 7) // 8
        for item in range(job.groups * blocks * worker // workers, job.groups * blocks * (worker + 1) // workers):
            group, first = item // blocks, item % blocks * 8
            for t in range(taps.size):
                terms = taps[t].terms
                count = terms // job.sources
                start = group * job.group_weights + taps[t].weights
                for k in range(job.sources):
                    for c in range(first, min(first + 8, channels)):
                        at = U(start + c * terms + k * count)
                        filter_ = U(((group * job.sources + k) * channels + c) * size)
                        if count == size:
                            for i in range(U(size)):
                                to[at + i] = weights[filter_ + i]
                        else:
                            for i in range(U(size)):
                                if class_of_tap[i] == t:
                                    to[at] = weights[filter_ + i]
                                    at += _1


# --- backward weight --------------------------------------------------------------------------------------------------

@part
def turn_dout(job, to, dout, plane0, y0, p0, positions):
    """Positions [p0, p0 + positions) of dout as rows of `job.rows` planes each, zeros for those between its rows."""
    length, out_w, out_plane, pitch = job.length, job.out_w, job.out_h * job.out_w, job.pitch
    line = p0 // length
    p = p0
    while p < p0 + positions:
        first = p - line * length
        stop = min(p0 + positions - line * length, length)
        cells = max(min(stop, out_w) - first, 0)
        at = (p - p0) * pitch
        for k in range(job.rows):
            cell = U(at + k)
            row = U((plane0 + k) * out_plane + (y0 + line) * out_w + first)
            for x in range(U(cells)):
                to[cell] = dout[row + x]
                cell += U(pitch)
        zero(to, at + cells * pitch, (stop - first - cells) * pitch)
        p += stop - first
        line += 1


@part
def wide_item(job, phases, offset, table, item, x, dout, dw, tile, b, side):
    """Some rows of dw.T of one group over all pixels, in order: (R, P) @ (P, K) -> (R, K), P at most REDUCTION."""
    block, group = item % job.blocks, item // job.blocks
    terms = job.sources * job.taps
    fours = terms // ROWS
    units = fours + terms % ROWS
    u0, u1 = units * block // job.blocks, units * (block + 1) // job.blocks
    r0, r1 = min(u0, fours) * ROWS + max(u0 - fours, 0), min(u1, fours) * ROWS + max(u1 - fours, 0)
    c0, c1 = r0 // job.taps, (r1 + job.taps - 1) // job.taps
    # where the flat copy starts for `offset`, which counts from the group's first channel
    origin = -c0 * job.slots_h * job.slots_w * job.plane
    sums = REDUCTION * job.pitch  # behind the turned dout
    zero(side, 0, sums + (r1 - r0) * job.pitch)
    in_plane = job.height * job.width
    for image in range(job.batch):
        planes = image * job.groups + group
        for band in range(job.bands):
            y0 = band * job.band
            rows = min(job.band, job.last - y0)
            fill_flat(job, phases, b, x, (planes * job.sources + c0) * in_plane, 0, 1, c1 - c0, y0, rows)
            end = (rows - 1) * job.length + job.out_w
            for p in range(0, end, REDUCTION):
                positions = min(REDUCTION, end - p)
                turn_dout(job, side, dout, planes * job.rows, y0, p, positions)
                shift = U(origin + p)
                for u in range(u0, u1):
                    r = min(u, fours) * ROWS + max(u - fours, 0)
                    height = ROWS if u < fours else 1
                    a0, a1 = offset[U(r)] + shift, offset[U(min(r + 1, terms - 1))] + shift
                    a2, a3 = offset[U(min(r + 2, terms - 1))] + shift, offset[U(min(r + 3, terms - 1))] + shift
                    for k in range(0, job.rows, COLUMNS):
                        columns = min(COLUMNS, job.rows - k)
                        at = multiply(tile, height, U((columns + STEP - 1) // STEP), b, a0, a1, a2, a3, side, table, _0,
                                      U(positions), U(k))
                        for i in range(height):
                            add, to = U(at + i * PITCH), U(sums + (r - r0 + i) * job.pitch + k)
                            for j in range(U(columns)):
                                side[to + j] += tile[add + j]
    for k in range(job.rows):
        to, at = U((group * job.rows + k) * terms + r0), U(sums + k)
        for r in range(U(r1 - r0)):
            dw[to + r] = side[at]
            at += U(job.pitch)


@part
def narrow_item(job, phases, offset, item, x, dout, dw, sums, b, d):
    """dw of some filters of one group over all pixels, in order, in LANES partial sums for each element."""
    block, group = item % job.blocks, item // job.blocks
    k0, k1 = job.rows * block // job.blocks, job.rows * (block + 1) // job.blocks
    terms = job.sources * job.taps
    padded = (terms + TAPS - 1) // TAPS * TAPS
    zero(sums, SUMS, (k1 - k0) * padded * LANES)
    in_plane, out_plane, out_w = job.height * job.width, job.out_h * job.out_w, job.out_w
    for image in range(0, job.batch, job.images):
        images = min(job.images, job.batch - image)
        for band in range(job.bands):
            y0 = band * job.band
            rows = min(job.band, job.last - y0)
            fill_flat(job, phases, b, x, (image * job.groups + group) * job.sources * in_plane,
                      job.groups * job.sources * in_plane, images, job.sources, y0, rows)
            end = (images - 1) * job.plane + (rows - 1) * job.length + out_w
            for k in range(k0, k1):
                zero(d, 0, job.pitch)
                for n in range(images):
                    row = (((image + n) * job.groups + group) * job.rows + k) * out_plane + y0 * out_w
                    to = n * job.plane
                    for _ in range(rows):
                        copy(d, to, dout, row, 1, out_w)
                        to += job.length
                        row += out_w
                for r in range(0, terms, TAPS):
                    at = SUMS + ((k - k0) * padded + r) * LANES
                    for p in range(0, end, SEGMENTS * LANES):
                        lanes6(sums, U(at), d, U(p), b, offset, U(r), U(p))
    for k in range(k0, k1):
        for r in range(terms):
            at = U(SUMS + ((k - k0) * padded + r) * LANES)
            half = _LANES // _2
            while half > _0:  # halves are folded onto each other: in a fixed order, and as vectors
                for i in range(half):
                    sums[at + i] += sums[at + half + i]
                half //= _2
            dw[(group * job.rows + k) * terms + r] = sums[at]


@Kernel
def weight_gradient(workers, jobs, phases, offset, table, narrow, x, dout, dw, tiles, flats, sides):
    for worker in prange(workers):
        job = jobs[0]
        tile = tiles[worker * job.tile:(worker + 1) * job.tile]
        b = flats[worker * job.flat:(worker + 1) * job.flat]
        side = sides[worker * job.side:(worker + 1) * job.side]
        zero(b, job.cells, job.flat - job.cells)
        for item in range(job.items * worker // workers, job.items * (worker + 1) // workers):
            if narrow:
                narrow_item(job, phases, offset, item, x, dout, dw, tile, b, side)
            else:
                wide_item(job, phases, offset, table, item, x, dout, dw, tile, b, side)


@Kernel
def finite(workers, values):
    """Is none of the values infinite or NaN?"""
    found = False
    for i in range(values.size):
        found |= values[i] - values[i] != 0
    return not found


@Kernel
def sum_planes(workers, dout, batch, cells, sums):
    """sums[k] = the sum of plane k of all images, as a vector of each CHUNK of cells, and these in float64."""
    planes = sums.size
    lanes = lanes_of(dout)
    zeros = splat(dout, dout.dtype.type(0))
    for worker in prange(workers):
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            total = 0.0
            for image in range(batch):
                first = (image * planes + plane) * cells
                for begin in range(first, first + cells, CHUNK):
                    end = min(begin + CHUNK, first + cells)
                    a = b = c = d = zeros
                    at = begin
                    while at + 4 * lanes <= end:
                        a, b = plus(a, load(dout, at)), plus(b, load(dout, at + lanes))
                        c, d = plus(c, load(dout, at + 2 * lanes)), plus(d, load(dout, at + 3 * lanes))
                        at += 4 * lanes
                    while at < end:
                        a = plus(a, load_where(dout, at, 0, end - at, zeros))
                        at += lanes
                    a = plus(plus(a, b), plus(c, d))
                    for i in range(lanes):
                        total += lane(a, i)
            sums[plane] = total


# --- plans: what follows from the geometry ----------------------------------------------------------------------------


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _round_up(a: int, b: int) -> int:
    return _ceil_div(a, b) * b


class Ready(NamedTuple):
    """What a call needs: the number of workers, the job as the kernel takes it, bytes of scratch."""

    workers: int
    job: np.ndarray
    nbytes: int
    slices: list[slice]

    def pieces(self, scratch: np.ndarray, dtype: np.dtype) -> list[np.ndarray]:
        """The shared piece of the scratch, and the workers' three."""
        cells = scratch[:self.nbytes].view(dtype)
        return [cells[piece] for piece in self.slices]


class Plan:
    """A job for a kernel, its tables, and the scratch that it needs. Sizes at once, tables when they are asked for.

    Attributes
    ----------
    job : dict
        The fields of JOB, without those that follow from the number of workers.
    shared : int
        Elements of scratch for all workers together.
    """

    def __init__(self, geometry: Conv2dGeometry, itemsize: int) -> None:
        self.geometry, self.itemsize = geometry, itemsize
        self.job = dict.fromkeys(JOB.names or (), 0)
        self.job.update(batch=geometry.batch, groups=geometry.groups, taps=geometry.taps, blocks=1, images=1)
        self.shared = 0
        self._ready: dict[int, Ready] = {}

    def _set_bands(self) -> None:
        """As many rows of positions in a band as fit the budget, in bands of even height; small images together."""
        job = self.job
        row = job["sources"] * job["slots_h"] * job["slots_w"] * job["length"] * self.itemsize
        positions = max(job["last"] - job["first"], 1)
        band = min(max(BAND_BYTES // row - job["halo"], 1), positions)
        job["bands"] = _ceil_div(positions, band)
        job["band"] = _ceil_div(positions, job["bands"])
        job["plane"] = (job["band"] + job["halo"]) * job["length"]

    def _set_images(self) -> None:
        """Several images in one flat copy, where one fills less than half a tile."""
        job = self.job
        if job["bands"] == 1:
            fit = BAND_BYTES // (job["sources"] * job["slots_h"] * job["slots_w"] * job["plane"] * self.itemsize)
            images = max(min(COLUMNS // job["plane"], fit, job["batch"]), 1)
            job["images"] = _ceil_div(max(job["batch"], 1), _ceil_div(max(job["batch"], 1), images))

    def _set_flat(self) -> None:
        job = self.job
        job["cells"] = job["sources"] * job["slots_h"] * job["slots_w"] * job["images"] * job["plane"]
        # A tile's last columns are rounded up, and the narrow kernel's segments.
        job["flat"] = _round_up(job["cells"] + SEGMENTS * LANES, 16)
        job["tile"] = SUMS

    def _with_workers(self, workers: int) -> tuple[dict[str, int], int]:
        """The job for so many workers, and how many of them have something to do."""
        raise NotImplementedError

    def _split(self, job: dict[str, int], items: int, most: int, workers: int) -> int:
        """Set blocks: an item is cut where there are too few of them to go round."""
        if workers > 1 and items < 4 * workers:
            job["blocks"] = max(min(workers // math.gcd(items, workers), most), 1)
        job["items"] = items * job["blocks"]
        return max(min(workers, job["items"]), 1)

    def nbytes(self, threads: int) -> int:
        """Scratch of a call."""
        job, workers = self._with_workers(usable_workers(threads))
        return (self.shared + workers * (job["tile"] + job["flat"] + job["side"])) * self.itemsize

    def ready(self, threads: int) -> Ready:
        """What a call needs."""
        threads = usable_workers(threads)
        found = self._ready.get(threads)
        if found is None:
            fields, workers = self._with_workers(threads)
            job = np.array([tuple(fields[name] for name in JOB.names or ())], JOB)
            sizes = [self.shared, workers * fields["tile"], workers * fields["flat"], workers * fields["side"]]
            slices = [slice(sum(sizes[:i]), sum(sizes[:i + 1])) for i in range(4)]
            found = self._ready[threads] = Ready(workers, job, sum(sizes) * self.itemsize, slices)
        return found


def _phases(kernel: int, gap: int, step: int) -> tuple[list[int], list[int]]:
    """The distinct residues of the taps k*gap modulo step, and each tap's place among them."""
    count = _phase_count(kernel, gap, step)
    return [k * gap % step for k in range(count)], [k % count for k in range(kernel)]


def _phase_count(kernel: int, gap: int, step: int) -> int:
    return min(kernel, step // math.gcd(gap, step))  # residues of k*gap repeat after step / gcd(gap, step) taps


class _ForwardLayout(Plan):
    """The flat copy of x that forward and backward weight share."""

    def __init__(self, geometry: Conv2dGeometry, itemsize: int) -> None:
        super().__init__(geometry, itemsize)
        (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
        (top, _), (left, _) = geometry.pads
        self.job.update(
            sources=geometry.channels // geometry.groups, rows=geometry.out_channels // geometry.groups,
            height=geometry.in_size[0], width=geometry.in_size[1], step_h=sh, step_w=sw, base_h=-top, base_w=-left,
            slots_h=_phase_count(kh, dh, sh), slots_w=_phase_count(kw, dw, sw),
            length=geometry.out_size[1] + (kw - 1) * dw // sw, halo=(kh - 1) * dh // sh, first=0,
            last=geometry.out_size[0], out_h=geometry.out_size[0], out_w=geometry.out_size[1],
            group_weights=math.prod(geometry.weight_shape) // geometry.groups)
        self._set_bands()

    def _offsets(self) -> tuple[np.ndarray, np.ndarray]:
        """The phases, and for each (channel, kh, kw) how far it is from the flat copy's first cell."""
        (kh, kw), (sh, sw), (dh, dw) = self.geometry.kernel, self.geometry.stride, self.geometry.dilation
        job = self.job
        phase_h, slot_h = _phases(kh, dh, sh)
        phase_w, slot_w = _phases(kw, dw, sw)
        c = np.arange(job["sources"])[:, None, None]
        slot = (c * job["slots_h"] + np.array(slot_h)[:, None]) * job["slots_w"] + np.array(slot_w)
        shift = (np.arange(kh) * dh // sh * job["length"])[:, None] + np.arange(kw) * dw // sw
        return np.array(phase_h + phase_w), (slot * (job["images"] * job["plane"]) + shift).reshape(-1)


class ForwardPlan(_ForwardLayout):
    def __init__(self, geometry: Conv2dGeometry, itemsize: int) -> None:
        super().__init__(geometry, itemsize)
        self._set_images()
        self._set_flat()

    def _with_workers(self, workers: int) -> tuple[dict[str, int], int]:
        return _correlation_workers(self, workers)

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tap classes (one), phases, offsets."""
        phases, offset = self._offsets()
        taps = np.zeros(1, TAP_CLASS)
        taps["terms"], taps["step_h"], taps["step_w"] = offset.size, 1, 1
        taps["last_h"], taps["last_w"] = self.geometry.out_size
        return taps, phases, offset.astype(np.uintp)


def _correlation_workers(plan: Plan, workers: int) -> tuple[dict[str, int], int]:
    job = dict(plan.job)
    items = _ceil_div(job["batch"], job["images"]) * job["groups"] * job["bands"]
    workers = plan._split(job, items, job["rows"] // ROWS + job["rows"] % ROWS, workers)
    return job, workers


class DataPlan(Plan):
    """Backward data: the correlation of dout, one tap class for each parity of the input pixels."""

    def __init__(self, geometry: Conv2dGeometry, itemsize: int) -> None:
        super().__init__(geometry, itemsize)
        (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
        (top, _), (left, _) = geometry.pads
        height, width = geometry.in_size
        # Padded pixel i + top = stride*q + parity, which row q - t of dout sees through taps k*d = stride*t + parity.
        self.far = far_h, far_w = (kh - 1) * dh // sh, (kw - 1) * dw // sw
        base_j = left // sw
        self.job.update(
            sources=geometry.out_channels // geometry.groups, rows=geometry.channels // geometry.groups,
            height=geometry.out_size[0], width=geometry.out_size[1], step_h=1, step_w=1, base_h=-far_h,
            base_w=base_j - far_w, base_j=base_j, slots_h=1, slots_w=1, halo=far_h,
            length=(width - 1 + left) // sw + 1 - base_j + far_w, first=top // sh, last=(height - 1 + top) // sh + 1,
            out_h=height, out_w=width, group_weights=math.prod(geometry.weight_shape) // geometry.groups)
        self._set_bands()
        self._set_images()
        self._set_flat()
        self.shared = _round_up(math.prod(geometry.weight_shape), 16)

    def _with_workers(self, workers: int) -> tuple[dict[str, int], int]:
        return _correlation_workers(self, workers)

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tap classes, phases, offsets."""
        job = self.job
        classes, tables, table, weights = [], [], 0, 0
        plane = np.arange(job["sources"])[:, None, None] * (job["images"] * job["plane"])
        for (of_h, taps_h), (of_w, taps_w) in self._tap_classes():
            shift_h, shift_w = (self.far[axis] - taps * self.geometry.dilation[axis] // self.geometry.stride[axis]
                                for axis, taps in enumerate((taps_h, taps_w)))
            tables.append((plane + shift_h[:, None] * job["length"] + shift_w).reshape(-1))
            terms = tables[-1].size
            classes.append((terms, weights, table, *of_h, *of_w))
            table += terms
            weights += job["rows"] * terms
        offset = np.concatenate(tables)
        return np.array(classes, TAP_CLASS), np.zeros(2, np.int64), offset.astype(np.uintp)

    @cached_property
    def class_of_tap(self) -> np.ndarray:
        """The class that each tap (kh, kw) belongs to; -1 where no pixel sees it (the image is smaller than the stride)."""
        found = np.full(self.geometry.kernel, -1)
        for t, ((_, taps_h), (_, taps_w)) in enumerate(self._tap_classes()):
            found[np.ix_(taps_h, taps_w)] = t
        return found.reshape(-1)

    def _tap_classes(self) -> Iterator[tuple[Any, ...]]:
        """Of both axes: ``(start, step, first, last)`` and the taps of a parity, for each pair of parities."""
        return itertools.product(*(self._axis_classes(axis) for axis in (0, 1)))

    def _axis_classes(self, axis: int) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        geometry = self.geometry
        size, step, gap = geometry.in_size[axis], geometry.stride[axis], geometry.dilation[axis]
        before, taps = geometry.pads[axis][0], geometry.kernel[axis]
        phases, _ = _phases(taps, gap, step)  # of taps: each comes up again after so many
        first_tap = {phase: tap for tap, phase in enumerate(phases)}
        for y in range(min(size, step)):  # the class's first row or column
            first, residue = divmod(y + before, step)
            yield ((residue - before, step, first, (size - 1 - y) // step + 1 + first),
                   np.arange(first_tap.get(residue, taps), taps, step // math.gcd(gap, step)))


class WeightPlan(_ForwardLayout):
    """Backward weight, wide or narrow."""

    def __init__(self, geometry: Conv2dGeometry, itemsize: int) -> None:
        super().__init__(geometry, itemsize)
        job = self.job
        self.terms = job["sources"] * job["taps"]
        self.padded_terms = _round_up(self.terms, TAPS)
        self.narrow = (job["rows"] < NARROW_FILTERS
                       and job["rows"] * self.padded_terms * LANES * itemsize <= NARROW_BYTES)
        if self.narrow:
            self._set_images()
            cells = (job["images"] - 1) * job["plane"] + (job["band"] - 1) * job["length"] + job["out_w"]
            job["pitch"] = _round_up(cells, SEGMENTS * LANES)
        else:
            job["pitch"] = _round_up(job["rows"], STEP) + STEP  # a line more: filters are often a power of two
        self._set_flat()

    def _with_workers(self, workers: int) -> tuple[dict[str, int], int]:
        job = dict(self.job)
        if self.narrow:
            workers = self._split(job, job["groups"], job["rows"], workers)
            job["tile"] += _ceil_div(job["rows"], job["blocks"]) * self.padded_terms * LANES
            job["side"] = job["pitch"]
        else:
            units = self.terms // ROWS + self.terms % ROWS
            workers = self._split(job, job["groups"], units, workers)
            job["side"] = (REDUCTION + min(_ceil_div(units, job["blocks"]) * ROWS, self.terms)) * job["pitch"]
        return job, workers

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Phases, offsets (of whole sixes), and where the rows of the turned dout start."""
        phases, offset = self._offsets()
        offset = np.concatenate([offset, np.repeat(offset[:1], self.padded_terms - self.terms)])
        rows = np.arange(REDUCTION) * self.job["pitch"]
        return phases, offset.astype(np.uintp), rows.astype(np.uintp)


_PLANS = {"forward": ForwardPlan, "backward_data": DataPlan, "backward_weight": WeightPlan}


@lru_cache(maxsize=256)
def plan(operation: str, geometry: Conv2dGeometry, itemsize: int) -> Any:
    """The plan of an operation."""
    return _PLANS[operation](geometry, itemsize)


@lru_cache(maxsize=64)
def _zeros(count: int, dtype: np.dtype) -> np.ndarray:
    return np.zeros(count, dtype)


# --- entry points -----------------------------------------------------------------------------------------------------


def workspace(operation: str, geometry: Conv2dGeometry, itemsize: int, threads: int) -> int:
    """Bytes of scratch that an operation needs."""
    if depthwise.job(operation, geometry, itemsize) is not None:
        return 0
    return int(plan(operation, geometry, itemsize).nbytes(threads))


def forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, relu: bool, geometry: Conv2dGeometry,
            out: np.ndarray, threads: int) -> None:
    """conv2d of float32 or float64 arrays into `out`."""
    planes = depthwise.job("forward", geometry, x.itemsize)
    if planes is not None:
        offset = _zeros(geometry.out_channels, x.dtype) if bias is None else flat(bias)
        depthwise.forward(usable_workers(threads), planes, flat(x), flat(weight), offset, relu, flat(out))
        return
    this = plan("forward", geometry, x.itemsize)
    workers, job, nbytes, _ = ready = this.ready(threads)
    scratch = ready.pieces(memory.scratch(nbytes), x.dtype)
    bias = _zeros(geometry.out_channels, x.dtype) if bias is None else flat(bias)
    correlate(workers, job, *this.tables, flat(x), flat(weight), bias, relu, flat(out), scratch[1], scratch[2])


class SmallForward:
    """A convolution made ready once, for calls that take less time than finding out how to do them.

    It makes the result, and runs on the calling thread.
    """

    def __init__(self, geometry: Conv2dGeometry, dtype: np.dtype, batched: bool, relu: bool) -> None:
        self.dtype, self.relu = dtype.newbyteorder("="), relu
        self.shape = geometry.output_shape if batched else geometry.output_shape[1:]
        self.no_bias = _zeros(geometry.out_channels, self.dtype)
        self.planes = depthwise.job("forward", geometry, dtype.itemsize)
        this = plan("forward", geometry, dtype.itemsize)
        self.job = this.ready(1).job
        self.tables = this.tables
        self.tile_bytes, self.nbytes = this.job["tile"] * dtype.itemsize, this.nbytes(1)

    def __call__(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray | None:
        """The result, or None where an array is not as the kernel takes it."""
        dtype = self.dtype
        if bias is None:
            bias = self.no_bias
        for array in (x, weight, bias):
            if not array.flags.carray or array.dtype != dtype:
                return None
        out = np.empty(self.shape, dtype)
        if self.planes is not None:
            depthwise.forward(1, self.planes, x.reshape(-1), weight.reshape(-1), bias, self.relu, out.reshape(-1))
            return out
        scratch = memory.scratch(self.nbytes)
        correlate(1, self.job, *self.tables, x.reshape(-1), weight.reshape(-1), bias, self.relu, out.reshape(-1),
                  scratch[:self.tile_bytes].view(dtype), scratch[self.tile_bytes:self.nbytes].view(dtype))
        return out


class SmallBackward:
    """The gradients of a small direct convolution, made ready once as `SmallForward` is."""

    def __init__(self, geometry: Conv2dGeometry, dtype: np.dtype, batched: bool) -> None:
        self.geometry, self.dtype = geometry, dtype.newbyteorder("=")
        self.shape = geometry.input_shape if batched else geometry.input_shape[1:]
        self.no_bias = _zeros(geometry.channels, self.dtype)
        self.data_planes = depthwise.job("backward_data", geometry, dtype.itemsize)
        self.weight_planes = depthwise.job("backward_weight", geometry, dtype.itemsize)
        data, weight = plan("backward_data", geometry, dtype.itemsize), plan("backward_weight", geometry, dtype.itemsize)
        self.data_job, self.weight_job = data.ready(1).job, weight.ready(1).job
        self.data_tables, self.weight_tables = data.tables, (*weight.tables, weight.narrow)
        self.class_of_tap, self.turned = data.class_of_tap, data.shared
        # (tile, flat, side): so small that they are made faster than cut from the scratch, which Python may run between
        self.data_scratch, self.weight_scratch = (tuple(int(job[name][0]) for name in ("tile", "flat", "side"))
                                                  for job in (self.data_job, self.weight_job))

    def __call__(self, dout: np.ndarray, x: np.ndarray, weight: np.ndarray, data: bool, filters: bool,
                 bias: bool) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None] | None:
        """(dx, dw, db), None for what is not asked for; None where an array is not as the kernels take it, or not finite."""
        dtype = self.dtype
        for array in (dout, x, weight):
            if not array.flags.carray or array.dtype != dtype:
                return None
        dx = dw = db = None
        gradient = dout.reshape(-1)
        if data:
            dx = np.empty(self.shape, dtype)
            if not self._data(gradient, weight.reshape(-1), dx.reshape(-1)):
                return None
        if filters:
            dw = np.empty(weight.shape, dtype)
            if not self._filters(gradient, x.reshape(-1), dw.reshape(-1)):
                return None
        if bias:
            db = np.empty(weight.shape[0], dtype)
            sum_planes(1, gradient, self.geometry.batch, self.geometry.positions, db)
        return dx, dw, db

    def _data(self, dout: np.ndarray, weight: np.ndarray, dx: np.ndarray) -> bool:
        if not finite(1, weight):
            return False
        if self.data_planes is not None:
            depthwise.backward_data(1, self.data_planes, dout, weight, self.geometry, self.no_bias, dx)
            return True
        dtype, (tile, flat_, _) = self.dtype, self.data_scratch
        taps, phases, offset = self.data_tables
        turned = np.empty(self.turned, dtype)
        turn_weights(1, self.data_job, taps, self.class_of_tap, weight, turned)
        correlate(1, self.data_job, taps, phases, offset, dout, turned, self.no_bias, False, dx, np.empty(tile, dtype),
                  np.empty(flat_, dtype))
        return True

    def _filters(self, dout: np.ndarray, x: np.ndarray, dw: np.ndarray) -> bool:
        if self.weight_planes is not None:
            depthwise.backward_weight(1, self.weight_planes, x, dout, dw)
        else:
            dtype, (tile, flat_, side) = self.dtype, self.weight_scratch
            weight_gradient(1, self.weight_job, *self.weight_tables, x, dout, dw, np.empty(tile, dtype), np.empty(flat_, dtype),
                            np.empty(side, dtype))
        return bool(finite(1, dw))


#: Where `SmallForward` and `SmallBackward` are found, as in :mod:`fastconv.native`.
kernels = sys.modules[__name__]


def backward_data(dout: np.ndarray, weight: np.ndarray, geometry: Conv2dGeometry, out: np.ndarray,
                  threads: int) -> bool:
    """The gradient with respect to the input, into `out`; False, with `out` untouched, where a weight is not finite."""
    filters = flat(weight)
    if not finite(1, filters):
        return False
    planes = depthwise.job("backward_data", geometry, dout.itemsize)
    if planes is not None:
        depthwise.backward_data(usable_workers(threads), planes, flat(dout), filters, geometry,
                                _zeros(geometry.channels, dout.dtype), flat(out))
        return True
    this = plan("backward_data", geometry, dout.itemsize)
    workers, job, nbytes, _ = ready = this.ready(threads)
    taps, phases, offset = this.tables
    with memory.scratch_block(nbytes) as buffer:  # Python runs between the two kernels
        scratch = ready.pieces(buffer, dout.dtype)
        turn_weights(workers if filters.size > 65536 else 1, job, taps, this.class_of_tap, filters, scratch[0])
        correlate(workers, job, taps, phases, offset, flat(dout), scratch[0], _zeros(geometry.channels, dout.dtype), False,
                  flat(out), scratch[1], scratch[2])
    return True


def bias_gradient(dout: np.ndarray, out: np.ndarray, threads: int) -> None:
    """The sums of dout's planes, into `out`."""
    batch, planes = dout.shape[:2]
    workers = min(usable_workers(threads), max(planes, 1))
    sum_planes(workers, flat(dout), batch, math.prod(dout.shape[2:]), flat(out))


def backward_weight(dout: np.ndarray, x: np.ndarray, geometry: Conv2dGeometry, out: np.ndarray, threads: int) -> bool:
    """The gradient with respect to the weight, into `out`; False where that is not finite.

    Then a pixel or a cell of dout may not have been, which may have met zeros that rule 3 knows nothing of: it gave NaN.
    """
    planes = depthwise.job("backward_weight", geometry, x.itemsize)
    if planes is not None:
        depthwise.backward_weight(usable_workers(threads), planes, flat(x), flat(dout), flat(out))
        return bool(finite(1, flat(out)))
    this = plan("backward_weight", geometry, x.itemsize)
    workers, job, nbytes, _ = ready = this.ready(threads)
    scratch = ready.pieces(memory.scratch(nbytes), x.dtype)
    weight_gradient(workers, job, *this.tables, this.narrow, flat(x), flat(dout), flat(out), *scratch[1:])
    return bool(finite(1, flat(out)))
