/* attention.c - causal attention with grouped queries over the KV cache.
 *
 * The softmax of a sequence is taken chunk by chunk (kv.h): each chunk gives, for each query head,
 * its largest score, the sum of exp(score - largest) and the values weighted by it; chunks are
 * merged from the first to the last, whoever computed them.  So bits depend neither on the threads
 * nor on how a prompt is split, and a sequence of one chunk is a plain softmax.
 *
 * All query heads of a KV head go through a chunk together: it is read once.  One token's work is
 * dealt by (KV head, chunk); the thread that finishes the last chunk of a head merges them.  A
 * block's work is dealt by (KV head, some tokens), each of which walks all chunks. */
#define _DEFAULT_SOURCE
#include "detmath.h"
#include "state.h"
#include <math.h>
#include <sys/mman.h>

size_t tern_kv_bytes(const tern_config *c, size_t context, unsigned kv_bits, size_t kv_group_size)
{
    const tern_kv_layout kv = tern_kv_layout_of(kv_bits, kv_group_size, c->head_dim);
    return 2 * c->n_layers * c->n_kv_heads * kv_tiles(context) * kv.tile_bytes;
}

/* Tile of a position of a KV head in the present layer.  A chunk of all layers lies together, so
 * that what is in use is one piece of memory, and within it the tiles of a head. */
static uint8_t *tile_of(const tern_state *s, uint8_t *cache, size_t kv_head, size_t position)
{
    const tern_config *c = &s->model->config;
    const size_t chunk = position / TERN_KV_CHUNK, tile = position % TERN_KV_CHUNK / TERN_KV_TILE;
    const size_t head = (chunk * c->n_layers + s->layer) * c->n_kv_heads + kv_head;
    return cache + (head * s->kv.chunk_tiles + tile) * s->kv.layout.tile_bytes;
}

void kv_store_key(tern_state *s, size_t position, const float *key)
{
    const tern_config *c = &s->model->config;
    for (size_t h = 0; h < c->n_kv_heads; h++)
        tern_kv_put_key(&s->kv.layout, tile_of(s, s->kv.keys, h, position), position % TERN_KV_TILE,
                        key + h * c->head_dim);
}

void kv_store_value(tern_state *s, size_t position, const float *value)
{
    const tern_config *c = &s->model->config;
    for (size_t h = 0; h < c->n_kv_heads; h++)
        tern_kv_put_value(&s->kv.layout, tile_of(s, s->kv.values, h, position),
                          position % TERN_KV_TILE, value + h * c->head_dim);
}

void kv_prepare_query(tern_state *s, size_t t, const float *query)
{
    const tern_config *c = &s->model->config;
    const tern_kv_layout *kv = &s->kv.layout;
    for (size_t h = 0; h < c->n_heads; h++) {
        const size_t i = t * c->n_heads + h;
        int8_t *codes = s->kv.codes + i * kv_padded_dim(c->head_dim);
        float *scale = s->kv.scales + i * kv->n_groups;
        int32_t *sum = s->kv.sums + i * kv->n_groups;
        const float *x = query + h * c->head_dim;
        if (kv->n_groups) tern_kv_quantize_query(kv, x, codes, scale, sum);
        s->kv.queries[i] = (tern_kv_query){ x, codes, scale, sum };
    }
}

/* ---- one chunk ---- */

/* What one query head makes of some chunks: (width,) weighted values, then largest and sum. */
static float *largest_of(const tern_state *s, float *partial)
{
    return partial + s->kv.layout.width;
}

static float *sum_of(const tern_state *s, float *partial)
{
    return partial + s->kv.layout.width + 1;
}

/* Query heads of one KV head, of tokens [first, end) of the block. */
typedef struct piece {
    size_t kv_head, first, end;
} piece;

/* Positions of a chunk that token t sees. */
static size_t visible(const tern_state *s, size_t t, size_t chunk)
{
    const size_t begin = chunk * TERN_KV_CHUNK, n = s->n_past + t + 1;
    return n <= begin ? 0 : n - begin < TERN_KV_CHUNK ? n - begin : TERN_KV_CHUNK;
}

