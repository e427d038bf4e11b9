/* base3_neon_dotprod.c - base 3 with SDOT and the tables of base3_neon.h.
 *
 * Where all five codes of a byte meet the same activation, sums of numbers that are linear in the
 * codes do as well, and cost less to make:
 *
 *       a = c0 + 3 c1 + 9 c2     p = c0 + 4 c1 + 16 c2     p & 3 = c0     b = c3 + 3 c4     c4 */
#include "base3_neon.h"
#if defined(__aarch64__)

#define ISA __attribute__((target("arch=armv8.2-a+dotprod")))

enum {
    FIELD = 64,         /* inputs between two fields of a row's block */
    SUMS = 3,           /* rows: of codes once, four times and sixteen times too large */
    LANES = 4,          /* int32 */
    COLUMN = 16,        /* bytes that are decoded together */
    GROUPS = 2,         /* of COLUMN bytes in one pass: their sums and tables fill the registers */
    TILE_OUTPUTS = 16,  /* of one field of a tile */
    CHUNK_TILES = 128   /* tiles that are passed over in halves: 8 KiB, in L1 */
};
_Static_assert(16LL * 2 * TERN_X_MAX * TERN_IN_MAX / FIELDS / LANES <= INT32_MAX,
               "rows: int32 lane would overflow");
_Static_assert(42LL * TERN_X_MAX * TERN_IN_MAX <= INT32_MAX, "int32 lane of p would overflow");

ISA static inline int32x4_t dot(int32x4_t acc, uint8x16_t codes, int8x16_t x)
{
    return vdotq_s32(acc, vreinterpretq_s8_u8(codes), x);
}

/* ---- rows ---- */

ISA static inline void add_row(int32x4_t acc[SUMS], const tables *t, uint8x16_t v,
                               const int8x16_t x[FIELDS])
{
    const uint8x16_t b = div_27(t, v), p = vqtbl2q_u8(t->codes, mod_27(v, b));
    acc[0] = dot(acc[0], vandq_u8(p, vdupq_n_u8(0x03)), x[0]);
    acc[1] = dot(acc[1], vandq_u8(p, vdupq_n_u8(0x0c)), x[1]);
    acc[2] = dot(acc[2], vandq_u8(p, vdupq_n_u8(0x30)), x[2]);
    acc[0] = dot(acc[0], vqtbl1q_u8(t->c3, b), x[3]);
    acc[0] = dot(acc[0], vqtbl1q_u8(t->c4, b), x[4]);
}

/* `count` rows, a constant, share the loads of the activations. */
ISA static inline __attribute__((always_inline)) void
row_dots(const uint8_t *const row[], size_t count, const tern_act *a, int32_t sum[])
{
    const tables t = load_tables();
    const size_t bytes = tern_row_bytes(TERN_BASE3, a->n);
    int32x4_t acc[ROWS][SUMS];
    for (size_t r = 0; r < count; r++)
        for (int s = 0; s < SUMS; s++) acc[r][s] = vdupq_n_s32(0);
    for (size_t at = 0; at < bytes; at += COLUMN) {
        const int8_t *x = a->x + at / TERN_BLOCK3_BYTES * TERN_BLOCK3 + at % TERN_BLOCK3_BYTES;
        int8x16_t fields[FIELDS];
        for (int f = 0; f < FIELDS; f++) fields[f] = vld1q_s8(x + FIELD * f);
        for (size_t r = 0; r < count; r++) add_row(acc[r], &t, vld1q_u8(row[r] + at), fields);
    }
    for (size_t r = 0; r < count; r++)
        sum[r] = vaddvq_s32(vsraq_n_s32(vsraq_n_s32(acc[r][0], acc[r][1], 2), acc[r][2], 4));
}

