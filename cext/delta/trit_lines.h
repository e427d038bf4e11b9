/* trit_lines.h - private to flips.c: which trits of a packed line are zero, and one trit by its place.
 *
 * Both packings of docs/formats.md, section 3. */
#ifndef TRIT_LINES_H
#define TRIT_LINES_H

#include "flips.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static int plainness; /* see flips_plain() */

static uint8_t zero_fields[256]; /* bit f: field f of this byte is code 1; 255: no code */

#if defined(__x86_64__)
/* Whether this CPU counts bits itself; whether it is of 2013 or later: AVX2, BMI, LZCNT. */
static int has_popcnt, has_v3;
#define X86_V3 __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt")))
#endif

static void make_fields(void) {
#if defined(__x86_64__)
  has_popcnt = !plainness && __builtin_cpu_supports("popcnt") != 0;
  has_v3 = has_popcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt");
#endif
  if (zero_fields[255]) return;
  for (int byte = 0; byte < 256; byte++) {
    int rest = byte;
    uint8_t mask = 0;
    for (int f = 0; f < 5; f++, rest /= 3) mask = (uint8_t)(mask | (rest % 3 == 1) << f);
    zero_fields[byte] = byte < 243 ? mask : 255;
  }
}

static inline uint32_t count_bits(uint64_t x) {
#if defined(__x86_64__)
  if (has_popcnt) { /* all but the oldest; a branch that is always foreseen costs less than the sum below */
    __asm__("popcnt %0, %0" : "+r"(x) : : "cc");
    return (uint32_t)x;
  }
#endif
  x -= (x >> 1) & 0x5555555555555555ull;
  x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full;
  return (uint32_t)((x * 0x0101010101010101ull) >> 56);
}

/* Lowest bits of 8 bytes as one byte. */
static inline uint64_t gather(uint64_t bytes) {
  return ((bytes & 0x0101010101010101ull) * 0x0102040810204080ull) >> 56;
}

static inline uint64_t load64(const uint8_t *p) {
  uint64_t x;
  memcpy(&x, p, 8);
  return x; /* little-endian machines only, as the whole product */
}

/* Bit r of the block's words: trit r is zero.  Returns 0 if a code is illegal. */
static int zeros2(const uint8_t *block, uint64_t *words) {
  uint64_t bad = 0;
  words[0] = words[1] = 0;
  for (int k = 0; k < 4; k++) {
    uint64_t w = load64(block + 8 * k);
    bad |= w & w >> 1;
    for (int f = 0; f < 4; f++) words[f >> 1] |= gather(w >> (2 * f)) << (32 * (f & 1) + 8 * k);
  }
  return !(bad & 0x5555555555555555ull);
}

static int zeros3(const uint8_t *block, uint64_t *words) {
  uint8_t bad = 0;
  memset(words, 0, 5 * sizeof *words);
  for (int k = 0; k < 8; k++) {
    uint64_t eight = 0;
    for (int j = 0; j < 8; j++) {
      uint8_t mask = zero_fields[block[8 * k + j]];
      bad |= mask >> 7;
      eight |= (uint64_t)mask << (8 * j);
    }
    for (int f = 0; f < 5; f++) words[f] |= gather(eight >> f) << (8 * k);
  }
  return !bad;
}

#if defined(__x86_64__)
/* zeros2() of many blocks. */
X86_V3 static int map_blocks2_v3(const uint8_t *blocks, uint32_t n_bytes, uint64_t *words) {
  __m256i bad = _mm256_setzero_si256();
  for (uint32_t at = 0; at < n_bytes; at += 32, words += 2) {
    __m256i v = _mm256_loadu_si256((const __m256i *)(blocks + at));
    bad = _mm256_or_si256(bad, _mm256_and_si256(v, _mm256_srli_epi16(v, 1)));
    uint64_t a = (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(v, 7));
    uint64_t b = (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(v, 5));
    uint64_t c = (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(v, 3));
    uint64_t d = (uint32_t)_mm256_movemask_epi8(_mm256_slli_epi16(v, 1));
    words[0] = a | b << 32;
    words[1] = c | d << 32;
  }
  return _mm256_testz_si256(bad, _mm256_set1_epi8(0x55));
}
#endif

/* Bitmaps of whole blocks; returns 0 if a code is illegal. */
static int map_blocks(const flips_shape *s, const uint8_t *blocks, uint32_t n_bytes, uint64_t *words) {
  int good = 1;
#if defined(__x86_64__)
  if (has_v3 && !s->base3) return map_blocks2_v3(blocks, n_bytes, words);
#endif
  if (s->base3) {
    for (uint32_t at = 0; at < n_bytes; at += 64, words += 5) good &= zeros3(blocks + at, words);
  } else {
    for (uint32_t at = 0; at < n_bytes; at += 32, words += 2) good &= zeros2(blocks + at, words);
  }
  return good;
}

/* How many trits of whole blocks are zero, without their bitmaps; -1 if a code is illegal. */
static int64_t count_zeros(const flips_shape *s, const uint8_t *blocks, uint32_t n_bytes) {
  uint64_t bad = 0, low = 0x5555555555555555ull;
  uint32_t zeros = 0;
  if (s->base3) {
    for (uint32_t at = 0; at < n_bytes; at += 8) {
      uint64_t eight = 0;
      for (int j = 0; j < 8; j++) eight |= (uint64_t)zero_fields[blocks[at + j]] << (8 * j);
      bad |= eight >> 7;
      zeros += count_bits(eight);
    }
    return bad & 0x0101010101010101ull ? -1 : (int64_t)zeros;
  }
  for (uint32_t at = 0; at < n_bytes; at += 16) { /* code 1 has its low bit set, the others have not */
    uint64_t a = load64(blocks + at), b = load64(blocks + at + 8);
    bad |= (a & a >> 1) | (b & b >> 1);
    zeros += count_bits((a & low) | (b & low) << 1);
  }
  return bad & low ? -1 : (int64_t)zeros;
}

static const uint8_t power3[5] = {1, 3, 9, 27, 81};

/* Where trit i of a line lies; two branches, so that all divisors are constants. */
static inline uint8_t *byte_of(const flips_shape *s, uint8_t *line, uint32_t i, uint32_t *field) {
  if (s->base3) {
    uint32_t block = i / 320, r = i % 320;
    *field = r / 64;
    return line + block * 64 + r % 64;
  }
  *field = i % 128 / 32;
  return line + i / 128 * 32 + i % 32;
}

static inline int get_code(const flips_shape *s, const uint8_t *line, uint32_t i) {
  uint32_t field;
  uint8_t byte = *byte_of(s, (uint8_t *)line, i, &field);
  return s->base3 ? byte / power3[field] % 3 : byte >> (2 * field) & 3;
}

static inline void set_code(const flips_shape *s, uint8_t *line, uint32_t i, int old, int code) {
  uint32_t field;
  uint8_t *byte = byte_of(s, line, i, &field);
  if (s->base3)
    *byte = (uint8_t)(*byte + (code - old) * power3[field]);
  else
    *byte = (uint8_t)(*byte ^ (old ^ code) << (2 * field));
}

#endif
