/* fpenv.h - private: run with the default floating-point mode.
 *
 * Another library in the process may have switched this thread to flush subnormals to zero; our
 * results would then differ between processes. */
#ifndef FPENV_H
#define FPENV_H

#include <stdint.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
typedef uint32_t fp_mode;
#define FP_MODE_DEFAULT 0x1f80u /* all exceptions masked, nearest, no flushing */
static inline fp_mode fp_mode_swap(fp_mode mode)
{
    const fp_mode old = _mm_getcsr();
    _mm_setcsr(mode);
    return old;
}
#elif defined(__aarch64__)
typedef uint64_t fp_mode;
#define FP_MODE_DEFAULT 0u /* nearest, no flushing, no traps */
static inline fp_mode fp_mode_swap(fp_mode mode)
{
    fp_mode old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
    return old;
}
#else
typedef uint32_t fp_mode;
#define FP_MODE_DEFAULT 0u
static inline fp_mode fp_mode_swap(fp_mode mode)
{
    return mode;
}
#endif

#endif
