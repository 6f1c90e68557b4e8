# Products of two matrices, for the fully connected layers of a network: where the convolutions' own kernels would take a
# matrix for an image, they copy it once more than is needed.
#
#     left (P, K) @ right (K, Q) -> (P, Q), or turned on the way out to (Q, P)
#
# The three products of a layer, out = x @ W, dx = dout @ W.T and dW = x.T @ dout, want each operand as it lies or turned. The
# tile of the convolutions multiplies rows of the left operand, as they lie, with panels of the right one. So panels are copied
# or turned while they are packed; a left operand that lies the other way has the roles exchanged, (A @ B).T = B.T @ A.T, and its
# result is turned on the way out; and what is left of that operand, the smaller one of a layer's, is turned once.
#
# A batch of 100 uses an element of the weights 100 times: 12 times as long as it takes to come from memory, if nothing waits
# for it. So the tiles ask for what is packed next (ahead.h), and for the rows that the next chunk of terms reads.
#
# Columns beyond the last whole vector are inner products where they are few and their sums long, as in implicit_gemm.pxi (100
# columns are six vectors and four such columns). Sums are cut into chunks of about CHUNK_TERMS, whatever the threads, which
# take rows or panels.

cdef enum:
    PRODUCT_ROWS = 510       # rows of the left operand that meet a panel before the next one is packed


cdef struct Product:
    Py_ssize_t rows, terms, columns
    bint left_turned         # the left operand is (K, P) in memory,
    bint right_turned        # the right one (Q, K),
    bint turned              # and the result (Q, P)
    Py_ssize_t lda           # from row to row of the left operand, as the tiles read it
    Py_ssize_t width         # of a panel
    Py_ssize_t chunks        # of the terms
    Py_ssize_t vectors       # of the columns that fill vectors, in so many
    Py_ssize_t panels
    Py_ssize_t rest          # columns behind them, which are inner products
    Py_ssize_t row_blocks, column_blocks  # of which a thread takes a pair at a time
    Py_ssize_t left_bytes, panel_bytes, rest_bytes, sum_bytes, table_bytes, thread_bytes


cdef void plan_product(Product* job, Py_ssize_t itemsize, Py_ssize_t threads) noexcept nogil:
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // itemsize, longest, blocks
    job.lda = whole(job.terms, lanes) if job.left_turned else job.terms
    job.width = FC_TILE_VECTORS * lanes
    job.chunks = most(ceil_div(job.terms, CHUNK_TERMS), 1)
    longest = ceil_div(job.terms, job.chunks)
    job.rest = job.columns % lanes
    if job.turned or job.rest > lanes // 4 or job.rest == job.columns or longest < LONG_SUM:
        job.rest = 0
    job.vectors = ceil_div(job.columns - job.rest, lanes)
    job.panels = ceil_div(job.vectors, FC_TILE_VECTORS)
    job.row_blocks = most(ceil_div(job.rows, PRODUCT_ROWS), 1)
    job.column_blocks = 1
    if threads > 1:  # every element is computed in the same way in whatever block it lies
        if job.panels >= threads and (job.panels % threads == 0 or job.panels >= 4 * threads):
            job.column_blocks = threads
        else:
            blocks = ceil_div(job.row_blocks, threads) * threads
            job.row_blocks = most(least(blocks, ceil_div(job.rows, FC_TILE_ROWS)), 1)
    job.left_bytes = aligned(job.rows * job.lda * itemsize) if job.left_turned else 0
    job.panel_bytes = aligned((longest * job.width + lanes) * itemsize)
    job.rest_bytes = aligned(job.rest * longest * itemsize)
    job.sum_bytes = aligned((ceil_div(job.rows, job.row_blocks) * job.width + lanes) * itemsize)
    job.table_bytes = aligned((job.terms + longest + job.width + ceil_div(job.rows, job.row_blocks)) * sizeof(ptrdiff_t))
    job.thread_bytes = job.panel_bytes + job.rest_bytes + job.sum_bytes


# Where rows lie: of the left operand, turned; of a panel; of the right operand, turned; and of what a panel gives.
cdef struct ProductTables:
    ptrdiff_t* left
    ptrdiff_t* panel
    ptrdiff_t* right
    ptrdiff_t* sums


# A panel: its first column, and their number.
cdef struct Columns:
    Py_ssize_t first, count


