/* gemm_neon.h - private: GEMM with every code decoded once for all tokens.
 *
 * Codes become int8 in a scratch of some KiB, in one of two orders, which one kernel each
 * multiplies with four tokens at a time:
 *
 *   strip   up to five fields; a field is 16 outputs that lie side by side, with four channels of
 *           an output side by side:  [field][quad of channels][16 outputs][4 channels]
 *   rows    four of them:         [row][channel]
 *
 * A variant brings the two kernels; gemm_neon.c makes all ops of them. */
#ifndef GEMM_NEON_H
#define GEMM_NEON_H

#include "neon.h"
#if defined(__aarch64__)

enum {
    TOKENS = 4,         /* of one call of a kernel */
    STRIP_FIELDS = 5,   /* of base 3; 2 bit has four */
    STRIP_OUTPUTS = 16, /* of one field */
    STRIP_QUADS = 64,   /* 20 KiB of codes */
    QUAD_BYTES = STRIP_OUTPUTS * QUAD,
    X_QUADS = 4, /* in one register of activations */
    GEMM_ROWS = 4,
    ROW_CHANNELS = 640, /* a whole number of blocks of both packings */
};
_Static_assert(ROW_CHANNELS % TERN_BLOCK == 0 && ROW_CHANNELS % TERN_BLOCK3 == 0, "whole blocks");
_Static_assert(TERN_X_PAD % (X_QUADS * QUAD) == 0, "registers of activations are whole");
_Static_assert(STRIP_QUADS % X_QUADS == 0, "registers of activations are whole");

typedef int8_t quad_codes[QUAD_BYTES];

/* Activations of TOKENS tokens; where there are fewer, the last one again. */
typedef struct token_block {
    const int8_t *x[TOKENS];
    size_t count;
} token_block;

/* y[t * stride + o] += codes times activations of `quads` quads, a multiple of X_QUADS. */
typedef void strip_kernel(const quad_codes *codes, size_t quads, const token_block *tokens,
                          int32_t *y, size_t stride);

/* y[t * stride + r] += codes times activations of `n` channels, a multiple of 16. */
typedef void rows_kernel(const int8_t codes[GEMM_ROWS][ROW_CHANNELS], size_t n,
                         const token_block *tokens, int32_t *y, size_t stride);

/* Rearranges the codes of one field for the kernel, once for all tokens. */
typedef void prepare_fn(quad_codes *codes, size_t quads);

typedef struct gemm_kernels {
    strip_kernel *strip;
    rows_kernel *rows;
    prepare_fn *prepare; /* or NULL */
} gemm_kernels;

/* One GEMM of some tokens, as in ternary.h. */
typedef struct gemm_job {
    const gemm_kernels *kernels;
    const uint8_t *plane;
    const tern_act *const *a;
    size_t n_tokens;
    int32_t *y;
    size_t stride, n_out;
} gemm_job;

void gemm_rows_of(const gemm_job *job, tern_packing packing, size_t begin, size_t end);
void gemm_cols_of(const gemm_job *job, size_t begin, size_t end);
void gemm_tiles_of(const gemm_job *job, size_t begin, size_t end);
void gemm_channels_of(const gemm_job *job, size_t begin, size_t end);

/* The ops of strips of a variant that has `kernels`, and those of rows. */
#define GEMM_STRIP_OPS(variant, kernels_of_variant)                                                \
    static gemm_job job_##variant(const uint8_t *plane, const tern_act *const *a, size_t n_tokens, \
                                  int32_t *y, size_t stride, size_t n_out)                         \
    {                                                                                              \
        return (gemm_job){ &kernels_of_variant, plane, a, n_tokens, y, stride, n_out };            \
    }                                                                                              \
    GEMM_OP(variant, gemm_cols, gemm_cols_of(&job, begin, end))                                    \
    GEMM_OP(variant, gemm_tiles, gemm_tiles_of(&job, begin, end))                                  \
    GEMM_OP(variant, gemm_channels, gemm_channels_of(&job, begin, end))

#define GEMM_ROW_OPS(variant)                                                     \
    GEMM_OP(variant, gemm_rows_2bit, gemm_rows_of(&job, TERN_2BIT, begin, end)) \
    GEMM_OP(variant, gemm_rows_base3, gemm_rows_of(&job, TERN_BASE3, begin, end))

#define GEMM_OP(variant, op, call)                                                              \
    void op##_##variant(const uint8_t *plane, const tern_act *const *a, size_t n_tokens,        \
                        int32_t *y, size_t stride, size_t n_out, size_t begin, size_t end)      \
    {                                                                                           \
        const gemm_job job = job_##variant(plane, a, n_tokens, y, stride, n_out);               \
        call;                                                                                   \
    }

#endif
#endif
