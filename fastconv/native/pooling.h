/* Max and average pooling, for the instruction set this file is compiled for.
 *
 * Windows are separable. Forward, the cells of a window are first combined along its rows ("across"), then those parts
 * from row to row ("down"): the first of equal cells in row-major order comes out, and each row is read once.
 *
 * pool_strips.h   the common small windows, in registers: LANES windows side by side (a strip) walk down the rows; with
 *                 stride 2, where memory is the limit, strips of one row follow each other.
 * pool_any.h      any window, row by row through buffers in L1; and whole planes.
 * pool_turned.h   small planes, so that vectors run across planes.
 * pool_gradients.h    the gradient of an average.
 * pool_chosen.h       the gradient of a maximum.
 *
 * They are templates over element type and vector size; pooling.pxi deals rows out to threads. No load or store leaves
 * the arrays: a vector may reach over a row's end into the next one (a store only where that row is still to be written
 * by the same thread), and at the ends of the arrays cells are copied one by one.
 */
#ifndef FASTCONV_POOLING_H
#define FASTCONV_POOLING_H

#include "vectors.h"

/* What a pooling makes of the cells of a window. */
enum { FC_POOL_MAX, FC_POOL_PLACE, FC_POOL_SUM }; /* maximum; maximum and where it is; average */

/* A pooling of `planes` planes. What is the same for all rows and threads. */
typedef struct {
    ptrdiff_t planes, h, w, oh, ow;
    ptrdiff_t kh, kw, sh, sw, dh, dw, top, left;
    int what;
    const void *x;
    const void *divisors;  /* FC_POOL_SUM: rows of divisor_step divisors; ... */
    const int32_t *divisor; /* ... output row y takes row divisor[y] */
    ptrdiff_t divisor_step;
    int streams;           /* memory traffic is what counts: prefetch */
} fc_pooling;

/* How strips are dealt with. */
typedef struct {
    int window;            /* number in the table of kernels */
    ptrdiff_t strips;      /* strips side by side */
    ptrdiff_t band;        /* rows of output that they walk down together, */
    ptrdiff_t planes;      /* and whole planes, where they are small */
    ptrdiff_t cells;       /* the most cells of output between two calls of fc_written */
    ptrdiff_t kept;        /* row by row instead: bytes of what rows share, of a thread */
} fc_strips;

/* A strip's way down: windows from column `column` on, rows [row, row + rows) of each of `planes` planes. */
typedef struct {
    ptrdiff_t plane, planes, row, rows, column;
    void *out;             /* of the first row */
    int64_t *indices;
    ptrdiff_t room;        /* elements that may be written from there on */
    const char *ahead;     /* what to prefetch next, and how far that moves from row to row */
    const char *ahead_out, *ahead_indices; /* with indices: of the result */
    ptrdiff_t step, step_out, step_indices;
} fc_walk;

enum {
    FC_BAND_BYTES = 8192, /* input of the rows that strips walk down together: strips side by side share its lines */
    FC_AHEAD_BYTES = 16384, /* of input, to prefetch */
    FC_BAND_ROWS = 8       /* but at least so many, because the first rows of a band are read twice */
};

static fc_strips fc_plan_strips(const fc_pooling *p, int window, ptrdiff_t itemsize, ptrdiff_t lanes)
{
    const ptrdiff_t line = p->w * p->sh * itemsize;
    fc_strips plan = {window, (p->ow + lanes - 1) / lanes, p->oh, 1, 0, 0};
    if (plan.strips == 1 && line * p->oh <= FC_BAND_BYTES) {
        plan.planes = FC_BAND_BYTES / (line * p->oh);
    } else {
        const ptrdiff_t most = FC_BAND_BYTES / line > FC_BAND_ROWS ? FC_BAND_BYTES / line : FC_BAND_ROWS;
        const ptrdiff_t bands = (p->oh + most - 1) / most;
        plan.band = (p->oh + bands - 1) / bands; /* of even height */
    }
    /* small planes are in L1 in any order; at stride 1 it is arithmetic that counts */
    if (plan.strips > 1 && p->sh > 1 && (plan.band < p->oh || p->kh == p->sh)) {
        plan.band = 1;
        plan.kept = plan.strips * 2 * FC_VECTOR_BYTES;
    }
    plan.cells = plan.planes * plan.band * p->ow;
    return plan;
}

