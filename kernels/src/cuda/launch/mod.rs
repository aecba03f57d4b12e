//! A typed launch for every kernel of `kernels/cuda`: one struct each, one file per `.cu` file.
//!
//! A struct's fields are the kernel's buffers, with their shapes, and its sizes; their order means nothing. `launch` sees
//! that every buffer is as long as the sizes ask for, forms grid and block, and lists the arguments in the kernel's order.
//! What a kernel computes is said at the head of its file.
//!
//! Numbers are float32 where nothing else is said; `bf16` stands for bfloat16. B rows in a batch, d input width, F
//! features, `stride` d rounded up to a multiple of 64, `words` and `row_words` those of [`mask_words`] and
//! [`row_mask_words`], `line` that of [`dense_line`].

pub mod backward;
pub mod clip;
pub mod dead;
pub mod decode;
pub mod dense;
pub mod encode;
pub mod frequency;
pub mod groups;
pub mod jump;
pub mod lists;
pub mod panels;
mod parameter;
pub mod rank;
pub mod recheck;
pub mod report;
pub mod rows;
pub mod screen;
pub mod select;
pub mod select_batch;
pub mod update;
pub mod widen;

pub use parameter::Slice;

use super::device::{Device, Kernel, Launch};
use super::layout::{BatchCut, Clip, Dead, Report, Scalars};
use crate::error::DeviceError;
use parameter::Parameter;

// The sizes that kernels/cuda/types.cuh has too.
pub(crate) const SUMMED_ROWS: usize = 64;
pub(crate) const SEGMENT: usize = 64;
pub(crate) const FEATURES_OF_BLOCK: usize = 8;
pub(crate) const SLOPE_ROWS: usize = 128;

/// Rows of matrices are padded to a multiple of this many numbers.
const STRIDE_GROUP: usize = 64;
/// Columns of a block of the kernels that sum over rows; the stride is a multiple of it.
pub(crate) const COLUMNS: usize = 64;

const SCALARS_BYTES: usize = size_of::<Scalars>();
const REPORT_BYTES: usize = size_of::<Report>();
const CLIP_BYTES: usize = size_of::<Clip>();
const DEAD_BYTES: usize = size_of::<Dead>();
const BATCH_CUT_BYTES: usize = size_of::<BatchCut>();

/// Numbers from one row of a matrix of `width` columns to the next.
pub(crate) fn stride_of(width: usize) -> usize {
    width.next_multiple_of(STRIDE_GROUP)
}

/// Words of 32 bits in a line of the mask [F,words] of a batch of `rows`: ⌈B/32⌉ rounded up to a multiple of 4.
pub fn mask_words(rows: usize) -> usize {
    rows.div_ceil(32).next_multiple_of(4)
}

/// Words of 32 bits in a line of the transposed mask [B,row_words]: ⌈F/32⌉.
pub fn row_mask_words(features: usize) -> usize {
    features.div_ceil(32)
}

/// Numbers in a line of dense activations [B,line]: F rounded up to a multiple of 64.
pub fn dense_line(features: usize) -> usize {
    features.next_multiple_of(64)
}

/// Numbers in one copy of the parameters: encoder [F,stride], decoder [F,stride], encoder bias [F rounded up to a multiple
/// of 64], decoder bias [stride].
pub fn parameters_length(features: usize, stride: usize) -> usize {
    2 * features * stride + features.next_multiple_of(64) + stride
}

/// Threads of the blocks of kernels that walk along a row of `stride` numbers, four of them a thread.
fn walk_threads(stride: usize) -> usize {
    (stride / 4).next_multiple_of(32).min(256)
}

/// The blocks of the kernels that hold a feature's rows in registers; these exist once per number of components a thread
/// owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowBlock {
    /// Groups of 4 components that a thread owns.
    chunks: usize,
    threads: usize,
}

impl RowBlock {
    const MOST_THREADS: usize = 256;
    const MOST_CHUNKS: usize = 8;
    /// The longest row.
    pub(crate) const LONGEST: usize = 4 * RowBlock::MOST_THREADS * RowBlock::MOST_CHUNKS;

    pub(crate) fn new(stride: usize) -> RowBlock {
        let fours = stride / 4;
        let chunks = fours.div_ceil(RowBlock::MOST_THREADS).next_power_of_two();
        RowBlock { chunks, threads: fours.div_ceil(chunks).next_multiple_of(32) }
    }

