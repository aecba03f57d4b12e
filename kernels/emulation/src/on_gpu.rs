//! Launches, products and screens of emulated buffers, done on the process' GPU.
//!
//! A buffer (poison included) is copied there when a launch first uses it, and bytes travel only where the other side has newer
//! ones. A step's data stays on the device from its first launch to its last.

use std::cell::Ref;
use std::collections::BTreeMap;

use kernels::cuda::cuda_device::{CudaBuffer, CudaDevice};
use kernels::cuda::device::{Argument, Device, Factor, Gemm, Launch, Screen};
use kernels::error::DeviceError;

use crate::buffer::Buffer;
use crate::gpu::{device, on_a_gpu};

/// Makes the device's bytes of all these buffers the newer ones: they are about to be used there.
fn send<'a>(
    device: &mut CudaDevice,
    buffers: impl IntoIterator<Item = &'a Buffer>,
) -> Result<Copies<'a>, DeviceError> {
    let mut copies = Copies::new();
    for buffer in buffers {
        copies.insert(buffer.range(0, 0), buffer.send(device)?);
    }
    Ok(copies)
}

/// Buffers on the device, by their addresses here.
type Copies<'a> = BTreeMap<*mut u8, Ref<'a, CudaBuffer>>;

/// Launches on the process' device.
pub(crate) struct Gpu;

impl Gpu {
    /// The GPU, if the environment asks for it.
    pub(crate) fn from_environment() -> Option<Gpu> {
        on_a_gpu().then_some(Gpu)
    }

    /// # Safety
    /// As [`Device::launch`].
    pub(crate) unsafe fn launch(&mut self, launch: &Launch<'_, Buffer>) -> Result<(), DeviceError> {
        let mut device = device();
        let buffers = launch.arguments.iter().filter_map(|argument| match argument {
            Argument::Buffer(buffer, _) => Some(*buffer),
            _ => None,
        });
        let copies = send(&mut device, distinct(buffers))?;
        let arguments: Vec<Argument<'_, CudaBuffer>> = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Buffer(buffer, offset) => Argument::Buffer(&*copies[&buffer.range(0, 0)], *offset),
                Argument::Null => Argument::Null,
                Argument::U32(number) => Argument::U32(*number),
                Argument::U64(number) => Argument::U64(*number),
                Argument::F32(number) => Argument::F32(*number),
            })
            .collect();
        let Launch { kernel, grid, block, shared_bytes, parameters, .. } = *launch;
        // SAFETY: the caller's promise, of the same arguments on the device.
        unsafe {
            device.launch(&Launch { kernel, grid, block, shared_bytes, parameters, arguments: &arguments })
        }
    }

    pub(crate) fn gemm(&mut self, gemm: &Gemm<'_, Buffer>) -> Result<(), DeviceError> {
        let mut device = device();
        let copies = send(&mut device, distinct([gemm.a.buffer, gemm.b.buffer, gemm.out]))?;
        let copy = |buffer: &Buffer| &*copies[&buffer.range(0, 0)];
        let factor = |factor: &Factor<'_, Buffer>| {
            let Factor { buffer, offset, stride, transposed } = *factor;
            Factor { buffer: copy(buffer), offset, stride, transposed }
        };
        device.gemm(&Gemm {
            sizes: gemm.sizes,
            element: gemm.element,
            a: factor(&gemm.a),
            b: factor(&gemm.b),
            out: copy(gemm.out),
            out_offset: gemm.out_offset,
            out_stride: gemm.out_stride,
            accumulate: gemm.accumulate,
        })
    }

    /// By the kernel that the environment or the device chooses.
    pub(crate) fn screen(&mut self, screen: &Screen<'_, Buffer>) -> Result<(), DeviceError> {
        let mut device = device();
        let (bounds, rows) = (
            [screen.feature_base, screen.feature_norm, screen.feature_residual],
            [screen.row_norm, screen.row_residual],
        );
        let buffers = [screen.encoder, screen.x, screen.mask].into_iter().chain(bounds).chain(rows);
        let copies = send(&mut device, distinct(buffers))?;
        let copy = |buffer: &Buffer| &*copies[&buffer.range(0, 0)];
        device.screen(&Screen {
            features: screen.features,
            rows: screen.rows,
            stride: screen.stride,
            encoder: copy(screen.encoder),
            x: copy(screen.x),
            feature_base: copy(screen.feature_base),
            feature_norm: copy(screen.feature_norm),
            feature_residual: copy(screen.feature_residual),
            row_norm: copy(screen.row_norm),
            row_residual: copy(screen.row_residual),
            mask: copy(screen.mask),
            words: screen.words,
        })
    }
}

/// Each buffer once.
fn distinct<'a>(buffers: impl IntoIterator<Item = &'a Buffer>) -> impl Iterator<Item = &'a Buffer> {
    let by_address: BTreeMap<*mut u8, &Buffer> =
        buffers.into_iter().map(|buffer| (buffer.range(0, 0), buffer)).collect();
    by_address.into_values()
}
