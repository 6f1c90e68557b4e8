"""Which tile Winograd's convolution takes, and what it costs. Pure functions of the geometry.

F(MxM, RxR) computes output tiles of MxM with (M + R - 1)^2 multiplications each: the larger the tile, the fewer
multiplications a pixel needs, and the more cells and planes of filters there are to transform. The gradient of 3x3 filters
is made by F(3x3, 4x4), with tiles of 4x4 cells of the output's gradient in place of filters.

A convolution with stride S is one with stride 1 of the phases of the image. Tap S*t + a of a filter meets rows a, S + a,
2*S + a ... of the padded image only: so these become an image of their own, with 1/S of the rows, and the filter's taps a,
S + a, ... its filter (the same for columns). The S*S phases of a channel are summed up, as channels are. 11x11 taps with
stride 4 so become 3x3 taps in 16 times as many channels, and F(4x4, 3x3) needs 36 multiplications where 121 were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .geometry import Conv2dGeometry, Pair, Window2dGeometry

#: For each size of filter, the sizes of output tiles that there are kernels for.
TILES = {3: (4, 2), 4: (3,), 5: (2,)}

#: Cells of a transformed tile of F(3x3, 4x4), and the most channels of a block of its kernel.
_GRADIENT_CELLS, _GRADIENT_BLOCK = 36, 128

#: So many tiles of all channels are transformed once, if that takes no more than so many elements (winograd_gradient.pxi).
_KEPT_TILES, _KEPT_ELEMENTS = 128, 2621440

#: Of the vectors that the constants below are for, and the tiles that go through the products together.
LANES, _BLOCK_TILES = 16, 64

# In the unit of one FMA instruction, so that a Zen 4 gets the fastest algorithm or one as fast for 62 of 65 geometries with few
# channels (a Zen 5 does an FMA in half the time, and the rest as fast): to begin a call and to end it; to transform one
# cell of a tile of a channel, and one cell of a tile back, for vectors of tiles; to read one tap of a filter, and to make one
# cell of it; and to fetch one cell of a filter for a product.
_CALL = 60_000
_TO_TILES = {4: 0.8, 3: 0.9, 2: 1.1}  # by the tile: the smaller it is, the more vectors are taken apart for a cell
_FROM_TILES, _TAP, _FILTER, _FETCH = 0.4, 0.36, 0.16, 0.1
_NARROW = 300  # to take the last tiles of rows apart, for a block of tiles of a channel
_CELL, _TAPS = 2.5, 15.0  # to copy a cell of an image to its phase, and a tap of a filter
_PIXEL = 1.1  # to write a pixel to memory
_TO_GRADIENT_TILES, _GRADIENT = 1.1, 28.0  # F(3x3, 4x4): one cell of a tile of a channel, and one filter's gradient

#: Elements of the phases that are there at a time: of so many images as they have room for, or of one.
PHASE_ELEMENTS = 2**20


def unsupported(operation: str, geometry: Conv2dGeometry) -> str | None:
    """Why there is no kernel for this, or None."""
    kernel, stride = geometry.kernel, geometry.stride
    if operation == "backward_weight" and (kernel, stride, geometry.dilation) != ((3, 3), (1, 1), (1, 1)):
        return (f"backward_weight is for 3x3 filters with stride 1 and dilation 1, not for kernel {kernel}, stride {stride}, "
                f"dilation {geometry.dilation}")
    if (geometry.dilation != (1, 1) or kernel[0] != kernel[1] or stride[0] != stride[1]
            or taps_of(geometry) not in TILES):
        return (f"it is for square filters whose taps are 3 to 5 times the stride (rounded up) and for dilation 1, not for "
                f"kernel {kernel}, stride {stride}, dilation {geometry.dilation}")
    if stride != (1, 1) and operation == "backward_data":
        return f"backward_data is for stride 1, not for stride {stride}"
    if stride != (1, 1) and math.prod(of_phases(geometry, 1).input_shape) > 2 * PHASE_ELEMENTS:
        return f"the phases of an image of {geometry.in_size} and stride {stride} are too large to be kept"
    return None


def too_much_padding(geometry: Conv2dGeometry) -> str | None:
    """Why backward data is not a convolution of the output's gradient with padding of its own, or None."""
    most = geometry.kernel[0] - 1
    if max(*geometry.pads[0], *geometry.pads[1]) > most:
        return f"backward_data is for padding up to {most}, not for {geometry.pads}"
    return None


