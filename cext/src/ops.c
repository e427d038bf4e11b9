/* ops.c - the float steps between two matrices; see ops.h. */
#include "ops.h"
#include "detmath.h"
#include "variants.h"
#include <math.h>
#include <string.h>

static const float ABSMAX_FLOOR =
    1e-5f; /* part of the model's definition: a zero row gives q = 0 */
static const float DIGITS_FLOOR = 1e-30f; /* that of digits: only so that nothing divides by 0 */

WIDE static void scale_by_gain(const float *x, float r, const float *gain, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] = x[i] * r * gain[i];
}

void rms_norm(const tern_kernels *kernels, const float *x, const float *gain, size_t n, float eps,
              float *y)
{
    float sum;
    kernels->dot_f32(x, 1, n, x, &sum);
    scale_by_gain(x, 1.0f / sqrtf(sum / (float)n + eps), gain, n, y); /* sqrtf is exact by IEEE 754 */
}

/* max |x|.  Magnitudes order like their bits, and the integer maximum becomes vector code. */
static inline float absmax(const float *x, size_t n)
{
    int32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t magnitude = (int32_t)(bits_of_f32(x[i]) & 0x7fffffffu);
        largest = magnitude > largest ? magnitude : largest;
    }
    return f32_from_bits((uint32_t)largest);
}

/* One activation.  Both comparisons are false for a NaN's sake: it becomes -127, not undefined. */
static inline int8_t quantize_one(float x, float a)
{
    float q = round_f32(x * a);
    q = q > -(float)TERN_X_MAX ? q : -(float)TERN_X_MAX;
    q = q < (float)TERN_X_MAX ? q : (float)TERN_X_MAX;
    return (int8_t)(int32_t)q;
}

static size_t list_channels(const int8_t *x, size_t n, uint32_t *live, int8_t *live_x)
{
    size_t n_live = 0;
    for (size_t k = 0; k < n; k++) {
        live[n_live] = (uint32_t)k;
        live_x[n_live] = x[k];
        n_live += x[k] != 0;
    }
    live_x[n_live] = 0;
    return n_live;
}

WIDE void quantize(const float *x, size_t n, quantized *q)
{
    const float largest = absmax(x, n);
    const float a = (float)TERN_X_MAX / (largest > ABSMAX_FLOOR ? largest : ABSMAX_FLOOR);
    const size_t padded = (n + TERN_X_PAD - 1) / TERN_X_PAD * TERN_X_PAD;
    int8_t *const codes = q->x; /* a store of int8 might change q->x itself, which would stop vectors */
    int32_t sum = 0, n_zero = 0;
    for (size_t i = 0; i < n; i++) codes[i] = quantize_one(x[i], a);
    memset(codes + n, 0, padded - n);
    for (size_t i = 0; i < n; i++) {
        sum += codes[i];
        n_zero += codes[i] == 0;
    }
    q->inverse = 1.0f / a;
    q->n_zero = (size_t)n_zero;
    q->act = (tern_act){ .x = codes, .n = n, .sum = sum };
}

/* d = the lowest digit of q, which becomes what is left: (q - d) / 255 */
static inline int8_t take_digit(int32_t *q)
{
    enum { HALF = TERN_DIGIT_BASE / 2, LIFT = TERN_DIGITS_MAX_X / TERN_DIGIT_BASE + 2 };
    const uint32_t lifted = (uint32_t)(*q + HALF + LIFT * TERN_DIGIT_BASE); /* positive */
    const int32_t left = (int32_t)(lifted / TERN_DIGIT_BASE) - LIFT;
    const int8_t digit = (int8_t)(*q - left * TERN_DIGIT_BASE);
    *q = left;
    return digit;
}

/* As quantize_one, to a larger integer. */
static inline int32_t quantize_wide(float x, float a)
{
    float q = round_f32(x * a);
    q = q > -(float)TERN_DIGITS_MAX_X ? q : -(float)TERN_DIGITS_MAX_X;
    q = q < (float)TERN_DIGITS_MAX_X ? q : (float)TERN_DIGITS_MAX_X;
    return (int32_t)q;
}

WIDE static void split_digits(const float *x, size_t n, float a, int8_t *low, int8_t *middle,
                              int8_t *high)
{
    for (size_t i = 0; i < n; i++) {
        int32_t q = quantize_wide(x[i], a);
        low[i] = take_digit(&q);
        middle[i] = take_digit(&q);
        high[i] = (int8_t)q;
    }
}

