/* Template of what the gradients need beside the tiles, for one element type; simd.h includes it after tiles.h: copies that
 * put the channels of a pixel side by side, and sums of whole planes. */

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define UVEC FC_NAME(uvec)
#define LANES ((ptrdiff_t)FC_LANES)

/* The sum of n elements: float sums of at most 32 vectors a lane, which are added up in double. The order of the sums
 * follows from n alone. */
static double FC_NAME(sum_run)(const FC_T *from, ptrdiff_t n)
{
    double total = 0;
    while (n >= 4 * LANES) {
        const ptrdiff_t rounds = n / (4 * LANES) < 32 ? n / (4 * LANES) : 32;
        VEC sum[4];
        FC_UNROLL
        for (int i = 0; i < 4; i++)
            sum[i] = (VEC){0};
        for (ptrdiff_t r = 0; r < rounds; r++, from += 4 * LANES) {
            FC_UNROLL
            for (int i = 0; i < 4; i++) {
                if (i * FC_VECTOR_BYTES % 64 == 0)
                    __builtin_prefetch((const char *)(from + i * LANES) + 4096);
                sum[i] += *(const UVEC *)(from + i * LANES);
            }
        }
        total += (double)FC_NAME(sum_lanes)((sum[0] + sum[1]) + (sum[2] + sum[3]));
        n -= rounds * 4 * LANES;
    }
    for (ptrdiff_t i = 0; i < n; i++)
        total += (double)from[i];
    return total;
}

/* The gradient of ReLU: to[i] is from[i], or zero where y[i], the input or the output, is at most zero. NaN is not. */
static void FC_NAME(relu_gradient)(FC_T *to, const FC_T *from, const FC_T *y, ptrdiff_t n)
{
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const IVEC blocked = *(const UVEC *)(y + i) <= (VEC){0};
        *(UVEC *)(to + i) = (VEC)((IVEC) * (const UVEC *)(from + i) & ~blocked);
    }
    for (; i < n; i++)
        to[i] = y[i] <= 0 ? 0 : from[i];
}

/* Turns planes into channels side by side: to[i*pitch + c] = from[offset[c] + i*step], for `count` pixels i and `channels` c.
 *
 * LANES pixels of LANES channels at a time, turned in registers. Whole vectors are stored, so up to LANES - 1 elements
 * behind a pixel's channels are written: the next pixel overwrites them, because pixels are stored in order and the last
 * channels first; behind the last pixel there must be room. Nothing is read at `end` or behind. The cells `ahead` elements further on, which a
 * later call reads, are asked for: of many planes that are read in turns the processor does not see them coming. */
FC_INLINE void FC_NAME(side_by_side)(FC_T *to, ptrdiff_t pitch, const FC_T *from, const ptrdiff_t *offset,
                                     ptrdiff_t channels, ptrdiff_t count, const ptrdiff_t step, const int vector,
                                     ptrdiff_t ahead, const FC_T *end)
{
    ptrdiff_t done = 0;
    if (vector) {
        /* whole groups, and for the rest one that ends where the pixels do, or that reads on behind them */
        const ptrdiff_t reach = count < LANES ? LANES : count;
        if (from + offset[channels - 1] + reach * step <= end)
            done = count;
        else
            done = count < LANES ? 0 : count - LANES;
    }
    for (ptrdiff_t c = done > 0 ? (channels - 1) / LANES * LANES : -1; c >= 0; c -= LANES) {
        const FC_T *source[FC_LANES];
        FC_UNROLL
        for (int k = 0; k < FC_LANES; k++)
            source[k] = from + offset[c + k < channels ? c + k : channels - 1];
        for (ptrdiff_t i = 0; i < done; i += LANES) {
            if (done - i < LANES && i > 0)
                i = done - LANES; /* pixels that are there already are stored again */
            VEC column[FC_LANES];
            FC_UNROLL
            for (int k = 0; k < FC_LANES; k++) {
                for (int line = 0; line < vector * FC_VECTOR_BYTES; line += 64)
                    __builtin_prefetch((const char *)(source[k] + i * step + ahead) + line);
                column[k] = FC_NAME(take_vector)(source[k] + i * step, vector);
            }
            FC_NAME(turn)(column);
            FC_T *at = to + i * pitch + c;
            if (done - i >= LANES) {
                FC_UNROLL
                for (int k = 0; k < FC_LANES; k++)
                    *(UVEC *)(at + k * pitch) = column[k];
            } else {
                FC_UNROLL
                for (int k = 0; k < FC_LANES; k++)
                    if (k < done - i)
                        *(UVEC *)(at + k * pitch) = column[k];
            }
        }
    }
    for (ptrdiff_t i = done; i < count; i++)
        for (ptrdiff_t c = 0; c < channels; c++) {
            FC_FEW;
            to[i * pitch + c] = from[offset[c] + i * step];
        }
}

