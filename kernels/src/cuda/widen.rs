//! Batches that travel in half precision: half the bytes over the bus, and the same numbers.

use super::buffers::{all, launch};
use super::device::{Argument, Device, DeviceError};

/// Queues out[i] = from[i] for i < `numbers`: half precision in `from`, float32 in `out`.
///
/// # Errors
/// What the device says.
///
/// # Panics
/// If there are 2⁴² numbers or more.
pub fn widen<D: Device>(
    device: &mut D,
    from: &D::Buffer,
    out: &D::Buffer,
    numbers: usize,
) -> Result<(), DeviceError> {
    let arguments = [all(from), all(out), Argument::U64(numbers as u64)];
    launch(device, ("widen", "widen"), (numbers.div_ceil(1024), 1), 256, &arguments)
}
