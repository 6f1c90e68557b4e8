/* im2col and col2im, for the instruction set this file is compiled for.
 *
 * A column matrix has an element for each (n, r, p): image, row r = (channel, kh, kw), position p = (oh, ow). The layouts
 * differ in their order, and each has its own way to write (or read) the matrix, the larger side, in that order:
 *
 *     "columns"   (N, R, P); "windows" is the same memory   what a tap sees is rows of the image, cut off and strided
 *     "rows"      (N*P, R)    "columns" of some positions and channels at a time, transposed in tiles in registers
 *     "cs231n"    (R, P*N)    rows of the image, of all images at a time, transposed; then as for "columns"
 *
 * col2im is the way back. Each row of the image is the sum of the rows of columns that its cells are in: gathered, never
 * scattered, so threads share nothing.
 *
 * lower_columns.h is the template of im2col, for elements of any size; lower_images.h of col2im, which adds. No load or
 * store leaves the arrays: vectors may reach into rows beside the one they are for only where those are there, and a store
 * only where it is the same thread that will write there next.
 */
#ifndef FASTCONV_LOWERING_H
#define FASTCONV_LOWERING_H

#include "ahead.h"

enum { FC_COLUMNS, FC_ROWS, FC_CS231N }; /* layouts */
enum {
    FC_STACK_BYTES = 65536, /* scratch that fits a thread's stack: some systems give it 128 kB */
    FC_STAGED = 32          /* windows that are put together before they go past the caches */
};

typedef struct {
    ptrdiff_t n, c, h, w, kh, kw, sh, sw, dh, dw, top, left, oh, ow;
    int layout;
    const void *x;                       /* the image; contiguous along its width only. col2im: the matrix */
    ptrdiff_t step_n, step_c, step_h;    /* in elements */
    ptrdiff_t start, stop;               /* elements that may be read, from x on */
    /* --- the plan --- */
    ptrdiff_t itemsize, pad_bytes;       /* of what is moved at a time, and of an element of the caller's */
    int bypass;                          /* the result goes past the caches */
    int apart;                           /* windows lie side by side: col2im, "rows" (fc_join_columns); im2col, "columns" */
    int streams;                         /* im2col, "columns": all taps of a plane at a time, by a sink each */
    ptrdiff_t channels, images;          /* that are turned at a time: "rows", "cs231n" */
    ptrdiff_t cells;                     /* taps of these channels that are: im2col, "rows" */
    int lines;                           /* in whole lines past the caches, a number of which each row of the matrix is */
    ptrdiff_t height, laid;              /* rows of the image that are seen then, and bytes of what is laid out: "rows" */
    ptrdiff_t residues, line;            /* of padded rows modulo the stride: those that taps look at, and their length */
    /* col2im of "rows": windows of a row and zeros that are turned, so many at a time; elements before window 0 and after the
     * last row; blocks of channels that take turns */
    ptrdiff_t turned, side, margin, slack, together;
    ptrdiff_t step_taps, step_rows;      /* of fc_window_rows */
    ptrdiff_t ahead;                     /* bytes to prefetch ahead, or 0 */
    ptrdiff_t pieces, piece;             /* threads take ranges of these; elements of the result in each, if in order */
    ptrdiff_t traffic, sink, bytes;      /* bytes read and written; a sink's buffer and all of a thread's scratch */
} fc_lowering;

/* The range [*first, *stop) of i in [0, count) for which 0 <= start + i*step < size. */
FC_INLINE void fc_inside(ptrdiff_t size, ptrdiff_t start, ptrdiff_t step, ptrdiff_t count, ptrdiff_t *first, ptrdiff_t *stop)
{
    ptrdiff_t from = start < 0 ? (-start + step - 1) / step : 0, to = start < size ? (size - start + step - 1) / step : 0;
    from = from < count ? from : count;
    to = to < count ? to : count;
    *first = from;
    *stop = to > from ? to : from;
}

