/* Template of the gradient of a maximum of windows with stride 1, and of 2x2/2; see pool_gradients.h and each_vector.h.
 *
 * Stride 1: each window has a cell of its own, its centre (3x3) or its first one (2x2). What it chose is then one of k*k
 * shifts from there, the same ones for all windows, and cells and windows are two flat arrays of which one is the other one
 * shifted, whatever the width: vectors run on across the ends of rows and planes. An index that is another cell of the plane
 * but one of the shifts, too, does no harm: its gradient goes where it says. */

#if FC_BYTES == FC_VECTOR_BYTES

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define MASK FC_NAME(mask)
#define LANES ((ptrdiff_t)FC_LANES)
#define FC_AHEAD 8192 /* bytes of indices to prefetch ahead, and of the gradients that go with them */

/* No shift. */
#define NO_CHOICE (sizeof(FC_INT) == 4 ? (FC_INT)INT32_MIN : (FC_INT)INT64_MIN)

/* What is known of all windows so far. */
typedef struct {
    IVEC tap;   /* the largest one without signs: (i, j) as j, larger than any of the window where it is none */
    IVEC index; /* the largest index without signs, */
    IVEC high;  /* and all their bits that are beyond FC_INT */
} FC_NAME(seen);

/* LANES indices. */
FC_INLINE IVEC FC_NAME(load_indices)(const int64_t *from, FC_NAME(seen) *seen)
{
#if FC_LANES * 8 == FC_BYTES
    return (IVEC)FC_NAME(load)((const FC_T *)from);
#else
    VEC a = FC_NAME(load)((const FC_T *)from), b = FC_NAME(load)((const FC_T *)(from + LANES / 2));
    FC_HOLD(a);
    FC_HOLD(b);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    seen->high |= (IVEC)FC_NAME(evens)(a, b);
    return (IVEC)FC_NAME(odds)(a, b);
#else
    seen->high |= (IVEC)FC_NAME(odds)(a, b);
    return (IVEC)FC_NAME(evens)(a, b);
#endif
#endif
}

/* Were all of them taps of windows of k columns, and cells of a plane? */
FC_INLINE int FC_NAME(all_right)(const FC_NAME(seen) *seen, int k, ptrdiff_t cells)
{
    return FC_NAME(all_below)(seen->tap, k) && FC_NAME(all_below)(seen->index, (FC_INT)cells) &&
           FC_NAME(all_below)(seen->high, 1);
}

/* The shifts that `count` windows chose, whose own cells begin with cell `own` of a plane of width w, and their gradients.
 * `readable` elements are there. Up to LANES - 1 elements more are written. */
FC_INLINE void FC_NAME(lay_out_shifts)(const int k, ptrdiff_t w, const int64_t *indices, const FC_T *dout, ptrdiff_t own,
                                       ptrdiff_t count, ptrdiff_t readable, FC_INT *shifts, FC_T *gradients,
                                       FC_NAME(seen) *seen)
{
    const IVEC back = FC_NAME(iall)((FC_INT)(k == 3 ? w + 1 : 0));
    const IVEC width = FC_NAME(iall)((FC_INT)w);
    IVEC from = FC_NAME(count)() + (FC_INT)own;
    FC_NAME(seen) most = *seen;
    for (ptrdiff_t i = 0; i < count; i += LANES, from += (FC_INT)LANES) {
        IVEC index;
        VEC gradient;
        if (FC_LIKELY(readable - i >= LANES)) {
            index = FC_NAME(load_indices)(indices + i, &most);
            gradient = FC_NAME(load)(dout + i);
        } else {
            int64_t few[FC_LANES] = {0};
            memcpy(few, indices + i, (size_t)(count - i) * 8);
            index = FC_NAME(load_indices)(few, &most);
            gradient = FC_NAME(load_part)(dout + i, count - i);
        }
        const IVEC shift = FC_NAME(minus)(index, from);
        IVEC tap = FC_NAME(plus)(shift, back);
        FC_NAME(store)((FC_T *)(shifts + i), (VEC)shift);
        FC_NAME(store)(gradients + i, gradient);
        const IVEC second = FC_NAME(minus)(tap, width);
        tap = FC_NAME(lower)(tap, k == 3 ? FC_NAME(lower)(second, FC_NAME(minus)(second, width)) : second);
        if (count - i < LANES) { /* those behind are none */
            tap = FC_NAME(ipick)(FC_NAME(first)(count - i), tap, (IVEC){0});
            index = FC_NAME(ipick)(FC_NAME(first)(count - i), index, (IVEC){0});
        }
        most.tap = FC_NAME(higher)(most.tap, tap);
        most.index = FC_NAME(higher)(most.index, index);
    }
    *seen = most;
}

