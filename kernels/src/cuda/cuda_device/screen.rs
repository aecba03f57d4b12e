//! Which kernel screens; and launching the one of compute capability 9.0, whose factors are tensor maps of the bulk copy
//! engine.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::driver::{CudaBuffer, failed};
use super::screen_kernel::ScreenKernel;
use super::{CudaDevice, check_range};
use crate::cuda::device::{Kernel, Launch, Screen};
use crate::cuda::launch;
use crate::error::DeviceError;

/// encode_wgmma: features and rows of a tile, its threads and its shared memory.
const WGMMA_TILE: (usize, usize) = (128, 256);
const WGMMA_THREADS: u32 = 384;
const WGMMA_SHARED_BYTES: u32 = 1024 + 4 * (128 + 256) * 128 + 2 * 256 * 8 + 4 * 2 * 8;
/// Columns of a box of the copy engine: 128 bytes.
const BOX_COLUMNS: u32 = 64;

/// The grid of encode_wgmma: a block a multiprocessor, or a tile each if there are fewer.
fn wgmma_grid(features: usize, rows: usize, multiprocessors: u32) -> [u32; 3] {
    let tiles = features.div_ceil(WGMMA_TILE.0) * rows.div_ceil(WGMMA_TILE.1);
    [multiprocessors.min(u32::try_from(tiles).unwrap_or(u32::MAX)), 1, 1]
}

impl CudaDevice {
    /// The screen by encode_wgmma (compute capability 9.0 alone) or by encode_mma: they differ in nothing but speed,
    /// up to the order of float32 sums.
    ///
    /// # Errors
    /// As [`crate::cuda::device::Device::screen`].
    pub fn screen_with(&mut self, screen: &Screen<'_, CudaBuffer>, wgmma: bool) -> Result<(), DeviceError> {
        self.screen_by(if wgmma { ScreenKernel::Wgmma } else { ScreenKernel::Mma }, screen)
    }

    /// [`crate::cuda::device::Device::screen`] by one of the kernels.
    pub(super) fn screen_by(
        &mut self,
        kernel: ScreenKernel,
        screen: &Screen<'_, CudaBuffer>,
    ) -> Result<(), DeviceError> {
        check(screen)?;
        if screen.features == 0 || screen.rows == 0 {
            return Ok(());
        }
        match kernel {
            ScreenKernel::Plain => launch::screen::plain(screen, self),
            ScreenKernel::Mma => launch::screen::mma(screen, self),
            ScreenKernel::Wgmma => self.screen_by_wgmma(screen),
        }
    }

    fn screen_by_wgmma(&mut self, screen: &Screen<'_, CudaBuffer>) -> Result<(), DeviceError> {
        let mut maps = [
            tensor_map(screen.encoder, screen.features, screen.stride, WGMMA_TILE.0)?,
            tensor_map(screen.x, screen.rows, screen.stride, WGMMA_TILE.1)?,
        ];
        let mut pointers = [
            screen.feature_base,
            screen.feature_norm,
            screen.feature_residual,
            screen.row_norm,
            screen.row_residual,
            screen.mask,
        ]
        .map(|buffer| buffer.pointer);
        let mut sizes = [screen.features, screen.rows, screen.stride, screen.words].map(|size| size as u32);
        let mut arguments: Vec<*mut c_void> = Vec::new();
        arguments.extend(maps.each_mut().map(|map| (map as *mut sys::CUtensorMap).cast::<c_void>()));
        arguments.extend(pointers.each_mut().map(|pointer| (pointer as *mut u64).cast::<c_void>()));
        arguments.extend(sizes.each_mut().map(|size| (size as *mut u32).cast::<c_void>()));
        let name = "encode_wgmma";
        let launch = Launch {
            kernel: Kernel { module: name, function: name },
            grid: wgmma_grid(screen.features, screen.rows, self.properties.multiprocessors),
            block: [WGMMA_THREADS, 1, 1],
            shared_bytes: WGMMA_SHARED_BYTES,
            parameters: &[],
            arguments: &[],
        };
        self.queue(name, buffers(screen).into_iter(), |device| {
            // SAFETY: these are the kernel's parameters, and `check` has seen that all arrays are large enough.
            unsafe { device.launch_raw(&launch, &mut arguments) }
        })
    }
}

fn buffers<'a>(screen: &Screen<'a, CudaBuffer>) -> [&'a CudaBuffer; 8] {
    [
        screen.encoder,
        screen.x,
        screen.feature_base,
        screen.feature_norm,
        screen.feature_residual,
        screen.row_norm,
        screen.row_residual,
        screen.mask,
    ]
}

/// That all arrays are as large as the sizes say.
fn check(screen: &Screen<'_, CudaBuffer>) -> Result<(), DeviceError> {
    let (features, rows, stride) = (screen.features, screen.rows, screen.stride);
    let sizes = [features, rows, stride, screen.words];
    if stride == 0
        || !stride.is_multiple_of(64)
        || screen.words != rows.div_ceil(32).next_multiple_of(4)
        || sizes.iter().any(|size| i32::try_from(*size).is_err())
    {
        return Err(DeviceError::Failed {
            operation: "the screen".to_owned(),
            reason: format!("{features} features, {rows} rows, stride {stride}, {} words", screen.words),
        });
    }
    let bytes = [features * stride * 2, rows * stride * 2]
        .into_iter()
        .chain([features * 4; 3])
        .chain([rows * 4; 2])
        .chain([features * screen.words * 4]);
    buffers(screen)
        .into_iter()
        .zip(bytes)
        .try_for_each(|(buffer, bytes)| check_range("the screen", buffer, 0, bytes))
}

/// The copy engine's map of a bfloat16 matrix [rows, stride], in boxes of 64 columns × `box_rows`, 128-byte swizzle,
/// zeros beyond the matrix.
fn tensor_map(
    matrix: &CudaBuffer,
    rows: usize,
    stride: usize,
    box_rows: usize,
) -> Result<sys::CUtensorMap, DeviceError> {
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // The innermost dimension first; strides in bytes, without that of the innermost.
    let dimensions = [stride as u64, rows as u64];
    let strides = [stride as u64 * 2];
    let (box_size, element_strides) = ([BOX_COLUMNS, box_rows as u32], [1u32, 1]);
    // SAFETY: the arrays are as long as the rank asks for and read during the call alone; the matrix lies on the device
    // (aligned to 256, as all buffers) and is not read here.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            matrix.pointer as *mut c_void,
            dimensions.as_ptr(),
            strides.as_ptr(),
            box_size.as_ptr(),
            element_strides.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(failed("describing a matrix to the copy engine"))?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_cover_odd_sizes_and_leave_no_multiprocessor_idle() {
        assert_eq!(wgmma_grid(24_576, 4096, 132), [132, 1, 1]);
        assert_eq!(wgmma_grid(129, 257, 132), [4, 1, 1]);
    }

    #[test]
    fn shared_memory_is_what_the_kernel_lays_out() {
        let wgmma = include_str!("../../../cuda/encode_wgmma.cu");
        assert!(wgmma.contains(&format!("SHARED_BYTES == {WGMMA_SHARED_BYTES}")));
    }
}
