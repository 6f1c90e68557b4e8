/* Template of the vector operations that the pooling and lowering kernels share; see each_vector.h. */

#define VEC FC_NAME(vec)
#define IVEC FC_NAME(ivec)
#define UVEC FC_NAME(uvec)
#define MASK FC_NAME(mask)
#define UWORDS FC_NAME(uwords)

typedef FC_T VEC __attribute__((vector_size(FC_BYTES)));
typedef FC_INT IVEC __attribute__((vector_size(FC_BYTES)));
/* The same vector in memory, at any address that an element may have. */
typedef FC_T UVEC __attribute__((vector_size(FC_BYTES), aligned(sizeof(FC_T)), may_alias));

#if FC_LANES == 16
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LOWS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define IOTA 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define NEXT 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
#define LAST 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
#define HIGHS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif FC_LANES == 8
#define EVENS 0, 2, 4, 6, 8, 10, 12, 14
#define ODDS 1, 3, 5, 7, 9, 11, 13, 15
#define LOWS 0, 8, 1, 9, 2, 10, 3, 11
#define IOTA 0, 1, 2, 3, 4, 5, 6, 7
#define NEXT 1, 2, 3, 4, 5, 6, 7, 8
#define LAST 7, 8, 9, 10, 11, 12, 13, 14
#define HIGHS 4, 12, 5, 13, 6, 14, 7, 15
#elif FC_LANES == 4
#define EVENS 0, 2, 4, 6
#define ODDS 1, 3, 5, 7
#define LOWS 0, 4, 1, 5
#define IOTA 0, 1, 2, 3
#define NEXT 1, 2, 3, 4
#define LAST 3, 4, 5, 6
#define HIGHS 2, 6, 3, 7
#else
#define EVENS 0, 2
#define ODDS 1, 3
#define LOWS 0, 2
#define IOTA 0, 1
#define NEXT 1, 2
#define LAST 1, 2
#define HIGHS 1, 3
#endif

FC_INLINE VEC FC_NAME(load)(const FC_T *from) { return *(const UVEC *)from; }
FC_INLINE void FC_NAME(store)(FC_T *to, VEC v) { *(UVEC *)to = v; }
FC_INLINE IVEC FC_NAME(iload)(const FC_INT *from) { return (IVEC)FC_NAME(load)((const FC_T *)from); }
FC_INLINE VEC FC_NAME(all)(FC_T value) { return value - (VEC){0}; }
FC_INLINE IVEC FC_NAME(iall)(FC_INT value) { return value - (IVEC){0}; }

enum { FC_NAME(lanes) = FC_LANES };

/* Without signs, so that any bits may be added and subtracted. */
typedef FC_UINT UWORDS __attribute__((vector_size(FC_BYTES)));
FC_INLINE IVEC FC_NAME(plus)(IVEC a, IVEC b) { return (IVEC)((UWORDS)a + (UWORDS)b); }
FC_INLINE IVEC FC_NAME(minus)(IVEC a, IVEC b) { return (IVEC)((UWORDS)a - (UWORDS)b); }

/* 0, 1, 2 ... */
FC_INLINE IVEC FC_NAME(count)(void) { return (IVEC){IOTA}; }

/* Of the 2*LANES elements a, b in order: every second one, from the first or from the second on. */
FC_INLINE VEC FC_NAME(evens)(VEC a, VEC b) { return __builtin_shufflevector(a, b, EVENS); }
FC_INLINE VEC FC_NAME(odds)(VEC a, VEC b) { return __builtin_shufflevector(a, b, ODDS); }
/* The other way round: a[0], b[0], a[1], b[1] ..., the first and the second half of them. */
FC_INLINE VEC FC_NAME(lows)(VEC a, VEC b) { return __builtin_shufflevector(a, b, LOWS); }
FC_INLINE VEC FC_NAME(highs)(VEC a, VEC b) { return __builtin_shufflevector(a, b, HIGHS); }

/* Of the 2*LANES elements a, b in order: LANES from the second one on, or from a's last one on. */
FC_INLINE VEC FC_NAME(next)(VEC a, VEC b) { return __builtin_shufflevector(a, b, NEXT); }
FC_INLINE VEC FC_NAME(last)(VEC a, VEC b) { return __builtin_shufflevector(a, b, LAST); }

