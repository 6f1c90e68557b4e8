/* Template of im2col for elements of one size; see lowering.h, which sets FC_T and FC_ELEMENT(name). */

/* What one tap sees in a row of the image, to[q] = row[start + q*sw] for q in [first, stop), and `pad` before and behind.
 * `room` bytes may be written, `there` elements read from row[0] on. */
FC_INLINE void FC_ELEMENT(lower_row)(const fc_lowering *l, FC_T *to, ptrdiff_t room, const FC_T *row, ptrdiff_t there,
                                     ptrdiff_t start, ptrdiff_t first, ptrdiff_t stop, FC_T pad)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T);
    for (ptrdiff_t q = 0; q < first; q++)
        to[q] = pad;
    if (l->sw == 1)
        fc_copy((char *)(to + first), (const char *)(row + start + first), (stop - first) * size, room - first * size,
                (there - start - first) * size);
    else if (l->sw != 2 || !FC_ELEMENT(every_second)(to + first, row + start + 2 * first, stop - first, room / size - first,
                                                     there - start - 2 * first))
        FC_ELEMENT(every)(to + first, row + start + first * l->sw, l->sw, stop - first);
    for (ptrdiff_t q = stop; q < l->ow; q++)
        to[q] = pad;
}

/* Where taps see the image: for row i of the window the output rows range[2*i] to range[2*i + 1], then for its columns. */
static void FC_ELEMENT(lower_ranges)(const fc_lowering *l, ptrdiff_t *range)
{
    for (ptrdiff_t i = 0; i < l->kh; i++, range += 2)
        fc_inside(l->h, i * l->dh - l->top, l->sh, l->oh, range, range + 1);
    for (ptrdiff_t j = 0; j < l->kw; j++, range += 2)
        fc_inside(l->w, j * l->dw - l->left, l->sw, l->ow, range, range + 1);
}

/* Rows r of the column matrices of all images, [first, stop). */
static void FC_ELEMENT(im2col_columns)(const fc_lowering *l, FC_T pad, ptrdiff_t first, ptrdiff_t stop, fc_sink *out,
                                       char *scratch)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), taps = l->kh * l->kw, ow = l->ow;
    const ptrdiff_t many = FC_SINK_BYTES / (ow * size) > 1 ? FC_SINK_BYTES / (ow * size) : 1;
    ptrdiff_t *const range = (ptrdiff_t *)scratch;
    FC_ELEMENT(lower_ranges)(l, range);
    /* All taps look at a plane, the first ones of them by fits and starts: rows beside rows that are left out. So what a plane
     * will be read from is the second-level cache, to which it comes in the order of memory while the one before is dealt
     * with: this much of it with each row of windows. */
    enum { PLANE_BYTES = 1 << 18 };
    const ptrdiff_t plane = l->h * l->w * size, part = (plane + taps * l->oh - 1) / (taps * l->oh);
    const ptrdiff_t share = l->ahead && plane <= PLANE_BYTES && part >= FC_LINE && l->step_h == l->w ? part : 0;
    ptrdiff_t j = first % l->kw, i = first / l->kw % l->kh, c = first / taps % l->c, n = first / taps / l->c;
    for (; first < stop; first++) {
        const ptrdiff_t origin = n * l->step_n + c * l->step_c, start = j * l->dw - l->left;
        const ptrdiff_t y0 = range[2 * i], y1 = range[2 * i + 1];
        const ptrdiff_t q0 = range[2 * (l->kh + j)], q1 = range[2 * (l->kh + j) + 1];
        const char *next = (const char *)((const FC_T *)l->x + origin + l->step_c) + (i * l->kw + j) * l->oh * share;
        for (ptrdiff_t y = 0; y < l->oh;) {
            FC_T *to = (FC_T *)out->at;
            const ptrdiff_t room = out->end - out->at, at = origin + (y * l->sh - l->top + i * l->dh) * l->step_h;
            ptrdiff_t rows = 1;
            if (y < y0 || y >= y1 || q0 == q1) {
                const ptrdiff_t left = (y < y0 ? y0 : l->oh) - y;
                rows = left < many ? left : many;
                FC_ELEMENT(fill)(to, pad, rows * ow);
            } else if (l->sw == 1 && l->sh == 1 && ow == l->step_h && at + start >= l->start) {
                /* rows lie one behind the other here as there: in one go, and then the cells in the padding */
                rows = y1 - y < many ? y1 - y : many;
                fc_copy((char *)to, (const char *)((const FC_T *)l->x + at + start), ((rows - 1) * ow + q1) * size, room,
                        (l->stop - at - start) * size);
                for (ptrdiff_t row = 0; row < rows; row++, to += ow) {
                    for (ptrdiff_t q = 0; q < q0; q++)
                        to[q] = pad;
                    for (ptrdiff_t q = q1; q < ow; q++)
                        to[q] = pad;
                }
            } else {
                FC_ELEMENT(lower_row)(l, to, room, (const FC_T *)l->x + at, l->stop - at, start, q0, q1, pad);
            }
            for (const char *const until = next + rows * share; next < until; next += FC_LINE)
                __builtin_prefetch(next, 0, 2);
            fc_written(out, rows * ow * size);
            y += rows;
        }
        if (++j == l->kw) {
            j = 0;
            if (++i == l->kh) {
                i = 0;
                if (++c == l->c) {
                    c = 0;
                    n++;
                }
            }
        }
    }
}

