# Gradient of 3x3 filters at stride 1 by Winograd's F(3x3, 4x4): 36 multiplications for 4x4 pixels of the output's gradient,
# where the definition does 144.
#
#     input transforms   x (N, C, H, W)       -> V (36, T, C)        tiles of 6x6 cells, 4 apart
#                        dout (N, K, OH, OW)  -> G (36, T, K)        tiles of 4x4 cells
#     36 products        G (36, T, K)' @ V (36, T, C) -> M (36, K, C)
#     output transform   M (36, K, C)         -> dw (K, C, 3, 3)
#
# T runs over the tiles of all images. M of a block of about GRADIENT_BLOCK x GRADIENT_BLOCK channels stays in cache while
# blocks of GRADIENT_TILES tiles go by, which are transformed for it; so what is transformed is never in memory as a whole, at
# the price of transforming it for several blocks of channels. Sums over tiles are cut twice, because the error of a sum grows
# with its terms (rule 14): at blocks of tiles, and every GRADIENT_SUMS tiles M is transformed and added to dw.
#
# Where there are few tiles of many channels (the last layers of a network), writing M and reading it again is what takes the
# time: up to KEPT_TILES tiles are transformed once, for all channels, and blocks of channels are as small as lets M lie in L2.
#
# The last tile of a row or column of tiles may have fewer than 4 pixels. What vanishes of its V then (winograd_b_of) is left
# out of the products, as in the forward pass: tiles lie in four kinds in a block, 0 those with fewer columns, 1 whole ones, 2
# those with fewer rows, 3 those with fewer of both. Of 14x14 pixels that is a sixth of all multiplications.
#
# Threads: items are blocks of channels, smaller where there would be too few. Each sum belongs to one item, and is made of the
# same pieces whatever the blocks are: the same bits for any number of threads.
#
# Non-finite values (rule 13): the call tells if something is not finite, and the caller computes all of it by the definition:
# a filter's gradient sums over all pixels, so that nearly all of what is spoiled would be so by the definition, too.

cdef extern from "simd.h" nogil:
    void fc_winograd_strip_f32(const float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                               ptrdiff_t, const float*, const float*, float*, ptrdiff_t)
    void fc_winograd_strip_f64(const double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                               ptrdiff_t, const double*, const double*, double*, ptrdiff_t)
    void fc_winograd_strip_tiles_f32(int, int, int, const float*, ptrdiff_t, ptrdiff_t, float*, ptrdiff_t, ptrdiff_t)
    void fc_winograd_strip_tiles_f64(int, int, int, const double*, ptrdiff_t, ptrdiff_t, double*, ptrdiff_t, ptrdiff_t)
    void fc_winograd_outer_f32(const float*, ptrdiff_t, const float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, float*,
                               ptrdiff_t, int, ptrdiff_t, ptrdiff_t)
    void fc_winograd_outer_f64(const double*, ptrdiff_t, const double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, double*,
                               ptrdiff_t, int, ptrdiff_t, ptrdiff_t)
    void fc_winograd_filter_gradients_f32(const float*, ptrdiff_t, ptrdiff_t, float*, int)
    void fc_winograd_filter_gradients_f64(const double*, ptrdiff_t, ptrdiff_t, double*, int)

cdef enum:
    GRADIENT_BLOCK = 128
    GRADIENT_TILES = 16
    GRADIENT_SUMS = 1024      # a multiple of GRADIENT_TILES
    KEPT_TILES = 128          # tiles that are transformed once for all channels,
    KEPT_BYTES = 10485760     # if that takes no more than so many bytes,
    KEPT_BLOCK = 64           # channels of a block then,
    KEPT_AT_ONCE = 64         # and tiles of one product

cdef struct FilterGradient:
    Py_ssize_t batch, groups, sources, rows
    Py_ssize_t h, w, top, left, out_h, out_w
    Py_ssize_t tiles_h, tiles_w, tiles
    Py_ssize_t missing_h, missing_w      # pixels that the last tiles have less
    bint kept                            # all tiles of all channels are transformed before the products
    Py_ssize_t at_once, chunks           # tiles of one product, and how many such chunks there are
    Py_ssize_t k_parts, c_parts          # blocks of output and of input channels
    Py_ssize_t k_block, c_block          # channels of a block, whole vectors
    Py_ssize_t g_step, g_plane           # elements from tile to tile, and from plane to plane
    Py_ssize_t v_step, v_plane, m_plane
    Py_ssize_t pitch                     # cells of a row of a strip
    Py_ssize_t m_bytes, v_bytes, g_bytes, strip_bytes, shared_bytes, thread_bytes


