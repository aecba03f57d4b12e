//! Ranks with a GPU each, which exchange bytes by NCCL: between their devices, and where nothing else connects them also what the
//! host has to say.

mod communicator;
mod error;
mod library;
mod rendezvous;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cudarc::driver::result;
use ranks::{Exchange, ExchangeError};

pub use error::NcclError;
pub use rendezvous::Rendezvous;

use super::driver::{Context, CudaBuffer, OtherRanks, Staging, Stream, check_range, failed};
use super::unavailable::Unavailable;
use crate::cuda::device::Move;
use crate::error::DeviceError;
use communicator::{Communicator, Transfer};
use library::Functions;

/// One of several ranks, each of which has a GPU.
pub struct Nccl {
    communicator: Arc<Communicator>,
    pub(super) context: Arc<Context>,
    /// What the device computes on, too: an exchange comes after what was queued before it.
    pub(super) stream: Arc<Stream>,
    /// For what the host exchanges.
    host: Mutex<Option<Host>>,
}

/// Memory that the host's bytes pass through.
struct Host {
    send: CudaBuffer,
    receive: CudaBuffer,
    sent: Staging,
    received: Staging,
}

/// Which of the ranks this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OneOf {
    /// Its number.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
    /// Its number among those on its machine; 0 if that is not known.
    pub local: usize,
}

impl Nccl {
    /// Connects this rank to the others, who do the same at the same time, and waits for them as long as `patience`. The device is that
    /// of its number on the machine, or the only one that it sees.
    ///
    /// # Errors
    /// No library or an old one, no device of its own, or ranks that do not come.
    pub fn connect(one: OneOf, rendezvous: &Rendezvous<'_>, patience: Duration) -> Result<Nccl, NcclError> {
        let OneOf { rank, ranks, local } = one;
        let functions = Functions::get();
        let context = Context::count().map_err(NcclError::from).and_then(|devices| {
            // A launcher may show each rank its own device alone.
            let ordinal = if devices == 1 { 0 } else { local };
            if ordinal >= devices {
                return Err(NcclError::TooFewDevices { local, devices });
            }
            Ok(Arc::new(Context::new(ordinal, false)?))
        });
        // All ranks come this far, whatever they have found.
        let here =
            functions.as_ref().map(drop).map_err(Clone::clone).and(context.as_ref().map_err(Clone::clone));
        let place = here.and_then(|context| context.place().map_err(|error| Unavailable::from(error).into()));
        rendezvous.compare(&place, ranks)?;
        let (functions, context) = (functions?, context?);
        let id = rendezvous.unique_id(functions, rank, patience)?;
        let communicator = Communicator::connect(functions, id, (rank, ranks), patience);
        rendezvous.leave(rank);
        let communicator = Arc::new(communicator?);
        context.wait_with(Arc::clone(&communicator) as _);
        let stream = Arc::new(Stream::new(&context).map_err(Unavailable::from)?);
        Ok(Nccl { communicator, context, stream, host: Mutex::new(None) })
    }

