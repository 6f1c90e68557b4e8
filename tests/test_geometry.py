"""Shape rules: against sizes worked out by others, and against windows that are counted one by one."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest

from fastconv.geometry import (
    LARGEST_PARAMETER,
    LAYOUTS,
    PADDING_NAMES,
    Conv2dGeometry,
    Pool2dGeometry,
    Window2dGeometry,
    as_pads,
    conv2d_geometry,
    conv_output_size,
    conv_transpose2d_geometry,
    pool2d_geometry,
    unpool2d_geometry,
    window2d_geometry,
)

# --- windows along one axis, counted --------------------------------------------------------------------------------


def window_starts(size: int, kernel: int, stride: int, before: int, after: int, dilation: int,
                  ceil_mode: bool = False) -> list[int]:
    """Where windows start, from -before: each as long as it fits, and with `ceil_mode` one more that covers the end,
    unless it would start behind the image."""
    covered, end = dilation * (kernel - 1) + 1, size + after
    starts = list(itertools.takewhile(lambda start: start + covered <= end, itertools.count(-before, stride)))
    if ceil_mode and starts and starts[-1] + covered < end and starts[-1] + stride < size:
        starts.append(starts[-1] + stride)
    return starts


def window_cells(start: int, kernel: int, dilation: int) -> list[int]:
    return [start + tap * dilation for tap in range(kernel)]


#: (size, kernel, stride, before, after, dilation)
AXES = list(itertools.product((1, 2, 5, 6, 7), (1, 2, 3, 4), (1, 2, 3, 5), (0, 1, 2, 5), (0, 1, 3), (1, 2, 3)))
POOL_AXES = [axis for axis in AXES if max(axis[3], axis[4]) < axis[5] * (axis[1] - 1) + 1]


def pool_axis(size: int, kernel: int, stride: int, before: int, after: int, dilation: int,
              ceil_mode: bool) -> Pool2dGeometry | None:
    """The pooling whose height is such an axis, its width a single cell; None where no window fits."""
    try:
        return pool2d_geometry((1, 1, size, 1), (kernel, 1), (stride, 1), ((before, after), (0, 0)), (dilation, 1),
                               ceil_mode)
    except ValueError as error:
        if "does not fit" in str(error):
            return None
        raise


def test_the_sweep_has_all_that_it_is_for():
    assert len(POOL_AXES) > 500
    starts = [(axis, window_starts(*axis), window_starts(*axis, ceil_mode=True)) for axis in POOL_AXES]
    assert any(not floor for _, floor, _ in starts)
    assert any(len(ceil) > len(floor) for _, floor, ceil in starts)
    assert any(ceil and ceil[-1] + axis[5] * (axis[1] - 1) + 1 < axis[0] + axis[4] for axis, _, ceil in starts), \
        "a last window is dropped"


class TestOutputSize:
    @pytest.mark.parametrize(("size", "arguments", "expected"), [
        # Deep Learning from Scratch, 7.2.4
        ((4, 4), (3, 1, 1), (4, 4)), ((7, 7), (3, 2), (3, 3)), ((28, 31), (5, 3, 2), (10, 11)),
        # Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", figures 2.1 to 2.7 and 5.1
        (4, (3,), 2), (5, (4, 1, 2), 6), (5, (3, 1, "same"), 5), (5, (3, 1, "full"), 7), (5, (3, 2), 2),
        (5, (3, 2, 1), 3), (6, (3, 2, 1), 3), (7, (3, 1, 0, 2), 3),
        # TensorFlow's documentation of padding: width 13, filter 6, stride 5
        (13, (6, 5, "valid"), 2), (13, (6, 5, "same"), 3),
        # AlexNet, ResNet's first layers, VGG
        (227, (11, 4), 55), (224, (7, 2, 3), 112), (112, (3, 2, 1), 56), (224, (3, 1, 1), 224),
    ])
    def test_worked_examples(self, size, arguments, expected):
        assert conv_output_size(size, *arguments) == expected

    def test_result_is_what_the_size_is(self):
        assert type(conv_output_size(np.int16(7), 3)) is int
        assert conv_output_size([7, 8], 3) == conv_output_size(np.array([7, 8]), 3) == (5, 6)
        assert conv_output_size((7, 8), (3, 1), (1, 2), ((1, 0), (2, 3)), (2, 1)) == (4, 7)

    def test_windows_are_counted(self):
        for size, kernel, stride, before, after, dilation in AXES:
            expected = len(window_starts(size, kernel, stride, before, after, dilation))
            arguments = (kernel, stride, (before, after), dilation)
            if expected:
                assert conv_output_size(size, *arguments) == expected, (size, *arguments)
            else:
                with pytest.raises(ValueError, match="does not fit"):
                    conv_output_size(size, *arguments)

    def test_windows_are_counted_with_ceil_mode(self):
        for size, kernel, stride, before, after, dilation in POOL_AXES:
            expected = len(window_starts(size, kernel, stride, before, after, dilation, ceil_mode=True))
            if expected:  # see below for windows that are larger than the image
                found = conv_output_size(size, kernel, stride, (before, after), dilation, ceil_mode=True)
                assert found == expected, (size, kernel, stride, before, after, dilation)

    def test_ceil_mode_rounds_up_even_where_no_window_fits(self):
        assert conv_output_size(2, 3, 2, ceil_mode=True) == 1  # ceil((2 - 3) / 2) + 1
        assert conv_output_size(1, 5, 5, ceil_mode=True) == 1  # ceil((1 - 5) / 5) + 1
        with pytest.raises(ValueError, match="would be 0"):
            conv_output_size(1, 3, 2, ceil_mode=True)  # ceil((1 - 3) / 2) + 1

    def test_strict(self):
        for size, kernel, stride, before, after, dilation in AXES:
            starts = window_starts(size, kernel, stride, before, after, dilation)
            arguments = (kernel, stride, (before, after), dilation)
            if starts and starts[-1] + dilation * (kernel - 1) + 1 == size + after:
                assert conv_output_size(size, *arguments, strict=True) == len(starts)
            elif starts:
                with pytest.raises(ValueError, match=rf"stride {stride} does not .*size {size} .*kernel {kernel}"):
                    conv_output_size(size, *arguments, strict=True)

    def test_strict_looks_at_both_axes(self):
        assert conv_output_size((7, 9), 3, 2, strict=True) == (3, 4)
        for size in ((6, 9), (7, 8)):
            with pytest.raises(ValueError, match="leaves 1 over"):
                conv_output_size(size, 3, 2, strict=True)

    def test_sizes_do_not_overflow(self):
        largest = np.int32(LARGEST_PARAMETER)
        assert conv_output_size(largest, 1, padding=largest) == 3 * (2**31 - 1)
        assert conv_output_size((largest, 1), (2, 1), dilation=largest, padding=((0, 1), (0, 0))) == (1, 1)
        with pytest.raises(ValueError, match=r"does not fit an input height of 5"):
            conv_output_size(5, largest, dilation=largest)
        geometry = conv2d_geometry((largest, largest, largest, largest), (largest, largest, 1, 1))
        assert geometry.flops == 2 * (2**31 - 1)**5


class TestNamedPadding:
    def test_same(self):
        for size, kernel, stride, dilation in itertools.product(range(1, 9), (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3)):
            goal = math.ceil(size / stride)
            total = 0  # the smallest that lets ceil(size / stride) windows fit
            while len(window_starts(size, kernel, stride, 0, total, dilation)) < goal:
                total += 1
            shape, window = (1, 1, size, size), (kernel, kernel, stride)
            upper = window2d_geometry(shape, *window, "same", dilation)
            lower = window2d_geometry(shape, *window, "same_lower", dilation)
            assert upper.out_size == lower.out_size == (goal, goal)
            assert upper.pads == ((total // 2, total - total // 2),) * 2
            assert lower.pads == ((total - total // 2, total // 2),) * 2
            assert conv_output_size(size, kernel, stride, "same", dilation) == goal

    def test_same_as_tensorflow_documents_it(self):
        assert as_pads("padding", "same", (13, 13), (6, 6), (5, 5), (1, 1)) == ((1, 2), (1, 2))
        assert as_pads("padding", "same_lower", (13, 13), (6, 6), (5, 5), (1, 1)) == ((2, 1), (2, 1))

    def test_axes_are_separate(self):
        geometry = window2d_geometry((1, 1, 5, 8), 3, 2, (2, 1), "same", (1, 3))
        assert geometry.pads == ((1, 1), (1, 2))
        assert geometry.out_size == (3, 8)

    @pytest.mark.parametrize("dilation", [1, 3])
    def test_full_and_valid(self, dilation):
        full = window2d_geometry((1, 1, 9, 9), 3, 4, 1, "full", dilation)
        assert full.pads == ((2 * dilation, 2 * dilation), (3 * dilation, 3 * dilation))
        # every window whose extent reaches a cell of the image
        assert full.out_size == (9 + 2 * dilation, 9 + 3 * dilation)
        assert window2d_geometry((1, 1, 12, 12), 3, 4, 1, "valid", dilation).pads == ((0, 0), (0, 0))

    @pytest.mark.parametrize("name", PADDING_NAMES)
    def test_name_and_its_numbers_are_the_same_geometry(self, name):
        by_name = conv2d_geometry((2, 3, 7, 8), (4, 3, 4, 3), 2, name)
        assert by_name == conv2d_geometry((2, 3, 7, 8), (4, 3, 4, 3), 2, by_name.pads)


class TestForms:
    @pytest.mark.parametrize(("padding", "pads"), [
        (0, ((0, 0), (0, 0))), (2, ((2, 2), (2, 2))), (np.int64(2), ((2, 2), (2, 2))), (np.array(2), ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))), ([1, 2], ((1, 1), (2, 2))), (np.array([1, 2], np.uint8), ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))), ([[1, 2], [3, 4]], ((1, 2), (3, 4))),
        (((1, 2), [3, np.int32(4)]), ((1, 2), (3, 4))), (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
    ])
    def test_padding(self, padding, pads):
        geometries = [
            window2d_geometry((1, 1, 9, 9), 5, 6, 1, padding), conv2d_geometry((1, 1, 9, 9), (1, 1, 5, 6), 1, padding),
            pool2d_geometry((1, 1, 9, 9), (5, 6), 1, padding),
            conv_transpose2d_geometry((1, 1, 9, 9), (1, 1, 5, 6), 1, padding),
        ]
        for geometry in geometries:
            assert geometry.pads == pads
            assert {type(n) for side in geometry.pads for n in side} == {int}
        assert conv_output_size((9, 9), (5, 6), 1, padding) == geometries[0].out_size

    def test_padding_of_one_axis(self):
        assert conv_output_size(5, 3, padding=(0, 2)) == conv_output_size(5, 3, padding=1) == 5

    @pytest.mark.parametrize("pair", [(2, 3), [2, 3], np.array([2, 3]), (np.int8(2), np.uint64(3)), range(2, 4)])
    def test_pairs(self, pair):
        assert conv2d_geometry((1, 1, 19, 19), (1, 1, 2, 2), pair, 0, pair) == \
            conv2d_geometry((1, 1, 19, 19), (1, 1, 2, 2), (2, 3), 0, (2, 3))
        assert pool2d_geometry((1, 1, 19, 19), pair) == pool2d_geometry((1, 1, 19, 19), (2, 3), (2, 3))

    def test_stride_of_a_pooling_is_its_window_by_default(self):
        assert pool2d_geometry((1, 1, 9, 9), (2, 3)).stride == (2, 3)
        assert pool2d_geometry((1, 1, 9, 9), (2, 3), 1).stride == (1, 1)

    def test_three_axes_are_a_batch_of_one(self):
        assert conv2d_geometry((3, 9, 8), (4, 3, 2, 2)) == conv2d_geometry((1, 3, 9, 8), (4, 3, 2, 2))
        assert pool2d_geometry((3, 9, 8), 2) == pool2d_geometry((1, 3, 9, 8), 2)
        assert window2d_geometry((3, 9, 8), 2, 2) == window2d_geometry((1, 3, 9, 8), 2, 2)
        assert conv_transpose2d_geometry((3, 9, 8), (3, 4, 2, 2)) == \
            conv_transpose2d_geometry((1, 3, 9, 8), (3, 4, 2, 2))

    def test_batch_may_be_zero(self):
        assert conv2d_geometry((0, 3, 9, 8), (4, 3, 2, 2)).output_shape == (0, 4, 8, 7)
        assert pool2d_geometry((0, 3, 9, 8), 2).output_shape == (0, 3, 4, 4)
        assert conv_transpose2d_geometry((0, 3, 9, 8), (3, 4, 2, 2)).input_shape == (0, 4, 10, 9)


class TestAttributes:
    def test_convolution(self):
        geometry = conv2d_geometry((2, 6, 10, 11), (9, 2, 3, 2), (2, 1), ((0, 1), (2, 3)), (1, 4), 3)
        assert geometry.input_shape == (2, 6, 10, 11)
        assert geometry.weight_shape == (9, 2, 3, 2)
        assert geometry.output_shape == (2, 9, 5, 12)
        assert geometry.padded_size == (11, 16)
        assert geometry.extent == (3, 5)
        assert geometry.taps == 6
        assert geometry.positions == 60
        # every output cell: 2 channels of 6 taps, multiplied and added
        assert geometry.flops == 2 * (2 * 9 * 60) * (2 * 6)

    def test_columns_shape(self):
        geometry = window2d_geometry((2, 3, 7, 8), 5, 4, 2)
        assert [geometry.columns_shape(layout) for layout in LAYOUTS] == [
            (2 * 6, 60), (2, 60, 6), (2, 3, 5, 4, 2, 3), (60, 6 * 2)]
        # Deep Learning from Scratch, 7.4.3
        assert window2d_geometry((10, 3, 7, 7), 5, 5).columns_shape("rows") == (90, 75)

    def test_pooling(self):
        geometry = pool2d_geometry((2, 6, 10, 11), 3, 2, 1, 1, True)
        assert geometry.output_shape == (2, 6, 6, 6)
        assert geometry.ceil_mode is True
        assert pool2d_geometry((2, 6, 10, 11), 3, 2, 1).output_shape == (2, 6, 5, 6)


class TestPooling:
    @pytest.mark.parametrize("ceil_mode", [False, True])
    def test_divisors_are_counted(self, ceil_mode):
        for axis in POOL_AXES:
            size, kernel, _, _, after, dilation = axis
            geometry, starts = pool_axis(*axis, ceil_mode), window_starts(*axis, ceil_mode)
            if geometry is None or not starts:
                continue
            windows = [window_cells(start, kernel, dilation) for start in starts]
            assert geometry.divisors(0, True) == [sum(cell < size + after for cell in cells) for cells in windows], axis
            assert geometry.divisors(0, False) == [sum(0 <= cell < size for cell in cells) for cells in windows], axis
            assert geometry.divisors(1, True) == geometry.divisors(1, False) == [1]

    def test_divisors_without_dilation_are_pytorchs(self):
        for axis in POOL_AXES:
            size, kernel, stride, before, after, dilation = axis
            geometry = pool_axis(*axis, ceil_mode=True)
            if geometry is not None and dilation == 1:
                starts = [o * stride - before for o in range(geometry.out_size[0])]
                assert geometry.divisors(0, True) == [min(s + kernel, size + after) - s for s in starts]

    @pytest.mark.parametrize("ceil_mode", [False, True])
    def test_empty_windows_are_found(self, ceil_mode):
        seen = set()
        for axis in POOL_AXES:
            size, kernel, _, _, _, dilation = axis
            geometry, starts = pool_axis(*axis, ceil_mode), window_starts(*axis, ceil_mode)
            if geometry is None or not starts:
                continue
            empty = [o for o, start in enumerate(starts)
                     if not any(0 <= cell < size for cell in window_cells(start, kernel, dilation))]
            if empty:
                start, last = starts[empty[0]], starts[empty[0]] + (kernel - 1) * dilation
                assert geometry.empty_window == (
                    f"the window at output row {empty[0]} covers rows {start} to {last} in steps of {dilation} and has "
                    f"no cell inside the input's 0 to {size - 1}")
            else:
                assert geometry.empty_window is None, axis
            seen.add(bool(empty))
        assert seen == {False, True}

    def test_empty_window_may_be_a_column(self):
        geometry = pool2d_geometry((1, 1, 9, 1), (1, 2), 1, (0, 1), (1, 2))
        assert geometry.empty_window is not None
        assert geometry.empty_window.startswith("the window at output column 0 covers columns -1 to 1 in steps of 2")

    @pytest.mark.parametrize(("kernel", "dilation", "largest"), [(2, 1, 1), (3, 1, 2), (3, 2, 4), (1, 5, 0)])
    def test_padding_is_smaller_than_the_window(self, kernel, dilation, largest):
        pool2d_geometry((1, 1, 9, 9), kernel, 1, largest, dilation)
        pool2d_geometry((1, 1, 9, 9), kernel, 1, "full", dilation)
        for padding in (((largest + 1, 0), (0, 0)), ((0, largest + 1), (0, 0)), ((0, 0), (largest + 1, 0)),
                        ((0, 0), (0, largest + 1))):
            with pytest.raises(ValueError, match=rf"padding must be smaller than the window.* = {largest + 1}, got "):
                pool2d_geometry((1, 1, 9, 9), kernel, 1, padding, dilation)


class TestTransposed:
    @pytest.mark.parametrize(("size", "arguments", "expected"), [
        # Dumoulin and Visin, figures 4.1 to 4.7
        (2, {"kernel": 3}, 4), (6, {"kernel": 4, "padding": 2}, 5), (5, {"kernel": 3, "padding": 1}, 5),
        (7, {"kernel": 3, "padding": "full"}, 5), (2, {"kernel": 3, "stride": 2}, 5),
        (3, {"kernel": 3, "stride": 2, "padding": 1}, 5),
        (3, {"kernel": 3, "stride": 2, "padding": 1, "output_padding": 1}, 6),
        # PyTorch's documentation of ConvTranspose2d: undoing a convolution of 12 with kernel 3, stride 2, padding 1
        (6, {"kernel": 3, "stride": 2, "padding": 1, "output_padding": 1}, 12),
    ])
    def test_worked_examples(self, size, arguments, expected):
        arguments = dict(arguments)
        kernel = arguments.pop("kernel")
        geometry = conv_transpose2d_geometry((1, 1, size, size), (1, 1, kernel, kernel), **arguments)
        assert geometry.in_size == (expected, expected)
        assert geometry.out_size == (size, size)

    def test_shapes(self):
        geometry = conv_transpose2d_geometry((2, 6, 4, 5), (6, 2, 3, 2), (2, 3), ((1, 0), (0, 2)), (1, 2), 3, (1, 2))
        assert geometry.output_shape == (2, 6, 4, 5)
        assert geometry.input_shape == (2, 6, 3 * 2 + 3 - 1 + 1, 4 * 3 + 3 - 2 + 2)
        assert geometry.weight_shape == (6, 2, 3, 2)
        assert geometry.groups == 3
        assert conv_transpose2d_geometry((2, 6, 4, 5), (6, 5, 3, 2), groups=2).channels == 10

    def test_it_is_the_gradient_of_a_convolution(self):
        for size, kernel, stride, before, after, dilation in AXES:
            n = len(window_starts(size, kernel, stride, before, after, dilation))
            if n == 0:
                continue
            over = (size + before + after - dilation * (kernel - 1) - 1) % stride
            padding = ((before, after), (0, 0))
            convolution = conv2d_geometry((1, 2, size, 1), (3, 2, kernel, 1), stride, padding, (dilation, 1))
            transposed = conv_transpose2d_geometry((1, 3, n, 1), (3, 2, kernel, 1), stride, padding, (over, 0), 1,
                                                   (dilation, 1))
            assert transposed == convolution

    def test_same_gives_size_times_stride(self):
        for size, kernel, stride, dilation in itertools.product(range(1, 6), (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3)):
            for name in ("same", "same_lower"):
                arguments = (1, 1, kernel, kernel), stride, name
                transposed = conv_transpose2d_geometry((1, 1, size, size), *arguments, dilation=dilation)
                assert transposed.in_size == (size * stride, size * stride)
                # and what convolves it back is a "same" convolution
                assert transposed == conv2d_geometry(transposed.input_shape, *arguments, dilation)

    @pytest.mark.parametrize(("stride", "dilation", "largest"), [(1, 1, 0), (3, 1, 2), (1, 3, 2), (2, 4, 3), (4, 2, 3)])
    def test_output_padding_is_smaller_than_stride_or_dilation(self, stride, dilation, largest):
        plain = conv_transpose2d_geometry((1, 1, 4, 4), (1, 1, 3, 3), stride, dilation=dilation)
        padded = conv_transpose2d_geometry((1, 1, 4, 4), (1, 1, 3, 3), stride, output_padding=(0, largest),
                                           dilation=dilation)
        assert padded.in_size == (plain.in_size[0], plain.in_size[1] + largest)
        assert padded.out_size == (4, 4)  # even where more windows would fit
        for extra in ((largest + 1, 0), (0, largest + 1)):
            with pytest.raises(ValueError, match=rf"output_padding .*got {largest + 1} with stride {stride} and "
                                                 rf"dilation {dilation}"):
                conv_transpose2d_geometry((1, 1, 4, 4), (1, 1, 3, 3), stride, output_padding=extra, dilation=dilation)


class TestUnpooling:
    def test_shapes(self):
        geometry = unpool2d_geometry((2, 3, 4, 5), (2, 3, 4, 5), (2, 3, 9, 8))
        assert geometry.input_shape == (2, 3, 9, 8)
        assert geometry.out_size == (4, 5)
        assert unpool2d_geometry((3, 4, 5), (3, 4, 5), [3, 9, 8]) == \
            unpool2d_geometry((1, 3, 4, 5), (1, 3, 4, 5), (1, 3, 9, 8))

    @pytest.mark.parametrize(("shapes", "message"), [
        (((2, 3, 4, 5), (2, 3, 4, 4), (2, 3, 9, 8)), r"indices .*dout, \(2, 3, 4, 5\), got \(2, 3, 4, 4\)"),
        (((2, 3, 4, 5), (2, 3, 4, 5), (2, 4, 9, 8)), r"dout .*input_shape \(2, 4, 9, 8\), got .*\(2, 3, 4, 5\)"),
        (((2, 3, 4, 5), (2, 3, 4, 5), (1, 3, 9, 8)), r"dout .*input_shape \(1, 3, 9, 8\), got .*\(2, 3, 4, 5\)"),
        (((3, 4, 5), (3, 4, 5), (1, 3, 9, 8)), r"dout\.shape must have 4 axes, got 3: \(3, 4, 5\)"),
        (((4, 5), (4, 5), (9, 8)), r"input_shape must have 3 or 4 axes, got 2: \(9, 8\)"),
        (((3, 4, 5), (3, 4, 5), (3, 0, 8)), r"input_shape must have at least one .*\(3, 0, 8\)"),
    ])
    def test_errors(self, shapes, message):
        with pytest.raises(ValueError, match=f"^{message}"):
            unpool2d_geometry(*shapes)


# --- errors ---------------------------------------------------------------------------------------------------------

X, W = (2, 6, 9, 8), (4, 3, 3, 2)  # with groups=2


def conv(x: Any = X, weight: Any = W, groups: Any = 2, **arguments: Any) -> Conv2dGeometry:
    return conv2d_geometry(x, weight, groups=groups, **arguments)


def pool(x: Any = X, kernel_size: Any = 3, **arguments: Any) -> Pool2dGeometry:
    return pool2d_geometry(x, kernel_size, **arguments)


def lower(x: Any = X, filter_h: Any = 3, filter_w: Any = 2, **arguments: Any) -> Window2dGeometry:
    return window2d_geometry(x, filter_h, filter_w, **arguments)


def transpose(x: Any = X, weight: Any = (6, 4, 3, 2), **arguments: Any) -> Conv2dGeometry:
    return conv_transpose2d_geometry(x, weight, **arguments)


class TestErrors:
    """The message has the argument's name, what was given and what would be right."""

    @pytest.mark.parametrize(("call", "error", "message"), [
        # shapes
        (lambda: conv((9, 8)), ValueError, r"x\.shape must have 3 or 4 axes, got 2: \(9, 8\)"),
        (lambda: conv((1, *X)), ValueError, r"x\.shape must have 3 or 4 axes, got 5: \(1, 2, 6, 9, 8\)"),
        (lambda: conv(weight=W[1:]), ValueError, r"weight\.shape must have 4 axes, got 3: \(3, 3, 2\)"),
        (lambda: conv(5), TypeError, r"x\.shape must be a shape, .*got 5"),
        (lambda: conv("shape"), TypeError, r"x\.shape must be a shape, .*got 'shape'"),
        (lambda: conv((2, 6, 9, 8.0)), TypeError, r"x\.shape\[3\] must be an int, got 8\.0"),
        (lambda: conv((2, 6, -9, 8)), ValueError, r"x\.shape\[2\] must be at least 0, got -9"),
        (lambda: conv((2, 6, 2**31, 8)), ValueError, r"x\.shape\[2\] must be at most 2147483647, got 2147483648"),
        (lambda: conv((2, 0, 9, 8)), ValueError, r"x must have at least one channel, row and column.*\(2, 0, 9, 8\)"),
        (lambda: conv((2, 6, 0, 8)), ValueError, r"x must have at least one channel, row and column.*\(2, 6, 0, 8\)"),
        (lambda: pool((6, 9, 0)), ValueError, r"x must have at least one channel, row and column.*\(6, 9, 0\)"),
        (lambda: conv(weight=(4, 3, 0, 2)), ValueError, r"weight must have at least one filter.*\(4, 3, 0, 2\)"),
        (lambda: transpose(weight=(6, 0, 3, 2)), ValueError, r"weight must have at least one filter.*\(6, 0, 3, 2\)"),
        (lambda: transpose((6, 8)), ValueError, r"x\.shape must have 3 or 4 axes, got 2"),
        (lambda: transpose(weight=(4, 3, 2)), ValueError, r"weight\.shape must have 4 axes, got 3"),
        (lambda: transpose((2, 6, 0, 8)), ValueError, r"x must have at least one channel"),
        (lambda: lower((9, 8)), ValueError, r"x must have 3 or 4 axes, got 2: \(9, 8\)"),
        (lambda: lower((9, 8), name="input_shape"), ValueError, r"input_shape must have 3 or 4 axes, got 2"),
        # arguments that are shapes are called by their own names
        (lambda: conv((9, 8), x_name="input_shape"), ValueError, r"input_shape must have 3 or 4 axes"),
        (lambda: conv(weight=(4, 3), weight_name="weight_shape"), ValueError, r"weight_shape must have 4 axes"),
        (lambda: conv(weight=(4, 2, 3, 2), weight_name="weight_shape"), ValueError, r"weight_shape\[1\] must be"),
        (lambda: pool((9, 8), x_name="input_shape"), ValueError, r"input_shape must have 3 or 4 axes"),
        # channels and groups
        (lambda: conv(weight=(4, 2, 3, 2)), ValueError,
         r"weight\.shape\[1\] must be the channels of x divided by groups, 6/2 = 3, got 2 \(weight\.shape "
         r"\(4, 2, 3, 2\), x\.shape \(2, 6, 9, 8\)\)"),
        (lambda: conv(groups=4), ValueError, r"groups must divide the channels of x: got groups=4 and 6 channels"),
        (lambda: conv(groups=3), ValueError, r"groups must divide the filters of weight: got groups=3 and 4 filters"),
        (lambda: conv(groups=0), ValueError, r"groups must be at least 1, got 0"),
        (lambda: conv(groups=(1, 1)), TypeError, r"groups must be an int, got \(1, 1\)"),
        (lambda: conv(groups=True), TypeError, r"groups must be an int, got True"),
        (lambda: transpose(weight=(5, 4, 3, 2)), ValueError, r"weight\.shape\[0\] must be the channels of x, 6, got 5"),
        (lambda: transpose(groups=4), ValueError, r"groups must divide the channels of x: got groups=4 and 6 channels"),
        # windows
        (lambda: conv(stride=0), ValueError, r"stride must be at least 1, got 0"),
        (lambda: conv(stride=1.5), TypeError, r"stride must be an int, got 1\.5 of type float"),
        (lambda: conv(stride=(1, 1.5)), TypeError, r"stride\[1\] must be an int, got 1\.5"),
        (lambda: conv(stride=(1, -2)), ValueError, r"stride\[1\] must be at least 1, got -2"),
        (lambda: conv(stride=(1, 2, 3)), ValueError, r"stride must be an int or a pair .*got 3 values: \(1, 2, 3\)"),
        (lambda: conv(stride="2"), TypeError, r"stride must be an int or a pair .*got '2'"),
        (lambda: conv(stride=None), TypeError, r"stride must be an int or a pair .*got None"),
        (lambda: conv(stride=True), TypeError, r"stride must be an int, got True"),
        (lambda: conv(stride=2**31), ValueError, r"stride must be at most 2147483647, got 2147483648"),
        (lambda: conv(dilation=0), ValueError, r"dilation must be at least 1, got 0"),
        (lambda: conv(dilation={}), TypeError, r"dilation must be an int or a pair .*got \{\}"),
        (lambda: pool(kernel_size=0), ValueError, r"kernel_size must be at least 1, got 0"),
        (lambda: pool(kernel_size=None), TypeError, r"kernel_size must be an int or a pair .*got None"),
        (lambda: pool(stride=(2, 0)), ValueError, r"stride\[1\] must be at least 1, got 0"),
        (lambda: pool(dilation=0.5), TypeError, r"dilation must be an int, got 0\.5"),
        (lambda: lower(filter_h=0), ValueError, r"filter_h must be at least 1, got 0"),
        (lambda: lower(filter_w=(3, 3)), TypeError, r"filter_w must be an int, got \(3, 3\)"),
        # padding
        (lambda: conv(padding=-1), ValueError, r"padding must be at least 0, got -1"),
        (lambda: conv(padding=(0, -1)), ValueError, r"padding\[1\] must be at least 0, got -1"),
        (lambda: conv(padding=((0, 1), (2, -3))), ValueError, r"padding\[1\]\[1\] must be at least 0, got -3"),
        (lambda: conv(padding=((0, 1), (2.5, 3))), TypeError, r"padding\[1\]\[0\] must be an int, got 2\.5"),
        (lambda: conv(padding=((0, 1), 2)), ValueError, r"padding must be an int, a pair .*got \(\(0, 1\), 2\)"),
        (lambda: conv(padding=((0, 1), (1, 2, 3))), ValueError, r"padding must be .*got \(\(0, 1\), \(1, 2, 3\)\)"),
        (lambda: conv(padding=(0, 1, 2, 3)), ValueError, r"padding must be .*got 4 values: \(0, 1, 2, 3\)"),
        (lambda: conv(padding="SAME"), ValueError, r"padding must be .*'same', 'same_lower', 'full', got 'SAME'"),
        (lambda: conv(padding=b"same"), TypeError, r"padding must be an int or a pair .*got b'same'"),
        (lambda: conv(padding=None), TypeError, r"padding must be an int or a pair .*got None"),
        (lambda: conv(padding={1, 2}), TypeError, r"padding must be an int, got \{1, 2\} of type set"),
        (lambda: conv(padding={0: 1}), TypeError, r"padding must be an int or a pair .*got \{0: 1\}"),
        (lambda: pool(padding=-1), ValueError, r"padding must be at least 0, got -1"),
        (lambda: transpose(padding="SAME"), ValueError, r"padding must be numbers or one of .*got 'SAME'"),
        (lambda: transpose(padding=1.5), TypeError, r"padding must be an int, got 1\.5"),
        (lambda: lower(pad=1.5), TypeError, r"pad must be an int, got 1\.5"),
        (lambda: lower(pad="SAME"), ValueError, r"pad must be numbers or one of .*got 'SAME'"),
        # windows that do not fit
        (lambda: conv((2, 6, 2, 8)), ValueError,
         r"the output height would be 0: a window of 3 \(kernel 3, dilation 1\) does not fit an input height of 2 with "
         r"padding \(0, 0\)"),
        (lambda: conv(dilation=8, padding=((1, 2), (0, 0))), ValueError,
         r"the output height would be -4: a window of 17 \(kernel 3, dilation 8\) does not fit an input height of 9 "
         r"with padding \(1, 2\)"),
        (lambda: pool((6, 9, 2)), ValueError, r"the output width would be 0: .*kernel 3.* input width of 2"),
        (lambda: lower((6, 9, 1)), ValueError, r"the output width would be 0: .*kernel 2.* input width of 1"),
        (lambda: transpose((6, 1, 8), padding=2), ValueError,
         r"the output height would be -1: input height 1 at stride 1 with a window of 3 and padding \(2, 2\)"),
        (lambda: transpose((6, 8, 1), padding=(0, 1)), ValueError, r"the output width would be 0: input width 1"),
        # transposed convolution
        (lambda: transpose(output_padding=-1), ValueError, r"output_padding must be at least 0, got -1"),
        (lambda: transpose(output_padding="same"), TypeError, r"output_padding must be an int or a pair .*got 'same'"),
        (lambda: transpose(stride=2, padding="same", output_padding=1), ValueError,
         r"output_padding must be 0 with padding='same', .*got \(1, 1\)"),
        # one axis
        (lambda: conv_output_size(0, 1), ValueError, r"size\[0\] must be at least 1, got 0"),
        (lambda: conv_output_size(5.0, 1), TypeError, r"size\[0\] must be an int, got 5\.0"),
        (lambda: conv_output_size((5, 6, 7), 1), ValueError, r"size must be .*got 3 values"),
        (lambda: conv_output_size(5, (3, 3)), TypeError, r"kernel must be an int where size is one, got \(3, 3\)"),
        (lambda: conv_output_size(5, 3, [1, 1]), TypeError, r"stride must be an int where size is one, got \[1, 1\]"),
        (lambda: conv_output_size(5, 3, dilation=(1,)), TypeError, r"dilation must be an int where size is one"),
        (lambda: conv_output_size(5, 3, padding="SAME"), ValueError, r"padding must be .*got 'SAME'"),
        (lambda: conv_output_size(5, 3, padding=(0, -1)), ValueError, r"padding\[0\]\[1\] must be at least 0, got -1"),
        (lambda: conv_output_size(5, 7), ValueError, r"the output height would be -1: .*input height of 5"),
        (lambda: lower().columns_shape("book"), ValueError,
         r"layout must be one of 'rows', 'columns', 'windows', 'cs231n', got 'book'"),
    ])
    def test_message(self, call, error, message):
        with pytest.raises(error, match=f"^{message}"):
            call()

    @pytest.mark.parametrize("build", [conv, pool, transpose, lambda padding: lower(pad=padding)],
                             ids=["conv", "pool", "transpose", "lower"])
    @pytest.mark.parametrize("bad", [1.0, True, np.float32(1), (1, True), ((1, 1), (1, 1.0))], ids=str)
    def test_what_only_equals_an_int_is_an_error_at_any_time(self, build, bad):
        # 1 == 1.0 == True, and so they are one key of a cache: what came before must not let it pass.
        for good in (1, (1, 1), ((1, 1), (1, 1))):
            build(padding=good)
        with pytest.raises(TypeError, match=r"must be an int, got "):
            build(padding=bad)


