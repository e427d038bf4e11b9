/* neon_dotprod.c - SDOT: four products into an int32 lane (Cortex-A76, A78: Raspberry Pi 5, Orin).
 *
 * A code is not shifted down to bit 0: SDOT takes it where it lies, and the sum of field s is
 * 4^s times too large, which one shift at the end corrects.  Only the field at bit 6 is shifted
 * first, since 2 << 6 is no int8.
 * Output-major: 16 codes against 16 activations, two rows at a time.
 * Input-major: the bytes of four lines are interleaved, so that an int32 lane is an output. */
#include "neon.h"
#if defined(__aarch64__)

#define ISA __attribute__((target("arch=armv8.2-a+dotprod")))

enum {
    FIELDS = 4,              /* codes of a byte */
    SCALE_MAX = 16,          /* of the sum of a field */
    LANE_SHARE = FIELDS * 4, /* rows: a lane of a field's sum sees one input in so many */
    COLUMN = 16,             /* bytes of a line in one pass: its sums are 16 registers */
    CHUNK_LINES = 256,       /* lines that are passed over column by column: 16 KiB, half of L1 */
};
_Static_assert((long long)SCALE_MAX * 2 * TERN_X_MAX * (TERN_IN_MAX / LANE_SHARE) <= INT32_MAX,
               "rows: int32 lane would overflow");
_Static_assert((long long)SCALE_MAX * 2 * TERN_X_MAX * CHUNK_LINES <= INT32_MAX,
               "cols: int32 lane would overflow");

/* acc[s] += codes of field s times x[s], 4^s times too large but for the last. */
ISA static inline void add_fields(int32x4_t acc[FIELDS], uint8x16_t packed,
                                  const int8x16_t x[FIELDS])
{
    const int8x16_t codes = vreinterpretq_s8_u8(packed);
    acc[0] = vdotq_s32(acc[0], vandq_s8(codes, vdupq_n_s8(0x03)), x[0]);
    acc[1] = vdotq_s32(acc[1], vandq_s8(codes, vdupq_n_s8(0x0c)), x[1]);
    acc[2] = vdotq_s32(acc[2], vandq_s8(codes, vdupq_n_s8(0x30)), x[2]);
    acc[3] = vdotq_s32(acc[3], vreinterpretq_s8_u8(vshrq_n_u8(packed, 6)), x[3]);
}

/* ---- output-major ---- */

ISA static inline int32_t sum_fields(const int32x4_t acc[FIELDS])
{
    const int32x4_t low = vsraq_n_s32(acc[0], acc[1], 2);
    return vaddvq_s32(vaddq_s32(vsraq_n_s32(low, acc[2], 4), acc[3]));
}

ISA static inline __attribute__((always_inline)) void
row_dots(const uint8_t *const row[], size_t count, const tern_act *a, int32_t sum[])
{
    const size_t blocks = (a->n + TERN_BLOCK - 1) / TERN_BLOCK;
    int32x4_t acc[ROWS][FIELDS];
    for (size_t r = 0; r < count; r++)
        for (int s = 0; s < FIELDS; s++) acc[r][s] = vdupq_n_s32(0);
    for (size_t b = 0; b < blocks; b++) {
        for (size_t half = 0; half < TERN_BLOCK_BYTES; half += 16) {
            const int8_t *x = a->x + b * TERN_BLOCK + half;
            const int8x16_t fields[FIELDS] = { vld1q_s8(x), vld1q_s8(x + 32), vld1q_s8(x + 64),
                                               vld1q_s8(x + 96) };
            for (size_t r = 0; r < count; r++)
                add_fields(acc[r], vld1q_u8(row[r] + b * TERN_BLOCK_BYTES + half), fields);
        }
    }
    for (size_t r = 0; r < count; r++) sum[r] = sum_fields(acc[r]);
}

ISA void gemv_rows_neon_dotprod(const uint8_t *plane, const tern_act *a, int32_t *y,
                                       const uint32_t *rows, size_t begin, size_t end)
{
    const size_t row_bytes = (a->n + TERN_BLOCK - 1) / TERN_BLOCK * TERN_BLOCK_BYTES;
    for (size_t i = begin; i < end; i += ROWS) {
        const size_t count = end - i < ROWS ? end - i : ROWS;
        size_t r[ROWS] = { 0 };
        const uint8_t *row[ROWS];
        int32_t sum[ROWS];
        for (size_t j = 0; j < count; j++) r[j] = rows ? rows[i + j] : i + j;
        for (size_t j = 0; j < count; j++) row[j] = plane + r[j] * row_bytes;
        if (count == ROWS)
            row_dots(row, ROWS, a, sum);
        else
            row_dots(row, 1, a, sum);
        for (size_t j = 0; j < count; j++) y[r[j]] = sum[j] - a->sum;
    }
}

/* ---- input-major ---- */

/* Sums of one column: lane[4 g + s] holds field s of its bytes 4 g .. 4 g + 3. */
typedef struct column_i32 {
    int32x4_t lane[16];
} column_i32;

ISA static inline void add_quad(column_i32 *acc, const uint8_t *const line[QUAD], int8x16_t x)
{
    const int8x16_t fields[FIELDS] = { x, x, x, x };
    uint8x16_t packed[4];
    interleave(line, packed);
    for (int g = 0; g < 4; g++) add_fields(acc->lane + FIELDS * g, packed[g], fields);
}

