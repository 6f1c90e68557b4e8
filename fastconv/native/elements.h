/* Template of what moves elements about, for one element type; vectors.h includes it with FC_T, FC_ELEMENT(name) and, for
 * the types that have them, FC_TILES(each): each(name) for each of their vector types, the longest first. */

/* to[i] = value. */
static void FC_ELEMENT(fill)(FC_T *to, FC_T value, ptrdiff_t count)
{
    for (ptrdiff_t i = 0; i < count; i++)
        to[i] = value;
}

/* to[i] = from[i*step]; reads nothing behind the last one. Steps that are constants become vector permutes. */
static void FC_ELEMENT(every)(FC_T *to, const FC_T *from, ptrdiff_t step, ptrdiff_t count)
{
    ptrdiff_t i = 0;
    switch (step) {
    case 1:
        memcpy(to, from, (size_t)count * sizeof(FC_T));
        break;
    case 2:
#ifdef FC_TILES
        FC_TILES(FC_EVERY_SECOND)
#endif
        for (; i < count; i++)
            to[i] = from[2 * i];
        break;
    case 3:
        for (; i < count; i++)
            to[i] = from[3 * i];
        break;
    case 4:
        for (; i < count; i++)
            to[i] = from[4 * i];
        break;
    default:
        for (; i < count; i++)
            to[i] = from[step * i];
    }
}

/* to[i] = from[2*i] in whole vectors, and more behind them, if `room` elements may be written and `there` be read: returns
 * whether that did it. */
FC_INLINE int FC_ELEMENT(every_second)(FC_T *to, const FC_T *from, ptrdiff_t count, ptrdiff_t room, ptrdiff_t there)
{
#ifdef FC_TILES
    FC_TILES(FC_EVERY_SECOND_AND_MORE)
#endif
    return 0;
}

/* even[i] = from[2*i] and odd[i] = from[2*i + 1]. */
FC_INLINE void FC_ELEMENT(split)(FC_T *even, FC_T *odd, const FC_T *from, ptrdiff_t pairs)
{
    ptrdiff_t i = 0;
#ifdef FC_TILES
    FC_TILES(FC_SPLIT)
#endif
    for (; i < pairs; i++) {
        even[i] = from[2 * i];
        odd[i] = from[2 * i + 1];
    }
}

/* to[2*i] = even[i] and to[2*i + 1] = odd[i]. */
FC_INLINE void FC_ELEMENT(weave)(FC_T *to, const FC_T *even, const FC_T *odd, ptrdiff_t pairs)
{
    ptrdiff_t i = 0;
#ifdef FC_TILES
    FC_TILES(FC_WEAVE)
#endif
    for (; i < pairs; i++) {
        to[2 * i] = even[i];
        to[2 * i + 1] = odd[i];
    }
}

/* to[i*step] = from[i]; writes nothing behind the last one. */
static void FC_ELEMENT(to_every)(FC_T *to, ptrdiff_t step, const FC_T *from, ptrdiff_t count)
{
    switch (step) {
    case 3:
        for (ptrdiff_t i = 0; i < count; i++)
            to[3 * i] = from[i];
        break;
    case 4:
        for (ptrdiff_t i = 0; i < count; i++)
            to[4 * i] = from[i];
        break;
    default:
        for (ptrdiff_t i = 0; i < count; i++)
            to[step * i] = from[i];
    }
}

/* to[j*pitch_to + i] = from[i][at + j] for i < rows, j < columns. Tiles and blocks at the ends lie over those
 * before them. `ahead` bytes further on is what will be turned next (0: nothing). */
static void FC_ELEMENT(transpose)(FC_T *to, ptrdiff_t pitch_to, const FC_T *const *from, ptrdiff_t at, ptrdiff_t rows,
                                  ptrdiff_t columns, ptrdiff_t ahead, int past)
{
#ifdef FC_TILES
    FC_TILES(FC_TRANSPOSE)
#endif
    if (sizeof(FC_T) == sizeof(fc_pair)) {
        fc_transpose_pairs((fc_pair *)to, pitch_to, (const fc_pair *const *)from, at, rows, columns, ahead,
                           past && rows % 4 == 0);
        return;
    }
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < columns; j++)
            to[j * pitch_to + i] = from[i][at + j];
}

/* to[i][at + j] = from[j*pitch + i] for i < rows, j < columns, past the caches or not. `ahead` as in transpose. */
static void FC_ELEMENT(transpose_to)(FC_T *const *to, ptrdiff_t at, const FC_T *from, ptrdiff_t pitch, ptrdiff_t rows,
                                     ptrdiff_t columns, ptrdiff_t ahead, int past)
{
    ptrdiff_t j = 0;
#ifdef FC_TILES
    FC_TILES(FC_TRANSPOSE_TO_PAST)
    FC_TILES(FC_TRANSPOSE_TO)
#endif
    for (; j < columns; j++)
        for (ptrdiff_t i = 0; i < rows; i++)
            to[i][at + j] = from[j * pitch + i];
}
