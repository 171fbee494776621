/* SPDX-License-Identifier: Apache-2.0
 *
 * runner SCRIPT ANSWER: a sequence of launches from a file, so that kernels can run under
 * sanitizers in a process of their own. Written and read by emulator.py:
 *
 *   u32 buffers, launches; u64 seed; the bytes to fill memory with are the buffers' own
 *   a buffer:  u64 size, bytes
 *   a launch:  char name[64]; u32 grid, block, param_size, pointers; param bytes;
 *              a pointer: u32 offset in the params, u32 buffer; u64 offset in the buffer
 *   answer:    the buffers' bytes after the last launch
 *
 * Every buffer is an allocation of its own size, 256-byte aligned as on a device, so that
 * AddressSanitizer sees one byte too far.
 */
#include <stdio.h>
#include <stdlib.h>

#include "emulator.h"

typedef struct {
    uint64_t size;
    char *data;
} buffer;

typedef struct {
    char name[64];
    uint32_t grid, block, param_size, pointers;
} launch;

static void
get(FILE *file, void *data, size_t size)
{
    if (size > 0 && fread(data, size, 1, file) != 1) {
        fprintf(stderr, "script too short\n");
        exit(2);
    }
}

static const rap_emu_kernel *
find(const char *name)
{
    int count;
    const rap_emu_kernel *table = rap_emu_table(&count);

    for (int i = 0; i < count; i++) {
        if (strcmp(table[i].name, name) == 0) {
            return &table[i];
        }
    }
    fprintf(stderr, "no kernel %s\n", name);
    exit(2);
}

static void
read_params(FILE *file, const launch *l, const buffer *buffers, char *params)
{
    get(file, params, l->param_size);
    for (uint32_t i = 0; i < l->pointers; i++) {
        struct {
            uint32_t at, buffer;
            uint64_t offset;
        } p;
        char *target;

        get(file, &p, sizeof(p));
        target = buffers[p.buffer].data + p.offset;
        memcpy(params + p.at, &target, sizeof(target));
    }
}

static void
run(FILE *file, const buffer *buffers, uint64_t seed)
{
    const rap_emu_kernel *kernel;
    unsigned grid[3] = {1, 1, 1}, block[3] = {1, 1, 1};
    char *params;
    launch l;

    get(file, &l, sizeof(l));
    kernel = find(l.name);
    params = malloc(l.param_size);
    read_params(file, &l, buffers, params);
    grid[0] = l.grid;
    block[0] = l.block;
    if (l.param_size != kernel->param_size || (int)l.block > kernel->max_threads) {
        fprintf(stderr, "%s: params of %u bytes, block of %u\n", l.name, l.param_size,
                l.block);
        exit(2);
    }
    if (rap_emu_launch(kernel->fn, grid, block, 0, (void *[]){params}, seed) != 0) {
        fprintf(stderr, "%s: %s\n", l.name, rap_emu_error());
        exit(3);
    }
    free(params);
}

int
main(int argc, char **argv)
{
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
    uint32_t count[2];
    uint64_t seed;
    buffer *buffers;

    if (file == NULL) {
        fprintf(stderr, "usage: runner SCRIPT ANSWER\n");
        return 2;
    }
    get(file, count, sizeof(count));
    get(file, &seed, sizeof(seed));
    buffers = calloc(count[0] + 1, sizeof(buffer));
    for (uint32_t i = 0; i < count[0]; i++) {
        get(file, &buffers[i].size, sizeof(buffers[i].size));
        if (posix_memalign((void **)&buffers[i].data, 256, buffers[i].size) != 0) {
            return 2;
        }
        get(file, buffers[i].data, buffers[i].size);
    }
    for (uint32_t i = 0; i < count[1]; i++) {
        run(file, buffers, seed + i);
    }
    fclose(file);
    file = fopen(argv[2], "wb");
    for (uint32_t i = 0; i < count[0]; i++) {
        fwrite(buffers[i].data, buffers[i].size, 1, file);
        free(buffers[i].data);
    }
    free(buffers);
    return fclose(file);
}
