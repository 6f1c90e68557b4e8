"""The public functions: they check arrays, ask for a geometry and a plan, and hand both to a kernel.

Conventions of all of them. Arrays are NCHW: ``x`` is ``(N, C, H, W)``, or ``(C, H, W)`` for a batch of one, which gives
a result without the batch axis. Array-likes are taken by ``np.asarray``; any strides, read-only and byte-swapped arrays
will do, and no input is written to. A result is C-contiguous, writable and owns its memory, unless ``out=`` is given:
that may have any strides, is filled and returned; a wrong shape or an overlap with an input is a ValueError, a wrong
dtype a TypeError. float32 and float64 stay what they are; float16 is computed in float32 and returned as float16; mixed
dtypes follow ``np.result_type``; integers and complex numbers give what ``np.matmul`` gives.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from . import dispatch, memory
from . import padding as padding_modes
from .backends import KERNEL_DTYPES, cleared
from .geometry import (
    Conv2dGeometry,
    Pool2dGeometry,
    as_flag,
    as_int,
    as_shape,
    check_padding_mode,
    conv2d_geometry,
    conv_transpose2d_geometry,
    pool2d_geometry,
    unpool2d_geometry,
    window2d_geometry,
)
from .options import Settings
from .options import raw as raw_settings

Array = np.ndarray

GRADIENTS = ("dx", "dw", "db")


# --- arrays -----------------------------------------------------------------------------------------------------------


def _as_array(name: str, value: Any, ranks: tuple[int, ...]) -> Array:
    """`value` as an array of numbers with one of the `ranks`, or TypeError or ValueError that names it."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: its mask would be lost; pass {name}.filled(...)")
    if value is None:
        raise TypeError(f"{name} must be an array, got None")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is not an array: {error}") from None
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
    if array.ndim not in ranks:
        axes = " or ".join(map(str, ranks))
        raise ValueError(f"{name} must have {axes} axes, got {array.ndim}: shape "
                         f"{array.shape}")
    return array


def _common_dtype(*arrays: Array | None) -> np.dtype:
    return np.result_type(*(array.dtype for array in arrays if array is not None)).newbyteorder("=")


def _prepared(name: str, array: Array, dtype: np.dtype) -> Array:
    """`array` as the kernels want it: C-contiguous, aligned, of native byte order and this dtype."""
    flags, same = array.flags, array.dtype == dtype
    if same and flags.c_contiguous and flags.aligned:
        return array
    if not same or not flags.c_contiguous:
        # refused before the copy: a view with zero strides may be larger than any memory
        memory.check_bytes(f"a contiguous {dtype} copy of {name}, shape {array.shape},", array.size * dtype.itemsize)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(array, dtype, ["C", "A"])


def _batched(array: Array, rank: int = 4) -> Array:
    return array if array.ndim == rank else array[None]


