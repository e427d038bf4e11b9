/* state.c - life cycle of a tern_state: all memory is taken here, none later. */
#include "lora.h"
#include <stdlib.h>
#include <string.h>

/* calloc leaves large blocks unmapped until they are touched, so a long context costs nothing until
 * it is used. */
void *state_take(tern_state *s, size_t count, size_t size)
{
    enum { LINE = 64 };
    uint8_t *block = calloc(count * size / LINE + 2, LINE);
    if (!block) return NULL;
    s->owned[s->n_owned++] = block;
    return block + (LINE - (uintptr_t)block % LINE) % LINE;
}

static void *take(tern_state *s, size_t count, size_t size)
{
    return state_take(s, count, size);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool take_quantized(tern_state *s, quantized *q)
{
    const size_t capacity = s->z_stride; /* a whole number of blocks of every kind */
    enum { BEYOND = 64 }; /* a short last group is read in whole vectors */
    return (q->x = take(s, capacity + BEYOND, 1)) && (q->live = take(s, capacity, sizeof *q->live)) &&
           (q->live_x = take(s, capacity + 1, 1));
}

static bool has_groups(const tern_model *m)
{
    for (size_t i = 0; i < m->config.n_layers; i++) {
        const tern_layer *w = &m->layers[i];
        const tern_matrix *all[] = { &w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down };
        for (size_t j = 0; j < sizeof all / sizeof *all; j++)
            if (all[j]->n_groups > 1) return true;
    }
    return false;
}

static bool take_groups(tern_state *s)
{
    enum { B = TERN_TOKENS_BLOCK };
    if (!has_groups(s->model)) return true;
    for (size_t t = 0; t < B; t++)
        if (!(s->in[t].sums = take(s, s->width / TERN_GROUP_STEP + 1, sizeof(int32_t))))
            return false;
    return (s->group_sums = take(s, TERN_THREADS_MAX * B * TERN_PANEL, sizeof(int32_t)));
}

static bool take_caches(tern_state *s)
{
    const tern_config *c = &s->model->config;
    const size_t table = s->context * (c->head_dim / 2);
    return kv_take(s) && (s->cosines = take(s, table, sizeof(float))) &&
           (s->sines = take(s, table, sizeof(float)));
}

static bool take_scratch(tern_state *s)
{
    enum { B = TERN_TOKENS_BLOCK };
    const tern_config *c = &s->model->config;
    if (!(s->x = take(s, B * c->hidden, sizeof(float)))) return false;
    if (!(s->h = take(s, B * s->width, sizeof(float)))) return false;
    if (!(s->queries = take(s, B * c->n_heads * c->head_dim, sizeof(float)))) return false;
    if (!(s->gates = take(s, B * c->ffn, sizeof(float)))) return false;
    if (!(s->counters = take(s, c->n_layers, sizeof *s->counters))) return false;
    if (!(s->hidden = take(s, c->hidden, sizeof(float)))) return false;
    for (size_t i = 0; i < 3; i++)
        if (!(s->z[i] = take(s, B * s->z_stride, sizeof(int32_t)))) return false;
    if (!(s->partial = take(s, TERN_THREADS_MAX * s->z_stride, sizeof(int32_t)))) return false;
    uint32_t *open = take(s, B * c->ffn, sizeof *open);
    if (!open) return false;
    for (size_t t = 0; t < B; t++) s->open[t] = open + t * c->ffn;
    for (size_t t = 0; t < B; t++)
        if (!take_quantized(s, &s->in[t])) return false;
    return true;
}

tern_state *tern_state_new(const tern_model *model, size_t context, size_t n_threads,
                           bool zero_skip, unsigned kv_bits, size_t kv_group_size)
{
    const tern_config *c = &model->config;
    tern_state *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->model = model;
    s->context = context;
    s->zero_skip = zero_skip;
    s->width = larger(larger(c->hidden, c->ffn), c->n_heads * c->head_dim);
    s->z_stride = (s->width + TERN_X_PAD - 1) / TERN_X_PAD * TERN_X_PAD;
    kv_init(s, kv_bits, kv_group_size);
    s->pool = pool_new(n_threads);
    if (!s->pool || !take_caches(s) || !take_scratch(s) || !take_groups(s) || !head_take(s)) {
        tern_state_free(s);
        return NULL;
    }
    return s;
}

void tern_state_free(tern_state *s)
{
    if (!s) return;
    pool_free(s->pool);
    lora_free(s);
    for (size_t i = 0; i < s->n_owned; i++) free(s->owned[i]);
    free(s);
}

bool tern_state_set_threads(tern_state *s, size_t n_threads)
{
    if (n_threads == pool_threads(s->pool)) return true;
    tern_pool *pool = pool_new(n_threads);
    if (!pool) return false;
    pool_free(s->pool);
    s->pool = pool;
    return true;
}

void tern_state_set_zero_skip(tern_state *s, bool zero_skip)
{
    s->zero_skip = zero_skip;
}

size_t tern_state_n_past(const tern_state *s)
{
    return s->n_past;
}

void tern_state_truncate(tern_state *s, size_t n_past)
{
    s->n_past = n_past;
}

const float *tern_state_hidden(const tern_state *s)
{
    return s->hidden;
}

tern_head_counters *tern_state_head_counters(tern_state *s)
{
    return &s->head_counters;
}

tern_counters *tern_state_counters(tern_state *s)
{
    return s->counters;
}
