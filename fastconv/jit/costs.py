"""What Numba's convolutions cost, for the choice between them. Pure functions of the geometry; Numba is not imported.

In the unit of one FMA instruction of 16 lanes, fitted to a Zen 4 (AVX-512, float32, one thread): of 527 convolutions by
3x3 and 5x5 filters, forward and backward data, of 1 to 512 channels and images of 2x2 to 112x112 pixels, the cheaper algorithm
is the faster one, or within a tenth of it, for all but 15. ``python bench/numba_costs.py`` measures them anew.
"""

from __future__ import annotations

import math

from .. import winograd
from ..geometry import Conv2dGeometry

_LANES, _CELLS = winograd.LANES, 36

# Winograd: a product's FMA; a cell of a transformed tile of a channel, and of one to be transformed back; a row of tiles of a
# channel; a row of pixels of one to be written, and each pixel; a filter of so many taps, and each tap; two kernels' calls.
_FMA, _TO_TILES, _FROM_TILES, _TILE_ROW, _ROW, _PIXEL, _FILTER, _TAP, _CALL = 1.2, 0.95, 0.07, 150.0, 22.0, 1.7, 2.5, 1.3, 65e3
_CELL, _PHASED_TAP = 2.5, 15.0  # to copy a cell of an image to its phase, and a tap of a filter
_INEXACT = 1.05  # it must win by so much, because its error is larger

# Direct: an FMA, a row of four, or of what is left of those, which is alone with its loads; to load a weight and to see it
# once for a band; a row of pixels of a channel to be written and copied, and each vector of pixels; a call.
_DIRECT_FMA, _ALONE, _WEIGHT, _WRITE, _COPY, _VECTOR, _DIRECT_CALL = 1.2, 2.0, 4.0, 35.0, 60.0, 9.0, 20e3


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
    if algorithm == "winograd" and operation != "backward_weight":
        return _INEXACT * _winograd(operation, geometry) / fmas
    if algorithm == "direct":
        length = width + (geometry.kernel[1] - 1) * geometry.dilation[1] // geometry.stride[1]
        positions = batch * ((height - 1) * length + width)
        together = rows // 4 * 4 + _ALONE * (rows % 4)
        one = geometry.taps * sources * (_DIRECT_FMA * together * positions / _LANES + _WEIGHT * rows)
        one += batch * (height * (_WRITE * rows + _COPY * sources * geometry.stride[0] * geometry.stride[1])
                        + height * width * rows * _VECTOR / _LANES)
        return (one * groups + _DIRECT_CALL) / fmas
    return None


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
    one += batch * (down * (_TILE_ROW * sources + tile * _ROW * rows) + height * width * rows * _PIXEL)
    one += -(-rows // _LANES) * _LANES * sources * (_FILTER + _TAP * geometry.taps)
    return (one + _CALL) * geometry.groups