class _Result:
    """Where a result goes: a new array or the caller's ``out``, by way of a temporary one where kernels need it."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, compute: np.dtype, out: Any,
                 **inputs: Array | None) -> None:
        self.final: Array
        if out is None:
            self.final = memory.empty("the result", shape, dtype)
        else:
            self.final = _checked_out(out, shape, dtype, inputs)
        direct = self.final.dtype == compute and self.final.flags.c_contiguous and self.final.flags.aligned
        #: C-contiguous, of the compute dtype: what the kernel fills
        self.array = self.final if direct else memory.empty("the result", shape, compute)

    def __call__(self) -> Array:
        """The filled result."""
        if self.array is not self.final:
            with np.errstate(over="ignore", invalid="ignore"):
                np.copyto(self.final, self.array, casting="unsafe")
        return self.final


def _checked_out(out: Any, shape: tuple[int, ...], dtype: np.dtype, inputs: dict[str, Array | None],
                 name: str = "out") -> Array:
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    if any(step == 0 and n > 1 for step, n in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"{name} must not overlap itself, got strides {out.strides} for shape {out.shape}")
    for other, array in inputs.items():
        if array is not None and _share_memory(out, array):
            raise ValueError(f"{name} must not overlap {other}: they share memory")
    return out


def _share_memory(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # the stub knows only -1 and 0
    except np.exceptions.TooHardError:  # rather refuse than compute with what is being overwritten
        return True


# --- lowering ---------------------------------------------------------------------------------------------------------


def im2col(x: ArrayLike, filter_h: int, filter_w: int, stride: Any = 1, pad: Any = 0, *, dilation: Any = 1,
           layout: str = "rows", pad_value: Any = 0, out: Array | None = None) -> Array:
    """Lower an image to a matrix whose rows or columns are the windows that a filter sees.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        Any numeric dtype, which the result keeps.
    filter_h, filter_w : int
        Height and width of the window.
    stride, dilation : int or pair of int
        Step of the window, and distance of its cells, ``(h, w)``.
    pad : int, pair, pair of pairs or {"valid", "same", "same_lower", "full"}
        As `padding` in :func:`conv2d`.
    layout : {"rows", "columns", "windows", "cs231n"}
        Shape of the result, with ``P = OH*OW`` positions and ``R = C*filter_h*filter_w`` cells in a window:
        ``"rows"`` ``(N*P, R)`` as in *Deep Learning from Scratch*; ``"columns"`` ``(N, R, P)`` as
        ``torch.nn.functional.unfold``; ``"windows"`` ``(N, C, filter_h, filter_w, OH, OW)`` as Chainer and DeZero;
        ``"cs231n"`` ``(R, P*N)``, where N runs fastest. A 3-D `x` drops N.
    pad_value : number
        What padding cells hold; must fit the dtype of `x`.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        Where shapes and parameters do not fit together.
    TypeError
        Where `x` is not made of numbers, or a parameter not of ints.
    MemoryError
        Where the matrix is larger than this machine's memory, before it is allocated.

    Examples
    --------
    >>> import numpy as np
    >>> im2col(np.zeros((10, 3, 7, 7)), 5, 5).shape
    (90, 75)
    """
    image = _as_array("x", x, (3, 4))
    geometry = window2d_geometry(image.shape, filter_h, filter_w, stride, pad, dilation)
    shape = geometry.columns_shape(layout)
    if image.ndim == 3 and layout in ("columns", "windows"):
        shape = shape[1:]
    dtype = image.dtype.newbyteorder("=")
    value = _checked_pad_value(pad_value, dtype)
    result = _Result(shape, dtype, dtype, out, x=image)
    if result.array.size:
        dispatch.backend().im2col(_prepared("x", _batched(image), dtype), geometry, layout, value,
                                  result.array, dispatch.threads(result.array.size))
    return result()


def _checked_pad_value(value: Any, dtype: np.dtype) -> Any:
    number = np.asarray(value)
    if number.ndim or number.dtype.kind not in "biufc":
        raise TypeError(f"pad_value must be a number, got {value!r}")
    with np.errstate(all="ignore"):
        try:
            kept = dtype.type(value)
        except (OverflowError, TypeError, ValueError):
            kept = None
    if kept is None or (dtype.kind in "biu" and kept != value) or (dtype.kind == "f" and number.dtype.kind == "c"):
        raise ValueError(f"pad_value must fit the dtype of x, {dtype}, got {value!r}")
    return kept


def col2im(col: ArrayLike, input_shape: Any, filter_h: int, filter_w: int, stride: Any = 1, pad: Any = 0, *,
           dilation: Any = 1, layout: str = "rows", out: Array | None = None) -> Array:
    """Add the windows of a column matrix up in an image: the adjoint of :func:`im2col`.

    Parameters
    ----------
    col : array_like
        A column matrix in `layout`'s shape. Any numeric dtype, which the result keeps; float16 adds up in float32.
    input_shape : tuple of int
        ``(N, C, H, W)`` or ``(C, H, W)``: the shape of the result.
    filter_h, filter_w, stride, pad, dilation, layout
        As in :func:`im2col`. What falls on padding is dropped.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray
        Of shape `input_shape`.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As :func:`im2col`, and where `col` has not the shape that im2col gives.
    """
    matrix = _as_array("col", col, (2, 3, 4, 5, 6))
    geometry = window2d_geometry(input_shape, filter_h, filter_w, stride, pad, dilation, name="input_shape")
    shape = as_shape("input_shape", input_shape, (3, 4))
    expected = geometry.columns_shape(layout)
    if len(shape) == 3 and layout in ("columns", "windows"):
        expected = expected[1:]
    if matrix.shape != expected:
        raise ValueError(f"col must have shape {expected} for layout {layout!r} and input_shape {shape}, got "
                         f"{matrix.shape}")
    dtype = matrix.dtype.newbyteorder("=")
    compute = dispatch.compute_dtype(dtype)
    result = _Result(shape, dtype, compute, out, col=matrix)
    if result.array.size:
        prepared = _prepared("col", matrix, compute).reshape(geometry.columns_shape(layout))
        dispatch.backend().col2im(prepared, geometry, layout, _batched(result.array), dispatch.threads(matrix.size))
    return result()


# --- convolution ------------------------------------------------------------------------------------------------------


class PackedWeight:
    """A weight made ready for :func:`conv2d` by :func:`pack_weight`. It holds a copy: later changes do not reach it.

    Attributes
    ----------
    algorithm, backend : str
        What it was packed for.
    isa : str or None
        Instruction set of the compiled kernels.
    shape : tuple of int
        ``(K, C/groups, KH, KW)``
    dtype : numpy.dtype
    nbytes : int
        Bytes that the handle holds: the weight, and for ``"winograd"`` its filters transformed, 36 values for each 3x3
        filter (16 where small images take smaller tiles; 36 for 5x5) and up to 15 more output channels.

    Notes
    -----
    Where a call computes in another dtype, or under another backend or instruction set, the weight is used as it is, by
    the same algorithm.
    """

    def __init__(self, weight: Array, geometry: Conv2dGeometry, plan: dispatch.Plan) -> None:
        memory.check_bytes(f"a packed weight of shape {weight.shape} and dtype {weight.dtype}", weight.nbytes)
        self._weight = np.array(weight, order="C")
        self._weight.flags.writeable = False
        self._geometry = geometry
        self._compute = dispatch.compute_dtype(weight.dtype)
        self._filters = plan.pack(_prepared("weight", self._weight, self._compute))
        self.algorithm, self.backend, self.isa = plan.algorithm, plan.backend, plan.isa

    @property
    def shape(self) -> tuple[int, ...]:
        return self._weight.shape

    @property
    def dtype(self) -> np.dtype:
        return self._weight.dtype

    @property
    def nbytes(self) -> int:
        nbytes: int = self._filters.nbytes
        return nbytes if self._weight.dtype == self._compute else nbytes + self._weight.nbytes

    def __repr__(self) -> str:
        return (f"PackedWeight(shape={self.shape}, dtype={self.dtype}, algorithm={self.algorithm!r}, "
                f"backend={self.backend!r}, isa={self.isa!r}, nbytes={self.nbytes:,})")

    def check(self, geometry: Conv2dGeometry, algorithm: str) -> None:
        """Raise ValueError where it was packed for another geometry or algorithm."""
        for name in ("channels", "in_size", "stride", "pads", "dilation", "groups"):
            packed, asked = getattr(self._geometry, name), getattr(geometry, name)
            if packed != asked:
                raise ValueError(f"weight was packed for {name} {packed}, but this call has {asked}")
        if algorithm not in ("auto", self.algorithm):
            raise ValueError(f"weight was packed for algorithm {self.algorithm!r}, not for {algorithm!r}")

    def plan(self, geometry: Conv2dGeometry, compute: np.dtype) -> tuple[dispatch.Plan, Any]:
        """The plan for a call that computes in `compute`, and what its kernel takes in place of the weight."""
        if compute == self._compute:
            plan = dispatch.plan(dispatch.PACKED, geometry, compute, self.algorithm)
            if (plan.backend, plan.isa) == (self.backend, self.isa):
                return plan, self._filters
        return (dispatch.plan("forward", geometry, compute, self.algorithm),
                _prepared("weight", self._weight, compute))


def pack_weight(weight: ArrayLike, input_shape: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                groups: int = 1, *, algorithm: str = "auto") -> PackedWeight:
    """Make a weight that does not change ready for many calls of :func:`conv2d` (inference).

    Parameters
    ----------
    weight : array_like, (K, C/groups, KH, KW)
        Copied: what happens to it later does not reach the handle.
    input_shape : tuple of int
        ``(N, C, H, W)`` or ``(C, H, W)`` of the images to come; another batch size will do.
    stride, padding, dilation, groups, algorithm
        As in :func:`conv2d`. ``"auto"`` chooses once, knowing that filters need not be transformed in each call.

    Returns
    -------
    PackedWeight
        Takes the place of `weight` in :func:`conv2d`, which raises ValueError where the rest of the geometry is
        another. Its ``nbytes`` says what it holds.

    Raises
    ------
    ValueError, TypeError, NotImplementedError, MemoryError
        As :func:`conv2d`.
    """
    array = _as_array("weight", weight, (4,))
    geometry = conv2d_geometry(as_shape("input_shape", input_shape, (3, 4)), array.shape, stride, padding, dilation,
                               groups, x_name="input_shape")
    plan = dispatch.plan(dispatch.PACKED, geometry, dispatch.compute_dtype(array.dtype),
                         dispatch.check_algorithm(algorithm))
    return PackedWeight(array, geometry, plan)


class _SmallCall(NamedTuple):
    """A convolution so small that checking its arguments would take longer than computing it, made ready once."""

    run: Any
    settings: Settings
    module: Any
    kernels: Any

    def still_right(self) -> bool:
        """Whether a call made now would be planned as this one was."""
        return self.settings is raw_settings() and self.module.kernels is self.kernels


#: By everything that the checks, the geometry and the choice look at. Emptied where it has grown too long.
_small_calls: dict[Any, _SmallCall] = {}
_SMALL_CALLS = 1024

#: The module whose ``kernels`` make small calls of a backend ready: those that they have a class for.
_SMALL_KERNELS = {"cython": ".native", "numba": ".jit.direct"}


def _keep_small_call(key: Any, make: str, plans: Iterable[dispatch.Plan], geometry: Conv2dGeometry,
                     arrays: Iterable[Array | None], *arguments: Any) -> None:
    """Remember a call that passed all checks, where it is the direct algorithm on one thread and one dtype.

    `make` names the class of the kernels that makes it ready, from the geometry, the dtype and `arguments`.
    """
    settings = raw_settings()
    dtypes = {array.dtype for array in arrays if array is not None}
    if geometry.flops >= dispatch.SERIAL_FLOPS or not geometry.batch or settings.workspace_limit is not None \
            or len(dtypes) != 1:
        return
    home, *others = {_SMALL_KERNELS.get(plan.backend) if plan.algorithm == "direct" else None for plan in plans}
    if home is None or others:
        return
    module = importlib.import_module(home, __package__)
    make_ready = getattr(module.kernels, make, None)
    if make_ready is None:
        return
    if len(_small_calls) >= _SMALL_CALLS:
        _small_calls.clear()
    ready = make_ready(geometry, dtypes.pop(), *arguments)
    _small_calls[key] = _SmallCall(ready, settings, module, module.kernels)


class _CheckedCall(NamedTuple):
    """What the checks of a larger convolution found, which take half of the time of all that is done before a kernel runs."""

    geometry: Conv2dGeometry
    dtype: np.dtype
    relu: bool

    def run(self, x: Any, weight: Any, bias: Any, algorithm: str) -> Array:
        """conv2d of other arrays with the same shapes and dtypes; it is planned anew, because settings may be others."""
        plan = dispatch.plan("forward", self.geometry, self.dtype, algorithm)
        shape = self.geometry.output_shape if x.ndim == 4 else self.geometry.output_shape[1:]
        result = memory.empty("the result", shape, self.dtype)
        plan.run(_prepared("x", _batched(x), self.dtype), _prepared("weight", weight, self.dtype),
                 None if bias is None else _prepared("bias", bias, self.dtype), self.relu, _batched(result))
        return result


#: As `_small_calls`, and as long.
_checked_calls: dict[Any, _CheckedCall] = {}


def _keep_checks(key: Any, geometry: Conv2dGeometry, dtype: np.dtype, relu: bool) -> None:
    """Remember that a call passed all checks, where it is too large to be made ready."""
    if geometry.flops < dispatch.SERIAL_FLOPS:
        return
    if len(_checked_calls) >= _SMALL_CALLS:
        _checked_calls.clear()
    _checked_calls[key] = _CheckedCall(geometry, dtype, relu)


def _checked_activation(activation: Any, dtype: np.dtype) -> bool:
    if activation is None:
        return False
    if not isinstance(activation, str):
        raise TypeError(f"activation must be None or 'relu', got {activation!r}")
    if activation != "relu":
        raise ValueError(f"activation must be None or 'relu', got {activation!r}")
    if dtype.kind == "c":
        raise TypeError(f"activation 'relu' needs real numbers, got dtype {dtype}")
    return True


def _checked_bias(bias: Any, channels: int) -> Array | None:
    if bias is None:
        return None
    array = _as_array("bias", bias, (0, 1, 2, 3, 4))
    if array.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), one for each output channel, got {array.shape}")
    return array


def conv2d(x: ArrayLike, weight: ArrayLike | PackedWeight, bias: ArrayLike | None = None, stride: Any = 1,
           padding: Any = 0, dilation: Any = 1, groups: int = 1, *, activation: str | None = None,
           algorithm: str = "auto", padding_mode: str = "zeros", out: Array | None = None) -> Array:
    """Two-dimensional convolution (cross-correlation: the filter is not flipped).

    ``out[n, k, i, j] = bias[k] + sum over c, a, b of x[n, c, i*stride + a*dilation - pad, ...] * weight[k, c, a, b]``

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        Images.
    weight : array_like, (K, C/groups, KH, KW), or PackedWeight
        Filters.
    bias : array_like, (K,), optional
        Added to each output channel.
    stride, dilation : int or pair of int
        Step of the filter, and distance of its taps, ``(h, w)``.
    padding : int, pair, pair of pairs or {"valid", "same", "same_lower", "full"}
        Cells of zeros around the image: one number, ``(h, w)`` or ``((top, bottom), (left, right))``. ``"valid"`` is 0;
        ``"same"`` gives an output of ``ceil(size/stride)``, the odd cell at the end (``"same_lower"``: at the start);
        ``"full"`` is ``dilation*(K-1)`` on each side. Padding takes part in the arithmetic: an infinite weight over
        padding gives NaN.
    groups : int
        The channels are cut into this many groups, each with its own ``K/groups`` filters; ``groups=C`` is a depthwise
        convolution.
    activation : {None, "relu"}
        Applied to the result; ReLU keeps NaN.
    algorithm : {"auto", "direct", "im2col", "implicit_gemm", "winograd"}
        ``"auto"`` chooses by the geometry (see :func:`plan_conv2d`).
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What padding holds, as in PyTorch: zeros; the image mirrored in its edge cells (less padding than the image is
        large); its edge cells; or the image over again (at most once). For all but zeros a padded copy is made.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray, (N, K, OH, OW) or (K, OH, OW)
        With the dtype ``np.result_type(x, weight, bias)``.

    Raises
    ------
    ValueError
        Where shapes and parameters do not fit together.
    TypeError
        Where an array is not made of numbers, or a parameter not of ints.
    NotImplementedError
        Where the algorithm asked for cannot do this.
    MemoryError
        Where the result or the scratch memory is too large, before it is allocated.

    Examples
    --------
    >>> import numpy as np
    >>> conv2d([[[1., 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]]], [[[[2., 0, 1], [0, 1, 2], [1, 0, 2]]]])
    array([[[15., 16.],
            [ 6., 15.]]])
    """
    key = None
    # True and 1.0 are the same key as 1, but not the same argument; a list is no key at all
    if (out is None and type(x) is type(weight) is np.ndarray and (bias is None or type(bias) is np.ndarray)
            and type(stride) is type(dilation) is type(groups) is int and type(padding) in (int, str)
            and type(algorithm) is str and (activation is None or type(activation) is str)
            and type(padding_mode) is str and padding_mode == "zeros"):
        key = (x.shape, x.dtype, weight.shape, weight.dtype, bias is not None and (bias.shape, bias.dtype), stride,
               padding, dilation, groups, activation, algorithm)
        call = _small_calls.get(key)
        if call is not None and call.still_right():
            small = call.run(x, weight, bias)
            if small is not None:
                return small
        checked = _checked_calls.get(key)
        if checked is not None:
            return checked.run(x, weight, bias, algorithm)
    image = _as_array("x", x, (3, 4))
    algorithm = dispatch.check_algorithm(algorithm)
    packed = weight if isinstance(weight, PackedWeight) else None
    filters = packed._weight if packed is not None else _as_array("weight", weight, (4,))
    geometry = conv2d_geometry(image.shape, filters.shape, stride, padding, dilation, groups)
    if packed is not None:
        packed.check(geometry, algorithm)
    seen, geometry = _seen_by_windows(image, geometry, padding_mode)
    offset = _checked_bias(bias, geometry.out_channels)
    dtype = _common_dtype(image, filters, offset)
    compute = dispatch.compute_dtype(dtype)
    relu = _checked_activation(activation, dtype)
    ready: Any = None
    if packed is not None:
        plan, ready = packed.plan(geometry, compute)
    else:
        plan = dispatch.plan("forward", geometry, compute, algorithm)
    if key is not None and dtype == compute:
        _keep_small_call(key, "SmallForward", (plan,), geometry, (image, filters, offset), image.ndim == 4, relu)
        _keep_checks(key, geometry, dtype, relu)
    shape = geometry.output_shape if image.ndim == 4 else geometry.output_shape[1:]
    result = _Result(shape, dtype, compute, out, x=image, weight=filters, bias=offset)
    if result.array.size:
        plan.run(_prepared("x", seen, compute), _prepared("weight", filters, compute) if ready is None else ready,
                 None if offset is None else _prepared("bias", offset, compute), relu, _batched(result.array))
    return result()


def _seen_by_windows(image: Array, geometry: Conv2dGeometry, mode: str) -> tuple[Array, Conv2dGeometry]:
    """The batch that the kernels work on, and its geometry: a padded copy where the padding is not zeros."""
    batch = _batched(image)
    if check_padding_mode(mode, geometry) == "zeros":
        return batch, geometry
    return padding_modes.pad(batch, geometry.pads, mode), geometry.of_padded


def _checked_dout(dout: Array, geometry: Conv2dGeometry | Pool2dGeometry, rank: int) -> None:
    expected = geometry.output_shape if rank == 4 else geometry.output_shape[1:]
    if dout.shape != expected:
        raise ValueError(f"dout must have the shape of the output, {expected}, got {dout.shape}")


def conv2d_backward(dout: ArrayLike, x: ArrayLike, weight: ArrayLike, stride: Any = 1, padding: Any = 0,
                    dilation: Any = 1, groups: int = 1, *, need: Iterable[str] = GRADIENTS,
                    algorithm: str = "auto",
                    padding_mode: str = "zeros") -> tuple[Array | None, Array | None, Array | None]:
    """The gradients of :func:`conv2d` with respect to the image, the weight and the bias.

    Parameters
    ----------
    dout : array_like, (N, K, OH, OW) or (K, OH, OW)
        Gradient with respect to the output.
    x, weight, stride, padding, dilation, groups, algorithm, padding_mode
        As in :func:`conv2d`.
    need : iterable of {"dx", "dw", "db"}
        The gradients to compute.

    Returns
    -------
    dx, dw, db : ndarray or None
        In the shapes of `x`, `weight` and ``(K,)`` and the dtype ``np.result_type(dout, x, weight)``; None for what is
        not needed. ``dx`` sums over the cells of `dout` that exist; in ``dw`` padding takes part as zeros.

    Notes
    -----
    Where `x` has few channels and most of `dout` is zero, as it is behind a ReLU and a max pooling, ``"auto"`` makes all
    gradients of what is not zero, in one pass over `dout` with at most 5 MB of scratch, and 3 for each thread: on the Cython
    backend, for 16 images and more, without a workspace limit.

    Raises
    ------
    ValueError, TypeError, NotImplementedError, MemoryError
        As :func:`conv2d`.
    """
    key = None
    if (type(dout) is type(x) is type(weight) is np.ndarray and type(need) is tuple
            and type(stride) is type(dilation) is type(groups) is int and type(padding) in (int, str)
            and type(algorithm) is str and type(padding_mode) is str and padding_mode == "zeros"
            and (need is GRADIENTS or all(type(name) is str for name in need))):
        key = ("backward", dout.shape, dout.dtype, x.shape, x.dtype, weight.shape, weight.dtype, stride, padding,
               dilation, groups, need, algorithm)
        call = _small_calls.get(key)
        if call is not None and call.still_right():
            small = call.run(dout, x, weight, "dx" in need, "dw" in need, "db" in need)
            if small is not None:
                return small
    gradient = _as_array("dout", dout, (3, 4))
    image = _as_array("x", x, (3, 4))
    filters = _as_array("weight", weight, (4,))
    wanted = _checked_need(need)
    algorithm = dispatch.check_algorithm(algorithm)
    geometry = conv2d_geometry(image.shape, filters.shape, stride, padding, dilation, groups)
    _checked_dout(gradient, geometry, image.ndim)
    check_padding_mode(padding_mode, geometry)
    dtype = _common_dtype(gradient, image, filters)
    compute = dispatch.compute_dtype(dtype)
    if key is not None and dtype == compute and algorithm in ("auto", "direct"):
        plans = (dispatch.plan(name, geometry, compute, algorithm) for name in ("backward_data", "backward_weight"))
        _keep_small_call(key, "SmallBackward", plans, geometry, (gradient, image, filters), image.ndim == 4)
    prepared = _batched(_prepared("dout", gradient, compute))
    dx = dw = db = None
    if algorithm == "auto" and padding_mode == "zeros" and "dw" in wanted:
        found = _sparse_backward(prepared, image, filters, geometry, dtype, "dx" in wanted)
        if found is not None:
            dx, dw, db = found
            return dx, dw, db if "db" in wanted else None
    if "dx" in wanted:
        dx = _backward_data(prepared, filters, geometry, image.shape, dtype, algorithm, padding_mode, None)
    if "dw" in wanted:
        dw = _backward_weight(prepared, image, geometry, dtype, algorithm, padding_mode, None)
    if "db" in wanted:
        db = _backward_bias(prepared, dtype)
    return dx, dw, db


def relu_backward(dout: ArrayLike, y: ArrayLike) -> Array:
    """The gradient of a ReLU: `dout`, zero where `y`, the ReLU's input or its output, is at most zero (NaN is not)."""
    gradient, seen = np.asarray(dout), np.asarray(y)
    if gradient.shape != seen.shape:
        raise ValueError(f"dout must have the shape of the output, {seen.shape}, got {gradient.shape}")
    dtype = gradient.dtype
    if dtype not in KERNEL_DTYPES or seen.dtype != dtype:
        return cleared(gradient, seen <= 0)
    result = memory.empty("the result", gradient.shape, dtype)
    dispatch.backend().relu_gradient(_prepared("dout", gradient, dtype), _prepared("y", seen, dtype), result,
                                     dispatch.threads(result.size))
    return result


