/* segment.h - private to flips.c: the symbols of one segment, their borders, and the one that a target lies in.
 *
 * docs/formats.md, section 5.4. */
#ifndef SEGMENT_H
#define SEGMENT_H

#include "range_coder.h"
#include "trit_lines.h"

#define MAX_HAZARD (4 * Q32)       /* a trit that flips with probability 0.98 */
#define STEP_BITS 26               /* the table of hits has a step of 1/64 */
#define N_STEPS 1024               /* and ends at 16: beyond it, nothing stays as it was */
#define DECAY 0xfc0fc0544aaf31d1ull /* floor(2^64 exp(-1/64)) */
#define SPAN (Q32 - (1ull << 13))  /* of the table; leaves room for a place's own 1 and for "none" */
#define GUESS_BITS 10              /* of a target, that the table of guesses is asked by */
#define MAX_STEPS 8                /* from a guess to the trit; then the search halves instead */

static uint32_t hits[N_STEPS + 1];
static uint64_t guesses[(1 << GUESS_BITS) + 1]; /* Q32: where hit() reaches k 2^(32 - GUESS_BITS), nearly */

/* hits[i] = SPAN (1 - exp(-i / 64)), by repeated multiplication: the same on every machine. */
static void make_hits(void) {
  uint64_t left = 1ull << 62;
  if (hits[N_STEPS]) return;
  for (int i = 0; i <= N_STEPS; i++) {
    uint64_t share = (1ull << 32) - (left >> 30);
    hits[i] = (uint32_t)((share * (SPAN >> 13)) >> 19);
    left = (uint64_t)(((unsigned __int128)left * DECAY) >> 64);
  }
  for (int k = 0, step = 0; k <= 1 << GUESS_BITS; k++) {
    uint64_t goal = (uint64_t)k << (32 - GUESS_BITS);
    while (step < N_STEPS - 1 && hits[step + 1] <= goal) step++;
    uint64_t over = goal > hits[step] ? goal - hits[step] : 0, rise = (uint64_t)hits[step + 1] - hits[step] + 1;
    guesses[k] = ((uint64_t)step << STEP_BITS) + (over < rise ? (over << STEP_BITS) / rise : 1u << STEP_BITS);
  }
}

/* Probability in Q32 that something happens where x, Q32, is expected; monotone, never above SPAN. */
static inline uint64_t hit(uint64_t x) {
  uint64_t step = x >> STEP_BITS;
  if (step >= N_STEPS) return hits[N_STEPS];
  uint64_t rest = x & ((1ull << STEP_BITS) - 1);
  return hits[step] + (((uint64_t)(hits[step + 1] - hits[step]) * rest) >> STEP_BITS);
}

/* One segment's prediction: what is expected before each trit. */
typedef struct {
  uint32_t n;
  uint64_t hazard[2];
  const uint64_t *zeros; /* its bitmap */
  uint32_t before[FLIPS_MAX_SEGMENT / 64 + 1]; /* zeros before each word */
  uint64_t *sums;                              /* with places' own rates: n + 1 sums; else NULL */
  uint64_t all;                                /* expected of all n */
  uint64_t per_expected;                       /* Q32: trits in which 2^32 is expected, on average */
} segment;

static inline uint64_t zeros_before(const segment *g, uint32_t i) {
  uint32_t word = i >> 6, rest = i & 63;
  uint32_t n = g->before[word];
  return rest ? n + count_bits(g->zeros[word] << (64 - rest)) : n;
}

/* Expected in the first i trits, Q32. */
static inline uint64_t expected_in(const segment *g, uint32_t i) {
  if (g->sums) return g->sums[i];
  uint64_t zeros = zeros_before(g, i);
  return zeros * g->hazard[0] + (i - zeros) * g->hazard[1];
}

/* Zeros before each word of n bits; returns zeros before its end, beyond n included. */
static inline __attribute__((always_inline)) uint32_t count_words(const uint64_t *zeros, uint32_t n, uint32_t *before) {
  uint32_t sum = 0;
  for (uint32_t k = 0; 64 * k < n; k++) {
    before[k] = sum;
    sum += (uint32_t)__builtin_popcountll(zeros[k]);
  }
  return sum;
}

#if defined(__x86_64__)
X86_V3 static uint32_t count_words_v3(const uint64_t *zeros, uint32_t n, uint32_t *before) {
  return count_words(zeros, n, before);
}
#endif

