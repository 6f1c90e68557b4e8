"""What Numba's convolutions cost, for the choice between them. Pure functions of the geometry; Numba is not imported.

In the unit of one FMA instruction of 16 lanes, fitted to a Zen 4 (AVX-512, float32, one thread): of 1,000 convolutions by
3x3 and 5x5 filters, forward, backward data and gradients of filters, of 1 to 512 channels and images of 2x2 to 112x112 pixels,
the cheaper algorithm is the faster one, or within a tenth of it, for all but 21. ``python bench/numba_costs.py`` measures them
anew.
"""

from __future__ import annotations

import math

from .. import winograd
from ..geometry import Conv2dGeometry

_LANES, _CELLS = winograd.LANES, 36

FAR_BYTES = 24 * 2**20  # of results that no cache holds

# Each column of taps has a copy of its own, of nothing but output pixels, where so many times the positions between two
# rows are a row, and the copies of an image are no larger.
UNROLLED_PART, UNROLLED_BYTES = 8, 196608

MOST_CHANNELS = 4      # of backward data by few_channels.py: of more, tiles are high enough
LEAST_FILTERS = 8      # that a sum over them takes longer than those over taps
LEAST_FLOPS = 2**21    # below, a call takes longer than the sums
COLUMN_BYTES = 393216  # of the columns of a band

#: Of the tiles that are transformed before they are multiplied, for the gradient of filters.
GRADIENT_BYTES = 9_500_000

# Winograd: a product's FMA; a cell of a transformed tile of a channel, and of one to be transformed back; a row of tiles of a
# channel; a row of tiles' pixels of one to be written, and each pixel; a tap of a filter; two kernels' calls.
_FMA, _TO_TILES, _FROM_TILES, _TILE_ROW, _ROW, _PIXEL, _TAP, _CALL = 1.07, 0.93, 0.35, 163.0, 23.0, 0.86, 1.37, 185e3
_FAR_PIXEL = 2.3  # where no cache holds the result, which direct writes past them (measured: 4,3,224x224 to 64 channels)
_CELL, _PHASED_TAP = 2.5, 15.0  # to copy a cell of an image to its phase, and a tap of a filter
_INEXACT = 1.05  # it must win by so much, because its error is larger

# Direct: an FMA, and the loads of a tile of up to six rows, for a vector; a tile's begin and end, and each of its rows, for a
# vector; a row of a channel to be copied, and each vector; to turn a weight, and to see one for some images; a call, and one of
# two kernels.
_DIRECT_FMA, _LOADS, _TILE, _TILE_STORE, _COPY, _COPIED, _TURN, _WEIGHT = 0.55, 2.32, 2.6, 25.0, 13.3, 1.9, 1.36, 0.44
_DIRECT_CALL, _TURNED_CALL = 24e3, 131e3
_SIX = 6     # rows of a tile
_SHARED = 512  # positions that images are put together for

# Few channels: an FMA; to load a vector of dout; to add up a vector of dx from a tap; a call.
_FEW_FMA, _FEW_LOAD, _FEW_TAP, _FEW_CALL = 1.05, 2.24, 7.2, 149e3

# Gradients of filters. Winograd: a product's FMA; a cell of a transformed tile of a channel of x, and of dout; a row of tiles
# of a vector of channels; the filters of a vector of channels, for each block of tiles, of 3x3 taps and of parts of more; two
# kernels' calls.
_SUM, _X_CELL, _DOUT_CELL, _STRIP, _SUMS, _SUMS_OF_PARTS, _GRADIENT_CALL = 1.32, 0.88, 0.50, 230.0, 480.0, 700.0, 126e3

# Direct: a row of tiles of filters takes dout apart, a vector of it; a channel's row, and each vector of it; a filter's tap for
# each image, and for the call; a call.
_DOUT_VECTOR, _X_ROW, _X_VECTOR, _IMAGE_TAP, _WEIGHT_TAP, _WEIGHT_CALL = 21.0, 28.0, 5.0, 0.43, 3.9, 106e3


