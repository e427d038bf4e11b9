/* sampler.c - logits to a token; see sampler.h.
 *
 * Candidates are ordered by logit, then by token, so that no step depends on how a sort treats
 * ties. A heap gives them up best first: top-k and top-p usually need a few of many thousands. */
#include "sampler.h"
#include "detmath.h"
#include "fpenv.h"
#include <math.h>
#include <stdbool.h>

/* ---- the generator: xoshiro256** by Blackman and Vigna, public domain ---- */

static uint64_t rotate_left(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

static uint64_t next_u64(uint64_t s[4])
{
    const uint64_t result = rotate_left(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

/* Uniform in [0, 1): 53 bits, exact in a double. */
static double next_unit(uint64_t s[4])
{
    return (double)(next_u64(s) >> 11) * 0x1p-53;
}

void tern_sampler_seed(tern_sampler *sampler, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        sampler->rng[i] = z ^ z >> 31;
    }
}

/* ---- candidates ---- */

static bool is_better(const tern_candidate *a, const tern_candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}

static void load_candidates(const float *logits, size_t vocab, tern_candidate *list)
{
    for (size_t i = 0; i < vocab; i++) {
        const float logit = logits[i] == logits[i] ? logits[i] : -INFINITY;
        list[i] = (tern_candidate){ .logit = logit, .token = (uint32_t)i };
    }
}

/* The candidate of `token`, which is in the list: ascending by token. */
static tern_candidate *find(tern_candidate *list, size_t n, uint32_t token)
{
    size_t low = 0;
    for (size_t high = n - 1; low < high;) {
        const size_t middle = low + (high - low) / 2;
        if (list[middle].token < token)
            low = middle + 1;
        else
            high = middle;
    }
    return &list[low];
}

static void penalise(float penalty, const uint32_t *recent, size_t n_recent, tern_candidate *list,
                     size_t n)
{
    if (penalty == 1.0f) return;
    for (size_t i = 0; i < n_recent; i++) {
        tern_candidate *c = find(list, n, recent[i]);
        if (c->weight != 0.0f) continue; /* a mark: already penalised */
        c->logit = c->logit > 0.0f ? c->logit / penalty : c->logit * penalty;
        c->weight = 1.0f;
    }
}

static const tern_candidate *best(const tern_candidate *list, size_t n)
{
    const tern_candidate *top = list;
    for (size_t i = 1; i < n; i++)
        if (is_better(&list[i], top)) top = &list[i];
    return top;
}

/* ---- a binary heap, best candidate at the root ---- */

static void sift_down(tern_candidate *heap, size_t n, size_t i)
{
    const tern_candidate moved = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_better(&heap[child + 1], &heap[child])) child++;
        if (!is_better(&heap[child], &moved)) break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static void make_heap(tern_candidate *heap, size_t n)
{
    for (size_t i = n / 2; i-- > 0;) sift_down(heap, n, i);
}

/* Move the root behind the heap, which shrinks by one: the best end up last, in reverse. */
static tern_candidate *pop_best(tern_candidate *heap, size_t *n)
{
    const tern_candidate top = heap[0];
    heap[0] = heap[--*n];
    heap[*n] = top;
    sift_down(heap, *n, 0);
    return &heap[*n];
}

/* ---- the filters ---- */

/* Weights of the whole list, and their sum. */
static double weigh(tern_candidate *list, size_t n, float largest, float temperature)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        list[i].weight = det_expf((list[i].logit - largest) / temperature);
    for (size_t i = 0; i < n; i++) sum += (double)list[i].weight;
    return sum;
}

static bool has_top_k(const tern_sampler *sampler, size_t vocab)
{
    return sampler->top_k && sampler->top_k < vocab;
}

/* Keep the best top_k of them, then the fewest whose share of those reaches top_p; at least one.
 * The survivors become list[0 .. n), best last.  With top_k, nothing but those k best matters, nor
 * how many others the list holds. */
static size_t keep_best(const tern_sampler *sampler, tern_candidate *list, size_t n, size_t vocab,
                        double sum)
{
    size_t heap_size = n, kept = 0;
    make_heap(list, n);
    if (has_top_k(sampler, vocab)) {
        const size_t k = sampler->top_k;
        sum = 0.0;
        for (size_t i = 0; i < k; i++) sum += (double)pop_best(list, &heap_size)->weight;
        for (size_t i = 0; i < k / 2; i++) { /* again a list that begins with its best */
            const tern_candidate swap = list[n - 1 - i];
            list[n - 1 - i] = list[heap_size + i];
            list[heap_size + i] = swap;
        }
        for (size_t i = 0; i < k; i++) list[i] = list[heap_size + i];
        heap_size = n = k; /* sorted best first, hence a heap */
    }
    double reached = 0.0;
    while (kept < n && (kept == 0 || reached < (double)sampler->top_p * sum)) {
        reached += (double)pop_best(list, &heap_size)->weight;
        kept++;
    }
    for (size_t i = 0; i < kept; i++) list[i] = list[heap_size + i];
    return kept;
}

/* Drop what is less likely than min_p times the best, whose weight is 1. */
static size_t drop_unlikely(float min_p, tern_candidate *list, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        list[kept] = list[i];
        kept += list[i].weight >= min_p;
    }
    return kept;
}

