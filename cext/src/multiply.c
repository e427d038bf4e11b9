/* multiply.c - how planes are shared by threads and walked, and what was skipped.
 *
 * Threads share outputs (rows, units of lines, panels of tiles), or the list of inputs (channels),
 * whose integer sums are then added: results cannot depend on the number of threads. */
#include "multiply.h"

/* A block of fewer rows (tokens, or their digits) does not pay the unpacking of a GEMM: below, a GEMV a
 * row, piece by piece from a near cache, is faster.  Measured on Zen 4, lines and tiles of 2560 by 6912,
 * one thread: even at 16 and 12 rows, twice as fast at 3.  Not measured on an Arm core. */
#if defined(__x86_64__)
enum { GEMM_TOKENS_MIN = 12 };
#else
enum { GEMM_TOKENS_MIN = 3 };
#endif

/* Zero activations are listed when at most this share (in percent) of the channels is live.  A listed
 * channel costs more than one of a stream: on Zen 4 1.2 times for channels of 512 bytes; for lines of
 * 64 bytes 1.1 times from a cache, 5 to 7 times from memory (bench/kernels.py). */
enum { LIVE_MAX_CHANNELS = 82, LIVE_MAX_LINES_CACHED = 85, LIVE_MAX_LINES = 12 };

/* The same for a block of tokens, whose lists read a near cache and multiply at half the speed of a GEMM. */
enum { LIVE_MAX_BLOCK = 45 };

/* A row of a list from memory costs 1.7 times one of a stream (Zen 4, rows of 512 bytes): with more gates
 * open than this the whole plane of `up` is read.  From a cache a list costs nothing. */
enum { OPEN_MAX_ROWS = 55 };

/* The same for a block of tokens, over all of them: a row of a list costs 1.6 times one of a GEMM. */
enum { OPEN_MAX_BLOCK = 60 };

/* Planes beyond this come from memory for every token: more than the caches of any board we know. */
enum { CACHED_BYTES_MAX = 12 << 20 };

static tern_gemm_fn *gemm_of(const tern_kernels *k, const tern_matrix *w)
{
    if (w->packing >= TERN_PACKINGS) return NULL;
    switch (w->orientation) {
    case TERN_ROWS: return k->gemm_rows[w->packing];
    case TERN_LINES: return k->gemm_cols;
    case TERN_CHANNELS: return k->gemm_channels;
    default: return k->gemm_tiles;
    }
}

tern_gemm_fn *block_gemm(const tern_state *s, const tern_matrix *w)
{
    return s->n_acts >= GEMM_TOKENS_MIN ? gemm_of(s->model->kernels, w) : NULL;
}

bool pays_to_skip(const tern_state *s, const tern_matrix *w, size_t t)
{
    if (!s->zero_skip || w->n_groups > 1 || block_gemm(s, w)) return false;
    const bool is_cached = s->model->ternary_bytes <= CACHED_BYTES_MAX;
    const size_t live = w->n_in - s->in[t].n_zero;
    switch (w->orientation) {
    case TERN_CHANNELS: return live * 100 <= w->n_in * LIVE_MAX_CHANNELS;
    case TERN_LINES:
        return live * 100 <= w->n_in * (is_cached ? LIVE_MAX_LINES_CACHED : LIVE_MAX_LINES);
    default: return false;
    }
}

/* Has this CPU a kernel for the open rows of a block of tokens? */
static bool can_list_in_block(const tern_state *s, const tern_matrix *up)
{
    return s->model->kernels->gemm_open && up->packing == TERN_BASE3 && up->n_groups <= 1;
}

bool pays_to_close(const tern_state *s, const tern_layer *w)
{
    if (!s->zero_skip || w->up.orientation != TERN_ROWS || w->up.packing >= TERN_PACKINGS) return false;
    return !block_gemm(s, &w->up) || can_list_in_block(s, &w->up);
}

bool pays_to_list(const tern_state *s, const tern_layer *w)
{
    if (!block_gemm(s, &w->up)) return true;
    size_t n_open = 0;
    for (size_t t = 0; t < s->n_tokens; t++) n_open += s->n_open[t];
    return n_open * 100 <= s->n_tokens * w->up.n_out * OPEN_MAX_BLOCK;
}

