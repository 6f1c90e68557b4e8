/* The SIMD micro-kernels of fastconv's Cython backend, for the instruction set this file is compiled for.
 *
 * Vectors are GCC/clang vector extensions of FC_VECTOR_BYTES, so one source serves AVX-512, AVX2+FMA, SSE2 and NEON, in
 * float and double: tiles.h is the template, included once for each element type. Nothing here allocates, checks or
 * decides; the loops around the tiles are in the .pxi files.
 *
 * Register budget (accumulators + one row of b + one broadcast of a must fit the register file, or the tile spills):
 *
 *   AVX-512   32 registers   6 x 4 vectors   24 + 4 + 1 = 29
 *   AVX2      16 registers   6 x 2 vectors   12 + 2 + 1 = 15
 *   SSE2      16 registers   6 x 2 vectors   12 + 2 + 2 = 16 (no FMA: the product needs a register)
 *   NEON      32 registers   6 x 4 vectors   24 + 4 + 1 = 29
 *
 * Winograd's products come from panels of 8 rows, which divide most numbers of channels: 8 x 3 (24 + 3 + 1), 4 x 3
 * (12 + 3 + 1) and 4 x 2 (8 + 2 + 2) vectors.
 *
 * A tile of m x n vectors does m*n FMAs for m broadcasts and n loads. Two FMA units with a latency of 4 need at least 8
 * accumulators, two load ports need m + n <= m*n: every full tile here satisfies both.
 */
#ifndef FASTCONV_SIMD_H
#define FASTCONV_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define FC_VECTOR_BYTES 64
#define FC_TILE_VECTORS 4
#define FC_PRODUCT_ROWS 8
#define FC_PRODUCT_VECTORS 3
#elif defined(__AVX2__)
#define FC_VECTOR_BYTES 32
#define FC_TILE_VECTORS 2
#define FC_PRODUCT_ROWS 4
#define FC_PRODUCT_VECTORS 3
#elif defined(__aarch64__)
#define FC_VECTOR_BYTES 16
#define FC_TILE_VECTORS 4
#define FC_PRODUCT_ROWS 8
#define FC_PRODUCT_VECTORS 3
#else
#define FC_VECTOR_BYTES 16
#define FC_TILE_VECTORS 2
#define FC_PRODUCT_ROWS 4
#define FC_PRODUCT_VECTORS 2
#endif
#define FC_TILE_ROWS 6
#define FC_PRODUCT_TERMS 128 /* of one piece of a sum in Winograd's products */
/* Pieces of a sum of n terms. */
static inline ptrdiff_t fc_product_pieces(ptrdiff_t n)
{
    return n < FC_PRODUCT_TERMS ? 1 : (n + FC_PRODUCT_TERMS / 2) / FC_PRODUCT_TERMS;
}
#define FC_PANEL 8 /* output channels of a panel of transformed filters, which FC_PRODUCT_ROWS divides */
#define FC_PLANE_ROWS 4
#define FC_PLANE_FILTER 7

#define FC_INLINE static inline __attribute__((always_inline))

/* Before a loop with a constant number of rounds, at most 16, that must vanish, so that the array it runs over can live in
 * registers. (A limit below the rounds would unroll in part, which GCC 12 was seen to compile wrongly.) */
#if defined(__clang__)
#define FC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FC_UNROLL _Pragma("GCC unroll 16")
#endif

/* A pointer that the compiler knows nothing about from here on. */
#define FC_HIDE(pointer) __asm__("" : "+r"(pointer))

/* In a loop of few rounds: keeps the compiler from making it a call of memset or memcpy, which costs more than it. */
#define FC_FEW __asm__ volatile("")

/* Sets a flag that several threads may set at a time. */
FC_INLINE void fc_mark(uint8_t *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }

/* The next of the items that several threads share. */
FC_INLINE ptrdiff_t fc_take(ptrdiff_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }

/* Prefetches a line into the first-level cache (3) or the second (2); clang wants the level itself, and no constant argument. */
FC_INLINE void fc_ask_for(const char *at, const int level)
{
    if (level == 3)
        __builtin_prefetch(at, 0, 3);
    else
        __builtin_prefetch(at, 0, 2);
}

