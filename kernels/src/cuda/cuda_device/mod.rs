//! A GPU, through NVIDIA's driver: the [`Device`] that trains.
//!
//! One stream computes, another one brings batches (see [`upload`]). Kernels are compiled when the device is set up;
//! a recorded step is a CUDA graph.

mod blas;
mod driver;
mod environment;
mod modules;
mod nccl;
mod screen;
mod screen_kernel;
mod timing;
mod unavailable;
mod upload;
mod watch;

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{result, sys};

use blas::Blas;
use driver::{Context, Stream, check_range, cuda_version, failed};
pub use driver::{CudaBuffer, CudaMailbox};
use environment::Environment;
use modules::Modules;
pub use nccl::{Nccl, NcclError, OneOf, Rendezvous};
pub use screen_kernel::ScreenKernel;
use timing::Timing;
pub use timing::Timings;
pub use unavailable::Unavailable;
use upload::Uploads;
use watch::Watch;

use super::cubin_cache::CubinCache;
use super::device::{Argument, Device, Factor, Gemm, Launch, Move, Properties, Screen};
use super::libraries::{self, ToolkitLibrary};
use super::nvrtc::{self, Waits};
use crate::error::DeviceError;

/// How a [`CudaDevice`] is set up.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// The device's number, counted as `CUDA_VISIBLE_DEVICES` leaves them.
    pub ordinal: usize,
    /// Where compiled kernels are kept.
    pub cache: CubinCache,
    /// Fill new memory with bytes of 255 (as numbers: NaN), so that what is read before it is written shows. For
    /// checks; the driver leaves zeros or old data there.
    pub poison: bool,
    /// The kernel that finds the candidates; where it is not said, that of the environment's `SAE_TRAINER_CUDA_SCREEN`
    /// (`plain`, `mma` or `wgmma`), and without one the fastest that the device has.
    pub screen: Option<ScreenKernel>,
    /// Kernels and the host wait for a while only, and what does not end is an error that names it. For checks, as kernels
    /// look at the time while they wait. Also where the environment says `SAE_TRAINER_CUDA_BOUNDED_WAITS=1`.
    pub bounded_waits: bool,
    /// The ranks with whose devices it exchanges bytes; its number is then theirs to choose.
    pub ranks: Option<Arc<Nccl>>,
}

impl Default for CudaOptions {
    /// The first device, the user's cache, no poison, and what the environment asks for.
    fn default() -> CudaOptions {
        let cache = CubinCache::of_the_user();
        CudaOptions { ordinal: 0, cache, poison: false, screen: None, bounded_waits: false, ranks: None }
    }
}

/// A GPU.
#[derive(Debug)]
pub struct CudaDevice {
    // Fields are dropped in this order: what uses a stream before the stream, the context last.
    blas: Blas,
    modules: Modules,
    uploads: Uploads,
    timing: Option<Timing>,
    /// In a check build.
    watch: Option<Watch>,
    compute: Arc<Stream>,
    properties: Properties,
    poison: bool,
    screen: ScreenKernel,
    /// Operations queued so far.
    operations: u64,
    /// While work is recorded, the buffers it uses.
    recording: Option<Recording>,
    ranks: Option<Arc<Nccl>>,
    context: Arc<Context>,
}

/// What is recorded: the buffers that it uses, and the operations.
#[derive(Debug, Default)]
struct Recording {
    uses: Vec<Arc<AtomicU64>>,
    operations: Vec<&'static str>,
}

/// Recorded work.
#[derive(Debug)]
pub struct CudaGraph {
    context: Arc<Context>,
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    recording: Recording,
}

// SAFETY: graphs may be used from any thread, one at a time, with their context current.
unsafe impl Send for CudaGraph {}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: both are alive and not used after this.
            unsafe {
                let _ = result::graph::exec_destroy(self.executable);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}