/* Any window: how a thread's scratch is laid out. */
typedef struct {
    ptrdiff_t lines, line;   /* padded copies of an input row, one for each residue, and their length */
    ptrdiff_t slots, pitch;  /* rows of parts, and their length */
    int shared;              /* windows one below the other share rows: the slots are a ring */
    ptrdiff_t bytes;
} fc_any;

/* Rows that are made ready at a time. */
enum { FC_SHARES = 4 };

/* The gradient of an average: how a thread's scratch is laid out. */
typedef struct {
    ptrdiff_t steps;                /* input columns in steps of the stride, rounded up to vectors */
    ptrdiff_t back, share;          /* where a row of shares starts, and its length with zeros */
    ptrdiff_t slots, pitch;         /* spread rows, and their length */
    ptrdiff_t step_taps, step_rows; /* from one tap to the next one that an input row may be: window rows between them */
    int shared;                     /* all spread rows of an input row fit the slots */
    ptrdiff_t bytes;
} fc_spread;

/* The windows that gradients know, and from how many of a vector's lanes on it is worth while that they are of use. */
enum { FC_GUESSES = 6, FC_FLAT_GUESSES = 7 /* those of stride 1 */, FC_FLAT_WIDTH = 32000,
       FC_LAID_AHEAD = 4 /* vectors, so that what is stored is in the first-level cache when sums load it */, FC_NARROW = 2 };
static const struct { signed char k, s, pad; } fc_guesses[FC_GUESSES] = {
    {3, 1, 1}, {3, 1, 0}, {2, 1, 0}, {2, 2, 0}, {3, 2, 1}, {3, 2, 0}};

/* The gradient of an average of one of them: */
typedef struct {
    int window;                     /* by fc_guesses */
    ptrdiff_t band;                 /* rows of windows at a time, */
    ptrdiff_t copy;                 /* and the elements of a copy of them */
    ptrdiff_t cells;                /* of the result that they may complete */
    ptrdiff_t bytes;                /* of a thread's scratch */
} fc_shared;

/* The gradient of a maximum: */
typedef struct {
    int guesses;                    /* windows that the shapes allow: bits, by fc_guesses */
    ptrdiff_t rows, pairs;          /* of 3x3 and of 2x2 windows at a time; with stride 1: */
    ptrdiff_t chunk, copy;          /* cells at a time, and the elements of a copy of their windows */
    ptrdiff_t planes;               /* that are tried together */
    ptrdiff_t cells, bytes;         /* as above */
    ptrdiff_t counts;               /* where in scratch there is how often cells are named, or what rounding loses of them */
} fc_chosen;

/* So few windows that no sum of theirs needs care, see scatter of pool_chosen.h. */
enum { FC_FEW_WINDOWS = 64 };

/* So many cells are counted, and what rounding loses has so many bytes at most, or is of so many cells of a larger plane. */
enum { FC_COUNTED = 1 << 18, FC_LOST_BYTES = 1 << 18, FC_OWNERS = 1 << 14 };

/* Which of them a cell is: neighbours are, and those above one another hardly ever the same one. */
FC_INLINE ptrdiff_t fc_place(ptrdiff_t cell)
{
    return (ptrdiff_t)(((size_t)cell + (size_t)cell / FC_OWNERS * 0x9e37) % FC_OWNERS);
}

/* Are all of them in [0, size)? Two's complement: an index or what is left to the last one is negative otherwise. */
static int fc_all_inside(const int64_t *indices, ptrdiff_t count, int64_t size)
{
    uint64_t out = 0;
    for (ptrdiff_t i = 0; i < count; i++)
        out |= (uint64_t)indices[i] | ((uint64_t)size - 1 - (uint64_t)indices[i]);
    return !(out >> 63);
}

