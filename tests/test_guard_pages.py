"""No kernel reads or writes outside its arrays: arrays that end, or begin, at a page that nobody may touch.

A kernel that reads one element too many usually gets away with it; next to an unmapped page it is a segmentation fault.
So every operation runs on every case twice: with all arrays (inputs, output, scratch, what fastconv allocates for results)
ending at such a page, and with all of them beginning behind one. Inputs lie in pages that may not be written to. A child
process does it, so that a fault is a failure that names the call.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import math
import mmap
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CONV_CASES, CORE_CONV_CASES, CORE_POOL_CASES, LOWERING_CASES, POOL_CASES, TRANSPOSE_CASES
from processes import start

import fastconv
from fastconv import memory
from fastconv.functional import matrix_product, pooled_conv2d, pooled_conv2d_backward, relu_backward
from fastconv.geometry import LAYOUTS

PAGE = mmap.PAGESIZE
NO_ACCESS, READ, WRITE = 0, 1, 3  # PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE
LIBC = ctypes.CDLL(None, use_errno=True)
SIDES = ("after", "before")


class Guarded:
    """A stretch of memory between two unmapped pages, for one array at a time."""

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        self._start = self._size = 0

    def _protect(self, start: int, size: int, access: int) -> None:
        if LIBC.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), access):
            raise OSError(ctypes.get_errno(), "mprotect")

    def _reserve(self, nbytes: int) -> None:
        self._size = 2 * -(-max(nbytes, 1) // PAGE) * PAGE
        self._map = mmap.mmap(-1, self._size + 2 * PAGE)  # what was there before stays mapped: arrays may point to it
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + PAGE
        self._protect(self._start - PAGE, PAGE, NO_ACCESS)
        self._protect(self._start + self._size, PAGE, NO_ACCESS)

    def bytes(self, nbytes: int, side: str, align: int = 1) -> np.ndarray:
        """`nbytes` beside the page that lies `side` of them; what `align` asks for is left over in front of it."""
        if nbytes > self._size:
            self._reserve(nbytes)
        self._protect(self._start, self._size, WRITE)
        offset = (self._size - nbytes) // align * align if side == "after" else 0
        return np.frombuffer(self._map, np.uint8, nbytes, PAGE + offset)

    def array(self, shape: tuple[int, ...], dtype: Any, side: str) -> np.ndarray:
        dtype = np.dtype(dtype)
        count = int(np.prod(shape, dtype=int))
        return self.bytes(count * dtype.itemsize, side).view(dtype).reshape(shape)

    def copy(self, array: np.ndarray, side: str) -> np.ndarray:
        """A copy in pages that are read-only."""
        copy = self.array(array.shape, array.dtype, side)
        copy[...] = array
        self._protect(self._start, self._size, READ)
        copy.flags.writeable = False
        return copy


class Arrays:
    """Hands out guarded arrays, each in a stretch of its own, the same stretches for each call."""

    def __init__(self, side: str) -> None:
        self.side = side
        self._stretches: list[Guarded] = []
        self._used = 0
        self._scratch = Guarded()

    def begin(self) -> None:
        self._used = 0

    def _next(self) -> Guarded:
        if self._used == len(self._stretches):
            self._stretches.append(Guarded())
        self._used += 1
        return self._stretches[self._used - 1]

    def copy(self, array: np.ndarray) -> np.ndarray:
        return self._next().copy(array, self.side)

    def out(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self._next().array(shape, dtype, self.side)

    def empty(self, what: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return self.out(tuple(shape), dtype)  # in place of memory.empty

    def scratch(self, nbytes: int) -> np.ndarray:
        return self._scratch.bytes(nbytes, self.side, 64)  # as memory.scratch promises


Call = tuple[str, Callable[[], Any]]


def convolutions(arrays: Arrays, cases: Any, algorithms: dict[str, tuple[str, ...]], dtype: str) -> Iterator[Call]:
    for case in cases:
        shape = fastconv.plan_conv2d(case.x, case.weight, **case.arguments).output_shape
        x, weight, dout = (np.ones(size, dtype) for size in (case.x, case.weight, shape))
        bias = np.ones(shape[1], dtype)
        # an infinite weight takes the way for values that are not finite
        odd = np.full(case.weight, np.inf, dtype) if case.core else None
        for algorithm in algorithms["forward"]:
            how = {**case.arguments, "algorithm": algorithm}
            yield f"conv2d {case} {how}", lambda a=arrays, x=x, w=weight, b=bias, s=shape, how=how: fastconv.conv2d(
                a.copy(x), a.copy(w), a.copy(b), activation="relu", out=a.out(s, dtype), **how)
            if odd is not None:
                yield f"conv2d inf {case} {how}", lambda a=arrays, x=x, w=odd, s=shape, how=how: fastconv.conv2d(
                    a.copy(x), a.copy(w), out=a.out(s, dtype), **how)
        for algorithm in algorithms["backward_data"]:
            how = {**case.arguments, "algorithm": algorithm}
            for w in (weight,) if odd is None else (weight, odd):
                yield f"conv2d_backward_data {case} {how}", lambda a=arrays, d=dout, w=w, s=case.x, how=how: \
                    fastconv.conv2d_backward_data(a.copy(d), a.copy(w), s, out=a.out(s, dtype), **how)
        for algorithm in algorithms["backward_weight"]:
            how = {**case.arguments, "algorithm": algorithm}
            for image in (x,) if odd is None else (x, x * np.array(np.inf, dtype)):
                yield f"conv2d_backward_weight {case} {how}", \
                    lambda a=arrays, d=dout, x=image, s=case.weight, how=how: fastconv.conv2d_backward_weight(
                        a.copy(d), a.copy(x), s, out=a.out(s, dtype), **how)


def transposed(arrays: Arrays, cases: Any, dtype: str) -> Iterator[Call]:
    for case in cases:
        x, weight = np.ones(case.x, dtype), np.ones(case.weight, dtype)
        bias = np.ones(case.weight[1] * case.groups, dtype)
        shape = fastconv.conv_transpose2d(x, weight, **case.arguments).shape
        yield f"conv_transpose2d {case}", lambda a=arrays, x=x, w=weight, b=bias, s=shape, how=case.arguments: \
            fastconv.conv_transpose2d(a.copy(x), a.copy(w), a.copy(b), out=a.out(s, dtype), **how)


def lowerings(arrays: Arrays, cases: Any, dtype: str) -> Iterator[Call]:
    for case in cases:
        x = np.ones(case.x, dtype)
        for layout in LAYOUTS:
            how = {"dilation": case.dilation, "layout": layout}
            col = fastconv.im2col(x, *case.window, **how)
            yield f"im2col {case} {layout}", lambda a=arrays, x=x, s=col.shape, w=case.window, how=how: fastconv.im2col(
                a.copy(x), *w, out=a.out(s, dtype), **how)
            yield f"col2im {case} {layout}", lambda a=arrays, c=col, s=case.x, w=case.window, how=how: fastconv.col2im(
                a.copy(c), s, *w, out=a.out(s, dtype), **how)


def poolings(arrays: Arrays, cases: Any, dtype: str) -> Iterator[Call]:
    for case in cases:
        x, how = np.ones(case.x, dtype), case.arguments
        values, indices = fastconv.max_pool2d(x, **how, return_indices=True)
        yield f"max_pool2d {case}", lambda a=arrays, x=x, s=values.shape, how=how: fastconv.max_pool2d(
            a.copy(x), out=a.out(s, dtype), **how)
        yield f"max_pool2d indices {case}", lambda a=arrays, x=x, s=values.shape, how=how: fastconv.max_pool2d(
            a.copy(x), return_indices=True, out=a.out(s, dtype), **how)
        yield f"max_pool2d_backward {case}", lambda a=arrays, d=values, i=indices, s=case.x: \
            fastconv.max_pool2d_backward(a.copy(d), a.copy(i), s, out=a.out(s, dtype))
        for include in (True, False):
            average = {**how, "count_include_pad": include}
            yield f"avg_pool2d {case} {include}", lambda a=arrays, x=x, s=values.shape, how=average: fastconv.avg_pool2d(
                a.copy(x), out=a.out(s, dtype), **how)
            yield f"avg_pool2d_backward {case} {include}", lambda a=arrays, d=values, s=case.x, how=average: \
                fastconv.avg_pool2d_backward(a.copy(d), s, out=a.out(s, dtype), **how)


def paddings(arrays: Arrays, dtype: str) -> Iterator[Call]:
    """Padding that continues the image: a larger copy of it, and the gradient folded back."""
    x, weight = np.ones((2, 4, 9, 11), dtype), np.ones((6, 2, 3, 3), dtype)
    for mode in ("reflect", "replicate", "circular"):
        how = {"padding": ((3, 1), (0, 4)), "groups": 2, "stride": (1, 2), "padding_mode": mode}
        dout = fastconv.conv2d(x, weight, **how)
        yield f"conv2d {mode}", lambda a=arrays, x=x, w=weight, s=dout.shape, how=how: fastconv.conv2d(
            a.copy(x), a.copy(w), out=a.out(s, dtype), **how)
        yield f"conv2d_backward {mode}", lambda a=arrays, d=dout, x=x, w=weight, how=how: fastconv.conv2d_backward(
            a.copy(d), a.copy(x), a.copy(w), **how)


def newer_poolings(arrays: Arrays, dtype: str) -> Iterator[Call]:
    """Those without `out`: made of others, and of NumPy's indexing."""
    for size in ((7, 5), (8, 6), (1, 1), (16, 33)):
        x = np.ones((2, 3, *size), dtype)
        for out in ((3, 2), (4, 3), (1, 1), (9, 40)):
            dout = np.ones((2, 3, *out), dtype)
            yield f"adaptive_avg_pool2d {size} {out}", lambda a=arrays, x=x, out=out: \
                fastconv.adaptive_avg_pool2d(a.copy(x), out)
            yield f"adaptive_max_pool2d {size} {out}", lambda a=arrays, x=x, out=out: fastconv.adaptive_max_pool2d(
                a.copy(x), out, return_indices=True)
            yield f"adaptive_avg_pool2d_backward {size} {out}", lambda a=arrays, d=dout, s=x.shape: \
                fastconv.adaptive_avg_pool2d_backward(a.copy(d), s)
    x = np.ones((2, 3, 9, 16), dtype)
    for how in ({}, {"stride": 1}, {"ceil_mode": True}):
        dout = fastconv.lp_pool2d(x, 2, (2, 3), **how)
        yield f"lp_pool2d {how}", lambda a=arrays, x=x, how=how: fastconv.lp_pool2d(a.copy(x), 2, (2, 3), **how)
        yield f"lp_pool2d_backward {how}", lambda a=arrays, d=dout, x=x, how=how: fastconv.lp_pool2d_backward(
            a.copy(d), a.copy(x), 2, (2, 3), **how)
    values, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    yield "max_unpool2d", lambda a=arrays, v=values, i=indices, s=x.shape: fastconv.max_unpool2d(
        a.copy(v), a.copy(i), 3, 2, 1, output_size=s)
    yield "max_unpool2d_backward", lambda a=arrays, d=x, i=indices: fastconv.max_unpool2d_backward(a.copy(d), a.copy(i))


