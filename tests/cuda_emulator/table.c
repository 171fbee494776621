/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels by name. RAP_KERNEL leaves an entry beside each; build.py writes the list of
 * those it finds in the .cu files into entries.h.
 */
#include "emulator.h"

#define ENTRY(name) extern const rap_emu_kernel name##_entry;
#include "entries.h"
#undef ENTRY

RAP_EMU_PUBLIC const rap_emu_kernel *
rap_emu_table(int *count)
{
#define ENTRY(name) 1 +
    enum {
        COUNT =
#include "entries.h"
            0
    };
#undef ENTRY
    static rap_emu_kernel table[COUNT];
    int i = 0;

#define ENTRY(name) table[i++] = name##_entry;
#include "entries.h"
#undef ENTRY
    *count = COUNT;
    return table;
}
