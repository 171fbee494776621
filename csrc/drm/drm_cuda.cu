/* SPDX-License-Identifier: Apache-2.0
 *
 * Selection by digits, then a sort of what was chosen: see drm_cuda.h.
 */
#include "../cuda/device.h"

#include "drm_cuda.h"
#include "drm_math.h"

/* --- keys ----------------------------------------------------------------------------- */

typedef struct {
    rap_drm_cuda_item key;
    bool candidate;
} drm_sample;

/* The bits of four scores; float32 in the upper half, which keeps their order. */
RAP_HD void
drm_load4(const void *scores, int dtype, int64_t at, int64_t n, uint64_t *bits)
{
    const int64_t size = dtype == RAP_F32 ? 4 : 8;
    const char *from = (const char *)scores + at * size;

    if (at + 4 <= n && rap_aligned(from)) {
        rap_u128 a = rap_load128(from);

        if (dtype == RAP_F32) {
            bits[0] = (uint64_t)a.x << 32, bits[1] = (uint64_t)a.y << 32;
            bits[2] = (uint64_t)a.z << 32, bits[3] = (uint64_t)a.w << 32;
            return;
        }
        bits[0] = (uint64_t)a.y << 32 | a.x, bits[1] = (uint64_t)a.w << 32 | a.z;
        a = rap_load128(from + 16);
        bits[2] = (uint64_t)a.y << 32 | a.x, bits[3] = (uint64_t)a.w << 32 | a.z;
        return;
    }
    for (int i = 0; i < 4; i++) {
        bits[i] = 0; /* beyond the end: no candidate */
        if (at + i < n) {
            bits[i] = dtype == RAP_F32 ? (uint64_t)((const uint32_t *)from)[i] << 32
                                       : ((const uint64_t *)from)[i];
        }
    }
}

RAP_HD bool
drm_is_nan(uint64_t bits, int dtype)
{
    const uint64_t infinity =
        dtype == RAP_F32 ? UINT64_C(0x7f800000) << 32 : UINT64_C(0x7ff0) << 48;

    return (bits & ~(UINT64_C(1) << 63)) > infinity;
}

/* Samples [at, at + 4). Between 0 and 1 the bits of a score are a positive integer. */
RAP_HD void
drm_samples(const rap_drm_cuda *p, int64_t at, drm_sample *s)
{
    const uint64_t one =
        p->difficulty_dtype == RAP_F32 ? (uint64_t)RAP_DRM_ONE_F32 << 32 : RAP_DRM_ONE_F64;
    uint64_t difficulty[4], gain[4] = {0, 0, 0, 0};

    drm_load4(p->difficulty, p->difficulty_dtype, at, p->n, difficulty);
    if (p->gain != NULL) {
        drm_load4(p->gain, p->gain_dtype, at, p->n, gain);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        s[i].key.difficulty = difficulty[i];
        s[i].key.gain = p->gain != NULL ? rap_drm_ordered(gain[i]) : 0;
        s[i].key.rank = (uint64_t)(p->n - at - i);
        s[i].candidate = difficulty[i] > 0 && difficulty[i] < one
                         && !(p->gain != NULL && drm_is_nan(gain[i], p->gain_dtype))
                         && (p->eligible == NULL || p->eligible[at + i] != 0);
    }
}

RAP_HD uint64_t
drm_field(const rap_drm_cuda_item *key, int field)
{
    return field == 0 ? key->difficulty : field == 1 ? key->gain : key->rank;
}

/* a comes before b in the answer */
RAP_HD bool
drm_before(const rap_drm_cuda_item *a, const rap_drm_cuda_item *b)
{
    if (a->difficulty != b->difficulty) {
        return a->difficulty > b->difficulty;
    }
    return a->gain != b->gain ? a->gain > b->gain : a->rank > b->rank;
}

/* --- start ---------------------------------------------------------------------------- */

