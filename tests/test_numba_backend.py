"""The Numba backend beyond what runs on every backend: threads, caches, signatures, compiled code."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CONV_CASES, CORE_CONV_CASES, POOL_CASES
from processes import FORKING
from processes import output_of as run_script

import fastconv
from fastconv import im2col_gemm, memory
from fastconv.backends import Budget
from fastconv.geometry import conv2d_geometry, pool2d_geometry, unpool2d_geometry, window2d_geometry
from fastconv.jit import NumbaBackend

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

LAYERS = ("omp", "workqueue", "tbb")

#: A training step's worth of calls on arrays large enough for several threads.
SOME_CALLS = """
import numpy as np
import fastconv

rng = np.random.default_rng(0)
x, w = rng.standard_normal((4, 8, 60, 61)).astype("f4"), rng.standard_normal((9, 8, 3, 3)).astype("f4")
fastconv.options(backend="numba", num_threads=THREADS)

def compute():
    out = fastconv.conv2d(x, w, algorithm="direct")
    pooled, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    return [out, *fastconv.conv2d_backward(out, x, w, algorithm="direct"), pooled,
            fastconv.max_pool2d_backward(pooled, indices, x.shape), fastconv.avg_pool2d(x, 3), fastconv.im2col(x, 3, 3)]

def same():
    return all(np.array_equal(a, b) for a, b in zip(compute(), want, strict=True))

