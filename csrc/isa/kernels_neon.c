/* SPDX-License-Identifier: Apache-2.0
 *
 * The neon table: the loops of every kernel, compiled for this instruction set.
 */
#include "../ace/ace.h"
#include "../cde/cde.h"
#include "../cpu.h"
#include "../drm/drm.h"
#include "../gemm/gemm.h"
#include "isa.h"

#if defined(__aarch64__)

#define RAP_ISA_NAME "neon"
#define RAP_ISA_TABLE rap_kernels_neon
#define RAP_LANES 4
#define RAP_MR 8
#define RAP_NR 12
#include "table.h"

#endif
