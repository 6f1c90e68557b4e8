/* Template of the pooling of any window, and of whole planes; see pooling.h and each_vector.h. Only for full vectors.
 *
 * Row by row. An input row is laid out in padded rows, one for each residue of a tap modulo the stride, in which the cells
 * that one tap of neighbouring windows sees are neighbours too. Its parts across (one for each window) go to a ring of
 * rows in which the windows of the next output rows find them again; where no two windows share a row, eight of them at a
 * time are combined into a row of intermediate results. */

#if FC_BYTES == FC_VECTOR_BYTES

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define MASK FC_NAME(mask)
#define PART FC_NAME(part)
#define LANES ((ptrdiff_t)FC_LANES)

/* Rows of one thread's scratch. */
typedef struct {
    FC_T *lines;          /* the input row, by residue */
    FC_T *values;         /* the ring; behind it the intermediate results */
    FC_INT *places;
    FC_INT *first;        /* column of each window's first cell inside the image */
    ptrdiff_t *tap;       /* where the cells that tap j sees start in `lines` */
    ptrdiff_t *held;      /* which row of x a slot of the ring holds, counted through all planes */
    const FC_T **row;     /* of the rows to combine: values and places */
    const FC_INT **row_place;
} FC_NAME(buffers);

static FC_NAME(buffers) FC_NAME(lay_out)(const fc_pooling *p, const fc_any *a, char *scratch)
{
    FC_NAME(buffers) b;
    const ptrdiff_t rows = a->slots + 1;
    b.lines = (FC_T *)scratch;
    b.values = b.lines + a->lines * a->line;
    scratch = (char *)(b.values + rows * a->pitch);
    b.places = (FC_INT *)scratch;
    if (p->what == FC_POOL_PLACE)
        scratch += rows * a->pitch * (ptrdiff_t)sizeof(FC_INT);
    b.first = (FC_INT *)scratch;
    if (p->what == FC_POOL_PLACE)
        scratch += a->pitch * (ptrdiff_t)sizeof(FC_INT);
    b.tap = (ptrdiff_t *)scratch;
    b.held = b.tap + p->kw;
    b.row = (const FC_T **)(b.held + a->slots);
    b.row_place = (const FC_INT **)(b.row + a->slots + 1);

    const FC_T outside = p->what == FC_POOL_SUM ? (FC_T)0 : (FC_T)-__builtin_inf();
    for (ptrdiff_t i = 0; i < a->lines * a->line; i++)
        b.lines[i] = outside;
    for (ptrdiff_t i = 0; i < a->slots; i++)
        b.held[i] = -1;
    for (ptrdiff_t j = 0; j < p->kw; j++) /* residues are numbered as they come up */
        b.tap[j] = j % a->lines * a->line + j * p->dw / p->sw;
    if (p->what == FC_POOL_PLACE)
        for (ptrdiff_t q = 0; q < a->pitch; q++) {
            const ptrdiff_t start = q * p->sw - p->left;
            b.first[q] = (FC_INT)(start < 0 ? start + (-start + p->dw - 1) / p->dw * p->dw : start);
        }
    return b;
}

/* The parts of windows q, q + 1 ... of the row in `lines`, whose first cell is cell `base` of the plane. */
FC_INLINE void FC_NAME(any_windows)(const int what, const int vectors, const fc_pooling *p, const FC_NAME(buffers) *b,
                                    FC_INT base, ptrdiff_t q, FC_T *values, FC_INT *places)
{
    PART best[4];
    IVEC column[4];
FC_UNROLL
    for (int v = 0; v < vectors; v++) {
        best[v] = (PART){FC_NAME(load)(b->lines + b->tap[0] + q + v * LANES), {0}};
        column[v] = (IVEC){0};
        if (what == FC_POOL_PLACE) {
            best[v].place = FC_NAME(iload)(b->first + q + v * LANES) + base;
            column[v] = FC_NAME(count)() * (FC_INT)p->sw + (base + (FC_INT)((q + v * LANES) * p->sw - p->left));
        }
    }
    for (ptrdiff_t j = 1; j < p->kw; j++) {
        const FC_T *cells = b->lines + b->tap[j] + q;
FC_UNROLL
        for (int v = 0; v < vectors; v++) {
            const PART cell = {FC_NAME(load)(cells + v * LANES), column[v] + (FC_INT)(j * p->dw)};
            best[v] = FC_NAME(better)(what, best[v], cell);
        }
    }
FC_UNROLL
    for (int v = 0; v < vectors; v++) {
        FC_NAME(store)(values + q + v * LANES, best[v].value);
        if (what == FC_POOL_PLACE)
            FC_NAME(store)((FC_T *)(places + q + v * LANES), (VEC)best[v].place);
    }
}

