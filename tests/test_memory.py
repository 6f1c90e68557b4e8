"""Memory that is kept between calls: recycled results, scratch, and small calls that were made ready once.

What they hold in common: nobody may notice them, they are bounded, and `release_memory` gives them back.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrays import byte_swapped, misaligned, read_only
from processes import output_of

import fastconv
from fastconv import dispatch, functional, memory
from fastconv.options import backend_available

native: Any
try:
    from fastconv import native
except ImportError:  # built without extension modules
    native = None

needs_extensions = pytest.mark.skipif(native is None, reason="without the extension modules")

MIB = 2**20


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture
def recycler() -> Iterator[Any]:
    """The module that recycles, with nothing kept and a limit of 64 MiB."""
    module = memory._recycler()
    if module is None:
        pytest.skip("without the extension modules nothing is recycled")
    gc.collect()
    before = module.set_limit(64 * MIB)
    fastconv.release_memory()
    assert module.kept_bytes() == 0
    yield module
    module.set_limit(before)
    fastconv.release_memory()


def large(value: float = 1.0, side: int = 300) -> np.ndarray:
    """A result of conv2d whose cells all are `value`, 3*side*side floats."""
    return fastconv.conv2d(np.full((1, 1, side, side), value, np.float32), np.ones((3, 1, 1, 1), np.float32))


# --- recycled results are ordinary arrays -----------------------------------------------------------------------------


def test_a_recycled_result_is_an_ordinary_array(recycler):
    for _ in range(3):  # the second and third live in the block of the one before
        result = large()
        assert result.flags.owndata
        assert result.flags.writeable
        assert result.flags.c_contiguous
        assert result.flags.aligned
        assert result.base is None
        assert address(result) % 64 == 0
        result[...] = np.nan
        del result
    assert recycler.kept_bytes() > 0


def test_the_block_of_a_dead_result_is_used_again(recycler):
    first = large()
    where, nbytes = address(first), first.nbytes
    assert recycler.kept_bytes() == 0  # it is in use
    del first
    assert recycler.kept_bytes() == nbytes
    second = large(2)
    assert address(second) == where
    assert recycler.kept_bytes() == 0
    assert (second == 2).all()


def test_of_equal_blocks_the_last_one_freed_is_used(recycler):
    """It is the one that is most likely to be in a cache."""
    results = [large() for _ in range(3)]
    where = [address(result) for result in results]
    for i in (2, 0, 1):
        results[i] = None
    assert address(large()) == where[1]
    assert address(large()) == where[1]


def test_a_view_keeps_its_block(recycler):
    result = large(5)
    corner = result[0, 1, 7:9, ::2]
    where = address(result)
    del result
    assert recycler.kept_bytes() == 0
    other = large(6)
    assert address(other) != where
    assert (corner == 5).all()
    del corner
    assert recycler.kept_bytes() > 0


def test_a_block_is_for_results_of_about_its_size(recycler):
    """A small result does not hold on to a large block, a large one does not get a small block."""
    sizes = {side: 3 * side * side * 4 for side in (300, 310, 500)}
    middle = large(side=310)
    where = address(middle)
    del middle
    big = large(side=500)
    assert recycler.kept_bytes() == sizes[310]
    assert address(big) != where
    del big
    little = large(side=300)  # a little smaller than 310: that block will do
    assert address(little) == where
    assert recycler.kept_bytes() == sizes[500]
    other = large(side=300)  # less than half of 500: that one not
    assert recycler.kept_bytes() == sizes[500]
    assert (other == 1).all()


def test_a_recycled_result_can_be_resized(recycler):
    result = large(3)
    count = result.size
    result.resize((5 * count,), refcheck=False)
    np.testing.assert_array_equal(result[:count], 3)
    np.testing.assert_array_equal(result[count:], 0)  # NumPy clears what is new
    result.resize((17,), refcheck=False)
    np.testing.assert_array_equal(result, 3)
    result.resize((0,), refcheck=False)
    result.resize((4,), refcheck=False)
    np.testing.assert_array_equal(result, 0)
    del result
    others = [large(i) for i in range(6)]  # in the blocks that the moves have left
    for i, other in enumerate(others):
        assert (other == i).all()
    del other
    others.clear()
    fastconv.release_memory()
    assert recycler.kept_bytes() == 0


def test_other_arrays_are_not_recycled(recycler):
    """NumPy's allocator is changed for one allocation only, in this thread, also where that fails."""
    result = large()
    copies = [result.copy(), np.empty_like(result), result + 1, np.zeros(MIB, np.uint8)]
    del copies
    assert recycler.kept_bytes() == 0
    with pytest.raises((MemoryError, ValueError)):
        recycler.empty((2**62,), np.uint8)
    del result
    kept = recycler.kept_bytes()
    other = np.empty(2 * MIB, np.uint8)
    del other
    assert recycler.kept_bytes() == kept


