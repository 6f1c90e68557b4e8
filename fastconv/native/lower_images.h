/* Template of col2im; see lowering.h and each_vector.h. Only for full vectors. */

#if FC_BYTES == FC_VECTOR_BYTES

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define MASK FC_NAME(mask)
#define LANES ((ptrdiff_t)FC_LANES)

/* What a row of the image is the sum of. */
typedef struct {
    ptrdiff_t *start;       /* columns t*residues + e are sums of taps start[e] to start[e + 1] */
    ptrdiff_t *shift;       /* each is a cell of window t + shift, */
    ptrdiff_t *offset;      /* which lies `offset` elements behind cell 0 of window t */
    ptrdiff_t *last, *back; /* rows r of residue r + top modulo the stride: tap of their last windows, and those's row */
    const FC_T **row;       /* cell 0 of window 0, for each row of windows that a row of the image is in */
    ptrdiff_t from, until;  /* all taps of windows t to t + LANES - 1 are there, if from <= t and t + LANES <= until */
    const FC_T *begin, *end; /* what may be read */
} FC_NAME(sums);

static FC_NAME(sums) FC_NAME(lay_out_sums)(const fc_lowering *l, ptrdiff_t step, char *scratch)
{
    FC_NAME(sums) s;
    ptrdiff_t sorted = 0, low = 0, high = 0;
    const ptrdiff_t period = l->sw / fc_gcd(l->dw, l->sw);
    s.start = (ptrdiff_t *)scratch;
    s.shift = s.start + l->sw + 1;
    s.offset = s.shift + l->kw;
    s.last = s.offset + l->kw;
    s.back = s.last + l->sh;
    s.row = (const FC_T **)(s.back + l->sh);
    for (ptrdiff_t e = 0; e < l->sw; e++) {
        s.start[e] = sorted;
        for (ptrdiff_t j = fc_first_tap(e + l->left, l->sw, l->dw, l->kw); j < l->kw; j += period) {
            const ptrdiff_t shift = (e + l->left - j * l->dw) / l->sw;
            low = shift < low ? shift : low;
            high = shift > high ? shift : high;
            s.shift[sorted] = shift;
            s.offset[sorted++] = j * step + shift;
        }
    }
    s.start[l->sw] = sorted;
    s.from = -low;
    s.until = l->ow - high;
    fc_window_rows(l->kh, l->sh, l->dh, s.last, s.back);
    return s;
}

/* The rows of windows that row r of the image is in; `at` is where cell 0 of window row 0, tap row 0, lies. */
FC_INLINE ptrdiff_t FC_NAME(rows_over)(const fc_lowering *l, const FC_NAME(sums) *s, ptrdiff_t r, const FC_T *at,
                                       ptrdiff_t step_i, ptrdiff_t step_y)
{
    const ptrdiff_t residue = (r + l->top) % l->sh;
    ptrdiff_t y = (r + l->top) / l->sh + s->back[residue], rows = 0;
    for (ptrdiff_t i = s->last[residue]; i < l->kh && y >= 0; i += l->step_taps, y -= l->step_rows)
        if (y < l->oh)
            s->row[rows++] = at + i * step_i + y * step_y;
    return rows;
}

/* The sums for columns t*sw + e, (t + 1)*sw + e ... of the image. */
FC_INLINE void FC_NAME(sum_windows)(const int vectors, const int inner, const fc_lowering *l, const FC_NAME(sums) *s,
                                    ptrdiff_t rows, ptrdiff_t e, ptrdiff_t t, VEC *sum)
{
FC_UNROLL
    for (int v = 0; v < vectors; v++)
        sum[v] = (VEC){0};
    for (ptrdiff_t j = s->start[e]; j < s->start[e + 1]; j++) {
        const ptrdiff_t at = s->offset[j] + t, q = s->shift[j] + t;
        if (inner) {
            for (ptrdiff_t i = 0; i < rows; i++) {
                const FC_T *from = s->row[i] + at;
                if (l->ahead)
                    __builtin_prefetch((const char *)from + l->ahead, 0, 2);
FC_UNROLL
                for (int v = 0; v < vectors; v++)
                    sum[v] += FC_NAME(load)(from + v * LANES);
            }
        } else if (q + LANES > 0 && q < l->ow) {
            const MASK there = FC_NAME(between)((IVEC){0}, FC_NAME(count)() + (FC_INT)q, FC_NAME(iall)((FC_INT)l->ow));
            for (ptrdiff_t i = 0; i < rows; i++) {
                const FC_T *from = s->row[i] + at;
                if (l->ahead)
                    __builtin_prefetch((const char *)from + l->ahead, 0, 2);
                sum[0] += FC_NAME(load_where)(there, from, s->begin, s->end);
            }
        }
    }
}