want = compute()
"""


def script(text: str, threads: int = 2, **environment: str) -> str:
    """Run SOME_CALLS and then `text` in a new interpreter; what is printed."""
    return run_script(SOME_CALLS.replace("THREADS", str(threads)) + text, **environment)


def layer_environment(layer: str) -> dict[str, str]:
    """The environment for a threading layer, or skip where it is not installed."""
    if layer not in layers_found():
        pytest.skip(f"Numba's threading layer {layer} is not installed")
    return {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "3"}


@lru_cache(maxsize=1)
def layers_found() -> list[str]:
    found = []
    for layer in LAYERS:
        done = subprocess.run([sys.executable, "-c", "import numba; numba.get_num_threads()"], capture_output=True,
                              env={**os.environ, "NUMBA_THREADING_LAYER": layer}, check=False)
        if done.returncode == 0:
            found.append(layer)
    return found


# --- without Numba ----------------------------------------------------------------------------------------------------


def test_numba_is_imported_by_the_first_call_only():
    printed = run_script("""
        import sys
        import numpy as np
        import fastconv, fastconv.jit, fastconv.nn, fastconv.cli

        fastconv.options(backend="numpy")
        fastconv.show_config()
        fastconv.max_pool2d(np.ones((1, 1, 4, 4)), 2)
        fastconv.plan_conv2d((1, 1, 4, 4), (1, 1, 3, 3))
        assert not {"numba", "llvmlite"} & set(sys.modules)
        print("not imported")
    """)
    assert printed.endswith("not imported\n")


def test_where_numba_is_not_installed_the_error_says_how_to_get_it():
    printed = run_script("""
        import sys
        sys.modules["numba"] = None  # what Python takes for: not there
        import fastconv
        for use in (lambda: fastconv.options(backend="numba"), lambda: __import__("fastconv.jit.direct")):
            try:
                use()
            except ImportError as error:
                print(error)
        assert "numba (not available)" in fastconv.options.__init__.__globals__["configuration"]()["backends"]
    """)
    first, second = printed.splitlines()
    assert "backend='numba' is not available" in first
    assert "needs Numba" in second
    assert all("pip install 'fastconv[numba]'" in line for line in (first, second))


def test_the_environment_asks_for_a_backend_that_is_not_installed():
    printed = run_script("""
        import sys
        sys.modules["numba"] = None
        import fastconv
        try:
            fastconv.plan_conv2d((1, 1, 4, 4), (1, 1, 3, 3))
        except ImportError as error:
            print(error)
    """, FASTCONV_BACKEND="numba")
    assert re.search(r"FASTCONV_BACKEND='numba'.*pip install 'fastconv\[numba\]'", printed)


@needs_numba
def test_a_numba_that_is_too_old_is_an_import_error():
    printed = run_script("""
        import numba
        numba.__version__ = "0.58.1"
        import fastconv, numpy as np
        fastconv.options(backend="numba")
        try:
            fastconv.max_pool2d(np.ones((1, 1, 4, 4)), 2)
        except ImportError as error:
            print(error)
    """)
    assert re.search(r"0\.59.*0\.58\.1.*pip install --upgrade", printed)


# --- without the extension modules ------------------------------------------------------------------------------------

WITHOUT_EXTENSIONS = """
import importlib.abc, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith("fastconv.native._"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
"""


@needs_numba
def test_without_the_extension_modules_numba_is_the_default():
    printed = run_script(WITHOUT_EXTENSIONS + """
import numpy as np
import fastconv

x = np.random.default_rng(0).standard_normal((2, 3, 8, 9)).astype("f4")
w = np.ones((4, 3, 3, 3), "f4")
plan = fastconv.plan_conv2d(x.shape, w.shape, padding=1)
print(plan.backend, plan.isa)
from fastconv import reference
assert np.allclose(fastconv.conv2d(x, w, padding=1), reference.conv2d(x, w, padding=1), atol=1e-5)
fastconv.release_memory()
fastconv.show_config()
try:
    fastconv.options(backend="cython")
except ImportError as error:
    print(error)
""")
    assert printed.startswith("numba None\n")
    assert re.search(r"^isa +none: .*FASTCONV_NO_EXTENSIONS", printed, re.M)
    assert re.search(r"^backends +cython \(not available\), numba, numpy$", printed, re.M)
    assert "backend='cython' is not available" in printed


def test_without_the_extension_modules_and_without_numba_numpy_is_the_default():
    printed = run_script(WITHOUT_EXTENSIONS + """
sys.modules["numba"] = None
import numpy as np
import fastconv
print(fastconv.plan_conv2d((1, 1, 4, 4), (1, 1, 3, 3)).backend)
print(fastconv.conv2d(np.ones((1, 1, 3, 3), "f4"), np.ones((1, 1, 3, 3), "f4")))
""")
    assert printed == "numpy\n[[[[9.]]]]\n"


SETUP = Path(__file__).resolve().parent.parent / "setup.py"


@pytest.mark.skipif(not SETUP.exists(), reason="there is no setup.py beside the tests")
def test_a_build_without_extensions_needs_no_cython_and_no_compiler(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    text = (f"import sys; sys.modules['Cython'] = None; sys.argv = ['setup.py', '-q', 'build', '--build-base', "
            f"{str(tmp_path)!r}, 'egg_info', '--egg-base', {str(tmp_path)!r}]; "
            f"__file__ = {str(SETUP)!r}; exec(compile(open(__file__).read(), __file__, 'exec'))")

    def build(**environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTCONV_")}
        return subprocess.run([sys.executable, "-c", text], cwd=SETUP.parent, capture_output=True, text=True,
                              env={**inherited, "CC": "no-such-compiler", **environment}, check=False)

    done = build(FASTCONV_NO_EXTENSIONS="1")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"functional.py", "direct.py"} <= names
    assert not any(name.endswith((".so", ".pyd", ".c")) for name in names)
    for environment in ({}, {"FASTCONV_NO_EXTENSIONS": "0"}):  # never by accident
        assert build(**environment).returncode != 0


# --- threads ----------------------------------------------------------------------------------------------------------


def backend_calls(case: Any, dtype: str) -> list[tuple[str, Callable[[int], np.ndarray]]]:
    """All convolution kernels for one case, called behind the functions that send small work to one thread."""
    backend, rng = NumbaBackend(), np.random.default_rng(0)
    x, weight = rng.standard_normal(case.x).astype(dtype), rng.standard_normal(case.weight).astype(dtype)
    geometry = conv2d_geometry(case.x, case.weight, **case.arguments)
    dout = rng.standard_normal(geometry.output_shape).astype(dtype)

    def run(method: Callable[..., None], *inputs: Any, shape: tuple[int, ...]) -> Callable[[int], np.ndarray]:
        def call(threads: int) -> np.ndarray:
            out = np.full(shape, np.nan, dtype)
            method(*inputs, geometry, out, Budget(threads, 0))
            return out
        return call

    bias = rng.standard_normal(case.weight[0]).astype(dtype)
    return [("forward", run(backend.direct_forward, x, weight, bias, True, shape=geometry.output_shape)),
            ("backward_data", run(backend.direct_backward_data, dout, weight, shape=case.x)),
            ("backward_weight", run(backend.direct_backward_weight, dout, x, shape=case.weight))]


@needs_numba
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_convolutions_give_the_same_bits_with_any_number_of_workers(case):
    for name, call in backend_calls(case, "float32"):
        want = call(1)
        assert not np.isnan(want).any(), name
        for threads in (2, 3, 7):
            assert np.array_equal(call(threads).view(np.uint8), want.view(np.uint8)), (name, threads)


@needs_numba
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_lowering_gives_the_same_bits_with_any_number_of_workers(case):
    backend, rng = NumbaBackend(), np.random.default_rng(0)
    geometry = window2d_geometry(case.x, *case.window, case.dilation)
    x = rng.standard_normal(case.x).astype("f4")
    for layout in ("rows", "columns", "cs231n"):
        shape = geometry.columns_shape(layout)
        col = rng.standard_normal(shape).astype("f4")
        got = {threads: (np.full(shape, np.nan, "f4"), np.full(case.x, np.nan, "f4")) for threads in (1, 2, 3)}
        for threads, (columns, image) in got.items():
            backend.im2col(x, geometry, layout, 0, columns, threads)
            backend.col2im(col, geometry, layout, image, threads)
            for result, want in zip((columns, image), got[1], strict=True):
                assert np.array_equal(result, want), (layout, threads)
                assert not np.isnan(result).any()


@needs_numba
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_poolings_give_the_same_bits_with_any_number_of_workers(case):
    backend, rng = NumbaBackend(), np.random.default_rng(0)
    how = case.arguments
    geometry = pool2d_geometry(case.x, how["kernel_size"], how["stride"], how["padding"], how["dilation"],
                               how["ceil_mode"])
    if geometry.empty_window:
        pytest.skip("a window without a cell is an error")
    x, shape = rng.standard_normal(case.x).astype("f4"), geometry.output_shape
    dout = rng.standard_normal(shape).astype("f4")

    def compute(threads: int) -> list[np.ndarray]:
        out, searched, mean = (np.full(shape, np.nan, "f4") for _ in range(3))
        indices = np.full(shape, -1)
        dx, dmean = np.full(case.x, np.nan, "f4"), np.full(case.x, np.nan, "f4")
        backend.max_pool(x, geometry, out, None, threads)
        backend.max_pool(x, geometry, searched, indices, threads)
        assert backend.max_pool_backward(dout, indices, unpool2d_geometry(shape, shape, case.x), dx, threads)
        backend.avg_pool(x, geometry, True, None, mean, threads)
        backend.avg_pool_backward(dout, geometry, False, None, dmean, threads)
        return [out, searched, indices, dx, mean, dmean]

    want = compute(1)
    assert np.array_equal(want[0], want[1])
    for threads in (2, 3):
        for got, right in zip(compute(threads), want, strict=True):
            assert np.array_equal(got.view(np.uint8), right.view(np.uint8))


@needs_numba
def test_one_thread_never_starts_the_pool():
    printed = script("""
import numba
try:
    numba.threading_layer()
except ValueError:
    print("not started")
""", threads=1)
    assert printed == "not started\n"


@needs_numba
@pytest.mark.parametrize("layer", LAYERS)
def test_many_python_threads_at_once(layer):
    printed = script("""
import threading
from concurrent.futures import ThreadPoolExecutor
import numba

start = threading.Barrier(8)

def work(seed):
    start.wait()
    with fastconv.options(num_threads=1 + seed % 3):
        return all(same() for _ in range(15))

with ThreadPoolExecutor(8) as pool:
    assert all(pool.map(work, range(8)))
print(numba.threading_layer())
""", **layer_environment(layer))
    assert printed == f"{layer}\n"


@needs_numba
@needs_fork
@pytest.mark.parametrize("layer", LAYERS)
def test_after_fork(layer):
    """In the thread that forked, in new threads, in a grandchild. GNU OpenMP would end a child that goes parallel."""
    printed = script(FORKING + """
for check in (same, in_threads, lambda: same() and in_threads(), lambda: child(in_threads) or same()):
    child(check)
assert same() and in_threads()
import numba
print(numba.threading_layer())
""", **layer_environment(layer))
    assert printed == f"{layer}\n"


@needs_numba
@needs_fork
def test_a_child_of_a_process_without_a_pool_may_have_one():
    printed = script("""
import os, threading
pid = os.fork()
if pid == 0:
    code = 1
    try:
        def work():
            global ok
            fastconv.options(num_threads=2)
            ok = same()
        worker = threading.Thread(target=work)  # the thread that forked has no threads, new ones have
        worker.start(); worker.join()
        import numba
        code = 0 if ok and numba.threading_layer() else 2
    finally:
        os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""", threads=1, NUMBA_NUM_THREADS="2")
    assert printed == "0\n"


@needs_numba
@needs_fork
def test_a_fork_while_another_thread_compiles(tmp_path):
    """It waits for the compiler's lock, which nobody would open in the child."""
    printed = run_script("""
import os, signal, threading
import numpy as np
import fastconv
from fastconv.jit import im2col  # what is being imported while a process forks is never there in the child
from numba.core.compiler_lock import global_compiler_lock
fastconv.options(backend="numba", num_threads=1)
x = np.arange(64, dtype="f4").reshape(1, 1, 8, 8)
worker = threading.Thread(target=lambda: fastconv.im2col(x, 2, 2))
worker.start()
while global_compiler_lock._lock.acquire(blocking=False):  # until it compiles
    global_compiler_lock._lock.release()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    os._exit(0 if fastconv.im2col(x, 2, 2)[-1, -1] == 63 else 2)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
worker.join()
print("the child hung" if status == -signal.SIGALRM else status)
""", NUMBA_CACHE_DIR=str(tmp_path))
    assert printed == "0\n"


@needs_numba
def test_more_threads_than_the_pool_has():
    printed = script("""
import numba
for threads in (1, 2, 3, 64, 1000):
    with fastconv.options(num_threads=threads):
        assert same(), threads
assert numba.config.NUMBA_NUM_THREADS == 2 and numba.get_num_threads() == 2
plan = fastconv.plan_conv2d(x.shape, w.shape)
with fastconv.options(num_threads=1000):
    assert fastconv.plan_conv2d(x.shape, w.shape).workspace_bytes == plan.workspace_bytes
print("same")
""", NUMBA_NUM_THREADS="2")
    assert printed == "same\n"


@needs_numba
def test_the_callers_own_number_of_threads_is_put_back():
    printed = script("""
import numba
numba.set_num_threads(1)
assert same()
assert numba.get_num_threads() == 1
print(numba.get_num_threads())
""", NUMBA_NUM_THREADS="3")
    assert printed == "1\n"


@needs_numba
def test_python_threads_run_while_a_kernel_does():
    """The kernels of several threads release the GIL too."""
    from test_threads import while_it_runs

    x, weight = np.ones((4, 64, 64, 64), np.float32), np.ones((64, 64, 3, 3), np.float32)
    with fastconv.options(backend="numba"):
        fastconv.conv2d(x, weight, algorithm="direct")

    def call() -> None:
        with fastconv.options(backend="numba", num_threads=2):
            fastconv.conv2d(x, weight, algorithm="direct")

    assert while_it_runs(call) > 0


# --- the way from the functions to the kernels ------------------------------------------------------------------------


@needs_numba
def test_signatures_are_bounded():
    """One for each dtype, whatever comes in: any memory order, read-only, byte-swapped, with and without bias."""
    from fastconv.jit.options import KERNELS

    rng = np.random.default_rng(0)
    for dtype in ("f4", "f8"):
        x, w = rng.standard_normal((2, 4, 9, 9)).astype(dtype), rng.standard_normal((6, 4, 3, 3)).astype(dtype)
        frozen = x.copy()
        frozen.flags.writeable = False
        forms = [x, frozen, np.asfortranarray(x), x[::-1], x[..., ::-1], x.astype(">" + dtype), x[:1], x[0]]
        for image in forms:
            for threads in (1, 2):
                with fastconv.options(backend="numba", num_threads=threads):
                    for bias, activation in ((None, None), (w[:, 0, 0, 0], "relu")):
                        out = fastconv.conv2d(image, w, bias, activation=activation, algorithm="direct")
                    fastconv.conv2d_backward(out, image, w, algorithm="direct")
                    fastconv.conv2d(image, w, algorithm="im2col")
                    for taps in (3, 4, 5):
                        filters = np.ones((6, 4, taps, taps), dtype)
                        out = fastconv.conv2d(image, filters, bias, algorithm="winograd")
                        fastconv.conv2d_backward_data(out, filters, image.shape, algorithm="winograd")
                    pooled, indices = fastconv.max_pool2d(image, 2, return_indices=True)
                    fastconv.max_pool2d(image, 3, 1, 1)
                    fastconv.max_pool2d_backward(pooled, indices, image.shape)
                    fastconv.avg_pool2d_backward(fastconv.avg_pool2d(image, 2), image.shape, 2)
                    fastconv.col2im(fastconv.im2col(image, 2, 2), image.shape, 2, 2)
    for dtype in (np.uint8, np.float16, np.int32, np.int64, np.complex128, np.bool_):
        with fastconv.options(backend="numba"):
            fastconv.im2col(np.ones((1, 1, 4, 4), dtype), 2, 2)
    seen = set()
    for kernel in KERNELS:
        for dispatcher in kernel.dispatchers.values():
            assert 1 <= len(dispatcher.signatures) <= (5 if kernel.name == "im2col.gather" else 2), kernel.name
            seen.add(kernel.name)
    assert seen == {kernel.name for kernel in KERNELS}  # each was called by something above


@needs_numba
@pytest.mark.parametrize("case", CORE_CONV_CASES, ids=str)
def test_the_plan_tells_the_scratch_that_is_used(case):
    x, weight = np.ones(case.x, np.float32), np.ones(case.weight, np.float32)
    how = {**case.arguments, "algorithm": "direct"}
    with fastconv.options(backend="numba"):
        plans = {direction: fastconv.plan_conv2d(case.x, case.weight, **how, direction=direction)
                 for direction in ("forward", "backward_data", "backward_weight")}
        dout = np.ones(plans["forward"].output_shape, np.float32)
        calls = {"forward": lambda: fastconv.conv2d(x, weight, **how),
                 "backward_data": lambda: fastconv.conv2d_backward_data(dout, weight, case.x, **how),
                 "backward_weight": lambda: fastconv.conv2d_backward_weight(dout, x, case.weight, **how)}
        for direction, call in calls.items():
            call()  # small ones are made ready by their first call
            with memory.watch_scratch() as watch:
                call()
            if x.size:
                assert watch.largest == plans[direction].workspace_bytes, direction


@needs_numba
@pytest.mark.parametrize("case", CONV_CASES, ids=str)
def test_other_ways_of_direct_convolution(case, monkeypatch, assert_accurate):
    """Tiles instead of planes by themselves; results past the caches; rows with positions between them, and without; chunks;
    columns of taps for the gradient of any number of channels, and of none."""
    from fastconv import reference
    from fastconv.jit import costs, depthwise, direct, few_channels

    rng = np.random.default_rng(0)
    geometry = conv2d_geometry(case.x, case.weight, **case.arguments)
    x, weight, dout, bias = (rng.standard_normal(shape).astype(np.float32)
                             for shape in (case.x, case.weight, geometry.output_shape, case.weight[:1]))
    want = reference.conv2d_backward_weight_core(dout, x, geometry)
    want_data = reference.conv2d_backward_data_core(dout, weight, geometry)
    want_out = reference.conv2d_core(x, weight, bias, geometry, True)
    for part in (0, 10**9):
        monkeypatch.setattr(depthwise, "job", lambda *args: None)
        for name, value in {"STREAM_BYTES": 0, "BAND_BYTES": 16384, "CHUNK_BYTES": 512,
                            "plan": direct.plan.__wrapped__}.items():  # without the plans that are kept
            monkeypatch.setattr(direct, name, value)
        monkeypatch.setattr(few_channels, "plan", few_channels.plan.__wrapped__)
        for name, value in {"UNROLLED_PART": part, "UNROLLED_BYTES": 10**9, "LEAST_FLOPS": 0, "LEAST_FILTERS": 1,
                            "COLUMN_BYTES": 8192, "MOST_CHANNELS": part}.items():
            monkeypatch.setattr(costs, name, value)
        for threads in (1, 2):
            dw, dx, out = (memory.aligned_bytes("a result", 4 * math.prod(shape)).view("f4").reshape(shape)
                           for shape in (case.weight, case.x, geometry.output_shape))
            for array in (dw, dx, out):
                array[...] = np.nan
            assert direct.backward_weight(dout, x, geometry, dw, threads)
            assert direct.backward_data(dout, weight, geometry, dx, threads)
            direct.forward(x, weight, bias, True, geometry, out, threads)
            assert_accurate(dw, want, weight_gradient=True)
            assert_accurate(dx, want_data)
            assert_accurate(out, want_out)
        monkeypatch.undo()


@needs_numba
def test_whole_lines_between_images_are_stored_nowhere(monkeypatch, assert_accurate):
    """Four images in one flat copy, with a row between them that is as long as a tile. (Such images are not put together.)"""
    from fastconv import reference
    from fastconv.jit import direct

    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 2, 2, 72), (7, 2, 2, 9)))
    monkeypatch.setattr(direct, "plan", direct.plan.__wrapped__)
    monkeypatch.setattr(direct.ForwardPlan, "_set_images", lambda plan: plan.job.update(images=4))
    geometry = conv2d_geometry(x.shape, weight.shape)
    got = np.full(geometry.output_shape, np.nan, np.float32)
    direct.forward(x, weight, None, False, geometry, got, 1)
    assert_accurate(got, reference.conv2d(x.astype("f8"), weight.astype("f8")))


