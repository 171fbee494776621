/* SPDX-License-Identifier: Apache-2.0
 *
 * The words of csrc/cuda/tensor_device.h for the host. Every lane hands in its fragments and takes
 * from the others what the PTX ISA says it holds, so that a fragment in the wrong place gives
 * a wrong product. As on a device, a fetch is early and late: from its start on the place
 * holds NaN, at the wait it is copied; both are this thread's own writes for the sanitizers.
 *
 * A product's sums are exact and then cut off, not rounded, to float32: no kinder than the
 * tensor cores, which align and cut off.
 */
#ifndef RAP_EMULATOR_TENSOR_H
#define RAP_EMULATOR_TENSOR_H

RAP_HD void
rap_fetch16(void *to, const void *from, int bytes)
{
    rap_emu_fetches *f = rap_emu_fetches_here();

    if ((uintptr_t)to % 16 != 0 || (uintptr_t)from % 16 != 0) {
        rap_emu_misaligned((uintptr_t)to % 16 != 0 ? to : from);
    }
    if (f->count == RAP_EMU_FETCHES || bytes < 0 || bytes > 16) {
        rap_emu_bad_fetch(f->count, bytes);
    }
    for (int at = 0; at < 16; at++) {
        ((unsigned char *)to)[at] = 0xff;
    }
    f->fetch[f->count].to = to;
    f->fetch[f->count].from = from;
    f->fetch[f->count++].bytes = bytes;
}

RAP_HD void
rap_fetch_wait(void)
{
    rap_emu_fetches *f = rap_emu_fetches_here();

    for (int i = 0; i < f->count; i++) {
        const char *from = (const char *)f->fetch[i].from;
        char *to = (char *)f->fetch[i].to;

        for (int at = 0; at < 16; at++) {
            to[at] = at < f->fetch[i].bytes ? from[at] : 0;
        }
    }
    f->count = 0;
}

RAP_HD void
rap_ldmatrix4(const void *row, uint32_t *x)
{
    const uintptr_t at = (uintptr_t)row;
    const uint32_t own[RAP_EMU_WORDS] = {(uint32_t)at, (uint32_t)(at >> 32)};
    const int lane = rap_thread() & 31;
    const uint32_t (*all)[RAP_EMU_WORDS];

    if (at % 16 != 0) {
        rap_emu_misaligned(row);
    }
    all = rap_emu_gather(own);
    for (int m = 0; m < 4; m++) {
        const uint32_t *said = all[8 * m + lane / 4];
        const uintptr_t from = (uintptr_t)said[0] | (uintptr_t)said[1] << 32;

        memcpy(&x[m], (const char *)from + 4 * (lane % 4), 4);
    }
}

RAP_HD double
rap_emu_half_of(uint32_t pair, int which, int dtype)
{
    const uint16_t half = (uint16_t)(which == 0 ? pair & 0xffffu : pair >> 16);

    return dtype == RAP_BF16 ? rap_bf16_to_f32(half) : rap_f16_to_f32(half);
}

RAP_HD float
rap_emu_cut_off(double x)
{
    const float near = (float)x;

    return isfinite(near) && fabs((double)near) > fabs(x) ? nextafterf(near, 0) : near;
}

RAP_HD void
rap_mma(float *c, const uint32_t *a, const uint32_t *b, int dtype)
{
    const uint32_t own[RAP_EMU_WORDS] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const uint32_t (*all)[RAP_EMU_WORDS] = rap_emu_gather(own);
    const int lane = rap_thread() & 31;

    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
        double sum = c[i];

        for (int k = 0; k < 16; k++) {
            const int from = k % 8 / 2;
            const uint32_t left = all[row % 8 * 4 + from][row / 8 + 2 * (k / 8)];
            const uint32_t right = all[column * 4 + from][4 + k / 8];

            sum +=
                rap_emu_half_of(left, k % 2, dtype) * rap_emu_half_of(right, k % 2, dtype);
        }
        c[i] = rap_emu_cut_off(sum);
    }
}

RAP_HD int
rap_thread_again(void)
{
    return rap_thread();
}

#endif
