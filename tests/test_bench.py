"""The machinery of the benchmarks: that they measure what they say, not how fast anything is."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastconv
from fastconv.benchmarks import footprint, jobs, layers, machine, peers, report, rows, timing
from fastconv.benchmarks.jobs import Job
from fastconv.benchmarks.layers import ConvLayer, TrainingStep, WindowLayer
from fastconv.cli import main

try:
    from fastconv import native
except ImportError:  # a build without extension modules
    native = None

ROOT = Path(__file__).resolve().parent.parent

with_extensions = pytest.mark.skipif(native is None, reason="without the extension modules")


# --- layers -----------------------------------------------------------------------------------------------------------

DESIGN_ROWS = """
100,1,28x28 -> 30, 5/1/0
100,30,12x12 -> 50, 5/1/0
8,3,227x227 -> 96, 11/4/0
8,96,27x27 -> 256, 5/1/2
4,3,224x224 -> 64, 3/1/1
4,64,224x224 -> 64, 3/1/1
4,256,56x56 -> 256, 3/1/1
4,512,14x14 -> 512, 3/1/1
8,3,224x224 -> 64, 7/2/3
8,64,56x56 -> 64, 3/1/1
8,512,7x7 -> 512, 3/1/1
8,64,56x56 -> 256, 1/1/0
8,256,56x56 -> 512, 1/2/0
8,128,56x56 -> 128, 3/2/1
1,512,7x7 -> 512, 3/1/1
8,256,28x28 -> 256, 3/1/1, depthwise
8,128,56x56 -> 128, 3/2/1, depthwise
1,3,8x8 -> 4, 3/1/1
100,30,24x24, 2/2/0
4,64,224x224, 2/2/0
8,64,112x112, 3/2/1
8,256,28x28, 3/1/1
""".strip().splitlines()


def test_all_rows_of_the_design_are_measured():
    every = (*layers.CONV_ROWS, *layers.WINDOW_ROWS)
    assert set(DESIGN_ROWS) <= {str(row) for row in every}
    assert len({row.name for row in every}) == len(every)


@pytest.mark.parametrize(("name", "convolutions", "multiply_adds"), [
    # As published: of the whole networks, less what their fully connected layers have.
    ("lenet", 3, 117_600 + 240_000 + 48_000),
    ("alexnet", 5, 665_784_864),
    ("vgg16", 13, 15_470_264_320 - 123_633_664),
    ("resnet50", 53, 4_089_184_256 - 2_048_000),
    ("mobilenet", 27, 568_740_352 - 1_024_000),
])
def test_networks_have_the_work_that_their_papers_say(name, convolutions, multiply_adds):
    found = layers.network(name)
    assert sum(entry.count for entry in found) == convolutions
    assert sum(entry.count * entry.layer.geometry.flops for entry in found) == 2 * multiply_adds
    assert len({entry.layer.name for entry in found}) == len(found)
    doubled = layers.network(name, 2)
    assert sum(entry.count * entry.layer.geometry.flops for entry in doubled) == 4 * multiply_adds


def test_layers_of_a_network_follow_each_other():
    for name in ("lenet", "vgg16", "mobilenet"):  # those without branches: each takes the channels the one before makes
        chain = layers.NETWORKS[name](1)
        for before, after in itertools.pairwise(chain):
            assert before.geometry.out_channels == after.geometry.channels


def test_choosing_layers():
    names = [row.name for row in layers.choose(layers.CONV_ROWS, ["tiny", "vgg*"])]
    assert names == ["vgg-conv1_1", "vgg-conv1_2", "vgg-conv3_2", "vgg-conv5_1", "tiny"]  # in the rows' order
    with pytest.raises(ValueError, match=r"'vgh\*'.*mnist-conv1"):
        layers.choose(layers.CONV_ROWS, ["tiny", "vgh*"])


def test_layers_are_written_as_in_the_design():
    assert str(ConvLayer("", (2, 8, 9, 12), (6, 4, 1, 3), stride=(1, 2), padding=(0, 1), dilation=2, groups=2)) == \
        "2,8,9x12 -> 6, 1x3/1x2/0x1, groups 2, dilation 2"


# --- jobs -------------------------------------------------------------------------------------------------------------

CONVS = (
    ConvLayer("plain", (3, 4, 9, 10), (5, 4, 3, 3), 1, 1),
    ConvLayer("stride", (2, 3, 13, 11), (4, 3, 5, 5), 2, 2),
    ConvLayer("pointwise", (2, 4, 6, 6), (8, 4, 1, 1), 2),
    ConvLayer("depthwise", (2, 6, 8, 8), (6, 1, 3, 3), 1, 1, 1, 6),
    ConvLayer("dilated", (2, 4, 12, 12), (6, 2, 3, 3), 1, 2, 2, 2),
    ConvLayer("one-sided", (2, 3, 9, 9), (4, 3, 2, 2), 1, ((0, 1), (0, 1))),
    ConvLayer("plane", (1, 1, 20, 21), (1, 1, 5, 5), 1, 2),
)
WINDOWS = (
    WindowLayer("halves", (3, 4, 8, 10), 2, 2),
    WindowLayer("overlapping", (2, 3, 11, 11), 3, 2, 1),
    WindowLayer("same", (2, 3, 7, 8), 3, 1, 1),
)
STEPS = (TrainingStep("simple", "SimpleConvNet", 3, 12), TrainingStep("deep", "DeepConvNet", 2, 16))


def small_jobs(operation, dtypes=("float32", "float64")):
    wanted = jobs.layer_type(operation)
    return [Job(operation, layer, dtype) for layer in (*CONVS, *WINDOWS, *STEPS) if isinstance(layer, wanted)
            for dtype in dtypes]


def arrays_of(result):
    return [np.array(array) for array in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("operation", jobs.OPERATIONS)
def test_a_job_knows_the_right_result(operation):
    for job in small_jobs(operation):
        result = arrays_of(peers.make(job, peers.AUTO).call())
        assert job.check(tuple(result)) <= job.tolerance
        assert sum(array.nbytes for array in result) == job.result_bytes


@pytest.mark.parametrize("operation", jobs.OPERATIONS)
def test_a_job_notices_a_wrong_result(operation):
    job = small_jobs(operation)[0]
    right = arrays_of(peers.make(job, peers.AUTO).call())
    for which, array in enumerate(right):
        for value in (array.flat[0] + 10 * job.tolerance * np.abs(array).max(), np.nan):
            wrong = [part.copy() for part in right]
            wrong[which].flat[0] = value
            with pytest.raises(jobs.WrongResult, match=r"off by"):
                job.check(tuple(wrong))
        wrong = [part.copy() for part in right]
        wrong[which] = wrong[which][..., :-1]
        with pytest.raises(jobs.WrongResult, match="shape"):
            job.check(tuple(wrong))
    # The last image, or the last filter, is looked at as well.
    wrong = [part.copy() for part in right]
    wrong[0].flat[-1] += 1
    with pytest.raises(jobs.WrongResult):
        job.check(tuple(wrong))


def test_a_job_knows_its_work():
    job = Job("forward", CONVS[0])
    result = peers.make(job, peers.AUTO).call()
    assert job.nbytes == job.x.nbytes + job.weight.nbytes + result.nbytes
    assert job.input_bytes == job.x.nbytes + job.weight.nbytes
    assert Job("backward", CONVS[0]).input_bytes == job.x.nbytes + job.weight.nbytes + job.dout.nbytes
    assert job.flops == 2 * result.size * 4 * 9
    assert Job("backward", CONVS[0]).flops == 2 * job.flops
    pooled = Job("max_pool_backward", WINDOWS[0])
    assert pooled.flops is None
    assert pooled.nbytes == pooled.x.nbytes + pooled.dout.nbytes + pooled.indices.nbytes
    step = Job("training", TrainingStep("simple", "SimpleConvNet", 7, 28))
    parameters = 30 * 25 + 30, 30 * 144 * 100 + 100, 100 * 10 + 10
    assert step.result_bytes == 4 * sum(parameters)
    # the first layer's image has no gradient
    assert step.flops == 7 * 2 * (2 * 24 * 24 * 30 * 25 + 3 * 30 * 144 * 100 + 3 * 100 * 10)
    lowered = Job("im2col_rows", WINDOWS[1])
    assert lowered.nbytes == lowered.x.nbytes + lowered.column.nbytes
    assert lowered.layout == "rows"


def test_a_job_needs_a_layer_of_its_kind():
    with pytest.raises(ValueError, match="ConvLayer"):
        Job("forward", WINDOWS[0])
    with pytest.raises(ValueError, match="TrainingStep"):
        Job("training", CONVS[0])
    with pytest.raises(ValueError, match="one of forward"):
        Job("sideways", CONVS[0])


# --- peers ------------------------------------------------------------------------------------------------------------

INSTALLED = [name for name, entry in peers.PEERS.items() if entry.missing is None]


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_compute_the_same(name):
    entry = peers.PEERS[name]
    if entry.missing is not None:
        pytest.skip(f"{entry.missing} is not installed")
    for operation in entry.operations:
        done = 0
        for job in small_jobs(operation):
            contender = peers.make(job, name)
            if contender is not None:
                job.check(contender.call())
                done += 1
        assert done, f"{name} says that it has {operation}, and has done none"


@pytest.mark.parametrize("operation", jobs.OPERATIONS)
def test_engines_compute_the_same(operation):
    engines = [name for name in peers.names(operation) if name not in peers.PEERS]
    assert engines[0] == peers.AUTO
    assert any(name.startswith("numpy") for name in engines)  # there are others where extension modules or Numba are
    for name in engines:
        done = 0
        for job in small_jobs(operation):
            contender = peers.make(job, name)
            if contender is not None:
                with peers.with_backend(contender.backend):
                    job.check(contender.call())
                done += 1
        assert done


def test_engines_come_from_the_dispatch_table(monkeypatch):
    from fastconv import dispatch

    direct = dispatch.TABLE["forward", "direct", "numpy"]
    monkeypatch.setitem(dispatch.TABLE, ("forward", "winograd", "numpy"), direct)
    assert "numpy-winograd" in peers.names("forward")
    assert "numpy-winograd" not in peers.names("backward")  # which needs both gradients


def test_choosing_peers():
    everyone = ["fastconv", "cython-direct", "cython-im2col", "torch"]
    assert peers.choose(everyone, ["torch"]) == ["fastconv", "torch"]
    assert peers.choose(everyone, ["*-im2col"]) == ["fastconv", "cython-im2col"]
    with pytest.raises(ValueError, match=r"'torhc'.*torch"):
        peers.check_patterns(["book", "torhc"])


def test_a_missing_peer_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(peers.PEERS, "gone", peers.Peer("gone", "Gone", ("no_such_module",), ("forward",), lambda job: None))
    assert "gone" not in peers.names("forward")
    with pytest.raises(ImportError, match="Gone is not installed: pip install no_such_module"):
        peers.check_patterns(["gone"])


def test_threads_are_set_alike():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = fastconv.options
    for threads in (1, 2):
        with peers.limited(threads):
            pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
            assert all(n <= threads for n in pools)
            if "torch" in INSTALLED:
                import torch

                torch.set_num_threads(3 - threads)
                peers.make(Job("forward", CONVS[0], threads=threads), "torch")
                assert torch.get_num_threads() == threads
            assert fastconv.plan_conv2d((1, 1, 9, 9), (1, 1, 3, 3))._budget.threads <= threads
    assert before is fastconv.options


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def new_peer(monkeypatch):
    """``new_peer(name, make)`` enters a peer for the length of a test, as one function would."""
    monkeypatch.setattr(peers, "PEERS", dict(peers.PEERS))

    def enter(name, make):
        peers.peer(name, name.title())(make)

    return enter


@with_extensions
def test_a_row_is_checked_and_timed(new_peer):
    new_peer("twice", lambda job: lambda: fastconv.conv2d(job.x, job.weight, None, *job.conv.arguments))
    new_peer("wrong", lambda job: lambda: np.zeros(job.conv.geometry.output_shape, np.float32))
    new_peer("unable", lambda job: None)

    def huge(job):
        raise MemoryError("needs 10 bytes too many")

    new_peer("huge", huge)
    row = rows.measure(Job("forward", CONVS[0]), ["fastconv", "cython-direct", "twice", "wrong", "unable", "huge"], 0.01)
    assert list(row.samples) == ["fastconv", "cython-direct", "twice"]
    assert row.wrong["wrong"].startswith("wrong: the result is off by 1.0e+00")
    assert row.skipped == {"unable": "has no such operation", "huge": "needs 10 bytes too many"}
    records = {record["contender"]: record for record in row.records()}
    assert list(records) == ["fastconv", "cython-direct", "twice", "unable", "huge", "wrong"]
    ours = records["fastconv"]
    assert ours["seconds"] == row.samples["fastconv"].median
    assert ours["flop_rate"] == pytest.approx(ours["flops"] / ours["seconds"])
    assert ours["percent_of_peak"] == pytest.approx(100 * ours["flop_rate"] / ours["fma_peak"])
    assert ours["percent_of_copy"] == pytest.approx(100 * ours["bytes"] / ours["seconds"] / ours["copy_rate"])
    assert ours["algorithm"] == fastconv.plan_conv2d(CONVS[0].x, CONVS[0].weight, padding=1).algorithm
    assert ours["scratch_bytes"] == pytest.approx(ours["predicted_scratch_bytes"], rel=0.05, abs=64)
    assert records["wrong"]["seconds"] is None
    assert len({tuple(record) for record in records.values()}) == 1  # flat, and all the same names


def test_a_first_call_is_not_what_a_call_takes(new_peer, monkeypatch):
    calls, clock, told = [], [0.0], {}

    def call(job):
        clock[0] += 0.001 if calls else 0.5  # modules, plans, fresh memory
        calls.append(job)
        return fastconv.conv2d(job.x, job.weight, None, *job.conv.arguments)

    new_peer("cold", lambda job: lambda: call(job))
    monkeypatch.setattr(rows.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(rows, "CEILINGS", SimpleNamespace(available=False))
    monkeypatch.setattr(rows, "interleave", lambda calls, seconds, *, seen, **others: told.update(seen))
    rows.measure(Job("forward", CONVS[0]), ["cold"], 0.01)
    assert told == {"cold": pytest.approx(0.001)}


def test_a_row_keeps_no_arrays():
    job = Job("forward", CONVS[0])
    row = rows.measure(job, ["fastconv"], 0.01)
    assert "x" not in vars(row.job)
    assert "x" not in vars(job)
    with pytest.raises(RuntimeError, match="gone"):
        row.contenders["fastconv"].call()


def test_a_row_beyond_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(Job, "x", property(lambda job: pytest.fail("the images were made")))
    row = rows.measure(Job("forward", ConvLayer("huge", (10**6, 64, 224, 224), (64, 64, 3, 3), 1, 1)), ["fastconv"], 0.01)
    needed = 2 * 10**6 * 64 * 224 * 224 * 4 + 64 * 64 * 9 * 4
    assert row.skipped["fastconv"].startswith(f"its arrays need {needed:,} bytes, this machine has ")
    assert not row.samples


def test_an_interrupted_row_keeps_its_turns(new_peer):
    calls = []

    def interrupt():
        calls.append(None)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return fastconv.conv2d(x, weight, None, *CONVS[0].arguments)

    job = Job("forward", CONVS[0])
    x, weight = job.x, job.weight
    new_peer("interrupt", lambda job: interrupt)
    row = rows.Row(job)
    with pytest.raises(KeyboardInterrupt):
        rows.measure(job, ["fastconv", "interrupt"], 10.0, row=row)
    assert row.records()[0]["contender"] == "fastconv"
    assert row.records()[0]["rounds"] >= 1


# --- timing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_time(monkeypatch):
    """A clock that only the calls of a test advance; ``fake_time(name, seconds)`` makes one, and `log` says who was called."""

    class Clock:
        now = 0.0
        log: list[str]

        def __call__(self, name, seconds):
            def call():
                self.log.append(name)
                self.now += seconds
            return call

    clock = Clock()
    clock.log = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_contenders_take_turns(fake_time):
    calls = {name: fake_time(name, seconds) for name, seconds in (("a", 0.030), ("b", 0.040), ("c", 0.050))}
    samples = timing.interleave(calls, 2.0, rounds=(3, 4))
    del fake_time.log[:9]  # three looks at each, to see how long it takes
    assert "".join(fake_time.log) == "aabbcc" "ccbbaa" "aabbcc" "ccbbaa"  # there and back; one call before each that counts
    assert {name: entry.seconds for name, entry in samples.items()} == \
        {name: pytest.approx([seconds] * 4) for name, seconds in (("a", 0.030), ("b", 0.040), ("c", 0.050))}


def test_what_was_seen_to_be_long_is_not_called_more_than_needed(fake_time):
    samples = timing.interleave({"a": fake_time("a", 0.1), "b": fake_time("b", 3.0)}, 1.0, seen={"a": 0.1, "b": 3.0})
    assert len(samples["a"].seconds) == 5
    assert len(samples["b"].seconds) == 1
    assert fake_time.log.count("a") == 5
    assert fake_time.log.index("b") <= 1  # in the first round: an interruption would find it


def test_short_calls_are_counted_in_bunches(fake_time):
    samples = timing.interleave({"a": fake_time("a", 1e-5)}, 1.0, rounds=(3, 7))
    assert samples["a"].iterations == 100
    assert samples["a"].seconds == pytest.approx([1e-5] * 7)
    before, counted = round(timing.WARM_UP_SECONDS / 1e-5), 100  # calls of a turn; the clock is rounded, so one more or less
    assert abs(len(fake_time.log) - (3 + 7 * (before + counted))) <= 7


def test_threads_are_given_time_to_spread(fake_time, monkeypatch):
    monkeypatch.setattr(timing, "_settle", lambda threads: None)
    samples = timing.interleave({"a": fake_time("a", 1e-3), "b": fake_time("b", 0.06)}, 2.0, threads=2, rounds=(2, 2))
    assert (samples["a"].iterations, samples["b"].iterations) == (10, 1)
    before = round(timing.SPREAD_SECONDS / 1e-3)  # the clock is rounded, so one more or less
    assert abs(fake_time.log.count("a") - (3 + 2 * (before + 10))) <= 2
    assert fake_time.log.count("b") == 3 + 2 * (2 + 1)


def test_slow_contenders_are_spread_over_the_rounds(fake_time):
    timing.interleave({"a": fake_time("a", 0.021), "b": fake_time("b", 0.105)}, 1.0, rounds=(1, 20),
                      seen={"a": 0.021, "b": 0.105})
    turns = "".join(fake_time.log)
    assert turns.count("a") == 20
    assert turns.count("b") == 5
    assert "aaaaaaaa" not in turns


def test_time_that_quick_contenders_do_not_need_is_the_others(fake_time):
    turns = timing._turns({"quick": 0.001, "slow": 0.05}, 1.0, (3, 25))
    assert turns == {"quick": 25, "slow": 19}
    assert timing._turns({"slow": 0.15, "slower": 0.25}, 0.1, (3, 25)) == {"slow": 3, "slower": 1}


def test_turns_run_inside_what_the_contender_needs(fake_time):
    inside = []

    @contextlib.contextmanager
    def block(name):
        inside.append(name)
        yield
        inside.pop()

    def call():
        assert inside == ["a"]
        fake_time.now += 0.01

    timing.interleave({"a": call}, 0.1, inside=block)


def test_median_and_best():
    samples = timing.Samples(1, [3.0, 1.0, 2.0, 9.0])
    assert (samples.median, samples.best) == (2.5, 1.0)


# --- the machine ------------------------------------------------------------------------------------------------------

#: More than any core does: floating-point operations in a cycle are at most 4 multiply-adds of vectors, at 8 GHz.
LANES = {"avx512": 16, "avx2": 8, "baseline": 4}


@pytest.mark.parametrize("isa", native.ISAS if native else ())
@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float64", 8)])
def test_the_peak_is_that_of_a_loop_that_was_really_run(isa, dtype, itemsize):
    if isa not in native.available_isas():
        pytest.skip(f"this CPU cannot run {isa}")
    with native.using_isa(isa):
        ceilings = machine.Ceilings()
        rate = ceilings.fma(dtype, 1)
    bound = 4 * 2 * LANES[isa] * 4 / itemsize * 8e9
    assert 1e8 < rate < bound  # a loop that the compiler left out would be far above


@with_extensions
def test_the_loops_do_what_they_count():
    kernels = native.kernels
    assert kernels.fma_loop(1000, 4, 2) == 2 * kernels.fma_loop(1000, 4, 1) == 4 * kernels.fma_loop(1000, 8, 1)
    for size in (1, 63, 4096, 12289, 100_003):
        source = np.random.default_rng(0).integers(1, 255, size, np.uint8)
        for threads in (1, 2, 3, 7):
            to = np.zeros(size + 2, np.uint8)
            assert kernels.copy_loop(to[1:-1], source, threads) == 2 * size
            assert (to[1:-1] == source).all()
            assert to[0] == to[-1] == 0
            to[:] = 9
            assert kernels.store_loop(to[1:-1], threads) == size
            assert (to[1:-1] == 1).all()
            assert to[0] == to[-1] == 9
            assert kernels.read_loop(source, threads) == size


def test_ceilings_only_rise(monkeypatch):
    monkeypatch.setattr(machine, "LOOK_SECONDS", 0.002)
    ceilings = machine.Ceilings()
    clock, rates = [0.0], []
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def work(amount):
        clock[0] += 0.001
        return rates[-1] * 0.001

    found = []
    for rate in (100.0, 50.0, 50.0, 200.0):
        rates.append(rate)
        found.append(ceilings._measure(("copy", 1, 1), work, True))
    assert found == pytest.approx([100, 100, 100, 200])
    assert ceilings._measure(("copy", 1, 1), lambda amount: pytest.fail("it looked"), False) == pytest.approx(200)


@with_extensions
def test_small_working_sets_are_held_against_small_copies(monkeypatch):
    monkeypatch.setattr(machine, "buffer_bytes", lambda: 2**22)
    ceilings = machine.Ceilings()
    sizes = [2 * ceilings._views(nbytes)[0].nbytes for nbytes in (None, 10, 2**17, 2**17 + 1, 3 * 2**20, 2**40)]
    assert sizes == [2**23, 2**17, 2**17, 2**18, 2**22, 2**23]


def test_the_machine_is_described():
    found = machine.describe({"torch": "1"})
    assert {"cpu", "cpus", "isa", "python", "numpy", "fastconv", "torch"} <= set(found)
    json.dumps(found)
    assert 0 < machine.available_memory() <= fastconv.memory.physical_memory()


# --- memory -----------------------------------------------------------------------------------------------------------

needs_hook = pytest.mark.skipif(footprint._allocations() is None, reason="without the extension modules")


@needs_hook
def test_array_data_is_counted_to_the_byte():
    kept = []

    def call():
        a = np.empty(1000, np.uint8)
        b = np.zeros(500, np.uint8)   # 1500 alive
        del a
        kept.append(np.ones(700, np.uint8))  # 1200
        del b
        np.empty(100, np.uint8).sum()  # 800

    assert footprint.measure(call).array_bytes == 1500
    assert footprint.measure(call).array_bytes == 1500  # what is still alive of before is not of this call
    assert kept[0].sum() == 700  # and lives on


@needs_hook
def test_allocations_before_and_after_the_block_do_not_count():
    from fastconv.native._allocations import ArrayAllocations

    early = np.empty(10**6, np.uint8)
    watch, inner = ArrayAllocations(), None
    with watch:
        del early
        grown = np.empty(100, np.uint8)
        with pytest.raises(RuntimeError), watch:
            pass
        with ArrayAllocations() as inner:  # counters count for those around them
            np.empty(50, np.uint8)
    grown.resize(300, refcheck=False)
    np.empty(10**6, np.uint8)
    assert inner.peak == 50
    assert watch.peak == 400  # 100 + 300 by a resize outside: its array is the block's


@needs_hook
def test_counters_are_per_thread_and_survive_their_arrays():
    from concurrent.futures import ThreadPoolExecutor

    from fastconv.native._allocations import ArrayAllocations

    with ThreadPoolExecutor(1) as pool:
        with ArrayAllocations() as watch:
            pool.submit(np.empty, 10**6, np.uint8).result()
            arrays = [np.empty(8) for _ in range(100)]
        peak = watch.peak
        del watch
        pool.submit(arrays.clear).result()  # freed elsewhere, by an allocator that nobody else knows any more
    assert peak == 100 * 64


def test_without_the_hook_tracemalloc_counts(monkeypatch):
    monkeypatch.setattr(footprint, "_allocations", lambda: None)
    found = footprint.measure(lambda: np.empty(10**6, np.uint8))
    assert found.counted_by == "tracemalloc"
    assert found.array_bytes == pytest.approx(10**6, rel=0.05)


@needs_hook
@pytest.mark.skipif(footprint._reset_high_water() is None, reason="the system does not tell the resident set's peak")
def test_what_no_hook_sees_is_resident():
    import ctypes

    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    size = 32 * 2**20

    def call():
        hidden = libc.malloc(size)
        ctypes.memset(hidden, 1, size)
        libc.free(hidden)

    call()
    found = footprint.measure(call)
    assert found.array_bytes == 0
    assert found.resident_bytes == pytest.approx(size, rel=0.1)


@needs_hook
def test_large_results_are_counted_though_they_are_recycled():
    x, weight = np.zeros((4, 8, 64, 64), np.float32), np.zeros((8, 8, 1, 1), np.float32)
    for _ in range(3):
        found = footprint.measure(lambda: fastconv.conv2d(x, weight))
        assert found.array_bytes >= x.nbytes
    with fastconv.native._allocations.ArrayAllocations() as watch:
        fastconv.conv2d(x, weight)
    assert watch.peak < x.nbytes  # as it was before: measuring changed nothing for good


# --- reports ----------------------------------------------------------------------------------------------------------


def record(contender, seconds, layer="tiny", **more):
    base = rows.Row(Job("forward", next(row for row in layers.CONV_ROWS if row.name == layer))).record(contender)
    rate = None if seconds is None else 1e12
    return base | {"ours": contender in ("fastconv", "cython-direct"), "seconds": seconds, "flop_rate": rate,
                   "percent_of_peak": None if seconds is None else 61.4, "byte_rate": rate} | more


def test_ratios_are_of_the_best_peer():
    records = [record("fastconv", 2e-3), record("cython-direct", 1e-3), record("torch", 5e-3), record("book", 3e-3),
               record("scipy", None, skipped="has no such operation")]
    assert report.best_peer(records)["contender"] == "book"
    assert report.ratio(records) == pytest.approx(1.5)
    assert report.ratio(records[1:]) is None
    assert report.ratio(records[:2]) is None
    assert report.geometric_mean([2.0, 8.0]) == pytest.approx(4)


def test_tables():
    records = [record("fastconv", 2e-3, scratch_bytes=12_345), record("torch", 5e-3), record("fastconv", 1e-3, "plane-7x7"),
               record("torch", 4e-4, "plane-7x7"), record("book", None, "plane-7x7", skipped="needs 1 byte too many"),
               record("scipy", None, "plane-7x7", skipped="has no such operation")]
    table, = report.tables(records)
    assert table.title == "Convolution forward, float32, 1 thread: ms, median"
    assert table.rows == [
        ["tiny", "1,3,8x8 -> 4, 3/1/1", "2.00", "5.00", "1000", "61%", "0.0123", "2.50"],
        ["plane-7x7", "1,1,1024x1024 -> 1, 7/1/3", "1.00", "0.400", "1000", "61%", "", "0.40"]]
    assert table.notes == ["Best peer's time over fastconv's: geometric mean 1.00, least 0.40 (plane-7x7).",
                           "plane-7x7, book: needs 1 byte too many"]
    text = table.markdown()
    lines = text.splitlines()
    assert lines[2].startswith("| layer | N,C,HxW -> K, kernel/stride/pad | fastconv | PyTorch | GFLOP/s |")
    assert lines[3] == "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert len({line.count("|") for line in lines[2:6]}) == 1


def test_changes_are_measured_by_the_peers():
    def run(machine, ours):
        return [record(name, seconds * machine * (ours if name == "cython-direct" else 1.0), layer,
                       best_seconds=seconds * machine * (ours if name == "cython-direct" else 1.0))
                for layer in ("tiny", "plane-7x7")
                for name, seconds in (("fastconv", 1e-3), ("cython-direct", 2e-3), ("torch", 3e-3), ("book", 4e-3))]

    table = report.changes(run(1.0, 1.0), run(1.5, 1.2))  # a machine that is half as slow again, and one slower kernel
    assert table.rows == [["forward", layer, "cython-direct", "2.00", "3.60", "+50%", "+20%"]
                          for layer in ("tiny", "plane-7x7")]
    assert table.notes == ["2 of 4 times of fastconv changed by 10% or more, measured by the peers of the same row."]
    faster = report.changes(run(1.0, 1.0), run(1.0, 0.5))
    assert [row[-1] for row in faster.rows] == ["-50%", "-50%"]
    without = [entry for entry in run(1.0, 1.0) if entry["ours"]]
    assert "4 had no peer to measure by" in report.changes(without, without).notes[0]
    assert report.changes([], run(1.0, 1.0)).rows == []


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_tables_fit_the_terminal(width):
    from io import StringIO

    from rich.console import Console

    records = [record(name, 2e-3) for name in ("fastconv", "torch", "onnxruntime", "book")]
    text = StringIO()
    report.tables(records)[0].show(Console(file=text, width=width))
    shown = text.getvalue()
    assert "tiny" in shown
    assert ("1,3,8x8" in shown) is (width == 200)  # the first to go
    if width >= 80:
        assert "…" not in shown


@pytest.mark.parametrize(("seconds", "text"), [(0.1234, "123"), (0.01234, "12.3"), (1.5e-3, "1.50"), (4.56e-6, "0.00456"),
                                               (12.3456, "12346"), (None, ""), (0.0, "0")])
def test_milliseconds(seconds, text):
    assert report.milliseconds(seconds) == text


def test_markdown_goes_between_the_marks(tmp_path):
    path = tmp_path / "tables.md"
    report.check_markdown(path)
    assert not path.exists()
    report.write_markdown(path, "one\n")
    assert path.read_text() == f"{report.BEGIN}\none\n{report.END}\n"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.check_markdown(path)
    report.write_markdown(path, "new\n")
    assert path.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    path.write_text("somebody's text\n")
    with pytest.raises(ValueError, match="no line <!-- fastconv bench: begin"):
        report.check_markdown(path)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.json"
    report.write_json(path, {"a": [1, (2, 3)], "p": Path("x")})
    assert json.loads(path.read_text()) == {"a": [1, [2, 3]], "p": "x"}
    with pytest.raises(TypeError):
        report.write_json(path, {("not", "a", "key"): 1})
    assert json.loads(path.read_text())["a"]
    assert list(tmp_path.iterdir()) == [path]


# --- fastconv bench ---------------------------------------------------------------------------------------------------


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


@with_extensions
def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"out.{name}" for name in ("json", "markdown", "plot")}
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    assert main(["bench", "--layers", "tiny,mnist-pool", "--operations", "forward,avg_pool", "--seconds", "0.01",
                 "--threads", "1,2" if machine.usable_cpus() > 1 else "1", "--peers", "book,cython-direct", *options]) == 0
    shown = capsys.readouterr().out
    assert "Convolution forward, float32, 1 thread" in shown
    assert "Average pooling forward, float32, 1 thread" in shown
    content = json.loads(files["json"].read_text())
    assert content["complete"] is True
    found = {(r["operation"], r["contender"]) for r in content["records"] if r["seconds"] and r["threads"] == 1}
    assert found == {("forward", "fastconv"), ("forward", "cython-direct"), ("forward", "book"), ("avg_pool", "fastconv")}
    assert all(entry["float32"] > entry["float64"] > 0 < entry["copy"] for entry in content["ceilings"])
    assert files["markdown"].read_text().startswith(report.BEGIN)
    assert "tiny" in files["markdown"].read_text()
    assert is_png(files["plot"])


@pytest.mark.parametrize(("options", "message"), [
    (["--layers", "nothing"], "argument --layers: no layer is called 'nothing'"),
    (["--operations", "sideways"], "argument --operations: there is no operation 'sideways'"),
    (["--layers", "tiny", "--operations", "max_pool"], "argument --layers: none of these layers goes with"),
    (["--peers", "nobody"], "argument --peers: no peer is called 'nobody'"),
    (["--threads", "100000"], "argument --threads: this process may use"),
    (["--threads", "0"], "argument --threads"),
    (["--seconds", "0"], "argument --seconds: must be a number above 0"),
    (["--json", "/no/such/folder/x.json"], "argument --json: /no/such/folder/x.json"),
    (["--plot", "/no/such/folder/x.png"], "argument --plot: /no/such/folder/x.png"),
])
def test_wrong_options_are_told_before_anything_is_measured(options, message, capsys, monkeypatch):
    monkeypatch.setattr(rows, "measure", lambda *args, **kwargs: pytest.fail("it measured"))
    assert main(["bench", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fastconv bench: error: {message}") or message in error
    assert error.count("\n") == 1


def test_an_interrupted_command_keeps_what_it_has(tmp_path, capsys, monkeypatch):
    measure, calls = rows.measure, []

    def interrupted(job, names, seconds, **kwargs):
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(job, names, seconds, **kwargs)

    monkeypatch.setattr(rows, "measure", interrupted)
    path = tmp_path / "out.json"
    assert main(["bench", "--layers", "tiny,mnist-conv1", "--operations", "forward", "--peers", "book", "--seconds", "0.01",
                 "--json", str(path)]) == 130
    content = json.loads(path.read_text())
    assert content["complete"] is False
    assert {record["layer"] for record in content["records"]} == {"mnist-conv1"}
    captured = capsys.readouterr()
    assert "mnist-conv1" in captured.out
    assert "interrupted" in captured.err


def test_a_wrong_result_fails_the_command(new_peer, capsys):
    new_peer("wrong", lambda job: lambda: np.zeros(job.conv.geometry.output_shape, np.float32))
    assert main(["bench", "--layers", "tiny", "--operations", "forward", "--peers", "wrong", "--seconds", "0.01"]) == 1
    assert "wrong: the result is off by" in capsys.readouterr().err


@with_extensions
def test_the_list(capsys):
    assert main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    for text in ("mnist-conv1", "100,1,28x28 -> 30, 5/1/0", "im2col_rows", "cython-direct", *peers.PEERS):
        assert text in shown


# --- pytest --benchmark-only ------------------------------------------------------------------------------------------

bench_folder = pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="the folder bench/ is not there")


def run_pytest(*arguments, **kwargs):
    pytest.importorskip("pytest_benchmark")
    return subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments], cwd=ROOT, text=True,
                          capture_output=True, check=False, timeout=300, **kwargs)


@with_extensions
@bench_folder
def test_benchmarks_under_pytest(tmp_path):
    path = tmp_path / "out.json"
    done = run_pytest("--benchmark-only", "--layers=tiny,mnist-pool", "--peers=book,cython*", "--row-seconds=0.01",
                      f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/" not in done.stdout.partition("testpaths")[2].partition("\n")[2]
    benchmarks = {entry["name"]: entry for entry in json.loads(path.read_text())["benchmarks"]}
    for name in ("fastconv", "cython-direct", "book"):
        entry = benchmarks[f"test_forward[tiny-float32-1thread-{name}]"]
        extra, stats = entry["extra_info"], entry["stats"]
        assert entry["group"] == "convolution forward: tiny (1,3,8x8 -> 4, 3/1/1), float32, 1 thread"
        assert extra["contender"] == name
        # What pytest-benchmark has are the times that were measured by turns.
        assert stats["median"] == pytest.approx(extra["seconds"], rel=1e-6)
        assert stats["min"] == pytest.approx(extra["best_seconds"], rel=1e-6)
        assert (stats["rounds"], stats["iterations"]) == (extra["rounds"], extra["iterations"])
        assert extra["flop_rate"] > 0 < extra["percent_of_peak"]
    assert benchmarks["test_forward[tiny-float32-1thread-fastconv]"]["extra_info"]["scratch_bytes"] > 0
    assert {"test_max_pool[mnist-pool-float32-1thread-book]", "test_backward[tiny-float32-1thread-cython-direct]",
            "test_im2col_rows[mnist-pool-float32-1thread-book]"} <= set(benchmarks)
    assert "side by side" in done.stdout


@bench_folder
def test_plain_pytest_runs_the_tests_alone():
    done = run_pytest("--collect-only", "-q", "tests/test_bench.py")
    assert done.returncode == 0
    done = run_pytest("--collect-only", "-q", "-k", "test_plain_pytest_runs_the_tests_alone or test_forward_sweep")
    assert "test_plain_pytest_runs_the_tests_alone" in done.stdout
    assert "bench_" not in done.stdout


@bench_folder
def test_wrong_options_under_pytest():
    done = run_pytest("--benchmark-only", "--layers=nothing")
    assert done.returncode == 4
    assert "no layer is called 'nothing'" in done.stderr


@bench_folder
def test_a_run_of_nothing_is_no_accident(tmp_path):
    done = run_pytest("--benchmark-only", "--layers=tiny", "-k", "nothing", f"--benchmark-json={tmp_path / 'out.json'}")
    assert done.returncode == 5, done.stdout + done.stderr  # pytest's code for no tests
    assert "Traceback" not in done.stdout + done.stderr


@with_extensions
@bench_folder
def test_a_slower_kernel_is_found(tmp_path):
    """Compared with an earlier run, a contender that lost a fifth stands out; the times come from a plugin, not a clock."""
    (tmp_path / "slower.py").write_text(
        "import os\n"
        "from fastconv.benchmarks import timing\n"
        "factor = float(os.environ['FACTOR'])\n"
        "def interleave(calls, seconds, *, samples, **kwargs):\n"
        "    for name in calls:\n"
        "        slow = factor if name == 'cython-direct' else 1.0\n"
        "        samples[name] = timing.Samples(2, [slow * t for t in (0.010, 0.011, 0.010)])\n"
        "    return samples\n"
        "def pytest_configure(config):\n"
        "    from fastconv.benchmarks import rows\n"
        "    rows.interleave = interleave\n")
    common = ["--benchmark-only", "--layers=tiny", "--peers=book,cython-direct", f"--benchmark-storage={tmp_path}", "-p",
              "slower", "-k", "test_forward and tiny"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    first = run_pytest(*common, "--benchmark-save=before", env=environment | {"FACTOR": "1"})
    assert first.returncode == 0, first.stdout + first.stderr
    same = run_pytest(*common, "--benchmark-compare=0001", "--benchmark-compare-fail=median:10%",
                      env=environment | {"FACTOR": "1"})
    assert same.returncode == 0, same.stdout + same.stderr
    slower = run_pytest(*common, "--benchmark-compare=0001", "--benchmark-compare-fail=median:10%",
                        env=environment | {"FACTOR": "1.2"})
    assert slower.returncode != 0
    found = slower.stdout + slower.stderr
    assert "cython-direct] (0001_before) - Field 'median' has failed PercentageRegressionCheck: 20.0" in found
    assert "fastconv] (0001_before) - Field" not in found
    assert "1 of 2 times of fastconv changed by 10% or more" in slower.stdout
    assert "+20%" in slower.stdout
    assert "0 of 2 times of fastconv changed" in same.stdout


def test_timing_looks_at_a_real_clock():
    samples = timing.interleave({"sleep": lambda: time.sleep(0.004)}, 0.02, rounds=(2, 3))
    assert all(seconds >= 0.004 for seconds in samples["sleep"].seconds)
