/* Template of the gradient of an average; see pooling.h and each_vector.h. Only for full vectors.
 *
 * Nothing is scattered: each row of the output gradient is divided and spread along its windows' columns once, and a row of
 * the input gradient is the sum of the spread rows of the windows it is in. The common windows (2x2 or 3x3, stride 1 or 2) go
 * by strips, in registers: each cell asks the few windows it is in for their shares. */

#if FC_BYTES == FC_VECTOR_BYTES

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define LANES ((ptrdiff_t)FC_LANES)

/* --- average ---------------------------------------------------------------------------------------------------- */

/* Rows of one thread's scratch. */
typedef struct {
    FC_T *share;               /* rows of output gradient / divisor, with zeros on both sides */
    FC_T *line;                /* the sums of one residue of columns modulo the stride (for strides above 2) */
    FC_T *ring;                /* spread rows */
    ptrdiff_t *tap;            /* for residue e of columns: where its taps[e] taps start, and how far back they look */
    ptrdiff_t *start, *taps;
    ptrdiff_t *held;           /* row of the output gradient in each slot of the ring, counted through all planes */
    ptrdiff_t *last, *ahead;   /* of fc_window_rows */
    const FC_T **row;
    ptrdiff_t divided;         /* rows of shares so far */
} FC_NAME(spread);

static FC_NAME(spread) FC_NAME(lay_out_spread)(const fc_pooling *p, const fc_spread *a, ptrdiff_t first, char *scratch)
{
    FC_NAME(spread) b;
    FC_T *cells = (FC_T *)scratch;
    const ptrdiff_t count = FC_SHARES * a->share + a->steps + a->slots * a->pitch;
    for (ptrdiff_t i = 0; i < count; i++)
        cells[i] = 0;
    b.share = cells + a->back;
    b.line = cells + FC_SHARES * a->share;
    b.ring = b.line + a->steps;
    b.tap = (ptrdiff_t *)(cells + count);
    b.start = b.tap + p->kw;
    b.taps = b.start + p->sw;
    b.held = b.taps + p->sw;
    b.last = b.held + a->slots;
    b.ahead = b.last + p->sh;
    b.row = (const FC_T **)(b.ahead + p->sh);
    b.divided = first / p->h * p->oh;

    ptrdiff_t sorted = 0;
    const ptrdiff_t period = p->sw / fc_gcd(p->dw, p->sw);
    for (ptrdiff_t e = 0; e < p->sw; e++) { /* column t*sw + e is tap j of window t + (e + left - j*dw)/sw */
        b.start[e] = sorted;
        for (ptrdiff_t j = fc_first_tap(e + p->left, p->sw, p->dw, p->kw); j < p->kw; j += period)
            b.tap[sorted++] = (j * p->dw - e - p->left) / p->sw;
        b.taps[e] = sorted - b.start[e];
    }
    for (ptrdiff_t i = 0; i < a->slots; i++)
        b.held[i] = -1;
    fc_window_rows(p->kh, p->sh, p->dh, b.last, b.ahead);
    return b;
}

/* The sum of the shares that the taps look at, for LANES steps of the stride. */
FC_INLINE void FC_NAME(sum_taps)(const int vectors, const FC_T *share, const ptrdiff_t *tap, ptrdiff_t taps, VEC *sum)
{
FC_UNROLL
    for (int v = 0; v < vectors; v++)
        sum[v] = taps ? FC_NAME(load)(share - tap[0] + v * LANES) : (VEC){0};
    for (ptrdiff_t j = 1; j < taps; j++)
FC_UNROLL
        for (int v = 0; v < vectors; v++)
            sum[v] += FC_NAME(load)(share - tap[j] + v * LANES);
}

FC_INLINE void FC_NAME(sum_line)(const FC_T *share, const ptrdiff_t *tap, ptrdiff_t taps, ptrdiff_t steps, FC_T *to)
{
    ptrdiff_t t = 0;
    VEC sum[4];
    for (; t + 4 * LANES <= steps; t += 4 * LANES) {
        FC_NAME(sum_taps)(4, share + t, tap, taps, sum);
FC_UNROLL
        for (int v = 0; v < 4; v++)
            FC_NAME(store)(to + t + v * LANES, sum[v]);
    }
    for (; t < steps; t += LANES) {
        FC_NAME(sum_taps)(1, share + t, tap, taps, sum);
        FC_NAME(store)(to + t, sum[0]);
    }
}

