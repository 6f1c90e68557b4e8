# Winograd convolution F(MxM, RxR) at stride 1: N*N multiplications for an output tile of MxM in place of M*M*R*R, N = M + R - 1.
#
#     input transform    (N, C, H, W)                   -> V (N*N, C, T)
#     N*N products       U (N*N, K, C) @ V (N*N, C, T)  -> M (N*N, K, T)
#     output transform   M (N*N, K, T)                  -> (N, K, OH, OW)
#
# F(4x4, 3x3) and F(3x3, 4x4) do 4 times fewer multiplications than the definition, F(2x2, 3x3) 2.25 and F(2x2, 5x5) 2.8
# times. Which tile: fastconv/winograd.py, which knows what they cost. winograd.h has the transforms and the micro-kernel of the products.
#
# T runs over the tiles of all images, in blocks of up to BLOCK_TILES that run on across rows and images; lanes of vectors are
# tiles. A run of tiles along a row of the image is read as M neighbouring vectors, which permutations take apart. Where rows
# have few tiles (small images), most lanes of such vectors would be idle: there the M vectors come from different rows
# (but with M = 3, which no vector is a multiple of).
#
# The last tile of a row or column of tiles may have fewer than M pixels, `missing` of them. Its transform then can be such that
# as many of the N values of V vanish, by row and by column (winograd.h): all tiles for which one of the products is zero lie at
# an end of a block, and that product leaves them out. For a block of 14x14 pixels with M = 4, 36 products of 16 tiles become
# 16 of 16, 16 of 12 and 4 of 9. Tiles lie in four kinds, by their first lane: 0 those with fewer columns, 1 whole ones, 2
# those with fewer rows, 3 those with fewer of both.
#
# U lies in panels of FC_PANEL output channels, (panel, N*N, C, FC_PANEL), so that a product reads it in one stream, and the
# panel that comes next is fetched meanwhile. It is made for each call, or once by winograd_pack.
#
# Where there are blocks of tiles enough, each thread takes one through all of it, and V stays in its L2. Otherwise the threads
# share a V. Order of work then, for a few blocks of tiles at a time ("super-block"): transform its V; then for each block of about
# BLOCK_K output channels and each block of tiles, the products into M (that one block of channels only: 295 kB in float32)
# and the output transform of it, from which the pixels go to the output with bias and ReLU. V's slice of one of the
# products is used by all rows of U while it lies in L1/L2. The transformed filters U are kept for the whole call where they
# take at most KEPT_FILTERS bytes; otherwise each block of channels transforms its own when its turn comes, and a
# super-block is as large as V_BYTES allows, so that this is done few times. Where it is a single block of tiles, each filter
# is used once, and then a piece of the sum (some channels of it) is transformed and multiplied at a time: it lies in L2.
#
# Threads: V is shared, and made by all (items: block of tiles x some channels); after a barrier, items are blocks of tiles x
# blocks of output channels, or the latter alone where they transform their own filters. A tile's sums do not depend on the
# item it is in: the same bits for any number of threads. On many cores the super-block grows with their number.
#
# Non-finite values (rule 13): an infinity or a NaN in a tile spoils all of its pixels, and large finite values may
# overflow in a transform where the definition would not. Every output value is looked at before the ReLU, at the price of
# one FMA, and the call tells in which rows of tiles of which images one is not finite: these the caller computes again by
# the definition. Lanes without a tile are not looked at.

