/* See flips.h; the bytes and the arithmetic are defined in docs/formats.md, section 5. */
#include "flips.h"
#include "range_coder.h"
#include "read_flips.h"
#include "segment.h"
#include "trit_lines.h"

#include <stdlib.h>
#include <string.h>

#define MAX_FACTOR (1ull << 28)    /* Q16: 4096 times the plane's rate */
#define INHERITED 256              /* flips that a plane is told of those before it */
#define WHOLE_INHERITED 4096       /* trits, likewise, for planes from nothing */
#define MAX_LINE_COUNT FLIPS_MAX_PRIOR
#define OFTEN 2                    /* flips a segment: then few have none */
#define MAX_PAST_END 8             /* zeros that the end of a stream stands for: what a coder reads ahead */
#define LINE_PRIOR 64              /* trits of the plane that a new line counts as its own */
#define MIN_SHARE (1ull << 16)
#define ALL_ZERO2 0x55             /* four codes 1 */
#define ALL_ZERO3 121              /* 1 + 3 + 9 + 27 + 81 */

/* ---- start, planes, end ---- */

void flips_plain(int level) {
  plainness = level;
}

void flips_start(flips_coder *c, int writes) {
  make_hits();
  make_fields();
  c->writes = writes;
  c->range = UINT64_MAX;
  flips_guess(c, 1);
  c->shares[1].bits = 24; /* signs that became zero, and none that changed over */
  for (int k = 0; k < 3; k++) share_of_ones(&c->shares[k]);
  flips_bit even = {0x8000, 0x8000, 0};
  flips_bit *all = (flips_bit *)&c->words;
  for (size_t k = 0; k < sizeof c->words / sizeof even; k++) all[k] = even;
}

void flips_guess(flips_coder *c, uint64_t mean_gap) {
  mean_gap = mean_gap < 1 ? 1 : mean_gap > MAX_COUNT / 2 ? MAX_COUNT / 2 : mean_gap;
  c->flips[0] = c->flips[1] = 1;
  c->trits[0] = (3 * mean_gap + 1) / 4; /* a zero has a threshold on both sides, */
  c->trits[1] = (3 * mean_gap + 1) / 2; /* a sign on one */
}

void flips_free(flips_coder *c) {
  free(c->out);
  free(c->cross);
  c->out = NULL;
  c->cross = NULL;
}

void flips_open(flips_coder *c) {
  for (; c->started < 4; c->started++) c->code = c->code << 16 | next_unit(c);
}

/* Reading: whether to wait for input; also reads the first code. */
static int runs_dry(flips_coder *c) {
  if (c->writes) return 0;
  if (c->n_in - c->at < FLIPS_INPUT_MARGIN && !c->at_end) return 1;
  flips_open(c);
  return 0;
}

int flips_shape_ok(const flips_shape *s) {
  uint32_t block = s->base3 ? 64 : 32, trits = s->base3 ? 320 : 128;
  if (s->base3 > 1 || s->blind > 1 || !s->line_bytes || s->line_bytes % block) return 0;
  if (s->line_bytes / block > FLIPS_MAX_LINE_TRITS / trits) return 0;
  uint32_t most = s->line_bytes / block * trits;
  if (!s->valid || s->valid > most || s->tail_valid > s->valid) return 0;
  if (s->segment < FLIPS_MIN_SEGMENT || s->segment > FLIPS_MAX_SEGMENT) return 0;
  if (s->segment & (s->segment - 1)) return 0;
  return s->k_line < FLIPS_MAX_PRIOR && s->k_cross < FLIPS_MAX_PRIOR;
}

int flips_begin(flips_coder *c, const flips_shape *s, uint64_t n_bytes) {
  if (!flips_shape_ok(s) || n_bytes % s->line_bytes) return FLIPS_BUG;
  c->n_lines = n_bytes / s->line_bytes;
  if (s->tail_lines > c->n_lines) return FLIPS_BUG;
  c->line = 0;
  c->place = 0;
  c->n_flips = 0;
  for (int k = 0; k < 2; k++)
    if (c->flips[k] > INHERITED) {
      c->trits[k] = (c->trits[k] * INHERITED) / c->flips[k];
      c->flips[k] = INHERITED;
    }
  if (c->trits_seen > WHOLE_INHERITED) {
    uint64_t keep = WHOLE_INHERITED;
    c->zeros_seen = c->zeros_seen * keep / c->trits_seen;
    c->plus_seen = c->plus_seen * keep / c->trits_seen;
    c->signs_seen = keep - c->zeros_seen;
    c->trits_seen = keep;
  }
  if (s->k_cross && c->max_cross < s->valid) {
    uint32_t *cross = realloc(c->cross, s->valid * sizeof *cross);
    if (!cross) return FLIPS_BUG;
    c->cross = cross;
    c->max_cross = s->valid;
  }
  return FLIPS_OK;
}