impl CudaDevice {
    /// Finds the device, the compiler and the BLAS, and compiles the kernels.
    ///
    /// # Errors
    /// What is missing and where it was looked for.
    pub fn new(options: &CudaOptions) -> Result<CudaDevice, Unavailable> {
        let asked = Environment::read()?;
        let bounded_waits = options.bounded_waits || asked.bounded_waits;
        let context = match &options.ranks {
            Some(ranks) => ranks.context.clone(),
            None => Arc::new(Context::new(options.ordinal, bounded_waits)?),
        };
        context.bind()?;
        let properties = context.properties()?;
        if properties.compute_capability < (8, 0) {
            let capability = properties.compute_capability;
            return Err(Unavailable::OldDevice { name: properties.name, capability });
        }
        let screen = ScreenKernel::choose(options.screen.or(asked.screen), &properties)?;
        for library in [ToolkitLibrary::Compiler, ToolkitLibrary::Blas] {
            libraries::load(library).map_err(|searched| Unavailable::NoLibrary { library, searched })?;
        }
        let (compiler, found) =
            (nvrtc::version(), cuda_version().map_err(failed("reading the driver's version"))?);
        if compiler.0 > found.0 {
            let why = ", because NVRTC is of that version";
            return Err(Unavailable::OldDriver { found, needed: (compiler.0, 0), why });
        }
        let compute = match &options.ranks {
            Some(ranks) => ranks.stream.clone(),
            None => Arc::new(Stream::new(&context)?),
        };
        let waits = if bounded_waits { Waits::Bounded } else { Waits::Unbounded };
        let mut modules = Modules::load(&context, properties.compute_capability, waits, &options.cache)?;
        let watch = bounded_waits.then(|| Watch::new(&context, &mut modules, &compute)).transpose()?;
        Ok(CudaDevice {
            blas: Blas::new(&context, &compute)?,
            modules,
            uploads: Uploads::new(&context)?,
            timing: None,
            watch,
            compute,
            properties,
            poison: options.poison,
            screen,
            operations: 0,
            recording: None,
            ranks: options.ranks.clone(),
            context,
        })
    }

    /// From now on the time of every kernel and product is measured (and steps are neither recorded as graphs nor
    /// replayed).
    ///
    /// # Errors
    /// A driver older than CUDA 12.8, or what the driver said.
    pub fn start_timing(&mut self) -> Result<(), DeviceError> {
        let found = cuda_version().map_err(failed("reading the driver's version"))?;
        if found < (12, 8) {
            let reason = format!("the driver supports CUDA {}.{}, and this takes 12.8", found.0, found.1);
            return Err(DeviceError::Failed { operation: "timing kernels".to_owned(), reason });
        }
        self.context.bind()?;
        self.timing = Some(Timing::new(&self.context));
        Ok(())
    }

    /// Ends the measurement and hands over its result.
    ///
    /// # Errors
    /// What the driver said.
    pub fn finish_timing(&mut self) -> Result<Timings, DeviceError> {
        self.synchronize()?;
        self.timing.take().map_or_else(|| Ok(Timings::default()), Timing::finish)
    }

    /// Queues a copy of all of `from` to the beginning of `to`, within the device: for measurements.
    ///
    /// # Errors
    /// A `to` that is too short, or what the driver said.
    pub fn copy(&mut self, from: &CudaBuffer, to: &mut CudaBuffer) -> Result<(), DeviceError> {
        check_range("a copy", to, 0, from.bytes)?;
        let to = &*to;
        self.queue("copy", [from, to].into_iter(), |device| {
            // SAFETY: both ranges are within their buffers, and the buffers are different.
            unsafe { result::memcpy_dtod_async(to.pointer, from.pointer, from.bytes, device.compute.handle) }
                .map_err(failed(format!("copying {} bytes on the device", from.bytes)))
        })
    }