static uint32_t draw(tern_sampler *sampler, const tern_candidate *list, size_t n)
{
    double sum = 0.0, reached = 0.0;
    for (size_t i = 0; i < n; i++) sum += (double)list[i].weight;
    const double target = next_unit(sampler->rng) * sum;
    for (size_t i = 0; i < n; i++) {
        reached += (double)list[i].weight;
        if (reached > target) return list[i].token;
    }
    return list[n - 1].token; /* rounding left target at the very end */
}

static uint32_t sample(tern_sampler *sampler, tern_candidate *list, size_t n, size_t vocab)
{
    const tern_candidate top = *best(list, n);
    if (sampler->temperature == 0.0f || !(top.logit > -INFINITY) || top.logit == INFINITY)
        return top.token;
    const double sum = weigh(list, n, top.logit, sampler->temperature);
    if (sampler->top_k || sampler->top_p < 1.0f) n = keep_best(sampler, list, n, vocab, sum);
    if (sampler->min_p > 0.0f) n = drop_unlikely(sampler->min_p, list, n);
    return draw(sampler, list, n);
}

uint32_t tern_sample(tern_sampler *sampler, const float *logits, size_t vocab,
                     const uint32_t *recent, size_t n_recent, tern_candidate *scratch)
{
    load_candidates(logits, vocab, scratch);
    return tern_sample_candidates(sampler, scratch, vocab, vocab, recent, n_recent);
}

uint32_t tern_sample_candidates(tern_sampler *sampler, tern_candidate *list, size_t n, size_t vocab,
                                const uint32_t *recent, size_t n_recent)
{
    const fp_mode caller_mode = fp_mode_swap(FP_MODE_DEFAULT);
    penalise(sampler->repetition_penalty, recent, n_recent, list, n);
    const uint32_t token = sample(sampler, list, n, vocab);
    fp_mode_swap(caller_mode);
    return token;
}

/* ---- what a draw needs to know ---- */

/* How far below the best logit min_p may still keep a token: it is kept when
 *
 *       det_expf(fl(fl(logit - best) / T)) >= min_p,
 *
 * and det_expf is exact to 2^-22 of its value, so that the argument is at least ln(min_p) - 2^-21;
 * two roundings of the argument change it by less than 2^-22 of itself. */
static float min_p_margin(float min_p, float temperature)
{
    const double LEAST = 0x1p-20, SLACK = 1.0 + 0x1p-20;
    return (float)((double)temperature * (LEAST - det_log((double)min_p)) * SLACK);
}

bool tern_sampler_request(const tern_sampler *sampler, size_t vocab, const uint32_t *recent,
                          size_t n_recent, tern_head_request *request)
{
    const bool is_greedy = sampler->temperature == 0.0f;
    *request = (tern_head_request){ .k = 1 };
    if (sampler->repetition_penalty != 1.0f) {
        request->recent = recent;
        request->n_recent = n_recent;
    }
    if (is_greedy) return true;
    if (has_top_k(sampler, vocab)) {
        request->k = sampler->top_k;
        return true;
    }
    if (sampler->top_k || sampler->top_p < 1.0f || !(sampler->min_p > 0.0f)) return false;
    request->margin = min_p_margin(sampler->min_p, sampler->temperature);
    return true;
}
