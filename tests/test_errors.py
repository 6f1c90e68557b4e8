"""Rule 10: wrong calls end in the right exception, whose message has the argument's name and both values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import memory


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def huge(*shape: int, dtype: str = "float32") -> np.ndarray:
    """An array of any size in four bytes of memory."""
    return np.broadcast_to(np.ones((), dtype), shape)


X, WEIGHT, BIAS, DOUT = ones(2, 4, 8, 9), ones(6, 2, 3, 3), ones(6), ones(2, 6, 6, 7)


def conv2d(**changes: Any) -> np.ndarray:
    return fastconv.conv2d(**{"x": X, "weight": WEIGHT, "bias": BIAS, "groups": 2, **changes})


def backward(**changes: Any) -> Any:
    return fastconv.conv2d_backward(**{"dout": DOUT, "x": X, "weight": WEIGHT, "groups": 2, **changes})


def backward_data(**changes: Any) -> np.ndarray:
    defaults = {"dout": DOUT, "weight": WEIGHT, "input_shape": X.shape, "groups": 2}
    return fastconv.conv2d_backward_data(**{**defaults, **changes})


def backward_weight(**changes: Any) -> np.ndarray:
    defaults = {"dout": DOUT, "x": X, "weight_shape": WEIGHT.shape, "groups": 2}
    return fastconv.conv2d_backward_weight(**{**defaults, **changes})


def transpose(**changes: Any) -> np.ndarray:
    return fastconv.conv_transpose2d(**{"x": X, "weight": ones(4, 3, 3, 3), "bias": ones(3), **changes})


def im2col(**changes: Any) -> np.ndarray:
    return fastconv.im2col(**{"x": X, "filter_h": 3, "filter_w": 2, **changes})


def col2im(**changes: Any) -> np.ndarray:
    return fastconv.col2im(**{"col": ones(96, 24), "input_shape": X.shape, "filter_h": 3, "filter_w": 2, **changes})


def max_pool(**changes: Any) -> Any:
    return fastconv.max_pool2d(**{"x": X, "kernel_size": 3, **changes})


def max_pool_backward(**changes: Any) -> np.ndarray:
    return fastconv.max_pool2d_backward(**{"dout": ones(2, 4, 2, 3), "indices": np.zeros((2, 4, 2, 3), int),
                                           "input_shape": X.shape, **changes})


def avg_pool(**changes: Any) -> np.ndarray:
    return fastconv.avg_pool2d(**{"x": X, "kernel_size": 3, **changes})


def avg_pool_backward(**changes: Any) -> np.ndarray:
    defaults = {"dout": ones(2, 4, 2, 3), "input_shape": X.shape, "kernel_size": 3}
    return fastconv.avg_pool2d_backward(**{**defaults, **changes})


def plan(**changes: Any) -> Any:
    return fastconv.plan_conv2d(**{"x_shape": X.shape, "weight_shape": WEIGHT.shape, "groups": 2, **changes})


def pack(**changes: Any) -> Any:
    return fastconv.pack_weight(**{"weight": WEIGHT, "input_shape": X.shape, "groups": 2, **changes})


def profile(**changes: Any) -> Any:
    return fastconv.profile_conv2d(**{"x_shape": X.shape, "weight_shape": WEIGHT.shape, "groups": 2, **changes})


def size(**changes: Any) -> Any:
    return fastconv.conv_output_size(**{"size": (8, 9), "kernel": 3, **changes})


CONVOLUTIONS = (conv2d, backward, backward_data, backward_weight, plan, pack)
SLIDING = (*CONVOLUTIONS, transpose, im2col, col2im, max_pool, avg_pool, avg_pool_backward, profile, size)
ALL = (*SLIDING, max_pool_backward)


@pytest.mark.parametrize("call", [call for call in ALL if call is not profile], ids=lambda call: call.__name__)
def test_the_call_without_a_mistake_works(call, engine):
    """Otherwise the tests below would be worth nothing. (A profile runs every engine: test_dispatch.py.)"""
    call()


Wrong = tuple[Callable[..., Any], dict[str, Any], type[Exception], tuple[str, ...]]


def each(calls: tuple[Callable[..., Any], ...], mistakes: dict[str, Any], error: type[Exception],
         *message: str) -> list[Wrong]:
    """The same mistake in several calls."""
    return [(call, mistakes, error, message) for call in calls]


#: call, its mistakes, the exception, what the message has (regular expressions, in any order)
WRONG: list[Wrong] = [
    # --- shapes that do not fit together
    (conv2d, {"x": ones(8, 9)}, ValueError, (r"\bx\b", r"3 or 4", r"\(8, 9\)|got 2")),
    (conv2d, {"x": ones(1, 2, 4, 8, 9)}, ValueError, (r"\bx\b", r"3 or 4", r"5")),
    (conv2d, {"x": ones(2, 0, 8, 9)}, ValueError, (r"\bx\b", r"\(2, 0, 8, 9\)")),
    (conv2d, {"x": ones(2, 4, 0, 9)}, ValueError, (r"\bx\b", r"\(2, 4, 0, 9\)")),
    (conv2d, {"x": ones(2, 6, 8, 9)}, ValueError, (r"weight", r"\b3\b", r"\b2\b", r"channels")),
    (conv2d, {"weight": ones(2, 3, 3)}, ValueError, (r"weight", r"4", r"3")),
    (conv2d, {"weight": ones(0, 2, 3, 3)}, ValueError, (r"weight", r"\(0, 2, 3, 3\)")),
    (conv2d, {"weight": ones(6, 2, 0, 3)}, ValueError, (r"weight", r"\(6, 2, 0, 3\)")),
    (conv2d, {"weight": ones(6, 2, 9, 3)}, ValueError, (r"height", r"\b9\b", r"\b8\b")),
    (conv2d, {"weight": ones(6, 2, 3, 5), "dilation": 3}, ValueError, (r"width", r"\b13\b", r"\b9\b")),
    (conv2d, {"bias": ones(5)}, ValueError, (r"bias", r"\(6,\)", r"\(5,\)")),
    (conv2d, {"bias": ones(6, 1)}, ValueError, (r"bias", r"\(6,\)", r"\(6, 1\)")),
    (conv2d, {"bias": 1.0}, ValueError, (r"bias", r"\(6,\)", r"\(\)")),
    (conv2d, {"groups": 3}, ValueError, (r"groups", r"\b3\b", r"\b4\b")),
    (conv2d, {"groups": 4, "weight": ones(6, 1, 3, 3)}, ValueError, (r"groups", r"\b4\b", r"\b6\b")),
    (backward, {"dout": ones(2, 6, 6, 6)}, ValueError, (r"dout", r"\(2, 6, 6, 7\)", r"\(2, 6, 6, 6\)")),
    (backward, {"dout": ones(6, 6, 7)}, ValueError, (r"dout", r"\(2, 6, 6, 7\)", r"\(6, 6, 7\)")),
    (backward, {"x": ones(4, 8, 9)}, ValueError, (r"dout", r"\(6, 6, 7\)", r"\(2, 6, 6, 7\)")),
    (backward_data, {"dout": ones(1, 6, 6, 7)}, ValueError, (r"dout", r"\(2, 6, 6, 7\)", r"\(1, 6, 6, 7\)")),
    (backward_data, {"input_shape": (4, 8, 9)}, ValueError, (r"dout", r"\(6, 6, 7\)", r"\(2, 6, 6, 7\)")),
    (backward_data, {"input_shape": (8, 9)}, ValueError, (r"input_shape", r"3 or 4", r"\(8, 9\)")),
    (backward_data, {"input_shape": (2, 4, 8, -9)}, ValueError, (r"input_shape", r"-9")),
    (backward_weight, {"weight_shape": (6, 4, 3, 3)}, ValueError, (r"weight_shape", r"\b4\b", r"\b2\b")),
    (backward_weight, {"weight_shape": (6, 2, 3)}, ValueError, (r"weight_shape", r"4", r"\(6, 2, 3\)")),
    (backward_weight, {"dout": ones(2, 6, 5, 7)}, ValueError, (r"dout", r"\(2, 6, 6, 7\)", r"\(2, 6, 5, 7\)")),
    (transpose, {"weight": ones(3, 4, 3, 3)}, ValueError, (r"weight", r"\b4\b", r"\b3\b")),
    (transpose, {"bias": ones(4)}, ValueError, (r"bias", r"\(3,\)", r"\(4,\)")),
    (transpose, {"output_padding": 1}, ValueError, (r"output_padding", r"\b1\b", r"stride")),
    (transpose, {"output_padding": (0, 2), "stride": 2}, ValueError, (r"output_padding", r"\b2\b")),
    (transpose, {"padding": 9}, ValueError, (r"padding", r"\b9\b")),
    (transpose, {"padding": "same", "output_padding": 1, "stride": 2}, ValueError, (r"output_padding", r"same")),
    (im2col, {"layout": "row"}, ValueError, (r"layout", r"'rows'", r"'cs231n'", r"'row'")),
    (im2col, {"x": ones(2, 4, 2, 9)}, ValueError, (r"height", r"\b3\b", r"\b2\b")),
    (im2col, {"pad_value": "0"}, TypeError, (r"pad_value", r"'0'")),
    (im2col, {"pad_value": None}, TypeError, (r"pad_value", r"None")),
    (im2col, {"pad_value": 1j}, ValueError, (r"pad_value", r"float32", r"1j")),
    (im2col, {"x": np.ones((1, 1, 4, 4), np.uint8), "pad_value": -1}, ValueError, (r"pad_value", r"uint8", r"-1")),
    (im2col, {"x": np.ones((1, 1, 4, 4), np.int8), "pad_value": 0.5}, ValueError, (r"pad_value", r"int8", r"0\.5")),
    (col2im, {"col": ones(95, 24)}, ValueError, (r"col\b", r"\(96, 24\)", r"\(95, 24\)")),
    (col2im, {"layout": "columns"}, ValueError, (r"col\b", r"\(2, 24, 48\)", r"\(96, 24\)")),
    (col2im, {"input_shape": (1, 4, 8, 9)}, ValueError, (r"col\b", r"\(48, 24\)", r"\(96, 24\)")),
    (col2im, {"input_shape": 8}, TypeError, (r"input_shape", r"8")),
    (max_pool, {"kernel_size": 10}, ValueError, (r"height", r"\b10\b", r"\b8\b")),
    (max_pool, {"padding": 3}, ValueError, (r"padding", r"\b3\b")),
    (max_pool, {"padding": ((0, 0), (0, 5))}, ValueError, (r"padding", r"\b3\b", r"\b5\b")),
    (max_pool_backward, {"dout": ones(2, 4, 3, 3)}, ValueError, (r"indices", r"\(2, 4, 3, 3\)", r"\(2, 4, 2, 3\)")),
    (max_pool_backward, {"input_shape": (2, 3, 8, 9)}, ValueError, (r"dout|input_shape", r"\b3\b", r"\b4\b")),
    (max_pool_backward, {"input_shape": (1, 4, 8, 9)}, ValueError, (r"dout|input_shape", r"\b1\b", r"\b2\b")),
    (max_pool_backward, {"indices": np.full((2, 4, 2, 3), 72)}, ValueError, (r"indices", r"\b71\b", r"\b72\b")),
    (max_pool_backward, {"indices": np.full((2, 4, 2, 3), -1)}, ValueError, (r"indices", r"\b71\b", r"-1")),
    (max_pool_backward, {"indices": ones(2, 4, 2, 3)}, TypeError, (r"indices", r"float32")),
    (avg_pool, {"divisor_override": 0}, ValueError, (r"divisor_override", r"\b0\b")),
    (avg_pool, {"divisor_override": 1.5}, TypeError, (r"divisor_override", r"1\.5")),
    (avg_pool_backward, {"dout": ones(2, 4, 3, 3)}, ValueError, (r"dout", r"\(2, 4, 2, 3\)", r"\(2, 4, 3, 3\)")),
    (pack, {"input_shape": (2, 6, 8, 9)}, ValueError, (r"weight", r"\b3\b", r"\b2\b")),

    # --- choices
    (conv2d, {"activation": "gelu"}, ValueError, (r"activation", r"'relu'", r"'gelu'")),
    (conv2d, {"activation": True}, TypeError, (r"activation", r"'relu'", r"True")),
    (conv2d, {"activation": "relu", "x": X.astype(complex)}, TypeError, (r"activation|relu", r"complex128")),
    (backward, {"need": ("dx", "dW")}, ValueError, (r"need", r"dw", r"dW")),
    (backward, {"need": 3}, TypeError, (r"need", r"3")),
    (backward, {"need": None}, TypeError, (r"need", r"None")),
    (plan, {"direction": "backward"}, ValueError, (r"direction", r"'backward_data'", r"'backward'")),
    (profile, {"direction": "backward"}, ValueError, (r"direction", r"'backward_data'", r"'backward'")),
    (plan, {"dtype": "float31"}, TypeError, (r"float31",)),
    (plan, {"dtype": "U4"}, TypeError, (r"dtype", r"U4|str")),
    (plan, {"dtype": object}, TypeError, (r"dtype", r"object")),
    (profile, {"repeat": 0}, ValueError, (r"repeat", r"\b1\b", r"\b0\b")),

    # --- sizes
    (size, {"kernel": 10}, ValueError, (r"height", r"\b10\b", r"\b8\b")),
    (size, {"size": 0, "kernel": 1}, ValueError, (r"size", r"\b1\b", r"\b0\b")),
    (size, {"size": 8.0}, TypeError, (r"size", r"8\.0")),
    (size, {"size": 8, "kernel": (3, 3)}, TypeError, (r"kernel", r"\(3, 3\)")),
    (size, {"stride": 2, "strict": True}, ValueError, (r"stride", r"\b2\b", r"\b8\b")),

    # --- what is no array of numbers, and what is no number of the right kind
    (conv2d, {"x": np.ma.ones((2, 4, 8, 9), np.float32)}, TypeError, (r"\bx\b", r"mask")),
    (conv2d, {"x": [[1, 2], [3]]}, ValueError, (r"\bx\b",)),
    *each(SLIDING, {"stride": 1.5}, TypeError, r"stride", r"1\.5"),
    *each(SLIDING, {"stride": 0}, ValueError, r"stride", r"\b1\b", r"\b0\b"),
    *each((conv2d, max_pool, im2col), {"stride": (1, -2)}, ValueError, r"stride", r"\b1\b", r"-2"),
    *each((conv2d, max_pool, im2col), {"stride": (1, 2, 3)}, ValueError, r"stride", r"pair", r"\(1, 2, 3\)"),
    *each((conv2d, avg_pool, col2im), {"stride": "2"}, TypeError, r"stride", r"'2'"),
    *each((conv2d, avg_pool, col2im), {"stride": True}, TypeError, r"stride", r"True"),
    *each((conv2d, im2col), {"stride": None}, TypeError, r"stride", r"None"),
    *each((conv2d, im2col, max_pool), {"stride": 2**31}, ValueError, r"stride", str(2**31 - 1), str(2**31)),
    *each(SLIDING, {"dilation": 0}, ValueError, r"dilation", r"\b1\b", r"\b0\b"),
    *each(SLIDING, {"dilation": 2.0}, TypeError, r"dilation", r"2\.0"),
    *each((*CONVOLUTIONS, transpose, max_pool, avg_pool, avg_pool_backward, size), {"padding": -1}, ValueError,
          r"padding", r"\b0\b", r"-1"),
    *each((conv2d, transpose, max_pool, avg_pool), {"padding": 0.5}, TypeError, r"padding", r"0\.5"),
    *each((conv2d, transpose, max_pool, avg_pool), {"padding": None}, TypeError, r"padding", r"None"),
    *each((conv2d, max_pool, plan), {"padding": "Same"}, ValueError, r"padding", r"'same_lower'", r"'Same'"),
    *each((conv2d, max_pool), {"padding": ((1, 2, 3), (1, 1))}, ValueError, r"padding", r"\(\(1, 2, 3\), \(1, 1\)\)"),
    *each((conv2d, avg_pool), {"padding": (1, 1, 1, 1)}, ValueError, r"padding", r"\(1, 1, 1, 1\)"),
    *each((conv2d, avg_pool), {"padding": ((0, -1), (0, 0))}, ValueError, r"padding", r"-1"),
    *each((im2col, col2im), {"pad": -1}, ValueError, r"\bpad\b", r"\b0\b", r"-1"),
    *each((im2col, col2im), {"pad": 1.0}, TypeError, r"\bpad\b", r"1\.0"),
    *each((im2col, col2im), {"filter_h": 0}, ValueError, r"filter_h", r"\b1\b", r"\b0\b"),
    *each((im2col, col2im), {"filter_w": 2.5}, TypeError, r"filter_w", r"2\.5"),
    *each((im2col, col2im), {"filter_w": (2, 2)}, TypeError, r"filter_w", r"\(2, 2\)"),
    *each((max_pool, avg_pool), {"kernel_size": 0}, ValueError, r"kernel_size", r"\b1\b", r"\b0\b"),
    *each((max_pool, avg_pool), {"kernel_size": 2.0}, TypeError, r"kernel_size", r"2\.0"),
    *each((max_pool, avg_pool), {"kernel_size": None}, TypeError, r"kernel_size", r"None"),
    *each((max_pool, avg_pool), {"ceil_mode": "yes"}, TypeError, r"ceil_mode", r"'yes'"),
    *each((*CONVOLUTIONS, transpose), {"groups": 0}, ValueError, r"groups", r"\b1\b", r"\b0\b"),
    *each((*CONVOLUTIONS, transpose), {"groups": 2.0}, TypeError, r"groups", r"2\.0"),
    *each(CONVOLUTIONS, {"algorithm": "fft"}, ValueError, r"algorithm", r"'winograd'", r"'fft'"),
    *each(CONVOLUTIONS, {"algorithm": None}, TypeError, r"algorithm", r"None"),
    *each((conv2d, im2col, max_pool, avg_pool, transpose), {"x": "image"}, TypeError, r"\bx\b"),
]


def name_of(entry: Wrong) -> str:
    call, mistakes, *_ = entry
    values = (f"{name}={value.shape if isinstance(value, np.ndarray) else value!r}" for name, value in mistakes.items())
    return f"{call.__name__}-{'-'.join(values)}"


@pytest.mark.parametrize("wrong", WRONG, ids=name_of)
def test_wrong_call(wrong):
    call, mistakes, error, message = wrong
    with pytest.raises(error) as caught:
        call(**mistakes)
    for part in message:
        assert re.search(part, str(caught.value)), f"{part!r} is not in the message: {caught.value}"


@pytest.mark.parametrize("call", ALL, ids=lambda call: call.__name__)
def test_unknown_arguments(call):
    with pytest.raises(TypeError, match="paddings"):
        call(paddings=1)


# --- too large --------------------------------------------------------------------------------------------------------

SIDE = 2**30  # an image of SIDE x SIDE float32 has 2**62 bytes: still a valid shape for NumPy
FAR = 2**31 - 1

TOO_LARGE: dict[str, Callable[[], Any]] = {
    "conv2d": lambda: fastconv.conv2d(huge(1, 1, SIDE, SIDE), ones(1, 1, 3, 3)),
    "conv2d-output-over-64-bits": lambda: fastconv.conv2d(huge(1, 1, SIDE, SIDE), huge(2**20, 1, 1, 1)),
    "conv2d-padding": lambda: fastconv.conv2d(ones(1, 1, 2, 2), ones(1, 1, 1, 1), padding=FAR),
    "conv2d-weight": lambda: fastconv.conv2d(huge(1, 2**20, 1, 1), huge(SIDE, 2**20, 1, 1)),
    "conv2d-im2col": lambda: fastconv.conv2d(huge(1, 1, 2**25, 2**25), ones(1, 1, 5, 5), algorithm="im2col"),
    "conv2d_backward_data": lambda: fastconv.conv2d_backward_data(ones(1, 1, 1, 1), ones(1, 1, 1, 1),
                                                                  (1, 1, FAR, FAR), FAR),
    "conv2d_backward_weight": lambda: fastconv.conv2d_backward_weight(ones(1, 1, 1, 1), huge(1, 1, SIDE, SIDE),
                                                                      (1, 1, SIDE, SIDE)),
    "conv2d_backward": lambda: fastconv.conv2d_backward(huge(1, 1, SIDE, SIDE), huge(1, 1, SIDE, SIDE),
                                                        ones(1, 1, 1, 1)),
    "conv_transpose2d": lambda: fastconv.conv_transpose2d(ones(1, 1, 2, 2), ones(1, 1, 1, 1), stride=FAR),
    **{f"im2col-{layout}": lambda layout=layout: fastconv.im2col(huge(1, 1, SIDE, SIDE), 9, 9, layout=layout)
       for layout in ("rows", "columns", "windows", "cs231n")},
    "im2col-over-64-bits": lambda: fastconv.im2col(huge(1, 1, SIDE, SIDE), 2**20, 2**20),
    "col2im": lambda: fastconv.col2im(ones(1, 1), (1, 1, FAR, FAR), 1, 1, FAR),
    "max_pool2d": lambda: fastconv.max_pool2d(huge(1, 1, SIDE, SIDE), 2, 1),
    "max_pool2d-dilation": lambda: fastconv.max_pool2d(huge(1, 1, SIDE, SIDE), 2, 1, dilation=2),
    "max_pool2d-indices": lambda: fastconv.max_pool2d(huge(1, 1, SIDE, SIDE, dtype="int8"), 2, 1, return_indices=True),
    "max_pool2d_backward": lambda: fastconv.max_pool2d_backward(huge(1, 1, 1, 1), np.zeros((1, 1, 1, 1), int),
                                                                (1, 1, FAR, FAR)),
    "avg_pool2d": lambda: fastconv.avg_pool2d(huge(1, 1, SIDE, SIDE), 2, 1),
    "avg_pool2d-excluding-padding": lambda: fastconv.avg_pool2d(huge(1, 1, SIDE, SIDE), 2, 1, count_include_pad=False,
                                                                dilation=2),
    "avg_pool2d-integers": lambda: fastconv.avg_pool2d(huge(1, 1, SIDE, SIDE, dtype="int8"), 2, 1),
    "avg_pool2d_backward": lambda: fastconv.avg_pool2d_backward(huge(1, 1, 1, 1), (1, 1, FAR, FAR), 1, FAR),
    "global_avg_pool2d": lambda: fastconv.global_avg_pool2d(huge(1, 1, SIDE, SIDE)),
    "global_max_pool2d": lambda: fastconv.global_max_pool2d(huge(1, 1, SIDE, SIDE)),
    "pack_weight": lambda: fastconv.pack_weight(huge(SIDE, 1, SIDE, 1), (1, 1, SIDE, 1)),
}


@pytest.mark.parametrize("call", TOO_LARGE.values(), ids=TOO_LARGE)
def test_too_large_is_a_memory_error_before_it_is_allocated(call, engine, monkeypatch):
    def large(shape: Any) -> bool:
        return int(np.prod(shape, dtype=object)) > 2**40

    def guarded(allocate: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(shape: Any, *args: Any, **kwargs: Any) -> Any:
            assert not large(shape), f"{allocate.__name__} was asked for {shape}"
            return allocate(shape, *args, **kwargs)
        return attempt

    for name in ("empty", "zeros", "full", "ones"):
        monkeypatch.setattr(np, name, guarded(getattr(np, name)))
    with pytest.raises(MemoryError, match=r"\d"):
        call()


def test_scratch_that_is_too_large_is_a_memory_error(engine, monkeypatch):
    """Where input and output are small and the column matrix is not; on a machine that is said to have a megabyte."""
    x, weight = ones(1, 4, 40, 40), ones(1, 4, 15, 15)
    fastconv.conv2d(x, weight, algorithm="im2col")
    fastconv.release_memory()
    monkeypatch.setattr(memory, "physical_memory", lambda: 10**6)
    with pytest.raises(MemoryError, match=r"2,433,600.*1,000,000"):
        fastconv.conv2d(x, weight, algorithm="im2col")
