/* head_avx512vnni.c - the scan of an LM head with VPDPBUSD.
 *
 * A 64-byte line is 16 rows by 4 + 4 inputs: VPERMB turns codes into levels, and each int32 lane of
 * VPDPBUSD is a row, so that nothing is ever summed across lanes. */
#include "variants.h"
#if defined(__x86_64__)
#include "avx512vnni.h"

/* The hardware prefetcher follows the stream of codes best when nobody else asks for it; the thin stream of
 * scales beside it needs help: 20 GB/s without, 27 with it, and 19 to 23 where codes are asked for too. */
enum { SCALES_AHEAD = 80 * TERN_SCAN_ROWS, GROUPS_A_LINE = TERN_LINE_BYTES / TERN_SCAN_ROWS };

/* Levels of half a line: low nibbles of `nibbles`, fifth bits at bit 4 of `fifth`.  VPERMB looks at six
 * bits, so the table holds the 32 levels twice and whatever lies at bit 5 does not count. */
ISA static inline __m512i levels_u8x64(__m512i table, __m512i nibbles, __m512i fifth)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    enum { A_WHERE_C_ELSE_B = 0xe4 }; /* bits of (a, b, c): c ? a : b */
    return _mm512_permutexvar_epi8(
        _mm512_ternarylogic_epi32(nibbles, fifth, nibble, A_WHERE_C_ELSE_B), table);
}

/* One line; `fifth` has the bits of its low nibbles at bit 4 and those of its high ones at bit 5. */
#define ADD_LINE(l, fifth)                                                                         \
    {                                                                                              \
        const __m512i packed = load_u8x64(group + (l) * TERN_LINE_BYTES), bits = fifth;            \
        const __m512i a = levels_u8x64(table, packed, bits);                                       \
        const __m512i b = levels_u8x64(table, _mm512_srli_epi16(packed, 4),                        \
                                       _mm512_srli_epi16(bits, 1));                                \
        even = dot_i32x16(even, a, broadcast_x(q + 8 * (l)));                                      \
        odd = dot_i32x16(odd, b, broadcast_x(q + 8 * (l) + 4));                                    \
    }

/* Sums of one group for 16 rows.  Two chains of VPDPBUSD, and those of the next group, hide its latency. */
ISA static inline __m512i group_i32x16(const uint8_t *group, __m512i table, const int8_t *q,
                                       int32_t minus_zero)
{
    const __m512i fifth = load_u8x64(group + SCAN_NIBBLE_LINES * TERN_LINE_BYTES);
    __m512i even = _mm512_set1_epi32(minus_zero), odd = _mm512_setzero_si512();
    ADD_LINE(0, _mm512_slli_epi16(fifth, 4))
    ADD_LINE(1, _mm512_slli_epi16(fifth, 2))
    ADD_LINE(2, fifth)
    ADD_LINE(3, _mm512_srli_epi16(fifth, 2))
    return _mm512_add_epi32(even, odd);
}

ISA void head_scan_avx512vnni(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                              const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    const __m512i table =
        _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)levels));
    const size_t n = x->n_groups;
    for (size_t p = begin; p < end; p++) {
        __m512 acc = _mm512_setzero_ps();
        for (size_t g = 0; g < n; g++) {
            const size_t at = p * n + g;
            const uint8_t *group_scales = scales + at * TERN_SCAN_ROWS;
            if (g % GROUPS_A_LINE == 0)
                _mm_prefetch((const char *)((uintptr_t)group_scales + SCALES_AHEAD), _MM_HINT_T1);
            const __m512i sum = group_i32x16(codes + at * SCAN_GROUP_BYTES, table,
                                             x->q + g * TERN_SCAN_GROUP, x->minus_zero[g]);
            const __m512i scale =
                _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)group_scales));
            const __m512 term = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_cvtepi32_ps(scale));
            acc = _mm512_add_ps(acc, _mm512_mul_ps(term, _mm512_set1_ps(x->unit[g])));
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

/* Into the second level: it takes more at once. */
ISA static inline void prefetch_row(const uint8_t *plane, size_t first_line, size_t n_lines)
{
    for (size_t b = 0; b < n_lines; b++)
        _mm_prefetch((const char *)plane + (first_line + b) * TERN_LINE_BYTES, _MM_HINT_T1);
}

ISA void head_refine_avx512vnni(const uint8_t *plane, const int8_t *high, size_t n_blocks,
                                const uint32_t *rows, size_t n, int32_t *y)
{
    for (size_t i = 0; i < n && i < REFINE_ROWS_AHEAD; i++)
        prefetch_row(plane, rows[i] * n_blocks, n_blocks);
    for (size_t i = 0; i < n; i++) {
        if (i + REFINE_ROWS_AHEAD < n)
            prefetch_row(plane, rows[i + REFINE_ROWS_AHEAD] * n_blocks, n_blocks);
        y[i] = refine_row(plane + rows[i] * n_blocks * TERN_LINE_BYTES, high, n_blocks);
    }
}
#endif
