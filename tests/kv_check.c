/* kv_check.c - the ops over the KV cache: every variant against scalar, and what is stored against
 * what was given.
 *
 *       kv_check [variant...]      the named variants must run
 *
 * Tiles end at an unreadable page.  Outputs are pre-filled with 0x88 and compared whole. */
#define _GNU_SOURCE
#include "check.h"
#include "ternary.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUERIES_MAX = 9, TILES_MAX = 3, DIM_MAX = 256, ROWS_MAX = TILES_MAX * TERN_KV_TILE };

static long failed;

/* Uniform in [-1, 1). */
static float random_unit(void)
{
    return (float)((int32_t)random_u32() >> 8) * 0x1p-23f;
}

static void fail(const char *what, const char *detail)
{
    if (failed++ < 20) printf("FAIL %s: %s\n", what, detail);
}

/* ---- float16 ---- */

static double value_of_half(unsigned half)
{
    const int exponent = (int)(half >> 10 & 31), mantissa = (int)(half & 1023);
    const double magnitude =
        exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return half & 0x8000u ? -magnitude : magnitude;
}

/* Every half comes back; between two neighbours the nearer one is taken, the even one of a tie. */
static void check_halves(void)
{
    for (unsigned half = 0; half < 0x7c00u; half++) {
        const double here = value_of_half(half), next = value_of_half(half + 1);
        const float middle = (float)((here + next) / 2); /* exact: eleven bits and one more */
        const unsigned even = half % 2 ? half + 1 : half;
        const bool is_last = half == 0x7bffu;
        if (tern_f16_from_f32((float)here) != half ||
            tern_f16_from_f32(-(float)here) != (half | 0x8000u) ||
            tern_f16_from_f32(middle) != (is_last ? half : even) ||
            tern_f16_from_f32(nextafterf(middle, 0.0f)) != half ||
            tern_f16_from_f32(nextafterf(middle, INFINITY)) != (is_last ? half : half + 1)) {
            fail("tern_f16_from_f32", "a half does not come back, or a tie is not even");
            return;
        }
    }
    if (tern_f16_from_f32(INFINITY) != 0x7bffu || tern_f16_from_f32(-3e38f) != 0xfbffu ||
        (tern_f16_from_f32(NAN) & 0x7fffu) != 0x7bffu || tern_f16_from_f32(1e-30f) != 0)
        fail("tern_f16_from_f32", "wrong beyond the range");
}

/* ---- what is stored ---- */

static const char *const fills[] = { "random",  "zeros", "constant", "offset",
                                     "outlier", "huge",  "tiny",     "not finite" };
enum { RANDOM, ZEROS, CONSTANT, OFFSET, OUTLIER, HUGE_FILL, TINY, NOT_FINITE };

static float number_of(size_t fill, size_t i)
{
    static const float wild[] = { INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 0.0f, -0.0f, 1e-45f };
    switch (fill) {
    case ZEROS: return 0.0f;
    case CONSTANT: return 0.7f;
    case OFFSET: return 9.0f + random_unit();
    case OUTLIER: return i % 37 == 5 ? 60.0f : random_unit();
    case HUGE_FILL: return random_unit() * 1e7f;
    case TINY: return random_unit() * 3e-6f;
    case NOT_FINITE: return wild[random_u32() % COUNT(wild)];
    default: return 3.0f * random_unit();
    }
}

/* Largest error of a number of a group that holds low..high: half a step, and the rounding of the
 * float16 parameters, which codes can use up to their largest. */
static double error_bound(const tern_kv_layout *kv, double x, double low, double high)
{
    const double top = fmax(fabs(low), fabs(high)), half_ulp = 0x1p-11, least = 0x1p-25;
    if (kv->format == TERN_KV_F16) return fmax(fabs(x) * half_ulp, least);
    if (kv->format == TERN_KV_INT8) {
        const double step = fmax(top / 127 * (1 + half_ulp), top / 127 + least);
        return step / 2 * 1.001 + 127 * fmax(top / 127 * half_ulp, least);
    }
    const double range = high - low + fmax(fabs(low) * half_ulp, least);
    const double step = fmax(range / 15 * (1 + half_ulp), range / 15 + least);
    return step / 2 * 1.001 + 15 * fmax(range / 15 * half_ulp, least) +
           fmax(fabs(low) * half_ulp, least);
}

