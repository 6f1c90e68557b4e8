"""Each example runs from the command line as its docstring says, prints what it found and writes its pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

#: What an example prints, among other things, and the files that it writes.
EXPECTED = {
    "classic_filters": (("Gaussian blur",), ("classic_filters.png",)),
    "lenet_digits": (("61,706 parameters", "test accuracy 9"),
                     ("lenet_curves.png", "lenet_filters.png", "lenet_feature_maps.png", "lenet.npz")),
    "books_network": (("losses differ by at most", "times as fast"), ("books_network.png",)),
    "vgg_memory": (("column matrices 1247 MB (9.0 times as much)", "measured"), ("vgg_memory.png",)),
}


def test_every_example_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    if name == "vgg_memory":
        pytest.importorskip("fastconv.native")
    root = str(EXAMPLES.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
                   "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py"), str(tmp_path / "out")], env=environment,
                          cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    printed, written = EXPECTED[name]
    for text in printed:
        assert text in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(written)
    for file in written:
        data = (tmp_path / "out" / file).read_bytes()
        assert data.startswith(b"\x89PNG" if file.endswith(".png") else b"PK")
        assert len(data) > 5000
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing beside the folder