/* Divide rows of the output gradient up to `row` and some more: what has just been stored cannot be loaded at another
 * place right away without a wait. */
static void FC_NAME(divide_rows)(const fc_pooling *p, const fc_spread *a, FC_NAME(spread) *b, ptrdiff_t row)
{
    const ptrdiff_t all = p->planes * p->oh, stop = row + FC_SHARES - 1 < all ? row + FC_SHARES - 1 : all;
    for (; b->divided < stop; b->divided++) {
        const FC_T *dout = (const FC_T *)p->x + b->divided * p->ow;
        const FC_T *divisors = (const FC_T *)p->divisors + p->divisor[b->divided % p->oh] * p->divisor_step;
        FC_T *share = b->share + b->divided % FC_SHARES * a->share;
        ptrdiff_t q = 0;
        for (; q + LANES <= p->ow; q += LANES)
            FC_NAME(store)(share + q, FC_NAME(load)(dout + q) / FC_NAME(load)(divisors + q));
        if (q < p->ow)
            FC_NAME(store)(share + q, FC_NAME(load_part)(dout + q, p->ow - q) / FC_NAME(load)(divisors + q));
    }
}

/* Spread a row of the output gradient: to[c] is the sum of the shares of its windows over column c. */
static void FC_NAME(spread_row)(const fc_pooling *p, const fc_spread *a, FC_NAME(spread) *b, ptrdiff_t row, FC_T *to)
{
    if (row < b->divided - FC_SHARES) /* no longer there */
        b->divided = row;
    if (row >= b->divided)
        FC_NAME(divide_rows)(p, a, b, row);
    const FC_T *share = b->share + row % FC_SHARES * a->share;
    if (p->sw == 1) {
        FC_NAME(sum_line)(share, b->tap, p->kw, a->steps, to);
    } else if (p->sw == 2) {
        const ptrdiff_t *tap = b->tap, even = b->taps[0], odd = b->taps[1];
        for (ptrdiff_t t = 0; t < a->steps; t += LANES) {
            VEC sum[2];
            FC_NAME(sum_taps)(1, share + t, tap, even, &sum[0]);
            FC_NAME(sum_taps)(1, share + t, tap + even, odd, &sum[1]);
            FC_NAME(store)(to + 2 * t, FC_NAME(lows)(sum[0], sum[1]));
            FC_NAME(store)(to + 2 * t + LANES, FC_NAME(highs)(sum[0], sum[1]));
        }
    } else {
        for (ptrdiff_t e = 0; e < p->sw; e++) {
            if (!b->taps[e])
                continue; /* the ring has zeros there */
            FC_NAME(sum_line)(share, b->tap + b->start[e], b->taps[e], a->steps, b->line);
            FC_ELEMENT(to_every)(to + e, p->sw, b->line, a->steps);
        }
    }
}

