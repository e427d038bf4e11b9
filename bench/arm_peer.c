/* arm_peer.c - one dot product of llama.cpp, called row by row as its matrix-vector product does,
 * for bench/arm.py.
 *
 *       arm_peer TYPE any N_OUT N_IN CALLS
 *
 * Linked with ggml-cpu/arch/arm/quants.c alone; what that file needs besides is below, unused. */
#include "quants.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

float ggml_table_f32_ue4m3[1 << 7];
void quantize_row_q8_K_ref(const float *x, block_q8_K *y, int64_t k);
void quantize_row_q8_K_ref(const float *x, block_q8_K *y, int64_t k)
{
    (void)x, (void)y, (void)k;
    abort();
}

typedef void dot_fn(int n, float *s, size_t bs, const void *x, size_t bx, const void *y, size_t by,
                    int nrc);

static const struct {
    const char *name;
    dot_fn *dot;
    size_t block, bytes; /* weights of a block, and its size */
} types[] = {
    { "tq2_0", ggml_vec_dot_tq2_0_q8_K, QK_K, sizeof(block_tq2_0) },
    { "tq1_0", ggml_vec_dot_tq1_0_q8_K, QK_K, sizeof(block_tq1_0) },
    { "q8_0", ggml_vec_dot_q8_0_q8_0, QK8_0, sizeof(block_q8_0) },
    { "q6_K", ggml_vec_dot_q6_K_q8_K, QK_K, sizeof(block_q6_K) },
};

static void *zeros(size_t bytes)
{
    void *p = calloc(1, bytes);
    if (!p) exit(2);
    return p;
}

int main(int argc, char **argv)
{
    if (argc != 6) return fputs("usage: arm_peer TYPE any N_OUT N_IN CALLS\n", stderr), 2;
    const size_t n_out = strtoul(argv[3], NULL, 10), n_in = strtoul(argv[4], NULL, 10);
    float *y = zeros(sizeof(float) * n_out);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].name, argv[1]) != 0) continue;
        const size_t row = n_in / types[i].block * types[i].bytes;
        const char *plane = zeros(n_out * row);
        const void *x = zeros(n_in / QK8_0 * sizeof(block_q8_K)); /* enough for either kind */
        for (unsigned long calls = strtoul(argv[5], NULL, 10); calls; calls--)
            for (size_t r = 0; r < n_out; r++)
                types[i].dot((int)n_in, y + r, 0, plane + r * row, 0, x, 0, 1);
        return 0;
    }
    return fputs("arm_peer: unknown type\n", stderr), 2;
}
