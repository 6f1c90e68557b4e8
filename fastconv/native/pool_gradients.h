/* Template of the gradients of poolings; see pooling.h and each_vector.h. Only for full vectors.
 *
 * Neither scatters where it can be helped. Average: each row of the output gradient is divided and spread along its
 * windows' columns once, and a row of the input gradient is the sum of the spread rows of the windows it is in. Maximum:
 * the indices do not say which windows they come from, but where they could come from a common one (2x2 or 3x3, stride 1 or
 * 2), each cell of the input gradient asks the few windows it would be in whether they chose it (3x3/2 here, the others in
 * pool_shifts.h). Those that did are counted; where some are missing, the windows were others, and the plane is done again by
 * scattering. Only the plane itself
 * decides that, so that the order of additions does not depend on threads. */

#if FC_BYTES == FC_VECTOR_BYTES

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define MASK FC_NAME(mask)
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

/* --- maximum ---------------------------------------------------------------------------------------------------- */

/* One plane, whatever its indices. */
static void FC_NAME(scatter)(const FC_T *dout, const int64_t *indices, ptrdiff_t count, FC_T *dx, ptrdiff_t cells)
{
    enum { AT_ONCE = (1 << 18) / sizeof(FC_T), AHEAD = 4096 / sizeof(FC_T) };
    ptrdiff_t zeros = 0, i = 0;
    if (cells <= AT_ONCE) {
        memset(dx, 0, (size_t)cells * sizeof(FC_T));
        for (; i + 4 <= count; i += 4) { /* addresses first: they do not wait for the additions */
            FC_T *const a = dx + indices[i], *const b = dx + indices[i + 1];
            FC_T *const c = dx + indices[i + 2], *const d = dx + indices[i + 3];
            *a += dout[i];
            *b += dout[i + 1];
            *c += dout[i + 2];
            *d += dout[i + 3];
        }
        for (; i < count; i++)
            dx[indices[i]] += dout[i];
        return;
    }
    for (; i < count; i++) { /* zeros just ahead, so that they need not come back from memory */
        const ptrdiff_t at = (ptrdiff_t)indices[i];
        if (FC_UNLIKELY(at >= zeros)) {
            const ptrdiff_t stop = at + AHEAD < cells ? at + AHEAD : cells;
            memset(dx + zeros, 0, (size_t)(stop - zeros) * sizeof(FC_T));
            zeros = stop;
        }
        dx[at] += dout[i];
    }
    memset(dx + zeros, 0, (size_t)(cells - zeros) * sizeof(FC_T));
}

/* Nothing: what a window that is none chose, and a cell that is none. No index and no cell of a row has these values. */
#define NO_CHOICE (sizeof(FC_INT) == 4 ? (FC_INT)INT32_MIN : (FC_INT)INT64_MIN)
#define NO_CELL (NO_CHOICE + 1)

/* What LANES windows of a row chose, and their gradients. Windows from `count` on have chosen nothing, and so have those
 * whose index is none of the plane's `cells`; `readable` elements lie in the arrays from here on. */
FC_INLINE void FC_NAME(load_chosen)(const int64_t *indices, const FC_T *dout, ptrdiff_t cells, ptrdiff_t count,
                                    ptrdiff_t readable, IVEC *index, VEC *gradient)
{
    int64_t places[FC_LANES];
    FC_T shares[FC_LANES];
    if (FC_UNLIKELY(readable < LANES)) {
        for (ptrdiff_t l = 0; l < LANES; l++) {
            places[l] = l < readable ? indices[l] : 0;
            shares[l] = l < readable ? dout[l] : 0;
        }
        indices = places;
        dout = shares;
    }
    *gradient = FC_NAME(load)(dout);
#if FC_LANES * 8 == FC_BYTES
    *index = (IVEC)FC_NAME(load)((const FC_T *)indices);
#else
    VEC a = FC_NAME(load)((const FC_T *)indices), b = FC_NAME(load)((const FC_T *)(indices + LANES / 2));
    FC_HOLD(a);
    FC_HOLD(b);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    const IVEC low = (IVEC)FC_NAME(odds)(a, b), high = (IVEC)FC_NAME(evens)(a, b);
#else
    const IVEC low = (IVEC)FC_NAME(evens)(a, b), high = (IVEC)FC_NAME(odds)(a, b);
#endif
    *index = low | (high != 0); /* what does not fit is negative */
#endif
    MASK chosen = FC_NAME(between)((IVEC){0}, *index, FC_NAME(iall)((FC_INT)cells));
    if (count < LANES)
        chosen &= FC_NAME(between)((IVEC){0}, FC_NAME(count)(), FC_NAME(iall)((FC_INT)count));
    *index = FC_NAME(ipick)(chosen, *index, FC_NAME(iall)(NO_CHOICE));
}

