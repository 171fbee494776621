/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "../parallel.h"
#include "../status.h"
#include "drm.h"

#define DIGIT_BITS 11
#define DIGITS (1 << DIGIT_BITS)
#define FEW 48 /* items that are sorted by insertion */

typedef struct {
    uint64_t key; /* ordered_key of difficulty, or of gain while ties are sorted */
    int64_t index;
} item;

typedef struct {
    const rap_drm_args *a;
    rap_exec *exec;
    int64_t n, chunks, k;
    int low;             /* least bucket counted */
    int last;            /* bucket of the k-th candidate */
    int64_t *at;         /* [chunks, BUCKETS - low] counts, then first places */
    int64_t *bucket_at;  /* [BUCKETS - low + 1] first place of bucket BUCKETS - 1 - i */
    int64_t above, need; /* items in buckets above the last; items of the last to keep */
    item *items;         /* by bucket down, index up */
    item *scratch;       /* a worker: as many as the largest bucket holds */
    int64_t scratch_size;
    atomic_bool changed; /* the caller's scores are no longer those that were counted */
} drm_ctx;

static double
value_at(const rap_array *x, int64_t i)
{
    return x->dtype == RAP_F32 ? (double)((const float *)x->data)[i]
                               : ((const double *)x->data)[i];
}

