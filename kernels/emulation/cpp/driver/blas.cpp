// The part of cuBLAS that is used, a library of its own: products queued on the emulated driver's streams.
#include <cmath>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "blas.h"

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14, COMPUTE_32F = 68 };

struct Handle {
    void *stream;
    void *workspace;
    size_t workspace_bytes;
};
std::unordered_set<void *> &handles = *new std::unordered_set<void *>;

Handle *handle_of(void *handle) {
    return handles.count(handle) ? (Handle *)handle : nullptr;
}

// A stored matrix [ld apart] of float32 or bfloat16 numbers.
struct Matrix {
    const void *start;
    int type;
    int64_t ld;
    bool transposed;

    float at(int64_t i, int64_t j) const {
        int64_t place = transposed ? j + i * ld : i + j * ld;
        if (type == R_32F) return ((const float *)start)[place];
        uint32_t bits = (uint32_t)((const uint16_t *)start)[place] << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    size_t bytes(int64_t rows, int64_t columns) const {
        if (transposed) std::swap(rows, columns);
        return rows && columns ? (size_t)((columns - 1) * ld + rows) * (type == R_32F ? 4 : 2) : 0;
    }
};

// Sums in float64, rounded once.
void multiply(int64_t m, int64_t n, int64_t k, float alpha, Matrix a, Matrix b, float beta, float *c, int64_t ldc) {
    std::vector<float> rows((size_t)(m * k)), columns((size_t)k);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t p = 0; p < k; p++) rows[(size_t)(i * k + p)] = a.at(i, p);
    }
    for (int64_t j = 0; j < n; j++) {
        for (int64_t p = 0; p < k; p++) columns[(size_t)p] = b.at(p, j);
        for (int64_t i = 0; i < m; i++) {
            double sum = 0;
            for (int64_t p = 0; p < k; p++) sum += (double)rows[(size_t)(i * k + p)] * columns[(size_t)p];
            float &out = c[i + j * ldc];
            out = (float)(alpha * sum + (beta == 0 ? 0.0 : (double)beta * out));
        }
    }
}

int gemm(void *raw, int op_a, int op_b, int64_t m, int64_t n, int64_t k, const void *alpha, const void *a, int type_a,
         int64_t lda, const void *b, int type_b, int64_t ldb, const void *beta, void *c, int type_c, int64_t ldc, int compute) {
    Handle *handle = handle_of(raw);
    if (!handle) return NOT_INITIALIZED;
    if (m < 0 || n < 0 || k < 0 || op_a < 0 || op_a > 2 || op_b < 0 || op_b > 2 || !alpha || !beta) return INVALID_VALUE;
    auto least = [](int64_t rows) { return rows > 1 ? rows : 1; };
    if (lda < least(op_a ? k : m) || ldb < least(op_b ? n : k) || ldc < least(m)) return INVALID_VALUE;
    if (type_a != type_b || (type_a != R_32F && type_a != R_16BF) || type_c != R_32F || compute != COMPUTE_32F) return NOT_SUPPORTED;
    if (m == 0 || n == 0) return SUCCESS;
    if (!c || (k && (!a || !b))) return INVALID_VALUE;
    float alpha_value, beta_value;
    std::memcpy(&alpha_value, alpha, 4);
    std::memcpy(&beta_value, beta, 4);
    Matrix stored_a{a, type_a, lda, op_a != 0}, stored_b{b, type_b, ldb, op_b != 0};
    EmulatedUse uses[] = {
        {a, stored_a.bytes(m, k)}, {b, stored_b.bytes(k, n)}, {c, (size_t)((n - 1) * ldc + m) * 4}};
    auto run = [=] { multiply(m, n, k, alpha_value, stored_a, stored_b, beta_value, (float *)c, ldc); };
    bool has_workspace = handle->workspace != nullptr;
    return emulated_product(handle->stream, has_workspace, run, uses, 3) ? EXECUTION_FAILED : SUCCESS;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cublasCreate_v2(void **handle) {
    if (!handle) return INVALID_VALUE;
    auto made = new Handle{};
    handles.insert(made);
    *handle = made;
    return SUCCESS;
}

API cublasDestroy_v2(void *handle) {
    return handles.erase(handle) ? SUCCESS : NOT_INITIALIZED;
}

// Takes the workspace away, as the real one.
API cublasSetStream_v2(void *raw, void *stream) {
    Handle *handle = handle_of(raw);
    if (!handle) return NOT_INITIALIZED;
    handle->stream = stream;
    handle->workspace = nullptr;
    return SUCCESS;
}

API cublasSetWorkspace_v2(void *raw, void *workspace, size_t bytes) {
    Handle *handle = handle_of(raw);
    if (!handle) return NOT_INITIALIZED;
    if ((uintptr_t)workspace % 256) return INVALID_VALUE;
    handle->workspace = workspace;
    handle->workspace_bytes = bytes;
    return SUCCESS;
}

API cublasGemmEx(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *a, int type_a, int lda,
                 const void *b, int type_b, int ldb, const void *beta, void *c, int type_c, int ldc, int compute, int) {
    return gemm(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, compute);
}

API cublasGemmEx_64(void *handle, int op_a, int op_b, int64_t m, int64_t n, int64_t k, const void *alpha, const void *a,
                    int type_a, int64_t lda, const void *b, int type_b, int64_t ldb, const void *beta, void *c, int type_c,
                    int64_t ldc, int compute, int) {
    return gemm(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, compute);
}
