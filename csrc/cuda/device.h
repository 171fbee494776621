/* SPDX-License-Identifier: Apache-2.0
 *
 * The macros and functions that device code uses. nvcc reads them as CUDA; the emulator
 * (tests/cuda_emulator) builds the same .cu files as C, where each thread is a fiber and
 * emulator.h defines every name below. So the .cu files use only what both languages
 * share: C11 without designated initialisers, C++ without anything C does not have.
 *
 *   RAP_KERNEL(name, params, threads, blocks) { ... }   one struct by value, p; at most
 *                                   `threads` a block, registers for `blocks` blocks an SM
 *   RAP_SMEM(type, name)            the block's shared memory, one struct a kernel
 *   rap_thread() rap_threads() rap_block() rap_blocks()   all one-dimensional
 *   rap_sync()                      barrier of the block: every thread, no exception
 *   rap_shfl_xor_*, rap_shfl_*      all 32 lanes take part, always
 *   rap_all(x), rap_ballot(x)       the same
 *   rap_atomic_add_*                integers only: sums of floats are trees, never atomics
 *   rap_last_block(ticket)          thread 0, after a barrier: true in the block that comes
 *                                   last, which then sees what all others wrote before
 *   rap_load128(at), rap_store128(at, x)   16 bytes at an aligned address
 *   rap_ex2(x)                      2^x within 2 ulp, 0 below -126, NaN stays: one instruction
 *   rap_lg2(x)                      log2 x within 2^-22 max(1, |log2 x|) for normal x > 0: one
 *   rap_half(h)                     a float16, exactly
 */
#ifndef RAP_CUDA_DEVICE_H
#define RAP_CUDA_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RAP_WARP 32

#ifdef __CUDACC__

#define RAP_HD static __device__ __forceinline__
#define RAP_KERNEL(name, params, threads, blocks)                 \
    extern "C" __global__ void __launch_bounds__(threads, blocks) \
        name(const __grid_constant__ params p)
#define RAP_SMEM(type, name)       \
    __shared__ type name##_memory; \
    type *name = &name##_memory

RAP_HD int
rap_thread(void)
{
    return (int)threadIdx.x;
}

RAP_HD int
rap_threads(void)
{
    return (int)blockDim.x;
}

RAP_HD int
rap_block(void)
{
    return (int)blockIdx.x;
}

RAP_HD int
rap_blocks(void)
{
    return (int)gridDim.x;
}

RAP_HD void
rap_sync(void)
{
    __syncthreads();
}

RAP_HD float
rap_shfl_xor_f32(float x, int lanes)
{
    return __shfl_xor_sync(0xffffffffu, x, lanes);
}

RAP_HD double
rap_shfl_xor_f64(double x, int lanes)
{
    return __shfl_xor_sync(0xffffffffu, x, lanes);
}

RAP_HD uint32_t
rap_shfl_u32(uint32_t x, int lane)
{
    return __shfl_sync(0xffffffffu, x, lane);
}

RAP_HD uint64_t
rap_shfl_u64(uint64_t x, int lane)
{
    return __shfl_sync(0xffffffffu, (unsigned long long)x, lane);
}

RAP_HD bool
rap_all(bool x)
{
    return __all_sync(0xffffffffu, x);
}

RAP_HD uint32_t
rap_ballot(bool x)
{
    return __ballot_sync(0xffffffffu, x);
}

RAP_HD int
rap_popcount(uint32_t x)
{
    return __popc(x);
}

RAP_HD uint32_t
rap_atomic_add_u32(uint32_t *at, uint32_t x)
{
    return atomicAdd((unsigned int *)at, x);
}

RAP_HD uint64_t
rap_atomic_add_u64(uint64_t *at, uint64_t x)
{
    return atomicAdd((unsigned long long *)at, (unsigned long long)x);
}

RAP_HD bool
rap_last_block(uint32_t *ticket)
{
    bool last;

    __threadfence();
    last = atomicAdd((unsigned int *)ticket, 1u) == gridDim.x - 1;
    __threadfence();
    return last;
}

typedef uint4 rap_u128;

RAP_HD rap_u128
rap_load128(const void *at)
{
    return *(const uint4 *)at;
}

RAP_HD void
rap_store128(float *at, const float *x)
{
    *(float4 *)at = make_float4(x[0], x[1], x[2], x[3]);
}

RAP_HD void
rap_store_u128(void *at, rap_u128 x)
{
    *(uint4 *)at = x;
}

