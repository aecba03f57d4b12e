// The device's memory, pinned memory of the host, copies between them.
//
// Device memory is host memory that can be touched only while the driver works: host code that follows a device pointer
// faults. Allocations lie between red zones whose content is checked after every kernel. New memory holds NaN.
#include <csignal>
#include <cstdio>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"

namespace driver {

constexpr size_t REGION = 1ull << 40, PAGE = 4096, RED_ZONE = 256;
// Larger allocations are filled at both ends only, which keeps the others' pages out of memory.
constexpr size_t FILLED = 4 << 20;

struct Allocation {
    char *first, *start, *last;  // the pages, and where the caller's bytes begin
    size_t bytes;
};
static char *region, *next_page;
static std::map<const char *, Allocation> &allocations = *new std::map<const char *, Allocation>;
static std::multimap<size_t, char *> &given_back = *new std::multimap<size_t, char *>;  // by size
struct Pinned {
    size_t bytes;
    bool mapped;
};
static std::map<const char *, Pinned> &pinned = *new std::map<const char *, Pinned>;
static std::vector<std::pair<char *, char *>> runs;  // neighbouring allocations
static size_t used, opened;
static uint64_t allocation_number;
const char *volatile running;

static void protect(int protection) {
    for (auto &[first, last] : runs) {
        if (mprotect(first, (size_t)(last - first), protection)) violation("mprotect failed");
    }
}

static void find_runs() {
    runs.clear();
    for (auto &[start, a] : allocations) {
        if (!runs.empty() && runs.back().second == a.first) runs.back().second = a.last;
        else runs.emplace_back(a.first, a.last);
    }
}

Opened::Opened() {
    if (opened++ == 0) protect(PROT_READ | PROT_WRITE);
}
Opened::~Opened() {
    if (--opened == 0) protect(PROT_NONE);
}

bool in_device_region(const void *address) {
    return region && (const char *)address >= region && (const char *)address < region + REGION;
}

static const Allocation *find(const void *start) {
    auto after = allocations.upper_bound((const char *)start);
    return after == allocations.begin() ? nullptr : &std::prev(after)->second;
}

// An empty range at the end of an allocation belongs to it.
bool is_allocated(const void *start, size_t bytes) {
    const Allocation *a = find(start);
    return a && bytes <= a->bytes && (const char *)start <= a->start + a->bytes - bytes;
}

static const Pinned *find_pinned(const void *start, size_t bytes) {
    auto after = pinned.upper_bound((const char *)start);
    if (after == pinned.begin()) return nullptr;
    auto &[first, memory] = *std::prev(after);
    return bytes <= memory.bytes && (const char *)start <= first + memory.bytes - bytes ? &memory : nullptr;
}

bool is_mapped(const void *address) {
    const Pinned *memory = find_pinned(address, 0);
    return memory && memory->mapped;
}

// A red zone's content: NaN as float32, bfloat16 and float64, and unlikely as a result.
static const char *zone_content(const char *address) {
    static char content[2 * PAGE];
    for (size_t at = content[0] ? sizeof content : 0; at < sizeof content; at++) content[at] = at % 2 ? (char)0xff : (char)0xe5;
    return content + (uintptr_t)address % 2;
}

template <class Visit>
static void zones(const Allocation &a, Visit visit) {
    visit(a.first, RED_ZONE);
    visit(a.start + a.bytes, (size_t)(a.last - a.start) - a.bytes);
}

void check_red_zones(const char *after) {
    for (auto &[start, allocation] : allocations) {
        const Allocation &a = allocation;
        zones(a, [&](const char *at, size_t bytes) {
            const char *content = zone_content(at);
            if (std::memcmp(at, content, bytes) == 0) return;
            while (*at == *content) at++, content++;
            violation("%s wrote %td bytes from the start of an allocation of %zu", after, at - a.start, a.bytes);
        });
    }
}

static struct sigaction before;
static void on_fault(int signal, siginfo_t *info, void *context) {
    if (in_device_region(info->si_addr)) {
        char text[200];
        int length = running ? std::snprintf(text, sizeof text, "emulated driver: %s touches device memory that is not allocated\n", running)
                             : std::snprintf(text, sizeof text, "emulated driver: the host touches device memory\n");
        (void)!write(2, text, (size_t)length);
        std::abort();
    }
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(signal, info, context);
    std::signal(signal, SIG_DFL);
}
void install_fault_handler() {
    static bool done;
    if (done) return;
    done = true;
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before);
}

size_t allocations_alive() {
    return allocations.size();
}
size_t pinned_alive() {
    return pinned.size();
}

}  // namespace driver

using namespace driver;

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    Call call;
    if (call.error) return call.error;
    *total = settings().memory;
    *free = settings().memory - used;
    return SUCCESS;
}

