/* gemm_neon.c - GEMM for AArch64: the ops of every variant, and the kernels of the baseline.
 *
 * The baseline sums int8 products in int16 lanes, so the scratch is as long as these can hold. */
#include "gemm_neon.h"
#include "base3_neon.h"
#if defined(__aarch64__)

enum {
    FIELDS_2BIT = 4,
    PRODUCT_MAX = 2 * TERN_X_MAX,
};
_Static_assert(STRIP_QUADS * PRODUCT_MAX <= INT16_MAX, "strip: int16 lane would overflow");
_Static_assert(ROW_CHANNELS / 8 * PRODUCT_MAX <= INT16_MAX, "rows: int16 lane would overflow");

typedef struct strip {
    quad_codes code[STRIP_FIELDS][STRIP_QUADS];
} strip;

/* ---- tokens ---- */

static token_block tokens_of(const gemm_job *job, size_t first, size_t k)
{
    token_block block = { .count = min_size(job->n_tokens - first, TOKENS) };
    for (size_t t = 0; t < TOKENS; t++)
        block.x[t] = job->a[first + min_size(t, block.count - 1)]->x + k;
    return block;
}

/* Outputs [o, o + n) before the first product: codes are trits + 1. */
static void begin_outputs(const gemm_job *job, size_t o, size_t n)
{
    for (size_t t = 0; t < job->n_tokens; t++)
        for (size_t i = 0; i < n; i++) job->y[t * job->stride + o + i] = -job->a[t]->sum;
}

/* ---- codes ---- */

static inline int8x16_t field_of(uint8x16_t v, uint8x16_t mask)
{
    return vreinterpretq_s8_u8(vandq_u8(v, mask));
}

/* Sixteen bytes of codes, by field; returns how many fields there are. */
static inline int decode(tern_packing packing, const tables *t, uint8x16_t v,
                         int8x16_t code[STRIP_FIELDS])
{
    const uint8x16_t three = vdupq_n_u8(3);
    if (packing == TERN_2BIT) {
        code[0] = field_of(v, three);
        code[1] = field_of(vshrq_n_u8(v, 2), three);
        code[2] = field_of(vshrq_n_u8(v, 4), three);
        code[3] = vreinterpretq_s8_u8(vshrq_n_u8(v, 6));
        return FIELDS_2BIT;
    }
    const uint8x16_t b = div_27(t, v), p = vqtbl2q_u8(t->codes, mod_27(v, b));
    code[0] = field_of(p, three);
    code[1] = field_of(vshrq_n_u8(p, 2), three);
    code[2] = vreinterpretq_s8_u8(vshrq_n_u8(p, 4));
    code[3] = vreinterpretq_s8_u8(vqtbl1q_u8(t->c3, b));
    code[4] = vreinterpretq_s8_u8(vqtbl1q_u8(t->c4, b));
    return FIELDS;
}

/* ---- strips ---- */

/* A quad of a strip, from its bytes with four channels side by side. */
static inline void put_quad(strip *out, tern_packing packing, const tables *t, size_t quad,
                            const uint8x16_t bytes[4])
{
    for (size_t g = 0; g < 4; g++) {
        int8x16_t code[STRIP_FIELDS];
        const int fields = decode(packing, t, bytes[g], code);
        for (int f = 0; f < fields; f++) vst1q_s8(out->code[f][quad] + 16 * g, code[f]);
    }
}

/* Zero quads up to a multiple of X_QUADS; returns it. */
static size_t fill_up(strip *out, size_t quads)
{
    const size_t whole = (quads + X_QUADS - 1) / X_QUADS * X_QUADS;
    for (int f = 0; f < STRIP_FIELDS; f++)
        memset(out->code[f][quads], 0, (whole - quads) * QUAD_BYTES);
    return whole;
}