@needs_numba
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), (3, 1, 0), (2, 1, 0), (4, 2, 1), (2, 1, 1)],
                         ids=str)
@pytest.mark.parametrize("size", [(24, 24), (40, 33), (25, 47), (16, 100), (12, 128)], ids=str)
def test_max_gradients_of_common_windows_and_of_others(size, window, dtype, monkeypatch):
    """Cells that ask their windows give what adding at indices gives, whatever the indices: no window is taken for another."""
    from fastconv.jit import pooling

    rng = np.random.default_rng(0)
    for ceil_mode, streamed in itertools.product((False, True), repeat=2):
        if streamed:
            monkeypatch.setattr(pooling, "STREAM_BYTES", 0)
        x = rng.standard_normal((2, 3, *size)).astype(dtype)
        with fastconv.options(backend="numba"):
            out, indices = fastconv.max_pool2d(x, *window, ceil_mode=ceil_mode, return_indices=True)
        dout = rng.standard_normal(out.shape).astype(dtype)
        elsewhere, beside, last, wrapped = (indices.copy() for _ in range(4))
        elsewhere.reshape(-1)[rng.integers(0, indices.size, 3)] = rng.integers(0, math.prod(size), 3)
        beside += rng.integers(-1, 2, indices.shape) * (rng.random(indices.shape) < 0.02)
        last[-1, -1, -1, -1] = 0
        wrapped[1, 0, 1:, 0] -= 1  # perhaps the end of the row above
        for chosen in (indices, elsewhere, beside.clip(0, math.prod(size) - 1), last, wrapped.clip(0)):
            want = np.zeros((6, math.prod(size)))
            for plane, places, gradient in zip(want, chosen.reshape(6, -1), dout.reshape(6, -1), strict=True):
                np.add.at(plane, places, gradient)
            for threads in (1, 2):
                with fastconv.options(backend="numba", num_threads=threads):
                    got = fastconv.max_pool2d_backward(dout, chosen, x.shape)
                np.testing.assert_allclose(got, want.reshape(x.shape), rtol=0, atol=1e-5 if dtype == "f4" else 1e-13)
        for place in (-1, math.prod(size), 2**32 + int(indices[1, 1, 0, 0]), -2**32, 2**63 - 1):
            wrapped = indices.copy()
            wrapped[1, 1, 0, 0] = place
            with fastconv.options(backend="numba"), pytest.raises(ValueError, match="indices"):
                fastconv.max_pool2d_backward(dout, wrapped, x.shape)


