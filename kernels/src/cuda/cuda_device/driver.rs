//! Owned handles of the driver: context, streams, events, memory of the device and pinned memory of the host.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::Unavailable;
use crate::cuda::device::Properties;
use crate::error::DeviceError;

/// The driver must know CUDA 12.0: tensor maps are that old.
const OLDEST_CUDA: (i32, i32) = (12, 0);

/// In a check build the host waits so long for the device, and looks so often. No step takes a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_micros(20);

/// The error of a wait that was given up.
fn given_up(operation: &str) -> DeviceError {
    let reason = format!("the device is still busy after {} seconds", PATIENCE.as_secs());
    DeviceError::Failed { operation: operation.to_owned(), reason }
}

/// An error of the driver in its own words.
pub(super) fn failed(operation: impl Into<String>) -> impl FnOnce(DriverError) -> DeviceError {
    let operation = operation.into();
    move |error| {
        let words = |text: Result<&std::ffi::CStr, DriverError>| {
            text.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let reason = format!("{} ({})", words(error.error_string()), words(error.error_name()));
        DeviceError::Failed { operation, reason }
    }
}

/// For so long a thread that waits asks without a pause.
const EAGER: Duration = Duration::from_millis(1);
/// The pause after that.
const PAUSE: Duration = Duration::from_micros(50);

/// The pause of a thread that has waited since `started`.
pub(super) fn pause(started: Instant) {
    match started.elapsed() < EAGER {
        true => std::thread::yield_now(),
        false => std::thread::sleep(PAUSE),
    }
}

/// The other ranks, for whom work on the device may wait.
pub(super) trait OtherRanks: std::fmt::Debug + Send + Sync {
    /// How long.
    fn patience(&self) -> Duration;
    /// Whether all is well with them, as far as is known.
    fn check(&self) -> Result<(), String>;
    /// The error of a wait that was too long.
    fn too_late(&self) -> String;
    /// Ends what is under way on the device. Nothing else can be done with them.
    fn abort(&self);
}

/// An error unless `bytes` bytes from `offset` on lie within the buffer.
pub(super) fn check_range(
    operation: &str,
    buffer: &CudaBuffer,
    offset: usize,
    bytes: usize,
) -> Result<(), DeviceError> {
    match offset.checked_add(bytes).is_some_and(|end| end <= buffer.bytes) {
        true => Ok(()),
        false => Err(DeviceError::Failed {
            operation: operation.to_owned(),
            reason: format!(
                "{bytes} bytes from byte {offset} on are not within a buffer of {}",
                buffer.bytes
            ),
        }),
    }
}

/// Why there is no device, in the driver's words.
fn no_device(error: DriverError) -> Unavailable {
    let DeviceError::Failed { reason, .. } = failed("")(error) else { unreachable!("it is that kind") };
    Unavailable::NoDevice(reason)
}

/// A device's primary context, the one that other libraries in the process use too.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Whether the host waits for a while only.
    bounded_waits: bool,
    /// A wait was given up, for this reason: nothing more is asked of the driver, whose calls would wait for the same work.
    lost: OnceLock<DeviceError>,
    /// The other ranks, for whom work on the device may wait.
    peers: Mutex<Option<Arc<dyn OtherRanks>>>,
    /// The streams alive.
    streams: Mutex<Vec<Handle>>,
}

/// A stream's handle.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Handle(sys::CUstream);

// SAFETY: the handles may be used from any thread; every use makes the context the thread's current one.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what calls share.
unsafe impl Sync for Context {}

impl Context {
    /// The context of device number `ordinal`.
    pub(super) fn new(ordinal: usize, bounded_waits: bool) -> Result<Context, Unavailable> {
        let count = Context::count()?;
        if ordinal >= count {
            return Err(Unavailable::NoDevice(format!("device number {ordinal} of {count}")));
        }
        let device = result::device::get(ordinal as c_int).map_err(no_device)?;
        // SAFETY: the device was just got from the driver.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("creating a context"))?;
        let (lost, peers, streams) = (OnceLock::new(), Mutex::default(), Mutex::default());
        let context = Context { device, context, bounded_waits, lost, peers, streams };
        context.bind()?;
        Ok(context)
    }

