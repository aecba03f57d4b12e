// Modules from cubins: what the compiler wrote about its kernels is what launches are checked against; what runs is the
// emulated kernel of the same name.
#include <cstdio>
#include <cstring>
#include <elf.h>
#include <map>

#include "driver.h"
#include "kernels.h"

namespace driver {

struct Module;
struct Function {
    std::string name;
    Module *module;
    const Kernel *kernel;
    std::vector<unsigned> sizes;  // of the parameters
    unsigned registers, max_threads, static_shared, dynamic_shared;
};
struct Module {
    std::map<std::string, std::unique_ptr<Function>> functions;
};

// Room for one parameter, aligned for the largest there is.
struct alignas(128) Parameter {
    unsigned char bytes[128];
};

constexpr unsigned PLAIN_SHARED = 48 * 1024, REGISTERS = 65536, NVIDIA_CUDA = 190;
constexpr uint64_t TENSOR_MAP = 0x70616d20726f736eull;  // marks what cuTensorMapEncodeTiled made

static unsigned most_shared() {
    return (settings().major == 9 ? 227 : 163) * 1024;
}

template <class T>
static T read(const unsigned char *at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

// Calls visit(attribute, value, bytes) for the entries of a section .nv.info.
template <class Visit>
static void attributes(const unsigned char *at, size_t bytes, Visit visit) {
    for (const unsigned char *end = at + bytes; at + 4 <= end;) {
        unsigned format = at[0], attribute = at[1], size = format == 4 ? read<uint16_t>(at + 2) : 0;
        if (format == 0 || format > 4 || size > (size_t)(end - at - 4)) violation("a cubin's .nv.info is not understood");
        if (format == 4) visit(attribute, at + 4, size);
        at += 4 + size;
    }
}

static void read_function(Function &function, const unsigned char *info, size_t bytes) {
    enum { MAX_THREADS = 0x05, REQUIRED_THREADS = 0x10, PARAMETER = 0x17, PARAMETER_V2 = 0x45 };
    attributes(info, bytes, [&](unsigned attribute, const unsigned char *value, size_t size) {
        if (attribute == PARAMETER && size == 12) {
            unsigned ordinal = read<uint16_t>(value + 4);
            if (function.sizes.size() <= ordinal) function.sizes.resize(ordinal + 1);
            function.sizes[ordinal] = read<uint32_t>(value + 8) >> 18;
        } else if (attribute == MAX_THREADS || attribute == REQUIRED_THREADS) {
            function.max_threads = read<uint32_t>(value) * read<uint32_t>(value + 4) * read<uint32_t>(value + 8);
        } else if (attribute == PARAMETER_V2) {
            violation("a parameter of %s is described in a way that is not understood", function.name.c_str());
        }
    });
}

static int load(Module &module, const unsigned char *image) {
    if (std::memcmp(image, ELFMAG, SELFMAG) || image[EI_CLASS] != ELFCLASS64) return INVALID_IMAGE;
    auto header = read<Elf64_Ehdr>(image);
    if (header.e_machine != NVIDIA_CUDA) return INVALID_IMAGE;
    unsigned architecture = header.e_flags >> 8 & 0xff, own = (unsigned)(settings().major * 10 + settings().minor);
    // A cubin runs on devices of its major version and at least its minor one.
    if (architecture / 10 != own / 10 || architecture > own) return NO_BINARY_FOR_GPU;
    auto section = [&](unsigned number) { return read<Elf64_Shdr>(image + header.e_shoff + number * header.e_shentsize); };
    const char *names = (const char *)image + section(header.e_shstrndx).sh_offset;
    auto named = [&](unsigned number, const char *beginning) -> const char * {
        const char *name = names + section(number).sh_name;
        return std::strncmp(name, beginning, std::strlen(beginning)) ? nullptr : name + std::strlen(beginning);
    };
    for (unsigned at = 0; at < header.e_shnum; at++) {
        const char *name = named(at, ".text.");
        if (!name) continue;
        auto function = std::make_unique<Function>(Function{name, &module, find_kernel(name), {}, 0, 1024, 0, PLAIN_SHARED});
        if (!function->kernel) violation("there is no emulated kernel %s", name);
        module.functions[name] = std::move(function);
    }
    auto function = [&](const char *name) {
        auto found = name ? module.functions.find(name) : module.functions.end();
        return found == module.functions.end() ? nullptr : found->second.get();
    };
    for (unsigned at = 0; at < header.e_shnum; at++) {
        if (Function *f = function(named(at, ".nv.info."))) read_function(*f, image + section(at).sh_offset, section(at).sh_size);
        const char *rest = named(at, ".nv.info");
        if (rest && !*rest) {
            // The numbers of registers, by the functions' symbols.
            auto symbols = section(section(at).sh_link), texts = section(symbols.sh_link);
            attributes(image + section(at).sh_offset, section(at).sh_size, [&](unsigned attribute, const unsigned char *value, size_t) {
                if (attribute != 0x2f) return;
                auto symbol = read<Elf64_Sym>(image + symbols.sh_offset + read<uint32_t>(value) * sizeof(Elf64_Sym));
                Function *f = function((const char *)image + texts.sh_offset + symbol.st_name);
                if (f) f->registers = read<uint32_t>(value + 4);
            });
        }
        if (Function *f = function(named(at, ".nv.shared."))) f->static_shared = (unsigned)section(at).sh_size;
    }
    for (auto &[name, function] : module.functions) {
        const char *kinds = function->kernel->kinds();
        bool same = std::strlen(kinds) == function->sizes.size();
        for (size_t at = 0; same && at < function->sizes.size(); at++) {
            unsigned size = kinds[at] == 'm' ? 128 : kinds[at] == 'p' || kinds[at] == 'l' ? 8 : 4;
            same = function->sizes[at] == size;
        }
        if (!same) violation("%s has other parameters in the cubin than in the emulation (%s)", name.c_str(), kinds);
        if (function->registers == 0) violation("the cubin does not say how many registers %s takes", name.c_str());
    }
    return SUCCESS;
}

static Function *function_of(void *handle) {
    for (void *module : alive().modules) {
        for (auto &[name, function] : ((Module *)module)->functions) {
            if (function.get() == handle) return function.get();
        }
    }
    return nullptr;
}

// What a kernel is about to use: pointers lead into live memory, maps are maps.
static void check_arguments(const Function &function, const std::vector<Parameter> &values) {
    const char *kinds = function.kernel->kinds();
    for (size_t at = 0; at < values.size(); at++) {
        auto word = read<uint64_t>(values[at].bytes);
        if (kinds[at] == 'm' && read<uint64_t>(values[at].bytes + 32) != TENSOR_MAP) {
            violation("argument %zu of %s is no tensor map", at, function.name.c_str());
        }
        if ((kinds[at] == 'p' && word) || kinds[at] == 'm') {
            if (!is_allocated((void *)word, 0) && !(kinds[at] == 'p' && is_mapped((void *)word))) {
                violation("argument %zu of %s, %#llx, is not in allocated memory", at, function.name.c_str(), (unsigned long long)word);
            }
        }
    }
}

static uint64_t launches;

static void run_kernel(const Function &function, const std::vector<Parameter> &values, const unsigned grid[3],
                       const unsigned block[3]) {
    if (++launches == settings().failing_launch) return set_sticky(ILLEGAL_ADDRESS);
    if (launches == settings().hanging_launch) return hang(function.name);
    if (launches == settings().trapping_launch) {
        // As a kernel that has waited for too long: it leaves word where it was told to.
        if (!word_place()) violation("%s has nowhere to leave word of a wait without end", function.name.c_str());
        const unsigned record[] = {3, 129, 0x30800, 1};
        std::memcpy(word_place(), record, sizeof record);
        return set_sticky(LAUNCH_FAILED);
    }
    check_arguments(function, values);
    std::vector<void *> pointers;
    for (auto &value : values) pointers.push_back((void *)value.bytes);
    const Settings &s = settings();
    unsigned order = s.mode == Mode::Eager ? 0 : s.mode == Mode::Lazy ? 1 : (unsigned)random_below(1000);
    prepare_tensor_cores(s.mode == Mode::Eager ? false : s.mode == Mode::Lazy ? true : random_below(2) != 0);
    function.kernel->launch(grid, block, pointers.data(), order);
    check_red_zones(function.name.c_str());
    count("kernel " + function.name);
}

}  // namespace driver

using namespace driver;

API cuModuleLoadData(void **handle, const void *image) {
    Call call;
    if (call.error) return call.error;
    if (int error = forbidden_while_capturing()) return error;
    auto module = std::make_unique<Module>();
    if (int error = load(*module, (const unsigned char *)image)) return error;
    alive().modules.insert(module.get());
    *handle = module.release();
    return SUCCESS;
}

API cuModuleUnload(void *module) {
    Call call;
    if (call.error) return call.error;
    if (!alive().modules.count(module)) return INVALID_HANDLE;
    drain();
    alive().modules.erase(module);
    return SUCCESS;
}

API cuModuleGetFunction(void **handle, void *module, const char *name) {
    Call call;
    if (call.error) return call.error;
    if (!alive().modules.count(module)) return INVALID_HANDLE;
    auto found = ((Module *)module)->functions.find(name);
    if (found == ((Module *)module)->functions.end()) return NOT_FOUND;
    *handle = found->second.get();
    return SUCCESS;
}

enum { MAX_THREADS_PER_BLOCK = 0, SHARED_SIZE_BYTES = 1, NUM_REGS = 4, MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };

API cuFuncSetAttribute(void *handle, int attribute, int value) {
    Call call;
    if (call.error) return call.error;
    Function *function = function_of(handle);
    if (!function) return INVALID_HANDLE;
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return NOT_SUPPORTED;
    if (value < 0 || (unsigned)value + function->static_shared > most_shared()) return INVALID_VALUE;
    function->dynamic_shared = (unsigned)value;
    return SUCCESS;
}

API cuFuncGetAttribute(int *value, int attribute, void *handle) {
    Call call;
    if (call.error) return call.error;
    Function *function = function_of(handle);
    if (!function) return INVALID_HANDLE;
    switch (attribute) {
        case MAX_THREADS_PER_BLOCK: *value = (int)function->max_threads; return SUCCESS;
        case SHARED_SIZE_BYTES: *value = (int)function->static_shared; return SUCCESS;
        case NUM_REGS: *value = (int)function->registers; return SUCCESS;
        case MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = (int)function->dynamic_shared; return SUCCESS;
        default: return NOT_SUPPORTED;
    }
}

API cuLaunchKernel(void *handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void *stream_handle, void **arguments, void **extra) {
    Call call;
    if (call.error) return call.error;
    Function *function = function_of(handle);
    Stream *stream = stream_of(stream_handle);
    if (!function || !stream) return INVALID_HANDLE;
    uint64_t threads = (uint64_t)block_x * block_y * block_z;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || threads == 0) return INVALID_VALUE;
    if (grid_x > 0x7fffffffu || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if (block_x > 1024 || block_y > 1024 || block_z > 64 || threads > 1024) return INVALID_VALUE;
    if (threads > function->max_threads) return INVALID_VALUE;
    // Registers are given to warps, eight a thread at a time.
    if ((threads + 31) / 32 * 32 * ((function->registers + 7) / 8 * 8) > REGISTERS) return LAUNCH_OUT_OF_RESOURCES;
    if (shared_bytes > function->dynamic_shared) return INVALID_VALUE;
    unsigned shared = shared_bytes + function->static_shared;
    if (shared > (function->dynamic_shared > PLAIN_SHARED ? most_shared() : PLAIN_SHARED)) return INVALID_VALUE;
    if (extra) return NOT_SUPPORTED;
    if (!arguments && !function->sizes.empty()) return INVALID_VALUE;
    std::vector<Parameter> values(function->sizes.size());
    for (size_t at = 0; at < values.size(); at++) std::memcpy(values[at].bytes, arguments[at], function->sizes[at]);
    auto run = [=] {
        const unsigned grid[] = {grid_x, grid_y, grid_z}, block[] = {block_x, block_y, block_z};
        run_kernel(*function, values, grid, block);
    };
    return enqueue(stream, {function->name, run, {}});
}

// The checks of the driver's documentation. What is made is the emulated copy engine's form, not NVIDIA's.
API cuTensorMapEncodeTiled(uint64_t *map, int type, uint32_t rank, void *address, const uint64_t *dimensions,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides, int interleave,
                           int swizzle, int promotion, int fill) {
    static const unsigned element_bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    static const unsigned swizzle_bytes[] = {~0u, 32, 64, 128};
    if (!map || (uintptr_t)map % 64 || type < 0 || type > 12 || rank == 0 || rank > 5) return INVALID_VALUE;
    if ((uintptr_t)address % 16 || interleave || swizzle < 0 || swizzle > 3) return INVALID_VALUE;
    if (promotion < 0 || promotion > 3 || fill < 0 || fill > 1) return INVALID_VALUE;
    unsigned bytes = element_bytes[type];
    for (uint32_t at = 0; at < rank; at++) {
        if (dimensions[at] == 0 || dimensions[at] > 1ull << 32) return INVALID_VALUE;
        if (box[at] == 0 || box[at] > 256 || element_strides[at] == 0 || element_strides[at] > 8) return INVALID_VALUE;
    }
    for (uint32_t at = 0; at + 1 < rank; at++) {
        if (strides[at] % 16 || strides[at] >= 1ull << 40) return INVALID_VALUE;
        if (strides[at] < dimensions[at] * (at ? strides[at - 1] / dimensions[at - 1] : bytes)) return INVALID_VALUE;
    }
    if (box[0] * bytes % 16 || box[0] * bytes > swizzle_bytes[swizzle]) return INVALID_VALUE;
    // What the emulated copy engine knows.
    if (type != 9 || rank != 2 || swizzle != 3 || box[0] != 64 || element_strides[0] != 1 || element_strides[1] != 1 || fill) {
        violation("this tensor map is not emulated");
    }
    if (strides[0] != dimensions[0] * 2) violation("a tensor map with gaps between rows is not emulated");
    if (!is_allocated(address, dimensions[1] * strides[0])) violation("a tensor map goes beyond its allocation");
    uint64_t content[16] = {(uint64_t)address, dimensions[1], dimensions[0], box[1], TENSOR_MAP};
    std::memcpy(map, content, sizeof content);
    return SUCCESS;
}