/* PTX ISA: at most 2 ulp of 2^x; subnormal x and answers count as 0. */
RAP_HD float
rap_ex2(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* PTX ISA: absolute error at most 2^-22 for x in (1/2, 2), relative 2^-22 elsewhere. */
RAP_HD float
rap_lg2(float x)
{
    float y;

    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

RAP_HD float
rap_half(uint16_t h)
{
    float y;

    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(h));
    return y;
}

#else
#include "emulator.h"
#endif

#include "../hd.h"
#include "../rap.h"

/* --- numbers ------------------------------------------------------------------------- */

/* Element `at` of an array of float32, bfloat16 or float16. */
RAP_HD float
rap_load1(const void *data, int dtype, int64_t at)
{
    if (dtype == RAP_F32) {
        return ((const float *)data)[at];
    }
    return dtype == RAP_BF16 ? rap_bf16_to_f32(((const uint16_t *)data)[at])
                             : rap_half(((const uint16_t *)data)[at]);
}

RAP_HD void
rap_widen2(uint32_t pair, int dtype, float *x)
{
    if (dtype == RAP_BF16) {
        x[0] = rap_from_bits(pair << 16);
        x[1] = rap_from_bits(pair & 0xffff0000u);
    }
    else {
        x[0] = rap_half((uint16_t)(pair & 0xffffu));
        x[1] = rap_half((uint16_t)(pair >> 16));
    }
}

RAP_HD bool
rap_aligned(const void *at)
{
    return ((uintptr_t)at & 15u) == 0;
}

/* Elements [at, at + 8), which begin on a 16-byte boundary. */
RAP_HD void
rap_load8_whole(const void *row, int dtype, int64_t at, float *x)
{
    if (dtype == RAP_F32) {
        const float *from = (const float *)row + at;
        rap_u128 a = rap_load128(from), b = rap_load128(from + 4);

        x[0] = rap_from_bits(a.x), x[1] = rap_from_bits(a.y);
        x[2] = rap_from_bits(a.z), x[3] = rap_from_bits(a.w);
        x[4] = rap_from_bits(b.x), x[5] = rap_from_bits(b.y);
        x[6] = rap_from_bits(b.z), x[7] = rap_from_bits(b.w);
    }
    else {
        rap_u128 a = rap_load128((const uint16_t *)row + at);

        rap_widen2(a.x, dtype, x);
        rap_widen2(a.y, dtype, x + 2);
        rap_widen2(a.z, dtype, x + 4);
        rap_widen2(a.w, dtype, x + 6);
    }
}

/* Elements [at, at + 8) of a row of n; what lies beyond the row becomes `beyond`. `wide`:
 * the row starts on a 16-byte boundary and `at` is a multiple of 8. */
RAP_HD void
rap_load8(const void *row, int dtype, int64_t at, int64_t n, bool wide, float beyond,
          float *x)
{
    if (!wide || at + 8 > n) {
        for (int i = 0; i < 8; i++) {
            x[i] = at + i < n ? rap_load1(row, dtype, at + i) : beyond;
        }
        return;
    }
    rap_load8_whole(row, dtype, at, x);
}

RAP_HD double
rap_shfl_f64(double x, int lane)
{
    uint64_t u;

    memcpy(&u, &x, sizeof(u));
    u = rap_shfl_u64(u, lane);
    memcpy(&x, &u, sizeof(x));
    return x;
}

/* hi + lo += x exactly, but for the last bit of lo */
RAP_HD void
rap_add_exact(float *hi, float *lo, float x)
{
    const float sum = *hi + x, back = sum - *hi;

    *lo += (*hi - (sum - back)) + (x - back);
    *hi = sum;
}

/* --- reductions: fixed trees, so the same bits on every run --------------------------- */

RAP_HD int
rap_lane(void)
{
    return rap_thread() & (RAP_WARP - 1);
}

RAP_HD int
rap_warp(void)
{
    return rap_thread() / RAP_WARP;
}

RAP_HD float
rap_larger(float a, float b)
{
    return b > a ? b : a; /* a NaN in b is passed over */
}

RAP_HD float
rap_warp_max(float x)
{
    for (int step = RAP_WARP / 2; step > 0; step /= 2) {
        x = rap_larger(x, rap_shfl_xor_f32(x, step));
    }
    return x;
}

RAP_HD double
rap_warp_max_f64(double x)
{
    for (int step = RAP_WARP / 2; step > 0; step /= 2) {
        x = fmax(x, rap_shfl_xor_f64(x, step));
    }
    return x;
}

RAP_HD double
rap_warp_sum(double x)
{
    for (int step = RAP_WARP / 2; step > 0; step /= 2) {
        x += rap_shfl_xor_f64(x, step);
    }
    return x;
}

/* Sum over the block, known to every thread; part: a shared double for each warp. */
RAP_HD double
rap_block_sum(double x, double *part)
{
    const int warps = (rap_threads() + RAP_WARP - 1) / RAP_WARP;
    double sum = 0;

    x = rap_warp_sum(x);
    rap_sync(); /* the last sum has been read */
    if (rap_lane() == 0) {
        part[rap_warp()] = x;
    }
    rap_sync();
    for (int w = 0; w < warps; w++) {
        sum += part[w];
    }
    return sum;
}

#endif
