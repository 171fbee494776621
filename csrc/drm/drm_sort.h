/* SPDX-License-Identifier: Apache-2.0
 *
 * Distinct 64-bit numbers, largest first, in place. Runs of up to `room` numbers are moved
 * digit by digit between their place and `other`, in cache; longer ones are first cut in
 * place by their leading digit (American flag), so that no more than `room` numbers are ever
 * needed beside them.
 */
#ifndef RAP_DRM_SORT_H
#define RAP_DRM_SORT_H

#include "../rap.h"

#define RAP_DRM_ROOM 65536 /* the most that is worth having: two of them fill an L2 cache */
#define RAP_DRM_FEW 48     /* numbers sorted by insertion: no room is needed */

typedef struct {
    uint64_t *other; /* [room], or NULL if nothing longer than RAP_DRM_FEW is sorted */
    int64_t room;
    rap_exec *exec;
    int worker;
} rap_drm_sorter;

/* `bit`: numbers that agree in all bits from there up are in order already. What is left when
 * the call should stop is in any order. */
void rap_drm_sort(const rap_drm_sorter *sorter, uint64_t *x, int64_t n, int bit);

#endif
