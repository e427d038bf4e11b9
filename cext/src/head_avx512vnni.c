/* head_avx512vnni.c - the scan of an LM head with VPDPBUSD.
 *
 * A 64-byte line is 16 rows by 4 + 4 inputs: VPSHUFB turns its nibbles into levels, and each int32
 * lane of VPDPBUSD is a row, so that nothing is ever summed across lanes. */
#include "variants.h"
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>
#define ISA TARGET("avx512f,avx512bw,avx512vl,avx512vnni")

enum { SCAN_BYTES_AHEAD = 4096 }; /* of the stream of lines */

ISA static inline __m512i four_inputs_i8x64(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

/* Sums of one group for 16 rows.  Four chains of VPDPBUSD hide its latency. */
ISA static inline __m512i group_i32x16(const uint8_t *group, __m512i levels, const int8_t *high,
                                       const int8_t *low, int32_t minus_zero)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i high_a = _mm512_setzero_si512(), high_b = high_a, low_b = high_a;
    __m512i low_a = _mm512_set1_epi32(minus_zero);
    for (size_t l = 0; l < SCAN_LINES; l++) {
        const size_t k = l * TERN_SCAN_LINE_INPUTS;
        const uint8_t *line = group + l * TERN_LINE_BYTES;
        const __m512i packed = _mm512_loadu_si512(line);
        _mm_prefetch((const char *)((uintptr_t)line + SCAN_BYTES_AHEAD), _MM_HINT_T0);
        const __m512i a = _mm512_shuffle_epi8(levels, _mm512_and_si512(packed, nibble));
        const __m512i b = _mm512_shuffle_epi8(
            levels, _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble));
        high_a = _mm512_dpbusd_epi32(high_a, a, four_inputs_i8x64(high + k));
        low_a = _mm512_dpbusd_epi32(low_a, a, four_inputs_i8x64(low + k));
        high_b = _mm512_dpbusd_epi32(high_b, b, four_inputs_i8x64(high + k + 4));
        low_b = _mm512_dpbusd_epi32(low_b, b, four_inputs_i8x64(low + k + 4));
    }
    const __m512i high_sum = _mm512_slli_epi32(_mm512_add_epi32(high_a, high_b), 7);
    return _mm512_add_epi32(high_sum, _mm512_add_epi32(low_a, low_b));
}

ISA void head_scan_avx512vnni(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                              const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)levels));
    const size_t n = x->n_groups;
    for (size_t p = begin; p < end; p++) {
        __m512 acc = _mm512_setzero_ps();
        for (size_t g = 0; g < n; g++) {
            const size_t at = p * n + g, k = g * TERN_SCAN_GROUP;
            const __m512i sum = group_i32x16(codes + at * SCAN_LINES * TERN_LINE_BYTES, table,
                                             x->high + k, x->low + k, x->minus_zero[g]);
            const __m512i scale = _mm512_cvtepu8_epi32(
                _mm_loadu_si128((const __m128i *)(scales + at * TERN_SCAN_ROWS)));
            acc = _mm512_add_ps(acc, _mm512_mul_ps(_mm512_cvtepi32_ps(sum),
                                                   _mm512_cvtepi32_ps(scale)));
        }
        _mm512_storeu_ps(y + p * TERN_SCAN_ROWS, acc);
    }
}

ISA static inline __m512i codes_u8x64(__m512i packed, int shift)
{
    return _mm512_and_si512(_mm512_srli_epi16(packed, shift), _mm512_set1_epi8(3));
}

ISA static int32_t refine_row(const uint8_t *row, const int8_t *high, size_t n_blocks)
{
    __m512i acc[4];
    for (int s = 0; s < 4; s++) acc[s] = _mm512_setzero_si512();
    for (size_t b = 0; b < n_blocks; b++, high += TERN_REFINE_BLOCK) {
        const __m512i packed = _mm512_loadu_si512(row + b * TERN_LINE_BYTES);
        for (int s = 0; s < 4; s++)
            acc[s] = _mm512_dpbusd_epi32(acc[s], codes_u8x64(packed, 2 * s),
                                         _mm512_loadu_si512(high + 64 * s));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_add_epi32(acc[0], acc[1]),
                                                    _mm512_add_epi32(acc[2], acc[3])));
}

ISA void head_refine_avx512vnni(const uint8_t *plane, const int8_t *high, size_t n_blocks,
                                const uint32_t *rows, size_t n, int32_t *y)
{
    for (size_t i = 0; i < n; i++) {
        const size_t next = i + REFINE_ROWS_AHEAD < n ? i + REFINE_ROWS_AHEAD : n - 1;
        const uint8_t *ahead = plane + rows[next] * n_blocks * TERN_LINE_BYTES;
        for (size_t b = 0; b < n_blocks; b++) /* into the second level: it takes more at once */
            _mm_prefetch((const char *)ahead + b * TERN_LINE_BYTES, _MM_HINT_T1);
        y[i] = refine_row(plane + rows[i] * n_blocks * TERN_LINE_BYTES, high, n_blocks);
    }
}
#endif
