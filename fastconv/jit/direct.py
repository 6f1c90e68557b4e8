"""Direct convolution in Numba: no column matrix, one padded copy of a few rows of the image at a time.

The layout is the Cython backend's ("shifted flat rows"; native/direct.pxi has the picture). A band of the image is
copied to rows of one length L that include the padding, so that a tap (kh, kw) sees all output pixels of the band in
one flat array, shifted by kh*L + kw. With stride s the copy is split by phase, one plane for each residue of a tap
modulo s. Backward data is the same product on the output gradient, once for each parity of the input pixels. Positions
between two rows are no output pixels; they are computed and thrown away.

A tile of the result stays in registers while all terms are added to it (:mod:`fastconv.jit.tiles`):

    tile[i][p] = sum over all terms t of a[i][t] * b[offset[t] + p]        six rows i, 64 pixels p

It is stored where it belongs if its pixels are whole vectors that lie side by side there, else by way of scratch.

Where the positions between rows are many and the copies cheap (small images), each column of taps has a copy of its own,
which begins with the cells that it sees: then rows follow each other without anything between them. Results that no cache
holds go past the caches where rows are whole lines; others are asked for while the sums of few terms are made.

Backward weight is dw[k][r] = sum over p of dout[k][p] * flat[offset[r] + p], a sum over what is contiguous: each sum of a
tile of filters and taps is a vector of partial sums, which are folded once for each chunk of pixels. Positions between the
rows of dout hold zeros; so does the padding of the flat copy of dout in backward data. Zero times infinity is NaN: where a
pixel (for dw) or a weight (for dx) is not finite, the caller goes another way.

Sums are cut into chunks of REDUCTION terms, whose results are added up: a blocked sum (Higham, Accuracy and Stability
of Numerical Algorithms, 2nd ed., section 4.2). Workers take (images, group, band, block of filters), in backward weight
(group, block of rows of dw). No two write one element, and no sum depends on how they are dealt out.

Planes by themselves (depthwise, with few filters each) are :mod:`fastconv.jit.depthwise`'s, backward data of few channels is
:mod:`fastconv.jit.few_channels`'.
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
from . import depthwise, few_channels
from .common import U, inside, zero
from .costs import worth_unrolling
from .im2col import STREAM_BYTES, tap_rows
from .options import Kernel, flat, inlined, part, prange, usable_workers
from .tiles import PITCH, ROWS, VECTORS, correlate_tile, inner_tile
from .vectors import (
    LINE_BYTES,
    ask,
    beyond_line,
    fence,
    lane,
    lanes_of,
    load,
    load_where,
    plus,
    relu_of,
    rolled,
    splat,
    store,
    store_first,
    stream,
)

LINES = 4            # of cache in a row of a tile
WIDE = 3             # lines of cache of a row that is copied in the order of memory
REDUCTION = 240      # terms of a chunk of a sum
BAND_BYTES = 393216  # of a band's flat copy: with the weights that stream past, it fits an L2 of 1 MB
MANY_TERMS = 128     # so many take so much longer than the memory that they go to that it is not asked for before
SHARED = 512         # positions that images are put together for
CHUNK_BYTES = 4096   # of a row of dout in backward weight, whose sums stay in registers
CHUNK = 1024         # cells of dout that are added up in the lanes of a vector

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
    "channels",                          # of one flat copy in backward weight,
    "chunk", "pitch",                    # positions of a chunk of an image's dout; what rows of them are apart
    "tile", "flat", "side",              # elements of a worker's three pieces of scratch
)])

#: The output pixels that see one set of taps: rows q*step_h + start_h for q in [first_h, last_h), columns likewise.
TAP_CLASS = np.dtype([(name, np.int64) for name in (
    "terms", "weights", "table", "start_h", "step_h", "first_h", "last_h", "start_w", "step_w", "first_w", "last_w")])


# --- tiles ------------------------------------------------------------------------------------------------------------

@inlined
def multiply(to, at, pitch, rows, vectors, a, first, step, b, offset, table, terms, shift, ends, bias, channel, relu, bypass):
    """(rows, R) @ (R, columns): to[at + i*pitch + p] = sum of all a[first + i*step + t] * b[offset[table + t] + shift + p].

    At most ROWS rows, and LINES lines of cache of columns. What `ends` says is done to whole sums (tiles.py).
    """
    lanes = lanes_of(to)
    for j in range(0, vectors, VECTORS):
        number = min(vectors - j, VECTORS)
        done = 0
        while done == 0 or done < terms:
            count = min(terms - done, REDUCTION)
            last = ends and done + count == terms
            correlate_tile(rows, number, to, at + j * lanes, pitch, done > 0, last, bias, channel, last and relu, bypass,
                           a, first + done, step, b, offset, table + done, count, shift + j * lanes, 0)
            done += max(count, 1)


# --- the flat copy ----------------------------------------------------------------------------------------------------

@inlined
def copy_rows(source, at, down, ahead, rows, first, stop, to, line, length):
    """`rows` rows of `length` cells, `down` cells apart in `source`, zeros outside of [first, stop), in the order of memory.

    Meanwhile the row that lies `ahead` is asked for: planes are too far apart for the processor to see what comes.
    """
    lanes = lanes_of(to)
    zeros = splat(to, to.dtype.type(0))
    for _ in range(rows):
        for q in range(0, length, lanes):
            rolled()
            ask(source, at + ahead + q)
            if first <= q and q + lanes <= stop:
                store(to, line + q, load(source, at + q))
            else:
                store(to, line + q, load_where(source, at + q, first - q, stop - q, zeros))
        at += down
        line += length


@part
def fill_flat(job, phases, to, source, at, image_step, images, channels, y0, rows):
    """Copy `rows` + halo rows of some channels of some images, from row y0 of positions on.

    They go to (channel, phases, image), in the order of memory: vectors reach over the ends of rows. Channels of the first
    image start at source[at]. Behind the cells of `to` there is a zero.
    """
    height, width, length, halo, step = job.height, job.width, job.length, job.halo, job.step_w
    slots_h, slots_w, zeros = job.slots_h, job.slots_w, to[job.cells:]
    lines = rows + halo
    for c in range(channels):
        for a in range(slots_h):
            row = y0 * job.step_h + phases[U(a)] + job.base_h
            above, below = inside(height, row, job.step_h, lines)
            for b in range(slots_w):
                start = phases[U(slots_h + b)] + job.base_w
                first, stop = inside(width, start, step, length)
                for n in range(images):
                    line = (((c * slots_h + a) * slots_w + b) * job.images + n) * job.plane
                    zero(to, line, above * length)
                    if step == 1 and length >= WIDE * lanes_of(to):
                        cells = at + n * image_step + (c * height + row + above * job.step_h) * width + start
                        copy_rows(source, cells, job.step_h * width, height * width, below - above, first, stop, to,
                                  line + above * length, length)
                    elif above < below:
                        tap_rows(source, at + n * image_step + (c * height + row + above * job.step_h) * width + start,
                                 job.step_h * width, step, below - above, first, stop, to, line + above * length, length,
                                 length, to.size, zeros)
                    zero(to, line + below * length, (lines - below) * length)


# --- forward and backward data ----------------------------------------------------------------------------------------

@inlined
def store_run(out, to, step, tile, at, count, bias, relu, limit, bypass):
    """out[to + x*step] = tile[at + x] + bias, with relu not below zero. What is from there to out[limit] may be overwritten."""
    if bypass and step == 1 and count % lanes_of(out) == 0 and beyond_line(out, to) == 0:
        for x in range(0, count, lanes_of(out)):
            rolled()
            value = plus(load(tile, at + x), bias)
            stream(out, to + x, relu_of(value) if relu else value)
    elif step == 1:
        for x in range(0, count, lanes_of(out)):
            rolled()
            value = plus(load(tile, at + x), bias)
            store_first(out, to + x, relu_of(value) if relu else value, count - x, limit)
    else:  # of backward data only, which has neither bias nor relu
        t, s = U(to), U(at)
        for x in range(U(count)):
            out[t + x * U(step)] = tile[s + x]


@part
def store_tile(job, tap, tile, rows, columns, p0, q0, q1, out, plane0, bias, bias0, relu, bypass):
    """Positions [p0, p0 + columns) of `rows` planes, which are in `tile`, to where they belong in `out`."""
    length, rows_of_image = job.length, job.plane // job.length
    out_plane, out_w = job.out_h * job.out_w, job.out_w
    image_step = job.groups * job.rows * out_plane
    first_w, last_w, step_w, start_w = tap.first_w, tap.last_w, tap.step_w, tap.start_w
    first_h, last_h = tap.first_h, min(tap.last_h, q1)
    # rows of nothing but output pixels follow each other: they are one
    one = last_w - first_w == length and length == out_w and tap.step_h == 1 and step_w == 1
    line = p0 // length
    n, y = line // rows_of_image, line % rows_of_image
    begin = line * length - job.base_j  # position of the line's column 0 of the output
    while begin + job.base_j < p0 + columns:
        here = first_h <= q0 + y < last_h
        many = last_h - q0 - y if one and here else 1
        first, stop = max(p0 - begin, first_w), min(p0 + columns - begin, last_w + (many - 1) * length)
        if first < stop and here:
            plane = plane0 * out_plane + n * image_step
            to = plane + ((q0 + y) * tap.step_h + tap.start_h) * out_w + first * step_w + start_w
            # in their plane and band rows are written in order, unless those between them are another class's
            limit = plane + (last_h + tap.start_h) * out_w if tap.step_h == 1 else to + stop - first
            run = first + begin - p0
            for i in range(rows):
                store_run(out, to, step_w, tile, run, stop - first, splat(out, bias[U(bias0 + i)]), relu, limit, bypass)
                to += out_plane
                limit += out_plane
                run += PITCH
        begin += many * length
        y += many
        if y >= rows_of_image:
            n, y = n + 1, 0


@inlined
def expect_tile(job, tap, rows, columns, p0, q0, out, plane0):
    """Ask for where a tile goes, roughly: the sums of few terms take no longer than the memory takes to arrive."""
    lanes = lanes_of(out)
    line = p0 // job.length
    y = line % (job.plane // job.length)
    column = max(min(p0 - line * job.length + job.base_j, tap.last_w - 1), tap.first_w)
    at = ((q0 + y) * tap.step_h + tap.start_h) * job.out_w + column * tap.step_w + tap.start_w
    at += (plane0 + line // (job.plane // job.length) * job.groups * job.rows) * job.out_h * job.out_w
    for _ in range(rows):
        for x in range(0, columns * tap.step_w + lanes, lanes):
            ask(out, at + x)
        at += job.out_h * job.out_w


@inlined
def whole_lines(job, tap, columns, p0, q0, q1, out, plane0):
    """Where in `out` positions [p0, p0 + columns) of a plane are, if they are whole vectors side by side there, else -1."""
    if tap.step_h != 1 or tap.step_w != 1 or columns % lanes_of(out) != 0:
        return -1
    line = p0 // job.length
    n, y = line // (job.plane // job.length), line % (job.plane // job.length)
    row, x, last_h = q0 + y, p0 - line * job.length + job.base_j, min(tap.last_h, q1)
    if row < tap.first_h or row >= last_h or x < tap.first_w:
        return -1
    # rows of nothing but output pixels follow each other: they are one
    one = tap.last_w - tap.first_w == job.length and job.length == job.out_w
    if x + columns > tap.last_w and not (one and row * job.length + x + columns <= last_h * job.length):
        return -1
    plane = plane0 + n * job.groups * job.rows
    return (plane * job.out_h + row + tap.start_h) * job.out_w + x + tap.start_w


@part
def row_tiles(job, tap, r0, r1, p, end, q0, q1, offset, image, group, weights, bias, relu, out, tile, b, bypass):
    """Planes [r0, r1) of a group at positions [p, end), in tiles of even size: small ones mostly load."""
    lanes = lanes_of(tile)
    tiles = (end - p + LINES * lanes - 1) // (LINES * lanes)
    wide = ((end - p + tiles - 1) // tiles + lanes - 1) // lanes * lanes
    high = (r1 - r0 + ROWS - 1) // ROWS
    while p < end:
        columns = min(wide, end - p)
        for i in range(high):
            r = r0 + (r1 - r0) * i // high
            rows = r0 + (r1 - r0) * (i + 1) // high - r
            plane = (image * job.groups + group) * job.rows + r
            if tap.terms < MANY_TERMS and not bypass:
                expect_tile(job, tap, rows, columns, p, q0, out, plane)
            first = group * job.group_weights + tap.weights + r * tap.terms
            to = whole_lines(job, tap, columns, p, q0, q1, out, plane) if tap.terms <= REDUCTION or not bypass else -1
            past = to >= 0 and bypass and beyond_line(out, to) == 0 and job.out_h * job.out_w % lanes == 0
            multiply(out if to >= 0 else tile, max(to, 0), job.out_h * job.out_w if to >= 0 else PITCH, rows,
                     (columns + lanes - 1) // lanes, weights, first, tap.terms, b, offset, tap.table, tap.terms, p, to >= 0,
                     bias, group * job.rows + r, relu, past)
            if to < 0:
                store_tile(job, tap, tile, rows, columns, p, q0, q1, out, plane, bias, group * job.rows + r, relu, bypass)
        p += columns


@part
def correlate_item(job, taps, phases, offset, item, source, weights, bias, relu, out, tile, b, bypass):
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
    r0, r1 = job.rows * block // job.blocks, job.rows * (block + 1) // job.blocks
    lanes = lanes_of(tile)
    for t in range(taps.size):
        tap = taps[t]
        y0, y1 = max(q0, tap.first_h) - q0, min(q1, tap.last_h) - q0
        if y0 >= y1:
            continue
        p = y0 * job.length + tap.first_w - job.base_j
        end = (images - 1) * job.plane + (y1 - 1) * job.length + tap.last_w - job.base_j
        # where lines of cache are written past the caches, tiles are within rows, so that these are theirs
        alone = bypass and job.out_w % lanes == 0 and job.length > job.out_w >= LINES * lanes and tap.step_w == 1
        while p < end:
            until = end
            if alone:
                until = (p + job.base_j) // job.length * job.length + tap.last_w - job.base_j
            row_tiles(job, tap, r0, r1, p, until, q0, q1, offset, image, group, weights, bias, relu, out, tile, b, bypass)
            p = until
            if alone:
                p += job.length - (tap.last_w - tap.first_w)


@Kernel
def correlate(workers, jobs, taps, phases, offset, source, weights, bias, relu, out, tiles, flats, bypass):
    for worker in prange(workers):
        job = jobs[0]  # in here: Numba can't hand a record over to the threads
        tile = tiles[worker * job.tile:(worker + 1) * job.tile]
        b = flats[worker * job.flat:(worker + 1) * job.flat]
        zero(b, job.cells, job.flat - job.cells)
        for item in range(job.items * worker // workers, job.items * (worker + 1) // workers):
            correlate_item(job, taps, phases, offset, item, source, weights, bias, relu, out, tile, b, bypass)
        if bypass:
            fence()


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
                                    at += U(1)


# --- backward weight --------------------------------------------------------------------------------------------------

@part
def copy_dout(job, to, at, dout, row, p0, positions, rows):
    """Positions [p0, p0 + positions) of an image's rows of dout, which begin at dout[row], and zeros for those between them."""
    length, out_w, lanes = job.length, job.out_w, lanes_of(to)
    zeros = splat(to, to.dtype.type(0))
    if length > out_w:
        for q in range(0, positions, lanes):
            store(to, at + q, zeros)
    line = 0 if length == out_w else p0 // length
    while line * length < p0 + positions:
        first = max(p0 - line * length, 0)
        stop = min(p0 + positions - line * length, out_w if length > out_w else rows * out_w)
        cell, o = row + line * out_w + first, at + line * length + first - p0
        for q in range(0, stop - first, lanes):
            store(to, o + q, load_where(dout, cell + q, 0, stop - first - q, zeros))
        line += 1 if length > out_w else rows