/* Past the caches; `to` is at a multiple of the vector's size. */
FC_INLINE void FC_NAME(stream)(FC_T *to, VEC v)
{
#if defined(__SSE2__)
    FC_MM(stream)(to, v);
#else
    FC_NAME(store)(to, v);
#endif
}

/* Turn a tile: LANES vectors, which load_tile gives, with `ahead` (unless it is 0) prefetching what lies so far behind them. */
#if FC_BYTES > 16
/* Pieces of 16 bytes, of every 16/sizeof(FC_T)-th row, are put together as they are loaded. Then the tile is one of blocks that
 * are to be turned each, all of a vector at a time. What a load puts into a vector is no shuffle, so there are but two for each
 * vector, where a block has four rows, or one; and pieces seldom cross a cache line, which vectors often do. */
#define PIECE ((int)(16 / sizeof(FC_T)))
#if FC_BYTES == 64
#define PIECES(row, at)                                                                                               \
    (VEC)fc_four_pieces((row)[0] + (at), (row)[PIECE] + (at), (row)[2 * PIECE] + (at), (row)[3 * PIECE] + (at))
#define PIECES_APART(at, step) (VEC)fc_four_pieces(at, (at) + (step), (at) + 2 * (step), (at) + 3 * (step))
#define STORE_PIECES(at, step, v) fc_store_four_pieces(at, (at) + (step), (at) + 2 * (step), (at) + 3 * (step), (__m512i)(v))
#else
#define PIECES(row, at) (VEC)fc_two_pieces((row)[0] + (at), (row)[PIECE] + (at))
#define PIECES_APART(at, step) (VEC)fc_two_pieces(at, (at) + (step))
#define STORE_PIECES(at, step, v) fc_store_two_pieces(at, (at) + (step), (__m256i)(v))
#endif
#define PAIRS(op, a, b) (VEC)FC_PASTE(FC_PREFIX, op, _pd)((PAIR_VEC)(a), (PAIR_VEC)(b))

/* The prefetches go with the loads: each row's address is needed for a moment only. */
FC_INLINE void FC_NAME(load_tile)(const FC_T *const *from, ptrdiff_t at, ptrdiff_t ahead, VEC *row)
{
FC_UNROLL
    for (int i = 0; i < PIECE; i++) {
FC_UNROLL
        for (int j = 0; j < FC_LANES; j += PIECE)
            row[j + i] = PIECES(from + i, at + j);
FC_UNROLL
        for (int j = i; j < FC_LANES; j += PIECE)
            if (ahead)
                fc_ask_for((const char *)(from[j] + at) + ahead, 2);
    }
}
FC_INLINE void FC_NAME(turn_blocks)(VEC *row)
{
    typedef double PAIR_VEC __attribute__((vector_size(FC_BYTES)));
    const VEC a = FC_MM(unpacklo)(row[0], row[1]), b = FC_MM(unpackhi)(row[0], row[1]);
    if (PIECE == 2) {
        row[0] = a;
        row[1] = b;
    } else {
        const VEC c = FC_MM(unpacklo)(row[2], row[PIECE - 1]), d = FC_MM(unpackhi)(row[2], row[PIECE - 1]);
        row[0] = PAIRS(unpacklo, a, c);
        row[1] = PAIRS(unpackhi, a, c);
        row[2] = PAIRS(unpacklo, b, d);
        row[PIECE - 1] = PAIRS(unpackhi, b, d);
    }
}
FC_INLINE void FC_NAME(turn)(VEC *row)
{
FC_UNROLL
    for (int i = 0; i < FC_LANES; i += PIECE)
        FC_NAME(turn_blocks)(row + i);
}
#undef PAIRS
#else
#define PIECE FC_LANES
#define PIECES(row, at) FC_NAME(load)((row)[0] + (at))
#define PIECES_APART(at, step) FC_NAME(load)(at)
#define STORE_PIECES(at, step, v) FC_NAME(store)(at, v)
FC_INLINE void FC_NAME(load_tile)(const FC_T *const *from, ptrdiff_t at, ptrdiff_t ahead, VEC *row)
{
FC_UNROLL
    for (int i = 0; i < FC_LANES; i++) {
        row[i] = FC_NAME(load)(from[i] + at);
        if (ahead)
            fc_ask_for((const char *)(from[i] + at) + ahead, 2);
    }
}
/* One round puts row i + LANES/2 between the elements of row i: the numbers of the elements turn by one bit, and after all of
 * their row bits have become column bits the tile is turned. */
