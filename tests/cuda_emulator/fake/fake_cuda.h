/* SPDX-License-Identifier: Apache-2.0
 *
 * What tests (through ctypes) and the fake cuBLASLt call in the fake libcuda.
 */
#ifndef RAP_FAKE_CUDA_H
#define RAP_FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

#define RAP_FAKE_PUBLIC __attribute__((visibility("default")))

/* Device memory that ends at a page nobody may touch, full of NaN. */
RAP_FAKE_PUBLIC uint64_t rap_fake_alloc(int device, size_t bytes);
/* In stream order, as a caching allocator would reuse it. */
RAP_FAKE_PUBLIC void rap_fake_release(uint64_t pointer, void *stream);
/* Wait for everything, then copy. */
RAP_FAKE_PUBLIC int rap_fake_write(uint64_t to, const void *from, size_t bytes);
RAP_FAKE_PUBLIC int rap_fake_read(void *to, uint64_t from, size_t bytes);
/* Non-blocking. */
RAP_FAKE_PUBLIC void *rap_fake_stream(int device);
/* The stream is destroyed: its handle is no stream any more. */
RAP_FAKE_PUBLIC void rap_fake_lose_stream(void *stream);
/* From now on the work of this stream goes into a graph; NULL: the graph is complete. */
RAP_FAKE_PUBLIC void rap_fake_capture(void *stream);
RAP_FAKE_PUBLIC void rap_fake_replay(void);
/* Host memory that is pinned from now on: uploads read it late. */
RAP_FAKE_PUBLIC void rap_fake_pin(const void *from, size_t bytes);
/* Of the context that is current; 0: none. */
RAP_FAKE_PUBLIC unsigned long long rap_fake_context(void);
/* Runs fn(arg) late, on `stream`, with device memory open; arg is freed after. */
RAP_FAKE_PUBLIC void rap_fake_queue(void *stream, void (*fn)(void *), void *arg);
/* The nth call from now of the entry point `name` answers `code`; nth 0: no call does. */
RAP_FAKE_PUBLIC void rap_fake_fail(const char *name, int nth, int code);
/* As cudaDeviceReset: the primary context dies, the next retain makes another. */
RAP_FAKE_PUBLIC void rap_fake_reset(int device);
/* Counts that must come back to what they were: "allocations", "retained", "bound",
 * "queued"; and those that only rise: "launches", "waits", "modules". */
RAP_FAKE_PUBLIC long rap_fake_count(const char *what);
RAP_FAKE_PUBLIC const char *rap_fake_problem(void); /* what a test must fail for, or "" */

#endif
