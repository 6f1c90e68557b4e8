"""The gradient of images of few channels, at stride 1, in Numba.

A tile of one to four planes of dx is too low for its loads. But each tap of each channel is a plane of its own, as in col2im:

    (C*KH*KW, K) @ (K, OH*OW) -> columns (C*KH*KW, OH*OW)
    dx[c][y][x] = sum over taps i, j of columns[c, i, j][y + top - i][x + left - j]

The product reads dout where it lies, without padding or a copy, and makes the columns of some rows of an image, which stay in
L2; then each vector of dx is added up from them, shifted by its taps, and written once. Columns for rows that two bands see are
made twice. A worker takes (image, group, band): no sum depends on how they are dealt out.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .. import memory
from ..geometry import Conv2dGeometry
from . import costs
from .options import Kernel, flat, part, prange, usable_workers
from .tiles import ROWS, VECTORS, correlate_tile
from .vectors import between, lanes_of, load, load_where, plus, rolled, splat, store, store_first, where

MOST_TERMS = 240  # of a piece of a sum, as in direct.py

JOB = np.dtype([(name, np.int64) for name in (
    "batch", "groups", "sources", "rows", "channels", "filter_h", "filter_w",  # sources: K; rows: C*KH*KW
    "height", "width", "out_h", "out_w", "top", "left",
    "band", "bands",                     # rows of dx
    "pitch", "lead",                     # of a row of columns, and cells before the first
    "columns", "tail",                   # cells of a worker's two pieces of scratch
)])


@part
def make_columns(job, at, cells, weights, first, dout, offset, columns, tail):
    """columns[lead + r*pitch + p] = sum over k of weights[first + r*K + k] * dout[at + k*plane + p], for p in [0, cells)."""
    lanes = lanes_of(dout)
    plane, sources = job.out_h * job.out_w, job.sources
    wide = VECTORS * lanes
    zeros = splat(dout, 0.0)
    high = (job.rows + ROWS - 1) // ROWS
    # planes are too far apart for the processor to see what comes: each tile of rows asks for a part of the next cells
    for p in range(0, cells, wide):
        number = (min(cells - p, wide) + lanes - 1) // lanes
        inside = at + p + (sources - 1) * plane + number * lanes <= dout.size
        if not inside:
            for k in range(sources):
                for j in range(number):
                    cell = p + j * lanes
                    if cell + lanes <= cells:
                        store(tail, k * wide + j * lanes, load(dout, at + k * plane + cell))
                    else:
                        store(tail, k * wide + j * lanes, load_where(dout, at + k * plane + cell, 0, cells - cell, zeros))
        for i in range(high):
            r0, r1 = job.rows * i // high, job.rows * (i + 1) // high
            done = 0
            while done < sources:
                count = min(sources - done, MOST_TERMS)
                correlate_tile(r1 - r0, number, columns, job.lead + r0 * job.pitch + p, job.pitch, done > 0, False, weights, 0,
                               False, False, weights, first + r0 * sources + done, sources, dout if inside else tail, offset,
                               done if inside else sources + done, count, at + p if inside else 0, wide + i % VECTORS * lanes)
                done += count


@part
def add_taps(job, columns, channel, first, last, y0, y1, dx, to):
    """Rows [y0, y1) of a plane of dx, from columns that begin with row `first` of dout and end before row `last`."""
    lanes, width, out_w = lanes_of(dx), job.width, job.out_w
    zeros = splat(dx, 0.0)
    end = to + y1 * width
    for y in range(y0, y1):
        top = y + job.top
        i0, i1 = max(top - last + 1, 0), min(top - first + 1, job.filter_h)
        for x in range(0, width, lanes):
            total = zeros
            for i in range(i0, i1):
                tap = (channel * job.filter_h + i) * job.filter_w
                at = job.lead + tap * job.pitch + (top - i - first) * out_w + x + job.left
                for j in range(job.filter_w):
                    rolled()
                    start, stop = j - job.left - x, out_w + j - job.left - x
                    if start <= 0 and stop >= lanes:
                        total = plus(total, load(columns, at))
                    elif start < lanes and stop > 0:
                        here = between(columns, max(start, 0), min(stop, lanes))
                        total = plus(total, where(here, load(columns, at), zeros))
                    at += job.pitch - 1
            store_first(dx, to + y * width + x, total, width - x, end)


@Kernel
def add_data(workers, jobs, dout, weights, offset, dx, columns, tails):
    for worker in prange(workers):
        job = jobs[0]  # in here: Numba can't hand a record over to the threads
        own = columns[worker * job.columns:(worker + 1) * job.columns]
        tail = tails[worker * job.tail:(worker + 1) * job.tail]
        items = job.batch * job.groups * job.bands
        for item in range(items * worker // workers, items * (worker + 1) // workers):
            band, plane = item % job.bands, item // job.bands  # of an image's group
            y0 = band * job.band
            y1 = min(y0 + job.band, job.height)
            first, last = max(y0 + job.top - job.filter_h + 1, 0), min(y1 + job.top, job.out_h)
            if first < last:
                make_columns(job, (plane * job.sources * job.out_h + first) * job.out_w, (last - first) * job.out_w, weights,
                             plane % job.groups * job.rows * job.sources, dout, offset, own, tail)
            for c in range(job.channels):
                add_taps(job, own, c, first, last, y0, y1, dx, (plane * job.channels + c) * job.height * job.width)


class Plan(NamedTuple):
    """A job, the places of the planes of dout (and of their tails), and how many of each there are."""

    job: np.ndarray
    offset: np.ndarray
    items: int
    cells: int


@lru_cache(maxsize=256)
def plan(geometry: Conv2dGeometry, itemsize: int) -> Plan | None:
    """What follows from the geometry; None where this is not the way to do it."""
    most = costs.rows_of_few_channels(geometry, itemsize)
    if most == 0:
        return None
    channels, filters = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    (height, width), (out_h, out_w), (taps_h, taps_w) = geometry.in_size, geometry.out_size, geometry.kernel
    line, rows = 64 // itemsize, channels * geometry.taps
    bands = -(-height // most)
    band = -(-height // bands)
    bands = -(-height // band)
    wide = VECTORS * line
    # vectors of taps reach over both ends
    lead = -(-taps_w // line) * line
    pitch = -(-min(band + taps_h - 1, out_h) * out_w // wide) * wide + line
    columns = lead + rows * pitch + -(-(width + taps_w) // line) * line + line
    tail = filters * wide
    job = dict.fromkeys(JOB.names or (), 0)
    job.update(batch=geometry.batch, groups=geometry.groups, sources=filters, rows=rows, channels=channels, filter_h=taps_h,
               filter_w=taps_w, height=height, width=width, out_h=out_h, out_w=out_w, top=geometry.pads[0][0],
               left=geometry.pads[1][0], band=band, bands=bands, pitch=pitch, lead=lead, columns=columns, tail=tail)
    offset = np.concatenate([np.arange(filters) * (out_h * out_w), np.arange(filters) * wide]).astype(np.uintp)
    return Plan(np.array([tuple(job[name] for name in JOB.names or ())], JOB), offset, geometry.batch * geometry.groups * bands,
                columns + tail)


def workspace(this: Plan, itemsize: int, threads: int) -> int:
    """Bytes of scratch."""
    return min(usable_workers(threads), max(this.items, 1)) * this.cells * itemsize


def backward_data(this: Plan, dout: np.ndarray, weight: np.ndarray, geometry: Conv2dGeometry, out: np.ndarray,
                  threads: int) -> None:
    """The gradient with respect to the input of float32 or float64 arrays, into `out`."""
    workers, groups = min(usable_workers(threads), max(this.items, 1)), geometry.groups
    turned = weight.reshape(groups, geometry.out_channels // groups, -1).transpose(0, 2, 1).reshape(-1)
    scratch = memory.scratch(workspace(this, dout.itemsize, threads)).view(dout.dtype)
    columns = workers * int(this.job["columns"][0])
    add_data(workers, this.job, flat(dout), turned, this.offset, flat(out), scratch[:columns],
             scratch[columns:workers * this.cells])
