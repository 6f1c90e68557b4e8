/* Asking for memory that a thread will copy next, line by line while it multiplies.
 *
 * Planes of an image lie too far apart to be foreseen by the processor, and a copy that waits for its lines takes up to a
 * quarter of the time of a convolution whose products take little (1x1, stride 2, few output channels). A region is a band of
 * rows in each of some planes; a list of them is asked for a few lines at a time, by the calls of a micro-kernel. */
#ifndef FASTCONV_AHEAD_H
#define FASTCONV_AHEAD_H

#include "vectors.h"

enum {
    FC_AHEAD_LINES = 128, /* at most at a time, */
    FC_AHEAD_TILE = FC_TILE_ROWS * (FC_TILE_VECTORS * FC_VECTOR_BYTES / 64 + 2) /* and of a tile */
};

/* `planes` times `runs` runs of memory, of `bytes` each; from one to the next of them it is so many bytes. */
typedef struct {
    const char *from;
    ptrdiff_t planes, plane_step, runs, run_step, bytes;
} fc_region;

/* A run in each plane. */
static inline fc_region fc_bands(const char *from, ptrdiff_t planes, ptrdiff_t plane_step, ptrdiff_t bytes)
{
    return (fc_region){from, planes, plane_step, 1, 0, bytes};
}

typedef struct {
    fc_region *region;
    ptrdiff_t regions;
    ptrdiff_t each;                 /* lines to be asked for at a time */
    ptrdiff_t plane, run;           /* those of the first region that is not done: the next ones */
    const char *at, *stop;          /* of the run that is not done */
} fc_ahead;

/* Begins with `regions` regions of a->region, to be asked for in so many calls. */
static void fc_ahead_begin(fc_ahead *a, ptrdiff_t regions, ptrdiff_t calls)
{
    ptrdiff_t lines = 0;
    for (ptrdiff_t i = 0; i < regions; i++)
        lines += a->region[i].planes * a->region[i].runs * (a->region[i].bytes / FC_LINE + 1);
    a->regions = regions;
    a->each = lines / calls < FC_AHEAD_LINES ? lines / calls + 1 : FC_AHEAD_LINES;
    a->plane = a->run = 0;
    a->at = a->stop = NULL;
}

/* Goes on to the next run; 0 where there is none. */
static int fc_ahead_next(fc_ahead *a)
{
    for (; a->regions; a->region++, a->regions--) {
        const fc_region *const now = a->region;
        if (a->run == now->runs) {
            a->run = 0;
            a->plane++;
        }
        if (a->plane < now->planes && now->runs) {
            a->at = now->from + a->plane * now->plane_step + a->run * now->run_step;
            a->stop = a->at + now->bytes;
            a->run++;
            return 1;
        }
        a->plane = a->run = 0;
    }
    return 0;
}

/* Adds the addresses of the next lines, at most FC_AHEAD_LINES, to `count` others for fc_asked, and what that wants behind them;
 * returns their number. */
static ptrdiff_t fc_ahead_take(fc_ahead *a, ptrdiff_t *at, ptrdiff_t count)
{
    const ptrdiff_t stop = count + a->each;
    const char *now = a->at; /* what is written to `at` might be the fields of *a, as far as the compiler knows */
    for (;;) {
        const ptrdiff_t left = (a->stop - now + FC_LINE - 1) / FC_LINE, lines = left < stop - count ? left : stop - count;
        for (ptrdiff_t i = 0; i < lines; i++)
            at[count + i] = (ptrdiff_t)(now + i * FC_LINE);
        if (lines > 0) {
            count += lines;
            now += lines * FC_LINE;
        }
        if (count >= stop || !fc_ahead_next(a))
            break;
        now = a->at;
    }
    a->at = now;
    at[count] = (ptrdiff_t)at; /* is near */
    return count;
}

/* The addresses of the lines of `rows` rows of `bytes` bytes, `next` apart: those of a tile that is being summed up. */
static ptrdiff_t fc_ahead_tile(const char *to, ptrdiff_t rows, ptrdiff_t next, ptrdiff_t bytes, ptrdiff_t *at)
{
    const ptrdiff_t lines = ((ptrdiff_t)((uintptr_t)to % FC_LINE) + bytes + FC_LINE - 1) / FC_LINE;
    ptrdiff_t count = 0;
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t k = 0; k < lines; k++)
            at[count++] = (ptrdiff_t)(to + i * next + k * FC_LINE);
    return count;
}

/* Lines that will be read next, in `rows` rows of each of `planes` planes, and how many of them to ask for with each step of
 * the work that goes before: all at once they would keep its own loads waiting. */
typedef struct {
    const char *at, *until;               /* in a row */
    ptrdiff_t bytes, row, rows, step_row; /* bytes of a row, and from one to the next */
    ptrdiff_t plane, planes, step_plane;
    ptrdiff_t last, back;                 /* behind this plane it goes back by so much */
    ptrdiff_t share;
} fc_coming;

FC_INLINE void fc_ask_for_coming(fc_coming *c, const int level)
{
    for (ptrdiff_t i = 0; i < c->share && c->plane < c->planes; i++) {
        fc_ask_for(c->at, level);
        if (FC_LIKELY((c->at += FC_LINE) < c->until))
            continue;
        c->until += c->step_row;
        if (++c->row == c->rows) {
            c->row = 0;
            c->until += c->step_plane - c->rows * c->step_row;
            if (c->plane++ == c->last)
                c->until -= c->back;
        }
        c->at = c->until - c->bytes;
    }
}

#endif