def fills() -> dict[str, Callable[[], np.ndarray]]:
    """Calls whose results are large, and some of whose cells no input reaches."""
    x, weight = np.ones((2, 4, 151, 151), np.float32), np.ones((4, 4, 2, 2), np.float32)
    dout = np.ones((2, 4, 50, 50), np.float32)
    col = np.ones((2 * 50 * 50, 16), np.float32)
    indices = fastconv.max_pool2d(x, 2, 3, return_indices=True)[1]
    return {
        "conv2d": lambda: fastconv.conv2d(x, weight),
        "conv2d-padding": lambda: fastconv.conv2d(x, weight, padding=70),
        "conv2d_backward_data": lambda: fastconv.conv2d_backward_data(dout, weight, x.shape, 3),
        "conv2d_backward_weight": lambda: fastconv.conv2d_backward_weight(
            np.ones((1, 300, 1, 1), np.float32), np.ones((1, 300, 1, 1), np.float32), (300, 300, 3, 3), padding=1),
        "batch0": lambda: fastconv.conv2d_backward_weight(np.ones((0, 300, 2, 2)), np.ones((0, 300, 2, 2)),
                                                          (300, 300, 1, 1)),
        "conv_transpose2d": lambda: fastconv.conv_transpose2d(dout, weight, stride=3),
        "im2col": lambda: fastconv.im2col(x, 3, 3, pad=1),
        "col2im": lambda: fastconv.col2im(col, x.shape, 2, 2, 3),
        "max_pool2d": lambda: fastconv.max_pool2d(x, 2, 1),
        "max_pool2d_backward": lambda: fastconv.max_pool2d_backward(dout, indices, x.shape),
        "avg_pool2d": lambda: fastconv.avg_pool2d(x, 3, 1, 1),
        "avg_pool2d_backward": lambda: fastconv.avg_pool2d_backward(dout, x.shape, 2, 3),
    }


@pytest.mark.parametrize("name", list(fills()))
@pytest.mark.parametrize("backend", ["cython", "numba", "numpy"])
def test_what_a_block_held_before_does_not_show(backend, name, recycler):
    if not backend_available(backend):
        pytest.skip(f"{backend} is not installed")
    call = fills()[name]
    with fastconv.options(backend=backend):
        check_that_nothing_shows(call, recycler, backend)


def check_that_nothing_shows(call: Callable[[], np.ndarray], recycler: Any, backend: str) -> None:
    recycler.set_limit(0)
    want = call()
    recycler.set_limit(64 * MIB)
    if want.nbytes < memory.RECYCLED_FROM_BYTES:
        pytest.fail("too small to be recycled")
    used = memory.empty("a result", want.shape, want.dtype)
    used[...] = np.nan
    where = address(used)
    del used
    got = call()
    if backend != "numpy":  # there are temporary arrays of the same size
        assert address(got) == where
    np.testing.assert_array_equal(got, want)
    assert np.isfinite(got).all()


# --- the bound --------------------------------------------------------------------------------------------------------


def test_what_is_kept_never_exceeds_the_limit(recycler):
    rng = np.random.default_rng(0)
    recycler.set_limit(5 * MIB)
    alive: list[np.ndarray] = []
    most = 0
    for nbytes in rng.integers(memory.RECYCLED_FROM_BYTES, 3 * MIB, 400):
        alive.append(memory.empty("a result", (int(nbytes),), np.uint8))
        if len(alive) > 6:
            del alive[rng.integers(len(alive))]
        most = max(most, recycler.kept_bytes())
        assert recycler.kept_bytes() <= 5 * MIB
    assert most > 2 * MIB
    while alive:
        alive.pop()
        assert recycler.kept_bytes() <= 5 * MIB


def test_a_block_over_the_limit_is_not_kept_and_drives_nothing_out(recycler):
    recycler.set_limit(2 * MIB)
    small, huge = (memory.empty("a result", (n * MIB,), np.uint8) for n in (1, 3))
    del small
    del huge
    assert recycler.kept_bytes() == MIB
    exact = memory.empty("a result", (2 * MIB,), np.uint8)
    del exact
    assert recycler.kept_bytes() == 2 * MIB  # the one that was freed last is kept


