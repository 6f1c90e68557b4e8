"""How the benchmarks run under pytest-benchmark: options, who takes part, and turns by turns.

pytest runs one test after the other, and pytest-benchmark times each by itself. Contenders that are compared must take
turns, though, or the one that ran while the machine was slow loses. So the first test of a row measures the whole row
(:func:`fastconv.benchmarks.rows.measure`: all contenders that were collected for it, checked, then timed by turns), and
each test of the row hands its own contender's times to pytest-benchmark. It does so in public: ``benchmark.pedantic`` with
as many rounds and iterations as there were, on a clock (the ``timer`` of the benchmark mark) that advances by what was
measured. What pytest-benchmark shows, saves and compares are these times.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import layers
import pytest

from fastconv.benchmarks import peers, report, rows
from fastconv.benchmarks.jobs import Job
from fastconv.benchmarks.machine import CEILINGS, describe
from fastconv.benchmarks.timing import Samples
from fastconv.options import usable_cpus

HERE = Path(__file__).resolve().parent


# --- options ----------------------------------------------------------------------------------------------------------


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastconv benchmarks")
    group.addoption("--layers", type=_names, metavar="A,B", help="rows by names or patterns, as vgg* (default: all)")
    group.addoption("--peers", type=_names, metavar="A,B", help="who takes part besides fastconv: libraries, and "
                    "fastconv's own backends and algorithms as cython-*; 'all' for everyone, slow ones too (default: "
                    "everyone, pure NumPy only on small rows)")
    group.addoption("--threads", type=_names, metavar="N,M", default=["1"], help="numbers of threads (default: 1)")
    group.addoption("--row-seconds", type=float, metavar="X", default=0.6, help="for the timing of a row, all contenders "
                    "together (default: 0.6)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "jobs(operation): a benchmark of an operation, or of the sweeps")
    if not config.pluginmanager.hasplugin("benchmark"):
        return
    # The suite turns warnings into errors. That there is nothing to save, or that results of another machine are compared
    # with, is none: neither in a test (the configuration) nor around all of them (the filters in force).
    from pytest_benchmark.logger import PytestBenchmarkWarning

    config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")
    warnings.simplefilter("default", PytestBenchmarkWarning)
    if config.getoption("benchmark_only") and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args = [str(HERE)]  # there are none among the tests: do not collect thousands of them to skip them
    try:
        patterns = config.getoption("peers")
        if patterns is not None and patterns != ["all"]:
            peers.check_patterns(patterns)
        if config.getoption("layers") is not None:
            layers.choose((*layers.CONV_ROWS, *layers.WINDOW_ROWS), config.getoption("layers"))
        if not all(1 <= int(n) <= usable_cpus() for n in config.getoption("threads")):
            raise ValueError(f"--threads must be from 1 to {usable_cpus()}, the CPUs that this process may use")
    except (ValueError, ImportError) as error:
        raise pytest.UsageError(str(error)) from error


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Benchmarks run if they are asked for: by --benchmark-only, or by a path to this folder or into it."""
    if not config.pluginmanager.hasplugin("benchmark"):
        return True
    asked = config.getoption("benchmark_only") or any(HERE in (path, *path.parents) for path in (
        (config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args
        if config.args_source is pytest.Config.ArgsSource.ARGS))
    return None if asked else True


# --- who does what ----------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test function names an operation in its mark ``jobs``; it runs for each job and each contender."""
    mark = metafunc.definition.get_closest_marker("jobs")
    if mark is None:
        return
    config, operation = metafunc.config, mark.args[0]
    if operation == "sweeps":
        found = layers.sweeps(config.getoption("layers"))
    else:
        found = layers.jobs(operation, [int(n) for n in config.getoption("threads")], config.getoption("layers"))
    pairs = [(job, name) for job in found for name in _contenders(job, config.getoption("peers"))]
    metafunc.parametrize(("job", "contender"), [pytest.param(job, name, id=f"{layers.identify(job)}-{name}")
                                                for job, name in pairs])


def _contenders(job: Job, patterns: list[str] | None) -> list[str]:
    everyone = peers.names(job.operation)
    if patterns is not None:
        return everyone if patterns == ["all"] else peers.choose(everyone, patterns)
    slow = (job.flops or 0) > layers.NUMPY_FLOPS
    return [name for name in everyone if not (slow and name.startswith("numpy"))]


# --- the measuring ----------------------------------------------------------------------------------------------------

_rows = pytest.StashKey[dict[Job, rows.Row]]()
_compared = pytest.StashKey[list[dict[str, Any]]]()


@pytest.fixture
def row(request: pytest.FixtureRequest, job: Job) -> rows.Row:
    """The row that a test belongs to, measured when its first test runs, for all contenders that will run."""
    measured = request.config.stash.setdefault(_rows, {})
    if job not in measured:
        wanted = [item.callspec.params["contender"] for item in request.session.items
                  if getattr(item, "callspec", None) and item.callspec.params.get("job") == job]
        measured[job] = rows.measure(job, wanted, request.config.getoption("row_seconds"))
    return measured[job]


class Replay:
    """A clock that stands still but for the times it is told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.__name__ = "replay"  # what the saved results have for the timer

    def __call__(self) -> float:
        return self.now

    def play(self, samples: Samples) -> Callable[[], None]:
        """A function whose calls take, by this clock, what was measured."""

        def durations() -> Iterator[float]:
            for seconds in samples.seconds:
                for _ in range(samples.iterations):
                    yield seconds

        taken = durations()

        def call() -> None:
            self.now += next(taken, 0.0)  # pytest-benchmark makes one more call that it does not time

        return call


clock = Replay()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("jobs") is not None:
            item.add_marker(pytest.mark.benchmark(timer=clock))


@pytest.fixture
def hand_over(benchmark: Any, row: rows.Row, contender: str) -> Callable[[], None]:
    """A function that gives pytest-benchmark what was measured of this test's contender."""

    def hand() -> None:
        if contender in row.skipped:
            pytest.skip(f"{contender}: {row.skipped[contender]}")
        assert contender not in row.wrong, row.wrong[contender]
        samples = row.samples[contender]
        benchmark.group = str(row.job)
        benchmark.extra_info.update(row.record(contender))
        benchmark.pedantic(clock.play(samples), rounds=len(samples.seconds), iterations=samples.iterations)

    return hand


# --- reports ----------------------------------------------------------------------------------------------------------


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["fastconv"] = describe(peers.versions())


def pytest_benchmark_compare_machine_info(config: pytest.Config, compared_benchmark: dict[str, Any]) -> None:
    """Called for each earlier run that --benchmark-compare found: keep what was measured then."""
    config.stash[_compared] = [entry["extra_info"] for entry in compared_benchmark["benchmarks"]
                               if "contender" in entry["extra_info"]]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    """The same times as tables side by side, which pytest-benchmark's are not; also where that finds a regression."""
    try:
        return (yield)
    finally:
        _summarise(terminalreporter, config)


def _summarise(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    records = [record for row in config.stash.get(_rows, {}).values() for record in row.records()]
    try:
        from rich.console import Console
    except ImportError:
        return
    if not records:
        return
    terminalreporter.section("side by side")
    console = Console(file=terminalreporter._tw._file, width=max(terminalreporter._tw.fullwidth, 120))
    if CEILINGS.available:
        for threads in sorted({record["threads"] for record in records}):
            peak, copy = CEILINGS.fma("float32", threads, look=False), CEILINGS.copy(threads, look=False)
            console.print(f"Ceilings in this run, {threads} thread{'s' if threads > 1 else ''}: {report.giga(peak)} GFLOP/s of "
                          f"float32 multiply-adds, {report.giga(copy)} GB/s of copying in memory", highlight=False)
    for table in report.tables(records):
        console.print()
        table.show(console)
    if config.stash.get(_compared, None):
        console.print()
        report.changes(config.stash[_compared], records).show(console)
