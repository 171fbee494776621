/* SPDX-License-Identifier: Apache-2.0
 *
 * The avx2 table: the loops of every kernel, compiled for this instruction set.
 */
#include "../ace/ace.h"
#include "../cde/cde.h"
#include "../cpu.h"
#include "../drm/drm.h"
#include "../gemm/gemm.h"
#include "isa.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define RAP_ISA_NAME "avx2"
#define RAP_ISA_TABLE rap_kernels_avx2
#define RAP_LANES 8
#define RAP_MR 6
#define RAP_NR 16
#include "table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
