"""The classic 3x3 filters on a photograph: edges, sharpening, blur.

    python examples/classic_filters.py [FOLDER]

Each filter goes over the three colours of one of scikit-learn's sample photographs as a depthwise convolution, and the
picture `classic_filters.png` shows the filtered images beside the original.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image

import fastconv

FILTERS = {
    "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "edges, diagonal": [[1, 0, -1], [0, 0, 0], [-1, 0, 1]],
    "edges, cross": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
    "edges, all around": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "box blur": np.full((3, 3), 1 / 9),
    "Gaussian blur": np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "fastconv-examples")
    folder.mkdir(parents=True, exist_ok=True)
    photograph = load_sample_image("flower.jpg")[120:360, 180:480]  # (H, W, 3), bytes
    image = (photograph.transpose(2, 0, 1) / 255).astype(np.float32)  # (3, H, W), 0 to 1

    pictures = {}
    print(f"an image of {image.shape[1]}x{image.shape[2]} pixels, 3 colours")
    for name, taps in FILTERS.items():
        weight = np.broadcast_to(np.asarray(taps, np.float32), (3, 1, 3, 3))  # a copy of the filter for each colour
        began = time.perf_counter()
        # the edge cells go on beyond the edge: with zeros there, every filter would find an edge at it
        out = fastconv.conv2d(image, weight, padding="same", groups=3, padding_mode="replicate")
        seconds = time.perf_counter() - began
        print(f"{name:18} sum of the filter {np.sum(taps):4.1f}   result {out.min():6.2f} to {out.max():5.2f}   "
              f"{seconds * 1e3:.2f} ms")
        # an edge has two sides, one above and one below zero: what counts is how far from it
        shown = np.abs(out).clip(0, 1) if name.startswith("edges") else out.clip(0, 1)
        pictures[name] = shown.transpose(1, 2, 0)

    figure = Figure(figsize=(12, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    shown = {"before": photograph, **pictures}
    for axes, (name, picture) in zip(figure.subplots(2, 4).flat, shown.items(), strict=True):
        axes.imshow(picture)
        axes.set_title(name)
        axes.set_axis_off()
    path = folder / "classic_filters.png"
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