static void open_segment(const flips_coder *c, segment *g, uint32_t place) {
#if defined(__x86_64__)
  g->before[(g->n + 63) / 64] = (has_v3 ? count_words_v3 : count_words)(g->zeros, g->n, g->before);
#else
  g->before[(g->n + 63) / 64] = count_words(g->zeros, g->n, g->before);
#endif
  if (!g->sums) {
    g->all = expected_in(g, g->n); /* without what the last word has beyond it */
    g->per_expected = ((uint64_t)g->n << 48) / g->all;
    return;
  }
  uint64_t sum = 0;
  for (uint32_t i = 0; i < g->n; i++) {
    g->sums[i] = sum;
    int is_zero = g->zeros[i >> 6] >> (i & 63) & 1;
    uint64_t own = g->hazard[!is_zero] * c->cross[place + i]; /* cross holds k + flips */
    sum += own < MAX_HAZARD ? own : MAX_HAZARD;
  }
  g->sums[g->n] = g->all = sum;
}

/* Expected of trit i alone. */
static inline uint64_t expected_of(const segment *g, uint32_t i) {
  if (g->sums) return g->sums[i + 1] - g->sums[i];
  uint64_t is_zero = g->zeros[i >> 6] >> (i & 63) & 1;
  return g->hazard[1] + ((g->hazard[0] - g->hazard[1]) & (0 - is_zero));
}

/* The symbol's border before trit i, where `expected` lies before it, of those from `from` on; strictly growing. */
static inline uint64_t border(uint64_t expected, uint64_t base, uint32_t i, uint32_t from) {
  return hit(expected - base) + (i - from);
}

/* One symbol: the interval of trit i, and what is expected before it and after it. */
typedef struct {
  uint32_t i;
  uint64_t before, after, lower, upper;
} symbol;

static inline symbol symbol_of(const segment *g, uint32_t i, uint32_t from, uint64_t base) {
  symbol y = {.i = i, .before = expected_in(g, i)};
  y.after = y.before + expected_of(g, i);
  y.lower = border(y.before, base, i, from);
  y.upper = border(y.after, base, i + 1, from);
  return y;
}

/* Find the trit whose interval holds `target`, by halves. */
static uint32_t search_trit(const segment *g, uint32_t from, uint64_t base, uint64_t target) {
  uint32_t low = from, high = g->n; /* border of low <= target < border of high */
  while (high - low > 1) {
    uint32_t middle = low + (high - low) / 2;
    if (border(expected_in(g, middle), base, middle, from) <= target)
      low = middle;
    else
      high = middle;
  }
  return low;
}

/* The trit before which `target` nearly lies: as if all trits expected the same, and once more from there. */
static inline uint32_t guess_trit(const segment *g, uint32_t from, uint64_t base, uint64_t target) {
  uint64_t share = target >> (32 - GUESS_BITS), rest = target & ((1ull << (32 - GUESS_BITS)) - 1);
  uint64_t sought = guesses[share] + (((guesses[share + 1] - guesses[share]) * rest) >> (32 - GUESS_BITS));
  if (sought > g->all - base) sought = g->all - base; /* all times per_expected is n 2^48: products fit */
  uint32_t i = from + (uint32_t)(((sought >> 4) * g->per_expected) >> 44);
  i = i < g->n ? i : g->n - 1;
  int64_t off = (int64_t)(sought + base - expected_in(g, i)) >> 4;
  int64_t next = (int64_t)i + ((off * (int64_t)g->per_expected) >> 44);
  next = next < (int64_t)g->n ? next : (int64_t)g->n - 1;
  return next < (int64_t)from ? from : (uint32_t)next;
}

/* Go from a symbol nearby to the one that holds `target`, which is below the border of "none". */
static inline symbol settle(const segment *g, symbol y, uint32_t from, uint64_t base, uint64_t target) {
  for (int steps = 0; y.lower > target || y.upper <= target; steps++) {
    if (steps == MAX_STEPS) return symbol_of(g, search_trit(g, from, base, target), from, base);
    if (y.lower > target) {
      y.i--;
      y.after = y.before, y.upper = y.lower;
      y.before -= expected_of(g, y.i);
      y.lower = border(y.before, base, y.i, from);
    } else {
      y.i++;
      y.before = y.after, y.lower = y.upper;
      y.after += expected_of(g, y.i);
      y.upper = border(y.after, base, y.i + 1, from);
    }
  }
  return y;
}

/* Find the symbol that holds `target`. */
static inline symbol find_symbol(const segment *g, uint32_t from, uint64_t base, uint64_t target) {
  if (g->sums) return symbol_of(g, search_trit(g, from, base, target), from, base);
  return settle(g, symbol_of(g, guess_trit(g, from, base, target), from, base), from, base, target);
}

#endif
