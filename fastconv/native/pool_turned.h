/* Template of the pooling of small planes and the gradient of their average; see pooling.h and each_vector.h. Only for full
 * vectors.
 *
 * Rows of few windows leave most of a vector's lanes without one. So planes are turned: a vector is what LANES planes have at
 * one place, and neither edges nor rows of any length need care. */

#if FC_BYTES == FC_VECTOR_BYTES

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define PART FC_NAME(part)
#define LANES ((ptrdiff_t)FC_LANES)

/* `count` results, of n vectors each: the first one's begin at `from`, `step` from one to the next, those of the next result
 * lie `pitch` on. Where `places` is NULL they are the cells themselves, from number `place` of the plane on. */
FC_INLINE void FC_NAME(turned_parts)(const int what, const ptrdiff_t n, const FC_T *from, ptrdiff_t step, ptrdiff_t pitch,
                                     const FC_INT *places, ptrdiff_t place, const FC_T *divisors, ptrdiff_t count, FC_T *to,
                                     FC_INT *to_places, ptrdiff_t pitch_to)
{
    for (ptrdiff_t c = 0; c < count; c++) {
        const FC_T *const x = from + c * pitch * LANES;
        const FC_INT cell = (FC_INT)(place + c * pitch);
        PART best = {FC_NAME(load)(x), {0}};
        if (what == FC_POOL_PLACE)
            best.place = places ? FC_NAME(iload)(places + c * pitch * LANES) : FC_NAME(iall)(cell);
        for (ptrdiff_t i = 1; i < n; i++) {
            PART part = {FC_NAME(load)(x + i * step * LANES), {0}};
            if (what == FC_POOL_PLACE)
                part.place = places ? FC_NAME(iload)(places + (c * pitch + i * step) * LANES)
                                    : FC_NAME(iall)(cell + (FC_INT)(i * step));
            best = FC_NAME(better)(what, best, part);
        }
        if (divisors)
            best.value /= FC_NAME(all)(divisors[c]);
        FC_NAME(store)(to + c * pitch_to * LANES, best.value);
        if (what == FC_POOL_PLACE)
            FC_NAME(store)((FC_T *)(to_places + c * pitch_to * LANES), (VEC)best.place);
    }
}

/* With code of its own for the most common numbers of vectors. */
#define TURNED_PARTS(what, n, ...)                                                                                    \
    do {                                                                                                              \
        if ((n) == 3)                                                                                                 \
            FC_NAME(turned_parts)(what, 3, __VA_ARGS__);                                                              \
        else if ((n) == 2)                                                                                            \
            FC_NAME(turned_parts)(what, 2, __VA_ARGS__);                                                              \
        else if ((n) == 1)                                                                                            \
            FC_NAME(turned_parts)(what, 1, __VA_ARGS__);                                                              \
        else                                                                                                          \
            FC_NAME(turned_parts)(what, n, __VA_ARGS__);                                                              \
    } while (0)

/* Planes [first, stop), LANES of them at a time. */
FC_INLINE void FC_NAME(turned_planes)(const int what, const fc_pooling *pooling, ptrdiff_t first, ptrdiff_t stop, fc_sink *out,
                                      fc_sink *indices, char *scratch)
{
    const fc_pooling here = *pooling, *const p = &here; /* a copy that no store can change */
    const ptrdiff_t h = fc_turned_rows(p), w = p->w, oh = p->oh, ow = p->ow, cells = h * w, windows = oh * ow;
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), ahead = p->streams ? LANES * p->h * w * size : 0;
    FC_T *const x = (FC_T *)scratch, *const parts = x + cells * LANES, *const results = parts + h * ow * LANES;
    FC_T *const spare = results + windows * LANES; /* a plane that is not there */
    fc_turned *const columns = (fc_turned *)(scratch + fc_round_up((char *)(spare + windows) - scratch, 8));
    fc_turned *const rows = columns + ow;
    FC_INT *const places = (FC_INT *)(rows + oh), *const chosen = places + h * ow * LANES;
    FC_INT *const turned = chosen + windows * LANES;
    fc_cells_of(ow, p->sw, p->left, p->kw, p->dw, w, columns);
    fc_cells_of(oh, p->sh, p->top, p->kh, p->dh, p->h, rows);
    for (; first < stop; first += LANES) {
        const ptrdiff_t count = fc_min(LANES, stop - first);
        const FC_T *from[FC_LANES];
        FC_T *lane[FC_LANES];
        for (ptrdiff_t i = 0; i < LANES; i++) {
            from[i] = (const FC_T *)p->x + (first + (i < count ? i : 0)) * p->h * w;
            lane[i] = i < count ? (FC_T *)out->at + i * windows : spare;
        }
        FC_ELEMENT(transpose)(x, LANES, from, 0, LANES, cells, ahead, 0);
        for (ptrdiff_t q = 0; q < ow; q++)
            TURNED_PARTS(what, columns[q].count, x + columns[q].first * LANES, columns[q].step, w, NULL, columns[q].first, NULL,
                         h, parts + q * LANES, places + q * LANES, ow);
        for (ptrdiff_t y = 0; y < oh; y++)
            TURNED_PARTS(what, rows[y].count, parts + rows[y].first * ow * LANES, rows[y].step * ow, 1,
                         places + rows[y].first * ow * LANES, 0,
                         what == FC_POOL_SUM ? (const FC_T *)p->divisors + p->divisor[y] * p->divisor_step : NULL, ow,
                         results + y * ow * LANES, chosen + y * ow * LANES, 1);
        FC_ELEMENT(transpose_to)(lane, 0, results, LANES, LANES, windows, 0, 0);
        fc_written(out, count * windows * size);
        if (what == FC_POOL_PLACE) {
            int64_t *const to = (int64_t *)indices->at;
            for (ptrdiff_t i = 0; i < LANES; i++)
                lane[i] = (FC_T *)(turned + i * windows);
            FC_ELEMENT(transpose_to)(lane, 0, (const FC_T *)chosen, LANES, LANES, windows, 0, 0);
            ptrdiff_t i = 0;
            for (; i + LANES <= count * windows; i += LANES)
                FC_NAME(store_places)(to + i, FC_NAME(iload)(turned + i));
            if (i < count * windows)
                FC_NAME(store_places_part)(to + i, FC_NAME(iload)(turned + i), count * windows - i);
            fc_written(indices, count * windows * 8);
        }
    }
}

