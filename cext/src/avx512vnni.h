/* avx512vnni.h - private: what the AVX-512 files share.  Ice Lake, Zen 4 and later. */
#ifndef AVX512VNNI_H
#define AVX512VNNI_H

#include "variants.h"
#include <immintrin.h>
#include <string.h>

#define ISA TARGET("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")

tern_gemv_rows_fn gemv_rows_2bit_avx512vnni, gemv_rows_base3_avx512vnni;
tern_gemv_cols_fn gemv_cols_avx512vnni;
tern_gemv_tiles_fn gemv_tiles_avx512vnni;
tern_gemv_channels_fn gemv_channels_avx512vnni;
tern_gemv_tiles_fn gemv_binary_avx512vnni, gemv_int8_avx512vnni; /* formats_avx512vnni.c */
tern_gemm_fn gemm_rows_2bit_avx512vnni, gemm_rows_base3_avx512vnni;
tern_gemm_fn gemm_cols_avx512vnni, gemm_tiles_avx512vnni, gemm_channels_avx512vnni;
tern_gemm_fn gemm_live_avx512vnni;      /* gemm_live_avx512vnni.c */
tern_gemm_open_fn gemm_open_avx512vnni; /* gemm_open_avx512vnni.c */

/* From the sums of position groups, 16 * fields each and field by field, to outputs in their order less
 * `sum`; the codes of order_channels are already split, those of lines too. */
void order_channels(int32_t *y, int32_t sum);

/* From sums of masked codes and of whole bytes to sums of codes: 320 of a block of channels. */
void split_channels(int32_t *y);
void order_lines(const int32_t *sums, int32_t sum, int32_t *y, size_t from, size_t to);

enum { FIELDS_2BIT = 4, FIELDS_BASE3 = 5, QUAD = 4 /* channels that meet in one VPDPBUSD lane */ };

/* Codes of r in [0, 81): c0 | c1 << 2 | c2 << 4 | c3 << 6.  VPERMI2B looks up 128 bytes. */
extern const uint8_t base3_codes_u8[128];

typedef struct base3_tables {
    __m512i low_u8x64, high_u8x64;
} base3_tables;

ISA static inline base3_tables load_base3_tables(void)
{
    return (base3_tables){ _mm512_load_si512(base3_codes_u8),
                           _mm512_load_si512(base3_codes_u8 + 64) };
}

/* v mod 81 for v in [0, 243): v - 81 wraps to a large byte when v < 81, so the minimum is v. */
ISA static inline __m512i mod81_u8x64(__m512i v)
{
    const __m512i k81_u8x64 = _mm512_set1_epi8(81);
    v = _mm512_min_epu8(v, _mm512_sub_epi8(v, k81_u8x64));
    return _mm512_min_epu8(v, _mm512_sub_epi8(v, k81_u8x64));
}

/* The lower four codes of base-3 bytes whose fifth is taken off, two bits each. */
ISA static inline __m512i low_codes_u8x64(base3_tables t, __m512i mod81)
{
    return _mm512_permutex2var_epi8(t.low_u8x64, mod81, t.high_u8x64);
}

ISA static inline __m512i load_u8x64(const void *p)
{
    return _mm512_loadu_si512(p);
}

/* The bytes of four lines (channels), so that a 32-bit lane holds the four bytes of one position:
 * u[h] holds in its 128-bit lane l the positions 16 l + 4 h + {0, 1, 2, 3}. */
typedef struct quad_lines {
    __m512i u[4];
} quad_lines;

ISA static inline quad_lines interleave(__m512i a, __m512i b, __m512i c, __m512i d)
{
    const __m512i ab_lo = _mm512_unpacklo_epi8(a, b), ab_hi = _mm512_unpackhi_epi8(a, b);
    const __m512i cd_lo = _mm512_unpacklo_epi8(c, d), cd_hi = _mm512_unpackhi_epi8(c, d);
    return (quad_lines){ { _mm512_unpacklo_epi16(ab_lo, cd_lo), _mm512_unpackhi_epi16(ab_lo, cd_lo),
                           _mm512_unpacklo_epi16(ab_hi, cd_hi),
                           _mm512_unpackhi_epi16(ab_hi, cd_hi) } };
}

