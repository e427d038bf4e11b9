/* gemv_rows_avx512vnni.c - rows with VPDPBUSD: a stream of them, or those of a list (row_list.h).
 *
 * Fields are masked, never shifted, as in gemv_avx512vnni.c: 4 mod 81, one VPERMI2B, 4 masks, one
 * subtraction, 5 VPDPBUSD and 5 loads of activations for the 320 weights of a line. */
#include "variants.h"
#if defined(__x86_64__)
#include "avx512vnni.h"
#include "row_list.h"

/* The codes of one row against x, 16 partial sums. */
typedef __m512i row_dot_fn(const uint8_t *row, const int8_t *x, size_t n_bytes, base3_tables t);

#define FIELD_DOT(f, bytes, x) acc##f = dot_i32x16(acc##f, bytes, load_u8x64(x))

/* Two blocks of 32 bytes at a time: byte j of the pair belongs to channel 128 (j / 32) + j % 32 of
 * field 0, so x comes from two places. */
ISA static inline __m512i x_pair(const int8_t *x)
{
    const __m256i low = _mm256_loadu_si256((const __m256i *)x);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low),
                              _mm256_loadu_si256((const __m256i *)(x + TERN_BLOCK)), 1);
}

ISA static inline __m512i row_dot_2bit(const uint8_t *row, const int8_t *x, size_t n_bytes,
                                       base3_tables t)
{
    (void)t;
    __m512i acc[FIELDS_2BIT] = { 0 };
    for (; n_bytes; row += 64, x += 2 * TERN_BLOCK) {
        const size_t here = n_bytes < 64 ? n_bytes : 64;
        const __mmask64 mask = here == 64 ? ~0ull : (1ull << here) - 1;
        const __m512i codes = _mm512_maskz_loadu_epi8(mask, row);
#pragma GCC unroll 4
        for (int f = 0; f < FIELDS_2BIT; f++) {
            const __m512i x_i8x64 =
                here == 64 ? x_pair(x + 32 * f) : _mm512_maskz_loadu_epi8(mask, x + 32 * f);
            acc[f] = dot_i32x16(acc[f], _mm512_and_si512(codes, CODE_MASK(f)), x_i8x64);
        }
        n_bytes -= here;
    }
    return sum_of_fields(acc[0], acc[1], acc[2], acc[3], _mm512_setzero_si512());
}

/* Fields meet different x here, so every one needs its mask; v - v mod 81 is 81 c4. */
ISA static inline __m512i row_dot_base3(const uint8_t *row, const int8_t *x, size_t n_bytes,
                                        base3_tables t)
{
    __m512i acc0 = _mm512_setzero_si512(), acc1 = acc0, acc2 = acc0, acc3 = acc0, acc4 = acc0;
    for (const uint8_t *end = row + n_bytes; row < end; row += TERN_LINE_BYTES, x += TERN_BLOCK3) {
        const __m512i bytes = load_u8x64(row), r = mod81_u8x64(bytes);
        const __m512i codes = low_codes_u8x64(t, r);
        FIELD_DOT(0, _mm512_and_si512(codes, CODE_MASK(0)), x);
        FIELD_DOT(1, _mm512_and_si512(codes, CODE_MASK(1)), x + 64);
        FIELD_DOT(2, _mm512_and_si512(codes, CODE_MASK(2)), x + 128);
        FIELD_DOT(3, _mm512_and_si512(codes, CODE_MASK(3)), x + 192);
        FIELD_DOT(4, _mm512_sub_epi8(bytes, r), x + 256);
    }
    return sum_of_fields(acc0, acc1, acc2, acc3, divide_81(acc4));
}

enum { ROWS_AHEAD = 32, ROWS_AT_ONCE = 4 };

