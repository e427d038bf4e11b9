/* formats_avx512vnni.c - one bit and eight bits a weight: what ternary is compared with, made with
 * the same care.  Tiles, as in gemv_avx512vnni.c: one sequential stream, a lane is an output.
 *
 *   vector instructions for 64 bytes (Zen 4: two of 512 bits a cycle)
 *   binary   7 masks + 8 VPDPBUSD    15 for 512 weights
 *   int8     1 VPDPBUSD               1 for 64 weights: memory decides */
#include "variants.h"
#if defined(__x86_64__)
#include "avx512vnni.h"

enum {
    FIELDS_BINARY = 8,
    INT8_CHAINS = 4, /* VPDPBUSD has a latency of four cycles */
};

/* ---- binary ---- */

/* acc[f] += code << f times x; the last field is summed with all the others. */
ISA static inline __attribute__((always_inline)) void add_binary(__m512i acc[FIELDS_BINARY],
                                                                 const uint8_t *tile,
                                                                 const int8_t *x)
{
    const __m512i x_i8x64 = broadcast_x(x), v = load_u8x64(tile);
#pragma GCC unroll 8
    for (int f = 0; f < FIELDS_BINARY - 1; f++)
        acc[f] = _mm512_dpbusd_epi32(
            acc[f], _mm512_and_si512(v, _mm512_set1_epi8((char)(1 << f))), x_i8x64);
    acc[FIELDS_BINARY - 1] = _mm512_dpbusd_epi32(acc[FIELDS_BINARY - 1], v, x_i8x64);
}

/* y = 2 * sum code * x - sum x. */
ISA static inline void store_binary(__m512i acc[FIELDS_BINARY], int32_t sum, int32_t *y)
{
    const __m512i sum_i32x16 = _mm512_set1_epi32(sum);
    for (int f = 0; f < FIELDS_BINARY - 1; f++)
        acc[FIELDS_BINARY - 1] = _mm512_sub_epi32(acc[FIELDS_BINARY - 1], acc[f]);
    for (unsigned f = 0; f < FIELDS_BINARY; f++) {
        const __m512i codes = _mm512_srai_epi32(acc[f], f);
        _mm512_storeu_si512(y + 16 * f,
                            _mm512_sub_epi32(_mm512_slli_epi32(codes, 1), sum_i32x16));
    }
}

ISA static void panel_binary(const uint8_t *tile, const tern_act *a, int32_t *y)
{
    const size_t n_tiles = (a->n + QUAD - 1) / QUAD;
    __m512i acc[FIELDS_BINARY];
    for (int f = 0; f < FIELDS_BINARY; f++) acc[f] = _mm512_setzero_si512();
    for (size_t q = 0; q < n_tiles; q++, tile += TERN_LINE_BYTES)
        add_binary(acc, tile, a->x + q * QUAD);
    store_binary(acc, a->sum, y);
}

void ISA gemv_binary_avx512vnni(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                                size_t end)
{
    const size_t panel_bytes = (a->n + QUAD - 1) / QUAD * TERN_LINE_BYTES;
    for (size_t p = begin; p < end; p++)
        panel_binary(plane + p * panel_bytes, a, y + p * TERN_BINARY_OUTPUTS);
}

/* ---- int8 ---- */

ISA static inline __m512i add_int8(__m512i acc, const uint8_t *tile, const int8_t *x)
{
    return _mm512_dpbusd_epi32(acc, load_u8x64(tile), broadcast_x(x));
}

ISA static void panel_int8(const uint8_t *tile, const tern_act *a, int32_t *y)
{
    const size_t n_tiles = (a->n + QUAD - 1) / QUAD;
    __m512i acc[INT8_CHAINS];
    for (int c = 0; c < INT8_CHAINS; c++) acc[c] = _mm512_setzero_si512();
    size_t q = 0;
    for (; q + INT8_CHAINS <= n_tiles; q += INT8_CHAINS)
#pragma GCC unroll 4
        for (size_t c = 0; c < INT8_CHAINS; c++, tile += TERN_LINE_BYTES)
            acc[c] = add_int8(acc[c], tile, a->x + (q + c) * QUAD);
    for (; q < n_tiles; q++, tile += TERN_LINE_BYTES)
        acc[0] = add_int8(acc[0], tile, a->x + q * QUAD);
    const __m512i even = _mm512_add_epi32(acc[0], acc[2]), odd = _mm512_add_epi32(acc[1], acc[3]);
    const __m512i zero = _mm512_set1_epi32(TERN_INT8_ZERO * a->sum);
    _mm512_storeu_si512(y, _mm512_sub_epi32(_mm512_add_epi32(even, odd), zero));
}

void ISA gemv_int8_avx512vnni(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                              size_t end)
{
    const size_t panel_bytes = (a->n + QUAD - 1) / QUAD * TERN_LINE_BYTES;
    for (size_t p = begin; p < end; p++)
        panel_int8(plane + p * panel_bytes, a, y + p * TERN_INT8_OUTPUTS);
}
#endif
