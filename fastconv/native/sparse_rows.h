/* Template of the loops of sparse_gradient.h; see each_vector.h. */

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)

/* Sets `bit` where dout is not zero. (Left to itself the compiler may make a branch of it, which half of the time is mistaken.) */
FC_INLINE void FC_NAME(sparse_bits)(FC_UINT *bits, const FC_T *dout, ptrdiff_t cells, FC_UINT bit)
{
    const IVEC bit_in_all = FC_NAME(iall)((FC_INT)bit);
    ptrdiff_t i = 0;
    for (; i + FC_LANES <= cells; i += FC_LANES) {
        const IVEC known = FC_NAME(iload)((const FC_INT *)bits + i), found = FC_NAME(load)(dout + i) != (VEC){0};
        FC_NAME(store)((FC_T *)bits + i, (VEC)(known | (found & bit_in_all)));
    }
    for (; i < cells; i++)
        bits[i] |= dout[i] != 0 ? bit : 0;
}

/* A row of positions: `rows` rows of taps, `step` apart; dx, by way of `line`, with `data` only. */
FC_INLINE void FC_NAME(sparse_positions)(const FC_T *dout, ptrdiff_t pixels, const FC_UINT *bits, ptrdiff_t count,
                                         const FC_T *x, FC_T *dx, ptrdiff_t step, FC_T *filters, ptrdiff_t pitch,
                                         ptrdiff_t taps, FC_T *line, fc_coming *coming, const int rows,
                                         const int data)
{
    const IVEC seen = FC_NAME(count)() < FC_NAME(iall)((FC_INT)taps); /* infinity times nothing is NaN beyond them */
    const ptrdiff_t width = count + FC_LANES; /* of a line */
    VEC gradient[FC_SPARSE_ROWS], patch[FC_SPARSE_ROWS];
    FC_UNROLL
    for (int r = 0; r < rows; r++)
        gradient[r] = (VEC){0};
    for (ptrdiff_t i = 0; i < count; i++) {
        FC_UNROLL
        for (int r = 0; r < rows; r++) {
            patch[r] = FC_NAME(load)(x + r * step + i);
            FC_HOLD(patch[r]);
        }
        for (FC_UINT left = bits[i]; left; left &= left - 1) {
            const ptrdiff_t k = __builtin_ctzll(left);
            const VEC one = FC_NAME(all)(dout[k * pixels + i]);
            FC_T *const filter = filters + k * pitch;
            FC_UNROLL
            for (int r = 0; r < rows; r++) {
                FC_T *const to = filter + (2 * r + 1) * FC_LANES;
                if (data)
                    gradient[r] += one * FC_NAME(load)(filter + 2 * r * FC_LANES);
                FC_NAME(store)(to, FC_NAME(load)(to) + one * patch[r]);
            }
        }
        fc_ask_for_coming(coming, 2);
        if (data) {
            FC_UNROLL
            for (int r = 0; r < rows; r++) {
                line[r * width + i] = gradient[r][0];
                gradient[r] = FC_NAME(next)((VEC)((IVEC)gradient[r] & seen), (VEC){0});
            }
        }
    }
    if (data) {
        FC_UNROLL
        for (int r = 0; r < rows; r++) {
            FC_NAME(store)(line + r * width + count, gradient[r]);
            for (ptrdiff_t i = 0; i < count + taps - 1; i++)
                dx[r * step + i] += line[r * width + i];
        }
    }
}

/* The same for all rows of taps. */
static void FC_NAME(sparse)(const fc_sparse *s, const FC_T *dout, const FC_UINT *bits, const FC_T *x, FC_T *dx,
                            FC_T *filters, FC_T *line, fc_coming *coming)
{
    for (ptrdiff_t c = 0; c < s->channels; c++)
        for (ptrdiff_t r = 0; r < s->rows; r += FC_SPARSE_ROWS) {
            const ptrdiff_t at = c * s->plane + r * s->row;
            FC_T *const filter = filters + 2 * (c * s->rows + r) * FC_LANES;
            switch (fc_least(s->rows - r, FC_SPARSE_ROWS) + (dx == NULL ? 0 : FC_SPARSE_ROWS)) {
#define FC_CASE(n)                                                                                                    \
    case n:                                                                                                           \
        FC_NAME(sparse_positions)(dout, s->pixels, bits, s->width, x + at, NULL, s->row, filter, s->pitch, s->taps, line, coming, n, 0); \
        break;                                                                                                        \
    case n + FC_SPARSE_ROWS:                                                                                          \
        FC_NAME(sparse_positions)(dout, s->pixels, bits, s->width, x + at, dx + at, s->row, filter, s->pitch, s->taps, line, coming, n, 1); \
        break
                FC_CASE(1);
                FC_CASE(2);
                FC_CASE(3);
                FC_CASE(4);
                FC_CASE(5);
#undef FC_CASE
            }
        }
}

#undef VEC
#undef IVEC
