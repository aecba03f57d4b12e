//! A [`Device`] that runs the `.cu` files on the CPU.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::sync::Arc;

use kernels::cuda::device::{Argument, Device, Element, Factor, Gemm, Launch, Move, Properties, Screen};
use kernels::error::DeviceError;
use ranks::Exchange;

use crate::buffer::Buffer;
use crate::library::{Kernels, Sanitizer};
use crate::on_gpu::Gpu;
use crate::signatures::parameters;

/// A device of memory on the host, whose kernels run on the CPU.
pub struct EmulatedDevice {
    /// Where tests run on a GPU instead.
    gpu: Option<Gpu>,
    properties: Properties,
    /// As [`EmulatedDevice::in_order`] says.
    order: u32,
    /// How often each kernel ran.
    pub launched: BTreeMap<&'static str, usize>,
    /// How many uploads of so many bytes there were.
    pub uploaded: BTreeMap<usize, usize>,
    /// Bytes that can still be allocated.
    pub free: usize,
    /// The other ranks' devices.
    peers: Option<Arc<dyn Exchange>>,
}

impl Default for EmulatedDevice {
    fn default() -> EmulatedDevice {
        EmulatedDevice::in_order(0)
    }
}

impl EmulatedDevice {
    /// A device with a gibibyte, whose blocks and threads run as they are numbered.
    pub fn new() -> EmulatedDevice {
        EmulatedDevice::default()
    }

    /// The same, whose blocks and threads run in another order: 1 backwards; 2 and 3 as numbered and backwards with the first
    /// warps as far ahead as they get; others are seeds of a shuffle.
    pub fn in_order(order: u32) -> EmulatedDevice {
        EmulatedDevice {
            gpu: Gpu::from_environment(),
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
            peers: None,
        }
    }

    /// A device of one of several ranks, with which its own exchanges bytes.
    pub fn among(peers: Arc<dyn Exchange>) -> EmulatedDevice {
        EmulatedDevice { peers: Some(peers), ..EmulatedDevice::default() }
    }

    /// A buffer that holds `numbers`.
    pub fn holding<T: bytemuck::Pod>(&mut self, numbers: &[T]) -> Buffer {
        let mut buffer = self.allocate(size_of_val(numbers), "a test").unwrap();
        self.upload(&mut buffer, 0, bytemuck::cast_slice(numbers)).unwrap();
        buffer
    }

    /// A buffer for `count` numbers, poisoned.
    pub fn room<T>(&mut self, count: usize) -> Buffer {
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
        buffer.len()
    }

    fn identity(&self, buffer: &Buffer) -> u64 {
        buffer.range(0, 0) as u64
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

    fn exchange(&mut self, moves: &[Move<'_, Buffer>]) -> Result<(), DeviceError> {
        const OPERATION: &str = "an exchange between devices";
        let peers = self.peers.clone().ok_or_else(|| failed(OPERATION, "there are no others".into()))?;
        for one in moves {
            let (to, moved) = match one {
                Move::AllToAll { from, to, part } => {
                    let mut sent = vec![0; part * peers.ranks()];
                    self.download(from, 0, &mut sent)?;
                    let mut received = vec![0; sent.len()];
                    (to, peers.all_to_all(&sent, &mut received).map(|()| received))
                }
                Move::AllGather { of, part } => {
                    let mut sent = vec![0; *part];
                    self.download(of, peers.rank() * part, &mut sent)?;
                    let mut received = vec![0; part * peers.ranks()];
                    (of, peers.all_gather(&sent, &mut received).map(|()| received))
                }
            };
            let received = moved.map_err(|error| failed(OPERATION, error.to_string()))?;
            to.host_changes();
            let place = to.range(0, received.len());
            // SAFETY: within the buffer, and no kernel runs meanwhile.
            unsafe { place.copy_from_nonoverlapping(received.as_ptr(), received.len()) };
        }
        Ok(())
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