/* The parts of row r of the plane x. */
FC_INLINE void FC_NAME(any_across)(const int what, const int vectors, const fc_pooling *p, const fc_any *a,
                                   const FC_NAME(buffers) *b, const FC_T *x, ptrdiff_t r, FC_T *values, FC_INT *places)
{
    for (ptrdiff_t j = 0; j < a->lines; j++) { /* the first tap of each residue */
        const ptrdiff_t residue = j * p->dw % p->sw;
        const ptrdiff_t first = (p->left - residue + p->sw - 1) / p->sw;
        const ptrdiff_t column = first * p->sw + residue - p->left;
        if (column < p->w)
            FC_ELEMENT(every)(b->lines + j * a->line + first, x + r * p->w + column, p->sw,
                              (p->w - column + p->sw - 1) / p->sw);
    }
    const FC_INT base = (FC_INT)(r * p->w);
    ptrdiff_t q = 0;
    for (; q + (vectors - 1) * LANES < p->ow; q += vectors * LANES)
        FC_NAME(any_windows)(what, vectors, p, b, base, q, values, places);
    for (; q < p->ow; q += LANES)
        FC_NAME(any_windows)(what, 1, p, b, base, q, values, places);
}

/* Combine `rows` rows of parts: into intermediate results, or with out != NULL into a row of the result. */
FC_INLINE void FC_NAME(any_down)(const int what, const fc_pooling *p, const FC_NAME(buffers) *b, ptrdiff_t rows,
                                 FC_T *values, FC_INT *places, FC_T *out, int64_t *indices, const FC_T *divisors)
{
    for (ptrdiff_t q = 0; q < p->ow; q += LANES) {
        PART best = {{0}, {0}};
        if (rows) {
            best.value = FC_NAME(load)(b->row[0] + q);
            if (what == FC_POOL_PLACE)
                best.place = FC_NAME(iload)(b->row_place[0] + q);
        }
        for (ptrdiff_t i = 1; i < rows; i++) {
            PART part = {FC_NAME(load)(b->row[i] + q), {0}};
            if (what == FC_POOL_PLACE)
                part.place = FC_NAME(iload)(b->row_place[i] + q);
            best = FC_NAME(better)(what, best, part);
        }
        if (!out) {
            FC_NAME(store)(values + q, best.value);
            if (what == FC_POOL_PLACE)
                FC_NAME(store)((FC_T *)(places + q), (VEC)best.place);
            continue;
        }
        if (what == FC_POOL_SUM)
            best.value /= FC_NAME(load)(divisors + q);
        if (q + LANES <= p->ow) {
            FC_NAME(store)(out + q, best.value);
            if (what == FC_POOL_PLACE)
                FC_NAME(store_places)(indices + q, best.place);
        } else {
            FC_NAME(store_part)(out + q, best.value, p->ow - q);
            if (what == FC_POOL_PLACE)
                FC_NAME(store_places_part)(indices + q, best.place, p->ow - q);
        }
    }
}

FC_INLINE void FC_NAME(any_rows)(const int what, const fc_pooling *p, const fc_any *a, ptrdiff_t first, ptrdiff_t stop,
                                 fc_sink *out, fc_sink *indices, char *scratch)
{
    const FC_NAME(buffers) b = FC_NAME(lay_out)(p, a, scratch);
    const int vectors = what == FC_POOL_PLACE ? 2 : 4;
    for (; first < stop; first++) {
        const ptrdiff_t plane = first / p->oh, y = first % p->oh, top = y * p->sh - p->top;
        const FC_T *x = (const FC_T *)p->x + plane * p->h * p->w;
        const FC_T *divisors = (const FC_T *)p->divisors + (what == FC_POOL_SUM ? p->divisor[y] * p->divisor_step : 0);
        ptrdiff_t rows = 0;
        for (ptrdiff_t i = 0; i < p->kh; i++) {
            const ptrdiff_t r = top + i * p->dh;
            if (r < 0 || r >= p->h)
                continue;
            if (!a->shared && rows == a->slots) { /* to make room */
                FC_NAME(any_down)(what, p, &b, rows, b.values + a->slots * a->pitch, b.places + a->slots * a->pitch, NULL,
                                  NULL, NULL);
                b.row[0] = b.values + a->slots * a->pitch;
                b.row_place[0] = b.places + a->slots * a->pitch;
                rows = 1;
            }
            const ptrdiff_t slot = a->shared ? r % a->slots : rows;
            FC_T *values = b.values + slot * a->pitch;
            FC_INT *places = b.places + slot * a->pitch;
            if (!a->shared || b.held[slot] != plane * p->h + r) {
                FC_NAME(any_across)(what, vectors, p, a, &b, x, r, values, places);
                b.held[slot] = plane * p->h + r;
            }
            b.row[rows] = values;
            b.row_place[rows] = places;
            rows++;
        }
        FC_NAME(any_down)(what, p, &b, rows, NULL, NULL, (FC_T *)out->at, (int64_t *)indices->at, divisors);
        fc_written(out, p->ow * (ptrdiff_t)sizeof(FC_T));
        if (what == FC_POOL_PLACE)
            fc_written(indices, p->ow * 8);
    }
}

