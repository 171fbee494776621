/* SPDX-License-Identifier: Apache-2.0 */
#include "drm.h"

#include "../status.h"

bool
rap_drm_check(const void *args, rap_error *err)
{
    const rap_drm_args *a = args;
    const rap_array *scores[] = {&a->difficulty, &a->gain};
    const char *const names[] = {"difficulty", "gain"};
    const int64_t n = a->difficulty.ndim == 1 ? a->difficulty.shape[0] : -1;

    for (int i = 0; i < 2; i++) {
        const rap_array *x = scores[i];

        if (x->data == NULL) {
            continue;
        }
        if (x->ndim != 1 || x->shape[0] != n || (n > 1 && x->stride[0] != 1)) {
            return n < 0 ? rap_unexpected(x, names[i], "one dimension [N]", err)
                         : rap_no_vector(x, names[i], "contiguous numbers", n, err);
        }
        if (x->dtype != RAP_F32 && x->dtype != RAP_F64) {
            return rap_fail(err, RAP_ETYPE, "%s: expected float32 or float64, got %s",
                            names[i], rap_dtype_name(x->dtype));
        }
    }
    if (a->eligible.data != NULL
        && (a->eligible.ndim != 1 || a->eligible.shape[0] != n
            || a->eligible.dtype != RAP_BOOL || (n > 1 && a->eligible.stride[0] != 1)))
    {
        return rap_no_vector(&a->eligible, "eligible", "contiguous bool", n, err);
    }
    return true;
}