/* A common window that the plane's indices could come from, by some of the middle row; -1 if there is none. */
static int fc_guess(const fc_chosen *a, const fc_pooling *p, const int64_t *indices)
{
    const ptrdiff_t y = p->oh / 2, count = p->ow < 4 ? p->ow : 4;
    for (int g = 0; g < FC_GUESSES; g++) {
        const ptrdiff_t k = fc_guesses[g].k, s = fc_guesses[g].s, pad = fc_guesses[g].pad;
        int right = a->guesses >> g & 1;
        for (ptrdiff_t q = 0; q < count && right; q++) { /* in which row of the window, and there in which column? */
            const uint64_t cell = (uint64_t)indices[y * p->ow + q] - (uint64_t)((y * s - pad) * p->w + q * s - pad);
            const uint64_t row = (uint64_t)p->w;
            right = cell < (uint64_t)k || cell - row < (uint64_t)k || (k == 3 && cell - 2 * row < (uint64_t)k);
        }
        if (right)
            return g;
    }
    return -1;
}

/* Rows of a plane that windows look at. */
static ptrdiff_t fc_turned_rows(const fc_pooling *p)
{
    return fc_min(p->h, (p->oh - 1) * p->sh - p->top + (p->kh - 1) * p->dh + 1);
}

/* What one of the numbers along an axis is made of: so many of the other ones, from one on, in steps. */
typedef struct {
    ptrdiff_t count, first, step;
} fc_turned;

/* For each window along an axis its cells, out of `size`. */
static void fc_cells_of(ptrdiff_t windows, ptrdiff_t stride, ptrdiff_t pad, ptrdiff_t taps, ptrdiff_t dilation, ptrdiff_t size,
                        fc_turned *to)
{
    for (ptrdiff_t q = 0; q < windows; q++) {
        const ptrdiff_t start = q * stride - pad, before = start < 0 ? (-start + dilation - 1) / dilation : 0;
        to[q].first = start + before * dilation;
        to[q].count = fc_min(taps - before, (size - to[q].first + dilation - 1) / dilation);
        to[q].step = dilation;
    }
}

/* For each cell along an axis the windows that it is in. */
static void fc_windows_of(ptrdiff_t size, ptrdiff_t stride, ptrdiff_t pad, ptrdiff_t taps, ptrdiff_t dilation,
                          ptrdiff_t windows, fc_turned *to)
{
    for (ptrdiff_t c = 0; c < size; c++) {
        to[c] = (fc_turned){0, 0, 0};
        for (ptrdiff_t q = 0; q < windows; q++) {
            const ptrdiff_t from = c + pad - q * stride;
            if (from < 0 || from % dilation || from / dilation >= taps)
                continue;
            if (to[c].count == 0)
                to[c].first = q;
            else if (to[c].count == 1)
                to[c].step = q - to[c].first;
            to[c].count++;
        }
    }
}

/* Columns that are dealt with alike, in steps of the stride: runs of those in more than `alone` windows, and of those in as
 * many, each in the window behind that of the one before. Returns how many runs there are. */
static ptrdiff_t fc_alike(const fc_turned *columns, ptrdiff_t size, ptrdiff_t stride, ptrdiff_t alone, fc_turned *run)
{
    ptrdiff_t runs = 0;
    for (ptrdiff_t e = 0; e < stride; e++)
        for (ptrdiff_t c = e, last = -1; c < size; last = columns[c].count ? c : -1, c += stride) {
            if (columns[c].count == 0)
                continue;
            const int more = columns[c].count > alone;
            if (last >= 0 && more == (columns[last].count > alone) && (more || columns[c].first == columns[last].first + 1))
                run[runs - 1].count++;
            else
                run[runs++] = (fc_turned){1, c, stride};
        }
    return runs;
}

#define FC_TEMPLATE "pool_strips.h"
#include "each_vector.h"
#define FC_TEMPLATE "pool_any.h"
#include "each_vector.h"
#define FC_TEMPLATE "pool_turned.h"
#include "each_vector.h"
#define FC_TEMPLATE "pool_gradients.h"
#include "each_vector.h"
#define FC_TEMPLATE "pool_chosen.h"
#include "each_vector.h"

