"""What training takes beside time against PyTorch: ``python bench/gradients.py [PART ...]``.

- ``book``: a step of the book's network (28x28, batch 100, float64) with Convolution and Pooling by im2col in NumPy, and with
  those of ``fastconv.compat.dlfs`` in their place; all else is the reader's own code (``examples/books_network.py``).
- ``memory``: what a step of the book's six-layer network allocates at a time (float32, batch 100), with fastconv's layers
  and with im2col in NumPy.
- ``scratch``: the most scratch of a thread in any direction, of every row of the tables at batches of 1 to 1024.
- ``sparse``: the time of the gradients one by one over that of all from what is not zero in `dout`, by the part that is not; a
  star where these would be taken. The constants of ``dispatch.sparse_limit`` are fitted to it.
- ``transposed``: ``conv_transpose2d`` without and with a bias beside ``conv2d_backward_data`` of the same arrays.

Times are of turns, as in ``fastconv bench``; figures are ratios of medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastconv
from fastconv.benchmarks import footprint, layers, peers
from fastconv.benchmarks.timing import interleave
from fastconv.compat import dlfs
from fastconv.geometry import conv2d_geometry, pool2d_geometry, window2d_geometry
from fastconv.nn.numpy_layers import col2im_rows, im2col_rows
from fastconv.nn.train import Momentum

PARTS = ("book", "memory", "scratch", "sparse", "transposed")
#: x and weight of stride 1, and the parts of `dout` that are not zero.
SPARSE_ROWS = (((100, 1, 28, 28), (30, 1, 5, 5)), ((100, 1, 28, 28), (16, 1, 3, 3)), ((100, 1, 32, 32), (6, 1, 5, 5)),
               ((32, 3, 32, 32), (32, 3, 3, 3)), ((32, 3, 32, 32), (32, 3, 5, 5)), ((32, 3, 32, 32), (16, 3, 7, 7)),
               ((32, 8, 32, 32), (16, 8, 3, 3)), ((32, 8, 32, 32), (16, 8, 5, 5)), ((32, 16, 32, 32), (16, 16, 3, 3)))
SPARSE_PARTS = (0.06, 0.12, 0.18, 0.25, 0.4)
BATCHES = (1, 2, 3, 4, 8, 16, 32, 64, 100, 256, 1024)


class Convolution:
    """The book's, whose column matrix is made by slices of taps: quicker than a view of windows that is copied."""

    def __init__(self, W: Any, b: Any, stride: int = 1, pad: int = 0) -> None:
        self.W, self.b, self.stride, self.pad = W, b, stride, pad

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.geometry = window2d_geometry(x.shape, self.W.shape[2], self.W.shape[3], self.stride, self.pad)
        self.col = im2col_rows(x, self.geometry)
        out = np.dot(self.col, self.W.reshape(len(self.W), -1).T) + self.b
        return out.reshape(len(x), *self.geometry.out_size, -1).transpose(0, 3, 1, 2)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        rows = dout.transpose(0, 2, 3, 1).reshape(-1, len(self.W))
        self.db, self.dW = np.sum(rows, axis=0), np.dot(self.col.T, rows).T.reshape(self.W.shape)
        return col2im_rows(np.dot(rows, self.W.reshape(len(self.W), -1)), self.geometry)


class Pooling:
    """The book's."""

    def __init__(self, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0) -> None:
        self.size, self.stride = (pool_h, pool_w), stride

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.geometry = pool2d_geometry(x.shape, self.size, self.stride)
        col = im2col_rows(x, self.geometry).reshape(-1, self.geometry.taps)
        self.arg_max = np.argmax(col, axis=1)
        return np.max(col, axis=1).reshape(len(x), *self.geometry.out_size, -1).transpose(0, 3, 1, 2)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        dmax = np.zeros((dout.size, self.geometry.taps))
        dmax[np.arange(dout.size), self.arg_max] = dout.transpose(0, 2, 3, 1).ravel()
        return col2im_rows(dmax.reshape(self.geometry.columns_shape("rows")), self.geometry)


