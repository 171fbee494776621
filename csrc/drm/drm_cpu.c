/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "../parallel.h"
#include "../status.h"
#include "drm_plan.h"
#include "drm_sort.h"

#define CLASSES RAP_DRM_CLASSES
#define RANKS 2048 /* of a sample of the last bucket */

static rank
rank_at(const drm_ctx *ctx, int64_t i)
{
    return (rank)ordered_key(&ctx->a->difficulty, i) << 64 | ordered_key(&ctx->a->gain, i);
}

/* --- candidates ---------------------------------------------------------------------- */

/* Column of a difficulty; -1 if it is no candidate's or in no bucket that is counted. */
static int64_t
column_of(const drm_ctx *ctx, double difficulty)
{
    int bucket = difficulty > 0 && difficulty < 1 ? (int)(difficulty * ctx->buckets) : -1;

    return bucket >= ctx->low ? ctx->buckets - 1 - bucket : -1;
}

/* The same of one sample, whatever its place. */
static int64_t
candidate(const drm_ctx *ctx, int64_t i)
{
    const rap_drm_args *a = ctx->a;
    const uint8_t *eligible = a->eligible.data; /* not bool: any byte may be there */

    if ((eligible != NULL && eligible[i] == 0)
        || (a->gain.data != NULL && isnan(value_at(&a->gain, i))))
    {
        return -1;
    }
    return column_of(ctx, value_at(&a->difficulty, i));
}

/* The bits that the kernels compare with: of the least number in bucket `low`. */
static uint64_t
low_bits(const drm_ctx *ctx)
{
    const double edge = (double)ctx->low / ctx->buckets;
    const float edge32 = (float)edge;
    uint32_t bits32;
    uint64_t bits;

    memcpy(&bits, &edge, sizeof(bits));
    memcpy(&bits32, &edge32, sizeof(bits32));
    bits = ctx->a->difficulty.dtype == RAP_F32 ? bits32 : bits;
    return RAP_MAX(bits, 1); /* 0.0 is no candidate */
}

/* Hits among samples [begin, begin + n), relative to begin; a NaN gain is no candidate. */
static int64_t
line_hits(const drm_ctx *ctx, int64_t begin, int64_t n, uint64_t low, int32_t *hit)
{
    const rap_drm_args *a = ctx->a;
    const rap_kernels *kernels = ctx->exec->kernels;
    const uint8_t *allowed = a->eligible.data; /* not bool: any byte may be there */
    int64_t hits, kept = 0;

    allowed = allowed != NULL ? allowed + begin : NULL;
    if (a->difficulty.dtype == RAP_F32) {
        const float *difficulty = (const float *)a->difficulty.data + begin;

        hits = kernels->drm_hits_f32(difficulty, allowed, n, low, hit);
    }
    else {
        const double *difficulty = (const double *)a->difficulty.data + begin;

        hits = kernels->drm_hits_f64(difficulty, allowed, n, low, hit);
    }
    if (a->gain.data == NULL) {
        return hits;
    }
    for (int64_t h = 0; h < hits; h++) {
        hit[kept] = hit[h];
        kept += !isnan(value_at(&a->gain, begin + hit[h]));
    }
    return kept;
}

/* --- counting ------------------------------------------------------------------------ */

static void
count_task(void *arg, int64_t chunk, int worker)
{
    const drm_ctx *ctx = arg;
    const int64_t end = RAP_MIN(ctx->n, (chunk + 1) * RAP_DRM_CHUNK);
    const uint64_t low = low_bits(ctx);
    span *spans = ctx->spans + chunk * ctx->columns;
    int32_t hit[RAP_DRM_LINE];

    (void)worker;
    memset(spans, 0, (size_t)ctx->columns * sizeof(*spans));
    for (int64_t i = chunk * RAP_DRM_CHUNK; i < end; i += RAP_DRM_LINE) {
        int64_t hits = line_hits(ctx, i, RAP_MIN(RAP_DRM_LINE, end - i), low, hit);

        for (int64_t h = 0; h < hits; h++) {
            int64_t c = column_of(ctx, value_at(&ctx->a->difficulty, i + hit[h]));

            if (c >= 0) {
                spans[c].end++;
            }
        }
    }
}

/* A lower bound on the bucket of the k-th candidate, estimated from a sample at even steps:
 * four standard deviations below the estimate. A wrong bound costs time only. `count` holds
 * all buckets. */
