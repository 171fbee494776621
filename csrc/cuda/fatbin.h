/* SPDX-License-Identifier: Apache-2.0
 *
 * The device code inside this extension: one fat binary a kernel module. setup.py writes the table
 * (build/cuda/fatbins.c); without nvcc it is empty and the build is for the CPU only.
 */
#ifndef RAP_FATBIN_H
#define RAP_FATBIN_H

#include <stddef.h>

typedef struct {
    const char *kernels; /* "cde": from csrc/cde/cde_cuda.cu */
    const unsigned char *image, *end;
} rap_fatbin;

extern const rap_fatbin rap_fatbins[]; /* ends with kernels == NULL */
extern const char
    rap_fatbin_made[]; /* "CUDA 13.0, sm_80 ... + PTX", or why there is none */
extern const int rap_fatbin_toolkit; /* 13000: what cuDriverGetVersion must reach */

#endif
