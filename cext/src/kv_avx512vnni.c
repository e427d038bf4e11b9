/* kv_avx512vnni.c - one register holds the sixteen positions of a tile: a vector is a tile's row.
 *
 * VPDPBUSD multiplies unsigned by signed bytes.  int4 codes are unsigned; int8 codes are made so by
 * adding 128, and the sum begins with -128 times the sum of the query's codes. */
#include "variants.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>
#define ISA TARGET("avx512f,avx512bw,avx512vl,avx512vnni")

typedef __m512 v16;
typedef __m512i i32x16;
typedef __m512i key8;
typedef struct key4 {
    __m512i low, high;
} key4;

ISA static inline v16 v16_zero(void)
{
    return _mm512_setzero_ps();
}

ISA static inline v16 v16_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

ISA static inline void v16_store(float *p, v16 v)
{
    _mm512_storeu_ps(p, v);
}

ISA static inline v16 v16_set1(float x)
{
    return _mm512_set1_ps(x);
}

ISA static inline v16 v16_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

ISA static inline v16 v16_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

ISA static inline v16 v16_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

ISA static inline v16 v16_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

ISA static inline v16 v16_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}

/* 2^n for a whole n from -126 to 127 */
ISA static inline v16 v16_pow2(v16 n)
{
    const __m512i biased = _mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

ISA static inline v16 v16_keep_from(v16 v, v16 x, float low)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(low), _CMP_GE_OQ), v);
}

ISA static inline v16 v16_mul_add(v16 acc, v16 a, v16 b)
{
    return _mm512_add_ps(acc, _mm512_mul_ps(a, b)); /* two roundings; contraction is off */
}

ISA static inline v16 v16_from_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

ISA static inline v16 v16_from_i32(i32x16 v)
{
    return _mm512_cvtepi32_ps(v);
}

ISA static inline v16 v16_from_i8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

/* The float of every code, for a permutation that looks at the lowest four bits of its index. */
ISA static inline v16 v16_of_codes(__m512i codes)
{
    const v16 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(codes, table);
}

ISA static inline v16 v16_from_low_u4(const uint8_t *p)
{
    return v16_of_codes(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

ISA static inline v16 v16_from_high_u4(const uint8_t *p)
{
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    return v16_of_codes(_mm512_srli_epi32(bytes, 4));
}

ISA static inline i32x16 i32x16_zero(void)
{
    return _mm512_setzero_si512();
}

ISA static inline i32x16 i32x16_zero_int8(int32_t sum)
{
    return _mm512_set1_epi32(-128 * sum);
}

ISA static inline key8 load_key8(const uint8_t *p)
{
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
}

ISA static inline key4 load_key4(const uint8_t *p)
{
    const __m512i bytes = _mm512_loadu_si512(p), nibble = _mm512_set1_epi8(15);
    return (key4){ _mm512_and_si512(bytes, nibble),
                   _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibble) };
}

ISA static inline __m512i four_codes(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}

ISA static inline i32x16 dot_key8(i32x16 sum, key8 key, const int8_t *query)
{
    return _mm512_dpbusd_epi32(sum, key, four_codes(query));
}

ISA static inline i32x16 dot_key4(i32x16 sum, key4 key, const int8_t *query)
{
    sum = _mm512_dpbusd_epi32(sum, key.low, four_codes(query));
    return _mm512_dpbusd_epi32(sum, key.high, four_codes(query + 4));
}

#include "kv_template.h"

const tern_kv_ops tern_kv_avx512vnni = KV_OPS;
#endif
