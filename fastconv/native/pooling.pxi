# Max and average pooling and their gradients: plans, and dealing out their pieces (rows, or planes) to threads.
#
# The kernels are in pooling.h. Each thread writes a range of its own, and what a cell of the result is does not depend on
# how they are dealt out.

from libc.stdint cimport int32_t

cdef extern from "pooling.h" nogil:
    enum: FC_POOL_MAX
    enum: FC_POOL_PLACE
    enum: FC_POOL_SUM
    enum: FC_POOL_STRIPS
    enum: FC_POOL_SPREAD
    enum: FC_POOL_CHOSEN

    ctypedef struct fc_pooling:
        Py_ssize_t planes, h, w, oh, ow, kh, kw, sh, sw, dh, dw, top, left
        int what
        const void* x
        const void* divisors
        const int32_t* divisor
        Py_ssize_t divisor_step

    ctypedef struct fc_pool_plan:
        fc_pooling p
        Py_ssize_t pieces, traffic, bytes

    fc_pool_plan fc_plan_pool(const fc_pooling* pooling, int way, Py_ssize_t itemsize)
    int fc_pool_pieces(const fc_pool_plan* plan, void* out, int64_t* indices, Py_ssize_t first, Py_ssize_t stop,
                       char* scratch)

cdef fc_pooling read_pooling(object geometry, int what, cnp.ndarray x):
    cdef Window v = read_window(geometry)
    cdef fc_pooling p
    memset(&p, 0, sizeof(p))
    p.planes = v.n * v.c
    p.h, p.w, p.oh, p.ow = v.h, v.w, v.oh, v.ow
    p.kh, p.kw, p.sh, p.sw, p.dh, p.dw = v.kh, v.kw, v.sh, v.sw, v.dh, v.dw
    p.top, p.left = v.top, v.left
    p.what = what
    p.x = cnp.PyArray_DATA(x)
    return p


cdef int run_pooling(const fc_pool_plan* plan, cnp.ndarray out, int64_t* indices, object scratch, int threads) except -1:
    """1, or 0 where the indices that a gradient is read by are not right."""
    cdef char* to = <char*> cnp.PyArray_DATA(out)
    cdef char* work = NULL
    cdef cnp.ndarray buffer
    cdef int i, wrong = 0
    if plan.bytes:
        buffer = scratch(threads * plan.bytes)
        work = <char*> cnp.PyArray_DATA(buffer)
    if threads == 1:
        with nogil:
            wrong = not fc_pool_pieces(plan, to, indices, 0, plan.pieces, work)
    else:
        for i in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
            wrong += not fc_pool_pieces(plan, to, indices, plan.pieces * i // threads, plan.pieces * (i + 1) // threads,
                                        work + i * plan.bytes)
    return wrong == 0


def max_pool(cnp.ndarray x, geometry, cnp.ndarray out, indices, scratch, int threads):
    """Maximum of each window of float32 or float64 x into `out`, and its place into int64 `indices` where not None.

    ``scratch(nbytes)`` gives uninitialised memory that starts at a cache line. Planes have at most 2**31 - 1 cells where
    indices of float32 are wanted.
    """
    cdef fc_pooling p = read_pooling(geometry, FC_POOL_MAX if indices is None else FC_POOL_PLACE, x)
    cdef fc_pool_plan plan = fc_plan_pool(&p, FC_POOL_STRIPS, x.descr.itemsize)
    run_pooling(&plan, out, NULL if indices is None else <int64_t*> cnp.PyArray_DATA(<cnp.ndarray> indices), scratch,
                threads)


def max_pool_backward(cnp.ndarray dout, cnp.ndarray indices, geometry, cnp.ndarray out, scratch, int threads):
    """Add float32 or float64 dout up in the cells of `out` that int64 `indices` name; `scratch` as for max_pool.

    Returns False where an index lies outside its plane; `out` may hold anything then.
    """
    cdef fc_pooling p = read_pooling(geometry, FC_POOL_SUM, dout)
    cdef fc_pool_plan plan = fc_plan_pool(&p, FC_POOL_CHOSEN, dout.descr.itemsize)
    cdef int64_t* index = <int64_t*> cnp.PyArray_DATA(indices)
    return run_pooling(&plan, out, index, scratch, threads) != 0


def avg_pool(cnp.ndarray x, geometry, cnp.ndarray divisors, cnp.ndarray divisor, bint backward, cnp.ndarray out, scratch,
             int threads):
    """Average pooling of float32 or float64 x into `out`; with `backward`, x is dout and `out` the input's gradient.

    A window of output row y and column q is divided by ``divisors[divisor[y], q]``: an array of the dtype of x, which
    has some columns more that are not 0, and one of int32. `scratch` as for max_pool.
    """
    cdef fc_pooling p = read_pooling(geometry, FC_POOL_SUM, x)
    cdef fc_pool_plan plan
    p.divisors = cnp.PyArray_DATA(divisors)
    p.divisor = <const int32_t*> cnp.PyArray_DATA(divisor)
    p.divisor_step = divisors.shape[1]
    plan = fc_plan_pool(&p, FC_POOL_SPREAD if backward else FC_POOL_STRIPS, x.descr.itemsize)
    run_pooling(&plan, out, NULL, scratch, threads)
