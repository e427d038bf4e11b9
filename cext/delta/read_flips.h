/* read_flips.h - private to flips.c: reads the flips of a segment with the whole state in registers.
 *
 * The same symbols and the same bits as code_place() and code_value(), which stay their definition.  A flip's latency
 * is what counts here: nothing of the next flip is known before this one's place and value are.  So nothing waits for
 * memory that was just written, and where old zeros and old signs flip alike, a place is guessed in one step. */
#ifndef READ_FLIPS_H
#define READ_FLIPS_H

#include "segment.h"

#define FLIP_BYTES 32 /* what a flip may look at: six bytes for its place, six for its value, eight ahead of both */

#define EVEN_BITS 5   /* hazards that differ by less than one part in 32 */

#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef struct {
  uint64_t range, code;
  const uint8_t *in;
} code_reader;

ALWAYS_INLINE void renormalise(code_reader *r) {
  uint64_t ahead;
  int bits = __builtin_clzll(r->range) & 0x30; /* the range is not 0: no interval is empty */
  memcpy(&ahead, r->in, 8);
  r->code = r->code << bits | __builtin_bswap64(ahead) >> 1 >> (63 ^ bits);
  r->range <<= bits;
  r->in += bits >> 3;
}

ALWAYS_INLINE uint64_t expected_before(const segment *g, uint32_t i) {
  uint64_t bits = g->zeros[i >> 6] & ((1ull << (i & 63)) - 1);
  uint64_t zeros = g->before[i >> 6] + (uint64_t)__builtin_popcountll(bits);
  return zeros * (g->hazard[0] - g->hazard[1]) + i * g->hazard[1];
}

/* The trit before which `target` nearly lies; where both kinds flip alike, one step is as good as two.  What overflows
 * where next to nothing is expected makes a bad guess, still within the segment. */
ALWAYS_INLINE uint32_t guess(const segment *g, uint32_t from, uint64_t base, uint64_t target, int even) {
  uint64_t share = target >> (32 - GUESS_BITS), rest = target & ((1ull << (32 - GUESS_BITS)) - 1);
  uint64_t sought = guesses[share] + (((guesses[share + 1] - guesses[share]) * rest) >> (32 - GUESS_BITS));
  uint32_t i = from + (uint32_t)(((sought >> 4) * g->per_expected) >> 44);
  i = i < g->n ? i : g->n - 1;
  if (even) return i;
  int64_t off = (int64_t)(sought + base - expected_before(g, i)) >> 4;
  int64_t next = (int64_t)i + ((int64_t)((uint64_t)off * g->per_expected) >> 44);
  next = next < (int64_t)g->n ? next : (int64_t)g->n - 1;
  return next < (int64_t)from ? from : (uint32_t)next;
}

static __attribute__((noinline)) symbol settle_far(const segment *g, symbol y, uint32_t from, uint64_t base,
                                                   uint64_t target) {
  return settle(g, y, from, base, target);
}

ALWAYS_INLINE int counted(code_reader *r, flips_share *s) {
  uint64_t part = (r->range >> 32) * s->p1;
  int bit = r->code < part;
  uint64_t mask = (uint64_t)bit - 1; /* all ones for 0 */
  r->code -= part & mask;
  r->range = (part & ~mask) | ((r->range - part) & mask);
  renormalise(r);
  count_bit(s, bit);
  return bit;
}

/* Read flips from trit i on, before which `*base` is expected, while there is input.  Returns where the generic code
 * goes on: n if the segment is done. */
ALWAYS_INLINE uint32_t read_flips_body(flips_coder *c, const segment *g, uint8_t *line, uint32_t start, uint32_t i,
                                       uint64_t *base_, int base3) {
  const flips_shape packing = {.base3 = (uint32_t)base3};
  const uint8_t *last = c->in + c->n_in - FLIP_BYTES;
  code_reader r = {c->range, c->code, c->in + c->at};
  flips_share shares[2] = {c->shares[0], c->shares[1]};
  uint64_t base = *base_, step = g->hazard[1], more = g->hazard[0] - g->hazard[1], flips = 0, signs = 0;
  int even = more + (step >> EVEN_BITS) < step >> (EVEN_BITS - 1);
  while (i < g->n && r.in <= last) {
    uint64_t unit = r.range >> 32, none = hit(g->all - base) + (g->n - i);
    if (r.code >= unit * none) {
      r.code -= unit * none;
      r.range -= unit * none;
      renormalise(&r);
      i = g->n;
      break;
    }
    uint64_t target = r.code / unit;
    uint32_t k = guess(g, i, base, target, even);
    uint64_t before = expected_before(g, k);
    uint64_t is_zero = g->zeros[k >> 6] >> (k & 63) & 1;
    uint64_t after = before + step + (more & (0 - is_zero));
    uint64_t lower = hit(before - base) + (k - i), upper = hit(after - base) + (k - i) + 1;
    if (lower > target || upper <= target) {
      symbol y = settle_far(g, (symbol){k, before, after, lower, upper}, i, base, target);
      k = y.i;
      after = y.after, lower = y.lower, upper = y.upper;
      is_zero = g->zeros[k >> 6] >> (k & 63) & 1;
    }
    base = after;
    r.code -= unit * lower;
    r.range = unit * (upper - lower);
    renormalise(&r);
    int sign = !is_zero, was = get_code(&packing, line, start + k);
    int bit = counted(&r, &shares[sign]);
    static const uint8_t fates[2][4][2] = {{{0, 0}, {0, 2}, {0, 0}}, {{1, 2}, {0, 0}, {1, 0}}};
    set_code(&packing, line, start + k, was, fates[sign][was][bit]);
    signs += (uint64_t)sign;
    flips++;
    i = k + 1;
  }
  c->range = r.range;
  c->code = r.code;
  c->at = (size_t)(r.in - c->in);
  c->shares[0] = shares[0];
  c->shares[1] = shares[1];
  c->flips[0] += flips - signs;
  c->flips[1] += signs;
  c->line_flips += flips;
  c->n_flips += flips;
  *base_ = base;
  return i;
}

#if defined(__x86_64__)
X86_V3 static uint32_t read_flips2_v3(flips_coder *c, const segment *g, uint8_t *line, uint32_t start, uint32_t i,
                                             uint64_t *base) {
  return read_flips_body(c, g, line, start, i, base, 0);
}

X86_V3 static uint32_t read_flips3_v3(flips_coder *c, const segment *g, uint8_t *line, uint32_t start, uint32_t i,
                                             uint64_t *base) {
  return read_flips_body(c, g, line, start, i, base, 1);
}
#endif

static uint32_t read_flips(flips_coder *c, const flips_shape *s, const segment *g, uint8_t *line, uint32_t start,
                           uint32_t i, uint64_t *base) {
  if (c->n_in - c->at < FLIP_BYTES || plainness > 1) return i;
#if defined(__x86_64__)
  if (has_v3) return (s->base3 ? read_flips3_v3 : read_flips2_v3)(c, g, line, start, i, base);
#endif
  return read_flips_body(c, g, line, start, i, base, (int)s->base3);
}

#endif
