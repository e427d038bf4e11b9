/* sampler.h - logits to a token: the same token on every machine for the same seed.
 *
 * Order of the steps: repetition penalty, temperature, top-k, top-p, min-p, draw. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "head.h"

typedef struct tern_sampler {
    float temperature;        /* 0: greedy; the lowest token wins a tie */
    size_t top_k;             /* 0: all */
    float top_p;              /* 1: all */
    float min_p;              /* 0: all */
    float repetition_penalty; /* 1: none */
    uint64_t rng[4];          /* xoshiro256**, never all zero */
} tern_sampler;

/* Fill the generator's state from 64 bits (splitmix64). */
void tern_sampler_seed(tern_sampler *sampler, uint64_t seed);

/* Draw one token.  A NaN logit counts as -infinity.
 *
 *   logits   (vocab,) float32   not changed
 *   recent   (n_recent,) uint32 each < vocab; a token is penalised once, however often it appears
 *   scratch  (vocab,)           overwritten */
uint32_t tern_sample(tern_sampler *sampler, const float *logits, size_t vocab,
                     const uint32_t *recent, size_t n_recent, tern_candidate *scratch);

/* What tern_sample_candidates needs to draw the token that tern_sample would draw.  False when it
 * needs all logits: nothing bounds the list, or only top_p does, a share of the sum over all. */
bool tern_sampler_request(const tern_sampler *sampler, size_t vocab, const uint32_t *recent,
                          size_t n_recent, tern_head_request *request);

/* Draw one token from the candidates that the request asked for: the same token, and the same state
 * of the generator afterwards, as tern_sample gives for all logits.
 *
 *   list  (n,)   by ascending token, n > 0; overwritten
 *   vocab, recent, n_recent   as for the request */
uint32_t tern_sample_candidates(tern_sampler *sampler, tern_candidate *list, size_t n, size_t vocab,
                                const uint32_t *recent, size_t n_recent);

#endif