/* y of output 32 s + 4 g; the right shift is exact. */
ISA static inline void add_column(const column_i32 *acc, int32_t *y)
{
    for (int g = 0; g < 4; g++, y += 4) {
        const int32x4_t *lane = acc->lane + FIELDS * g;
        vst1q_s32(y, vaddq_s32(vld1q_s32(y), lane[0]));
        vst1q_s32(y + 32, vsraq_n_s32(vld1q_s32(y + 32), lane[1], 2));
        vst1q_s32(y + 64, vsraq_n_s32(vld1q_s32(y + 64), lane[2], 4));
        vst1q_s32(y + 96, vaddq_s32(vld1q_s32(y + 96), lane[3]));
    }
}

/* The last one to three channels: the missing ones are the last again, times 0. */
ISA static inline void add_rest(column_i32 *acc, const uint8_t *column, const channels *c, size_t i,
                                size_t stop)
{
    const uint8_t *line[QUAD];
    for (size_t j = 0; j < QUAD; j++)
        line[j] = column + channel_at(c, i + j < stop ? i + j : stop - 1) * TERN_LINE_BYTES;
    add_quad(acc, line, broadcast_some(c->x + i, stop - i));
}

/* Channels [i, stop) of one column.  `listed` and `ahead` are constants where it is inlined. */
ISA static inline __attribute__((always_inline)) void
pass(const uint8_t *column, const channels *c, size_t i, size_t stop, bool listed, bool ahead,
     int32_t *y)
{
    column_i32 acc;
    for (int j = 0; j < 16; j++) acc.lane[j] = vdupq_n_s32(0);
    for (; i + QUAD <= stop; i += QUAD) {
        const uint8_t *line[QUAD];
        for (size_t j = 0; j < QUAD; j++)
            line[j] = column + (listed ? c->live[i + j] : i + j) * TERN_LINE_BYTES;
        if (ahead) prefetch_quad(column, c, i, listed);
        add_quad(&acc, line, broadcast(c->x + i));
    }
    if (i < stop) add_rest(&acc, column, c, i, stop);
    add_column(&acc, y);
}

ISA static void chunk(const uint8_t *column, const channels *c, size_t i, size_t stop, bool ahead,
                      int32_t *y)
{
    if (c->live && ahead)
        pass(column, c, i, stop, true, true, y);
    else if (c->live)
        pass(column, c, i, stop, true, false, y);
    else if (ahead)
        pass(column, c, i, stop, false, true, y);
    else
        pass(column, c, i, stop, false, false, y);
}

/* Units [u, u_end) of one panel, chunk by chunk, so that all columns of a line are used while it is
 * in the cache and memory sees one sequential stream. */
ISA static void panel(const uint8_t *lines, const tern_act *a, int32_t *y, size_t u, size_t u_end)
{
    const channels c = channels_of(a);
    const size_t first = u * TERN_BLOCK_BYTES, end = u_end * TERN_BLOCK_BYTES;
    for (size_t o = u * TERN_UNIT; o < u_end * TERN_UNIT; o++) y[o] = -a->sum;
    for (size_t i = 0; i < c.count; i += CHUNK_LINES) {
        const size_t stop = i + CHUNK_LINES < c.count ? i + CHUNK_LINES : c.count;
        for (size_t at = first; at < end; at += COLUMN)
            chunk(lines + at, &c, i, stop, at == first,
                  y + at / TERN_BLOCK_BYTES * TERN_UNIT + at % TERN_BLOCK_BYTES);
    }
}

ISA void gemv_cols_neon_dotprod(const uint8_t *plane, const tern_act *a, int32_t *y,
                                       size_t begin, size_t end)
{
    for (size_t p = begin / 2; 2 * p < end; p++) {
        const size_t u = begin > 2 * p ? 1 : 0, u_end = end < 2 * p + 2 ? 1 : 2;
        panel(plane + p * a->n * TERN_LINE_BYTES, a, y + p * TERN_PANEL, u, u_end);
    }
}

const tern_kernels tern_neon_dotprod = {
    .name = "neon_dotprod",
    .needs = TERN_CPU_NEON | TERN_CPU_DOTPROD,
    .gemv_rows = { gemv_rows_neon_dotprod, gemv_rows_base3_neon_dotprod },
    .gemv_cols = gemv_cols_neon_dotprod,
    .gemv_tiles = gemv_tiles_neon_dotprod,
    .gemv_channels = gemv_channels_neon_dotprod,
    .gemm_rows = { gemm_rows_2bit_neon_dotprod, gemm_rows_base3_neon_dotprod },
    .gemm_cols = gemm_cols_neon_dotprod,
    .gemm_tiles = gemm_tiles_neon_dotprod,
    .gemm_channels = gemm_channels_neon_dotprod,
    .dot_f16 = dot_f16_neon,
    .dot_f32 = dot_f32_neon,
    .mix_f32 = mix_f32_neon,
    .kv = &tern_kv_neon,
    .scan = head_scan_neon_dotprod,
    .refine = head_refine_neon_dotprod,
};
#endif
