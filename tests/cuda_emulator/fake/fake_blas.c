/* SPDX-License-Identifier: Apache-2.0
 *
 * A libcublasLt for tests: column-major products by their definition, done late on the
 * fake device's streams. It writes over the whole workspace, reads descriptors only through
 * what was set, takes alignment as it was told, and now and then has no way to multiply
 * (RAP_FAKE_BLAS_REFUSE=n: every nth question). A way to multiply is for the shape that was
 * asked about and for no other.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_cuda.h"

#define API RAP_FAKE_PUBLIC
enum { OK = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { TRANSA = 3, TRANSB = 4, BATCH = 5, STRIDE = 6, OP_T = 1, COMPUTE_32F = 68 };
enum { PREF_WORKSPACE = 1, PREF_SCHEME = 3, PREF_ALIGN_A = 5 };
enum { R_32F = 0, R_16F = 2, R_16BF = 14 };

typedef struct {
    int compute, scale, trans_a, trans_b;
} desc;

typedef struct {
    int type;
    uint64_t rows, cols;
    int64_t ld, stride;
    int32_t batch;
} layout;

typedef struct {
    uint64_t workspace;
    uint32_t scheme, align[4];
} pref;

typedef struct {
    uint64_t algo[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} heuristic;

typedef struct {
    desc d;
    layout a, b, c;
    const char *pa, *pb;
    float *pc;
    char *workspace;
    size_t workspace_bytes;
} product;

API size_t
cublasLtGetVersion(void)
{
    return 130100;
}

/* A function of the fake libcuda that this process runs on. */
static void *
fake_cuda(const char *name)
{
    return dlsym(dlopen(getenv("RAP_LIBCUDA"), RTLD_NOW | RTLD_NOLOAD), name);
}

static unsigned long long
current_context(void)
{
    return ((unsigned long long (*)(void))fake_cuda("rap_fake_context"))();
}

static long questions, products;

/* "questions" or "products" so far. */
RAP_FAKE_PUBLIC long
rap_fake_blas_count(const char *what)
{
    return strcmp(what, "questions") == 0 ? questions : products;
}

static uint64_t
mixed(uint64_t hash, uint64_t x)
{
    return (hash ^ x) * 0x100000001B3u;
}

/* Of all that a way to multiply depends on. */
static uint64_t
shape_of(const layout *a, const layout *b, const layout *c)
{
    const layout *const all[] = {a, b, c};
    uint64_t hash = current_context();

    for (int i = 0; i < 3; i++) {
        hash = mixed(mixed(mixed(hash, all[i]->rows), all[i]->cols), (uint64_t)all[i]->ld);
        hash = mixed(mixed(hash, (uint64_t)all[i]->stride), (uint64_t)all[i]->batch);
        hash = mixed(hash, (uint64_t)all[i]->type);
    }
    return hash;
}

/* A handle is its context's. */
API int
cublasLtCreate(void **handle)
{
    unsigned long long *context = malloc(sizeof(*context));

    *context = current_context();
    *handle = context;
    return *context != 0 ? OK : NOT_INITIALIZED;
}

API int
cublasLtMatmulDescCreate(void **at, int compute, int scale)
{
    desc *d = calloc(1, sizeof(*d));

    *d = (desc){compute, scale, 0, 0};
    *at = d;
    return compute == COMPUTE_32F && scale == R_32F ? OK : NOT_SUPPORTED;
}

API int
cublasLtMatmulDescSetAttribute(void *of, int attribute, const void *value, size_t size)
{
    desc *d = of;

    if (size != sizeof(int) || (attribute != TRANSA && attribute != TRANSB)) {
        return INVALID_VALUE;
    }
    memcpy(attribute == TRANSA ? &d->trans_a : &d->trans_b, value, size);
    return OK;
}

API int
cublasLtMatmulDescDestroy(void *d)
{
    free(d);
    return OK;
}

API int
cublasLtMatrixLayoutCreate(void **at, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
    layout *l = calloc(1, sizeof(*l));

    *l = (layout){type, rows, cols, ld, 0, 1};
    *at = l;
    return ld >= (int64_t)rows ? OK : INVALID_VALUE;
}

API int
cublasLtMatrixLayoutSetAttribute(void *of, int attribute, const void *value, size_t size)
{
    layout *l = of;

    if (attribute == BATCH && size == sizeof(l->batch)) {
        memcpy(&l->batch, value, size);
        return OK;
    }
    if (attribute == STRIDE && size == sizeof(l->stride)) {
        memcpy(&l->stride, value, size);
        return OK;
    }
    return INVALID_VALUE;
}

API int
cublasLtMatrixLayoutDestroy(void *l)
{
    free(l);
    return OK;
}

API int
cublasLtMatmulPreferenceCreate(void **at)
{
    pref *p = calloc(1, sizeof(*p));

    *p = (pref){0, 7, {256, 256, 256, 256}};
    *at = p;
    return OK;
}

API int
cublasLtMatmulPreferenceSetAttribute(void *of, int attribute, const void *value,
                                     size_t size)
{
    pref *p = of;

    if (attribute == PREF_WORKSPACE && size == sizeof(p->workspace)) {
        memcpy(&p->workspace, value, size);
    }
    else if (attribute == PREF_SCHEME && size == sizeof(p->scheme)) {
        memcpy(&p->scheme, value, size);
    }
    else if (attribute >= PREF_ALIGN_A && attribute < PREF_ALIGN_A + 4
             && size == sizeof(p->align[0]))
    {
        memcpy(&p->align[attribute - PREF_ALIGN_A], value, size);
    }
    else {
        return INVALID_VALUE;
    }
    return OK;
}

