"""Shapes of sliding windows: every shape rule and every shape error of fastconv, once.

A geometry is built from shapes and arguments before anything is allocated or computed, and is all that the choice of
an algorithm (:mod:`fastconv.dispatch`) and the kernels know of a problem. It is frozen and hashable, so that plans can
be kept by it.

Names along one axis: ``size`` cells of input, ``before`` and ``after`` cells of padding, a window of ``kernel`` taps
that lie ``dilation`` cells apart and cover an extent of ``e = dilation * (kernel - 1) + 1`` cells, moved by ``stride``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeVar

import numpy as np

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

PADDING_NAMES = ("valid", "same", "same_lower", "full")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

#: No parameter of a window may exceed this. It keeps every product of two of them inside 64 bits.
LARGEST_PARAMETER = 2**31 - 1


# --- arguments ------------------------------------------------------------------------------------------------------


def as_int(name: str, value: Any, minimum: int | None = None) -> int:
    """Return `value` as an int, or raise TypeError (not an int) or ValueError (out of range) that names `name`."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    if number > LARGEST_PARAMETER:
        raise ValueError(f"{name} must be at most {LARGEST_PARAMETER}, got {number}")
    return number


def as_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool, or raise TypeError that names `name` where it is none."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def as_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return `value`, or raise TypeError or ValueError that names `name` and the choices where it is none of them."""
    if isinstance(value, str) and value in choices:
        return value
    error = ValueError if isinstance(value, str) else TypeError
    raise error(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, dict)) \
        and getattr(value, "ndim", 1) != 0


def as_pair(name: str, value: Any, minimum: int = 1) -> Pair:
    """Return `value`, an int or a pair ``(h, w)``, as a pair of ints of at least `minimum`."""
    if not _is_sequence(value):
        if isinstance(value, (str, bytes, dict)) or value is None:
            raise TypeError(f"{name} must be an int or a pair (h, w) of ints, got {value!r}")
        number = as_int(name, value, minimum)
        return number, number
    if len(value) != 2:
        raise ValueError(f"{name} must be an int or a pair (h, w) of ints, got {len(value)} values: {value!r}")
    return as_int(f"{name}[0]", value[0], minimum), as_int(f"{name}[1]", value[1], minimum)


def as_shape(name: str, value: Any, ranks: Sequence[int]) -> tuple[int, ...]:
    """Return `value` as a shape (a tuple of non-negative ints) whose length is one of `ranks`."""
    if not _is_sequence(value):
        raise TypeError(f"{name} must be a shape, a tuple of ints, got {value!r}")
    shape = tuple(as_int(f"{name}[{i}]", n, 0) for i, n in enumerate(value))
    if len(shape) not in ranks:
        raise ValueError(f"{name} must have {' or '.join(map(str, ranks))} axes, got {len(shape)}: {shape}")
    return shape


def extent(kernel: int, dilation: int) -> int:
    """Cells from the first to the last tap of a window, both included."""
    return dilation * (kernel - 1) + 1