/* A row of the image: the sum of the `rows` rows of windows in s->row. `room` elements may be written. */
static void FC_NAME(sum_row)(const fc_lowering *l, const FC_NAME(sums) *s, ptrdiff_t rows, FC_T *to, ptrdiff_t room)
{
    VEC sum[4], odd;
    if (l->sw == 1) {
        for (ptrdiff_t c = 0; c < l->w;) {
            if (c >= s->from && c + 4 * LANES <= s->until && c + 4 * LANES <= room) {
                FC_NAME(sum_windows)(4, 1, l, s, rows, 0, c, sum);
FC_UNROLL
                for (int v = 0; v < 4; v++)
                    FC_NAME(store)(to + c + v * LANES, sum[v]);
                c += 4 * LANES;
                continue;
            }
            if (c >= s->from && c + LANES <= s->until)
                FC_NAME(sum_windows)(1, 1, l, s, rows, 0, c, sum);
            else
                FC_NAME(sum_windows)(1, 0, l, s, rows, 0, c, sum);
            FC_NAME(put)(to + c, sum[0], l->w - c, room - c);
            c += LANES;
        }
    } else if (l->sw == 2) {
        for (ptrdiff_t c = 0; c < l->w; c += 2 * LANES) {
            const ptrdiff_t t = c / 2;
            if (t >= s->from && t + LANES <= s->until) {
                FC_NAME(sum_windows)(1, 1, l, s, rows, 0, t, sum);
                FC_NAME(sum_windows)(1, 1, l, s, rows, 1, t, &odd);
            } else {
                FC_NAME(sum_windows)(1, 0, l, s, rows, 0, t, sum);
                FC_NAME(sum_windows)(1, 0, l, s, rows, 1, t, &odd);
            }
            FC_NAME(put)(to + c, FC_NAME(lows)(sum[0], odd), l->w - c, room - c);
            FC_NAME(put)(to + c + LANES, FC_NAME(highs)(sum[0], odd), l->w - c - LANES, room - c - LANES);
        }
    } else {
        for (ptrdiff_t e = 0; e < l->sw && e < l->w; e++) {
            const ptrdiff_t steps = (l->w - e + l->sw - 1) / l->sw;
            for (ptrdiff_t t = 0; t < steps; t += LANES) {
                FC_T lane[FC_LANES];
                FC_NAME(sum_windows)(1, 0, l, s, rows, e, t, sum);
                FC_NAME(store)(lane, sum[0]);
                FC_ELEMENT(to_every)(to + t * l->sw + e, l->sw, lane, steps - t < LANES ? steps - t : LANES);
            }
        }
    }
}

/* Planes of the image, [first, stop). */
static void FC_NAME(col2im_columns)(const fc_lowering *l, const FC_T *col, ptrdiff_t first, ptrdiff_t stop, fc_sink *out,
                                    char *scratch)
{
    const ptrdiff_t places = l->oh * l->ow, taps = l->kh * l->kw, size = (ptrdiff_t)sizeof(FC_T);
    FC_NAME(sums) s = FC_NAME(lay_out_sums)(l, places, scratch);
    s.begin = col;
    s.end = col + l->n * l->c * taps * places;
    for (; first < stop; first++)
        for (ptrdiff_t r = 0; r < l->h; r++) {
            const ptrdiff_t rows = FC_NAME(rows_over)(l, &s, r, col + first * taps * places, l->kw * places, l->ow);
            FC_NAME(sum_row)(l, &s, rows, (FC_T *)out->at, (out->end - out->at) / size);
            fc_written(out, l->w * size);
        }
}

