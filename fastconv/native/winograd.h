/* Template of Winograd's transforms and products for one element type; simd.h includes it after tiles.h, whose vectors it uses.
 *
 * F(MxM, RxR) (Winograd 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016): an output tile
 * of MxM comes from an input tile of NxN, N = M + R - 1, with N*N multiplications in place of M*M*R*R,
 *
 *     Y = A' [ (G g G') . (B' d B) ] A
 *
 * with N - 1 finite interpolation points and infinity. The matrices follow from the points alone (Toom-Cook): with
 * M(x) = product of (x - p) over the finite points,
 *
 *     A'  has the columns (1, p, ..., p^(M-1)) for a finite point p, and (0, ..., 0, 1);
 *     G   has the rows (1, p, ..., p^(R-1)) / N(p) with N(p) = product of (p - q) over the other finite q, and (0, ..., 0, 1);
 *     B'  has the rows of coefficients of M(x) / (x - p), and of M(x), lowest first.
 *
 *     F(4x4, 3x3), F(3x3, 4x4),  0, +-a, +-b with a^2 = 1/2 and b^2 = 2: M(x) = x - 5/2 x^3 + x^5, N(0) = 1,
 *     F(2x2, 5x5)                N(+-a) = -3/2, N(+-b) = 6. As a*b = 1, the powers of the points keep close to 1 and the
 *                                root mean square error is less than half of that of 1 and 2. B' is the same for all.
 *     F(2x2, 3x3)                0, +-1: M(x) = -x + x^3, N(0) = -1, N(+-1) = 2.
 *
 * tests/test_winograd.py derives them anew. Lanes are tiles, in the transform of filters output channels. Everything is
 * written so that each transform is a handful of FMAs on whole vectors. Functions below take M and R as constants; those at
 * the end of the file are what the loops around them call.
 */

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define UVEC FC_NAME(uvec)
#define IUVEC FC_NAME(iuvec)
#define LANES ((ptrdiff_t)FC_LANES)
#define POINT_A ((FC_T)0.70710678118654752440)
#define POINT_B ((FC_T)1.41421356237309504880)
#define SPREAD(value) ((FC_T)(value) - (VEC){0})

typedef FC_INT IUVEC __attribute__((vector_size(FC_VECTOR_BYTES), aligned(sizeof(FC_T)), may_alias));

/* B' d, in place. */
FC_INLINE void FC_NAME(winograd_b)(const int n, VEC *d)
{
    if (n == 4) {
        const VEC t0 = d[2] - d[0], t1 = d[1] + d[2], t2 = d[2] - d[1], t3 = d[3] - d[1];
        d[0] = t0;
        d[1] = t1;
        d[2] = t2;
        d[3] = t3;
        return;
    }
    const VEC t0 = d[0] - SPREAD(2.5) * d[2] + d[4];
    const VEC t5 = d[1] - SPREAD(2.5) * d[3] + d[5];
    const VEC even_a = d[4] - SPREAD(2) * d[2], odd_a = d[3] - SPREAD(2) * d[1];
    const VEC even_b = d[4] - SPREAD(0.5) * d[2], odd_b = d[3] - SPREAD(0.5) * d[1];
    d[0] = t0;
    d[1] = even_a + SPREAD(POINT_A) * odd_a;
    d[2] = even_a - SPREAD(POINT_A) * odd_a;
    d[3] = even_b + SPREAD(POINT_B) * odd_b;
    d[4] = even_b - SPREAD(POINT_B) * odd_b;
    d[5] = t5;
}

/* The same where the tiles in lanes that are not `whole` lie at the end of a row or column and have `missing` pixels less than M.
 * Their last cells then are seen by no pixel and may be anything: they are taken to be such that as many of the N values
 * vanish, which ones fc_short_skips says. */
FC_INLINE void FC_NAME(winograd_b_short)(const int n, int missing, IVEC whole, VEC *d)
{
    const IVEC zero3 = (IVEC)(SPREAD(0.5) * d[1]);
    const IVEC zero4 = (IVEC)(missing == 2 ? SPREAD(2.5) * d[2] - d[0] : SPREAD(0.5) * d[2]);
    if (n == 6 && missing == 3)
        d[3] = (VEC)(((IVEC)d[3] & whole) | (zero3 & ~whole));
    if (n == 6 && missing >= 2)
        d[4] = (VEC)(((IVEC)d[4] & whole) | (zero4 & ~whole));
    FC_NAME(winograd_b)(n, d);
    FC_UNROLL
    for (int i = 0; i < n; i++)
        if (fc_short_skips(n, missing, i)) /* exactly, whatever the last cells were */
            d[i] = (VEC)((IVEC)d[i] & whole);
}

/* A' m. */
FC_INLINE void FC_NAME(winograd_a)(const int m, const int n, const VEC *x, VEC *y)
{
    const VEC sum_a = x[1] + x[2], difference_a = x[1] - x[2];
    if (n == 4) {
        y[0] = x[0] + sum_a;
        y[1] = x[3] + difference_a;
        return;
    }
    const VEC sum_b = x[3] + x[4], difference_b = x[3] - x[4];
    y[0] = x[0] + sum_a + sum_b;
    y[1] = SPREAD(POINT_A) * difference_a + SPREAD(POINT_B) * difference_b;
    if (m == 2) {
        y[1] += x[5];
        return;
    }
    y[2] = SPREAD(0.5) * sum_a + SPREAD(2) * sum_b;
    if (m == 3) {
        y[2] += x[5];
        return;
    }
    y[3] = x[5] + SPREAD(POINT_A / 2) * difference_a + SPREAD(2 * POINT_B) * difference_b;
}

