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
    for taps, channels in ((3, 64), (3, 512), (4, 64), (4, 512), (5, 96), (5, 512)):
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
    for channels, batch, size in ((64, 8, 56), (512, 8, 7)):
        rng = np.random.default_rng(0)
        shape = 32, channels, 3, 3
        dout, x = (rng.standard_normal((batch, n, size, size), dtype=np.float32) for n in shape[:2])
        want = reference.conv2d_backward_weight(dout.astype(np.float64), x.astype(np.float64), shape, padding=1)
        found = []
        for name in ("direct", "implicit_gemm", "winograd"):
            got = fastconv.conv2d_backward_weight(dout, x, shape, padding=1, algorithm=name)
            found.append(f"{name} {np.abs(got - want).max() / np.abs(want).max():.2g}")
        print(f"gradient of 3x3, {channels} channels, {batch}x{size}x{size} pixels:", ", ".join(found))


if __name__ == "__main__":
    sys.exit(main())
