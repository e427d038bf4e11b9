/* kernel_check.c - every variant against scalar, bit for bit.
 *
 *       kernel_check [quick] [variant...]      the named variants must run: a skipped or misspelled one
 * fails
 *
 * Every input ends at an unreadable page, so that reading one byte too far is a crash.  Outputs are
 * pre-filled with 0x88 and compared whole, so that a write in the wrong place shows.  Fills aim at
 * overflow: all largest, all smallest, opposite signs; random data alone misses it. */
#define _GNU_SOURCE
#include "check.h"
#include "ternary.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <math.h>
#include <string.h>

/* Under an emulator: a third of the sizes, random and the three extreme fills, only named variants. */
static bool is_quick;

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

static void fill_codes(tern_packing packing, uint8_t *bytes, size_t n, size_t fill)
{
    const unsigned base = packing == TERN_BASE3 ? 3 : 4, fields = packing == TERN_BASE3 ? 5 : 4;
    for (size_t i = 0; i < n; i++) {
        unsigned byte = 0;
        for (unsigned s = 0; s < fields; s++) byte = byte * base + code_of(fill);
        bytes[i] = (uint8_t)byte;
    }
}

static const char *const packings[TERN_PACKINGS] = { "2bit", "base3" };

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
    const size_t padded = (n + TERN_X_PAD - 1) / TERN_X_PAD * TERN_X_PAD;
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

static void check_rows(check *c, tern_packing p, size_t n_rows, size_t n, size_t fill, int keep)
{
    char what[160];
    const size_t bytes = n_rows * tern_row_bytes(p, n);
    fenced plane = fence(bytes), want = fence(n_rows * 4), got = fence(n_rows * 4);
    fenced rows = fence((n_rows + 1) / 2 * sizeof(uint32_t));
    fenced_act a = make_act(n, fill, 0);
    for (uint32_t i = 0; i < (n_rows + 1) / 2; i++) ((uint32_t *)rows.data)[i] = 2 * i;
    const uint32_t *list = keep ? rows.data : NULL;
    const size_t end = keep == 2 ? 0 : keep ? (n_rows + 1) / 2 : n_rows;

    fill_codes(p, plane.data, bytes, fill);
    memset(want.data, 0x88, n_rows * 4);
    memset(got.data, 0x88, n_rows * 4);
    c->scalar->gemv_rows[p](plane.data, &a.act, want.data, list, 0, end);
    c->variant->gemv_rows[p](plane.data, &a.act, got.data, list, 0, end);
    snprintf(what, sizeof what, "gemv_rows %s %zu x %zu %s list %d", packings[p], n_rows, n, fills[fill], keep);
    compare(c, what, want.data, got.data, n_rows * 4);
    release_act(a);
    release(plane), release(want), release(got), release(rows);
}

