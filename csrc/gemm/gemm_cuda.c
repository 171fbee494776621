/* SPDX-License-Identifier: Apache-2.0
 *
 * Column-major cuBLASLt sees row-major A[M, K] as [K, M] and makes C^T[N, M] = B A^T: its
 * first operand is our B, transposed, its second our A as it lies.
 */
#include "gemm_cuda.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "../status.h"

/* What we need of cublasLt.h and library_types.h; tests/test_cuda_blas.py compares these
 * with the real header and calls the real library. */
enum {
    OP_N = 0,
    OP_T = 1,
    R_32F = 0,
    R_16F = 2,
    R_16BF = 14,
    COMPUTE_32F = 68,
    STATUS_ALLOC_FAILED = 3,
    STATUS_NOT_SUPPORTED = 15,
    DESC_TRANSA = 3,
    DESC_TRANSB = 4,
    LAYOUT_BATCH_COUNT = 5,
    LAYOUT_STRIDED_BATCH_OFFSET = 6,
    PREF_MAX_WORKSPACE_BYTES = 1,
    PREF_REDUCTION_SCHEME_MASK = 3,
    PREF_MIN_ALIGNMENT_A_BYTES = 5,
    PREF_MIN_ALIGNMENT_B_BYTES = 6,
    PREF_MIN_ALIGNMENT_C_BYTES = 7,
    PREF_MIN_ALIGNMENT_D_BYTES = 8,
    REDUCTION_COMPUTE_TYPE = 2,
    REDUCTION_OUTPUT_TYPE = 4,
};

typedef struct {
    uint64_t data[8];
} blas_algo;

typedef struct {
    blas_algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} blas_heuristic;

typedef struct {
    size_t (*version)(void);
    int (*create)(void **handle);
    int (*desc_create)(void **desc, int compute, int scale);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t size);
    int (*desc_destroy)(void *desc);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*layout_set)(void *layout, int attribute, const void *value, size_t size);
    int (*layout_destroy)(void *layout);
    int (*pref_create)(void **pref);
    int (*pref_set)(void *pref, int attribute, const void *value, size_t size);
    int (*pref_destroy)(void *pref);
    int (*heuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d,
                     void *pref, int most, blas_heuristic *found, int *count);
    int (*matmul)(void *handle, void *desc, const void *alpha, const void *a,
                  void *a_layout, const void *b, void *b_layout, const void *beta,
                  const void *c, void *c_layout, void *d, void *d_layout,
                  const blas_algo *algo, void *workspace, size_t workspace_bytes,
                  void *stream);
} blas_api;

static const struct {
    const char *name;
    size_t at;
} symbols[] = {
    {"cublasLtGetVersion", offsetof(blas_api, version)},
    {"cublasLtCreate", offsetof(blas_api, create)},
    {"cublasLtMatmulDescCreate", offsetof(blas_api, desc_create)},
    {"cublasLtMatmulDescSetAttribute", offsetof(blas_api, desc_set)},
    {"cublasLtMatmulDescDestroy", offsetof(blas_api, desc_destroy)},
    {"cublasLtMatrixLayoutCreate", offsetof(blas_api, layout_create)},
    {"cublasLtMatrixLayoutSetAttribute", offsetof(blas_api, layout_set)},
    {"cublasLtMatrixLayoutDestroy", offsetof(blas_api, layout_destroy)},
    {"cublasLtMatmulPreferenceCreate", offsetof(blas_api, pref_create)},
    {"cublasLtMatmulPreferenceSetAttribute", offsetof(blas_api, pref_set)},
    {"cublasLtMatmulPreferenceDestroy", offsetof(blas_api, pref_destroy)},
    {"cublasLtMatmulAlgoGetHeuristic", offsetof(blas_api, heuristic)},
    {"cublasLtMatmul", offsetof(blas_api, matmul)},
};

typedef struct {
    void *context;
    uint64_t context_id;
    void *handle;
} blas_handle;

/* All that cuBLASLt's choice depends on; compared byte by byte. */
typedef struct {
    void *context;
    uint64_t context_id;
    int64_t m, n, k, ld_a, ld_b, ld_c, stride_a, stride_b, stride_c, batch;
    uint32_t alignment_a, alignment_b, alignment_c;
    int32_t dtype;
} blas_shape;