/* G g. */
FC_INLINE void FC_NAME(winograd_g)(const int n, const int r, const VEC *g, VEC *u)
{
    if (n == 4) {
        const VEC even = SPREAD(0.5) * (g[0] + g[2]), odd = SPREAD(0.5) * g[1];
        u[0] = -g[0];
        u[1] = even + odd;
        u[2] = even - odd;
        u[3] = g[2];
        return;
    }
    VEC even_a = g[0] + SPREAD(0.5) * g[2], odd_a = g[1];
    VEC even_b = g[0] + SPREAD(2) * g[2], odd_b = g[1];
    if (r >= 4) {
        odd_a += SPREAD(0.5) * g[3];
        odd_b += SPREAD(2) * g[3];
    }
    if (r == 5) {
        even_a += SPREAD(0.25) * g[4];
        even_b += SPREAD(4) * g[4];
    }
    even_a *= SPREAD(-1.0 / 1.5);
    even_b *= SPREAD(1.0 / 6);
    u[0] = g[0];
    u[1] = even_a - SPREAD(POINT_A / 1.5) * odd_a;
    u[2] = even_a + SPREAD(POINT_A / 1.5) * odd_a;
    u[3] = even_b + SPREAD(POINT_B / 6) * odd_b;
    u[4] = even_b - SPREAD(POINT_B / 6) * odd_b;
    u[5] = g[r - 1];
}

/* Which of the LANES cells from `cell` on are in [first, stop). */
FC_INLINE IVEC FC_NAME(cells_inside)(ptrdiff_t cell, ptrdiff_t first, ptrdiff_t stop)
{
    IVEC at;
    for (int i = 0; i < FC_LANES; i++)
        at[i] = i;
    at += (FC_INT)cell - (IVEC){0};
    return (at >= (FC_INT)first - (IVEC){0}) & (at < (FC_INT)stop - (IVEC){0});
}

/* LANES cells, with zeros for those that are not `in`. */
FC_INLINE VEC FC_NAME(cells)(const FC_T *from, IVEC in)
{
    return (VEC)(*(const IUVEC *)from & in);
}

/* The rows of a piece of a plane, its i-th at i*step behind what is returned: of a copy of what is inside, where `touched` cells
 * from the beginning of each row on are not all in the array. Rows outside of [top, bottom) are not there. */
FC_INLINE const FC_T *FC_NAME(piece_rows)(const fc_piece *piece, const fc_planes *from, const FC_T *plane, ptrdiff_t touched,
                                          ptrdiff_t copy, ptrdiff_t *step)
{
    const FC_T *row = plane + piece->cell;
    *step = from->width;
    if (piece->top >= piece->bottom
        || (row + piece->top * *step >= (const FC_T *)from->begin
            && row + (piece->bottom - 1) * *step + touched <= (const FC_T *)from->end))
        return row;
    FC_T *line = (FC_T *)from->line + copy;
    for (ptrdiff_t i = piece->top; i < piece->bottom; i++)
        memcpy(line + i * from->pitch + piece->first, row + i * *step + piece->first,
               (size_t)(piece->stop - piece->first) * sizeof(FC_T));
    *step = from->pitch;
    return line;
}

/* Constants for all lanes i of a vector. */
#if FC_LANES == 16
#define FOR_LANES(of, j)                                                                                             \
    of(0, j), of(1, j), of(2, j), of(3, j), of(4, j), of(5, j), of(6, j), of(7, j), of(8, j), of(9, j), of(10, j),    \
        of(11, j), of(12, j), of(13, j), of(14, j), of(15, j)
#elif FC_LANES == 8
#define FOR_LANES(of, j) of(0, j), of(1, j), of(2, j), of(3, j), of(4, j), of(5, j), of(6, j), of(7, j)
#elif FC_LANES == 4
#define FOR_LANES(of, j) of(0, j), of(1, j), of(2, j), of(3, j)
#else
#define FOR_LANES(of, j) of(0, j), of(1, j)
#endif
#define SHUFFLED(x, y, of, j) __builtin_shufflevector(x, y, FOR_LANES(of, j))

/* Lanes 1 to LANES - 1 of x, then lane `next` (0, 1 or 2) of y. */
#define SHIFT(i, next) ((i) + 1 < FC_LANES ? (i) + 1 : FC_LANES + (next))
#define SHIFTED(x, y, next) SHUFFLED(x, y, SHIFT, next)

/* Every third of 3*LANES cells, from the j-th on: what the first two vectors have of it, then the rest from the third. */
#define THIRD(i, j) (3 * (i) + (j) < 2 * FC_LANES ? 3 * (i) + (j) : 0)
#define LAST_THIRD(i, j) (3 * (i) + (j) < 2 * FC_LANES ? (i) : 3 * (i) + (j) - FC_LANES)
#define THIRDS(w, j) SHUFFLED(SHUFFLED(w[0], w[1], THIRD, j), w[2], LAST_THIRD, j)

/* The other way round: vector v of the three that have the lanes of y[0], y[1] and y[2] in turn. */
#define TURN(i, v) (((v) * FC_LANES + (i)) % 3 * FC_LANES % (2 * FC_LANES) + ((v) * FC_LANES + (i)) / 3)
#define LAST_TURN(i, v) (((v) * FC_LANES + (i)) % 3 < 2 ? (i) : FC_LANES + ((v) * FC_LANES + (i)) / 3)
#define IN_TURN(y, v) SHUFFLED(SHUFFLED(y[0], y[1], TURN, v), y[2], LAST_TURN, v)

/* Every fourth of 4*LANES cells: d[j] has those from the j-th on. */
FC_INLINE void FC_NAME(fourths)(const VEC *w, VEC *d)
{
    const VEC e0 = FC_NAME(even)(w[0], w[1]), e1 = FC_NAME(even)(w[2], w[3]);
    const VEC o0 = FC_NAME(odd)(w[0], w[1]), o1 = FC_NAME(odd)(w[2], w[3]);
    d[0] = FC_NAME(even)(e0, e1);
    d[1] = FC_NAME(even)(o0, o1);
    d[2] = FC_NAME(odd)(e0, e1);
    d[3] = FC_NAME(odd)(o0, o1);
}

/* What follows transforms all rows of cells of some tiles of a plane along the width: to[(i*n + j)*pitch + lane] gets (B' d)[j] of
 * row i of a tile. Cells outside of a piece's rows [top, bottom) and cells [first, stop) count as zeros. What lies `ahead` (the
 * next channel) is fetched meanwhile: the rows of a plane are too short for the hardware to follow. */