    /// How many devices there are.
    pub(super) fn count() -> Result<usize, Unavailable> {
        // The bindings panic where the library is absent.
        if !crate::cuda::libraries::driver_is_present() {
            return Err(Unavailable::NoDriver);
        }
        result::init().map_err(no_device)?;
        let found = cuda_version().map_err(no_device)?;
        if found < OLDEST_CUDA {
            return Err(Unavailable::OldDriver { found, needed: OLDEST_CUDA, why: "" });
        }
        Ok(usize::try_from(result::device::get_count().map_err(no_device)?).unwrap_or(0))
    }

    /// The device and where it is, which no other one is called.
    pub(super) fn place(&self) -> Result<String, DeviceError> {
        let mut uuid = sys::CUuuid { bytes: [0; 16] };
        // SAFETY: the device is valid, the number may be written.
        unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, self.device) }
            .result()
            .map_err(failed("reading the device's number"))?;
        let name = result::device::get_name(self.device).map_err(failed("reading the device's name"))?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let number: String = uuid.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect();
        Ok(format!("{} (GPU-{number} of {})", name.trim_end_matches('\0'), host.trim()))
    }

    /// Whether a wait was given up.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// Gives the device up, for this reason.
    pub(super) fn lose(&self, reason: DeviceError) {
        // The first reason is the cause of the others.
        let _ = self.lost.set(reason);
    }

    /// From now on work on the device may wait for other ranks.
    pub(super) fn wait_with(&self, peers: Arc<dyn OtherRanks>) {
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = Some(peers);
    }

    /// From now on it does not.
    pub(super) fn wait_alone(&self) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits for the device: by `wait`, or in a check build for a while only, by asking `query`.
    fn wait(
        &self,
        wait: impl FnOnce() -> Result<(), DriverError>,
        query: impl Fn() -> Result<(), DriverError>,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "the work queued on the device";
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(peers) = peers {
            return self.wait_for_peers(&*peers, query);
        }
        if !self.bounded_waits {
            return wait().map_err(failed(OPERATION));
        }
        let begin = Instant::now();
        loop {
            match query() {
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) if begin.elapsed() < PATIENCE => {
                    std::thread::sleep(GLANCE);
                }
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => {
                    self.lose(given_up("using the context"));
                    return Err(given_up(OPERATION));
                }
                other => return other.map_err(failed(OPERATION)),
            }
        }
    }

    /// Waits for work that may itself wait for other ranks: as long as they are there and their patience lasts.
    fn wait_for_peers(
        &self,
        peers: &dyn OtherRanks,
        query: impl Fn() -> Result<(), DriverError>,
    ) -> Result<(), DeviceError> {
        let begin = Instant::now();
        loop {
            match query() {
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => {}
                other => return other.map_err(failed("the work queued on the device")),
            }
            let late = begin.elapsed() > peers.patience();
            if let Err(reason) = peers.check().and(if late { Err(peers.too_late()) } else { Ok(()) }) {
                let operation = "an exchange between the ranks' devices".to_owned();
                let error = DeviceError::Failed { operation, reason };
                self.lose(error.clone());
                peers.abort();
                return Err(error);
            }
            pause(begin);
        }
    }

    /// Makes it the thread's context before a call in which the driver waits for the device, as it does when it takes memory
    /// back; a check build waits beforehand.
    pub(super) fn settle(&self) -> Result<(), DeviceError> {
        self.bind()?;
        let among = self.peers.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let streams = if self.bounded_waits || among { self.streams().clone() } else { Vec::new() };
        streams.into_iter().try_for_each(|Handle(stream)| self.wait(|| Ok(()), || query(stream)))
    }

    fn streams(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it the calling thread's context.
    pub(super) fn bind(&self) -> Result<(), DeviceError> {
        if let Some(reason) = self.lost.get() {
            return Err(reason.clone());
        }
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("using the context"))
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<u32, DeviceError> {
        // SAFETY: the device is valid.
        let value = unsafe { result::device::get_attribute(self.device, attribute) };
        Ok(value.map_err(failed("reading a property of the device"))?.max(0) as u32)
    }

    /// What the device is.
    pub(super) fn properties(&self) -> Result<Properties, DeviceError> {
        use sys::CUdevice_attribute_enum as Attribute;
        let name = result::device::get_name(self.device).map_err(failed("reading the device's name"))?;
        // SAFETY: the device is valid.
        let memory = unsafe { result::device::total_mem(self.device) };
        Ok(Properties {
            name: name.trim_end_matches('\0').to_owned(),
            compute_capability: (
                self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_memory_per_block: self
                .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
            l2_bytes: self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            memory_bytes: memory.map_err(failed("reading the device's memory size"))?,
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.is_lost() {
            return;
        }
        // SAFETY: it was retained once and is released once. An error here leaves nothing to be done.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// The CUDA version that the driver supports, major and minor. The driver's library must be there.
pub(super) fn cuda_version() -> Result<(i32, i32), DriverError> {
    let mut version = 0;
    // SAFETY: the number is valid for writing during the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok((version / 1000, version % 1000 / 10))
}

/// A queue of work.
#[derive(Debug)]
pub(super) struct Stream {
    context: Arc<Context>,
    pub(super) handle: sys::CUstream,
}

// SAFETY: streams may be used from any thread with their context current.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what calls share.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Stream, DeviceError> {
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("creating a stream"))?;
        context.streams().push(Handle(handle));
        Ok(Stream { context: context.clone(), handle })
    }

    /// What is queued from now on runs after `event`'s last recording.
    pub(super) fn wait(&self, event: &Event) -> Result<(), DeviceError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive.
        unsafe { result::stream::wait_event(self.handle, event.handle, flags) }
            .map_err(failed("letting one stream wait for another"))
    }

    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream is alive.
        let wait = || unsafe { result::stream::synchronize(self.handle) };
        self.context.wait(wait, || query(self.handle))
    }
}

