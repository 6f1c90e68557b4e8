"""Settings: options() as a call and as a block, the environment, and what is reported."""

from __future__ import annotations

import importlib
import re
import threading
from typing import Any

import numpy as np
import pytest
from processes import output_of

import fastconv
from fastconv import memory, reference
from fastconv.options import configuration, current, effective_threads

try:
    from fastconv import native
except ImportError:
    pytest.skip("the extension modules are not built", allow_module_level=True)

X, WEIGHT = np.ones((1, 2, 6, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)


@pytest.fixture(autouse=True)
def settings_as_before():
    """Undo what a test sets for the process."""
    module = importlib.import_module("fastconv.options")  # the package's attribute of this name is the function
    before = module._settled, module._calls[:], module._global
    yield
    module._settled, module._calls[:], module._global = before


def in_another_thread(call: Any) -> Any:
    result = []
    worker = threading.Thread(target=lambda: result.append(call()))
    worker.start()
    worker.join()
    return result[0]


# --- options() --------------------------------------------------------------------------------------------------------


def test_a_call_sets_for_all_threads():
    fastconv.options(backend="numpy", num_threads=3)
    assert current().backend == "numpy"
    assert current().num_threads == 3
    assert in_another_thread(lambda: (current().backend, current().num_threads)) == ("numpy", 3)
    assert fastconv.plan_conv2d(X.shape, WEIGHT.shape).backend == "numpy"
    fastconv.options(accuracy="strict")  # what is left out stays
    assert (current().backend, current().num_threads, current().accuracy) == ("numpy", 3, "strict")


def test_a_block_sets_until_its_end():
    before = current()
    with fastconv.options(backend="numpy", workspace_limit=10**9):
        assert current().backend == "numpy"
        assert current().workspace_limit == 10**9
        with fastconv.options(num_threads=7):  # blocks add up
            assert (current().backend, current().num_threads, current().workspace_limit) == ("numpy", 7, 10**9)
        assert current().num_threads == before.num_threads
    assert current() == before


def test_a_block_ends_with_an_exception_too():
    before = current()
    with pytest.raises(RuntimeError), fastconv.options(backend="numpy"):
        raise RuntimeError
    assert current() == before


def test_a_block_is_its_threads_own():
    before = current()
    with fastconv.options(backend="numpy", num_threads=3):
        assert in_another_thread(current) == before
    def other() -> Any:
        with fastconv.options(num_threads=5):
            inside.set()
            leave.wait(30)
            return current().num_threads
    inside, leave, result = threading.Event(), threading.Event(), []
    worker = threading.Thread(target=lambda: result.append(other()))
    worker.start()
    try:
        assert inside.wait(30)
        assert current() == before
    finally:
        leave.set()
        worker.join()
    assert result == [5]


def test_blocks_of_several_threads_leave_nothing_behind():
    """Also where one thread's block begins between the call of options() in another's `with` and its block."""
    before = current()
    first, second = fastconv.options(num_threads=3), fastconv.options(num_threads=4)

    def enter(block: Any) -> int | None:
        with block:
            return current().num_threads

    assert in_another_thread(lambda: enter(first)) == 3
    assert in_another_thread(lambda: enter(second)) == 4
    assert current() == before
    assert in_another_thread(current) == before


def test_blocks_of_many_threads_at_once_leave_nothing_behind():
    before = current()
    start = threading.Barrier(6)

    def work() -> None:
        start.wait()
        for i in range(300):
            with fastconv.options(num_threads=1 + i % 7):
                assert current().num_threads == 1 + i % 7

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert current() == before


def test_a_call_inside_a_block():
    """The block's own settings stay in force until its end; afterwards the call's."""
    with fastconv.options(num_threads=2):
        fastconv.options(num_threads=6)
        assert current().num_threads == 2
        assert in_another_thread(lambda: current().num_threads) == 6
    assert current().num_threads == 6


@pytest.mark.parametrize(("name", "setting"), [("num_threads", 3), ("workspace_limit", 12345)])
def test_default_puts_a_setting_back(name, setting):
    fastconv.options(**{name: setting})
    with fastconv.options(**{name: "default"}):
        assert getattr(current(), name) is None
    assert getattr(current(), name) == setting
    fastconv.options(**{name: "default"})
    assert getattr(current(), name) is None


@pytest.mark.parametrize(("wrong", "error", "message"), [
    ({"backend": "torch"}, ValueError, "backend.*'cython'.*'numba'.*'numpy'.*'torch'"),
    ({"backend": 3}, TypeError, "backend.*3"),
    ({"num_threads": 0}, ValueError, "num_threads.*at least 1.*0"),
    ({"num_threads": -2}, ValueError, "num_threads.*-2"),
    ({"num_threads": 1.5}, TypeError, r"num_threads.*1\.5"),
    ({"num_threads": "two"}, TypeError, "num_threads.*'two'"),
    ({"num_threads": True}, TypeError, "num_threads.*True"),
    ({"accuracy": "loose"}, ValueError, "accuracy.*'standard'.*'strict'.*'loose'"),
    ({"accuracy": 1}, TypeError, "accuracy.*1"),
    ({"workspace_limit": -1}, ValueError, "workspace_limit.*-1"),
    ({"workspace_limit": 1e6}, TypeError, "workspace_limit.*1000000"),
    ({"workspace_limit": "1MB"}, TypeError, "workspace_limit.*'1MB'"),
], ids=str)
def test_wrong_settings(wrong, error, message):
    before = current()
    with pytest.raises(error, match=message):
        fastconv.options(num_threads=2, **wrong) if "num_threads" not in wrong else fastconv.options(**wrong)
    assert current() == before  # nothing is set where something is wrong


def test_settings_are_keywords():
    with pytest.raises(TypeError):
        fastconv.options("numpy")
    with pytest.raises(TypeError, match="threads"):
        fastconv.options(threads=2)


def test_a_backend_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(ImportError, match=r"numba.*pip install"):
        fastconv.options(backend="numba")


# --- accuracy and workspace_limit -------------------------------------------------------------------------------------


def test_strict_and_winograd_together_are_an_error():
    with fastconv.options(accuracy="strict"):
        with pytest.raises(ValueError, match=r"(?s)winograd.*strict|strict.*winograd"):
            fastconv.conv2d(X, WEIGHT, algorithm="winograd")
        plan = fastconv.plan_conv2d((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
        assert plan.algorithm != "winograd"


def test_a_forced_algorithm_over_the_limit_names_both_figures(engine):
    x, weight = np.ones((1, 8, 30, 200), np.float32), np.ones((4, 8, 3, 3), np.float32)
    with fastconv.options(workspace_limit=1000):
        for call in (lambda: fastconv.conv2d(x, weight, algorithm="im2col"),
                     lambda: fastconv.conv2d_backward_data(np.ones((1, 4, 28, 198), np.float32), weight, x.shape,
                                                           algorithm="im2col"),
                     lambda: fastconv.conv2d_backward_weight(np.ones((1, 4, 28, 198), np.float32), x, weight.shape,
                                                             algorithm="im2col")):
            with pytest.raises(MemoryError, match=r"\b1,?000\b") as caught:
                call()
            figures = [int(figure.replace(",", "")) for figure in re.findall(r"\d[\d,]*", str(caught.value))]
            assert max(figures) > 10 * 1000  # one row of output: 8 channels x 9 taps x 198 columns x 4 bytes


@pytest.mark.parametrize("limit", [100_000, 1_000_000])
def test_within_the_limit_im2col_is_tiled_and_right(limit, engine, assert_accurate):
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 8, 60, 64), (4, 4, 3, 3)))
    how = {"padding": 1, "stride": (1, 2), "groups": 2}
    dout = rng.standard_normal(fastconv.plan_conv2d(x.shape, weight.shape, **how).output_shape).astype(np.float32)
    forced = {**how, "algorithm": "im2col"}

    def compute() -> list[np.ndarray]:
        return [fastconv.conv2d(x, weight, **forced), *fastconv.conv2d_backward(dout, x, weight, **forced)]

    # by rule 14, and not by what it gives without a limit: how BLAS adds up depends on the size of the matrices and on the CPU
    wide = [array.astype(np.float64) for array in (dout, x, weight)]
    want = [reference.conv2d(*wide[1:], None, **how), *reference.conv2d_backward(*wide, **how)]
    spread = [reference.conv2d(wide[1]**2, wide[2]**2, None, **how),
              *reference.conv2d_backward(*(array**2 for array in wide), **how)]
    unlimited = fastconv.plan_conv2d(x.shape, weight.shape, **forced).workspace_bytes
    assert unlimited > 1_000_000
    with fastconv.options(workspace_limit=limit):
        for direction in ("forward", "backward_data", "backward_weight"):
            plan = fastconv.plan_conv2d(x.shape, weight.shape, **forced, direction=direction)
            assert plan.algorithm == "im2col"
            assert plan.workspace_bytes <= limit
        for got, right, terms, weights in zip(compute(), want, spread, (False, False, True, True), strict=True):
            assert_accurate(got, right, terms, algorithm="im2col", weight_gradient=weights)


