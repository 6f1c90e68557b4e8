"""Winograd's convolution in Numba: N*N multiplications for an output tile of MxM in place of M*M*R*R, N = M + R - 1.

    tiles      (N, C, H, W)                   -> V (36, C, T)      T tiles of all images
    products   U (36, K, C) @ V (36, C, T)    -> M (36, K, T)
    pixels     M (36, K, T)                   -> (N, K, OH, OW)

F(4x4, 3x3), F(3x3, 4x4) and F(2x2, 5x5), which all have N = 6, and B' from the same points 0, +-sqrt(1/2), +-sqrt(2) and
infinity; native/winograd.h has the matrices and how they follow from the points, fastconv/winograd.py which convolutions are
of this kind. Backward data is the convolution of dout, padded by R - 1 - pad, with the filters turned and their channels
exchanged.

Tiles are the lanes of vectors, in blocks of up to 64 that run on across rows and images. LLVM can't make that of loops: which
cells a tile has follows from its number. So all of it is written in vectors (vectors.py). A row of tiles is transformed along
the height first, in vectors of neighbouring cells of the image, where nothing needs to be taken apart and padding is a mask;
what comes out goes to lines in which cell j of a tile is at lane*M + j, whatever row or image the tile is of. Tiles overlap by
R - 1 cells, which the last tile of a row has to itself: so there is a second line with the next M cells of each tile (for M = 2
a third). From these lines vectors are taken apart by permutations, and transformed along the width.

`eight_by_two` is the register tile of the products, 8 output channels x 2 vectors of tiles. What it compiles to (Numba 0.68
with LLVM 22 on AVX-512; from inspect_asm):

    .loop:  vmovups (v), %zmm16; vmovups -64(v), %zmm17      two vectors of V
            vbroadcastss (u), %zmm18                         eight of them, of U
            vfmadd231ps %zmm18, %zmm16, %zmm15               16, of registers only: the sums are zmm0 to zmm15
            prefetcht0 (u,ahead)                             what comes next of U
            addq; addq; decq; cmpq; ja .loop

31 instructions, and nothing on the stack. The two vectors of V, 16 kB of 128 channels, stay in the first cache while panels of
U go past them. Where a vector is two registers (AVX2 has 16), the tile is 4 x 1. `across` is one loop of 72 instructions with
52 of vectors, without spills; `back` starts with what rows 1 and 2, and 3 and 4 of M have in common, so that 16 vectors are
alive (a few spills: 15 of some 250 instructions).

U lies in panels of as many output channels as a vector has lanes, (panel, 36, C, lanes). It is made 16 filters at a time, whose
taps are turned in registers, in one of two ways. Where all of it takes at most KEPT_BYTES, it is made once for a call, and each
worker takes blocks of tiles of its own from the image to the pixels: V of a block lies in its L2. Otherwise all workers make
the V of as many blocks as SHARED_BYTES hold, and then each makes the U of some output channels, PART_ROWS at a time, and the
pixels of these for all those blocks; if it is one block, each filter is used once, and U is made for a piece of the sum at a
time, which stays in L2. Sums are cut into pieces of at most TERMS terms in either case, and a tile's sums do not depend on the
block it is in: the same bits for any number of workers.

The last tiles of an image may have fewer than M rows of pixels. The cells that only the missing ones see can be anything, and
are taken to be such that one, two or three of the six values in a column of V vanish (tests/test_winograd.py proves it): such
tiles are the last lanes of a block, and the vectors that have no others are left out of these products. For images of 7 and 14
pixels that is one product in twelve. (Columns would be as many, but cost more than they gain: rows of tiles would be cut.)

An infinity or a NaN in a tile spoils all of its pixels, and large numbers may overflow in a transform where the definition
would not. Every pixel is looked at before the ReLU, at the price of one FMA; the caller computes the rows of tiles with such
ones again by the direct algorithm (rule 13). Lanes without a tile are not looked at.

One kernel for each M, so that nobody waits for the compilation of the others. The phases of a call are calls of it: Numba has
no barrier for its workers.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np

from .. import winograd as tiles_of
from ..geometry import Conv2dGeometry
from .common import zero
from .options import Kernel, flat, inlined, named, numba, part, prange, usable_workers, with_globals
from .vectors import (
    ask,
    evens,
    few,
    lanes_of,
    load,
    load_splat,
    load_where,
    minus,
    mixed_high,
    mixed_low,
    odds,
    plus,
    plus_product,
    relu_of,
    rolled,
    splat,
    store,
    thirds,
    times,
    turn_block,
)

N, CELLS = 6, 36     # values in a row of a transformed tile, and in all of it
BLOCK_TILES = 64     # the most tiles that go through the products together
ROWS = 8             # of a product's tile; a panel of U has as many as a vector has lanes
TERMS = 128          # of a piece of a sum
CHANNELS = 16        # that are transformed together
PART_ROWS = 32       # output channels whose products are there at a time
RUN = 5              # numbers that tell of a run of tiles
LOW = BLOCK_TILES * RUN  # where, behind all runs, the first lane of the low tiles is

# Bytes, such that a call takes less than 8 MB for each worker (with up to 2,048 channels of float32):
KEPT_BYTES = 4_900_000    # of filters that are transformed once for a call,
OWN_BYTES = 2_400_000     # of the tiles of a block beside them, or of a part's filters beside
SHARED_BYTES = 4_750_000  # the tiles that all workers share

#: Phases of a call. All workers have ended one before the next begins.
FILTERS, SHARED, PARTS, BLOCKS = range(4)

POINT_A, POINT_B = 0.5**0.5, 2**0.5

def _wide() -> bool:
    if numba.config.CPU_NAME is None and numba.config.CPU_FEATURES is None:
        return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
    return "+avx512f" in (numba.config.CPU_FEATURES or "")


#: Is a vector one register, and are there 32 of them?
WIDE = _wide()

JOB = np.dtype([(name, np.int64) for name in (
    "batch", "groups", "sources", "rows",
    "height", "width", "top", "left",    # of a source plane, and of its padding
    "out_h", "out_w",
    "tile", "filter", "step_k", "step_c", "turned",
    "tiles_h", "tiles_w", "tiles", "lanes", "blocks",  # lanes of a block
    "missing",                           # rows that the last tiles of an image have less
    "panels", "parts",                   # of all output channels
    "pieces", "at_once",                 # of a sum, and how many of them have their filters transformed together
    "u_plane", "u_panel", "v_plane", "v_block",
    "pitch",                             # of the lines that a channel is laid out in
    "none",                              # 0: for a literal one Numba would compile what it is handed to once more
    "own", "m", "lines", "pixels", "marks", "edge", "half", "room",  # where things are in a worker's scratch
)])

third_0, turn_0 = thirds(0)
third_1, turn_1 = thirds(1)
third_2, turn_2 = thirds(2)
move_8, _ = few(8)
move_4, _ = few(4)
move_2, _ = few(2)


# --- transforms of a row or column ------------------------------------------------------------------------------------


@inlined
def tile_values(like, d0, d1, d2, d3, d4, d5):
    """B' d."""
    two, half = splat(like, -2.0), splat(like, -0.5)
    some = splat(like, -2.5)
    even_a, odd_a = plus_product(d4, two, d2), plus_product(d3, two, d1)
    even_b, odd_b = plus_product(d4, half, d2), plus_product(d3, half, d1)
    return (plus_product(plus(d0, d4), some, d2), plus_product(even_a, splat(like, POINT_A), odd_a),
            plus_product(even_a, splat(like, -POINT_A), odd_a), plus_product(even_b, splat(like, POINT_B), odd_b),
            plus_product(even_b, splat(like, -POINT_B), odd_b), plus_product(plus(d1, d5), some, d3))


