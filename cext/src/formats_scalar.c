/* formats_scalar.c - the reference of the formats that ternary is compared with. */
#include "variants.h"

void gemv_binary_scalar(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                        size_t end)
{
    const size_t tiles = (a->n + TERN_TILE_CHANNELS - 1) / TERN_TILE_CHANNELS;
    for (size_t o = begin * TERN_BINARY_OUTPUTS; o < end * TERN_BINARY_OUTPUTS; o++) {
        const uint8_t *panel = plane + o / TERN_BINARY_OUTPUTS * tiles * TERN_LINE_BYTES;
        const size_t field = o % TERN_BINARY_OUTPUTS / 16, lane = o % 16;
        int32_t acc = 0;
        for (size_t k = 0; k < a->n; k++) {
            const uint8_t byte = panel[k / 4 * TERN_LINE_BYTES + 4 * lane + k % 4];
            acc += byte >> field & 1 ? a->x[k] : -a->x[k];
        }
        y[o] = acc;
    }
}

void gemv_int8_scalar(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin, size_t end)
{
    const size_t tiles = (a->n + TERN_TILE_CHANNELS - 1) / TERN_TILE_CHANNELS;
    for (size_t o = begin * TERN_INT8_OUTPUTS; o < end * TERN_INT8_OUTPUTS; o++) {
        const uint8_t *panel = plane + o / TERN_INT8_OUTPUTS * tiles * TERN_LINE_BYTES;
        int32_t acc = 0;
        for (size_t k = 0; k < a->n; k++) {
            const uint8_t byte =
                panel[k / 4 * TERN_LINE_BYTES + 4 * (o % TERN_INT8_OUTPUTS) + k % 4];
            acc += (byte - TERN_INT8_ZERO) * a->x[k];
        }
        y[o] = acc;
    }
}
