"""What the compiler made of the micro-kernels: a tile that spills, or has no FMA, is right and several times too slow.

The checks read the modules as they were built, with binutils' objdump. They are for x86-64 and for GCC or clang with
optimisation: a build with sanitizers is skipped by name, as is a machine without objdump.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

native = pytest.importorskip("fastconv.native", reason="without the extension modules")

OBJDUMP = shutil.which("objdump")

#: Of each instruction set: the register that its vectors are in, and the vectors of a full tile of 6 rows.
VECTORS = {"avx512": ("zmm", 4), "avx2": ("ymm", 2), "baseline": ("xmm", 2)}
TILE_ROWS = 6
KINDS = ("correlate", "correlate_asking", "correlate_asking_l2", "inner")
DTYPES = ("f32", "f64")

#: Mnemonics of SSE3 and later, and of the bit manipulations that came with AVX2. (tzcnt is bsf where there is none.)
ABOVE_SSE2 = re.compile("^(" + "|".join((
    "v[a-z]", "h(add|sub)p[sd]", "addsubp[sd]", "movddup", "movs[lh]dup", "lddqu",
    "p(shufb|h(add|sub)|abs[bwd]|alignr|sign[bwd]|maddubsw|mulhrsw)",
    "p(mulld|muldq|(min|max)(u[wd]|s[bd])|extr[bdq]|insr[bdq]|blend|test|cmpeqq|cmpgtq|mov[sz]x|ackusdw)",
    "blendv?p", "round[ps][sd]", "dpp[sd]", "insertps", "extractps", "mpsadbw", "crc32", "popcnt", "lzcnt", "andn$",
    "bextr", "bls(i|r|msk)", "bzhi", "mulx", "pdep", "pext$", "rorx", "s(ar|hl|hr)x")) + ")")

_VECTOR = re.compile(r"%[xyz]mm\d+")
_STACK = re.compile(r"\(%r[sb]p\b")
_SYMBOL = re.compile(r"^([0-9a-f]+) <(.+)>:$")
_JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a listing in AT&T syntax."""

    address: int
    text: str

    @property
    def mnemonic(self) -> str:
        return self.text.split(None, 1)[0]

    @property
    def spills(self) -> bool:
        """Does it move a vector register to or from the stack?"""
        return bool(_VECTOR.search(self.text) and _STACK.search(self.text))


Listing = dict[str, list[Instruction]]


def why_not() -> str:
    """Why these checks make no sense here, or an empty string."""
    if not sys.platform.startswith("linux"):
        return f"the checks read ELF modules, and this is {sys.platform}"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"the checks know x86-64, not {platform.machine()}"
    if OBJDUMP is None:
        return "objdump (binutils) is not installed"
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "everything is there")


def module_path(isa: str) -> Path:
    """The module's file. It is not imported: this CPU need not be able to run it."""
    folder = Path(native.__file__).parent
    found = sorted(folder.glob(f"_{isa}.*.so")) + sorted(folder.glob(f"_{isa}.so"))
    # of several Python versions' builds in one tree, the one in use
    loaded = Path(native.kernels.__file__).name.partition(".")[2]
    return next((path for path in found if path.name == f"_{isa}.{loaded}"), Path())


@lru_cache(maxsize=len(VECTORS))
def listing(isa: str) -> Listing:
    """The project's own functions in a module, by name (without what the compiler appended to it)."""
    path = module_path(isa)
    if not path.is_file():
        pytest.skip(f"there is no ELF module of {isa}")
    assert OBJDUMP is not None
    text = subprocess.run([OBJDUMP, "-d", "--no-show-raw-insn", "-j", ".text", str(path)], capture_output=True,
                          text=True, check=True).stdout
    if "__asan_" in text or "__ubsan_" in text:
        pytest.skip("built with sanitizers, whose checks need the registers")
    functions: Listing = {}
    name = ""
    for line in text.splitlines():
        symbol = _SYMBOL.match(line)
        if symbol:
            name = symbol[2]
            functions[name] = []
        elif name and ":\t" in line:
            address, _, instruction = line.partition(":\t")
            functions[name].append(Instruction(int(address, 16), instruction.strip()))
    if not any(name.startswith("fc_") for name in functions):
        pytest.skip(f"{path.name} is stripped: its functions have no names")
    return functions


def loops(function: list[Instruction]) -> list[list[Instruction]]:
    """The innermost loops: what lies between a jump back and its target, where no other such jump lies inside."""
    found = []
    first = function[0].address
    for i, instruction in enumerate(function):
        jump = _JUMP.match(instruction.text)
        if jump and first <= int(jump[1], 16) <= instruction.address:
            start = int(jump[1], 16)
            found.append([other for other in function[:i + 1] if other.address >= start])
    return [loop for loop in found
            if not any(other is not loop and loop[0].address <= other[0].address
                       and other[-1].address <= loop[-1].address for other in found)]


