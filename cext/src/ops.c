/* ops.c - the float steps between two matrices; see ops.h. */
#include "ops.h"
#include "detmath.h"
#include "variants.h"
#include <math.h>
#include <string.h>

static const float ABSMAX_FLOOR =
    1e-5f; /* part of the model's definition: a zero row gives q = 0 */

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
    int32_t sum = 0, n_zero = 0;
    for (size_t i = 0; i < n; i++) q->x[i] = quantize_one(x[i], a);
    memset(q->x + n, 0, padded - n);
    for (size_t i = 0; i < n; i++) {
        sum += q->x[i];
        n_zero += q->x[i] == 0;
    }
    q->inverse = 1.0f / a;
    q->n_zero = (size_t)n_zero;
    q->act = (tern_act){ .x = q->x, .n = n, .sum = sum };
}

void list_live(quantized *q)
{
    q->act.n_live = list_channels(q->x, q->act.n, q->live, q->live_x);
    q->act.live = q->live;
    q->act.live_x = q->live_x;
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
