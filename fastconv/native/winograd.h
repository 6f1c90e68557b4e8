/* Template of Winograd's transforms for one element type; simd.h includes it after tiles.h, whose vectors it uses.
 *
 * F(4x4, 3x3) (Winograd 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016): an output tile
 * of 4x4 comes from an input tile of 6x6 with 36 multiplications in place of 144,
 *
 *     Y = A' [ (G g G') . (B' d B) ] A
 *
 * with the interpolation points 0, +-a, +-b and infinity. The matrices follow from the points alone (Toom-Cook): with
 * M(x) = x (x^2 - a^2) (x^2 - b^2),
 *
 *     A'  has the columns (1, p, p^2, p^3) for a finite point p, and (0, 0, 0, 1);
 *     G   has the rows (1, p, p^2) / N(p) with N(p) = product of (p - q) over the other finite q, and (0, 0, 1);
 *     B'  has the rows of coefficients of M(x) / (x - p), and of M(x), lowest first.
 *
 * With a^2 = 1/2 and b^2 = 2 (so a*b = 1, which keeps the powers of the points close to 1 and the root mean square
 * error at less than half of that of 1 and 2): M(x) = x - 5/2 x^3 + x^5, N(0) = 1, N(+-a) = -3/2, N(+-b) = 6. tests/test_winograd.py derives them anew.
 *
 * Lanes are tiles. Everything is written so that each transform is a handful of FMAs on whole vectors.
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
FC_INLINE void FC_NAME(winograd_b)(VEC d[6])
{
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

/* A' m. */
FC_INLINE void FC_NAME(winograd_a)(const VEC m[6], VEC y[4])
{
    const VEC sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const VEC sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = SPREAD(POINT_A) * difference_a + SPREAD(POINT_B) * difference_b;
    y[2] = SPREAD(0.5) * sum_a + SPREAD(2) * sum_b;
    y[3] = m[5] + SPREAD(POINT_A / 2) * difference_a + SPREAD(2 * POINT_B) * difference_b;
}

/* G g. */
FC_INLINE void FC_NAME(winograd_g)(const VEC g[3], VEC u[6])
{
    const VEC even_a = g[0] + SPREAD(0.5) * g[2], odd_a = SPREAD(POINT_A) * g[1];
    const VEC even_b = g[0] + SPREAD(2) * g[2], odd_b = SPREAD(POINT_B) * g[1];
    u[0] = g[0];
    u[1] = SPREAD(-1.0 / 1.5) * (even_a + odd_a);
    u[2] = SPREAD(-1.0 / 1.5) * (even_a - odd_a);
    u[3] = SPREAD(1.0 / 6) * (even_b + odd_b);
    u[4] = SPREAD(1.0 / 6) * (even_b - odd_b);
    u[5] = g[2];
}

/* LANES cells from row[cell] on, with zeros for cells outside [first, stop). */
FC_INLINE VEC FC_NAME(cells)(const FC_T *row, FC_INT cell, FC_INT first, FC_INT stop)
{
    IVEC at;
    for (int i = 0; i < FC_LANES; i++)
        at[i] = i;
    at += cell - (IVEC){0};
    return (VEC)(*(const IUVEC *)(row + cell) & (at >= first - (IVEC){0}) & (at < stop - (IVEC){0}));
}

/* Lanes 1 to LANES - 1 of x, then lane `next` (0 or 1) of y. */
#if FC_LANES == 16
#define FC_SHIFT(next) 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 + next
#elif FC_LANES == 8
#define FC_SHIFT(next) 1, 2, 3, 4, 5, 6, 7, 8 + next
#elif FC_LANES == 4
#define FC_SHIFT(next) 1, 2, 3, 4 + next
#else
#define FC_SHIFT(next) 1, 2 + next
#endif
#if defined(__clang__)
#define SHIFTED(x, y, next) __builtin_shufflevector(x, y, FC_SHIFT(next))
#else
#define SHIFTED(x, y, next) __builtin_shuffle(x, y, (IVEC){FC_SHIFT(next)})
#endif

/* Transforms one row of `count` neighbouring tiles along the width: to[j*plane + t] gets (B' d)[j] of tile t, whose cells are
 * row[4*t] to row[4*t + 5], where cells outside [first, stop) count as zeros. Reads and stores whole vectors: the 5 vectors
 * from the first cell of every LANES tiles must be readable, and to[j*plane] have room for them. */