def activations(arrays: Arrays, dtype: str) -> Iterator[Call]:
    for size in (1, 7, 16, 37, 70_003):
        y = np.ones(size, dtype)
        yield f"relu_backward {size}", lambda a=arrays, y=y: relu_backward(a.copy(y), a.copy(y))


def products(arrays: Arrays, dtype: str) -> Iterator[Call]:
    for rows, terms, columns in ((1, 1, 1), (7, 300, 3), (100, 300, 100), (530, 17, 33), (33, 577, 67), (20, 100, 516)):
        for a_turned, b_turned in itertools.product((False, True), repeat=2):
            a, b = np.ones((terms, rows) if a_turned else (rows, terms), dtype), np.ones(
                (columns, terms) if b_turned else (terms, columns), dtype)
            yield f"matrix_product {rows} {terms} {columns} {a_turned} {b_turned}", \
                lambda arrays=arrays, a=a, b=b, at=a_turned, bt=b_turned: matrix_product(
                    arrays.copy(a).T if at else arrays.copy(a), arrays.copy(b).T if bt else arrays.copy(b))


def pooled_gradients(arrays: Arrays, dtype: str) -> Iterator[Call]:
    for kernel in ((1, 1), (3, 2), (3, 3), (5, 5), (2, 7), (2, 8), (1, 9), (2, 16)):
        for channels, size, padding, stride in ((1, (19, 23), 0, 1), (3, (16, 16), 1, 1), (2, (17, 31), 2, 2)):
            x, weight = np.ones((2, channels, *size), dtype), (3, channels, *kernel)
            geometry = fastconv.geometry.conv2d_geometry(x.shape, weight, stride, padding)
            y, indices = fastconv.max_pool2d(np.arange(math.prod(geometry.output_shape), dtype=dtype).reshape(
                geometry.output_shape), 2, return_indices=True)
            yield f"pooled_conv2d_backward {kernel} {channels}", lambda a=arrays, y=y, i=indices, x=x, w=weight, s=stride, \
                p=padding: pooled_conv2d_backward(a.copy(y), a.copy(i), a.copy(y), a.copy(x), w, s, p)
            more, filters = np.ones((5, channels, *size), dtype), np.ones(weight, dtype)
            yield f"pooled_conv2d {kernel} {channels}", lambda a=arrays, x=more, w=filters, s=stride, p=padding: \
                pooled_conv2d(a.copy(x), a.copy(w), a.copy(w[:, 0, 0, 0]), s, p, 1, 1, "relu", "zeros",
                              pool=(2, None, 0, 1, False), return_indices=True)