/* ---- items: the grain of work of an orientation ---- */

static size_t tile_outputs(tern_packing packing)
{
    switch (packing) {
    case TERN_BINARY: return TERN_BINARY_OUTPUTS;
    case TERN_INT8: return TERN_INT8_OUTPUTS;
    default: return TERN_TILE_OUTPUTS;
    }
}

static size_t grain_of(const tern_matrix *w)
{
    switch (w->orientation) {
    case TERN_LINES: return TERN_UNIT;
    case TERN_CHANNELS: return TERN_BLOCK3;
    case TERN_TILES: return tile_outputs(w->packing);
    default: return 1;
    }
}

static size_t n_items(const tern_matrix *w)
{
    return (w->n_out + grain_of(w) - 1) / grain_of(w);
}

/* Outputs up to a whole item. */
static size_t job_outputs(const tern_matrix *w)
{
    return n_items(w) * grain_of(w);
}

/* The items of a plane that lie in [begin, end) of the outputs of all planes of a job, when the plane
 * begins at output `at`. */
static span items_between(const tern_matrix *w, size_t at, size_t begin, size_t end)
{
    const size_t grain = grain_of(w), n = n_items(w);
    const size_t from = begin > at ? (begin - at + grain / 2) / grain : 0;
    const size_t to = end > at ? (end - at + grain / 2) / grain : 0; /* rounds as `from` does */
    return (span){ from < n ? from : n, to < n ? to : n };
}

static tern_gemv_tiles_fn *gemv_tiles_of(const tern_kernels *k, tern_packing packing)
{
    switch (packing) {
    case TERN_BINARY: return k->gemv_binary ? k->gemv_binary : gemv_binary_scalar;
    case TERN_INT8: return k->gemv_int8 ? k->gemv_int8 : gemv_int8_scalar;
    default: return k->gemv_tiles;
    }
}

/* Products in float32 of the input as it was before it was quantised. */
static void dot_items(const tern_state *s, const tern_matrix *w, const float *x, float *y, span rows)
{
    const uint16_t *plane = (const uint16_t *)(const void *)w->plane;
    if (rows.begin < rows.end)
        s->model->kernels->dot_f16(plane + rows.begin * w->n_in, rows.end - rows.begin, w->n_in, x,
                                   y + rows.begin);
}

static void gemv_items(const tern_kernels *k, const tern_matrix *w, const tern_act *a, int32_t *y,
                       size_t begin, size_t end)
{
    switch (w->orientation) {
    case TERN_ROWS: k->gemv_rows[w->packing](w->plane, a, y, NULL, begin, end); break;
    case TERN_LINES: k->gemv_cols(w->plane, a, y, begin, end); break;
    case TERN_TILES: gemv_tiles_of(k, w->packing)(w->plane, a, y, begin, end); break;
    case TERN_CHANNELS: break; /* shared by their inputs: run_channels */
    }
}

/* Planes are walked in pieces that stay in the cache while all tokens of the block use them. */
static void multiply_items(const product_job *job, size_t i, span items, size_t thread)
{
    enum { PIECE_OUTPUTS = 256 };
    tern_state *s = job->state;
    const tern_matrix *w = job->w[i];
    tern_gemm_fn *gemm = job->is_listed ? s->model->kernels->gemm_live : block_gemm(s, w);
    if (w->n_groups > 1) {
        multiply_groups(job, i, items, thread);
        return;
    }
    if (gemm) {
        const tern_act *acts[TERN_TOKENS_BLOCK];
        for (size_t t = 0; t < s->n_acts; t++) acts[t] = &s->in[t].act;
        if (items.begin < items.end)
            gemm(w->plane, acts, s->n_acts, product(s, job->first + i, 0), s->z_stride, w->n_out,
                 items.begin, items.end);
        return;
    }
    if (w->packing == TERN_F16) {
        for (size_t t = 0; t < s->n_acts; t++)
            dot_items(s, w, s->h + t * s->width, float_product(s, job->first + i, t), items);
        return;
    }
    const size_t piece = s->n_acts == 1 ? w->n_out : PIECE_OUTPUTS / grain_of(w);
    for (size_t at = items.begin; at < items.end; at += piece) {
        const size_t stop = items.end - at < piece ? items.end : at + piece;
        for (size_t t = 0; t < s->n_acts; t++)
            gemv_items(s->model->kernels, w, &s->in[t].act, product(s, job->first + i, t), at, stop);
    }
}

