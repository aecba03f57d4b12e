//! `widen.cu`: batches that travel in half precision, half the bytes over the bus and the same numbers.

use super::launch;
use super::parameter::{bytes, floats, long_number};
use crate::cuda::device::Device;
use crate::error::DeviceError;

/// Threads of a block, and numbers of a thread.
const THREADS: usize = 256;
const NUMBERS: usize = 4;

/// `widen`: half-precision numbers to float32.
#[derive(Debug)]
pub struct Widen<'a, B> {
    /// binary16 [numbers].
    pub from: &'a B,
    /// [numbers], written.
    pub out: &'a B,
    /// How many.
    pub numbers: usize,
}

impl<B> Widen<'_, B> {
    /// Queues the kernel.
    ///
    /// # Errors
    /// A buffer that is too short, or what the device says.
    pub fn launch<D: Device<Buffer = B>>(&self, device: &mut D) -> Result<(), DeviceError> {
        let parameters = [
            bytes("in", self.from, 2 * self.numbers),
            floats("out", self.out, self.numbers),
            long_number("n", self.numbers),
        ];
        let blocks = self.numbers.div_ceil(THREADS * NUMBERS);
        launch(device, ("widen", "widen"), (blocks, 1), THREADS, &parameters)
    }
}
