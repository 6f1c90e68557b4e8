"""Every argument of every function is given what it cannot be: the right exception, which names it, and nothing else.

Afterwards the inputs are what they were, nobody holds a reference to them, and the library works. The table of single
mistakes with all that their messages must say is in test_errors.py; this one is made from the functions' signatures.
"""

from __future__ import annotations

import gc
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastconv

nan = float("nan")


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


#: Of each function a call that works: its arrays first.
CALLS: dict[str, dict[str, Any]] = {
    "im2col": {"x": ones(2, 4, 8, 9), "filter_h": 3, "filter_w": 2},
    "col2im": {"col": ones(96, 24), "input_shape": (2, 4, 8, 9), "filter_h": 3, "filter_w": 2},
    "conv2d": {"x": ones(2, 4, 8, 9), "weight": ones(6, 2, 3, 3), "bias": ones(6), "groups": 2},
    "conv2d_backward": {"dout": ones(2, 6, 6, 7), "x": ones(2, 4, 8, 9), "weight": ones(6, 2, 3, 3), "groups": 2},
    "conv2d_backward_data": {"dout": ones(2, 6, 6, 7), "weight": ones(6, 2, 3, 3), "input_shape": (2, 4, 8, 9), "groups": 2},
    "conv2d_backward_weight": {"dout": ones(2, 6, 6, 7), "x": ones(2, 4, 8, 9), "weight_shape": (6, 2, 3, 3), "groups": 2},
    "conv_transpose2d": {"x": ones(2, 4, 8, 9), "weight": ones(4, 3, 3, 3), "bias": ones(3)},
    "max_pool2d": {"x": ones(2, 4, 8, 9), "kernel_size": 3},
    "max_pool2d_backward": {"dout": ones(2, 4, 2, 3), "indices": np.zeros((2, 4, 2, 3), int), "input_shape": (2, 4, 8, 9)},
    "avg_pool2d": {"x": ones(2, 4, 8, 9), "kernel_size": 3},
    "avg_pool2d_backward": {"dout": ones(2, 4, 2, 3), "input_shape": (2, 4, 8, 9), "kernel_size": 3},
    "global_avg_pool2d": {"x": ones(2, 4, 8, 9)},
    "global_max_pool2d": {"x": ones(2, 4, 8, 9)},
    "adaptive_avg_pool2d": {"x": ones(2, 4, 8, 9), "output_size": (3, 4)},
    "adaptive_avg_pool2d_backward": {"dout": ones(2, 4, 3, 4), "input_shape": (2, 4, 8, 9)},
    "adaptive_max_pool2d": {"x": ones(2, 4, 8, 9), "output_size": (3, 4)},
    "lp_pool2d": {"x": ones(2, 4, 8, 9), "norm_type": 2, "kernel_size": 3},
    "lp_pool2d_backward": {"dout": ones(2, 4, 2, 3), "x": ones(2, 4, 8, 9), "norm_type": 2, "kernel_size": 3},
    "max_unpool2d": {"x": ones(2, 4, 2, 3), "indices": np.zeros((2, 4, 2, 3), int), "kernel_size": 3},
    "max_unpool2d_backward": {"dout": ones(2, 4, 8, 9), "indices": np.zeros((2, 4, 2, 3), int)},
    "pack_weight": {"weight": ones(6, 2, 3, 3), "input_shape": (2, 4, 8, 9), "groups": 2},
    "plan_conv2d": {"x_shape": (2, 4, 8, 9), "weight_shape": (6, 2, 3, 3), "groups": 2},
    "conv_output_size": {"size": (8, 9), "kernel": 3},
}

