/* kv_softmax.h - private: the body of tern_kv_softmax_fn, compiled once for every variant.
 *
 * Sixteen lanes in plain C: each compiler turns them into the vectors of the function that it is
 * put into, and no variant can disagree with another. */
#ifndef KV_SOFTMAX_H
#define KV_SOFTMAX_H

#include "detmath.h"
#include "variants.h"

static inline __attribute__((always_inline)) float largest_scaled(float *x, size_t n, float scale)
{
    float lane[DOT_LANES];
    for (size_t i = 0; i < n; i++) x[i] *= scale;
    for (size_t l = 0; l < DOT_LANES; l++) lane[l] = x[l < n ? l : 0];
    const size_t whole = n - n % DOT_LANES;
    for (size_t i = 0; i < whole; i += DOT_LANES)
        for (size_t l = 0; l < DOT_LANES; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (size_t i = whole; i < n; i++)
        lane[i - whole] = x[i] > lane[i - whole] ? x[i] : lane[i - whole];
    float largest = lane[0];
    for (size_t l = 1; l < DOT_LANES; l++) largest = lane[l] > largest ? lane[l] : largest;
    return largest;
}

static inline __attribute__((always_inline)) float softmax_body(float *x, size_t n, float scale,
                                                                float *largest)
{
    const float top = largest_scaled(x, n, scale);
    float lane[DOT_LANES] = { 0 };
    const size_t whole = n - n % DOT_LANES;
    for (size_t i = 0; i < n; i++) x[i] = det_expf(x[i] - top);
    for (size_t i = 0; i < whole; i += DOT_LANES)
        for (size_t l = 0; l < DOT_LANES; l++) lane[l] += x[i + l];
    for (size_t i = whole; i < n; i++) lane[i - whole] += x[i];
    *largest = top;
    return dot_tree(lane);
}

#endif
