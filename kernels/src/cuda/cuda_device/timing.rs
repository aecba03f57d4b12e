//! How long kernels take, by events around each.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver::{Context, Event, Stream};
use crate::error::DeviceError;

/// For each kernel (and for `gemm` and `zero`) the seconds of each of its launches, in order.
pub type Timings = BTreeMap<&'static str, Vec<f64>>;

/// A measurement under way.
#[derive(Debug)]
pub(super) struct Timing {
    context: Arc<Context>,
    launches: Vec<(&'static str, Event, Option<Event>)>,
}

impl Timing {
    pub(super) fn new(context: &Arc<Context>) -> Timing {
        Timing { context: context.clone(), launches: Vec::new() }
    }

    pub(super) fn begin(&mut self, name: &'static str, stream: &Stream) -> Result<(), DeviceError> {
        let begin = Event::new(&self.context, true)?;
        begin.record(stream)?;
        self.launches.push((name, begin, None));
        Ok(())
    }

    pub(super) fn end(&mut self, stream: &Stream) -> Result<(), DeviceError> {
        let end = Event::new(&self.context, true)?;
        end.record(stream)?;
        if let Some((_, _, open)) = self.launches.last_mut() {
            *open = Some(end);
        }
        Ok(())
    }

    /// All times; the stream's work is done.
    pub(super) fn finish(self) -> Result<Timings, DeviceError> {
        let mut timings = Timings::new();
        for (name, begin, end) in self.launches {
            if let Some(end) = end {
                timings.entry(name).or_default().push(begin.seconds_until(&end)?);
            }
        }
        Ok(timings)
    }
}
