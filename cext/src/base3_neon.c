/* base3_neon.c - base 3 without the dot product: comparisons make the codes, SMLAL sums them.
 *
 * The leading code of a byte v below 3 w is (v >= w) + (v >= 2 w), and what remains is the least of
 * v, v - w, v - 2 w as unsigned bytes.  A comparison is 0 or -1, so that its code comes out
 * negative and is multiplied by SMLSL.  No table: on a Cortex-A72 one costs as much as three of
 * these. */
#include "neon.h"
#if defined(__aarch64__)

enum {
    FIELDS = 5, /* codes of a byte */
    FIELD = 64, /* inputs or outputs between two fields of a block */
    COLUMN = 16,
    TILE_OUTPUTS = 16, /* of one field of a tile */
    GROUP_OUTPUTS = 4, /* of one field of COLUMN bytes of a tile */
    PRODUCT_MAX = 2 * TERN_X_MAX,
    LANE_PER_BLOCK = FIELDS * (TERN_BLOCK3_BYTES / COLUMN) * PRODUCT_MAX, /* rows */
    BLOCKS_PER_WIDEN = 6,
    REST_MAX = 8 * TERN_X_MAX, /* product of c0 + 3 c1 */
    SPAN = 32,                 /* of them between two widenings */
};
_Static_assert(INT16_MAX / LANE_PER_BLOCK >= BLOCKS_PER_WIDEN, "rows: int16 lane would overflow");
_Static_assert(INT16_MAX / REST_MAX >= SPAN, "tiles, channels: int16 lane would overflow");

/* Minus the code of weight `w`. */
static inline int8x16_t negative_code(uint8x16_t v, uint8_t w)
{
    const uint8x16_t once = vcgeq_u8(v, vdupq_n_u8(w));
    return vreinterpretq_s8_u8(vaddq_u8(once, vcgeq_u8(v, vdupq_n_u8((uint8_t)(2 * w)))));
}

static inline uint8x16_t remainder_of(uint8x16_t v, uint8_t w)
{
    const uint8x16_t step = vdupq_n_u8(w);
    v = vminq_u8(v, vsubq_u8(v, step));
    return vminq_u8(v, vsubq_u8(v, step));
}

/* The codes 4 to 1, negative, and what remains then: c0 + 3 c1. */
static inline void codes_of(uint8x16_t v, int8x16_t code[FIELDS])
{
    static const uint8_t weight[FIELDS] = { 1, 3, 9, 27, 81 };
    for (int f = FIELDS - 1; f > 1; f--) {
        code[f] = negative_code(v, weight[f]);
        v = remainder_of(v, weight[f]);
    }
    code[1] = negative_code(v, weight[1]);
    code[0] = vreinterpretq_s8_u8(v);
}

/* Products of eight lanes each. */
typedef struct sum_i16 {
    int16x8_t low, high;
} sum_i16;

/* acc += code * x for the first field, -= for the others, whose codes are negative. */
static inline void add_products(sum_i16 *acc, int field, int8x16_t code, int8x16_t x)
{
    const int8x8_t code_low = vget_low_s8(code), x_low = vget_low_s8(x);
    acc->low = field ? vmlsl_s8(acc->low, code_low, x_low) : vmlal_s8(acc->low, code_low, x_low);
    acc->high = field ? vmlsl_high_s8(acc->high, code, x) : vmlal_high_s8(acc->high, code, x);
}

/* ---- rows ---- */

static inline void add_block(sum_i16 *acc, const uint8_t *block, const int8_t *x)
{
    for (int at = 0; at < TERN_BLOCK3_BYTES; at += COLUMN) {
        int8x16_t code[FIELDS];
        codes_of(vld1q_u8(block + at), code);
        code[0] = vaddq_s8(code[0], vaddq_s8(code[1], vaddq_s8(code[1], code[1])));
        for (int f = 0; f < FIELDS; f++)
            add_products(acc, f, code[f], vld1q_s8(x + FIELD * f + at));
    }
}

static int32_t row_dot(const uint8_t *row, const int8_t *x, size_t blocks)
{
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t b = 0; b < blocks;) {
        const size_t stop = min_size(b + BLOCKS_PER_WIDEN, blocks);
        sum_i16 acc = { vdupq_n_s16(0), vdupq_n_s16(0) };
        for (; b < stop; b++) add_block(&acc, row + b * TERN_BLOCK3_BYTES, x + b * TERN_BLOCK3);
        sum = vpadalq_s16(vpadalq_s16(sum, acc.low), acc.high);
    }
    return vaddvq_s32(sum);
}

void gemv_rows_base3_neon(const uint8_t *plane, const tern_act *a, int32_t *y, const uint32_t *rows,
                          size_t begin, size_t end)
{
    const size_t row_bytes = tern_row_bytes(TERN_BASE3, a->n);
    for (size_t i = begin; i < end; i++) {
        const size_t r = rows ? rows[i] : i;
        y[r] = row_dot(plane + r * row_bytes, a->x, row_bytes / TERN_BLOCK3_BYTES) - a->sum;
    }
}