/* Undo the order of `interleave`: (h, lane l) to l' = l, 16 positions each. */
ISA static inline void in_order(const __m512i acc_i32x16[4], __m512i out_i32x16[4])
{
    const __m512i t0 = _mm512_shuffle_i32x4(acc_i32x16[0], acc_i32x16[1], 0x44);
    const __m512i t1 = _mm512_shuffle_i32x4(acc_i32x16[0], acc_i32x16[1], 0xee);
    const __m512i t2 = _mm512_shuffle_i32x4(acc_i32x16[2], acc_i32x16[3], 0x44);
    const __m512i t3 = _mm512_shuffle_i32x4(acc_i32x16[2], acc_i32x16[3], 0xee);
    out_i32x16[0] = _mm512_shuffle_i32x4(t0, t2, 0x88);
    out_i32x16[1] = _mm512_shuffle_i32x4(t0, t2, 0xdd);
    out_i32x16[2] = _mm512_shuffle_i32x4(t1, t3, 0x88);
    out_i32x16[3] = _mm512_shuffle_i32x4(t1, t3, 0xdd);
}

/* First output of field f, lane l of a 2-bit line, relative to its panel. */
static inline size_t output_of_line(size_t f, size_t l)
{
    return 128 * (l / 2) + 32 * f + 16 * (l % 2);
}

/* sums + the four products of unsigned codes and signed x in every lane.  The intrinsic of GCC 12 copies
 * the sums to another register and back in every turn of a loop, at a third of the speed of a GEMM. */
ISA static inline __m512i dot_i32x16(__m512i sums_i32x16, __m512i codes_u8x64, __m512i x_i8x64)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums_i32x16) : "v"(codes_u8x64), "vm"(x_i8x64));
    return sums_i32x16;
}

#define CODE_MASK(f) _mm512_set1_epi8((char)(3 << 2 * (f)))

ISA static inline __m512i broadcast_x(const int8_t *x)
{
    int32_t quad;
    memcpy(&quad, x, sizeof quad);
    return _mm512_set1_epi32(quad);
}

/* From the sums of masked bytes, and of unmasked ones in [3], to the four sums of codes. */
ISA static inline void split_2bit(__m512i s[FIELDS_2BIT])
{
    s[3] = _mm512_sub_epi32(s[3], _mm512_add_epi32(s[0], _mm512_add_epi32(s[1], s[2])));
    s[1] = _mm512_srai_epi32(s[1], 2);
    s[2] = _mm512_srai_epi32(s[2], 4);
    s[3] = _mm512_srai_epi32(s[3], 6);
}

/* 81 divides what it is used for, and dividing is multiplying by the inverse modulo 2^32. */
ISA static inline __m512i divide_81(__m512i v)
{
    return _mm512_mullo_epi32(v, _mm512_set1_epi32(2014922929));
}

/* The same for base 3: [4] is the sum of whole bytes. */
ISA static inline void split_base3(__m512i s[FIELDS_BASE3])
{
    split_2bit(s);
    __m512i rest = _mm512_sub_epi32(s[4], s[0]);
    rest = _mm512_sub_epi32(rest, _mm512_mullo_epi32(s[1], _mm512_set1_epi32(3)));
    rest = _mm512_sub_epi32(rest, _mm512_mullo_epi32(s[2], _mm512_set1_epi32(9)));
    rest = _mm512_sub_epi32(rest, _mm512_mullo_epi32(s[3], _mm512_set1_epi32(27)));
    s[4] = divide_81(rest);
}

/* Sums across the lanes of four rows at once. */
ISA static inline __m128i hsum4_i32x4(const __m512i s[4])
{
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]),
                                        _mm512_unpackhi_epi32(s[0], s[1]));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]),
                                        _mm512_unpackhi_epi32(s[2], s[3]));
    const __m512i abcd =
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(abcd),
                                          _mm512_extracti64x4_epi64(abcd, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* The sum over five fields, of which four were masked and not shifted. */
ISA static inline __m512i sum_of_fields(__m512i s0, __m512i s1, __m512i s2, __m512i s3, __m512i s4)
{
    const __m512i s01 = _mm512_add_epi32(s0, _mm512_srai_epi32(s1, 2));
    const __m512i s23 = _mm512_add_epi32(_mm512_srai_epi32(s2, 4), _mm512_srai_epi32(s3, 6));
    return _mm512_add_epi32(_mm512_add_epi32(s01, s23), s4);
}

#endif