static void FC_NAME(winograd_row)(const FC_T *row, ptrdiff_t first, ptrdiff_t stop, ptrdiff_t count, FC_T *to,
                                  ptrdiff_t plane)
{
    for (ptrdiff_t t = 0; t < count; t += LANES) {
        VEC w[5], d[6];
        FC_UNROLL
        for (int k = 0; k < 5; k++)
            w[k] = FC_NAME(cells)(row, (FC_INT)(4 * t + k * LANES), (FC_INT)first, (FC_INT)stop);
        const VEC e0 = FC_NAME(even)(w[0], w[1]), e1 = FC_NAME(even)(w[2], w[3]);
        const VEC o0 = FC_NAME(odd)(w[0], w[1]), o1 = FC_NAME(odd)(w[2], w[3]);
        d[0] = FC_NAME(even)(e0, e1);
        d[1] = FC_NAME(even)(o0, o1);
        d[2] = FC_NAME(odd)(e0, e1);
        d[3] = FC_NAME(odd)(o0, o1);
        d[4] = SHIFTED(d[0], w[4], 0); /* a tile's last two cells are the first two of the next */
        d[5] = SHIFTED(d[1], w[4], 1);
        FC_NAME(winograd_b)(d);
        FC_UNROLL
        for (int j = 0; j < 6; j++)
            *(UVEC *)(to + j * plane + t) = d[j];
    }
}
#undef SHIFTED
#undef FC_SHIFT

/* Transforms along the height: from[(i*6 + j)*plane + t], i = 0..5, to v[(i*6 + j)*step + t], for `count` tiles. What the
 * next channel will be stored to lies `next` further: it is fetched meanwhile, because no hardware follows 36 streams. */
static void FC_NAME(winograd_columns)(const FC_T *from, ptrdiff_t plane, ptrdiff_t count, FC_T *v, ptrdiff_t step,
                                      ptrdiff_t next)
{
    for (ptrdiff_t t = 0; t < count; t += LANES)
        for (int j = 0; j < 6; j++) {
            VEC d[6];
            FC_UNROLL
            for (int i = 0; i < 6; i++)
                d[i] = *(const UVEC *)(from + (i * 6 + j) * plane + t);
            FC_NAME(winograd_b)(d);
            FC_UNROLL
            for (int i = 0; i < 6; i++) {
                *(UVEC *)(v + (i * 6 + j) * step + t) = d[i];
                __builtin_prefetch(v + (i * 6 + j) * step + t + next, 1);
            }
        }
}

/* Transforms products back: m[(i*6 + j)*plane + t] to pixels[r*line + 4*t + s] with r, s = 0..3, for `count` tiles, whole
 * vectors. Adds *bias, then FC_RELU. Returns 0 where a value was not finite before the ReLU. */
static int FC_NAME(winograd_output)(const FC_T *m, ptrdiff_t plane, ptrdiff_t count, FC_T *pixels, ptrdiff_t line,
                                    const FC_T *bias, int flags)
{
    const VEC add = bias ? *bias - (VEC){0} : (VEC){0};
    VEC spoiled = (VEC){0};
    for (ptrdiff_t t = 0; t < count; t += LANES) {
        VEC half[4][6];
        FC_UNROLL
        for (int j = 0; j < 6; j++) {
            VEC column[6], y[4];
            FC_UNROLL
            for (int i = 0; i < 6; i++)
                column[i] = *(const UVEC *)(m + (i * 6 + j) * plane + t);
            FC_NAME(winograd_a)(column, y);
            FC_UNROLL
            for (int r = 0; r < 4; r++)
                half[r][j] = y[r];
        }
        FC_UNROLL
        for (int r = 0; r < 4; r++) {
            VEC y[4], a, b, c, d, e, f, g, h;
            FC_NAME(winograd_a)(half[r], y);
            FC_UNROLL
            for (int s = 0; s < 4; s++) {
                y[s] += add;
                spoiled += y[s] * SPREAD(0); /* NaN from the first infinity or NaN on */
                if (flags & FC_RELU)
                    y[s] = (VEC)((IVEC)y[s] & ~(IVEC)(y[s] < (VEC){0}));
            }
            /* four vectors of one column each -> four vectors of neighbouring pixels */
            FC_NAME(zip)(y[0], y[2], &a, &b);
            FC_NAME(zip)(y[1], y[3], &c, &d);
            FC_NAME(zip)(a, c, &e, &f);
            FC_NAME(zip)(b, d, &g, &h);
            *(UVEC *)(pixels + r * line + 4 * t) = e;
            *(UVEC *)(pixels + r * line + 4 * t + LANES) = f;
            *(UVEC *)(pixels + r * line + 4 * t + 2 * LANES) = g;
            *(UVEC *)(pixels + r * line + 4 * t + 3 * LANES) = h;
        }
    }
    return FC_NAME(sum_lanes)(spoiled) == 0;
}

