/* lora.c - adapters: low-rank float additions beside the ternary products.
 *
 * Two phases before a product: threads share the rows of A, then the panels of B.  Each sum belongs
 * to one thread, so bits do not depend on their number.  What B gives waits in `delta` until the
 * product is taken. */
#include "lora.h"
#include "detmath.h"
#include <stdlib.h>
#include <string.h>

typedef struct lora_job {
    tern_state *state;
    const tern_lora *lora; /* (n,) */
    const tern_matrix *const *w;
    size_t n;
} lora_job;

static float *low(const tern_state *s, size_t i, size_t t)
{
    return s->lora.low + (i * TERN_TOKENS_BLOCK + t) * s->lora.rank_max;
}

float *lora_delta(const tern_state *s, size_t i, size_t t)
{
    return s->lora.delta + (i * TERN_TOKENS_BLOCK + t) * s->z_stride;
}

static void run_low(void *arg, size_t thread, size_t n_threads)
{
    const lora_job *job = arg;
    tern_state *s = job->state;
    for (size_t i = 0; i < job->n; i++) {
        const tern_lora *l = &job->lora[i];
        const size_t n_in = job->w[i]->n_in;
        const span mine = share(l->rank, thread, n_threads);
        if (mine.begin == mine.end) continue;
        for (size_t t = 0; t < s->n_tokens; t++) {
            float *u = low(s, i, t);
            s->model->kernels->dot_f32(l->a + mine.begin * n_in, mine.end - mine.begin, n_in,
                                       row(s->h, t, s->width), u + mine.begin);
            for (size_t j = mine.begin; j < mine.end; j++) u[j] *= l->scale;
        }
    }
}

static size_t panels_of(size_t n_out)
{
    return (n_out + TERN_LORA_PANEL - 1) / TERN_LORA_PANEL;
}

static void run_high(void *arg, size_t thread, size_t n_threads)
{
    const lora_job *job = arg;
    tern_state *s = job->state;
    for (size_t i = 0; i < job->n; i++) {
        const tern_lora *l = &job->lora[i];
        const span mine = share(panels_of(job->w[i]->n_out), thread, n_threads);
        if (l->rank == 0) continue;
        for (size_t p = mine.begin; p < mine.end; p++)
            for (size_t t = 0; t < s->n_tokens; t++)
                s->model->kernels->mix_f32(l->b + p * l->rank * TERN_LORA_PANEL, l->rank,
                                           TERN_LORA_PANEL, low(s, i, t),
                                           lora_delta(s, i, t) + p * TERN_LORA_PANEL);
    }
}

void adapt(tern_state *s, tern_projection first, const tern_matrix *const *w, size_t n)
{
    if (!s->lora.adapter) return;
    const tern_lora *lora = s->lora.adapter->loras + s->layer * TERN_PROJECTIONS + first;
    bool any = false;
    for (size_t i = 0; i < n; i++) any |= s->lora.is_on[i] = lora[i].rank > 0;
    if (!any) return;
    lora_job job = { s, lora, w, n };
    pool_run(s->pool, run_low, &job);
    pool_run(s->pool, run_high, &job);
}

/* ---- life cycle ---- */

static float widen_one(tern_float kind, const uint8_t *bytes, size_t i)
{
    uint16_t half;
    uint32_t whole;
    if (kind == TERN_FLOAT32) {
        memcpy(&whole, bytes + 4 * i, sizeof whole);
        return f32_from_bits(whole);
    }
    memcpy(&half, bytes + 2 * i, sizeof half);
    return kind == TERN_FLOAT16 ? f32_from_f16(half) : f32_from_bits((uint32_t)half << 16);
}

void tern_widen(tern_float kind, const uint8_t *bytes, size_t n, float *to)
{
    for (size_t i = 0; i < n; i++) to[i] = widen_one(kind, bytes, i);
}

void tern_lora_pack(const float *b, size_t n_out, size_t rank, float *panels)
{
    for (size_t o = 0; o < panels_of(n_out) * TERN_LORA_PANEL; o++)
        for (size_t j = 0; j < rank; j++)
            panels[(o / TERN_LORA_PANEL * rank + j) * TERN_LORA_PANEL + o % TERN_LORA_PANEL] =
                o < n_out ? b[o * rank + j] : 0.0f;
}

void lora_free(tern_state *s)
{
    free(s->lora.low);
    free(s->lora.delta);
    s->lora = (lora_scratch){ 0 };
}

bool tern_state_set_adapter(tern_state *s, const tern_adapter *adapter)
{
    enum { ROWS = 3 * TERN_TOKENS_BLOCK };
    lora_scratch scratch = { .adapter = adapter };
    if (adapter) {
        scratch.rank_max = adapter->rank_max;
        scratch.low = calloc(ROWS * adapter->rank_max + 1, sizeof(float));
        scratch.delta = calloc(ROWS * s->z_stride, sizeof(float));
        if (!scratch.low || !scratch.delta) {
            free(scratch.low);
            free(scratch.delta);
            return false;
        }
    }
    lora_free(s);
    s->lora = scratch;
    s->n_past = 0;
    return true;
}
