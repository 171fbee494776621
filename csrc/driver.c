/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda/fatbin.h"
#include "status.h"

enum { /* CUresult */
       OUT_OF_MEMORY = 2,
       NOT_INITIALIZED = 3,
       NO_DEVICE = 100,
       INVALID_IMAGE = 200,
       INVALID_CONTEXT = 201,
       NO_BINARY_FOR_GPU = 209,
       UNSUPPORTED_PTX = 222,
       INVALID_HANDLE = 400,
       CONTEXT_IS_DESTROYED = 709,
       STREAM_CAPTURE_IMPLICIT = 906,
};
enum { POINTER_MEMORY_TYPE = 2, POINTER_DEVICE = 9 }; /* CUpointer_attribute */
enum { MEMORY_TYPE_DEVICE = 2 };

/* What was loaded into a context: a kernel module, or one kernel of it. */
typedef struct {
    void *context;
    uint64_t context_id;
    const char
        *name; /* of a kernel module or a kernel; both outlive the process's use of it */
    void *handle;
} loaded;

struct rap_cuda {
    pthread_mutex_t mutex; /* opening, and the list */
    void *library;
    rap_cuda_api api;
    atomic_long opened_by; /* process id; 0: not opened yet */
    atomic_long opens;     /* the process that is about to open, or has */
    loaded *list;
    int64_t count, room_for;
};

/* --- opening ------------------------------------------------------------------------- */

typedef struct {
    const char *name, *versioned; /* as cuGetProcAddress and as dlsym know it */
    size_t at;
    bool optional;
} symbol;

static const symbol symbols[] = {
    {"cuInit", "cuInit", offsetof(rap_cuda_api, init), false},
    {"cuDriverGetVersion", "cuDriverGetVersion", offsetof(rap_cuda_api, version), false},
    {"cuGetErrorName", "cuGetErrorName", offsetof(rap_cuda_api, error_name), false},
    {"cuGetErrorString", "cuGetErrorString", offsetof(rap_cuda_api, error_string), false},
    {"cuDeviceGetCount", "cuDeviceGetCount", offsetof(rap_cuda_api, device_count), false},
    {"cuDeviceGet", "cuDeviceGet", offsetof(rap_cuda_api, device_get), false},
    {"cuDeviceGetName", "cuDeviceGetName", offsetof(rap_cuda_api, device_name), false},
    {"cuDeviceGetAttribute", "cuDeviceGetAttribute",
     offsetof(rap_cuda_api, device_attribute), false},
    {"cuCtxGetCurrent", "cuCtxGetCurrent", offsetof(rap_cuda_api, context_current), false},
    {"cuCtxSetCurrent", "cuCtxSetCurrent", offsetof(rap_cuda_api, context_bind), false},
    {"cuCtxGetDevice", "cuCtxGetDevice", offsetof(rap_cuda_api, context_device), false},
    {"cuCtxGetId", "cuCtxGetId", offsetof(rap_cuda_api, context_id), true},
    {"cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRetain",
     offsetof(rap_cuda_api, primary_retain), false},
    {"cuDevicePrimaryCtxRelease", "cuDevicePrimaryCtxRelease_v2",
     offsetof(rap_cuda_api, primary_release), false},
    {"cuModuleLoadData", "cuModuleLoadData", offsetof(rap_cuda_api, module_load), false},
    {"cuModuleGetFunction", "cuModuleGetFunction", offsetof(rap_cuda_api, module_function),
     false},
    {"cuLaunchKernel", "cuLaunchKernel", offsetof(rap_cuda_api, launch), false},
    {"cuPointerGetAttribute", "cuPointerGetAttribute",
     offsetof(rap_cuda_api, pointer_attribute), false},
    {"cuMemAllocAsync", "cuMemAllocAsync", offsetof(rap_cuda_api, memory_alloc), false},
    {"cuMemFreeAsync", "cuMemFreeAsync", offsetof(rap_cuda_api, memory_free), false},
    {"cuMemcpyHtoDAsync", "cuMemcpyHtoDAsync_v2", offsetof(rap_cuda_api, upload), false},
    {"cuMemcpyDtoHAsync", "cuMemcpyDtoHAsync_v2", offsetof(rap_cuda_api, download), false},
    {"cuStreamSynchronize", "cuStreamSynchronize", offsetof(rap_cuda_api, stream_wait),
     false},
    {"cuStreamIsCapturing", "cuStreamIsCapturing", offsetof(rap_cuda_api, stream_captures),
     false},
};

