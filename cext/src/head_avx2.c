/* head_avx2.c - the scan of an LM head with VPMADDUBSW.
 *
 * One product pair of a level and an input reaches 2 * 126 * 127 = 32004: it fills an int16 lane and is
 * widened at once. */
#include "variants.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>
#define ISA TARGET("avx2")

enum {
    LEVEL_MAX = 2 * TERN_SCAN_ZERO,
    PAIR = 2 * LEVEL_MAX * TERN_SCAN_X_MAX,
    CODE_MAX = 3,
    REFINE_LANE = 4 * 2 * CODE_MAX * 127, /* four pairs of a block */
};
_Static_assert(PAIR <= INT16_MAX, "a pair of products would overflow");
_Static_assert(REFINE_LANE <= INT16_MAX, "a block of codes would overflow");

ISA static inline __m256i four_inputs_i8x32(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

/* The 32 levels; VPSHUFB looks 16 up. */
typedef struct level_tables {
    __m256i lower_u8x32, upper_u8x32;
} level_tables;

ISA static inline level_tables load_levels(const uint8_t *levels)
{
    const __m128i *at = (const __m128i *)levels;
    return (level_tables){ _mm256_broadcastsi128_si256(_mm_loadu_si128(at)),
                           _mm256_broadcastsi128_si256(_mm_loadu_si128(at + 1)) };
}

/* Levels of codes: a nibble a byte, the fifth bits at bit 7 of `fifth`. */
ISA static inline __m256i levels_u8x32(level_tables t, __m256i nibbles, __m256i fifth)
{
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(t.lower_u8x32, nibbles),
                              _mm256_shuffle_epi8(t.upper_u8x32, nibbles), fifth);
}

ISA static inline __m256i dot_i32x8(__m256i acc, __m256i level, const int8_t *q)
{
    const __m256i pairs = _mm256_maddubs_epi16(level, four_inputs_i8x32(q));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* int32 sums of 8 rows over one group; `half` is the first or the second half of its first line. */
ISA static inline __m256i group_i32x8(const uint8_t *half, level_tables t, const int8_t *q,
                                      int32_t minus_zero)
{
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i fifth = _mm256_loadu_si256(
        (const __m256i *)(half + SCAN_NIBBLE_LINES * TERN_LINE_BYTES));
    __m256i acc = _mm256_set1_epi32(minus_zero);
    for (int l = 0; l < SCAN_NIBBLE_LINES; l++, half += TERN_LINE_BYTES, q += TERN_SCAN_LINE_INPUTS) {
        const __m256i packed = _mm256_loadu_si256((const __m256i *)half);
        const __m256i low = _mm256_and_si256(packed, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
        acc = dot_i32x8(acc, levels_u8x32(t, low, _mm256_slli_epi16(fifth, 7 - 2 * l)), q);
        acc = dot_i32x8(acc, levels_u8x32(t, high, _mm256_slli_epi16(fifth, 6 - 2 * l)), q + 4);
    }
    return acc;
}

ISA static inline __m256 add_group(__m256 acc, __m256i sum, const uint8_t *scales, float unit)
{
    const __m256i scale = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)scales));
    const __m256 term = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_cvtepi32_ps(scale));
    return _mm256_add_ps(acc, _mm256_mul_ps(term, _mm256_set1_ps(unit)));
}

ISA void head_scan_avx2(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                        const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    const level_tables t = load_levels(levels);
    const size_t n = x->n_groups;
    for (size_t p = begin; p < end; p++) {
        __m256 acc[2] = { _mm256_setzero_ps(), _mm256_setzero_ps() };
        for (size_t g = 0; g < n; g++) {
            const size_t at = p * n + g;
            const uint8_t *group = codes + at * SCAN_GROUP_BYTES;
            const int8_t *q = x->q + g * TERN_SCAN_GROUP;
            for (size_t l = 0; l < TERN_SCAN_LINES; l++) prefetch_line(group, PREFETCH_LINES + l);
            for (size_t h = 0; h < 2; h++)
                acc[h] = add_group(acc[h], group_i32x8(group + 32 * h, t, q, x->minus_zero[g]),
                                   scales + at * TERN_SCAN_ROWS + 8 * h, x->unit[g]);
        }
        _mm256_storeu_ps(y + p * TERN_SCAN_ROWS, acc[0]);
        _mm256_storeu_ps(y + p * TERN_SCAN_ROWS + 8, acc[1]);
    }
}

ISA static inline __m256i refine_half_i32x8(const uint8_t *half, const int8_t *high)
{
    const __m256i packed = _mm256_loadu_si256((const __m256i *)half);
    const __m256i three = _mm256_set1_epi8(3);
    __m256i acc = _mm256_setzero_si256();
    for (int s = 0; s < 4; s++) {
        const __m256i code = _mm256_and_si256(_mm256_srli_epi16(packed, 2 * s), three);
        const __m256i x = _mm256_loadu_si256((const __m256i *)(high + 64 * s));
        acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(code, x));
    }
    return _mm256_madd_epi16(acc, _mm256_set1_epi16(1));
}

ISA static int32_t refine_row(const uint8_t *row, const int8_t *high, size_t n_blocks)
{
    __m256i acc = _mm256_setzero_si256();
    for (size_t b = 0; b < n_blocks; b++, row += TERN_LINE_BYTES, high += TERN_REFINE_BLOCK)
        acc = _mm256_add_epi32(acc, _mm256_add_epi32(refine_half_i32x8(row, high),
                                                     refine_half_i32x8(row + 32, high + 32)));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(acc), _mm256_extracti128_si256(acc, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

ISA void head_refine_avx2(const uint8_t *plane, const int8_t *high, size_t n_blocks,
                          const uint32_t *rows, size_t n, int32_t *y)
{
    for (size_t i = 0; i < n; i++) {
        const size_t next = i + REFINE_ROWS_AHEAD < n ? i + REFINE_ROWS_AHEAD : n - 1;
        for (size_t b = 0; b < n_blocks; b++) prefetch_line(plane, rows[next] * n_blocks + b);
        y[i] = refine_row(plane + rows[i] * n_blocks * TERN_LINE_BYTES, high, n_blocks);
    }
}
#endif
