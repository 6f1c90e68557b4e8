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

What it compiles to (Numba 0.68, LLVM 22, AVX-512, from inspect_asm): at stride 1 the runs of "columns" are zmm copies
and the sums of col2im vaddps; other strides gather, and add up in scalars. A window's row of "rows" is scalar moves.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..geometry import Window2dGeometry
from .common import U, copy, fill, inside, zero
from .options import Kernel, flat, part, prange, usable_workers

Array = np.ndarray

#: As which type items of so many bytes are copied.
ITEMS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}

ROWS_LAYOUT, COLUMNS_LAYOUT, CS231N_LAYOUT = 0, 1, 2
LAYOUTS = {"rows": ROWS_LAYOUT, "columns": COLUMNS_LAYOUT, "windows": COLUMNS_LAYOUT, "cs231n": CS231N_LAYOUT}

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


# --- im2col -----------------------------------------------------------------------------------------------------------

@part
def columns_item(v, item, x, step_n, step_c, step_h, col, pad):
    """All rows of one channel of one image, position by position."""
    n, c = item // v.c, item % v.c
    image = n * step_n + c * step_c
    kh, kw, sh, sw, oh, ow, h = v.kh, v.kw, v.sh, v.sw, v.oh, v.ow, v.h
    to = item * kh * kw * oh * ow
    for i in range(kh):
        for j in range(kw):
            start = j * v.dw - v.left
            first, stop = inside(v.w, start, sw, ow)
            row = i * v.dh - v.top
            for _ in range(oh):
                if 0 <= row < h:
                    fill(col, to, 1, first, pad)
                    copy(col, to + first, x, image + row * step_h + start + first * sw, sw, stop - first)
                    fill(col, to + stop, 1, ow - stop, pad)
                else:
                    fill(col, to, 1, ow, pad)
                to += ow
                row += sh


@part
def rows_item(v, item, x, step_n, step_c, step_h, col, pad):
    """All positions of one row of output of one image, each a full window."""
    n, y = item // v.oh, item % v.oh
    channels, kh, kw, dh, dw, h, w = v.c, v.kh, v.kw, v.dh, v.dw, v.h, v.w
    to = U(item * v.ow * channels * kh * kw)
    for q in range(v.ow):
        left = q * v.sw - v.left
        whole = left >= 0 and left + (kw - 1) * dw < w
        for c in range(channels):
            row = y * v.sh - v.top
            for _ in range(kh):
                at = n * step_n + c * step_c + row * step_h + left
                if 0 <= row < h:
                    for j in range(kw):
                        if whole or 0 <= left + j * dw < w:
                            col[to + U(j)] = x[U(at + j * dw)]
                        else:
                            col[to + U(j)] = pad
                else:
                    for j in range(kw):
                        col[to + U(j)] = pad
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
def gather(workers, windows, x, step_n, step_c, step_h, pads, col):
    for worker in prange(workers):
        v = windows[0]
        pad = pads[0]
        if v.layout == COLUMNS_LAYOUT:
            items = v.n * v.c
        elif v.layout == ROWS_LAYOUT:
            items = v.n * v.oh
        else:
            items = v.c * v.oh
        for item in range(items * worker // workers, items * (worker + 1) // workers):
            if v.layout == COLUMNS_LAYOUT:
                columns_item(v, item, x, step_n, step_c, step_h, col, pad)
            elif v.layout == ROWS_LAYOUT:
                rows_item(v, item, x, step_n, step_c, step_h, col, pad)
            else:
                cs231n_item(v, item, x, step_n, step_c, step_h, col, pad)


# --- col2im -----------------------------------------------------------------------------------------------------------

@part
def add_columns(v, plane, col, out):
    """Add all rows of one channel of one image into its plane, which no other item touches."""
    n, c = plane // v.c, plane % v.c
    h, w, sw, ow, step_p = v.h, v.w, v.sw, v.ow, v.step_p
    zero(out, plane * h * w, h * w)
    for i in range(v.kh):
        for j in range(v.kw):
            start = j * v.dw - v.left
            first, stop = inside(w, start, sw, ow)
            count = U(stop - first)
            row = i * v.dh - v.top
            block = n * v.step_n + ((c * v.kh + i) * v.kw + j) * v.step_r + first * step_p
            for _ in range(v.oh):
                if 0 <= row < h:
                    at, to = U(block), U((plane * h + row) * w + start + first * sw)
                    if step_p == 1 and sw == 1:
                        for x in range(count):
                            out[to + x] += col[at + x]
                    else:
                        for x in range(count):
                            out[to + x * U(sw)] += col[at + x * U(step_p)]
                block += ow * step_p
                row += v.sh


@part
def add_rows(v, n, c0, c1, col, out):
    """Add the windows of some channels of one image ("rows": a window lies together, so it is read together)."""
    h, w, kh, kw, dh, dw = v.h, v.w, v.kh, v.kw, v.dh, v.dw
    zero(out, (n * v.c + c0) * h * w, (c1 - c0) * h * w)
    for y in range(v.oh):
        for q in range(v.ow):
            at = U(n * v.step_n + (y * v.ow + q) * v.step_p + c0 * kh * kw)
            left = q * v.sw - v.left
            whole = left >= 0 and left + (kw - 1) * dw < w
            for c in range(c0, c1):
                row = y * v.sh - v.top
                for _ in range(kh):
                    to = ((n * v.c + c) * h + row) * w + left
                    if 0 <= row < h:
                        for j in range(kw):
                            if whole or 0 <= left + j * dw < w:
                                out[U(to + j * dw)] += col[at + U(j)]
                    at += U(kw)
                    row += dh


@Kernel
def scatter(workers, windows, col, blocks, out):
    for worker in prange(workers):
        v = windows[0]
        if v.layout == ROWS_LAYOUT:
            for item in range(v.n * blocks * worker // workers, v.n * blocks * (worker + 1) // workers):
                block = item % blocks
                add_rows(v, item // blocks, block * v.c // blocks, (block + 1) * v.c // blocks, col, out)
        else:
            for plane in range(v.n * v.c * worker // workers, v.n * v.c * (worker + 1) // workers):
                add_columns(v, plane, col, out)


# --- entry points -----------------------------------------------------------------------------------------------------


def im2col(x: Array, geometry: Window2dGeometry, layout: str, pad: Array, out: Array, threads: int) -> None:
    """Lower x into `out`, a C-contiguous column matrix of the same item size (one of ITEMS).

    x needs to be contiguous along its width only. `pad` is an array of one item.
    """
    item = ITEMS[x.itemsize]
    steps = [step // x.itemsize for step in x.strides[:3]]
    if x.flags.c_contiguous:
        cells = flat(x)
    else:  # what lies between the first cell and the last
        span = 1 + sum(step * (size - 1) for step, size in zip((*steps, 1), x.shape, strict=True))
        cells = flat(np.lib.stride_tricks.as_strided(x, (span,), (x.itemsize,)))
    gather(usable_workers(threads), window(geometry, layout), cells.view(item), *steps, pad.reshape(-1).view(item),
           flat(out).view(item))


def col2im(col: Array, geometry: Window2dGeometry, layout: str, out: Array, threads: int) -> None:
    """Add the columns up in the image `out`, all C-contiguous float32 or float64. Each plane has one worker."""
    workers = usable_workers(threads)
    # channels are split in blocks only where there are too few images; the sums do not depend on it
    blocks = min(geometry.channels, -(-2 * workers // max(geometry.batch, 1))) if workers > 1 else 1
    scatter(workers, window(geometry, layout), flat(col), blocks, flat(out))