FC_INLINE void FC_NAME(turn)(VEC *row)
{
    VEC next[FC_LANES];
FC_UNROLL
    for (int half = 1; half < FC_LANES; half *= 2) {
FC_UNROLL
        for (int i = 0; i < FC_LANES / 2; i++) {
            next[2 * i] = FC_NAME(lows)(row[i], row[i + FC_LANES / 2]);
            next[2 * i + 1] = FC_NAME(highs)(row[i], row[i + FC_LANES / 2]);
        }
FC_UNROLL
        for (int i = 0; i < FC_LANES; i++)
            row[i] = next[i];
    }
}
FC_INLINE void FC_NAME(turn_blocks)(VEC *row) { FC_NAME(turn)(row); }
#endif

/* to[j*pitch_to + i] = from[i][at + j] for i, j < LANES. `ahead` bytes further on is what will be turned next (0: nothing):
 * after rows of all channels, so it goes to the second-level cache. */
FC_INLINE void FC_NAME(transpose_tile)(FC_T *to, ptrdiff_t pitch_to, const FC_T *const *from, ptrdiff_t at, ptrdiff_t ahead)
{
    VEC row[FC_LANES];
    FC_NAME(load_tile)(from, at, ahead, row);
    FC_NAME(turn)(row);
FC_UNROLL
    for (int i = 0; i < FC_LANES; i++)
        FC_NAME(store)(to + i * pitch_to, row[i]);
}

/* The same for a block of so many columns as are 16 bytes, j < PIECE. */
FC_INLINE void FC_NAME(transpose_block)(FC_T *to, ptrdiff_t pitch_to, const FC_T *const *from, ptrdiff_t at, ptrdiff_t ahead)
{
    VEC row[PIECE];
FC_UNROLL
    for (int i = 0; i < PIECE; i++)
        row[i] = PIECES(from + i, at);
    if (ahead)
FC_UNROLL
        for (int j = 0; j < FC_LANES; j++)
            fc_ask_for((const char *)(from[j] + at) + ahead, 2);
    FC_NAME(turn_blocks)(row);
FC_UNROLL
    for (int i = 0; i < PIECE; i++)
        FC_NAME(store)(to + i * pitch_to, row[i]);
}

/* The same for rows that make a whole cache line, and so many columns as are 16 bytes: each line is stored past the caches in
 * one go. If others came between its parts, memory would get it in parts. */