@inlined
def filter_values(like, g0, g1, g2, g3, g4, last):
    """G g."""
    half, two = splat(like, 0.5), splat(like, 2.0)
    even_a, odd_a = plus_product(g0, half, g2), plus_product(g1, half, g3)
    even_b, odd_b = plus_product(g0, two, g2), plus_product(g1, two, g3)
    even_a = times(plus_product(even_a, splat(like, 0.25), g4), splat(like, -1 / 1.5))
    even_b = times(plus_product(even_b, splat(like, 4.0), g4), splat(like, 1 / 6))
    a, b = splat(like, POINT_A / 1.5), splat(like, POINT_B / 6)
    minus_a, minus_b = splat(like, -POINT_A / 1.5), splat(like, -POINT_B / 6)
    return (g0, plus_product(even_a, minus_a, odd_a), plus_product(even_a, a, odd_a), plus_product(even_b, b, odd_b),
            plus_product(even_b, minus_b, odd_b), last)


@inlined
def put_six(to, at, step, values):
    """to[at + i*step:] = values[i]"""
    a, b, c, d, e, f = values
    store(to, at, a)
    store(to, at + step, b)
    store(to, at + 2 * step, c)
    store(to, at + 3 * step, d)
    store(to, at + 4 * step, e)
    store(to, at + 5 * step, f)


@inlined
def ask_six(to, at, step):
    ask(to, at)
    ask(to, at + step)
    ask(to, at + 2 * step)
    ask(to, at + 3 * step)
    ask(to, at + 4 * step)
    ask(to, at + 5 * step)


# --- filters ----------------------------------------------------------------------------------------------------------


@part
def transform_filters(job, group, panel, s0, s1, weights, u, to, half, taps):
    """Channels [s0, s1) of one panel of U, which has as many output channels as a vector has lanes: zeros beyond the last."""
    lanes = lanes_of(u)
    zeros = splat(u, 0.0)
    size, side = job.filter * job.filter, job.filter
    first = panel * lanes
    count = min(job.rows - first, lanes)
    channel = group * job.rows * job.sources * size + first * job.step_k
    zero(half, 0, N * N * lanes)
    far = (2 if job.turned else 16) * job.step_c  # what comes then is asked for
    for s in range(s0, s1):
        start = channel + s * job.step_c
        for t in range(0, size, lanes):
            if count == lanes and start + t + (lanes - 1) * job.step_k + lanes <= weights.size:
                turn_block(taps, t * lanes, lanes, weights, start + t, job.step_k, lanes)
                for i in range(lanes):
                    rolled()
                    ask(weights, start + t + i * job.step_k + far)
            else:
                for j in range(min(size - t, lanes)):
                    store(taps, (t + j) * lanes, zeros)
                    for i in range(count):
                        taps[(t + j) * lanes + i] = weights[start + t + j + i * job.step_k]
        for j in range(side):
            # taps[row][column], or turned by 180 degrees
            tap, step = (size - 1 - j, -side) if job.turned else (j, side)
            tap, step = tap * lanes, step * lanes
            g3 = load(taps, tap + 3 * step) if side > 3 else zeros
            g4 = load(taps, tap + 4 * step) if side > 4 else zeros
            values = filter_values(u, load(taps, tap), load(taps, tap + step), load(taps, tap + 2 * step), g3, g4,
                                   load(taps, tap + (side - 1) * step))
            put_six(half, j * lanes, N * lanes, values)
        for i in range(N):  # columns that a filter has not are zeros
            at = i * N * lanes
            values = filter_values(u, load(half, at), load(half, at + lanes), load(half, at + 2 * lanes),
                                   load(half, at + 3 * lanes), load(half, at + 4 * lanes), load(half, at + (side - 1) * lanes))
            at = to + i * N * job.u_plane + (s - s0) * lanes
            put_six(u, at, job.u_plane, values)


