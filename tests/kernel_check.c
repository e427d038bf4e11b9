/* kernel_check.c - every variant against scalar, bit for bit.
 *
 *       kernel_check [variant...]      the named variants must run: a skipped or misspelled one
 * fails
 *
 * Every input ends at an unreadable page, so that reading one byte too far is a crash.  Outputs are
 * pre-filled with 0x88 and compared whole, so that a write in the wrong place shows.  Fills aim at
 * overflow: all largest, all smallest, opposite signs; random data alone misses it. */
#define _GNU_SOURCE
#include "ternary.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

static uint64_t seed = 1;

static uint32_t random_u32(void)
{
    uint64_t z = seed += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

/* ---- memory that ends at a fence ---- */

typedef struct fenced {
    void *data;
    void *map;
    size_t map_bytes;
} fenced;

static fenced fence(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (bytes + page - 1) / page * page;
    uint8_t *map =
        mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + body, page, PROT_NONE) != 0) {
        perror("mmap");
        exit(2);
    }
    return (fenced){ map + body - bytes, map, body + page };
}

static void release(fenced f)
{
    munmap(f.map, f.map_bytes);
}

/* ---- fills ---- */

static const char *const fills[] = {
    "random", "largest", "smallest", "opposite", "zeros", "sparse"
};

static uint8_t code_of(size_t fill)
{
    switch (fill) {
    case 1: return 2;
    case 2: return 0;
    case 4: return 1;
    default: return (uint8_t)(random_u32() % 3);
    }
}

static int8_t x_of(size_t fill, size_t k)
{
    switch (fill) {
    case 1: return TERN_X_MAX;
    case 2: return -TERN_X_MAX;
    case 3: return k % 2 ? TERN_X_MAX : -TERN_X_MAX;
    case 4: return 0;
    case 5: return random_u32() % 8 ? 0 : (int8_t)((int)(random_u32() % 255) - 127);
    default: return (int8_t)((int)(random_u32() % 255) - 127);
    }
}

static void fill_codes(uint8_t *bytes, size_t n, size_t fill)
{
    for (size_t i = 0; i < n; i++) {
        unsigned byte = 0;
        for (int s = 0; s < 4; s++) byte |= (unsigned)code_of(fill) << 2 * s;
        bytes[i] = (uint8_t)byte;
    }
}

/* Finite and of every size: zeros, subnormals, ordinary numbers, the largest. */
static uint16_t random_f16(void)
{
    const uint16_t half = (uint16_t)random_u32();
    return (half & 0x7c00u) == 0x7c00u ? half & 0xbfffu : half;
}

static float random_f32(void)
{
    const int exponent = (int)(random_u32() % 40) - 30;
    const float mantissa = (float)((int32_t)random_u32() >> 8);
    return exponent < 0 ? mantissa / (float)(1u << -exponent) : mantissa * (float)(1u << exponent);
}

/* ---- one comparison ---- */

typedef struct check {
    const tern_kernels *scalar, *variant;
    long done, failed;
} check;

static void compare(check *c, const char *what, const void *want, const void *got, size_t bytes)
{
    c->done++;
    if (memcmp(want, got, bytes) == 0) return;
    size_t at = 0;
    while (((const uint8_t *)want)[at] == ((const uint8_t *)got)[at]) at++;
    const size_t i = at / 4;
    int32_t w, g;
    memcpy(&w, (const uint8_t *)want + 4 * i, 4);
    memcpy(&g, (const uint8_t *)got + 4 * i, 4);
    if (c->failed++ < 10)
        printf("FAIL %s %s: y[%zu]: want %d, got %d\n", c->variant->name, what, i, w, g);
}

/* An activation vector whose three arrays end at fences. */
typedef struct fenced_act {
    tern_act act;
    fenced x, live, live_x;
} fenced_act;

/* `keep`: 0 all channels, no list; 1 the non-zero ones; 2 every third, whatever its value; 3 none.
 */
