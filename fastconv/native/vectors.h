/* Vectors of the pooling and lowering kernels: what the compilers' vector extensions have no word for, and stores that go
 * past the caches. lanes.h is the template for one element type and vector size. */
#ifndef FASTCONV_VECTORS_H
#define FASTCONV_VECTORS_H

#include "simd.h"

#define FC_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define FC_UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* Keeps a vector that was loaded in a register: GCC likes to load it again for each use, and a load that crosses a cache
 * line costs two. */
#if defined(__AVX512F__)
#define FC_HOLD(v) __asm__("" : "+v"(v))
#elif defined(__SSE2__)
#define FC_HOLD(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define FC_HOLD(v) __asm__("" : "+w"(v))
#else
#define FC_HOLD(v) (void)(v)
#endif

/* Vectors of pieces of 16 bytes, each from its own place. */
#if defined(__AVX2__)
FC_INLINE __m256i fc_two_pieces(const void *a, const void *b)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(a)), _mm_loadu_si128(b), 1);
}
FC_INLINE void fc_store_two_pieces(void *a, void *b, __m256i v)
{
    _mm_storeu_si128(a, _mm256_castsi256_si128(v));
    _mm_storeu_si128(b, _mm256_extracti128_si256(v, 1));
}
#endif
#if defined(__AVX512F__)
FC_INLINE __m512i fc_four_pieces(const void *a, const void *b, const void *c, const void *d)
{ /* by halves: where long vectors take two turns, each piece put into one would */
    return _mm512_inserti64x4(_mm512_castsi256_si512(fc_two_pieces(a, b)), fc_two_pieces(c, d), 1);
}
FC_INLINE void fc_store_four_pieces(void *a, void *b, void *c, void *d, __m512i v)
{
    fc_store_two_pieces(a, b, _mm512_castsi512_si256(v));
    fc_store_two_pieces(c, d, _mm512_extracti64x4_epi64(v, 1));
}
#endif

#define FC_TEMPLATE "lanes.h"
#include "each_vector.h"

/* The functions of a template for the longest vectors. */
#if FC_VECTOR_BYTES == 64
#define FC_WIDE_F32(name) fc_##name##_f32x16
#define FC_WIDE_F64(name) fc_##name##_f64x8
#elif FC_VECTOR_BYTES == 32
#define FC_WIDE_F32(name) fc_##name##_f32x8
#define FC_WIDE_F64(name) fc_##name##_f64x4
#else
#define FC_WIDE_F32(name) fc_##name##_f32x4
#define FC_WIDE_F64(name) fc_##name##_f64x2
#endif

/* Elements of the shortest vector that holds `count` of them; 0 where none does. */
static inline ptrdiff_t fc_shortest_lanes(ptrdiff_t count, ptrdiff_t itemsize)
{
    for (ptrdiff_t bytes = 16; bytes <= FC_VECTOR_BYTES; bytes *= 2)
        if (count * itemsize <= bytes)
            return bytes / itemsize;
    return 0;
}

/* DO(name) for those of three sizes of vectors that there are. */
#if FC_VECTOR_BYTES >= 64
#define FC_SIZES(DO, longest, middle, shortest) DO(longest) DO(middle) DO(shortest)
#elif FC_VECTOR_BYTES >= 32
#define FC_SIZES(DO, longest, middle, shortest) DO(middle) DO(shortest)
#else
#define FC_SIZES(DO, longest, middle, shortest) DO(shortest)
#endif

FC_INLINE ptrdiff_t fc_least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Transposition in tiles of the largest size that fits, or past the caches in whole lines. What is left of rows and columns
 * goes by blocks of 16 bytes, unless they would make a tile. */
