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

static void load_candidates(const tern_sampler *sampler, const float *logits, size_t vocab,
                            const uint32_t *recent, size_t n_recent, tern_candidate *list)
{
    const float penalty = sampler->repetition_penalty;
    for (size_t i = 0; i < vocab; i++) {
        const float logit = logits[i] == logits[i] ? logits[i] : -INFINITY;
        list[i] = (tern_candidate){ .logit = logit, .token = (uint32_t)i };
    }
    if (penalty == 1.0f) return;
    for (size_t i = 0; i < n_recent; i++) {
        tern_candidate *c = &list[recent[i]];
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

/* Keep the best top_k of them, then the fewest whose share of those reaches top_p; at least one.
 * The survivors become list[0 .. n), best last. */
static size_t keep_best(const tern_sampler *sampler, tern_candidate *list, size_t n, double sum)
{
    const size_t k = sampler->top_k && sampler->top_k < n ? sampler->top_k : n;
    size_t heap_size = n, kept = 0;
    make_heap(list, n);
    if (k < n) {
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

static uint32_t sample(tern_sampler *sampler, tern_candidate *list, size_t n)
{
    const tern_candidate top = *best(list, n);
    if (sampler->temperature == 0.0f || !(top.logit > -INFINITY) || top.logit == INFINITY)
        return top.token;
    const double sum = weigh(list, n, top.logit, sampler->temperature);
    if (sampler->top_k || sampler->top_p < 1.0f) n = keep_best(sampler, list, n, sum);
    if (sampler->min_p > 0.0f) n = drop_unlikely(sampler->min_p, list, n);
    return draw(sampler, list, n);
}

uint32_t tern_sample(tern_sampler *sampler, const float *logits, size_t vocab,
                     const uint32_t *recent, size_t n_recent, tern_candidate *scratch)
{
    const fp_mode caller_mode = fp_mode_swap(FP_MODE_DEFAULT);
    load_candidates(sampler, logits, vocab, recent, n_recent, scratch);
    const uint32_t token = sample(sampler, scratch, vocab);
    fp_mode_swap(caller_mode);
    return token;
}