@needs_numba
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(2, 5, 9, 9), (3, 16, 28, 28), (1, 33, 12, 40), (2, 3, 17, 70), (2, 2, 30, 230),
                                   (1, 40, 7, 7)], ids=str)
def test_col2im_of_rows_by_turning_them(shape, dtype):
    """Windows of many kinds, the same bits for any number of workers: channels may be dealt out to them."""
    from fastconv import reference

    rng = np.random.default_rng(0)
    for kernel, stride, pad, dilation in [
            ((3, 3), 1, 1, 1), ((3, 3), 2, 1, 1), ((5, 5), 1, 2, 1), ((3, 3), 1, 2, 2), ((2, 3), (1, 2), 1, 1),
            ((1, 1), 1, 0, 1),
            ((3, 3), 2, ((0, 2), (3, 1)), 1), ((4, 4), (2, 1), 3, 1), ((7, 7), 2, 3, 1), ((3, 3), (1, 2), 0, (1, 2))]:
        geometry = window2d_geometry(shape, *kernel, stride, pad, dilation)
        col = rng.standard_normal(geometry.columns_shape("rows")).astype(dtype)
        want = reference.col2im_core(col.astype("f8"), geometry, "rows")
        results = []
        for threads in (1, 2):
            with fastconv.options(backend="numba", num_threads=threads):
                results.append(fastconv.col2im(col, shape, *kernel, stride, pad, dilation=dilation))
        np.testing.assert_allclose(results[0], want, rtol=0, atol=1e-4 if dtype == "f4" else 1e-12)
        np.testing.assert_array_equal(*results)


