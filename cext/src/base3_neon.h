/* base3_neon.h - private: codes of base 3 by table.
 *
 * A byte v is split at 27: b = v / 27 and a = v - 27 b.  The division is one addition, because the
 * high half h of v leaves at most one multiple 27 m to be above or below of:
 *
 *       b = (v + 5 m(h)) / 32,  m(h) = (16 h + 15) / 27      32 m = 27 m + 5 m
 *
 * Tables of 27 and of 9 entries then give the codes. */
#ifndef BASE3_NEON_H
#define BASE3_NEON_H

#include "neon.h"
#if defined(__aarch64__)

enum {
    SPLIT = 27,
    FIELDS = 5, /* codes of a byte */
};

static const uint8_t five_m[16] = { 0,  5,  5,  10, 10, 15, 20, 20,
                                    25, 25, 30, 35, 35, 40, 40, 45 };
/* c0 | c1 << 2 | c2 << 4 */
static const uint8_t codes_of_a[32] = { 0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08, 0x09, 0x0a,
                                        0x10, 0x11, 0x12, 0x14, 0x15, 0x16, 0x18, 0x19, 0x1a,
                                        0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x28, 0x29, 0x2a };
static const uint8_t c3_of_b[16] = { 0, 1, 2, 0, 1, 2, 0, 1, 2 };
static const uint8_t c4_of_b[16] = { 0, 0, 0, 1, 1, 1, 2, 2, 2 };

typedef struct tables {
    uint8x16_t five_m, c3, c4;
    uint8x16x2_t codes;
} tables;

static inline tables load_tables(void)
{
    return (tables){ vld1q_u8(five_m), vld1q_u8(c3_of_b), vld1q_u8(c4_of_b),
                     { { vld1q_u8(codes_of_a), vld1q_u8(codes_of_a + 16) } } };
}

static inline uint8x16_t div_27(const tables *t, uint8x16_t v)
{
    const uint8x16_t add = vqtbl1q_u8(t->five_m, vshrq_n_u8(v, 4));
    return vshrq_n_u8(vhaddq_u8(v, add), 4);
}

static inline uint8x16_t mod_27(uint8x16_t v, uint8x16_t b)
{
    return vmlsq_u8(v, b, vdupq_n_u8(SPLIT));
}

#endif
#endif
