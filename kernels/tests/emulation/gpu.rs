//! The same tests on a GPU. With [`ON_A_GPU`] in the environment, every launch, product and screen of a test goes to the real
//! device. `scripts/gpu-check` uses this.
//!
//! All tests of a process share one device. A buffer (poison included) is copied there when a launch first uses it, and bytes
//! travel only where the other side has newer ones. A step's data stays on the device from its first launch to its last.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kernels::cuda::cuda_device::{CudaBuffer, CudaDevice, CudaOptions};
use kernels::cuda::device::{Argument, Device, DeviceError, Factor, Gemm, Launch, Screen};

use super::Buffer;

/// The environment variable.
const ON_A_GPU: &str = "KERNEL_TESTS_ON_A_GPU";

/// The process' device. A test that fails leaves it as it is for the others.
fn device() -> MutexGuard<'static, CudaDevice> {
    static DEVICE: OnceLock<Mutex<CudaDevice>> = OnceLock::new();
    let new = || CudaDevice::new(&CudaOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    DEVICE.get_or_init(|| Mutex::new(new())).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether tests run on a GPU.
pub(crate) fn on_a_gpu() -> bool {
    std::env::var_os(ON_A_GPU).is_some()
}

/// A buffer's copy on the device.
#[derive(Debug)]
pub(super) struct OnDevice {
    copy: CudaBuffer,
    newer: Newer,
}

/// Who has bytes that the other has not.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Newer {
    Neither,
    Host,
    Device,
}

impl OnDevice {
    /// Brings the device's bytes to `bytes`, the host's, where they are newer.
    pub(super) fn fetch(&mut self, bytes: &mut [u8]) {
        if self.newer == Newer::Device {
            device().download(&self.copy, 0, bytes).unwrap_or_else(|error| panic!("{error}"));
            self.newer = Newer::Neither;
        }
    }

    /// The host is about to change its bytes, which are not older than the device's.
    pub(super) fn host_changes(&mut self) {
        assert!(self.newer != Newer::Device, "the device's bytes were not fetched");
        self.newer = Newer::Host;
    }
}

/// Makes the device's bytes of all these buffers the newer ones: they are about to be used there.
fn send<'a>(
    device: &mut CudaDevice,
    buffers: impl IntoIterator<Item = &'a Buffer>,
) -> Result<Copies<'a>, DeviceError> {
    let mut copies = Copies::new();
    for buffer in buffers {
        let mut on_device = buffer.on_device.borrow_mut();
        let there = match &mut *on_device {
            Some(there) => there,
            none => {
                let copy = device.allocate(buffer.bytes, "a test")?;
                none.insert(OnDevice { copy, newer: Newer::Host })
            }
        };
        if there.newer == Newer::Host {
            device.upload(&mut there.copy, 0, buffer.host_bytes())?;
        }
        there.newer = Newer::Device;
        drop(on_device);
        let copy = Ref::map(buffer.on_device.borrow(), |there| &there.as_ref().expect("just made").copy);
        copies.insert(buffer.range(0, 0), copy);
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