static void range_of(const float *x, size_t n, double *low, double *high)
{
    *low = *high = x[0];
    for (size_t i = 1; i < n; i++) {
        if (x[i] < *low) *low = x[i];
        if (x[i] > *high) *high = x[i];
    }
}

static tern_kv_score_fn *score_of(const tern_kv_ops *ops, tern_kv_format format)
{
    return format == TERN_KV_F16    ? ops->score_f16
           : format == TERN_KV_INT8 ? ops->score_int8
                                    : ops->score_int4;
}

static tern_kv_mix_fn *mix_of(const tern_kv_ops *ops, tern_kv_format format)
{
    return format == TERN_KV_F16    ? ops->mix_f16
           : format == TERN_KV_INT8 ? ops->mix_int8
                                    : ops->mix_int4;
}

/* Read channel d of row r back, through the scalar ops: a key by a query of one 1, a value by a
 * weight of one 1. */
static float key_back(const tern_kv_layout *kv, const uint8_t *tiles, size_t r, size_t d)
{
    float x[DIM_MAX] = { 0 }, scores[ROWS_MAX], scale[TERN_KV_GROUPS_MAX] = { 0 };
    int8_t codes[DIM_MAX] = { 0 };
    int32_t sum[TERN_KV_GROUPS_MAX] = { 0 };
    const size_t g = kv->n_groups ? d / kv->group : 0;
    x[d] = 1.0f;
    codes[d] = 1;
    scale[g] = 1.0f;
    sum[g] = 1;
    const tern_kv_query query = { x, codes, scale, sum };
    score_of(tern_select(0, "scalar")->kv, kv->format)(kv, tiles, 1 + r / TERN_KV_TILE, &query, 1,
                                                       scores, ROWS_MAX);
    return scores[r];
}

static void values_back(const tern_kv_layout *kv, const uint8_t *tiles, size_t r, float *y)
{
    float w[ROWS_MAX] = { 0 };
    w[r] = 1.0f;
    mix_of(tern_select(0, "scalar")->kv, kv->format)(kv, tiles, TILES_MAX, w, ROWS_MAX, 1, y,
                                                     DIM_MAX);
}

static void check_stored(const tern_kv_layout *kv, const uint8_t *keys, const uint8_t *values,
                         const float *x, size_t fill)
{
    char what[99];
    snprintf(what, sizeof what, "stored format %d, head_dim %zu, group %zu, %s", (int)kv->format,
             kv->head_dim, kv->group, fills[fill]);
    for (size_t r = 0; r < ROWS_MAX; r += 7) {
        const float *row = x + r * kv->head_dim;
        float y[DIM_MAX];
        values_back(kv, values, r, y);
        for (size_t d = 0; d < kv->head_dim; d += 3) {
            const size_t g = kv->n_groups ? d / kv->group * kv->group : 0;
            const size_t n = kv->n_groups && kv->group < kv->head_dim - g ? kv->group
                                                                          : kv->head_dim - g;
            double low, high;
            range_of(row + g, n, &low, &high);
            if (key_back(kv, keys, r, d) != y[d]) fail(what, "a key differs from the same value");
            if (!isfinite(y[d])) fail(what, "not finite");
            if (fill == HUGE_FILL || fill == NOT_FINITE) continue; /* saturated */
            if (!(fabs(y[d] - (double)row[d]) <= error_bound(kv, row[d], low, high)))
                fail(what, "beyond the error bound");
        }
    }
}

/* ---- every variant against scalar ---- */