/* sum[j]: of the windows whose own cells are `j` columns before (k == 3: j - 1) those of LANES cells, in any of k rows. */
FC_INLINE void FC_NAME(sum_shifts)(const int k, const IVEC *shift, const FC_INT *shifts, const FC_T *gradients, ptrdiff_t w,
                                   VEC *sum)
{
FC_UNROLL
    for (int i = 0; i < k; i++) {
        const ptrdiff_t from = (k / 3 - i) * w;
        IVEC chosen = FC_NAME(iload)(shifts + from);
        VEC gradient = FC_NAME(load)(gradients + from);
        FC_HOLD(chosen);
        FC_HOLD(gradient);
FC_UNROLL
        for (int j = 0; j < k; j++) {
            const MASK which = FC_NAME(same)(chosen, shift[k * i + j]);
            sum[j] = i ? FC_NAME(add_where)(which, sum[j], gradient) : FC_NAME(pick)(which, gradient, (VEC){0});
        }
    }
}

/* `planes` planes, if all their windows are k x k with stride 1; returns whether they are. `readable` elements of dout and
 * indices are there. */
FC_INLINE int FC_NAME(shift_planes)(const int k, const fc_pooling *p, const fc_chosen *a, ptrdiff_t planes, const FC_T *dout,
                                    const int64_t *indices, ptrdiff_t readable, fc_sink *out, char *scratch)
{
    const ptrdiff_t w = p->w, cells = p->h * w, all = planes * cells, size = (ptrdiff_t)sizeof(FC_T);
    const ptrdiff_t reach = w + LANES, until = w + 2 * LANES; /* what is looked at before and behind the cells of a sum */
    const ptrdiff_t before = k == 3 && p->ow < w; /* rows and columns of cells before the first that is a window's own */
    FC_T *const gradients = (FC_T *)scratch + reach;
    FC_INT *const shifts = (FC_INT *)((FC_T *)scratch + a->copy) + reach;
    IVEC shift[9];
FC_UNROLL
    for (int i = 0; i < k * k; i++)
        shift[i] = FC_NAME(iall)((FC_INT)((i / k - k / 3) * w + i % k - k / 3));
    for (ptrdiff_t i = -reach; i < 0; i++)
        shifts[i] = NO_CHOICE;
    FC_NAME(seen) seen = {{0}, {0}, {0}};
    ptrdiff_t laid = 0, plane = 0, row = 0; /* laid: cells so far */
    for (ptrdiff_t start = 0; start < all; start += a->chunk) {
        const ptrdiff_t stop = start + a->chunk < all ? start + a->chunk : all;
        if (start) {
            memmove(shifts - reach, shifts - reach + a->chunk, (size_t)((laid - start + reach) * size));
            memmove(gradients - reach, gradients - reach + a->chunk, (size_t)((laid - start + reach) * size));
        }
        while (laid < stop + until && plane < planes) {
            FC_INT *const to = shifts + laid - start;
            FC_T *const to_gradients = gradients + laid - start;
            if (p->ow == w) { /* as many rows as are needed */
                ptrdiff_t rows = (stop + until - laid + w - 1) / w;
                rows = rows < p->h - row ? rows : p->h - row;
                const ptrdiff_t done = (plane * p->h + row) * w;
                FC_NAME(lay_out_shifts)(k, w, indices + done, dout + done, row * w, rows * w, readable - done, to,
                                        to_gradients, &seen);
                row += rows;
                laid += rows * w;
            } else {
                const ptrdiff_t y = row - before, done = (plane * p->oh + y) * p->ow;
                ptrdiff_t count = 0;
                for (ptrdiff_t q = 0; q < before; q++)
                    to[q] = NO_CHOICE;
                if (y >= 0 && y < p->oh) {
                    count = p->ow;
                    FC_NAME(lay_out_shifts)(k, w, indices + done, dout + done, row * w + before, count, readable - done,
                                            to + before, to_gradients + before, &seen);
                }
                for (ptrdiff_t q = before + count; q < w; q++)
                    to[q] = NO_CHOICE;
                row++;
                laid += w;
            }
            if (row == p->h) {
                row = 0;
                plane++;
            }
        }
        if (!FC_NAME(all_right)(&seen, k, cells))
            return 0;
        if (laid < stop + until) /* behind the last plane */
            for (ptrdiff_t i = laid; i < stop + until; i++)
                shifts[i - start] = NO_CHOICE;
        const ptrdiff_t looked = plane * p->oh * p->ow + fc_max(fc_min(row - before, p->oh), 0) * p->ow;
        const char *next = (const char *)(indices + looked), *next_gradients = (const char *)(dout + looked);
        FC_T *const to = (FC_T *)out->at;
        const ptrdiff_t room = (out->end - out->at) / size, count = stop - start;
        VEC left[3], here[3], right[3];
        FC_NAME(sum_shifts)(k, shift, shifts - LANES, gradients - LANES, w, left);
        if (k == 3)
            FC_NAME(sum_shifts)(k, shift, shifts, gradients, w, here);
        for (ptrdiff_t c = 0; c < count; c += LANES) {
            VEC sum;
            if (k == 3) {
                FC_NAME(sum_shifts)(k, shift, shifts + c + LANES, gradients + c + LANES, w, right);
                sum = FC_NAME(next)(here[0], right[0]) + here[1] + FC_NAME(last)(left[2], here[2]);
                left[2] = here[2];
FC_UNROLL
                for (int j = 0; j < 3; j++)
                    here[j] = right[j];
            } else {
                FC_NAME(sum_shifts)(k, shift, shifts + c, gradients + c, w, here);
                sum = here[0] + FC_NAME(last)(left[1], here[1]);
                left[1] = here[1];
            }
            FC_NAME(put)(to + c, sum, count - c, room - c);
            if (p->streams) { /* what is laid out next, and not while it is: sums leave memory idle */
FC_UNROLL
                for (int line = 0; line < (FC_LANES * 8 + 63) / 64; line++)
                    __builtin_prefetch(next + 64 * line, 0, 2);
                __builtin_prefetch(next_gradients, 0, 2);
                next += FC_LANES * 8;
                next_gradients += FC_BYTES;
            }
        }
        fc_written(out, count * size);
    }
    return 1;
}

