/* gemm_avx512vnni.c - prefill: codes are unpacked once and meet all tokens of a block.
 *
 * A piece of a plane is unpacked into quads in the second-level cache: 64 bytes are 16 outputs by 4
 * channels, a code a byte.  Then 4 tokens at a time pass over it: 5 loads of codes and 4 broadcasts of
 * activations feed 20 VPDPBUSD, of which Zen 4 does one a cycle (64 products; 230 G/s at 3.6 GHz).
 *
 * Every orientation becomes the same quads:
 *   tiles     as they lie: a field of a tile is a quad
 *   channels  four channels interleaved, as in the GEMV     lines     the same
 *   rows      16 rows by 64 bytes, transposed in units of 4 bytes */
#include "variants.h"
#if defined(__x86_64__)
#include "avx512vnni.h"
#include <stdbool.h>

enum {
    TOKENS = 4,
    VECTORS_MAX = 5,          /* of 16 outputs, at a time */
    BUFFER_BYTES = 8 * 80 * 4 * 64, /* unpacked quads: 160 KiB, a stream from the second-level cache */
};

typedef struct quads {
    _Alignas(64) uint8_t bytes[BUFFER_BYTES];
} quads;

/* Sums of up to four tokens over the quads of a piece. */
typedef struct piece {
    const uint8_t *codes; /* vector v of quad q is at codes + q * quad_bytes + 64 v */
    size_t n_quads, quad_bytes;
    size_t channel;   /* of the first quad */
    size_t n_outputs; /* of 16 * vectors: those beyond are not stored */
    bool is_first;    /* sums begin at zero, else they go on from y */
} piece;

#define ALWAYS static inline __attribute__((always_inline))

ISA ALWAYS __mmask16 mask_of(size_t n_outputs, size_t v)
{
    const size_t left = n_outputs > 16 * v ? n_outputs - 16 * v : 0;
    return (__mmask16)(left >= 16 ? 0xffffu : (1u << left) - 1);
}

/* Sums in variables of their own, not in an array: GCC 12 copies arrays of registers in every turn of
 * the loop.  T(t) is one token of the four, V(v, t) one vector of 16 outputs. */
#define EACH_TOKEN(T) T(0) T(1) T(2) T(3)
#define LOAD(v, t)                                                                                 \
    __m512i acc##t##v = p->is_first ? _mm512_setzero_si512()                                       \
                                    : _mm512_maskz_loadu_epi32(mask_of(n, v), y[t] + 16 * v);
#define CODES(v) const __m512i w##v = _mm512_load_si512(codes + 64 * v);
#define SUM(v, t) acc##t##v = dot_i32x16(acc##t##v, w##v, x_i8x64);
#define STORE(v, t) _mm512_mask_storeu_epi32(y[t] + 16 * v, mask_of(n, v), acc##t##v);

#define TOKEN_LOAD_4(t) LOAD(0, t) LOAD(1, t) LOAD(2, t) LOAD(3, t)
#define TOKEN_LOAD_5(t) TOKEN_LOAD_4(t) LOAD(4, t)
#define TOKEN_SUM_4(t)                                                                             \
    {                                                                                              \
        const __m512i x_i8x64 = broadcast_x(x[t] + at);                                            \
        SUM(0, t) SUM(1, t) SUM(2, t) SUM(3, t)                                                    \
    }
#define TOKEN_SUM_5(t)                                                                             \
    {                                                                                              \
        const __m512i x_i8x64 = broadcast_x(x[t] + at);                                            \
        SUM(0, t) SUM(1, t) SUM(2, t) SUM(3, t) SUM(4, t)                                          \
    }
#define TOKEN_STORE_4(t) STORE(0, t) STORE(1, t) STORE(2, t) STORE(3, t)
#define TOKEN_STORE_5(t) TOKEN_STORE_4(t) STORE(4, t)