/* Copy `bytes`, and more where there is room to write and something to read. */
FC_INLINE void fc_copy(char *to, const char *from, ptrdiff_t bytes, ptrdiff_t room, ptrdiff_t there)
{
    if (FC_UNLIKELY(!bytes || room < bytes + FC_VECTOR_BYTES || there < bytes + FC_VECTOR_BYTES)) {
        memcpy(to, from, (size_t)bytes);
        return;
    }
    fc_store_bytes(to, fc_load_bytes(from));
    /* from then on at multiples of the size of a vector: across lines stores are slower than loads */
    for (ptrdiff_t i = FC_VECTOR_BYTES - ((uintptr_t)to & (FC_VECTOR_BYTES - 1)); i < bytes; i += FC_VECTOR_BYTES)
        fc_store_bytes(to + i, fc_load_bytes(from + i));
}

/* Copy `bytes` and touch nothing else, in vectors if they are not less than 16. */
FC_INLINE void fc_copy_within(char *to, const char *from, ptrdiff_t bytes)
{
    ptrdiff_t i = 0;
    if (bytes >= FC_VECTOR_BYTES) {
        for (; i < bytes - FC_VECTOR_BYTES; i += FC_VECTOR_BYTES)
            fc_store_bytes(to + i, fc_load_bytes(from + i));
        fc_store_bytes(to + bytes - FC_VECTOR_BYTES, fc_load_bytes(from + bytes - FC_VECTOR_BYTES));
    } else if (bytes >= 16) {
        for (; i < bytes - 16; i += 16)
            memcpy(to + i, from + i, 16);
        memcpy(to + bytes - 16, from + bytes - 16, 16);
    } else {
        memcpy(to, from, (size_t)bytes);
    }
}

/* Where the next cache line begins. */
FC_INLINE void *fc_line_from(void *at) { return (char *)at + (-(uintptr_t)at & (FC_LINE - 1)); }

/* Elements of padding before a row of the image, of those of residue e modulo the stride. */
FC_INLINE ptrdiff_t fc_padding(const fc_lowering *l, ptrdiff_t e)
{
    return l->left > e ? (l->left - e + l->sw - 1) / l->sw : 0;
}

/* im2col, "rows": what some taps see in some rows of windows of an image. */
typedef struct {
    ptrdiff_t first, count;        /* rows of windows, of those of all images; none where nothing is left */
    ptrdiff_t cell, end, c0, c1;   /* taps, and channels that they look at. Behind the last ones come the first ones again */
    ptrdiff_t top, bottom, origin; /* rows of the image, and where the first of them lies, of the first channel of all */
    int direct;                    /* the image will do as it is */
} fc_seen;

static fc_seen fc_see(const fc_lowering *l, ptrdiff_t first, ptrdiff_t stop, ptrdiff_t cell, ptrdiff_t head)
{
    const ptrdiff_t n = first / l->oh, y = first % l->oh, below = (l->kh - 1) * l->dh, taps = l->kh * l->kw;
    fc_seen s = {0};
    if (first >= stop)
        return s;
    s.first = first;
    s.count = fc_min(fc_min((l->height - 1 - below) / l->sh + 1, l->oh - y), stop - first);
    s.cell = cell;
    s.end = fc_min(cell + l->cells, l->c * taps + head);
    s.c0 = cell / taps;
    s.c1 = (s.end + taps - 1) / taps;
    s.top = y * l->sh - l->top;
    s.bottom = s.top + (s.count - 1) * l->sh + below;
    s.origin = n * l->step_n + s.top * l->step_h;
    s.direct = l->sw == 1 && l->left == 0 && l->ow + (l->kw - 1) * l->dw <= l->w && s.top >= 0 && s.bottom < l->h;
    return s;
}

/* What lies where `s` looks at, in so many steps. */
static fc_coming fc_comes(const fc_lowering *l, const fc_seen *s, ptrdiff_t steps)
{
    fc_coming c = {0};
    const ptrdiff_t top = fc_max(s->top, 0), rows = fc_min(s->bottom, l->h - 1) - top + 1;
    if (rows <= 0)
        return c;
    c.at = (const char *)l->x + (s->origin + s->c0 * l->step_c + (top - s->top) * l->step_h) * l->itemsize;
    c.bytes = l->w * l->itemsize;
    c.step_row = l->step_h * l->itemsize;
    c.rows = rows;
    if (l->step_h == l->w) {
        c.bytes *= rows;
        c.step_row *= rows;
        c.rows = 1;
    }
    c.until = c.at + c.bytes;
    c.planes = s->c1 - s->c0;
    c.last = l->c - 1 - s->c0;
    c.step_plane = l->step_c * l->itemsize;
    c.back = l->c * c.step_plane;
    steps = fc_max(steps, 1);
    c.share = (c.planes * c.rows * (c.bytes / FC_LINE + 1) + steps - 1) / steps;
    return c;
}

