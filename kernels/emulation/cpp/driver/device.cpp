// Settings, the device and its context, errors, what is left at the end.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unistd.h>

#include "driver.h"

namespace driver {

static const char *variable(const char *name) {
    const char *value = std::getenv(name);
    return value && *value ? value : nullptr;
}

static uint64_t number(const char *name, uint64_t otherwise) {
    const char *value = variable(name);
    return value ? std::strtoull(value, nullptr, 10) : otherwise;
}

const Settings &settings() {
    // Never destroyed: the report at the end asks for them.
    static const Settings &all = *new Settings([] {
        Settings s{};
        std::string mode = variable("CUDA_EMULATION_MODE") ? variable("CUDA_EMULATION_MODE") : "eager";
        if (mode == "eager") {
            s.mode = Mode::Eager;
        } else if (mode == "lazy") {
            s.mode = Mode::Lazy;
        } else if (mode.rfind("random:", 0) == 0) {
            s.mode = Mode::Random;
            s.seed = std::strtoull(mode.c_str() + 7, nullptr, 10);
        } else {
            violation("CUDA_EMULATION_MODE is %s, and must be eager, lazy or random:SEED", mode.c_str());
        }
        const char *capability = variable("CUDA_EMULATION_CAPABILITY");
        if (!capability) capability = "9.0";
        if (std::sscanf(capability, "%d.%d", &s.major, &s.minor) != 2) violation("capability %s", capability);
        s.devices = (int)number("CUDA_EMULATION_DEVICES", 1);
        s.version = (int)number("CUDA_EMULATION_VERSION", 13000);
        s.memory = number("CUDA_EMULATION_MEMORY", 2ull << 30);
        s.failing_allocation = number("CUDA_EMULATION_FAIL_ALLOCATION", 0);
        s.failing_launch = number("CUDA_EMULATION_FAIL_LAUNCH", 0);
        s.trapping_launch = number("CUDA_EMULATION_TRAP_LAUNCH", 0);
        s.hanging_launch = number("CUDA_EMULATION_HANG_LAUNCH", 0);
        s.reuse = number("CUDA_EMULATION_REUSE", s.mode == Mode::Random) != 0;
        s.leaks = number("CUDA_EMULATION_LEAKS", 0) != 0;
        if (variable("CUDA_EMULATION_REPORT")) s.report = variable("CUDA_EMULATION_REPORT");
        return s;
    }());
    return all;
}

uint64_t random_below(uint64_t below) {
    static uint64_t state = settings().seed * 0x9E3779B97F4A7C15ull + 0xD1B54A32D192ED03ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % below;
}

void violation(const char *format, ...) {
    std::fputs("emulated driver: ", stderr);
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::abort();
}

// Never destroyed: threads may still call at the end.
static std::recursive_mutex &lock = *new std::recursive_mutex;
static int sticky_error;
static bool initialized;
// Of each device.
constexpr int MOST_DEVICES = 64;
static unsigned retained[MOST_DEVICES];
static char context_handles[MOST_DEVICES];
static thread_local int current = -1;

static bool is_device(int device) {
    return device >= 0 && device < settings().devices && device < MOST_DEVICES;
}
int current_device() {
    return current;
}

void set_sticky(int error) {
    if (!sticky_error) sticky_error = error;
}
int sticky() {
    return sticky_error;
}

static std::string &hanging = *new std::string;
void hang(const std::string &kernel) {
    hanging = kernel;
}
bool hangs() {
    return !hanging.empty();
}
void waits_for_ever() {
    if (hangs()) violation("the host waits for ever, as %s does not end", hanging.c_str());
}

Call::Call(bool needs_context) : error(SUCCESS) {
    lock.lock();
    if (!initialized) {
        error = NOT_INITIALIZED;
    } else if (needs_context && (current < 0 || retained[current] == 0)) {
        error = INVALID_CONTEXT;
    } else if (needs_context) {
        a_call_passes();
        error = sticky_error;
    }
}
Call::~Call() {
    lock.unlock();
}

static size_t contexts_alive() {
    size_t all = 0;
    for (unsigned of_device : retained) all += of_device;
    return all;
}

Alive &alive() {
    static Alive &all = *new Alive;
    return all;
}

static std::map<std::string, uint64_t> &counts() {
    static auto &all = *new std::map<std::string, uint64_t>;
    return all;
}
void count(const std::string &what) {
    counts()[what]++;
}

// At the end of the process: the report, and what was never given back.
static struct AtTheEnd {
    ~AtTheEnd() {
        if (!settings().report.empty()) {
            if (FILE *file = std::fopen(settings().report.c_str(), "w")) {
                for (auto &[what, times] : counts()) std::fprintf(file, "%s %llu\n", what.c_str(), (unsigned long long)times);
                std::fclose(file);
            }
        }
        if (!settings().leaks || sticky_error || hangs()) return;
        std::pair<const char *, size_t> left[] = {
            {"allocations", allocations_alive()},         {"pinned allocations", pinned_alive()},
            {"streams", alive().streams.size()},          {"events", alive().events.size()},
            {"graphs", alive().graphs.size()},            {"executable graphs", alive().executables.size()},
            {"modules", alive().modules.size()},          {"retained contexts", contexts_alive()},
        };
        bool any = false;
        for (auto &[what, number] : left) {
            if (number == 0) continue;
            any = true;
            std::fprintf(stderr, "emulated driver: %zu %s were never given back\n", number, what);
        }
        if (any) _exit(86);
    }
} at_the_end;

}  // namespace driver