static void FC_NAME(pool_turned)(const fc_pooling *p, ptrdiff_t first, ptrdiff_t stop, fc_sink *out, fc_sink *indices,
                                 char *scratch)
{
    if (p->what == FC_POOL_MAX)
        FC_NAME(turned_planes)(FC_POOL_MAX, p, first, stop, out, indices, scratch);
    else if (p->what == FC_POOL_PLACE)
        FC_NAME(turned_planes)(FC_POOL_PLACE, p, first, stop, out, indices, scratch);
    else
        FC_NAME(turned_planes)(FC_POOL_SUM, p, first, stop, out, indices, scratch);
}

/* The gradient of an average: planes [first, stop) of it; p->x is the output gradient. What only one window has a share in is
 * taken from there. */
static void FC_NAME(avg_gradient_turned)(const fc_pooling *pooling, ptrdiff_t first, ptrdiff_t stop, fc_sink *out,
                                         char *scratch)
{
    const fc_pooling here = *pooling, *const p = &here; /* a copy that no store can change */
    const ptrdiff_t h = p->h, w = p->w, oh = p->oh, ow = p->ow, cells = h * w, windows = oh * ow;
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T);
    FC_T *const x = (FC_T *)scratch, *const parts = x + windows * LANES, *const results = parts + oh * w * LANES;
    FC_T *const spare = results + (cells + 1) * LANES; /* all planes, where some are not there */
    fc_turned *const columns = (fc_turned *)(spare + cells * LANES), *const rows = columns + w, *const run = rows + h;
    const FC_T **const from = (const FC_T **)(run + w);
    fc_windows_of(w, p->sw, p->left, p->kw, p->dw, ow, columns);
    fc_windows_of(h, p->sh, p->top, p->kh, p->dh, oh, rows);
    const ptrdiff_t alone = p->sw > 1; /* at stride 1 columns of one window are few, and go with the others */
    const ptrdiff_t alike = fc_alike(columns, w, p->sw, alone, run);
    FC_NAME(store)(results + cells * LANES, (VEC){0});
    for (ptrdiff_t r = 0; r < h; r++)
        for (ptrdiff_t c = 0; c < w; c++) {
            const FC_T *at = results + (r * w + c) * LANES;
            if (rows[r].count == 0 || columns[c].count == 0)
                at = results + cells * LANES;
            else if (rows[r].count == 1)
                at = columns[c].count <= alone ? x + (rows[r].first * ow + columns[c].first) * LANES
                                               : parts + (rows[r].first * w + c) * LANES;
            from[r * w + c] = at;
        }
    for (; first < stop; first += LANES) {
        const ptrdiff_t count = fc_min(LANES, stop - first);
        const FC_T *plane[FC_LANES];
        for (ptrdiff_t i = 0; i < LANES; i++)
            plane[i] = (const FC_T *)p->x + (first + (i < count ? i : 0)) * windows;
        FC_ELEMENT(transpose)(x, LANES, plane, 0, LANES, windows, LANES * windows * size, 0);
        for (ptrdiff_t y = 0; y < oh; y++) {
            const FC_T *divisors = (const FC_T *)p->divisors + p->divisor[y] * p->divisor_step;
            for (ptrdiff_t q = 0; q < ow; q++) {
                FC_T *const share = x + (y * ow + q) * LANES;
                FC_NAME(store)(share, FC_NAME(load)(share) / FC_NAME(all)(divisors[q]));
            }
        }
        for (ptrdiff_t c = 0; c < w; c++)
            if (columns[c].count > alone)
                TURNED_PARTS(FC_POOL_SUM, columns[c].count, x + columns[c].first * LANES, columns[c].step, ow, NULL, 0, NULL,
                             oh, parts + c * LANES, NULL, w);
        for (ptrdiff_t r = 0; r < h; r++)
            if (rows[r].count > 1)
                for (ptrdiff_t i = 0; i < alike; i++) {
                    const ptrdiff_t c = run[i].first, one = columns[c].count <= alone, pitch = one ? ow : w;
                    TURNED_PARTS(FC_POOL_SUM, rows[r].count,
                                 (one ? x + columns[c].first * LANES : parts + c * LANES) + rows[r].first * pitch * LANES,
                                 rows[r].step * pitch, one ? 1 : run[i].step, NULL, 0, NULL, run[i].count,
                                 results + (r * w + c) * LANES, NULL, run[i].step);
                }
        FC_T *const to = count == LANES ? (FC_T *)out->at : spare;
        FC_ELEMENT(transpose)(to, cells, from, 0, cells, LANES, 0, 0);
        if (count < LANES)
            memcpy(out->at, spare, (size_t)(count * cells * size));
        fc_written(out, count * cells * size);
    }
}
#undef TURNED_PARTS

#undef VEC
#undef IVEC
#undef PART
#undef LANES

#endif