def test_a_lower_limit_takes_effect_at_once(recycler):
    arrays = [memory.empty("a result", (MIB,), np.uint8) for _ in range(10)]
    del arrays
    assert recycler.kept_bytes() == 10 * MIB
    assert recycler.set_limit(3 * MIB) == 64 * MIB
    assert recycler.kept_bytes() == 3 * MIB
    assert recycler.set_limit(0) == 3 * MIB
    assert recycler.kept_bytes() == 0
    result = large()
    del result
    assert recycler.kept_bytes() == 0


def test_many_blocks_are_bounded_too(recycler):
    """The list of blocks does not grow, and what does not fit into it is freed, not lost."""
    before = resident_bytes()
    for _ in range(20):
        arrays = [memory.empty("a result", (memory.RECYCLED_FROM_BYTES,), np.uint8) for _ in range(100)]
        for array in arrays:
            array[::4096] = 1  # so that the pages are there
        del arrays, array
        assert recycler.kept_bytes() <= 64 * MIB
    fastconv.release_memory()
    assert recycler.kept_bytes() == 0
    if before:
        assert resident_bytes() - before < 60 * MIB  # 500 MiB were asked for


def resident_bytes() -> int:
    """Bytes of this process in memory, or 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def test_ten_thousand_calls_leak_nothing(recycler):
    x, weight = np.ones((1, 1, 256, 257), np.float32), np.ones((1, 1, 1, 1), np.float32)
    small = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)

    def call() -> None:
        assert fastconv.conv2d(x, weight).nbytes > memory.RECYCLED_FROM_BYTES
        fastconv.conv2d(*small)

    for _ in range(50):
        call()
    before, most = resident_bytes(), 0
    for _ in range(10_000):
        call()
        most = max(most, recycler.kept_bytes())
    assert most == x.nbytes  # one block, used again each time
    if before:
        assert resident_bytes() - before < 8 * MIB  # 10,000 results are 2.6 GB


def test_release_memory_gives_all_blocks_back_and_touches_no_living_array(recycler):
    alive, dead = large(4), large(5)
    del dead
    assert recycler.kept_bytes() > 0
    fastconv.release_memory()
    assert recycler.kept_bytes() == 0
    assert (alive == 4).all()
    fastconv.release_memory()  # nothing to do
    del alive
    assert recycler.kept_bytes() > 0  # it goes on as before


# --- the environment --------------------------------------------------------------------------------------------------

SCRIPT = """
import numpy as np, fastconv
from fastconv import memory
result = fastconv.conv2d(np.ones((1, 1, 300, 300), np.float32), np.ones((3, 1, 1, 1), np.float32))
nbytes = result.nbytes
del result
print(memory._recycler().kept_bytes() // nbytes, memory._recycler().set_limit(0))
"""


def in_a_process(limit: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FASTCONV_RECYCLE_LIMIT": limit, "FASTCONV_BACKEND": "cython"}
    root = Path(fastconv.__file__).parent.parent
    return subprocess.run([sys.executable, "-c", SCRIPT], env=environment, cwd=root, capture_output=True, text=True,
                          timeout=120, check=False)


@needs_extensions
@pytest.mark.parametrize(("limit", "kept", "bytes_"), [
    ("", 1, memory.RECYCLE_LIMIT), ("0", 0, 0), (" 2000000 ", 1, 2_000_000), ("1000000", 0, 1_000_000)])
def test_the_limit_of_the_environment(limit, kept, bytes_):
    done = in_a_process(limit)
    assert done.stdout.split() == [str(kept), str(bytes_)], done.stderr


@needs_extensions
def test_a_limit_of_the_environment_beyond_any_memory_is_none():
    done = in_a_process("9" * 30)
    assert done.stdout.split()[:1] == ["1"], done.stderr
    assert int(done.stdout.split()[1]) >= 2**62


@needs_extensions
@pytest.mark.parametrize("limit", ["many", "-1", "1e6"])
def test_a_bad_limit_of_the_environment_is_named(limit):
    done = in_a_process(limit)
    assert done.returncode != 0
    assert f"ValueError: FASTCONV_RECYCLE_LIMIT must be a number of bytes, got '{limit}'" in done.stderr


# --- threads and tracemalloc ------------------------------------------------------------------------------------------


def test_threads_take_and_leave_blocks_at_once(recycler):
    """Arrays die in other threads than they were made in, while blocks are released; none is two threads' at once."""
    recycler.set_limit(8 * MIB)
    shared: list[tuple[np.ndarray, int]] = []
    lock = threading.Lock()
    start = threading.Barrier(4)

    def work(thread: int) -> int:
        rng = np.random.default_rng(thread)
        checked = 0
        start.wait()
        for i in range(300):
            count = int(rng.integers(memory.RECYCLED_FROM_BYTES // 8, memory.RECYCLED_FROM_BYTES // 4))
            array, mark = memory.empty("a result", (count,), np.int64), thread * 1000 + i
            array.fill(mark)
            with lock:
                shared.append((array, mark))
                other, expected = shared.pop(int(rng.integers(len(shared))))
            del array
            assert other[0] == other[-1] == expected
            assert (other[::61] == expected).all()
            checked += 1
            other.fill(-1)
            if len(shared) > 8 or i % 3:
                with lock:
                    shared.append((memory.empty("a result", (count,), np.int64), -2))
                    shared[-1][0].fill(-2)
            while len(shared) > 12:
                with lock:
                    if shared:
                        shared.pop()
            if i % 50 == 49:
                fastconv.release_memory()
            assert recycler.kept_bytes() <= 8 * MIB
            del other
        return checked

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [300] * 4
    for array, mark in shared:
        assert (array == mark).all()
    del array
    shared.clear()
    fastconv.release_memory()
    assert recycler.kept_bytes() == 0


def test_a_block_goes_from_thread_to_thread(recycler):
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(large, 7.0).result()
    assert (result == 7).all()
    where = address(result)
    del result
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: address(large(8.0))).result() == where


@needs_extensions
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_another_thread_takes_and_leaves_blocks():
    """The child can take blocks, whatever the other threads, which it does not have, were doing when it was forked.

    Here they call the allocator without the GIL, as threads of a free-threaded Python do.
    """
    printed = output_of("""
    import ctypes, os, signal, sys, threading, warnings
    import numpy as np
    from fastconv import memory
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads: what this is about

    class Handler(ctypes.Structure):  # PyDataMem_Handler
        _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("context", ctypes.c_void_p),
                    ("malloc", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)),
                    ("calloc", ctypes.c_void_p), ("realloc", ctypes.c_void_p),
                    ("free", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t))]

    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    handler = Handler.from_address(pointer_of(memory._recycler().handler(), b"mem_handler"))
    assert handler.name == b"fastconv"
    over = threading.Event()

    def work():
        while not over.is_set():
            handler.free(None, handler.malloc(None, 2**18), 2**18)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers: worker.start()
    hung = 0
    for _ in range(300):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            for value in range(3):
                result = memory.empty("a result", (2**17,), np.float32)
                result.fill(value)
            os._exit(0 if (result == 2).all() else 2)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, -signal.SIGALRM), status
        hung += status != 0
        if hung:
            break
    over.set()
    for worker in workers: worker.join()
    print("a child hung" if hung else "no child hung")
    """)
    assert printed == "no child hung\n"


def traced_bytes() -> int:
    """Bytes of NumPy's arrays that tracemalloc knows of."""
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)])
    return sum(trace.size for trace in snapshot.traces)