def sparse_gradients(arrays: Arrays, dtype: str) -> Iterator[Call]:
    for kernel, padding in itertools.product(((1, 2), (3, 3), (5, 5), (7, 4), (2, 8), (2, 16)), (0, 1)):
        for channels, size in ((1, (8, 17)), (3, (7, 16))):
            x, weight = np.ones((16, channels, *size), dtype), np.ones((3, channels, *kernel), dtype)
            geometry = fastconv.geometry.conv2d_geometry(x.shape, weight.shape, 1, padding)
            found = fastconv.dispatch.backend().sparse_backward_unsupported(geometry, x.dtype)
            dout = np.zeros(geometry.output_shape, dtype)
            dout.ravel()[::7] = 1
            for data in (True, False) if found is None else ():
                yield f"sparse_backward {kernel} {channels} {padding} {data}", \
                    lambda a=arrays, d=dout, x=x, w=weight, g=geometry, dx=data: \
                    fastconv.dispatch.backend().sparse_backward(
                        a.copy(d), a.copy(x), a.copy(w), g, memory.empty("dx", x.shape, x.dtype) if dx else None,
                        memory.empty("dw", w.shape, w.dtype), memory.empty("db", w.shape[:1], w.dtype), 1.0, 1)


def everything(arrays: Arrays, backend: str, core: bool) -> Iterator[Call]:
    algorithms = {operation: fastconv.dispatch.algorithms(operation, backend)
                  for operation in ("forward", "backward_data", "backward_weight")}
    for dtype in ("float32", "float64"):
        yield from convolutions(arrays, CORE_CONV_CASES if core else CONV_CASES, algorithms, dtype)
        yield from transposed(arrays, TRANSPOSE_CASES, dtype)
        yield from lowerings(arrays, CORE_CONV_CASES if core else LOWERING_CASES, dtype)
        yield from poolings(arrays, CORE_POOL_CASES if core else POOL_CASES, dtype)
        yield from paddings(arrays, dtype)
        yield from newer_poolings(arrays, dtype)
        yield from activations(arrays, dtype)
        yield from pooled_gradients(arrays, dtype)
        yield from products(arrays, dtype)
        yield from sparse_gradients(arrays, dtype)


