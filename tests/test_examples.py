"""Each example runs from the command line as its docstring says, prints what it found and writes its pictures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_the_readmes_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the README says under "Use" is run from top to bottom, but for the book's own files."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    use = text[text.index("## Use"):text.index("## Algorithms")]
    blocks = [block for block in re.findall(r"```python\n(.*?)```", use, re.DOTALL) if "from common." not in block]
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)  # the README is ours
    assert names["small"].shape == (8, 128, 7, 5)
    assert names["out"].shape == (8, 28, 28, 128)
    assert "digits.npz" in {path.name for path in tmp_path.iterdir()}
    assert "2,570" in capsys.readouterr().out  # the last layer's parameters


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
