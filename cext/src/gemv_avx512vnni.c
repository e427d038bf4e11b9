/* gemv_avx512vnni.c - VPDPBUSD: four products of one output meet in an int32 lane.
 *
 * Fields are masked, never shifted: code << 2 f times x is summed as it is and shifted at the end.
 * Where all fields meet the same x the last one needs no mask either: unmasked bytes give
 * sum (c0 + 4 c1 + 16 c2 + 64 c3) x and base-3 bytes sum (c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4) x; the
 * known sums are taken off at the end.
 *
 *   vector instructions for 64 bytes (Zen 4: two of 512 bits a cycle)
 *   lines     2 shuffles + 3 masks + 4 VPDPBUSD                              9 for 256 weights
 *   tiles     4 mod 81 + 1 VPERMI2B + 3 masks + 5 VPDPBUSD                  13 for 320 weights
 *   channels  the same + 2 shuffles, and the sums pass through the first-level cache
 *
 * Lines, all visited, and tiles are one stream that the hardware prefetcher follows; tiles are a fifth
 * faster when nobody else asks for the stream.  It does not follow lists: there PREFETCHT1 asks, which
 * leaves the few fill buffers of the first-level cache alone.  Rows: gemv_rows_avx512vnni.c. */
#include "variants.h"
#if defined(__x86_64__)
#include "avx512vnni.h"

/* Of lines, ahead of the stream, in bytes: 512 to 2048 measure alike. */
enum { AHEAD_BYTES = 768, AHEAD_LIVE = 128 /* lines of the list; 64 to 256 measure alike */ };

_Alignas(64) const uint8_t base3_codes_u8[128] = {
#define C3(n) (n), (n) + 1, (n) + 2
#define C9(n) C3(n), C3((n) + 4), C3((n) + 8)
#define C27(n) C9(n), C9((n) + 16), C9((n) + 32)
    C27(0), C27(64), C27(128)
#undef C3
#undef C9
#undef C27
};

/* ---- lines, 2 bit ---- */

/* Where the four lines of a step lie, and their activations. */
typedef struct step {
    const uint8_t *line[QUAD];
    __m512i x_i8x64;
} step;

/* Channels i to i + 3 of all; x is padded with zeros, lines beyond the last are not touched. */
ISA static inline step step_all(const uint8_t *lines, const tern_act *a, size_t i)
{
    step s = { .x_i8x64 = broadcast_x(a->x + i) };
    for (size_t c = 0; c < QUAD; c++)
        s.line[c] = lines + (i + c < a->n ? i + c : a->n - 1) * TERN_LINE_BYTES;
    return s;
}

/* Entries i to i + 3 of the list of live channels. */
ISA static inline step step_live(const uint8_t *lines, const tern_act *a, size_t i)
{
    int8_t x[QUAD] = { 0 };
    step s;
    for (size_t c = 0; c < QUAD; c++) {
        const size_t at = i + c < a->n_live ? i + c : a->n_live - 1;
        s.line[c] = lines + (size_t)a->live[at] * TERN_LINE_BYTES;
        x[c] = i + c < a->n_live ? a->live_x[i + c] : 0;
    }
    s.x_i8x64 = broadcast_x(x);
    return s;
}

/* Four whole steps ahead without a test: the common case of step_all and step_live. */
ISA static inline step step_inner(const uint8_t *lines, const tern_act *a, size_t i)
{
    step s;
    if (!a->live) {
        for (size_t c = 0; c < QUAD; c++) s.line[c] = lines + (i + c) * TERN_LINE_BYTES;
        s.x_i8x64 = broadcast_x(a->x + i);
        return s;
    }
    for (size_t c = 0; c < QUAD; c++)
        s.line[c] = lines + (size_t)a->live[i + c] * TERN_LINE_BYTES;
    s.x_i8x64 = broadcast_x(a->live_x + i);
    return s;
}

