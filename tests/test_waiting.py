"""Other libraries' threads: what is said to them while they are loaded, and that nothing is left of it."""

from __future__ import annotations

import pytest
from processes import output_of

WATCHING = """
    import os, sys

    NAMES = ("OPENBLAS_THREAD_TIMEOUT", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    seen = {}

    class Watch:
        def find_spec(self, name, path=None, target=None):
            seen.setdefault(name, tuple(os.environ.get(variable) for variable in NAMES))

    sys.meta_path.insert(0, Watch())
"""


def printed(code: str, **variables: str) -> list[str]:
    return output_of(WATCHING + code, **variables).split()


@pytest.mark.parametrize(("variables", "expected"), [
    ({}, ["20", "None", "None"]), ({"OPENBLAS_THREAD_TIMEOUT": "5"}, ["5", "None", "5"])], ids=["ours", "the caller's"])
def test_numpys_threads_do_not_wait_long(variables: dict[str, str], expected: list[str]) -> None:
    assert printed("""
    import fastconv
    print(*seen["numpy"][:2], os.environ.get("OPENBLAS_THREAD_TIMEOUT"))
    """, **variables) == expected


def test_a_numpy_that_is_there_stays_as_it_is() -> None:
    assert printed("""
    import numpy
    import fastconv
    print(*seen["numpy"], *(os.environ.get(variable) for variable in NAMES))
    """) == ["None"] * 6


@pytest.mark.parametrize(("variables", "expected"), [({}, "2000"), ({"OMP_WAIT_POLICY": "active"}, "None"),
                                                     ({"GOMP_SPINCOUNT": "7"}, "7")], ids=str)
def test_openmps_workers_do_not_wait_long(variables: dict[str, str], expected: str) -> None:
    pytest.importorskip("fastconv.native._cpu")
    found = printed("""
    import fastconv.native
    print(seen["fastconv.native._cpu"][1], os.environ.get("GOMP_SPINCOUNT"))
    """, **variables)
    assert found == [expected, variables.get("GOMP_SPINCOUNT", "None")]