/* Rows of the image as taps look at them: rows of padded columns u = column + left, those of each residue modulo the
 * stride by themselves, so that what a tap sees of a row is without gaps. Padding beside a row is there before, and stays. With
 * `level` rows begin l->line elements apart with what the image has (at the beginnings of lines), else with the padding. */
FC_INLINE void FC_ELEMENT(pad_row)(const fc_lowering *l, FC_T *to, const FC_T *row, FC_T pad, const int level)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T);
    if (!row) {
        FC_ELEMENT(fill)(to - (level ? fc_padding(l, 0) : 0), pad, l->residues * l->line);
    } else if (l->sw == 1) {
        fc_copy_within((char *)(to + (level ? 0 : l->left)), (const char *)row, l->w * size);
    } else if (l->sw == 2 && l->residues == 2) {
        const ptrdiff_t even = l->left % 2; /* the residue of column 0 */
        FC_T *const evens = to + even * l->line + (level ? 0 : l->left / 2);
        FC_T *const odds = to + !even * l->line + (level ? 0 : (l->left + 1) / 2);
        FC_ELEMENT(split)(evens, odds, row, l->w / 2);
        if (l->w % 2)
            evens[l->w / 2] = row[l->w - 1];
    } else {
        for (ptrdiff_t e = 0; e < l->residues; e++) {
            const ptrdiff_t first = fc_padding(l, e), start = first * l->sw + e - l->left;
            if (start < l->w)
                FC_ELEMENT(every)(to + e * l->line + (level ? 0 : first), row + start, l->sw,
                                  (l->w - start + l->sw - 1) / l->sw);
        }
    }
}

/* Planes of all images, [first, stop), where columns are skipped. Each row of the image is read once, in the order of memory,
 * and split into its columns by their residue modulo the stride, of which each tap sees a run; a sink for each tap. */
