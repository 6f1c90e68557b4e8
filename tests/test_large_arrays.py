"""Arrays of more than 2**31 elements: places in them are computed in 64 bits.

They are larger than this machine's memory and take little of it: the same few megabytes appear in the address space again and
again, but for the last ones, which are their own. What a kernel computes from those is compared with the same call on them
alone. A place that went through 32 bits would lie before the array, where nothing is mapped, or in memory that the comparison
does not look at.

Minutes, so with FASTCONV_SLOW_TESTS only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import start

import fastconv
from fastconv import dispatch
from fastconv.options import backend_available

SHARED = 2**26  # bytes that an array begins with, again and again
OWN = 2**25     # at least so many at its end are its own
MANY = 2**31
READ_WRITE, MAP_FIXED, MAP_NORESERVE = 3, 0x10, 0x4000

Array = np.ndarray


class Large:
    """Memory for one array: zeros, with a tail that is `bytes` or more long."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
        self._libc = libc
        self._maps: list[tuple[int, int]] = []
        self._file = os.memfd_create("shared")
        os.ftruncate(self._file, SHARED)

    def _map(self, where: int | None, size: int, access: int, flags: int, file: int) -> int:
        address = self._libc.mmap(where, size, access, flags, file, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"mmap of {size:,} bytes: {os.strerror(ctypes.get_errno())}")
        return int(address)

    def array(self, shape: tuple[int, ...], dtype: Any, own: int = OWN) -> Array:
        """An array of zeros, C-contiguous and writable, whose last `own` bytes or more are no other's."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        page = mmap.PAGESIZE
        size = -(-nbytes // page) * page
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        # with a gap in front of it, which a negative place would fall into
        base = self._map(None, 2 * size + page, 0, private, -1) + size
        base += -base % page
        self._maps.append((base, size))
        shared = max(size - own, 0) // SHARED * SHARED
        for offset in range(0, shared, SHARED):
            self._map(base + offset, SHARED, READ_WRITE, mmap.MAP_SHARED | MAP_FIXED, self._file)
        self._map(base + shared, size - shared, READ_WRITE, private | MAP_FIXED, -1)
        start = size - nbytes  # it ends where its memory does
        return np.frombuffer((ctypes.c_char * nbytes).from_address(base + start), dtype).reshape(shape)


def tail(array: Array, count: int, axis: int = 0) -> Array:
    return array[(slice(None),) * axis + (slice(array.shape[axis] - count, None),)]


class Case:
    """A call on large arrays, and how its tail is computed alone.

    Two shapes are tried: many images, of which the last is the tail, and one large plane, of which the last rows are.
    """

    def __init__(self, dtype: str, planes: bool) -> None:
        self.rng, self.large, self.dtype = np.random.default_rng(0), Large(), np.dtype(dtype)
        self.axis = 2 if planes else 0
        self.planes = planes

    def image(self, channels: int) -> Array:
        """More than 2**31 elements, with random numbers in the tail's 8 MB."""
        if self.planes:
            shape = (1, 1, MANY // 2**15 + 128, 2**15)
        else:
            shape = (MANY // (channels * 2**14) * 17 // 16, channels, 128, 128)
        x = self.large.array(shape, self.dtype)
        self.count = 64 if self.planes else 2
        end = tail(x, self.count, self.axis)
        end[...] = self.rng.integers(-9, 10, end.shape).astype(self.dtype)
        return x

    def tail(self, array: Array, count: int | None = None) -> Array:
        return tail(array, self.count if count is None else count, self.axis)

    def out(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """Where a large result goes; what is not written to in its tail shows."""
        out = self.large.array(shape, self.dtype if dtype is None else dtype)
        self.tail(out)[...] = 77
        return out


def compare(got: Array, want: Array) -> None:
    """Whole numbers, so exactly."""
    np.testing.assert_array_equal(got, want)


def forward(case: Case, algorithm: str) -> None:
    """Large in, with strides, and large out. No padding: windows at the tail's end see the tail only."""
    x = case.image(1)
    assert x.size > MANY
    weight = case.rng.integers(-2, 3, (1, 1, 3, 3)).astype(case.dtype)
    if algorithm != "winograd":
        got = fastconv.conv2d(x, weight, stride=(2, 3), algorithm=algorithm)
        want = fastconv.conv2d(case.tail(x), weight, stride=(2, 3), algorithm="direct")
        compare(case.tail(got, want.shape[case.axis]), want)
        del got
    out = case.out((*x.shape[:2], x.shape[2] - 2, x.shape[3] - 2))
    assert out.size > MANY
    fastconv.conv2d(x, weight, algorithm=algorithm, out=out)
    want = fastconv.conv2d(case.tail(x), weight, algorithm="direct")
    np.testing.assert_allclose(case.tail(out, want.shape[case.axis]), want, atol=1e-3)


def backward_data(case: Case, algorithm: str) -> None:
    """Large dx, from a dout with strides; its last rows come from dout's last ones."""
    x = case.image(1)
    weight = case.rng.integers(-2, 3, (1, 1, 2, 2)).astype(case.dtype)
    dout = np.zeros(fastconv.plan_conv2d(x.shape, weight.shape, stride=2).output_shape, case.dtype)
    count = case.count // 2 if case.planes else case.count
    end = tail(dout, count, case.axis)
    end[...] = case.rng.integers(-9, 10, end.shape)
    out = case.out(x.shape)
    fastconv.conv2d_backward_data(dout, weight, x.shape, stride=2, algorithm=algorithm, out=out)
    compare(case.tail(out), fastconv.conv2d_backward_data(end, weight, case.tail(x).shape, stride=2, algorithm="direct"))


def backward_weight(case: Case, algorithm: str) -> None:
    """Large x; what is not its tail is zeros, which add nothing. Windows lie side by side, so that each cell is seen once."""
    x = case.image(1)
    shape = (2, 1, 3, 3)
    if algorithm == "winograd":
        backward_weight_of_every_window(case, x)
        return
    dout = np.ones(fastconv.plan_conv2d(x.shape, shape, stride=3).output_shape, case.dtype)
    got = fastconv.conv2d_backward_weight(dout, x, shape, stride=3, algorithm=algorithm)
    first = x.shape[2] - case.count if case.planes else 0  # row of x that the tail begins with
    seen = case.tail(x)[:, :, :dout.shape[2] * 3 - first, :dout.shape[3] * 3]
    want = [[seen[:, :, (i - first) % 3::3, j::3].sum(dtype=np.float64) for j in range(3)] for i in range(3)]
    compare(got, np.broadcast_to(want, shape))


def backward_weight_of_every_window(case: Case, x: Array) -> None:
    """The same with stride 1: each tap sees all of x but two rows and columns. One filter, so that dout's tail is its own."""
    shape = (1, 1, 3, 3)
    dout = case.large.array((*x.shape[:1], shape[0], x.shape[2] - 2, x.shape[3] - 2), case.dtype)
    end = tail(dout, case.count - 2 if case.planes else case.count, case.axis)
    end[...] = 1  # the rest is zeros, too
    got = fastconv.conv2d_backward_weight(dout, x, shape, algorithm="winograd")
    seen = case.tail(x)
    want = fastconv.reference.conv2d_backward_weight(np.ascontiguousarray(end), np.ascontiguousarray(seen), shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.sqrt(end.size / shape[0]) * 9)


def im2col(case: Case, _: str) -> None:
    """Large in and out, in items of one byte; 2x2 windows side by side, so that all counts are the same."""
    case.dtype = np.dtype("int8")
    x = case.image(4)
    for layout in ("rows", "columns", "windows"):
        if case.planes and layout != "rows":
            continue  # the tail's rows are the last ones of "rows" alone
        small = fastconv.im2col(case.tail(x), 2, 2, stride=2, layout=layout)
        shape = (small.shape[0] * (x.size // case.tail(x).size), *small.shape[1:])
        out = case.large.array(shape, case.dtype)
        end = tail(out, small.shape[0])
        end[...] = 77
        fastconv.im2col(x, 2, 2, stride=2, layout=layout, out=out)
        compare(end, small)


def col2im(case: Case, _: str) -> None:
    """Large in and out, in float32."""
    x = case.image(4)
    small = fastconv.im2col(case.tail(x), 2, 2, stride=2)
    col = case.large.array((small.shape[0] * (x.size // case.tail(x).size), small.shape[1]), case.dtype)
    tail(col, small.shape[0])[...] = small
    out = case.out(x.shape)
    fastconv.col2im(col, x.shape, 2, 2, stride=2, out=out)
    compare(case.tail(out), case.tail(x))


def max_pooling(case: Case, _: str) -> None:
    """Large in; in a large plane the indices of float64 are beyond 2**31. Its gradient is large."""
    if case.planes:
        case.dtype = np.dtype("float64")
    x = case.image(4)
    # no ties
    case.tail(x)[...] = case.rng.permuted(np.arange(case.tail(x).size)).reshape(case.tail(x).shape)
    got, places = fastconv.max_pool2d(x, 8, return_indices=True)
    want, inside = fastconv.max_pool2d(case.tail(x), 8, return_indices=True)
    compare(case.tail(got, want.shape[case.axis]), want)
    before = (x.shape[2] - case.count) * x.shape[3] if case.planes else 0
    compare(case.tail(places, want.shape[case.axis]), inside + before)
    assert not case.planes or places.max() > MANY
    compare(case.tail(fastconv.max_pool2d(x, 8), want.shape[case.axis]), want)
    out = case.out(x.shape)
    fastconv.max_pool2d_backward(got, places, x.shape, out=out)
    compare(case.tail(out), fastconv.max_pool2d_backward(want, inside, case.tail(x).shape))


def avg_pooling(case: Case, _: str) -> None:
    x = case.image(4)
    got = fastconv.avg_pool2d(x, 8)
    want = fastconv.avg_pool2d(case.tail(x), 8)
    compare(case.tail(got, want.shape[case.axis]), want)
    out = case.out(x.shape)
    fastconv.avg_pool2d_backward(got, x.shape, 8, out=out)
    compare(case.tail(out), fastconv.avg_pool2d_backward(want, case.tail(x).shape, 8))


CALLS: dict[str, Callable[[Case, str], None]] = {
    function.__name__: function
    for function in (forward, backward_data, backward_weight, im2col, col2im, max_pooling, avg_pooling)}


def main(name: str, backend: str, algorithm: str) -> None:
    fastconv.options(backend=backend, workspace_limit=2**28, num_threads=2)
    for planes in (False, True):
        CALLS[name](Case("float32", planes), algorithm)
        print("planes" if planes else "images", flush=True)


def variants() -> list[tuple[str, str, str]]:
    return [(name, backend, algorithm) for name in CALLS for backend in ("cython", "numba")
            for algorithm in (dispatch.algorithms(name, backend) if name in dispatch.OPERATIONS else ("",))
            if (name, algorithm) != ("backward_data", "winograd")]  # not with strides


def available() -> int:
    """Bytes that could be had without driving anything out."""
    lines = Path("/proc/meminfo").read_text().splitlines() if sys.platform == "linux" else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the same memory again and again is Linux's")
@pytest.mark.skipif("FASTCONV_SLOW_TESTS" not in os.environ, reason="slow: FASTCONV_SLOW_TESTS is not set")
@pytest.mark.parametrize(("name", "backend", "algorithm"), variants())
def test_more_than_two_to_the_31(name, backend, algorithm):
    if not backend_available(backend):
        pytest.skip(f"{backend} is not installed")
    if available() < 6 * 2**30:
        pytest.skip("less than 6 GB of memory are free")
    done = start(Path(__file__), name, backend, algorithm, timeout=900)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert done.stdout.endswith("planes\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
