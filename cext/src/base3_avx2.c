/* base3_avx2.c - five codes a byte, taken apart with unsigned minima; VPMADDUBSW, then VPMADDWD.
 *
 * A byte modulo 81 is two steps of min(v, v - 81): below 81 the subtraction wraps and loses.  What
 * was taken off is 81 c4, whose low two bits are c4; the same with 27, where they are -c3, and with
 * 9.  The rest, below 9, is two table look-ups.  All kernels see 32 bytes and five fields; they
 * differ in what meets in an int16 lane:
 *
 *   tiles     two channels of one output; VPMADDWD brings the other two and leaves outputs in order
 *   rows      neighbours of a row, and all five fields
 *   channels  two channels, whose bytes are interleaved first: a lane is an output */
#include "variants.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "row_list.h"

enum {
    FIELDS = 5,
    HALF = 32, /* bytes of a vector: half a line */
    TILES_PER_WIDEN = 64,
    HALVES_PER_WIDEN = 12, /* rows: all fields of a half meet in one lane */
    GROUP = 32,            /* channels that pass while the sums of a block stay in registers */
    GROUP_BLOCKS = 8,
    AHEAD_CHANNELS = GROUP, /* of the list: their memory is asked for */
    AHEAD_TILES = 12,
};
_Static_assert(TILES_PER_WIDEN * PAIR_MAX <= INT16_MAX, "tiles: int16 lane would overflow");
_Static_assert(HALVES_PER_WIDEN * FIELDS * PAIR_MAX <= INT16_MAX, "rows: int16 lane would overflow");
_Static_assert(GROUP / 2 * PAIR_MAX <= INT16_MAX, "channels: int16 lane would overflow");

/* v modulo `by`, for v < 3 * by. */
ISA static inline __m256i mod_u8x32(__m256i v, char by)
{
    const __m256i step = _mm256_set1_epi8(by);
    v = _mm256_min_epu8(v, _mm256_sub_epi8(v, step));
    return _mm256_min_epu8(v, _mm256_sub_epi8(v, step));
}

/* code[f]: field f of 32 bytes. */
ISA static inline __attribute__((always_inline)) void decode(__m256i v, __m256i code[FIELDS])
{
    const __m256i low_bits = _mm256_set1_epi8(3);
    const __m256i code0 = _mm256_setr_epi8(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2,
                                           0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0);
    const __m256i code1 = _mm256_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                           1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0);
    const __m256i below81 = mod_u8x32(v, 81), below27 = mod_u8x32(below81, 27);
    const __m256i below9 = mod_u8x32(below27, 9);
    code[4] = _mm256_and_si256(_mm256_sub_epi8(v, below81), low_bits);       /* 81 = 1 mod 4 */
    code[3] = _mm256_and_si256(_mm256_sub_epi8(below27, below81), low_bits); /* -27 = 1 mod 4 */
    code[2] = _mm256_and_si256(_mm256_sub_epi8(below27, below9), low_bits);  /* 9 = 1 mod 4 */
    code[1] = _mm256_shuffle_epi8(code1, below9);
    code[0] = _mm256_shuffle_epi8(code0, below9);
}

/* acc[f] += products of field f, two a lane. */
ISA static inline __attribute__((always_inline)) void add_fields(__m256i acc_i16[FIELDS], __m256i v,
                                                                 __m256i x_i8x32)
{
    __m256i code[FIELDS];
    decode(v, code);
#pragma GCC unroll 5
    for (int f = 0; f < FIELDS; f++)
        acc_i16[f] = _mm256_add_epi16(acc_i16[f], _mm256_maddubs_epi16(code[f], x_i8x32));
}

/* ---- tiles ---- */

ISA static inline __m256i broadcast_x(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm256_set1_epi32(four);
}