RAP_KERNEL(rap_drm_start, rap_drm_cuda, RAP_DRM_CUDA_THREADS, 4)
{
    const int64_t first = (int64_t)rap_block() * rap_threads() + rap_thread();
    const int64_t step = (int64_t)rap_blocks() * rap_threads();
    const rap_drm_cuda_item none = {0, 0, 0};

    for (int64_t i = first; i < RAP_DRM_CUDA_DIGITS; i += step) {
        p.state->count[i] = 0;
    }
    if (first == 0) {
        p.state->found = 0;
        p.state->need = 0;
        p.state->threshold = none;
        p.state->gathered = 0;
        p.state->ticket = p.state->done = 0;
    }
}

/* --- one digit ------------------------------------------------------------------------ */

typedef struct {
    uint32_t count[RAP_DRM_CUDA_DIGITS];
    uint64_t part[RAP_DRM_CUDA_THREADS];
    bool last;
} drm_digit_shared;

/* The sample's digits decided so far are those of the threshold. */
RAP_HD bool
drm_ties(const rap_drm_cuda *p, const rap_drm_cuda_item *threshold, const drm_sample *s)
{
    const int above = p->shift + p->bits;
    bool ties = s->candidate;

    for (int f = 0; f < 2; f++) {
        ties = ties && (f >= p->field || drm_field(&s->key, f) == drm_field(threshold, f));
    }
    return ties
           && (above >= 64
               || drm_field(&s->key, p->field) >> above
                      == drm_field(threshold, p->field) >> above);
}

/* Counts one sample a lane; a warp that agrees, as with scores of few values, adds once. */
RAP_HD void
drm_count(uint32_t *count, bool ties, uint32_t digit)
{
    const uint32_t first = rap_shfl_u32(digit, 0);

    if (rap_all(ties && digit == first)) {
        if (rap_lane() == 0) {
            rap_atomic_add_u32(&count[digit], RAP_WARP);
        }
    }
    else if (ties) {
        rap_atomic_add_u32(&count[digit], 1);
    }
}

/* By thread 0 of the last block: the digit in which the last one chosen lies. */
RAP_HD void
drm_decide(const rap_drm_cuda *p, const drm_digit_shared *sh, bool first)
{
    rap_drm_cuda_state *st = p->state;
    const int per_part = RAP_DRM_CUDA_DIGITS / rap_threads();
    int part = rap_threads() - 1, digit;
    uint64_t above = 0, total = 0;

    for (int i = 0; i < rap_threads(); i++) {
        total += sh->part[i];
    }
    if (first) {
        st->need = total < (uint64_t)p->k ? total : (uint64_t)p->k;
        st->found = (int64_t)st->need;
    }
    if (st->need == total) { /* all that tie are chosen: the threshold's rest stays 0 */
        st->done = 1;
        return;
    }
    while (part > 0 && above + sh->part[part] < st->need) {
        above += sh->part[part--];
    }
    digit = (part + 1) * per_part - 1;
    while (digit > 0 && above + st->count[digit] < st->need) {
        above += st->count[digit--];
    }
    st->need -= above;
    if (p->field == 0) {
        st->threshold.difficulty |= (uint64_t)digit << p->shift;
    }
    else if (p->field == 1) {
        st->threshold.gain |= (uint64_t)digit << p->shift;
    }
    else {
        st->threshold.rank |= (uint64_t)digit << p->shift;
    }
    st->done = st->need == st->count[digit];
}

/* The last block decides and clears the counts for the next digit. */
RAP_HD void
drm_last_block(const rap_drm_cuda *p, drm_digit_shared *sh, bool first)
{
    const int per_part = RAP_DRM_CUDA_DIGITS / rap_threads();
    uint64_t sum = 0;

    for (int i = 0; i < per_part; i++) {
        sum += p->state->count[rap_thread() * per_part + i];
    }
    sh->part[rap_thread()] = sum;
    rap_sync();
    if (rap_thread() == 0) {
        drm_decide(p, sh, first);
        p->state->ticket = 0;
    }
    rap_sync();
    for (int i = 0; i < per_part; i++) {
        p->state->count[rap_thread() * per_part + i] = 0;
    }
}

