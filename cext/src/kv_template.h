/* kv_template.h - private: the loops of kv.h, written once for all vector variants.
 *
 * A kv_<variant>.c defines what follows and then includes this file.
 *
 *       ISA               target attribute of every function
 *       v16               sixteen floats          zero, load, store, set1, add, sub, mul, mul_add,
 *                                                 max(a, b): a > b ? a : b, min: a < b ? a : b,
 *                                                 pow2(n), keep_from(v, x, low): x >= low ? v : 0,
 *                                                 from_f16, from_i8, from_low_u4, from_high_u4,
 *                                                 from_i32
 *       i32x16            sixteen integer sums    i32x16_zero_int8(sum): what int8 sums begin with
 *       key8, key4        64 bytes of key codes   load_key8, load_key4, dot_key8, dot_key4:
 *                         lane p of the sum takes 4 (8) channels of position p
 *
 * A tile is visited once, by four queries at a time, so that what is read and converted serves
 * all of them; sums over tiles lie in `y`, which stays in the first cache. */
#ifndef KV_TEMPLATE_H
#define KV_TEMPLATE_H

#include "detmath.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    QUERIES = 4,
    LANES = TERN_KV_TILE,
    KEY8_CHANNELS = 4,
    KEY4_CHANNELS = 8,
    /* Tiles to prefetch ahead: some 300 ns of work.  A line at a time, with the loads of the present
     * tile: a whole tile at once would only wait for itself. */
    AHEAD_SCORE_F16 = 2,
    AHEAD_SCORE = 6,
    AHEAD_MIX = 2,
};

/* Ask for what is needed soon; it may lie behind the last tile: a prefetch never faults. */
ISA INLINE void prefetch_ahead(const uint8_t *p, size_t bytes)
{
    __builtin_prefetch((const void *)((uintptr_t)p + bytes));
}

/* ---- scores ---- */

typedef void score_tile_fn(const tern_kv_layout *kv, const uint8_t *tile, const tern_kv_query *q,
                           size_t n, float *s, size_t stride);

ISA INLINE void score_tile_f16(const tern_kv_layout *kv, const uint8_t *tile,
                               const tern_kv_query *q, size_t n, float *s, size_t stride)
{
    v16 sum[QUERIES];
    for (size_t j = 0; j < n; j++) sum[j] = v16_zero();
    for (size_t d = 0; d < kv->head_dim; d++) {
        const uint8_t *halves = tile + d * LANES * sizeof(uint16_t);
        const v16 key = v16_from_f16(halves);
        prefetch_ahead(halves, AHEAD_SCORE_F16 * kv->tile_bytes);
        for (size_t j = 0; j < n; j++) sum[j] = v16_mul_add(sum[j], key, v16_set1(q[j].x[d]));
    }
    for (size_t j = 0; j < n; j++) v16_store(s + j * stride, sum[j]);
}

/* s += (scale * query scale) * dot of group g */
ISA INLINE v16 add_group(v16 s, const uint8_t *params, const tern_kv_query *q, size_t g, i32x16 dot)
{
    const v16 scale = v16_mul(v16_from_f16(params), v16_set1(q->scale[g]));
    return v16_mul_add(s, scale, v16_from_i32(dot));
}

ISA INLINE void score_tile_int8(const tern_kv_layout *kv, const uint8_t *tile,
                                const tern_kv_query *q, size_t n, float *s, size_t stride)
{
    for (size_t g = 0; g < kv->n_groups; g++) {
        const size_t first = g * kv->group;
        const size_t stop = first + kv->group < kv->head_dim ? first + kv->group : kv->head_dim;
        const uint8_t *params = tile + kv->code_bytes + g * LANES * sizeof(uint16_t);
        i32x16 dot[QUERIES];
        for (size_t j = 0; j < n; j++) dot[j] = i32x16_zero_int8(q[j].sum[g]);
        for (size_t d = first; d < stop; d += KEY8_CHANNELS) {
            const uint8_t *line = tile + d / KEY8_CHANNELS * TERN_KV_LINE;
            const key8 key = load_key8(line);
            prefetch_ahead(line, AHEAD_SCORE * kv->tile_bytes);
            for (size_t j = 0; j < n; j++) dot[j] = dot_key8(dot[j], key, q[j].codes + d);
        }
        for (size_t j = 0; j < n; j++) {
            const v16 before = g ? v16_load(s + j * stride) : v16_zero();
            v16_store(s + j * stride, add_group(before, params, q + j, g, dot[j]));
        }
    }
}

