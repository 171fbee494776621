/* SPDX-License-Identifier: Apache-2.0
 *
 * The tables that exist. Headers that a kernel file needs come in here, before any
 * target pragma, so that libc's inline functions stay baseline.
 */
#ifndef RAP_ISA_H
#define RAP_ISA_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../cpu.h"

extern const rap_kernels rap_kernels_scalar;
#if defined(__x86_64__)
extern const rap_kernels rap_kernels_avx2;
extern const rap_kernels rap_kernels_avx512;
extern const rap_kernels rap_kernels_avx512_bf16; /* and one more product */
#elif defined(__aarch64__)
extern const rap_kernels rap_kernels_neon;
#endif

#endif
