# Max and average pooling and their gradients. Planes (n, c) are dealt out to threads; none touches another's.
#
# Windows are separable: forward, the rows of a window are first combined into one row with contiguous vector
# operations, then its columns. Only the search for the first maximum (indices) looks at whole windows.

cdef struct Pooling:
    Window v
    Py_ssize_t width                 # of the combined row with its padding
    Py_ssize_t thread_bytes


cdef Pooling plan_pooling(const Window* v, Py_ssize_t itemsize) noexcept nogil:
    cdef Pooling p
    p.v = v[0]
    # with ceil_mode the last window may reach beyond the padding
    p.width = most(v.left + v.w, (v.ow - 1) * v.sw + (v.kw - 1) * v.dw + 1)
    p.thread_bytes = 2 * aligned(p.width * itemsize) + aligned(v.ow * sizeof(int64_t)) + aligned(v.ow * itemsize)
    return p


def pooling_workspace(geometry, Py_ssize_t itemsize):
    """Scratch that the functions of this file need: ``(bytes shared, bytes for each thread)``."""
    cdef Window v = read_window(geometry)
    return 0, plan_pooling(&v, itemsize).thread_bytes


cdef inline real lowest(real unused) noexcept nogil:
    return -<real> float_infinity


cdef extern from "math.h" nogil:
    float float_infinity "INFINITY"


# --- maximum ----------------------------------------------------------------------------------------------------------

cdef void max_plane(const Pooling* p, const real* x, real* out, char* scratch) noexcept nogil:
    """Values only. A comparison with NaN is false, so (v > m or v != v) lets NaN in and never out again (rule 5)."""
    cdef const Window* v = &p.v
    cdef real* row = <real*> scratch
    cdef real* at = row + v.left
    cdef const real* source
    cdef Py_ssize_t y, i, j, q, k, first, stop, start
    cdef real value, best
    for k in range(p.width):
        row[k] = lowest(<real> 0)
    for y in range(v.oh):
        start = y * v.sh - v.top
        inside(v.h, start, v.dh, v.kh, &first, &stop)
        memcpy(at, x + (start + first * v.dh) * v.w, v.w * sizeof(real))
        for i in range(first + 1, stop):
            source = x + (start + i * v.dh) * v.w
            for k in range(v.w):
                value, best = source[k], at[k]
                at[k] = value if (value > best) | (value != value) else best
        if v.sw == 1:
            memcpy(out, row, v.ow * sizeof(real))
            for j in range(1, v.kw):
                for q in range(v.ow):
                    value, best = row[q + j * v.dw], out[q]
                    out[q] = value if (value > best) | (value != value) else best
        elif v.sw == 2:  # by itself, so that the compiler sees a constant
            for q in range(v.ow):
                best = row[q * 2]
                for j in range(1, v.kw):
                    value = row[q * 2 + j * v.dw]
                    best = value if (value > best) | (value != value) else best
                out[q] = best
        else:
            for q in range(v.ow):
                best = row[q * v.sw]
                for j in range(1, v.kw):
                    value = row[q * v.sw + j * v.dw]
                    best = value if (value > best) | (value != value) else best
                out[q] = best
        out += v.ow


cdef void max_plane_indices(const Pooling* p, const real* x, real* out, int64_t* indices) noexcept nogil:
    """Values and the first cell in row-major order that has them."""
    cdef const Window* v = &p.v
    cdef Py_ssize_t y, i, j, q, row, base, first, stop, rows_first, rows_stop
    cdef real value
    for y in range(v.oh):
        for q in range(v.ow):
            indices[q] = -1
        inside(v.h, y * v.sh - v.top, v.dh, v.kh, &rows_first, &rows_stop)
        for i in range(rows_first, rows_stop):
            row = (y * v.sh - v.top + i * v.dh) * v.w
            for j in range(v.kw):
                base = j * v.dw - v.left
                inside(v.w, base, v.sw, v.ow, &first, &stop)
                for q in range(first, stop):
                    value = x[row + base + q * v.sw]
                    if indices[q] < 0 or value > out[q] or (value != value and out[q] == out[q]):
                        out[q] = value
                        indices[q] = row + base + q * v.sw
        out += v.ow
        indices += v.ow