using namespace driver;

API cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (settings().devices == 0) return NO_DEVICE;
    initialized = true;
    install_fault_handler();
    return SUCCESS;
}

API cuDriverGetVersion(int *version) {
    if (!version) return INVALID_VALUE;
    *version = settings().version;
    return SUCCESS;
}

API cuDeviceGetCount(int *devices) {
    Call call(false);
    if (call.error) return call.error;
    *devices = settings().devices;
    return SUCCESS;
}

API cuDeviceGet(int *device, int ordinal) {
    Call call(false);
    if (call.error) return call.error;
    if (ordinal < 0 || ordinal >= settings().devices) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API cuDeviceGetName(char *name, int length, int device) {
    Call call(false);
    if (call.error) return call.error;
    if (!is_device(device) || length < 1) return INVALID_DEVICE;
    std::snprintf(name, (size_t)length, "Emulated GPU %d.%d", settings().major, settings().minor);
    return SUCCESS;
}

// The same for all processes of a machine.
API cuDeviceGetUuid_v2(char *uuid, int device) {
    Call call(false);
    if (call.error) return call.error;
    if (!is_device(device)) return INVALID_DEVICE;
    std::memset(uuid, 0, 16);
    std::memcpy(uuid, "emulated", 8);
    uuid[15] = (char)device;
    return SUCCESS;
}

API cuDeviceTotalMem_v2(size_t *bytes, int device) {
    Call call(false);
    if (call.error) return call.error;
    if (!is_device(device)) return INVALID_DEVICE;
    *bytes = settings().memory;
    return SUCCESS;
}

API cuDeviceGetAttribute(int *value, int attribute, int device) {
    Call call(false);
    if (call.error) return call.error;
    if (!is_device(device)) return INVALID_DEVICE;
    switch (attribute) {
        case 8: *value = 48 * 1024; return SUCCESS;        // MAX_SHARED_MEMORY_PER_BLOCK
        case 13: *value = 1500000; return SUCCESS;         // CLOCK_RATE
        case 16: *value = 3; return SUCCESS;               // MULTIPROCESSOR_COUNT
        case 36: *value = 2000000; return SUCCESS;         // MEMORY_CLOCK_RATE
        case 37: *value = 4096; return SUCCESS;            // GLOBAL_MEMORY_BUS_WIDTH
        case 38: *value = 4 << 20; return SUCCESS;         // L2_CACHE_SIZE
        case 75: *value = settings().major; return SUCCESS;
        case 76: *value = settings().minor; return SUCCESS;
        case 97: *value = (settings().major == 9 ? 227 : 163) * 1024; return SUCCESS;
        default: violation("device attribute %d is not emulated", attribute);
    }
}

API cuDevicePrimaryCtxRetain(void **context, int device) {
    Call call(false);
    if (call.error) return call.error;
    if (!is_device(device)) return INVALID_DEVICE;
    retained[device]++;
    count("contexts");
    *context = &context_handles[device];
    return SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(int device) {
    Call call(false);
    if (call.error) return call.error;
    if (!is_device(device)) return INVALID_DEVICE;
    if (retained[device] == 0) return INVALID_CONTEXT;
    retained[device]--;
    return SUCCESS;
}

API cuCtxSetCurrent(void *context) {
    Call call(false);
    if (call.error) return call.error;
    if (!context) return current = -1, SUCCESS;
    auto device = (int)((char *)context - context_handles);
    if (context < (void *)context_handles || !is_device(device) || retained[device] == 0) return INVALID_CONTEXT;
    current = device;
    return SUCCESS;
}

API cuCtxGetCurrent(void **context) {
    Call call(false);
    if (call.error) return call.error;
    *context = current < 0 ? nullptr : &context_handles[current];
    return SUCCESS;
}

API cuCtxSynchronize() {
    Call call;
    if (call.error) return call.error;
    if (any_capture()) return STREAM_CAPTURE_UNSUPPORTED;
    drain();
    return sticky_error;
}

// NVRTC asks the driver for private functions, and does without them if there are none.
API cuGetExportTable(const void **table, const void *) {
    if (table) *table = nullptr;
    return NOT_FOUND;
}

static const struct {
    int code;
    const char *name, *text;
} ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
     "capturing stream has unjoined work"},
    {STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
     "dependency created on uncaptured work in another stream"},
    {STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
};

API cuGetErrorName(int error, const char **name) {
    for (auto &entry : ERRORS) {
        if (entry.code == error) return *name = entry.name, SUCCESS;
    }
    return *name = nullptr, INVALID_VALUE;
}

API cuGetErrorString(int error, const char **text) {
    for (auto &entry : ERRORS) {
        if (entry.code == error) return *text = entry.text, SUCCESS;
    }
    return *text = nullptr, INVALID_VALUE;
}
