//! Uploads that run beside the computation.
//!
//! The bytes go into pinned memory at once, so the caller may change them after the call. Small ones (an evaluation's numbers)
//! are then copied in the order of all other work. Large ones (a batch) are copied on a stream of their own, which
//! waits only for work that uses the buffer: with three buffers in turn, a batch travels while the two before are trained on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::result;
use rayon::prelude::*;

use super::driver::{Context, CudaBuffer, Event, Staging, Stream, failed};
use crate::error::DeviceError;

/// From this size on an upload has a stream of its own.
const LARGE: usize = 256 * 1024;
/// Pinned places for small uploads: so many may be under way.
const SMALL_SLOTS: usize = 16;
/// Pinned places for large uploads: one is filled while the other one's bytes travel.
const LARGE_SLOTS: usize = 2;
/// Bytes that one thread copies at a time.
const PART: usize = 512 * 1024;
/// Points of the computation that are remembered.
const MARKS: usize = 4;

/// The state of all uploads of a device.
#[derive(Debug)]
pub(super) struct Uploads {
    copy_stream: Stream,
    small: VecDeque<Staging>,
    large: VecDeque<Staging>,
    /// Points of the computation: the number of operations before it, and the event that it is reached.
    marks: VecDeque<(u64, Event)>,
}

impl Uploads {
    pub(super) fn new(context: &Arc<Context>) -> Result<Uploads, DeviceError> {
        Ok(Uploads {
            copy_stream: Stream::new(context)?,
            small: VecDeque::new(),
            large: VecDeque::new(),
            marks: VecDeque::new(),
        })
    }

    /// Copies `bytes` into `to` from `offset` on, which is within it. `operations` have been queued on `compute` so far;
    /// the upload is the next one.
    pub(super) fn upload(
        &mut self,
        context: &Arc<Context>,
        compute: &Stream,
        operations: u64,
        to: &CudaBuffer,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        let large = bytes.len() >= LARGE;
        let (slots, count) =
            if large { (&mut self.large, LARGE_SLOTS) } else { (&mut self.small, SMALL_SLOTS) };
        let mut slot = take_slot(context, slots, count, bytes.len())?;
        let memory = &mut slot.memory.bytes_mut()[..bytes.len()];
        memory
            .par_chunks_mut(PART)
            .zip(bytes.par_chunks(PART))
            .for_each(|(to, from)| to.copy_from_slice(from));

        let stream = if large { &self.copy_stream } else { compute };
        if large {
            let needed = to.last_use.load(Ordering::Relaxed);
            if self.marks.back().is_none_or(|(before, _)| *before < needed) {
                mark(&mut self.marks, context, compute, operations)?;
            }
            let (_, event) =
                self.marks.iter().find(|(before, _)| *before >= needed).expect("one was just made");
            stream.wait(event)?;
        }
        // SAFETY: the range is within the buffer, as the caller checked, and the slot is not used again before
        // `copied` is reached.
        unsafe { result::memcpy_htod_async(to.pointer + offset as u64, memory, stream.handle) }
            .map_err(failed(format!("copying {} bytes to the device", bytes.len())))?;
        slot.copied.record(stream)?;
        if large {
            compute.wait(&slot.copied)?;
            // For the upload after the next: everything up to here, and nothing that is queued after.
            mark(&mut self.marks, context, compute, operations + 1)?;
        }
        let slots = if large { &mut self.large } else { &mut self.small };
        slots.push_back(slot);
        Ok(())
    }
}

/// The place that was used longest ago, or a new one while there are fewer than `count`; at least `bytes` large and free.
fn take_slot(
    context: &Arc<Context>,
    slots: &mut VecDeque<Staging>,
    count: usize,
    bytes: usize,
) -> Result<Staging, DeviceError> {
    if slots.len() >= count {
        let slot = slots.pop_front().expect("it is not empty");
        slot.copied.synchronize()?;
        if slot.memory.bytes().len() >= bytes {
            return Ok(slot);
        }
    }
    let size = if bytes >= LARGE { bytes } else { LARGE };
    Staging::new(context, size)
}

/// Remembers the present end of `compute`.
fn mark(
    marks: &mut VecDeque<(u64, Event)>,
    context: &Arc<Context>,
    compute: &Stream,
    operations: u64,
) -> Result<(), DeviceError> {
    // An event that others wait for may be recorded anew: they wait for what it was when they began to.
    let event = match marks.len() >= MARKS {
        true => marks.pop_front().expect("it is not empty").1,
        false => Event::new(context, false)?,
    };
    event.record(compute)?;
    marks.push_back((operations, event));
    Ok(())
}