    /// The library's version: 2.27.5.
    pub fn version(&self) -> &'static str {
        Functions::get().map_or("", |functions| &functions.version)
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.communicator.rank()
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.communicator.ranks()
    }

    /// Whether an exchange has failed: no other is possible then.
    pub fn is_lost(&self) -> bool {
        self.context.is_lost()
    }

    /// Ends the exchanges when all ranks have come to their end.
    pub fn finish(&self) {
        if !self.is_lost() && self.context.bind().is_ok() && self.stream.synchronize().is_ok() {
            self.communicator.finish();
        }
    }

    /// Queues an exchange.
    pub(super) fn exchange(&self, moves: &[Move<'_, CudaBuffer>]) -> Result<(), DeviceError> {
        let (rank, ranks, stream) = (self.rank(), self.ranks(), self.stream.handle);
        let mut transfers = Vec::new();
        for one in moves {
            let (from, to, part) = match one {
                Move::AllToAll { from, to, part } => (*from, *to, *part),
                Move::AllGather { of, part } => (*of, *of, *part),
            };
            for buffer in [from, to] {
                check_range("an exchange", buffer, 0, part * ranks)?;
            }
            let at = |buffer: &CudaBuffer, peer: usize| buffer.pointer + (peer * part) as u64;
            if let Move::AllToAll { .. } = one {
                // SAFETY: both ranges are within their buffers, which are different.
                unsafe { result::memcpy_dtod_async(at(to, rank), at(from, rank), part, stream) }
                    .map_err(failed(format!("copying {part} bytes on the device")))?;
            }
            let gathers = matches!(one, Move::AllGather { .. });
            for peer in (0..ranks).filter(|peer| *peer != rank && part > 0) {
                let own = if gathers { rank } else { peer };
                transfers.push(Transfer { peer, sends: true, address: at(from, own), bytes: part });
                transfers.push(Transfer { peer, sends: false, address: at(to, peer), bytes: part });
            }
        }
        let queued = self.communicator.group(&transfers, stream);
        queued.inspect_err(|error| self.context.lose(error.clone()))
    }

    /// Exchanges the host's bytes: `send` has a part for each rank, or one for all.
    fn exchange_of_host(
        &self,
        operation: &'static str,
        send: &[u8],
        receive: &mut [u8],
    ) -> Result<(), ExchangeError> {
        let mut host = self.host.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let moved = self.move_host_bytes(&mut host, send, receive);
        moved.map_err(|error| ExchangeError { operation, reason: error.to_string() })
    }

    fn move_host_bytes(
        &self,
        host: &mut Option<Host>,
        send: &[u8],
        receive: &mut [u8],
    ) -> Result<(), DeviceError> {
        if receive.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        let (context, stream) = (&self.context, self.stream.handle);
        let bytes = receive.len().max(send.len());
        if host.as_ref().is_none_or(|host| host.send.len() < bytes) {
            let room = bytes.next_power_of_two().max(4096);
            let allocate =
                || CudaBuffer::new(context, room).map_err(failed("memory for the ranks' messages"));
            let staging = || Staging::new(context, room);
            *host = Some(Host {
                send: allocate()?,
                receive: allocate()?,
                sent: staging()?,
                received: staging()?,
            });
        }
        let Some(Host { send: from, receive: to, sent, received }) = host else { return Ok(()) };
        let gathers = send.len() < receive.len();
        let part = receive.len() / self.ranks();
        let place = if gathers { self.rank() * part } else { 0 };
        let buffer = if gathers { &*to } else { &*from };
        let memory = &mut sent.memory.bytes_mut()[..send.len()];
        memory.copy_from_slice(send);
        // SAFETY: the range is within the buffer, and the memory is not used again before the stream is waited for.
        unsafe { result::memcpy_htod_async(buffer.pointer + place as u64, memory, stream) }
            .map_err(failed("copying a message to the device"))?;
        self.exchange(&[match gathers {
            true => Move::AllGather { of: to, part },
            false => Move::AllToAll { from, to, part },
        }])?;
        let memory = &mut received.memory.bytes_mut()[..receive.len()];
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(memory, to.pointer, stream) }
            .map_err(failed("copying messages from the device"))?;
        self.stream.synchronize()?;
        receive.copy_from_slice(&received.memory.bytes()[..receive.len()]);
        Ok(())
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.ranks())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // Work that is under way uses its memory. After an error there is none.
        let _ = self.context.bind().and_then(|()| self.stream.synchronize());
        self.context.wait_alone();
        self.communicator.abort();
    }
}

impl Exchange for Nccl {
    fn rank(&self) -> usize {
        self.communicator.rank()
    }

    fn ranks(&self) -> usize {
        self.communicator.ranks()
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) -> Result<(), ExchangeError> {
        self.exchange_of_host("an all-to-all", send, receive)
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<(), ExchangeError> {
        self.exchange_of_host("an all-gather", send, receive)
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), ExchangeError> {
        // Messages are short.
        let mut all = vec![0; bytes.len() * self.ranks()];
        self.exchange_of_host("a broadcast", bytes, &mut all)?;
        bytes.copy_from_slice(&all[root * bytes.len()..][..bytes.len()]);
        Ok(())
    }
}