ISA INLINE void score_tile_int4(const tern_kv_layout *kv, const uint8_t *tile,
                                const tern_kv_query *q, size_t n, float *s, size_t stride)
{
    for (size_t g = 0; g < kv->n_groups; g++) {
        const size_t first = g * kv->group;
        const size_t stop = first + kv->group < kv->head_dim ? first + kv->group : kv->head_dim;
        const uint8_t *params = tile + kv->code_bytes + 2 * g * LANES * sizeof(uint16_t);
        const v16 minimum = v16_from_f16(params + LANES * sizeof(uint16_t));
        i32x16 dot[QUERIES];
        for (size_t j = 0; j < n; j++) dot[j] = i32x16_zero();
        for (size_t d = first; d < stop; d += KEY4_CHANNELS) {
            const uint8_t *line = tile + d / KEY4_CHANNELS * TERN_KV_LINE;
            const key4 key = load_key4(line);
            prefetch_ahead(line, AHEAD_SCORE * kv->tile_bytes);
            for (size_t j = 0; j < n; j++) dot[j] = dot_key4(dot[j], key, q[j].codes + d);
        }
        for (size_t j = 0; j < n; j++) {
            const v16 before = g ? v16_load(s + j * stride) : v16_zero();
            const v16 scaled = add_group(before, params, q + j, g, dot[j]);
            const v16 offset = v16_set1(q[j].scale[g] * (float)q[j].sum[g]);
            v16_store(s + j * stride, v16_mul_add(scaled, minimum, offset));
        }
    }
}

ISA INLINE void score_tiles(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles,
                            const tern_kv_query *queries, size_t n_queries, float *scores,
                            size_t stride, score_tile_fn *score_tile)
{
    for (size_t t = 0; t < n_tiles; t++, tiles += kv->tile_bytes, scores += LANES) {
        size_t i = 0;
        for (; i + QUERIES <= n_queries; i += QUERIES)
            score_tile(kv, tiles, queries + i, QUERIES, scores + i * stride, stride);
        for (; i + 2 <= n_queries; i += 2)
            score_tile(kv, tiles, queries + i, 2, scores + i * stride, stride);
        if (i < n_queries) score_tile(kv, tiles, queries + i, 1, scores + i * stride, stride);
    }
}

/* ---- weighted sums ---- */

/* Values of channels d + 16 s, ... + 15 of a position's row; d is a multiple of 32, s is 0 or 1. */
typedef v16 value_fn(const uint8_t *row, size_t d, size_t s, size_t ahead);

ISA INLINE v16 value_f16(const uint8_t *row, size_t d, size_t s, size_t ahead)
{
    const uint8_t *halves = row + (d + LANES * s) * sizeof(uint16_t);
    prefetch_ahead(halves, ahead);
    return v16_from_f16(halves);
}

ISA INLINE v16 value_int8(const uint8_t *row, size_t d, size_t s, size_t ahead)
{
    const uint8_t *codes = row + d + LANES * s;
    prefetch_ahead(codes, ahead);
    return v16_from_i8(codes);
}

ISA INLINE v16 value_int4(const uint8_t *row, size_t d, size_t s, size_t ahead)
{
    const uint8_t *codes = row + d / 2;
    if (s == 0) prefetch_ahead(codes, ahead);
    return s ? v16_from_high_u4(codes) : v16_from_low_u4(codes);
}

/* Weights and sums of n <= QUERIES queries. */
typedef struct mix {
    const float *w;
    float *y;
    size_t w_stride, y_stride, n;
} mix;

/* y += sum_p w[p] * value[p] for the vector s from channel d on. */
ISA INLINE void mix_vector(const tern_kv_layout *kv, const uint8_t *tile, const mix *m, size_t n,
                           size_t d, size_t s, value_fn *value)
{
    v16 sum[QUERIES];
    const size_t row_bytes = kv->code_bytes / LANES;
    float *y = m->y + d + LANES * s;
    for (size_t j = 0; j < n; j++) sum[j] = v16_load(y + j * m->y_stride);
    for (size_t p = 0; p < LANES; p++) {
        const uint8_t *row = tile + p * row_bytes;
        const v16 v = value(row, d, s, AHEAD_MIX * kv->tile_bytes);
        for (size_t j = 0; j < n; j++)
            sum[j] = v16_mul_add(sum[j], v16_set1(m->w[j * m->w_stride + p]), v);
    }
    for (size_t j = 0; j < n; j++) v16_store(y + j * m->y_stride, sum[j]);
}