/* Rows [first, stop) of output, counted through all planes. */
static void FC_NAME(pool_any)(const fc_pooling *p, const fc_any *a, ptrdiff_t first, ptrdiff_t stop, fc_sink *out,
                              fc_sink *indices, char *scratch)
{
    if (p->what == FC_POOL_MAX)
        FC_NAME(any_rows)(FC_POOL_MAX, p, a, first, stop, out, indices, scratch);
    else if (p->what == FC_POOL_PLACE)
        FC_NAME(any_rows)(FC_POOL_PLACE, p, a, first, stop, out, indices, scratch);
    else
        FC_NAME(any_rows)(FC_POOL_SUM, p, a, first, stop, out, indices, scratch);
}

/* --- whole planes ----------------------------------------------------------------------------------------------- */

static FC_T FC_NAME(largest)(const FC_T *x, ptrdiff_t count)
{
    FC_T best = x[0];
    ptrdiff_t i = 1;
    if (count >= LANES) {
        VEC most[4];
        FC_T lane[FC_LANES];
        for (int v = 0; v < 4; v++)
            most[v] = FC_NAME(load)(x);
        for (i = LANES; i + 4 * LANES <= count; i += 4 * LANES)
FC_UNROLL
            for (int v = 0; v < 4; v++)
                most[v] = FC_NAME(larger)(most[v], FC_NAME(load)(x + i + v * LANES));
        for (; i + LANES <= count; i += LANES)
            most[0] = FC_NAME(larger)(most[0], FC_NAME(load)(x + i));
        most[1] = FC_NAME(larger)(most[1], FC_NAME(load)(x + count - LANES)); /* the rest, some of it again */
        most[0] = FC_NAME(larger)(FC_NAME(larger)(most[0], most[1]), FC_NAME(larger)(most[2], most[3]));
        FC_NAME(store)(lane, most[0]);
        best = lane[0];
        for (int l = 1; l < FC_LANES; l++)
            best = lane[l] > best || lane[l] != lane[l] ? lane[l] : best;
        return best;
    }
    for (; i < count; i++)
        best = x[i] > best || x[i] != x[i] ? x[i] : best;
    return best;
}

/* The first cell that has the value; a NaN is any NaN. */
static ptrdiff_t FC_NAME(find)(const FC_T *x, ptrdiff_t count, FC_T value)
{
    ptrdiff_t i = 0;
    if (value == value) {
        for (; i + LANES <= count; i += LANES)
            if (FC_NAME(any)(FC_NAME(load)(x + i), value))
                break;
        while (i < count - 1 && !(x[i] == value))
            i++;
    } else {
        while (i < count - 1 && x[i] == x[i])
            i++;
    }
    return i;
}

/* In blocks, whose sums are added up in double: the error does not grow with the plane. */
static double FC_NAME(total)(const FC_T *x, ptrdiff_t count)
{
    double total = 0;
    while (count >= LANES) {
        const ptrdiff_t block = (count < 256 * LANES ? count : 256 * LANES) / LANES * LANES;
        VEC sum[4] = {{0}, {0}, {0}, {0}};
        FC_T lane[FC_LANES];
        ptrdiff_t i = 0;
        for (; i + 4 * LANES <= block; i += 4 * LANES)
FC_UNROLL
            for (int v = 0; v < 4; v++)
                sum[v] += FC_NAME(load)(x + i + v * LANES);
        for (; i < block; i += LANES)
            sum[0] += FC_NAME(load)(x + i);
        FC_NAME(store)(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        for (int half = FC_LANES / 2; half > 0; half /= 2)
            for (int l = 0; l < half; l++)
                lane[l] += lane[l + half];
        total += lane[0];
        x += block;
        count -= block;
    }
    for (ptrdiff_t i = 0; i < count; i++)
        total += x[i];
    return total;
}

/* Planes [first, stop), each of which is one window. */
static void FC_NAME(pool_planes)(const fc_pooling *p, ptrdiff_t first, ptrdiff_t stop, fc_sink *out, fc_sink *indices)
{
    const ptrdiff_t count = p->h * p->w;
    for (; first < stop; first++) {
        const FC_T *x = (const FC_T *)p->x + first * count;
        FC_T value;
        if (p->what == FC_POOL_SUM) {
            value = (FC_T)(FC_NAME(total)(x, count) / *(const FC_T *)p->divisors);
        } else {
            value = FC_NAME(largest)(x, count);
            if (p->what == FC_POOL_PLACE) {
                const int64_t place = FC_NAME(find)(x, count, value);
                value = x[place];
                memcpy(indices->at, &place, sizeof place);
                fc_written(indices, 8);
            }
        }
        memcpy(out->at, &value, sizeof value);
        fc_written(out, (ptrdiff_t)sizeof value);
    }
}

#undef VEC
#undef IVEC
#undef MASK
#undef PART
#undef LANES

#endif
