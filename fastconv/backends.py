"""The backends behind one set of signatures: what the table in :mod:`fastconv.dispatch` is made of.

A backend's methods take checked, C-contiguous arrays of native byte order and one dtype, a geometry, and fill `out`.
They neither choose nor check.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np

from . import im2col_gemm, memory, reference, winograd
from .geometry import Conv2dGeometry, Pool2dGeometry, Window2dGeometry

Array = np.ndarray

#: dtypes that compiled kernels compute in.
KERNEL_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

#: What a convolution makes of an image, to be pooled from a core's cache.
_POOLED_OUTPUT_BYTES = 2**19
#: A padded image of which `CythonBackend.pooled_backward` and `sparse_backward` make a copy for each thread.
_POOLED_IMAGE_BYTES = 2**20
#: The filters and their gradients in `CythonBackend.sparse_backward`.
_SPARSE_FILTER_BYTES = 2**17


@dataclass(frozen=True)
class WinogradFilters:
    """Filters for Winograd's convolution: the tile, the weight as it is, and transformed where that was done before."""

    tile: int
    weight: Array
    transformed: Array | None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.transformed is None else self.transformed.nbytes)


@dataclass(frozen=True)
class Budget:
    """What one call may use: threads, and bytes of scratch."""

    threads: int
    nbytes: int