/// Whether all work of a stream, which is alive, is done.
fn query(stream: sys::CUstream) -> Result<(), DriverError> {
    // SAFETY: the stream is alive.
    unsafe { sys::cuStreamQuery(stream) }.result()
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.context.streams().retain(|stream| *stream != Handle(self.handle));
        if self.context.bind().is_ok() {
            // SAFETY: it is alive and not used after this. What is queued on it still runs: the call does not wait, and
            // whoever owns memory that this work uses does (freeing device memory waits, a `Staging` waits).
            let _ = unsafe { result::stream::destroy(self.handle) };
        }
    }
}

/// A point in a stream.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    handle: sys::CUevent,
}

// SAFETY: events may be used from any thread with their context current.
unsafe impl Send for Event {}

impl Event {
    /// An event; `timed` ones cost more.
    pub(super) fn new(context: &Arc<Context>, timed: bool) -> Result<Event, DeviceError> {
        let flags = if timed {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let handle = result::event::create(flags).map_err(failed("creating an event"))?;
        Ok(Event { context: context.clone(), handle })
    }

    /// The end of what is queued on `stream` now.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), DeviceError> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.handle, stream.handle) }.map_err(failed("recording an event"))
    }

    /// Waits on the host.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: it is alive.
        let wait = || unsafe { result::event::synchronize(self.handle) };
        // SAFETY: as above.
        self.context.wait(wait, || unsafe { result::event::query(self.handle) })
    }

    /// Whether the work before it is done.
    pub(super) fn is_reached(&self) -> bool {
        // SAFETY: it is alive.
        unsafe { result::event::query(self.handle) }.is_ok()
    }

    /// Seconds from `self` to `end`, both timed and past.
    pub(super) fn seconds_until(&self, end: &Event) -> Result<f64, DeviceError> {
        let mut milliseconds = 0.0f32;
        // SAFETY: both are alive; `CudaDevice::start_timing` has seen that the driver has this function.
        unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, self.handle, end.handle) }
            .result()
            .map_err(failed("reading the time between two events"))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: it is alive and not used after this.
            let _ = unsafe { result::event::destroy(self.handle) };
        }
    }
}