static void multiply(const gemm_job *job, strip *codes, size_t quads, tern_packing packing,
                     size_t k, size_t o, size_t field_stride)
{
    const size_t fields = packing == TERN_BASE3 ? FIELDS : FIELDS_2BIT;
    if (job->kernels->prepare)
        for (size_t f = 0; f < fields; f++) job->kernels->prepare(codes->code[f], quads);
    for (size_t first = 0; first < job->n_tokens; first += TOKENS) {
        const token_block tokens = tokens_of(job, first, k);
        int32_t *y = job->y + first * job->stride + o;
        for (size_t f = 0; f < fields; f++)
            job->kernels->strip(codes->code[f], quads, &tokens, y + f * field_stride, job->stride);
    }
}

void gemm_tiles_of(const gemm_job *job, size_t begin, size_t end)
{
    const tables t = load_tables();
    const size_t tiles = (job->a[0]->n + TERN_TILE_CHANNELS - 1) / TERN_TILE_CHANNELS;
    for (size_t p = begin; p < end; p++) {
        const uint8_t *panel = job->plane + p * tiles * TERN_LINE_BYTES;
        begin_outputs(job, p * TERN_TILE_OUTPUTS, TERN_TILE_OUTPUTS);
        for (size_t q = 0; q < tiles; q += STRIP_QUADS) {
            const size_t quads = min_size(tiles - q, STRIP_QUADS);
            strip codes;
            for (size_t i = 0; i < quads; i++) {
                const uint8_t *tile = panel + (q + i) * TERN_LINE_BYTES;
                const uint8x16_t bytes[4] = { vld1q_u8(tile), vld1q_u8(tile + 16),
                                              vld1q_u8(tile + 32), vld1q_u8(tile + 48) };
                put_quad(&codes, TERN_BASE3, &t, i, bytes);
            }
            multiply(job, &codes, fill_up(&codes, quads), TERN_BASE3, q * QUAD,
                     p * TERN_TILE_OUTPUTS, STRIP_OUTPUTS);
        }
    }
}

/* Sixteen bytes of every channel, which lie `channel_bytes` apart. */
static inline __attribute__((always_inline)) void
multiply_column(const gemm_job *job, tern_packing packing, const uint8_t *column,
                size_t channel_bytes, size_t o, size_t field_stride)
{
    const tables t = load_tables();
    const size_t n = job->a[0]->n;
    for (size_t k = 0; k < n; k += STRIP_QUADS * QUAD) {
        const size_t quads = min_size((n - k + QUAD - 1) / QUAD, STRIP_QUADS);
        strip codes;
        for (size_t i = 0; i < quads; i++) {
            const uint8_t *line[QUAD]; /* missing ones are the last again, times 0 */
            uint8x16_t bytes[4];
            for (size_t j = 0; j < QUAD; j++)
                line[j] = column + min_size(k + QUAD * i + j, n - 1) * channel_bytes;
            interleave(line, bytes);
            put_quad(&codes, packing, &t, i, bytes);
        }
        multiply(job, &codes, fill_up(&codes, quads), packing, k, o, field_stride);
    }
}

void gemm_cols_of(const gemm_job *job, size_t begin, size_t end)
{
    for (size_t u = begin; u < end; u++) {
        const uint8_t *block = job->plane + u / 2 * job->a[0]->n * TERN_LINE_BYTES +
                               u % 2 * TERN_BLOCK_BYTES;
        begin_outputs(job, u * TERN_UNIT, TERN_UNIT);
        for (size_t at = 0; at < TERN_BLOCK_BYTES; at += STRIP_OUTPUTS)
            multiply_column(job, TERN_2BIT, block + at, TERN_LINE_BYTES, u * TERN_UNIT + at,
                            TERN_BLOCK_BYTES);
    }
}

void gemm_channels_of(const gemm_job *job, size_t begin, size_t end)
{
    const size_t bytes = tern_row_bytes(TERN_BASE3, job->n_out);
    for (size_t b = begin; b < end; b++) {
        begin_outputs(job, b * TERN_BLOCK3, TERN_BLOCK3);
        for (size_t at = 0; at < TERN_BLOCK3_BYTES; at += STRIP_OUTPUTS)
            multiply_column(job, TERN_BASE3, job->plane + b * TERN_BLOCK3_BYTES + at, bytes,
                            b * TERN_BLOCK3 + at, TERN_BLOCK3_BYTES);
    }
}