class Backend(Protocol):
    """The signatures that every backend has.

    An algorithm is a set of methods named after it: ``<algorithm>_<operation>`` runs an operation,
    ``<algorithm>_unsupported`` says why it could not, ``<algorithm>_bytes`` what scratch it takes. Beside ``direct``, a
    backend may have ``implicit_gemm`` and ``winograd``; the table in :mod:`fastconv.dispatch` has those that it has.

    The forward operation with a weight that was made ready before is an operation of its own, ``packed``:
    ``<algorithm>_pack(weight, geometry)`` gives what ``<algorithm>_packed`` takes in place of the weight, an object with
    ``nbytes``. An algorithm without these takes the weight as it is.
    """

    name: str

    def direct_unsupported(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None: ...
    def direct_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int: ...
    def direct_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       out: Array, budget: Budget) -> None: ...
    def direct_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                             budget: Budget, bias: Array | None = None) -> None: ...
    def direct_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget) -> None: ...
    def matrix_product(self, a: Array, b: Array, out: Array, threads: int) -> None: ...
    def bias_gradient(self, dout: Array, out: Array, threads: int) -> None: ...
    def relu_gradient(self, dout: Array, y: Array, out: Array, threads: int) -> None: ...
    def im2col(self, x: Array, geometry: Window2dGeometry, layout: str, pad_value: Any, out: Array,
               threads: int) -> None: ...
    def col2im(self, col: Array, geometry: Window2dGeometry, layout: str, out: Array, threads: int) -> None: ...
    def max_pool(self, x: Array, geometry: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None: ...
    def max_pool_backward(self, dout: Array, indices: Array, geometry: Window2dGeometry, out: Array,
                          threads: int) -> bool: ...
    def avg_pool(self, x: Array, geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None,
                 out: Array, threads: int) -> None: ...
    def avg_pool_backward(self, dout: Array, geometry: Pool2dGeometry, count_include_pad: bool,
                          divisor_override: int | None, out: Array, threads: int) -> None: ...
    def pooled_forward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None: ...
    def pooled_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       pooling: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None: ...
    def pooled_backward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None: ...
    def pooled_backward(self, dout: Array, indices: Array, y: Array | None, x: Array, geometry: Conv2dGeometry, dw: Array,
                        db: Array, threads: int) -> bool: ...
    def sparse_backward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None: ...
    def sparse_backward(self, dout: Array, x: Array, weight: Array, geometry: Conv2dGeometry, dx: Array | None, dw: Array,
                        db: Array, limit: float, threads: int) -> bool: ...


def _tap_slices(geometry: Window2dGeometry) -> Iterator[tuple[tuple[int, int], list[slice], list[slice]]]:
    """For each tap: the cells of the image that it sees, and the output places that it sees them from."""
    for tap in itertools.product(range(geometry.kernel[0]), range(geometry.kernel[1])):
        cells, places = [], []
        for axis in (0, 1):
            stride, size = geometry.stride[axis], geometry.in_size[axis]
            start = tap[axis] * geometry.dilation[axis] - geometry.pads[axis][0]
            first = max(-(start // stride), 0)
            stop = max(min((size - 1 - start) // stride + 1, geometry.out_size[axis]), first)
            places.append(slice(first, stop))
            cells.append(slice(start + first * stride, start + first * stride + max(stop - first, 0) * stride, stride)
                         if stop > first else slice(0, 0))
        yield tap, cells, places


def cleared(values: Array, where: Array) -> Array:
    """Return a copy of `values` that is zero `where` that is True.

    By their bits: a choice for each cell mispredicts every other one (np.where takes 20 times as long), and a
    multiplication by zero would make NaN of infinity.
    """
    if values.dtype.itemsize not in (2, 4, 8):  # longdouble and complex128
        return np.where(where, values.dtype.type(0), values)
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    bits = np.multiply(~where, np.iinfo(unsigned).max, dtype=unsigned)
    bits &= values.view(unsigned)
    return bits.view(values.dtype)


class NumpyBackend:
    """The reference (:mod:`fastconv.reference`) as a backend: any dtype, one thread, no scratch that is counted."""

    name = "numpy"

    def direct_unsupported(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        return None

    def direct_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int:
        # What is alive at one time in the cores of reference.py, which compute in a wider dtype. (The arrays, not the
        # arithmetic: a view costs nothing, a reshape that must copy does.)
        g, narrow, wide = geometry, dtype.itemsize, reference._sum_dtype(dtype).itemsize
        planes, pixels = g.batch * g.channels, g.batch * g.positions
        reach_h, reach_w = (max(padded, (out - 1) * step + e) for padded, out, step, e in
                            zip(g.padded_size, g.out_size, g.stride, g.extent, strict=True))
        cells = planes * reach_h * reach_w * wide
        weights = math.prod(g.weight_shape) * wide
        outputs = g.out_channels * pixels * wide
        widened = outputs if narrow != wide else 0  # dout
        # What a tap sees is copied, unless its rows lie one behind the other in the padded image.
        in_a_row = 1 in g.out_size or g.stride[0] * reach_w == g.stride[1] * g.out_size[1]
        seen = 0 if in_a_row else g.channels * pixels * wide
        if operation == "forward":  # the sum, and one tap's product
            return cells + weights + outputs + seen + outputs
        if operation == "backward_data":
            return max(weights + widened + cells + g.channels * pixels * wide, cells + math.prod(g.input_shape) * narrow)
        # (N, C, P) -> (C, N*P), of dout once and of what each tap sees
        whole = 1 in (g.batch, g.positions)
        turned_dout = 0 if whole or g.out_channels == 1 else outputs
        one_plane = g.channels == 1 and (seen > 0 or reach_h * reach_w == g.positions)
        turned = 0 if whole or one_plane else g.channels * pixels * wide
        tap = max(seen + turned, (turned or seen) + weights // g.taps, weights // wide * narrow if narrow != wide else 0)
        return cells + max(widened + turned_dout, (turned_dout or widened) + weights + tap)

    def direct_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       out: Array, budget: Budget) -> None:
        out[...] = reference.conv2d_core(x, weight, bias, geometry, relu)

    def direct_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                             budget: Budget, bias: Array | None = None) -> None:
        out[...] = reference.conv2d_backward_data_core(dout, weight, geometry)
        im2col_gemm.add_bias(out, bias)

    def direct_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget) -> None:
        out[...] = reference.conv2d_backward_weight_core(dout, x, geometry)

    def matrix_product(self, a: Array, b: Array, out: Array, threads: int) -> None:
        with np.errstate(all="ignore"):
            np.matmul(a, b, out=out)

    def bias_gradient(self, dout: Array, out: Array, threads: int) -> None:
        # pixels first, pairwise because they are contiguous: keeps float32's error small over any number of them
        with np.errstate(all="ignore"):
            planes = dout.reshape(*dout.shape[:2], math.prod(dout.shape[2:]))
            planes.sum(axis=2, dtype=dout.dtype).sum(axis=0, dtype=dout.dtype, out=out)

    def relu_gradient(self, dout: Array, y: Array, out: Array, threads: int) -> None:
        out[...] = cleared(dout, y <= 0)

    def im2col(self, x: Array, geometry: Window2dGeometry, layout: str, pad_value: Any, out: Array,
               threads: int) -> None:
        windows = reference.as_windows(out, geometry, layout)
        windows[...] = pad_value
        for tap, cells, places in _tap_slices(geometry):
            windows[:, :, tap[0], tap[1], places[0], places[1]] = x[:, :, cells[0], cells[1]]

    def col2im(self, col: Array, geometry: Window2dGeometry, layout: str, out: Array, threads: int) -> None:
        windows = reference.as_windows(col, geometry, layout)
        out[...] = 0
        with np.errstate(all="ignore"):
            for tap, cells, places in _tap_slices(geometry):
                out[:, :, cells[0], cells[1]] += windows[:, :, tap[0], tap[1], places[0], places[1]]

    def max_pool(self, x: Array, geometry: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None:
        values, places = reference.max_pool2d_core(x, geometry)
        out[...] = values
        if indices is not None:
            indices[...] = places

    def max_pool_backward(self, dout: Array, indices: Array, geometry: Window2dGeometry, out: Array,
                          threads: int) -> bool:
        if indices.size and not 0 <= indices.min() <= indices.max() < geometry.in_size[0] * geometry.in_size[1]:
            return False
        out[...] = reference.max_pool2d_backward_core(dout, indices, geometry)
        return True

    def avg_pool(self, x: Array, geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None,
                 out: Array, threads: int) -> None:
        out[...] = reference.avg_pool2d_core(x, geometry, count_include_pad, divisor_override)

    def avg_pool_backward(self, dout: Array, geometry: Pool2dGeometry, count_include_pad: bool,
                          divisor_override: int | None, out: Array, threads: int) -> None:
        out[...] = reference.avg_pool2d_backward_core(dout, geometry, count_include_pad, divisor_override)

    def pooled_forward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        return "no kernel for it"

    def pooled_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       pooling: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None:
        raise NotImplementedError

    def pooled_backward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        return "no kernel for it"

    def pooled_backward(self, dout: Array, indices: Array, y: Array | None, x: Array, geometry: Conv2dGeometry, dw: Array,
                        db: Array, threads: int) -> bool:
        raise NotImplementedError

    def sparse_backward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        return "no kernel for it"

    def sparse_backward(self, dout: Array, x: Array, weight: Array, geometry: Conv2dGeometry, dx: Array | None, dw: Array,
                        db: Array, limit: float, threads: int) -> bool:
        raise NotImplementedError

    # what backends with a Winograd kernel share

    def _winograd_convolve(self, source: Array, filters: WinogradFilters, weight: Array, bias: Array | None, relu: bool,
                           geometry: Conv2dGeometry, out: Array, result_bytes: int, work: Array, threads: int) -> Array | None:
        """conv2d with stride 1 and `weight`, in scratch `work`; `out` may be a part of a result of `result_bytes`.

        Returns None, or flags: which (batch, rows of tiles) are not finite, and not what the definition gives.
        """
        raise NotImplementedError

    def _winograd_by_phases(self, x: Array, filters: WinogradFilters, bias: Array | None, relu: bool,
                            geometry: Conv2dGeometry, out: Array, budget: Budget) -> None:
        """conv2d by `_winograd_convolve`, which is for stride 1: through the phases of some images, of all with that stride."""
        def direct(x: Array, geometry: Conv2dGeometry, out: Array, budget: Budget) -> None:
            self.direct_forward(x, filters.weight, bias, relu, geometry, out, budget)

        images, weight = winograd.images_at_once(geometry), filters.weight
        image_bytes, filter_bytes = phase_bytes(geometry, winograd.of_phases(geometry, images), x.dtype)
        spoiled = {}
        with memory.scratch_block(budget.nbytes) as scratch:
            work = scratch[image_bytes + filter_bytes:]
            if filter_bytes:
                weight = scratch[image_bytes:image_bytes + filter_bytes].view(x.dtype)
                if filters.transformed is None:
                    self.im2col(filters.weight, winograd.split(geometry, 1)[1], "columns", 0, weight, budget.threads)
            for start in range(0, max(geometry.batch, 1), images):
                part = winograd.for_images(geometry, min(images, geometry.batch - start))
                phases = source = x[start:start + images]
                if image_bytes:
                    phases = scratch[:image_bytes].view(x.dtype)
                    self.im2col(source, winograd.split(geometry, part.batch)[0], "columns", 0, phases, budget.threads)
                spoiled[part, start] = self._winograd_convolve(
                    phases, filters, weight, bias, relu, winograd.of_phases(geometry, part.batch), out[start:start + images],
                    out.nbytes, work, budget.threads)
        for (part, start), rows in spoiled.items():  # which takes scratch of its own
            stop = start + part.batch
            self._recompute("forward", direct, x[start:stop], part, out[start:stop], budget, filters.tile, rows)

    def _recompute(self, operation: str, direct: Callable[[Array, Conv2dGeometry, Array, Budget], None], source: Array,
                   geometry: Conv2dGeometry, out: Array, budget: Budget, tile: int, spoiled: Array | None) -> None:
        """Rule 13: where something is not finite, the transforms spread it further than the definition does."""
        if spoiled is None:
            return
        if spoiled.all():  # as where a weight is not finite
            nbytes = self.direct_bytes(operation, geometry, source.dtype, budget.threads)
            direct(source, geometry, out, replace(budget, nbytes=nbytes))
            return
        for band in winograd.spoiled_bands(operation, geometry, tile, spoiled):
            nbytes = self.direct_bytes(operation, band.geometry, source.dtype, budget.threads)
            rows = np.empty((1, out.shape[1], band.rows.stop - band.rows.start, out.shape[3]), out.dtype)
            direct(np.ascontiguousarray(source[band.image:band.image + 1, :, band.seen]), band.geometry, rows,
                   replace(budget, nbytes=nbytes))
            out[band.image, :, band.rows] = rows[0]


class CythonBackend(NumpyBackend):
    """The extension modules of :mod:`fastconv.native`; what they have no kernel for is the reference's.

    That is: im2col of items that are not 1, 2, 4, 8 or 16 bytes long, and col2im and pooling of other dtypes than
    float32 and float64.
    """

    name = "cython"

    def direct_unsupported(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        if dtype in KERNEL_DTYPES:
            return None
        return f"kernels are for float32 and float64, not for {dtype}"

    @staticmethod
    def _kernels() -> Any:
        from . import native

        return native.kernels

    @staticmethod
    def _bytes(workspace: Callable[..., tuple[int, int]], operation: str, geometry: Conv2dGeometry, dtype: np.dtype,
               threads: int) -> int:
        if 16 * geometry.channels * geometry.padded_size[0] * geometry.padded_size[1] >= 2**62:
            return 2**62  # beyond what the kernels' own arithmetic could hold, and any memory
        shared, each = workspace(operation, geometry, dtype.itemsize, threads)
        return shared + threads * each

    def direct_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int:
        return self._bytes(self._kernels().direct_workspace, operation, geometry, dtype, threads)

    def direct_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       out: Array, budget: Budget) -> None:
        self._kernels().direct_forward(x, weight, bias, relu, geometry, out, memory.scratch(budget.nbytes),
                                       budget.threads)

    def direct_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                             budget: Budget, bias: Array | None = None) -> None:
        if not self._kernels().direct_backward_data(dout, weight, bias, geometry, out, memory.scratch(budget.nbytes),
                                                    budget.threads):
            # rule 3: an infinite weight must not meet padding of dout, which the column matrix does not have
            im2col_gemm.backward_data(self, dout, weight, geometry, out, im2col_gemm.modest(budget), bias)

    def direct_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget) -> None:
        if not self._kernels().direct_backward_weight(dout, x, geometry, out, memory.scratch(budget.nbytes),
                                                      budget.threads):
            im2col_gemm.backward_weight(self, dout, x, geometry, out, im2col_gemm.modest(budget))

    def implicit_gemm_unsupported(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        return self.direct_unsupported(operation, geometry, dtype)

    def implicit_gemm_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int:
        return self._bytes(self._kernels().implicit_gemm_workspace, operation, geometry, dtype, threads)

    def implicit_gemm_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                              out: Array, budget: Budget) -> None:
        self._kernels().implicit_gemm_forward(x, weight, bias, relu, geometry, out, memory.scratch(budget.nbytes),
                                              budget.threads)

    def implicit_gemm_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                                    budget: Budget, bias: Array | None = None) -> None:
        self._kernels().implicit_gemm_backward_data(dout, weight, bias, geometry, out, memory.scratch(budget.nbytes),
                                                    budget.threads)

    def implicit_gemm_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                                      budget: Budget) -> None:
        self._kernels().implicit_gemm_backward_weight(dout, x, geometry, out, memory.scratch(budget.nbytes),
                                                      budget.threads)

    def winograd_unsupported(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        why_not = winograd.unsupported(operation, geometry)
        if why_not is not None:
            return why_not
        if operation == "backward_data" and (why_not := winograd.too_much_padding(geometry)) is not None:
            return why_not
        return self.direct_unsupported(operation, geometry, dtype)

    def winograd_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int:
        if operation == "backward_weight":
            return self._bytes(self._kernels().winograd_gradient_workspace, operation, geometry, dtype, threads)
        # a handle may have been packed for another batch, and so with another tile
        tiles = winograd.TILES[winograd.taps_of(geometry)] if operation == "packed" else \
            (winograd.best_tile(operation, geometry),)
        phases = winograd.of_phases(geometry, winograd.images_at_once(geometry))
        return max(self._bytes(partial(self._kernels().winograd_workspace, tile), operation, phases, dtype, threads)
                   for tile in tiles) + sum(phase_bytes(geometry, phases, dtype))

    def winograd_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                         out: Array, budget: Budget) -> None:
        filters = WinogradFilters(winograd.best_tile("forward", geometry), weight, None)
        self.winograd_packed(x, filters, bias, relu, geometry, out, budget)

    def winograd_pack(self, weight: Array, geometry: Conv2dGeometry) -> WinogradFilters:
        kernels, tile, phases = self._kernels(), winograd.best_tile("packed", geometry), winograd.of_phases(geometry, 1)
        nbytes = kernels.winograd_pack_bytes(tile, phases, weight.itemsize)
        transformed = memory.aligned_bytes("the packed weight", nbytes)
        if geometry.stride == (1, 1):
            kernels.winograd_pack(tile, weight, phases, transformed)
        else:
            with memory.scratch_array("the phases of the weight", phases.weight_shape, weight.dtype) as split:
                self.im2col(weight, winograd.split(geometry, 1)[1], "columns", 0, split, 1)
                kernels.winograd_pack(tile, split, phases, transformed)
        return WinogradFilters(tile, weight, transformed)

    def winograd_packed(self, x: Array, filters: WinogradFilters, bias: Array | None, relu: bool,
                        geometry: Conv2dGeometry, out: Array, budget: Budget) -> None:
        self._winograd_by_phases(x, filters, bias, relu, geometry, out, budget)

    def _winograd_convolve(self, source: Array, filters: WinogradFilters, weight: Array, bias: Array | None, relu: bool,
                           geometry: Conv2dGeometry, out: Array, result_bytes: int, work: Array, threads: int) -> Array | None:
        spoiled: Array | None = self._kernels().winograd_convolve(filters.tile, source, weight, filters.transformed, bias, relu,
                                                                  False, geometry, out, result_bytes, work, threads)
        return spoiled

    def winograd_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget, bias: Array | None = None) -> None:
        def direct(dout: Array, geometry: Conv2dGeometry, out: Array, budget: Budget) -> None:
            self.direct_backward_data(dout, weight, geometry, out, budget, bias)

        tile = winograd.best_tile("backward_data", geometry)
        spoiled = self._kernels().winograd_convolve(tile, dout, weight, None, bias, False, True, geometry, out, out.nbytes,
                                                    memory.scratch(budget.nbytes), budget.threads)
        self._recompute("backward_data", direct, dout, geometry, out, budget, tile, spoiled)

    def winograd_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                                 budget: Budget) -> None:
        if not self._kernels().winograd_backward_weight(dout, x, geometry, out, memory.scratch(budget.nbytes),
                                                        budget.threads):
            # rule 13, as below; a sum over all pixels is spoiled as a whole
            nbytes = self.direct_bytes("backward_weight", geometry, x.dtype, budget.threads)
            self.direct_backward_weight(dout, x, geometry, out, replace(budget, nbytes=nbytes))

    def pooled_forward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        if geometry.out_channels * geometry.positions * dtype.itemsize > _POOLED_OUTPUT_BYTES:
            return "what the convolution makes of an image is too large for a core's cache"
        return self.direct_unsupported("forward", geometry, dtype)

    def pooled_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       pooling: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None:
        self._kernels().convolve_and_pool(x, weight, bias, relu, geometry, pooling, out, indices, memory.scratch, threads)

    def pooled_backward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        if geometry.groups > 1 or geometry.dilation[1] > 1:
            return "the kernel is for one group and columns without dilation"
        if dtype in KERNEL_DTYPES and not self._kernels().shortest_lanes(geometry.kernel[1], dtype.itemsize):
            return f"a row of {geometry.kernel[1]} taps is longer than a vector"
        if geometry.channels * math.prod(geometry.padded_size) * dtype.itemsize > _POOLED_IMAGE_BYTES:
            return "an image is too large for each thread to have a padded copy in its cache"
        return self.direct_unsupported("backward_weight", geometry, dtype)

    def pooled_backward(self, dout: Array, indices: Array, y: Array | None, x: Array, geometry: Conv2dGeometry, dw: Array,
                        db: Array, threads: int) -> bool:
        return bool(self._kernels().chosen_backward(dout, indices, y, x, geometry, dw, db, memory.scratch, threads))

    def sparse_backward_unsupported(self, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        if (why_not := self.pooled_backward_unsupported(geometry, dtype)) is not None:  # the cells come from elsewhere
            return why_not
        if geometry.stride[1] > 1:
            return "the kernel is for columns without strides"
        lanes = self._kernels().shortest_lanes(geometry.kernel[1], dtype.itemsize)
        if 2 * math.prod(geometry.weight_shape[:3]) * lanes * dtype.itemsize > _SPARSE_FILTER_BYTES:
            return "the filters and their gradients do not stay in a core's cache"
        return None

    def sparse_backward(self, dout: Array, x: Array, weight: Array, geometry: Conv2dGeometry, dx: Array | None, dw: Array,
                        db: Array, limit: float, threads: int) -> bool:
        return bool(self._kernels().sparse_backward(dout, x, weight, geometry, limit, dx, dw, db, memory.scratch, threads))

    def matrix_product(self, a: Array, b: Array, out: Array, threads: int) -> None:
        self._kernels().matrix_product(a, b, out, memory.scratch, threads)

    def bias_gradient(self, dout: Array, out: Array, threads: int) -> None:
        if dout.dtype not in KERNEL_DTYPES:
            super().bias_gradient(dout, out, threads)
            return
        self._kernels().bias_gradient(dout, out, memory.scratch(8 * len(out)), threads)

    def relu_gradient(self, dout: Array, y: Array, out: Array, threads: int) -> None:
        self._kernels().relu_gradient(dout, y, out, threads)

    def im2col(self, x: Array, geometry: Window2dGeometry, layout: str, pad_value: Any, out: Array,
               threads: int) -> None:
        if x.itemsize not in (1, 2, 4, 8, 16):
            super().im2col(x, geometry, layout, pad_value, out, threads)
            return
        self._kernels().im2col(x, geometry, layout, np.array(pad_value, x.dtype), out, _lines, threads)

    def col2im(self, col: Array, geometry: Window2dGeometry, layout: str, out: Array, threads: int) -> None:
        if col.dtype not in KERNEL_DTYPES:
            super().col2im(col, geometry, layout, out, threads)
            return
        self._kernels().col2im(col, geometry, layout, out, _lines, threads)

    def max_pool(self, x: Array, geometry: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None:
        # the kernels hold the places of float32 in lanes of 32 bits
        too_large = indices is not None and x.itemsize == 4 and math.prod(geometry.in_size) >= 2**31
        if x.dtype not in KERNEL_DTYPES or too_large:
            super().max_pool(x, geometry, out, indices, threads)
            return
        self._kernels().max_pool(x, geometry, out, indices, memory.scratch, threads)

    def max_pool_backward(self, dout: Array, indices: Array, geometry: Window2dGeometry, out: Array,
                          threads: int) -> bool:
        if dout.dtype not in KERNEL_DTYPES:
            return super().max_pool_backward(dout, indices, geometry, out, threads)
        return bool(self._kernels().max_pool_backward(dout, indices, geometry, out, memory.scratch, threads))

    def avg_pool(self, x: Array, geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None,
                 out: Array, threads: int) -> None:
        if x.dtype not in KERNEL_DTYPES:
            super().avg_pool(x, geometry, count_include_pad, divisor_override, out, threads)
            return
        divisors = _divisor_table(geometry, count_include_pad, divisor_override, x.dtype)
        self._kernels().avg_pool(x, geometry, *divisors, False, out, memory.scratch, threads)

    def avg_pool_backward(self, dout: Array, geometry: Pool2dGeometry, count_include_pad: bool,
                          divisor_override: int | None, out: Array, threads: int) -> None:
        if dout.dtype not in KERNEL_DTYPES:
            super().avg_pool_backward(dout, geometry, count_include_pad, divisor_override, out, threads)
            return
        divisors = _divisor_table(geometry, count_include_pad, divisor_override, dout.dtype)
        self._kernels().avg_pool(dout, geometry, *divisors, True, out, memory.scratch, threads)


def phase_bytes(geometry: Conv2dGeometry, phases: Conv2dGeometry, dtype: np.dtype) -> tuple[int, int]:
    """Bytes of the phases of images and of filters (winograd.py), in whole cache lines."""
    if geometry.stride == (1, 1):
        return 0, 0
    image, filters = (-(-math.prod(shape) * dtype.itemsize // 64) * 64 for shape in (phases.input_shape, phases.weight_shape))
    return image, filters


#: Scratch for kernels that are also called while their thread's own is in use.
_lines = partial(memory.aligned_bytes, "scratch memory")


@lru_cache(maxsize=64)
def _divisor_table(geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None,
                   dtype: np.dtype) -> tuple[Array, Array]:
    """The divisors of an average for the kernels: different rows of them, and which one each row of output has.

    Windows far from the borders have the same ones, so that there are few rows. They end in ones, which vectors that
    reach beyond the output divide by.
    """
    columns = np.array(geometry.divisors(1, count_include_pad), np.float64)
    counts, which = np.unique(geometry.divisors(0, count_include_pad), return_inverse=True)
    if divisor_override is not None:
        columns = np.full(columns.shape, divisor_override, np.float64)
        counts, which = np.ones(1), np.zeros(which.shape, int)
    table = np.ones((len(counts), len(columns) + 64), dtype)
    table[:, :len(columns)] = np.multiply.outer(counts, columns)
    return table, which.astype(np.int32)
