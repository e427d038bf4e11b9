/* kv_store.c - the layouts of kv.h, and what writes them: float32 to float16, int8 and int4. */
#include "detmath.h"
#include "kv.h"
#include "variants.h"
#include <float.h>
#include <stdbool.h>

static const float INT8_MAX_CODE = 127.0f, INT4_MAX_CODE = 15.0f;

static size_t round_up(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

/* Bytes of a group's parameters in one tile. */
static size_t param_bytes(tern_kv_format format)
{
    const size_t halves = format == TERN_KV_INT4 ? 2 : 1; /* scale, minimum */
    return halves * TERN_KV_TILE * sizeof(uint16_t);
}

static tern_kv_format format_of(unsigned kv_bits)
{
    switch (kv_bits) {
    case 4: return TERN_KV_INT4;
    case 8: return TERN_KV_INT8;
    case 16: return TERN_KV_F16;
    default: return TERN_KV_F32;
    }
}

tern_kv_layout tern_kv_layout_of(unsigned kv_bits, size_t group, size_t head_dim)
{
    const tern_kv_format format = format_of(kv_bits);
    const bool is_coded = format == TERN_KV_INT8 || format == TERN_KV_INT4;
    const size_t step = format == TERN_KV_F32 ? 1 : format == TERN_KV_INT4 ? 32 : 16;
    tern_kv_layout kv = { .format = format,
                          .head_dim = head_dim,
                          .width = round_up(head_dim, step),
                          .group = is_coded ? group : 0,
                          .n_groups = is_coded ? (head_dim + group - 1) / group : 0 };
    kv.code_bytes = TERN_KV_TILE * kv.width * kv_bits / 8;
    kv.tile_bytes = round_up(kv.code_bytes + kv.n_groups * param_bytes(format), TERN_KV_LINE);
    return kv;
}

/* ---- numbers: on their bits, so that loops over them become vector code ---- */

enum { F16_MAX_BITS = 0x477fe000, F16_NORMAL_BITS = 0x38800000 }; /* 65504, 2^-14 */

static inline int32_t smaller_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t larger_i32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* Magnitudes order like their bits; a NaN is the largest of all. */
static inline int32_t magnitude_of(float x)
{
    return (int32_t)(bits_of_f32(x) & 0x7fffffffu);
}

uint16_t tern_f16_from_f32(float x)
{
    const uint32_t magnitude = (uint32_t)smaller_i32(magnitude_of(x), F16_MAX_BITS);
    /* Normal: round the 13 lowest bits of the mantissa away, then change the exponent's bias. */
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    const uint32_t normal = (rounded - ((127u - 15u) << 23)) >> 13;
    /* Below 2^-14: a whole number of 2^-24. */
    const int32_t small = smaller_i32((int32_t)magnitude, F16_NORMAL_BITS);
    const int32_t subnormal = (int32_t)round_f32(f32_from_bits((uint32_t)small) * 0x1p24f);
    const uint32_t half = magnitude < F16_NORMAL_BITS ? (uint32_t)subnormal : normal;
    return (uint16_t)(half | (bits_of_f32(x) >> 16 & 0x8000u));
}

static float absmax(const float *x, size_t n)
{
    int32_t largest = 0;
    for (size_t i = 0; i < n; i++) largest = larger_i32(magnitude_of(x[i]), largest);
    return f32_from_bits((uint32_t)largest);
}

/* Bits of a float as an integer of the same order, and back. */
static inline int32_t ordered(int32_t bits)
{
    return bits ^ (bits >> 31 & 0x7fffffff);
}

static void extremes(const float *x, size_t n, float *low, float *high)
{
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (size_t i = 0; i < n; i++) {
        const int32_t key = ordered((int32_t)bits_of_f32(x[i]));
        least = smaller_i32(key, least);
        most = larger_i32(key, most);
    }
    *low = f32_from_bits((uint32_t)ordered(least));
    *high = f32_from_bits((uint32_t)ordered(most));
}

/* Round to -127..127; beyond them, infinities and NaNs become the nearer end. */
static void round_int8(const float *x, size_t n, float inverse, int8_t *codes)
{
    const int32_t limit = (int32_t)bits_of_f32(INT8_MAX_CODE);
    for (size_t i = 0; i < n; i++) {
        const float scaled = x[i] * inverse;
        const uint32_t magnitude = (uint32_t)smaller_i32(magnitude_of(scaled), limit);
        const uint32_t sign = bits_of_f32(scaled) & 0x80000000u;
        codes[i] = (int8_t)(int32_t)round_f32(f32_from_bits(magnitude | sign));
    }
}

/* Round (x - from) * inverse to 0..15. */
static void round_int4(const float *x, size_t n, float from, float inverse, uint8_t *codes)
{
    const int32_t limit = (int32_t)bits_of_f32(INT4_MAX_CODE);
    for (size_t i = 0; i < n; i++) {
        const int32_t bits = (int32_t)bits_of_f32((x[i] - from) * inverse);
        const int32_t inside = smaller_i32(larger_i32(bits, 0), limit);
        codes[i] = (uint8_t)(int32_t)round_f32(f32_from_bits((uint32_t)inside));
    }
}

/* 1 / x, and 0 where a scale is 0 and so every code. */
static float inverse_of(float scale)
{
    return scale > 0.0f ? 1.0f / scale : 0.0f;
}

/* ---- one group ---- */

typedef struct group_params {
    uint16_t scale, minimum; /* float16 */
} group_params;

static group_params int8_codes(const float *x, size_t n, uint8_t *codes)
{
    const uint16_t scale = tern_f16_from_f32(absmax(x, n) / INT8_MAX_CODE);
    round_int8(x, n, inverse_of(f32_from_f16(scale)), (int8_t *)codes);
    return (group_params){ scale, 0 };
}

/* The codes are taken from the rounded minimum and scale, so that their rounding costs nothing
 * twice. */
static group_params int4_codes(const float *x, size_t n, uint8_t *codes)
{
    float low, high;
    extremes(x, n, &low, &high);
    const uint16_t minimum = tern_f16_from_f32(low);
    const float from = f32_from_f16(minimum), range = high > from ? high - from : 0.0f;
    const uint16_t scale = tern_f16_from_f32(range / INT4_MAX_CODE);
    round_int4(x, n, from, inverse_of(f32_from_f16(scale)), codes);
    return (group_params){ scale, minimum };
}

/* ---- one position ---- */

static void put_half(uint8_t *base, size_t i, uint16_t half)
{
    memcpy(base + i * sizeof half, &half, sizeof half);
}

/* x[i] to half i * stride, in pieces: a loop without strides becomes vector code. */
static void put_halves(uint8_t *base, size_t stride, const float *x, size_t n)
{
    enum { PIECE = 32 };
    for (size_t at = 0; at < n; at += PIECE) {
        uint16_t halves[PIECE];
        const size_t end = at + PIECE < n ? PIECE : n - at;
        for (size_t i = 0; i < end; i++) halves[i] = tern_f16_from_f32(x[at + i]);
        for (size_t i = 0; i < end; i++) put_half(base, (at + i) * stride, halves[i]);
    }
}

/* One nibble of a byte; `shift` is 0 or 4. */
static void put_nibble(uint8_t *byte, size_t shift, uint8_t code)
{
    *byte = (uint8_t)((*byte & 0xf0u >> shift) | (unsigned)code << shift);
}

typedef void put_codes_fn(const tern_kv_layout *kv, uint8_t *tile, size_t p, size_t first,
                          const uint8_t *codes, size_t n);

static void put_key_codes(const tern_kv_layout *kv, uint8_t *tile, size_t p, size_t first,
                          const uint8_t *codes, size_t n)
{
    for (size_t i = 0, d = first; i < n; i++, d++) {
        if (kv->format == TERN_KV_INT8)
            tile[64 * (d / 4) + 4 * p + d % 4] = codes[i];
        else
            put_nibble(tile + 64 * (d / 8) + 4 * p + d % 4, d % 8 / 4 * 4, codes[i]);
    }
}

static void put_value_codes(const tern_kv_layout *kv, uint8_t *tile, size_t p, size_t first,
                            const uint8_t *codes, size_t n)
{
    for (size_t i = 0, d = first; i < n; i++, d++) {
        if (kv->format == TERN_KV_INT8)
            tile[kv->width * p + d] = codes[i];
        else
            put_nibble(tile + kv->width / 2 * p + 16 * (d / 32) + d % 16, d % 32 / 16 * 4,
                       codes[i]);
    }
}

static void put_groups(const tern_kv_layout *kv, uint8_t *tile, size_t p, const float *x,
                       put_codes_fn *put_codes)
{
    uint8_t codes[TERN_KV_GROUP_MAX];
    for (size_t g = 0, d = 0; g < kv->n_groups; g++, d += kv->group) {
        const size_t n = kv->group < kv->head_dim - d ? kv->group : kv->head_dim - d;
        const bool is_int4 = kv->format == TERN_KV_INT4;
        const group_params params = (is_int4 ? int4_codes : int8_codes)(x + d, n, codes);
        uint8_t *at = tile + kv->code_bytes + g * param_bytes(kv->format);
        put_codes(kv, tile, p, d, codes, n);
        put_half(at, p, params.scale);
        if (is_int4) put_half(at, TERN_KV_TILE + p, params.minimum);
    }
}

void tern_kv_put_key(const tern_kv_layout *kv, uint8_t *tile, size_t position, const float *x)
{
    if (kv->format == TERN_KV_F32)
        memcpy(tile + position * kv->head_dim * sizeof *x, x, kv->head_dim * sizeof *x);
    else if (kv->format == TERN_KV_F16)
        put_halves(tile + position * sizeof(uint16_t), TERN_KV_TILE, x, kv->head_dim);
    else
        put_groups(kv, tile, position, x, put_key_codes);
}

void tern_kv_put_value(const tern_kv_layout *kv, uint8_t *tile, size_t position, const float *x)
{
    if (kv->format == TERN_KV_F32)
        memcpy(tile + position * kv->head_dim * sizeof *x, x, kv->head_dim * sizeof *x);
    else if (kv->format == TERN_KV_F16)
        put_halves(tile + kv->width * position * sizeof(uint16_t), 1, x, kv->head_dim);
    else
        put_groups(kv, tile, position, x, put_value_codes);
}

void tern_kv_quantize_query(const tern_kv_layout *kv, const float *x, int8_t *codes, float *scale,
                            int32_t *sum)
{
    for (size_t g = 0, d = 0; g < kv->n_groups; g++, d += kv->group) {
        const size_t n = kv->group < kv->head_dim - d ? kv->group : kv->head_dim - d;
        const float largest = absmax(x + d, n);
        const bool is_tiny = largest < INT8_MAX_CODE * FLT_MIN; /* its inverse would overflow */
        int32_t sum_of_codes = 0;
        round_int8(x + d, n, is_tiny ? 0.0f : INT8_MAX_CODE / largest, codes + d);
        for (size_t i = 0; i < n; i++) sum_of_codes += codes[d + i];
        sum[g] = sum_of_codes;
        scale[g] = is_tiny ? 0.0f : largest / INT8_MAX_CODE;
    }
    memset(codes + kv->head_dim, 0, round_up(kv->head_dim, TERN_KV_GROUP_STEP) - kv->head_dim);
}
