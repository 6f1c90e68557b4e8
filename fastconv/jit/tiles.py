"""The register tiles of convolution: what native/tiles.h has in C.

A tile of ROWS x VECTORS sums stays in registers while all terms are added to it. Numba's Python has no loop over variables,
so a tile is made of LLVM's instructions here, as :mod:`fastconv.jit.vectors` makes single ones: a factory writes them for
so many rows and vectors, and LLVM allocates the registers. There is a tile for each number of rows and vectors up to the
full one, so that what is left at an edge costs what it is.

What it compiles to (Numba 0.68 with LLVM 22, on AVX-512; from inspect_asm): for each term of `correlate_tile` four vmovups
of b, a prefetch, six vbroadcastss of a and 24 vfmadd231ps of registers, for each vector of `inner_tile` four vmovups and six
more, and 24 vfmadd231ps; nothing is spilled. 24 sums, 4 of b and one of a are 29 of 32 registers. Where vectors are shorter, a
line of cache is two or four of them and the tile one line wide: 12 of AVX2's 16.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .options import inlined, named, numba
from .vectors import LINE_BYTES, _ask, _of, _permute, _pointer, _roll, _splat

types = numba.types


def _has_long_vectors() -> bool:
    features = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()[2]
    return "+avx512f" in str(features).split(",")


ROWS = 6
PITCH = 64  # cells from one row of a tile of sums in scratch to the next
VECTORS = 4 if _has_long_vectors() else 1  # lines of cache, of which the registers hold so many sums for each row


def _sums(builder: Any, value: Any, rows: int, vectors: int) -> list[list[Any]]:
    zeros = ir.Constant(value, [0.0] * value.count)
    sums = [[cgutils.alloca_once(builder, value) for _ in range(vectors)] for _ in range(rows)]
    for total in (total for row in sums for total in row):
        builder.store(zeros, total)
    return sums


def _add_product(builder: Any, total: Any, a: Any, b: Any) -> None:
    once = ("contract",)
    builder.store(builder.fadd(builder.load(total), builder.fmul(a, b, flags=once), flags=once), total)


def _correlating(rows: int, vectors: int) -> Any:
    @numba.extending.intrinsic
    def tile(typing, to, at, pitch, adds, ends, bias, channel, relu, bypass, a, first, step, b, offset, table, terms, shift,
             ahead):
        kind = _of(to)

        def generate(context, builder, signature, args):
            (to, at, pitch, adds, ends, bias, channel, relu, bypass, a, first, step, b, offset, table, terms,
             shift, ahead) = args
            kinds = signature.args
            word, value, align = ir.IntType(64), kind.value, min(kind.bits // 8, 8)
            weights = []
            for i in range(rows):
                row = builder.add(first, builder.mul(step, word(i)))
                weights.append(_pointer(context, builder, kinds[9], a, row, value.element))
            cells = _pointer(context, builder, kinds[12], b, shift, value.element)
            places = _pointer(context, builder, kinds[13], offset, table, word)
            sums = _sums(builder, value, rows, vectors)
            with cgutils.for_range(builder, terms, intp=word) as loop:
                _roll(builder)
                t = loop.index
                cell = builder.gep(cells, [builder.load(builder.gep(places, [t]))])
                _ask(builder, builder.gep(cell, [ahead]))
                right = []
                for j in range(vectors):
                    line = builder.gep(cell, [word(j * kind.lanes)])
                    right.append(builder.load(builder.bitcast(line, value.as_pointer()), align=align))
                for i in range(rows):
                    weight = _splat(builder, builder.load(builder.gep(weights[i], [t])), value)
                    for j in range(vectors):
                        _add_product(builder, sums[i][j], weight, right[j])
            there = []
            for i in range(rows):
                row = builder.add(at, builder.mul(pitch, word(i)))
                for j in range(vectors):
                    pointer = _pointer(context, builder, kinds[0], to, builder.add(row, word(j * kind.lanes)), value)
                    there.append((sums[i][j], pointer))
            with builder.if_then(adds):
                for total, pointer in there:
                    builder.store(builder.fadd(builder.load(total), builder.load(pointer, align=align)), total)
            with builder.if_then(ends):
                for i in range(rows):
                    pointer = _pointer(context, builder, kinds[5], bias, builder.add(channel, word(i)), value.element)
                    added = _splat(builder, builder.load(pointer), value)
                    for total in sums[i]:
                        builder.store(builder.fadd(builder.load(total), added), total)
            with builder.if_then(relu):
                zeros = ir.Constant(value, [0.0] * value.count)
                for total, _ in there:
                    sum_ = builder.load(total)
                    builder.store(builder.select(builder.fcmp_ordered("<", sum_, zeros), zeros, sum_), total)
            with builder.if_else(bypass) as (past_caches, through_them):
                with past_caches:
                    for total, pointer in there:
                        done = builder.store(builder.load(total), pointer, align=LINE_BYTES)
                        done.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
                with through_them:
                    for total, pointer in there:
                        builder.store(builder.load(total), pointer, align=align)
            return context.get_dummy_value()

        word, flag = types.int64, types.boolean
        return types.void(to, word, word, flag, flag, bias, word, flag, flag, a, word, word, b, offset, word, word, word,
                          word), generate

    return tile


def _folded(builder: Any, vectors: list[Any]) -> Any:
    """The sums of the lanes of some vectors (1, 2, 4, ... of them), in one vector of as many lanes."""
    def both(a: Any, b: Any) -> Any:
        count = a.type.count
        return builder.fadd(_permute(builder, a, b, list(range(0, 2 * count, 2))),
                            _permute(builder, a, b, list(range(1, 2 * count, 2))))

    def half(a: Any) -> Any:
        evens, odds = (_permute(builder, a, a, list(range(first, a.type.count, 2))) for first in (0, 1))
        return builder.fadd(evens, odds)

    wanted = len(vectors)
    while len(vectors) > 1:
        vectors = [both(a, b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    folded = vectors[0]
    while folded.type.count > wanted:
        folded = half(folded)
    return folded


def _inner(rows: int) -> Any:
    @numba.extending.intrinsic
    def tile(typing, to, at, step, count, a, pitch, next_a, b, offset, table, next_b, vectors, segments, shift):
        kind = _of(to)

        def generate(context, builder, signature, args):
            to, at, step, count, a, pitch, next_a, b, offset, table, next_b, vectors, segments, shift = args
            kinds = signature.args
            word, value = ir.IntType(64), kind.value
            align, lanes = min(kind.bits // 8, 8), word(kind.lanes)
            left = [_pointer(context, builder, kinds[4], a, builder.mul(pitch, word(i)), value.element) for i in range(rows)]
            places = _pointer(context, builder, kinds[8], offset, table, word)
            right = [_pointer(context, builder, kinds[7], b,
                              builder.add(shift, builder.load(builder.gep(places, [word(j)]))), value.element)
                     for j in range(VECTORS)]
            sums = _sums(builder, value, rows, VECTORS)
            with cgutils.for_range(builder, segments, intp=word) as segment:
                starts = [[builder.gep(line, [builder.mul(segment.index, following)]) for line in lines]
                          for lines, following in ((right, next_b), (left, next_a))]
                with cgutils.for_range(builder, vectors, intp=word) as loop:
                    _roll(builder)
                    p = builder.mul(loop.index, lanes)
                    cells, factors = ([builder.load(builder.bitcast(builder.gep(start, [p]), value.as_pointer()), align=align)
                                       for start in lines] for lines in starts)
                    for i in range(rows):
                        for j in range(VECTORS):
                            _add_product(builder, sums[i][j], factors[i], cells[j])
            whole = builder.icmp_signed("==", count, word(VECTORS))
            for i in range(rows):
                total = _folded(builder, [builder.load(one) for one in sums[i]])
                begin = builder.add(at, builder.mul(step, word(i)))
                with builder.if_else(whole) as (all_of_them, some):
                    with all_of_them:
                        pointer = _pointer(context, builder, kinds[0], to, begin, total.type)
                        builder.store(builder.fadd(builder.load(pointer, align=align), total), pointer, align=align)
                    with some:
                        for j in range(VECTORS - 1):
                            with builder.if_then(builder.icmp_signed(">", count, word(j))):
                                pointer = _pointer(context, builder, kinds[0], to, builder.add(begin, word(j)), value.element)
                                one = builder.extract_element(total, word(j))
                                builder.store(builder.fadd(builder.load(pointer), one), pointer)
            return context.get_dummy_value()

        word = types.int64
        return types.void(to, word, word, word, a, word, word, b, offset, word, word, word, word, word), generate

    return tile


def _by_rows(tiles: list[Any], name: str) -> Any:
    """Of tiles of 1, 2, ... rows the one of so many."""
    one, two, three, four, five, six = tiles

    @inlined
    @named(name)
    def tile(rows, *arguments):
        if rows == 6:
            six(*arguments)
        elif rows == 5:
            five(*arguments)
        elif rows == 4:
            four(*arguments)
        elif rows == 3:
            three(*arguments)
        elif rows == 2:
            two(*arguments)
        else:
            one(*arguments)

    return tile


_one, _two, _three, _four = (_by_rows([_correlating(rows, vectors) for rows in range(1, ROWS + 1)], f"correlate_{vectors}")
                             for vectors in range(1, 5))
_inner_rows = _by_rows([_inner(rows) for rows in range(1, ROWS + 1)], "inner")

# correlate_tile: sums over all terms t of a[first + i*step + t] * b[offset[table + t] + shift + p], in to[at + i*pitch + p].
#
# For `rows` rows i, at most ROWS, and `vectors` lines of cache of p, at most VECTORS; with `adds` plus what is there,
# with `ends` plus bias[channel + i], with `relu` not below zero. With `bypass` past the caches: then all of them begin
# where lines do, and a `fence` has to follow. The other arguments are (to, at, pitch, adds, ends, bias, channel, relu,
# bypass, a, first, step, b, offset, table, terms, shift, ahead): what is so many cells `ahead` in b is asked for.
if VECTORS == 1:

    @inlined
    def correlate_tile(rows, vectors, *arguments):
        _one(rows, *arguments)

else:

    @inlined
    def correlate_tile(rows, vectors, *arguments):
        if vectors == 4:
            _four(rows, *arguments)
        elif vectors == 3:
            _three(rows, *arguments)
        elif vectors == 2:
            _two(rows, *arguments)
        else:
            _one(rows, *arguments)


@inlined
def inner_tile(rows, to, at, step, count, a, pitch, next_a, b, offset, table, next_b, vectors, segments, shift):
    """to[at + i*step + j] += sum over n, p of a[i*pitch + n*next_a + p] * b[offset[table + j] + shift + n*next_b + p].

    For `rows` rows i, at most ROWS, and `count` columns j, at most VECTORS, of which `offset` has VECTORS all the same; for
    `segments` n and `vectors` lines of cache of p.
    """
    _inner_rows(rows, to, at, step, count, a, pitch, next_a, b, offset, table, next_b, vectors, segments, shift)