/* The block's size must divide the number of digits. */
RAP_KERNEL(rap_drm_digit, rap_drm_cuda, RAP_DRM_CUDA_THREADS, 4)
{
    RAP_SMEM(drm_digit_shared, sh);
    const rap_drm_cuda_item threshold = p.state->threshold;
    const int64_t batch = 4 * rap_threads(), step = batch * rap_blocks();
    const uint64_t mask = (UINT64_C(1) << p.bits) - 1;
    const bool first = p.field == 0 && p.shift + p.bits == 64;

    if (p.state->done) {
        return;
    }
    for (int i = rap_thread(); i < RAP_DRM_CUDA_DIGITS; i += rap_threads()) {
        sh->count[i] = 0;
    }
    rap_sync();
    for (int64_t at = batch * rap_block(); at < p.n; at += step) {
        drm_sample s[4];

        drm_samples(&p, at + 4 * rap_thread(), s);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            drm_count(sh->count, drm_ties(&p, &threshold, &s[i]),
                      (uint32_t)(drm_field(&s[i].key, p.field) >> p.shift & mask));
        }
    }
    rap_sync();
    for (int i = rap_thread(); i < RAP_DRM_CUDA_DIGITS; i += rap_threads()) {
        if (sh->count[i] != 0) {
            rap_atomic_add_u64(&p.state->count[i], sh->count[i]);
        }
    }
    rap_sync();
    if (rap_thread() == 0) {
        sh->last = rap_last_block(&p.state->ticket);
    }
    rap_sync();
    if (sh->last) {
        drm_last_block(&p, sh, first);
    }
}

/* --- what was chosen ------------------------------------------------------------------ */

/* `found`: as many as were counted; more are met only if the scores changed since. */
RAP_HD void
drm_take(const rap_drm_cuda *p, const rap_drm_cuda_item *key, bool chosen, int64_t found)
{
    const uint32_t lanes = rap_ballot(chosen);
    const uint32_t before = lanes & ((1u << rap_lane()) - 1);
    uint64_t place = 0;

    if (rap_lane() == 0 && lanes != 0) {
        place = rap_atomic_add_u64(&p->state->gathered, (uint64_t)rap_popcount(lanes));
    }
    place = rap_shfl_u64(place, 0) + (uint64_t)rap_popcount(before);
    if (chosen && place < (uint64_t)found) {
        p->items[place] = *key;
    }
}

RAP_KERNEL(rap_drm_gather, rap_drm_cuda, RAP_DRM_CUDA_THREADS, 4)
{
    const rap_drm_cuda_item threshold = p.state->threshold;
    const rap_drm_cuda_item none = {0, 0, 0}; /* behind every candidate */
    const int64_t found = p.state->found, each = rap_threads();
    const int64_t batch = 4 * each, step = batch * rap_blocks();

    for (int64_t i = found + each * rap_block() + rap_thread(); i < p.padded;
         i += each * rap_blocks())
    {
        p.items[i] = none; /* up to whole tiles */
    }
    for (int64_t at = batch * rap_block(); at < p.n; at += step) {
        drm_sample s[4];

        drm_samples(&p, at + 4 * rap_thread(), s);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            drm_take(&p, &s[i].key, s[i].candidate && !drm_before(&threshold, &s[i].key),
                     found);
        }
    }
}

/* --- sort: tiles in shared memory, then merges of two runs ----------------------------- */

typedef struct {
    rap_drm_cuda_item item[RAP_DRM_CUDA_TILE];
    int64_t split[2];
} drm_sort_shared;

/* Puts two items into order, or into reverse order in every other run of `span`. */
RAP_HD void
drm_exchange(rap_drm_cuda_item *a, rap_drm_cuda_item *b, bool up)
{
    if (drm_before(b, a) == up) {
        const rap_drm_cuda_item swap = *a;

        *a = *b;
        *b = swap;
    }
}

/* Bitonic: one tile a block. */
RAP_KERNEL(rap_drm_sort_tile, rap_drm_cuda, RAP_DRM_CUDA_THREADS, 4)
{
    RAP_SMEM(drm_sort_shared, sh);
    const int tile = RAP_DRM_CUDA_TILE;

    for (int64_t begin = (int64_t)rap_block() * tile; begin < p.padded;
         begin += (int64_t)rap_blocks() * tile)
    {
        for (int i = rap_thread(); i < tile; i += rap_threads()) {
            sh->item[i] = p.items[begin + i];
        }
        for (int span = 2; span <= tile; span *= 2) {
            for (int distance = span / 2; distance > 0; distance /= 2) {
                rap_sync();
                for (int pair = rap_thread(); pair < tile / 2; pair += rap_threads()) {
                    const int i = pair / distance * 2 * distance + pair % distance;

                    drm_exchange(&sh->item[i], &sh->item[i + distance], (i & span) == 0);
                }
            }
        }
        rap_sync();
        for (int i = rap_thread(); i < tile; i += rap_threads()) {
            p.items[begin + i] = sh->item[i];
        }
        rap_sync();
    }
}

