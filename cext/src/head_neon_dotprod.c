/* head_neon_dotprod.c - the scan of an LM head with TBL and SDOT.
 *
 * Levels become signed before they are multiplied, so minus_zero is not needed: the exact sums are
 * the same.  Sixteen bytes of a line are four inputs of four rows in each nibble: what SDOT sums. */
#include "neon.h"
#if defined(__aarch64__)

#define ISA __attribute__((target("arch=armv8.2-a+dotprod")))

enum {
    QUARTERS = 4,           /* registers of a line, four rows each */
    LINE_PAIRS = SCAN_LINES / 2, /* of a group: a pair meets one register of inputs */
    FIELDS = 4,             /* codes of a byte of the refining plane */
    REFINE_LANE = 4 * QUARTERS * 48 * 127, /* of a block, in the sum that is 16 times too large */
    REFINE_BLOCKS_MAX = 1 << 13,
};
_Static_assert((long long)REFINE_LANE * REFINE_BLOCKS_MAX <= INT32_MAX,
               "refine: int32 lane would overflow");

/* int32 sums of four rows, of the two parts of the inputs. */
typedef struct quad_i32 {
    int32x4_t high, low;
} quad_i32;

static inline int8x16_t low_codes(int8x16_t levels, uint8x16_t packed)
{
    return vqtbl1q_s8(levels, vandq_u8(packed, vdupq_n_u8(15)));
}

static inline int8x16_t high_codes(int8x16_t levels, uint8x16_t packed)
{
    return vqtbl1q_s8(levels, vshrq_n_u8(packed, 4));
}

/* One register of each of two lines that follow each other, and their 16 inputs. */
ISA static inline void add_line_pair(quad_i32 *s, const uint8_t *quarter, int8x16_t levels,
                                     int8x16_t high, int8x16_t low)
{
    const uint8x16_t first = vld1q_u8(quarter), second = vld1q_u8(quarter + TERN_LINE_BYTES);
    const int8x16_t a = low_codes(levels, first), b = high_codes(levels, first);
    const int8x16_t c = low_codes(levels, second), d = high_codes(levels, second);
    s->high = vdotq_laneq_s32(s->high, a, high, 0);
    s->low = vdotq_laneq_s32(s->low, a, low, 0);
    s->high = vdotq_laneq_s32(s->high, b, high, 1);
    s->low = vdotq_laneq_s32(s->low, b, low, 1);
    s->high = vdotq_laneq_s32(s->high, c, high, 2);
    s->low = vdotq_laneq_s32(s->low, c, low, 2);
    s->high = vdotq_laneq_s32(s->high, d, high, 3);
    s->low = vdotq_laneq_s32(s->low, d, low, 3);
}

/* Sum times scale, two roundings: no vfmaq. */
static inline float32x4_t add_scaled(float32x4_t acc, const quad_i32 *s, uint16x4_t scale)
{
    const int32x4_t sum = vaddq_s32(vshlq_n_s32(s->high, 7), s->low);
    return vaddq_f32(acc, vmulq_f32(vcvtq_f32_s32(sum), vcvtq_f32_u32(vmovl_u16(scale))));
}

ISA static inline void add_group(float32x4_t acc[QUARTERS], const uint8_t *lines,
                                 const uint8_t *scales, int8x16_t levels, const int8_t *high,
                                 const int8_t *low)
{
    const uint8x16_t bytes = vld1q_u8(scales);
    const uint16x8_t wide[2] = { vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes) };
    for (int q = 0; q < QUARTERS; q++) {
        quad_i32 s = { vdupq_n_s32(0), vdupq_n_s32(0) };
        for (int pair = 0; pair < LINE_PAIRS; pair++)
            add_line_pair(&s, lines + 2 * TERN_LINE_BYTES * pair + 16 * q, levels,
                          vld1q_s8(high + 16 * pair), vld1q_s8(low + 16 * pair));
        const uint16x8_t both = wide[q / 2];
        acc[q] = add_scaled(acc[q], &s, q % 2 ? vget_high_u16(both) : vget_low_u16(both));
    }
}

ISA static void panel(const uint8_t *lines, const uint8_t *scales, int8x16_t levels,
                      const tern_scan_x *x, float *y)
{
    float32x4_t acc[QUARTERS];
    for (int q = 0; q < QUARTERS; q++) acc[q] = vdupq_n_f32(0.0f);
    for (size_t g = 0; g < x->n_groups; g++, lines += SCAN_LINES * TERN_LINE_BYTES) {
        for (size_t l = 0; l < SCAN_LINES; l++) prefetch_line(lines, PREFETCH_LINES + l);
        add_group(acc, lines, scales + g * TERN_SCAN_ROWS, levels, x->high + g * TERN_SCAN_GROUP,
                  x->low + g * TERN_SCAN_GROUP);
    }
    for (int q = 0; q < QUARTERS; q++) vst1q_f32(y + 4 * q, acc[q]);
}

ISA void head_scan_neon_dotprod(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                                const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    const uint8x16_t zero = vdupq_n_u8(TERN_SCAN_ZERO);
    const int8x16_t table = vreinterpretq_s8_u8(vsubq_u8(vld1q_u8(levels), zero));
    const size_t n = x->n_groups;
    for (size_t p = begin; p < end; p++)
        panel(codes + p * n * SCAN_LINES * TERN_LINE_BYTES, scales + p * n * TERN_SCAN_ROWS, table,
              x, y + p * TERN_SCAN_ROWS);
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