int flips_end(flips_coder *c) {
  /* 48 zero bits reach into every range, so two bytes are enough; 56 may do, then it is one. */
  int bits = ((c->low + ((1ull << 56) - 1)) & ~((1ull << 56) - 1)) - c->low < c->range ? 56 : 48;
  uint64_t zeros = (1ull << bits) - 1, low = (c->low + zeros) & ~zeros;
  if (low < c->low) c->carry = 1;
  c->low = low;
  shift_out(c);
  if (c->has_cache) put_unit(c, c->cache);
  for (; c->pending; c->pending--) put_unit(c, 0xffff);
  if (c->n_out && !c->out[c->n_out - 1]) c->n_out--; /* zeros follow the end anyway */
  return c->failed ? FLIPS_BUG : FLIPS_OK;
}

/* ---- flips ---- */

/* What is expected, Q32, of one old zero and of one old sign, before a place's own factor. */
static void predict(const flips_coder *c, const flips_shape *s, uint64_t *rate, uint64_t *hazard) {
  uint64_t factor = 1 << 16;
  for (int k = 0; k < 2; k++) {
    rate[k] = ((2 * c->flips[k] + 1) << 32) / (2 * c->trits[k] - c->flips[k] + 2);
    if (rate[k] > MAX_HAZARD) rate[k] = MAX_HAZARD;
  }
  if (s->k_line) {
    uint64_t expected = c->line_expected < (Q32 << 14) ? c->line_expected : Q32 << 14;
    uint64_t flips = c->line_flips < MAX_LINE_COUNT ? c->line_flips : MAX_LINE_COUNT;
    factor = ((s->k_line + flips) << 48) / (((uint64_t)s->k_line << 32) + expected);
    if (factor > MAX_FACTOR) factor = MAX_FACTOR;
  }
  for (int k = 0; k < 2; k++) {
    hazard[k] = (rate[k] * factor) >> 16;
    if (s->k_cross) hazard[k] = (hazard[k] << 16) / (((uint64_t)s->k_cross << 16) + (c->cross_expected >> 16));
    if (hazard[k] > MAX_HAZARD) hazard[k] = MAX_HAZARD;
    if (!hazard[k]) hazard[k] = 1;
  }
}

/* Code the first flip at or after `from`, before which `*base` is expected; `next` is where it is, n for none (read:
 * ignored).  `*base` becomes what is expected before the trit that follows it. */
static inline uint32_t code_place(flips_coder *c, const segment *g, uint32_t from, uint64_t *base, uint32_t next) {
  symbol y = {.i = g->n, .lower = border(g->all, *base, g->n, from), .upper = Q32};
  if (!c->writes) {
    uint64_t unit = c->range >> 32;
    if (c->code < unit * y.lower) y = find_symbol(g, from, *base, c->code / unit);
    narrow_in(c, y.lower, y.upper);
  } else {
    if (next < g->n) y = symbol_of(g, next, from, *base);
    narrow_out(c, y.lower, y.upper);
  }
  *base = y.after;
  return y.i;
}

/* Code what a flipped trit becomes.  A table, since nobody can foresee which trit it is. */
static inline int code_value(flips_coder *c, int kind, int old, int new_) {
  static const uint8_t fates[3][4][2] = {
      {{0, 0}, {0, 2}, {0, 0}}, /* a zero: -1 or +1 */
      {{1, 2}, {0, 0}, {1, 0}}, /* a sign: 0 or the other sign */
      {{1, 2}, {2, 0}, {0, 1}}, /* blind: a step of 1 or 2 */
  };
  return fates[kind][old][counted_bit(c, new_ == fates[kind][old][1], &c->shares[kind])];
}

/* Bit r of the block's words: trit r differs. */
static void changes2(const uint8_t *old, const uint8_t *new_, uint64_t *words) {
  words[0] = words[1] = 0;
  for (int k = 0; k < 4; k++) {
    uint64_t w = load64(old + 8 * k) ^ load64(new_ + 8 * k);
    if (!w) continue;
    w |= w >> 1;
    for (int f = 0; f < 4; f++) words[f >> 1] |= gather(w >> (2 * f)) << (32 * (f & 1) + 8 * k);
  }
}