def matrix_product(a: Array, b: Array) -> Array:
    """``a @ b`` of two matrices, either of which may be the transpose of a contiguous array.

    By the backend in force: a product of NumPy's leaves its BLAS's threads spinning for a while, on the cores that the
    convolutions before and behind it need (a training step took twice as long on two threads as on one).
    """
    dtype = _common_dtype(a, b)
    if dtype not in KERNEL_DTYPES or not a.size or not b.size:
        return np.asarray(a @ b)
    left, right = (_prepared(name, array.T, dtype).T if array.flags.f_contiguous else _prepared(name, array, dtype)
                   for name, array in (("a", a), ("b", b)))
    result = memory.empty("the result", (len(a), b.shape[1]), dtype)
    dispatch.backend().matrix_product(left, right, result, dispatch.product_threads(2 * result.size * len(b)))
    return result


def pooled_conv2d(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, stride: Any, padding: Any, dilation: Any,
                  groups: int, activation: str | None, padding_mode: str, *, pool: tuple[Any, ...],
                  return_indices: bool) -> tuple[Array, Array | None, tuple[int, ...]]:
    """:func:`max_pool2d`, with the arguments `pool` from `kernel_size` on, of :func:`conv2d` with the others.

    Where it pays what the convolution makes does not go to memory.

    Returns
    -------
    y, indices : ndarray, ndarray or None
        As max_pool2d returns them.
    shape : tuple of int
        Of what was pooled.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As these two.
    """
    image, filters = _as_array("x", x, (4,)), _as_array("weight", weight, (4,))
    geometry = conv2d_geometry(image.shape, filters.shape, stride, padding, dilation, groups)
    offset = _checked_bias(bias, geometry.out_channels)
    dtype = _common_dtype(image, filters, offset)
    pooling, threads = pool2d_geometry(geometry.output_shape, *pool), dispatch.pooled_forward(geometry, dtype)
    if threads is None or pooling.empty_window is not None:  # which max_pool2d reports
        out = conv2d(image, filters, offset, stride, padding, dilation, groups, activation=activation,
                     padding_mode=padding_mode)
        found: Any = max_pool2d(out, *pool, return_indices=return_indices)  # type: ignore[call-overload]  # how many `pool` are
        y, places = found if return_indices else (found, None)
        return y, places, out.shape
    relu = _checked_activation(activation, dtype)
    seen, padded = _seen_by_windows(image, geometry, padding_mode)
    result = memory.empty("the result", pooling.output_shape, dtype)
    indices = memory.empty("indices", pooling.output_shape, np.int64) if return_indices else None
    dispatch.backend().pooled_forward(
        _prepared("x", seen, dtype), _prepared("weight", filters, dtype),
        None if offset is None else _prepared("bias", offset, dtype), relu, padded, pooling, result, indices, threads)
    return result, indices, geometry.output_shape


