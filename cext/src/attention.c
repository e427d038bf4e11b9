/* attention.c - causal attention with grouped queries over a float32 KV cache.
 *
 * The seam for smaller caches: nothing outside this file knows how a key or a value is stored. */
#include "state.h"
#include <math.h>
#include <string.h>

/* Offset of (layer, kv head, position 0) in keys and values. */
static size_t head_offset(const tern_state *s, size_t kv_head)
{
    const tern_config *c = &s->model->config;
    return (s->layer * c->n_kv_heads + kv_head) * s->context * c->head_dim;
}

size_t tern_kv_bytes(const tern_config *c, size_t context)
{
    return 2 * sizeof(float) * c->n_layers * c->n_kv_heads * context * c->head_dim;
}

/* (n_kv_heads, head_dim) to one position of all heads. */
static void store(const tern_state *s, float *cache, size_t position, const float *x)
{
    const tern_config *c = &s->model->config;
    for (size_t h = 0; h < c->n_kv_heads; h++)
        memcpy(cache + head_offset(s, h) + position * c->head_dim, x + h * c->head_dim,
               c->head_dim * sizeof *x);
}

void kv_store_key(tern_state *s, size_t position, const float *key)
{
    store(s, s->kv.keys, position, key);
}

void kv_store_value(tern_state *s, size_t position, const float *value)
{
    store(s, s->kv.values, position, value);
}

void attend(tern_state *s, size_t head, size_t n, const float *query, size_t thread, float *out)
{
    const tern_config *c = &s->model->config;
    const tern_kernels *kernels = s->model->kernels;
    const size_t at = head_offset(s, head / (c->n_heads / c->n_kv_heads));
    float *scores = s->kv.scores + thread * s->context;
    const float scale = 1.0f / sqrtf((float)c->head_dim);

    kernels->dot_f32(s->kv.keys + at, n, c->head_dim, query, scores);
    for (size_t i = 0; i < n; i++) scores[i] *= scale;
    const float inverse_sum = softmax_unscaled(scores, n);
    kernels->mix_f32(s->kv.values + at, n, c->head_dim, scores, out);
    for (size_t i = 0; i < c->head_dim; i++) out[i] *= inverse_sum;
}