static int
sampled_low(const drm_ctx *ctx, int64_t *count)
{
    const int64_t size = RAP_MIN(RAP_DRM_SAMPLE, ctx->n / 16), step = ctx->n / (size + 1);
    const double share = (double)ctx->k / (double)ctx->n;
    double rest = share * (double)size + 4 * sqrt(share * (double)size) + 4;
    int column = 0;

    memset(count, 0, (size_t)ctx->buckets * sizeof(*count));
    for (int64_t s = 0; s < size; s++) {
        int64_t c = candidate(ctx, s * step);

        if (c >= 0) {
            count[c]++;
        }
    }
    while (column < ctx->buckets - 1 && (rest -= (double)count[column]) > 0) {
        column++;
    }
    return ctx->buckets - 1 - column;
}

/* The last column, and what of it is needed. False if the buckets counted do not hold k
 * candidates. */
static bool
find_last(drm_ctx *ctx)
{
    const int64_t buckets = ctx->columns - 1;
    int64_t total = 0, above = 0, column = 0;

    for (; column < buckets && total < ctx->k; column++) {
        above = total;
        for (int64_t c = 0; c < ctx->chunks; c++) {
            total += ctx->spans[c * ctx->columns + column].end;
        }
    }
    ctx->last = column - 1;
    ctx->need = RAP_MIN(ctx->k, total) - above;
    ctx->held = total - above;
    for (int64_t c = 0; c < ctx->chunks; c++) { /* all of it may be needed or not */
        span *spans = ctx->spans + c * ctx->columns + ctx->last;

        spans[1].end = spans[0].end;
        spans[0].end = 0;
    }
    return total >= ctx->k;
}

/* The table, with the buckets from `low` on. */
static bool
count_buckets(drm_ctx *ctx, int low, rap_error *err)
{
    ctx->low = low;
    ctx->columns = ctx->buckets - low + 1; /* and the rest */
    rap_free(ctx->spans);
    ctx->spans = rap_alloc((int64_t)sizeof(span) * ctx->chunks * ctx->columns, err);
    return ctx->spans != NULL && rap_parallel(ctx->exec, ctx->chunks, count_task, ctx, err);
}

static bool
find_column(drm_ctx *ctx, rap_error *err)
{
    int low;

    ctx->at = rap_alloc((int64_t)sizeof(*ctx->at) * (ctx->buckets + 2), err);
    if (ctx->at == NULL) {
        return false;
    }
    low = sampled_low(ctx, ctx->at);
    if (!count_buckets(ctx, low, err)) {
        return false;
    }
    if (!find_last(ctx) && low > 0) {
        if (!count_buckets(ctx, 0, err)) {
            return false;
        }
        find_last(ctx);
    }
    ctx->low = ctx->buckets - 1 - (int)ctx->last; /* what is lower is not looked at again */
    return true;
}

/* --- the last bucket, when most of it is not needed ---------------------------------- */

/* How many edges a rank does not exceed; CLASSES for one below the floor. */
static inline int
class_of(const drm_ctx *ctx, rank r)
{
    if (r > ctx->edge[2]) {
        return r > ctx->edge[0] ? 0 : r > ctx->edge[1] ? 1 : 2;
    }
    if (r > ctx->edge[4]) {
        return r > ctx->edge[3] ? 3 : 4;
    }
    return r >= ctx->floor ? 5 : 6;
}

/* Counts a chunk's samples in the last bucket by class. */
static void
class_task(void *arg, int64_t chunk, int worker)
{
    const drm_ctx *ctx = arg;
    const int64_t end = RAP_MIN(ctx->n, (chunk + 1) * RAP_DRM_CHUNK);
    const uint64_t low = low_bits(ctx);
    int64_t count[CLASSES + 1] = {0};
    int32_t hit[RAP_DRM_LINE];

    (void)worker;
    for (int64_t i = chunk * RAP_DRM_CHUNK; i < end; i += RAP_DRM_LINE) {
        int64_t hits = line_hits(ctx, i, RAP_MIN(RAP_DRM_LINE, end - i), low, hit);

        for (int64_t h = 0; h < hits; h++) {
            const int64_t index = i + hit[h];

            if (column_of(ctx, value_at(&ctx->a->difficulty, index)) == ctx->last) {
                count[class_of(ctx, rank_at(ctx, index))]++;
            }
        }
    }
    memcpy(ctx->classes + chunk * CLASSES, count, CLASSES * sizeof(*count));
}

/* Ranks of the rest, largest first, at places that look random. Returns how many. */
static int
sample_ranks(const drm_ctx *ctx, rank *sample)
{
    uint64_t place = 0;
    int n = 0;

    for (int s = 0; s < RAP_DRM_SAMPLE && n < RANKS; s++) {
        int64_t i = (int64_t)((rank)(place += UINT64_C(0x9e3779b97f4a7c15)) * ctx->n >> 64);
        rank r = rank_at(ctx, i);
        int j = n;

        if (candidate(ctx, i) != ctx->last || r < ctx->floor || r > ctx->ceiling) {
            continue;
        }
        for (; j > 0 && sample[j - 1] < r; j--) {
            sample[j] = sample[j - 1];
        }
        sample[j] = r;
        n++;
    }
    return n;
}

