# Winograd convolution F(4x4, 3x3), for 3x3 filters at stride 1: four times fewer multiplications than the definition.
#
#     input transform    (N, C, H, W)                 -> V (36, C, T)
#     36 products        U (36, K, C) @ V (36, C, T)  -> M (36, K, T)
#     output transform   M (36, K, T)                 -> (N, K, OH, OW)
#
# T runs over the 4x4 tiles of all images, in blocks of BLOCK_TILES that run on across rows and images; lanes of vectors are
# tiles. winograd.h has the transforms, the products are the micro-kernel of the direct convolution.
#
# Where there are blocks of tiles enough, each thread takes one through all of it, and V stays in its L2. Otherwise the threads
# share a V. Order of work then, for a few blocks of tiles at a time ("super-block"): transform its V; then for each block of about BLOCK_K
# output channels and each block of tiles, 36 products into M (that one block of channels only: 442 kB in float32) and the
# output transform of it, from which the pixels go to the output with bias and ReLU. V's slice of one of the 36 products is
# used by all rows of U while it lies in L1/L2. The transformed filters U are kept for the whole call where they take at
# most KEPT_FILTERS bytes; otherwise each block of channels transforms its own when its turn comes, and a super-block is as
# large as V_BYTES allows, so that this is done few times.
#
# Threads: V is shared, and made by all (items: block of tiles x some channels); after a barrier, items are blocks of tiles x
# blocks of output channels, or the latter alone where they transform their own filters. A tile's sums do not depend on the
# item it is in: the same bits for any number of threads. On many cores the super-block grows with their number.
#
# Non-finite values (rule 13): an infinity or a NaN in a tile spoils all of its 16 pixels, and large finite values may
# overflow in a transform where the definition would not. Every output value is looked at before the ReLU, at the price of
# one FMA; if one is not finite, the call reports it and the caller computes all of it by another algorithm.

cdef extern from "simd.h" nogil:
    void fc_winograd_row_f32(const float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, float*, ptrdiff_t)
    void fc_winograd_row_f64(const double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, double*, ptrdiff_t)
    void fc_winograd_columns_f32(const float*, ptrdiff_t, ptrdiff_t, float*, ptrdiff_t, ptrdiff_t)
    void fc_winograd_columns_f64(const double*, ptrdiff_t, ptrdiff_t, double*, ptrdiff_t, ptrdiff_t)
    int fc_winograd_output_f32(const float*, ptrdiff_t, ptrdiff_t, float*, ptrdiff_t, const float*, int)
    int fc_winograd_output_f64(const double*, ptrdiff_t, ptrdiff_t, double*, ptrdiff_t, const double*, int)
    void fc_winograd_filters_f32(const float*, ptrdiff_t, int, ptrdiff_t, const float*, float*, ptrdiff_t)
    void fc_winograd_filters_f64(const double*, ptrdiff_t, int, ptrdiff_t, const double*, double*, ptrdiff_t)

cdef enum:
    BLOCK_TILES = 64
    BLOCK_K = 48
    CHANNELS_AT_ONCE = 16     # of one item of the input transform
    KEPT_FILTERS = 12582912   # bytes of U that are transformed once for a call
    V_BYTES = 6291456         # of a super-block, where filters are transformed block by block

# Neighbouring tiles of one row of tiles.
cdef struct TileRun:
    Py_ssize_t lane, count, image, row, column

cdef struct Winograd:
    Py_ssize_t batch, groups, sources, rows
    Py_ssize_t h, w, top, left       # source planes
    Py_ssize_t out_h, out_w
    Py_ssize_t step_k, step_c        # from filter to filter along output and input channels
    bint turned                      # filters are turned by 180 degrees
    Py_ssize_t tiles_h, tiles_w, tiles, blocks
    Py_ssize_t super                 # blocks of a super-block
    Py_ssize_t parts                 # blocks of output channels
    Py_ssize_t part_rows             # the most rows of one
    bint kept                        # U is transformed once
    bint apart                       # each thread has blocks of tiles of its own, and a V for one of them
    Py_ssize_t v_plane, v_block      # elements of one of the 36 planes of V, and of a block of tiles
    Py_ssize_t u_bytes, v_bytes, m_bytes, line_bytes, half_bytes, run_bytes, thread_bytes


