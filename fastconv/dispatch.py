"""The choice: one table of operation x algorithm x backend, and a pure function that picks from it.

:func:`select` looks at the geometry, the dtype and the settings, never at the data nor at the number of threads (the
same input gives the same bits with any of them). What it finds is a :class:`Plan`, which tells why it was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from . import im2col_gemm, memory, winograd
from . import options as _options
from .backends import Backend, Budget, CythonBackend, NumpyBackend
from .geometry import Conv2dGeometry, conv2d_geometry
from .jit import NumbaBackend
from .options import Settings

OPERATIONS = ("forward", "backward_data", "backward_weight")
#: conv2d with a weight that pack_weight made ready: it chooses by other costs, and may have other kernels.
PACKED = "packed"
ALGORITHMS = ("direct", "im2col", "implicit_gemm", "winograd")

#: The backends that have kernels. Poolings and lowerings have one algorithm each: they are called on these directly.
BACKENDS: dict[str, Backend] = {"cython": CythonBackend(), "numba": NumbaBackend(), "numpy": NumpyBackend()}


def _as_it_is(weight: np.ndarray, geometry: Conv2dGeometry) -> np.ndarray:
    return weight


@dataclass(frozen=True)
class Kernel:
    """One entry of the table.

    Attributes
    ----------
    run : callable
        Forward ``(x, weight, bias, relu, geometry, out, budget)``; backward data ``(dout, weight, geometry, out,
        budget, bias=None)``, where `bias` is added to the channels of `out`; backward weight ``(dout, x, geometry, out,
        budget)``.
        Operation ``packed``: as forward, with what `pack` gave in place of the weight.
    unsupported : callable
        ``(geometry, dtype) -> str or None``: why it cannot run this.
    nbytes : callable
        ``(geometry, dtype, threads, limit) -> int``: bytes of scratch, if possible within limit.
    pack : callable
        ``(weight, geometry)``: what operation ``packed`` takes in place of the weight, with the attribute ``nbytes``.
    """

    operation: str
    algorithm: str
    backend: str
    run: Callable[..., None]
    unsupported: Callable[[Conv2dGeometry, np.dtype], str | None]
    nbytes: Callable[[Conv2dGeometry, np.dtype, int, int | None], int]
    pack: Callable[[np.ndarray, Conv2dGeometry], Any] = _as_it_is


TABLE: dict[tuple[str, str, str], Kernel] = {}


def _register(kernel: Kernel) -> None:
    TABLE[kernel.operation, kernel.algorithm, kernel.backend] = kernel


def algorithms(operation: str, backend: str) -> tuple[str, ...]:
    """The algorithms that a backend has for an operation."""
    return tuple(name for name in ALGORITHMS if (operation, name, backend) in TABLE)


def _register_backend(backend: Backend) -> None:
    """Enter what a backend has: its own algorithms by their methods' names, and im2col, which any backend can do."""
    for operation in OPERATIONS:
        for algorithm in ALGORITHMS:
            run = getattr(backend, f"{algorithm}_{operation}", None)
            if run is not None:
                nbytes = getattr(backend, f"{algorithm}_bytes")
                _register(Kernel(operation, algorithm, backend.name, run,
                                 partial(getattr(backend, f"{algorithm}_unsupported"), operation),
                                 partial(_fixed_bytes, nbytes, operation)))
        _register(Kernel(operation, "im2col", backend.name, partial(getattr(im2col_gemm, operation), backend),
                         lambda geometry, dtype: None, partial(im2col_gemm.workspace, operation)))
    for algorithm in algorithms("forward", backend.name):
        kernel = replace(TABLE["forward", algorithm, backend.name], operation=PACKED)
        if hasattr(backend, f"{algorithm}_pack"):
            kernel = replace(kernel, run=getattr(backend, f"{algorithm}_packed"), pack=getattr(backend, f"{algorithm}_pack"),
                             nbytes=partial(_fixed_bytes, getattr(backend, f"{algorithm}_bytes"), PACKED))
        _register(kernel)


def _fixed_bytes(nbytes: Callable[..., int], operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int,
                 limit: int | None) -> int:
    """The scratch of an algorithm that has no smaller tiles to fall back on: it depends on the threads alone."""
    return nbytes(operation, geometry, dtype, threads)


for _backend in BACKENDS.values():
    _register_backend(_backend)


