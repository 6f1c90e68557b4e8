# The gradient of a ReLU that is a layer of its own: one pass, at the speed of memory. (The ReLU itself is a part of the
# kernels' stores, see FC_RELU.)

cdef extern from "simd.h" nogil:
    void fc_relu_gradient_f32(float*, const float*, const float*, ptrdiff_t)
    void fc_relu_gradient_f64(double*, const double*, const double*, ptrdiff_t)


cdef void relu_part(const real* dout, const real* y, real* out, Py_ssize_t first, Py_ssize_t stop) noexcept nogil:
    if real is float:
        fc_relu_gradient_f32(out + first, dout + first, y + first, stop - first)
    else:
        fc_relu_gradient_f64(out + first, dout + first, y + first, stop - first)


cdef int relu_gradient_of(cnp.ndarray dout, cnp.ndarray y, cnp.ndarray out, int threads, real* dtype=NULL) except -1:
    cdef const real* source = <const real*> cnp.PyArray_DATA(dout)
    cdef const real* seen = <const real*> cnp.PyArray_DATA(y)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t count = cnp.PyArray_SIZE(out), part
    with nogil:
        if threads == 1:
            relu_part(source, seen, to, 0, count)
        else:
            for part in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                relu_part(source, seen, to, count * part // threads, count * (part + 1) // threads)
    return 0


def relu_gradient(cnp.ndarray dout, cnp.ndarray y, cnp.ndarray out, int threads):
    """`dout` where `y` is not at most zero, and zeros elsewhere, into `out`; all of one shape."""
    if dout.descr.itemsize == 4:
        relu_gradient_of[float](dout, y, out, threads)
    else:
        relu_gradient_of[double](dout, y, out, threads)
