/* forward_check.c - the forward pass gives the same bits on every CPU, however it is run.
 *
 * Builds small random models of awkward shapes and runs a prompt through them with every variant,
 * KV format, thread count, zero-skip and split of the prompt.  All logits of a format must be
 * equal, and their hash must be the one below: it was made by scalar code on x86-64 and is the same
 * on AArch64.  A long prompt crosses the chunks of attention. */
#define _GNU_SOURCE
#include "check.h"
#include "forward.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_TOKENS = 21,  /* more than one block of tokens */
    N_LONG = 2 * TERN_KV_CHUNK + 23,
    CONTEXT = N_LONG + 19,
    FORMATS = 4,
};

static const unsigned kv_bits[FORMATS] = { 32, 16, 8, 4 };

/* What the models of other families have. */
typedef struct extras {
    size_t group; /* inputs that share a scale of an output; 0: one scale a matrix, 1: one a row */
    bool float_activations, head_norms, minicpm;
    tern_rope_kind rope;
    size_t lora_rank;
} extras;

typedef struct shape {
    size_t vocab, hidden, ffn, n_layers, n_heads, n_kv_heads, head_dim;
    tern_act_kind act;
    bool sub_norms, is_tied;
    unsigned rows; /* bit i: plane i of q k v o gate up down is rows */
    tern_packing packing;
    uint64_t expected[FORMATS], expected_long[FORMATS]; /* 0: not run */
    extras more;
} shape;

static const shape shapes[] = {
    { 300, 256, 512, 3, 4, 2, 64, TERN_RELU2, true, true, 1u << 5, TERN_2BIT,
      { 0x2cb6e822585796d9u, 0xbc81bfebebb527ccu, 0xb27a510a62f8696au, 0xda3f4ecef3d9d203u },
      { 0 },
      { 0 } },
    { 131, 200, 341, 2, 2, 1, 100, TERN_RELU2, true, false, 0, TERN_2BIT,
      { 0x9a5ff091a951d254u, 0x1e97a437c6496ddau, 0xc4386020070b501du, 0x6cc64897cfc1c96cu },
      { 0 },
      { 0 } },
    { 64, 72, 546, 2, 3, 1, 20, TERN_SILU, false, false, 0x7f, TERN_2BIT,
      { 0x227f841137d72857u, 0x5489a9b210ada546u, 0x5b661d02abddf992u, 0xc2fb1c9bf003d512u },
      { 0x773db2fe925dc06bu, 0x43ea261008637983u, 0x7d25b1fe5d02764cu, 0x61661b51eb959a3eu },
      { 0 } },
    { 97, 130, 260, 2, 5, 5, 26, TERN_SILU, true, true, 0x55, TERN_2BIT,
      { 0xa00ce714575fa2b9u, 0x494cc993cd081abeu, 0x9eacf4533636d86bu, 0xe5ea6f1321cb91e7u },
      { 0xf14325f753ceaf1du, 0x67ac64886251d869u, 0x2ad88bc1b5bf47cau, 0x98d9239973437671u },
      { 0 } },
    { 300, 256, 512, 3, 4, 2, 64, TERN_RELU2, true, true, 1u << 5, TERN_BASE3,
      { 0x98cd0294ace97dbbu, 0x78821cd70e6aabd5u, 0xc3086f95660ca0fdu, 0x363a0b7ed9212765u },
      { 0 },
      { 0 } },
    { 131, 200, 341, 2, 2, 1, 100, TERN_SILU, true, false, 0x08, TERN_BASE3,
      { 0xa76360c28171706au, 0x80651ebf3b7a8f0du, 0xe5c0891a6f9b945fu, 0x722cfe707e480120u },
      { 0 },
      { 0 } },
    { 150, 256, 384, 2, 4, 2, 48, TERN_SILU, false, false, 0, TERN_2BIT,
      { 0x708ec0f2dacc2247u, 0xbe5911740c574fcbu, 0x0547041fe55c2c1fu, 0x508a72e6b58e3d48u },
      { 0 },
      { .group = 128, .float_activations = true, .head_norms = true, .lora_rank = 5 } },
    { 131, 72, 540, 2, 3, 1, 20, TERN_SILU, true, false, 0, TERN_2BIT,
      { 0x790f67f360363131u, 0x03df35b6dc169058u, 0x0ad4f4c1ac548d12u, 0x1acc6a145dd1278bu },
      { 0 },
      { .group = 12, .minicpm = true, .rope = TERN_ROPE_LONG } },
    { 97, 200, 341, 2, 2, 1, 100, TERN_RELU2, true, true, 1u << 5, TERN_BASE3,
      { 0x6c822c4427e3b7bfu, 0x2bccd916e5ed1988u, 0x25d1f48856446b50u, 0xd68779c890eb7fbau },
      { 0 },
      { .group = 1, .float_activations = true, .rope = TERN_ROPE_LLAMA3, .lora_rank = 17 } },
    { 80, 130, 260, 2, 5, 5, 26, TERN_RELU2, true, true, 1u << 5, TERN_2BIT,
      { 0x830e98ab48dc105du, 0x1a513ce654eba45du, 0xb98f212afe4fbd99u, 0xd6b46533047f384bu },
      { 0 },
      { .float_activations = true, .rope = TERN_ROPE_LINEAR } },
};