def books_network() -> ModuleType:
    """The example, as a module."""
    path = Path(__file__).parents[1] / "examples" / "books_network.py"
    spec = importlib.util.spec_from_file_location("books_network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def book(threads: int, seconds: float) -> None:
    example, rng = books_network(), np.random.default_rng(0)
    x, t = rng.random((100, 1, 28, 28)), rng.integers(0, 10, 100)

    def step(convolution: Any, pooling: Any) -> Any:
        network, momentum = example.Network(convolution, pooling), Momentum(0.01)

        def call() -> dict[str, np.ndarray]:
            _, gradients = network.loss_and_gradient(x, t)
            momentum.update(network.params, gradients)
            return gradients

        return call

    steps = {"book": step(Convolution, Pooling), "windows": step(example.Convolution, example.Pooling),
             "fastconv": step(dlfs.Convolution, dlfs.Pooling)}
    gradients = {name: call() for name, call in steps.items()}
    for name, gradient in gradients["fastconv"].items():
        for other in ("book", "windows"):
            np.testing.assert_allclose(gradient, gradients[other][name], rtol=0, atol=1e-12)
    times = {name: samples.median * 1e3 for name, samples in interleave(steps, seconds, threads=threads).items()}
    print(f"book, {threads} thread(s): a step {times['book']:.2f} ms by slices of taps, {times['windows']:.2f} by views of "
          f"windows, {times['fastconv']:.2f} with fastconv's layers: {times['book'] / times['fastconv']:.2f} and "
          f"{times['windows'] / times['fastconv']:.2f} times as fast")


def memory(threads: int) -> None:
    for row in layers.TRAINING_ROWS:
        rng, peaks = np.random.default_rng(0), []
        x = rng.standard_normal((row.batch, 1, row.size, row.size), dtype=np.float32)
        labels = rng.integers(0, 10, row.batch)
        for by_numpy in (False, True):
            network, momentum = row.make("float32", by_numpy), Momentum(0.01)

            def step(network: Any = network, momentum: Any = momentum, batch: Any = (x, labels)) -> None:
                momentum.update(network.params, network.gradient(*batch))

            step()
            peaks.append(footprint.measure(step))
        ours, theirs = (peak.array_bytes / 1e6 for peak in peaks)
        resident = " and ".join(f"{(peak.resident_bytes or 0) / 1e6:.1f}" for peak in peaks)
        print(f"memory, {threads} thread(s), {row}: {ours:.1f} MB of arrays at a time, im2col {theirs:.1f}: "
              f"{ours / theirs:.2f} of it (counted by {peaks[0].counted_by}; rise of the resident set {resident} MB)")


def scratch(threads: int) -> None:
    for dtype in ("float32", "float64"):
        most, where = 0.0, ""
        for row in layers.CONV_ROWS:
            for sized in map(row.with_batch, BATCHES):
                for direction in ("forward", "backward_data", "backward_weight"):
                    plan = fastconv.plan_conv2d(sized.x, sized.weight, *sized.arguments, dtype=dtype, direction=direction)
                    if plan.workspace_bytes / threads > most:
                        most, where = plan.workspace_bytes / threads, f"{plan.algorithm}, {direction}, {sized}"
        print(f"scratch, {threads} thread(s), {dtype}: at most {most / 1e6:.1f} MB for each thread: {where}")


def sparse(threads: int, seconds: float) -> None:
    backend, rng = fastconv.dispatch.backend(), np.random.default_rng(0)

    def contenders(part: float, data: bool, x: np.ndarray, weight: np.ndarray, geometry: Any) -> dict[str, Any]:
        cells = np.where(rng.random(geometry.output_shape) < part, rng.standard_normal(geometry.output_shape), 0)
        dout, results = cells.astype(x.dtype), [np.empty_like(a) for a in (x, weight, weight[:, 0, 0, 0])]

        def one_by_one() -> None:
            if data:
                fastconv.conv2d_backward_data(dout, weight, x.shape)
            fastconv.conv2d_backward_weight(dout, x, weight.shape)
            fastconv.conv2d_backward(dout, x, weight, need=("db",))

        def together() -> None:
            dx, dw, db = results
            backend.sparse_backward(dout, x, weight, geometry, dx if data else None, dw, db, 1.0, threads)

        return {"one by one": one_by_one, "together": together}

    for dtype, (shape, filters) in itertools.product((np.dtype(np.float32), np.dtype(np.float64)), SPARSE_ROWS):
        geometry = conv2d_geometry(shape, filters)
        if (why_not := backend.sparse_backward_unsupported(geometry, dtype)) is not None:
            print(f"sparse, {dtype}, {shape}, {filters}: {why_not}")
            continue
        x, weight = (rng.standard_normal(size).astype(dtype) for size in (shape, filters))
        for data in (True, False):
            choice, words = fastconv.dispatch.sparse_backward(geometry, dtype, data), []
            for part in SPARSE_PARTS:
                calls = contenders(part, data, x, weight, geometry)
                for call in calls.values():
                    call()
                times = {name: samples.median for name, samples in interleave(calls, seconds, threads=threads).items()}
                star = "*" if choice is not None and part <= choice[1] else ""
                words.append(f"{part:.0%} {times['one by one'] / times['together']:.2f}{star}")
            print(f"sparse, {threads} thread(s), {dtype}, {shape}, {filters}{', ' if data else ', no dx, '}{', '.join(words)}",
                  flush=True)


def transposed(threads: int, seconds: float) -> None:
    for row in layers.CONV_ROWS:
        geometry, rng = row.geometry, np.random.default_rng(0)
        stride, padding, dilation, groups = row.arguments
        dout, weight, bias = (rng.standard_normal(shape, dtype=np.float32) for shape in
                              (geometry.output_shape, geometry.weight_shape, geometry.channels))
        over = [size + sum(pads) - (out - 1) * step - extent for size, out, step, extent, pads in zip(
            geometry.in_size, geometry.out_size, geometry.stride, geometry.extent, geometry.pads, strict=True)]

        def transpose(bias: Any, rest: Any = (stride, padding, over, groups, dilation), x: Any = dout, w: Any = weight) -> Any:
            return lambda: fastconv.conv_transpose2d(x, w, bias, *rest)

        calls = {"dx": lambda d=dout, w=weight, row=row: fastconv.conv2d_backward_data(d, w, row.x, *row.arguments),
                 "without": transpose(None), "with": transpose(bias)}
        dx, without, plus = (call() for call in calls.values())
        np.testing.assert_array_equal(dx, without)
        np.testing.assert_allclose(plus, dx + bias[:, None, None], rtol=1e-4, atol=1e-4)
        times = {name: samples.median * 1e3 for name, samples in interleave(calls, seconds, threads=threads).items()}
        print(f"transposed, {threads} thread(s), {row.name:22} backward data {times['dx']:8.3f} ms, conv_transpose2d "
              f"{times['without'] / times['dx']:.2f} of it, with a bias {times['with'] / times['dx']:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3, help="for a row (default: %(default)s)")
    args = parser.parse_args()
    with peers.limited(args.threads):
        for part in args.parts:
            if part in ("book", "sparse", "transposed"):
                {"book": book, "sparse": sparse, "transposed": transposed}[part](args.threads, args.seconds)
            else:
                {"memory": memory, "scratch": scratch}[part](args.threads)


if __name__ == "__main__":
    main()
