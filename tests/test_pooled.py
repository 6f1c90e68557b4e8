"""A convolution that a max pooling follows, in one go, and its gradients from the chosen cells: against the long way round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from arrays import assert_accurate

import fastconv
from fastconv import dispatch, functional, nn, reference

# x, weight, the convolution's stride, padding and dilation, the pooling's arguments
CASES: dict[str, tuple[Any, ...]] = {
    "mnist": ((3, 1, 28, 28), (30, 1, 5, 5), 1, 0, 1, (2,)),
    "one tap": ((2, 2, 9, 8), (3, 2, 1, 1), 1, 0, 1, (2,)),
    "one cell": ((1, 1, 3, 3), (1, 1, 3, 3), 1, 0, 1, (1,)),
    "colours": ((2, 3, 17, 19), (5, 3, 3, 3), 1, 1, 1, (2,)),
    "six rows": ((2, 2, 13, 14), (4, 2, 3, 4), 1, 1, 1, (2, 2, 1)),
    "stem": ((2, 3, 30, 31), (7, 3, 7, 7), 2, 3, 1, (3, 2, 1)),
    "eleven taps": ((1, 3, 40, 43), (4, 3, 11, 11), 4, 2, 1, (3, 2)),
    "sixteen taps": ((2, 1, 20, 33), (2, 1, 2, 16), 1, 0, 1, (2,)),
    "seventeen taps": ((2, 1, 9, 40), (2, 1, 3, 17), 1, 0, 1, (2,)),
    "many cells": ((2, 1, 70, 66), (2, 1, 3, 3), 1, 1, 1, (2,)),
    "uneven": ((2, 2, 12, 21), (3, 2, 2, 3), (2, 3), ((1, 0), (2, 1)), 1, ((2, 1),)),
    "dilated rows": ((2, 2, 15, 14), (3, 2, 3, 3), 1, 2, (2, 1), (2,)),
    "dilated": ((2, 2, 15, 14), (3, 2, 3, 3), 1, 2, 2, (2,)),
    "overlapping": ((2, 2, 11, 13), (3, 2, 3, 3), 1, 1, 1, (3, 1, 1)),
    "all but one cell": ((2, 1, 20, 20), (3, 1, 3, 3), 1, 0, 1, (18,)),
    "no image": ((0, 1, 9, 9), (3, 1, 3, 3), 1, 0, 1, (2,)),
    "more channels than pay": ((2, 9, 8, 8), (3, 9, 3, 3), 1, 1, 1, (2,)),
}


def problem(case: tuple[Any, ...], dtype: str, relu: bool = True) -> tuple[Any, ...]:
    """dout, indices, y, x, weight, the convolution's keywords and its output's shape."""
    shape, filters, stride, padding, dilation, pool = case
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal(filters).astype(dtype)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    out = fastconv.conv2d(x, weight, **how, activation="relu" if relu else None)
    y, indices = fastconv.max_pool2d(out, *pool, return_indices=True)
    y[..., ::3] *= rng.integers(0, 2, y[..., ::3].shape)  # a ReLU's zeros, also where windows see many cells
    return rng.standard_normal(y.shape).astype(dtype), indices, y, x, weight, how, out.shape


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "none"])
@pytest.mark.parametrize("name", CASES)
def test_forward_has_the_same_bits(name: str, relu: bool, dtype: str, engine: Any) -> None:
    (_, *image), filters, stride, padding, dilation, pool = CASES[name]
    pool = (*pool, *(None, 0, 1, False)[len(pool) - 1:])
    rng = np.random.default_rng(7)
    x, weight, bias = ((9 * rng.standard_normal(shape)).astype(dtype) for shape in ((9, *image), filters, filters[:1]))
    activation = "relu" if relu else None
    for offset in (None, bias):
        out = fastconv.conv2d(x, weight, offset, stride, padding, dilation, activation=activation, algorithm="auto")
        want, places = fastconv.max_pool2d(out, *pool, return_indices=True)
        for threads in (1, 2, 4):
            with fastconv.options(num_threads=threads):
                for asked in (True, False):
                    y, indices, shape = functional.pooled_conv2d(x, weight, offset, stride, padding, dilation, 1, activation,
                                                                 "zeros", pool=pool, return_indices=asked)
                    np.testing.assert_array_equal(y, want)
                    assert y.dtype == want.dtype
                    assert shape == out.shape
                    assert (indices is None) == (not asked)
                    if indices is not None:
                        np.testing.assert_array_equal(indices, places)


def test_where_the_forward_kernel_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image where the direct kernel is the choice, what it makes fits a cache and no limit is set."""
    def threads(batch: int, filters: int = 30, size: int = 28, channels: int = 1, **settings: Any) -> int | None:
        with fastconv.options(backend="cython", **{"num_threads": 2} | settings):
            return dispatch.pooled_forward(fastconv.geometry.conv2d_geometry(
                (batch, channels, size, size), (filters, channels, 5, 5)), np.dtype(np.float32))

    assert threads(100) == 2
    assert threads(100, num_threads=1) == 1
    assert threads(3) is None
    assert threads(100, size=280) is None
    assert threads(100, channels=64) is None  # Winograd's
    assert threads(100, workspace_limit=2**30) is None
    with fastconv.options(backend="numpy"):
        assert dispatch.pooled_forward(fastconv.geometry.conv2d_geometry((9, 1, 9, 9), (2, 1, 3, 3)), np.dtype("f")) is None


