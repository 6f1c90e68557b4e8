"""Vectors of one cache line as values in kernels: 16 float32, 8 float64, 64 bytes, ...

LLVM makes vectors of loops by itself, and of long ones as good as anything here. What it can't know is what short loops
over the rows of small images live of: that a vector may be loaded where only its first cells are wanted, as long as it
ends within the array; that it may be stored over cells which are written later; that windows are permutations of pairs.
It cuts such rows into vectors of 16, 8 and 4 cells and scalars, and looks first which arrays overlap. With a load, a
store and a few operations that are one instruction each, kernels say what they mean, in Python::

    best = greater(load(x, at), load(x, at + width))
    store(row, to, greater(evens(best, next), odds(best, next)))

Vectors are types of LLVM's intermediate language, not of a processor: on one with shorter registers LLVM takes several.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
# (Numba infers the types of kernels.)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.np.arrayobj import populate_array

from .options import inlined, numba, part

LINE_BYTES = 64

types = numba.types
intrinsic = numba.extending.intrinsic


class Vector(types.Type):  # type: ignore[misc,name-defined]
    """The type of a vector, or with `dtype` boolean of a mask: a bit for each lane."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")

    @property
    def bits(self) -> int:
        """Of a cell."""
        return LINE_BYTES * 8 // self.lanes

    @property
    def value(self) -> Any:
        """LLVM's type."""
        if self.dtype == types.boolean:
            return ir.VectorType(ir.IntType(1), self.lanes)
        cell = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(),
                types.int32: ir.IntType(32)}.get(self.dtype, ir.IntType(self.bits))
        return ir.VectorType(cell, self.lanes)

    @property
    def counted(self) -> Any:
        """A vector of integers as long as this one, which its lanes can be counted in."""
        return ir.VectorType(ir.IntType(min(self.bits, 32)), self.lanes)


@numba.extending.register_model(Vector)
class _VectorModel(numba.extending.models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.value)