def main(backend: str, isa: str, log: str) -> int:
    """Make every call; the log's last line is the one that was under way."""
    faulthandler.enable()
    fastconv.options(backend=backend)
    if isa:
        fastconv.native.isa, fastconv.native.kernels = isa, fastconv.native.load(isa)
    count = 0
    with open(log, "w", buffering=1) as note:
        for side in SIDES:
            arrays = Arrays(side)
            memory.scratch = arrays.scratch
            kept = memory.empty
            for name, call in everything(arrays, backend, core=backend == "numba"):
                memory.empty = arrays.empty  # for this call, not for the shapes of the next one
                note.write(f"{side} {name}\n")
                arrays.begin()
                try:
                    call()
                    count += 1
                except NotImplementedError:
                    pass  # test_conv.py tells which algorithms may refuse what
                finally:
                    memory.empty = kept
    return count


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason=f"mprotect is tried on Linux, not {sys.platform}")


@on_linux
def test_nothing_is_read_or_written_outside_the_arrays(engine, tmp_path):
    if engine.backend == "numpy":
        pytest.skip("the numpy backend indexes by NumPy")
    log = tmp_path / "calls.txt"
    done = start(Path(__file__), engine.backend, engine.isa, str(log), timeout=600)
    last = log.read_text().splitlines()[-1:] if log.exists() else []
    assert done.returncode == 0, f"ended with {done.returncode} in {last}\n{done.stderr[-3000:]}"
    assert int(done.stdout) > 1000


@on_linux
@pytest.mark.parametrize("what", ["after", "before", "input"])
def test_the_guards_hold(what):
    """A byte too far, on either side, and a write to an input, are faults."""
    done = start("""
        import ctypes, sys
        import numpy as np
        from test_guard_pages import Arrays

        what = sys.argv[1]
        arrays = Arrays("before" if what == "before" else "after")
        array = arrays.copy(np.ones(5, "f4")) if what == "input" else arrays.out((5,), "f4")
        cell = ctypes.c_ubyte.from_address
        first = array.__array_interface__["data"][0]
        cell(first).value, cell(first + 19).value
        print("inside", flush=True)
        if what == "input":
            cell(first).value = 1
        else:
            cell(first + 20 if what == "after" else first - 1).value
        print("outside")
    """, what)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "inside\n")


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