ISA static void multiply_4(const piece *p, const int8_t *const x[TOKENS], int32_t *const y[TOKENS])
{
    const size_t n = p->n_outputs, end = p->channel + QUAD * p->n_quads;
    const uint8_t *codes = p->codes;
    EACH_TOKEN(TOKEN_LOAD_4)
    for (size_t at = p->channel; at < end; at += QUAD, codes += p->quad_bytes) {
        CODES(0) CODES(1) CODES(2) CODES(3)
        EACH_TOKEN(TOKEN_SUM_4)
    }
    EACH_TOKEN(TOKEN_STORE_4)
}

ISA static void multiply_5(const piece *p, const int8_t *const x[TOKENS], int32_t *const y[TOKENS])
{
    const size_t n = p->n_outputs, end = p->channel + QUAD * p->n_quads;
    const uint8_t *codes = p->codes;
    EACH_TOKEN(TOKEN_LOAD_5)
    for (size_t at = p->channel; at < end; at += QUAD, codes += p->quad_bytes) {
        CODES(0) CODES(1) CODES(2) CODES(3) CODES(4)
        EACH_TOKEN(TOKEN_SUM_5)
    }
    EACH_TOKEN(TOKEN_STORE_5)
}

/* Lines of the next piece, asked for a few at a time while this one is multiplied: pieces of rows and
 * channels lie apart, which no hardware prefetcher follows. */
typedef struct ahead {
    const uint8_t *line;
    size_t stride, left, at_once;
} ahead;

/* `n` lines, to be spread over `n_pieces` passes of all tokens. */
static ahead ask_for(const uint8_t *line, size_t stride, size_t n, size_t n_tokens, size_t n_pieces)
{
    const size_t passes = (n_tokens + TOKENS - 1) / TOKENS * n_pieces;
    return (ahead){ line, stride, n, (n + passes - 1) / passes };
}

static inline void ask_some(ahead *next)
{
    size_t n = next->left < next->at_once ? next->left : next->at_once;
    next->left -= n;
    for (; n > 0; n--, next->line += next->stride) __builtin_prefetch(next->line, 0, 2);
}

/* All tokens; y is the first output of the piece in row 0. */
ISA ALWAYS void multiply_piece(const piece *p, size_t vectors, const tern_act *const *a,
                               size_t n_tokens, int32_t *y, size_t stride, ahead *next)
{
    int32_t unused[16 * VECTORS_MAX] = { 0 };
    for (size_t t = 0; t < n_tokens; t += TOKENS) {
        const int8_t *x[TOKENS];
        int32_t *rows[TOKENS];
        ask_some(next);
        for (size_t j = 0; j < TOKENS; j++) {
            const bool is_token = t + j < n_tokens;
            x[j] = a[is_token ? t + j : t]->x;
            rows[j] = is_token ? y + (t + j) * stride : unused;
        }
        if (vectors == FIELDS_BASE3)
            multiply_5(p, x, rows);
        else
            multiply_4(p, x, rows);
    }
}

/* ---- unpacking ---- */

/* Every field as codes in the low two bits. */
ISA ALWAYS void unpack_2bit(__m512i bytes, __m512i codes[FIELDS_2BIT])
{
    const __m512i three = _mm512_set1_epi8(3);
    codes[0] = _mm512_and_si512(bytes, three);
    codes[1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 2), three);
    codes[2] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), three);
    codes[3] = _mm512_and_si512(_mm512_srli_epi16(bytes, 6), three);
}

/* v - v mod 81 is 0, 81 or 162; its two lowest bits are 0, 1 and 2. */
ISA ALWAYS void unpack_base3(__m512i v, __m512i codes[FIELDS_BASE3], base3_tables t)
{
    const __m512i r = mod81_u8x64(v);
    unpack_2bit(low_codes_u8x64(t, r), codes);
    codes[4] = _mm512_and_si512(_mm512_sub_epi8(v, r), _mm512_set1_epi8(3));
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void subtract_sums(const tern_act *const *a, size_t n_tokens, int32_t *y, size_t stride,
                          size_t n)
{
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t o = 0; o < n; o++) y[t * stride + o] -= a[t]->sum;
}

/* ---- tiles ---- */

enum { TILES_AT_ONCE = BUFFER_BYTES / (64 * FIELDS_BASE3) };