/* --- plans: what is done with a pooling, and the scratch that takes ----------------------------------------------- */

enum { FC_POOL_STRIPS, FC_POOL_ANY, FC_POOL_TURNED, FC_POOL_PLANES, FC_POOL_SPREAD, FC_POOL_CHOSEN, FC_POOL_SHARED,
       FC_POOL_SPREAD_TURNED };

typedef struct {
    fc_pooling p;
    int way;
    ptrdiff_t itemsize, lanes;
    ptrdiff_t pieces;          /* threads take ranges of these: rows or planes of the result */
    ptrdiff_t piece;           /* cells of the result in each */
    ptrdiff_t traffic;         /* bytes read and written */
    ptrdiff_t sink, bytes;     /* a thread's scratch: each sink's buffer (or 0), and all */
    fc_strips strips;
    fc_any any;
    fc_spread spread;
    fc_shared shared;
    fc_chosen chosen;
} fc_pool_plan;

static fc_any fc_plan_any(const fc_pooling *p, ptrdiff_t itemsize)
{
    enum { RING_BYTES = 1 << 24 };
    const ptrdiff_t lanes = FC_VECTOR_BYTES / itemsize, extent = p->dh * (p->kh - 1) + 1;
    fc_any a;
    a.pitch = fc_round_up(p->ow, lanes);
    a.lines = fc_min(p->kw, p->sw / fc_gcd(p->dw, p->sw)); /* residues of taps: then they come up again, in the same order */
    /* as far as the image goes, and as far as the last windows look */
    const ptrdiff_t image = (p->left + p->w + p->sw - 1) / p->sw, last = a.pitch + p->dw * (p->kw - 1) / p->sw;
    a.line = fc_round_up(image > last ? image : last, lanes) + lanes;
    a.slots = extent < p->h ? extent : p->h;
    a.shared = p->oh > 1 && p->sh < extent && a.slots * a.pitch * itemsize <= RING_BYTES;
    if (!a.shared)
        a.slots = p->kh < 8 ? p->kh : 8;
    const int placed = p->what == FC_POOL_PLACE;
    a.bytes = (a.lines * a.line + (a.slots + 1) * a.pitch * (1 + placed) + a.pitch * placed) * itemsize +
              (p->kw + a.slots + 2 * (a.slots + 1)) * 8;
    return a;
}

static fc_spread fc_plan_spread(const fc_pooling *p, ptrdiff_t itemsize)
{
    enum { RING_BYTES = 1 << 24 };
    const ptrdiff_t lanes = FC_VECTOR_BYTES / itemsize, extent = p->dh * (p->kh - 1) + 1;
    fc_spread a;
    const ptrdiff_t gcd = fc_gcd(p->dh, p->sh);
    a.steps = fc_round_up((p->w + p->sw - 1) / p->sw, lanes);
    a.back = fc_round_up(p->dw * (p->kw - 1) / p->sw, lanes);
    /* the first tap looks ahead by as much as is left of the image, and a row ends in the zeros in front of the next */
    const ptrdiff_t last = a.steps + (p->left + p->sw - 1) / p->sw;
    a.share = a.back + fc_round_up(last > p->ow ? last : p->ow, lanes) + lanes;
    a.pitch = a.steps * p->sw;
    a.slots = (extent - 1) / p->sh + 1;
    a.slots = a.slots < p->oh ? a.slots : p->oh;
    a.shared = a.slots * a.pitch * itemsize <= RING_BYTES;
    if (!a.shared)
        a.slots = 1;
    a.step_taps = p->sh / gcd;
    a.step_rows = p->dh / gcd;
    a.bytes = (FC_SHARES * a.share + a.steps + a.slots * a.pitch) * itemsize +
              (p->kw + 2 * p->sw + 2 * a.slots + 2 * p->sh + 2) * 8;
    return a;
}