/* The rows of up to compute for a token: the open ones, or all, which is a stream, when that is faster. */
static const uint32_t *rows_to_visit(const tern_state *s, const tern_matrix *w, size_t token, size_t *n)
{
    const bool is_cached = s->model->ternary_bytes <= CACHED_BYTES_MAX;
    const bool is_list = is_cached || block_gemm(s, w) || s->n_open[token] * 100 <= w->n_out * OPEN_MAX_ROWS;
    *n = is_list ? s->n_open[token] : w->n_out;
    return is_list ? s->open[token] : NULL;
}

/* For a block of tokens, whose lists were found to pay. */
static void multiply_open_rows_of_block(const product_job *job, span mine)
{
    const tern_state *s = job->state;
    const tern_matrix *w = job->w[0];
    const tern_act *acts[TERN_TOKENS_BLOCK];
    tern_row_list lists[TERN_TOKENS_BLOCK];
    for (size_t t = 0; t < s->n_acts; t++) {
        const size_t token = t / s->model->config.n_digits;
        acts[t] = &s->in[t].act;
        lists[t] = (tern_row_list){ s->open[token], s->n_open[token] };
    }
    if (mine.begin < mine.end)
        s->model->kernels->gemm_open(w->plane, acts, lists, s->n_acts, product(s, job->first, 0),
                                     s->z_stride, mine.begin, mine.end);
}

static void multiply_open_rows(const product_job *job, size_t thread, size_t n_threads)
{
    if (block_gemm(job->state, job->w[0])) {
        multiply_open_rows_of_block(job, share(job->w[0]->n_out, thread, n_threads));
        return;
    }
    tern_state *s = job->state;
    const tern_matrix *w = job->w[0];
    for (size_t t = 0; t < s->n_acts; t++) {
        const size_t token = t / s->model->config.n_digits;
        size_t n_rows;
        const uint32_t *rows = rows_to_visit(s, w, token, &n_rows);
        const span mine = share(n_rows, thread, n_threads);
        s->model->kernels->gemv_rows[w->packing](w->plane, &s->in[t].act,
                                                 product(s, job->first, t), rows, mine.begin,
                                                 mine.end);
    }
}

static void run_product_job(void *arg, size_t thread, size_t n_threads)
{
    const product_job *job = arg;
    if (job->open_rows_only) {
        multiply_open_rows(job, thread, n_threads);
        return;
    }
    size_t total = 0, at = 0;
    for (size_t i = 0; i < job->n_planes; i++) total += job_outputs(job->w[i]);
    const span mine = share(total, thread, n_threads);
    for (size_t i = 0; i < job->n_planes; i++) {
        multiply_items(job, i, items_between(job->w[i], at, mine.begin, mine.end), thread);
        at += job_outputs(job->w[i]);
    }
}

/* ---- channels: threads split the list, their sums are added ---- */

static size_t n_visited(const tern_act *a)
{
    return a->live ? a->n_live : a->n;
}

static void run_channels(void *arg, size_t thread, size_t n_threads)
{
    const product_job *job = arg;
    tern_state *s = job->state;
    const tern_matrix *w = job->w[0];
    const tern_act *a = &s->in[0].act;
    const span mine = share(n_visited(a), thread, n_threads);
    int32_t *y = thread ? s->partial + thread * s->z_stride : product(s, job->first, 0);
    s->model->kernels->gemv_channels(w->plane, a, w->n_out, y, mine.begin, mine.end);
}

/* A block of tokens without a GEMM: threads split the tokens. */
static void run_channels_by_token(void *arg, size_t thread, size_t n_threads)
{
    const product_job *job = arg;
    tern_state *s = job->state;
    const tern_matrix *w = job->w[0];
    const span mine = share(s->n_acts, thread, n_threads);
    for (size_t t = mine.begin; t < mine.end; t++)
        s->model->kernels->gemv_channels(w->plane, &s->in[t].act, w->n_out,
                                         product(s, job->first, t), 0, n_visited(&s->in[t].act));
}