static void FC_NAME(channels_last)(FC_T *to, ptrdiff_t pitch, const FC_T *from, const ptrdiff_t *offset,
                                   ptrdiff_t channels, ptrdiff_t count, ptrdiff_t step, ptrdiff_t ahead, const FC_T *end)
{
    if (step == 1)
        FC_NAME(side_by_side)(to, pitch, from, offset, channels, count, 1, 1, ahead, end);
    else if (step == 2)
        FC_NAME(side_by_side)(to, pitch, from, offset, channels, count, 2, 2, ahead, end);
    else if (step == 4)
        FC_NAME(side_by_side)(to, pitch, from, offset, channels, count, 4, 4, ahead, end);
    else
        FC_NAME(side_by_side)(to, pitch, from, offset, channels, count, step, 0, ahead, end);
}

/* Copies `rows` runs of `count` elements that lie `step` apart to rows `pitch` apart. Each run is short and the next one far
 * away, so the processor does not see it coming: it is asked for while the one two before it is copied. */
static void FC_NAME(copy_runs)(FC_T *to, ptrdiff_t pitch, const FC_T *from, ptrdiff_t step, ptrdiff_t rows, ptrdiff_t count)
{
    for (ptrdiff_t r = 0; r < rows; r++, to += pitch, from += step) {
        ptrdiff_t i = 0;
        for (; i + LANES <= count; i += LANES) {
            if (i * (ptrdiff_t)sizeof(FC_T) % 64 == 0)
                __builtin_prefetch(from + 2 * step + i);
            *(UVEC *)(to + i) = *(const UVEC *)(from + i);
        }
        if (i < count && count >= LANES)
            *(UVEC *)(to + count - LANES) = *(const UVEC *)(from + count - LANES);
        else
            for (; i < count; i++) {
                FC_FEW;
                to[i] = from[i];
            }
    }
}

/* Packs the windows of n pixels, each into `width` elements: run t of pixel p is the `count` elements of
 * flat + pixel[p] + run[t], and the runs lie one behind the other. Whole vectors are copied, as in pack_runs. */
static void FC_NAME(pack_windows)(FC_T *to, ptrdiff_t width, const FC_T *flat, const ptrdiff_t *pixel, ptrdiff_t n,
                                  const ptrdiff_t *run, ptrdiff_t runs, ptrdiff_t count)
{
    for (ptrdiff_t p = 0; p < n; p++)
        for (ptrdiff_t t = 0; t < runs; t++) {
            const FC_T *source = flat + pixel[p] + run[t];
            FC_T *target = to + p * width + t * count;
            for (ptrdiff_t k = 0; k < count; k += LANES)
                *(UVEC *)(target + k) = *(const UVEC *)(source + k);
        }
}

/* The lanes of v, which are cells `cell` and following, with zeros for cells outside [first, stop). */
FC_INLINE VEC FC_NAME(within)(VEC v, FC_INT cell, FC_INT first, FC_INT stop)
{
    IVEC at;
    for (int i = 0; i < FC_LANES; i++)
        at[i] = i;
    at += cell - (IVEC){0};
    return (VEC)((IVEC)v & (at >= first - (IVEC){0}) & (at < stop - (IVEC){0}));
}

/* One row of an image from its column matrix: to[x] for x in [0, count). Place u of class b (x = u*step + b) is the sum, over
 * the taps of that class, tap[start[b]] to tap[start[b + 1] - 1], and over all `rows`, of col[row[i] + tap.row + u + tap.shift],
 * with zeros for cells u + tap.shift outside [0, length), plus `bias`. `room` elements from `to` on may be written; `spare` has
 * room for the classes, each in whole vectors. */
static void FC_NAME(gather_row)(FC_T *to, ptrdiff_t count, ptrdiff_t room, ptrdiff_t step, const FC_T *col,
                                const ptrdiff_t *row, ptrdiff_t rows, const fc_tap *tap, const ptrdiff_t *start,
                                ptrdiff_t length, FC_T bias, FC_T *spare)
{
    const ptrdiff_t pitch = ((count + step - 1) / step + LANES - 1) / LANES * LANES;
    if (rows == 0) {
        for (ptrdiff_t x = 0; x < count; x++)
            to[x] = bias;
        return;
    }
    for (ptrdiff_t b = 0; b < step; b++)
        for (ptrdiff_t u = 0; u < (count - b + step - 1) / step; u += LANES) {
            VEC sum = bias - (VEC){0};
            for (ptrdiff_t t = start[b]; t < start[b + 1]; t++) {
                const ptrdiff_t cell = u + tap[t].shift;
                if (cell >= length || cell + LANES <= 0)
                    continue;
                const FC_T *const from = col + tap[t].row + cell;
                VEC column = *(const UVEC *)(from + row[0]);
                for (ptrdiff_t i = 1; i < rows; i++)
                    column += *(const UVEC *)(from + row[i]);
                if (cell < 0 || cell + LANES > length) /* the same cells of every row are outside, so they are cleared once */
                    column = FC_NAME(within)(column, (FC_INT)cell, 0, (FC_INT)length);
                sum += column;
            }
            if (step == 1 && u + LANES <= room)
                *(UVEC *)(to + u) = sum;
            else
                *(UVEC *)(spare + b * pitch + u) = sum;
        }
    if (step == 1) {
        for (ptrdiff_t x = room / LANES * LANES; x < count; x++) {
            FC_FEW;
            to[x] = spare[x];
        }
        return;
    }
    FC_NAME(weave)(to, count, room, step, spare, pitch);
}

#undef VEC
#undef IVEC
#undef UVEC
#undef LANES