# --- tiles ------------------------------------------------------------------------------------------------------------


@part
def cut(job, block, runs):
    """Cut a block of tiles at the ends of rows of tiles: (lane, tiles, image, row, column) of each. Returns how many.

    Low tiles, those with fewer rows of pixels, come last.
    """
    begin = block * job.lanes
    last = min(begin + job.lanes, job.tiles)
    at = lane = 0
    for low in range(2):
        runs[LOW + low] = lane
        tile = begin
        while tile < last:
            row, column = tile // job.tiles_w, tile % job.tiles_w
            count = min(job.tiles_w - column, last - tile)
            tile += count
            if (low == 1) != (job.missing > 0 and row % job.tiles_h == job.tiles_h - 1):
                continue
            runs[at], runs[at + 1], runs[at + 2] = lane, count, row // job.tiles_h
            runs[at + 3], runs[at + 4] = row % job.tiles_h, column
            at += RUN
            lane += count
    return at


@inlined
def vanishes(missing, i):
    """Is value i one of those of six that are zero for a tile with so many rows less? What these alone see may be anything."""
    if missing == 3:
        return i >= 3
    return (i == 5 and missing > 0) or (i == 0 and missing == 2)


@part
def down(job, source, plane, runs, count, lines, edge):
    """Transforms one channel's rows of tiles along the height, cells of each row behind each other.

    Where tiles overlap, and rows end in the middle of a vector, the same cells have several places: lines [6*c, 6*c + 6) have
    cell c*M + j of a tile at its lane*M + j.
    """
    lanes = lanes_of(source)
    zeros = splat(source, 0.0)
    tile, pitch, width, size = job.tile, job.pitch, job.width, job.height * job.width
    for r in range(0, count, RUN):
        x0, y0 = tile * runs[r + 4] - job.left, tile * runs[r + 3] - job.top
        first = plane + runs[r + 2] * job.groups * job.sources * size + y0 * width + x0
        low = job.missing if runs[r + 3] == job.tiles_h - 1 else 0
        whole = y0 >= 0 and y0 + N <= job.height and low == 0
        to = tile * runs[r]
        for start in range(0, N, tile):
            for x in range(start, start + tile * runs[r + 1], lanes):
                at = first + x
                left, right = -x0 - x, width - x0 - x
                if whole and left <= 0 and right >= lanes:
                    values = tile_values(source, load(source, at), load(source, at + width), load(source, at + 2 * width),
                                         load(source, at + 3 * width), load(source, at + 4 * width),
                                         load(source, at + 5 * width))
                    for i in range(N):
                        rolled()
                        ask(source, at + i * width + size)
                else:
                    for i in range(N):
                        rolled()
                        if 0 <= y0 + i < job.height:
                            store(edge, i * lanes, load_where(source, at + i * width, left, right, zeros))
                        else:
                            store(edge, i * lanes, zeros)
                        ask(source, at + i * width + size)
                    if low == 2:  # such that what vanishes does
                        store(edge, 4 * lanes, minus(times(splat(source, 2.5), load(edge, 2 * lanes)), load(edge, 0)))
                    elif low == 3:
                        store(edge, 3 * lanes, times(splat(source, 0.5), load(edge, lanes)))
                        store(edge, 4 * lanes, times(splat(source, 0.5), load(edge, 2 * lanes)))
                    values = tile_values(source, load(edge, 0), load(edge, lanes), load(edge, 2 * lanes),
                                         load(edge, 3 * lanes), load(edge, 4 * lanes), load(edge, 5 * lanes))
                put_six(lines, to + x - start, pitch, values)
                if low > 0:
                    for i in range(N):
                        if vanishes(low, i):
                            store(lines, to + x - start + i * pitch, zeros)
            to += N * pitch


