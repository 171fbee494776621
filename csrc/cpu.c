/* SPDX-License-Identifier: Apache-2.0 */
#include "cpu.h"

#include <string.h>

#include "isa/isa.h"

/* Best first. __builtin_cpu_supports also asks whether the system saves the registers. */
static int
available(const rap_kernels **table)
{
    int n = 0;

#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    {
        if (__builtin_cpu_supports("avx512bf16")) {
            table[n++] = &rap_kernels_avx512_bf16;
        }
        table[n++] = &rap_kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __builtin_cpu_supports("f16c"))
    {
        table[n++] = &rap_kernels_avx2;
    }
#elif defined(__aarch64__)
    table[n++] = &rap_kernels_neon;
#endif
    table[n++] = &rap_kernels_scalar;
    return n;
}

const rap_kernels *
rap_cpu_table(const char *name)
{
    const rap_kernels *table[4];
    int n = available(table);

    for (int i = 0; i < n; i++) {
        if (name == NULL || strcmp(name, table[i]->name) == 0) {
            return table[i];
        }
    }
    return NULL;
}

int
rap_cpu_names(const char **names, int most)
{
    const rap_kernels *table[4];
    int n = RAP_MIN(available(table), most);

    for (int i = 0; i < n; i++) {
        names[i] = table[i]->name;
    }
    return n;
}