typedef uint8_t fc_element_8;
typedef uint16_t fc_element_16;
typedef float fc_element_32;
typedef double fc_element_64;
typedef fc_pair fc_element_128;

#define FC_T uint8_t
#define FC_ELEMENT(name) fc_##name##_8
#include "lower_columns.h"
#undef FC_T
#undef FC_ELEMENT
#define FC_T uint16_t
#define FC_ELEMENT(name) fc_##name##_16
#include "lower_columns.h"
#undef FC_T
#undef FC_ELEMENT
#define FC_T float
#define FC_ELEMENT(name) fc_##name##_32
#include "lower_columns.h"
#undef FC_T
#undef FC_ELEMENT
#define FC_T double
#define FC_ELEMENT(name) fc_##name##_64
#include "lower_columns.h"
#undef FC_T
#undef FC_ELEMENT
#define FC_T fc_pair
#define FC_ELEMENT(name) fc_##name##_128
#include "lower_columns.h"
#undef FC_T
#undef FC_ELEMENT

#define FC_TEMPLATE "lower_images.h"
#include "each_vector.h"

/* Where windows lie side by side, each of their rows is one run of the image and of a "rows" matrix: an element of kw times
 * the size, if there are such elements and all lie where they may. */
static ptrdiff_t fc_join_columns(fc_lowering *l, ptrdiff_t itemsize, int back, const void *out)
{
    const ptrdiff_t unit = l->kw, size = itemsize * unit;
    if (l->layout != FC_ROWS || l->sw != unit || (l->dw != 1 && unit > 1) || l->left || l->ow * unit > l->w || l->top ||
        (l->oh - 1) * l->sh + (l->kh - 1) * l->dh >= l->h || size > 16 || (size & (size - 1)) ||
        l->step_n % unit || l->step_c % unit || l->step_h % unit || ((uintptr_t)l->x | (uintptr_t)out) % size)
        return itemsize;
    if (back) {
        if (l->kh > l->sh || (l->dh != 1 && l->kh > 1) || l->w % unit)
            return itemsize;
        l->apart = 1;
    }
    l->w /= unit;
    l->kw = l->sw = 1;
    l->step_n /= unit;
    l->step_c /= unit;
    l->step_h /= unit;
    l->start = -(-l->start / unit);
    l->stop /= unit;
    return size;
}

/* How many of c channels fit `bytes`: whole units of them, even if one takes somewhat more; but at least one channel. */
static ptrdiff_t fc_block(ptrdiff_t bytes, ptrdiff_t channel, ptrdiff_t unit, ptrdiff_t c)
{
    ptrdiff_t channels = bytes / channel;
    unit = fc_min(unit, c);
    if (channels >= unit)
        channels -= channels % unit;
    else if (unit * channel <= 4 * bytes)
        channels = unit;
    return fc_min(fc_max(channels, 1), c);
}

/* How many channels so many taps, one behind the other, may look at. */
static ptrdiff_t fc_channels_over(ptrdiff_t cells, ptrdiff_t taps) { return (cells + taps - 2) / taps + 1; }

/* im2col, "rows", in whole lines, from rows of `row` bytes that are laid out: how many lines and how many rows of the matrix to
 * turn at a time. What has to be laid out for them is partly what was laid out for those before, more rows or channels: as
 * little as possible of it. Returns whether there are lines, and as many rows as they need do fit. */
static int fc_plan_lines(fc_lowering *l, ptrdiff_t row, ptrdiff_t taps, ptrdiff_t line)
{
    enum { LAID_BYTES = 57344 };
    const ptrdiff_t least = l->height, most = l->c * taps / line;
    double cost = 0; /* rows laid out for each line of each row of windows */
    if (!l->lines || fc_channels_over(line, taps) * (least * row + taps * 8) > LAID_BYTES)
        return 0;
    l->cells = 0;
    for (ptrdiff_t count = 1, height = least; count <= l->oh; count++, height += l->sh) {
        const ptrdiff_t channels = LAID_BYTES / (height * row + taps * 8);
        const ptrdiff_t lines = fc_min((channels * taps - taps + 1) / line, most);
        if (channels < 2 || lines < 1)
            break;
        const double laid = (double)(height * fc_channels_over(lines * line, taps)) / (double)(count * lines);
        if (l->cells && laid >= cost)
            continue;
        cost = laid;
        l->height = height;
        l->cells = lines * line;
    }
    return l->cells > 0;
}

