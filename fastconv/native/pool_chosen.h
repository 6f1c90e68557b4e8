/* Template of the gradient of a maximum; see pooling.h and each_vector.h. Only for full vectors.
 *
 * The indices do not say which windows they come from. Where they could come from common ones (2x2 or 3x3, stride 1 or 2)
 * nothing is scattered: each cell of the input gradient asks the few windows it would be in whether they chose it. What is
 * compared is how far the chosen cell lies behind one of the window's own, which is one of k*k distances, the same ones for
 * all windows. Whether each window did choose one of its cells is found out on the way; where one did not, the windows were
 * others, and the plane is done again by scattering. Only the plane itself (small ones: a few together) decides that, so that
 * the order of additions does not depend on threads.
 *
 * With stride 2 rows are written from the right, so that a store may reach over the end of its row: what it spoils is written
 * later. */

#if FC_BYTES == FC_VECTOR_BYTES

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define MASK FC_NAME(mask)
#define TAG FC_NAME(tag)
#define TAGS FC_NAME(tags)
#define LANES ((ptrdiff_t)FC_LANES)
#define NARROW (FC_LANES * 8 != FC_BYTES) /* indices are longer than elements */
#if defined(__AVX512F__)
#define COUNTED 0
#define PERMUTES 1 /* lanes of a vector in any order */
#else
#define COUNTED 1
#define PERMUTES 0
#endif
#define FC_AHEAD 8192 /* bytes of indices to prefetch ahead, and of the gradients that go with them */

/* No window's shift: those are less than w + 2, and FC_FLAT_WIDTH limits that. */
#define NO_SHIFT INT16_MIN

/* dx[at] += value; returns what rounding lost (Knuth's TwoSum), or NaN where something is not finite. */
FC_INLINE FC_T FC_NAME(add_one)(FC_T *dx, ptrdiff_t at, FC_T value)
{
    const FC_T before = dx[at], sum = before + value, added = sum - before;
    dx[at] = sum;
    return (before - (sum - added)) + (value - added);
}

FC_INLINE FC_T FC_NAME(if_finite)(FC_T lost)
{
    return lost - lost == 0 ? lost : 0;
}

/* The rest of a plane of which a cell is the sum of many: what rounding loses is added up, too, and added at the end. With
 * `owners` a plane has more cells than there is room for: a cell that comes to another one's place takes it over. */
__attribute__((noinline)) static void FC_NAME(scatter_exactly)(const FC_T *dout, const int64_t *indices, ptrdiff_t count,
                                                               FC_T *dx, ptrdiff_t cells, FC_T *lost, int64_t *owners)
{
    const ptrdiff_t places = owners ? FC_OWNERS : cells;
    memset(lost, 0, (size_t)places * sizeof *lost);
    if (owners) {
        memset(owners, 0, (size_t)places * sizeof *owners);
        for (ptrdiff_t i = 0; i < count; i++) {
            const ptrdiff_t at = (ptrdiff_t)indices[i], place = fc_place(at);
            if (owners[place] != at) {
                dx[owners[place]] += FC_NAME(if_finite)(lost[place]);
                owners[place] = at;
                lost[place] = 0;
            }
            lost[place] += FC_NAME(add_one)(dx, at, dout[i]);
        }
    } else {
        for (ptrdiff_t i = 0; i < count; i++)
            lost[indices[i]] += FC_NAME(add_one)(dx, indices[i], dout[i]);
    }
    for (ptrdiff_t i = 0; i < places; i++)
        dx[owners ? owners[i] : i] += FC_NAME(if_finite)(lost[i]);
}

#if FC_LANES * 4 == FC_BYTES
#define TIMES uint8_t
#else
#define TIMES uint16_t
#endif

/* Zeros for cells [from, until), and in `times`, of which one is for 1 << shift cells. */
FC_INLINE void FC_NAME(begin_cells)(FC_T *dx, ptrdiff_t from, ptrdiff_t until, TIMES *times, int shift)
{
    memset(dx + from, 0, (size_t)(until - from) * sizeof *dx);
    if (!times)
        return;
    until = (until - 1) >> shift;
    from = fc_max((from + ((ptrdiff_t)1 << shift) - 1) >> shift, until - FC_COUNTED + 1);
    while (from <= until) {
        const ptrdiff_t at = from % FC_COUNTED, count = fc_min(until + 1 - from, FC_COUNTED - at);
        memset(times + at, 0, (size_t)count * sizeof *times);
        from += count;
    }
}

/* One plane, whatever its indices. No pooling needs to have given them, and a large window's may name a cell thousands of
 * times. So a random one of each four windows is counted where it falls, and once many fall on the same cells, long before
 * rule 14 would not hold, the plane is gone on with exactly. Where there are few windows one count is for some cells, and of a
 * `large` plane it is the last cells up to the farthest one named that are counted. */
FC_INLINE void FC_NAME(scatter)(const int large, const FC_T *dout, const int64_t *indices, ptrdiff_t count, FC_T *dx,
                                ptrdiff_t cells, char *scratch)
{
    enum { AHEAD = 4096 / sizeof(FC_T), EACH = 4 };
    enum { ENOUGH = sizeof(FC_T) == 4 ? 128 : 8192, MOST = ENOUGH / 2 / EACH }; /* 130 equal ones lose 1.97e-6 at most */
    TIMES *const times = count > ENOUGH ? (TIMES *)scratch : NULL;
    ptrdiff_t zeros = 0, i = 0;
    uint32_t random = 0;
    int shift = 0;
    TIMES most = 0;
    while (shift < 6 && count << (shift + 1) <= cells)
        shift++;
    if (!large) {
        FC_NAME(begin_cells)(dx, 0, cells, times, shift);
        zeros = cells;
    }
    while (i < count && most < MOST) {
        const int64_t *const next = indices + i;
        const ptrdiff_t there = fc_min(EACH, count - i);
        if (large) {
            int64_t last = next[0];
            for (ptrdiff_t j = 1; j < there; j++)
                last = next[j] > last ? next[j] : last;
            if (FC_UNLIKELY(last >= zeros)) { /* zeros just ahead, so that they need not come back from memory */
                const ptrdiff_t until = cells - last < AHEAD ? cells : (ptrdiff_t)last + AHEAD;
                FC_NAME(begin_cells)(dx, zeros, until, times, shift);
                zeros = until;
            }
        }
        if (FC_UNLIKELY(there < EACH)) {
            for (; i < count; i++)
                dx[indices[i]] += dout[i];
            break;
        }
        FC_T *const a = dx + next[0], *const b = dx + next[1]; /* addresses first: they do not wait for the additions */
        FC_T *const c = dx + next[2], *const d = dx + next[3];
        *a += dout[i];
        *b += dout[i + 1];
        *c += dout[i + 2];
        *d += dout[i + 3];
        if (times) {
            random = 1664525 * random + 1013904223;
            const size_t at = (size_t)next[random >> 30] >> shift;
            const TIMES now = ++times[large ? at % FC_COUNTED : at];
            most = now > most ? now : most;
        }
        i += EACH;
    }
    memset(dx + zeros, 0, (size_t)(cells - zeros) * sizeof *dx);
    if (i < count) {
        int64_t *const owners = large ? (int64_t *)scratch : NULL;
        FC_NAME(scatter_exactly)(dout + i, indices + i, count - i, dx, cells,
                                 large ? (FC_T *)(owners + FC_OWNERS) : (FC_T *)scratch, owners);
    }
}