static fenced_act make_act(size_t n, size_t fill, int keep)
{
    const size_t padded = (n + TERN_BLOCK - 1) / TERN_BLOCK * TERN_BLOCK;
    fenced_act f = { .x = fence(padded) };
    int8_t *x = f.x.data;
    for (size_t k = 0; k < n; k++) x[k] = x_of(fill, k);
    size_t n_live = 0;
    for (size_t k = 0; k < n; k++) n_live += (keep == 1 && x[k]) || (keep == 2 && k % 3 == 1);
    f.live = fence(n_live * sizeof(uint32_t));
    f.live_x = fence(n_live + 1);
    uint32_t *live = f.live.data;
    int8_t *live_x = f.live_x.data;
    size_t i = 0;
    int32_t sum = 0;
    for (size_t k = 0; k < n; k++) {
        if (keep && !((keep == 1 && x[k]) || (keep == 2 && k % 3 == 1))) continue;
        sum += x[k];
        if (!keep) continue;
        live[i] = (uint32_t)k;
        live_x[i++] = x[k];
    }
    live_x[n_live] = 0;
    f.act = (tern_act){ .x = x, .n = n, .sum = sum, .n_live = n_live };
    if (keep) f.act.live = live, f.act.live_x = live_x;
    return f;
}

static void release_act(fenced_act f)
{
    release(f.x);
    release(f.live);
    release(f.live_x);
}

/* ---- the ops ---- */

static void check_rows(check *c, size_t n_rows, size_t n, size_t fill, int keep)
{
    char what[99];
    const size_t bytes = n_rows * ((n + TERN_BLOCK - 1) / TERN_BLOCK * TERN_BLOCK_BYTES);
    fenced plane = fence(bytes), want = fence(n_rows * 4), got = fence(n_rows * 4);
    fenced rows = fence((n_rows + 1) / 2 * sizeof(uint32_t));
    fenced_act a = make_act(n, fill, 0);
    for (uint32_t i = 0; i < (n_rows + 1) / 2; i++) ((uint32_t *)rows.data)[i] = 2 * i;
    const uint32_t *list = keep ? rows.data : NULL;
    const size_t end = keep == 2 ? 0 : keep ? (n_rows + 1) / 2 : n_rows;

    fill_codes(plane.data, bytes, fill);
    memset(want.data, 0x88, n_rows * 4);
    memset(got.data, 0x88, n_rows * 4);
    c->scalar->gemv_rows(plane.data, &a.act, want.data, list, 0, end);
    c->variant->gemv_rows(plane.data, &a.act, got.data, list, 0, end);
    snprintf(what, sizeof what, "gemv_rows %zu x %zu %s list %d", n_rows, n, fills[fill], keep);
    compare(c, what, want.data, got.data, n_rows * 4);
    release_act(a);
    release(plane), release(want), release(got), release(rows);
}

static void check_cols(check *c, size_t panels, size_t n, size_t fill, int keep)
{
    char what[99];
    const size_t bytes = panels * n * TERN_LINE_BYTES, y_bytes = panels * TERN_PANEL * 4;
    fenced plane = fence(bytes), want = fence(y_bytes), got = fence(y_bytes);
    fenced_act a = make_act(n, fill, keep);
    fill_codes(plane.data, bytes, fill);
    for (size_t begin = 0; begin < 2 * panels; begin++) {
        for (size_t end = begin; end <= 2 * panels; end++) {
            memset(want.data, 0x88, y_bytes);
            memset(got.data, 0x88, y_bytes);
            c->scalar->gemv_cols(plane.data, &a.act, want.data, begin, end);
            c->variant->gemv_cols(plane.data, &a.act, got.data, begin, end);
            snprintf(what, sizeof what, "gemv_cols %zu panels x %zu %s list %d units %zu..%zu",
                     panels, n, fills[fill], keep, begin, end);
            compare(c, what, want.data, got.data, y_bytes);
        }
    }
    release_act(a);
    release(plane), release(want), release(got);
}

