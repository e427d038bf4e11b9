/* head.c - from the hidden state to logits: all of them, or provably the best.
 *
 * The proof.  For a row w of float16 and the hidden state x, and u = 2^-24:
 *
 *   w = a + b + e   a from codes, b from the refine plane; the model file has upper bounds of
 *                   ||w|| and ||a|| (norm), of ||w - a|| (rest) and of ||e|| (refined_rest)
 *   x = q + d       q: int8 times a unit for each group of 32; h: int8 times one unit
 *
 *   scan:    w.x - a.q         = (w - a).x + a.d            <= rest ||x|| + norm ||d||
 *   refine:  w.x - a.q - b.h   = e.x + a.d + b.(x - h)      <= refined_rest ||x|| + norm ||d||
 *                                                              + (rest + refined_rest) ||x - h||
 *
 * by Cauchy-Schwarz, ||b|| <= ||w - a|| + ||e||.  What float32 adds, with N = ||x|| + ||d|| >= ||q||
 * and G groups:
 *
 *   a.q is a sum of G terms, each an exact integer that is rounded when it is scaled by the group's scale
 *   and by its unit, each partial sum rounded, then scaled by the row's scale: at most G + 4 roundings on
 *   a path, and the magnitudes of the terms sum to at most norm ||q||:  (G + 4) u norm N
 *   the exact logit is itself computed, by dot_f16: a product, the additions of its lane and four
 *   of the tree, magnitudes at most norm ||x||:                         (ceil(n / 16) + 5) u norm N
 *   b.h: one integer rounded, two scalings, one addition (estimates are below norm N plus the
 *   bounds):                                                            5 u (norm N + ||b|| ||h||)
 *   comparing estimate + bound, the bound itself in float32: covered by SLACK below.
 *
 * k roundings give at most k u / (1 - k u) <= 1.01 k u: k < 2^17.  Underflow: a group of x below 2^-60 is
 * taken as 0, which d has; the others have units above 2^-67.  A row of float16 that is not 0 has a norm of at least 2^-24 and |x| of at least 2^-60, so u norm N is at least 2^-108, while
 * what subnormal products of dot_f16 lose together is at most n 2^-150 <= 2^-130: covered by the one
 * further u norm N that is added.  This is for planes as our converter makes them. */
