"""What all tests share: the engines that they run on, inputs and outputs that give mistakes away, and tolerances.

An *engine* is one way to compute: a backend, for the Cython backend one of its ISA modules, and for convolutions one
algorithm. The fixtures `forward_engine`, `data_engine`, `weight_engine`, `backward_engine` and `conv_engine` run a test
once for each that the dispatch table has, and once for ``"auto"``; `engine` once for each backend and ISA, for all that
has no `algorithm=`. What this machine cannot run is skipped by name.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest

# Thousands of tiny parallel regions: on a machine that does something else too, waiting actively costs milliseconds in
# each of them. OpenMP and OpenBLAS read this when they are loaded, which is why it comes before NumPy and fastconv.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import arrays
import numpy as np

import fastconv
from fastconv import dispatch
from fastconv.options import BACKENDS, backend_available, configuration

native: Any
try:
    from fastconv import native
except ImportError:  # built without extension modules
    native = None

# --- engines --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Engine:
    """One way to compute. Empty strings where there is nothing to choose."""

    backend: str
    isa: str = ""
    algorithm: str = "auto"

    def __str__(self) -> str:
        return "-".join(part for part in (self.backend, self.isa, self.algorithm) if part)

    @property
    def missing(self) -> str:
        """Why this machine cannot run it, or an empty string."""
        if not backend_available(self.backend):
            return f"{self.backend} is not installed"
        return "" if not self.isa or self.isa in native.available_isas() else f"this CPU cannot run {self.isa}"

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a convolution with this algorithm; skip the rest of the test where the algorithm is not for that.

        Which algorithms may refuse what is checked in test_conv.py and test_dispatch.py.
        """
        try:
            return function(*args, algorithm=self.algorithm, **kwargs)
        except NotImplementedError as error:
            if self.algorithm in ("auto", "direct", "im2col"):  # these can do everything
                raise
            pytest.skip(str(error))

    @contextlib.contextmanager
    def running(self) -> Iterator[Engine]:
        """Make fastconv use this backend and ISA; the algorithm is passed on with each call."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(fastconv.options(backend=self.backend))
            if self.isa:
                stack.enter_context(native.using_isa(self.isa))
            yield self


def engines(*operations: str) -> list[Any]:
    """All engines that have all of `operations`, as pytest parameters; without operations, one for each ISA."""
    found = []
    for backend in BACKENDS:
        if not dispatch.algorithms("forward", backend):
            continue  # not in the table (yet)
        algorithms = [""]
        if operations:
            tables = [dispatch.algorithms(operation, backend) for operation in operations]
            algorithms = ["auto", *(name for name in tables[0] if all(name in table for table in tables))]
        for isa in native.ISAS if backend == "cython" and native else ("",):
            for algorithm in algorithms:
                if algorithm == "auto" and (backend == "numpy" or (isa and isa != native.isa)):
                    continue  # the choice does not look at the ISA, and in NumPy there is none
                engine = Engine(backend, isa, algorithm)
                marks = [pytest.mark.skip(reason=engine.missing)] if engine.missing else []
                found.append(pytest.param(engine, id=str(engine), marks=marks))
    return found


def _engine_fixture(*operations: str) -> Any:
    @pytest.fixture(params=engines(*operations))
    def running_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
        with request.param.running() as engine:
            yield engine

    return running_engine


engine = _engine_fixture()
forward_engine = _engine_fixture("forward")
data_engine = _engine_fixture("backward_data")
weight_engine = _engine_fixture("backward_weight")
backward_engine = _engine_fixture("backward_data", "backward_weight")
conv_engine = _engine_fixture("forward", "backward_data", "backward_weight")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What the suite runs with, so that a log tells what was not tested."""
    settings = configuration()
    algorithms = "; ".join(f"{name} ({', '.join(dispatch.algorithms('forward', name))})" for name in BACKENDS
                           if dispatch.algorithms("forward", name) and backend_available(name))
    return [f"fastconv {settings['fastconv']}: {algorithms}; NumPy {settings['numpy']}",
            f"ISA {settings['isa']} by default, built: {settings.get('isas built', 'none')}",
            f"OpenMP {settings.get('openmp', 'no')}, {settings['threads']} threads by default"]


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> None:
    """Tens of thousands of tests and their reports are no garbage: do not look at them in each collection.

    Python's own would visit them again and again, as would those that tests of memory ask for: half a second each.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _openmp_as_it_was() -> Iterator[None]:
    """PyTorch's number of threads is OpenMP's, which fastconv heeds: its benchmarks must not take threads from later tests."""
    before = native._cpu.openmp_threads() if native else 0
    yield
    if native and native._cpu.openmp_threads() != before and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(before)


# --- hypothesis -----------------------------------------------------------------------------------------------------

# On a build server the same examples each time: a failure there must be the change's. HYPOTHESIS_PROFILE=long searches.
hypothesis.settings.register_profile("quick", max_examples=25, deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.register_profile("long", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# --- inputs, outputs, accuracy ---------------------------------------------------------------------------------------


@pytest.fixture
def poisoned() -> Iterator[arrays.Surroundings]:
    """``poisoned(shape, dtype, memory="C")``: an array for `out=`, full of NaN or of the largest integer.

    What lies beside it in memory is checked when the test ends.
    """
    surroundings = arrays.Surroundings()
    yield surroundings
    surroundings.check()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that are the same in each run of a test, and differ between tests."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(scope="session")
def assert_accurate() -> Callable[..., None]:
    """``assert_accurate(got, want, spread, algorithm=, weight_gradient=)``: rule 14."""
    return arrays.assert_accurate
