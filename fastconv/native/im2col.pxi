# im2col and col2im in all layouts.
#
# A column matrix has an element for each (n, r, p): image, row r = (channel, kh, kw), position p = (oh, ow). A layout is
# the three steps from one element to the next along them:
#
#     layout      step_n  step_r  step_p
#     "rows"      P*R     1       R        (N*P, R)
#     "columns"   R*P     P       1        (N, R, P); "windows" is the same memory under another shape
#     "cs231n"    1       P*N     N        (R, P*N)
#
# Only the order of the loops differs, so that the column matrix, the larger side, is walked through once and in order.
# Elements are copied by their size, whatever their type. Threads take (image, channel) or (image, row of output) items.

cdef struct pair64:
    uint64_t first
    uint64_t second

ctypedef fused item:
    uint8_t
    uint16_t
    uint32_t
    uint64_t
    pair64

ctypedef fused number:
    float
    double

# A view of the image: steps in elements; along the width it is contiguous.
cdef struct Image:
    Py_ssize_t step_n, step_c, step_h

cdef struct Columns:
    Py_ssize_t step_n, step_r, step_p


cdef Columns column_steps(const Window* v, layout) except *:
    cdef Py_ssize_t rows = v.c * v.kh * v.kw, places = v.oh * v.ow
    if layout == "rows":
        return Columns(places * rows, 1, rows)
    if layout == "cs231n":
        return Columns(1, places * v.n, v.n)
    return Columns(rows * places, places, 1)


