"""Padding that continues an image in place of zeros, and its adjoint.

The column matrix, the tiles and the packed panels of the kernels know zeros only, so these paddings are made first: a
larger image, on which the convolution goes without padding. Rows before columns on the way out; the adjoint goes back
over the columns before the rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import memory
from .geometry import Pads

Array = np.ndarray


def _sources(mode: str, size: int, before: int, after: int) -> Iterator[tuple[int, int]]:
    """For each padding cell along one axis its place in the padded image, and that of the cell whose value it has."""
    for place in (*range(-before, 0), *range(size, size + after)):
        if mode == "replicate":
            source = min(max(place, 0), size - 1)
        elif mode == "circular":
            source = place % size
        else:  # reflect: the edge itself is not repeated
            source = -place if place < 0 else 2 * (size - 1) - place
        yield place + before, source + before


def pad(x: Array, pads: Pads, mode: str) -> Array:
    """The images `x` (N, C, H, W) with padding around them, in their dtype and native byte order."""
    (top, bottom), (left, right) = pads
    n, channels, height, width = x.shape
    cells = memory.empty("the padded image", (n, channels, top + height + bottom, left + width + right),
                         x.dtype.newbyteorder("="))
    cells[:, :, top:top + height, left:left + width] = x
    for place, source in _sources(mode, height, top, bottom):
        cells[:, :, place, left:left + width] = cells[:, :, source, left:left + width]
    for place, source in _sources(mode, width, left, right):
        cells[..., place] = cells[..., source]
    return cells


def fold(cells: Array, pads: Pads, mode: str, out: Array) -> None:
    """Add each padding cell of `cells`, which is spoiled, to the cell that it was made from: the adjoint of `pad`."""
    (top, _), (left, _) = pads
    height, width = out.shape[2:]
    with np.errstate(all="ignore"):
        for place, source in _sources(mode, width, *pads[1]):
            cells[..., source] += cells[..., place]
        for place, source in _sources(mode, height, *pads[0]):
            cells[:, :, source, left:left + width] += cells[:, :, place, left:left + width]
    out[...] = cells[:, :, top:top + height, left:left + width]
