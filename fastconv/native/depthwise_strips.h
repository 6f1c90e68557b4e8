/* Template of the convolution of single planes; see depthwise.h and each_vector.h. */

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define MASK FC_NAME(mask)
#define LANES ((ptrdiff_t)FC_LANES)

/* Output rows [first, stop) of one plane x, in `strips` strips that begin at columns q[]; `out` is where row `first`
 * begins, and up to `end` may be written. `tap` are the taps of the filter. */
FC_INLINE void FC_NAME(depthwise_walk)(const int kernel, const int stride, const int strips, const fc_depthwise *p,
                                       const FC_T *x, const FC_T *x_begin, const FC_T *x_end, const FC_T *tap, FC_T bias,
                                       int relu, ptrdiff_t first, ptrdiff_t stop, const ptrdiff_t *q, FC_T *out, FC_T *end)
{
    enum { KERNEL = 5, STRIPS = 2, AHEAD = FC_DEPTHWISE_AHEAD / (int)sizeof(FC_T) };
    const int open = (kernel - 1) / stride + 1; /* rows of output that are begun and not yet stored */
    const int loads = stride == 1 ? kernel : (kernel + 1) / 2 * 2;
    VEC sum[KERNEL][STRIPS];
    MASK inside[KERNEL + 1][STRIPS];
    ptrdiff_t column[STRIPS];
FC_UNROLL
    for (int v = 0; v < strips; v++) {
        column[v] = q[v] * stride - p->left;
FC_UNROLL
        for (int j = 0; j < loads; j++)
            inside[j][v] = FC_NAME(between)((IVEC){0},
                                            FC_NAME(count)() + (FC_INT)(column[v] + (stride == 1 ? j : j / 2 * 2 + j % 2 * LANES)),
                                            FC_NAME(iall)((FC_INT)p->w));
FC_UNROLL
        for (int m = 0; m < open; m++)
            sum[m][v] = (VEC){0};
    }
    for (ptrdiff_t y = first; y < stop + open - 1; y++) {
FC_UNROLL
        for (int v = 0; v < strips; v++) {
FC_UNROLL
            for (int m = open - 1; m > 0; m--)
                sum[m][v] = sum[m - 1][v];
            sum[0][v] = (VEC){0};
        }
FC_UNROLL
        for (int phase = 0; phase < stride; phase++) {
            const ptrdiff_t r = y * stride + phase - p->top;
            const int there = (size_t)r < (size_t)p->h;
            const FC_T *row = x + (there ? r : 0) * p->w;
FC_UNROLL
            for (int v = 0; v < strips; v++) {
                VEC cell[KERNEL + 1];
                const FC_T *at = row + column[v];
                __builtin_prefetch(at + AHEAD);
                if (stride == 2)
                    __builtin_prefetch(at + AHEAD + LANES);
FC_UNROLL
                for (int j = 0; j < loads; j++) {
                    const FC_T *from = at + (stride == 1 ? j : j / 2 * 2 + j % 2 * LANES);
                    cell[j] = there ? FC_NAME(load_where)(inside[j][v], from, x_begin, x_end) : (VEC){0};
                    if (stride == 2 && j % 2) {
                        const VEC a = cell[j - 1], b = cell[j];
                        cell[j - 1] = FC_NAME(evens)(a, b);
                        cell[j] = FC_NAME(odds)(a, b);
                    }
                }
FC_UNROLL
                for (int j = 0; j < kernel; j++)
FC_UNROLL
                    for (int m = 0; m < open; m++)
                        if (phase + m * stride < kernel)
                            sum[m][v] += (tap[(phase + m * stride) * kernel + j] - (VEC){0}) * cell[j];
            }
            if (phase == (kernel - 1) % stride && y - (open - 1) >= first) {
                FC_T *to = out + (y - (open - 1) - first) * p->ow;
FC_UNROLL
                for (int v = 0; v < strips; v++) {
                    VEC done = sum[open - 1][v] + FC_NAME(all)(bias);
                    if (relu)
                        done = (VEC)((IVEC)done & ~(IVEC)(done < (VEC){0}));
                    FC_NAME(put)(to + q[v], done, p->ow, end - (to + q[v]));
                }
            }
        }
    }
}

#define WALK(KERNEL, STRIDE)                                                                                          \
    __attribute__((noinline)) static void FC_NAME(depthwise_##KERNEL##x##STRIDE)(                                      \
        int strips, const fc_depthwise *p, const FC_T *x, const FC_T *x_begin, const FC_T *x_end, const FC_T *tap,      \
        FC_T bias, int relu, ptrdiff_t first, ptrdiff_t stop, const ptrdiff_t *q, FC_T *out, FC_T *end)                \
    {                                                                                                                \
        if (strips == 2)                                                                                             \
            FC_NAME(depthwise_walk)(KERNEL, STRIDE, 2, p, x, x_begin, x_end, tap, bias, relu, first, stop, q, out, end); \
        else                                                                                                         \
            FC_NAME(depthwise_walk)(KERNEL, STRIDE, 1, p, x, x_begin, x_end, tap, bias, relu, first, stop, q, out, end); \
    }
WALK(3, 1)
WALK(3, 2)
WALK(5, 1)
WALK(5, 2)
#undef WALK

/* Bands [first, stop) of all planes. */
static void FC_NAME(depthwise_strips)(const fc_depthwise *p, const FC_T *x, const FC_T *weight, const FC_T *bias, int relu,
                                      FC_T *out, ptrdiff_t first, ptrdiff_t stop)
{
    const int taps = p->kernel * p->kernel;
    const FC_T *const x_end = x + p->planes / p->each * p->h * p->w;
    FC_T *const end = out + (stop / p->bands * p->oh + stop % p->bands * p->oh / p->bands) * p->ow;
    for (; first < stop; first++) {
        const ptrdiff_t plane = first / p->bands, band = first % p->bands, filter = plane % p->filters;
        const ptrdiff_t top = p->oh * band / p->bands, bottom = p->oh * (band + 1) / p->bands;
        const FC_T *const from = x + plane / p->each * p->h * p->w;
        FC_T *const to = out + (plane * p->oh + top) * p->ow;
        FC_T tap[25];
        for (int t = 0; t < taps; t++)
            tap[t] = weight[filter * taps + (p->turned ? taps - 1 - t : t)];
        for (ptrdiff_t column = 0; column < p->ow;) {
            ptrdiff_t q[2];
            int strips = 0;
            for (; strips < 2 && column < p->ow; column += LANES) /* the last strip ends where the row does */
                q[strips++] = column + LANES <= p->ow || p->ow < LANES ? column : p->ow - LANES;
            const FC_T shift = bias ? bias[filter] : 0;
            if (p->kernel == 3 && p->stride == 1)
                FC_NAME(depthwise_3x1)(strips, p, from, x, x_end, tap, shift, relu, top, bottom, q, to, end);
            else if (p->kernel == 3)
                FC_NAME(depthwise_3x2)(strips, p, from, x, x_end, tap, shift, relu, top, bottom, q, to, end);
            else if (p->stride == 1)
                FC_NAME(depthwise_5x1)(strips, p, from, x, x_end, tap, shift, relu, top, bottom, q, to, end);
            else
                FC_NAME(depthwise_5x2)(strips, p, from, x, x_end, tap, shift, relu, top, bottom, q, to, end);
        }
    }
}

#undef VEC
#undef IVEC
#undef MASK
#undef LANES