/* What is known of all windows so far. */
typedef struct {
    IVEC tap;   /* the largest one without signs: (i, j) as j, larger than any of the window where it is none, */
    IVEC index; /* the largest index without signs, of windows that reach out of the plane, */
    IVEC bits;  /* and the bits of all indices, where those are longer than elements: those beyond must be 0 */
    IVEC found; /* instead of taps: windows that chose one of their cells, where masks are vectors and counting costs less */
} FC_NAME(seen);

static const FC_NAME(seen) FC_NAME(nothing_seen);

FC_INLINE FC_NAME(seen) FC_NAME(seen_both)(FC_NAME(seen) a, FC_NAME(seen) b)
{
    return (FC_NAME(seen)){FC_NAME(higher)(a.tap, b.tap), FC_NAME(higher)(a.index, b.index), a.bits | b.bits,
                           a.found + b.found};
}

/* Did all windows choose one of their k*k cells, out of a plane of `cells`? */
static int FC_NAME(all_right)(const FC_NAME(seen) *seen, int k, ptrdiff_t cells)
{
#if NARROW
    int64_t words[FC_BYTES / 8], all = 0;
    memcpy(words, &seen->bits, sizeof words);
    for (int i = 0; i < FC_BYTES / 8; i++)
        all |= words[i];
    if (all >> 32)
        return 0;
#endif
    return FC_NAME(all_below)(seen->tap, k) && FC_NAME(all_below)(seen->index, (FC_INT)cells);
}

/* Were `count` windows found? */
static int FC_NAME(all_found)(const FC_NAME(seen) *seen, ptrdiff_t count)
{
    FC_INT found[FC_LANES];
    int64_t total = 0;
    memcpy(found, &seen->found, sizeof found);
    for (int l = 0; l < FC_LANES; l++)
        total += found[l];
    return total == count;
}

/* The windows are LANES ones that chose `chosen`, counted from their first cells; with `some` only those of `there` are any. */
FC_INLINE void FC_NAME(look)(const int some, const int k, MASK there, IVEC chosen, IVEC width, FC_NAME(seen) *seen)
{
    const IVEC second = FC_NAME(minus)(chosen, width);
    IVEC tap = FC_NAME(lower)(chosen, k == 3 ? FC_NAME(lower)(second, FC_NAME(minus)(second, width)) : second);
    if (some)
        tap = FC_NAME(ipick)(there, tap, (IVEC){0});
    seen->tap = FC_NAME(higher)(seen->tap, tap);
}

FC_INLINE void FC_NAME(look_inside)(MASK there, IVEC index, FC_NAME(seen) *seen)
{
    seen->index = FC_NAME(higher)(seen->index, FC_NAME(ipick)(there, index, (IVEC){0}));
}

/* LANES indices. */
FC_INLINE IVEC FC_NAME(load_indices)(const int64_t *from, IVEC *bits)
{
#if NARROW
    IVEC a = FC_NAME(iload)((const FC_INT *)from), b = FC_NAME(iload)((const FC_INT *)(from + LANES / 2));
    FC_HOLD(a);
    FC_HOLD(b);
    *bits |= a | b;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (IVEC)FC_NAME(odds)((VEC)a, (VEC)b);
#else
    return (IVEC)FC_NAME(evens)((VEC)a, (VEC)b);
#endif
#else
    return FC_NAME(iload)((const FC_INT *)from);
#endif
}

/* `count` windows near an end of the arrays, which have `before` elements before the first one and `readable` from there on:
 * zeros stand for those that are not there. */
FC_INLINE void FC_NAME(load_few)(const int64_t *indices, const FC_T *dout, ptrdiff_t before, ptrdiff_t readable,
                                 ptrdiff_t count, int64_t *few, FC_T *few_gradients)
{
    for (ptrdiff_t i = 0; i < count; i++) {
        const int there = i >= -before && i < readable;
        few[i] = there ? indices[i] : 0;
        few_gradients[i] = there ? dout[i] : 0;
    }
}

/* Prefetch `count` indices and gradients, in the order of memory whatever the order in which they are needed; to the second-level
 * cache, which has room for more lines that are on their way. */
FC_INLINE void FC_NAME(fetch)(const int count, const char **indices, const char **gradients)
{
FC_UNROLL
    for (int line = 0; line < (count * 8 + 63) / 64; line++)
        __builtin_prefetch(*indices + 64 * line, 0, 2);
    __builtin_prefetch(*gradients, 0, 2);
    *indices += count * 8;
    *gradients += count * FC_BYTES / FC_LANES;
}

/* --- 2x2/2: each cell is in one window, and written once ---------------------------------------------------------- */

