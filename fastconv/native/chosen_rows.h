/* Template of the sums of chosen_gradient.h; see each_vector.h. */

#define VEC FC_NAME(vec)

/* sum[r*LANES + i] += the total over `count` cells, FC_CHOSEN_CELLS at most, of dout * x[seen[index] + row[r] + i]. Returns 0
 * where an index is not in [0, cells).
 *
 * Cells in odd places have sums of their own: a sum that every cell adds to waits for the cell before. */
FC_INLINE int FC_NAME(chosen_rows)(double *sum, const FC_T *dout, const int64_t *index, ptrdiff_t count, const FC_T *x,
                                   const int32_t *seen, uint64_t cells, const ptrdiff_t *row, const int rows)
{
    const FC_T *from[FC_CHOSEN_ROWS];
    VEC even[FC_CHOSEN_ROWS], odd[FC_CHOSEN_ROWS];
    FC_UNROLL
    for (int r = 0; r < rows; r++) {
        from[r] = x + row[r];
        even[r] = odd[r] = (VEC){0};
    }
    ptrdiff_t i = 0;
    for (; i + 2 <= count; i += 2) {
        if (FC_UNLIKELY((uint64_t)index[i] >= cells || (uint64_t)index[i + 1] >= cells))
            return 0;
        const ptrdiff_t a = seen[index[i]], b = seen[index[i + 1]];
        const VEC one = FC_NAME(all)(dout[i]), other = FC_NAME(all)(dout[i + 1]);
        FC_UNROLL
        for (int r = 0; r < rows; r++) {
            even[r] += one * FC_NAME(load)(from[r] + a);
            odd[r] += other * FC_NAME(load)(from[r] + b);
        }
    }
    if (i < count) {
        if (FC_UNLIKELY((uint64_t)index[i] >= cells))
            return 0;
        const ptrdiff_t a = seen[index[i]];
        FC_UNROLL
        for (int r = 0; r < rows; r++)
            even[r] += FC_NAME(all)(dout[i]) * FC_NAME(load)(from[r] + a);
    }
    FC_UNROLL
    for (int r = 0; r < rows; r++) {
        const VEC both = even[r] + odd[r];
        FC_UNROLL
        for (int lane = 0; lane < FC_LANES; lane++)
            sum[r * FC_LANES + lane] += (double)both[lane];
    }
    return 1;
}

/* The same for any number of rows. */
static int FC_NAME(chosen)(double *sum, const FC_T *dout, const int64_t *index, ptrdiff_t count, const FC_T *x,
                           const int32_t *seen, ptrdiff_t cells, const ptrdiff_t *row, ptrdiff_t rows)
{
    int right = 1;
    for (; rows > 0 && right; rows -= FC_CHOSEN_ROWS, row += FC_CHOSEN_ROWS, sum += FC_CHOSEN_ROWS * FC_LANES)
        switch (rows) {
#define FC_CASE(n)                                                                                                    \
    case n:                                                                                                           \
        right = FC_NAME(chosen_rows)(sum, dout, index, count, x, seen, (uint64_t)cells, row, n);                      \
        break
            FC_CASE(1);
            FC_CASE(2);
            FC_CASE(3);
            FC_CASE(4);
#undef FC_CASE
        default:
            right = FC_NAME(chosen_rows)(sum, dout, index, count, x, seen, (uint64_t)cells, row, FC_CHOSEN_ROWS);
        }
    return right;
}

#undef VEC