/* float32, the reference: a head and a token at a time. */
static void float_chunk(tern_state *s, const piece *p, size_t chunk, float *scores, float *partials)
{
    const tern_config *c = &s->model->config;
    const tern_kernels *kernels = s->model->kernels;
    const size_t heads = c->n_heads / c->n_kv_heads, begin = chunk * TERN_KV_CHUNK;
    const float *keys = (const float *)(const void *)tile_of(s, s->kv.keys, p->kv_head, begin);
    const float *values = (const float *)(const void *)tile_of(s, s->kv.values, p->kv_head, begin);
    for (size_t t = p->first; t < p->end; t++) {
        const size_t n = visible(s, t, chunk);
        for (size_t h = 0; h < heads; h++, partials += s->kv.partial) {
            const tern_kv_query *q = &s->kv.queries[t * c->n_heads + p->kv_head * heads + h];
            kernels->dot_f32(keys, n, c->head_dim, q->x, scores);
            *sum_of(s, partials) =
                kernels->kv->softmax(scores, n, s->kv.scale, largest_of(s, partials));
            kernels->mix_f32(values, n, c->head_dim, scores, partials);
        }
    }
}

static tern_kv_score_fn *score_of(const tern_state *s)
{
    const tern_kv_ops *ops = s->model->kernels->kv;
    switch (s->kv.layout.format) {
    case TERN_KV_INT4: return ops->score_int4;
    case TERN_KV_INT8: return ops->score_int8;
    default: return ops->score_f16;
    }
}

static tern_kv_mix_fn *mix_of(const tern_state *s)
{
    const tern_kv_ops *ops = s->model->kernels->kv;
    switch (s->kv.layout.format) {
    case TERN_KV_INT4: return ops->mix_int4;
    case TERN_KV_INT8: return ops->mix_int8;
    default: return ops->mix_f16;
    }
}

/* Scores of positions [0, n) to weights; positions up to `end` are not to be seen. */
static void weigh(const tern_state *s, float *scores, size_t n, size_t end, float *partial)
{
    *sum_of(s, partial) =
        s->model->kernels->kv->softmax(scores, n, s->kv.scale, largest_of(s, partial));
    for (size_t i = n; i < end; i++) scores[i] = 0.0f;
}

/* The other formats: all tokens see whole tiles, and a position after theirs has weight 0. */
static void packed_chunk(tern_state *s, const piece *p, size_t chunk, float *scores,
                         float *partials)
{
    const tern_config *c = &s->model->config;
    const tern_kv_layout *kv = &s->kv.layout;
    const size_t heads = c->n_heads / c->n_kv_heads, begin = chunk * TERN_KV_CHUNK;
    const size_t n_tiles = kv_tiles(visible(s, p->end - 1, chunk)), n = (p->end - p->first) * heads;
    tern_kv_query queries[KV_QUERIES_MAX];
    for (size_t i = 0; i < n; i++) {
        const size_t t = p->first + i / heads;
        queries[i] = s->kv.queries[t * c->n_heads + p->kv_head * heads + i % heads];
    }
    score_of(s)(kv, tile_of(s, s->kv.keys, p->kv_head, begin), n_tiles, queries, n, scores,
                TERN_KV_CHUNK);
    for (size_t i = 0; i < n; i++)
        weigh(s, scores + i * TERN_KV_CHUNK, visible(s, p->first + i / heads, chunk),
              n_tiles * TERN_KV_TILE, partials + i * s->kv.partial);
    mix_of(s)(kv, tile_of(s, s->kv.values, p->kv_head, begin), n_tiles, scores, TERN_KV_CHUNK, n,
              partials, s->kv.partial);
}

static void run_chunk(tern_state *s, const piece *p, size_t chunk, float *scores, float *partials)
{
    if (s->kv.layout.format == TERN_KV_F32)
        float_chunk(s, p, chunk, scores, partials);
    else
        packed_chunk(s, p, chunk, scores, partials);
}

/* ---- chunks to a head's output ---- */