/* One piece of any length, a vector of tiles at a time. Stores whole vectors. */
FC_INLINE void FC_NAME(run_tiles)(const int m, const int r, const fc_piece *piece, const fc_planes *from, const FC_T *plane,
                                  FC_T *to, ptrdiff_t pitch)
{
    enum { LINE = 64 / sizeof(FC_T) };
    const int n = m + r - 1, vectors = m == 4 ? 5 : m == 2 ? n : FC_LANES > 2 ? 4 : 5;
    ptrdiff_t step;
    const ptrdiff_t touched = m * ((piece->count + LANES - 1) / LANES * LANES) + (LANES > 4 ? LANES : 4);
    const FC_T *rows = FC_NAME(piece_rows)(piece, from, plane, touched, 0, &step);
    for (ptrdiff_t t = 0; t < piece->count; t += LANES) {
        ptrdiff_t at[6];
        IVEC in[6];
        FC_UNROLL
        for (int v = 0; v < vectors; v++) {
            at[v] = m * t + (m == 2 ? v / 2 * 2 + v % 2 * LANES : v < 4 || m == 4 ? v * LANES : 3 * LANES + 1);
            in[v] = FC_NAME(cells_inside)(at[v], piece->first, piece->stop);
        }
        FC_T *store = to + piece->lane + t;
        for (int i = 0; i < n; i++, store += n * pitch) {
            VEC w[6], d[6];
            if (i < piece->top || i >= piece->bottom) {
                for (int j = 0; j < n; j++)
                    *(UVEC *)(store + j * pitch) = (VEC){0};
                continue;
            }
            const FC_T *row = rows + i * step;
            for (ptrdiff_t k = 0; k < m * LANES; k += LINE)
                __builtin_prefetch(row + from->ahead + m * t + k);
            FC_UNROLL
            for (int v = 0; v < vectors; v++)
                w[v] = FC_NAME(cells)(row + at[v], in[v]);
            if (m == 4) {
                FC_NAME(fourths)(w, d);
                d[4] = SHIFTED(d[0], w[4], 0); /* a tile's last two cells are the first two of the next */
                d[5] = SHIFTED(d[1], w[4], 1);
            } else if (m == 3) {
                d[0] = THIRDS(w, 0);
                d[1] = THIRDS(w, 1);
                d[2] = THIRDS(w, 2);
                d[3] = SHIFTED(d[0], w[3], 0);
                d[4] = SHIFTED(d[1], w[3], 1);
#if FC_LANES > 2
                d[5] = SHIFTED(d[2], w[3], 2);
#else
                d[5] = SHIFTED(d[2], w[4], 1);
#endif
            } else {
                FC_UNROLL
                for (int j = 0; j < n; j += 2) {
                    d[j] = FC_NAME(even)(w[j], w[j + 1]);
                    d[j + 1] = FC_NAME(odd)(w[j], w[j + 1]);
                }
            }
            FC_NAME(winograd_b)(n, d);
            FC_UNROLL
            for (int j = 0; j < n; j++)
                *(UVEC *)(store + j * pitch) = d[j];
        }
    }
}

/* m pieces, 2 or 4 and of LANES/m tiles or less, `count` of which exist: as m neighbouring vectors of one row are taken apart in
 * run_tiles. Stores LANES/m lanes of each: what lies behind a piece of fewer tiles comes later. */
FC_INLINE void FC_NAME(pieces_tiles)(const int m, const int r, const fc_piece *piece, ptrdiff_t count, const fc_planes *from,
                                     const FC_T *plane, FC_T *to, ptrdiff_t pitch)
{
    enum { LINE = 64 / sizeof(FC_T) };
    static const FC_T nothing[LANES + 4];
    const int n = m + r - 1, each = FC_LANES / m, parts = m == 4 ? 2 : n / 2;
    const FC_T *rows[4];
    ptrdiff_t step[4], top[4], bottom[4], lane[4];
    IVEC in[3][4];
    int dense = 1;
    FC_UNROLL
    for (int k = 0; k < m; k++) {
        const fc_piece *p = piece + (k < count ? k : 0);
        rows[k] = FC_NAME(piece_rows)(p, from, plane, LANES + 4, k * n * from->pitch, &step[k]);
        top[k] = p->top;
        bottom[k] = k < count ? p->bottom : p->top;
        lane[k] = k < count ? p->lane : FC_BLOCK_TILES; /* where no tile is */
        dense &= lane[k] == piece->lane + k * each;
        FC_UNROLL
        for (int part = 0; part < parts; part++)
            in[part][k] = FC_NAME(cells_inside)((m == 4 ? 4 : 2) * part, p->first, p->stop);
    }
    for (int i = 0; i < n; i++, to += n * pitch) {
        VEC d[6], w[3][4], last[4];
        FC_UNROLL
        for (int k = 0; k < m; k++) {
            const FC_T *row = rows[k] + i * step[k];
            for (ptrdiff_t cell = 0; cell < LANES + 4; cell += LINE)
                __builtin_prefetch(row + from->ahead + cell);
            row = i >= top[k] && i < bottom[k] ? row : nothing;
            FC_UNROLL
            for (int part = 0; part < parts; part++)
                w[part][k] = FC_NAME(cells)(row + (m == 4 ? 4 : 2) * part, in[part][k]);
        }
        if (m == 4) {
            FC_NAME(fourths)(w[0], d);
            FC_NAME(fourths)(w[1], last);
            d[4] = last[0];
            d[5] = last[1];
        } else {
            FC_UNROLL
            for (int part = 0; part < parts; part++) {
                d[2 * part] = FC_NAME(even)(w[part][0], w[part][1]);
                d[2 * part + 1] = FC_NAME(odd)(w[part][0], w[part][1]);
            }
        }
        FC_NAME(winograd_b)(n, d);
        FC_UNROLL
        for (int j = 0; j < n; j++) {
            if (dense) {
                *(UVEC *)(to + j * pitch + lane[0]) = d[j];
                continue;
            }
            FC_UNROLL
            for (int k = 0; k < m; k++)
                memcpy(to + j * pitch + lane[k], (const FC_T *)&d[j] + k * each, each * sizeof(FC_T));
        }
    }
}

