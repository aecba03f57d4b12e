// The driver's side of the emulated cuBLAS.
#include "blas.h"
#include "driver.h"

using namespace driver;

int emulated_product(void *handle, bool has_workspace, std::function<void()> run, const EmulatedUse *uses, size_t number) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture && !has_workspace) violation("a product is captured without a workspace");
    std::vector<Use> used;
    for (size_t at = 0; at < number; at++) used.push_back({uses[at].start, uses[at].bytes});
    auto checked = [used, run] {
        for (auto &use : used) {
            if (use.bytes && !is_allocated(use.start, use.bytes)) violation("a product goes beyond its allocation");
        }
        run();
        check_red_zones("a product");
        count("product");
    };
    return enqueue(stream, {"a product", checked, used});
}
