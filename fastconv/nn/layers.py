"""Layers: each has ``forward(x)``, ``backward(dout)``, its parameters in `params` and their gradients in `grads`.

The contract, which is all that a network, an optimizer or a container of layers may rely on, is :class:`Layer`:

- ``forward(x)`` returns the output. In training mode it keeps what the backward pass needs, and nothing more.
- ``backward(dout)`` takes the gradient of the loss with respect to that output, puts the gradient of each parameter
  into `grads` under the parameter's name (replacing the last one), and returns the gradient with respect to `x`.
- With ``layer.training = False``, ``forward`` keeps nothing, and :class:`Dropout` passes everything through.
- No layer writes into what it is given.

Parameters are looked up at every call: they may be changed in place (as the optimizers of :mod:`fastconv.nn.train` do)
or rebound, ``layer.params["weight"] = other``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import cleared
from ..functional import (
    avg_pool2d,
    avg_pool2d_backward,
    conv2d,
    conv2d_backward,
    matrix_product,
    max_pool2d,
    max_pool2d_backward,
    pooled_conv2d,
    pooled_conv2d_backward,
    relu_backward,
)
from ..geometry import (
    LARGEST_PARAMETER,
    as_int,
    as_pair,
    check_padding_mode,
    conv2d_geometry,
    extent,
    pool2d_geometry,
)

__all__ = ["INITIALIZERS", "Affine", "AvgPool2d", "Conv2d", "Dropout", "Flatten", "Layer", "LocalResponseNorm",
           "MaxPool2d", "Relu", "Sigmoid", "SoftmaxWithLoss", "Tanh", "softmax"]

Array = npt.NDArray[Any]
Seed = int | np.random.Generator | None


class Layer:
    """What every layer has. A layer without parameters need only define `forward` and `backward`.

    Attributes
    ----------
    params : dict of str to ndarray
        The parameters by name; empty for a layer that learns nothing.
    grads : dict of str to ndarray
        The gradient of each parameter, under the same names, from the last `backward`.
    training : bool
        Whether `forward` keeps what `backward` needs. True unless set otherwise.
    """

    training: bool = True

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return the layer's output for the batch `x`."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def backward(self, dout: npt.ArrayLike) -> Array | None:
        """Return the gradient with respect to the last `forward`'s input, given the one with respect to its output."""
        raise NotImplementedError(f"{type(self).__name__}.backward")

    def describe(self) -> str:
        """The constructor's arguments, for `repr`."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()})"

    def _kept(self, value: Any) -> Any:
        """Return what `forward` kept, or raise RuntimeError where it kept nothing."""
        if value is None:
            raise RuntimeError(f"{type(self).__name__}.backward needs a forward with training=True before it")
        return value


#: The initial weights that go by a name: standard deviation, or half width where they are uniform, from the fans (the
#: terms of one output, and the outputs that one input has a share in).
INITIALIZERS: dict[str, tuple[str, Callable[[int, int], float]]] = {
    # keeps the variance of a ReLU network's activations: He et al. 2015, "Delving Deep into Rectifiers"
    "he": ("normal", lambda fan_in, fan_out: math.sqrt(2 / fan_in)),
    # keeps that of a linear layer: LeCun et al. 1998, "Efficient BackProp"
    "lecun": ("normal", lambda fan_in, fan_out: math.sqrt(1 / fan_in)),
    # a compromise with that of the gradients, Keras's default: Glorot and Bengio 2010
    "glorot": ("uniform", lambda fan_in, fan_out: math.sqrt(6 / (fan_in + fan_out))),
}


def _initial_weight(shape: tuple[int, ...], fans: tuple[int, int], init: str | float | None, seed: Seed,
                    dtype: npt.DTypeLike) -> Array:
    """Weights by one of `INITIALIZERS`, or normal ones of the standard deviation `init`."""
    real = np.dtype(dtype)
    if not np.issubdtype(real, np.floating):
        raise TypeError(f"dtype must be a floating-point type, got {real}")
    rng = np.random.default_rng(seed)
    if init is None or isinstance(init, str):
        if (init or "he") not in INITIALIZERS:
            raise ValueError("weight_init_std must be a number or one of "
                             f"{', '.join(map(repr, INITIALIZERS))}, got {init!r}")
        kind, rule = INITIALIZERS[init or "he"]
        scale = rule(*fans)
    elif init >= 0 and math.isfinite(init):
        kind, scale = "normal", init
    else:
        raise ValueError(f"weight_init_std must be a finite number of at least 0, got {init!r}")
    # Drawn in float64 and then rounded, so that one seed means the same network in every dtype.
    drawn = rng.standard_normal(shape) if kind == "normal" else rng.uniform(-1, 1, shape)
    return np.asarray(scale * drawn).astype(real, copy=False)


class Conv2d(Layer):
    """2-D convolution of ``(N, C, H, W)``, by :func:`fastconv.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K.
    kernel_size : int or pair of int
        ``(KH, KW)``
    stride, padding, dilation, groups
        As in :func:`fastconv.conv2d`.
    bias : bool
        Whether there is a bias, zero at first.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        As in :func:`fastconv.conv2d`.
    weight_init_std : float or {"he", "lecun", "glorot"}, optional
        Standard deviation of the initial weights, or where it comes from (see `INITIALIZERS`); by default He's,
        ``sqrt(2 / (C/groups * KH * KW))``.
    seed : int, numpy.random.Generator or None
        Where the initial weights come from.
    dtype : dtype
        Floating-point type of the parameters.

    Attributes
    ----------
    params, grads : dict
        ``"weight"`` (K, C/groups, KH, KW) and, with `bias`, ``"bias"`` (K,).
    input_gradient : bool
        Set it to False in the first layer of a network, and `backward` neither computes nor returns a gradient that
        nobody reads.

    Notes
    -----
    Between `forward` and `backward` the layer keeps a reference to `x`, and no column matrix.
    """

    input_gradient: bool = True

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0,
                 dilation: Any = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", *,
                 weight_init_std: float | str | None = None, seed: Seed = None, dtype: npt.DTypeLike = np.float32) -> None:
        super().__init__()
        channels, groups = as_int("in_channels", in_channels, 1), as_int("groups", groups, 1)
        kernel, gaps = as_pair("kernel_size", kernel_size), as_pair("dilation", dilation)
        if channels % groups:
            raise ValueError(f"groups must divide in_channels: got groups={groups} and in_channels={channels}")
        shape = (as_int("out_channels", out_channels, 1), channels // groups, *kernel)
        # The smallest image that the window fits: whatever else is wrong with the arguments is reported here and now.
        smallest = (channels, extent(kernel[0], gaps[0]), extent(kernel[1], gaps[1]))
        geometry = conv2d_geometry(smallest, shape, stride, padding, gaps, groups)
        check_padding_mode(padding_mode, replace(geometry, in_size=(LARGEST_PARAMETER, LARGEST_PARAMETER)))
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.padding_mode = padding_mode
        taps = kernel[0] * kernel[1]
        self.params["weight"] = _initial_weight(shape, (shape[1] * taps, shape[0] * taps), weight_init_std, seed, dtype)
        if bias:
            self.params["bias"] = np.zeros(shape[0], self.params["weight"].dtype)
        self._x: Array | None = None

    @classmethod
    def from_arrays(cls, weight: npt.ArrayLike, bias: npt.ArrayLike | None = None, stride: Any = 1, padding: Any = 0,
                    dilation: Any = 1, groups: int = 1) -> Conv2d:
        """Return a layer that works with the given `weight` (K, C/groups, KH, KW) and `bias` (K,), without a copy."""
        weight = np.asarray(weight)
        if weight.ndim != 4:
            raise ValueError(f"weight must have 4 axes (K, C/groups, KH, KW), got shape {weight.shape}")
        layer = cls(weight.shape[1] * as_int("groups", groups, 1), weight.shape[0], weight.shape[2:], stride, padding,
                    dilation, groups, bias is not None, weight_init_std=0, dtype=weight.dtype)
        layer.params["weight"] = weight
        if bias is not None:
            bias = np.asarray(bias)
            if bias.shape != weight.shape[:1]:
                raise ValueError(f"bias must have the shape {weight.shape[:1]}, got {bias.shape}")
            layer.params["bias"] = bias
        return layer

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return the convolution of `x` (N, C, H, W) with the weight, plus the bias: (N, K, OH, OW)."""
        return self._forward(x, None)

    def forward_relu(self, x: npt.ArrayLike) -> Array:
        """Return ``max(forward(x), 0)``, in one pass. `backward` takes no notice of it: see :meth:`Relu.rectified`."""
        return self._forward(x, "relu")

    def _forward(self, x: npt.ArrayLike, activation: str | None) -> Array:
        x = np.asarray(x)
        out = conv2d(x, self.params["weight"], self.params.get("bias"), self.stride, self.padding, self.dilation,
                     self.groups, activation=activation, padding_mode=self.padding_mode)
        self._x = x if self.training else None
        return out

    def forward_pooled(self, x: npt.ArrayLike, relu: Relu | None, pool: MaxPool2d) -> Array:
        """`forward`, that of `relu` and that of `pool`, of which only the last leaves anything in memory."""
        x = np.asarray(x)
        pooled = pooled_conv2d(
            x, self.params["weight"], self.params.get("bias"), self.stride, self.padding, self.dilation, self.groups,
            None if relu is None else "relu", self.padding_mode, return_indices=self.training,
            pool=(pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode))
        self._x = x if self.training else None
        return pool.pooled(*pooled, relu)

    def backward(self, dout: npt.ArrayLike) -> Array | None:
        """Put the gradients of weight and bias into `grads`; return that of `x`, or None without `input_gradient`."""
        x = self._kept(self._x)
        need = (("dx",) if self.input_gradient else ()) + ("dw",) + (("db",) if "bias" in self.params else ())
        dx, dw, db = conv2d_backward(dout, x, self.params["weight"], self.stride, self.padding, self.dilation,
                                     self.groups, need=need, padding_mode=self.padding_mode)
        self.grads.update({name: gradient for name, gradient in (("weight", dw), ("bias", db)) if gradient is not None})
        return dx

    def backward_pooled(self, dout: npt.ArrayLike, pool: MaxPool2d) -> None:
        """`backward` of a layer without `input_gradient`, given the gradient of what `pool` made of its output."""
        dw, db = pooled_conv2d_backward(dout, *pool.chosen(), self._kept(self._x), self.params["weight"].shape, self.stride,
                                        self.padding, self.dilation, self.groups, padding_mode=self.padding_mode)
        self.grads.update({"weight": dw, "bias": db} if "bias" in self.params else {"weight": dw})

    def describe(self) -> str:
        out_channels, in_channels, *kernel = self.params["weight"].shape
        return (f"{in_channels * self.groups}, {out_channels}, {tuple(kernel)}, stride={self.stride}, "
                f"padding={self.padding!r}, dilation={self.dilation}, groups={self.groups}, "
                f"bias={'bias' in self.params}"
                + (f", padding_mode={self.padding_mode!r}" if self.padding_mode != "zeros" else ""))


def _check_pool(kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> None:
    """Report what is wrong with a pooling's arguments, on the smallest image that the window fits."""
    kernel, gaps = as_pair("kernel_size", kernel_size), as_pair("dilation", dilation)
    smallest = (1, extent(kernel[0], gaps[0]), extent(kernel[1], gaps[1]))
    pool2d_geometry(smallest, kernel, stride, padding, gaps, ceil_mode)


class MaxPool2d(Layer):
    """Maximum of each window, by :func:`fastconv.max_pool2d`, whose parameters it has.

    Between `forward` and `backward` the layer keeps the indices of the maxima, and no input; behind a ReLU of a network
    its output, too.
    """

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                 ceil_mode: bool = False) -> None:
        super().__init__()
        _check_pool(kernel_size, stride, padding, dilation, ceil_mode)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.dilation, self.ceil_mode = dilation, ceil_mode
        self._indices: Array | None = None
        self._rectified: Array | None = None
        self._input_shape: tuple[int, ...] = ()

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return the maxima of `x` (N, C, H, W): (N, C, OH, OW)."""
        return self._forward(x, None)

    def forward_rectified(self, y: npt.ArrayLike, relu: Relu) -> Array:
        """`forward` of the ReLU's output `y`; `backward` then does the ReLU's, too.

        The gradient reaches `y` where the maxima are, and there the ReLU asks for the sign of what the maxima are: of
        this layer's output, which has a fraction of the cells.
        """
        return self._forward(y, relu)

    def _forward(self, x: npt.ArrayLike, relu: Relu | None) -> Array:
        x = np.asarray(x)
        found: Any = max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode,
                                return_indices=self.training)
        out, indices = found if self.training else (found, None)
        return self.pooled(out, indices, x.shape, relu)

    def pooled(self, out: Array, indices: Array | None, shape: tuple[int, ...], relu: Relu | None) -> Array:
        """The rest of a `forward` whose pooling is done: the layer before made `out` in one go, from what has `shape`."""
        self._indices, self._rectified = indices, None
        if self.training:
            self._input_shape = shape
            if relu is not None:
                self._rectified = out
                relu.leave_gradient()
        return out

    def chosen(self) -> tuple[Array, Array | None]:
        """The indices of the maxima; and the maxima, where `backward` does a ReLU's, too."""
        return self._kept(self._indices), self._rectified

    def backward(self, dout: npt.ArrayLike) -> Array:
        """Return `dout` put at the place of each maximum."""
        if self._rectified is not None:
            dout = relu_backward(dout, self._rectified)
        return max_pool2d_backward(dout, self._kept(self._indices), self._input_shape)

    def describe(self) -> str:
        return (f"{self.kernel_size}, stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, "
                f"ceil_mode={self.ceil_mode}")


class AvgPool2d(Layer):
    """Average of each window, by :func:`fastconv.avg_pool2d`, whose parameters it has.

    Between `forward` and `backward` the layer keeps nothing but the input's shape.
    """

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
                 count_include_pad: bool = True, divisor_override: int | None = None, *, dilation: Any = 1) -> None:
        super().__init__()
        _check_pool(kernel_size, stride, padding, dilation, ceil_mode)
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.ceil_mode, self.count_include_pad, self.divisor_override = ceil_mode, count_include_pad, divisor_override
        self._input_shape: tuple[int, ...] | None = None

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return the averages of `x` (N, C, H, W): (N, C, OH, OW)."""
        x = np.asarray(x)
        out = avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad,
                         self.divisor_override, dilation=self.dilation)
        self._input_shape = x.shape if self.training else None
        return out

    def backward(self, dout: npt.ArrayLike) -> Array:
        """Return `dout` spread over the cells of each window."""
        return avg_pool2d_backward(dout, self._kept(self._input_shape), self.kernel_size, self.stride, self.padding,
                                   self.ceil_mode, self.count_include_pad, self.divisor_override,
                                   dilation=self.dilation)

    def describe(self) -> str:
        return (f"{self.kernel_size}, stride={self.stride}, padding={self.padding!r}, ceil_mode={self.ceil_mode}, "
                f"count_include_pad={self.count_include_pad}, divisor_override={self.divisor_override}, "
                f"dilation={self.dilation}")


class Relu(Layer):
    """``max(x, 0)``, which keeps NaN. The gradient passes where `x` is not at most 0."""

    def __init__(self) -> None:
        super().__init__()
        self._y: Array | None = None
        self._left = False

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return ``max(x, 0)``."""
        return self.rectified(np.maximum(np.asarray(x), 0))

    def rectified(self, y: Array) -> Array:
        """The rest of a `forward` whose ``max(x, 0)`` is done: the layer before made `y` in one go."""
        self._y, self._left = y if self.training else None, False
        return y

    def leave_gradient(self) -> None:
        """The layer behind does this one's part of the backward pass: it need not keep its output."""
        self._y, self._left = None, True

    def backward(self, dout: npt.ArrayLike) -> Array:
        """Return `dout`, zero where `x` was at most 0."""
        return np.asarray(dout) if self._left else relu_backward(dout, self._kept(self._y))


class Sigmoid(Layer):
    """``1 / (1 + exp(-x))``, without overflow. Between `forward` and `backward` the layer keeps its output."""

    def __init__(self) -> None:
        super().__init__()
        self._out: Array | None = None

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return ``1 / (1 + exp(-x))``."""
        x = np.asarray(x)
        out = np.asarray((1 + np.tanh(x * 0.5)) * 0.5)  # exp(-x) overflows where tanh just ends at -1
        self._out = out if self.training else None
        return out

    def backward(self, dout: npt.ArrayLike) -> Array:
        """Return ``dout * y * (1 - y)`` with the output y."""
        y = self._kept(self._out)
        return np.asarray(dout * y * (1 - y))


class Tanh(Layer):
    """The hyperbolic tangent. Between `forward` and `backward` the layer keeps its output."""

    def __init__(self) -> None:
        super().__init__()
        self._out: Array | None = None

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return ``tanh(x)``."""
        out = np.asarray(np.tanh(x))
        self._out = out if self.training else None
        return out

    def backward(self, dout: npt.ArrayLike) -> Array:
        """Return ``dout * (1 - y**2)`` with the output y."""
        y = self._kept(self._out)
        return np.asarray(dout * (1 - y * y))


class LocalResponseNorm(Layer):
    """Normalisation across channels (Krizhevsky et al. 2012), with PyTorch's parameters and rules.

    ``y = x / (k + alpha/size * sum of x**2) ** beta``, where the sum goes over `size` channels around each, as many of
    them as there are: ``size//2`` before it and ``(size-1)//2`` behind it. In the paper `alpha` is not divided.

    Parameters
    ----------
    size : int
        Channels in a sum.
    alpha, beta, k : float
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = as_int("size", size, 1), float(alpha), float(beta), float(k)
        self._x: Array | None = None
        self._scale: Array | None = None

    def _mean_over_channels(self, x: Array, backward: bool = False) -> Array:
        """The sums over `size` channels, divided by `size`; backward, over the channels that have one in theirs."""
        # A pooling over columns: the channels as rows, the pixels of an image as columns.
        rows = x.reshape(x.shape[0], 1, x.shape[1], math.prod(x.shape[2:]))
        around = (self.size // 2, (self.size - 1) // 2)
        pads = (around[::-1] if backward else around, (0, 0))
        return avg_pool2d(rows, (self.size, 1), 1, pads, divisor_override=self.size).reshape(x.shape)

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return `x` (N, C, H, W), normalised."""
        x = np.asarray(x)
        if x.ndim != 4:
            raise ValueError(f"x must have the shape (N, C, H, W), got {x.shape}")
        scale = self.k + self.alpha * self._mean_over_channels(x * x)
        self._x, self._scale = (x, scale) if self.training else (None, None)
        return np.asarray(x * scale ** -self.beta)

    def backward(self, dout: npt.ArrayLike) -> Array:
        """Return ``dout * s**-beta - 2*alpha*beta/size * x * (sum of dout * x * s**(-beta-1))`` with the scale s."""
        x, scale, dout = self._kept(self._x), self._kept(self._scale), np.asarray(dout)
        direct = dout * scale ** -self.beta
        shared = self._mean_over_channels(direct * x / scale, backward=True)
        return np.asarray(direct - 2 * self.alpha * self.beta * x * shared)

    def describe(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class Affine(Layer):
    """``x @ weight + bias`` of a batch of vectors, (N, in_features) -> (N, out_features).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
        Whether there is a bias, zero at first.
    weight_init_std : float or {"he", "lecun", "glorot"}, optional
        As in :class:`Conv2d`; He's is ``sqrt(2 / in_features)``.
    seed : int, numpy.random.Generator or None
        Where the initial weights come from.
    dtype : dtype
        Floating-point type of the parameters.

    Attributes
    ----------
    params, grads : dict
        ``"weight"`` (in_features, out_features) and, with `bias`, ``"bias"`` (out_features,).
    input_gradient : bool
        As in :class:`Conv2d`.
    """

    input_gradient: bool = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *,
                 weight_init_std: float | str | None = None, seed: Seed = None, dtype: npt.DTypeLike = np.float32) -> None:
        super().__init__()
        shape = as_int("in_features", in_features, 1), as_int("out_features", out_features, 1)
        self.params["weight"] = _initial_weight(shape, shape, weight_init_std, seed, dtype)
        if bias:
            self.params["bias"] = np.zeros(shape[1], self.params["weight"].dtype)
        self._x: Array | None = None

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return ``x @ weight + bias``."""
        x, weight = np.asarray(x), self.params["weight"]
        if x.ndim != 2 or x.shape[1] != weight.shape[0]:
            raise ValueError(f"x must have the shape (N, {weight.shape[0]}), got {x.shape}")
        out = matrix_product(x, weight)
        if "bias" in self.params:
            out = out + self.params["bias"]
        self._x = x if self.training else None
        return out

    def backward(self, dout: npt.ArrayLike) -> Array | None:
        """Put the gradients of weight and bias into `grads`; return that of `x`, or None without `input_gradient`."""
        x, dout = self._kept(self._x), np.asarray(dout)
        dx = matrix_product(dout, self.params["weight"].T) if self.input_gradient else None
        self.grads["weight"] = matrix_product(x.T, dout)
        if "bias" in self.params:
            self.grads["bias"] = dout.sum(axis=0)
        return dx

    def describe(self) -> str:
        n_in, n_out = self.params["weight"].shape
        return f"{n_in}, {n_out}, bias={'bias' in self.params}"


class Flatten(Layer):
    """(N, C, H, W), or any batch, as (N, C*H*W)."""

    def __init__(self) -> None:
        super().__init__()
        self._input_shape: tuple[int, ...] | None = None

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return `x` with all axes but the first as one."""
        x = np.asarray(x)
        if x.ndim < 1:
            raise ValueError("x must have at least one axis, got a scalar")
        self._input_shape = x.shape if self.training else None
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # not -1, which has no answer for a batch of 0

    def backward(self, dout: npt.ArrayLike) -> Array:
        """Return `dout` in the input's shape."""
        shape = self._kept(self._input_shape)
        return np.asarray(dout).reshape(shape)


class Dropout(Layer):
    """Set each cell to zero with probability `p` while training, and scale the others by ``1/(1-p)``.

    The scaling keeps the expected value, so that nothing is left to do when the network is used ("inverted" dropout).

    Parameters
    ----------
    p : float
        Probability of a cell to be dropped, at least 0 and below 1.
    seed : int, numpy.random.Generator or None
        Where the choices come from.
    """

    def __init__(self, p: float = 0.5, *, seed: Seed = None) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be at least 0 and below 1, got {p!r}")
        self.p = float(p)
        self._rng = np.random.default_rng(seed)
        self._dropped: Array | None = None

    def forward(self, x: npt.ArrayLike) -> Array:
        """Return `x` with some cells dropped, or `x` itself outside of training."""
        x = np.asarray(x)
        if not self.training:
            self._dropped = None
            return x
        self._dropped = self._rng.random(x.shape, np.float32) < self.p
        return self._drop(x, self._dropped)

    def backward(self, dout: npt.ArrayLike) -> Array:
        """Return `dout`, dropped and scaled as the input was."""
        return self._drop(np.asarray(dout), self._kept(self._dropped))

    def _drop(self, values: Array, dropped: Array) -> Array:
        # A Python float scales without changing the dtype.
        return cleared(np.asarray(values * (1 / (1 - self.p))), dropped)

    def describe(self) -> str:
        return f"{self.p}"


def softmax(x: npt.ArrayLike) -> Array:
    """Return ``exp(x) / sum(exp(x))`` along the last axis, without overflow."""
    x = np.asarray(x)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


class SoftmaxWithLoss:
    """Softmax and the mean cross-entropy over a batch: the end of a classifier.

    Attributes
    ----------
    y : ndarray or None
        The probabilities (N, classes) of the last `forward`.
    """

    def __init__(self) -> None:
        self.y: Array | None = None
        self._t: Array | None = None

    def forward(self, x: npt.ArrayLike, t: npt.ArrayLike) -> float:
        """Return the mean over the batch of ``-log(softmax(x)[label])``.

        Parameters
        ----------
        x : array_like
            Scores (N, classes).
        t : array_like
            The labels: integers (N,), or the wanted probabilities (N, classes), for example one-hot.

        Raises
        ------
        ValueError, TypeError
            Where the shapes do not fit, a label is outside of ``0..classes-1``, or labels are not integers.
        """
        x, t = np.asarray(x), np.asarray(t)
        if x.ndim != 2 or x.size == 0:
            raise ValueError(f"x must be scores of the shape (N, classes), neither of them 0, got {x.shape}")
        if t.shape != x.shape:
            t = _checked_labels(t, x)
        shifted = x - x.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        log_y = shifted - log_sum
        self.y, self._t = np.exp(log_y), t
        if t.ndim == 1:
            return float(-log_y[np.arange(len(t)), t].mean(dtype=np.float64))
        # A wanted probability of 0 counts nothing, even where log(y) is -inf.
        terms = np.where(t == 0, 0, t * log_y)
        return float(-terms.sum(dtype=np.float64) / len(x))

    def backward(self, dout: float = 1.0) -> Array:
        """Return the gradient of the loss, times `dout`, with respect to the scores."""
        if self.y is None or self._t is None:
            raise RuntimeError("SoftmaxWithLoss.backward needs a forward before it")
        n = len(self.y)
        if self._t.ndim == 1:
            dx = self.y.copy()
            dx[np.arange(n), self._t] -= 1
        else:
            # Wanted probabilities need not sum to 1; where they do, this is y - t.
            dx = (self.y * self._t.sum(axis=1, keepdims=True) - self._t).astype(self.y.dtype, copy=False)
        dx *= dout / n
        return dx


def _checked_labels(t: Array, x: Array) -> Array:
    n, classes = x.shape
    if t.shape != (n,):
        raise ValueError(f"t must be labels of the shape ({n},) or probabilities of the shape {x.shape}, "
                         f"got {t.shape}")
    if not np.issubdtype(t.dtype, np.integer):
        raise TypeError(f"t must be integers where it holds labels, got {t.dtype}")
    if t.min() < 0 or t.max() >= classes:
        raise ValueError(f"t must hold labels of 0 to {classes - 1}, got {t.min()} to {t.max()}")
    return t
