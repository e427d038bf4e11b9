/* variants.h - private: one table a variant file, and what variant files share. */
#ifndef VARIANTS_H
#define VARIANTS_H

#include "ternary.h"

#define TARGET(isa) __attribute__((target(isa)))

extern const tern_kernels tern_scalar;
extern const tern_kernels tern_avx2;
extern const tern_kernels tern_avx512vnni;
extern const tern_kernels tern_neon;
extern const tern_kernels tern_neon_dotprod;
extern const tern_kernels tern_neon_i8mm;

extern const tern_kv_ops tern_kv_scalar;
extern const tern_kv_ops tern_kv_avx2;
extern const tern_kv_ops tern_kv_avx512vnni;
extern const tern_kv_ops tern_kv_neon;

/* For a variant that has no better one yet. */
tern_gemv_rows_fn gemv_rows_base3_scalar;
tern_gemv_tiles_fn gemv_tiles_scalar;
tern_gemv_channels_fn gemv_channels_scalar;
tern_gemv_tiles_fn gemv_binary_scalar, gemv_int8_scalar; /* formats_scalar.c */

/* head_<variant>.c */
extern tern_scan_fn head_scan_scalar, head_scan_avx2, head_scan_avx512vnni, head_scan_neon;
extern tern_refine_fn head_refine_scalar, head_refine_avx2, head_refine_avx512vnni,
    head_refine_neon;

enum {
    SCAN_NIBBLE_LINES = TERN_SCAN_LINES - 1, /* of a group; the last line has the fifth bits */
    SCAN_GROUP_BYTES = TERN_SCAN_LINES * TERN_LINE_BYTES,
    REFINE_ROWS_AHEAD = 24, /* prefetched before they are needed: some 16 KB at 2560 inputs */
    DOT_LANES = 16,     /* partial sums of a float dot product */
    CHUNK = 128,        /* input channels between two widenings of an input-major unit */
    PREFETCH_LINES = 48 /* ahead of the stream of lines; 24 to 192 measure alike, 8 and 384 worse */
};

/* The last steps of the contract's order of additions. */
static inline float dot_tree(float lane[DOT_LANES])
{
    for (int l = 0; l < 8; l++) lane[l] += lane[l + 8];
    for (int l = 0; l < 4; l++) lane[l] += lane[l + 4];
    for (int l = 0; l < 2; l++) lane[l] += lane[l + 2];
    return lane[0] + lane[1];
}

/* IEEE 754 binary16 to binary32: exact; a signalling NaN becomes quiet, as in hardware. */
static inline float f32_from_f16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1fu;
    uint32_t mantissa = half & 0x3ffu;
    union {
        uint32_t bits;
        float value;
    } out;
    if (exponent == 0) { /* zero and subnormal: mantissa * 2^-24, exact in float32 */
        out.value = (float)mantissa * 0x1p-24f;
        out.bits |= sign;
    } else if (exponent == 31) { /* infinity and NaN */
        if (mantissa) mantissa |= 0x200u;
        out.bits = sign | 0x7f800000u | mantissa << 13;
    } else {
        out.bits = sign | (exponent + 127 - 15) << 23 | mantissa << 13;
    }
    return out.value;
}

/* Ask for memory that will be needed soon.  The address may lie outside the plane: it is computed
 * as an integer, and a prefetch never faults. */
static inline void prefetch_line(const uint8_t *base, size_t line)
{
    __builtin_prefetch((const void *)((uintptr_t)base + line * TERN_LINE_BYTES));
}

#endif