#: What no array may be, by what it should be called: (value, exception).
ARRAYS: dict[str, Callable[[np.ndarray], tuple[Any, type[Exception]]]] = {
    "rank too high": lambda a: (a[None, None, None, None], ValueError),
    "rank too low": lambda a: (a.ravel()[:2] if a.ndim > 1 else a[0], ValueError),
    "objects": lambda a: (a.astype(object), TypeError),
    "strings": lambda a: (a.astype(str), TypeError),
    "dates": lambda a: (np.zeros(a.shape, "M8[s]"), TypeError),
    "records": lambda a: (np.zeros(a.shape, "f4,f4"), TypeError),
    "masked": lambda a: (np.ma.masked_array(a, a > 0), TypeError),
    "a dict": lambda a: ({"a": 1}, TypeError),
    "text": lambda a: ("image", TypeError),
    "ragged": lambda a: ([[1.0, 2.0], [3.0]], ValueError),
    "none": lambda a: (None, TypeError),
    "one larger": lambda a: (np.ones([n + 1 for n in a.shape], a.dtype), ValueError),
    "empty": lambda a: (np.ones([0 for _ in a.shape], a.dtype), ValueError),
}

#: Fits any function alone, or may be left out.
FITS = {("im2col", "x", "one larger"), ("max_pool2d", "x", "one larger"), ("avg_pool2d", "x", "one larger"),
        ("global_avg_pool2d", "x", "one larger"), ("global_max_pool2d", "x", "one larger"),
        *((f"adaptive_{kind}_pool2d", "x", "one larger") for kind in ("avg", "max")), ("lp_pool2d", "x", "one larger"),
        ("conv2d", "bias", "none"), ("conv_transpose2d", "bias", "none"),
        *((f"adaptive_{kind}_pool2d", "output_size", "a pair with none") for kind in ("avg", "max"))}

#: What is wrong in another way than elsewhere: unpooling takes no names, and its size is a shape, which is no number.
OTHERWISE: dict[tuple[str, str, str], type[Exception]] = {
    ("max_unpool2d", "padding", "text"): TypeError,
    **{("max_unpool2d", "output_size", what): TypeError for what in ("negative", "huge", "over 64 bits", "zero")}}

#: What no int may be, and no pair of ints.
NUMBERS: dict[str, tuple[Any, type[Exception]]] = {
    "nan": (nan, TypeError), "a float": (2.0, TypeError), "infinite": (float("inf"), TypeError), "text": ("3", TypeError),
    "a bool": (True, TypeError), "complex": (1j, TypeError), "an object": (object(), TypeError), "a dict": ({}, TypeError),
    "negative": (-1, ValueError), "huge": (2**31, ValueError), "over 64 bits": (2**70, ValueError),
    "an array of floats": (np.array([1.0, 2.0]), TypeError), "numpy's nan": (np.float32("nan"), TypeError),
}
SCALARS = {"none": (None, TypeError), "a pair": ((1, 1), TypeError), "a list": ([2], TypeError)}
PAIRS = {"three": ((1, 1, 1), ValueError), "one": ((1,), ValueError), "nothing": ((), ValueError),
         "a pair with nan": ((1, nan), TypeError), "a pair with none": ((None, 1), TypeError),
         "a pair with a negative": ((1, -3), ValueError), "a pair with a huge one": ((2**40, 1), ValueError)}
SHAPES: dict[str, tuple[Any, type[Exception]]] = {
    "none": (None, TypeError), "a number": (8, TypeError), "text": ("2489", TypeError), "short": ((8, 9), ValueError),
    "long": ((1, 2, 4, 8, 9), ValueError), "negative": ((2, 4, -8, 9), ValueError), "floats": ((2.0, 4.0, 8.0, 9.0), TypeError),
    "nan": ((2, 4, nan, 9), TypeError), "huge": ((2, 4, 2**40, 9), ValueError), "no rows": ((2, 4, 0, 9), ValueError),
    "another": ((2, 3, 7, 5), ValueError),
}
FLAGS: dict[str, tuple[Any, type[Exception]]] = {"none": (None, TypeError), "one": (1, TypeError), "text": ("no", TypeError)}
NAMES: dict[str, tuple[Any, type[Exception]]] = {
    "none": (None, TypeError), "a number": (1, TypeError), "unknown": ("fast", ValueError), "bytes": (b"auto", TypeError),
    "a list": (["auto"], TypeError)}