/* Is `out` what k cells with stride s make of `in`, without or with ceil_mode? */
static int fc_could_be(ptrdiff_t in, ptrdiff_t out, int k, int s, int pad)
{
    const ptrdiff_t rest = in + 2 * pad - k;
    return rest >= 0 && (out == rest / s + 1 || out == (rest + s - 1) / s + 1);
}

static fc_shared fc_plan_shared(const fc_pooling *p, ptrdiff_t itemsize, int window)
{
    const ptrdiff_t lanes = FC_VECTOR_BYTES / itemsize, row = 2 * p->w * itemsize;
    fc_shared a = {.window = window};
    a.band = fc_min(fc_max(2 * FC_BAND_BYTES / row, FC_BAND_ROWS), p->oh);
    a.copy = fc_round_up(a.band * (p->ow + 2) + 2, lanes) + 2 * lanes;
    a.cells = 2 * (a.band + 1) * p->w;
    a.bytes = (a.copy + 2 * fc_round_up(p->w, 2 * lanes)) * itemsize;
    return a;
}

/* Lanes of the vectors in which rows of so many windows go by strips: half as many while half of them would not be used. */
static ptrdiff_t fc_strip_lanes(ptrdiff_t windows, ptrdiff_t itemsize)
{
    ptrdiff_t lanes = FC_VECTOR_BYTES / itemsize;
    while (lanes > 16 / itemsize && windows <= lanes / 2)
        lanes /= 2;
    return lanes;
}

/* Are strips worse than planes that are turned? Windows that reach out of the image need care in each strip, unless they fill
 * long vectors. */
static int fc_strips_lose(const fc_pooling *p, ptrdiff_t itemsize)
{
    enum { CELLS = 100 };
    const ptrdiff_t lanes = fc_strip_lanes(p->ow, itemsize);
    const int inside = !p->left && (p->ow - 1) * p->sw + p->kw <= p->w;
    return !inside && p->h * p->w <= CELLS && (lanes * itemsize == 16 || p->ow > lanes || 8 * p->ow < 7 * lanes);
}

/* Bytes of a thread's scratch for planes that are so small that they are turned; 0: they are not. Common windows go by strips
 * otherwise, which fill vectors better as rows get longer. */
static ptrdiff_t fc_plan_turned(const fc_pooling *p, int backward, ptrdiff_t itemsize, int common)
{
    enum { COMMON_BYTES = 512, CELLS = 1024 };
    const ptrdiff_t lanes = FC_VECTOR_BYTES / itemsize, windows = p->oh * p->ow;
    const ptrdiff_t h = backward ? p->h : fc_turned_rows(p), cells = h * p->w, parts = backward ? p->oh * p->w : h * p->ow;
    if (p->planes < lanes || fc_max(cells, windows) > CELLS || fc_max(parts, p->h + p->w + p->oh + p->ow) > 4 * CELLS)
        return 0;
    if (common && !(backward ? lanes >= 4 && cells * itemsize <= COMMON_BYTES : fc_strips_lose(p, itemsize)))
        return 0;
    if (backward)
        return (windows + parts + 2 * cells + 1) * FC_VECTOR_BYTES + (p->h + 2 * p->w) * (ptrdiff_t)sizeof(fc_turned) +
               cells * (ptrdiff_t)sizeof(void *);
    const ptrdiff_t placed = p->what == FC_POOL_PLACE;
    return (cells + (1 + placed) * (parts + windows) + placed * windows) * FC_VECTOR_BYTES +
           (p->oh + p->ow) * (ptrdiff_t)sizeof(fc_turned) + fc_round_up(windows * itemsize, 8);
}

