"""Convolution by im2col and a matrix product (``algorithm="im2col"``), for any backend's im2col and any dtype.

Chellapilla, Puri, Simard: High Performance Convolutional Neural Networks for Document Processing (IWFHR 2006). The
products are ``np.matmul``'s, so integers, complex numbers and long doubles give what it gives.

The column matrix has ``KH*KW/stride**2`` times the cells of the image. By default it is made for the whole batch at
once, as the books do; a workspace limit cuts it into tiles of whole images, then of rows of output within an image. The
tiles follow from the shapes and the limit alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from . import memory
from .geometry import Conv2dGeometry

if TYPE_CHECKING:
    from .backends import Backend, Budget

Array = np.ndarray

#: Bytes of the column tile where this algorithm stands in for another that met a non-finite value.
STAND_IN_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Tile:
    """Some rows of output of some images: their geometry and where they lie in x and in the output."""

    geometry: Conv2dGeometry
    images: slice
    in_rows: slice
    out_rows: slice
    whole: bool

    def of_input(self, x: Array) -> Array:
        return x[self.images, :, self.in_rows]

    def of_output(self, y: Array) -> Array:
        return y[self.images, :, self.out_rows]


def _forward_bytes(geometry: Conv2dGeometry, dtype: np.dtype, images: int, rows: int) -> int:
    """Scratch of one tile: the columns, and for a part of an image its piece of the output."""
    places = images * rows * geometry.out_size[1]
    items = geometry.channels * geometry.taps * places
    if rows < geometry.out_size[0]:
        items += geometry.out_channels * places
    return items * dtype.itemsize


def _data_bytes(geometry: Conv2dGeometry, dtype: np.dtype, images: int, rows: int) -> int:
    """Scratch of one tile of backward data: the columns, and where a tile is not a whole dx its pieces of dout and dx."""
    places = images * rows * geometry.out_size[1]
    items = geometry.channels * geometry.taps * places
    in_rows = (rows - 1) * geometry.stride[0] + geometry.extent[0]
    if rows < geometry.out_size[0]:
        items += geometry.out_channels * places
    else:  # rows at the end may be in no window
        in_rows = max(in_rows - geometry.pads[0][0], 0)
    if rows < geometry.out_size[0] or in_rows < geometry.in_size[0]:
        items += images * geometry.channels * min(in_rows, geometry.in_size[0]) * geometry.in_size[1]
    return items * dtype.itemsize


def _weight_bytes(geometry: Conv2dGeometry, dtype: np.dtype, images: int, rows: int) -> int:
    """Scratch of one tile of backward weight: columns, dout turned (a whole image's lies right already), one group's dw."""
    places = images * rows * geometry.out_size[1]
    items = geometry.channels * geometry.taps * places
    if images > 1 or rows < geometry.out_size[0]:
        items += geometry.out_channels * places
    items += geometry.out_channels // geometry.groups * (geometry.channels // geometry.groups) * geometry.taps
    return items * dtype.itemsize


_BYTES = {"forward": _forward_bytes, "backward_data": _data_bytes, "backward_weight": _weight_bytes}


def workspace(operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int, limit: int | None) -> int:
    """Bytes of scratch within `limit` (None: no limit), for any number of threads.

    The least possible where even that exceeds the limit.
    """
    images, rows = _tile_size(operation, geometry, dtype, limit)
    return _BYTES[operation](geometry, dtype, images, rows)


def _tile_size(operation: str, geometry: Conv2dGeometry, dtype: np.dtype, limit: int | None) -> tuple[int, int]:
    batch, height = geometry.batch, geometry.out_size[0]
    if batch == 0:
        return 0, height
    size = _BYTES[operation]

    def most(count: int, fits: object) -> int:
        """The largest number from 1 to count that fits, or 1: sizes grow with the count."""
        low, high = 1, count
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)  # type: ignore[operator]
        return low

    if limit is None or size(geometry, dtype, batch, height) <= limit:
        return batch, height
    if size(geometry, dtype, 1, height) <= limit:
        return most(batch, lambda n: size(geometry, dtype, n, height) <= limit), height
    return 1, most(height - 1, lambda n: size(geometry, dtype, 1, n) <= limit) if height > 1 else 1


def _tiles(operation: str, geometry: Conv2dGeometry, dtype: np.dtype, nbytes: int) -> Iterator[Tile]:
    images, rows = _tile_size(operation, geometry, dtype, nbytes)
    (top, _), side = geometry.pads
    for n in range(0, geometry.batch, max(images, 1)):
        some = slice(n, min(n + images, geometry.batch))
        for o in range(0, geometry.out_size[0], rows):
            stop = min(o + rows, geometry.out_size[0])
            first = o * geometry.stride[0] - top
            last = (stop - 1) * geometry.stride[0] - top + geometry.extent[0]
            inside = slice(min(max(first, 0), geometry.in_size[0]), max(min(last, geometry.in_size[0]), 0))
            inside = slice(inside.start, max(inside.stop, inside.start))
            part = replace(geometry, batch=some.stop - some.start,
                           in_size=(inside.stop - inside.start, geometry.in_size[1]),
                           pads=((inside.start - first, max(last - inside.stop, 0)), side),
                           out_size=(stop - o, geometry.out_size[1]))
            yield Tile(part, some, inside, slice(o, stop), rows == geometry.out_size[0])


def modest(budget: Budget) -> Budget:
    """A budget for standing in for another algorithm."""
    return replace(budget, nbytes=STAND_IN_BYTES)


def forward(backend: Backend, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
            out: Array, budget: Budget) -> None:
    """For each group: (K/g, C/g*KH*KW) @ (N, C/g*KH*KW, P) -> (N, K/g, P)."""
    g = geometry.groups
    filters = weight.reshape(g, geometry.out_channels // g, -1)
    with np.errstate(all="ignore"):
        for tile in _tiles("forward", geometry, x.dtype, budget.nbytes):
            part = tile.geometry
            to = tile.of_output(out)
            with memory.scratch_array("the column matrix", part.columns_shape("columns"), x.dtype) as col:
                backend.im2col(tile.of_input(x), part, "columns", 0, col, budget.threads)
                col = col.reshape(part.batch, g, -1, part.positions)
                if tile.whole:
                    np.matmul(filters, col, out=to.reshape(part.batch, g, -1, part.positions))
                else:
                    to[...] = np.matmul(filters, col).reshape(to.shape)
            if bias is not None:
                np.add(to, bias[:, None, None], out=to)
            if relu and to.dtype.kind in "if":
                np.maximum(to, 0, out=to)


def add_bias(out: Array, bias: Array | None) -> None:
    """Add a number to each channel of `out`, if there is a `bias`: for kernels that do not do it on their way."""
    if bias is not None:
        with np.errstate(all="ignore"):
            np.add(out, bias[:, None, None], out=out)


def backward_data(backend: Backend, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array, budget: Budget,
                  bias: Array | None = None) -> None:
    """For each group: (C/g*KH*KW, K/g) @ (N, K/g, P) -> (N, C/g*KH*KW, P), then col2im."""
    g = geometry.groups
    turned = weight.reshape(g, geometry.out_channels // g, -1).swapaxes(1, 2)
    with np.errstate(all="ignore"):
        for tile in _tiles("backward_data", geometry, dout.dtype, budget.nbytes):
            part = tile.geometry
            piece = tile.of_output(dout).reshape(part.batch, g, -1, part.positions)
            to = tile.of_input(out)
            with memory.scratch_array("the column matrix", part.columns_shape("columns"), dout.dtype) as col:
                np.matmul(turned, piece, out=col.reshape(part.batch, g, -1, part.positions))
                if tile.whole and part.in_size == geometry.in_size:
                    backend.col2im(col, part, "columns", to, budget.threads)
                    continue
                if tile.out_rows.start == 0:  # rows of several tiles overlap and add up, others are in none
                    out[tile.images] = 0
                if to.size:
                    dx = memory.empty("dx", part.input_shape, dout.dtype)
                    backend.col2im(col, part, "columns", dx, budget.threads)
                    np.add(to, dx, out=to)
    add_bias(out, bias)


def backward_weight(backend: Backend, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                    budget: Budget) -> None:
    """For each group: (K/g, N*P) @ (N*P, C/g*KH*KW) -> (K/g, C/g*KH*KW)."""
    g = geometry.groups
    filters, terms = geometry.out_channels // g, geometry.channels // g * geometry.taps
    out[...] = 0
    with np.errstate(all="ignore"):
        for tile in _tiles("backward_weight", geometry, x.dtype, budget.nbytes):
            part = tile.geometry
            with memory.scratch_array("the column matrix", part.columns_shape("rows"), x.dtype) as col:
                backend.im2col(tile.of_input(x), part, "rows", 0, col, budget.threads)
                rows = np.ascontiguousarray(tile.of_output(dout).transpose(1, 0, 2, 3)).reshape(geometry.out_channels, -1)
                for i in range(g):
                    some = slice(i * filters, (i + 1) * filters)
                    to = out[some].reshape(filters, terms)
                    np.add(to, np.matmul(rows[some], col[:, i * terms:(i + 1) * terms]), out=to)