def _of(array: Any) -> Vector:
    size = 16 if array.dtype == types.complex128 else array.dtype.bitwidth // 8
    return Vector(array.dtype, LINE_BYTES // size)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, value: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), value.as_pointer())


def _splat(builder: Any, cell: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(value, ir.Undefined), cell, ir.IntType(32)(0))
    return _permute(builder, one, one, [0] * value.count)


def _permute(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


@intrinsic
def lanes_of(typing, array):
    """How many cells a vector of `array` has: a constant. (array.itemsize is read, and divided by, every time.)"""
    count = _of(array).lanes

    def generate(context, builder, signature, args):
        return ir.IntType(64)(count)

    return types.int64(array), generate


# --- memory -----------------------------------------------------------------------------------------------------------


@intrinsic
def load(typing, array, at):
    """The vector array[at:at + lanes]."""
    kind = _of(array)

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], kind.value)
        return builder.load(pointer, align=min(kind.bits // 8, 8))

    return kind(array, types.intp), generate


def _storing(typing: Any, array: Any, at: Any, vector: Any, bypass: bool) -> Any:
    if vector != _of(array):
        return None

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], vector.value)
        done = builder.store(args[2], pointer, align=LINE_BYTES if bypass else min(vector.bits // 8, 8))
        if bypass:
            done.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def store(typing, array, at, vector):
    """array[at:at + lanes] = vector"""
    return _storing(typing, array, at, vector, False)


@intrinsic
def stream(typing, array, at, vector):
    """The same, past the caches. array[at] has to be where a line of cache begins, and a `fence` has to follow."""
    return _storing(typing, array, at, vector, True)


@intrinsic
def fence(typing):
    """What was written is there for all threads."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


#: Bytes of `stack`: what no thread's stack is too small for.
STACK_BYTES = 32768


@intrinsic
def stack(typing, like):
    """An uninitialised array of STACK_BYTES on this thread's stack, of cells as those of `like`; not to be returned."""
    count = STACK_BYTES * _of(like).lanes // LINE_BYTES

    def generate(context, builder, signature, args):
        with builder.goto_entry_block():
            memory = builder.alloca(ir.ArrayType(ir.IntType(8), STACK_BYTES))
            memory.align = LINE_BYTES
        array = context.make_array(like)(context, builder)
        word = context.get_value_type(types.intp)
        size = STACK_BYTES // count
        populate_array(array, data=builder.bitcast(memory, array.data.type), shape=[word(count)], strides=[word(size)],
                       itemsize=word(size), meminfo=None)
        return array._getvalue()

    return like(like), generate


def _ask(builder: Any, pointer: Any, level: int = 1) -> None:
    byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    # for reading, into that cache, data
    builder.call(function, [builder.bitcast(pointer, byte), i32(0), i32(4 - level), i32(1)])


def _asking(array: Any, level: int) -> Any:
    def generate(context, builder, signature, args):
        _ask(builder, _pointer(context, builder, signature.args[0], args[0], args[1], ir.IntType(8)), level)
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def ask(typing, array, at):
    """Ask for the line that has array[at], to be read soon. It may be outside of the array."""
    return _asking(array, 1)


@intrinsic
def ask_early(typing, array, at):
    """The same into the second-level cache, which has room for more lines that are on their way."""
    return _asking(array, 2)


@intrinsic
def beyond_line(typing, array, at):
    """How many cells before array[at] its line of cache begins; -1 if no cell begins where a line does."""
    kind = _of(array)

    def generate(context, builder, signature, args):
        word = ir.IntType(64)
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], ir.IntType(8))
        offset = builder.and_(builder.ptrtoint(pointer, word), word(LINE_BYTES - 1))
        odd = builder.icmp_unsigned("!=", builder.and_(offset, word(kind.bits // 8 - 1)), word(0))
        return builder.select(odd, word(-1), builder.udiv(offset, word(kind.bits // 8)))

    return types.int64(array, types.intp), generate


def few(lanes: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """`move` and `move_padded` for vectors of so many cells, for what is shorter than a line."""

    def moving(to: Any, source: Any, padded: bool) -> Any:
        if to.dtype != source.dtype:
            return None
        whole = _of(to)
        value, align = ir.VectorType(whole.value.element, lanes), min(whole.bits // 8, 8)

        def generate(context, builder, signature, args):
            pointer = _pointer(context, builder, signature.args[2], args[2], args[3], value)
            cells = builder.load(pointer, align=align)
            if padded:
                numbers = ir.VectorType(ir.IntType(min(whole.bits, 32)), lanes)
                wanted = _splat(builder, builder.trunc(args[4], numbers.element), numbers)
                there = builder.icmp_signed("<", ir.Constant(numbers, list(range(lanes))), wanted)
                cells = builder.select(there, cells, ir.Constant(value, [0.0] * lanes))
            builder.store(cells, _pointer(context, builder, signature.args[0], args[0], args[1], value), align=align)
            return context.get_dummy_value()

        return types.void(to, types.intp, source, types.intp, *[types.int64] * padded), generate

    @intrinsic
    def move(typing, to, at, source, start):
        """to[at:at + lanes] = source[start:start + lanes]"""
        return moving(to, source, False)

    @intrinsic
    def move_padded(typing, to, at, source, start, count):
        """The same, with zeros instead of all but the first `count` cells. For floats."""
        return moving(to, source, True)

    return move, move_padded


def _roll(builder: Any) -> None:
    nothing = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "", side_effect=True)
    builder.call(nothing, [], attrs=("convergent",))


@intrinsic
def rolled(typing):
    """No instruction. The loop that has it is not unrolled, which for a few turns takes longer to get ready than to run."""

    def generate(context, builder, signature, args):
        _roll(builder)
        return context.get_dummy_value()

    return types.void(), generate


# --- lanes ------------------------------------------------------------------------------------------------------------


@intrinsic
def splat(typing, array, cell):
    """A vector for `array` with the same in all lanes."""
    kind = _of(array)
    if array.dtype == types.complex128:
        return None

    def generate(context, builder, signature, args):
        return _splat(builder, args[1], kind.value)

    return kind(array, array.dtype), generate


@intrinsic
def load_splat(typing, array, at):
    """A vector with array[at] in all lanes, whatever its type."""
    kind = _of(array)

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], kind.value.element)
        return _splat(builder, builder.load(pointer, align=min(kind.bits // 8, 8)), kind.value)

    return kind(array, types.intp), generate


@intrinsic
def between(typing, array, first, stop):
    """A mask of the lanes first <= lane < stop of a vector of `array`; both are within 0 and the number of lanes."""
    kind = _of(array)

    def generate(context, builder, signature, args):
        cell = kind.counted.element
        first, stop = (_splat(builder, builder.trunc(arg, cell), kind.counted) for arg in args[1:])
        lane = ir.Constant(kind.counted, list(range(kind.lanes)))
        return builder.and_(builder.icmp_signed("<=", first, lane), builder.icmp_signed("<", lane, stop))

    return Vector(types.boolean, kind.lanes)(array, types.int64, types.int64), generate


@intrinsic
def where(typing, mask, a, b):
    """The lanes of a where the mask is set, else those of b."""

    def generate(context, builder, signature, args):
        return builder.select(*args)

    return (a(mask, a, b), generate) if a == b else None


@intrinsic
def lane(typing, vector, i):
    """The cell in lane i."""
    if vector.dtype == types.complex128:
        return None

    def generate(context, builder, signature, args):
        return builder.extract_element(*args)

    return vector.dtype(vector, types.intp), generate


@intrinsic
def store_lane(typing, array, at, vector, i):
    """array[at] = vector[i]"""
    if vector != _of(array):
        return None

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], vector.value.element)
        builder.store(builder.extract_element(args[2], args[3]), pointer, align=min(vector.bits // 8, 8))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), generate


@intrinsic
def load_lane(typing, array, at, vector, i):
    """`vector` with array[at] in lane i."""
    if vector != _of(array):
        return None

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], vector.value.element)
        return builder.insert_element(args[2], builder.load(pointer, align=min(vector.bits // 8, 8)), args[3])

    return vector(array, types.intp, vector, types.intp), generate


def _permuting(order: Callable[[int], list[int]]) -> Any:
    def typed(typing: Any, a: Any, b: Any) -> Any:
        def generate(context, builder, signature, args):
            return _permute(builder, args[0], args[1], order(a.lanes))

        return (a(a, b), generate) if a == b else None

    return typed


@intrinsic
def evens(typing, a, b):
    """Every second cell of a and then b, from the first one on."""
    return _permuting(lambda n: list(range(0, 2 * n, 2)))(typing, a, b)


@intrinsic
def odds(typing, a, b):
    """Every second cell of a and then b, from the second one on."""
    return _permuting(lambda n: list(range(1, 2 * n, 2)))(typing, a, b)


@intrinsic
def mixed_low(typing, a, b):
    """a[0], b[0], a[1], b[1], ...: the first half of both."""
    return _permuting(lambda n: [i // 2 + i % 2 * n for i in range(n)])(typing, a, b)


@intrinsic
def mixed_high(typing, a, b):
    """The same of the second half."""
    return _permuting(lambda n: [n // 2 + i // 2 + i % 2 * n for i in range(n)])(typing, a, b)


@intrinsic
def next_cells(typing, a, b):
    """All cells of a but the first, and the first one of b."""
    return _permuting(lambda n: list(range(1, n + 1)))(typing, a, b)


@intrinsic
def last_cells(typing, a, b):
    """The last cell of a, and all of b but the last."""
    return _permuting(lambda n: list(range(n - 1, 2 * n - 1)))(typing, a, b)


def _parts(count: int, first: list[int], second: list[int]) -> Any:
    """A permutation of whole parts, of which a vector has `count`: these of a and then those of b."""
    def order(n: int) -> list[int]:
        cells = n // count
        return [part * cells + i for part in [*first, *(count + part for part in second)] for i in range(cells)]

    return _permuting(order)


@intrinsic
def low_halves(typing, a, b):
    """The first half of a, then that of b."""
    return _parts(2, [0], [0])(typing, a, b)


@intrinsic
def high_halves(typing, a, b):
    """The same of the second half."""
    return _parts(2, [1], [1])(typing, a, b)


@intrinsic
def even_quarters(typing, a, b):
    """The first and the third quarter of a, then those of b."""
    return _parts(4, [0, 2], [0, 2])(typing, a, b)


@intrinsic
def odd_quarters(typing, a, b):
    """The same of the second and the fourth."""
    return _parts(4, [1, 3], [1, 3])(typing, a, b)


@intrinsic
def even_pairs(typing, a, b):
    """a[0], a[1], b[0], b[1], a[4], a[5], b[4], b[5], ...: every second pair, in turns."""
    return _permuting(lambda n: [i // 4 * 4 + i % 2 + i // 2 % 2 * n for i in range(n)])(typing, a, b)


@intrinsic
def odd_pairs(typing, a, b):
    """The same of the other pairs."""
    return _permuting(lambda n: [i // 4 * 4 + 2 + i % 2 + i // 2 % 2 * n for i in range(n)])(typing, a, b)


@intrinsic
def turn_block(typing, to, o, line, source, at, pitch, count):
    """to[o + l*line + i] = source[at + i*pitch + l] for as many i and l as lanes; zeros for i from `count` on."""
    kind = _of(to)

    def generate(context, builder, signature, args):
        to, o, line, source, at, pitch, count = args
        word, lanes, align = ir.IntType(64), kind.lanes, min(kind.bits // 8, 8)
        last = builder.sub(count, word(1))
        rows = []
        for i in range(lanes):
            number = builder.select(builder.icmp_signed("<", last, word(i)), last, word(i))
            place = builder.add(at, builder.mul(number, pitch))
            rows.append(builder.load(_pointer(context, builder, signature.args[3], source, place, kind.value), align=align))
        step = lanes // 2
        while step:
            for i in range(lanes):
                if not i & step:
                    a, b = rows[i], rows[i + step]
                    rows[i] = _permute(builder, a, b, [lanes + at - step if at & step else at for at in range(lanes)])
                    rows[i + step] = _permute(builder, a, b, [lanes + at if at & step else at + step for at in range(lanes)])
            step //= 2
        numbers = ir.Constant(kind.counted, list(range(lanes)))
        there = builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(count, kind.counted.element), kind.counted))
        for i in range(lanes):
            place = builder.add(o, builder.mul(line, word(i)))
            value = builder.select(there, rows[i], ir.Constant(kind.value, [0.0] * lanes))
            builder.store(value, _pointer(context, builder, signature.args[0], to, place, kind.value), align=align)
        return context.get_dummy_value()

    word = types.int64
    return types.void(to, word, word, source, word, word, word), generate


def thirds(j: int) -> tuple[Any, Any]:
    """Functions of three vectors: every third cell of a, b and c, from the j-th on; and the j-th of three vectors that have
    a[0], b[0], c[0], a[1], ..."""
    def typed(a: Any, b: Any, c: Any, orders: tuple[Callable[[int], list[int]], Callable[[int], list[int]]]) -> Any:
        def generate(context, builder, signature, args):  # what two of them have, then the rest
            two = _permute(builder, args[0], args[1], orders[0](a.lanes))
            return _permute(builder, two, args[2], orders[1](a.lanes))

        return (a(a, b, c), generate) if a == b == c else None

    @intrinsic
    def every_third(typing, a, b, c):
        return typed(a, b, c, (lambda n: [3 * i + j if 3 * i + j < 2 * n else 0 for i in range(n)],
                               lambda n: [i if 3 * i + j < 2 * n else 3 * i + j - n for i in range(n)]))

    @intrinsic
    def in_turn(typing, a, b, c):
        return typed(a, b, c, (lambda n: [(j * n + i) % 3 * n % (2 * n) + (j * n + i) // 3 for i in range(n)],
                               lambda n: [i if (j * n + i) % 3 < 2 else n + (j * n + i) // 3 for i in range(n)]))

    return every_third, in_turn


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _real(a: Any, b: Any) -> bool:
    return bool(a == b and a.dtype in (types.float32, types.float64))


@intrinsic
def plus(typing, a, b):
    """a + b"""

    def generate(context, builder, signature, args):
        return builder.fadd(*args)

    return (a(a, b), generate) if _real(a, b) else None


@intrinsic
def minus(typing, a, b):
    """a - b"""

    def generate(context, builder, signature, args):
        return builder.fsub(*args)

    return (a(a, b), generate) if _real(a, b) else None


@intrinsic
def times(typing, a, b):
    """a * b"""

    def generate(context, builder, signature, args):
        return builder.fmul(*args)

    return (a(a, b), generate) if _real(a, b) else None


@intrinsic
def plus_product(typing, total, a, b):
    """total + a * b, rounded once or twice. Says so itself: not every Numba lets `options.FLAGS` reach vectors."""

    def generate(context, builder, signature, args):
        once = ("contract",)
        return builder.fadd(args[0], builder.fmul(args[1], args[2], flags=once), flags=once)

    return (a(total, a, b), generate) if _real(a, b) and total == a else None


@intrinsic
def over(typing, a, b):
    """a / b"""

    def generate(context, builder, signature, args):
        return builder.fdiv(*args)

    return (a(a, b), generate) if _real(a, b) else None


@intrinsic
def greater(typing, a, b):
    """The greater ones, the first of equals. One instruction; not for NaN."""

    def generate(context, builder, signature, args):
        a, b = args
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)

    return (a(a, b), generate) if _real(a, b) else None


@intrinsic
def greater_or_nan(typing, a, b):
    """NaN gets in, and never out again (rule 5)."""

    def generate(context, builder, signature, args):
        a, b = args
        return builder.select(builder.or_(builder.fcmp_ordered(">", b, a), builder.fcmp_unordered("uno", b, b)), b, a)

    return (a(a, b), generate) if _real(a, b) else None


@intrinsic
def relu_of(typing, a):
    """Zero for what is below zero; NaN is not (rule 13)."""

    def generate(context, builder, signature, args):
        zeros = ir.Constant(a.value, [0.0] * a.lanes)
        return builder.select(builder.fcmp_ordered("<", args[0], zeros), zeros, args[0])

    return (a(a), generate) if _real(a, a) else None


@intrinsic
def nan_in(typing, a, b):
    """A mask of the lanes in which a or b is NaN."""

    def generate(context, builder, signature, args):
        return builder.fcmp_unordered("uno", *args)

    return (Vector(types.boolean, a.lanes)(a, b), generate) if _real(a, b) else None


@intrinsic
def either(typing, a, b):
    """The lanes in which one of two masks is set."""

    def generate(context, builder, signature, args):
        return builder.or_(*args)

    return (a(a, b), generate) if a == b and a.dtype == types.boolean else None


@intrinsic
def some(typing, mask):
    """Is any lane of a mask set?"""

    def generate(context, builder, signature, args):
        bits = ir.IntType(mask.lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], bits), bits(0))

    return (types.boolean(mask), generate) if mask.dtype == types.boolean else None


@intrinsic
def window_places(typing, indices, at, own, column, step, width, size, cells, count, like):
    """indices[at + l] - (own + l*step) for the first `count` lanes of a vector of `like`, -1 for the others.

    With a mask of the lanes in which that is no cell of a window of size x size (2 or 3) in rows of `width` cells, the first of
    which begins in `column`; or the index is none of the plane, which has so many `cells`, less than 2**31.
    """
    lanes = _of(like).lanes
    kinds = types.Tuple((Vector(types.int32, lanes), Vector(types.boolean, lanes)))

    def generate(context, builder, signature, args):
        indices, at, own, column, step, width, size, cells, count, _ = args
        short, long = (ir.VectorType(ir.IntType(bits), lanes) for bits in (32, 64))

        def all_of(value: Any, kind: Any) -> Any:
            return _splat(builder, builder.trunc(value, kind.element) if kind is short else value, kind)

        number = ir.Constant(short, list(range(lanes)))
        index = builder.load(_pointer(context, builder, signature.args[0], indices, at, long), align=8)
        outside = builder.icmp_unsigned(">=", index, all_of(cells, long))
        ahead = builder.mul(number, all_of(step, short))
        place = builder.sub(builder.trunc(index, short), builder.add(all_of(own, short), ahead))
        three = builder.icmp_signed("==", size, ir.IntType(64)(3))
        width, size, place_in_row = all_of(width, short), all_of(size, short), place
        second = builder.sub(place, width)
        third = builder.select(three, builder.sub(second, width), second)
        for row in (second, third):  # the column in the window: what is in none of its rows is larger without its sign
            place_in_row = builder.select(builder.icmp_unsigned("<", row, place_in_row), row, place_in_row)
        inside = builder.icmp_unsigned("<", builder.add(place_in_row, builder.add(all_of(column, short), ahead)), width)
        right = builder.and_(builder.icmp_unsigned("<", place_in_row, size), inside)
        there = builder.icmp_signed("<", number, all_of(count, short))
        place = builder.select(there, place, ir.Constant(short, [-1] * lanes))
        wrong = builder.and_(there, builder.or_(outside, builder.not_(right)))
        return context.make_tuple(builder, kinds, (place, wrong))

    return kinds(indices, *[types.int64] * 8, like), generate


@intrinsic
def store_places(typing, near, to, places):
    """near[to + l] = places[l]"""

    def generate(context, builder, signature, args):
        builder.store(args[2], _pointer(context, builder, signature.args[0], args[0], args[1], places.value), align=4)
        return context.get_dummy_value()

    return types.void(near, types.int64, places), generate


@intrinsic
def equal_places(typing, places, place):
    """The lanes in which that is the place."""

    def generate(context, builder, signature, args):
        kind = places.value
        return builder.icmp_signed("==", args[0], _splat(builder, builder.trunc(args[1], kind.element), kind))

    return Vector(types.boolean, places.lanes)(places, types.int64), generate


def chosen_sums(size: int) -> Callable[..., Any]:
    """A function that adds to sum j of three, of which `size` are used, where a window of a row chose its column j."""

    @intrinsic
    def add(typing, near, line, gradients, at, place, sums):
        """The sums, plus the lanes of gradients[at:] in which near[line:] is place + j. (See `window_places`.)"""
        vector = _of(gradients)

        def generate(context, builder, signature, args):
            near, line, gradients, at, place, sums = args
            kind = ir.VectorType(ir.IntType(32), vector.lanes)
            found = builder.load(_pointer(context, builder, signature.args[0], near, line, kind), align=4)
            gradient = builder.load(_pointer(context, builder, signature.args[2], gradients, at, vector.value),
                                    align=min(vector.bits // 8, 8))
            totals = cgutils.unpack_tuple(builder, sums, 3)
            for j in range(size):
                wanted = _splat(builder, builder.add(builder.trunc(place, kind.element), kind.element(j)), kind)
                chosen = builder.icmp_signed("==", found, wanted)
                totals[j] = builder.select(chosen, builder.fadd(totals[j], gradient), totals[j])
            return context.make_tuple(builder, signature.return_type, totals)

        return sums(near, types.int64, gradients, types.int64, types.int64, sums), generate

    return add


# --- what is put together from these ------------------------------------------------------------------------------------


@inlined
def load_where(array, at, first, stop, other):
    """The cells [first, stop) of the vector at array[at], and `other` in the other lanes.

    These cells have to be in the array, the others need not be.
    """
    lanes = lanes_of(array)
    if at >= 0 and at + lanes <= array.size:
        return where(between(array, max(first, 0), min(stop, lanes)), load(array, at), other)
    for i in range(max(first, 0), min(stop, lanes)):
        other = load_lane(array, at + i, other, i)
    return other


@inlined
def store_first(array, at, vector, count, limit):
    """array[at:at + count] = vector[:count]. Cells from there to array[limit] may be overwritten."""
    lanes = lanes_of(array)
    if at + lanes <= limit:
        store(array, at, vector)
    else:
        for i in range(min(count, lanes)):
            store_lane(array, at + i, vector, i)


@inlined
def turn4(a, b, c, d):
    """A matrix of four rows, a quarter of a vector each cell, turned."""
    e, f, g, h = low_halves(a, b), low_halves(c, d), high_halves(a, b), high_halves(c, d)
    return even_quarters(e, f), odd_quarters(e, f), even_quarters(g, h), odd_quarters(g, h)


@inlined
def put_whole(array, at, vector, streams):
    """`stream` or `store`."""
    if streams:
        stream(array, at, vector)
    else:
        store(array, at, vector)


@part
def send(to, at, source, start, count, last):
    """Move source[start:start + count] to to[at:], past the caches where they fill lines, and return how many.

    Unless they are the `last` ones, what is left of a line stays, at source[start]. `source` goes on for a vector more.
    A `fence` has to follow in the end.
    """
    lanes = lanes_of(to)
    done = 0
    beyond = beyond_line(to, at)
    if beyond < 0:  # cells that lie across lines
        for i in range(0, count, lanes):
            store_first(to, at + i, load(source, start + i), count - i, at + count)
        return count
    if beyond > 0:
        done = min(lanes - beyond, count)
        store_first(to, at, load(source, start), done, at + done)
    while done + lanes <= count:
        stream(to, at + done, load(source, start + done))
        done += lanes
    if last:
        store_first(to, at + done, load(source, start + done), count - done, at + count)
        return count
    store(source, start, load(source, start + done))
    return done
