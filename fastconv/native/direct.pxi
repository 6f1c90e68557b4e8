# Direct convolution: no column matrix, one padded copy of a few rows of the image at a time.
#
# The idea ("shifted flat rows"). Copy a band of the image into rows of one fixed length L that include the padding, and
# look at it as one flat array. Then a tap (kh, kw) of the filter sees, for ALL output pixels of the band, the same flat
# array shifted by kh*L + kw. So a tile of the output is
#
#     c[i][p] = sum over r of a[i][r] * flat[offset[r] + p]        (MR, R) @ (R, NR) -> (MR, NR)
#
# with r = (channel, kh, kw), a the weights as they lie in memory and offset a small table: a matrix product whose right
# hand side is never built. Between two rows p passes over L - OW positions that are no output pixels; what is computed
# there is thrown away, and costs (L - OW)/L.
#
# Where the positions between rows are many and the copies cheap (small images, few taps' rows), each column of taps has a
# copy of its own, which begins with the cells that it sees: then rows of OW cells follow each other without anything
# between them, and a band is one run of output pixels.
#
# Stride s: the copy is split by phase, one plane for each residue of a tap modulo s, so that every tap is a shift again.
# Dilation is only another table.
# Backward data is the same product on the output gradient: the input pixels of one parity class (their padded row and
# column modulo the stride) see only the taps of that class, at stride 1. So there are sh*sw classes, each with its own
# weights, table and pixels (spread by the stride when they are stored), and never a scatter.
# Backward weight needs the sum over pixels, along which both dout and the flat image are contiguous: an inner-product
# tile (fc_inner) on the same flat copies, with dout copied to rows of length L with zeros behind OW. Where the channels are
# few, so that x is copied for a fraction of what the products take, each column of taps has a copy of its own here too: then
# dout is read where it lies. The sums of few channels are few as well: their lanes are kept apart over all pixels.
#
# Blocking. A band is as many rows as keep the flat copy in L2. The sum over r is cut into chunks of about REDUCTION, whose
# results are added up in the output tile: that keeps the error of float32 at the level of a blocked sum (Higham, Accuracy
# and Stability of Numerical Algorithms, 2nd ed., section 4.2). Tiles are outermost and channels inside: a tile's part of
# the flat copy (L1/L2) is used by all output channels, and the weights stream past it at 2 bytes a cycle.
#
# Planes by themselves (depthwise, one channel) have kernels without any copy for the common filters: depthwise.h.
#
# Threads take (image, group, band, block of output channels), backward weight (group, block of K, block of C). No two of
# them write one element, and no sum depends on how they are dealt out: the same bits for any number of threads.
# On many cores: images and bands come first (nothing is shared but the weights, which every core reads and none writes);
# output channels are split only where there are fewer bands than threads, and then each thread makes its own copy of the
# band, because that is less than the wait for another to make it. Output pages are first touched by the thread that
# computes them.

cdef extern from "simd.h" nogil:
    enum: FC_TILE_ROWS
    enum: FC_TILE_VECTORS
    enum: FC_VECTOR_BYTES
    enum: FC_ACCUMULATE
    enum: FC_RELU
    enum: FC_PAST_CACHES
    ctypedef struct fc_asked:
        const char* from_ "from"
        const ptrdiff_t* at
        ptrdiff_t count
        int into
    enum: FC_ASK_NEAR
    enum: FC_ASK
    ctypedef void (*correlate_f32)(const float*, ptrdiff_t, const float*, const ptrdiff_t*, ptrdiff_t, float*, ptrdiff_t,
                                   const float*, int, const fc_asked*) noexcept nogil
    ctypedef void (*correlate_f64)(const double*, ptrdiff_t, const double*, const ptrdiff_t*, ptrdiff_t, double*,
                                   ptrdiff_t, const double*, int, const fc_asked*) noexcept nogil
    ctypedef void (*inner_f32)(const float*, ptrdiff_t, const float*, const ptrdiff_t*, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                               ptrdiff_t, float*, ptrdiff_t) noexcept nogil
    ctypedef void (*inner_f64)(const double*, ptrdiff_t, const double*, const ptrdiff_t*, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                               ptrdiff_t, double*, ptrdiff_t) noexcept nogil
    correlate_f32 fc_correlate_table_f32[3][4][6]
    correlate_f64 fc_correlate_table_f64[3][4][6]
    inner_f32 fc_inner_table_f32[4][6]
    inner_f64 fc_inner_table_f64[4][6]
    enum: FC_PLANE_ROWS
    void fc_pad_rows_f32(float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, const float*, ptrdiff_t, ptrdiff_t,
                         const float*, ptrdiff_t)
    void fc_pad_rows_f64(double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, const double*, ptrdiff_t, ptrdiff_t,
                         const double*, ptrdiff_t)
    void fc_pad_pairs_f32(float*, float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, const float*,
                          ptrdiff_t, const float*, ptrdiff_t)
    void fc_pad_pairs_f64(double*, double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                          const double*, ptrdiff_t, const double*, ptrdiff_t)
    void fc_plane_rows_f32(ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, int, const float*, const float*, ptrdiff_t,
                           const ptrdiff_t*, ptrdiff_t, float*, ptrdiff_t, const float*, int)
    void fc_plane_rows_f64(ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, int, const double*, const double*, ptrdiff_t,
                           const ptrdiff_t*, ptrdiff_t, double*, ptrdiff_t, const double*, int)
    void fc_store_runs_f32(float*, ptrdiff_t, const float*, ptrdiff_t, ptrdiff_t)
    void fc_store_runs_f64(double*, ptrdiff_t, const double*, ptrdiff_t, ptrdiff_t)
    void fc_ask_for_block(const char*, Py_ssize_t, int level)
    float fc_add_lanes_f32(const float*)
    double fc_add_lanes_f64(const double*)
    void fc_expect_f32(const float*, ptrdiff_t, ptrdiff_t, ptrdiff_t)
    void fc_expect_f64(const double*, ptrdiff_t, ptrdiff_t, ptrdiff_t)
    void fc_weave_f32(float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, const float*, ptrdiff_t)
    void fc_weave_f64(double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, const double*, ptrdiff_t)
    int fc_all_finite_f32(const float*, ptrdiff_t)
    int fc_all_finite_f64(const double*, ptrdiff_t)

cdef extern from "vectors.h" nogil:
    enum: FC_LINE
    enum: FC_STREAM_BYTES
    void fc_stream(char*, const char*, Py_ssize_t)
    void fc_stream_end()
    Py_ssize_t fc_gcd(Py_ssize_t, Py_ssize_t)
    Py_ssize_t fc_first_tap(Py_ssize_t residue, Py_ssize_t stride, Py_ssize_t dilation, Py_ssize_t taps)

cdef extern from "depthwise.h" nogil:
    ctypedef struct fc_depthwise:
        Py_ssize_t planes, filters, each, h, w, oh, ow, top, left
        int kernel, stride, turned
        Py_ssize_t bands
    void fc_plan_depthwise(fc_depthwise*, Py_ssize_t itemsize)
    void fc_depthwise_f32(const fc_depthwise*, const float*, const float*, const float*, int, float*, Py_ssize_t, Py_ssize_t)
    void fc_depthwise_f64(const fc_depthwise*, const double*, const double*, const double*, int, double*, Py_ssize_t,
                          Py_ssize_t)

cdef enum:
    BAND_BYTES = 393216   # of a band's flat copy: with the weights that stream past, it fits an L2 of 1 MB
    AHEAD_BYTES = 16384   # how far ahead a depthwise convolution at stride 2 prefetches its planes
    REDUCTION = 256       # terms that are added up in a register before they go to the output tile
    TURNED_AT_ONCE = 16   # channels whose weights are turned together
    COPY_WORK = 256       # products with each cell of a band that are worth another copy of it
    UNROLLED_PART = 8     # columns of taps are copied where so many times the positions between two rows are a row,
    UNROLLED_BYTES = 196608  # and the copies of an image are no larger
    FEW_ROWS = 2          # up to so many output planes of a group are computed row by row, not in tiles of channels
    FEW_TERMS = 16        # with so many products of an output there is time to ask for the memory that it goes to
    CHUNK_PIXELS = 2048   # backward weight: pixels of one chunk, whose sum stays in registers
    BLOCK_ROWS = 126      # backward weight: the most output channels of one item,
    BLOCK_CHANNELS = 128  # and the most input channels
    COPY_PRODUCTS = 48    # backward weight: products with each cell of a copy for one column of taps that are worth it
    SUM_BYTES = 524288    # backward weight: of sums whose lanes are kept apart


