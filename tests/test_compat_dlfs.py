"""Rule 16: the book's names. What is expected is computed by the book's algorithms, written anew in plain NumPy."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from fastconv.compat import dlfs
from fastconv.compat.dlfs import Convolution, Pooling, col2im, im2col

# --- the book's algorithms --------------------------------------------------------------------------------------------


def book_im2col(images: np.ndarray, filter_h: int, filter_w: int, stride: int = 1, pad: int = 0) -> np.ndarray:
    n, c, h, w = images.shape
    out_h, out_w = (h + 2 * pad - filter_h) // stride + 1, (w + 2 * pad - filter_w) // stride + 1
    padded = np.zeros((n, c, h + 2 * pad, w + 2 * pad))
    padded[:, :, pad:pad + h, pad:pad + w] = images
    rows = []
    for image in padded:
        for top in range(0, out_h * stride, stride):
            for left in range(0, out_w * stride, stride):
                rows.append(image[:, top:top + filter_h, left:left + filter_w].ravel())
    return np.array(rows).reshape(n * out_h * out_w, c * filter_h * filter_w)


def book_col2im(col: np.ndarray, shape: tuple[int, ...], filter_h: int, filter_w: int, stride: int = 1, pad: int = 0,
                ) -> np.ndarray:
    n, c, h, w = shape
    out_h, out_w = (h + 2 * pad - filter_h) // stride + 1, (w + 2 * pad - filter_w) // stride + 1
    padded = np.zeros((n, c, h + 2 * pad, w + 2 * pad))
    rows = iter(col.reshape(-1, c, filter_h, filter_w))
    for image in padded:
        for top in range(0, out_h * stride, stride):
            for left in range(0, out_w * stride, stride):
                image[:, top:top + filter_h, left:left + filter_w] += next(rows)
    return padded[:, :, pad:pad + h, pad:pad + w]


class BookConvolution:
    """Forward and backward by the column matrix, in float64."""

    def __init__(self, W: Any, b: Any, stride: int = 1, pad: int = 0) -> None:
        self.W, self.b, self.stride, self.pad = W, b, stride, pad

    def forward(self, x: np.ndarray) -> np.ndarray:
        filters, _, h, w = self.W.shape
        self.x_shape = x.shape
        self.out_h = (x.shape[2] + 2 * self.pad - h) // self.stride + 1
        self.out_w = (x.shape[3] + 2 * self.pad - w) // self.stride + 1
        self.col = book_im2col(x, h, w, self.stride, self.pad)
        self.col_W = self.W.reshape(filters, -1).T
        out = self.col @ self.col_W + self.b
        return out.reshape(x.shape[0], self.out_h, self.out_w, filters).transpose(0, 3, 1, 2)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        filters, _, h, w = self.W.shape
        flat = dout.transpose(0, 2, 3, 1).reshape(-1, filters)
        self.db = flat.sum(axis=0)
        self.dW = (self.col.T @ flat).T.reshape(self.W.shape)
        return book_col2im(flat @ self.col_W.T, self.x_shape, h, w, self.stride, self.pad)


class BookPooling:
    """Maximum by the column matrix; of a padded image what the rule says, with minus infinity around the image."""

    def __init__(self, pool_h: int, pool_w: int, stride: int = 2, pad: int = 0) -> None:
        self.pool_h, self.pool_w, self.stride, self.pad = pool_h, pool_w, stride, pad

    def forward(self, x: np.ndarray) -> np.ndarray:
        n, c, h, w = self.x_shape = x.shape
        p = self.pad
        padded = np.full((n, c, h + 2 * p, w + 2 * p), -np.inf)
        padded[:, :, p:p + h, p:p + w] = x
        out_h = (h + 2 * p - self.pool_h) // self.stride + 1
        out_w = (w + 2 * p - self.pool_w) // self.stride + 1
        col = book_im2col(padded, self.pool_h, self.pool_w, self.stride).reshape(-1, self.pool_h * self.pool_w)
        self.arg_max = col.argmax(axis=1)
        return col.max(axis=1).reshape(n, out_h, out_w, c).transpose(0, 3, 1, 2)

    def backward(self, dout: np.ndarray) -> np.ndarray:
        spread = np.zeros((dout.size, self.pool_h * self.pool_w))
        spread[np.arange(dout.size), self.arg_max] = dout.transpose(0, 2, 3, 1).ravel()
        spread = spread.reshape(-1, self.x_shape[1] * self.pool_h * self.pool_w)
        return book_col2im(spread, self.x_shape, self.pool_h, self.pool_w, self.stride, self.pad)


# --- im2col and col2im ------------------------------------------------------------------------------------------------


def test_star_import_takes_four_names():
    assert sorted(dlfs.__all__) == ["Convolution", "Pooling", "col2im", "im2col"]


def test_shapes_in_the_book():
    assert im2col(np.zeros((1, 3, 7, 7)), 5, 5, stride=1, pad=0).shape == (9, 75)
    assert im2col(np.zeros((10, 3, 7, 7)), 5, 5, stride=1, pad=0).shape == (90, 75)


@pytest.mark.parametrize(("shape", "window"), [
    ((2, 3, 7, 7), (5, 5)), ((2, 3, 8, 9), (3, 2, 2)), ((1, 2, 5, 6), (3, 3, 1, 1)), ((3, 1, 6, 6), (2, 2, 3, 2)),
    ((0, 2, 4, 4), (2, 2))], ids=str)
def test_im2col_and_col2im(shape, window, engine):
    images = np.random.default_rng(0).integers(-9, 10, shape).astype(np.float64)
    names = dict(zip(("filter_h", "filter_w", "stride", "pad"), window, strict=False))
    want = book_im2col(images, *window)
    np.testing.assert_array_equal(im2col(images, *window), want)
    np.testing.assert_array_equal(im2col(input_data=images, **names), want)
    col = np.random.default_rng(1).integers(-9, 10, want.shape).astype(np.float64)
    np.testing.assert_array_equal(col2im(col, shape, *window), book_col2im(col, shape, *window))
    np.testing.assert_array_equal(col2im(col=col, input_shape=shape, **names), book_col2im(col, shape, *window))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8"])
def test_lowering_keeps_the_dtype(dtype):
    x = np.ones((1, 2, 4, 4), dtype)
    assert im2col(x, 2, 2).dtype == dtype
    assert col2im(im2col(x, 2, 2), x.shape, 2, 2).dtype == dtype


# --- Convolution ------------------------------------------------------------------------------------------------------


def convolution(dtype: str = "float64", bias_shape: tuple[int, ...] = (5,), **how: int) -> tuple[Any, Any, Any, Any]:
    """A layer, the book's with the same parameters, an input and an output gradient."""
    rng = np.random.default_rng(0)
    W, b, x = (rng.standard_normal(shape).astype(dtype) for shape in ((5, 3, 3, 2), bias_shape, (2, 3, 8, 7)))
    book = BookConvolution(W, b, **how)
    dout = rng.standard_normal(book.forward(x).shape).astype(dtype)
    return Convolution(W, b, **how), book, x, dout


