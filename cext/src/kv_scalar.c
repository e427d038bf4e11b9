/* kv_scalar.c - the reference for kv.h: one query, one position, one channel at a time. */
#include "detmath.h"
#include "variants.h"

static float f16_at(const uint8_t *base, size_t i)
{
    uint16_t half;
    memcpy(&half, base + 2 * i, sizeof half);
    return f32_from_f16(half);
}

static int key_code(const tern_kv_layout *kv, const uint8_t *tile, size_t p, size_t d)
{
    if (kv->format == TERN_KV_INT8) return (int8_t)tile[64 * (d / 4) + 4 * p + d % 4];
    return tile[64 * (d / 8) + 4 * p + d % 4] >> d % 8 / 4 * 4 & 15;
}

static int value_code(const tern_kv_layout *kv, const uint8_t *tile, size_t p, size_t d)
{
    if (kv->format == TERN_KV_INT8) return (int8_t)tile[kv->width * p + d];
    return tile[kv->width / 2 * p + 16 * (d / 32) + d % 16] >> d % 32 / 16 * 4 & 15;
}

static float scale_at(const tern_kv_layout *kv, const uint8_t *tile, size_t p, size_t g)
{
    const size_t stride = kv->format == TERN_KV_INT4 ? 2 * TERN_KV_TILE : TERN_KV_TILE;
    return f16_at(tile + kv->code_bytes, stride * g + p);
}

static float minimum_at(const tern_kv_layout *kv, const uint8_t *tile, size_t p, size_t g)
{
    return f16_at(tile + kv->code_bytes, 2 * TERN_KV_TILE * g + TERN_KV_TILE + p);
}

/* ---- scores ---- */

static float score_halves(const tern_kv_layout *kv, const uint8_t *tile, size_t p,
                          const tern_kv_query *q)
{
    float s = 0.0f;
    for (size_t d = 0; d < kv->head_dim; d++) s += f16_at(tile, TERN_KV_TILE * d + p) * q->x[d];
    return s;
}

static float score_codes(const tern_kv_layout *kv, const uint8_t *tile, size_t p,
                         const tern_kv_query *q)
{
    float s = 0.0f;
    for (size_t g = 0; g < kv->n_groups; g++) {
        const size_t first = g * kv->group;
        int32_t dot = 0;
        for (size_t d = first; d < first + kv->group && d < kv->head_dim; d++)
            dot += key_code(kv, tile, p, d) * q->codes[d];
        s += scale_at(kv, tile, p, g) * q->scale[g] * (float)dot;
        if (kv->format == TERN_KV_INT4)
            s += minimum_at(kv, tile, p, g) * (q->scale[g] * (float)q->sum[g]);
    }
    return s;
}

static void score_scalar(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles,
                         const tern_kv_query *queries, size_t n_queries, float *scores,
                         size_t stride)
{
    for (size_t i = 0; i < n_queries; i++) {
        for (size_t r = 0; r < n_tiles * TERN_KV_TILE; r++) {
            const uint8_t *tile = tiles + r / TERN_KV_TILE * kv->tile_bytes;
            scores[i * stride + r] =
                (kv->format == TERN_KV_F16 ? score_halves : score_codes)(kv, tile, r % TERN_KV_TILE,
                                                                         queries + i);
        }
    }
}

/* ---- weighted sums ---- */

/* w * value without the minimum. */
static float weigh(const tern_kv_layout *kv, const uint8_t *tile, size_t p, size_t d, float w)
{
    if (kv->format == TERN_KV_F16) return w * f16_at(tile, kv->width * p + d);
    return w * scale_at(kv, tile, p, d / kv->group) * (float)value_code(kv, tile, p, d);
}

static float mix_minima(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_rows,
                        const float *w, size_t g)
{
    float lane[DOT_LANES] = { 0 };
    for (size_t r = 0; r < n_rows; r++) {
        const uint8_t *tile = tiles + r / TERN_KV_TILE * kv->tile_bytes;
        lane[r % TERN_KV_TILE] += w[r] * minimum_at(kv, tile, r % TERN_KV_TILE, g);
    }
    return dot_tree(lane);
}

static void mix_scalar(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles,
                       const float *w, size_t stride, size_t n_queries, float *y, size_t y_stride)
{
    const size_t n_rows = n_tiles * TERN_KV_TILE;
    for (size_t i = 0; i < n_queries; i++, w += stride, y += y_stride) {
        for (size_t d = 0; d < kv->width; d++) {
            y[d] = 0.0f;
            for (size_t r = 0; r < n_rows; r++)
                y[d] += weigh(kv, tiles + r / TERN_KV_TILE * kv->tile_bytes, r % TERN_KV_TILE, d,
                              w[r]);
            if (kv->format == TERN_KV_INT4)
                y[d] += mix_minima(kv, tiles, n_rows, w, d / kv->group);
        }
    }
}

static float softmax_scalar(float *x, size_t n, float scale, float *largest)
{
    float lane[DOT_LANES] = { 0 };
    for (size_t i = 0; i < n; i++) x[i] *= scale;
    *largest = x[0];
    for (size_t i = 1; i < n; i++) *largest = x[i] > *largest ? x[i] : *largest;
    for (size_t i = 0; i < n; i++) {
        x[i] = det_expf(x[i] - *largest);
        lane[i % DOT_LANES] += x[i];
    }
    return dot_tree(lane);
}

const tern_kv_ops tern_kv_scalar = {
    .score_f16 = score_scalar,
    .score_int8 = score_scalar,
    .score_int4 = score_scalar,
    .mix_f16 = mix_scalar,
    .mix_int8 = mix_scalar,
    .mix_int4 = mix_scalar,
    .softmax = softmax_scalar,
};
