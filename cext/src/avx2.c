/* avx2.c - VPMADDUBSW into int16 lanes, widened before they can overflow; VCVTPH2PS for float16.
 *
 * Output-major: 32 codes against 32 activations; neighbours of one row meet in an int16 lane.
 * Input-major: the lines of two channels are interleaved byte by byte, so that the pair (code of
 * channel k, code of channel k') of one output meets the pair (x[k], x[k']) in one int16 lane: a
 * lane is an output, and nothing is ever summed across lanes. */
#include "variants.h"
#if defined(__x86_64__)
#include "avx2.h"
#include "row_list.h"

enum {
    LANE_PER_BLOCK = 4 * PAIR_MAX, /* rows: 4 results a block */
    BLOCKS_PER_WIDEN = 16,
    PAIRS_PER_WIDEN = CHUNK / 2, /* cols: 1 result a pair of channels */
};
_Static_assert(INT16_MAX / LANE_PER_BLOCK >= BLOCKS_PER_WIDEN, "rows: int16 lane would overflow");
_Static_assert(INT16_MAX / PAIR_MAX >= PAIRS_PER_WIDEN, "cols: int16 lane would overflow");

/* Codes at bits 2 s of every byte. */
ISA static inline __m256i codes_u8x32(__m256i packed, int s)
{
    return _mm256_and_si256(_mm256_srli_epi16(packed, 2 * s), _mm256_set1_epi8(3));
}

/* ---- output-major ---- */

ISA static inline __m256i block_dot_i16x16(const uint8_t *block, const int8_t *x)
{
    const __m256i packed = load_u8x32(block);
    const __m256i s0 = _mm256_maddubs_epi16(codes_u8x32(packed, 0), load_u8x32(x));
    const __m256i s1 = _mm256_maddubs_epi16(codes_u8x32(packed, 1), load_u8x32(x + 32));
    const __m256i s2 = _mm256_maddubs_epi16(codes_u8x32(packed, 2), load_u8x32(x + 64));
    const __m256i s3 = _mm256_maddubs_epi16(codes_u8x32(packed, 3), load_u8x32(x + 96));
    return _mm256_add_epi16(_mm256_add_epi16(s0, s1), _mm256_add_epi16(s2, s3));
}

ISA static int32_t row_dot(const uint8_t *row, const int8_t *x, size_t row_bytes)
{
    const size_t blocks = row_bytes / TERN_BLOCK_BYTES;
    __m256i acc_i32 = _mm256_setzero_si256();
    for (size_t b = 0; b < blocks;) {
        const size_t stop = b + BLOCKS_PER_WIDEN < blocks ? b + BLOCKS_PER_WIDEN : blocks;
        __m256i acc_i16 = _mm256_setzero_si256();
        for (; b < stop; b++)
            acc_i16 = _mm256_add_epi16(
                acc_i16, block_dot_i16x16(row + b * TERN_BLOCK_BYTES, x + b * TERN_BLOCK));
        acc_i32 = _mm256_add_epi32(acc_i32, _mm256_madd_epi16(acc_i16, _mm256_set1_epi16(1)));
    }
    return hsum_i32x8(acc_i32);
}

