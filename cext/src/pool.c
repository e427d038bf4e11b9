/* pool.c - workers spin for a short while, then sleep on a futex.
 *
 * A token is some ten jobs a layer, a few microseconds each: a system call for each would cost more
 * than the work.  Between tokens the workers sleep, so that an idle engine costs nothing.
 *
 * `epoch` counts jobs and `pending` the workers still running the current one; both are futex
 * words. Sleep and wake follow one pattern: the sleeper announces itself, then asks the kernel to
 * sleep only if the word still has the old value; the waker changes the word, then looks for
 * sleepers.  All of these are sequentially consistent, so at least one of the two sees the other.
 */
#define _GNU_SOURCE
#include "pool.h"
#include "fpenv.h"
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Waiting, cheapest first.  A pause is some 40 ns on x86 and 10 ns on Arm: the spins cover the gap
 * between most jobs.  The yields matter when two of our threads share a core, which happens when
 * other processes keep the other cores busy: the one that waits then makes room at once. */
enum {
    SPINS = 80,
    YIELDS = 50
}; /* of some 40 ns on x86 and 10 ns on Arm: longer than a gap between two jobs */

struct tern_pool {
    _Alignas(64) _Atomic uint32_t epoch;
    _Atomic uint32_t sleepers;
    pool_job_fn *job; /* written before epoch, read after it; NULL: leave */
    void *arg;
    size_t n_threads;
    _Alignas(64) _Atomic uint32_t pending;
    _Atomic uint32_t caller_sleeps;
    pthread_t workers[POOL_THREADS_MAX - 1];
};

typedef struct worker_start {
    tern_pool *pool;
    size_t thread;
} worker_start;

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t old)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Return when `*word` is no longer `old`. */
static void await_change(_Atomic uint32_t *word, uint32_t old, _Atomic uint32_t *sleepers)
{
    for (int i = 0; i < SPINS + YIELDS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) return;
        if (i < SPINS)
            relax();
        else
            sched_yield();
    }
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(word) == old) futex_wait(word, old);
    atomic_fetch_sub(sleepers, 1);
}

static void *worker_main(void *start)
{
    tern_pool *pool = ((worker_start *)start)->pool;
    const size_t thread = ((worker_start *)start)->thread;
    free(start);
    fp_mode_swap(FP_MODE_DEFAULT);
    for (uint32_t epoch = 0;; epoch++) {
        await_change(&pool->epoch, epoch, &pool->sleepers);
        if (!pool->job) return NULL;
        pool->job(pool->arg, thread, pool->n_threads);
        if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->caller_sleeps))
            futex_wake_all(&pool->pending);
    }
}

/* Publish a job to the workers. */
static void start_job(tern_pool *pool, pool_job_fn *job, void *arg)
{
    pool->job = job;
    pool->arg = arg;
    atomic_store(&pool->pending, (uint32_t)pool->n_threads - 1);
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers)) futex_wake_all(&pool->epoch);
}

void pool_run(tern_pool *pool, pool_job_fn *job, void *arg)
{
    if (pool->n_threads == 1) {
        job(arg, 0, 1);
        return;
    }
    start_job(pool, job, arg);
    job(arg, 0, pool->n_threads);
    for (uint32_t left; (left = atomic_load(&pool->pending)) != 0;)
        await_change(&pool->pending, left, &pool->caller_sleeps);
}

static bool start_worker(tern_pool *pool, size_t thread)
{
    worker_start *start = malloc(sizeof *start);
    if (!start) return false;
    *start = (worker_start){ pool, thread };
    if (pthread_create(&pool->workers[thread - 1], NULL, worker_main, start) == 0) return true;
    free(start);
    return false;
}

tern_pool *pool_new(size_t n_threads)
{
    tern_pool *pool = aligned_alloc(_Alignof(tern_pool), sizeof *pool);
    if (!pool) return NULL;
    *pool = (tern_pool){ .n_threads = 1 };
    for (; pool->n_threads < n_threads; pool->n_threads++) {
        if (!start_worker(pool, pool->n_threads)) {
            pool_free(pool);
            return NULL;
        }
    }
    return pool;
}

void pool_free(tern_pool *pool)
{
    if (!pool) return;
    if (pool->n_threads > 1) start_job(pool, NULL, NULL);
    for (size_t i = 1; i < pool->n_threads; i++) pthread_join(pool->workers[i - 1], NULL);
    free(pool);
}

size_t pool_threads(const tern_pool *pool)
{
    return pool->n_threads;
}