typedef struct sample {
    const uint8_t *keys, *values;
    tern_kv_query queries[QUERIES_MAX];
    float w[QUERIES_MAX * ROWS_MAX];
} sample;

static void compare(const char *variant, const char *op, const tern_kv_layout *kv, size_t fill,
                    size_t n, const float *want, const float *got, size_t count)
{
    char what[120];
    if (memcmp(want, got, count * sizeof *want) == 0) return;
    size_t at = 0;
    while (memcmp(want + at, got + at, sizeof *want) == 0) at++;
    snprintf(what, sizeof what, "%s %s format %d, head_dim %zu, group %zu, %s, %zu queries",
             variant, op, (int)kv->format, kv->head_dim, kv->group, fills[fill], n);
    char detail[80];
    snprintf(detail, sizeof detail, "[%zu]: want %a, got %a", at, (double)want[at],
             (double)got[at]);
    fail(what, detail);
}

static void check_ops(const tern_kernels *v, const tern_kv_layout *kv, const sample *s, size_t fill)
{
    enum { STRIDE = ROWS_MAX + 5, Y_STRIDE = DIM_MAX + 3 };
    static float want[QUERIES_MAX * Y_STRIDE], got[QUERIES_MAX * Y_STRIDE];
    const tern_kv_ops *scalar = tern_select(0, "scalar")->kv;
    for (size_t n = 1; n <= QUERIES_MAX; n++) {
        const size_t tiles = 1 + n % TILES_MAX, skip = TILES_MAX - tiles; /* up to the fence */
        memset(want, 0x88, sizeof want);
        memset(got, 0x88, sizeof got);
        const uint8_t *keys = s->keys + skip * kv->tile_bytes;
        score_of(scalar, kv->format)(kv, keys, tiles, s->queries, n, want, STRIDE);
        score_of(v->kv, kv->format)(kv, keys, tiles, s->queries, n, got, STRIDE);
        compare(v->name, "score", kv, fill, n, want, got, COUNT(want));
        memset(want, 0x88, sizeof want);
        memset(got, 0x88, sizeof got);
        const uint8_t *values = s->values + skip * kv->tile_bytes;
        mix_of(scalar, kv->format)(kv, values, tiles, s->w, ROWS_MAX, n, want, Y_STRIDE);
        mix_of(v->kv, kv->format)(kv, values, tiles, s->w, ROWS_MAX, n, got, Y_STRIDE);
        compare(v->name, "mix", kv, fill, n, want, got, COUNT(want));
    }
}

static void fill_weights(float *w)
{
    for (size_t i = 0; i < QUERIES_MAX * ROWS_MAX; i++)
        w[i] = random_u32() % 4 ? fabsf(random_unit()) : 0.0f;
}

/* One layout and fill: all variants that this machine has. */
static void check_layout(const tern_kv_layout *kv, size_t fill)
{
    static float x[ROWS_MAX * DIM_MAX], q[QUERIES_MAX * DIM_MAX];
    static float scales[QUERIES_MAX][TERN_KV_GROUPS_MAX];
    static int32_t sums[QUERIES_MAX][TERN_KV_GROUPS_MAX];
    static sample s;
    const size_t padded = (kv->head_dim + 31) / 32 * 32, bytes = TILES_MAX * kv->tile_bytes;
    fenced keys = fence(bytes), values = fence(bytes), codes = fence(QUERIES_MAX * padded);
    for (size_t i = 0; i < ROWS_MAX * kv->head_dim; i++) x[i] = number_of(fill, i);
    for (size_t r = 0; r < ROWS_MAX; r++) {
        const size_t at = r / TERN_KV_TILE * kv->tile_bytes;
        for (int twice = 0; twice < 2; twice++) { /* the second time over what was there */
            const float *row = x + (twice ? r : (r + 3) % ROWS_MAX) * kv->head_dim;
            tern_kv_put_key(kv, (uint8_t *)keys.data + at, r % TERN_KV_TILE, row);
            tern_kv_put_value(kv, (uint8_t *)values.data + at, r % TERN_KV_TILE, row);
        }
    }
    for (size_t i = 0; i < QUERIES_MAX; i++) {
        int8_t *of_query = (int8_t *)codes.data + i * padded;
        for (size_t d = 0; d < kv->head_dim; d++)
            q[i * kv->head_dim + d] = fill == NOT_FINITE ? random_unit() : number_of(fill, d);
        tern_kv_quantize_query(kv, q + i * kv->head_dim, of_query, scales[i], sums[i]);
        s.queries[i] = (tern_kv_query){ q + i * kv->head_dim, of_query, scales[i], sums[i] };
    }
    s.keys = keys.data, s.values = values.data;
    fill_weights(s.w);
    check_stored(kv, s.keys, s.values, x, fill);
    for (const tern_kernels *const *v = tern_variants(); *v; v++)
        if (((*v)->needs & tern_cpu_features()) == (*v)->needs) check_ops(*v, kv, &s, fill);
    release(keys), release(values), release(codes);
}