enum { FC_NAME(piece) = PIECE, FC_NAME(line) = 64 / sizeof(FC_T) };
FC_INLINE void FC_NAME(transpose_lines)(FC_T *to, ptrdiff_t pitch_to, const FC_T *const *from, ptrdiff_t at, ptrdiff_t ahead)
{
    VEC row[64 / FC_BYTES][PIECE];
FC_UNROLL
    for (int k = 0; k < 64 / FC_BYTES; k++) {
FC_UNROLL
        for (int i = 0; i < PIECE; i++) {
            row[k][i] = PIECES(from + k * FC_LANES + i, at);
FC_UNROLL
            for (int j = i; j < FC_LANES; j += PIECE)
                if (ahead)
                    __builtin_prefetch((const char *)(from[k * FC_LANES + j] + at) + ahead, 0, 2);
        }
        FC_NAME(turn_blocks)(row[k]);
    }
FC_UNROLL
    for (int i = 0; i < PIECE; i++)
FC_UNROLL
        for (int k = 0; k < 64 / FC_BYTES; k++)
            FC_NAME(stream)(to + i * pitch_to + k * FC_LANES, row[k][i]);
}
/* to[i][at + j] = from[j*pitch + i] for i < rows, and so many j as make a line, past the caches. */
FC_INLINE void FC_NAME(transpose_lines_to)(FC_T *const *to, ptrdiff_t at, const FC_T *from, ptrdiff_t pitch, ptrdiff_t rows,
                                           ptrdiff_t ahead)
{
    for (ptrdiff_t i = 0; i < rows; i += FC_NAME(line)) {
FC_UNROLL
        for (int part = 0; part < FC_NAME(line); part += PIECE) {
            if (part && i + part >= rows)
                return;
            const ptrdiff_t r = i + part + PIECE <= rows ? i + part : rows - PIECE;
            VEC row[64 / FC_BYTES][PIECE];
FC_UNROLL
            for (int k = 0; k < 64 / FC_BYTES; k++) {
                const FC_T *const first = from + r + k * FC_LANES * pitch;
FC_UNROLL
                for (int j = 0; j < PIECE; j++)
                    row[k][j] = PIECES_APART(first + j * pitch, PIECE * pitch);
                FC_NAME(turn_blocks)(row[k]);
            }
            if (ahead) { /* lines last for four parts: each fetches a quarter of the next ones */
FC_UNROLL
                for (int j = 0; j < FC_NAME(line); j += 4)
                    __builtin_prefetch((const char *)(from + i + (j + part / PIECE) * pitch) + ahead, 0, 2);
            }
FC_UNROLL
            for (int j = 0; j < PIECE; j++)
FC_UNROLL
                for (int k = 0; k < 64 / FC_BYTES; k++)
                    FC_NAME(stream)(to[r + j] + at + k * FC_LANES, row[k][j]);
        }
    }
}
/* The same for LANES columns j, and not past the caches. */
FC_INLINE void FC_NAME(transpose_strip_to)(FC_T *const *to, ptrdiff_t at, const FC_T *from, ptrdiff_t pitch, ptrdiff_t rows,
                                           ptrdiff_t ahead)
{
    for (ptrdiff_t i = 0; i < rows; i += FC_NAME(line)) {
FC_UNROLL
        for (int part = 0; part < FC_NAME(line); part += PIECE) {
            if (part && i + part >= rows)
                return;
            const ptrdiff_t r = i + part + PIECE <= rows ? i + part : rows - PIECE;
            VEC row[PIECE];
FC_UNROLL
            for (int j = 0; j < PIECE; j++)
                row[j] = PIECES_APART(from + r + j * pitch, PIECE * pitch);
            if (ahead) { /* each part fetches so much of what comes after the lines that all read from */
FC_UNROLL
                for (int j = 0; j < FC_LANES; j += FC_NAME(line) / PIECE)
                    if (j + part / PIECE < FC_LANES)
                        fc_ask_for((const char *)(from + i + (j + part / PIECE) * pitch) + ahead, 3);
            }
            FC_NAME(turn_blocks)(row);
FC_UNROLL
            for (int j = 0; j < PIECE; j++)
                FC_NAME(store)(to[r + j] + at, row[j]);
        }
    }
}
/* The same for PIECE rows and LANES columns: to[j*pitch_to + i] = from[i][at + j], i < PIECE. */
FC_INLINE void FC_NAME(transpose_rows)(FC_T *to, ptrdiff_t pitch_to, const FC_T *const *from, ptrdiff_t at, ptrdiff_t ahead)
{
    VEC row[PIECE];
FC_UNROLL
    for (int i = 0; i < PIECE; i++) {
        row[i] = FC_NAME(load)(from[i] + at);
        if (ahead)
            fc_ask_for((const char *)(from[i] + at) + ahead, 2);
    }
    FC_NAME(turn_blocks)(row);
FC_UNROLL
    for (int i = 0; i < PIECE; i++)
        STORE_PIECES(to + i * pitch_to, PIECE * pitch_to, row[i]);
}
#undef STORE_PIECES
#undef PIECES_APART
#undef PIECES
#undef PIECE

