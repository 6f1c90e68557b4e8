"""Winograd's algorithm: its matrices, its borders and blocks, numbers that hurt it, and when it is chosen.

test_conv.py runs it over all shared geometries, like any other algorithm. Here is what only Winograd can get wrong.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastconv
from fastconv import dispatch, memory, reference, winograd
from fastconv.backends import Budget
from fastconv.geometry import conv2d_geometry
from fastconv.options import Settings, backend_available

native: Any
try:
    from fastconv import native
except ImportError:  # built without extension modules
    native = None

nan, inf = np.nan, np.inf

DTYPES = ("float32", "float64")
DIRECTIONS = ("forward", "backward_data")
MIB = 2**20

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)


ISAS = native.ISAS if native else ()
BACKENDS = tuple(name for name in ("cython", "numba") if backend_available(name))

if not BACKENDS:
    pytest.skip("no backend that has Winograd is installed", allow_module_level=True)

needs_native = pytest.mark.skipif(native is None, reason="without the extension modules")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def running(kernels: str) -> Iterator[str]:
    """Make fastconv use an instruction set's kernels, or Numba's; skip where this machine cannot."""
    if kernels == "numba":
        if "numba" not in BACKENDS:
            pytest.skip("numba is not installed")
        with fastconv.options(backend="numba"):
            yield kernels
        return
    if kernels not in native.available_isas():
        pytest.skip(f"this CPU cannot run {kernels}")
    with fastconv.options(backend="cython"), native.using_isa(kernels):
        yield kernels


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set's kernels in turn."""
    yield from running(request.param)


