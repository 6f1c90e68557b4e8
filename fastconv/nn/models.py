"""Networks: any sequence of layers, those of *Deep Learning from Scratch*, LeNet-5, AlexNet, and Keras's small ConvNet."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ..geometry import as_int, as_shape, conv_output_size
from .layers import (
    Affine,
    Array,
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    LocalResponseNorm,
    MaxPool2d,
    Relu,
    Seed,
    Sigmoid,
    SoftmaxWithLoss,
    Tanh,
    softmax,
)

if TYPE_CHECKING:
    from .train import History, Optimizer, Progress

__all__ = ["AlexNet", "DeepConvNet", "KerasConvNet", "LeNet5", "Network", "Sequential", "SimpleConvNet"]

PathLike = str | os.PathLike[str]
LayerKind = TypeVar("LayerKind", bound=Layer)


class Network:
    """Layers one after another, with a softmax and its cross-entropy at the end: what all networks here are.

    A subclass calls :meth:`_build` at the end of its constructor.

    Attributes
    ----------
    input_dim : tuple of int
        (C, H, W) of one image.
    layers : dict of str to Layer
        The layers in their order; `last_layer` is the softmax with its loss.
    params : dict of str to ndarray
        The parameters. Change them in place, or put other arrays there.
    parameter_places : dict of str to pair of str
        Which parameter of which layer each name of `params` is.
    """

    #: The layers that a variant of a network may have in place of these, with the same constructors.
    conv_layer: type[Conv2d] = Conv2d
    pool_layer: type[MaxPool2d] = MaxPool2d
    affine_layer: type[Affine] = Affine
    relu_layer: type[Relu] = Relu

    input_dim: tuple[int, ...]
    layers: dict[str, Layer]
    params: dict[str, Array]
    parameter_places: Mapping[str, tuple[str, str]]

    #: The first convolution and the max pooling behind it, if the last forward pass found that they go back together.
    _pooled: tuple[Conv2d, MaxPool2d] | None = None

    def _build(self, input_dim: tuple[int, ...], layers: dict[str, Layer],
               places: Mapping[str, tuple[str, str]] | None = None) -> None:
        """Take the layers, see whether they fit together, and make `params` of theirs."""
        self.input_dim, self.layers, self.last_layer = input_dim, layers, SoftmaxWithLoss()
        self.parameter_places = places if places is not None else {
            f"{layer}.{name}": (layer, name) for layer, part in layers.items() for name in part.params}
        self.params = {name: layers[layer].params[parameter] for name, (layer, parameter) in
                       self.parameter_places.items()}
        for part in layers.values():
            if part.params:
                if isinstance(part, (Conv2d, Affine)):
                    part.input_gradient = False  # in the first layer that learns nobody reads it
                break
        self.output_shapes()

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of what each layer makes of one image."""
        dtype = next(iter(self.params.values())).dtype if self.params else np.dtype(np.float32)
        out, shapes = np.empty((0, *self.input_dim), dtype), {}
        for name, part in self.layers.items():
            part.training = False
            try:
                out = part.forward(out)
            except (ValueError, TypeError) as error:
                raise ValueError(f"layer {name}, {part!r}, cannot take an input of shape {out.shape[1:]}: {error}"
                                 ) from error
            shapes[name] = out.shape[1:]
        return shapes

    def summary(self, print_fn: Callable[[str], Any] = print) -> None:
        """Print a table of the layers with the shapes of their outputs and the numbers of their parameters."""
        counts = dict.fromkeys(self.layers, 0)
        for name, (layer, _) in self.parameter_places.items():
            counts[layer] += self.params[name].size
        rows = [("layer", "type", "output", "parameters")] + [
            (name, type(self.layers[name]).__name__, "x".join(map(str, shape)), f"{counts[name]:,}")
            for name, shape in self.output_shapes().items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        for number, row in enumerate(rows):
            cells = [f"{text:{width}}" for text, width in zip(row[:-1], widths, strict=False)]
            print_fn("  ".join([*cells, f"{row[-1]:>{widths[-1]}}"]))
            if number == 0:
                print_fn(rule)
        print_fn(rule)
        print_fn(f"{sum(p.size for p in self.params.values()):,} parameters")

    def _checked_input(self, x: npt.ArrayLike) -> Array:
        images = np.asarray(x)
        if images.ndim != len(self.input_dim) + 1 or images.shape[1:] != self.input_dim:
            raise ValueError(f"x must have the shape (N, {', '.join(map(str, self.input_dim))}), got {images.shape}")
        return images

    def _parts(self, training: bool) -> Iterator[tuple[str, Layer]]:
        """The layers, with the parameters that `params` has now."""
        # `params` is the one truth: an array that was put there since the last call takes effect here.
        for name, (layer, parameter) in self.parameter_places.items():
            self.layers[layer].params[parameter] = self.params[name]
        for name, part in self.layers.items():
            part.training = training
            yield name, part

    def _scores(self, x: npt.ArrayLike, training: bool) -> Array:
        out = self._checked_input(x)
        parts = [part for _, part in self._parts(training)]
        self._pooled = None
        while parts:
            part = parts.pop(0)
            if isinstance(part, Conv2d) and type(part).forward is Conv2d.forward:
                relu = _pop(parts, Relu, "forward")
                pool = _pop(parts, MaxPool2d, "forward", "backward") if relu is None or _plain(relu, Relu, "backward") else None
                if pool is not None:
                    out = part.forward_pooled(out, relu, pool)  # what is pooled need not go to memory
                    if not part.input_gradient and _plain(part, Conv2d, "backward"):
                        self._pooled = part, pool  # nor its gradient, zero as most of it is: nobody else has a use for it
                elif relu is not None:
                    out = relu.rectified(part.forward_relu(out))  # while the sums are in registers: a pass over memory less
                else:
                    out = part.forward(out)
            else:
                out = part.forward(out)
                if _plain(part, Relu, "backward") and (pool := _pop(parts, MaxPool2d, "forward", "backward")) is not None:
                    out = pool.forward_rectified(out, cast(Relu, part))  # and another one less in the backward pass
        return out

    def predict(self, x: npt.ArrayLike, batch_size: int | None = None) -> Array:
        """Return the scores (N, classes) of the images `x` (N, C, H, W), before the softmax.

        With `batch_size`, so many images at a time, which keeps the memory small.
        """
        x = np.asarray(x)
        if batch_size is None or len(x) <= as_int("batch_size", batch_size, 1):
            return self._scores(x, training=False)
        return np.concatenate([self._scores(x[start:start + batch_size], training=False)
                               for start in range(0, len(x), batch_size)])

    def activations(self, x: npt.ArrayLike) -> dict[str, Array]:
        """Return what each layer makes of the images `x` (N, C, H, W), by the layers' names."""
        out, made = self._checked_input(x), {}
        for name, part in self._parts(training=False):
            made[name] = out = part.forward(out)
        return made

    def probabilities(self, x: npt.ArrayLike, batch_size: int | None = None) -> Array:
        """Return the softmax of what :meth:`predict` returns: what Keras's `predict` gives."""
        return softmax(self.predict(x, batch_size))

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
            if self._pooled is not None and part is self._pooled[1]:
                self._pooled[0].backward_pooled(dout, self._pooled[1])
                break
            dout = part.backward(dout)
            if dout is None:  # the first layer that learns: what comes before it has no use for a gradient
                break
        return loss, {name: self.layers[layer].grads[parameter]
                      for name, (layer, parameter) in self.parameter_places.items()}

    def fit(self, x: npt.ArrayLike, t: npt.ArrayLike, *, epochs: int = 1, batch_size: int = 100,
            validation_data: tuple[npt.ArrayLike, npt.ArrayLike] | None = None, optimizer: Optimizer | None = None,
            seed: Seed = None, progress: Progress | None = None) -> History:
        """Train on mini-batches, by a :class:`fastconv.nn.Trainer`.

        Parameters
        ----------
        x, t : array_like
            Images (N, C, H, W), and labels as in :meth:`loss`.
        epochs, batch_size : int
        validation_data : pair of array_like, optional
            Images and labels to test on after each epoch.
        optimizer : Optimizer, optional
            By default ``Adam()``. Pass the same one to go on with what it has gathered.
        seed : int, numpy.random.Generator or None
            Of the order of the images.
        progress : Progress, optional
            For example :func:`fastconv.nn.terminal_progress`; by default nothing is shown.

        Returns
        -------
        History
            Loss and accuracy of each epoch, on (up to 1,000 of) the training images and on the validation data.
        """
        from .train import Trainer

        trainer = Trainer(self, optimizer, batch_size=batch_size, seed=seed)
        x_test, t_test = (None, None) if validation_data is None else validation_data
        return trainer.fit(x, t, x_test, t_test, epochs=epochs, progress=progress)

    def save(self, file_name: PathLike) -> None:
        """Write `params` to an npz file of exactly this name."""
        with open(file_name, "wb") as file:  # np.savez adds ".npz" to a name, not to a file
            np.savez(file, **self.params)  # type: ignore[arg-type]  # NumPy's stub reads ** as allow_pickle too

    def load(self, file_name: PathLike) -> None:
        """Read `params` from a file that `save` wrote, into the arrays that are there.

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
        unknown = [key for key in loaded if key not in self.params]
        if unknown:
            raise ValueError(f"{name}: has a parameter {unknown[0]!r}, which this network has not")
        for key, value in self.params.items():
            value[...] = loaded[key]

    def save_params(self, file_name: PathLike = "params.npz") -> None:
        """:meth:`save`, under the book's name."""
        self.save(file_name)

    def load_params(self, file_name: PathLike = "params.npz") -> None:
        """:meth:`load`, under the book's name."""
        self.load(file_name)


def _plain(part: Layer, kind: type[Layer], *methods: str) -> bool:
    """Whether `part` is of the `kind`, and has no `methods` of its own: another layer may do their work."""
    return isinstance(part, kind) and all(getattr(type(part), name) is getattr(kind, name) for name in methods)


def _pop(parts: list[Layer], kind: type[LayerKind], *methods: str) -> LayerKind | None:
    """Take the next of `parts` if it is a plain one of the `kind`."""
    return cast(LayerKind, parts.pop(0)) if parts and _plain(parts[0], kind, *methods) else None


class Sequential(Network):
    """A network of any layers.

    Parameters
    ----------
    layers : iterable of Layer
        In their order. They are named by their type and a number, ``Conv2d1``, and parameters by layer and name,
        ``Conv2d1.weight``.
    input_dim : tuple of int
        Shape of one image, (C, H, W).

    Raises
    ------
    ValueError
        Where a layer cannot take what the one before it makes.

    Examples
    --------
    >>> network = Sequential([Conv2d(1, 4, 3), Relu(), Flatten(), Affine(4 * 6 * 6, 10)], input_dim=(1, 8, 8))
    >>> list(network.params)
    ['Conv2d1.weight', 'Conv2d1.bias', 'Affine1.weight', 'Affine1.bias']
    """

    def __init__(self, layers: Iterable[Layer], input_dim: Iterable[int]) -> None:
        named: dict[str, Layer] = {}
        counts: dict[str, int] = {}
        for part in layers:
            if not isinstance(part, Layer):
                raise TypeError(f"layers must be layers, got {part!r}")
            if any(part is other for other in named.values()):
                raise ValueError(f"layers must be different objects, got the same {part!r} twice")
            kind = type(part).__name__
            counts[kind] = counts.get(kind, 0) + 1
            named[f"{kind}{counts[kind]}"] = part
        if not named:
            raise ValueError("layers must have at least one layer")
        self._build(as_shape("input_dim", tuple(input_dim), (1, 2, 3)), named)


class SimpleConvNet(Network):
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
    weight_init_std : float, str or None
        Of all layers, as in :class:`fastconv.nn.Conv2d`.
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

    #: Which parameter of which layer each name of `params` is.
    places: ClassVar[dict[str, tuple[str, str]]] = {
        "W1": ("Conv1", "weight"), "b1": ("Conv1", "bias"),
        "W2": ("Affine1", "weight"), "b2": ("Affine1", "bias"),
        "W3": ("Affine2", "weight"), "b3": ("Affine2", "bias"),
    }

    def __init__(self, input_dim: tuple[int, int, int] = (1, 28, 28), conv_param: Mapping[str, int] | None = None,
                 hidden_size: int = 100, output_size: int = 10, weight_init_std: float | str | None = 0.01, *,
                 seed: Seed = None, dtype: npt.DTypeLike = np.float32) -> None:
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
        self._build((channels, *image_size), {
            "Conv1": self.conv_layer(channels, filters, conv["filter_size"], conv["stride"], conv["pad"], **made),
            "Relu1": self.relu_layer(),
            "Pool1": self.pool_layer(2, stride=2),
            "Flatten": Flatten(),
            "Affine1": self.affine_layer(math.prod((filters, pooled_h, pooled_w)), hidden_size, **made),
            "Relu2": self.relu_layer(),
            "Affine2": self.affine_layer(hidden_size, output_size, **made),
        }, self.places)


class DeepConvNet(Network):
    """The deep network of *Deep Learning from Scratch*, chapter 8.

    (conv - relu - conv - relu - pool 2x2) three times - affine - relu - dropout - affine - dropout - softmax.

    Parameters
    ----------
    input_dim : tuple of int
        (C, H, W) of one image.
    conv_params : sequence of six mappings
        Each as the `conv_param` of :class:`SimpleConvNet`. By default 16, 16, 32, 32, 64 and 64 filters of 3x3 with a
        padding of 1, the fourth of 2, so that 28 pixels become 4.
    hidden_size, output_size : int
    dropout : float
        Probability of a cell to be dropped.
    weight_init_std, seed, dtype
        As in :class:`SimpleConvNet`; by default He's.

    Attributes
    ----------
    params : dict of str to ndarray
        ``W1``, ``b1`` to ``W6``, ``b6`` of the convolutions, ``W7``, ``b7`` and ``W8``, ``b8`` of the affine layers.
    """

    def __init__(self, input_dim: tuple[int, int, int] = (1, 28, 28),
                 conv_params: Iterable[Mapping[str, int]] | None = None, hidden_size: int = 50, output_size: int = 10, *,
                 dropout: float = 0.5, weight_init_std: float | str | None = None, seed: Seed = None,
                 dtype: npt.DTypeLike = np.float32) -> None:
        channels, *size = as_shape("input_dim", input_dim, (3,))
        asked = list(conv_params) if conv_params is not None else [
            {"filter_num": filters, "pad": 2 if i == 3 else 1} for i, filters in enumerate((16, 16, 32, 32, 64, 64))]
        if len(asked) != 6:
            raise ValueError(f"conv_params must be six mappings, got {len(asked)}")
        rng = np.random.default_rng(seed)
        made: dict[str, Any] = {"weight_init_std": weight_init_std, "seed": rng, "dtype": dtype}
        image_dim = (channels, *size)
        layers: dict[str, Layer] = {}
        for i, given in enumerate(asked, start=1):
            conv = {"filter_size": 3, "pad": 1, "stride": 1, **given}
            unknown = [key for key in conv if key not in ("filter_num", "filter_size", "pad", "stride")]
            if unknown or "filter_num" not in conv:
                raise ValueError("conv_params must have filter_num, and may have filter_size, pad and stride, got "
                                 f"{given!r}")
            layers[f"Conv{i}"] = self.conv_layer(channels, conv["filter_num"], conv["filter_size"], conv["stride"],
                                                 conv["pad"], **made)
            layers[f"Relu{i}"] = self.relu_layer()
            channels = conv["filter_num"]
            size = conv_output_size(size, conv["filter_size"], conv["stride"], conv["pad"])  # type: ignore[assignment]
            if i % 2 == 0:
                layers[f"Pool{i // 2}"] = self.pool_layer(2, stride=2)
                size = conv_output_size(size, 2, 2)  # type: ignore[assignment]
        layers |= {
            "Flatten": Flatten(),
            "Affine1": self.affine_layer(channels * math.prod(size), hidden_size, **made),
            "Relu7": self.relu_layer(),
            "Dropout1": Dropout(dropout, seed=rng),
            "Affine2": self.affine_layer(hidden_size, output_size, **made),
            "Dropout2": Dropout(dropout, seed=rng),
        }
        learning = [name for name, part in layers.items() if part.params]
        self._build(image_dim, layers, {
            f"{short}{i}": (name, long) for i, name in enumerate(learning, start=1)
            for short, long in (("W", "weight"), ("b", "bias"))})


class LeNet5(Sequential):
    """LeNet-5 (LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition").

    Two convolutions of 6 and 16 filters of 5x5, each followed by a sub-sampling of 2x2, and layers of 120, 84 and
    10 units. Images of 28 pixels are padded by 2, as the paper's are.

    Parameters
    ----------
    input_dim : tuple of int
        (C, H, W) of one image.
    form : {"relu", "tanh", "sigmoid"}
        ``"relu"`` has ReLU, maxima and He's initial weights; the others are as in 1998, with averages and that
        activation (and Glorot's weights; the paper's trained scale of the averages and its sparse connections between
        the two convolutions are left out, as is usual).
    classes : int
    padding : int
        Of the first convolution.
    seed, dtype
        Of the initial weights.
    """

    def __init__(self, input_dim: tuple[int, int, int] = (1, 28, 28), form: str = "relu", *, classes: int = 10,
                 padding: Any = 2, seed: Seed = None, dtype: npt.DTypeLike = np.float32) -> None:
        activations: dict[str, type[Layer]] = {"relu": Relu, "tanh": Tanh, "sigmoid": Sigmoid}
        if form not in activations:
            raise ValueError(f"form must be one of {', '.join(map(repr, activations))}, got {form!r}")
        activation = activations[form]
        pool = self.pool_layer if form == "relu" else AvgPool2d
        made: dict[str, Any] = {"weight_init_std": "he" if form == "relu" else "glorot",
                                "seed": np.random.default_rng(seed), "dtype": dtype}
        channels, *size = as_shape("input_dim", input_dim, (3,))
        height, width = (((n - 4) // 2 - 4) // 2 for n in conv_output_size(size, 1, 1, padding))  # type: ignore[union-attr]
        if min(height, width) < 1:
            raise ValueError(f"input_dim must leave something after two 5x5 convolutions and 2x2 poolings, got {input_dim}")
        super().__init__([
            self.conv_layer(channels, 6, 5, padding=padding, **made), activation(), pool(2),
            self.conv_layer(6, 16, 5, **made), activation(), pool(2),
            Flatten(),
            self.affine_layer(16 * height * width, 120, **made), activation(),
            self.affine_layer(120, 84, **made), activation(),
            self.affine_layer(84, classes, **made),
        ], (channels, *size))


class AlexNet(Sequential):
    """AlexNet (Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks").

    Five convolutions, the second, fourth and fifth in two groups as on its two cards, overlapping 3x3/2 poolings, local
    response normalisation after the first two, dropout, and layers of 4096, 4096 and 1000 units: 60,965,224 parameters.
    The normalisation comes before the pooling, as in the paper; the weights start with He's rule, the paper's 0.01 needs
    its 90 epochs.

    Parameters
    ----------
    input_dim : tuple of int
        (C, H, W) of one image, at least 67 pixels.
    classes, hidden_size : int
    dropout : float
        Probability of a cell to be dropped.
    seed, dtype
        Of the initial weights (and the choices of the dropout).
    """

    def __init__(self, input_dim: tuple[int, int, int] = (3, 227, 227), *, classes: int = 1000, hidden_size: int = 4096,
                 dropout: float = 0.5, seed: Seed = None, dtype: npt.DTypeLike = np.float32) -> None:
        rng = np.random.default_rng(seed)
        made: dict[str, Any] = {"seed": rng, "dtype": dtype}
        channels, *size = as_shape("input_dim", input_dim, (3,))
        if min(size) < 67:
            raise ValueError(f"input_dim must be of at least 67 x 67 pixels, got {input_dim}")
        height, width = ((((n - 7) // 4 - 1) // 2 - 1) // 2 for n in size)
        height, width = (height - 1) // 2, (width - 1) // 2
        super().__init__([
            self.conv_layer(channels, 96, 11, 4, **made), Relu(), _paper_norm(), self.pool_layer(3, 2),
            self.conv_layer(96, 256, 5, 1, 2, 1, 2, **made), Relu(), _paper_norm(), self.pool_layer(3, 2),
            self.conv_layer(256, 384, 3, 1, 1, **made), Relu(),
            self.conv_layer(384, 384, 3, 1, 1, 1, 2, **made), Relu(),
            self.conv_layer(384, 256, 3, 1, 1, 1, 2, **made), Relu(), self.pool_layer(3, 2),
            Flatten(),
            Dropout(dropout, seed=rng), self.affine_layer(256 * height * width, hidden_size, **made), Relu(),
            Dropout(dropout, seed=rng), self.affine_layer(hidden_size, hidden_size, **made), Relu(),
            self.affine_layer(hidden_size, classes, **made),
        ], (channels, *size))


def _paper_norm() -> LocalResponseNorm:
    """The paper's n = 5, alpha = 1e-4, beta = 0.75, k = 2; its alpha is not divided by n."""
    return LocalResponseNorm(5, 5e-4, 0.75, 2)


class KerasConvNet(Sequential):
    """The small network that Keras's tutorials begin with.

    10 filters of 3x3 with "same" padding - relu - max pool 2x2 - flatten - dropout 0.5 - dense 100 - relu - dense 10 -
    softmax, with Glorot's uniform initial weights: 100 + 196,100 + 1,010 parameters.

    Parameters
    ----------
    input_dim : tuple of int
        (C, H, W) of one image.
    classes : int
    dropout : float
        Probability of a cell to be dropped.
    seed, dtype
        Of the initial weights (and the choices of the dropout).
    """

    def __init__(self, input_dim: tuple[int, int, int] = (1, 28, 28), *, classes: int = 10, dropout: float = 0.5,
                 seed: Seed = None, dtype: npt.DTypeLike = np.float32) -> None:
        rng = np.random.default_rng(seed)
        made: dict[str, Any] = {"weight_init_std": "glorot", "seed": rng, "dtype": dtype}
        channels, height, width = as_shape("input_dim", input_dim, (3,))
        super().__init__([
            self.conv_layer(channels, 10, 3, padding="same", **made), Relu(), self.pool_layer(2),
            Flatten(), Dropout(dropout, seed=rng),
            self.affine_layer(10 * (height // 2) * (width // 2), 100, **made), Relu(),
            self.affine_layer(100, classes, **made),
        ], (channels, height, width))
