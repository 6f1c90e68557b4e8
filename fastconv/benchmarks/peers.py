"""Who does a job: fastconv, each of its algorithms and backends, and the libraries beside it.

To add a peer, write one function: it takes a :class:`~fastconv.benchmarks.jobs.Job` and returns a function without
arguments that does the job once and returns its result (an array or a tuple of arrays, or something that ``np.asarray``
takes), or None where the library has no such operation. Everything that a user would do once and not in every call belongs
outside of the function that is returned. Decorate it with the name, the title, and the packages it needs::

    @peer("mylib", "MyLib", "mylib")
    def _mylib(job):
        import mylib

        if job.operation != "forward" or job.conv.groups != 1:
            return None
        mylib.set_num_threads(job.threads)
        x, weight = mylib.tensor(job.x), mylib.tensor(job.weight)
        return lambda: mylib.conv(x, weight, job.conv.stride, job.conv.padding)

That is all: it takes part where ``mylib`` is installed, its result is checked before it is timed, and a job that it does
not know is left out. Threads: BLAS and OpenMP are limited from outside (threadpoolctl); what has a pool and a call of its
own for it sets it in the function.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

import fastconv

from .. import dispatch
from ..geometry import Window2dGeometry
from ..nn.models import Network
from ..nn.train import Momentum
from ..options import backend_available, options
from .jobs import CONVOLUTIONS, LEARNING_RATE, OPERATIONS, TRAINING, Job

Call = Callable[[], Any]

#: The name of what a user of fastconv gets who chooses nothing.
AUTO = "fastconv"


@dataclass(frozen=True)
class Contender:
    """Somebody who does a job.

    Attributes
    ----------
    name : str
    call : callable
        Does the job once.
    ours : bool
        Whether it is fastconv.
    backend : str or None
        The backend to call it with, None for the default.
    predicted_bytes : int or None
        Scratch by the plan.
    algorithm : str or None
        What fastconv takes.
    bare : callable or None
        The same into an array that is there, to see what else is allocated.
    """

    name: str
    call: Call
    ours: bool = False
    backend: str | None = None
    predicted_bytes: int | None = None
    algorithm: str | None = None
    bare: Call | None = None


@dataclass(frozen=True)
class Peer:
    """A library that does jobs as well: its name, the packages that it needs, and the operations it is asked for."""

    name: str
    title: str
    packages: tuple[str, ...]
    operations: tuple[str, ...]
    make: Callable[[Job], Call | None]

    @property
    def missing(self) -> str | None:
        """The first package that is not installed, or None."""
        return next((name for name in self.packages if importlib.util.find_spec(name) is None), None)


#: Those whose memory is NumPy arrays, so that it can be counted.
NUMPY_ALONE = ("book",)

#: The peers that there are, installed or not, in the order of tables.
PEERS: dict[str, Peer] = {}


def peer(name: str, title: str, *packages: str,
         operations: tuple[str, ...] = OPERATIONS) -> Callable[[Callable[[Job], Call | None]], Callable[[Job], Call | None]]:
    """Decorator that enters a peer under a name. Without `operations` it is asked for all."""

    def enter(make: Callable[[Job], Call | None]) -> Callable[[Job], Call | None]:
        PEERS[name] = Peer(name, title, packages, operations, make)
        return make

    return enter


# --- fastconv ---------------------------------------------------------------------------------------------------------


def _engines(operation: str) -> dict[str, tuple[str, str]]:
    """The backends that are there, with each algorithm that they have for an operation: name -> (backend, algorithm)."""
    backends = [name for name in dispatch.BACKENDS if backend_available(name)]
    if operation not in CONVOLUTIONS:
        return {name: (name, "auto") for name in backends}
    parts = ("backward_data", "backward_weight") if operation == "backward" else (operation,)
    return {f"{backend}-{algorithm}": (backend, algorithm) for backend in backends
            for algorithm in dispatch.algorithms(parts[0], backend)
            if all(algorithm in dispatch.algorithms(part, backend) for part in parts)}


def _ours(job: Job, name: str, backend: str | None, algorithm: str) -> Contender | None:
    """fastconv with a backend (None: the default) and an algorithm, or None where they cannot do the job."""
    predicted = chosen = None
    if job.operation in CONVOLUTIONS:
        parts = ("backward_data", "backward_weight") if job.operation == "backward" else (job.operation,)
        try:
            with with_backend(backend):
                plans = [dispatch.plan_conv2d(job.conv.x, job.conv.weight, *job.conv.arguments, dtype=job.dtype,
                                              direction=part, algorithm=algorithm) for part in parts]
        except NotImplementedError:
            return None
        predicted = max(plan.workspace_bytes for plan in plans)
        chosen = " ".join(dict.fromkeys(plan.algorithm for plan in plans))
    bare = call_into(job, algorithm) if job.operation in CONVOLUTIONS and job.operation != "backward" else None
    return Contender(name, _our_call(job, algorithm), True, backend, predicted, chosen, bare)


def with_backend(backend: str | None) -> contextlib.AbstractContextManager[Any]:
    """A block in which fastconv has a backend, None for the default."""
    return contextlib.nullcontext() if backend is None else options(backend=backend)


def _our_call(job: Job, algorithm: str) -> Call:
    if job.operation in CONVOLUTIONS:
        rest = job.conv.arguments
        if job.operation == "forward":
            x, weight = job.x, job.weight
            return lambda: fastconv.conv2d(x, weight, None, *rest, algorithm=algorithm)
        if job.operation == "backward_data":
            dout, weight, shape = job.dout, job.weight, job.conv.x
            return lambda: fastconv.conv2d_backward_data(dout, weight, shape, *rest, algorithm=algorithm)
        if job.operation == "backward_weight":
            dout, x, shape = job.dout, job.x, job.conv.weight
            return lambda: fastconv.conv2d_backward_weight(dout, x, shape, *rest, algorithm=algorithm)
        dout, x, weight = job.dout, job.x, job.weight
        return lambda: fastconv.conv2d_backward(dout, x, weight, *rest, algorithm=algorithm)
    if job.operation == TRAINING:
        return _training_step(job, job.step.make(job.dtype))
    window, kernel = job.window, job.window.geometry.kernel
    pooling = (window.kernel, window.stride, window.padding)
    lowering = (*kernel, window.stride, window.padding)
    match job.operation:
        case "max_pool":
            return partial(fastconv.max_pool2d, job.x, *pooling)
        case "avg_pool":
            return partial(fastconv.avg_pool2d, job.x, *pooling)
        case "max_pool_backward":
            return partial(fastconv.max_pool2d_backward, job.dout, job.indices, window.x)
        case "avg_pool_backward":
            return partial(fastconv.avg_pool2d_backward, job.dout, window.x, *pooling)
        case "im2col" | "im2col_rows":
            return partial(fastconv.im2col, job.x, *lowering, layout=job.layout)
        case _:
            return partial(fastconv.col2im, job.column, window.x, *lowering, layout=job.layout)


def _training_step(job: Job, network: Network) -> Call:
    """A step of training that gives the gradients."""
    x, labels, optimizer = job.x, job.labels, Momentum(LEARNING_RATE)

    def step() -> tuple[np.ndarray, ...]:
        gradients = network.gradient(x, labels)
        optimizer.update(network.params, gradients)
        return tuple(gradients.values())

    return step


def call_into(job: Job, algorithm: str) -> Call:
    """A convolution into an array that is there, so that what it allocates is scratch."""
    rest = job.conv.arguments
    if job.operation == "forward":
        out = np.empty(job.conv.geometry.output_shape, job.dtype)
        return partial(fastconv.conv2d, job.x, job.weight, None, *rest, algorithm=algorithm, out=out)
    if job.operation == "backward_data":
        return partial(fastconv.conv2d_backward_data, job.dout, job.weight, job.conv.x, *rest, algorithm=algorithm,
                       out=np.empty_like(job.x))
    if job.operation == "backward_weight":
        return partial(fastconv.conv2d_backward_weight, job.dout, job.x, job.conv.weight, *rest, algorithm=algorithm,
                       out=np.empty_like(job.weight))
    raise ValueError(f"{job.operation} has no out")


# --- the others -------------------------------------------------------------------------------------------------------


def _symmetric(geometry: Window2dGeometry) -> tuple[int, int] | None:
    """Padding as a pair, or None where its two sides differ."""
    (top, bottom), (left, right) = geometry.pads
    return (top, left) if (top, left) == (bottom, right) else None


@peer("torch", "PyTorch", "torch", operations=tuple(name for name in OPERATIONS if not name.endswith("_rows")))
def _torch(job: Job) -> Call | None:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(job.threads)
    if job.operation == TRAINING:
        return _torch_training_step(job)
    padding = _symmetric(cast(Any, job.layer).geometry)
    if padding is None:
        return None
    tensor, aten = torch.from_numpy, torch.ops.aten  # tensors share the arrays' memory, and ask for no gradient
    if job.operation in CONVOLUTIONS:
        g = job.conv.geometry
        weight = tensor(job.weight)
        if job.operation == "forward":
            return partial(F.conv2d, tensor(job.x), weight, None, g.stride, padding, g.dilation, g.groups)
        which = {"backward": (True, True, True), "backward_data": (True, False, False),
                 "backward_weight": (False, True, False)}[job.operation]
        call = partial(aten.convolution_backward, tensor(job.dout), tensor(job.x), weight, [g.out_channels],
                       list(g.stride), list(padding), list(g.dilation), False, [0, 0], g.groups, list(which))
        return call if job.operation == "backward" else lambda: call()[which.index(True)]
    g_pool = job.window.geometry
    window = (list(g_pool.kernel), list(g_pool.stride), list(padding))
    match job.operation:
        case "max_pool":
            return partial(F.max_pool2d, tensor(job.x), *window)
        case "avg_pool":
            return partial(F.avg_pool2d, tensor(job.x), *window)
        case "max_pool_backward":
            return partial(aten.max_pool2d_with_indices_backward, tensor(job.dout), tensor(job.x), *window, [1, 1], False,
                           tensor(job.indices))
        case "avg_pool_backward":
            return partial(aten.avg_pool2d_backward, tensor(job.dout), tensor(job.x), *window, False, True, None)
        case "im2col":
            return partial(F.unfold, tensor(job.x), g_pool.kernel, 1, padding, g_pool.stride)
        case _:
            return partial(F.fold, tensor(job.column), g_pool.in_size, g_pool.kernel, 1, padding, g_pool.stride)


def _torch_training_step(job: Job) -> Call:
    """The same network of PyTorch's own layers with the same weights, step by step as its tutorials do it."""
    import torch
    from torch import nn

    from ..nn import layers

    network, parts = job.step.make(job.dtype), []
    for part in network.layers.values():
        made: Any
        if isinstance(part, layers.Conv2d):
            filters, channels, *kernel = part.params["weight"].shape
            made = nn.Conv2d(channels, filters, kernel, part.stride, part.padding)
        elif isinstance(part, layers.Affine):
            made = nn.Linear(*part.params["weight"].shape)
        elif isinstance(part, layers.MaxPool2d):
            made = nn.MaxPool2d(part.kernel_size, part.stride)
        elif isinstance(part, layers.Dropout):
            made = nn.Dropout(part.p)
        else:
            made = {layers.Relu: nn.ReLU, layers.Flatten: nn.Flatten}[type(part)]()
        if part.params:  # of affine layers PyTorch has the outputs first
            weight = torch.from_numpy(part.params["weight"])
            made.weight = nn.Parameter((weight.T if isinstance(part, layers.Affine) else weight).clone().contiguous())
            made.bias = nn.Parameter(torch.from_numpy(part.params["bias"]).clone())
        parts.append(made)
    model, loss = nn.Sequential(*parts), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, 0.9)
    x, labels = torch.from_numpy(job.x), torch.from_numpy(job.labels)

    def step() -> tuple[Any, ...]:
        optimizer.zero_grad()
        loss(model(x), labels).backward()
        optimizer.step()
        return tuple(p.grad.T if p.grad.ndim == 2 else p.grad for p in model.parameters())

    return step