/* Up to LANES pieces of one tile, the last one of its row of tiles, which has `missing` pixels less than m there. What they
 * need, at most 5 cells in a row, is gathered as if it were neighbouring tiles. Stores a whole vector. */
FC_INLINE void FC_NAME(brief_tiles)(const int n, int missing, const fc_piece *piece, ptrdiff_t count, const fc_planes *from,
                                    const FC_T *plane, FC_T *to, ptrdiff_t pitch)
{
    const int five = n - missing > 4;
    FC_T four[6][4 * LANES], fifth[6][LANES];
    memset(four, 0, sizeof four);
    memset(fifth, 0, sizeof fifth);
    for (ptrdiff_t k = 0; k < count; k++) {
        ptrdiff_t step;
        const FC_T *rows = FC_NAME(piece_rows)(piece + k, from, plane, 5, 0, &step);
        for (ptrdiff_t i = piece[k].top; i < piece[k].bottom; i++) {
            memcpy(four[i] + 4 * k, rows + i * step, 4 * sizeof(FC_T));
            if (five)
                fifth[i][k] = rows[i * step + 4];
        }
    }
    for (int i = 0; i < n; i++, to += n * pitch) {
        VEC w[4], d[6];
        FC_UNROLL
        for (int v = 0; v < 4; v++)
            w[v] = *(const UVEC *)(four[i] + v * LANES);
        FC_NAME(fourths)(w, d);
        d[4] = *(const UVEC *)fifth[i];
        d[5] = (VEC){0};
        FC_UNROLL
        for (int j = 0; j < 5; j++) /* all of them are in the same column */
            if (j < piece->first || j >= piece->stop)
                d[j] = (VEC){0};
        FC_NAME(winograd_b_short)(n, missing, (IVEC){0}, d);
        FC_UNROLL
        for (int j = 0; j < n; j++)
            *(UVEC *)(to + j * pitch + piece->lane) = d[j];
    }
}

/* Transforms along the height: from[(i*n + j)*plane + t] to v[(i*n + j)*step + t], for `count` tiles, of which those before
 * `low` are whole and the others have `missing` pixels less than M. What the next channel will be stored to lies `next`
 * further: it is fetched meanwhile, because no hardware follows n*n streams. */
FC_INLINE void FC_NAME(columns_tiles)(const int n, const FC_T *from, ptrdiff_t plane, ptrdiff_t count, ptrdiff_t low,
                                      int missing, FC_T *v, ptrdiff_t step, ptrdiff_t next)
{
    for (ptrdiff_t t = 0; t < count; t += LANES) {
        IVEC whole;
        for (int i = 0; i < FC_LANES; i++)
            whole[i] = i;
        whole = whole < (FC_INT)(low - t) - (IVEC){0};
        for (int j = 0; j < n; j++) {
            VEC d[6];
            FC_UNROLL
            for (int i = 0; i < n; i++)
                d[i] = *(const UVEC *)(from + (i * n + j) * plane + t);
            if (t + LANES > low)
                FC_NAME(winograd_b_short)(n, missing, whole, d);
            else
                FC_NAME(winograd_b)(n, d);
            FC_UNROLL
            for (int i = 0; i < n; i++) {
                *(UVEC *)(v + (i * n + j) * step + t) = d[i];
                __builtin_prefetch(v + (i * n + j) * step + t + next, 1);
            }
        }
    }
}

/* Transforms products back: x[(i*n + j)*plane + t] to pixels[i*line + m*t + j] with i, j < m, for `count` tiles, whole
 * vectors. Adds *bias, then FC_RELU. spoiled[t] becomes NaN where a pixel of tile t was not finite before the ReLU. */
FC_INLINE void FC_NAME(output_tiles)(const int m, const int r, const FC_T *x, ptrdiff_t plane, ptrdiff_t count,
                                     FC_T *pixels, ptrdiff_t line, const FC_T *bias, int flags, FC_T *spoiled)
{
    const int n = m + r - 1;
    const VEC add = bias ? *bias - (VEC){0} : (VEC){0};
    for (ptrdiff_t t = 0; t < count; t += LANES) {
        VEC half[4][6], zero = *(const UVEC *)(spoiled + t);
        FC_UNROLL
        for (int j = 0; j < n; j++) {
            VEC column[6], y[4];
            FC_UNROLL
            for (int i = 0; i < n; i++)
                column[i] = *(const UVEC *)(x + (i * n + j) * plane + t);
            FC_NAME(winograd_a)(m, n, column, y);
            FC_UNROLL
            for (int i = 0; i < m; i++)
                half[i][j] = y[i];
        }
        FC_UNROLL
        for (int i = 0; i < m; i++) {
            VEC y[4], a, b, c, d, e, f, g, h;
            FC_T *to = pixels + i * line + m * t;
            FC_NAME(winograd_a)(m, n, half[i], y);
            FC_UNROLL
            for (int j = 0; j < m; j++) {
                y[j] += add;
                zero += y[j] * SPREAD(0); /* NaN from the first infinity or NaN on */
                if (flags & FC_RELU)
                    y[j] = (VEC)((IVEC)y[j] & ~(IVEC)(y[j] < (VEC){0}));
            }
            /* vectors of one column each -> vectors of neighbouring pixels */
            if (m == 2) {
                FC_NAME(zip)(y[0], y[1], &a, &b);
                *(UVEC *)to = a;
                *(UVEC *)(to + LANES) = b;
                continue;
            }
            if (m == 3) {
                *(UVEC *)to = IN_TURN(y, 0);
                *(UVEC *)(to + LANES) = IN_TURN(y, 1);
                *(UVEC *)(to + 2 * LANES) = IN_TURN(y, 2);
                continue;
            }
            FC_NAME(zip)(y[0], y[2], &a, &b);
            FC_NAME(zip)(y[1], y[3], &c, &d);
            FC_NAME(zip)(a, c, &e, &f);
            FC_NAME(zip)(b, d, &g, &h);
            *(UVEC *)to = e;
            *(UVEC *)(to + LANES) = f;
            *(UVEC *)(to + 2 * LANES) = g;
            *(UVEC *)(to + 3 * LANES) = h;
        }
        *(UVEC *)(spoiled + t) = zero;
    }
}

