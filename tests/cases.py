"""The geometries that tests and benchmarks share: one list for convolution, one for pooling, one for transposed.

Every kernel is run over all of these, so each case is small and is there for a reason, which its name gives. The
sizes look odd on purpose: register tiles are up to 14 output channels by 64 pixels and vectors up to 16 floats, so
that 13 filters, 65 columns or 130 channels end in the middle of one.

To add a geometry, add a line; nothing else has to change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ConvCase:
    """A convolution: shapes, and the arguments from `stride` to `groups` as the public functions take them.

    `core` marks the few that stand for all where a test varies something else (dtype, memory order, threads).
    """

    id: str
    x: Shape
    weight: Shape
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    core: bool = False

    def __str__(self) -> str:
        return self.id

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of conv2d and of its gradients."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def window(self) -> tuple[Any, ...]:
        """``filter_h, filter_w, stride, pad`` as im2col and col2im take them."""
        return (*self.weight[2:], self.stride, self.padding)


@dataclass(frozen=True)
class PoolCase:
    """A pooling: the shape, and the arguments as max_pool2d takes them."""

    id: str
    x: Shape
    kernel: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    core: bool = False

    def __str__(self) -> str:
        return self.id

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments that max_pool2d and avg_pool2d share."""
        return {"kernel_size": self.kernel, "stride": self.stride, "padding": self.padding, "dilation": self.dilation,
                "ceil_mode": self.ceil_mode}