static void *allocate(size_t bytes)
{
    void *block = malloc(bytes);
    if (!block) exit(2);
    return block;
}

/* Uniform in [1/2, 3/2). */
static float *random_norm(size_t n)
{
    float *gain = allocate(n * sizeof *gain);
    for (size_t i = 0; i < n; i++) gain[i] = 0.5f + (float)(random_u32() >> 8) * 0x1p-24f;
    return gain;
}

/* Float16 bits with magnitudes from 2^-7 to 2^-1. */
static uint16_t *random_f16(size_t n)
{
    uint16_t *halves = allocate(n * sizeof *halves);
    for (size_t i = 0; i < n; i++) {
        const uint32_t r = random_u32();
        halves[i] = (uint16_t)((r & 0x83ffu) | (8 + (r >> 16) % 6) << 10);
    }
    return halves;
}

/* Uniform in [-1, 1). */
static float *random_floats(size_t n)
{
    float *x = allocate(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(random_u32() >> 8) * 0x1p-23f - 1.0f;
    return x;
}

/* Bytes of a plane in an orientation. */
static size_t plane_bytes(const tern_matrix *w)
{
    switch (w->orientation) {
    case TERN_ROWS: return w->n_out * tern_row_bytes(w->packing, w->n_in);
    case TERN_LINES: return (w->n_out + 255) / 256 * w->n_in * 64;
    case TERN_CHANNELS: return w->n_in * tern_row_bytes(TERN_BASE3, w->n_out);
    default: return (w->n_out + 79) / 80 * ((w->n_in + 3) / 4) * 64;
    }
}

static tern_matrix random_matrix(const shape *s, int plane, size_t n_out, size_t n_in)
{
    const bool by_inputs = plane == 3 || plane == 6; /* o and down */
    tern_matrix w = { .n_out = n_out, .n_in = n_in, .packing = s->packing };
    w.orientation = s->rows >> plane & 1         ? TERN_ROWS
                    : s->packing == TERN_2BIT ? TERN_LINES
                    : by_inputs               ? TERN_CHANNELS
                                              : TERN_TILES;
    const size_t bytes = plane_bytes(&w);
    uint8_t *codes = allocate(bytes);
    for (size_t i = 0; i < bytes; i++) {
        unsigned byte = 0;
        for (int f = 0; f < 4; f++) byte |= random_u32() % 3 << 2 * f;
        codes[i] = (uint8_t)(s->packing == TERN_BASE3 ? random_u32() % TERN_BYTE3_END : byte);
    }
    w.plane = codes;
    w.scale = (float)(1 + random_u32() % 15) / 256.0f;
    w.n_groups = s->more.group > 1 ? n_in / s->more.group : 1;
    if (s->more.group) {
        float *scales = random_norm(w.n_groups * n_out);
        for (size_t i = 0; i < w.n_groups * n_out; i++) scales[i] *= w.scale;
        w.scales = scales;
    }
    return w;
}

static tern_layer random_layer(const shape *s)
{
    const size_t attention = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    tern_layer w = { 0 };
    w.input_norm = random_norm(s->hidden);
    w.post_norm = random_norm(s->hidden);
    w.attn_sub_norm = s->sub_norms ? random_norm(attention) : NULL;
    w.ffn_sub_norm = s->sub_norms ? random_norm(s->ffn) : NULL;
    w.q_norm = s->more.head_norms ? random_norm(s->head_dim) : NULL;
    w.k_norm = s->more.head_norms ? random_norm(s->head_dim) : NULL;
    w.q = random_matrix(s, 0, attention, s->hidden);
    w.k = random_matrix(s, 1, kv, s->hidden);
    w.v = random_matrix(s, 2, kv, s->hidden);
    w.o = random_matrix(s, 3, s->hidden, attention);
    w.gate = random_matrix(s, 4, s->ffn, s->hidden);
    w.up = random_matrix(s, 5, s->ffn, s->hidden);
    w.down = random_matrix(s, 6, s->hidden, s->ffn);
    return w;
}

static tern_rope random_rope(const shape *s)
{
    tern_rope r = { .theta = 10000.0, .kind = s->more.rope, .factor = 8.0, .low_freq_factor = 1.0,
                    .high_freq_factor = 4.0, .original_context = 64 };
    if (r.kind != TERN_ROPE_LONG) return r;
    double *factors = allocate(s->head_dim * sizeof *factors);
    for (size_t i = 0; i < s->head_dim; i++) factors[i] = 1.0 + (double)(random_u32() % 64) / 16.0;
    r.short_factor = factors;
    r.long_factor = factors + s->head_dim / 2;
    return r;
}

static tern_adapter random_adapter(const tern_model *m, size_t rank)
{
    tern_lora *loras = allocate(m->config.n_layers * TERN_PROJECTIONS * sizeof *loras);
    for (size_t i = 0; i < m->config.n_layers * TERN_PROJECTIONS; i++) {
        const tern_layer *w = &m->layers[i / TERN_PROJECTIONS];
        const tern_matrix *planes[] = { &w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down };
        const tern_matrix *plane = planes[i % TERN_PROJECTIONS];
        const size_t r = i % 5 == 3 ? 0 : rank; /* some have none */
        float *b = random_floats(plane->n_out * rank);
        float *panels = allocate((plane->n_out + 255) / 256 * 256 * rank * sizeof *panels);
        tern_lora_pack(b, plane->n_out, rank, panels);
        free(b);
        loras[i] = (tern_lora){ r, random_floats(rank * plane->n_in), panels, 0.125f };
    }
    return (tern_adapter){ loras, rank };
}

static void free_adapter(const tern_model *m, tern_adapter *adapter)
{
    for (size_t i = 0; i < m->config.n_layers * TERN_PROJECTIONS; i++) {
        free((void *)(uintptr_t)adapter->loras[i].a);
        free((void *)(uintptr_t)adapter->loras[i].b);
    }
    free((void *)(uintptr_t)adapter->loras);
}

static tern_model random_model(const shape *s)
{
    tern_model m = { .config = { s->vocab, s->hidden, s->ffn, s->n_layers, s->n_heads,
                                 s->n_kv_heads, s->head_dim, .eps = 1e-5f,
                                 .act = s->act } };
    tern_config *c = &m.config;
    c->n_digits = s->more.float_activations ? TERN_DIGITS : 1;
    c->embed_scale = s->more.minicpm ? 12.0f : 1.0f;
    c->residual_scale = s->more.minicpm ? 0.4f : 1.0f;
    c->head_divisor = s->more.minicpm ? 3.0f : 1.0f;
    seed = s->hidden;
    c->rope = random_rope(s);
    m.embed = random_f16(s->vocab * s->hidden);
    m.head = s->is_tied ? m.embed : random_f16(s->vocab * s->hidden);
    m.final_norm = random_norm(s->hidden);
    m.layers = allocate(s->n_layers * sizeof *m.layers);
    for (size_t i = 0; i < s->n_layers; i++) m.layers[i] = random_layer(s);
    return m;
}

static void free_matrix(const tern_matrix *w)
{
    free((void *)(uintptr_t)w->plane);
    free((void *)(uintptr_t)w->scales);
}

static void free_model(tern_model *m)
{
    for (size_t i = 0; i < m->config.n_layers; i++) {
        const tern_layer *w = &m->layers[i];
        const tern_matrix *planes[] = { &w->q, &w->k, &w->v, &w->o, &w->gate, &w->up, &w->down };
        for (size_t j = 0; j < 7; j++) free_matrix(planes[j]);
        free((void *)(uintptr_t)w->input_norm);
        free((void *)(uintptr_t)w->post_norm);
        free((void *)(uintptr_t)w->attn_sub_norm);
        free((void *)(uintptr_t)w->ffn_sub_norm);
        free((void *)(uintptr_t)w->q_norm);
        free((void *)(uintptr_t)w->k_norm);
    }
    if (m->head != m->embed) free((void *)(uintptr_t)m->head);
    free((void *)(uintptr_t)m->embed);
    free((void *)(uintptr_t)m->final_norm);
    free((void *)(uintptr_t)m->config.rope.short_factor);
    free(m->layers);
}

/* FNV-1a over the logits' bytes, which are little-endian on every CPU that we support. */
static uint64_t hash(const float *logits, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    const uint8_t *bytes = (const uint8_t *)logits;
    for (size_t i = 0; i < n * sizeof *logits; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

typedef struct way {
    size_t threads, piece, n_tokens;
    unsigned kv_bits;
    bool zero_skip;
} way;

static const tern_adapter *adapter_in_use;

/* Run the prompt in pieces of `piece` tokens. */
static uint64_t run(const tern_model *m, way w)
{
    enum { GROUP = 64 };
    float *logits = allocate(m->config.vocab * sizeof *logits);
    tern_state *state = tern_state_new(m, CONTEXT, w.threads, w.zero_skip, w.kv_bits, GROUP);
    uint32_t tokens[N_LONG];
    if (!state || !tern_state_set_adapter(state, adapter_in_use)) exit(2);
    for (size_t i = 0; i < w.n_tokens; i++) tokens[i] = (uint32_t)(i * 37 % m->config.vocab);
    for (size_t i = 0; i < w.n_tokens; i += w.piece)
        tern_forward(state, tokens + i, w.piece < w.n_tokens - i ? w.piece : w.n_tokens - i,
                     logits);
    const uint64_t h = hash(logits, m->config.vocab);
    tern_state_free(state);
    free(logits);
    return h;
}

static long check_way(const tern_model *m, way w, uint64_t expected)
{
    const uint64_t got = run(m, w);
    if (got == expected) return 0;
    printf("FAIL %s, kv_bits %u, %zu tokens in pieces of %zu, %zu threads, zero-skip %d: "
           "%016" PRIx64 "\n",
           m->kernels->name, w.kv_bits, w.n_tokens, w.piece, w.threads, w.zero_skip, got);
    return 1;
}

static long check_ways(const tern_model *m, unsigned bits, uint64_t expected)
{
    static const size_t threads[] = { 1, 2, 3, 5 }, pieces[] = { N_TOKENS, 1, 5, 17 };
    long failed = 0;
    for (size_t t = 0; t < 4; t++)
        for (size_t p = 0; p < 4; p++)
            for (int skip = 0; skip < 2; skip++) {
                const way w = { threads[t], pieces[p], N_TOKENS, bits, skip };
                failed += check_way(m, w, expected);
            }
    return failed;
}

static long check_long(const tern_model *m, unsigned bits, uint64_t expected)
{
    long failed = check_way(m, (way){ 1, N_LONG, N_LONG, bits, true }, expected);
    failed += check_way(m, (way){ 3, 1, N_LONG, bits, true }, expected);
    return failed + check_way(m, (way){ 2, 50, N_LONG, bits, true }, expected);
}

/* Under an emulator: one way for every format, and no long prompts. */
static bool is_quick;

static long check_formats(const tern_model *m, const shape *s)
{
    long failed = 0;
    for (size_t f = 0; f < FORMATS; f++) {
        printf("%zu heads of %zu, %-10s, kv_bits %2u: %016" PRIx64 ", expected %016" PRIx64 "\n",
               s->n_heads, s->head_dim, m->kernels->name, kv_bits[f],
               run(m, (way){ 1, N_TOKENS, N_TOKENS, kv_bits[f], true }), s->expected[f]);
        if (is_quick) {
            failed += check_way(m, (way){ 3, 5, N_TOKENS, kv_bits[f], true }, s->expected[f]);
            continue;
        }
        failed += check_ways(m, kv_bits[f], s->expected[f]);
        if (s->expected_long[f]) failed += check_long(m, kv_bits[f], s->expected_long[f]);
    }
    return failed;
}

int main(int argc, char **argv)
{
    long failed = 0;
    is_quick = argc > 1 && strcmp(argv[1], "quick") == 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        tern_model m = random_model(&shapes[i]);
        tern_adapter adapter = { 0 };
        if (shapes[i].more.lora_rank) adapter = random_adapter(&m, shapes[i].more.lora_rank);
        adapter_in_use = adapter.loras ? &adapter : NULL;
        for (const tern_kernels *const *v = tern_variants(); *v; v++) {
            m.kernels = tern_select(tern_cpu_features(), (*v)->name);
            if (m.kernels) failed += check_formats(&m, &shapes[i]);
        }
        if (adapter.loras) free_adapter(&m, &adapter);
        free_model(&m);
    }
    return failed ? 1 : 0;
}