    /// The kernel for these blocks, of those for 1, 2, 4 and 8 groups.
    fn kernel(self, names: [&'static str; 4]) -> Result<&'static str, DeviceError> {
        names.get(self.chunks.trailing_zeros() as usize).copied().ok_or_else(|| DeviceError::Failed {
            operation: format!("launching {}", names[0]),
            reason: format!("a row is longer than {} numbers", RowBlock::LONGEST),
        })
    }

    /// Blocks that a device with so many multiprocessors runs at once.
    fn at_once(self, multiprocessors: u32) -> usize {
        multiprocessors as usize * (2048 / self.threads)
    }
}

/// Launches a kernel of this crate, `kernel` being its file and its name, on a grid in x and y.
fn launch<D: Device>(
    device: &mut D,
    kernel: (&'static str, &'static str),
    grid: (usize, usize),
    threads: usize,
    parameters: &[Parameter<'_, D::Buffer>],
) -> Result<(), DeviceError> {
    launch_with_shared_memory(device, kernel, grid, threads, 0, parameters)
}

/// The same with dynamic shared memory, in bytes.
fn launch_with_shared_memory<D: Device>(
    device: &mut D,
    (module, function): (&'static str, &'static str),
    grid: (usize, usize),
    threads: usize,
    shared_bytes: usize,
    parameters: &[Parameter<'_, D::Buffer>],
) -> Result<(), DeviceError> {
    let number = |name, number: usize| {
        u32::try_from(number).map_err(|_| DeviceError::Failed {
            operation: format!("launching {function}"),
            reason: format!("`{name}` is {number}, which 32 bits cannot hold"),
        })
    };
    let mut names = Vec::with_capacity(parameters.len());
    let mut arguments = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        names.push(parameter.name);
        arguments.push(parameter.checked(device, function)?);
    }
    let launch = Launch {
        kernel: Kernel { module, function },
        grid: [number("gridDim.x", grid.0)?, number("gridDim.y", grid.1)?, 1],
        block: [number("blockDim.x", threads)?, 1, 1],
        shared_bytes: number("shared memory", shared_bytes)?,
        parameters: &names,
        arguments: &arguments,
    };
    // SAFETY: the files below this module list each kernel's parameters in its order, with what the kernel's head says of
    // their lengths, grid and block, and the lengths were checked just now. The emulation's tests see that number, names
    // and kinds are those in the `.cu` files and that no access leaves its buffer. Indices that lists hold are what the
    // kernels of `lists.cu` have left there: a kernel that is given others reads or writes elsewhere in the device's memory.
    unsafe { device.launch(&launch) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_of_every_width_has_a_thread() {
        for width in [1, 35, 64, 65, 1000, 1024, 1025, 2048, 2049, 4096, 5000, RowBlock::LONGEST] {
            let stride = stride_of(width);
            assert!(stride >= width && stride.is_multiple_of(64) && stride < width + 64);
            let block = RowBlock::new(stride);
            assert!(block.threads * block.chunks * 4 >= stride, "{width}");
            assert!(block.threads <= 256 && block.threads.is_multiple_of(32), "{width}");
            assert!(
                block.kernel(["1", "2", "4", "8"]) == Ok(["1", "2", "4", "8"][block.chunks.ilog2() as usize])
            );
            assert!(walk_threads(stride) <= 256 && block.at_once(1) > 0);
        }
        assert_eq!(RowBlock::new(768), RowBlock { chunks: 1, threads: 192 });
        assert_eq!(walk_threads(768), 192);
        let error = RowBlock::new(RowBlock::LONGEST + 64).kernel(["derive_1"; 4]).unwrap_err().to_string();
        assert!(error.contains("derive_1") && error.contains("8192"), "{error}");
    }

    #[test]
    fn the_sizes_that_kernels_have_too_are_theirs() {
        let types = include_str!("../../../cuda/types.cuh");
        for (name, size) in [
            ("SUMMED_ROWS", SUMMED_ROWS),
            ("SEGMENT", SEGMENT),
            ("FEATURES_OF_BLOCK", FEATURES_OF_BLOCK),
            ("SLOPE_ROWS", SLOPE_ROWS),
        ] {
            assert!(types.contains(&format!("constexpr u32 {name} = {size};")), "{name}");
        }
    }
}