/* Rows [first, stop) of the input gradient, counted through all planes; p->x is the output gradient. */
static void FC_NAME(avg_gradient)(const fc_pooling *p, const fc_spread *a, ptrdiff_t first, ptrdiff_t stop, fc_sink *out,
                                  char *scratch)
{
    FC_NAME(spread) b = FC_NAME(lay_out_spread)(p, a, first, scratch);
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T);
    ptrdiff_t plane = first / p->h, r = first % p->h;
    ptrdiff_t residue = (r + p->top) % p->sh, quotient = (r + p->top) / p->sh;
    for (; first < stop; first++) {
        ptrdiff_t y = quotient + b.ahead[residue], rows = 0; /* y: of the largest window row, or beyond */
        FC_T *to = (FC_T *)out->at;
        const ptrdiff_t room = (out->end - out->at) / size;
        ptrdiff_t count = 0, last = 0; /* window rows: the last one, and every step_rows-th before it */
        for (ptrdiff_t i = b.last[residue]; i < p->kh && y >= 0; i += a->step_taps, y -= a->step_rows)
            if (y < p->oh && !count++)
                last = y;
        while (count--) {
            y = last - count * a->step_rows;
            const ptrdiff_t number = plane * p->oh + y, slot = a->slots == 1 ? 0 : y % a->slots;
            FC_T *row = b.ring + slot * a->pitch;
            if (b.held[slot] != number) {
                FC_NAME(spread_row)(p, a, &b, number, row);
                b.held[slot] = number;
            }
            b.row[a->shared ? rows : 0] = row;
            if (!a->shared) /* added up in the result itself, one row at a time */
                for (ptrdiff_t c = 0; c < p->w; c += LANES) {
                    VEC sum = FC_NAME(load)(row + c);
                    if (rows)
                        sum += FC_NAME(load_part)(to + c, p->w - c);
                    FC_NAME(put)(to + c, sum, p->w - c, p->w - c);
                }
            rows++;
        }
        if (a->shared || rows == 0)
            for (ptrdiff_t c = 0; c < p->w; c += LANES) {
                VEC sum = {0};
                for (ptrdiff_t i = 0; i < rows; i++)
                    sum = i ? sum + FC_NAME(load)(b.row[i] + c) : FC_NAME(load)(b.row[i] + c);
                FC_NAME(put)(to + c, sum, p->w - c, room - c);
            }
        fc_written(out, p->w * size);
        if (++residue == p->sh) {
            residue = 0;
            quotient++;
        }
        if (++r == p->h) {
            r = 0;
            plane++;
            residue = p->top % p->sh;
            quotient = p->top / p->sh;
        }
    }
}

/* --- average of common windows -------------------------------------------------------------------------------------- */

/* The shares of LANES windows of a row of an average; windows from `count` on have none. */
FC_INLINE VEC FC_NAME(load_shares)(const FC_T *dout, const FC_T *divisors, ptrdiff_t count, ptrdiff_t readable)
{
    const VEC v = FC_LIKELY(readable >= LANES) ? FC_NAME(load)(dout) : FC_NAME(load_part)(dout, readable);
    const VEC share = v / FC_NAME(load)(divisors);
    if (count >= LANES)
        return share;
    return FC_NAME(pick)(FC_NAME(between)((IVEC){0}, FC_NAME(count)(), FC_NAME(iall)((FC_INT)count)), share, (VEC){0});
}

/* The next rows of windows of one plane, with what is to be found about a strip of LANES*s columns of the image. */
typedef struct {
    const FC_T *gradient;     /* of the first of the rows, at window 0 */
    ptrdiff_t pitch;          /* from row to row */
    ptrdiff_t readable;       /* elements of gradient that are there (k == s) */
    ptrdiff_t y, rows, column;
    FC_T *to;                 /* the first row of cells, which may be above the image */
    ptrdiff_t room;           /* elements that may be written from there on */
    FC_T *waiting;            /* s vectors for each of k - s rows of cells that following windows are in, too */
    const char *ahead;        /* what to prefetch next of gradients, in the order of memory */
} FC_NAME(asking);

/* The cells of a strip add up the shares of the windows that they are in.
 *
 * A row of windows is in `k` rows of cells. The first `s` of them are then complete, the others wait for the next row. With
 * stride 2, column 2t is cell 0 of window t and cell 2 of the one before, column 2t + 1 is cell 1; with padding, column 2t
 * is cell 1 of window t, 2t + 1 is its cell 2 and cell 0 of the one after. */