/* Add `v` to the first `count` elements at `to`, or with `fresh` store it there. The others stay as they are; `room` elements
 * are this thread's. */
FC_INLINE void FC_NAME(put_turned)(FC_T *to, VEC v, ptrdiff_t count, ptrdiff_t room, int fresh, ptrdiff_t next)
{
    if (fresh)
        __builtin_prefetch(to + next, 1);
    if (FC_LIKELY(count >= LANES)) {
        FC_NAME(store)(to, fresh ? v : FC_NAME(load)(to) + v);
        return;
    }
    if (count <= 0)
        return;
#if !defined(__AVX512F__)
    if (FC_LIKELY(room >= LANES)) { /* parts of vectors are slow */
        const VEC old = FC_NAME(load)(to);
        FC_NAME(store)(to, FC_NAME(pick)(FC_NAME(first)(count), fresh ? v : old + v, old));
        return;
    }
#endif
    FC_NAME(store_part)(to, fresh ? v : FC_NAME(load_part)(to, count) + v, count);
}

/* The sums of `taps` cells of windows t, t + 1 ..., which lie at from + offset[j]. */
FC_INLINE void FC_NAME(sum_turned)(const int vectors, ptrdiff_t taps, const ptrdiff_t *offset, const FC_T *from, VEC *sum)
{
FC_UNROLL
    for (int v = 0; v < vectors; v++)
        sum[v] = (VEC){0};
    if (taps == 3) { /* the most common windows, in one go */
FC_UNROLL
        for (int v = 0; v < vectors; v++)
            sum[v] = FC_NAME(load)(from + offset[0] + v * LANES) + FC_NAME(load)(from + offset[1] + v * LANES) +
                     FC_NAME(load)(from + offset[2] + v * LANES);
        return;
    }
    for (ptrdiff_t j = 0; j < taps; j++) {
FC_UNROLL
        for (int v = 0; v < vectors; v++)
            sum[v] += FC_NAME(load)(from + offset[j] + v * LANES);
    }
}

/* Add to a row of the image what one row of taps of one row of windows has for it, or with `fresh` store it there. */
FC_INLINE void FC_NAME(add_turned)(const fc_lowering *l, const FC_NAME(sums) *s, const FC_T *from, FC_T *to, ptrdiff_t room,
                                int fresh)
{
    const ptrdiff_t next = l->sh * l->w; /* where the next row begins that nothing was added to yet */
    VEC sum[2], odd;
    if (l->sw == 1) {
        ptrdiff_t c = 0;
        for (; c + LANES < l->w; c += 2 * LANES) {
            FC_NAME(sum_turned)(2, l->kw, s->offset, from + c, sum);
            FC_NAME(put_turned)(to + c, sum[0], LANES, LANES, fresh, next);
            FC_NAME(put_turned)(to + c + LANES, sum[1], l->w - c - LANES, room - c - LANES, fresh, next);
        }
        if (c < l->w) {
            FC_NAME(sum_turned)(1, l->kw, s->offset, from + c, sum);
            FC_NAME(put_turned)(to + c, sum[0], l->w - c, room - c, fresh, next);
        }
    } else if (l->sw == 2) {
        for (ptrdiff_t c = 0; c < l->w; c += 2 * LANES) {
            FC_NAME(sum_turned)(1, s->start[1], s->offset, from + c / 2, sum);
            FC_NAME(sum_turned)(1, s->start[2] - s->start[1], s->offset + s->start[1], from + c / 2, &odd);
            FC_NAME(put_turned)(to + c, FC_NAME(lows)(sum[0], odd), l->w - c, room - c, fresh, next);
            FC_NAME(put_turned)(to + c + LANES, FC_NAME(highs)(sum[0], odd), l->w - c - LANES, room - c - LANES, fresh, next);
        }
    } else {
        for (ptrdiff_t e = 0; e < l->sw && e < l->w; e++) {
            const ptrdiff_t steps = (l->w - e + l->sw - 1) / l->sw, taps = s->start[e + 1] - s->start[e];
            for (ptrdiff_t t = 0; t < steps && (taps || fresh); t += LANES) {
                const ptrdiff_t count = steps - t < LANES ? steps - t : LANES;
                FC_T lane[FC_LANES], *at = to + t * l->sw + e;
                FC_NAME(sum_turned)(1, taps, s->offset + s->start[e], from + t, sum);
                FC_NAME(store)(lane, sum[0]);
                if (fresh)
                    FC_ELEMENT(to_every)(at, l->sw, lane, count);
                else
                    for (ptrdiff_t k = 0; k < count; k++)
                        at[k * l->sw] += lane[k];
            }
        }
    }
}