WIDE static void finish_digit(quantized *d, size_t n, float inverse)
{
    const size_t padded = (n + TERN_X_PAD - 1) / TERN_X_PAD * TERN_X_PAD;
    int32_t sum = 0, n_zero = 0;
    memset(d->x + n, 0, padded - n);
    for (size_t i = 0; i < n; i++) {
        sum += d->x[i];
        n_zero += d->x[i] == 0;
    }
    d->inverse = inverse;
    d->n_zero = (size_t)n_zero;
    d->act = (tern_act){ .x = d->x, .n = n, .sum = sum };
}

void quantize_digits(const float *x, size_t n, quantized d[TERN_DIGITS])
{
    const float largest = absmax(x, n);
    const float a = (float)TERN_DIGITS_MAX_X / (largest > DIGITS_FLOOR ? largest : DIGITS_FLOOR);
    split_digits(x, n, a, d[0].x, d[1].x, d[2].x);
    for (size_t i = 0; i < TERN_DIGITS; i++) finish_digit(&d[i], n, 1.0f / a);
}

void sum_groups(quantized *q, size_t n_groups)
{
    const size_t n = q->act.n / n_groups;
    for (size_t g = 0; g < n_groups; g++) {
        int32_t sum = 0;
        for (size_t i = 0; i < n; i++) sum += q->x[g * n + i];
        q->sums[g] = sum;
    }
}

void list_live(quantized *q)
{
    q->act.n_live = list_channels(q->x, q->act.n, q->live, q->live_x);
    q->act.live = q->live;
    q->act.live_x = q->live_x;
}

/* Below 2^53, so exact in double; then rounded once. */
static inline float value_of(digit_rows z, size_t i)
{
    const int32_t *low = z.z, *middle = low + z.stride, *high = middle + z.stride;
    return (float)(((double)high[i] * TERN_DIGIT_BASE + middle[i]) * TERN_DIGIT_BASE + low[i]);
}

WIDE void dequantize_digits(digit_rows z, size_t n, float scale, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] = value_of(z, i) * scale;
}

WIDE void dequantize_rows(digit_rows z, size_t n, const float *scales, float scale, float *y)
{
    if (z.n_digits == 1)
        for (size_t i = 0; i < n; i++) y[i] = (float)z.z[i] * scales[i] * scale;
    else
        for (size_t i = 0; i < n; i++) y[i] = value_of(z, i) * scales[i] * scale;
}

WIDE void add_group(digit_rows z, size_t n, const float *scales, bool is_first, float *y)
{
    if (is_first) memset(y, 0, n * sizeof *y);
    if (z.n_digits == 1)
        for (size_t i = 0; i < n; i++) y[i] += (float)z.z[i] * scales[i];
    else
        for (size_t i = 0; i < n; i++) y[i] += value_of(z, i) * scales[i];
}

WIDE void dequantize(const int32_t *z, size_t n, float scale, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] = (float)z[i] * scale;
}

WIDE void add_dequantized(const int32_t *z, size_t n, float scale, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] += (float)z[i] * scale;
}

WIDE void activate(tern_act_kind kind, float *gate, size_t n)
{
    if (kind == TERN_RELU2)
        for (size_t i = 0; i < n; i++) {
            const float open = gate[i] > 0.0f ? gate[i] : 0.0f;
            gate[i] = open * open;
        }
    else
        for (size_t i = 0; i < n; i++) gate[i] = gate[i] / (1.0f + det_expf(-gate[i]));
}

WIDE void gated_product(const float *gate, const float *up, size_t n, float *y)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t is_open = gate[i] != 0.0f;
        y[i] = f32_from_bits(bits_of_f32(gate[i] * up[i]) & (0u - is_open)); /* no branch */
    }
}

size_t open_gates(const float *gate, size_t n, uint32_t *rows)
{
    size_t n_open = 0;
    for (size_t i = 0; i < n; i++) {
        rows[n_open] = (uint32_t)i;
        n_open += gate[i] != 0.0f;
    }
    return n_open;
}

WIDE size_t count_open_gates(const float *gate, size_t n)
{
    uint32_t n_open = 0;
    for (size_t i = 0; i < n; i++) n_open += gate[i] != 0.0f;
    return n_open;
}

WIDE void embed_f16(const uint16_t *row, size_t n, float scale, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] = f32_from_f16(row[i]) * scale;
}

WIDE void add_scaled(const float *x, size_t n, float scale, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] += x[i] * scale;
}

WIDE void divide(float *x, size_t n, float divisor)
{
    for (size_t i = 0; i < n; i++) x[i] /= divisor;
}
