"""Errors of the algorithms in float32, largest error over largest output: ``python bench/winograd_errors.py``.

One image of 14x14 pixels, 32 filters, normal data; the reference computes in float64.
"""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np

import fastconv
from fastconv import dispatch, reference, winograd


def main() -> None:
    for taps, channels in ((3, 64), (3, 512), (5, 96), (5, 512)):
        rng = np.random.default_rng(0)
        x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in
                     ((1, channels, 14, 14), (32, channels, taps, taps)))
        want = reference.conv2d(x.astype(np.float64), weight.astype(np.float64), padding="same")

        def error(algorithm: str, x=x, weight=weight, want=want) -> str:
            got = fastconv.conv2d(x, weight, padding="same", algorithm=algorithm)
            return f"{np.abs(got - want).max() / np.abs(want).max():.2g}"

        found = [f"{name} {error(name)}" for name in ("direct", "implicit_gemm")]
        for tile in winograd.TILES[taps]:
            with mock.patch.object(winograd, "best_tile", lambda operation, geometry, tile=tile: tile):
                dispatch._select.cache_clear()
                found.append(f"F({tile}x{tile},{taps}x{taps}) {error('winograd')}")
        dispatch._select.cache_clear()
        print(f"{taps}x{taps}, {channels} channels:", ", ".join(found))


if __name__ == "__main__":
    sys.exit(main())