/* The version that fixes every entry point's signature: CUDA 12.0's. */
#define RAP_CUDA_ABI 12000

typedef int get_proc_address(const char *name, void **function, int version, uint64_t flags,
                             int *found);

static bool
find_symbols(void *library, rap_cuda_api *api, rap_error *err)
{
    get_proc_address *get = NULL;
    void *address = dlsym(library, "cuGetProcAddress_v2");

    memcpy(&get, &address, sizeof(get));
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        const symbol *s = &symbols[i];

        address = NULL;
        if (get == NULL) {
            address = dlsym(library, s->versioned);
        }
        else if (get(s->name, &address, RAP_CUDA_ABI, 0, NULL) != 0) {
            address = NULL;
        }
        if (address == NULL && !s->optional) {
            return rap_fail(err, RAP_ECONFIG,
                            "the CUDA driver is too old: it has no %s (CUDA 12.0 or newer "
                            "is needed)",
                            s->name);
        }
        memcpy((char *)api + s->at, &address, sizeof(address));
    }
    return true;
}

static bool
forked(rap_error *err)
{
    return rap_fail(err, RAP_ECONFIG,
                    "CUDA was opened before this process was forked and cannot be used in "
                    "it: start workers with the 'spawn' method");
}

/* With the mutex held. */
static bool
open_driver(rap_cuda *cuda, rap_error *err)
{
    const char *path = getenv("RAP_LIBCUDA");
    int result;

    if (rap_fatbins[0].kernels == NULL) {
        return rap_fail(err, RAP_ECONFIG, "no CUDA kernels in this build: %s",
                        rap_fatbin_made);
    }
    path = path != NULL && path[0] != '\0' ? path : "libcuda.so.1";
    if (cuda->library == NULL) {
        cuda->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    if (cuda->library == NULL) {
        const char *why = dlerror();

        return rap_fail(err, RAP_ECONFIG, "no CUDA driver: %.180s",
                        why != NULL ? why : path);
    }
    if (!find_symbols(cuda->library, &cuda->api, err)) {
        return false;
    }
    result = cuda->api.init(0);
    if (result == NOT_INITIALIZED) { /* what a child gets when its parent used CUDA */
        return forked(err);
    }
    if (result == NO_DEVICE) {
        return rap_fail(err, RAP_ECONFIG,
                        "no CUDA device that this process may use (CUDA_ERROR_NO_DEVICE)");
    }
    if (!rap_cuda_ok(&cuda->api, result, "starting CUDA", err)) {
        err->status = RAP_ECONFIG;
        return false;
    }
    return true;
}

const rap_cuda_api *
rap_cuda_open(rap_cuda *cuda, rap_error *err)
{
    long by = atomic_load(&cuda->opened_by), opens = 0, self = (long)getpid();
    bool ok = by == self;

    if (!ok) {
        atomic_compare_exchange_strong(&cuda->opens, &opens, self);
    }
    /* before the mutex: a fork may have left it locked */
    if (!ok && (by != 0 || (opens != 0 && opens != self))) {
        forked(err);
        return NULL;
    }
    if (!ok) {
        pthread_mutex_lock(&cuda->mutex);
        ok = atomic_load(&cuda->opened_by) == self || open_driver(cuda, err);
        if (ok) {
            atomic_store(&cuda->opened_by, self);
        }
        else {
            atomic_store(&cuda->opens, 0);
        }
        pthread_mutex_unlock(&cuda->mutex);
    }
    return ok ? &cuda->api : NULL;
}

rap_cuda *
rap_cuda_new(void)
{
    rap_error err = {0};
    rap_cuda *cuda = rap_alloc((int64_t)sizeof(*cuda), &err);

    if (cuda != NULL) {
        memset(cuda, 0, sizeof(*cuda));
        pthread_mutex_init(&cuda->mutex, NULL);
        atomic_init(&cuda->opened_by, 0);
        atomic_init(&cuda->opens, 0);
    }
    return cuda;
}

/* Modules go with their contexts, the library with the process. */
void
rap_cuda_free(rap_cuda *cuda)
{
    if (cuda != NULL) {
        pthread_mutex_destroy(&cuda->mutex);
        rap_free(cuda->list);
        rap_free(cuda);
    }
}

bool
rap_cuda_ok(const rap_cuda_api *api, int result, const char *what, rap_error *err)
{
    const char *name = NULL, *text = NULL;

    if (result == 0) {
        return true;
    }
    if (api->error_name(result, &name) != 0 || name == NULL) {
        name = "an error the driver has no name for";
    }
    if (api->error_string(result, &text) != 0 || text == NULL) {
        text = "";
    }
    return rap_fail(err, result == OUT_OF_MEMORY ? RAP_EMEMORY : RAP_EDEVICE,
                    "%s: %s (%d) %.120s", what, name, result, text);
}

/* --- a call -------------------------------------------------------------------------- */

static bool
bind_context(rap_cuda_call *call, rap_error *err)
{
    const rap_cuda_api *api = call->api;
    int current = -1;

    if (!rap_cuda_ok(api, api->device_get(&call->device, call->ordinal),
                     "finding the device", err)
        || !rap_cuda_ok(api, api->context_current(&call->before),
                        "asking for the current context", err))
    {
        return false;
    }
    if (call->before != NULL && api->context_device(&current) == 0
        && current == call->device)
    {
        call->context = call->before;
        return true;
    }
    if (!rap_cuda_ok(api, api->primary_retain(&call->context, call->device),
                     "opening the device's primary context", err))
    {
        return false;
    }
    call->retained = true;
    call->bound = rap_cuda_ok(api, api->context_bind(call->context),
                              "binding the device's context", err);
    return call->bound;
}

bool
rap_cuda_enter(rap_cuda *cuda, int ordinal, void *stream, rap_cuda_call *call,
               rap_error *err)
{
    unsigned long long id = 0;

    *call = (rap_cuda_call){.cuda = cuda, .ordinal = ordinal, .stream = stream};
    call->api = rap_cuda_open(cuda, err);
    if (call->api == NULL || !bind_context(call, err)) {
        return false;
    }
    if (call->api->context_id != NULL
        && !rap_cuda_ok(call->api, call->api->context_id(call->context, &id),
                        "asking for the context", err))
    {
        return false;
    }
    call->context_id = id;
    return true;
}

void
rap_cuda_leave(rap_cuda_call *call)
{
    if (call->bound) {
        call->api->context_bind(call->before);
    }
    if (call->retained) {
        call->api->primary_release(call->device);
    }
    call->bound = call->retained = false;
}

/* --- graphs -------------------------------------------------------------------------- */

bool
rap_cuda_captures(rap_cuda_call *call, bool *captures, rap_error *err)
{
    int status = 0; /* CU_STREAM_CAPTURE_STATUS_NONE */
    const int result = call->api->stream_captures(call->stream, &status);

    /* the legacy stream cannot be asked while another one records */
    *captures = status != 0 || result == STREAM_CAPTURE_IMPLICIT;
    return result == STREAM_CAPTURE_IMPLICIT
           || rap_cuda_ok(call->api, result, "asking whether a graph is recorded", err);
}

bool
rap_cuda_may_wait(rap_cuda_call *call, rap_error *err)
{
    bool captures;

    return rap_cuda_captures(call, &captures, err)
           && (!captures
               || rap_fail(err, RAP_EINPUT,
                           "this needs an answer of the device, which a CUDA graph that is "
                           "being captured cannot give: call it outside of the capture"));
}

bool
rap_cuda_wait(rap_cuda_call *call, rap_error *err)
{
    return rap_cuda_may_wait(call, err)
           && rap_cuda_ok(call->api, call->api->stream_wait(call->stream),
                          "waiting for the device", err);
}

/* --- kernels ------------------------------------------------------------------------- */

static void *
find_loaded(const rap_cuda_call *call, const char *name)
{
    const rap_cuda *cuda = call->cuda;

    for (int64_t i = 0; i < cuda->count; i++) {
        const loaded *l = &cuda->list[i];

        if (l->context == call->context && l->context_id == call->context_id
            && strcmp(l->name, name) == 0)
        {
            return l->handle;
        }
    }
    return NULL;
}

static bool
remember(const rap_cuda_call *call, const char *name, void *handle, rap_error *err)
{
    rap_cuda *cuda = call->cuda;

    if (cuda->count == cuda->room_for) {
        int64_t more = RAP_MAX(32, 2 * cuda->room_for);
        loaded *list = rap_alloc(more * (int64_t)sizeof(*list), err);

        if (list == NULL) {
            return false;
        }
        if (cuda->count > 0) {
            memcpy(list, cuda->list, (size_t)cuda->count * sizeof(*list));
        }
        rap_free(cuda->list);
        cuda->list = list;
        cuda->room_for = more;
    }
    cuda->list[cuda->count++] = (loaded){call->context, call->context_id, name, handle};
    return true;
}

/* A context that died takes its modules along: its handle may come back as another's. */
static void
forget_context(const rap_cuda_call *call)
{
    rap_cuda *cuda = call->cuda;
    int64_t kept = 0;

    pthread_mutex_lock(&cuda->mutex);
    for (int64_t i = 0; i < cuda->count; i++) {
        if (cuda->list[i].context != call->context) {
            cuda->list[kept++] = cuda->list[i];
        }
    }
    cuda->count = kept;
    pthread_mutex_unlock(&cuda->mutex);
}

static bool
load_module(rap_cuda_call *call, const char *kernels, void **module, rap_error *err)
{
    const rap_fatbin *fatbin = rap_fatbins;
    int result, version = 0;
    bool captures;

    *module = find_loaded(call, kernels);
    if (*module != NULL) {
        return true;
    }
    while (fatbin->kernels != NULL && strcmp(fatbin->kernels, kernels) != 0) {
        fatbin++;
    }
    if (fatbin->kernels == NULL) {
        return rap_fail(err, RAP_ECONFIG, "no CUDA kernels of %s in this build", kernels);
    }
    if (!rap_cuda_captures(call, &captures, err)) {
        return false;
    }
    if (captures) {
        return rap_fail(
            err, RAP_EINPUT,
            "the kernels of %s are not loaded yet, which cannot be done while a "
            "CUDA graph is being captured: call once before the capture",
            kernels);
    }
    result = call->api->module_load(module, fatbin->image);
    if (result == INVALID_IMAGE || result == NO_BINARY_FOR_GPU || result == UNSUPPORTED_PTX)
    {
        call->api->version(&version);
        return rap_fail(err, RAP_ECONFIG,
                        "this device or its driver (CUDA %d.%d) cannot run the kernels of "
                        "this build (%.100s): RAP_CUDA=off uses the CPU",
                        version / 1000, version % 1000 / 10, rap_fatbin_made);
    }
    return rap_cuda_ok(call->api, result, "loading the kernels", err)
           && remember(call, kernels, *module, err);
}

static bool
find_kernel(rap_cuda_call *call, const char *kernels, const char *kernel, void **function,
            rap_error *err)
{
    void *module = NULL;
    bool ok;

    pthread_mutex_lock(&call->cuda->mutex);
    *function = find_loaded(call, kernel);
    ok = *function != NULL
         || (load_module(call, kernels, &module, err)
             && rap_cuda_ok(call->api, call->api->module_function(function, module, kernel),
                            kernel, err)
             && remember(call, kernel, *function, err));
    pthread_mutex_unlock(&call->cuda->mutex);
    return ok;
}

bool
rap_cuda_launch(rap_cuda_call *call, const char *kernels, const char *kernel,
                int64_t blocks, int threads, void *params, rap_error *err)
{
    void *function = NULL, *list[] = {params};
    int result;

    if (blocks < 1 || blocks > INT32_MAX) {
        return rap_fail(err, RAP_EINPUT, "%s: too large for one launch", kernel);
    }
    if (!find_kernel(call, kernels, kernel, &function, err)) {
        return false;
    }
    result = call->api->launch(function, (unsigned)blocks, 1, 1, (unsigned)threads, 1, 1, 0,
                               call->stream, list, NULL);
    if (result == INVALID_HANDLE || result == INVALID_CONTEXT
        || result == CONTEXT_IS_DESTROYED)
    {
        forget_context(call);
    }
    return rap_cuda_ok(call->api, result, kernel, err);
}

/* --- memory -------------------------------------------------------------------------- */

bool
rap_cuda_upload(rap_cuda_call *call, void *to, const void *from, int64_t bytes,
                rap_error *err)
{
    return bytes == 0
           || rap_cuda_ok(
               call->api,
               call->api->upload((uintptr_t)to, from, (size_t)bytes, call->stream),
               "copying to the device", err);
}

bool
rap_cuda_download(rap_cuda_call *call, void *to, const void *from, int64_t bytes,
                  rap_error *err)
{
    return bytes == 0
           || (rap_cuda_may_wait(call, err)
               && rap_cuda_ok(
                   call->api,
                   call->api->download(to, (uintptr_t)from, (size_t)bytes, call->stream),
                   "copying from the device", err)
               && rap_cuda_wait(call, err));
}

int64_t
rap_cuda_small_bytes(const rap_array *view)
{
    if (view->data == NULL || view->device != 0) {
        return 0;
    }
    return rap_ceil_div(view->shape[0] * (int64_t)rap_dtype_size(view->dtype), 256) * 256;
}

bool
rap_cuda_small(rap_cuda_call *call, const rap_array *view, char **space, const void **at,
               rap_error *err)
{
    const int64_t bytes = view->shape[0] * (int64_t)rap_dtype_size(view->dtype);

    *at = view->data;
    if (view->data == NULL || view->device != 0) {
        return true;
    }
    if (view->ndim != 1 || (view->shape[0] > 1 && view->stride[0] != 1)) {
        return rap_fail(err, RAP_EINPUT, "expected one contiguous dimension");
    }
    *at = *space;
    *space += rap_cuda_small_bytes(view);
    return rap_cuda_upload(call, (void *)*at, view->data, bytes, err);
}

int
rap_cuda_device_of(const rap_cuda_api *api, const void *data)
{
    unsigned type = 0;
    int ordinal = -1;

    if (api->pointer_attribute(&type, POINTER_MEMORY_TYPE, (uintptr_t)data) != 0
        || type != MEMORY_TYPE_DEVICE
        || api->pointer_attribute(&ordinal, POINTER_DEVICE, (uintptr_t)data) != 0)
    {
        return -1;
    }
    return ordinal;
}

static bool
has_elements(const rap_array *view)
{
    bool some = view->data != NULL;

    for (int i = 0; i < view->ndim; i++) {
        some = some && view->shape[i] > 0;
    }
    return some;
}

bool
rap_cuda_holds(rap_cuda_call *call, const rap_array *view, const char *name, rap_error *err)
{
    int at;

    if (!has_elements(view)) {
        return true;
    }
    at = rap_cuda_device_of(call->api, view->data);
    if (at < 0) {
        return rap_fail(err, RAP_EINPUT, "%s: its pointer is not memory of a CUDA device",
                        name);
    }
    return at == call->ordinal
           || rap_fail(err, RAP_EINPUT, "%s is on CUDA device %d, not on %d", name, at,
                       call->ordinal);
}
