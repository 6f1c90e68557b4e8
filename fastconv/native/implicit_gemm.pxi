# Implicit GEMM: the column matrix exists only as panels in cache.
#
#     (K/g, C/g*KH*KW) @ (C/g*KH*KW, N*OH*OW) -> (K/g, N*OH*OW)
#
# The pixels of all images are one long row, cut into blocks of a few panels of NR pixels, so that the small images at the
# end of a network fill whole tiles together. For each block and each chunk of channels: copy the rows that the block sees
# into the padded, phase-split flat layout of direct.pxi (which turns padding, stride and dilation into plain offsets);
# pack the panels from it, leaving out the positions between rows; and multiply with the micro-kernel of the direct
# convolution, whose offset table is now simply r*NR.
#
# Against the direct convolution: no work on positions between rows ((L - OW)/L of it) and none in half-empty tiles at the
# end of an image; but a copy of KH*KW elements for each of the image's, worth it where the filters are many (each packed
# row costs about 4 cycles a run, and is used for 2*K cycles of FMA) or the rows short.
#
# Backward data at stride 1 is the same on dout with turned weights (see direct.pxi).
#
# Cache: a chunk of about CHUNK_TERMS terms makes a panel of 147 kB in float32, of which two lie in L2; A's rows of a chunk
# (6 x 576 values, 14 kB) stay in L1 for all panels of the block. Threads take (group, block, block of output channels);
# many cores get blocks first, and block the output channels only where there are fewer blocks than threads.

cdef extern from "simd.h" nogil:
    ctypedef struct fc_run:
        ptrdiff_t from_ "from"
        ptrdiff_t to
        ptrdiff_t count
    void fc_pack_runs_f32(float*, ptrdiff_t, const float*, const ptrdiff_t*, ptrdiff_t, const fc_run*, ptrdiff_t)
    void fc_pack_runs_f64(double*, ptrdiff_t, const double*, const ptrdiff_t*, ptrdiff_t, const fc_run*, ptrdiff_t)

cdef enum:
    CHUNK_TERMS = 576    # terms of the sum in one panel
    BLOCK_PANELS = 2     # panels of one block

# A part of a block: pixels [first, stop) of one image, whose flat rows start at `row`.
cdef struct Segment:
    Py_ssize_t image, first, stop, row

cdef struct Gemm:
    Flat flat
    Py_ssize_t batch, groups, sources, rows
    Py_ssize_t taps
    Py_ssize_t out_w, pixels         # width and pixels of one output plane
    Py_ssize_t width                 # NR, pixels of a panel
    Py_ssize_t block                 # pixels of a block
    Py_ssize_t blocks
    Py_ssize_t chunk                 # channels of a chunk
    Py_ssize_t parts                 # blocks of output channels
    Py_ssize_t segments              # the most segments of a block
    ptrdiff_t* offset                # in the flat copy
    ptrdiff_t* panel_offset          # in a panel
    Py_ssize_t flat_bytes, panel_bytes, sum_bytes, run_bytes, thread_bytes


cdef Py_ssize_t gemm_tables(const Gemm* job, const Window* v) noexcept nogil:
    return aligned((2 * job.chunk * job.taps + tap_tables(v)) * sizeof(Py_ssize_t))


