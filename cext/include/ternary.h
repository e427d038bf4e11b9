/* ternary.h - the kernel contract.  Every variant implements exactly this.
 *
 * Terms   trit    a weight in {-1, 0, +1}
 *         code    a trit as stored: trit + 1, in {0, 1, 2}
 *         block   the trits that share a run of bytes, one field a trit:
 *
 *   2 bit    128 trits in 32 bytes   byte j = c[j] | c[32 + j] << 2 | c[64 + j] << 4 | c[96 + j] << 6
 *            code 3 never occurs
 *   base 3   320 trits in 64 bytes   byte j = c[j] + 3 c[64 + j] + 9 c[128 + j] + 27 c[192 + j]
 *                                             + 81 c[256 + j];  the bytes 243 to 255 never occur
 *
 *         plane   a packed (out, in) matrix of trits, in one of these orientations
 *
 *   rows      (out, blocks of in, block bytes)   a row is the blocks of one output
 *   lines     (ceil(out / 256), in, 64)          2 bit: a line is one input channel of a panel of
 *                                                256 outputs, two blocks, each a unit of work
 *   channels  (in, blocks of out, 64)            base 3: rows of the transpose
 *   tiles     (ceil(out / 80), ceil(in / 4), 64) base 3: field f of byte 4 j + c of tile (p, q) is
 *                                                output 80 p + 16 f + j, channel 4 q + c
 *
 *         Formats to compare with (docs/formats.md, section 3b), tiles of 4 channels in 64 bytes too:
 *
 *   binary    bit f of byte 4 j + c is output 128 p + 16 f + j: 1 is +1, 0 is -1
 *   int8      byte 4 j + c is output 16 p + j: weight + 128
 *   f16       rows (out, in) of float16, for dot_f16
 *
 * Lines and channels skip zero activations, rows skip outputs that nobody wants, tiles are one
 * sequential stream for matrices where there is nothing to skip.
 *
 * Codes are unsigned, so a variant may compute sum code * x and subtract sum x at the end:
 *       sum trit * x = sum code * x - sum x.
 *
 * All ops are pure: no allocation, no globals, no threads.  All variants return identical bits, the
 * float ops included: their order of additions is part of this contract. */
#ifndef TERNARY_H
#define TERNARY_H

#include "kv.h"
#include <stddef.h>
#include <stdint.h>

typedef enum tern_packing {
    TERN_2BIT,
    TERN_BASE3,
    TERN_PACKINGS, /* of trits; the rest only exists to be compared with them */
    TERN_BINARY = TERN_PACKINGS,
    TERN_INT8,
    TERN_F16,
} tern_packing;

enum {
    TERN_BLOCK = 128, /* 2 bit: trits; padding is code 1, trit 0 */
    TERN_BLOCK_BYTES = 32,
    TERN_PANEL = 256, /* outputs of one line */
    TERN_UNIT = 128,  /* outputs: the grain of work in a plane of lines */

    TERN_BLOCK3 = 320, /* base 3: trits */
    TERN_BLOCK3_BYTES = 64,
    TERN_TILE_OUTPUTS = 80,
    TERN_TILE_CHANNELS = 4,
    TERN_BINARY_OUTPUTS = 128, /* of one tile */
    TERN_INT8_OUTPUTS = 16,
    TERN_INT8_ZERO = 128,
    TERN_BYTE3_END = 243, /* 3^5: the first byte that is no five codes */

    TERN_LINE_BYTES = 64,
    TERN_X_PAD = 1280,    /* activations are padded to it: a whole number of blocks of both kinds */
    TERN_X_MAX = 127,     /* |x[k]| bound: -128 is not a legal activation */
    TERN_IN_MAX = 1 << 16 /* inputs; a variant may sum byte * x, and 255 * 127 * 2^16 fits */
};
_Static_assert(255LL * TERN_X_MAX * TERN_IN_MAX <= INT32_MAX, "int32 sum would overflow");

/* Bytes of one row of a plane of rows. */
static inline size_t tern_row_bytes(tern_packing packing, size_t n_in)
{
    if (packing == TERN_F16) return n_in * sizeof(uint16_t);
    return packing == TERN_BASE3
               ? (n_in + TERN_BLOCK3 - 1) / TERN_BLOCK3 * TERN_BLOCK3_BYTES
               : (n_in + TERN_BLOCK - 1) / TERN_BLOCK * TERN_BLOCK_BYTES;
}

/* One vector of quantised activations.
 *
 * Channels that are exactly zero contribute nothing; `live` names the others.  When `live` is NULL
 * every channel is visited.
 *
 * A group of inputs of a plane of lines is a part of a longer vector: there n is a multiple of 4, what
 * follows x[n] are other inputs and not 0, and gemv_cols and gemm_cols must not let them count. */
typedef struct tern_act {
    const int8_t *x;      /* (ceil(n / TERN_X_PAD) * TERN_X_PAD,) in [-TERN_X_MAX, TERN_X_MAX]; padding is 0 */
    size_t n;             /* inputs, 0 < n <= TERN_IN_MAX */
    int32_t sum;          /* sum_k x[k] */
    const uint32_t *live; /* (n_live,) ascending k, or NULL */
    const int8_t *live_x; /* (n_live + 1,) x[live[i]], then one 0; unused when live is NULL */
    size_t n_live;
} tern_act;

