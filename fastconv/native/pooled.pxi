# A convolution that a max pooling follows, image by image, and its gradients from the cells that were chosen.

# --- forward ------------------------------------------------------------------------------------------------------------
#
# What the direct convolution makes of an image is pooled while it is in the cache of the core that made it: it is neither
# written to memory nor read from there, and its memory is one image for each thread. Threads take images.


cdef int convolve_and_pool_of(cnp.ndarray x, cnp.ndarray weight, object bias, bint relu, object geometry, object pooling,
                              cnp.ndarray out, object indices, object scratch, int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef Correlation job
    cdef fc_pooling p = read_pooling(pooling, FC_POOL_MAX if indices is None else FC_POOL_PLACE, out)
    cdef fc_pool_plan plan
    cdef const real* source = <const real*> cnp.PyArray_DATA(x)
    cdef const real* weights = <const real*> cnp.PyArray_DATA(weight)
    cdef real* biases = NULL if bias is None else <real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    cdef int64_t* places = NULL if indices is None else <int64_t*> cnp.PyArray_DATA(<cnp.ndarray> indices)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t images = v.n, seen = v.c * v.h * v.w, pooled = v.k * p.oh * p.ow, tables, made, each, n
    cdef char* work
    cdef cnp.ndarray buffer
    v.n, p.planes = 1, v.k
    plan = fc_plan_pool(&p, FC_POOL_STRIPS, sizeof(real))
    tables = forward_tables(&v)
    made = aligned(v.k * v.oh * v.ow * sizeof(real))
    plan_forward(&job, &v, sizeof(real), 1, NULL, worth_unrolling(&v, sizeof(real)))
    each = aligned(job.thread_bytes) + made + aligned(plan.bytes)
    buffer = scratch(tables + threads * each)
    work = <char*> cnp.PyArray_DATA(buffer)
    plan_forward(&job, &v, sizeof(real), 1, work, worth_unrolling(&v, sizeof(real)))
    work += tables
    if threads == 1:
        with nogil:
            for n in range(images):
                pool_image(&job, &plan, source + n * seen, weights, biases, relu, to + n * pooled,
                           NULL if places == NULL else places + n * pooled, work, made)
    else:
        for n in prange(images, nogil=True, num_threads=threads, schedule="dynamic", chunksize=1):
            pool_image(&job, &plan, source + n * seen, weights, biases, relu, to + n * pooled,
                       NULL if places == NULL else places + n * pooled, work + threadid() * each, made)
    return 0


cdef void pool_image(const Correlation* job, const fc_pool_plan* plan, const real* source, const real* weights,
                     const real* bias, bint relu, real* out, int64_t* indices, char* scratch, Py_ssize_t made) noexcept nogil:
    cdef fc_pool_plan mine = plan[0]
    mine.p.x = scratch
    run_correlation(job, source, weights, bias, relu, <real*> scratch, scratch + made + aligned(plan.bytes), 1)
    fc_pool_pieces(&mine, out, indices, 0, mine.pieces, scratch + made)


def convolve_and_pool(cnp.ndarray x, cnp.ndarray weight, bias, bint relu, geometry, pooling, cnp.ndarray out, indices,
                      scratch, int threads):
    """conv2d by the direct kernel, and max_pool of that into `out` and, where not None, `indices`.

    `geometry` is the convolution's, `pooling` that of its output; ``scratch(nbytes)`` as for max_pool.
    """
    if x.descr.itemsize == 4:
        convolve_and_pool_of[float](x, weight, bias, relu, geometry, pooling, out, indices, scratch, threads)
    else:
        convolve_and_pool_of[double](x, weight, bias, relu, geometry, pooling, out, indices, scratch, threads)


# --- the gradients of filters and bias: chosen_gradient.h says how ------------------------------------------------------
#
# Threads take blocks of filters, each with a copy of the image that includes the padding, so the order of the additions
# follows from the shapes alone: floats over at most FC_CHOSEN_CELLS cells of one plane, everything above in double.

cdef extern from "chosen_gradient.h" nogil:
    enum: FC_CHOSEN_CELLS
    Py_ssize_t fc_shortest_lanes(Py_ssize_t count, Py_ssize_t itemsize)
    int fc_chosen_f32(Py_ssize_t lanes, double* total, const float* dout, const int64_t* index, Py_ssize_t count,
                      const float* x, const int32_t* seen, Py_ssize_t cells, const Py_ssize_t* row, Py_ssize_t rows)
    int fc_chosen_f64(Py_ssize_t lanes, double* total, const double* dout, const int64_t* index, Py_ssize_t count,
                      const double* x, const int32_t* seen, Py_ssize_t cells, const Py_ssize_t* row, Py_ssize_t rows)


# What all threads read: the image that cell i of the convolution's output sees begins at seen[i] of the padded image, and row
# r of it row[r] later.
cdef struct Chosen:
    Window v
    Py_ssize_t ph, pw, plane, cells, lanes, rows
    Py_ssize_t shared_bytes, sums_bytes, image_bytes, each_bytes


cdef Chosen read_chosen(object geometry, Py_ssize_t itemsize, Py_ssize_t threads):
    cdef Chosen c
    c.v = read_conv(geometry)
    c.ph, c.pw = geometry.padded_size
    c.plane = c.ph * c.pw
    c.cells = c.v.oh * c.v.ow
    c.lanes = fc_shortest_lanes(c.v.kw, itemsize)
    c.rows = c.v.c * c.v.kh
    c.shared_bytes = aligned(c.cells * 4) + aligned(c.rows * 8)
    c.sums_bytes = (ceil_div(c.v.k, threads) * (c.rows * c.lanes + 1)) * 8  # and one of the bias
    c.image_bytes = aligned((c.v.c * c.plane + c.lanes) * itemsize)
    c.each_bytes = aligned(c.sums_bytes) + c.image_bytes + aligned(FC_CHOSEN_CELLS * itemsize)
    return c


cdef int chosen_filters(const Chosen* c, const real* dout, const int64_t* indices, const real* y, Py_ssize_t pooled,
                        const real* x, Py_ssize_t first, Py_ssize_t stop, const int32_t* seen, const Py_ssize_t* row,
                        char* scratch, real* dw, real* db) noexcept nogil:
    """Filters [first, stop); 1, or 0 where an index lies outside of the plane."""
    cdef Py_ssize_t n, k, block, start, count, at, i, j, width = c.rows * c.lanes
    cdef double* sums = <double*> scratch
    cdef double* bias = sums + (stop - first) * width
    cdef real* image = <real*> (scratch + aligned(c.sums_bytes))
    cdef real* part = <real*> (scratch + aligned(c.sums_bytes) + c.image_bytes)
    cdef const real* gradient
    cdef int right = 1
    memset(sums, 0, (stop - first) * (width + 1) * 8)
    memset(image, 0, (c.v.c * c.plane + c.lanes) * sizeof(real))
    for n in range(c.v.n):
        pad_image(&c.v, c.ph, c.pw, x + n * c.v.c * c.v.h * c.v.w, image)
        for k in range(first, stop):
            for block in range(ceil_div(pooled, FC_CHOSEN_CELLS)):
                start = block * FC_CHOSEN_CELLS
                count = least(FC_CHOSEN_CELLS, pooled - start)
                at = (n * c.v.k + k) * pooled + start
                gradient = dout + at
                if y != NULL:
                    if real is float:
                        fc_relu_gradient_f32(part, gradient, y + at, count)
                    else:
                        fc_relu_gradient_f64(part, gradient, y + at, count)
                    gradient = part
                if real is float:
                    bias[k - first] += fc_sum_run_f32(gradient, count)
                    right &= fc_chosen_f32(c.lanes, sums + (k - first) * width, gradient, indices + at, count, image, seen,
                                           c.cells, row, c.rows)
                else:
                    bias[k - first] += fc_sum_run_f64(gradient, count)
                    right &= fc_chosen_f64(c.lanes, sums + (k - first) * width, gradient, indices + at, count, image, seen,
                                           c.cells, row, c.rows)
    for k in range(first, stop):
        db[k] = <real> bias[k - first]
        for i in range(c.rows):
            for j in range(c.v.kw):
                dw[(k * c.rows + i) * c.v.kw + j] = <real> sums[(k - first) * width + i * c.lanes + j]
    return right


cdef int chosen_backward_of(object geometry, cnp.ndarray dout, cnp.ndarray indices, object y, cnp.ndarray x, cnp.ndarray dw,
                            cnp.ndarray db, object scratch, int threads, real* dtype=NULL) except -1:
    cdef Py_ssize_t parts = most(least(threads, geometry.out_channels), 1)
    cdef Chosen c = read_chosen(geometry, sizeof(real), parts)
    cdef Py_ssize_t pooled = dout.shape[2] * dout.shape[3], part, i, right = 0
    cdef const real* gradient = <const real*> cnp.PyArray_DATA(dout)
    cdef const int64_t* index = <const int64_t*> cnp.PyArray_DATA(indices)
    cdef real* rectified = NULL if y is None else <real*> cnp.PyArray_DATA(<cnp.ndarray> y)
    cdef const real* image = <const real*> cnp.PyArray_DATA(x)
    cdef real* weights = <real*> cnp.PyArray_DATA(dw)
    cdef real* biases = <real*> cnp.PyArray_DATA(db)
    cdef cnp.ndarray buffer = scratch(c.shared_bytes + parts * c.each_bytes)
    cdef char* work = <char*> cnp.PyArray_DATA(buffer)
    cdef int32_t* seen = <int32_t*> work
    cdef Py_ssize_t* row = <Py_ssize_t*> (work + aligned(c.cells * 4))
    work += c.shared_bytes
    for i in range(c.cells):
        seen[i] = <int32_t> (i // c.v.ow * c.v.sh * c.pw + i % c.v.ow * c.v.sw)
    for i in range(c.rows):
        row[i] = i // c.v.kh * c.plane + i % c.v.kh * c.v.dh * c.pw
    if parts == 1:
        with nogil:
            right = chosen_filters(&c, gradient, index, rectified, pooled, image, 0, c.v.k, seen, row, work, weights, biases)
    else:
        for part in prange(parts, nogil=True, num_threads=threads, schedule="static", chunksize=1):
            right += chosen_filters(&c, gradient, index, rectified, pooled, image, c.v.k * part // parts,
                                    c.v.k * (part + 1) // parts, seen, row, work + part * c.each_bytes, weights, biases)
    return right == parts


def chosen_backward(cnp.ndarray dout, cnp.ndarray indices, y, cnp.ndarray x, geometry, cnp.ndarray dw, cnp.ndarray db,
                    scratch, int threads):
    """The gradients of filters and bias into `dw` and `db`, from the gradient `dout` of the pooled output and `indices`.

    `y` is None, or what was pooled, (N, K, PH, PW) as `dout`: where it is not above zero `dout` does not count. Groups are 1,
    the columns' dilation is 1, and the padded image has fewer than 2**31 cells. ``scratch(nbytes)`` as for max_pool. Returns
    False where an index lies outside of the convolution's output; `dw` and `db` may hold anything then.
    """
    if dout.descr.itemsize == 4:
        return chosen_backward_of[float](geometry, dout, indices, y, x, dw, db, scratch, threads) != 0
    return chosen_backward_of[double](geometry, dout, indices, y, x, dw, db, scratch, threads) != 0