@part
def weight_item(job, phases, offset, item, x, dout, dw, b, d):
    """dw of some filters of one group over all pixels, in order: for each chunk of pixels (K, P) @ (P, R) -> (K, R)."""
    block, group = item % job.blocks, item // job.blocks
    k0, k1 = job.rows * block // job.blocks, job.rows * (block + 1) // job.blocks
    terms, lanes = job.sources * job.taps, lanes_of(d)
    in_plane, out_plane, out_w = job.height * job.width, job.out_h * job.out_w, job.out_w
    zero(dw, (group * job.rows + k0) * terms, (k1 - k0) * terms)
    high = (k1 - k0 + ROWS - 1) // ROWS
    for c0 in range(0, job.sources, job.channels):
        channels = min(job.channels, job.sources - c0)
        for image in range(0, job.batch, job.images):
            images = min(job.images, job.batch - image)
            for band in range(job.bands):
                y0 = band * job.band
                rows = min(job.band, job.last - y0)
                fill_flat(job, phases, b, x, ((image * job.groups + group) * job.sources + c0) * in_plane,
                          job.groups * job.sources * in_plane, images, channels, y0, rows)
                end = (rows - 1) * job.length + out_w
                for m in range(high):
                    k = k0 + (k1 - k0) * m // high
                    height, plane = k0 + (k1 - k0) * (m + 1) // high - k, group * job.rows + k
                    for p in range(0, end, job.chunk):
                        positions = min(job.chunk, end - p)
                        for i in range(height):
                            for n in range(images):
                                row = ((image + n) * job.groups * job.rows + plane + i) * out_plane + y0 * out_w
                                copy_dout(job, d, i * job.pitch + n * job.chunk, dout, row, p, positions, rows)
                        for r in range(0, channels * job.taps, VECTORS):
                            inner_tile(height, dw, plane * terms + c0 * job.taps + r, terms,
                                       min(channels * job.taps - r, VECTORS), d, job.pitch, job.chunk, b, offset, r, job.plane,
                                       (positions + lanes - 1) // lanes, images, p)


@Kernel
def weight_gradient(workers, jobs, phases, offset, x, dout, dw, flats, sides):
    for worker in prange(workers):
        job = jobs[0]
        b = flats[worker * job.flat:(worker + 1) * job.flat]
        side = sides[worker * job.side:(worker + 1) * job.side]
        zero(b, job.cells, job.flat - job.cells)
        for item in range(job.items * worker // workers, job.items * (worker + 1) // workers):
            weight_item(job, phases, offset, item, x, dout, dw, b, side)


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
        """Several images in one flat copy where they fill tiles better, or as well: rows between them are computed, too."""
        job = self.job
        if job["bands"] > 1:
            return
        lanes, batch = LINE_BYTES // self.itemsize, max(job["batch"], 1)
        fit = BAND_BYTES // (job["sources"] * job["slots_h"] * job["slots_w"] * job["plane"] * self.itemsize)
        most = max(min(SHARED // job["plane"], fit, batch), 1)
        last = (job["last"] - job["first"]) * job["length"]
        lines = {images: _ceil_div((images - 1) * job["plane"] + last, lanes) / images for images in range(1, most + 1)}
        images = max(images for images in lines if lines[images] <= 1.03 * min(lines.values()))
        job["images"] = _ceil_div(batch, _ceil_div(batch, images))

    def _set_flat(self, channels: int) -> None:
        job = self.job
        job["cells"] = channels * job["slots_h"] * job["slots_w"] * job["images"] * job["plane"]
        job["flat"] = _round_up(job["cells"] + LINE_BYTES // self.itemsize, 16)  # lines that are read reach over the end
        job["tile"] = (ROWS + 1) * PITCH

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
        job = self.job
        self.unrolled = kw > 1 and sw == 1 and worth_unrolling(
            job["sources"] * job["slots_h"] * (job["last"] + job["halo"]) * job["out_w"], job["out_w"], (kw - 1) * dw, itemsize)
        if self.unrolled:
            job["slots_w"], job["length"] = kw, job["out_w"]
        self._set_bands()

    def _offsets(self, channels: int) -> tuple[np.ndarray, np.ndarray]:
        """The phases, and for each (channel, kh, kw) how far it is from the flat copy's first cell."""
        (kh, kw), (sh, sw), (dh, dw) = self.geometry.kernel, self.geometry.stride, self.geometry.dilation
        job = self.job
        phase_h, slot_h = _phases(kh, dh, sh)
        phase_w, slot_w = ([k * dw for k in range(kw)], list(range(kw))) if self.unrolled else _phases(kw, dw, sw)
        c = np.arange(channels)[:, None, None]
        slot = (c * job["slots_h"] + np.array(slot_h)[:, None]) * job["slots_w"] + np.array(slot_w)
        shift = (np.arange(kh) * dh // sh * job["length"])[:, None] + (0 if self.unrolled else np.arange(kw) * dw // sw)
        return np.array(phase_h + phase_w), (slot * (job["images"] * job["plane"]) + shift).reshape(-1)


class ForwardPlan(_ForwardLayout):
    def __init__(self, geometry: Conv2dGeometry, itemsize: int) -> None:
        super().__init__(geometry, itemsize)
        self._set_images()
        self._set_flat(self.job["sources"])

    def _with_workers(self, workers: int) -> tuple[dict[str, int], int]:
        return _correlation_workers(self, workers)

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tap classes (one), phases, offsets."""
        phases, offset = self._offsets(self.job["sources"])
        taps = np.zeros(1, TAP_CLASS)
        taps["terms"], taps["step_h"], taps["step_w"] = offset.size, 1, 1
        taps["last_h"], taps["last_w"] = self.geometry.out_size
        return taps, phases, offset.astype(np.uintp)


def _correlation_workers(plan: Plan, workers: int) -> tuple[dict[str, int], int]:
    job = dict(plan.job)
    items = _ceil_div(job["batch"], job["images"]) * job["groups"] * job["bands"]
    workers = plan._split(job, items, _ceil_div(job["rows"], ROWS), workers)
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
        job = self.job
        width = job["length"] - far_w
        self.unrolled = far_w > 0 and worth_unrolling(
            job["sources"] * (job["last"] - job["first"] + far_h) * width, width, far_w, itemsize)
        if self.unrolled:
            job["slots_w"], job["length"] = far_w + 1, width
        self._set_bands()
        self._set_images()
        self._set_flat(self.job["sources"])
        self.shared = _round_up(math.prod(geometry.weight_shape), 16)

    def _with_workers(self, workers: int) -> tuple[dict[str, int], int]:
        return _correlation_workers(self, workers)

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tap classes, phases, offsets."""
        job = self.job
        classes, tables, table, weights = [], [], 0, 0
        slot = job["images"] * job["plane"]
        plane = np.arange(job["sources"])[:, None, None] * (job["slots_w"] * slot)
        for (of_h, taps_h), (of_w, taps_w) in self._tap_classes():
            shift_h, shift_w = (self.far[axis] - taps * self.geometry.dilation[axis] // self.geometry.stride[axis]
                                for axis, taps in enumerate((taps_h, taps_w)))
            tables.append((plane + shift_h[:, None] * job["length"] + shift_w * (slot if self.unrolled else 1)).reshape(-1))
            terms = tables[-1].size
            classes.append((terms, weights, table, *of_h, *of_w))
            table += terms
            weights += job["rows"] * terms
        offset = np.concatenate(tables)
        return np.array(classes, TAP_CLASS), np.arange(-1, self.far[1] + 1).clip(0), offset.astype(np.uintp)

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
    """Backward weight."""

    def __init__(self, geometry: Conv2dGeometry, itemsize: int) -> None:
        super().__init__(geometry, itemsize)
        job, line = self.job, LINE_BYTES // itemsize
        wanted, slots = CHUNK_BYTES // itemsize, job["slots_h"] * job["slots_w"]
        # a chunk of pixels, and as many channels as fit: sums of few pixels take longer to store than to add up
        rows = max(min(job["last"], wanted // job["length"]), 1)
        job["bands"] = _ceil_div(job["last"], rows)
        job["band"] = _ceil_div(job["last"], job["bands"])
        job["plane"] = (job["band"] + job["halo"]) * job["length"]
        job["chunk"] = min(_round_up((job["band"] - 1) * job["length"] + job["out_w"], line), wanted)
        if job["bands"] == 1:
            job["images"] = max(min(wanted // job["chunk"], job["batch"]), 1)
        job["pitch"] = job["images"] * job["chunk"]
        most = BAND_BYTES // max(slots * job["images"] * job["plane"] * itemsize, 1)
        job["channels"] = max(min(most, job["sources"]), 1)
        job["channels"] = _ceil_div(job["sources"], _ceil_div(job["sources"], job["channels"]))
        self._set_flat(job["channels"])
        job["tile"] = 0

    def _with_workers(self, workers: int) -> tuple[dict[str, int], int]:
        job = dict(self.job)
        workers = self._split(job, job["groups"], job["rows"], workers)
        job["side"] = ROWS * job["pitch"] + LINE_BYTES // self.itemsize
        return job, workers

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Phases, and offsets of as many channels as are in a flat copy, a tile's columns more."""
        phases, offset = self._offsets(self.job["channels"])
        return phases, np.concatenate([offset, np.repeat(offset[:1], VECTORS)]).astype(np.uintp)


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
    few = few_channels.plan(geometry, itemsize) if operation == "backward_data" else None
    if few is not None:
        return few_channels.workspace(few, itemsize, threads)
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
    correlate(workers, job, *this.tables, flat(x), flat(weight), bias, relu, flat(out), scratch[1], scratch[2],
              out.nbytes >= STREAM_BYTES)


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
                  scratch[:self.tile_bytes].view(dtype), scratch[self.tile_bytes:self.nbytes].view(dtype), False)
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
        self.data_tables, self.weight_tables = data.tables, weight.tables
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
                  np.empty(flat_, dtype), False)
        return True

    def _filters(self, dout: np.ndarray, x: np.ndarray, dw: np.ndarray) -> bool:
        if self.weight_planes is not None:
            depthwise.backward_weight(1, self.weight_planes, x, dout, dw)
        else:
            dtype, (_, flat_, side) = self.dtype, self.weight_scratch
            weight_gradient(1, self.weight_job, *self.weight_tables, x, dout, dw, np.empty(flat_, dtype), np.empty(side, dtype))
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
    few = few_channels.plan(geometry, dout.itemsize)
    if few is not None:
        few_channels.backward_data(few, dout, filters, geometry, out, threads)
        return True
    this = plan("backward_data", geometry, dout.itemsize)
    workers, job, nbytes, _ = ready = this.ready(threads)
    taps, phases, offset = this.tables
    with memory.scratch_block(nbytes) as buffer:  # Python runs between the two kernels
        scratch = ready.pieces(buffer, dout.dtype)
        turn_weights(workers if filters.size > 65536 else 1, job, taps, this.class_of_tap, filters, scratch[0])
        correlate(workers, job, taps, phases, offset, flat(dout), scratch[0], _zeros(geometry.channels, dout.dtype), False,
                  flat(out), scratch[1], scratch[2], out.nbytes >= STREAM_BYTES)
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
    weight_gradient(workers, job, *this.tables, flat(x), flat(dout), flat(out), *scratch[2:])
    return bool(finite(1, flat(out)))
