/* rope.c - rotary positions: frequencies of every scaling, the tables, the rotation.
 *
 * Everything before the tables is double precision from detmath.h, so that all machines fill them
 * with the same bits. */
#include "detmath.h"
#include "ops.h"
#include <math.h>

/* Llama 3.1: frequencies that turn often within the first training's context stay, those that turn
 * seldom are divided, and those between are mixed. */
static double llama3_frequency(const tern_rope *r, double frequency)
{
    static const double TWO_PI = 0x1.921fb54442d18p+2;
    const double turns = (double)r->original_context * frequency / TWO_PI;
    if (turns > r->high_freq_factor) return frequency;
    if (turns < r->low_freq_factor) return frequency / r->factor;
    const double keep =
        (turns - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (1.0 - keep) * (frequency / r->factor) + keep * frequency;
}

static double frequency_of(const tern_rope *r, size_t context, size_t head_dim, size_t i)
{
    const double plain = det_exp(-2.0 * (double)i / (double)head_dim * det_log(r->theta));
    switch (r->kind) {
    case TERN_ROPE_LINEAR: return plain / r->factor;
    case TERN_ROPE_LLAMA3: return llama3_frequency(r, plain);
    case TERN_ROPE_LONG:
        return plain / (context > r->original_context ? r->long_factor : r->short_factor)[i];
    default: return plain;
    }
}

/* What cosines and sines are multiplied by. */
static double attention_factor_of(const tern_rope *r)
{
    if (r->kind != TERN_ROPE_LONG) return 1.0;
    if (r->attention_factor > 0.0) return r->attention_factor;
    if (r->factor <= 1.0) return 1.0;
    return sqrt(1.0 + det_log(r->factor) / det_log((double)r->original_context));
}

void rope_table(const tern_rope *r, size_t head_dim, size_t context, size_t begin, size_t end,
                float *cosines, float *sines)
{
    const size_t half = head_dim / 2;
    const double attention = attention_factor_of(r);
    for (size_t i = 0; i < half; i++) {
        const double frequency = frequency_of(r, context, head_dim, i);
        for (size_t position = begin; position < end; position++) {
            double sine, cosine;
            det_sincos((double)position * frequency, &sine, &cosine);
            cosines[position * half + i] = (float)(cosine * attention);
            sines[position * half + i] = (float)(sine * attention);
        }
    }
}

WIDE void rope(float *x, size_t n_heads, size_t head_dim, const float *cosines, const float *sines)
{
    const size_t half = head_dim / 2;
    for (size_t h = 0; h < n_heads; h++, x += head_dim) {
        for (size_t i = 0; i < half; i++) {
            const float a = x[i], b = x[i + half];
            x[i] = a * cosines[i] - b * sines[i];
            x[i + half] = b * cosines[i] + a * sines[i];
        }
    }
}
