"""A job is an operation on a layer, with a dtype and a number of threads: its arrays, its work, and its right result.

All contenders of a job get the same arrays, made once. The right result comes from :mod:`fastconv.reference`, in
float64, for a part of it (the first and the last image; of filters the first and the last): enough to notice somebody
who computes something else, in a fraction of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from .. import reference
from ..geometry import Conv2dGeometry
from .layers import ConvLayer, Layer, TrainingStep, WindowLayer

Array = np.ndarray

CONVOLUTIONS = ("forward", "backward", "backward_data", "backward_weight")
POOLINGS = ("max_pool", "max_pool_backward", "avg_pool", "avg_pool_backward")
LOWERINGS = ("im2col", "im2col_rows", "col2im", "col2im_rows")
TRAINING = "training"

#: What can be measured. ``backward`` is all three gradients together; im2col and col2im are in the layout "columns";
#: ``training`` is a step of training a network, whose result are the gradients of its parameters.
OPERATIONS = (*CONVOLUTIONS, *POOLINGS, *LOWERINGS, TRAINING)

TITLES = {
    "forward": "convolution forward", "backward": "convolution backward (dx, dw, db)",
    "backward_data": "convolution backward data", "backward_weight": "convolution backward weight",
    "max_pool": "max pooling forward", "max_pool_backward": "max pooling backward",
    "avg_pool": "average pooling forward", "avg_pool_backward": "average pooling backward",
    "im2col": "im2col, columns", "im2col_rows": "im2col, rows", "col2im": "col2im, columns", "col2im_rows": "col2im, rows",
    TRAINING: "training step (forward, backward, momentum)",
}

#: How far anyone may be from the right result, over the largest cell of it, as fastconv itself may (Winograd's algorithm).
LEAST_TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

#: A plain sum of n terms is off by about sqrt(n) roundings. Libraries that add up in one go have that and no more.
ROUNDINGS = 16


#: A network's gradients, through all of its layers.
TRAINING_TOLERANCE = {"float32": 1e-4, "float64": 1e-10}

#: So small that a network is the same after some thousand steps: steps are measured, not what they lead to.
LEARNING_RATE = 1e-6


def layer_type(operation: str) -> type:
    """What kind of layer an operation is measured on."""
    return ConvLayer if operation in CONVOLUTIONS else TrainingStep if operation == TRAINING else WindowLayer


class WrongResult(Exception):
    """A contender computed something else than what was asked for."""


@dataclass(frozen=True)
class Job:
    """An operation on a layer. The arrays are random, with a fixed seed, and are made when they are first asked for."""

    operation: str
    layer: Layer
    dtype: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {self.operation!r}")
        wanted = layer_type(self.operation)
        if not isinstance(self.layer, wanted):
            raise ValueError(f"{self.operation} needs a {wanted.__name__}, got {self.layer!r}")

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{TITLES[self.operation]}: {self.layer.name} ({self.layer}), {self.dtype}, {threads}"

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def conv(self) -> ConvLayer:
        """The layer of a convolution."""
        return cast(ConvLayer, self.layer)

    @property
    def window(self) -> WindowLayer:
        """The layer of a pooling or lowering."""
        return cast(WindowLayer, self.layer)

    @property
    def step(self) -> TrainingStep:
        """The step of training."""
        return cast(TrainingStep, self.layer)

    @property
    def layout(self) -> str:
        """The column matrix's layout."""
        return "rows" if self.operation.endswith("_rows") else "columns"

    @property
    def flops(self) -> int | None:
        """Floating-point operations of convolutions by their definition, None for what only moves numbers."""
        if self.operation == TRAINING:
            return self.step.flops
        if self.operation not in CONVOLUTIONS:
            return None
        flops = self.conv.geometry.flops
        return 2 * flops if self.operation == "backward" else flops

    @property
    def nbytes(self) -> int:
        """Bytes of what must be read once and of what must be written once."""
        if self.operation == TRAINING:
            return self.input_bytes + self.result_bytes
        if self.operation in CONVOLUTIONS:
            x, weight, dout = self._conv_sizes()
            items = {"forward": x + weight + dout, "backward_data": x + weight + dout,
                     "backward_weight": x + weight + dout, "backward": 2 * x + 2 * weight + dout}[self.operation]
            return items * self._itemsize
        x, out, column = self._window_sizes()
        if self.operation in LOWERINGS:
            return (x + column) * self._itemsize
        indices = 8 * out if self.operation == "max_pool_backward" else 0
        return (x + out) * self._itemsize + indices

    @property
    def result_bytes(self) -> int:
        """Bytes of the result."""
        if self.operation == TRAINING:
            return sum(array.nbytes for array in self._network.params.values())
        if self.operation in CONVOLUTIONS:
            x, weight, dout = self._conv_sizes()
            items = {"forward": dout, "backward_data": x, "backward_weight": weight,
                     "backward": x + weight + self.conv.geometry.out_channels}[self.operation]
        else:
            x, out, column = self._window_sizes()
            items = {"im2col": column, "im2col_rows": column, "max_pool": out, "avg_pool": out}.get(self.operation, x)
        return items * self._itemsize

    @property
    def input_bytes(self) -> int:
        """Bytes of all arrays that the job's contenders start from."""
        if self.operation == TRAINING:
            return self.x.nbytes + self.labels.nbytes + self.result_bytes
        if self.operation in CONVOLUTIONS:
            x, weight, dout = self._conv_sizes()
            return {"forward": x + weight, "backward_data": weight + dout, "backward_weight": x + dout,
                    "backward": x + weight + dout}[self.operation] * self._itemsize
        x, out, column = self._window_sizes()
        items = {"col2im": column, "col2im_rows": column, "max_pool_backward": x + out, "avg_pool_backward": x + out}
        indices = 8 * out if self.operation == "max_pool_backward" else 0
        return items.get(self.operation, x) * self._itemsize + indices

    @property
    def _itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    def _conv_sizes(self) -> tuple[int, int, int]:
        g: Conv2dGeometry = self.conv.geometry
        return math.prod(g.input_shape), math.prod(g.weight_shape), math.prod(g.output_shape)

    def _window_sizes(self) -> tuple[int, int, int]:
        g = self.window.geometry
        return math.prod(g.input_shape), math.prod(g.output_shape), math.prod(g.columns_shape("rows"))

    # --- its arrays ---------------------------------------------------------------------------------------------------

    def _random(self, shape: tuple[int, ...], seed: int) -> Array:
        rng, dtype = np.random.default_rng(seed), np.dtype(self.dtype)
        if dtype in (np.float32, np.float64):
            return rng.standard_normal(shape, dtype=dtype.type)
        return (8 * rng.standard_normal(shape)).astype(dtype)  # small whole numbers where the dtype has no others

    @cached_property
    def x(self) -> Array:
        """The images."""
        if isinstance(self.layer, TrainingStep):
            return self._random((self.layer.batch, 1, self.layer.size, self.layer.size), 0)
        return self._random(self.layer.geometry.input_shape, 0)

    @cached_property
    def labels(self) -> Array:
        """What the network should see in the images."""
        return np.random.default_rng(4).integers(0, 10, self.step.batch)

    @cached_property
    def _network(self) -> Any:
        return self.step.make(self.dtype)

    @cached_property
    def weight(self) -> Array:
        """The filters."""
        return self._random(self.conv.geometry.weight_shape, 1)

    @cached_property
    def dout(self) -> Array:
        """The gradient with respect to the output of a convolution or pooling."""
        return self._random(cast(ConvLayer | WindowLayer, self.layer).geometry.output_shape, 2)

    @cached_property
    def column(self) -> Array:
        """A column matrix."""
        return self._random(self.window.window.columns_shape(self.layout), 3)

    @cached_property
    def indices(self) -> Array:
        """Where max pooling of `x` finds its maxima."""
        import fastconv

        window = self.window
        return fastconv.max_pool2d(self.x, window.kernel, window.stride, window.padding, return_indices=True)[1]

    # --- its right result ---------------------------------------------------------------------------------------------

    @property
    def tolerance(self) -> float:
        """How far a result may be from the right one, over the latter's largest cell."""
        if self.operation == TRAINING:
            return TRAINING_TOLERANCE[self.dtype]
        terms = cast(ConvLayer | WindowLayer, self.layer).geometry.taps
        if self.operation in CONVOLUTIONS:
            g = self.conv.geometry
            terms *= max(g.channels, g.out_channels) // g.groups
            if self.operation in ("backward", "backward_weight"):
                terms = max(terms, g.batch * g.positions)
        return max(LEAST_TOLERANCE[self.dtype], ROUNDINGS * float(np.finfo(self.dtype).eps) * math.sqrt(terms))

    def check(self, result: Any) -> float:
        """How far `result` is from the right one, over the latter's largest cell.

        Raises
        ------
        WrongResult
            Where that is more than `tolerance`, or the shape is another.
        """
        results = result if isinstance(result, tuple) else (result,)
        errors = []
        for got, (shape, pick, want) in zip(results, self._expected, strict=True):
            got = np.asarray(got)
            if got.shape != shape:
                raise WrongResult(f"the result has shape {got.shape}, which should be {shape}")
            difference = np.abs(pick(got).astype(np.float64) - want).max()
            errors.append(float(difference / max(np.abs(want).max(), np.finfo(np.float64).tiny)))
        worst = float(np.max(errors))  # NaN, unlike by Python's max, wins
        if not worst <= self.tolerance:
            raise WrongResult(f"the result is off by {worst:.1e} of its largest cell, allowed is {self.tolerance:.1e}")
        return worst

    @cached_property
    def _expected(self) -> list[tuple[tuple[int, ...], Callable[[Array], Array], Array]]:
        """For each array of the result: its shape, what to pick from it, and what that should be in float64."""
        if self.operation in CONVOLUTIONS:
            return self._expected_of_convolution()
        if self.operation == TRAINING:  # in NumPy, which has its own tests against differences
            wanted = self.step.make(np.float64, by_numpy=True).gradient(self.x.astype(np.float64), self.labels)
            return [(array.shape, lambda array: array, array) for array in wanted.values()]
        window, wide = self.window, np.float64
        arguments = (window.kernel, window.stride, window.padding)
        size, layout = (*window.geometry.kernel, window.stride, window.padding), self.layout
        batch = window.geometry.batch
        images = _ends(batch)

        def some_images(array: Array) -> Array:
            return array[images]

        def some_rows(array: Array) -> Array:  # of a column matrix in the layout "rows", which has no axis for images
            return array.reshape(batch, -1, array.shape[-1])[images].reshape(-1, array.shape[-1])

        shape = window.geometry.input_shape
        few = (len(images), *shape[1:])
        if self.operation in LOWERINGS:
            pick = some_rows if layout == "rows" else some_images
            if self.operation.startswith("im2col"):
                want = reference.im2col(self.x[images].astype(wide), *size, layout=layout)
                return [(window.window.columns_shape(layout), pick, want)]
            want = reference.col2im(pick(self.column).astype(wide), few, *size, layout=layout)
            return [(shape, some_images, want)]
        out = window.geometry.output_shape
        if self.operation == "max_pool":
            return [(out, some_images, reference.max_pool2d(self.x[images].astype(wide), *arguments))]
        if self.operation == "avg_pool":
            return [(out, some_images, reference.avg_pool2d(self.x[images].astype(wide), *arguments))]
        dout = self.dout[images].astype(wide)
        if self.operation == "avg_pool_backward":
            return [(shape, some_images, reference.avg_pool2d_backward(dout, few, *arguments))]
        _, indices = reference.max_pool2d(self.x[images].astype(wide), *arguments, return_indices=True)
        return [(shape, some_images, reference.max_pool2d_backward(dout, indices, few))]

    def _expected_of_convolution(self) -> list[tuple[tuple[int, ...], Callable[[Array], Array], Array]]:
        g, wide, arguments = self.conv.geometry, np.float64, self.conv.arguments
        images = _ends(g.batch)

        def some_images(array: Array) -> Array:
            return array[images]

        if self.operation == "forward":
            want = reference.conv2d(self.x[images].astype(wide), self.weight.astype(wide), None, *arguments)
            return [(g.output_shape, some_images, want)]
        parts: list[tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray], np.ndarray]] = []
        if self.operation in ("backward", "backward_data"):
            want = reference.conv2d_backward_data(self.dout[images].astype(wide), self.weight.astype(wide),
                                                  (len(images), *g.input_shape[1:]), *arguments)
            parts.append((g.input_shape, some_images, want))
        if self.operation in ("backward", "backward_weight"):
            # Filters do not know of each other, unless they share a group; one of the first and one of the last will do.
            filters = _ends(g.out_channels) if g.groups == 1 else list(range(g.out_channels))
            want = reference.conv2d_backward_weight(self.dout[:, filters].astype(wide), self.x.astype(wide),
                                                    (len(filters), *g.weight_shape[1:]), *arguments)
            parts.append((g.weight_shape, lambda array: array[filters], want))
        if self.operation == "backward":
            total = self.dout.sum(axis=(0, 2, 3), dtype=wide)
            parts.append(((g.out_channels,), lambda array: array, total))
        return parts



def _ends(count: int) -> list[int]:
    """The first and the last of `count`."""
    return sorted({0, count - 1})
