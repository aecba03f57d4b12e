//! A communicator: the ranks' devices, between which bytes move on a stream.
//!
//! No call blocks: each is asked after until it is done, for at most as long as the ranks' patience, and so is the work on the stream.
//! A rank that is lost would otherwise be waited for without end.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cudarc::driver::sys;

use super::error::NcclError;
use super::library::{BYTES, Comm, Config, Functions, IN_PROGRESS, REMOTE_ERROR, SUCCESS, Status, UniqueId};
use crate::cuda::cuda_device::driver::{OtherRanks, pause};
use crate::error::DeviceError;

/// One of several ranks that NCCL connects.
pub(crate) struct Communicator {
    functions: &'static Functions,
    rank: usize,
    ranks: usize,
    patience: Duration,
    /// None once it was aborted. One thread at a time may use it.
    comm: Mutex<Option<Handle>>,
}

#[derive(Debug)]
struct Handle(Comm);

// SAFETY: a communicator may be used from any thread, one at a time, with its device's context current.
unsafe impl Send for Handle {}

/// Bytes that go to a rank, or come from there.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda::cuda_device) struct Transfer {
    pub(in crate::cuda::cuda_device) peer: usize,
    pub(in crate::cuda::cuda_device) sends: bool,
    pub(in crate::cuda::cuda_device) address: sys::CUdeviceptr,
    pub(in crate::cuda::cuda_device) bytes: usize,
}

impl Communicator {
    /// Connects the device whose context is current to those of the other ranks, who do the same with the same `id`.
    pub(super) fn connect(
        functions: &'static Functions,
        id: UniqueId,
        (rank, ranks): (usize, usize),
        patience: Duration,
    ) -> Result<Communicator, NcclError> {
        let mut comm: Comm = std::ptr::null_mut();
        let mut config = Config::without_blocking();
        let (count, number) = (ranks as i32, rank as i32);
        // SAFETY: the communicator's place may be written, the configuration is what its version says.
        let begun = unsafe { (functions.comm_init_rank_config)(&mut comm, count, id, number, &mut config) };
        let connected = Communicator {
            functions,
            rank,
            ranks,
            patience,
            comm: Mutex::new(Some(Handle(comm)).filter(|_| !comm.is_null())),
        };
        let failed = |reason| NcclError::Refused { rank, ranks, reason };
        if begun != SUCCESS && begun != IN_PROGRESS {
            let reason = functions.explained(begun, std::ptr::null_mut());
            connected.forget();
            return Err(failed(reason));
        }
        connected.settle("connecting the ranks").map_err(failed)?;
        let (mut found, mut number) = (0, 0);
        // SAFETY: the communicator is connected, the numbers may be written.
        let asked = connected.with(|comm| unsafe {
            let first = (functions.comm_count)(comm, &mut found);
            if first != SUCCESS { first } else { (functions.comm_user_rank)(comm, &mut number) }
        });
        asked.map_err(failed)?;
        if (number as usize, found as usize) != (rank, ranks) {
            let found = (number as usize, found as usize);
            return Err(NcclError::OtherRanks { rank, ranks, found });
        }
        Ok(connected)
    }

    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn ranks(&self) -> usize {
        self.ranks
    }

    /// Queues `transfers` on `stream` as one group: what one rank sends, the other one receives.
    pub(in crate::cuda::cuda_device) fn group(
        &self,
        transfers: &[Transfer],
        stream: sys::CUstream,
    ) -> Result<(), DeviceError> {
        const OPERATION: &str = "an exchange between the ranks' devices";
        let failed = |reason| DeviceError::Failed { operation: OPERATION.to_owned(), reason };
        let functions = self.functions;
        let queue = |comm: Comm| -> Status {
            // SAFETY: the communicator is connected, addresses and lengths are within buffers as the caller has checked, and every
            // group that is started is ended.
            unsafe {
                let mut status = (functions.group_start)();
                if status != SUCCESS {
                    return status;
                }
                for one in transfers {
                    let function = if one.sends { functions.send } else { functions.recv };
                    let (address, peer) = (one.address as *mut _, one.peer as i32);
                    let queued = function(address, one.bytes, BYTES, peer, comm, stream.cast());
                    if queued != SUCCESS && queued != IN_PROGRESS && status == SUCCESS {
                        status = queued;
                    }
                }
                let ended = (functions.group_end)();
                if status == SUCCESS { ended } else { status }
            }
        };
        self.with(queue).map_err(failed)?;
        self.settle(OPERATION).map_err(failed)
    }

    /// Parts from the other ranks, who do the same, after the last exchange.
    pub(crate) fn finish(&self) {
        // SAFETY: nothing is under way.
        let begun = self.with(|comm| unsafe { (self.functions.comm_finalize)(comm) });
        if begun.is_err() || self.settle("parting from the other ranks").is_err() {
            return self.abort();
        }
        if let Some(Handle(comm)) = self.lock().take() {
            // SAFETY: it is finalized and not used after this.
            unsafe { (self.functions.comm_destroy)(comm) };
        }
    }

    fn forget(&self) {
        self.lock().take();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Handle>> {
        self.comm.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Calls a function of NCCL with the communicator.
    fn with(&self, call: impl FnOnce(Comm) -> Status) -> Result<(), String> {
        let comm = self.lock();
        let Some(Handle(comm)) = &*comm else { return Err("an exchange before it has failed".to_owned()) };
        match call(*comm) {
            SUCCESS | IN_PROGRESS => Ok(()),
            status => Err(self.functions.explained(status, *comm)),
        }
    }

    /// How the calls so far have ended, or that they have not.
    fn state(&self) -> Result<Status, String> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive, the number may be written.
        self.with(|comm| unsafe { (self.functions.comm_get_async_error)(comm, &mut state) })?;
        Ok(state)
    }

    fn failure(&self, status: Status) -> String {
        let comm = self.lock();
        let comm = comm.as_ref().map_or(std::ptr::null_mut(), |Handle(comm)| *comm);
        let explained = self.functions.explained(status, comm);
        match status {
            REMOTE_ERROR => format!("another rank has ended or failed: {explained}"),
            _ => explained,
        }
    }

    /// Waits until the calls so far have ended.
    fn settle(&self, operation: &str) -> Result<(), String> {
        let started = Instant::now();
        loop {
            match self.state()? {
                SUCCESS => return Ok(()),
                IN_PROGRESS if started.elapsed() <= self.patience => pause(started),
                IN_PROGRESS => {
                    self.abort();
                    return Err(format!("{operation}: {}", self.too_late()));
                }
                status => {
                    let reason = self.failure(status);
                    self.abort();
                    return Err(reason);
                }
            }
        }
    }
}

impl OtherRanks for Communicator {
    fn patience(&self) -> Duration {
        self.patience
    }

    fn check(&self) -> Result<(), String> {
        match self.state()? {
            SUCCESS | IN_PROGRESS => Ok(()),
            status => Err(self.failure(status)),
        }
    }

    fn too_late(&self) -> String {
        format!("not all of {} ranks came within {} s", self.ranks, self.patience.as_secs_f64())
    }

    fn abort(&self) {
        if let Some(Handle(comm)) = self.lock().take() {
            // SAFETY: it is alive and not used after this. A failure leaves nothing to be done.
            unsafe { (self.functions.comm_abort)(comm) };
        }
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.ranks)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
    }
}
