/* forward.c - tokens through the layers; composes ops.c, attention.c and a kernel table.
 *
 * A block of tokens goes through one layer at a time, so that a plane is read from memory once for
 * the block.  A layer is a sequence of phases; in each the threads share either the tokens (float
 * steps) or the outputs of matrices (integer products), never one sum: results cannot depend on the
 * number of threads. */
#include "fpenv.h"
#include "state.h"
#include "variants.h"

/* [begin, end) of `n` items that belong to `thread`. */
typedef struct span {
    size_t begin, end;
} span;

static span share(size_t n, size_t thread, size_t n_threads)
{
    return (span){ n * thread / n_threads, n * (thread + 1) / n_threads };
}

/* ---- phases over tokens ---- */

typedef void token_step(tern_state *s, const tern_layer *w, size_t t);

typedef struct token_job {
    tern_state *state;
    token_step *step;
} token_job;

static void run_token_job(void *arg, size_t thread, size_t n_threads)
{
    const token_job *job = arg;
    tern_state *s = job->state;
    const span mine = share(s->n_tokens, thread, n_threads);
    for (size_t t = mine.begin; t < mine.end; t++) job->step(s, &s->model->layers[s->layer], t);
}

static void over_tokens(tern_state *s, token_step *step)
{
    token_job job = { s, step };
    if (s->n_tokens == 1)
        run_token_job(&job, 0, 1);
    else
        pool_run(s->pool, run_token_job, &job);
}

/* ---- phases over outputs ---- */

/* Up to three planes that share one quantised input; product i goes to z[first + i]. */
typedef struct product_job {
    tern_state *state;
    const tern_matrix *w[3];
    size_t n_planes, first;
    bool open_rows_only; /* a single output-major plane: only rows s->open */
} product_job;

static int32_t *product(const tern_state *s, size_t i, size_t t)
{
    return s->z[i] + t * s->z_stride;
}

/* The part of a plane that lies in [begin, end) of the outputs of all planes of a job, when the
 * plane begins at output `at`: units of an input-major plane, rows of the other. */
static span items_between(const tern_matrix *w, size_t at, size_t begin, size_t end)
{
    const size_t grain = w->input_major ? TERN_UNIT : 1;
    const size_t n = (w->n_out + grain - 1) / grain;
    const size_t from = begin > at ? (begin - at + grain / 2) / grain : 0;
    const size_t to = end > at ? (end - at + grain / 2) / grain : 0; /* rounds as `from` does */
    return (span){ from < n ? from : n, to < n ? to : n };
}

/* Planes are walked in pieces that stay in the cache while all tokens of the block use them. */
static void multiply_units(const product_job *job, size_t i, span units)
{
    tern_state *s = job->state;
    const tern_kernels *kernels = s->model->kernels;
    const uint8_t *plane = job->w[i]->plane;
    for (size_t u = units.begin; u < units.end;) {
        const size_t stop = u / 2 * 2 + 2 < units.end ? u / 2 * 2 + 2 : units.end;
        for (size_t t = 0; t < s->n_tokens; t++)
            kernels->gemv_cols(plane, &s->in[t].act, product(s, job->first + i, t), u, stop);
        u = stop;
    }
}

static void multiply_rows(const product_job *job, size_t i, span rows)
{
    enum { ROWS_PER_PIECE = 64 };
    tern_state *s = job->state;
    const tern_kernels *kernels = s->model->kernels;
    const uint8_t *plane = job->w[i]->plane;
    for (size_t r = rows.begin; r < rows.end;) {
        const size_t stop = r + ROWS_PER_PIECE < rows.end ? r + ROWS_PER_PIECE : rows.end;
        for (size_t t = 0; t < s->n_tokens; t++)
            kernels->gemv_rows(plane, &s->in[t].act, product(s, job->first + i, t), NULL, r, stop);
        r = stop;
    }
}

static void multiply_open_rows(const product_job *job, size_t thread, size_t n_threads)
{
    tern_state *s = job->state;
    for (size_t t = 0; t < s->n_tokens; t++) {
        const span mine = share(s->n_open[t], thread, n_threads);
        s->model->kernels->gemv_rows(job->w[0]->plane, &s->in[t].act, product(s, job->first, t),
                                     s->open[t], mine.begin, mine.end);
    }
}

/* Outputs up to a whole unit, as items_between counts them. */
static size_t job_outputs(const tern_matrix *w)
{
    return w->input_major ? (w->n_out + TERN_UNIT - 1) / TERN_UNIT * TERN_UNIT : w->n_out;
}

