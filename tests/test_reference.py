"""The reference, against what comes from elsewhere: never against the kernels, which are tested against the reference.

Elsewhere is: examples that were worked out by others; the definitions, written out below as loops over single cells;
finite differences and the adjoint identities; and PyTorch, where it is installed.

Nearly all inputs are small whole numbers in floating point. Their sums are exact in any order, so that most comparisons
here need no tolerance.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fastconv import reference
from fastconv.geometry import LAYOUTS

pytestmark = pytest.mark.filterwarnings("error")  # the reference lets no NumPy warning out

NAN, INF = math.nan, math.inf


def whole_numbers(*shape: int, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(-4, 5, shape).astype(dtype)


def assert_same(result: Any, expected: np.ndarray) -> None:
    """Equal to the last bit (but for the sign of zero), in shape and in dtype."""
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert_array_equal(result, expected)


def assert_near(result: Any, expected: np.ndarray, **tolerance: float) -> None:
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert_allclose(result, expected, **tolerance)


def image(rows: Any, dtype: Any = np.float64) -> np.ndarray:
    """One image of one channel, ``(1, 1, H, W)``."""
    return np.array(rows, dtype)[np.newaxis, np.newaxis]


def counting(height: int, width: int, start: int = 0) -> np.ndarray:
    """One image whose cells are counted in row-major order."""
    return np.arange(start, start + height * width, dtype=np.float64).reshape(1, 1, height, width)


# --- examples that were worked out elsewhere ------------------------------------------------------------------------


class TestWorkedExamples:
    """Each test names its source."""

    def test_filter_of_deep_learning_from_scratch(self):
        x = image([[1, 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]])
        weight = image([[2, 0, 1], [0, 1, 2], [1, 0, 2]])
        assert_array_equal(reference.conv2d(x, weight), image([[15, 16], [6, 15]]))
        assert_array_equal(reference.conv2d(x, weight, [3.0]), image([[18, 19], [9, 18]]))

    def test_im2col_shapes_of_deep_learning_from_scratch(self):
        assert reference.im2col(np.zeros((1, 3, 7, 7)), 5, 5, stride=1, pad=0).shape == (9, 75)
        assert reference.im2col(np.zeros((10, 3, 7, 7)), 5, 5, stride=1, pad=0).shape == (90, 75)

    @pytest.mark.parametrize(("padding", "flip", "expected"), [
        ("valid", False, [48, 57, 24, 25, 16, 39]),
        ("same_lower", False, [34, 51, 48, 57, 24, 25, 16, 39, 29]),
        ("valid", True, [63, 48, 49, 28, 21, 20]),
    ])
    def test_one_dimensional_correlation(self, padding, flip, expected):
        # With a filter of 4 the classic "same" puts two of the three cells of padding in front.
        x, weight = image([[2, 8, 3, 7, 1, 2, 0, 4, 5]]), image([[2, 1, 5, 3]])
        weight = weight[..., ::-1] if flip else weight
        assert_array_equal(reference.conv2d(x, weight, padding=padding), image([expected]))

    def test_sum_filter_of_keras(self):
        x, weight = counting(3, 3, start=1), np.ones((1, 1, 2, 2))
        assert_array_equal(reference.conv2d(x, weight, padding="same"), image([[12, 16, 9], [24, 28, 15], [15, 17, 9]]))

    def test_same_max_pooling_of_keras(self):
        x = image([[4, 3], [2, 1]])
        assert_array_equal(reference.max_pool2d(x, 2, stride=1, padding="same"), x)

    def test_figures_of_the_guide_to_convolution_arithmetic(self):
        # Dumoulin and Visin, arXiv:1603.07285, figures 1.1, 1.5 (average, printed with one decimal) and 1.6 (maximum)
        x = image([[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]])
        weight = image([[0, 1, 2], [2, 2, 0], [0, 1, 2]])
        assert_array_equal(reference.conv2d(x, weight), image([[12, 12, 17], [10, 17, 19], [9, 6, 14]]))
        assert_array_equal(reference.max_pool2d(x, 3, 1), image([[3, 3, 3], [3, 3, 3], [3, 2, 3]]))
        assert_array_equal(reference.avg_pool2d(x, 3, 1).round(1),
                           image([[1.7, 1.7, 1.7], [1.0, 1.2, 1.8], [1.1, 0.8, 1.3]]))

    def test_convolution_of_cs231n(self):
        # assignment 2, ConvolutionalNetworks.ipynb, printed with eight decimals
        x = np.linspace(-0.1, 0.5, 96).reshape(2, 3, 4, 4)
        weight = np.linspace(-0.2, 0.3, 144).reshape(3, 3, 4, 4)
        expected = np.array([
            -0.08759809, -0.10987781, -0.18387192, -0.2109216, 0.21027089, 0.21661097, 0.22847626, 0.23004637,
            0.50813986, 0.54309974, 0.64082444, 0.67101435, -0.98053589, -1.03143541, -1.19128892, -1.24695841,
            0.69108355, 0.66880383, 0.59480972, 0.56776003, 2.36270298, 2.36904306, 2.38090835, 2.38247847,
        ]).reshape(2, 3, 2, 2)
        result = reference.conv2d(x, weight, np.linspace(-0.1, 0.2, 3), stride=2, padding=1)
        assert_allclose(result, expected, rtol=0, atol=5.1e-9)

    @pytest.mark.parametrize(("rows", "stride", "padding", "expected"), [
        (5, 1, 1, [[12, 21, 27, 33, 24], [33, 54, 63, 72, 51], [63, 99, 108, 117, 81], [93, 144, 153, 162, 111],
                   [72, 111, 117, 123, 84]]),
        (5, 1, 0, [[54, 63, 72], [99, 108, 117], [144, 153, 162]]),
        (7, 2, 1, [[12, 27, 24], [63, 108, 81], [123, 198, 141], [112, 177, 124]]),
        (7, 2, 0, [[54, 72], [144, 162], [234, 252]]),
        (7, 2, (1, 0), [[21, 33], [99, 117], [189, 207], [171, 183]]),
    ])
    def test_conv_of_onnx(self, rows, stride, padding, expected):
        result = reference.conv2d(counting(rows, 5), np.ones((1, 1, 3, 3)), None, stride, padding)
        assert_array_equal(result, image(expected))

    @pytest.mark.parametrize(("weight", "arguments", "expected"), [
        ((3, 3), {}, [[0, 1, 3, 3, 2], [3, 8, 15, 12, 7], [9, 21, 36, 27, 15], [9, 20, 33, 24, 13],
                      [6, 13, 21, 15, 8]]),
        ((3, 3), {"stride": (3, 2), "output_padding": 1},
         [*[[0, 0, 1, 1, 3, 2, 2, 0]] * 3, *[[3, 3, 7, 4, 9, 5, 5, 0]] * 3, *[[6, 6, 13, 7, 15, 8, 8, 0]] * 3,
          [0] * 8]),
        ((3, 3), {"stride": (3, 2), "padding": (1, 2)},
         [*[[1, 1, 3]] * 2, *[[7, 4, 9]] * 3, *[[13, 7, 15]] * 2]),
    ])
    def test_conv_transpose_of_onnx(self, weight, arguments, expected):
        result = reference.conv_transpose2d(counting(3, 3), np.ones((1, 2, *weight)), **arguments)
        assert_array_equal(result, np.array([[expected, expected]]))

    def test_dilated_conv_transpose_of_onnx(self):
        x, weight = image([[3, 8, 1], [9, 5, 7], [3, 2, 6]]), image([[7, 2], [1, 9]])
        assert_array_equal(reference.conv_transpose2d(x, weight, dilation=2), image(
            [[21, 56, 13, 16, 2], [63, 35, 67, 10, 14], [24, 22, 76, 76, 21], [9, 5, 88, 45, 63], [3, 2, 33, 18, 54]]))

    @pytest.mark.parametrize("dtype", [np.float32, np.uint8])
    def test_max_pool_of_onnx(self, dtype):
        values, indices = reference.max_pool2d(counting(5, 5, start=1).astype(dtype), 5, 1, 2, return_indices=True)
        assert_array_equal(values, image([[13, 14, 15, 15, 15], [18, 19, 20, 20, 20], *[[23, 24, 25, 25, 25]] * 3]))
        assert_array_equal(indices, image([[12, 13, 14, 14, 14], [17, 18, 19, 19, 19], *[[22, 23, 24, 24, 24]] * 3]))
        assert values.dtype == dtype

    def test_other_max_pools_of_onnx(self):
        x4, x5 = counting(4, 4, start=1), counting(5, 5, start=1)
        assert_array_equal(reference.max_pool2d(x5, 2, 2), image([[7, 9], [17, 19]]))
        assert_array_equal(reference.max_pool2d(x5, 3, 2, "same"), image([[7, 9, 10], [17, 19, 20], [22, 24, 25]]))
        assert_array_equal(reference.max_pool2d(x4, 3, 2, ceil_mode=True), image([[11, 12], [15, 16]]))
        assert_array_equal(reference.max_pool2d(x4, 2, 1, dilation=2), image([[11, 12], [15, 16]]))

    def test_average_pools_of_onnx(self):
        x4, x5 = counting(4, 4, start=1), counting(5, 5, start=1)
        assert_array_equal(
            reference.avg_pool2d(x5, 5, 1, 2, count_include_pad=False),
            image([[7, 7.5, 8, 8.5, 9], [9.5, 10, 10.5, 11, 11.5], [12, 12.5, 13, 13.5, 14],
                   [14.5, 15, 15.5, 16, 16.5], [17, 17.5, 18, 18.5, 19]]))
        assert_array_equal(
            reference.avg_pool2d(x5, 5, 1, 2),
            image([[2.52, 3.6, 4.8, 4.08, 3.24], [4.56, 6.4, 8.4, 7.04, 5.52], [7.2, 10, 13, 10.8, 8.4],
                   [6.96, 9.6, 12.4, 10.24, 7.92], [6.12, 8.4, 10.8, 8.88, 6.84]]))
        assert_array_equal(reference.avg_pool2d(x5, 3, 2, "same", count_include_pad=False),
                           image([[4, 5.5, 7], [11.5, 13, 14.5], [19, 20.5, 22]]))
        assert_array_equal(reference.avg_pool2d(x4, 3, 2, ceil_mode=True), image([[6, 7.5], [12, 13.5]]))
        assert_array_equal(reference.avg_pool2d(x4, 2, 1, ceil_mode=True, dilation=2), image([[6, 7], [10, 11]]))

    def test_average_pool_of_onnx_whose_last_window_would_start_on_padding(self):
        x = np.array([[[[0.8580, 0.0786], [0.2692, 0.1537]], [[0.8816, 0.4353], [0.5772, 0.6623]],
                       [[0.9067, 0.9483], [0.5970, 0.7630]]]])
        result = reference.avg_pool2d(x, 3, 3, 1, ceil_mode=True)
        assert_allclose(result.ravel(), [0.1511, 0.2841, 0.3572], rtol=0, atol=1e-4)  # printed with four decimals


# --- the definitions as loops over single cells ---------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """A sliding window over images of one size, spelled out: no shape rule of the package is used here."""

    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    def starts(self, axis: int) -> list[int]:
        """Where the windows along `axis` start, from -before: as long as they fit, or with ceil_mode cover the end."""
        before, after = self.pads[axis]
        end = self.size[axis] + after
        covered = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        starts = list(itertools.takewhile(lambda start: start + covered <= end,
                                          itertools.count(-before, self.stride[axis])))
        if self.ceil_mode and (not starts or starts[-1] + covered < end):
            start = starts[-1] + self.stride[axis] if starts else -before
            if start < self.size[axis]:
                starts.append(start)
        return starts

    def positions(self) -> Any:
        """``(oy, ox), (y, x)`` of every window: its place in the output, and its first cell."""
        for (oy, y), (ox, x) in itertools.product(enumerate(self.starts(0)), enumerate(self.starts(1))):
            yield (oy, ox), (y, x)

    def taps(self, start: tuple[int, int]) -> Any:
        """``(i, j), (y, x), inside`` of every tap of a window, in row-major order."""
        for i, j in itertools.product(range(self.kernel[0]), range(self.kernel[1])):
            y, x = start[0] + i * self.dilation[0], start[1] + j * self.dilation[1]
            yield (i, j), (y, x), 0 <= y < self.size[0] and 0 <= x < self.size[1]

    @property
    def out_size(self) -> tuple[int, int]:
        return len(self.starts(0)), len(self.starts(1))


def convolution_by_loops(x: Any, weight: Any, dout: Any, windows: Windows, groups: int) -> tuple[Any, Any, Any]:
    """The output, and for `dout` the gradients with respect to `x` and `weight`, one multiplication at a time."""
    filters, group_channels = weight.shape[:2]
    out = np.zeros((len(x), filters, *windows.out_size))
    dx, dweight = np.zeros(x.shape), np.zeros(weight.shape)
    for n in range(len(x)):
        for k in range(filters):
            group = k // (filters // groups)
            for place, start in windows.positions():
                gradient = float(dout[n, k][place])
                for c in range(group_channels):
                    channel = group * group_channels + c
                    for tap, cell, inside in windows.taps(start):
                        value = float(x[n, channel][cell]) if inside else 0.0
                        factor = float(weight[k, c][tap])
                        out[n, k][place] = float(out[n, k][place]) + factor * value
                        dweight[k, c][tap] = float(dweight[k, c][tap]) + gradient * value
                        if inside:
                            dx[n, channel][cell] = float(dx[n, channel][cell]) + gradient * factor
    return out, dx, dweight


def max_pool_by_loops(x: Any, windows: Windows) -> tuple[Any, Any]:
    values = np.empty((*x.shape[:2], *windows.out_size), x.dtype)
    indices = np.empty(values.shape, np.int64)
    for n, c in np.ndindex(*x.shape[:2]):
        for place, start in windows.positions():
            cells = [(x[n, c][cell], cell[0] * windows.size[1] + cell[1])
                     for _, cell, inside in windows.taps(start) if inside]
            nans = [cell for cell in cells if np.isnan(cell[0])]
            largest = nans[0] if nans else max(cells, key=lambda cell: cell[0])  # max keeps the first of equals
            values[n, c][place], indices[n, c][place] = largest
    return values, indices


def average_pool_by_loops(x: Any, dout: Any, windows: Windows, count_include_pad: bool,
                          divisor_override: int | None) -> tuple[Any, Any]:
    """The output, exact and rounded once, and for `dout` the gradient with respect to `x`."""
    out, dx = np.empty((*x.shape[:2], *windows.out_size)), np.zeros(x.shape)
    ends = [windows.size[axis] + windows.pads[axis][1] for axis in (0, 1)]
    for n, c in np.ndindex(*x.shape[:2]):
        for place, start in windows.positions():
            taps = list(windows.taps(start))
            inner = [cell for _, cell, inside in taps if inside]
            counted = [cell for _, cell, _ in taps if cell[0] < ends[0] and cell[1] < ends[1]]
            divisor = divisor_override or len(counted if count_include_pad else inner)
            out[n, c][place] = float(Fraction(sum(int(x[n, c][cell]) for cell in inner), divisor))
            for cell in inner:
                dx[n, c][cell] += dout[n, c][place] / divisor
    return out, dx


@dataclass(frozen=True)
class Conv:
    """A convolution as it is asked for, and its padding on four sides as it should be understood."""

    id: str
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    @property
    def windows(self) -> Windows:
        return Windows((self.x[2], self.x[3]), (self.weight[2], self.weight[3]), two(self.stride), self.pads,
                       two(self.dilation))

    @property
    def arguments(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def output(self) -> tuple[int, int, int, int]:
        return (self.x[0], self.weight[0], *self.windows.out_size)


def two(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


CONVOLUTIONS = [
    Conv("plain", (2, 2, 5, 4), (3, 2, 3, 2)),
    Conv("one-pixel", (1, 3, 1, 1), (2, 3, 1, 1)),
    Conv("filter-as-large-as-image", (2, 1, 3, 4), (2, 1, 3, 4)),
    Conv("batch-0", (0, 2, 5, 5), (3, 2, 3, 3), padding=1, pads=((1, 1), (1, 1))),
    Conv("stride", (1, 2, 6, 7), (2, 2, 3, 3), stride=(2, 3)),
    Conv("stride-above-filter", (1, 1, 8, 7), (2, 1, 2, 1), stride=(3, 4)),
    Conv("cells-in-no-window", (1, 1, 6, 6), (1, 1, 3, 3), stride=2),
    Conv("pad", (2, 1, 4, 4), (2, 1, 3, 3), padding=1, pads=((1, 1), (1, 1))),
    Conv("pad-pair", (1, 1, 3, 4), (1, 1, 3, 3), padding=(2, 1), pads=((2, 2), (1, 1))),
    Conv("four-sided-pad", (1, 2, 3, 4), (1, 2, 2, 3), padding=((0, 2), (3, 1)), pads=((0, 2), (3, 1))),
    Conv("pad-above-filter", (1, 1, 2, 2), (1, 1, 2, 2), stride=3, padding=4, pads=((4, 4), (4, 4))),
    Conv("same", (1, 1, 5, 6), (1, 1, 2, 4), padding="same", pads=((0, 1), (1, 2))),
    Conv("same-lower", (1, 1, 5, 6), (1, 1, 2, 4), padding="same_lower", pads=((1, 0), (2, 1))),
    Conv("same-stride", (1, 1, 5, 6), (1, 1, 3, 4), stride=2, padding="same", pads=((1, 1), (1, 1))),
    Conv("full", (1, 1, 3, 2), (1, 1, 2, 3), padding="full", pads=((1, 1), (2, 2))),
    Conv("dilation", (1, 2, 7, 6), (2, 2, 3, 2), dilation=(2, 3)),
    Conv("dilation-full", (1, 1, 2, 3), (1, 1, 2, 2), padding="full", dilation=2, pads=((2, 2), (2, 2))),
    Conv("groups", (1, 4, 4, 3), (6, 2, 2, 2), groups=2),
    Conv("depthwise", (2, 3, 4, 4), (3, 1, 3, 3), padding=1, groups=3, pads=((1, 1), (1, 1))),
    Conv("depthwise-multiplier-2", (1, 3, 3, 3), (6, 1, 2, 2), groups=3),
    Conv("everything", (2, 4, 7, 6), (2, 2, 2, 3), (3, 2), ((2, 0), (1, 3)), (3, 2), 2, pads=((2, 0), (1, 3))),
]
every_convolution = pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case.id)


@dataclass(frozen=True)
class Pool:
    """A pooling as it is asked for, and its windows as they should be understood."""

    id: str
    x: tuple[int, int, int, int]
    kernel: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False
    pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    @property
    def windows(self) -> Windows:
        return Windows((self.x[2], self.x[3]), two(self.kernel), two(self.stride or self.kernel), self.pads,
                       two(self.dilation), self.ceil_mode)

    @property
    def max_arguments(self) -> tuple[Any, ...]:
        return self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode

    @property
    def average_arguments(self) -> tuple[Any, ...]:
        return self.kernel, self.stride, self.padding, self.ceil_mode


POOLINGS = [
    Pool("plain", (2, 2, 4, 6), 2),
    Pool("one-pixel", (1, 2, 1, 1), 1),
    Pool("batch-0", (0, 2, 4, 4), 2),
    Pool("overlap", (1, 2, 6, 5), 3, 2),
    Pool("stride-above-window", (1, 1, 7, 8), (1, 2), 3),
    Pool("pad", (2, 1, 4, 5), 3, 2, 1, pads=((1, 1), (1, 1))),
    Pool("pad-of-window-less-one", (1, 1, 3, 3), 3, 1, 2, pads=((2, 2), (2, 2))),
    Pool("four-sided-pad", (1, 1, 3, 4), (2, 4), 1, ((0, 1), (3, 2)), pads=((0, 1), (3, 2))),
    Pool("same", (1, 1, 4, 5), 2, 1, "same", pads=((0, 1), (0, 1))),
    Pool("same-lower", (1, 1, 4, 5), 2, 1, "same_lower", pads=((1, 0), (1, 0))),
    Pool("dilation", (1, 1, 6, 7), (2, 3), 1, dilation=(3, 2)),
    Pool("dilation-pad", (1, 1, 5, 5), 2, 2, 1, 2, pads=((1, 1), (1, 1))),
    Pool("ceil", (1, 2, 4, 5), 3, 2, ceil_mode=True),
    Pool("ceil-pad", (1, 1, 5, 6), 3, 2, 1, ceil_mode=True, pads=((1, 1), (1, 1))),
    Pool("ceil-drops-window-in-padding", (1, 1, 2, 5), 3, 3, 1, ceil_mode=True, pads=((1, 1), (1, 1))),
    Pool("ceil-window-above-image", (1, 1, 2, 2), 3, 2, ceil_mode=True),
    Pool("ceil-four-sided-pad", (1, 1, 5, 4), (3, 2), 2, ((2, 0), (0, 1)), ceil_mode=True, pads=((2, 0), (0, 1))),
    Pool("ceil-dilation", (1, 1, 6, 8), 2, 3, 1, 2, ceil_mode=True, pads=((1, 1), (1, 1))),
]
every_pooling = pytest.mark.parametrize("case", POOLINGS, ids=lambda case: case.id)


class TestDefinition:
    @every_convolution
    def test_convolution(self, case):
        x, weight = whole_numbers(*case.x), whole_numbers(*case.weight, seed=1)
        dout = whole_numbers(*case.output, seed=2)
        out, dx, dweight = convolution_by_loops(x, weight, dout, case.windows, case.groups)
        bias = whole_numbers(case.weight[0], seed=3)

        assert_same(reference.conv2d(x, weight, **case.arguments), out)
        out += bias.reshape(1, -1, 1, 1)
        assert_same(reference.conv2d(x, weight, bias, **case.arguments), out)
        rectified = reference.conv2d(x, weight, bias, **case.arguments, activation="relu")
        assert_same(rectified, np.where(out > 0, out, 0))

        gradients = reference.conv2d_backward(dout, x, weight, **case.arguments)
        for gradient, expected in zip(gradients, (dx, dweight, dout.sum((0, 2, 3))), strict=True):
            assert_same(gradient, expected)
        assert_same(reference.conv2d_backward_data(dout, weight, x.shape, **case.arguments), dx)
        assert_same(reference.conv2d_backward_weight(dout, x, weight.shape, **case.arguments), dweight)

    @every_convolution
    @pytest.mark.parametrize("special", [NAN, INF, -INF])
    def test_convolution_of_what_is_not_finite(self, case, special):
        arrays = x, weight, dout = [whole_numbers(*shape, seed=4) for shape in (case.x, case.weight, case.output)]
        for array in arrays:
            array[array == 4] = special
        out, dx, dweight = convolution_by_loops(x, weight, dout, case.windows, case.groups)
        assert_array_equal(reference.conv2d(x, weight, **case.arguments), out)
        gradients = reference.conv2d_backward(dout, x, weight, **case.arguments, need=("dx", "dw"))
        assert_array_equal(gradients[0], dx)
        assert_array_equal(gradients[1], dweight)

    @every_convolution
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_lowering(self, case, layout):
        (n, c, *_), windows = case.x, case.windows
        (kh, kw), (oh, ow) = windows.kernel, windows.out_size
        shape = {"rows": (n * oh * ow, c * kh * kw), "columns": (n, c * kh * kw, oh * ow),
                 "windows": (n, c, kh, kw, oh, ow), "cs231n": (c * kh * kw, oh * ow * n)}[layout]
        x, col = whole_numbers(*case.x), whole_numbers(*shape, seed=1)
        expected_col, expected_x = np.full(shape, 7.0), np.zeros(x.shape)
        for image_, channel in np.ndindex(n, c):
            for (oy, ox), start in windows.positions():
                for (i, j), cell, inside in windows.taps(start):
                    row, place = (channel * kh + i) * kw + j, oy * ow + ox
                    where = {"rows": (image_ * oh * ow + place, row), "columns": (image_, row, place),
                             "windows": (image_, channel, i, j, oy, ox), "cs231n": (row, place * n + image_)}[layout]
                    if inside:
                        expected_col[where] = x[image_, channel][cell]
                        expected_x[image_, channel][cell] += col[where]
        how = {"stride": case.stride, "pad": case.padding, "dilation": case.dilation, "layout": layout}
        assert_same(reference.im2col(x, kh, kw, **how, pad_value=7), expected_col)
        assert_same(reference.col2im(col, x.shape, kh, kw, **how), expected_x)
        if case.pads != ((0, 0), (0, 0)) and n:
            assert (reference.im2col(np.ones(case.x), kh, kw, **how) == 0).any(), "pad_value is 0 by default"

    @every_pooling
    @pytest.mark.parametrize("special", [None, NAN, -INF, INF])
    def test_max_pooling(self, case, special):
        x = whole_numbers(*case.x)  # of 9 values: full of ties
        if special is not None:
            x[np.abs(x) > 1] = special
        values, indices = max_pool_by_loops(x, case.windows)
        assert_same(reference.max_pool2d(x, *case.max_arguments), values)
        found = reference.max_pool2d(x, *case.max_arguments, return_indices=True)
        assert_same(found[0], values)
        assert_same(found[1], indices)

        dout, dx = whole_numbers(*values.shape, seed=1), np.zeros(x.shape)
        for n, c, oy, ox in np.ndindex(*values.shape):
            dx[n, c].reshape(-1)[indices[n, c, oy, ox]] += dout[n, c, oy, ox]
        assert_same(reference.max_pool2d_backward(dout, indices, x.shape), dx)

    @every_pooling
    @pytest.mark.parametrize("divisor_override", [None, 5, -2])
    @pytest.mark.parametrize("count_include_pad", [True, False])
    def test_average_pooling(self, case, count_include_pad, divisor_override):
        x, dout = whole_numbers(*case.x), whole_numbers(*case.x[:2], *case.windows.out_size, seed=1)
        out, dx = average_pool_by_loops(x, dout, case.windows, count_include_pad, divisor_override)
        how = {"count_include_pad": count_include_pad, "divisor_override": divisor_override, "dilation": case.dilation}
        assert_same(reference.avg_pool2d(x, *case.average_arguments, **how), out)
        result = reference.avg_pool2d_backward(dout, x.shape, *case.average_arguments, **how)
        assert_near(result, dx, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("shape", [(2, 3, 4, 5), (0, 3, 4, 5), (1, 1, 1, 1), (3, 4, 5)])
    def test_global_pooling(self, shape):
        x = whole_numbers(*shape)
        average, maximum = reference.global_avg_pool2d(x), reference.global_max_pool2d(x)
        assert average.shape == maximum.shape == (*shape[:-2], 1, 1)
        for place in np.ndindex(*shape[:-2]):
            cells = x[place].ravel().tolist()
            assert average[place].item() == sum(cells) / len(cells)
            assert maximum[place].item() == max(cells)

    def test_global_max_pooling_keeps_nan(self):
        assert_array_equal(reference.global_max_pool2d(image([[1, NAN], [INF, 2]])), image([[NAN]]))

    @pytest.mark.parametrize(("arguments", "pads", "extra"), [
        ({}, ((0, 0), (0, 0)), (0, 0)),
        ({"stride": (2, 3)}, ((0, 0), (0, 0)), (0, 0)),
        ({"stride": 3, "padding": ((1, 0), (2, 1)), "output_padding": (0, 2)}, ((1, 0), (2, 1)), (0, 2)),
        ({"stride": 2, "dilation": 3, "output_padding": (2, 1)}, ((0, 0), (0, 0)), (2, 1)),
        ({"stride": 2, "padding": "full"}, ((1, 1), (2, 2)), (0, 0)),
        ({"groups": 2, "dilation": (1, 2)}, ((0, 0), (0, 0)), (0, 0)),
        ({"stride": 2, "padding": "same"}, ((0, 0), (0, 1)), (0, 0)),
        ({"stride": 2, "padding": "same_lower"}, ((0, 0), (1, 0)), (0, 0)),
        ({"stride": (4, 5), "padding": "same"}, ((0, 0), (0, 0)), (2, 2)),  # a stride above the window leaves gaps
    ])
    def test_transposed_convolution(self, arguments, pads, extra):
        groups, stride, dilation = (arguments.get(name, 1) for name in ("groups", "stride", "dilation"))
        stride, dilation = two(stride), two(dilation)
        x, weight, bias = whole_numbers(2, 4, 3, 2), whole_numbers(4, 3, 2, 3, seed=1), whole_numbers(3 * groups)
        size = [(x.shape[2 + a] - 1) * stride[a] + dilation[a] * (weight.shape[2 + a] - 1) + 1 - sum(pads[a]) + extra[a]
                for a in (0, 1)]
        out = np.zeros((2, 3 * groups, *size))
        for n, c, y, x_, k, i, j in np.ndindex(*x.shape, *weight.shape[1:]):
            row, column = y * stride[0] + i * dilation[0] - pads[0][0], x_ * stride[1] + j * dilation[1] - pads[1][0]
            if 0 <= row < size[0] and 0 <= column < size[1]:
                out[n, c // (4 // groups) * 3 + k, row, column] += x[n, c, y, x_] * weight[c, k, i, j]
        if "same" in str(arguments.get("padding")):
            assert size == [3 * stride[0], 2 * stride[1]]
        assert_same(reference.conv_transpose2d(x, weight, **arguments), out)
        assert_same(reference.conv_transpose2d(x, weight, bias, **arguments), out + bias.reshape(-1, 1, 1))
        assert_same(reference.conv_transpose2d(x[1], weight, **arguments), out[1])


# --- single rules ---------------------------------------------------------------------------------------------------


class TestNotFinite:
    def test_infinite_weight_over_padding_is_nan(self):
        weight = image([[INF, 0, 0], [0, 1, 0], [0, 0, 0]])
        assert_array_equal(reference.conv2d(np.ones((1, 1, 2, 2)), weight, padding=1), image([[NAN, NAN], [NAN, INF]]))

    def test_infinite_dout_over_padding_is_nan_in_dw(self):
        dout = image([[INF, 0], [0, 1]])
        result = reference.conv2d_backward_weight(dout, image([[2]]), (1, 1, 2, 2), padding=1)
        assert_array_equal(result, image([[NAN, NAN], [NAN, INF]]))

    def test_dx_sums_over_the_cells_of_dout_that_exist(self):
        # Correlating dout with zeros around it would make the infinite weight NaN in the last row and column.
        weight = image([[INF, 1], [1, 1]])
        dx = reference.conv2d_backward_data(np.ones((1, 1, 2, 2)), weight, (1, 1, 3, 3))
        assert_array_equal(dx, image([[INF, INF, 1], [INF, INF, 2], [1, 2, 1]]))

    def test_infinite_weight_over_padding_does_not_reach_dx(self):
        weight = image([[INF, NAN, 1], [1, 5, 1], [1, 1, -INF]])
        assert_array_equal(reference.conv2d_backward_data(image([[2]]), weight, (1, 1, 1, 1), padding=1), image([[10]]))

    def test_relu_keeps_nan(self):
        x = image([[NAN, -1, 2, -INF, INF]])
        assert_array_equal(reference.conv2d(x, np.ones((1, 1, 1, 1)), activation="relu"), image([[NAN, 0, 2, 0, INF]]))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
    def test_overflow_is_infinite_without_a_warning(self, dtype):
        largest = np.full((1, 1, 2, 2), np.finfo(dtype).max, dtype)
        assert not np.isfinite(reference.conv2d(largest, largest)).any()
        assert not np.isfinite(reference.avg_pool2d(largest, 2, divisor_override=1)).any()
        overlapping = reference.col2im(largest.reshape(2, 2), (1, 1, 1, 3), 1, 2)
        assert_array_equal(np.isfinite(overlapping), [[[[True, False, True]]]])


class TestMaxPooling:
    def test_first_of_equals_wins_and_gets_the_gradient(self):
        x = image([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
        _, indices = reference.max_pool2d(x, 2, 1, return_indices=True)
        assert_array_equal(indices, image([[0, 1], [3, 4]], np.int64))
        dx = reference.max_pool2d_backward(np.ones((1, 1, 2, 2)), indices, x.shape)
        assert_array_equal(dx, image([[1, 1, 0], [1, 1, 0], [0, 0, 0]]))
        _, indices = reference.max_pool2d(np.full((1, 1, 3, 3), 7.0), 3, return_indices=True)
        assert indices.item() == 0

    def test_first_nan_wins_over_everything(self):
        x = image([[INF, 3, NAN], [NAN, INF, NAN]])
        values, indices = reference.max_pool2d(x, (2, 3), return_indices=True)
        assert_array_equal(values, image([[NAN]]))
        assert indices.item() == 2

    def test_zeros_of_both_signs_are_equal(self):
        _, indices = reference.max_pool2d(image([[-0.0, 0.0]]), (1, 2), return_indices=True)
        assert indices.item() == 0

    def test_window_of_minus_infinity_has_its_first_cell_inside(self):
        values, indices = reference.max_pool2d(np.full((1, 1, 2, 3), -INF), 3, 1, 1, return_indices=True)
        assert_array_equal(values, np.full((1, 1, 2, 3), -INF))
        assert_array_equal(indices, image([[0, 0, 1], [0, 0, 1]], np.int64))

    @pytest.mark.parametrize("dtype", "?bBhHiIqQefdgFDG")
    def test_padding_never_wins(self, dtype):
        kind = np.dtype(dtype)
        lowest = False if kind.kind == "b" else np.iinfo(kind).min if kind.kind in "iu" else np.finfo(kind).min
        x = np.full((1, 1, 3, 3), lowest, kind)
        values, indices = reference.max_pool2d(x, 3, 2, 2, return_indices=True)
        assert values.dtype == kind
        assert_array_equal(values, np.full((1, 1, 3, 3), lowest, kind))
        assert_array_equal(indices, image([[0, 0, 2], [0, 0, 2], [6, 6, 8]], np.int64))

    @pytest.mark.parametrize("dtype", "qQ")
    def test_large_integers_are_compared_exactly(self, dtype):
        x = np.array([[[[2**62, 2**62 + 1]]]], dtype)  # the same number in float64
        values, indices = reference.max_pool2d(x, (1, 2), return_indices=True)
        assert (values.item(), indices.item()) == (2**62 + 1, 1)

    def test_complex_numbers_come_in_the_order_of_numpy(self):
        x = np.array([1 + 5j, 2 - 1j, 2 + 1j, -3 + 9j, 2 + 1j]).reshape(1, 1, 1, 5)
        values, indices = reference.max_pool2d(x, (1, 5), return_indices=True)
        assert (values.item(), indices.item()) == (2 + 1j, 2)
        assert values.item() == np.sort(x.ravel())[-1]
        x[0, 0, 0, 3] = complex(0, NAN)
        assert reference.max_pool2d(x, (1, 5), return_indices=True)[1].item() == 3

    def test_cell_that_wins_in_many_windows_gets_all_their_gradients(self):
        x = image([[0, 0, 0], [0, 9, 0], [0, 0, 0]])
        _, indices = reference.max_pool2d(x, 2, 1, return_indices=True)
        dx = reference.max_pool2d_backward(image([[1, 2], [4, 8]]), indices, x.shape)
        assert_array_equal(dx, image([[0, 0, 0], [0, 15, 0], [0, 0, 0]]))

    def test_window_without_a_cell_inside_is_an_error(self):
        with pytest.raises(ValueError, match="no cell inside"):
            reference.max_pool2d(np.zeros((1, 1, 1, 1)), 2, 1, 1, dilation=2)


class TestAveragePooling:
    def test_window_without_a_cell_inside(self):
        x = np.ones((1, 1, 1, 1))  # under the hole in the middle of a window of 3 with two taps
        how = {"stride": 1, "padding": 1, "dilation": 2}
        assert_array_equal(reference.avg_pool2d(x, 2, **how), image([[0]]))
        assert_array_equal(reference.avg_pool2d(x, 2, **how, count_include_pad=False, divisor_override=3), image([[0]]))
        assert_array_equal(reference.avg_pool2d_backward(x, x.shape, 2, **how), image([[0]]))
        with pytest.raises(ValueError, match=r"count_include_pad=False .*no cell inside"):
            reference.avg_pool2d(x, 2, **how, count_include_pad=False)
        with pytest.raises(ValueError, match=r"count_include_pad=False .*no cell inside"):
            reference.avg_pool2d_backward(x, x.shape, 2, **how, count_include_pad=False)

    def test_divisor_override_is_an_int_other_than_0(self):
        x = np.ones((1, 1, 4, 4))
        for call in (lambda divisor: reference.avg_pool2d(x, 2, divisor_override=divisor),
                     lambda divisor: reference.avg_pool2d_backward(x, (1, 1, 8, 8), 2, divisor_override=divisor)):
            with pytest.raises(ValueError, match="divisor_override must not be 0"):
                call(0)
            with pytest.raises(TypeError, match=r"divisor_override .*1\.5"):
                call(1.5)

    @pytest.mark.parametrize("dtype", [bool, np.int8, np.uint64])
    def test_integers_average_in_float64(self, dtype):
        x = np.full((1, 1, 2, 2), np.iinfo(dtype).max if dtype is not bool else True, dtype)
        for result in (reference.avg_pool2d(x, 2), reference.global_avg_pool2d(x)):
            assert result.dtype == np.float64
            assert result.item() == float(x.flat[0])  # the sum did not wrap around
        assert reference.avg_pool2d_backward(x, (1, 1, 4, 4), 2).dtype == np.float64


class TestDtypes:
    EVERY = "?bBhHiIqQefdgFDG"

    @pytest.mark.parametrize("dtype", EVERY)
    def test_dtype_is_kept(self, dtype):
        x, weight = (whole_numbers(*shape).astype(dtype) for shape in ((2, 2, 5, 5), (2, 2, 3, 3)))
        bias, dout = np.ones(2, dtype), np.ones((2, 2, 3, 3), dtype)
        values, indices = reference.max_pool2d(x, 2, return_indices=True)
        results = [
            reference.im2col(x, 3, 3), reference.col2im(reference.im2col(x, 3, 3), x.shape, 3, 3), values,
            reference.max_pool2d_backward(values, indices, x.shape), reference.global_max_pool2d(x),
            reference.conv2d(x, weight), reference.conv2d(x, weight, bias),
            *(reference.conv2d(x, weight, bias, activation="relu") for _ in range(dtype not in "FDG")),
            *reference.conv2d_backward(dout, x, weight), reference.conv_transpose2d(dout, weight, bias),
        ]
        averages = [reference.avg_pool2d(x, 2), reference.avg_pool2d_backward(values, x.shape, 2),
                    reference.global_avg_pool2d(x)]
        assert {result.dtype for result in results} == {np.dtype(dtype)}
        assert {result.dtype for result in averages} == {np.dtype(dtype if dtype in "efdgFDG" else "d")}

    @pytest.mark.parametrize("dtypes", ["fd", "ef", "if", "bB", "?b", "bq", "fF", "iD", "dg", "eb", "ei"])
    def test_mixed_dtypes_make_what_numpy_makes_of_them(self, dtypes):
        for first, second in (dtypes, dtypes[::-1]):
            expected = np.result_type(np.dtype(first), np.dtype(second))
            x, weight = np.ones((1, 1, 3, 3), first), np.ones((1, 1, 3, 3), second)
            dout = np.ones((1, 1, 1, 1), first)
            assert reference.conv2d(x, weight).dtype == expected
            assert reference.conv2d(x, x, np.ones(1, second)).dtype == expected
            assert reference.conv2d_backward_data(dout, weight, x.shape).dtype == expected
            assert reference.conv2d_backward_weight(dout, weight, x.shape).dtype == expected
            assert reference.conv_transpose2d(dout, weight).dtype == expected
            assert reference.conv_transpose2d(dout, x, np.ones(1, second)).dtype == expected
            assert {result.dtype for result in reference.conv2d_backward(dout, x, weight)} == {expected}

    @pytest.mark.parametrize("dtypes", ["bb", "BB", "??", "hh", "qq", "bh", "DD", "gg", "GG", "?B"])
    def test_other_dtypes_give_what_matmul_gives(self, dtypes):
        rng = np.random.default_rng(0)
        x, weight = (rng.integers(0, 128, shape).astype(dtype) for shape, dtype in
                     zip(((2, 3, 5, 6), (4, 3, 3, 2)), dtypes, strict=True))
        by_matmul = np.matmul(reference.im2col(x, 3, 2, 2, 1), weight.reshape(4, -1).T)
        expected = by_matmul.reshape(2, 3, 4, 4).transpose(0, 3, 1, 2)
        assert_same(reference.conv2d(x, weight, None, 2, 1), expected)
        dout = expected.astype(dtypes[0])
        columns = dout.transpose(1, 0, 2, 3).reshape(4, -1)  # integers wrap around here as well
        dweight = np.matmul(columns, reference.im2col(x, 3, 2, 2, 1)).reshape(weight.shape)
        assert_same(reference.conv2d_backward_weight(dout, x, weight.shape, 2, 1), dweight)

    @pytest.mark.parametrize(("dtype", "first"), [(np.float16, 2**11), (np.float32, 2**24), (np.complex64, 2**24)])
    def test_sums_are_rounded_once(self, dtype, first):
        # From `first` on the dtype has even numbers only: to add 1 three times, one after the other, changes nothing.
        cells = np.array([first, 1, 1, 1], dtype)
        expected = dtype(first + 4)  # the even neighbour of first + 3
        x, ones = cells.reshape(1, 1, 1, 4), np.ones((1, 1, 1, 4), dtype)
        one, index = np.ones((1, 1, 1, 1), dtype), np.zeros((1, 1, 1, 4), np.int64)
        for name, result in {
            "conv2d": reference.conv2d(x, ones),
            "conv2d in channels": reference.conv2d(x.reshape(1, 4, 1, 1), ones.reshape(1, 4, 1, 1)),
            "conv2d bias": reference.conv2d(x[..., :3], ones[..., :3], np.ones(1, dtype)),
            "data": reference.conv2d_backward_data(x, ones, (1, 1, 1, 1), padding=((0, 0), (3, 3))),
            "weight": reference.conv2d_backward_weight(x, ones, (1, 1, 1, 1)),
            "bias": reference.conv2d_backward(x, ones, one, need=["db"])[2],
            "transpose": reference.conv_transpose2d(x.reshape(1, 4, 1, 1), ones.reshape(4, 1, 1, 1)),
            "transpose bias": reference.conv_transpose2d(x[..., :3].reshape(1, 3, 1, 1), np.ones((3, 1, 1, 1), dtype),
                                                         np.ones(1, dtype)),
            "col2im": reference.col2im(cells[::-1].reshape(4, 1) * np.eye(4, dtype=dtype)[:, ::-1],
                                       (1, 1, 1, 1), 1, 4, pad=((0, 0), (3, 3))),
            "max pool": reference.max_pool2d_backward(x, index, (1, 1, 1, 1)),
            "avg pool": reference.avg_pool2d(x, (1, 4), divisor_override=1),
            "avg pool backward": reference.avg_pool2d_backward(x, (1, 1, 1, 1), (1, 4), 1, ((0, 0), (3, 3)),
                                                               divisor_override=1),
            "global avg pool": reference.global_avg_pool2d(x) * dtype(4),
        }.items():
            assert result.ravel().tolist() == [expected], name
            assert result.dtype == dtype, name

    def test_integers_are_not_added_up_in_floating_point(self):
        x = np.array([2**62, 1]).reshape(1, 1, 1, 2)
        assert reference.conv2d(x, np.ones((1, 1, 1, 2), np.int64)).item() == 2**62 + 1

    @pytest.mark.parametrize("bad", ["text", np.array([[["a"]]]), np.array([[[object()]]]), np.zeros((1, 1, 1), "M8")])
    def test_what_is_not_a_number_is_a_type_error(self, bad):
        good = np.ones((1, 1, 1, 1))
        for name, call in {
            "x": lambda: reference.conv2d(bad, good), "weight": lambda: reference.conv2d(good, bad),
            "bias": lambda: reference.conv2d(good, good, bad),
            "dout": lambda: reference.conv2d_backward(bad, good, good),
            "col": lambda: reference.col2im(bad, (1, 1, 1, 1), 1, 1),
            "indices": lambda: reference.max_pool2d_backward(good, bad, (1, 1, 1, 1)),
        }.items():
            with pytest.raises(TypeError, match=f"^{name} must be an array of numbers, got dtype "):
                call()


def calls(x: Any, weight: Any, dout: Any, indices: Any) -> dict[str, Any]:
    """Every public function on the given arrays, with a 3x3 filter and a padding of 1 on images of 4x5."""
    def bias() -> Any:
        return np.ones(2, weight.dtype)

    shape = x.shape
    col = reference.im2col(np.array(dout), 3, 3, pad=1)
    return {
        "im2col": lambda: reference.im2col(x, 3, 3, pad=1),
        **{f"im2col {layout}": lambda layout=layout: reference.im2col(x, 3, 3, pad=1, layout=layout)
           for layout in LAYOUTS},
        "col2im": lambda: reference.col2im(col, shape, 3, 3, pad=1),
        "conv2d": lambda: reference.conv2d(x, weight, bias(), padding=1, activation="relu"),
        "dx": lambda: reference.conv2d_backward(dout, x, weight, padding=1)[0],
        "dw": lambda: reference.conv2d_backward(dout, x, weight, padding=1)[1],
        "db": lambda: reference.conv2d_backward(dout, x, weight, padding=1)[2],
        "conv2d_backward_data": lambda: reference.conv2d_backward_data(dout, weight, shape, padding=1),
        "conv2d_backward_weight": lambda: reference.conv2d_backward_weight(dout, x, weight.shape, padding=1),
        "conv_transpose2d": lambda: reference.conv_transpose2d(x, weight, bias(), padding=1),
        "max_pool2d": lambda: reference.max_pool2d(x, 3, 1, 1),
        "indices": lambda: reference.max_pool2d(x, 3, 1, 1, return_indices=True)[1],
        "max_pool2d_backward": lambda: reference.max_pool2d_backward(dout, indices, shape),
        "avg_pool2d": lambda: reference.avg_pool2d(x, 3, 1, 1),
        "avg_pool2d_backward": lambda: reference.avg_pool2d_backward(dout, shape, 3, 1, 1),
        "global_avg_pool2d": lambda: reference.global_avg_pool2d(x),
        "global_max_pool2d": lambda: reference.global_max_pool2d(x),
    }


NAMES = tuple(calls(*[np.zeros((1, 2, 4, 5))] * 4))


def operands(batch: int = 2, dtype: Any = np.float64) -> list[np.ndarray]:
    """`x`, `weight`, `dout` and `indices` for :func:`calls`."""
    return [whole_numbers(batch, 2, 4, 5, dtype=dtype), whole_numbers(2, 2, 3, 3, seed=1, dtype=dtype),
            whole_numbers(batch, 2, 4, 5, seed=2, dtype=dtype),
            np.random.default_rng(0).integers(0, 20, (batch, 2, 4, 5))]


class TestArrays:
    def test_the_list_of_calls_is_complete(self):
        assert set(reference.__all__) - set(NAMES) == {"conv2d_backward"}  # whose three results are in the list

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("batch", [2, None], ids=["batch", "3-d"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
    def test_results_are_contiguous_writable_and_own_their_memory(self, name, batch, dtype):
        arrays = operands(batch or 1, dtype)
        if batch is None:
            arrays = [array if i == 1 else array[0] for i, array in enumerate(arrays)]
        result = calls(*arrays)[name]()
        assert result.flags.c_contiguous
        assert result.flags.writeable
        assert result.flags.owndata
        assert not any(np.shares_memory(result, array) for array in arrays)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("how", ["fortran", "channels-last", "negative", "gaps", "read-only", "swapped",
                                     "misaligned"])
    def test_any_memory_order_is_taken_and_left_as_it_is(self, name, how):
        arrays = operands()
        expected = calls(*arrays)[name]()
        changed = [{
            "fortran": lambda a: np.asfortranarray(a),
            "channels-last": lambda a: a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
            "negative": lambda a: a[:, ::-1, ::-1, ::-1].copy()[:, ::-1, ::-1, ::-1],
            "gaps": lambda a: np.repeat(a, 2, axis=3)[..., ::2],
            "read-only": lambda a: a.copy(),
            "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
            "misaligned": lambda a: np.frombuffer(b"?" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
        }[how](array) for array in arrays]
        for array in changed:
            array.flags.writeable = False
        result = calls(*changed)[name]()
        assert_same(result, expected)
        assert result.dtype.isnative
        for array, original in zip(changed, arrays, strict=True):
            assert_array_equal(array, original)

    def test_lists_are_taken(self):
        x, weight, dout, indices = operands()
        for function, arrays, more in [
            (reference.im2col, [x], (3, 3)), (reference.conv2d, [x, weight, np.ones(2)], ()),
            (reference.conv2d_backward_data, [dout, weight], ((2, 2, 6, 7),)), (reference.max_pool2d, [x], (2,)),
            (reference.max_pool2d_backward, [dout, indices], ((2, 2, 4, 5),)), (reference.avg_pool2d, [x], (2,)),
        ]:
            result = function(*(array.tolist() for array in arrays), *more)
            assert_same(result, function(*arrays, *more))

    @pytest.mark.parametrize("name", NAMES)
    def test_three_axes_are_a_batch_of_one(self, name):
        x, weight, dout, indices = operands(1)
        many, single = calls(x, weight, dout, indices)[name](), calls(x[0], weight, dout[0], indices[0])[name]()
        keeps_shape = name in ("dw", "db", "conv2d_backward_weight", "im2col", "im2col rows", "im2col cs231n")
        assert_same(single, many if keeps_shape else many[0])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_three_axes_in_col2im(self, layout):
        x = whole_numbers(2, 4, 5)
        col = reference.im2col(x, 3, 3, layout=layout)
        back = reference.col2im(col, x.shape, 3, 3, layout=layout)
        many = reference.col2im(reference.im2col(x[np.newaxis], 3, 3, layout=layout), (1, 2, 4, 5), 3, 3, layout=layout)
        assert_same(back, many[0])

    @pytest.mark.parametrize("name", NAMES)
    def test_batch_of_zero(self, name):
        result, model = calls(*operands(0))[name](), calls(*operands(2))[name]()
        if name in ("dw", "db", "conv2d_backward_weight"):
            assert_same(result, np.zeros(model.shape))
        else:
            images = [i for i, (none, two_) in enumerate(zip(result.shape, model.shape, strict=True)) if none != two_]
            assert len(images) == 1
            assert result.shape[images[0]] == 0
            assert result.dtype == model.dtype

    def test_what_is_not_needed_is_none(self):
        x, weight, dout, _ = operands()
        full = reference.conv2d_backward(dout, x, weight, padding=1)
        for chosen in itertools.chain.from_iterable(itertools.combinations(("dx", "dw", "db"), r) for r in range(4)):
            some = reference.conv2d_backward(dout, x, weight, padding=1, need=chosen)
            for name, one, expected in zip(("dx", "dw", "db"), some, full, strict=True):
                if name in chosen:
                    assert_same(one, expected)
                else:
                    assert one is None
        assert [one is None for one in reference.conv2d_backward(dout, x, weight, padding=1, need="dw")] == \
            [True, False, True]


class TestErrors:
    X, WEIGHT, DOUT = np.zeros((2, 3, 5, 6)), np.zeros((4, 3, 3, 3)), np.zeros((2, 4, 3, 4))

    @pytest.mark.parametrize(("call", "error", "message"), [
        (lambda x, w, d: reference.conv2d(x, w, np.zeros((4, 1))), ValueError, r"bias .*\(4,\).*\(4, 1\)"),
        (lambda x, w, d: reference.conv2d(x, w, np.zeros(3)), ValueError, r"bias .*\(4,\).*\(3,\)"),
        (lambda x, w, d: reference.conv2d(x, w, 1.0), ValueError, r"bias .*\(4,\).*\(\)"),
        (lambda x, w, d: reference.conv2d(x, w, activation="tanh"), ValueError, "activation .*'relu'.*'tanh'"),
        (lambda x, w, d: reference.conv2d(x * 1j, w, activation="relu"), TypeError, "activation 'relu' .*complex"),
        (lambda x, w, d: reference.conv2d(x, w, np.ones(4, "F"), activation="relu"), TypeError, "activation .*complex"),
        (lambda x, w, d: reference.conv2d(x[0, 0], w), ValueError, r"x\.shape .*3 or 4 axes.*\(5, 6\)"),
        (lambda x, w, d: reference.conv2d(x, w[0]), ValueError, r"weight\.shape .*4 axes.*\(3, 3, 3\)"),
        (lambda x, w, d: reference.conv2d(x, w[:, :2]), ValueError, r"weight\.shape\[1\]"),
        (lambda x, w, d: reference.conv2d_backward(d[:1], x, w), ValueError, r"dout .*\(2, 4, 3, 4\).*\(1, 4, 3, 4\)"),
        (lambda x, w, d: reference.conv2d_backward(d, x[0], w), ValueError, r"dout .*\(4, 3, 4\).*\(2, 4, 3, 4\)"),
        (lambda x, w, d: reference.conv2d_backward(d, x, w, need=("dx", "dy")), ValueError, "need .*'db'.*'dy'"),
        (lambda x, w, d: reference.conv2d_backward_data(d, w, (2, 3, 5, 5)), ValueError, r"dout .*\(2, 4, 3, 3\)"),
        (lambda x, w, d: reference.conv2d_backward_data(d, w, (3, 5)), ValueError, "input_shape .*3 or 4 axes"),
        (lambda x, w, d: reference.conv2d_backward_weight(d, x, (4, 3, 3, 2)), ValueError, r"dout .*\(2, 4, 3, 5\)"),
        (lambda x, w, d: reference.conv2d_backward_weight(d, x, (4, 3, 3)), ValueError, "weight_shape .*4 axes"),
        (lambda x, w, d: reference.conv_transpose2d(x, w[:3], np.zeros(4)), ValueError, r"bias .*\(3,\).*\(4,\)"),
        (lambda x, w, d: reference.im2col(x, 3, 3, layout="book"), ValueError, "layout .*'rows'.*'book'"),
        (lambda x, w, d: reference.im2col(x, 3, 3, pad_value="0"), TypeError, "pad_value .*'0'"),
        (lambda x, w, d: reference.im2col(x, 3, 3, pad_value=[0]), TypeError, r"pad_value .*\[0\]"),
        (lambda x, w, d: reference.im2col(x, 3, 3, pad_value=1j), ValueError, "pad_value .*float64.*1j"),
        (lambda x, w, d: reference.im2col(x.astype("u1"), 3, 3, pad_value=-1), ValueError, "pad_value .*uint8.*-1"),
        (lambda x, w, d: reference.im2col(x.astype("i4"), 3, 3, pad_value=0.5), ValueError, r"pad_value .*int32.*0\.5"),
        (lambda x, w, d: reference.im2col(x.astype("i4"), 3, 3, pad_value=NAN), ValueError, "pad_value .*int32.*nan"),
        (lambda x, w, d: reference.col2im(np.zeros((4, 27)), x.shape, 3, 3), ValueError,
         r"col .*\(24, 27\).*\(4, 27\)"),
        (lambda x, w, d: reference.col2im(np.zeros((1, 27, 12)), (3, 5, 6), 3, 3, layout="columns"), ValueError,
         r"col .*\(27, 12\).*\(1, 27, 12\)"),
        (lambda x, w, d: reference.max_pool2d_backward(d, np.zeros((2, 4, 3, 3), int), (2, 4, 5, 6)), ValueError,
         r"indices .*dout, \(2, 4, 3, 4\), got \(2, 4, 3, 3\)"),
        (lambda x, w, d: reference.max_pool2d_backward(d, np.full(d.shape, 30), (2, 4, 5, 6)), ValueError,
         "indices .*0 to 29.*30 to 30"),
        (lambda x, w, d: reference.max_pool2d_backward(d, np.full(d.shape, -1), (2, 4, 5, 6)), ValueError,
         "indices .*0 to 29.*-1 to -1"),
        (lambda x, w, d: reference.max_pool2d_backward(d, d, (2, 4, 5, 6)), TypeError, "indices .*float64"),
        (lambda x, w, d: reference.max_pool2d_backward(d, d.astype(int), (2, 3, 5, 6)), ValueError,
         r"dout .*input_shape \(2, 3, 5, 6\), got .*\(2, 4, 3, 4\)"),
        (lambda x, w, d: reference.max_pool2d_backward(d, d.astype(int), (4, 5, 6)), ValueError,
         r"dout\.shape must have 3 axes, got 4"),
        (lambda x, w, d: reference.avg_pool2d_backward(d, (2, 4, 5, 6), 3, 2), ValueError, r"dout .*\(2, 4, 2, 2\)"),
        (lambda x, w, d: reference.avg_pool2d_backward(d, (5, 6), 3), ValueError, "input_shape .*3 or 4 axes"),
        (lambda x, w, d: reference.max_pool2d(x, 2, padding=2), ValueError, "padding must be smaller than the window"),
        (lambda x, w, d: reference.global_avg_pool2d(x[0, 0]), ValueError, "x.*3 or 4 axes"),
        (lambda x, w, d: reference.global_max_pool2d(x[:, :0]), ValueError, "x must have at least one channel"),
    ])
    def test_error_names_the_argument_and_both_values(self, call, error, message):
        with pytest.raises(error, match=f"^{message}"):
            call(self.X, self.WEIGHT, self.DOUT)

    def test_padding_that_no_memory_holds(self):
        largest = 2**31 - 1
        with pytest.raises(MemoryError, match="bytes"):
            reference.conv2d(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), stride=largest, padding=largest)
        with pytest.raises(MemoryError, match="bytes"):
            reference.conv_transpose2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 1, 1)), stride=largest)


# --- finite differences and adjoints --------------------------------------------------------------------------------


def finite_differences(function: Any, x: np.ndarray, dout: np.ndarray, step: float) -> np.ndarray:
    """Gradient of ``sum(function(x) * dout)``. Exact with whole numbers where the function is linear."""
    gradient = np.empty_like(x)
    for place in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = ((function(up) - function(down)) * dout).sum() / (2 * step)
    return gradient


class TestGradients:
    @every_convolution
    def test_convolution_by_finite_differences(self, case):
        x, weight, bias = whole_numbers(*case.x), whole_numbers(*case.weight, seed=1), whole_numbers(case.weight[0])
        dout = whole_numbers(*case.output, seed=2)
        inputs = [x, weight, bias]
        for i, gradient in enumerate(reference.conv2d_backward(dout, x, weight, **case.arguments)):
            def forward(operand: np.ndarray, i: int = i) -> np.ndarray:
                return reference.conv2d(*inputs[:i], operand, *inputs[i + 1:], **case.arguments)

            assert_same(gradient, finite_differences(forward, inputs[i], dout, 1))

    @every_pooling
    def test_poolings_by_finite_differences(self, case):
        size = math.prod(case.x)
        x = np.random.default_rng(0).permutation(size).reshape(case.x).astype(np.float64)  # no ties within the step
        values, indices = reference.max_pool2d(x, *case.max_arguments, return_indices=True)
        dout = whole_numbers(*values.shape)
        expected = finite_differences(lambda v: reference.max_pool2d(v, *case.max_arguments), x, dout, 0.25)
        assert_array_equal(reference.max_pool2d_backward(dout, indices, x.shape), expected)

        how = {"dilation": case.dilation}
        expected = finite_differences(lambda v: reference.avg_pool2d(v, *case.average_arguments, **how), x, dout, 0.25)
        result = reference.avg_pool2d_backward(dout, x.shape, *case.average_arguments, **how)
        assert_allclose(result, expected, rtol=0, atol=1e-12)


class TestAdjoints:
    @every_convolution
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_lowering(self, case, layout):
        how = {"stride": case.stride, "pad": case.padding, "dilation": case.dilation, "layout": layout}
        x = whole_numbers(*case.x)
        col = reference.im2col(x, *case.weight[2:], **how)
        y = whole_numbers(*col.shape, seed=1)
        assert np.vdot(col, y) == np.vdot(x, reference.col2im(y, x.shape, *case.weight[2:], **how))

    @every_convolution
    def test_convolution(self, case):
        x, weight, dout = (whole_numbers(*shape, seed=5) for shape in (case.x, case.weight, case.output))
        product = np.vdot(reference.conv2d(x, weight, **case.arguments), dout)
        assert product == np.vdot(x, reference.conv2d_backward_data(dout, weight, x.shape, **case.arguments))
        assert product == np.vdot(weight, reference.conv2d_backward_weight(dout, x, weight.shape, **case.arguments))

    @every_convolution
    def test_transposed_convolution_is_the_gradient(self, case):
        dout, weight = whole_numbers(*case.output), whole_numbers(*case.weight, seed=1)
        # By the four numbers: the named paddings of a transposed convolution go by the size of its own output.
        arguments = {**case.arguments, "padding": case.pads}
        extra = tuple((case.x[2 + a] + sum(case.pads[a]) - (case.windows.dilation[a] * (case.weight[2 + a] - 1) + 1))
                      % case.windows.stride[a] for a in (0, 1))
        result = reference.conv_transpose2d(dout, weight, output_padding=extra, **arguments)
        assert_same(result, reference.conv2d_backward_data(dout, weight, case.x, **arguments))

    @every_pooling
    def test_poolings(self, case):
        x = whole_numbers(*case.x)
        values, indices = reference.max_pool2d(x, *case.max_arguments, return_indices=True)
        dout = whole_numbers(*values.shape, seed=1)
        # At this x maximum pooling is linear: it picks the cells that `indices` name.
        assert np.vdot(values, dout) == np.vdot(x, reference.max_pool2d_backward(dout, indices, x.shape))
        for include, override in itertools.product((True, False), (None, 7)):
            how = {"count_include_pad": include, "divisor_override": override, "dilation": case.dilation}
            out = reference.avg_pool2d(x, *case.average_arguments, **how)
            dx = reference.avg_pool2d_backward(dout, x.shape, *case.average_arguments, **how)
            assert_allclose(np.vdot(out, dout), np.vdot(x, dx), rtol=0, atol=1e-11)


# --- PyTorch --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what importing PyTorch says is not about the reference
        module = pytest.importorskip("torch")
    threads = module.get_num_threads()
    module.set_num_threads(1)  # on images this small, waking the others is most of the time
    yield module
    module.set_num_threads(threads)


def sweep(**choices: Any) -> Any:
    """Parametrize over every combination of `choices`."""
    return lambda test: [test := pytest.mark.parametrize(name, values)(test) for name, values in choices.items()][-1]


class TestPyTorch:
    """Whole numbers again, so that both have to agree exactly; averages to the last bits."""

    @sweep(kernel=[(1, 1), (3, 3), (2, 5)], stride=[1, (2, 3)], padding=[0, (2, 1)], dilation=[1, (2, 1)],
           groups=[1, 2, 4])
    def test_convolution(self, torch, kernel, stride, padding, dilation, groups):
        x, weight, bias = whole_numbers(2, 4, 9, 8), whole_numbers(8, 4 // groups, *kernel), whole_numbers(8)
        inputs = [torch.tensor(array, requires_grad=True) for array in (x, weight, bias)]
        expected = torch.nn.functional.conv2d(*inputs, stride, padding, dilation, groups)
        how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        assert_same(reference.conv2d(x, weight, bias, **how), expected.detach().numpy())
        dout = whole_numbers(*expected.shape)
        gradients = torch.autograd.grad(expected, inputs, torch.tensor(dout))
        for result, gradient in zip(reference.conv2d_backward(dout, x, weight, **how), gradients, strict=True):
            assert_same(result, gradient.numpy())

    @pytest.mark.parametrize(("stride", "dilation", "output_padding"), [
        (1, 1, 0), ((3, 2), 1, 0), ((3, 2), 1, (0, 1)), ((3, 2), 1, (2, 1)),
        (1, (3, 2), 0), (1, (3, 2), (0, 1)), (1, (3, 2), (2, 1)), ((3, 2), (2, 3), (2, 2)),
    ])
    @sweep(padding=[0, (2, 1)], groups=[1, 2])
    def test_transposed_convolution(self, torch, stride, padding, output_padding, groups, dilation):
        x, weight, bias = whole_numbers(2, 4, 4, 3), whole_numbers(4, 3, 3, 3), whole_numbers(3 * groups)
        arguments = (stride, padding, output_padding, groups, dilation)
        expected = torch.nn.functional.conv_transpose2d(*map(torch.tensor, (x, weight, bias)), *arguments)
        assert_same(reference.conv_transpose2d(x, weight, bias, *arguments), expected.numpy())

    @sweep(kernel=[2, 3, (2, 3)], stride=[None, 1, (2, 3)], padding=[0, 1], dilation=[1, 2], ceil_mode=[False, True],
           size=[(7, 8), (6, 5)])
    def test_max_pooling(self, torch, kernel, stride, padding, dilation, ceil_mode, size):
        x = whole_numbers(2, 3, *size)  # PyTorch breaks ties in the same way
        source, arguments = torch.tensor(x, requires_grad=True), (kernel, stride, padding, dilation, ceil_mode)
        expected = torch.nn.functional.max_pool2d(source, *arguments, return_indices=True)
        values, indices = reference.max_pool2d(x, *arguments, return_indices=True)
        assert_same(values, expected[0].detach().numpy())
        assert_same(indices, expected[1].numpy())
        dout = whole_numbers(*values.shape)
        (gradient,) = torch.autograd.grad(expected[0], source, torch.tensor(dout))
        assert_same(reference.max_pool2d_backward(dout, indices, x.shape), gradient.numpy())

    @sweep(kernel=[2, (2, 3)], stride=[None, 1, (2, 3)], padding=[0, 1], ceil_mode=[False, True],
           count_include_pad=[True, False], divisor_override=[None, 3, -2], size=[(7, 8), (6, 5)])
    def test_average_pooling(self, torch, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override,
                             size):
        x = whole_numbers(2, 3, *size)
        arguments = (kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
        source = torch.tensor(x, requires_grad=True)
        expected = torch.nn.functional.avg_pool2d(source, *arguments)
        result = reference.avg_pool2d(x, *arguments)
        assert_near(result, expected.detach().numpy(), rtol=1e-15)
        dout = whole_numbers(*result.shape)
        (gradient,) = torch.autograd.grad(expected, source, torch.tensor(dout))
        dx = reference.avg_pool2d_backward(dout, x.shape, *arguments)
        assert_near(dx, gradient.numpy(), rtol=1e-14, atol=1e-14)

    @sweep(kernel=[(1, 1), (3, 2)], stride=[1, (2, 3)], padding=[0, (2, 1)], dilation=[1, (2, 1)])
    def test_unfold_and_fold(self, torch, kernel, stride, padding, dilation):
        x = whole_numbers(2, 3, 7, 8)
        expected = torch.nn.functional.unfold(torch.tensor(x), kernel, dilation, padding, stride)
        how = {"stride": stride, "pad": padding, "dilation": dilation, "layout": "columns"}
        col = reference.im2col(x, *kernel, **how)
        assert_same(col, expected.numpy())
        back = torch.nn.functional.fold(expected, (7, 8), kernel, dilation, padding, stride)
        assert_same(reference.col2im(col, x.shape, *kernel, **how), back.numpy())

    def test_infinity_over_padding(self, torch):
        x, weight = whole_numbers(1, 2, 4, 4), whole_numbers(3, 2, 3, 3)
        weight[0, 0, 0, 0], weight[1, 1, 2, 1] = INF, -INF
        inputs = [torch.tensor(array, requires_grad=True) for array in (x, weight)]
        expected = torch.nn.functional.conv2d(*inputs, padding=1)
        result = reference.conv2d(x, weight, padding=1)
        assert np.isnan(result).any()
        assert_array_equal(result, expected.detach().numpy())
        dout = whole_numbers(*result.shape)
        dout[0, 0, 0, 0], dout[0, 2, 1, 1] = INF, NAN
        for ours, theirs in zip(reference.conv2d_backward(dout, x, weight, padding=1),
                                torch.autograd.grad(expected, inputs, torch.tensor(dout)), strict=False):
            assert_array_equal(ours, theirs.numpy())