KINDS: dict[str, dict[str, tuple[Any, type[Exception]]]] = {
    "filter_h": {**NUMBERS, **SCALARS, "zero": (0, ValueError)}, "filter_w": {**NUMBERS, **SCALARS, "zero": (0, ValueError)},
    "groups": {**NUMBERS, **SCALARS, "zero": (0, ValueError), "three": (3, ValueError)},
    "stride": {**NUMBERS, **PAIRS, "zero": (0, ValueError)}, "dilation": {**NUMBERS, **PAIRS, "zero": (0, ValueError)},
    "kernel_size": {**NUMBERS, **PAIRS, "zero": (0, ValueError), "none": (None, TypeError)},
    "kernel": {**NUMBERS, **PAIRS, "zero": (0, ValueError), "none": (None, TypeError)},
    "padding": {**NUMBERS, **PAIRS, "none": (None, TypeError), "text": ("around", ValueError)},
    "pad": {**NUMBERS, **PAIRS, "none": (None, TypeError), "text": ("around", ValueError)},
    "output_padding": {**NUMBERS, **PAIRS, "none": (None, TypeError)},
    "divisor_override": {name: value for name, value in NUMBERS.items() if name != "negative"} | {"zero": (0, ValueError)},
    "input_shape": SHAPES, "weight_shape": SHAPES, "x_shape": SHAPES,
    "ceil_mode": FLAGS, "return_indices": FLAGS, "count_include_pad": FLAGS, "strict": FLAGS,
    "algorithm": NAMES, "layout": NAMES, "activation": {name: value for name, value in NAMES.items() if name != "none"},
    "direction": {"unknown": ("upward", ValueError)}, "dtype": {"text": ("U4", TypeError), "objects": (object, TypeError)},
    "need": {"unknown": (("dy",), ValueError), "a number": (3, TypeError)},
    "size": {**NUMBERS, **PAIRS, "zero": (0, ValueError)},
    "output_size": {**NUMBERS, **PAIRS, "zero": (0, ValueError)},
    "norm_type": {"none": (None, TypeError), "text": ("2", TypeError), "bytes": (b"2", TypeError), "a bool": (True, TypeError),
                  "numpy's bool": (np.True_, TypeError), "an array": (ones(2), TypeError), "nan": (nan, ValueError),
                  "complex": (1j, TypeError), "a date": (np.datetime64("2020-01-01"), TypeError), "zero": (0, ValueError),
                  "negative": (-2.0, ValueError), "over a float": (10**400, ValueError)},
    "padding_mode": NAMES,
}

Wrong = tuple[str, str, str, Any, type[Exception]]


def wrong_calls() -> Iterator[Wrong]:
    for function, good in CALLS.items():
        for name, value in good.items():
            if isinstance(value, np.ndarray):
                for what, make in ARRAYS.items():
                    if (function, name, what) not in FITS:
                        yield (function, name, what, *make(value))
        for name in inspect.signature(getattr(fastconv, function)).parameters:
            for what, (value, error) in KINDS.get(name, {}).items():
                if (function, name, what) not in FITS:
                    yield function, name, what, value, OTHERWISE.get((function, name, what), error)
        if "out" in inspect.signature(getattr(fastconv, function)).parameters:
            yield from wrong_outs(function)


def wrong_outs(function: str) -> Iterator[Wrong]:
    good = getattr(fastconv, function)(**CALLS[function])
    read_only = good.copy()
    read_only.flags.writeable = False
    first = next(value for value in CALLS[function].values() if isinstance(value, np.ndarray))
    over = np.lib.stride_tricks.as_strided(first, good.shape, first.strides[:1] * good.ndim, writeable=True) \
        if good.dtype == first.dtype and first.size * 4 > sum(first.strides[0] * (n - 1) for n in good.shape) else None
    for what, value, error in (
            ("read-only", read_only, ValueError), ("larger", np.ones([n + 1 for n in good.shape], good.dtype), ValueError),
            ("flat", good.ravel(), ValueError), ("of another dtype", good.astype("c8"), TypeError),
            ("byte-swapped", good.astype(good.dtype.newbyteorder()), TypeError), ("a list", good.tolist(), TypeError),
            ("a memoryview", memoryview(good), TypeError), ("masked", np.ma.masked_array(good), TypeError),
            ("one cell many times", np.lib.stride_tricks.as_strided(good, good.shape, (0,) * good.ndim), ValueError),
            ("over the input", over, ValueError)):
        if value is not None:
            yield function, "out", what, value, error


