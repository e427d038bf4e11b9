/* arm_kernels.c - one kernel of ours, called a given number of times, for bench/arm.py.
 *
 *       arm_kernels OP VARIANT N_OUT N_IN CALLS
 *
 * Every call does the same work, so that the difference of two runs is the cost of calls alone.
 * What the weights are does not matter: no kernel branches on them. */
#include "ternary.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANY_CODE = 0x91 /* codes 1, 0, 1, 2 */, ANY_X = 3, TOKENS = 16 /* of a GEMM */ };

typedef struct job {
    const tern_kernels *kernels;
    size_t n_out, n_in;
    uint8_t *plane; /* at least n_out * n_in * 2 bytes: float16 needs most */
    tern_act act;
    const tern_act *tokens[TOKENS];
    uint8_t levels[TERN_SCAN_LEVELS];
    float *x_f32, *y_f32;
    int32_t *y, *minus_zero;
} job;

typedef void op_fn(const job *j);

static void gemv_rows_2bit(const job *j)
{
    j->kernels->gemv_rows[TERN_2BIT](j->plane, &j->act, j->y, NULL, 0, j->n_out);
}

static void gemv_rows_base3(const job *j)
{
    j->kernels->gemv_rows[TERN_BASE3](j->plane, &j->act, j->y, NULL, 0, j->n_out);
}

static void gemv_cols(const job *j)
{
    j->kernels->gemv_cols(j->plane, &j->act, j->y, 0, j->n_out / TERN_UNIT);
}

static void gemv_tiles(const job *j)
{
    j->kernels->gemv_tiles(j->plane, &j->act, j->y, 0, j->n_out / TERN_TILE_OUTPUTS);
}

static void gemv_channels(const job *j)
{
    j->kernels->gemv_channels(j->plane, &j->act, j->n_out, j->y, 0, j->n_in);
}

static void gemm(const job *j, tern_gemm_fn *op, size_t end)
{
    op(j->plane, j->tokens, TOKENS, j->y, j->n_out, j->n_out, 0, end);
}

static void gemm_rows_2bit(const job *j)
{
    gemm(j, j->kernels->gemm_rows[TERN_2BIT], j->n_out);
}

static void gemm_rows_base3(const job *j)
{
    gemm(j, j->kernels->gemm_rows[TERN_BASE3], j->n_out);
}

static void gemm_cols(const job *j)
{
    gemm(j, j->kernels->gemm_cols, j->n_out / TERN_UNIT);
}

static void gemm_tiles(const job *j)
{
    gemm(j, j->kernels->gemm_tiles, j->n_out / TERN_TILE_OUTPUTS);
}

static void gemm_channels(const job *j)
{
    gemm(j, j->kernels->gemm_channels, j->n_out / TERN_BLOCK3);
}

static void dot_f16(const job *j)
{
    j->kernels->dot_f16((const uint16_t *)(const void *)j->plane, j->n_out, j->n_in, j->x_f32,
                        j->y_f32);
}

static void scan(const job *j)
{
    const size_t groups = j->n_in / TERN_SCAN_GROUP;
    const tern_scan_x x = { j->act.x, j->x_f32, j->minus_zero, groups }; /* any units will do */
    const uint8_t *scales = j->plane + j->n_out / TERN_SCAN_ROWS * groups * SCAN_GROUP_BYTES;
    j->kernels->scan(j->plane, scales, j->levels, &x, j->y_f32, 0, j->n_out / TERN_SCAN_ROWS);
}

static const struct {
    const char *name;
    op_fn *run;
} ops[] = {
    { "gemv_rows_2bit", gemv_rows_2bit },
    { "gemv_rows_base3", gemv_rows_base3 },
    { "gemv_cols", gemv_cols },
    { "gemv_tiles", gemv_tiles },
    { "gemv_channels", gemv_channels },
    { "gemm_rows_2bit", gemm_rows_2bit },
    { "gemm_rows_base3", gemm_rows_base3 },
    { "gemm_cols", gemm_cols },
    { "gemm_tiles", gemm_tiles },
    { "gemm_channels", gemm_channels },
    { "dot_f16", dot_f16 },
    { "scan", scan },
};

static void *fresh(size_t bytes, int fill)
{
    void *p = aligned_alloc(TERN_LINE_BYTES, (bytes + TERN_LINE_BYTES) & ~(TERN_LINE_BYTES - 1ul));
    if (!p) exit(2);
    return memset(p, fill, bytes);
}

int main(int argc, char **argv)
{
    if (argc != 6) return fputs("usage: arm_kernels OP VARIANT N_OUT N_IN CALLS\n", stderr), 2;
    job j = { .kernels = tern_select(tern_cpu_features(), argv[2]),
              .n_out = strtoul(argv[3], NULL, 10),
              .n_in = strtoul(argv[4], NULL, 10) };
    if (!j.kernels) return fputs("arm_kernels: this CPU lacks the variant\n", stderr), 3;
    j.plane = fresh(2 * j.n_out * j.n_in, ANY_CODE);
    j.act = (tern_act){ .x = fresh(j.n_in + TERN_X_PAD, ANY_X), .n = j.n_in };
    j.x_f32 = fresh(sizeof(float) * j.n_in, 0);
    j.y_f32 = fresh(sizeof(float) * j.n_out, 0);
    j.minus_zero = fresh(sizeof(int32_t) * j.n_in, 0);
    j.y = fresh(sizeof(int32_t) * j.n_out * TOKENS, 0);
    for (int t = 0; t < TOKENS; t++) j.tokens[t] = &j.act;
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        if (strcmp(ops[i].name, argv[1]) != 0) continue;
        for (unsigned long calls = strtoul(argv[5], NULL, 10); calls; calls--) ops[i].run(&j);
        return 0;
    }
    return fputs("arm_kernels: unknown op\n", stderr), 2;
}
