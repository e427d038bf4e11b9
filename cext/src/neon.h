/* neon.h - private: what the AArch64 variants share. */
#ifndef NEON_H
#define NEON_H

#include "variants.h"
#if defined(__aarch64__)
#include <arm_neon.h>
#include <stdbool.h>
#include <string.h>

/* The float ops need nothing that a later core has. */
tern_dot_f16_fn dot_f16_neon;
tern_dot_f32_fn dot_f32_neon;
tern_mix_f32_fn mix_f32_neon;

/* Base 3, in files of their own. */
tern_gemv_rows_fn gemv_rows_base3_neon;
tern_gemv_tiles_fn gemv_tiles_neon;
tern_gemv_channels_fn gemv_channels_neon;
tern_gemv_rows_fn gemv_rows_neon_dotprod, gemv_rows_base3_neon_dotprod;
tern_gemv_cols_fn gemv_cols_neon_dotprod;
tern_gemv_tiles_fn gemv_tiles_neon_dotprod;
tern_gemv_channels_fn gemv_channels_neon_dotprod;

tern_scan_fn head_scan_neon_dotprod;
tern_refine_fn head_refine_neon_dotprod;

tern_gemm_fn gemm_rows_2bit_neon, gemm_rows_base3_neon, gemm_cols_neon, gemm_tiles_neon;
tern_gemm_fn gemm_channels_neon;
tern_gemm_fn gemm_rows_2bit_neon_dotprod, gemm_rows_base3_neon_dotprod, gemm_cols_neon_dotprod;
tern_gemm_fn gemm_tiles_neon_dotprod, gemm_channels_neon_dotprod;
tern_gemm_fn gemm_cols_neon_i8mm, gemm_tiles_neon_i8mm, gemm_channels_neon_i8mm;

enum {
    QUAD = 4,   /* channels that one SDOT sums */
    ROWS = 2,   /* rows that share the loads of the activations */
    BATCH = 64, /* channels between two additions to y */
};

static inline size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The channels that an input-major op visits: those of the list, or all. */
typedef struct channels {
    const uint32_t *live; /* (count,) or NULL */
    const int8_t *x;      /* (count,) in the order of the list */
    size_t count;
} channels;

static inline channels channels_of(const tern_act *a)
{
    return a->live ? (channels){ a->live, a->live_x, a->n_live } : (channels){ NULL, a->x, a->n };
}

static inline size_t channel_at(const channels *c, size_t i)
{
    return c->live ? c->live[i] : i;
}

/* Some of the channels, in whole quads: the missing ones are the last again, times 0. */
typedef struct batch {
    const uint8_t *line[BATCH];
    int8_t x[BATCH];
    size_t count;
} batch;

static inline void collect(batch *out, const uint8_t *plane, size_t channel_bytes,
                           const channels *c, size_t i, size_t stop)
{
    out->count = (stop - i + QUAD - 1) / QUAD * QUAD;
    for (size_t j = 0; j < out->count; j++) {
        const size_t at = i + j < stop ? i + j : stop - 1;
        out->line[j] = plane + channel_at(c, at) * channel_bytes;
        out->x[j] = i + j < stop ? c->x[at] : 0;
    }
}

static inline void prefetch_batch(const batch *next, size_t at)
{
    for (size_t i = 0; i < next->count; i++)
        __builtin_prefetch((const void *)((uintptr_t)next->line[i] + at));
}

/* Adds the share of some bytes, `at` onwards, of every channel of the batch to y. */
typedef void column_fn(const batch *in, size_t at, int32_t *y);

/* gemv_channels: batch by batch, `step` bytes of all its channels at a time; the lines of the next
 * batch are on their way meanwhile.  Inlined with `column`: only then do its sums stay in
 * registers. */
static inline __attribute__((always_inline)) void
walk_channels(const uint8_t *plane, const tern_act *a, size_t n_out, int32_t *y, size_t begin,
              size_t end, column_fn *column, size_t step)
{
    const size_t bytes = tern_row_bytes(TERN_BASE3, n_out);
    const size_t outputs = bytes / TERN_BLOCK3_BYTES * TERN_BLOCK3;
    const channels c = channels_of(a);
    int32_t sum = 0;
    for (size_t i = begin; i < end; i++) sum += c.x[i];
    for (size_t o = 0; o < outputs; o++) y[o] = -sum;
    batch batches[2];
    collect(&batches[0], plane, bytes, &c, begin, min_size(begin + BATCH, end));
    for (size_t i = begin, n = 0; i < end; i += BATCH, n ^= 1) {
        const size_t next = min_size(i + BATCH, end);
        collect(&batches[n ^ 1], plane, bytes, &c, next, min_size(next + BATCH, end));
        for (size_t at = 0; at < bytes; at += step) {
            if (at % TERN_LINE_BYTES == 0) prefetch_batch(&batches[n ^ 1], at);
            column(&batches[n], at,
                   y + at / TERN_BLOCK3_BYTES * TERN_BLOCK3 + at % TERN_BLOCK3_BYTES);
        }
    }
}

/* Ask for the four lines that come PREFETCH_LINES after the i-th. */
static inline void prefetch_quad(const uint8_t *lines, const channels *c, size_t i, bool listed)
{
    const size_t next = i + PREFETCH_LINES;
    if (listed && next + 4 > c->count) return;
    for (size_t j = next; j < next + 4; j++) prefetch_line(lines, listed ? c->live[j] : j);
}

/* Bytes 0, 1, .. of the four lines in turn: four bytes of one output side by side. */
static inline void interleave(const uint8_t *const line[QUAD], uint8x16_t out[4])
{
    const uint8x16_t a = vld1q_u8(line[0]), b = vld1q_u8(line[1]);
    const uint8x16_t c = vld1q_u8(line[2]), d = vld1q_u8(line[3]);
    const uint16x8_t ab_lo = vreinterpretq_u16_u8(vzip1q_u8(a, b));
    const uint16x8_t ab_hi = vreinterpretq_u16_u8(vzip2q_u8(a, b));
    const uint16x8_t cd_lo = vreinterpretq_u16_u8(vzip1q_u8(c, d));
    const uint16x8_t cd_hi = vreinterpretq_u16_u8(vzip2q_u8(c, d));
    out[0] = vreinterpretq_u8_u16(vzip1q_u16(ab_lo, cd_lo));
    out[1] = vreinterpretq_u8_u16(vzip2q_u16(ab_lo, cd_lo));
    out[2] = vreinterpretq_u8_u16(vzip1q_u16(ab_hi, cd_hi));
    out[3] = vreinterpretq_u8_u16(vzip2q_u16(ab_hi, cd_hi));
}

/* The activations of four channels in every int32 lane. */
static inline int8x16_t broadcast(const int8_t x[QUAD])
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* The same of fewer than four; 0 for the missing ones, and nothing read beyond the others. */
static inline int8x16_t broadcast_some(const int8_t *x, size_t n)
{
    int8_t four[QUAD] = { 0 };
    for (size_t j = 0; j < n && j < QUAD; j++) four[j] = x[j];
    return broadcast(four);
}

#endif
#endif