def pooled_conv2d_backward(dout: ArrayLike, indices: ArrayLike, y: Array | None, x: ArrayLike, weight_shape: Any,
                           stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1, *,
                           padding_mode: str = "zeros") -> tuple[Array, Array]:
    """The gradients of weight and bias of a convolution that a max pooling follows, or a ReLU and a max pooling.

    What :func:`conv2d_backward` makes of :func:`max_pool2d_backward`'s result, but where it pays without that: it is zero in
    all cells but those that were chosen.

    Parameters
    ----------
    dout : array_like, (N, K, PH, PW)
        Gradient with respect to what :func:`max_pool2d` returned.
    indices : array_like of int, same shape
        As it returned them.
    y : ndarray of the same shape, or None
        What it returned, where a ReLU comes before it: `dout` counts where `y` is not at most zero.
    x, weight_shape, stride, padding, dilation, groups, padding_mode
        As in :func:`conv2d_backward_weight`; `x` is (N, C, H, W).

    Returns
    -------
    dw, db : ndarray

    Raises
    ------
    ValueError, TypeError, MemoryError
        As :func:`conv2d_backward` and :func:`max_pool2d_backward`.
    """
    gradient, image, places = _as_array("dout", dout, (4,)), _as_array("x", x, (4,)), _as_indices(indices)
    geometry = conv2d_geometry(image.shape, as_shape("weight_shape", weight_shape, (4,)), stride, padding, dilation, groups,
                               weight_name="weight_shape")
    unpool2d_geometry(gradient.shape, places.shape, geometry.output_shape)
    dtype = _common_dtype(gradient, image)
    backend = dispatch.pooled_backward(geometry, math.prod(gradient.shape[2:]), dtype)
    if y is not None and (backend is None or y.dtype != dtype or y.shape != gradient.shape):
        gradient, y = relu_backward(gradient, y), None
    if backend is None:
        dense = max_pool2d_backward(gradient, places, geometry.output_shape)
        dw = _backward_weight(dense, image, geometry, dtype, "auto", padding_mode, None)
        return dw, _backward_bias(_prepared("dout", dense, dispatch.compute_dtype(dtype)), dtype)
    seen, padded = _seen_by_windows(image, geometry, padding_mode)
    weights, biases = (memory.empty("the result", shape, dtype) for shape in (geometry.weight_shape, geometry.weight_shape[:1]))
    if not backend.pooled_backward(
            _prepared("dout", gradient, dtype), _prepared("indices", places, np.dtype(np.int64)),
            None if y is None else _prepared("y", y, dtype), _prepared("x", seen, dtype), padded, weights, biases,
            dispatch.threads(gradient.size)):
        raise _outside(places, geometry.out_size)
    return weights, biases