static fc_chosen fc_plan_guesses(const fc_pooling *p, ptrdiff_t itemsize)
{
    enum { BLOCK_BYTES = 8192, PAIR_BYTES = 4096, CHUNK_BYTES = 8192, TOGETHER_BYTES = 32768, SCATTERED = 16 };
    const ptrdiff_t lanes = FC_VECTOR_BYTES / itemsize, row = p->w * itemsize;
    fc_chosen a = {0};
    if (p->h * p->w >= (ptrdiff_t)1 << 30 || lanes < 4) /* of two lanes scattering makes more */
        return a;
    for (int g = 0; g < FC_GUESSES; g++) {
        const int k = fc_guesses[g].k, s = fc_guesses[g].s, pad = fc_guesses[g].pad;
        if (!fc_could_be(p->h, p->oh, k, s, pad) || !fc_could_be(p->w, p->ow, k, s, pad))
            continue;
        if (s == 1 && (p->w < k || p->w > FC_FLAT_WIDTH)) /* two shifts would be the same, or longer than 16 bits */
            continue;
        if (s > 1 && (a.guesses & FC_FLAT_GUESSES || p->ow * FC_NARROW <= lanes || p->ow < 3 || p->oh * p->ow <= SCATTERED))
            continue; /* too few lanes of use, or windows to guess by, or windows beside a row could be taken for its own */
        if (k > 2 - (s == 1) && FC_VECTOR_BYTES == 16) /* the more cells a window has, the more lanes it takes */
            continue;
        a.guesses |= 1 << g;
    }
    if (a.guesses) {
        a.planes = fc_max(TOGETHER_BYTES / (p->h * row), 1);
        /* as many rows as go well with stores past the caches, whole planes where they are small */
        const int whole = p->h * row <= CHUNK_BYTES;
        a.rows = whole ? p->oh : fc_min(fc_max(BLOCK_BYTES / (2 * row), 1), p->oh);
        a.pairs = whole ? p->oh : fc_min(fc_max(PAIR_BYTES / (2 * row), 1), p->oh);
        a.cells = 2 * (a.rows + 1) * p->w;
        a.bytes = fc_round_up(p->w, 2 * lanes) * itemsize; /* a row of cells that is not complete */
    }
    if (a.guesses & FC_FLAT_GUESSES) {
        a.chunk = fc_round_up(fc_max(CHUNK_BYTES / itemsize, 8 * p->w), lanes);
        a.copy = a.chunk + 3 * fc_round_up(p->w, lanes) + (4 + FC_LAID_AHEAD) * lanes;
        a.cells = fc_max(a.cells, a.chunk);
        a.bytes = fc_max(a.bytes, 2 * a.copy * itemsize);
    }
    return a;
}

static fc_chosen fc_plan_chosen(const fc_pooling *p, ptrdiff_t itemsize)
{
    fc_chosen a = fc_plan_guesses(p, itemsize);
    const ptrdiff_t cells = p->h * p->w, lost = cells * itemsize;
    a.counts = fc_round_up(a.bytes, FC_LINE);
    a.bytes = a.counts + fc_max(fc_min(cells, FC_COUNTED) * (itemsize / 4), lost <= FC_LOST_BYTES ? lost : FC_OWNERS * (8 + itemsize));
    return a;
}

