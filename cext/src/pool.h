/* pool.h - private: a fixed set of threads that run one job together. */
#ifndef POOL_H
#define POOL_H

#include <stdbool.h>
#include <stddef.h>

enum { POOL_THREADS_MAX = 64 };

/* Called once on every thread, `thread` in [0, n_threads).  The split of the work is the job's. */
typedef void pool_job_fn(void *arg, size_t thread, size_t n_threads);

typedef struct tern_pool tern_pool;

/* `n_threads` counts the caller.  NULL when memory or threads are lacking. */
tern_pool *pool_new(size_t n_threads);
void pool_free(tern_pool *pool);
size_t pool_threads(const tern_pool *pool);

/* Run `job` on all threads and return when all are done.  One caller at a time. */
void pool_run(tern_pool *pool, pool_job_fn *job, void *arg);

#endif