API cuMemAlloc_v2(void **pointer, size_t bytes) {
    Call call;
    if (call.error) return call.error;
    if (int error = forbidden_while_capturing()) return error;
    if (!pointer || bytes == 0) return INVALID_VALUE;
    if (++allocation_number == settings().failing_allocation || bytes > settings().memory - used) return OUT_OF_MEMORY;
    if (!region) {
        void *at = mmap(nullptr, REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) violation("no address space");
        region = next_page = (char *)at;
    }
    // No better aligned than a real driver promises.
    size_t size = (RED_ZONE + bytes + RED_ZONE + PAGE - 1) / PAGE * PAGE;
    char *first = next_page;
    auto old = settings().reuse ? given_back.find(size) : given_back.end();
    if (old != given_back.end()) {
        first = old->second;
        given_back.erase(old);
    } else {
        if ((size_t)(region + REGION - next_page) < size) return OUT_OF_MEMORY;
        next_page += size;
    }
    Allocation a{first, first + RED_ZONE, first + size, bytes};
    if (mprotect(first, size, PROT_READ | PROT_WRITE)) violation("mprotect failed");
    size_t part = bytes < FILLED ? bytes : FILLED / 2;
    std::memset(a.start, 0xff, part);
    std::memset(a.start + bytes - part, 0xff, part);
    zones(a, [](char *at, size_t count) { std::memcpy(at, zone_content(at), count); });
    if (!opened) mprotect(first, size, PROT_NONE);
    allocations[a.start] = a;
    find_runs();
    used += bytes;
    *pointer = a.start;
    return SUCCESS;
}

API cuMemFree_v2(void *pointer) {
    Call call;
    if (call.error) return call.error;
    if (!pointer) return SUCCESS;
    if (int error = forbidden_while_capturing()) return error;
    auto found = allocations.find((const char *)pointer);
    if (found == allocations.end()) return INVALID_VALUE;
    drain();  // as the real one does
    Allocation a = found->second;
    allocations.erase(found);
    find_runs();
    used -= a.bytes;
    size_t size = (size_t)(a.last - a.first);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(a.first, size, PROT_NONE, flags, -1, 0) == MAP_FAILED) violation("mmap failed");
    given_back.emplace(size, a.first);
    return sticky();
}

API cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    enum { DEVICEMAP = 2 };
    Call call;
    if (call.error) return call.error;
    if (int error = forbidden_while_capturing()) return error;
    if (!pointer || bytes == 0) return INVALID_VALUE;
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    std::memset(at, 0xff, bytes);
    pinned[(const char *)at] = {bytes, (flags & DEVICEMAP) != 0};
    *pointer = at;
    return SUCCESS;
}

API cuMemFreeHost(void *pointer) {
    Call call;
    if (call.error) return call.error;
    if (int error = forbidden_while_capturing()) return error;
    auto found = pinned.find((const char *)pointer);
    if (found == pinned.end()) return INVALID_VALUE;
    std::string who;
    size_t bytes = found->second.bytes;
    if (uses_memory(pointer, bytes, &who)) violation("pinned memory was freed while %s is queued that uses it", who.c_str());
    munmap(pointer, bytes);
    pinned.erase(found);
    return SUCCESS;
}

static int copy_async(const char *name, void *to, const void *from, size_t bytes, bool host_to, bool host_from, void *handle) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (bytes == 0) return SUCCESS;
    const void *host = host_to ? to : host_from ? from : nullptr;
    if (host && !find_pinned(host, bytes)) violation("%s of %zu bytes with memory that is not pinned", name, bytes);
    if (!host_to && !is_allocated(to, bytes)) return INVALID_VALUE;
    if (!host_from && !is_allocated(from, bytes)) return INVALID_VALUE;
    if (host_from) count("uploads");
    // Until the copy is done nobody may count on what is there.
    if (host_to && !stream->capture) std::memset(to, 0xff, bytes);
    auto run = [=] {
        if ((!host_to && !is_allocated(to, bytes)) || (!host_from && !is_allocated(from, bytes))) {
            violation("%s runs after its device memory was freed", name);
        }
        std::memcpy(to, from, bytes);
    };
    OperationRef queued;
    int error = enqueue(stream, {name, run, {{to, bytes}, {from, bytes}}}, {}, &queued);
    if (host_from && queued) count("uploads-beside-" + std::to_string(graphs_beside(queued)) + "-graphs");
    return error;
}

API cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    return copy_async("an upload", to, from, bytes, false, true, stream);
}
API cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    return copy_async("a download", to, from, bytes, true, false, stream);
}
API cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t bytes, void *stream) {
    return copy_async("a copy on the device", to, from, bytes, false, false, stream);
}

// On the default stream, waited for: after the blocking streams' work, not after the others'.
static int copy_now(void *to, const void *from, size_t bytes, const void *device) {
    Call call;
    if (call.error) return call.error;
    if (int error = forbidden_while_capturing()) return error;
    if (bytes == 0) return SUCCESS;
    if (!is_allocated(device, bytes)) return INVALID_VALUE;
    auto run = [=] { std::memcpy(to, from, bytes); };
    if (int error = enqueue(stream_of(nullptr), {"a synchronous copy", run, {{to, bytes}, {from, bytes}}})) return error;
    drain(stream_of(nullptr));
    return sticky();
}
API cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) {
    return copy_now(to, from, bytes, from);
}
API cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) {
    return copy_now(to, from, bytes, to);
}

API cuMemsetD8Async(void *to, unsigned char value, size_t bytes, void *handle) {
    Call call;
    if (call.error) return call.error;
    Stream *stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (bytes == 0) return SUCCESS;
    if (!is_allocated(to, bytes)) return INVALID_VALUE;
    auto run = [=] {
        if (!is_allocated(to, bytes)) violation("a memset runs after its memory was freed");
        std::memset(to, value, bytes);
    };
    return enqueue(stream, {"a memset", run, {{to, bytes}}});
}