static void changes3(const uint8_t *old, const uint8_t *new_, uint64_t *words) {
  memset(words, 0, 5 * sizeof *words);
  for (int j = 0; j < 64; j++) {
    int a = old[j], b = new_[j];
    for (int f = 0; a != b; f++, a /= 3, b /= 3) words[f] |= (uint64_t)(a % 3 != b % 3) << j;
  }
}

/* Fill c->changes; returns 0 if the new line holds an illegal code. */
static int compare_line(flips_coder *c, const flips_shape *s, const uint8_t *old, const uint8_t *new_) {
  uint64_t *words = c->changes;
  if (!map_blocks(s, new_, s->line_bytes, words)) return 0;
  if (s->base3) {
    for (uint32_t at = 0; at < s->line_bytes; at += 64, words += 5) changes3(old + at, new_ + at, words);
  } else {
    for (uint32_t at = 0; at < s->line_bytes; at += 32, words += 2) changes2(old + at, new_ + at, words);
  }
  return 1;
}

static uint32_t next_change(const flips_coder *c, uint32_t i, uint32_t end) {
  while (i < end) {
    uint64_t word = c->changes[i >> 6] >> (i & 63);
    if (word) {
      i += (uint32_t)__builtin_ctzll(word);
      return i < end ? i : end;
    }
    i = (i | 63) + 1;
  }
  return end;
}

static void count_flip(flips_coder *c, const flips_shape *s, int class_, uint32_t place) {
  c->flips[class_]++;
  c->line_flips++;
  c->n_flips++;
  if (s->k_cross && c->cross[place] < FLIPS_MAX_PRIOR * 2) c->cross[place]++;
}

static void count_trits(flips_coder *c, uint32_t n_trits, uint64_t zeros, const uint64_t *rate) {
  uint64_t n[2] = {zeros, n_trits - zeros};
  for (int k = 0; k < 2; k++) {
    c->trits[k] += n[k];
    c->line_expected += n[k] * rate[k];
    if (c->trits[k] >= MAX_COUNT) {
      c->trits[k] >>= 1;
      c->flips[k] >>= 1;
    }
  }
}

/* Whether a reader can do without the bitmap of a segment in which nothing flips: there are such segments, and their
 * trits are whole blocks. */
static int is_lazy(const flips_coder *c, const flips_shape *s) {
  if (c->writes || s->k_cross || s->blind) return 0;
  if (s->segment * (c->flips[0] + c->flips[1]) > OFTEN * (c->trits[0] + c->trits[1])) return 0;
  return s->base3 ? s->valid == s->line_bytes * 5 && s->segment >= s->valid : s->segment >= 128;
}

/* The usual segment, in which nothing flips: 1 if this is one, 0 if not, FLIPS_ILLEGAL. */
static int pass_over(flips_coder *c, const flips_shape *s, const uint8_t *blocks, segment *g, const uint64_t *rate) {
  uint32_t per_byte = s->base3 ? 5 : 4;
  if (g->n % (32 * per_byte)) return 0;
  int64_t zeros = count_zeros(s, blocks, g->n / per_byte);
  if (zeros < 0) return FLIPS_ILLEGAL;
  uint64_t n_zeros = (uint64_t)zeros, expected = n_zeros * g->hazard[0] + (g->n - n_zeros) * g->hazard[1];
  uint64_t none = hit(expected) + g->n;
  if (c->code < (c->range >> 32) * none) return 0;
  narrow_in(c, none, Q32);
  count_trits(c, g->n, n_zeros, rate);
  c->place += g->n;
  return 1;
}

static void code_flips(flips_coder *c, const flips_shape *s, segment *g, const uint8_t *old, uint8_t *new_) {
  uint32_t start = c->place;
  uint64_t base = 0;
  uint32_t i = c->writes || s->blind || g->sums ? 0 : read_flips(c, s, g, new_, start, 0, &base);
  for (; i < g->n; i++) {
    uint32_t next = c->writes ? next_change(c, start + i, start + g->n) - start : 0;
    i = code_place(c, g, i, &base, next);
    if (i == g->n) break;
    int class_ = !(g->zeros[i >> 6] >> (i & 63) & 1); /* blind: always 0 */
    int was = get_code(s, c->writes ? old : new_, start + i);
    int becomes = code_value(c, s->blind ? 2 : class_, was, c->writes ? get_code(s, new_, start + i) : 0);
    if (!c->writes) set_code(s, new_, start + i, was, becomes);
    count_flip(c, s, class_, start + i);
  }
}

