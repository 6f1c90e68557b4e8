# Implicit GEMM: the column matrix exists only as panels in cache.
#
#     (K/g, C/g*KH*KW) @ (C/g*KH*KW, N*OH*OW) -> (K/g, N*OH*OW)
#
# The pixels of all images are one long row, cut into blocks of a few panels of NR pixels, so that the small images at the
# end of a network fill whole tiles together. For each block and each chunk of channels: copy the rows that the block sees
# into the padded, phase-split flat layout of direct.pxi (which turns padding, stride and dilation into plain offsets);
# pack the panels from it, leaving out the positions between rows; and multiply with the micro-kernel of the direct
# convolution, whose offset table is now simply r*NR. Of 1x1 filters with stride 1 the image is the column matrix already:
# there panels are packed from the image itself, and so they are where a 1x1 filter moves by two columns. It is the next panels
# that are packed, some channels after each tile of those that are multiplied: asked for one tile before, they are in L2. (All
# at once, a block ahead, many lines were gone again, or had never come: 1x1 at stride 2 took 1.03 to 1.05 times as long.)
#
# Against the direct convolution: no work on positions between rows ((L - OW)/L of it) and none in half-empty tiles at the
# end of an image; but a copy of KH*KW elements for each of the image's, worth it where the filters are many (each packed
# row costs about 4 cycles a run, and is used for 2*K cycles of FMA) or the rows short.
#
# Cache: a chunk of about CHUNK_TERMS terms makes a panel of 74 kB in float32, of which PANELS lie in L2, beside the flat copy
# and what the tiles ask for of the next one (ahead.h); A's rows of a chunk (6 x 288 values, 7 kB) stay in L1 for all of them.
# A few pixels at the very end that do not fill a vector are inner products with the filters as they lie in memory (49 pixels
# take three vectors and one such pixel in place of four). Where one chunk has all terms (few channels), a block is several
# times as long: a flat copy has a halo of KH - 1 rows, which short blocks would copy over and over. Threads take (group,
# block, block of output channels); many cores get blocks first, and block the output channels only where there are few
# blocks for each thread, and no further than all have the same share, because each block packs its panels for itself.
#
# What stands between the copies and the multiply-adds is memory: a tile asks for the lines that it will be written to, and for
# some of what is copied next. Without it copies waited for each line (256 -> 64 channels, 1x1: 1.17 times as long; 3x3 at
# stride 2: 1.05), and stores too (64 -> 256 channels: 1.05). They are asked for into L1, though most are needed later: what is
# asked for into L2 only, a Zen 4 often leaves out (packing 1x1 at stride 2: 3 to 4 times as long).

cdef extern from "simd.h" nogil:
    ctypedef struct fc_run:
        ptrdiff_t from_ "from"
        ptrdiff_t to
        ptrdiff_t count
    void fc_pack_runs_f32(float*, ptrdiff_t, const float*, const ptrdiff_t*, ptrdiff_t, const fc_run*, ptrdiff_t, ptrdiff_t)
    void fc_pack_runs_f64(double*, ptrdiff_t, const double*, const ptrdiff_t*, ptrdiff_t, const fc_run*, ptrdiff_t, ptrdiff_t)
    void fc_pack_second_runs_f32(float*, ptrdiff_t, const float*, const ptrdiff_t*, ptrdiff_t, const fc_run*, ptrdiff_t,
                                 ptrdiff_t, const float*)
    void fc_pack_second_runs_f64(double*, ptrdiff_t, const double*, const ptrdiff_t*, ptrdiff_t, const fc_run*, ptrdiff_t,
                                 ptrdiff_t, const double*)
    void fc_dots_f32(ptrdiff_t, ptrdiff_t, const float*, ptrdiff_t, const float*, ptrdiff_t, float*, ptrdiff_t,
                     const float*, int)
    void fc_dots_f64(ptrdiff_t, ptrdiff_t, const double*, ptrdiff_t, const double*, ptrdiff_t, double*, ptrdiff_t,
                     const double*, int)

cdef extern from "ahead.h" nogil:
    ctypedef struct fc_region:
        const char* from_ "from"
        ptrdiff_t planes, plane_step, runs, run_step, bytes
    fc_region fc_bands(const char* from_, ptrdiff_t planes, ptrdiff_t plane_step, ptrdiff_t bytes)
    ctypedef struct fc_ahead:
        fc_region* region
        ptrdiff_t regions, each
    void fc_ahead_begin(fc_ahead* ahead, ptrdiff_t regions, ptrdiff_t calls)
    ptrdiff_t fc_ahead_take(fc_ahead* ahead, ptrdiff_t* at, ptrdiff_t count)
    ptrdiff_t fc_ahead_tile(const char* to, ptrdiff_t rows, ptrdiff_t next, ptrdiff_t bytes, ptrdiff_t* at)
    enum: FC_AHEAD_LINES
    enum: FC_AHEAD_TILE

cdef extern from "simd.h" nogil:
    ptrdiff_t fc_take(ptrdiff_t* next)

cdef enum:
    CHUNK_TERMS = 288    # terms of the sum in one panel
    PANELS = 4           # panels that are packed and multiplied together
    LATE_TILES = 32      # of so many tiles half are done before a thread takes its next item
    LONG_BLOCK = 16      # panels of a block whose terms are all in one chunk,
    LONG_BLOCK_BYTES = 262144  # unless its flat copy is larger than this
    LONG_SUM = 256       # terms from which inner products are worth the adding up of their lanes
    NEAR_BYTES = 1048576 # images up to this size are found in a cache near by: nothing is asked for
    SHARED_BYTES = 5242880  # results up to this size lie in the caches, and with several threads in those of other cores
    FAR_BYTES = 262144   # what is read again and again, and is larger than this, is asked for

# A part of a block: pixels [first, stop) of one image, whose flat rows start at `row`.
cdef struct Segment:
    Py_ssize_t image, first, stop, row

# Panels of a thread that are packed while it multiplies others: those of an item, of its chunk of channels from c0 on.
cdef struct Packing:
    Py_ssize_t item, c0, channels
    Py_ssize_t panels                # their number; 0: nothing is packed
    Py_ssize_t runs                  # of one channel of the image, that they are made of,
    Py_ssize_t regions               # and what is asked for
    Py_ssize_t half                  # of the thread's panels, where they go

cdef struct Gemm:
    Flat flat
    Py_ssize_t batch, groups, sources, rows
    Py_ssize_t taps
    Py_ssize_t out_w, pixels         # width and pixels of one output plane
    Py_ssize_t width                 # NR, pixels of a panel
    Py_ssize_t panels                # of all pixels
    Py_ssize_t block                 # the most pixels of a block
    Py_ssize_t blocks
    Py_ssize_t chunk                 # channels of a chunk
    Py_ssize_t parts                 # blocks of output channels
    Py_ssize_t segments              # the most segments of a block
    Py_ssize_t rest                  # pixels at the end of all that are inner products
    Py_ssize_t turn                  # items from one that a thread takes to the one that it is likely to take next
    bint near                        # the images are in a cache near by
    bint expects                     # lines of the output are worth asking for
    bint plain                       # panels come from the image itself
    bint seconds                     # and are every second cell of some of its rows
    bint past_caches                 # the output is too large to be found in a cache when it is needed
    ptrdiff_t* offset                # in the flat copy
    ptrdiff_t* panel_offset          # in a panel
    ptrdiff_t* image_offset          # of the channels of an image, for 1x1 filters
    Py_ssize_t flat_bytes, panel_bytes, rest_bytes, sum_bytes, run_bytes, thread_bytes


cdef Py_ssize_t gemm_tables(const Gemm* job, const Window* v) noexcept nogil:
    return aligned((3 * job.chunk * job.taps + tap_tables(v)) * sizeof(Py_ssize_t))