def _checked_need(need: Any) -> set[str]:
    names = {need} if isinstance(need, str) else need
    try:
        wanted = set(names)
    except TypeError:
        raise TypeError(f"need must be names of gradients, some of {GRADIENTS}, got {need!r}") from None
    if not wanted <= set(GRADIENTS):
        raise ValueError(f"need must be some of {GRADIENTS}, got {need!r}")
    return wanted


def _sparse_backward(dout: Array, x: Array, weight: Array, geometry: Conv2dGeometry, dtype: np.dtype,
                     data: bool) -> tuple[Array | None, Array, Array] | None:
    """The gradients, of the image where `data`, from what is not zero in `dout`; or None, where that does not pay."""
    compute = dispatch.compute_dtype(dtype)
    found = dispatch.sparse_backward(geometry, compute, data)
    if found is None:
        return None
    backend, limit = found
    dx = _Result(x.shape, dtype, compute, None) if data else None
    dw, db = (_Result(shape, dtype, compute, None) for shape in (geometry.weight_shape, geometry.weight_shape[:1]))
    if not backend.sparse_backward(dout, _prepared("x", _batched(x), compute), _prepared("weight", weight, compute), geometry,
                                   None if dx is None else dx.array, dw.array, db.array, limit,
                                   dispatch.product_threads(geometry.flops)):
        return None
    return None if dx is None else dx(), dw(), db()


