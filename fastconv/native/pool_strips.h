/* Template of the small windows that have kernels of their own; see pooling.h and each_vector.h.
 *
 * A strip is LANES windows of one row of output, and the same ones of the rows below. It walks down a plane (or, where it
 * is as wide as the output, down all planes): of each input row it reads what the windows cover, combines it across, and
 * keeps the result in registers for all the windows that the row is in. Rows beyond the image count as full of what never
 * wins (of zeros), columns beyond it are masked; strips without such columns have code without masks. */

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define MASK FC_NAME(mask)
#define PART FC_NAME(part)
#define STRIP FC_NAME(strip)
#define LANES ((ptrdiff_t)FC_LANES)

#ifndef FC_STRIP_TAPS
#define FC_STRIP_TAPS 3 /* the largest window of this file */
#endif

/* One row's part of LANES windows: the maximum or sum, and for FC_POOL_PLACE the cell of the plane it comes from. */
typedef struct {
    VEC value;
    IVEC place;
} PART;

/* Where a strip lies. */
typedef struct {
    ptrdiff_t first;             /* column of its first window's first cell, below 0 in the padding */
    IVEC column;                 /* column of each window's first cell */
    MASK inside[FC_STRIP_TAPS];  /* windows that have cell j inside the image */
    IVEC skip;                   /* cells of each window before the first one inside */
} STRIP;

FC_INLINE STRIP FC_NAME(strip_at)(const fc_pooling *p, const int kw, const int sw, const int edge, ptrdiff_t q)
{
    STRIP s;
    s.first = q * sw - p->left;
    s.column = FC_NAME(count)() * sw + (FC_INT)s.first;
    if (edge) {
        s.skip = (IVEC){0};
FC_UNROLL
        for (int j = kw - 1; j >= 0; j--) {
            s.inside[j] = FC_NAME(between)((IVEC){0}, s.column + j, FC_NAME(iall)((FC_INT)p->w));
            s.skip = FC_NAME(ipick)(s.inside[j], FC_NAME(iall)(j), s.skip);
        }
    }
    return s;
}

/* Cells 0 to kw - 1 of each of LANES windows: cells[j] = row[j + sw*lane]. Reads nothing behind the last window's last cell. */
FC_INLINE void FC_NAME(load_cells)(const int kw, const int sw, const FC_T *row, VEC *cells)
{
    if (sw == 1) {
FC_UNROLL
        for (int j = 0; j < kw; j++) {
            cells[j] = FC_NAME(load)(row + j);
            FC_HOLD(cells[j]);
        }
        return;
    }
    VEC a = FC_NAME(load)(row), b = FC_NAME(load)(row + LANES);
    FC_HOLD(a);
    FC_HOLD(b);
    cells[0] = FC_NAME(evens)(a, b);
    cells[1] = FC_NAME(odds)(a, b);
    if (kw == 3) /* the first cells, one window on */
        cells[2] = FC_NAME(next)(cells[0], FC_NAME(all)(row[2 * LANES]));
}

FC_INLINE PART FC_NAME(better)(const int what, PART old, PART new)
{
    if (what == FC_POOL_SUM) {
        old.value += new.value;
    } else if (what == FC_POOL_MAX) {
        old.value = FC_NAME(larger)(old.value, new.value);
    } else {
        const MASK wins = FC_NAME(wins)(old.value, new.value);
        old.value = FC_NAME(pick)(wins, new.value, old.value);
        old.place = FC_NAME(ipick)(wins, new.place, old.place);
    }
    return old;
}

/* What windows have where there is no cell. */
FC_INLINE VEC FC_NAME(nothing)(const int what)
{
    return FC_NAME(all)(what == FC_POOL_SUM ? (FC_T)0 : (FC_T)-__builtin_inf());
}

FC_INLINE PART FC_NAME(across)(const int what, const int kw, const int sw, const int edge, const STRIP *s,
                               const FC_T *row)
{
    PART best = {{0}, {0}};
    VEC cells[FC_STRIP_TAPS];
    FC_NAME(load_cells)(kw, sw, row, cells);
FC_UNROLL
    for (int j = 0; j < kw; j++) {
        PART cell = {cells[j], FC_NAME(iall)(j)};
        if (edge)
            cell.value = FC_NAME(pick)(s->inside[j], cell.value, FC_NAME(nothing)(what));
        if (edge && j == 0)
            cell.place = s->skip; /* where all are -inf it stays: the first cell inside */
        best = j ? FC_NAME(better)(what, best, cell) : cell;
    }
    return best;
}

