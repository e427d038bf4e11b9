/* gemm_neon_dotprod.c - the kernels of gemm_neon.h with SDOT: sixteen sums, four tokens. */
#include "gemm_neon.h"
#if defined(__aarch64__)

#define ISA __attribute__((target("arch=armv8.2-a+dotprod")))

/* Four quads of one register of activations a token. */
ISA static void strip_neon_dotprod(const quad_codes *codes, size_t quads, const token_block *tokens,
                                   int32_t *y, size_t stride)
{
    int32x4_t acc[TOKENS][4];
    for (int t = 0; t < TOKENS; t++)
        for (int g = 0; g < 4; g++) acc[t][g] = vdupq_n_s32(0);
    for (size_t q = 0; q < quads; q += X_QUADS) {
        int8x16_t x[TOKENS];
        for (int t = 0; t < TOKENS; t++) x[t] = vld1q_s8(tokens->x[t] + QUAD * q);
        for (int g = 0; g < 4; g++) {
            const int8x16_t code[X_QUADS] = {
                vld1q_s8(codes[q] + 16 * g), vld1q_s8(codes[q + 1] + 16 * g),
                vld1q_s8(codes[q + 2] + 16 * g), vld1q_s8(codes[q + 3] + 16 * g)
            };
            for (int t = 0; t < TOKENS; t++) {
                acc[t][g] = vdotq_laneq_s32(acc[t][g], code[0], x[t], 0);
                acc[t][g] = vdotq_laneq_s32(acc[t][g], code[1], x[t], 1);
                acc[t][g] = vdotq_laneq_s32(acc[t][g], code[2], x[t], 2);
                acc[t][g] = vdotq_laneq_s32(acc[t][g], code[3], x[t], 3);
            }
        }
    }
    for (size_t t = 0; t < tokens->count; t++)
        for (size_t g = 0; g < 4; g++) {
            int32_t *to = y + t * stride + 4 * g;
            vst1q_s32(to, vaddq_s32(vld1q_s32(to), acc[t][g]));
        }
}

ISA static void rows_neon_dotprod(const int8_t codes[GEMM_ROWS][ROW_CHANNELS], size_t n,
                                  const token_block *tokens, int32_t *y, size_t stride)
{
    int32x4_t acc[TOKENS][GEMM_ROWS];
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < GEMM_ROWS; r++) acc[t][r] = vdupq_n_s32(0);
    for (size_t k = 0; k < n; k += 16) {
        int8x16_t code[GEMM_ROWS];
        for (int r = 0; r < GEMM_ROWS; r++) code[r] = vld1q_s8(codes[r] + k);
        for (int t = 0; t < TOKENS; t++) {
            const int8x16_t x = vld1q_s8(tokens->x[t] + k);
            for (int r = 0; r < GEMM_ROWS; r++) acc[t][r] = vdotq_s32(acc[t][r], code[r], x);
        }
    }
    for (size_t t = 0; t < tokens->count; t++)
        for (size_t r = 0; r < GEMM_ROWS; r++) y[t * stride + r] += vaddvq_s32(acc[t][r]);
}

static const gemm_kernels kernels_neon_dotprod = { strip_neon_dotprod, rows_neon_dotprod, NULL };

GEMM_STRIP_OPS(neon_dotprod, kernels_neon_dotprod)
GEMM_ROW_OPS(neon_dotprod)
#endif