def _backward_data(dout: Array, weight: Array, geometry: Conv2dGeometry, shape: tuple[int, ...], dtype: np.dtype,
                   algorithm: str, mode: str, out: Array | None, bias: Array | None = None, /,
                   **inputs: Array | None) -> Array:
    compute = dispatch.compute_dtype(dtype)
    zeros = check_padding_mode(mode, geometry) == "zeros"
    seen = geometry if zeros else geometry.of_padded
    plan = dispatch.plan("backward_data", seen, compute, algorithm)
    result = _Result(shape, dtype, compute, out, **inputs)
    if result.array.size:
        cells = _batched(result.array) if zeros else memory.empty("the padded gradient", seen.input_shape, compute)
        more = {} if bias is None else {"bias": _prepared("bias", bias, compute)}  # never where padding is folded
        plan.run(_prepared("dout", _batched(dout), compute), _prepared("weight", weight, compute), cells, **more)
        if not zeros:
            padding_modes.fold(cells, geometry.pads, mode, _batched(result.array))
    return result()


def _backward_weight(dout: Array, x: Array, geometry: Conv2dGeometry, dtype: np.dtype, algorithm: str, mode: str,
                     out: Array | None, /, **inputs: Array | None) -> Array:
    compute = dispatch.compute_dtype(dtype)
    seen, geometry = _seen_by_windows(x, geometry, mode)
    plan = dispatch.plan("backward_weight", geometry, compute, algorithm)
    result = _Result(geometry.weight_shape, dtype, compute, out, **inputs)
    plan.run(_prepared("dout", _batched(dout), compute), _prepared("x", seen, compute), result.array)
    return result()


def _backward_bias(dout: Array, dtype: np.dtype) -> Array:
    result = _Result(dout.shape[1:2], dtype, dispatch.compute_dtype(dtype), None)
    dispatch.backend().bias_gradient(dout, result.array, dispatch.threads(dout.size))
    return result()


def conv2d_backward_data(dout: ArrayLike, weight: ArrayLike, input_shape: Any, stride: Any = 1, padding: Any = 0,
                         dilation: Any = 1, groups: int = 1, *, algorithm: str = "auto",
                         padding_mode: str = "zeros", out: Array | None = None) -> Array:
    """The gradient of :func:`conv2d` with respect to the image.

    Parameters
    ----------
    dout : array_like, (N, K, OH, OW) or (K, OH, OW)
        Gradient with respect to the output.
    weight, stride, padding, dilation, groups, algorithm, padding_mode
        As in :func:`conv2d`.
    input_shape : tuple of int
        Shape of the image, ``(N, C, H, W)`` or ``(C, H, W)``, and so of the result.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray
        With the dtype ``np.result_type(dout, weight)``.

    Raises
    ------
    ValueError, TypeError, NotImplementedError, MemoryError
        As :func:`conv2d`.
    """
    gradient = _as_array("dout", dout, (3, 4))
    filters = _as_array("weight", weight, (4,))
    shape = as_shape("input_shape", input_shape, (3, 4))
    geometry = conv2d_geometry(shape, filters.shape, stride, padding, dilation, groups, x_name="input_shape")
    _checked_dout(gradient, geometry, len(shape))
    return _backward_data(gradient, filters, geometry, shape, _common_dtype(gradient, filters),
                          dispatch.check_algorithm(algorithm), padding_mode, out, dout=gradient, weight=filters)