cdef int max_pool_of(cnp.ndarray x, object geometry, cnp.ndarray out, object indices, cnp.ndarray scratch, int threads,
                     real* dtype=NULL) except -1:
    cdef Window v = read_window(geometry)
    cdef Pooling p = plan_pooling(&v, sizeof(real))
    cdef const real* source = <const real*> cnp.PyArray_DATA(x)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef int64_t* index = NULL
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef Py_ssize_t i
    if indices is not None:
        index = <int64_t*> cnp.PyArray_DATA(<cnp.ndarray> indices)
    with nogil:
        for i in prange(v.n * v.c, num_threads=threads, schedule="static"):
            if index == NULL:
                max_plane(&p, source + i * v.h * v.w, to + i * v.oh * v.ow, work + threadid() * p.thread_bytes)
            else:
                max_plane_indices(&p, source + i * v.h * v.w, to + i * v.oh * v.ow, index + i * v.oh * v.ow)
    return 0


def max_pool(cnp.ndarray x, geometry, cnp.ndarray out, indices, cnp.ndarray scratch, int threads):
    """Maximum of each window of float32 or float64 x into `out`, and its place into int64 `indices` where not None."""
    if x.descr.itemsize == 4:
        max_pool_of[float](x, geometry, out, indices, scratch, threads)
    else:
        max_pool_of[double](x, geometry, out, indices, scratch, threads)


cdef int max_pool_backward_of(cnp.ndarray dout, cnp.ndarray indices, object geometry, cnp.ndarray out, int threads,
                              real* dtype=NULL) except -1:
    cdef Window v = read_window(geometry)
    cdef const real* source = <const real*> cnp.PyArray_DATA(dout)
    cdef const int64_t* index = <const int64_t*> cnp.PyArray_DATA(indices)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t i, cells = v.h * v.w, count = v.n * v.c * v.oh * v.ow
    cdef int64_t low = 0, high = 0
    with nogil:
        for i in range(count):
            low = index[i] if index[i] < low else low
            high = index[i] if index[i] > high else high
        if low >= 0 and high < cells:
            for i in prange(v.n * v.c, num_threads=threads, schedule="static"):
                scatter_plane(source + i * v.oh * v.ow, index + i * v.oh * v.ow, v.oh * v.ow, to + i * cells, cells)
    return low >= 0 and high < cells


cdef void scatter_plane(const real* dout, const int64_t* indices, Py_ssize_t count, real* out,
                        Py_ssize_t cells) noexcept nogil:
    cdef Py_ssize_t i
    memset(out, 0, cells * sizeof(real))
    for i in range(count):
        out[indices[i]] += dout[i]


def max_pool_backward(cnp.ndarray dout, cnp.ndarray indices, geometry, cnp.ndarray out, int threads):
    """Add dout up in the cells of `out` that int64 `indices` name.

    Returns False, with `out` untouched, where an index lies outside its plane.
    """
    if dout.descr.itemsize == 4:
        return max_pool_backward_of[float](dout, indices, geometry, out, threads) != 0
    return max_pool_backward_of[double](dout, indices, geometry, out, threads) != 0


# --- average ----------------------------------------------------------------------------------------------------------

