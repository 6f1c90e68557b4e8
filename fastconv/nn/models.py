"""Networks: the simple convolutional network of *Deep Learning from Scratch*, chapter 7."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..geometry import as_int, as_shape, conv_output_size
from .layers import Affine, Array, Conv2d, Flatten, Layer, MaxPool2d, Relu, Seed, SoftmaxWithLoss

__all__ = ["SimpleConvNet"]


class SimpleConvNet:
    """conv - relu - max pool 2x2 - affine - relu - affine - softmax.

    Parameters
    ----------
    input_dim : tuple of int
        (C, H, W) of one image.
    conv_param : dict
        ``filter_num``, ``filter_size``, ``pad`` and ``stride``. A missing one has the default's value.
    hidden_size : int
        Units of the first affine layer.
    output_size : int
        Classes.
    weight_init_std : float
        Standard deviation of the initial weights of all layers.
    seed : int, numpy.random.Generator or None
        Where the initial weights come from.
    dtype : dtype
        Floating-point type of the parameters.

    Attributes
    ----------
    params : dict of str to ndarray
        ``W1`` (filter_num, C, filter_size, filter_size) and ``b1`` of the convolution, ``W2``, ``b2`` and ``W3``,
        ``b3`` of the two affine layers. Change them in place, or put other arrays there.
    layers : dict of str to Layer
        The layers in their order; `last_layer` is the softmax with its loss.

    Examples
    --------
    >>> network = SimpleConvNet(input_dim=(1, 28, 28), seed=0)
    >>> network.predict(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """

    #: The layers that a variant of this network may have in place of these, with the same constructors.
    conv_layer: type[Conv2d] = Conv2d
    pool_layer: type[MaxPool2d] = MaxPool2d

    #: Which parameter of which layer each name of `params` is.
    parameter_places: ClassVar[dict[str, tuple[str, str]]] = {
        "W1": ("Conv1", "weight"), "b1": ("Conv1", "bias"),
        "W2": ("Affine1", "weight"), "b2": ("Affine1", "bias"),
        "W3": ("Affine2", "weight"), "b3": ("Affine2", "bias"),
    }

    def __init__(self, input_dim: tuple[int, int, int] = (1, 28, 28), conv_param: Mapping[str, int] | None = None,
                 hidden_size: int = 100, output_size: int = 10, weight_init_std: float = 0.01, *, seed: Seed = None,
                 dtype: npt.DTypeLike = np.float32) -> None:
        channels, *image_size = as_shape("input_dim", input_dim, (3,))
        conv = {"filter_num": 30, "filter_size": 5, "pad": 0, "stride": 1}
        unknown = [key for key in conv_param or {} if key not in conv]
        if unknown:
            raise ValueError(f"conv_param has {', '.join(conv)}, got {unknown[0]!r}")
        conv.update(conv_param or {})
        hidden_size, output_size = as_int("hidden_size", hidden_size, 1), as_int("output_size", output_size, 1)

        filters = as_int("filter_num", conv["filter_num"], 1)
        conv_size = conv_output_size(image_size, conv["filter_size"], conv["stride"], conv["pad"])
        pooled_h, pooled_w = conv_output_size(conv_size, 2, 2)  # type: ignore[misc]  # a pair, as image_size is one
        rng = np.random.default_rng(seed)
        made: dict[str, Any] = {"weight_init_std": weight_init_std, "seed": rng, "dtype": dtype}
        first = self.conv_layer(channels, filters, conv["filter_size"], conv["stride"], conv["pad"], **made)
        first.input_gradient = False  # nobody reads the gradient of the image
        self.input_dim = (channels, *image_size)
        self.layers: dict[str, Layer] = {
            "Conv1": first,
            "Relu1": Relu(),
            "Pool1": self.pool_layer(2, stride=2),
            "Flatten": Flatten(),
            "Affine1": Affine(math.prod((filters, pooled_h, pooled_w)), hidden_size, **made),
            "Relu2": Relu(),
            "Affine2": Affine(hidden_size, output_size, **made),
        }
        self.last_layer = SoftmaxWithLoss()
        self.params: dict[str, Array] = {name: self.layers[layer].params[parameter]
                                         for name, (layer, parameter) in self.parameter_places.items()}

    def _scores(self, x: npt.ArrayLike, training: bool) -> Array:
        out = np.asarray(x)
        if out.ndim != 4 or out.shape[1:] != self.input_dim:
            raise ValueError(f"x must have the shape (N, {', '.join(map(str, self.input_dim))}), got {out.shape}")
        # `params` is the one truth: an array that was put there since the last call takes effect here.
        for name, (layer, parameter) in self.parameter_places.items():
            self.layers[layer].params[parameter] = self.params[name]
        for part in self.layers.values():
            part.training = training
            out = part.forward(out)
        return out

    def predict(self, x: npt.ArrayLike) -> Array:
        """Return the scores (N, classes) of the images `x` (N, C, H, W), before the softmax."""
        return self._scores(x, training=False)

    def loss(self, x: npt.ArrayLike, t: npt.ArrayLike) -> float:
        """Return the mean cross-entropy of the images `x` with labels `t`, integers (N,) or one-hot (N, classes)."""
        return self.last_layer.forward(self.predict(x), t)

    def accuracy(self, x: npt.ArrayLike, t: npt.ArrayLike, batch_size: int = 100) -> float:
        """Return the share of images whose highest score is at the label. All images count, `batch_size` at a time."""
        return self.evaluate(x, t, batch_size)[1]

    def evaluate(self, x: npt.ArrayLike, t: npt.ArrayLike, batch_size: int = 100) -> tuple[float, float]:
        """Return the loss and the accuracy over all of `x` and `t`, with memory for `batch_size` images."""
        x, t = np.asarray(x), np.asarray(t)
        batch_size = as_int("batch_size", batch_size, 1)
        if len(x) != len(t) or not len(x):
            raise ValueError(f"x and t must have the same length of at least 1, got {len(x)} and {len(t)}")
        loss, hits = 0.0, 0
        for start in range(0, len(x), batch_size):
            part, wanted = x[start:start + batch_size], t[start:start + batch_size]
            scores = self.predict(part)
            loss += self.last_layer.forward(scores, wanted) * len(part)
            labels = wanted if wanted.ndim == 1 else wanted.argmax(axis=1)
            hits += int(np.count_nonzero(scores.argmax(axis=1) == labels))
        return loss / len(x), hits / len(x)

    def gradient(self, x: npt.ArrayLike, t: npt.ArrayLike) -> dict[str, Array]:
        """Return the gradient of the loss with respect to each of `params`, under the same names."""
        return self.loss_and_gradient(x, t)[1]

    def loss_and_gradient(self, x: npt.ArrayLike, t: npt.ArrayLike) -> tuple[float, dict[str, Array]]:
        """Return `loss` and `gradient` of one forward and one backward pass."""
        loss = self.last_layer.forward(self._scores(x, training=True), t)
        dout: Any = self.last_layer.backward()
        for part in reversed(self.layers.values()):
            dout = part.backward(dout)
        return loss, {name: self.layers[layer].grads[parameter]
                      for name, (layer, parameter) in self.parameter_places.items()}

    def save_params(self, file_name: str | os.PathLike[str] = "params.npz") -> None:
        """Write `params` to an npz file of exactly this name."""
        with open(file_name, "wb") as file:  # np.savez adds ".npz" to a name, not to a file
            np.savez(file, **self.params)  # type: ignore[arg-type]  # NumPy's stub reads ** as allow_pickle too

    def load_params(self, file_name: str | os.PathLike[str] = "params.npz") -> None:
        """Read `params` from a file that `save_params` wrote, into the arrays that are there.

        Raises
        ------
        OSError
            Where the file cannot be read.
        ValueError
            Where it is no npz file, or not of a network of these sizes. Then nothing was changed.
        """
        name = os.fspath(file_name)
        try:
            # Never unpickled: a file of weights is data, and may come from anywhere.
            with open(name, "rb") as stream:  # np.load leaves a file that it opened itself open where it fails
                file = np.load(stream, allow_pickle=False)
                if not isinstance(file, np.lib.npyio.NpzFile):
                    raise ValueError("a single array")
                with file:
                    loaded = {key: file[key] for key in file.files}
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{name}: not an npz file of parameters ({error})") from error
        for key, value in self.params.items():
            if key not in loaded:
                raise ValueError(f"{name}: has no parameter {key!r}, only {', '.join(sorted(loaded)) or 'nothing'}")
            if loaded[key].shape != value.shape or not np.can_cast(loaded[key].dtype, value.dtype, "same_kind"):
                raise ValueError(f"{name}: parameter {key!r} must be {value.dtype} of the shape {value.shape}, got "
                                 f"{loaded[key].dtype} of the shape {loaded[key].shape}")
        for key, value in self.params.items():
            value[...] = loaded[key]
