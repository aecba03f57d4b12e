// Runs encode_mma.cu and encode_wgmma.cu on the CPU and compares every bit of their masks with the definition, at odd
// sizes. A bit where the float32 sum's order decides may go either way. Exits with 0 if all is right.
#include <cstdio>
#include <cstdlib>

#include "tensor_cores.h"

// Once, outside of the kernels' namespaces.
#include "ampere.cuh"
#include "hopper.cuh"
#include "screen_bits.cuh"

namespace mma {
#include "encode_mma.cu"
}
namespace wgmma {
#include "encode_wgmma.cu"
}

struct Numbers {
    unsigned long long state;
    float next() {  // in (-1, 1)
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return (float)(state >> 40) / (float)(1 << 23) - 1.0f;
    }
};

struct Case {
    unsigned features, rows, width;
};

static unsigned short rounded(float value) {
    unsigned bits = __float_as_uint(value);
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static std::vector<unsigned short> matrix(unsigned rows, unsigned width, unsigned stride, Numbers &numbers) {
    std::vector<unsigned short> out((size_t)rows * stride);
    for (unsigned row = 0; row < rows; row++) {
        for (unsigned column = 0; column < width; column++) out[(size_t)row * stride + column] = rounded(numbers.next());
    }
    return out;
}

static std::vector<float> vector(unsigned count, float centre, float spread, Numbers &numbers) {
    std::vector<float> out(count);
    for (float &value : out) value = centre + spread * numbers.next();
    return out;
}

static int check(const char *kernel, const Case &c, unsigned order) {
    Numbers numbers{c.features * 1000003ull + c.rows * 31 + c.width};
    unsigned stride = (c.width + 63) / 64 * 64, words = (c.rows + 127) / 128 * 4;
    auto w = matrix(c.features, c.width, stride, numbers), x = matrix(c.rows, c.width, stride, numbers);
    auto base = vector(c.features, -0.5f, 1.0f, numbers);
    auto norm = vector(c.features, 0.5f, 0.4f, numbers), residual = vector(c.features, 0.02f, 0.01f, numbers);
    auto row_norm = vector(c.rows, 0.5f, 0.4f, numbers), row_residual = vector(c.rows, 0.3f, 0.1f, numbers);
    std::vector<unsigned> mask((size_t)c.features * words, 0xdeadbeef);

    using Pointers = float *[6];
    Pointers pointers = {base.data(), norm.data(), residual.data(), row_norm.data(), row_residual.data(),
                         (float *)mask.data()};
    const void *w_data = w.data(), *x_data = x.data();
    TensorMap w_map{}, x_map{};
    unsigned long long w_opaque[] = {(unsigned long long)w_data, c.features, stride, 128};
    unsigned long long x_opaque[] = {(unsigned long long)x_data, c.rows, stride, 256};
    std::memcpy(w_map.opaque, w_opaque, sizeof w_opaque);
    std::memcpy(x_map.opaque, x_opaque, sizeof x_opaque);
    bool is_mma = std::strcmp(kernel, "encode_mma") == 0;
    void *arguments[12] = {is_mma ? (void *)&w_data : &w_map, is_mma ? (void *)&x_data : &x_map};
    for (unsigned at = 0; at < 6; at++) arguments[2 + at] = &pointers[at];
    unsigned sizes[] = {c.features, c.rows, stride, words};
    for (unsigned at = 0; at < 4; at++) arguments[8 + at] = &sizes[at];

    // New shared memory for every launch; between the blocks of a launch it keeps what the last one left.
    std::memset(tensor_cores::shared, 0xff, sizeof tensor_cores::shared);
    tensor_cores::copies.groups.clear();
    tensor_cores::products.groups.clear();
    tensor_cores::named.clear();
    if (is_mma) {
        unsigned grid[] = {words / 4, (c.features + 127) / 128, 1}, block[] = {256, 1, 1};
        emulation::launch(grid, block, [](void **a) { emulation::call_all(mma::encode_mma, a); }, arguments, order);
    } else {
        unsigned tiles = (c.features + 127) / 128 * ((c.rows + 255) / 256);
        unsigned grid[] = {tiles < 2 ? tiles : 2, 1, 1}, block[] = {384, 1, 1};
        emulation::launch(grid, block, [](void **a) { emulation::call_all(wgmma::encode_wgmma, a); }, arguments, order);
    }

    unsigned set = 0, wrong = 0, undecided = 0;
    for (unsigned j = 0; j < c.features; j++) {
        for (unsigned i = 0; i < words * 32; i++) {
            bool got = mask[(size_t)j * words + i / 32] >> i % 32 & 1;
            double z = 0, size = 0;
            if (i < c.rows) {
                for (unsigned k = 0; k < stride; k++) {
                    double product = (double)tensor_cores::number(w[(size_t)j * stride + k]) *
                                     tensor_cores::number(x[(size_t)i * stride + k]);
                    z += product;
                    size += std::fabs(product);
                }
                z += base[j] + (double)row_residual[i] * norm[j] + (double)row_norm[i] * residual[j];
                if (std::fabs(z) < (size + 4) * 1e-5) {
                    undecided++;
                    continue;
                }
            }
            set += got;
            wrong += got != (i < c.rows && z > 0);
        }
    }
    std::printf("%-12s F %u B %u d %u order %u %s: %u bits set, %u undecided, %u wrong\n", kernel, c.features, c.rows,
                c.width, order, tensor_cores::late ? "late" : "at once", set, undecided, wrong);
    std::fflush(stdout);
    // Both kinds of bits must occur, or the comparison says little.
    return wrong || (c.features * c.rows > 100 && (set == 0 || set == c.features * c.rows));
}

int main() {
    const Case cases[] = {{1, 1, 1}, {130, 133, 70}, {64, 300, 64}, {257, 31, 70}, {128, 256, 320}};
    int failures = 0;
    for (const char *kernel : {"encode_mma", "encode_wgmma"}) {
        for (bool late : {false, true}) {
            tensor_cores::late = late;
            for (const Case &c : cases) failures += check(kernel, c, 0);
            failures += check(kernel, {130, 133, 140}, 1);
            failures += check(kernel, {130, 290, 70}, 7);
            // Warps that run ahead of the others; with several tiles a block, of one step and of three, where it has several.
            if (std::strcmp(kernel, "encode_mma") == 0) {
                failures += check(kernel, {70, 100, 140}, 2);
            } else {
                failures += check(kernel, {130, 600, 64}, 3);
                failures += check(kernel, {64, 600, 140}, 2);
            }
        }
    }
    return failures != 0;
}