cdef Image image_steps(cnp.ndarray x, Py_ssize_t itemsize):
    return Image(x.strides[0] // itemsize, x.strides[1] // itemsize, x.strides[2] // itemsize)


cdef void gather_run(item* to, Py_ssize_t step_to, const item* row, Py_ssize_t size, Py_ssize_t start, Py_ssize_t step,
                     Py_ssize_t count, item pad) noexcept nogil:
    """to[i*step_to] = row[start + i*step], or `pad` outside the row's `size` cells (row == NULL: everywhere)."""
    cdef Py_ssize_t i, first = 0, stop = 0
    if row != NULL:
        inside(size, start, step, count, &first, &stop)
    for i in range(first):
        to[i * step_to] = pad
    if step_to == 1 and step == 1:
        if stop > first:
            memcpy(to + first, row + start + first, (stop - first) * sizeof(item))
    elif step_to == 1:
        for i in range(first, stop):
            to[i] = row[start + i * step]
    else:
        for i in range(first, stop):
            to[i * step_to] = row[start + i * step]
    for i in range(stop, count):
        to[i * step_to] = pad


cdef void columns_item(const Window* v, const Image* image, const Columns* cols, const item* x, item* col, item pad,
                       Py_ssize_t n, Py_ssize_t c) noexcept nogil:
    """All rows of one channel of one image, position by position ("columns", "windows")."""
    cdef Py_ssize_t i, j, y, row
    cdef item* to
    for i in range(v.kh):
        for j in range(v.kw):
            to = col + n * cols.step_n + ((c * v.kh + i) * v.kw + j) * cols.step_r
            for y in range(v.oh):
                row = y * v.sh - v.top + i * v.dh
                gather_run(to + y * v.ow, 1,
                           x + n * image.step_n + c * image.step_c + row * image.step_h if 0 <= row < v.h else NULL,
                           v.w, j * v.dw - v.left, v.sw, v.ow, pad)


cdef void rows_item(const Window* v, const Image* image, const Columns* cols, const item* x, item* col, item pad,
                    Py_ssize_t n, Py_ssize_t y) noexcept nogil:
    """All positions of one row of output of one image, each a full window ("rows")."""
    cdef Py_ssize_t c, i, ow, row
    cdef item* to = col + n * cols.step_n + y * v.ow * cols.step_p
    for ow in range(v.ow):
        for c in range(v.c):
            for i in range(v.kh):
                row = y * v.sh - v.top + i * v.dh
                gather_run(to, 1,
                           x + n * image.step_n + c * image.step_c + row * image.step_h if 0 <= row < v.h else NULL,
                           v.w, ow * v.sw - v.left, v.dw, v.kw, pad)
                to += v.kw


cdef void cs231n_item(const Window* v, const Image* image, const Columns* cols, const item* x, item* col, item pad,
                      Py_ssize_t c, Py_ssize_t y) noexcept nogil:
    """One channel's rows for one row of output, over all images (the image runs fastest)."""
    cdef Py_ssize_t i, j, ow, n, row, column
    cdef item* to
    cdef const item* at
    for i in range(v.kh):
        row = y * v.sh - v.top + i * v.dh
        for j in range(v.kw):
            to = col + ((c * v.kh + i) * v.kw + j) * cols.step_r + y * v.ow * v.n
            for ow in range(v.ow):
                column = ow * v.sw - v.left + j * v.dw
                if 0 <= row < v.h and 0 <= column < v.w:
                    at = x + c * image.step_c + row * image.step_h + column
                    for n in range(v.n):
                        to[n] = at[n * image.step_n]
                else:
                    for n in range(v.n):
                        to[n] = pad
                to += v.n


cdef void run_im2col(const Window* v, const Image* image, const Columns* cols, const item* x, item* col, item pad,
                     int threads) noexcept nogil:
    cdef Py_ssize_t i
    if cols.step_p == 1:
        for i in prange(v.n * v.c, num_threads=threads, schedule="static"):
            columns_item(v, image, cols, x, col, pad, i // v.c, i % v.c)
    elif cols.step_r == 1:
        for i in prange(v.n * v.oh, num_threads=threads, schedule="static"):
            rows_item(v, image, cols, x, col, pad, i // v.oh, i % v.oh)
    else:
        for i in prange(v.c * v.oh, num_threads=threads, schedule="static"):
            cs231n_item(v, image, cols, x, col, pad, i // v.oh, i % v.oh)


cdef int im2col_of(cnp.ndarray x, object geometry, object layout, cnp.ndarray pad_value, cnp.ndarray out, int threads,
                   item* dtype=NULL) except -1:
    cdef Window v = read_window(geometry)
    cdef Image image = image_steps(x, sizeof(item))
    cdef Columns cols = column_steps(&v, layout)
    cdef item pad
    memcpy(&pad, cnp.PyArray_DATA(pad_value), sizeof(item))
    if v.n:
        with nogil:
            run_im2col(&v, &image, &cols, <const item*> cnp.PyArray_DATA(x), <item*> cnp.PyArray_DATA(out), pad, threads)
    return 0


def im2col(cnp.ndarray x, geometry, layout, cnp.ndarray pad_value, cnp.ndarray out, int threads):
    """Lower x into `out`, a C-contiguous column matrix of the same item size (1, 2, 4, 8 or 16 bytes).

    x needs to be contiguous along its width only. `pad_value` is an array of one item.
    """
    cdef Py_ssize_t size = x.descr.itemsize
    if size == 1:
        im2col_of[uint8_t](x, geometry, layout, pad_value, out, threads)
    elif size == 2:
        im2col_of[uint16_t](x, geometry, layout, pad_value, out, threads)
    elif size == 4:
        im2col_of[uint32_t](x, geometry, layout, pad_value, out, threads)
    elif size == 8:
        im2col_of[uint64_t](x, geometry, layout, pad_value, out, threads)
    elif size == 16:
        im2col_of[pair64](x, geometry, layout, pad_value, out, threads)
    else:
        raise NotImplementedError(f"im2col of items of {size} bytes")


cdef void add_columns(const Window* v, const Columns* cols, const number* col, number* out, Py_ssize_t n,
                      Py_ssize_t c) noexcept nogil:
    """Add all rows of one channel of one image into its plane, which no other item touches."""
    cdef Py_ssize_t i, j, y, x, row, first, stop, start
    cdef const number* at
    cdef number* to
    cdef number* plane = out + (n * v.c + c) * v.h * v.w
    memset(plane, 0, v.h * v.w * sizeof(number))
    for i in range(v.kh):
        for j in range(v.kw):
            start = j * v.dw - v.left
            inside(v.w, start, v.sw, v.ow, &first, &stop)
            for y in range(v.oh):
                row = y * v.sh - v.top + i * v.dh
                if row < 0 or row >= v.h:
                    continue
                at = col + n * cols.step_n + ((c * v.kh + i) * v.kw + j) * cols.step_r + y * v.ow * cols.step_p
                to = plane + row * v.w
                if v.sw == 1 and cols.step_p == 1:
                    for x in range(first, stop):
                        to[start + x] += at[x]
                else:
                    for x in range(first, stop):
                        to[start + x * v.sw] += at[x * cols.step_p]


cdef void add_rows(const Window* v, const Columns* cols, const number* col, number* out, Py_ssize_t n, Py_ssize_t c0,
                   Py_ssize_t c1) noexcept nogil:
    """Add the windows of some channels of one image ("rows": a window lies together, so it is read together)."""
    cdef Py_ssize_t c, i, j, y, x, row, column
    cdef const number* at
    cdef number* plane
    memset(out + (n * v.c + c0) * v.h * v.w, 0, (c1 - c0) * v.h * v.w * sizeof(number))
    for y in range(v.oh):
        for x in range(v.ow):
            at = col + n * cols.step_n + (y * v.ow + x) * cols.step_p + c0 * v.kh * v.kw
            for c in range(c0, c1):
                plane = out + (n * v.c + c) * v.h * v.w
                for i in range(v.kh):
                    row = y * v.sh - v.top + i * v.dh
                    if 0 <= row < v.h:
                        for j in range(v.kw):
                            column = x * v.sw - v.left + j * v.dw
                            if 0 <= column < v.w:
                                plane[row * v.w + column] += at[j]
                    at += v.kw


cdef int col2im_of(cnp.ndarray col, object geometry, object layout, cnp.ndarray out, int threads,
                   number* dtype=NULL) except -1:
    cdef Window v = read_window(geometry)
    cdef Columns cols = column_steps(&v, layout)
    cdef const number* source = <const number*> cnp.PyArray_DATA(col)
    cdef number* to = <number*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t i, blocks
    if v.n == 0:
        return 0
    with nogil:
        if cols.step_r == 1:
            # channels are split in blocks only where there are too few images; the sums do not depend on it
            blocks = least(v.c, ceil_div(4 * threads, v.n)) if threads > 1 else 1
            for i in prange(v.n * blocks, num_threads=threads, schedule="static"):
                add_rows(&v, &cols, source, to, i // blocks, i % blocks * v.c // blocks, (i % blocks + 1) * v.c // blocks)
        else:
            for i in prange(v.n * v.c, num_threads=threads, schedule="static"):
                add_columns(&v, &cols, source, to, i // v.c, i % v.c)
    return 0


def col2im(cnp.ndarray col, geometry, layout, cnp.ndarray out, int threads):
    """Add the columns up in the image `out`, all C-contiguous float32 or float64. Each plane has one thread."""
    if col.descr.itemsize == 4:
        col2im_of[float](col, geometry, layout, out, threads)
    else:
        col2im_of[double](col, geometry, layout, out, threads)