static void FC_ELEMENT(im2col_planes)(const fc_lowering *l, FC_T pad, FC_T *out, ptrdiff_t first, ptrdiff_t stop,
                                      char *scratch)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), taps = l->kh * l->kw, places = l->oh * l->ow, ow = l->ow;
    const ptrdiff_t height = (l->oh - 1) * l->sh + (l->kh - 1) * l->dh + 1, laid = l->residues * l->line;
    enum { SPLIT_AHEAD_BYTES = 8192 };
    const int apart = l->apart;
    fc_sink *const sinks = (fc_sink *)scratch;
    ptrdiff_t *const last = (ptrdiff_t *)(sinks + taps), *const back = last + l->sh, *const offset = back + l->sh;
    ptrdiff_t *const begin = offset + l->kw, *const start = begin + l->residues, *const count = start + l->residues;
    FC_T *const row = (FC_T *)(count + l->residues), *const pads = (FC_T *)((char *)(row + laid) + FC_VECTOR_BYTES);
    char *buffer = fc_line_from((char *)(pads + laid) + FC_VECTOR_BYTES);
    const ptrdiff_t capacity = l->bypass ? fc_round_up(fc_sink_bytes(fc_max(ow * size, FC_SINK_BYTES)), FC_LINE) : 0;
    fc_window_rows(l->kh, l->sh, l->dh, last, back);
    for (ptrdiff_t j = 0; j < l->kw; j++)
        offset[j] = j * l->dw % l->sw * l->line + j * l->dw / l->sw;
    FC_ELEMENT(fill)(row, pad, laid); /* in the padding they stay so */
    FC_ELEMENT(fill)(pads, pad, laid);
    for (ptrdiff_t e = 0; e < l->residues; e++) {
        begin[e] = fc_min(l->left > e ? (l->left - e + l->sw - 1) / l->sw : 0, l->line);
        start[e] = begin[e] * l->sw + e - l->left;
        count[e] = start[e] < l->w ? fc_min((l->w - start[e] + l->sw - 1) / l->sw, l->line - begin[e]) : 0;
        begin[e] += e * l->line;
    }
    /* of two residues one begins with column 0, and the other with column 1 */
    const int even = l->sw == 2 && l->residues == 2 ? l->left % 2 : 0, odd = !even;
    const ptrdiff_t pairs = l->sw == 2 && l->residues == 2 && start[even] == 0 && start[odd] == 1 ? count[odd] : 0;
    for (; first < stop; first++) {
        const FC_T *const image = (const FC_T *)l->x + first / l->c * l->step_n + first % l->c * l->step_c;
        FC_T *const to = out + first * taps * places;
        if (apart && !l->bypass && l->kh <= l->sh && (l->dh == 1 || l->kh == 1)) { /* in vectors that overlap: no sinks */
            for (ptrdiff_t i = 0; i < l->kh; i++) {
                FC_T *at = to + 2 * i * places;
                const FC_T *from = image + i * l->step_h;
                for (ptrdiff_t y = 0; y < l->oh; y++, at += ow, from += l->sh * l->step_h)
                    FC_ELEMENT(split)(at, at + places, from, ow);
            }
            continue;
        }
        for (ptrdiff_t t = 0; t < taps; t++)
            sinks[t] = fc_sink_to(to + t * places, places * size, capacity ? buffer + t * capacity : NULL, capacity);
        for (ptrdiff_t v = 0, residue = 0, q = 0; v < height; v++) {
            const ptrdiff_t r = v - l->top;
            const FC_T *const from = image + r * l->step_h, *see = pads;
            ptrdiff_t i = last[residue], y = q + back[residue];
            if (++residue == l->sh) {
                residue = 0;
                q++;
            }
            if (l->ahead) /* rows far ahead: those of the next plane, too */
                for (ptrdiff_t c = 0; c < l->w * size; c += FC_LINE)
                    __builtin_prefetch((const char *)from + c + SPLIT_AHEAD_BYTES, 0, 2);
            if (i >= l->kh)
                continue;
            if (r >= 0 && r < l->h && !apart) {
                if (pairs) {
                    FC_ELEMENT(split)(row + begin[even], row + begin[odd], from, pairs);
                    for (ptrdiff_t k = pairs; k < count[even]; k++)
                        row[begin[even] + k] = from[2 * k];
                } else {
                    for (ptrdiff_t e = 0; e < l->residues; e++)
                        if (count[e] > 0)
                            FC_ELEMENT(every)(row + begin[e], from + start[e], l->sw, count[e]);
                }
                see = row;
            }
            for (; i < l->kh && y >= 0; i += l->step_taps, y -= l->step_rows) {
                if (y >= l->oh)
                    continue;
                fc_sink *const s = sinks + i * l->kw;
                if (apart) {
                    FC_ELEMENT(split)((FC_T *)s[0].at, (FC_T *)s[1].at, from, ow);
                    fc_written(s, ow * size);
                    fc_written(s + 1, ow * size);
                } else {
                    for (ptrdiff_t j = 0; j < l->kw; j++) {
                        fc_copy(s[j].at, (const char *)(see + offset[j]), ow * size, s[j].end - s[j].at, PTRDIFF_MAX);
                        fc_written(s + j, ow * size);
                    }
                }
            }
        }
        for (ptrdiff_t t = 0; l->bypass && t < taps; t++)
            fc_sink_empty(sinks + t, 1);
    }
    if (l->bypass)
        fc_stream_end();
}

/* to[j*width + i] = from[i][at + j] for i < cells, whole lines, past the caches. With each tile some lines are asked for that
 * will be read next. */