/* The first `count` lanes, 0 < count <= LANES. The others are 0; memory behind them is not touched. */
#if defined(__AVX512F__)
FC_INLINE VEC FC_NAME(load_part)(const FC_T *from, ptrdiff_t count)
{
    return FC_MM(maskz_loadu)((FC_MASK)(count < FC_LANES ? (1u << count) - 1 : (1u << FC_LANES) - 1), from);
}
FC_INLINE void FC_NAME(store_part)(FC_T *to, VEC v, ptrdiff_t count)
{
    FC_MM(mask_storeu)(to, (FC_MASK)(count < FC_LANES ? (1u << count) - 1 : (1u << FC_LANES) - 1), v);
}
#else
FC_INLINE VEC FC_NAME(load_part)(const FC_T *from, ptrdiff_t count)
{
    FC_T lane[FC_LANES] = {0};
    for (ptrdiff_t i = 0; i < count && i < FC_LANES; i++) {
        FC_FEW;
        lane[i] = from[i];
    }
    return FC_NAME(load)(lane);
}
FC_INLINE void FC_NAME(store_part)(FC_T *to, VEC v, ptrdiff_t count)
{
    FC_T lane[FC_LANES];
    FC_NAME(store)(lane, v);
    for (ptrdiff_t i = 0; i < count && i < FC_LANES; i++) {
        FC_FEW;
        to[i] = lane[i];
    }
}
#endif

/* `count` lanes of the vector; all, where there is room: what lies behind is still to be written. */
FC_INLINE void FC_NAME(put)(FC_T *to, VEC v, ptrdiff_t count, ptrdiff_t room)
{
    if (FC_LIKELY(room >= FC_LANES))
        FC_NAME(store)(to, v);
    else if (count > 0)
        FC_NAME(store_part)(to, v, count);
}

/* to[i] += from[i]. */
FC_INLINE void FC_NAME(add)(FC_T *to, const FC_T *from, ptrdiff_t count)
{
    ptrdiff_t i = 0;
    for (; i + FC_LANES <= count; i += FC_LANES)
        FC_NAME(store)(to + i, FC_NAME(load)(to + i) + FC_NAME(load)(from + i));
    if (i < count)
        FC_NAME(store_part)(to + i, FC_NAME(load_part)(to + i, count - i) + FC_NAME(load_part)(from + i, count - i), count - i);
}

