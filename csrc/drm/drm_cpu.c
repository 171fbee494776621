/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "../parallel.h"
#include "../status.h"
#include "drm.h"

#define DIGIT_BITS 11
#define DIGITS (1 << DIGIT_BITS)

typedef struct {
    const rap_drm_args *a;
    rap_exec *exec;
    int64_t n, chunks, k;
    uint32_t *count;       /* [chunks, BUCKETS] */
    uint32_t threshold;    /* bucket of the k-th candidate */
    int64_t above, inside; /* how many lie above it and in it */
    int64_t *above_at;     /* [chunks] first place of a chunk's indices above */
    int64_t *inside_at;    /* [chunks] the same for those in the bucket */
    int64_t *index;        /* [above + inside]: above first, each in rising order */
    atomic_bool changed;   /* the caller's scores are no longer those that were counted */
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

/* --- scans --------------------------------------------------------------------------- */

/* Buckets of samples [begin, begin + n); a NaN gain is no candidate. */
static void
line_buckets(const drm_ctx *ctx, int64_t begin, int64_t n, uint32_t *bucket)
{
    const rap_drm_args *a = ctx->a;
    const uint8_t *allowed = a->eligible.data; /* not bool: any byte may be there */

    allowed = allowed != NULL ? allowed + begin : NULL;
    if (a->difficulty.dtype == RAP_F32) {
        ctx->exec->kernels->drm_buckets_f32((const float *)a->difficulty.data + begin,
                                            allowed, n, bucket);
    }
    else {
        ctx->exec->kernels->drm_buckets_f64((const double *)a->difficulty.data + begin,
                                            allowed, n, bucket);
    }
    for (int64_t i = 0; a->gain.data != NULL && i < n; i++) {
        bucket[i] = isnan(value_at(&a->gain, begin + i)) ? 0 : bucket[i];
    }
}

static void
count_task(void *arg, int64_t chunk, int worker)
{
    const drm_ctx *ctx = arg;
    uint32_t bucket[RAP_DRM_LINE], *count = ctx->count + chunk * RAP_DRM_BUCKETS;
    const int64_t end = RAP_MIN(ctx->n, (chunk + 1) * RAP_DRM_CHUNK);

    (void)worker;
    memset(count, 0, RAP_DRM_BUCKETS * sizeof(*count));
    for (int64_t i = chunk * RAP_DRM_CHUNK; i < end; i += RAP_DRM_LINE) {
        int64_t n = RAP_MIN(RAP_DRM_LINE, end - i);

        line_buckets(ctx, i, n, bucket);
        for (int64_t j = 0; j < n; j++) {
            count[bucket[j]]++;
        }
    }
}

/* Writes only as much as was counted: another thread may be changing the scores. */
static void
write_task(void *arg, int64_t chunk, int worker)
{
    drm_ctx *ctx = arg;
    uint32_t bucket[RAP_DRM_LINE];
    const int64_t end = RAP_MIN(ctx->n, (chunk + 1) * RAP_DRM_CHUNK);
    const bool last = chunk + 1 == ctx->chunks;
    int64_t above = ctx->above_at[chunk], inside = ctx->inside_at[chunk];
    const int64_t above_end = last ? ctx->above : ctx->above_at[chunk + 1];
    const int64_t inside_end = last ? ctx->inside : ctx->inside_at[chunk + 1];

    (void)worker;
    for (int64_t i = chunk * RAP_DRM_CHUNK; i < end; i += RAP_DRM_LINE) {
        int64_t n = RAP_MIN(RAP_DRM_LINE, end - i);

        line_buckets(ctx, i, n, bucket);
        for (int64_t j = 0; j < n; j++) {
            if (bucket[j] > ctx->threshold && above < above_end) {
                ctx->index[above++] = i + j;
            }
            else if (bucket[j] == ctx->threshold && inside < inside_end) {
                ctx->index[ctx->above + inside++] = i + j;
            }
        }
    }
    if (above != above_end || inside != inside_end) {
        atomic_store(&ctx->changed, true);
    }
}

/* From the counts: the bucket of the k-th candidate (1 if there are fewer), how many lie
 * above and inside, and where each chunk writes. */
static void
place(drm_ctx *ctx)
{
    int64_t above = 0, inside = 0;

    for (ctx->threshold = RAP_DRM_BUCKETS - 1;; ctx->threshold--) {
        inside = 0;
        for (int64_t c = 0; c < ctx->chunks; c++) {
            inside += ctx->count[c * RAP_DRM_BUCKETS + ctx->threshold];
        }
        if (above + inside >= ctx->k || ctx->threshold == 1) {
            break;
        }
        above += inside;
    }
    ctx->above = above;
    ctx->inside = inside;
    above = inside = 0;
    for (int64_t c = 0; c < ctx->chunks; c++) {
        const uint32_t *count = ctx->count + c * RAP_DRM_BUCKETS;

        ctx->above_at[c] = above;
        ctx->inside_at[c] = inside;
        inside += count[ctx->threshold];
        for (uint32_t b = ctx->threshold + 1; b < RAP_DRM_BUCKETS; b++) {
            above += count[b];
        }
    }
}

/* In the serial loops below: true once in a while, when the call should end. */
static bool
interrupted(rap_exec *exec, int64_t i)
{
    return ((uint64_t)i & (RAP_DRM_CHUNK - 1)) == 0 && rap_should_stop(exec, 0);
}

/* --- the bucket ---------------------------------------------------------------------- */

static uint32_t
digit_of(const rap_array *x, int64_t i, int shift)
{
    return (uint32_t)(ordered_key(x, i) >> shift) & (DIGITS - 1);
}

/* Keeps in index[0 .. n) the `need` largest by one digit as far as it decides: those
 * with larger digits move to the front and are final, those with the deciding digit
 * follow. Both keep their order. Returns how many are final; *n becomes the rest. */
static int64_t
refine(int64_t *index, int64_t *n, int64_t need, const rap_array *x, int shift,
       int64_t *scratch, rap_exec *exec)
{
    int64_t count[DIGITS] = {0}, above = 0, final = 0, rest = 0;
    int digit = DIGITS - 1;

    for (int64_t i = 0; i < *n; i++) {
        if (interrupted(exec, i)) {
            return 0;
        }
        count[digit_of(x, index[i], shift)]++;
    }
    while (above + count[digit] < need) {
        above += count[digit--];
    }
    if (count[digit] == *n) {
        return 0;
    }
    for (int64_t i = 0; i < *n; i++) {
        int d = (int)digit_of(x, index[i], shift);

        if (d > digit) {
            index[final++] = index[i];
        }
        else if (d == digit) {
            scratch[rest++] = index[i];
        }
    }
    memcpy(index + final, scratch, (size_t)rest * sizeof(*index));
    *n = rest;
    return final;
}

/* The `need` best of the bucket to its front; order among them comes later. */
static bool
select_inside(const drm_ctx *ctx, int64_t need, rap_error *err)
{
    static const int shifts[] = {53, 42, 31, 20, 9, 0};
    int64_t *index = ctx->index + ctx->above, n = ctx->inside, *scratch;

    if (need >= n) {
        return true;
    }
    scratch = rap_alloc(8 * n, err);
    if (scratch == NULL) {
        return false;
    }
    for (int key = 0; key < 2; key++) {
        const rap_array *x = key == 0 ? &ctx->a->difficulty : &ctx->a->gain;

        for (int s = 0; s < 6 && need < n && x->data != NULL; s++) {
            int64_t final = refine(index, &n, need, x, shifts[s], scratch, ctx->exec);

            index += final;
            need -= final;
        }
    }
    rap_free(scratch);
    return true; /* what is left ties: the first `need` have the least indices */
}

/* --- the answer, sorted -------------------------------------------------------------- */

typedef struct {
    uint64_t key;
    int64_t index;
} item;

/* Moves items by one digit of their key, larger digits first, stable. False if all share
 * it or the call is stopped; polled, since millions of items take seconds. */
static bool
sort_digit(const item *items, item *other, int64_t n, int shift, rap_exec *exec)
{
    int64_t count[DIGITS] = {0}, at = 0;

    for (int64_t i = 0; i < n; i++) {
        count[(items[i].key >> shift) & (DIGITS - 1)]++;
    }
    if (count[(items[0].key >> shift) & (DIGITS - 1)] == n) {
        return false;
    }
    for (int d = DIGITS - 1; d >= 0; d--) {
        int64_t here = count[d];

        count[d] = at;
        at += here;
    }
    for (int64_t i = 0; i < n; i++) {
        if (interrupted(exec, i)) {
            return false;
        }
        other[count[(items[i].key >> shift) & (DIGITS - 1)]++] = items[i];
    }
    return true;
}

/* Stable, key down. Returns where the sorted items are: items or other. */
static item *
sort_items(item *items, item *other, int64_t n, rap_exec *exec)
{
    for (int shift = 0; n > 0 && shift < 64; shift += DIGIT_BITS) {
        if (!sort_digit(items, other, n, shift, exec)) {
            continue;
        }
        item *swap = items;

        items = other;
        other = swap;
    }
    return items;
}

static bool
write_sorted(drm_ctx *ctx, int64_t n, int64_t *out, rap_error *err)
{
    item *buffer = rap_alloc(2 * n * (int64_t)sizeof(item), err), *items = buffer;

    if (buffer == NULL) {
        return false;
    }
    for (int64_t i = 0; i < n; i++) {
        items[i].index = ctx->index[i];
        items[i].key = ~(uint64_t)ctx->index[i];
    }
    items = sort_items(items, buffer + n, n, ctx->exec);
    for (int key = 0; key < 2 && n > 0; key++) {
        const rap_array *x = key == 0 ? &ctx->a->gain : &ctx->a->difficulty;

        for (int64_t i = 0; i < n && !interrupted(ctx->exec, i); i++) {
            items[i].key = ordered_key(x, items[i].index);
        }
        items = sort_items(items, items == buffer ? buffer + n : buffer, n, ctx->exec);
    }
    for (int64_t i = 0; i < n; i++) {
        out[i] = items[i].index;
    }
    rap_free(buffer);
    return true;
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
    ctx.chunks = rap_ceil_div(ctx.n, RAP_DRM_CHUNK);
    ctx.count = rap_alloc(ctx.chunks * RAP_DRM_BUCKETS * 4, err);
    ctx.above_at = rap_alloc(16 * ctx.chunks, err);
    if (ctx.count == NULL || ctx.above_at == NULL) {
        goto done;
    }
    ctx.inside_at = ctx.above_at + ctx.chunks;
    if (!rap_parallel(exec, ctx.chunks, count_task, &ctx, err)) {
        goto done;
    }
    place(&ctx);
    a->found = RAP_MIN(ctx.k, ctx.above + ctx.inside);
    ctx.index = rap_alloc(8 * (ctx.above + ctx.inside), err);
    ok = ctx.index != NULL && rap_parallel(exec, ctx.chunks, write_task, &ctx, err)
         && (!atomic_load(&ctx.changed)
             || rap_fail(err, RAP_EINPUT, "the scores changed during the call"))
         && select_inside(&ctx, a->found - ctx.above, err)
         && write_sorted(&ctx, a->found, a->out.data, err);
    if (ok && atomic_load(&exec->stop)) {
        ok = rap_fail(err, RAP_EINTERRUPT, "interrupted");
    }
done:
    rap_free(ctx.index);
    rap_free(ctx.above_at);
    rap_free(ctx.count);
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
