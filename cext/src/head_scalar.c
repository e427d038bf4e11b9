/* head_scalar.c - the scan of an LM head: the definition of correct.
 *
 * It multiplies by the level's value itself and ignores minus_zero on purpose: the reference must
 * not share the trick it is there to check. */
#include "variants.h"

static int level_at(const uint8_t *group, const uint8_t *levels, size_t row, size_t k)
{
    const size_t line = k / TERN_SCAN_LINE_INPUTS, half = k / 4 % 2, at = 4 * row + k % 4;
    const int nibble = group[line * TERN_LINE_BYTES + at] >> 4 * half & 15;
    const int fifth = group[SCAN_NIBBLE_LINES * TERN_LINE_BYTES + at] >> (2 * line + half) & 1;
    return levels[nibble + 16 * fifth] - TERN_SCAN_ZERO;
}

void head_scan_scalar(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                      const tern_scan_x *x, float *y, size_t begin, size_t end)
{
    for (size_t r = begin * TERN_SCAN_ROWS; r < end * TERN_SCAN_ROWS; r++) {
        const size_t panel = r / TERN_SCAN_ROWS, lane = r % TERN_SCAN_ROWS;
        float acc = 0.0f;
        for (size_t g = 0; g < x->n_groups; g++) {
            const size_t at = panel * x->n_groups + g;
            const uint8_t *group = codes + at * SCAN_GROUP_BYTES;
            int32_t sum = 0;
            for (size_t k = 0; k < TERN_SCAN_GROUP; k++)
                sum += level_at(group, levels, lane, k) * x->q[g * TERN_SCAN_GROUP + k];
            acc += (float)sum * (float)scales[at * TERN_SCAN_ROWS + lane] * x->unit[g];
        }
        y[r] = acc;
    }
}

void head_refine_scalar(const uint8_t *plane, const int8_t *high, size_t n_blocks,
                        const uint32_t *rows, size_t n, int32_t *y)
{
    for (size_t i = 0; i < n; i++) {
        const uint8_t *row = plane + rows[i] * n_blocks * TERN_LINE_BYTES;
        int32_t sum = 0;
        for (size_t k = 0; k < n_blocks * TERN_REFINE_BLOCK; k++) {
            const size_t block = k / TERN_REFINE_BLOCK, j = k % TERN_REFINE_BLOCK;
            sum += (row[block * TERN_LINE_BYTES + j % 64] >> (j / 64 * 2) & 3) * high[k];
        }
        y[i] = sum;
    }
}