def test_forward_with_windows_of_padding_alone_and_other_padding(engine: Any) -> None:
    x, weight = np.random.default_rng(7).standard_normal((9, 1, 12, 12), dtype=np.float32), np.ones((2, 1, 3, 3), np.float32)
    with pytest.raises(ValueError, match="dilation"):
        functional.pooled_conv2d(x, weight, None, 1, 0, 1, 1, None, "zeros", pool=(2, 1, 5, 12, False), return_indices=False)
    for mode in ("reflect", "circular"):
        want = fastconv.max_pool2d(fastconv.conv2d(x, weight, None, 1, 1, padding_mode=mode), 2)
        got, _, _ = functional.pooled_conv2d(x, weight, None, 1, 1, 1, 1, None, mode, pool=(2, None, 0, 1, False),
                                             return_indices=False)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("relu", [True, False], ids=["relu", "none"])
@pytest.mark.parametrize("name", CASES)
def test_against_the_long_way_round(name: str, relu: bool, dtype: str, engine: Any) -> None:
    dout, indices, y, x, weight, how, shape = problem(CASES[name], dtype, relu)
    wide = [a.astype(np.float64) for a in (dout, x, weight)]
    passed = np.where(y > 0, wide[0], 0) if relu else wide[0]
    dense = reference.max_pool2d_backward(passed, indices, shape)
    _, want, want_bias = reference.conv2d_backward(dense, wide[1], wide[2], **how)
    _, squares, _ = reference.conv2d_backward(dense ** 2, wide[1] ** 2, wide[2], **how)
    results = []
    for threads in (1, 2, 3, 8):
        with fastconv.options(num_threads=threads):
            results.append(functional.pooled_conv2d_backward(dout, indices, y if relu else None, x, weight.shape, **how))
    dw, db = results[0]
    assert dw.dtype == db.dtype == dout.dtype
    assert_accurate(dw, want, squares, weight_gradient=True)
    assert_accurate(db, want_bias, (dense ** 2).sum(axis=(0, 2, 3)), weight_gradient=True)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_where_the_kernel_is_taken() -> None:
    """Beyond what the choice allows the result comes the long way; within it the kernel must be there."""
    taken = set()
    with fastconv.options(backend="cython"):
        for name, case in CASES.items():
            dout, _, _, x, weight, how, _ = problem(case, "float32")
            geometry = fastconv.geometry.conv2d_geometry(x.shape, weight.shape, **how)
            if dispatch.pooled_backward(geometry, dout.shape[2] * dout.shape[3], dout.dtype) is not None:
                taken.add(name)
    assert taken.isdisjoint({"seventeen taps", "dilated", "overlapping", "one cell", "more channels than pay"})
    assert taken >= {"mnist", "one tap", "colours", "six rows", "many cells", "uneven", "dilated rows", "all but one cell",
                     "no image"}


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode: str, engine: Any) -> None:
    dout, indices, y, x, weight, how, shape = problem(CASES["colours"], "float32")
    got = functional.pooled_conv2d_backward(dout, indices, y, x, weight.shape, **how, padding_mode=mode)
    dense = reference.max_pool2d_backward(np.where(y > 0, dout, 0), indices, shape)
    want = fastconv.conv2d_backward(dense, x, weight, **how, padding_mode=mode, need=("dw", "db"), algorithm="im2col")
    for one, two in zip(got, want[1:], strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=2e-6 * np.abs(two).max())