/* Where a walk is: `at` is where the strip's cells of row `row` lie in x; `place` their windows' first cells. */
typedef struct {
    ptrdiff_t row, at;
    IVEC place;
} FC_NAME(cursor);

/* The next row's part, one row on. */
FC_INLINE PART FC_NAME(next_part)(const int what, const int kw, const int sw, const int edge, const fc_pooling *p,
                                  const STRIP *s, ptrdiff_t starts, FC_NAME(cursor) *c, FC_T *copy)
{
    const ptrdiff_t span = (LANES - 1) * sw + kw;
    const FC_T *row = (const FC_T *)p->x + c->at;
    PART part;
    if (FC_UNLIKELY((size_t)c->row >= (size_t)p->h)) {
        part = (PART){FC_NAME(nothing)(what), edge ? s->skip : (IVEC){0}};
    } else {
        if (edge && FC_UNLIKELY((size_t)c->at >= (size_t)starts)) { /* would read beside x: only what is in the row */
            const ptrdiff_t from = s->first < 0 ? -s->first : 0;
            const ptrdiff_t to = p->w - s->first < span ? p->w - s->first : span;
            for (ptrdiff_t i = from; i < to; i++)
                copy[i] = row[i];
            row = copy;
        }
        part = FC_NAME(across)(what, kw, sw, edge, s, row);
    }
    if (what == FC_POOL_PLACE) {
        part.place += c->place;
        if (c->row >= 0) /* rows above the image stand for its first one */
            c->place += (FC_INT)p->w;
    }
    c->row++;
    c->at += p->w;
    return part;
}

FC_INLINE void FC_NAME(store_places)(int64_t *to, IVEC place)
{
#if FC_LANES * 8 == FC_BYTES
    FC_NAME(store)((FC_T *)to, (VEC)place);
#else /* no place is negative, so zeros between the words make them wider */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    const VEC low = FC_NAME(lows)((VEC){0}, (VEC)place), high = FC_NAME(highs)((VEC){0}, (VEC)place);
#else
    const VEC low = FC_NAME(lows)((VEC)place, (VEC){0}), high = FC_NAME(highs)((VEC)place, (VEC){0});
#endif
    FC_NAME(store)((FC_T *)to, low);
    FC_NAME(store)((FC_T *)(to + LANES / 2), high);
#endif
}

FC_INLINE void FC_NAME(store_places_part)(int64_t *to, IVEC place, ptrdiff_t count)
{
    int64_t places[FC_LANES];
    FC_NAME(store_places)(places, place);
    for (ptrdiff_t i = 0; i < count; i++) {
        FC_FEW;
        to[i] = places[i];
    }
}