@pytest.mark.parametrize("how", [{}, {"stride": 2}, {"pad": 1}, {"stride": 3, "pad": 2}], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
def test_convolution(dtype, tolerance, how, engine):
    layer, book, x, dout = convolution(dtype, **how)
    for attribute in ("x", "col", "col_W", "dW", "db"):
        assert getattr(layer, attribute) is None
    out = layer.forward(x)
    assert layer.x is x
    np.testing.assert_allclose(out, book.forward(x), rtol=0, atol=tolerance)
    assert out.dtype == layer.col.dtype == layer.col_W.dtype == dtype
    np.testing.assert_array_equal(layer.col, book.col)
    np.testing.assert_array_equal(layer.col_W, book.col_W)
    dx, expected = layer.backward(dout), book.backward(dout)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(layer.dW, book.dW, rtol=0, atol=tolerance)
    np.testing.assert_allclose(layer.db, book.db, rtol=0, atol=tolerance)
    assert dx.dtype == layer.dW.dtype == layer.db.dtype == dtype
    assert dx.shape == x.shape
    assert layer.dW.shape == layer.W.shape
    assert layer.db.shape == (5,)


def test_arguments_have_the_books_names_and_defaults():
    layer = Convolution(W=np.ones((1, 1, 2, 2)), b=np.zeros(1))
    assert (layer.stride, layer.pad) == (1, 0)
    layer = Convolution(W=np.ones((1, 1, 2, 2)), b=np.zeros(1), stride=3, pad=1)
    assert (layer.stride, layer.pad) == (3, 1)
    layer = Pooling(pool_h=2, pool_w=3)
    assert (layer.pool_h, layer.pool_w, layer.stride, layer.pad) == (2, 3, 2, 0)


@pytest.mark.parametrize("b", [0.5, 2, np.float64(0.5), np.array(0.5), np.arange(5.0), np.arange(5.0).reshape(1, 5)],
                         ids=["float", "int", "numpy-float", "no-axes", "FN", "1xFN"])
def test_shapes_of_the_bias(b, engine):
    layer, book, x, dout = convolution()
    layer.b = book.b = b
    np.testing.assert_allclose(layer.forward(x), book.forward(x), rtol=0, atol=1e-12)
    layer.backward(dout)
    book.backward(dout)
    assert layer.db.shape == (5,)
    np.testing.assert_allclose(layer.db, book.db, rtol=0, atol=1e-12)
    assert layer.b is b


def test_a_python_number_as_bias_keeps_float32():
    layer, _, x, _ = convolution("float32")
    for b, want in ((0.5, "float32"), (2, "float32"), (np.float32(0.5), "float32"), (np.float64(0.5), "float64"),
                    (np.zeros(5), "float64")):
        layer.b = b
        assert layer.forward(x).dtype == want
        assert (np.zeros((3, 5), "float32") + b).dtype == want  # which is what the book's expression makes of it


@pytest.mark.parametrize("shape", [(4,), (5, 1), (2, 5), (1, 1, 5)], ids=str)
def test_a_bias_that_does_not_fit_is_an_error(shape):
    layer, _, x, _ = convolution()
    layer.b = np.zeros(shape)
    with pytest.raises(ValueError, match=r"\bb must.*\(5,\)"):
        layer.forward(x)


def test_parameters_may_be_changed_in_place(engine):
    layer, book, x, dout = convolution()
    layer.forward(x)
    layer.W -= 0.25  # the optimizers of the book: params[key] -= learning_rate * grads[key]
    layer.b *= 3
    assert layer.W is book.W
    np.testing.assert_allclose(layer.forward(x), book.forward(x), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(layer.col_W, book.col_W)
    # Between forward and backward: the book's col_W is a view of W.
    layer.W *= 2
    np.testing.assert_allclose(layer.backward(dout), book.backward(dout), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(layer.col_W, book.col_W)


def test_parameters_may_be_replaced(engine):
    layer, book, x, dout = convolution()
    layer.forward(x)
    layer.W = book.W = np.random.default_rng(5).standard_normal((4, 3, 2, 2))
    layer.b = book.b = np.arange(4.0)
    np.testing.assert_array_equal(layer.col, book_im2col(x, 2, 2))  # made from the current W
    np.testing.assert_array_equal(layer.col_W, layer.W.reshape(4, -1).T)
    dout = np.random.default_rng(6).standard_normal(book.forward(x).shape)
    np.testing.assert_allclose(layer.forward(x), book.forward(x), rtol=0, atol=1e-12)
    np.testing.assert_allclose(layer.backward(dout), book.backward(dout), rtol=0, atol=1e-12)
    np.testing.assert_allclose(layer.dW, book.dW, rtol=0, atol=1e-12)


def test_col_is_made_of_the_current_x():
    layer, _, x, _ = convolution()
    layer.forward(x)
    x += 1
    np.testing.assert_array_equal(layer.col, book_im2col(x, 3, 2))


def test_no_column_matrix_is_kept():
    layer = Convolution(np.ones((4, 8, 5, 5)), np.zeros(4))
    x = np.ones((4, 8, 40, 40))
    columns = 8 * 25 * 4 * 36 * 36 * 8
    out = layer.forward(x)  # before the measurement, so that what fastconv keeps between calls is there
    tracemalloc.start()
    try:
        out = layer.forward(x)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert out.nbytes <= kept < out.nbytes + columns / 20
    assert layer.col.nbytes == columns
    assert not any(isinstance(value, np.ndarray) and value.nbytes == columns for value in vars(layer).values())


def test_gradient_is_fresh_and_writable(engine):
    layer, _, x, dout = convolution(pad=1)
    kept = [array.copy() for array in (x, dout, layer.W, layer.b)]
    layer.forward(x)
    first = layer.backward(dout)
    want = first.copy()
    first[first > 0] = 0  # what the book's Relu does with what it is given
    np.testing.assert_array_equal(layer.backward(dout), want)
    for array, before in zip((x, dout, layer.W, layer.b), kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_integers_and_mixed_dtypes():
    layer = Convolution(np.ones((1, 1, 2, 2)), 0.0)
    assert layer.forward(np.ones((1, 1, 3, 3), np.float32)).dtype == np.float64  # the book's images with its weights
    assert layer.forward(np.ones((1, 1, 3, 3), np.int64)).dtype == np.float64
    layer.W = np.ones((1, 1, 2, 2), np.int32)
    layer.b = 0
    assert layer.forward(np.ones((1, 1, 3, 3), np.int32)).dtype == np.int32


# --- Pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [(2, 2), (2, 2, 1), (3, 2, 2), (3, 3, 2, 1), (2, 3, 1, 1), (3, 3, 3, 2), (1, 1, 1)],
                         ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pooling(dtype, pool, engine):
    x = np.random.default_rng(0).integers(-4, 3, (2, 3, 9, 8)).astype(dtype)  # with many equal cells
    layer, book = Pooling(*pool), BookPooling(*pool)
    assert layer.x is None
    assert layer.arg_max is None
    out = layer.forward(x)
    np.testing.assert_array_equal(out, book.forward(x))
    assert layer.x is x
    assert out.dtype == dtype
    assert layer.arg_max.dtype == np.int64
    assert layer.arg_max.shape == (out.size,)
    np.testing.assert_array_equal(layer.arg_max, book.arg_max)
    dout = np.random.default_rng(1).integers(-9, 10, out.shape).astype(dtype)
    dx = layer.backward(dout)
    np.testing.assert_array_equal(dx, book.backward(dout))
    assert dx.dtype == dtype
    assert dx.shape == x.shape
    assert dx.flags.writeable
    assert not np.shares_memory(dx, dout)


def test_pooling_with_padding_of_negative_images():
    x = np.full((1, 1, 3, 3), -7.0)
    layer = Pooling(3, 3, stride=1, pad=1)
    np.testing.assert_array_equal(layer.forward(x), x)
    np.testing.assert_array_equal(layer.arg_max, [4, 3, 3, 1, 0, 0, 1, 0, 0])  # the first cell inside
    with pytest.raises(ValueError, match="padding must be smaller"):
        Pooling(2, 2, pad=2).forward(x)


def test_pooling_finds_the_first_nan():
    x = np.array([[1, np.nan], [np.nan, np.inf]]).reshape(1, 1, 2, 2)
    layer = Pooling(2, 2)
    assert np.isnan(layer.forward(x)).all()
    np.testing.assert_array_equal(layer.arg_max, [1])


def test_an_empty_batch():
    conv, pool = Convolution(np.ones((4, 3, 3, 3)), np.zeros(4)), Pooling(2, 2)
    out = pool.forward(conv.forward(np.zeros((0, 3, 8, 8))))
    assert out.shape == (0, 4, 3, 3)
    assert pool.arg_max.shape == (0,)
    assert conv.backward(pool.backward(out)).shape == (0, 3, 8, 8)
    np.testing.assert_array_equal(conv.dW, np.zeros((4, 3, 3, 3)))
    np.testing.assert_array_equal(conv.db, np.zeros(4))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [
    lambda x: Convolution(np.ones((4, 3, 2, 2)), 0.0).forward(x),
    lambda x: Pooling(2, 2).forward(x),
    lambda x: im2col(x, 2, 2),
], ids=["Convolution", "Pooling", "im2col"])
def test_only_batches(call):
    with pytest.raises(ValueError, match=r"\(N, C, H, W\).*\(3, 5, 5\)"):
        call(np.ones((3, 5, 5)))


@pytest.mark.parametrize("layer", [Convolution(np.ones((4, 3, 2, 2)), 0.0), Pooling(2, 2)],
                         ids=["Convolution", "Pooling"])
def test_backward_comes_after_forward(layer):
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(np.ones((1, 4, 2, 2)))


# --- the book's network -----------------------------------------------------------------------------------------------


class Relu:
    def __init__(self):
        self.mask = None

    def forward(self, x):
        self.mask = (x <= 0)
        out = x.copy()
        out[self.mask] = 0
        return out

    def backward(self, dout):
        dout[self.mask] = 0  # in place: the layer behind must have given a fresh array
        return dout


class Affine:
    def __init__(self, W, b):
        self.W, self.b = W, b
        self.x = self.original_x_shape = self.dW = self.db = None

    def forward(self, x):
        self.original_x_shape = x.shape
        self.x = x.reshape(x.shape[0], -1)
        return np.dot(self.x, self.W) + self.b

    def backward(self, dout):
        dx = np.dot(dout, self.W.T)
        self.dW = np.dot(self.x.T, dout)
        self.db = np.sum(dout, axis=0)
        return dx.reshape(*self.original_x_shape)


class SoftmaxWithLoss:
    def __init__(self):
        self.y = self.t = None

    def forward(self, x, t):
        self.t = t
        exponentials = np.exp(x - x.max(axis=1, keepdims=True))
        self.y = exponentials / exponentials.sum(axis=1, keepdims=True)
        return -np.sum(np.log(self.y[np.arange(len(t)), t] + 1e-7)) / len(t)

    def backward(self, dout=1):
        dx = self.y.copy()
        dx[np.arange(len(self.t)), self.t] -= 1
        return dx / len(self.t)


class SimpleConvNet:
    """conv - relu - pool - affine - relu - affine - softmax, as the book builds it; `layers` has the layer classes."""

    def __init__(self, layers, input_dim=(1, 10, 10), filter_num=3, filter_size=3, hidden_size=7, output_size=4):
        rng = np.random.default_rng(3)
        conv_size = input_dim[1] - filter_size + 1
        pool_size = filter_num * (conv_size // 2) ** 2
        self.params = {
            "W1": 0.1 * rng.standard_normal((filter_num, input_dim[0], filter_size, filter_size)),
            "b1": np.zeros(filter_num),
            "W2": 0.1 * rng.standard_normal((pool_size, hidden_size)),
            "b2": np.zeros(hidden_size),
            "W3": 0.1 * rng.standard_normal((hidden_size, output_size)),
            "b3": np.zeros(output_size),
        }
        self.layers = OrderedDict()
        self.layers["Conv1"] = layers.Convolution(self.params["W1"], self.params["b1"])
        self.layers["Relu1"] = Relu()
        self.layers["Pool1"] = layers.Pooling(pool_h=2, pool_w=2, stride=2)
        self.layers["Affine1"] = Affine(self.params["W2"], self.params["b2"])
        self.layers["Relu2"] = Relu()
        self.layers["Affine2"] = Affine(self.params["W3"], self.params["b3"])
        self.last_layer = SoftmaxWithLoss()

    def predict(self, x):
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def loss(self, x, t):
        return self.last_layer.forward(self.predict(x), t)

    def gradient(self, x, t):
        self.loss(x, t)
        dout = self.last_layer.backward(1)
        for layer in reversed(self.layers.values()):
            dout = layer.backward(dout)
        numbered = {"1": "Conv1", "2": "Affine1", "3": "Affine2"}
        return {name + number: getattr(self.layers[layer], "d" + name)
                for number, layer in numbered.items() for name in ("W", "b")}

    def numerical_gradient(self, x, t, name, h=1e-6):  # a small h: none of the ReLUs and maxima may change sides
        values = self.params[name]
        gradient = np.zeros_like(values)
        for index in np.ndindex(values.shape):
            before = values[index]
            values[index] = before + h
            above = self.loss(x, t)
            values[index] = before - h
            gradient[index] = (above - self.loss(x, t)) / (2 * h)
            values[index] = before
        return gradient


class Book:
    """The book's layers, as a namespace like fastconv.compat.dlfs."""

    Convolution, Pooling = BookConvolution, BookPooling


def test_network_has_the_books_gradients_and_the_numerical_ones(engine):
    rng = np.random.default_rng(0)
    x, t = rng.random((5, 1, 10, 10)), rng.integers(0, 4, 5)
    network, book = SimpleConvNet(dlfs), SimpleConvNet(Book)
    gradients, expected = network.gradient(x, t), book.gradient(x, t)
    for name in network.params:
        np.testing.assert_allclose(gradients[name], expected[name], rtol=0, atol=1e-13)
    for name in ("W1", "b1", "b2"):
        numerical = network.numerical_gradient(x, t, name)
        assert np.abs(gradients[name] - numerical).max() < 1e-7


def test_network_learns_as_the_books(engine):
    """In-place updates reach the layers through the shared arrays, step by step the same."""
    rng = np.random.default_rng(1)
    x, t = rng.random((8, 1, 10, 10)), rng.integers(0, 4, 8)
    networks = [SimpleConvNet(dlfs), SimpleConvNet(Book)]
    losses = []
    for network in networks:
        history = []
        for _ in range(15):
            for name, gradient in network.gradient(x, t).items():
                network.params[name] -= 0.5 * gradient
            history.append(network.loss(x, t))
        losses.append(history)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
    assert losses[0][-1] < losses[0][0]
