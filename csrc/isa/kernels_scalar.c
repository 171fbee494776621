/* SPDX-License-Identifier: Apache-2.0
 *
 * The scalar table: the loops of every kernel, compiled for this instruction set.
 */
#include "../ace/ace.h"
#include "../cde/cde.h"
#include "../cpu.h"
#include "../drm/drm.h"
#include "../gemm/gemm.h"
#include "isa.h"

#if !defined(__aarch64__)
#define RAP_NO_FMA /* the baseline has none */
#endif
#define RAP_ISA_NAME "scalar"
#define RAP_ISA_TABLE rap_kernels_scalar
#define RAP_LANES 4
#define RAP_MR 4
#define RAP_NR 8
#include "table.h"