ISA void gemv_rows_base3_neon_dotprod(const uint8_t *plane, const tern_act *a, int32_t *y,
                                      const uint32_t *rows, size_t begin, size_t end)
{
    const size_t row_bytes = tern_row_bytes(TERN_BASE3, a->n);
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

/* ---- tiles and channels: four channels of an output lie side by side ---- */

/* Sums of 40 outputs: lane[g][.] belongs to four bytes of four channels each. */
typedef struct sums_i32 {
    int32x4_t lane[GROUPS][FIELDS]; /* of a, p, c0, b, c4 */
} sums_i32;

ISA static inline void add_group(int32x4_t lane[FIELDS], const tables *t, uint8x16_t v, int8x16_t x)
{
    const uint8x16_t b = div_27(t, v), a = mod_27(v, b), p = vqtbl2q_u8(t->codes, a);
    lane[0] = dot(lane[0], a, x);
    lane[1] = dot(lane[1], p, x);
    lane[2] = dot(lane[2], vandq_u8(p, vdupq_n_u8(0x03)), x);
    lane[3] = dot(lane[3], b, x);
    lane[4] = dot(lane[4], vqtbl1q_u8(t->c4, b), x);
}

/* The sums of the five codes.  With s = sum of c0, (p - s) / 4 = c1 + 4 c2 and (a - s) / 3 =
 * c1 + 3 c2; the division by 3 is exact, so a product with the inverse of 3 modulo 2^32 is it. */
static inline void codes_of_sums(const int32x4_t lane[FIELDS], int32x4_t code[FIELDS])
{
    const uint32_t inverse_of_3 = 0xaaaaaaabu;
    const int32x4_t by_4 = vshrq_n_s32(vsubq_s32(lane[1], lane[2]), 2);
    const uint32x4_t thrice = vreinterpretq_u32_s32(vsubq_s32(lane[0], lane[2]));
    const int32x4_t by_3 = vreinterpretq_s32_u32(vmulq_n_u32(thrice, inverse_of_3));
    code[0] = lane[2];
    code[2] = vsubq_s32(by_4, by_3);
    code[1] = vsubq_s32(by_4, vshlq_n_s32(code[2], 2));
    code[4] = lane[4];
    code[3] = vmlsq_n_s32(lane[3], lane[4], 3);
}

ISA static inline void clear(sums_i32 *sums)
{
    for (int g = 0; g < GROUPS; g++)
        for (int f = 0; f < FIELDS; f++) sums->lane[g][f] = vdupq_n_s32(0);
}

/* y of output LANES g + field * stride */
static inline void add_sums(const sums_i32 *sums, size_t stride, int32_t *y)
{
    for (int g = 0; g < GROUPS; g++, y += LANES) {
        int32x4_t code[FIELDS];
        codes_of_sums(sums->lane[g], code);
        for (size_t f = 0; f < FIELDS; f++)
            vst1q_s32(y + f * stride, vaddq_s32(vld1q_s32(y + f * stride), code[f]));
    }
}

/* Half of the outputs of one panel, over at most CHUNK_TILES tiles that lie `tile` onwards. */
ISA static inline __attribute__((always_inline)) void
half_panel(const uint8_t *tile, const int8_t *x, size_t n, bool ahead, int32_t *y)
{
    const tables t = load_tables();
    sums_i32 sums;
    clear(&sums);
    for (size_t k = 0; k < n; k += TERN_TILE_CHANNELS, tile += TERN_LINE_BYTES) {
        const int8x16_t four = broadcast(x + k);
        if (ahead) prefetch_line(tile, PREFETCH_LINES);
        for (int g = 0; g < GROUPS; g++)
            add_group(sums.lane[g], &t, vld1q_u8(tile + COLUMN * g), four);
    }
    add_sums(&sums, TILE_OUTPUTS, y);
}

ISA static void panel(const uint8_t *tiles, const tern_act *a, int32_t *y)
{
    const size_t step = CHUNK_TILES * TERN_TILE_CHANNELS, half = TERN_LINE_BYTES / 2;
    for (int o = 0; o < TERN_TILE_OUTPUTS; o++) y[o] = -a->sum;
    for (size_t k = 0; k < a->n; k += step, tiles += CHUNK_TILES * TERN_LINE_BYTES) {
        const size_t n = a->n - k < step ? a->n - k : step;
        half_panel(tiles, a->x + k, n, true, y);
        half_panel(tiles + half, a->x + k, n, false, y + TILE_OUTPUTS / 2);
    }
}

ISA void gemv_tiles_neon_dotprod(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                                 size_t end)
{
    const size_t tiles = (a->n + TERN_TILE_CHANNELS - 1) / TERN_TILE_CHANNELS;
    for (size_t p = begin; p < end; p++)
        panel(plane + p * tiles * TERN_LINE_BYTES, a, y + p * TERN_TILE_OUTPUTS);
}

/* Eight bytes of four channels, interleaved: four bytes of one output side by side. */
ISA static inline void interleave_8(const uint8_t *const line[QUAD], uint8x16_t out[GROUPS])
{
    const uint8x16_t a = vcombine_u8(vld1_u8(line[0]), vdup_n_u8(0));
    const uint8x16_t b = vcombine_u8(vld1_u8(line[1]), vdup_n_u8(0));
    const uint8x16_t c = vcombine_u8(vld1_u8(line[2]), vdup_n_u8(0));
    const uint8x16_t d = vcombine_u8(vld1_u8(line[3]), vdup_n_u8(0));
    const uint16x8_t ab = vreinterpretq_u16_u8(vzip1q_u8(a, b));
    const uint16x8_t cd = vreinterpretq_u16_u8(vzip1q_u8(c, d));
    out[0] = vreinterpretq_u8_u16(vzip1q_u16(ab, cd));
    out[1] = vreinterpretq_u8_u16(vzip2q_u16(ab, cd));
}

/* Eight bytes of every channel of the batch. */
ISA static inline __attribute__((always_inline)) void column(const batch *in, size_t at, int32_t *y)
{
    const tables t = load_tables();
    sums_i32 sums;
    clear(&sums);
    for (size_t i = 0; i < in->count; i += QUAD) {
        const uint8_t *line[QUAD];
        uint8x16_t bytes[GROUPS];
        for (size_t j = 0; j < QUAD; j++) line[j] = in->line[i + j] + at;
        interleave_8(line, bytes);
        const int8x16_t x = broadcast(in->x + i);
        for (int g = 0; g < GROUPS; g++) add_group(sums.lane[g], &t, bytes[g], x);
    }
    add_sums(&sums, FIELD, y);
}

ISA void gemv_channels_neon_dotprod(const uint8_t *plane, const tern_act *a, size_t n_out,
                                    int32_t *y, size_t begin, size_t end)
{
    walk_channels(plane, a, n_out, y, begin, end, column, COLUMN / GROUPS);
}
#endif
