/* lora.h - private: what an adapter adds to the products of a block. */
#ifndef LORA_H
#define LORA_H

#include "multiply.h"

/* Compute what the adapter adds to the products i < n of projections first + i, whose input is h. */
void adapt(tern_state *s, tern_projection first, const tern_matrix *const *w, size_t n);

/* (n_out,) and padding, what is added to product i of token t when s->lora.is_on[i]. */
float *lora_delta(const tern_state *s, size_t i, size_t t);

void lora_free(tern_state *s);

#endif