@dataclass(frozen=True)
class Candidate:
    """An algorithm that a plan considered.

    Attributes
    ----------
    algorithm : str
    workspace_bytes : int
        Scratch that it would use.
    reason : str
        Why it was or was not taken.
    """

    algorithm: str
    workspace_bytes: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """What :func:`plan_conv2d` found.

    Attributes
    ----------
    algorithm, backend : str
    isa : str or None
        Instruction set of the compiled kernels.
    flops : int
        Floating-point operations of the definition (a multiplication and an addition count as two); an algorithm may
        need fewer.
    workspace_bytes : int
        Scratch memory of one call.
    output_shape : tuple of int
    candidates : tuple of Candidate
        Every algorithm of this backend that can run this, with the reason why it was or was not taken.
    """

    algorithm: str
    backend: str
    isa: str | None
    flops: int
    workspace_bytes: int
    output_shape: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    _kernel: Kernel = field(repr=False, compare=False)
    _geometry: Conv2dGeometry = field(repr=False)
    _budget: Budget = field(repr=False)

    def run(self, *arguments: Any, **more: Any) -> None:
        """Run the kernel on checked arrays: the operation's two inputs (and bias and relu), then ``out``.

        Backward data takes ``bias=`` as well.
        """
        *inputs, out = arguments
        memory.check_bytes(f"algorithm {self.algorithm!r}", self.workspace_bytes)
        self._kernel.run(*inputs, self._geometry, out, self._budget, **more)

    def pack(self, weight: np.ndarray) -> Any:
        """What a plan for operation ``packed`` takes in place of a checked weight."""
        return self._kernel.pack(weight, self._geometry)


def check_algorithm(algorithm: Any) -> str:
    """Return `algorithm`, or raise TypeError or ValueError where it is no algorithm's name."""
    if not isinstance(algorithm, str):
        raise TypeError(f"algorithm must be a string, got {algorithm!r}")
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be 'auto' or one of {', '.join(map(repr, ALGORITHMS))}, got {algorithm!r}")
    return algorithm


def _operation_result(operation: str, geometry: Conv2dGeometry) -> tuple[int, ...]:
    return {"forward": geometry.output_shape, PACKED: geometry.output_shape, "backward_data": geometry.input_shape,
            "backward_weight": geometry.weight_shape}[operation]


def select(operation: str, geometry: Conv2dGeometry, dtype: np.dtype, settings: Settings, algorithm: str = "auto",
           threads: int = 1, isa: str | None = None) -> Plan:
    """Choose an algorithm. A pure function.

    Parameters
    ----------
    operation : {"forward", "backward_data", "backward_weight", "packed"}
    geometry : Conv2dGeometry
    dtype : numpy.dtype
        What is computed in.
    settings : Settings
        With `backend` and `accuracy` filled in.
    algorithm : str
        ``"auto"`` or the one that is forced.
    threads : int
        For the scratch that the plan reports, and how many threads share the limit; the choice does not depend on it.
    isa : str, optional
        For the report.

    Raises
    ------
    NotImplementedError
        Where the forced algorithm cannot do this, or does not exist on the backend.
    MemoryError
        Where the scratch exceeds the settings' workspace limit.
    ValueError
        Where Winograd is forced under ``accuracy="strict"``.
    """
    backend, limit = str(settings.backend), settings.workspace_limit
    if algorithm == "winograd" and settings.accuracy == "strict":
        raise ValueError("algorithm must not be 'winograd' with accuracy='strict', which never uses it")
    if algorithm != "auto" and (operation, algorithm, backend) not in TABLE:
        raise NotImplementedError(f"algorithm {algorithm!r} does not exist for {operation} on backend {backend!r}; "
                                  f"there are {', '.join(map(repr, algorithms(operation, backend)))}")
    able: list[Kernel] = []
    too_large: dict[str, int] = {}
    for name in algorithms(operation, backend):
        kernel = TABLE[operation, name, backend]
        why_not = kernel.unsupported(geometry, dtype)
        if why_not is not None:
            if name == algorithm:
                raise NotImplementedError(f"algorithm {name!r} on backend {backend!r} cannot do this: {why_not}")
            continue
        able.append(kernel)
        if name == "winograd" and settings.accuracy == "strict":
            continue
        least = kernel.nbytes(geometry, dtype, 1, limit)
        if limit is not None and least > limit:
            too_large[name] = least
            if name == algorithm:
                memory.check_bytes(f"algorithm {name!r}", least, limit)
    fitting = [kernel for kernel in able if kernel.algorithm not in too_large
               and not (kernel.algorithm == "winograd" and settings.accuracy == "strict")]
    if not fitting:
        name = min(too_large, key=too_large.__getitem__)  # im2col can do everything: only the limit stopped it
        raise MemoryError(f"no algorithm fits the workspace_limit of {limit:,} bytes; {name!r} needs the least, "
                          f"{too_large[name]:,} bytes")
    estimates = {kernel.algorithm: estimate(kernel.algorithm, operation, geometry, backend) for kernel in fitting}
    chosen = next((kernel for kernel in fitting if kernel.algorithm == algorithm), None) or \
        min(fitting, key=lambda kernel: (kernel.algorithm == "im2col", estimates[kernel.algorithm]))

    candidates = []
    for kernel in able:
        name = kernel.algorithm
        if name in too_large:
            reason = f"needs {too_large[name]:,} bytes of workspace, over the workspace_limit of {limit:,}"
        elif name == "winograd" and settings.accuracy == "strict":
            reason = "never with accuracy='strict'"
        elif name == algorithm:
            reason = "asked for"
        elif algorithm != "auto":
            reason = f"not asked for: algorithm={algorithm!r}"
        elif len(able) == 1:
            reason = f"the only one for {dtype}"
        elif name == "im2col" and kernel is not chosen:
            reason = "makes a column matrix: taken only where nothing else can do it"
        else:
            reason = f"estimated at {estimates[name]:.2f} times the arithmetic alone"
            reason += ", the least" if kernel is chosen else \
                f"; {chosen.algorithm} at {estimates[chosen.algorithm]:.2f}"
        candidates.append(Candidate(name, kernel.nbytes(geometry, dtype, threads, limit), reason))
    while threads > 1 and limit is not None and chosen.nbytes(geometry, dtype, threads, limit) > limit:
        threads -= 1  # scratch is per thread: fewer of them share the limit
    nbytes = chosen.nbytes(geometry, dtype, threads, limit)
    return Plan(chosen.algorithm, backend, isa, geometry.flops, nbytes, _operation_result(operation, geometry),
                tuple(candidates), chosen, geometry, Budget(threads, nbytes))


