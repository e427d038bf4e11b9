/* scalar.c - the reference.  Slow, obvious, and the definition of correct.
 *
 * It ignores act.sum on purpose: the reference must not share the trick it is there to check. */
#include "variants.h"

static int trit_2bit(const uint8_t *block, size_t i)
{
    return ((block[i % 32] >> (i / 32 * 2)) & 3) - 1;
}

static int trit_base3(const uint8_t *block, size_t i)
{
    static const int power[5] = { 1, 3, 9, 27, 81 };
    return block[i % 64] / power[i / 64] % 3 - 1;
}

static int trit_at(tern_packing packing, const uint8_t *blocks, size_t i)
{
    if (packing == TERN_BASE3)
        return trit_base3(blocks + i / TERN_BLOCK3 * TERN_BLOCK3_BYTES, i % TERN_BLOCK3);
    return trit_2bit(blocks + i / TERN_BLOCK * TERN_BLOCK_BYTES, i % TERN_BLOCK);
}

static void gemv_rows(tern_packing packing, const uint8_t *plane, const tern_act *a, int32_t *y,
                      const uint32_t *rows, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        const size_t r = rows ? rows[i] : i;
        const uint8_t *row = plane + r * tern_row_bytes(packing, a->n);
        int32_t acc = 0;
        for (size_t k = 0; k < a->n; k++) acc += trit_at(packing, row, k) * a->x[k];
        y[r] = acc;
    }
}

static void gemv_rows_2bit_scalar(const uint8_t *plane, const tern_act *a, int32_t *y,
                                  const uint32_t *rows, size_t begin, size_t end)
{
    gemv_rows(TERN_2BIT, plane, a, y, rows, begin, end);
}

void gemv_rows_base3_scalar(const uint8_t *plane, const tern_act *a, int32_t *y,
                                   const uint32_t *rows, size_t begin, size_t end)
{
    gemv_rows(TERN_BASE3, plane, a, y, rows, begin, end);
}

static void gemv_cols_scalar(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                             size_t end)
{
    const size_t visited = a->live ? a->n_live : a->n;
    for (size_t o = begin * TERN_UNIT; o < end * TERN_UNIT; o++) {
        const uint8_t *panel = plane + o / TERN_PANEL * a->n * TERN_LINE_BYTES;
        int32_t acc = 0;
        for (size_t i = 0; i < visited; i++) {
            const size_t k = a->live ? a->live[i] : i;
            acc += trit_at(TERN_2BIT, panel + k * TERN_LINE_BYTES, o % TERN_PANEL) * a->x[k];
        }
        y[o] = acc;
    }
}

void gemv_tiles_scalar(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin, size_t end)
{
    const size_t tiles = (a->n + TERN_TILE_CHANNELS - 1) / TERN_TILE_CHANNELS;
    for (size_t o = begin * TERN_TILE_OUTPUTS; o < end * TERN_TILE_OUTPUTS; o++) {
        const uint8_t *panel = plane + o / TERN_TILE_OUTPUTS * tiles * TERN_LINE_BYTES;
        const size_t field = o % TERN_TILE_OUTPUTS / 16, lane = o % 16;
        int32_t acc = 0;
        for (size_t k = 0; k < a->n; k++) {
            const uint8_t *tile = panel + k / 4 * TERN_LINE_BYTES;
            acc += trit_base3(tile, 64 * field + 4 * lane + k % 4) * a->x[k];
        }
        y[o] = acc;
    }
}

void gemv_channels_scalar(const uint8_t *plane, const tern_act *a, size_t n_out, int32_t *y,
                          size_t begin, size_t end)
{
    const size_t channel_bytes = tern_row_bytes(TERN_BASE3, n_out);
    for (size_t o = 0; o < channel_bytes * 5; o++) {
        y[o] = 0;
        for (size_t i = begin; i < end; i++) {
            const size_t k = a->live ? a->live[i] : i;
            y[o] += trit_at(TERN_BASE3, plane + k * channel_bytes, o) * a->x[k];
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
    .gemv_rows = { gemv_rows_2bit_scalar, gemv_rows_base3_scalar },
    .gemv_cols = gemv_cols_scalar,
    .gemv_tiles = gemv_tiles_scalar,
    .gemv_channels = gemv_channels_scalar,
    .gemv_binary = gemv_binary_scalar,
    .gemv_int8 = gemv_int8_scalar,
    .dot_f16 = dot_f16_scalar,
    .dot_f32 = dot_f32_scalar,
    .mix_f32 = mix_f32_scalar,
    .kv = &tern_kv_scalar,
    .scan = head_scan_scalar,
    .refine = head_refine_scalar,
};
