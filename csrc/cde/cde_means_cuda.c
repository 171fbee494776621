/* SPDX-License-Identifier: Apache-2.0
 *
 * Means of the rows' answers over packed samples, on a CUDA device: one launch, nothing
 * read back. Workspace: offsets and weights that came from the host.
 */
#include "../driver.h"
#include "../status.h"
#include "cde_cuda.h"

int64_t
rap_cde_means_device_bytes(const void *args)
{
    const rap_cde_means_args *a = args;

    return rap_cuda_small_bytes(&a->cu_seqlens) + rap_cuda_small_bytes(&a->weights);
}

bool
rap_cde_means_device(void *args, rap_cuda_call *call, void *workspace, rap_error *err)
{
    const rap_cde_means_args *a = args;
    const int64_t samples = a->out.shape[1];
    const void *cu_seqlens = NULL, *weights = NULL;
    char *space = workspace;
    rap_cde_means_cuda p = {
        .answers = a->answers.data,
        .out = a->out.data,
        .answers_stride = a->answers.stride[0],
        .weight_stride = a->weights.stride[0],
        .cu_stride = a->cu_seqlens.stride[0],
        .out_stride = a->out.stride[0],
        .rows = a->answers.shape[1],
        .samples = samples,
        .weight_dtype = (int32_t)a->weights.dtype,
        .want = a->want,
    };

    if (samples == 0) {
        return true;
    }
    if (!rap_cuda_small(call, &a->cu_seqlens, &space, &cu_seqlens, err)
        || !rap_cuda_small(call, &a->weights, &space, &weights, err))
    {
        return false;
    }
    p.cu_seqlens = cu_seqlens;
    p.weights = weights;
    return rap_cuda_launch(call, "cde", "rap_cde_means", rap_cde_cuda_grid(samples),
                           RAP_CDE_CUDA_THREADS, &p, err);
}
