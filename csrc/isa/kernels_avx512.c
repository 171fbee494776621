/* SPDX-License-Identifier: Apache-2.0
 *
 * The avx512 table: the loops of every kernel, compiled for this instruction set.
 */
#include "../ace/ace.h"
#include "../cde/cde.h"
#include "../cpu.h"
#include "../drm/drm.h"
#include "../gemm/gemm.h"
#include "isa.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c,prefer-vector-width=512")
#endif

#define RAP_ISA_NAME "avx512"
#define RAP_ISA_TABLE rap_kernels_avx512
#define RAP_ISA_BF16_TABLE rap_kernels_avx512_bf16
#define RAP_LANES 16
#define RAP_MR 12
#define RAP_NR 32
#include "table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