API int
cublasLtMatmulPreferenceDestroy(void *p)
{
    free(p);
    return OK;
}

/* Rows and columns of op(A), op(B) must fit each other and C. */
static int
fits(const desc *d, const layout *a, const layout *b, const layout *c)
{
    const uint64_t m = d->trans_a ? a->cols : a->rows, k = d->trans_a ? a->rows : a->cols;
    const uint64_t k2 = d->trans_b ? b->cols : b->rows, n = d->trans_b ? b->rows : b->cols;

    return m == c->rows && n == c->cols && k == k2 && a->type == b->type && c->type == R_32F
           && a->batch == c->batch && b->batch == c->batch;
}

API int
cublasLtMatmulAlgoGetHeuristic(void *handle, void *d, void *a, void *b, void *c, void *e,
                               void *of, int most, heuristic *found, int *count)
{
    static int asked;
    const char *refuse = getenv("RAP_FAKE_BLAS_REFUSE");
    const pref *p = of;

    *count = 0;
    questions++;
    if (handle == NULL || most < 1 || !fits(d, a, b, c) || e != c) {
        return INVALID_VALUE;
    }
    if (refuse != NULL && atoi(refuse) > 0 && ++asked % atoi(refuse) == 0) {
        return NOT_SUPPORTED;
    }
    memset(found, 0, sizeof(*found));
    for (int i = 0; i < 4; i++) {
        found->algo[i] = p->align[i];
    }
    found->algo[4] = p->scheme;
    found->algo[5] = shape_of(a, b, c);
    found->workspace = p->workspace;
    *count = 1;
    return OK;
}

static float
half(uint16_t h)
{
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    float x = exponent == 0 ? (float)mantissa * 0x1p-24f : 0;

    if (exponent == 31) {
        uint32_t u = 0x7f800000u | (uint32_t)mantissa << 13;

        memcpy(&x, &u, sizeof(x));
    }
    else if (exponent > 0) {
        uint32_t u = (uint32_t)(exponent + 112) << 23 | (uint32_t)mantissa << 13;

        memcpy(&x, &u, sizeof(x));
    }
    return h & 0x8000 ? -x : x;
}

static float
element(const char *data, int type, int64_t at)
{
    uint32_t bits;
    float x;

    if (type == R_32F) {
        return ((const float *)data)[at];
    }
    if (type == R_16F) {
        return half(((const uint16_t *)data)[at]);
    }
    bits = (uint32_t)((const uint16_t *)data)[at] << 16;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* Column-major: element (row, col) of a matrix is at row + col ld. */
static void
run(void *arg)
{
    const product *p = arg;
    const layout *a = &p->a, *b = &p->b, *c = &p->c;
    const int64_t depth = (int64_t)(p->d.trans_a ? a->rows : a->cols);

    memset(p->workspace, 0x5A, p->workspace_bytes);
    for (int64_t n = 0; n < c->batch; n++) {
        for (int64_t j = 0; j < (int64_t)c->cols; j++) {
            for (int64_t i = 0; i < (int64_t)c->rows; i++) {
                double sum = 0;

                for (int64_t k = 0; k < depth; k++) {
                    const int64_t at_a = p->d.trans_a ? k + i * a->ld : i + k * a->ld;
                    const int64_t at_b = p->d.trans_b ? j + k * b->ld : k + j * b->ld;

                    sum += (double)element(p->pa, a->type, n * a->stride + at_a)
                           * (double)element(p->pb, b->type, n * b->stride + at_b);
                }
                p->pc[n * c->stride + i + j * c->ld] = (float)sum;
            }
        }
    }
}

static void
queue(void *stream, void *arg)
{
    void (*put)(void *, void (*)(void *), void *) =
        (void (*)(void *, void (*)(void *), void *))fake_cuda("rap_fake_queue");

    put(stream, run, arg);
}

static int
is_aligned(const void *data, uint64_t bytes)
{
    return bytes > 0 && (uintptr_t)data % bytes == 0;
}

API int
cublasLtMatmul(void *handle, void *d, const void *alpha, const void *a, void *a_layout,
               const void *b, void *b_layout, const void *beta, const void *c,
               void *c_layout, void *out, void *out_layout, const uint64_t *algo,
               void *workspace, size_t workspace_bytes, void *stream)
{
    product *p;

    if (handle == NULL || *(unsigned long long *)handle != current_context()
        || *(const float *)alpha != 1 || *(const float *)beta != 0 || c != out
        || c_layout != out_layout || !is_aligned(a, algo[0]) || !is_aligned(b, algo[1])
        || !is_aligned(out, algo[2]) || (algo[4] & 1) != 0 || !is_aligned(workspace, 256)
        || algo[5] != shape_of(a_layout, b_layout, c_layout))
    {
        return INVALID_VALUE;
    }
    p = malloc(sizeof(*p));
    *p = (product){
        *(desc *)d, *(layout *)a_layout, *(layout *)b_layout, *(layout *)c_layout, a, b,
        out,        workspace,           workspace_bytes};
    queue(stream, p);
    products++;
    return OK;
}
