/* The gradient of a convolution's filters where a max pooling follows the convolution.
 *
 * The gradient of what was pooled is zero but for one cell a window, so it is neither made nor multiplied: each chosen cell adds
 * the rows of the image that its filter saw, times its gradient, to sums that stay in registers. A row of KW taps is one vector,
 * as short as it may be, and FC_CHOSEN_ROWS of them (C*KH in all) go together. That is a load and an FMA for each cell and row,
 * where the product of matrices has KW/LANES FMAs for each cell that was pooled: 4 times as many with windows of 2x2. */
#ifndef FASTCONV_CHOSEN_GRADIENT_H
#define FASTCONV_CHOSEN_GRADIENT_H

#include "vectors.h"

enum {
    FC_CHOSEN_ROWS = 5,
    FC_CHOSEN_CELLS = 192 /* of one sum in the element type; these are added up in double */
};

#define FC_TEMPLATE "chosen_rows.h"
#include "each_vector.h"

/* Elements of the shortest vector that holds `taps` of them; 0 where none does. */
static inline ptrdiff_t fc_chosen_lanes(ptrdiff_t taps, ptrdiff_t itemsize)
{
    for (ptrdiff_t bytes = 16; bytes <= FC_VECTOR_BYTES; bytes *= 2)
        if (taps * itemsize <= bytes)
            return bytes / itemsize;
    return 0;
}

static inline int fc_chosen_f32(ptrdiff_t lanes, double *sum, const float *dout, const int64_t *index, ptrdiff_t count,
                                const float *x, const int32_t *seen, ptrdiff_t cells, const ptrdiff_t *row, ptrdiff_t rows)
{
#if FC_VECTOR_BYTES >= 64
    if (lanes == 16)
        return fc_chosen_f32x16(sum, dout, index, count, x, seen, cells, row, rows);
#endif
#if FC_VECTOR_BYTES >= 32
    if (lanes == 8)
        return fc_chosen_f32x8(sum, dout, index, count, x, seen, cells, row, rows);
#endif
    (void)lanes;
    return fc_chosen_f32x4(sum, dout, index, count, x, seen, cells, row, rows);
}

static inline int fc_chosen_f64(ptrdiff_t lanes, double *sum, const double *dout, const int64_t *index, ptrdiff_t count,
                                const double *x, const int32_t *seen, ptrdiff_t cells, const ptrdiff_t *row, ptrdiff_t rows)
{
#if FC_VECTOR_BYTES >= 64
    if (lanes == 8)
        return fc_chosen_f64x8(sum, dout, index, count, x, seen, cells, row, rows);
#endif
#if FC_VECTOR_BYTES >= 32
    if (lanes == 4)
        return fc_chosen_f64x4(sum, dout, index, count, x, seen, cells, row, rows);
#endif
    (void)lanes;
    return fc_chosen_f64x2(sum, dout, index, count, x, seen, cells, row, rows);
}

#endif