static void check_softmax(const tern_kernels *v)
{
    static const size_t lengths[] = { 1, 2, 15, 16, 17, 31, 33, 100, 255, 256 };
    const tern_kv_ops *scalar = tern_select(0, "scalar")->kv;
    const tern_kv_layout none = { .format = TERN_KV_F32 };
    for (size_t i = 0; i < COUNT(lengths); i++) {
        for (size_t fill = 0; fill < COUNT(fills); fill++) {
            const size_t n = lengths[i];
            fenced want = fence(n * sizeof(float)), got = fence(n * sizeof(float));
            float top[2], sum[2];
            for (size_t j = 0; j < n; j++) ((float *)want.data)[j] = number_of(fill, j);
            if (fill == NOT_FINITE) ((float *)want.data)[0] = 1.0f; /* a NaN's bits are not fixed */
            memcpy(got.data, want.data, n * sizeof(float));
            sum[0] = scalar->softmax(want.data, n, 0.3f, &top[0]);
            sum[1] = v->kv->softmax(got.data, n, 0.3f, &top[1]);
            compare(v->name, "softmax", &none, fill, n, want.data, got.data, n);
            compare(v->name, "softmax's sum", &none, fill, n, sum, sum + 1, 1);
            compare(v->name, "softmax's largest", &none, fill, n, top, top + 1, 1);
            release(want), release(got);
        }
    }
}

static bool has_run(const char *name)
{
    const tern_kernels *v = tern_select(tern_cpu_features(), name);
    return v && v->kv;
}

int main(int argc, char **argv)
{
    static const size_t dims[] = { 2, 20, 26, 64, 80, 96, 100, 128, 256 };
    static const size_t groups[] = { 32, 64, 128 };
    static const unsigned bits[] = { 16, 8, 4 };
    long layouts = 0;
    const bool is_quick = argc > 1 && strcmp(argv[1], "quick") == 0; /* under an emulator */
    if (is_quick) argc--, argv++;
    check_halves();
    for (size_t d = is_quick; d < COUNT(dims); d += is_quick ? 3 : 1) {
        for (size_t b = 0; b < COUNT(bits); b++) {
            for (size_t g = 0; g < (bits[b] == 16 ? 1 : COUNT(groups)); g++) {
                const tern_kv_layout kv = tern_kv_layout_of(bits[b], groups[g], dims[d]);
                for (size_t fill = 0; fill < COUNT(fills); fill++) check_layout(&kv, fill);
                layouts++;
            }
        }
    }
    for (const tern_kernels *const *v = tern_variants(); *v; v++) {
        if (!has_run((*v)->name)) continue;
        check_softmax(*v);
        printf("%-12s %ld layouts, %zu fills\n", (*v)->name, layouts, COUNT(fills));
    }
    for (int i = 1; i < argc; i++)
        if (!has_run(argv[i])) fail(argv[i], "was required and did not run");
    printf("%ld failed\n", failed);
    return failed ? 1 : 0;
}