/* Add a later chunk. */
static void merge(const tern_state *s, float *all, const float *next)
{
    const size_t width = s->kv.layout.width;
    const float top = *largest_of(s, all), next_top = next[width];
    if (next_top > top) {
        const float shrink = det_expf(top - next_top);
        for (size_t d = 0; d < width; d++) all[d] = all[d] * shrink + next[d];
        *sum_of(s, all) = *sum_of(s, all) * shrink + next[width + 1];
        *largest_of(s, all) = next_top;
    } else {
        const float shrink = det_expf(next_top - top);
        for (size_t d = 0; d < width; d++) all[d] += next[d] * shrink;
        *sum_of(s, all) += next[width + 1] * shrink;
    }
}

static void finish(tern_state *s, size_t t, size_t head, float *all)
{
    const size_t head_dim = s->model->config.head_dim;
    const float inverse = 1.0f / *sum_of(s, all);
    float *out = s->h + t * s->width + head * head_dim;
    for (size_t d = 0; d < head_dim; d++) out[d] = all[d] * inverse;
}

/* ---- one token: work items are (KV head, chunk) ---- */

static size_t chunks_of(size_t n)
{
    return (n + TERN_KV_CHUNK - 1) / TERN_KV_CHUNK;
}

/* Partials of the heads of a KV head in one chunk. */
static float *stored_partials(const tern_state *s, size_t chunk, size_t kv_head)
{
    const tern_config *c = &s->model->config;
    const size_t heads = c->n_heads / c->n_kv_heads;
    return s->kv.partials + (chunk * c->n_heads + kv_head * heads) * s->kv.partial;
}

static void merge_stored(tern_state *s, size_t kv_head, size_t n_chunks)
{
    const size_t heads = s->model->config.n_heads / s->model->config.n_kv_heads;
    for (size_t h = 0; h < heads; h++) {
        float *all = stored_partials(s, 0, kv_head) + h * s->kv.partial;
        for (size_t chunk = 1; chunk < n_chunks; chunk++)
            merge(s, all, stored_partials(s, chunk, kv_head) + h * s->kv.partial);
        finish(s, 0, kv_head * heads + h, all);
    }
}

static float *thread_scratch(const tern_state *s, size_t thread)
{
    return s->kv.scratch + thread * kv_scratch_floats(&s->kv);
}

static void run_token(void *arg, size_t thread, size_t n_threads)
{
    tern_state *s = arg;
    const size_t n_chunks = chunks_of(s->n_past + 1);
    const size_t n_items = n_chunks * s->model->config.n_kv_heads;
    (void)n_threads;
    for (size_t i; (i = atomic_fetch_add(&s->kv.next_item, 1)) < n_items;) {
        const size_t kv_head = i / n_chunks, chunk = i % n_chunks;
        const piece p = { kv_head, 0, 1 };
        run_chunk(s, &p, chunk, thread_scratch(s, thread), stored_partials(s, chunk, kv_head));
        if (atomic_fetch_add(&s->kv.chunks_done[kv_head], 1) + 1 == n_chunks)
            merge_stored(s, kv_head, n_chunks);
    }
}

/* ---- a block: work items are (KV head, tokens that fill the queries of one call) ---- */

static size_t tokens_of_piece(const tern_state *s)
{
    const size_t heads = s->model->config.n_heads / s->model->config.n_kv_heads;
    return heads < KV_QUERIES_WANTED ? KV_QUERIES_WANTED / heads : 1;
}

/* Chunks in turn; `running` and `partials` hold one partial a query. */
static void run_piece(tern_state *s, const piece *p, float *scores, float *running, float *partials)
{
    const size_t heads = s->model->config.n_heads / s->model->config.n_kv_heads;
    const size_t n_chunks = chunks_of(s->n_past + p->end);
    run_chunk(s, p, 0, scores, running);
    for (size_t chunk = 1; chunk < n_chunks; chunk++) {
        piece seeing = *p; /* the tokens that reach this chunk */
        while (visible(s, seeing.first, chunk) == 0) seeing.first++;
        const size_t skipped = (seeing.first - p->first) * heads;
        run_chunk(s, &seeing, chunk, scores, partials);
        for (size_t i = 0; i < (seeing.end - seeing.first) * heads; i++)
            merge(s, running + (skipped + i) * s->kv.partial, partials + i * s->kv.partial);
    }
    for (size_t i = 0; i < (p->end - p->first) * heads; i++)
        finish(s, p->first + i / heads, p->kv_head * heads + i % heads,
               running + i * s->kv.partial);
}