/* Lanes of the transform of filters: of one panel's output channels, and of so many input channels, one behind the other. */
#define PANEL_LANES (FC_LANES < FC_PANEL ? FC_LANES : FC_PANEL)
#define SOURCES (FC_LANES / PANEL_LANES)

#if FC_LANES == 16
typedef FC_T UHALF __attribute__((vector_size(FC_VECTOR_BYTES / 2), aligned(sizeof(FC_T)), may_alias));

/* Two transpositions of 8x8, one in the first and one in the second 8 lanes of all vectors, by three perfect shuffles. */
#define INTERLEAVED(i, high) ((i) / 8 * 8 + (i) % 8 / 2 + 4 * (high) + (i) % 2 * 16)
FC_INLINE void FC_NAME(turn_halves)(VEC *x)
{
    FC_UNROLL
    for (int stage = 0; stage < 3; stage++) {
        VEC y[8];
        FC_UNROLL
        for (int i = 0; i < 4; i++) {
            y[2 * i] = SHUFFLED(x[i], x[i + 4], INTERLEAVED, 0);
            y[2 * i + 1] = SHUFFLED(x[i], x[i + 4], INTERLEAVED, 1);
        }
        FC_UNROLL
        for (int i = 0; i < 8; i++)
            x[i] = y[i];
    }
}
#undef INTERLEAVED
#endif

/* The taps of filters g[k*step + s*source_step + tap] of `count` output channels k and `sources` input channels s: tap[i] has
 * tap i of all of them, lane s*PANEL_LANES + k of one, and zeros for those that do not exist. */
