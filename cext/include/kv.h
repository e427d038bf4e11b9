/* kv.h - keys and values of past positions: how they are stored, and the ops that read them.
 *
 * Terms   tile     TERN_KV_TILE positions of one KV head in one piece of memory
 *         chunk    TERN_KV_CHUNK positions: the piece of a sequence whose softmax is taken at once
 *         group    `group` neighbouring channels that share a scale; the last one may be shorter
 *         width    head_dim, up to a whole vector: 16 channels, or 32 in int4; padding is code 0
 *
 * A tile is its codes, then for each group 16 float16 scales and, in int4, 16 float16 minima; the
 * sum is padded to a cache line.  Keys are stored so that a lane of a vector is a position, values
 * so that a lane is a channel: no op ever sums across lanes.  With p the position in the tile and d
 * the channel:
 *
 *                    key                                            value
 *       f32    float    [p][d], no padding                     the same
 *       f16    float16  [d][p]                                 float16  [p][d]
 *       int8   byte     64 (d / 4) + 4 p + d % 4               byte     width p + d
 *       int4   byte     64 (d / 8) + 4 p + d % 4               byte     width / 2 p + 16 (d / 32)
 *              nibble   d % 8 / 4                                       + d % 16
 *                                                              nibble   d % 32 / 16
 *
 *       int8   x = scale * code, -127 <= code <= 127
 *       int4   x = minimum + scale * code, 0 <= code <= 15
 *
 * Everything stored is finite: float16 saturates at 65504, and a NaN is stored as a number. So a
 * position with weight 0 contributes exactly nothing, and the ops work on whole tiles.
 *
 * All variants return identical bits; the order of the float operations is part of the contract. */
#ifndef KV_H
#define KV_H

#include <stddef.h>
#include <stdint.h>

enum {
    TERN_KV_TILE = 16,
    /* Long enough that merging chunks costs nothing, short enough that five KV heads at 1k
     * positions are twenty pieces of work and a chunk stays in the second cache. */
    TERN_KV_CHUNK = 256,
    TERN_KV_GROUP_STEP = 32, /* a vector of codes lies in one group */
    TERN_KV_GROUP_MAX = 1024,
    TERN_KV_GROUPS_MAX = 32, /* groups of one head: 1024 channels in groups of 32 */
    TERN_KV_LINE = 64,
};

typedef enum tern_kv_format { TERN_KV_F32, TERN_KV_F16, TERN_KV_INT8, TERN_KV_INT4 } tern_kv_format;

typedef struct tern_kv_layout {
    tern_kv_format format;
    size_t head_dim, width;
    size_t group, n_groups;        /* 0 groups in the float formats */
    size_t code_bytes, tile_bytes; /* of one tile of keys or of values */
} tern_kv_layout;

/* One query head, rotated.  The integer formats take it in int8, one scale a group. */
typedef struct tern_kv_query {
    const float *x;      /* (head_dim,) */
    const int8_t *codes; /* (head_dim up to a multiple of 32,) padding is 0 */
    const float *scale;  /* (n_groups,) */
    const int32_t *sum;  /* (n_groups,) of the codes */
} tern_kv_query;

/* Scores of queries that share a KV head: s[i, r] = query i . key r, unscaled.
 *
 *       f16    s = ((0 + k[0] x[0]) + k[1] x[1]) + ...      over the channels, no FMA
 *       int8   s = ((0 + t[0]) + t[1]) + ...                over the groups g, with
 *              t[g] = (scale[r, g] * query.scale[g]) * float(sum_d code[r, d] * query.code[d])
 *       int4   the same, and after each t[g]
 *              s += minimum[r, g] * (query.scale[g] * float(query.sum[g]))
 *
 *   tiles    (n_tiles, tile_bytes)               aligned to a cache line
 *   queries  (n_queries,)
 *   scores   (n_queries, stride) float32         the first 16 n_tiles of each are overwritten */
typedef void tern_kv_score_fn(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles,
                              const tern_kv_query *queries, size_t n_queries, float *scores,
                              size_t stride);

/* Weighted sums of values: y[i, d] = sum_r w[i, r] * value[r, d].
 *
 *       f16    y = ((0 + w[0] v[0]) + w[1] v[1]) + ...      over the positions, no FMA
 *       int8   the same with (w[r] * scale[r, g]) * float(code[r, d])
 *       int4   the same, and last  y += m[i, g]:  16 partial sums of w[r] * minimum[r, g], lane
 *              r % 16, combined as ternary.h's dot products are
 *
 *   w        (n_queries, stride) float32, finite; 0 for a position that is not to be seen
 *   y        (n_queries, y_stride) float32       the first `width` of each are overwritten */
typedef void tern_kv_mix_fn(const tern_kv_layout *kv, const uint8_t *tiles, size_t n_tiles,
                            const float *w, size_t stride, size_t n_queries, float *y,
                            size_t y_stride);

/* x[i] = exp(x[i] * scale - largest), largest = max x[i] * scale, which is written too; returns the
 * sum over i, 16 partial sums as in ternary.h.  0 < n. */
typedef float tern_kv_softmax_fn(float *x, size_t n, float scale, float *largest);

typedef struct tern_kv_ops {
    tern_kv_score_fn *score_f16, *score_int8, *score_int4;
    tern_kv_mix_fn *mix_f16, *mix_int8, *mix_int4;
    tern_kv_softmax_fn *softmax;
} tern_kv_ops;

/* Fill a layout.  `kv_bits` is 32, 16, 8 or 4; `group` a multiple of TERN_KV_GROUP_STEP up to
 * TERN_KV_GROUP_MAX, unused in the float formats. */
tern_kv_layout tern_kv_layout_of(unsigned kv_bits, size_t group, size_t head_dim);

/* Write one position, `position` in [0, 16), of a tile: x is (head_dim,). */
void tern_kv_put_key(const tern_kv_layout *kv, uint8_t *tile, size_t position, const float *x);
void tern_kv_put_value(const tern_kv_layout *kv, uint8_t *tile, size_t position, const float *x);

/* Quantise a query for the integer formats: codes (head_dim up to a multiple of 32,), scale and sum
 * (n_groups,) are overwritten. */
void tern_kv_quantize_query(const tern_kv_layout *kv, const float *x, int8_t *codes, float *scale,
                            int32_t *sum);

/* float32 to float16 bits, ties to even; beyond +-65504, and for a NaN, it is +-65504. */
uint16_t tern_f16_from_f32(float x);

#endif
