"""The gradient of filters by Winograd's F(3x3, 4x4) in Numba: 36 multiplications where the definition does 144.

    tiles      x (N, C, H, W)        -> V (36, T, C)    6x6 cells, 4 apart
               dout (N, K, OH, OW)   -> G (36, T, K)    4x4 cells
    products   G (36, T, K)' @ V (36, T, C) -> M (36, K, C)
    filters    M (36, K, C)          -> dw (K, C, 3, 3)

A sum over tiles, so that lanes are channels here (those of tiles in winograd.py): a vector of planes is turned, a row of tiles
at a time, then transformed along the height, then along the width. Short tiles, where the sizes are no multiples of 4, are put
at the ends of a block: what vanishes of them is left out of the products, by rows and by columns of tiles. Of 14x14 pixels
that is a sixth of all multiplications.

T is cut into blocks whose V and G take at most GRADIENT_BYTES. All workers make these together, each of vectors of channels,
and then each the products and the filters of blocks of K and C, whose M lies in its L2. V lies in panels of two vectors and G
of one, (panel, 36, T, lanes): with winograd.py's register tile, 8 x 2 vectors, two vectors of V (16 kB of TERMS tiles) stay in
the first cache while G's panels go past them. Blocks of tiles are added up in dw. None of it depends on the number of workers,
but for the size of the blocks of K and C, which no sum depends on.

Filters of 4x4 and 5x5 are four of 3x3 that begin 3 taps apart: x, moved by as much, is taken for four times as many channels,
whose tiles of dout are the same. For 5x5 taps that is 36 multiplications for 100, with a part of them for taps that are not
there. With strides, x comes as its phases (fastconv/winograd.py), of which each has a filter of its own.

An infinity or a NaN spoils the whole sum, nearly as by the definition: the caller makes it anew where there is one in dw
(rule 13).
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..geometry import Conv2dGeometry
from .costs import tiles_of_a_block
from .direct import finite
from .options import Kernel, flat, part, prange, usable_workers
from .vectors import ask, lanes_of, load, load_where, minus, plus, rolled, splat, store, store_first, times, turn_block
from .winograd import (
    CELLS,
    ROWS,
    TERMS,
    WIDE,
    N,
    Plan,
    eight_by_one,
    eight_by_two,
    filter_values,
    four_by_one,
    gives_3,
    put_six,
    tile_values,
    vanishes,
)

TILE, TAPS = 4, 3  # cells of a row of dout in a tile; rows of a filter, or of a part of one
BLOCK_CHANNELS = 64  # of K and of C in a block, whose M is 0.6 MB of float32
RUN = 7              # numbers that tell of a row of tiles
NARROW, WHOLE, LOW, BOTH, END = range(5)  # kinds of tiles in the order in which they lie in a block

#: Phases of a call. All workers have ended one before the next begins.
TILES, FILTERS = range(2)

JOB = np.dtype([(name, np.int64) for name in (
    "groups", "sources", "rows",
    "filter", "shifts",                  # rows of a filter, and how many parts there are of them
    "height", "width", "top", "left", "out_h", "out_w",
    "tiles_h", "tiles_w", "tiles", "block",  # tiles of a block
    "missing_h", "missing_w",            # cells that the last tiles have less
    "v_plane", "v_panel", "g_plane", "g_panel",
    "k_panels", "c_panels", "k_parts", "c_parts",
    "panels",                            # of the channels of x; c_panels are those of all parts of filters
    "m_plane",                           # channels of C in a block
    "pitch",                             # cells of a row of a strip
    "own", "m", "strip", "edge", "taps",  # where things are in a worker's scratch
    "runs",
)])


# --- tiles ------------------------------------------------------------------------------------------------------------


@part
def kinds(job, begin, last, runs):
    """Cut the tiles [begin, last) into rows: (place, tiles, place of a narrow one or -1, image, row, column, low) of each.

    Returns how many, and where the kinds begin.
    """
    narrow = whole = low = both = 0
    tile = begin
    while tile < last:
        row, column = tile // job.tiles_w, tile % job.tiles_w
        count = min(job.tiles_w - column, last - tile)
        short = 1 if job.missing_w > 0 and column + count == job.tiles_w else 0
        if job.missing_h > 0 and row % job.tiles_h == job.tiles_h - 1:
            low, both = low + count - short, both + short
        else:
            whole, narrow = whole + count - short, narrow + short
        tile += count
    begins = (0, narrow, narrow + whole, narrow + whole + low, narrow + whole + low + both)
    narrow, whole, low, both = begins[NARROW], begins[WHOLE], begins[LOW], begins[BOTH]
    tile, found = begin, 0
    while tile < last:
        row, column = tile // job.tiles_w, tile % job.tiles_w
        count = min(job.tiles_w - column, last - tile)
        short = 1 if job.missing_w > 0 and column + count == job.tiles_w else 0
        is_low = job.missing_h > 0 and row % job.tiles_h == job.tiles_h - 1
        at = found * RUN
        runs[at], runs[at + 1], runs[at + 2] = low if is_low else whole, count - short, -1
        if short:
            runs[at + 2] = both if is_low else narrow
        runs[at + 3], runs[at + 4], runs[at + 5] = row // job.tiles_h, row % job.tiles_h, column
        runs[at + 6] = 1 if is_low else 0
        if is_low:
            low, both = low + count - short, both + short
        else:
            whole, narrow = whole + count - short, narrow + short
        tile += count
        found += 1
    return found, begins


@part
def turn_strip(source, plane, step, count, height, width, y, x, rows, cells, ahead, strip, pitch, edge):
    """strip[(i*pitch + j)*lanes + c] = cell (y + i, x + j) of plane c of `count`, which lie `step` apart; zeros elsewhere.

    What is `ahead` is asked for meanwhile: planes are too far apart for the processor to see what comes.
    """
    lanes = lanes_of(source)
    zeros = splat(source, 0.0)
    for i in range(rows):
        for j in range(0, cells, lanes):
            to = (i * pitch + j) * lanes
            first, stop, at = -x - j, width - x - j, plane + (y + i) * width + x + j
            if y + i < 0 or y + i >= height or stop <= 0:
                for k in range(min(cells - j, lanes)):
                    rolled()
                    store(strip, to + k * lanes, zeros)
                continue
            for c in range(count):
                rolled()
                ask(source, at + c * step + ahead)
            if first <= 0 and stop >= lanes and count == lanes and at + (lanes - 1) * step + lanes <= source.size:
                turn_block(strip, to, lanes, source, at, step, lanes)
            else:
                for c in range(count):
                    rolled()
                    store(edge, c * lanes, load_where(source, at + c * step, first, stop, zeros))
                turn_block(strip, to, lanes, edge, 0, lanes, count)


@part
def tiles_of_x(job, group, c0, down, right, runs, r0, r1, x, v, to, strip, edge):
    """V of a vector of channels, from c0 of a group on, of rows of tiles [r0, r1), which begin so many cells further."""
    lanes, plane, pitch = lanes_of(x), job.v_plane, job.pitch
    size, line = job.height * job.width, pitch * lanes
    count = min(lanes, job.sources - c0)
    two_and_a_half, half = splat(x, 2.5), splat(x, 0.5)
    for r in range(r0 * RUN, r1 * RUN, RUN):
        tiles = runs[r + 1] + (1 if runs[r + 2] >= 0 else 0)
        cells = TILE * tiles + 2
        first = ((runs[r + 3] * job.groups + group) * job.sources + c0) * size
        turn_strip(x, first, size, count, job.height, job.width, TILE * runs[r + 4] - job.top + down,
                   TILE * runs[r + 5] - job.left + right, N, cells, TILE * job.width, strip, pitch, edge)
        missing = job.missing_h if runs[r + 6] else 0
        for at in range(0, cells * lanes, lanes):
            d0, d1, d2 = load(strip, at), load(strip, at + line), load(strip, at + 2 * line)
            d3, d4, d5 = load(strip, at + 3 * line), load(strip, at + 4 * line), load(strip, at + 5 * line)
            if missing == 2:  # such that what vanishes does
                d4 = minus(times(two_and_a_half, d2), d0)
            elif missing == 3:
                d3, d4 = times(half, d1), times(half, d2)
            put_six(strip, at, line, tile_values(x, d0, d1, d2, d3, d4, d5))
        for t in range(tiles):
            narrow = t == runs[r + 1]
            at = to + (runs[r + 2] if narrow else runs[r] + t) * 2 * lanes
            missing = job.missing_w if narrow else 0
            for i in range(N):
                cell = i * line + TILE * t * lanes
                d0, d1, d2 = load(strip, cell), load(strip, cell + lanes), load(strip, cell + 2 * lanes)
                d3, d4, d5 = load(strip, cell + 3 * lanes), load(strip, cell + 4 * lanes), load(strip, cell + 5 * lanes)
                if missing == 2:
                    d4 = minus(times(two_and_a_half, d2), d0)
                elif missing == 3:
                    d3, d4 = times(half, d1), times(half, d2)
                put_six(v, at + i * N * plane, plane, tile_values(x, d0, d1, d2, d3, d4, d5))


@part
def tiles_of_dout(job, group, k0, runs, r0, r1, dout, g, to, strip, edge):
    """G of a vector of output channels, likewise."""
    lanes, plane, pitch = lanes_of(dout), job.g_plane, job.pitch
    size, line = job.out_h * job.out_w, pitch * lanes
    count = min(lanes, job.rows - k0)
    zeros = splat(dout, 0.0)
    for r in range(r0 * RUN, r1 * RUN, RUN):
        tiles = runs[r + 1] + (1 if runs[r + 2] >= 0 else 0)
        turn_strip(dout, ((runs[r + 3] * job.groups + group) * job.rows + k0) * size, size, count, job.out_h, job.out_w,
                   TILE * runs[r + 4], TILE * runs[r + 5], TILE, TILE * tiles, TILE * job.out_w, strip, pitch, edge)
        for at in range(0, TILE * tiles * lanes, lanes):
            g0, g1, g2, g3 = load(strip, at), load(strip, at + line), load(strip, at + 2 * line), load(strip, at + 3 * line)
            put_six(strip, at, line, filter_values(dout, g0, g1, g2, g3, zeros, g3))
        for t in range(tiles):
            at = to + (runs[r + 2] if t == runs[r + 1] else runs[r] + t) * lanes
            for i in range(N):
                cell = i * line + TILE * t * lanes
                g0, g1, g2 = load(strip, cell), load(strip, cell + lanes), load(strip, cell + 2 * lanes)
                g3 = load(strip, cell + 3 * lanes)
                put_six(g, at + i * N * plane, plane, filter_values(dout, g0, g1, g2, g3, zeros, g3))


# --- products and filters ---------------------------------------------------------------------------------------------


@part
def sum_tiles(job, begins, k0, k1, c0, c1, g, v, m):
    """M of panels [k0, k1) of K and [c0, c1) of C: (36, T, K)' @ (36, T, C), without what vanishes."""
    lanes, plane = lanes_of(v), job.m_plane
    row = CELLS * plane
    for cell in range(CELLS):
        first, stop = begins[NARROW], begins[END]
        if vanishes(job.missing_w, cell % N):
            first, stop = begins[WHOLE], begins[BOTH]
        if vanishes(job.missing_h, cell // N):
            stop = begins[LOW]
        pieces = max((stop - first + TERMS - 1) // TERMS, 1)
        for piece in range(pieces):
            t0, t1 = first + (stop - first) * piece // pieces, first + (stop - first) * (piece + 1) // pieces
            for c in range(c0, c1):
                vectors = 2 if job.sources > (2 * (c % job.panels) + 1) * lanes else 1
                for j in range(0, vectors, 2 if WIDE else 1):
                    b = c * job.v_panel + cell * job.v_plane + t0 * 2 * lanes + j * lanes
                    for k in range(k0, k1):
                        a = k * job.g_panel + cell * job.g_plane + t0 * lanes
                        ahead = job.g_panel if k + 1 < k1 else (t1 - t0) * lanes - (k - k0) * job.g_panel
                        for i in range(0, min(job.rows - k * lanes, lanes), ROWS):
                            to = ((k - k0) * lanes + i) * row + cell * plane + (2 * (c - c0) + j) * lanes
                            if WIDE and vectors == 2:
                                eight_by_two(g, a + i, ahead, v, b, 2 * lanes, t1 - t0, m, to, row, piece > 0)
                            elif WIDE:
                                eight_by_one(g, a + i, ahead, v, b, 2 * lanes, t1 - t0, m, to, row, piece > 0)
                            else:
                                for h in range(0, ROWS, 4):
                                    four_by_one(g, a + i + h, ahead, v, b, 2 * lanes, t1 - t0, m, to + h * row, row, piece > 0)


@part
def filters_of(job, m, k, c, count, down, right, taps, dw, at, add):
    """dw[at:] = the filters of output channel k and of `count` channels, at most lanes, from c of the block on.

    A part of them from tap (down, right) on. With `add` plus what is there.
    """
    lanes, plane, side = lanes_of(m), job.m_plane, job.filter
    line = N * lanes
    for j in range(N):
        x = (k * CELLS + j) * plane + c
        y0, y1, y2, _ = gives_3(m, x, N * plane)
        store(taps, j * lanes, y0)
        store(taps, line + j * lanes, y1)
        store(taps, 2 * line + j * lanes, y2)
    first = TAPS * line  # of vectors of the same tap
    for i in range(TAPS):
        y0, y1, y2, _ = gives_3(taps, i * line, lanes)
        to = first + TAPS * i * lanes
        store(taps, to, y0)
        store(taps, to + lanes, y1)
        store(taps, to + 2 * lanes, y2)
    size = side * side
    if side == TAPS and size <= lanes:  # turned in registers; the ends that are too long are overwritten by the next channels
        turned, end = first + size * lanes, at + size * count
        turn_block(taps, turned, size, taps, first, lanes, size)
        for q in range(0, size * count, lanes):
            value = load(taps, turned + q)
            if add:
                value = plus(value, load_where(dw, at + q, 0, end - at - q, splat(dw, 0.0)))
            store_first(dw, at + q, value, size * count - q, end)
        return
    for j in range(count):
        for i in range(min(TAPS, side - down)):
            to, cell = at + j * size + (down + i) * side + right, first + TAPS * i * lanes + j
            for t in range(min(TAPS, side - right)):
                dw[to + t] = taps[cell + t * lanes] + dw[to + t] if add else taps[cell + t * lanes]


@Kernel
def add_gradients(workers, jobs, phase, group, first, more, x, dout, dw, v, g, scratch, pieces):
    """One phase of a block of tiles, of the `first` and those after it, for one group; with `more` it is added to dw."""
    for worker in prange(workers):
        job = jobs[0]  # in here: Numba can't hand a record over to the threads
        own = scratch[worker * job.own:(worker + 1) * job.own]
        m, strip, edge, taps = own[:job.m], own[job.m:job.strip], own[job.strip:job.edge], own[job.edge:job.taps]
        runs = pieces[worker * job.runs:(worker + 1) * job.runs]
        lanes = lanes_of(dw)
        count, begins = kinds(job, first, min(first + job.block, job.tiles), runs)
        if phase == TILES:
            of_x, of_dout = (job.sources + lanes - 1) // lanes, (job.rows + lanes - 1) // lanes
            of_all = of_x * job.shifts * job.shifts
            cuts = min(count, 4)
            items = (of_all + of_dout) * cuts
            for item in range(items * worker // workers, items * (worker + 1) // workers):
                vector, cut = item // cuts, item % cuts
                r0, r1 = count * cut // cuts, count * (cut + 1) // cuts
                if vector < of_all:
                    shift, vector = vector // of_x, vector % of_x
                    tiles_of_x(job, group, vector * lanes, TAPS * (shift // job.shifts), TAPS * (shift % job.shifts), runs, r0,
                               r1, x, v, (shift * job.panels + vector // 2) * job.v_panel + vector % 2 * lanes, strip, edge)
                else:
                    vector -= of_all
                    tiles_of_dout(job, group, vector * lanes, runs, r0, r1, dout, g, vector * job.g_panel, strip, edge)
        else:
            items = job.k_parts * job.c_parts
            for item in range(items * worker // workers, items * (worker + 1) // workers):
                i, j = item // job.c_parts, item % job.c_parts
                k0, k1 = job.k_panels * i // job.k_parts, job.k_panels * (i + 1) // job.k_parts
                c0, c1 = job.c_panels * j // job.c_parts, job.c_panels * (j + 1) // job.c_parts
                sum_tiles(job, begins, k0, k1, c0, c1, g, v, m)
                for k in range(k0 * lanes, min(k1 * lanes, job.rows)):
                    for vector in range(2 * c0, 2 * c1):
                        shift, c = vector // (2 * job.panels), vector % (2 * job.panels) * lanes
                        if c < job.sources:
                            at = ((group * job.rows + k) * job.sources + c) * job.filter * job.filter
                            filters_of(job, m, k - k0 * lanes, (vector - 2 * c0) * lanes, min(lanes, job.sources - c),
                                       TAPS * (shift // job.shifts), TAPS * (shift % job.shifts), taps, dw, at,
                                       more or first > 0)


# --- plans ------------------------------------------------------------------------------------------------------------


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@lru_cache(maxsize=256)
def plan(geometry: Conv2dGeometry, itemsize: int, workers: int) -> Plan:
    """What follows from the geometry."""
    line = 64 // itemsize  # cells of a line of cache, and lanes
    sources, rows = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    out_h, out_w = geometry.out_size
    tiles_h, tiles_w = _ceil_div(out_h, TILE), _ceil_div(out_w, TILE)
    tiles = geometry.batch * tiles_h * tiles_w
    shifts = _ceil_div(geometry.kernel[0], TAPS)
    k_panels, panels = _ceil_div(rows, line), _ceil_div(sources, 2 * line)
    c_panels = shifts * shifts * panels
    blocks = _ceil_div(tiles, tiles_of_a_block(geometry, itemsize))
    block = _ceil_div(tiles, blocks) if blocks else 1
    k_parts, c_parts = _ceil_div(k_panels * line, BLOCK_CHANNELS), _ceil_div(2 * c_panels * line, BLOCK_CHANNELS)
    while workers > 1 and k_parts * c_parts < 4 * workers and (k_parts < k_panels or c_parts < c_panels):
        if c_parts < c_panels and (k_parts == k_panels or c_panels * k_parts >= k_panels * c_parts):
            c_parts = min(2 * c_parts, c_panels)
        else:
            k_parts = min(2 * k_parts, k_panels)
    # a line more than a power of two: else planes share sets of the cache
    v_plane, g_plane = block * 2 * line + line, block * line + line
    m_plane = _ceil_div(c_panels, c_parts) * 2 * line
    pitch = _ceil_div(TILE * min(block, tiles_w) + 2, line) * line
    m = _ceil_div(k_panels, k_parts) * line * CELLS * m_plane
    strip = m + N * pitch * line
    edge = strip + line * line
    taps = edge + (TAPS * N + 2 * TAPS * TAPS + 1) * line
    runs = RUN * (block // max(tiles_w, 1) + 2)
    job = dict.fromkeys(JOB.names or (), 0)
    job.update(groups=geometry.groups, sources=sources, rows=rows, filter=geometry.kernel[0], shifts=shifts, panels=panels,
               height=geometry.in_size[0], width=geometry.in_size[1],
               top=geometry.pads[0][0], left=geometry.pads[1][0], out_h=out_h, out_w=out_w, tiles_h=tiles_h, tiles_w=tiles_w,
               tiles=tiles, block=block, missing_h=TILE * tiles_h - out_h, missing_w=TILE * tiles_w - out_w, v_plane=v_plane,
               v_panel=CELLS * v_plane, g_plane=g_plane, g_panel=CELLS * g_plane, k_panels=k_panels, c_panels=c_panels,
               k_parts=k_parts, c_parts=c_parts, m_plane=m_plane, pitch=pitch, own=taps, m=m, strip=strip, edge=edge, taps=taps,
               runs=runs)
    sizes = [c_panels * CELLS * v_plane * itemsize, k_panels * CELLS * g_plane * itemsize, workers * taps * itemsize,
             workers * runs * 8]
    return Plan(workers, np.array([tuple(job[name] for name in JOB.names or ())], JOB), False, 1,
                tuple(_ceil_div(size, 64) * 64 for size in sizes))


def workspace(geometry: Conv2dGeometry, itemsize: int, threads: int) -> int:
    """Bytes of scratch that it needs."""
    return plan(geometry, itemsize, usable_workers(threads)).nbytes


def backward_weight(dout: np.ndarray, x: np.ndarray, geometry: Conv2dGeometry, out: np.ndarray, more: bool, work: np.ndarray,
                    threads: int) -> bool:
    """The gradient with respect to filters of float32 or float64 arrays, into `out`, in scratch `work`.

    With `more` it is added to what is there. Returns False where something in it is not finite: then `out` is not what the
    definition gives.
    """
    this = plan(geometry, x.itemsize, usable_workers(threads))
    job, workers, first = this.job[0], this.workers, 0
    tiles, block = int(job["tiles"]), int(job["block"])
    if tiles == 0:
        if not more:
            out[...] = 0
        return True
    pieces = []
    for nbytes in this.sizes:
        pieces.append(work[first:first + nbytes])
        first += nbytes
    arrays = flat(x), flat(dout), flat(out), *(piece.view(x.dtype) for piece in pieces[:3]), pieces[3].view(np.int64)
    parts = int(job["k_parts"] * job["c_parts"])
    for group in range(geometry.groups):
        for begin in range(0, tiles, block):
            add_gradients(workers, this.job, TILES, group, begin, more, *arrays)
            add_gradients(min(workers, parts), this.job, FILTERS, group, begin, more, *arrays)
    return bool(finite(1, flat(out)))