/* GEMV over rows.  For every i in [begin, end), with r = rows ? rows[i] : i:
 *
 *       y[r] = sum_k W[r, k] * x[k]
 *
 *   plane  (out, tern_row_bytes) uint8   no alignment needed, 64 is best
 *   y      (out,) int32   only the named rows are written; other rows are not read either
 *   rows   (>= end,) uint32, or NULL for all */
typedef void tern_gemv_rows_fn(const uint8_t *plane, const tern_act *a, int32_t *y,
                               const uint32_t *rows, size_t begin, size_t end);

/* GEMV over lines (2 bit).  For every unit u in [begin, end) and every o in [128 u, 128 u + 128):
 *
 *       y[o] = sum_k W[o, k] * x[k]       over a->live, or over all k
 *
 *   plane  (panels, a->n, 64) uint8   no alignment needed, 64 is best
 *   y      (panels * 256,) int32      outputs of other units are untouched; padding outputs are 0
 */
typedef void tern_gemv_cols_fn(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                               size_t end);

/* GEMV over tiles.  For every panel p in [begin, end) and every o in [80 p, 80 p + 80), where 80 is
 * TERN_TILE_OUTPUTS of base 3, and TERN_BINARY_OUTPUTS or TERN_INT8_OUTPUTS of the other two:
 *
 *       y[o] = sum_k W[o, k] * x[k]       over all k
 *
 *   plane  (panels, ceil(a->n / 4), 64) uint8   no alignment needed, 64 is best
 *   y      (panels * 80,) int32   outputs of other panels are untouched; padding outputs are 0 */
typedef void tern_gemv_tiles_fn(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                                size_t end);

/* GEMV over channels (base 3): the share of some channels in every output,
 *
 *       y[o] = sum_i W[o, k(i)] * x[k(i)]  for i in [begin, end), k(i) = live ? live[i] : i
 *
 *   plane  (a->n, ceil(n_out / 320), 64) uint8   no alignment needed, 64 is best
 *   y      (ceil(n_out / 320) * 320,) int32      overwritten; padding outputs are 0 */
typedef void tern_gemv_channels_fn(const uint8_t *plane, const tern_act *a, size_t n_out, int32_t *y,
                                   size_t begin, size_t end);

/* GEMM: the products of a GEMV for a block of tokens; every token has the same a->n, and every
 * channel is visited, but for gemm_live.  Row t of y is y + t * stride.  [begin, end) counts rows, units of lines, or
 * panels of tiles, as in the GEMV; over channels it counts blocks of 320 outputs. */
typedef void tern_gemm_fn(const uint8_t *plane, const tern_act *const *a, size_t n_tokens, int32_t *y,
                          size_t stride, size_t n_out, size_t begin, size_t end);

/* Rows that a token takes, ascending. */
typedef struct tern_row_list {
    const uint32_t *rows; /* (n,) */
    size_t n;
} tern_row_list;

/* GEMM over base-3 rows of lists: row t of y gets y[r] for every r of lists[t] in [begin, end), and
 * others are not written. */
typedef void tern_gemm_open_fn(const uint8_t *plane, const tern_act *const *a,
                               const tern_row_list *lists, size_t n_tokens, int32_t *y, size_t stride,
                               size_t begin, size_t end);

/* Dot products: y[r] = sum_i rows[r * n + i] * x[i] in float32.
 *
 * Order, for every variant: 16 partial sums that begin at +0, lane l takes the elements l, l + 16,
 * l + 32, ... in turn; then lane l += lane l + 8 for l < 8, l += l + 4 for l < 4, l += l + 2 for
 * l < 2, and lane 0 += lane 1.  Every product is rounded before it is added: no FMA.
 *
 *   rows   (n_rows, n) float16 bits, or float32   no alignment needed beyond the element
 *   x      (n,) float32
 *   y      (n_rows,) float32   overwritten */
typedef void tern_dot_f16_fn(const uint16_t *rows, size_t n_rows, size_t n, const float *x,
                             float *y);
typedef void tern_dot_f32_fn(const float *rows, size_t n_rows, size_t n, const float *x, float *y);

/* Weighted sum of rows: y[i] = ((0 + w[0] * rows[0][i]) + w[1] * rows[1][i]) + ...   no FMA.
 *
 *   rows   (n_rows, n) float32      w  (n_rows,) float32      y  (n,) float32, overwritten */
typedef void tern_mix_f32_fn(const float *rows, size_t n_rows, size_t n, const float *w, float *y);

/* The scan of an LM head (docs/formats.md, section 3a): a product of every row in about 5 bits a weight.
 *
 * An input is q[k] * unit of its group, |q| <= 127; a weight is (levels[code] - TERN_SCAN_ZERO) * scale of
 * its row and group. */
