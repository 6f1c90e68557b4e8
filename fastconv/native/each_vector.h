/* Includes FC_TEMPLATE once for float and double in vectors of FC_VECTOR_BYTES and of each smaller size down to 16, in
 * which rows that are shorter than the longest vector waste less. What a template sees:
 *
 *   FC_T, FC_INT, FC_UINT element type, and the integers of its size
 *   FC_BYTES, FC_LANES size of a vector, and elements in it
 *   FC_NAME(name)      the name for this type and size: fc_name_f32x16
 *   FC_ELEMENT(name)   the name for this type (elements.h): fc_name_32
 *   FC_MM(op)          on x86 the intrinsic for this type and size: _mm512_op_ps
 *   FC_COMPARE(a, b, how), FC_MASKED_COMPARE(mask, a, b, how), FC_COMPARE_INT(a, b, how), FC_MIN_UINT(a, b), FC_MAX_UINT(a, b),
 *   FC_MASKED_ADD_INT(c, mask, a, b), FC_SHORT_INT(a), FC_MASK
 *                      on AVX-512 what works with masks, and the masks' type
 */
#define FC_PASTE_(a, b, c) a##b##c
#define FC_PASTE(a, b, c) FC_PASTE_(a, b, c)


#define FC_T float
#define FC_ELEMENT(name) fc_##name##_32
#define FC_INT int32_t
#define FC_UINT uint32_t
#define FC_MASK __mmask16
#define FC_MM(op) FC_PASTE(FC_PREFIX, op, _ps)
#define FC_COMPARE FC_PASTE(FC_PREFIX, cmp, _ps_mask)
#define FC_MASKED_COMPARE FC_PASTE(FC_PREFIX, mask_cmp, _ps_mask)
#define FC_COMPARE_INT FC_PASTE(FC_PREFIX, cmp, _epi32_mask)
#define FC_MIN_UINT FC_PASTE(FC_PREFIX, min, _epu32)
#define FC_MAX_UINT FC_PASTE(FC_PREFIX, max, _epu32)
#define FC_MASKED_ADD_INT FC_PASTE(FC_PREFIX, mask_add, _epi32)
#define FC_SHORT_INT FC_PASTE(FC_PREFIX, cvtepi32, _epi16)

#if FC_VECTOR_BYTES >= 64
#define FC_BYTES 64
#define FC_LANES 16
#define FC_PREFIX _mm512_
#define FC_NAME(name) fc_##name##_f32x16
#include FC_TEMPLATE
#undef FC_BYTES
#undef FC_LANES
#undef FC_PREFIX
#undef FC_NAME
#endif
#undef FC_MASK
#define FC_MASK __mmask8
#if FC_VECTOR_BYTES >= 32
#define FC_BYTES 32
#define FC_LANES 8
#define FC_PREFIX _mm256_
#define FC_NAME(name) fc_##name##_f32x8
#include FC_TEMPLATE
#undef FC_BYTES
#undef FC_LANES
#undef FC_PREFIX
#undef FC_NAME
#endif
#define FC_BYTES 16
#define FC_LANES 4
#define FC_PREFIX _mm_
#define FC_NAME(name) fc_##name##_f32x4
#include FC_TEMPLATE
#undef FC_BYTES
#undef FC_LANES
#undef FC_PREFIX
#undef FC_NAME

#undef FC_T
#undef FC_ELEMENT
#undef FC_INT
#undef FC_UINT
#undef FC_MM
#undef FC_COMPARE
#undef FC_MASKED_COMPARE
#undef FC_COMPARE_INT
#undef FC_MIN_UINT
#undef FC_MAX_UINT
#undef FC_MASKED_ADD_INT
#undef FC_SHORT_INT

#define FC_T double
#define FC_ELEMENT(name) fc_##name##_64
#define FC_INT int64_t
#define FC_UINT uint64_t
#define FC_MM(op) FC_PASTE(FC_PREFIX, op, _pd)
#define FC_COMPARE FC_PASTE(FC_PREFIX, cmp, _pd_mask)
#define FC_MASKED_COMPARE FC_PASTE(FC_PREFIX, mask_cmp, _pd_mask)
#define FC_COMPARE_INT FC_PASTE(FC_PREFIX, cmp, _epi64_mask)
#define FC_MIN_UINT FC_PASTE(FC_PREFIX, min, _epu64)
#define FC_MAX_UINT FC_PASTE(FC_PREFIX, max, _epu64)
#define FC_MASKED_ADD_INT FC_PASTE(FC_PREFIX, mask_add, _epi64)
#define FC_SHORT_INT FC_PASTE(FC_PREFIX, cvtepi64, _epi16)

#if FC_VECTOR_BYTES >= 64
#define FC_BYTES 64
#define FC_LANES 8
#define FC_PREFIX _mm512_
#define FC_NAME(name) fc_##name##_f64x8
#include FC_TEMPLATE
#undef FC_BYTES
#undef FC_LANES
#undef FC_PREFIX
#undef FC_NAME
#endif
#if FC_VECTOR_BYTES >= 32
#define FC_BYTES 32
#define FC_LANES 4
#define FC_PREFIX _mm256_
#define FC_NAME(name) fc_##name##_f64x4
#include FC_TEMPLATE
#undef FC_BYTES
#undef FC_LANES
#undef FC_PREFIX
#undef FC_NAME
#endif
#define FC_BYTES 16
#define FC_LANES 2
#define FC_PREFIX _mm_
#define FC_NAME(name) fc_##name##_f64x2
#include FC_TEMPLATE
#undef FC_BYTES
#undef FC_LANES
#undef FC_PREFIX
#undef FC_NAME

#undef FC_T
#undef FC_ELEMENT
#undef FC_INT
#undef FC_UINT
#undef FC_MASK
#undef FC_MM
#undef FC_COMPARE
#undef FC_MASKED_COMPARE
#undef FC_COMPARE_INT
#undef FC_MIN_UINT
#undef FC_MAX_UINT
#undef FC_MASKED_ADD_INT
#undef FC_SHORT_INT
#undef FC_PASTE
#undef FC_PASTE_
#undef FC_TEMPLATE