ISA static void unpack_tiles(const uint8_t *tile, size_t n, uint8_t *to, base3_tables t)
{
    for (size_t q = 0; q < n; q++, tile += TERN_LINE_BYTES, to += 64 * FIELDS_BASE3) {
        __m512i codes[FIELDS_BASE3];
        unpack_base3(load_u8x64(tile), codes, t);
#pragma GCC unroll 5
        for (size_t f = 0; f < FIELDS_BASE3; f++) _mm512_store_si512(to + 64 * f, codes[f]);
    }
}

void ISA gemm_tiles_avx512vnni(const uint8_t *plane, const tern_act *const *a, size_t n_tokens,
                               int32_t *y, size_t stride, size_t n_out, size_t begin, size_t end)
{
    (void)n_out;
    const size_t n_tiles = (a[0]->n + QUAD - 1) / QUAD;
    const base3_tables t = load_base3_tables();
    quads buffer;
    for (size_t p = begin; p < end; p++) {
        int32_t *out = y + p * TERN_TILE_OUTPUTS;
        for (size_t q = 0; q < n_tiles; q += TILES_AT_ONCE) {
            const size_t n = smaller(TILES_AT_ONCE, n_tiles - q);
            unpack_tiles(plane + (p * n_tiles + q) * TERN_LINE_BYTES, n, buffer.bytes, t);
            const piece work = { buffer.bytes, n, 64 * FIELDS_BASE3, q * QUAD, TERN_TILE_OUTPUTS,
                                  q == 0 };
            const size_t done = p * n_tiles + q + n;
            ahead next = ask_for(plane + done * TERN_LINE_BYTES, TERN_LINE_BYTES,
                                 smaller(TILES_AT_ONCE, end * n_tiles - done), n_tokens, 1);
            multiply_piece(&work, FIELDS_BASE3, a, n_tokens, out, stride, &next);
        }
        subtract_sums(a, n_tokens, out, stride, TERN_TILE_OUTPUTS);
    }
}

/* ---- channels and lines: interleaved quads of 4 position groups by `fields` ---- */

enum {
    CHANNEL_QUADS = BUFFER_BYTES / (64 * 4 * FIELDS_BASE3),
    LINE_QUADS = BUFFER_BYTES / (64 * 4 * FIELDS_2BIT)
};

/* `n` quads of channels from `channel` on; channels beyond the last read the last, for their x is 0. */
ISA ALWAYS void unpack_interleaved(const uint8_t *lines, size_t line_stride, size_t channel, size_t n,
                                   size_t n_channels, size_t fields, uint8_t *to, base3_tables t)
{
    for (size_t q = 0; q < n; q++, channel += QUAD) {
        const uint8_t *at[QUAD];
        for (size_t c = 0; c < QUAD; c++)
            at[c] = lines + smaller(channel + c, n_channels - 1) * line_stride;
        const quad_lines quad = interleave(load_u8x64(at[0]), load_u8x64(at[1]), load_u8x64(at[2]),
                                           load_u8x64(at[3]));
#pragma GCC unroll 4
        for (size_t h = 0; h < 4; h++) {
            __m512i codes[FIELDS_BASE3];
            if (fields == FIELDS_BASE3)
                unpack_base3(quad.u[h], codes, t);
            else
                unpack_2bit(quad.u[h], codes);
#pragma GCC unroll 5
            for (size_t f = 0; f < fields; f++, to += 64) _mm512_store_si512(to, codes[f]);
        }
    }
}

