/* neon.c - SMLAL into int16 lanes, widened before they can overflow; FCVTL for float16.
 *
 * Baseline AArch64, for cores without the dot product (Cortex-A53, A72: Raspberry Pi 3 and 4).
 * Output-major: 8 codes against 8 activations, summed across lanes at the end of a row.
 * Input-major: 8 outputs against one activation; a lane is an output.  One unit of 128 outputs is
 * 16 registers of int16, half of the register file. */
#include "neon.h"
#if defined(__aarch64__)

/* SMLAL adds one product of a code of at most 2 and an activation of at most TERN_X_MAX. */
enum {
    PRODUCT_MAX = 2 * TERN_X_MAX,
    LANE_PER_BLOCK = TERN_BLOCK / 8 * PRODUCT_MAX, /* rows: 128 products in 8 lanes */
    BLOCKS_PER_WIDEN = 8,
};
_Static_assert(INT16_MAX / LANE_PER_BLOCK >= BLOCKS_PER_WIDEN, "rows: int16 lane would overflow");
_Static_assert(INT16_MAX / PRODUCT_MAX >= CHUNK, "cols: int16 lane would overflow");

/* Codes at bits 2 s of every byte; the shift of a whole byte leaves nothing to mask at s = 3. */
static inline int8x16_t codes_i8x16(uint8x16_t packed, int s)
{
    const uint8x16_t three = vdupq_n_u8(3);
    switch (s) {
    case 0: return vreinterpretq_s8_u8(vandq_u8(packed, three));
    case 1: return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed, 2), three));
    case 2: return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed, 4), three));
    default: return vreinterpretq_s8_u8(vshrq_n_u8(packed, 6));
    }
}

/* ---- output-major ---- */

static inline int16x8_t add_products(int16x8_t acc, int8x16_t code, int8x16_t x)
{
    acc = vmlal_s8(acc, vget_low_s8(code), vget_low_s8(x));
    return vmlal_high_s8(acc, code, x);
}

static inline int16x8_t add_block(int16x8_t acc, const uint8_t *block, const int8_t *x)
{
    const uint8x16_t first = vld1q_u8(block), second = vld1q_u8(block + 16);
    for (int s = 0; s < 4; s++) {
        acc = add_products(acc, codes_i8x16(first, s), vld1q_s8(x + 32 * s));
        acc = add_products(acc, codes_i8x16(second, s), vld1q_s8(x + 32 * s + 16));
    }
    return acc;
}

static int32_t row_dot(const uint8_t *row, const int8_t *x, size_t blocks)
{
    int32x4_t acc_i32 = vdupq_n_s32(0);
    for (size_t b = 0; b < blocks;) {
        const size_t stop = b + BLOCKS_PER_WIDEN < blocks ? b + BLOCKS_PER_WIDEN : blocks;
        int16x8_t acc_i16 = vdupq_n_s16(0);
        for (; b < stop; b++)
            acc_i16 = add_block(acc_i16, row + b * TERN_BLOCK_BYTES, x + b * TERN_BLOCK);
        acc_i32 = vpadalq_s16(acc_i32, acc_i16);
    }
    return vaddvq_s32(acc_i32);
}

static void gemv_rows_neon(const uint8_t *plane, const tern_act *a, int32_t *y,
                           const uint32_t *rows, size_t begin, size_t end)
{
    const size_t blocks = (a->n + TERN_BLOCK - 1) / TERN_BLOCK;
    for (size_t i = begin; i < end; i++) {
        const size_t r = rows ? rows[i] : i;
        y[r] = row_dot(plane + r * blocks * TERN_BLOCK_BYTES, a->x, blocks) - a->sum;
    }
}

/* ---- input-major ---- */

/* int16 sums of one unit: lane[4 s + g] holds outputs 32 s + 8 g + {0..7}. */
typedef struct unit_i16 {
    int16x8_t lane[16];
} unit_i16;

static inline void add_channel(unit_i16 *acc, const uint8_t *half, int8_t x)
{
    const uint8x16_t first = vld1q_u8(half), second = vld1q_u8(half + 16);
    const int8x16_t x_i8x16 = vdupq_n_s8(x);
    for (int s = 0; s < 4; s++) {
        const int8x16_t a = codes_i8x16(first, s), b = codes_i8x16(second, s);
        int16x8_t *lane = acc->lane + 4 * s;
        lane[0] = vmlal_s8(lane[0], vget_low_s8(a), vget_low_s8(x_i8x16));
        lane[1] = vmlal_high_s8(lane[1], a, x_i8x16);
        lane[2] = vmlal_s8(lane[2], vget_low_s8(b), vget_low_s8(x_i8x16));
        lane[3] = vmlal_high_s8(lane[3], b, x_i8x16);
    }
}

static inline void widen(const unit_i16 *acc, int32_t *y)
{
    for (int i = 0; i < 16; i++, y += 8) {
        vst1q_s32(y, vaddw_s16(vld1q_s32(y), vget_low_s16(acc->lane[i])));
        vst1q_s32(y + 4, vaddw_s16(vld1q_s32(y + 4), vget_high_s16(acc->lane[i])));
    }
}

/* Channels [i, stop) of the list (or of all), at most CHUNK of them, of one unit. */
static void chunk(const uint8_t *half, const tern_act *a, size_t i, size_t stop, int ahead,
                  int32_t *y)
{
    const int8_t *x = a->live ? a->live_x : a->x;
    const size_t last = (a->live ? a->n_live : a->n) - 1;
    unit_i16 acc;
    for (int j = 0; j < 16; j++) acc.lane[j] = vdupq_n_s16(0);
    for (; i < stop; i++) {
        const size_t k = a->live ? a->live[i] : i;
        if (ahead) {
            const size_t next = i + PREFETCH_LINES < last ? i + PREFETCH_LINES : last;
            prefetch_line(half, a->live ? a->live[next] : next);
        }
        add_channel(&acc, half + k * TERN_LINE_BYTES, x[i]);
    }
    widen(&acc, y);
}

