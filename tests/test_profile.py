"""fastconv profile and profile_conv2d: what an algorithm is said to take is what it takes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from cases import CONV_CASES

import fastconv
from fastconv import dispatch
from fastconv.benchmarks import footprint, layers, peers, study
from fastconv.benchmarks.jobs import Job
from fastconv.benchmarks.layers import ConvLayer
from fastconv.benchmarks.study import Engine
from fastconv.cli import main
from fastconv.options import backend_available

LAYER = ConvLayer("layer", (2, 8, 20, 21), (6, 8, 3, 3), 1, 1)

every_direction = pytest.mark.parametrize("direction", dispatch.OPERATIONS)

with_extensions = pytest.mark.skipif(not backend_available("cython"), reason="without the extension modules")

# --- predicted and measured -------------------------------------------------------------------------------------------

#: A prediction may be off by so much, and by the bytes that bring a buffer to a cache line.
RELATIVE, ALIGNMENT = 0.05, 64 + 16

hook = pytest.mark.skipif(footprint._allocations() is None, reason="tracemalloc counts Python's objects too")


def engines():
    """Each backend and algorithm of the table, as pytest parameters."""
    found = dict.fromkeys((backend, algorithm) for operation in dispatch.OPERATIONS for backend in dispatch.BACKENDS
                          for algorithm in dispatch.algorithms(operation, backend))
    return [pytest.param(Engine(*names), id="-".join(names), marks=() if backend_available(names[0]) else
                         pytest.mark.skip(reason=f"{names[0]} is not installed")) for names in found]


def check_prediction(layer, engine, direction, dtype):
    if (direction, engine.algorithm, engine.backend) not in dispatch.TABLE:
        return
    with fastconv.options(num_threads=1):
        record, = study.study(layer, dtype=dtype, direction=direction, which=[engine], seconds=1e-6, turns=1)
    if record["predicted_bytes"] is None:  # it cannot do this at all
        assert record["skipped"] is not None
        return
    assert record["measured_bytes"] == pytest.approx(record["predicted_bytes"], rel=RELATIVE, abs=ALIGNMENT), str(layer)
    if record["resident_bytes"] is not None and engine.backend != "numpy":
        # Nothing is allocated where the hook does not look: pages of the stacks of threads and huge pages are not much.
        # (NumPy's takes several arrays one after the other, and malloc keeps what one has left for the next.)
        assert record["resident_bytes"] <= 1.1 * record["measured_bytes"] + 5 * 2**20, str(layer)


def few_images(row):
    """A row with as many images as its work allows in a test: memory per image is the same."""
    return row if row.geometry.flops < 10**9 else row.with_batch(min(2, row.geometry.batch))


@hook
@every_direction
@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("row", [row for row in layers.CONV_ROWS if few_images(row).geometry.flops < 3 * 10**8],
                         ids=lambda row: row.name)
def test_prediction_on_rows(row, engine, direction):
    check_prediction(few_images(row), engine, direction, "float32")


@hook
@pytest.mark.slow
@every_direction
@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("row", [row for row in layers.CONV_ROWS if few_images(row).geometry.flops >= 3 * 10**8],
                         ids=lambda row: row.name)
def test_prediction_on_large_rows(row, engine, direction):
    check_prediction(few_images(row), engine, direction, "float32")


def check_cases(cases, engine, direction, dtype):
    if (direction, engine.algorithm, engine.backend) not in dispatch.TABLE:
        pytest.skip(f"{engine} has no {direction}")
    for case in cases:
        x = case.x if len(case.x) == 4 else (1, *case.x)
        layer = ConvLayer(case.id, x, case.weight, case.stride, case.padding, case.dilation, case.groups)
        predicted = study.predict(layer, engine, dtype=dtype, direction=direction)["predicted_bytes"]
        if predicted is None or x[0] == 0:  # it cannot do this, or there is nothing to do
            continue
        with fastconv.options(backend=engine.backend):
            call = peers.call_into(Job(direction, layer, dtype), engine.algorithm)
            call()
            measured, _ = footprint.count_arrays(call)
        assert measured == pytest.approx(predicted, rel=RELATIVE, abs=ALIGNMENT), case.id


@hook
@every_direction
@pytest.mark.parametrize("engine", engines())
def test_prediction_on_odd_geometries(engine, direction):
    check_cases([case for case in CONV_CASES if case.core], engine, direction, "float32")


@hook
@pytest.mark.slow
@every_direction
@pytest.mark.parametrize("engine", engines())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_prediction_on_all_geometries(engine, direction, dtype):
    check_cases(CONV_CASES, engine, direction, dtype)


@hook
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_prediction_with_threads(threads):
    with fastconv.options(num_threads=threads):
        for record in study.study(LAYER, seconds=1e-6, turns=1):
            if record["skipped"] is None:
                assert record["threads"] <= threads
                assert record["measured_bytes"] == pytest.approx(record["predicted_bytes"], rel=RELATIVE, abs=ALIGNMENT)


@hook
@every_direction
@pytest.mark.parametrize("engine", [Engine("cython", "im2col"), Engine("numpy", "im2col")], ids=str)
@pytest.mark.parametrize("limit", [60_000, 200_000])  # rows of an image, whole images
def test_prediction_under_a_limit(direction, engine, limit):
    with fastconv.options(workspace_limit=limit, num_threads=1):
        record, = study.study(LAYER, direction=direction, which=[engine], seconds=1e-6, turns=1)
    assert record["column_bytes"] > limit
    assert record["predicted_bytes"] <= limit
    assert record["measured_bytes"] == pytest.approx(record["predicted_bytes"], rel=RELATIVE, abs=ALIGNMENT)


# --- records ----------------------------------------------------------------------------------------------------------


@every_direction
def test_records(direction):
    records = fastconv.profile_conv2d((2, 8, 20, 21), (6, 8, 3, 3), padding=1, direction=direction, repeat=2, seconds=0.01)
    assert [(r["backend"], r["algorithm"]) for r in records] == \
        [(backend, algorithm) for backend in dispatch.BACKENDS if backend_available(backend)
         for algorithm in dispatch.algorithms(direction, backend)]
    plan = fastconv.plan_conv2d((2, 8, 20, 21), (6, 8, 3, 3), padding=1, direction=direction)
    for record in records:
        assert set(record) == set(records[0])
        assert all(value is None or isinstance(value, (str, int, float)) for value in record.values())  # pandas takes them
        if record["skipped"] is None:
            assert 1 <= record["rounds"] <= 2
            assert record["best_seconds"] <= record["seconds"]
            assert record["gflops"] == pytest.approx(plan.flops / record["seconds"] / 1e9)
    chosen = [record for record in records if record["chosen"]]
    assert [record["backend"] for record in chosen] == list(dict.fromkeys(record["backend"] for record in records))
    assert (plan.algorithm, plan.workspace_bytes) in [(r["algorithm"], r["predicted_bytes"]) for r in chosen]


@with_extensions
def test_expansion_is_what_the_column_matrix_has_more():
    for stride, kernel in ((1, 3), (2, 3), (1, 5), (3, 1)):
        layer = ConvLayer("", (1, 4, 60, 60), (4, 4, kernel, kernel), stride, padding=kernel // 2)
        record = study.predict(layer, Engine("cython", "im2col"))
        assert record["expansion"] == kernel**2 / stride**2
        assert record["column_bytes"] / record["input_bytes"] == pytest.approx(record["expansion"], rel=0.02)


@with_extensions
def test_pandas_takes_the_records():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(fastconv.profile_conv2d((1, 2, 6, 6), (3, 2, 3, 3), repeat=1, seconds=0.01))
    assert frame.set_index(["backend", "algorithm"])["predicted_bytes"].loc["cython", "direct"] > 0


@with_extensions
def test_other_dtypes_say_who_cannot():
    records = fastconv.profile_conv2d((1, 2, 6, 6), (3, 2, 3, 3), dtype="int16", repeat=1, seconds=0.01)
    skipped = {(r["backend"], r["algorithm"]): r["skipped"] for r in records}
    assert "int16" in skipped["cython", "direct"]
    assert skipped["cython", "im2col"] is None


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"direction": "sideways"}, ValueError, "direction must be one of 'forward'"),
    ({"dtype": "U3"}, TypeError, "dtype must be one of numbers"),
    ({"repeat": 0}, ValueError, "repeat must be at least 1"),
    ({"seconds": 0}, ValueError, "seconds must be above 0"),
    ({"groups": 3}, ValueError, "groups must divide the channels"),
    ({"padding": "wide"}, ValueError, "padding must be"),
])
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fastconv.profile_conv2d((1, 2, 6, 6), (3, 2, 3, 3), **arguments)


# --- what is too large ------------------------------------------------------------------------------------------------


@with_extensions
def test_a_terabyte_is_predicted_and_not_tried(monkeypatch):
    for name in ("x", "weight", "dout"):
        monkeypatch.setattr(Job, name, property(lambda job: pytest.fail("an array was made")))
    records = fastconv.profile_conv2d((10_000, 64, 224, 224), (64, 64, 3, 3), padding=1)
    by_engine = {(r["backend"], r["algorithm"]): r for r in records}
    column = 10_000 * 224 * 224 * 64 * 9 * 4
    im2col = by_engine["cython", "im2col"]
    assert im2col["predicted_bytes"] == im2col["column_bytes"] == column > 10**12
    assert f"{column:,} of them scratch" in im2col["skipped"]
    assert by_engine["cython", "direct"]["predicted_bytes"] < 100 * 2**20
    for record in records:
        assert record["skipped"] is not None
        assert record["seconds"] is None
        assert record["measured_bytes"] is None


@with_extensions
def test_only_what_is_too_large_is_left_out(monkeypatch):
    column = study.predict(LAYER, Engine("cython", "im2col"))["column_bytes"]
    job = Job("forward", LAYER)
    monkeypatch.setattr(study, "available_memory", lambda: job.input_bytes + job.result_bytes + column - 1)
    records = {r["algorithm"]: r for r in study.study(LAYER, which=[Engine("cython", "im2col"), Engine("cython", "direct")],
                                                      seconds=0.01)}
    assert "this machine has" in records["im2col"]["skipped"]
    assert records["im2col"]["seconds"] is None
    assert records["direct"]["seconds"] > 0


@with_extensions
def test_over_the_workspace_limit():
    with fastconv.options(workspace_limit=1000):
        record, = study.study(LAYER, which=[Engine("cython", "direct")])
    assert "workspace_limit is 1,000" in record["skipped"]
    assert record["predicted_bytes"] > 1000
    assert record["seconds"] is None


def test_an_interrupted_study_keeps_its_records(monkeypatch):
    def interrupted(calls, *args, samples, **kwargs):
        samples[next(iter(calls))] = study.Samples(1, [0.5])
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "interleave", interrupted)
    records = []
    with pytest.raises(KeyboardInterrupt):
        study.study(LAYER, records=records)
    assert [record["seconds"] for record in records][:2] == [0.5, None]
    assert records[1]["measured_bytes"] is not None


# --- variations, networks, the front ----------------------------------------------------------------------------------


def test_sweeps():
    assert [v.x[0] for v in study.swept(LAYER, "batch", (1, 5))] == [1, 5]
    assert [v.geometry.out_size for v in study.swept(LAYER, "stride", (1, 2))] == [(20, 21), (10, 11)]
    kernels = study.swept(LAYER, "kernel", (1, 5))  # the padding follows, and the output stays
    assert [v.geometry.out_size for v in kernels] == [(20, 21), (20, 21)]
    unpadded = ConvLayer("", (1, 1, 9, 9), (1, 1, 3, 3))
    assert [v.geometry.out_size for v in study.swept(unpadded, "kernel", (1, 5))] == [(9, 9), (5, 5)]
    with pytest.raises(ValueError, match="output height"):
        study.swept(unpadded, "kernel", (11,))


@pytest.mark.parametrize(("points", "front"), [
    ([(1, 5), (2, 4), (3, 4), (2, 6), (4, 1)], [0, 1, 4]),
    ([(3, 3)], [0]),
    ([], []),
    ([(2, 2), (2, 2), (1, 9)], [2, 0, 1]),
])
def test_pareto_front(points, front):
    assert study.pareto(points) == front


def test_totals_of_a_network():
    def record(layer, algorithm, seconds, nbytes, chosen=False):
        return {"layer": layer, "backend": "cython", "algorithm": algorithm, "seconds": seconds, "flops": 10**9,
                "predicted_bytes": nbytes, "measured_bytes": nbytes, "chosen": chosen}

    records = [record("a", "direct", 1.0, 10, True), record("b", "direct", 2.0, 40, True),
               record("a", "im2col", 3.0, 500), record("b", "im2col", None, 900),
               record("a", "winograd", 0.5, 70), record("b", "winograd", None, None),
               record("a", "implicit_gemm", None, None), record("b", "implicit_gemm", None, None)]
    found = {r["algorithm"]: r for r in study.totals(records, {"a": 3, "b": 1})}
    assert set(found) == {"direct", "winograd"}  # im2col was not run on b, implicit_gemm can do neither
    assert found["direct"]["seconds"] == 5.0
    assert found["direct"]["gflops"] == pytest.approx(4 / 5)
    assert found["direct"]["measured_bytes"] == 40
    assert found["winograd"]["seconds"] == 3.5  # where it cannot, what "auto" takes stands in
    assert found["winograd"]["stood_in"] == 1


# --- fastconv profile -------------------------------------------------------------------------------------------------

SMALL = ["--x", "2,4,12,12", "--weight", "4,4,3,3", "--padding", "1", "--seconds", "0.01"]


def test_the_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "plot")}
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    assert main(["profile", *SMALL, "--sweep", "batch=1,3", "--sweep", "stride=2", *options]) == 0
    shown = capsys.readouterr().out
    assert "2,4,12x12 -> 4, 3/1/1, forward, float32, batch 2" in shown
    assert "the same with another stride" in shown
    content = json.loads(files["json"].read_text())
    assert content["complete"] is True
    swept = {(r["sweep"], r["value"], r["batch"], r["stride_h"]) for r in content["records"]}
    assert swept == {("", None, 2, 1), ("batch", 1, 1, 1), ("batch", 3, 3, 1), ("stride", 2, 2, 2)}
    with open(files["csv"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["algorithm"] for row in rows] == [r["algorithm"] for r in content["records"]]
    assert files["plot"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@with_extensions
def test_a_network(capsys, tmp_path):
    path = tmp_path / "out.json"
    assert main(["profile", "--net", "lenet", "--batch", "2", "--algorithms", "cython-*", "--seconds", "0.01",
                 "--threads", "1", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "all convolutions of lenet" in shown
    records = json.loads(path.read_text())["records"]
    assert {r["layer"] for r in records} == {"c1", "c3", "c5"}
    assert {(r["backend"], r["batch"], r["threads"]) for r in records} == {("cython", 2, 1)}


def test_predictions_alone(capsys, monkeypatch):
    monkeypatch.setattr(study, "study", lambda *args, **kwargs: pytest.fail("it ran something"))
    assert main(["profile", "--net", "vgg16", "--batch", "100000", "--predict"]) == 0
    shown = capsys.readouterr().out
    assert "conv5_1" in shown


@pytest.mark.parametrize(("options", "message"), [
    ([], "give a layer by --x and --weight, or a network by --net"),
    (["--x", "1,2,3"], "argument --x: must be four numbers"),
    (["--x", "1,2,3,a"], "argument --x"),
    (["--x", "1,2,8,8", "--weight", "3,5,3,3"], "weight.shape[1] must be the channels of x"),
    (["--x", "1,2,8,8", "--weight", "3,2,9,9"], "the output height would be 0"),
    ([*SMALL, "--sweep", "height"], "argument --sweep: must be batch, stride or kernel"),
    ([*SMALL, "--padding", "0", "--sweep", "kernel=99"], "the output height would be"),
    ([*SMALL, "--algorithms", "numpy-*,nothing"], "argument --algorithms: no algorithm is called 'nothing'"),
    (["--net", "alexnet2"], "argument --net: there is no network 'alexnet2'"),
    (["--net", "lenet", *SMALL], "argument --net: goes with neither --x, --weight nor --sweep"),
    ([*SMALL, "--padding", "1,2,3"], "argument --padding: must be one number or two"),
    ([*SMALL, "--csv", "/no/such/folder/x.csv"], "argument --csv: /no/such/folder/x.csv"),
])
def test_wrong_options(options, message, capsys, monkeypatch):
    monkeypatch.setattr(study, "study", lambda *args, **kwargs: pytest.fail("it ran something"))
    assert main(["profile", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_paddings_are_taken_in_all_forms():
    from fastconv.cli.profile import _padding

    assert _padding("same") == "same"
    assert _padding("2") == 2
    assert _padding("1,2") == (1, 2)
    assert _padding("0,1,2,3") == ((0, 1), (2, 3))


def test_an_interrupted_command_keeps_what_it_has(tmp_path, capsys, monkeypatch):
    run, calls = study.study, []

    def interrupted(layer, **kwargs):
        calls.append(layer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(layer, **kwargs)

    monkeypatch.setattr(study, "study", interrupted)
    path = tmp_path / "out.json"
    assert main(["profile", *SMALL, "--sweep", "batch=1,3", "--json", str(path)]) == 130
    content = json.loads(path.read_text())
    assert content["complete"] is False
    assert {record["batch"] for record in content["records"]} == {2}
    captured = capsys.readouterr()
    assert "what was measured until then" in captured.out
    assert "interrupted" in captured.err


def test_arrays_of_a_study_are_as_the_plan_says():
    """The call that is measured is the public function, into an array that is there."""
    job = Job("backward_weight", LAYER)
    call = peers.call_into(job, "direct")
    result = call()
    assert result is call.keywords["out"]
    np.testing.assert_allclose(result, fastconv.conv2d_backward_weight(job.dout, job.x, LAYER.weight, 1, 1), rtol=1e-6)
