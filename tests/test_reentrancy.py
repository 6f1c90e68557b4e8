"""A call in the middle of a call: a signal's handler, or a finalizer, may use fastconv wherever Python code of it runs.

Before each line of Python in fastconv another call is made on the same thread, which asks for as much scratch and writes
to it. Neither call may see anything of the other, nor wait for it.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from processes import output_of

import fastconv
from fastconv import dispatch

PACKAGE = str(Path(fastconv.__file__).parent)

Call = Callable[[float], list[np.ndarray]]


def calls(algorithms: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, Call]]:
    """Calls that are made twice, on inputs times a factor: with 1 to be interrupted, with others to interrupt."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 3, 13, 12)), rng.standard_normal((4, 3, 3, 3))
    dout = rng.standard_normal((2, 4, 13, 12))
    how = {"padding": 1}
    # a limit cuts the column matrix into tiles of rows, so that its piece of scratch is filled several times
    for limit in (None, 20_000):
        for name in algorithms["forward"]:
            if limit is None or name == "im2col":
                yield f"forward {name} {limit}", lambda f, a=name, b=limit: [limited(
                    b, fastconv.conv2d, x * f, weight, algorithm=a, **how)]
        for name in algorithms["backward_data"]:
            if limit is None or name == "im2col":
                yield f"backward_data {name} {limit}", lambda f, a=name, b=limit: [limited(
                    b, fastconv.conv2d_backward_data, dout * f, weight, x.shape, algorithm=a, **how)]
        for name in algorithms["backward_weight"]:
            if limit is None or name == "im2col":
                yield f"backward_weight {name} {limit}", lambda f, a=name, b=limit: [limited(
                    b, fastconv.conv2d_backward_weight, dout * f, x, weight.shape, algorithm=a, **how)]
    if "winograd" in algorithms["forward"]:  # through the phases of the image
        many = rng.standard_normal((4, 3, 5, 5))
        yield "strided winograd", lambda f: [fastconv.conv2d(x * f, many, stride=2, padding=2, algorithm="winograd")]
    yield "backward", lambda f: list(fastconv.conv2d_backward(dout * f, x, weight, **how))
    yield "integers", lambda f: [fastconv.conv2d((x * f * 9).astype(int), (weight * 9).astype(int), **how)]
    yield "infinite", lambda f: [fastconv.conv2d_backward_data(dout * f, weight * np.inf, x.shape, **how)]
    for layout in ("rows", "cs231n"):
        yield f"lowering {layout}", lambda f, layout=layout: [fastconv.col2im(fastconv.im2col(
            x * f, 3, 3, layout=layout), x.shape, 3, 3, layout=layout)]
    yield "maximum", lambda f: list(fastconv.max_pool2d(x * f, 3, 2, 1, return_indices=True))
    places = fastconv.max_pool2d(x, 2, return_indices=True)[1]
    yield "maximum's gradient", lambda f: [fastconv.max_pool2d_backward(x[:, :, ::2, ::2][:, :, :6] * f, places, x.shape)]
    yield "average", lambda f: [fastconv.avg_pool2d(x * f, 3, 2, 1)]
    yield "average's gradient", lambda f: [fastconv.avg_pool2d_backward(dout * f, dout.shape, 3, 1, 1)]


def limited(limit: int | None, function: Callable[..., np.ndarray], *args: Any, **how: Any) -> np.ndarray:
    if limit is None:
        return function(*args, **how)
    with fastconv.options(workspace_limit=limit):
        return function(*args, **how)


def interrupted(call: Callable[[], Any], interrupt: Callable[[], None]) -> tuple[Any, int]:
    """What `call` returns where `interrupt` runs before each line of fastconv and after each function, and how often it ran.

    Each place twice, the later ones of a loop not.
    """
    seen: Counter[tuple[Any, ...]] = Counter()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        place = frame.f_code, frame.f_lineno, event
        seen[place] += 1
        if seen[place] <= 2:
            interrupt()  # tracing is off in here
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = call()
    finally:
        sys.settrace(before)
    return result, len(seen)


def test_a_call_within_a_call(engine, monkeypatch):
    """Each call, interrupted everywhere by itself on other inputs and by one whose scratch is larger."""
    if engine.isa and engine.isa != fastconv.native.available_isas()[0]:
        pytest.skip("the Python code of all instruction sets is the same")
    fastconv.release_memory()
    algorithms = {operation: dispatch.algorithms(operation, engine.backend)
                  for operation in ("forward", "backward_data", "backward_weight")}
    larger = np.full((1, 3, 20, 20), 5.0), np.full((4, 3, 3, 3), 7.0)
    wrong = []
    for name, call in calls(algorithms):
        if engine.backend == "numpy" and "im2col" not in name:
            continue  # the reference takes no scratch
        for serial in (2**60, 0):  # no more than one thread, and all of them
            monkeypatch.setattr(dispatch, "SERIAL_FLOPS", serial)
            want, want_inside = call(1.0), call(2.5)

            def interrupt(call=call, want_inside=want_inside, name=name):
                if not same(call(2.5), want_inside):
                    wrong.append(f"the inner call of {name}")

            got, count = interrupted(lambda call=call: call(1.0), interrupt)
            assert count > 10
            if not same(got, want):
                wrong.append(name)
            got, _ = interrupted(lambda call=call: call(1.0), lambda: fastconv.conv2d(*larger, algorithm="im2col"))
            if not same(got, want):
                wrong.append(f"{name}, by a larger one")
    assert not wrong


def same(got: list[Any], want: list[Any]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals")
def test_handlers_of_signals(engine):
    """The same by real signals, for a second."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled by the main thread")
    printed = output_of('''
        import signal, sys, time
        import numpy as np
        import fastconv

        fastconv.options(backend=sys.argv[1], workspace_limit=60_000)
        if sys.argv[2]:
            fastconv.native.isa, fastconv.native.kernels = sys.argv[2], fastconv.native.load(sys.argv[2])
        rng = np.random.default_rng(0)
        x, weight = rng.standard_normal((3, 4, 24, 24)), rng.standard_normal((6, 4, 3, 3))

        def call(factor):
            y = fastconv.conv2d(x * factor, weight, padding=1, algorithm="im2col")
            return y, *fastconv.conv2d_backward(y, x, weight, padding=1, algorithm="im2col")

        want, inside = call(1.0), call(2.0)
        results = {"handler": [], "main": []}

        def handler(number, frame):
            results["handler"].append(all(map(np.array_equal, call(2.0), inside)))
            signal.setitimer(signal.ITIMER_REAL, 0.005)  # not while it runs: on a busy machine it would never get out

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        end = time.monotonic() + 1
        while time.monotonic() < end:
            results["main"].append(all(map(np.array_equal, call(1.0), want)))
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        print({name: (all(found), len(found) > 3) for name, found in results.items()})
    ''', engine.backend, engine.isa)
    assert printed == "{'handler': (True, True), 'main': (True, True)}\n"