/* Fill in the plan of im2col into `out`, or with `back` of col2im. */
static void fc_plan_lowering(fc_lowering *l, ptrdiff_t itemsize, int back, const void *out)
{
    l->pad_bytes = itemsize;
    l->apart = 0;
    itemsize = fc_join_columns(l, itemsize, back, out);
    enum { TURNED_BYTES = 49152, NEAR_BYTES = 1 << 18, MOST_STREAMS = 16, LEAST_PLANES = 16, STREAM_ROW_BYTES = 8192 };
    const ptrdiff_t taps = l->kh * l->kw, places = l->oh * l->ow, lanes = fc_max(FC_VECTOR_BYTES / itemsize, 1);
    const ptrdiff_t columns = l->n * l->c * taps * places, image = l->n * l->c * l->h * l->w;
    const ptrdiff_t reach = fc_max(l->left + l->w, (l->ow - 1) * l->sw + (l->kw - 1) * l->dw + 1);
    const ptrdiff_t gcd = fc_gcd(l->dh, l->sh), tables = (l->sw + 1 + 2 * l->kw + 2 * l->sh + l->kh) * 8;
    l->itemsize = itemsize;
    l->traffic = (columns + image) * itemsize;
    l->bypass = (back ? image : columns) * itemsize >= FC_STREAM_BYTES;
    l->step_taps = l->sh / gcd;
    l->step_rows = l->dh / gcd;
    l->sink = l->piece = l->streams = 0;
    l->residues = fc_min(l->sw, (l->kw - 1) * l->dw + 1);
    l->line = (reach + l->sw - 1) / l->sw;
    /* taps lie apart by a plane of windows: one channel ahead, if that is not too far, they are all at the same place again */
    l->ahead = l->traffic < FC_PREFETCH_BYTES ? 0 : taps * places * itemsize <= NEAR_BYTES ? taps * places * itemsize : 1024;
    if (l->layout == FC_COLUMNS) {
        l->pieces = l->n * l->c * (back ? 1 : taps);
        l->piece = back ? l->h * l->w : places;
        if (l->bypass)
            l->sink = fc_sink_bytes(fc_max((back ? l->w : l->ow) * itemsize, FC_SINK_BYTES));
        l->bytes = back ? tables : 2 * (l->kh + l->kw) * 8;
        /* windows of two columns side by side and without padding: what is split is what taps see. Other ones gain by it where
         * the result goes past the caches. */
        l->apart = l->sw == 2 && l->kw == 2 && l->dw == 1 && !l->left && !l->top && 2 * l->ow <= l->w &&
                   (l->oh - 1) * l->sh + (l->kh - 1) * l->dh < l->h &&
                   (!back || (l->kh <= l->sh && (l->dh == 1 || l->kh == 1)));
        l->streams = !back && taps > 1 && taps <= MOST_STREAMS && l->n * l->c >= LEAST_PLANES &&
                     l->ow * itemsize <= STREAM_ROW_BYTES &&
                     (l->apart || (l->bypass && l->sw == 2));
        if (l->streams) {
            l->pieces = l->n * l->c;
            l->piece = taps * places;
            l->line = l->ow + (l->kw - 1) * l->dw / l->sw;
            l->sink = fc_round_up(l->sink, FC_LINE);
            l->bytes = taps * (sizeof(fc_sink) + l->sink) + (2 * l->sh + l->kw + 3 * l->residues) * 8 +
                       2 * (l->residues * l->line * itemsize + FC_VECTOR_BYTES) + FC_LINE;
            l->sink = 0;
        }
    } else if (l->layout == FC_ROWS) {
        const ptrdiff_t table = taps * 8, line = fc_max(FC_LINE / itemsize, 1);
        ptrdiff_t unit = 1; /* channels that are whole lines of the matrix */
        while (unit * taps * itemsize % FC_LINE)
            unit *= 2;
        l->pieces = l->n * l->oh;
        if (l->apart) {
            l->channels = fc_block(TURNED_BYTES / 2, table, 1, l->c);
            l->bytes = l->channels * table;
            l->ahead = l->traffic < FC_PREFETCH_BYTES ? 0 : lanes * l->c * taps * itemsize;
        } else if (back) {
            /* rows of whole vectors, an odd number of lines, so that those of a tile do not share cache sets */
            enum { TURNED_BACK_BYTES = 32768, IMAGE_BYTES = 1 << 18 };
            const ptrdiff_t wide = (l->w + l->sw - 1) / l->sw, low = ((l->kw - 1) * l->dw + l->sw - 1) / l->sw;
            const ptrdiff_t high = (l->left + l->sw - 1) / l->sw;
            l->side = lanes;
            while (l->side > 2 && l->side / 2 >= l->ow)
                l->side /= 2;
            l->turned = fc_round_up(l->ow, l->side);
            l->margin = fc_round_up(low, lanes);
            l->line = fc_round_up(l->margin + fc_max(l->turned, wide + high), line) / line;
            l->line = (l->line | 1) * line;
            l->slack = fc_round_up(wide + high, lanes) + lanes;
            const ptrdiff_t channel = taps * l->line * itemsize;
            l->channels = fc_block(TURNED_BACK_BYTES, channel, unit, l->c);
            const ptrdiff_t over = (l->kh - 1) * l->dh + 1, blocks = (l->c + l->channels - 1) / l->channels;
            l->together = fc_min(fc_max(IMAGE_BYTES / (l->channels * over * l->w * itemsize), 1), blocks);
            l->pieces = l->n * blocks;
            l->bytes = tables + l->turned * 8 + 2 * FC_LINE + l->channels * (channel + taps * itemsize) +
                       (l->slack + lanes) * itemsize;
        } else {
            l->lines = l->bypass && l->c * taps * itemsize % FC_LINE == 0 && (uintptr_t)out % (uintptr_t)itemsize == 0;
            l->line = fc_round_up(l->line + 1, line);
            ptrdiff_t row = l->residues * l->line * itemsize;
            l->height = (l->kh - 1) * l->dh + 1; /* and more rows, if they fit */
            if (l->sw == 1 && !l->left && !l->top && (l->ow - 1) + (l->kw - 1) * l->dw < l->w &&
                (l->oh - 1) * l->sh + l->height <= l->h) { /* none are laid out: the image will do as it is */
                l->channels = fc_block(l->lines ? NEAR_BYTES : TURNED_BYTES / 2, l->kh * l->w * itemsize + table, unit, l->c);
                if (l->channels == l->c)
                    l->height += (l->oh - 1) * l->sh;
                row = 0;
            } else if (!fc_plan_lines(l, row, taps, line)) {
                const ptrdiff_t spare = TURNED_BYTES / fc_min(unit, l->c) - table - l->height * row;
                l->lines = 0;
                l->height += fc_min(fc_max(spare, 0) / (row * l->sh), l->oh - 1) * l->sh;
                l->channels = fc_block(TURNED_BYTES, l->height * row + table, unit, l->c);
            }
            if (!l->lines || !row)
                l->cells = l->channels * taps;
            if (l->lines) {
                l->cells = fc_max(l->cells / line, 1) * line;
                l->channels = fc_channels_over(l->cells, taps);
            }
            l->ahead = l->traffic < FC_PREFETCH_BYTES ? 0 : l->sh * l->step_h * itemsize;
            l->laid = row ? l->channels * l->height * row + fc_round_up(fc_padding(l, 0), line) * itemsize : 0;
            l->bytes = l->channels * table + l->kw * 8 + l->laid + 2 * FC_LINE;
            if (l->bypass && !l->lines)
                l->bytes += FC_STAGED * (l->channels * taps * itemsize + FC_LINE);
        }
    } else {
        const ptrdiff_t padded = l->residues * l->line;
        l->images = fc_min(l->n, fc_max(TURNED_BYTES / 2 / (padded * itemsize) / 16 * 16, 16));
        l->bytes = (2 * padded * itemsize + 8) * l->images + padded * 8 + FC_LINE;
        l->pieces = l->c * (back ? l->h : (l->oh - 1) * l->sh + (l->kh - 1) * l->dh + 1);
    }
    l->sink = fc_round_up(l->sink, FC_LINE);
    l->bytes = fc_round_up(l->bytes, FC_LINE) + l->sink + FC_LINE;
}

