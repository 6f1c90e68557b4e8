# The gradient of the bias: the sum of each output channel over images and pixels, at the speed of memory.
#
# Runs of floats are added up in vectors (fc_sum_run), everything above in double: exact enough for any number of pixels, and
# in an order that follows from the shape alone. Threads take blocks of channels.

cdef extern from "simd.h" nogil:
    double fc_sum_run_f32(const float*, ptrdiff_t)
    double fc_sum_run_f64(const double*, ptrdiff_t)


cdef void sum_channels(const real* dout, Py_ssize_t batch, Py_ssize_t channels, Py_ssize_t pixels, Py_ssize_t first,
                       Py_ssize_t stop, double* sums, real* out) noexcept nogil:
    cdef Py_ssize_t n, k
    for k in range(first, stop):
        sums[k] = 0
    for n in range(batch):  # as they lie in memory
        for k in range(first, stop):
            if real is float:
                sums[k] += fc_sum_run_f32(dout + (n * channels + k) * pixels, pixels)
            else:
                sums[k] += fc_sum_run_f64(dout + (n * channels + k) * pixels, pixels)
    for k in range(first, stop):
        out[k] = <real> sums[k]


cdef int bias_gradient_of(cnp.ndarray dout, cnp.ndarray out, cnp.ndarray scratch, int threads,
                          real* dtype=NULL) except -1:
    cdef Py_ssize_t batch = dout.shape[0], channels = dout.shape[1], pixels = dout.shape[2] * dout.shape[3]
    cdef const real* source = <const real*> cnp.PyArray_DATA(dout)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef double* sums = <double*> cnp.PyArray_DATA(scratch)
    cdef Py_ssize_t part, parts = least(threads, channels)
    with nogil:
        if parts == 1:
            sum_channels(source, batch, channels, pixels, 0, channels, sums, to)
        else:
            for part in prange(parts, num_threads=threads, schedule="static", chunksize=1):
                sum_channels(source, batch, channels, pixels, channels * part // parts, channels * (part + 1) // parts,
                             sums, to)
    return 0


def bias_gradient(cnp.ndarray dout, cnp.ndarray out, cnp.ndarray scratch, int threads):
    """The sums of the channels of `dout`, (N, K, OH, OW), into `out`, (K,); `scratch` has 8 bytes for each channel."""
    if dout.descr.itemsize == 4:
        bias_gradient_of[float](dout, out, scratch, threads)
    else:
        bias_gradient_of[double](dout, out, scratch, threads)