    /// Queues one operation on the compute stream. It uses `buffers`.
    fn queue<'a>(
        &mut self,
        name: &'static str,
        buffers: impl Iterator<Item = &'a CudaBuffer>,
        work: impl FnOnce(&mut CudaDevice) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.context.bind()?;
        match &mut self.recording {
            Some(recording) => {
                recording.uses.extend(buffers.map(|buffer| buffer.last_use.clone()));
                recording.operations.push(name);
            }
            None => {
                self.operations += 1;
                buffers.for_each(|buffer| buffer.used_at(self.operations));
            }
        }
        let timed = self.recording.is_none() && self.timing.is_some();
        if timed {
            self.timing.as_mut().expect("it is there").begin(name, &self.compute)?;
        }
        let done = work(self);
        self.explained(done)?;
        if timed {
            self.timing.as_mut().expect("it is there").end(&self.compute)?;
        }
        if self.recording.is_none() {
            self.queued(|| name.to_owned())?;
        }
        Ok(())
    }

    /// For a check build: the operation queued last.
    fn queued(&mut self, operation: impl FnOnce() -> String) -> Result<(), DeviceError> {
        match &mut self.watch {
            Some(watch) => watch.queued(operation(), &self.compute),
            None => Ok(()),
        }
    }

    /// An error with what a check build knows about its cause.
    fn explained<T>(&self, result: Result<T, DeviceError>) -> Result<T, DeviceError> {
        result.map_err(|error| match &self.watch {
            Some(watch) => watch.explain(error),
            None => error,
        })
    }
}

/// An error unless a stored matrix of `rows` × `columns` numbers of `size` bytes lies within its buffer.
fn check_matrix(
    operation: &str,
    (buffer, offset): (&CudaBuffer, usize),
    (rows, columns): (usize, usize),
    stride: usize,
    size: usize,
) -> Result<(), DeviceError> {
    let wrong = |reason: String| DeviceError::Failed { operation: operation.to_owned(), reason };
    if columns > stride || [rows, columns, stride].iter().any(|number| i32::try_from(*number).is_err()) {
        return Err(wrong(format!("a matrix of {rows} × {columns} with rows {stride} apart")));
    }
    if rows == 0 {
        return Ok(());
    }
    check_range(operation, buffer, offset, ((rows - 1) * stride + columns) * size)
}

