/* kv_store.c - the layouts of kv.h, and what writes them: float32 to float16, int8 and int4. */
#include "detmath.h"
#include "kv.h"
#include "variants.h"
#include <float.h>
#include <stdbool.h>

static const float F16_MAX = 65504.0f;
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

/* ---- numbers ---- */

/* False comparisons decide for a NaN: it becomes `low`. */
static inline float clamp(float x, float low, float high)
{
    x = x > low ? x : low;
    return x < high ? x : high;
}

uint16_t tern_f16_from_f32(float x)
{
    x = clamp(x, -F16_MAX, F16_MAX);
    const uint32_t bits = bits_of_f32(x), magnitude = bits & 0x7fffffffu;
    /* Normal: round the 13 lowest bits of the mantissa away, then change the exponent's bias. */
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    const uint32_t normal = (rounded - ((127u - 15u) << 23)) >> 13;
    /* Below 2^-14: a whole number of 2^-24. */
    const uint32_t subnormal = (uint32_t)round_f32(f32_from_bits(magnitude) * 0x1p24f);
    const uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    return (uint16_t)(half | (bits >> 16 & 0x8000u));
}

static float absmax(const float *x, size_t n)
{
    float largest = 0.0f;
    for (size_t i = 0; i < n; i++) {
        const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
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
    const float inverse = inverse_of(f32_from_f16(scale));
    for (size_t i = 0; i < n; i++)
        codes[i] = (uint8_t)(int8_t)round_f32(clamp(x[i] * inverse, -INT8_MAX_CODE, INT8_MAX_CODE));
    return (group_params){ scale, 0 };
}

/* The codes are taken from the rounded minimum and scale, so that their rounding costs nothing
 * twice. */
static group_params int4_codes(const float *x, size_t n, uint8_t *codes)
{
    float low = x[0], high = x[0];
    for (size_t i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    const uint16_t minimum = tern_f16_from_f32(low);
    const float from = f32_from_f16(minimum), range = high > from ? high - from : 0.0f;
    const uint16_t scale = tern_f16_from_f32(range / INT4_MAX_CODE);
    const float inverse = inverse_of(f32_from_f16(scale));
    for (size_t i = 0; i < n; i++)
        codes[i] = (uint8_t)round_f32(clamp((x[i] - from) * inverse, 0.0f, INT4_MAX_CODE));
    return (group_params){ scale, minimum };
}

/* ---- one position ---- */

static void put_half(uint8_t *base, size_t i, uint16_t half)
{
    memcpy(base + i * sizeof half, &half, sizeof half);
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
        for (size_t d = 0; d < kv->head_dim; d++)
            put_half(tile, TERN_KV_TILE * d + position, tern_f16_from_f32(x[d]));
    else
        put_groups(kv, tile, position, x, put_key_codes);
}

void tern_kv_put_value(const tern_kv_layout *kv, uint8_t *tile, size_t position, const float *x)
{
    if (kv->format == TERN_KV_F32)
        memcpy(tile + position * kv->head_dim * sizeof *x, x, kv->head_dim * sizeof *x);
    else if (kv->format == TERN_KV_F16)
        for (size_t d = 0; d < kv->head_dim; d++)
            put_half(tile, kv->width * position + d, tern_f16_from_f32(x[d]));
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
        const float inverse = is_tiny ? 0.0f : INT8_MAX_CODE / largest;
        sum[g] = 0;
        for (size_t i = 0; i < n; i++) {
            const float q = round_f32(clamp(x[d + i] * inverse, -INT8_MAX_CODE, INT8_MAX_CODE));
            codes[d + i] = (int8_t)q;
            sum[g] += codes[d + i];
        }
        scale[g] = is_tiny ? 0.0f : largest / INT8_MAX_CODE;
    }
    memset(codes + kv->head_dim, 0, round_up(kv->head_dim, TERN_KV_GROUP_STEP) - kv->head_dim);
}
