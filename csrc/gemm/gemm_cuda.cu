/* SPDX-License-Identifier: Apache-2.0 */
#include "../cuda/device.h"

#include "gemm_widen_cuda.h"

/* Eight elements a thread. */
RAP_KERNEL(rap_widen, rap_widen_cuda, RAP_WIDEN_CUDA_THREADS, 4)
{
    const int64_t groups = (p.columns + 7) / 8;
    const int64_t size = p.dtype == RAP_F32 ? 4 : 2;
    const int64_t step = (int64_t)rap_blocks() * rap_threads();

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread();
         i < p.rows * groups; i += step)
    {
        const int64_t row = i / groups, at = i % groups * 8;
        const void *from = (const char *)p.src + row * p.stride * size;
        float x[8];

        rap_load8(from, p.dtype, at, p.columns, rap_aligned(from), 0, x);
        for (int e = 0; e < 8 && at + e < p.columns; e++) {
            p.dst[row * p.columns + at + e] = x[e];
        }
    }
}

/* Elements [at, at + 8) of a row, as they are: at + 8 <= columns. */
RAP_HD void
stack_raw8(const char *from, char *to, int64_t at, int64_t size)
{
    const char *src = from + at * size;
    char *dst = to + at * size;

    if (rap_aligned(src)) {
        rap_store_u128(dst, rap_load128(src));
        if (size == 4) {
            rap_store_u128(dst + 16, rap_load128(src + 16));
        }
        return;
    }
    for (int e = 0; e < 8; e++) {
        if (size == 4) {
            ((uint32_t *)dst)[e] = ((const uint32_t *)src)[e];
        }
        else {
            ((uint16_t *)dst)[e] = ((const uint16_t *)src)[e];
        }
    }
}

/* One element, as it is or widened. */
RAP_HD void
stack_one(const char *from, char *to, int64_t at, int dtype, bool raw)
{
    if (!raw || dtype == RAP_F32) {
        ((float *)to)[at] = rap_load1(from, dtype, at);
    }
    else {
        ((uint16_t *)to)[at] = ((const uint16_t *)from)[at];
    }
}

/* Eight elements a thread. */
RAP_KERNEL(rap_stack, rap_stack_cuda, RAP_WIDEN_CUDA_THREADS, 4)
{
    const bool raw = p.dtype1 == p.dtype0;
    const int64_t groups = (p.columns + 7) / 8;
    const int64_t out_size = raw && p.dtype1 != RAP_F32 ? 2 : 4;
    const int64_t step = (int64_t)rap_blocks() * rap_threads();

    for (int64_t i = (int64_t)rap_block() * rap_threads() + rap_thread();
         i < 2 * p.rows * groups; i += step)
    {
        const int64_t to_row = i / groups, at = i % groups * 8;
        const bool second = to_row >= p.rows;
        const int64_t row = second ? to_row - p.rows : to_row;
        const int dtype = second ? p.dtype0 : p.dtype1;
        const int64_t size = dtype == RAP_F32 ? 4 : 2;
        const char *from = (const char *)(second ? p.second : p.first)
                           + row * (second ? p.stride0 : p.stride1) * size;
        char *to = (char *)p.dst + to_row * p.ld * out_size;

        if (raw && at + 8 <= p.columns) {
            stack_raw8(from, to, at, size);
            continue;
        }
        for (int e = 0; e < 8 && at + e < p.columns; e++) {
            stack_one(from, to, at + e, dtype, raw);
        }
    }
}
