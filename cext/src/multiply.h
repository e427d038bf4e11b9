/* multiply.h - private: integer products of packed planes, shared by the threads of a state. */
#ifndef MULTIPLY_H
#define MULTIPLY_H

#include "state.h"

/* [begin, end) of `n` items that belong to `thread`. */
typedef struct span {
    size_t begin, end;
} span;

static inline span share(size_t n, size_t thread, size_t n_threads)
{
    return (span){ n * thread / n_threads, n * (thread + 1) / n_threads };
}

/* Up to three planes that share one quantised input; product i goes to z[first + i]. */
typedef struct product_job {
    tern_state *state;
    const tern_matrix *w[3];
    size_t n_planes, first;
    bool open_rows_only; /* a single plane of rows: only rows s->open */
    bool is_listed;      /* a single plane of channels, a block of tokens: only the live ones */
} product_job;

/* z[i] of row t, a digit of a token: (n_out,) and padding. */
static inline int32_t *product(const tern_state *s, size_t i, size_t t)
{
    return s->z[i] + t * s->z_stride;
}

/* The same as float32 in the row of the token's first digit, for planes of float16 and of groups. */
static inline float *float_product(const tern_state *s, size_t i, size_t t)
{
    return (float *)(void *)product(s, i, t * s->model->config.n_digits);
}

/* Compute all products of a job for all tokens of the block, and count them. */
void multiply(tern_state *s, product_job *job);

/* The GEMM for this block of activations, or NULL. */
tern_gemm_fn *block_gemm(const tern_state *s, const tern_matrix *w);

/* Plane i of a job, which has groups, units of lines [begin, end) of `items`: float_product of every
 * token, all but the scale of its activations. */
void multiply_groups(const product_job *job, size_t i, span items, size_t thread);

/* Quantise the input `x` of one matrix, or of several of one shape, for token t. */
void prepare_input(tern_state *s, const tern_matrix *w, const float *x, size_t t);

/* y = product i of token t, in the units of the model. */
void take_product(const tern_state *s, const tern_matrix *w, size_t i, size_t t, float *y);

/* x += product 0 of token t, scaled as the model wants it; overwrites row t of h. */
void add_product(const tern_state *s, const tern_matrix *w, size_t t, float *x);

/* Is listing the live channels of token t cheaper than visiting all of them? */
bool pays_to_skip(const tern_state *s, const tern_matrix *w, size_t t);

/* Is it worth to wait for the gates, and perhaps to compute only open rows of up? */
bool pays_to_close(const tern_state *s, const tern_layer *w);

/* With the gates of all tokens counted: is a list of open rows cheaper than all? */
bool pays_to_list(const tern_state *s, const tern_layer *w);

#endif
