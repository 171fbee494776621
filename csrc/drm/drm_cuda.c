/* SPDX-License-Identifier: Apache-2.0
 *
 * The launches of drm_cuda.h, in order. Workspace: [state | items, twice | eligible from the host].
 */
#include "drm_cuda.h"

#include "../driver.h"
#include "../status.h"

static int64_t
state_bytes(void)
{
    return rap_ceil_div((int64_t)sizeof(rap_drm_cuda_state), 256) * 256;
}

static int64_t
items_bytes(const rap_drm_args *a)
{
    const int64_t padded = rap_drm_cuda_padded(a->out.shape[0]);

    return rap_ceil_div(2 * padded * (int64_t)sizeof(rap_drm_cuda_item), 256) * 256;
}

static bool
is_empty(const rap_drm_args *a)
{
    return a->difficulty.shape[0] == 0 || a->out.shape[0] == 0;
}

int64_t
rap_drm_device_bytes(const void *args)
{
    const rap_drm_args *a = args;

    return is_empty(a)
               ? 0
               : state_bytes() + items_bytes(a) + rap_cuda_small_bytes(&a->eligible);
}

static bool
launch(rap_cuda_call *call, const char *kernel, int64_t blocks, rap_drm_cuda *p,
       rap_error *err)
{
    return rap_cuda_launch(call, "drm", kernel, blocks, RAP_DRM_CUDA_THREADS, p, err);
}

/* Which samples are chosen, in any order. */
static bool
choose(rap_cuda_call *call, rap_drm_cuda *p, rap_error *err)
{
    const int64_t blocks = rap_drm_cuda_grid(p->n, RAP_DRM_CUDA_BATCH);
    bool ok =
        launch(call, "rap_drm_start", rap_drm_cuda_grid(RAP_DRM_CUDA_DIGITS, 256), p, err);

    for (int step = 0; ok && rap_drm_cuda_digit(p, step); step++) {
        ok = launch(call, "rap_drm_digit", blocks, p, err);
    }
    return ok && launch(call, "rap_drm_gather", blocks, p, err);
}

/* Tiles, then runs of them, merged two by two into the other half of the items. */
static bool
sort(rap_cuda_call *call, rap_drm_cuda *p, rap_error *err)
{
    const int64_t tiles = rap_drm_cuda_grid(p->padded, RAP_DRM_CUDA_TILE);
    bool ok = launch(call, "rap_drm_sort_tile", tiles, p, err);

    for (p->span = RAP_DRM_CUDA_TILE; ok && p->span < p->padded; p->span *= 2) {
        rap_drm_cuda_item *sorted = p->other;

        ok = launch(call, "rap_drm_merge", tiles, p, err);
        p->other = p->items;
        p->items = sorted;
    }
    return ok;
}

/* Waits. What was gathered are places of samples, each once, whatever the scores did; only
 * if they are as many as were counted is every place of the answer one of them. */
static bool
read_found(rap_cuda_call *call, const rap_drm_cuda_state *state, int64_t *found,
           rap_error *err)
{
    int64_t counts[2] = {0, 0}; /* found, gathered */

    static_assert(offsetof(rap_drm_cuda_state, gathered) == sizeof(counts[0]), "beside it");
    if (!rap_cuda_download(call, counts, state, sizeof(counts), err)) {
        return false;
    }
    if (counts[0] != counts[1]) {
        return rap_fail(err, RAP_EINPUT, "the scores changed during the call");
    }
    *found = counts[0];
    return true;
}

bool
rap_drm_device(void *args, rap_cuda_call *call, void *workspace, rap_error *err)
{
    rap_drm_args *a = args;
    char *items = (char *)workspace + state_bytes(), *space = items + items_bytes(a);
    const void *eligible = NULL;
    rap_drm_cuda p = {
        .difficulty = a->difficulty.data,
        .gain = a->gain.data,
        .out = a->out.data,
        .state = workspace,
        .items = (rap_drm_cuda_item *)items,
        .other = (rap_drm_cuda_item *)items + rap_drm_cuda_padded(a->out.shape[0]),
        .n = a->difficulty.shape[0],
        .k = a->out.shape[0],
        .padded = rap_drm_cuda_padded(a->out.shape[0]),
        .difficulty_dtype = (int32_t)a->difficulty.dtype,
        .gain_dtype = (int32_t)a->gain.dtype,
    };

    a->found = 0;
    if (is_empty(a)) {
        return true;
    }
    if (!rap_cuda_may_wait(call, err)
        || !rap_cuda_small(call, &a->eligible, &space, &eligible, err))
    {
        return false;
    }
    p.eligible = eligible;
    return choose(call, &p, err) && sort(call, &p, err)
           && launch(call, "rap_drm_answer", rap_drm_cuda_grid(p.k, RAP_DRM_CUDA_THREADS),
                     &p, err)
           && read_found(call, p.state, &a->found, err);
}