cdef extern from "simd.h" nogil:
    enum:
        FC_PANEL
        FC_BLOCK_TILES
    ctypedef struct fc_piece:
        Py_ssize_t cell, first, stop, top, bottom, lane, count, together
        bint whole_row, brief
    ctypedef struct fc_planes:
        const void* begin
        const void* end
        Py_ssize_t width, ahead
        void* line
        Py_ssize_t pitch
    int fc_short_skips(int, int, int)
    void fc_winograd_rows_f32(int, int, int, const fc_piece*, ptrdiff_t, const fc_planes*, const float*, float*, ptrdiff_t)
    void fc_winograd_rows_f64(int, int, int, const fc_piece*, ptrdiff_t, const fc_planes*, const double*, double*, ptrdiff_t)
    void fc_winograd_columns_f32(int, const float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, int, float*, ptrdiff_t, ptrdiff_t)
    void fc_winograd_columns_f64(int, const double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, int, double*, ptrdiff_t, ptrdiff_t)
    void fc_winograd_output_f32(int, int, const float*, ptrdiff_t, ptrdiff_t, float*, ptrdiff_t, const float*, int, float*)
    void fc_winograd_output_f64(int, int, const double*, ptrdiff_t, ptrdiff_t, double*, ptrdiff_t, const double*, int,
                                double*)
    void fc_mark(uint8_t*)
    void fc_copy_few(char*, const char*, ptrdiff_t)
    Py_ssize_t fc_product_pieces(Py_ssize_t)
    void fc_winograd_filters_f32(int, int, const float*, ptrdiff_t, ptrdiff_t, int, ptrdiff_t, ptrdiff_t, float*,
                                 ptrdiff_t)
    void fc_winograd_filters_f64(int, int, const double*, ptrdiff_t, ptrdiff_t, int, ptrdiff_t, ptrdiff_t, double*,
                                 ptrdiff_t)
    void fc_winograd_product_f32(const float*, const float*, const float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, float*,
                                 ptrdiff_t, int)
    void fc_winograd_product_f64(const double*, const double*, const double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, double*,
                                 ptrdiff_t, int)

cdef enum:
    BLOCK_TILES = FC_BLOCK_TILES
    BLOCK_K = 32
    CHANNELS_AT_ONCE = 16     # of one item of the input transform
    KEPT_FILTERS = 12582912   # bytes of U that are transformed once for a call
    V_BYTES = 6291456         # of a super-block, where filters are transformed block by block

    KINDS = 4                 # of tiles
    NARROW = 300              # FMA instructions that it costs to take the last tiles of rows apart, for a block of a channel

# Neighbouring tiles of one row of tiles, of one kind.
cdef struct TileRun:
    Py_ssize_t lane, count, image, row, column
    bint brief                       # they have fewer columns

cdef struct Winograd:
    Py_ssize_t batch, groups, sources, rows
    Py_ssize_t h, w, top, left       # source planes
    Py_ssize_t out_h, out_w
    Py_ssize_t step_k, step_c        # from filter to filter along output and input channels
    bint turned                      # filters are turned by 180 degrees
    int tile, filter, n, planes      # M, R, N, N*N
    bint short_runs                  # rows have so few tiles that vectors come from several
    Py_ssize_t tiles_h, tiles_w, tiles, blocks
    int missing_h, missing_w         # rows and columns that the last tiles have less, where they are taken apart
    Py_ssize_t width                 # lanes of a block of tiles
    Py_ssize_t super                 # blocks of a super-block
    Py_ssize_t panels                # of output channels
    Py_ssize_t parts                 # blocks of panels
    Py_ssize_t part_panels           # the most panels of one
    bint given                       # U comes from winograd_pack
    bint kept                        # U is transformed once, here or there
    Py_ssize_t pieces                # of the sum, each of which is transformed when its turn comes
    bint apart                       # each thread has blocks of tiles of its own, and a V for one of them
    bint past_caches                 # the output is too large to be found in a cache when it is needed
    Py_ssize_t u_plane, u_panel      # elements of one of the planes of a panel of U, and of the panel
    Py_ssize_t v_plane, v_block      # elements of one of the planes of V, and of a block of tiles
    Py_ssize_t u_bytes, v_bytes, row_bytes, m_bytes, line_bytes, half_bytes, piece_bytes, thread_bytes
    uint8_t* spoiled                 # of each row of tiles of each image: whether something in it is not finite


cdef inline Py_ssize_t piece_line(const Winograd* job, Py_ssize_t itemsize) noexcept nogil:
    """Elements from row to row of the copy of a piece, whose vectors reach beyond its end."""
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // itemsize
    return (lanes if job.short_runs else job.tile * (BLOCK_TILES + lanes)) + lanes + 4


cdef void set_u(Winograd* job, Py_ssize_t sources, Py_ssize_t itemsize) noexcept nogil:
    """How U lies, of so many channels."""
    job.u_plane = sources * FC_PANEL + 64 // itemsize
    job.u_panel = job.planes * job.u_plane