@pytest.fixture(params=[*ISAS, "numba"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Those of each instruction set and Numba's in turn."""
    if request.param == "numba" and "tile" in request.fixturenames and request.getfixturevalue("tile").cells != 6:
        pytest.skip("Numba's tiles have six cells in a row")
    yield from running(request.param)


@pytest.fixture(autouse=True)
def default_backend() -> Iterator[None]:
    with fastconv.options(backend=BACKENDS[0]):
        yield


def backend_in_force() -> type:
    return type(dispatch.backend())


def convolve(direction: str, source: np.ndarray, weight: np.ndarray, *, x_shape: tuple[int, ...] | None = None,
             module: Any = fastconv, bias: np.ndarray | None = None, activation: str | None = None,
             padding: Any = 0, groups: int = 1, **how: Any) -> np.ndarray:
    """conv2d of x, or conv2d_backward_data of dout: both are Winograd's, by one signature."""
    if direction == "forward":
        return module.conv2d(source, weight, bias, 1, padding, 1, groups, activation=activation, **how)
    return module.conv2d_backward_data(source, weight, x_shape, 1, padding, 1, groups, **how)


@dataclass(frozen=True)
class Problem:
    """Arrays of one convolution in one direction, in float64."""

    direction: str
    source: np.ndarray
    weight: np.ndarray
    arguments: dict[str, Any]

    @classmethod
    def make(cls, rng: np.random.Generator, direction: str, x: tuple[int, ...], filters: int, padding: Any = 0,
             groups: int = 1, taps: int = 3) -> Problem:
        weight = (filters, x[1] // groups, taps, taps)
        arguments: dict[str, Any] = {"padding": padding, "groups": groups}
        shape = conv2d_geometry(x, weight, 1, padding, 1, groups).output_shape
        if direction == "backward_data":
            arguments["x_shape"] = x
        else:
            shape = x
        return cls(direction, rng.standard_normal(shape), rng.standard_normal(weight), arguments)

    @property
    def x(self) -> tuple[int, ...]:
        """Shape of the image."""
        shape: tuple[int, ...] = self.arguments.get("x_shape", self.source.shape)
        return shape

    def __call__(self, dtype: Any, algorithm: str = "winograd", **how: Any) -> np.ndarray:
        return convolve(self.direction, self.source.astype(dtype), self.weight.astype(dtype), algorithm=algorithm,
                        **{**self.arguments, **how})

    def expected(self, dtype: Any, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        """What the rounded inputs give in float64, and the sums of the squares of each output's terms."""
        source, weight = (array.astype(dtype).astype(np.float64) for array in (self.source, self.weight))
        return (convolve(self.direction, source, weight, module=reference, **{**self.arguments, **how}),
                convolve(self.direction, source**2, weight**2, module=reference, **self.arguments))


@dataclass(frozen=True)
class Tile:
    """F(size x size, taps x taps)."""

    size: int
    taps: int

    def __str__(self) -> str:
        return f"F({self.size},{self.taps})"

    @property
    def cells(self) -> int:
        return self.size + self.taps - 1

    def make(self, rng: np.random.Generator, direction: str, x: tuple[int, ...], filters: int, padding: Any = 0,
             groups: int = 1) -> Problem:
        """A problem whose output is as large as that of 3x3 filters."""
        more = self.taps - 3
        return Problem.make(rng, direction, (x[0], x[1], x[2] + more, x[3] + more), filters, padding, groups, self.taps)


TILES = [Tile(size, taps) for taps, sizes in winograd.TILES.items() for size in sizes]


@pytest.fixture
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tile]:
    """Each tile in turn, whatever the geometry."""
    dispatch._select.cache_clear()  # plans know the scratch of the best tile
    monkeypatch.setattr(winograd, "best_tile", lambda operation, geometry: request.param.size)
    yield request.param
    dispatch._select.cache_clear()


every_tile = pytest.mark.parametrize("tile", TILES, ids=str, indirect=True)


# --- the matrices -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surd:
    """A number p + q*sqrt(2) with rational p and q: the field that the points are in, without rounding."""

    p: Fraction
    q: Fraction = Fraction(0)

    def __add__(self, other: Surd) -> Surd:
        return Surd(self.p + other.p, self.q + other.q)

    def __sub__(self, other: Surd) -> Surd:
        return Surd(self.p - other.p, self.q - other.q)

    def __mul__(self, other: Surd) -> Surd:
        return Surd(self.p * other.p + 2 * self.q * other.q, self.p * other.q + self.q * other.p)

    def __truediv__(self, other: Surd) -> Surd:
        norm = other.p**2 - 2 * other.q**2
        return self * Surd(other.p / norm, -other.q / norm)

    def __float__(self) -> float:
        return float(self.p) + float(self.q) * 2**0.5


ZERO, ONE = Surd(Fraction(0)), Surd(Fraction(1))
ROOT_HALF, ROOT_2 = Surd(Fraction(0), Fraction(1, 2)), Surd(Fraction(0), Fraction(1))
#: The finite points by the cells of a tile's row.
POINTS = {6: (ZERO, ROOT_HALF, ZERO - ROOT_HALF, ROOT_2, ZERO - ROOT_2), 4: (ZERO, ONE, ZERO - ONE)}
Matrix = list[list[Surd]]


def product(values: list[Surd]) -> Surd:
    result = ONE
    for value in values:
        result = result * value
    return result


def polynomial(roots: list[Surd]) -> list[Surd]:
    """The coefficients of the product of (x - root), the lowest first."""
    coefficients = [ONE]
    for root in roots:
        shifted, scaled = [ZERO, *coefficients], [*(root * c for c in coefficients), ZERO]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def toom_cook(tile: Tile) -> tuple[Matrix, Matrix, Matrix]:
    """A', G and B', from the points alone."""
    points = POINTS[tile.cells]
    others = [[q for q in points if q != p] for p in points]
    a = [[product([p] * i) for p in points] + [ONE if i == tile.size - 1 else ZERO] for i in range(tile.size)]
    scale = [product([p - q for q in rest]) for p, rest in zip(points, others, strict=True)]
    g = [[product([p] * i) / n for i in range(tile.taps)] for p, n in zip(points, scale, strict=True)]
    g.append([ONE if i == tile.taps - 1 else ZERO for i in range(tile.taps)])
    b = [[*polynomial(rest), ZERO] for rest in others] + [polynomial(list(points))]
    return a, g, b


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_the_matrices_give_a_correlation_without_any_error(tile):
    """A' [(G g) . (B' d)] is bilinear: it is right where it is right for each pair of a tap and a cell."""
    a, g, b = toom_cook(tile)
    for tap, cell, pixel in itertools.product(range(tile.taps), range(tile.cells), range(tile.size)):
        terms = [a[pixel][i] * g[i][tap] * b[i][cell] for i in range(tile.cells)]
        total = ZERO
        for term in terms:
            total = total + term
        assert total == (ONE if cell == pixel + tap else ZERO)


#: Of N values of a row or column of a tile that has so many pixels less than M, those that vanish.
VANISHING = {1: (-1,), 2: (0, -1), 3: (3, 4, 5)}


def short_values(tile: Any, b: Any, missing: int, cell: int) -> list[Surd]:
    """The transform of a tile with a 1 in one cell, and such cells that no pixel sees that some values vanish."""
    d = [ONE if i == cell else ZERO for i in range(tile.cells)]
    if missing == 2:
        d[4] = Surd(Fraction(5, 2)) * d[2] - d[0]
    if missing == 3:
        d[3], d[4] = Surd(Fraction(1, 2)) * d[1], Surd(Fraction(1, 2)) * d[2]
    last = sum(((b[-1][i] * d[i]) for i in range(tile.cells - 1)), start=ZERO)
    d[-1] = (ZERO - last) / b[-1][-1]
    return [sum((b[i][j] * d[j] for j in range(tile.cells)), start=ZERO) for i in range(tile.cells)]


@pytest.mark.parametrize(("tile", "missing"), [(tile, missing) for tile in TILES for missing in range(1, tile.size)], ids=str)
def test_short_tiles_need_fewer_products(tile, missing):
    """The cells that no pixel sees can be such that these values vanish; the others then give the pixels that there are."""
    a, g, b = toom_cook(tile)
    seen = tile.cells - missing
    vanishing = {i % tile.cells for i in VANISHING[missing]}
    for tap, cell in itertools.product(range(tile.taps), range(seen)):
        values = short_values(tile, b, missing, cell)
        assert all(values[i] == ZERO for i in vanishing)
        for pixel in range(tile.size - missing):
            total = sum((a[pixel][i] * g[i][tap] * values[i] for i in range(tile.cells) if i not in vanishing), start=ZERO)
            assert total == (ONE if cell == pixel + tap else ZERO)


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_short_tiles_of_gradients_need_fewer_products(missing):
    """F(3x3, 4x4): the last pixels of the output's gradient, its taps, do not exist, so nothing meets the last cells."""
    tile = next(tile for tile in TILES if (tile.size, tile.taps) == (3, 4))
    a, g, b = toom_cook(tile)
    vanishing = {i % tile.cells for i in VANISHING[missing]}
    for tap, cell in itertools.product(range(tile.taps - missing), range(tile.cells - missing)):
        values = short_values(tile, b, missing, cell)
        assert all(values[i] == ZERO for i in vanishing)
        for pixel in range(tile.size):  # of the gradient of the filter
            total = sum((a[pixel][i] * g[i][tap] * values[i] for i in range(tile.cells) if i not in vanishing), start=ZERO)
            assert total == (ONE if cell == pixel + tap else ZERO)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_which_short_tiles_are_taken_apart(batch, isa):
    """The last columns of tiles only where there are channels enough to pay for it; whatever the batch, for the bits' sake."""
    def missing(tile: int, channels: int, size: int) -> tuple[int, int]:
        geometry = conv2d_geometry((batch, channels, size, size), (channels, channels, 3, 3), 1, 1, 1, 1)
        pair: tuple[int, int] = native.kernels.winograd_short_tiles(tile, "forward", geometry, 4)
        return pair

    assert missing(4, 512, 14) == (2, 2)
    assert missing(4, 512, 7) == (1, 1)
    assert missing(4, 512, 8) == (0, 0)
    assert missing(2, 512, 7) == (1, 1)
    assert missing(4, 8, 14) == (2, 0)


def test_the_coefficients_of_the_kernels():
    """Those that winograd.h has in its code: of B' with the points' squares 1/2 and 2, and the scales of G."""
    _, g, b = toom_cook(Tile(4, 3))
    np.testing.assert_allclose([[float(c) for c in row] for row in b], [
        [1, 0, -2.5, 0, 1, 0], [0, -2 * 0.5**0.5, -2, 0.5**0.5, 1, 0], [0, 2 * 0.5**0.5, -2, -(0.5**0.5), 1, 0],
        [0, -0.5 * 2**0.5, -0.5, 2**0.5, 1, 0], [0, 0.5 * 2**0.5, -0.5, -(2**0.5), 1, 0], [0, 1, 0, -2.5, 0, 1]],
        rtol=1e-15)
    np.testing.assert_allclose([float(row[0]) for row in g], [1, -1 / 1.5, -1 / 1.5, 1 / 6, 1 / 6, 0], rtol=1e-15)
    assert toom_cook(Tile(2, 5))[2] == b
    assert toom_cook(Tile(3, 4))[2] == b
    _, g, b = toom_cook(Tile(2, 3))
    assert [[float(c) for c in row] for row in b] == [[-1, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]
    assert [[float(c) for c in row] for row in g] == [[-1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]


@every_tile
@every_direction
@every_dtype
def test_every_cell_with_every_tap(dtype, direction, tile, kernels):
    """One tile with a single 1 in it, through each of the filters with a single 1: the definition to the last digits.

    The images come one by one, and all at a time, where each is in another lane.
    """
    taps, size, cells = tile.taps, tile.size, tile.cells
    filters = np.eye(taps**2, dtype=dtype).reshape(taps**2, 1, taps, taps)
    # turned: the gradient that reaches all cells from a whole tile, where the image is padded as far as it may be
    padding = 0 if direction == "forward" else taps - 1
    tiles = np.eye(cells**2, dtype=dtype).reshape(cells**2, 1, cells, cells)
    want = np.zeros((cells**2, taps**2, size, size))
    for cell, tap in itertools.product(range(cells**2), range(taps**2)):
        sign = 1 if direction == "forward" else -1
        shift = 0 if direction == "forward" else taps - 1
        i = cell // cells - sign * (tap // taps) - shift
        j = cell % cells - sign * (tap % taps) - shift
        if 0 <= i < size and 0 <= j < size:
            want[cell, tap, i, j] = 1
    limit = 1e-14 if dtype == "float64" else 4e-6
    how = {"padding": padding, "algorithm": "winograd"}
    if direction == "backward_data":
        filters = filters.transpose(1, 0, 2, 3)
        how["x_shape"] = want.shape
    got = convolve(direction, tiles, filters, **how)
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)
    for cell in range(cells**2):
        if direction == "backward_data":
            how["x_shape"] = (1, *want.shape[1:])
        np.testing.assert_array_equal(convolve(direction, tiles[cell:cell + 1], filters, **how), got[cell:cell + 1])


# --- borders, groups, blocks ------------------------------------------------------------------------------------------

SIZES = ((3, 3), (4, 5), (5, 4), (6, 6), (7, 9), (8, 8), (9, 13), (12, 3), (3, 67), (1, 1), (2, 1), (1, 6))
PADDINGS = (0, 1, 2, (1, 0), ((0, 1), (2, 0)), ((2, 1), (0, 2)))


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_sizes_and_paddings(padding, dtype, direction, tile, kernels, rng, poisoned, assert_accurate):
    """Tiles over every border, from arrays that lie among NaN, into arrays beside which nothing may change."""
    tried = 0
    for height, width in SIZES:
        try:
            problem = tile.make(rng, direction, (2, 3, height, width), 5, padding)
        except ValueError:  # smaller than the filter
            continue
        tried += 1
        source, weight = (poisoned.place(a.astype(dtype)) for a in (problem.source, problem.weight))
        want, spread = problem.expected(dtype)
        out = poisoned(want.shape, dtype)
        got = convolve(direction, source, weight, algorithm="winograd", out=out, **problem.arguments)
        assert got is out
        assert_accurate(got, want, spread, algorithm="winograd")
    assert tried >= 8


@every_tile
@pytest.mark.parametrize("padding", [3, 5, ((6, 0), (0, 9)), "full", "same"], ids=str)
@every_dtype
def test_wide_padding_forward(padding, dtype, tile, kernels, rng, assert_accurate):
    for size in ((3, 4), (7, 18)):
        problem = tile.make(rng, "forward", (2, 2, *size), 3, padding)
        assert_accurate(problem(dtype), *problem.expected(dtype), algorithm="winograd")


@dataclass(frozen=True)
class Blocks:
    """A geometry that is there for how its tiles, channels and filters are cut."""

    id: str
    x: tuple[int, ...]
    filters: int
    padding: Any = 1
    groups: int = 1

    def __str__(self) -> str:
        return self.id


#: Blocks are of 64 tiles and of about 48 filters; the input is transformed 16 channels at a time.
BLOCKS = (
    Blocks("images-share-blocks", (33, 5, 7, 6), 7),
    Blocks("images-share-vectors", (50, 3, 3, 3), 5, 0),
    Blocks("one-tile-images", (70, 2, 4, 4), 3),
    Blocks("rows-longer-than-blocks", (1, 2, 6, 270), 3),
    Blocks("rows-longer-than-vectors", (2, 3, 9, 77), 13, ((0, 1), (2, 1))),
    Blocks("many-blocks", (5, 8, 45, 45), 9),
    Blocks("many-filters", (1, 5, 11, 10), 131),
    Blocks("many-channels", (2, 131, 6, 7), 10, 2),
    Blocks("groups3", (3, 15, 9, 10), 21, 1, 3),
    Blocks("depthwise", (2, 7, 9, 10), 14, 1, 7),
    Blocks("batch1", (1, 20, 14, 14), 50),
    Blocks("short-by-1", (9, 40, 7, 7), 48),
    Blocks("short-by-2", (4, 40, 14, 10), 48),
    Blocks("short-by-3", (5, 40, 13, 9), 48),
    Blocks("short-by-1-and-2", (3, 40, 11, 14), 48, ((1, 2), (0, 1))),
    Blocks("short-long-rows", (1, 40, 6, 53), 48),
    Blocks("one-short-tile", (65, 40, 3, 2), 48),
    Blocks("batch0", (0, 3, 6, 7), 4),
)


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("case", BLOCKS, ids=str)
def test_blocks(case, dtype, direction, tile, kernels, rng, assert_accurate):
    problem = tile.make(rng, direction, case.x, case.filters, case.padding, case.groups)
    assert_accurate(problem(dtype), *problem.expected(dtype), algorithm="winograd")


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_is_recomputed_without_need(threads, dtype, direction, tile, kernels, rng, monkeypatch):
    """Lanes without a tile must not look spoiled by what is left in scratch: that is slow, and other bits each time."""
    def refuse(*ignored: Any) -> None:
        raise AssertionError("finite numbers were computed by the direct algorithm")

    for operation in DIRECTIONS:
        monkeypatch.setattr(backend_in_force(), f"direct_{operation}", refuse)
    with fastconv.options(num_threads=threads):
        for case in BLOCKS:
            problem = tile.make(rng, direction, case.x, case.filters, case.padding, case.groups)
            plan = fastconv.plan_conv2d(problem.x, problem.weight.shape, 1, case.padding, 1, case.groups, dtype=dtype,
                                        direction=direction, algorithm="winograd")
            memory.scratch(plan.workspace_bytes).fill(0xFF)  # NaN
            assert np.isfinite(problem(dtype)).all()


@every_tile
@every_dtype
@pytest.mark.parametrize("activation", [None, "relu"])
def test_bias_and_relu(dtype, activation, tile, kernels, rng, assert_accurate):
    """The bias of each group's own filters, in blocks of filters other than the first too."""
    for x, filters, groups in (((2, 6, 9, 7), 10, 2), ((1, 3, 6, 6), 101, 1)):
        problem = tile.make(rng, "forward", x, filters, 1, groups)
        bias = (5 * rng.standard_normal(filters)).astype(dtype)
        want, spread = problem.expected(dtype, bias=bias.astype(np.float64), activation=activation)
        got = problem(dtype, bias=bias, activation=activation)
        assert_accurate(got, want, spread, algorithm="winograd")
        if activation:
            assert (got == 0).any()
            assert (got >= 0).all()


def large(tile: Tile, dtype: str) -> int:
    """As many input and output channels as make the transformed filters too large to be kept, at 12 MiB."""
    return int((12 * MIB / tile.cells**2 / np.dtype(dtype).itemsize) ** 0.5) + 1


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("case", ["kept", "needed-once", "too-large"])
def test_filters_kept_and_not_kept(case, dtype, direction, tile, kernels, rng, assert_accurate):
    """Where they are kept the plan has scratch for all of them; otherwise for one block of output channels."""
    channels = {"kept": 40, "needed-once": 100, "too-large": large(tile, dtype)}[case]
    x = (2, channels, 45, 46) if case == "kept" else (1, channels, 3, 5)
    problem = tile.make(rng, direction, x, channels, 1)
    with fastconv.options(num_threads=1):
        plan = fastconv.plan_conv2d(problem.x, problem.weight.shape, 1, 1, dtype=dtype, direction=direction,
                                    algorithm="winograd")
        assert (plan.workspace_bytes >= tile.cells**2 * channels**2 * np.dtype(dtype).itemsize) == (case == "kept")
        assert_accurate(problem(dtype), *problem.expected(dtype), algorithm="winograd")
    if case == "too-large":
        problem = tile.make(rng, direction, (3, channels, 7, 6), channels, 1)
        assert_accurate(problem(dtype), *problem.expected(dtype), algorithm="winograd")


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("case", [
    Blocks("each-thread-has-blocks", (5, 8, 45, 45), 9),  # 12 blocks of tiles
    Blocks("threads-share-a-block", (1, 40, 14, 14), 70),  # one block, filters kept
    Blocks("threads-share-five-blocks", (2, 12, 49, 49), 100, 1, 2),
    Blocks("filters-not-kept", (1, 301, 5, 8), 300),
    Blocks("filters-not-kept-many-blocks", (3, 210, 17, 23), 420)], ids=str)
def test_the_same_bits_for_any_number_of_threads(case, dtype, direction, tile, kernels, rng, assert_accurate):
    problem = tile.make(rng, direction, case.x, case.filters, case.padding, case.groups)
    results = {}
    for threads in (1, 2, 3, 5):
        with fastconv.options(num_threads=threads):
            results[threads] = problem(dtype)
    assert fastconv.plan_conv2d(problem.x, problem.weight.shape, 1, 1, 1, case.groups).flops > dispatch.SERIAL_FLOPS
    assert_accurate(results[1], *problem.expected(dtype), algorithm="winograd")
    for threads, result in results.items():
        np.testing.assert_array_equal(result.view(np.uint8), results[1].view(np.uint8), err_msg=f"{threads} threads")


@every_tile
@every_direction
@pytest.mark.parametrize("channels", [6, 40])
@pytest.mark.parametrize("size", [(7, 10), (10, 7)], ids=str)
def test_a_tile_does_not_depend_on_its_neighbours(size, channels, direction, tile, kernels, rng):
    """The same image has the same bits wherever in a batch, and so in whichever lanes, it is."""
    problem = tile.make(rng, direction, (1, channels, *size), channels + 2, 1)
    want = problem("float32")
    arguments = dict(problem.arguments)
    for batch, place in ((2, 1), (9, 3), (30, 29)):
        source = rng.standard_normal((batch, *problem.source.shape[1:]))
        source[place] = problem.source[0]
        if direction == "backward_data":
            arguments["x_shape"] = (batch, *problem.x[1:])
        got = Problem(direction, source, problem.weight, arguments)("float32")
        np.testing.assert_array_equal(got[place], want[0])


GUARDED = """
import contextlib, ctypes, mmap, sys
import numpy as np, fastconv
from fastconv import dispatch, winograd

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
page = mmap.PAGESIZE

def guarded(array, at_end):
    # between two pages that cannot be read, right before the one or right behind the other
    inside = -(-array.nbytes // page) * page
    area = mmap.mmap(-1, inside + 2 * page)
    bytes_ = np.frombuffer(area, np.uint8)
    start = page + (inside - array.nbytes if at_end else 0)
    copy = bytes_[start:start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    for guard in (bytes_.ctypes.data, bytes_.ctypes.data + page + inside):
        assert libc.mprotect(guard, page, 0) == 0
    return copy

rng = np.random.default_rng(0)
numba = sys.argv[1] == "numba"
fastconv.options(num_threads=2, backend="numba" if numba else "cython")
with contextlib.ExitStack() as stack:
    if not numba:
        stack.enter_context(__import__("fastconv.native").native.using_isa(sys.argv[1]))
    for taps, tile in ((3, 4), (4, 3), (5, 2)) if numba else ((3, 4), (3, 2), (4, 3), (5, 2)):
        dispatch._select.cache_clear()
        winograd.best_tile = lambda operation, geometry: tile
        for dtype in ("float32", "float64"):
            for (n, c, h, w), filters, padding in (((2, 3, 9, 10), 5, 1), ((1, 16, 6, 6), 16, 0), ((3, 17, 5, 33), 33, 2),
                                                   ((1, 8, 4, 67), 8, ((0, 1), (2, 1))), ((33, 2, 5, 6), 1, 1),
                                                   ((1, 3, 14, 13), 9, 1)):
                x = n, c, h + taps - 3, w + taps - 3
                weight = rng.standard_normal((filters, c, taps, taps)).astype(dtype)
                image = rng.standard_normal(x).astype(dtype)
                dout = np.ones(fastconv.plan_conv2d(x, weight.shape, padding=padding).output_shape, dtype)
                for end in (False, True):
                    a, w, d, out = (guarded(array, end) for array in (image, weight, dout, dout))
                    fastconv.conv2d(a, w, None, 1, padding, algorithm="winograd", out=out)
                    packed = fastconv.pack_weight(w, x, 1, padding, algorithm="winograd")
                    fastconv.conv2d(a, packed, None, 1, padding, out=out)
                    if taps == 3 or numba:
                        fastconv.conv2d_backward_weight(d, a, weight.shape, 1, padding, algorithm="winograd", out=w)
                    fastconv.conv2d_backward_data(d, w, x, 1, padding, algorithm="winograd", out=a)
                    print("done", flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses Linux's mprotect")
def test_nothing_beside_the_arrays_is_touched(kernels):
    """Vectors that reach beyond an array must be neither read nor written: it may end where the memory does."""
    root = Path(fastconv.__file__).parent.parent
    run = subprocess.run([sys.executable, "-X", "faulthandler", "-c", GUARDED, kernels], cwd=root, capture_output=True,
                         text=True, timeout=600 if kernels == "numba" else 120, check=False)  # six kernels to compile
    assert (run.stdout.count("done"), run.returncode) == (72 if kernels == "numba" else 96, 0), run.stderr


@every_tile
def test_float16(tile, rng, kernels, assert_accurate):
    problem = tile.make(rng, "forward", (2, 9, 10, 11), 12, 1)
    got = problem("float16")
    assert got.dtype == np.float16
    assert_accurate(got, *problem.expected("float16"), algorithm="winograd")


# --- packed weights ---------------------------------------------------------------------------------------------------


@every_tile
@every_dtype
@pytest.mark.parametrize("case", [case for case in BLOCKS if case.id != "batch0"], ids=str)
def test_packed_weights(case, dtype, tile, kernels, rng):
    """Filters that were transformed before give the same bits, for any batch, and stay what they were."""
    problem = tile.make(rng, "forward", case.x, case.filters, case.padding, case.groups)
    source, weight = problem.source.astype(dtype), problem.weight.astype(dtype)
    bias = rng.standard_normal(case.filters).astype(dtype)
    want = problem(dtype, bias=bias, activation="relu")
    how: dict[str, Any] = problem.arguments
    packed = fastconv.pack_weight(weight, source.shape, **how, algorithm="winograd")
    weight[...] = nan
    for threads in (1, 3):
        with fastconv.options(num_threads=threads):
            np.testing.assert_array_equal(fastconv.conv2d(source, packed, bias, **how, activation="relu"), want)
    np.testing.assert_array_equal(fastconv.conv2d(source[:1], packed, bias, **how, activation="relu"), want[:1])
    assert packed.algorithm == "winograd"
    if kernels == "numba":  # which has the weight as it was
        assert (packed.backend, packed.isa) == ("numba", None)
        return
    assert (packed.backend, packed.isa) == ("cython", kernels)
    transformed = tile.cells**2 * case.filters * case.x[1] // case.groups * weight.itemsize
    assert packed.nbytes >= weight.nbytes + transformed
    assert f"{packed.nbytes:,}" in repr(packed)


@every_tile
def test_packed_weights_that_are_not_finite(tile, kernels, rng):
    problem = tile.make(rng, "forward", (2, 4, 6, 7), 5, 1)
    for array in (problem.source, problem.weight):
        array[1, 2, 0, 1] = inf
    source, weight = problem.source.astype("float32"), problem.weight.astype("float32")
    packed = fastconv.pack_weight(weight, source.shape, 1, 1, algorithm="winograd")
    want = problem("float32")
    assert_same(want, problem("float32", "direct"), "float32")
    np.testing.assert_array_equal(fastconv.conv2d(source, packed, None, 1, 1), want)


@needs_native
@every_tile
def test_packed_weights_elsewhere(tile, rng, assert_accurate):
    """Another dtype, and another instruction set than that of the handle, have the weight as it is."""
    problem = tile.make(rng, "forward", (2, 9, 10, 11), 12, 1)
    packed = fastconv.pack_weight(problem.weight.astype("float32"), problem.x, 1, 1, algorithm="winograd")
    assert packed.isa == native.isa
    double = fastconv.conv2d(problem.source, packed, None, 1, 1)
    assert double.dtype == np.float64
    want = fastconv.conv2d(problem.source, problem.weight.astype("float32"), None, 1, 1, algorithm="winograd")
    np.testing.assert_array_equal(double, want)
    half = fastconv.pack_weight(problem.weight.astype("float16"), problem.x, 1, 1, algorithm="winograd")
    got = fastconv.conv2d(problem.source.astype("float16"), half, None, 1, 1)
    np.testing.assert_array_equal(got, problem("float16"))
    for name in native.available_isas():
        with native.using_isa(name):
            got = fastconv.conv2d(problem.source.astype("float32"), packed, None, 1, 1)
            np.testing.assert_array_equal(got, problem("float32"))
    with fastconv.options(accuracy="strict"), pytest.raises(ValueError, match=r"winograd.*strict"):
        fastconv.conv2d(problem.source, packed, None, 1, 1)


@needs_native
def test_packed_weights_that_are_too_large():
    """A handle that cannot be had is refused by its size, before it is allocated."""
    weight = np.broadcast_to(np.float32(1), (2**20, 2**18, 3, 3))
    with pytest.raises(MemoryError, match="weight"):
        fastconv.pack_weight(weight, (1, 2**18, 8, 8), 1, 1, algorithm="winograd")


# --- trust: what is not finite (rule 13) ------------------------------------------------------------------------------


def assert_same_as_direct(problem: Problem, dtype: str, **how: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        want, got = problem(dtype, "direct", **how), problem(dtype, **how)
    assert_same(got, want, dtype)
    return want


def assert_same(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    """NaN, inf and -inf in the same cells, and in the others the same numbers but for rounding."""
    for what in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(what(got), what(want), err_msg=what.__name__)
    finite = np.isfinite(want)
    if finite.any():
        scale = np.abs(want[finite]).max()
        limit = 1e-5 if dtype == "float32" else 1e-12
        assert np.abs(got[finite] / 2 - want[finite] / 2).max() <= limit * scale


def with_cells(array: np.ndarray, cells: dict[tuple[int, ...], float]) -> np.ndarray:
    changed = array.copy()
    for cell, value in cells.items():
        changed[cell] = value
    return changed


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("value", [nan, inf, -inf], ids=str)
def test_one_cell_that_is_not_finite(value, dtype, direction, tile, kernels, rng):
    """In each row and column of a tile, in the first and last image, next to borders and in a tile's middle."""
    problem = tile.make(rng, direction, (3, 4, 9, 10), 5, 1)
    n, c, h, w = problem.source.shape
    cells = [(0, 0, 0, 0), (n - 1, c - 1, h - 1, w - 1), (0, c - 1, h - 1, 0), (n - 1, 0, 0, w - 1),
             *((i % n, i % c, i % h, (i + 3) % w) for i in range(9))]
    for cell in cells:
        spoiled = Problem(direction, with_cells(problem.source, {cell: value}), problem.weight, problem.arguments)
        want = assert_same_as_direct(spoiled, dtype)
        seen = np.count_nonzero(~np.isfinite(want)) / want.shape[1]
        assert 4 <= seen <= tile.taps**2  # the definition's cells and no others


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("value", [nan, inf, -inf], ids=str)
def test_one_weight_that_is_not_finite(value, dtype, direction, tile, kernels, rng):
    """Every tap: over padding an infinite one gives NaN forward, and nothing at all backward (rule 3)."""
    problem = tile.make(rng, direction, (2, 4, 6, 7), 5, 1)
    for i in range(tile.taps**2):
        weight = with_cells(problem.weight, {(i % 5, i % 4, i // tile.taps, i % tile.taps): value})
        want = assert_same_as_direct(Problem(direction, problem.source, weight, problem.arguments), dtype)
        assert 0 < np.count_nonzero(np.isfinite(want)) < want.size


@every_tile
@every_dtype
def test_a_weight_that_is_not_finite_where_filters_are_not_kept(dtype, tile, kernels, rng):
    channels = large(tile, dtype)
    problem = tile.make(rng, "forward", (1, channels, 3, 5), channels, 1)
    weight = with_cells(problem.weight, {(channels - 1, channels - 1, 2, 0): inf})
    assert_same_as_direct(Problem("forward", problem.source, weight, problem.arguments), dtype)


@every_tile
@every_dtype
@pytest.mark.parametrize("threads", [1, 3])
def test_one_spoiled_cell_among_many_blocks(dtype, threads, tile, kernels, rng):
    """Whichever thread finds it: in the first block, in one in the middle, and in the last."""
    problem = tile.make(rng, "forward", (5, 8, 45, 45), 9, 1)
    with fastconv.options(num_threads=threads):
        for cell in ((0, 7, 0, 0), (2, 3, 22, 22), (4, 0, 44, 44)):
            assert_same_as_direct(Problem("forward", with_cells(problem.source, {cell: inf}), problem.weight,
                                          problem.arguments), dtype)


@every_tile
@every_dtype
def test_relu_does_not_hide_what_is_not_finite(dtype, tile, kernels, rng):
    """An infinity turns a whole tile into NaN or -inf: ReLU would make zeros of the latter, and they were numbers."""
    problem = tile.make(rng, "forward", (1, 2, 9, 9), 3, 1)
    weight = np.abs(problem.weight) + 0.1
    for value in (nan, inf, -inf):
        spoiled = Problem("forward", with_cells(np.abs(problem.source), {(0, 1, 4, 4): value}), weight,
                          problem.arguments)
        want = assert_same_as_direct(spoiled, dtype, activation="relu")
        assert np.count_nonzero(want == 0) == (3 * tile.taps**2 if value == -inf else 0)
    # finite cells of a tile with nothing but overflow to -inf beside them
    largest = float(np.finfo(dtype).max)
    down = Problem("forward", np.full((1, 1, 4, 4), -largest), np.ones((1, 1, tile.taps, tile.taps)), problem.arguments)
    assert (assert_same_as_direct(down, dtype, activation="relu") == 0).all()


@every_tile
@every_dtype
@pytest.mark.parametrize("value", [nan, inf, -inf], ids=str)
def test_a_bias_that_is_not_finite(value, dtype, tile, kernels, rng):
    problem = tile.make(rng, "forward", (2, 3, 6, 7), 8, 1)
    bias = with_cells(rng.standard_normal(8), {(6,): value}).astype(dtype)
    for activation in (None, "relu"):
        want = assert_same_as_direct(problem, dtype, bias=bias, activation=activation)
        assert np.isfinite(want[:, :6]).all()


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("where", ["source", "weight"])
def test_numbers_so_large_that_only_the_transforms_overflow(where, dtype, direction, tile, kernels, rng):
    """Finite inputs, finite results: the transforms add up more than the definition does, and are noticed."""
    largest = float(np.finfo(dtype).max)
    problem = tile.make(rng, direction, (2, 1, 9, 10), 1, 1)
    signs = np.where(np.arange(problem.source.size).reshape(problem.source.shape) % 2, -1.0, 1.0)
    middle = np.zeros_like(problem.weight)
    middle[..., 1, 1] = 0.75  # a single tap: no sums in the definition
    if where == "source":
        problem = Problem(direction, 0.9 * largest * signs, middle, problem.arguments)
    else:
        alternating = np.where(np.arange(middle.size).reshape(middle.shape) % 2, -0.9, 0.9) * largest
        problem = Problem(direction, problem.source * 1e-3, alternating, problem.arguments)
    want = assert_same_as_direct(problem, dtype)
    assert np.isfinite(want).all()


@pytest.mark.parametrize("tile", [tile for tile in TILES if tile.cells == 6], ids=str, indirect=True)
@every_dtype
def test_overflow_anywhere_on_the_way(dtype, tile, kernels, rng):
    """Numbers on the brink, so that it is now one transform and now another that overflows, to inf, to -inf or to NaN.

    In the output transform it may be to -inf alone, which ReLU would make zeros of. F(2,3) is not among the tiles: it
    overflows about where the definition does.
    """
    largest = float(np.finfo(dtype).max)
    recomputed = hidden = 0
    for i in range(400):
        problem = tile.make(rng, "forward", (1, 1, 6, 6), 1)
        size = largest / 10 ** rng.uniform(0, 2)
        problem = Problem("forward", problem.source / np.abs(problem.source).max() * size, problem.weight, {})
        want = assert_same_as_direct(problem, dtype, activation="relu" if i % 4 else None)
        recomputed += bool((problem(dtype, activation="relu") == problem(dtype, "direct", activation="relu")).all())
        hidden += bool(np.isfinite(want).all() and (want > 0).any())
    assert 20 < recomputed < 380  # some overflow, some do not
    assert hidden > 100


@every_tile
@every_dtype
def test_sums_that_overflow_in_the_definition_too(dtype, tile, kernels, rng):
    largest = float(np.finfo(dtype).max)
    problem = tile.make(rng, "forward", (1, 3, 9, 9), 4, 1)
    source = with_cells(problem.source, {(0, 1, 4, 5): largest})
    want = assert_same_as_direct(Problem("forward", source, 3 * problem.weight, problem.arguments), dtype)
    assert np.isinf(want).any()
    assert np.isfinite(want).any()


@every_tile
def test_what_is_not_finite_keeps_to_itself_in_a_given_out(tile, rng, kernels, poisoned):
    """An `out` is filled anew after Winograd has written to it, and nothing beside it."""
    problem = tile.make(rng, "forward", (1, 2, 7, 7), 3, 1)
    source = poisoned.place(with_cells(problem.source, {(0, 0, 0, 0): inf}).astype("float32"))
    weight = poisoned.place(problem.weight.astype("float32"))
    out = poisoned((1, 3, 7, 7), "float32", "spread")
    fastconv.conv2d(source, weight, None, 1, 1, algorithm="winograd", out=out)
    assert_same(out, fastconv.conv2d(source, weight, None, 1, 1, algorithm="direct"), "float32")


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("value", [nan, inf], ids=str)
def test_only_spoiled_rows_of_tiles_are_computed_again(value, dtype, direction, tile, kernels, rng, monkeypatch):
    """A cell that is not finite costs the rows of tiles that see it; all others have the bits that they have without it."""
    problem = tile.make(rng, direction, (3, 4, 30, 11), 5, 1)
    clean = problem(dtype)
    definition, made = getattr(backend_in_force(), f"direct_{direction}"), []

    def noted(self: Any, *arguments: Any) -> None:
        made.append(next(a for a in reversed(arguments) if isinstance(a, np.ndarray)).shape)  # the last array is `out`
        definition(self, *arguments)

    monkeypatch.setattr(backend_in_force(), f"direct_{direction}", noted)
    before = 1 if direction == "forward" else tile.taps - 2
    tops = np.arange(0, clean.shape[2], tile.size) - before  # first row that each row of tiles sees
    for image, row in ((0, 0), (1, 13), (1, 14), (1, 15), (1, 16), (2, problem.source.shape[2] - 1)):
        made.clear()
        got = Problem(direction, with_cells(problem.source, {(image, 2, row, 5): value}), problem.weight,
                      problem.arguments)(dtype)
        again = np.flatnonzero((tops <= row) & (row < tops + tile.cells))
        rows = slice(again[0] * tile.size, (again[-1] + 1) * tile.size)
        assert made == [(1, *clean[:1, :, rows].shape[1:])]
        assert not np.isfinite(got[image, :, rows]).all()
        got[image, :, rows] = clean[image, :, rows]
        np.testing.assert_array_equal(got.view(np.uint8), clean.view(np.uint8))


@every_tile
def test_bands_apart_from_each_other(tile, kernels, rng):
    """Several bands of one image, and bands that reach its ends."""
    for direction in DIRECTIONS:
        problem = tile.make(rng, direction, (2, 3, 41, 9), 4, 1)
        last = problem.source.shape[2] - 1
        spoiled = with_cells(problem.source, {(1, 0, 0, 0): inf, (1, 1, 17, 8): nan, (1, 2, last, 3): -inf})
        assert_same_as_direct(Problem(direction, spoiled, problem.weight, problem.arguments), "float32")


@pytest.mark.parametrize("taps", [3, 5])
@pytest.mark.parametrize("padding", [*PADDINGS, 3, 5, ((6, 0), (0, 9)), "full"], ids=str)
@every_direction
def test_a_band_is_a_convolution_of_its_own(direction, padding, taps, rng):
    """Any rows of the result, from the rows that they see: the same whole numbers."""
    x, weight = (rng.integers(-4, 5, shape).astype(float) for shape in ((2, 2, 7, 6), (3, 2, taps, taps)))
    geometry = conv2d_geometry(x.shape, weight.shape, padding=padding)
    backend, source = dispatch.backend(), x
    if direction == "backward_data":
        if max(*geometry.pads[0], *geometry.pads[1]) >= taps:
            pytest.skip("not Winograd's")
        source = rng.integers(-4, 5, geometry.output_shape).astype(float)
        want = reference.conv2d_backward_data(source, weight, x.shape, 1, padding)
    else:
        want = reference.conv2d(x, weight, None, 1, padding)
    for start, stop in itertools.combinations(range(want.shape[2] + 1), 2):
        band = winograd.band(direction, geometry, 1, start, stop)
        assert band.rows.start <= start < stop <= band.rows.stop
        assert min(band.geometry.pads[0]) >= 0
        seen = np.ascontiguousarray(source[band.image:band.image + 1, :, band.seen])
        got = np.empty((1, want.shape[1], band.rows.stop - band.rows.start, want.shape[3]))
        given = (None, False) if direction == "forward" else ()
        budget = Budget(1, backend.direct_bytes(direction, band.geometry, got.dtype, 1))
        getattr(backend, f"direct_{direction}")(seen, weight, *given, band.geometry, got, budget)
        np.testing.assert_array_equal(got[0], want[1, :, band.rows])


@every_tile
@every_direction
def test_the_same_bits_for_any_number_of_threads_where_something_is_not_finite(direction, tile, kernels, rng):
    problem = tile.make(rng, direction, (5, 8, 45, 45), 9, 1)
    spoiled = Problem(direction, with_cells(problem.source, {(0, 7, 0, 0): nan, (3, 1, 22, 30): inf}), problem.weight,
                      problem.arguments)
    results = []
    for threads in (1, 2, 3, 5):
        with fastconv.options(num_threads=threads):
            results.append(spoiled("float32").view(np.uint8))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


# --- trust: errors on inputs that hurt (rule 14) ----------------------------------------------------------------------

LAPLACIAN = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], float)
PAINFUL: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "mean-1000": lambda rng, x: 1000 + x,
    "mean-minus-1e6": lambda rng, x: -1e6 + x,
    "constant": lambda rng, x: np.full_like(x, 1000.1),
    "wide-range": lambda rng, x: x * 10 ** rng.uniform(-6, 6, x.shape),
    "wide-range-of-channels": lambda rng, x: x * 10 ** rng.uniform(-8, 8, (1, x.shape[1], 1, 1)),
    "checkerboard": lambda rng, x: np.where(np.add.outer(np.arange(x.shape[2]), np.arange(x.shape[3])) % 2, 3.3, -3.3)
    + 0 * x,
    "one-cell": lambda rng, x: np.where(np.arange(x.size).reshape(x.shape) == x.size // 2, 7.7, 0.0),
    "ramp": lambda rng, x: np.arange(x.size, dtype=float).reshape(x.shape) / 7,
    "large": lambda rng, x: x * 1e30,
    "small": lambda rng, x: x * 1e-30,
}


@every_tile
@every_direction
@every_dtype
@pytest.mark.parametrize("kind", PAINFUL)
def test_errors_on_inputs_that_hurt(kind, dtype, direction, tile, kernels, rng, assert_accurate):
    problem = tile.make(rng, direction, (2, 17, 13, 14), 9, 1)
    problem = Problem(direction, PAINFUL[kind](rng, problem.source), problem.weight, problem.arguments)
    assert_accurate(problem(dtype), *problem.expected(dtype), algorithm="winograd")


@every_dtype
def test_a_laplacian_of_a_constant_image(dtype, kernels, rng, assert_accurate):
    """All of the output cancels: what is left is error, which is measured against the terms."""
    problem = Problem("forward", np.full((1, 3, 12, 12), 1000.1), np.broadcast_to(LAPLACIAN, (2, 3, 3, 3)).copy(),
                      {"padding": 0})
    want, spread = problem.expected(dtype)
    assert np.abs(want).max() < 1e-9 * np.sqrt(spread.max())
    assert_accurate(problem(dtype), want, spread, algorithm="winograd")


@every_tile
@every_direction
def test_512_channels(direction, tile, kernels, rng, assert_accurate):
    """The bound of rule 14 for the largest error, and one for the mean error, which tells the points apart."""
    problem = tile.make(rng, direction, (1, 512, 14, 13), 32, 1) if direction == "forward" else \
        tile.make(rng, direction, (1, 32, 14, 13), 512, 1)
    want, _ = problem.expected("float32")
    got = problem("float32")
    assert_accurate(got, want, algorithm="winograd")  # against the largest output, without the terms
    most, mean = ERRORS[tile]
    assert np.abs(got - want).max() <= most * np.abs(want).max()
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) <= mean
    assert_accurate(problem("float64"), problem.expected("float64")[0], algorithm="winograd")


#: Largest error over the largest output, and the root of the mean squared error over that of the output, with 512 channels
#: of normal data in float32. F(4,3)'s mean is 1.1e-6 with the points of winograd.h; with 0, +-1, +-2 as with 0, +-1, +-1/2
#: the transforms alone make it 2.8e-6, and sums that are not cut 2e-6.
ERRORS = {Tile(4, 3): (5e-6, 1.5e-6), Tile(3, 4): (5e-6, 1.3e-6), Tile(2, 3): (1e-6, 5e-7), Tile(2, 5): (5e-6, 1.7e-6)}


@every_direction
def test_denormals(direction, kernels, rng):
    """Outputs are denormal or nearly so: the error bound is still kept, and nothing is flushed to zero."""
    problem = Problem.make(rng, direction, (2, 16, 9, 10), 8, 1)
    for scale in (1e-37, 1e-38, 1e-39):
        small = Problem(direction, problem.source * scale, problem.weight, problem.arguments)
        want, spread = small.expected("float32")
        assert np.abs(small("float32") - want).max() <= 1e-5 * max(np.abs(want).max(), np.sqrt(spread.max()))
    tiny = Problem(direction, np.full_like(problem.source, 1e-42), np.ones_like(problem.weight), problem.arguments)
    got = tiny("float32")
    np.testing.assert_allclose(got, tiny.expected("float32")[0], rtol=0.02)
    assert (got > 0).all()


# --- gradient of filters: F(3x3, 4x4) ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradient:
    """Arrays of one backward_weight, in float64."""

    dout: np.ndarray
    x: np.ndarray
    weight_shape: tuple[int, ...]
    how: dict[str, Any]

    @classmethod
    def make(cls, rng: np.random.Generator, x: tuple[int, ...], filters: int, padding: Any = 1, groups: int = 1,
             taps: int = 3) -> Gradient:
        weight_shape = (filters, x[1] // groups, taps, taps)
        shape = conv2d_geometry(x, weight_shape, 1, padding, 1, groups).output_shape
        return cls(rng.standard_normal(shape), rng.standard_normal(x), weight_shape,
                   {"stride": 1, "padding": padding, "dilation": 1, "groups": groups})

    def __call__(self, dtype: Any, algorithm: str = "winograd", **how: Any) -> np.ndarray:
        return fastconv.conv2d_backward_weight(self.dout.astype(dtype), self.x.astype(dtype), self.weight_shape, **self.how,
                                               algorithm=algorithm, **how)

    def expected(self, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        dout, x = (array.astype(dtype).astype(np.float64) for array in (self.dout, self.x))
        return (reference.conv2d_backward_weight(dout, x, self.weight_shape, **self.how),
                reference.conv2d_backward_weight(dout**2, x**2, self.weight_shape, **self.how))


@pytest.fixture(params=[3, 4, 5], ids="{0}x{0}".format)
def taps(request: pytest.FixtureRequest, kernels: str) -> int:
    """Rows of the filters. Numba puts those of 4 and 5 together from parts."""
    if request.param != 3 and kernels != "numba":
        pytest.skip("for 3x3 filters")
    return int(request.param)


@every_dtype
def test_every_pair_of_cells_of_a_gradients_tile(dtype, kernels):
    """36 images with a single 1 in them, 16 gradients with a single 1: each pair has its tap or none."""
    x = np.eye(36, dtype=dtype).reshape(1, 36, 6, 6)
    dout = np.eye(16, dtype=dtype).reshape(1, 16, 4, 4)
    want = np.zeros((16, 36, 3, 3))
    for pixel, i, j in itertools.product(range(16), range(3), range(3)):
        want[pixel, (pixel // 4 + i) * 6 + pixel % 4 + j, i, j] = 1
    got = fastconv.conv2d_backward_weight(dout, x, want.shape, algorithm="winograd")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14 if dtype == "float64" else 4e-6)


@every_dtype
@pytest.mark.parametrize("padding", [*PADDINGS, 5, ((6, 0), (0, 9)), "full"], ids=str)
def test_gradients_of_sizes_and_paddings(padding, dtype, taps, rng, poisoned, assert_accurate):
    """Tiles over every border, from arrays that lie among NaN, into arrays beside which nothing may change."""
    tried = 0
    for height, width in SIZES:
        try:
            problem = Gradient.make(rng, (2, 3, height + taps - 3, width + taps - 3), 5, padding, taps=taps)
        except ValueError:  # smaller than the filter
            continue
        tried += 1
        dout, x = (poisoned.place(a.astype(dtype)) for a in (problem.dout, problem.x))
        out = poisoned(problem.weight_shape, dtype)
        got = fastconv.conv2d_backward_weight(dout, x, problem.weight_shape, **problem.how, algorithm="winograd", out=out)
        assert got is out
        assert_accurate(got, *problem.expected(dtype), algorithm="winograd")
    assert tried >= 8


#: Blocks are of up to 128 channels on both sides, and of 16 tiles; of 64 and 64 where there are at most 128 tiles in all.
GRADIENT_BLOCKS = (*BLOCKS, Blocks("many-on-both-sides", (2, 150, 9, 10), 133), Blocks("two-groups", (2, 290, 5, 6), 34, 1, 2),
                   Blocks("whole-vectors", (3, 32, 17, 16), 48), Blocks("two-chunks", (5, 70, 14, 15), 66),
                   Blocks("more-tiles-than-are-kept", (9, 140, 14, 15), 130), Blocks("many-tiles", (9, 200, 30, 27), 33))


@every_dtype
@pytest.mark.parametrize("case", GRADIENT_BLOCKS, ids=str)
def test_gradients_of_blocks(case, dtype, taps, rng, assert_accurate, monkeypatch):
    """The same bits for any number of threads, whatever lies in scratch; and nothing is computed by another algorithm."""
    def refuse(*ignored: Any) -> None:
        raise AssertionError("finite numbers were computed by the direct algorithm")

    monkeypatch.setattr(backend_in_force(), "direct_backward_weight", refuse)
    monkeypatch.setattr(dispatch, "SERIAL_FLOPS", 0)
    x = *case.x[:2], *(size + taps - 3 for size in case.x[2:])
    problem = Gradient.make(rng, x, case.filters, case.padding, case.groups, taps)
    results = []
    for threads in (1, 2, 3, 5, 16):
        with fastconv.options(num_threads=threads):
            plan = fastconv.plan_conv2d(x, problem.weight_shape, **problem.how, dtype=dtype, direction="backward_weight",
                                        algorithm="winograd")
            memory.scratch(plan.workspace_bytes).fill(0xFF)  # NaN
            results.append(problem(dtype))
    assert_accurate(results[0], *problem.expected(dtype), algorithm="winograd")
    for result in results[1:]:
        np.testing.assert_array_equal(result.view(np.uint8), results[0].view(np.uint8))


@every_dtype
@pytest.mark.parametrize("value", [nan, inf, -inf], ids=str)
@pytest.mark.parametrize("where", ["dout", "x"])
def test_gradients_where_one_cell_is_not_finite(where, value, dtype, taps, rng):
    """The definition's cells and no others; an infinite dout over padding gives NaN (rule 3)."""
    problem = Gradient.make(rng, (3, 4, 6 + taps, 7 + taps), 5, ((1, 2), (1, 0)), taps=taps)
    array = getattr(problem, where)
    for cell in ((0, 0, 0, 0), tuple(size - 1 for size in array.shape), (1, 2, 4, 5), (2, 3, 0, 7)):
        spoiled = Gradient(**{**vars(problem), where: with_cells(array, {cell: value})})
        want = spoiled(dtype, "direct")
        assert_same(spoiled(dtype), want, dtype)
        assert 4 <= np.count_nonzero(~np.isfinite(want)) < want.size


@every_dtype
def test_gradients_where_only_the_transforms_overflow(dtype, kernels, rng):
    largest = float(np.finfo(dtype).max)
    problem = Gradient.make(rng, (1, 1, 6, 6), 1, 0)
    dout = np.zeros_like(problem.dout)
    dout[0, 0, 1, 2] = 0.5
    signs = np.where(np.arange(36).reshape(problem.x.shape) % 2, -1.0, 1.0)
    spoiled = Gradient(dout, 0.9 * largest * signs, problem.weight_shape, problem.how)
    want = spoiled(dtype, "direct")
    assert np.isfinite(want).all()
    assert_same(spoiled(dtype), want, dtype)


@every_dtype
@pytest.mark.parametrize("kind", PAINFUL)
def test_gradients_of_inputs_that_hurt(kind, dtype, kernels, rng, assert_accurate):
    problem = Gradient.make(rng, (2, 17, 13, 14), 9)
    problem = Gradient(problem.dout, PAINFUL[kind](rng, problem.x), problem.weight_shape, problem.how)
    assert_accurate(problem(dtype), *problem.expected(dtype), algorithm="winograd")


def test_gradients_of_many_pixels(kernels, rng, assert_accurate):
    """The bound of rule 14 where 100,000 products are added up, and one for the mean error."""
    problem = Gradient.make(rng, (10, 16, 100, 100), 16)
    want, _ = problem.expected("float32")
    got = problem("float32")
    assert_accurate(got, want, algorithm="winograd")
    assert np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) <= 1.5e-6


@every_backend
def test_gradients_that_there_is_no_kernel_for(backend):
    with fastconv.options(backend=backend):
        no_kernel_for_gradients(((6 if backend == "numba" else 5, {}), (1, {}), (3, {"stride": 2}), (3, {"dilation": 2})))


def no_kernel_for_gradients(cases: tuple[tuple[int, dict[str, int]], ...]) -> None:
    x = np.ones((1, 4, 12, 12), "float32")
    for taps, how in cases:
        shape = (4, 4, taps, taps)
        dout = np.ones(fastconv.plan_conv2d(x.shape, shape, **how).output_shape, "float32")
        plan = fastconv.plan_conv2d(x.shape, shape, **how, direction="backward_weight")
        assert "winograd" not in {candidate.algorithm for candidate in plan.candidates}
        with pytest.raises(NotImplementedError, match="winograd"):
            fastconv.conv2d_backward_weight(dout, x, shape, **how, algorithm="winograd")


@every_backend
@pytest.mark.parametrize(("x", "filters", "taken"), [
    ((4, 64, 224, 224), 64, True), ((4, 256, 56, 56), 256, True), ((4, 512, 14, 14), 512, True), ((8, 64, 56, 56), 64, True),
    ((8, 512, 7, 7), 512, True), ((1, 256, 14, 14), 256, True), ((1, 512, 2, 2), 512, "numba"), ((8, 1, 28, 28), 1, False)],
    ids=str)
def test_the_choice_for_gradients(x, filters, taken, backend):
    """Taken where it pays (for one tile with Numba, whose direct kernel is no faster), never in strict accuracy; scratch is
    bounded for any batch."""
    taken = taken in (True, backend)
    geometry = conv2d_geometry(x, (filters, x[1], 3, 3), padding=1)
    for accuracy, expected in (("standard", taken), ("strict", False)):
        plan = dispatch.select("backward_weight", geometry, np.dtype("float32"), Settings(backend=backend, accuracy=accuracy))
        assert (plan.algorithm == "winograd") == expected
    for batch, threads, dtype in itertools.product((x[0], 1000), (1, 2, 8), DTYPES):
        geometry = conv2d_geometry((batch, *x[1:]), (filters, x[1], 3, 3), padding=1)
        plan = dispatch.select("backward_weight", geometry, np.dtype(dtype),
                               Settings(backend=backend, accuracy="standard"), "winograd", threads)
        assert plan.workspace_bytes <= 16_000_000 * threads


# --- the choice -------------------------------------------------------------------------------------------------------


@every_backend
def test_strict_never_uses_it(backend, rng):
    with fastconv.options(backend=backend):
        strict_never_uses_it(rng)


def strict_never_uses_it(rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((4, 64, 28, 28)).astype("float32"), np.ones((64, 64, 3, 3), "float32")
    dout = x
    for direction in DIRECTIONS:
        how: dict[str, Any] = {"padding": 1, "direction": direction}
        assert fastconv.plan_conv2d(x.shape, weight.shape, **how).algorithm == "winograd"
        with fastconv.options(accuracy="strict"):
            plan = fastconv.plan_conv2d(x.shape, weight.shape, **how)
            assert plan.algorithm != "winograd"
            reasons = {candidate.algorithm: candidate.reason for candidate in plan.candidates}
            assert "strict" in reasons["winograd"]
            with pytest.raises(ValueError, match=r"winograd.*strict"):
                fastconv.plan_conv2d(x.shape, weight.shape, **how, algorithm="winograd")
    # the reference's rule is tighter than what Winograd reaches
    with fastconv.options(accuracy="strict"):
        np.testing.assert_array_equal(fastconv.conv2d(x, weight, None, 1, 1),
                                      fastconv.conv2d(x, weight, None, 1, 1, algorithm=plan_of(x, weight)))
        for call in (lambda: fastconv.conv2d(x, weight, None, 1, 1, algorithm="winograd"),
                     lambda: fastconv.conv2d_backward_data(dout, weight, x.shape, 1, 1, algorithm="winograd"),
                     lambda: fastconv.conv2d_backward(dout, x, weight, 1, 1, need=("dx",), algorithm="winograd"),
                     lambda: fastconv.pack_weight(weight, x.shape, 1, 1, algorithm="winograd")):
            with pytest.raises(ValueError, match=r"winograd.*strict"):
                call()


def plan_of(x: np.ndarray, weight: np.ndarray) -> str:
    return fastconv.plan_conv2d(x.shape, weight.shape, padding=1).algorithm


@pytest.mark.parametrize(("weight", "how"), [
    ((4, 4, 1, 1), {}), ((4, 4, 2, 2), {}), ((4, 4, 3, 5), {}), ((4, 4, 3, 1), {}), ((4, 4, 1, 3), {}), ((4, 4, 7, 7), {}),
    ((4, 4, 3, 3), {"stride": 2}), ((4, 4, 3, 3), {"stride": (1, 2)}), ((4, 4, 3, 3), {"dilation": 2}),
    ((4, 4, 3, 3), {"dilation": (2, 1)})], ids=str)
def test_what_it_cannot_do_is_refused_by_name(weight, how):
    x, filters = np.ones((1, 4, 12, 12), "float32"), np.ones(weight, "float32")
    out = fastconv.conv2d(x, filters, **how)
    for direction in DIRECTIONS:
        plan = fastconv.plan_conv2d(x.shape, weight, **how, direction=direction)
        assert "winograd" not in {candidate.algorithm for candidate in plan.candidates}
        with pytest.raises(NotImplementedError, match="winograd"):
            fastconv.plan_conv2d(x.shape, weight, **how, direction=direction, algorithm="winograd")
    with pytest.raises(NotImplementedError, match="winograd"):
        fastconv.conv2d(x, filters, **how, algorithm="winograd")
    with pytest.raises(NotImplementedError, match="winograd"):
        fastconv.conv2d_backward_data(out, filters, x.shape, **how, algorithm="winograd")


def test_backends_and_dtypes_without_it_refuse_it():
    x, weight = np.ones((1, 2, 6, 6)), np.ones((3, 2, 3, 3))
    for dtype in ("int32", "complex64", "longdouble"):
        with pytest.raises(NotImplementedError, match="winograd"):
            fastconv.conv2d(x.astype(dtype), weight.astype(dtype), algorithm="winograd")
    for backend in dispatch.BACKENDS:
        if "winograd" not in dispatch.algorithms("forward", backend):
            with pytest.raises(NotImplementedError, match="winograd"):
                dispatch.select("forward", conv2d_geometry(x.shape, weight.shape), np.dtype("float32"),
                                Settings(backend=backend, accuracy="standard"), "winograd")


#: Of DESIGN's rows and around them: x, filters, whether Winograd is to be taken.
CHOICES = (
    ((8, 64, 56, 56), 64, True), ((1, 64, 56, 56), 64, True), ((4, 64, 224, 224), 64, True),
    ((4, 256, 56, 56), 256, True), ((4, 512, 14, 14), 512, True), ((8, 512, 7, 7), 512, True),
    ((8, 16, 56, 56), 16, True),
    ((2, 512, 7, 7), 512, True), ((1, 8, 2, 2), 8, False), ((1, 1, 5, 5), 1, False), ((1, 64, 1, 1), 64, False))


@every_backend
@every_direction
@pytest.mark.parametrize(("x", "filters", "taken"), CHOICES, ids=str)
def test_the_choice_and_its_reason(x, filters, taken, direction, backend):
    """A pure function of the geometry: not of what was chosen before, nor of the number of threads."""
    weight = (filters, x[1], 3, 3)
    geometry = conv2d_geometry(x, weight, padding=1)
    settings = Settings(backend=backend, accuracy="standard")
    arguments = (direction, geometry, np.dtype("float32"), settings)
    plan = dispatch.select(*arguments)
    assert (plan.algorithm == "winograd") == taken
    for threads in (1, 2, 3, 64):
        again = dispatch.select(*arguments, threads=threads)
        assert again.algorithm == plan.algorithm
        assert [(c.algorithm, c.reason) for c in again.candidates] == [(c.algorithm, c.reason) for c in plan.candidates]
    with fastconv.options(workspace_limit=0, accuracy="strict"):  # not its arguments
        assert dispatch.select(*arguments) == plan
    reasons = {candidate.algorithm: candidate.reason for candidate in plan.candidates}
    figure = f"{dispatch.estimate('winograd', direction, geometry, backend):.2f}"
    assert figure in reasons["winograd"]
    assert ("the least" in reasons["winograd"]) == taken
    if taken:
        for name in {"direct", "implicit_gemm"} & set(reasons):
            assert f"winograd at {figure}" in reasons[name]
    asked = dispatch.select(*arguments, algorithm="winograd")
    assert {c.algorithm: c.reason for c in asked.candidates}["winograd"] == "asked for"


@every_backend
@every_direction
@pytest.mark.parametrize(("x", "filters", "taken"), CHOICES, ids=str)
def test_scratch_is_bounded(x, filters, taken, direction, backend):
    """At most 16 MB for each thread, of any batch size; Numba's 8."""
    for batch, threads, dtype in itertools.product((x[0], 1000), (1, 2, 8), DTYPES if backend == "numba" else DTYPES[:1]):
        geometry = conv2d_geometry((batch, *x[1:]), (filters, x[1], 3, 3), padding=1)
        plan = dispatch.select(direction, geometry, np.dtype(dtype),
                               Settings(backend=backend, accuracy="standard"), "winograd", threads)
        assert plan.workspace_bytes <= (8_000_000 if backend == "numba" else 16_000_000) * threads


def test_a_workspace_limit_is_obeyed(rng):
    x, weight = (rng.standard_normal(shape).astype("float32") for shape in ((2, 32, 30, 30), (32, 32, 3, 3)))
    needs = fastconv.plan_conv2d(x.shape, weight.shape, 1, 1, algorithm="winograd").workspace_bytes
    with fastconv.options(num_threads=1):
        alone = fastconv.plan_conv2d(x.shape, weight.shape, 1, 1, algorithm="winograd").workspace_bytes
    assert alone <= needs
    with fastconv.options(workspace_limit=alone - 1):
        assert plan_of(x, weight) != "winograd"
        with pytest.raises(MemoryError, match=rf"winograd.*{alone:,}.*{alone - 1:,}"):
            fastconv.conv2d(x, weight, None, 1, 1, algorithm="winograd")
    with fastconv.options(workspace_limit=alone, num_threads=5):
        plan = fastconv.plan_conv2d(x.shape, weight.shape, 1, 1, algorithm="winograd")
        assert plan.workspace_bytes <= alone
        limited = fastconv.conv2d(x, weight, None, 1, 1, algorithm="winograd")
    np.testing.assert_array_equal(limited, fastconv.conv2d(x, weight, None, 1, 1, algorithm="winograd"))


# --- strides: the convolution of the phases -----------------------------------------------------------------------------

#: x, weight, stride, padding, groups: filters of 3, 4 and 5 rows of phases, rows that no window sees, padding on one side.
STRIDED = (
    ((3, 3, 43, 47), (10, 3, 11, 11), 4, ((0, 2), (1, 0)), 1), ((2, 6, 31, 29), (8, 3, 5, 5), 2, (1, 2), 2),
    ((2, 3, 45, 113), (10, 3, 7, 7), 2, 3, 1),
    ((2, 4, 61, 48), (9, 4, 9, 9), 3, ((0, 2), (3, 1)), 1), ((2, 3, 30, 33), (9, 3, 9, 9), 2, 4, 1),
    ((2, 5, 7, 7), (6, 5, 5, 5), 2, 0, 1), ((2, 3, 20, 20), (4, 3, 7, 7), 3, (3, 1), 1),
    ((0, 3, 20, 20), (4, 3, 5, 5), 2, 0, 1))


@pytest.mark.parametrize("threads", [1, 3])
@every_dtype
@pytest.mark.parametrize("case", STRIDED, ids=str)
def test_strides(case, dtype, threads, kernels, rng, assert_accurate):
    x_shape, weight_shape, stride, padding, groups = case
    x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, weight_shape, weight_shape[:1]))
    how = {"stride": stride, "padding": padding, "groups": groups}
    wide = [array.astype(np.float64) for array in (x, weight, bias)]
    want, spread = reference.conv2d(*wide, **how), reference.conv2d(wide[0]**2, wide[1]**2, **how)
    with fastconv.options(num_threads=threads):
        got = fastconv.conv2d(x, weight, bias, **how, algorithm="winograd")
        assert_accurate(got, want, spread, algorithm="winograd")
        got = fastconv.conv2d(x, weight, bias, **how, activation="relu", algorithm="winograd")
        assert_accurate(got, np.maximum(want, 0), spread, algorithm="winograd")
        packed = fastconv.pack_weight(weight, x.shape, **how, algorithm="winograd")
        assert packed.algorithm == "winograd"
        np.testing.assert_array_equal(fastconv.conv2d(x, packed, bias, **how, activation="relu"), got)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", STRIDED[:3], ids=str)
def test_a_few_images_at_a_time_are_the_same_bits(case, threads, kernels, rng, monkeypatch):
    x_shape, weight_shape, stride, padding, groups = case
    x, weight = (rng.standard_normal(shape) for shape in (x_shape, weight_shape))
    x[-1, 0, 3, 3] = nan  # the filters are needed again when the first images have been computed again
    x[0, -1, -2, 5] = inf
    how = {"stride": stride, "padding": padding, "groups": groups, "algorithm": "winograd"}
    want = fastconv.conv2d(x, weight, **how)
    dispatch._select.cache_clear()
    monkeypatch.setattr(winograd, "PHASE_ELEMENTS", x[:1].size)
    with fastconv.options(num_threads=threads):
        got = fastconv.conv2d(x, weight, **how)
        with memory.watch_scratch() as watch:
            fastconv.conv2d(x, weight, **how)
    dispatch._select.cache_clear()
    np.testing.assert_array_equal(got, want)
    assert watch.largest >= x[:1].nbytes


@every_dtype
@pytest.mark.parametrize("case", STRIDED[:5], ids=str)
def test_strides_and_what_is_not_finite(case, dtype, kernels, rng):
    x_shape, weight_shape, stride, padding, groups = case
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, weight_shape))
    how = {"stride": stride, "padding": padding, "groups": groups}
    for cells in ({(0, 0, 0, 0): nan}, {(-1, -1, 17, 9): inf, (0, 1, -1, -1): -inf}):
        spoiled = with_cells(x, cells)
        with np.errstate(invalid="ignore"):
            want = reference.conv2d(spoiled.astype(np.float64), weight.astype(np.float64), **how)
        got = fastconv.conv2d(spoiled, weight, **how, algorithm="winograd")
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    weight[1, 0, 2, 3] = inf
    with np.errstate(invalid="ignore"):
        want = reference.conv2d(x.astype(np.float64), weight.astype(np.float64), **how)
    np.testing.assert_allclose(fastconv.conv2d(x, weight, **how, algorithm="winograd"), want, rtol=0, atol=1e-4)


@pytest.fixture
def numba_kernels() -> Iterator[str]:
    """Numba's, which make the gradients of convolutions with strides, too."""
    yield from running("numba")


@pytest.mark.parametrize("together", [True, False], ids=["images-together", "images-apart"])
@every_dtype
@pytest.mark.parametrize("case", STRIDED, ids=str)
def test_gradients_of_strides(case, dtype, together, numba_kernels, rng, assert_accurate, monkeypatch):
    """Of all images' phases or of one's at a time; with the same bits for any number of threads, and by no other algorithm."""
    def refuse(*ignored: Any) -> None:
        raise AssertionError("finite numbers were computed by the direct algorithm")

    for operation in ("data", "weight"):
        monkeypatch.setattr(backend_in_force(), f"direct_backward_{operation}", refuse)
    monkeypatch.setattr(dispatch, "SERIAL_FLOPS", 0)
    dispatch._select.cache_clear()
    if not together:
        monkeypatch.setattr(winograd, "PHASE_ELEMENTS", case[0][1] * case[0][2] * case[0][3])
    x_shape, weight_shape, stride, padding, groups = case
    how = {"stride": stride, "padding": padding, "groups": groups}
    x, weight = (rng.standard_normal(shape).astype(dtype) for shape in (x_shape, weight_shape))
    dout = rng.standard_normal(conv2d_geometry(x_shape, weight_shape, stride, padding, 1, groups).output_shape).astype(dtype)
    results = []
    for threads in (1, 2, 5):
        with fastconv.options(num_threads=threads):
            memory.scratch(5_000_000).fill(0xFF)  # NaN
            results.append((fastconv.conv2d_backward_data(dout, weight, x_shape, **how, algorithm="winograd"),
                            fastconv.conv2d_backward_weight(dout, x, weight_shape, **how, algorithm="winograd")))
    dispatch._select.cache_clear()
    wide, squares = ([array.astype(np.float64)**power for array in (dout, x, weight)] for power in (1, 2))
    for got, expected in zip(results[0], zip(*(
            (reference.conv2d_backward_data(d, w, x_shape, **how), reference.conv2d_backward_weight(d, a, weight_shape, **how))
            for d, a, w in (wide, squares)), strict=True), strict=True):
        assert_accurate(got, *expected, algorithm="winograd")
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


@every_dtype
@pytest.mark.parametrize("where", ["dout", "x", "weight"])
@pytest.mark.parametrize("case", STRIDED[:5], ids=str)
def test_gradients_of_strides_and_what_is_not_finite(case, where, dtype, numba_kernels, rng):
    """The definition's cells and no others."""
    x_shape, weight_shape, stride, padding, groups = case
    how = {"stride": stride, "padding": padding, "groups": groups}
    arrays = {"x": rng.standard_normal(x_shape).astype(dtype), "weight": rng.standard_normal(weight_shape).astype(dtype)}
    arrays["dout"] = rng.standard_normal(
        conv2d_geometry(x_shape, weight_shape, stride, padding, 1, groups).output_shape).astype(dtype)
    arrays[where] = with_cells(arrays[where], {(-1, -1, 2, 3): nan, (0, 0, -1, -1): inf})
    dout, x, weight = arrays["dout"], arrays["x"], arrays["weight"]
    for function, *arguments in ((fastconv.conv2d_backward_data, dout, weight, x_shape),
                                 (fastconv.conv2d_backward_weight, dout, x, weight_shape)):
        got, want = (function(*arguments, **how, algorithm=algorithm) for algorithm in ("winograd", "direct"))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want[np.isfinite(want)]).max(initial=1))


@pytest.mark.parametrize("padding", [0, 2, ((5, 0), (1, 3))], ids=str)
@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (5, 3), (2, 3)])
def test_a_band_with_strides_is_a_convolution_of_its_own(taps, stride, padding, rng):
    x, weight = (rng.integers(-4, 5, shape).astype(float) for shape in ((2, 2, 13, 9), (3, 2, taps, taps)))
    geometry, backend = conv2d_geometry(x.shape, weight.shape, stride, padding), dispatch.backend()
    want = reference.conv2d(x, weight, None, stride, padding)
    for start, stop in itertools.combinations(range(want.shape[2] + 1), 2):
        band = winograd.band("forward", geometry, 1, start, stop)
        assert band.rows.start <= start < stop <= band.rows.stop <= want.shape[2]
        assert min(band.geometry.pads[0]) >= 0
        got = np.empty((1, want.shape[1], band.rows.stop - band.rows.start, want.shape[3]))
        budget = Budget(1, backend.direct_bytes("forward", band.geometry, got.dtype, 1))
        backend.direct_forward(np.ascontiguousarray(x[1:, :, band.seen]), weight, None, False, band.geometry, got, budget)
        np.testing.assert_array_equal(got[0], want[1, :, band.rows])


@needs_native
def test_which_strides():
    assert fastconv.plan_conv2d((8, 3, 227, 227), (96, 3, 11, 11), 4).algorithm == "winograd"
    assert fastconv.plan_conv2d((8, 3, 224, 224), (64, 3, 7, 7), 2, 3).algorithm == "winograd"
    assert fastconv.plan_conv2d((8, 1, 224, 224), (64, 1, 5, 5), 2, 2).algorithm == "direct"  # too few channels
    for weight, stride, dilation, x in (((4, 3, 13, 13), 2, 1, 40), ((4, 3, 5, 5), (1, 2), 1, 40), ((4, 3, 5, 5), 2, 2, 40),
                                        ((4, 3, 5, 3), 2, 1, 40), ((4, 3, 11, 11), 4, 1, 4096)):
        with pytest.raises(NotImplementedError, match=r"winograd.*(taps|too large)"):
            fastconv.plan_conv2d((1, 3, x, x), weight, stride, 0, dilation, algorithm="winograd")
    with pytest.raises(NotImplementedError, match=r"backward_data.*stride"):
        fastconv.plan_conv2d((1, 3, 40, 40), (4, 3, 5, 5), 2, direction="backward_data", algorithm="winograd")
