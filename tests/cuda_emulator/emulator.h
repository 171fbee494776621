/* SPDX-License-Identifier: Apache-2.0
 *
 * The words of csrc/cuda/device.h for the host: a .cu file built as C, where each CUDA
 * thread is a fiber (fiber.c). Sanitizers see the kernel's own loads and stores and, through
 * the atomics and the waits below, exactly the order that CUDA promises and no more.
 */
#ifndef RAP_EMULATOR_H
#define RAP_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* --- what the shared library exports -------------------------------------------------- */

typedef void (*rap_emu_fn)(void **params); /* params as cuLaunchKernel takes them */

typedef struct {
    const char *name;
    rap_emu_fn fn;
    size_t param_size;
    int max_threads;
} rap_emu_kernel;

#define RAP_EMU_PUBLIC __attribute__((visibility("default")))

RAP_EMU_PUBLIC const rap_emu_kernel *rap_emu_table(int *count);

/* Runs a grid to its end in a random order that `seed` fixes. 0, or -1 and a sentence in
 * rap_emu_error(): a barrier that not all threads reach, a shuffle without all lanes. */
RAP_EMU_PUBLIC int rap_emu_launch(rap_emu_fn fn, const unsigned grid[3],
                                  const unsigned block[3], size_t shared, void **params,
                                  uint64_t seed);
RAP_EMU_PUBLIC const char *rap_emu_error(void);

/* --- what kernels call ---------------------------------------------------------------- */

typedef struct {
    int thread, threads, block, blocks;
} rap_emu_place;

const rap_emu_place *rap_emu_here(void);
void *rap_emu_smem(size_t size); /* of this block, filled with 0xFF */
void rap_emu_sync(void);
uint64_t rap_emu_exchange(uint64_t bits, int lane);
uint32_t rap_emu_vote(bool x);

/* What a warp's lanes hand in, by lane; to be read before the next wait. */
#define RAP_EMU_WORDS 6
const uint32_t (*rap_emu_gather(const uint32_t *own))[RAP_EMU_WORDS];

/* Copies to shared memory that this thread has asked for and not waited for. */
#define RAP_EMU_FETCHES 64
typedef struct {
    int count;
    struct {
        void *to;
        const void *from;
        int bytes;
    } fetch[RAP_EMU_FETCHES];
} rap_emu_fetches;
rap_emu_fetches *rap_emu_fetches_here(void);
_Noreturn void rap_emu_bad_fetch(int count, int bytes);

_Noreturn void rap_emu_misaligned(const void *at); /* as the device: the end */

#define RAP_HD static inline
#define RAP_KERNEL(name, params, threads, blocks)                                          \
    static void name(const params p);                                                      \
    void name##_emulated(void **list);                                                     \
    void name##_emulated(void **list)                                                      \
    {                                                                                      \
        name(*(const params *)list[0]);                                                    \
    }                                                                                      \
    const rap_emu_kernel name##_entry = {#name, name##_emulated, sizeof(params), threads}; \
    static void name(const params p)
#define RAP_SMEM(type, name) type *name = (type *)rap_emu_smem(sizeof(type))

RAP_HD int
rap_thread(void)
{
    return rap_emu_here()->thread;
}

RAP_HD int
rap_threads(void)
{
    return rap_emu_here()->threads;
}

RAP_HD int
rap_block(void)
{
    return rap_emu_here()->block;
}

RAP_HD int
rap_blocks(void)
{
    return rap_emu_here()->blocks;
}

RAP_HD void
rap_sync(void)
{
    rap_emu_sync();
}

RAP_HD uint32_t
rap_shfl_u32(uint32_t x, int lane)
{
    return (uint32_t)rap_emu_exchange(x, lane);
}

RAP_HD uint64_t
rap_shfl_u64(uint64_t x, int lane)
{
    return rap_emu_exchange(x, lane);
}

RAP_HD float
rap_shfl_xor_f32(float x, int lanes)
{
    uint32_t u;

    memcpy(&u, &x, sizeof(u));
    u = (uint32_t)rap_emu_exchange(u, (rap_thread() & 31) ^ lanes);
    memcpy(&x, &u, sizeof(x));
    return x;
}

RAP_HD double
rap_shfl_xor_f64(double x, int lanes)
{
    uint64_t u;

    memcpy(&u, &x, sizeof(u));
    u = rap_emu_exchange(u, (rap_thread() & 31) ^ lanes);
    memcpy(&x, &u, sizeof(x));
    return x;
}

RAP_HD bool
rap_all(bool x)
{
    return rap_emu_vote(x) == 0xffffffffu;
}

RAP_HD uint32_t
rap_ballot(bool x)
{
    return rap_emu_vote(x);
}

RAP_HD int
rap_popcount(uint32_t x)
{
    return __builtin_popcount(x);
}

RAP_HD uint32_t
rap_atomic_add_u32(uint32_t *at, uint32_t x)
{
    return __atomic_fetch_add(at, x, __ATOMIC_RELAXED);
}

RAP_HD uint64_t
rap_atomic_add_u64(uint64_t *at, uint64_t x)
{
    return __atomic_fetch_add(at, x, __ATOMIC_RELAXED);
}

RAP_HD bool
rap_last_block(uint32_t *ticket)
{
    return __atomic_fetch_add(ticket, 1, __ATOMIC_ACQ_REL) == (uint32_t)rap_blocks() - 1;
}

typedef struct {
    _Alignas(16) uint32_t x;
    uint32_t y, z, w;
} rap_u128;

RAP_HD rap_u128
rap_load128(const void *at)
{
    if ((uintptr_t)at % 16 != 0) {
        rap_emu_misaligned(at);
    }
    return *(const rap_u128 *)at;
}

typedef struct {
    _Alignas(16) float x;
    float y, z, w;
} rap_f128;

RAP_HD void
rap_store128(float *at, const float *x)
{
    const rap_f128 four = {x[0], x[1], x[2], x[3]};

    if ((uintptr_t)at % 16 != 0) {
        rap_emu_misaligned(at);
    }
    *(rap_f128 *)at = four;
}

RAP_HD void
rap_store_u128(void *at, rap_u128 x)
{
    if ((uintptr_t)at % 16 != 0) {
        rap_emu_misaligned(at);
    }
    *(rap_u128 *)at = x;
}

/* The approximations of device.h, as far from the truth as they may be, by how the bits of x
 * fall out: approx.c. */
float rap_emu_ex2(float x);
float rap_emu_lg2(float x);
float rap_emu_half(uint16_t h);

RAP_HD float
rap_ex2(float x)
{
    return rap_emu_ex2(x);
}

RAP_HD float
rap_lg2(float x)
{
    return rap_emu_lg2(x);
}

RAP_HD float
rap_half(uint16_t h)
{
    return rap_emu_half(h);
}

#endif
