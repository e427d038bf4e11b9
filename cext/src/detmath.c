/* detmath.c - double-precision functions for the RoPE table; see detmath.h for their bounds.
 *
 * Each reduces its argument to a small interval and sums a Taylor series there, smallest term
 * first. */
#include "detmath.h"

static const double LN2_HI = 0x1.62e42feep-1; /* 33 bits: n * LN2_HI is exact for |n| < 2^20 */
static const double LN2_LO = 0x1.a39ef35793c76p-33;

/* exp(x) for |x| <= 700.  The rest of the series, r^14 / 14! with |r| <= 0.347, is below 2^-57. */
double det_exp(double x)
{
    const double n = round_f64(x * 0x1.71547652b82fep+0);
    const double r = (x - n * LN2_HI) - n * LN2_LO;
    double p = 1.0;
    for (int k = 13; k >= 1; k--) p = p * r / k + 1.0;
    const uint64_t bits = (uint64_t)((int64_t)n + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* log(x) for normal x > 0: x = m * 2^e with m in [sqrt(1/2), sqrt(2)), and
 * log m = 2 (f + f^3 / 3 + f^5 / 5 + ...) with f = (m - 1) / (m + 1), |f| < 0.172. */
double det_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t e = (int64_t)(bits >> 52 & 0x7ff) - 1023;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m >= 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        e++;
    }
    const double f = (m - 1.0) / (m + 1.0), f2 = f * f;
    double p = 0.0;
    for (int k = 21; k >= 1; k -= 2) p = p * f2 + 1.0 / k;
    return (double)e * LN2_HI + (2.0 * f * p + (double)e * LN2_LO);
}

/* sin and cos for 0 <= x <= 2^20.  pi/2 in three parts of 33 bits: their products with n < 2^20 are
 * exact, and what is left of pi/2 is below 2^-100. */
void det_sincos(double x, double *sine, double *cosine)
{
    const double PIO2_1 = 0x1.921fb544p+0, PIO2_2 = 0x1.0b4611a6p-34,
                 PIO2_3 = 0x1.3198a2e037073p-69;
    const double n = round_f64(x * 0x1.45f306dc9c883p-1);
    const double r = ((x - n * PIO2_1) - n * PIO2_2) - n * PIO2_3, r2 = r * r;
    double s = 1.0, c = 1.0;
    for (int k = 17; k >= 3; k -= 2) s = 1.0 - s * r2 / (k * (k - 1)); /* |r| < 0.786 */
    for (int k = 18; k >= 2; k -= 2) c = 1.0 - c * r2 / (k * (k - 1));
    s *= r;
    switch ((int64_t)n & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
    }
}