/* Two sorted runs, a before b, that are merged. */
typedef struct {
    const rap_drm_cuda_item *a, *b;
    int64_t n_a, n_b;
} drm_runs;

/* How many of the first `n` items of the merged runs come from a. */
RAP_HD int64_t
drm_split(const drm_runs *r, int64_t n)
{
    int64_t low = RAP_MAX(0, n - r->n_b), high = RAP_MIN(n, r->n_a);

    while (low < high) {
        const int64_t middle = (low + high) / 2;

        if (drm_before(&r->b[n - 1 - middle], &r->a[middle])) {
            high = middle;
        }
        else {
            low = middle + 1;
        }
    }
    return low;
}

/* Of n sorted items, those that come before `item`; with `ties`, those equal to it too. */
RAP_HD int
drm_rank(const rap_drm_cuda_item *sorted, int n, const rap_drm_cuda_item *item, bool ties)
{
    int low = 0, high = n;

    while (low < high) {
        const int middle = (low + high) / 2;
        const bool first =
            ties ? !drm_before(item, &sorted[middle]) : drm_before(&sorted[middle], item);

        low = first ? middle + 1 : low;
        high = first ? high : middle;
    }
    return low;
}

/* Writes TILE items of the merged runs from their n-th on; both runs' parts of it are
 * brought to shared memory, where each item finds its place. */
RAP_HD void
drm_merge_tile(const drm_runs *r, int64_t n, rap_drm_cuda_item *out, drm_sort_shared *sh)
{
    const int count = (int)RAP_MIN(RAP_DRM_CUDA_TILE, r->n_a + r->n_b - n);
    const rap_drm_cuda_item *a, *b;
    int n_a;

    if (rap_thread() < 2) {
        sh->split[rap_thread()] = drm_split(r, n + rap_thread() * count);
    }
    rap_sync();
    a = r->a + sh->split[0];
    b = r->b + n - sh->split[0];
    n_a = (int)(sh->split[1] - sh->split[0]);
    for (int i = rap_thread(); i < count; i += rap_threads()) {
        sh->item[i] = i < n_a ? a[i] : b[i - n_a];
    }
    rap_sync();
    for (int i = rap_thread(); i < count; i += rap_threads()) {
        const rap_drm_cuda_item *item = &sh->item[i];
        const int place = i < n_a ? i + drm_rank(sh->item + n_a, count - n_a, item, false)
                                  : i - n_a + drm_rank(sh->item, n_a, item, true);

        out[n + place] = *item;
    }
    rap_sync();
}

/* Runs of p.span items, two by two, from p.items to p.other. */
RAP_KERNEL(rap_drm_merge, rap_drm_cuda, RAP_DRM_CUDA_THREADS, 4)
{
    RAP_SMEM(drm_sort_shared, sh);

    for (int64_t at = (int64_t)rap_block() * RAP_DRM_CUDA_TILE; at < p.padded;
         at += (int64_t)rap_blocks() * RAP_DRM_CUDA_TILE)
    {
        const int64_t begin = at / (2 * p.span) * 2 * p.span, left = p.padded - begin;
        drm_runs r;

        r.a = p.items + begin;
        r.n_a = RAP_MIN(p.span, left);
        r.b = r.a + r.n_a;
        r.n_b = RAP_MIN(p.span, left - r.n_a);
        drm_merge_tile(&r, at - begin, p.other + begin, sh);
    }
}

RAP_KERNEL(rap_drm_answer, rap_drm_cuda, RAP_DRM_CUDA_THREADS, 4)
{
    const int64_t step = (int64_t)rap_blocks() * rap_threads();

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread();
         i < p.state->found; i += step)
    {
        p.out[i] = p.n - (int64_t)p.items[i].rank;
    }
}
