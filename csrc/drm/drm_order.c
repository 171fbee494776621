/* SPDX-License-Identifier: Apache-2.0
 *
 * The last step of drm: items of a column by their keys, then, where keys are equal, by what
 * they do not hold.
 */
#include "../parallel.h"
#include "../status.h"
#include "drm_plan.h"
#include "drm_sort.h"

#define STEPS (INT64_C(1) << 16) /* between two questions whether to stop */

typedef enum { DIFFICULTY, GAIN, NOTHING } field;

/* In the loops below: true once in a while, when the call should end. */
static bool
interrupted(const rap_drm_sorter *sorter, int64_t i)
{
    return (i + 1) % STEPS == 0 && rap_should_stop(sorter->exec, sorter->worker);
}

static void sort_field(const drm_ctx *ctx, const rap_drm_sorter *sorter, uint64_t *items,
                       int64_t n, field by, int bits);

/* Items that have the same key, by what the key does not hold: `bits` low bits of a field. */
static void
sort_runs(const drm_ctx *ctx, const rap_drm_sorter *sorter, uint64_t *items, int64_t n,
          field by, int bits)
{
    int64_t begin = 0;

    for (int64_t i = 1; i <= n && by != NOTHING; i++) {
        if (i < n && (items[i] ^ items[begin]) >> ctx->index_bits == 0) {
            continue;
        }
        if (i - begin > 1) {
            sort_field(ctx, sorter, items + begin, i - begin, by, bits);
        }
        if (begin / STEPS != i / STEPS && rap_should_stop(sorter->exec, sorter->worker)) {
            return;
        }
        begin = i;
    }
}

static field
next_field(const drm_ctx *ctx, field by)
{
    return by == DIFFICULTY && ctx->a->gain.data != NULL ? GAIN : NOTHING;
}

/* Items in order of index, by `bits` low bits of a field and then by what follows. Their keys
 * become the highest of those bits, as many as there is room for. */
static void
sort_field(const drm_ctx *ctx, const rap_drm_sorter *sorter, uint64_t *items, int64_t n,
           field by, int bits)
{
    const rap_array *x = by == DIFFICULTY ? &ctx->a->difficulty : &ctx->a->gain;
    const int shift = RAP_MAX(0, bits + ctx->index_bits - 64);
    const int empty = x->dtype == RAP_F32 ? 29 : 0; /* low bits that no float32 has */
    const uint64_t mask = ~UINT64_C(0) >> (64 - bits + shift);

    for (int64_t i = 0; i < n && !interrupted(sorter, i); i++) {
        const int64_t index = index_of(ctx, items[i]);

        items[i] = packed(ctx, ordered_key(x, index) >> shift & mask, index);
    }
    rap_drm_sort(sorter, items, n, ctx->index_bits);
    if (shift > empty) {
        sort_runs(ctx, sorter, items, n, by, shift);
    }
    else {
        sort_runs(ctx, sorter, items, n, next_field(ctx, by), 64);
    }
}

/* How many low bits of a difficulty its first key may not hold: below one, float64 has at most
 * 52 bits behind the point of a bucket's number, float32 23; the first bucket has any. */
static int
bits_left(const drm_ctx *ctx, int bucket)
{
    const int most = ctx->a->difficulty.dtype == RAP_F32 ? 23 : 52;

    return bucket == 0 ? 64 : RAP_MAX(0, most + ctx->index_bits - 64);
}

/* One column, from the rest to the first; then only indices are left. */
static void
column_task(void *arg, int64_t task, int worker)
{
    const drm_ctx *ctx = arg;
    const int64_t column = ctx->last + 1 - task, at = ctx->at[column];
    const bool rest = task == 0;
    const int bucket = ctx->buckets - 1 - (int)RAP_MIN(column, ctx->last);
    const int left = bits_left(ctx, bucket);
    const rap_drm_sorter sorter = {.other = ctx->room > 0 ? ctx->other + worker * ctx->room
                                                          : NULL,
                                   .room = ctx->room,
                                   .exec = ctx->exec,
                                   .worker = worker};
    uint64_t *items = rest ? ctx->rest : ctx->items + at;
    int64_t n = ctx->at[column + 1] - at, *out = ctx->a->out.data;

    rap_drm_sort(&sorter, items, n, ctx->index_bits);
    sort_runs(ctx, &sorter, items, n, left > 0 ? DIFFICULTY : next_field(ctx, DIFFICULTY),
              left > 0 ? left : 64);
    n = rest ? ctx->need : n;
    for (int64_t i = 0; i < n; i++) {
        out[at + i] = index_of(ctx, items[i]);
    }
}

/* Scratch is what the largest column wants, for no more workers than such columns there can
 * be and one. */
bool
rap_drm_order(drm_ctx *ctx, rap_error *err)
{
    const int64_t columns = ctx->last + 2;
    const int threads = ctx->exec->threads;
    int64_t room = 0;
    bool ok = true;

    for (int64_t c = 0; c < columns; c++) {
        room = RAP_MAX(room, ctx->at[c + 1] - ctx->at[c]);
    }
    room = RAP_MIN(room, RAP_DRM_ROOM);
    if (room > RAP_DRM_FEW) {
        ctx->room = room;
        ctx->exec->threads = (int)RAP_MIN(threads, ctx->at[columns] / room + 1);
        ctx->other = rap_alloc(
            (int64_t)sizeof(*ctx->other) * room * rap_workers(ctx->exec, columns), err);
        ok = ctx->other != NULL;
    }
    ok = ok && rap_parallel(ctx->exec, columns, column_task, ctx, err);
    ctx->exec->threads = threads;
    return ok;
}
