"""Threads: the same bits for any number of them (rule 12), calls from many Python threads and after fork (15)."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import CONV_CASES, CORE_CONV_CASES, CORE_POOL_CASES, POOL_CASES
from processes import FORKING, output_of

import fastconv
from fastconv import dispatch, functional
from fastconv.options import backend_available

THREADS = (2, 3, 5, 8)
DTYPES = ("float32", "float64")


@pytest.fixture
def no_call_is_too_small(monkeypatch):
    """Let every call have all its threads, however little there is to do: the cases are small."""
    monkeypatch.setattr(dispatch, "SERIAL_FLOPS", 0)
    monkeypatch.setattr(dispatch, "SERIAL_ELEMENTS", 0)
    monkeypatch.setattr(functional, "_small_calls", {})


def assert_same_bits(call: Callable[[], np.ndarray | None]) -> None:
    """Fail unless the result is the same with 1 thread and with several, and again with 1."""
    with fastconv.options(num_threads=1):
        want = call()
    for threads in (*THREADS, 1):
        with fastconv.options(num_threads=threads):
            got = call()
        assert (got is None) == (want is None)
        if got is not None:
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8), err_msg=f"with {threads} threads")


def unless_refused(call: Callable[..., Any], *args: Any, **how: Any) -> Callable[[], Any]:
    """The call, or None where the algorithm cannot do it (which test_conv.py checks)."""
    def attempt() -> Any:
        try:
            return call(*args, **how)
        except NotImplementedError:
            assert how["algorithm"] != "auto"
            return None
    return attempt


@pytest.mark.usefixtures("no_call_is_too_small")
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_rule_12_convolutions_give_the_same_bits(case, conv_engine):
    rng = np.random.default_rng(0)
    shape = fastconv.plan_conv2d(case.x, case.weight, **case.arguments).output_shape
    how = {**case.arguments, "algorithm": conv_engine.algorithm}
    for dtype in DTYPES if case.core else DTYPES[:1]:
        x, weight, dout = (rng.standard_normal(size).astype(dtype) for size in (case.x, case.weight, shape))
        assert_same_bits(unless_refused(fastconv.conv2d, x, weight, **how))
        assert_same_bits(unless_refused(fastconv.conv2d_backward_data, dout, weight, case.x, **how))
        assert_same_bits(unless_refused(fastconv.conv2d_backward_weight, dout, x, case.weight, **how))


@pytest.mark.usefixtures("no_call_is_too_small")
def test_rule_12_bias_gradients_give_the_same_bits(engine):
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 1, 90, 101), (5, 1, 1, 1)))
    dout = rng.standard_normal((3, 5, 90, 101)).astype(np.float32)
    assert_same_bits(lambda: fastconv.conv2d_backward(dout, x, weight, need=("db",))[2])


@pytest.mark.usefixtures("no_call_is_too_small")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_rule_12_poolings_give_the_same_bits(case, dtype, engine):
    x = np.random.default_rng(0).standard_normal(case.x).astype(dtype)
    out, indices = fastconv.max_pool2d(x, **case.arguments, return_indices=True)
    assert_same_bits(lambda: fastconv.max_pool2d(x, **case.arguments))
    assert_same_bits(lambda: fastconv.max_pool2d(x, **case.arguments, return_indices=True)[1])
    assert_same_bits(lambda: fastconv.max_pool2d_backward(out, indices, case.x))
    assert_same_bits(lambda: fastconv.avg_pool2d(x, **case.arguments))
    assert_same_bits(lambda: fastconv.avg_pool2d_backward(out, case.x, **case.arguments))


@pytest.mark.usefixtures("no_call_is_too_small")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "columns", "windows", "cs231n"])
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_rule_12_lowering_gives_the_same_bits(case, layout, dtype, engine):
    x = np.random.default_rng(0).standard_normal(case.x).astype(dtype)
    how = {"dilation": case.dilation, "layout": layout}
    col = fastconv.im2col(x, *case.window, **how)
    assert_same_bits(lambda: fastconv.im2col(x, *case.window, **how))
    assert_same_bits(lambda: fastconv.col2im(col, case.x, *case.window, **how))


def test_rule_12_the_threads_are_there(no_call_is_too_small):
    """Otherwise the tests above would compare one thread with itself."""
    with fastconv.options(num_threads=8):
        plan = fastconv.plan_conv2d((1, 1, 4, 4), (1, 1, 3, 3))
        assert plan._budget.threads == (8 if backend_available("cython") else 1)
        assert dispatch.threads(1) == plan._budget.threads


def test_rule_12_the_choice_does_not_look_at_the_threads():
    for case in CONV_CASES:
        plans = set()
        for threads in (1, 2, 64):
            with fastconv.options(num_threads=threads):
                plans |= {fastconv.plan_conv2d(case.x, case.weight, **case.arguments, direction=direction).algorithm
                          + direction for direction in ("forward", "backward_data", "backward_weight")}
        assert len(plans) == 3, (case, plans)


# --- rule 15: many Python threads -------------------------------------------------------------------------------------


def jobs() -> list[Callable[[], np.ndarray]]:
    """Calls of every kind and many sizes: each has scratch memory of another size."""
    rng = np.random.default_rng(0)
    found: list[Callable[[], np.ndarray]] = []
    for case in CORE_CONV_CASES:
        x, weight = rng.standard_normal(case.x).astype(np.float32), rng.standard_normal(case.weight).astype(np.float32)
        dout = np.ones(fastconv.plan_conv2d(case.x, case.weight, **case.arguments).output_shape, np.float32)
        for algorithm in ("auto", "direct", "im2col"):
            how = {**case.arguments, "algorithm": algorithm}
            found.append(lambda x=x, w=weight, how=how: fastconv.conv2d(x, w, **how))
            found.append(lambda d=dout, w=weight, s=case.x, how=how: fastconv.conv2d_backward_data(d, w, s, **how))
            found.append(lambda d=dout, x=x, s=case.weight, how=how: fastconv.conv2d_backward_weight(d, x, s, **how))
        found.append(lambda x=x, case=case: fastconv.im2col(x, *case.window, dilation=case.dilation))
    for pool in CORE_POOL_CASES:
        x = rng.standard_normal(pool.x)
        found.append(lambda x=x, how=pool.arguments: fastconv.max_pool2d(x, **how))
        found.append(lambda x=x, how=pool.arguments: fastconv.avg_pool2d(x, **how))
    return found


def test_rule_15_many_python_threads_at_once(engine):
    calls = jobs()
    want = [call() for call in calls]
    start = threading.Barrier(8)

    def work(seed: int) -> list[int]:
        """Indices of the calls that gave something else than alone."""
        order = np.random.default_rng(seed).permutation(len(calls))
        start.wait()
        with fastconv.options(backend=engine.backend, num_threads=1 + seed % 3):  # a block's settings are its thread's
            for round_ in range(3):
                if round_ == 1 and seed == 0:
                    fastconv.release_memory()
                wrong = [int(i) for i in order if not np.array_equal(calls[i](), want[i])]
                if wrong:
                    return wrong
        return []

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [[]] * 8


def while_it_runs(call: Callable[[], Any]) -> int:
    """How often the main thread got to run Python code between the begin and the end of `call` in another thread.

    With a switch interval of a minute nobody hands over the GIL but who releases it: not a matter of timing.
    """
    stamps: list[float] = []
    span: list[float] = []
    interval = sys.getswitchinterval()

    def work() -> None:
        span.append(time.perf_counter())
        call()
        span.append(time.perf_counter())

    worker = threading.Thread(target=work)
    sys.setswitchinterval(60)
    try:
        worker.start()
        while worker.is_alive():
            stamps.append(time.perf_counter())
            time.sleep(0.0005)
    finally:
        sys.setswitchinterval(interval)
        worker.join()
    return sum(span[0] < stamp < span[1] for stamp in stamps)


def test_rule_15_the_gil_is_released_during_the_work(engine):
    if engine.backend == "numpy":
        pytest.skip("NumPy decides about that in the numpy backend")
    x, weight = np.ones((4, 64, 64, 64), np.float32), np.ones((64, 64, 3, 3), np.float32)
    out, image = np.ones((4, 64, 62, 62), np.float32), np.ones((8, 64, 128, 128), np.float32)
    with fastconv.options(num_threads=1):
        fastconv.conv2d(x, weight)
    calls = {
        "forward": lambda: fastconv.conv2d(x, weight, algorithm="direct"),
        "backward data": lambda: fastconv.conv2d_backward_data(out, weight, x.shape, algorithm="direct"),
        "backward weight": lambda: fastconv.conv2d_backward_weight(out, x, weight.shape, algorithm="direct"),
        "im2col": lambda: fastconv.im2col(image, 3, 3),
        "max pooling": lambda: fastconv.max_pool2d(image, 3, 1, 1),
        "average pooling": lambda: fastconv.avg_pool2d(image, 3, 1, 1),
    }
    assert [name for name, call in calls.items() if while_it_runs(call) == 0] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("backend", ["cython", "numpy"])
def test_rule_15_after_fork(backend):
    """A child of a process that used threads: in the thread that forked, and in new threads of the child."""
    if not backend_available(backend):
        pytest.skip(f"{backend} is not installed")
    printed = output_of(FORKING + """
import numpy as np
import fastconv

rng = np.random.default_rng(0)
x, w = rng.standard_normal((4, 8, 40, 41)).astype("f4"), rng.standard_normal((9, 8, 3, 3)).astype("f4")

def compute():
    out = [fastconv.conv2d(x, w, algorithm=name) for name in ("direct", "im2col")]
    out += fastconv.conv2d_backward(out[0], x, w)
    return out + [fastconv.max_pool2d(x, 2), fastconv.avg_pool2d(x, 3), fastconv.im2col(x, 3, 3)]

def same():
    return all(np.array_equal(a, b) for a, b in zip(compute(), want, strict=True))

fastconv.options(num_threads=3)
want = compute()
child(same)
child(lambda: same() and in_threads())
assert in_threads()
child(in_threads)
child(lambda: child(same) or same())  # a grandchild
assert same()
print("same")
""", FASTCONV_BACKEND=backend)
    assert printed == "same\n"
