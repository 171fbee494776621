/* SPDX-License-Identifier: Apache-2.0
 *
 * What the steps of drm on the CPU share: drm_cpu.c counts, narrows and writes items,
 * drm_order.c puts them in order.
 */
#ifndef RAP_DRM_PLAN_H
#define RAP_DRM_PLAN_H

#include <string.h>

#include "drm_math.h"

#define RAP_DRM_CLASSES 6

/* What orders candidates: ordered_key of difficulty above ordered_key of gain. */
__extension__ typedef unsigned __int128 rank;

/* Of a chunk and a column: first the count, then the places that are still free. */
typedef struct {
    int64_t at, end;
} span;

/* Columns are buckets, the highest first; `last` is the column of the k-th candidate. Items
 * of its bucket: rank > ceiling is selected, stored in the bucket's own column; floor <= rank
 * <= ceiling is undecided, stored in the next column (`rest`), whose first `need` items are
 * selected; rank < floor is dropped.
 *
 * An item is a sample in 64 bits: leading bits of its rank within the bucket, then its index
 * turned round: items are distinct, the larger comes first. They are written to `out`, sorted
 * there, and leave their index. */
typedef struct {
    const rap_drm_args *a;
    rap_exec *exec;
    int64_t n, chunks, k;
    int buckets; /* a power of two */
    int low;     /* least bucket counted */
    int64_t columns, last;
    span *spans;  /* [chunks, columns] */
    int64_t *at;  /* [columns + 1] first place of a column */
    int64_t need; /* of the rest; before it is cut, of the last bucket */
    int64_t held; /* how many the rest holds */
    rank floor, ceiling;
    rank edge[RAP_DRM_CLASSES - 1];
    int64_t *classes; /* [chunks, RAP_DRM_CLASSES] */
    int index_bits;
    uint64_t *items, *rest;
    uint64_t *own;   /* the rest's memory, if it holds more than is needed */
    uint64_t *other; /* [workers, room] */
    int64_t room;
    atomic_bool changed; /* the caller's scores are no longer those that were counted */
} drm_ctx;

static inline double
value_at(const rap_array *x, int64_t i)
{
    return x->dtype == RAP_F32 ? (double)((const float *)x->data)[i]
                               : ((const double *)x->data)[i];
}

static inline uint64_t
ordered_key(const rap_array *x, int64_t i)
{
    double value = x->data == NULL ? 0.0 : value_at(x, i);
    uint64_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return rap_drm_ordered(bits);
}

/* The sample of difficulty x as an item: key and index. */
static inline uint64_t
packed(const drm_ctx *ctx, uint64_t key, int64_t index)
{
    const uint64_t mask = (UINT64_C(1) << ctx->index_bits) - 1;

    return key << ctx->index_bits | (mask - (uint64_t)index);
}

static inline int64_t
index_of(const drm_ctx *ctx, uint64_t item)
{
    const uint64_t mask = (UINT64_C(1) << ctx->index_bits) - 1;

    return (int64_t)(mask - (item & mask));
}

/* Each column in order, the rest cut to what is needed of it; then `out` holds indices. */
bool rap_drm_order(drm_ctx *ctx, rap_error *err);

#endif
