/* sampler.h - logits to a token: the same token on every machine for the same seed.
 *
 * Order of the steps: repetition penalty, temperature, top-k, top-p, min-p, draw. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include <stddef.h>
#include <stdint.h>

typedef struct tern_sampler {
    float temperature;        /* 0: greedy; the lowest token wins a tie */
    size_t top_k;             /* 0: all */
    float top_p;              /* 1: all */
    float min_p;              /* 0: all */
    float repetition_penalty; /* 1: none */
    uint64_t rng[4];          /* xoshiro256**, never all zero */
} tern_sampler;

typedef struct tern_candidate {
    float logit;
    uint32_t token;
    float weight; /* exp((logit - largest) / temperature) */
} tern_candidate;

/* Fill the generator's state from 64 bits (splitmix64). */
void tern_sampler_seed(tern_sampler *sampler, uint64_t seed);

/* Draw one token.  A NaN logit counts as -infinity.
 *
 *   logits   (vocab,) float32   not changed
 *   recent   (n_recent,) uint32 each < vocab; a token is penalised once, however often it appears
 *   scratch  (vocab,)           overwritten */
uint32_t tern_sample(tern_sampler *sampler, const float *logits, size_t vocab,
                     const uint32_t *recent, size_t n_recent, tern_candidate *scratch);

#endif