def test_tracemalloc_sees_recycled_results(recycler):
    """As many bytes as the arrays that are alive have: kept blocks are nobody's."""
    dead = large()
    del dead
    tracemalloc.start()
    try:
        before = traced_bytes()
        result = large()  # in the block of the dead one, which was made before tracing
        assert traced_bytes() - before >= result.nbytes
        assert traced_bytes() - before < result.nbytes + 10_000
        del result
        assert traced_bytes() - before < 10_000
    finally:
        tracemalloc.stop()


# --- scratch ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_scratch() -> Iterator[None]:
    fastconv.release_memory()
    yield
    fastconv.release_memory()


def test_scratch_is_kept_between_calls_of_a_thread(no_scratch):
    first = memory.scratch(100_000)
    assert first.dtype == np.uint8
    assert first.size >= 100_000
    assert address(first) % 64 == 0
    assert address(memory.scratch(100_000)) == address(memory.scratch(1)) == address(first)
    larger = memory.scratch(200_000)
    assert larger.size >= 200_000
    assert address(memory.scratch(100_000)) == address(larger)
    assert memory.scratch(0).size >= 0


def test_each_thread_has_scratch_of_its_own(no_scratch):
    mine = memory.scratch(100_000)
    both = threading.Barrier(2)

    def places() -> tuple[int, int]:
        first = memory.scratch(100_000)
        both.wait()  # neither thread ends before the other has its own
        second = memory.scratch(100_000)
        both.wait()
        return address(first), address(second)

    with ThreadPoolExecutor(2) as pool:
        found = [future.result() for future in [pool.submit(places) for _ in range(2)]]
    assert found[0][0] == found[0][1]
    assert found[1][0] == found[1][1]
    assert len({found[0][0], found[1][0], address(mine)}) == 3