ISA static void gemv_rows_avx2(const uint8_t *plane, const tern_act *a, int32_t *y,
                               const uint32_t *rows, size_t begin, size_t end)
{
    const size_t row_bytes = tern_row_bytes(TERN_2BIT, a->n);
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

/* ---- input-major ---- */

/* int16 sums of one unit: [s][0] holds outputs 32 s + {0..7, 16..23}, [s][1] the others. */
typedef struct unit_i16 {
    __m256i lane[4][2];
} unit_i16;

ISA static inline void add_pair(unit_i16 *acc, const uint8_t *half_a, const uint8_t *half_b,
                                const int8_t *x_pair)
{
    int16_t pair;
    memcpy(&pair, x_pair, sizeof pair);
    const __m256i x_i8x32 = _mm256_set1_epi16(pair);
    const __m256i a = load_u8x32(half_a), b = load_u8x32(half_b);
    const __m256i lo = _mm256_unpacklo_epi8(a, b), hi = _mm256_unpackhi_epi8(a, b);
#define ADD(s)                                                                                     \
    acc->lane[s][0] =                                                                              \
        _mm256_add_epi16(acc->lane[s][0], _mm256_maddubs_epi16(codes_u8x32(lo, s), x_i8x32));      \
    acc->lane[s][1] =                                                                              \
        _mm256_add_epi16(acc->lane[s][1], _mm256_maddubs_epi16(codes_u8x32(hi, s), x_i8x32))
    ADD(0);
    ADD(1);
    ADD(2);
    ADD(3);
#undef ADD
}

ISA static inline void widen(const unit_i16 *acc, int32_t *y)
{
    for (int s = 0; s < 4; s++, y += 32) {
        add_i16x8(y, _mm256_castsi256_si128(acc->lane[s][0]));
        add_i16x8(y + 8, _mm256_castsi256_si128(acc->lane[s][1]));
        add_i16x8(y + 16, _mm256_extracti128_si256(acc->lane[s][0], 1));
        add_i16x8(y + 24, _mm256_extracti128_si256(acc->lane[s][1], 1));
    }
}

/* Channels [i, stop) of one unit, at most CHUNK of them.  `half` is the unit's block of line 0. */
ISA static inline void chunk_all(const uint8_t *half, const tern_act *a, size_t i, size_t stop,
                                 int ahead, int32_t *y)
{
    unit_i16 acc = { 0 };
    for (; i + 2 <= stop; i += 2) {
        const uint8_t *line = half + i * TERN_LINE_BYTES;
        if (ahead) {
            prefetch_line(half, i + PREFETCH_LINES);
            prefetch_line(half, i + PREFETCH_LINES + 1);
        }
        add_pair(&acc, line, line + TERN_LINE_BYTES, a->x + i);
    }
    if (i < stop) { /* odd end: the partner's x is 0, which makes any line do */
        const int8_t x_pair[2] = { a->x[i], 0 };
        add_pair(&acc, half + i * TERN_LINE_BYTES, half + i * TERN_LINE_BYTES, x_pair);
    }
    widen(&acc, y);
}

/* The same over the list of live channels. */
ISA static inline void chunk_live(const uint8_t *half, const tern_act *a, size_t i, size_t stop,
                                  int ahead, int32_t *y)
{
    const uint32_t *live = a->live;
    const size_t last = a->n_live - 1;
    unit_i16 acc = { 0 };
    for (; i + 2 <= stop; i += 2) {
        if (ahead) {
            const size_t next = i + PREFETCH_LINES < last ? i + PREFETCH_LINES : last - 1;
            prefetch_line(half, live[next]);
            prefetch_line(half, live[next + 1]);
        }
        add_pair(&acc, half + (size_t)live[i] * TERN_LINE_BYTES,
                 half + (size_t)live[i + 1] * TERN_LINE_BYTES, a->live_x + i);
    }
    if (i < stop) { /* odd end: live_x is followed by a 0 */
        const uint8_t *line = half + (size_t)live[i] * TERN_LINE_BYTES;
        add_pair(&acc, line, line, a->live_x + i);
    }
    widen(&acc, y);
}

/* Units [u, u_end) of one panel, chunk by chunk, so that both halves of a line are used while it is
 * in the cache and memory sees one sequential stream. */
ISA static void panel(const uint8_t *lines, const tern_act *a, int32_t *y, size_t u, size_t u_end)
{
    const size_t visited = a->live ? a->n_live : a->n;
    const __m256i minus_sum_i32x8 = _mm256_set1_epi32(-a->sum);
    for (size_t o = u * TERN_UNIT; o < u_end * TERN_UNIT; o += 8)
        _mm256_storeu_si256((__m256i *)(y + o), minus_sum_i32x8);
    for (size_t i = 0; i < visited; i += CHUNK) {
        const size_t stop = i + CHUNK < visited ? i + CHUNK : visited;
        for (size_t v = u; v < u_end; v++) {
            const uint8_t *half = lines + v * TERN_BLOCK_BYTES;
            if (a->live)
                chunk_live(half, a, i, stop, v == u, y + v * TERN_UNIT);
            else
                chunk_all(half, a, i, stop, v == u, y + v * TERN_UNIT);
        }
    }
}

ISA static void gemv_cols_avx2(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                               size_t end)
{
    for (size_t p = begin / 2; 2 * p < end; p++) {
        const size_t u = begin > 2 * p ? 1 : 0, u_end = end < 2 * p + 2 ? 1 : 2;
        panel(plane + p * a->n * TERN_LINE_BYTES, a, y + p * TERN_PANEL, u, u_end);
    }
}

/* ---- floats ---- */

/* Eight elements of a row from element i on. */
typedef __m256 load_fn(const void *row, size_t i);

ISA static inline __m256 load_f16x8(const void *row, size_t i)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)row + i)));
}

ISA static inline __m256 load_f32x8(const void *row, size_t i)
{
    return _mm256_loadu_ps((const float *)row + i);
}

/* One element; the same two types. */
typedef float element_fn(const void *row, size_t i);

static inline float element_f16(const void *row, size_t i)
{
    return f32_from_f16(((const uint16_t *)row)[i]);
}

static inline float element_f32(const void *row, size_t i)
{
    return ((const float *)row)[i];
}

ISA static inline __m256 mul_add(__m256 acc, __m256 a, __m256 b)
{
    return _mm256_add_ps(acc, _mm256_mul_ps(a, b)); /* two roundings: the target has no FMA */
}