cdef void avg_plane(const Pooling* p, const real* x, const double* rows, const double* columns, double fixed, real* out,
                    char* scratch) noexcept nogil:
    """Sum over the cells inside the image, divided by rows[y] * columns[q], or by `fixed` where that is not 0."""
    cdef const Window* v = &p.v
    cdef real* row = <real*> scratch
    cdef real* at = row + v.left
    cdef const real* source
    cdef Py_ssize_t y, i, j, q, k, first, stop, start
    memset(row, 0, p.width * sizeof(real))
    for y in range(v.oh):
        start = y * v.sh - v.top
        inside(v.h, start, v.dh, v.kh, &first, &stop)
        memset(at, 0, v.w * sizeof(real))
        for i in range(first, stop):
            source = x + (start + i * v.dh) * v.w
            for k in range(v.w):
                at[k] += source[k]
        memset(out, 0, v.ow * sizeof(real))
        for j in range(v.kw):
            if v.sw == 1:
                for q in range(v.ow):
                    out[q] += row[q + j * v.dw]
            elif v.sw == 2:
                for q in range(v.ow):
                    out[q] += row[q * 2 + j * v.dw]
            else:
                for q in range(v.ow):
                    out[q] += row[q * v.sw + j * v.dw]
        if fixed != 0:
            for q in range(v.ow):
                out[q] /= <real> fixed
        else:
            for q in range(v.ow):
                out[q] /= <real> (rows[y] * columns[q])
        out += v.ow


cdef void avg_plane_backward(const Pooling* p, const real* dout, const double* rows, const double* columns, double fixed,
                             real* out, char* scratch) noexcept nogil:
    """Each window's gradient, divided, is spread along its row, then added to each of its rows."""
    cdef const Window* v = &p.v
    cdef real* row = <real*> scratch
    cdef real* at = row + v.left
    cdef real* share = <real*> (scratch + 2 * aligned(p.width * sizeof(real)) + aligned(v.ow * sizeof(int64_t)))
    cdef real* to
    cdef Py_ssize_t y, i, j, q, k, first, stop, start
    memset(out, 0, v.h * v.w * sizeof(real))
    for y in range(v.oh):
        for q in range(v.ow):
            share[q] = dout[q] / (<real> fixed if fixed != 0 else <real> (rows[y] * columns[q]))
        memset(row, 0, p.width * sizeof(real))
        for j in range(v.kw):
            for q in range(v.ow):
                row[q * v.sw + j * v.dw] += share[q]
        start = y * v.sh - v.top
        inside(v.h, start, v.dh, v.kh, &first, &stop)
        for i in range(first, stop):
            to = out + (start + i * v.dh) * v.w
            for k in range(v.w):
                to[k] += at[k]
        dout += v.ow


cdef int avg_pool_of(cnp.ndarray x, object geometry, cnp.ndarray rows, cnp.ndarray columns, double fixed, bint backward,
                     cnp.ndarray out, cnp.ndarray scratch, int threads, real* dtype=NULL) except -1:
    cdef Window v = read_window(geometry)
    cdef Pooling p = plan_pooling(&v, sizeof(real))
    cdef const real* source = <const real*> cnp.PyArray_DATA(x)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef const double* r = <const double*> cnp.PyArray_DATA(rows)
    cdef const double* c = <const double*> cnp.PyArray_DATA(columns)
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef Py_ssize_t i
    with nogil:
        for i in prange(v.n * v.c, num_threads=threads, schedule="static"):
            if backward:
                avg_plane_backward(&p, source + i * v.oh * v.ow, r, c, fixed, to + i * v.h * v.w,
                                   work + threadid() * p.thread_bytes)
            else:
                avg_plane(&p, source + i * v.h * v.w, r, c, fixed, to + i * v.oh * v.ow,
                          work + threadid() * p.thread_bytes)
    return 0


def avg_pool(cnp.ndarray x, geometry, cnp.ndarray rows, cnp.ndarray columns, double fixed, bint backward,
             cnp.ndarray out, cnp.ndarray scratch, int threads):
    """Average pooling of float32 or float64 x into `out`; with `backward`, x is dout and `out` the input's gradient.

    The divisor of window (y, q) is ``rows[y] * columns[q]`` (float64 arrays), or `fixed` where that is not 0.
    """
    if x.descr.itemsize == 4:
        avg_pool_of[float](x, geometry, rows, columns, fixed, backward, out, scratch, threads)
    else:
        avg_pool_of[double](x, geometry, rows, columns, fixed, backward, out, scratch, threads)