typedef struct {
    blas_shape shape;
    blas_algo algo;
} blas_choice;

struct rap_blas {
    pthread_mutex_t mutex;
    void *library;
    blas_api api;
    blas_handle *handles; /* one a context */
    int64_t count, room_for;
    blas_choice choices[RAP_BLAS_CHOICES]; /* a ring */
    int64_t chosen;                        /* ever */
};

/* --- the library --------------------------------------------------------------------- */

rap_blas *
rap_blas_new(void)
{
    rap_error err = {0};
    rap_blas *blas = rap_alloc((int64_t)sizeof(*blas), &err);

    if (blas != NULL) {
        memset(blas, 0, sizeof(*blas));
        pthread_mutex_init(&blas->mutex, NULL);
    }
    return blas;
}

/* Handles go with their contexts, the library with the process. */
void
rap_blas_free(rap_blas *blas)
{
    if (blas != NULL) {
        pthread_mutex_destroy(&blas->mutex);
        rap_free(blas->handles);
        rap_free(blas);
    }
}

/* 500 MB a copy: what is loaded already is taken before any file. */
static void *
find_library(const char *path)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
    const char *forced = getenv("RAP_LIBCUBLASLT");
    void *library = NULL;

    if (forced != NULL && forced[0] != '\0') {
        return dlopen(forced, RTLD_NOW | RTLD_LOCAL);
    }
    for (int i = 0; library == NULL && i < 2; i++) {
        library = dlopen(names[i], RTLD_NOW | RTLD_NOLOAD);
    }
    if (library == NULL && path != NULL) {
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    for (int i = 0; library == NULL && i < 2; i++) {
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    }
    return library;
}

static bool
open_library(rap_blas *blas, const char *path, rap_error *err)
{
    blas->library = find_library(path);
    if (blas->library == NULL) {
        return rap_fail(err, RAP_ECONFIG,
                        "cuBLASLt 12 or 13 was not found: install nvidia-cublas, or name "
                        "the library in RAP_LIBCUBLASLT");
    }
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *address = dlsym(blas->library, symbols[i].name);

        if (address == NULL) {
            blas->library = NULL;
            return rap_fail(err, RAP_ECONFIG, "this cuBLASLt has no %s", symbols[i].name);
        }
        memcpy((char *)&blas->api + symbols[i].at, &address, sizeof(address));
    }
    return true;
}

bool
rap_blas_open(rap_blas *blas, const char *path, int64_t *version, rap_error *err)
{
    bool ok;

    pthread_mutex_lock(&blas->mutex);
    ok = blas->library != NULL || open_library(blas, path, err);
    pthread_mutex_unlock(&blas->mutex);
    if (ok && version != NULL) {
        *version = (int64_t)blas->api.version();
    }
    return ok;
}

static bool
blas_ok(int status, const char *what, rap_error *err)
{
    return status == 0
           || rap_fail(err, status == STATUS_ALLOC_FAILED ? RAP_EMEMORY : RAP_EDEVICE,
                       "cuBLASLt: %s: status %d", what, status);
}

/* With the mutex held. */
static bool
make_handle(rap_blas *blas, const rap_cuda_call *call, void **handle, rap_error *err)
{
    if (blas->count == blas->room_for) {
        int64_t more = RAP_MAX(8, 2 * blas->room_for);
        blas_handle *list = rap_alloc(more * (int64_t)sizeof(*list), err);

        if (list == NULL) {
            return false;
        }
        if (blas->count > 0) {
            memcpy(list, blas->handles, (size_t)blas->count * sizeof(*list));
        }
        rap_free(blas->handles);
        blas->handles = list;
        blas->room_for = more;
    }
    if (!blas_ok(blas->api.create(handle), "starting", err)) {
        return false;
    }
    blas->handles[blas->count++] = (blas_handle){call->context, call->context_id, *handle};
    return true;
}

static bool
handle_of(const rap_cuda_call *call, void **handle, rap_error *err)
{
    rap_blas *blas = call->blas;
    bool ok;

    *handle = NULL;
    pthread_mutex_lock(&blas->mutex);
    for (int64_t i = 0; i < blas->count; i++) {
        const blas_handle *h = &blas->handles[i];

        if (h->context == call->context && h->context_id == call->context_id) {
            *handle = h->handle;
        }
    }
    ok = *handle != NULL || make_handle(blas, call, handle, err);
    pthread_mutex_unlock(&blas->mutex);
    return ok;
}

