//! Memory of the emulated device, and its copy on a GPU where tests run on one.

use std::alloc::Layout;
use std::cell::{Ref, RefCell};
use std::ptr::NonNull;

use kernels::cuda::cuda_device::{CudaBuffer, CudaDevice};
use kernels::cuda::device::Device;
use kernels::error::DeviceError;

use crate::gpu;

/// Memory of the emulated device: exactly as long as asked for, so that the address sanitizer sees the ends.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
    bytes: usize,
    /// Where tests run on a GPU.
    on_device: RefCell<Option<OnDevice>>,
}

impl Buffer {
    /// Memory full of NaN.
    pub(crate) fn new(bytes: usize) -> Buffer {
        let layout = Layout::from_size_align(bytes.max(1), 256).unwrap();
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { std::alloc::alloc(layout) }).expect("out of memory");
        // NaN in every float, and huge indices.
        // SAFETY: `start` points to that many bytes.
        unsafe { start.as_ptr().write_bytes(0xff, layout.size()) };
        Buffer { start, layout, bytes, on_device: RefCell::new(None) }
    }

    /// Where its `bytes` from `offset` on are.
    ///
    /// # Panics
    /// If it ends before them.
    pub(crate) fn range(&self, offset: usize, bytes: usize) -> *mut u8 {
        let end = offset.checked_add(bytes).expect("a range of this size");
        assert!(end <= self.bytes, "bytes {offset}..{end} of a buffer of {}", self.bytes);
        // SAFETY: within the allocation, as just checked.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Its content as numbers: as many as fit in its bytes.
    pub fn numbers<T: bytemuck::Pod>(&self) -> Vec<T> {
        self.fetch();
        bytemuck::pod_collect_to_vec(self.host_bytes())
    }

    fn host_bytes(&self) -> &[u8] {
        // SAFETY: all bytes were initialised when the buffer was made; no kernel runs meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// Writes the host's `bytes` from `offset` on.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.host_changes();
        let to = self.range(offset, bytes.len());
        // SAFETY: both ranges are that long, and one is memory of ours alone.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Before the host looks at its bytes.
    pub(crate) fn fetch(&self) {
        if let Some(there) = &mut *self.on_device.borrow_mut() {
            // SAFETY: as above, and nobody looks at them meanwhile.
            there.fetch(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) });
        }
    }

    /// Its copy on the GPU, with bytes as new as the host's. It is about to be used there: its bytes are the newer ones now.
    pub(crate) fn send(&self, device: &mut CudaDevice) -> Result<Ref<'_, CudaBuffer>, DeviceError> {
        let mut on_device = self.on_device.borrow_mut();
        let there = match &mut *on_device {
            Some(there) => there,
            none => {
                let copy = device.allocate(self.bytes, "a test")?;
                none.insert(OnDevice { copy, newer: Newer::Host })
            }
        };
        if there.newer == Newer::Host {
            device.upload(&mut there.copy, 0, self.host_bytes())?;
        }
        there.newer = Newer::Device;
        drop(on_device);
        Ok(Ref::map(self.on_device.borrow(), |there| &there.as_ref().expect("just made").copy))
    }

    /// Before the host changes some of its bytes.
    pub(crate) fn host_changes(&self) {
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

/// A buffer's copy on the device.
#[derive(Debug)]
struct OnDevice {
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
    fn fetch(&mut self, bytes: &mut [u8]) {
        if self.newer == Newer::Device {
            gpu::device().download(&self.copy, 0, bytes).unwrap_or_else(|error| panic!("{error}"));
            self.newer = Newer::Neither;
        }
    }

    /// The host is about to change its bytes, which are not older than the device's.
    fn host_changes(&mut self) {
        assert!(self.newer != Newer::Device, "the device's bytes were not fetched");
        self.newer = Newer::Host;
    }
}