def conv2d_backward_weight(dout: ArrayLike, x: ArrayLike, weight_shape: Any, stride: Any = 1, padding: Any = 0,
                           dilation: Any = 1, groups: int = 1, *, algorithm: str = "auto",
                           padding_mode: str = "zeros", out: Array | None = None) -> Array:
    """The gradient of :func:`conv2d` with respect to the weight.

    Parameters
    ----------
    dout : array_like, (N, K, OH, OW) or (K, OH, OW)
        Gradient with respect to the output.
    x, stride, padding, dilation, groups, algorithm, padding_mode
        As in :func:`conv2d`.
    weight_shape : tuple of int
        ``(K, C/groups, KH, KW)``, the shape of the result.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray
        With the dtype ``np.result_type(dout, x)``.

    Raises
    ------
    ValueError, TypeError, NotImplementedError, MemoryError
        As :func:`conv2d`.
    """
    gradient = _as_array("dout", dout, (3, 4))
    image = _as_array("x", x, (3, 4))
    geometry = conv2d_geometry(image.shape, as_shape("weight_shape", weight_shape, (4,)), stride, padding, dilation,
                               groups, weight_name="weight_shape")
    _checked_dout(gradient, geometry, image.ndim)
    return _backward_weight(gradient, image, geometry, _common_dtype(gradient, image),
                            dispatch.check_algorithm(algorithm), padding_mode, out, dout=gradient, x=image)


def conv_transpose2d(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, stride: Any = 1, padding: Any = 0,
                     output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, out: Array | None = None) -> Array:
    """Transposed convolution: :func:`conv2d_backward_data`, plus a bias.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        Images.
    weight : array_like, (C, K/groups, KH, KW)
        Filters, as PyTorch's.
    bias : array_like, (K,), optional
        Added to each output channel.
    stride, dilation : int or pair of int
        Distance of the input pixels in the output, and of the taps.
    padding : int, pair, pair of pairs or {"valid", "same", "same_lower", "full"}
        Rows and columns cut off the output, on each side. ``"same"`` gives an output of ``size*stride``.
    output_padding : int or pair of int
        Rows and columns added at the end of the output; smaller than stride or dilation.
    groups : int
        As in :func:`conv2d`.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray, (N, K, OH, OW) or (K, OH, OW)
        ``OH = (H-1)*stride - pads + dilation*(KH-1) + output_padding + 1``; dtype ``np.result_type(x, weight, bias)``.

    Raises
    ------
    ValueError, TypeError, MemoryError
        As :func:`conv2d`.
    """
    image = _as_array("x", x, (3, 4))
    filters = _as_array("weight", weight, (4,))
    geometry = conv_transpose2d_geometry(image.shape, filters.shape, stride, padding, output_padding, groups, dilation)
    offset = _checked_bias(bias, geometry.channels)
    shape = geometry.input_shape if image.ndim == 4 else geometry.input_shape[1:]
    return _backward_data(image, filters, geometry, shape, _common_dtype(image, filters, offset), "auto", "zeros", out,
                          offset, x=image, weight=filters, bias=offset)


# --- pooling ----------------------------------------------------------------------------------------------------------


def _exact_float(dtype: np.dtype) -> np.dtype:
    """The float dtype of the kernels that holds every value of `dtype`, or `dtype` itself where there is none."""
    for kernel_dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        if np.can_cast(dtype, kernel_dtype, "safe"):
            return kernel_dtype
    return dtype


@overload
def max_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = ..., padding: Any = ..., dilation: Any = ...,
               ceil_mode: bool = ..., return_indices: Literal[False] = ..., *, out: Array | None = ...) -> Array: ...
@overload
def max_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = ..., padding: Any = ..., dilation: Any = ...,
               ceil_mode: bool = ..., *, return_indices: Literal[True],
               out: Array | None = ...) -> tuple[Array, Array]: ...
@overload
def max_pool2d(x: ArrayLike, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool,
               return_indices: bool, *, out: Array | None = ...) -> Array | tuple[Array, Array]: ...
def max_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
               ceil_mode: bool = False, return_indices: bool = False, *,
               out: Array | None = None) -> Array | tuple[Array, Array]:
    """Maximum of each window.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        Any numeric dtype, which the result keeps.
    kernel_size : int or pair of int
        The window, ``(h, w)``.
    stride : int or pair of int, optional
        Its step; by default `kernel_size`.
    padding : int, pair, pair of pairs or {"valid", "same", "same_lower", "full"}
        Cells around the image, which never win; smaller than the window.
    dilation : int or pair of int
        Distance of the window's cells.
    ceil_mode : bool
        Round the output size up (see :func:`conv_output_size`).
    return_indices : bool
        Also return where the maximum was found.
    out : ndarray, optional
        Where the values go.

    Returns
    -------
    values : ndarray, (N, C, OH, OW) or (C, OH, OW)
    indices : ndarray of int64
        Only with `return_indices`: ``h*W + w`` within the plane. Of equal cells the first in row-major order wins; NaN
        wins over everything, the first NaN over later ones.

    Raises
    ------
    ValueError
        Where shapes and parameters do not fit together, the padding is not smaller than the window, or a window has no
        cell inside the image.
    TypeError
        Where `x` is not made of numbers, or a parameter not of ints.
    """
    image = _as_array("x", x, (3, 4))
    geometry = pool2d_geometry(image.shape, kernel_size, stride, padding, dilation,
                               as_flag("ceil_mode", ceil_mode))
    wanted = as_flag("return_indices", return_indices)
    if geometry.empty_window is not None:
        raise ValueError(f"dilation {geometry.dilation} with padding {geometry.pads}: {geometry.empty_window}")
    dtype = image.dtype.newbyteorder("=")
    compute = _exact_float(dtype)
    shape = geometry.output_shape if image.ndim == 4 else geometry.output_shape[1:]
    result = _Result(shape, dtype, compute, out, x=image)
    indices = memory.empty("indices", shape, np.int64) if wanted else None
    if result.array.size:
        dispatch.backend().max_pool(_prepared("x", _batched(image), compute), geometry, _batched(result.array),
                                    None if indices is None else _batched(indices), dispatch.threads(image.size))
    return (result(), indices) if indices is not None else result()