@pytest.mark.parametrize("direction", ["forward", "backward_data", "backward_weight"])
@pytest.mark.parametrize("limit", [100_000, 1_000_000, 10**9])
def test_auto_stays_within_the_limit(limit, direction, engine):
    x, weight, dout = (np.ones(shape, np.float32) for shape in ((2, 16, 40, 41), (24, 16, 3, 3), (2, 24, 40, 41)))
    calls = {"forward": lambda: fastconv.conv2d(x, weight, padding=1),
             "backward_data": lambda: fastconv.conv2d_backward_data(dout, weight, x.shape, padding=1),
             "backward_weight": lambda: fastconv.conv2d_backward_weight(dout, x, weight.shape, padding=1)}
    want = calls[direction]()
    with fastconv.options(workspace_limit=limit), memory.watch_scratch() as watched:
        plan = fastconv.plan_conv2d(x.shape, weight.shape, padding=1, direction=direction)
        got = calls[direction]()
    assert plan.workspace_bytes <= limit
    assert watched.largest <= limit
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_no_algorithm_within_the_limit_is_a_memory_error(engine):
    with fastconv.options(workspace_limit=10), pytest.raises(MemoryError, match=r"workspace.*\b10\b"):
        fastconv.conv2d(X, WEIGHT, padding=1)