@needs_numba
@pytest.mark.parametrize(("batch", "channels", "filters", "size"), [(17, 40, 9, 7), (11, 3, 530, 5), (2, 3, 70, 40)])
def test_small_images_share_a_tile(batch, channels, filters, size, assert_accurate):
    """Several images in one flat copy, of which the last holds fewer; more filters than a tile has columns."""
    from fastconv import reference
    from fastconv.jit import direct

    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, channels, size, size)).astype(np.float32)
    weight = rng.standard_normal((filters, channels, 3, 3)).astype(np.float32)
    geometry = conv2d_geometry(x.shape, weight.shape, padding=1)
    images = direct.plan("forward", geometry, 4).job["images"]
    assert images == 1 if size == 40 else images > 1 and batch % images
    with fastconv.options(backend="numba"):
        out = fastconv.conv2d(x, weight, padding=1, algorithm="direct")
        dx, dw, _ = fastconv.conv2d_backward(out, x, weight, padding=1, algorithm="direct")
    assert_accurate(out, reference.conv2d_core(x, weight, None, geometry, False))
    assert_accurate(dx, reference.conv2d_backward_data_core(out, weight, geometry))
    assert_accurate(dw, reference.conv2d_backward_weight_core(out, x, geometry), weight_gradient=True)


@needs_numba
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("shape", "each", "kernel", "stride", "padding"), [
    ((2, 3, 39, 40), 1, 3, 1, 1), ((2, 2, 25, 200), 2, 3, 1, ((3, 0), (0, 4))), ((1, 2, 600, 21), 1, 3, 1, 1),
    ((2, 3, 83, 75), 1, 3, 2, 1), ((1, 2, 1100, 9), 3, 3, 2, ((0, 2), (2, 1))), ((1, 1, 70, 130), 1, 3, 2, ((1, 0), (2, 2))),
    ((2, 2, 45, 37), 1, 5, 1, 2), ((1, 2, 41, 83), 1, (5, 4), (3, 2), 2), ((2, 3, 20, 35), 1, 2, (2, 1), 1),
    ((1, 2, 9, 50), 2, (2, 3), (1, 2), 0)])
def test_planes_by_themselves(shape, each, kernel, stride, padding, dtype, assert_accurate):
    """Depthwise convolution in bands of rows, and gradients of weights in chunks of them, for any number of workers."""
    from fastconv import reference
    from fastconv.jit import depthwise

    rng = np.random.default_rng(0)
    weight_shape = (shape[1] * each, 1, *np.broadcast_to(kernel, 2).tolist())
    geometry = conv2d_geometry(shape, weight_shape, stride, padding, 1, shape[1])
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal(weight_shape).astype(dtype)
    bias, dout = (rng.standard_normal(size).astype(dtype) for size in (weight_shape[0], geometry.output_shape))
    assert depthwise.job("forward", geometry, x.itemsize) is not None
    want = None
    for threads in (1, 2, 3):
        how = {"stride": stride, "padding": padding, "groups": shape[1], "algorithm": "direct"}
        with fastconv.options(backend="numba", num_threads=threads):
            got = (fastconv.conv2d(x, weight, bias, activation="relu", **how),
                   fastconv.conv2d_backward_data(dout, weight, shape, **how),
                   fastconv.conv2d_backward_weight(dout, x, weight_shape, **how))
        want = want or got
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, other)
    assert_accurate(got[0], reference.conv2d_core(x, weight, bias, geometry, True))
    assert_accurate(got[1], reference.conv2d_backward_data_core(dout, weight, geometry))
    assert_accurate(got[2], reference.conv2d_backward_weight_core(dout, x, geometry), weight_gradient=True)


@needs_numba
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_in_planes(bad, stride):
    """Infinite weights meet padding, and cells of the image the rows that dout does not have."""
    from fastconv import reference

    rng = np.random.default_rng(0)
    how = {"stride": stride, "padding": ((1, 2), (2, 0)), "groups": 3}
    for place in ((0, 0, 0, 0), (0, 1, 5, 8), (0, 2, 2, 3)):
        x, weight = rng.standard_normal((1, 3, 6, 9)), rng.standard_normal((3, 1, 3, 3))
        dout = np.ones(reference.conv2d(x, weight, None, **how).shape)
        for spoiled, at in ((x, place), (weight, (place[1], 0, *np.minimum(place[2:], 2))), (dout, (0, place[1], 0, 0))):
            before, spoiled[at] = spoiled[at], bad
            want = (reference.conv2d(x, weight, None, **how), *reference.conv2d_backward(dout, x, weight, **how))
            with fastconv.options(backend="numba", num_threads=1):
                got = (fastconv.conv2d(x, weight, None, **how, algorithm="direct"),
                       *fastconv.conv2d_backward(dout, x, weight, **how, algorithm="direct"))
            for one, other in zip(got, want, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
            spoiled[at] = before


@needs_numba
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_goes_another_way(bad, monkeypatch):
    """Zeros between the rows of the flat copies would turn it into NaN; in a modest amount of memory."""
    taken = []

    def watch(name: str) -> None:
        before = getattr(im2col_gemm, name)
        monkeypatch.setattr(im2col_gemm, name, lambda *args: taken.append(name) or before(*args))

    watch("backward_data")
    watch("backward_weight")
    x, weight = np.ones((1, 2, 5, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)
    dout = np.ones((1, 3, 5, 6), np.float32)
    with fastconv.options(backend="numba"):
        fastconv.conv2d_backward(dout, x, weight, padding=1, algorithm="direct")
        assert taken == []
        x[0, 1, 2, 3] = weight[1, 1, 0, 2] = bad
        dx, dw, _ = fastconv.conv2d_backward(dout, x, weight, padding=1, algorithm="direct")
    assert taken == ["backward_data", "backward_weight"]
    with fastconv.options(backend="numpy"):
        want = fastconv.conv2d_backward(dout, x, weight, padding=1, algorithm="direct")
    np.testing.assert_array_equal(dx, want[0])
    np.testing.assert_array_equal(dw, want[1])


@needs_numba
def test_a_small_call_made_ready():
    from fastconv.jit.direct import SmallForward

    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 3, 8, 8)).astype("f4"), rng.standard_normal((4, 3, 3, 3)).astype("f4")
    bias = rng.standard_normal(4).astype("f4")
    ready_geometry = conv2d_geometry(x.shape, weight.shape, padding=1)
    ready = SmallForward(ready_geometry, x.dtype, False, True)
    with fastconv.options(backend="numba"):
        want = fastconv.conv2d(x[0], weight, bias, padding=1, activation="relu")
    np.testing.assert_array_equal(ready(x, weight, bias), want)
    assert ready(x, weight, None).shape == (4, 8, 8)
    swapped = x.astype(">f4")
    for wrong in (np.asfortranarray(x), swapped, x.astype("f8")):
        assert ready(wrong, weight, bias) is None
    assert SmallForward(ready_geometry, swapped.dtype, False, True)(swapped, weight.astype(">f4"), None) is None