/* Half `half` (8 outputs a field) of at most TILES_PER_WIDEN tiles. */
ISA static void add_tiles(const uint8_t *half, const int8_t *x, size_t n_tiles, int ahead,
                          int32_t *y)
{
    __m256i acc_i16[FIELDS];
    for (int f = 0; f < FIELDS; f++) acc_i16[f] = _mm256_setzero_si256();
    for (size_t q = 0; q < n_tiles; q++) {
        if (ahead) prefetch_line(half, q + AHEAD_TILES);
        add_fields(acc_i16, load_u8x32(half + q * TERN_LINE_BYTES),
                   broadcast_x(x + q * TERN_TILE_CHANNELS));
    }
    for (int f = 0; f < FIELDS; f++) {
        const __m256i sums_i32 = _mm256_madd_epi16(acc_i16[f], _mm256_set1_epi16(1));
        int32_t *out = y + 16 * f;
        _mm256_storeu_si256((__m256i *)out, _mm256_add_epi32(load_u8x32(out), sums_i32));
    }
}

void ISA gemv_tiles_avx2(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                         size_t end)
{
    const size_t n_tiles = (a->n + TERN_TILE_CHANNELS - 1) / TERN_TILE_CHANNELS;
    for (size_t p = begin; p < end; p++) {
        const uint8_t *panel = plane + p * n_tiles * TERN_LINE_BYTES;
        int32_t *out = y + p * TERN_TILE_OUTPUTS;
        for (size_t o = 0; o < TERN_TILE_OUTPUTS; o++) out[o] = -a->sum;
        for (size_t q = 0; q < n_tiles; q += TILES_PER_WIDEN) {
            const size_t n = n_tiles - q < TILES_PER_WIDEN ? n_tiles - q : TILES_PER_WIDEN;
            const uint8_t *tile = panel + q * TERN_LINE_BYTES;
            const int8_t *x = a->x + q * TERN_TILE_CHANNELS;
            add_tiles(tile, x, n, 1, out);
            add_tiles(tile + HALF, x, n, 0, out + HALF / TERN_TILE_CHANNELS);
        }
    }
}

/* ---- rows ---- */

ISA static inline __attribute__((always_inline)) __m256i half_dot_i16x16(const uint8_t *half,
                                                                         const int8_t *x)
{
    __m256i code[FIELDS], sum = _mm256_setzero_si256();
    decode(load_u8x32(half), code);
#pragma GCC unroll 5
    for (int f = 0; f < FIELDS; f++)
        sum = _mm256_add_epi16(
            sum, _mm256_maddubs_epi16(code[f], load_u8x32(x + f * TERN_BLOCK3_BYTES)));
    return sum;
}

ISA static int32_t row_dot(const uint8_t *row, const int8_t *x, size_t row_bytes)
{
    const size_t halves = row_bytes / HALF;
    __m256i acc_i32 = _mm256_setzero_si256();
    for (size_t h = 0; h < halves;) {
        const size_t stop = h + HALVES_PER_WIDEN < halves ? h + HALVES_PER_WIDEN : halves;
        __m256i acc_i16 = _mm256_setzero_si256();
        for (; h < stop; h++)
            acc_i16 = _mm256_add_epi16(
                acc_i16,
                half_dot_i16x16(row + h * HALF, x + h / 2 * TERN_BLOCK3 + h % 2 * HALF));
        acc_i32 = _mm256_add_epi32(acc_i32, _mm256_madd_epi16(acc_i16, _mm256_set1_epi16(1)));
    }
    return hsum_i32x8(acc_i32);
}

void ISA gemv_rows_base3_avx2(const uint8_t *plane, const tern_act *a, int32_t *y,
                              const uint32_t *rows, size_t begin, size_t end)
{
    const size_t row_bytes = tern_row_bytes(TERN_BASE3, a->n);
    if (is_row_list(row_bytes, rows, begin, end)) {
        const row_list l = { plane, row_bytes / TERN_LINE_BYTES, rows, end };
        multiply_row_list(row_dot, &l, a, y, begin);
        return;
    }
    for (size_t i = begin; i < end; i++) {
        const size_t r = rows ? rows[i] : i;
        y[r] = row_dot(plane + r * row_bytes, a->x, row_bytes) - a->sum;
    }
}

/* ---- channels ---- */

/* The lines of a group, block by block: memory sees whole channels, the sums see whole blocks. */
typedef struct channel_group {
    _Alignas(HALF) uint8_t line[GROUP_BLOCKS][GROUP][TERN_LINE_BYTES];
    int8_t x[GROUP];
    size_t n; /* even: a partner whose x is 0 fills the last pair */
} channel_group;

