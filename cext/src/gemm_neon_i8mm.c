/* gemm_neon_i8mm.c - SMMLA for strips: two outputs times two tokens times eight channels each.
 *
 * Two quads of a strip become rows of eight channels once, for all tokens.  Rows take SDOT: both of
 * their factors would have to be rearranged for every use, which costs what SMMLA saves. */
#include "gemm_neon.h"
#if defined(__aarch64__)

#define ISA __attribute__((target("arch=armv8.6-a+i8mm")))

enum {
    PAIRS = TOKENS / 2,
    EIGHTS = STRIP_OUTPUTS / 2, /* registers of two outputs, eight channels each */
};

/* [quad][16 outputs][4 channels] to [pair of quads][16 outputs][8 channels], in place. */
static void pair_quads(quad_codes *codes, size_t quads)
{
    for (size_t q = 0; q < quads; q += 2) {
        int32x4_t even[4], odd[4];
        for (int g = 0; g < 4; g++) {
            even[g] = vreinterpretq_s32_s8(vld1q_s8(codes[q] + 16 * g));
            odd[g] = vreinterpretq_s32_s8(vld1q_s8(codes[q + 1] + 16 * g));
        }
        for (int g = 0; g < 4; g++) {
            vst1q_s8(codes[q] + 32 * g, vreinterpretq_s8_s32(vzip1q_s32(even[g], odd[g])));
            vst1q_s8(codes[q] + 32 * g + 16, vreinterpretq_s8_s32(vzip2q_s32(even[g], odd[g])));
        }
    }
}

static inline int8x16_t low_halves(int8x16_t a, int8x16_t b)
{
    return vcombine_s8(vget_low_s8(a), vget_low_s8(b));
}

static inline int8x16_t high_halves(int8x16_t a, int8x16_t b)
{
    return vcombine_s8(vget_high_s8(a), vget_high_s8(b));
}

/* y of one pair of tokens: a register holds output 2 e of both tokens, then 2 e + 1. */
static void add_pair(const int32x4_t acc[EIGHTS], size_t count, int32_t *y, size_t stride)
{
    for (size_t g = 0; g < EIGHTS / 2; g++, y += 4) {
        const int32x4_t first = vuzp1q_s32(acc[2 * g], acc[2 * g + 1]);
        const int32x4_t second = vuzp2q_s32(acc[2 * g], acc[2 * g + 1]);
        vst1q_s32(y, vaddq_s32(vld1q_s32(y), first));
        if (count > 1) vst1q_s32(y + stride, vaddq_s32(vld1q_s32(y + stride), second));
    }
}

/* Two pairs of quads of one register of activations a token. */
ISA static void strip_neon_i8mm(const quad_codes *codes, size_t quads, const token_block *tokens,
                                int32_t *y, size_t stride)
{
    int32x4_t acc[PAIRS][EIGHTS];
    for (int p = 0; p < PAIRS; p++)
        for (int e = 0; e < EIGHTS; e++) acc[p][e] = vdupq_n_s32(0);
    for (size_t q = 0; q < quads; q += X_QUADS) {
        int8x16_t low[PAIRS], high[PAIRS];
        for (int p = 0; p < PAIRS; p++) {
            const int8x16_t a = vld1q_s8(tokens->x[2 * p] + QUAD * q);
            const int8x16_t b = vld1q_s8(tokens->x[2 * p + 1] + QUAD * q);
            low[p] = low_halves(a, b);
            high[p] = high_halves(a, b);
        }
        for (int e = 0; e < EIGHTS; e++) {
            const int8x16_t first = vld1q_s8(codes[q] + 16 * e);
            const int8x16_t second = vld1q_s8(codes[q + 2] + 16 * e);
            for (int p = 0; p < PAIRS; p++)
                acc[p][e] = vmmlaq_s32(vmmlaq_s32(acc[p][e], first, low[p]), second, high[p]);
        }
    }
    for (size_t p = 0; p < PAIRS && 2 * p < tokens->count; p++)
        add_pair(acc[p], tokens->count - 2 * p, y + 2 * p * stride, stride);
}

static const gemm_kernels kernels_neon_i8mm = { strip_neon_i8mm, NULL, pair_quads };

GEMM_STRIP_OPS(neon_i8mm, kernels_neon_i8mm)
#endif