# --- environment ------------------------------------------------------------------------------------------------------

PLAN = """
import fastconv
plan = fastconv.plan_conv2d((1, 1, 4, 4), (1, 1, 3, 3))
print(plan.backend, plan.isa)
"""
THREADS = "from fastconv.options import current, effective_threads; print(effective_threads(current()))"


def test_environment_backend():
    assert output_of(PLAN, FASTCONV_BACKEND="numpy").split()[0] == "numpy"


@pytest.mark.parametrize("isa", native.ISAS)
def test_environment_isa(isa):
    if isa not in native.available_isas():
        pytest.skip(f"this CPU cannot run {isa}")
    assert output_of(PLAN, FASTCONV_ISA=isa).split() == ["cython", isa]


@pytest.mark.skipif(not native._cpu.OPENMP, reason="without OpenMP there is one thread")
@pytest.mark.parametrize(("variables", "want"), [
    ({"FASTCONV_NUM_THREADS": "3"}, 3),
    ({"OMP_NUM_THREADS": "2"}, 2),
    ({"OMP_NUM_THREADS": "2,1"}, 2),
    ({"FASTCONV_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
], ids=str)
def test_environment_threads(variables, want):
    assert output_of(THREADS, **variables) == f"{want}\n"


@pytest.mark.parametrize(("variables", "names"), [
    ({"FASTCONV_BACKEND": "torch"}, ("FASTCONV_BACKEND", "torch", "numpy")),
    ({"FASTCONV_ISA": "sse9"}, ("FASTCONV_ISA", "sse9", "baseline")),
    ({"FASTCONV_NUM_THREADS": "many"}, ("FASTCONV_NUM_THREADS", "many")),
    ({"FASTCONV_NUM_THREADS": "0"}, ("FASTCONV_NUM_THREADS", "0")),
], ids=str)
def test_wrong_environment_is_one_clear_error(variables, names):
    script = """
        try:
            import numpy as np, fastconv
            fastconv.conv2d(np.ones((1, 8, 90, 90)), np.ones((8, 8, 3, 3)))
        except ValueError as error:
            print(error)
    """
    printed = output_of(script, **variables)
    for name in names:
        assert name in printed


def test_affinity_bounds_the_threads():
    """By default, the CPUs that the process may use."""
    script = """
        import os
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            from fastconv.options import current, effective_threads
            print(effective_threads(current()))
        else:
            print(1)
    """
    assert output_of(script) == "1\n"


# --- reports ----------------------------------------------------------------------------------------------------------


def test_show_config_tells_what_a_bug_report_needs(capsys):
    assert fastconv.show_config() is None
    printed = capsys.readouterr().out
    for word in (fastconv.__version__, np.__version__, native.isa, "openmp", "threads", "cython", "numpy"):
        assert word.lower() in printed.lower()
    assert configuration()["threads"] == str(effective_threads(current()))
    with fastconv.options(num_threads=1):
        assert configuration()["threads"] == "1"


def test_release_memory_keeps_results(engine):
    out = fastconv.conv2d(X, WEIGHT)
    want = out.copy()
    assert fastconv.release_memory() is None
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(fastconv.conv2d(X, WEIGHT), want)