@needs_numba
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("bypass", [False, True])
def test_more_channels_than_are_turned_at_once(dtype, bypass, monkeypatch):
    """Blocks of channels and of places, in the caches and past them; windows of 2x2 cells that are turned in registers."""
    from fastconv import reference
    from fastconv.jit import im2col

    if bypass:
        monkeypatch.setattr(im2col, "STREAM_BYTES", 0)
    rng = np.random.default_rng(0)
    for shape, kernel, stride, pad in (((1, 256, 6, 28), 3, 1, 1), ((2, 70, 5, 90), 3, 2, 1), ((1, 40, 6, 230), 2, 2, 0),
                                       ((3, 7, 6, 34), 2, 2, 0), ((2, 8, 4, 48), 2, 2, 0), ((1, 5, 5, 33), 2, 2, 0)):
        x = rng.standard_normal(shape).astype(dtype)
        with fastconv.options(backend="numba", num_threads=1):
            col = fastconv.im2col(x, kernel, kernel, stride, pad)
            back = fastconv.col2im(col, shape, kernel, kernel, stride, pad)
        np.testing.assert_array_equal(col, reference.im2col(x, kernel, kernel, stride, pad))
        np.testing.assert_allclose(back, reference.col2im(col, shape, kernel, kernel, stride, pad), rtol=1e-5, atol=1e-5)


@needs_numba
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("bypass", [False, True])
def test_each_way_back_from_an_average(dtype, bypass, monkeypatch):
    """Rows of whole lines and others, doubled or spread, put together on the stack or not, and one that nearly fills it."""
    from fastconv import reference
    from fastconv.jit import pooling

    if bypass:
        monkeypatch.setattr(pooling, "STREAM_BYTES", 0)
    rng = np.random.default_rng(0)
    for shape, parameters in (
            ((2, 3, 8, 64), (2, 2)), ((3, 2, 6, 24), (2, 2)), ((2, 2, 4, 72), (2, 2)), ((1, 2, 3, 7), (2, 2, (1, 0))),
            ((2, 2, 9, 33), (3, 2, 1)), ((2, 2, 8, 32), (3, 2, 1)), ((1, 3, 23, 224), (3, 2, 1)), ((2, 2, 7, 20), (3, 1, 1)),
            ((2, 2, 7, 20), (3, 1, (2, 0), False, False)), ((2, 2, 10, 21), (2, 3)), ((2, 2, 11, 40), (4, (2, 3), 1))):
        dout = rng.standard_normal(reference.avg_pool2d(np.zeros(shape, dtype), *parameters).shape).astype(dtype)
        want = reference.avg_pool2d_backward(dout, shape, *parameters)
        for threads in (1, 2):
            with fastconv.options(backend="numba", num_threads=threads):
                got = fastconv.avg_pool2d_backward(dout, shape, *parameters)
            np.testing.assert_allclose(got, want, rtol=0, atol=np.abs(want).max() * (2e-6 if dtype == "f4" else 1e-12))


@needs_numba
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_single_planes_have_a_kernel_of_their_own(dtype):
    """Strips at both ends of the array and of rows, bands, several filters on a plane, padding beside and missing."""
    from fastconv import reference
    from fastconv.jit import depthwise

    rng = np.random.default_rng(0)
    tolerance = 2e-6 if dtype == "f4" else 1e-12
    for shape, each, stride, pad in (
            ((1, 1, 3, 3), 2, 1, 0), ((2, 3, 5, 7), 1, 1, 1), ((3, 2, 9, 18), 1, 2, 1),
            ((1, 2, 40, 33), 2, 2, ((0, 1), (2, 1))),
            ((1, 2, 70, 100), 1, 1, ((2, 0), (0, 1))), ((1, 2, 70, 100), 1, 2, 0), ((1, 2, 1, 40), 1, 1, 2)):
        x = rng.standard_normal(shape).astype(dtype)
        weight, bias = rng.standard_normal((shape[1] * each, 1, 3, 3)).astype(dtype), np.ones(shape[1] * each, dtype)
        geometry = conv2d_geometry(shape, weight.shape, stride, pad, 1, shape[1])
        for operation in ("forward", "backward_data", "backward_weight"):
            assert (depthwise.job(operation, geometry, x.itemsize) is None) == (operation == "backward_data" and each > 1)
        how = {"stride": stride, "padding": pad, "groups": shape[1]}
        want = reference.conv2d(x, weight, bias, **how, activation="relu")
        dout = rng.standard_normal(want.shape).astype(dtype)
        want_dx = reference.conv2d_backward_data(dout, weight, shape, **how)
        for threads in (1, 2):
            with fastconv.options(backend="numba", num_threads=threads):
                got = fastconv.conv2d(x, weight, bias, **how, activation="relu", algorithm="direct")
                dx = fastconv.conv2d_backward_data(dout, weight, shape, **how, algorithm="direct")
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())
            np.testing.assert_allclose(dx, want_dx, rtol=0, atol=tolerance * np.abs(want_dx).max())
        x[0, 0, 0, 0] = np.nan
        with fastconv.options(backend="numba", num_threads=1):
            got = fastconv.conv2d(x, weight, bias, **how, activation="relu", algorithm="direct")
        np.testing.assert_array_equal(np.isnan(got), np.isnan(reference.conv2d(x, weight, bias, **how, activation="relu")))


# --- the cache on disk ------------------------------------------------------------------------------------------------

STATISTICS = """
from fastconv.jit import direct, options
CHANGE
print(direct.finite(1, np.ones(3, "f4")), end=" ")
statistics = direct.finite.variant(False).stats
print(sum(statistics.cache_hits.values()), sum(statistics.cache_misses.values()))
"""


def cache_statistics(folder: Path, change: str = "") -> str:
    text = "import numpy as np, fastconv\n" + STATISTICS.replace("CHANGE", change)
    return run_script(text, NUMBA_CACHE_DIR=str(folder))


@needs_numba
def test_kernels_are_cached_on_disk(tmp_path):
    assert cache_statistics(tmp_path) == "True 0 1\n"
    assert cache_statistics(tmp_path) == "True 1 0\n"
    (first,) = tmp_path.rglob("*finite_serial*")
    # Numba looks at the file of the kernel only; here a change of any file of the folder counts
    changed = "options._STAMP = 'another'; options._source_stamp = lambda: 'another'"
    assert cache_statistics(tmp_path, changed) == "True 0 1\n"
    (second,) = tmp_path.rglob("*finite_serial*")  # what is obsolete does not pile up
    assert second != first
    assert cache_statistics(tmp_path, changed) == "True 1 0\n"
    second.write_bytes(b"")  # as a crash of the system leaves it
    assert cache_statistics(tmp_path, changed) == "True 0 1\n"
    assert cache_statistics(tmp_path, changed) == "True 1 0\n"


@needs_numba
def test_what_was_imported_before_a_file_changed_is_not_cached(tmp_path):
    """A process that began with the old files must not leave their code behind as that of the new ones, nor run these."""
    assert cache_statistics(tmp_path, "options._source_stamp = lambda: 'another'") == "True 0 1\n"
    assert not list(tmp_path.rglob("*.nb*"))
    assert cache_statistics(tmp_path) == "True 0 1\n"
    assert cache_statistics(tmp_path, "options._source_stamp = lambda: 'another'") == "True 0 1\n"


