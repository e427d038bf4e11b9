/* avx512vnni.c - the table of the AVX-512 variant, and its float ops.
 *
 * The contract's 16 partial sums are exactly one register; no FMA, as everywhere. */
#include "variants.h"
#if defined(__x86_64__)
#include "avx512vnni.h"

/* Rows at a time: independent chains hide the latency of the additions. */
enum { DOT_ROWS = 8 };

/* 16 elements of a row from element i on, or the first `mask` of them and zeros. */
typedef __m512 load_fn(const void *row, size_t i, __mmask16 mask);

ISA static inline __m512 load_f16x16(const void *row, size_t i, __mmask16 mask)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)row + i));
}

ISA static inline __m512 load_f32x16(const void *row, size_t i, __mmask16 mask)
{
    return _mm512_maskz_loadu_ps(mask, (const float *)row + i);
}

ISA static inline __m512 mul_add(__m512 acc, __m512 a, __m512 b)
{
    return _mm512_add_ps(acc, _mm512_mul_ps(a, b)); /* two roundings */
}

/* dot_tree in registers. */
ISA static inline float tree(__m512 lanes)
{
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(lanes), 1));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* Rows are read side by side, which no prefetcher follows as one stream: ask for the group of rows
 * after this one, line by line and into the second-level cache, while this one is computed. */
ISA static inline void prefetch_group(const uint8_t *rows, size_t group_bytes, size_t at, size_t step)
{
    for (size_t b = 0; b < step; b += TERN_LINE_BYTES)
        _mm_prefetch((const char *)((uintptr_t)rows + group_bytes + at + b), _MM_HINT_T1);
}

ISA static inline __attribute__((always_inline)) void dot_rows(const uint8_t *rows, size_t row_bytes,
                                                               size_t element, size_t count,
                                                               load_fn *load, const float *x,
                                                               size_t n, float *y)
{
    __m512 acc[DOT_ROWS];
    size_t i = 0;
    for (size_t j = 0; j < count; j++) acc[j] = _mm512_setzero_ps();
    for (; i + DOT_LANES <= n; i += DOT_LANES) {
        const __m512 x_f32x16 = _mm512_loadu_ps(x + i);
        if (count == DOT_ROWS)
            prefetch_group(rows, count * row_bytes, i * count * element, DOT_LANES * count * element);
        for (size_t j = 0; j < count; j++)
            acc[j] = mul_add(acc[j], load(rows + j * row_bytes, i, 0xffff), x_f32x16);
    }
    if (i < n) { /* lanes beyond the end keep their sum: a + 0 * 0 could turn -0 into +0 */
        const __mmask16 mask = (__mmask16)((1u << (n - i)) - 1);
        const __m512 x_f32x16 = _mm512_maskz_loadu_ps(mask, x + i);
        for (size_t j = 0; j < count; j++)
            acc[j] = _mm512_mask_add_ps(
                acc[j], mask, acc[j],
                _mm512_mul_ps(load(rows + j * row_bytes, i, mask), x_f32x16));
    }
    for (size_t j = 0; j < count; j++) y[j] = tree(acc[j]);
}

ISA static inline __attribute__((always_inline)) void dot_all(const void *rows, size_t element,
                                                              size_t n_rows, size_t n, load_fn *load,
                                                              const float *x, float *y)
{
    const size_t row_bytes = n * element;
    const uint8_t *at = rows;
    size_t r = 0;
    for (; r + DOT_ROWS <= n_rows; r += DOT_ROWS)
        dot_rows(at + r * row_bytes, row_bytes, element, DOT_ROWS, load, x, n, y + r);
    for (; r < n_rows; r++)
        dot_rows(at + r * row_bytes, row_bytes, element, 1, load, x, n, y + r);
}

ISA static void dot_f16_avx512vnni(const uint16_t *rows, size_t n_rows, size_t n, const float *x,
                                   float *y)
{
    dot_all(rows, sizeof *rows, n_rows, n, load_f16x16, x, y);
}

ISA static void dot_f32_avx512vnni(const float *rows, size_t n_rows, size_t n, const float *x,
                                   float *y)
{
    dot_all(rows, sizeof *rows, n_rows, n, load_f32x16, x, y);
}

/* Columns in strips of 64, so that the sums stay in registers over all rows. */
ISA static void mix_f32_avx512vnni(const float *rows, size_t n_rows, size_t n, const float *w,
                                   float *y)
{
    enum { STRIP = 4 };
    for (size_t i = 0; i < n; i += STRIP * DOT_LANES) {
        __m512 acc[STRIP];
        __mmask16 mask[STRIP];
        for (size_t j = 0; j < STRIP; j++) {
            const size_t at = i + j * DOT_LANES, left = at < n ? n - at : 0;
            acc[j] = _mm512_setzero_ps();
            mask[j] = (__mmask16)(left >= DOT_LANES ? 0xffffu : (1u << left) - 1);
        }
        for (size_t r = 0; r < n_rows; r++) {
            const __m512 weight = _mm512_set1_ps(w[r]);
            for (size_t j = 0; j < STRIP; j++)
                acc[j] = mul_add(acc[j], weight,
                                 _mm512_maskz_loadu_ps(mask[j], rows + r * n + i + j * DOT_LANES));
        }
        for (size_t j = 0; j < STRIP; j++)
            _mm512_mask_storeu_ps(y + i + j * DOT_LANES, mask[j], acc[j]);
    }
}

const tern_kernels tern_avx512vnni = {
    .name = "avx512vnni",
    .needs = TERN_CPU_AVX512VNNI,
    .gemv_rows = { gemv_rows_2bit_avx512vnni, gemv_rows_base3_avx512vnni },
    .gemv_cols = gemv_cols_avx512vnni,
    .gemv_tiles = gemv_tiles_avx512vnni,
    .gemv_channels = gemv_channels_avx512vnni,
    .gemv_binary = gemv_binary_avx512vnni,
    .gemv_int8 = gemv_int8_avx512vnni,
    .gemm_rows = { gemm_rows_2bit_avx512vnni, gemm_rows_base3_avx512vnni },
    .gemm_cols = gemm_cols_avx512vnni,
    .gemm_tiles = gemm_tiles_avx512vnni,
    .gemm_channels = gemm_channels_avx512vnni,
    .gemm_live = gemm_live_avx512vnni,
    .gemm_open = gemm_open_avx512vnni,
    .dot_f16 = dot_f16_avx512vnni,
    .dot_f32 = dot_f32_avx512vnni,
    .mix_f32 = mix_f32_avx512vnni,
    .kv = &tern_kv_avx512vnni,
    .scan = head_scan_avx512vnni,
    .refine = head_refine_avx512vnni,
};
#endif
