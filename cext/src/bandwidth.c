/* bandwidth.c - the fastest plain read that was found; see bandwidth.h.
 *
 * Two streams a thread, half of its share apart, and the hardware's own prefetch.  On Zen 4, in GB/s with
 * one thread and pages of 4 KiB / 2 MiB: two streams 23.8 / 29.6; one stream 22.0 / 27.6, and with a little
 * arithmetic between its loads 24.4 / 29.7, which is why kernels can beat a plain read; one stream and
 * software prefetch into any level, 1 to 16 KiB ahead, 20.9 to 22.3 / 24.7 to 27.0; streams of neighbouring
 * pages 14 to 17 / 12 to 20. */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */
#include "bandwidth.h"
#include "pool.h"
#include "variants.h"
#include <string.h>
#include <time.h>

/* Eight lanes in one register or in four, as the target has them; no alignment needed. */
typedef uint64_t words_u64x8 __attribute__((vector_size(64), aligned(1), may_alias));

enum {
    STEP_BYTES = 128, /* of a stream in one turn: four independent sums hide the latency of xor */
    WORD_BYTES = 8,
};

static uint64_t fold_tail(const uint8_t *bytes, size_t n_bytes)
{
    uint64_t fold = 0;
    for (size_t i = 0; i < n_bytes; i += WORD_BYTES) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, n_bytes - i < WORD_BYTES ? n_bytes - i : WORD_BYTES);
        fold ^= word;
    }
    return fold;
}

__attribute__((always_inline)) static inline uint64_t fold_bytes(const uint8_t *bytes,
                                                                 size_t n_bytes)
{
    words_u64x8 sum0 = { 0 }, sum1 = { 0 }, sum2 = { 0 }, sum3 = { 0 };
    const size_t half = n_bytes / (2 * STEP_BYTES) * STEP_BYTES;
    for (size_t i = 0; i < half; i += STEP_BYTES) {
        const words_u64x8 *first = (const words_u64x8 *)(bytes + i);
        const words_u64x8 *second = (const words_u64x8 *)(bytes + half + i);
        sum0 ^= first[0];
        sum1 ^= first[1];
        sum2 ^= second[0];
        sum3 ^= second[1];
    }
    sum0 ^= sum1 ^ sum2 ^ sum3;
    uint64_t fold = fold_tail(bytes + 2 * half, n_bytes - 2 * half);
    for (int l = 0; l < 8; l++) fold ^= sum0[l];
    return fold;
}

typedef uint64_t fold_fn(const uint8_t *bytes, size_t n_bytes);

static uint64_t fold_plain(const uint8_t *bytes, size_t n_bytes)
{
    return fold_bytes(bytes, n_bytes);
}

#if defined(__x86_64__)
TARGET("avx2") static uint64_t fold_avx2(const uint8_t *bytes, size_t n_bytes)
{
    return fold_bytes(bytes, n_bytes);
}

TARGET("avx512f") static uint64_t fold_avx512(const uint8_t *bytes, size_t n_bytes)
{
    return fold_bytes(bytes, n_bytes);
}
#endif

static fold_fn *widest_fold(void)
{
#if defined(__x86_64__)
    const uint32_t cpu = tern_cpu_features();
    if (cpu & TERN_CPU_AVX512VNNI) return fold_avx512;
    if (cpu & TERN_CPU_AVX2) return fold_avx2;
#endif
    return fold_plain;
}

typedef struct read_job {
    const uint8_t *bytes;
    size_t n_bytes;
    fold_fn *fold;
    uint64_t folds[POOL_THREADS_MAX];
} read_job;

static void run_read_job(void *arg, size_t thread, size_t n_threads)
{
    read_job *job = arg;
    const size_t words = (job->n_bytes + WORD_BYTES - 1) / WORD_BYTES;
    const size_t begin = words * thread / n_threads * WORD_BYTES;
    const size_t stop = words * (thread + 1) / n_threads * WORD_BYTES;
    const size_t end = stop < job->n_bytes ? stop : job->n_bytes;
    job->folds[thread] = job->fold(job->bytes + begin, end - begin);
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double tern_read_seconds(const uint8_t *bytes, size_t n_bytes, size_t n_threads, uint64_t *fold)
{
    read_job job = { .bytes = bytes, .n_bytes = n_bytes, .fold = widest_fold() };
    tern_pool *pool = pool_new(n_threads);
    if (pool == NULL) return 0.0;
    const double start_s = now_s();
    pool_run(pool, run_read_job, &job);
    const double seconds = now_s() - start_s;
    pool_free(pool);
    *fold = 0;
    for (size_t t = 0; t < n_threads; t++) *fold ^= job.folds[t];
    return seconds;
}
