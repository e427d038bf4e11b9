/* scalar.c - the reference.  Slow, obvious, and the definition of correct.
 *
 * It ignores act.sum on purpose: the reference must not share the trick it is there to check. */
#include "variants.h"
#include <string.h>

static int trit_at(const uint8_t *block, size_t i)
{
    return ((block[i % 32] >> (i / 32 * 2)) & 3) - 1;
}

static void gemv_rows_scalar(const uint8_t *plane, const tern_act *a, int32_t *y,
                             const uint32_t *rows, size_t begin, size_t end)
{
    const size_t row_bytes = (a->n + TERN_BLOCK - 1) / TERN_BLOCK * TERN_BLOCK_BYTES;
    for (size_t i = begin; i < end; i++) {
        const size_t r = rows ? rows[i] : i;
        const uint8_t *row = plane + r * row_bytes;
        int32_t acc = 0;
        for (size_t k = 0; k < a->n; k++)
            acc += trit_at(row + k / TERN_BLOCK * TERN_BLOCK_BYTES, k % TERN_BLOCK) * a->x[k];
        y[r] = acc;
    }
}

static void gemv_cols_scalar(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                             size_t end)
{
    const size_t visited = a->live ? a->n_live : a->n;
    for (size_t u = begin; u < end; u++) {
        const uint8_t *half = plane + u / 2 * a->n * TERN_LINE_BYTES + u % 2 * TERN_BLOCK_BYTES;
        int32_t *out = y + u * TERN_UNIT;
        memset(out, 0, TERN_UNIT * sizeof *out);
        for (size_t i = 0; i < visited; i++) {
            const size_t k = a->live ? a->live[i] : i;
            for (size_t o = 0; o < TERN_UNIT; o++)
                out[o] += trit_at(half + k * TERN_LINE_BYTES, o) * a->x[k];
        }
    }
}

static void dot_f16_scalar(const uint16_t *rows, size_t n_rows, size_t n, const float *x, float *y)
{
    for (size_t r = 0; r < n_rows; r++, rows += n) {
        float lane[DOT_LANES] = { 0 };
        for (size_t i = 0; i < n; i++) lane[i % DOT_LANES] += f32_from_f16(rows[i]) * x[i];
        y[r] = dot_tree(lane);
    }
}

static void dot_f32_scalar(const float *rows, size_t n_rows, size_t n, const float *x, float *y)
{
    for (size_t r = 0; r < n_rows; r++, rows += n) {
        float lane[DOT_LANES] = { 0 };
        for (size_t i = 0; i < n; i++) lane[i % DOT_LANES] += rows[i] * x[i];
        y[r] = dot_tree(lane);
    }
}

static void mix_f32_scalar(const float *rows, size_t n_rows, size_t n, const float *w, float *y)
{
    for (size_t i = 0; i < n; i++) y[i] = 0.0f;
    for (size_t r = 0; r < n_rows; r++, rows += n)
        for (size_t i = 0; i < n; i++) y[i] += w[r] * rows[i];
}

const tern_kernels tern_scalar = {
    .name = "scalar",
    .needs = 0,
    .gemv_rows = gemv_rows_scalar,
    .gemv_cols = gemv_cols_scalar,
    .dot_f16 = dot_f16_scalar,
    .dot_f32 = dot_f32_scalar,
    .mix_f32 = mix_f32_scalar,
};
