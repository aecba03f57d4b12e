//! The two threads behind a writer, and the buffers that circulate between them.

use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use workers::{Died, Worker};

use super::compress::{Failure, Work};
use super::stages::{Buffers, Counters, lock};
use super::{commit, compress};
use crate::resumption::Resumption;
use crate::row_slots::RowSlot;
use crate::statistics::RunningStatistics;
use crate::target::Target;
use crate::{Result, StoreError, StoreSpec};

/// The background threads and the ways to them.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) work: Sender<Work>,
    pub(super) rows: RowPool,
    pub(super) failure: Failure,
    compressing: Worker<Option<RunningStatistics>>,
    committing: Worker<Box<dyn Target>>,
}

impl Pipeline {
    pub(super) fn start(
        spec: &StoreSpec,
        threads: usize,
        resumption: &Resumption,
        target: Box<dyn Target>,
        counters: &Arc<Counters>,
    ) -> Result<Pipeline> {
        let (work, work_received) = mpsc::channel();
        // One shard is written while the next is compressed.
        let (commits, commits_received) = mpsc::sync_channel(1);
        let (returned, returned_received) = mpsc::channel();
        let emptied = Arc::new(Mutex::new(Vec::new()));
        let failure = Failure::default();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("store-compress-{number}"))
            .build()
            .map_err(|error| StoreError::thread("compression")(io::Error::other(error)))?;

        let committing = {
            let (spec, counters, failure, mut target) =
                (spec.clone(), counters.clone(), failure.clone(), target);
            let emptied = emptied.clone();
            let worker = workers::spawn("store-commit", move || {
                let run = || commit::run(&spec, &mut *target, &commits_received, &emptied, &counters);
                note(&failure, workers::catch("committing of shards", run));
                target
            });
            worker.map_err(StoreError::thread("the committing of shards"))?
        };
        let compressing = {
            let (spec, failure) = (spec.clone(), failure.clone());
            let (statistics, shards) = (resumption.statistics.clone(), resumption.shards);
            let worker = workers::spawn("store-shuffle", move || {
                let buffers = Buffers { returned, emptied };
                let run =
                    || compress::run(&spec, &pool, statistics, shards, &work_received, &buffers, &commits);
                note(&failure, workers::catch("compressing of shards", run))
            });
            worker.map_err(StoreError::thread("the compressing of shards"))?
        };
        let planned = spec.contexts.saturating_mul(spec.context_length as u64);
        let planned = usize::try_from(planned).unwrap_or(usize::MAX);
        let rows = RowPool {
            free: Vec::new(),
            returned: returned_received,
            allocated: 0,
            capacity: (spec.layout.window_rows + spec.layout.shard_rows).min(planned),
            length: spec.row_bytes(),
        };
        Ok(Pipeline { work, rows, failure, compressing, committing })
    }

    /// Lets the threads finish what was sent to them.
    pub(super) fn join(self, dir: &Path) -> Result<(Box<dyn Target>, RunningStatistics)> {
        drop(self.work);
        let statistics = self.compressing.join();
        let target = self.committing.join();
        if let Some(error) = lock(&self.failure).take() {
            return Err(error);
        }
        // Without a failure only one that was told before is left.
        let statistics = statistics?.ok_or_else(|| StoreError::Stopped(dir.to_path_buf()))?;
        Ok((target?, statistics))
    }
}

/// Keeps the first error for whoever asks. It is noted before the thread hangs up: whoever finds nobody there looks here.
fn note<T>(failure: &Failure, result: std::result::Result<Result<T>, Died>) -> Option<T> {
    match result.map_err(StoreError::from).flatten() {
        Ok(value) => Some(value),
        Err(error) => {
            lock(failure).get_or_insert(error);
            None
        }
    }
}

/// Row buffers that circulate between the writer and the compressing threads.
#[derive(Debug)]
pub(super) struct RowPool {
    free: Vec<RowSlot>,
    returned: Receiver<Vec<RowSlot>>,
    allocated: usize,
    capacity: usize,
    /// Bytes of a row.
    length: usize,
}

impl RowPool {
    /// A buffer. Waits for one if all are in use; `None` if none will ever come back.
    pub(super) fn take(&mut self) -> Result<Option<RowSlot>> {
        if self.free.is_empty() {
            self.free.extend(self.returned.try_iter().flatten());
        }
        if self.free.is_empty() {
            if self.allocated < self.capacity {
                self.free = RowSlot::piece(self.length, self.capacity - self.allocated)?;
                self.allocated += self.free.len();
                // The first ones first: a short dump then touches no more memory than it fills.
                self.free.reverse();
            } else {
                match self.returned.recv() {
                    Ok(returned) => self.free = returned,
                    Err(_) => return Ok(None),
                }
            }
        }
        Ok(self.free.pop())
    }
}
