/* SPDX-License-Identifier: Apache-2.0
 *
 * Tensor cores and what feeds them, for devices from sm_80 on (older ones trap: the host
 * asks first). The emulator has a twin of each in emulator_tensor.h: fragments travel
 * between fibers as the PTX ISA lays them out, and a fetch arrives at the wait, not before.
 *
 *   rap_fetch16(to, from, bytes)  16 bytes of shared memory at `to`: the first `bytes` from
 *                                 `from`, the rest 0; both aligned to 16
 *   rap_fetch_wait()              what this thread fetched has arrived; what others did,
 *                                 after their wait and a barrier
 *   rap_ldmatrix4(row, x)         four 8 x 8 matrices of 16-bit numbers from shared memory;
 *                                 lane l names row l % 8 of matrix l / 8. x[m]: of matrix m
 *                                 row lane / 4, numbers 2 (lane % 4) and the next
 *   rap_mma(c, a, b, dtype)       c += a b, 16 x 16 by 16 x 8, bfloat16 or float16 with
 *                                 float32 sums. Of lane l, g = l / 4 and t = 2 (l % 4):
 *                                 a  rows g, g + 8, g, g + 8; columns t, t, t + 8, t + 8
 *                                 b  column g; rows t, t + 8 (pairs, the second one below)
 *                                 c  rows g, g, g + 8, g + 8; columns t, t + 1, t, t + 1
 *   rap_thread_again()            rap_thread(), asked for anew: what is made of it is not made
 *                                 before this point, where it would take registers
 */
#ifndef RAP_CUDA_TENSOR_DEVICE_H
#define RAP_CUDA_TENSOR_DEVICE_H

#include "device.h"

#ifdef __CUDACC__

#define RAP_TENSOR_CORES (__CUDA_ARCH__ >= 800)

RAP_HD uint32_t
rap_shared_address(const void *at)
{
    return (uint32_t)__cvta_generic_to_shared(at);
}

RAP_HD void
rap_fetch16(void *to, const void *from, int bytes)
{
#if RAP_TENSOR_CORES
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(rap_shared_address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes)
        : "memory");
#else
    __trap();
#endif
}

RAP_HD void
rap_fetch_wait(void)
{
#if RAP_TENSOR_CORES
    asm volatile("cp.async.wait_all;" ::: "memory");
#else
    __trap();
#endif
}

RAP_HD void
rap_ldmatrix4(const void *row, uint32_t *x)
{
#if RAP_TENSOR_CORES
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(rap_shared_address(row))
                 : "memory");
#else
    __trap();
#endif
}

RAP_HD void
rap_mma(float *c, const uint32_t *a, const uint32_t *b, int dtype)
{
#if RAP_TENSOR_CORES
    if (dtype == RAP_BF16) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    __trap();
#endif
}

RAP_HD int
rap_thread_again(void)
{
    int x;

    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

#else
#include "emulator_tensor.h"
#endif

#endif