static void FC_ELEMENT(turn_lines)(const fc_lowering *l, FC_T *to, const FC_T *const *from, ptrdiff_t at, ptrdiff_t cells,
                                   ptrdiff_t columns, ptrdiff_t ahead, fc_coming *coming)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), line = FC_LINE / size, piece = 16 / size, width = l->c * l->kh * l->kw;
    for (ptrdiff_t p = 0, some; p < columns; p += some) { /* lines that are read are used up */
        some = columns - p < line + piece ? columns - p : line;
        for (ptrdiff_t i = 0; i < cells; i += line) {
            FC_ELEMENT(transpose)(to + p * width + i, width, from + i, at + p, line, some, ahead, 1);
            fc_ask_for_coming(coming, 3); /* beside such stores what is asked for level 2 alone does not always come */
        }
    }
}

/* Rows of output of all images, [first, stop). What some taps see in some of the rows is turned at a time. */
static void FC_ELEMENT(im2col_rows)(const fc_lowering *l, FC_T pad, FC_T *out, ptrdiff_t first, ptrdiff_t stop,
                                    char *scratch)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), taps = l->kh * l->kw, width = l->c * taps, line = FC_LINE / size;
    const ptrdiff_t padded = l->residues * l->line;
    const FC_T **const from = (const FC_T **)scratch; /* what each tap sees */
    ptrdiff_t *const offset = (ptrdiff_t *)(from + l->channels * taps); /* of taps j in a padded row */
    FC_T *const space = fc_line_from(offset + l->kw), *const rows = space + fc_round_up(fc_padding(l, 0), line);
    char *const staged = (char *)space + l->laid + FC_LINE;
    /* where all rows begin at the same place in a line, those elements of the first one that come before the next one begins */
    const ptrdiff_t head = l->lines ? (ptrdiff_t)(-(uintptr_t)out % FC_LINE) / size : 0;
    for (ptrdiff_t j = 0, e; j < l->kw; j++) {
        e = j * l->dw % l->sw;
        offset[j] = e * l->line - fc_padding(l, e) + j * l->dw / l->sw;
    }
    FC_ELEMENT(fill)(space, pad, l->laid / size);
    fc_seen next, before = {0};
    for (fc_seen now = fc_see(l, first, stop, head, head); now.count; before = now, now = next) {
        const ptrdiff_t cells = now.end - now.cell, step_h = now.direct ? l->step_h : padded;
        const ptrdiff_t origin = now.direct ? now.origin : 0, ahead = now.direct ? l->ahead : 0;
        fc_coming coming = {0};
        next = now.end < width + head ? fc_see(l, now.first, stop, now.end, head) :
                                        fc_see(l, now.first + now.count, stop, head, head);
        if (!now.direct) {
            /* what comes next is asked for with each tile, or with each row where the result stays in the caches */
            const ptrdiff_t tiles = now.count * ((l->ow + line - 1) / line) * (cells / line);
            if (l->ahead && next.count && !next.direct)
                coming = fc_comes(l, &next, l->lines ? tiles : (now.c1 - now.c0) * (now.bottom - now.top + 1));
            for (ptrdiff_t c = now.c0; c < now.c1; c++) {
                const FC_T *const image = (const FC_T *)l->x + now.origin + (c < l->c ? c : c - l->c) * l->step_c;
                FC_T *const row = rows + (c - now.c0) * l->height * padded;
                for (ptrdiff_t r = now.top; r <= now.bottom; r++) {
                    FC_ELEMENT(pad_row)(l, row + (r - now.top) * padded,
                                        r < 0 || r >= l->h ? NULL : image + (r - now.top) * l->step_h, pad, 1);
                    if (!l->lines)
                        fc_ask_for_coming(&coming, 2);
                }
            }
        }
        if (!before.count || now.direct != before.direct || now.cell != before.cell) {
            const FC_T **at = from, *see = now.direct ? (const FC_T *)l->x + now.c0 * l->step_c : rows;
            ptrdiff_t i = now.cell % taps / l->kw, j = now.cell % l->kw;
            for (ptrdiff_t c = now.c0; c < now.c1; c++, see += now.direct ? l->step_c : l->height * padded) {
                if (c == l->c) /* the first ones of the next row of the matrix: those of this one, one window further */
                    see += 1 - (now.direct ? l->c * l->step_c : 0);
                for (; i < l->kh; i++, j = 0)
                    for (const FC_T *const row = see + i * l->dh * step_h; j < l->kw; j++)
                        *at++ = row + offset[j];
                i = 0;
            }
        }
        for (ptrdiff_t i = 0; i < now.count; i++) {
            FC_T *const to = out + (now.first + i) * l->ow * width + now.cell;
            const ptrdiff_t seen = origin + i * l->sh * step_h;
            if (!l->bypass) {
                FC_ELEMENT(transpose)(to, width, from, seen, cells, l->ow, ahead, 0);
            } else if (l->lines) {
                const ptrdiff_t shared = now.end > width ? line : 0, whole = cells - shared, last = (l->ow - 1) * width;
                FC_ELEMENT(turn_lines)(l, to, from, seen, whole, l->ow, ahead, &coming);
                if (shared) { /* the line between two rows of the matrix */
                    FC_ELEMENT(turn_lines)(l, to + whole, from + whole, seen, line, l->ow - 1, ahead, &coming);
                    for (ptrdiff_t k = whole; k < cells; k++)
                        if (k < cells - head)
                            to[last + k] = from[k][seen + l->ow - 1];
                        else
                            to[k - width] = from[k][seen - 1];
                }
            } else {
                const ptrdiff_t pitch = cells == width ? width : cells + FC_LINE / size;
                for (ptrdiff_t p = 0; p < l->ow; p += FC_STAGED) {
                    const ptrdiff_t places = fc_min(l->ow - p, FC_STAGED);
                    FC_ELEMENT(transpose)((FC_T *)staged, pitch, from, seen + p, cells, places, ahead, 0);
                    if (cells == width)
                        fc_stream((char *)(to + p * width), staged, places * width * size);
                    else
                        for (ptrdiff_t k = 0; k < places; k++)
                            fc_stream((char *)(to + (p + k) * width), staged + k * pitch * size, cells * size);
                }
            }
        }
    }
    if (l->bypass)
        fc_stream_end();
}

