/* kv_avx2.c - two registers hold the sixteen positions of a tile; VPMADDUBSW for the codes.
 *
 * VPMADDUBSW multiplies unsigned by signed bytes and adds two neighbours in int16.  For int8 the
 * query gives its magnitude and hands its sign to the key. */
#include "variants.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>
#define ISA TARGET("avx2,f16c")

_Static_assert(2 * 127 * 127 <= INT16_MAX, "int8: two products would overflow int16");
_Static_assert(4 * 15 * 127 <= INT16_MAX, "int4: four products would overflow int16");

typedef struct v16 {
    __m256 lo, hi;
} v16;
typedef struct i32x16 {
    __m256i lo, hi;
} i32x16;
typedef i32x16 key8;
typedef struct key4 {
    __m256i low[2], high[2]; /* nibbles of positions 0..7 and 8..15 */
} key4;

ISA static inline v16 v16_zero(void)
{
    return (v16){ _mm256_setzero_ps(), _mm256_setzero_ps() };
}

ISA static inline v16 v16_load(const float *p)
{
    return (v16){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) };
}

ISA static inline void v16_store(float *p, v16 v)
{
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}

ISA static inline v16 v16_set1(float x)
{
    return (v16){ _mm256_set1_ps(x), _mm256_set1_ps(x) };
}

ISA static inline v16 v16_mul(v16 a, v16 b)
{
    return (v16){ _mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi) };
}

ISA static inline v16 v16_add(v16 a, v16 b)
{
    return (v16){ _mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi) };
}

ISA static inline v16 v16_sub(v16 a, v16 b)
{
    return (v16){ _mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi) };
}

ISA static inline v16 v16_max(v16 a, v16 b)
{
    return (v16){ _mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi) };
}

ISA static inline v16 v16_min(v16 a, v16 b)
{
    return (v16){ _mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi) };
}

ISA static inline __m256 pow2_f32x8(__m256 n)
{
    const __m256i biased = _mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

/* 2^n for a whole n from -126 to 127 */
ISA static inline v16 v16_pow2(v16 n)
{
    return (v16){ pow2_f32x8(n.lo), pow2_f32x8(n.hi) };
}

ISA static inline v16 v16_keep_from(v16 v, v16 x, float low)
{
    const __m256 lowest = _mm256_set1_ps(low);
    return (v16){ _mm256_and_ps(v.lo, _mm256_cmp_ps(x.lo, lowest, _CMP_GE_OQ)),
                  _mm256_and_ps(v.hi, _mm256_cmp_ps(x.hi, lowest, _CMP_GE_OQ)) };
}

ISA static inline v16 v16_mul_add(v16 acc, v16 a, v16 b)
{
    const v16 product = v16_mul(a, b); /* two roundings: the target has no FMA */
    return (v16){ _mm256_add_ps(acc.lo, product.lo), _mm256_add_ps(acc.hi, product.hi) };
}

ISA static inline v16 v16_from_f16(const uint8_t *p)
{
    const __m128i *halves = (const __m128i *)p;
    return (v16){ _mm256_cvtph_ps(_mm_loadu_si128(halves)),
                  _mm256_cvtph_ps(_mm_loadu_si128(halves + 1)) };
}

ISA static inline v16 v16_from_i32(i32x16 v)
{
    return (v16){ _mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi) };
}

ISA static inline v16 v16_from_i8(const uint8_t *p)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return v16_from_i32((i32x16){ _mm256_cvtepi8_epi32(bytes),
                                  _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)) });
}

ISA static inline v16 v16_from_low_u4(const uint8_t *p)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    const __m128i codes = _mm_and_si128(bytes, _mm_set1_epi8(15));
    return v16_from_i32((i32x16){ _mm256_cvtepu8_epi32(codes),
                                  _mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)) });
}

ISA static inline v16 v16_from_high_u4(const uint8_t *p)
{
    const __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    const __m128i codes = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    return v16_from_i32((i32x16){ _mm256_cvtepu8_epi32(codes),
                                  _mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)) });
}

ISA static inline i32x16 i32x16_zero(void)
{
    return (i32x16){ _mm256_setzero_si256(), _mm256_setzero_si256() };
}

ISA static inline i32x16 i32x16_zero_int8(int32_t sum)
{
    (void)sum;
    return i32x16_zero();
}

ISA static inline key8 load_key8(const uint8_t *p)
{
    const __m256i *bytes = (const __m256i *)p;
    return (key8){ _mm256_loadu_si256(bytes), _mm256_loadu_si256(bytes + 1) };
}

ISA static inline key4 load_key4(const uint8_t *p)
{
    const key8 bytes = load_key8(p);
    const __m256i nibble = _mm256_set1_epi8(15);
    return (key4){ { _mm256_and_si256(bytes.lo, nibble), _mm256_and_si256(bytes.hi, nibble) },
                   { _mm256_and_si256(_mm256_srli_epi16(bytes.lo, 4), nibble),
                     _mm256_and_si256(_mm256_srli_epi16(bytes.hi, 4), nibble) } };
}

ISA static inline __m256i four_codes(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Pairs of int16 to int32, added to the sum. */
ISA static inline __m256i widen(__m256i sum, __m256i pairs)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

ISA static inline i32x16 dot_key8(i32x16 sum, key8 key, const int8_t *query)
{
    const __m256i q = four_codes(query), magnitude = _mm256_abs_epi8(q);
    sum.lo = widen(sum.lo, _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(key.lo, q)));
    sum.hi = widen(sum.hi, _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(key.hi, q)));
    return sum;
}

ISA static inline i32x16 dot_key4(i32x16 sum, key4 key, const int8_t *query)
{
    const __m256i q_low = four_codes(query), q_high = four_codes(query + 4);
    sum.lo = widen(sum.lo, _mm256_add_epi16(_mm256_maddubs_epi16(key.low[0], q_low),
                                            _mm256_maddubs_epi16(key.high[0], q_high)));
    sum.hi = widen(sum.hi, _mm256_add_epi16(_mm256_maddubs_epi16(key.low[1], q_low),
                                            _mm256_maddubs_epi16(key.high[1], q_high)));
    return sum;
}

#include "kv_template.h"

const tern_kv_ops tern_kv_avx2 = KV_OPS;
#endif