/* ---- rows ---- */

/* Codes of `n_bytes` bytes of one row. */
static inline __attribute__((always_inline)) void
decode_row(tern_packing packing, const tables *t, const uint8_t *row, size_t n_bytes, int8_t *out)
{
    const size_t block_bytes = packing == TERN_BASE3 ? TERN_BLOCK3_BYTES : TERN_BLOCK_BYTES;
    const size_t block = packing == TERN_BASE3 ? TERN_BLOCK3 : TERN_BLOCK;
    for (size_t at = 0; at < n_bytes; at += 16) {
        int8_t *to = out + at / block_bytes * block + at % block_bytes;
        int8x16_t code[STRIP_FIELDS];
        const int fields = decode(packing, t, vld1q_u8(row + at), code);
        for (int f = 0; f < fields; f++) vst1q_s8(to + (size_t)f * block_bytes, code[f]);
    }
}

static void decode_rows(tern_packing packing, const uint8_t *const row[GEMM_ROWS], size_t at,
                        size_t n_bytes, int8_t codes[GEMM_ROWS][ROW_CHANNELS])
{
    const tables t = load_tables();
    for (int r = 0; r < GEMM_ROWS; r++) {
        if (packing == TERN_BASE3)
            decode_row(TERN_BASE3, &t, row[r] + at, n_bytes, codes[r]);
        else
            decode_row(TERN_2BIT, &t, row[r] + at, n_bytes, codes[r]);
    }
}

/* Rows [r, r + count) into `sums`, which has GEMM_ROWS of them a token. */
static void multiply_rows(const gemm_job *job, tern_packing packing, size_t r, size_t count,
                          int32_t *sums)
{
    const size_t row_bytes = tern_row_bytes(packing, job->a[0]->n);
    const size_t step = tern_row_bytes(packing, ROW_CHANNELS);
    const uint8_t *row[GEMM_ROWS]; /* missing ones are the last again, and unwanted */
    for (size_t j = 0; j < GEMM_ROWS; j++)
        row[j] = job->plane + (r + min_size(j, count - 1)) * row_bytes;
    for (size_t at = 0; at < row_bytes; at += step) {
        int8_t codes[GEMM_ROWS][ROW_CHANNELS];
        const size_t n_bytes = min_size(row_bytes - at, step);
        const size_t n = n_bytes * (packing == TERN_BASE3 ? FIELDS : FIELDS_2BIT);
        decode_rows(packing, row, at, n_bytes, codes);
        for (size_t first = 0; first < job->n_tokens; first += TOKENS) {
            const token_block tokens = tokens_of(job, first, at / step * ROW_CHANNELS);
            job->kernels->rows(codes, n, &tokens, sums + first * GEMM_ROWS, GEMM_ROWS);
        }
    }
}

/* Blocks of tokens, so that their sums have a place on the stack. */
enum { ROW_TOKENS = 16 };
_Static_assert(ROW_TOKENS % TOKENS == 0, "calls of a kernel are whole");

static void some_tokens(const gemm_job *job, tern_packing packing, size_t begin, size_t end)
{
    for (size_t r = begin; r < end; r += GEMM_ROWS) {
        const size_t count = min_size(end - r, GEMM_ROWS);
        int32_t sums[ROW_TOKENS * GEMM_ROWS];
        for (size_t t = 0; t < job->n_tokens; t++)
            for (size_t j = 0; j < GEMM_ROWS; j++) sums[t * GEMM_ROWS + j] = -job->a[t]->sum;
        multiply_rows(job, packing, r, count, sums);
        for (size_t t = 0; t < job->n_tokens; t++)
            memcpy(job->y + t * job->stride + r, sums + t * GEMM_ROWS, count * sizeof *sums);
    }
}