/* Rows of the padded image, [first, stop) of those of all channels: what all taps see in them, of all images. */
static void FC_ELEMENT(im2col_cs231n)(const fc_lowering *l, FC_T pad, FC_T *out, ptrdiff_t first, ptrdiff_t stop,
                                      char *scratch)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), places = l->oh * l->ow, padded = l->residues * l->line;
    const ptrdiff_t height = (l->oh - 1) * l->sh + (l->kh - 1) * l->dh + 1;
    const FC_T **const from = (const FC_T **)scratch;
    FC_T *const rows = (FC_T *)(from + l->images), *const turned = rows + l->images * padded;
    FC_ELEMENT(fill)(rows, pad, l->images * padded);
    for (; first < stop; first++) {
        const ptrdiff_t c = first / height, v = first % height, r = v - l->top;
        for (ptrdiff_t n0 = 0; n0 < l->n; n0 += l->images) {
            const ptrdiff_t images = l->n - n0 < l->images ? l->n - n0 : l->images;
            int ready = 0;
            for (ptrdiff_t i = 0; i < l->kh; i++) {
                const ptrdiff_t y = (v - i * l->dh) / l->sh;
                if (v - i * l->dh < 0 || y * l->sh != v - i * l->dh || y >= l->oh)
                    continue;
                if (!ready) { /* the row of each image, turned */
                    for (ptrdiff_t n = 0; n < images; n++) {
                        const FC_T *row = (const FC_T *)l->x + (n0 + n) * l->step_n + c * l->step_c + r * l->step_h;
                        from[n] = rows + n * padded;
                        FC_ELEMENT(pad_row)(l, rows + n * padded, r < 0 || r >= l->h ? NULL : row, pad, 0);
                    }
                    FC_ELEMENT(transpose)(turned, images, from, 0, images, padded, 0, 0);
                    ready = 1;
                }
                for (ptrdiff_t j = 0; j < l->kw; j++) {
                    FC_T *to = out + (((c * l->kh + i) * l->kw + j) * places + y * l->ow) * l->n + n0;
                    const FC_T *cells = turned + (j * l->dw % l->sw * l->line + j * l->dw / l->sw) * images;
                    if (images < l->n)
                        for (ptrdiff_t q = 0; q < l->ow; q++)
                            memcpy(to + q * l->n, cells + q * images, (size_t)(images * size));
                    else if (l->bypass)
                        fc_stream((char *)to, (const char *)cells, l->ow * images * size);
                    else
                        memcpy(to, cells, (size_t)(l->ow * images * size));
                }
            }
        }
    }
    if (l->bypass)
        fc_stream_end();
}