/* Two ranks that the need-th of the rest most likely lies between, or is: three standard
 * deviations about where a sample has it. Where the sample found nothing, the middle. */
static void
set_edges(drm_ctx *ctx, rank *sample)
{
    const int n = sample_ranks(ctx, sample);
    const double share = (double)ctx->need / (double)ctx->held;
    const double around = 3 * sqrt(n * share * (1 - share)) + 2;
    rank high = ctx->floor + (ctx->ceiling - ctx->floor) / 2, low = high;

    if (n > 0) {
        high = sample[(int)RAP_MAX(0, n * share - around)];
        low = sample[(int)RAP_MIN(n - 1, n * share + around)];
    }
    low = RAP_MIN(low, high - 1); /* edges fall */
    ctx->edge[0] = ctx->ceiling;
    ctx->edge[1] = high;
    ctx->edge[2] = high - 1;
    ctx->edge[3] = low;
    ctx->edge[4] = low - 1;
}

/* The class of the need-th becomes the rest; those before it are in. */
static bool
take_class(drm_ctx *ctx, int64_t needed, rap_error *err)
{
    int64_t total[CLASSES] = {0}, in = 0;
    int c = 0;

    for (int64_t i = 0; i < ctx->chunks * CLASSES; i++) {
        total[i % CLASSES] += ctx->classes[i];
    }
    while (c < CLASSES && in + total[c] < needed) {
        in += total[c++];
    }
    if (c == 0 || c == CLASSES) {
        return rap_fail(err, RAP_EINPUT, "the scores changed during the call");
    }
    ctx->ceiling = ctx->edge[c - 1];
    ctx->floor = c < CLASSES - 1 ? ctx->edge[c] + 1 : ctx->floor;
    ctx->need = needed - in;
    ctx->held = total[c];
    for (int64_t chunk = 0; chunk < ctx->chunks; chunk++) {
        span *spans = ctx->spans + chunk * ctx->columns + ctx->last;
        const int64_t *classes = ctx->classes + chunk * CLASSES;

        spans[0].end = 0;
        for (int i = 0; i < c; i++) {
            spans[0].end += classes[i];
        }
        spans[1].end = classes[c];
    }
    return true;
}

/* How many the rest may hold to be stored and sorted: half of the scores' bytes at most, and
 * not much more than is needed, where looking again is cheaper. */
static int64_t
bound_of(const drm_ctx *ctx)
{
    const rap_array *x = &ctx->a->difficulty, *y = &ctx->a->gain;
    const size_t bytes =
        rap_dtype_size(x->dtype) + (y->data != NULL ? rap_dtype_size(y->dtype) : 0);
    const int64_t most = (int64_t)bytes * ctx->n / (2 * (int64_t)sizeof(*ctx->rest));

    return RAP_DRM_ROOM + RAP_MIN(most, RAP_MAX(2 * ctx->need, ctx->n / 16));
}

/* Until the rest is all needed, all of one rank or small enough to be stored. */
static bool
narrow(drm_ctx *ctx, rap_error *err)
{
    const int64_t needed = ctx->need, bound = bound_of(ctx);
    rank *sample = NULL;
    bool ok = true;

    if (ctx->held > needed && ctx->held > bound) {
        sample = rap_alloc((int64_t)sizeof(*sample) * RANKS, err);
        ctx->classes =
            rap_alloc((int64_t)sizeof(*ctx->classes) * ctx->chunks * CLASSES, err);
        ok = sample != NULL && ctx->classes != NULL;
    }
    while (ok && ctx->held > ctx->need && ctx->held > bound && ctx->floor < ctx->ceiling) {
        set_edges(ctx, sample);
        ok = rap_parallel(ctx->exec, ctx->chunks, class_task, ctx, err)
             && take_class(ctx, needed, err);
    }
    rap_free(sample);
    rap_free(ctx->classes);
    return ok;
}

/* --- writing ------------------------------------------------------------------------- */

/* Counts become places, column by column and chunk by chunk; the rest has only as many as
 * can be needed. */
static void
place(drm_ctx *ctx)
{
    int64_t total = 0;

    if (ctx->floor == ctx->ceiling) { /* by index: the first are in */
        ctx->held = ctx->need;
    }
    for (int64_t column = 0; column <= ctx->last + 1; column++) {
        const bool rest = column == ctx->last + 1;
        const int64_t most = rest ? total + ctx->held : INT64_MAX;

        ctx->at[column] = total;
        for (int64_t c = 0; c < ctx->chunks; c++) {
            span *s = &ctx->spans[c * ctx->columns + column];

            s->at = total;
            total = s->end = RAP_MIN(most, total + s->end);
        }
    }
    ctx->at[ctx->last + 2] = total;
}