/* A choice for each lane: bits on AVX-512, otherwise vectors of all or no bits. */
#if defined(__AVX512F__)
typedef FC_MASK MASK;
FC_INLINE VEC FC_NAME(pick)(MASK which, VEC yes, VEC no) { return FC_MM(mask_mov)(no, which, yes); }
FC_INLINE IVEC FC_NAME(ipick)(MASK which, IVEC yes, IVEC no)
{
    return (IVEC)FC_MM(mask_mov)((VEC)no, which, (VEC)yes);
}
#if FC_BYTES == 64
#define WORDS __m512i
#elif FC_BYTES == 32
#define WORDS __m256i
#else
#define WORDS __m128i
#endif
FC_INLINE MASK FC_NAME(between)(IVEC a, IVEC b, IVEC c) /* a <= b < c */
{
    return FC_COMPARE_INT((WORDS)a, (WORDS)b, _MM_CMPINT_LE) & FC_COMPARE_INT((WORDS)b, (WORDS)c, _MM_CMPINT_LT);
}
FC_INLINE MASK FC_NAME(same)(IVEC a, IVEC b) { return FC_COMPARE_INT((WORDS)a, (WORDS)b, _MM_CMPINT_EQ); }
/* Without signs: the smaller and the larger one. */
FC_INLINE IVEC FC_NAME(lower)(IVEC a, IVEC b) { return (IVEC)FC_MIN_UINT((WORDS)a, (WORDS)b); }
FC_INLINE IVEC FC_NAME(higher)(IVEC a, IVEC b) { return (IVEC)FC_MAX_UINT((WORDS)a, (WORDS)b); }
FC_INLINE MASK FC_NAME(first)(ptrdiff_t count) /* the first `count` lanes, 0 <= count */
{
    return (MASK)(count < FC_LANES ? (1u << count) - 1 : (1u << FC_LANES) - 1);
}
FC_INLINE VEC FC_NAME(add_where)(MASK which, VEC sum, VEC v) { return FC_MM(mask_add)(sum, which, sum, v); }
/* One more in the lanes of the mask. */
FC_INLINE IVEC FC_NAME(tally)(IVEC count, MASK which)
{
    return (IVEC)FC_MASKED_ADD_INT((WORDS)count, which, (WORDS)count, (WORDS)FC_NAME(iall)(1));
}
/* Does any lane have the value? */
FC_INLINE int FC_NAME(any)(VEC v, FC_T value) { return FC_COMPARE(v, FC_NAME(all)(value), _CMP_EQ_OQ) != 0; }
#else
typedef IVEC MASK;
FC_INLINE VEC FC_NAME(pick)(MASK which, VEC yes, VEC no)
{
#if defined(__AVX2__)
    return FC_MM(blendv)(no, yes, (VEC)which);
#else
    return (VEC)((which & (IVEC)yes) | (~which & (IVEC)no));
#endif
}
FC_INLINE IVEC FC_NAME(ipick)(MASK which, IVEC yes, IVEC no)
{
    return (IVEC)FC_NAME(pick)(which, (VEC)yes, (VEC)no);
}
FC_INLINE MASK FC_NAME(between)(IVEC a, IVEC b, IVEC c) { return (a <= b) & (b < c); }
FC_INLINE MASK FC_NAME(same)(IVEC a, IVEC b) { return a == b; }
#if defined(__AVX2__) && FC_LANES * 4 == FC_BYTES
#if FC_BYTES == 32
#define WORDS __m256i
#else
#define WORDS __m128i
#endif
FC_INLINE IVEC FC_NAME(lower)(IVEC a, IVEC b) { return (IVEC)FC_MIN_UINT((WORDS)a, (WORDS)b); }
FC_INLINE IVEC FC_NAME(higher)(IVEC a, IVEC b) { return (IVEC)FC_MAX_UINT((WORDS)a, (WORDS)b); }
#undef WORDS
#else
FC_INLINE IVEC FC_NAME(lower)(IVEC a, IVEC b) { return FC_NAME(ipick)((UWORDS)a < (UWORDS)b, a, b); }
FC_INLINE IVEC FC_NAME(higher)(IVEC a, IVEC b) { return FC_NAME(ipick)((UWORDS)a < (UWORDS)b, b, a); }
#endif
FC_INLINE MASK FC_NAME(first)(ptrdiff_t count)
{
    return FC_NAME(count)() < FC_NAME(iall)((FC_INT)(count < FC_LANES ? count : FC_LANES));
}
FC_INLINE VEC FC_NAME(add_where)(MASK which, VEC sum, VEC v) { return sum + (VEC)(which & (IVEC)v); }
FC_INLINE IVEC FC_NAME(tally)(IVEC count, MASK which) { return count - which; }
FC_INLINE int FC_NAME(any)(VEC v, FC_T value)
{
    const IVEC equal = v == FC_NAME(all)(value);
    int64_t words[FC_BYTES / 8], found = 0;
    memcpy(words, &equal, sizeof words);
    for (int i = 0; i < FC_BYTES / 8; i++)
        found |= words[i];
    return found != 0;
}
#endif

/* Integers of less than 16 bits that are only compared with each other: of 16 where that costs less, whole lanes otherwise. */
#if defined(__AVX512F__)
typedef int16_t FC_NAME(tag);
#if FC_LANES == 16
typedef __m256i FC_NAME(tags);
#define TAGS_OP(op) FC_PASTE(_mm256_, op, )
#else
typedef __m128i FC_NAME(tags);
#define TAGS_OP(op) FC_PASTE(_mm_, op, )
#endif
FC_INLINE FC_NAME(tags) FC_NAME(all_tags)(FC_INT value) { return TAGS_OP(set1_epi16)((short)value); }
#if FC_LANES >= 8
FC_INLINE FC_NAME(tags) FC_NAME(load_tags)(const FC_NAME(tag) *from)
{
    FC_NAME(tags) v;
    memcpy(&v, from, sizeof v);
    return v;
}
FC_INLINE void FC_NAME(store_tags)(FC_NAME(tag) *to, IVEC v)
{
    const FC_NAME(tags) tags = FC_SHORT_INT((WORDS)v);
    memcpy(to, &tags, sizeof tags);
}
FC_INLINE MASK FC_NAME(same_tags)(FC_NAME(tags) a, FC_NAME(tags) b) { return TAGS_OP(cmpeq_epi16_mask)(a, b); }
#endif
#undef TAGS_OP
#else
typedef FC_INT FC_NAME(tag);
typedef IVEC FC_NAME(tags);
FC_INLINE FC_NAME(tags) FC_NAME(all_tags)(FC_INT value) { return FC_NAME(iall)(value); }
FC_INLINE FC_NAME(tags) FC_NAME(load_tags)(const FC_NAME(tag) *from) { return FC_NAME(iload)(from); }
FC_INLINE void FC_NAME(store_tags)(FC_NAME(tag) *to, IVEC v) { FC_NAME(store)((FC_T *)to, (VEC)v); }
FC_INLINE MASK FC_NAME(same_tags)(FC_NAME(tags) a, FC_NAME(tags) b) { return FC_NAME(same)(a, b); }
#endif

