/* head_neon.c - the scan of an LM head with TBL and SMLAL, for every AArch64.
 *
 * Levels become signed before they are multiplied, so minus_zero is not needed: the exact sums are
 * the same.  A register of a line holds 4 inputs of 4 rows; the inputs of a row meet at the end of
 * a group, by pairwise additions. */
#include "variants.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>

enum {
    SCAN_LANE = 2 * TERN_SCAN_ZERO * TERN_SCAN_X_MAX, /* a low and a high nibble, then it is widened */
    REFINE_LANE = 4 * 3 * 127,            /* four codes of a block */
};
_Static_assert(SCAN_LANE <= INT16_MAX, "scan: int16 lane would overflow");
_Static_assert(REFINE_LANE <= INT16_MAX, "refine: int16 lane would overflow");

static inline int8x8_t four_inputs_i8x8(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vreinterpret_s8_s32(vdup_n_s32(four));
}

/* int32 sums of 4 rows by pairs of inputs: [0] holds rows 0 and 1, [1] rows 2 and 3. */
typedef struct quad_i32 {
    int32x4_t pair[2];
} quad_i32;

static inline int32x4_t add_products(int32x4_t acc, int8x8_t a, int8x8_t xa, int8x8_t b,
                                     int8x8_t xb)
{
    return vpadalq_s16(acc, vmlal_s8(vmull_s8(a, xa), b, xb));
}

/* Four rows of line `l`; `fifth` are the same rows of the last line. */
static inline void add_quarter_line(quad_i32 *s, const uint8_t *quarter, uint8x16_t fifth, int l,
                                    int8x16x2_t levels, const int8_t *q)
{
    const uint8x16_t packed = vld1q_u8(quarter), bit = vdupq_n_u8(16);
    const uint8x16_t low = vandq_u8(packed, vdupq_n_u8(15)), high = vshrq_n_u8(packed, 4);
    const uint8x16_t low_bit = vandq_u8(vshlq_u8(fifth, vdupq_n_s8((int8_t)(4 - 2 * l))), bit);
    const uint8x16_t high_bit = vandq_u8(vshlq_u8(fifth, vdupq_n_s8((int8_t)(3 - 2 * l))), bit);
    const int8x16_t a = vqtbl2q_s8(levels, vorrq_u8(low, low_bit));
    const int8x16_t b = vqtbl2q_s8(levels, vorrq_u8(high, high_bit));
    const int8x8_t xa = four_inputs_i8x8(q), xb = four_inputs_i8x8(q + 4);
    s->pair[0] = add_products(s->pair[0], vget_low_s8(a), xa, vget_low_s8(b), xb);
    s->pair[1] = add_products(s->pair[1], vget_high_s8(a), xa, vget_high_s8(b), xb);
}

static inline quad_i32 group_quarter(const uint8_t *quarter, int8x16x2_t levels, const int8_t *q)
{
    const uint8x16_t fifth = vld1q_u8(quarter + SCAN_NIBBLE_LINES * TERN_LINE_BYTES);
    quad_i32 s = { { vdupq_n_s32(0), vdupq_n_s32(0) } };
    for (int l = 0; l < SCAN_NIBBLE_LINES; l++)
        add_quarter_line(&s, quarter + l * TERN_LINE_BYTES, fifth, l, levels,
                         q + l * TERN_SCAN_LINE_INPUTS);
    return s;
}

/* Roundings as the contract has them: no vfmaq. */
static inline float32x4_t add_group(float32x4_t acc, quad_i32 s, const uint8_t *scales, float unit)
{
    const int32x4_t sum = vpaddq_s32(s.pair[0], s.pair[1]);
    uint32_t four;
    memcpy(&four, scales, sizeof four);
    const uint16x4_t wide = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))));
    const float32x4_t scale = vcvtq_f32_u32(vmovl_u16(wide));
    return vaddq_f32(acc, vmulq_n_f32(vmulq_f32(vcvtq_f32_s32(sum), scale), unit));
}

static void panel(const uint8_t *group, const uint8_t *scales, int8x16x2_t levels,
                  const tern_scan_x *x, float *y)
{
    float32x4_t acc[4];
    for (int q = 0; q < 4; q++) acc[q] = vdupq_n_f32(0.0f);
    for (size_t g = 0; g < x->n_groups; g++, group += SCAN_GROUP_BYTES) {
        for (size_t l = 0; l < TERN_SCAN_LINES; l++) prefetch_line(group, PREFETCH_LINES + l);
        for (size_t q = 0; q < 4; q++)
            acc[q] = add_group(acc[q],
                               group_quarter(group + 16 * q, levels, x->q + g * TERN_SCAN_GROUP),
                               scales + g * TERN_SCAN_ROWS + 4 * q, x->unit[g]);
    }
    for (int q = 0; q < 4; q++) vst1q_f32(y + 4 * q, acc[q]);
}

static int8x16_t signed_levels(const uint8_t *levels)
{
    return vreinterpretq_s8_u8(vsubq_u8(vld1q_u8(levels), vdupq_n_u8(TERN_SCAN_ZERO)));
}

void head_scan_neon(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                    const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    const int8x16x2_t table = { { signed_levels(levels), signed_levels(levels + 16) } };
    const size_t n = x->n_groups;
    for (size_t p = begin; p < end; p++)
        panel(codes + p * n * SCAN_GROUP_BYTES, scales + p * n * TERN_SCAN_ROWS, table, x,
              y + p * TERN_SCAN_ROWS);
}

/* 16 bytes of a block: codes at bits 2 s of every byte meet inputs 64 s on. */
static inline int32x4_t add_codes(int32x4_t acc, uint8x16_t packed, const int8_t *high)
{
    int16x8_t lo = vdupq_n_s16(0), hi = lo;
    for (int s = 0; s < 4; s++) {
        const uint8x16_t code = vandq_u8(vshlq_u8(packed, vdupq_n_s8((int8_t)(-2 * s))),
                                         vdupq_n_u8(3));
        const int8x16_t c = vreinterpretq_s8_u8(code), x = vld1q_s8(high + 64 * s);
        lo = vmlal_s8(lo, vget_low_s8(c), vget_low_s8(x));
        hi = vmlal_s8(hi, vget_high_s8(c), vget_high_s8(x));
    }
    return vpadalq_s16(vpadalq_s16(acc, lo), hi);
}

void head_refine_neon(const uint8_t *plane, const int8_t *high, size_t n_blocks,
                      const uint32_t *rows, size_t n, int32_t *y)
{
    for (size_t i = 0; i < n; i++) {
        const size_t next = i + REFINE_ROWS_AHEAD < n ? i + REFINE_ROWS_AHEAD : n - 1;
        const uint8_t *row = plane + rows[i] * n_blocks * TERN_LINE_BYTES;
        int32x4_t acc = vdupq_n_s32(0);
        for (size_t b = 0; b < n_blocks; b++) {
            prefetch_line(plane, rows[next] * n_blocks + b);
            for (size_t q = 0; q < 4; q++)
                acc = add_codes(acc, vld1q_u8(row + b * TERN_LINE_BYTES + 16 * q),
                                high + b * TERN_REFINE_BLOCK + 16 * q);
        }
        y[i] = vaddvq_s32(acc);
    }
}
#endif