cdef void plan_gemm(Gemm* job, const Window* v, bint backward, Py_ssize_t itemsize, Py_ssize_t threads,
                    char* tables) noexcept nogil:
    cdef Flat* f = &job.flat
    cdef Py_ssize_t chunks, items, tiles, i, j, c
    cdef ptrdiff_t* at
    cdef Correlation direct
    if backward:
        plan_backward(&direct, v, itemsize, 1, NULL)
    else:
        plan_forward(&direct, v, itemsize, 1, NULL)
    job.flat = direct.flat
    job.batch, job.groups, job.sources, job.rows = direct.batch, direct.groups, direct.sources, direct.rows
    job.taps = v.kh * v.kw
    job.out_w, job.pixels = direct.out_w, direct.out_h * direct.out_w
    job.width = FC_TILE_VECTORS * FC_VECTOR_BYTES // itemsize
    job.block = BLOCK_PANELS * job.width
    job.blocks = ceil_div(job.batch * job.pixels, job.block)
    chunks = ceil_div(job.sources, most(CHUNK_TERMS // job.taps, 1))
    job.chunk = ceil_div(job.sources, chunks)
    job.segments = least(most(job.batch, 1), (job.block - 2) // job.pixels + 2)
    f.plane = (job.block // job.out_w + job.segments * (2 + f.halo)) * f.length
    tiles = ceil_div(job.rows, FC_TILE_ROWS)
    items = most(job.groups * job.blocks, 1)
    job.parts = 1 if threads == 1 or items >= 4 * threads else least(tiles, ceil_div(2 * threads, items))
    job.flat_bytes = aligned((job.chunk * f.slots_h * f.slots_w * f.plane) * itemsize + 2 * FC_VECTOR_BYTES)
    job.panel_bytes = aligned(BLOCK_PANELS * job.chunk * job.taps * job.width * itemsize + FC_VECTOR_BYTES)
    job.sum_bytes = aligned((ceil_div(tiles, job.parts) * FC_TILE_ROWS) * job.block * itemsize)
    # runs of a panel: one for each row of output it touches, at most one for each pixel
    job.run_bytes = aligned(least(job.width, job.width // job.out_w + 2 * job.segments + 1) * sizeof(fc_run)
                            + job.segments * sizeof(Segment))
    job.thread_bytes = job.flat_bytes + job.panel_bytes + job.sum_bytes + job.run_bytes
    if tables == NULL:
        return
    job.offset = at = fill_tap_tables(f, v, job.chunk, tables)
    if backward:
        f.phase_h[0] = f.phase_w[0] = 0
        for c in range(job.chunk):
            for i in range(v.kh):
                for j in range(v.kw):
                    at[0] = c * f.plane + (v.kh - 1 - i) * v.dh * f.length + (v.kw - 1 - j) * v.dw
                    at += 1
    job.panel_offset = job.offset + job.chunk * job.taps
    for i in range(job.chunk * job.taps):
        job.panel_offset[i] = i * job.width


cdef Py_ssize_t cut_segments(const Gemm* job, Py_ssize_t start, Py_ssize_t stop, Segment* segment) noexcept nogil:
    """Cut pixels [start, stop) of all images at the images' ends."""
    cdef Py_ssize_t count = 0, row = 0
    while start < stop:
        segment[count].image = start // job.pixels
        segment[count].first = start % job.pixels
        segment[count].stop = least(job.pixels, segment[count].first + stop - start)
        segment[count].row = row
        start += segment[count].stop - segment[count].first
        row += (segment[count].stop - 1) // job.out_w - segment[count].first // job.out_w + 1 + job.flat.halo
        count += 1
    return count


cdef Py_ssize_t cut_runs(const Gemm* job, const Segment* segment, Py_ssize_t segments, Py_ssize_t start,
                         Py_ssize_t stop, fc_run* run) noexcept nogil:
    """The runs of the flat copy that hold pixels [start, stop) of a block, and their places in the panel."""
    cdef Py_ssize_t count = 0, s, base = 0, pixel, last, length
    for s in range(segments):
        # the block's pixel p is pixel p - base + first of this segment's image
        pixel = segment[s].first + most(start - base, 0)
        last = least(segment[s].stop, segment[s].first + stop - base)
        while pixel < last:
            length = least(last - pixel, job.out_w - pixel % job.out_w)
            run[count].from_ = ((segment[s].row + pixel // job.out_w - segment[s].first // job.out_w) * job.flat.length
                                + pixel % job.out_w)
            run[count].to = base + pixel - segment[s].first - start
            run[count].count = length
            count += 1
            pixel += length
        base += segment[s].stop - segment[s].first
    return count


cdef void gemm_item(const Gemm* job, Py_ssize_t item, const real* source, const real* weights, const real* bias,
                    bint relu, real* out, char* scratch) noexcept nogil:
    """One (group, block of pixels, block of output channels)."""
    cdef const Flat* f = &job.flat
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t part = item % job.parts
    cdef Py_ssize_t block = item // job.parts % job.blocks
    cdef Py_ssize_t group = item // (job.parts * job.blocks)
    cdef Py_ssize_t start = block * job.block
    cdef Py_ssize_t count = least(job.block, job.batch * job.pixels - start)
    cdef Py_ssize_t panels = ceil_div(count, job.width)
    cdef Py_ssize_t tiles = ceil_div(job.rows, FC_TILE_ROWS)
    cdef Py_ssize_t first_tile = tiles * part // job.parts, last_tile = tiles * (part + 1) // job.parts
    cdef Py_ssize_t m0 = job.rows * first_tile // tiles
    cdef Py_ssize_t terms_all = job.sources * job.taps, terms
    cdef real* flat = <real*> scratch
    cdef real* panel = <real*> (scratch + job.flat_bytes)
    cdef real* sums = <real*> (scratch + job.flat_bytes + job.panel_bytes)
    cdef Segment* segment = <Segment*> (scratch + job.flat_bytes + job.panel_bytes + job.sum_bytes)
    cdef fc_run* run = <fc_run*> (segment + job.segments)
    cdef Py_ssize_t segments = cut_segments(job, start, start + count, segment)
    cdef Py_ssize_t c0, channels, s, p, runs, m_tile, m, rows, pixels, pixel, done
    cdef Py_ssize_t panel_items = job.chunk * job.taps * job.width
    cdef const real* a
    cdef real* to
    cdef int flags

    c0 = 0
    while c0 < job.sources:
        channels = least(job.chunk, job.sources - c0)
        terms = channels * job.taps
        for s in range(segments):
            fill_flat(f, flat + segment[s].row * f.length,
                      source + ((segment[s].image * job.groups + group) * job.sources + c0) * f.h * f.w, channels,
                      f.first + segment[s].first // job.out_w,
                      (segment[s].stop - 1) // job.out_w - segment[s].first // job.out_w + 1)
        for p in range(panels):
            runs = cut_runs(job, segment, segments, p * job.width, least((p + 1) * job.width, count), run)
            if real is float:
                fc_pack_runs_f32(panel + p * panel_items, job.width, flat, job.offset, terms,
                                 run, runs)
            else:
                fc_pack_runs_f64(panel + p * panel_items, job.width, flat, job.offset, terms,
                                 run, runs)
        flags = FC_ACCUMULATE if c0 > 0 else 0
        if c0 + channels == job.sources and relu:
            flags |= FC_RELU
        for m_tile in range(first_tile, last_tile):
            m = job.rows * m_tile // tiles
            rows = job.rows * (m_tile + 1) // tiles - m
            a = weights + (group * job.rows + m) * terms_all + c0 * job.taps
            for p in range(panels):
                pixels = least(count - p * job.width, job.width)
                to = whole_panel(job, group, m, start + p * job.width, pixels, out)
                correlate_tile(a, terms_all, panel + p * panel_items, job.panel_offset, terms, rows,
                               ceil_div(pixels, lanes),
                               sums + (m - m0) * job.block + p * job.width if to == NULL else to,
                               job.block if to == NULL else job.pixels,
                               bias + group * job.rows + m if bias != NULL and c0 + channels == job.sources else NULL,
                               flags)
        c0 += channels

    # what did not go to the output from the registers: panels with the end of an image in them
    for p in range(panels):
        pixels = least(count - p * job.width, job.width)
        if whole_panel(job, group, m0, start + p * job.width, pixels, out) != NULL:
            continue
        for m in range(m0, job.rows * last_tile // tiles):
            done = 0
            while done < pixels:
                pixel = start + p * job.width + done
                s = least(pixels - done, job.pixels - pixel % job.pixels)
                memcpy(out + ((pixel // job.pixels * job.groups + group) * job.rows + m) * job.pixels
                       + pixel % job.pixels,
                       sums + (m - m0) * job.block + p * job.width + done, s * sizeof(real))
                done += s


cdef inline real* whole_panel(const Gemm* job, Py_ssize_t group, Py_ssize_t m, Py_ssize_t pixel, Py_ssize_t pixels,
                              real* out) noexcept nogil:
    """Where a full panel from `pixel` on lies in the output, or NULL where it crosses into another image."""
    if pixels < job.width or pixel % job.pixels + pixels > job.pixels:
        return NULL
    return (out + ((pixel // job.pixels * job.groups + group) * job.rows + m) * job.pixels + pixel % job.pixels)


cdef void run_gemm(const Gemm* job, const real* source, const real* weights, const real* bias, bint relu, real* out,
                   char* scratch, int threads) noexcept nogil:
    cdef Py_ssize_t item, items = job.groups * job.blocks * job.parts
    if items <= 1 or threads == 1:
        for item in range(items):
            gemm_item(job, item, source, weights, bias, relu, out, scratch)
        return
    for item in prange(items, num_threads=threads, schedule="dynamic", chunksize=1):
        gemm_item(job, item, source, weights, bias, relu, out, scratch + threadid() * job.thread_bytes)


# --- backward weight ----------------------------------------------------------------------------------------------------
#
#     (K/g, N*OH*OW) @ (N*OH*OW, C/g*KH*KW) -> (K/g, C/g*KH*KW)
#
# The summed dimension is the pixels, contiguous in dout as it lies in memory and in the packed rows alike, so the inner-
# product tile of the direct convolution multiplies them: no transposition. A chunk is WEIGHT_PIXELS pixels of all images;
# its rows of the column matrix for one block of input channels (about WEIGHT_TERMS rows, 258 kB in float32) and of dout
# for one block of output channels (WEIGHT_ROWS rows, 516 kB) lie in L2. The sum of a chunk is made in registers, the
# chunks are added in order, whatever thread has the block: the same bits for any number of threads.

cdef enum:
    WEIGHT_PIXELS = 512
    WEIGHT_TERMS = 126
    WEIGHT_ROWS = 252

cdef struct WeightJob:
    Gemm gemm                        # flat layout, segments and runs of a chunk; gemm.rows is K/g
    Py_ssize_t width                 # from row to row of the packed rows and of dout's
    Py_ssize_t parts_k, parts_c      # blocks of output and of input channels
    Py_ssize_t left_bytes


cdef void plan_weight(WeightJob* job, const Window* v, Py_ssize_t itemsize, Py_ssize_t threads,
                      char* tables) noexcept nogil:
    cdef Gemm* g = &job.gemm
    cdef Flat* f = &g.flat
    cdef Correlation direct
    cdef Py_ssize_t items, block_k
    plan_forward(&direct, v, itemsize, 1, NULL)
    g.flat = direct.flat
    g.batch, g.groups, g.sources, g.rows = direct.batch, direct.groups, direct.sources, direct.rows
    g.taps = v.kh * v.kw
    g.out_w, g.pixels = v.ow, v.oh * v.ow
    g.block = WEIGHT_PIXELS
    g.blocks = ceil_div(g.batch * g.pixels, g.block)
    job.parts_c = ceil_div(g.sources, most(WEIGHT_TERMS // g.taps, 1))
    g.chunk = ceil_div(g.sources, job.parts_c)
    job.parts_k = ceil_div(g.rows, WEIGHT_ROWS)
    items = g.groups * job.parts_k * job.parts_c
    if threads > 1 and items < 2 * threads:  # rows of dw are independent: more blocks of them change no sum
        job.parts_k = least(ceil_div(g.rows, FC_TILE_ROWS), ceil_div(2 * threads, g.groups * job.parts_c))
    block_k = ceil_div(g.rows, job.parts_k)
    g.segments = least(most(g.batch, 1), (g.block - 2) // g.pixels + 2)
    f.plane = (g.block // g.out_w + g.segments * (2 + f.halo)) * f.length
    # a cache line more than a power of two, so that rows do not share cache sets; it also takes what whole vectors overrun
    job.width = WEIGHT_PIXELS + FC_VECTOR_BYTES // itemsize
    g.flat_bytes = aligned((g.chunk * f.slots_h * f.slots_w * f.plane) * itemsize + 2 * FC_VECTOR_BYTES)
    g.panel_bytes = aligned(g.chunk * g.taps * job.width * itemsize)
    job.left_bytes = aligned(block_k * job.width * itemsize)
    g.run_bytes = aligned(least(g.block, g.block // g.out_w + 2 * g.segments + 1) * sizeof(fc_run)
                          + g.segments * sizeof(Segment))
    g.thread_bytes = g.flat_bytes + g.panel_bytes + job.left_bytes + g.run_bytes
    if tables == NULL:
        return
    g.offset = fill_tap_tables(f, v, g.chunk, tables)
    g.panel_offset = g.offset + g.chunk * g.taps
    for items in range(g.chunk * g.taps):
        g.panel_offset[items] = items * job.width


cdef void weight_item(const WeightJob* job, Py_ssize_t item, const real* x, const real* dout, real* dw,
                      char* scratch) noexcept nogil:
    """dw of one (group, block of output channels, block of input channels), over all pixels in order."""
    cdef const Gemm* g = &job.gemm
    cdef const Flat* f = &g.flat
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t part_c = item % job.parts_c, part_k = item // job.parts_c % job.parts_k
    cdef Py_ssize_t group = item // (job.parts_c * job.parts_k)
    cdef Py_ssize_t c0 = g.sources * part_c // job.parts_c, c1 = g.sources * (part_c + 1) // job.parts_c
    cdef Py_ssize_t k0 = g.rows * part_k // job.parts_k, k1 = g.rows * (part_k + 1) // job.parts_k
    cdef Py_ssize_t terms = (c1 - c0) * g.taps, ldw = g.sources * g.taps
    cdef real* flat = <real*> scratch
    cdef real* panel = <real*> (scratch + g.flat_bytes)
    cdef real* left = <real*> (scratch + g.flat_bytes + g.panel_bytes)
    cdef Segment* segment = <Segment*> (scratch + g.flat_bytes + g.panel_bytes + job.left_bytes)
    cdef fc_run* run = <fc_run*> (segment + g.segments)
    cdef Py_ssize_t block, start, count, padded, segments, runs, s, k, r, m, rows, cols, at
    cdef Py_ssize_t tiles = ceil_div(k1 - k0, FC_TILE_ROWS)
    cdef real* to = dw + (group * g.rows + k0) * ldw + c0 * g.taps
    for k in range(k1 - k0):
        memset(to + k * ldw, 0, terms * sizeof(real))
    for block in range(g.blocks):
        start = block * g.block
        count = least(g.block, g.batch * g.pixels - start)
        padded = ceil_div(count, lanes) * lanes
        segments = cut_segments(g, start, start + count, segment)
        for s in range(segments):
            fill_flat(f, flat + segment[s].row * f.length,
                      x + ((segment[s].image * g.groups + group) * g.sources + c0) * f.h * f.w, c1 - c0,
                      segment[s].first // g.out_w,
                      (segment[s].stop - 1) // g.out_w - segment[s].first // g.out_w + 1)
        runs = cut_runs(g, segment, segments, 0, count, run)
        if real is float:
            fc_pack_runs_f32(panel, job.width, flat, g.offset, terms, run, runs)
        else:
            fc_pack_runs_f64(panel, job.width, flat, g.offset, terms, run, runs)
        if padded > count:
            for r in range(terms):
                memset(panel + r * job.width + count, 0, (padded - count) * sizeof(real))
        for k in range(k1 - k0):
            at = 0
            for s in range(segments):
                memcpy(left + k * job.width + at,
                       dout + ((segment[s].image * g.groups + group) * g.rows + k0 + k) * g.pixels + segment[s].first,
                       (segment[s].stop - segment[s].first) * sizeof(real))
                at += segment[s].stop - segment[s].first
            memset(left + k * job.width + count, 0, (padded - count) * sizeof(real))
        for m in range(tiles):
            k = (k1 - k0) * m // tiles
            rows = (k1 - k0) * (m + 1) // tiles - k
            r = 0
            while r < terms:
                cols = least(FC_TILE_VECTORS, terms - r)
                if real is float:
                    fc_inner_table_f32[cols - 1][rows - 1](left + k * job.width, job.width, panel, g.panel_offset + r,
                                                           padded // lanes, 1, 0, 0, to + k * ldw + r, ldw)
                else:
                    fc_inner_table_f64[cols - 1][rows - 1](left + k * job.width, job.width, panel, g.panel_offset + r,
                                                           padded // lanes, 1, 0, 0, to + k * ldw + r, ldw)
                r += cols


def implicit_gemm_backward_weight(cnp.ndarray dout, cnp.ndarray x, geometry, cnp.ndarray out, cnp.ndarray scratch,
                                  int threads):
    """The gradient with respect to the weight, into `out`; padding takes part as zeros, whatever dout and x hold."""
    if dout.descr.itemsize == 4:
        gemm_weight_of[float](dout, x, geometry, out, scratch, threads)
    else:
        gemm_weight_of[double](dout, x, geometry, out, scratch, threads)


cdef int gemm_weight_of(cnp.ndarray dout, cnp.ndarray x, object geometry, cnp.ndarray out, cnp.ndarray scratch,
                        int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef WeightJob job
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef Py_ssize_t item, items
    cdef const real* left = <const real*> cnp.PyArray_DATA(dout)
    cdef const real* image = <const real*> cnp.PyArray_DATA(x)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    with nogil:
        plan_weight(&job, &v, sizeof(real), threads, work)
        work += gemm_tables(&job.gemm, &v)
        items = job.gemm.groups * job.parts_k * job.parts_c
        for item in prange(items, num_threads=threads, schedule="dynamic"):
            weight_item(&job, item, image, left, to, work + threadid() * job.gemm.thread_bytes)
    return 0


# --- entry points of the others -----------------------------------------------------------------------------------------

def implicit_gemm_workspace(operation, geometry, Py_ssize_t itemsize, Py_ssize_t threads):
    """Scratch that an operation of this file needs: ``(bytes shared, bytes for each thread)``."""
    cdef Window v = read_conv(geometry)
    cdef Gemm job
    cdef WeightJob weight
    if operation == "backward_weight":
        plan_weight(&weight, &v, itemsize, threads, NULL)
        return gemm_tables(&weight.gemm, &v), weight.gemm.thread_bytes
    plan_gemm(&job, &v, operation == "backward_data", itemsize, threads, NULL)
    if operation == "forward":
        return gemm_tables(&job, &v), job.thread_bytes
    return gemm_tables(&job, &v) + aligned(v.k * job.rows * job.taps * itemsize) + backward_tables(&v), job.thread_bytes


def implicit_gemm_forward(cnp.ndarray x, cnp.ndarray weight, bias, bint relu, geometry, cnp.ndarray out,
                          cnp.ndarray scratch, int threads):
    """conv2d of float32 or float64 arrays into `out`; `scratch` as implicit_gemm_workspace says."""
    if x.descr.itemsize == 4:
        gemm_forward_of[float](x, weight, bias, relu, geometry, out, scratch, threads)
    else:
        gemm_forward_of[double](x, weight, bias, relu, geometry, out, scratch, threads)


cdef int gemm_forward_of(cnp.ndarray x, cnp.ndarray weight, object bias, bint relu, object geometry, cnp.ndarray out,
                         cnp.ndarray scratch, int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef Gemm job
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef const real* b = NULL
    if bias is not None:
        b = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    with nogil:
        plan_gemm(&job, &v, False, sizeof(real), threads, work)
        run_gemm(&job, <const real*> cnp.PyArray_DATA(x), <const real*> cnp.PyArray_DATA(weight), b, relu,
                 <real*> cnp.PyArray_DATA(out), work + gemm_tables(&job, &v), threads)
    return 0


def implicit_gemm_backward_data(cnp.ndarray dout, cnp.ndarray weight, geometry, cnp.ndarray out, cnp.ndarray scratch,
                                int threads):
    """The gradient with respect to the input at stride 1, into `out`. Returns False as direct_backward_data does."""
    if dout.descr.itemsize == 4:
        return gemm_backward_of[float](dout, weight, geometry, out, scratch, threads) != 0
    return gemm_backward_of[double](dout, weight, geometry, out, scratch, threads) != 0


cdef int gemm_backward_of(cnp.ndarray dout, cnp.ndarray weight, object geometry, cnp.ndarray out, cnp.ndarray scratch,
                          int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef Gemm job
    cdef Correlation classes
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef const real* w = <const real*> cnp.PyArray_DATA(weight)
    cdef real* turned
    cdef bint finite
    with nogil:
        finite = all_finite(w, v.k * (v.c // v.groups) * v.kh * v.kw)
        if finite:
            plan_gemm(&job, &v, True, sizeof(real), threads, work)
            work += gemm_tables(&job, &v)
            turned = <real*> work
            work += aligned(v.k * job.rows * job.taps * sizeof(real))
            plan_backward(&classes, &v, sizeof(real), threads, work)
            turn_all_weights(&classes, &v, w, turned, threads)
            run_gemm(&job, <const real*> cnp.PyArray_DATA(dout), <const real*> turned, <const real*> NULL, False,
                     <real*> cnp.PyArray_DATA(out), work + backward_tables(&v), threads)
    return finite
