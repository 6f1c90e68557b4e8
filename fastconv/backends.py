"""The backends behind one set of signatures: what the table in :mod:`fastconv.dispatch` is made of.

A backend's methods take checked, C-contiguous arrays of native byte order and one dtype, a geometry, and fill `out`.
They neither choose nor check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import im2col_gemm, memory, reference
from .geometry import Conv2dGeometry, Pool2dGeometry, Window2dGeometry

Array = np.ndarray

#: dtypes that compiled kernels compute in.
KERNEL_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class Budget:
    """What one call may use: threads, and bytes of scratch."""

    threads: int
    nbytes: int


class Backend(Protocol):
    """The signatures that every backend has."""

    name: str

    def supports(self, dtype: np.dtype) -> str | None: ...
    def direct_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int: ...
    def direct_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       out: Array, budget: Budget) -> None: ...
    def direct_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                             budget: Budget) -> None: ...
    def direct_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget) -> None: ...
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


class NumpyBackend:
    """The reference (:mod:`fastconv.reference`) as a backend: any dtype, one thread, no scratch that is counted."""

    name = "numpy"

    def supports(self, dtype: np.dtype) -> str | None:
        return None

    def direct_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int:
        # the padded float64 image, one shifted view of it at a time, and the float64 sum
        padded = geometry.batch * geometry.channels * geometry.padded_size[0] * geometry.padded_size[1]
        window = geometry.batch * geometry.channels * geometry.positions
        result = geometry.batch * geometry.out_channels * geometry.positions
        return 8 * (padded + window + 2 * result)

    def direct_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       out: Array, budget: Budget) -> None:
        out[...] = reference.conv2d_core(x, weight, bias, geometry, relu)

    def direct_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                             budget: Budget) -> None:
        out[...] = reference.conv2d_backward_data_core(dout, weight, geometry)

    def direct_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget) -> None:
        out[...] = reference.conv2d_backward_weight_core(dout, x, geometry)

    def im2col(self, x: Array, geometry: Window2dGeometry, layout: str, pad_value: Any, out: Array,
               threads: int) -> None:
        out[...] = reference.im2col_core(x, geometry, layout, pad_value).reshape(out.shape)

    def col2im(self, col: Array, geometry: Window2dGeometry, layout: str, out: Array, threads: int) -> None:
        out[...] = reference.col2im_core(col, geometry, layout)

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


class CythonBackend(NumpyBackend):
    """The extension modules of :mod:`fastconv.native`; what they have no kernel for is the reference's.

    That is: im2col of items that are not 1, 2, 4, 8 or 16 bytes long, and col2im and pooling of other dtypes than
    float32 and float64.
    """

    name = "cython"

    def supports(self, dtype: np.dtype) -> str | None:
        if dtype in KERNEL_DTYPES:
            return None
        return f"kernels are for float32 and float64, not for {dtype}"

    @staticmethod
    def _kernels() -> Any:
        from . import native

        return native.kernels

    def direct_bytes(self, operation: str, geometry: Conv2dGeometry, dtype: np.dtype, threads: int) -> int:
        if 16 * geometry.channels * geometry.padded_size[0] * geometry.padded_size[1] >= 2**62:
            return 2**62  # beyond what the kernels' own arithmetic could hold, and any memory
        shared, each = self._kernels().direct_workspace(operation, geometry, dtype.itemsize, threads)
        return int(shared + threads * each)

    def direct_forward(self, x: Array, weight: Array, bias: Array | None, relu: bool, geometry: Conv2dGeometry,
                       out: Array, budget: Budget) -> None:
        self._kernels().direct_forward(x, weight, bias, relu, geometry, out, memory.scratch(budget.nbytes),
                                       budget.threads)

    def direct_backward_data(self, dout: Array, weight: Array, geometry: Conv2dGeometry, out: Array,
                             budget: Budget) -> None:
        if not self._kernels().direct_backward_data(dout, weight, geometry, out, memory.scratch(budget.nbytes),
                                                    budget.threads):
            # rule 3: an infinite weight must not meet padding of dout, which the column matrix does not have
            im2col_gemm.backward_data(self, dout, weight, geometry, out, im2col_gemm.modest(budget))

    def direct_backward_weight(self, dout: Array, x: Array, geometry: Conv2dGeometry, out: Array,
                               budget: Budget) -> None:
        if not self._kernels().direct_backward_weight(dout, x, geometry, out, memory.scratch(budget.nbytes),
                                                      budget.threads):
            im2col_gemm.backward_weight(self, dout, x, geometry, out, im2col_gemm.modest(budget))

    def im2col(self, x: Array, geometry: Window2dGeometry, layout: str, pad_value: Any, out: Array,
               threads: int) -> None:
        if x.itemsize not in (1, 2, 4, 8, 16):
            super().im2col(x, geometry, layout, pad_value, out, threads)
            return
        self._kernels().im2col(x, geometry, layout, np.array(pad_value, x.dtype), out, threads)

    def col2im(self, col: Array, geometry: Window2dGeometry, layout: str, out: Array, threads: int) -> None:
        if col.dtype not in KERNEL_DTYPES:
            super().col2im(col, geometry, layout, out, threads)
            return
        self._kernels().col2im(col, geometry, layout, out, threads)

    def _pooling_scratch(self, geometry: Pool2dGeometry, dtype: np.dtype, threads: int) -> Array:
        shared, each = self._kernels().pooling_workspace(geometry, dtype.itemsize)
        return memory.scratch(shared + threads * each)

    def max_pool(self, x: Array, geometry: Pool2dGeometry, out: Array, indices: Array | None, threads: int) -> None:
        if x.dtype not in KERNEL_DTYPES:
            super().max_pool(x, geometry, out, indices, threads)
            return
        self._kernels().max_pool(x, geometry, out, indices, self._pooling_scratch(geometry, x.dtype, threads), threads)

    def max_pool_backward(self, dout: Array, indices: Array, geometry: Window2dGeometry, out: Array,
                          threads: int) -> bool:
        if dout.dtype not in KERNEL_DTYPES:
            return super().max_pool_backward(dout, indices, geometry, out, threads)
        return bool(self._kernels().max_pool_backward(dout, indices, geometry, out, threads))

    def _average(self, x: Array, geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None,
                 backward: bool, out: Array, threads: int) -> None:
        rows, columns = (np.array(geometry.divisors(axis, count_include_pad), np.float64) for axis in (0, 1))
        self._kernels().avg_pool(x, geometry, rows, columns, float(divisor_override or 0), backward, out,
                                 self._pooling_scratch(geometry, x.dtype, threads), threads)

    def avg_pool(self, x: Array, geometry: Pool2dGeometry, count_include_pad: bool, divisor_override: int | None,
                 out: Array, threads: int) -> None:
        if x.dtype not in KERNEL_DTYPES:
            super().avg_pool(x, geometry, count_include_pad, divisor_override, out, threads)
            return
        self._average(x, geometry, count_include_pad, divisor_override, False, out, threads)

    def avg_pool_backward(self, dout: Array, geometry: Pool2dGeometry, count_include_pad: bool,
                          divisor_override: int | None, out: Array, threads: int) -> None:
        if dout.dtype not in KERNEL_DTYPES:
            super().avg_pool_backward(dout, geometry, count_include_pad, divisor_override, out, threads)
            return
        self._average(dout, geometry, count_include_pad, divisor_override, True, out, threads)