# --- keys -----------------------------------------------------------------------------------------------------------


class TestKeys:
    """Plans are kept by geometry: equal problems are one key, however they were spelled, and others are not."""

    GEOMETRIES = (
        conv2d_geometry((2, 4, 9, 8), (4, 4, 3, 3), 1, 1), pool2d_geometry((2, 4, 9, 8), 3, 1, 1),
        window2d_geometry((2, 4, 9, 8), 3, 3, 1, 1), conv_transpose2d_geometry((2, 4, 9, 8), (4, 4, 3, 3), 1, 1),
    )

    def test_equal_problems_are_one_key(self):
        plans = {conv2d_geometry((1, 4, 9, 8), (4, 4, 3, 3), 1, 1): "plan"}
        for arguments in [
            ((4, 9, 8), (4, 4, 3, 3), (1, 1), (1, 1)), ([1, 4, 9, 8], [4, 4, 3, 3], [1, 1], ((1, 1), (1, 1))),
            (np.array([1, 4, 9, 8]), np.array([4, 4, 3, 3], np.int32), np.int8(1), np.array([[1, 1], [1, 1]])),
            ((1, 4, 9, 8), (4, 4, 3, 3), 1, "same", np.array([1, 1]), np.int64(1)),
        ]:
            assert plans[conv2d_geometry(*arguments)] == "plan"

    def test_whatever_differs_makes_another_key(self):
        x, weight = (2, 4, 9, 8), (4, 4, 3, 3)
        different = [
            conv2d_geometry(x, weight), conv2d_geometry((3, 4, 9, 8), weight), conv2d_geometry((2, 4, 8, 9), weight),
            conv2d_geometry(x, (8, 4, 3, 3)), conv2d_geometry(x, (4, 4, 3, 2)), conv2d_geometry(x, (4, 4, 2, 3)),
            conv2d_geometry(x, weight, (1, 2)), conv2d_geometry(x, weight, (2, 1)),
            conv2d_geometry(x, weight, 1, ((1, 0), (0, 0))), conv2d_geometry(x, weight, 1, ((0, 1), (0, 0))),
            conv2d_geometry(x, weight, 1, ((0, 0), (1, 0))), conv2d_geometry(x, weight, 1, ((0, 0), (0, 1))),
            conv2d_geometry(x, weight, 1, 0, (1, 2)), conv2d_geometry(x, (4, 2, 3, 3), groups=2),
            conv2d_geometry((2, 2, 9, 8), (4, 2, 3, 3)),
            pool2d_geometry(x, 3, 1), pool2d_geometry(x, 3, 1, ceil_mode=True), window2d_geometry(x, 3, 3),
        ]
        assert len(set(different)) == len(different)
        assert all(a != b for a, b in itertools.combinations(different, 2))

    @pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: type(geometry).__name__)
    def test_geometries_are_frozen(self, geometry):
        for field in dataclasses.fields(geometry):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(geometry, field.name, 1)

    @pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: type(geometry).__name__)
    def test_what_is_kept_on_a_geometry_does_not_change_the_key(self, geometry):
        before = hash(geometry)
        for name in ("flops", "empty_window"):  # computed once, and kept
            getattr(geometry, name, None)
        copy = pickle.loads(pickle.dumps(geometry))
        assert copy == geometry
        assert hash(copy) == hash(geometry) == before
        assert dataclasses.replace(geometry, batch=7) != geometry
