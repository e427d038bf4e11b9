/* forward.h - contract of the forward pass: what a model is, what it knows, what it is doing now.
 *
 * Nothing here checks its input: whoever fills a tern_model has checked every shape and length.
 * Results are the same bits for every variant, thread count, zero_skip and split of a prompt. */
#ifndef FORWARD_H
#define FORWARD_H

#include "ternary.h"
#include <stdbool.h>

enum {
    TERN_CONTEXT_MAX = 1 << 20, /* positions; det_sincos is exact enough up to 2^20 radians */
    TERN_THREADS_MAX = 64,
    TERN_TOKENS_BLOCK = 128, /* tokens that go through a layer together: unpacking is 2 % of a GEMM */

    TERN_DIGITS = 3,          /* of a float activation: 2 miss float32's logits by more than 1e-3 */
    TERN_DIGIT_BASE = 255,    /* digits are -127 to 127 */
    TERN_DIGITS_MAX_X = (1 << 22) - 1, /* the largest activation: as far as round_f32 rounds */
    TERN_GROUP_STEP = 4,      /* inputs: groups of them are whole quads */
};
_Static_assert(TERN_DIGITS_MAX_X <= TERN_X_MAX * TERN_DIGIT_BASE * TERN_DIGIT_BASE,
               "the highest of three digits would overflow");

typedef enum tern_act_kind { TERN_RELU2, TERN_SILU } tern_act_kind;

typedef enum tern_rope_kind {
    TERN_ROPE_DEFAULT,
    TERN_ROPE_LINEAR,
    TERN_ROPE_LLAMA3,
    TERN_ROPE_LONG,
} tern_rope_kind;

/* Frequencies of rotary positions; docs/formats.md, section 1a, has the formulas. */
typedef struct tern_rope {
    double theta;
    tern_rope_kind kind;
    double factor;                            /* linear, llama3; of longrope the stretch of the context */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double attention_factor;                  /* longrope; 0: from the factor */
    size_t original_context;                  /* llama3, longrope: positions of the first training */
    const double *short_factor, *long_factor; /* longrope: (head_dim / 2,) */
} tern_rope;

/* What the model is. */
typedef struct tern_config {
    size_t vocab, hidden, ffn, n_layers, n_heads, n_kv_heads, head_dim;
    float eps; /* of every RMSNorm */
    tern_rope rope;
    tern_act_kind act;
    size_t n_digits; /* int8 digits of an activation: 1 of W1.58A8, TERN_DIGITS of W1.58A16 */
    /* MiniCPM; 1 elsewhere: embeddings and what a block adds to the residual stream are multiplied,
     * the head's input is divided */
    float embed_scale, residual_scale, head_divisor;
} tern_config;

typedef enum tern_orientation { TERN_ROWS, TERN_LINES, TERN_CHANNELS, TERN_TILES } tern_orientation;

/* One packed plane; the product is multiplied by `scale`.  Lines are 2 bit, channels and tiles base 3,
 * rows either.  Only `o` and `down` may be channels: threads split their inputs.
 *
 * With `scales` the inputs are `n_groups` equal runs, each with a scale an output:
 *       y[o] = (float(S[0]) * scales[0][o] + float(S[1]) * scales[1][o]) + ...
 * the sum S[g] over group g exact and rounded once; more than one group needs lines. */
typedef struct tern_matrix {
    const uint8_t *plane;
    size_t n_out, n_in;
    tern_orientation orientation;
    tern_packing packing;
    float scale;         /* unused with scales */
    const float *scales; /* (n_groups, n_out) or NULL */
    size_t n_groups;     /* of n_in / n_groups inputs, a multiple of TERN_GROUP_STEP if more than one */
} tern_matrix;

typedef struct tern_layer {
    const float *input_norm;    /* (hidden,) */
    const float *post_norm;     /* (hidden,) */
    const float *attn_sub_norm; /* (n_heads * head_dim,) or NULL */
    const float *ffn_sub_norm;  /* (ffn,) or NULL */
    const float *q_norm;        /* (head_dim,) or NULL, of every query head */
    const float *k_norm;        /* (head_dim,) or NULL, of every key head */
    tern_matrix q, k, v, o, gate, up, down;
} tern_layer;

/* The head once more in few bits, for tern_head_candidates; docs/formats.md, section 3a.
 * `codes` is NULL when the model has none. */
typedef struct tern_head_scan {
    const uint8_t *codes;  /* (ceil(vocab / 16), 5 * groups, 64)   groups = ceil(hidden / 32) */
    const uint8_t *scales; /* (ceil(vocab / 16), groups, 16) */
    const uint8_t *levels; /* (32,) */
    const uint8_t *refine; /* (vocab, ceil(hidden / 256) * 64) */
    /* (vocab,) each: scale of codes and of refine; upper bounds of ||row||, of the rest that codes
     * leave, and of the rest that codes and refine leave */
    const float *scale, *refine_scale, *norm, *rest, *refined_rest;
} tern_head_scan;