/* The shares of LANES windows of a row of an average; windows from `count` on have none. */
FC_INLINE VEC FC_NAME(load_shares)(const FC_T *dout, const FC_T *divisors, ptrdiff_t count, ptrdiff_t readable)
{
    const VEC v = FC_LIKELY(readable >= LANES) ? FC_NAME(load)(dout) : FC_NAME(load_part)(dout, readable);
    const VEC share = v / FC_NAME(load)(divisors);
    if (count >= LANES)
        return share;
    return FC_NAME(pick)(FC_NAME(between)((IVEC){0}, FC_NAME(count)(), FC_NAME(iall)((FC_INT)count)), share, (VEC){0});
}

/* The gradients of the windows that chose `cell`, which are counted; of an average, all of them. */
FC_INLINE VEC FC_NAME(ask)(const int what, IVEC index, VEC gradient, IVEC cell, IVEC *found)
{
    if (what == FC_POOL_SUM)
        return gradient;
    const MASK chosen = FC_NAME(same)(index, cell);
    *found = FC_NAME(tally)(*found, chosen);
    return FC_NAME(pick)(chosen, gradient, (VEC){0});
}

/* The next rows of windows of one plane, with what is to be found about a strip of LANES*s columns of the image. */
typedef struct {
    const FC_T *gradient;     /* of the first of the rows, at window 0 */
    const FC_INT *index;      /* what they chose, with windows around the rows that chose nothing */
    ptrdiff_t pitch;          /* from row to row */
    ptrdiff_t readable;       /* elements of gradient that are there (k == s) */
    ptrdiff_t y, rows, column;
    FC_T *to;                 /* the first row of cells, which may be above the image */
    ptrdiff_t room;           /* elements that may be written from there on */
    FC_T *waiting;            /* s vectors for each of k - s rows of cells that following windows are in, too */
    FC_INT *found;
    const char *ahead, *ahead_indices; /* what to prefetch next of gradients and indices, in the order of memory */
} FC_NAME(asking);

/* The cells of a strip ask the windows that they are in.
 *
 * A row of windows is in `k` rows of cells. The first `s` of them are then complete, the others wait for the next row. With
 * stride 2, column 2t is cell 0 of window t and cell 2 of the one before, column 2t + 1 is cell 1; with padding, column 2t
 * is cell 1 of window t, 2t + 1 is its cell 2 and cell 0 of the one after. */