/* Sums of one block of outputs, 16 * fields of them for every position group, for all tokens. */
ISA ALWAYS void multiply_interleaved(const uint8_t *lines, size_t line_stride, size_t fields,
                                     const tern_act *const *a, size_t n_tokens, int32_t *y,
                                     size_t stride)
{
    const size_t n = a[0]->n, n_quads = (n + QUAD - 1) / QUAD;
    const size_t most = fields == FIELDS_BASE3 ? CHANNEL_QUADS : LINE_QUADS;
    const base3_tables t = load_base3_tables();
    quads buffer;
    for (size_t q = 0; q < n_quads; q += most) {
        const size_t here = smaller(most, n_quads - q);
        unpack_interleaved(lines, line_stride, q * QUAD, here, n, fields, buffer.bytes, t);
        const size_t done = smaller((q + here) * QUAD, n);
        ahead next = ask_for(lines + done * line_stride, line_stride, smaller(most * QUAD, n - done),
                             n_tokens, 4);
        for (size_t h = 0; h < 4; h++) {
            const piece work = { buffer.bytes + 64 * fields * h, here, 64 * 4 * fields, q * QUAD,
                                  16 * fields, q == 0 };
            multiply_piece(&work, fields, a, n_tokens, y + 16 * fields * h, stride, &next);
        }
    }
}

void ISA gemm_channels_avx512vnni(const uint8_t *plane, const tern_act *const *a, size_t n_tokens,
                                  int32_t *y, size_t stride, size_t n_out, size_t begin, size_t end)
{
    const size_t channel_bytes = tern_row_bytes(TERN_BASE3, n_out);
    for (size_t b = begin; b < end; b++) {
        int32_t *out = y + b * TERN_BLOCK3;
        multiply_interleaved(plane + b * TERN_BLOCK3_BYTES, channel_bytes, FIELDS_BASE3, a, n_tokens,
                             out, stride);
        for (size_t t = 0; t < n_tokens; t++) order_channels(out + t * stride, a[t]->sum);
    }
}

/* Units of a panel may belong to two threads, so sums wait on the stack until they are stored. */
enum { LINE_TOKENS = 64 };

void ISA gemm_cols_avx512vnni(const uint8_t *plane, const tern_act *const *a, size_t n_tokens,
                              int32_t *y, size_t stride, size_t n_out, size_t begin, size_t end)
{
    (void)n_out;
    for (size_t p = begin / 2; 2 * p < end; p++) {
        const size_t from = begin > 2 * p ? TERN_UNIT : 0;
        const size_t to = end < 2 * p + 2 ? TERN_UNIT : TERN_PANEL;
        const uint8_t *lines = plane + p * a[0]->n * TERN_LINE_BYTES;
        for (size_t t = 0; t < n_tokens; t += LINE_TOKENS) {
            int32_t sums[LINE_TOKENS * TERN_PANEL];
            const size_t here = smaller(LINE_TOKENS, n_tokens - t);
            multiply_interleaved(lines, TERN_LINE_BYTES, FIELDS_2BIT, a + t, here, sums, TERN_PANEL);
            for (size_t j = 0; j < here; j++)
                order_lines(sums + j * TERN_PANEL, a[t + j]->sum,
                            y + (t + j) * stride + p * TERN_PANEL, from, to);
        }
    }
}

/* ---- rows ---- */

enum { ROWS_OF_QUAD = 16, ROW_VECTORS = 4, ROWS_AT_ONCE = ROWS_OF_QUAD * ROW_VECTORS };

