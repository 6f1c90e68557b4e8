/* Convolution of single planes by filters of 3x3 and 5x5 taps, stride 1 or 2 (depthwise, and images of one channel), for the
 * instruction set this file is compiled for.
 *
 * A 3x3 filter does 9 multiply-adds for each cell that it reads, so memory is what counts: every row is read once, straight
 * from the image, and no padded copy is made. depthwise_strips.h walks LANES columns of output, two such strips at a time, down the
 * rows: the sums of the rows of output that an input row belongs to are in registers (the 3 of a 3x3 filter with stride 1).
 * Columns and rows beyond the image are zeros: masked loads.
 *
 * Threads take pieces of (plane, band of rows); what a pixel is does not depend on them. On many cores nothing is shared
 * but the filters.
 */
#ifndef FASTCONV_DEPTHWISE_H
#define FASTCONV_DEPTHWISE_H

#include "vectors.h"

/* A convolution of planes. `each` filters run over one plane of the image: with the planes of all images counted through,
 * plane i of the output is made of plane i / each by filter i % filters. */
typedef struct {
    ptrdiff_t planes, filters, each, h, w, oh, ow, top, left;
    int kernel, stride;    /* 0: not for these kernels */
    int turned;            /* the filters are turned by 180 degrees first */
    ptrdiff_t lanes;
    ptrdiff_t bands;       /* of a plane */
} fc_depthwise;

enum {
    FC_DEPTHWISE_BYTES = 16384, /* input rows of a band: strips side by side share its lines, */
    FC_DEPTHWISE_ROWS = 16,     /* but at least so many rows, because its first ones are read twice */
    FC_DEPTHWISE_AHEAD = 4096   /* bytes between what is read and what is prefetched */
};

#define FC_TEMPLATE "depthwise_strips.h"
#include "each_vector.h"

/* Fills in what follows from the geometry; kernel == 0 where these kernels cannot do it. */
static void fc_plan_depthwise(fc_depthwise *p, ptrdiff_t itemsize)
{
    ptrdiff_t most = FC_DEPTHWISE_BYTES / (p->w * p->stride * itemsize + 1);
    if ((p->kernel != 3 && p->kernel != 5) || (p->stride != 1 && p->stride != 2) || p->w > 1 << 30) {
        p->kernel = 0;
        return;
    }
    p->lanes = FC_VECTOR_BYTES / itemsize;
    while (p->lanes > 16 / itemsize && p->ow <= p->lanes / 2)
        p->lanes /= 2;
    most = most > FC_DEPTHWISE_ROWS ? most : FC_DEPTHWISE_ROWS;
    p->bands = (p->oh + most - 1) / most;
}

#define FC_RUN_STRIPS(TYPE) fc_depthwise_strips_##TYPE(p, x, weight, bias, relu, out, first, stop); break

/* Bands [first, stop) of all planes. */
static void fc_depthwise_f32(const fc_depthwise *p, const float *x, const float *weight, const float *bias, int relu,
                             float *out, ptrdiff_t first, ptrdiff_t stop)
{
    switch (p->lanes) {
#if FC_VECTOR_BYTES >= 64
    case 16: FC_RUN_STRIPS(f32x16);
#endif
#if FC_VECTOR_BYTES >= 32
    case 8: FC_RUN_STRIPS(f32x8);
#endif
    default: FC_RUN_STRIPS(f32x4);
    }
}

static void fc_depthwise_f64(const fc_depthwise *p, const double *x, const double *weight, const double *bias, int relu,
                             double *out, ptrdiff_t first, ptrdiff_t stop)
{
    switch (p->lanes) {
#if FC_VECTOR_BYTES >= 64
    case 8: FC_RUN_STRIPS(f64x8);
#endif
#if FC_VECTOR_BYTES >= 32
    case 4: FC_RUN_STRIPS(f64x4);
#endif
    default: FC_RUN_STRIPS(f64x2);
    }
}
#undef FC_RUN_STRIPS

#endif