FC_INLINE void FC_NAME(ask_strip)(const int what, const int k, const int s, const int pad, const fc_pooling *p,
                                  FC_NAME(asking) *a)
{
    const ptrdiff_t w = p->w, h = p->h, c = a->column, pitch = a->pitch, windows = p->ow - c / s;
    const int wide = k - s; /* windows that a column asks beside the first one */
    const FC_INT step = (FC_INT)w;
    const IVEC lane = FC_NAME(count)();
    const ptrdiff_t beside = c / s + (s == 1 ? pad + 1 - k : pad == 0 && k == 3 ? -1 : 0); /* the first window to ask */
    const FC_T *gradient = a->gradient + beside;
    const FC_INT *index = a->index + beside;
    const int32_t *divisor = what == FC_POOL_SUM ? p->divisor + a->y : NULL;
    ptrdiff_t readable = a->readable - beside, r = a->y * s - pad, room = a->room - c;
    FC_T *to = a->to + c;
    const char *ahead = a->ahead, *ahead_indices = a->ahead_indices;
    IVEC cell[2], found[3];
    VEC sum[3][2];
FC_UNROLL
    for (int e = 0; e < s; e++) { /* no window may be found that chose a cell of the next row */
        const IVEC column = lane * s + (FC_INT)(c + e);
        cell[e] = FC_NAME(ipick)(FC_NAME(between)((IVEC){0}, column, FC_NAME(iall)(step)), column + (FC_INT)(r * w),
                                 FC_NAME(iall)(NO_CELL));
FC_UNROLL
        for (int i = 0; i < k - s; i++)
            sum[i][e] = FC_NAME(load)(a->waiting + (i * s + e) * LANES);
    }
FC_UNROLL
    for (int i = 0; i < k; i++) /* a count for each row of cells, because each addition waits for the one before */
        found[i] = FC_NAME(iload)(a->found + i * LANES);
    for (ptrdiff_t y = a->rows; y > 0; y--) {
        IVEC chosen[3];
        VEC cells[3];
        if (p->streams) {
            __builtin_prefetch(ahead);
            ahead += FC_BYTES;
            if (what == FC_POOL_PLACE) {
FC_UNROLL
                for (int i = 0; i < (FC_LANES * 8 + 63) / 64; i++)
                    __builtin_prefetch(ahead_indices + 64 * i);
                ahead_indices += FC_LANES * 8;
            }
        }
        if (k > s) {
FC_UNROLL
            for (int i = 0; i <= wide; i++) {
                chosen[i] = what == FC_POOL_PLACE ? FC_NAME(iload)(index + i) : (IVEC){0};
                cells[i] = FC_NAME(load)(gradient + i);
                FC_HOLD(chosen[i]);
                FC_HOLD(cells[i]);
            }
            index += pitch;
        } else {
            chosen[0] = (IVEC){0};
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
                const IVEC at = cell[e] + (FC_INT)i * step;
                const int from = s == 2 && k == 3 && e == 1 && pad == 0, to_ = s == 2 && (e == 0) == (pad == 1) ? from : wide;
                VEC row = FC_NAME(ask)(what, chosen[from], cells[from], at, &found[i]);
FC_UNROLL
                for (int j = from + 1; j <= to_; j++)
                    row += FC_NAME(ask)(what, chosen[j], cells[j], at, &found[i]);
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
        for (int e = 0; e < s; e++) {
            cell[e] += (FC_INT)s * step;
FC_UNROLL
            for (int i = 0; i < k - s; i++)
                sum[i][e] = sum[i + s][e];
        }
    }
FC_UNROLL
    for (int i = 0; i < k; i++)
        FC_NAME(store)((FC_T *)(a->found + i * LANES), (VEC)found[i]);
FC_UNROLL
    for (int i = 0; i < k - s; i++)
FC_UNROLL
        for (int e = 0; e < s; e++)
            FC_NAME(store)(a->waiting + (i * s + e) * LANES, sum[i][e]);
    a->ahead = ahead;
    a->ahead_indices = ahead_indices;
}

/* One plane, if its windows are k x k with stride s and padding `pad` above and to the left; returns whether they are.
 * `readable` elements of dout and indices are there, beginning with this plane. */
FC_INLINE int FC_NAME(ask_plane)(const int what, const int k, const int s, const int pad, const fc_pooling *pooling,
                                 const fc_chosen *a, const FC_T *dout, const int64_t *indices, ptrdiff_t readable,
                                 fc_sink *out, char *scratch)
{
    enum { GUARD = 2 };
    const fc_pooling here = *pooling, *const p = &here; /* a copy that no store can change */
    const ptrdiff_t w = p->w, ow = p->ow, block = s * LANES, size = (ptrdiff_t)sizeof(FC_T);
    const ptrdiff_t strips = (w + block - 1) / block, pitch = ow + GUARD, held = (k - s) * block;
    FC_T *const gradients = (FC_T *)scratch + GUARD;
    FC_INT *const choices = (FC_INT *)((FC_T *)scratch + a->copy) + GUARD;
    FC_T *const waiting = (FC_T *)scratch + 2 * a->copy;
    FC_INT found[3 * FC_LANES];
    int64_t total = 0;
    memset(found, 0, sizeof found);
    if (k > s)
        memset(waiting, 0, (size_t)(strips * held * size));
    for (ptrdiff_t y = 0; y < p->oh; y += a->band) {
        const ptrdiff_t rows = p->oh - y < a->band ? p->oh - y : a->band, r = y * s - pad;
        const ptrdiff_t start = r < 0 ? 0 : r, stop = r + s * rows < p->h ? r + s * rows : p->h; /* to be completed */
        FC_NAME(asking) asking = {.gradient = dout + y * ow,
                                  .index = choices,
                                  .pitch = ow,
                                  .readable = readable - y * ow,
                                  .y = y,
                                  .rows = rows,
                                  .to = (FC_T *)out->at - (start - r) * w,
                                  .room = (out->end - out->at) / size + (start - r) * w,
                                  .found = found,
                                  .ahead = (const char *)(dout + (y + rows) * ow)};
        if (what == FC_POOL_PLACE)
            asking.ahead_indices = (const char *)(indices + (y + rows) * ow);
        if (k > s) {
            for (ptrdiff_t i = 0; i < rows; i++)
                for (ptrdiff_t q = 0; q < ow; q += LANES) {
                    const ptrdiff_t from = (y + i) * ow + q, to = i * pitch + q;
                    VEC cells;
                    if (what == FC_POOL_PLACE) {
                        IVEC chosen;
                        FC_NAME(load_chosen)(indices + from, dout + from, p->h * w, ow - q, readable - from, &chosen,
                                             &cells);
                        FC_NAME(store)((FC_T *)(choices + to), (VEC)chosen);
                    } else {
                        cells = FC_NAME(load_shares)(
                            dout + from, (const FC_T *)p->divisors + p->divisor[y + i] * p->divisor_step + q, ow - q,
                            readable - from);
                    }
                    FC_NAME(store)(gradients + to, cells);
                    if (q + LANES >= ow) /* behind the row */
                        for (int g = 0; g < GUARD; g++) {
                            choices[i * pitch + ow + g] = NO_CHOICE;
                            gradients[i * pitch + ow + g] = 0;
                        }
                }
            asking.gradient = gradients;
            asking.pitch = pitch;
        }
        for (ptrdiff_t i = strips; i-- > 0;) { /* from the right: stores may reach to where the next strips will write */
            asking.column = i * block;
            asking.waiting = waiting + i * held;
            FC_NAME(ask_strip)(what, k, s, pad, p, &asking);
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
    for (int l = 0; l < k * FC_LANES; l++)
        total += found[l];
    return total == p->oh * ow;
}

#define ASK_PLANE(WHAT, K, S, P)                                                                                      \
    __attribute__((noinline)) static int FC_NAME(ask_plane_##WHAT##_##K##_##S##_##P)(                                 \
        const fc_pooling *p, const fc_chosen *a, const FC_T *dout, const int64_t *indices, ptrdiff_t readable,        \
        fc_sink *out, char *scratch)                                                                                  \
    {                                                                                                                 \
        return FC_NAME(ask_plane)(FC_POOL_##WHAT, K, S, P, p, a, dout, indices, readable, out, scratch);              \
    }
ASK_PLANE(SUM, 3, 1, 1)
ASK_PLANE(SUM, 3, 1, 0)
ASK_PLANE(SUM, 2, 1, 0)
ASK_PLANE(SUM, 2, 2, 0)
ASK_PLANE(SUM, 3, 2, 1)
ASK_PLANE(SUM, 3, 2, 0)
ASK_PLANE(PLACE, 3, 2, 1)
ASK_PLANE(PLACE, 3, 2, 0)

typedef int (*FC_NAME(ask_fn))(const fc_pooling *, const fc_chosen *, const FC_T *, const int64_t *, ptrdiff_t, fc_sink *,
                               char *);

/* In the order of fc_guesses. */
static const FC_NAME(ask_fn) FC_NAME(ask_table)[FC_GUESSES] = {
    FC_NAME(ask_plane_SUM_3_1_1), FC_NAME(ask_plane_SUM_3_1_0), FC_NAME(ask_plane_SUM_2_1_0),
    FC_NAME(ask_plane_SUM_2_2_0), FC_NAME(ask_plane_SUM_3_2_1), FC_NAME(ask_plane_SUM_3_2_0),
};

/* What is around the copies of rows. */
static void FC_NAME(clear_copies)(const fc_chosen *a, char *scratch)
{
    for (ptrdiff_t i = 0; i < a->copy; i++) {
        ((FC_T *)scratch)[i] = 0;
        ((FC_INT *)((FC_T *)scratch + a->copy))[i] = NO_CHOICE;
    }
}

/* Planes [first, stop) of an average's gradient, whose window is the one that a->guesses has. */
static void FC_NAME(avg_gradient_planes)(const fc_pooling *p, const fc_chosen *a, ptrdiff_t first, ptrdiff_t stop,
                                         fc_sink *out, char *scratch)
{
    const int guess = __builtin_ctz((unsigned)a->guesses);
    const ptrdiff_t count = p->oh * p->ow;
    FC_NAME(clear_copies)(a, scratch);
    for (; first < stop; first++)
        FC_NAME(ask_table)[guess](p, a, (const FC_T *)p->x + first * count, NULL, (p->planes - first) * count, out,
                                     scratch);
}

/* `planes` planes by the windows that fc_guess named; returns whether it was right. */
static int FC_NAME(try_guess)(int guess, const fc_pooling *p, const fc_chosen *a, ptrdiff_t planes, const FC_T *dout,
                              const int64_t *indices, ptrdiff_t readable, fc_sink *out, char *scratch)
{
    const int k = fc_guesses[guess].k;
    if (fc_guesses[guess].s == 1)
        return k == 3 ? FC_NAME(shift_planes_3)(p, a, planes, dout, indices, readable, out, scratch)
                      : FC_NAME(shift_planes_2)(p, a, planes, dout, indices, readable, out, scratch);
    if (k == 2)
        return FC_NAME(pair_plane)(p, dout, indices, readable, out);
    return (fc_guesses[guess].pad ? FC_NAME(ask_plane_PLACE_3_2_1) : FC_NAME(ask_plane_PLACE_3_2_0))(
        p, a, dout, indices, readable, out, scratch);
}

/* Planes [first, stop). `out` is a sink for all of them, dx the result's first plane. Returns 0 where an index lies
 * outside its plane; then the planes from there on are not written. */
static int FC_NAME(max_gradient)(const fc_pooling *p, const fc_chosen *a, const int64_t *indices, FC_T *dx,
                                 ptrdiff_t first, ptrdiff_t stop, fc_sink *out, char *scratch, ptrdiff_t capacity)
{
    const ptrdiff_t cells = p->h * p->w, count = p->oh * p->ow;
    if (a->guesses)
        FC_NAME(clear_copies)(a, scratch);
    char *const buffer = out->to ? out->buffer - (uintptr_t)out->buffer % FC_LINE : NULL;
    ptrdiff_t alone = first; /* planes before this one are not tried together with others */
    while (first < stop) {
        const FC_T *const dout = (const FC_T *)p->x + first * count;
        const int64_t *const chosen = indices + first * count;
        const int guess = a->guesses ? fc_guess(a, p, chosen) : -1;
        ptrdiff_t planes = 1;
        if (guess >= 0) {
            if (fc_guesses[guess].s == 1 && first >= alone)
                planes = fc_min(a->planes, stop - first);
            if (FC_NAME(try_guess)(guess, p, a, planes, dout, chosen, (p->planes - first) * count, out, scratch)) {
                first += planes;
                continue;
            }
            alone = first + planes;
        }
        fc_sink_close(out); /* what was written is written again */
        FC_T *const plane = dx + first * cells;
        const ptrdiff_t done = planes == 1;
        if (done) {
            if (!fc_all_inside(chosen, count, cells))
                return 0;
            FC_NAME(scatter)(dout, chosen, count, plane, cells);
        }
        first += done;
        *out = fc_sink_to(plane + done * cells, (stop - first) * cells * (ptrdiff_t)sizeof(FC_T), buffer, capacity);
    }
    return 1;
}

#undef NO_CHOICE
#undef NO_CELL
#undef VEC
#undef IVEC
#undef MASK
#undef LANES
#undef ASK_PLANE

#endif
