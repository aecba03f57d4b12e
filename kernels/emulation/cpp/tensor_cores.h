// The instructions of kernels/cuda/ampere.cuh and hopper.cuh for g++, as NVIDIA's PTX documentation describes them: which
// lane holds which number, how the copy engine swizzles, when a barrier's phase ends. It is a second reading of that
// documentation, so a kernel that passes is right as far as both readings are.
//
// Asynchronous work happens at a moment that the switch `late` chooses: at once, or as late as a wait allows. At once
// shows writes to memory that others still read; late shows reads of what has not arrived.
#pragma once
#include <deque>
#include <map>
#include <vector>

#include "cuda.h"

#define __grid_constant__

inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return shift ? high << shift | low >> (32 - shift) : high;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned out = 0;
    for (unsigned at = 0; at < 4; at++) out |= (unsigned)(bytes >> (selector >> 4 * at & 7) * 8 & 0xff) << 8 * at;
    return out;
}
inline float2 make_float2(float x, float y) {
    return {x, y};
}

namespace tensor_cores {
inline bool late;

// Dynamic shared memory. Its address is no multiple of 1024, as on a device with other shared memory before it.
constexpr unsigned FIRST_ADDRESS = 1024 + 128;
constexpr unsigned SHARED_BYTES = 227 * 1024;
alignas(1024) inline unsigned char shared[SHARED_BYTES];

inline unsigned char *at(unsigned address) {
    if (address < FIRST_ADDRESS || address >= FIRST_ADDRESS + SHARED_BYTES) {
        std::fprintf(stderr, "shared address %u is outside\n", address);
        std::abort();
    }
    return shared + (address - FIRST_ADDRESS);
}

// Sixteen bytes under the 128-byte swizzle: bits 4 to 6 of the address are XORed with bits 7 to 9.
inline unsigned swizzled(unsigned address) {
    return address ^ ((address >> 7 & 7) << 4);
}

inline float number(unsigned short bits) {
    return __uint_as_float((unsigned)bits << 16);
}

// What one thread has under way: groups of copies, or of products.
template <class Work>
struct Queue {
    std::map<const void *, std::deque<std::vector<Work>>> groups;  // the last one is open

    std::deque<std::vector<Work>> &mine() {
        auto &own = groups[emulation::current];
        if (own.empty()) own.emplace_back();
        return own;
    }
    void add(Work work) {
        if (!late) return work();
        mine().back().push_back(work);
    }
    void commit() {
        mine().emplace_back();
    }
    void wait(unsigned pending) {
        auto &own = mine();
        while (own.size() > pending + 1) {
            for (auto &work : own.front()) work();
            own.pop_front();
        }
    }
};

struct Copy {
    unsigned to;
    const void *from;
    void operator()() const {
        std::memcpy(at(to), from, 16);
    }
};
inline Queue<Copy> copies;

// [64 or 256 rows, 16 columns] of a descriptor's matrix, element (row, column).
inline float element(unsigned long long descriptor, unsigned row, unsigned column) {
    unsigned start = (unsigned)(descriptor & 0x3fff) << 4, stride = (unsigned)(descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) {
        std::fprintf(stderr, "a descriptor without the 128-byte swizzle\n");
        std::abort();
    }
    unsigned short bits;
    std::memcpy(&bits, at(swizzled(start + row / 8 * stride + row % 8 * 128 + column * 2)), 2);
    return number(bits);
}

struct Product {
    float *sums;
    unsigned long long a, b;
    unsigned thread;
    void operator()() const {
        unsigned lane = thread % 32, warp = thread / 32;
        float rows[2][16], column[16];
        for (unsigned r = 0; r < 2; r++) {
            for (unsigned k = 0; k < 16; k++) rows[r][k] = element(a, warp * 16 + r * 8 + lane / 4, k);
        }
        for (unsigned at = 0; at < 64; at++) {
            for (unsigned k = 0; k < 16; k++) column[k] = element(b, at / 2 * 8 + lane % 4 * 2 + at % 2, k);
            for (unsigned r = 0; r < 2; r++) {
                float &sum = sums[at / 2 * 4 + r * 2 + at % 2];
                for (unsigned k = 0; k < 16; k++) sum += rows[r][k] * column[k];
            }
        }
    }
};
inline Queue<Product> products;

struct Barrier {
    unsigned count, pending, phase, waiting;
    long long bytes;
    std::vector<std::pair<std::vector<unsigned char>, unsigned>> boxes;  // on their way: content and address

    void finish_if_complete() {
        if (pending == 0 && bytes == 0) {
            pending = count;
            phase++;
        }
    }
    void deliver() {
        auto arrived = std::move(boxes);
        boxes.clear();
        for (auto &[content, to] : arrived) {
            for (unsigned chunk = 0; chunk < content.size(); chunk += 16) {
                std::memcpy(at(swizzled(to + chunk)), &content[chunk], 16);
            }
            bytes -= (long long)content.size();
        }
        if (!arrived.empty()) finish_if_complete();
    }
};
inline std::map<unsigned, Barrier> barriers;

struct Named {
    unsigned arrived, generation;
};
inline std::map<unsigned, Named> named;
}  // namespace tensor_cores

#define DYNAMIC_SHARED(name) unsigned char *name = tensor_cores::shared