void gemm_rows_of(const gemm_job *job, tern_packing packing, size_t begin, size_t end)
{
    for (size_t first = 0; first < job->n_tokens; first += ROW_TOKENS) {
        gemm_job part = *job;
        part.a += first;
        part.y += first * job->stride;
        part.n_tokens = min_size(job->n_tokens - first, ROW_TOKENS);
        some_tokens(&part, packing, begin, end);
    }
}

/* ---- the kernels of the baseline ---- */

/* Products of four channels of four outputs, two outputs a register, and of two tokens. */
enum { PAIR = 2 };

static inline void add_sums(const int16x8_t acc[4][2], int32_t *y)
{
    for (int g = 0; g < 4; g++, y += 4) {
        const int32x4_t low = vpaddlq_s16(acc[g][0]), high = vpaddlq_s16(acc[g][1]);
        vst1q_s32(y, vaddq_s32(vld1q_s32(y), vpaddq_s32(low, high)));
    }
}

static void strip_pair(const quad_codes *codes, size_t quads, const int8_t *const x[PAIR],
                       int16x8_t acc[PAIR][4][2])
{
    int16x8_t sum[PAIR][4][2];
    for (int t = 0; t < PAIR; t++)
        for (int g = 0; g < 4; g++) sum[t][g][0] = sum[t][g][1] = vdupq_n_s16(0);
    for (size_t q = 0; q < quads; q++) {
        const int8x16_t x0 = broadcast(x[0] + QUAD * q), x1 = broadcast(x[1] + QUAD * q);
        for (int g = 0; g < 4; g++) {
            const int8x16_t code = vld1q_s8(codes[q] + 16 * g);
            sum[0][g][0] = vmlal_s8(sum[0][g][0], vget_low_s8(code), vget_low_s8(x0));
            sum[0][g][1] = vmlal_high_s8(sum[0][g][1], code, x0);
            sum[1][g][0] = vmlal_s8(sum[1][g][0], vget_low_s8(code), vget_low_s8(x1));
            sum[1][g][1] = vmlal_high_s8(sum[1][g][1], code, x1);
        }
    }
    memcpy(acc, sum, sizeof sum);
}

static void strip_neon(const quad_codes *codes, size_t quads, const token_block *tokens, int32_t *y,
                       size_t stride)
{
    for (size_t t = 0; t < tokens->count; t += PAIR) {
        int16x8_t acc[PAIR][4][2];
        strip_pair(codes, quads, tokens->x + t, acc);
        add_sums(acc[0], y + t * stride);
        if (t + 1 < tokens->count) add_sums(acc[1], y + (t + 1) * stride);
    }
}

static void rows_neon(const int8_t codes[GEMM_ROWS][ROW_CHANNELS], size_t n,
                      const token_block *tokens, int32_t *y, size_t stride)
{
    int16x8_t acc[TOKENS][GEMM_ROWS];
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < GEMM_ROWS; r++) acc[t][r] = vdupq_n_s16(0);
    for (size_t k = 0; k < n; k += 16) {
        int8x16_t code[GEMM_ROWS];
        for (int r = 0; r < GEMM_ROWS; r++) code[r] = vld1q_s8(codes[r] + k);
        for (int t = 0; t < TOKENS; t++) {
            const int8x16_t x = vld1q_s8(tokens->x[t] + k);
            for (int r = 0; r < GEMM_ROWS; r++) {
                acc[t][r] = vmlal_s8(acc[t][r], vget_low_s8(code[r]), vget_low_s8(x));
                acc[t][r] = vmlal_high_s8(acc[t][r], code[r], x);
            }
        }
    }
    for (size_t t = 0; t < tokens->count; t++)
        for (size_t r = 0; r < GEMM_ROWS; r++) y[t * stride + r] += vaddlvq_s16(acc[t][r]);
}

static const gemm_kernels kernels_neon = { strip_neon, rows_neon, NULL };

GEMM_STRIP_OPS(neon, kernels_neon)
GEMM_ROW_OPS(neon)
#endif
