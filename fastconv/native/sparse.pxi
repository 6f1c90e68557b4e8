# The gradients of image, filters and bias from what is not zero in dout: sparse_gradient.h says how.
#
# Threads take runs of images; how many of them there are, and so the order of the additions to the filters, follows from the
# shape alone: floats over at most FC_SPARSE_CELLS positions of an image, everything above in double.

cdef extern from "sparse_gradient.h" nogil:
    enum: FC_SPARSE_ROWS, FC_SPARSE_BAND
    ctypedef struct fc_sparse:
        Py_ssize_t filters, pixels, height, width, step, row, plane, channels, rows, taps, lanes, pitch
    Py_ssize_t fc_shortest_lanes(Py_ssize_t taps, Py_ssize_t itemsize)
    void fc_sparse_f32(const fc_sparse*, const float* dout, const float* x, float* dx, float* filters, float* line,
                       double* total, double* bias, uint32_t* bits, const float* next)
    void fc_sparse_f64(const fc_sparse*, const double* dout, const double* x, double* dx, double* filters, double* line,
                       double* total, double* bias, uint64_t* bits, const double* next)

cdef enum:
    SPARSE_RUNS = 32      # of images, at most
    SPARSE_SAMPLES = 256  # rows of dout that are looked at to find out how much of it is zero, at most

cdef struct SparseJob:
    Window v
    fc_sparse s
    Py_ssize_t padded_h, padded_w
    Py_ssize_t runs                           # of images
    Py_ssize_t total_bytes                    # of a run: what its filters and biases add up to
    Py_ssize_t image_bytes, filter_bytes, line_bytes, thread_bytes