FC_INLINE void FC_NAME(taps)(const int taps, const FC_T *g, ptrdiff_t step, ptrdiff_t source_step, ptrdiff_t count,
                             ptrdiff_t sources, ptrdiff_t ahead, VEC *tap)
{
    enum { MOST = 25, SIDE = FC_LANES < 8 ? FC_LANES : 8 }; /* of what is transposed */
    FC_T lane[MOST][FC_LANES];
    const int whole = taps / SIDE * SIDE;
    if (count >= PANEL_LANES && sources >= SOURCES) {
        FC_UNROLL
        for (int t = 0; t < whole; t += SIDE) {
            VEC column[SIDE];
            FC_UNROLL
            for (int i = 0; i < SIDE; i++) {
                const FC_T *from = g + i * step + t;
                if (t == 0)
                    __builtin_prefetch(from + ahead);
#if FC_LANES == 16
                column[i] = __builtin_shufflevector(*(const UHALF *)from, *(const UHALF *)(from + source_step), 0, 1, 2, 3, 4,
                                                    5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
                column[i] = *(const UVEC *)from;
#endif
            }
#if FC_LANES == 16
            FC_NAME(turn_halves)(column);
#else
            FC_NAME(turn)(column);
#endif
            FC_UNROLL
            for (int i = 0; i < SIDE; i++)
                tap[t + i] = column[i];
        }
        for (int t = whole; t < taps; t++) {
            for (int i = 0; i < FC_LANES; i++)
                lane[t][i] = g[i % PANEL_LANES * step + i / PANEL_LANES * source_step + t];
            tap[t] = *(const UVEC *)lane[t];
        }
        return;
    }
    memset(lane, 0, sizeof lane);
    for (ptrdiff_t s = 0; s < SOURCES && s < sources; s++)
        for (ptrdiff_t k = 0; k < PANEL_LANES && k < count; k++)
            for (int t = 0; t < taps; t++)
                lane[t][s * PANEL_LANES + k] = g[k * step + s * source_step + t];
    for (int t = 0; t < taps; t++)
        tap[t] = *(const UVEC *)lane[t];
}

/* Transforms the filters of one panel of output channels, `count` of which exist: g[k*step + s*source_step + tap] of output
 * channel k and input channel s to u[(y*n + x)*plane + s*FC_PANEL + k], for all `sources`; turned by 180 degrees where `turn`
 * is not 0. Stores whole vectors: a plane must have room for SOURCES - 1 input channels more. */
FC_INLINE void FC_NAME(filter_tiles)(const int m, const int r, const FC_T *g, ptrdiff_t step, ptrdiff_t source_step, int turn,
                                     ptrdiff_t count, ptrdiff_t sources, FC_T *u, ptrdiff_t plane)
{
    const int n = m + r - 1;
    for (ptrdiff_t s = 0; s < sources; s += SOURCES)
        for (ptrdiff_t k = 0; k < FC_PANEL; k += PANEL_LANES) {
            FC_T *to = u + s * FC_PANEL + k;
            VEC tap[25], half[6][5];
            FC_NAME(taps)(r * r, g + k * step + s * source_step, step, source_step, count - k, sources - s,
                           s + 16 < sources ? 16 * source_step : FC_PANEL * step - (sources - 16) * source_step, tap);
            FC_UNROLL
            for (int j = 0; j < r; j++) {
                VEC column[5], y[6];
                FC_UNROLL
                for (int i = 0; i < r; i++)
                    column[i] = turn ? tap[r * r - 1 - i * r - j] : tap[i * r + j];
                FC_NAME(winograd_g)(n, r, column, y);
                FC_UNROLL
                for (int i = 0; i < n; i++)
                    half[i][j] = y[i];
            }
            FC_UNROLL
            for (int i = 0; i < n; i++) {
                VEC y[6];
                FC_NAME(winograd_g)(n, r, half[i], y);
                FC_UNROLL
                for (int j = 0; j < n; j++) {
                    *(UVEC *)(to + (i * n + j) * plane) = y[j];
                    __builtin_prefetch(to + (i * n + j) * plane + 2 * LANES, 1);
                }
            }
        }
}
#undef PANEL_LANES
#undef SOURCES

/* Product tile: c[i][p] = sum over s of a[s*lda + i] * b[s*ldb + p] for `rows` rows and `vectors` vectors of p; the `n` rows
 * of a at `ahead`, which come next, are fetched meanwhile. With `add` the sum is added to c. Called with constant `rows` and
 * `vectors` only. */
FC_INLINE void FC_NAME(product)(const int rows, const int vectors, const FC_T *a, const FC_T *ahead, ptrdiff_t lda,
                                const FC_T *b, ptrdiff_t ldb, ptrdiff_t n, FC_T *c, ptrdiff_t ldc, int add)
{
    VEC acc[FC_PRODUCT_ROWS][FC_PRODUCT_VECTORS];
    FC_UNROLL
    for (int i = 0; i < rows; i++)
        FC_UNROLL
        for (int j = 0; j < vectors; j++)
            acc[i][j] = (VEC){0};
    for (ptrdiff_t s = 0; s < n; s++) {
        VEC right[FC_PRODUCT_VECTORS];
        FC_UNROLL
        for (int j = 0; j < vectors; j++)
            right[j] = *(const UVEC *)(b + s * ldb + j * LANES);
        __builtin_prefetch(ahead + s * lda);
        FC_UNROLL
        for (int i = 0; i < rows; i++) {
            const VEC left = a[s * lda + i] - (VEC){0}; /* broadcast */
            FC_UNROLL
            for (int j = 0; j < vectors; j++)
                acc[i][j] += left * right[j];
        }
    }
    FC_UNROLL
    for (int i = 0; i < rows; i++)
        FC_UNROLL
        for (int j = 0; j < vectors; j++) {
            UVEC *to = (UVEC *)(c + i * ldc + j * LANES);
            if (add)
                acc[i][j] += *to;
            *to = acc[i][j];
        }
}

#define PRODUCT(V)                                                                                                   \
    __attribute__((noinline)) static void FC_NAME(product_##V)(const FC_T *a, const FC_T *ahead, ptrdiff_t lda,       \
                                                               const FC_T *b, ptrdiff_t ldb, ptrdiff_t n, FC_T *c,    \
                                                               ptrdiff_t ldc, int add)                               \
    {                                                                                                                \
        FC_NAME(product)(FC_PRODUCT_ROWS, V, a, ahead, lda, b, ldb, n, c, ldc, add);                                 \
    }
PRODUCT(1)
PRODUCT(2)
#if FC_PRODUCT_VECTORS == 3
PRODUCT(3)
#endif
#undef PRODUCT

/* As many of the `rest` vectors as the next product tile is to take. */
FC_INLINE ptrdiff_t FC_NAME(product_vectors)(ptrdiff_t rest)
{
    if (FC_PRODUCT_VECTORS == 3 && (rest == 3 || rest > 4)) /* two twos are better than three and one */
        return 3;
    return rest < 2 ? rest : 2;
}

FC_INLINE void FC_NAME(product_of)(ptrdiff_t vectors, const FC_T *a, const FC_T *ahead, ptrdiff_t lda, const FC_T *b,
                                   ptrdiff_t ldb, ptrdiff_t n, FC_T *c, ptrdiff_t ldc, int add)
{
#if FC_PRODUCT_VECTORS == 3
    if (vectors == 3) {
        FC_NAME(product_3)(a, ahead, lda, b, ldb, n, c, ldc, add);
        return;
    }
#endif
    (vectors == 2 ? FC_NAME(product_2) : FC_NAME(product_1))(a, ahead, lda, b, ldb, n, c, ldc, add);
}

/* (FC_PANEL, n) @ (n, vectors*LANES): one panel of U with V of one block of tiles. Sums are cut into pieces of about
 * FC_PRODUCT_TERMS terms, which are added up then: the error of a blocked sum is that of its pieces. With `add` they are
 * added to what is there. */
static void FC_NAME(winograd_product)(const FC_T *a, const FC_T *ahead, const FC_T *b, ptrdiff_t ldb, ptrdiff_t n,
                                      ptrdiff_t vectors, FC_T *c, ptrdiff_t ldc, int add)
{
    const ptrdiff_t pieces = fc_product_pieces(n);
    for (ptrdiff_t piece = 0, start = 0; piece < pieces; piece++) {
        const ptrdiff_t terms = n * (piece + 1) / pieces - start;
        for (int i = 0; i < FC_PANEL; i += FC_PRODUCT_ROWS) {
            const FC_T *left = a + start * FC_PANEL + i, *next = ahead + start * FC_PANEL, *right = b + start * ldb;
            FC_T *to = c + i * ldc;
            for (ptrdiff_t rest = vectors, taken; rest; rest -= taken, right += taken * LANES, to += taken * LANES) {
                taken = FC_NAME(product_vectors)(rest);
                FC_NAME(product_of)(taken, left, next, FC_PANEL, right, ldb, terms, to, ldc, add || piece > 0);
            }
        }
        start += terms;
    }
}

/* The gradient of 3x3 filters is a convolution, too: with the output's gradient in place of filters and as many images as
 * there are channels, it is the sum over tiles of F(3x3, 4x4) of 6x6 cells of the image and 4x4 of the output's gradient.
 * Lanes are channels here, because tiles are what the products sum over. */

/* Cells [x, x + cells) of rows [y, y + rows) of the `channels` planes at `source`, at most LANES, one vector for a cell, in
 * to[(i*pitch + j)*LANES + channel]: zeros outside of the h x w cells of a plane and of channels that do not exist. Stores
 * up to a multiple of LANES cells in a row. Reads whole vectors, of what lies in [begin, end); the cells that lie `ahead` are
 * fetched meanwhile. */
static void FC_NAME(winograd_strip)(const FC_T *source, ptrdiff_t channels, ptrdiff_t h, ptrdiff_t w, ptrdiff_t y, ptrdiff_t x,
                                    ptrdiff_t rows, ptrdiff_t cells, ptrdiff_t ahead, const FC_T *begin,
                                    const FC_T *end, FC_T *to, ptrdiff_t pitch)
{
    IVEC iota;
    for (int k = 0; k < FC_LANES; k++)
        iota[k] = k;
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < cells; j += LANES) {
            FC_T *cell = to + (i * pitch + j) * LANES, lane[FC_LANES][FC_LANES];
            VEC column[FC_LANES];
            const ptrdiff_t first = -(x + j), stop = w - (x + j); /* of the cells in the plane, counted from here */
            if (y + i < 0 || y + i >= h || first >= LANES || stop <= 0) {
                FC_UNROLL
                for (int k = 0; k < FC_LANES; k++)
                    *(UVEC *)(cell + k * LANES) = (VEC){0};
                continue;
            }
            const FC_T *row = source + (y + i) * w + x + j;
            ptrdiff_t step = h * w;
            if (channels < LANES || row < begin || row + (LANES - 1) * step + LANES > end) {
                memset(lane, 0, sizeof lane);
                for (ptrdiff_t c = 0; c < channels; c++)
                    for (ptrdiff_t k = first > 0 ? first : 0; k < LANES && k < stop; k++)
                        lane[c][k] = row[c * step + k];
                row = lane[0];
                step = LANES;
            }
            const FC_INT low = first > 0 ? (FC_INT)first : 0, high = stop < LANES ? (FC_INT)stop : FC_LANES;
            const IVEC inside = (iota >= low - (IVEC){0}) & (iota < high - (IVEC){0});
            FC_UNROLL
            for (int c = 0; c < FC_LANES; c++) {
                column[c] = (VEC)(*(const IUVEC *)(row + c * step) & inside);
                __builtin_prefetch(row + c * step + ahead);
            }
            FC_NAME(turn)(column);
            FC_UNROLL
            for (int k = 0; k < FC_LANES; k++)
                *(UVEC *)(cell + k * LANES) = column[k];
        }
}