/* Units [u, u_end) of one panel, chunk by chunk, so that both halves of a line are used while it is
 * in the cache and memory sees one sequential stream. */
static void panel(const uint8_t *lines, const tern_act *a, int32_t *y, size_t u, size_t u_end)
{
    const size_t visited = a->live ? a->n_live : a->n;
    for (size_t o = u * TERN_UNIT; o < u_end * TERN_UNIT; o++) y[o] = -a->sum;
    for (size_t i = 0; i < visited; i += CHUNK) {
        const size_t stop = i + CHUNK < visited ? i + CHUNK : visited;
        for (size_t v = u; v < u_end; v++)
            chunk(lines + v * TERN_BLOCK_BYTES, a, i, stop, v == u, y + v * TERN_UNIT);
    }
}

static void gemv_cols_neon(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                           size_t end)
{
    for (size_t p = begin / 2; 2 * p < end; p++) {
        const size_t u = begin > 2 * p ? 1 : 0, u_end = end < 2 * p + 2 ? 1 : 2;
        panel(plane + p * a->n * TERN_LINE_BYTES, a, y + p * TERN_PANEL, u, u_end);
    }
}

/* ---- floats ---- */

static inline float32x4_t load_f16x4(const uint16_t *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

/* Two roundings: vfmaq would make one. */
static inline float32x4_t mul_add(float32x4_t acc, float32x4_t a, float32x4_t b)
{
    return vaddq_f32(acc, vmulq_f32(a, b));
}

/* acc[j] holds lanes 4 j .. 4 j + 3. */
static inline void store_lanes(const float32x4_t acc[4], float lane[DOT_LANES])
{
    for (int j = 0; j < 4; j++) vst1q_f32(lane + 4 * j, acc[j]);
}

void dot_f16_neon(const uint16_t *rows, size_t n_rows, size_t n, const float *x, float *y)
{
    const size_t whole = n - n % DOT_LANES;
    for (size_t r = 0; r < n_rows; r++, rows += n) {
        float lane[DOT_LANES];
        float32x4_t acc[4];
        for (int j = 0; j < 4; j++) acc[j] = vdupq_n_f32(0.0f);
        for (size_t i = 0; i < whole; i += DOT_LANES)
            for (size_t j = 0; j < 4; j++)
                acc[j] = mul_add(acc[j], load_f16x4(rows + i + 4 * j), vld1q_f32(x + i + 4 * j));
        store_lanes(acc, lane);
        for (size_t i = whole; i < n; i++) lane[i - whole] += f32_from_f16(rows[i]) * x[i];
        y[r] = dot_tree(lane);
    }
}

void dot_f32_neon(const float *rows, size_t n_rows, size_t n, const float *x, float *y)
{
    const size_t whole = n - n % DOT_LANES;
    for (size_t r = 0; r < n_rows; r++, rows += n) {
        float lane[DOT_LANES];
        float32x4_t acc[4];
        for (int j = 0; j < 4; j++) acc[j] = vdupq_n_f32(0.0f);
        for (size_t i = 0; i < whole; i += DOT_LANES)
            for (size_t j = 0; j < 4; j++)
                acc[j] = mul_add(acc[j], vld1q_f32(rows + i + 4 * j), vld1q_f32(x + i + 4 * j));
        store_lanes(acc, lane);
        for (size_t i = whole; i < n; i++) lane[i - whole] += rows[i] * x[i];
        y[r] = dot_tree(lane);
    }
}

/* Columns in strips of 32, so that the sums stay in registers over all rows. */
void mix_f32_neon(const float *rows, size_t n_rows, size_t n, const float *w, float *y)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        float32x4_t acc[8];
        for (int j = 0; j < 8; j++) acc[j] = vdupq_n_f32(0.0f);
        for (size_t r = 0; r < n_rows; r++) {
            const float32x4_t weight = vdupq_n_f32(w[r]);
            for (size_t j = 0; j < 8; j++)
                acc[j] = mul_add(acc[j], weight, vld1q_f32(rows + r * n + i + 4 * j));
        }
        for (size_t j = 0; j < 8; j++) vst1q_f32(y + i + 4 * j, acc[j]);
    }
    for (; i < n; i++) {
        float acc = 0.0f;
        for (size_t r = 0; r < n_rows; r++) acc += w[r] * rows[r * n + i];
        y[i] = acc;
    }
}

const tern_kernels tern_neon = {
    .name = "neon",
    .needs = TERN_CPU_NEON,
    .gemv_rows = { gemv_rows_neon, gemv_rows_base3_neon },
    .gemv_cols = gemv_cols_neon,
    .gemv_tiles = gemv_tiles_neon,
    .gemv_channels = gemv_channels_neon,
    .gemm_rows = { gemm_rows_2bit_neon, gemm_rows_base3_neon },
    .gemm_cols = gemm_cols_neon,
    .gemm_tiles = gemm_tiles_neon,
    .gemm_channels = gemm_channels_neon,
    .dot_f16 = dot_f16_neon,
    .dot_f32 = dot_f32_neon,
    .mix_f32 = mix_f32_neon,
    .kv = &tern_kv_neon,
    .scan = head_scan_neon,
    .refine = head_refine_neon,
};
#endif