# --- the flat copy --------------------------------------------------------------------------------------------------

# How a band of source rows is laid out. Row y, column x of the band that starts at position q0, in phase slot (a, b), is
# the source's row (q0 + y)*step_h + phase_h[a] + base_h and column x*step_w + phase_w[b] + base_w.
cdef struct Flat:
    Py_ssize_t h, w                  # source plane
    Py_ssize_t step_h, step_w, base_h, base_w
    Py_ssize_t slots_h, slots_w
    Py_ssize_t* phase_h
    Py_ssize_t* phase_w
    Py_ssize_t length                # L, the row length
    bint unrolled                    # each column of taps has a slot of its own, with rows of OW cells
    Py_ssize_t halo                  # rows of a band beyond its positions
    Py_ssize_t band                  # positions (rows of output) in a full band
    Py_ssize_t plane                 # elements of one slot's plane in a full band
    Py_ssize_t first, last           # positions run over [first, last)


cdef void fill_flat(const Flat* f, real* to, const real* source, Py_ssize_t channels, Py_ssize_t position,
                    Py_ssize_t rows) noexcept nogil:
    """Copy `rows` + halo rows of each of `channels` source planes, from `position` on."""
    cdef Py_ssize_t c, a, b, s, row, first, stop, above, inner, start, first_2 = 0, stop_2 = 0
    cdef bint pair
    cdef real* at
    cdef const real* line
    cdef const real* end = source + channels * f.h * f.w
    cdef Py_ssize_t total = rows + f.halo
    # What is prefetched: the same row of the next plane, as planes lie too far apart to be foreseen; or, where there is one
    # plane at a time (depthwise) and it is thinned out, so that little is done for each load, what lies behind.
    cdef Py_ssize_t ahead = 0
    if channels > 1 and f.h * f.w * sizeof(real) > 2048:
        ahead = f.h * f.w
    elif channels == 1 and f.step_w == 2:
        ahead = AHEAD_BYTES // sizeof(real)
    for a in range(f.slots_h):
        row = position * f.step_h + f.phase_h[a] + f.base_h
        inside(f.h, row, f.step_h, total, &above, &inner)  # rows [above, inner) lie in the image
        b = 0
        while b < f.slots_w:
            start = f.phase_w[b] + f.base_w
            inside(f.w, start, f.step_w, f.length, &first, &stop)
            # two phases side by side are split in one go
            pair = f.step_w == 2 and b + 1 < f.slots_w and f.phase_w[b + 1] == f.phase_w[b] + 1
            if pair:
                inside(f.w, start + 1, f.step_w, f.length, &first_2, &stop_2)
            for c in range(channels):
                at = to + ((c * f.slots_h + a) * f.slots_w + b) * f.plane
                line = source + (c * f.h + row + above * f.step_h) * f.w + start
                for s in range((2 if pair else 1) if above > 0 or inner < total else 0):
                    memset(at + s * f.plane, 0, above * f.length * sizeof(real))
                    memset(at + s * f.plane + inner * f.length, 0, (total - inner) * f.length * sizeof(real))
                at += above * f.length
                if inner <= above:
                    continue
                if not pair:
                    pad_rows(at, f.length, inner - above, first, stop, line + first * f.step_w, f.step_w, f.step_h * f.w, end,
                             ahead)
                elif real is float:
                    fc_pad_pairs_f32(at, at + f.plane, f.length, inner - above, first, stop, first_2, stop_2, line,
                                     f.step_h * f.w, end, ahead)
                else:
                    fc_pad_pairs_f64(at, at + f.plane, f.length, inner - above, first, stop, first_2, stop_2, line,
                                     f.step_h * f.w, end, ahead)
            b += 2 if pair else 1


cdef inline void pad_rows(real* to, Py_ssize_t length, Py_ssize_t rows, Py_ssize_t first, Py_ssize_t stop,
                          const real* source, Py_ssize_t step, Py_ssize_t following, const real* end,
                         Py_ssize_t ahead=0) noexcept nogil:
    if real is float:
        fc_pad_rows_f32(to, length, rows, first, stop, source, step, following, end, ahead)
    else:
        fc_pad_rows_f64(to, length, rows, first, stop, source, step, following, end, ahead)


