/* SPDX-License-Identifier: Apache-2.0
 *
 * CONTRACT: put before every source of a wheel (RAP_PORTABLE=1 in setup.py), so that it
 * runs on older systems than the one that built it.
 *
 * glibc gave these functions new versions when they moved from libpthread and libdl into
 * libc (2.32, 2.34), or lost their wrapper for error handling (2.29, of libm; errno is not
 * read here, and the values are the same). Both versions are in every later glibc. With the
 * old ones the newest that is left is clock_gettime, of 2.17.
 */
#ifndef RAP_GLIBC_H
#define RAP_GLIBC_H

#include <features.h>

#if defined(__GLIBC__) && defined(__x86_64__)
#define RAP_OLDER(name, version) __asm__(".symver " #name "," #name "@GLIBC_" version)
#elif defined(__GLIBC__) && defined(__aarch64__) /* its first glibc is 2.17 */
#define RAP_OLDER(name, version) __asm__(".symver " #name "," #name "@GLIBC_2.17")
#endif
#if defined(RAP_OLDER)
RAP_OLDER(exp2, "2.2.5");
RAP_OLDER(log, "2.2.5");
RAP_OLDER(log2, "2.2.5");
RAP_OLDER(dlerror, "2.2.5");
RAP_OLDER(dlopen, "2.2.5");
RAP_OLDER(dlsym, "2.2.5");
RAP_OLDER(pthread_condattr_setclock, "2.3.3");
RAP_OLDER(pthread_create, "2.2.5");
RAP_OLDER(pthread_join, "2.2.5");
RAP_OLDER(pthread_mutex_trylock, "2.2.5");
RAP_OLDER(pthread_sigmask, "2.2.5");
#undef RAP_OLDER
#endif

#endif