def _takes(tile: int) -> Any:
    @inlined
    @named(tile)
    def cells_of(lines, at, over):
        """The six cells of a row of a vector of tiles; `over` is from a line to that with the next M of them."""
        lanes = lanes_of(lines)
        if tile == 4:
            w0, w1, w2, w3 = load(lines, at), load(lines, at + lanes), load(lines, at + 2 * lanes), load(lines, at + 3 * lanes)
            e0, e1, o0, o1 = evens(w0, w1), evens(w2, w3), odds(w0, w1), odds(w2, w3)
            at += over
            w0, w1, w2, w3 = load(lines, at), load(lines, at + lanes), load(lines, at + 2 * lanes), load(lines, at + 3 * lanes)
            return (evens(e0, e1), evens(o0, o1), odds(e0, e1), odds(o0, o1), evens(evens(w0, w1), evens(w2, w3)),
                    evens(odds(w0, w1), odds(w2, w3)))
        if tile == 3:
            w0, w1, w2 = load(lines, at), load(lines, at + lanes), load(lines, at + 2 * lanes)
            at += over
            v0, v1, v2 = load(lines, at), load(lines, at + lanes), load(lines, at + 2 * lanes)
            return (third_0(w0, w1, w2), third_1(w0, w1, w2), third_2(w0, w1, w2), third_0(v0, v1, v2), third_1(v0, v1, v2),
                    third_2(v0, v1, v2))
        w0, w1, w2, w3 = load(lines, at), load(lines, at + lanes), load(lines, at + over), load(lines, at + over + lanes)
        w4, w5 = load(lines, at + 2 * over), load(lines, at + 2 * over + lanes)
        return evens(w0, w1), odds(w0, w1), evens(w2, w3), odds(w2, w3), evens(w4, w5), odds(w4, w5)

    @part
    @named(tile)
    def across(job, lines, vectors, v, to):
        """Transforms the rows of `lines` along the width: V of one channel."""
        lanes, pitch, plane = lanes_of(v), job.pitch, job.v_plane
        for t in range(0, vectors * lanes, lanes):
            at = to + t
            for i in range(N):
                d0, d1, d2, d3, d4, d5 = cells_of(lines, i * pitch + tile * t, N * pitch)
                put_six(v, at, plane, tile_values(v, d0, d1, d2, d3, d4, d5))
                ask_six(v, at + job.lanes, plane)
                at += N * plane

    @part
    @named(tile)
    def transform_tiles(job, group, block, first, last, source, v, v_at, runs, lines, edge):
        """V of some channels of one block of tiles."""
        count = cut(job, block, runs)
        lanes = lanes_of(v)
        vectors = (min(job.lanes, job.tiles - block * job.lanes) + lanes - 1) // lanes
        for c in range(first, last):
            down(job, source, (group * job.sources + c) * job.height * job.width, runs, count, lines, edge)
            across(job, lines, vectors, v, v_at + c * job.lanes)

    return across, transform_tiles


# --- products ---------------------------------------------------------------------------------------------------------


@inlined
def put(m, at, value, add):
    store(m, at, plus(value, load(m, at)) if add else value)


@inlined
def put_two(m, at, one, two, add):
    put(m, at, one, add)
    put(m, at + lanes_of(m), two, add)


@part
def eight_by_two(u, a, ahead, v, b, step, terms, m, c, row, add):
    """m[c + i*row + p] = sum over s of u[a + s*lanes + i] * v[b + s*step + p]: eight rows i, two vectors of p.

    With `add` the sum is added to what is there. What is `ahead` in U is asked for meanwhile.
    """
    lanes = lanes_of(v)
    c00 = c01 = c10 = c11 = c20 = c21 = c30 = c31 = c40 = c41 = c50 = c51 = c60 = c61 = c70 = c71 = splat(v, 0.0)
    for _ in range(terms):
        x, y = load(v, b), load(v, b + lanes)
        w = load_splat(u, a)
        c00, c01 = plus_product(c00, w, x), plus_product(c01, w, y)
        w = load_splat(u, a + 1)
        c10, c11 = plus_product(c10, w, x), plus_product(c11, w, y)
        w = load_splat(u, a + 2)
        c20, c21 = plus_product(c20, w, x), plus_product(c21, w, y)
        w = load_splat(u, a + 3)
        c30, c31 = plus_product(c30, w, x), plus_product(c31, w, y)
        w = load_splat(u, a + 4)
        c40, c41 = plus_product(c40, w, x), plus_product(c41, w, y)
        w = load_splat(u, a + 5)
        c50, c51 = plus_product(c50, w, x), plus_product(c51, w, y)
        w = load_splat(u, a + 6)
        c60, c61 = plus_product(c60, w, x), plus_product(c61, w, y)
        w = load_splat(u, a + 7)
        c70, c71 = plus_product(c70, w, x), plus_product(c71, w, y)
        ask(u, a + ahead)
        a += lanes
        b += step
    put_two(m, c, c00, c01, add)
    put_two(m, c + row, c10, c11, add)
    put_two(m, c + 2 * row, c20, c21, add)
    put_two(m, c + 3 * row, c30, c31, add)
    put_two(m, c + 4 * row, c40, c41, add)
    put_two(m, c + 5 * row, c50, c51, add)
    put_two(m, c + 6 * row, c60, c61, add)
    put_two(m, c + 7 * row, c70, c71, add)


@part
def eight_by_one(u, a, ahead, v, b, step, terms, m, c, row, add):
    """The same of one vector."""
    lanes = lanes_of(v)
    c0 = c1 = c2 = c3 = c4 = c5 = c6 = c7 = splat(v, 0.0)
    for _ in range(terms):
        x = load(v, b)
        c0, c1 = plus_product(c0, load_splat(u, a), x), plus_product(c1, load_splat(u, a + 1), x)
        c2, c3 = plus_product(c2, load_splat(u, a + 2), x), plus_product(c3, load_splat(u, a + 3), x)
        c4, c5 = plus_product(c4, load_splat(u, a + 4), x), plus_product(c5, load_splat(u, a + 5), x)
        c6, c7 = plus_product(c6, load_splat(u, a + 6), x), plus_product(c7, load_splat(u, a + 7), x)
        ask(u, a + ahead)
        a += lanes
        b += step
    put(m, c, c0, add)
    put(m, c + row, c1, add)
    put(m, c + 2 * row, c2, add)
    put(m, c + 3 * row, c3, add)
    put(m, c + 4 * row, c4, add)
    put(m, c + 5 * row, c5, add)
    put(m, c + 6 * row, c6, add)
    put(m, c + 7 * row, c7, add)