@lru_cache(maxsize=1024)
def of_phases(geometry: Conv2dGeometry, images: int) -> Conv2dGeometry:
    """The convolution with stride 1 that does it for so many images; `geometry` itself, for them, where that has stride 1."""
    step, taps = geometry.stride[0], taps_of(geometry)
    if step == 1:
        return for_images(geometry, images)
    height, width = (size + taps - 1 for size in geometry.out_size)
    return replace(geometry, batch=images, channels=geometry.channels * step * step, in_size=(height, width),
                   kernel=(taps, taps), stride=(1, 1), pads=((0, 0), (0, 0)))


def for_images(geometry: Conv2dGeometry, images: int) -> Conv2dGeometry:
    """The same for so many images."""
    return geometry if images == geometry.batch else replace(geometry, batch=images)


def taps_of(geometry: Conv2dGeometry) -> int:
    """Rows (and columns) of the filters that are transformed."""
    return -(-geometry.kernel[0] // geometry.stride[0])


def images_at_once(geometry: Conv2dGeometry) -> int:
    """Images whose phases are made together: as many as PHASE_ELEMENTS hold, and the same number each time."""
    batch = max(geometry.batch, 1)
    if geometry.stride == (1, 1):
        return batch
    most = max(PHASE_ELEMENTS // math.prod(of_phases(geometry, 1).input_shape), 1)
    return -(-batch // -(-batch // most))


def split(geometry: Conv2dGeometry, images: int) -> tuple[Window2dGeometry, Window2dGeometry]:
    """How im2col makes the phases of so many images, and of the filters: windows of SxS cells, side by side."""
    step, taps, phases = geometry.stride[0], taps_of(geometry), of_phases(geometry, images)

    def windows(batch: int, channels: int, in_size: Pair, before: Pair, out_size: Pair) -> Window2dGeometry:
        behind = [max(step * out - pad - size, 0) for size, pad, out in zip(in_size, before, out_size, strict=True)]
        return Window2dGeometry(batch, channels, in_size, (step, step), (step, step),
                                ((before[0], behind[0]), (before[1], behind[1])), (1, 1), out_size)

    before = geometry.pads[0][0], geometry.pads[1][0]
    return (windows(images, geometry.channels, geometry.in_size, before, phases.in_size),
            windows(geometry.out_channels, geometry.channels // geometry.groups, geometry.kernel, (0, 0), (taps, taps)))


def cost(operation: str, geometry: Conv2dGeometry, tile: int) -> float:
    """What all images cost with tiles of this size, in FMA instructions."""
    if geometry.stride != (1, 1):
        batch = max(geometry.batch, 1)
        phases = of_phases(geometry, batch)
        filters = math.prod(phases.weight_shape)
        return cost(operation, phases, tile) + _CELL * math.prod(phases.input_shape) + \
            (0 if operation == "packed" else _TAPS * filters)
    sources, rows = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    height, width = geometry.out_size
    if operation == "backward_data":
        sources, rows = rows, sources
        height, width = geometry.in_size
    n = tile + geometry.kernel[0] - 1
    cells = n * n
    vectors = -(-max(geometry.batch, 1) * -(-height // tile) * -(-width // tile) // LANES)
    # one vector of tiles leaves the FMA units waiting for loads
    work = _products(n, tile, max(geometry.batch, 1), height, width, sources, rows) * (1.15 if vectors == 1 else 1.0)
    work += cells * LANES * vectors * (_TO_TILES[tile] * sources + _FROM_TILES * rows)
    work += _PIXEL * max(geometry.batch, 1) * height * width * rows
    work += rows * sources * (cells * _FETCH + (0 if operation == "packed" else geometry.taps * _TAP + cells * _FILTER))
    return work * geometry.groups + _CALL


def _products(n: int, tile: int, batch: int, height: int, width: int, sources: int, rows: int) -> int:
    """FMA instructions of the n*n products, without those that winograd.pxi leaves out at the edges."""
    down, across = -(-height // tile), -(-width // tile)
    blocks = -(-batch * down * across // _BLOCK_TILES)
    missing_h, missing_w = down * tile - height, across * tile - width  # so many of n values vanish for the last tiles

    def vectors(low: bool, narrow: bool) -> int:  # of a product that leaves out the last row, the last column of tiles
        return blocks * -(-batch * (down - low) * (across - narrow) // (blocks * LANES))

    def of(missing_w: int) -> int:  # a channel's, where so many columns are left out
        return ((n - missing_h) * ((n - missing_w) * vectors(False, False) + missing_w * vectors(False, True))
                + missing_h * ((n - missing_w) * vectors(True, False) + missing_w * vectors(True, True)))

    return min(of(0) * sources * rows, of(missing_w) * sources * rows + _NARROW * blocks * (sources + rows))


def least_cost(operation: str, geometry: Conv2dGeometry) -> float:
    """What all images cost with the best tile."""
    if operation != "backward_weight":
        return cost(operation, geometry, best_tile(operation, geometry))
    sources, rows = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    height, width = geometry.out_size
    down, across = -(-height // 4), -(-width // 4)
    tiles = geometry.batch * down * across
    vectors, panels = -(-sources // LANES), -(-rows // LANES)
    if tiles <= _KEPT_TILES and _GRADIENT_CELLS * tiles * geometry.groups * (sources + rows) <= _KEPT_ELEMENTS:
        transforms = vectors + panels
    else:  # each block of channels transforms what it needs
        transforms = vectors * -(-rows // _GRADIENT_BLOCK) + panels * -(-sources // _GRADIENT_BLOCK)
    # of the last tiles as many values vanish, by row and by column, as pixels are missing
    products = geometry.batch * (6 * down - (4 * down - height)) * (6 * across - (4 * across - width))
    work = LANES * (products * panels * vectors + _GRADIENT_CELLS * tiles * _TO_GRADIENT_TILES * transforms)
    return (work + _GRADIENT * rows * sources) * geometry.groups + _CALL


def largest_tile(geometry: Conv2dGeometry) -> int:
    """The size of the output tiles with six values in a row."""
    return TILES[taps_of(geometry)][0]


@lru_cache(maxsize=1024)
def best_tile(operation: str, geometry: Conv2dGeometry) -> int:
    """The size of output tile that costs the least."""
    return min(TILES[taps_of(geometry)], key=lambda tile: cost(operation, geometry, tile))


@dataclass(frozen=True)
class Band:
    """Some rows of one image's result, and what the definition needs to make them.

    Attributes
    ----------
    image : int
    rows, seen : slice
        Of the result, and of what it is made of.
    geometry : Conv2dGeometry
        The convolution from ``seen`` to ``rows``, for a batch of one.
    """

    image: int
    rows: slice
    seen: slice
    geometry: Conv2dGeometry


def band(operation: str, geometry: Conv2dGeometry, image: int, start: int, stop: int) -> Band:
    """The band of rows [start, stop) of an image; of more rows where those alone would see nothing but padding."""
    (top, _), taps, step = geometry.pads[0], geometry.kernel[0], geometry.stride[0]
    height, width = geometry.in_size
    if operation == "backward_data":
        first, last = max(start + top - taps + 1, 0), min(stop + top, geometry.out_size[0])
        size, out_size = (stop - start, width), (last - first, geometry.out_size[1])
        pads = top + start - first, last - stop - top + taps - 1
    else:
        start, stop = min(start, (top + height - 1) // step), max(stop, -(-(top - taps + 1) // step) + 1)
        above, below = start * step - top, (stop - 1) * step - top + taps  # the rows that they see, with the padding
        first, last = max(above, 0), min(below, height)
        size, out_size = (last - first, width), (stop - start, geometry.out_size[1])
        pads = first - above, below - last
    part = replace(geometry, batch=1, in_size=size, out_size=out_size, pads=(pads, geometry.pads[1]))
    return Band(image, slice(start, stop), slice(first, last), part)


def spoiled_bands(operation: str, geometry: Conv2dGeometry, tile: int, spoiled: np.ndarray) -> Iterator[Band]:
    """The bands of neighbouring rows of tiles that are flagged in `spoiled`, (batch, rows of tiles)."""
    height = (geometry.in_size if operation == "backward_data" else geometry.out_size)[0]
    for image in np.flatnonzero(spoiled.any(axis=1)):
        ends = np.flatnonzero(np.diff(spoiled[image], prepend=False, append=False))
        for start, stop in ends.reshape(-1, 2).tolist():
            yield band(operation, geometry, int(image), start * tile, min(stop * tile, height))