FC_INLINE void FC_NAME(ask_strip)(const int k, const int s, const int pad, const fc_pooling *p, FC_NAME(asking) *a)
{
    const ptrdiff_t w = p->w, h = p->h, c = a->column, pitch = a->pitch, windows = p->ow - c / s;
    const int wide = k - s; /* windows that a column asks beside the first one */
    const ptrdiff_t beside = c / s + (s == 1 ? pad + 1 - k : pad == 0 && k == 3 ? -1 : 0); /* the first window to ask */
    const FC_T *gradient = a->gradient + beside;
    const int32_t *divisor = p->divisor + a->y;
    ptrdiff_t readable = a->readable - beside, r = a->y * s - pad, room = a->room - c;
    FC_T *to = a->to + c;
    const char *ahead = a->ahead;
    VEC sum[3][2];
FC_UNROLL
    for (int e = 0; e < s; e++)
FC_UNROLL
        for (int i = 0; i < k - s; i++)
            sum[i][e] = FC_NAME(load)(a->waiting + (i * s + e) * LANES);
    for (ptrdiff_t y = a->rows; y > 0; y--) {
        VEC cells[3];
        if (p->streams) {
            __builtin_prefetch(ahead);
            ahead += FC_BYTES;
        }
        if (k > s) {
FC_UNROLL
            for (int i = 0; i <= wide; i++) {
                cells[i] = FC_NAME(load)(gradient + i);
                FC_HOLD(cells[i]);
            }
        } else {
            cells[0] = (VEC){0};
            if (windows > 0)
                cells[0] = FC_NAME(load_shares)(gradient, (const FC_T *)p->divisors + *divisor++ * p->divisor_step + beside,
                                                windows, readable);
            readable -= pitch;
        }
        gradient += pitch;
FC_UNROLL
        for (int i = 0; i < k; i++)
FC_UNROLL
            for (int e = 0; e < s; e++) {
                const int from = s == 2 && k == 3 && e == 1 && pad == 0, to_ = s == 2 && (e == 0) == (pad == 1) ? from : wide;
                VEC row = cells[from];
FC_UNROLL
                for (int j = from + 1; j <= to_; j++)
                    row += cells[j];
                sum[i][e] = i < k - s ? sum[i][e] + row : row;
            }
FC_UNROLL
        for (int i = 0; i < s; i++) {
            if ((size_t)r < (size_t)h) {
                if (s == 1) {
                    FC_NAME(put)(to, sum[i][0], w - c, room);
                } else {
                    FC_NAME(put)(to, FC_NAME(lows)(sum[i][0], sum[i][1]), w - c, room);
                    FC_NAME(put)(to + LANES, FC_NAME(highs)(sum[i][0], sum[i][1]), w - c - LANES, room - LANES);
                }
            }
            r++;
            to += w;
            room -= w;
        }
FC_UNROLL
        for (int e = 0; e < s; e++)
FC_UNROLL
            for (int i = 0; i < k - s; i++)
                sum[i][e] = sum[i + s][e];
    }
FC_UNROLL
    for (int i = 0; i < k - s; i++)
FC_UNROLL
        for (int e = 0; e < s; e++)
            FC_NAME(store)(a->waiting + (i * s + e) * LANES, sum[i][e]);
    a->ahead = ahead;
}

/* One plane, whose windows are k x k with stride s and padding `pad` above and to the left. `readable` elements of dout are
 * there, beginning with this plane. */
