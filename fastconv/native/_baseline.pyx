"""The Cython kernels, compiled for the instruction set that setup.py's table names "baseline"."""

include "common.pxi"
include "im2col.pxi"
include "direct.pxi"
include "implicit_gemm.pxi"
include "winograd.pxi"
include "pooling.pxi"
include "machine.pxi"