/* LANES rows of LANES values from[i*step + j], turned into columns: zipping the two halves log2(LANES) times. */
FC_INLINE void FC_NAME(transpose)(const FC_T *from, ptrdiff_t step, VEC column[FC_LANES])
{
    FC_UNROLL
    for (int i = 0; i < FC_LANES; i++)
        column[i] = *(const UVEC *)(from + i * step);
    FC_NAME(turn)(column);
}

/* The 9 taps of `count` filters g[i*step + tap]: tap[k] has tap k of all of them. Nothing is read at `end` or behind. */
FC_INLINE void FC_NAME(taps)(const FC_T *g, ptrdiff_t step, ptrdiff_t count, const FC_T *end, VEC tap[9])
{
    enum { WHOLE = 9 - 9 % (FC_LANES < 9 ? FC_LANES : 9) }; /* taps that come from transpositions */
    FC_T lane[9][FC_LANES];
    if (count == LANES && g + (LANES - 1) * step + WHOLE + LANES <= end) {
        FC_UNROLL
        for (int k = 0; k < WHOLE; k += FC_LANES) {
            VEC column[FC_LANES];
            FC_NAME(transpose)(g + k, step, column);
            FC_UNROLL
            for (int i = 0; i < FC_LANES; i++)
                if (k + i < 9)
                    tap[k + i] = column[i];
        }
        if (WHOLE == 8) {
            for (int i = 0; i < FC_LANES; i++)
                lane[8][i] = g[i * step + 8];
            tap[8] = *(const UVEC *)lane[8];
        }
        return;
    }
    memset(lane, 0, sizeof lane);
    for (ptrdiff_t i = 0; i < count; i++)
        for (int k = 0; k < 9; k++)
            lane[k][i] = g[i * step + k];
    FC_UNROLL
    for (int k = 0; k < 9; k++)
        tap[k] = *(const UVEC *)lane[k];
}

/* Transforms the filters of one output channel: g[c*step + tap] (tap = kh*3 + kw) to u[(i*6 + j)*plane + c], for all
 * `channels`; turned by 180 degrees where `turn` is not 0. Nothing is read at `end` or behind. */
static void FC_NAME(winograd_filters)(const FC_T *g, ptrdiff_t step, int turn, ptrdiff_t channels, const FC_T *end,
                                      FC_T *u, ptrdiff_t plane)
{
    for (ptrdiff_t c = 0; c < channels; c += LANES) {
        const ptrdiff_t count = channels - c < LANES ? channels - c : LANES;
        VEC tap[9], half[6][3];
        FC_NAME(taps)(g + c * step, step, count, end, tap);
        FC_UNROLL
        for (int j = 0; j < 3; j++) {
            VEC column[3], y[6];
            FC_UNROLL
            for (int i = 0; i < 3; i++)
                column[i] = turn ? tap[8 - i * 3 - j] : tap[i * 3 + j];
            FC_NAME(winograd_g)(column, y);
            FC_UNROLL
            for (int i = 0; i < 6; i++)
                half[i][j] = y[i];
        }
        for (int i = 0; i < 6; i++) {
            VEC y[6];
            FC_NAME(winograd_g)(half[i], y);
            FC_UNROLL
            for (int j = 0; j < 6; j++) {
                FC_T *to = u + (i * 6 + j) * plane + c;
                if (count == LANES)
                    *(UVEC *)to = y[j];
                else {
                    FC_T lane[FC_LANES];
                    *(UVEC *)lane = y[j];
                    for (ptrdiff_t k = 0; k < count; k++) {
                        FC_FEW;
                        to[k] = lane[k];
                    }
                }
            }
        }
    }
}

#undef VEC
#undef IVEC
#undef UVEC
#undef IUVEC
#undef LANES
#undef POINT_A
#undef POINT_B
#undef SPREAD
