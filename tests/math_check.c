/* math_check.c - the bounds that detmath.h states, against the C library's long double functions.
 */
#include "../cext/src/detmath.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>

static bool report(const char *name, long double worst, long double bound)
{
    printf("%-12s worst %.3Lg, bound %.3Lg\n", name, worst, bound);
    return worst <= bound;
}

/* In units of the last place, over every 64th float of [-87, 88]. */
static bool check_expf(void)
{
    long double worst = 0;
    for (uint32_t bits = 0; bits < 0x42b00000u; bits += 64) { /* |x| < 88 */
        for (int sign = 0; sign < 2; sign++) {
            const float x = f32_from_bits(bits | (uint32_t)sign << 31);
            if (x < -87.0f) continue;
            const long double want = expl((long double)x);
            const float near = (float)want;
            const long double ulp = (long double)nextafterf(near, INFINITY) - (long double)near;
            const long double error = fabsl((long double)det_expf(x) - want) / ulp;
            worst = error > worst ? error : worst;
        }
    }
    const bool ends = det_expf(-INFINITY) == 0.0f && det_expf(-88.0f) == 0.0f &&
                      det_expf(INFINITY) == det_expf(88.0f) && det_expf(NAN) == 0.0f &&
                      det_expf(0.0f) == 1.0f;
    return report("det_expf", worst, 2.0L) && ends;
}

static bool check_exp(void)
{
    long double worst = 0;
    for (int i = -700000; i <= 700000; i += 7) {
        const double x = i / 1000.0;
        const long double error = fabsl((long double)det_exp(x) / expl((long double)x) - 1.0L);
        worst = error > worst ? error : worst;
    }
    return report("det_exp", worst, 0x1p-50L);
}

static bool check_log(void)
{
    long double worst = 0;
    for (double x = 0x1p-20; x < 0x1p40; x *= 1.0001) {
        if (x > 0.9 && x < 1.1) continue;
        const long double want = logl((long double)x);
        const long double error = fabsl(((long double)det_log(x) - want) / want);
        worst = error > worst ? error : worst;
    }
    return report("det_log", worst, 0x1p-50L) && det_log(1.0) == 0.0;
}

static bool check_sincos(void)
{
    long double worst = 0;
    for (int i = 0; i < 3000000; i++) {
        const double x = i < 1000000 ? i / 7000.0 : (i - 1000000) / 1.9073486;
        double sine, cosine;
        det_sincos(x, &sine, &cosine);
        const long double s = fabsl((long double)sine - sinl((long double)x));
        const long double c = fabsl((long double)cosine - cosl((long double)x));
        worst = s > worst ? s : worst;
        worst = c > worst ? c : worst;
    }
    return report("det_sincos", worst, 0x1p-50L);
}

int main(void)
{
    bool ok = check_expf();
    ok &= check_exp();
    ok &= check_log();
    ok &= check_sincos();
    return ok ? 0 : 1;
}