/* Transpose 16 x 16 units of 4 bytes. */
ISA ALWAYS void transpose_u32x16(__m512i m[16])
{
    __m512i n[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        n[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        n[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* m[4 i + j]: columns j, j + 4, ... of rows 4 i to 4 i + 3 */
        m[4 * i] = _mm512_unpacklo_epi64(n[4 * i], n[4 * i + 2]);
        m[4 * i + 1] = _mm512_unpackhi_epi64(n[4 * i], n[4 * i + 2]);
        m[4 * i + 2] = _mm512_unpacklo_epi64(n[4 * i + 1], n[4 * i + 3]);
        m[4 * i + 3] = _mm512_unpackhi_epi64(n[4 * i + 1], n[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512i a = _mm512_shuffle_i32x4(m[j], m[4 + j], 0x88);
        const __m512i b = _mm512_shuffle_i32x4(m[j], m[4 + j], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(m[8 + j], m[12 + j], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(m[8 + j], m[12 + j], 0xdd);
        n[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        n[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        n[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        n[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    memcpy(m, n, sizeof n);
}

/* Which quad of the piece holds the channels of field f, 4-byte unit j of 64 bytes of a row. */
ISA ALWAYS size_t quad_of(tern_packing packing, size_t f, size_t j)
{
    return packing == TERN_BASE3 ? 16 * f + j : 32 * (j / 8) + 8 * f + j % 8;
}

/* 64 bytes from `at` on of 16 rows from r on, into vector v of the quads. */
ISA ALWAYS void unpack_rows(tern_packing packing, const uint8_t *plane, size_t row_bytes, size_t r,
                            size_t end, size_t at, size_t v, uint8_t *to, base3_tables t)
{
    const size_t fields = packing == TERN_BASE3 ? FIELDS_BASE3 : FIELDS_2BIT;
    const size_t left = smaller(64, row_bytes - at);
    const __mmask64 mask = left == 64 ? ~0ull : (1ull << left) - 1;
    __m512i m[16];
    for (size_t j = 0; j < ROWS_OF_QUAD; j++)
        m[j] = _mm512_maskz_loadu_epi8(mask, plane + smaller(r + j, end - 1) * row_bytes + at);
    transpose_u32x16(m);
    for (size_t j = 0; j < 16; j++) {
        __m512i codes[FIELDS_BASE3];
        if (packing == TERN_BASE3)
            unpack_base3(m[j], codes, t);
        else
            unpack_2bit(m[j], codes);
        for (size_t f = 0; f < fields; f++)
            _mm512_store_si512(to + (quad_of(packing, f, j) * ROW_VECTORS + v) * 64, codes[f]);
    }
}

ISA ALWAYS void gemm_rows(tern_packing packing, const uint8_t *plane, const tern_act *const *a,
                          size_t n_tokens, int32_t *y, size_t stride, size_t begin, size_t end)
{
    const size_t row_bytes = tern_row_bytes(packing, a[0]->n);
    const size_t n_quads = packing == TERN_BASE3 ? 80 : 64; /* in 64 bytes of a row */
    const size_t most = BUFFER_BYTES / (n_quads * ROW_VECTORS * 64) * 64;
    const size_t n_pieces = (row_bytes + most - 1) / most;
    const base3_tables t = load_base3_tables();
    quads buffer;
    for (size_t r = begin; r < end; r += ROWS_AT_ONCE) {
        const size_t rows = smaller(ROWS_AT_ONCE, end - r), after = r + rows;
        ahead next = ask_for(plane + after * row_bytes, 64,
                             smaller(ROWS_AT_ONCE, end - after) * row_bytes / 64, n_tokens, n_pieces);
        for (size_t at = 0; at < row_bytes; at += most) {
            const size_t stop = smaller(row_bytes, at + most), blocks = (stop - at + 63) / 64;
            for (size_t b = 0; b < blocks; b++)
                for (size_t v = 0; v < ROW_VECTORS; v++)
                    unpack_rows(packing, plane, row_bytes, smaller(r + ROWS_OF_QUAD * v, end - 1), end,
                                at + 64 * b, v, buffer.bytes + b * n_quads * ROW_VECTORS * 64, t);
            const piece work = { buffer.bytes,     blocks * n_quads, 64 * ROW_VECTORS,
                                  at / 64 * n_quads * QUAD, rows,    at == 0 };
            multiply_piece(&work, ROW_VECTORS, a, n_tokens, y + r, stride, &next);
        }
        subtract_sums(a, n_tokens, y + r, stride, rows);
    }
}

void ISA gemm_rows_2bit_avx512vnni(const uint8_t *plane, const tern_act *const *a, size_t n_tokens,
                                   int32_t *y, size_t stride, size_t n_out, size_t begin, size_t end)
{
    (void)n_out;
    gemm_rows(TERN_2BIT, plane, a, n_tokens, y, stride, begin, end);
}

void ISA gemm_rows_base3_avx512vnni(const uint8_t *plane, const tern_act *const *a, size_t n_tokens,
                                    int32_t *y, size_t stride, size_t n_out, size_t begin, size_t end)
{
    (void)n_out;
    gemm_rows(TERN_BASE3, plane, a, n_tokens, y, stride, begin, end);
}
#endif