cdef void plan_filter_gradient(FilterGradient* job, const Window* v, Py_ssize_t itemsize, Py_ssize_t threads) noexcept nogil:
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // itemsize, k_vectors, c_vectors, block = GRADIENT_BLOCK
    memset(job, 0, sizeof(FilterGradient))
    job.batch, job.groups, job.sources, job.rows = v.n, v.groups, v.c // v.groups, v.k // v.groups
    job.h, job.w, job.top, job.left, job.out_h, job.out_w = v.h, v.w, v.top, v.left, v.oh, v.ow
    job.tiles_h, job.tiles_w = ceil_div(job.out_h, 4), ceil_div(job.out_w, 4)
    job.tiles = job.batch * job.tiles_h * job.tiles_w
    job.missing_h, job.missing_w = 4 * job.tiles_h - job.out_h, 4 * job.tiles_w - job.out_w
    job.at_once = GRADIENT_TILES
    job.kept = (job.tiles <= KEPT_TILES
                and 36 * job.tiles * job.groups * (job.sources + job.rows) * itemsize <= KEPT_BYTES)
    if job.kept:
        job.at_once, block = most(least(job.tiles, KEPT_AT_ONCE), 1), KEPT_BLOCK
    job.chunks = ceil_div(job.tiles, job.at_once)
    # blocks are of whole vectors, and of whole panels of product tiles
    k_vectors, c_vectors = ceil_div(job.rows, most(lanes, FC_PANEL)), ceil_div(job.sources, lanes)
    job.k_parts, job.c_parts = ceil_div(job.rows, block), ceil_div(job.sources, block)
    while job.groups * job.k_parts * job.c_parts < threads and (job.k_parts < k_vectors or job.c_parts < c_vectors):
        if job.k_parts < k_vectors and (job.rows * job.c_parts >= job.sources * job.k_parts or job.c_parts == c_vectors):
            job.k_parts = least(2 * job.k_parts, k_vectors)
        else:
            job.c_parts = least(2 * job.c_parts, c_vectors)
    job.k_block, job.c_block = ceil_div(k_vectors, job.k_parts), ceil_div(c_vectors, job.c_parts)
    job.k_parts, job.c_parts = ceil_div(k_vectors, job.k_block), ceil_div(c_vectors, job.c_block)
    job.k_block *= most(lanes, FC_PANEL)
    job.c_block *= lanes
    # one cache line more than a power of two, so that rows and planes do not share cache sets
    job.g_step, job.v_step = job.k_block + 64 // itemsize, job.c_block + 64 // itemsize
    job.g_plane, job.v_plane = job.at_once * job.g_step, job.at_once * job.v_step
    job.m_plane = job.k_block * job.c_block + 64 // itemsize
    job.pitch = ceil_div(4 * least(job.at_once, job.tiles_w) + 2, lanes) * lanes
    job.m_bytes = aligned(36 * job.m_plane * itemsize)
    job.v_bytes, job.g_bytes = aligned(36 * job.v_plane * itemsize), aligned(36 * job.g_plane * itemsize)
    job.strip_bytes = aligned(6 * job.pitch * lanes * itemsize)
    job.thread_bytes = job.m_bytes + job.strip_bytes
    if job.kept:
        job.shared_bytes = job.groups * job.chunks * (job.c_parts * job.v_bytes + job.k_parts * job.g_bytes)
    else:
        job.thread_bytes += job.v_bytes + job.g_bytes


cdef inline int kind_of_tile(const FilterGradient* job, Py_ssize_t tile) noexcept nogil:
    """0: fewer columns of pixels than 4, 1: whole, 2: fewer rows, 3: fewer of both."""
    cdef bint narrow = job.missing_w > 0 and tile % job.tiles_w == job.tiles_w - 1
    if job.missing_h > 0 and tile // job.tiles_w % job.tiles_h == job.tiles_h - 1:
        return 3 if narrow else 2
    return 0 if narrow else 1