static void run_block(void *arg, size_t thread, size_t n_threads)
{
    tern_state *s = arg;
    const size_t n_kv_heads = s->model->config.n_kv_heads, step = tokens_of_piece(s);
    const size_t n_items = (s->n_tokens + step - 1) / step * n_kv_heads;
    float *scores = thread_scratch(s, thread);
    float *running = scores + s->kv.n_queries * TERN_KV_CHUNK;
    float *partials = running + s->kv.n_queries * s->kv.partial;
    (void)n_threads;
    for (size_t i; (i = atomic_fetch_add(&s->kv.next_item, 1)) < n_items;) {
        const size_t first = i / n_kv_heads * step;
        const size_t end = first + step < s->n_tokens ? first + step : s->n_tokens;
        run_piece(s, &(piece){ i % n_kv_heads, first, end }, scores, running, partials);
    }
}

void attend(tern_state *s)
{
    atomic_store(&s->kv.next_item, 0);
    for (size_t h = 0; h < s->model->config.n_kv_heads; h++) atomic_store(&s->kv.chunks_done[h], 0);
    pool_run(s->pool, s->n_tokens == 1 ? run_token : run_block, s);
}

/* ---- memory ---- */

void kv_init(tern_state *s, unsigned kv_bits, size_t kv_group_size)
{
    const tern_config *c = &s->model->config;
    const size_t heads = c->n_heads / c->n_kv_heads;
    s->kv.layout = tern_kv_layout_of(kv_bits, kv_group_size, c->head_dim);
    s->kv.scale = 1.0f / sqrtf((float)c->head_dim);
    s->kv.chunk_tiles = kv_tiles(s->context < TERN_KV_CHUNK ? s->context : TERN_KV_CHUNK);
    s->kv.n_queries = heads < KV_QUERIES_WANTED ? KV_QUERIES_WANTED : heads;
    /* Largest and sum lie behind the values; partials begin at cache lines. */
    s->kv.partial = (s->kv.layout.width + 2 + DOT_LANES - 1) / DOT_LANES * DOT_LANES;
}

size_t kv_scratch_floats(const kv_cache *kv)
{
    return kv->n_queries * (TERN_KV_CHUNK + 2 * kv->partial);
}

/* Large pages, where the system gives them: each chunk of a head is somewhere else, and walking the
 * tables of small pages costs more than reading them. */
static uint8_t *take_cache(tern_state *s, size_t bytes)
{
    enum { SMALL_PAGE = 4096 };
    uint8_t *cache = state_take(s, bytes, 1);
    const size_t skip = (SMALL_PAGE - (uintptr_t)cache % SMALL_PAGE) % SMALL_PAGE;
    if (cache && bytes > skip) madvise(cache + skip, bytes - skip, MADV_HUGEPAGE);
    return cache;
}

bool kv_take(tern_state *s)
{
    const tern_config *c = &s->model->config;
    const size_t heads = TERN_TOKENS_BLOCK * c->n_heads, groups = heads * s->kv.layout.n_groups;
    const size_t cache = chunks_of(s->context) * c->n_layers * c->n_kv_heads * s->kv.chunk_tiles *
                         s->kv.layout.tile_bytes;
    const size_t stored = chunks_of(s->context) * c->n_heads * s->kv.partial;
    return (s->kv.keys = take_cache(s, cache)) && (s->kv.values = take_cache(s, cache)) &&
           (s->kv.queries = state_take(s, heads, sizeof *s->kv.queries)) &&
           (s->kv.codes = state_take(s, heads, kv_padded_dim(c->head_dim))) &&
           (s->kv.scales = state_take(s, groups, sizeof(float))) &&
           (s->kv.sums = state_take(s, groups, sizeof(int32_t))) &&
           (s->kv.partials = state_take(s, stored, sizeof(float))) &&
           (s->kv.scratch = state_take(s, TERN_THREADS_MAX * kv_scratch_floats(&s->kv),
                                       sizeof(float))) &&
           (s->kv.chunks_done = state_take(s, c->n_kv_heads, sizeof *s->kv.chunks_done));
}