/* dot_tree in registers: `lo` holds lanes 0..7, `hi` lanes 8..15. */
ISA static inline float tree(__m256 lo, __m256 hi)
{
    const __m256 eight = _mm256_add_ps(lo, hi);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/* The last n % 16 elements of a row, then the tree. */
ISA static inline float finish(__m256 lo, __m256 hi, element_fn *element, const void *row,
                               const float *x, size_t n)
{
    const size_t whole = n - n % DOT_LANES;
    if (whole == n) return tree(lo, hi);
    float lane[DOT_LANES];
    _mm256_storeu_ps(lane, lo);
    _mm256_storeu_ps(lane + 8, hi);
    for (size_t i = whole; i < n; i++) lane[i - whole] += element(row, i) * x[i];
    return dot_tree(lane);
}

/* Four rows at a time: eight independent chains hide the latency of the additions. */
#define ROWS 4

ISA static inline __attribute__((always_inline)) void dot_rows(const void *rows, size_t row_bytes,
                                                               size_t count, load_fn *load,
                                                               element_fn *element, const float *x,
                                                               size_t n, float *y)
{
    const uint8_t *row = rows;
    __m256 lo[ROWS], hi[ROWS];
    for (size_t j = 0; j < count; j++) lo[j] = hi[j] = _mm256_setzero_ps();
    for (size_t i = 0; i + DOT_LANES <= n; i += DOT_LANES) {
        const __m256 x_lo = load_f32x8(x, i), x_hi = load_f32x8(x, i + 8);
        for (size_t j = 0; j < count; j++) {
            lo[j] = mul_add(lo[j], load(row + j * row_bytes, i), x_lo);
            hi[j] = mul_add(hi[j], load(row + j * row_bytes, i + 8), x_hi);
        }
    }
    for (size_t j = 0; j < count; j++)
        y[j] = finish(lo[j], hi[j], element, row + j * row_bytes, x, n);
}

ISA static void dot_f16_avx2(const uint16_t *rows, size_t n_rows, size_t n, const float *x,
                             float *y)
{
    const size_t row_bytes = n * sizeof *rows;
    size_t r = 0;
    for (; r + ROWS <= n_rows; r += ROWS)
        dot_rows(rows + r * n, row_bytes, ROWS, load_f16x8, element_f16, x, n, y + r);
    for (; r < n_rows; r++)
        dot_rows(rows + r * n, row_bytes, 1, load_f16x8, element_f16, x, n, y + r);
}

ISA static void dot_f32_avx2(const float *rows, size_t n_rows, size_t n, const float *x, float *y)
{
    const size_t row_bytes = n * sizeof *rows;
    size_t r = 0;
    for (; r + ROWS <= n_rows; r += ROWS)
        dot_rows(rows + r * n, row_bytes, ROWS, load_f32x8, element_f32, x, n, y + r);
    for (; r < n_rows; r++)
        dot_rows(rows + r * n, row_bytes, 1, load_f32x8, element_f32, x, n, y + r);
}

/* Columns in strips of 32, so that the sums stay in registers over all rows. */
ISA static void mix_f32_avx2(const float *rows, size_t n_rows, size_t n, const float *w, float *y)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256 acc[4];
        for (int j = 0; j < 4; j++) acc[j] = _mm256_setzero_ps();
        for (size_t r = 0; r < n_rows; r++) {
            const __m256 weight = _mm256_set1_ps(w[r]);
            for (size_t j = 0; j < 4; j++)
                acc[j] = mul_add(acc[j], weight, _mm256_loadu_ps(rows + r * n + i + 8 * j));
        }
        for (size_t j = 0; j < 4; j++) _mm256_storeu_ps(y + i + 8 * j, acc[j]);
    }
    for (; i + 8 <= n; i += 8) {
        __m256 acc = _mm256_setzero_ps();
        for (size_t r = 0; r < n_rows; r++)
            acc = mul_add(acc, _mm256_set1_ps(w[r]), _mm256_loadu_ps(rows + r * n + i));
        _mm256_storeu_ps(y + i, acc);
    }
    for (; i < n; i++) {
        float acc = 0.0f;
        for (size_t r = 0; r < n_rows; r++) acc += w[r] * rows[r * n + i];
        y[i] = acc;
    }
}

const tern_kernels tern_avx2 = {
    .name = "avx2",
    .needs = TERN_CPU_AVX2 | TERN_CPU_F16C,
    .gemv_rows = { gemv_rows_avx2, gemv_rows_base3_avx2 },
    .gemv_cols = gemv_cols_avx2,
    .gemv_tiles = gemv_tiles_avx2,
    .gemv_channels = gemv_channels_avx2,
    .dot_f16 = dot_f16_avx2,
    .dot_f32 = dot_f32_avx2,
    .mix_f32 = mix_f32_avx2,
    .kv = &tern_kv_avx2,
    .scan = head_scan_avx2,
    .refine = head_refine_avx2,
};
#endif