cdef Py_ssize_t residues(Py_ssize_t kernel, Py_ssize_t dilation, Py_ssize_t stride, Py_ssize_t* phase,
                         Py_ssize_t* slot) noexcept nogil:
    """The distinct residues of the taps k*dilation modulo stride: their values, each tap's slot, and their number."""
    cdef Py_ssize_t k, count = least(kernel, stride // fc_gcd(dilation, stride))  # then they come up again, in the same order
    for k in range(kernel):
        slot[k] = k % count
        if k < count:
            phase[k] = k * dilation % stride
    return count


cdef Py_ssize_t tap_tables(const Window* v) noexcept nogil:
    """Elements of the tables in front of a forward offset table: phases and slots of the taps."""
    return 2 * (v.kh + v.kw)


cdef ptrdiff_t* fill_tap_tables(Flat* f, const Window* v, Py_ssize_t channels, char* tables) noexcept nogil:
    """Phases, and behind them the offset of each (channel, kh, kw) in the flat copy, to which a pointer is returned."""
    cdef Py_ssize_t c, i, j
    cdef Py_ssize_t* slot_h
    cdef Py_ssize_t* slot_w
    cdef ptrdiff_t* offset
    cdef ptrdiff_t* at
    f.phase_h = <Py_ssize_t*> tables
    f.phase_w = f.phase_h + v.kh
    slot_h = f.phase_w + v.kw
    slot_w = slot_h + v.kh
    at = offset = <ptrdiff_t*> (slot_w + v.kw)
    residues(v.kh, v.dh, v.sh, f.phase_h, slot_h)
    if f.unrolled:
        for j in range(v.kw):
            slot_w[j], f.phase_w[j] = j, j * v.dw
    else:
        residues(v.kw, v.dw, v.sw, f.phase_w, slot_w)
    for c in range(channels):
        for i in range(v.kh):
            for j in range(v.kw):
                at[0] = (((c * f.slots_h + slot_h[i]) * f.slots_w + slot_w[j]) * f.plane
                         + i * v.dh // v.sh * f.length + (0 if f.unrolled else j * v.dw // v.sw))
                at += 1
    return offset


cdef void choose_band(Flat* f, Py_ssize_t channels, Py_ssize_t itemsize, Py_ssize_t budget) noexcept nogil:
    """As many positions in a band as fit the budget, and bands of even height."""
    cdef Py_ssize_t positions = most(f.last - f.first, 1)
    cdef Py_ssize_t row = channels * f.slots_h * f.slots_w * f.length * itemsize
    cdef Py_ssize_t band = least(most(budget // most(row, 1) - f.halo, 1), positions)
    f.band = ceil_div(positions, ceil_div(positions, band))
    f.plane = (f.band + f.halo) * f.length


# --- forward and backward data: correlation of a flat copy ------------------------------------------------------------

# The output pixels that see one set of taps. Position (q, j) is the output's row q*step_h + start_h and column
# j*step_w + start_w, for q in [first_h, last_h) and j in [first_w, last_w).
cdef struct TapClass:
    Py_ssize_t terms                 # R, terms of the sum
    Py_ssize_t weights               # where the class's weights of one group start, in elements
    Py_ssize_t table                 # where its offsets start
    Py_ssize_t start_h, step_h, first_h, last_h
    Py_ssize_t start_w, step_w, first_w, last_w

cdef struct Correlation:
    Flat flat
    fc_depthwise planes              # the kernels for single planes, which need nothing of what follows
    Py_ssize_t batch, groups
    Py_ssize_t sources               # planes of the source in one group
    Py_ssize_t rows                  # M, planes of the output in one group
    Py_ssize_t out_h, out_w
    Py_ssize_t base_j                # j of the flat copy's first column
    Py_ssize_t classes
    Py_ssize_t across                # classes that share a row: so many follow each other, one for each column modulo the stride
    TapClass* taps
    Py_ssize_t* tap_list             # kh*KW + kw of the taps of each class in turn
    ptrdiff_t* offset
    Py_ssize_t filter_h, filter_w
    int grid                         # 1 or -1 where a tap one row below is a row of the flat copy below or above, or 0
    Py_ssize_t group_weights         # elements of one group's weights
    Py_ssize_t blocks                # blocks of output planes that are dealt out separately
    Py_ssize_t bands
    bint past_caches                 # the output is too large to be found in a cache when it is needed
    Py_ssize_t thread_bytes          # scratch of each thread
    Py_ssize_t flat_bytes


cdef inline bint whole_lines(const real* c, Py_ssize_t ldc, Py_ssize_t vectors) noexcept nogil:
    """Whether the rows of a tile are whole lines of memory."""
    return (<size_t> c | <size_t> (ldc * sizeof(real)) | <size_t> (vectors * FC_VECTOR_BYTES)) % FC_LINE == 0


cdef inline void correlate_tile(const real* a, Py_ssize_t lda, const real* b, const ptrdiff_t* offset, Py_ssize_t terms,
                                Py_ssize_t rows, Py_ssize_t vectors, real* c, Py_ssize_t ldc, const real* bias, int flags,
                                const fc_asked* asked) noexcept nogil:
    """One output tile over all terms, in chunks of about REDUCTION. With FC_ACCUMULATE it is added to c.

    The lines `asked`, or NULL, are asked for meanwhile. FC_PAST_CACHES is taken for what it is where the tile is whole
    lines and written once, and for nothing elsewhere.
    """
    cdef int asks
    # what stands between two tiles of few terms takes a tenth of their time, if it is long
    if terms >= REDUCTION + REDUCTION // 2:
        correlate_chunks(a, lda, b, offset, terms, rows, vectors, c, ldc, bias, flags & ~FC_PAST_CACHES, asked)
        return
    if flags & FC_PAST_CACHES and not whole_lines(c, ldc, vectors):
        flags &= ~FC_PAST_CACHES
    asks = asked.into if asked != NULL else 0
    if real is float:
        fc_correlate_table_f32[asks][vectors - 1][rows - 1](a, lda, b, offset, terms, c, ldc, bias, flags, asked)
    else:
        fc_correlate_table_f64[asks][vectors - 1][rows - 1](a, lda, b, offset, terms, c, ldc, bias, flags, asked)


cdef void correlate_chunks(const real* a, Py_ssize_t lda, const real* b, const ptrdiff_t* offset, Py_ssize_t terms,
                           Py_ssize_t rows, Py_ssize_t vectors, real* c, Py_ssize_t ldc, const real* bias, int flags,
                           const fc_asked* asked) noexcept nogil:
    """The same for more terms than one chunk has."""
    cdef Py_ssize_t chunks = (terms + REDUCTION // 2) // REDUCTION
    cdef Py_ssize_t i, start = 0, stop
    cdef int now, asks
    for i in range(chunks):
        stop = terms * (i + 1) // chunks
        asks = asked.into if asked != NULL and i == 0 else 0
        now = (flags if i == 0 else FC_ACCUMULATE) & FC_ACCUMULATE
        if i == chunks - 1:
            now |= flags & FC_RELU
        if real is float:
            fc_correlate_table_f32[asks][vectors - 1][rows - 1](a + start, lda, b, offset + start, stop - start, c, ldc,
                                                                bias if i == chunks - 1 else NULL, now, asked)
        else:
            fc_correlate_table_f64[asks][vectors - 1][rows - 1](a + start, lda, b, offset + start, stop - start, c, ldc,
                                                                bias if i == chunks - 1 else NULL, now, asked)
        start = stop


cdef void plane_band(const Correlation* job, const TapClass* taps, Py_ssize_t q0, Py_ssize_t q1, const real* flat,
                     const real* weights, Py_ssize_t m, const real* bias, bint relu, real* out, real* spare) noexcept nogil:
    """Rows [q0, q1) of output plane m for the classes of taps that share these rows, a few rows at a time (depthwise, single
    filters).

    Rows that are narrower than a vector, or made of several classes, go by way of `spare`.
    """
    cdef const Flat* f = &job.flat
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t first = most(q0, taps.first_h), last = least(q1, taps.last_h)
    cdef Py_ssize_t width = taps.last_w - taps.first_w  # the first class has the most columns
    # chunks of whole grids of taps; a very large filter is one long sum, which has to be cut somewhere
    cdef int grid = job.grid if job.filter_h * job.filter_w <= 2 * REDUCTION else 0
    cdef Py_ssize_t each = job.filter_h * job.filter_w if grid != 0 else 1
    cdef Py_ssize_t pitch = ceil_div(width, lanes) * lanes, step = FC_PLANE_ROWS * pitch
    cdef bint apart = job.across > 1 or width < lanes
    cdef Py_ssize_t q, rows, i, b, t, chunk, chunks, start, stop, ldc = taps.step_h * job.out_w
    cdef const TapClass* part
    cdef const real* source
    cdef const real* a
    cdef real* to
    cdef int flags
    # Steps over whole vectors are repeated at the end of a row, which an accumulating pass must not do: it has whole vectors.
    # The flat copy has the slack.
    apart = apart or sum_chunks(taps, each) > 1
    q = first
    while q < last:
        rows = least(last - q, FC_PLANE_ROWS)
        to = out + (q * taps.step_h + taps.start_h) * job.out_w
        if real is float:  # of the next plane, which is the next item
            fc_expect_f32(to + job.out_h * job.out_w, rows, ldc, job.out_w)
        else:
            fc_expect_f64(to + job.out_h * job.out_w, rows, ldc, job.out_w)
        for b in range(job.across):
            part = taps + b
            a = weights + part.weights + m * part.terms
            source = flat + (q - q0) * f.length + part.first_w - job.base_j
            chunks = sum_chunks(part, each)
            start = 0
            for chunk in range(chunks):
                stop = part.terms // each * (chunk + 1) // chunks * each
                flags = FC_ACCUMULATE if chunk > 0 else 0
                if relu and chunk == chunks - 1:
                    flags |= FC_RELU
                if real is float:
                    fc_plane_rows_f32(rows, pitch if apart else width, job.filter_h, job.filter_w, grid, a + start, source,
                                      f.length, job.offset + part.table + start, stop - start,
                                      spare + b * step if apart else to, pitch if apart else ldc,
                                      bias if chunk == chunks - 1 else NULL, flags)
                else:
                    fc_plane_rows_f64(rows, pitch if apart else width, job.filter_h, job.filter_w, grid, a + start, source,
                                      f.length, job.offset + part.table + start, stop - start,
                                      spare + b * step if apart else to, pitch if apart else ldc,
                                      bias if chunk == chunks - 1 else NULL, flags)
                start = stop
        if apart:
            for i in range(rows):
                if real is float:
                    fc_weave_f32(to + i * ldc, job.out_w, job.out_w, job.across, spare + i * pitch, step)
                else:
                    fc_weave_f64(to + i * ldc, job.out_w, job.out_w, job.across, spare + i * pitch, step)
        q += rows


cdef inline Py_ssize_t sum_chunks(const TapClass* taps, Py_ssize_t each) noexcept nogil:
    """Pieces of a plane's sum, of about REDUCTION terms in grids of `each`."""
    return least(most((taps.terms + REDUCTION // 2) // REDUCTION, 1), most(taps.terms // each, 1))


cdef inline bint rows_fit_tiles(Py_ssize_t width, Py_ssize_t length, Py_ssize_t lanes) noexcept nogil:
    """Whether tiles that begin with each row waste no more than tiles that run on across the ends of rows.

    Then every tile goes to the output from the registers. A row must fill enough vectors for the sums to hide their latency.
    """
    cdef Py_ssize_t vectors = ceil_div(width, lanes)
    return vectors >= 3 and vectors * lanes <= length


cdef void correlate_item(const Correlation* job, Py_ssize_t item, const real* source, const real* weights,
                         const real* bias, bint relu, real* out, char* scratch) noexcept nogil:
    """One (image, group, band, block of output planes)."""
    cdef const Flat* f = &job.flat
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t block = item % job.blocks
    cdef Py_ssize_t band = item // job.blocks % job.bands
    cdef Py_ssize_t group = item // (job.blocks * job.bands) % job.groups
    cdef Py_ssize_t image = item // (job.blocks * job.bands * job.groups)
    cdef Py_ssize_t q0 = f.first + band * f.band
    cdef Py_ssize_t q1 = least(q0 + f.band, f.last)
    cdef real* flat = <real*> scratch
    cdef real* tile = <real*> (scratch + job.flat_bytes)
    cdef Py_ssize_t all_tiles = most(ceil_div(job.rows, FC_TILE_ROWS), 1)
    cdef Py_ssize_t m_tile, m_first = all_tiles * block // job.blocks, m_last = all_tiles * (block + 1) // job.blocks
    cdef bint by_row, expected
    cdef int flags = (FC_RELU if relu else 0) | (FC_PAST_CACHES if job.past_caches else 0)
    cdef Py_ssize_t t, m, rows, p, end, stop, vectors, count, q, j, run, done, i, x, plane = job.out_h * job.out_w
    cdef Py_ssize_t pixel, next_rows, least_rows = job.rows // all_tiles, odd = job.rows % all_tiles, odds, held = 0
    cdef const TapClass* taps
    cdef const real* a
    cdef real* to
    # the lines of the output's next tile, which are asked for while this one is summed up, or its stores would wait for them
    cdef ptrdiff_t[6 * 4 + 1] line
    cdef Py_ssize_t lined = 0, across = 0
    cdef fc_asked asked
    asked.at, asked.into = line, FC_ASK_NEAR

    source += (image * job.groups + group) * job.sources * f.h * f.w
    out += (image * job.groups + group) * job.rows * plane
    weights += group * job.group_weights
    if bias != NULL:
        bias += group * job.rows
    fill_flat(f, flat, source, job.sources, q0, q1 - q0)

    for t in range(job.classes):
        taps = &job.taps[t]
        if most(q0, taps.first_h) >= least(q1, taps.last_h):
            continue
        if job.rows <= FEW_ROWS:
            if t % job.across == 0:
                for m in range(job.rows * m_first // all_tiles, job.rows * m_last // all_tiles):
                    plane_band(job, taps, q0, q1, flat, weights, m, bias + m if bias != NULL else NULL, relu,
                               out + m * plane, tile)
            continue
        p = (most(q0, taps.first_h) - q0) * f.length + taps.first_w - job.base_j
        end = (least(q1, taps.last_h) - 1 - q0) * f.length + taps.last_w - job.base_j
        expected = FEW_TERMS <= taps.terms and not job.past_caches
        by_row = not f.unrolled and rows_fit_tiles(taps.last_w - taps.first_w, f.length, lanes)
        while p < end:
            q = q0 + p // f.length
            j = p % f.length + job.base_j
            stop = p + taps.last_w - j if by_row else end
            # tiles as even as can be: one of few vectors at the end would wait for its own sums
            vectors = ceil_div(stop - p, lanes)
            vectors = ceil_div(vectors, ceil_div(vectors, FC_TILE_VECTORS))
            count = least(vectors * lanes, stop - p)
            if expected and vectors != lined:
                lined, across = vectors, ceil_div(vectors * FC_VECTOR_BYTES, FC_LINE)
                for i in range(FC_TILE_ROWS * across):
                    line[i] = i // across * plane * <Py_ssize_t> sizeof(real) + i % across * FC_LINE
            pixel = (q * taps.step_h + taps.start_h) * job.out_w + j + taps.start_w
            # tile m_tile has the planes from rows*m_tile//all_tiles on: without divisions, which would stand between the tiles
            m, odds = job.rows * m_first // all_tiles, job.rows * m_first % all_tiles
            rows, next_rows = 0, least_rows + (odds + odd >= all_tiles)
            for m_tile in range(m_first, m_last):
                m += rows
                rows = next_rows
                odds += odd if odds + odd < all_tiles else odd - all_tiles
                next_rows = least_rows + (odds + odd >= all_tiles)
                a = weights + taps.weights + m * taps.terms
                if (p + vectors * lanes <= end if f.unrolled else
                        taps.step_w == 1 and j >= taps.first_w and j + vectors * lanes <= taps.last_w):
                    # the whole tile is one run of output pixels: it goes there from the registers
                    to = out + m * plane + pixel
                    if expected:
                        asked.count = next_rows * across
                        if m_tile + 1 < m_last:
                            asked.from_ = <const char*> (to + rows * plane)
                        else:
                            asked.count = least_rows * across
                            if p + count < end or job.bands > 1:  # more or less: rows may begin somewhat further on
                                asked.from_ = <const char*> (out + job.rows * m_first // all_tiles * plane + pixel + count)
                            else:  # the next image
                                asked.from_ = <const char*> (out + job.rows * plane)
                        held = line[asked.count]
                        line[asked.count] = <const char*> a - asked.from_
                    correlate_tile(a, taps.terms, flat + p, job.offset + taps.table, taps.terms, rows, vectors, to,
                                   plane, bias + m if bias != NULL else NULL, flags, &asked if expected else NULL)
                    if expected:
                        line[asked.count] = held  # for a tile of more rows
                    continue
                correlate_tile(a, taps.terms, flat + p, job.offset + taps.table, taps.terms, rows, vectors, tile,
                               FC_TILE_VECTORS * lanes, bias + m if bias != NULL else NULL, FC_RELU if relu else 0, NULL)
                done = 0
                while done < count:
                    # the runs of output pixels that the tile crosses
                    q = q0 + (p + done) // f.length
                    x = (p + done) % f.length + job.base_j
                    if x < taps.first_w:
                        done += taps.first_w - x
                        continue
                    if x >= taps.last_w:
                        done += f.length - (x - job.base_j)
                        continue
                    run = least(taps.last_w - x, count - done)
                    to = (out + m * plane + (q * taps.step_h + taps.start_h) * job.out_w + x * taps.step_w
                          + taps.start_w)
                    if taps.step_w > 1:
                        for i in range(rows):
                            store_run(to + i * plane, taps.step_w, tile + i * FC_TILE_VECTORS * lanes + done, run)
                    elif real is float:
                        fc_store_runs_f32(to, plane, tile + done, rows, run)
                    else:
                        fc_store_runs_f64(to, plane, tile + done, rows, run)
                    done += run
                q = q0 + p // f.length
            p += vectors * lanes
            if by_row and p >= stop:
                p = (q + 1 - q0) * f.length + taps.first_w - job.base_j
    if job.past_caches:
        fc_stream_end()


cdef inline void store_run(real* to, Py_ssize_t step, const real* run, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    if step == 1:
        for i in range(count):
            to[i] = run[i]
    else:
        for i in range(count):
            to[i * step] = run[i]


cdef void finish_correlation(Correlation* job, Py_ssize_t itemsize, Py_ssize_t threads) noexcept nogil:
    """Fill in what follows from the flat layout: bands, blocks, scratch."""
    cdef Flat* f = &job.flat
    cdef Py_ssize_t items, tiles = ceil_div(job.rows, FC_TILE_ROWS)
    job.past_caches = job.batch * job.groups * job.rows * job.out_h * job.out_w * itemsize >= FC_STREAM_BYTES
    choose_band(f, job.sources, itemsize, BAND_BYTES)
    job.bands = ceil_div(f.last - f.first, f.band)
    items = most(job.batch * job.groups * job.bands, 1)
    # An output is computed the same way in whatever block it lies, so the number of threads may be looked at here.
    job.blocks = 1
    if items < 4 * threads and threads > 1:
        # several for each thread, so that all are done together, if a block's products outweigh its copy of the band
        job.blocks = least(ceil_div(4 * threads, items), most(ceil_div(threads, items),
                                                              job.rows * job.filter_h * job.filter_w // COPY_WORK))
        job.blocks = least(tiles, job.blocks)
    # A tile at the end of the last plane reads up to one tile beyond it.
    job.flat_bytes = aligned((job.sources * f.slots_h * f.slots_w * f.plane) * itemsize
                             + FC_TILE_VECTORS * FC_VECTOR_BYTES)
    job.thread_bytes = job.flat_bytes + aligned(FC_TILE_ROWS * FC_TILE_VECTORS * FC_VECTOR_BYTES)
    if job.rows <= FEW_ROWS:
        job.thread_bytes += aligned(job.across * FC_PLANE_ROWS * (f.length * itemsize + FC_VECTOR_BYTES))


cdef void by_planes(Correlation* job, const Window* v, Py_ssize_t itemsize, bint turned) noexcept nogil:
    """Take the kernels for single planes (depthwise.h) where the geometry allows; they need no scratch."""
    cdef const Flat* f = &job.flat
    if job.sources != 1 or job.rows > FEW_ROWS or v.kh != v.kw or v.sh != v.sw or v.dh != 1 or v.dw != 1:
        return
    if turned and v.sh != 1:
        return
    job.planes.filters, job.planes.each = job.groups * job.rows, job.rows
    job.planes.planes = job.batch * job.planes.filters
    job.planes.h, job.planes.w, job.planes.oh, job.planes.ow = f.h, f.w, job.out_h, job.out_w
    job.planes.kernel, job.planes.stride, job.planes.turned = v.kh, v.sh, turned
    job.planes.top = v.kh - 1 - v.top if turned else v.top
    job.planes.left = v.kw - 1 - v.left if turned else v.left
    fc_plan_depthwise(&job.planes, itemsize)
    if job.planes.kernel != 0:
        job.flat_bytes = job.thread_bytes = 0


cdef Py_ssize_t forward_tables(const Window* v) noexcept nogil:
    """Bytes of the tables of a forward correlation."""
    return aligned((v.c // v.groups * v.kh * v.kw + tap_tables(v)) * sizeof(Py_ssize_t) + sizeof(TapClass))


cdef bint worth_unrolling(const Window* v, Py_ssize_t itemsize) noexcept nogil:
    """Whether copies for each column of taps cost less than the positions between rows (dispatch.py says the same)."""
    cdef Py_ssize_t between = (v.kw - 1) * v.dw, rows = v.oh + (v.kh - 1) * v.dh // v.sh
    return (v.sw == 1 and UNROLLED_PART * between >= v.ow
            and v.c // v.groups * v.kw * rows * v.ow * itemsize <= UNROLLED_BYTES)


cdef void plan_forward(Correlation* job, const Window* v, Py_ssize_t itemsize, Py_ssize_t threads,
                       char* tables, bint unrolled) noexcept nogil:
    """The correlation that is the convolution itself. With tables == NULL only the sizes are filled in."""
    cdef Flat* f = &job.flat
    memset(job, 0, sizeof(Correlation))
    f.h, f.w = v.h, v.w
    f.step_h, f.step_w, f.base_h, f.base_w = v.sh, v.sw, -v.top, -v.left
    f.length = v.ow + (v.kw - 1) * v.dw // v.sw
    f.halo = (v.kh - 1) * v.dh // v.sh
    f.first, f.last = 0, v.oh
    # residues of k*d modulo s repeat after s / gcd(d, s) taps
    f.slots_h = least(v.kh, v.sh // fc_gcd(v.dh, v.sh))
    f.slots_w = least(v.kw, v.sw // fc_gcd(v.dw, v.sw))
    f.unrolled = unrolled
    if unrolled:
        f.length, f.slots_w = v.ow, v.kw
    job.batch, job.groups = v.n, v.groups
    job.sources, job.rows = v.c // v.groups, v.k // v.groups
    job.out_h, job.out_w = v.oh, v.ow
    job.filter_h, job.filter_w = v.kh, v.kw
    job.grid = 1 if v.sh == 1 and v.dh == 1 else 0
    job.classes = job.across = 1
    job.group_weights = job.rows * job.sources * v.kh * v.kw
    finish_correlation(job, itemsize, threads)
    by_planes(job, v, itemsize, False)
    if tables == NULL:
        return
    job.taps = <TapClass*> tables
    job.offset = fill_tap_tables(f, v, job.sources, tables + sizeof(TapClass))
    job.taps[0] = TapClass(job.sources * v.kh * v.kw, 0, 0, 0, 1, 0, v.oh, 0, 1, 0, v.ow)


cdef Py_ssize_t axis_classes(Py_ssize_t size, Py_ssize_t stride) noexcept nogil:
    """Parity classes along one axis that any input pixel belongs to."""
    return least(size, stride)


cdef Py_ssize_t backward_tables(const Window* v) noexcept nogil:
    """Bytes of the tables of a backward-data correlation: the classes share the taps out between them."""
    return aligned(((v.k // v.groups + 1) * v.kh * v.kw + 2) * sizeof(Py_ssize_t)
                   + axis_classes(v.h, v.sh) * axis_classes(v.w, v.sw) * sizeof(TapClass))


cdef void plan_backward(Correlation* job, const Window* v, Py_ssize_t itemsize, Py_ssize_t threads,
                        char* tables) noexcept nogil:
    """The correlation of dout that is the gradient with respect to the input: one tap class for each parity."""
    cdef Flat* f = &job.flat
    cdef Py_ssize_t far_h = (v.kh - 1) * v.dh // v.sh, far_w = (v.kw - 1) * v.dw // v.sw
    cdef Py_ssize_t k, i, j, n, x, y, a, b, each, terms, kg = v.k // v.groups, cg = v.c // v.groups
    cdef Py_ssize_t weights = 0, table = 0
    cdef Py_ssize_t* tap
    cdef ptrdiff_t* at
    memset(job, 0, sizeof(Correlation))
    f.h, f.w = v.oh, v.ow
    f.step_h = f.step_w = f.slots_h = f.slots_w = 1
    # padded input pixel i + top = stride*q + parity, which output row q - t sees through the taps with k*d = stride*t + parity
    f.first, f.last = v.top // v.sh, (v.h - 1 + v.top) // v.sh + 1
    job.base_j = v.left // v.sw
    f.base_h, f.base_w = -far_h, job.base_j - far_w
    f.halo = far_h
    f.length = (v.w - 1 + v.left) // v.sw + 1 - job.base_j + far_w
    job.batch, job.groups = v.n, v.groups
    job.sources, job.rows = kg, cg
    job.out_h, job.out_w = v.h, v.w
    job.filter_h, job.filter_w = v.kh, v.kw
    job.grid = -1 if v.sh == 1 and v.sw == 1 and v.dh == 1 else 0  # otherwise a class has some of the taps only
    job.across = axis_classes(v.w, v.sw)
    job.classes = axis_classes(v.h, v.sh) * job.across
    job.group_weights = cg * kg * v.kh * v.kw
    finish_correlation(job, itemsize, threads)
    by_planes(job, v, itemsize, True)
    if tables == NULL:
        return
    job.taps = <TapClass*> tables
    f.phase_h = <Py_ssize_t*> (tables + job.classes * sizeof(TapClass))
    f.phase_w = f.phase_h + 1
    f.phase_h[0] = f.phase_w[0] = 0
    tap = job.tap_list = f.phase_w + 1
    at = job.offset = <ptrdiff_t*> (job.tap_list + v.kh * v.kw)
    n = 0
    for y in range(axis_classes(v.h, v.sh)):
        for x in range(axis_classes(v.w, v.sw)):
            a, b = (y + v.top) % v.sh, (x + v.left) % v.sw  # y and x are the first rows and columns of the class
            each = 0
            i = fc_first_tap(a, v.sh, v.dh, v.kh)
            while i < v.kh:
                j = fc_first_tap(b, v.sw, v.dw, v.kw)
                while j < v.kw:
                    tap[each] = i * v.kw + j
                    each += 1
                    j += v.sw // fc_gcd(v.dw, v.sw)
                i += v.sh // fc_gcd(v.dh, v.sh)
            for k in range(kg):
                for i in range(each):
                    at[k * each + i] = (k * f.plane + (far_h - tap[i] // v.kw * v.dh // v.sh) * f.length
                                        + far_w - tap[i] % v.kw * v.dw // v.sw)
            tap += each
            terms = kg * each
            job.taps[n] = TapClass(terms, weights, table,
                                   a - v.top, v.sh, (y + v.top) // v.sh, (v.h - 1 - y) // v.sh + 1 + (y + v.top) // v.sh,
                                   b - v.left, v.sw, (x + v.left) // v.sw, (v.w - 1 - x) // v.sw + 1 + (x + v.left) // v.sw)
            at += terms
            table += terms
            weights += cg * terms
            n += 1


cdef void turn_weights(const Correlation* job, const Window* v, const real* weights, Py_ssize_t group, Py_ssize_t c0,
                       Py_ssize_t c1, real* to) noexcept nogil:
    """The weights that input channels [c0, c1) of a group see, class by class: (K, C, KH, KW) -> class, (C, terms).

    A few channels at a time, so that both sides are walked through in order.
    """
    cdef Py_ssize_t kg = v.k // v.groups, cg = v.c // v.groups, taps = v.kh * v.kw
    cdef Py_ssize_t n, c, k, i, each
    cdef const Py_ssize_t* tap = job.tap_list
    cdef const real* at
    cdef real* row
    to += group * job.group_weights
    weights += group * kg * cg * taps
    for n in range(job.classes):
        each = job.taps[n].terms // kg
        for k in range(kg):
            for c in range(c0, c1):
                at = weights + (k * cg + c) * taps
                row = to + job.taps[n].weights + c * job.taps[n].terms + k * each
                for i in range(each):
                    row[i] = at[tap[i]]
        tap += each


cdef void turn_all_weights(const Correlation* job, const Window* v, const real* weights, real* to,
                           int threads) noexcept nogil:
    cdef Py_ssize_t i, cg = v.c // v.groups, blocks = ceil_div(cg, TURNED_AT_ONCE)
    if threads == 1 or v.groups * job.group_weights < 65536:
        for i in range(v.groups * blocks):
            turn_weights(job, v, weights, i // blocks, i % blocks * TURNED_AT_ONCE,
                         least((i % blocks + 1) * TURNED_AT_ONCE, cg), to)
    else:
        for i in prange(v.groups * blocks, num_threads=threads, schedule="static"):
            turn_weights(job, v, weights, i // blocks, i % blocks * TURNED_AT_ONCE,
                         least((i % blocks + 1) * TURNED_AT_ONCE, cg), to)


# --- backward weight: inner products of two flat copies ---------------------------------------------------------------

cdef struct InnerJob:
    Flat flat                        # of x
    Py_ssize_t batch, groups, kg, cg
    Py_ssize_t taps                  # KH*KW
    Py_ssize_t segments              # images of one chunk
    Py_ssize_t bands                 # chunks of one image, where segments == 1
    Py_ssize_t pixels                # of one segment's dout in the flat copy, a multiple of the vector
    Py_ssize_t block_k, block_c      # the most output and input channels of an item
    Py_ssize_t blocks_k, blocks_c
    Py_ssize_t out_h, out_w
    bint apart                       # each column of taps has a copy of x, and each sum keeps its lanes
    ptrdiff_t* offset
    Py_ssize_t x_bytes, left_bytes, thread_bytes


cdef Py_ssize_t inner_tables(const Window* v) noexcept nogil:
    return aligned((least(v.c // v.groups, BLOCK_CHANNELS) * v.kh * v.kw + tap_tables(v)) * sizeof(Py_ssize_t))


cdef bint worth_apart(const Window* v, Py_ssize_t itemsize) noexcept nogil:
    """Whether columns of taps get copies of their own, and sums keep their lanes (dispatch.py says the same)."""
    cdef Py_ssize_t kg = v.k // v.groups, cg = v.c // v.groups
    cdef Py_ssize_t rows = least(v.oh, most(CHUNK_PIXELS // v.ow, 1)) + (v.kh - 1) * v.dh // v.sh
    return (v.sw == 1 and kg * v.kh >= COPY_PRODUCTS
            and cg * least(v.kh, v.sh // fc_gcd(v.dh, v.sh)) * v.kw * rows * v.ow * itemsize <= UNROLLED_BYTES
            and least(kg, BLOCK_ROWS) * cg * v.kh * v.kw * FC_VECTOR_BYTES <= SUM_BYTES)


cdef void plan_inner(InnerJob* job, const Window* v, Py_ssize_t itemsize, Py_ssize_t threads, char* tables) noexcept nogil:
    cdef Flat* f = &job.flat
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // itemsize
    cdef Py_ssize_t items, channels
    cdef Correlation forward
    job.apart = worth_apart(v, itemsize)
    plan_forward(&forward, v, itemsize, 1, NULL, job.apart)
    job.flat = forward.flat
    job.batch, job.groups, job.kg, job.cg = v.n, v.groups, v.k // v.groups, v.c // v.groups
    job.taps = v.kh * v.kw
    job.out_h, job.out_w = v.oh, v.ow
    job.blocks_k = ceil_div(job.kg, BLOCK_ROWS)
    job.blocks_c = ceil_div(job.cg, BLOCK_CHANNELS)
    job.block_c = ceil_div(job.cg, job.blocks_c)
    # Pixels of a chunk follow from the shape alone: they are the order of the sums.
    f.band = most(least(f.last, CHUNK_PIXELS // f.length), 1)
    job.bands = ceil_div(f.last, f.band)
    f.band = ceil_div(f.last, job.bands)
    f.plane = (f.band + f.halo) * f.length
    job.pixels = ceil_div((f.band - 1) * f.length + v.ow, lanes) * lanes
    job.segments = least(most(CHUNK_PIXELS // job.pixels, 1), most(v.n, 1)) if job.bands == 1 else 1
    channels = job.block_c * f.slots_h * f.slots_w
    if job.apart:
        job.segments = most(least(job.segments, UNROLLED_BYTES // (channels * f.plane * itemsize)), 1)
    items = job.groups * job.blocks_k * job.blocks_c
    if threads > 1 and items < 2 * threads:  # rows of dw are independent: more blocks of them change no sum
        # Several for each, so that all are done together; but each makes the copies of x for itself, and few are not worth it.
        job.blocks_k = least(ceil_div(job.kg, FC_TILE_ROWS),
                             ceil_div((1 if job.apart else 2) * threads, job.groups * job.blocks_c))
    job.block_k = ceil_div(job.kg, job.blocks_k)
    job.x_bytes = aligned((job.segments * channels * f.plane + lanes) * itemsize)
    job.left_bytes = aligned(job.segments * job.block_k * job.pixels * itemsize)
    job.thread_bytes = job.x_bytes + job.left_bytes
    if job.apart:
        job.thread_bytes += job.block_k * job.block_c * job.taps * FC_VECTOR_BYTES
    if tables != NULL:
        job.offset = fill_tap_tables(f, v, job.block_c, tables)


cdef void inner_item(const InnerJob* job, Py_ssize_t item, const real* x, const real* dout, real* dw,
                     char* scratch) noexcept nogil:
    """dw of one block of output channels and one block of input channels of a group, over all pixels in order."""
    cdef const Flat* f = &job.flat
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t group = item // (job.blocks_k * job.blocks_c)
    cdef Py_ssize_t k0 = item // job.blocks_c % job.blocks_k * job.kg // job.blocks_k
    cdef Py_ssize_t k1 = (item // job.blocks_c % job.blocks_k + 1) * job.kg // job.blocks_k
    cdef Py_ssize_t c0 = item % job.blocks_c * job.cg // job.blocks_c
    cdef Py_ssize_t c1 = (item % job.blocks_c + 1) * job.cg // job.blocks_c
    cdef Py_ssize_t rows_all = k1 - k0, cols_all = (c1 - c0) * job.taps
    cdef Py_ssize_t x_step = (c1 - c0) * f.slots_h * f.slots_w * f.plane, dout_step = rows_all * job.pixels
    cdef Py_ssize_t ldw = job.cg * job.taps, out_plane = job.out_h * job.out_w
    cdef real* flat = <real*> scratch
    cdef real* copied = <real*> (scratch + job.x_bytes)
    cdef real* sums = <real*> (scratch + job.x_bytes + job.left_bytes)  # of lanes, tile by tile
    cdef real* to
    cdef real* at
    cdef Py_ssize_t image, images, band, q0, rows, s, k, y, r, cols, m, height, used, tiles, lda, step, ldc, wide
    cdef const real* line
    cdef const real* left
    cdef const real* following
    cdef bint in_place

    at = dw + (group * job.kg + k0) * ldw + c0 * job.taps
    for k in range(rows_all):
        memset(at + k * ldw, 0, cols_all * sizeof(real))
    if job.apart:
        memset(sums, 0, rows_all * cols_all * FC_VECTOR_BYTES)
    tiles = ceil_div(rows_all, FC_TILE_ROWS)
    image = 0
    while image < job.batch:
        images = least(job.segments, job.batch - image)
        for band in range(job.bands):
            q0 = band * f.band
            rows = least(f.band, f.last - q0)
            if rows <= 0:
                break
            used = ceil_div((rows - 1) * f.length + job.out_w, lanes) * lanes
            in_place = job.apart and used == rows * job.out_w
            left, lda, step = copied, job.pixels, dout_step
            if in_place:
                left = dout + ((image * job.groups + group) * job.kg + k0) * out_plane + q0 * job.out_w
                lda, step = out_plane, job.groups * job.kg * out_plane
            for s in range(images):
                fill_flat(f, flat + s * x_step,
                          x + (((image + s) * job.groups + group) * job.cg + c0) * f.h * f.w, c1 - c0, q0, rows)
                for k in range(0 if in_place else rows_all):
                    # dout in rows of length L; zeros behind each row, so that positions between rows add nothing
                    to = copied + s * dout_step + k * job.pixels
                    memset(to, 0, used * sizeof(real))
                    line = (dout + (((image + s) * job.groups + group) * job.kg + k0 + k) * out_plane + q0 * job.out_w)
                    for y in range(rows):
                        memcpy(to + y * f.length, line + y * job.out_w, job.out_w * sizeof(real))
            # The last vector may read on behind the last plane: there must be no NaN there to multiply the zeros with.
            # (A short last band leaves rows of older bands at the end of its planes: finite, and met by zeros.)
            memset(flat + images * x_step, 0, lanes * sizeof(real))
            for m in range(tiles):
                k = rows_all * m // tiles
                height = rows_all * (m + 1) // tiles - k
                following = left + (k + height) * lda if m + 1 < tiles else left + images * step
                r = 0
                while r < cols_all:
                    cols = least(FC_TILE_VECTORS, cols_all - r)
                    to, ldc = at + k * ldw + r, ldw
                    if job.apart:
                        to, ldc = sums + (k * cols_all + height * r) * lanes, 0
                    if in_place:  # the rows of the next tile, which lie one behind the other, are on their way meanwhile
                        wide = height * out_plane * cols // cols_all
                        for s in range(images if job.bands == 1 else 0):
                            fc_ask_for_block(<const char*> (following + s * step + height * out_plane * r // cols_all),
                                             wide * sizeof(real), 2)
                    if real is float:
                        fc_inner_table_f32[cols - 1][height - 1](left + k * lda, lda, flat, job.offset + r, used // lanes,
                                                                 images, step, x_step, to, ldc)
                    else:
                        fc_inner_table_f64[cols - 1][height - 1](left + k * lda, lda, flat, job.offset + r, used // lanes,
                                                                 images, step, x_step, to, ldc)
                    r += cols
        image += images
    for m in range(tiles if job.apart else 0):
        k = rows_all * m // tiles
        height = rows_all * (m + 1) // tiles - k
        r = 0
        while r < cols_all:
            cols = least(FC_TILE_VECTORS, cols_all - r)
            for s in range(height * cols):
                to = sums + (k * cols_all + height * r + s) * lanes
                if real is float:
                    at[(k + s // cols) * ldw + r + s % cols] = fc_add_lanes_f32(to)
                else:
                    at[(k + s // cols) * ldw + r + s % cols] = fc_add_lanes_f64(to)
            r += cols


# --- entry points ------------------------------------------------------------------------------------------------------

cdef inline bint all_finite(const real* values, Py_ssize_t count) noexcept nogil:
    if real is float:
        return fc_all_finite_f32(values, count)
    else:
        return fc_all_finite_f64(values, count)


cdef void correlate_planes(const Correlation* job, const real* source, const real* weights, const real* bias, bint relu,
                           real* out, int threads) noexcept nogil:
    cdef Py_ssize_t bands = job.planes.planes * job.planes.bands, item, items = least(bands, 16 * threads)
    if threads == 1:
        items = 1
    for item in prange(items, num_threads=threads, schedule="dynamic", chunksize=1):
        if real is float:
            fc_depthwise_f32(&job.planes, source, weights, bias, relu, out, bands * item // items, bands * (item + 1) // items)
        else:
            fc_depthwise_f64(&job.planes, source, weights, bias, relu, out, bands * item // items, bands * (item + 1) // items)


cdef void run_correlation(const Correlation* job, const real* source, const real* weights, const real* bias, bint relu,
                          real* out, char* scratch, int threads) noexcept nogil:
    cdef Py_ssize_t item, items = job.batch * job.groups * job.bands * job.blocks
    if job.planes.kernel != 0:
        correlate_planes(job, source, weights, bias, relu, out, threads)
        return
    if items <= 1 or threads == 1:
        for item in range(items):
            correlate_item(job, item, source, weights, bias, relu, out, scratch)
        return
    # many small items (depthwise) are dealt out in handfuls: a counter that all cores touch costs more than they do
    for item in prange(items, num_threads=threads, schedule="dynamic", chunksize=most(items // (16 * threads), 1)):
        correlate_item(job, item, source, weights, bias, relu, out, scratch + threadid() * job.thread_bytes)


cdef void run_inner(const InnerJob* job, const real* x, const real* dout, real* dw, char* scratch,
                    int threads) noexcept nogil:
    cdef Py_ssize_t item, items = job.groups * job.blocks_k * job.blocks_c
    if items <= 1 or threads == 1:
        for item in range(items):
            inner_item(job, item, x, dout, dw, scratch)
        return
    for item in prange(items, num_threads=threads, schedule="dynamic", chunksize=most(items // (16 * threads), 1)):
        inner_item(job, item, x, dout, dw, scratch + threadid() * job.thread_bytes)


def direct_workspace(operation, geometry, Py_ssize_t itemsize, Py_ssize_t threads):
    """Scratch that an operation of this file needs: ``(bytes shared, bytes for each thread)``."""
    cdef Window v = read_conv(geometry)
    cdef Correlation job
    cdef InnerJob inner
    if operation == "forward":
        plan_forward(&job, &v, itemsize, threads, NULL, worth_unrolling(&v, itemsize))
        return forward_tables(&v), job.thread_bytes
    if operation == "backward_data":
        plan_backward(&job, &v, itemsize, threads, NULL)
        return backward_tables(&v) + aligned(v.groups * job.group_weights * itemsize), job.thread_bytes
    if operation == "backward_weight":
        plan_inner(&inner, &v, itemsize, threads, NULL)
        return inner_tables(&v), inner.thread_bytes
    raise ValueError(f"no operation {operation!r}")


def direct_forward(cnp.ndarray x, cnp.ndarray weight, bias, bint relu, geometry, cnp.ndarray out, cnp.ndarray scratch,
                   int threads):
    """conv2d of float32 or float64 arrays into `out`; `scratch` as direct_workspace says."""
    if x.descr.itemsize == 4:
        forward_of[float](x, weight, bias, relu, geometry, out, scratch, threads)
    else:
        forward_of[double](x, weight, bias, relu, geometry, out, scratch, threads)


cdef int forward_of(cnp.ndarray x, cnp.ndarray weight, object bias, bint relu, object geometry, cnp.ndarray out,
                    cnp.ndarray scratch, int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef Correlation job
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef const real* b = NULL
    if bias is not None:
        b = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    with nogil:
        plan_forward(&job, &v, sizeof(real), threads, work, worth_unrolling(&v, sizeof(real)))
        run_correlation(&job, <const real*> cnp.PyArray_DATA(x), <const real*> cnp.PyArray_DATA(weight), b, relu,
                        <real*> cnp.PyArray_DATA(out), work + forward_tables(&v), threads)
    return 0


def direct_backward_data(cnp.ndarray dout, cnp.ndarray weight, bias, geometry, cnp.ndarray out, cnp.ndarray scratch,
                         int threads):
    """The gradient with respect to the input, plus a `bias` for each of its channels or None, into `out`.

    Returns False, with `out` untouched, where a weight is not finite: the flat copy's padding of zeros would meet it and
    give NaN, where the gradient sums only over the cells of dout that exist.
    """
    if dout.descr.itemsize == 4:
        return backward_data_of[float](dout, weight, bias, geometry, out, scratch, threads) != 0
    return backward_data_of[double](dout, weight, bias, geometry, out, scratch, threads) != 0


cdef int backward_data_of(cnp.ndarray dout, cnp.ndarray weight, object bias, object geometry, cnp.ndarray out,
                          cnp.ndarray scratch, int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef Correlation job
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef const real* w = <const real*> cnp.PyArray_DATA(weight)
    cdef const real* b = NULL
    cdef real* turned
    cdef bint finite
    if bias is not None:
        b = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    with nogil:
        finite = all_finite(w, v.k * (v.c // v.groups) * v.kh * v.kw)
        if finite:
            plan_backward(&job, &v, sizeof(real), threads, work)
            work += backward_tables(&v)
            turned = <real*> work
            work += aligned(v.groups * job.group_weights * sizeof(real))
            turn_all_weights(&job, &v, w, turned, threads)
            run_correlation(&job, <const real*> cnp.PyArray_DATA(dout), <const real*> turned, b, False,
                            <real*> cnp.PyArray_DATA(out), work, threads)
    return finite


def direct_backward_weight(cnp.ndarray dout, cnp.ndarray x, geometry, cnp.ndarray out, cnp.ndarray scratch, int threads):
    """The gradient with respect to the weight, into `out`.

    Returns False, with `out` untouched, where a cell of x is not finite: the zeros between the rows of dout would meet it
    and give NaN.
    """
    if dout.descr.itemsize == 4:
        return backward_weight_of[float](dout, x, geometry, out, scratch, threads) != 0
    return backward_weight_of[double](dout, x, geometry, out, scratch, threads) != 0


cdef int backward_weight_of(cnp.ndarray dout, cnp.ndarray x, object geometry, cnp.ndarray out, cnp.ndarray scratch,
                            int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef InnerJob job
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef const real* image = <const real*> cnp.PyArray_DATA(x)
    cdef bint finite
    with nogil:
        finite = all_finite(image, v.n * v.c * v.h * v.w)
        if finite:
            plan_inner(&job, &v, sizeof(real), threads, work)
            run_inner(&job, image, <const real*> cnp.PyArray_DATA(dout), <real*> cnp.PyArray_DATA(out),
                      work + inner_tables(&v), threads)
    return finite


cdef class SmallForward:
    """A direct convolution made ready once, for calls that take less time than finding out how to do them.

    It keeps the tables and the layout of its geometry, makes the result, and runs on the calling thread.
    """
    cdef Correlation job
    cdef char* tables
    cdef bint relu
    cdef int rank, type_num
    cdef cnp.npy_intp[4] shape

    def __cinit__(self, geometry, cnp.dtype dtype, bint batched, bint relu):
        cdef Window v = read_conv(geometry)
        self.tables = <char*> malloc(forward_tables(&v))
        if self.tables == NULL:
            raise MemoryError("tables of a small convolution")
        plan_forward(&self.job, &v, dtype.itemsize, 1, self.tables, worth_unrolling(&v, dtype.itemsize))
        self.relu, self.type_num = relu, dtype.type_num
        self.rank = 4 if batched else 3
        for i, size in enumerate(geometry.output_shape[4 - self.rank:]):
            self.shape[i] = size

    def __dealloc__(self):
        free(self.tables)

    def __call__(self, cnp.ndarray x, cnp.ndarray weight, bias):
        """The result, or None where an array is not as the kernels need it (C-contiguous, aligned)."""
        cdef char* scratch
        cdef cnp.ndarray out
        if not (cnp.PyArray_ISCARRAY_RO(x) and cnp.PyArray_ISCARRAY_RO(weight)):
            return None
        if bias is not None and not cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> bias):
            return None
        out = cnp.PyArray_EMPTY(self.rank, self.shape, self.type_num, 0)
        scratch = <char*> malloc(most(self.job.thread_bytes, 1))
        if scratch == NULL:
            raise MemoryError(f"{self.job.thread_bytes} bytes of scratch")
        if self.type_num == cnp.NPY_FLOAT:
            small_forward[float](self, x, weight, bias, out, scratch)
        else:
            small_forward[double](self, x, weight, bias, out, scratch)
        free(scratch)
        return out


cdef void small_forward(SmallForward ready, cnp.ndarray x, cnp.ndarray weight, object bias, cnp.ndarray out,
                        char* scratch, real* dtype=NULL) noexcept:
    cdef const real* b = NULL
    if bias is not None:
        b = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    run_correlation(&ready.job, <const real*> cnp.PyArray_DATA(x), <const real*> cnp.PyArray_DATA(weight), b, ready.relu,
                    <real*> cnp.PyArray_DATA(out), scratch, 1)


cdef class SmallBackward:
    """The gradients of a small direct convolution, made ready once as SmallForward is."""
    cdef Window window
    cdef Correlation data
    cdef InnerJob weight
    cdef char* tables
    cdef Py_ssize_t data_tables, turned_bytes, weight_bytes
    cdef int rank, type_num
    cdef cnp.npy_intp[4] shape, weight_shape
    cdef cnp.npy_intp[1] bias_shape

    def __cinit__(self, geometry, cnp.dtype dtype, bint batched):
        cdef Window v = read_conv(geometry)
        self.window = v
        self.data_tables = backward_tables(&v)
        self.tables = <char*> malloc(self.data_tables + inner_tables(&v))
        if self.tables == NULL:
            raise MemoryError("tables of a small convolution")
        plan_backward(&self.data, &v, dtype.itemsize, 1, self.tables)
        plan_inner(&self.weight, &v, dtype.itemsize, 1, self.tables + self.data_tables)
        self.turned_bytes = aligned(v.groups * self.data.group_weights * dtype.itemsize)
        self.weight_bytes = aligned(most(self.data.thread_bytes, self.weight.thread_bytes))
        self.type_num = dtype.type_num
        self.rank = 4 if batched else 3
        for i, size in enumerate(geometry.input_shape[4 - self.rank:]):
            self.shape[i] = size
        for i, size in enumerate(geometry.weight_shape):
            self.weight_shape[i] = size
        self.bias_shape[0] = v.k

    def __dealloc__(self):
        free(self.tables)

    def __call__(self, cnp.ndarray dout, cnp.ndarray x, cnp.ndarray weight, bint data, bint filters, bint bias):
        """(dx, dw, db) with None for what is not asked for, or None where an array is not as the kernels need it."""
        cdef cnp.ndarray dx = None, dw = None, db = None
        cdef char* scratch
        cdef bint done
        if not (cnp.PyArray_ISCARRAY_RO(dout) and cnp.PyArray_ISCARRAY_RO(x) and cnp.PyArray_ISCARRAY_RO(weight)):
            return None
        if data:
            dx = cnp.PyArray_EMPTY(self.rank, self.shape, self.type_num, 0)
        if filters:
            dw = cnp.PyArray_EMPTY(4, self.weight_shape, self.type_num, 0)
        if bias:
            db = cnp.PyArray_EMPTY(1, self.bias_shape, self.type_num, 0)
        scratch = <char*> malloc(self.turned_bytes + self.weight_bytes + self.window.k * sizeof(double))
        if scratch == NULL:
            raise MemoryError(f"{self.turned_bytes + self.weight_bytes} bytes of scratch")
        if self.type_num == cnp.NPY_FLOAT:
            done = small_backward[float](self, dout, x, weight, dx, dw, db, scratch)
        else:
            done = small_backward[double](self, dout, x, weight, dx, dw, db, scratch)
        free(scratch)
        return (dx, dw, db) if done else None


cdef bint small_backward(SmallBackward ready, cnp.ndarray dout, cnp.ndarray x, cnp.ndarray weight, object dx, object dw,
                         object db, char* scratch, real* dtype=NULL) noexcept:
    """False where something is not finite, which takes another way."""
    cdef const Window* v = &ready.window
    cdef const real* gradient = <const real*> cnp.PyArray_DATA(dout)
    cdef real* turned = <real*> scratch
    cdef char* work = scratch + ready.turned_bytes
    if dx is not None:
        if not all_finite(<const real*> cnp.PyArray_DATA(weight), v.k * (v.c // v.groups) * v.kh * v.kw):
            return False
        turn_all_weights(&ready.data, v, <const real*> cnp.PyArray_DATA(weight), turned, 1)
        run_correlation(&ready.data, gradient, <const real*> turned, <const real*> NULL, False,
                        <real*> cnp.PyArray_DATA(<cnp.ndarray> dx), work, 1)
    if dw is not None:
        if not all_finite(<const real*> cnp.PyArray_DATA(x), v.n * v.c * v.h * v.w):
            return False
        run_inner(&ready.weight, <const real*> cnp.PyArray_DATA(x), gradient,
                  <real*> cnp.PyArray_DATA(<cnp.ndarray> dw), work, 1)
    if db is not None:
        sum_channels(gradient, v.n, v.k, v.oh * v.ow, 0, v.k, <double*> (work + ready.weight_bytes),
                     <real*> cnp.PyArray_DATA(<cnp.ndarray> db))
    return True
