/* avx2.h - private: what the files of the AVX2 variant share. */
#ifndef AVX2_H
#define AVX2_H

#include "variants.h"
#include <immintrin.h>
#include <string.h>

#define ISA TARGET("avx2,f16c")

/* VPMADDUBSW adds 2 products of a code of at most 2 and an activation of at most TERN_X_MAX. */
enum { PAIR_MAX = 2 * 2 * TERN_X_MAX };

ISA static inline __m256i load_u8x32(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

ISA static inline int32_t hsum_i32x8(__m256i v)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* y[0..7] += v. */
ISA static inline void add_i16x8(int32_t *y, __m128i v)
{
    const __m256i sum = _mm256_add_epi32(load_u8x32(y), _mm256_cvtepi16_epi32(v));
    _mm256_storeu_si256((__m256i *)y, sum);
}

/* base3_avx2.c */
extern tern_gemv_rows_fn gemv_rows_base3_avx2;
extern tern_gemv_tiles_fn gemv_tiles_avx2;
extern tern_gemv_channels_fn gemv_channels_avx2;

#endif
