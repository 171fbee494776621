/* SPDX-License-Identifier: Apache-2.0
 *
 * The CUDA driver, opened when it is first asked for: never linked, never closed. No CUDA
 * header is needed to build this; the few declarations are here and in driver.c.
 *
 * A call runs where the data is: in the current context if it belongs to that device, else
 * in the device's primary context, bound for the length of the call. Work is queued on the
 * producer's stream; nothing synchronises, except where a function says so. Memory is the
 * caller's, and views of it are released as soon as the work is queued: torch's and CuPy's
 * allocators are ordered by that same stream; rap/cuda.py keeps other arrays alive.
 *
 * A process that was forked after CUDA was opened cannot use it: that is an error here, not
 * a hang. RAP_LIBCUDA names another library.
 */
#ifndef RAP_DRIVER_H
#define RAP_DRIVER_H

#include "rap.h"

typedef struct rap_cuda rap_cuda;

/* Entry points by what they do: the driver's names are in driver.c. All answer CUresult. */
typedef struct {
    int (*init)(unsigned flags);
    int (*version)(int *version);
    int (*error_name)(int result, const char **text);
    int (*error_string)(int result, const char **text);
    int (*device_count)(int *count);
    int (*device_get)(int *device, int ordinal);
    int (*device_name)(char *name, int size, int device);
    int (*device_attribute)(int *value, int attribute, int device);
    int (*context_current)(void **context);
    int (*context_bind)(void *context);
    int (*context_device)(int *device);
    int (*context_id)(void *context, unsigned long long *id); /* NULL before CUDA 12 */
    int (*primary_retain)(void **context, int device);
    int (*primary_release)(int device);
    int (*module_load)(void **module, const void *image);
    int (*module_function)(void **function, void *module, const char *name);
    int (*launch)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                  unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                  void *stream, void **params, void **extra);
    int (*pointer_attribute)(void *value, int attribute, uint64_t pointer);
    int (*memory_alloc)(uint64_t *pointer, size_t bytes, void *stream);
    int (*memory_free)(uint64_t pointer, void *stream);
    int (*upload)(uint64_t to, const void *from, size_t bytes, void *stream);
    int (*download)(void *to, uint64_t from, size_t bytes, void *stream);
    int (*stream_wait)(void *stream);
    int (*stream_captures)(void *stream, int *status);
} rap_cuda_api;

/* One call on one device. Filled by rap_cuda_enter. */
typedef struct rap_cuda_call {
    rap_cuda *cuda;
    const rap_cuda_api *api;
    int ordinal, device;
    void *stream;
    void *context;
    uint64_t context_id;
    void *before; /* the caller's binding, put back by leave */
    bool bound, retained;
    struct rap_blas *blas; /* gemm/gemm_cuda.h; set for kernels that multiply */
} rap_cuda_call;

rap_cuda *rap_cuda_new(void);
void rap_cuda_free(rap_cuda *cuda);

/* Loads the driver if it is not yet; RAP_ECONFIG and one sentence if it cannot be used. */
const rap_cuda_api *rap_cuda_open(rap_cuda *cuda, rap_error *err);

bool rap_cuda_enter(rap_cuda *cuda, int ordinal, void *stream, rap_cuda_call *call,
                    rap_error *err);
void rap_cuda_leave(rap_cuda_call *call); /* also after an enter that failed */

/* Records what `result` says about `what`; true for success. */
bool rap_cuda_ok(const rap_cuda_api *api, int result, const char *what, rap_error *err);

/* One launch of a kernel of a module, one-dimensional, its parameter struct by value. */
bool rap_cuda_launch(rap_cuda_call *call, const char *kernels, const char *kernel,
                     int64_t blocks, int threads, void *params, rap_error *err);

/* Whether the call's stream records a CUDA graph. Then nothing may wait, and what is copied
 * from host memory would be read again at every replay. */
bool rap_cuda_captures(rap_cuda_call *call, bool *captures, rap_error *err);

/* An error inside a capture, which then can go on; asked before anything is queued. */
bool rap_cuda_may_wait(rap_cuda_call *call, rap_error *err);

bool rap_cuda_wait(rap_cuda_call *call, rap_error *err);

/* Queued; `from` may be reused at once. */
bool rap_cuda_upload(rap_cuda_call *call, void *to, const void *from, int64_t bytes,
                     rap_error *err);

/* Waits for the stream. */
bool rap_cuda_download(rap_cuda_call *call, void *to, const void *from, int64_t bytes,
                       rap_error *err);

/* A small array of a call: where it lies on the device, after a copy to *space (which is
 * moved on) if it is in host memory; NULL for an empty view. _bytes: what that takes. */
int64_t rap_cuda_small_bytes(const rap_array *view);
bool rap_cuda_small(rap_cuda_call *call, const rap_array *view, char **space,
                    const void **at, rap_error *err);

/* The device that memory is on, -1 for host memory or none that CUDA knows. */
int rap_cuda_device_of(const rap_cuda_api *api, const void *data);

/* True when the view's memory is where its owner says: on the call's device. */
bool rap_cuda_holds(rap_cuda_call *call, const rap_array *view, const char *name,
                    rap_error *err);

#endif
