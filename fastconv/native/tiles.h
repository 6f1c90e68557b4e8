/* Template of the micro-kernels for one element type; simd.h includes it with FC_T and FC_NAME set. */

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define UVEC FC_NAME(uvec)
#define LANES ((ptrdiff_t)(FC_VECTOR_BYTES / sizeof(FC_T)))

typedef FC_T VEC __attribute__((vector_size(FC_VECTOR_BYTES)));
typedef FC_INT IVEC __attribute__((vector_size(FC_VECTOR_BYTES)));
/* The same vector in memory, at any address that an element may have. */
typedef FC_T UVEC __attribute__((vector_size(FC_VECTOR_BYTES), aligned(sizeof(FC_T)), may_alias));

/* Correlation tile: c[i][p] = sum over r of a[i][r] * b[offset[r] + p], for `rows` rows and `vectors` vectors of p.
 *
 * (rows, n) @ (n, vectors*LANES) -> (rows, vectors*LANES), where row r of the right-hand matrix starts anywhere: in a
 * padded image it is the image shifted by one tap, in a packed panel it is the next row of the panel. a has a row
 * stride of `lda` (weights as they lie in memory), c one of `ldc`. With FC_ACCUMULATE c's old value is added, then
 * `bias` (one for each row, or NULL), then FC_RELU replaces what is below zero (and keeps NaN).
 * Called with constant `rows` and `vectors` only, so that every loop over them unrolls and acc lives in registers. */
FC_INLINE void FC_NAME(correlate)(const int rows, const int vectors, const FC_T *a, ptrdiff_t lda, const FC_T *b,
                                  const ptrdiff_t *offset, ptrdiff_t n, FC_T *c, ptrdiff_t ldc, const FC_T *bias,
                                  int flags)
{
    VEC acc[FC_TILE_ROWS][FC_TILE_VECTORS];
FC_UNROLL
    for (int i = 0; i < rows; i++)
FC_UNROLL
        for (int j = 0; j < vectors; j++)
            acc[i][j] = (VEC){0};

    for (ptrdiff_t r = 0; r < n; r++) {
        const FC_T *row = b + offset[r];
        VEC right[FC_TILE_VECTORS];
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

FC_UNROLL
    for (int i = 0; i < rows; i++)
FC_UNROLL
        for (int j = 0; j < vectors; j++) {
            FC_T *to = c + i * ldc + j * LANES;
            VEC v = acc[i][j];
            if (flags & FC_ACCUMULATE)
                v += *(const UVEC *)to;
            if (bias)
                v += bias[i] - (VEC){0};
            if (flags & FC_RELU)
                v = (VEC)((IVEC)v & ~(IVEC)(v < (VEC){0}));
            *(UVEC *)to = v;
        }
}

typedef void (*FC_NAME(correlate_fn))(const FC_T *, ptrdiff_t, const FC_T *, const ptrdiff_t *, ptrdiff_t, FC_T *,
                                      ptrdiff_t, const FC_T *, int);

#define CORRELATE(R, V)                                                                                              \
    __attribute__((noinline)) static void FC_NAME(correlate_##R##x##V)(                                               \
        const FC_T *a, ptrdiff_t lda, const FC_T *b, const ptrdiff_t *offset, ptrdiff_t n, FC_T *c, ptrdiff_t ldc,    \
        const FC_T *bias, int flags)                                                                                 \
    {                                                                                                                \
        FC_NAME(correlate)(R, V, a, lda, b, offset, n, c, ldc, bias, flags);                                         \
    }
#define CORRELATE_ROWS(V) CORRELATE(1, V) CORRELATE(2, V) CORRELATE(3, V) CORRELATE(4, V) CORRELATE(5, V) CORRELATE(6, V)
#define CORRELATE_TABLE(V)                                                                                           \
    {                                                                                                                \
        FC_NAME(correlate_1x##V), FC_NAME(correlate_2x##V), FC_NAME(correlate_3x##V), FC_NAME(correlate_4x##V),       \
            FC_NAME(correlate_5x##V), FC_NAME(correlate_6x##V)                                                       \
    }

CORRELATE_ROWS(1)
CORRELATE_ROWS(2)
#if FC_TILE_VECTORS == 4
CORRELATE_ROWS(3)
CORRELATE_ROWS(4)
#endif

/* By vectors - 1, then rows - 1. */
static const FC_NAME(correlate_fn) FC_NAME(correlate_table)[FC_TILE_VECTORS][FC_TILE_ROWS] = {
    CORRELATE_TABLE(1), CORRELATE_TABLE(2),
#if FC_TILE_VECTORS == 4
    CORRELATE_TABLE(3), CORRELATE_TABLE(4),
#endif
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

/* Inner-product tile: c[i][j] += sum over segments and p of a[i*lda + p] * b[offset[j] + p].
 *
 * (rows, P) @ (cols, P)^T -> (rows, cols): both matrices have the summed dimension contiguous in memory, as the output
 * gradient and the image of a convolution have, so neither is transposed: each accumulator keeps LANES partial sums,
 * which are added up once at the end. The P cells come in `segments` runs of `vectors` vectors (one for each image);
 * a and b step by `a_step` and `b_step` from run to run. */
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
#undef CORRELATE_ROWS
#undef CORRELATE_TABLE
#undef INNER
#undef INNER_ROWS
#undef INNER_TABLE
#undef VEC
#undef IVEC
#undef UVEC
#undef LANES
