// The emulated kernels by name.
#pragma once

namespace driver {

struct Kernel {
    const char *name;
    void (*launch)(const unsigned *grid, const unsigned *block, void **arguments, unsigned order);
    const char *(*kinds)();
};
// Null if there is none; the table is written when the library is built.
const Kernel *find_kernel(const char *name);
// Where the kernels of a check build leave word of a wait without end; null if nobody has told them.
unsigned *word_place();
// New shared memory, nothing under way. `late`: asynchronous work happens as late as it may.
void prepare_tensor_cores(bool late);

}  // namespace driver
