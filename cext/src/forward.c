/* forward.c - tokens through the layers; composes ops.c, attention.c and a kernel table.
 *
 * A block of tokens goes through one layer at a time, so that a plane is read from memory once for
 * the block.  A layer is a sequence of phases; in each the threads share either the tokens (float
 * steps) or the outputs of matrices (integer products), never one sum: results cannot depend on the
 * number of threads. */
#include "fpenv.h"
#include "head.h"
#include "lora.h"
#include "variants.h"

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

/* ---- the steps of a layer ---- */

static void enter_attention(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    float *h = row(s->h, t, s->width);
    rms_norm(s->model->kernels, row(s->x, t, c->hidden), w->input_norm, c->hidden, c->eps, h);
    prepare_input(s, &w->q, h, t);
}

static void norm_heads(const tern_state *s, float *x, size_t n_heads, const float *gain)
{
    const tern_config *c = &s->model->config;
    if (!gain) return;
    for (size_t h = 0; h < n_heads; h++, x += c->head_dim)
        rms_norm(s->model->kernels, x, gain, c->head_dim, c->eps, x);
}

/* Scale and rotate queries and keys; keys and values go to the cache.  The input is quantised, so h
 * is free. */
static void rotate_and_store(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    const size_t position = s->n_past + t, half = c->head_dim / 2;
    const float *cosines = s->cosines + position * half, *sines = s->sines + position * half;
    float *query = row(s->queries, t, c->n_heads * c->head_dim), *h = row(s->h, t, s->width);

    take_product(s, &w->q, 0, t, query);
    norm_heads(s, query, c->n_heads, w->q_norm);
    rope(query, c->n_heads, c->head_dim, cosines, sines);
    kv_prepare_query(s, t, query);
    take_product(s, &w->k, 1, t, h);
    norm_heads(s, h, c->n_kv_heads, w->k_norm);
    rope(h, c->n_kv_heads, c->head_dim, cosines, sines);
    kv_store_key(s, position, h);
    take_product(s, &w->v, 2, t, h);
    kv_store_value(s, position, h);
}

static void leave_attention(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    const size_t n = c->n_heads * c->head_dim;
    float *h = row(s->h, t, s->width);
    if (w->attn_sub_norm) rms_norm(s->model->kernels, h, w->attn_sub_norm, n, c->eps, h);
    prepare_input(s, &w->o, h, t);
}

static void enter_ffn(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    float *x = row(s->x, t, c->hidden), *h = row(s->h, t, s->width);
    add_product(s, &w->o, t, x);
    rms_norm(s->model->kernels, x, w->post_norm, c->hidden, c->eps, h);
    prepare_input(s, &w->gate, h, t);
}

static void close_gates(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    float *gate = row(s->gates, t, c->ffn);
    take_product(s, &w->gate, 0, t, gate);
    activate(c->act, gate, c->ffn);
    s->n_open[t] = block_gemm(s, &w->up) ? count_open_gates(gate, c->ffn)
                                         : open_gates(gate, c->ffn, s->open[t]);
}

static void list_gates(tern_state *s, const tern_layer *w, size_t t)
{
    (void)w;
    open_gates(row(s->gates, t, s->model->config.ffn), s->model->config.ffn, s->open[t]);
}

static void enter_down(tern_state *s, const tern_layer *w, size_t t)
{
    const tern_config *c = &s->model->config;
    const float *gate = row(s->gates, t, c->ffn);
    float *h = row(s->h, t, s->width);
    take_product(s, &w->up, 1, t, h);
    gated_product(gate, h, c->ffn, h);
    if (w->ffn_sub_norm) rms_norm(s->model->kernels, h, w->ffn_sub_norm, c->ffn, c->eps, h);
    prepare_input(s, &w->down, h, t);
}

static void leave_ffn(tern_state *s, const tern_layer *w, size_t t)
{
    const size_t hidden = s->model->config.hidden;
    float *x = row(s->x, t, hidden);
    add_product(s, &w->down, t, x);
}