cdef void plan_winograd(Winograd* job, const Window* v, bint backward, int tile, bint given, Py_ssize_t itemsize,
                        Py_ssize_t threads) noexcept nogil:
    cdef Py_ssize_t cg = v.c // v.groups, kg = v.k // v.groups, taps = v.kh * v.kw, lanes = FC_VECTOR_BYTES // itemsize
    cdef Py_ssize_t u_bytes
    cdef bint once
    memset(job, 0, sizeof(Winograd))
    job.batch, job.groups = v.n, v.groups
    job.tile, job.filter = tile, v.kh
    job.n = job.tile + job.filter - 1
    job.planes = job.n * job.n
    if backward:
        # a convolution of dout, padded by R - 1 - pad, with the filters turned and their channels exchanged
        job.sources, job.rows = kg, cg
        job.h, job.w, job.top, job.left = v.oh, v.ow, v.kh - 1 - v.top, v.kw - 1 - v.left
        job.out_h, job.out_w = v.h, v.w
        job.step_k, job.step_c, job.turned = taps, cg * taps, True
    else:
        job.sources, job.rows = cg, kg
        job.h, job.w, job.top, job.left = v.h, v.w, v.top, v.left
        job.out_h, job.out_w = v.oh, v.ow
        job.step_k, job.step_c = cg * taps, taps
    job.tiles_h, job.tiles_w = ceil_div(job.out_h, tile), ceil_div(job.out_w, tile)
    job.short_runs = 2 * job.tiles_w <= lanes and lanes >= tile and tile != 3
    job.tiles = job.batch * job.tiles_h * job.tiles_w
    take_short_tiles_apart(job, lanes)
    job.blocks = ceil_div(job.tiles, BLOCK_TILES)
    job.width = least(BLOCK_TILES, ceil_div(job.tiles, lanes) * lanes)
    # one cache line more than a power of two, so that the planes do not share cache sets
    job.v_plane = job.sources * job.width + 64 // itemsize
    job.v_block = job.planes * job.v_plane
    set_u(job, job.sources, itemsize)
    job.panels = ceil_div(job.rows, FC_PANEL)
    job.given = given
    u_bytes = job.panels * job.u_panel * itemsize
    # for no more tiles than one super-block has, the filters are needed once: then the smaller of U and V stays
    once = job.blocks * job.v_block * itemsize <= least(V_BYTES, u_bytes)
    job.kept = given or (u_bytes <= KEPT_FILTERS and not once)
    job.apart = job.kept and (threads == 1 or job.blocks >= 2 * threads)
    if job.apart:
        job.super = 0
    elif job.kept:
        job.super = 2 * threads
    else:
        job.super = most(V_BYTES // (job.v_block * itemsize), 1)
    if not job.apart:
        job.super = most(least(job.super, job.blocks), 1)
    job.pieces = 1
    if not job.kept and job.super == 1:
        job.pieces = fc_product_pieces(job.sources)
        set_u(job, ceil_div(job.sources, job.pieces), itemsize)
    job.parts = ceil_div(job.panels, BLOCK_K // FC_PANEL)
    if not job.apart and threads > 1:  # enough items for all threads; how the channels are cut changes no sum
        job.parts = most(job.parts, ceil_div(2 * threads, job.super)) if job.kept else \
            ceil_div(job.parts, threads) * threads
    job.parts = least(job.parts, job.panels)
    job.part_panels = ceil_div(job.panels, job.parts)
    job.u_bytes = aligned(u_bytes) if job.kept and not given else 0
    job.v_bytes = aligned(job.super * job.v_block * itemsize) if not job.apart else 0
    job.row_bytes = aligned(job.batch * job.tiles_h)
    job.m_bytes = aligned(job.part_panels * FC_PANEL * job.planes * job.width * itemsize)
    job.line_bytes = aligned(most(tile * (tile * BLOCK_TILES),  # rows of output; copies of pieces
                                  (tile if job.short_runs else 1) * job.n * piece_line(job, itemsize)) * itemsize)
    job.half_bytes = aligned(job.planes * (BLOCK_TILES * itemsize + FC_VECTOR_BYTES))
    job.piece_bytes = aligned(BLOCK_TILES * sizeof(fc_piece))
    job.thread_bytes = job.m_bytes + job.line_bytes + job.half_bytes + job.piece_bytes
    if job.apart:
        job.thread_bytes += aligned(job.v_block * itemsize)
    if not job.kept:
        job.thread_bytes += aligned(job.part_panels * job.u_panel * itemsize)


cdef void lanes_of_product(const Winograd* job, const Py_ssize_t* lane, int xi, Py_ssize_t lanes, Py_ssize_t* start,
                           Py_ssize_t* vectors) noexcept nogil:
    """The vectors of tiles that a product does not leave out, where `lane` is of the kinds of tiles."""
    cdef Py_ssize_t stop = lane[KINDS]
    start[0] = 0
    if fc_short_skips(job.n, job.missing_w, xi % job.n):
        start[0], stop = lane[1], lane[3]
    if fc_short_skips(job.n, job.missing_h, xi // job.n):
        stop = lane[2]
    vectors[0] = ceil_div(stop - start[0], lanes)
    start[0] = least(start[0], (ceil_div(lane[KINDS], lanes) - vectors[0]) * lanes)


cdef Py_ssize_t vectors_of_products(const Winograd* job, Py_ssize_t lanes) noexcept nogil:
    """Of all products of a channel for the first block of tiles."""
    cdef TileRun run[BLOCK_TILES]
    cdef Py_ssize_t lane[KINDS + 1]
    cdef Py_ssize_t start, vectors, total = 0
    cdef int xi
    cut_tiles(job, 0, run, lane)
    for xi in range(job.planes):
        lanes_of_product(job, lane, xi, lanes, &start, &vectors)
        total += vectors
    return total


cdef void take_short_tiles_apart(Winograd* job, Py_ssize_t lanes) noexcept nogil:
    """The last row of tiles costs nothing more; the last column of tiles is taken apart where that pays for a block that is
    full, so that the same image gives the same bits in any batch."""
    cdef Winograd full = job[0]
    cdef Py_ssize_t saved
    full.batch = most(BLOCK_TILES // most(job.tiles_h * job.tiles_w, 1), 1)
    full.tiles = full.batch * job.tiles_h * job.tiles_w
    full.missing_h = job.tiles_h * job.tile - job.out_h
    saved = vectors_of_products(&full, lanes)
    full.missing_w = job.tiles_w * job.tile - job.out_w
    saved -= vectors_of_products(&full, lanes)
    job.missing_h = full.missing_h
    if saved * job.sources * job.rows > NARROW * (job.sources + job.rows):
        job.missing_w = full.missing_w


cdef Py_ssize_t cut_tiles(const Winograd* job, Py_ssize_t block, TileRun* run, Py_ssize_t* lane) noexcept nogil:
    """Cut a block of tiles at the ends of rows of tiles, kind by kind. Returns the number of runs, and the first lane of each
    kind and the one behind all of them in lane[:KINDS + 1]."""
    cdef Py_ssize_t first = block * BLOCK_TILES, last = least(first + BLOCK_TILES, job.tiles), runs = 0
    cdef Py_ssize_t kind, tile, row, column, count, wide
    lane[0] = 0
    for kind in range(KINDS):
        lane[kind + 1] = lane[kind]
        tile = first
        while tile < last:
            column = tile % job.tiles_w
            row = tile // job.tiles_w
            count = least(job.tiles_w - column, last - tile)
            tile += count
            if (kind >= 2) != (job.missing_h > 0 and row % job.tiles_h == job.tiles_h - 1):
                continue
            wide = count if job.missing_w == 0 else least(count, job.tiles_w - 1 - column)
            if kind == 0 or kind == 3:
                column, count = column + wide, count - wide
            else:
                count = wide
            if count > 0:
                run[runs].lane, run[runs].count, run[runs].column = lane[kind + 1], count, column
                run[runs].image, run[runs].row = row // job.tiles_h, row % job.tiles_h
                run[runs].brief = kind == 0 or kind == 3
                lane[kind + 1] += count
                runs += 1
    return runs


cdef Py_ssize_t cut_pieces(const Winograd* job, const TileRun* run, Py_ssize_t runs, Py_ssize_t lanes,
                           fc_piece* piece) noexcept nogil:
    """Cut runs into what is transformed together along the width."""
    cdef Py_ssize_t r, tile, start, y, cells, count = 0, first = 0, most_tiles, most_pieces
    for r in range(runs):
        most_tiles = lanes // job.tile if job.short_runs else run[r].count
        most_pieces = lanes if run[r].brief else job.tile if job.short_runs else 1
        tile = 0
        while tile < run[r].count:
            if count > 0 and (count - first >= most_pieces or piece[first].brief != run[r].brief):
                first = count
            start = job.tile * (run[r].column + tile) - job.left
            y = job.tile * run[r].row - job.top
            piece[count].count = least(most_tiles, run[r].count - tile)
            cells = job.tile * piece[count].count + job.filter - 1
            inside(job.w, start, 1, cells, &piece[count].first, &piece[count].stop)
            inside(job.h, y, 1, job.n, &piece[count].top, &piece[count].bottom)
            piece[count].cell = run[r].image * job.groups * job.sources * job.h * job.w + y * job.w + start
            piece[count].lane = run[r].lane + tile
            piece[count].whole_row, piece[count].brief = not job.short_runs, run[r].brief
            tile += piece[count].count
            count += 1
            piece[first].together = count - first
    return count


cdef void transform_input(const Winograd* job, Py_ssize_t group, Py_ssize_t block, Py_ssize_t c0, Py_ssize_t c1,
                          const real* source, real* v, char* scratch) noexcept nogil:
    """V of some channels of one block of tiles."""
    cdef real* half = <real*> (scratch + job.line_bytes)
    cdef fc_piece* piece = <fc_piece*> (scratch + job.line_bytes + job.half_bytes)
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t plane = BLOCK_TILES + lanes
    cdef Py_ssize_t lane[KINDS + 1]
    cdef TileRun run[BLOCK_TILES]
    cdef Py_ssize_t pieces = cut_pieces(job, run, cut_tiles(job, block, run, lane), lanes, piece)
    cdef Py_ssize_t c
    cdef const real* channel = source + (group * job.sources + c0) * job.h * job.w
    cdef fc_planes planes
    planes.begin, planes.end = source, source + job.batch * job.groups * job.sources * job.h * job.w
    planes.width, planes.ahead = job.w, job.h * job.w
    planes.line, planes.pitch = scratch, piece_line(job, sizeof(real))
    for c in range(c0, c1):
        if real is float:
            fc_winograd_rows_f32(job.tile, job.filter, job.missing_w, piece, pieces, &planes, channel, half, plane)
            fc_winograd_columns_f32(job.n, half, plane, lane[KINDS], lane[2], job.missing_h, v + c * job.width, job.v_plane,
                                    job.width)
        else:
            fc_winograd_rows_f64(job.tile, job.filter, job.missing_w, piece, pieces, &planes, channel, half, plane)
            fc_winograd_columns_f64(job.n, half, plane, lane[KINDS], lane[2], job.missing_h, v + c * job.width, job.v_plane,
                                    job.width)
        channel += job.h * job.w


cdef void transform_filters(const Winograd* job, Py_ssize_t panel, Py_ssize_t c0, Py_ssize_t channels, const real* weights,
                            real* u) noexcept nogil:
    """Channels [c0, c0 + channels) of one panel of U."""
    cdef const real* g = weights + panel * FC_PANEL * job.step_k + c0 * job.step_c
    cdef Py_ssize_t count = least(job.rows - panel * FC_PANEL, FC_PANEL)
    if real is float:
        fc_winograd_filters_f32(job.tile, job.filter, g, job.step_k, job.step_c, job.turned, count, channels, u,
                                job.u_plane)
    else:
        fc_winograd_filters_f64(job.tile, job.filter, g, job.step_k, job.step_c, job.turned, count, channels, u,
                                job.u_plane)


cdef inline Py_ssize_t first_panel(const Winograd* job, Py_ssize_t part) noexcept nogil:
    """The first panel of a block of output channels."""
    return job.panels * part // job.parts


cdef void multiply_block(const Winograd* job, Py_ssize_t block, Py_ssize_t panels, Py_ssize_t c0, Py_ssize_t channels,
                         const real* u, const real* v, real* m) noexcept nogil:
    """The products of some panels and one block of tiles, over channels [c0, c0 + channels); they are added up from 0 on."""
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real), step = job.planes * job.width
    cdef Py_ssize_t panel, row, start, vectors, width
    cdef int xi
    cdef Py_ssize_t lane[KINDS + 1]
    cdef TileRun run[BLOCK_TILES]
    cdef const real* a
    cdef const real* ahead
    cdef const real* right
    cdef real* to
    cut_tiles(job, block, run, lane)
    width = ceil_div(lane[KINDS], lanes) * lanes
    for xi in range(job.planes):
        lanes_of_product(job, lane, xi, lanes, &start, &vectors)
        right = v + xi * job.v_plane + c0 * job.width + start
        for panel in range(panels):
            a = u + panel * job.u_panel + xi * job.u_plane
            ahead = a + job.u_panel if panel + 1 < panels else u + least(xi + 1, job.planes - 1) * job.u_plane
            to = m + panel * FC_PANEL * step + xi * job.width
            if real is float:
                fc_winograd_product_f32(a, ahead, right, job.width, channels, vectors, to + start, step, c0 > 0)
            else:
                fc_winograd_product_f64(a, ahead, right, job.width, channels, vectors, to + start, step, c0 > 0)
            if c0 == 0 and vectors * lanes < width:
                for row in range(FC_PANEL):
                    memset(to + row * step, 0, start * sizeof(real))
                    memset(to + row * step + start + vectors * lanes, 0,
                           (width - start - vectors * lanes) * sizeof(real))


cdef void transform_output(const Winograd* job, Py_ssize_t group, Py_ssize_t block, Py_ssize_t m0, Py_ssize_t m1,
                           const real* bias, bint relu, real* out, char* scratch) noexcept nogil:
    """The pixels of rows [m0, m1) of one block of tiles, whose products lie at the beginning of `scratch`."""
    cdef real spoiled[BLOCK_TILES]
    cdef const real* m = <const real*> scratch
    cdef real* pixels = <real*> (scratch + job.m_bytes)
    cdef TileRun run[BLOCK_TILES]
    cdef Py_ssize_t tiles = least(BLOCK_TILES, job.tiles - block * BLOCK_TILES)
    cdef Py_ssize_t line = job.tile * BLOCK_TILES, step = job.planes * job.width
    cdef Py_ssize_t lane[KINDS + 1]
    cdef Py_ssize_t runs, k, r, y, columns, tile
    cdef real* plane
    runs = cut_tiles(job, block, run, lane)
    memset(spoiled, 0, sizeof(spoiled))
    for k in range(m1 - m0):
        if real is float:
            fc_winograd_output_f32(job.tile, job.filter, m + k * step, job.width, tiles, pixels, line,
                                   bias + m0 + k if bias != NULL else NULL, FC_RELU if relu else 0, spoiled)
        else:
            fc_winograd_output_f64(job.tile, job.filter, m + k * step, job.width, tiles, pixels, line,
                                   bias + m0 + k if bias != NULL else NULL, FC_RELU if relu else 0, spoiled)
        for r in range(runs):
            plane = (out + ((run[r].image * job.groups + group) * job.rows + m0 + k) * job.out_h * job.out_w
                     + job.tile * run[r].row * job.out_w + job.tile * run[r].column)
            columns = least(job.tile * run[r].count, job.out_w - job.tile * run[r].column)
            for y in range(least(job.tile, job.out_h - job.tile * run[r].row)):
                if job.past_caches:
                    fc_stream(<char*> (plane + y * job.out_w), <char*> (pixels + y * line + job.tile * run[r].lane),
                              columns * sizeof(real))
                else:
                    fc_copy_few(<char*> (plane + y * job.out_w), <char*> (pixels + y * line + job.tile * run[r].lane),
                                columns * sizeof(real))
    if job.past_caches:
        fc_stream_end()
    for r in range(runs):
        for tile in range(run[r].lane, run[r].lane + run[r].count):
            if spoiled[tile] != 0:
                fc_mark(job.spoiled + run[r].image * job.tiles_h + run[r].row)


cdef void winograd_part(const Winograd* job, Py_ssize_t group, Py_ssize_t first, Py_ssize_t last, Py_ssize_t part,
                        const real* weights, const real* u, const real* v, const real* bias, bint relu, real* out,
                        char* scratch) noexcept nogil:
    """One block of output channels for blocks [first, last) of tiles; v is of the first."""
    cdef Py_ssize_t p0 = first_panel(job, part), p1 = first_panel(job, part + 1), panel, block, piece, c0, c1
    cdef const real* mine = u + p0 * job.u_panel
    cdef real* m = <real*> scratch
    cdef real* own = <real*> (scratch + job.m_bytes + job.line_bytes + job.half_bytes + job.piece_bytes)
    if job.kept:
        own = NULL
    else:
        mine = own
    for piece in range(job.pieces):  # there are several for a single block of tiles only
        c0, c1 = job.sources * piece // job.pieces, job.sources * (piece + 1) // job.pieces
        if own != NULL:
            for panel in range(p0, p1):
                transform_filters(job, panel, c0, c1 - c0, weights, own + (panel - p0) * job.u_panel)
        for block in range(first, last):
            multiply_block(job, block, p1 - p0, c0, c1 - c0, mine, v + (block - first) * job.v_block, m)
            if piece == job.pieces - 1:
                transform_output(job, group, block, p0 * FC_PANEL, least(p1 * FC_PANEL, job.rows), bias, relu, out, scratch)


cdef void winograd_block(const Winograd* job, Py_ssize_t group, Py_ssize_t block, const real* source, const real* weights,
                         const real* u, const real* bias, bint relu, real* out, char* scratch) noexcept nogil:
    """One block of tiles from input to output, by one thread: nothing leaves its cache on the way."""
    cdef real* v = <real*> (scratch + job.m_bytes + job.line_bytes + job.half_bytes + job.piece_bytes)
    cdef Py_ssize_t part
    transform_input(job, group, block, 0, job.sources, source, v, scratch + job.m_bytes)
    for part in range(job.parts):
        winograd_part(job, group, block, block + 1, part, weights, u, v, bias, relu, out, scratch)


cdef void run_winograd(Winograd* job, const real* source, const real* weights, const real* packed, const real* bias,
                       bint relu, real* out, char* work, int threads) noexcept nogil:
    """Everything; job.spoiled then lies in `work`."""
    cdef real* own = <real*> work
    cdef const real* u = packed if job.given else own
    cdef real* v = <real*> (work + job.u_bytes)
    cdef char* scratch = work + job.u_bytes + job.v_bytes + job.row_bytes
    cdef Py_ssize_t group, first, count, item, pieces = ceil_div(job.sources, CHANNELS_AT_ONCE)
    job.spoiled = <uint8_t*> (work + job.u_bytes + job.v_bytes)
    memset(job.spoiled, 0, job.batch * job.tiles_h)
    for group in range(job.groups):
        if job.kept and not job.given:
            for item in prange(job.panels, num_threads=threads, schedule="static"):
                transform_filters(job, item, 0, job.sources, weights, own + item * job.u_panel)
        first = 0
        if job.apart:
            for item in prange(job.blocks, num_threads=threads, schedule="dynamic"):
                winograd_block(job, group, item, source, weights, u, bias, relu, out,
                               scratch + threadid() * job.thread_bytes)
            first = job.blocks
        while first < job.blocks:
            count = least(job.super, job.blocks - first)
            for item in prange(count * pieces, num_threads=threads, schedule="dynamic"):
                transform_input(job, group, first + item // pieces, item % pieces * CHANNELS_AT_ONCE,
                                least(item % pieces * CHANNELS_AT_ONCE + CHANNELS_AT_ONCE, job.sources), source,
                                v + item // pieces * job.v_block, scratch + threadid() * job.thread_bytes + job.m_bytes)
            if job.kept:
                for item in prange(count * job.parts, num_threads=threads, schedule="dynamic"):
                    winograd_part(job, group, first + item // job.parts, first + item // job.parts + 1, item % job.parts,
                                  weights, u, v + item // job.parts * job.v_block, bias, relu, out,
                                  scratch + threadid() * job.thread_bytes)
            else:
                for item in prange(job.parts, num_threads=threads, schedule="dynamic"):
                    winograd_part(job, group, first, first + count, item, weights, u, v, bias, relu, out,
                                  scratch + threadid() * job.thread_bytes)
            first += count
        weights += job.rows * job.sources * job.filter * job.filter
        if job.given:
            u += job.panels * job.u_panel
        if bias != NULL:
            bias += job.rows


def winograd_workspace(int tile, operation, geometry, Py_ssize_t itemsize, Py_ssize_t threads):
    """Scratch that F(tile x tile, filter) needs: ``(bytes shared, bytes for each thread)``."""
    cdef Window v = read_conv(geometry)
    cdef Winograd job
    plan_winograd(&job, &v, operation == "backward_data", tile, operation == "packed", itemsize, threads)
    return job.u_bytes + job.v_bytes + job.row_bytes, job.thread_bytes


def winograd_short_tiles(int tile, operation, geometry, Py_ssize_t itemsize):
    """Rows and columns that the last tiles have less, where they are taken apart: ``(rows, columns)``."""
    cdef Window v = read_conv(geometry)
    cdef Winograd job
    plan_winograd(&job, &v, operation == "backward_data", tile, operation == "packed", itemsize, 1)
    return job.missing_h, job.missing_w


def winograd_pack_bytes(int tile, geometry, Py_ssize_t itemsize):
    """Bytes of all filters, transformed."""
    cdef Window v = read_conv(geometry)
    cdef Winograd job
    plan_winograd(&job, &v, False, tile, True, itemsize, 1)
    return job.groups * job.panels * job.u_panel * itemsize


def winograd_pack(int tile, cnp.ndarray weight, geometry, cnp.ndarray packed):
    """Transform filters for conv2d into `packed`, winograd_pack_bytes bytes that start at a cache line."""
    if weight.descr.itemsize == 4:
        winograd_pack_of[float](tile, weight, geometry, packed)
    else:
        winograd_pack_of[double](tile, weight, geometry, packed)


cdef int winograd_pack_of(int tile, cnp.ndarray weight, object geometry, cnp.ndarray packed, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef Winograd job
    cdef const real* weights = <const real*> cnp.PyArray_DATA(weight)
    cdef real* u = <real*> cnp.PyArray_DATA(packed)
    cdef Py_ssize_t group, panel
    with nogil:
        plan_winograd(&job, &v, False, tile, True, sizeof(real), 1)
        for group in range(job.groups):
            for panel in range(job.panels):
                transform_filters(&job, panel, 0, job.sources, weights, u)
                u += job.u_panel
            weights += job.rows * job.sources * job.filter * job.filter
    return 0


def winograd_convolve(int tile, cnp.ndarray source, cnp.ndarray weight, packed, bias, bint relu, bint backward, geometry,
                      cnp.ndarray out, Py_ssize_t result_bytes, cnp.ndarray scratch, int threads):
    """conv2d of x, or with `backward` its gradient from dout, of float32 or float64 arrays into `out`.

    `packed` is None, or what winograd_pack made of `weight` for the same tile; `out` may be a part of a result of
    `result_bytes`. Returns None, or (batch, rows of tiles) flags:
    where one is set, something is not finite, and these rows of `out` are not what the definition gives.
    """
    if source.descr.itemsize == 4:
        return winograd_of[float](tile, source, weight, packed, bias, relu, backward, geometry, out, result_bytes, scratch,
                                  threads)
    return winograd_of[double](tile, source, weight, packed, bias, relu, backward, geometry, out, result_bytes, scratch,
                               threads)


cdef object winograd_of(int tile, cnp.ndarray source, cnp.ndarray weight, object packed, object bias, bint relu,
                        bint backward, object geometry, cnp.ndarray out, Py_ssize_t result_bytes, cnp.ndarray scratch,
                        int threads, real* dtype=NULL):
    cdef Window v = read_conv(geometry)
    cdef Winograd job
    cdef const real* b = NULL
    cdef const real* u = NULL
    cdef cnp.npy_intp shape[2]
    cdef cnp.ndarray spoiled
    if bias is not None:
        b = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    if packed is not None:
        u = <const real*> cnp.PyArray_DATA(<cnp.ndarray> packed)
    with nogil:
        plan_winograd(&job, &v, backward, tile, u != NULL, sizeof(real), threads)
        job.past_caches = result_bytes >= FC_STREAM_BYTES
        run_winograd(&job, <const real*> cnp.PyArray_DATA(source), <const real*> cnp.PyArray_DATA(weight), u, b, relu,
                     <real*> cnp.PyArray_DATA(out), <char*> cnp.PyArray_DATA(scratch), threads)
    shape[0], shape[1] = job.batch, job.tiles_h
    if memchr(job.spoiled, 1, shape[0] * shape[1]) == NULL:
        return None
    spoiled = cnp.PyArray_SimpleNew(2, shape, cnp.NPY_BOOL)
    memcpy(cnp.PyArray_DATA(spoiled), job.spoiled, shape[0] * shape[1])
    return spoiled