/* Channels [d, stop) of one tile. */
ISA INLINE void mix_channels(const tern_kv_layout *kv, const uint8_t *tile, const mix *m, size_t n,
                             size_t d, size_t stop, value_fn *value)
{
    for (; d < stop; d += 2 * LANES) {
        mix_vector(kv, tile, m, n, d, 0, value);
        if (d + LANES < stop) mix_vector(kv, tile, m, n, d, 1, value);
    }
}

/* The weights of one tile times the scales of its group g. */
ISA INLINE mix scale_weights(const mix *m, size_t n, const uint8_t *params, float *scaled)
{
    const v16 scale = v16_from_f16(params);
    for (size_t j = 0; j < n; j++)
        v16_store(scaled + j * LANES, v16_mul(v16_load(m->w + j * m->w_stride), scale));
    return (mix){ .w = scaled, .y = m->y, .w_stride = LANES, .y_stride = m->y_stride };
}

typedef void mix_tile_fn(const tern_kv_layout *kv, const uint8_t *tile, const mix *m, size_t n,
                         float *lanes);

ISA INLINE void mix_tile_f16(const tern_kv_layout *kv, const uint8_t *tile, const mix *m, size_t n,
                             float *lanes)
{
    (void)lanes;
    mix_channels(kv, tile, m, n, 0, kv->width, value_f16);
}

ISA INLINE void mix_tile_int8(const tern_kv_layout *kv, const uint8_t *tile, const mix *m, size_t n,
                              float *lanes)
{
    (void)lanes;
    for (size_t g = 0, d = 0; g < kv->n_groups; g++, d += kv->group) {
        float scaled[QUERIES * LANES];
        const size_t stop = d + kv->group < kv->width ? d + kv->group : kv->width;
        const uint8_t *params = tile + kv->code_bytes + g * LANES * sizeof(uint16_t);
        const mix of_group = scale_weights(m, n, params, scaled);
        mix_channels(kv, tile, &of_group, n, d, stop, value_int8);
    }
}

/* lanes: (n_groups, QUERIES, 16) sums of w * minimum. */
ISA INLINE void mix_tile_int4(const tern_kv_layout *kv, const uint8_t *tile, const mix *m, size_t n,
                              float *lanes)
{
    for (size_t g = 0, d = 0; g < kv->n_groups; g++, d += kv->group) {
        float scaled[QUERIES * LANES];
        const size_t stop = d + kv->group < kv->width ? d + kv->group : kv->width;
        const uint8_t *params = tile + kv->code_bytes + 2 * g * LANES * sizeof(uint16_t);
        const v16 minimum = v16_from_f16(params + LANES * sizeof(uint16_t));
        for (size_t j = 0; j < n; j++, lanes += LANES)
            v16_store(lanes, v16_mul_add(v16_load(lanes), v16_load(m->w + j * m->w_stride),
                                         minimum));
        lanes += (QUERIES - n) * LANES;
        const mix of_group = scale_weights(m, n, params, scaled);
        mix_channels(kv, tile, &of_group, n, d, stop, value_int4);
    }
}

/* All tiles for n queries. */
ISA INLINE void mix_tiles(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles, mix m,
                          size_t n, mix_tile_fn *mix_tile)
{
    float lanes[TERN_KV_GROUPS_MAX * QUERIES * LANES];
    memset(lanes, 0, kv->n_groups * QUERIES * LANES * sizeof *lanes);
    for (size_t j = 0; j < n; j++) memset(m.y + j * m.y_stride, 0, kv->width * sizeof *m.y);
    for (size_t t = 0; t < n_tiles; t++, tiles += kv->tile_bytes, m.w += LANES)
        mix_tile(kv, tiles, &m, n, lanes);
    if (kv->format != TERN_KV_INT4) return;
    for (size_t g = 0; g < kv->n_groups; g++) {
        const size_t first = g * kv->group;
        const size_t stop = first + kv->group < kv->width ? first + kv->group : kv->width;
        for (size_t j = 0; j < n; j++) {
            const float least = dot_tree(lanes + (g * QUERIES + j) * LANES);
            for (size_t d = first; d < stop; d++) m.y[j * m.y_stride + d] += least;
        }
    }
}

