/* head_neon_dotprod.c - the scan of an LM head with TBL and SDOT.
 *
 * Levels become signed before they are multiplied, so minus_zero is not needed: the exact sums are
 * the same.  Sixteen bytes of a line are four inputs of four rows in each nibble: what SDOT sums. */
#include "neon.h"
#if defined(__aarch64__)

#define ISA __attribute__((target("arch=armv8.2-a+dotprod")))

enum {
    QUARTERS = 4,           /* registers of a line, four rows each */
    FIELDS = 4,             /* codes of a byte of the refining plane */
    REFINE_LANE = 4 * QUARTERS * 48 * 127, /* of a block, in the sum that is 16 times too large */
    REFINE_BLOCKS_MAX = 1 << 13,
};
_Static_assert((long long)REFINE_LANE * REFINE_BLOCKS_MAX <= INT32_MAX,
               "refine: int32 lane would overflow");

/* Levels of the codes whose fifth bits lie at bit `bit` of `fifth`. */
static inline int8x16_t levels_of(int8x16x2_t levels, uint8x16_t nibbles, uint8x16_t fifth, int bit)
{
    const uint8x16_t at_four = vshlq_u8(fifth, vdupq_n_s8((int8_t)(4 - bit)));
    return vqtbl2q_s8(levels, vorrq_u8(nibbles, vandq_u8(at_four, vdupq_n_u8(16))));
}

static inline uint8x16_t low_nibbles(uint8x16_t packed)
{
    return vandq_u8(packed, vdupq_n_u8(15));
}

/* One register of each of two lines that follow each other, and their 16 inputs; `fifth` has their bits
 * from bit 0 on. */
ISA static inline int32x4_t add_line_pair(int32x4_t sum, const uint8_t *quarter, uint8x16_t fifth,
                                          int8x16x2_t levels, int8x16_t q)
{
    const uint8x16_t first = vld1q_u8(quarter), second = vld1q_u8(quarter + TERN_LINE_BYTES);
    sum = vdotq_laneq_s32(sum, levels_of(levels, low_nibbles(first), fifth, 0), q, 0);
    sum = vdotq_laneq_s32(sum, levels_of(levels, vshrq_n_u8(first, 4), fifth, 1), q, 1);
    sum = vdotq_laneq_s32(sum, levels_of(levels, low_nibbles(second), fifth, 2), q, 2);
    return vdotq_laneq_s32(sum, levels_of(levels, vshrq_n_u8(second, 4), fifth, 3), q, 3);
}

/* Sum times scale times unit, roundings as the contract has them: no vfmaq. */
static inline float32x4_t add_scaled(float32x4_t acc, int32x4_t sum, uint16x4_t scale, float unit)
{
    const float32x4_t term = vmulq_f32(vcvtq_f32_s32(sum), vcvtq_f32_u32(vmovl_u16(scale)));
    return vaddq_f32(acc, vmulq_n_f32(term, unit));
}

ISA static inline void add_group(float32x4_t acc[QUARTERS], const uint8_t *group,
                                 const uint8_t *scales, int8x16x2_t levels, const int8_t *x,
                                 float unit)
{
    const uint8x16_t bytes = vld1q_u8(scales);
    const uint16x8_t wide[2] = { vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes) };
    for (int q = 0; q < QUARTERS; q++) {
        const uint8_t *quarter = group + 16 * q;
        const uint8x16_t fifth = vld1q_u8(quarter + SCAN_NIBBLE_LINES * TERN_LINE_BYTES);
        int32x4_t sum = add_line_pair(vdupq_n_s32(0), quarter, fifth, levels, vld1q_s8(x));
        sum = add_line_pair(sum, quarter + 2 * TERN_LINE_BYTES, vshrq_n_u8(fifth, 4), levels,
                            vld1q_s8(x + 16));
        const uint16x8_t both = wide[q / 2];
        acc[q] = add_scaled(acc[q], sum, q % 2 ? vget_high_u16(both) : vget_low_u16(both), unit);
    }
}

ISA static void panel(const uint8_t *group, const uint8_t *scales, int8x16x2_t levels,
                      const tern_scan_x *x, float *y)
{
    float32x4_t acc[QUARTERS];
    for (int q = 0; q < QUARTERS; q++) acc[q] = vdupq_n_f32(0.0f);
    for (size_t g = 0; g < x->n_groups; g++, group += SCAN_GROUP_BYTES) {
        for (size_t l = 0; l < TERN_SCAN_LINES; l++) prefetch_line(group, PREFETCH_LINES + l);
        add_group(acc, group, scales + g * TERN_SCAN_ROWS, levels, x->q + g * TERN_SCAN_GROUP,
                  x->unit[g]);
    }
    for (int q = 0; q < QUARTERS; q++) vst1q_f32(y + 4 * q, acc[q]);
}

static int8x16_t signed_levels(const uint8_t *levels)
{
    return vreinterpretq_s8_u8(vsubq_u8(vld1q_u8(levels), vdupq_n_u8(TERN_SCAN_ZERO)));
}

ISA void head_scan_neon_dotprod(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                                const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    const int8x16x2_t table = { { signed_levels(levels), signed_levels(levels + 16) } };
    const size_t n = x->n_groups;
    for (size_t p = begin; p < end; p++)
        panel(codes + p * n * SCAN_GROUP_BYTES, scales + p * n * TERN_SCAN_ROWS, table, x,
              y + p * TERN_SCAN_ROWS);
}

/* Sixteen bytes of a block; the sums of the middle fields are 4 and 16 times too large. */
ISA static inline void add_codes(int32x4_t acc[FIELDS], uint8x16_t packed, const int8_t *high)
{
    const int8x16_t codes = vreinterpretq_s8_u8(packed);
    const int8x16_t last = vreinterpretq_s8_u8(vshrq_n_u8(packed, 6));
    acc[0] = vdotq_s32(acc[0], vandq_s8(codes, vdupq_n_s8(0x03)), vld1q_s8(high));
    acc[1] = vdotq_s32(acc[1], vandq_s8(codes, vdupq_n_s8(0x0c)), vld1q_s8(high + 64));
    acc[2] = vdotq_s32(acc[2], vandq_s8(codes, vdupq_n_s8(0x30)), vld1q_s8(high + 128));
    acc[3] = vdotq_s32(acc[3], last, vld1q_s8(high + 192));
}

ISA void head_refine_neon_dotprod(const uint8_t *plane, const int8_t *high, size_t n_blocks,
                                  const uint32_t *rows, size_t n, int32_t *y)
{
    for (size_t i = 0; i < n; i++) {
        const size_t next = min_size(i + REFINE_ROWS_AHEAD, n - 1);
        const uint8_t *row = plane + rows[i] * n_blocks * TERN_LINE_BYTES;
        int32x4_t acc[FIELDS];
        for (int s = 0; s < FIELDS; s++) acc[s] = vdupq_n_s32(0);
        for (size_t b = 0; b < n_blocks; b++) {
            prefetch_line(plane, rows[next] * n_blocks + b);
            for (size_t q = 0; q < QUARTERS; q++)
                add_codes(acc, vld1q_u8(row + b * TERN_LINE_BYTES + 16 * q),
                          high + b * TERN_REFINE_BLOCK + 16 * q);
        }
        const int32x4_t low = vsraq_n_s32(acc[0], acc[1], 2);
        y[i] = vaddvq_s32(vaddq_s32(vsraq_n_s32(low, acc[2], 4), acc[3]));
    }
}
#endif
