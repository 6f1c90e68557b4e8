"""Convolution of single planes by filters of 3x3 taps, one or two apart, in Numba: depthwise, and images of one channel.

There are 9 multiplications for each cell, so that memory is what counts: cells are read where they are, without a padded
copy. A strip of one vector of columns walks down the rows, and the sums of the rows of output that a row of the image takes
part in are in registers; what lies beside the image is masked. Strips go from right to left: the last vector of a row of
output may reach into the next row, whose first ones are stored later.

What it compiles to (Numba 0.68 with LLVM 22, on AVX-512; from inspect_asm): 8 vfmadd231ps and a vmulps of zmm for each
stored vector, with the taps in registers; a row of the image is three vmovups with a zeroing mask at stride 1, four at
stride 2, and three vpermt2ps. Lane by lane is only what a vector at either end of the array has.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from ..geometry import Conv2dGeometry
from .common import AHEAD, U
from .im2col import window
from .options import Kernel, flat, inlined, part, prange, usable_workers
from .vectors import (
    ask,
    between,
    evens,
    greater,
    lanes_of,
    load,
    load_where,
    odds,
    plus,
    plus_product,
    splat,
    store_first,
    times,
    where,
)

Array = np.ndarray

BAND_BYTES = 16384  # of the rows of the image that a band sees: strips side by side share their lines,
BAND_ROWS = 16      # but at least so many rows of output, because the first ones are read twice


@inlined
def cells(x, at, mask, first, stop, whole, zeros):
    """The vector at x[at], with zeros outside of the lanes [first, stop), which are those of `mask`."""
    return where(mask, load(x, at), zeros) if whole else load_where(x, at, first, stop, zeros)


@inlined
def masked(x, column, w):
    """The lanes of a vector that begins in a column which are in the image."""
    lanes = lanes_of(x)
    return between(x, min(max(-column, 0), lanes), min(max(w - column, 0), lanes))


@inlined
def finish(out, at, total, bias, relu, zeros, count, limit):
    total = plus(total, bias)
    if relu:
        total = greater(total, zeros)  # of NaN and zero NaN
    store_first(out, at, total, count, limit)


@part
def strip_ones(v, x, plane, q, y0, y1, weights, first_tap, step, bias, relu, out, o, limit):
    """Columns q, q + 1, ... of rows [y0, y1) of output to out[o], a row each v.ow cells; windows one apart.

    Taps are weights[first_tap], weights[first_tap + step], ...
    """
    lanes = lanes_of(x)
    zeros, biases = splat(x, x.dtype.type(0)), splat(x, bias)
    h, w, ow, f, s = v.h, v.w, v.ow, U(first_tap), step
    k0, k1, k2 = splat(x, weights[f]), splat(x, weights[U(f + s)]), splat(x, weights[U(f + 2 * s)])
    k3, k4, k5 = splat(x, weights[U(f + 3 * s)]), splat(x, weights[U(f + 4 * s)]), splat(x, weights[U(f + 5 * s)])
    k6, k7, k8 = splat(x, weights[U(f + 6 * s)]), splat(x, weights[U(f + 7 * s)]), splat(x, weights[U(f + 8 * s)])
    column = q - v.left
    in_a, in_b, in_c = masked(x, column, w), masked(x, column + 1, w), masked(x, column + 2, w)
    second, third = zeros, zeros  # sums that have one row, and two
    for y in range(y0 - 2, y1):
        r = y + 2 - v.top
        a, b, c = zeros, zeros, zeros
        if 0 <= r < h:
            at = plane + r * w + column
            whole = at >= 0 and at + 2 + lanes <= x.size
            ask(x, at + AHEAD)
            a = cells(x, at, in_a, -column, w - column, whole, zeros)
            b = cells(x, at + 1, in_b, -column - 1, w - column - 1, whole, zeros)
            c = cells(x, at + 2, in_c, -column - 2, w - column - 2, whole, zeros)
        total = plus_product(plus_product(plus_product(third, a, k6), b, k7), c, k8)
        third = plus_product(plus_product(plus_product(second, a, k3), b, k4), c, k5)
        second = plus_product(plus_product(times(a, k0), b, k1), c, k2)
        if y >= y0:
            finish(out, o, total, biases, relu, zeros, ow - q, limit)
            o += ow


@inlined
def every_second(x, at, column, w, in_a, in_b, in_c, in_d, there, zeros):
    """The cells under three taps of windows two apart, in a row of the image that is there or padding."""
    lanes = lanes_of(x)
    a, b, c, d = zeros, zeros, zeros, zeros
    if there:
        whole = at >= 0 and at + 2 + 2 * lanes <= x.size
        ask(x, at + AHEAD)
        ask(x, at + AHEAD + lanes)
        left, right = -column, w - column
        a = cells(x, at, in_a, left, right, whole, zeros)
        b = cells(x, at + lanes, in_b, left - lanes, right - lanes, whole, zeros)
        c = cells(x, at + 2, in_c, left - 2, right - 2, whole, zeros)
        d = cells(x, at + lanes + 2, in_d, left - lanes - 2, right - lanes - 2, whole, zeros)
    return evens(a, b), odds(a, b), evens(c, d)


@part
def strip_twos(v, x, plane, q, y0, y1, weights, first_tap, bias, relu, out, o, limit):
    """The same for windows two apart."""
    lanes = lanes_of(x)
    zeros, biases = splat(x, x.dtype.type(0)), splat(x, bias)
    h, w, ow, f = v.h, v.w, v.ow, first_tap
    k0, k1, k2 = splat(x, weights[U(f)]), splat(x, weights[U(f + 1)]), splat(x, weights[U(f + 2)])
    k3, k4, k5 = splat(x, weights[U(f + 3)]), splat(x, weights[U(f + 4)]), splat(x, weights[U(f + 5)])
    k6, k7, k8 = splat(x, weights[U(f + 6)]), splat(x, weights[U(f + 7)]), splat(x, weights[U(f + 8)])
    column = 2 * q - v.left
    in_a, in_b = masked(x, column, w), masked(x, column + lanes, w)
    in_c, in_d = masked(x, column + 2, w), masked(x, column + lanes + 2, w)
    r = 2 * y0 - v.top
    at = plane + r * w + column
    a, b, c = every_second(x, at, column, w, in_a, in_b, in_c, in_d, 0 <= r < h, zeros)
    begun = plus_product(plus_product(times(a, k0), b, k1), c, k2)
    for _ in range(y0, y1):
        a, b, c = every_second(x, at + w, column, w, in_a, in_b, in_c, in_d, 0 <= r + 1 < h, zeros)
        total = plus_product(plus_product(plus_product(begun, a, k3), b, k4), c, k5)
        r += 2
        at += 2 * w
        a, b, c = every_second(x, at, column, w, in_a, in_b, in_c, in_d, 0 <= r < h, zeros)
        total = plus_product(plus_product(plus_product(total, a, k6), b, k7), c, k8)
        begun = plus_product(plus_product(times(a, k0), b, k1), c, k2)
        finish(out, o, total, biases, relu, zeros, ow - q, limit)
        o += ow


@Kernel
def planes(workers, windows, filters, band, turned, x, weights, bias, relu, out):
    """Each plane of x by `filters` // v.c filters, `band` rows of output at a time; filters are `turned` by 180 degrees."""
    for worker in prange(workers):
        v = windows[0]
        lanes, oh, ow = lanes_of(x), v.oh, v.ow
        bands, each = (oh + band - 1) // band, filters // v.c
        begin, end = v.n * filters * bands * worker // workers, v.n * filters * bands * (worker + 1) // workers
        limit = end // bands * oh * ow + min(end % bands * band, oh) * ow
        for item in range(begin, end):
            plane, y0 = item // bands, item % bands * band
            y1, k = min(y0 + band, oh), plane % filters
            o = (plane * oh + y0) * ow
            q = (ow - 1) // lanes * lanes
            while q >= 0:
                if v.sh == 1:
                    strip_ones(v, x, plane // each * v.h * v.w, q, y0, y1, weights, k * 9 + (8 if turned else 0),
                               -1 if turned else 1, bias[U(k)], relu, out, o + q, limit)
                else:
                    strip_twos(v, x, plane // each * v.h * v.w, q, y0, y1, weights, k * 9, bias[U(k)], relu, out, o + q, limit)
                q -= lanes


# --- entry points -----------------------------------------------------------------------------------------------------


def can_forward(geometry: Conv2dGeometry) -> bool:
    """Are these kernels for this convolution?"""
    return (geometry.groups == geometry.channels and geometry.kernel == (3, 3) and geometry.dilation == (1, 1)
            and geometry.stride in ((1, 1), (2, 2)))


def can_backward_data(geometry: Conv2dGeometry) -> bool:
    """Are they for the gradient of its input?"""
    return can_forward(geometry) and geometry.stride == (1, 1) and geometry.out_channels == geometry.channels


@lru_cache(maxsize=256)
def _seen_from_output(geometry: Conv2dGeometry) -> Conv2dGeometry:
    """The convolution that backward data is, by turned filters."""
    (top, bottom), (left, right) = geometry.pads
    return replace(geometry, in_size=geometry.out_size, out_size=geometry.in_size,
                   pads=((2 - top, 2 - bottom), (2 - left, 2 - right)))


def band_of(geometry: Conv2dGeometry, itemsize: int) -> int:
    """Rows of output of a band."""
    return min(max(BAND_BYTES // (geometry.in_size[1] * geometry.stride[0] * itemsize), BAND_ROWS), geometry.out_size[0])


def run(x: Array, weight: Array, bias: Array, relu: bool, geometry: Conv2dGeometry, turned: bool, out: Array,
        threads: int) -> None:
    """The convolution of float32 or float64 arrays into `out`; `turned`: from dout its input's gradient."""
    if turned:
        geometry = _seen_from_output(geometry)
    planes(usable_workers(threads), window(geometry), geometry.out_channels, band_of(geometry, x.itemsize), turned, flat(x),
           flat(weight), bias, relu, flat(out))
