/* SPDX-License-Identifier: Apache-2.0
 *
 * Included by each isa/kernels_<isa>.c after its target pragma: the loops of every kernel,
 * then one const table. RAP_ISA_TABLE names it, RAP_LANES floats make a vector, RAP_MR x
 * RAP_NR is the product's tile.
 */

/* Terms summed in float32 before float64: 64 a lane, so that every table's rounding stays
 * below that of a pairwise sum of the whole row. */
#define RAP_PIECE (64 * RAP_LANES)

#include "../hd.h"

_Static_assert(RAP_GEMM_COLUMNS % RAP_NR == 0, "a chunk must hold whole panels");
_Static_assert(RAP_ACE_ROWS % RAP_MR == 0, "a block must hold whole tiles");

#include "widen_kernel.h"

#include "../gemm/gemm_kernel.h"

#include "../cde/cde_kernel.h"

#include "../ace/ace_kernel.h"

#include "../drm/drm_kernel.h"

#define RAP_ISA_ENTRIES                                                                   \
    .piece = RAP_PIECE, .widen = widen, .gemm_nr = RAP_NR, .gemm_pack = gemm_pack,        \
    .gemm_panel = gemm_panel, .cde_sweep = cde_sweep, .cde_mix = cde_mix,                 \
    .cde_map = cde_map, .ace_max = ace_max, .ace_sum_exp = ace_sum_exp,                   \
    .ace_exp = ace_exp, .ace_add = ace_add, .ace_log_max = ace_log_max, .ace_ln = ace_ln, \
    .ace_columns = ace_columns, .ace_suffix_add = ace_suffix_add,                         \
    .ace_suffix_dot = ace_suffix_dot, .ace_dot = ace_dot, .drm_hits_f32 = drm_hits_f32,   \
    .drm_hits_f64 = drm_hits_f64

const rap_kernels RAP_ISA_TABLE = {.name = RAP_ISA_NAME, RAP_ISA_ENTRIES};

#ifdef RAP_ISA_BF16_TABLE
#include "../gemm/gemm_bf16_kernel.h"

const rap_kernels RAP_ISA_BF16_TABLE = {
    .name = RAP_ISA_NAME "_bf16", RAP_ISA_ENTRIES, .gemm_panel_bf16 = gemm_panel_bf16};
#endif