enum {
    TERN_SCAN_ROWS = 16,        /* of a panel: a lane is a row */
    TERN_SCAN_GROUP = 32,       /* inputs that share a scale: 5 lines of 64 bytes */
    TERN_SCAN_LINES = 5,        /* four of low nibbles, then the fifth bits */
    TERN_SCAN_LINE_INPUTS = 8,  /* byte 4 r + j of line l: inputs 8 l + j (low nibble), 8 l + 4 + j (high)
                                   of row r; bit 2 l + h of byte 4 r + j of line 4: input 8 l + 4 h + j */
    TERN_SCAN_LEVELS = 32,
    TERN_SCAN_ZERO = 63,        /* the level that is zero; levels are 0 to 126 */
    TERN_SCAN_X_MAX = 127,
    TERN_REFINE_BLOCK = 256,    /* 2-bit codes in one line: byte j holds j, 64 + j, 128 + j, 192 + j */
};
_Static_assert(2LL * TERN_SCAN_ZERO * TERN_SCAN_X_MAX * TERN_SCAN_GROUP < 1 << 24,
               "the sum of a group would not be exact in float32");

typedef struct tern_scan_x {
    const int8_t *q;           /* (n_groups * 32,) in [-127, 127]; padding is 0 */
    const float *unit;         /* (n_groups,) */
    const int32_t *minus_zero; /* (n_groups,) -TERN_SCAN_ZERO * sum of q over the group */
    size_t n_groups;           /* ceil(n / 32) */
} tern_scan_x;

/* For every row r = 16 p + i of the panels p in [begin, end), in float32, no FMA:
 *
 *       y[r] = (0 + t[0]) + t[1] + ...     t[g] = (float(sum of level * q) * scale[g]) * unit[g],
 *
 * the sum over group g exact in int32 and in float32.
 *
 *   codes   (panels, 5 * n_groups, 64) uint8   no alignment needed, 64 is best
 *   scales  (panels, n_groups, 16) uint8
 *   levels  (32,) uint8, each <= 2 * TERN_SCAN_ZERO
 *   y       (panels * 16,) float32   rows of other panels are untouched */
typedef void tern_scan_fn(const uint8_t *codes, const uint8_t *scales, const uint8_t *levels,
                          const tern_scan_x *x, float *y, size_t begin, size_t end);

/* y[i] = sum_k code[rows[i], k] * high[k] for the n rows named: 2-bit codes 0 to 3, exact.
 *
 *   plane   (out, n_blocks * 64) uint8   only the named rows are read
 *   high    (n_blocks * 256,) int8 in [-127, 127], n_blocks <= 2^13 */
typedef void tern_refine_fn(const uint8_t *plane, const int8_t *high, size_t n_blocks,
                            const uint32_t *rows, size_t n, int32_t *y);

enum tern_cpu {
    TERN_CPU_AVX2 = 1u << 0,
    TERN_CPU_F16C = 1u << 1,
    TERN_CPU_AVX512VNNI = 1u << 2, /* F, BW, VL, VNNI and VBMI together: Ice Lake, Zen 4 and later */
    TERN_CPU_NEON = 1u << 3,
    TERN_CPU_DOTPROD = 1u << 4,
    TERN_CPU_I8MM = 1u << 5,
};

/* One variant.  `name` is the suffix of its file and of every symbol in it; `needs` holds the
 * enum tern_cpu bits that must all be present. */
typedef struct tern_kernels {
    const char *name;
    uint32_t needs;
    tern_gemv_rows_fn *gemv_rows[TERN_PACKINGS];
    tern_gemv_cols_fn *gemv_cols;
    tern_gemv_tiles_fn *gemv_tiles;
    tern_gemv_channels_fn *gemv_channels;
    tern_gemv_tiles_fn *gemv_binary, *gemv_int8; /* NULL: as scalar does */
    tern_gemm_fn *gemm_rows[TERN_PACKINGS]; /* NULL: the GEMV once a token is as good; so below */
    tern_gemm_fn *gemm_cols, *gemm_tiles, *gemm_channels;
    tern_gemm_fn *gemm_live; /* over channels of the lists that all tokens have; NULL: does not pay */
    tern_gemm_open_fn *gemm_open; /* NULL: does not pay */
    tern_dot_f16_fn *dot_f16;
    tern_dot_f32_fn *dot_f32;
    tern_mix_f32_fn *mix_f32;
    const tern_kv_ops *kv;
    tern_scan_fn *scan;
    tern_refine_fn *refine;
} tern_kernels;

/* The only function that looks at the machine. */
uint32_t tern_cpu_features(void);

/* Best variant for `cpu`, or the one called `forced` (may be NULL).
 * NULL when `forced` is unknown or needs a feature that `cpu` lacks: never a silent fallback. */
const tern_kernels *tern_select(uint32_t cpu, const char *forced);

/* All variants compiled in, best first, NULL-terminated. */
const tern_kernels *const *tern_variants(void);

/* Index of the first byte that holds an illegal code, or `n_bytes` when there is none. */
size_t tern_find_bad_code(tern_packing packing, const uint8_t *bytes, size_t n_bytes);

#endif
