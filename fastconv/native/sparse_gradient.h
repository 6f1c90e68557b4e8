/* The gradients of a convolution of few channels from what is not zero in the gradient of its output.
 *
 * Behind a ReLU and a max pooling at least three cells of four are zero. Each of the others adds W[k] * dout, C*KH rows of KW
 * taps, to the image's gradient, and C*KH rows of the image times dout to dW[k]: a row is one vector, as short as it may be.
 * (K, C*KH*KW) += dout (K, 1) @ patch (1, C*KH*KW), and patch' += dout (1, K) @ W (K, C*KH*KW), position by position:
 *
 * - Which filters have something to add there is a word of bits, made for some rows of positions from one filter's plane after
 *   another, as they lie in memory. So there are no lists, and nothing is read in the order of the positions but what counts.
 * - The patch is loaded once for a position, and its gradient stays in registers, shifted on from one position to the next:
 *   its first column is complete then, and is added to memory. (Patches next to each other, added to memory whole, would wait
 *   for each other: a load that two stores overlap stalls until both are done.)
 * - dW is added up in memory, rows of whole vectors, which with the filters must stay in the first-level cache.
 *
 * FMAs: 2*C*KH for each cell that is not zero, where products of matrices have 2*C*KH*KW/LANES for every cell. */
#ifndef FASTCONV_SPARSE_GRADIENT_H
#define FASTCONV_SPARSE_GRADIENT_H

#include "ahead.h"

enum {
    FC_SPARSE_ROWS = 5,    /* of taps, at a time */
    FC_SPARSE_CELLS = 128, /* of one sum of floats; these are added up in double */
    FC_SPARSE_BAND = 1024  /* cells that are looked through together */
};

typedef struct {
    ptrdiff_t filters, pixels;  /* of dout, for each filter */
    ptrdiff_t height, width;    /* of dout */
    ptrdiff_t step, row, plane; /* in the padded image: from a row of windows, of taps, of channels to the next one */
    ptrdiff_t channels, rows, taps, lanes; /* `rows` rows of `taps` taps in each channel, in so many lanes */
    ptrdiff_t pitch;            /* of a filter: row by row its weights, and then what is added up, with zeros behind the taps */
} fc_sparse;

/* Rows of positions of about so many cells. */
static inline ptrdiff_t fc_sparse_rows(const fc_sparse *s, ptrdiff_t cells)
{
    return s->width < cells ? cells / s->width : 1;
}

/* `cells` of each of `count` planes from `from` on, some with each position of as many. */
static inline fc_coming fc_sparse_coming(const fc_sparse *s, const void *from, ptrdiff_t cells, ptrdiff_t count,
                                         ptrdiff_t itemsize)
{
    const ptrdiff_t bytes = cells * itemsize, lines = count * (bytes / FC_LINE + 1);
    const ptrdiff_t calls = cells * s->channels * ((s->rows + FC_SPARSE_ROWS - 1) / FC_SPARSE_ROWS);
    fc_coming coming = {0};
    coming.at = from;
    coming.until = coming.at + bytes;
    coming.bytes = bytes;
    coming.rows = 1;
    coming.planes = count;
    coming.step_plane = s->pixels * itemsize;
    coming.last = count;
    coming.share = lines / calls + 1;
    return coming;
}

#define FC_TEMPLATE "sparse_rows.h"
#include "each_vector.h"

/* fc_sparse_<type>: an image. Adds its part of the filters' gradient to `total`, rows of LANES, of the bias's to `bias`, and makes
 * the image's own in `dx`, if that is not NULL, of zeros. `x` and `dx` are padded, with LANES cells more behind them. What is
 * added up in `filters` is zero before and after. `line` has room for FC_SPARSE_ROWS rows of WIDTH + LANES, `bits` for the cells
 * of a band. The image's gradient at `next` will be wanted next. */
#define FC_SPARSE_SIZE(name)                                                                                          \
    if (s->lanes == fc_lanes_##name)                                                                                  \
        fc_sparse_##name(s, dout + k * s->pixels + y * s->width, bits + (y - top) * s->width, x + y * s->step,        \
                         dx == NULL ? NULL : dx + y * s->step, filters + k * s->pitch, line, &coming);
#define FC_SPARSE(type, TYPE, T, U, longest, middle, shortest)                                                        \
    /* which filters have something to add, of `count` at most as many as U has bits */                              \
    static inline void fc_sparse_bits_##type(U *bits, const T *dout, ptrdiff_t pixels, ptrdiff_t count,               \
                                             ptrdiff_t cells, double *bias)                                           \
    {                                                                                                                 \
        memset(bits, 0, cells * sizeof(U));                                                                           \
        for (ptrdiff_t k = 0; k < count; k++, dout += pixels) {                                                       \
            FC_WIDE_##TYPE(sparse_bits)(bits, dout, cells, (U)1 << k);                                                \
            bias[k] += fc_sum_run_##type(dout, cells);                                                                \
        }                                                                                                             \
    }                                                                                                                 \
    static inline void fc_sparse_##type(const fc_sparse *s, const T *dout, const T *x, T *dx, T *filters, T *line,    \
                                        double *total, double *bias, U *bits, const T *next)                          \
    {                                                                                                                 \
        const ptrdiff_t band = fc_sparse_rows(s, FC_SPARSE_BAND), some = sizeof(T) == 8 ? band                        \
                                                                                : fc_sparse_rows(s, FC_SPARSE_CELLS); \
        const ptrdiff_t word = 8 * sizeof(U), lanes = s->lanes;                                                       \
        for (ptrdiff_t top = 0; top < s->height; top += band)                                                         \
            for (ptrdiff_t k = 0; k < s->filters; k += word) {                                                        \
                const ptrdiff_t count = fc_least(s->filters - k, word), stop = fc_least(top + band, s->height);       \
                const ptrdiff_t cells = (stop - top) * s->width;                                                      \
                const T *const at = dout + k * s->pixels + top * s->width;                                            \
                fc_coming coming = fc_sparse_coming(s, stop < s->height ? at + cells : next + k * s->pixels,          \
                                                    cells, count, sizeof(T));                                         \
                fc_sparse_bits_##type(bits, at, s->pixels, count, cells, bias + k);                                   \
                for (ptrdiff_t y = top; y < stop; y++) {                                                              \
                    FC_SIZES(FC_SPARSE_SIZE, longest, middle, shortest)                                               \
                    if (y + 1 < stop && (y + 1 - top) % some != 0)                                                    \
                        continue;                                                                                     \
                    for (ptrdiff_t i = k * s->pitch; i < (k + count) * s->pitch; i += 2 * lanes)                      \
                        for (ptrdiff_t lane = 0; lane < lanes; lane++) {                                              \
                            total[i / 2 + lane] += (double)filters[i + lanes + lane];                                 \
                            filters[i + lanes + lane] = 0;                                                            \
                        }                                                                                             \
                }                                                                                                     \
            }                                                                                                         \
    }
FC_SPARSE(f32, F32, float, uint32_t, f32x16, f32x8, f32x4)
FC_SPARSE(f64, F64, double, uint64_t, f64x8, f64x4, f64x2)
#undef FC_SPARSE_SIZE
#undef FC_SPARSE

#endif
