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

// Of a check build: its waits are the same here, as what does not end is found by the emulation.
static unsigned *wait_record;
static void leave_word_at(unsigned *place) {
    wait_record = place;
}
EXPORT_KERNEL(leave_word_at)
unsigned *driver::word_place() {
    return wait_record;
}

void driver::prepare_tensor_cores(bool late) {
    tensor_cores::late = late;
    std::memset(tensor_cores::shared, 0xff, sizeof tensor_cores::shared);
    tensor_cores::copies.groups.clear();
    tensor_cores::products.groups.clear();
    tensor_cores::barriers.clear();
    tensor_cores::named.clear();
}