#define SHIFT_PLANES(K)                                                                                               \
    __attribute__((noinline)) static int FC_NAME(shift_planes_##K)(                                                   \
        const fc_pooling *p, const fc_chosen *a, ptrdiff_t planes, const FC_T *dout, const int64_t *indices,          \
        ptrdiff_t readable, fc_sink *out, char *scratch)                                                              \
    {                                                                                                                 \
        return FC_NAME(shift_planes)(K, p, a, planes, dout, indices, readable, out, scratch);                         \
    }
SHIFT_PLANES(3)
SHIFT_PLANES(2)

/* --- windows of 2x2 with stride 2 ------------------------------------------------------------------------------- */

/* Prefetch LANES indices and gradients, in the order of memory whatever the order in which they are needed. */
FC_INLINE void FC_NAME(fetch)(const char **indices, const char **gradients)
{
FC_UNROLL
    for (int line = 0; line < (FC_LANES * 8 + 63) / 64; line++)
        __builtin_prefetch(*indices + 64 * line);
    __builtin_prefetch(*gradients);
    *indices += FC_LANES * 8;
    *gradients += FC_BYTES;
}

/* LANES windows side by side; with `edge` only those of `there` are, of which only those of `second` have a second column.
 * `first` is the cell that their first one begins with, `left` the width from there on. */
