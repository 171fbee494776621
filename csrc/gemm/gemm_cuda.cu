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
