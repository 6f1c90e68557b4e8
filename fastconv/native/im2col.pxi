# im2col and col2im in all layouts: plans, and dealing out their pieces to threads. The kernels are in lowering.h.
#
# Each thread writes a range of the result, or rows of it, of its own; what an element is does not depend on how they are
# dealt out. im2col moves elements by their size, whatever their type.

cdef extern from "lowering.h" nogil:
    enum: FC_COLUMNS
    enum: FC_ROWS
    enum: FC_CS231N
    enum: FC_STACK_BYTES

    ctypedef struct fc_lowering:
        Py_ssize_t n, c, h, w, kh, kw, sh, sw, dh, dw, top, left, oh, ow
        int layout
        const void* x
        Py_ssize_t step_n, step_c, step_h, start, stop
        Py_ssize_t pieces, traffic, bytes

    void fc_plan_lowering(fc_lowering* lowering, Py_ssize_t itemsize, int back, const void* out)
    void fc_im2col_pieces(const fc_lowering* lowering, const void* pad, void* out, Py_ssize_t first, Py_ssize_t stop,
                          char* scratch)
    void fc_col2im_pieces(const fc_lowering* lowering, const void* col, void* out, Py_ssize_t first, Py_ssize_t stop,
                          char* scratch)

cdef fc_lowering read_lowering(object geometry, str layout):
    cdef Window v = read_window(geometry)
    cdef fc_lowering p
    memset(&p, 0, sizeof(p))
    p.n, p.c, p.h, p.w, p.oh, p.ow = v.n, v.c, v.h, v.w, v.oh, v.ow
    p.kh, p.kw, p.sh, p.sw, p.dh, p.dw = v.kh, v.kw, v.sh, v.sw, v.dh, v.dw
    p.top, p.left = v.top, v.left
    p.layout = FC_ROWS if layout == "rows" else FC_CS231N if layout == "cs231n" else FC_COLUMNS
    return p


def im2col(cnp.ndarray x, geometry, str layout, cnp.ndarray pad_value, cnp.ndarray out, scratch, int threads):
    """Lower x into `out`, a C-contiguous column matrix of the same item size (1, 2, 4, 8 or 16 bytes).

    x needs to be contiguous along its width only. `pad_value` is an array of one item. ``scratch(nbytes)`` gives
    uninitialised memory that starts at a cache line; it is asked where more is needed than fits the stack.
    """
    cdef fc_lowering p = read_lowering(geometry, layout)
    cdef Py_ssize_t size = x.descr.itemsize, step
    cdef char* work = NULL
    cdef char* to = <char*> cnp.PyArray_DATA(out)
    cdef void* pad = cnp.PyArray_DATA(pad_value)
    cdef cnp.ndarray buffer
    cdef int i, axis
    if size not in (1, 2, 4, 8, 16):
        raise NotImplementedError(f"im2col of items of {size} bytes")
    if p.n == 0:
        return
    p.x = cnp.PyArray_DATA(x)
    p.step_n, p.step_c, p.step_h = x.strides[0] // size, x.strides[1] // size, x.strides[2] // size
    p.stop = p.w
    for axis in range(3):
        step = (x.shape[axis] - 1) * (x.strides[axis] // size)
        if step < 0:
            p.start += step
        else:
            p.stop += step
    fc_plan_lowering(&p, size, False, to)
    if p.bytes > FC_STACK_BYTES:
        buffer = scratch(threads * p.bytes)
        work = <char*> cnp.PyArray_DATA(buffer)
    if threads == 1:
        with nogil:
            fc_im2col_pieces(&p, pad, to, 0, p.pieces, work)
    else:
        for i in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
            fc_im2col_pieces(&p, pad, to, p.pieces * i // threads, p.pieces * (i + 1) // threads, work + i * p.bytes)


def col2im(cnp.ndarray col, geometry, str layout, cnp.ndarray out, scratch, int threads):
    """Add the columns up in the image `out`, all C-contiguous float32 or float64; `scratch` as for im2col."""
    cdef fc_lowering p = read_lowering(geometry, layout)
    cdef char* work = NULL
    cdef char* to = <char*> cnp.PyArray_DATA(out)
    cdef void* source = cnp.PyArray_DATA(col)
    cdef cnp.ndarray buffer
    cdef int i
    if p.n == 0:
        return
    p.x = source
    fc_plan_lowering(&p, col.descr.itemsize, True, to)
    if p.bytes > FC_STACK_BYTES:
        buffer = scratch(threads * p.bytes)
        work = <char*> cnp.PyArray_DATA(buffer)
    if threads == 1:
        with nogil:
            fc_col2im_pieces(&p, source, to, 0, p.pieces, work)
    else:
        for i in prange(threads, nogil=True, num_threads=threads, schedule="static", chunksize=1):
            fc_col2im_pieces(&p, source, to, p.pieces * i // threads, p.pieces * (i + 1) // threads, work + i * p.bytes)