@part
def four_by_one(u, a, ahead, v, b, step, terms, m, c, row, add):
    """The same of four rows: as many as there are registers for where a vector takes two."""
    lanes = lanes_of(v)
    c0 = c1 = c2 = c3 = splat(v, 0.0)
    for _ in range(terms):
        x = load(v, b)
        c0, c1 = plus_product(c0, load_splat(u, a), x), plus_product(c1, load_splat(u, a + 1), x)
        c2, c3 = plus_product(c2, load_splat(u, a + 2), x), plus_product(c3, load_splat(u, a + 3), x)
        ask(u, a + ahead)
        a += lanes
        b += step
    put(m, c, c0, add)
    put(m, c + row, c1, add)
    put(m, c + 2 * row, c2, add)
    put(m, c + 3 * row, c3, add)


@part
def multiply(job, block, runs, p0, p1, first, last, u, u_at, v, v_at, m):
    """The products of panels [p0, p1) and one block of tiles: (36, rows, sources) @ (36, sources, tiles).

    Of pieces [first, last) of the sum, which are added to those before them; U begins with the first of them. Products that
    vanish for low tiles are made for the vectors before these.
    """
    lanes, row = lanes_of(v), CELLS * job.lanes
    all_vectors = (min(job.lanes, job.tiles - block * job.lanes) + lanes - 1) // lanes
    cut(job, block, runs)
    before = (runs[LOW + 1] + lanes - 1) // lanes
    zeros = splat(v, 0.0)
    pieces = job.pieces
    begin = job.sources * first // pieces
    for cell in range(CELLS):
        vectors = before if vanishes(job.missing, cell // N) else all_vectors
        if first == 0 and vectors < all_vectors:
            for k in range((p1 - p0) * lanes):
                for j in range(vectors, all_vectors):
                    store(m, k * row + cell * job.lanes + j * lanes, zeros)
        for piece in range(first, last):
            s0, s1 = job.sources * piece // pieces, job.sources * (piece + 1) // pieces
            j = 0
            while j < vectors:  # these of V stay in the first cache, while U comes from the second
                two = WIDE and j + 2 <= vectors
                b = v_at + cell * job.v_plane + s0 * job.lanes + j * lanes
                for panel in range(p0, p1):
                    here = u_at + (panel - p0) * job.u_panel + cell * job.u_plane + (s0 - begin) * lanes
                    ahead = job.u_panel if panel + 1 < p1 else job.u_plane - (panel - p0) * job.u_panel
                    for i in range(0, min(job.rows - panel * lanes, lanes), ROWS):
                        c = ((panel - p0) * lanes + i) * row + cell * job.lanes + j * lanes
                        if two:
                            eight_by_two(u, here + i, ahead, v, b, job.lanes, s1 - s0, m, c, row, piece > 0)
                        elif WIDE:
                            eight_by_one(u, here + i, ahead, v, b, job.lanes, s1 - s0, m, c, row, piece > 0)
                        else:
                            for k in range(0, ROWS, 4):
                                four_by_one(u, here + i + k, ahead, v, b, job.lanes, s1 - s0, m, c + k * row, row, piece > 0)
                j += 2 if two else 1


# --- pixels -----------------------------------------------------------------------------------------------------------


@part
def put_cells(out, to, pixels, at, count):
    """out[to:to + count] = pixels[at:at + count]"""
    lanes = lanes_of(out)
    while count >= lanes:
        store(out, to, load(pixels, at))
        to += lanes
        at += lanes
        count -= lanes
    if count & 8:
        move_8(out, to, pixels, at)
        to += 8
        at += 8
    if count & 4:
        move_4(out, to, pixels, at)
        to += 4
        at += 4
    if count & 2:
        move_2(out, to, pixels, at)
        to += 2
        at += 2
    if count & 1:
        out[to] = pixels[at]


def _gives(tile: int) -> Any:
    @inlined
    @named(tile)
    def pixels_of(like, x0, sum_a, difference_a, sum_b, difference_b, x5):
        """A' x, as many of the four as there are pixels. What is made of x1 and x2, and of x3 and x4, comes as that."""
        y0 = plus(plus(x0, sum_a), sum_b)
        y1 = plus_product(times(splat(like, POINT_A), difference_a), splat(like, POINT_B), difference_b)
        y2 = plus_product(times(splat(like, 0.5), sum_a), splat(like, 2.0), sum_b)
        y3 = plus_product(plus_product(x5, splat(like, POINT_A / 2), difference_a), splat(like, 2 * POINT_B), difference_b)
        if tile == 2:
            y1 = plus(y1, x5)
        if tile == 3:
            y2 = plus(y2, x5)
        return y0, y1, y2, y3

    @inlined
    @named(tile)
    def row(m, at, plane):
        x1, x2, x3, x4 = load(m, at + plane), load(m, at + 2 * plane), load(m, at + 3 * plane), load(m, at + 4 * plane)
        return pixels_of(m, load(m, at), plus(x1, x2), minus(x1, x2), plus(x3, x4), minus(x3, x4), load(m, at + 5 * plane))

    @inlined
    @named(tile)
    def finish(pixels, to, y0, y1, y2, y3, add, relu, bad):
        """One row of pixels of a vector of tiles. `bad` becomes NaN from the first infinity or NaN on."""
        lanes = lanes_of(pixels)
        zeros = splat(pixels, 0.0)
        y0, y1 = plus(y0, add), plus(y1, add)
        bad = plus_product(plus_product(bad, y0, zeros), y1, zeros)
        if relu:
            y0, y1 = relu_of(y0), relu_of(y1)
        if tile > 2:
            y2 = plus(y2, add)
            bad = plus_product(bad, y2, zeros)
            if relu:
                y2 = relu_of(y2)
        if tile > 3:
            y3 = plus(y3, add)
            bad = plus_product(bad, y3, zeros)
            if relu:
                y3 = relu_of(y3)
        if tile == 4:
            a, b, c, d = mixed_low(y0, y2), mixed_high(y0, y2), mixed_low(y1, y3), mixed_high(y1, y3)
            store(pixels, to, mixed_low(a, c))
            store(pixels, to + lanes, mixed_high(a, c))
            store(pixels, to + 2 * lanes, mixed_low(b, d))
            store(pixels, to + 3 * lanes, mixed_high(b, d))
        elif tile == 3:
            store(pixels, to, turn_0(y0, y1, y2))
            store(pixels, to + lanes, turn_1(y0, y1, y2))
            store(pixels, to + 2 * lanes, turn_2(y0, y1, y2))
        else:
            store(pixels, to, mixed_low(y0, y1))
            store(pixels, to + lanes, mixed_high(y0, y1))
        return bad

    @part
    @named(tile)
    def back(m, at, plane, vectors, pixels, line, bias, channel, relu, marks):
        """The pixels of one output channel of a block, M lines. marks[t] becomes NaN where one of a tile is not finite.

        Along the width first, and then of rows 1 and 2, and 3 and 4, what all rows of pixels are made of.
        """
        lanes = lanes_of(m)
        add = load_splat(bias, channel)
        for t in range(0, vectors * lanes, lanes):
            x, to = at + t, tile * t
            p0, p1, p2, p3 = row(m, x + N * plane, plane)
            q0, q1, q2, q3 = row(m, x + 2 * N * plane, plane)
            p0, q0, p1, q1 = plus(p0, q0), minus(p0, q0), plus(p1, q1), minus(p1, q1)
            p2, q2, p3, q3 = plus(p2, q2), minus(p2, q2), plus(p3, q3), minus(p3, q3)
            r0, r1, r2, r3 = row(m, x + 3 * N * plane, plane)
            s0, s1, s2, s3 = row(m, x + 4 * N * plane, plane)
            r0, s0, r1, s1 = plus(r0, s0), minus(r0, s0), plus(r1, s1), minus(r1, s1)
            r2, s2, r3, s3 = plus(r2, s2), minus(r2, s2), plus(r3, s3), minus(r3, s3)
            o0, o1, o2, o3 = row(m, x, plane)
            t0, t1, t2, t3 = row(m, x + 5 * N * plane, plane)
            a0, b0, c0, d0 = pixels_of(m, o0, p0, q0, r0, s0, t0)
            a1, b1, c1, d1 = pixels_of(m, o1, p1, q1, r1, s1, t1)
            a2, b2, c2, d2 = pixels_of(m, o2, p2, q2, r2, s2, t2)
            a3, b3, c3, d3 = pixels_of(m, o3, p3, q3, r3, s3, t3)
            bad = finish(pixels, to, a0, a1, a2, a3, add, relu, load(marks, t))
            bad = finish(pixels, to + line, b0, b1, b2, b3, add, relu, bad)
            if tile > 2:
                bad = finish(pixels, to + 2 * line, c0, c1, c2, c3, add, relu, bad)
            if tile > 3:
                bad = finish(pixels, to + 3 * line, d0, d1, d2, d3, add, relu, bad)
            store(marks, t, bad)

    @part
    @named(tile)
    def transform_back(job, group, block, k0, k1, m, runs, pixels, marks, bias, relu, out, spoiled):
        """The pixels of output channels [k0, k1) of one block of tiles."""
        lanes, line = lanes_of(m), tile * job.lanes
        vectors = (min(job.lanes, job.tiles - block * job.lanes) + lanes - 1) // lanes
        count = cut(job, block, runs)
        zero(marks, 0, job.lanes)
        for k in range(k0, k1):
            at, channel = (k - k0) * CELLS * job.lanes, group * job.rows + k
            back(m, at, job.lanes, vectors, pixels, line, bias, channel, relu, marks)
            for r in range(0, count, RUN):
                y, x = tile * runs[r + 3], tile * runs[r + 4]
                to = ((runs[r + 2] * job.groups * job.rows + channel) * job.out_h + y) * job.out_w + x
                cells = min(tile * runs[r + 1], job.out_w - x)
                for i in range(min(tile, job.out_h - y)):
                    put_cells(out, to + i * job.out_w, pixels, i * line + tile * runs[r], cells)
        for r in range(0, count, RUN):
            for t in range(runs[r], runs[r] + runs[r + 1]):
                if marks[t] != 0:
                    spoiled[runs[r + 2] * job.tiles_h + runs[r + 3]] = 1

    return back, transform_back, row


# --- the whole --------------------------------------------------------------------------------------------------------


def _phases(tile: int) -> Any:
    (across, transform_tiles), (back, transform_back, row) = _takes(tile), _gives(tile)

    @part
    @named(tile)
    def one_phase(job, worker, workers, phase, group, first, last, source, weights, bias, relu, out, spoiled, u, v, scratch,
                  pieces):
        """What one worker does in a phase for one group; of blocks [first, last) of tiles."""
        own = scratch[worker * job.own:(worker + 1) * job.own]
        m, lines, pixels = own[:job.m], own[job.m:job.lines], own[job.lines:job.pixels]
        marks, edge, half = own[job.pixels:job.marks], own[job.marks:job.edge], own[job.edge:job.half]
        taps, room = own[job.half:job.room], own[job.room:]
        runs = pieces[worker * (LOW + 2):(worker + 1) * (LOW + 2)]
        if phase == FILTERS:
            for panel in range(job.panels * worker // workers, job.panels * (worker + 1) // workers):
                transform_filters(job, group, panel, job.none, job.sources, weights, u, panel * job.u_panel, half, taps)
        elif phase == SHARED:
            zero(lines, 0, job.lines - job.m)
            each = (job.sources + CHANNELS - 1) // CHANNELS
            items = (last - first) * each
            for item in range(items * worker // workers, items * (worker + 1) // workers):
                block, c = item // each, item % each * CHANNELS
                transform_tiles(job, group, first + block, c, min(c + CHANNELS, job.sources), source, v, block * job.v_block,
                                runs, lines, edge)
        elif phase == PARTS:
            for item in range(job.parts * worker // workers, job.parts * (worker + 1) // workers):
                p0, p1 = job.panels * item // job.parts, job.panels * (item + 1) // job.parts
                k0, k1 = p0 * lanes_of(v), min(p1 * lanes_of(v), job.rows)
                for piece in range(0, job.pieces, job.at_once):  # one after the other for a single block of tiles only
                    end = piece + job.at_once
                    s0, s1 = job.sources * piece // job.pieces, job.sources * end // job.pieces
                    for panel in range(p0, p1):
                        transform_filters(job, group, panel, s0, s1, weights, room, (panel - p0) * job.u_panel, half, taps)
                    for block in range(first, last):
                        multiply(job, block, runs, p0, p1, piece, end, room, job.none, v, (block - first) * job.v_block, m)
                        if end == job.pieces:
                            transform_back(job, group, block, k0, k1, m, runs, pixels, marks, bias, relu, out, spoiled)
        else:
            zero(lines, 0, job.lines - job.m)
            for block in range(first + (last - first) * worker // workers, first + (last - first) * (worker + 1) // workers):
                transform_tiles(job, group, block, job.none, job.sources, source, room, job.none, runs, lines, edge)
                for item in range(job.parts):
                    p0, p1 = job.panels * item // job.parts, job.panels * (item + 1) // job.parts
                    k0, k1 = p0 * lanes_of(v), min(p1 * lanes_of(v), job.rows)
                    multiply(job, block, runs, p0, p1, job.none, job.pieces, u, p0 * job.u_panel, room, job.none, m)
                    transform_back(job, group, block, k0, k1, m, runs, pixels, marks, bias, relu, out, spoiled)

    return across, back, one_phase, row


((across_2, back_2, phases_2, _), (across_3, back_3, phases_3, gives_3), (across_4, back_4, phases_4, _)) = (
    _phases(m) for m in (2, 3, 4))


one_phase: Any = None  # each kernel has its own


def _convolve(workers, jobs, phase, group, first, last, source, weights, bias, relu, out, spoiled, u, v, scratch, pieces):
    for worker in prange(workers):
        job = jobs[0]  # in here: Numba can't hand a record over to the threads
        one_phase(job, worker, workers, phase, group, first, last, source, weights, bias, relu, out, spoiled, u, v, scratch,
                  pieces)


#: By the size of tiles: one is compiled without the others.
KERNELS = {m: Kernel(with_globals(_convolve, f"convolve_{m}", one_phase=phases))
           for m, phases in ((2, phases_2), (3, phases_3), (4, phases_4))}


# --- plans ------------------------------------------------------------------------------------------------------------


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class Plan(NamedTuple):
    """A job for so many workers, and how its scratch is cut: bytes of U, V, all workers' own, their runs, flags."""

    workers: int
    job: np.ndarray
    apart: bool
    together: int
    sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(self.sizes)


@lru_cache(maxsize=256)
def plan(operation: str, geometry: Conv2dGeometry, itemsize: int, workers: int) -> Plan:
    """What follows from the geometry."""
    line = 64 // itemsize  # cells of a line of cache, and lanes
    job = dict.fromkeys(JOB.names or (), 0)
    taps = geometry.kernel[0]
    tile = tiles_of.largest_tile(geometry)
    filters, channels = geometry.out_channels // geometry.groups, geometry.channels // geometry.groups
    if operation == "backward_data":  # a convolution of dout, with the filters turned and their channels exchanged
        sources, rows = filters, channels
        job.update(height=geometry.out_size[0], width=geometry.out_size[1], out_h=geometry.in_size[0],
                   out_w=geometry.in_size[1], top=taps - 1 - geometry.pads[0][0], left=taps - 1 - geometry.pads[1][0],
                   step_k=geometry.taps, step_c=channels * geometry.taps, turned=1)
    else:
        sources, rows = channels, filters
        job.update(height=geometry.in_size[0], width=geometry.in_size[1], out_h=geometry.out_size[0],
                   out_w=geometry.out_size[1], top=geometry.pads[0][0], left=geometry.pads[1][0],
                   step_k=channels * geometry.taps, step_c=geometry.taps)
    tiles_h, tiles_w = _ceil_div(job["out_h"], tile), _ceil_div(job["out_w"], tile)
    tiles = geometry.batch * tiles_h * tiles_w
    panels = _ceil_div(rows, line)
    u_plane = sources * line + line  # a line more than a power of two: else planes share sets of the cache
    u_bytes = panels * CELLS * u_plane * itemsize

    def v_block(lanes: int) -> int:
        return CELLS * (sources * lanes + line)

    lanes = min(BLOCK_TILES, max(_ceil_div(tiles, line), 1) * line)
    apart = u_bytes <= KEPT_BYTES
    while lanes > line and (v_block(lanes) * itemsize > (OWN_BYTES if apart else SHARED_BYTES)
                            or (apart and _ceil_div(tiles, lanes) < 2 * workers)):
        lanes = _ceil_div(lanes // 2, line) * line
    blocks = _ceil_div(tiles, lanes)
    if blocks < workers or v_block(lanes) * itemsize > OWN_BYTES or tiles * rows < u_bytes // itemsize // CELLS:
        apart = False
    together = 1 if apart else max(min(SHARED_BYTES // (v_block(lanes) * itemsize), blocks), 1)
    pieces = _ceil_div(sources, TERMS)
    at_once = pieces
    if not apart and together == 1:  # then filters are used once, and lie in L2 until then
        at_once = 1
        u_plane = (_ceil_div(sources, pieces) + 1) * line
    panel_rows = PART_ROWS
    if not apart:
        panel_rows = min(panel_rows, max(OWN_BYTES // (CELLS * u_plane * itemsize), 1) * line)
        if workers > 1:
            panel_rows = min(panel_rows, max(_ceil_div(panels, 2 * workers), 1) * line)
    each = max(panel_rows // line, 1)
    parts = _ceil_div(panels, each)
    each = _ceil_div(panels, parts)
    pitch = tile * lanes + line
    m = each * line * CELLS * lanes
    lines = m + _ceil_div(N, tile) * N * pitch
    pixels = lines + tile * tile * lanes
    marks = pixels + lanes
    edge = marks + N * line
    half = edge + N * N * line
    room = half + _ceil_div(geometry.taps, line) * line * line
    own = room + (v_block(lanes) if apart else each * CELLS * u_plane)
    job.update(batch=geometry.batch, groups=geometry.groups, sources=sources, rows=rows, tile=tile, filter=taps,
               tiles_h=tiles_h, tiles_w=tiles_w, tiles=tiles, missing=tiles_h * tile - job["out_h"], lanes=lanes,
               blocks=blocks, panels=panels, parts=parts, pieces=pieces, at_once=at_once, u_plane=u_plane,
               u_panel=CELLS * u_plane, v_plane=sources * lanes + line, v_block=v_block(lanes), pitch=pitch,
               own=_ceil_div(own, line) * line, m=m, lines=lines, pixels=pixels, marks=marks, edge=edge, half=half, room=room)
    sizes = [u_bytes if apart else 0, 0 if apart else together * v_block(lanes) * itemsize, workers * job["own"] * itemsize,
             workers * (LOW + 2) * 8, geometry.batch * tiles_h]
    return Plan(workers, np.array([tuple(job[name] for name in JOB.names or ())], JOB), apart, together,
                tuple(_ceil_div(size, 64) * 64 for size in sizes))


def workspace(operation: str, geometry: Conv2dGeometry, itemsize: int, threads: int) -> int:
    """Bytes of scratch that an operation needs."""
    return plan(operation, geometry, itemsize, usable_workers(threads)).nbytes


@lru_cache(maxsize=64)
def _zeros(count: int, dtype: np.dtype) -> np.ndarray:
    return np.zeros(count, dtype)


def convolution(operation: str, source: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, relu: bool,
                geometry: Conv2dGeometry, out: np.ndarray, work: np.ndarray, threads: int) -> np.ndarray | None:
    """conv2d of x, or its gradient from dout, of float32 or float64 arrays into `out`, in scratch `work`.

    Returns None, or (batch, rows of tiles) flags: where one is set, something is not finite, and these rows of `out` are not
    what the definition gives.
    """
    this = plan(operation, geometry, source.itemsize, usable_workers(threads))
    job, dtype, first = this.job[0], source.dtype, 0
    workers, batch, blocks, panels, parts = this.workers, *(int(job[name]) for name in ("batch", "blocks", "panels", "parts"))
    if blocks == 0:
        return None
    pieces = []
    for nbytes in this.sizes:
        pieces.append(work[first:first + nbytes])
        first += nbytes
    spoiled = pieces[4][:batch * int(job["tiles_h"])]
    spoiled[:] = 0
    convolve = KERNELS[int(job["tile"])]
    arrays = (flat(source), flat(weight), _zeros(out.shape[1], dtype) if bias is None else flat(bias), relu, flat(out), spoiled,
              *(piece.view(dtype) for piece in pieces[:3]), pieces[3].view(np.int64))
    for group in range(geometry.groups):
        if this.apart:
            convolve(min(workers, panels), this.job, FILTERS, group, 0, 0, *arrays)
            convolve(min(workers, blocks), this.job, BLOCKS, group, 0, blocks, *arrays)
            continue
        for begin in range(0, blocks, this.together):
            end = min(begin + this.together, blocks)
            convolve(workers, this.job, SHARED, group, begin, end, *arrays)
            convolve(min(workers, parts), this.job, PARTS, group, begin, end, *arrays)
    return spoiled.reshape(batch, -1).copy() if spoiled.any() else None