FC_INLINE void FC_NAME(walk)(const int what, const int kh, const int kw, const int sh, const int sw, const int edge,
                             const fc_pooling *pooling, fc_walk *walk)
{
    const fc_pooling here = *pooling, *const p = &here; /* a copy that no store can change */
    const STRIP s = FC_NAME(strip_at)(p, kw, sw, edge, walk->column);
    const int kept = kh - sh; /* rows that a window shares with the one below */
    const ptrdiff_t spans = p->planes * p->h * p->w - ((LANES - 1) * sw + kw) + 1;
    const ptrdiff_t starts = spans > 0 ? spans : 0; /* places in x where the cells of a strip may start */
    const ptrdiff_t step = walk->step, step_out = walk->step_out, step_indices = walk->step_indices;
    const char *ahead = walk->ahead, *ahead_out = walk->ahead_out, *ahead_indices = walk->ahead_indices;
    ptrdiff_t to = walk->column;
    FC_T copy[2 * FC_LANES + 2];
    PART part[FC_STRIP_TAPS];
    if (edge)
        for (int i = 0; i < 2 * FC_LANES + 2; i++)
            copy[i] = 0;

    for (ptrdiff_t plane = walk->plane; plane < walk->plane + walk->planes; plane++) {
        const ptrdiff_t row = walk->row * sh - p->top;
        FC_NAME(cursor) c = {row, (plane * p->h + row) * p->w + s.first, s.column + (FC_INT)((row < 0 ? 0 : row) * p->w)};
FC_UNROLL
        for (int i = 0; i < kept; i++)
            part[i] = FC_NAME(next_part)(what, kw, sw, edge, p, &s, starts, &c, copy);
        const int32_t *divisor = what == FC_POOL_SUM ? p->divisor + walk->row : NULL;
        for (ptrdiff_t y = walk->rows; y > 0; y--) {
            if (p->streams) {
FC_UNROLL
                for (int i = 0; i < (sh * sw * FC_BYTES + 63) / 64; i++)
                    __builtin_prefetch(ahead + 64 * i, 0, 2);
                ahead += step;
                if (what == FC_POOL_PLACE) { /* most of the traffic is what is written */
                    __builtin_prefetch(ahead_out, 0, 2);
                    ahead_out += step_out;
FC_UNROLL
                    for (int i = 0; i < (FC_LANES * 8 + 63) / 64; i++)
                        __builtin_prefetch(ahead_indices + 64 * i, 0, 2);
                    ahead_indices += step_indices;
                }
            }
FC_UNROLL
            for (int i = kept; i < kh; i++)
                part[i] = FC_NAME(next_part)(what, kw, sw, edge, p, &s, starts, &c, copy);
            PART best = part[0];
FC_UNROLL
            for (int i = 1; i < kh; i++)
                best = FC_NAME(better)(what, best, part[i]);
            if (what == FC_POOL_SUM)
                best.value /= FC_NAME(load)((const FC_T *)p->divisors + *divisor++ * p->divisor_step + walk->column);
            FC_T *out = (FC_T *)walk->out + to;
            int64_t *indices = what == FC_POOL_PLACE ? walk->indices + to : NULL;
            if (FC_LIKELY(!edge || to + LANES <= walk->room)) { /* a narrow row's store reaches into the rows to come */
                FC_NAME(store)(out, best.value);
                if (what == FC_POOL_PLACE)
                    FC_NAME(store_places)(indices, best.place);
            } else {
                FC_NAME(store_part)(out, best.value, walk->room - to);
                if (what == FC_POOL_PLACE)
                    FC_NAME(store_places_part)(indices, best.place, walk->room - to);
            }
            to += p->ow;
FC_UNROLL
            for (int i = 0; i < kept; i++)
                part[i] = part[i + sh];
        }
    }
    walk->ahead = ahead;
    walk->ahead_out = ahead_out;
    walk->ahead_indices = ahead_indices;
}

typedef void (*FC_NAME(walk_fn))(const fc_pooling *, fc_walk *);