cdef inline Columns panel_columns(const Product* job, Py_ssize_t panel, Py_ssize_t lanes) noexcept nogil:
    cdef Py_ssize_t first = job.vectors * panel // job.panels * lanes
    return Columns(first, least(job.vectors * (panel + 1) // job.panels * lanes, job.columns - job.rest) - first)


cdef void expect_product(const Product* job, const real* left, Py_ssize_t first, Py_ssize_t rows, const real* right,
                         const real* out, Py_ssize_t panel, Py_ssize_t chunk, fc_region* region, fc_ahead* ahead,
                         Py_ssize_t calls) noexcept nogil:
    """Begin to ask for what the product of a panel and a chunk of the terms reads first, and for where it is turned to."""
    cdef Py_ssize_t size = sizeof(real), count = 0
    cdef Columns seen = panel_columns(job, panel, FC_VECTOR_BYTES // size)
    cdef Py_ssize_t column = seen.first, columns = seen.count
    cdef Py_ssize_t term = job.terms * chunk // job.chunks, terms = job.terms * (chunk + 1) // job.chunks - term
    ahead.region = region
    if job.columns * job.terms * size > FAR_BYTES:
        if job.right_turned:
            region[count] = fc_bands(<const char*> (right + column * job.terms + term), columns, job.terms * size, terms * size)
        else:
            region[count] = fc_bands(<const char*> (right + term * job.columns + column), terms, job.columns * size,
                                     columns * size)
        count += 1
    if not job.left_turned and job.rows * job.terms * size > FAR_BYTES:
        region[count] = fc_bands(<const char*> (left + first * job.terms + term), rows, job.terms * size, terms * size)
        count += 1
    if job.turned and chunk == 0 and job.rows * job.columns * size > FAR_BYTES:
        region[count] = fc_bands(<const char*> (out + column * job.rows + first), columns, job.rows * size, rows * size)
        count += 1
    fc_ahead_begin(ahead, count, calls)


cdef void product_item(const Product* job, Py_ssize_t item, const real* left, const real* right, const real* end,
                       const ProductTables* at, real* out, char* scratch) noexcept nogil:
    """One block of rows with one block of columns. A turned left operand has been turned; `end` is the right one's."""
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t block = item // job.column_blocks
    cdef Py_ssize_t first = job.rows * block // job.row_blocks
    cdef Py_ssize_t rows_all = job.rows * (block + 1) // job.row_blocks - first
    cdef Py_ssize_t g0 = job.panels * (item % job.column_blocks) // job.column_blocks
    cdef Py_ssize_t g1 = job.panels * (item % job.column_blocks + 1) // job.column_blocks
    cdef Py_ssize_t tiles = ceil_div(rows_all, FC_TILE_ROWS)
    cdef Py_ssize_t g, chunk, column, columns, term, terms, vectors, m, row, rows, ldc, i, j
    cdef real* panel = <real*> scratch
    cdef real* rest = <real*> (scratch + job.panel_bytes)
    cdef real* sums = <real*> (scratch + job.panel_bytes + job.rest_bytes)
    cdef const real* source
    cdef real* to
    cdef Columns these
    cdef bint straight, tail = job.rest > 0 and g1 == job.panels
    cdef int flags
    cdef fc_region[3] region
    cdef fc_ahead coming
    cdef ptrdiff_t[FC_AHEAD_TILE + FC_AHEAD_LINES + 1] line
    cdef fc_asked asked
    asked.from_, asked.at, asked.into = NULL, line, FC_ASK
    for g in range(g0, g1):
        these = panel_columns(job, g, lanes)
        column, columns = these.first, these.count
        vectors = ceil_div(columns, lanes)
        straight = not job.turned and columns % lanes == 0
        for chunk in range(job.chunks):
            term = job.terms * chunk // job.chunks
            terms = job.terms * (chunk + 1) // job.chunks - term
            if job.right_turned:
                channels_last(panel, job.width, right + column * job.terms + term, at.right, columns, terms, 1, 0, end)
            elif real is float:
                fc_copy_runs_f32(panel, job.width, right + term * job.columns + column, job.columns, terms, columns)
            else:
                fc_copy_runs_f64(panel, job.width, right + term * job.columns + column, job.columns, terms, columns)
            if chunk + 1 < job.chunks:
                expect_product(job, left, first, rows_all, right, out, g, chunk + 1, region, &coming, tiles)
            elif g + 1 < g1:
                expect_product(job, left, first, rows_all, right, out, g + 1, 0, region, &coming, tiles)
            else:
                fc_ahead_begin(&coming, 0, 1)
            flags = FC_ACCUMULATE if chunk > 0 else 0
            for m in range(tiles):
                row = rows_all * m // tiles
                rows = rows_all * (m + 1) // tiles - row
                to, ldc = sums + row * job.width, job.width
                asked.count = 0
                if straight:
                    to, ldc = out + (first + row) * job.columns + column, job.columns
                    if chunk == 0:
                        asked.count = fc_ahead_tile(<const char*> to, rows, ldc * sizeof(real), columns * sizeof(real), line)
                asked.count = fc_ahead_take(&coming, line, asked.count)
                correlate_tile(left + (first + row) * job.lda + term, job.lda, panel, at.panel, terms, rows, vectors, to, ldc,
                               <const real*> NULL, flags, &asked if asked.count else NULL)
            if tail and g + 1 == g1:
                # few columns: rows of the right operand, turned
                source = right + (job.columns - job.rest) * job.terms + term
                if not job.right_turned or job.chunks > 1:
                    for i in range(job.rest):
                        for j in range(terms):
                            rest[i * terms + j] = (source[i * job.terms + j] if job.right_turned else
                                                   right[(term + j) * job.columns + job.columns - job.rest + i])
                    source = rest
                for m in range(tiles):
                    row = rows_all * m // tiles
                    rows = rows_all * (m + 1) // tiles - row
                    to = out + (first + row) * job.columns + job.columns - job.rest
                    if real is float:
                        fc_dots_f32(rows, job.rest, left + (first + row) * job.lda + term, job.lda, source, terms, to,
                                    job.columns, NULL, flags)
                    else:
                        fc_dots_f64(rows, job.rest, left + (first + row) * job.lda + term, job.lda, source, terms, to,
                                    job.columns, NULL, flags)
        if job.turned:
            # whole vectors of a row of the sums, a channel, are stored: only those that are full, for others write what is behind
            i = rows_all // lanes * lanes
            if i > 0:
                channels_last(out + column * job.rows + first, job.rows, sums, at.sums, i, columns, 1, 0,
                              sums + rows_all * job.width + lanes)
            for row in range(i, rows_all):
                for j in range(columns):
                    out[(column + j) * job.rows + first + row] = sums[row * job.width + j]
        elif not straight:
            for i in range(rows_all):
                memcpy(out + (first + i) * job.columns + column, sums + i * job.width, columns * sizeof(real))


cdef void turn_left(const Product* job, Py_ssize_t item, Py_ssize_t items, const real* left, const ptrdiff_t* offset,
                    const real* end, real* turned) noexcept nogil:
    """One of `items` parts of (K, P) -> (P, K)."""
    cdef Py_ssize_t first = job.rows * item // items, stop = job.rows * (item + 1) // items
    channels_last(turned + first * job.lda, job.lda, left + first, offset, job.terms, stop - first, 1, 0, end)


cdef int matrix_product_of(cnp.ndarray a, cnp.ndarray b, cnp.ndarray out, object scratch, int threads,
                           real* dtype=NULL) except -1:
    cdef Product job
    cdef ProductTables at
    cdef const real* left = <const real*> cnp.PyArray_DATA(a)
    cdef const real* right = <const real*> cnp.PyArray_DATA(b)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef Py_ssize_t item, items, i
    cdef bint a_turned = not cnp.PyArray_IS_C_CONTIGUOUS(a), b_turned = not cnp.PyArray_IS_C_CONTIGUOUS(b)
    cdef const real* swap
    cdef const real* end
    cdef real* turned
    cdef cnp.ndarray buffer
    cdef char* work
    job.rows, job.terms, job.columns = a.shape[0], a.shape[1], b.shape[1]
    job.left_turned, job.right_turned, job.turned = False, b_turned, a_turned
    if a_turned:  # out.T = b.T @ a.T
        swap = left
        left, right = right, swap
        job.rows, job.columns = job.columns, job.rows
        job.left_turned, job.right_turned = not b_turned, False
    plan_product(&job, sizeof(real), threads)
    buffer = scratch(job.left_bytes + job.table_bytes + threads * job.thread_bytes)
    work = <char*> cnp.PyArray_DATA(buffer)
    with nogil:
        turned = <real*> work
        at.left = <ptrdiff_t*> (work + job.left_bytes)
        at.panel = at.left + job.terms
        at.right = at.panel + ceil_div(job.terms, job.chunks)
        at.sums = at.right + job.width
        for i in range(job.terms):
            at.left[i] = i * job.rows
        for i in range(ceil_div(job.terms, job.chunks)):
            at.panel[i] = i * job.width
        for i in range(job.width):
            at.right[i] = i * job.terms
        for i in range(ceil_div(job.rows, job.row_blocks)):
            at.sums[i] = i * job.width
        if job.left_turned:
            items = ceil_div(job.rows, 96)
            end = left + job.terms * job.rows
            if items == 1 or threads == 1:
                for item in range(items):
                    turn_left(&job, item, items, left, at.left, end, turned)
            else:
                for item in prange(items, num_threads=threads, schedule="static"):
                    turn_left(&job, item, items, left, at.left, end, turned)
            left = turned
        end = right + job.terms * job.columns
        work += job.left_bytes + job.table_bytes
        items = job.row_blocks * job.column_blocks
        if items == 1 or threads == 1:
            for item in range(items):
                product_item(&job, item, left, right, end, &at, to, work)
        else:
            for item in prange(items, num_threads=threads, schedule="static", chunksize=1):
                product_item(&job, item, left, right, end, &at, to, work + threadid() * job.thread_bytes)
    return 0


def matrix_product(cnp.ndarray a, cnp.ndarray b, cnp.ndarray out, scratch, int threads):
    """``a @ b`` into `out`, which is C-contiguous; `a` and `b` are, or their transposes. No axis is empty. ``scratch(nbytes)`` as
    for max_pool."""
    if a.descr.itemsize == 4:
        matrix_product_of[float](a, b, out, scratch, threads)
    else:
        matrix_product_of[double](a, b, out, scratch, threads)
