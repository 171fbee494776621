"""The CUDA kernels on a machine without a GPU.

The .cu files are built as C: each CUDA thread is a fiber (fiber.c), the words of
csrc/cuda/device.h have twins (emulator.h). Checks hold the kernels against the float64
specification, under 20 random schedules with shared memory full of 0xFF, ThreadSanitizer
with fibers, AddressSanitizer and UBSan (checks_*.py); bugs.py seeds bugs that they must
catch; gates.py reads what nvcc made of the same files.

What this cannot show: visibility in the real memory model beyond barriers, warp operations
and the one ticket; the device's own rounding of float64 log, exp2 and sqrt (float32 maths
is hd.h's on both); bank conflicts, coalescing, speed; and what nvcc's own bugs would do. A
kernel that has passed here has still never run on a GPU.
"""
