// The kernels for tensor cores, on their emulated instructions.
#include <cstdio>
#include <cstdlib>

#include "../tensor_cores.h"

// Once, outside of the kernels' namespaces.
#include "ampere.cuh"
#include "hopper.cuh"
#include "screen_bits.cuh"

#include "kernels.h"

namespace mma {
#include "encode_mma.cu"
EXPORT_KERNEL(encode_mma)
}
namespace wgmma {
#include "encode_wgmma.cu"
EXPORT_KERNEL(encode_wgmma)
}

void driver::prepare_tensor_cores(bool late) {
    tensor_cores::late = late;
    std::memset(tensor_cores::shared, 0xff, sizeof tensor_cores::shared);
    tensor_cores::copies.groups.clear();
    tensor_cores::products.groups.clear();
    tensor_cores::barriers.clear();
    tensor_cores::named.clear();
}