/* The plan for a pooling, or with FC_POOL_SPREAD and FC_POOL_CHOSEN for the gradients of an average and of a maximum. */
static fc_pool_plan fc_plan_pool(const fc_pooling *pooling, int way, ptrdiff_t itemsize)
{
    static const struct { signed char k, s; } windows[] = {{2, 2}, {3, 2}, {3, 1}, {2, 1}};
    fc_pool_plan plan = {.p = *pooling, .way = way, .itemsize = itemsize, .lanes = FC_VECTOR_BYTES / itemsize};
    fc_pooling *const p = &plan.p;
    const int placed = way <= FC_POOL_PLANES && p->what == FC_POOL_PLACE;
    ptrdiff_t cells; /* of the result, between two calls of fc_written */
    if (way == FC_POOL_SPREAD || way == FC_POOL_CHOSEN) {
        plan.pieces = p->planes * (way == FC_POOL_SPREAD ? p->h : 1);
        plan.piece = way == FC_POOL_SPREAD ? p->w : p->h * p->w;
        int window = -1;
        if (way == FC_POOL_SPREAD)
            for (int g = 0; g < FC_GUESSES; g++)
                if (p->kh == fc_guesses[g].k && p->kw == p->kh && p->sh == fc_guesses[g].s && p->sw == p->sh && p->dh == 1 &&
                    p->dw == 1 && p->top == fc_guesses[g].pad && p->left == p->top)
                    window = g;
        const ptrdiff_t turned = way == FC_POOL_SPREAD ? fc_plan_turned(p, 1, itemsize, window >= 0) : 0;
        if (way == FC_POOL_CHOSEN) {
            plan.chosen = fc_plan_chosen(p, itemsize);
            cells = plan.chosen.cells;
        } else if (turned) {
            plan.way = FC_POOL_SPREAD_TURNED;
            cells = plan.lanes * p->h * p->w;
        } else if (window >= 0) {
            plan.way = FC_POOL_SHARED;
            plan.shared = fc_plan_shared(p, itemsize, window);
            cells = plan.shared.cells;
        } else {
            plan.spread = fc_plan_spread(p, itemsize);
            cells = p->w;
        }
        if (turned || window >= 0) {
            plan.pieces = p->planes;
            plan.piece = p->h * p->w;
        }
        plan.bytes = turned + plan.spread.bytes + plan.shared.bytes + plan.chosen.bytes;
    } else {
        int window = -1;
        if (p->dh == 1 && p->dw == 1 && p->kh == p->kw && p->sh == p->sw && p->w < (ptrdiff_t)1 << 30)
            for (int i = 0; i < 4; i++)
                if (p->kh == windows[i].k && p->sh == windows[i].s)
                    window = i;
        plan.pieces = p->planes * p->oh;
        plan.piece = cells = p->ow;
        if (p->oh == 1 && p->ow == 1 && p->kh == p->h && p->kw == p->w && p->dh == 1 && p->dw == 1 && !p->top && !p->left) {
            plan.way = FC_POOL_PLANES;
        } else if ((plan.bytes = fc_plan_turned(p, 0, itemsize, window >= 0))) {
            plan.way = FC_POOL_TURNED;
            plan.pieces = p->planes;
            plan.piece = p->oh * p->ow;
            cells = plan.lanes * plan.piece;
        } else if (window >= 0) {
            plan.way = FC_POOL_STRIPS;
            plan.lanes = fc_strip_lanes(p->ow, itemsize);
            plan.strips = fc_plan_strips(p, window, itemsize, plan.lanes);
            cells = plan.strips.cells;
            plan.bytes = plan.strips.kept;
        } else {
            plan.way = FC_POOL_ANY;
            plan.any = fc_plan_any(p, itemsize);
            plan.bytes = plan.any.bytes;
        }
    }
    const ptrdiff_t result = plan.pieces * plan.piece * (itemsize + 8 * placed);
    const ptrdiff_t image = p->planes * p->h * p->w, windows_ = p->planes * p->oh * p->ow;
    plan.traffic = (image + windows_) * itemsize + (placed || way == FC_POOL_CHOSEN ? windows_ * 8 : 0);
    /* in the order of memory the hardware's own prefetching is enough out of a cache, and ours costs up to a third */
    const int in_order = plan.way == FC_POOL_STRIPS   ? plan.strips.kept || plan.strips.band == p->oh
                         : plan.way == FC_POOL_SHARED ? plan.shared.band == p->oh
                                                      : plan.way == FC_POOL_CHOSEN && !(plan.chosen.guesses & FC_FLAT_GUESSES);
    p->streams = plan.traffic >= (in_order ? FC_STREAM_BYTES : FC_PREFETCH_BYTES);
    plan.bytes = fc_round_up(plan.bytes, FC_LINE);
    if (result >= FC_STREAM_BYTES)
        plan.sink = fc_round_up(fc_sink_bytes(cells * (placed ? 8 : itemsize)), FC_LINE);
    plan.bytes += plan.sink * (1 + placed);
    return plan;
}

#define FC_RUN_STRIPS(TYPE) fc_pool_strips_##TYPE(&plan->p, &plan->strips, first, stop, &to, &places, scratch)