#include "head.h"
#include "detmath.h"
#include "fpenv.h"
#include "state.h"
#include "variants.h"
#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum {
    CHUNK_PANELS = 64, /* of one claim of a thread: 1.4 MB of codes at 2560 inputs */
    CHUNK_ROWS = CHUNK_PANELS * TERN_SCAN_ROWS,
    SURVIVOR_SHARE = 16, /* a full scan is cheaper than rescoring 1/16 of the rows one by one */
};
static const float X_LEAST = 0x1p-60f, X_MOST = 0x1p60f; /* of max |x|: no product leaves float32 */
static const double ROUNDING = 0x1p-24 * 1.01;
static const double SLACK = 1.0 + 0x1p-20; /* above the roundings of the bound and its factors */

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t up_to(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

bool head_take(tern_state *s)
{
    if (!s->model->scan.codes) return true;
    const tern_config *c = &s->model->config;
    const size_t padded = up_to(c->hidden, TERN_REFINE_BLOCK);
    const size_t rows = up_to(c->vocab, CHUNK_ROWS), guesses = TERN_THREADS_MAX * TERN_HEAD_K_MAX;
    head_scratch *h = &s->head;
    return (h->scan_x = state_take(s, padded, 1)) && (h->high = state_take(s, padded, 1)) &&
           (h->unit = state_take(s, padded / TERN_SCAN_GROUP, sizeof *h->unit)) &&
           (h->minus_zero = state_take(s, padded / TERN_SCAN_GROUP, sizeof *h->minus_zero)) &&
           (h->estimate = state_take(s, rows, sizeof *h->estimate)) &&
           (h->exact = state_take(s, rows, sizeof *h->exact)) &&
           (h->rows = state_take(s, rows, sizeof *h->rows)) &&
           (h->products = state_take(s, rows, sizeof *h->products)) &&
           (h->n_found = state_take(s, rows / CHUNK_ROWS, sizeof *h->n_found)) &&
           (h->guess = state_take(s, guesses, sizeof *h->guess));
}

/* ---- all logits ---- */

typedef struct full_job {
    tern_state *state;
    float *logits;
} full_job;

static void run_full(void *arg, size_t thread, size_t n_threads)
{
    const full_job *job = arg;
    const tern_model *m = job->state->model;
    const size_t n = m->config.hidden, vocab = m->config.vocab;
    const size_t begin = vocab * thread / n_threads, end = vocab * (thread + 1) / n_threads;
    m->kernels->dot_f16(m->head + begin * n, end - begin, n, job->state->hidden,
                        job->logits + begin);
}

void tern_head_logits(tern_state *s, float *logits)
{
    const fp_mode caller_mode = fp_mode_swap(FP_MODE_DEFAULT);
    pool_run(s->pool, run_full, &(full_job){ s, logits });
    s->head_counters.full_scans++;
    fp_mode_swap(caller_mode);
}

/* ---- one request ---- */

typedef struct head_job {
    tern_state *state;
    const tern_head_request *request;
    const tern_scan_x *x;
    float unit;                          /* of high */
    float by_norm, by_rest, by_refining; /* factors of ||w||, of a rest, of ||b|| in the bounds */
    int32_t high_sum;                    /* sum of high: at most 127 * 2^20 */
    size_t n_known;                      /* rows of the guess and recent rows */
    float worst;                         /* logit of the worst row of the guess */
    float floor;                         /* rows that cannot reach it are out */
    _Atomic size_t next, n_found, n_refined;
    _Atomic bool grew;
} head_job;

/* The largest |x| of n inputs, or infinity when one is not finite. */
static float largest_of(const float *x, size_t n)
{
    float largest = 0.0f;
    for (size_t i = 0; i < n; i++) {
        const float magnitude = fabsf(x[i]);
        if (!(magnitude <= X_MOST)) return INFINITY;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

static double squared(double v)
{
    return v * v;
}

/* q[i] = x[i] / unit to the nearest in [-127, 127]; the sum of the squares of what is left of x, which is
 * added to `left`.  The products of integers and units have 31 bits: exact in float64. */
static int32_t to_int8(const float *x, size_t n, float largest, float *unit, int8_t *q, double *left)
{
    const bool is_zero = largest < X_LEAST;
    const float inverse = is_zero ? 0.0f : (float)TERN_SCAN_X_MAX / largest;
    int32_t sum = 0;
    *unit = is_zero ? 0.0f : largest / (float)TERN_SCAN_X_MAX;
    for (size_t i = 0; i < n; i++) {
        int32_t v = (int32_t)round_f32(x[i] * inverse);
        v = v < TERN_SCAN_X_MAX ? v : TERN_SCAN_X_MAX;
        v = v > -TERN_SCAN_X_MAX ? v : -TERN_SCAN_X_MAX;
        q[i] = (int8_t)v;
        sum += v;
        *left += squared((double)x[i] - (double)*unit * v);
    }
    return sum;
}

/* q, h, and the factors of the bounds.  False when x is not finite, or zero, or so large or small that
 * the proof does not cover it. */
static bool quantize_hidden(head_job *job, tern_scan_x *x)
{
    tern_state *s = job->state;
    head_scratch *h = &s->head;
    const size_t n = s->model->config.hidden, groups = up_to(n, TERN_SCAN_GROUP) / TERN_SCAN_GROUP;
    const float largest = largest_of(s->hidden, n);
    if (!(largest >= X_LEAST && largest <= X_MOST)) return false;
    double x2 = 0.0, d2 = 0.0, h2 = 0.0;
    for (size_t i = 0; i < n; i++) x2 += squared(s->hidden[i]);
    job->high_sum = to_int8(s->hidden, n, largest, &job->unit, h->high, &h2);
    for (size_t g = 0; g < groups; g++) {
        const size_t at = g * TERN_SCAN_GROUP, here = smaller(TERN_SCAN_GROUP, n - at);
        const float *group = s->hidden + at;
        h->minus_zero[g] = -TERN_SCAN_ZERO * to_int8(group, here, largest_of(group, here),
                                                     &h->unit[g], h->scan_x + at, &d2);
    }
    const double norm_x = sqrt(x2), norm_d = sqrt(d2), norm_e = sqrt(h2);
    const double roundings = (double)(groups + up_to(n, DOT_LANES) / DOT_LANES + 16) * ROUNDING;
    job->by_rest = (float)(norm_x * SLACK);
    job->by_norm = (float)((norm_d + (norm_x + norm_d) * roundings) * SLACK);
    job->by_refining = (float)((norm_e + (norm_x + norm_e) * roundings) * SLACK);
    *x = (tern_scan_x){ h->scan_x, h->unit, h->minus_zero, groups };
    return true;
}

/* The next chunk of rows [begin, end) that no thread has taken. */
static bool claim(head_job *job, size_t *begin, size_t *end)
{
    const size_t vocab = job->state->model->config.vocab;
    *begin = atomic_fetch_add(&job->next, CHUNK_ROWS);
    *end = smaller(*begin + CHUNK_ROWS, vocab);
    return *begin < vocab;
}

static void run_over_chunks(head_job *job, pool_job_fn *run)
{
    atomic_store(&job->next, 0);
    pool_run(job->state->pool, run, job);
}

/* ---- estimates ---- */

static void run_scan(void *arg, size_t thread, size_t n_threads)
{
    (void)thread, (void)n_threads;
    head_job *job = arg;
    const tern_head_scan *scan = &job->state->model->scan;
    float *estimate = job->state->head.estimate;
    for (size_t begin, end; claim(job, &begin, &end);) {
        job->state->model->kernels->scan(scan->codes, scan->scales, scan->levels, job->x, estimate,
                                         begin / TERN_SCAN_ROWS,
                                         up_to(end, TERN_SCAN_ROWS) / TERN_SCAN_ROWS);
        for (size_t r = begin; r < end; r++) estimate[r] *= scan->scale[r];
    }
}

static float exact_logit(tern_state *s, size_t row)
{
    const tern_model *m = s->model;
    const size_t n = m->config.hidden;
    m->kernels->dot_f16(m->head + row * n, 1, n, s->hidden, &s->head.exact[row]);
    return s->head.exact[row];
}

/* ---- the guess: the best k estimates ---- */

static bool is_worse(const tern_candidate *a, const tern_candidate *b)
{
    return a->logit < b->logit || (a->logit == b->logit && a->token > b->token);
}

/* Put `c` into a heap of at most k whose root is its worst. */
static void offer(tern_candidate *heap, size_t *n, size_t k, tern_candidate c)
{
    size_t i = 0;
    if (*n < k) {
        for (i = (*n)++; i && is_worse(&c, &heap[(i - 1) / 2]); i = (i - 1) / 2)
            heap[i] = heap[(i - 1) / 2];
    } else if (is_worse(&heap[0], &c)) {
        for (size_t child; (child = 2 * i + 1) < k; i = child) {
            if (child + 1 < k && is_worse(&heap[child + 1], &heap[child])) child++;
            if (!is_worse(&heap[child], &c)) break;
            heap[i] = heap[child];
        }
    } else {
        return;
    }
    heap[i] = c;
}

static void run_guess(void *arg, size_t thread, size_t n_threads)
{
    (void)n_threads;
    head_job *job = arg;
    head_scratch *h = &job->state->head;
    tern_candidate *heap = h->guess + thread * TERN_HEAD_K_MAX;
    const size_t k = job->request->k;
    size_t n = 0;
    float least = -INFINITY; /* estimates below it are not among the best */
    for (size_t begin, end; claim(job, &begin, &end);) {
        for (size_t r = begin; r < end; r++) {
            if (!(h->estimate[r] >= least) || h->estimate[r] == -INFINITY) continue;
            offer(heap, &n, k, (tern_candidate){ h->estimate[r], (uint32_t)r, 0.0f });
            if (n == k) least = heap[0].logit;
        }
    }
    h->n_guess[thread] = n;
}

static void merge_guesses(tern_state *s, size_t k)
{
    head_scratch *h = &s->head;
    for (size_t thread = 1; thread < pool_threads(s->pool); thread++)
        for (size_t i = 0; i < h->n_guess[thread]; i++)
            offer(h->guess, &h->n_guess[0], k, h->guess[thread * TERN_HEAD_K_MAX + i]);
}

/* A recent row takes no part in the guess, but it is a candidate; infinity marks what is known. */
static void mark(tern_state *s, const uint32_t *rows, size_t n, float as)
{
    for (size_t i = 0; i < n; i++) s->head.estimate[rows[i]] = as;
}

/* The worst exact logit of the guess bounds the k-th best of all from below. */
static void score_known(head_job *job)
{
    tern_state *s = job->state;
    const tern_head_request *request = job->request;
    head_scratch *h = &s->head;
    job->n_known = h->n_guess[0];
    job->worst = INFINITY;
    for (size_t i = 0; i < job->n_known; i++) {
        const float logit = exact_logit(s, h->guess[i].token);
        job->worst = logit < job->worst ? logit : job->worst;
        h->estimate[h->guess[i].token] = INFINITY;
    }
    for (size_t i = 0; i < request->n_recent; i++) {
        if (h->estimate[request->recent[i]] == INFINITY) continue; /* named twice */
        exact_logit(s, request->recent[i]);
        h->estimate[request->recent[i]] = INFINITY;
        job->n_known++;
    }
    const double floor = (double)job->worst - (double)request->margin;
    job->floor = (float)floor;
    if ((double)job->floor > floor) job->floor = nextafterf(job->floor, -INFINITY);
}

/* ---- the proof ---- */

/* Rows of [begin, end) that may reach the floor by their first estimate, into rows[0..). */
static size_t survivors(const head_job *job, size_t begin, size_t end, uint32_t *rows)
{
    const tern_head_scan *scan = &job->state->model->scan;
    const float *estimate = job->state->head.estimate;
    size_t n = 0;
    for (size_t r = begin; r < end; r++) {
        const float bound = scan->rest[r] * job->by_rest + scan->norm[r] * job->by_norm;
        rows[n] = (uint32_t)r;
        n += (size_t) !(estimate[r] + bound < job->floor);
    }
    return n;
}

/* The same by the second estimate; `product` is sum code * high. */
static bool survives(const head_job *job, uint32_t r, int32_t product)
{
    const tern_head_scan *scan = &job->state->model->scan;
    const int32_t sum = 2 * product - 3 * job->high_sum; /* codes 0..3 mean -3, -1, 1, 3 */
    const float step = scan->refine_scale[r] * job->unit;
    const float estimate = job->state->head.estimate[r] + (float)sum * step;
    const float bound = scan->refined_rest[r] * job->by_rest + scan->norm[r] * job->by_norm +
                        (scan->rest[r] + scan->refined_rest[r]) * job->by_refining;
    return !(estimate + bound < job->floor);
}

/* Candidates of one chunk, by ascending row, at the beginning of its part of `rows`. */
static void prove_chunk(head_job *job, size_t begin, size_t end)
{
    tern_state *s = job->state;
    const tern_model *m = s->model;
    head_scratch *h = &s->head;
    const size_t blocks = up_to(m->config.hidden, TERN_REFINE_BLOCK) / TERN_REFINE_BLOCK;
    uint32_t *rows = h->rows + begin;
    int32_t *products = h->products + begin;
    const size_t n = survivors(job, begin, end, rows);
    size_t n_found = 0, n_new = 0, n_refined = 0;
    if (n) m->kernels->refine(m->scan.refine, h->high, blocks, rows, n, products);
    for (size_t i = 0; i < n; i++) {
        const uint32_t r = rows[i];
        const bool is_known = h->estimate[r] == INFINITY;
        n_refined += !is_known;
        if (!is_known && !survives(job, r, products[i])) continue;
        rows[n_found++] = r;
        if (is_known) continue;
        n_new++;
        if (exact_logit(s, r) >= job->worst) atomic_store(&job->grew, true);
    }
    h->n_found[begin / CHUNK_ROWS] = n_found;
    atomic_fetch_add(&job->n_refined, n_refined);
    atomic_fetch_add(&job->n_found, n_new);
}

static void run_prove(void *arg, size_t thread, size_t n_threads)
{
    (void)thread, (void)n_threads;
    head_job *job = arg;
    const size_t limit = job->state->model->config.vocab / SURVIVOR_SHARE + job->request->k;
    for (size_t begin, end; claim(job, &begin, &end);) {
        if (atomic_load(&job->n_found) > limit) return; /* whoever is last sees it: a full scan */
        prove_chunk(job, begin, end);
    }
}

static size_t collect(const head_job *job, tern_candidate *out)
{
    const head_scratch *h = &job->state->head;
    const size_t vocab = job->state->model->config.vocab;
    size_t n = 0;
    for (size_t begin = 0; begin < vocab; begin += CHUNK_ROWS)
        for (size_t i = 0; i < h->n_found[begin / CHUNK_ROWS]; i++, n++) {
            const uint32_t r = h->rows[begin + i];
            out[n] = (tern_candidate){ h->exact[r], r, 0.0f };
        }
    return n;
}

static size_t answer(head_job *job, tern_candidate *out)
{
    tern_state *s = job->state;
    const tern_head_request *request = job->request;
    const size_t vocab = s->model->config.vocab;
    run_over_chunks(job, run_scan);
    s->head_counters.rows_scanned += vocab;
    mark(s, request->recent, request->n_recent, -INFINITY);
    run_over_chunks(job, run_guess);
    merge_guesses(s, request->k);
    score_known(job);
    run_over_chunks(job, run_prove);
    const size_t n_new = atomic_load(&job->n_found);
    s->head_counters.rows_refined += atomic_load(&job->n_refined);
    s->head_counters.rows_rescored += job->n_known + n_new;
    if (n_new > vocab / SURVIVOR_SHARE + request->k) return 0;
    s->head_counters.grown += atomic_load(&job->grew);
    return collect(job, out);
}

/* More wanted rows than others would make the scan a waste. */
static bool is_small(const tern_head_request *r, size_t vocab)
{
    return r->k > 0 && r->k <= TERN_HEAD_K_MAX && r->n_recent <= TERN_HEAD_RECENT_MAX &&
           r->k + r->n_recent <= vocab / 2;
}

size_t tern_head_candidates(tern_state *s, const tern_head_request *request, tern_candidate *out)
{
    const fp_mode caller_mode = fp_mode_swap(FP_MODE_DEFAULT);
    tern_scan_x x;
    head_job job = { .state = s, .request = request, .x = &x };
    const bool is_possible = s->model->scan.codes && is_small(request, s->model->config.vocab) &&
                             quantize_hidden(&job, &x);
    const size_t n = is_possible ? answer(&job, out) : 0;
    s->head_counters.queries++;
    s->head_counters.fallbacks += n == 0;
    fp_mode_swap(caller_mode);
    return n;
}