cdef void set_block(Gemm* job, Py_ssize_t panels) noexcept nogil:
    """Cut the pixels into blocks of so many panels."""
    job.block = panels * job.width
    job.blocks = ceil_div(job.panels, panels)
    job.segments = least(most(job.batch, 1), (job.block - 2) // job.pixels + 2)
    job.flat.plane = (job.block // job.out_w + job.segments * (2 + job.flat.halo)) * job.flat.length


cdef inline Py_ssize_t flat_elements(const Gemm* job) noexcept nogil:
    return job.chunk * job.flat.slots_h * job.flat.slots_w * job.flat.plane


cdef inline Py_ssize_t block_start(const Gemm* job, Py_ssize_t block) noexcept nogil:
    """The first of the pixels of a block; of the one behind the last block: their number, or more."""
    return job.panels * block // job.blocks * job.width


cdef void plan_gemm(Gemm* job, const Window* v, Py_ssize_t itemsize, Py_ssize_t threads, char* tables) noexcept nogil:
    cdef Flat* f = &job.flat
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // itemsize
    cdef Py_ssize_t chunks, panels, items, tiles, i
    cdef Correlation direct
    plan_forward(&direct, v, itemsize, 1, NULL, False)
    job.flat = direct.flat
    job.batch, job.groups, job.sources, job.rows = direct.batch, direct.groups, direct.sources, direct.rows
    job.past_caches = direct.past_caches
    job.taps = v.kh * v.kw
    job.turn = threads
    job.near = v.n * v.c * v.h * v.w * itemsize <= NEAR_BYTES
    job.plain = job.taps == 1 and v.sh == 1 and v.sw == 1 and v.oh == v.h and v.ow == v.w
    job.seconds = (job.taps == 1 and v.sw == 2 and v.top == 0 and v.left == 0
                   and (v.oh - 1) * v.sh < v.h and (v.ow - 1) * v.sw < v.w)
    job.out_w, job.pixels = direct.out_w, direct.out_h * direct.out_w
    job.width = FC_TILE_VECTORS * FC_VECTOR_BYTES // itemsize
    chunks = ceil_div(job.sources, most(CHUNK_TERMS // job.taps, 1))
    job.chunk = ceil_div(job.sources, chunks)
    # From another core's cache a line takes so long that the products would wait (32 -> 192 channels of 28x28 on two threads:
    # 1.14 times as long), and there must be products enough for all lines of a tile (16 -> 96 channels: 1.04 to 1.10).
    job.expects = (job.chunk * job.taps > FC_AHEAD_TILE
                   and (threads == 1 or job.batch * v.k * v.oh * v.ow * itemsize > SHARED_BYTES))
    # Every output is computed the same way in whatever block it lies, so the number of threads may be looked at.
    job.panels = ceil_div(job.batch * job.pixels, job.width)
    panels = PANELS
    set_block(job, panels)
    if chunks == 1:
        while (panels < LONG_BLOCK and flat_elements(job) * itemsize < LONG_BLOCK_BYTES
               and job.groups * job.blocks > 16 * threads):
            panels *= 2
            set_block(job, panels)
    while threads > 1 and panels > 2 and job.groups * job.blocks < 16 * threads:
        panels //= 2
        set_block(job, panels)
    if job.groups % threads and whole(job.blocks, threads) <= job.panels:
        job.blocks = whole(job.blocks, threads)  # some are a panel smaller, and no thread has one more than another
    tiles = ceil_div(job.rows, FC_TILE_ROWS)
    items = most(job.groups * job.blocks, 1)
    job.parts = 1
    while job.parts < tiles and items * job.parts < 4 * threads and items * job.parts % threads:
        job.parts += 1
    job.rest = job.batch * job.pixels % lanes
    if job.rest > lanes // 4 or job.chunk * job.taps < LONG_SUM:
        job.rest = 0
    job.flat_bytes = 0 if job.seconds else aligned(flat_elements(job) * itemsize + 2 * FC_VECTOR_BYTES)
    job.panel_bytes = aligned((2 * PANELS if job.plain or job.seconds else PANELS)
                              * (job.chunk * job.taps * job.width * itemsize + FC_VECTOR_BYTES))
    job.rest_bytes = aligned(job.rest * job.chunk * job.taps * itemsize)
    job.sum_bytes = aligned((ceil_div(tiles, job.parts) * FC_TILE_ROWS) * job.block * itemsize)
    # runs of a panel: one for each row of output it touches, at most one for each pixel
    job.run_bytes = aligned((PANELS if job.plain or job.seconds else 1)
                            * least(job.width, job.width // job.out_w + 2 * job.segments + 1) * sizeof(fc_run)
                            + job.segments * (2 * sizeof(Segment) + 2 * sizeof(fc_region)))
    job.thread_bytes = job.flat_bytes + job.panel_bytes + job.rest_bytes + job.sum_bytes + job.run_bytes
    if tables == NULL:
        return
    job.offset = fill_tap_tables(f, v, job.chunk, tables)
    job.panel_offset = job.offset + job.chunk * job.taps
    job.image_offset = job.panel_offset + job.chunk * job.taps
    for i in range(job.chunk * job.taps):
        job.panel_offset[i] = i * job.width
        job.image_offset[i] = i * v.h * v.w


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


cdef inline Py_ssize_t panel_elements(const Gemm* job, Py_ssize_t lanes) noexcept nogil:
    return job.chunk * job.taps * job.width + lanes


cdef Py_ssize_t cut_images(const Gemm* job, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t panel_items,
                           fc_run* run) noexcept nogil:
    """The runs of the image's first channel that hold pixels [start, stop) of all images, and their places in some panels.
    Where every second cell of rows is seen, run[i].from is the first one."""
    cdef Py_ssize_t count = 0, pixel = start, x, y
    while pixel < stop and job.plain:
        run[count].from_ = pixel // job.pixels * job.groups * job.sources * job.pixels + pixel % job.pixels
        run[count].to = (pixel - start) // job.width * panel_items + (pixel - start) % job.width
        run[count].count = least(least(stop - pixel, job.pixels - pixel % job.pixels),
                                 job.width - (pixel - start) % job.width)
        pixel += run[count].count
        count += 1
    while pixel < stop:
        x, y = pixel % job.pixels % job.out_w, pixel % job.pixels // job.out_w
        run[count].from_ = ((pixel // job.pixels * job.groups * job.sources * job.flat.h + y * job.flat.step_h) * job.flat.w
                            + x * job.flat.step_w)
        run[count].to = (pixel - start) // job.width * panel_items + (pixel - start) % job.width
        run[count].count = least(least(stop - pixel, job.out_w - x), job.width - (pixel - start) % job.width)
        pixel += run[count].count
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


cdef Py_ssize_t expect_pixels(const Gemm* job, const real* source, Py_ssize_t item, Py_ssize_t c0, Py_ssize_t first,
                              Py_ssize_t pixels, Segment* segment, fc_region* regions) noexcept nogil:
    """The regions that `pixels` pixels of an item, from its pixel `first` on, see of the channels from c0 on, and their
    number. They are at most a block; there need not be such an item."""
    cdef const Flat* f = &job.flat
    cdef Py_ssize_t start, stop, group, s, count, top, bottom
    cdef Py_ssize_t line = f.w * sizeof(real)
    cdef fc_region* region
    group = item // (job.parts * job.blocks)
    if group >= job.groups:
        return 0
    start = block_start(job, item // job.parts % job.blocks) + first
    stop = least(start + pixels, job.batch * job.pixels)
    count = cut_segments(job, start, stop, segment)
    for s in range(count):
        region = &regions[s]
        # rows of the output, and of the image
        top = (f.first + segment[s].first // job.out_w) * f.step_h + f.base_h
        bottom = (f.first + (segment[s].stop - 1) // job.out_w + f.halo) * f.step_h + f.base_h
        if f.slots_h > 1:
            bottom += f.step_h - 1
        top = most(top, 0)
        bottom = most(least(bottom + 1, f.h), top)  # all of it may be padding
        region.from_ = <const char*> (source + (((segment[s].image * job.groups + group) * job.sources + c0) * f.h + top) * f.w)
        region.planes = least(job.chunk, job.sources - c0)
        region.plane_step = f.h * line
        region.runs, region.run_step, region.bytes = 1, 0, (bottom - top) * line
        if f.slots_h == 1 and f.step_h > 1:  # rows that nothing sees are left out
            region.runs, region.run_step, region.bytes = ceil_div(bottom - top, f.step_h), f.step_h * line, line
        elif job.plain:
            region.from_ += (segment[s].first - top * f.w) * <Py_ssize_t> sizeof(real)
            region.bytes = (segment[s].stop - segment[s].first) * sizeof(real)
    return count


cdef inline bint from_image(const Gemm* job, Py_ssize_t item, Py_ssize_t lanes) noexcept nogil:
    """Whether the panels of an item come from the image itself. Whole vectors of a run are read: those at the end of the last
    image must not reach beyond it."""
    return job.seconds or (job.plain and (
        job.pixels % lanes == 0 or block_start(job, item // job.parts % job.blocks + 1) + lanes <= job.batch * job.pixels))


cdef void begin_packing(const Gemm* job, Packing* packing, const real* source, Py_ssize_t item, Py_ssize_t c0, Py_ssize_t p0,
                        fc_run* run, Segment* segment, fc_region* region) noexcept nogil:
    """Panels from p0 on of an item, which need not be there, are packed next."""
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t block = item // job.parts % job.blocks, start = block_start(job, block)
    cdef Py_ssize_t stop = least(block_start(job, block + 1), job.batch * job.pixels)
    packing.item, packing.c0, packing.channels, packing.panels = item, c0, least(job.chunk, job.sources - c0), 0
    if item >= job.groups * job.blocks * job.parts or not from_image(job, item, lanes):
        return
    packing.panels = least(ceil_div(stop - start, job.width) - p0, PANELS)
    start += p0 * job.width
    stop = least(stop, start + packing.panels * job.width)
    packing.runs = cut_images(job, start, stop, panel_elements(job, lanes), run)
    packing.regions = 0 if job.near else expect_pixels(job, source, item, c0, p0 * job.width, stop - start, segment, region)


cdef void pack_channels(const Gemm* job, const Packing* packing, const real* source, Py_ssize_t first, Py_ssize_t stop,
                        const fc_run* run, real* panel) noexcept nogil:
    """Pack channels [first, stop) of the chunk."""
    cdef Py_ssize_t plane = job.flat.h * job.flat.w, group = packing.item // (job.parts * job.blocks), ahead = 0
    cdef const real* seen = source + (group * job.sources + packing.c0) * plane
    panel += first * job.width
    if packing.regions == 0 or stop - first == packing.channels:  # nobody has asked for what is read
        ahead = plane if job.seconds else job.width
    if job.seconds:
        source += job.batch * job.groups * job.sources * plane
        if real is float:
            fc_pack_second_runs_f32(panel, job.width, seen, job.image_offset + first, stop - first, run, packing.runs, ahead,
                                    source)
        else:
            fc_pack_second_runs_f64(panel, job.width, seen, job.image_offset + first, stop - first, run, packing.runs, ahead,
                                    source)
    elif real is float:
        fc_pack_runs_f32(panel, job.width, seen, job.image_offset + first, stop - first, run, packing.runs, ahead)
    else:
        fc_pack_runs_f64(panel, job.width, seen, job.image_offset + first, stop - first, run, packing.runs, ahead)


cdef void pack_meanwhile(const Gemm* job, const Packing* packing, const real* source, Py_ssize_t step, Py_ssize_t steps,
                         Py_ssize_t calls, const fc_run* run, const fc_region* region, real* panel, fc_region* wanted,
                         fc_ahead* ahead) noexcept nogil:
    """One step of `steps`: ask for some channels, in so many calls of tiles, and pack those that the step before asked for."""
    cdef Py_ssize_t parts = most(steps - 1, 1), part = step - (steps - parts), i
    if part >= 0:
        pack_channels(job, packing, source, packing.channels * part // parts, packing.channels * (part + 1) // parts, run,
                      panel)
    ahead.region = wanted
    if step >= parts or packing.regions == 0:
        fc_ahead_begin(ahead, 0, 1)
        return
    for i in range(packing.regions):
        wanted[i] = region[i]
        wanted[i].from_ += packing.channels * step // parts * region[i].plane_step
        wanted[i].planes = packing.channels * (step + 1) // parts - packing.channels * step // parts
    fc_ahead_begin(ahead, packing.regions, calls)


cdef Py_ssize_t gemm_item(const Gemm* job, Py_ssize_t item, ptrdiff_t* next, Packing* packing, const real* source,
                          const real* weights, const real* bias, bint relu, real* out, char* scratch) noexcept nogil:
    """One (group, block of pixels, block of output channels); returns the next one that this thread takes, of which the first
    panels are packed, as those of this one may be."""
    cdef const Flat* f = &job.flat
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t part = item % job.parts
    cdef Py_ssize_t block = item // job.parts % job.blocks
    cdef Py_ssize_t group = item // (job.parts * job.blocks)
    cdef Py_ssize_t start = block_start(job, block)
    cdef Py_ssize_t count = least(block_start(job, block + 1), job.batch * job.pixels) - start
    cdef Py_ssize_t panels = ceil_div(count, job.width)
    cdef Py_ssize_t tiles = ceil_div(job.rows, FC_TILE_ROWS)
    cdef Py_ssize_t first_tile = tiles * part // job.parts, last_tile = tiles * (part + 1) // job.parts
    cdef Py_ssize_t m0 = job.rows * first_tile // tiles
    cdef Py_ssize_t terms_all = job.sources * job.taps, terms
    cdef real* flat = <real*> scratch
    cdef real* panels_at = <real*> (scratch + job.flat_bytes)
    cdef real* panel
    cdef real* end = <real*> (scratch + job.flat_bytes + job.panel_bytes)
    cdef real* sums = <real*> (scratch + job.flat_bytes + job.panel_bytes + job.rest_bytes)
    cdef Segment* segment = <Segment*> (scratch + job.flat_bytes + job.panel_bytes + job.rest_bytes + job.sum_bytes)
    cdef Segment* next_segment = segment + job.segments
    cdef fc_region* region = <fc_region*> (next_segment + job.segments)
    cdef fc_region* wanted = region + job.segments
    cdef fc_run* run = <fc_run*> (wanted + job.segments)
    cdef Py_ssize_t segments = cut_segments(job, start, start + count, segment)
    cdef Py_ssize_t c0, channels, s, p, p0, p1, runs, m_tile, m, rows, pixels, pixel, done
    cdef Py_ssize_t panel_items = panel_elements(job, lanes)
    cdef Py_ssize_t rest = job.rest if start + count == job.batch * job.pixels else 0
    cdef Py_ssize_t whole = count - rest, i, ldc, vectors, following = -1, steps = last_tile - first_tile, begin
    cdef const real* a
    cdef const real* offsets
    cdef real* to
    cdef int flags, whole_flags, how
    cdef fc_ahead coming
    cdef ptrdiff_t[FC_AHEAD_TILE + FC_AHEAD_LINES + 1] line
    cdef fc_asked asked
    asked.from_, asked.at, asked.into = NULL, line, FC_ASK_NEAR
    cdef bint packs = from_image(job, item, lanes), last

    c0 = 0
    while c0 < job.sources:
        channels = least(job.chunk, job.sources - c0)
        terms = channels * job.taps
        for s in range(0 if packs else segments):
            fill_flat(f, flat + segment[s].row * f.length,
                      source + ((segment[s].image * job.groups + group) * job.sources + c0) * f.h * f.w, channels,
                      f.first + segment[s].first // job.out_w,
                      (segment[s].stop - 1) // job.out_w - segment[s].first // job.out_w + 1)
        flags = FC_ACCUMULATE if c0 > 0 else 0
        if c0 + channels == job.sources and relu:
            flags |= FC_RELU
        whole_flags = flags | (FC_PAST_CACHES if job.past_caches and channels == job.sources else 0)
        coming.region = region
        fc_ahead_begin(&coming, 0, 1)
        p0 = 0
        while p0 < panels:
            p1 = least(p0 + PANELS, panels)
            last = p1 == panels and c0 + channels == job.sources
            panel = panels_at + packing.half * PANELS * panel_items
            if packs:
                if packing.panels == 0:  # the thread's first item
                    begin_packing(job, packing, source, item, c0, p0, run, next_segment, region)
                    pack_channels(job, packing, source, 0, channels, run, panel)
                packing.half = 1 - packing.half
                packing.panels = 0
            else:
                if p0 == 0 and not job.near:  # the next chunk, or what is likely to be this thread's next item
                    i = item if c0 + channels < job.sources else item + job.turn
                    fc_ahead_begin(&coming, expect_pixels(job, source, i, 0 if i > item else c0 + channels, 0, job.block,
                                                          next_segment, region), steps * panels)
                for p in range(p0, p1):
                    runs = cut_runs(job, segment, segments, p * job.width, least((p + 1) * job.width, count), run)
                    if real is float:
                        fc_pack_runs_f32(panel + (p - p0) * panel_items, job.width, flat, job.offset, terms, run, runs, 0)
                    else:
                        fc_pack_runs_f64(panel + (p - p0) * panel_items, job.width, flat, job.offset, terms, run, runs, 0)
            if p1 == panels:  # the panel with the last pixels is the last one
                for i in range(rest):
                    for s in range(terms):
                        end[i * terms + s] = panel[(p1 - 1 - p0) * panel_items + s * job.width + (whole + i) % job.width]
            begin = first_tile + (steps // 2 if packs and last and steps >= LATE_TILES else 0)
            for m_tile in range(first_tile, last_tile):
                if m_tile == begin:
                    if last:
                        following = fc_take(next)
                    if packs:
                        begin_packing(job, packing, source, following if last else item,
                                      c0 if p1 < panels else 0 if last else c0 + channels, p1 if p1 < panels else 0, run,
                                      next_segment, region)
                if packing.panels > 0:
                    pack_meanwhile(job, packing, source, m_tile - begin, last_tile - begin, p1 - p0, run, region,
                                   panels_at + packing.half * PANELS * panel_items, wanted, &coming)
                m = job.rows * m_tile // tiles
                rows = job.rows * (m_tile + 1) // tiles - m
                a = weights + (group * job.rows + m) * terms_all + c0 * job.taps
                offsets = bias + group * job.rows + m if bias != NULL and c0 + channels == job.sources else NULL
                for p in range(p0, p1):
                    pixels = least(whole - p * job.width, job.width)
                    to = whole_panel(job, group, m, start + p * job.width, pixels, out)
                    ldc, how = job.pixels, whole_flags
                    if to == NULL:
                        to, ldc, how = sums + (m - m0) * job.block + p * job.width, job.block, flags
                    if pixels > 0:
                        vectors = ceil_div(pixels, lanes)
                        asked.count = 0
                        if job.expects and not (how & FC_PAST_CACHES and whole_lines(to, ldc, vectors)):
                            asked.count = fc_ahead_tile(<const char*> to, rows, ldc * sizeof(real), pixels * sizeof(real), line)
                        asked.count = fc_ahead_take(&coming, line, asked.count)
                        correlate_tile(a, terms_all, panel + (p - p0) * panel_items, job.panel_offset, terms, rows, vectors,
                                       to, ldc, offsets, how, &asked if asked.count else NULL)
                if p1 == panels and rest > 0:
                    to = sums + (m - m0) * job.block + whole
                    if real is float:
                        fc_dots_f32(rows, rest, a, terms_all, end, terms, to, job.block, offsets, flags)
                    else:
                        fc_dots_f64(rows, rest, a, terms_all, end, terms, to, job.block, offsets, flags)
            p0 = p1
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
    if job.past_caches:
        fc_stream_end()
    return following


cdef inline real* whole_panel(const Gemm* job, Py_ssize_t group, Py_ssize_t m, Py_ssize_t pixel, Py_ssize_t pixels,
                              real* out) noexcept nogil:
    """Where a full panel from `pixel` on lies in the output, or NULL where it crosses into another image."""
    if pixels < job.width or pixel % job.pixels + pixels > job.pixels:
        return NULL
    return (out + ((pixel // job.pixels * job.groups + group) * job.rows + m) * job.pixels + pixel % job.pixels)


cdef void run_gemm(const Gemm* job, const real* source, const real* weights, const real* bias, bint relu, real* out,
                   char* scratch, int threads) noexcept nogil:
    cdef ptrdiff_t next = 0
    cdef ptrdiff_t* taken = &next
    cdef int thread
    if threads == 1 or job.groups * job.blocks * job.parts <= 1:
        gemm_items(job, taken, source, weights, bias, relu, out, scratch)
        return
    for thread in prange(threads, num_threads=threads, schedule="static", chunksize=1):
        gemm_items(job, taken, source, weights, bias, relu, out, scratch + threadid() * job.thread_bytes)


cdef void gemm_items(const Gemm* job, ptrdiff_t* next, const real* source, const real* weights, const real* bias, bint relu,
                     real* out, char* scratch) noexcept nogil:
    """The items that one thread takes."""
    cdef Py_ssize_t item = fc_take(next)
    cdef Packing packing
    packing.panels = packing.half = 0
    while item < job.groups * job.blocks * job.parts:
        item = gemm_item(job, item, next, &packing, source, weights, bias, relu, out, scratch)


# --- backward weight ----------------------------------------------------------------------------------------------------
#
#     (K/g, N*OH*OW) @ (N*OH*OW, KH*KW*C/g) -> (K/g, KH*KW*C/g)
#
# With the channels of a pixel side by side (NHWC), what a row of the filter sees of a pixel is one run of KW*C elements. So
# the right-hand matrix is the image again: its row p starts where pixel p lies, plus the row of the filter, which is the
# offset table of the correlation tile; strides are nothing but another table. dout is the left-hand matrix as it lies in
# memory (but chunks of pixels that belong to several images are copied). Only the image is turned, each element once for a
# block of output channels, and dw is turned back at the end.
#
# Where the runs fill their vectors badly (few channels) the windows of a chunk of pixels are packed, run behind run.
#
# The sum over pixels is cut into chunks of WEIGHT_CHUNK, added up over WEIGHT_CHUNKS of them, and these sums added to dw: a
# blocked sum (Higham, as in direct.pxi) over any number of pixels. Its order follows from the shape alone, whatever blocks
# of dw the threads take. A block of a few chunks of the image lies in L2; past it stream dout and the sums.

cdef extern from "simd.h" nogil:
    void fc_channels_last_f32(float*, ptrdiff_t, const float*, const ptrdiff_t*, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                              ptrdiff_t, const float*)
    void fc_channels_last_f64(double*, ptrdiff_t, const double*, const ptrdiff_t*, ptrdiff_t, ptrdiff_t, ptrdiff_t,
                              ptrdiff_t, const double*)
    void fc_copy_runs_f32(float*, ptrdiff_t, const float*, ptrdiff_t, ptrdiff_t, ptrdiff_t)
    void fc_copy_runs_f64(double*, ptrdiff_t, const double*, ptrdiff_t, ptrdiff_t, ptrdiff_t)
    void fc_pack_windows_f32(float*, ptrdiff_t, const float*, const ptrdiff_t*, ptrdiff_t, const ptrdiff_t*, ptrdiff_t,
                             ptrdiff_t)
    void fc_pack_windows_f64(double*, ptrdiff_t, const double*, const ptrdiff_t*, ptrdiff_t, const ptrdiff_t*, ptrdiff_t,
                             ptrdiff_t)

cdef enum:
    WEIGHT_CHUNK = 256       # pixels that are added up in a register
    WEIGHT_CHUNKS = 16       # chunks that are added up before they go to dw
    WEIGHT_BYTES = 393216    # of the image's block
    WEIGHT_SUMS = 4194304    # bytes of the sums of one item
    WEIGHT_ROWS = 1020       # the most output channels of one item,
    WEIGHT_CHANNELS = 256    # and the most input channels

# One axis of the image's copy: output position o sees, through tap k, the copy's place o*step + k*dilation, which is the
# image's o*stride + k*dilation - pad. With a single tap only the places that it sees are copied.
cdef struct Axis:
    Py_ssize_t size, pad
    Py_ssize_t source_step           # image cells from place to place
    Py_ssize_t step
    Py_ssize_t reach                 # places that one output position sees


cdef struct WeightJob:
    Axis rows, columns
    Py_ssize_t batch, groups, kg, cg
    Py_ssize_t kh, kw, dh, dw
    Py_ssize_t out_w, pixels         # width and pixels of one output plane
    Py_ssize_t width                 # places of one row of the copy
    Py_ssize_t block                 # pixels of a block
    Py_ssize_t segments              # the most images of a block
    Py_ssize_t block_k, block_c      # the most output and input channels of an item
    Py_ssize_t blocks_k, blocks_c
    Py_ssize_t run_taps              # taps of one run: a row of the filter, or a single one where dilation parts them
    bint packed
    Py_ssize_t lda                   # from row to row of dout's copy
    Py_ssize_t flat_bytes, packed_bytes, left_bytes, sum_bytes, turned_bytes, table_bytes, thread_bytes


cdef inline Axis weight_axis(Py_ssize_t size, Py_ssize_t pad, Py_ssize_t kernel, Py_ssize_t stride,
                             Py_ssize_t dilation) noexcept nogil:
    return Axis(size, pad, stride if kernel == 1 else 1, 1 if kernel == 1 else stride, (kernel - 1) * dilation + 1)


cdef inline Py_ssize_t whole(Py_ssize_t count, Py_ssize_t unit) noexcept nogil:
    return ceil_div(count, unit) * unit


cdef Py_ssize_t weight_rows(const WeightJob* job, Py_ssize_t pixels) noexcept nogil:
    """The most rows of the copy that a block of so many pixels needs."""
    cdef Py_ssize_t segments = least(most(job.batch, 1), (pixels - 2) // job.pixels + 2)
    cdef Py_ssize_t rows = least(pixels // job.out_w + 2 * segments, segments * (job.pixels // job.out_w))
    return rows * job.rows.step + segments * job.rows.reach


cdef Py_ssize_t weight_sums(const WeightJob* job, Py_ssize_t channels, Py_ssize_t lanes) noexcept nogil:
    """Elements of one row of the sums."""
    cdef Py_ssize_t taps = job.kh * job.kw
    return (whole(taps * channels, lanes) if job.packed
            else taps // job.run_taps * whole(job.run_taps * channels, lanes))


cdef void plan_weight(WeightJob* job, const Window* v, Py_ssize_t itemsize, Py_ssize_t threads) noexcept nogil:
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // itemsize
    cdef Py_ssize_t taps = v.kh * v.kw, items, runs, apart, together, pixel
    job.rows = weight_axis(v.h, v.top, v.kh, v.sh, v.dh)
    job.columns = weight_axis(v.w, v.left, v.kw, v.sw, v.dw)
    job.batch, job.groups, job.kg, job.cg = v.n, v.groups, v.k // v.groups, v.c // v.groups
    job.kh, job.kw, job.dh, job.dw = v.kh, v.kw, v.dh, v.dw
    job.out_w, job.pixels = v.ow, v.oh * v.ow
    job.width = (v.ow - 1) * job.columns.step + job.columns.reach
    job.run_taps = v.kw if v.dw == 1 else 1
    runs = taps // job.run_taps

    # input channels of an item: as many as leave the image's copy in L2, in whole tiles
    pixel = weight_rows(job, WEIGHT_CHUNK) * job.width * itemsize
    job.block_c = least(job.cg, least(WEIGHT_CHANNELS, most(WEIGHT_BYTES // pixel, 1)))
    job.block_c = least(job.block_c, most(WEIGHT_SUMS // (taps * itemsize * FC_TILE_ROWS), 1))
    job.block_c = ceil_div(job.cg, ceil_div(job.cg, job.block_c))
    if job.block_c < job.cg:
        job.block_c = least(job.cg, whole(job.block_c, lanes))
    job.blocks_c = ceil_div(job.cg, job.block_c)
    # packing costs a load and a store of every vector, and saves FMAs of the lanes that hold nothing
    apart = runs * ceil_div(job.run_taps * job.block_c, lanes)
    together = ceil_div(taps * job.block_c, lanes)
    job.packed = (apart - together) * job.kg > 4 * (apart + runs)

    job.block_k = least(WEIGHT_ROWS, most(WEIGHT_SUMS // (weight_sums(job, job.block_c, lanes) * itemsize), FC_TILE_ROWS))
    job.blocks_k = ceil_div(job.kg, job.block_k)
    items = job.groups * job.blocks_k * job.blocks_c
    if items < threads:  # rows of dw are independent: more blocks of them change no sum
        job.blocks_k = least(ceil_div(job.kg, FC_TILE_ROWS), ceil_div(threads, job.groups * job.blocks_c))
    job.block_k = ceil_div(job.kg, job.blocks_k)

    job.block = WEIGHT_CHUNK
    while job.block < 8 * WEIGHT_CHUNK and (weight_rows(job, job.block + WEIGHT_CHUNK) * job.width * job.block_c * itemsize
                                            <= WEIGHT_BYTES):
        job.block += WEIGHT_CHUNK
    job.segments = least(most(job.batch, 1), (job.block - 2) // job.pixels + 2)
    job.lda = WEIGHT_CHUNK + lanes  # no power of two, so that the rows of a tile do not share cache sets
    # whole vectors are read and written behind the end of each
    job.flat_bytes = aligned((weight_rows(job, job.block) * job.width * job.block_c + lanes) * itemsize)
    job.packed_bytes = (aligned((WEIGHT_CHUNK * whole(taps * job.block_c, lanes) + lanes) * itemsize) if job.packed else 0)
    job.left_bytes = aligned(job.block_k * job.lda * itemsize)
    job.sum_bytes = aligned((job.block_k * weight_sums(job, job.block_c, lanes) + lanes) * itemsize)
    job.turned_bytes = aligned((taps * job.block_c + lanes) * itemsize)
    job.table_bytes = aligned((2 * WEIGHT_CHUNK + job.block_c + 2 * taps + job.segments) * sizeof(Py_ssize_t)
                              + 2 * job.segments * sizeof(fc_region))
    job.thread_bytes = (job.flat_bytes + job.packed_bytes + job.left_bytes + job.sum_bytes + job.turned_bytes
                        + job.table_bytes)


cdef inline void channels_last(real* to, Py_ssize_t pitch, const real* source, const ptrdiff_t* offset,
                               Py_ssize_t channels, Py_ssize_t count, Py_ssize_t step, Py_ssize_t ahead,
                               const real* end) noexcept nogil:
    if real is float:
        fc_channels_last_f32(to, pitch, source, offset, channels, count, step, ahead, end)
    else:
        fc_channels_last_f64(to, pitch, source, offset, channels, count, step, ahead, end)


cdef Py_ssize_t fill_channels_last(const WeightJob* job, real* flat, const real* x, const ptrdiff_t* plane,
                                   Py_ssize_t channels, Py_ssize_t first, Py_ssize_t stop, const real* end) noexcept nogil:
    """The rows that pixels [first, stop) of an image see, channels side by side; returns their number.

    From top to bottom and from left to right, because what is stored behind a place is overwritten by the next one.
    """
    cdef const Axis* h = &job.rows
    cdef const Axis* w = &job.columns
    cdef Py_ssize_t top = first // job.out_w * h.step
    cdef Py_ssize_t rows = ((stop - 1) // job.out_w - first // job.out_w) * h.step + h.reach
    cdef Py_ssize_t row, y, left, right, above, below
    cdef real* at
    inside(h.size, top * h.source_step - h.pad, h.source_step, rows, &above, &below)
    inside(w.size, -w.pad, w.source_step, job.width, &left, &right)
    for row in range(rows):
        at = flat + row * job.width * channels
        if row < above or row >= below or left >= right:
            memset(at, 0, job.width * channels * sizeof(real))
            continue
        memset(at, 0, left * channels * sizeof(real))
        y = (top + row) * h.source_step - h.pad
        channels_last(at + left * channels, channels, x + y * w.size + left * w.source_step - w.pad, plane, channels,
                      right - left, w.source_step, h.source_step * w.size, end)
        memset(at + right * channels, 0, (job.width - right) * channels * sizeof(real))
    return rows


cdef void add_weights(const real* sums, const ptrdiff_t* tap, Py_ssize_t taps, Py_ssize_t channels, real* turned, real* to,
                      const real* end, bint first) noexcept nogil:
    """Add one row of sums, (taps, channels), to one of dw, (channels, taps)."""
    cdef Py_ssize_t i, count = taps * channels
    if taps > 1:
        channels_last(turned, taps, sums, tap, taps, channels, 1, 0, end)
        sums = turned
    if first:
        memcpy(to, sums, count * sizeof(real))
    else:
        for i in range(count):
            to[i] += sums[i]


cdef void expect_chunk(const WeightJob* job, const real* dout, const real* x, Py_ssize_t start, Py_ssize_t height,
                       Py_ssize_t channels, bint block, fc_region* region, fc_ahead* ahead, Py_ssize_t calls) noexcept nogil:
    """Begin to ask, in so many calls of tiles, for `dout` of the chunk of pixels from `start` on, and for what the `block` of
    pixels that begins there sees of `x`, if one does. These point to the first channels of an item; there need not be such a
    chunk."""
    cdef const Axis* h = &job.rows
    cdef Py_ssize_t total = job.batch * job.pixels, stop = least(start + WEIGHT_CHUNK, total), end, at = start, pixel, length
    cdef Py_ssize_t top, above, below, rows, count = 0, line = job.columns.size * sizeof(real)
    ahead.region = region
    while at < stop:
        pixel = at % job.pixels
        length = least(job.pixels - pixel, stop - at)
        region[count] = fc_bands(<const char*> (dout + at // job.pixels * job.groups * job.kg * job.pixels + pixel), height,
                                 job.pixels * sizeof(real), length * sizeof(real))
        at += length
        count += 1
    end = least(start + job.block, total) if block else start
    at = start
    while at < end:
        pixel = at % job.pixels
        length = least(job.pixels - pixel, end - at)
        top = pixel // job.out_w * h.step
        rows = ((pixel + length - 1) // job.out_w - pixel // job.out_w) * h.step + h.reach
        inside(h.size, top * h.source_step - h.pad, h.source_step, rows, &above, &below)
        top = (top + above) * h.source_step - h.pad
        region[count].from_ = (<const char*> (x + at // job.pixels * job.groups * job.cg * h.size * job.columns.size)
                               + (top * line if below > above else 0))
        region[count].planes, region[count].plane_step = channels, h.size * line
        region[count].runs, region[count].run_step, region[count].bytes = below - above, h.source_step * line, line
        at += length
        count += 1
    fc_ahead_begin(ahead, count, calls)


cdef void weight_item(const WeightJob* job, Py_ssize_t item, const real* x, const real* dout, real* dw,
                      char* scratch) noexcept nogil:
    """dw of one (group, block of output channels, block of input channels), over all pixels in order."""
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t group = item // (job.blocks_c * job.blocks_k)
    cdef Py_ssize_t k0 = item // job.blocks_c % job.blocks_k * job.kg // job.blocks_k
    cdef Py_ssize_t k1 = (item // job.blocks_c % job.blocks_k + 1) * job.kg // job.blocks_k
    cdef Py_ssize_t c0 = item % job.blocks_c * job.block_c
    cdef Py_ssize_t channels = least(job.cg - c0, job.block_c)
    cdef Py_ssize_t taps = job.kh * job.kw, ldw = job.cg * taps, height = k1 - k0
    cdef Py_ssize_t plane = job.rows.size * job.columns.size
    # a run of elements that lie side by side: what so many taps see of a pixel
    cdef Py_ssize_t run_taps = taps if job.packed else job.run_taps
    cdef Py_ssize_t copied = job.run_taps * channels, runs = taps // run_taps
    cdef Py_ssize_t run_pitch = whole(run_taps * channels, lanes), lds = runs * run_pitch
    cdef real* flat = <real*> scratch
    cdef real* packed = <real*> (scratch + job.flat_bytes)
    cdef real* left = <real*> (scratch + job.flat_bytes + job.packed_bytes)
    cdef real* sums = <real*> (scratch + job.flat_bytes + job.packed_bytes + job.left_bytes)
    cdef real* turned = <real*> (<char*> sums + job.sum_bytes)
    cdef ptrdiff_t* pixel = <ptrdiff_t*> (<char*> turned + job.turned_bytes)  # where a chunk's pixels lie
    cdef ptrdiff_t* row = pixel + WEIGHT_CHUNK if job.packed else pixel       # and where the tile finds them
    cdef ptrdiff_t* planes = pixel + 2 * WEIGHT_CHUNK                         # of the input channels
    cdef ptrdiff_t* tap = planes + job.block_c                                # of the sums
    cdef ptrdiff_t* run = tap + taps                                          # of the flat copy
    cdef const real* gradient  # a chunk of dout, and from row to row of it
    cdef Py_ssize_t ldg
    cdef Py_ssize_t* segment_row = <Py_ssize_t*> (run + taps)                 # of the flat copy, of each image's row 0
    cdef fc_region* region = <fc_region*> (segment_row + job.segments)
    cdef fc_ahead coming
    cdef ptrdiff_t[FC_AHEAD_TILE + FC_AHEAD_LINES + 1] line
    cdef fc_asked asked
    cdef const real* end = x + job.batch * job.groups * job.cg * plane
    cdef const real* source
    cdef Py_ssize_t total = job.batch * job.pixels, block, block_stop, start, stop, count
    cdef Py_ssize_t image, first_image, at, p, k, t, m, rows, tiles, vectors, v, g, chunk = 0
    cdef Py_ssize_t all_tiles = ceil_div(height, FC_TILE_ROWS), all_vectors = run_pitch // lanes
    cdef int flags, asks
    cdef bint first = True, far = not job.packed and job.left_bytes + job.sum_bytes > FAR_BYTES
    asked.from_, asked.at, asked.count, asked.into = NULL, line, 0, FC_ASK
    asks = FC_ASK if far else 0
    fc_ahead_begin(&coming, 0, 1)
    dw += (group * job.kg + k0) * ldw + c0 * taps
    if total == 0:
        for k in range(height):
            memset(dw + k * ldw, 0, channels * taps * sizeof(real))
        return
    for t in range(channels):
        planes[t] = t * plane
    for t in range(taps):
        tap[t] = t // run_taps * run_pitch + t % run_taps * channels
    for t in range(taps // job.run_taps):
        at = t * job.run_taps
        run[t] = (at // job.kw * job.dh * job.width + at % job.kw * job.dw) * channels
    if job.packed:
        for p in range(WEIGHT_CHUNK):
            row[p] = p * run_pitch
    tiles = ceil_div(all_vectors, FC_TILE_VECTORS)

    block = 0
    while block < total:
        block_stop = least(total, block + job.block)
        first_image = image = block // job.pixels
        at = 0
        while image * job.pixels < block_stop:
            p = most(block - image * job.pixels, 0)
            segment_row[image - first_image] = at - p // job.out_w * job.rows.step
            at += fill_channels_last(job, flat + at * job.width * channels,
                                     x + ((image * job.groups + group) * job.cg + c0) * plane, planes, channels, p,
                                     least(job.pixels, block_stop - image * job.pixels), end)
            image += 1
        start = block
        while start < block_stop:
            stop = least(block_stop, start + WEIGHT_CHUNK)
            at = 0  # pixels of the chunk that are dealt with
            gradient, ldg = left, job.lda
            while start + at < stop:
                image = (start + at) // job.pixels
                p = (start + at) % job.pixels
                count = least(job.pixels - p, stop - start - at)
                source = dout + ((image * job.groups + group) * job.kg + k0) * job.pixels + p
                if count == stop - start:  # all of it lies in one image: the tiles read it there
                    gradient, ldg = source, job.pixels
                elif real is float:
                    fc_copy_runs_f32(left + at, job.lda, source, job.pixels, height, count)
                else:
                    fc_copy_runs_f64(left + at, job.lda, source, job.pixels, height, count)
                t = segment_row[image - first_image]
                m, rows = p // job.out_w, p % job.out_w
                for p in range(count):
                    pixel[at + p] = ((t + m * job.rows.step) * job.width + rows * job.columns.step) * channels
                    rows += 1
                    if rows == job.out_w:
                        rows = 0
                        m += 1
                at += count
            count = stop - start
            if job.packed:
                if real is float:
                    fc_pack_windows_f32(packed, run_pitch, flat, pixel, count, run, taps // job.run_taps, copied)
                else:
                    fc_pack_windows_f64(packed, run_pitch, flat, pixel, count, run, taps // job.run_taps, copied)
            flags = FC_ACCUMULATE if chunk > 0 else 0
            if far:
                expect_chunk(job, dout + (group * job.kg + k0) * job.pixels, x + (group * job.cg + c0) * plane, stop, height,
                             channels, stop == block_stop, region, &coming, runs * tiles * all_tiles)
            for t in range(runs):
                source = packed if job.packed else flat + run[t]
                for g in range(tiles):
                    v = all_vectors * g // tiles
                    vectors = all_vectors * (g + 1) // tiles - v
                    for m in range(all_tiles):
                        k = height * m // all_tiles
                        rows = height * (m + 1) // all_tiles - k
                        at = k * lds + t * run_pitch + v * lanes
                        if far:
                            asked.count = fc_ahead_take(&coming, line, 0)
                        if real is float:
                            fc_correlate_table_f32[asks][vectors - 1][rows - 1](gradient + k * ldg, ldg, source + v * lanes,
                                                                            row, count, sums + at, lds, NULL, flags, &asked)
                        else:
                            fc_correlate_table_f64[asks][vectors - 1][rows - 1](gradient + k * ldg, ldg, source + v * lanes,
                                                                            row, count, sums + at, lds, NULL, flags, &asked)
            chunk += 1
            if chunk == WEIGHT_CHUNKS or stop == total:
                for k in range(height):
                    add_weights(sums + k * lds, tap, taps, channels, turned, dw + k * ldw, turned, first)
                first = False
                chunk = 0
            start = stop
        block = block_stop


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
        plan_weight(&job, &v, sizeof(real), threads)
        items = job.groups * job.blocks_k * job.blocks_c
        if items == 1 or threads == 1:
            for item in range(items):
                weight_item(&job, item, image, left, to, work)
        else:
            for item in prange(items, num_threads=threads, schedule="dynamic"):
                weight_item(&job, item, image, left, to, work + threadid() * job.thread_bytes)
    return 0


# --- backward data ------------------------------------------------------------------------------------------------------
#
#     (C/g*KH*KW, K/g) @ (K/g, P) -> (C/g*KH*KW, P), then col2im
#
# The gradient with respect to the column matrix, for a few channels and the pixels of a band of rows or of a few small
# images at a time, so that it lies in cache; then each row of dx gathers the taps that met it, in registers. Against the
# direct convolution of dout: not one multiplication by zero, whatever the padding (a 5x5 filter on 12x12 pixels multiplies
# 8x8 of them), and any stride in the same way; but KH*KW loads and additions for each element.
#
# The weights are the left-hand matrix, turned once. Where there are fewer pixels than filters, so that turning the weights
# would be most of the work (the last blocks of a network, one image at a time), they stay as they lie, dout is turned, and so
# are the columns, a panel of them at a time:
#
#     (P, K/g) @ (K/g, C/g*KH*KW) -> (P, C/g*KH*KW)
#
# Where all columns are made at a time (few channels), dout is read once: so the products read it where it lies, and only ask
# for what the next tile reads. Otherwise it is copied to a panel in L2.
#
# dx is the sum over the cells of dout that exist: there is no padding that an infinite weight could meet.
#
# Threads take (group, band or images, block of input channels). A band computes the rows of the column matrix that it shares
# with the next one itself, so no two threads write one element.

cdef extern from "simd.h" nogil:
    ctypedef struct fc_tap:
        ptrdiff_t row
        ptrdiff_t shift
    void fc_gather_row_f32(float*, ptrdiff_t, ptrdiff_t, ptrdiff_t, const float*, const ptrdiff_t*, ptrdiff_t,
                           const fc_tap*, const ptrdiff_t*, ptrdiff_t, float, float*)
    void fc_gather_row_f64(double*, ptrdiff_t, ptrdiff_t, ptrdiff_t, const double*, const ptrdiff_t*, ptrdiff_t,
                           const fc_tap*, const ptrdiff_t*, ptrdiff_t, double, double*)

cdef enum:
    DATA_BYTES = 786432      # of dout's panel
    COLUMN_BYTES = 262144    # of the column matrix of one channel
    COLUMNS_BYTES = 98304    # as many channels together as have so many bytes,
    DATA_PIXELS = 256        # and as many small images as have so many pixels
    DATA_WAYS = 4            # lines of dout in one set of L1, at most, for a tile to find them there again

cdef struct DataJob:
    Window v
    Py_ssize_t kg, cg, taps, pixels
    Py_ssize_t images                # of one item,
    Py_ssize_t band                  # or rows of dx of one item, where an image has several bands
    Py_ssize_t bands, blocks         # of one image, and of all
    Py_ssize_t parts                 # blocks of input channels
    Py_ssize_t turn                  # items from one that a thread takes to the one that it is likely to take next
    Py_ssize_t width                 # of the panel and of the column matrix
    Py_ssize_t chunk                 # channels whose columns are made at a time
    bint few                         # few pixels: dout and the columns are turned, not the weights
    bint in_place                    # dout is read where it lies
    Py_ssize_t lda                   # of what is turned
    Py_ssize_t shared_bytes, turned_bytes
    Py_ssize_t panel_bytes, column_bytes, spare_bytes, left_bytes, product_bytes, thread_bytes


cdef void plan_data(DataJob* job, const Window* v, Py_ssize_t itemsize, Py_ssize_t threads) noexcept nogil:
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // itemsize
    cdef Py_ssize_t most_pixels, items, reach = (v.kh - 1) * v.dh
    job.v = v[0]
    job.kg, job.cg, job.taps = v.k // v.groups, v.c // v.groups, v.kh * v.kw
    job.pixels = v.oh * v.ow
    most_pixels = most(least(DATA_BYTES // (job.kg * itemsize), COLUMN_BYTES // (job.taps * itemsize)), v.ow)
    job.images, job.band = 1, v.h
    if job.pixels <= most_pixels:
        job.images = most(least(v.n, least(most_pixels, DATA_PIXELS) // job.pixels), 1)
        job.images = most(ceil_div(v.n, most(ceil_div(v.n, job.images), 1)), 1)
    else:
        job.band = least(most(most_pixels // v.ow - reach // v.sh, 1) * v.sh, v.h)
    job.bands = ceil_div(v.h, job.band)
    job.band = ceil_div(v.h, job.bands)
    job.blocks = ceil_div(v.n, job.images) * job.bands
    # rows of dout that meet a band
    job.width = job.images * least(v.oh, (job.band - 1 + reach) // v.sh + 1) * v.ow
    job.width = whole(job.width, lanes)
    if job.width * itemsize // FC_LINE % 2 == 0:
        job.width += FC_LINE // itemsize  # no two rows of a tile share the sets of a cache
    job.chunk = least(job.cg, most(COLUMNS_BYTES // (job.taps * job.width * itemsize), 1))
    items = v.groups * job.blocks
    job.turn = threads
    job.parts = 1 if threads == 1 or items >= 2 * threads else least(job.cg, ceil_div(2 * threads, most(items, 1)))
    job.lda = whole(job.kg, lanes)
    job.few = job.blocks == 1 and 2 * v.n * job.pixels <= job.kg
    job.in_place = (not job.few and job.images == 1 and job.chunk == job.cg and job.parts == 1
                    and set_lines(job.pixels * itemsize, job.kg) <= DATA_WAYS)
    job.turned_bytes = 0 if job.few else aligned(v.groups * job.cg * job.taps * job.lda * itemsize)
    job.shared_bytes = job.turned_bytes + aligned(3 * job.kg * sizeof(ptrdiff_t))
    job.left_bytes = aligned((job.images * job.pixels * job.lda + lanes) * itemsize) if job.few else 0
    job.product_bytes = aligned((job.images * job.pixels * FC_TILE_VECTORS + 1) * FC_VECTOR_BYTES) if job.few else 0
    job.panel_bytes = aligned((job.kg * (FC_TILE_VECTORS * lanes if job.few else job.width) + lanes) * itemsize)
    job.column_bytes = aligned((job.chunk * job.taps * job.width + 2 * lanes) * itemsize)
    job.spare_bytes = aligned((v.w + v.sw * (lanes + 1)) * itemsize)
    job.thread_bytes = (job.panel_bytes + job.column_bytes + job.spare_bytes + job.left_bytes + job.product_bytes
                        + aligned(v.kw * sizeof(fc_tap) + (v.sw + 1 + v.kh) * sizeof(ptrdiff_t)))


cdef inline Py_ssize_t set_lines(Py_ssize_t row_bytes, Py_ssize_t rows) noexcept nogil:
    """Lines of a tile's width in so many rows, so far apart, that share a set of a cache with 64 sets."""
    return ceil_div(rows * most(FC_TILE_VECTORS * FC_VECTOR_BYTES // FC_LINE, fc_gcd(row_bytes // FC_LINE, 64)), 64)


cdef void turn_filters(const DataJob* job, const real* weights, Py_ssize_t item, Py_ssize_t items, const ptrdiff_t* row,
                       const real* end, real* turned) noexcept nogil:
    """One of `items` parts of (K/g, C/g*KH*KW) -> (C/g*KH*KW, K/g), group by group."""
    cdef Py_ssize_t terms = job.cg * job.taps, group = item // items
    cdef Py_ssize_t first = item % items * terms // items, stop = (item % items + 1) * terms // items
    channels_last(turned + (group * terms + first) * job.lda, job.lda, weights + group * job.kg * terms + first, row, job.kg,
                  stop - first, 1, stop - first, end)


cdef void columns_of_filters(const DataJob* job, const real* turned, const real* panel, const ptrdiff_t* offset,
                             Py_ssize_t count, Py_ssize_t vectors_all, const real* following, real* col,
                             fc_ahead* coming) noexcept nogil:
    """(count, K/g) @ (K/g, P) -> (count, P): rows of the column matrix from dout's panel and as many turned filters.

    Where dout itself is the panel, `following` is what will be read after it, otherwise NULL. What is `coming` is asked for.
    """
    cdef ptrdiff_t[FC_AHEAD_LINES + 1] line
    cdef fc_asked asked
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t tiles = ceil_div(count, FC_TILE_ROWS), all_tiles = ceil_div(vectors_all, FC_TILE_VECTORS)
    cdef Py_ssize_t g, i, m, k, first, rows, vectors
    cdef const real* ahead
    asked.from_, asked.at, asked.into = NULL, line, FC_ASK
    for g in range(all_tiles):
        i = vectors_all * g // all_tiles
        vectors = vectors_all * (g + 1) // all_tiles - i
        ahead = panel + (i + vectors) * lanes if g + 1 < all_tiles else following
        for m in range(tiles):
            first = count * m // tiles
            rows = count * (m + 1) // tiles - first
            for k in range(job.kg * m // tiles, job.kg * (m + 1) // tiles if following != NULL else 0):
                fc_ask_for_block(<const char*> (ahead + offset[k]), vectors * FC_VECTOR_BYTES, 3)
            asked.count = fc_ahead_take(coming, line, 0)
            correlate_tile(turned + first * job.lda, job.lda, panel + i * lanes, offset, job.kg, rows, vectors,
                           col + first * job.width + i * lanes, job.width, <const real*> NULL, 0,
                           &asked if asked.count else NULL)


cdef void expect_band(const DataJob* job, Py_ssize_t item, const real* dout, Py_ssize_t part, Py_ssize_t parts,
                      fc_region* region) noexcept nogil:
    """One of `parts` parts of the channels of dout that an item sees; there need not be such an item."""
    cdef const Window* v = &job.v
    cdef Py_ssize_t group = item // (job.parts * job.blocks), block = item // job.parts % job.blocks
    cdef Py_ssize_t r0 = block % job.bands * job.band, first = job.kg * part // parts
    cdef Py_ssize_t q0 = most(ceil_div(r0 + v.top - (v.kh - 1) * v.dh, v.sh), 0)
    cdef Py_ssize_t q1 = most(least((least(v.h, r0 + job.band) - 1 + v.top) // v.sh + 1, v.oh), q0)
    region.planes = 0
    if group >= v.groups:
        return
    region[0] = fc_bands(<const char*> (dout + ((block // job.bands * v.groups + group) * job.kg + first) * job.pixels
                                        + q0 * v.ow),
                         job.kg * (part + 1) // parts - first, job.pixels * sizeof(real), (q1 - q0) * v.ow * sizeof(real))


cdef void columns_of_pixels(const DataJob* job, const real* weights, const real* left, const ptrdiff_t* offset,
                            Py_ssize_t count, Py_ssize_t pixels, real* panel, real* product, real* col) noexcept nogil:
    """(P, K/g) @ (K/g, count) -> (P, count): the same from dout turned, and turned back panel by panel."""
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real), width = FC_TILE_VECTORS * lanes
    cdef Py_ssize_t tiles = ceil_div(pixels, FC_TILE_ROWS), panels = ceil_div(count, width)
    cdef Py_ssize_t g, i, m, first, rows, columns, terms = job.cg * job.taps
    for g in range(panels):
        i = count * g // panels
        columns = count * (g + 1) // panels - i
        if real is float:
            fc_copy_runs_f32(panel, width, weights + i, terms, job.kg, columns)
        else:
            fc_copy_runs_f64(panel, width, weights + i, terms, job.kg, columns)
        for m in range(tiles):
            first = pixels * m // tiles
            rows = pixels * (m + 1) // tiles - first
            correlate_tile(left + first * job.lda, job.lda, panel, offset, job.kg, rows, ceil_div(columns, lanes),
                           product + first * width, width, <const real*> NULL, 0, NULL)
        # rows of the product are as far apart as those of the panel
        channels_last(col + i * job.width, job.width, product, offset, pixels, columns, 1, 0,
                      product + pixels * width + lanes)


cdef void data_item(const DataJob* job, Py_ssize_t item, const real* dout, const real* weights, const real* bias,
                    const ptrdiff_t* offset, const ptrdiff_t* plane, const real* end, real* dx, char* scratch) noexcept nogil:
    """dx of one (group, band or images, block of input channels). `weights` are turned, but for few pixels."""
    cdef const Window* v = &job.v
    cdef Py_ssize_t lanes = FC_VECTOR_BYTES // sizeof(real)
    cdef Py_ssize_t part = item % job.parts, block = item // job.parts % job.blocks
    cdef Py_ssize_t group = item // (job.parts * job.blocks)
    cdef Py_ssize_t first_c = job.cg * part // job.parts, c_stop = job.cg * (part + 1) // job.parts, c0 = first_c, c1, c
    cdef Py_ssize_t image0 = block // job.bands * job.images, images = least(job.images, v.n - image0), image
    cdef Py_ssize_t r0 = block % job.bands * job.band, r1 = least(v.h, r0 + job.band)
    cdef Py_ssize_t q0 = most(ceil_div(r0 + v.top - (v.kh - 1) * v.dh, v.sh), 0)
    cdef Py_ssize_t q1 = most(least((r1 - 1 + v.top) // v.sh + 1, v.oh), q0)
    cdef Py_ssize_t each = (q1 - q0) * v.ow, vectors_all = ceil_div(images * each, lanes)
    cdef real* panel = <real*> scratch
    cdef const real* seen = panel
    cdef const real* following = NULL
    cdef real* col = <real*> (scratch + job.panel_bytes) + lanes  # whole vectors are read on both sides
    cdef real* spare = <real*> (scratch + job.panel_bytes + job.column_bytes)
    cdef real* left = <real*> (scratch + job.panel_bytes + job.column_bytes + job.spare_bytes)
    cdef real* product = <real*> (<char*> left + job.left_bytes)
    cdef fc_tap* tap = <fc_tap*> (<char*> product + job.product_bytes)
    cdef ptrdiff_t* start = <ptrdiff_t*> (tap + v.kw)
    cdef ptrdiff_t* row = start + v.sw + 1
    cdef Py_ssize_t y, b, i, j, t, n
    cdef const real* source
    cdef real* to
    cdef real add
    cdef bint far = job.images == 1 and not job.few and each * job.kg * <Py_ssize_t> sizeof(real) > FAR_BYTES
    cdef fc_region[2] region
    cdef fc_ahead coming
    fc_ahead_begin(&coming, 0, 1)
    # the taps of a row by the columns that they met: those of one parity class after the other
    n = 0
    for b in range(v.sw):
        start[b] = n
        for j in range(v.kw):
            if (b + v.left - j * v.dw) % v.sw == 0:
                tap[n] = fc_tap(j * job.width, (b + v.left - j * v.dw) // v.sw)
                n += 1
    start[v.sw] = n
    source = dout + (image0 * v.groups + group) * job.kg * job.pixels + q0 * v.ow
    # whole vectors are read, of which the last one must not reach beyond the array
    if job.in_place and source + (job.kg - 1) * job.pixels + vectors_all * lanes <= end:
        seen, offset = source, plane
        following = source + (each if q1 < v.oh else v.groups * job.kg * job.pixels - q0 * v.ow)
    for image in range(0 if following != NULL else images):
        source = dout + ((image0 + image) * v.groups + group) * job.kg * job.pixels + q0 * v.ow
        if job.few:
            channels_last(left + image * each * job.lda, job.lda, source, plane, job.kg, each, 1, 0, end)
        elif real is float:
            fc_copy_runs_f32(panel + image * each, job.width, source, job.pixels, job.kg, each)
        else:
            fc_copy_runs_f64(panel + image * each, job.width, source, job.pixels, job.kg, each)
    while c0 < c_stop:
        c1 = least(c0 + job.chunk, c_stop)
        if job.few:
            columns_of_pixels(job, weights + (group * job.kg * job.cg + c0) * job.taps, left, offset, (c1 - c0) * job.taps,
                              images * each, panel, product, col)
        else:
            if far and following == NULL:  # where the columns go, and a part of the dout that this thread's next item sees
                region[0] = fc_bands(<const char*> (dx + (((image0 * v.groups + group) * job.cg + c0) * v.h + r0) * v.w),
                                     c1 - c0, v.h * v.w * sizeof(real), (r1 - r0) * v.w * sizeof(real))
                expect_band(job, item + job.turn, dout, (c0 - first_c) // job.chunk, ceil_div(c_stop - first_c, job.chunk),
                            &region[1])
                coming.region = region
                fc_ahead_begin(&coming, 2, ceil_div((c1 - c0) * job.taps, FC_TILE_ROWS)
                               * ceil_div(vectors_all, FC_TILE_VECTORS))
            columns_of_filters(job, weights + (group * job.cg + c0) * job.taps * job.lda, seen, offset,
                               (c1 - c0) * job.taps, vectors_all, following, col, &coming)
        for image in range(images):
            for y in range(r0, r1):
                n = 0  # rows of dout that met this one
                for i in range(v.kh):
                    t = y + v.top - i * v.dh
                    if t >= 0 and t % v.sh == 0 and q0 <= t // v.sh < q1:
                        row[n] = i * v.kw * job.width + image * each + (t // v.sh - q0) * v.ow
                        n += 1
                to = dx + ((((image0 + image) * v.groups + group) * job.cg + c0) * v.h + y) * v.w
                for c in range(c1 - c0):
                    add = bias[group * job.cg + c0 + c] if bias != NULL else 0
                    if real is float:
                        fc_expect_f32(to + c * v.h * v.w + v.w, 1, 0, v.w)
                        fc_gather_row_f32(to + c * v.h * v.w, v.w, (r1 - y) * v.w, v.sw, col + c * job.taps * job.width, row, n,
                                          tap, start, v.ow, add, spare)
                    else:
                        fc_expect_f64(to + c * v.h * v.w + v.w, 1, 0, v.w)
                        fc_gather_row_f64(to + c * v.h * v.w, v.w, (r1 - y) * v.w, v.sw, col + c * job.taps * job.width, row, n,
                                          tap, start, v.ow, add, spare)
        c0 = c1


def implicit_gemm_backward_data(cnp.ndarray dout, cnp.ndarray weight, bias, geometry, cnp.ndarray out, cnp.ndarray scratch,
                                int threads):
    """The gradient with respect to the input, plus a `bias` for each of its channels or None, into `out`."""
    if dout.descr.itemsize == 4:
        gemm_data_of[float](dout, weight, bias, geometry, out, scratch, threads)
    else:
        gemm_data_of[double](dout, weight, bias, geometry, out, scratch, threads)


cdef int gemm_data_of(cnp.ndarray dout, cnp.ndarray weight, object bias, object geometry, cnp.ndarray out,
                      cnp.ndarray scratch, int threads, real* dtype=NULL) except -1:
    cdef Window v = read_conv(geometry)
    cdef DataJob job
    cdef char* work = <char*> cnp.PyArray_DATA(scratch)
    cdef const real* source = <const real*> cnp.PyArray_DATA(dout)
    cdef const real* w = <const real*> cnp.PyArray_DATA(weight)
    cdef const real* b = NULL
    cdef const real* end = w + cnp.PyArray_SIZE(weight)
    cdef real* to = <real*> cnp.PyArray_DATA(out)
    cdef real* turned = <real*> work
    cdef ptrdiff_t* offset
    cdef ptrdiff_t* row
    cdef ptrdiff_t* plane
    cdef Py_ssize_t item, items, i
    if bias is not None:
        b = <const real*> cnp.PyArray_DATA(<cnp.ndarray> bias)
    with nogil:
        plan_data(&job, &v, sizeof(real), threads)
        offset = <ptrdiff_t*> (work + job.turned_bytes)
        row = offset + job.kg
        plane = row + job.kg
        for i in range(job.kg):
            offset[i] = i * (FC_TILE_VECTORS * FC_VECTOR_BYTES // sizeof(real) if job.few else job.width)
            row[i] = i * job.cg * job.taps
            plane[i] = i * job.pixels
        if not job.few:
            items = ceil_div(job.cg * job.taps, 96)
            if threads == 1:
                for item in range(v.groups * items):
                    turn_filters(&job, w, item, items, row, end, turned)
            else:
                for item in prange(v.groups * items, num_threads=threads, schedule="static"):
                    turn_filters(&job, w, item, items, row, end, turned)
            w = turned
        end = source + v.n * v.k * job.pixels
        work += job.shared_bytes
        items = v.groups * job.blocks * job.parts
        if items == 1 or threads == 1:
            for item in range(items):
                data_item(&job, item, source, w, b, offset, plane, end, to, work)
        else:
            for item in prange(items, num_threads=threads, schedule="dynamic"):
                data_item(&job, item, source, w, b, offset, plane, end, to, work + threadid() * job.thread_bytes)
    return 0


# --- entry points of the others -----------------------------------------------------------------------------------------

def implicit_gemm_workspace(operation, geometry, Py_ssize_t itemsize, Py_ssize_t threads):
    """Scratch that an operation of this file needs: ``(bytes shared, bytes for each thread)``."""
    cdef Window v = read_conv(geometry)
    cdef Gemm job
    cdef WeightJob weight
    cdef DataJob data
    if operation == "backward_weight":
        plan_weight(&weight, &v, itemsize, threads)
        return 0, weight.thread_bytes
    if operation == "backward_data":
        plan_data(&data, &v, itemsize, threads)
        return data.shared_bytes, data.thread_bytes
    plan_gemm(&job, &v, itemsize, threads, NULL)
    return gemm_tables(&job, &v), job.thread_bytes


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
        plan_gemm(&job, &v, sizeof(real), threads, work)
        run_gemm(&job, <const real*> cnp.PyArray_DATA(x), <const real*> cnp.PyArray_DATA(weight), b, relu,
                 <real*> cnp.PyArray_DATA(out), work + gemm_tables(&job, &v), threads)
    return 0
