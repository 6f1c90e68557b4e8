"""Scripts in interpreters of their own: what could crash, hang or leave something behind is not run in the suite's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import fastconv

HERE = Path(__file__).parent


#: For scripts about fork, which define `same`: whether all calls give what they should.
FORKING = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads: what this is about

def in_threads():
    results = []
    workers = [threading.Thread(target=lambda: results.append(same())) for _ in range(3)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    return results == [True] * 3

def child(check):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        sys.exit(f"the child ended with {status}")
"""


def start(script: str | Path, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it (source, or a file) in a new interpreter, which finds these tests and the fastconv that is tested here.

    The variables that set up fastconv and OpenMP are not inherited: they would decide what the script is about.
    """
    variables = {name: value for name, value in os.environ.items()
                 if not name.startswith(("FASTCONV_", "OMP_", "GOMP_", "OPENBLAS_"))}
    paths = [str(HERE), str(Path(fastconv.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    what = [str(script)] if isinstance(script, Path) else ["-c", textwrap.dedent(script)]
    return subprocess.run([sys.executable, *what, *arguments], capture_output=True, text=True, timeout=timeout, check=False,
                          env={**variables, "PYTHONPATH": os.pathsep.join(paths), **environment})


def output_of(script: str | Path, *arguments: str, **how: Any) -> str:
    """What it prints; a script that does not end well is a failure, and a hang is not a hang of the suite."""
    done = start(script, *arguments, **how)
    how_it_ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
    assert done.returncode == 0, f"{how_it_ended}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