/* B' d, in place, of 6 cells of a tile whose last `missing` pixels of the output's gradient do not exist: its last cells meet
 * nothing but their zeros, as those of winograd_b_short meet no pixel, and the same values vanish. */
FC_INLINE void FC_NAME(winograd_b_of)(int missing, VEC *d)
{
    if (missing)
        FC_NAME(winograd_b_short)(6, missing, (IVEC){0}, d);
    else
        FC_NAME(winograd_b)(6, d);
}

/* Transforms a strip of `count` neighbouring tiles that begin 4 cells apart, of 6x6 cells by B' or of 4x4 by G, to
 * v[(i*6 + j)*plane + t*step + lane]. So many rows (low) and columns (narrow) of pixels are missing in all of them. Where the
 * next tile goes is fetched meanwhile. */
FC_INLINE void FC_NAME(strip_tiles)(const int gradient, int low, int narrow, const FC_T *strip, ptrdiff_t pitch,
                                    ptrdiff_t count, FC_T *v, ptrdiff_t plane, ptrdiff_t step)
{
    const int cells = gradient ? 4 : 6;
    for (ptrdiff_t t = 0; t < count; t++, strip += 4 * LANES, v += step) {
        VEC half[6][6];
        FC_UNROLL
        for (int i = 0; i < cells; i++) {
            VEC d[6];
            FC_UNROLL
            for (int j = 0; j < cells; j++)
                d[j] = *(const UVEC *)(strip + (i * pitch + j) * LANES);
            if (gradient)
                FC_NAME(winograd_g)(6, 4, d, half[i]);
            else {
                FC_NAME(winograd_b_of)(narrow, d);
                FC_UNROLL
                for (int j = 0; j < 6; j++)
                    half[i][j] = d[j];
            }
        }
        FC_UNROLL
        for (int j = 0; j < 6; j++) {
            VEC d[6], u[6];
            FC_UNROLL
            for (int i = 0; i < cells; i++)
                d[i] = half[i][j];
            if (gradient)
                FC_NAME(winograd_g)(6, 4, d, u);
            else
                FC_NAME(winograd_b_of)(low, d);
            FC_UNROLL
            for (int i = 0; i < 6; i++) {
                *(UVEC *)(v + (i * 6 + j) * plane) = gradient ? u[i] : d[i];
                __builtin_prefetch(v + (i * 6 + j) * plane + step, 1);
            }
        }
    }
}

static void FC_NAME(winograd_strip_tiles)(int gradient, int low, int narrow, const FC_T *strip, ptrdiff_t pitch,
                                          ptrdiff_t count, FC_T *v, ptrdiff_t plane, ptrdiff_t step)
{
    if (gradient)
        FC_NAME(strip_tiles)(1, 0, 0, strip, pitch, count, v, plane, step);
    else if (low || narrow)
        FC_NAME(strip_tiles)(0, low, narrow, strip, pitch, count, v, plane, step);
    else
        FC_NAME(strip_tiles)(0, 0, 0, strip, pitch, count, v, plane, step);
}

/* (rows, n) @ (n, vectors*LANES), a[s*lda + i] transposed; `rows` is a multiple of FC_PANEL. Added to c with `add`. What comes
 * next, `ahead_a` and `ahead_b` cells behind a and b, is asked for meanwhile, a part of it before each tile of products, where
 * these are not 0. */
static void FC_NAME(winograd_outer)(const FC_T *a, ptrdiff_t lda, const FC_T *b, ptrdiff_t ldb, ptrdiff_t n, ptrdiff_t rows,
                                    ptrdiff_t vectors, FC_T *c, ptrdiff_t ldc, int add, ptrdiff_t ahead_a, ptrdiff_t ahead_b)
{
    enum { LINE = 64 / sizeof(FC_T) };
    const FC_T *next_a = a + ahead_a, *next_b = b + ahead_b;
    const ptrdiff_t tiles = ahead_a ? rows / FC_PRODUCT_ROWS * ((vectors + FC_PRODUCT_VECTORS - 1) / FC_PRODUCT_VECTORS) : 1;
    const ptrdiff_t lines_a = (n * lda / LINE + tiles) / tiles, lines_b = (n * ldb / LINE + tiles) / tiles;
    for (ptrdiff_t rest = vectors, taken; rest; rest -= taken, b += taken * LANES, c += taken * LANES) {
        taken = FC_NAME(product_vectors)(rest);
        for (ptrdiff_t i = 0; i < rows; i += FC_PRODUCT_ROWS) {
            if (ahead_a) {
                for (ptrdiff_t line = 0; line < lines_a; line++, next_a += LINE)
                    __builtin_prefetch(next_a);
                for (ptrdiff_t line = 0; line < lines_b; line++, next_b += LINE)
                    __builtin_prefetch(next_b);
            }
            FC_NAME(product_of)(taken, a + i, a + i, lda, b, ldb, n, c + i * ldc, ldc, add);
        }
    }
}

