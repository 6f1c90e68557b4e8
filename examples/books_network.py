"""A network in the style of *Deep Learning from Scratch* with its two slow layers replaced, and nothing else.

    python examples/books_network.py [FOLDER]

The code up to `Network` is what somebody has who worked through the book: layers with `forward` and `backward`, in
float64 because NumPy is. Trained once with a Convolution and a Pooling that make the column matrix in NumPy, once with
those of `fastconv.compat.dlfs`: the losses are the same, the time and the memory are not. It writes `books_network.png`.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastconv import nn
from fastconv.benchmarks.footprint import count_arrays
from fastconv.compat import dlfs

# --- the reader's own code --------------------------------------------------------------------------------------------


def windows(x, size, stride):
    """(N, C, H, W) -> (N, OH, OW, C, size, size), a view."""
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    return view.transpose(0, 2, 3, 1, 4, 5)


def add_up(cells, shape, stride):
    """The adjoint of `windows`."""
    x, (_, out_h, out_w, _, size, _) = np.zeros(shape), cells.shape
    for i, j in np.ndindex(size, size):
        x[:, :, i:i + stride * out_h:stride, j:j + stride * out_w:stride] += cells[..., i, j].transpose(0, 3, 1, 2)
    return x


class Convolution:
    def __init__(self, W, b, stride=1, pad=0):
        self.W, self.b, self.stride, self.pad = W, b, stride, pad

    def forward(self, x):
        filters, _, size, _ = self.W.shape
        x = np.pad(x, ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad)))
        self.seen, self.padded = windows(x, size, self.stride), x.shape
        self.col = self.seen.reshape(-1, self.W[0].size)  # the column matrix
        out = self.col @ self.W.reshape(filters, -1).T + self.b
        return out.reshape(*self.seen.shape[:3], filters).transpose(0, 3, 1, 2)

    def backward(self, dout):
        rows = dout.transpose(0, 2, 3, 1).reshape(-1, len(self.W))
        self.db, self.dW = rows.sum(axis=0), (self.col.T @ rows).T.reshape(self.W.shape)
        cells = (rows @ self.W.reshape(len(self.W), -1)).reshape(self.seen.shape)
        dx, p = add_up(cells, self.padded, self.stride), self.pad
        return dx[:, :, p:dx.shape[2] - p, p:dx.shape[3] - p]


class Pooling:
    def __init__(self, pool_h, pool_w, stride=2, pad=0):
        self.size, self.stride = pool_h, stride

    def forward(self, x):
        seen = windows(x, self.size, self.stride)
        self.x_shape, self.cells = x.shape, seen.shape
        flat = seen.reshape(-1, self.size ** 2)
        self.arg_max = flat.argmax(axis=1)
        return flat.max(axis=1).reshape(seen.shape[:4]).transpose(0, 3, 1, 2)

    def backward(self, dout):
        flat = np.zeros((dout.size, self.size ** 2))
        flat[np.arange(dout.size), self.arg_max] = dout.transpose(0, 2, 3, 1).ravel()
        return add_up(flat.reshape(self.cells), self.x_shape, self.stride)


class Relu:
    def forward(self, x):
        self.mask = x <= 0
        return np.where(self.mask, 0, x)

    def backward(self, dout):
        dout[self.mask] = 0
        return dout


class Affine:
    def __init__(self, W, b):
        self.W, self.b = W, b

    def forward(self, x):
        self.shape, self.x = x.shape, x.reshape(len(x), -1)
        return self.x @ self.W + self.b

    def backward(self, dout):
        self.dW, self.db = self.x.T @ dout, dout.sum(axis=0)
        return (dout @ self.W.T).reshape(self.shape)


class Network:
    """conv - relu - pool - affine - relu - affine - softmax."""

    def __init__(self, convolution, pooling, size=28, filters=30, hidden=100):
        rng, pooled = np.random.default_rng(0), (size - 4) // 2
        self.params = {"W1": 0.05 * rng.standard_normal((filters, 1, 5, 5)), "b1": np.zeros(filters),
                       "W2": 0.05 * rng.standard_normal((filters * pooled ** 2, hidden)), "b2": np.zeros(hidden),
                       "W3": 0.05 * rng.standard_normal((hidden, 10)), "b3": np.zeros(10)}
        p = self.params
        self.layers = OrderedDict(Conv1=convolution(p["W1"], p["b1"]), Relu1=Relu(), Pool1=pooling(2, 2, stride=2),
                                  Affine1=Affine(p["W2"], p["b2"]), Relu2=Relu(), Affine2=Affine(p["W3"], p["b3"]))

    def loss_and_gradient(self, x, t):
        for layer in self.layers.values():
            x = layer.forward(x)
        y = np.exp(x - x.max(axis=1, keepdims=True))
        y /= y.sum(axis=1, keepdims=True)
        loss = -np.log(y[np.arange(len(t)), t]).mean()
        y[np.arange(len(t)), t] -= 1
        dout = y / len(t)
        for layer in reversed(self.layers.values()):
            dout = layer.backward(dout)
        learning = [layer for layer in self.layers.values() if hasattr(layer, "W")]
        return loss, {f"{kind}{i}": getattr(layer, f"d{kind}") for i, layer in enumerate(learning, 1) for kind in "Wb"}


# --- the comparison ---------------------------------------------------------------------------------------------------


def train(network, x, t, steps, batch=50, rate=0.05):
    """Losses, and the seconds of each step."""
    rng, losses, seconds = np.random.default_rng(1), [], []
    for _ in range(steps):
        chosen = rng.choice(len(x), batch, replace=False)
        began = time.perf_counter()
        loss, gradient = network.loss_and_gradient(x[chosen], t[chosen])
        for name, p in network.params.items():
            p -= rate * gradient[name]
        seconds.append(time.perf_counter() - began)
        losses.append(loss)
    return losses, seconds


def peak(network, x, t):
    """Most memory, in MB, that the arrays of one step take at a time."""
    return count_arrays(lambda: network.loss_and_gradient(x, t))[0] / 1e6


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "fastconv-examples")
    folder.mkdir(parents=True, exist_ok=True)
    digits = nn.load_digits(dtype=np.float64)
    x = np.pad(digits.x_train.repeat(3, axis=2).repeat(3, axis=3), ((0, 0), (0, 0), (2, 2), (2, 2)))  # 28x28
    contenders = {"im2col in NumPy": (Convolution, Pooling), "fastconv": (dlfs.Convolution, dlfs.Pooling)}
    results = {}
    for name, layers in contenders.items():
        losses, seconds = train(Network(*layers), x, digits.t_train, 40)
        results[name] = losses, float(np.median(seconds)) * 1e3, peak(Network(*layers), x[:50], digits.t_train[:50])
        print(f"{name:16} loss {losses[0]:.4f} -> {losses[-1]:.4f}   {results[name][1]:6.2f} ms a step   "
              f"{results[name][2]:6.1f} MB at most")
    (one, slow, much), (other, fast, little) = results.values()
    print(f"losses differ by at most {np.abs(np.subtract(one, other)).max():.1e}; {slow / fast:.1f} times as fast, "
          f"{much / little:.1f} times less memory")

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    curves, times, memory = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    for (name, (losses, _, _)), style in zip(results.items(), ("-", "--"), strict=True):
        curves.plot(losses, style, label=name, linewidth=3 if style == "-" else 1.5)
    curves.set(xlabel="step", ylabel="loss", title="the same training")
    curves.legend(frameon=False)
    for axes, index, title in ((times, 1, "a step, ms"), (memory, 2, "memory, MB")):
        bars = axes.bar(list(results), [result[index] for result in results.values()], color=["#0072B2", "#D55E00"])
        axes.bar_label(bars, fmt="%.1f")
        axes.set_title(title)
    for axes in (curves, times, memory):
        axes.spines[["top", "right"]].set_visible(False)
    path = folder / "books_network.png"
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