FC_INLINE void FC_NAME(ask_plane)(const int k, const int s, const int pad, const fc_pooling *pooling, const fc_shared *a,
                                  const FC_T *dout, ptrdiff_t readable, fc_sink *out, char *scratch)
{
    enum { GUARD = 2 };
    const fc_pooling here = *pooling, *const p = &here; /* a copy that no store can change */
    const ptrdiff_t w = p->w, ow = p->ow, block = s * LANES, size = (ptrdiff_t)sizeof(FC_T);
    const ptrdiff_t strips = (w + block - 1) / block, pitch = ow + GUARD, held = (k - s) * block;
    FC_T *const gradients = (FC_T *)scratch + GUARD;
    FC_T *const waiting = (FC_T *)scratch + a->copy;
    if (k > s)
        memset(waiting, 0, (size_t)(strips * held * size));
    for (ptrdiff_t y = 0; y < p->oh; y += a->band) {
        const ptrdiff_t rows = p->oh - y < a->band ? p->oh - y : a->band, r = y * s - pad;
        const ptrdiff_t start = r < 0 ? 0 : r, stop = r + s * rows < p->h ? r + s * rows : p->h; /* to be completed */
        FC_NAME(asking) asking = {.gradient = dout + y * ow,
                                  .pitch = ow,
                                  .readable = readable - y * ow,
                                  .y = y,
                                  .rows = rows,
                                  .to = (FC_T *)out->at - (start - r) * w,
                                  .room = (out->end - out->at) / size + (start - r) * w,
                                  .ahead = (const char *)(dout + (y + rows) * ow)};
        if (k > s) {
            for (ptrdiff_t i = 0; i < rows; i++)
                for (ptrdiff_t q = 0; q < ow; q += LANES) {
                    const ptrdiff_t from = (y + i) * ow + q, to = i * pitch + q;
                    FC_NAME(store)(gradients + to,
                                   FC_NAME(load_shares)(
                                       dout + from, (const FC_T *)p->divisors + p->divisor[y + i] * p->divisor_step + q,
                                       ow - q, readable - from));
                    if (q + LANES >= ow) /* behind the row */
                        for (int g = 0; g < GUARD; g++)
                            gradients[i * pitch + ow + g] = 0;
                }
            asking.gradient = gradients;
            asking.pitch = pitch;
        }
        for (ptrdiff_t i = strips; i-- > 0;) { /* from the right: stores may reach to where the next strips will write */
            asking.column = i * block;
            asking.waiting = waiting + i * held;
            FC_NAME(ask_strip)(k, s, pad, p, &asking);
        }
        if (stop > start)
            fc_written(out, (stop - start) * w * size);
    }
    for (ptrdiff_t r = p->oh * s - pad, i = 0; r < p->h; r++, i++) { /* below the last windows' first rows */
        const ptrdiff_t room = (out->end - out->at) / size;
        for (ptrdiff_t j = 0; j < strips; j++) {
            FC_T *const to = (FC_T *)out->at + j * block;
            const ptrdiff_t left = w - j * block;
            VEC sum[2] = {{0}, {0}};
            if (i < k - s)
                for (int e = 0; e < s; e++)
                    sum[e] = FC_NAME(load)(waiting + j * held + (i * s + e) * LANES);
            if (s == 1) {
                FC_NAME(put)(to, sum[0], left, room - j * block);
            } else {
                FC_NAME(put)(to, FC_NAME(lows)(sum[0], sum[1]), left, room - j * block);
                FC_NAME(put)(to + LANES, FC_NAME(highs)(sum[0], sum[1]), left - LANES, room - j * block - LANES);
            }
        }
        fc_written(out, w * size);
    }
}

#define ASK_PLANE(K, S, P)                                                                                            \
    __attribute__((noinline)) static void FC_NAME(ask_plane_##K##_##S##_##P)(                                         \
        const fc_pooling *p, const fc_shared *a, const FC_T *dout, ptrdiff_t readable, fc_sink *out, char *scratch)   \
    {                                                                                                                 \
        FC_NAME(ask_plane)(K, S, P, p, a, dout, readable, out, scratch);                                              \
    }
ASK_PLANE(3, 1, 1)
ASK_PLANE(3, 1, 0)
ASK_PLANE(2, 1, 0)
ASK_PLANE(2, 2, 0)
ASK_PLANE(3, 2, 1)
ASK_PLANE(3, 2, 0)

typedef void (*FC_NAME(ask_fn))(const fc_pooling *, const fc_shared *, const FC_T *, ptrdiff_t, fc_sink *, char *);

/* In the order of fc_guesses. */
static const FC_NAME(ask_fn) FC_NAME(ask_table)[FC_GUESSES] = {
    FC_NAME(ask_plane_3_1_1), FC_NAME(ask_plane_3_1_0), FC_NAME(ask_plane_2_1_0),
    FC_NAME(ask_plane_2_2_0), FC_NAME(ask_plane_3_2_1), FC_NAME(ask_plane_3_2_0),
};

/* Planes [first, stop), whose window is the one that a->window names. */
static void FC_NAME(avg_gradient_planes)(const fc_pooling *p, const fc_shared *a, ptrdiff_t first, ptrdiff_t stop,
                                         fc_sink *out, char *scratch)
{
    const ptrdiff_t count = p->oh * p->ow;
    for (ptrdiff_t i = 0; i < a->copy; i++) /* what is around the copies of rows */
        ((FC_T *)scratch)[i] = 0;
    for (; first < stop; first++)
        FC_NAME(ask_table)[a->window](p, a, (const FC_T *)p->x + first * count, (p->planes - first) * count, out, scratch);
}

#undef VEC
#undef IVEC
#undef LANES
#undef ASK_PLANE

#endif
