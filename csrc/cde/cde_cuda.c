/* SPDX-License-Identifier: Apache-2.0
 *
 * From logits on a CUDA device: one launch does all rows. Workspace: targets that came from
 * the host.
 */
#include "cde_cuda.h"

#include "../driver.h"

int64_t
rap_cde_device_bytes(const void *args)
{
    const rap_cde_args *a = args;

    return rap_cuda_small_bytes(&a->targets);
}

bool
rap_cde_device(void *args, rap_cuda_call *call, void *workspace, rap_error *err)
{
    const rap_cde_args *a = args;
    const int64_t rows = a->logits1.shape[0];
    const void *targets = NULL;
    char *space = workspace;
    rap_cde_cuda p = {
        .l1 = a->logits1.data,
        .l0 = a->logits0.data,
        .out = a->out.data,
        .stride1 = a->logits1.stride[0],
        .stride0 = a->logits0.stride[0],
        .target_stride = a->targets.stride[0],
        .out_stride = a->out.stride[0],
        .rows = rows,
        .columns = a->logits1.shape[1],
        .dtype1 = (int32_t)a->logits1.dtype,
        .dtype0 = (int32_t)a->logits0.dtype,
        .want = a->want,
    };

    if (rows == 0) {
        return true;
    }
    if (!rap_cuda_small(call, &a->targets, &space, &targets, err)) {
        return false;
    }
    p.targets = targets;
    return rap_cuda_launch(call, "cde", "rap_cde_rows", rap_cde_cuda_grid(rows),
                           RAP_CDE_CUDA_THREADS, &p, err);
}