def test_scratch_is_released(no_scratch):
    """The caller's at once; another thread's when it next asks for some."""
    asked, go = threading.Event(), threading.Event()

    def other() -> bool:
        memory.scratch(100_000)
        before = memory._local.buffer
        asked.set()
        assert go.wait(60)
        memory.scratch(100_000)  # `before` is alive: a new one is elsewhere
        return memory._local.buffer is before

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(other)
        assert asked.wait(60)
        mine = memory.scratch(100_000)
        fastconv.release_memory()
        go.set()
        assert not future.result()
    assert memory._local.buffer is None
    assert address(memory.scratch(100_000)) != address(mine)


def test_scratch_that_is_too_large_is_not_kept(no_scratch):
    tracemalloc.start()
    try:
        before = traced_bytes()
        buffer = memory.scratch(memory.KEPT_SCRATCH_BYTES + 1)
        assert buffer.size >= memory.KEPT_SCRATCH_BYTES + 1
        del buffer
        assert traced_bytes() - before < 10_000
        memory.scratch(memory.KEPT_SCRATCH_BYTES)
        assert traced_bytes() - before >= memory.KEPT_SCRATCH_BYTES
        fastconv.release_memory()
        assert traced_bytes() - before < 10_000
    finally:
        tracemalloc.stop()


def test_watched_scratch(no_scratch):
    with memory.watch_scratch() as outer:
        memory.scratch(1000)
        with memory.watch_scratch() as inner:
            memory.scratch(5000)
            memory.scratch(10)
        memory.scratch(2000)
    memory.scratch(9000)
    assert (outer.largest, inner.largest) == (2000, 5000)


def test_what_cannot_be_had_is_refused_before_it_is_tried():
    too_much = memory.physical_memory() + 1
    for call in (lambda: memory.scratch(too_much), lambda: memory.empty("the result", (too_much,), np.uint8),
                 lambda: memory.scratch_array("a table", (too_much, 2**70), np.float32).__enter__()):
        with pytest.raises(MemoryError, match=r"bytes, but this machine has"):
            call()


# --- small calls ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["cython", "numba"])
def small_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, Any]]:
    """The cache of small calls, empty. conv2d's own algorithms and settings are as they are by default."""
    if not backend_available(request.param):
        pytest.skip(f"{request.param} is not installed")
    cache: dict[Any, Any] = {}
    monkeypatch.setattr(functional, "_small_calls", cache)
    with fastconv.options(backend=request.param):
        yield cache


def backend_in_use() -> str:
    """The backend in use."""
    return dispatch.backend().name


def arrays(dtype: Any = "float32") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return tuple(rng.standard_normal(shape).astype(dtype)  # type: ignore[return-value]
                 for shape in ((2, 3, 8, 9), (4, 3, 3, 3), (4,)))


def the_long_way(x: np.ndarray, weight: np.ndarray, *args: Any, **how: Any) -> np.ndarray:
    """conv2d, past the cache: with an `out`."""
    shape = fastconv.plan_conv2d(x.shape, weight.shape, *args[1:], dtype=x.dtype).output_shape
    out = np.full(shape, 99, np.result_type(x, weight).newbyteorder("="))
    return fastconv.conv2d(x, weight, *args, **how, out=out)


@pytest.fixture
def short_only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., np.ndarray]:
    """A call that fails unless it is answered from the cache."""
    def call(*args: Any, **how: Any) -> np.ndarray:
        def refuse(*ignored: Any) -> None:
            raise AssertionError("this call went the long way")

        with monkeypatch.context() as patch:
            patch.setattr(functional, "_as_array", refuse)
            return fastconv.conv2d(*args, **how)

    return call


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_small_call_gives_the_same_bits_again(dtype, small_calls, short_only):
    x, weight, bias = arrays(dtype)
    with_each_isa = [contextlib.nullcontext()]
    if backend_in_use() == "cython":
        with_each_isa = [native.using_isa(isa) for isa in native.available_isas()]
    for isa in with_each_isa:
        small_calls.clear()
        with isa:
            for image, offset, how, window in itertools.product((x, x[0]), (None, bias), ({}, {"activation": "relu"}),
                                                                ((), (2,), (1, 1), (1, "same"), (1, 1, 2))):
                want = the_long_way(image, weight, offset, *window, **how)
                first = fastconv.conv2d(image, weight, offset, *window, **how)
                again = short_only(image, weight, offset, *window, **how)
                for got in (first, again):
                    np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))
                    assert got.dtype == want.dtype
                    assert got.flags.owndata
                    assert got.flags.c_contiguous
                    assert got.flags.writeable
                assert not np.shares_memory(first, again)
        assert len(small_calls) == 40


