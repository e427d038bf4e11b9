/* ternary.h - the kernel contract.  Every variant implements exactly this.
 *
 * Terms   trit    a weight in {-1, 0, +1}
 *         code    a trit as stored: trit + 1, in {0, 1, 2}; code 3 never occurs
 *         block   TERN_BLOCK trits in TERN_BLOCK_BYTES bytes:
 *                 byte j = code[j] | code[32 + j] << 2 | code[64 + j] << 4 | code[96 + j] << 6
 *         plane   a packed (out, in) matrix of trits, in one of two orientations
 *
 *   output-major  (out, ceil(in / 128) * 32) uint8: a row is the blocks of one output
 *   input-major   (ceil(out / 256), in, 64) uint8: a line is one input channel of 256 outputs
 *
 *                 panel 0                      panel 1
 *       line 0    [block 0 | block 1]          [block 0 | block 1]       64 bytes, one cache line
 *       line 1    [block 0 | block 1]          ...
 *       ...         unit 0    unit 1             unit 2    unit 3        unit: 128 outputs
 *
 * Codes are unsigned, so a variant may compute sum code * x and subtract sum x at the end:
 *       sum trit * x = sum code * x - sum x.
 *
 * All ops are pure: no allocation, no globals, no threads.  All variants return identical bits, the
 * float ops included: their order of additions is part of this contract. */
#ifndef TERNARY_H
#define TERNARY_H

#include <stddef.h>
#include <stdint.h>

enum {
    TERN_BLOCK = 128, /* trits; padding is code 1, trit 0 */
    TERN_BLOCK_BYTES = 32,
    TERN_PANEL = 256, /* outputs of one input-major line */
    TERN_LINE_BYTES = 64,
    TERN_UNIT = 128,      /* outputs: the grain of work in an input-major plane */
    TERN_X_MAX = 127,     /* |x[k]| bound: -128 is not a legal activation */
    TERN_IN_MAX = 1 << 23 /* inputs; |sum code * x| <= 2 * 127 * 2^23 < 2^31 */
};
_Static_assert(2LL * TERN_X_MAX * TERN_IN_MAX <= INT32_MAX, "int32 sum would overflow");

/* One vector of quantised activations.
 *
 * Channels that are exactly zero contribute nothing; `live` names the others.  When `live` is NULL
 * every channel is visited. */
typedef struct tern_act {
    const int8_t *x;      /* (ceil(n / 128) * 128,) in [-TERN_X_MAX, TERN_X_MAX]; padding is 0 */
    size_t n;             /* inputs, 0 < n <= TERN_IN_MAX */
    int32_t sum;          /* sum_k x[k] */
    const uint32_t *live; /* (n_live,) ascending k, or NULL */
    const int8_t *live_x; /* (n_live + 1,) x[live[i]], then one 0; unused when live is NULL */
    size_t n_live;
} tern_act;

/* Output-major GEMV.  For every i in [begin, end), with r = rows ? rows[i] : i:
 *
 *       y[r] = sum_k W[r, k] * x[k]
 *
 *   plane  (out, ceil(a->n / 128) * 32) uint8   no alignment needed
 *   y      (out,) int32   only the named rows are written; other rows are not read either
 *   rows   (>= end,) uint32, or NULL for all */
typedef void tern_gemv_rows_fn(const uint8_t *plane, const tern_act *a, int32_t *y,
                               const uint32_t *rows, size_t begin, size_t end);

/* Input-major GEMV.  For every unit u in [begin, end) and every o in [128 u, 128 u + 128):
 *
 *       y[o] = sum_k W[o, k] * x[k]       over a->live, or over all k
 *
 *   plane  (panels, a->n, 64) uint8   no alignment needed, 64 is best
 *   y      (panels * 256,) int32      outputs of other units are untouched; padding outputs are 0
 */
typedef void tern_gemv_cols_fn(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                               size_t end);

/* Dot products: y[r] = sum_i rows[r * n + i] * x[i] in float32.
 *
 * Order, for every variant: 16 partial sums that begin at +0, lane l takes the elements l, l + 16,
 * l + 32, ... in turn; then lane l += lane l + 8 for l < 8, l += l + 4 for l < 4, l += l + 2 for
 * l < 2, and lane 0 += lane 1.  Every product is rounded before it is added: no FMA.
 *
 *   rows   (n_rows, n) float16 bits, or float32   no alignment needed beyond the element
 *   x      (n,) float32
 *   y      (n_rows,) float32   overwritten */
typedef void tern_dot_f16_fn(const uint16_t *rows, size_t n_rows, size_t n, const float *x,
                             float *y);
typedef void tern_dot_f32_fn(const float *rows, size_t n_rows, size_t n, const float *x, float *y);

/* Weighted sum of rows: y[i] = ((0 + w[0] * rows[0][i]) + w[1] * rows[1][i]) + ...   no FMA.
 *
 *   rows   (n_rows, n) float32      w  (n_rows,) float32      y  (n,) float32, overwritten */
typedef void tern_mix_f32_fn(const float *rows, size_t n_rows, size_t n, const float *w, float *y);

enum tern_cpu {
    TERN_CPU_AVX2 = 1u << 0,
    TERN_CPU_F16C = 1u << 1,
    TERN_CPU_AVX512VNNI = 1u << 2, /* F, BW, VL and VNNI together */
    TERN_CPU_NEON = 1u << 3,
    TERN_CPU_DOTPROD = 1u << 4,
    TERN_CPU_I8MM = 1u << 5,
};

/* One variant.  `name` is the suffix of its file and of every symbol in it; `needs` holds the
 * enum tern_cpu bits that must all be present. */
typedef struct tern_kernels {
    const char *name;
    uint32_t needs;
    tern_gemv_rows_fn *gemv_rows;
    tern_gemv_cols_fn *gemv_cols;
    tern_dot_f16_fn *dot_f16;
    tern_dot_f32_fn *dot_f32;
    tern_mix_f32_fn *mix_f32;
} tern_kernels;

/* The only function that looks at the machine. */
uint32_t tern_cpu_features(void);

/* Best variant for `cpu`, or the one called `forced` (may be NULL).
 * NULL when `forced` is unknown or needs a feature that `cpu` lacks: never a silent fallback. */
const tern_kernels *tern_select(uint32_t cpu, const char *forced);

/* All variants compiled in, best first, NULL-terminated. */
const tern_kernels *const *tern_variants(void);

/* Index of the first byte that holds the illegal code 3, or `n_bytes` when there is none. */
size_t tern_find_bad_code(const uint8_t *bytes, size_t n_bytes);

#endif