/* What it knows.  Nothing is copied: the pointers lead into the model's files. */
typedef struct tern_model {
    tern_config config;
    const uint16_t *embed;   /* (vocab, hidden) float16 */
    const uint16_t *head;    /* (vocab, hidden) float16; == embed when tied */
    const float *final_norm; /* (hidden,) */
    tern_head_scan scan;
    tern_layer *layers;      /* (n_layers,) */
    const tern_kernels *kernels;
    size_t ternary_bytes; /* of all planes: do they stay in a cache from one token to the next? */
} tern_model;

/* The matrices of a layer, in the order of an adapter. */
typedef enum tern_projection {
    TERN_Q,
    TERN_K,
    TERN_V,
    TERN_O,
    TERN_GATE,
    TERN_UP,
    TERN_DOWN,
    TERN_PROJECTIONS,
} tern_projection;

/* A low-rank addition beside one ternary product, from the float input as it was before it was
 * quantised; every step in float32:
 *
 *       u[j] = (A[j] . x) * scale                     in the order of dot_f32
 *       y[o] = y[o] + (u[0] B[o][0] + u[1] B[o][1] + ...)   in the order of mix_f32 */
typedef struct tern_lora {
    size_t rank;    /* 0: none, and the rest is unused */
    const float *a; /* (rank, n_in) */
    const float *b; /* (ceil(n_out / 256), rank, 256): the transpose in panels; padding is 0 */
    float scale;
} tern_lora;

enum { TERN_LORA_PANEL = 256, TERN_LORA_RANK_MAX = 1024 };

typedef struct tern_adapter {
    const tern_lora *loras; /* (n_layers, TERN_PROJECTIONS) */
    size_t rank_max;        /* of all of them */
} tern_adapter;

typedef enum tern_float { TERN_FLOAT32, TERN_FLOAT16, TERN_BFLOAT16 } tern_float;

/* `n` little-endian numbers, aligned or not, to float32: exact. */
void tern_widen(tern_float kind, const uint8_t *bytes, size_t n, float *to);

/* (n_out, rank) in rows to the panels of a tern_lora. */
void tern_lora_pack(const float *b, size_t n_out, size_t rank, float *panels);

/* What zero activations and closed gates saved, in one layer since the last reset. */
typedef struct tern_counters {
    uint64_t multiplications, multiplications_skipped;
    uint64_t weight_bytes, weight_bytes_skipped;
    uint64_t activations, zero_activations; /* inputs of all matrices */
    uint64_t gates, closed_gates;           /* rows of up whose gate is exactly 0 */
    uint64_t down_inputs, zero_down_inputs; /* the part of the activations that enters down */
} tern_counters;

/* How the head was evaluated since the last reset. */
typedef struct tern_head_counters {
    uint64_t full_scans;    /* times all logits were computed */
    uint64_t queries;       /* requests for candidates */
    uint64_t fallbacks;     /* of those, the ones that need a full scan */
    uint64_t grown;         /* of the others: the rows guessed from the estimates were not all */
    uint64_t rows_scanned;  /* estimated from codes */
    uint64_t rows_refined;  /* estimated again from codes and refine */
    uint64_t rows_rescored; /* computed from float16, outside full scans */
} tern_head_counters;

/* What it is doing now: KV cache, scratch memory and threads of one conversation. */
typedef struct tern_state tern_state;

/* NULL when memory or threads are lacking.  `model` must outlive the state.
 *
 * `kv_bits` is 32, 16, 8 or 4, `kv_group_size` a multiple of TERN_KV_GROUP_STEP up to
 * TERN_KV_GROUP_MAX: see kv.h.  32 is the reference that published hashes of logits are made with. */
tern_state *tern_state_new(const tern_model *model, size_t context, size_t n_threads,
                           bool zero_skip, unsigned kv_bits, size_t kv_group_size);
void tern_state_free(tern_state *state);

/* Replace the threads.  False when they cannot be had; the state is then unchanged. */
bool tern_state_set_threads(tern_state *state, size_t n_threads);
void tern_state_set_zero_skip(tern_state *state, bool zero_skip);

/* Use `adapter` from now on, NULL for none; it must outlive its use.  Forgets every position, for their
 * keys and values are of another function.  False when memory is lacking; nothing has changed then. */
bool tern_state_set_adapter(tern_state *s, const tern_adapter *adapter);

/* Append `tokens` to the KV cache and write the logits of the last one.
 *
 *   tokens  (n_tokens,) uint32  each < vocab; n_past + n_tokens <= context
 *   logits  (vocab,) float32    overwritten, or NULL: head.h gives them, or a few, when asked */
void tern_forward(tern_state *state, const uint32_t *tokens, size_t n_tokens, float *logits);

size_t tern_state_n_past(const tern_state *state);
void tern_state_truncate(tern_state *state, size_t n_past); /* n_past <= the present one */

/* (n_layers,) */
tern_counters *tern_state_counters(tern_state *state);

/* Bytes of a KV cache when every position is used; memory is taken as positions are. */
size_t tern_kv_bytes(const tern_config *config, size_t context, unsigned kv_bits,
                     size_t kv_group_size);

#endif
