// The driver's side of the emulated NCCL.
#include "transfers.h"
#include "driver.h"

using namespace driver;

int emulated_exchange(void *handle, std::function<void()> begin, std::function<bool(bool)> arrived, std::function<void()> end,
                      const EmulatedMemory *uses, size_t number) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return invalidate(*stream->capture), STREAM_CAPTURE_UNSUPPORTED;
    std::vector<Use> used;
    for (size_t at = 0; at < number; at++) used.push_back({uses[at].start, uses[at].bytes});
    auto check = [used] {
        for (auto &use : used) {
            if (!is_allocated(use.start, use.bytes)) violation("an exchange runs after its memory was freed");
        }
    };
    auto begun = std::make_shared<bool>(false);
    Work work{"an exchange with other ranks", nullptr, used};
    work.arrived = [=](bool wait) {
        if (!*begun) {
            Opened opened;
            check();
            begin();
            *begun = true;
        }
        return arrived(wait);
    };
    work.run = [=] {
        check();
        end();
        check_red_zones("an exchange");
        count("exchange");
    };
    return enqueue(stream, std::move(work));
}

bool emulated_is_allocated(const void *start, size_t bytes) {
    Call call;
    return is_allocated(start, bytes);
}

int emulated_device() {
    return current_device();
}

void emulated_violation(const char *text) {
    violation("%s", text);
}