/* Pieces [first, stop) of a plan, into `out`, and into or from `indices`. Returns 0 where indices are not right. */
static int fc_pool_pieces(const fc_pool_plan *plan, void *out, int64_t *indices, ptrdiff_t first, ptrdiff_t stop,
                           char *scratch)
{
    const ptrdiff_t size = plan->itemsize, done = first * plan->piece, cells = (stop - first) * plan->piece;
    char *const buffer = plan->sink ? scratch : NULL, *const second = plan->sink ? scratch + plan->sink : NULL;
    const int placed = plan->way <= FC_POOL_PLANES && plan->p.what == FC_POOL_PLACE;
    fc_sink to = fc_sink_to((char *)out + done * size, cells * size, buffer, plan->sink), places = {NULL, NULL, NULL, NULL};
    int right = 1;
    scratch += plan->sink * (1 + placed);
    if (placed)
        places = fc_sink_to(indices + done, cells * 8, second, plan->sink);
    if (plan->way == FC_POOL_STRIPS) {
        if (size == 4)
            switch (plan->lanes) {
#if FC_VECTOR_BYTES >= 64
            case 16: FC_RUN_STRIPS(f32x16); break;
#endif
#if FC_VECTOR_BYTES >= 32
            case 8: FC_RUN_STRIPS(f32x8); break;
#endif
            default: FC_RUN_STRIPS(f32x4);
            }
        else
            switch (plan->lanes) {
#if FC_VECTOR_BYTES >= 64
            case 8: FC_RUN_STRIPS(f64x8); break;
#endif
#if FC_VECTOR_BYTES >= 32
            case 4: FC_RUN_STRIPS(f64x4); break;
#endif
            default: FC_RUN_STRIPS(f64x2);
            }
    } else if (plan->way == FC_POOL_PLANES) {
        if (size == 4)
            FC_WIDE_F32(pool_planes)(&plan->p, first, stop, &to, &places);
        else
            FC_WIDE_F64(pool_planes)(&plan->p, first, stop, &to, &places);
    } else if (plan->way == FC_POOL_ANY) {
        if (size == 4)
            FC_WIDE_F32(pool_any)(&plan->p, &plan->any, first, stop, &to, &places, scratch);
        else
            FC_WIDE_F64(pool_any)(&plan->p, &plan->any, first, stop, &to, &places, scratch);
    } else if (plan->way == FC_POOL_TURNED) {
        if (size == 4)
            FC_WIDE_F32(pool_turned)(&plan->p, first, stop, &to, &places, scratch);
        else
            FC_WIDE_F64(pool_turned)(&plan->p, first, stop, &to, &places, scratch);
    } else if (plan->way == FC_POOL_SPREAD) {
        if (size == 4)
            FC_WIDE_F32(avg_gradient)(&plan->p, &plan->spread, first, stop, &to, scratch);
        else
            FC_WIDE_F64(avg_gradient)(&plan->p, &plan->spread, first, stop, &to, scratch);
    } else if (plan->way == FC_POOL_SPREAD_TURNED) {
        if (size == 4)
            FC_WIDE_F32(avg_gradient_turned)(&plan->p, first, stop, &to, scratch);
        else
            FC_WIDE_F64(avg_gradient_turned)(&plan->p, first, stop, &to, scratch);
    } else if (plan->way == FC_POOL_SHARED) {
        if (size == 4)
            FC_WIDE_F32(avg_gradient_planes)(&plan->p, &plan->shared, first, stop, &to, scratch);
        else
            FC_WIDE_F64(avg_gradient_planes)(&plan->p, &plan->shared, first, stop, &to, scratch);
    } else {
        if (size == 4)
            right = FC_WIDE_F32(max_gradient)(&plan->p, &plan->chosen, indices, out, first, stop, &to, scratch, plan->sink);
        else
            right = FC_WIDE_F64(max_gradient)(&plan->p, &plan->chosen, indices, out, first, stop, &to, scratch, plan->sink);
    }
    fc_sink_close(&to);
    fc_sink_close(&places);
    return right;
}
#undef FC_RUN_STRIPS

#endif