/* --- a product ----------------------------------------------------------------------- */

typedef struct {
    void *desc, *a, *b, *c, *pref; /* a, b: as cuBLASLt counts them */
} blas_plan;

static int
blas_type(rap_dtype dtype)
{
    return dtype == RAP_F32 ? R_32F : dtype == RAP_F16 ? R_16F : R_16BF;
}

/* The largest power of two that divides an operand's addresses, at most 256: the library
 * takes 256 for granted unless told. */
static uint32_t
alignment(const void *data, int64_t batch_stride, size_t size)
{
    const uintptr_t bits = (uintptr_t)data | ((uintptr_t)batch_stride * size) | 256;

    return (uint32_t)(bits & (~bits + 1));
}

static bool
make_layout(const blas_api *api, void **layout, int type, int64_t rows, int64_t cols,
            int64_t ld, int64_t batch, int64_t batch_stride, rap_error *err)
{
    const int32_t count = (int32_t)batch;

    return blas_ok(api->layout_create(layout, type, (uint64_t)rows, (uint64_t)cols, ld),
                   "layout", err)
           && blas_ok(api->layout_set(*layout, LAYOUT_BATCH_COUNT, &count, sizeof(count)),
                      "batch", err)
           && blas_ok(api->layout_set(*layout, LAYOUT_STRIDED_BATCH_OFFSET, &batch_stride,
                                      sizeof(batch_stride)),
                      "batch stride", err);
}

static blas_shape
shape_of(const rap_cuda_call *call, const rap_product *p)
{
    const size_t size = rap_dtype_size(p->a.dtype);
    blas_shape shape;

    memset(&shape, 0, sizeof(shape));
    shape.context = call->context;
    shape.context_id = call->context_id;
    shape.m = p->a.rows;
    shape.n = p->b.rows;
    shape.k = p->depth;
    shape.ld_a = p->a.ld;
    shape.ld_b = p->b.ld;
    shape.ld_c = p->ldc;
    shape.stride_a = p->a.batch_stride;
    shape.stride_b = p->b.batch_stride;
    shape.stride_c = p->c_stride;
    shape.batch = p->batch;
    shape.alignment_a = alignment(p->a.data, p->a.batch_stride, size);
    shape.alignment_b = alignment(p->b.data, p->b.batch_stride, size);
    shape.alignment_c = alignment(p->c, p->c_stride, sizeof(float));
    shape.dtype = (int32_t)p->a.dtype;
    return shape;
}

static bool
find_choice(rap_blas *blas, const blas_shape *shape, blas_algo *algo)
{
    bool found = false;

    pthread_mutex_lock(&blas->mutex);
    for (int64_t i = 0; !found && i < RAP_MIN(blas->chosen, RAP_BLAS_CHOICES); i++) {
        if (memcmp(&blas->choices[i].shape, shape, sizeof(*shape)) == 0) {
            *algo = blas->choices[i].algo;
            found = true;
        }
    }
    pthread_mutex_unlock(&blas->mutex);
    return found;
}

static void
keep_choice(rap_blas *blas, const blas_shape *shape, const blas_algo *algo)
{
    pthread_mutex_lock(&blas->mutex);
    blas->choices[blas->chosen++ % RAP_BLAS_CHOICES] = (blas_choice){*shape, *algo};
    pthread_mutex_unlock(&blas->mutex);
}