static int code_segment(flips_coder *c, const flips_shape *s, const uint8_t *old, uint8_t *new_) {
  segment g;
  uint64_t rate[2];
  uint32_t start = c->place, left = c->n_valid - start;
  g.n = left < s->segment ? left : s->segment;
  g.zeros = c->zeros + start / 64;
  g.sums = s->k_cross ? c->sums : NULL;
  predict(c, s, rate, g.hazard);
  if (c->lazy) {
    uint32_t bytes = s->base3 ? s->line_bytes : (g.n + 127) / 128 * 32;
    const uint8_t *blocks = new_ + (s->base3 ? 0 : start / 4);
    int passed = pass_over(c, s, blocks, &g, rate);
    if (passed) return passed == 1 ? FLIPS_OK : passed;
    if (!map_blocks(s, blocks, bytes, c->zeros + start / 64)) return FLIPS_ILLEGAL;
  }
  open_segment(c, &g, start);
  code_flips(c, s, &g, old, new_);
  count_trits(c, g.n, zeros_before(&g, g.n), rate);
  c->place += g.n;
  return FLIPS_OK;
}

/* Begin a line.  Its bitmaps are made here and kept: a line that is taken up again is partly new already. */
static int begin_line(flips_coder *c, const flips_shape *s, const uint8_t *old, const uint8_t *new_) {
  c->n_valid = c->n_lines - c->line <= s->tail_lines ? s->tail_valid : s->valid;
  c->line_flips = c->line_expected = 0;
  if (s->k_cross && (c->line == 0 || (s->period && c->line % s->period == 0))) {
    c->cross_expected = 0;
    for (uint32_t i = 0; i < s->valid; i++) c->cross[i] = s->k_cross;
  }
  if (c->writes && !compare_line(c, s, old, new_)) return FLIPS_ILLEGAL;
  c->lazy = is_lazy(c, s);
  if (c->lazy) return FLIPS_OK;
  if (!map_blocks(s, c->writes ? old : new_, s->line_bytes, c->zeros)) return FLIPS_ILLEGAL;
  if (s->blind) memset(c->zeros, 0xff, (c->n_valid / 64 + 1) * sizeof *c->zeros); /* one class for all */
  return FLIPS_OK;
}

static void end_line(flips_coder *c) {
  if (c->n_valid) c->cross_expected += c->line_expected / c->n_valid;
  if (c->cross_expected > Q32 << 14) c->cross_expected = Q32 << 14;
  c->line++;
  c->place = 0;
}

int flips_lines(flips_coder *c, const flips_shape *s, const uint8_t *old, uint8_t *new_, uint64_t n_lines) {
  for (uint64_t k = 0; k < n_lines; k++) {
    if (c->place == 0 && begin_line(c, s, old, new_) != FLIPS_OK) return FLIPS_ILLEGAL;
    while (c->place < c->n_valid) {
      if (runs_dry(c)) return FLIPS_MORE;
      if (code_segment(c, s, old, new_) != FLIPS_OK) return FLIPS_ILLEGAL;
      if (c->past_end > MAX_PAST_END) return FLIPS_EARLY;
    }
    end_line(c);
    if (old) old += s->line_bytes;
    new_ += s->line_bytes;
  }
  return FLIPS_OK;
}

/* ---- whole planes ---- */

/* Code 64 trits or fewer with one prediction: the plane's share of zeros, bent by the line's own. */
static void code_trits(flips_coder *c, const flips_shape *s, uint8_t *line, uint32_t n) {
  uint64_t share = ((2 * c->zeros_seen + 1) << 31) / (c->trits_seen + 1);
  uint64_t zero = ((c->line_flips << 32) + LINE_PRIOR * share) / (c->place + LINE_PRIOR);
  uint64_t plus = ((2 * c->plus_seen + 1) << 31) / (c->signs_seen + 1);
  uint32_t zeros = 0, pluses = 0;
  if (zero < MIN_SHARE) zero = MIN_SHARE;
  if (zero > Q32 - MIN_SHARE) zero = Q32 - MIN_SHARE;
  for (uint32_t i = c->place; i < c->place + n; i++) {
    int code = c->writes ? get_code(s, line, i) : 1;
    int is_zero = code_bit(c, code == 1, zero);
    zeros += (uint32_t)is_zero;
    if (is_zero) continue;
    int is_plus = code_bit(c, code == 2, plus);
    pluses += (uint32_t)is_plus;
    if (!c->writes) set_code(s, line, i, 1, 2 * is_plus);
  }
  c->line_flips += zeros;
  c->zeros_seen += zeros;
  c->trits_seen += n;
  c->plus_seen += pluses;
  c->signs_seen += n - zeros;
  if (c->trits_seen >= MAX_COUNT) {
    c->zeros_seen >>= 1, c->trits_seen >>= 1;
    c->plus_seen >>= 1, c->signs_seen >>= 1;
  }
  c->place += n;
}