impl Device for CudaDevice {
    type Buffer = CudaBuffer;
    type Mailbox = CudaMailbox;
    type Graph = CudaGraph;

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<usize, DeviceError> {
        self.context.bind()?;
        Ok(result::mem_get_info().map_err(failed("asking for free memory"))?.0)
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<CudaBuffer, DeviceError> {
        let free = self.free_memory()?;
        let out_of_memory = || DeviceError::OutOfMemory { what: what.to_owned(), wanted: bytes, free };
        if bytes > free {
            return Err(out_of_memory());
        }
        let buffer = CudaBuffer::new(&self.context, bytes).map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(),
            _ => failed(format!("allocating {bytes} bytes for {what}"))(error),
        })?;
        if self.poison {
            // SAFETY: the memory was just allocated, with at least this size.
            unsafe { result::memset_d8_async(buffer.pointer, 255, bytes, self.compute.handle) }
                .map_err(failed("filling new memory"))?;
            // An upload on the other stream has to come after it.
            self.operations += 1;
            buffer.used_at(self.operations);
        }
        Ok(buffer)
    }

    fn length(&self, buffer: &CudaBuffer) -> usize {
        buffer.len()
    }

    fn identity(&self, buffer: &CudaBuffer) -> u64 {
        // Not the device's address, which a later buffer may get: a recording keeps this one alive, and so unique.
        Arc::as_ptr(&buffer.last_use) as u64
    }

    fn upload(&mut self, to: &mut CudaBuffer, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        check_range("an upload", to, offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        let uploaded = self.uploads.upload(&self.context, &self.compute, self.operations, to, offset, bytes);
        self.explained(uploaded)?;
        self.operations += 1;
        to.used_at(self.operations);
        Ok(())
    }

    fn download(&mut self, from: &CudaBuffer, offset: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        check_range("a download", from, offset, to.len())?;
        self.synchronize()?;
        // SAFETY: the range is within the buffer; the call returns when the bytes are there.
        unsafe { result::memcpy_dtoh_sync(to, from.pointer + offset as u64) }
            .map_err(failed(format!("copying {} bytes from the device", to.len())))
    }

    fn zero(&mut self, buffer: &mut CudaBuffer, offset: usize, bytes: usize) -> Result<(), DeviceError> {
        check_range("zeroing", buffer, offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let buffer = &*buffer;
        self.queue("zero", [buffer].into_iter(), |device| {
            // SAFETY: the range is within the buffer.
            unsafe {
                result::memset_d8_async(buffer.pointer + offset as u64, 0, bytes, device.compute.handle)
            }
            .map_err(failed(format!("zeroing {bytes} bytes")))
        })
    }

    fn mailbox(&mut self, bytes: usize) -> Result<CudaMailbox, DeviceError> {
        self.context.bind()?;
        CudaMailbox::new(&self.context, bytes)
    }

    fn memory<'a>(&self, mailbox: &'a CudaMailbox) -> &'a CudaBuffer {
        &mailbox.memory
    }

    fn put(&mut self, mailbox: &mut CudaMailbox, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        check_range("a letter", &mailbox.memory, offset, bytes.len())?;
        self.context.bind()?;
        self.explained(mailbox.left.synchronize())?;
        mailbox.bytes_mut()[offset..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn post(&mut self, mailbox: &mut CudaMailbox) -> Result<(), DeviceError> {
        self.context.bind()?;
        mailbox.left.record(&self.compute)
    }

    fn collect(&mut self, mailbox: &CudaMailbox, offset: usize, to: &mut [u8]) -> Result<(), DeviceError> {
        check_range("a letter", &mailbox.memory, offset, to.len())?;
        self.context.bind()?;
        self.explained(mailbox.left.synchronize())?;
        to.copy_from_slice(&mailbox.bytes()[offset..][..to.len()]);
        Ok(())
    }

    unsafe fn launch(&mut self, launch: &Launch<'_, CudaBuffer>) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let name = launch.kernel.function;
        let mut values = Vec::with_capacity(launch.arguments.len());
        for argument in launch.arguments {
            values.push(match argument {
                Argument::Buffer(buffer, offset) => {
                    check_range(name, buffer, *offset, 0)?;
                    buffer.pointer + *offset as u64
                }
                Argument::Null => 0,
                // On a little-endian host a kernel that reads four bytes gets the lower half.
                Argument::U32(number) => u64::from(*number),
                Argument::U64(number) => *number,
                Argument::F32(number) => u64::from(number.to_bits()),
            });
        }
        let buffers = launch.arguments.iter().filter_map(|argument| match argument {
            Argument::Buffer(buffer, _) => Some(*buffer),
            _ => None,
        });
        self.queue(name, buffers, |device| {
            let mut pointers: Vec<*mut c_void> =
                values.iter_mut().map(|value| (value as *mut u64).cast()).collect();
            // SAFETY: the caller's promise.
            unsafe { device.launch_raw(launch, &mut pointers) }
        })
    }

    fn gemm(&mut self, gemm: &Gemm<'_, CudaBuffer>) -> Result<(), DeviceError> {
        let (m, n, k) = gemm.sizes;
        let size = match gemm.element {
            super::device::Element::F32 => 4,
            super::device::Element::Bf16 => 2,
        };
        let check = |factor: &Factor<'_, CudaBuffer>, rows: usize, columns: usize| {
            let stored = if factor.transposed { (columns, rows) } else { (rows, columns) };
            check_matrix("a product's factor", (factor.buffer, factor.offset), stored, factor.stride, size)
        };
        check(&gemm.a, m, k)?;
        check(&gemm.b, k, n)?;
        check_matrix("a product", (gemm.out, gemm.out_offset), (m, n), gemm.out_stride, 4)?;
        let buffers = [gemm.a.buffer, gemm.b.buffer, gemm.out];
        self.queue("gemm", buffers.into_iter(), |device| device.blas.gemm(gemm))
    }

    fn screen(&mut self, screen: &Screen<'_, CudaBuffer>) -> Result<(), DeviceError> {
        self.screen_by(self.screen, screen)
    }

    fn exchange(&mut self, moves: &[Move<'_, CudaBuffer>]) -> Result<(), DeviceError> {
        let failed = |reason: &str| DeviceError::Failed {
            operation: "an exchange between the ranks' devices".to_owned(),
            reason: reason.to_owned(),
        };
        let ranks = self.ranks.clone().ok_or_else(|| failed("this device was not connected with others"))?;
        if self.recording.is_some() {
            return Err(failed("a step is being recorded, and exchanges are no part of what is"));
        }
        let buffers = moves.iter().flat_map(|one| match one {
            Move::AllToAll { from, to, .. } => [*from, *to],
            Move::AllGather { of, .. } => [*of, *of],
        });
        self.queue("exchange", buffers, |_| ranks.exchange(moves))
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        self.context.bind()?;
        self.explained(self.compute.synchronize())
    }

    fn begin_recording(&mut self) -> Result<bool, DeviceError> {
        if self.timing.is_some() {
            return Ok(false);
        }
        self.context.bind()?;
        // Relaxed: other threads and libraries may go on using the driver meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is alive and not recording.
        unsafe { result::stream::begin_capture(self.compute.handle, mode) }
            .map_err(failed("beginning to record a step"))?;
        self.recording = Some(Recording::default());
        Ok(true)
    }

    fn end_recording(&mut self) -> Result<CudaGraph, DeviceError> {
        let Some(mut recording) = self.recording.take() else {
            let operation = "ending a recording".to_owned();
            return Err(DeviceError::Failed { operation, reason: "none was begun".to_owned() });
        };
        recording.uses.sort_by_key(Arc::as_ptr);
        recording.uses.dedup_by(|a, b| Arc::ptr_eq(a, b));
        self.context.bind()?;
        // SAFETY: the stream is alive and recording.
        let graph = unsafe { result::stream::end_capture(self.compute.handle) }
            .map_err(failed("ending to record a step"))?;
        // SAFETY: the graph was just made.
        match unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) } {
            Ok(executable) => Ok(CudaGraph { context: self.context.clone(), graph, executable, recording }),
            Err(error) => {
                // SAFETY: nobody else has the graph.
                let _ = unsafe { result::graph::destroy(graph) };
                Err(failed("making a recorded step executable")(error))
            }
        }
    }

    fn replays(&self) -> bool {
        self.timing.is_none()
    }

    fn replay(&mut self, graph: &CudaGraph) -> Result<(), DeviceError> {
        self.context.bind()?;
        self.operations += 1;
        graph.recording.uses.iter().for_each(|use_of| use_of.store(self.operations, Ordering::Relaxed));
        // SAFETY: both are alive, and so are the buffers, as the trait asks.
        let launched = unsafe { result::graph::launch(graph.executable, self.compute.handle) }
            .map_err(failed("running a recorded step"));
        self.explained(launched)?;
        self.queued(|| format!("a recorded step ({})", graph.recording.operations.join(", ")))
    }
}

impl CudaDevice {
    /// Launches with pointers to the arguments.
    ///
    /// # Safety
    /// As [`Device::launch`], and the pointers lead to values of the parameters' types.
    unsafe fn launch_raw(
        &mut self,
        launch: &Launch<'_, CudaBuffer>,
        pointers: &mut [*mut c_void],
    ) -> Result<(), DeviceError> {
        let function = self.modules.function(launch.kernel, launch.shared_bytes)?;
        let dimensions = |[x, y, z]: [u32; 3]| (x, y, z);
        // SAFETY: the caller's promise.
        unsafe {
            result::launch_kernel(
                function,
                dimensions(launch.grid),
                dimensions(launch.block),
                launch.shared_bytes,
                self.compute.handle,
                pointers,
            )
        }
        .map_err(failed(format!(
            "launching {} with grid {:?}, block {:?}, {} bytes of shared memory",
            launch.kernel.function, launch.grid, launch.block, launch.shared_bytes
        )))
    }
}
