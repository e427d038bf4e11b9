/* head_avx2.c - the scan of an LM head with VPMADDUBSW.
 *
 * One product pair of a level and a high part reaches 2 * 126 * 127 = 32004: it fills an int16 lane
 * and is widened at once.  Two pairs with low parts fit one lane. */
#include "variants.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>
#define ISA TARGET("avx2")

enum {
    LEVEL_MAX = 2 * TERN_SCAN_ZERO,
    HIGH_PAIR = 2 * LEVEL_MAX * 127,
    LOW_PAIRS = 2 * 2 * LEVEL_MAX * 64,
    CODE_MAX = 3,
    REFINE_LANE = 4 * 2 * CODE_MAX * 127, /* four pairs of a block */
};
_Static_assert(HIGH_PAIR <= INT16_MAX, "one pair of high parts would overflow");
_Static_assert(LOW_PAIRS <= INT16_MAX, "two pairs of low parts would overflow");
_Static_assert(REFINE_LANE <= INT16_MAX, "a block of codes would overflow");

ISA static inline __m256i four_inputs_i8x32(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

/* int32 sums of 8 rows. */
typedef struct sums_i32x8 {
    __m256i high, low;
} sums_i32x8;

ISA static inline void add_half_line(sums_i32x8 *s, const uint8_t *half, __m256i levels,
                                     const int8_t *high, const int8_t *low)
{
    const __m256i nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    const __m256i packed = _mm256_loadu_si256((const __m256i *)half);
    const __m256i a = _mm256_shuffle_epi8(levels, _mm256_and_si256(packed, nibble));
    const __m256i b =
        _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble));
    const __m256i high_a = _mm256_maddubs_epi16(a, four_inputs_i8x32(high));
    const __m256i high_b = _mm256_maddubs_epi16(b, four_inputs_i8x32(high + 4));
    const __m256i low_ab = _mm256_add_epi16(_mm256_maddubs_epi16(a, four_inputs_i8x32(low)),
                                            _mm256_maddubs_epi16(b, four_inputs_i8x32(low + 4)));
    s->high = _mm256_add_epi32(s->high, _mm256_add_epi32(_mm256_madd_epi16(high_a, one),
                                                         _mm256_madd_epi16(high_b, one)));
    s->low = _mm256_add_epi32(s->low, _mm256_madd_epi16(low_ab, one));
}

ISA static inline __m256 add_group(__m256 acc, const sums_i32x8 *s, const uint8_t *scales)
{
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(s->high, 7), s->low);
    const __m256i scale = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)scales));
    return _mm256_add_ps(acc, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_cvtepi32_ps(scale)));
}

ISA void head_scan_avx2(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                        const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)levels));
    const size_t n = x->n_groups;
    for (size_t p = begin; p < end; p++) {
        __m256 acc[2] = { _mm256_setzero_ps(), _mm256_setzero_ps() };
        for (size_t g = 0; g < n; g++) {
            const size_t at = p * n + g;
            const __m256i minus_zero = _mm256_set1_epi32(x->minus_zero[g]);
            sums_i32x8 s[2] = { { _mm256_setzero_si256(), minus_zero },
                                { _mm256_setzero_si256(), minus_zero } };
            for (size_t l = 0; l < SCAN_LINES; l++) {
                const size_t line = at * SCAN_LINES + l;
                const size_t k = g * TERN_SCAN_GROUP + l * TERN_SCAN_LINE_INPUTS;
                const uint8_t *half = codes + line * TERN_LINE_BYTES;
                prefetch_line(codes, line + PREFETCH_LINES);
                add_half_line(&s[0], half, table, x->high + k, x->low + k);
                add_half_line(&s[1], half + 32, table, x->high + k, x->low + k);
            }
            acc[0] = add_group(acc[0], &s[0], scales + at * TERN_SCAN_ROWS);
            acc[1] = add_group(acc[1], &s[1], scales + at * TERN_SCAN_ROWS + 8);
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
