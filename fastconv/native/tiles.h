/* Template of the micro-kernels for one element type; simd.h includes it with FC_T and FC_NAME set. */

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define UVEC FC_NAME(uvec)
#define LANES ((ptrdiff_t)FC_LANES)

typedef FC_T VEC __attribute__((vector_size(FC_VECTOR_BYTES)));
typedef FC_INT IVEC __attribute__((vector_size(FC_VECTOR_BYTES)));
/* The same vector in memory, at any address that an element may have. */
typedef FC_T UVEC __attribute__((vector_size(FC_VECTOR_BYTES), aligned(sizeof(FC_T)), may_alias));

/* Correlation tile: c[i][p] = sum over r of a[i][r] * b[offset[r] + p], for `rows` rows and `vectors` vectors of p.
 *
 * (rows, n) @ (n, vectors*LANES) -> (rows, vectors*LANES), where row r of the right-hand matrix starts anywhere: in a
 * padded image it is the image shifted by one tap, in a packed panel it is the next row of the panel. a has a row
 * stride of `lda` (weights as they lie in memory), c one of `ldc`. With FC_ACCUMULATE c's old value is added, then
 * `bias` (one for each row, or NULL), then FC_RELU replaces what is below zero (and keeps NaN). With FC_PAST_CACHES, which
 * wants c and ldc at multiples of a vector, the result bypasses the caches. The lines `asked` are asked for meanwhile, into
 * the cache that `asking` says. Called with constant `asking`, `rows` and `vectors` only, so that every loop over them
 * unrolls and acc lives in registers. */
FC_INLINE void FC_NAME(correlate)(const int asking, const int rows, const int vectors, const FC_T *a, ptrdiff_t lda, const FC_T *b,
                                  const ptrdiff_t *offset, ptrdiff_t n, FC_T *c, ptrdiff_t ldc, const FC_T *bias,
                                  int flags, const fc_asked *asked)
{
    VEC acc[FC_TILE_ROWS][FC_TILE_VECTORS];
FC_UNROLL
    for (int i = 0; i < rows; i++)
FC_UNROLL
        for (int j = 0; j < vectors; j++)
            acc[i][j] = (VEC){0};

    /* One line with each term, or with every second or fourth one, where they are enough: else too many would be on their way. With
     * the terms that remain one that is near: a branch would cost more. */
    const char *const from = asking ? asked->from : NULL;
    const ptrdiff_t *const ask = asking ? asked->at : NULL, lines = asking ? asked->count : 0;
    const int pace = (2 * lines <= n) + (4 * lines <= n);
    for (ptrdiff_t r = 0; r < n; r++) {
        const FC_T *row = b + offset[r];
        VEC right[FC_TILE_VECTORS];
        if (asking) {
            const ptrdiff_t line = r >> pace;
            fc_ask_for((const char *)((uintptr_t)from + (uintptr_t)ask[line < lines ? line : lines]),
                       asking == FC_ASK_NEAR ? 3 : 2);
        }
FC_UNROLL
        for (int j = 0; j < vectors; j++)
            right[j] = *(const UVEC *)(row + j * LANES);
FC_UNROLL
        for (int i = 0; i < rows; i++) {
            const VEC left = a[i * lda + r] - (VEC){0}; /* broadcast */
FC_UNROLL
            for (int j = 0; j < vectors; j++)
                acc[i][j] += left * right[j];
        }
    }

    /* One loop for each thing that is done, and so a branch for each and not for each vector. Each has its own pointers, as
     * far as the compiler knows: it would keep one for each vector over all of them. */
    if (flags & FC_ACCUMULATE) {
FC_UNROLL
        for (int i = 0; i < rows; i++) {
            const FC_T *to = c + i * ldc;
            FC_HIDE(to);
FC_UNROLL
            for (int j = 0; j < vectors; j++)
                acc[i][j] += *(const UVEC *)(to + j * LANES);
        }
    }
    if (bias) {
FC_UNROLL
        for (int i = 0; i < rows; i++) {
            const VEC added = bias[i] - (VEC){0};
FC_UNROLL
            for (int j = 0; j < vectors; j++)
                acc[i][j] += added;
        }
    }
    if (flags & FC_RELU) {
FC_UNROLL
        for (int i = 0; i < rows; i++)
FC_UNROLL
            for (int j = 0; j < vectors; j++)
                acc[i][j] = (VEC)((IVEC)acc[i][j] & ~(IVEC)(acc[i][j] < (VEC){0}));
    }
    if (flags & FC_PAST_CACHES) {
FC_UNROLL
        for (int i = 0; i < rows; i++) {
            FC_T *to = c + i * ldc;
            FC_HIDE(to);
FC_UNROLL
            for (int j = 0; j < vectors; j++)
                FC_STREAM_VECTOR(to + j * LANES, acc[i][j]);
        }
    } else {
FC_UNROLL
        for (int i = 0; i < rows; i++) {
            FC_T *to = c + i * ldc;
            FC_HIDE(to);
FC_UNROLL
            for (int j = 0; j < vectors; j++)
                *(UVEC *)(to + j * LANES) = acc[i][j];
        }
    }
}