cdef void slots_of_kinds(const FilterGradient* job, Py_ssize_t tile, Py_ssize_t last, Py_ssize_t* slot) noexcept nogil:
    """Where the tiles [tile, last) of each kind begin in a block; slot[4] is their number."""
    cdef Py_ssize_t i
    cdef Py_ssize_t count[4]
    memset(count, 0, sizeof(count))
    if job.missing_h == 0 and job.missing_w == 0:
        count[1] = last - tile
    else:
        for i in range(tile, last):
            count[kind_of_tile(job, i)] += 1
    slot[0] = 0
    for i in range(4):
        slot[i + 1] = slot[i] + count[i]


cdef void transform_strips(const FilterGradient* job, Py_ssize_t tile, Py_ssize_t last, bint gradient, Py_ssize_t first,
                           Py_ssize_t stop, const real* source, real* v, real* strip) noexcept nogil:
    """Tiles [tile, last) of channels [first, stop) of x, or of dout where it is the `gradient`, to V or G."""
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real), channels = job.groups * (job.rows if gradient else job.sources)
    cdef Py_ssize_t h = job.out_h if gradient else job.h, w = job.out_w if gradient else job.w
    cdef Py_ssize_t top = 0 if gradient else job.top, left = 0 if gradient else job.left, more = 0 if gradient else 2
    cdef Py_ssize_t plane = job.g_plane if gradient else job.v_plane, step = job.g_step if gradient else job.v_step
    cdef Py_ssize_t image, row, column, count, whole_ones, c
    cdef Py_ssize_t slot[5]
    cdef int kind
    cdef bint low, narrow
    cdef const real* end = source + job.batch * channels * h * w
    cdef const real* planes
    slots_of_kinds(job, tile, last, slot)
    while tile < last:
        column = tile % job.tiles_w
        row = tile // job.tiles_w % job.tiles_h
        image = tile // (job.tiles_w * job.tiles_h)
        count = least(job.tiles_w - column, last - tile)
        low = job.missing_h > 0 and row == job.tiles_h - 1
        narrow = job.missing_w > 0 and column + count == job.tiles_w
        whole_ones, kind = count - narrow, 2 if low else 1
        c = first
        while c < stop:
            planes = source + (image * channels + c) * h * w
            if real is float:
                fc_winograd_strip_f32(planes, least(stop - c, lanes), h, w, 4 * row - top, 4 * column - left, 4 + more,
                                      4 * count + more, 4 * count, source, end, strip, job.pitch)
                fc_winograd_strip_tiles_f32(gradient, job.missing_h if low else 0, 0, strip, job.pitch, whole_ones,
                                            v + slot[kind] * step + c - first, plane, step)
                fc_winograd_strip_tiles_f32(gradient, job.missing_h if low else 0, job.missing_w,
                                            strip + 4 * whole_ones * lanes, job.pitch, narrow,
                                            v + slot[3 if low else 0] * step + c - first, plane, step)
            else:
                fc_winograd_strip_f64(planes, least(stop - c, lanes), h, w, 4 * row - top, 4 * column - left, 4 + more,
                                      4 * count + more, 4 * count, source, end, strip, job.pitch)
                fc_winograd_strip_tiles_f64(gradient, job.missing_h if low else 0, 0, strip, job.pitch, whole_ones,
                                            v + slot[kind] * step + c - first, plane, step)
                fc_winograd_strip_tiles_f64(gradient, job.missing_h if low else 0, job.missing_w,
                                            strip + 4 * whole_ones * lanes, job.pitch, narrow,
                                            v + slot[3 if low else 0] * step + c - first, plane, step)
            c += lanes
        slot[kind] += whole_ones
        slot[3 if low else 0] += narrow
        tile += count


cdef inline char* kept_v(const FilterGradient* job, Py_ssize_t group, Py_ssize_t part, Py_ssize_t chunk,
                         char* kept) noexcept nogil:
    return kept + ((group * job.c_parts + part) * job.chunks + chunk) * job.v_bytes