def _axis_output_size(size: int, e: int, stride: int, before: int, after: int, ceil_mode: bool) -> int:
    """Rule 1 (floor) and rule 7 (ceil) of the design: how many windows fit along one axis. May be below 1."""
    free = size + before + after - e
    if not ceil_mode:
        return free // stride + 1
    out = -(-free // stride) + 1
    # A window that would start in the padding behind the image is dropped.
    return out - 1 if (out - 1) * stride >= size + before else out


def _named_axis_padding(how: str, size: int, e: int, stride: int) -> Pair:
    if how == "valid":
        return 0, 0
    if how == "full":
        return e - 1, e - 1
    total = max((-(-size // stride) - 1) * stride + e - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if how == "same" else (large, small)


def as_pads(name: str, value: Any, size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    """Return any form of padding as ``((top, bottom), (left, right))``.

    Parameters
    ----------
    name : str
        The argument's name, for errors.
    value : int, pair, pair of pairs or str
        One number for all sides; ``(h, w)``; ``((top, bottom), (left, right))``; or one of `PADDING_NAMES`.
    size, kernel, stride, dilation : pair of int
        The window, which the named paddings need.

    Raises
    ------
    TypeError, ValueError
        Where `value` is none of these.
    """
    return _resolve_padding(_checked_padding(name, value), size, kernel, stride, dilation)


def _checked_padding(name: str, value: Any) -> str | Pads:
    """`value` as one of `PADDING_NAMES` or as ints for all four sides: what needs no size, and can be a cache's key."""
    if isinstance(value, str):
        if value not in PADDING_NAMES:
            raise ValueError(f"{name} must be numbers or one of {', '.join(map(repr, PADDING_NAMES))}, got {value!r}")
        return value
    if _is_sequence(value) and len(value) == 2 and any(_is_sequence(side) for side in value):
        sides = []
        for i, side in enumerate(value):
            if not _is_sequence(side) or len(side) != 2:
                raise ValueError(f"{name} must be an int, a pair (h, w), ((top, bottom), (left, right)) or a name, "
                                 f"got {value!r}")
            sides.append((as_int(f"{name}[{i}][0]", side[0], 0), as_int(f"{name}[{i}][1]", side[1], 0)))
        return sides[0], sides[1]
    h, w = as_pair(name, value, 0)
    return (h, h), (w, w)


def _resolve_padding(padding: str | Pads, size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    if not isinstance(padding, str):
        return padding
    h, w = (_named_axis_padding(padding, size[i], extent(kernel[i], dilation[i]), stride[i]) for i in (0, 1))
    return h, w


def conv_output_size(size: Any, kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *,
                     ceil_mode: bool = False, strict: bool = False) -> int | Pair:
    """Number of positions of a sliding window: the output size of a convolution or a pooling.

    ``(size + before + after - dilation*(kernel-1) - 1) // stride + 1``; with `ceil_mode` the division rounds up, and a
    last window that would start behind the image and the padding before it is dropped.

    Parameters
    ----------
    size : int or pair of int
        Input size along one axis, or ``(height, width)``.
    kernel, stride, dilation : int or pair of int
        The window. Ints where `size` is an int.
    padding : int, pair, pair of pairs or {"valid", "same", "same_lower", "full"}
        As in :func:`fastconv.conv2d`. Where `size` is an int, a pair is ``(before, after)``.
    ceil_mode : bool
        Round up, as a pooling may.
    strict : bool
        Raise where the division is not exact, that is where cells at the end would be in no window.

    Returns
    -------
    int or pair of int
        An int where `size` is one.

    Raises
    ------
    ValueError
        Where the output would be empty, where an argument is out of range, or by `strict`.
    TypeError
        Where an argument is not made of ints.

    Examples
    --------
    >>> conv_output_size(7, 3, stride=2)
    3
    >>> conv_output_size((28, 31), 5, stride=3, padding=2)
    (10, 11)
    """
    single = not _is_sequence(size)
    if single:  # one axis: let a second one of size 1 go along
        for name, value in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
            if _is_sequence(value):
                raise TypeError(f"{name} must be an int where size is one, got {value!r} with size {size!r}")
        size, kernel, stride, dilation = (size, 1), (kernel, 1), (stride, 1), (dilation, 1)
        if not isinstance(padding, str):
            padding = (padding if _is_sequence(padding) else (padding, padding), (0, 0))
    size = as_pair("size", size)
    kernel, stride, dilation = as_pair("kernel", kernel), as_pair("stride", stride), as_pair("dilation", dilation)
    pads = as_pads("padding", padding, size, kernel, stride, dilation)
    out = _output_sizes(size, kernel, stride, pads, dilation, as_flag("ceil_mode", ceil_mode))
    if as_flag("strict", strict):
        for axis in (0, 1):
            rest = (size[axis] + sum(pads[axis]) - extent(kernel[axis], dilation[axis])) % stride[axis]
            if rest:
                raise ValueError(f"stride {stride[axis]} does not divide the room for the window: size {size[axis]} "
                                 f"with padding {pads[axis]} and kernel {kernel[axis]} (dilation {dilation[axis]}) "
                                 f"leaves {rest} over (strict=True)")
    return out[0] if single else out


def _output_sizes(size: Pair, kernel: Pair, stride: Pair, pads: Pads, dilation: Pair, ceil_mode: bool) -> Pair:
    out = []
    for axis, name in enumerate(("height", "width")):
        e = extent(kernel[axis], dilation[axis])
        n = _axis_output_size(size[axis], e, stride[axis], *pads[axis], ceil_mode)
        if n < 1:
            raise ValueError(f"the output {name} would be {n}: a window of {e} (kernel {kernel[axis]}, dilation "
                             f"{dilation[axis]}) does not fit an input {name} of {size[axis]} with padding "
                             f"{pads[axis]}")
        out.append(n)
    return out[0], out[1]


# --- geometries -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window2dGeometry:
    """A window that slides over ``(batch, channels, height, width)``: what im2col and col2im need to know.

    Build it with :func:`window2d_geometry`; the constructor does not check.

    Attributes
    ----------
    batch, channels : int
    in_size, kernel, stride, dilation, out_size : pair of int
        ``(height, width)`` each.
    pads : pair of pairs of int
        ``((top, bottom), (left, right))``
    """

    batch: int
    channels: int
    in_size: Pair
    kernel: Pair
    stride: Pair
    pads: Pads
    dilation: Pair
    out_size: Pair

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """``(N, C, H, W)``"""
        return (self.batch, self.channels, *self.in_size)

    @property
    def extent(self) -> Pair:
        """Cells that one window covers, ``dilation * (kernel - 1) + 1``."""
        return extent(self.kernel[0], self.dilation[0]), extent(self.kernel[1], self.dilation[1])

    @property
    def taps(self) -> int:
        """Cells of a window in one channel, ``KH * KW``."""
        return self.kernel[0] * self.kernel[1]

    @property
    def positions(self) -> int:
        """Windows in one image, ``OH * OW``."""
        return self.out_size[0] * self.out_size[1]

    @property
    def padded_size(self) -> Pair:
        """Input size with padding."""
        return self.in_size[0] + sum(self.pads[0]), self.in_size[1] + sum(self.pads[1])

    def columns_shape(self, layout: str) -> tuple[int, ...]:
        """Shape of the column matrix in one of the `LAYOUTS`."""
        as_choice("layout", layout, LAYOUTS)
        n, rows, places = self.batch, self.channels * self.taps, self.positions
        if layout == "rows":
            return n * places, rows
        if layout == "columns":
            return n, rows, places
        if layout == "windows":
            return (n, self.channels, *self.kernel, *self.out_size)
        return rows, places * n


LAYOUTS = ("rows", "columns", "windows", "cs231n")


@dataclass(frozen=True)
class Conv2dGeometry(Window2dGeometry):
    """A convolution ``(N, C, H, W) * (K, C/groups, KH, KW) -> (N, K, OH, OW)``. Built by :func:`conv2d_geometry`."""

    out_channels: int
    groups: int

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """``(K, C/groups, KH, KW)``"""
        return (self.out_channels, self.channels // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """``(N, K, OH, OW)``"""
        return (self.batch, self.out_channels, *self.out_size)

    @property
    def of_padded(self) -> Conv2dGeometry:
        """The same windows on an image that has the padding already."""
        return replace(self, in_size=self.padded_size, pads=((0, 0), (0, 0)))

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of the definition, an addition and a multiplication for each weight and pixel."""
        return 2 * self.batch * self.positions * self.out_channels * (self.channels // self.groups) * self.taps


@dataclass(frozen=True)
class Pool2dGeometry(Window2dGeometry):
    """A pooling ``(N, C, H, W) -> (N, C, OH, OW)``. Built by :func:`pool2d_geometry`."""

    ceil_mode: bool

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """``(N, C, OH, OW)``"""
        return (self.batch, self.channels, *self.out_size)

    @cached_property
    def empty_window(self) -> str | None:
        """What is wrong where some window has no cell inside the image (dilation can do that), otherwise None."""
        for axis, name in enumerate(("rows", "columns")):
            size, step, gap, taps = self.in_size[axis], self.stride[axis], self.dilation[axis], self.kernel[axis]
            if gap <= size:  # padding is below the extent, and no step is long enough to pass over the image
                continue
            # A window that starts inside the image has a cell there: only those that start before it are looked at.
            for o in range(min(self.out_size[axis], -(-self.pads[axis][0] // step))):
                start = o * step - self.pads[axis][0]
                if start + -(start // gap) * gap >= size:
                    last = start + (taps - 1) * gap
                    return (f"the window at output {name[:-1]} {o} covers {name} {start} to {last} in steps of {gap} "
                            f"and has no cell inside the input's 0 to {size - 1}")
        return None

    def divisors(self, axis: int, count_include_pad: bool) -> list[int]:
        """Cells that count in each window along one axis (rule 8); the divisor is the product over both axes."""
        size, (before, after) = self.in_size[axis], self.pads[axis]
        low, high = (-before, size + after) if count_include_pad else (0, size)
        gap, taps = self.dilation[axis], self.kernel[axis]
        counts = []
        for o in range(self.out_size[axis]):
            start = o * self.stride[axis] - before
            first = max(0, -((start - low) // gap))
            stop = min(taps, -((start - high) // gap))
            counts.append(max(stop - first, 0))
        return counts


def _shape_of(name: str) -> str:
    """What to call the shape of the argument `name`: an array's, or an argument that itself is a shape."""
    return name if name.endswith("_shape") else f"{name}.shape"


def _checked_input(name: str, shape: tuple[int, ...]) -> tuple[int, int, Pair]:
    batch, channels, height, width = (1, *shape) if len(shape) == 3 else shape
    if min(channels, height, width) < 1:
        raise ValueError(f"{name} must have at least one channel, row and column, got shape {shape}")
    return batch, channels, (height, width)


@lru_cache(maxsize=2048)
def _window(name: str, shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: str | Pads,
            dilation: Pair, ceil_mode: bool) -> tuple[int, int, Pair, Pair, Pair, Pads, Pair, Pair]:
    batch, channels, size = _checked_input(name, shape)
    pads = _resolve_padding(padding, size, kernel, stride, dilation)
    return batch, channels, size, kernel, stride, pads, dilation, _output_sizes(size, kernel, stride, pads, dilation,
                                                                              ceil_mode)


def window2d_geometry(input_shape: Any, filter_h: Any, filter_w: Any, stride: Any = 1, pad: Any = 0,
                      dilation: Any = 1, *, name: str = "x") -> Window2dGeometry:
    """The geometry of im2col and col2im; arguments as :func:`fastconv.im2col`."""
    shape = as_shape(name, input_shape, (3, 4))
    kernel = as_int("filter_h", filter_h, 1), as_int("filter_w", filter_w, 1)
    return Window2dGeometry(*_window(name, shape, kernel, as_pair("stride", stride),
                                     _checked_padding("pad", pad), as_pair("dilation", dilation), False))


Made = TypeVar("Made")
_PLAIN = (int, bool, str, type(None))


def _kept(make: Callable[..., Made]) -> Callable[..., Made]:
    """Keep what `make` returns for shapes and plain numbers: it takes longer to make than a small call has."""
    keep = lru_cache(maxsize=2048, typed=True)(make)  # by types, too: True is not taken for 1

    @wraps(make)
    def geometry(*arguments: Any, **names: Any) -> Made:
        for argument in (*arguments, *names.values()):
            kind = type(argument)
            if kind not in _PLAIN and not (kind is tuple and all(type(item) is int for item in argument)):
                return make(*arguments, **names)
        return keep(*arguments, **names)

    return geometry


@_kept
def conv2d_geometry(x_shape: Any, weight_shape: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                    groups: Any = 1, *, x_name: str = "x", weight_name: str = "weight") -> Conv2dGeometry:
    """The geometry of a convolution; arguments as :func:`fastconv.conv2d`, shapes in place of the arrays.

    Raises
    ------
    ValueError, TypeError
        Where the arguments do not fit together; the message names the argument and both values.
    """
    shape = as_shape(_shape_of(x_name), x_shape, (3, 4))
    weights = as_shape(_shape_of(weight_name), weight_shape, (4,))
    groups = as_int("groups", groups, 1)
    if min(weights) < 1:
        raise ValueError(f"{weight_name} must have at least one filter, channel, row and column, got shape {weights}")
    stride, dilation = as_pair("stride", stride), as_pair("dilation", dilation)
    kernel = weights[2], weights[3]
    common = _window(x_name, shape, kernel, stride, _checked_padding("padding", padding), dilation, False)
    channels = common[1]
    if channels % groups:
        raise ValueError(f"groups must divide the channels of {x_name}: got groups={groups} and {channels} channels")
    if weights[0] % groups:
        raise ValueError(f"groups must divide the filters of {weight_name}: got groups={groups} and {weights[0]} "
                         f"filters")
    if weights[1] != channels // groups:
        raise ValueError(f"{_shape_of(weight_name)}[1] must be the channels of {x_name} divided by groups, "
                         f"{channels}/{groups} = {channels // groups}, got {weights[1]} ({_shape_of(weight_name)} "
                         f"{weights}, {_shape_of(x_name)} {shape})")
    return Conv2dGeometry(*common, out_channels=weights[0], groups=groups)


def check_padding_mode(mode: Any, geometry: Conv2dGeometry) -> str:
    """Return `mode`, or raise TypeError or ValueError where it is none or the image too small for it."""
    mode = as_choice("padding_mode", mode, PADDING_MODES)
    most = {"reflect": 1, "circular": 0}  # a cell may be taken twice, but not from a cell of padding
    for axis, name in enumerate(("height", "width")):
        if mode in most and max(geometry.pads[axis]) > geometry.in_size[axis] - most[mode]:
            raise ValueError(f"padding along the {name} must be at most {geometry.in_size[axis] - most[mode]} with "
                             f"padding_mode={mode!r} and an image {name} of {geometry.in_size[axis]}, got "
                             f"{geometry.pads[axis]}")
    return mode


def conv_transpose2d_geometry(x_shape: Any, weight_shape: Any, stride: Any = 1, padding: Any = 0,
                              output_padding: Any = 0, groups: Any = 1, dilation: Any = 1) -> Conv2dGeometry:
    """The geometry of the convolution whose gradient with respect to its input is the transposed convolution asked for.

    The result's `output_shape` is `x_shape` and its `input_shape` is the transposed convolution's output. Where
    `output_padding` reaches the stride (a larger dilation allows it), the result has fewer positions than rule 1 would
    give: the cells at the end of the input are in no window.
    """
    shape = as_shape("x.shape", x_shape, (3, 4))
    weights = as_shape("weight.shape", weight_shape, (4,))
    if min(weights) < 1:
        raise ValueError(f"weight must have at least one filter, channel, row and column, got shape {weights}")
    batch, channels, size = _checked_input("x", shape)
    groups = as_int("groups", groups, 1)
    step, gaps, extra = as_pair("stride", stride), as_pair("dilation", dilation), as_pair("output_padding",
                                                                                         output_padding, 0)
    if weights[0] != channels:
        raise ValueError(f"weight.shape[0] must be the channels of x, {channels}, got {weights[0]} (weight.shape "
                         f"{weights}, x.shape {shape})")
    if channels % groups:
        raise ValueError(f"groups must divide the channels of x: got groups={groups} and {channels} channels")
    for axis in (0, 1):
        if extra[axis] >= max(step[axis], gaps[axis]):
            raise ValueError(f"output_padding must be smaller than stride or dilation, got {extra[axis]} with stride "
                             f"{step[axis]} and dilation {gaps[axis]}")
    kernel = weights[2], weights[3]
    if isinstance(padding, str) and padding in ("same", "same_lower"):
        if extra != (0, 0):
            raise ValueError(f"output_padding must be 0 with padding={padding!r}, whose output size is size*stride, "
                             f"got {extra}")
        out = size[0] * step[0], size[1] * step[1]
        pads = as_pads("padding", padding, out, kernel, step, gaps)
    else:
        pads = as_pads("padding", padding, size, kernel, step, gaps)
        sizes = []
        for axis, name in enumerate(("height", "width")):
            e = extent(kernel[axis], gaps[axis])
            n = (size[axis] - 1) * step[axis] + e - sum(pads[axis]) + extra[axis]
            if n < 1:
                raise ValueError(f"the output {name} would be {n}: input {name} {size[axis]} at stride {step[axis]} "
                                 f"with a window of {e} and padding {pads[axis]}")
            sizes.append(n)
        out = sizes[0], sizes[1]
    return Conv2dGeometry(batch, weights[1] * groups, out, kernel, step, pads, gaps, size, out_channels=channels,
                          groups=groups)


@_kept
def pool2d_geometry(x_shape: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                    ceil_mode: bool = False, *, x_name: str = "x") -> Pool2dGeometry:
    """The geometry of a pooling; arguments as :func:`fastconv.max_pool2d`, a shape in place of the array.

    Raises
    ------
    ValueError, TypeError
        Where the arguments do not fit together, or where the padding is not smaller than the window.
    """
    shape = as_shape(_shape_of(x_name), x_shape, (3, 4))
    kernel = as_pair("kernel_size", kernel_size)
    step = kernel if stride is None else as_pair("stride", stride)
    gaps = as_pair("dilation", dilation)
    common = _window(x_name, shape, kernel, step, _checked_padding("padding", padding), gaps, bool(ceil_mode))
    pads = common[5]
    for axis in (0, 1):
        e = extent(kernel[axis], gaps[axis])
        if max(pads[axis]) >= e:
            raise ValueError(f"padding must be smaller than the window, dilation*(kernel_size-1)+1 = {e}, "
                             f"got {pads[axis]} along {'height' if axis == 0 else 'width'}")
    return Pool2dGeometry(*common, ceil_mode=bool(ceil_mode))


def unpool2d_geometry(dout_shape: Any, indices_shape: Any, input_shape: Any) -> Window2dGeometry:
    """The geometry of :func:`fastconv.max_pool2d_backward`, which knows the sizes on both sides but not the window."""
    shape = as_shape("input_shape", input_shape, (3, 4))
    small = as_shape("dout.shape", dout_shape, (len(shape),))
    if tuple(indices_shape) != small:
        raise ValueError(f"indices must have the shape of dout, {small}, got {tuple(indices_shape)}")
    if small[:-2] != shape[:-2]:
        raise ValueError(f"dout must have the batch and channels of input_shape {shape}, got dout.shape {small}")
    batch, channels, size = _checked_input("input_shape", shape)
    return Window2dGeometry(batch, channels, size, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (small[-2], small[-1]))
