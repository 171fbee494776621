/* SPDX-License-Identifier: Apache-2.0
 *
 * Scores as bit patterns, for the CPU and CUDA: no arithmetic on them, so no float mode
 * changes an order. Formulas: drm.h.
 */
#ifndef RAP_DRM_MATH_H
#define RAP_DRM_MATH_H

#include "../hd.h"
#include "drm.h"

/* The bits of 1: a difficulty is a candidate's if its bits, as an integer, lie above 0 and
 * below these. NaN and negative numbers have bits above. */
#define RAP_DRM_ONE_F32 0x3f800000u
#define RAP_DRM_ONE_F64 (UINT64_C(0x3ff0) << 48)

/* Of a float64: larger value, larger key; -0.0 has the key of 0.0. No branch on the sign: a
 * wrong guess would wait for memory, and these are read all over it. */
RAP_HD uint64_t
rap_drm_ordered(uint64_t bits)
{
    const uint64_t sign = UINT64_C(1) << 63;

    bits &= 0 - (uint64_t)(bits != sign);
    return bits ^ ((0 - (bits >> 63)) | sign);
}

#endif
