"""The Numba backend: the kernels of :mod:`fastconv.native` once more, in Python that Numba compiles on first use.

Importing this package does not import Numba; the first call does.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from .. import im2col_gemm, memory
from .. import winograd as tiles_of  # the package's own names are those of its kernels
from ..backends import KERNEL_DTYPES, Array, Budget, NumpyBackend, WinogradFilters, phase_bytes
from ..geometry import Conv2dGeometry, Pool2dGeometry, Window2dGeometry, conv2d_geometry
from . import costs

#: Beyond what the kernels' own arithmetic could hold, and any memory.
_TOO_MUCH = 2**62


class NumbaBackend(NumpyBackend):
    """The kernels of this package; what they have none for is the reference's, as with the Cython backend."""

    name = "numba"

    def estimate(self, algorithm: str, operation: str, geometry: Conv2dGeometry) -> float | None:
        return costs.estimate(algorithm, operation, geometry)

    def direct_unsupported(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        if dtype in KERNEL_DTYPES:
            return None
        return f"kernels are for float32 and float64, not for {dtype}"

    def direct_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int:
        from . import direct

        cells = geometry.channels * geometry.padded_size[0] * geometry.padded_size[1]
        return _TOO_MUCH if 16 * cells >= _TOO_MUCH else direct.workspace(operation, geometry, dtype.itemsize, threads)

    def direct_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       out: Array, budget: Budget) -> None:
        from . import direct

        direct.forward(x, weight, bias, relu, geometry, out, budget.threads)

    def direct_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                             budget: Budget, bias: Array | None = None) -> None:
        from . import direct

        if not direct.backward_data(dout, weight, geometry, out, budget.threads):
            # rule 3: an infinite weight must not meet padding of dout, which the column matrix does not have
            im2col_gemm.backward_data(self, dout, weight, geometry, out, im2col_gemm.modest(budget))
        im2col_gemm.add_bias(out, bias)

    def direct_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget) -> None:
        from . import direct

        if not direct.backward_weight(dout, x, geometry, out, budget.threads):
            im2col_gemm.backward_weight(self, dout, x, geometry, out, im2col_gemm.modest(budget))

    def winograd_unsupported(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype) -> str | None:
        why_not = tiles_of.unsupported("forward", geometry)  # the gradients are for the same ones
        if why_not is None and operation == "backward_data" and geometry.stride == (1, 1):
            why_not = tiles_of.too_much_padding(geometry)
        return self.direct_unsupported(operation, geometry, dtype) if why_not is None else why_not

    def winograd_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int:
        from . import winograd, winograd_gradient

        def workspace(phases: Conv2dGeometry) -> int:
            if operation == "backward_weight":
                return winograd_gradient.workspace(phases, dtype.itemsize, threads)
            return winograd.workspace(operation, phases, dtype.itemsize, threads)

        images = tiles_of.images_at_once(geometry)
        phases = tiles_of.of_phases(geometry, images)
        last = tiles_of.of_phases(geometry, max(geometry.batch - 1, 0) % images + 1)  # of those whose phases are made together
        return max(workspace(these) for these in (phases, last)) + sum(phase_bytes(geometry, phases, dtype))

    def winograd_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                         out: Array, budget: Budget) -> None:
        filters = WinogradFilters(tiles_of.largest_tile(geometry), weight, None)
        self._winograd_by_phases(x, filters, bias, relu, geometry, out, budget)

    def _winograd_convolve(self, source: Array, filters: WinogradFilters, weight: Array, bias: Array | None, relu: bool,
                           geometry: Conv2dGeometry, out: Array, result_bytes: int, work: Array, threads: int) -> Array | None:
        from . import winograd

        return winograd.convolution("forward", source, weight, bias, relu, geometry, out, work, threads)

    def winograd_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget, bias: Array | None = None) -> None:
        from . import winograd

        def direct(dout: Array, geometry: Conv2dGeometry, out: Array, budget: Budget) -> None:
            self.direct_backward_data(dout, weight, geometry, out, budget, bias)

        if geometry.stride != (1, 1):
            if not self._winograd_data_by_phases(dout, weight, geometry, out, budget):
                nbytes = self.direct_bytes("backward_data", geometry, dout.dtype, budget.threads)
                direct(dout, geometry, out, replace(budget, nbytes=nbytes))
            else:
                im2col_gemm.add_bias(out, bias)
            return
        with memory.scratch_block(budget.nbytes) as work:
            spoiled = winograd.convolution("backward_data", dout, weight, bias, False, geometry, out, work, budget.threads)
        self._recompute("backward_data", direct, dout, geometry, out, budget, tiles_of.largest_tile(geometry), spoiled)

    def matrix_product(self, a: Array, b: Array, out: Array, threads: int) -> None:
        """A convolution with filters of 1x1, or a gradient of one: which one by how the matrices lie."""
        from . import direct

        def image(rows: Array) -> Array:
            return rows[None, :, None]

        def filters(rows: Array) -> Array:
            return rows[:, :, None, None]

        terms, size = a.shape[1], b.shape[1]
        if not b.flags.c_contiguous:
            if not a.flags.c_contiguous:
                a = np.ascontiguousarray(a)
            geometry = conv2d_geometry((1, size, 1, terms), (len(a), size, 1, 1), 1, 0, 1, 1)
            made = direct.backward_weight(image(a), image(b.T), geometry, filters(out), threads)
        elif a.flags.c_contiguous:
            geometry = conv2d_geometry((1, terms, 1, size), (len(a), terms, 1, 1), 1, 0, 1, 1)
            direct.forward(image(b), filters(a), None, False, geometry, image(out), threads)
            made = True
        else:
            geometry = conv2d_geometry((1, len(a), 1, size), (terms, len(a), 1, 1), 1, 0, 1, 1)
            made = direct.backward_data(image(b), filters(a.T), geometry, image(out), threads)
        if not made:  # something is not finite
            super().matrix_product(a, b, out, threads)

    def _winograd_data_by_phases(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                                 budget: Budget) -> bool:
        """The gradient of some images' phases at a time; False where something in it is not finite."""
        from . import winograd

        images, dtype = tiles_of.images_at_once(geometry), dout.dtype
        image_bytes, filter_bytes = phase_bytes(geometry, tiles_of.of_phases(geometry, images), dtype)
        with memory.scratch_block(budget.nbytes) as scratch:
            work = scratch[image_bytes + filter_bytes:]
            filters = scratch[image_bytes:image_bytes + filter_bytes].view(dtype)
            self.im2col(weight, tiles_of.split(geometry, 1)[1], "columns", 0, filters, budget.threads)
            for start in range(0, geometry.batch, images):
                part = tiles_of.of_phases(geometry, min(images, geometry.batch - start))
                phases = scratch[:math.prod(part.input_shape) * dtype.itemsize].view(dtype).reshape(part.input_shape)
                if winograd.convolution("backward_data", dout[start:start + images], filters, None, False, part, phases, work,
                                        budget.threads) is not None:
                    return False
                self.col2im(phases, tiles_of.split(geometry, part.batch)[0], "columns", out[start:start + images],
                            budget.threads)
        return True

    def winograd_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array, budget: Budget) -> None:
        if not self._winograd_gradient(dout, x, geometry, out, budget):  # rule 13: a sum over all pixels is spoiled as a whole
            nbytes = self.direct_bytes("backward_weight", geometry, x.dtype, budget.threads)
            self.direct_backward_weight(dout, x, geometry, out, replace(budget, nbytes=nbytes))

    def _winograd_gradient(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array, budget: Budget) -> bool:
        """False where something in it is not finite. With strides, of the phases of some images at a time."""
        from . import winograd_gradient

        images, dtype, finite = tiles_of.images_at_once(geometry), x.dtype, True
        phases = tiles_of.of_phases(geometry, images)
        image_bytes, filter_bytes = phase_bytes(geometry, phases, dtype)
        with memory.scratch_block(budget.nbytes) as scratch:
            work = scratch[image_bytes + filter_bytes:]
            if geometry.stride == (1, 1):
                return winograd_gradient.backward_weight(dout, x, geometry, out, False, work, budget.threads)
            source = scratch[:image_bytes].view(dtype)
            filters = scratch[image_bytes:image_bytes + math.prod(phases.weight_shape) * dtype.itemsize].view(dtype)
            for start in range(0, max(geometry.batch, 1), images):
                part = tiles_of.of_phases(geometry, min(images, geometry.batch - start))
                self.im2col(x[start:start + images], tiles_of.split(geometry, part.batch)[0], "columns", 0, source,
                            budget.threads)
                finite &= winograd_gradient.backward_weight(dout[start:start + images], source[:math.prod(part.input_shape)],
                                                            part, filters, start > 0, work, budget.threads)
            self.col2im(filters, tiles_of.split(geometry, 1)[1], "columns", out, budget.threads)
        return finite

    def bias_gradient(self, dout: Array, out: Array, threads: int) -> None:
        from . import direct

        if dout.dtype in KERNEL_DTYPES:
            direct.bias_gradient(dout, out, threads)
        else:
            super().bias_gradient(dout, out, threads)

    def im2col(self, x: Array, geometry: Window2dGeometry, layout: str, pad_value: Any, out: Array,
               threads: int) -> None:
        from . import im2col

        if x.itemsize not in im2col.ITEMS:
            super().im2col(x, geometry, layout, pad_value, out, threads)
        elif out.size:
            im2col.im2col(x, geometry, layout, np.array(pad_value, x.dtype), out, threads)

    def col2im(self, col: Array, geometry: Window2dGeometry, layout: str, out: Array, threads: int) -> None:
        from . import im2col

        if col.dtype not in KERNEL_DTYPES:
            super().col2im(col, geometry, layout, out, threads)
        else:
            im2col.col2im(col, geometry, layout, out, threads)

    def max_pool(self, x: Array, geometry: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None:
        from . import pooling

        if x.dtype not in KERNEL_DTYPES:
            super().max_pool(x, geometry, out, indices, threads)
        else:
            pooling.max_pool(x, geometry, out, indices, threads)

    def max_pool_backward(self, dout: Array, indices: Array, geometry: Window2dGeometry, out: Array,
                          threads: int) -> bool:
        from . import pooling

        if dout.dtype not in KERNEL_DTYPES:
            return super().max_pool_backward(dout, indices, geometry, out, threads)
        return pooling.max_pool_backward(dout, indices, geometry, out, threads)

    def avg_pool(self, x: Array, geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None,
                 out: Array, threads: int) -> None:
        from . import pooling

        if x.dtype not in KERNEL_DTYPES:
            super().avg_pool(x, geometry, count_include_pad, divisor_override, out, threads)
        else:
            pooling.avg_pool(x, geometry, count_include_pad, divisor_override, False, out, threads)

    def avg_pool_backward(self, dout: Array, geometry: Pool2dGeometry, count_include_pad: bool,
                          divisor_override: int | None, out: Array, threads: int) -> None:
        from . import pooling

        if dout.dtype not in KERNEL_DTYPES:
            super().avg_pool_backward(dout, geometry, count_include_pad, divisor_override, out, threads)
        else:
            pooling.avg_pool(dout, geometry, count_include_pad, divisor_override, True, out, threads)