/* Transforms sums of products x[(i*6 + j)*plane + c] of `count` channels c to the gradients of filters, dw[c*9 + tap]. With
 * `add` they are added to what is there. Taps are turned in registers where a vector has 9 lanes, and stored as whole vectors
 * whose ends the next filter overwrites. */
static void FC_NAME(winograd_filter_gradients)(const FC_T *x, ptrdiff_t plane, ptrdiff_t count, FC_T *dw, int add)
{
    for (ptrdiff_t c = 0; c < count; c += LANES) {
        VEC half[3][6];
        FC_T tap[9][FC_LANES];
        FC_UNROLL
        for (int j = 0; j < 6; j++) {
            VEC column[6], y[4];
            FC_UNROLL
            for (int i = 0; i < 6; i++)
                column[i] = *(const UVEC *)(x + (i * 6 + j) * plane + c);
            FC_NAME(winograd_a)(3, 6, column, y);
            FC_UNROLL
            for (int i = 0; i < 3; i++)
                half[i][j] = y[i];
        }
        FC_UNROLL
        for (int i = 0; i < 3; i++) {
            VEC y[4];
            FC_NAME(winograd_a)(3, 6, half[i], y);
            FC_UNROLL
            for (int j = 0; j < 3; j++)
                *(UVEC *)tap[3 * i + j] = y[j];
        }
#if FC_LANES > 9
        if (!add) {
            VEC filter[FC_LANES];
            FC_UNROLL
            for (int t = 0; t < FC_LANES; t++)
                filter[t] = (VEC){0};
            FC_UNROLL
            for (int t = 0; t < 9; t++)
                filter[t] = *(const UVEC *)tap[t];
            FC_NAME(turn)(filter);
            const ptrdiff_t stop = count - c < LANES ? count - c : LANES;
            FC_UNROLL
            for (int k = 0; k < FC_LANES; k++) {
                if (k < stop - 1 || (k < stop && c + k + 1 < count))
                    *(UVEC *)(dw + (c + k) * 9) = filter[k];
                else if (k < stop) /* the last one, behind which others' gradients lie */
                    memcpy(dw + (c + k) * 9, &filter[k], 9 * sizeof(FC_T));
            }
            continue;
        }
#endif
        for (ptrdiff_t k = 0; k < LANES && c + k < count; k++)
            for (int t = 0; t < 9; t++)
                dw[(c + k) * 9 + t] = tap[t][k] + (add ? dw[(c + k) * 9 + t] : 0);
    }
}

/* What follows takes `tile` and `filter`, the M and R of F(MxM, RxR): 4 and 3, 3 and 4, 2 and 3, or 2 and 5. */
#define BY_TILE(call)                                                                                                \
    if (tile == 4)                                                                                                   \
        call(4, 3);                                                                                                  \
    else if (tile == 3)                                                                                              \
        call(3, 4);                                                                                                  \
    else if (filter == 3)                                                                                            \
        call(2, 3);                                                                                                  \
    else                                                                                                             \
        call(2, 5)

/* Rows of cells of the pieces piece[0] to piece[count - 1] of a plane, as fc_piece says they are taken together. */
static void FC_NAME(winograd_rows)(int tile, int filter, int missing, const fc_piece *piece, ptrdiff_t count,
                                   const fc_planes *from, const FC_T *plane, FC_T *to, ptrdiff_t pitch)
{
#define RUN(M, R) FC_NAME(run_tiles)(M, R, piece, from, plane, to, pitch)
    for (ptrdiff_t taken; count; piece += taken, count -= taken) {
        taken = piece->together;
        if (piece->brief && tile + filter == 5)
            FC_NAME(brief_tiles)(4, missing, piece, taken, from, plane, to, pitch);
        else if (piece->brief)
            FC_NAME(brief_tiles)(6, missing, piece, taken, from, plane, to, pitch);
        else if (piece->whole_row) {
            BY_TILE(RUN);
        } else if (tile == 4)
            FC_NAME(pieces_tiles)(4, 3, piece, taken, from, plane, to, pitch);
        else if (filter == 3)
            FC_NAME(pieces_tiles)(2, 3, piece, taken, from, plane, to, pitch);
        else
            FC_NAME(pieces_tiles)(2, 5, piece, taken, from, plane, to, pitch);
    }
#undef RUN
}

static void FC_NAME(winograd_columns)(int n, const FC_T *from, ptrdiff_t plane, ptrdiff_t count, ptrdiff_t low, int missing,
                                      FC_T *v, ptrdiff_t step, ptrdiff_t next)
{
    if (n == 6)
        FC_NAME(columns_tiles)(6, from, plane, count, low, missing, v, step, next);
    else
        FC_NAME(columns_tiles)(4, from, plane, count, low, missing, v, step, next);
}

static void FC_NAME(winograd_output)(int tile, int filter, const FC_T *x, ptrdiff_t plane, ptrdiff_t count, FC_T *pixels,
                                     ptrdiff_t line, const FC_T *bias, int flags, FC_T *spoiled)
{
#define OUTPUT(M, R) FC_NAME(output_tiles)(M, R, x, plane, count, pixels, line, bias, flags, spoiled)
    BY_TILE(OUTPUT);
#undef OUTPUT
}

static void FC_NAME(winograd_filters)(int tile, int filter, const FC_T *g, ptrdiff_t step, ptrdiff_t source_step, int turn,
                                      ptrdiff_t count, ptrdiff_t sources, FC_T *u, ptrdiff_t plane)
{
#define FILTERS(M, R) FC_NAME(filter_tiles)(M, R, g, step, source_step, turn, count, sources, u, plane)
    BY_TILE(FILTERS);
#undef FILTERS
}

#undef BY_TILE
#undef FOR_LANES
#undef SHUFFLED
#undef SHIFT
#undef SHIFTED
#undef THIRD
#undef LAST_THIRD
#undef THIRDS
#undef TURN
#undef LAST_TURN
#undef IN_TURN
#undef VEC
#undef IVEC
#undef UVEC
#undef IUVEC
#undef LANES
#undef POINT_A
#undef POINT_B
#undef SPREAD