/* The next panel follows this one, so the stream goes on beyond the last line; so does the list. */
ISA static inline void prefetch_ahead(const uint8_t *lines, const tern_act *a, size_t i)
{
    if (!a->live) {
        const char *at = (const char *)((uintptr_t)lines + i * TERN_LINE_BYTES + AHEAD_BYTES);
        for (size_t c = 0; c < QUAD; c++) _mm_prefetch(at + c * TERN_LINE_BYTES, _MM_HINT_T0);
        return;
    }
    for (size_t c = 0; c < QUAD; c++) {
        size_t at = i + c + AHEAD_LIVE, beyond = 0;
        if (at >= a->n_live) {
            at = (at - a->n_live) % a->n_live;
            beyond = a->n;
        }
        const uintptr_t line = beyond + a->live[at];
        _mm_prefetch((const char *)((uintptr_t)lines + line * TERN_LINE_BYTES), _MM_HINT_T1);
    }
}

ISA static inline quad_lines load_quad(const step *s)
{
    return interleave(load_u8x64(s->line[0]), load_u8x64(s->line[1]), load_u8x64(s->line[2]),
                      load_u8x64(s->line[3]));
}

/* acc<f><h>: field f of positions h; field 3 sums unmasked bytes.  Variables, not an array: GCC 12
 * copies arrays of registers in every turn of a loop. */
#define LINE_SUM(f, h, bytes) acc##f##h = dot_i32x16(acc##f##h, bytes, x_i8x64);
#define ADD_POSITIONS(h, bytes)                                                                    \
    {                                                                                              \
        const __m512i v = bytes;                                                                   \
        LINE_SUM(0, h, _mm512_and_si512(v, CODE_MASK(0)))                                          \
        LINE_SUM(1, h, _mm512_and_si512(v, CODE_MASK(1)))                                          \
        LINE_SUM(2, h, _mm512_and_si512(v, CODE_MASK(2)))                                          \
        LINE_SUM(3, h, v)                                                                          \
    }
#define ADD_LINES(step_expression)                                                                 \
    {                                                                                              \
        const step here = step_expression;                                                         \
        const __m512i x_i8x64 = here.x_i8x64;                                                      \
        const quad_lines q = load_quad(&here);                                                     \
        ADD_POSITIONS(0, q.u[0])                                                                   \
        ADD_POSITIONS(1, q.u[1])                                                                   \
        ADD_POSITIONS(2, q.u[2])                                                                   \
        ADD_POSITIONS(3, q.u[3])                                                                   \
    }
