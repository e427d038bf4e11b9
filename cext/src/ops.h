/* ops.h - private: the float steps between two matrices, in portable C.
 *
 * Elementwise loops have no order to keep; every sum is a kernel's. */
#ifndef OPS_H
#define OPS_H

#include "forward.h"

/* One copy of a loop for every width of vector, chosen when the module is loaded.  The loops are
 * elementwise and nothing is contracted, so all copies give the same bits. */
#if defined(__x86_64__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define WIDE
#endif

/* Quantised activations of one token; owns nothing. */
typedef struct quantized {
    tern_act act;
    float inverse; /* 1 / a: multiply an integer product by it */
    size_t n_zero;
    int8_t *x;      /* (capacity,) what act.x points to */
    uint32_t *live; /* (capacity,) */
    int8_t *live_x; /* (capacity + 1,) */
    int32_t *sums;  /* (n_groups,) of act.x, when the matrix has groups */
} quantized;

/* y = x / sqrt(mean(x^2) + eps) * gain.  The sum of squares is kernels->dot_f32(x, x): 16 partial
 * sums in the order of ternary.h.  `y` may be `x`. */
void rms_norm(const tern_kernels *kernels, const float *x, const float *gain, size_t n, float eps,
              float *y);

/* q = round_half_even(x * a), a = 127 / max(max |x|, 1e-5); all channels are visited. */
void quantize(const float *x, size_t n, quantized *q);

/* q = round_half_even(x * a), a = TERN_DIGITS_MAX_X / max(max |x|, 1e-30), as digits in base
 * TERN_DIGIT_BASE, the lowest first: q = d[0].x + 255 d[1].x + ...; `inverse` is that of q. */
void quantize_digits(const float *x, size_t n, quantized d[TERN_DIGITS]);

/* sums[g] of n_groups equal runs of the input */
void sum_groups(quantized *q, size_t n_groups);

/* Visit only the channels that are not 0. */
void list_live(quantized *q);

/* Integer products of the digits of one token, 1 or TERN_DIGITS: row d is z + d * stride. */
typedef struct digit_rows {
    const int32_t *z;
    size_t stride, n_digits;
} digit_rows;

/* With v the product, exact and then rounded once: y = v * scale, y = v * scales * scale, and of one
 * group after another y = v * scales (the first), y += v * scales. */
void dequantize_digits(digit_rows z, size_t n, float scale, float *y);
void dequantize_rows(digit_rows z, size_t n, const float *scales, float scale, float *y);
void add_group(digit_rows z, size_t n, const float *scales, bool is_first, float *y);

/* y = z * scale, and y += z * scale */
void dequantize(const int32_t *z, size_t n, float scale, float *y);
void add_dequantized(const int32_t *z, size_t n, float scale, float *y);

/* cos and sin of position * frequency[i], times the attention factor, for positions [begin, end) of
 * tables of (context, head_dim / 2) each.  Which factors longrope takes depends on the context. */
void rope_table(const tern_rope *r, size_t head_dim, size_t context, size_t begin, size_t end,
                float *cosines, float *sines);

/* Rotate-half RoPE over (n_heads, head_dim) in place; cosines and sines of one position. */
void rope(float *x, size_t n_heads, size_t head_dim, const float *cosines, const float *sines);

/* Activation of the gate in place. */
void activate(tern_act_kind kind, float *gate, size_t n);

/* y[i] = gate[i] * up[i], and exactly 0 where the gate is 0, whatever up holds. */
void gated_product(const float *gate, const float *up, size_t n, float *y);

/* Indices of the gates that are not 0; returns how many. */
size_t open_gates(const float *gate, size_t n, uint32_t *rows);
size_t count_open_gates(const float *gate, size_t n);

void embed_f16(const uint16_t *row, size_t n, float scale, float *y);

/* y += x * scale */
void add_scaled(const float *x, size_t n, float scale, float *y);

void divide(float *x, size_t n, float divisor);

#endif