/* Blocks of channels of all images, [first, stop). A row of windows is turned, a block of channels at a time, zeros around it
 * standing for windows that are not there, and added to the rows of the image that it lies over: the image stays in the
 * second-level cache meanwhile, and the matrix is read in the order of memory as far as that allows. */
static void FC_NAME(col2im_rows)(const fc_lowering *l, const FC_T *col, FC_T *out, ptrdiff_t first, ptrdiff_t stop,
                                 char *scratch)
{
    const ptrdiff_t taps = l->kh * l->kw, width = l->c * taps, blocks = (l->c + l->channels - 1) / l->channels;
    const ptrdiff_t most = l->channels * taps, plane = l->h * l->w, size = (ptrdiff_t)sizeof(FC_T);
    const FC_NAME(sums) s = FC_NAME(lay_out_sums)(l, l->line, scratch);
    const FC_T **const from = s.row + l->kh; /* the windows of a row, and more of zeros up to a whole tile */
    FC_T *const zeros = (FC_T *)fc_line_from(from + l->turned), *const turned = zeros + fc_round_up(most, LANES);
    FC_T *const row = turned + l->margin; /* window 0 */
    memset(zeros, 0, (size_t)(turned + most * l->line + l->slack - zeros) * sizeof(FC_T));
    for (ptrdiff_t q = l->ow; q < l->turned; q++)
        from[q] = zeros;
    for (ptrdiff_t until; first < stop; first = until) {
        const ptrdiff_t n = first / blocks, b0 = first % blocks;
        until = fc_min(fc_min(stop, (n + 1) * blocks), first + l->together);
        const ptrdiff_t b1 = b0 + until - first;
        FC_T *const image = out + (n * l->c + b0 * l->channels) * plane;
        FC_T *const end = out + (n * l->c + fc_min(b1 * l->channels, l->c)) * plane;
        for (ptrdiff_t r = 0; r < l->h; r++) {
            const ptrdiff_t residue = (r + l->top) % l->sh, y = (r + l->top) / l->sh + s.back[residue];
            const ptrdiff_t past = y < l->oh ? 0 : (y - l->oh) / l->step_rows + 1; /* rows of windows that are not there */
            if (s.last[residue] + past * l->step_taps >= l->kh || y - past * l->step_rows < 0)
                for (FC_T *at = image + r * l->w; at < end; at += plane)
                    memset(at, 0, (size_t)(l->w * size));
        }
        for (ptrdiff_t y = 0; y < l->oh; y++)
            for (ptrdiff_t b = b0; b < b1; b++) {
                const ptrdiff_t c0 = b * l->channels, channels = fc_min(l->c - c0, l->channels);
                const FC_T *const cells = col + (n * l->oh + y) * l->ow * width + c0 * taps;
                for (ptrdiff_t q = 0; q < l->ow; q++)
                    from[q] = cells + q * width;
                /* next come those of the next block, or of the first one in the next row of windows */
                const ptrdiff_t ahead = b + 1 < b1 ? most : l->ow * width - (b - b0) * most;
                for (ptrdiff_t q = 0; q < l->turned; q += l->side)
                    FC_ELEMENT(transpose)(row + q, l->line, from + q, 0, l->side, channels * taps,
                                          l->ahead ? ahead * size : 0, 0);
                for (ptrdiff_t i = 0; i < l->kh; i++) {
                    const ptrdiff_t r = y * l->sh + i * l->dh - l->top;
                    if (r < 0 || r >= l->h)
                        continue;
                    const int fresh = y < l->step_rows || i + l->step_taps >= l->kh;
                    FC_T *to = out + (n * l->c + c0) * plane + r * l->w;
                    const FC_T *sees = row + i * l->kw * l->line;
                    if (fresh)
                        for (ptrdiff_t c = 0; c < channels; c++, to += plane, sees += taps * l->line)
                            FC_NAME(add_turned)(l, &s, sees, to, end - to, 1);
                    else
                        for (ptrdiff_t c = 0; c < channels; c++, to += plane, sees += taps * l->line)
                            FC_NAME(add_turned)(l, &s, sees, to, end - to, 0);
                }
            }
    }
}