/* The image from "columns" of windows that lie side by side and are two columns wide: each of its rows is woven from those of
 * two taps. Planes of all images, [first, stop). */
static void FC_ELEMENT(image_of_columns)(const fc_lowering *l, const FC_T *col, ptrdiff_t first, ptrdiff_t stop, fc_sink *out)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), places = l->oh * l->ow, taps = l->kh * l->kw;
    for (const FC_T *plane = col + first * taps * places; first < stop; first++, plane += taps * places)
        for (ptrdiff_t r = 0, i = 0, y = 0; r < l->h; r++) {
            FC_T *const to = (FC_T *)out->at;
            if (i < l->kh && y < l->oh) {
                const FC_T *const even = plane + 2 * i * places + y * l->ow, *const odd = even + places;
                if (l->ahead)
                    for (ptrdiff_t q = 0; q < l->ow * size; q += FC_LINE) {
                        __builtin_prefetch((const char *)even + q + l->ahead, 0, 2);
                        __builtin_prefetch((const char *)odd + q + l->ahead, 0, 2);
                    }
                FC_ELEMENT(weave)(to, even, odd, l->ow);
                if (2 * l->ow < l->w)
                    memset(to + 2 * l->ow, 0, (size_t)((l->w - 2 * l->ow) * size));
            } else {
                memset(to, 0, (size_t)(l->w * size));
            }
            fc_written(out, l->w * size);
            if (++i == l->sh) {
                i = 0;
                y++;
            }
        }
}

/* The image from "rows" whose windows lie side by side (fc_join_columns): each of its cells is in one window or in none. Rows
 * of windows of all images, [first, stop). */
static void FC_ELEMENT(image_of_rows)(const fc_lowering *l, const FC_T *col, FC_T *out, ptrdiff_t first, ptrdiff_t stop,
                                      char *scratch)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), width = l->c * l->kh;
    FC_T **const to = (FC_T **)scratch; /* the rows of the first block's windows in the first row of them */
    for (ptrdiff_t c = 0; c < l->channels; c++)
        for (ptrdiff_t i = 0; i < l->kh; i++)
            to[c * l->kh + i] = out + (c * l->h + i) * l->w;
    for (; first < stop; first++) {
        const ptrdiff_t n = first / l->oh, y = first % l->oh, below = (y + 1 < l->oh ? (y + 1) * l->sh : l->h) - y * l->sh;
        for (ptrdiff_t c0 = 0; c0 < l->c; c0 += l->channels) {
            const ptrdiff_t channels = fc_min(l->c - c0, l->channels), rows = channels * l->kh;
            const ptrdiff_t at = ((n * l->c + c0) * l->h + y * l->sh) * l->w;
            const FC_T *const from = col + first * l->ow * width + c0 * l->kh;
            ptrdiff_t head = 0, lines = 0;
            if (l->bypass && l->w * size % FC_LINE == 0) { /* rows begin at the same place in a line: whole ones at once */
                head = fc_min((ptrdiff_t)(-(uintptr_t)(out + at) % FC_LINE) / size, l->ow);
                lines = (l->ow - head) * size / FC_LINE * FC_LINE / size;
            }
            const ptrdiff_t rest = head + lines;
            FC_ELEMENT(transpose_to)(to, at, from, width, rows, head, l->ahead, 0);
            FC_ELEMENT(transpose_to)(to, at + head, from + head * width, width, rows, lines, l->ahead, 1);
            FC_ELEMENT(transpose_to)(to, at + rest, from + rest * width, width, rows, l->ow - rest, l->ahead, 0);
            if (below == l->kh && l->ow == l->w)
                continue;
            for (ptrdiff_t c = 0; c < channels; c++) /* what is in no window */
                for (ptrdiff_t r = 0; r < below; r++) {
                    FC_T *const row = out + at + (c * l->h + r) * l->w;
                    if (r >= l->kh)
                        memset(row, 0, (size_t)(l->w * size));
                    else if (l->ow < l->w)
                        memset(row + l->ow, 0, (size_t)((l->w - l->ow) * size));
                }
        }
    }
    if (l->bypass)
        fc_stream_end();
}