#define FC_RUN(size)                                                                                                  \
    {                                                                                                                 \
        fc_element_##size pad_;                                                                                       \
        memset(&pad_, 0, sizeof pad_); /* joined elements are never padded */                                         \
        memcpy(&pad_, pad, (size_t)l->pad_bytes);                                                                     \
        if (l->layout == FC_COLUMNS && l->streams)                                                                    \
            fc_im2col_planes_##size(l, pad_, (fc_element_##size *)out, first, stop, scratch);                         \
        else if (l->layout == FC_COLUMNS)                                                                             \
            fc_im2col_columns_##size(l, pad_, first, stop, &to, scratch);                                             \
        else if (l->layout == FC_ROWS)                                                                                \
            fc_im2col_rows_##size(l, pad_, (fc_element_##size *)out, first, stop, scratch);                           \
        else                                                                                                          \
            fc_im2col_cs231n_##size(l, pad_, (fc_element_##size *)out, first, stop, scratch);                         \
    }

/* Pieces [first, stop) of a plan of im2col; `pad` is one element. `scratch` is needed where more than FC_STACK_BYTES are. */
static void fc_im2col_pieces(const fc_lowering *l, const void *pad, void *out, ptrdiff_t first, ptrdiff_t stop,
                             char *scratch)
{
    _Alignas(FC_LINE) char own[FC_STACK_BYTES];
    if (l->bytes <= FC_STACK_BYTES)
        scratch = own;
    fc_sink to = fc_sink_to((char *)out + first * l->piece * l->itemsize, (stop - first) * l->piece * l->itemsize,
                            l->sink ? scratch : NULL, l->sink);
    scratch += l->sink;
    switch (l->itemsize) {
    case 1: FC_RUN(8) break;
    case 2: FC_RUN(16) break;
    case 4: FC_RUN(32) break;
    case 8: FC_RUN(64) break;
    default: FC_RUN(128)
    }
    fc_sink_close(&to);
}
#undef FC_RUN