/* y of up to ROWS_AT_ONCE rows, from their partial sums. */
ISA static inline void store_sums(const __m512i s[ROWS_AT_ONCE], int32_t minus, const size_t *r,
                                  size_t n, int32_t *y)
{
    int32_t sums[ROWS_AT_ONCE];
    _mm_storeu_si128((__m128i *)sums, _mm_sub_epi32(hsum4_i32x4(s), _mm_set1_epi32(minus)));
    for (size_t j = 0; j < ROWS_AT_ONCE && j < n; j++) y[r[j]] = sums[j];
}

ISA static inline __attribute__((always_inline)) void
multiply_list(row_dot_fn *dot, const row_list *l, const tern_act *a, int32_t *y, size_t begin)
{
    _Alignas(TERN_LINE_BYTES) uint8_t copy[LIST_GROUP_BYTES];
    const size_t row_bytes = l->n_lines * TERN_LINE_BYTES;
    const base3_tables t = load_base3_tables();
    ask_for_first(l, begin);
    for (size_t group = begin; group < l->end; group += LIST_ROWS) {
        const uint8_t *ahead[LIST_ROWS];
        find_group(l, group + LIST_AHEAD, ahead);
        copy_group(l, group, copy);
        for (size_t i = 0; i < LIST_ROWS && group + i < l->end; i += ROWS_AT_ONCE) {
            const size_t here = l->end - group - i;
            size_t r[ROWS_AT_ONCE];
            __m512i s[ROWS_AT_ONCE];
            for (size_t j = 0; j < ROWS_AT_ONCE; j++) {
                ask_for_part(ahead, l->n_lines, i + j);
                r[j] = l->rows[group + i + (j < here ? j : here - 1)];
                s[j] = dot(copy + (i + j) * row_bytes, a->x, row_bytes, t);
            }
            store_sums(s, a->sum, r, here, y);
        }
    }
}

/* The four rows that lie 32 behind row r. */
ISA ASKS prefetch_stream(const uint8_t *plane, size_t row_bytes, size_t r)
{
    const uintptr_t at = (uintptr_t)plane + (r + ROWS_AHEAD) * row_bytes;
    for (size_t b = 0; b < ROWS_AT_ONCE * row_bytes; b += TERN_LINE_BYTES)
        _mm_prefetch((const char *)(at + b), _MM_HINT_T1);
}

ISA static inline __attribute__((always_inline)) void
gemv_rows(tern_packing packing, row_dot_fn *dot, const uint8_t *plane, const tern_act *a, int32_t *y,
          const uint32_t *rows, size_t begin, size_t end)
{
    const size_t row_bytes = tern_row_bytes(packing, a->n);
    const base3_tables t = load_base3_tables();
    if (is_row_list(row_bytes, rows, begin, end)) {
        const row_list l = { plane, row_bytes / TERN_LINE_BYTES, rows, end };
        multiply_list(dot, &l, a, y, begin);
        return;
    }
    for (size_t i = begin; i < end; i += ROWS_AT_ONCE) {
        size_t r[ROWS_AT_ONCE];
        __m512i s[ROWS_AT_ONCE];
        prefetch_stream(plane, row_bytes, rows ? rows[i] : i);
        for (size_t j = 0; j < ROWS_AT_ONCE; j++) {
            const size_t at = i + j < end ? i + j : end - 1;
            r[j] = rows ? rows[at] : at;
            s[j] = dot(plane + r[j] * row_bytes, a->x, row_bytes, t);
        }
        store_sums(s, a->sum, r, end - i, y);
    }
}

void ISA gemv_rows_2bit_avx512vnni(const uint8_t *plane, const tern_act *a, int32_t *y,
                                   const uint32_t *rows, size_t begin, size_t end)
{
    gemv_rows(TERN_2BIT, row_dot_2bit, plane, a, y, rows, begin, end);
}

void ISA gemv_rows_base3_avx512vnni(const uint8_t *plane, const tern_act *a, int32_t *y,
                                    const uint32_t *rows, size_t begin, size_t end)
{
    gemv_rows(TERN_BASE3, row_dot_base3, plane, a, y, rows, begin, end);
}
#endif