/* Larger value, larger key; -0.0 has the key of 0.0. */
static uint64_t
ordered_key(const rap_array *x, int64_t i)
{
    double value = x->data == NULL ? 0.0 : value_at(x, i);
    uint64_t bits;

    memcpy(&bits, &value, sizeof(bits));
    bits = bits << 1 == 0 ? 0 : bits;
    return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

/* In the loops below: true once in a while, when the call should end. */
static bool
interrupted(const drm_ctx *ctx, int64_t i, int worker)
{
    return ((uint64_t)i & (RAP_DRM_CHUNK - 1)) == 0 && rap_should_stop(ctx->exec, worker);
}

/* --- scans --------------------------------------------------------------------------- */

/* Of a number in (0, 1); anything else, met when scores change under our hands, is 0. */
static int
bucket_of(double difficulty)
{
    return difficulty > 0 && difficulty < 1 ? (int)(difficulty * RAP_DRM_BUCKETS) : 0;
}

/* The bits that the kernels compare with: of the least number in bucket `low`. */
static uint64_t
low_bits(const drm_ctx *ctx)
{
    const double edge = (double)ctx->low / RAP_DRM_BUCKETS;
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

/* Column of the tables for a bucket: the highest bucket comes first. */
static int64_t
column_of(const drm_ctx *ctx, int64_t i)
{
    int bucket = RAP_MAX(bucket_of(value_at(&ctx->a->difficulty, i)), ctx->low);

    return RAP_DRM_BUCKETS - 1 - bucket;
}

static void
count_task(void *arg, int64_t chunk, int worker)
{
    const drm_ctx *ctx = arg;
    const int64_t columns = RAP_DRM_BUCKETS - ctx->low;
    const int64_t end = RAP_MIN(ctx->n, (chunk + 1) * RAP_DRM_CHUNK);
    const uint64_t low = low_bits(ctx);
    int64_t *count = ctx->at + chunk * columns;
    int32_t hit[RAP_DRM_LINE];

    (void)worker;
    memset(count, 0, (size_t)columns * sizeof(*count));
    for (int64_t i = chunk * RAP_DRM_CHUNK; i < end; i += RAP_DRM_LINE) {
        int64_t hits = line_hits(ctx, i, RAP_MIN(RAP_DRM_LINE, end - i), low, hit);

        for (int64_t h = 0; h < hits; h++) {
            count[column_of(ctx, i + hit[h])]++;
        }
    }
}

/* First place of what a chunk has of a bucket's column, and of the next chunk's. */
static int64_t
place_after(const drm_ctx *ctx, int64_t chunk, int64_t column)
{
    const int64_t columns = RAP_DRM_BUCKETS - ctx->low;

    return chunk + 1 < ctx->chunks ? ctx->at[(chunk + 1) * columns + column]
                                   : ctx->bucket_at[column + 1];
}

/* Writes only as much as was counted: another thread may be changing the scores. */
static void
write_task(void *arg, int64_t chunk, int worker)
{
    drm_ctx *ctx = arg;
    const int64_t columns = RAP_DRM_BUCKETS - ctx->low, used = RAP_DRM_BUCKETS - ctx->last;
    const int64_t end = RAP_MIN(ctx->n, (chunk + 1) * RAP_DRM_CHUNK);
    const uint64_t low = low_bits(ctx);
    int64_t next[RAP_DRM_BUCKETS];
    int32_t hit[RAP_DRM_LINE];

    (void)worker;
    memcpy(next, ctx->at + chunk * columns, (size_t)used * sizeof(*next));
    for (int64_t i = chunk * RAP_DRM_CHUNK; i < end; i += RAP_DRM_LINE) {
        int64_t hits = line_hits(ctx, i, RAP_MIN(RAP_DRM_LINE, end - i), low, hit);

        for (int64_t h = 0; h < hits; h++) {
            const int64_t index = i + hit[h], column = column_of(ctx, index);

            if (column < used && next[column] < place_after(ctx, chunk, column)) {
                ctx->items[next[column]++] =
                    (item){ordered_key(&ctx->a->difficulty, index), index};
            }
        }
    }
    for (int64_t c = 0; c < used; c++) {
        if (next[c] != place_after(ctx, chunk, c)) {
            atomic_store(&ctx->changed, true);
        }
    }
}

/* Counts become places, bucket by bucket and chunk by chunk. False if the buckets counted do
 * not hold k candidates. */
static bool
place(drm_ctx *ctx)
{
    const int64_t columns = RAP_DRM_BUCKETS - ctx->low;
    int64_t total = 0, column = 0;

    for (; column < columns && total < ctx->k; column++) {
        ctx->bucket_at[column] = total;
        for (int64_t c = 0; c < ctx->chunks; c++) {
            int64_t *at = &ctx->at[c * columns + column], count = *at;

            *at = total;
            total += count;
        }
    }
    ctx->bucket_at[column] = total;
    ctx->last = RAP_DRM_BUCKETS - (int)column;
    ctx->above = ctx->bucket_at[column - 1];
    ctx->need = RAP_MIN(ctx->k, total) - ctx->above;
    return total >= ctx->k;
}

/* A bucket that the k-th candidate surely lies in or above, from a sample at even steps: four
 * standard deviations lower than the sample says. Being wrong costs time only. */
static int
sampled_low(const drm_ctx *ctx)
{
    const int64_t size = RAP_MIN(RAP_DRM_SAMPLE, ctx->n / 16), step = ctx->n / (size + 1);
    const uint64_t low = low_bits(ctx);
    const double share = (double)ctx->k / (double)ctx->n;
    double rest = share * (double)size + 4 * sqrt(share * (double)size) + 4;
    int32_t count[RAP_DRM_BUCKETS] = {0}, hit[1];
    int bucket = RAP_DRM_BUCKETS - 1;

    for (int64_t s = 0; s < size; s++) {
        if (line_hits(ctx, s * step, 1, low, hit) == 1) {
            count[bucket_of(value_at(&ctx->a->difficulty, s * step))]++;
        }
    }
    while (bucket > 0 && (rest -= count[bucket]) > 0) {
        bucket--;
    }
    return bucket;
}

/* Both tables, with the buckets from ctx->low on. */
static bool
count_buckets(drm_ctx *ctx, rap_error *err)
{
    const int64_t columns = RAP_DRM_BUCKETS - ctx->low;

    ctx->at = rap_alloc(8 * ctx->chunks * columns, err);
    ctx->bucket_at = rap_alloc(8 * (columns + 1), err);
    return ctx->at != NULL && ctx->bucket_at != NULL
           && rap_parallel(ctx->exec, ctx->chunks, count_task, ctx, err);
}

static void
free_buckets(drm_ctx *ctx)
{
    rap_free(ctx->at);
    rap_free(ctx->bucket_at);
    ctx->at = ctx->bucket_at = NULL;
}

static bool
find_places(drm_ctx *ctx, rap_error *err)
{
    ctx->low = sampled_low(ctx);
    if (!count_buckets(ctx, err)) {
        return false;
    }
    if (!place(ctx) && ctx->low > 0) {
        free_buckets(ctx);
        ctx->low = 0;
        if (!count_buckets(ctx, err)) {
            return false;
        }
        place(ctx);
    }
    return true;
}

/* --- the last bucket ----------------------------------------------------------------- */

static int
digit_of(const item *x, int shift)
{
    return (int)(x->key >> shift) & (DIGITS - 1);
}

/* Keeps in items[0 .. n) the `need` largest by one digit as far as it decides: those with
 * larger digits move to the front and are final, those with the deciding digit follow. Both
 * keep their order. Returns how many are final; *n becomes the rest. */
static int64_t
refine(const drm_ctx *ctx, item *items, int64_t *n, int64_t need, int shift, item *scratch,
       int worker)
{
    int64_t count[DIGITS] = {0}, above = 0, final = 0, rest = 0;
    int digit = DIGITS - 1;

    for (int64_t i = 0; i < *n; i++) {
        if (interrupted(ctx, i, worker)) {
            return 0;
        }
        count[digit_of(&items[i], shift)]++;
    }
    while (above + count[digit] < need) {
        above += count[digit--];
    }
    if (count[digit] == *n) {
        return 0;
    }
    for (int64_t i = 0; i < *n; i++) {
        int d = digit_of(&items[i], shift);

        if (d > digit) {
            scratch[final++] = items[i];
        }
        else if (d == digit) {
            items[rest++] = items[i];
        }
    }
    memmove(items + final, items, (size_t)rest * sizeof(*items));
    memcpy(items, scratch, (size_t) final * sizeof(*items));
    *n = rest;
    return final;
}

/* The same digit by digit; returns how many of the `need` are final, *n becomes the rest. */
static int64_t
refine_key(const drm_ctx *ctx, item *items, int64_t *n, int64_t need, item *scratch,
           int worker)
{
    static const int shifts[] = {53, 42, 31, 20, 9, 0};
    int64_t done = 0;

    for (int s = 0; s < 6 && need - done < *n; s++) {
        done += refine(ctx, items + done, n, need - done, shifts[s], scratch, worker);
    }
    return done;
}

static void
take_keys(const drm_ctx *ctx, const rap_array *x, item *items, int64_t n, int worker)
{
    for (int64_t i = 0; i < n && !interrupted(ctx, i, worker); i++) {
        items[i].key = ordered_key(x, items[i].index);
    }
}

/* The `need` best of n items to the front; order among them comes later. What ties to the end
 * is cut by index: the first have the least. */
static void
select_items(const drm_ctx *ctx, item *items, int64_t n, int64_t need, item *scratch,
             int worker)
{
    int64_t done = refine_key(ctx, items, &n, need, scratch, worker);

    items += done;
    need -= done;
    if (need < n && ctx->a->gain.data != NULL) {
        take_keys(ctx, &ctx->a->gain, items, n, worker);
        refine_key(ctx, items, &n, need, scratch, worker);
        take_keys(ctx, &ctx->a->difficulty, items, need, worker);
    }
}

/* --- a bucket, sorted ---------------------------------------------------------------- */

static void
insertion_sort(item *items, int64_t n)
{
    for (int64_t i = 1; i < n; i++) {
        item x = items[i];
        int64_t j = i;

        for (; j > 0 && items[j - 1].key < x.key; j--) {
            items[j] = items[j - 1];
        }
        items[j] = x;
    }
}

/* Moves items by one digit of their key, larger digits first, stable. */
static void
sort_digit(const drm_ctx *ctx, const item *items, item *other, int64_t n, int shift,
           int worker)
{
    int64_t count[DIGITS] = {0}, at = 0;

    for (int64_t i = 0; i < n; i++) {
        count[digit_of(&items[i], shift)]++;
    }
    for (int d = DIGITS - 1; d >= 0; d--) {
        int64_t here = count[d];

        count[d] = at;
        at += here;
    }
    for (int64_t i = 0; i < n && !interrupted(ctx, i + 1, worker); i++) {
        other[count[digit_of(&items[i], shift)]++] = items[i];
    }
}

/* Stable, key down; only digits that vary cost a pass. */
static void
sort_items(const drm_ctx *ctx, item *items, item *other, int64_t n, int worker)
{
    item *from = items, *to = other;
    uint64_t varying = 0;

    if (n <= FEW) {
        insertion_sort(items, n);
        return;
    }
    for (int64_t i = 1; i < n; i++) {
        varying |= items[i].key ^ items[0].key;
    }
    for (int shift = 0; shift < 64 && varying >> shift != 0; shift += DIGIT_BITS) {
        while ((varying >> shift & 1) == 0) {
            shift++;
        }
        sort_digit(ctx, from, to, n, shift, worker);

        item *swap = from;

        from = to;
        to = swap;
    }
    if (from != items) {
        memcpy(items, from, (size_t)n * sizeof(*items));
    }
}

/* Items of one difficulty, by gain. */
static void
sort_ties(const drm_ctx *ctx, item *items, item *other, int64_t n, int worker)
{
    for (int64_t begin = 0, end; begin < n; begin = end) {
        for (end = begin + 1; end < n && items[end].key == items[begin].key; end++) {
        }
        if (end - begin == 1) {
            continue;
        }
        take_keys(ctx, &ctx->a->gain, items + begin, end - begin, worker);
        sort_items(ctx, items + begin, other, end - begin, worker);
    }
}

static void
bucket_task(void *arg, int64_t column, int worker)
{
    const drm_ctx *ctx = arg;
    const int64_t at = ctx->bucket_at[column];
    const bool last = column == RAP_DRM_BUCKETS - 1 - ctx->last;
    item *items = ctx->items + at, *scratch = ctx->scratch + worker * ctx->scratch_size;
    int64_t n = ctx->bucket_at[column + 1] - at, *out = ctx->a->out.data;

    if (last) {
        select_items(ctx, items, n, ctx->need, scratch, worker);
        n = ctx->need;
    }
    sort_items(ctx, items, scratch, n, worker);
    if (ctx->a->gain.data != NULL) {
        sort_ties(ctx, items, scratch, n, worker);
    }
    for (int64_t i = 0; i < n; i++) {
        out[at + i] = items[i].index;
    }
}

static bool
sort_buckets(drm_ctx *ctx, rap_error *err)
{
    const int64_t buckets = RAP_DRM_BUCKETS - ctx->last;
    bool ok = false;

    ctx->scratch_size = ctx->need;
    for (int64_t c = 0; c + 1 < buckets; c++) {
        ctx->scratch_size =
            RAP_MAX(ctx->scratch_size, ctx->bucket_at[c + 1] - ctx->bucket_at[c]);
    }
    ctx->scratch = rap_alloc(
        (int64_t)sizeof(item) * ctx->scratch_size * rap_workers(ctx->exec, buckets), err);
    ok = ctx->scratch != NULL && rap_parallel(ctx->exec, buckets, bucket_task, ctx, err);
    rap_free(ctx->scratch);
    return ok;
}

bool
rap_drm_cpu(rap_drm_args *a, rap_exec *exec, rap_error *err)
{
    drm_ctx ctx = {.a = a, .exec = exec, .n = a->difficulty.shape[0], .k = a->out.shape[0]};
    bool ok = false;

    a->found = 0;
    if (ctx.n == 0 || ctx.k == 0) {
        return true;
    }
    ctx.k = RAP_MIN(ctx.k, ctx.n);
    ctx.chunks = rap_ceil_div(ctx.n, RAP_DRM_CHUNK);
    if (!find_places(&ctx, err)) {
        goto done;
    }
    a->found = ctx.above + ctx.need;
    ctx.items =
        rap_alloc((int64_t)sizeof(item) * ctx.bucket_at[RAP_DRM_BUCKETS - ctx.last], err);
    ok = ctx.items != NULL && rap_parallel(exec, ctx.chunks, write_task, &ctx, err)
         && (!atomic_load(&ctx.changed)
             || rap_fail(err, RAP_EINPUT, "the scores changed during the call"))
         && sort_buckets(&ctx, err);
    if (ok && atomic_load(&exec->stop)) {
        ok = rap_fail(err, RAP_EINTERRUPT, "interrupted");
    }
done:
    rap_free(ctx.items);
    free_buckets(&ctx);
    return ok;
}

bool
rap_drm_check(const rap_drm_args *a, rap_error *err)
{
    const rap_array *scores[] = {&a->difficulty, &a->gain};
    const int64_t n = a->difficulty.ndim == 1 ? a->difficulty.shape[0] : -1;

    for (int i = 0; i < 2; i++) {
        const rap_array *x = scores[i];

        if (x->data == NULL) {
            continue;
        }
        if (x->ndim != 1 || x->shape[0] != n || (n > 1 && x->stride[0] != 1)) {
            return rap_fail(err, RAP_EINPUT, "%s: expected one contiguous dimension [N]",
                            i == 0 ? "difficulty" : "gain");
        }
        if (x->dtype != RAP_F32 && x->dtype != RAP_F64) {
            return rap_fail(err, RAP_ETYPE, "%s: expected float32 or float64",
                            i == 0 ? "difficulty" : "gain");
        }
    }
    if (a->eligible.data != NULL
        && (a->eligible.ndim != 1 || a->eligible.shape[0] != n
            || a->eligible.dtype != RAP_BOOL || (n > 1 && a->eligible.stride[0] != 1)))
    {
        return rap_fail(err, RAP_EINPUT, "eligible: expected contiguous bool [%lld]",
                        (long long)n);
    }
    return true;
}
