/* head.h - the LM head in two stages: few bytes for all rows, all bytes for few rows.
 *
 * The scan gives every row an estimate of its logit with a proven bound on its error; only rows
 * that could still be among the wanted ones get their exact logit (docs/adr/0010). */
#ifndef HEAD_H
#define HEAD_H

#include "forward.h"

enum {
    TERN_HEAD_K_MAX = 1024,      /* best rows of a request; above it a full scan is asked for */
    TERN_HEAD_RECENT_MAX = 1024, /* tokens whose exact logit is wanted in any case */
};

typedef struct tern_candidate {
    float logit;
    uint32_t token;
    float weight; /* the sampler's: exp((logit - largest) / temperature) */
} tern_candidate;

/* Which tokens must be among the candidates: all `recent` ones, and of the others the k best (a tie
 * goes to the lower token) and whatever is at most `margin` below the k-th best. */
typedef struct tern_head_request {
    size_t k;
    float margin;           /* >= 0 */
    const uint32_t *recent; /* (n_recent,) each < vocab; may repeat */
    size_t n_recent;
} tern_head_request;

/* Write the candidates of the last token that went through tern_forward, by ascending token, with
 * their exact logits: the bits that tern_head_logits would give.  More candidates than wanted may
 * be among them.  Return how many, or 0 when the request needs a full scan: the model has no scan
 * planes, the request is too large, or too many rows could not be told apart.
 *
 *   out  (vocab,)   the first ones are overwritten */
size_t tern_head_candidates(tern_state *state, const tern_head_request *request,
                            tern_candidate *out);

/* Write the logits of the last token that went through tern_forward: a full scan.
 *
 *   logits  (vocab,) float32   overwritten */
void tern_head_logits(tern_state *state, float *logits);

/* (hidden,) float32: what the head multiplies, after the final norm. */
const float *tern_state_hidden(const tern_state *state);

tern_head_counters *tern_state_head_counters(tern_state *state);

#endif
