/* The entropy coder of deltas: changed trits, whole planes of trits, changed float words.
 *
 * The bytes are defined in docs/formats.md, section 5; this file and flips.c are one implementation of it,
 * for both directions: the model of a coder is updated by the same lines whether it writes or reads.
 *
 * Laws:
 *   - integers only, so that every machine predicts the same;
 *   - memory is bounded by the constants below, whatever a stream says;
 *   - a reader that runs out of input stops between two segments and can be called again.
 */
#ifndef EDGE_DELTA_FLIPS_H
#define EDGE_DELTA_FLIPS_H

#include <stddef.h>
#include <stdint.h>

enum {
  FLIPS_MAX_SEGMENT = 4096,      /* trits that share one prediction; see FLIPS_INPUT_MARGIN */
  FLIPS_MIN_SEGMENT = 64,        /* one word of a bitmap */
  FLIPS_MAX_LINE_TRITS = 1 << 18, /* a line's bitmap and its counters: 32 KiB and 1 MiB */
  FLIPS_MAX_PRIOR = 1 << 14,     /* of k_line and k_cross, so that (k + count) << 48 fits 64 bits */
  FLIPS_WORD_CLASSES = 32,       /* exponents of a float word's old value */
  FLIPS_WORDS_AT_ONCE = 1024,    /* float words between two looks at the input */
};

/* Bytes that a segment can consume at most: a trit costs one symbol of 48 bits and a bit of 32; a float word one
 * zero flag, one sign, 33 length flags and 32 bits.  A decoder with so many bytes at hand never runs dry. */
#define FLIPS_INPUT_MARGIN ((size_t)FLIPS_MAX_SEGMENT * 16 + 64)

enum flips_status {
  FLIPS_OK = 0,
  FLIPS_MORE = 1,     /* the input is used up, or the output is full: call again */
  FLIPS_ILLEGAL = -1, /* the old plane holds a code that is none */
  FLIPS_EARLY = -2,   /* the stream ended before the plane */
  FLIPS_BUG = -3,     /* an argument breaks its bound */
};

/* How a packed plane is walked: lines of blocks, docs/formats.md section 5.3. */
typedef struct {
  uint32_t base3;      /* 0: four codes a byte, blocks of 128 in 32 bytes; 1: five, 320 in 64 bytes */
  uint32_t line_bytes; /* a multiple of the block's bytes */
  uint32_t valid;      /* trits of a line that are weights; what follows is padding */
  uint32_t tail_lines; /* so many lines at the end ... */
  uint32_t tail_valid; /* ... have so many, not more */
  uint32_t period;     /* lines after which places mean other outputs; 0: never */
  uint32_t segment;    /* trits that share one prediction, a power of two */
  uint32_t k_line;     /* prior of a line's own rate, in flips; 0: lines have no rate of their own */
  uint32_t k_cross;    /* prior of a place's own rate; 0: places have none */
  uint32_t blind;      /* 1: nothing depends on the old trits, the stream composes and inverts */
} flips_shape;

typedef struct {
  uint16_t fast, slow, seen;
} flips_bit; /* an adaptive bit: two estimates of P(1) in 16 bits, and how young they are */

typedef struct {
  uint64_t ones, bits, p1;
} flips_share; /* a bit that is counted: P(1) in Q32 is the share of ones */

typedef struct {
  flips_bit moves[FLIPS_WORD_CLASSES][4];
  flips_bit sign[FLIPS_WORD_CLASSES];
  flips_bit length[FLIPS_WORD_CLASSES][33];
  flips_bit top[33][16]; /* the four bits below the highest one */
} flips_words;

typedef struct {
  /* range coder */
  uint64_t low, range, code;
  int writes, has_cache, carry, failed;
  uint16_t cache;
  uint64_t pending;
  uint8_t *out;
  size_t n_out, max_out;
  const uint8_t *in;
  size_t at, n_in;
  int at_end, started; /* `started` counts the units of the first code */
  uint32_t past_end; /* bytes read beyond the end; they are zeros */
  /* model */
  uint64_t flips[2], trits[2]; /* of old zeros and of old signs */
  flips_share shares[3];       /* signs of what was 0; fates of what was not; steps of blind flips */
  uint64_t zeros_seen, trits_seen, plus_seen, signs_seen; /* of planes from nothing */
  flips_words words;
  /* place in the plane */
  uint64_t line, n_lines;
  uint32_t place;
  int lazy; /* reading: the line's bitmaps are made a segment at a time, where something flips */
  uint64_t line_flips, line_expected;
  uint64_t cross_expected;
  uint32_t recent; /* which of the last float words changed, one bit each */
  uint32_t *cross; /* k_cross + flips of each place of a line */
  uint32_t max_cross;
  uint64_t n_flips;
  /* the line at hand */
  uint32_t n_valid;
  uint64_t zeros[FLIPS_MAX_LINE_TRITS / 64 + 8];   /* bit i: old trit i is zero */
  uint64_t changes[FLIPS_MAX_LINE_TRITS / 64 + 8]; /* writing only: trit i changes */
  uint64_t sums[FLIPS_MAX_SEGMENT + 1];
} flips_coder;

/* For tests, of streams that start from now on: 1, they do without what only some CPUs have; 2, without the quick
 * reader too, so that only the definition is left.  The bits are the same. */
void flips_plain(int level);

/* Start a stream.  `c` is all zeros. */
void flips_start(flips_coder *c, int writes);

/* Before the first flip: how many trits one is expected in. */
void flips_guess(flips_coder *c, uint64_t mean_gap);
void flips_free(flips_coder *c);

int flips_shape_ok(const flips_shape *s);

/* Begin a plane of n_bytes; then call flips_write or flips_read until all lines are done. */
int flips_begin(flips_coder *c, const flips_shape *s, uint64_t n_bytes);

/* Code `n_lines` whole lines of a plane.  Writing: `old` and `new` are read.  Reading: `new` holds the old lines
 * and becomes the new ones; `old` is not used. */
int flips_lines(flips_coder *c, const flips_shape *s, const uint8_t *old, uint8_t *new_, uint64_t n_lines);

/* The same for planes that come from nothing. */
int trits_lines(flips_coder *c, const flips_shape *s, uint8_t *plane, uint64_t n_lines);

/* Words of `width` 1, 2 or 4 bytes, at most FLIPS_WORDS_AT_ONCE a call; `old` and `new_` as above. */
int words_code(flips_coder *c, uint32_t width, int blind, const uint8_t *old, uint8_t *new_, uint64_t n_words);

/* Reading: take the first units of the stream, if that has not happened; the input must have them or be at its end.
 */
void flips_open(flips_coder *c);

/* End the stream that is written. */
int flips_end(flips_coder *c);

#endif