#define NO_SUMS(h) acc0##h = zero, acc1##h = zero, acc2##h = zero, acc3##h = zero
#define STORE_POSITIONS(h)                                                                         \
    {                                                                                              \
        __m512i s[FIELDS_2BIT] = { acc0##h, acc1##h, acc2##h, acc3##h };                           \
        split_2bit(s);                                                                             \
        for (size_t f = 0; f < FIELDS_2BIT; f++)                                                   \
            _mm512_storeu_si512(sums + 16 * (FIELDS_2BIT * h + f), s[f]);                          \
    }

void ISA order_lines(const int32_t *sums, int32_t sum, int32_t *y, size_t from, size_t to)
{
    for (size_t f = 0; f < FIELDS_2BIT; f++) {
        __m512i acc[4], out[4];
        for (size_t h = 0; h < 4; h++)
            acc[h] = _mm512_loadu_si512(sums + 16 * (FIELDS_2BIT * h + f));
        in_order(acc, out);
        for (size_t l = 0; l < 4; l++) {
            const size_t o = output_of_line(f, l);
            if (o >= from && o < to)
                _mm512_storeu_si512(y + o, _mm512_sub_epi32(out[l], _mm512_set1_epi32(sum)));
        }
    }
}

/* Outputs [from, to) of a panel. */
ISA static void panel_of_lines(const uint8_t *lines, const tern_act *a, int32_t *y, size_t from,
                               size_t to)
{
    const size_t n = a->live ? a->n_live : a->n;
    const __m512i zero = _mm512_setzero_si512();
    int32_t sums[TERN_PANEL];
    __m512i NO_SUMS(0), NO_SUMS(1), NO_SUMS(2), NO_SUMS(3);
    size_t i = 0;
    for (; i + QUAD <= n; i += QUAD) {
        prefetch_ahead(lines, a, i);
        ADD_LINES(step_inner(lines, a, i))
    }
    if (i < n) ADD_LINES(a->live ? step_live(lines, a, i) : step_all(lines, a, i))
    STORE_POSITIONS(0)
    STORE_POSITIONS(1)
    STORE_POSITIONS(2)
    STORE_POSITIONS(3)
    order_lines(sums, a->sum, y, from, to);
}

void ISA gemv_cols_avx512vnni(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                              size_t end)
{
    for (size_t p = begin / 2; 2 * p < end; p++) {
        const size_t from = begin > 2 * p ? TERN_UNIT : 0;
        const size_t to = end < 2 * p + 2 ? TERN_UNIT : TERN_PANEL;
        panel_of_lines(plane + p * a->n * TERN_LINE_BYTES, a, y + p * TERN_PANEL, from, to);
    }
}

/* ---- tiles, base 3 ---- */

/* Sums are variables, not arrays: GCC 12 copies arrays of registers in every turn of a loop. */
#define SUM(acc, bytes) acc = dot_i32x16(acc, bytes, x_i8x64)
#define ADD_TILE(acc, bytes, x)                                                                    \
    {                                                                                              \
        const __m512i x_i8x64 = broadcast_x(x), v = load_u8x64(bytes);                             \
        const __m512i codes = low_codes_u8x64(t, mod81_u8x64(v));                                  \
        SUM(acc##0, _mm512_and_si512(codes, CODE_MASK(0)));                                        \
        SUM(acc##1, _mm512_and_si512(codes, CODE_MASK(1)));                                        \
        SUM(acc##2, _mm512_and_si512(codes, CODE_MASK(2)));                                        \
        SUM(acc##3, codes);                                                                        \
        SUM(acc##4, v);                                                                            \
    }

/* Two sets of sums: VPDPBUSD has a latency of four cycles, and a tile takes seven. */
ISA static void panel_of_tiles(const uint8_t *tile, const tern_act *a, int32_t *y, base3_tables t)
{
    const size_t n_tiles = (a->n + QUAD - 1) / QUAD;
    const __m512i zero = _mm512_setzero_si512();
    __m512i even0 = zero, even1 = zero, even2 = zero, even3 = zero, even4 = zero;
    __m512i odd0 = zero, odd1 = zero, odd2 = zero, odd3 = zero, odd4 = zero;
    const int8_t *x = a->x;
    size_t q = 0;
    for (; q + 2 <= n_tiles; q += 2, tile += 2 * TERN_LINE_BYTES, x += 2 * QUAD) {
        ADD_TILE(even, tile, x)
        ADD_TILE(odd, tile + TERN_LINE_BYTES, x + QUAD)
    }
    if (q < n_tiles) ADD_TILE(even, tile, x)
    __m512i sums[FIELDS_BASE3] = { _mm512_add_epi32(even0, odd0), _mm512_add_epi32(even1, odd1),
                                   _mm512_add_epi32(even2, odd2), _mm512_add_epi32(even3, odd3),
                                   _mm512_add_epi32(even4, odd4) };
    split_base3(sums);
    for (size_t f = 0; f < FIELDS_BASE3; f++)
        _mm512_storeu_si512(y + 16 * f, _mm512_sub_epi32(sums[f], _mm512_set1_epi32(a->sum)));
}

void ISA gemv_tiles_avx512vnni(const uint8_t *plane, const tern_act *a, int32_t *y, size_t begin,
                               size_t end)
{
    const size_t panel_bytes = (a->n + QUAD - 1) / QUAD * TERN_LINE_BYTES;
    const base3_tables t = load_base3_tables();
    for (size_t p = begin; p < end; p++)
        panel_of_tiles(plane + p * panel_bytes, a, y + p * TERN_TILE_OUTPUTS, t);
}

/* ---- channels, base 3 ---- */

/* A channel of a list is fetched as a row of a list is (row_list.h): every other line first, or it looks
 * like a stream and memory delivers what lies beyond its end. */
enum { PIECE_LINES = 8 };
#define EVERY_OTHER_LINE(line) line(0) line(2) line(4) line(6) line(1) line(3) line(5) line(7)

/* Channels that pass while the sums of a block of outputs stay in registers, and how many channels
 * ahead memory is asked for theirs. */
enum { GROUP = 16, GROUP_BLOCKS = 8, AHEAD_CHANNELS = 2 * GROUP };

/* The lines of a group, block by block, so that memory sees whole channels and the sums see whole
 * blocks: reading 16 channels in parallel costs three times as much. */
typedef struct channel_group {
    _Alignas(64) uint8_t line[GROUP_BLOCKS][GROUP][TERN_LINE_BYTES];
    int8_t x[GROUP];
} channel_group;

/* Ask for one block of list positions i to i + GROUP. */
ISA static inline __attribute__((always_inline)) void prefetch_block(const uint8_t *plane, const tern_act *a, size_t channel_bytes,
                                      size_t i, size_t end, size_t block)
{
    const size_t stop = i + GROUP < end ? i + GROUP : end;
    for (; i < stop; i++)
        _mm_prefetch((const char *)plane + (a->live ? a->live[i] : i) * channel_bytes +
                         block * TERN_LINE_BYTES,
                     _MM_HINT_T1);
}

#define GATHER_LINE(b)                                                                             \
    _mm512_store_si512(g->line[b][c], load_u8x64(from + (b) * TERN_LINE_BYTES));

/* List positions i to i + GROUP, those beyond `end` with x = 0; blocks from `first` on. */
ISA static void gather(channel_group *g, const uint8_t *plane, const tern_act *a,
                       size_t channel_bytes, size_t i, size_t end, size_t first, size_t blocks)
{
    for (size_t c = 0; c < GROUP; c++) {
        const size_t at = i + c < end ? i + c : end - 1, k = a->live ? a->live[at] : at;
        const uint8_t *from = plane + k * channel_bytes + first * TERN_LINE_BYTES;
        g->x[c] = i + c < end ? a->x[k] : 0;
        if (blocks == PIECE_LINES) {
            EVERY_OTHER_LINE(GATHER_LINE)
        } else {
            for (size_t b = 0; b < blocks; b++) GATHER_LINE(b)
        }
    }
}

/* Two of the four position groups of a quad: lines are read again for the other two, because the
 * sums of a block leave few registers. */
#define TILE_DOT(f, bytes) acc[f] = dot_i32x16(acc[f], bytes, x_i8x64)

ISA static inline __attribute__((always_inline)) void add_half(__m512i acc[FIELDS_BASE3],
                                                               __m512i v, __m512i x_i8x64,
                                                               base3_tables t)
{
    const __m512i codes = low_codes_u8x64(t, mod81_u8x64(v));
    TILE_DOT(0, _mm512_and_si512(codes, CODE_MASK(0)));
    TILE_DOT(1, _mm512_and_si512(codes, CODE_MASK(1)));
    TILE_DOT(2, _mm512_and_si512(codes, CODE_MASK(2)));
    TILE_DOT(3, codes);
    TILE_DOT(4, v);
}

ISA static inline __attribute__((always_inline)) void
add_quad(__m512i acc[4][FIELDS_BASE3], const uint8_t line[QUAD][TERN_LINE_BYTES], const int8_t *x,
         base3_tables t)
{
    const __m512i x_i8x64 = broadcast_x(x);
    __m512i ab = _mm512_unpacklo_epi8(load_u8x64(line[0]), load_u8x64(line[1]));
    __m512i cd = _mm512_unpacklo_epi8(load_u8x64(line[2]), load_u8x64(line[3]));
    add_half(acc[0], _mm512_unpacklo_epi16(ab, cd), x_i8x64, t);
    add_half(acc[1], _mm512_unpackhi_epi16(ab, cd), x_i8x64, t);
    __asm__ volatile("" ::: "memory");
    ab = _mm512_unpackhi_epi8(load_u8x64(line[0]), load_u8x64(line[1]));
    cd = _mm512_unpackhi_epi8(load_u8x64(line[2]), load_u8x64(line[3]));
    add_half(acc[2], _mm512_unpacklo_epi16(ab, cd), x_i8x64, t);
    add_half(acc[3], _mm512_unpackhi_epi16(ab, cd), x_i8x64, t);
}

/* One group of channels into the sums of one block of 320 outputs: 4 x 5 registers in y. */
ISA static void add_group(const uint8_t line[GROUP][TERN_LINE_BYTES], const int8_t *x, int32_t *y,
                          base3_tables t)
{
    __m512i acc[4][FIELDS_BASE3];
#pragma GCC unroll 20
    for (size_t i = 0; i < 20; i++) acc[i / 5][i % 5] = _mm512_loadu_si512(y + 16 * i);
    for (size_t c = 0; c < GROUP; c += QUAD) add_quad(acc, line + c, x + c, t);
#pragma GCC unroll 20
    for (size_t i = 0; i < 20; i++) _mm512_storeu_si512(y + 16 * i, acc[i / 5][i % 5]);
}

void ISA order_channels(int32_t *y, int32_t sum)
{
    __m512i acc[FIELDS_BASE3][4], out[4];
    for (size_t h = 0; h < 4; h++)
        for (size_t f = 0; f < FIELDS_BASE3; f++)
            acc[f][h] = _mm512_loadu_si512(y + 16 * (FIELDS_BASE3 * h + f));
    for (size_t f = 0; f < FIELDS_BASE3; f++) {
        in_order(acc[f], out);
        for (size_t l = 0; l < 4; l++)
            _mm512_storeu_si512(y + 64 * f + 16 * l,
                                _mm512_sub_epi32(out[l], _mm512_set1_epi32(sum)));
    }
}

/* From the sums of add_group, of masked and of whole bytes, to sums of codes. */
void ISA split_channels(int32_t *y)
{
    for (size_t h = 0; h < 4; h++) {
        __m512i s[FIELDS_BASE3];
        for (size_t f = 0; f < FIELDS_BASE3; f++)
            s[f] = _mm512_loadu_si512(y + 16 * (FIELDS_BASE3 * h + f));
        split_base3(s);
        for (size_t f = 0; f < FIELDS_BASE3; f++)
            _mm512_storeu_si512(y + 16 * (FIELDS_BASE3 * h + f), s[f]);
    }
}

void ISA gemv_channels_avx512vnni(const uint8_t *plane, const tern_act *a, size_t n_out, int32_t *y,
                                  size_t begin, size_t end)
{
    const size_t channel_bytes = tern_row_bytes(TERN_BASE3, n_out);
    const size_t blocks = channel_bytes / TERN_BLOCK3_BYTES;
    const base3_tables t = load_base3_tables();
    channel_group g;
    int32_t sum = 0;
    memset(y, 0, blocks * TERN_BLOCK3 * sizeof *y);
    for (size_t i = begin; i < end; i += GROUP) {
        for (size_t first = 0; first < blocks; first += GROUP_BLOCKS) {
            const size_t n = blocks - first < GROUP_BLOCKS ? blocks - first : GROUP_BLOCKS;
            gather(&g, plane, a, channel_bytes, i, end, first, n);
            for (size_t b = 0; b < n; b++) {
                prefetch_block(plane, a, channel_bytes, i + AHEAD_CHANNELS, end, first + b);
                add_group(g.line[b], g.x, y + (first + b) * TERN_BLOCK3, t);
            }
        }
        for (size_t c = 0; c < GROUP; c++) sum += g.x[c];
    }
    for (size_t b = 0; b < blocks; b++) {
        split_channels(y + b * TERN_BLOCK3);
        order_channels(y + b * TERN_BLOCK3, sum);
    }
}
#endif