static inline size_t channel_at(const tern_act *a, size_t at)
{
    return a->live ? a->live[at] : at;
}

/* List positions i to min(i + GROUP, end); `blocks` blocks from `first` on. */
static void gather(channel_group *g, const uint8_t *plane, const tern_act *a, size_t channel_bytes,
                   size_t i, size_t end, size_t first, size_t blocks)
{
    const size_t listed = end - i < GROUP ? end - i : GROUP;
    g->n = (listed + 1) / 2 * 2;
    for (size_t c = 0; c < g->n; c++) {
        const size_t at = c < listed ? i + c : end - 1, k = channel_at(a, at);
        const uint8_t *from = plane + k * channel_bytes + first * TERN_LINE_BYTES;
        g->x[c] = c < listed ? a->x[k] : 0;
        for (size_t parity = 0; parity < 2; parity++)
            for (size_t b = parity; b < blocks; b += 2)
                memcpy(g->line[b][c], from + b * TERN_LINE_BYTES, TERN_LINE_BYTES);
    }
}

/* Ask for one block of list positions i to i + GROUP. */
ASKS ask_for_block(const uint8_t *plane, const tern_act *a, size_t channel_bytes, size_t i, size_t end,
                   size_t block)
{
    const size_t stop = i + GROUP < end ? i + GROUP : end;
    for (; i < stop; i++)
        __builtin_prefetch(plane + channel_at(a, i) * channel_bytes + block * TERN_LINE_BYTES, 0, 2);
}

/* One half of a block's lines, interleaved low or high: outputs 8 i to 8 i + 7 of either 128-bit lane. */
ISA static inline __attribute__((always_inline)) void
add_interleaved(const uint8_t line[GROUP][TERN_LINE_BYTES], const int8_t *x, size_t n, size_t half,
                int high, int32_t *y)
{
    __m256i acc_i16[FIELDS];
    for (int f = 0; f < FIELDS; f++) acc_i16[f] = _mm256_setzero_si256();
    for (size_t c = 0; c < n; c += 2) {
        int16_t pair;
        memcpy(&pair, x + c, sizeof pair);
        const __m256i a = load_u8x32(line[c] + half), b = load_u8x32(line[c + 1] + half);
        add_fields(acc_i16, high ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b),
                   _mm256_set1_epi16(pair));
    }
    for (int f = 0; f < FIELDS; f++) {
        int32_t *out = y + f * TERN_BLOCK3_BYTES + half + (high ? 8 : 0);
        add_i16x8(out, _mm256_castsi256_si128(acc_i16[f]));
        add_i16x8(out + 16, _mm256_extracti128_si256(acc_i16[f], 1));
    }
}

/* One group of channels into the sums of one block of 320 outputs. */
ISA static void add_group(const channel_group *g, size_t block, int32_t *y)
{
    for (size_t half = 0; half < TERN_LINE_BYTES; half += HALF) {
        add_interleaved(g->line[block], g->x, g->n, half, 0, y);
        add_interleaved(g->line[block], g->x, g->n, half, 1, y);
    }
}

void ISA gemv_channels_avx2(const uint8_t *plane, const tern_act *a, size_t n_out, int32_t *y,
                            size_t begin, size_t end)
{
    const size_t channel_bytes = tern_row_bytes(TERN_BASE3, n_out);
    const size_t blocks = channel_bytes / TERN_BLOCK3_BYTES;
    channel_group g;
    int32_t sum = 0;
    for (size_t i = begin; i < end; i++) sum += a->x[channel_at(a, i)];
    for (size_t o = 0; o < blocks * TERN_BLOCK3; o++) y[o] = -sum;
    for (size_t i = begin; i < end; i += GROUP)
        for (size_t first = 0; first < blocks; first += GROUP_BLOCKS) {
            const size_t n = blocks - first < GROUP_BLOCKS ? blocks - first : GROUP_BLOCKS;
            gather(&g, plane, a, channel_bytes, i, end, first, n);
            for (size_t b = 0; b < n; b++) {
                ask_for_block(plane, a, channel_bytes, i + AHEAD_CHANNELS, end, first + b);
                add_group(&g, b, y + (first + b) * TERN_BLOCK3);
            }
        }
}
#endif