static void run_product_job(void *arg, size_t thread, size_t n_threads)
{
    const product_job *job = arg;
    if (job->open_rows_only) {
        multiply_open_rows(job, thread, n_threads);
        return;
    }
    size_t total = 0, at = 0;
    for (size_t i = 0; i < job->n_planes; i++) total += job_outputs(job->w[i]);
    const span mine = share(total, thread, n_threads);
    for (size_t i = 0; i < job->n_planes; i++) {
        const span items = items_between(job->w[i], at, mine.begin, mine.end);
        if (job->w[i]->input_major)
            multiply_units(job, i, items);
        else
            multiply_rows(job, i, items);
        at += job_outputs(job->w[i]);
    }
}

/* ---- counters ---- */

static uint64_t plane_bytes(const tern_matrix *w)
{
    if (w->input_major)
        return (uint64_t)((w->n_out + TERN_PANEL - 1) / TERN_PANEL) * w->n_in * TERN_LINE_BYTES;
    return (uint64_t)w->n_out * ((w->n_in + TERN_BLOCK - 1) / TERN_BLOCK) * TERN_BLOCK_BYTES;
}

/* Book one plane for token t; `rows` of its n_out outputs were computed. */
static void count_plane(tern_state *s, const tern_matrix *w, size_t t, size_t rows)
{
    tern_counters *n = &s->counters[s->layer];
    const uint64_t bytes = plane_bytes(w);
    n->multiplications += (uint64_t)w->n_out * w->n_in;
    n->weight_bytes += bytes;
    n->activations += w->n_in;
    n->zero_activations += s->in[t].n_zero;
    if (w->input_major && s->zero_skip) {
        n->multiplications_skipped += (uint64_t)w->n_out * s->in[t].n_zero;
        n->weight_bytes_skipped += bytes / w->n_in * s->in[t].n_zero;
    }
    n->multiplications_skipped += (uint64_t)(w->n_out - rows) * w->n_in;
    n->weight_bytes_skipped += bytes / w->n_out * (w->n_out - rows);
}

static void multiply(tern_state *s, product_job *job)
{
    pool_run(s->pool, run_product_job, job);
    for (size_t t = 0; t < s->n_tokens; t++)
        for (size_t i = 0; i < job->n_planes; i++)
            count_plane(s, job->w[i], t, job->open_rows_only ? s->n_open[t] : job->w[i]->n_out);
}

/* ---- the steps of a layer ---- */

static float *row(float *base, size_t t, size_t width)
{
    return base + t * width;
}

static void quantize_input(tern_state *s, const float *x, size_t n, size_t t)
{
    quantize(x, n, s->zero_skip, &s->in[t]);
}

static void enter_attention(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    float *h = row(s->h, t, s->width);
    rms_norm(s->model->kernels, row(s->x, t, c->hidden), w->input_norm, c->hidden, c->eps, h);
    quantize_input(s, h, c->hidden, t);
}

/* Scale and rotate queries and keys; keys and values go to the cache.  The input is quantised, so h
 * is free. */
static void rotate_and_store(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    const size_t position = s->n_past + t, half = c->head_dim / 2;
    const float *cosines = s->cosines + position * half, *sines = s->sines + position * half;
    const float inverse = s->in[t].inverse;
    float *query = row(s->queries, t, c->n_heads * c->head_dim), *h = row(s->h, t, s->width);

    dequantize(product(s, 0, t), w->q.n_out, w->q.scale * inverse, query);
    rope(query, c->n_heads, c->head_dim, cosines, sines);
    dequantize(product(s, 1, t), w->k.n_out, w->k.scale * inverse, h);
    rope(h, c->n_kv_heads, c->head_dim, cosines, sines);
    kv_store_key(s, position, h);
    dequantize(product(s, 2, t), w->v.n_out, w->v.scale * inverse, h);
    kv_store_value(s, position, h);
}

/* Work items are (token, head) pairs. */
static void run_attention(void *arg, size_t thread, size_t n_threads)
{
    tern_state *s = arg;
    const tern_config *c = &s->model->config;
    const span mine = share(s->n_tokens * c->n_heads, thread, n_threads);
    for (size_t i = mine.begin; i < mine.end; i++) {
        const size_t t = i / c->n_heads, head = i % c->n_heads;
        const float *query = row(s->queries, t, c->n_heads * c->head_dim) + head * c->head_dim;
        float *out = row(s->h, t, s->width) + head * c->head_dim;
        attend(s, head, s->n_past + t + 1, query, thread, out);
    }
}

static void leave_attention(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    const size_t n = c->n_heads * c->head_dim;
    float *h = row(s->h, t, s->width);
    if (w->attn_sub_norm) rms_norm(s->model->kernels, h, w->attn_sub_norm, n, c->eps, h);
    quantize_input(s, h, n, t);
}

static void enter_ffn(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    float *x = row(s->x, t, c->hidden), *h = row(s->h, t, s->width);
    add_dequantized(product(s, 0, t), c->hidden, w->o.scale * s->in[t].inverse, x);
    rms_norm(s->model->kernels, x, w->post_norm, c->hidden, c->eps, h);
    quantize_input(s, h, c->hidden, t);
}

