/* groups.c - products of planes whose scales change along the inputs.
 *
 * In a plane of lines the inputs of a group lie together: 64 bytes each, for 256 outputs.  So a group
 * of a panel is a small plane of its own, and the kernels need not know of groups.  Every panel goes
 * group after group, which fixes the order of the float sums. */
#include "multiply.h"

/* Sums of group g, units [from, to) of panel p, for all rows of the block. */
static void sum_group(tern_state *s, const tern_matrix *w, size_t p, size_t g, span units,
                      int32_t *sums)
{
    const size_t n = w->n_in / w->n_groups;
    const uint8_t *plane = w->plane + (p * w->n_in + g * n) * TERN_LINE_BYTES;
    tern_gemm_fn *gemm = block_gemm(s, w);
    tern_act acts[TERN_TOKENS_BLOCK];
    const tern_act *rows[TERN_TOKENS_BLOCK];
    for (size_t t = 0; t < s->n_acts; t++) {
        acts[t] = (tern_act){ .x = s->in[t].x + g * n, .n = n, .sum = s->in[t].sums[g] };
        rows[t] = &acts[t];
    }
    if (gemm) {
        gemm(plane, rows, s->n_acts, sums, TERN_PANEL, TERN_PANEL, units.begin, units.end);
        return;
    }
    for (size_t t = 0; t < s->n_acts; t++)
        s->model->kernels->gemv_cols(plane, rows[t], sums + t * TERN_PANEL, units.begin, units.end);
}

/* Units [from, to) of panel p. */
static void multiply_panel(const product_job *job, size_t i, size_t p, span units, int32_t *sums)
{
    tern_state *s = job->state;
    const tern_matrix *w = job->w[i];
    const size_t n_digits = s->model->config.n_digits;
    const size_t from = units.begin * TERN_UNIT, at = p * TERN_PANEL + from;
    const size_t end = p * TERN_PANEL + units.end * TERN_UNIT;
    const size_t n = (end < w->n_out ? end : w->n_out) - at;
    for (size_t g = 0; g < w->n_groups; g++) {
        sum_group(s, w, p, g, units, sums);
        for (size_t t = 0; t < s->n_tokens; t++) {
            const int32_t *z = sums + t * n_digits * TERN_PANEL + from;
            add_group((digit_rows){ z, TERN_PANEL, n_digits }, n, w->scales + g * w->n_out + at,
                      g == 0, float_product(s, job->first + i, t) + at);
        }
    }
}

void multiply_groups(const product_job *job, size_t i, span items, size_t thread)
{
    int32_t *sums = job->state->group_sums + thread * TERN_TOKENS_BLOCK * TERN_PANEL;
    if (items.begin >= items.end) return;
    for (size_t p = items.begin / 2; 2 * p < items.end; p++) {
        const span units = { items.begin > 2 * p ? 1 : 0, items.end < 2 * p + 2 ? 1 : 2 };
        multiply_panel(job, i, p, units, sums);
    }
}
