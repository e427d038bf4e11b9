/* dispatch.c - which variants exist, and which one this machine gets. */
#include "variants.h"
#include <string.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
/* From the kernel's <asm/hwcap.h>, which old C libraries do not ship in full. */
enum { HWCAP_ASIMDDP_BIT = 1u << 20, HWCAP2_I8MM_BIT = 1u << 13 };
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Model files are little-endian and used in place; step zero would be a machine to test on."
#endif

/* best first */
static const tern_kernels *const variants[] = {
#if defined(__x86_64__)
    &tern_avx512vnni,
    &tern_avx2,
#elif defined(__aarch64__)
    &tern_neon_i8mm,
    &tern_neon_dotprod,
    &tern_neon,
#endif
    &tern_scalar,
    NULL,
};

const tern_kernels *const *tern_variants(void)
{
    return variants;
}

uint32_t tern_cpu_features(void)
{
    uint32_t cpu = 0;
#if defined(__x86_64__)
    /* The builtins also ask the OS, by XGETBV, whether it saves the wide registers. */
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) cpu |= TERN_CPU_AVX2;
    if (__builtin_cpu_supports("f16c")) cpu |= TERN_CPU_F16C;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512vbmi"))
        cpu |= TERN_CPU_AVX512VNNI;
#elif defined(__aarch64__)
    cpu |= TERN_CPU_NEON; /* mandatory in the ABI */
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP_BIT) cpu |= TERN_CPU_DOTPROD;
    if (getauxval(AT_HWCAP2) & HWCAP2_I8MM_BIT) cpu |= TERN_CPU_I8MM;
#endif
    return cpu;
}

const tern_kernels *tern_select(uint32_t cpu, const char *forced)
{
    for (const tern_kernels *const *v = variants; *v; v++) {
        if (forced && strcmp(forced, (*v)->name) != 0) continue;
        if (((*v)->needs & cpu) == (*v)->needs) return *v;
    }
    return NULL;
}

/* Code 3 has both bits set: look for a bit pair 11, eight bytes at a time. */
static size_t find_code_3(const uint8_t *bytes, size_t n_bytes)
{
    size_t i = 0;
    for (; i + 8 <= n_bytes; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, sizeof word);
        if (word & word >> 1 & 0x5555555555555555u) break;
    }
    for (; i < n_bytes; i++)
        if (bytes[i] & bytes[i] >> 1 & 0x55) return i;
    return n_bytes;
}

/* Runs of 64 bytes whose largest is looked at first: that loop becomes vector code. */
static size_t find_byte_243(const uint8_t *bytes, size_t n_bytes)
{
    size_t i = 0;
    for (; i + 64 <= n_bytes; i += 64) {
        uint8_t largest = 0;
        for (size_t j = 0; j < 64; j++) largest = bytes[i + j] > largest ? bytes[i + j] : largest;
        if (largest >= TERN_BYTE3_END) break;
    }
    for (; i < n_bytes; i++)
        if (bytes[i] >= TERN_BYTE3_END) return i;
    return n_bytes;
}

size_t tern_find_bad_code(tern_packing packing, const uint8_t *bytes, size_t n_bytes)
{
    return packing == TERN_BASE3 ? find_byte_243(bytes, n_bytes) : find_code_3(bytes, n_bytes);
}