@dataclass(frozen=True)
class TransposeCase:
    """A transposed convolution: shapes, and the arguments of conv_transpose2d."""

    id: str
    x: Shape
    weight: Shape
    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: int = 1
    dilation: Any = 1
    core: bool = False

    def __str__(self) -> str:
        return self.id

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of conv_transpose2d."""
        return {"stride": self.stride, "padding": self.padding, "output_padding": self.output_padding,
                "groups": self.groups, "dilation": self.dilation}


CONV_CASES = (
    # Kernels 1 to 7 and rectangular ones.
    *(ConvCase(f"kernel{k}", (2, 3, 9, 11), (5, 3, k, k), padding=k // 2, core=k == 3) for k in range(1, 8)),
    *(ConvCase(f"kernel{h}x{w}", (2, 3, 9, 10), (4, 3, h, w), padding=(h // 2, w // 2), core=(h, w) == (2, 5))
      for h, w in ((1, 3), (3, 1), (2, 5), (5, 2), (1, 7), (7, 1))),
    ConvCase("kernel-is-image", (3, 4, 7, 7), (6, 4, 7, 7)),
    ConvCase("kernel11-stride4", (1, 3, 35, 39), (7, 3, 11, 11), stride=4),

    # Strides 1 to 4, rectangular ones, and larger than the kernel.
    *(ConvCase(f"kernel{k}-stride{s}", (2, 3, 13, 18), (5, 3, k, k), stride=s, padding=k // 2, core=(k, s) == (3, 2))
      for k, s in ((1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 2), (5, 2), (5, 3), (7, 2))),
    *(ConvCase(f"kernel3-stride{h}x{w}", (2, 2, 14, 15), (3, 2, 3, 3), stride=(h, w), padding=1)
      for h, w in ((2, 1), (1, 2), (1, 3), (3, 2), (4, 3))),
    ConvCase("kernel2x1-stride5x4", (2, 3, 17, 19), (4, 3, 2, 1), stride=(5, 4)),
    ConvCase("stride2-wide", (1, 5, 6, 131), (13, 5, 3, 3), stride=2, padding=1),
    ConvCase("stride-leaves-cells-over", (2, 2, 10, 12), (3, 2, 3, 3), stride=4),

    # Four-sided and named padding; padding larger than the kernel's extent.
    ConvCase("pads-all-differ", (2, 3, 8, 9), (4, 3, 3, 4), padding=((0, 2), (3, 1)), core=True),
    ConvCase("pads-before", (1, 2, 7, 7), (3, 2, 3, 3), padding=((2, 0), (1, 0))),
    ConvCase("pads-after-stride2", (1, 2, 7, 8), (3, 2, 3, 3), stride=2, padding=((0, 1), (0, 2))),
    *(ConvCase(f"{name}-kernel{k}-stride{s}", (2, 2, 9, 12), (3, 2, k, k), stride=s, padding=name)
      for name in ("valid", "same", "same_lower", "full") for k, s in ((3, 1), (4, 1), (3, 2), (2, 3))),
    ConvCase("same-dilation2", (1, 2, 9, 12), (3, 2, 3, 2), padding="same", dilation=2),
    ConvCase("full-dilation3", (1, 2, 5, 6), (3, 2, 2, 3), padding="full", dilation=(3, 2)),
    ConvCase("padding-over-kernel1", (2, 3, 4, 5), (4, 3, 1, 1), padding=2),
    ConvCase("padding-over-kernel3", (2, 2, 4, 5), (3, 2, 3, 3), padding=5),
    ConvCase("padding-over-kernel2-stride3", (1, 2, 5, 4), (3, 2, 2, 2), stride=3, padding=(4, 7)),
    ConvCase("padding-over-image-one-side", (1, 2, 3, 3), (3, 2, 3, 3), padding=((0, 6), (7, 0))),
    ConvCase("padding-full-then-2-more", (1, 1, 3, 20), (2, 1, 3, 3), padding=4, stride=(1, 2)),

    # Dilation.
    ConvCase("dilation2", (2, 3, 9, 11), (4, 3, 3, 3), padding=2, dilation=2, core=True),
    ConvCase("dilation1x3", (1, 2, 9, 14), (3, 2, 3, 3), dilation=(1, 3)),
    ConvCase("dilation3x1-kernel2", (1, 2, 9, 9), (3, 2, 2, 4), padding=1, dilation=(3, 1)),
    ConvCase("dilation2-stride2", (2, 2, 12, 13), (3, 2, 3, 3), stride=2, padding=2, dilation=2),
    ConvCase("dilation3-stride2", (2, 2, 13, 12), (3, 2, 3, 3), stride=2, padding=3, dilation=3),
    ConvCase("dilation2-stride3x4", (1, 2, 14, 15), (3, 2, 3, 2), stride=(3, 4), padding=1, dilation=2),
    ConvCase("dilation-wider-than-image", (1, 2, 5, 6), (3, 2, 3, 3), padding=7, dilation=6),

    # More filters than pixels, of which the gradient of the image is made with the weights as they lie.
    ConvCase("few-pixels", (2, 5, 3, 3), (38, 5, 3, 3), padding=1),
    ConvCase("few-pixels-stride2-groups2", (1, 46, 5, 6), (70, 23, 3, 2), stride=2, padding=1, groups=2),
    ConvCase("few-pixels-one", (1, 7, 3, 3), (67, 7, 3, 3)),

    # Few channels and many filters, whose gradient has copies for each column of taps: dout where it lies, with a vector that
    # is not full, in bands of which one ends so, and of each kind of distance between the taps.
    ConvCase("few-channels", (2, 1, 28, 28), (30, 1, 5, 5), core=True),
    ConvCase("few-channels-images7", (7, 1, 12, 20), (18, 1, 5, 5)),
    ConvCase("few-channels-pixels99", (3, 2, 9, 11), (26, 2, 3, 3), padding=1, core=True),
    ConvCase("few-channels-bands", (2, 1, 131, 24), (20, 1, 3, 3), padding=1),
    ConvCase("few-channels-stride2x1", (2, 3, 15, 17), (25, 3, 3, 2), stride=(2, 1), padding=(1, 0)),
    ConvCase("few-channels-dilation3x2-groups2", (5, 4, 12, 19), (40, 2, 3, 2), padding=(2, 1), dilation=(3, 2), groups=2),
    ConvCase("few-channels-kernel1", (3, 4, 8, 10), (50, 4, 1, 1)),

    # Groups, and depthwise with one and with several filters for each channel.
    ConvCase("groups2", (2, 6, 9, 10), (8, 3, 3, 3), padding=1, groups=2, core=True),
    ConvCase("groups3-stride2", (2, 9, 9, 10), (6, 3, 3, 3), stride=2, padding=1, groups=3),
    ConvCase("groups4-kernel1", (2, 20, 6, 7), (28, 5, 1, 1), groups=4),
    ConvCase("groups2-many-channels", (1, 140, 6, 7), (14, 70, 3, 3), padding=1, groups=2),
    ConvCase("depthwise3", (2, 7, 9, 10), (7, 1, 3, 3), padding=1, groups=7, core=True),
    # Gradients of single planes with a stride: rows shorter than the woven vectors, ending inside of them, and odd ones.
    *(ConvCase(f"depthwise{k}-stride{h}x{w}-wide{size}", (2, 3, 7, size), (3, 1, k, k), stride=(h, w), padding=k // 2, groups=3)
      for k, h, w, size in ((3, 2, 2, 33), (3, 2, 2, 70), (3, 1, 2, 41), (5, 2, 3, 50), (1, 2, 2, 36), (3, 3, 4, 3))),
    ConvCase("depthwise3-stride2", (2, 6, 13, 14), (6, 1, 3, 3), stride=2, padding=1, groups=6),
    ConvCase("depthwise5-wide", (1, 3, 7, 67), (3, 1, 5, 5), padding=2, groups=3),
    ConvCase("depthwise3-stride2-wide", (2, 3, 35, 75), (3, 1, 3, 3), stride=2, padding=1, groups=3, core=True),
    ConvCase("depthwise5-stride2-wide", (1, 2, 41, 83), (4, 1, 5, 5), stride=2, padding=((0, 2), (3, 1)), groups=2),
    ConvCase("depthwise3-dilation2", (1, 4, 9, 33), (4, 1, 3, 3), padding=2, dilation=2, groups=4),
    ConvCase("depthwise-times2", (2, 5, 8, 9), (10, 1, 3, 3), padding=1, groups=5),
    ConvCase("depthwise-times3-stride2", (1, 4, 9, 8), (12, 1, 5, 5), stride=2, padding=2, groups=4),
    ConvCase("depthwise7-pads-all-differ", (1, 3, 9, 21), (3, 1, 7, 7), padding=((3, 1), (0, 5)), groups=3),
    ConvCase("depthwise1", (2, 5, 6, 7), (5, 1, 1, 1), groups=5),
    ConvCase("depthwise1-stride2", (2, 5, 6, 7), (5, 1, 1, 1), stride=2, groups=5),

    # Batches of none, of one and of many small images; the smallest images.
    ConvCase("batch0", (0, 3, 6, 7), (4, 3, 3, 3), padding=1, core=True),
    ConvCase("batch0-groups2-stride2", (0, 4, 6, 7), (6, 2, 3, 3), stride=2, groups=2),
    ConvCase("batch1", (1, 3, 8, 8), (4, 3, 3, 3), padding=1),
    ConvCase("batch33-of-5x5", (33, 4, 5, 5), (7, 4, 3, 3), padding=1),
    ConvCase("batch9-of-2x2", (9, 16, 2, 2), (13, 16, 3, 3), padding=1),
    ConvCase("one-pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
    ConvCase("one-pixel-kernel3", (2, 5, 1, 1), (6, 5, 3, 3), padding=1, core=True),
    ConvCase("one-pixel-kernel5-stride3", (3, 2, 1, 1), (3, 2, 5, 5), stride=3, padding=4),
    ConvCase("one-row", (2, 3, 1, 37), (5, 3, 1, 5), padding=(0, 2)),
    ConvCase("one-column", (2, 3, 37, 1), (5, 3, 5, 1), padding=(2, 0)),
    ConvCase("one-column-out", (2, 3, 9, 3), (5, 3, 3, 3)),
    ConvCase("two-columns", (1, 3, 6, 2), (5, 3, 3, 3), padding=1),
    ConvCase("three-columns-stride2", (1, 3, 6, 3), (5, 3, 3, 3), stride=2, padding=1),

    # Widths around whole vectors and tiles, filters around whole tiles: every width with three counts of filters.
    *(ConvCase(f"width{w}-filters{k}", (1, 2, 3, w), (k, 2, 3, 3), padding=1, core=(w, k) == (65, 13))
      for i, w in enumerate((4, 7, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65, 129))
      for k in ((1, 7, 13), (5, 8, 50), (6, 14, 28))[i % 3]),
    ConvCase("width65-filters13-kernel1", (1, 5, 3, 65), (13, 5, 1, 1)),
    ConvCase("width67-filters6-kernel5", (2, 1, 6, 67), (6, 1, 5, 5)),
    ConvCase("width130-filters7-stride2", (1, 3, 4, 130), (7, 3, 2, 2), stride=2),

    # Planes enough for im2col to split their rows into even and odd columns; windows that share no row, and that do.
    ConvCase("kernel2-stride2-planes18", (2, 9, 12, 27), (4, 9, 2, 2), stride=2),
    ConvCase("kernel3x2-stride2-planes16", (2, 8, 9, 38), (3, 8, 3, 2), stride=2),

    # Channels enough that the reduction is cut into blocks.
    ConvCase("channels70", (1, 70, 6, 9), (5, 70, 3, 3), padding=1),
    ConvCase("channels130-filters50", (1, 130, 5, 7), (50, 130, 3, 3), padding=1),
    ConvCase("channels70-stride2", (2, 70, 7, 9), (6, 70, 3, 3), stride=2, padding=1),
    # blocks of pixels end close to the end of all: vectors behind the last run but one must not reach beyond the array
    ConvCase("images29-kernel1", (29, 3, 3, 3), (4, 3, 1, 1)),
    ConvCase("images5-kernel1-groups2", (5, 6, 8, 8), (4, 3, 1, 1), groups=2),
    ConvCase("channels300-kernel1", (2, 300, 4, 5), (17, 300, 1, 1), core=True),
    ConvCase("kernel1-stride2-rows7", (3, 20, 13, 13), (10, 10, 1, 1), stride=2, groups=2),
    ConvCase("kernel1-stride3x2-rows16", (2, 5, 9, 31), (7, 5, 1, 1), stride=(3, 2)),
    ConvCase("kernel1-stride2-padding-after", (2, 4, 6, 8), (7, 4, 1, 1), stride=2, padding=((0, 1), (0, 1))),
    ConvCase("channels530-kernel1-stride2", (1, 530, 5, 5), (13, 530, 1, 1), stride=2),
    ConvCase("filters200-kernel1", (3, 5, 11, 12), (200, 5, 1, 1)),
    ConvCase("filters200-channels300-kernel1-stride2", (5, 300, 15, 13), (200, 300, 1, 1), stride=2),
    ConvCase("channels24-filters150", (1, 24, 6, 6), (150, 24, 3, 3), padding=1),

    # Images large enough for several bands of rows, and for several rows of tiles in each.
    ConvCase("bands", (1, 3, 131, 70), (8, 3, 3, 3), padding=1, core=True),
    ConvCase("bands-kernel5", (1, 2, 203, 33), (6, 2, 5, 5)),
    ConvCase("bands-stride2", (2, 2, 97, 101), (7, 2, 3, 3), stride=2, padding=1),
    ConvCase("bands-channels", (1, 40, 61, 45), (9, 40, 3, 3), padding=1),
    ConvCase("bands-depthwise", (1, 3, 150, 66), (3, 1, 3, 3), padding=1, groups=3),
    ConvCase("tall", (1, 1, 700, 3), (3, 1, 3, 3), padding=1),

    # Where the fast algorithms for 3x3 and 5x5 at stride 1 are chosen.
    ConvCase("square16", (2, 16, 16, 16), (16, 16, 3, 3), padding=1),
    ConvCase("square13-channels33-filters47", (2, 33, 13, 13), (47, 33, 3, 3), padding=1),
    ConvCase("valid18-channels20", (3, 20, 18, 17), (24, 20, 3, 3)),
    ConvCase("square7-channels64", (2, 64, 7, 7), (64, 64, 3, 3), padding=1),
    # A few pixels behind the last whole vector: of one image, and of two images of a pixel each.
    ConvCase("square7-channels75", (1, 75, 7, 7), (13, 75, 3, 3), padding=1),
    ConvCase("pixels18-channels261", (18, 261, 1, 1), (8, 261, 1, 1), core=True),
    ConvCase("kernel5-channels16", (2, 16, 12, 15), (18, 16, 5, 5), padding=2),
)


POOL_CASES = (
    # Windows and strides.
    PoolCase("2x2", (2, 3, 8, 10), 2, core=True),
    PoolCase("2x2-odd", (2, 3, 9, 11), 2),
    PoolCase("3x3-stride2-padding1", (2, 3, 9, 12), 3, stride=2, padding=1, core=True),
    PoolCase("3x3-stride1-padding1", (2, 3, 9, 12), 3, stride=1, padding=1, core=True),
    PoolCase("3x3-stride2", (2, 2, 13, 13), 3, stride=2),
    PoolCase("1x1", (2, 2, 4, 5), 1),
    PoolCase("1x1-stride2", (2, 2, 5, 6), 1, stride=2),
    PoolCase("2x2-stride1", (1, 2, 6, 7), 2, stride=1),
    PoolCase("3x3-stride3", (1, 2, 11, 10), 3),
    PoolCase("4x4-stride2", (1, 2, 12, 11), 4, stride=2, padding=1),
    PoolCase("5x5-stride1-padding2", (1, 2, 9, 19), 5, stride=1, padding=2),
    PoolCase("7x7-stride4", (1, 2, 19, 25), 7, stride=4, padding=3),
    PoolCase("2x3-stride3x2", (2, 2, 9, 10), (2, 3), stride=(3, 2), padding=(0, 1)),
    PoolCase("1x5", (1, 2, 4, 21), (1, 5), stride=(1, 2), padding=(0, 2)),
    PoolCase("5x1", (1, 2, 21, 4), (5, 1), stride=(2, 1), padding=(2, 0)),
    PoolCase("stride-over-window", (1, 2, 13, 17), 2, stride=(4, 3)),
    PoolCase("window-is-image", (3, 4, 7, 7), 7),

    # Padding.
    PoolCase("pads-all-differ", (2, 2, 7, 8), (3, 4), stride=1, padding=((0, 2), (3, 1)), core=True),
    PoolCase("pads-widest", (1, 2, 4, 5), 3, stride=1, padding=2),
    PoolCase("same-2x2-stride1", (1, 2, 5, 6), 2, stride=1, padding="same"),
    PoolCase("same-3x3-stride2", (1, 2, 8, 9), 3, stride=2, padding="same"),
    PoolCase("same_lower-2x2-stride2", (1, 2, 7, 9), 2, stride=2, padding="same_lower"),
    PoolCase("full-2x2", (1, 2, 4, 5), 2, stride=1, padding="full"),

    # Rounding up.
    PoolCase("ceil-2x2", (2, 2, 7, 9), 2, ceil_mode=True, core=True),
    PoolCase("ceil-3x3-stride2-padding1", (1, 2, 8, 10), 3, stride=2, padding=1, ceil_mode=True),
    PoolCase("ceil-drops-last", (1, 2, 6, 6), 2, stride=3, padding=((0, 1), (1, 1)), ceil_mode=True),
    PoolCase("ceil-window-over-image", (1, 2, 2, 1), 3, stride=3, ceil_mode=True),
    PoolCase("ceil-pads-all-differ", (1, 2, 8, 9), 3, stride=3, padding=((2, 0), (1, 2)), ceil_mode=True),

    # Dilation.
    PoolCase("dilation2", (2, 2, 9, 12), 3, stride=2, padding=1, dilation=2, core=True),
    PoolCase("dilation1x3", (1, 2, 6, 13), (2, 3), stride=1, dilation=(1, 3)),
    PoolCase("dilation2-ceil", (1, 2, 10, 11), 2, stride=3, padding=1, dilation=2, ceil_mode=True),

    # Sizes.
    PoolCase("batch0", (0, 2, 6, 7), 2, core=True),
    PoolCase("one-pixel", (2, 3, 1, 1), 1),
    PoolCase("one-pixel-3x3", (2, 3, 1, 1), 3, stride=2, padding=1),
    PoolCase("one-row", (1, 2, 1, 35), (1, 2)),
    *(PoolCase(f"width{w}", (1, 2, 4, w), 2, core=w == 65) for w in (3, 15, 16, 17, 31, 32, 33, 34, 63, 64, 65, 129)),
    *(PoolCase(f"width{w}-3x3-stride2", (1, 2, 5, w), 3, stride=2, padding=1) for w in (16, 17, 33, 64, 65, 130)),
    *(PoolCase(f"width{w}-3x3-stride1", (1, 2, 5, w), 3, stride=1, padding=1) for w in (16, 17, 18, 65)),
    # planes that do not fit L1, with stride 2: row by row
    PoolCase("rows-3x3-stride2-padding1", (2, 2, 21, 130), 3, stride=2, padding=1, core=True),
    PoolCase("rows-3x3-stride2-ceil", (2, 2, 40, 67), 3, stride=2, padding=((2, 1), (0, 2)), ceil_mode=True),
    PoolCase("rows-3x3-stride2", (1, 3, 19, 143), 3, stride=2),
    PoolCase("rows-2x2-padding1", (1, 2, 9, 66), 2, stride=2, padding=1),
    PoolCase("many-planes", (5, 37, 4, 4), 2),
    # Planes that averages' gradients turn, some more than a multiple of what a vector holds.
    PoolCase("small-3x3-stride1-padding1", (1, 37, 7, 7), 3, stride=1, padding=1, core=True),
    PoolCase("small-3x3-stride2-padding1", (3, 7, 8, 7), 3, stride=2, padding=1),
    PoolCase("small-2x2-stride1", (1, 19, 6, 9), 2, stride=1),
    PoolCase("narrow-2x2-stride1", (2, 17, 7, 7), 2, stride=1),
    PoolCase("narrow-3x3-stride1", (2, 17, 7, 7), 3, stride=1),
    PoolCase("narrow-3x3-stride1-rows-left-over", (1, 23, 6, 5), 3, stride=1),
    PoolCase("small-2x2-ceil", (1, 33, 7, 5), 2, ceil_mode=True),
    PoolCase("small-dilation2x1", (2, 11, 9, 12), (3, 2), stride=(2, 1), padding=1, dilation=(2, 1)),
    PoolCase("small-pads-all-differ", (1, 17, 7, 8), (3, 4), stride=(1, 3), padding=((2, 1), (0, 3)), ceil_mode=True),
    PoolCase("small-gaps", (1, 40, 13, 11), 2, stride=(5, 3), core=True),
    PoolCase("small-wide-window", (1, 18, 5, 4), 9, stride=2, padding=4),
    PoolCase("small-one-row", (1, 31, 1, 3), (1, 2), stride=1),
    PoolCase("large", (1, 2, 120, 131), 2),
    PoolCase("large-3x3-stride2", (1, 2, 121, 90), 3, stride=2, padding=1),
)


TRANSPOSE_CASES = (
    TransposeCase("kernel3", (2, 3, 5, 6), (3, 4, 3, 3), core=True),
    TransposeCase("kernel3-padding1", (2, 3, 5, 6), (3, 4, 3, 3), padding=1),
    TransposeCase("kernel2-stride2", (2, 5, 6, 7), (5, 3, 2, 2), stride=2, core=True),
    TransposeCase("kernel4-stride2-padding1", (2, 4, 5, 6), (4, 3, 4, 4), stride=2, padding=1),
    TransposeCase("kernel3-stride2-output-padding1", (2, 4, 5, 6), (4, 3, 3, 3), stride=2, padding=1,
                  output_padding=1, core=True),
    TransposeCase("output-padding-one-axis", (1, 2, 5, 6), (2, 3, 3, 3), stride=(3, 2), output_padding=(2, 0)),
    TransposeCase("output-padding-by-dilation", (1, 2, 5, 6), (2, 3, 3, 3), dilation=2, output_padding=1),
    TransposeCase("stride-over-kernel", (1, 2, 4, 5), (2, 3, 2, 2), stride=(4, 3)),
    TransposeCase("pads-all-differ", (1, 2, 6, 7), (2, 3, 3, 4), padding=((0, 2), (1, 3))),
    TransposeCase("padding-over-kernel", (1, 2, 7, 8), (2, 3, 2, 2), padding=2),
    TransposeCase("dilation2-stride2", (1, 2, 5, 4), (2, 3, 3, 3), stride=2, padding=1, dilation=2),
    TransposeCase("groups2", (2, 6, 5, 4), (6, 2, 3, 3), stride=2, padding=1, groups=2, core=True),
    TransposeCase("depthwise", (1, 5, 6, 7), (5, 1, 3, 3), padding=1, groups=5),
    TransposeCase("same", (1, 2, 5, 6), (2, 3, 3, 3), stride=2, padding="same"),
    TransposeCase("same_lower", (1, 2, 5, 6), (2, 3, 4, 3), stride=3, padding="same_lower"),
    TransposeCase("same-kernel-below-stride", (1, 2, 3, 4), (2, 3, 2, 2), stride=3, padding="same"),
    TransposeCase("valid", (1, 2, 3, 4), (2, 3, 3, 2), stride=2, padding="valid"),
    TransposeCase("full", (1, 2, 7, 8), (2, 3, 3, 3), padding="full"),
    TransposeCase("batch0", (0, 2, 3, 4), (2, 3, 3, 3)),
    TransposeCase("one-pixel", (2, 3, 1, 1), (3, 4, 4, 4)),
    TransposeCase("wide", (1, 3, 4, 65), (3, 7, 3, 3), stride=2, padding=1),
    TransposeCase("channels70", (1, 70, 5, 5), (70, 6, 3, 3), padding=1),
)


CORE_CONV_CASES = tuple(case for case in CONV_CASES if case.core)
CORE_POOL_CASES = tuple(case for case in POOL_CASES if case.core)
CORE_TRANSPOSE_CASES = tuple(case for case in TRANSPOSE_CASES if case.core)

#: im2col and col2im do not look at filters and groups: each window once.
LOWERING_CASES = tuple({(case.x, case.window, case.dilation): case for case in reversed(CONV_CASES)}.values())[::-1]