static bool
make_preference(const blas_api *api, void **pref, const blas_shape *shape, rap_error *err)
{
    const uint64_t workspace = RAP_BLAS_WORKSPACE;
    const uint32_t scheme = REDUCTION_COMPUTE_TYPE | REDUCTION_OUTPUT_TYPE;
    const uint32_t first = shape->alignment_b, second = shape->alignment_a;
    const uint32_t answer = shape->alignment_c;
    const struct {
        int attribute;
        const void *value;
        size_t size;
    } set[] = {{PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)},
               {PREF_REDUCTION_SCHEME_MASK, &scheme, sizeof(scheme)},
               {PREF_MIN_ALIGNMENT_A_BYTES, &first, sizeof(first)},
               {PREF_MIN_ALIGNMENT_B_BYTES, &second, sizeof(second)},
               {PREF_MIN_ALIGNMENT_C_BYTES, &answer, sizeof(answer)},
               {PREF_MIN_ALIGNMENT_D_BYTES, &answer, sizeof(answer)}};
    bool ok = blas_ok(api->pref_create(pref), "preference", err);

    for (size_t i = 0; ok && i < sizeof(set) / sizeof(set[0]); i++) {
        ok = blas_ok(api->pref_set(*pref, set[i].attribute, set[i].value, set[i].size),
                     "preference", err);
    }
    return ok;
}

static bool
make_plan(const blas_api *api, const rap_product *p, blas_plan *plan, rap_error *err)
{
    const int type = blas_type(p->a.dtype), yes = OP_T, no = OP_N;

    return blas_ok(api->desc_create(&plan->desc, COMPUTE_32F, R_32F), "descriptor", err)
           && blas_ok(api->desc_set(plan->desc, DESC_TRANSA, &yes, sizeof(yes)),
                      "descriptor", err)
           && blas_ok(api->desc_set(plan->desc, DESC_TRANSB, &no, sizeof(no)), "descriptor",
                      err)
           && make_layout(api, &plan->a, type, p->depth, p->b.rows, p->b.ld, p->batch,
                          p->b.batch_stride, err)
           && make_layout(api, &plan->b, type, p->depth, p->a.rows, p->a.ld, p->batch,
                          p->a.batch_stride, err)
           && make_layout(api, &plan->c, R_32F, p->b.rows, p->a.rows, p->ldc, p->batch,
                          p->c_stride, err);
}

static void
free_plan(const blas_api *api, blas_plan *plan)
{
    void *const layouts[] = {plan->a, plan->b, plan->c};

    for (int i = 0; i < 3; i++) {
        if (layouts[i] != NULL) {
            api->layout_destroy(layouts[i]);
        }
    }
    if (plan->desc != NULL) {
        api->desc_destroy(plan->desc);
    }
    if (plan->pref != NULL) {
        api->pref_destroy(plan->pref);
    }
}

/* How to multiply: as the last time for this shape, or as the library says now. *refused: it
 * has no way to do it. */
static bool
choose(rap_cuda_call *call, void *handle, const rap_product *p, blas_plan *plan,
       blas_algo *algo, bool *refused, rap_error *err)
{
    rap_blas *blas = call->blas;
    const blas_shape shape = shape_of(call, p);
    blas_heuristic found = {0};
    int count = 0, status;

    *refused = false;
    if (find_choice(blas, &shape, algo)) {
        return true;
    }
    if (!make_preference(&blas->api, &plan->pref, &shape, err)) {
        return false;
    }
    status = blas->api.heuristic(handle, plan->desc, plan->a, plan->b, plan->c, plan->c,
                                 plan->pref, 1, &found, &count);
    *refused =
        status == STATUS_NOT_SUPPORTED || (status == 0 && (count < 1 || found.state != 0));
    if (*refused || !blas_ok(status, "choosing a way to multiply", err)) {
        return *refused;
    }
    *algo = found.algo;
    keep_choice(blas, &shape, algo);
    return true;
}

bool
rap_blas_multiply(rap_cuda_call *call, const rap_product *p, bool *refused, rap_error *err)
{
    const blas_api *api = &((rap_blas *)call->blas)->api;
    const float one = 1, zero = 0;
    blas_plan plan = {0};
    blas_algo algo = {{0}};
    void *handle = NULL;
    int status;
    bool ok = handle_of(call, &handle, err) && make_plan(api, p, &plan, err)
              && choose(call, handle, p, &plan, &algo, refused, err);

    if (ok && !*refused) {
        status = api->matmul(handle, plan.desc, &one, p->b.data, plan.a, p->a.data, plan.b,
                             &zero, p->c, plan.c, p->c, plan.c, &algo, p->workspace,
                             (size_t)RAP_BLAS_WORKSPACE, call->stream);
        ok = blas_ok(status, "multiplying", err);
    }
    free_plan(api, &plan);
    return ok;
}
