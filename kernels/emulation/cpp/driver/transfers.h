// What the emulated NCCL asks of the emulated driver.
#pragma once
#include <cstddef>
#include <functional>

struct EmulatedMemory {
    const void *start;
    size_t bytes;
};
#define FOR_NCCL __attribute__((visibility("default")))

// Queues an exchange with other ranks on a stream. When the stream comes to it, `begin` reads what is sent; the stream goes no further
// before `arrived` says so, which with `wait` waits for it; `end` then writes what was received. It may not be captured, which
// is told by CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED.
FOR_NCCL int emulated_exchange(void *stream, std::function<void()> begin, std::function<bool(bool wait)> arrived,
                               std::function<void()> end, const EmulatedMemory *uses, size_t count);
// Whether all of it lies within one allocation of the device's memory.
FOR_NCCL bool emulated_is_allocated(const void *start, size_t bytes);
// The number of the device whose context is current; -1 without one.
FOR_NCCL int emulated_device();
// Ends the process as the driver does.
[[noreturn]] FOR_NCCL void emulated_violation(const char *text);