cdef inline char* kept_g(const FilterGradient* job, Py_ssize_t group, Py_ssize_t part, Py_ssize_t chunk,
                         char* kept) noexcept nogil:
    return (kept + job.groups * job.c_parts * job.chunks * job.v_bytes
            + ((group * job.k_parts + part) * job.chunks + chunk) * job.g_bytes)


cdef void keep_vector(const FilterGradient* job, Py_ssize_t item, const real* dout, const real* x, char* kept,
                      char* scratch) noexcept nogil:
    """All tiles of a vector of channels of x, or of dout, to V or G."""
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real), of_x = ceil_div(job.sources, lanes)
    cdef Py_ssize_t each = of_x + ceil_div(job.rows, lanes), group = item // each, chunk, part, first
    cdef bint gradient = item % each >= of_x
    cdef Py_ssize_t c = (item % each - (of_x if gradient else 0)) * lanes
    cdef Py_ssize_t channels = job.rows if gradient else job.sources, block = job.k_block if gradient else job.c_block
    cdef real* to
    part, first = c // block, group * channels + c
    for chunk in range(job.chunks):
        to = <real*> (kept_g(job, group, part, chunk, kept) if gradient else kept_v(job, group, part, chunk, kept))
        transform_strips(job, chunk * job.at_once, least((chunk + 1) * job.at_once, job.tiles), gradient, first,
                         group * channels + least(c + lanes, channels), dout if gradient else x, to + c - part * block,
                         <real*> (scratch + job.m_bytes))