/* LANES/2 elements, each one twice: cells of a row are as many as the windows' columns. */
FC_INLINE VEC FC_NAME(load_twice)(const FC_T *from)
{
#if FC_LANES == 2
    return (VEC){*from, *from};
#else
    typedef FC_T half __attribute__((vector_size(FC_BYTES / 2)));
    typedef FC_T uhalf __attribute__((vector_size(FC_BYTES / 2), aligned(sizeof(FC_T)), may_alias));
    const half v = *(const uhalf *)from;
#if FC_LANES == 16
    return __builtin_shufflevector(v, v, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
#elif FC_LANES == 8
    return __builtin_shufflevector(v, v, 0, 0, 1, 1, 2, 2, 3, 3);
#else
    return __builtin_shufflevector(v, v, 0, 0, 1, 1);
#endif
#endif
}

FC_INLINE IVEC FC_NAME(load_indices_twice)(const int64_t *from, IVEC *bits)
{
#if NARROW
    IVEC v = FC_NAME(iload)((const FC_INT *)from);
    FC_HOLD(v);
    *bits |= v;
    enum { LOW = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ };
#if FC_LANES == 16
    return __builtin_shufflevector(v, v, LOW, LOW, 2 + LOW, 2 + LOW, 4 + LOW, 4 + LOW, 6 + LOW, 6 + LOW, 8 + LOW, 8 + LOW,
                                   10 + LOW, 10 + LOW, 12 + LOW, 12 + LOW, 14 + LOW, 14 + LOW);
#elif FC_LANES == 8
    return __builtin_shufflevector(v, v, LOW, LOW, 2 + LOW, 2 + LOW, 4 + LOW, 4 + LOW, 6 + LOW, 6 + LOW);
#else
    return __builtin_shufflevector(v, v, LOW, LOW, 2 + LOW, 2 + LOW);
#endif
#else
    return (IVEC)FC_NAME(load_twice)((const FC_T *)from);
#endif
}

/* LANES cells of each of two rows, from LANES/2 windows, whose first cells are `first`. What lies behind a row's windows chose
 * no cell there. */
FC_INLINE IVEC FC_NAME(pair_cells)(const int some, MASK there, IVEC first, IVEC width, const int64_t *indices, const FC_T *dout,
                                   VEC *upper, VEC *lower, FC_NAME(seen) *seen)
{
    const IVEC index = FC_NAME(load_indices_twice)(indices, &seen->bits), chosen = FC_NAME(minus)(index, first);
    const IVEC column = FC_NAME(count)() & 1;
    VEC gradient = FC_NAME(load_twice)(dout);
    FC_HOLD(gradient);
    const MASK above = FC_NAME(same)(chosen, column), below = FC_NAME(same)(chosen, column + width);
#if COUNTED
    const MASK found = above | below;
    seen->found = FC_NAME(tally)(seen->found, some ? found & there : found);
#else
    FC_NAME(look)(some, 2, there, chosen, width, seen);
#endif
    *upper = FC_NAME(pick)(above, gradient, (VEC){0});
    *lower = FC_NAME(pick)(below, gradient, (VEC){0});
    return index;
}

/* A row of windows that reach out of the plane, or near an end of the arrays; with or without a second row of cells. */
__attribute__((noinline)) static FC_NAME(seen)
    FC_NAME(pair_row_at_end)(int two, const fc_pooling *p, const int64_t *indices, const FC_T *dout, ptrdiff_t readable,
                             ptrdiff_t cell, FC_T *to, ptrdiff_t room)
{
    const ptrdiff_t w = p->w, ow = p->ow;
    const IVEC width = FC_NAME(iall)((FC_INT)w);
    FC_NAME(seen) seen = FC_NAME(nothing_seen);
    for (ptrdiff_t c = (w - 1) / LANES * LANES; c >= 0; c -= LANES) {
        const MASK there = FC_NAME(first)(fc_max(fc_min(2 * ow - c, LANES), 0));
        const IVEC first = (FC_NAME(count)() & -2) + (FC_INT)(cell + c);
        int64_t few[FC_LANES];
        FC_T few_gradients[FC_LANES];
        VEC upper, lower;
        FC_NAME(load_few)(indices + c / 2, dout + c / 2, 0, readable - c / 2, LANES, few, few_gradients);
        FC_NAME(look_inside)(there, FC_NAME(pair_cells)(1, there, first, width, few, few_gradients, &upper, &lower, &seen),
                             &seen);
        FC_NAME(put)(to + c, upper, w - c, room - c);
        if (two)
            FC_NAME(put)(to + w + c, lower, w - c, room - w - c);
    }
    return seen;
}

/* `steps`: vectors of a row, 0 for any number. */
FC_INLINE int FC_NAME(pair_rows)(const int steps, const int streams, const fc_pooling *p, const fc_chosen *a, ptrdiff_t planes,
                                 const FC_T *dout, const int64_t *indices, ptrdiff_t readable, fc_sink *out)
{
    const ptrdiff_t w = p->w, h = p->h, oh = p->oh, ow = p->ow, size = (ptrdiff_t)sizeof(FC_T);
    const ptrdiff_t last = steps ? (steps - 1) * LANES : (w - 1) / LANES * LANES; /* column of a row's last vector */
    const MASK there = FC_NAME(first)(fc_max(fc_min(2 * ow - last, LANES), 0));
    const IVEC width = FC_NAME(iall)((FC_INT)w);
    FC_NAME(seen) seen = FC_NAME(nothing_seen), at_end = seen;
    int beyond = 0; /* windows that chose a column behind the plane's last */
    for (ptrdiff_t plane = 0; plane < planes; plane++) {
        IVEC first = FC_NAME(count)() & -2;
        FC_T *to = (FC_T *)out->at;
        ptrdiff_t rest = a->pairs; /* until they are handed on */
        for (ptrdiff_t y = 0; y < oh; y++) {
            const ptrdiff_t room = (FC_T *)out->end - to;
            const int two = 2 * y + 1 < h;
            if (FC_UNLIKELY(!two || readable < (last + LANES) / 2 || room < w + last + LANES)) {
                at_end = FC_NAME(seen_both)(
                    at_end, FC_NAME(pair_row_at_end)(two, p, indices, dout, readable, 2 * y * w, to, room));
            } else {
                const char *next = (const char *)indices + FC_AHEAD, *next_gradients = (const char *)dout + FC_AHEAD * size / 8;
                VEC upper, lower;
                FC_NAME(pair_cells)(1, there, first + (FC_INT)last, width, indices + last / 2, dout + last / 2, &upper, &lower,
                                    &seen);
                FC_NAME(store)(to + last, upper);
                FC_NAME(store)(to + w + last, lower);
                if (streams)
                    FC_NAME(fetch)(FC_LANES / 2, &next, &next_gradients);
                for (ptrdiff_t c = last - LANES; c >= 0; c -= LANES) {
                    FC_NAME(pair_cells)(0, there, first + (FC_INT)c, width, indices + c / 2, dout + c / 2, &upper, &lower,
                                        &seen);
                    FC_NAME(store)(to + c, upper);
                    FC_NAME(store)(to + w + c, lower);
                    if (streams)
                        FC_NAME(fetch)(FC_LANES / 2, &next, &next_gradients);
                }
            }
            if (FC_UNLIKELY(w & 1 && 2 * ow > w))
                beyond |= (indices[ow - 1] + 1) % w == 1;
            first += (FC_INT)(2 * w);
            to += w + two * w;
            indices += ow;
            dout += ow;
            readable -= ow;
            if (--rest == 0 || y + 1 == oh) {
                fc_written(out, (char *)to - out->at);
                to = (FC_T *)out->at;
                rest = a->pairs;
            }
        }
        for (ptrdiff_t r = 2 * oh; r < h; r++) {
            FC_ELEMENT(fill)((FC_T *)out->at, 0, w);
            fc_written(out, w * size);
        }
    }
    const FC_NAME(seen) all = FC_NAME(seen_both)(seen, at_end); /* its address is taken: `seen` stays in registers */
    return !beyond && FC_NAME(all_right)(&all, 2, h * w) && (!COUNTED || FC_NAME(all_found)(&all, planes * oh * ow));
}

static int FC_NAME(pair_planes)(const fc_pooling *p, const fc_chosen *a, ptrdiff_t planes, const FC_T *dout,
                                const int64_t *indices, ptrdiff_t readable, fc_sink *out, char *scratch)
{
    if (p->streams)
        return FC_NAME(pair_rows)(0, 1, p, a, planes, dout, indices, readable, out);
    if (p->w <= LANES)
        return FC_NAME(pair_rows)(1, 0, p, a, planes, dout, indices, readable, out);
    if (p->w <= 2 * LANES)
        return FC_NAME(pair_rows)(2, 0, p, a, planes, dout, indices, readable, out);
    return FC_NAME(pair_rows)(0, 0, p, a, planes, dout, indices, readable, out);
}

/* --- 3x3/2: a column is in one window or in two ------------------------------------------------------------------- */

/* Three rows of cells from a row of windows, whose first cells are `first`: the first row completes what is `waiting` and goes,
 * with the second one, to `cells`; the third waits. Of two columns one (`single`) is in no other window, and one (`twin`) in
 * that before or behind, too. What lies beside a row's windows chose no cell there. With `some` only the windows `there` are
 * any. */
FC_INLINE IVEC FC_NAME(three_rows)(const int some, const int pad, MASK there, const IVEC *tap, IVEC first, IVEC width,
                                   const int64_t *indices, const FC_T *dout, FC_T *waiting, VEC *cells, FC_NAME(seen) *seen)
{
    const int side = pad ? 1 : -1, mine = pad ? 2 : 0, theirs = pad ? 0 : 2;
    IVEC bits = {0};
    const IVEC index = FC_NAME(load_indices)(indices, &seen->bits);
    IVEC chosen = FC_NAME(minus)(index, first);
    IVEC beside = FC_NAME(minus)(FC_NAME(load_indices)(indices + side, &bits), first + (FC_INT)(2 * side));
    VEC gradient = FC_NAME(load)(dout), beside_gradient = FC_NAME(load)(dout + side);
    VEC all[3][2]; /* single, twin */
    FC_HOLD(chosen);
    FC_HOLD(beside);
    FC_HOLD(gradient);
    FC_HOLD(beside_gradient);
    FC_NAME(look)(some, 3, there, chosen, width, seen);
FC_UNROLL
    for (int i = 0; i < 3; i++) {
        const MASK single = FC_NAME(same)(chosen, tap[3 * i + 1]), twin = FC_NAME(same)(chosen, tap[3 * i + mine]);
        if (i == 0) {
            all[i][0] = FC_NAME(add_where)(single, FC_NAME(load)(waiting), gradient);
            all[i][1] = FC_NAME(add_where)(twin, FC_NAME(load)(waiting + LANES), gradient);
        } else {
            all[i][0] = FC_NAME(pick)(single, gradient, (VEC){0});
            all[i][1] = FC_NAME(pick)(twin, gradient, (VEC){0});
        }
        all[i][1] = FC_NAME(add_where)(FC_NAME(same)(beside, tap[3 * i + theirs]), all[i][1], beside_gradient);
    }
FC_UNROLL
    for (int i = 0; i < 2; i++) {
        cells[2 * i] = FC_NAME(lows)(all[i][!pad], all[i][pad]);
        cells[2 * i + 1] = FC_NAME(highs)(all[i][!pad], all[i][pad]);
    }
    FC_NAME(store)(waiting, all[2][0]);
    FC_NAME(store)(waiting + LANES, all[2][1]);
    return index;
}

/* Row y of the windows, where some of their rows of cells are outside of the plane, or near an end of the arrays. `before` and
 * `readable` elements lie before and behind the row's beginning; `to` is for the first row of cells, even if it is outside. */
__attribute__((noinline)) static FC_NAME(seen)
    FC_NAME(three_row_at_end)(const int pad, const fc_pooling *p, ptrdiff_t y, const int64_t *indices, const FC_T *dout,
                              ptrdiff_t before, ptrdiff_t readable, FC_T *to, ptrdiff_t room, FC_T *waiting)
{
    const ptrdiff_t w = p->w, r = 2 * y - pad;
    const IVEC width = FC_NAME(iall)((FC_INT)w);
    FC_NAME(seen) seen = FC_NAME(nothing_seen);
    IVEC tap[9];
    for (int i = 0; i < 9; i++)
        tap[i] = FC_NAME(iall)((FC_INT)(i / 3 * w + i % 3));
    for (ptrdiff_t q = (w - 1) / 2 / LANES * LANES; q >= 0; q -= LANES) {
        const MASK there = FC_NAME(first)(fc_max(fc_min(p->ow - q, LANES), 0));
        const IVEC first = FC_NAME(count)() * 2 + (FC_INT)(r * w + 2 * q - pad);
        const int64_t *from = indices + q;
        const FC_T *from_dout = dout + q;
        int64_t few[FC_LANES + 2];
        FC_T few_gradients[FC_LANES + 2];
        VEC cells[4];
        if (before + q < 1 || readable - q <= LANES) {
            FC_NAME(load_few)(from - 1, from_dout - 1, before + q - 1, readable - q + 1, LANES + 2, few, few_gradients);
            from = few + 1;
            from_dout = few_gradients + 1;
        }
        FC_NAME(look_inside)(there, pad ? FC_NAME(three_rows)(1, 1, there, tap, first, width, from, from_dout, waiting + 2 * q,
                                                              cells, &seen)
                                        : FC_NAME(three_rows)(1, 0, there, tap, first, width, from, from_dout, waiting + 2 * q,
                                                              cells, &seen),
                             &seen);
        for (int i = 0; i < 2; i++)
            if ((size_t)(r + i) < (size_t)p->h)
                for (int j = 0; j < 2; j++) {
                    const ptrdiff_t c = 2 * q + j * LANES;
                    FC_NAME(put)(to + i * w + c, cells[2 * i + j], w - c, room - i * w - c);
                }
    }
    return seen;
}

/* Is what the window that begins with cell `first` chose none of its columns from `from` up to `to`, the ones in the plane? */
FC_INLINE int FC_NAME(misplaced)(int64_t index, ptrdiff_t first, ptrdiff_t w, ptrdiff_t from, ptrdiff_t to, ptrdiff_t cells)
{
    int right = 0;
    for (ptrdiff_t j = from; j < to; j++) {
        const int64_t chosen = (int64_t)((uint64_t)index - (uint64_t)(first + j));
        right |= (chosen == 0) | (chosen == w) | (chosen == 2 * w);
    }
    return !right | ((uint64_t)index >= (uint64_t)cells);
}

FC_INLINE int FC_NAME(three_planes)(const int pad, const int streams, const fc_pooling *pooling, const fc_chosen *a,
                                    ptrdiff_t planes, const FC_T *dout, const int64_t *indices, ptrdiff_t readable,
                                    fc_sink *out, char *scratch)
{
    const fc_pooling here = *pooling, *const p = &here; /* a copy that no store can change */
    const ptrdiff_t w = p->w, h = p->h, oh = p->oh, ow = p->ow, size = (ptrdiff_t)sizeof(FC_T);
    const ptrdiff_t last = (w - 1) / 2 / LANES * LANES; /* the first window of a row's last vector */
    const ptrdiff_t columns = w - (2 * (ow - 1) - pad); /* of a row's last window that are there */
    const MASK there = FC_NAME(first)(fc_max(fc_min(ow - last, LANES), 0));
    const IVEC width = FC_NAME(iall)((FC_INT)w);
    FC_T *const waiting = (FC_T *)scratch;
    FC_NAME(seen) seen = FC_NAME(nothing_seen), at_end = seen;
    ptrdiff_t before = dout - (const FC_T *)p->x;
    int beyond = 0; /* windows that chose a column outside of the plane */
    IVEC tap[9];
FC_UNROLL
    for (int i = 0; i < 9; i++)
        tap[i] = FC_NAME(iall)((FC_INT)(i / 3 * w + i % 3));
    for (ptrdiff_t plane = 0; plane < planes; plane++) {
        ptrdiff_t cell = -pad * (w + 1); /* of a row's first window */
        FC_T *to = (FC_T *)out->at - pad * w;
        ptrdiff_t rest = a->rows; /* until they are handed on */
        memset(waiting, 0, (size_t)(2 * (last + LANES) * size));
        for (ptrdiff_t y = 0, r = -pad; y < oh; y++, r += 2) {
            const ptrdiff_t room = (FC_T *)out->end - to;
            if (FC_UNLIKELY(r < 0 || r + 3 > h || before < 1 || readable <= last + LANES || room < w + 2 * (last + LANES))) {
                at_end = FC_NAME(seen_both)(at_end, FC_NAME(three_row_at_end)(pad, p, y, indices, dout, before, readable, to,
                                                                              room, waiting));
            } else {
                const char *next = (const char *)indices + FC_AHEAD, *next_gradients = (const char *)dout + FC_AHEAD * size / 8;
                IVEC first = FC_NAME(count)() * 2 + (FC_INT)(cell + 2 * last);
                for (ptrdiff_t q = last; q >= 0; q -= LANES, first -= (FC_INT)(2 * LANES)) {
                    VEC cells[4];
                    if (q == last)
                        FC_NAME(three_rows)(1, pad, there, tap, first, width, indices + q, dout + q, waiting + 2 * q, cells,
                                            &seen);
                    else
                        FC_NAME(three_rows)(0, pad, there, tap, first, width, indices + q, dout + q, waiting + 2 * q, cells,
                                            &seen);
                    FC_NAME(store)(to + 2 * q, cells[0]);
                    FC_NAME(store)(to + 2 * q + LANES, cells[1]);
                    FC_NAME(store)(to + w + 2 * q, cells[2]);
                    FC_NAME(store)(to + w + 2 * q + LANES, cells[3]);
                    if (streams)
                        FC_NAME(fetch)(FC_LANES, &next, &next_gradients);
                }
            }
            if (pad)
                beyond |= FC_NAME(misplaced)(indices[0], cell, w, 1, 3, h * w);
            if (columns < 3) /* it may lie behind the last vector */
                beyond |= FC_NAME(misplaced)(indices[ow - 1], cell + 2 * (ow - 1), w, 0, columns, h * w);
            cell += 2 * w;
            to += 2 * w;
            indices += ow;
            dout += ow;
            before += ow;
            readable -= ow;
            if (--rest == 0 || y + 1 == oh) {
                FC_T *const stop = to - fc_max(r + 2 - h, 0) * w;
                fc_written(out, (char *)stop - out->at);
                to = (FC_T *)out->at + (to - stop);
                rest = a->rows;
            }
        }
        for (ptrdiff_t r = 2 * oh - pad, low = r; r < h; r++) { /* below the last windows' second rows */
            const ptrdiff_t room = (out->end - out->at) / size;
            for (ptrdiff_t q = last; q >= 0; q -= LANES) {
                VEC single = {0}, twin = {0};
                if (r == low) {
                    single = FC_NAME(load)(waiting + 2 * q);
                    twin = FC_NAME(load)(waiting + 2 * q + LANES);
                }
                const VEC even = pad ? single : twin, odd = pad ? twin : single;
                FC_T *const cells = (FC_T *)out->at + 2 * q;
                FC_NAME(put)(cells, FC_NAME(lows)(even, odd), w - 2 * q, room - 2 * q);
                FC_NAME(put)(cells + LANES, FC_NAME(highs)(even, odd), w - 2 * q - LANES, room - 2 * q - LANES);
            }
            fc_written(out, w * size);
        }
    }
    const FC_NAME(seen) all = FC_NAME(seen_both)(seen, at_end); /* its address is taken: `seen` stays in registers */
    return !beyond && FC_NAME(all_right)(&all, 3, h * w);
}

#define THREE_PLANES(PAD)                                                                                             \
    __attribute__((noinline)) static int FC_NAME(three_planes_##PAD)(                                                 \
        const fc_pooling *p, const fc_chosen *a, ptrdiff_t planes, const FC_T *dout, const int64_t *indices,          \
        ptrdiff_t readable, fc_sink *out, char *scratch)                                                              \
    {                                                                                                                 \
        return p->streams ? FC_NAME(three_planes)(PAD, 1, p, a, planes, dout, indices, readable, out, scratch)        \
                          : FC_NAME(three_planes)(PAD, 0, p, a, planes, dout, indices, readable, out, scratch);       \
    }
THREE_PLANES(0)
THREE_PLANES(1)

/* --- stride 1: each window has a cell of its own, its centre (3x3) or its first one (2x2) -------------------------- */

/* What a window chose is then one of k*k shifts from there, and cells and windows are two flat arrays of which one is the other
 * one shifted, whatever the width: vectors run on across the ends of rows and planes. An index that is another cell of the
 * plane but one of the shifts, too, does no harm: its gradient goes where it says.
 *
 * Windows are laid out as far ahead of the sums as these look, and in the same loop, so that memory has something to do all the
 * time: with as many windows as cells a vector of them with each vector of sums (`flat`), otherwise row by row, with gaps. */

/* The shifts of `LANES` windows whose own cells are `own`, and their gradients; with `some` only those of `there` are any. */
FC_INLINE void FC_NAME(lay_out_windows)(const int some, const int k, MASK there, IVEC own, IVEC width, IVEC index, VEC gradient,
                                        TAG *shifts, FC_T *gradients, FC_NAME(seen) *seen)
{
    const IVEC shift = FC_NAME(minus)(index, own);
    const IVEC chosen = k == 3 ? FC_NAME(plus)(shift, FC_NAME(plus)(width, FC_NAME(iall)(1))) : shift;
    FC_NAME(store)(gradients, gradient);
    FC_NAME(store_tags)(shifts, some ? FC_NAME(ipick)(there, shift, FC_NAME(iall)(NO_SHIFT)) : shift);
    FC_NAME(look)(some, k, there, chosen, width, seen);
    if (some)
        FC_NAME(look_inside)(there, index, seen);
    else
        seen->index = FC_NAME(higher)(seen->index, index);
}

FC_INLINE void FC_NAME(lay_out_shifts)(const int some, const int k, MASK there, IVEC own, IVEC width, const int64_t *indices,
                                       const FC_T *dout, TAG *shifts, FC_T *gradients, FC_NAME(seen) *seen)
{
    const IVEC index = FC_NAME(load_indices)(indices, &seen->bits);
    FC_NAME(lay_out_windows)(some, k, there, own, width, index, FC_NAME(load)(dout), shifts, gradients, seen);
}

/* `count` windows, 0 < count <= LANES, near the end of the arrays, of which `readable` elements are there. */
FC_INLINE void FC_NAME(lay_out_few_shifts)(const int k, ptrdiff_t count, ptrdiff_t readable, IVEC own, IVEC width,
                                           const int64_t *indices, const FC_T *dout, TAG *shifts, FC_T *gradients,
                                           FC_NAME(seen) *seen)
{
    int64_t few[FC_LANES];
    FC_T few_gradients[FC_LANES];
    if (readable < LANES) {
        FC_NAME(load_few)(indices, dout, 0, count, LANES, few, few_gradients);
        indices = few;
        dout = few_gradients;
    }
    FC_NAME(lay_out_shifts)(1, k, FC_NAME(first)(count), own, width, indices, dout, shifts, gradients, seen);
}

/* sum[j]: of the windows whose own cells are `j` columns before (k == 3: j - 1) those of LANES cells, in any of k rows. */
FC_INLINE void FC_NAME(sum_shifts)(const int k, const TAGS *shift, const TAG *shifts, const FC_T *gradients, ptrdiff_t w,
                                   VEC *sum)
{
FC_UNROLL
    for (int i = 0; i < k; i++) {
        const ptrdiff_t from = (k / 3 - i) * w;
        const TAGS chosen = FC_NAME(load_tags)(shifts + from);
        VEC gradient = FC_NAME(load)(gradients + from);
        FC_HOLD(gradient);
FC_UNROLL
        for (int j = 0; j < k; j++) {
            const MASK which = FC_NAME(same_tags)(chosen, shift[k * i + j]);
            sum[j] = i ? FC_NAME(add_where)(which, sum[j], gradient) : FC_NAME(pick)(which, gradient, (VEC){0});
        }
    }
}

/* LANES cells: near[0] has the sums for the cells before, near[1] (k == 3) those for them, and both are moved on. */
FC_INLINE VEC FC_NAME(sum_cells)(const int k, const TAGS *shift, const TAG *shifts, const FC_T *gradients, ptrdiff_t w,
                                 VEC near[2][3])
{
    VEC next[3], sum;
    const ptrdiff_t at = k == 3 ? LANES : 0;
    FC_NAME(sum_shifts)(k, shift, shifts + at, gradients + at, w, next);
    if (k == 3) {
        sum = FC_NAME(next)(near[1][0], next[0]) + near[1][1] + FC_NAME(last)(near[0][2], near[1][2]);
FC_UNROLL
        for (int j = 0; j < 3; j++) {
            near[0][j] = near[1][j];
            near[1][j] = next[j];
        }
    } else {
        sum = next[0] + FC_NAME(last)(near[0][1], next[1]);
        near[0][1] = next[1];
    }
    return sum;
}

/* `planes` planes, if all their windows are k x k with stride 1; returns whether they are. `readable` elements of dout and
 * indices are there. */
FC_INLINE int FC_NAME(shift_planes)(const int k, const int flat, const int streams, const fc_pooling *p, const fc_chosen *a,
                                    ptrdiff_t planes, const FC_T *dout, const int64_t *indices, ptrdiff_t readable, fc_sink *out,
                                    char *scratch)
{
    const ptrdiff_t w = p->w, h = p->h, oh = p->oh, ow = p->ow, cells = h * w, all = planes * cells;
    const ptrdiff_t size = (ptrdiff_t)sizeof(FC_T), chunk = a->chunk, whole = all - all % LANES;
    /* what is looked at before and behind the cells of a sum, and how far ahead windows are laid out */
    const ptrdiff_t reach = fc_round_up(w, LANES) + LANES, until = reach + (1 + FC_LAID_AHEAD) * LANES;
    const ptrdiff_t before = k == 3 && !flat; /* rows and columns of cells before the first that is a window's own */
    FC_T *const gradients = (FC_T *)scratch + reach;
    TAG *const shifts = (TAG *)((FC_T *)scratch + a->copy) + reach;
    const IVEC width = FC_NAME(iall)((FC_INT)w), round = FC_NAME(iall)((FC_INT)cells);
    const IVEC step = FC_NAME(iall)((FC_INT)(LANES % cells));
    const char *next = (const char *)indices + FC_AHEAD, *next_gradients = (const char *)dout + FC_AHEAD * size / 8;
    FC_NAME(seen) seen = FC_NAME(nothing_seen), at_end = seen;
    FC_INT lane[FC_LANES];
    TAGS shift[9];
FC_UNROLL
    for (int i = 0; i < k * k; i++)
        shift[i] = FC_NAME(all_tags)((FC_INT)((i / k - k / 3) * w + i % k - k / 3));
    for (ptrdiff_t i = -reach; i < 0; i++)
        shifts[i] = NO_SHIFT;
    for (ptrdiff_t i = 0; i < LANES; i++)
        lane[i] = (FC_INT)(i % cells);
    IVEC own = FC_NAME(iload)(lane); /* flat: of the windows that are laid out next */
#if PERMUTES
    /* not flat: so many rows of windows fit a vector, gaps and all; in lane i is window source[i], or a gap */
    const ptrdiff_t together = flat ? 0 : LANES / w;
    FC_INT source[FC_LANES], window[FC_LANES];
    for (ptrdiff_t i = 0; together > 1 && i < LANES; i++) {
        const ptrdiff_t q = i % w - before;
        window[i] = i < together * w && q >= 0 && q < ow;
        source[i] = window[i] ? (FC_INT)(i / w * ow + q) : 0;
    }
#endif
    ptrdiff_t laid = 0, row = 0;     /* cells so far; rows of a plane, if they are not flat */
    for (ptrdiff_t start = 0; start < all; start += chunk) {
        const ptrdiff_t stop = start + chunk < all ? start + chunk : all, count = stop - start;
        FC_T *const to = (FC_T *)out->at;
        const ptrdiff_t room = (out->end - out->at) / size;
        ptrdiff_t c = 0;
        VEC near[2][3];
        if (start) {
            memmove(shifts - reach, shifts - reach + chunk, (size_t)(laid - start + reach) * sizeof(TAG));
            memmove(gradients - reach, gradients - reach + chunk, (size_t)((laid - start + reach) * size));
        }
#define LAY_OUT                                                                                                       \
    FC_NAME(lay_out_shifts)(0, k, FC_NAME(first)(LANES), own, width, indices + laid, dout + laid, shifts + laid - start, \
                            gradients + laid - start, &seen);                                                         \
    own = FC_NAME(plus)(own, step); /* modulo cells */                                                                \
    own = FC_NAME(lower)(own, FC_NAME(minus)(own, round));                                                            \
    laid += LANES;                                                                                                    \
    if (streams)                                                                                                      \
        FC_NAME(fetch)(FC_LANES, &next, &next_gradients);
        while (flat && laid < start + until && laid < whole) {
            LAY_OUT
        }
        while (!flat && laid < stop + until && laid < all) {
            TAG *const at = shifts + laid - start;
            FC_T *const at_gradients = gradients + laid - start;
            const ptrdiff_t windows = row >= before && row < before + oh ? ow : 0;
#if PERMUTES
            if (together > 1 && row >= before && row + together <= before + oh && readable >= LANES) {
                const IVEC from = FC_NAME(iload)(source), index = FC_NAME(load_indices)(indices, &seen.bits);
                FC_NAME(lay_out_windows)(1, k, FC_NAME(same)(FC_NAME(iload)(window), FC_NAME(iall)(1)),
                                         FC_NAME(count)() + (FC_INT)(row * w), width,
                                         (IVEC)FC_MM(permutexvar)((__m512i)from, (VEC)index),
                                         FC_MM(permutexvar)((__m512i)from, FC_NAME(load)(dout)), at, at_gradients, &seen);
                if (streams)
                    FC_NAME(fetch)(FC_LANES, &next, &next_gradients);
                indices += together * ow;
                dout += together * ow;
                readable -= together * ow;
                row = row + together < h ? row + together : 0;
                laid += together * w;
                continue;
            }
#endif
            for (ptrdiff_t i = 0; i < before; i++)
                at[i] = NO_SHIFT;
            own = FC_NAME(count)() + (FC_INT)(row * w + before);
            for (ptrdiff_t q = 0; q < windows; q += LANES, own += (FC_INT)LANES) {
                if (FC_LIKELY(q + LANES <= windows))
                    FC_NAME(lay_out_shifts)(0, k, FC_NAME(first)(LANES), own, width, indices + q, dout + q, at + before + q,
                                            at_gradients + before + q, &seen);
                else
                    FC_NAME(lay_out_few_shifts)(k, windows - q, readable - q, own, width, indices + q, dout + q,
                                                at + before + q, at_gradients + before + q, &at_end);
                if (streams)
                    FC_NAME(fetch)(FC_LANES, &next, &next_gradients);
            }
            for (ptrdiff_t i = before + windows; i < w; i++)
                at[i] = NO_SHIFT;
            indices += windows;
            dout += windows;
            readable -= windows;
            row = row + 1 < h ? row + 1 : 0;
            laid += w;
        }
        if (all < stop + until) { /* the last windows, and none behind them */
            if (flat && whole < all) {
                for (ptrdiff_t i = 0; i < LANES; i++)
                    lane[i] = (FC_INT)((whole + i) % cells);
                FC_NAME(lay_out_few_shifts)(k, all - whole, readable - whole, FC_NAME(iload)(lane), width, indices + whole,
                                            dout + whole, shifts + whole - start, gradients + whole - start, &at_end);
            }
            for (ptrdiff_t i = all; i < stop + until; i++)
                shifts[i - start] = NO_SHIFT;
        }
        FC_NAME(sum_shifts)(k, shift, shifts - LANES, gradients - LANES, w, near[0]);
        if (k == 3)
            FC_NAME(sum_shifts)(k, shift, shifts, gradients, w, near[1]);
        for (; flat && c + LANES <= count && laid < whole; c += LANES) {
            LAY_OUT
            if (streams)
                __builtin_prefetch((const char *)(to + c) + FC_AHEAD / 4, 1);
            FC_NAME(store)(to + c, FC_NAME(sum_cells)(k, shift, shifts + c, gradients + c, w, near));
        }
        for (; c < count; c += LANES)
            FC_NAME(put)(to + c, FC_NAME(sum_cells)(k, shift, shifts + c, gradients + c, w, near), count - c, room - c);
#undef LAY_OUT
        const FC_NAME(seen) known = FC_NAME(seen_both)(seen, at_end); /* its address is taken: `seen` stays in registers */
        if (!FC_NAME(all_right)(&known, k, cells))
            return 0;
        fc_written(out, count * size);
    }
    return 1;
}

#define SHIFT_PLANES(K, FLAT)                                                                                         \
    __attribute__((noinline)) static int FC_NAME(shift_planes_##K##_##FLAT)(                                          \
        const fc_pooling *p, const fc_chosen *a, ptrdiff_t planes, const FC_T *dout, const int64_t *indices,          \
        ptrdiff_t readable, fc_sink *out, char *scratch)                                                              \
    {                                                                                                                 \
        return FC_NAME(shift_planes)(K, FLAT, p->streams, p, a, planes, dout, indices, readable, out, scratch);       \
    }
SHIFT_PLANES(3, 1)
SHIFT_PLANES(3, 0)
SHIFT_PLANES(2, 0)

/* --- all ---------------------------------------------------------------------------------------------------------- */

/* `planes` planes by the windows that fc_guess named; returns whether it was right. */
static int FC_NAME(try_guess)(int guess, const fc_pooling *p, const fc_chosen *a, ptrdiff_t planes, const FC_T *dout,
                              const int64_t *indices, ptrdiff_t readable, fc_sink *out, char *scratch)
{
    const int k = fc_guesses[guess].k, pad = fc_guesses[guess].pad;
    return (fc_guesses[guess].s == 1 ? (k == 2 ? FC_NAME(shift_planes_2_0)
                                        : pad  ? FC_NAME(shift_planes_3_1)
                                               : FC_NAME(shift_planes_3_0))
            : k == 2                 ? FC_NAME(pair_planes)
            : pad                    ? FC_NAME(three_planes_1)
                                     : FC_NAME(three_planes_0))(p, a, planes, dout, indices, readable, out, scratch);
}

/* Planes [first, stop) of few windows each, whatever their indices: some are checked and cleared at a time, because for one that
 * takes as long as its windows do. */
static int FC_NAME(scatter_small)(const fc_pooling *p, const int64_t *indices, FC_T *dx, ptrdiff_t first, ptrdiff_t stop)
{
    enum { BLOCK_BYTES = 8192 };
    const ptrdiff_t cells = p->h * p->w, count = p->oh * p->ow;
    const ptrdiff_t block = fc_max(BLOCK_BYTES / (cells * (ptrdiff_t)sizeof(FC_T)), 1);
    for (ptrdiff_t planes; first < stop; first += planes) {
        planes = fc_min(block, stop - first);
        const FC_T *dout = (const FC_T *)p->x + first * count;
        const int64_t *chosen = indices + first * count;
        FC_T *plane = dx + first * cells;
        if (!fc_all_inside(chosen, planes * count, cells))
            return 0;
        memset(plane, 0, (size_t)(planes * cells) * sizeof(FC_T));
        for (ptrdiff_t k = 0; k < planes; k++, plane += cells, dout += count, chosen += count) {
            ptrdiff_t i = 0;
            for (; i + 4 <= count; i += 4) { /* addresses first: they do not wait for the additions */
                FC_T *const a = plane + chosen[i], *const b = plane + chosen[i + 1];
                FC_T *const c = plane + chosen[i + 2], *const d = plane + chosen[i + 3];
                *a += dout[i];
                *b += dout[i + 1];
                *c += dout[i + 2];
                *d += dout[i + 3];
            }
            for (; i < count; i++)
                plane[chosen[i]] += dout[i];
        }
    }
    return 1;
}

/* Planes [first, stop). `out` is a sink for all of them, dx the result's first plane. Returns 0 where an index lies
 * outside its plane; then the planes from there on are not written. */
static int FC_NAME(max_gradient)(const fc_pooling *p, const fc_chosen *a, const int64_t *indices, FC_T *dx,
                                 ptrdiff_t first, ptrdiff_t stop, fc_sink *out, char *scratch, ptrdiff_t capacity)
{
    const ptrdiff_t cells = p->h * p->w, count = p->oh * p->ow;
    char *const buffer = out->to ? out->buffer - (uintptr_t)out->buffer % FC_LINE : NULL;
    if (!a->guesses && count <= FC_FEW_WINDOWS)
        return FC_NAME(scatter_small)(p, indices, dx, first, stop);
    ptrdiff_t alone = first; /* planes before this one are not tried together with others */
    while (first < stop) {
        const FC_T *const dout = (const FC_T *)p->x + first * count;
        const int64_t *const chosen = indices + first * count;
        const int guess = a->guesses ? fc_guess(a, p, chosen) : -1;
        ptrdiff_t planes = 1;
        if (guess >= 0) {
            if (first >= alone)
                planes = fc_min(a->planes, stop - first);
            __builtin_prefetch(chosen + planes * count + p->oh / 2 * p->ow, 0, 2); /* what will be guessed by next */
            if (FC_NAME(try_guess)(guess, p, a, planes, dout, chosen, (p->planes - first) * count, out, scratch)) {
                first += planes;
                continue;
            }
            alone = first + planes;
        }
        fc_sink_close(out); /* what was written is written again */
        FC_T *const plane = dx + first * cells;
        const ptrdiff_t done = planes == 1;
        if (done) {
            if (!fc_all_inside(chosen, count, cells))
                return 0;
            if (cells > FC_LOST_BYTES / (ptrdiff_t)sizeof *dx)
                FC_NAME(scatter)(1, dout, chosen, count, plane, cells, scratch + a->counts);
            else
                FC_NAME(scatter)(0, dout, chosen, count, plane, cells, scratch + a->counts);
        }
        first += done;
        *out = fc_sink_to(plane + done * cells, (stop - first) * cells * (ptrdiff_t)sizeof(FC_T), buffer, capacity);
    }
    return 1;
}

#undef SHIFT_PLANES
#undef THREE_PLANES
#undef NO_SHIFT
#undef FC_AHEAD
#undef COUNTED
#undef PERMUTES
#undef TIMES
#undef NARROW
#undef VEC
#undef IVEC
#undef MASK
#undef TAG
#undef TAGS
#undef LANES

#endif
