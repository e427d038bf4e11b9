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
    HIGH_LANE = 2 * TERN_SCAN_ZERO * 127, /* a low and a high nibble before the lane is widened */
    REFINE_LANE = 4 * 3 * 127,            /* four codes of a block */
};
_Static_assert(HIGH_LANE <= INT16_MAX, "scan: int16 lane would overflow");
_Static_assert(REFINE_LANE <= INT16_MAX, "refine: int16 lane would overflow");

static inline int8x8_t four_inputs_i8x8(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vreinterpret_s8_s32(vdup_n_s32(four));
}

/* int32 sums of 4 rows by pairs of inputs: [0] holds rows 0 and 1, [1] rows 2 and 3. */
typedef struct quad_i32 {
    int32x4_t high[2], low[2];
} quad_i32;

static inline int32x4_t add_products(int32x4_t acc, int8x8_t a, int8x8_t xa, int8x8_t b,
                                     int8x8_t xb)
{
    return vpadalq_s16(acc, vmlal_s8(vmull_s8(a, xa), b, xb));
}

static inline void add_quarter_line(quad_i32 *s, const uint8_t *quarter, int8x16_t levels,
                                    const int8_t *high, const int8_t *low)
{
    const uint8x16_t packed = vld1q_u8(quarter);
    const int8x16_t a = vqtbl1q_s8(levels, vandq_u8(packed, vdupq_n_u8(15)));
    const int8x16_t b = vqtbl1q_s8(levels, vshrq_n_u8(packed, 4));
    const int8x8_t high_a = four_inputs_i8x8(high), high_b = four_inputs_i8x8(high + 4);
    const int8x8_t low_a = four_inputs_i8x8(low), low_b = four_inputs_i8x8(low + 4);
    s->high[0] = add_products(s->high[0], vget_low_s8(a), high_a, vget_low_s8(b), high_b);
    s->high[1] = add_products(s->high[1], vget_high_s8(a), high_a, vget_high_s8(b), high_b);
    s->low[0] = add_products(s->low[0], vget_low_s8(a), low_a, vget_low_s8(b), low_b);
    s->low[1] = add_products(s->low[1], vget_high_s8(a), low_a, vget_high_s8(b), low_b);
}

static inline float32x4_t add_group(float32x4_t acc, const quad_i32 *s, const uint8_t *scales)
{
    const int32x4_t high = vpaddq_s32(s->high[0], s->high[1]);
    const int32x4_t sum = vaddq_s32(vshlq_n_s32(high, 7), vpaddq_s32(s->low[0], s->low[1]));
    uint32_t four;
    memcpy(&four, scales, sizeof four);
    const uint16x4_t wide = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))));
    const float32x4_t scale = vcvtq_f32_u32(vmovl_u16(wide));
    return vaddq_f32(acc, vmulq_f32(vcvtq_f32_s32(sum), scale)); /* two roundings, no vfmaq */
}

static void panel(const uint8_t *lines, const uint8_t *scales, int8x16_t levels,
                  const tern_scan_x *x, float *y)
{
    float32x4_t acc[4];
    for (int q = 0; q < 4; q++) acc[q] = vdupq_n_f32(0.0f);
    for (size_t g = 0; g < x->n_groups; g++) {
        quad_i32 s[4];
        memset(s, 0, sizeof s);
        for (size_t l = 0; l < SCAN_LINES; l++) {
            const size_t line = g * SCAN_LINES + l, k = line * TERN_SCAN_LINE_INPUTS;
            prefetch_line(lines, line + PREFETCH_LINES);
            for (size_t q = 0; q < 4; q++)
                add_quarter_line(&s[q], lines + line * TERN_LINE_BYTES + 16 * q, levels,
                                 x->high + k, x->low + k);
        }
        for (size_t q = 0; q < 4; q++)
            acc[q] = add_group(acc[q], &s[q], scales + g * TERN_SCAN_ROWS + 4 * q);
    }
    for (int q = 0; q < 4; q++) vst1q_f32(y + 4 * q, acc[q]);
}

void head_scan_neon(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                    const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    const int8x16_t table =
        vreinterpretq_s8_u8(vsubq_u8(vld1q_u8(levels), vdupq_n_u8(TERN_SCAN_ZERO)));
    const size_t n = x->n_groups;
    for (size_t p = begin; p < end; p++)
        panel(codes + p * n * SCAN_LINES * TERN_LINE_BYTES, scales + p * n * TERN_SCAN_ROWS, table,
              x, y + p * TERN_SCAN_ROWS);
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
