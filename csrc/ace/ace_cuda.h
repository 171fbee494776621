/* SPDX-License-Identifier: Apache-2.0
 *
 * What ace_cuda.c hands to the kernels of ace_cuda.cu: the struct of ace_launch_cuda.h, which
 * the form on tensor cores has as a part.
 */
#ifndef RAP_ACE_CUDA_H
#define RAP_ACE_CUDA_H

#include "ace_launch_cuda.h"

#endif
