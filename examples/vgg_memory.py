"""What the column matrix costs: scratch memory of the layers of VGG-16, with im2col and without.

    python examples/vgg_memory.py [FOLDER [BATCH]]

`plan_conv2d` knows what every algorithm would take before anything is computed; of one layer the memory is measured as
well. It writes `vgg_memory.png`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import fastconv
from fastconv.benchmarks.footprint import count_arrays

#: Channels in and out and the size of the image, of the thirteen 3x3 convolutions (Simonyan and Zisserman 2014).
LAYERS = [(3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 256, 56),
          (256, 512, 28), (512, 512, 28), (512, 512, 28), (512, 512, 14), (512, 512, 14), (512, 512, 14)]
MB = 2**20


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "fastconv-examples")
    folder.mkdir(parents=True, exist_ok=True)
    batch = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    rows = []
    print(f"VGG-16, a batch of {batch}, float32, MB of scratch: column matrix, what fastconv takes instead")
    for number, (channels, filters, size) in enumerate(LAYERS, start=1):
        x, weight = (batch, channels, size, size), (filters, channels, 3, 3)
        plan = fastconv.plan_conv2d(x, weight, padding=1)
        scratch = {candidate.algorithm: candidate.workspace_bytes / MB for candidate in plan.candidates}
        image = np.prod(x) * 4 / MB
        rows.append((f"{number}", image, scratch["im2col"], plan.workspace_bytes / MB))
        print(f"conv {number:2}  {channels:3} -> {filters:3} at {size:3}x{size:<3}  image {image:6.1f}   "
              f"im2col {scratch['im2col']:7.1f}   {plan.algorithm:13} {plan.workspace_bytes / MB:6.2f}")
    total = np.array([row[1:] for row in rows]).sum(axis=0)
    print(f"all together: images {total[0]:.0f} MB, column matrices {total[1]:.0f} MB ({total[1] / total[0]:.1f} times as "
          f"much), instead {total[2]:.1f} MB ({total[1] / total[2]:.0f} times less)")

    channels, filters, size = LAYERS[7]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, channels, size, size), dtype=np.float32)
    weight = rng.standard_normal((filters, channels, 3, 3), dtype=np.float32)
    out = np.empty((batch, filters, size, size), np.float32)
    print("conv 8, measured:")
    for candidate in fastconv.plan_conv2d(x.shape, weight.shape, padding=1).candidates:

        def call(algorithm: str = candidate.algorithm) -> None:
            fastconv.conv2d(x, weight, padding=1, algorithm=algorithm, out=out)

        call()  # what the first call of all sets up is not its scratch
        print(f"    {candidate.algorithm:13} predicted {candidate.workspace_bytes / MB:6.2f} MB, measured "
              f"{count_arrays(call)[0] / MB:6.2f} MB")

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, places = figure.subplots(), np.arange(len(rows))
    for offset, column, label, colour in ((-0.27, 1, "the image itself", "0.7"), (0, 2, "column matrix of im2col", "#0072B2"),
                                          (0.27, 3, "scratch of fastconv's choice", "#D55E00")):
        axes.bar(places + offset, [row[column] for row in rows], 0.27, label=label, color=colour)
    axes.set_yscale("log")
    axes.set(xticks=places, xticklabels=[row[0] for row in rows], xlabel="convolution of VGG-16", ylabel="MB",
             title=f"memory of a batch of {batch}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path = folder / "vgg_memory.png"
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