/* Lines of memory that a tile asks for while it is summed up, one with each term: what will be needed next. Asked for all at
 * once they would keep the products waiting, because only so many lines can be on their way. Behind them in the list is one
 * that lies in the first-level cache, which is asked for with the terms that remain. */
typedef struct {
    const char *from;
    const ptrdiff_t *at; /* bytes from there */
    ptrdiff_t count;
    int into;
} fc_asked;

/* Where they go: the first-level cache, for what is written very soon, so that a store of a vector which lies in two lines does
 * not wait for either; or the second, for much. */
enum { FC_ASK_NEAR = 1, FC_ASK = 2 };

/* The same for all lines of a block. */
FC_INLINE void fc_ask_for_block(const char *at, ptrdiff_t bytes, const int level)
{
    for (ptrdiff_t i = 0; i < bytes; i += 64)
        fc_ask_for(at + i, level);
}

/* What the epilogue of a tile does besides storing it. */
enum { FC_ACCUMULATE = 1, FC_RELU = 2, FC_PAST_CACHES = 4 };

/* A vector past the caches: memory need not hand over the line first, if all of it is written at a time. */
#if defined(__AVX512F__)
#define FC_STREAM_VECTOR(to, v) _mm512_stream_si512((void *)(to), (__m512i)(v))
#elif defined(__AVX2__)
#define FC_STREAM_VECTOR(to, v) _mm256_stream_si256((void *)(to), (__m256i)(v))
#elif defined(__SSE2__)
#define FC_STREAM_VECTOR(to, v) _mm_stream_si128((void *)(to), (__m128i)(v))
#else
#define FC_STREAM_VECTOR(to, v) (*(UVEC *)(to) = (v))
#endif

/* A run of `count` elements that is copied from one place to another. */
typedef struct {
    ptrdiff_t from, to, count;
} fc_run;

/* A row of a column matrix, and how far it is shifted against the row of the image that it is added to. */
typedef struct {
    ptrdiff_t row, shift;
} fc_tap;

enum { FC_BLOCK_TILES = 64 }; /* of F(MxM, RxR), which go through the transforms and the products together */

/* Some neighbouring tiles along the width: where the first cell of their first row lies, from the first one of a plane on, which
 * cells of a row and which rows are in the plane, the lane of the first tile, and their number. So many pieces from this one
 * on are transformed together: one that is a whole row of tiles, or M of LANES/M tiles or less, or up to LANES tiles which
 * have fewer than M pixels in a row. */
typedef struct {
    ptrdiff_t cell, first, stop, top, bottom, lane, count, together;
    int whole_row, brief;
} fc_piece;

/* Planes of an image: the array that they are in, the cells from row to row, and how far behind a cell what is read next is.
 * Copies of rows that do not lie in the array go to `line`, with so many cells from row to row. */
typedef struct {
    const void *begin, *end;
    ptrdiff_t width, ahead;
    void *line;
    ptrdiff_t pitch;
} fc_planes;

/* Whether value i of a transformed row or column of N cells vanishes where its tile has `missing` pixels less than M. */
static inline int fc_short_skips(int n, int missing, int i)
{
    if (missing == 3)
        return i >= 3; /* +-b and infinity */
    return (missing >= 1 && i == n - 1) || (missing == 2 && i == 0);
}

#define FC_T float
#define FC_INT int32_t
#define FC_LANES (FC_VECTOR_BYTES / 4)
#define FC_NAME(name) fc_##name##_f32
#include "tiles.h"
#include "winograd.h"
#include "gradients.h"
#undef FC_T
#undef FC_INT
#undef FC_LANES
#undef FC_NAME

#define FC_T double
#define FC_INT int64_t
#define FC_LANES (FC_VECTOR_BYTES / 8)
#define FC_NAME(name) fc_##name##_f64
#include "tiles.h"
#include "winograd.h"
#include "gradients.h"
#undef FC_T
#undef FC_INT
#undef FC_LANES
#undef FC_NAME

#endif
