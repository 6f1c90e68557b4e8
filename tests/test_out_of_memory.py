"""Where memory ends, a call ends in MemoryError: nothing is leaked, nothing crashes, and the next call works.

Two ways to get there: an allocator that fails at the n-th allocation of a call, for every n (failing_malloc.c, loaded in
front of the C library's), and a limit of the process's address space.
"""

from __future__ import annotations

import ctypes
import gc
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from processes import HERE, output_of

import fastconv
from fastconv import dispatch, functional
from fastconv.options import backend_available

COMPILER = shutil.which("gcc") or shutil.which("cc")

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason=f"limits are tried on Linux, not {sys.platform}")

Call = tuple[str, Callable[[], Any]]


def kernels(operation: str, backend: str) -> list[str]:
    return [name for name in dispatch.algorithms(operation, backend) if name != "im2col"]


def calls(backend: str) -> Iterator[Call]:
    """Every operation, with results that are small and above what is recycled.

    Without the column matrix's algorithm: NumPy's matrix product is a segmentation fault where its library gets no memory.
    """
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 64, 5, 6)).astype("f4"), rng.standard_normal((64, 64, 3, 3)).astype("f4")
    dout = rng.standard_normal((1, 64, 3, 4)).astype("f4")
    yield "first conv2d", lambda x=x, w=weight: forgotten(lambda: fastconv.conv2d(x, w, algorithm="direct"))
    yield "first conv2d_backward", lambda d=dout, x=x, w=weight: forgotten(
        lambda: np.concatenate([part.ravel() for part in fastconv.conv2d_backward(d, x, w, algorithm="direct")]))
    for size in (12, 60, 150):
        x = rng.standard_normal((2, 4, size, size)).astype("f4")
        weight = rng.standard_normal((5, 4, 3, 3)).astype("f4")
        dout = rng.standard_normal((2, 5, size, size)).astype("f4")
        for algorithm in ("auto", *kernels("forward", backend)):
            how = {"padding": 1, "algorithm": algorithm}
            yield f"conv2d {size} {algorithm}", lambda x=x, w=weight, how=how: fastconv.conv2d(x, w, **how)
        for algorithm in kernels("backward_data", backend):
            how = {"padding": 1, "algorithm": algorithm}
            yield f"backward_data {size} {algorithm}", lambda d=dout, w=weight, s=x.shape, how=how: \
                fastconv.conv2d_backward_data(d, w, s, **how)
        for algorithm in kernels("backward_weight", backend):
            how = {"padding": 1, "algorithm": algorithm}
            yield f"backward_weight {size} {algorithm}", lambda d=dout, x=x, s=weight.shape, how=how: \
                fastconv.conv2d_backward_weight(d, x, s, **how)
        wide = np.asfortranarray(x.astype("f8"))  # copied before it is computed with
        yield f"strided {size}", lambda x=wide, w=weight: fastconv.conv2d(x, w)
        half = x.astype("f2")
        yield f"float16 {size}", lambda x=half, w=weight: fastconv.conv2d(x, w.astype("f2"))
        yield f"backward {size}", lambda d=dout, x=x, w=weight: np.concatenate(
            [part.ravel() for part in fastconv.conv2d_backward(d, x, w, padding=1)])
        for layout in ("rows", "columns", "windows", "cs231n"):
            yield f"im2col {size} {layout}", lambda x=x, layout=layout: fastconv.im2col(x, 3, 3, layout=layout)
            col = fastconv.im2col(x, 3, 3, layout=layout)
            yield f"col2im {size} {layout}", lambda c=col, s=x.shape, layout=layout: fastconv.col2im(c, s, 3, 3, layout=layout)
        yield f"max_pool2d {size}", lambda x=x: fastconv.max_pool2d(x, 3, 2, 1)
        yield f"indices {size}", lambda x=x: fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)[1]
        values, indices = fastconv.max_pool2d(x, 2, return_indices=True)
        yield f"max_pool2d_backward {size}", lambda d=values, i=indices, s=x.shape: fastconv.max_pool2d_backward(d, i, s)
        yield f"avg_pool2d {size}", lambda x=x: fastconv.avg_pool2d(x, 3, 2, 1)
        yield f"avg_pool2d_backward {size}", lambda d=values, s=x.shape: fastconv.avg_pool2d_backward(d, s, 2)


def forgotten(call: Callable[[], Any]) -> Any:
    """Its result as of a first call and then another: small ones make tables, which later calls of the same shapes use."""
    functional._small_calls.clear()
    call()
    return call()