# What the algorithms cost beside the FMAs of the definition, in the unit of one FMA instruction. Fitted to the rows of
# bench/layers.py on a Zen 5, and implicit GEMM's copies on a Zen 4 (AVX-512, float32): each ranks the two kernels as their
# measured times do, but where these are within 4% of each other.
_LANES = winograd.LANES
_PANEL = 64  # pixels of a tile
_PANEL_FMAS = 4  # FMA instructions that a tile needs for one output channel and one term
_RUN, _ROW = 3.0, 13.0  # implicit GEMM: to pack one run of pixels of one term, and one term at all
_FLAT = 6.0  # implicit GEMM: to copy the rows that a panel sees, for each channel and unit of the strides
_DOTS, _DOT = 4.0, 2.0  # implicit GEMM: inner products for pixels that do not fill a vector, and each of them, in pixels
_OUT = 80.0  # to begin and end the sums of a tile's pixels of one channel, and to write them to memory
_STORE = 70.0  # direct: the same by way of scratch, as tiles that cross the ends of rows are
_UNROLLED_PART, _UNROLLED_BYTES = 8, 196608  # direct: where each column of taps has a copy of its own (direct.pxi),
_COPY = 8.0  # and to copy a row for one of them
_SPARSE = 0.25  # direct backward weight: what its copies cost where few taps share them
_ACROSS = 1.2  # direct backward weight: to add up the lanes of its sums,
_APART = 1.15  # or to keep them apart, where the sums are few and columns of taps have copies of their own (direct.pxi):
_APART_PRODUCTS, _APART_BYTES, _APART_PIXELS, _APART_ROWS = 48, 524288, 2048, 126
_SINGLE = 3.0  # direct backward data: one output channel, whose FMAs wait for each other and for loads
_SPREAD = 0.4  # direct backward data: pixels of one parity class are few, and are spread when they are stored
_TURN = 2.5  # backward data: to turn one weight, which pays where many pixels use it
_GATHER = 25.0  # implicit GEMM's backward data: to store a vector of columns and to gather it
_COLUMNS = 65536  # pixels times taps beyond which that cuts an image into bands, which overlap
_WINDOW, _PIXEL = 3.0, 0.5  # implicit GEMM's backward weight: to pack a vector of a window, and to turn a cell of a pixel,
_WEIGHT, _SHORT = 2.4, 1.1  # to write a weight's gradient to memory and turn it; its sums are short
_INEXACT = 1.05  # Winograd: it must win by so much, because its error is larger
_COLUMN = 100.0  # im2col: to write a term's pixels to memory and read them again


