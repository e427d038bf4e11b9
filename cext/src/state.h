/* state.h - private: the inside of a tern_state, shared by forward.c, attention.c and state.c. */
#ifndef STATE_H
#define STATE_H

#include "forward.h"
#include "ops.h"
#include "pool.h"

_Static_assert((int)TERN_THREADS_MAX == (int)POOL_THREADS_MAX, "one limit of threads");

/* Keys and values of past positions, float32.  Only attention.c knows how they are stored. */
typedef struct kv_cache {
    float *keys;   /* (n_layers, n_kv_heads, context, head_dim) */
    float *values; /* the same */
    float *scores; /* (TERN_THREADS_MAX, context) scratch */
} kv_cache;

/* Tokens of one block; B is TERN_TOKENS_BLOCK. */
struct tern_state {
    const tern_model *model;
    tern_pool *pool;
    size_t context, n_past;
    bool zero_skip;

    size_t layer;    /* the one being computed */
    size_t n_tokens; /* of this block, 0 < n_tokens <= B */

    kv_cache kv;
    float *cosines, *sines; /* (context, head_dim / 2) */

    size_t width;                      /* widest vector: max(hidden, ffn, n_heads * head_dim) */
    size_t z_stride;                   /* width, up to whole panels and blocks of every kind */
    float *x;                          /* (B, hidden)              residual stream */
    float *h;                          /* (B, width)               a matrix's float input */
    float *queries;                    /* (B, n_heads * head_dim)  rotated */
    float *gates;                      /* (B, ffn)                 activated */
    int32_t *z[3];                     /* (B, z_stride) each       integer products */
    int32_t *partial;                  /* (TERN_THREADS_MAX, z_stride)  shares of sums */
    quantized in[TERN_TOKENS_BLOCK];   /* a matrix's quantised input */
    uint32_t *open[TERN_TOKENS_BLOCK]; /* (ffn,) rows of up to compute */
    size_t n_open[TERN_TOKENS_BLOCK];
    tern_counters *counters; /* (n_layers,) */

    void *owned[256]; /* all of the above, for tern_state_free */
    size_t n_owned;
};

/* Store the key or the value of one position in the present layer: (n_kv_heads, head_dim). */
void kv_store_key(tern_state *s, size_t position, const float *key);
void kv_store_value(tern_state *s, size_t position, const float *value);

/* Attention of one query head over positions [0, n): out is (head_dim,). */
void attend(tern_state *s, size_t head, size_t n, const float *query, size_t thread, float *out);

#endif