#define FC_RUN(wide, type)                                                                                            \
    if (l->layout == FC_COLUMNS)                                                                                      \
        wide(col2im_columns)(l, (const type *)col, first, stop, &to, scratch);                                        \
    else if (l->layout == FC_ROWS)                                                                                    \
        wide(col2im_rows)(l, (const type *)col, (type *)out, first, stop, scratch);                                   \
    else                                                                                                              \
        wide(col2im_cs231n)(l, (const type *)col, (type *)out, first, stop, scratch);

/* Pieces [first, stop) of a plan of col2im, of float or double. */
static void fc_col2im_pieces(const fc_lowering *l, const void *col, void *out, ptrdiff_t first, ptrdiff_t stop, char *scratch)
{
    _Alignas(FC_LINE) char own[FC_STACK_BYTES];
    if (l->bytes <= FC_STACK_BYTES)
        scratch = own;
    fc_sink to = fc_sink_to((char *)out + first * l->piece * l->itemsize, (stop - first) * l->piece * l->itemsize,
                            l->sink ? scratch : NULL, l->sink);
    scratch += l->sink;
    if (l->apart && l->layout == FC_COLUMNS) {
        if (l->itemsize == 4)
            fc_image_of_columns_32(l, col, first, stop, &to);
        else
            fc_image_of_columns_64(l, col, first, stop, &to);
    } else if (l->apart) {
        if (l->itemsize == 4)
            fc_image_of_rows_32(l, col, out, first, stop, scratch);
        else if (l->itemsize == 8)
            fc_image_of_rows_64(l, col, out, first, stop, scratch);
        else
            fc_image_of_rows_128(l, col, out, first, stop, scratch);
    } else if (l->itemsize == 4) {
        FC_RUN(FC_WIDE_F32, float)
    } else {
        FC_RUN(FC_WIDE_F64, double)
    }
    fc_sink_close(&to);
}
#undef FC_RUN

#endif