def estimate(algorithm: str, operation: str, geometry: Conv2dGeometry, backend: str = "cython") -> float:
    """Predicted time of an algorithm over the time of the definition's FMAs alone, on one thread. A pure function."""
    of_its_own = getattr(BACKENDS[backend], "estimate", None)  # another compiler's kernels have other costs
    if of_its_own is not None and (found := of_its_own(algorithm, operation, geometry)) is not None:
        return float(found)
    terms = geometry.channels // geometry.groups * geometry.taps
    rows = geometry.out_channels // geometry.groups
    height, width = geometry.out_size
    if operation == "backward_data":
        terms, rows = rows * geometry.taps, geometry.channels // geometry.groups
        height, width = (-(-n // s) for n, s in zip(geometry.in_size, geometry.stride, strict=True))
    pixels = max(geometry.batch, 1) * geometry.positions
    turn, weight = _TURN * _LANES / pixels, _WEIGHT * _LANES / pixels
    if algorithm == "im2col":
        return 1 + (_COLUMN + _OUT) / (_PANEL_FMAS * rows)
    if algorithm == "direct":
        length = width + (geometry.kernel[1] - 1) * geometry.dilation[1] // geometry.stride[1]
        vectors = -(-((height - 1) * length + width) // _LANES)
        waste = vectors * _LANES / (height * width)
        if rows <= 2:  # row by row: nothing between rows, nothing by way of scratch
            return _SINGLE if operation == "backward_data" else 1.0
        if operation == "backward_weight":
            band = min(height, max(_APART_PIXELS // width, 1)) + (geometry.kernel[0] - 1) * geometry.dilation[0]
            if (geometry.stride == (1, 1) and rows * geometry.kernel[0] >= _APART_PRODUCTS
                    and terms // geometry.kernel[0] * band * width * 4 <= _UNROLLED_BYTES
                    and min(rows, _APART_ROWS) * terms * 4 * _LANES <= _APART_BYTES):
                return _APART + weight
            return _ACROSS * waste + _SPARSE * (geometry.stride != (1, 1) or geometry.taps == 1) + weight
        copies = geometry.kernel[1] * (height + (geometry.kernel[0] - 1) * geometry.dilation[0] // geometry.stride[0])
        if (operation in ("forward", PACKED) and geometry.stride[1] == 1 and _UNROLLED_PART * (length - width) >= width
                and terms // geometry.taps * copies * width * 4 <= _UNROLLED_BYTES):  # a copy for each column of taps
            whole = -(-height * width // _LANES) * _LANES / (height * width)
            return whole + _COPY * copies / (rows * geometry.taps * height * width / _LANES) + _OUT / (_PANEL_FMAS * terms)
        apart = 0.0
        if operation == "backward_data":
            apart = _SPREAD * (geometry.stride != (1, 1)) + _SPARSE * (geometry.taps == 1) + turn
        row = -(-width // _LANES) * _LANES
        if 3 * _LANES <= row <= length:  # tiles that begin with each row
            return row / width + apart + _OUT / (_PANEL_FMAS * terms)
        return waste + apart + (_OUT + _STORE) / (_PANEL_FMAS * terms)
    if algorithm == "implicit_gemm":
        if operation == "backward_data":
            again = (geometry.extent[0] - 1) // geometry.stride[0]  # rows of the columns that two bands share
            band = max(_COLUMNS // geometry.taps // geometry.out_size[1] - again, 1)
            overlap = 1 + again / band if band < geometry.out_size[0] else 1.0
            return overlap * geometry.positions / (height * width) * (1 + _GATHER / (terms // geometry.taps)) + turn
        if operation == "backward_weight":
            channels, taps = terms // geometry.taps, geometry.taps
            side_by_side = geometry.kernel[1] if geometry.dilation[1] == 1 else 1  # taps of one run
            runs = taps // side_by_side
            apart, together = runs * -(-side_by_side * channels // _LANES), -(-terms // _LANES)
            pack = _WINDOW * (apart + runs)
            fmas = min(apart * rows, together * rows + pack)
            cells = math.prod(s if k > 1 else 1 for s, k in zip(geometry.stride, geometry.kernel, strict=True))
            return (_SHORT * fmas + _PIXEL * (channels * cells + rows)) / (rows * terms / _LANES) + weight
        rest = pixels % _LANES
        whole = pixels - rest
        if rest <= _LANES // 4:  # a few pixels behind the last whole vector
            waste = (whole + min(_DOTS + _DOT * rest, _LANES) * (rest > 0)) / pixels
        else:
            waste = (whole + _LANES) / pixels
        pack = _RUN * (_PANEL / width + 1) + _ROW + _FLAT * geometry.stride[0] * geometry.stride[1] / geometry.taps
        return waste + pack / (_PANEL_FMAS * rows) + _OUT / (_PANEL_FMAS * terms)
    if algorithm == "winograd":
        fmas = terms * rows * height * width * max(geometry.batch, 1) * geometry.groups / _LANES  # of the definition
        return _INEXACT * winograd.least_cost(operation, geometry) / fmas
    raise ValueError(f"no estimate for algorithm {algorithm!r}")


_select = lru_cache(maxsize=4096)(select)


#: Below so many floating-point operations a call runs on one thread: waking another takes longer.
SERIAL_FLOPS = 2_000_000


def product_threads(flops: int, settings: Settings | None = None) -> int:
    """Threads that a call made now in this thread uses for so many multiplications and additions."""
    return 1 if flops < SERIAL_FLOPS else _options.effective_threads(settings or _options.current())


def plan(operation: str, geometry: Conv2dGeometry, dtype: np.dtype, algorithm: str) -> Plan:
    """The plan for a call made now in this thread. Plans are kept by all that they depend on."""
    settings = _options.current()
    isa = None
    if settings.backend == "cython":
        from . import native

        isa = native.isa
    elif settings.backend not in BACKENDS:
        raise NotImplementedError(f"backend {settings.backend!r} has no kernels yet; there are "
                                  f"{', '.join(map(repr, BACKENDS))}")
    threads = product_threads(geometry.flops, settings)
    return _select(operation, geometry, dtype, settings, algorithm, threads, isa)


def backend() -> Backend:
    """The backend in force in this thread, for the operations that have one algorithm."""
    name = str(_options.current().backend)
    if name not in BACKENDS:
        raise NotImplementedError(f"backend {name!r} has no kernels yet; there are {', '.join(map(repr, BACKENDS))}")
    return BACKENDS[name]


#: Below so many elements that are read or written a pooling or a lowering runs on one thread.
SERIAL_ELEMENTS = 2**16


def threads(elements: int) -> int:
    """Threads that a call made now in this thread uses for a pooling or a lowering that touches so many elements."""
    return 1 if elements < SERIAL_ELEMENTS else _options.effective_threads(_options.current())


#: Fewer images are not worth a choice.
_POOLED_IMAGES = 4


def pooled_forward(geometry: Conv2dGeometry, dtype: np.dtype) -> int | None:
    """Threads for a convolution whose outputs are best pooled image by image, while they are in a cache; or None."""
    if (geometry.batch < _POOLED_IMAGES or _options.current().workspace_limit is not None
            or backend().pooled_forward_unsupported(geometry, dtype) is not None):
        return None
    whole = plan("forward", geometry, dtype, "auto")
    threads = whole._budget.threads  # which take images
    # What other algorithms gain is more than what is saved here.
    return threads if whole.algorithm == "direct" and geometry.batch >= 2 * threads else None


#: A cell that a max pooling chose costs a load and an FMA for each row of taps and channel, a cell that it was chosen from
#: a share of a product at the speed of the arithmetic. On a Zen 4 the first is 1.4 to 6 times as fast within these limits
#: (windows that do not overlap much; few channels), and 0.65 to 1.3 times beyond them.
_CELLS_FOR_ONE, _POOLED_CHANNELS = 2, 8


def pooled_backward(geometry: Conv2dGeometry, chosen: int, dtype: np.dtype) -> Backend | None:
    """The backend in force, if the gradients of a convolution are best made of the cells that a max pooling chose, or None.

    `chosen` is how many cells of a plane the pooling has chosen.
    """
    pays = _CELLS_FOR_ONE * chosen <= geometry.positions and geometry.channels <= _POOLED_CHANNELS
    return backend() if pays and backend().pooled_backward_unsupported(geometry, dtype) is None else None


# What the gradients cost that are made of what is not zero in dout (native/sparse_gradient.h), in cycles of a Zen 4: to look
# at a cell; to go on to the next position, once for FC_SPARSE_ROWS of taps, without and with the image's gradient; what a cell
# that is not zero costs for a row of taps, by its bytes, without and with it. An FMA of the others costs one.
_SPARSE_CELL, _SPARSE_POSITION, _SPARSE_ROWS = 1.0, (25.0, 40.0), 5
_SPARSE_ROW, _SPARSE_LONG_ROW = (1.3, 1.2), (1.9, 3.0)
#: Threads share images.
_SPARSE_IMAGES = 16


@lru_cache(maxsize=4096)
def sparse_limit(geometry: Conv2dGeometry, itemsize: int, **algorithms: str) -> float:
    """Up to which part of `dout` that is not zero this is the better way to the gradients. A pure function.

    `algorithms` are the others, by the operation: backward_weight's and, if it is asked for, backward_data's.
    """
    filters, taps, data = geometry.out_channels, geometry.kernel[1], "backward_data" in algorithms
    rows, groups = geometry.channels * geometry.kernel[0], geometry.channels * -(-geometry.kernel[0] // _SPARSE_ROWS)
    others = sum(estimate(algorithm, operation, geometry) for operation, algorithm in algorithms.items())
    others *= filters * rows * taps * itemsize / (4 * _LANES)
    before = _SPARSE_CELL * filters + _SPARSE_POSITION[data] * groups
    long = taps * itemsize > 2 * _LANES
    return (others - before) / (filters * rows * (_SPARSE_LONG_ROW if long else _SPARSE_ROW)[data])


def sparse_backward(geometry: Conv2dGeometry, dtype: np.dtype, data: bool) -> tuple[Backend, float] | None:
    """The backend in force and the limit, if gradients are best made of what is not zero in `dout` up to a limit, or None.

    `data`: the image's gradient is asked for.
    """
    able = backend()
    if (geometry.batch < _SPARSE_IMAGES or _options.current().workspace_limit is not None
            or able.sparse_backward_unsupported(geometry, dtype) is not None):
        return None
    operations = ("backward_data", "backward_weight") if data else ("backward_weight",)
    others = {operation: plan(operation, geometry, dtype, "auto").algorithm for operation in operations}
    limit = sparse_limit(geometry, dtype.itemsize, **others)
    return (able, limit) if limit > 0 else None


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """What a result of `dtype` is computed in: float16 in float32 (rule 9), anything else in itself."""
    dtype = dtype.newbyteorder("=")
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def plan_conv2d(x_shape: Any, weight_shape: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1,
                *, dtype: Any = "float32", direction: str = "forward", algorithm: str = "auto") -> Plan:
    """What a convolution would do, without doing it.

    Parameters
    ----------
    x_shape : tuple of int
        ``(N, C, H, W)``, or ``(C, H, W)`` for a batch of one.
    weight_shape : tuple of int
        ``(K, C/groups, KH, KW)``
    stride, padding, dilation, groups
        As in :func:`conv2d`.
    dtype : dtype
        Of the arrays.
    direction : {"forward", "backward_data", "backward_weight"}
        Which of the three operations.
    algorithm : str
        As in :func:`conv2d`.

    Returns
    -------
    Plan
        Frozen, with ``.algorithm``, ``.backend``, ``.isa``, ``.flops``, ``.workspace_bytes`` (bytes), ``.output_shape``
        and ``.candidates``.

    Raises
    ------
    ValueError, TypeError, NotImplementedError, MemoryError
        What the call itself would raise.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.plan_conv2d((8, 64, 56, 56), (64, 64, 3, 3), padding=1).output_shape
    (8, 64, 56, 56)
    """
    if direction not in OPERATIONS:
        raise ValueError(f"direction must be one of {', '.join(map(repr, OPERATIONS))}, got {direction!r}")
    if np.dtype(dtype).kind not in "biufc":
        raise TypeError(f"dtype must be one of numbers, got {dtype!r}")
    geometry = conv2d_geometry(x_shape, weight_shape, stride, padding, dilation, groups, x_name="x_shape",
                               weight_name="weight_shape")
    found = plan(direction, geometry, compute_dtype(np.dtype(dtype)), check_algorithm(algorithm))
    if len(x_shape) == 3 and direction != "backward_weight":  # as the call, whose result has no batch axis then
        return replace(found, output_shape=found.output_shape[1:])
    return found