def max_pool2d_backward(dout: ArrayLike, indices: ArrayLike, input_shape: Any, *, out: Array | None = None) -> Array:
    """The gradient of :func:`max_pool2d`: a cell of `dout` goes to the cell that won; where several meet, they add up.

    Parameters
    ----------
    dout : array_like, (N, C, OH, OW) or (C, OH, OW)
        Gradient with respect to the output. The result keeps its dtype.
    indices : array_like of int, same shape
        As :func:`max_pool2d` returns them.
    input_shape : tuple of int
        Shape of the image, and so of the result.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray
        Of shape `input_shape`.

    Raises
    ------
    ValueError
        Where the shapes do not fit together; or where an index lies outside the plane, which is found out on the way: `out`
        then holds part of the gradient.
    TypeError
        Where `indices` are not integers.
    """
    gradient = _as_array("dout", dout, (3, 4))
    places = _as_indices(indices)
    geometry = unpool2d_geometry(gradient.shape, places.shape, input_shape)
    shape = geometry.input_shape if gradient.ndim == 4 else geometry.input_shape[1:]
    dtype = gradient.dtype.newbyteorder("=")
    compute = dispatch.compute_dtype(dtype)
    result = _Result(shape, dtype, compute, out, dout=gradient, indices=places)
    if result.array.size and not dispatch.backend().max_pool_backward(
            _prepared("dout", _batched(gradient), compute), _prepared("indices", _batched(places), np.dtype(np.int64)),
            geometry, _batched(result.array), dispatch.threads(result.array.size)):
        raise _outside(places, geometry.in_size)
    return result()


def _as_indices(indices: ArrayLike) -> Array:
    places = _as_array("indices", indices, (3, 4))
    if places.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {places.dtype}")
    return places


def _outside(places: Array, size: tuple[int, int]) -> ValueError:
    """The error of indices some of which are outside of a plane."""
    return ValueError(f"indices must lie in 0 to {math.prod(size) - 1}, the cells of a plane of {size}, got {places.min()} to "
                      f"{places.max()}")


def _average_geometry(name: str, shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, dilation: Any,
                      ceil_mode: Any, count_include_pad: Any,
                      divisor_override: Any) -> tuple[Pool2dGeometry, bool, int | None]:
    geometry = pool2d_geometry(shape, kernel_size, stride, padding, dilation, as_flag("ceil_mode", ceil_mode),
                               x_name=name)
    include = as_flag("count_include_pad", count_include_pad)
    if divisor_override is not None:
        divisor_override = as_int("divisor_override", divisor_override)
        if divisor_override == 0:
            raise ValueError("divisor_override must not be 0, got 0")
    elif not include and geometry.empty_window is not None:
        raise ValueError(f"count_include_pad=False leaves nothing to divide by: {geometry.empty_window}")
    return geometry, include, divisor_override


#: A window of more cells is averaged in float64: one float32 sum of so many would lose more than rule 14 allows.
LONG_SUM = 1024


def _average_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype.newbyteorder("=")


def avg_pool2d(x: ArrayLike, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
               count_include_pad: bool = True, divisor_override: int | None = None, *, dilation: Any = 1,
               out: Array | None = None) -> Array:
    """Average of each window.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)
        float16, float32, float64 and complex stay what they are; integers give float64.
    kernel_size, stride, padding, ceil_mode, dilation
        As in :func:`max_pool2d`; padding counts as zeros in the sum.
    count_include_pad : bool
        Divide by the cells of the window up to the padding's end, padding included; otherwise by those inside the
        image.
    divisor_override : int, optional
        Divide by this instead; it may be negative, but not 0.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray, (N, C, OH, OW) or (C, OH, OW)

    Raises
    ------
    ValueError
        Where shapes and parameters do not fit together, the padding is not smaller than the window, or a divisor is 0.
    TypeError
        Where `x` is not made of numbers, or a parameter not of ints.
    """
    image = _as_array("x", x, (3, 4))
    geometry, include, divisor = _average_geometry("x", image.shape, kernel_size, stride, padding, dilation, ceil_mode,
                                                   count_include_pad, divisor_override)
    dtype = _average_dtype(image.dtype)
    compute = dispatch.compute_dtype(dtype)
    if geometry.taps > LONG_SUM and compute == np.float32:
        compute = np.dtype(np.float64)
    shape = geometry.output_shape if image.ndim == 4 else geometry.output_shape[1:]
    result = _Result(shape, dtype, compute, out, x=image)
    if result.array.size:
        dispatch.backend().avg_pool(_prepared("x", _batched(image), compute), geometry, include, divisor,
                                    _batched(result.array), dispatch.threads(image.size))
    return result()


def avg_pool2d_backward(dout: ArrayLike, input_shape: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,
                        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None, *,
                        dilation: Any = 1, out: Array | None = None) -> Array:
    """The gradient of :func:`avg_pool2d`.

    Parameters
    ----------
    dout : array_like, (N, C, OH, OW) or (C, OH, OW)
        Gradient with respect to the output.
    input_shape : tuple of int
        Shape of the image, and so of the result.
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation
        As in :func:`avg_pool2d`.
    out : ndarray, optional
        Where the result goes.

    Returns
    -------
    ndarray
        Of shape `input_shape`.

    Raises
    ------
    ValueError, TypeError
        As :func:`avg_pool2d`.
    """
    gradient = _as_array("dout", dout, (3, 4))
    shape = as_shape("input_shape", input_shape, (3, 4))
    geometry, include, divisor = _average_geometry("input_shape", shape, kernel_size, stride, padding, dilation,
                                                   ceil_mode, count_include_pad, divisor_override)
    _checked_dout(gradient, geometry, len(shape))
    dtype = _average_dtype(gradient.dtype)
    compute = dispatch.compute_dtype(dtype)
    result = _Result(shape, dtype, compute, out, dout=gradient)
    if result.array.size:
        dispatch.backend().avg_pool_backward(_prepared("dout", _batched(gradient), compute), geometry, include, divisor,
                                             _batched(result.array), dispatch.threads(result.array.size))
    return result()


def _whole_plane(image: Array) -> tuple[int, int]:
    return window2d_geometry(image.shape, 1, 1).in_size  # which says what is wrong with an x without cells


def global_avg_pool2d(x: ArrayLike) -> Array:
    """Average of each plane.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)

    Returns
    -------
    ndarray, (N, C, 1, 1) or (C, 1, 1)
        With the dtype that :func:`avg_pool2d` gives.
    """
    image = _as_array("x", x, (3, 4))
    return avg_pool2d(image, _whole_plane(image))


def global_max_pool2d(x: ArrayLike) -> Array:
    """Maximum of each plane.

    Parameters
    ----------
    x : array_like, (N, C, H, W) or (C, H, W)

    Returns
    -------
    ndarray, (N, C, 1, 1) or (C, 1, 1)
    """
    image = _as_array("x", x, (3, 4))
    return max_pool2d(image, _whole_plane(image))