@peer("onnxruntime", "ONNX\nRuntime", "onnxruntime", "onnx", operations=("forward", "max_pool", "avg_pool"))
def _onnxruntime(job: Job) -> Call | None:
    """A model of one node, and a session that is made once: the runtime packs the weight then."""
    import onnx
    import onnxruntime

    node = {"forward": "Conv", "max_pool": "MaxPool", "avg_pool": "AveragePool"}[job.operation]
    if job.dtype != "float32":
        return None
    g = cast(Any, job.layer).geometry
    (top, bottom), (left, right) = g.pads
    attributes: dict[str, Any] = {"kernel_shape": g.kernel, "strides": g.stride, "pads": [top, left, bottom, right]}
    weights = []
    if node == "Conv":
        attributes |= {"group": job.conv.groups, "dilations": g.dilation}
        weights = [onnx.numpy_helper.from_array(job.weight, "weight")]
    elif node == "AveragePool":
        attributes["count_include_pad"] = 1
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(node, ["x", *(w.name for w in weights)], ["y"], **attributes)], "layer",
        [helper.make_tensor_value_info("x", real, job.x.shape)], [helper.make_tensor_value_info("y", real, None)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = job.threads, 1
    settings.log_severity_level = 3
    # Its threads spin during a call, as everyone's do, and not on into the next contender's turn.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    feed = {"x": job.x}
    return lambda: session.run(None, feed)[0]


#: SciPy correlates plane by plane in a Python loop; where that would take more than about a second, it takes no part.
SCIPY_PLANES, SCIPY_FLOPS = 2**14, 2 * 10**8


@peer("scipy", "SciPy", "scipy", operations=("forward", "max_pool", "avg_pool"))
def _scipy(job: Job) -> Call | None:
    from scipy import ndimage, signal

    if job.operation in ("max_pool", "avg_pool"):  # the filter at every pixel, of which the window's positions are kept
        g_pool = job.window.geometry
        padding = _symmetric(g_pool)
        if padding is None:
            return None
        first = [kernel // 2 - pad for kernel, pad in zip(g_pool.kernel, padding, strict=True)]
        last = [start + (out - 1) * step for start, out, step in zip(first, g_pool.out_size, g_pool.stride, strict=True)]
        if min(first) < 0 or any(end >= size for end, size in zip(last, g_pool.in_size, strict=True)):
            return None
        kept = (..., *(slice(start, end + 1, step) for start, end, step in zip(first, last, g_pool.stride, strict=True)))
        x, size = job.x, (1, 1, *g_pool.kernel)
        if job.operation == "max_pool":
            return lambda: ndimage.maximum_filter(x, size, mode="constant", cval=-np.inf)[kept]
        return lambda: ndimage.uniform_filter(x, size, mode="constant")[kept]
    g = job.conv.geometry
    if g.dilation != (1, 1) or g.batch * g.out_channels > SCIPY_PLANES or g.flops > SCIPY_FLOPS:
        return None
    x, weight, depth, per_group = job.x, job.weight, g.channels // g.groups, g.out_channels // g.groups

    def correlate() -> np.ndarray:
        padded = np.pad(x, ((0, 0), (0, 0), *g.pads))
        out = np.empty(g.output_shape, x.dtype)
        for n in range(g.batch):
            for k in range(g.out_channels):
                image = padded[n, k // per_group * depth:][:depth]
                plane = signal.correlate2d(image[0], weight[k, 0], "valid") if depth == 1 else \
                    signal.correlate(image, weight[k], "valid")[0]
                out[n, k] = plane[::g.stride[0], ::g.stride[1]]
        return out

    return correlate


@peer("opencv", "OpenCV", "cv2", operations=("forward",))
def _opencv(job: Job) -> Call | None:
    """``filter2D``: one plane, one filter, an output of the same size."""
    import cv2

    g = job.conv.geometry
    same = all(pads == (kernel // 2, kernel // 2) and kernel % 2 for pads, kernel in zip(g.pads, g.kernel, strict=True))
    if g.batch * g.channels * g.out_channels != 1 or g.stride != (1, 1) or g.dilation != (1, 1) or not same:
        return None
    cv2.setNumThreads(job.threads)
    plane, kernel = job.x[0, 0], job.weight[0, 0]
    return lambda: cv2.filter2D(plane, -1, kernel, borderType=cv2.BORDER_CONSTANT)[None, None]


@peer("book", "im2col in\nNumPy", operations=(*CONVOLUTIONS, "max_pool", "im2col_rows", "col2im_rows", TRAINING))
def _book(job: Job) -> Call | None:
    """What *Deep Learning from Scratch* does (:mod:`fastconv.nn.numpy_layers`), in the job's dtype."""
    from ..nn.numpy_layers import col2im_rows, im2col_rows

    if job.operation == TRAINING:
        return _training_step(job, job.step.make(job.dtype, by_numpy=True))
    g = cast(Any, job.layer).geometry
    if job.operation in CONVOLUTIONS:
        if job.conv.geometry.groups != 1 or g.dilation != (1, 1):
            return None
        filters = job.weight.reshape(len(job.weight), -1)
        if job.operation == "forward":
            x = job.x
            return lambda: np.dot(im2col_rows(x, g), filters.T).reshape(g.batch, *g.out_size, -1).transpose(0, 3, 1, 2)
        dout, shape, col = job.dout, job.weight.shape, im2col_rows(job.x, g)  # the book keeps it from the forward pass

        def as_rows() -> np.ndarray:
            return dout.transpose(0, 2, 3, 1).reshape(-1, len(filters))

        def data(rows: np.ndarray) -> np.ndarray:
            return col2im_rows(np.dot(rows, filters), g)

        def weight(rows: np.ndarray) -> np.ndarray:
            return np.dot(col.T, rows).T.reshape(shape)

        if job.operation == "backward_data":
            return lambda: data(as_rows())
        if job.operation == "backward_weight":
            return lambda: weight(as_rows())

        def backward() -> tuple[np.ndarray, ...]:
            rows = as_rows()
            return data(rows), weight(rows), rows.sum(axis=0)

        return backward
    if job.operation == "im2col_rows":
        return partial(im2col_rows, job.x, job.window.window)
    if job.operation == "col2im_rows":
        return partial(col2im_rows, job.column, job.window.window)
    if any(map(any, g.pads)):  # its padding is zeros, which can win
        return None
    x = job.x

    def pool() -> np.ndarray:
        windows = im2col_rows(x, g).reshape(-1, g.taps)
        windows.argmax(axis=1)  # for the backward pass
        return windows.max(axis=1).reshape(g.batch, *g.out_size, g.channels).transpose(0, 3, 1, 2)

    return pool


# --- all of them ------------------------------------------------------------------------------------------------------


def names(operation: str) -> list[str]:
    """Who may take part in an operation here: fastconv, its algorithms and backends, and the peers that are installed."""
    return [AUTO, *_engines(operation), *(name for name, entry in PEERS.items()
                                          if operation in entry.operations and entry.missing is None)]


def choose(candidates: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Those of `candidates` that match one of the patterns (``cython-*``); fastconv itself always does."""
    patterns = tuple(patterns)
    return [name for name in candidates if name == AUTO or any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def check_patterns(patterns: Iterable[str]) -> None:
    """Raise ValueError where a pattern matches no peer, algorithm or backend at all, ImportError where it is not installed."""
    known = {name for operation in ("forward", "max_pool") for name in (AUTO, *_engines(operation))}
    for pattern in patterns:
        if fnmatch.filter(known, pattern):
            continue
        found = [PEERS[name] for name in fnmatch.filter(PEERS, pattern)]
        if not found:
            raise ValueError(f"no peer is called {pattern!r}; there are {', '.join(sorted(known))} and "
                             f"{', '.join(PEERS)}")
        if all(entry.missing is not None for entry in found):
            raise ImportError(f"{title(found[0].name)} is not installed: pip install {' '.join(found[0].packages)}")


def title(name: str) -> str:
    """A contender's name for the head of a table; it may have two lines."""
    return PEERS[name].title if name in PEERS else name.replace("-", "\n")


def make(job: Job, name: str) -> Contender | None:
    """A contender for a job, or None where it has no such operation."""
    if name == AUTO:
        return _ours(job, name, None, "auto")
    engine = _engines(job.operation).get(name)
    if engine is not None:
        return _ours(job, name, *engine)
    with warnings.catch_warnings():  # of other people's packages
        warnings.simplefilter("ignore")
        call = PEERS[name].make(job)
    return None if call is None else Contender(name, call)


def versions() -> dict[str, str]:
    """The versions of the peers that are installed."""
    found = {}
    for entry in PEERS.values():
        for package in entry.packages if entry.missing is None else ():
            distribution = {"cv2": ("opencv-python", "opencv-python-headless", "opencv-contrib-python")}.get(package,
                                                                                                         (package,))
            for name in distribution:
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    found[package] = importlib.metadata.version(name)
    return found


def blas_is_limited() -> bool:
    """Whether `limited` reaches BLAS: that takes threadpoolctl."""
    return importlib.util.find_spec("threadpoolctl") is not None


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """A block in which BLAS, OpenMP and fastconv use so many threads. The peers' own pools are set where jobs are made."""
    with contextlib.ExitStack() as stack:
        if blas_is_limited():
            stack.enter_context(importlib.import_module("threadpoolctl").threadpool_limits(threads))
        stack.enter_context(options(num_threads=threads))
        yield