def estimate(algorithm: str, operation: str, geometry: Conv2dGeometry) -> float | None:
    """Predicted time of an algorithm over that of the definition's FMAs alone, on one thread; None for what is not here."""
    groups = geometry.groups
    sources, rows = geometry.channels // groups, geometry.out_channels // groups
    height, width = geometry.out_size
    if operation == "backward_data":
        sources, rows = rows, sources
        height, width = (-(-n // s) for n, s in zip(geometry.in_size, geometry.stride, strict=True))
    batch = max(geometry.batch, 1)
    fmas = geometry.taps * sources * rows * batch * height * width * groups / _LANES
    if operation == "backward_weight":
        if algorithm == "winograd":
            return _INEXACT * (groups * _winograd_gradient(geometry) + _GRADIENT_CALL) / fmas
        return (groups * _direct_gradient(geometry) + _WEIGHT_CALL) / fmas if algorithm == "direct" else None
    if algorithm == "winograd":
        return _INEXACT * _winograd(operation, geometry) / fmas
    if algorithm == "direct":
        band = rows_of_few_channels(geometry, 4) if operation == "backward_data" else 0
        if band:
            return (groups * _few_channels(geometry, band) + _FEW_CALL) / fmas
        turned = operation == "backward_data"
        call = _TURNED_CALL if turned else _DIRECT_CALL
        return (groups * _direct(geometry, sources, rows, height, width, turned) + call) / fmas
    return None


def _direct(geometry: Conv2dGeometry, sources: int, rows: int, height: int, width: int, turned: bool) -> float:
    taps, batch = geometry.taps, max(geometry.batch, 1)
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    halo, between = (kh - 1) * dh // sh, (kw - 1) * dw // sw
    slots = sh * sw
    unrolled = sw == 1 and between > 0 and worth_unrolling(sources * (height + halo) * width, width, between, 4)
    length = width if unrolled else width + between
    if unrolled:
        slots = sh * (between + 1)
    plane = (height + halo) * length
    together = min(max(_SHARED // plane, 1), batch)
    copies = -(-batch // together)
    vectors = copies * -(-((together - 1) * plane + (height - 1) * length + width) // _LANES)
    tiles = -(-rows // _SIX)
    return (vectors * (taps * sources * (_DIRECT_FMA * rows + _LOADS * tiles) + _TILE * tiles + _TILE_STORE * rows)
            + batch * sources * height * slots * (_COPY + _COPIED * length / _LANES)
            + taps * sources * rows * (_WEIGHT * (copies if together > 1 else batch) + (_TURN if turned else 0)))


def _few_channels(geometry: Conv2dGeometry, band: int) -> float:
    batch, channels = max(geometry.batch, 1), geometry.channels // geometry.groups
    height, width = geometry.in_size
    filters = geometry.out_channels // geometry.groups
    bands = -(-height // band)
    lines = bands * min(-(-height // bands) + geometry.kernel[0] - 1, geometry.out_size[0])
    vectors = batch * lines * geometry.out_size[1] / _LANES
    return (vectors * filters * (_FEW_FMA * channels * geometry.taps + _FEW_LOAD)
            + _FEW_TAP * channels * geometry.taps * batch * height * -(-width // _LANES))


def _winograd(operation: str, geometry: Conv2dGeometry) -> float:
    batch = max(geometry.batch, 1)
    if geometry.stride != (1, 1):
        phases = winograd.of_phases(geometry, batch)
        copies = _CELL * math.prod(phases.input_shape) + _PHASED_TAP * math.prod(phases.weight_shape)
        return _winograd(operation, phases) + copies
    tile = winograd.largest_tile(geometry)
    sources, rows = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    height, width = geometry.out_size
    if operation == "backward_data":
        sources, rows = rows, sources
        height, width = geometry.in_size
    down, across = -(-height // tile), -(-width // tile)
    vectors = -(-batch * down * across // _LANES)
    one = _CELLS * vectors * (_FMA * sources * -(-rows // 8) * 8 + _LANES * (_TO_TILES * sources + _FROM_TILES * rows))
    far = 4 * batch * height * width * rows * geometry.groups >= FAR_BYTES
    one += batch * (down * (_TILE_ROW * sources + tile * _ROW * rows) + height * width * rows * (_FAR_PIXEL if far else _PIXEL))
    one += -(-rows // _LANES) * _LANES * sources * _TAP * geometry.taps
    return (one + _CALL) * geometry.groups


def _winograd_gradient(geometry: Conv2dGeometry) -> float:
    batch = max(geometry.batch, 1)
    if geometry.stride != (1, 1):
        phases = winograd.of_phases(geometry, batch)
        return _winograd_gradient(phases) + _CELL * math.prod(phases.input_shape) + _PHASED_TAP * math.prod(phases.weight_shape)
    sources, rows = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    height, width = geometry.out_size
    down, across = -(-height // 4), -(-width // 4)
    of_x, of_dout = parts_of_filters(geometry) * -(-sources // _LANES), -(-rows // _LANES)
    blocks = -(-batch * down * across // tiles_of_a_block(geometry, 4))
    # of the last tiles as many values vanish, by row and by column, as pixels are missing
    products = batch * (6 * down - (4 * down - height)) * (6 * across - (4 * across - width))
    cells = _CELLS * _LANES * batch * down * across
    sums = _SUMS if geometry.kernel == (3, 3) else _SUMS_OF_PARTS
    return (_SUM * products * of_x * -(-rows // 8) * 8 + cells * (_X_CELL * of_x + _DOUT_CELL * of_dout)
            + _STRIP * batch * down * (of_x + of_dout) + sums * blocks * rows * of_x)


def _direct_gradient(geometry: Conv2dGeometry) -> float:
    sources, rows = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    (height, width), batch = geometry.out_size, max(geometry.batch, 1)
    length = width + (geometry.kernel[1] - 1) * geometry.dilation[1] // geometry.stride[1]
    vectors, six = batch * ((height - 1) * length + width) / _LANES, -(-rows // 6) * 6
    copied = batch * sources * height * geometry.stride[0] * geometry.stride[1]
    taps = sources * geometry.taps
    return (taps * rows * vectors + _DOUT_VECTOR * six * vectors + copied * (_X_ROW + _X_VECTOR * length / _LANES)
            + taps * (_IMAGE_TAP * six * batch + _WEIGHT_TAP * rows))


def tiles_of_a_block(geometry: Conv2dGeometry, itemsize: int) -> int:
    """How many tiles of all channels the gradient of filters transforms before it multiplies them."""
    line, parts = 64 // itemsize, parts_of_filters(geometry)
    sources, rows = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    panels = -(-rows // line) + 2 * parts * -(-sources // (2 * line))  # of vectors; those of x come in pairs
    return max(GRADIENT_BYTES // (_CELLS * line * panels * itemsize), 1)


def parts_of_filters(geometry: Conv2dGeometry) -> int:
    """How many filters of 3x3 one is made of."""
    return int((-(-geometry.kernel[0] // 3)) ** 2)


def worth_unrolling(cells: int, width: int, between: int, itemsize: int) -> bool:
    """Do `between` more copies of so many cells cost less than as many positions between rows of `width`?"""
    return UNROLLED_PART * between >= width and (between + 1) * cells * itemsize <= UNROLLED_BYTES


def rows_of_few_channels(geometry: Conv2dGeometry, itemsize: int) -> int:
    """The most rows of dx in a band of few_channels.py; 0 where that is not the way to do it."""
    channels, filters = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    if (geometry.stride != (1, 1) or geometry.dilation != (1, 1) or channels > MOST_CHANNELS or filters < LEAST_FILTERS
            or geometry.taps == 1 or geometry.flops < LEAST_FLOPS):
        return 0
    row = channels * geometry.taps * geometry.out_size[1] * itemsize
    return int(max(COLUMN_BYTES // row - geometry.kernel[0] + 1, 0))
