"""The command line, as a process and as a function: exit codes, messages, and what the demo leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_datasets import write_idx, write_part

import fastconv
from fastconv import cli, nn
from fastconv.cli import demo, main

EPOCH = re.compile(r"epoch +(\d+)/(\d+)  loss (\d+\.\d{4})  accuracy +([\d.]+)%  test loss (\d+\.\d{4})  "
                   r"test accuracy +([\d.]+)%  [\d.]+ s")
STEP = re.compile(r"one training step \(batch of (\d+)\): fastconv ([\d.]+) ms, im2col in NumPy ([\d.]+) ms, "
                  r"([\d.]+) times as fast, the same gradients \(\S+ in float64, \S+ in float32 apart\)")


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m fastconv`` and return what it did."""
    root = str(Path(fastconv.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, "-m", "fastconv", *args], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": path, **environment}, check=False)


def picture(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return pytest.importorskip("matplotlib.image").imread(path)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder with 100 images of 12x12 pixels: noise, with a bright square in one of four corners, the label."""
    folder, rng = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    labels = rng.integers(0, 4, 100)
    images = rng.integers(0, 100, (100, 12, 12))
    for image, label in zip(images, labels, strict=True):
        image[6 * (label // 2):, 6 * (label % 2):][:6, :6] += 150
    write_idx(folder / "t10k-images-idx3-ubyte.gz", images)
    write_idx(folder / "t10k-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where something is trained."""

    def fit(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was trained")

    monkeypatch.setattr(nn.Trainer, "fit", fit)


# --- the program ----------------------------------------------------------------------------------------------------


def test_version_and_help() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"fastconv {fastconv.__version__}\n", "")
    result = run("--help")
    assert result.returncode == 0
    for name in ("demo", "info"):
        assert re.search(rf"^ +{name} ", result.stdout, re.MULTILINE)
    assert run("demo", "--help").returncode == 0


def test_main_returns_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastconv {fastconv.__version__}\n"
    assert main(["demo", "--help"]) == 0
    assert "--batch-size N" in capsys.readouterr().out


def test_every_command_has_its_parts() -> None:
    assert {"demo", "info"} <= set(cli.commands())
    help_text = cli.build_parser().format_help()
    for name in cli.commands():
        assert name in help_text


def test_a_new_command_is_a_new_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "greet.py").write_text(
        '"""Greet."""\nSUMMARY = "say hello"\n'
        'def configure(parser): parser.add_argument("--name", default="you")\n'
        'def run(args):\n    print("hello,", args.name)\n    return 7\n')
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    assert main(["greet", "--name", "there"]) == 7
    assert capsys.readouterr().out == "hello, there\n"
    monkeypatch.delitem(sys.modules, "fastconv.cli.greet")


@pytest.mark.parametrize(("args", "message"), [
    ((), "the following arguments are required: COMMAND (see fastconv --help)"),
    (("train",), "argument COMMAND: invalid choice: 'train'"),
    (("info", "more"), "unrecognized arguments: more"),
    (("demo", "--epoch", "3"), "unrecognized arguments: --epoch 3"),
    (("demo", "--epochs", "0"), "argument --epochs: must be a whole number of at least 1, got '0' (see fastconv demo"),
    (("demo", "--epochs", "1.5"), "argument --epochs: must be a whole number of at least 1, got '1.5'"),
    (("demo", "--epochs", "9999999999"), "argument --epochs: must be a whole number of at most 2147483647"),
    (("demo", "--batch-size", "-5"), "argument --batch-size: must be a whole number of at least 1, got '-5'"),
    (("demo", "--train-size", "many"), "argument --train-size: must be a whole number of at least 1, got 'many'"),
    (("demo", "--seed", "-1"), "argument --seed: must be a whole number of at least 0, got '-1'"),
    (("demo", "--lr", "0"), "argument --lr: must be a number above 0, got '0'"),
    (("demo", "--lr", "nan"), "argument --lr: must be a number above 0, got 'nan'"),
    (("demo", "--lr", "inf"), "argument --lr: must be a number above 0, got 'inf'"),
    (("demo", "--lr", "fast"), "argument --lr: must be a number above 0, got 'fast'"),
    (("demo", "--optimizer", "rmsprop"), "argument --optimizer: invalid choice: 'rmsprop'"),
    (("demo", "--out"), "argument --out: expected one argument"),
])
def test_a_bad_request_is_one_line(args: tuple[str, ...], message: str, untrained: None,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastconv: error: {message}")
    assert err.count("\n") == 1


def test_a_bad_request_in_a_process() -> None:
    result = run("demo", "--epochs", "0")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_what_breaks_while_it_runs_is_one_line(monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    for error, code, message in ((OSError(28, "No space left on device", "/x"), 1, "/x: No space left on device"),
                                 (MemoryError("too\nlarge"), 1, "too large"), (MemoryError(), 1, "MemoryError"),
                                 (KeyboardInterrupt(), 130, "interrupted")):
        def stop(error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(fastconv, "show_config", stop)
        assert main(["info"]) == code
        assert capsys.readouterr().err == f"fastconv info: error: {message}\n"


# --- info -----------------------------------------------------------------------------------------------------------


def test_info_is_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    fastconv.show_config()
    assert printed == capsys.readouterr().out
    for word in (fastconv.__version__, np.__version__, "cython", "threads"):
        assert word in printed


def test_info_in_a_process() -> None:
    result = run("info")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{fastconv.__version__}" in result.stdout


def test_info_with_a_setting_that_cannot_be() -> None:
    result = run("info", FASTCONV_BACKEND="abacus")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"fastconv info: error: FASTCONV_BACKEND must be one of .*, got 'abacus'\n", result.stderr)


@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise on Windows")
def test_a_reader_that_goes_away() -> None:
    process = subprocess.Popen([sys.executable, "-m", "fastconv", "info"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, cwd=Path(fastconv.__file__).parents[1])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == b""
    assert process.wait() == 1


# --- demo -----------------------------------------------------------------------------------------------------------


def test_demo(mnist: Path, tmp_path: Path) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)
    out = tmp_path / "new" / "pictures"
    result = run("demo", "--data", str(mnist), "--epochs", "3", "--batch-size", "16", "--train-size", "72",
                 "--optimizer", "momentum", "--lr", "0.05", "--out", str(out))
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"72 images to train on, 20 to test on, 12x12 pixels, 4 classes ({mnist})"
    assert lines[1].startswith("network: conv 30 5x5 - relu - max pool 2x2 - affine 100 - relu - affine 4 - softmax, ")
    epochs = [EPOCH.fullmatch(line) for line in lines[2:5]]
    assert [match and match.group(1, 2) for match in epochs] == [("1", "3"), ("2", "3"), ("3", "3")]
    step = STEP.fullmatch(lines[5])
    assert step is not None
    assert step.group(1) == "16"
    ours, other, ratio = map(float, step.group(2, 3, 4))
    assert ours > 0
    assert ratio == pytest.approx(other / ours, rel=0.1, abs=0.1)
    assert lines[6] == f"wrote {out / 'learning_curves.png'} and {out / 'filters.png'}"
    assert lines[7] == f"test accuracy {epochs[-1].group(6)}%"  # type: ignore[union-attr]
    assert len(lines) == 8
    assert sorted(path.name for path in out.iterdir()) == ["filters.png", "learning_curves.png"]
    for path in out.iterdir():
        pixels = picture(path)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.05


def test_demo_is_repeatable(mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)

    def figures(seed: str) -> list[tuple[str, ...]]:
        assert main(["demo", "--data", str(mnist), "--epochs", "1", "--seed", seed, "--out", str(tmp_path)]) == 0
        return [match.groups() for match in EPOCH.finditer(capsys.readouterr().out)]

    first = figures("1")
    assert first == figures("1")
    assert first != figures("2")


def test_demo_on_the_bundled_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "matplotlib", "sklearn"):
        pytest.importorskip(name)
    assert main(["demo", "--epochs", "1", "--train-size", "300", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("300 images to train on, 359 to test on, 8x8 pixels, 10 classes (scikit-learn's digits)\n"
                          "network: conv 30 3x3 - relu")


@pytest.mark.slow
def test_demo_as_it_is_reaches_95_percent(tmp_path: Path) -> None:
    for name in ("rich", "matplotlib", "sklearn"):
        pytest.importorskip(name)
    result = run("demo", "--out", str(tmp_path / "out"))
    assert (result.returncode, result.stderr) == (0, "")
    epochs = EPOCH.findall(result.stdout)
    assert len(epochs) == 15
    assert float(epochs[-1][-1]) > 95
    assert STEP.search(result.stdout)
    curves, filters = (picture(tmp_path / "out" / name) for name in ("learning_curves.png", "filters.png"))
    assert min(*curves.shape[:2], *filters.shape[:2]) > 400


# Each is a request that the demo must refuse before it trains.


def no_folder(tmp_path: Path, mnist: Path) -> list[str]:
    return ["--data", str(tmp_path / "none")]


def no_folder_of_two_lines(tmp_path: Path, mnist: Path) -> list[str]:
    return ["--data", str(tmp_path / "two\nlines")]


def a_file(tmp_path: Path, mnist: Path) -> list[str]:
    return ["--data", str(mnist / "t10k-labels-idx1-ubyte")]


def empty_folder(tmp_path: Path, mnist: Path) -> list[str]:
    (tmp_path / "empty").mkdir()
    return ["--data", str(tmp_path / "empty")]


def no_labels(tmp_path: Path, mnist: Path) -> list[str]:
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    return ["--data", str(mnist)]


def a_folder_for_a_file(tmp_path: Path, mnist: Path) -> list[str]:
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    (mnist / "t10k-labels-idx1-ubyte").mkdir()
    return ["--data", str(mnist)]


def damaged(tmp_path: Path, mnist: Path) -> list[str]:
    path = mnist / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    return ["--data", str(mnist)]


def one_pixel(tmp_path: Path, mnist: Path) -> list[str]:
    write_part(tmp_path, "train", 60, size=(1, 1))
    return ["--data", str(tmp_path), "--batch-size", "3"]


def too_large_a_training_set(tmp_path: Path, mnist: Path) -> list[str]:
    return ["--data", str(mnist), "--train-size", "81"]


def too_large_a_batch(tmp_path: Path, mnist: Path) -> list[str]:
    return ["--data", str(mnist), "--train-size", "60", "--batch-size", "61"]


def out_below_a_file(tmp_path: Path, mnist: Path) -> list[str]:
    return ["--data", str(mnist), "--out", str(mnist / "t10k-labels-idx1-ubyte" / "out")]


def out_is_a_file(tmp_path: Path, mnist: Path) -> list[str]:
    return ["--data", str(mnist), "--out", str(mnist / "t10k-labels-idx1-ubyte")]


def picture_is_a_folder(tmp_path: Path, mnist: Path) -> list[str]:
    (tmp_path / "out" / "filters.png").mkdir(parents=True)
    return ["--data", str(mnist), "--out", str(tmp_path / "out")]


@pytest.mark.parametrize(("prepare", "message"), [
    (no_folder, "argument --data: {tmp_path}/none: No such file or directory"),
    (no_folder_of_two_lines, "argument --data: {tmp_path}/two lines: No such file or directory"),
    (a_file, "argument --data: {tmp_path}/mnist/t10k-labels-idx1-ubyte: Not a directory"),
    (empty_folder, "argument --data: {tmp_path}/empty has no MNIST files: looked for train-images-idx3-ubyte.* "
                   "among its 0 entries"),
    (no_labels, "argument --data: {tmp_path}/mnist/t10k-images-idx3-ubyte.gz is there, but not the labels .*"),
    (a_folder_for_a_file, "argument --data: {tmp_path}/mnist/t10k-labels-idx1-ubyte: Is a directory"),
    (damaged, "argument --data: {tmp_path}/mnist/t10k-images-idx3-ubyte.gz: the gzip data break off after .* bytes .*"),
    (one_pixel, "the output height would be 0: a window of 2 .* does not fit an input height of 1 .*"),
    (too_large_a_training_set, "argument --train-size: there are 80 images to train on, got 81"),
    (too_large_a_batch, "argument --batch-size: there are 60 images to train on, got 61"),
    (out_below_a_file, "argument --out: {tmp_path}/mnist/t10k-labels-idx1-ubyte/out: Not a directory"),
    (out_is_a_file, "argument --out: {tmp_path}/mnist/t10k-labels-idx1-ubyte: File exists"),
    (picture_is_a_folder, "argument --out: {tmp_path}/out/filters.png: Is a directory"),
])
def test_demo_refuses_before_it_trains(prepare: Any, message: str, tmp_path: Path, mnist: Path, untrained: None,
                                       monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    args = prepare(tmp_path, mnist)
    assert main(["demo", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"fastconv demo: error: {message.replace('{tmp_path}', str(tmp_path))}\n", err), err
    assert not (tmp_path / "fastconv-demo").exists()


def test_demo_refuses_in_a_process(tmp_path: Path) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)
    result = run("demo", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"fastconv demo: error: argument --data: {tmp_path / 'none'}: No such file or directory\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("option", ["--data", "--out"])
def test_demo_with_a_folder_that_is_locked(option: str, tmp_path: Path, mnist: Path, untrained: None,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o000)
    args = {"--data": str(mnist), "--out": str(tmp_path), option: str(locked)}
    assert main(["demo", *[part for pair in args.items() for part in pair]]) == 2
    assert re.search(f"error: argument {option}: {locked}\\S*: Permission denied\n$", capsys.readouterr().err)


def test_the_check_of_the_folder_leaves_everything_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "filters.png").write_bytes(b"an older picture")
    demo._check_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["filters.png"]
    assert (tmp_path / "filters.png").read_bytes() == b"an older picture"


@pytest.mark.parametrize(("module", "package", "with_data"), [
    ("rich", "rich", True), ("matplotlib", "matplotlib", True), ("sklearn.datasets", "scikit-learn", False)])
def test_demo_without_an_extra(module: str, package: str, with_data: bool, mnist: Path, untrained: None,
                               monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in {"rich", "matplotlib"} - {module}:
        pytest.importorskip(name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", *(["--data", str(mnist)] if with_data else [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"fastconv demo: error: .* needs {package}: pip install fastconv\[demo\]\n", err)


def test_demo_with_data_does_not_need_scikit_learn(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo", "--data", str(mnist), "--epochs", "1", "--out", str(tmp_path)]) == 0


def test_demo_that_diverges(mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)
    assert main(["demo", "--data", str(mnist), "--lr", "1e30", "--batch-size", "10", "--out", str(tmp_path)]) == 1
    assert re.fullmatch(r"fastconv demo: error: the loss became \S+ in epoch 1.*: the training diverged; a smaller "
                        r"learning rate may help \(--lr 1e\+30\)\n", capsys.readouterr().err)


# --- the comparison -------------------------------------------------------------------------------------------------


def compare(network_type: Any = nn.SimpleConvNet, weights_of: int = 0) -> demo.Comparison:
    arguments: dict[str, Any] = {"input_dim": (1, 8, 8), "conv_param": {"filter_num": 4, "filter_size": 3},
                                 "weight_init_std": None}

    def build(kind: Any, **more: Any) -> Any:
        return (network_type if kind is nn.SimpleConvNet else kind)(**{**arguments, **more})

    rng = np.random.default_rng(0)
    weights = nn.SimpleConvNet(**arguments, seed=weights_of).params
    before = {name: p.copy() for name, p in weights.items()}
    result = demo.compare_training_step(build, nn.SGD, weights, rng.random((6, 1, 8, 8), np.float32),
                                        rng.integers(0, 10, 6))
    for name, p in weights.items():
        np.testing.assert_array_equal(p, before[name])
    return result


def test_comparison_of_the_same() -> None:
    result = compare()
    assert result.same
    assert result.batch_size == 6
    assert 0 < result.difference["float64"] < 1e-13
    assert 1e-9 < result.difference["float32"] < 1e-5  # it was float32
    assert min(result.seconds, result.im2col_seconds) > 0
    assert "the same gradients" in str(result)


def test_comparison_sees_a_wrong_gradient() -> None:
    class Wrong(nn.SimpleConvNet):
        def loss_and_gradient(self, x: Any, t: Any) -> Any:
            loss, gradient = super().loss_and_gradient(x, t)
            gradient["W1"] = gradient["W1"] + 1e-8 * np.abs(gradient["W1"]).max()
            return loss, gradient

    result = compare(Wrong)
    assert not result.same
    assert "DIFFERENT gradients" in str(result)


def test_demo_fails_where_the_gradients_differ(mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "matplotlib"):
        pytest.importorskip(name)
    monkeypatch.setattr(demo, "compare_training_step",
                        lambda *args: demo.Comparison(50, 1.0, 2.0, {"float64": float("nan"), "float32": 0.0}))
    assert main(["demo", "--data", str(mnist), "--epochs", "1", "--out", str(tmp_path)]) == 1
    assert "fastconv demo: error: the two ways gave different gradients" in capsys.readouterr().err