@needs_numba
def test_the_stamp_is_of_what_is_in_the_files(tmp_path, monkeypatch):
    from fastconv.jit import options

    for name, text in (("a.py", "1"), ("b.py", "22")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(options, "__file__", str(tmp_path / "a.py"))
    before, times = options._source_stamp(), (tmp_path / "b.py").stat()
    (tmp_path / "b.py").write_text("23")
    os.utime(tmp_path / "b.py", ns=(times.st_atime_ns, times.st_mtime_ns))  # packagers give all files one time
    assert options._source_stamp() != before


@needs_numba
def test_no_two_parts_of_kernels_have_one_name():
    """The linker takes them for the same: in kernels that two processes compiled, one was called in place of the other."""
    from fastconv.jit import im2col, options, pooling

    def make(step: int) -> Any:
        def add(x: Any) -> Any:
            return x + step

        return add

    name = f"made-{len(options._parts)}"
    one = options.part(options.named(f"{name}-1")(make(1)))
    two = options.part(options.named(f"{name}-2")(make(2)))
    assert (one(1), two(1)) == (2, 3)
    with pytest.raises(ValueError, match=f"{name}-1"):
        options.part(options.named(f"{name}-1")(make(3)))
    names = [function.py_func.__qualname__ for function in (im2col.take_4, im2col.take_8, im2col.give_4, im2col.give_8,
                                                            pooling.averages, pooling.maxima, pooling.maxima_or_nan)]
    assert len(set(names)) == len(names)


@needs_numba
def test_without_a_folder_for_a_cache_it_works_all_the_same():
    printed = run_script("""
        import numba, numpy as np, fastconv
        from fastconv.jit import options
        njit = numba.njit

        def no_folder(*args, **flags):
            if flags.pop("cache", False):
                raise RuntimeError("cannot cache function: no locator available for file")
            return njit(*args, **flags)

        numba.njit = no_folder
        fastconv.options(backend="numba", num_threads=1)
        print(fastconv.max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2).tolist())
    """)
    assert printed == "[[[[5.0, 7.0], [13.0, 15.0]]]]\n"


# --- compiled code ----------------------------------------------------------------------------------------------------


def inner_loops(assembly: str) -> list[list[str]]:
    """The instructions of each loop without another one inside, by its backward jump."""
    loops: list[list[str]] = []
    labels: dict[str, int] = {}
    lines = [line.strip() for line in assembly.splitlines()]
    for at, line in enumerate(lines):
        if match := re.match(r"(\.?L\w+):", line):
            labels[match.group(1)] = at
        elif (match := re.match(r"j\w+\s+(\.?L\w+)", line)) and labels.get(match.group(1), -1) > -1:
            body = lines[labels[match.group(1)] + 1:at]
            if not any(re.match(r"\.?L\w+:", inside) for inside in body):
                loops.append(body)
    return loops


def assembly(function: Any, *arguments: Any) -> str:
    """What a function compiles to, and those that it calls."""
    import numba

    from fastconv.jit.options import FLAGS

    dispatcher = numba.njit(**FLAGS)(function.py_func)  # one that is in no cache: of others there is no assembly
    dispatcher(*arguments)
    return dispatcher.inspect_asm(dispatcher.signatures[0])


def fused() -> bool:
    """Does this CPU have the FMA instructions of x86-64 that the tests look for?"""
    if importlib.util.find_spec("numba") is None or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    import llvmlite.binding

    return bool(llvmlite.binding.get_host_cpu_features().get("fma"))


needs_fma = pytest.mark.skipif(not fused(), reason="reads the assembly of x86-64 with FMA")


@needs_fma
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", ["correlate_tile", "inner_tile"])
def test_a_tile_is_one_loop_of_vector_fmas_of_registers(name, dtype):
    import numba

    from fastconv.jit import tiles
    from fastconv.jit.options import FLAGS

    tile = getattr(tiles, name)
    if name == "correlate_tile":
        @numba.njit(**FLAGS)
        def call(to, a, b, offset, count):
            tile(tiles.ROWS, tiles.VECTORS, to, 0, 64, False, False, a, 0, False, False, a, 0, 9, b, offset, 0, count, 0, 0)
    else:
        @numba.njit(**FLAGS)
        def call(to, a, b, offset, count):
            tile(tiles.ROWS, to, 0, 9, tiles.VECTORS, a, 16, 0, b, offset, 0, 0, count, 2, 0)

    to, a, b, offset = np.zeros(500, dtype), np.ones(200, dtype), np.ones(200, dtype), np.zeros(9, np.uintp)
    call(to, a, b, offset, 3)
    assert to[0] == (3 if name == "correlate_tile" else 6 * 64 // to.itemsize)
    text = call.inspect_asm(call.signatures[0])
    widest = "z" if "%zmm" in text else "y"
    packed = re.compile(rf"vfmadd\w+p[sd].*%{widest}mm")
    most = max(inner_loops(text), key=lambda loop: sum(packed.match(line) is not None for line in loop))
    assert sum(packed.match(line) is not None for line in most) == (24 if widest == "z" else 12)  # nothing unrolled
    assert not any("(%rsp" in line and f"%{widest}mm" in line for line in most), "registers are spilled"


@needs_fma
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_winograds_products_keep_sums_in_registers(dtype):
    """16 vector FMAs a term, of registers only but for the weights; where a vector takes two registers, 8."""
    from fastconv.jit import winograd

    tile, rows, columns = (winograd.eight_by_two, 8, 2) if winograd.WIDE else (winograd.four_by_one, 4, 1)
    lanes = 64 // np.dtype(dtype).itemsize
    u, v, m = np.ones(40 * lanes, dtype), np.ones(4000, dtype), np.zeros(4000, dtype)
    text = assembly(tile, u, 0, 0, v, 0, 2 * lanes, 40, m, 0, 2 * lanes, False)
    np.testing.assert_array_equal(m[:2 * lanes * rows].reshape(rows, -1)[:, :columns * lanes], 40)
    widest = "z" if winograd.WIDE else "y"
    packed = re.compile(rf"vfmadd\w+p[sd].*%{widest}mm")
    loops = [loop for loop in inner_loops(text) if any(map(packed.match, loop))]
    assert len(loops) == 1
    assert sum(packed.match(line) is not None for line in loops[0]) == rows * columns * (1 if winograd.WIDE else 2)
    assert not any("(%rsp" in line for line in loops[0]), "registers are spilled"


@needs_fma
@pytest.mark.parametrize("tile", [2, 3, 4])
def test_winograds_transforms_are_vectors(tile):
    from fastconv.jit import winograd

    geometry = conv2d_geometry((1, 1, 20, 200), (1, 1, 7 - tile, 7 - tile))
    job = winograd.plan("forward", geometry, 4, 1).job[0]
    pitch = int(job["pitch"])
    lines, v = np.ones(18 * pitch, "f4"), np.zeros(int(job["v_block"]), "f4")
    text = assembly(getattr(winograd, f"across_{tile}"), job, lines, 4, v, 0)
    loops = inner_loops(text)
    longest = max(loops, key=lambda loop: sum("mm" in line for line in loop))
    assert sum(re.search(r"%[yz]mm", line) is not None for line in longest) >= 30
    assert not re.search(r"vmovss|vinsertps|vpinsrd", "\n".join(longest))
    m, pixels, marks = np.ones(36 * 64, "f4"), np.zeros(1024, "f4"), np.zeros(64, "f4")
    text = assembly(getattr(winograd, f"back_{tile}"), m, 0, 64, 4, pixels, 64 * tile, np.zeros(1, "f4"), 0, True, marks)
    assert len(re.findall(r"%[yz]mm", text)) >= 100
    assert not re.search(r"call.*fma", text)


@needs_fma
@pytest.mark.parametrize(("name", "instructions"), [
    ("maxima", r"vmaxps.*%[yz]mm"), ("maxima_or_nan", r"cmp\w*ps.*%[yz]mm"), ("averages", r"vaddps.*%[yz]mm")])
def test_folds_are_vectorised(name, instructions):
    """Rows and columns, the latter at strides 1 and 2."""
    from fastconv.jit import pooling

    geometry = pool2d_geometry((1, 1, 8, 64), 2)
    window, layout = pooling.window(geometry), pooling._layout(geometry, "fold")
    x, out, one = np.ones(512, "f4"), np.zeros(128, "f4"), np.float32(1)
    rows, taps, divisors = np.zeros(2000, "f4"), np.zeros(2000, "f4"), np.ones(128, "f4")
    text = assembly(getattr(pooling, name), window[0], layout[0], x, 0, 4, rows, taps, np.float32(0), out, 128, divisors,
                    divisors, one)
    np.testing.assert_array_equal(out, 4 if name == "averages" else 1)
    assert sum(any(re.search(instructions, line) for line in loop) for loop in inner_loops(text)) >= 4
    assert "prefetch" in text


@needs_fma
@pytest.mark.parametrize("name", ["meet_ones", "meet_twos"])
def test_the_sums_of_a_plane_are_in_registers(name):
    """Nine vector FMAs for the nine weights (twice as many where vectors are halves of a line), of registers only."""
    from fastconv.jit import depthwise

    stride = 1 if name == "meet_ones" else 2
    job = depthwise.job("backward_weight", conv2d_geometry((1, 1, 40, 40), (1, 1, 3, 3), stride, 1), 4)
    x, dout, sums = np.ones(1600, "f4"), np.ones(1600, "f4"), np.zeros(144, "f4")
    text = assembly(getattr(depthwise, name), job[0], x, 0, dout, 0, 0, 20, 0, sums)
    assert sums.reshape(9, 16).sum(1)[4] == 320  # 20 rows of 16 columns, of ones
    widest = "z" if "%zmm" in text else "y"
    fmas = re.findall(rf"vfmadd\w+ps.*%{widest}mm.*", text)
    assert len(fmas) == (9 if widest == "z" else 18)
    if widest == "z":
        assert not any("(%r" in line for line in fmas)


@needs_fma
def test_places_are_vectorised():
    from fastconv.jit import pooling

    best, place = np.zeros(100, "f4"), np.zeros(100, np.int32)
    u = pooling.U
    text = assembly(pooling.take3, best, place, u(64), np.ones(200, "f4"), u(0), u(1), u(2), *np.arange(3, dtype=np.int32))
    assert place[:64].max() == 0
    assert re.search(r"cmp\w*ps.*%[yz]mm", text)
    assert re.search(r"(vpblendm\w|vmovdqa32|vblendvps|vmovdqu32|vpblendvb).*%[yz]mm", text)


@needs_fma
@pytest.mark.parametrize("stride", [1, 2])
def test_strips_keep_sums_and_taps_in_registers(stride):
    import numba

    from fastconv.jit import depthwise
    from fastconv.jit.options import FLAGS
    from fastconv.jit.vectors import load_splat

    job = depthwise.job("forward", conv2d_geometry((1, 1, 40, 40), (1, 1, 3, 3), stride, 1), 4)
    strip, rows = depthwise.strip_ones if stride == 1 else depthwise.strip_twos, 40 // stride

    @numba.njit(**FLAGS)
    def call(v, x, weight, bias, out):  # Python has no vectors
        strip(v, x, 0, 0, rows, 0, weight, 0, load_splat(bias, 0), False, out, 0, out.size)

    out = np.zeros(1600, "f4")
    call(job[0], np.ones(1600, "f4"), np.ones(9, "f4"), np.zeros(1, "f4"), out)
    assert out[rows + 1] == 9
    text = call.inspect_asm(call.signatures[0])
    assert len(re.findall(r"vfmadd\w+ps.*%[yz]mm", text)) >= 8
    assert not re.search(r"call.*fma", text)


# --- warm-up ----------------------------------------------------------------------------------------------------------


@needs_numba
def test_info_warm_up_tells_each_kernel_once(capsys):
    from fastconv.cli import main
    from fastconv.jit.options import KERNELS

    printed = run_script("""
        from fastconv.cli import main
        raise SystemExit(main(["info", "--warm-up"]))
    """, timeout=600)
    kernel = r"^ +[\d.]+ s  (\w+\.\w+ float\d\d, .* threads?) \((?:compiled|from the cache)\)$"
    lines = re.findall(kernel, printed, re.M)
    assert len(set(lines)) == len(lines)
    assert {line.split()[0] for line in lines} == {kernel.name for kernel in KERNELS}
    assert re.search(r"^ +[\d.]+ s  in all, \d+ compiled$", printed, re.M)
    assert main(["info"]) == 0
    assert "first call" not in capsys.readouterr().out


@needs_numba
def test_warm_up_in_a_process_that_is_warm_finds_nothing_to_do():
    from fastconv.jit.warm_up import warm_up

    list(warm_up())
    assert list(warm_up()) == []


@needs_numba
def test_two_python_threads_compile_at_once():
    printed = run_script("""
        import threading
        from concurrent.futures import ThreadPoolExecutor
        import numpy as np, fastconv

        fastconv.options(backend="numba", num_threads=1)
        start = threading.Barrier(4)

        def work(i):
            start.wait()
            return fastconv.avg_pool2d(np.full((1, 1, 4, 4), float(i)), 2)

        with ThreadPoolExecutor(4) as pool:
            print([float(out.mean()) for out in pool.map(work, range(4))])
    """)
    assert printed == "[0.0, 1.0, 2.0, 3.0]\n"
