//! `screen.cu` and `encode_mma.cu`: the pairs that may be active, by a product of bfloat16 numbers. They have one signature.
//! (`encode_wgmma.cu` takes tensor maps, which only the driver can make: `cuda_device/screen.rs` launches it.)

use super::launch_with_shared_memory;
use super::parameter::{floats, halves, number, u32s};
use crate::cuda::device::{Device, Screen};
use crate::error::DeviceError;

/// encode_mma's dynamic shared memory: four stages of 128 rows of both factors, 32 columns each.
const MMA_SHARED_BYTES: usize = 4 * 2 * 128 * 64;

/// The grid of `screen`: 8 features × 128 rows a block.
fn plain_grid(features: usize, words: usize) -> (usize, usize) {
    (features.div_ceil(8), words / 4)
}

/// The grid of `encode_mma`: 128 rows × 128 features a block.
fn mma_grid(features: usize, words: usize) -> (usize, usize) {
    (words / 4, features.div_ceil(128))
}

/// The screen without tensor cores: the definition, and slow.
///
/// # Errors
/// A buffer that is too short, or what the device says.
pub fn plain<D: Device>(screen: &Screen<'_, D::Buffer>, device: &mut D) -> Result<(), DeviceError> {
    launch(screen, device, "screen", plain_grid(screen.features, screen.words), 128, 0)
}

/// The screen on tensor cores of compute capability 8.0 and up.
///
/// # Errors
/// A buffer that is too short, or what the device says.
pub fn mma<D: Device>(screen: &Screen<'_, D::Buffer>, device: &mut D) -> Result<(), DeviceError> {
    let grid = mma_grid(screen.features, screen.words);
    launch(screen, device, "encode_mma", grid, 256, MMA_SHARED_BYTES)
}

fn launch<D: Device>(
    screen: &Screen<'_, D::Buffer>,
    device: &mut D,
    name: &'static str,
    grid: (usize, usize),
    threads: usize,
    shared_bytes: usize,
) -> Result<(), DeviceError> {
    let Screen { features, rows, stride, words, .. } = *screen;
    let parameters = [
        halves("encoder_bf16", screen.encoder, features * stride),
        halves("x_bf16", screen.x, rows * stride),
        floats("feature_base", screen.feature_base, features),
        floats("feature_norm", screen.feature_norm, features),
        floats("feature_residual", screen.feature_residual, features),
        floats("row_norm", screen.row_norm, rows),
        floats("row_residual", screen.row_residual, rows),
        u32s("mask", screen.mask, features * words),
        number("features", features),
        number("rows", rows),
        number("stride", stride),
        number("words", words),
    ];
    launch_with_shared_memory(device, (name, name), grid, threads, shared_bytes, &parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_cover_odd_sizes() {
        assert_eq!(plain_grid(24_576, 128), (3072, 32));
        assert_eq!(plain_grid(9, 4), (2, 1));
        assert_eq!(mma_grid(24_576, 128), (32, 192));
        assert_eq!(mma_grid(1, 4), (1, 1));
        assert_eq!(mma_grid(129, 8), (2, 2));
    }

    #[test]
    fn shared_memory_is_what_the_kernel_lays_out() {
        assert!(include_str!("../../../cuda/encode_mma.cu").contains("dynamic shared memory 64 KB"));
        assert_eq!(MMA_SHARED_BYTES, 64 * 1024);
    }
}