def test_a_long_sum_is_accurate(engine: Any) -> None:
    """10^5 terms of one sign: a running sum in float32 loses 1e-5."""
    x, dout = np.ones((40, 1, 102, 102), np.float32), np.full((40, 1, 50, 50), 0.1, np.float32)
    _, indices = fastconv.max_pool2d(np.zeros((40, 1, 100, 100), np.float32), 2, return_indices=True)
    dw, db = functional.pooled_conv2d_backward(dout, indices, None, x, (1, 1, 3, 3))
    want = np.float64(np.float32(0.1)) * dout.size
    np.testing.assert_allclose(dw, want, rtol=2e-6)
    np.testing.assert_allclose(db, want, rtol=1e-6)


@pytest.mark.parametrize("index", [-1, 24 * 24, 2**40, -2**63], ids=str)
def test_an_index_outside_of_the_plane(index: int, engine: Any) -> None:
    for place in ((0, 0, 0, 0), (0, 0, 0, 1), (2, 29, 11, 10), (2, 29, 11, 11)):
        dout, indices, y, x, weight, how, _ = problem(CASES["mnist"], "float32")
        indices[place] = index
        with pytest.raises(ValueError, match=rf"indices must lie in 0 to 575, .*{index}"):
            functional.pooled_conv2d_backward(dout, indices, y, x, weight.shape, **how)


def test_bad_input_and_other_types(engine: Any) -> None:
    dout, indices, y, x, weight, how, _ = problem(CASES["colours"], "float32")
    call = functional.pooled_conv2d_backward
    want = call(dout, indices, y, x, weight.shape, **how)
    with pytest.raises(ValueError, match=r"indices must have the shape of dout.*got \(2, 5, 8, 8\)"):
        call(dout, indices[..., :-1], y, x, weight.shape, **how)
    with pytest.raises(ValueError, match="dout must have the batch and channels"):
        call(dout[:1], indices[:1], y[:1], x, weight.shape, **how)
    with pytest.raises(ValueError, match="dout must have the shape of the output"):
        call(dout, indices, y[1:], x, weight.shape, **how)
    with pytest.raises(TypeError, match="indices must be integers"):
        call(dout, indices.astype(float), y, x, weight.shape, **how)
    others = {  # what is converted first gives the same
        "indices": (dout, indices.astype(np.int32), y, x), "order": (np.asfortranarray(dout), indices, np.asfortranarray(y), x),
        "byte order": (dout.astype(">f4"), indices, y.astype(">f4"), x), "wider": (dout.astype(float), indices, y, x),
        "image": (dout, indices, y, x.astype(float)), "narrow": (dout.astype(np.float16), indices, y, x)}
    for name, arguments in others.items():
        for got, one in zip(call(*arguments, weight.shape, **how), want, strict=True):
            limit = 3e-3 if name == "narrow" else 1e-6
            np.testing.assert_allclose(got, one, rtol=0, atol=limit * np.abs(one).max(), err_msg=name)


@pytest.mark.parametrize("relu", [True, False], ids=["relu", "none"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
def test_a_network_goes_back_by_it(relu: bool, bias: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first convolution and its pooling: with the same gradients as layer by layer; not where another has a use for it."""
    calls: list[None] = []
    real = nn.layers.pooled_conv2d_backward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr(nn.layers, "pooled_conv2d_backward", counted)

    class Loud(nn.Conv2d):
        def backward(self, dout: Any) -> Any:
            return super().backward(dout)

    def build(first: type[nn.Conv2d]) -> nn.Sequential:
        middle = [nn.Relu()] if relu else []
        return nn.Sequential([first(2, 5, 3, padding=1, bias=bias, seed=0), *middle, nn.MaxPool2d(2),
                              nn.Conv2d(5, 4, 3, seed=1), nn.Relu(), nn.MaxPool2d(2), nn.Flatten(), nn.Affine(16, 3, seed=2)],
                             input_dim=(2, 12, 12))

    x, t = rng.standard_normal((3, 2, 12, 12), dtype=np.float32), np.array([0, 1, 2])
    skipping, one_by_one = build(nn.Conv2d), build(Loud)
    got = skipping.gradient(x, t)
    assert len(calls) == 1
    want = one_by_one.gradient(x, t)
    assert len(calls) == 1
    for one, two in zip(got.values(), want.values(), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6 * np.abs(two).max())
    skipping.layers["Conv2d1"].input_gradient = True  # type: ignore[attr-defined]
    again = skipping.gradient(x, t)
    assert len(calls) == 1
    for one, two in zip(again.values(), got.values(), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6 * np.abs(two).max())