ISA INLINE void mix_queries(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles,
                            const float *w, size_t stride, size_t n_queries, float *y,
                            size_t y_stride, mix_tile_fn *mix_tile)
{
    size_t i = 0;
    mix m = { .w = w, .y = y, .w_stride = stride, .y_stride = y_stride };
    for (; i + QUERIES <= n_queries; i += QUERIES) {
        mix_tiles(kv, tiles, n_tiles, m, QUERIES, mix_tile);
        m.w += QUERIES * stride;
        m.y += QUERIES * y_stride;
    }
    for (; i + 2 <= n_queries; i += 2) {
        mix_tiles(kv, tiles, n_tiles, m, 2, mix_tile);
        m.w += 2 * stride;
        m.y += 2 * y_stride;
    }
    if (i < n_queries) mix_tiles(kv, tiles, n_tiles, m, 1, mix_tile);
}

/* ---- softmax ---- */

/* The steps of det_expf. */
ISA INLINE v16 v16_exp(v16 x)
{
    const v16 y = v16_min(v16_max(x, v16_set1(EXPF_LOW)), v16_set1(EXPF_HIGH));
    const v16 round = v16_set1(EXPF_ROUND), scaled = v16_mul(y, v16_set1(EXPF_LOG2E));
    const v16 n = v16_sub(v16_add(scaled, round), round);
    const v16 high = v16_sub(y, v16_mul(n, v16_set1(EXPF_LN2_HI)));
    const v16 r = v16_sub(high, v16_mul(n, v16_set1(EXPF_LN2_LO)));
    v16 p = v16_set1(EXPF_TERM[0]);
    for (int i = 1; i < EXPF_TERMS; i++) p = v16_mul_add(v16_set1(EXPF_TERM[i]), p, r);
    p = v16_add(v16_mul_add(r, v16_mul(p, r), r), v16_set1(1.0f));
    return v16_keep_from(v16_mul(p, v16_pow2(n)), x, EXPF_LOW);
}

/* x *= scale; returns the largest. */
ISA INLINE float scale_and_max(float *x, size_t n, float scale)
{
    const size_t whole = n - n % LANES;
    float largest = x[0] * scale;
    if (whole) {
        float lane[LANES];
        v16 top = v16_set1(largest);
        for (size_t i = 0; i < whole; i += LANES) {
            const v16 scaled = v16_mul(v16_load(x + i), v16_set1(scale));
            v16_store(x + i, scaled);
            top = v16_max(scaled, top);
        }
        v16_store(lane, top);
        for (size_t l = 0; l < LANES; l++) largest = lane[l] > largest ? lane[l] : largest;
    }
    for (size_t i = whole; i < n; i++) {
        x[i] *= scale;
        largest = x[i] > largest ? x[i] : largest;
    }
    return largest;
}

ISA static float softmax(float *x, size_t n, float scale, float *largest)
{
    const size_t whole = n - n % LANES;
    const float top = scale_and_max(x, n, scale);
    float lane[LANES];
    v16 sum = v16_zero();
    for (size_t i = 0; i < whole; i += LANES) {
        const v16 weight = v16_exp(v16_sub(v16_load(x + i), v16_set1(top)));
        v16_store(x + i, weight);
        sum = v16_add(sum, weight);
    }
    v16_store(lane, sum);
    for (size_t i = whole; i < n; i++) {
        x[i] = det_expf(x[i] - top);
        lane[i - whole] += x[i];
    }
    *largest = top;
    return dot_tree(lane);
}

/* ---- the table ---- */

#define DEFINE_SCORE(op, tile)                                                                     \
    ISA static void op(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles,             \
                       const tern_kv_query *queries, size_t n_queries, float *scores,              \
                       size_t stride)                                                              \
    {                                                                                              \
        score_tiles(kv, tiles, n_tiles, queries, n_queries, scores, stride, tile);                 \
    }
#define DEFINE_MIX(op, tile)                                                                       \
    ISA static void op(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles,             \
                       const float *w, size_t stride, size_t n_queries, float *y, size_t y_stride) \
    {                                                                                              \
        mix_queries(kv, tiles, n_tiles, w, stride, n_queries, y, y_stride, tile);                  \
    }

DEFINE_SCORE(score_f16, score_tile_f16)
DEFINE_SCORE(score_int8, score_tile_int8)
DEFINE_SCORE(score_int4, score_tile_int4)
DEFINE_MIX(mix_f16, mix_tile_f16)
DEFINE_MIX(mix_int8, mix_tile_int8)
DEFINE_MIX(mix_int4, mix_tile_int4)

#define KV_OPS                                                                                     \
    {                                                                                              \
        score_f16, score_int8, score_int4, mix_f16, mix_int8, mix_int4, softmax                    \
    }

#endif