def indices(value: Any) -> np.ndarray:
    places = np.zeros((2, 4, 2, 3), np.asarray(value).dtype)
    places[1, 2, 1, 1] = value
    return places


MORE: list[Wrong] = [
    *(("max_pool2d_backward", "indices", what, indices(value), error) for what, value, error in (
        ("behind the plane", 72, ValueError), ("before the plane", -1, ValueError), ("the largest", 2**63 - 1, ValueError),
        ("the smallest", -2**63, ValueError), ("the largest unsigned", np.uint64(2**64 - 1), ValueError),
        ("floats", 1.0, TypeError), ("bools", True, TypeError), ("nan", nan, TypeError))),
    *(("max_unpool2d", "indices", what, indices(value), error) for what, value, error in (
        ("behind the plane", 54, ValueError), ("before the plane", -1, ValueError), ("floats", 1.0, TypeError))),
    *(("max_unpool2d_backward", "indices", what, indices(value), error) for what, value, error in (
        ("behind the plane", 72, ValueError), ("the largest unsigned", np.uint64(2**64 - 1), ValueError))),
    ("max_unpool2d", "output_size", "a stride away", (9, 9), ValueError),
    *((f"adaptive_{kind}_pool2d", "output_size", "more than memory", (2**31 - 1, 7), MemoryError) for kind in ("avg", "max")),
    ("adaptive_avg_pool2d_backward", "input_shape", "more than memory", (2, 4, 2**31 - 1, 2**31 - 1), MemoryError),
    ("conv2d", "weight", "of other groups", ones(6, 4, 3, 3), ValueError),
    ("conv2d", "weight", "that groups do not divide", ones(5, 2, 3, 3), ValueError),
    ("conv2d", "bias", "of two axes", ones(6, 1), ValueError),
    ("conv2d", "x", "of no channels", ones(2, 0, 8, 9), ValueError),
    ("im2col", "pad_value", "text", "0", TypeError), ("im2col", "pad_value", "an array", np.zeros(2), TypeError),
    ("im2col", "pad_value", "complex", 1j, ValueError), ("im2col", "pad_value", "none", None, TypeError),
]

WRONG = [*wrong_calls(), *MORE]

#: A name that may stand for another in a message: what the geometry says of shapes that do not fit together.
SAYS = {"groups": "groups|channels|filters", "weight_shape": "weight_shape|groups|dout|channels", "size": "size|height|width",
        "input_shape": "input_shape|dout|col|channels|groups", "x_shape": r"x_shape|x\b|channels|groups",
        "dout": "dout|input_shape", "kernel": "kernel|window", "filter_h": "filter_h|window|height", "padding": "padding",
        "filter_w": "filter_w|window|width", "x": r"\bx\b|dout|weight|groups|channel|output height",
        "weight": "weight|groups|dout|channels", "col": "col", "indices": "indices", "kernel_size": "kernel_size|window"}


def test_the_table_is_long_enough():
    assert len(WRONG) >= 150
    assert {function for function, *_ in WRONG} == set(CALLS)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: f"{wrong[0]}-{wrong[1]}-{wrong[2]}".replace(" ", "_"))
def test_wrong_call(wrong):
    function, name, _what, value, error = wrong
    call, good = getattr(fastconv, function), CALLS[function]
    arguments = {**good, name: value}
    arrays = [array for array in arguments.values() if type(array) is np.ndarray]
    before = [array.copy() for array in arrays]
    references = [sys.getrefcount(array) for array in arrays]
    with pytest.raises(error) as caught:
        call(**arguments)
    message = str(caught.value)
    assert type(caught.value) is error
    assert re.search(SAYS.get(name, rf"\b{name}\b"), message), message
    del caught
    gc.collect(0)
    assert [sys.getrefcount(array) for array in arrays] == references
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    call(**good)


@pytest.mark.parametrize("function", CALLS)
def test_the_call_without_a_mistake(function):
    getattr(fastconv, function)(**CALLS[function])