/* One sample to its place, if it has one. No more are written than were counted: another
 * thread may be changing the scores. Returns how many were, 0 or 1. */
static inline int64_t
put(const drm_ctx *ctx, span *spans, int64_t index, double fraction)
{
    const double x = value_at(&ctx->a->difficulty, index);
    int64_t column = column_of(ctx, x), before = 0;
    const double inside = x * ctx->buckets - (double)(ctx->buckets - 1 - column);
    uint64_t *items = ctx->items;

    if (column < 0) {
        return 0;
    }
    if (column == ctx->last) {
        const rank r = rank_at(ctx, index);

        if (r < ctx->floor) {
            return 0;
        }
        if (r <= ctx->ceiling) {
            column++;
            items = ctx->rest;
            before = ctx->at[column];
        }
    }
    if (spans[column].at == spans[column].end) {
        return 0;
    }
    items[spans[column].at++ - before] =
        packed(ctx, (uint64_t)(int64_t)(inside * fraction), index);
    return 1;
}

/* A chunk is done with when all its places are filled: of many ties the first are enough. */
static void
write_task(void *arg, int64_t chunk, int worker)
{
    drm_ctx *ctx = arg;
    const int64_t end = RAP_MIN(ctx->n, (chunk + 1) * RAP_DRM_CHUNK);
    const uint64_t low = low_bits(ctx);
    const double fraction = ldexp(1, 64 - ctx->index_bits);
    span *spans = ctx->spans + chunk * ctx->columns;
    int64_t left = 0;
    int32_t hit[RAP_DRM_LINE];

    (void)worker;
    for (int64_t c = 0; c <= ctx->last + 1; c++) {
        left += spans[c].end - spans[c].at;
    }
    for (int64_t i = chunk * RAP_DRM_CHUNK; i < end && left > 0; i += RAP_DRM_LINE) {
        int64_t hits = line_hits(ctx, i, RAP_MIN(RAP_DRM_LINE, end - i), low, hit);

        for (int64_t h = 0; h < hits; h++) {
            left -= put(ctx, spans, i + hit[h], fraction);
        }
    }
    if (left > 0) {
        atomic_store(&ctx->changed, true);
    }
}

static bool
write_items(drm_ctx *ctx, rap_error *err)
{
    place(ctx);
    ctx->items = ctx->a->out.data;
    ctx->rest = ctx->items + ctx->at[ctx->last + 1];
    if (ctx->held > ctx->need) {
        ctx->rest = ctx->own = rap_alloc((int64_t)sizeof(*ctx->own) * ctx->held, err);
    }
    if (ctx->rest == NULL || !rap_parallel(ctx->exec, ctx->chunks, write_task, ctx, err)) {
        return false;
    }
    return !atomic_load(&ctx->changed)
           || rap_fail(err, RAP_EINPUT, "the scores changed during the call");
}

/* --- the call ------------------------------------------------------------------------ */

static drm_ctx
start(const rap_drm_args *a, rap_exec *exec)
{
    drm_ctx ctx = {.a = a, .exec = exec, .n = a->difficulty.shape[0], .buckets = 1};

    ctx.k = RAP_MIN(a->out.shape[0], ctx.n);
    ctx.chunks = rap_ceil_div(ctx.n, RAP_DRM_CHUNK);
    ctx.ceiling = ~(rank)0;
    ctx.index_bits = 2; /* keys below 2^62: which a double converts to in one instruction */
    while (ctx.n > INT64_C(1) << ctx.index_bits) {
        ctx.index_bits++;
    }
    while (ctx.buckets < RAP_DRM_BUCKETS && ctx.buckets * RAP_DRM_PER_BUCKET < ctx.n) {
        ctx.buckets *= 2;
    }
    return ctx;
}

bool
rap_drm_cpu(void *args, rap_exec *exec, rap_error *err)
{
    rap_drm_args *a = args;
    drm_ctx ctx;
    bool ok;

    a->found = 0;
    if (a->difficulty.shape[0] == 0 || a->out.shape[0] == 0) {
        return true;
    }
    ctx = start(a, exec);
    ok = find_column(&ctx, err) && narrow(&ctx, err) && write_items(&ctx, err)
         && rap_drm_order(&ctx, err);
    if (ok) {
        a->found = ctx.at[ctx.last + 1] + ctx.need;
    }
    rap_free(ctx.spans);
    rap_free(ctx.at);
    rap_free(ctx.own);
    rap_free(ctx.other);
    return ok;
}