/* Are all lanes in [0, limit)? */
FC_INLINE int FC_NAME(all_below)(IVEC a, FC_INT limit)
{
    FC_INT lane[FC_LANES];
    int below = 1;
    memcpy(lane, &a, sizeof lane);
    for (int l = 0; l < FC_LANES; l++)
        below &= lane[l] >= 0 && lane[l] < limit;
    return below;
}

/* The larger one; NaN is larger than anything. Of equal ones `old`: only zeros of different signs show that. */
FC_INLINE VEC FC_NAME(larger)(VEC old, VEC new)
{
    /* x86's maximum returns its second operand unless the first is larger, so it lacks only a NaN that is new */
#if defined(__AVX512F__)
    return FC_MM(mask_max)(new, FC_COMPARE(new, new, _CMP_ORD_Q), new, old);
#elif defined(__AVX2__)
    return FC_MM(blendv)(FC_MM(max)(new, old), new, FC_MM(cmp)(new, new, _CMP_UNORD_Q));
#elif defined(__SSE2__)
    return FC_MM(or)(FC_MM(max)(new, old), FC_MM(cmpunord)(new, new));
#else
    return FC_NAME(pick)((new > old) | (new != new), new, old);
#endif
}

/* The lanes of the mask, zeros in the others. Memory of the others is not touched if it lies outside [begin, end). */
FC_INLINE VEC FC_NAME(load_where)(MASK which, const FC_T *from, const FC_T *begin, const FC_T *end)
{
#if defined(__AVX512F__)
    (void)begin;
    (void)end;
    return FC_MM(maskz_loadu)(which, from);
#elif defined(__AVX2__)
    (void)begin;
    (void)end;
#if FC_BYTES == 32
    return FC_MM(maskload)(from, (__m256i)which);
#else
    return FC_MM(maskload)(from, (__m128i)which);
#endif
#else
    FC_INT on[FC_LANES];
    FC_T lane[FC_LANES];
    if (FC_LIKELY(from >= begin && from + FC_LANES <= end))
        return (VEC)(which & (IVEC)FC_NAME(load)(from));
    memcpy(on, &which, sizeof on);
    for (int l = 0; l < FC_LANES; l++)
        lane[l] = on[l] ? from[l] : 0;
    return FC_NAME(load)(lane);
#endif
}

/* Where `new` takes the place of `old`: it is larger, or the first NaN. */
FC_INLINE MASK FC_NAME(wins)(VEC old, VEC new)
{
#if defined(__AVX512F__)
    return FC_MASKED_COMPARE(FC_COMPARE(old, old, _CMP_ORD_Q), new, old, _CMP_NLE_UQ);
#elif defined(__AVX2__)
    return (IVEC)FC_MM(and)(FC_MM(cmp)(old, old, _CMP_ORD_Q), FC_MM(cmp)(new, old, _CMP_NLE_UQ));
#elif defined(__SSE2__)
    return (IVEC)FC_MM(and)(FC_MM(cmpord)(old, old), FC_MM(cmpnle)(new, old));
#else
    return (old == old) & ~(new <= old);
#endif
}

#undef VEC
#undef IVEC
#undef UVEC
#undef MASK
#undef UWORDS
#undef EVENS
#undef ODDS
#undef LOWS
#undef HIGHS
#undef IOTA
#undef NEXT
#undef LAST
#undef WORDS