def fail_everywhere(library: str, backend: str, threads: int, least: int) -> None:
    """Let each allocation of each call fail in turn."""
    shim = ctypes.CDLL(library)
    shim.fc_fail.argtypes, shim.fc_in_use.restype = [ctypes.c_long, ctypes.c_size_t], ctypes.c_long
    fastconv.options(backend=backend, num_threads=threads)
    problems, fired = [], 0
    for name, call in calls(backend):
        want = call()
        failures = set()
        in_use = []
        for _ in range(3):  # what the first round leaves in caches is no leak; what each round leaves is
            for n in range(500):
                before = shim.fc_failed()
                try:
                    shim.fc_fail(n, least)
                    got = call()
                    shim.fc_fail(-1, 0)
                except MemoryError:
                    shim.fc_fail(-1, 0)
                    got = None
                except BaseException as error:
                    shim.fc_fail(-1, 0)
                    problems.append(f"{name}: allocation {n} that fails is {error!r}")
                    got = None
                happened = shim.fc_failed() > before
                if got is not None and not np.array_equal(got, want):
                    problems.append(f"{name}: a wrong result after allocation {n} failed")
                if not happened:
                    break
                failures.add(n)
                del got
                if not np.array_equal(call(), want):
                    problems.append(f"{name}: a wrong result in the call after allocation {n} failed")
            else:
                problems.append(f"{name}: more than 500 allocations")
            fastconv.release_memory()
            gc.collect()
            in_use.append(shim.fc_in_use())
        fired += len(failures)
        if in_use[2] - in_use[1] > 256 * max(len(failures), 1):
            problems.append(f"{name}: {in_use[2] - in_use[1]} bytes are lost in {len(failures)} failures")
    print("\n".join([*problems, f"{fired} allocations failed"]))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not sys.platform.startswith("linux"):
        pytest.skip(f"LD_PRELOAD with glibc's names is for Linux, not {sys.platform}")
    if COMPILER is None:
        pytest.skip("no C compiler here")
    path = tmp_path_factory.mktemp("malloc") / "failing_malloc.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(path), str(HERE / "failing_malloc.c")], check=True)
    return path


@pytest.mark.skipif(not backend_available("cython"), reason="the other backends' memory is NumPy's and Numba's business")
@pytest.mark.parametrize(("threads", "least"), [(1, 2048), (2, 4096)], ids=["one-thread", "two-threads"])
def test_an_allocation_that_fails_is_a_memory_error(threads, least, library):
    """Only what is as large as a result or scratch fails: NumPy and OpenMP end the process where they get no small block."""
    printed = output_of(f"import test_out_of_memory as t; t.fail_everywhere({str(library)!r}, 'cython', {threads}, {least})",
                  LD_PRELOAD=str(library), OPENBLAS_NUM_THREADS="1")
    assert re.fullmatch(r"\d{2,} allocations failed\n", printed), printed


LIMITED = """
    import resource
    import numpy as np
    import fastconv

    def limit_to(more):
        with open("/proc/self/status") as status:
            now = next(int(line.split()[1]) for line in status if line.startswith("VmSize:"))
        resource.setrlimit(resource.RLIMIT_AS, (1024 * now + more, resource.getrlimit(resource.RLIMIT_AS)[1]))
"""


@on_linux
def test_a_limit_of_the_address_space_is_a_memory_error(engine):
    """Results and scratch that do not fit any more, then calls that do."""
    printed = output_of(textwrap.dedent(LIMITED) + textwrap.dedent(f"""
    fastconv.options(backend={engine.backend!r})
    x, weight = np.zeros((1, 8, 1500, 1500), "f4"), np.ones((8, 8, 3, 3), "f4")  # 72 MB, of which no page is touched
    small = np.random.default_rng(0).standard_normal((2, 8, 30, 30)).astype("f4")
    where = np.broadcast_to(np.zeros((), "i8"), (1, 8, 1500, 1500))

    def easy():
        return [fastconv.conv2d(small, weight), fastconv.im2col(small, 3, 3), fastconv.max_pool2d(small, 2),
                *fastconv.conv2d_backward(small, small, weight, padding=1), fastconv.avg_pool2d(small, 3)]

    want = easy()
    out = np.zeros((1, 8, 1498, 1498), "f4")
    calls = [
        lambda: fastconv.conv2d(x, weight),
        lambda: fastconv.conv2d(x, weight, algorithm="im2col", out=out),
        lambda: fastconv.conv2d_backward_data(x, weight, x.shape, padding=1),
        lambda: fastconv.conv2d_backward_weight(out, x, weight.shape, algorithm="im2col"),
        lambda: fastconv.conv2d(x.transpose(0, 1, 3, 2), weight, out=out),  # its copy
        lambda: fastconv.conv_transpose2d(x, weight),
        lambda: fastconv.im2col(x, 3, 3),
        lambda: fastconv.col2im(np.broadcast_to(x.ravel()[0], (1500 * 1500, 8)), x.shape, 1, 1),
        lambda: fastconv.max_pool2d(x, 2, 1),
        lambda: fastconv.max_pool2d(x, 2, 1, return_indices=True),
        lambda: fastconv.max_pool2d_backward(x, where, x.shape),
        lambda: fastconv.avg_pool2d(x, 2, 1),
        lambda: fastconv.avg_pool2d_backward(x, x.shape, 1),
    ]
    limit_to(40 * 2**20)
    for turn in range(3):
        for i, call in enumerate(calls):
            try:
                call()
            except MemoryError:
                continue
            print("no error in call", i)
        assert all(np.array_equal(a, b) for a, b in zip(easy(), want, strict=True))
    print("level")
    """), FASTCONV_ISA=engine.isa, OPENBLAS_NUM_THREADS="1")
    assert printed == "level\n"


@on_linux
def test_threads_that_cannot_be_started_are_done_without():
    """GNU OpenMP ends the process where it gets no thread, be it for a limit of processes or of address space, as here."""
    printed = output_of(textwrap.dedent(LIMITED) + textwrap.dedent("""
    x, weight = np.ones((4, 16, 100, 100), "f4"), np.ones((16, 16, 3, 3), "f4")
    with fastconv.options(num_threads=1):
        want = fastconv.conv2d(x, weight)
    limit_to(40 * 2**20)
    with fastconv.options(num_threads=64):
        print((fastconv.conv2d(x, weight) == want).all(), (fastconv.max_pool2d(x, 2) == 1).all())
    """))
    assert printed == "True True\n"