def test_arguments_that_equal_others_are_checked_all_the_same(small_calls, short_only):
    """True and 1.0 are 1 to a dictionary."""
    x, weight, bias = arrays()
    call = (x, weight, bias, 1, 1, 1, 1)
    fastconv.conv2d(*call)
    short_only(*call)
    for place, name in ((3, "stride"), (4, "padding"), (5, "dilation"), (6, "groups")):
        for wrong in (True, 1.0, np.float32(1), "1", None, [1.0, 1]):
            if place == 4 and wrong == "1":
                continue
            with pytest.raises(TypeError, match=name):
                fastconv.conv2d(*call[:place], wrong, *call[place + 1:])
    with pytest.raises(ValueError, match="padding"):
        fastconv.conv2d(x, weight, bias, 1, "1")
    want = fastconv.conv2d(*call)
    for right in (np.int64(1), (1, 1), [1, 1]):
        np.testing.assert_array_equal(fastconv.conv2d(x, weight, bias, right, right, right), want)


@pytest.mark.parametrize("wrong", [True, 1, [], {}, ["relu"], np.array(["relu"])], ids=repr)
def test_wrong_names_are_told_after_right_ones(wrong, small_calls):
    x, weight, bias = arrays()
    for _ in range(2):
        fastconv.conv2d(x, weight, bias)
    with pytest.raises(TypeError, match="activation"):
        fastconv.conv2d(x, weight, bias, activation=wrong)
    with pytest.raises(TypeError, match="algorithm"):
        fastconv.conv2d(x, weight, bias, algorithm=wrong)


def test_wrong_shapes_are_told_after_right_ones(small_calls):
    x, weight, bias = arrays()
    for _ in range(2):
        fastconv.conv2d(x, weight, bias)
    for wrong in ((x[:, :2].copy(), weight, bias), (x, weight[:, :2].copy(), bias), (x, weight, bias[:3].copy()),
                  (x, weight, bias[None]), (x[..., :2].copy(), weight, bias), (x[0, 0], weight, bias),
                  (x, weight[0], bias)):
        for _ in range(2):  # an error is not remembered as if it had been a result
            with pytest.raises(ValueError):
                fastconv.conv2d(*wrong)


@pytest.mark.parametrize("other", ["float64", "float16", "int32", "complex64", ">f4", "longdouble"])
def test_other_dtypes_after_small_calls(other, small_calls):
    x, weight, bias = arrays()
    for _ in range(2):
        fastconv.conv2d(x, weight, bias)
    for i in range(1, 8):  # each mixture of the two
        mixed = [array.astype(other) if i >> place & 1 else array for place, array in enumerate((x, weight, bias))]
        want = fastconv.conv2d(*mixed, algorithm="im2col")
        for _ in range(3):
            got = fastconv.conv2d(*mixed)
            assert got.dtype == np.result_type(*mixed).newbyteorder("=")
            assert got.dtype.isnative
            np.testing.assert_allclose(got, want, rtol=2e-3 if got.dtype == np.float16 else 1e-4, atol=1e-4)


REORDERED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "gaps": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "misaligned": misaligned,
    "byte-swapped": byte_swapped,
    "read-only": read_only,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("order", REORDERED)
def test_other_memory_orders_after_small_calls(order, small_calls):
    """The same key, and another way to lie in memory: also the other way round, where the odd one comes first."""
    for odd_first in (False, True):
        small_calls.clear()
        plain = [np.ascontiguousarray(array) for array in arrays()]
        for place in range(3):
            odd = list(plain)
            odd[place] = REORDERED[order](plain[place])
            same = [np.array(array, "float32", order="C") for array in odd]
            want = the_long_way(*same)
            for call in ((odd, same, odd) if odd_first else (same, odd, same, odd)):
                np.testing.assert_array_equal(fastconv.conv2d(*call), want)


def test_subclasses_and_sequences_after_small_calls(small_calls):
    x, weight, bias = arrays()
    want = fastconv.conv2d(x, weight, bias)
    fastconv.conv2d(x, weight, bias)
    with pytest.raises(TypeError, match="masked"):
        fastconv.conv2d(np.ma.array(x), weight, bias)
    with pytest.raises(TypeError, match="masked"):
        fastconv.conv2d(x, weight, np.ma.array(bias))
    listed = fastconv.conv2d(x, weight, bias.tolist())
    assert listed.dtype == np.float64
    np.testing.assert_allclose(listed, want, rtol=1e-4, atol=1e-4)
    packed = fastconv.pack_weight(weight, x.shape)
    np.testing.assert_array_equal(fastconv.conv2d(x, packed, bias), want)


