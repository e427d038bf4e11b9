/* state.h - private: the inside of a tern_state, shared by forward.c, attention.c and state.c. */
#ifndef STATE_H
#define STATE_H

#include "forward.h"
#include "head.h"
#include "ops.h"
#include "pool.h"
#include "variants.h"
#include <stdatomic.h>

_Static_assert((int)TERN_THREADS_MAX == (int)POOL_THREADS_MAX, "one limit of threads");

enum {
    KV_QUERIES_WANTED = 16, /* of one KV head in one call: 4 reads of a tile from the first cache */
    KV_QUERIES_MAX = 1024,  /* query heads of one KV head, at most */
};

/* Keys and values of past positions, and what attention needs besides.  Only attention.c looks
 * inside; the format is kv.h's.  B is TERN_TOKENS_BLOCK. */
typedef struct kv_cache {
    tern_kv_layout layout;
    float scale;           /* of scores: 1 / sqrt(head_dim) */
    size_t n_queries;      /* most queries of one call */
    size_t partial;        /* floats of one partial result */
    size_t chunk_tiles;    /* tiles of a chunk: those of the context if it is shorter */
    uint8_t *keys;         /* (chunks, n_layers, n_kv_heads, chunk_tiles, tile_bytes) */
    uint8_t *values;       /* the same */
    tern_kv_query *queries; /* (B, n_heads) */
    int8_t *codes;         /* (B, n_heads, kv_padded_dim) of the queries */
    float *scales;         /* (B, n_heads, n_groups) */
    int32_t *sums;         /* (B, n_heads, n_groups) */
    float *partials;       /* (chunks of the context, n_heads, partial) of one token */
    float *scratch;        /* (TERN_THREADS_MAX, kv_scratch_floats) */
    _Atomic size_t next_item;
    _Atomic size_t *chunks_done; /* (n_kv_heads,) */
} kv_cache;

static inline size_t kv_tiles(size_t positions)
{
    return (positions + TERN_KV_TILE - 1) / TERN_KV_TILE;
}

/* Codes of a query: whole vectors. */
static inline size_t kv_padded_dim(size_t head_dim)
{
    return (head_dim + TERN_KV_GROUP_STEP - 1) / TERN_KV_GROUP_STEP * TERN_KV_GROUP_STEP;
}

/* Scratch of tern_head_candidates; only head.c looks inside. */
typedef struct head_scratch {
    int8_t *scan_x, *high; /* (padded hidden,) the input as scan and refinement take it */
    float *unit;           /* (groups,) of scan_x */
    int32_t *minus_zero;   /* (groups,) */
    float *estimate;       /* (padded vocab,) */
    float *exact;          /* (vocab,) logits of the rows that were computed */
    uint32_t *rows;        /* (vocab,) each chunk of rows lists its survivors in its own part */
    int32_t *products;     /* (vocab,) of the refine plane, in the same places */
    size_t *n_found;       /* (chunks,) */
    tern_candidate *guess; /* (TERN_THREADS_MAX, TERN_HEAD_K_MAX) best estimates of each thread */
    size_t n_guess[TERN_THREADS_MAX];
} head_scratch;

/* What an adapter needs; only lora.c looks inside. */
typedef struct lora_scratch {
    const tern_adapter *adapter; /* NULL: none */
    size_t rank_max;
    float *low;    /* (3, B, rank_max)  A x of up to three products */
    float *delta;  /* (3, B, z_stride)  B A x */
    bool is_on[3]; /* has product i of this job an addition? */
} lora_scratch;

/* Tokens of one block; B is TERN_TOKENS_BLOCK. */
struct tern_state {
    const tern_model *model;
    tern_pool *pool;
    size_t context, n_past;
    bool zero_skip;

    size_t layer;    /* the one being computed */
    size_t n_tokens; /* of this block, 0 < n_tokens * n_digits <= B */
    size_t n_acts;   /* n_tokens * n_digits: the digits of a token are rows of the integer products */

    kv_cache kv;
    float *cosines, *sines; /* (context, head_dim / 2) */
    size_t n_rope;          /* positions of them that are computed */

    size_t width;                      /* widest vector: max(hidden, ffn, n_heads * head_dim) */
    size_t z_stride;                   /* width, up to whole panels and blocks of every kind */
    float *x;                          /* (B, hidden)              residual stream */
    float *h;                          /* (B, width)               a matrix's float input */
    float *queries;                    /* (B, n_heads * head_dim)  rotated */
    float *gates;                      /* (B, ffn)                 activated */
    int32_t *z[3];                     /* (B, z_stride) each       integer products of digits */
    int32_t *partial;                  /* (TERN_THREADS_MAX, z_stride)  shares of sums */
    quantized in[TERN_TOKENS_BLOCK];   /* a matrix's quantised input, n_digits for each token */
    int32_t *group_sums;               /* (TERN_THREADS_MAX, B, TERN_PANEL)  of one group of inputs */
    uint32_t *open[TERN_TOKENS_BLOCK]; /* (ffn,) rows of up to compute */
    size_t n_open[TERN_TOKENS_BLOCK];
    tern_counters *counters; /* (n_layers,) */
    float *hidden;           /* (hidden,) of the last token, after the final norm */
    lora_scratch lora;
    head_scratch head;
    tern_head_counters head_counters;

    void *owned[4 * TERN_TOKENS_BLOCK + 48]; /* all of the above, for tern_state_free */
    size_t n_owned;
};

/* Row t of (B, width). */
static inline float *row(float *base, size_t t, size_t width)
{
    return base + t * width;
}

/* Zeroed memory aligned to a cache line that tern_state_free gives back; NULL when there is none. */
void *state_take(tern_state *s, size_t count, size_t size);

/* Fill in the sizes of the KV cache, then take its memory. */
void kv_init(tern_state *s, unsigned kv_bits, size_t kv_group_size);
bool kv_take(tern_state *s);
size_t kv_scratch_floats(const kv_cache *kv);

/* Store the key or the value of one position in the present layer: (n_kv_heads, head_dim). */
void kv_store_key(tern_state *s, size_t position, const float *key);
void kv_store_value(tern_state *s, size_t position, const float *value);

/* Take over the queries of token t of the block: (n_heads, head_dim), kept until `attend`. */
void kv_prepare_query(tern_state *s, size_t t, const float *query);

/* Attention of the block's tokens in the present layer; writes rows of s->h. */
void attend(tern_state *s);

/* Memory for tern_head_candidates.  False when there is none. */
bool head_take(tern_state *s);

#endif