#define FC_TRANSPOSE(name)                                                                                            \
    if (past && rows % fc_line_##name == 0 && columns >= fc_piece_##name) {                                           \
        for (ptrdiff_t part = 0; part < columns; part += fc_line_##name) /* lines that are read are used up, too */    \
            for (ptrdiff_t i = 0; i < rows; i += fc_line_##name)                                                      \
                for (ptrdiff_t j = part; j < columns && j < part + fc_line_##name; j += fc_piece_##name) {            \
                    const ptrdiff_t c = j + fc_piece_##name <= columns ? j : columns - fc_piece_##name;               \
                    fc_transpose_lines_##name(to + c * pitch_to + i, pitch_to, from + i, at + c,                      \
                                              j == part ? ahead : 0);                                                 \
                }                                                                                                     \
        return;                                                                                                       \
    }                                                                                                                 \
    if ((rows >= fc_lanes_##name && columns >= fc_piece_##name) ||                                                    \
        (rows >= fc_piece_##name && columns >= fc_lanes_##name)) {                                                    \
        const ptrdiff_t side = fc_lanes_##name, piece = fc_piece_##name; /* blocks of rows need more stores */        \
        const ptrdiff_t down = rows < side ? 0 : columns < side ? rows : rows - fc_least(side - piece, side / 2);     \
        ptrdiff_t j = 0, i = 0;                                                                                       \
        if (columns >= side && down)                                                                                  \
            for (; columns - j > side - piece; j += side) {                                                           \
                const ptrdiff_t c = fc_least(j, columns - side);                                                      \
                for (i = 0; i < down; i += side) {                                                                    \
                    const ptrdiff_t r = fc_least(i, rows - side);                                                     \
                    fc_transpose_tile_##name(to + c * pitch_to + r, pitch_to, from + r, at + c, ahead);               \
                }                                                                                                     \
            }                                                                                                         \
        for (; down && j < columns; j += piece) {                                                                     \
            const ptrdiff_t c = fc_least(j, columns - piece);                                                         \
            for (i = 0; i < down; i += side) {                                                                        \
                const ptrdiff_t r = fc_least(i, rows - side);                                                         \
                fc_transpose_block_##name(to + c * pitch_to + r, pitch_to, from + r, at + c, ahead);                  \
            }                                                                                                         \
        }                                                                                                             \
        for (; i < rows; i += piece) {                                                                                \
            const ptrdiff_t r = fc_least(i, rows - piece);                                                            \
            for (j = 0; j < columns; j += side) {                                                                     \
                const ptrdiff_t c = fc_least(j, columns - side);                                                      \
                fc_transpose_rows_##name(to + c * pitch_to + r, pitch_to, from + r, at + c, ahead);                   \
            }                                                                                                         \
        }                                                                                                             \
        return;                                                                                                       \
    }
#define FC_TRANSPOSE_TO_PAST(name)                                                                                    \
    if (past && columns % fc_line_##name == 0 && rows >= fc_piece_##name) {                                           \
        for (ptrdiff_t j = 0; j < columns; j += fc_line_##name)                                                       \
            fc_transpose_lines_to_##name(to, at + j, from + j * pitch, pitch, rows, ahead);                           \
        return;                                                                                                       \
    }
#define FC_TRANSPOSE_TO(name)                                                                                         \
    if (rows >= fc_piece_##name) /* the last, smallest strip lies over the one before */                              \
        for (; columns - j >= fc_lanes_##name || (j && j < columns && fc_lanes_##name == (int)fc_piece_##name);       \
             j += fc_lanes_##name) {                                                                                  \
            j = fc_least(j, columns - fc_lanes_##name);                                                               \
            fc_transpose_strip_to_##name(to, at + j, from + j * pitch, pitch, rows, ahead);                           \
        }
/* Every second element. The last vector ends with the last element that is read, and may do some a second time. */
#define FC_EVERY_SECOND(name)                                                                                         \
    if (count > fc_lanes_##name) {                                                                                    \
        const ptrdiff_t lanes = fc_lanes_##name, last = count - lanes;                                                \
        for (; i < last; i += lanes)                                                                                  \
            fc_store_##name(to + i, fc_evens_##name(fc_load_##name(from + 2 * i), fc_load_##name(from + 2 * i + lanes)));\
        fc_store_##name(to + last, fc_odds_##name(fc_load_##name(from + 2 * last - 1),                                \
                                                  fc_load_##name(from + 2 * last - 1 + lanes)));                      \
        break;                                                                                                        \
    }
/* The same in vectors that are all whole, of the largest size that is used by more than half. */
#define FC_EVERY_SECOND_AND_MORE(name)                                                                                \
    if (2 * count > fc_lanes_##name) {                                                                                \
        const ptrdiff_t lanes = fc_lanes_##name, whole = (count + lanes - 1) / lanes * lanes;                         \
        if (room < whole || there < 2 * whole)                                                                        \
            return 0;                                                                                                 \
        for (ptrdiff_t i = 0; i < whole; i += lanes)                                                                  \
            fc_store_##name(to + i, fc_evens_##name(fc_load_##name(from + 2 * i), fc_load_##name(from + 2 * i + lanes)));\
        return 1;                                                                                                     \
    }
/* Every second element from the first and from the second one on, in vectors of the largest size that fits; the last one ends
 * with the last element. */
#define FC_SPLIT(name)                                                                                                \
    if (pairs >= fc_lanes_##name) {                                                                                   \
        for (; i < pairs; i += fc_lanes_##name) {                                                                     \
            const ptrdiff_t at = i + fc_lanes_##name <= pairs ? i : pairs - fc_lanes_##name;                          \
            const fc_vec_##name a = fc_load_##name(from + 2 * at), b = fc_load_##name(from + 2 * at + fc_lanes_##name);\
            fc_store_##name(even + at, fc_evens_##name(a, b));                                                        \
            fc_store_##name(odd + at, fc_odds_##name(a, b));                                                          \
        }                                                                                                             \
        return;                                                                                                       \
    }
/* The way back. */
#define FC_WEAVE(name)                                                                                                \
    if (pairs >= fc_lanes_##name) {                                                                                   \
        for (; i < pairs; i += fc_lanes_##name) {                                                                     \
            const ptrdiff_t at = i + fc_lanes_##name <= pairs ? i : pairs - fc_lanes_##name;                          \
            const fc_vec_##name a = fc_load_##name(even + at), b = fc_load_##name(odd + at);                          \
            fc_store_##name(to + 2 * at, fc_lows_##name(a, b));                                                       \
            fc_store_##name(to + 2 * at + fc_lanes_##name, fc_highs_##name(a, b));                                    \
        }                                                                                                             \
        return;                                                                                                       \
    }
#if FC_VECTOR_BYTES == 64
#define FC_TILES_F32(each) each(f32x16) each(f32x8) each(f32x4)
#define FC_TILES_F64(each) each(f64x8) each(f64x4) each(f64x2)
#elif FC_VECTOR_BYTES == 32
#define FC_TILES_F32(each) each(f32x8) each(f32x4)
#define FC_TILES_F64(each) each(f64x4) each(f64x2)
#else
#define FC_TILES_F32(each) each(f32x4)
#define FC_TILES_F64(each) each(f64x2)
#endif

typedef char fc_bytes __attribute__((vector_size(FC_VECTOR_BYTES)));
typedef char fc_ubytes __attribute__((vector_size(FC_VECTOR_BYTES), aligned(1), may_alias));
FC_INLINE fc_bytes fc_load_bytes(const char *from) { return *(const fc_ubytes *)from; }
FC_INLINE void fc_store_bytes(char *to, fc_bytes v) { *(fc_ubytes *)to = v; }

/* Elements of 1, 2, 4, 8 and 16 bytes, whatever they are. */
typedef struct {
    uint64_t low, high;
} fc_pair;

/* transpose (elements.h) for elements that are pieces of 16 bytes themselves: each line of the result is made of four of them
 * in one go, from lines that are used up by the next ones. */
static void fc_transpose_pairs(fc_pair *to, ptrdiff_t pitch_to, const fc_pair *const *from, ptrdiff_t at, ptrdiff_t rows,
                               ptrdiff_t columns, ptrdiff_t ahead, int past)
{
    for (ptrdiff_t part = 0; part < columns; part += 4)
        for (ptrdiff_t i = 0; i < rows; i += 4) {
            const ptrdiff_t some = fc_least(rows - i, 4);
            for (ptrdiff_t k = i; ahead && k < i + some; k++)
                fc_ask_for((const char *)(from[k] + at + part) + ahead, 2);
            for (ptrdiff_t j = part; j < columns && j < part + 4; j++) {
                fc_pair *const line = to + j * pitch_to + i;
#if defined(__AVX512F__)
                if (past) {
                    FC_STREAM_VECTOR(line, fc_four_pieces(from[i] + at + j, from[i + 1] + at + j, from[i + 2] + at + j,
                                                          from[i + 3] + at + j));
                    continue;
                }
#elif defined(__SSE2__)
                for (ptrdiff_t k = 0; past && k < 4; k++)
                    _mm_stream_si128((__m128i *)(line + k), _mm_loadu_si128((const __m128i *)(from[i + k] + at + j)));
                if (past)
                    continue;
#endif
                for (ptrdiff_t k = 0; k < some; k++)
                    line[k] = from[i + k][at + j];
            }
        }
}

#define FC_T uint8_t
#define FC_ELEMENT(name) fc_##name##_8
#include "elements.h"
#undef FC_T
#undef FC_ELEMENT
#define FC_T uint16_t
#define FC_ELEMENT(name) fc_##name##_16
#include "elements.h"
#undef FC_T
#undef FC_ELEMENT
#define FC_T fc_pair
#define FC_ELEMENT(name) fc_##name##_128
#include "elements.h"
#undef FC_T
#undef FC_ELEMENT
#define FC_T float
#define FC_ELEMENT(name) fc_##name##_32
#define FC_TILES FC_TILES_F32
#include "elements.h"
#undef FC_T
#undef FC_ELEMENT
#undef FC_TILES
#define FC_T double
#define FC_ELEMENT(name) fc_##name##_64
#define FC_TILES FC_TILES_F64
#include "elements.h"
#undef FC_T
#undef FC_ELEMENT
#undef FC_TILES

static ptrdiff_t fc_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t fc_max(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static ptrdiff_t fc_round_up(ptrdiff_t a, ptrdiff_t unit) { return (a + unit - 1) / unit * unit; }

static ptrdiff_t fc_gcd(ptrdiff_t a, ptrdiff_t b)
{
    while (b) {
        const ptrdiff_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* The first of `taps` taps i for which i*dilation is `residue` modulo the stride, or `taps` where none is. The others follow in
 * steps of stride/g, with g the greatest common divisor of both. Looking for them one by one, for each residue, takes longer
 * than the work itself where a window of a long signal has thousands of cells and moves by as many. */
static ptrdiff_t fc_first_tap(ptrdiff_t residue, ptrdiff_t stride, ptrdiff_t dilation, ptrdiff_t taps)
{
    ptrdiff_t g = dilation % stride, rest = stride, inverse = 1, next = 0; /* inverse*dilation is g modulo the stride */
    while (rest) {
        const ptrdiff_t quotient = g / rest, r = g % rest, i = inverse - quotient * next;
        g = rest;
        rest = r;
        inverse = next;
        next = i;
    }
    residue = (residue % stride + stride) % stride;
    if (residue % g)
        return taps;
    const ptrdiff_t period = stride / g, first = residue / g * ((inverse % period + period) % period) % period;
    return first < taps ? first : taps;
}

/* Which rows of windows have a row of the image, by the residue of its number (counted from the padding's first row) modulo
 * the stride: its last[residue]-th tap row is that of window row number/stride + back[residue]. The other ones follow in
 * steps of stride/g taps, dilation/g rows of windows back each time, with g their greatest common divisor. */
static void fc_window_rows(ptrdiff_t taps, ptrdiff_t stride, ptrdiff_t dilation, ptrdiff_t *last, ptrdiff_t *back)
{
    for (ptrdiff_t residue = 0; residue < stride; residue++) {
        last[residue] = fc_first_tap(residue, stride, dilation, taps); /* taps: in none */
        back[residue] = (residue - last[residue] * dilation) / stride;
    }
}

/* Where a thread writes its part of a result, from the beginning to the end, without gaps.
 *
 * `at` is where the next bytes go; they count once fc_written was called. Writing further than that is allowed, up to
 * `end`: what is there is still to come. Either `at` is the result itself, or, for results so large that they would push
 * everything else out of the caches and not be found there when they are needed, a buffer that goes to memory by stores
 * past the caches: whole lines, which memory does not have to hand over first. */
typedef struct {
    char *at, *end;
    char *to;     /* where the buffer goes; NULL without one */
    char *buffer;
} fc_sink;

enum {
    FC_PREFETCH_BYTES = 1 << 20, /* what is smaller is likely to be in the caches */
    FC_LINE = 64,              /* bytes of a cache line */
    FC_SINK_BYTES = 2048,      /* a buffer is emptied when it holds so much: few, so that reading goes on meanwhile */
    FC_SLACK_BYTES = 256,      /* what vectors may write beyond the bytes that count */
    FC_STREAM_BYTES = 25165824 /* results from this size on bypass the caches */
};

/* Bytes of a buffer for pieces of at most `piece` bytes. */
static ptrdiff_t fc_sink_bytes(ptrdiff_t piece) { return FC_SINK_BYTES + piece + FC_SLACK_BYTES + 3 * FC_LINE; }

/* A sink for [to, to + bytes); with a buffer (which begins at a cache line) it goes there by streaming stores. */
static fc_sink fc_sink_to(void *to, ptrdiff_t bytes, char *buffer, ptrdiff_t capacity)
{
    fc_sink s = {to, (char *)to + bytes, NULL, NULL};
    if (buffer) { /* at the same place in its line as the result */
        s.to = to;
        s.buffer = buffer + (uintptr_t)to % FC_LINE;
        s.at = s.buffer;
        s.end = buffer + capacity;
    }
    return s;
}

/* Whole lines past the caches: both ends at a line's beginning. */
static void fc_stream_lines(char *to, const char *from, ptrdiff_t bytes)
{
#if defined(__SSE2__)
    typedef int32_t words __attribute__((vector_size(FC_VECTOR_BYTES), aligned(1), may_alias));
    for (ptrdiff_t i = 0; i < bytes; i += FC_LINE)
        for (int j = 0; j < FC_LINE; j += FC_VECTOR_BYTES)
            FC_STREAM_VECTOR(to + i + j, *(const words *)(from + i + j));
#else
    memcpy(to, from, (size_t)bytes);
#endif
}

static void fc_stream_end(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* Copy past the caches, but for the lines at the ends that are not whole. */
static void fc_stream(char *to, const char *from, ptrdiff_t bytes)
{
    const ptrdiff_t head = -(uintptr_t)to % FC_LINE, lines = (bytes - head) / FC_LINE * FC_LINE;
    if (lines <= 0) {
        memcpy(to, from, (size_t)bytes);
        return;
    }
    memcpy(to, from, (size_t)head);
    fc_stream_lines(to + head, from + head, lines);
    memcpy(to + head + lines, from + head + lines, (size_t)(bytes - head - lines));
}

/* Copy some bytes, a multiple of 4: inline, because a call takes as long as the rows of small images. */
FC_INLINE void fc_copy_few(char *to, const char *from, ptrdiff_t bytes)
{
    ptrdiff_t i = 0;
    if (bytes >= 16) {
        for (; i + 16 <= bytes; i += 16)
            memcpy(to + i, from + i, 16);
        memcpy(to + bytes - 16, from + bytes - 16, 16);
    } else if (bytes >= 8) {
        memcpy(to, from, 8);
        memcpy(to + bytes - 8, from + bytes - 8, 8);
    } else if (bytes >= 4)
        memcpy(to, from, 4);
}

static void fc_sink_empty(fc_sink *s, int all)
{
    const ptrdiff_t bytes = s->at - s->buffer, head = -(uintptr_t)s->to % FC_LINE;
    const ptrdiff_t gone = all || bytes < head ? bytes : bytes - (bytes - head) % FC_LINE;
    fc_stream(s->to, s->buffer, gone);
    s->to += gone;
    /* less than a line waits for the rest, at the line's beginning */
    char *const rest = s->buffer + gone;
    s->buffer -= (uintptr_t)s->buffer % FC_LINE;
    memmove(s->buffer, rest, (size_t)(bytes - gone));
    s->at = s->buffer + bytes - gone;
}

FC_INLINE void fc_written(fc_sink *s, ptrdiff_t bytes)
{
    s->at += bytes;
    if (FC_UNLIKELY(s->to && s->at - s->buffer >= FC_SINK_BYTES))
        fc_sink_empty(s, 0);
}

/* After the last byte. */
static void fc_sink_close(fc_sink *s)
{
    if (s->to) {
        fc_sink_empty(s, 1);
        fc_stream_end();
    }
}

#endif