/* Rows of the image, [first, stop) of those of all channels, of all images: added up turned, as the columns are. */
static void FC_NAME(col2im_cs231n)(const fc_lowering *l, const FC_T *col, FC_T *out, ptrdiff_t first, ptrdiff_t stop,
                                   char *scratch)
{
    const ptrdiff_t places = l->oh * l->ow, padded = l->residues * l->line;
    const FC_T **const from = (const FC_T **)scratch;
    FC_T *const turned = (FC_T *)(from + padded), *const rows = turned + l->images * padded;
    for (; first < stop; first++) {
        const ptrdiff_t c = first / l->h, r = first % l->h;
        for (ptrdiff_t n0 = 0; n0 < l->n; n0 += l->images) {
            const ptrdiff_t images = l->n - n0 < l->images ? l->n - n0 : l->images;
            memset(turned, 0, (size_t)(padded * images) * sizeof(FC_T));
            for (ptrdiff_t i = 0; i < l->kh; i++) {
                const ptrdiff_t v = r + l->top - i * l->dh, y = v / l->sh;
                if (v < 0 || y * l->sh != v || y >= l->oh)
                    continue;
                for (ptrdiff_t j = 0; j < l->kw; j++) {
                    const FC_T *cells = col + (((c * l->kh + i) * l->kw + j) * places + y * l->ow) * l->n + n0;
                    FC_T *to = turned + (j * l->dw % l->sw * l->line + j * l->dw / l->sw) * images;
                    if (images == l->n)
                        FC_NAME(add)(to, cells, l->ow * images);
                    else
                        for (ptrdiff_t q = 0; q < l->ow; q++)
                            FC_NAME(add)(to + q * images, cells + q * l->n, images);
                }
            }
            FC_T *const image = out + ((n0 * l->c + c) * l->h + r) * l->w;
            const ptrdiff_t step = l->c * l->h * l->w;
            for (ptrdiff_t u = 0; u < padded; u++)
                from[u] = turned + u * images;
            if (l->sw == 1) {
                FC_ELEMENT(transpose)(image, step, from + l->left, 0, l->w, images, 0, 0);
                continue;
            }
            FC_ELEMENT(transpose)(rows, padded, from, 0, padded, images, 0, 0);
            for (ptrdiff_t e = 0; e < l->sw; e++) {
                const ptrdiff_t t = l->left > e ? (l->left - e + l->sw - 1) / l->sw : 0, start = t * l->sw + e - l->left;
                const ptrdiff_t count = start < l->w ? (l->w - start + l->sw - 1) / l->sw : 0;
                for (ptrdiff_t n = 0; n < images; n++)
                    if (e < l->residues)
                        FC_ELEMENT(to_every)(image + n * step + start, l->sw, rows + n * padded + e * l->line + t, count);
                    else /* columns of no window */
                        for (ptrdiff_t k = 0; k < count; k++)
                            image[n * step + start + k * l->sw] = 0;
            }
        }
    }
}

#undef VEC
#undef IVEC
#undef MASK
#undef LANES

#endif