def arithmetic_loop(isa: str, function: str) -> list[Instruction]:
    """The loop of a tile that does its arithmetic: the one with the most multiplications of whole vectors."""
    register, _ = VECTORS[isa]
    multiplies = re.compile(rf"^v?(fn?m(add|sub)\d*|mul)p[sd]\s.*%{register}")

    def multiplications(loop: list[Instruction]) -> int:
        return sum(bool(multiplies.match(instruction.text)) for instruction in loop)

    functions = listing(isa)
    assert function in functions, f"{function} is not in the module of {isa}: it was inlined, or renamed"
    found = max(loops(functions[function]), key=multiplications, default=[])
    assert multiplications(found) > 0, f"no loop of {function} multiplies {register} registers"
    return found


def full_tiles(test: Any) -> Any:
    """The micro-kernel of a full tile, by its symbol's name, of each instruction set that has FMA."""
    for name, values in (("dtype", DTYPES), ("kind", KINDS), ("isa", ("avx512", "avx2"))):
        test = pytest.mark.parametrize(name, values)(test)
    return test


@full_tiles
def test_full_tiles_use_fma(isa, kind, dtype):
    """As many FMAs of whole vectors as the tile has accumulators, and no other multiplication or addition."""
    register, vectors = VECTORS[isa]
    loop = arithmetic_loop(isa, f"fc_{kind}_{TILE_ROWS}x{vectors}_{dtype}")
    fma = re.compile(rf"^vfmadd\d+p[sd]\s.*%{register}\d+$")
    count = sum(bool(fma.match(instruction.text)) for instruction in loop)
    # the compiler may unroll the loop once more
    assert count >= TILE_ROWS * vectors
    assert count % (TILE_ROWS * vectors) == 0
    other = [instruction.text for instruction in loop if re.match(r"^v?(mul|add|sub)[ps][sd]$", instruction.mnemonic)]
    assert not other


@full_tiles
def test_full_tiles_stay_in_registers(isa, kind, dtype):
    """No vector goes to the stack or comes from it while the tile is summed up."""
    loop = arithmetic_loop(isa, f"fc_{kind}_{TILE_ROWS}x{VECTORS[isa][1]}_{dtype}")
    spills = [instruction.text for instruction in loop if instruction.spills]
    assert not spills


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vectors", [1, 2, 3])
@pytest.mark.parametrize(("isa", "rows"), [("avx512", 8), ("avx2", 4)])
def test_winograds_products(isa, rows, vectors, dtype):
    """As the full tiles above: FMAs and nothing else, in registers."""
    loop = arithmetic_loop(isa, f"fc_product_{vectors}_{dtype}")
    fma = re.compile(rf"^vfmadd\d+p[sd]\s.*%{VECTORS[isa][0]}\d+$")
    count = sum(bool(fma.match(instruction.text)) for instruction in loop)
    assert count >= rows * vectors
    assert count % (rows * vectors) == 0
    assert not [instruction.text for instruction in loop if instruction.spills]
    assert not [instruction.text for instruction in loop if re.match(r"^v?(mul|add|sub)[ps][sd]$", instruction.mnemonic)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_no_tile_spills(isa, kind):
    """The smaller ones neither, which are for the channels and pixels that are left over."""
    _, vectors = VECTORS[isa]
    for rows in range(1, TILE_ROWS + 1):
        for width in range(1, vectors + 1):
            for dtype in DTYPES:
                function = f"fc_{kind}_{rows}x{width}_{dtype}"
                spills = [instruction.text for instruction in arithmetic_loop(isa, function) if instruction.spills]
                assert not spills, function


def test_the_baseline_needs_nothing_above_sse2():
    """It is for CPUs that have nothing else: no instruction of AVX or later, and none of SSE3 to SSE4.2 either."""
    functions = listing("baseline")
    wrong = [f"{name}: {instruction.text}" for name, code in functions.items() for instruction in code
             if ABOVE_SSE2.match(instruction.mnemonic) or re.search(r"%[yz]mm|%k[0-7]\b", instruction.text)]
    assert not wrong, f"{len(wrong)} instructions, first {wrong[:5]}"


@pytest.mark.parametrize("isa", list(VECTORS))
def test_the_tables_of_tiles_are_complete(isa):
    """Every tile is a function of its own, so that the checks above see it."""
    functions = listing(isa)
    for kind in KINDS:
        for rows in range(1, TILE_ROWS + 1):
            for vectors in range(1, VECTORS[isa][1] + 1):
                for dtype in DTYPES:
                    assert f"fc_{kind}_{rows}x{vectors}_{dtype}" in functions
