// What the emulated cuBLAS asks of the emulated driver.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

struct EmulatedUse {
    const void *start;
    size_t bytes;
};
// Queues a product on a stream. Without a workspace of the caller's it may not be captured: cuBLAS would allocate one.
__attribute__((visibility("default"))) int emulated_product(void *stream, bool has_workspace, std::function<void()> run,
                                                            const EmulatedUse *uses, size_t count);