cdef void multiply_tiles(const FilterGradient* job, Py_ssize_t tile, Py_ssize_t last, const real* g, const real* v,
                         Py_ssize_t rows, Py_ssize_t vectors, real* m, bint add) noexcept nogil:
    """The products of tiles [tile, last), without those that vanish."""
    cdef Py_ssize_t slot[5]
    cdef Py_ssize_t start, stop, ahead_a = 0, ahead_b = 0
    cdef int xi
    if job.kept:  # it lies in the last cache
        ahead_a, ahead_b = job.g_plane, job.v_plane
    slots_of_kinds(job, tile, last, slot)
    for xi in range(36):
        start, stop = 0, slot[4]
        if fc_short_skips(6, job.missing_w, xi % 6):  # not those with fewer columns
            start, stop = slot[1], slot[3]
        if fc_short_skips(6, job.missing_h, xi // 6):  # not those with fewer rows
            stop = slot[2]
        if real is float:
            fc_winograd_outer_f32(g + xi * job.g_plane + start * job.g_step, job.g_step,
                                  v + xi * job.v_plane + start * job.v_step, job.v_step, stop - start, rows, vectors,
                                  m + xi * job.m_plane, job.c_block, add, ahead_a, ahead_b)
        else:
            fc_winograd_outer_f64(g + xi * job.g_plane + start * job.g_step, job.g_step,
                                  v + xi * job.v_plane + start * job.v_step, job.v_step, stop - start, rows, vectors,
                                  m + xi * job.m_plane, job.c_block, add, ahead_a, ahead_b)


cdef void add_gradients(const FilterGradient* job, const real* m, Py_ssize_t rows, Py_ssize_t sources, real* dw,
                        bint add) noexcept nogil:
    """The output transform of M of a block of channels; dw is of its first ones."""
    cdef Py_ssize_t k
    for k in range(rows):
        if real is float:
            fc_winograd_filter_gradients_f32(m + k * job.c_block, job.m_plane, sources, dw + k * job.sources * 9, add)
        else:
            fc_winograd_filter_gradients_f64(m + k * job.c_block, job.m_plane, sources, dw + k * job.sources * 9, add)


cdef bint gradient_block(const FilterGradient* job, Py_ssize_t item, const real* dout, const real* x, real* dw, char* kept,
                         char* scratch) noexcept nogil:
    """dw of one block of channels; False where something is not finite."""
    cdef Py_ssize_t group = item // (job.k_parts * job.c_parts), lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t k0 = item // job.c_parts % job.k_parts * job.k_block, k1 = least(k0 + job.k_block, job.rows)
    cdef Py_ssize_t c0 = item % job.c_parts * job.c_block, c1 = least(c0 + job.c_block, job.sources)
    cdef Py_ssize_t rows = ceil_div(k1 - k0, FC_PANEL) * FC_PANEL, vectors = ceil_div(c1 - c0, lanes)
    cdef Py_ssize_t tile = 0, last, k, start
    cdef real* m = <real*> scratch
    cdef real* strip = <real*> (scratch + job.m_bytes)
    cdef real* v = <real*> (scratch + job.m_bytes + job.strip_bytes)
    cdef real* g = <real*> (scratch + job.m_bytes + job.strip_bytes + job.v_bytes)
    cdef bint finite = True
    dw += ((group * job.rows + k0) * job.sources + c0) * 9
    if job.tiles == 0:
        memset(m, 0, job.m_bytes)
        add_gradients(job, m, k1 - k0, c1 - c0, dw, False)
    while tile < job.tiles:
        start = tile // GRADIENT_SUMS * GRADIENT_SUMS
        last = least(tile + job.at_once, job.tiles)
        if job.kept:
            v = <real*> kept_v(job, group, item % job.c_parts, tile // job.at_once, kept)
            g = <real*> kept_g(job, group, item // job.c_parts % job.k_parts, tile // job.at_once, kept)
        else:
            transform_strips(job, tile, last, False, group * job.sources + c0, group * job.sources + c1, x, v, strip)
            transform_strips(job, tile, last, True, group * job.rows + k0, group * job.rows + k1, dout, g, strip)
        multiply_tiles(job, tile, last, g, v, rows, vectors, m, tile > start)
        tile = last
        if tile == job.tiles or tile == start + GRADIENT_SUMS:
            add_gradients(job, m, k1 - k0, c1 - c0, dw, start > 0)
    for k in range(k1 - k0):
        finite &= all_finite(dw + k * job.sources * 9, 9 * (c1 - c0))
    return finite


def winograd_gradient_workspace(operation, geometry, Py_ssize_t itemsize, Py_ssize_t threads):
    """Scratch of winograd_backward_weight: ``(bytes shared, bytes for each thread)``."""
    cdef Window v = read_conv(geometry)
    cdef FilterGradient job
    plan_filter_gradient(&job, &v, itemsize, threads)
    return job.shared_bytes, job.thread_bytes


def winograd_backward_weight(cnp.ndarray dout, cnp.ndarray x, geometry, cnp.ndarray out, cnp.ndarray scratch, int threads):
    """dw of float32 or float64 arrays into `out`. Returns False where something in it is not finite: then `out` is not what
    the definition gives, and must be made anew."""
    if x.descr.itemsize == 4:
        return filter_gradient[float](dout, x, geometry, out, scratch, threads) != 0
    return filter_gradient[double](dout, x, geometry, out, scratch, threads) != 0


cdef int filter_gradient(cnp.ndarray dout, cnp.ndarray x, object geometry, cnp.ndarray out, cnp.ndarray scratch, int threads,
                         real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef FilterGradient job
    cdef Py_ssize_t item, items, vectors
    cdef int spoiled = 0
    cdef const real* gradient = <const real*> cnp.PyArray_DATA(dout)
    cdef const real* image = <const real*> cnp.PyArray_DATA(x)
    cdef real* dw = <real*> cnp.PyArray_DATA(out)
    cdef char* kept = <char*> cnp.PyArray_DATA(scratch)
    cdef char* work
    with nogil:
        plan_filter_gradient(&job, &v, sizeof(real), threads)
        work = kept + job.shared_bytes
        if job.kept:
            vectors = FC_VECTOR_BYTES // sizeof(real)
            items = job.groups * (ceil_div(job.sources, vectors) + ceil_div(job.rows, vectors))
            for item in prange(items, num_threads=threads, schedule="dynamic"):
                keep_vector(&job, item, gradient, image, kept, work + threadid() * job.thread_bytes)
        items = job.groups * job.k_parts * job.c_parts
        for item in prange(items, num_threads=threads, schedule="dynamic"):
            spoiled += 0 if gradient_block(&job, item, gradient, image, dw, kept, work + threadid() * job.thread_bytes) else 1
    return spoiled == 0
