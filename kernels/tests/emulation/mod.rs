//! A [`Device`] for tests that runs the `.cu` files on the CPU: `cuda.h` says how, and what it can find.
//!
//! The files are compiled by g++ when a test first asks for them, into one library per set of flags, kept in
//! cargo's target folder under a hash of all that went into it.

#![allow(dead_code, unused_imports)] // Each test binary uses a part of it.

mod driver;
mod gpu;
mod library;
mod sanitized;

use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;

use kernels::cuda::device::{
    Argument, Device, DeviceError, Element, Factor, Gemm, Launch, Properties, Screen,
};

pub(crate) use driver::EmulatedDriver;
pub(crate) use gpu::on_a_gpu;
use library::parameters;
pub(crate) use library::{Kernels, Sanitizer};
pub(crate) use sanitized::run_again_sanitized;

/// Memory of the emulated device: exactly as long as asked for, so that the address sanitizer sees the ends.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
    /// Where tests run on a GPU.
    on_device: RefCell<Option<gpu::OnDevice>>,
}

impl Buffer {
    fn new(bytes: usize) -> Buffer {
        let layout = Layout::from_size_align(bytes.max(1), 256).unwrap();
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { std::alloc::alloc(layout) }).expect("out of memory");
        // NaN in every float, and huge indices.
        // SAFETY: `start` points to that many bytes.
        unsafe { start.as_ptr().write_bytes(0xff, layout.size()) };
        Buffer { start, layout, bytes, on_device: RefCell::new(None) }
    }

    fn range(&self, offset: usize, bytes: usize) -> *mut u8 {
        let end = offset.checked_add(bytes).expect("a range of this size");
        assert!(end <= self.bytes, "bytes {offset}..{end} of a buffer of {}", self.bytes);
        // SAFETY: within the allocation, as just checked.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Its content as numbers.
    pub(crate) fn numbers<T: bytemuck::Pod>(&self) -> Vec<T> {
        self.fetch();
        bytemuck::pod_collect_to_vec(self.host_bytes())
    }

    fn host_bytes(&self) -> &[u8] {
        // SAFETY: all bytes were initialised when the buffer was made; no kernel runs meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The host's `bytes` from `offset` on.
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.host_changes();
        let to = self.range(offset, bytes.len());
        // SAFETY: both ranges are that long, and one is memory of ours alone.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Before the host looks at its bytes.
    fn fetch(&self) {
        if let Some(there) = &mut *self.on_device.borrow_mut() {
            // SAFETY: as above, and nobody looks at them meanwhile.
            there.fetch(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) });
        }
    }

    /// Before the host changes some of its bytes.
    fn host_changes(&self) {
        self.fetch();
        if let Some(there) = &mut *self.on_device.borrow_mut() {
            there.host_changes();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// The emulated device.
pub(crate) struct EmulatedDevice {
    /// Where tests run on a GPU instead.
    gpu: Option<gpu::Gpu>,
    properties: Properties,
    /// In which order blocks and threads run: 0 as numbered, 1 backwards; 2 and 3 the same with
    /// the first warps as far ahead as they get; others shuffled.
    order: u32,
    /// How often each kernel ran.
    pub(crate) launched: BTreeMap<&'static str, usize>,
    /// How many uploads of so many bytes there were.
    pub(crate) uploaded: BTreeMap<usize, usize>,
    /// Bytes that can still be allocated.
    pub(crate) free: usize,
}

impl EmulatedDevice {
    pub(crate) fn new() -> EmulatedDevice {
        EmulatedDevice::in_order(0)
    }

    pub(crate) fn in_order(order: u32) -> EmulatedDevice {
        EmulatedDevice {
            gpu: gpu::Gpu::from_environment(),
            properties: Properties {
                name: "emulation".into(),
                compute_capability: (0, 0),
                multiprocessors: 2,
                shared_memory_per_block: 48 << 10,
                l2_bytes: 0,
                memory_bytes: 1 << 30,
            },
            order,
            launched: BTreeMap::new(),
            uploaded: BTreeMap::new(),
            free: 1 << 30,
        }
    }

    /// A buffer that holds `numbers`.
    pub(crate) fn holding<T: bytemuck::Pod>(&mut self, numbers: &[T]) -> Buffer {
        let mut buffer = self.allocate(size_of_val(numbers), "a test").unwrap();
        self.upload(&mut buffer, 0, bytemuck::cast_slice(numbers)).unwrap();
        buffer
    }

    /// A buffer for `count` numbers, poisoned.
    pub(crate) fn room<T>(&mut self, count: usize) -> Buffer {
        self.allocate(count * size_of::<T>(), "a test").unwrap()
    }

    /// Element (i, j) of a factor as it enters a product.
    fn element(element: Element, factor: &Factor<'_, Buffer>, i: usize, j: usize) -> f32 {
        let (row, column) = if factor.transposed { (j, i) } else { (i, j) };
        let at = row * factor.stride + column;
        match element {
            Element::F32 => {
                let from = factor.buffer.range(factor.offset + 4 * at, 4).cast::<f32>();
                // SAFETY: within the buffer, whose bytes are initialised.
                unsafe { from.read_unaligned() }
            }
            Element::Bf16 => {
                let from = factor.buffer.range(factor.offset + 2 * at, 2).cast::<u16>();
                // SAFETY: as above.
                f32::from_bits(u32::from(unsafe { from.read_unaligned() }) << 16)
            }
        }
    }
}

fn failed(operation: &str, reason: String) -> DeviceError {
    DeviceError::Failed { operation: operation.into(), reason }
}

impl Device for EmulatedDevice {
    type Buffer = Buffer;
    type Mailbox = Buffer;
    type Graph = ();

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<usize, DeviceError> {
        Ok(self.free)
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, DeviceError> {
        let free = self.free;
        self.free = free.checked_sub(bytes).ok_or_else(|| DeviceError::OutOfMemory {
            what: what.into(),
            wanted: bytes,
            free,
        })?;
        Ok(Buffer::new(bytes))
    }

    fn length(&self, buffer: &Buffer) -> usize {
        buffer.bytes
    }

    fn identity(&self, buffer: &Buffer) -> u64 {
        buffer.start.as_ptr() as u64
    }

    fn upload(&mut self, to: &mut Buffer, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        *self.uploaded.entry(bytes.len()).or_default() += 1;
        to.write(offset, bytes);
        Ok(())
    }

    fn download(&mut self, from: &Buffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        from.fetch();
        let from = from.range(offset, to.len());
        // SAFETY: as for the upload.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(from, to.len()) };
        Ok(())
    }

    fn zero(&mut self, buffer: &mut Buffer, offset: usize, bytes: usize) -> Result<(), DeviceError> {
        buffer.host_changes();
        // SAFETY: within the buffer.
        unsafe { buffer.range(offset, bytes).write_bytes(0, bytes) };
        Ok(())
    }

    fn mailbox(&mut self, bytes: usize) -> Result<Buffer, DeviceError> {
        // Of the host's memory, not of the device's.
        let mut mailbox = Buffer::new(bytes);
        self.zero(&mut mailbox, 0, bytes)?;
        Ok(mailbox)
    }

    fn memory<'a>(&self, mailbox: &'a Buffer) -> &'a Buffer {
        mailbox
    }

    fn put(&mut self, mailbox: &mut Buffer, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        mailbox.write(offset, bytes);
        Ok(())
    }

    fn post(&mut self, _: &mut Buffer) -> Result<(), DeviceError> {
        Ok(())
    }

    fn collect(&mut self, mailbox: &Buffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        self.download(mailbox, offset, to)
    }

    unsafe fn launch(&mut self, launch: &Launch<'_, Buffer>) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let name = launch.kernel.function;
        if launch.parameters != parameters(name) {
            let (given, expected) = (launch.parameters, parameters(name));
            return Err(failed(name, format!("its parameters are {expected:?}, but {given:?} were given")));
        }
        if let Some(gpu) = &mut self.gpu {
            *self.launched.entry(name).or_default() += 1;
            // SAFETY: the caller's promise.
            return unsafe { gpu.launch(launch) };
        }
        let kernels = Kernels::get(Sanitizer::from_environment());
        let kernel = kernels.find(name).ok_or_else(|| failed(name, "there is no such kernel".into()))?;
        let mut kinds = String::new();
        let mut words: Vec<u64> = Vec::new();
        for argument in launch.arguments {
            let (kind, word) = match argument {
                Argument::Buffer(buffer, offset) => {
                    // A pointer to the end of an empty range is fine.
                    ('p', buffer.range(*offset, 0) as u64)
                }
                Argument::Null => ('p', 0),
                Argument::U32(number) => ('u', u64::from(*number)),
                Argument::U64(number) => ('l', *number),
                Argument::F32(number) => ('f', u64::from(number.to_bits())),
            };
            kinds.push(kind);
            words.push(word);
        }
        // SAFETY: the library returns a static string.
        let expected = unsafe { CStr::from_ptr((kernel.kinds)()) }.to_string_lossy();
        if kinds != expected {
            return Err(failed(name, format!("its parameters are {expected}, but {kinds} were given")));
        }
        let mut pointers: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        *self.launched.entry(name).or_default() += 1;
        // SAFETY: number and kinds of the arguments are the kernel's, as just checked; the rest is promised
        // by the caller.
        unsafe {
            (kernel.launch)(launch.grid.as_ptr(), launch.block.as_ptr(), pointers.as_mut_ptr(), self.order);
        }
        Ok(())
    }

    fn gemm(&mut self, gemm: &Gemm<'_, Buffer>) -> Result<(), DeviceError> {
        if let Some(gpu) = &mut self.gpu {
            return gpu.gemm(gemm);
        }
        let (m, n, k) = gemm.sizes;
        for i in 0..m {
            for j in 0..n {
                let mut sum = 0.0f32;
                for at in 0..k {
                    let a = Self::element(gemm.element, &gemm.a, i, at);
                    sum = a.mul_add(Self::element(gemm.element, &gemm.b, at, j), sum);
                }
                let out = gemm.out.range(gemm.out_offset + 4 * (i * gemm.out_stride + j), 4).cast::<f32>();
                // SAFETY: within the buffer, whose bytes are initialised.
                unsafe {
                    let before = if gemm.accumulate { out.read_unaligned() } else { 0.0 };
                    out.write_unaligned(before + sum);
                }
            }
        }
        Ok(())
    }

    fn screen(&mut self, screen: &Screen<'_, Buffer>) -> Result<(), DeviceError> {
        if let Some(gpu) = &mut self.gpu {
            *self.launched.entry("screen").or_default() += 1;
            return gpu.screen(screen);
        }
        kernels::cuda::launch::screen::plain(screen, self)
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn end_recording(&mut self) -> Result<(), DeviceError> {
        Err(failed("the end of a recording", "nothing was recorded".into()))
    }

    fn replay(&mut self, _graph: &()) -> Result<(), DeviceError> {
        Err(failed("a replay", "nothing was recorded".into()))
    }
}

/// A kernel in the library.
pub(crate) struct EmulatedKernel {
    launch: unsafe extern "C" fn(*const u32, *const u32, *mut *mut c_void, u32),
    kinds: unsafe extern "C" fn() -> *const c_char,
}
