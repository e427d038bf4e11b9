/* kv_neon.c - four registers hold the sixteen positions of a tile; baseline AArch64.
 *
 * Codes are multiplied by SMULL into int16, two neighbours are added by ADDP while they still fit,
 * and SADALP adds the next two into the int32 lane of their position. */
#include "variants.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#include <string.h>
#define ISA

_Static_assert(2 * 127 * 127 <= INT16_MAX, "int8: two products would overflow int16");
_Static_assert(4 * 15 * 127 <= INT16_MAX, "int4: four products would overflow int16");

enum { QUADS = 4 }; /* registers of four lanes */

typedef struct v16 {
    float32x4_t quad[QUADS];
} v16;
typedef struct i32x16 {
    int32x4_t quad[QUADS];
} i32x16;
typedef struct key8 {
    int8x16_t quad[QUADS]; /* four positions each */
} key8;
typedef struct key4 {
    int8x16_t low[QUADS], high[QUADS];
} key4;

static inline v16 v16_set1(float x)
{
    const float32x4_t q = vdupq_n_f32(x);
    return (v16){ { q, q, q, q } };
}

static inline v16 v16_zero(void)
{
    return v16_set1(0.0f);
}

static inline v16 v16_load(const float *p)
{
    return (v16){ { vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12) } };
}

static inline void v16_store(float *p, v16 v)
{
    for (int i = 0; i < QUADS; i++) vst1q_f32(p + 4 * i, v.quad[i]);
}

static inline v16 v16_mul(v16 a, v16 b)
{
    for (int i = 0; i < QUADS; i++) a.quad[i] = vmulq_f32(a.quad[i], b.quad[i]);
    return a;
}

static inline v16 v16_add(v16 a, v16 b)
{
    for (int i = 0; i < QUADS; i++) a.quad[i] = vaddq_f32(a.quad[i], b.quad[i]);
    return a;
}

static inline v16 v16_sub(v16 a, v16 b)
{
    for (int i = 0; i < QUADS; i++) a.quad[i] = vsubq_f32(a.quad[i], b.quad[i]);
    return a;
}

/* Selections, because vmaxq and vminq would keep a NaN. */
static inline v16 v16_max(v16 a, v16 b)
{
    for (int i = 0; i < QUADS; i++)
        a.quad[i] = vbslq_f32(vcgtq_f32(a.quad[i], b.quad[i]), a.quad[i], b.quad[i]);
    return a;
}

static inline v16 v16_min(v16 a, v16 b)
{
    for (int i = 0; i < QUADS; i++)
        a.quad[i] = vbslq_f32(vcltq_f32(a.quad[i], b.quad[i]), a.quad[i], b.quad[i]);
    return a;
}

/* 2^n for a whole n from -126 to 127 */
static inline v16 v16_pow2(v16 n)
{
    for (int i = 0; i < QUADS; i++) {
        const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n.quad[i]), vdupq_n_s32(127));
        n.quad[i] = vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
    }
    return n;
}

static inline v16 v16_keep_from(v16 v, v16 x, float low)
{
    for (int i = 0; i < QUADS; i++) {
        const uint32x4_t kept = vcgeq_f32(x.quad[i], vdupq_n_f32(low));
        v.quad[i] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v.quad[i]), kept));
    }
    return v;
}

/* Two roundings: vfmaq would make one. */
static inline v16 v16_mul_add(v16 acc, v16 a, v16 b)
{
    for (int i = 0; i < QUADS; i++)
        acc.quad[i] = vaddq_f32(acc.quad[i], vmulq_f32(a.quad[i], b.quad[i]));
    return acc;
}

static inline v16 v16_from_f16(const uint8_t *p)
{
    v16 v;
    for (int i = 0; i < QUADS; i++)
        v.quad[i] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * i)));
    return v;
}

static inline v16 v16_from_i32(i32x16 x)
{
    v16 v;
    for (int i = 0; i < QUADS; i++) v.quad[i] = vcvtq_f32_s32(x.quad[i]);
    return v;
}

static inline v16 v16_from_codes(int8x16_t codes)
{
    const int16x8_t low = vmovl_s8(vget_low_s8(codes)), high = vmovl_s8(vget_high_s8(codes));
    return v16_from_i32(
        (i32x16){ { vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)),
                    vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high)) } });
}

static inline int8x16_t low_nibbles(const uint8_t *p)
{
    return vreinterpretq_s8_u8(vandq_u8(vld1q_u8(p), vdupq_n_u8(15)));
}

static inline int8x16_t high_nibbles(const uint8_t *p)
{
    return vreinterpretq_s8_u8(vshrq_n_u8(vld1q_u8(p), 4));
}

static inline v16 v16_from_i8(const uint8_t *p)
{
    return v16_from_codes(vreinterpretq_s8_u8(vld1q_u8(p)));
}

static inline v16 v16_from_low_u4(const uint8_t *p)
{
    return v16_from_codes(low_nibbles(p));
}

static inline v16 v16_from_high_u4(const uint8_t *p)
{
    return v16_from_codes(high_nibbles(p));
}

static inline i32x16 i32x16_zero(void)
{
    const int32x4_t zero = vdupq_n_s32(0);
    return (i32x16){ { zero, zero, zero, zero } };
}

static inline i32x16 i32x16_zero_int8(int32_t sum)
{
    (void)sum;
    return i32x16_zero();
}

static inline key8 load_key8(const uint8_t *p)
{
    key8 key;
    for (int i = 0; i < QUADS; i++) key.quad[i] = vreinterpretq_s8_u8(vld1q_u8(p + 16 * i));
    return key;
}

static inline key4 load_key4(const uint8_t *p)
{
    key4 key;
    for (int i = 0; i < QUADS; i++) {
        key.low[i] = low_nibbles(p + 16 * i);
        key.high[i] = high_nibbles(p + 16 * i);
    }
    return key;
}

/* Four codes of a query, twice. */
static inline int8x8_t four_codes(const int8_t *p)
{
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpret_s8_s32(vdup_n_s32(four));
}

static inline i32x16 dot_key8(i32x16 sum, key8 key, const int8_t *query)
{
    const int8x8_t q = four_codes(query);
    for (int i = 0; i < QUADS; i++) {
        const int16x8_t low = vmull_s8(vget_low_s8(key.quad[i]), q);
        const int16x8_t high = vmull_s8(vget_high_s8(key.quad[i]), q);
        sum.quad[i] = vpadalq_s16(sum.quad[i], vpaddq_s16(low, high));
    }
    return sum;
}

static inline i32x16 dot_key4(i32x16 sum, key4 key, const int8_t *query)
{
    const int8x8_t q_low = four_codes(query), q_high = four_codes(query + 4);
    for (int i = 0; i < QUADS; i++) {
        int16x8_t low = vmull_s8(vget_low_s8(key.low[i]), q_low);
        int16x8_t high = vmull_s8(vget_high_s8(key.low[i]), q_low);
        low = vmlal_s8(low, vget_low_s8(key.high[i]), q_high);
        high = vmlal_s8(high, vget_high_s8(key.high[i]), q_high);
        sum.quad[i] = vpadalq_s16(sum.quad[i], vpaddq_s16(low, high));
    }
    return sum;
}

#include "kv_template.h"

const tern_kv_ops tern_kv_neon = KV_OPS;
#endif