static void count_gates(tern_state *s)
{
    tern_counters *n = &s->counters[s->layer];
    for (size_t t = 0; t < s->n_tokens; t++) {
        n->gates += s->model->config.ffn;
        n->closed_gates += s->model->config.ffn - s->n_open[t];
    }
}

static void count_down_inputs(tern_state *s)
{
    tern_counters *n = &s->counters[s->layer];
    for (size_t t = 0; t < s->n_acts; t++) {
        n->down_inputs += s->model->config.ffn;
        n->zero_down_inputs += s->in[t].n_zero;
    }
}

/* Gate and up: when rows of up can be skipped, the gate comes first and decides which. */
static void multiply_gate_and_up(tern_state *s, const tern_layer *w)
{
    if (pays_to_close(s, w)) {
        multiply(s, &(product_job){ .state = s, .w = { &w->gate }, .n_planes = 1 });
        over_tokens(s, close_gates);
        const bool is_list = pays_to_list(s, w);
        if (is_list && block_gemm(s, &w->up)) over_tokens(s, list_gates);
        multiply(
            s,
            &(product_job){
                .state = s, .w = { &w->up }, .n_planes = 1, .first = 1, .open_rows_only = is_list });
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
    adapt(s, TERN_Q, (const tern_matrix *[]){ &w->q, &w->k, &w->v }, 3);
    multiply(s, &(product_job){ .state = s, .w = { &w->q, &w->k, &w->v }, .n_planes = 3 });
    over_tokens(s, rotate_and_store);
    attend(s);
    over_tokens(s, leave_attention);
    adapt(s, TERN_O, (const tern_matrix *[]){ &w->o }, 1);
    multiply(s, &(product_job){ .state = s, .w = { &w->o }, .n_planes = 1 });
    over_tokens(s, enter_ffn);
    adapt(s, TERN_GATE, (const tern_matrix *[]){ &w->gate, &w->up }, 2);
    multiply_gate_and_up(s, w);
    over_tokens(s, enter_down);
    count_down_inputs(s);
    adapt(s, TERN_DOWN, (const tern_matrix *[]){ &w->down }, 1);
    multiply(s, &(product_job){ .state = s, .w = { &w->down }, .n_planes = 1 });
    over_tokens(s, leave_ffn);
}

/* ---- from tokens to logits ---- */

/* Rows for the positions of this block, when they are reached for the first time. */
static void extend_rope_table(tern_state *s)
{
    const tern_config *c = &s->model->config;
    const size_t end = s->n_past + s->n_tokens;
    if (end <= s->n_rope) return;
    rope_table(&c->rope, c->head_dim, s->context, s->n_rope, end, s->cosines, s->sines);
    s->n_rope = end;
}

static void run_block(tern_state *s, const uint32_t *tokens, size_t n_tokens)
{
    const size_t hidden = s->model->config.hidden;
    s->n_tokens = n_tokens;
    s->n_acts = n_tokens * s->model->config.n_digits;
    extend_rope_table(s);
    for (size_t t = 0; t < n_tokens; t++)
        embed_f16(s->model->embed + tokens[t] * hidden, hidden, s->model->config.embed_scale,
                  row(s->x, t, hidden));
    for (s->layer = 0; s->layer < s->model->config.n_layers; s->layer++) run_layer(s);
    s->n_past += n_tokens;
}

void tern_forward(tern_state *s, const uint32_t *tokens, size_t n_tokens, float *logits)
{
    const tern_config *c = &s->model->config;
    const fp_mode caller_mode = fp_mode_swap(FP_MODE_DEFAULT);
    const size_t block = TERN_TOKENS_BLOCK / c->n_digits;
    size_t n = 0;
    for (size_t done = 0; done < n_tokens; done += n) {
        n = n_tokens - done < block ? n_tokens - done : block;
        run_block(s, tokens + done, n);
    }
    rms_norm(s->model->kernels, row(s->x, n - 1, c->hidden), s->model->final_norm, c->hidden,
             c->eps, s->hidden);
    if (c->head_divisor != 1.0f) divide(s->hidden, c->hidden, c->head_divisor);
    if (logits) tern_head_logits(s, logits);
    fp_mode_swap(caller_mode);
}
