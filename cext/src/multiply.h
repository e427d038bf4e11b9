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
} product_job;

/* z[i] of token t: (n_out,) and padding. */
static inline int32_t *product(const tern_state *s, size_t i, size_t t)
{
    return s->z[i] + t * s->z_stride;
}

/* The same as float32, for planes of float16. */
static inline float *float_product(const tern_state *s, size_t i, size_t t)
{
    return (float *)(void *)product(s, i, t);
}

/* Compute all products of a job for all tokens of the block, and count them. */
void multiply(tern_state *s, product_job *job);

/* Is listing the live channels of token t cheaper than visiting all of them? */
bool pays_to_skip(const tern_state *s, const tern_matrix *w, size_t t);

/* Is it worth to wait for the gates, and to compute only open rows of up? */
bool pays_to_close(const tern_state *s, const tern_layer *w);

#endif