def test_weights_that_are_changed_in_place_are_seen(small_calls, short_only):
    x, weight, bias = arrays()
    fastconv.conv2d(x, weight, bias)
    for array in (x, weight, bias):
        array *= -1.5
        np.testing.assert_array_equal(short_only(x, weight, bias), the_long_way(x, weight, bias))
    x[0, 0, 0, 0] = np.nan
    assert np.isnan(short_only(x, weight, bias)).any()


def test_options_that_change_are_obeyed(small_calls, short_only):
    x, weight, bias = arrays()

    def call() -> np.ndarray:
        return fastconv.conv2d(x, weight, bias)

    want = call()
    short_only(x, weight, bias)
    with fastconv.options(backend="numpy"):
        reference = fastconv.reference.conv2d(x, weight, bias)
        np.testing.assert_array_equal(call().view(np.uint8), reference.view(np.uint8))
        with pytest.raises(AssertionError, match="long way"):
            short_only(x, weight, bias)
    short_only(x, weight, bias)  # the settings are those from before
    with fastconv.options(workspace_limit=0), pytest.raises(MemoryError, match="workspace_limit"):
        call()
    with fastconv.options(workspace_limit=10**9):
        np.testing.assert_array_equal(call(), want)
    with fastconv.options(accuracy="strict"):
        np.testing.assert_array_equal(call(), want)
        with pytest.raises(ValueError, match="strict"):
            fastconv.conv2d(x, weight, bias, algorithm="winograd")
    np.testing.assert_array_equal(call(), want)
    for isa in native.available_isas() if backend_in_use() == "cython" else ():
        with native.using_isa(isa):
            np.testing.assert_array_equal(call().view(np.uint8), the_long_way(x, weight, bias).view(np.uint8))
            assert [entry.kernels for entry in small_calls.values()] == [native.kernels]


@pytest.mark.parametrize("name", ["cython", "numba"])
def test_options_set_for_the_process_are_obeyed(name):
    """Not in a with block: the settings of the process, changed between two calls."""
    script = """
import numpy as np, fastconv
x, weight = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
for _ in range(3):
    fastconv.conv2d(x, weight)
fastconv.options(workspace_limit=0)
try:
    fastconv.conv2d(x, weight)
except MemoryError as error:
    print("refused", "workspace_limit" in str(error))
fastconv.options(workspace_limit="default")
for _ in range(3):
    assert (fastconv.conv2d(x, weight) == 27).all()
"""
    if not backend_available(name):
        pytest.skip(f"{name} is not installed")
    root = Path(fastconv.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env={**os.environ, "FASTCONV_BACKEND": name},
                          capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.returncode) == ("refused True", 0), done.stderr


def test_out_and_forced_algorithms_after_small_calls(small_calls):
    x, weight, bias = arrays()
    want = fastconv.conv2d(x, weight, bias)
    fastconv.conv2d(x, weight, bias)
    out = np.full(want.shape, np.nan, "float32")
    assert fastconv.conv2d(x, weight, bias, out=out) is out
    np.testing.assert_array_equal(out, want)
    with pytest.raises(ValueError, match="out"):
        fastconv.conv2d(x, weight, bias, out=out[:1])
    for algorithm in dispatch.algorithms("forward", backend_in_use()):
        for _ in range(3):
            got = fastconv.conv2d(x, weight, bias, algorithm=algorithm)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert {key[-1] for key in small_calls} <= {"auto", "direct"}
    with pytest.raises(ValueError, match="algorithm"):
        fastconv.conv2d(x, weight, bias, algorithm="fastest")
    with pytest.raises(NotImplementedError, match="winograd"):
        fastconv.conv2d(x, weight, bias, 2, algorithm="winograd")


def test_three_and_four_axes_are_different_calls(small_calls, short_only):
    x, weight, bias = arrays()
    one, batch = x[0].copy(), x[:1].copy()
    for _ in range(2):
        assert fastconv.conv2d(one, weight, bias).shape == (4, 6, 7)
        assert fastconv.conv2d(batch, weight, bias).shape == (1, 4, 6, 7)
    np.testing.assert_array_equal(short_only(one, weight, bias), short_only(batch, weight, bias)[0])