FC_INLINE void FC_NAME(pair_windows)(const int edge, const int two, const MASK there, const MASK second, IVEC first,
                                     const int64_t *indices, const FC_T *dout, ptrdiff_t count, ptrdiff_t readable, FC_T *to,
                                     ptrdiff_t w, ptrdiff_t left, ptrdiff_t room, FC_NAME(seen) *seen)
{
    const IVEC width = FC_NAME(iall)((FC_INT)w);
    IVEC index = {0};
    VEC gradient = {0};
    if (FC_LIKELY(readable >= LANES)) {
        index = FC_NAME(load_indices)(indices, seen);
        gradient = FC_NAME(load)(dout);
        FC_HOLD(gradient);
FC_UNROLL
        for (int line = 0; line < 4; line++)
            __builtin_prefetch((const char *)to + FC_AHEAD / 4 + 64 * line, 1);
    } else if (count > 0) {
        int64_t few[FC_LANES] = {0};
        memcpy(few, indices, (size_t)count * 8);
        index = FC_NAME(load_indices)(few, seen);
        gradient = FC_NAME(load_part)(dout, count);
    }
    IVEC cell = FC_NAME(minus)(index, first);
    if (edge) /* those that are not there have chosen nothing */
        cell = FC_NAME(ipick)(there, cell, FC_NAME(iall)(NO_CHOICE));
    IVEC tap = two ? FC_NAME(lower)(cell, FC_NAME(minus)(cell, width)) : cell;
    if (edge)
        tap = FC_NAME(ipick)(there, FC_NAME(ipick)(second, tap, FC_NAME(plus)(tap, tap)), (IVEC){0});
    seen->tap = FC_NAME(higher)(seen->tap, tap);
FC_UNROLL
    for (int i = 0; i < 1 + two; i++) {
        const VEC even = FC_NAME(pick)(FC_NAME(same)(cell, i ? width : (IVEC){0}), gradient, (VEC){0});
        const VEC odd = FC_NAME(pick)(FC_NAME(same)(cell, (i ? width : (IVEC){0}) + 1), gradient, (VEC){0});
        if (edge) {
            FC_NAME(put)(to + i * w, FC_NAME(lows)(even, odd), left, room - i * w);
            FC_NAME(put)(to + i * w + LANES, FC_NAME(highs)(even, odd), left - LANES, room - i * w - LANES);
        } else {
            FC_NAME(store)(to + i * w, FC_NAME(lows)(even, odd));
            FC_NAME(store)(to + i * w + LANES, FC_NAME(highs)(even, odd));
        }
    }
}

/* One plane, if its windows are; returns whether they are. Each cell is written once. */
static int FC_NAME(pair_plane)(const fc_pooling *p, const FC_T *dout, const int64_t *indices, ptrdiff_t readable,
                               fc_sink *out)
{
    const ptrdiff_t w = p->w, h = p->h, ow = p->ow, size = (ptrdiff_t)sizeof(FC_T), last = (w - 1) / 2 / LANES * LANES;
    const ptrdiff_t whole = p->oh < h / 2 ? p->oh : h / 2; /* rows of windows with two rows of cells */
    const MASK there = FC_NAME(first)(fc_max(ow - last, 0)), second = FC_NAME(first)((w - 2 * last) / 2);
    IVEC first = FC_NAME(count)() * 2;
    FC_NAME(seen) seen = {{0}, {0}, {0}};
    for (ptrdiff_t y = 0; y < whole; y++, first += (FC_INT)(2 * w)) { /* from the right: stores may reach to the left end */
        const ptrdiff_t done = y * ow, room = (out->end - out->at) / size;
        const char *next = (const char *)(indices + done) + FC_AHEAD;
        const char *next_gradients = (const char *)(dout + done) + FC_AHEAD * size / 8;
        FC_T *const to = (FC_T *)out->at;
        FC_NAME(pair_windows)(1, 1, there, second, first + (FC_INT)(2 * last), indices + done + last, dout + done + last,
                              ow - last, readable - done - last, to + 2 * last, w, w - 2 * last, room - 2 * last, &seen);
        for (ptrdiff_t q = last - LANES; q >= 0; q -= LANES) {
            FC_NAME(pair_windows)(0, 1, there, second, first + (FC_INT)(2 * q), indices + done + q, dout + done + q, LANES,
                                  readable - done - q, to + 2 * q, w, w, w, &seen);
            FC_NAME(fetch)(&next, &next_gradients);
        }
        FC_NAME(fetch)(&next, &next_gradients);
        fc_written(out, 2 * w * size);
    }
    for (ptrdiff_t y = whole; y < p->oh; y++) { /* windows that end below the plane */
        for (ptrdiff_t q = last; q >= 0; q -= LANES) {
            const MASK here = FC_NAME(first)(fc_max(ow - q, 0)), both = FC_NAME(first)((w - 2 * q) / 2);
            FC_NAME(pair_windows)(1, 0, here, both, first + (FC_INT)(2 * q), indices + y * ow + q, dout + y * ow + q, ow - q,
                                  readable - y * ow - q, (FC_T *)out->at + 2 * q, w, w - 2 * q,
                                  (out->end - out->at) / size - 2 * q, &seen);
        }
        fc_written(out, w * size);
    }
    for (ptrdiff_t r = 2 * p->oh; r < h; r++) {
        FC_ELEMENT(fill)((FC_T *)out->at, 0, w);
        fc_written(out, w * size);
    }
    return FC_NAME(all_right)(&seen, 2, p->h * w);
}

#undef SHIFT_PLANES
#undef FC_AHEAD
#undef NO_CHOICE
#undef VEC
#undef IVEC
#undef MASK
#undef LANES

#endif
