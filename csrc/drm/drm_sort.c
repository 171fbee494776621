/* SPDX-License-Identifier: Apache-2.0 */
#include "drm_sort.h"

#include <string.h>

#include "../parallel.h"

#define MOST_BITS 11 /* of a digit: its counts stay in L1 */
#define FLAG_BITS 8  /* of the digit that cuts in place: one open page a value */
#define FLAGS (1 << FLAG_BITS)
#define BLOCK (INT64_C(1) << 18) /* numbers between two questions whether to stop */

static void
insertion_sort(uint64_t *x, int64_t n)
{
    for (int64_t i = 1; i < n; i++) {
        uint64_t one = x[i];
        int64_t j = i;

        for (; j > 0 && x[j - 1] < one; j--) {
            x[j] = x[j - 1];
        }
        x[j] = one;
    }
}

/* Which bits differ, or 0 if the numbers are in order. */
static uint64_t
differing(const uint64_t *x, int64_t n, bool *stop, const rap_drm_sorter *sorter)
{
    uint64_t bits = 0, disorder = 0;

    for (int64_t begin = 1; begin < n; begin += BLOCK) {
        const int64_t end = RAP_MIN(n, begin + BLOCK);

        if (rap_should_stop(sorter->exec, sorter->worker)) {
            *stop = true;
            break;
        }
        for (int64_t i = begin; i < end; i++) {
            bits |= x[i] ^ x[0];
            disorder |= x[i] > x[i - 1];
        }
    }
    return disorder ? bits : 0;
}

/* Numbers go from one place to the other by one digit, larger digits first, stable. */
static void
move_digit(const uint64_t *from, uint64_t *to, int64_t n, int shift, int bits)
{
    const uint64_t mask = (UINT64_C(1) << bits) - 1;
    uint32_t at[1 << MOST_BITS], total = 0;

    memset(at, 0, sizeof(*at) << bits);
    for (int64_t i = 0; i < n; i++) {
        at[~from[i] >> shift & mask]++;
    }
    for (uint64_t d = 0; d <= mask; d++) {
        const uint32_t count = at[d];

        at[d] = total;
        total += count;
    }
    for (int64_t i = 0; i < n; i++) {
        to[at[~from[i] >> shift & mask]++] = from[i];
    }
}

/* Steps of `passes` digits over `bits` bits of n numbers; a count costs about as much as a
 * number. */
static int64_t
cost(int64_t n, int bits, int passes)
{
    const int digit = (bits + passes - 1) / passes;

    return digit > MOST_BITS ? INT64_MAX : passes * (2 * n + (INT64_C(1) << digit));
}

/* By the bits [low, low + bits), the least digit first; the last pass ends in x. */
static void
sort_in_room(uint64_t *x, uint64_t *other, int64_t n, int low, int bits)
{
    uint64_t *from = x, *to = other;
    int passes = 1, digit;

    while (cost(n, bits, passes) == INT64_MAX
           || cost(n, bits, passes + 1) < cost(n, bits, passes))
    {
        passes++;
    }
    digit = (bits + passes - 1) / passes;
    if (passes % 2 == 1) {
        memcpy(other, x, (size_t)n * sizeof(*x));
        from = other;
        to = x;
    }
    for (int p = 0; p < passes; p++) {
        uint64_t *swap = from;

        move_digit(from, to, n, low + p * digit, digit);
        from = to;
        to = swap;
    }
}

/* Sorts by one digit in place, the larger first, not stable. False if the call should stop. */
static bool
flag_sort(const rap_drm_sorter *sorter, uint64_t *x, int64_t n, int shift)
{
    int64_t at[FLAGS] = {0}, end[FLAGS], total = 0, moved = 1;

    for (int64_t i = 0; i < n; i++) {
        if (i % BLOCK == 0 && rap_should_stop(sorter->exec, sorter->worker)) {
            return false;
        }
        at[~x[i] >> shift & (FLAGS - 1)]++;
    }
    for (int d = 0; d < FLAGS; d++) {
        end[d] = total + at[d];
        at[d] = total;
        total = end[d];
    }
    for (uint64_t d = 0; d < FLAGS; d++) {
        while (at[d] < end[d]) {
            uint64_t one = x[at[d]], where = ~one >> shift & (FLAGS - 1);

            if (moved++ % BLOCK == 0 && rap_should_stop(sorter->exec, sorter->worker)) {
                return false;
            }
            while (where != d) {
                uint64_t next = x[at[where]];

                x[at[where]++] = one;
                one = next;
                where = ~one >> shift & (FLAGS - 1);
            }
            x[at[d]++] = one;
        }
    }
    return true;
}

void
rap_drm_sort(const rap_drm_sorter *sorter, uint64_t *x, int64_t n, int bit)
{
    uint64_t bits;
    bool stop = false;
    int top;

    if (n <= RAP_DRM_FEW) {
        insertion_sort(x, n);
        return;
    }
    bits = differing(x, n, &stop, sorter) >> bit << bit;
    if (stop || bits == 0) {
        return;
    }
    top = 64 - __builtin_clzll(bits);
    if (n <= sorter->room) {
        const int low = __builtin_ctzll(bits);

        sort_in_room(x, sorter->other, n, low, top - low);
        return;
    }
    const int shift = RAP_MAX(0, top - FLAG_BITS);

    if (!flag_sort(sorter, x, n, shift)) {
        return;
    }
    for (int64_t begin = 0, end; begin < n; begin = end) {
        for (end = begin + 1; end < n && x[end] >> shift == x[begin] >> shift; end++) {
        }
        rap_drm_sort(sorter, x + begin, end - begin, 0);
    }
}