/* ---- what tiles and channels share ---- */

/* Sums of COLUMN bytes, by field. */
typedef struct sums_i16 {
    sum_i16 field[FIELDS];
} sums_i16;

static inline void clear(sums_i16 *sums)
{
    for (int f = 0; f < FIELDS; f++)
        sums->field[f] = (sum_i16){ vdupq_n_s16(0), vdupq_n_s16(0) };
}

static inline void add_column(sums_i16 *sums, uint8x16_t v, int8x16_t x)
{
    int8x16_t code[FIELDS];
    codes_of(v, code);
    for (int f = 0; f < FIELDS; f++) add_products(&sums->field[f], f, code[f], x);
}

/* The sum of c0 from that of c0 + 3 c1: int16 wraps around to it. */
static inline void separate(sums_i16 *sums)
{
    sums->field[0].low = vmlsq_n_s16(sums->field[0].low, sums->field[1].low, 3);
    sums->field[0].high = vmlsq_n_s16(sums->field[0].high, sums->field[1].high, 3);
}

/* ---- tiles: four lanes side by side are one output ---- */

/* y += sums of four lanes each. */
static inline void add_tile_sums(const sums_i16 *sums, int32_t *y)
{
    for (int f = 0; f < FIELDS; f++, y += TILE_OUTPUTS) {
        const int32x4_t low = vpaddlq_s16(sums->field[f].low);
        const int32x4_t high = vpaddlq_s16(sums->field[f].high);
        vst1q_s32(y, vaddq_s32(vld1q_s32(y), vpaddq_s32(low, high)));
    }
}

/* COLUMN bytes of at most SPAN tiles. */
static inline __attribute__((always_inline)) void
pass(const uint8_t *tile, const int8_t *x, size_t n, bool ahead, int32_t *y)
{
    sums_i16 sums;
    clear(&sums);
    for (size_t k = 0; k < n; k += TERN_TILE_CHANNELS, tile += TERN_LINE_BYTES) {
        if (ahead) prefetch_line(tile, PREFETCH_LINES);
        add_column(&sums, vld1q_u8(tile), broadcast(x + k));
    }
    separate(&sums);
    add_tile_sums(&sums, y);
}

static void panel(const uint8_t *tiles, const tern_act *a, int32_t *y)
{
    const size_t step = SPAN * TERN_TILE_CHANNELS;
    for (int o = 0; o < TERN_TILE_OUTPUTS; o++) y[o] = -a->sum;
    for (size_t k = 0; k < a->n; k += step, tiles += SPAN * TERN_LINE_BYTES) {
        const size_t n = min_size(a->n - k, step);
        pass(tiles, a->x + k, n, true, y);
        for (size_t at = COLUMN; at < TERN_LINE_BYTES; at += COLUMN)
            pass(tiles + at, a->x + k, n, false, y + at / COLUMN * GROUP_OUTPUTS);
    }
}

void gemv_tiles_neon(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin, size_t end)
{
    const size_t tiles = (a->n + TERN_TILE_CHANNELS - 1) / TERN_TILE_CHANNELS;
    for (size_t p = begin; p < end; p++)
        panel(plane + p * tiles * TERN_LINE_BYTES, a, y + p * TERN_TILE_OUTPUTS);
}

/* ---- channels: a lane is one output ---- */

/* y += sums, a lane each. */
static inline void add_channel_sums(const sums_i16 *sums, int32_t *y)
{
    for (int f = 0; f < FIELDS; f++, y += FIELD) {
        const int16x8_t low = sums->field[f].low, high = sums->field[f].high;
        vst1q_s32(y, vaddw_s16(vld1q_s32(y), vget_low_s16(low)));
        vst1q_s32(y + 4, vaddw_s16(vld1q_s32(y + 4), vget_high_s16(low)));
        vst1q_s32(y + 8, vaddw_s16(vld1q_s32(y + 8), vget_low_s16(high)));
        vst1q_s32(y + 12, vaddw_s16(vld1q_s32(y + 12), vget_high_s16(high)));
    }
}

/* COLUMN bytes of every channel of the batch. */
static inline __attribute__((always_inline)) void column(const batch *in, size_t at, int32_t *y)
{
    for (size_t i = 0; i < in->count;) {
        const size_t stop = min_size(i + SPAN, in->count);
        sums_i16 sums;
        clear(&sums);
        for (; i < stop; i++)
            add_column(&sums, vld1q_u8(in->line[i] + at), vdupq_n_s8(in->x[i]));
        separate(&sums);
        add_channel_sums(&sums, y);
    }
}

void gemv_channels_neon(const uint8_t *plane, const tern_act *a, size_t n_out, int32_t *y,
                        size_t begin, size_t end)
{
    walk_channels(plane, a, n_out, y, begin, end, column, COLUMN);
}
#endif