int trits_lines(flips_coder *c, const flips_shape *s, uint8_t *plane, uint64_t n_lines) {
  for (uint64_t k = 0; k < n_lines; k++, plane += s->line_bytes) {
    if (c->place == 0) {
      c->n_valid = c->n_lines - c->line <= s->tail_lines ? s->tail_valid : s->valid;
      c->line_flips = 0;
      if (c->writes && !map_blocks(s, plane, s->line_bytes, c->changes)) return FLIPS_ILLEGAL;
      if (!c->writes) memset(plane, s->base3 ? ALL_ZERO3 : ALL_ZERO2, s->line_bytes);
    }
    while (c->place < c->n_valid) {
      uint32_t left = c->n_valid - c->place;
      if (runs_dry(c)) return FLIPS_MORE;
      code_trits(c, s, plane, left < 64 ? left : 64);
      if (c->past_end > MAX_PAST_END) return FLIPS_EARLY;
    }
    c->line++;
    c->place = 0;
  }
  return FLIPS_OK;
}

/* ---- float words ---- */

/* Numbers in the order of the floats: of 16 bits for half and bfloat16, of 32 for float. */
static inline uint32_t to_order(uint32_t word, uint32_t bits) {
  uint32_t sign = 1u << (bits - 1);
  return word & sign ? ~word & (sign | (sign - 1)) : word | sign;
}

static inline uint32_t from_order(uint32_t order, uint32_t bits) {
  uint32_t sign = 1u << (bits - 1);
  return order & sign ? order & (sign - 1) : ~order & (sign | (sign - 1));
}

/* The exponent of the old value, as far as it tells how large a change is. */
static inline uint32_t word_class(uint32_t old, uint32_t bits, int blind) {
  if (blind || bits == 8) return 0;
  if (bits == 16) return old >> 10 & 31;
  uint32_t exponent = old >> 23 & 255;
  return exponent < 96 ? 0 : exponent > 127 ? 31 : exponent - 96;
}

/* Code how far a word moves, as a number of `bits` bits, in two's complement. */
static uint32_t code_move(flips_coder *c, uint32_t move, uint32_t bits, uint32_t class_) {
  static const uint8_t level[33] = {0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3};
  flips_words *w = &c->words;
  uint32_t sign = 1u << (bits - 1), mask = sign | (sign - 1);
  int moves = moving_bit(c, move != 0, &w->moves[class_][level[count_bits(c->recent)]]);
  c->recent = c->recent << 1 | (uint32_t)moves;
  if (!moves) return 0;
  int down = moving_bit(c, (move & sign) != 0, &w->sign[class_]);
  uint32_t size = down ? (0u - move) & mask : move, length = 1, made = 1;
  while (length < bits && moving_bit(c, size >> (length - 1) > 1, &w->length[class_][length])) length++;
  for (uint32_t k = 1; k < length; k++) {
    int bit = size >> (length - 1 - k) & 1;
    bit = k < 5 ? moving_bit(c, bit, &w->top[length][made]) : code_bit(c, bit, Q32 / 2);
    made = made << 1 | (uint32_t)bit;
  }
  return down ? (0u - made) & mask : made;
}

static inline uint32_t load_word(const uint8_t *p, uint32_t width) {
  uint32_t word = 0;
  memcpy(&word, p, width); /* little-endian */
  return word;
}

int words_code(flips_coder *c, uint32_t width, int blind, const uint8_t *old, uint8_t *new_, uint64_t n_words) {
  uint32_t bits = 8 * width;
  if ((width != 1 && width != 2 && width != 4) || n_words > FLIPS_WORDS_AT_ONCE) return FLIPS_BUG;
  if (runs_dry(c)) return FLIPS_MORE;
  for (uint64_t k = 0; k < n_words; k++) {
    uint32_t was = load_word((c->writes ? old : new_) + k * width, width), becomes = was;
    uint32_t from = to_order(was, bits);
    uint32_t move = c->writes ? to_order(load_word(new_ + k * width, width), bits) - from : 0;
    move = code_move(c, bits < 32 ? move & ((1u << bits) - 1) : move, bits, word_class(was, bits, blind));
    if (c->writes) continue;
    becomes = from + move;
    becomes = from_order(bits < 32 ? becomes & ((1u << bits) - 1) : becomes, bits);
    memcpy(new_ + k * width, &becomes, width);
  }
  return c->past_end > MAX_PAST_END ? FLIPS_EARLY : FLIPS_OK;
}
