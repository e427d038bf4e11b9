/* kv.c - milliseconds of attention alone, for bench/kv.py, which compiles and runs it.
 *
 *       kv THREADS RUNS [VARIANT]
 *
 * One line a measurement: what, kv_bits, positions, milliseconds (median, best).  The geometry is 2B4T's: 30 layers,
 * 20 query heads over 5 KV heads of 128 channels.  Formats take turns, so that a drift of the machine
 * hits all of them; each figure is of RUNS. */
#define _GNU_SOURCE
#include "state.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    FORMATS = 4,
    CONTEXTS = 3,
    LAYERS = 30,
    HEADS = 20,
    KV_HEADS = 5,
    HEAD_DIM = 128,
    LONGEST = 4096,
    RUNS_MAX = 101,
    STORES = 64,
};

static const unsigned kv_bits[FORMATS] = { 32, 16, 8, 4 };
static const size_t contexts[CONTEXTS] = { 128, 1024, LONGEST };

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static uint32_t state_of_random = 1;

/* Sum of four uniforms: near enough to the keys of a model. */
static void fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = -2.0f;
        for (int j = 0; j < 4; j++) {
            state_of_random = state_of_random * 1664525u + 1013904223u;
            x[i] += (float)(state_of_random >> 8) * 0x1p-24f;
        }
    }
}

static tern_state *new_state(const tern_model *model, size_t threads, unsigned bits)
{
    static float x[KV_HEADS * HEAD_DIM];
    tern_state *s = tern_state_new(model, LONGEST, threads, true, bits, 64);
    if (!s) exit(2);
    for (size_t position = 0; position < LONGEST; position++) {
        for (s->layer = 0; s->layer < LAYERS; s->layer++) {
            if (s->layer % 10 == 0) fill(x, KV_HEADS * HEAD_DIM);
            kv_store_key(s, position, x);
            kv_store_value(s, position, x);
        }
    }
    for (size_t t = 0; t < TERN_TOKENS_BLOCK; t++) {
        float *query = s->queries + t * HEADS * HEAD_DIM;
        fill(query, HEADS * HEAD_DIM);
        kv_prepare_query(s, t, query);
    }
    return s;
}

/* Attention of the last `n_tokens` of `positions`, in all layers. */
static double attend_ms(tern_state *s, size_t positions, size_t n_tokens)
{
    s->n_tokens = n_tokens;
    s->n_past = positions - n_tokens;
    const double began = now_ms();
    for (s->layer = 0; s->layer < LAYERS; s->layer++) attend(s);
    return now_ms() - began;
}

/* What a token writes, in all layers. */
static double store_ms(tern_state *s)
{
    const float *x = s->queries;
    const double began = now_ms();
    for (size_t i = 0; i < STORES; i++) {
        for (s->layer = 0; s->layer < LAYERS; s->layer++) {
            kv_store_key(s, i, x);
            kv_store_value(s, i, x);
            kv_prepare_query(s, 0, s->queries);
        }
    }
    return (now_ms() - began) / STORES;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double measure(tern_state *s, const char *what, size_t positions)
{
    if (what[0] == 'd') return attend_ms(s, positions, 1);
    if (what[0] == 'p') return attend_ms(s, positions, TERN_TOKENS_BLOCK) / TERN_TOKENS_BLOCK;
    return store_ms(s);
}

static void report(tern_state *const *states, const char *what, size_t positions, int runs)
{
    static double ms[FORMATS][RUNS_MAX];
    for (int r = 0; r < runs; r++)
        for (int f = 0; f < FORMATS; f++) ms[f][r] = measure(states[f], what, positions);
    for (int f = 0; f < FORMATS; f++) {
        qsort(ms[f], (size_t)runs, sizeof ms[f][0], by_size);
        printf("%s %u %zu %.4f %.4f\n", what, kv_bits[f], positions, ms[f][runs / 2], ms[f][0]);
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) return 2;
    const size_t threads = (size_t)atoi(argv[1]);
    const int runs = atoi(argv[2]) < RUNS_MAX ? atoi(argv[2]) : RUNS_MAX;
    const tern_model model = { .config = { 2, HEADS * HEAD_DIM, 1, LAYERS, HEADS, KV_HEADS,
                                           HEAD_DIM, 1e-5f, 500000.0, TERN_RELU2 },
                               .kernels =
                                   tern_select(tern_cpu_features(), argc > 3 ? argv[3] : NULL) };
    tern_state *states[FORMATS];
    if (!model.kernels) return 2;
    printf("variant %s\n", model.kernels->name);
    for (int f = 0; f < FORMATS; f++) states[f] = new_state(&model, threads, kv_bits[f]);
    for (int c = 0; c < CONTEXTS; c++) report(states, "decode", contexts[c], runs);
    for (int c = 0; c < CONTEXTS; c++) report(states, "prefill", contexts[c], runs / 4 + 1);
    report(states, "store", 1, runs / 4 + 1);
    for (int f = 0; f < FORMATS; f++) tern_state_free(states[f]);
    return 0;
}
