/* row_list.h - private: rows of a list, which lie anywhere in memory.
 *
 * Sixteen rows at a time are copied into the first-level cache and multiplied there, while memory is
 * asked for the rows 32 positions behind.  Three things matter (Zen 4, one thread, rows of 512 bytes, 30 %
 * of a plane, in GB/s, where a stream of rows has 18 and the copied group 14):
 *
 *   asking for sixteen rows at once, multiplying from where they lie          8
 *   asking between the rows, multiplying from where they lie                  9
 *   copying, asking row by row                                            10 to 13
 *   copying, asking for the first line of all sixteen, then the second    13 to 14
 *
 * A processor drops what it is asked for too fast.  Where a line is missing then, a copy has all others
 * of its group under way, and a multiplication waits for each.  Every other line of a row is copied first:
 * otherwise rows look like streams, and the prefetcher reads on beyond their end.
 *
 * What only asks must be inlined always: GCC takes a function that only prefetches for one that does
 * nothing, and drops the call. */
#ifndef ROW_LIST_H
#define ROW_LIST_H

#include "variants.h"
#include <stdbool.h>
#include <string.h>

enum {
    LIST_ROWS = 16,                          /* of a group */
    LIST_AHEAD = 2 * LIST_ROWS,              /* 48: the same; 16: 12 GB/s */
    LIST_ROW_LINES_MAX = 16,                 /* longer rows are streams of their own */
    LIST_GROUP_BYTES = LIST_ROWS * LIST_ROW_LINES_MAX * TERN_LINE_BYTES,
};

#define ASKS static inline __attribute__((always_inline)) void

typedef struct row_list {
    const uint8_t *plane;
    size_t n_lines; /* of a row */
    const uint32_t *rows;
    size_t end; /* of the positions that are visited */
} row_list;

/* Rows of whole lines, less than nine of ten of those between the first and the last. */
static inline bool is_row_list(size_t row_bytes, const uint32_t *rows, size_t begin, size_t end)
{
    return rows && end > begin && row_bytes % TERN_LINE_BYTES == 0 &&
           row_bytes <= LIST_ROW_LINES_MAX * TERN_LINE_BYTES &&
           10 * (end - begin) < 9 * ((size_t)rows[end - 1] - rows[begin] + 1);
}

/* Where the row of position i lies; that of the last one for positions beyond it. */
static inline const uint8_t *row_listed(const row_list *l, size_t i)
{
    const size_t r = l->rows[i < l->end ? i : l->end - 1];
    return l->plane + r * l->n_lines * TERN_LINE_BYTES;
}

/* Where the rows of positions `group` on lie. */
static inline __attribute__((always_inline)) void find_group(const row_list *l, size_t group,
                                                             const uint8_t *at[LIST_ROWS])
{
    for (size_t i = 0; i < LIST_ROWS; i++) at[i] = row_listed(l, group + i);
}

/* Ask for one of LIST_ROWS parts of a group: its lines in the order first lines, second lines, ... */
ASKS ask_for_part(const uint8_t *const at[LIST_ROWS], size_t n_lines, size_t part)
{
    for (size_t k = part * n_lines; k < (part + 1) * n_lines; k++)
        __builtin_prefetch(at[k % LIST_ROWS] + k / LIST_ROWS * TERN_LINE_BYTES, 0, 2);
}

/* Ask for what comes before the first group asks. */
ASKS ask_for_first(const row_list *l, size_t begin)
{
    const uint8_t *at[LIST_ROWS];
    for (size_t group = begin; group < begin + LIST_AHEAD && group < l->end; group += LIST_ROWS) {
        find_group(l, group, at);
        for (size_t part = 0; part < LIST_ROWS; part++) ask_for_part(at, l->n_lines, part);
    }
}

/* Copy the rows of positions `group` on, one behind the other. */
static inline __attribute__((always_inline)) void copy_group(const row_list *l, size_t group,
                                                             uint8_t *copy)
{
    for (size_t i = 0; i < LIST_ROWS; i++, copy += l->n_lines * TERN_LINE_BYTES) {
        const uint8_t *row = row_listed(l, group + i);
        for (size_t first = 0; first < 2; first++)
            for (size_t b = first; b < l->n_lines; b += 2)
                memcpy(copy + b * TERN_LINE_BYTES, row + b * TERN_LINE_BYTES, TERN_LINE_BYTES);
    }
}

/* sum_k code[k] * x[k] of one row. */
typedef int32_t row_codes_fn(const uint8_t *row, const int8_t *x, size_t row_bytes);

/* The listed rows of positions begin to l->end, one by one. */
static inline __attribute__((always_inline)) void
multiply_row_list(row_codes_fn *dot, const row_list *l, const tern_act *a, int32_t *y, size_t begin)
{
    _Alignas(TERN_LINE_BYTES) uint8_t copy[LIST_GROUP_BYTES];
    const size_t row_bytes = l->n_lines * TERN_LINE_BYTES;
    ask_for_first(l, begin);
    for (size_t group = begin; group < l->end; group += LIST_ROWS) {
        const uint8_t *ahead[LIST_ROWS];
        find_group(l, group + LIST_AHEAD, ahead);
        copy_group(l, group, copy);
        for (size_t i = 0; i < LIST_ROWS && group + i < l->end; i++) {
            ask_for_part(ahead, l->n_lines, i);
            y[l->rows[group + i]] = dot(copy + i * row_bytes, a->x, row_bytes) - a->sum;
        }
    }
}

#endif
