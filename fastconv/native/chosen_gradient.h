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

/* The sums in vectors of so many elements, of one of the sizes that there are. */
#define FC_CHOSEN_SIZE(name)                                                                                          \
    if (lanes == fc_lanes_##name)                                                                                     \
        return fc_chosen_##name(sum, dout, index, count, x, seen, cells, row, rows);
#define FC_CHOSEN(type, T, longest, middle, shortest)                                                                 \
    static inline int fc_chosen_##type(ptrdiff_t lanes, double *sum, const T *dout, const int64_t *index,             \
                                       ptrdiff_t count, const T *x, const int32_t *seen, ptrdiff_t cells,             \
                                       const ptrdiff_t *row, ptrdiff_t rows)                                          \
    {                                                                                                                 \
        FC_SIZES(FC_CHOSEN_SIZE, longest, middle, shortest)                                                           \
        return 0;                                                                                                     \
    }
FC_CHOSEN(f32, float, f32x16, f32x8, f32x4)
FC_CHOSEN(f64, double, f64x8, f64x4, f64x2)
#undef FC_CHOSEN_SIZE
#undef FC_CHOSEN

#endif