cdef void plan_winograd(Winograd* job, const Window* v, bint backward, Py_ssize_t itemsize,
                        Py_ssize_t threads) noexcept nogil:
    cdef Py_ssize_t cg = v.c // v.groups, kg = v.k // v.groups, tiles
    memset(job, 0, sizeof(Winograd))
    job.batch, job.groups = v.n, v.groups
    if backward:
        # a convolution of dout, padded by 2 - pad, with the filters turned and their channels exchanged
        job.sources, job.rows = kg, cg
        job.h, job.w, job.top, job.left = v.oh, v.ow, 2 - v.top, 2 - v.left
        job.out_h, job.out_w = v.h, v.w
        job.step_k, job.step_c, job.turned = 9, cg * 9, True
    else:
        job.sources, job.rows = cg, kg
        job.h, job.w, job.top, job.left = v.h, v.w, v.top, v.left
        job.out_h, job.out_w = v.oh, v.ow
        job.step_k, job.step_c = cg * 9, 9
    job.tiles_h, job.tiles_w = ceil_div(job.out_h, 4), ceil_div(job.out_w, 4)
    job.tiles = job.batch * job.tiles_h * job.tiles_w
    job.blocks = ceil_div(job.tiles, BLOCK_TILES)
    # one cache line more than a power of two, so that the 36 planes do not share cache sets
    job.v_plane = job.sources * BLOCK_TILES + 64 // itemsize
    job.v_block = 36 * job.v_plane
    job.kept = 36 * job.rows * job.sources * itemsize <= KEPT_FILTERS
    job.apart = job.kept and (threads == 1 or job.blocks >= 2 * threads)
    if job.apart:
        job.super = 0
    elif job.kept:
        job.super = 2 * threads
    else:
        job.super = most(V_BYTES // (job.v_block * itemsize), 1)
    if not job.apart:
        job.super = most(least(job.super, job.blocks), 1)
    tiles = ceil_div(job.rows, FC_TILE_ROWS)
    job.parts = ceil_div(job.rows, BLOCK_K)
    if not job.apart and threads > 1:  # enough items for all threads; how the channels are cut changes no sum
        job.parts = most(job.parts, ceil_div(2 * threads, job.super)) if job.kept else \
            ceil_div(job.parts, threads) * threads
    job.parts = least(job.parts, tiles)
    job.part_rows = ceil_div(tiles, job.parts) * FC_TILE_ROWS
    job.u_bytes = aligned(36 * (job.rows * job.sources * itemsize + job.parts * 64)) if job.kept else 0
    job.v_bytes = aligned(job.super * job.v_block * itemsize) if not job.apart else 0
    job.m_bytes = aligned(job.part_rows * 36 * BLOCK_TILES * itemsize)
    job.line_bytes = aligned(most(4 * BLOCK_TILES * itemsize + 8 * FC_VECTOR_BYTES,
                                  4 * (4 * BLOCK_TILES) * itemsize))
    job.half_bytes = aligned(36 * (BLOCK_TILES * itemsize + FC_VECTOR_BYTES))
    job.run_bytes = aligned(BLOCK_TILES * sizeof(TileRun))
    job.thread_bytes = job.m_bytes + job.line_bytes + job.half_bytes + job.run_bytes
    if job.apart:
        job.thread_bytes += aligned(job.v_block * itemsize)
    if not job.kept:
        job.thread_bytes += aligned(36 * (job.part_rows * job.sources * itemsize + 64))


cdef Py_ssize_t cut_tiles(const Winograd* job, Py_ssize_t block, TileRun* run) noexcept nogil:
    """Cut a block of tiles at the ends of rows of tiles."""
    cdef Py_ssize_t tile = block * BLOCK_TILES, last = least(tile + BLOCK_TILES, job.tiles), count = 0
    while tile < last:
        run[count].lane = tile - block * BLOCK_TILES
        run[count].column = tile % job.tiles_w
        run[count].row = tile // job.tiles_w % job.tiles_h
        run[count].image = tile // (job.tiles_w * job.tiles_h)
        run[count].count = least(job.tiles_w - run[count].column, last - tile)
        tile += run[count].count
        count += 1
    return count


cdef void transform_input(const Winograd* job, Py_ssize_t group, Py_ssize_t block, Py_ssize_t c0, Py_ssize_t c1,
                          const real* source, real* v, char* scratch) noexcept nogil:
    """V of some channels of one block of tiles."""
    cdef real* line = <real*> scratch
    cdef real* half = <real*> (scratch + job.line_bytes)
    cdef TileRun* run = <TileRun*> (scratch + job.line_bytes + job.half_bytes)
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t plane = BLOCK_TILES + lanes
    cdef Py_ssize_t runs = cut_tiles(job, block, run)
    cdef Py_ssize_t tiles = least(BLOCK_TILES, job.tiles - block * BLOCK_TILES)
    cdef Py_ssize_t idle = ceil_div(tiles, lanes) * lanes - tiles
    cdef Py_ssize_t c, r, i, j, y, start, cells, touched, first, stop, inner, outer
    cdef const real* end = source + job.batch * job.groups * job.sources * job.h * job.w
    cdef const real* image
    cdef const real* row
    cdef real* to
    for c in range(c0, c1):
        for r in range(runs):
            image = source + ((run[r].image * job.groups + group) * job.sources + c) * job.h * job.w
            start = 4 * run[r].column - job.left
            cells = 4 * run[r].count + 2
            touched = 4 * ceil_div(run[r].count, lanes) * lanes + lanes
            inside(job.w, start, 1, cells, &first, &stop)
            for i in range(6):
                y = 4 * run[r].row - job.top + i
                to = half + 6 * i * plane + run[r].lane
                if y < 0 or y >= job.h:
                    for j in range(6):
                        memset(to + j * plane, 0, run[r].count * sizeof(real))
                    continue
                row = image + y * job.w + start
                inner, outer = first, stop
                if row < source or row + touched > end:
                    # vectors from here would reach beyond the array, not only beyond the row
                    pad_rows(line, cells, 1, first, stop, row + first, 1, 0, row + stop)
                    row, inner, outer = line, 0, cells
                if real is float:
                    fc_winograd_row_f32(row, inner, outer, run[r].count, to, plane)
                else:
                    fc_winograd_row_f64(row, inner, outer, run[r].count, to, plane)
        if idle:  # lanes without a tile must hold numbers, or the output transform finds something that is not finite
            for i in range(36):
                memset(half + i * plane + tiles, 0, idle * sizeof(real))
        if real is float:
            fc_winograd_columns_f32(half, plane, tiles, v + c * BLOCK_TILES, job.v_plane, BLOCK_TILES)
        else:
            fc_winograd_columns_f64(half, plane, tiles, v + c * BLOCK_TILES, job.v_plane, BLOCK_TILES)


cdef inline Py_ssize_t filter_plane(const Winograd* job, Py_ssize_t rows, real* dtype) noexcept nogil:
    """Elements of one of the 36 planes of U for `rows` rows: a cache line more, as in V."""
    return rows * job.sources + 64 // sizeof(real)


cdef void transform_filters(const Winograd* job, Py_ssize_t m0, Py_ssize_t m1, const real* weights, real* u) noexcept nogil:
    """U of rows [m0, m1), as (36, m1 - m0, C) with filter_plane elements from one of the 36 to the next."""
    cdef const real* end = weights + job.rows * job.sources * 9
    cdef Py_ssize_t m, plane = filter_plane[real](job, m1 - m0, <real*> NULL)
    for m in range(m0, m1):
        if real is float:
            fc_winograd_filters_f32(weights + m * job.step_k, job.step_c, job.turned, job.sources, end,
                                    u + (m - m0) * job.sources, plane)
        else:
            fc_winograd_filters_f64(weights + m * job.step_k, job.step_c, job.turned, job.sources, end,
                                    u + (m - m0) * job.sources, plane)


cdef inline Py_ssize_t first_row(const Winograd* job, Py_ssize_t part) noexcept nogil:
    """The first row of a block of output channels: at the start of a register tile."""
    return least(ceil_div(job.rows, FC_TILE_ROWS) * part // job.parts * FC_TILE_ROWS, job.rows)


cdef bint multiply_block(const Winograd* job, Py_ssize_t group, Py_ssize_t block, Py_ssize_t m0, Py_ssize_t m1,
                         const real* u, const real* v, const ptrdiff_t* offset, const real* bias, bint relu, real* out,
                         char* scratch) noexcept nogil:
    """36 products for rows [m0, m1) and one block of tiles, and their output transform. False: something is not finite."""
    cdef real* m = <real*> scratch
    cdef real* pixels = <real*> (scratch + job.m_bytes)
    cdef TileRun* run = <TileRun*> (scratch + job.m_bytes + job.line_bytes + job.half_bytes)
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real), width = FC_TILE_VECTORS * lanes
    cdef Py_ssize_t tiles = least(BLOCK_TILES, job.tiles - block * BLOCK_TILES)
    cdef Py_ssize_t runs, xi, k, rows, p, r, y, columns, count = m1 - m0, register_tiles = ceil_div(m1 - m0, FC_TILE_ROWS)
    cdef Py_ssize_t line = 4 * BLOCK_TILES, u_plane = filter_plane[real](job, count, <real*> NULL)
    cdef bint finite = True
    cdef real* plane
    for xi in range(36):
        for r in range(register_tiles):
            k = count * r // register_tiles
            rows = count * (r + 1) // register_tiles - k
            p = 0
            while p < tiles:
                correlate_tile(u + xi * u_plane + k * job.sources, job.sources, v + xi * job.v_plane + p, offset,
                               job.sources, rows, least(ceil_div(tiles - p, lanes), FC_TILE_VECTORS),
                               m + (k * 36 + xi) * BLOCK_TILES + p, 36 * BLOCK_TILES, <const real*> NULL, 0)
                p += width
    runs = cut_tiles(job, block, run)
    for k in range(count):
        if real is float:
            finite &= fc_winograd_output_f32(m + k * 36 * BLOCK_TILES, BLOCK_TILES, tiles, pixels, line,
                                             bias + m0 + k if bias != NULL else NULL, FC_RELU if relu else 0)
        else:
            finite &= fc_winograd_output_f64(m + k * 36 * BLOCK_TILES, BLOCK_TILES, tiles, pixels, line,
                                             bias + m0 + k if bias != NULL else NULL, FC_RELU if relu else 0)
        for r in range(runs):
            plane = (out + ((run[r].image * job.groups + group) * job.rows + m0 + k) * job.out_h * job.out_w
                     + 4 * run[r].row * job.out_w + 4 * run[r].column)
            columns = least(4 * run[r].count, job.out_w - 4 * run[r].column)
            for y in range(least(4, job.out_h - 4 * run[r].row)):
                memcpy(plane + y * job.out_w, pixels + y * line + 4 * run[r].lane, columns * sizeof(real))
    return finite


cdef bint winograd_part(const Winograd* job, Py_ssize_t group, Py_ssize_t first, Py_ssize_t last, Py_ssize_t part,
                        const real* weights, const real* u, const real* v, const ptrdiff_t* offset, const real* bias,
                        bint relu, real* out, char* scratch) noexcept nogil:
    """One block of output channels for blocks [first, last) of tiles; v is of the first."""
    cdef Py_ssize_t m0 = first_row(job, part), m1 = first_row(job, part + 1), block
    cdef bint finite = True
    cdef const real* mine = u + 36 * (m0 * job.sources + part * (64 // <Py_ssize_t> sizeof(real)))
    cdef real* own
    if not job.kept:
        own = <real*> (scratch + job.m_bytes + job.line_bytes + job.half_bytes + job.run_bytes)
        transform_filters(job, m0, m1, weights, own)
        mine = own
    for block in range(first, last):
        finite &= multiply_block(job, group, block, m0, m1, mine, v + (block - first) * job.v_block, offset, bias, relu,
                                 out, scratch)
    return finite


cdef bint winograd_block(const Winograd* job, Py_ssize_t group, Py_ssize_t block, const real* source, const real* weights,
                         const real* u, const ptrdiff_t* offset, const real* bias, bint relu, real* out,
                         char* scratch) noexcept nogil:
    """One block of tiles from input to output, by one thread: nothing leaves its cache on the way."""
    cdef real* v = <real*> (scratch + job.m_bytes + job.line_bytes + job.half_bytes + job.run_bytes)
    cdef Py_ssize_t part
    cdef bint finite = True
    transform_input(job, group, block, 0, job.sources, source, v, scratch + job.m_bytes)
    for part in range(job.parts):
        finite &= winograd_part(job, group, block, block + 1, part, weights, u, v, offset, bias, relu, out, scratch)
    return finite


cdef bint run_winograd(const Winograd* job, const real* source, const real* weights, const real* bias, bint relu,
                       real* out, char* work, int threads) noexcept nogil:
    """Everything; False where an output is not finite."""
    cdef ptrdiff_t* offset = <ptrdiff_t*> work
    cdef real* u = <real*> (work + aligned(job.sources * sizeof(ptrdiff_t)))
    cdef real* v = <real*> (work + aligned(job.sources * sizeof(ptrdiff_t)) + job.u_bytes)
    cdef char* scratch = work + aligned(job.sources * sizeof(ptrdiff_t)) + job.u_bytes + job.v_bytes
    cdef Py_ssize_t group, first, count, item, pieces = ceil_div(job.sources, CHANNELS_AT_ONCE)
    cdef Py_ssize_t spoiled = 0
    for item in range(job.sources):
        offset[item] = item * BLOCK_TILES
    for group in range(job.groups):
        if job.kept:
            for item in prange(job.parts, num_threads=threads, schedule="static"):
                transform_filters(job, first_row(job, item), first_row(job, item + 1), weights,
                                  u + 36 * (first_row(job, item) * job.sources + item * (64 // <Py_ssize_t> sizeof(real))))
        first = 0
        if job.apart:
            for item in prange(job.blocks, num_threads=threads, schedule="dynamic"):
                spoiled += 0 if winograd_block(job, group, item, source, weights, u, offset, bias, relu, out,
                                               scratch + threadid() * job.thread_bytes) else 1
            first = job.blocks
        while first < job.blocks:
            count = least(job.super, job.blocks - first)
            for item in prange(count * pieces, num_threads=threads, schedule="dynamic"):
                transform_input(job, group, first + item // pieces, item % pieces * CHANNELS_AT_ONCE,
                                least(item % pieces * CHANNELS_AT_ONCE + CHANNELS_AT_ONCE, job.sources), source,
                                v + item // pieces * job.v_block, scratch + threadid() * job.thread_bytes + job.m_bytes)
            if job.kept:
                for item in prange(count * job.parts, num_threads=threads, schedule="dynamic"):
                    spoiled += 0 if winograd_part(job, group, first + item // job.parts, first + item // job.parts + 1,
                                                  item % job.parts, weights, u, v + item // job.parts * job.v_block,
                                                  offset, bias, relu, out,
                                                  scratch + threadid() * job.thread_bytes) else 1
            else:
                for item in prange(job.parts, num_threads=threads, schedule="dynamic"):
                    spoiled += 0 if winograd_part(job, group, first, first + count, item, weights, u, v, offset, bias,
                                                  relu, out, scratch + threadid() * job.thread_bytes) else 1
            first += count
        weights += job.rows * job.sources * 9
        if bias != NULL:
            bias += job.rows
    return spoiled == 0


def winograd_workspace(operation, geometry, Py_ssize_t itemsize, Py_ssize_t threads):
    """Scratch that an operation of this file needs: ``(bytes shared, bytes for each thread)``."""
    cdef Window v = read_conv(geometry)
    cdef Winograd job
    plan_winograd(&job, &v, operation == "backward_data", itemsize, threads)
    return aligned(job.sources * sizeof(ptrdiff_t)) + job.u_bytes + job.v_bytes, job.thread_bytes


def winograd_convolve(cnp.ndarray source, cnp.ndarray weight, bias, bint relu, bint backward, geometry, cnp.ndarray out,
                      cnp.ndarray scratch, int threads):
    """conv2d of x, or with `backward` its gradient from dout, of float32 or float64 arrays into `out`.

    Returns False where an output is not finite: then `out` is not what the definition gives, and must be made anew.
    """
    if source.descr.itemsize == 4:
        return winograd_of[float](source, weight, bias, relu, backward, geometry, out, scratch, threads) != 0
    return winograd_of[double](source, weight, bias, relu, backward, geometry, out, scratch, threads) != 0


cdef int winograd_of(cnp.ndarray source, cnp.ndarray weight, object bias, bint relu, bint backward, object geometry,
                     cnp.ndarray out, cnp.ndarray scratch, int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef Winograd job
    cdef const real* b = NULL
    cdef bint finite
    if bias is not None:
        b = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    with nogil:
        plan_winograd(&job, &v, backward, sizeof(real), threads)
        finite = run_winograd(&job, <const real*> cnp.PyArray_DATA(source), <const real*> cnp.PyArray_DATA(weight), b,
                              relu, <real*> cnp.PyArray_DATA(out), <char*> cnp.PyArray_DATA(scratch), threads)
    return finite