static void check_cols(check *c, size_t panels, size_t n, size_t fill, int keep)
{
    char what[160];
    const size_t bytes = panels * n * TERN_LINE_BYTES, y_bytes = panels * TERN_PANEL * 4;
    const size_t units = 2 * panels;
    fenced plane = fence(bytes), want = fence(y_bytes), got = fence(y_bytes);
    fenced_act a = make_act(n, fill, keep);
    fill_codes(TERN_2BIT, plane.data, bytes, fill);
    for (size_t begin = 0; begin < units; begin++) {
        for (size_t end = begin; end <= units; end++) {
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

static void check_tiles(check *c, size_t panels, size_t n, size_t fill)
{
    char what[160];
    const size_t bytes = panels * ((n + 3) / 4) * TERN_LINE_BYTES;
    const size_t y_bytes = panels * TERN_TILE_OUTPUTS * 4;
    fenced plane = fence(bytes), want = fence(y_bytes), got = fence(y_bytes);
    fenced_act a = make_act(n, fill, 0);
    fill_codes(TERN_BASE3, plane.data, bytes, fill);
    for (size_t begin = 0; begin < panels; begin++) {
        memset(want.data, 0x88, y_bytes);
        memset(got.data, 0x88, y_bytes);
        c->scalar->gemv_tiles(plane.data, &a.act, want.data, begin, panels);
        c->variant->gemv_tiles(plane.data, &a.act, got.data, begin, panels);
        snprintf(what, sizeof what, "gemv_tiles %zu panels x %zu %s from %zu", panels, n,
                 fills[fill], begin);
        compare(c, what, want.data, got.data, y_bytes);
    }
    release_act(a);
    release(plane), release(want), release(got);
}

/* Binary and int8 tiles: any byte is legal. */
static void check_format(check *c, tern_packing p, size_t panels, size_t n, size_t fill)
{
    char what[160];
    const bool is_binary = p == TERN_BINARY;
    tern_gemv_tiles_fn *scalar = is_binary ? c->scalar->gemv_binary : c->scalar->gemv_int8;
    tern_gemv_tiles_fn *variant = is_binary ? c->variant->gemv_binary : c->variant->gemv_int8;
    if (!variant) return;
    const size_t bytes = panels * ((n + 3) / 4) * TERN_LINE_BYTES;
    const size_t y_bytes = panels * (is_binary ? TERN_BINARY_OUTPUTS : TERN_INT8_OUTPUTS) * 4;
    fenced plane = fence(bytes), want = fence(y_bytes), got = fence(y_bytes);
    fenced_act a = make_act(n, fill, 0);
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)plane.data)[i] = fill == 1 ? 255 : fill == 2 ? 0 : (uint8_t)random_u32();
    for (size_t begin = 0; begin < panels; begin++) {
        memset(want.data, 0x88, y_bytes);
        memset(got.data, 0x88, y_bytes);
        scalar(plane.data, &a.act, want.data, begin, panels);
        variant(plane.data, &a.act, got.data, begin, panels);
        snprintf(what, sizeof what, "gemv_%s %zu panels x %zu %s from %zu",
                 is_binary ? "binary" : "int8", panels, n, fills[fill], begin);
        compare(c, what, want.data, got.data, y_bytes);
    }
    release_act(a);
    release(plane), release(want), release(got);
}

static void check_channels(check *c, size_t n_out, size_t n, size_t fill, int keep)
{
    char what[160];
    const size_t channel = tern_row_bytes(TERN_BASE3, n_out), y_bytes = channel * 5 * 4;
    fenced plane = fence(channel * n), want = fence(y_bytes), got = fence(y_bytes);
    fenced_act a = make_act(n, fill, keep);
    const size_t visited = keep ? a.act.n_live : n;
    fill_codes(TERN_BASE3, plane.data, channel * n, fill);
    for (size_t part = 0; part < 3; part++) { /* all, the first third, the rest */
        const size_t begin = part == 2 ? visited / 3 : 0, end = part == 1 ? visited / 3 : visited;
        memset(want.data, 0x88, y_bytes);
        memset(got.data, 0x88, y_bytes);
        c->scalar->gemv_channels(plane.data, &a.act, n_out, want.data, begin, end);
        c->variant->gemv_channels(plane.data, &a.act, n_out, got.data, begin, end);
        snprintf(what, sizeof what, "gemv_channels %zu x %zu %s list %d part %zu", n_out, n,
                 fills[fill], keep, part);
        compare(c, what, want.data, got.data, y_bytes);
    }
    release_act(a);
    release(plane), release(want), release(got);
}

static void check_floats(check *c, size_t n_rows, size_t n)
{
    char what[160];
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

/* Inputs of a scan; units of any size, some of them 0. */
static void fill_scan_x(size_t fill, size_t n, int8_t *q, float *unit, int32_t *minus_zero)
{
    for (size_t k = 0; k < n; k++) {
        q[k] = x_of(fill, k);
        minus_zero[k / TERN_SCAN_GROUP] -= TERN_SCAN_ZERO * q[k];
        if (k % TERN_SCAN_GROUP == 0)
            unit[k / TERN_SCAN_GROUP] =
                k % 7 == 6 ? 0.0f : ldexpf((float)(random_u32() % 1000003), -(int)(random_u32() % 40));
    }
}

static void check_scan(check *c, size_t panels, size_t n, size_t fill)
{
    char what[99];
    const size_t groups = (n + TERN_SCAN_GROUP - 1) / TERN_SCAN_GROUP;
    const size_t y_bytes = panels * TERN_SCAN_ROWS * 4, padded = groups * TERN_SCAN_GROUP;
    fenced codes = fence(panels * groups * TERN_SCAN_LINES * TERN_LINE_BYTES);
    fenced scales = fence(panels * groups * TERN_SCAN_ROWS), levels = fence(TERN_SCAN_LEVELS);
    fenced q = fence(padded), unit = fence(groups * 4), minus_zero = fence(groups * 4);
    fenced want = fence(y_bytes), got = fence(y_bytes);
    for (size_t i = 0; i < codes.bytes; i++) /* all codes at the ends, or random */
        ((uint8_t *)codes.data)[i] = fill == 1 ? 0xff : fill == 2 ? 0 : (uint8_t)random_u32();
    for (size_t i = 0; i < scales.bytes; i++)
        ((uint8_t *)scales.data)[i] = fill == 1 || fill == 2 ? 255 : (uint8_t)random_u32();
    for (size_t i = 0; i < TERN_SCAN_LEVELS; i++) /* 0 and 126 are among them */
        ((uint8_t *)levels.data)[i] = (uint8_t)(i * 2 * TERN_SCAN_ZERO / (TERN_SCAN_LEVELS - 1));
    memset(q.data, 0, padded), memset(minus_zero.data, 0, groups * 4);
    fill_scan_x(fill, n, q.data, unit.data, minus_zero.data);
    const tern_scan_x x = { q.data, unit.data, minus_zero.data, groups };
    for (size_t begin = 0; begin < panels; begin++) {
        memset(want.data, 0x88, y_bytes), memset(got.data, 0x88, y_bytes);
        c->scalar->scan(codes.data, scales.data, levels.data, &x, want.data, begin, panels);
        c->variant->scan(codes.data, scales.data, levels.data, &x, got.data, begin, panels);
        snprintf(what, sizeof what, "scan %zu..%zu x %zu %s", begin, panels, n, fills[fill]);
        compare(c, what, want.data, got.data, y_bytes);
    }
    release(codes), release(scales), release(levels), release(q), release(unit);
    release(minus_zero), release(want), release(got);
}

static void check_refine(check *c, size_t n_rows, size_t n_blocks, size_t fill)
{
    char what[99];
    fenced plane = fence(n_rows * n_blocks * TERN_LINE_BYTES);
    fenced high = fence(n_blocks * TERN_REFINE_BLOCK), rows = fence((n_rows + 1) / 2 * 4);
    fenced want = fence(n_rows * 4), got = fence(n_rows * 4);
    for (size_t i = 0; i < plane.bytes; i++)
        ((uint8_t *)plane.data)[i] = fill == 1 || fill == 2 ? 0xff : (uint8_t)random_u32();
    for (size_t i = 0; i < high.bytes; i++) ((int8_t *)high.data)[i] = x_of(fill, i);
    for (uint32_t i = 0; i < (n_rows + 1) / 2; i++) ((uint32_t *)rows.data)[i] = 2 * i;
    for (size_t n = 0; n <= (n_rows + 1) / 2; n++) {
        memset(want.data, 0x88, n_rows * 4), memset(got.data, 0x88, n_rows * 4);
        c->scalar->refine(plane.data, high.data, n_blocks, rows.data, n, want.data);
        c->variant->refine(plane.data, high.data, n_blocks, rows.data, n, got.data);
        snprintf(what, sizeof what, "refine %zu of %zu x %zu %s", n, n_rows, n_blocks, fills[fill]);
        compare(c, what, want.data, got.data, n_rows * 4);
    }
    release(plane), release(high), release(rows), release(want), release(got);
}

static void check_head(check *c)
{
    static const size_t head_inputs[] = { 1, 31, 32, 33, 64, 95, 256, 272, 2560 };
    for (size_t fill = 0; fill < COUNT(fills); fill++) {
        for (size_t i = 0; i < COUNT(head_inputs); i++)
            for (size_t panels = 1; panels < 4; panels++)
                check_scan(c, panels, head_inputs[i], fill);
        for (size_t rows = 1; rows < 14; rows += 3)
            for (size_t blocks = 1; blocks < 12; blocks += 3) check_refine(c, rows, blocks, fill);
    }
}

/* Sizes around every unroll, block, widening and prefetch boundary of the variants. */
static const size_t inputs[] = {
    1,   2,   3,   32,   48,   49,   50,   127,  128,  129,  130,  255,
    256, 257, 319, 320, 321, 341, 640, 1024, 1025, 1152, 1920, 2048, 2049, 2176, 4224, 6912
};
static const size_t lengths[] = { 1,  2,  7,  8,  9,  15, 16, 17,  31,  32,
                                  33, 39, 40, 63, 64, 65, 96, 100, 128, 255 };

enum { GEMM_TOKENS = 6, MANY_TOKENS = 19 }; /* no multiples of what variants take at a time */

typedef enum orientation { ROWS_2BIT, ROWS_BASE3, LINES, TILES, CHANNELS, ORIENTATIONS } orientation;

static tern_gemm_fn *gemm_of(const tern_kernels *k, orientation o)
{
    switch (o) {
    case ROWS_2BIT: return k->gemm_rows[TERN_2BIT];
    case ROWS_BASE3: return k->gemm_rows[TERN_BASE3];
    case LINES: return k->gemm_cols;
    case TILES: return k->gemm_tiles;
    default: return k->gemm_channels;
    }
}

static void scalar_gemv(const tern_kernels *k, orientation o, const uint8_t *plane,
                        const tern_act *a, int32_t *y, size_t n_out, size_t begin, size_t end)
{
    switch (o) {
    case ROWS_2BIT: k->gemv_rows[TERN_2BIT](plane, a, y, NULL, begin, end); break;
    case ROWS_BASE3: k->gemv_rows[TERN_BASE3](plane, a, y, NULL, begin, end); break;
    case LINES: k->gemv_cols(plane, a, y, begin, end); break;
    case TILES: k->gemv_tiles(plane, a, y, begin, end); break;
    default: k->gemv_channels(plane, a, n_out, y, 0, a->n); break; /* begin, end: all blocks */
    }
}

/* Outputs of `units` items, and bytes of the plane. */
static void sizes(orientation o, size_t units, size_t n, size_t *outputs, size_t *bytes)
{
    switch (o) {
    case ROWS_2BIT: *outputs = units, *bytes = units * tern_row_bytes(TERN_2BIT, n); break;
    case ROWS_BASE3: *outputs = units, *bytes = units * tern_row_bytes(TERN_BASE3, n); break;
    case LINES: *outputs = units * TERN_UNIT, *bytes = (units + 1) / 2 * n * 64; break;
    case TILES: *outputs = units * TERN_TILE_OUTPUTS, *bytes = units * ((n + 3) / 4) * 64; break;
    default: *outputs = units * TERN_BLOCK3, *bytes = n * units * 64;
    }
}

static void check_gemm(check *c, orientation o, size_t units, size_t begin, size_t n, size_t fill)
{
    const size_t tokens = n < 300 ? MANY_TOKENS : GEMM_TOKENS;
    tern_gemm_fn *gemm = gemm_of(c->variant, o);
    if (!gemm) return;
    char what[160];
    size_t outputs, bytes;
    sizes(o, units, n, &outputs, &bytes);
    const size_t stride = (outputs + TERN_PANEL) / TERN_PANEL * TERN_PANEL;
    const size_t y_bytes = (tokens * stride) * 4;
    fenced plane = fence(bytes), want = fence(y_bytes), got = fence(y_bytes);
    fenced_act acts[MANY_TOKENS];
    const tern_act *a[MANY_TOKENS];
    for (size_t t = 0; t < tokens; t++) {
        acts[t] = make_act(n, fill, 0);
        a[t] = &acts[t].act;
    }
    fill_codes(o == ROWS_2BIT || o == LINES ? TERN_2BIT : TERN_BASE3, plane.data, bytes, fill);
    memset(want.data, 0x88, y_bytes);
    memset(got.data, 0x88, y_bytes);
    for (size_t t = 0; t < tokens; t++)
        scalar_gemv(c->scalar, o, plane.data, a[t], (int32_t *)want.data + t * stride, outputs, begin,
                    units);
    gemm(plane.data, a, tokens, got.data, stride, outputs, begin, units);
    snprintf(what, sizeof what, "gemm %d: %zu units from %zu x %zu %s", (int)o, units, begin, n,
             fills[fill]);
    compare(c, what, want.data, got.data, y_bytes);
    for (size_t t = 0; t < tokens; t++) release_act(acts[t]);
    release(plane), release(want), release(got);
}

/* Channels of lists: those with x != 0, or every third. */
static void check_gemm_live(check *c, size_t blocks, size_t begin, size_t n, size_t fill, int keep)
{
    if (!c->variant->gemm_live) return;
    char what[160];
    size_t outputs, bytes;
    sizes(CHANNELS, blocks, n, &outputs, &bytes);
    const size_t y_bytes = MANY_TOKENS * outputs * 4;
    fenced plane = fence(bytes), want = fence(y_bytes), got = fence(y_bytes);
    fenced_act acts[MANY_TOKENS];
    const tern_act *a[MANY_TOKENS];
    fill_codes(TERN_BASE3, plane.data, bytes, fill);
    memset(want.data, 0x88, y_bytes);
    memset(got.data, 0x88, y_bytes);
    for (size_t t = 0; t < MANY_TOKENS; t++) {
        acts[t] = make_act(n, t % 4 ? fill : t % COUNT(fills), keep); /* lists of several lengths */
        a[t] = &acts[t].act;
        int32_t *row = (int32_t *)want.data + t * outputs;
        c->scalar->gemv_channels(plane.data, a[t], outputs, row, 0, a[t]->n_live);
        memset(row, 0x88, begin * TERN_BLOCK3 * 4);
    }
    c->variant->gemm_live(plane.data, a, MANY_TOKENS, got.data, outputs, outputs, begin, blocks);
    snprintf(what, sizeof what, "gemm_live: %zu blocks from %zu x %zu %s list %d", blocks, begin, n,
             fills[fill], keep);
    compare(c, what, want.data, got.data, y_bytes);
    for (size_t t = 0; t < MANY_TOKENS; t++) release_act(acts[t]);
    release(plane), release(want), release(got);
}

/* Rows of lists: none, all, and every second, third, ... of them. */
static void check_gemm_open(check *c, size_t n_rows, size_t begin, size_t end, size_t n, size_t fill)
{
    if (!c->variant->gemm_open) return;
    char what[160];
    const size_t bytes = n_rows * tern_row_bytes(TERN_BASE3, n), y_bytes = MANY_TOKENS * n_rows * 4;
    fenced plane = fence(bytes), want = fence(y_bytes), got = fence(y_bytes);
    fenced rows[MANY_TOKENS];
    fenced_act acts[MANY_TOKENS];
    const tern_act *a[MANY_TOKENS];
    tern_row_list lists[MANY_TOKENS];
    fill_codes(TERN_BASE3, plane.data, bytes, fill);
    memset(want.data, 0x88, y_bytes);
    memset(got.data, 0x88, y_bytes);
    for (size_t t = 0; t < MANY_TOKENS; t++) {
        const size_t n_listed = t ? (n_rows + t - 1) / t : 0;
        rows[t] = fence(n_listed * sizeof(uint32_t));
        uint32_t *list = rows[t].data;
        for (size_t i = 0; i < n_listed; i++) list[i] = (uint32_t)(i * t);
        acts[t] = make_act(n, fill, 0);
        a[t] = &acts[t].act;
        lists[t] = (tern_row_list){ list, n_listed };
        for (size_t i = 0; i < n_listed; i++)
            if (list[i] >= begin && list[i] < end)
                c->scalar->gemv_rows[TERN_BASE3](plane.data, a[t], (int32_t *)want.data + t * n_rows,
                                                 list, i, i + 1);
    }
    c->variant->gemm_open(plane.data, a, lists, MANY_TOKENS, got.data, n_rows, begin, end);
    snprintf(what, sizeof what, "gemm_open: rows %zu to %zu of %zu x %zu %s", begin, end, n_rows, n,
             fills[fill]);
    compare(c, what, want.data, got.data, y_bytes);
    for (size_t t = 0; t < MANY_TOKENS; t++) release_act(acts[t]), release(rows[t]);
    release(plane), release(want), release(got);
}

static void check_lists(check *c, size_t n, size_t fill)
{
    for (int keep = 1; keep < 4; keep++) check_gemm_live(c, 1, 0, n, fill, keep);
    check_gemm_open(c, 7, 0, 7, n, fill);
    if (n > 700 && n < 4000) return;
    for (int keep = 1; keep < 3; keep++) check_gemm_live(c, 3, 1, n, fill, keep);
    check_gemm_open(c, 77, 3, 50, n, fill);
}

static void check_gemms(check *c, size_t n, size_t fill)
{
    check_lists(c, n, fill);
    for (size_t units = 1; units <= 3; units++)
        for (orientation o = ROWS_2BIT; o < ORIENTATIONS; o++)
            check_gemm(c, o, units, o == CHANNELS ? 0 : units / 2, n, fill);
    if (n > 700) return;
    check_gemm(c, ROWS_2BIT, 77, 3, n, fill);
    check_gemm(c, ROWS_BASE3, 77, 3, n, fill);
}

static void check_products(check *c, size_t n, size_t fill)
{
    static const size_t rows[] = { 1, 2, 3, 7 };
    for (tern_packing p = 0; p < TERN_PACKINGS; p++)
        for (size_t r = 0; r < COUNT(rows); r++)
            for (int keep = 0; keep < 3; keep++) check_rows(c, p, rows[r], n, fill, keep);
    for (tern_packing p = 0; p < TERN_PACKINGS && n < 3000; p++)
        check_rows(c, p, 77, n, fill, 1); /* groups of listed rows, and a part of one */
    const size_t most = n < 400 ? 2 : 1;
    for (size_t panels = 1; panels <= most; panels++)
        for (int keep = 0; keep < 4; keep++) check_cols(c, panels, n, fill, keep);
    for (size_t panels = 1; panels <= most + 1; panels++) check_tiles(c, panels, n, fill);
    for (size_t panels = 1; panels <= most + 1; panels++) {
        check_format(c, TERN_BINARY, panels, n, fill);
        check_format(c, TERN_INT8, panels, n, fill);
    }
    for (size_t blocks = 1; blocks <= most; blocks++)
        for (int keep = 0; keep < 4; keep++)
            check_channels(c, blocks * TERN_BLOCK3 - 7, n, fill, keep);
    check_gemms(c, n, fill);
}

static bool check_variant(const tern_kernels *scalar, const tern_kernels *variant)
{
    check c = { scalar, variant, 0, 0 };
    static const size_t counts[] = { 1, 2, 3, 4, 5, 7, 8, 9, 33 };
    seed = 1;
    const size_t step = is_quick ? 3 : 1;
    for (size_t fill = 0; fill < (is_quick ? 4 : COUNT(fills)); fill++)
        for (size_t i = 0; i < COUNT(inputs); i += step) check_products(&c, inputs[i], fill);
    check_head(&c);
    for (size_t r = 0; r < COUNT(counts); r++)
        for (size_t i = 0; i < COUNT(lengths); i++) check_floats(&c, counts[r], lengths[i]);
    printf("%-12s %ld comparisons, %ld failed\n", variant->name, c.done, c.failed);
    return c.failed == 0;
}

/* Before anything else, so that a check of the refusal itself is quick. */
static bool required_are_here(uint32_t cpu, int n, char *const *names)
{
    bool ok = true;
    for (int i = 0; i < n; i++) {
        if (tern_select(cpu, names[i])) continue;
        printf("FAIL %s was required and cannot run on this CPU\n", names[i]);
        ok = false;
    }
    return ok;
}

static bool is_wanted(const char *name, int n, char *const *names)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0) return true;
    return !is_quick;
}

int main(int argc, char **argv)
{
    bool ok = true;
    is_quick = argc > 1 && strcmp(argv[1], "quick") == 0;
    if (is_quick) argc--, argv++;
    const uint32_t cpu = tern_cpu_features();
    const tern_kernels *scalar = tern_select(0, "scalar");
    if (!required_are_here(cpu, argc - 1, argv + 1)) return 1;
    if (tern_select(cpu, "no such variant") || tern_select(0, NULL) != scalar) {
        printf("FAIL tern_select\n");
        ok = false;
    }
    for (const tern_kernels *const *v = tern_variants(); *v; v++) {
        if (((*v)->needs & cpu) != (*v)->needs)
            printf("%-12s skipped: not on this CPU\n", (*v)->name);
        else if (is_wanted((*v)->name, argc - 1, argv + 1))
            ok &= check_variant(scalar, *v);
    }
    return ok ? 0 : 1;
}
