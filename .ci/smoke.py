"""A smoke test without pytest, for emulators and empty environments: every operation, algorithm and case once.

Usage: python .ci/smoke.py [CASES [ISA...]], where CASES is the path of tests/cases.py, and ISA an instruction set (all that
this CPU can run, by default); fastconv is the one that Python finds. The results are compared with the reference in float64;
rule 14's tolerances, and no more than a few seconds on real hardware.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastconv
from fastconv import dispatch, native, reference

LIMITS = {"float32": 1e-5, "float64": 1e-12}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = module
    spec.loader.exec_module(module)
    return module


def check(what: str, got: np.ndarray, want: np.ndarray, spread: float = 0.0) -> None:
    scale = max(float(np.abs(want).max(initial=0)), spread**0.5, 1e-300)
    error = float(np.abs(got.astype(np.float64) - want).max(initial=0)) / scale
    if not error <= LIMITS[got.dtype.name]:
        sys.exit(f"{what} in {got.dtype}: the error is {error:.2g} of the largest output")


def convolutions(case: Any, dtype: str, rng: np.random.Generator) -> int:
    count = 0
    how = case.arguments
    shape = fastconv.plan_conv2d(case.x, case.weight, **how).output_shape
    x, weight, dout = (rng.standard_normal(size).astype(dtype) for size in (case.x, case.weight, shape))
    for operation, function, inputs in (
            ("forward", "conv2d", (x, weight)), ("backward_data", "conv2d_backward_data", (dout, weight, case.x)),
            ("backward_weight", "conv2d_backward_weight", (dout, x, case.weight))):
        wide = [part.astype(np.float64) if isinstance(part, np.ndarray) else part for part in inputs]
        squares = [part**2 if isinstance(part, np.ndarray) else part for part in wide]
        want = getattr(reference, function)(*wide, **how)
        spread = float(getattr(reference, function)(*squares, **how).max(initial=0))
        for algorithm in ("auto", *dispatch.algorithms(operation, "cython")):
            try:
                got = getattr(fastconv, function)(*inputs, **how, algorithm=algorithm)
            except NotImplementedError:
                continue
            check(f"{function} {algorithm} {case}", got, want, spread)
            count += 1
    return count


def lowerings(case: Any, dtype: str, rng: np.random.Generator) -> int:
    x = rng.integers(-3, 4, case.x).astype(dtype)
    for layout in ("rows", "columns", "windows", "cs231n"):
        how = {"dilation": case.dilation, "layout": layout}
        col = fastconv.im2col(x, *case.window, **how)
        check(f"im2col {layout} {case}", col, reference.im2col(x, *case.window, **how))
        check(f"col2im {layout} {case}", fastconv.col2im(col, case.x, *case.window, **how),
              reference.col2im(col.astype(np.float64), case.x, *case.window, **how))
    return 8


def poolings(case: Any, dtype: str, rng: np.random.Generator) -> int:
    x, how = rng.integers(-3, 4, case.x).astype(dtype), case.arguments
    want, places = reference.max_pool2d(x, **how, return_indices=True)
    got, indices = fastconv.max_pool2d(x, **how, return_indices=True)
    check(f"max_pool2d {case}", got, want)
    check(f"max_pool2d alone {case}", fastconv.max_pool2d(x, **how), want)
    if not np.array_equal(indices, places):
        sys.exit(f"indices of max_pool2d {case}")
    check(f"max_pool2d_backward {case}", fastconv.max_pool2d_backward(got, indices, case.x),
          reference.max_pool2d_backward(want.astype(np.float64), places, case.x))
    check(f"avg_pool2d {case}", fastconv.avg_pool2d(x, **how), reference.avg_pool2d(x.astype(np.float64), **how))
    check(f"avg_pool2d_backward {case}", fastconv.avg_pool2d_backward(got, case.x, **how),
          reference.avg_pool2d_backward(want.astype(np.float64), case.x, **how))
    return 5


def main(path: str = "tests/cases.py", *isas: str) -> None:
    cases = load(Path(path))
    rng = np.random.default_rng(0)
    for isa in dict.fromkeys(isas) or native.available_isas():
        count = 0
        with native.using_isa(isa), fastconv.options(backend="cython"):
            for dtype in LIMITS:
                count += sum(convolutions(case, dtype, rng) for case in cases.CORE_CONV_CASES)
                count += sum(lowerings(case, dtype, rng) for case in cases.CORE_CONV_CASES)
                count += sum(poolings(case, dtype, rng) for case in cases.CORE_POOL_CASES)
        print(f"{isa}: {count} results are right")
    fastconv.show_config()


if __name__ == "__main__":
    main(*sys.argv[1:])
