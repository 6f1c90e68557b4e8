"""The layers that are measured: one list of rows, and the convolutions of whole networks.

A row is written ``N,C,HxW -> K, kernel/stride/padding``, and known by its name. To measure another one, add it to the list.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..geometry import Conv2dGeometry, Pool2dGeometry, Window2dGeometry, conv2d_geometry, pool2d_geometry, window2d_geometry

if TYPE_CHECKING:  # the networks are made where a training step is measured
    from ..nn.models import Network

Shape = tuple[int, ...]


def _text(value: Any) -> str:
    """A stride or padding as it is written in a row: one number, or a pair as 1x2."""
    return "x".join(map(_text, value)) if isinstance(value, tuple) else str(value)


def _kernel_text(kernel: tuple[int, int]) -> str:
    return str(kernel[0]) if kernel[0] == kernel[1] else f"{kernel[0]}x{kernel[1]}"


@dataclass(frozen=True)
class ConvLayer:
    """A convolution, in the arguments of :func:`fastconv.conv2d`."""

    name: str
    x: Shape
    weight: Shape
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1

    @cached_property
    def geometry(self) -> Conv2dGeometry:
        """Its geometry. ValueError or TypeError where shapes and arguments do not fit together."""
        return conv2d_geometry(self.x, self.weight, self.stride, self.padding, self.dilation, self.groups)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """``stride, padding, dilation, groups``, as the public functions take them."""
        return self.stride, self.padding, self.dilation, self.groups

    def with_batch(self, batch: int) -> ConvLayer:
        """The same layer on another number of images."""
        return replace(self, x=(batch, *self.geometry.input_shape[1:]))

    def __str__(self) -> str:
        g = self.geometry
        kernel, more = _kernel_text(g.kernel), ""
        if g.groups == g.channels == g.out_channels > 1:
            more = ", depthwise"
        elif g.groups > 1:
            more = f", groups {g.groups}"
        if self.dilation not in (1, (1, 1)):
            more += f", dilation {_text(self.dilation)}"
        return (f"{g.batch},{g.channels},{g.in_size[0]}x{g.in_size[1]} -> {g.out_channels}, "
                f"{kernel}/{_text(self.stride)}/{_text(self.padding)}{more}")


@dataclass(frozen=True)
class WindowLayer:
    """A window that moves over images: for poolings, im2col and col2im."""

    name: str
    x: Shape
    kernel: Any
    stride: Any
    padding: Any = 0

    @cached_property
    def geometry(self) -> Pool2dGeometry:
        """Its geometry as a pooling."""
        return pool2d_geometry(self.x, self.kernel, self.stride, self.padding)

    @cached_property
    def window(self) -> Window2dGeometry:
        """Its geometry for im2col and col2im."""
        return window2d_geometry(self.x, *self.geometry.kernel, self.stride, self.padding)

    def __str__(self) -> str:
        g = self.geometry
        return (f"{g.batch},{g.channels},{g.in_size[0]}x{g.in_size[1]}, {_kernel_text(g.kernel)}/{_text(self.stride)}/"
                f"{_text(self.padding)}")


@dataclass(frozen=True)
class TrainingStep:
    """A step of training: the gradient of a mini-batch, and an update of the parameters by momentum.

    Attributes
    ----------
    name : str
    network : str
        A network of :mod:`fastconv.nn` that :mod:`fastconv.nn.numpy_layers` has in NumPy as well.
    batch : int
    size : int
        Height and width of an image, which has one channel.
    """

    name: str
    network: str
    batch: int = 100
    size: int = 28

    def make(self, dtype: Any, by_numpy: bool = False) -> Network:
        """The network with its initial weights, which are the same for everyone; without dropout, which is not."""
        from .. import nn
        from ..nn import numpy_layers

        kinds: Mapping[str, Any] = numpy_layers.NETWORKS if by_numpy else vars(nn)
        more = {"dropout": 0.0} if self.network == "DeepConvNet" else {}
        made: Network = kinds[self.network](input_dim=(1, self.size, self.size), seed=0, dtype=dtype, **more)
        return made

    @cached_property
    def flops(self) -> int:
        """Operations of the convolutions and affine layers: forward, and twice as many for the two gradients."""
        network = self.make("float32")
        shapes, total = network.output_shapes(), 0
        for layer, part in network.layers.items():
            if part.params:
                positions = math.prod(shapes[layer][1:])
                forward = 2 * positions * part.params["weight"].size
                total += forward * (3 if getattr(part, "input_gradient", True) else 2)
        return self.batch * total

    def __str__(self) -> str:
        return f"{self.network}, {self.batch},1,{self.size}x{self.size}"


Layer = ConvLayer | WindowLayer | TrainingStep


def _conv(name: str, batch: int, channels: int, size: int, filters: int, kernel: int, stride: int = 1, padding: int = 0,
          groups: int = 1) -> ConvLayer:
    return ConvLayer(name, (batch, channels, size, size), (filters, channels // groups, kernel, kernel), stride, padding,
                     1, groups)


#: The convolutions that fastconv is held against others on, from the networks that people know.
CONV_ROWS: tuple[ConvLayer, ...] = (
    _conv("mnist-conv1", 100, 1, 28, 30, 5),
    _conv("mnist-conv2", 100, 30, 12, 50, 5),
    _conv("alexnet-conv1", 8, 3, 227, 96, 11, 4),
    _conv("alexnet-conv2", 8, 96, 27, 256, 5, 1, 2),
    _conv("vgg-conv1_1", 4, 3, 224, 64, 3, 1, 1),
    _conv("vgg-conv1_2", 4, 64, 224, 64, 3, 1, 1),
    _conv("vgg-conv3_2", 4, 256, 56, 256, 3, 1, 1),
    _conv("vgg-conv5_1", 4, 512, 14, 512, 3, 1, 1),
    _conv("resnet-conv1", 8, 3, 224, 64, 7, 2, 3),
    _conv("resnet-conv2_3x3", 8, 64, 56, 64, 3, 1, 1),
    _conv("resnet-conv5_3x3", 8, 512, 7, 512, 3, 1, 1),
    _conv("resnet-conv2_expand", 8, 64, 56, 256, 1),
    _conv("resnet-conv3_shortcut", 8, 256, 56, 512, 1, 2),
    _conv("resnet-conv3_stride2", 8, 128, 56, 128, 3, 2, 1),
    _conv("resnet-conv5_batch1", 1, 512, 7, 512, 3, 1, 1),
    _conv("mobilenet-dw5", 8, 256, 28, 256, 3, 1, 1, groups=256),
    _conv("mobilenet-dw4_stride2", 8, 128, 56, 128, 3, 2, 1, groups=128),
    _conv("tiny", 1, 3, 8, 4, 3, 1, 1),
    _conv("plane-7x7", 1, 1, 1024, 1, 7, 1, 3),
)

#: The windows for poolings, im2col and col2im.
WINDOW_ROWS: tuple[WindowLayer, ...] = (
    WindowLayer("mnist-pool", (100, 30, 24, 24), 2, 2),
    WindowLayer("vgg-pool1", (4, 64, 224, 224), 2, 2),
    WindowLayer("resnet-pool", (8, 64, 112, 112), 3, 2, 1),
    WindowLayer("inception-pool", (8, 256, 28, 28), 3, 1, 1),
)

#: The training steps.
TRAINING_ROWS: tuple[TrainingStep, ...] = (
    TrainingStep("mnist-simple", "SimpleConvNet"),
    TrainingStep("mnist-deep", "DeepConvNet"),
)

#: All of them.
ROWS: tuple[Layer, ...] = (*CONV_ROWS, *WINDOW_ROWS, *TRAINING_ROWS)


def choose(rows: Iterable[Any], patterns: Iterable[str]) -> tuple[Any, ...]:
    """The rows whose names match one of the patterns (``vgg*``), in the order of the rows.

    Raises
    ------
    ValueError
        Where a pattern matches no row.
    """
    rows, patterns = tuple(rows), tuple(patterns)
    for pattern in patterns:
        if not fnmatch.filter([row.name for row in rows], pattern):
            raise ValueError(f"no layer is called {pattern!r}; there are {', '.join(row.name for row in rows)}")
    return tuple(row for row in rows if any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns))


# --- networks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkLayer:
    """A convolution of a network, and how often the network has it in exactly this shape."""

    layer: ConvLayer
    count: int


def _lenet(n: int) -> list[ConvLayer]:
    """LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) on 28x28 pixels; C3 as a full convolution, as it is built today."""
    return [_conv("c1", n, 1, 28, 6, 5, 1, 2), _conv("c3", n, 6, 14, 16, 5), _conv("c5", n, 16, 5, 120, 5)]


def _alexnet(n: int) -> list[ConvLayer]:
    """AlexNet (Krizhevsky, Sutskever, Hinton 2012), with the two groups that it had for two GPUs."""
    return [_conv("conv1", n, 3, 227, 96, 11, 4), _conv("conv2", n, 96, 27, 256, 5, 1, 2, groups=2),
            _conv("conv3", n, 256, 13, 384, 3, 1, 1), _conv("conv4", n, 384, 13, 384, 3, 1, 1, groups=2),
            _conv("conv5", n, 384, 13, 256, 3, 1, 1, groups=2)]


def _vgg16(n: int) -> list[ConvLayer]:
    """VGG-16, configuration D (Simonyan, Zisserman 2014)."""
    layers, channels, size = [], 3, 224
    for stage, (filters, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for i in range(1, depth + 1):
            layers.append(_conv(f"conv{stage}_{i}", n, channels, size, filters, 3, 1, 1))
            channels = filters
        size //= 2
    return layers


def _resnet50(n: int) -> list[ConvLayer]:
    """ResNet-50 (He, Zhang, Ren, Sun 2015), with the stride in the 3x3 convolution, as it is built today (v1.5)."""
    layers, channels, size = [_conv("conv1", n, 3, 224, 64, 7, 2, 3)], 64, 56
    for stage, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 2):
        for block in range(1, depth + 1):
            stride, name = 2 if stage > 2 and block == 1 else 1, f"conv{stage}_{block}"
            layers.append(_conv(f"{name}_reduce", n, channels, size, width, 1))
            layers.append(_conv(f"{name}_3x3", n, width, size, width, 3, stride, 1))
            layers.append(_conv(f"{name}_expand", n, width, size // stride, 4 * width, 1))
            if block == 1:
                layers.append(_conv(f"{name}_shortcut", n, channels, size, 4 * width, 1, stride))
            channels, size = 4 * width, size // stride
    return layers


def _mobilenet(n: int) -> list[ConvLayer]:
    """MobileNetV1, width 1 (Howard et al. 2017): depthwise 3x3 and pointwise 1x1 convolutions by turns."""
    layers, channels, size = [_conv("conv1", n, 3, 224, 32, 3, 2, 1)], 32, 112
    blocks = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
    for i, (filters, stride) in enumerate(blocks, 2):
        layers.append(_conv(f"conv{i}_dw", n, channels, size, channels, 3, stride, 1, groups=channels))
        size //= stride
        layers.append(_conv(f"conv{i}_pw", n, channels, size, filters, 1))
        channels = filters
    return layers


#: The convolutions of networks at a batch size, in their order.
NETWORKS: dict[str, Callable[[int], list[ConvLayer]]] = {
    "lenet": _lenet, "alexnet": _alexnet, "vgg16": _vgg16, "resnet50": _resnet50, "mobilenet": _mobilenet}


def network(name: str, batch: int = 1) -> list[NetworkLayer]:
    """The distinct convolutions of a network in their order, each with its number of occurrences.

    Raises
    ------
    ValueError
        Where there is no such network.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}")
    found: dict[ConvLayer, NetworkLayer] = {}
    for layer in NETWORKS[name](batch):
        key = replace(layer, name="")
        first = found.get(key, NetworkLayer(layer, 0))
        found[key] = NetworkLayer(first.layer, first.count + 1)
    return list(found.values())