inline unsigned shared_address(const void *pointer) {
    return (unsigned)((const unsigned char *)pointer - tensor_cores::shared) + tensor_cores::FIRST_ADDRESS;
}

// ampere.cuh

inline void copy_async(unsigned to, const void *from) {
    tensor_cores::copies.add({to, from});
}
inline void commit_copies() {
    tensor_cores::copies.commit();
}
template <int PENDING>
inline void wait_copies() {
    tensor_cores::copies.wait(PENDING);
}

inline void load_matrices(unsigned (&to)[4], unsigned address) {
    unsigned lane = emulation::current->lane;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        unsigned row = __shfl_sync(0xffffffffu, address, matrix * 8 + lane / 4);
        std::memcpy(&to[matrix], tensor_cores::at(row) + lane % 4 * 4, 4);
    }
}

inline void multiply(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    unsigned lane = emulation::current->lane, group = lane / 4, quad = lane % 4;
    float rows[2][16], columns[2][16];
    auto unpack = [](float *to, unsigned two) {
        to[0] = tensor_cores::number((unsigned short)two);
        to[1] = tensor_cores::number((unsigned short)(two >> 16));
    };
    for (unsigned q = 0; q < 4; q++) {
        unsigned source = group * 4 + q;
        unpack(&rows[0][2 * q], __shfl_sync(0xffffffffu, a[0], source));
        unpack(&rows[1][2 * q], __shfl_sync(0xffffffffu, a[1], source));
        unpack(&rows[0][2 * q + 8], __shfl_sync(0xffffffffu, a[2], source));
        unpack(&rows[1][2 * q + 8], __shfl_sync(0xffffffffu, a[3], source));
        for (unsigned e = 0; e < 2; e++) {
            unpack(&columns[e][2 * q], __shfl_sync(0xffffffffu, b0, (2 * quad + e) * 4 + q));
            unpack(&columns[e][2 * q + 8], __shfl_sync(0xffffffffu, b1, (2 * quad + e) * 4 + q));
        }
    }
    for (unsigned at = 0; at < 4; at++) {
        for (unsigned k = 0; k < 16; k++) sums[at] += rows[at / 2][k] * columns[at % 2][k];
    }
}

// hopper.cuh. A map in the emulation: address of the matrix, its rows, its stride and the rows of a box.

template <class Map>
inline void copy_box(unsigned to, const Map &map, unsigned column, unsigned row, unsigned barrier) {
    auto matrix = (const unsigned short *)map.opaque[0];
    unsigned long long rows = map.opaque[1], stride = map.opaque[2], box_rows = map.opaque[3];
    if (to % 1024) {
        std::fprintf(stderr, "a box goes to address %u\n", to);
        std::abort();
    }
    std::vector<unsigned char> content(box_rows * 128);
    for (unsigned r = 0; r < box_rows; r++) {
        for (unsigned c = 0; c < 64; c++) {
            bool inside = row + r < rows && column + c < stride;
            unsigned short value = inside ? matrix[(row + r) * stride + column + c] : 0;
            std::memcpy(&content[r * 128 + c * 2], &value, 2);
        }
    }
    auto &state = tensor_cores::barriers.at(barrier);
    state.boxes.emplace_back(std::move(content), to);
    if (!tensor_cores::late || state.waiting) state.deliver();
}
template <class Map>
inline void prefetch_map(const Map &) {}

inline void init_barrier(unsigned barrier, unsigned arrivals) {
    tensor_cores::barriers[barrier] = {arrivals, arrivals, 0, 0, 0, {}};
}
inline void publish_barriers() {}
inline void arrive_expecting(unsigned barrier, unsigned bytes) {
    auto &state = tensor_cores::barriers.at(barrier);
    if (state.pending == 0) {
        std::fprintf(stderr, "one arrival too many at barrier %u\n", barrier);
        std::abort();
    }
    state.bytes += bytes;
    state.pending--;
    state.finish_if_complete();
}
inline void arrive(unsigned barrier) {
    arrive_expecting(barrier, 0);
}
inline void wait_for_phase(unsigned barrier, unsigned parity) {
    auto &state = tensor_cores::barriers.at(barrier);
    for (;;) {
        state.deliver();
        if ((state.phase & 1) != parity) return;
        state.waiting++;
        emulation::wait_for_change(&state.phase, "a phase");
        state.waiting--;
    }
}
template <int COUNT>
inline void give_registers() {}
template <int COUNT>
inline void take_registers() {}
inline void pin(float (&)[128]) {}
inline void fence_products() {}
inline void commit_products() {
    tensor_cores::products.commit();
}
template <int PENDING>
inline void wait_products() {
    tensor_cores::products.wait(PENDING);
    __all_sync(0xffffffffu, 1);  // a warp's lanes wait as one: none goes on before the others' factors are read
}
inline void sync_threads(unsigned number, unsigned threads) {
    auto &state = tensor_cores::named[number];
    if (++state.arrived == threads) {
        state.arrived = 0;
        state.generation++;
    } else {
        emulation::wait_for_change(&state.generation, "a named barrier");
    }
}
inline void multiply_64x256(float (&sums)[128], unsigned long long a, unsigned long long b) {
    tensor_cores::products.add({sums, a, b, threadIdx.x % 128});
}
