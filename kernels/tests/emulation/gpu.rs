//! The same tests on a GPU: with [`ON_A_GPU`] in the environment every launch, product and screen of a test goes to the
//! real device. Its buffers travel there with all their bytes (poison included) and back, so that tests look at
//! them as always. For `scripts/gpu-check`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use kernels::cuda::cuda_device::{CudaBuffer, CudaDevice, CudaOptions};
use kernels::cuda::device::{Argument, Device, DeviceError, Factor, Gemm, Kernel, Launch, Screen};
use kernels::cuda::sources::KERNELS;

use super::Buffer;
use super::library::kernel_names;

/// The environment variable.
const ON_A_GPU: &str = "KERNEL_TESTS_ON_A_GPU";

thread_local! {
    /// One device serves a whole test: setting one up takes longer than most tests.
    static DEVICE: RefCell<Option<Rc<RefCell<CudaDevice>>>> = const { RefCell::new(None) };
}

pub(crate) struct Gpu {
    device: Rc<RefCell<CudaDevice>>,
}

/// A test's buffers on the device, by their addresses here.
type Copies<'a> = BTreeMap<*mut u8, (&'a Buffer, CudaBuffer)>;

impl Gpu {
    /// The GPU, if the environment asks for it.
    pub(crate) fn from_environment() -> Option<Gpu> {
        std::env::var_os(ON_A_GPU)?;
        let new = || {
            let device = CudaDevice::new(&CudaOptions::default()).unwrap_or_else(|error| panic!("{error}"));
            Rc::new(RefCell::new(device))
        };
        Some(Gpu { device: DEVICE.with(|device| device.borrow_mut().get_or_insert_with(new).clone()) })
    }

    fn send<'a>(&mut self, buffers: impl IntoIterator<Item = &'a Buffer>) -> Result<Copies<'a>, DeviceError> {
        let mut copies = Copies::new();
        for buffer in buffers {
            let address = buffer.range(0, 0);
            if copies.contains_key(&address) {
                continue;
            }
            let mut copy = self.device.borrow_mut().allocate(buffer.bytes, "a test")?;
            self.device.borrow_mut().upload(&mut copy, 0, &buffer.numbers::<u8>())?;
            copies.insert(address, (buffer, copy));
        }
        Ok(copies)
    }

    fn fetch(&mut self, copies: Copies<'_>) -> Result<(), DeviceError> {
        for (address, (buffer, copy)) in copies {
            let mut bytes = vec![0u8; buffer.bytes];
            self.device.borrow_mut().download(&copy, 0, &mut bytes)?;
            // SAFETY: the buffer is that long, and the test does not look at it meanwhile.
            unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
        Ok(())
    }

    /// # Safety
    /// As [`Device::launch`].
    pub(crate) unsafe fn launch(&mut self, launch: &Launch<'_, Buffer>) -> Result<(), DeviceError> {
        let function = launch.kernel.function;
        // Tests name kernels without their files.
        let holds = |text: &str| kernel_names(text).iter().any(|name| name == function);
        let module = KERNELS.iter().find(|source| holds(source.text)).expect("a kernel of ours").name;
        let copies = self.send(launch.arguments.iter().filter_map(|argument| match argument {
            Argument::Buffer(buffer, _) => Some(*buffer),
            _ => None,
        }))?;
        let arguments: Vec<Argument<'_, CudaBuffer>> = launch
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Buffer(buffer, offset) => Argument::Buffer(&copies[&buffer.range(0, 0)].1, *offset),
                Argument::Null => Argument::Null,
                Argument::U32(number) => Argument::U32(*number),
                Argument::U64(number) => Argument::U64(*number),
                Argument::F32(number) => Argument::F32(*number),
            })
            .collect();
        let (grid, block, shared_bytes) = (launch.grid, launch.block, launch.shared_bytes);
        let kernel = Kernel { module, function };
        // SAFETY: the caller's promise, of the same arguments on the device.
        unsafe {
            self.device.borrow_mut().launch(&Launch {
                kernel,
                grid,
                block,
                shared_bytes,
                arguments: &arguments,
            })
        }?;
        drop(arguments);
        self.fetch(copies)
    }

    pub(crate) fn gemm(&mut self, gemm: &Gemm<'_, Buffer>) -> Result<(), DeviceError> {
        let copies = self.send([gemm.a.buffer, gemm.b.buffer, gemm.out])?;
        let copy = |buffer: &Buffer| &copies[&buffer.range(0, 0)].1;
        let factor = |factor: &Factor<'_, Buffer>| {
            let Factor { buffer, offset, stride, transposed } = *factor;
            Factor { buffer: copy(buffer), offset, stride, transposed }
        };
        self.device.borrow_mut().gemm(&Gemm {
            sizes: gemm.sizes,
            element: gemm.element,
            a: factor(&gemm.a),
            b: factor(&gemm.b),
            out: copy(gemm.out),
            out_offset: gemm.out_offset,
            out_stride: gemm.out_stride,
            accumulate: gemm.accumulate,
        })?;
        self.fetch(copies)
    }

    /// By the tensor cores.
    pub(crate) fn screen(&mut self, screen: &Screen<'_, Buffer>) -> Result<(), DeviceError> {
        let (bounds, rows) = (
            [screen.feature_base, screen.feature_norm, screen.feature_residual],
            [screen.row_norm, screen.row_residual],
        );
        let copies =
            self.send([screen.encoder, screen.x, screen.mask].into_iter().chain(bounds).chain(rows))?;
        let copy = |buffer: &Buffer| &copies[&buffer.range(0, 0)].1;
        self.device.borrow_mut().screen(&Screen {
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
        })?;
        self.fetch(copies)
    }
}