static void check_floats(check *c, size_t n_rows, size_t n)
{
    char what[99];
    fenced halves = fence(n_rows * n * 2), rows = fence(n_rows * n * 4), x = fence(n * 4);
    fenced w = fence(n_rows * 4), want = fence((n_rows + n) * 4), got = fence((n_rows + n) * 4);
    for (size_t i = 0; i < n_rows * n; i++) ((uint16_t *)halves.data)[i] = random_f16();
    for (size_t i = 0; i < n_rows * n; i++) ((float *)rows.data)[i] = random_f32();
    for (size_t i = 0; i < n; i++) ((float *)x.data)[i] = random_f32();
    for (size_t i = 0; i < n_rows; i++) ((float *)w.data)[i] = random_f32();
    for (int op = 0; op < 3; op++) {
        static const char *const ops[] = { "dot_f16", "dot_f32", "mix_f32" };
        memset(want.data, 0x88, (n_rows + n) * 4);
        memset(got.data, 0x88, (n_rows + n) * 4);
        if (op == 0) {
            c->scalar->dot_f16(halves.data, n_rows, n, x.data, want.data);
            c->variant->dot_f16(halves.data, n_rows, n, x.data, got.data);
        } else if (op == 1) {
            c->scalar->dot_f32(rows.data, n_rows, n, x.data, want.data);
            c->variant->dot_f32(rows.data, n_rows, n, x.data, got.data);
        } else {
            c->scalar->mix_f32(rows.data, n_rows, n, w.data, want.data);
            c->variant->mix_f32(rows.data, n_rows, n, w.data, got.data);
        }
        snprintf(what, sizeof what, "%s %zu x %zu", ops[op], n_rows, n);
        compare(c, what, want.data, got.data, (n_rows + n) * 4);
    }
    release(halves), release(rows), release(x), release(w), release(want), release(got);
}

/* Sizes around every unroll, block, widening and prefetch boundary of the variants. */
static const size_t inputs[] = {
    1,   2,   3,   32,   48,   49,   50,   127,  128,  129,  130,  255,
    256, 257, 341, 1024, 1025, 1152, 1920, 2048, 2049, 2176, 4224, 6912
};
static const size_t lengths[] = { 1,  2,  7,  8,  9,  15, 16, 17,  31,  32,
                                  33, 39, 40, 63, 64, 65, 96, 100, 128, 255 };

static bool check_variant(const tern_kernels *scalar, const tern_kernels *variant)
{
    check c = { scalar, variant, 0, 0 };
    static const size_t rows[] = { 1, 2, 3, 7 }, counts[] = { 1, 2, 3, 4, 5, 7, 8, 9, 33 };
    seed = 1;
    for (size_t fill = 0; fill < COUNT(fills); fill++) {
        for (size_t i = 0; i < COUNT(inputs); i++) {
            for (size_t r = 0; r < COUNT(rows); r++)
                for (int keep = 0; keep < 3; keep++) check_rows(&c, rows[r], inputs[i], fill, keep);
            for (size_t panels = 1; panels <= (inputs[i] < 400 ? 2 : 1); panels++)
                for (int keep = 0; keep < 4; keep++) check_cols(&c, panels, inputs[i], fill, keep);
        }
    }
    for (size_t r = 0; r < COUNT(counts); r++)
        for (size_t i = 0; i < COUNT(lengths); i++) check_floats(&c, counts[r], lengths[i]);
    printf("%-12s %ld comparisons, %ld failed\n", variant->name, c.done, c.failed);
    return c.failed == 0;
}

static bool has_run(const char *const *names, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
}

int main(int argc, char **argv)
{
    const char *ran[16];
    size_t n_ran = 0;
    bool ok = true;
    const uint32_t cpu = tern_cpu_features();
    const tern_kernels *scalar = tern_select(0, "scalar");
    for (const tern_kernels *const *v = tern_variants(); *v; v++) {
        if (((*v)->needs & cpu) != (*v)->needs) {
            printf("%-12s skipped: not on this CPU\n", (*v)->name);
            continue;
        }
        ok &= check_variant(scalar, *v);
        ran[n_ran++] = (*v)->name;
    }
    for (int i = 1; i < argc; i++) {
        if (has_run(ran, n_ran, argv[i])) continue;
        printf("FAIL %s was required and did not run\n", argv[i]);
        ok = false;
    }
    if (tern_select(cpu, "no such variant") || tern_select(0, NULL) != scalar) {
        printf("FAIL tern_select\n");
        ok = false;
    }
    return ok ? 0 : 1;
}
