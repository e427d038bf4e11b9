/* range_coder.h - private to flips.c: bits to units of a stream and back, by one code for both ways.
 *
 * A 64-bit range, units of 16 bits, big-endian; docs/formats.md, section 5. */
#ifndef RANGE_CODER_H
#define RANGE_CODER_H

#include "flips.h"

#include <stdlib.h>
#include <string.h>

#define Q32 (1ull << 32)
#define TOP (1ull << 48)           /* the range is never below it between two symbols */
#define MAX_COUNT (1ull << 30)     /* then counts are halved; keeps (2 n + 1) << 32 in 64 bits */
#define FAST_SHIFT 4               /* an average over 16 bits, and one over 128; young ones move faster */
#define SLOW_SHIFT 7

static void put_unit(flips_coder *c, uint16_t unit) {
  if (c->n_out + 2 > c->max_out) {
    size_t larger = c->max_out ? 2 * c->max_out : 1 << 16;
    uint8_t *out = realloc(c->out, larger);
    if (!out) {
      c->failed = 1;
      return;
    }
    c->out = out;
    c->max_out = larger;
  }
  c->out[c->n_out++] = (uint8_t)(unit >> 8);
  c->out[c->n_out++] = (uint8_t)unit;
}

static void shift_out(flips_coder *c) {
  uint16_t unit = (uint16_t)(c->low >> 48);
  if (c->has_cache && !c->carry && unit == 0xffff) {
    c->pending++;
  } else {
    if (c->has_cache) put_unit(c, (uint16_t)(c->cache + c->carry));
    for (; c->pending; c->pending--) put_unit(c, c->carry ? 0 : 0xffff);
    c->cache = unit;
    c->has_cache = 1;
    c->carry = 0;
  }
  c->low <<= 16;
}

static inline void normalise_out(flips_coder *c) {
  while (c->range < TOP) {
    shift_out(c);
    c->range <<= 16;
  }
}

static inline uint64_t next_unit(flips_coder *c) {
  uint64_t unit = 0;
  for (int i = 0; i < 2; i++) {
    unit <<= 8;
    if (c->at < c->n_in)
      unit |= c->in[c->at++];
    else
      c->past_end++;
  }
  return unit;
}

/* So many units that the range is at least TOP again, without a branch that nobody can foresee. */
static inline void normalise_in(flips_coder *c) {
  if (c->n_in - c->at >= 8) { /* `at` is never beyond the end */
    uint64_t ahead;
    int bits = __builtin_clzll(c->range) & 0x30; /* the range is not 0: no interval is empty */
    memcpy(&ahead, c->in + c->at, 8);
    c->code = c->code << bits | __builtin_bswap64(ahead) >> 1 >> (63 - bits);
    c->range <<= bits;
    c->at += (size_t)bits / 8;
    return;
  }
  while (c->range < TOP) {
    c->code = c->code << 16 | next_unit(c);
    c->range <<= 16;
  }
}

/* Take [from, to) of 2^32. */
static inline void narrow_out(flips_coder *c, uint64_t from, uint64_t to) {
  uint64_t unit = c->range >> 32;
  uint64_t low = c->low + unit * from;
  if (low < c->low) c->carry = 1;
  c->low = low;
  c->range = to == Q32 ? c->range - unit * from : unit * (to - from);
  normalise_out(c);
}

static inline void narrow_in(flips_coder *c, uint64_t from, uint64_t to) {
  uint64_t unit = c->range >> 32;
  c->code -= unit * from;
  c->range = to == Q32 ? c->range - unit * from : unit * (to - from);
  normalise_in(c);
}

/* One bit; p1 is the probability of 1 in Q32, at least 1 and less than 2^32. */
static inline int code_bit(flips_coder *c, int bit, uint64_t p1) {
  if (c->writes) {
    narrow_out(c, bit ? 0 : p1, bit ? p1 : Q32);
    return bit;
  }
  uint64_t part = (c->range >> 32) * p1, mask;
  bit = c->code < part;
  mask = (uint64_t)bit - 1; /* all ones for 0 */
  c->code -= part & mask;
  c->range = (part & ~mask) | ((c->range - part) & mask);
  normalise_in(c);
  return bit;
}

static inline void share_of_ones(flips_share *s) {
  s->p1 = ((2 * s->ones + 1) << 31) / (s->bits + 1);
}

static inline void count_bit(flips_share *s, int bit) {
  s->ones += (uint64_t)bit;
  if (++s->bits == MAX_COUNT) {
    s->ones >>= 1;
    s->bits >>= 1;
  }
  share_of_ones(s);
}

/* A bit whose probability is the share of ones so far.  The division is made ahead, where nothing waits for it. */
static inline int counted_bit(flips_coder *c, int bit, flips_share *s) {
  bit = code_bit(c, bit, s->p1);
  count_bit(s, bit);
  return bit;
}

/* A bit with two moving averages, one quick and one slow. */
static inline int moving_bit(flips_coder *c, int bit, flips_bit *b) {
  uint64_t p1 = ((uint64_t)b->fast + b->slow + 2) << 15;
  bit = code_bit(c, bit, p1 < Q32 - (1ull << 16) ? p1 : Q32 - (1ull << 16));
  uint32_t goal = bit ? 0xffff : 0;
  b->seen += b->seen < SLOW_SHIFT;
  int shift = b->seen < FAST_SHIFT ? b->seen : FAST_SHIFT;
  b->fast = (uint16_t)(b->fast + (((int32_t)goal - b->fast) >> shift));
  b->slow = (uint16_t)(b->slow + (((int32_t)goal - b->slow) >> b->seen));
  return bit;
}

#endif