static void run_lists(void *arg, size_t thread, size_t n_threads)
{
    tern_state *s = arg;
    const span mine = share(s->n_acts, thread, n_threads);
    for (size_t t = mine.begin; t < mine.end; t++) list_live(&s->in[t]);
}

/* Does every token of the block better skip its zeros than take part in a GEMM? */
static bool pays_to_skip_in_block(const tern_state *s, const tern_matrix *w)
{
    size_t n_zero = 0;
    if (!s->zero_skip || !s->model->kernels->gemm_live) return false;
    for (size_t t = 0; t < s->n_acts; t++) n_zero += s->in[t].n_zero;
    return (s->n_acts * w->n_in - n_zero) * 100 <= s->n_acts * w->n_in * LIVE_MAX_BLOCK;
}

static void multiply_channels(tern_state *s, product_job *job)
{
    if (block_gemm(s, job->w[0])) {
        job->is_listed = pays_to_skip_in_block(s, job->w[0]);
        if (job->is_listed) pool_run(s->pool, run_lists, s);
        pool_run(s->pool, run_product_job, job);
        return;
    }
    if (s->n_acts > 1) {
        pool_run(s->pool, run_channels_by_token, job);
        return;
    }
    pool_run(s->pool, run_channels, job);
    int32_t *y = product(s, job->first, 0);
    for (size_t thread = 1; thread < pool_threads(s->pool); thread++) {
        const int32_t *part = s->partial + thread * s->z_stride;
        for (size_t o = 0; o < job->w[0]->n_out; o++) y[o] += part[o];
    }
}

/* ---- counters ---- */

static uint64_t plane_bytes(const tern_matrix *w)
{
    switch (w->orientation) {
    case TERN_ROWS: return (uint64_t)w->n_out * tern_row_bytes(w->packing, w->n_in);
    case TERN_CHANNELS: return (uint64_t)w->n_in * tern_row_bytes(TERN_BASE3, w->n_out);
    case TERN_LINES:
        return (uint64_t)((w->n_out + TERN_PANEL - 1) / TERN_PANEL) * w->n_in * TERN_LINE_BYTES;
    default:
        return (uint64_t)n_items(w) * ((w->n_in + TERN_TILE_CHANNELS - 1) / TERN_TILE_CHANNELS) *
               TERN_LINE_BYTES;
    }
}

/* Book one plane for activations t; `rows` of its n_out outputs were computed.  The digits of a token
 * share the bytes that were read. */
static void count_plane(tern_state *s, const tern_matrix *w, size_t t, size_t rows)
{
    tern_counters *n = &s->counters[s->layer];
    const tern_act *a = &s->in[t].act;
    const uint64_t bytes = t % s->model->config.n_digits == 0 ? plane_bytes(w) : 0;
    n->multiplications += (uint64_t)w->n_out * w->n_in;
    n->weight_bytes += bytes;
    n->activations += w->n_in;
    n->zero_activations += s->in[t].n_zero;
    if (a->live && (w->orientation == TERN_LINES || w->orientation == TERN_CHANNELS)) {
        n->multiplications_skipped += (uint64_t)w->n_out * (w->n_in - a->n_live);
        n->weight_bytes_skipped += bytes / w->n_in * (w->n_in - a->n_live);
    }
    n->multiplications_skipped += (uint64_t)(w->n_out - rows) * w->n_in;
    n->weight_bytes_skipped += bytes / w->n_out * (w->n_out - rows);
}

/* How many rows of plane i were computed for activation t. */
static size_t n_computed(const tern_state *s, const product_job *job, size_t i, size_t t)
{
    size_t n_rows = job->w[i]->n_out;
    if (job->open_rows_only) rows_to_visit(s, job->w[i], t / s->model->config.n_digits, &n_rows);
    return n_rows;
}

void multiply(tern_state *s, product_job *job)
{
    if (job->w[0]->orientation == TERN_CHANNELS)
        multiply_channels(s, job);
    else
        pool_run(s->pool, run_product_job, job);
    for (size_t t = 0; t < s->n_acts; t++)
        for (size_t i = 0; i < job->n_planes; i++)
            count_plane(s, job->w[i], t, n_computed(s, job, i, t));
}