static void close_gates(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    float *gate = row(s->gates, t, c->ffn);
    dequantize(product(s, 0, t), c->ffn, w->gate.scale * s->in[t].inverse, gate);
    activate(c->act, gate, c->ffn);
    s->n_open[t] = open_gates(gate, c->ffn, s->open[t]);
}

static void enter_down(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    const float *gate = row(s->gates, t, c->ffn);
    float *h = row(s->h, t, s->width);
    dequantize(product(s, 1, t), c->ffn, w->up.scale * s->in[t].inverse, h);
    gated_product(gate, h, c->ffn, h);
    if (w->ffn_sub_norm) rms_norm(s->model->kernels, h, w->ffn_sub_norm, c->ffn, c->eps, h);
    quantize_input(s, h, c->ffn, t);
}

static void leave_ffn(tern_state *s, const tern_layer *w, size_t t)
{
    const size_t hidden = s->model->config.hidden;
    float *x = row(s->x, t, hidden);
    add_dequantized(product(s, 0, t), hidden, w->down.scale * s->in[t].inverse, x);
}

static void count_gates(tern_state *s)
{
    tern_counters *n = &s->counters[s->layer];
    for (size_t t = 0; t < s->n_tokens; t++) {
        n->gates += s->model->config.ffn;
        n->closed_gates += s->model->config.ffn - s->n_open[t];
    }
}

/* Gate and up: when rows of up can be skipped, the gate comes first and decides which. */
static void multiply_gate_and_up(tern_state *s, const tern_layer *w)
{
    if (s->zero_skip && !w->up.input_major) {
        multiply(s, &(product_job){ .state = s, .w = { &w->gate }, .n_planes = 1 });
        over_tokens(s, close_gates);
        multiply(
            s,
            &(product_job){
                .state = s, .w = { &w->up }, .n_planes = 1, .first = 1, .open_rows_only = true });
    } else {
        multiply(s, &(product_job){ .state = s, .w = { &w->gate, &w->up }, .n_planes = 2 });
        over_tokens(s, close_gates);
    }
    count_gates(s);
}

static void run_layer(tern_state *s)
{
    const tern_layer *w = &s->model->layers[s->layer];
    over_tokens(s, enter_attention);
    multiply(s, &(product_job){ .state = s, .w = { &w->q, &w->k, &w->v }, .n_planes = 3 });
    over_tokens(s, rotate_and_store);
    pool_run(s->pool, run_attention, s);
    over_tokens(s, leave_attention);
    multiply(s, &(product_job){ .state = s, .w = { &w->o }, .n_planes = 1 });
    over_tokens(s, enter_ffn);
    multiply_gate_and_up(s, w);
    over_tokens(s, enter_down);
    multiply(s, &(product_job){ .state = s, .w = { &w->down }, .n_planes = 1 });
    over_tokens(s, leave_ffn);
}

/* ---- from tokens to logits ---- */

typedef struct head_job {
    const tern_model *model;
    const float *x; /* (hidden,) normed */
    float *logits;  /* (vocab,) */
} head_job;

static void run_head(void *arg, size_t thread, size_t n_threads)
{
    const head_job *job = arg;
    const size_t hidden = job->model->config.hidden;
    const span mine = share(job->model->config.vocab, thread, n_threads);
    job->model->kernels->dot_f16(job->model->head + mine.begin * hidden, mine.end - mine.begin,
                                 hidden, job->x, job->logits + mine.begin);
}

static void run_block(tern_state *s, const uint32_t *tokens, size_t n_tokens)
{
    const size_t hidden = s->model->config.hidden;
    s->n_tokens = n_tokens;
    for (size_t t = 0; t < n_tokens; t++)
        embed_f16(s->model->embed + tokens[t] * hidden, hidden, row(s->x, t, hidden));
    for (s->layer = 0; s->layer < s->model->config.n_layers; s->layer++) run_layer(s);
    s->n_past += n_tokens;
}

void tern_forward(tern_state *s, const uint32_t *tokens, size_t n_tokens, float *logits)
{
    const tern_config *c = &s->model->config;
    const fp_mode caller_mode = fp_mode_swap(FP_MODE_DEFAULT);
    size_t n = 0;
    for (size_t done = 0; done < n_tokens; done += n) {
        n = n_tokens - done < TERN_TOKENS_BLOCK ? n_tokens - done : TERN_TOKENS_BLOCK;
        run_block(s, tokens + done, n);
    }
    rms_norm(s->model->kernels, row(s->x, n - 1, c->hidden), s->model->final_norm, c->hidden,
             c->eps, s->h);
    pool_run(s->pool, run_head, &(head_job){ s->model, s->h, logits });
    fp_mode_swap(caller_mode);
}
