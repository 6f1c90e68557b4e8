"""Which tile Winograd's convolution takes, and what it costs. Pure functions of the geometry.

F(MxM, RxR) computes output tiles of MxM with (M + R - 1)^2 multiplications each: the larger the tile, the fewer
multiplications a pixel needs, and the more cells and planes of filters there are to transform.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .geometry import Conv2dGeometry

#: For each size of filter, the sizes of output tiles that there are kernels for.
TILES = {3: (4, 2), 5: (2,)}

#: Of the vectors that the constants below are for.
LANES = 16

# In the unit of one FMA instruction, fitted as those in dispatch.py: to begin a call and to end it; to transform one cell of a
# tile of a channel, and one cell of a tile back, for vectors of tiles; to read one tap of a filter, and to make one cell of
# it; and to fetch one cell of a filter for a product.
_CALL = 50_000
_TO_TILES, _FROM_TILES, _TAP, _FILTER, _FETCH = 0.9, 1.1, 0.55, 0.25, 0.2


def unsupported(geometry: Conv2dGeometry) -> str | None:
    """Why there is no kernel for this, or None."""
    kernel = geometry.kernel
    if (geometry.stride, geometry.dilation) == ((1, 1), (1, 1)) and kernel[0] == kernel[1] and kernel[0] in TILES:
        return None
    return (f"it is for 3x3 and 5x5 filters with stride 1 and dilation 1, not for kernel {kernel}, stride "
            f"{geometry.stride}, dilation {geometry.dilation}")


def cost(operation: str, geometry: Conv2dGeometry, tile: int) -> float:
    """What all images cost with tiles of this size, in FMA instructions."""
    sources, rows = geometry.channels // geometry.groups, geometry.out_channels // geometry.groups
    height, width = geometry.out_size
    if operation == "backward_data":
        sources, rows = rows, sources
        height, width = geometry.in_size
    cells = (tile + geometry.kernel[0] - 1) ** 2
    vectors = -(-max(geometry.batch, 1) * -(-height // tile) * -(-width // tile) // LANES)
    # one vector of tiles leaves the FMA units waiting for loads
    work = cells * rows * sources * vectors * (1.2 if vectors == 1 else 1.0)
    work += cells * LANES * vectors * (_TO_TILES * sources + _FROM_TILES * rows)
    work += rows * sources * (cells * _FETCH + (0 if operation == "packed" else geometry.taps * _TAP + cells * _FILTER))
    return work * geometry.groups + _CALL


def best_tile(operation: str, geometry: Conv2dGeometry) -> int:
    """The size of output tile that costs the least."""
    return min(TILES[geometry.kernel[0]], key=lambda tile: cost(operation, geometry, tile))


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
    (top, _), taps = geometry.pads[0], geometry.kernel[0]
    height, width = geometry.in_size
    if operation == "backward_data":
        first, last = max(start + top - taps + 1, 0), min(stop + top, geometry.out_size[0])
        size, out_size = (stop - start, width), (last - first, geometry.out_size[1])
        pads = top + start - first, last - stop - top + taps - 1
    else:
        start, stop = min(start, top + height - 1), max(stop, top - taps + 2)
        first, last = max(start - top, 0), min(stop - top + taps - 1, height)
        size, out_size = (last - first, width), (stop - start, geometry.out_size[1])
        pads = first - start + top, stop - top + taps - 1 - last
    part = replace(geometry, batch=1, in_size=size, out_size=out_size, pads=(pads, geometry.pads[1]))
    return Band(image, slice(start, stop), slice(first, last), part)


def spoiled_bands(operation: str, geometry: Conv2dGeometry, tile: int, spoiled: np.ndarray) -> Iterator[Band]:
    """The bands of neighbouring rows of tiles that are flagged in `spoiled`, (batch, rows of tiles)."""
    height = (geometry.in_size if operation == "backward_data" else geometry.out_size)[0]
    for image in np.flatnonzero(spoiled.any(axis=1)):
        ends = np.flatnonzero(np.diff(spoiled[image], prepend=False, append=False))
        for start, stop in ends.reshape(-1, 2).tolist():
            yield band(operation, geometry, int(image), start * tile, min(stop * tile, height))
