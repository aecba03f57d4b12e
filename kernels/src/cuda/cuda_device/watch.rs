//! What a check build knows of work that does not end: the operations queued and not yet done, and the kernels' own word.
//!
//! A kernel that waits for too long ends by itself (`hopper.cuh`) and leaves a record in the host's memory. Whatever else
//! does not end is given up by the host ([`Context::wait`]); the first operation that is not done is then the one to name.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result;

use super::driver::{Context, Event, Pinned, Stream, failed};
use super::modules::Modules;
use crate::cuda::device::Kernel;
use crate::error::DeviceError;

/// Numbers of a record: the block's number plus 1, the thread, the barrier's address, the phase's parity.
const RECORD: usize = 4;
/// Operations that are remembered; more can be queued only where nobody waits for a step.
const REMEMBERED: usize = 4096;

/// The operations under way.
#[derive(Debug)]
pub(super) struct Watch {
    record: Pinned,
    passed: VecDeque<(String, Event)>,
    events: Vec<Event>,
    context: Arc<Context>,
}

impl Watch {
    /// Gives the kernels of `modules` that wait a place to leave word.
    pub(super) fn new(
        context: &Arc<Context>,
        modules: &mut Modules,
        stream: &Stream,
    ) -> Result<Watch, DeviceError> {
        let record = Pinned::new(context, RECORD * size_of::<u32>())?;
        if modules.have("encode_wgmma") {
            let kernel = Kernel { module: "encode_wgmma", function: "leave_word_at" };
            let function = modules.function(kernel, 0)?;
            let mut place = record.device_pointer();
            let mut arguments = [(&mut place as *mut u64).cast::<c_void>()];
            let one = (1, 1, 1);
            // SAFETY: the kernel's parameter is a pointer to this record, which lives as long as the kernels.
            unsafe { result::launch_kernel(function, one, one, 0, stream.handle, &mut arguments) }
                .map_err(failed("preparing the kernels that wait"))?;
        }
        Ok(Watch { record, passed: VecDeque::new(), events: Vec::new(), context: context.clone() })
    }

    /// `operation` was queued last.
    pub(super) fn queued(&mut self, operation: String, stream: &Stream) -> Result<(), DeviceError> {
        while self.passed.front().is_some_and(|(_, event)| event.is_reached())
            || self.passed.len() >= REMEMBERED
        {
            self.events.extend(self.passed.pop_front().map(|(_, event)| event));
        }
        let event = match self.events.pop() {
            Some(event) => event,
            None => Event::new(&self.context, false)?,
        };
        event.record(stream)?;
        self.passed.push_back((operation, event));
        Ok(())
    }

    /// The error with what is known about its cause.
    pub(super) fn explain(&self, error: DeviceError) -> DeviceError {
        let DeviceError::Failed { operation, mut reason } = error else { return error };
        if let Some(wait) = self.wait_given_up() {
            reason = format!("{reason}; {wait}");
        } else if self.context.is_lost()
            && let Some((name, _)) = self.passed.iter().find(|(_, event)| !event.is_reached())
        {
            reason = format!("{reason}; what does not end is {name}");
        }
        DeviceError::Failed { operation, reason }
    }

    /// The kernels' own word.
    fn wait_given_up(&self) -> Option<String> {
        let record: [u32; RECORD] = bytemuck::pod_read_unaligned(self.record.bytes());
        let [block, thread, barrier, parity] = record;
        // The first warpgroup fills stages that the others have left, those wait for stages to be filled.
        let what = if thread < 128 { "a stage to be left" } else { "a stage to be filled" };
        (block > 0).then(|| {
            format!(
                "block {} of encode_wgmma gave up after two seconds: thread {thread} waited for {what}, phase {parity} of \
                 the barrier at {barrier:#x} of its shared memory",
                block - 1
            )
        })
    }
}