/// Memory that kernels use: the device's, or a mailbox' of the host.
#[derive(Debug)]
pub struct CudaBuffer {
    context: Arc<Context>,
    /// The host's memory that it is.
    pinned: Option<Pinned>,
    pub(super) pointer: sys::CUdeviceptr,
    pub(super) bytes: usize,
    /// The number of the last operation that uses it.
    pub(super) last_use: Arc<AtomicU64>,
}

impl CudaBuffer {
    /// Memory for `bytes` bytes, a multiple of 256 (an empty buffer has an address too).
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<CudaBuffer, DriverError> {
        // SAFETY: what is there before the first write is read by nobody, or poison in a check.
        let pointer = unsafe { result::malloc_sync(bytes.max(1)) }?;
        let last_use = Arc::new(AtomicU64::new(0));
        Ok(CudaBuffer { context: context.clone(), pinned: None, pointer, bytes, last_use })
    }

    /// The host's memory as kernels see it.
    fn of_host(pinned: Pinned) -> CudaBuffer {
        let (pointer, bytes) = (pinned.device_pointer(), pinned.bytes);
        let (context, last_use) = (pinned.context.clone(), Arc::new(AtomicU64::new(0)));
        CudaBuffer { context, pinned: Some(pinned), pointer, bytes, last_use }
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(super) fn used_at(&self, operation: u64) {
        self.last_use.store(operation, Ordering::Relaxed);
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        if self.pinned.is_none() && self.context.settle().is_ok() {
            // SAFETY: it is alive and not used after this; freeing waits for the device's work.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// Host memory that the device reads and writes at full speed while the host goes on.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<Context>,
    pointer: *mut c_void,
    bytes: usize,
}

// SAFETY: it is plain memory that `self` owns.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Pinned, DeviceError> {
        // SAFETY: the memory is written below before anyone reads it.
        let pointer = unsafe { result::malloc_host(bytes.max(1), sys::CU_MEMHOSTALLOC_DEVICEMAP) }
            .map_err(failed(format!("pinning {bytes} bytes of host memory")))?;
        // SAFETY: it is that large and nobody else's.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes.max(1)) };
        Ok(Pinned { context: context.clone(), pointer, bytes })
    }

    /// Its address for kernels.
    pub(super) fn device_pointer(&self) -> u64 {
        // The driver gives such memory one address for the host and all devices.
        self.pointer as u64
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: initialised, of that size, borrowed with `self`; the caller has waited for the device's writes.
        unsafe { std::slice::from_raw_parts(self.pointer.cast(), self.bytes) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: it is alive and not used after this, by the device neither: its owner has waited.
            let _ = unsafe { result::free_host(self.pointer) };
        }
    }
}

/// Pinned memory that kernels use where it lies, and the end of the work that does. Dropping it waits for that work.
#[derive(Debug)]
pub struct CudaMailbox {
    pub(super) memory: CudaBuffer,
    pub(super) left: Event,
}

impl CudaMailbox {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<CudaMailbox, DeviceError> {
        let memory = CudaBuffer::of_host(Pinned::new(context, bytes)?);
        Ok(CudaMailbox { memory, left: Event::new(context, false)? })
    }

    /// Its bytes; no queued work uses them.
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.pinned.as_ref().expect("a mailbox is the host's memory").bytes()
    }

    /// The same.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.pinned.as_mut().expect("a mailbox is the host's memory").bytes_mut()
    }
}

impl Drop for CudaMailbox {
    fn drop(&mut self) {
        if self.memory.context.bind().is_ok() {
            // After an error of the device no work is under way.
            let _ = self.left.synchronize();
        }
    }
}

/// Pinned memory and the end of the last copy out of it or into it. Dropping it waits for that copy.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) memory: Pinned,
    pub(super) copied: Event,
}

impl Staging {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Staging, DeviceError> {
        Ok(Staging { memory: Pinned::new(context, bytes)?, copied: Event::new(context, false)? })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.memory.context.bind().is_ok() {
            // After an error of the device no copy is under way.
            let _ = self.copied.synchronize();
        }
    }
}