#define WALK(WHAT, KH, KW, SH, SW)                                                                                   \
    __attribute__((noinline)) static void FC_NAME(walk_##WHAT##_##KH##x##KW##_##SH##_edge)(const fc_pooling *p,       \
                                                                                           fc_walk *walk)            \
    {                                                                                                                \
        FC_NAME(walk)(FC_POOL_##WHAT, KH, KW, SH, SW, 1, p, walk);                                                   \
    }                                                                                                                \
    __attribute__((noinline)) static void FC_NAME(walk_##WHAT##_##KH##x##KW##_##SH)(const fc_pooling *p,              \
                                                                                    fc_walk *walk)                   \
    {                                                                                                                \
        FC_NAME(walk)(FC_POOL_##WHAT, KH, KW, SH, SW, 0, p, walk);                                                   \
    }
#define WALKS(KH, KW, SH, SW) WALK(MAX, KH, KW, SH, SW) WALK(PLACE, KH, KW, SH, SW) WALK(SUM, KH, KW, SH, SW)
#define WALK_TABLE(WHAT)                                                                                             \
    {                                                                                                                \
        {FC_NAME(walk_##WHAT##_2x2_2), FC_NAME(walk_##WHAT##_2x2_2_edge)},                                           \
            {FC_NAME(walk_##WHAT##_3x3_2), FC_NAME(walk_##WHAT##_3x3_2_edge)},                                       \
            {FC_NAME(walk_##WHAT##_3x3_1), FC_NAME(walk_##WHAT##_3x3_1_edge)},                                       \
            {FC_NAME(walk_##WHAT##_2x2_1), FC_NAME(walk_##WHAT##_2x2_1_edge)}                                        \
    }
WALKS(2, 2, 2, 2)
WALKS(3, 3, 2, 2)
WALKS(3, 3, 1, 1)
WALKS(2, 2, 1, 1)

/* By what, window (fc_strip_window), and whether some columns lie outside the image. */
static const FC_NAME(walk_fn) FC_NAME(walk_table)[3][4][2] = {WALK_TABLE(MAX), WALK_TABLE(PLACE), WALK_TABLE(SUM)};

#if FC_BYTES == FC_VECTOR_BYTES

/* One strip of row `y` of a plane's output; `row` is where the image's row of its windows' first cells begins, `kept` where
 * the parts of rows that the windows share with those above wait. */
FC_INLINE void FC_NAME(row_strip)(const int what, const int kh, const int kw, const int sh, const int sw, const int edge,
                                  const fc_pooling *p, const STRIP *s, ptrdiff_t starts, int fresh, ptrdiff_t y, ptrdiff_t row,
                                  ptrdiff_t column, PART *kept, FC_T *to, int64_t *indices, FC_T *copy)
{
    const ptrdiff_t r = y * sh - p->top;
    PART part[FC_STRIP_TAPS];
    const ptrdiff_t below = fresh ? r : r + kh - sh; /* the first row that is looked at */
    FC_NAME(cursor) c = {below, row + (below - r) * p->w + s->first, s->column + (FC_INT)((below < 0 ? 0 : below) * p->w)};
    if (FC_UNLIKELY(fresh)) {
FC_UNROLL
        for (int i = 0; i < kh - sh; i++)
            part[i] = FC_NAME(next_part)(what, kw, sw, edge, p, s, starts, &c, copy);
    } else {
FC_UNROLL
        for (int i = 0; i < kh - sh; i++) {
            part[i].value = kept[i].value;
            part[i].place = what == FC_POOL_PLACE ? kept[i].place : (IVEC){0};
        }
    }
FC_UNROLL
    for (int i = kh - sh; i < kh; i++)
        part[i] = FC_NAME(next_part)(what, kw, sw, edge, p, s, starts, &c, copy);
    PART best = part[0];
FC_UNROLL
    for (int i = 1; i < kh; i++)
        best = FC_NAME(better)(what, best, part[i]);
FC_UNROLL
    for (int i = 0; i < kh - sh; i++) {
        kept[i].value = part[i + sh].value;
        if (what == FC_POOL_PLACE)
            kept[i].place = part[i + sh].place;
    }
    if (what == FC_POOL_SUM)
        best.value /= FC_NAME(load)((const FC_T *)p->divisors + p->divisor[y] * p->divisor_step + column);
    FC_NAME(store)(to + column, best.value);
    if (what == FC_POOL_PLACE)
        FC_NAME(store_places)(indices + column, best.place);
}

/* Rows [first, stop) of output, of at least LANES windows, one after the other: image and result go by in the order of memory,
 * which reads twice as fast as strips that walk down, and the row that windows share is kept in `scratch`. */
FC_INLINE void FC_NAME(strip_rows)(const int what, const int kh, const int kw, const int sh, const int sw,
                                   const int streams, const fc_pooling *pooling, ptrdiff_t first, ptrdiff_t stop, fc_sink *out,
                                   fc_sink *indices, char *scratch)
{
    const fc_pooling here = *pooling, *const p = &here; /* a copy that no store can change */
    const ptrdiff_t ow = p->ow, strips = (ow + LANES - 1) / LANES, span = (LANES - 1) * sw + kw;
    const ptrdiff_t spans = p->planes * p->h * p->w - span + 1, starts = spans > 0 ? spans : 0;
    PART *const kept = (PART *)scratch;
    FC_T copy[2 * FC_LANES + 2] = {0};
    /* strips with columns beyond the image on the left, and on the right: the last ones cover some windows a second time */
    const STRIP left = FC_NAME(strip_at)(p, kw, sw, 1, 0);
    ptrdiff_t plane = first / p->oh, y = first % p->oh;
    for (int fresh = 1; first < stop; first++) {
        const ptrdiff_t r = y * sh - p->top, row = (plane * p->h + r) * p->w;
        const char *ahead = (const char *)((const FC_T *)p->x + row + (kh - sh) * p->w) + FC_AHEAD_BYTES / 2;
        for (ptrdiff_t i = 0; i < strips; i++) {
            const ptrdiff_t column = i * LANES + LANES <= ow ? i * LANES : ow - LANES, from = column * sw - p->left;
            if (streams) { /* in the order of memory, whatever the order in which it is needed */
FC_UNROLL
                for (int line = 0; line < (sh * sw * FC_BYTES + 63) / 64; line++)
                    __builtin_prefetch(ahead + 64 * line);
                ahead += sh * sw * FC_BYTES;
            }
            if (FC_LIKELY(from >= 0 && from + span <= p->w)) {
                STRIP s;
                s.first = from;
                s.column = FC_NAME(count)() * sw + (FC_INT)from;
                FC_NAME(row_strip)(what, kh, kw, sh, sw, 0, p, &s, starts, fresh, y, row, column, kept + i,
                                   (FC_T *)out->at, (int64_t *)indices->at, copy);
            } else {
                const STRIP s = i ? FC_NAME(strip_at)(p, kw, sw, 1, column) : left;
                FC_NAME(row_strip)(what, kh, kw, sh, sw, 1, p, &s, starts, fresh, y, row, column, kept + i,
                                   (FC_T *)out->at, (int64_t *)indices->at, copy);
            }
        }
        fc_written(out, ow * (ptrdiff_t)sizeof(FC_T));
        if (what == FC_POOL_PLACE)
            fc_written(indices, ow * 8);
        fresh = 0;
        if (++y == p->oh) {
            y = 0;
            plane++;
            fresh = 1;
        }
    }
}

typedef void (*FC_NAME(rows_fn))(const fc_pooling *, ptrdiff_t, ptrdiff_t, fc_sink *, fc_sink *, char *);

#define ROWS(WHAT, KH, KW, SH, SW)                                                                                   \
    __attribute__((noinline)) static void FC_NAME(rows_##WHAT##_##KH##x##KW##_##SH)(                                  \
        const fc_pooling *p, ptrdiff_t first, ptrdiff_t stop, fc_sink *out, fc_sink *indices, char *scratch)          \
    {                                                                                                                \
        if (p->streams)                                                                                               \
            FC_NAME(strip_rows)(FC_POOL_##WHAT, KH, KW, SH, SW, 1, p, first, stop, out, indices, scratch);            \
        else                                                                                                          \
            FC_NAME(strip_rows)(FC_POOL_##WHAT, KH, KW, SH, SW, 0, p, first, stop, out, indices, scratch);            \
    }
#define EACH_ROWS(WHAT) ROWS(WHAT, 2, 2, 2, 2) ROWS(WHAT, 3, 3, 2, 2)
#define ROWS_TABLE(WHAT) {FC_NAME(rows_##WHAT##_2x2_2), FC_NAME(rows_##WHAT##_3x3_2)}
EACH_ROWS(MAX)
EACH_ROWS(PLACE)
EACH_ROWS(SUM)

/* By what, and window. */
static const FC_NAME(rows_fn) FC_NAME(rows_table)[3][2] = {ROWS_TABLE(MAX), ROWS_TABLE(PLACE), ROWS_TABLE(SUM)};

#undef ROWS
#undef EACH_ROWS
#undef ROWS_TABLE
#endif

/* Rows of less than LANES windows. Where these have all their cells, the lanes behind them need no care: what they are made of
 * lies in the rows to come, and so does what they are stored to, but for the last planes of all. */
static void FC_NAME(walk_narrow)(const fc_pooling *p, int window, fc_walk walk)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), span = (LANES - 1) * p->sw + p->kw, all = p->planes * p->h * p->w;
    const ptrdiff_t result = walk.rows * p->ow, last = (walk.row + walk.rows - 1) * p->sh + p->kh - 1 - p->top;
    ptrdiff_t planes = p->left || (p->ow - 1) * p->sw + p->kw > p->w ? 0 : walk.planes;
    while (planes > 0 && (((walk.plane + planes - 1) * p->h + fc_min(last, p->h - 1)) * p->w + span > all ||
                          planes * result - p->ow + LANES > walk.room))
        planes--;
    const ptrdiff_t rest = walk.planes - planes;
    if (planes) {
        walk.planes = planes;
        FC_NAME(walk_table)[p->what][window][0](p, &walk);
        walk.plane += planes;
        walk.out = (char *)walk.out + planes * result * size;
        walk.room -= planes * result;
        if (p->what == FC_POOL_PLACE)
            walk.indices += planes * result;
    }
    if (rest) {
        walk.planes = rest;
        FC_NAME(walk_table)[p->what][window][1](p, &walk);
    }
}

/* Rows [first, stop) of output, counted through all planes. */
static void FC_NAME(pool_strips)(const fc_pooling *p, const fc_strips *plan, ptrdiff_t first, ptrdiff_t stop,
                                 fc_sink *out, fc_sink *indices, char *scratch)
{
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), strips = plan->strips;
#if FC_BYTES == FC_VECTOR_BYTES
    if (plan->kept) {
        FC_NAME(rows_table)[p->what][plan->window](p, first, stop, out, indices, scratch);
        return;
    }
#endif
    const ptrdiff_t line = p->w * p->sh * size; /* input of one row of output */
    fc_walk walk = {.plane = first / p->oh,
                    .row = first % p->oh,
                    .step = line / strips,
                    .step_out = p->ow * size / strips,
                    .step_indices = p->ow * 8 / strips};
    const ptrdiff_t distance = fc_max(FC_AHEAD_BYTES, plan->band * line);
    while (first < stop) {
        walk.rows = p->oh - walk.row < plan->band ? p->oh - walk.row : plan->band;
        walk.rows = stop - first < walk.rows ? stop - first : walk.rows;
        walk.planes = 1;
        if (walk.rows == p->oh)
            walk.planes = fc_min(plan->planes, (stop - first) / p->oh);
        /* prefetch in the order of memory, a band ahead, whatever the order in which strips need it */
        walk.ahead = (const char *)p->x + (walk.plane * p->h + walk.row * p->sh) * p->w * size + distance;
        walk.room = (out->end - out->at) / size;
        if (p->what == FC_POOL_PLACE) {
            walk.ahead_out = out->at + distance / line * p->ow * size;
            walk.ahead_indices = indices->at + distance / line * p->ow * 8;
            walk.room = (indices->end - indices->at) / 8 < walk.room ? (indices->end - indices->at) / 8 : walk.room;
            walk.indices = (int64_t *)indices->at;
        }
        walk.out = out->at;
        for (ptrdiff_t i = 0; i < strips; i++) {
            walk.column = i * LANES;
            if (i && walk.column + LANES > p->ow)
                walk.column = p->ow - LANES; /* the last strip covers some windows a second time */
            const ptrdiff_t from = walk.column * p->sw - p->left;
            const int edge = from < 0 || from + (LANES - 1) * p->sw + p->kw > p->w || walk.column + LANES > p->ow;
            if (edge && p->ow < LANES)
                FC_NAME(walk_narrow)(p, plan->window, walk);
            else
                FC_NAME(walk_table)[p->what][plan->window][edge](p, &walk);
        }
        const ptrdiff_t rows = walk.rows * walk.planes;
        fc_written(out, rows * p->ow * size);
        if (p->what == FC_POOL_PLACE)
            fc_written(indices, rows * p->ow * 8);
        first += rows;
        walk.row += walk.rows;
        if (walk.row == p->oh) {
            walk.row = 0;
            walk.plane += walk.planes;
        }
    }
}

#undef VEC
#undef IVEC
#undef MASK
#undef PART
#undef STRIP
#undef LANES
#undef WALK
#undef WALKS
#undef WALK_TABLE