typedef void (*FC_NAME(correlate_fn))(const FC_T *, ptrdiff_t, const FC_T *, const ptrdiff_t *, ptrdiff_t, FC_T *,
                                      ptrdiff_t, const FC_T *, int, const fc_asked *);

#define CORRELATE_TILE(NAME, ASKING, R, V)                                                                           \
    __attribute__((noinline)) static void FC_NAME(NAME##_##R##x##V)(                                                  \
        const FC_T *a, ptrdiff_t lda, const FC_T *b, const ptrdiff_t *offset, ptrdiff_t n, FC_T *c, ptrdiff_t ldc,    \
        const FC_T *bias, int flags, const fc_asked *asked)                                                          \
    {                                                                                                                \
        FC_NAME(correlate)(ASKING, R, V, a, lda, b, offset, n, c, ldc, bias, flags, asked);                          \
    }
#define CORRELATE(R, V)                                                                                              \
    CORRELATE_TILE(correlate, 0, R, V)                                                                               \
    CORRELATE_TILE(correlate_asking, FC_ASK_NEAR, R, V) CORRELATE_TILE(correlate_asking_l2, FC_ASK, R, V)
#define CORRELATE_ROWS(V) CORRELATE(1, V) CORRELATE(2, V) CORRELATE(3, V) CORRELATE(4, V) CORRELATE(5, V) CORRELATE(6, V)
#define CORRELATE_TABLE(NAME, V)                                                                                     \
    {                                                                                                                \
        FC_NAME(NAME##_1x##V), FC_NAME(NAME##_2x##V), FC_NAME(NAME##_3x##V), FC_NAME(NAME##_4x##V),                   \
            FC_NAME(NAME##_5x##V), FC_NAME(NAME##_6x##V)                                                             \
    }

CORRELATE_ROWS(1)
CORRELATE_ROWS(2)
#if FC_TILE_VECTORS == 4
CORRELATE_ROWS(3)
CORRELATE_ROWS(4)
#endif

/* By asking, then vectors - 1, then rows - 1. */
static const FC_NAME(correlate_fn) FC_NAME(correlate_table)[3][FC_TILE_VECTORS][FC_TILE_ROWS] = {
    {
        CORRELATE_TABLE(correlate, 1), CORRELATE_TABLE(correlate, 2),
#if FC_TILE_VECTORS == 4
        CORRELATE_TABLE(correlate, 3), CORRELATE_TABLE(correlate, 4),
#endif
    },
    {
        CORRELATE_TABLE(correlate_asking, 1), CORRELATE_TABLE(correlate_asking, 2),
#if FC_TILE_VECTORS == 4
        CORRELATE_TABLE(correlate_asking, 3), CORRELATE_TABLE(correlate_asking, 4),
#endif
    },
    {
        CORRELATE_TABLE(correlate_asking_l2, 1), CORRELATE_TABLE(correlate_asking_l2, 2),
#if FC_TILE_VECTORS == 4
        CORRELATE_TABLE(correlate_asking_l2, 3), CORRELATE_TABLE(correlate_asking_l2, 4),
#endif
    },
};

/* Sum of the lanes of a vector, in a fixed order: halves are folded onto each other. */
FC_INLINE FC_T FC_NAME(sum_lanes)(VEC v)
{
    FC_T lane[FC_VECTOR_BYTES / sizeof(FC_T)];
    *(UVEC *)lane = v;
FC_UNROLL
    for (ptrdiff_t half = LANES / 2; half > 0; half /= 2)
        for (ptrdiff_t i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

static FC_T FC_NAME(add_lanes)(const FC_T *from) { return FC_NAME(sum_lanes)(*(const UVEC *)from); }

/* The lanes of x and y in turn: the first halves, then the second halves. */
FC_INLINE void FC_NAME(zip)(VEC x, VEC y, VEC *low, VEC *high)
{
#if FC_LANES == 16
#define FC_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define FC_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif FC_LANES == 8
#define FC_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define FC_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#elif FC_LANES == 4
#define FC_LOW 0, 4, 1, 5
#define FC_HIGH 2, 6, 3, 7
#else
#define FC_LOW 0, 2
#define FC_HIGH 1, 3
#endif
#if defined(__clang__)
    *low = __builtin_shufflevector(x, y, FC_LOW);
    *high = __builtin_shufflevector(x, y, FC_HIGH);
#else
    *low = __builtin_shuffle(x, y, (IVEC){FC_LOW});
    *high = __builtin_shuffle(x, y, (IVEC){FC_HIGH});
#endif
#undef FC_LOW
#undef FC_HIGH
}

/* Turns LANES rows of LANES values into columns, in place: zipping the two halves log2(LANES) times. */
FC_INLINE void FC_NAME(turn)(VEC v[FC_LANES])
{
    FC_UNROLL
    for (int stage = 1; stage < FC_LANES; stage *= 2) {
        VEC before[FC_LANES];
        FC_UNROLL
        for (int i = 0; i < FC_LANES; i++)
            before[i] = v[i];
        FC_UNROLL
        for (int i = 0; i < FC_LANES / 2; i++)
            FC_NAME(zip)(before[i], before[i + FC_LANES / 2], &v[2 * i], &v[2 * i + 1]);
    }
}

/* Inner-product tile: c[i][j] += sum over segments and p of a[i*lda + p] * b[offset[j] + p].
 *
 * (rows, P) @ (cols, P)^T -> (rows, cols): both matrices have the summed dimension contiguous in memory, as the output
 * gradient and the image of a convolution have, so neither is transposed: each accumulator keeps LANES partial sums,
 * which are added up once at the end. The P cells come in `segments` runs of `vectors` vectors (one for each image);
 * a and b step by `a_step` and `b_step` from run to run. With ldc == 0 the lanes are not added up: c is rows*cols whole
 * vectors, to which the partial sums are added. Where the runs are short that is most of the work that is left. */
FC_INLINE void FC_NAME(inner)(const int rows, const int cols, const FC_T *a, ptrdiff_t lda, const FC_T *b,
                              const ptrdiff_t *offset, ptrdiff_t vectors, ptrdiff_t segments, ptrdiff_t a_step,
                              ptrdiff_t b_step, FC_T *c, ptrdiff_t ldc)
{
    VEC acc[FC_TILE_ROWS][FC_TILE_VECTORS];
FC_UNROLL
    for (int i = 0; i < rows; i++)
FC_UNROLL
        for (int j = 0; j < cols; j++)
            acc[i][j] = (VEC){0};

    for (ptrdiff_t s = 0; s < segments; s++) {
        const FC_T *left = a + s * a_step;
        const FC_T *base = b + s * b_step;
        const FC_T *right[FC_TILE_VECTORS];
FC_UNROLL
        for (int j = 0; j < cols; j++)
            right[j] = base + offset[j];
        for (ptrdiff_t p = 0; p < vectors * LANES; p += LANES) {
            VEC bv[FC_TILE_VECTORS];
FC_UNROLL
            for (int j = 0; j < cols; j++)
                bv[j] = *(const UVEC *)(right[j] + p);
FC_UNROLL
            for (int i = 0; i < rows; i++) {
                const VEC av = *(const UVEC *)(left + i * lda + p);
FC_UNROLL
                for (int j = 0; j < cols; j++)
                    acc[i][j] += av * bv[j];
            }
        }
    }

    if (ldc == 0) {
FC_UNROLL
        for (int i = 0; i < rows; i++)
FC_UNROLL
            for (int j = 0; j < cols; j++)
                *(UVEC *)(c + (i * cols + j) * LANES) += acc[i][j];
        return;
    }
FC_UNROLL
    for (int i = 0; i < rows; i++)
FC_UNROLL
        for (int j = 0; j < cols; j++)
            c[i * ldc + j] += FC_NAME(sum_lanes)(acc[i][j]);
}

typedef void (*FC_NAME(inner_fn))(const FC_T *, ptrdiff_t, const FC_T *, const ptrdiff_t *, ptrdiff_t, ptrdiff_t,
                                  ptrdiff_t, ptrdiff_t, FC_T *, ptrdiff_t);

#define INNER(R, V)                                                                                                  \
    __attribute__((noinline)) static void FC_NAME(inner_##R##x##V)(                                                   \
        const FC_T *a, ptrdiff_t lda, const FC_T *b, const ptrdiff_t *offset, ptrdiff_t vectors, ptrdiff_t segments,  \
        ptrdiff_t a_step, ptrdiff_t b_step, FC_T *c, ptrdiff_t ldc)                                                  \
    {                                                                                                                \
        FC_NAME(inner)(R, V, a, lda, b, offset, vectors, segments, a_step, b_step, c, ldc);                          \
    }
#define INNER_ROWS(V) INNER(1, V) INNER(2, V) INNER(3, V) INNER(4, V) INNER(5, V) INNER(6, V)
#define INNER_TABLE(V)                                                                                               \
    {                                                                                                                \
        FC_NAME(inner_1x##V), FC_NAME(inner_2x##V), FC_NAME(inner_3x##V), FC_NAME(inner_4x##V),                       \
            FC_NAME(inner_5x##V), FC_NAME(inner_6x##V)                                                               \
    }

INNER_ROWS(1)
INNER_ROWS(2)
#if FC_TILE_VECTORS == 4
INNER_ROWS(3)
INNER_ROWS(4)
#endif

static const FC_NAME(inner_fn) FC_NAME(inner_table)[FC_TILE_VECTORS][FC_TILE_ROWS] = {
    INNER_TABLE(1), INNER_TABLE(2),
#if FC_TILE_VECTORS == 4
    INNER_TABLE(3), INNER_TABLE(4),
#endif
};

/* The correlation tile for a few pixels that do not fill a vector: c[i][j] = sum over r of a[i][r] * b[j][r].
 *
 * (rows, n) @ (cols, n)^T -> (rows, cols), vectorised along the sum: a vector of pixels that holds one costs LANES / 2
 * times as much. b has a row stride of n, `bias` and `flags` are those of the correlation tile. */
static void FC_NAME(dots)(ptrdiff_t rows, ptrdiff_t cols, const FC_T *a, ptrdiff_t lda, const FC_T *b, ptrdiff_t n, FC_T *c,
                          ptrdiff_t ldc, const FC_T *bias, int flags)
{
    ptrdiff_t offset[FC_TILE_VECTORS] = {0};
    FC_T sum[FC_TILE_ROWS * FC_TILE_VECTORS] = {0};
    for (ptrdiff_t j = 0; j < cols; j++)
        offset[j] = j * n;
    FC_NAME(inner_table)[cols - 1][rows - 1](a, lda, b, offset, n / LANES, 1, 0, 0, sum, FC_TILE_VECTORS);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < cols; j++) {
            FC_T v = sum[i * FC_TILE_VECTORS + j];
            for (ptrdiff_t r = n / LANES * LANES; r < n; r++)
                v += a[i * lda + r] * b[j * n + r];
            if (flags & FC_ACCUMULATE)
                v += c[i * ldc + j];
            if (bias)
                v += bias[i];
            c[i * ldc + j] = (flags & FC_RELU) && v < 0 ? 0 : v;
        }
}

/* The even lanes of a, then those of b. GCC and clang spell it differently. */
FC_INLINE VEC FC_NAME(even)(VEC a, VEC b)
{
#if FC_LANES == 16
#define FC_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#elif FC_LANES == 8
#define FC_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#elif FC_LANES == 4
#define FC_EVEN 0, 2, 4, 6
#else
#define FC_EVEN 0, 2
#endif
#if defined(__clang__)
    return __builtin_shufflevector(a, b, FC_EVEN);
#else
    return __builtin_shuffle(a, b, (IVEC){FC_EVEN});
#endif
#undef FC_EVEN
}

/* The odd lanes of a, then those of b. */
FC_INLINE VEC FC_NAME(odd)(VEC a, VEC b)
{
#if FC_LANES == 16
#define FC_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif FC_LANES == 8
#define FC_ODD 1, 3, 5, 7, 9, 11, 13, 15
#elif FC_LANES == 4
#define FC_ODD 1, 3, 5, 7
#else
#define FC_ODD 1, 3
#endif
#if defined(__clang__)
    return __builtin_shufflevector(a, b, FC_ODD);
#else
    return __builtin_shuffle(a, b, (IVEC){FC_ODD});
#endif
#undef FC_ODD
}

/* LANES elements from[0], from[step], ...; reads step*LANES elements where the step is 1, 2 or 4. */
FC_INLINE VEC FC_NAME(take_vector)(const FC_T *from, const int step)
{
    if (step == 1)
        return *(const UVEC *)from;
    if (step == 2)
        return FC_NAME(even)(*(const UVEC *)from, *(const UVEC *)(from + LANES));
    return FC_NAME(even)(FC_NAME(even)(*(const UVEC *)from, *(const UVEC *)(from + LANES)),
                         FC_NAME(even)(*(const UVEC *)(from + 2 * LANES), *(const UVEC *)(from + 3 * LANES)));
}

FC_INLINE void FC_NAME(copy_rows)(FC_T *to, ptrdiff_t length, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t stop,
                                  const FC_T *from, const ptrdiff_t step, const int vector, ptrdiff_t next,
                                  const FC_T *end, ptrdiff_t ahead)
{
    const ptrdiff_t count = stop - first;
    for (ptrdiff_t y = 0; y < rows; y++, to += length, from += next) {
        FC_T *at = to + first;
        ptrdiff_t i = 0;
        for (ptrdiff_t k = 0; k < first; k++) {
            FC_FEW;
            to[k] = 0;
        }
        if (vector) {
            for (; i + LANES <= count && from + (i + LANES) * step <= end; i += LANES) {
                if (vector <= 2)
                    for (int k = 0; k < vector; k++)
                        __builtin_prefetch(from + i * step + k * LANES + ahead);
                *(UVEC *)(at + i) = FC_NAME(take_vector)(from + i * step, vector);
            }
            /* the rest with one vector that ends where the row does */
            if (i < count && count >= LANES && from + count * step <= end) {
                *(UVEC *)(at + count - LANES) = FC_NAME(take_vector)(from + (count - LANES) * step, vector);
                i = count;
            }
        }
        for (; i < count; i++) {
            FC_FEW;
            at[i] = from[i * step];
        }
        for (ptrdiff_t k = stop; k < length; k++) {
            FC_FEW;
            to[k] = 0;
        }
    }
}

/* Rows of a padded image: row y is `first` zeros, then from[y*next + i*step] up to column `stop`, then zeros up to
 * `length`. Nothing is read at `end` or behind. Cells `ahead` of those that are read are prefetched. */
static void FC_NAME(pad_rows)(FC_T *to, ptrdiff_t length, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t stop,
                              const FC_T *from, ptrdiff_t step, ptrdiff_t next, const FC_T *end, ptrdiff_t ahead)
{
    if (step == 1)
        FC_NAME(copy_rows)(to, length, rows, first, stop, from, 1, 1, next, end, ahead);
    else if (step == 2)
        FC_NAME(copy_rows)(to, length, rows, first, stop, from, 2, 2, next, end, ahead);
    else if (step == 4)
        FC_NAME(copy_rows)(to, length, rows, first, stop, from, 4, 4, next, end, ahead);
    else
        FC_NAME(copy_rows)(to, length, rows, first, stop, from, step, 0, next, end, ahead);
}

/* One row: to[x] is from[2*x] for x in [first, stop), but for x in [done, until), which is there; zero elsewhere. */
FC_INLINE void FC_NAME(pad_ends)(FC_T *to, ptrdiff_t length, ptrdiff_t first, ptrdiff_t stop, ptrdiff_t done,
                                 ptrdiff_t until, const FC_T *from)
{
    for (ptrdiff_t x = 0; x < first; x++) {
        FC_FEW;
        to[x] = 0;
    }
    for (ptrdiff_t x = first; x < done; x++) {
        FC_FEW;
        to[x] = from[2 * x];
    }
    for (ptrdiff_t x = until; x < stop; x++) {
        FC_FEW;
        to[x] = from[2 * x];
    }
    for (ptrdiff_t x = stop; x < length; x++) {
        FC_FEW;
        to[x] = 0;
    }
}

/* Rows of a padded image, split in two: even[x] is from[2*x] for x in [first, stop), odd[x] is from[2*x + 1] for x in
 * [odd_first, odd_stop), and both are zero elsewhere up to `length`. Nothing is read at `end` or behind. Cells `ahead` of
 * those that are read are prefetched. */
static void FC_NAME(pad_pairs)(FC_T *even, FC_T *odd, ptrdiff_t length, ptrdiff_t rows, ptrdiff_t first, ptrdiff_t stop,
                               ptrdiff_t odd_first, ptrdiff_t odd_stop, const FC_T *from, ptrdiff_t next, const FC_T *end,
                               ptrdiff_t ahead)
{
    const ptrdiff_t low = first > odd_first ? first : odd_first;
    const ptrdiff_t high = stop < odd_stop ? stop : odd_stop;
    for (ptrdiff_t y = 0; y < rows; y++, even += length, odd += length, from += next) {
        if (high - low < LANES || from + 2 * high > end) {
            FC_NAME(pad_ends)(even, length, first, stop, first, first, from);
            FC_NAME(pad_ends)(odd, length, odd_first, odd_stop, odd_first, odd_first, from + 1);
            continue;
        }
        for (ptrdiff_t x = low; x < high; x += LANES) {
            if (x > high - LANES) /* the last vectors end where the row does */
                x = high - LANES;
            const VEC a = *(const UVEC *)(from + 2 * x), b = *(const UVEC *)(from + 2 * x + LANES);
            __builtin_prefetch(from + 2 * x + ahead);
            __builtin_prefetch(from + 2 * x + ahead + LANES);
            *(UVEC *)(even + x) = FC_NAME(even)(a, b);
            *(UVEC *)(odd + x) = FC_NAME(odd)(a, b);
        }
        FC_NAME(pad_ends)(even, length, first, stop, low, high, from);
        FC_NAME(pad_ends)(odd, length, odd_first, odd_stop, low, high, from + 1);
    }
}

/* Plane tile: `rows` rows of one output plane, of `vectors` vectors each.
 *
 * c[i*ldc + p] = sum over t of a[t] * b[offset[t] + i*ldb + p]: the correlation tile for a single output channel, whose
 * accumulators are rows of the plane in place of channels. The terms are grids of filter_h x filter_w taps. With
 * filter_h > 0, a tap one row below is ldb (grid = 1) or -ldb (grid = -1) further in b: then each row of b is loaded once
 * for all rows of the output that it meets. filter_h == 0 knows nothing of the offsets. */
FC_INLINE void FC_NAME(plane)(const int rows, const int vectors, const int filter_h, ptrdiff_t filter_w, int grid,
                              const FC_T *a, const FC_T *b, ptrdiff_t ldb, const ptrdiff_t *offset, ptrdiff_t n, FC_T *c,
                              ptrdiff_t ldc, const FC_T *bias, int flags)
{
    VEC acc[FC_PLANE_ROWS][2];
    FC_UNROLL
    for (int i = 0; i < rows; i++)
        FC_UNROLL
        for (int j = 0; j < vectors; j++)
            acc[i][j] = (VEC){0};
    if (filter_h == 0) {
        for (ptrdiff_t t = 0; t < n; t++) {
            const FC_T *row = b + offset[t];
            const VEC left = a[t] - (VEC){0};
            FC_UNROLL
            for (int i = 0; i < rows; i++)
                FC_UNROLL
                for (int j = 0; j < vectors; j++)
                    acc[i][j] += left * *(const UVEC *)(row + i * ldb + j * LANES);
        }
    } else {
        const ptrdiff_t top = grid > 0 ? 0 : (filter_h - 1) * filter_w; /* the tap that lies highest in b */
        const ptrdiff_t down = grid * filter_w;
        for (ptrdiff_t t = 0; t < n; t += filter_h * filter_w)
            for (ptrdiff_t k = t; k < t + filter_w; k++) {
                const FC_T *row = b + offset[k + top];
                VEC left[FC_PLANE_FILTER];
                FC_UNROLL
                for (int y = 0; y < filter_h; y++)
                    left[y] = a[k + top + y * down] - (VEC){0};
                FC_UNROLL
                for (int y = 0; y < rows + filter_h - 1; y++)
                    FC_UNROLL
                    for (int j = 0; j < vectors; j++) {
                        const VEC right = *(const UVEC *)(row + y * ldb + j * LANES);
                        FC_UNROLL
                        for (int i = 0; i < rows; i++)
                            if (y >= i && y - i < filter_h)
                                acc[i][j] += left[y - i] * right;
                    }
            }
    }
    FC_UNROLL
    for (int i = 0; i < rows; i++)
        FC_UNROLL
        for (int j = 0; j < vectors; j++) {
            VEC v = acc[i][j];
            if (flags & FC_ACCUMULATE)
                v += *(const UVEC *)(c + i * ldc + j * LANES);
            if (bias)
                v += *bias - (VEC){0};
            if (flags & FC_RELU)
                v = (VEC)((IVEC)v & ~(IVEC)(v < (VEC){0}));
            *(UVEC *)(c + i * ldc + j * LANES) = v;
        }
}

#define PLANE(R, V)                                                                                                  \
    FC_NAME(plane)(R, V, filter_h, filter_w, grid, a, b + i * ldb + j, ldb, offset, n, c + i * ldc + j, ldc, bias, flags)

FC_INLINE void FC_NAME(plane_width)(const int filter_h, ptrdiff_t filter_w, int grid, ptrdiff_t rows, ptrdiff_t width,
                                    const FC_T *a, const FC_T *b, ptrdiff_t ldb, const ptrdiff_t *offset, ptrdiff_t n,
                                    FC_T *c, ptrdiff_t ldc, const FC_T *bias, int flags)
{
    ptrdiff_t i = 0, j = 0;
    while (j < width) {
        if (width - j >= 2 * LANES) {
            if (rows == FC_PLANE_ROWS)
                PLANE(FC_PLANE_ROWS, 2);
            else
                for (i = 0; i < rows; i++)
                    PLANE(1, 2);
            i = 0;
            j += 2 * LANES;
            continue;
        }
        if (width - j < LANES) /* step back, so that the vector ends where the row does */
            j = width - LANES;
        if (rows == FC_PLANE_ROWS)
            PLANE(FC_PLANE_ROWS, 1);
        else
            for (i = 0; i < rows; i++)
                PLANE(1, 1);
        i = 0;
        j += LANES;
    }
}
#undef PLANE

/* `rows` (1 to FC_PLANE_ROWS) rows of `width` (at least LANES) pixels. Without FC_ACCUMULATE the last vectors of a row may
 * overlap the ones before: they store the same values again. */
static void FC_NAME(plane_rows)(ptrdiff_t rows, ptrdiff_t width, ptrdiff_t filter_h, ptrdiff_t filter_w, int grid,
                                const FC_T *a, const FC_T *b, ptrdiff_t ldb, const ptrdiff_t *offset, ptrdiff_t n,
                                FC_T *c, ptrdiff_t ldc, const FC_T *bias, int flags)
{
    if (grid && filter_h == 3)
        FC_NAME(plane_width)(3, filter_w, grid, rows, width, a, b, ldb, offset, n, c, ldc, bias, flags);
    else if (grid && filter_h == 5)
        FC_NAME(plane_width)(5, filter_w, grid, rows, width, a, b, ldb, offset, n, c, ldc, bias, flags);
    else if (grid && filter_h == 7)
        FC_NAME(plane_width)(7, filter_w, grid, rows, width, a, b, ldb, offset, n, c, ldc, bias, flags);
    else
        FC_NAME(plane_width)(0, filter_w, grid, rows, width, a, b, ldb, offset, n, c, ldc, bias, flags);
}

/* Packs one panel: row r of `to` (rows are `width` apart) is the runs of flat + offset[r], one behind the other.
 *
 * Whole vectors are copied, so up to LANES - 1 elements behind a run are read (the flat copy has that much slack) and
 * written (the next run, or the next row, overwrites them). Cells `ahead` of those that are read are prefetched, if it is
 * not 0. */
static void FC_NAME(pack_runs)(FC_T *to, ptrdiff_t width, const FC_T *flat, const ptrdiff_t *offset, ptrdiff_t rows,
                               const fc_run *run, ptrdiff_t runs, ptrdiff_t ahead)
{
    for (ptrdiff_t r = 0; r < rows; r++) {
        const FC_T *row = flat + offset[r];
        FC_T *at = to + r * width;
        for (ptrdiff_t i = 0; i < runs; i++) {
            const FC_T *source = row + run[i].from;
            FC_T *target = at + run[i].to;
            for (ptrdiff_t k = 0; k < run[i].count; k += LANES) {
                if (ahead)
                    __builtin_prefetch(source + k + ahead);
                *(UVEC *)(target + k) = *(const UVEC *)(source + k);
            }
        }
    }
}

/* The same of every second element, and of several panels at a time: from the image itself, for a 1x1 filter that moves by two
 * columns. Each of its planes is walked through once, and the next one is prefetched. Nothing behind `end` is read. */
static void FC_NAME(pack_second_runs)(FC_T *to, ptrdiff_t width, const FC_T *image, const ptrdiff_t *offset, ptrdiff_t rows,
                                      const fc_run *run, ptrdiff_t runs, ptrdiff_t ahead, const FC_T *end)
{
    for (ptrdiff_t r = 0; r < rows; r++, to += width) {
        for (ptrdiff_t i = 0; i < runs; i++) {
            const FC_T *source = image + offset[r] + run[i].from;
            FC_T *target = to + run[i].to;
            for (ptrdiff_t k = 0; k < run[i].count; k += LANES, source += 2 * LANES) {
                if (end - source < 2 * LANES) {
                    for (; k < run[i].count; k++, source += 2)
                        target[k] = *source;
                    break;
                }
                if (ahead) {
                    __builtin_prefetch(source + ahead);
                    __builtin_prefetch(source + ahead + LANES);
                }
                *(UVEC *)(target + k) = FC_NAME(even)(*(const UVEC *)source, *(const UVEC *)(source + LANES));
            }
        }
    }
}

/* `rows` runs of `count` elements from a tile (rows LANES*FC_TILE_VECTORS apart) to rows that are `next` apart. */
static void FC_NAME(store_runs)(FC_T *to, ptrdiff_t next, const FC_T *tile, ptrdiff_t rows, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < rows; i++, to += next, tile += LANES * FC_TILE_VECTORS) {
        ptrdiff_t k = 0;
        if (count >= LANES) {
            for (; k + LANES <= count; k += LANES)
                *(UVEC *)(to + k) = *(const UVEC *)(tile + k);
            /* the rest with one vector that ends where the run does */
            *(UVEC *)(to + count - LANES) = *(const UVEC *)(tile + count - LANES);
            continue;
        }
        for (; k < count; k++) {
            FC_FEW;
            to[k] = tile[k];
        }
    }
}

/* One row whose cells come in `step` classes: to[u*step + b] = from[b*pitch + u], for x = u*step + b in [0, count). Whole
 * vectors are stored, so that up to `room` elements from `to` on may be written, and whole ones are read. */
static void FC_NAME(weave)(FC_T *to, ptrdiff_t count, ptrdiff_t room, ptrdiff_t step, const FC_T *from, ptrdiff_t pitch)
{
    ptrdiff_t u = 0;
    if (step == 1) {
        memcpy(to, from, (size_t)count * sizeof(FC_T));
        return;
    }
    if (step == 2) {
        const ptrdiff_t pairs = count / 2;
        while (u < pairs) {
            if (2 * (u + LANES) > room) { /* step back, so that the vectors end where the row does */
                if (pairs < LANES)
                    break;
                u = pairs - LANES;
            }
            VEC low, high;
            FC_NAME(zip)(*(const UVEC *)(from + u), *(const UVEC *)(from + pitch + u), &low, &high);
            *(UVEC *)(to + 2 * u) = low;
            *(UVEC *)(to + 2 * u + LANES) = high;
            u += LANES;
        }
    }
    for (ptrdiff_t b = 0; b < step; b++)
        for (ptrdiff_t v = u; v * step + b < count; v++) {
            FC_FEW;
            to[v * step + b] = from[b * pitch + v];
        }
}

/* Asks for the memory of `rows` rows of `count` elements, `next` apart, that will soon be written: a processor that waits for
 * each line that it has not read before writes at half of its speed. */
static void FC_NAME(expect)(const FC_T *to, ptrdiff_t rows, ptrdiff_t next, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < rows; i++, to += next)
        for (ptrdiff_t k = 0; k < count; k += 64 / (ptrdiff_t)sizeof(FC_T))
            __builtin_prefetch(to + k, 1);
}

/* 1 where none of the n values is infinite or NaN: an integer test, so that it vectorises. */
static inline int FC_NAME(all_finite)(const FC_T *values, ptrdiff_t n)
{
    const FC_INT exponent = sizeof(FC_T) == 4 ? (FC_INT)0x7f800000 : (FC_INT)0x7ff0000000000000;
    FC_INT found = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        FC_INT bits;
        memcpy(&bits, values + i, sizeof bits);
        found |= (bits & exponent) == exponent;
    }
    return !found;
}

#undef CORRELATE
#undef CORRELATE_TILE
#undef CORRELATE_ROWS
#undef CORRELATE_TABLE
#undef INNER
#undef INNER_ROWS
#undef INNER_TABLE
#undef VEC
#undef IVEC
#undef UVEC
#undef LANES
