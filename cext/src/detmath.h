/* detmath.h - private: elementary functions that give the same bits with every C library.
 *
 * Only + - * / on IEEE doubles and floats in a fixed order, and integer operations on their bits;
 * the sources are compiled with -ffp-contract=off.  Error bounds, measured by tests/kernel_check.c
 * against the C library's long double functions over the ranges that the engine uses:
 *
 *       det_expf    2 ulp          on [-87, 88]
 *       det_exp     2^-50 relative on [-700, 700]
 *       det_log     2^-50 relative on [2^-20, 2^40], away from 1
 *       det_sincos  2^-50 absolute on [0, 2^20] */
#ifndef DETMATH_H
#define DETMATH_H

#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of_f32(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float f32_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Nearest integer, ties to even, for |x| < 2^22: the addition leaves no bit for a fraction. */
static inline float round_f32(float x)
{
    return (x + 0x1.8p23f) - 0x1.8p23f;
}

/* The same for |x| < 2^51. */
static inline double round_f64(double x)
{
    return (x + 0x1.8p52) - 0x1.8p52;
}

/* exp(x): 0 below -87, the value at 88 above 88; a NaN gives 0.  Branch-free, so that loops over it
 * become vector code.  kv_template.h has the same steps in vectors.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first with 9 bits, so that n * LN2_HI
 * is exact; then the Taylor series to r^7 / 7!, whose rest is below 2^-27. */
static const float EXPF_LOW = -87.0f, EXPF_HIGH = 88.0f, EXPF_LOG2E = 0x1.715476p+0f;
static const float EXPF_LN2_HI = 0x1.63p-1f, EXPF_LN2_LO = -0x1.bd0106p-13f;
static const float EXPF_ROUND = 0x1.8p23f; /* as in round_f32 */
static const float EXPF_TERM[] = { 1.0f / 5040.0f, 1.0f / 720.0f, 1.0f / 120.0f,
                                   1.0f / 24.0f,   1.0f / 6.0f,   0.5f };
enum { EXPF_TERMS = 6 };

static inline float det_expf(float x)
{
    const float y = x > EXPF_LOW ? x < EXPF_HIGH ? x : EXPF_HIGH : EXPF_LOW;
    const float n = round_f32(y * EXPF_LOG2E);
    const float r = (y - n * EXPF_LN2_HI) - n * EXPF_LN2_LO;
    float p = EXPF_TERM[0];
    for (int i = 1; i < EXPF_TERMS; i++) p = p * r + EXPF_TERM[i];
    p = p * r * r + r + 1.0f;
    const float power = f32_from_bits((uint32_t)((int32_t)n + 127) << 23); /* n in [-126, 127] */
    return x >= EXPF_LOW ? p * power : 0.0f;
}

double det_exp(double x);
double det_log(double x);
void det_sincos(double x, double *sine, double *cosine);

#endif