cdef SparseJob read_sparse(object geometry, Py_ssize_t itemsize):
    cdef SparseJob job
    job.v = read_conv(geometry)
    job.padded_h, job.padded_w = geometry.padded_size
    job.s.filters, job.s.pixels, job.s.height, job.s.width = job.v.k, job.v.oh * job.v.ow, job.v.oh, job.v.ow
    job.s.step, job.s.row, job.s.plane = job.v.sh * job.padded_w, job.v.dh * job.padded_w, job.padded_h * job.padded_w
    job.s.channels, job.s.rows, job.s.taps = job.v.c, job.v.kh, job.v.kw
    job.s.lanes = fc_shortest_lanes(job.v.kw, itemsize)
    job.s.pitch = 2 * job.v.c * job.v.kh * job.s.lanes
    job.runs = least(job.v.n, SPARSE_RUNS)
    job.total_bytes = aligned((job.v.k * job.s.pitch // 2 + job.v.k) * 8)
    job.image_bytes = aligned((job.v.c * job.s.plane + job.s.lanes) * itemsize)  # whole vectors are read
    job.filter_bytes = aligned(job.v.k * job.s.pitch * itemsize)
    job.line_bytes = aligned(FC_SPARSE_ROWS * (job.v.ow + job.s.lanes) * itemsize)
    job.thread_bytes = (2 * job.image_bytes + job.filter_bytes + job.line_bytes
                        + aligned(most(FC_SPARSE_BAND, job.v.ow) * itemsize))
    return job


cdef bint mostly_zero(const SparseJob* job, const real* dout, double limit) noexcept nogil:
    """Whether at most that part of dout is not zero, to go by some of its rows."""
    cdef Py_ssize_t rows = job.v.n * job.v.k * job.v.oh, samples = least(rows, SPARSE_SAMPLES), i, j, found = 0
    cdef const real* row
    for i in range(samples):
        row = dout + (rows * i // samples + i % job.v.oh) % rows * job.v.ow  # not the same row of each plane
        for j in range(job.v.ow):
            found += row[j] != 0
    return found <= limit * <double> (samples * job.v.ow)


cdef void fill_filters(const SparseJob* job, const real* weights, real* to) noexcept nogil:
    """Row by row a filter's weights and what is added up for them, with zeros behind them."""
    cdef Py_ssize_t row, j
    memset(to, 0, job.v.k * job.s.pitch * sizeof(real))
    for row in range(job.v.k * job.v.c * job.v.kh):
        for j in range(job.v.kw):
            to[2 * row * job.s.lanes + j] = weights[row * job.v.kw + j]


cdef void sparse_run(const SparseJob* job, Py_ssize_t run, const real* dout, const real* x, const real* weights, real* dx,
                     double* total, char* scratch) noexcept nogil:
    cdef const Window* v = &job.v
    cdef Py_ssize_t n, each = v.k * v.oh * v.ow, image = v.c * v.h * v.w
    cdef real* padded = <real*> scratch
    cdef real* gradient = <real*> (scratch + job.image_bytes)
    cdef real* filters = <real*> (scratch + 2 * job.image_bytes)
    cdef real* line = <real*> (scratch + 2 * job.image_bytes + job.filter_bytes)
    cdef char* bits = scratch + 2 * job.image_bytes + job.filter_bytes + job.line_bytes
    cdef double* bias = total + v.k * job.s.pitch // 2
    memset(total, 0, job.total_bytes)
    memset(padded, 0, job.image_bytes)
    fill_filters(job, weights, filters)
    for n in range(v.n * run // job.runs, v.n * (run + 1) // job.runs):
        pad_image(v, job.padded_h, job.padded_w, x + n * image, padded)
        if dx != NULL:
            memset(gradient, 0, job.image_bytes)
        if real is float:
            fc_sparse_f32(&job.s, dout + n * each, padded, NULL if dx == NULL else gradient, filters, line, total, bias,
                          <uint32_t*> bits, dout + least(n + 1, v.n - 1) * each)
        else:
            fc_sparse_f64(&job.s, dout + n * each, padded, NULL if dx == NULL else gradient, filters, line, total, bias,
                          <uint64_t*> bits, dout + least(n + 1, v.n - 1) * each)
        if dx != NULL:
            cut_image(v, job.padded_h, job.padded_w, gradient, dx + n * image)


cdef void add_runs(const SparseJob* job, const double* totals, real* dw, real* db) noexcept nogil:
    cdef Py_ssize_t run, row, j, k, rows = job.v.k * job.v.c * job.v.kh, each = job.total_bytes // 8
    cdef double total
    for row in range(rows):
        for j in range(job.v.kw):
            total = 0
            for run in range(job.runs):
                total += totals[run * each + row * job.s.lanes + j]
            dw[row * job.v.kw + j] = <real> total
    for k in range(job.v.k):
        total = 0
        for run in range(job.runs):
            total += totals[run * each + rows * job.s.lanes + k]
        db[k] = <real> total


cdef int sparse_backward_of(cnp.ndarray dout, cnp.ndarray x, cnp.ndarray weight, object geometry, double limit, object dx,
                            cnp.ndarray dw, cnp.ndarray db, object scratch, int threads, real* dtype=NULL) except -1:
    cdef SparseJob job = read_sparse(geometry, sizeof(real))
    cdef const real* gradient = <const real*> cnp.PyArray_DATA(dout)
    cdef const real* image = <const real*> cnp.PyArray_DATA(x)
    cdef const real* weights = <const real*> cnp.PyArray_DATA(weight)
    cdef real* to = NULL if dx is None else <real*> cnp.PyArray_DATA(<cnp.ndarray> dx)
    cdef Py_ssize_t run
    cdef cnp.ndarray buffer
    cdef char* work
    cdef char* totals
    if not (mostly_zero(&job, gradient, limit) and all_finite(image, x.size) and all_finite(weights, weight.size)):
        return 0
    buffer = scratch(job.runs * job.total_bytes + threads * job.thread_bytes)
    totals = <char*> cnp.PyArray_DATA(buffer)
    work = totals + job.runs * job.total_bytes
    if threads == 1:
        with nogil:
            for run in range(job.runs):
                sparse_run(&job, run, gradient, image, weights, to, <double*> (totals + run * job.total_bytes), work)
    else:
        for run in prange(job.runs, nogil=True, num_threads=threads, schedule="dynamic", chunksize=1):
            sparse_run(&job, run, gradient, image, weights, to, <double*> (totals + run * job.total_bytes),
                       work + threadid() * job.thread_bytes)
    with nogil:
        add_runs(&job, <double*> totals, <real*> cnp.PyArray_DATA(dw), <real*> cnp.PyArray_DATA(db))
    return 1


def shortest_lanes(Py_ssize_t count, Py_ssize_t itemsize):
    """Elements of the shortest vector that holds so many; 0 where there is none."""
    return fc_shortest_lanes(count, itemsize)


def sparse_backward(cnp.ndarray dout, cnp.ndarray x, cnp.ndarray weight, geometry, double limit, dx, cnp.ndarray dw,
                    cnp.ndarray db, scratch, int threads):
    """The gradients into `dx` (or None), `dw` and `db`, if no more than the part `limit` of dout is not zero.

    Groups are 1, and the columns' stride and dilation. ``scratch(nbytes)`` as for max_pool. Returns False, with all three
    untouched, where dout has more, or where a cell of x or a weight is not finite: zeros of dout would make NaN of it.
    """
    if dout.descr.itemsize == 4:
        return sparse_backward_of[float](dout, x, weight, geometry, limit, dx, dw, db, scratch, threads) != 0
    return sparse_backward_of[double](dout, x, weight, geometry, limit, dx, dw, db, scratch, threads) != 0
