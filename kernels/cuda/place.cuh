// Where a feature stands in the list of a row.
#pragma once
#include "types.cuh"

// The last place from `low` on, below `high`, that holds at most `feature`; the list ascends. `low` if there is none.
__device__ __forceinline__ u32 place_of(const u32 *list, u32 low, u32 high, u32 feature) {
    while (high - low > 1) {
        u32 middle = low + (high - low) / 2;
        if (list[middle] <= feature) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}
