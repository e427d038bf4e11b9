/* gemm_open_avx512vnni.c - prefill over rows, of which every token takes its own.
 *
 * Rows are unpacked once for all tokens, so far that masks are what is left to do: two lines for one of
 * base 3.  They stay in the second-level cache while one token after the other passes, whose activations
 * are in the first.  Two rows at a time: 10 VPDPBUSD, 10 masks, 4 loads of codes and 5 of activations for
 * 640 weights. */
#include "variants.h"
#if defined(__x86_64__)
#include "avx512vnni.h"

enum {
    PIECE_BYTES = 160 << 10, /* as in gemm_avx512vnni.c */
    TOKENS_AT_ONCE = 128,    /* whose places in their lists are kept */
    ROWS = 2,
};

typedef struct piece {
    _Alignas(64) uint8_t bytes[PIECE_BYTES];
} piece;

/* What is left of a base-3 line: c0 | c1 << 2 | c2 << 4 | c3 << 6, and c4. */
enum { SPLIT_LINES = 2 };

ISA static void split_lines(const uint8_t *line, size_t n_lines, uint8_t *to, base3_tables t)
{
    for (; n_lines; n_lines--, line += TERN_LINE_BYTES, to += SPLIT_LINES * TERN_LINE_BYTES) {
        const __m512i v = load_u8x64(line), r = mod81_u8x64(v);
        _mm512_store_si512(to, low_codes_u8x64(t, r));
        /* v - r is 0, 81 or 162: its two lowest bits are 0, 1 and 2 */
        _mm512_store_si512(to + TERN_LINE_BYTES,
                           _mm512_and_si512(_mm512_sub_epi8(v, r), _mm512_set1_epi8(3)));
    }
}

/* 16 partial sums each of two rows. */
ISA static inline __attribute__((always_inline)) void
dot_2_rows(const uint8_t *a, const uint8_t *b, const int8_t *x, size_t n_lines, __m512i sums[ROWS])
{
    __m512i a0 = _mm512_setzero_si512(), a1 = a0, a2 = a0, a3 = a0, a4 = a0;
    __m512i b0 = a0, b1 = a0, b2 = a0, b3 = a0, b4 = a0;
#define FIELD(f)                                                                                   \
    {                                                                                              \
        const __m512i x_i8x64 = load_u8x64(x + 64 * f);                                            \
        a##f = dot_i32x16(a##f, _mm512_and_si512(codes_a, CODE_MASK(f)), x_i8x64);                 \
        b##f = dot_i32x16(b##f, _mm512_and_si512(codes_b, CODE_MASK(f)), x_i8x64);                 \
    }
    for (; n_lines; n_lines--, x += TERN_BLOCK3) {
        const __m512i codes_a = _mm512_load_si512(a), codes_b = _mm512_load_si512(b);
        FIELD(0)
        FIELD(1)
        FIELD(2)
        FIELD(3)
        const __m512i x_i8x64 = load_u8x64(x + 256);
        a4 = dot_i32x16(a4, _mm512_load_si512(a + TERN_LINE_BYTES), x_i8x64);
        b4 = dot_i32x16(b4, _mm512_load_si512(b + TERN_LINE_BYTES), x_i8x64);
        a += SPLIT_LINES * TERN_LINE_BYTES;
        b += SPLIT_LINES * TERN_LINE_BYTES;
    }
#undef FIELD
    sums[0] = sum_of_fields(a0, a1, a2, a3, a4);
    sums[1] = sum_of_fields(b0, b1, b2, b3, b4);
}

/* One token and the listed rows of a piece, which begins at row `first`. */
ISA static void multiply_open(const piece *p, size_t first, size_t n_lines, const tern_act *a,
                              const uint32_t *rows, size_t n, int32_t *y)
{
    const size_t row_bytes = n_lines * SPLIT_LINES * TERN_LINE_BYTES;
    const __m128i minus = _mm_set1_epi32(a->sum);
    for (size_t i = 0; i < n; i += 2 * ROWS) {
        const uint8_t *at[2 * ROWS];
        __m512i sums[2 * ROWS];
        int32_t out[2 * ROWS];
        for (size_t j = 0; j < 2 * ROWS; j++)
            at[j] = p->bytes + (rows[i + j < n ? i + j : n - 1] - first) * row_bytes;
        dot_2_rows(at[0], at[1], a->x, n_lines, sums);
        dot_2_rows(at[2], at[3], a->x, n_lines, sums + ROWS);
        _mm_storeu_si128((__m128i *)out, _mm_sub_epi32(hsum4_i32x4(sums), minus));
        for (size_t j = 0; j < 2 * ROWS && i + j < n; j++) y[rows[i + j]] = out[j];
    }
}

/* How many of the first `n` rows of a list lie before row `stop`, of which `from` are known to. */
static size_t rows_before(const uint32_t *rows, size_t n, size_t from, size_t stop)
{
    while (from < n && rows[from] < stop) from++;
    return from;
}

/* Lines of the next piece, a share of them with every token. */
static const uint8_t *ask_for(const uint8_t *line, const uint8_t *end, size_t n)
{
    for (; n && line < end; n--, line += TERN_LINE_BYTES) __builtin_prefetch(line, 0, 2);
    return line;
}

ISA static void multiply_pieces(const uint8_t *plane, const tern_act *const *a,
                                const tern_row_list *lists, size_t n_tokens, int32_t *y,
                                size_t stride, size_t begin, size_t end)
{
    const size_t row_bytes = tern_row_bytes(TERN_BASE3, a[0]->n);
    const size_t n_lines = row_bytes / TERN_LINE_BYTES;
    const size_t most = PIECE_BYTES / (row_bytes * SPLIT_LINES);
    const base3_tables t = load_base3_tables();
    size_t done[TOKENS_AT_ONCE];
    piece p;
    for (size_t i = 0; i < n_tokens; i++) done[i] = rows_before(lists[i].rows, lists[i].n, 0, begin);
    for (size_t r = begin; r < end; r += most) {
        const size_t stop = end - r < most ? end : r + most;
        split_lines(plane + r * row_bytes, (stop - r) * n_lines, p.bytes, t);
        const uint8_t *next = plane + stop * row_bytes;
        for (size_t i = 0; i < n_tokens; i++) {
            const tern_row_list *l = &lists[i];
            const size_t to = rows_before(l->rows, l->n, done[i], stop);
            next = ask_for(next, plane + end * row_bytes, most * n_lines / n_tokens + 1);
            multiply_open(&p, r, n_lines, a[i], l->rows + done[i], to - done[i], y + i * stride);
            done[i] = to;
        }
    }
}

void ISA gemm_open_avx512vnni(const uint8_t *plane, const tern_act *const *a,
                              const tern_row_list *lists, size_t n_tokens, int32_t *y, size_t stride,
                              size_t begin, size_t end)
{
    for (size_t t = 0; t < n_tokens; t += TOKENS_AT_ONCE)
        multiply_pieces(plane, a + t, lists + t,
                        n_tokens - t < TOKENS_AT_ONCE ? n_tokens - t : TOKENS_AT_ONCE,
                        y + t * stride, stride, begin, end);
}
#endif