def test_large_calls_and_empty_ones_are_not_small(small_calls):
    _, weight, bias = arrays()
    for shape in ((0, 3, 8, 9), (1, 3, 130, 130)):
        for _ in range(2):
            assert fastconv.conv2d(np.ones(shape, "float32"), weight, bias).shape[0] == shape[0]
    assert not small_calls


def test_larger_calls_are_checked_once(monkeypatch, short_only):
    """And planned each time, by the settings that are in force then."""
    kept: dict[Any, Any] = {}
    monkeypatch.setattr(functional, "_checked_calls", kept)
    rng = np.random.default_rng(5)
    x, weight, bias = (rng.standard_normal(shape).astype("float32") for shape in ((2, 32, 60, 61), (9, 32, 3, 3), (9,)))
    ways: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        ((), {}), ((bias,), {"activation": "relu"}), ((bias, 2, "same"), {}), ((None, 2, 1), {"algorithm": "direct"}))
    for number, (args, how) in enumerate(ways):
        for dtype in ("float32", "float64"):
            for image in (x.astype(dtype), x[0].astype(dtype)):
                arguments = weight.astype(dtype), *args
                want = the_long_way(image, *arguments, **how)
                np.testing.assert_array_equal(fastconv.conv2d(image, *arguments, **how), want)
                for same in (image, np.asfortranarray(image), np.concatenate([image, image], -1)[..., :61]):
                    np.testing.assert_array_equal(short_only(same, *arguments, **how), want)
                with fastconv.options(backend="numpy"):
                    np.testing.assert_allclose(short_only(image, *arguments, **how), want, rtol=1e-4, atol=1e-4)
        assert len(kept) == 4 * (number + 1)
    with fastconv.options(workspace_limit=0), pytest.raises(MemoryError, match="workspace"):
        short_only(x, weight, None, 2, 1, algorithm="direct")
    with pytest.raises(TypeError, match="stride"):
        fastconv.conv2d(x, weight, None, 2.5, 1, algorithm="direct")
    with pytest.raises(ValueError, match="weight"):
        fastconv.conv2d(x, weight[:, :8])
    monkeypatch.setattr(functional, "_SMALL_CALLS", 16)
    fastconv.conv2d(x, weight, bias)
    assert len(kept) == 1


def test_the_cache_is_bounded(small_calls, monkeypatch):
    monkeypatch.setattr(functional, "_SMALL_CALLS", 20)
    weight = np.ones((1, 1, 1, 1), "float32")
    for n in range(1, 111):
        x = np.full((1, 1, 1, n), n, "float32")
        for _ in range(2):
            np.testing.assert_array_equal(fastconv.conv2d(x, weight), x)
        assert len(small_calls) <= 20
    assert small_calls


def test_small_calls_from_many_threads(small_calls):
    """The same entry at once, while it is made and forgotten."""
    x, weight, bias = arrays()
    name = backend_in_use()
    wanted = [the_long_way(i * x, weight, bias) for i in range(8)]
    start = threading.Barrier(4)

    def work(thread: int) -> int:
        start.wait()
        for i in range(400):
            which = (i + 2 * thread) % 8
            with fastconv.options(backend=name):  # settings of its own: other entries than its neighbours'
                got = fastconv.conv2d(x * np.float32(which), weight, bias)
            assert got.view(np.uint8).tobytes() == wanted[which].view(np.uint8).tobytes()
            if i % 50 == 0:
                small_calls.clear()
            for _ in range(3):
                assert fastconv.conv2d(x, weight, bias).tobytes() == wanted[1].tobytes()
        return thread

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 1, 2, 3]


@needs_extensions
def test_other_arrays_keep_numpys_allocator():
    """The recycler's is in force while a result is made, and not after it, be it made or not."""
    core = getattr(np, "_core", None) or np.core
    before = core.multiarray.get_handler_name(np.empty(3))
    assert core.multiarray.get_handler_name(large()) == "fastconv"
    assert core.multiarray.get_handler_name(np.empty(3)) == before
    with pytest.raises(MemoryError):
        memory._recycler().empty((2**50,), np.float64)
    assert core.multiarray.get_handler_name(np.empty(3)) == before


def test_scratch_that_grows_is_not_there_twice(monkeypatch):
    fastconv.release_memory()
    before = weakref.ref(memory.scratch(2**16))
    assert before() is not None
    allocate, alive = memory.aligned_bytes, []

    def watch(what: str, nbytes: int) -> np.ndarray:
        alive.append(before() is not None)
        return allocate(what, nbytes)

    monkeypatch.setattr(memory, "aligned_bytes", watch)
    memory.scratch(2**20)
    assert alive == [False]
