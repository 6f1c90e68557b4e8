"""Which tile Winograd's convolution takes, and what it costs. Pure functions of the geometry.

F(MxM, RxR) computes output tiles of MxM with (M + R - 1)^2 multiplications each: the larger the tile, the fewer
multiplications a pixel needs, and the more cells and planes of filters there are to transform.
"""

from __future__ import annotations

from .geometry import Conv2dGeometry

#: For each size of filter, the sizes of output tiles that there are kernels for.
TILES = {3: (4, 2), 5: (2,)}

#: Of the vectors that the constants below are for.
LANES = 16

# In the unit of one FMA instruction, fitted as those in dispatch.py: to begin a call and to end it; to transform one cell of a
# tile of a channel, and one cell of a tile back, for vectors of tiles; one cell of a filter; and to fetch one cell of a
# filter for a product.
_CALL = 50_000
_TO_TILES, _FROM_TILES, _FILTERS, _FETCH = 0.9, 1.1, 1.0, 0.2


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
    work += cells * rows * sources * (_FETCH if operation == "packed" else _FILTERS)
    return work * geometry.groups + _CALL


def best_tile(operation: str, geometry: Conv2dGeometry) -> int:
    """The size of output tile that costs the least."""
    return min(TILES[geometry.kernel[0]], key=lambda tile: cost(operation, geometry, tile))
