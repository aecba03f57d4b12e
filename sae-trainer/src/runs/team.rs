//! The ranks that train one autoencoder together: this process alone, or those that mpirun or srun started.

use std::fmt;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use kernels::cuda::cuda_device::{Nccl, OneOf, Rendezvous};
use ranks::{Alone, Exchange, Launched, Launcher, Mpi, MpiError, Notes, launched, sharers, usable_cores};

use crate::command::arguments::DeviceChoice;

/// Names the MPI library to load.
const LIBRARY: &str = "SAE_MPI_LIBRARY";
/// Where ranks leave notes in the folder of a run.
const NOTES: &str = ".ranks";
/// How long a rank waits after its last words before it ends the others.
const TO_BE_HEARD: Duration = Duration::from_secs(1);
/// How often they leave notes.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// All ranks of a run. They call the same methods at the same time.
#[derive(Clone)]
pub(crate) struct Team {
    exchange: Arc<dyn Exchange>,
    mpi: Option<Arc<Mpi>>,
    /// Where each rank has a GPU.
    devices: Option<Arc<Nccl>>,
    patience: Duration,
    /// How many ranks may use the cores that this one may use.
    sharers: usize,
    notes: Arc<Mutex<Option<Notes>>>,
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.exchange.rank(), self.count())
    }
}

fn of_environment() -> Result<Option<Launched>> {
    Ok(launched(|name| std::env::var(name).ok())?)
}

impl Team {
    /// This process alone.
    pub(crate) fn alone() -> Team {
        Team {
            exchange: Arc::new(Alone),
            mpi: None,
            devices: None,
            patience: Duration::ZERO,
            sharers: 1,
            notes: Arc::default(),
        }
    }

    /// The ranks of `exchange`, which are threads.
    #[cfg(test)]
    pub(crate) fn of_threads(exchange: ranks::Threads) -> Team {
        Team { exchange: Arc::new(exchange), ..Team::alone() }
    }

    /// Those that were started together with this process, whom it waits for as long as `patience`. All but the first fall silent.
    /// They are connected by MPI, with a GPU each also by NCCL, which can do without MPI: the ranks may then meet beside `out`.
    ///
    /// # Errors
    /// Without an MPI library, or with one that does not find them; without NCCL, or a GPU for each of them.
    pub(crate) fn gather(patience: Duration, device: DeviceChoice, out: Option<&Path>) -> Result<Team> {
        let Some(launched) = of_environment()? else { return Ok(Team::alone()) };
        let rank = launched.rank;
        terminal::set_silent(launched.rank > 0);
        let team = Team::connect(launched, patience, device == DeviceChoice::Cuda, out).and_then(Team::meet);
        // What is wrong may be wrong on one machine alone.
        terminal::set_silent(team.as_ref().is_ok_and(|team| !team.leads()));
        team.map_err(|error| error.context(format!("rank {rank}")))
    }

    fn connect(launched: Launched, patience: Duration, has_device: bool, out: Option<&Path>) -> Result<Team> {
        ensure!(
            launched.ranks.is_power_of_two(),
            "{} say that there are {} ranks, but features are divided over a power of two of them: start 2, 4, 8, ...",
            launched.variables,
            launched.ranks
        );
        let team = |exchange, mpi, devices| Team {
            exchange,
            mpi,
            devices,
            patience,
            sharers: 1,
            notes: Arc::default(),
        };
        let library = std::env::var_os(LIBRARY);
        // torchrun's processes know nothing of MPI.
        let by_nccl_alone = has_device && launched.launcher == Launcher::Torchrun && library.is_none();
        let missing = if by_nccl_alone {
            None
        } else {
            let watch = watch(&launched, patience)?;
            let connected = Mpi::connect(&launched, library.as_deref(), patience);
            watch.end();
            match connected {
                Ok(mpi) => {
                    let mpi = Arc::new(mpi);
                    let devices = has_device.then(|| devices_beside(&mpi, patience)).transpose()?;
                    return Ok(team(Arc::clone(&mpi) as _, Some(mpi), devices));
                }
                Err(error @ MpiError::NotFound { .. }) if has_device => Some(error),
                Err(error) => return Err(error.into()),
            }
        };
        let out = out.unwrap_or(Path::new("runs/run"));
        let found = Rendezvous::of_environment(|name| std::env::var(name).ok(), out);
        let (way, address) = match (found, missing) {
            (Err(_), Some(error)) => return Err(error.into()),
            (found, _) => found?,
        };
        // SAFETY: the process has no other threads yet.
        unsafe { Rendezvous::announce(address.as_deref()) };
        let Launched { rank, ranks, local_rank, .. } = launched;
        let one = OneOf { rank, ranks, local: local_rank.unwrap_or(rank) };
        let devices = Arc::new(Nccl::connect(one, &way, patience)?);
        Ok(team(Arc::clone(&devices) as _, None, Some(devices)))
    }

    /// Tells each other which cores they may use.
    fn meet(self) -> Result<Team> {
        let own = usable_cores();
        let sharers = sharers(&own, &self.tell(&own)?);
        Ok(Team { sharers, ..self })
    }

    /// What connects the ranks' GPUs, if each has one.
    pub(crate) fn devices(&self) -> Option<Arc<Nccl>> {
        self.devices.clone()
    }

    pub(crate) fn exchange(&self) -> Arc<dyn Exchange> {
        Arc::clone(&self.exchange)
    }

    pub(crate) fn count(&self) -> usize {
        self.exchange.ranks()
    }

    /// Whether this is the rank that writes and speaks.
    pub(crate) fn leads(&self) -> bool {
        self.exchange.rank() == 0
    }

    /// Threads for this rank out of the `cores` that it may use.
    pub(crate) fn threads(&self, cores: usize) -> usize {
        (cores / self.sharers).max(1)
    }

    /// `result`, or an error if another rank has one.
    pub(crate) fn agree<T>(&self, result: Result<T>) -> Result<T> {
        if self.count() == 1 {
            return result;
        }
        let mut failed = vec![0; self.count()];
        self.exchange.all_gather(&[u8::from(result.is_err())], &mut failed)?;
        if failed.iter().all(|failed| *failed == 0) {
            return result;
        }
        let text = result.as_ref().err().map_or(String::new(), |error| format!("{error:#}"));
        let texts = self.tell(&text)?;
        if self.devices.is_some() {
            // Whoever has heard all may end, and what others still wait for on their devices fails then. By now they have heard it too.
            let _ = self.exchange.all_gather(&[0], &mut failed.clone());
        }
        let first = failed.iter().position(|failed| *failed != 0).unwrap_or(0);
        Err(result.err().unwrap_or_else(|| anyhow!("rank {first}: {}", texts[first])))
    }

    /// Why ranks failed at what all of them did, this one with `result`: each reason once, with the first rank that has it unless all
    /// have. None if no rank failed.
    pub(crate) fn failures<T>(&self, result: &Result<T>) -> Result<Vec<String>> {
        let reason = result.as_ref().err().map_or(String::new(), |error| format!("{error:#}"));
        let reasons = self.tell(&reason)?;
        if reasons.iter().all(|reason| *reason == reasons[0]) {
            return Ok(reasons.into_iter().take(1).filter(|reason| !reason.is_empty()).collect());
        }
        let is_first =
            |(rank, reason): &(usize, &String)| !reason.is_empty() && !reasons[..*rank].contains(reason);
        let told = reasons.iter().enumerate().filter(is_first);
        Ok(told.map(|(rank, reason)| format!("rank {rank}: {reason}")).collect())
    }

    /// An error unless `text` is the same on all ranks; `what` it says.
    pub(crate) fn check_same(&self, what: &str, text: &str) -> Result<()> {
        if self.count() == 1 {
            return Ok(());
        }
        let texts = self.tell(text)?;
        match texts.iter().position(|other| *other != texts[0]) {
            Some(rank) => bail!(
                "rank {rank} and rank 0 do not agree on {what} ({} and {}): give all ranks the same program, flags and files",
                texts[rank],
                texts[0]
            ),
            None => Ok(()),
        }
    }

    /// The exit code with which to stop if any rank was asked to stop, `own` being this rank's.
    pub(crate) fn asked(&self, own: Option<u8>) -> Result<Option<u8>> {
        if self.count() == 1 {
            return Ok(own);
        }
        let mut codes = vec![0; self.count()];
        self.exchange.all_gather(&[own.unwrap_or(0)], &mut codes)?;
        Ok(codes.into_iter().find(|code| *code != 0))
    }

    /// The texts of all ranks, or an error if one has none.
    pub(crate) fn collect(&self, text: Result<String>) -> Result<Vec<String>> {
        self.tell(&self.agree(text)?)
    }

    /// The text of the first rank, which alone has one, or has none for a reason.
    pub(crate) fn told_by_first(&self, text: Option<Result<String>>) -> Result<String> {
        let text = self.agree(text.unwrap_or_else(|| Ok(String::new())))?;
        Ok(self.tell(&text)?.swap_remove(0))
    }

    /// What each rank has to say.
    fn tell(&self, text: &str) -> Result<Vec<String>> {
        let count = self.count();
        let mut lengths = vec![0; 8 * count];
        self.exchange.all_gather(&(text.len() as u64).to_le_bytes(), &mut lengths)?;
        let lengths: Vec<usize> =
            lengths.as_chunks::<8>().0.iter().map(|length| u64::from_le_bytes(*length) as usize).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            // Open MPI takes two buffers without a byte for one and the same, and refuses them.
            return Ok(vec![String::new(); count]);
        }
        let mut own = text.as_bytes().to_vec();
        own.resize(longest, 0);
        let mut all = vec![0; longest * count];
        self.exchange.all_gather(&own, &mut all)?;
        let text =
            |rank: usize| String::from_utf8_lossy(&all[rank * longest..][..lengths[rank]]).into_owned();
        Ok((0..count).map(text).collect())
    }

    /// Begins to leave notes in the folder of the run, which is at `step`.
    pub(crate) fn keep_notes(&self, folder: &Path, step: u64) -> Result<()> {
        if self.count() > 1 {
            let folder = folder.join(NOTES);
            let interval = NOTE_EVERY.min(self.patience / 4);
            let notes = Notes::keep(&folder, (self.exchange.rank(), self.count()), step, interval);
            let notes = notes.with_context(|| {
                format!("cannot write in {}, which all ranks have to share", terminal::foreign_path(&folder))
            });
            *self.notes() = Some(self.agree(notes)?);
        }
        Ok(())
    }

    /// Removes notes that ranks left which were killed.
    pub(crate) fn forget_notes(&self, folder: &Path) {
        // What is left behind is overwritten, or ignored.
        let _ = std::fs::remove_dir_all(folder.join(NOTES));
    }

    /// Notes that `step` steps are done.
    pub(crate) fn done(&self, step: u64) {
        if let Some(notes) = &*self.notes() {
            notes.done(step);
        }
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Option<Notes>> {
        self.notes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Parts from the others, with what became of the work. Where ranks lost each other, says who is behind and ends them all.
    pub(crate) fn part(self, result: Result<u8>) -> Result<u8> {
        let lost = self.mpi.as_ref().is_some_and(|mpi| mpi.is_lost())
            || self.devices.as_ref().is_some_and(|devices| devices.is_lost());
        if let (true, Err(error)) = (lost, &result) {
            let who = self.notes().as_ref().map_or(String::new(), |notes| format!("; {}", notes.laggards()));
            terminal::set_silent(false);
            let rank = self.exchange.rank();
            terminal::say!("error: rank {rank}: {error:#}{who}. The run goes on with --resume");
            match &self.mpi {
                Some(mpi) => {
                    // The launcher ends all at once, and what it has not passed on by then is lost.
                    std::thread::sleep(TO_BE_HEARD);
                    mpi.abort(1)
                }
                // The others see that it has gone.
                None => std::process::exit(1),
            }
        }
        self.notes().take();
        if let (Some(devices), true) = (&self.devices, result.is_ok()) {
            devices.finish();
        }
        if let Some(mpi) = &self.mpi {
            mpi.finish();
        }
        result
    }
}

/// Ends the process if the library does not come back from connecting the ranks.
struct Watch {
    end: Sender<()>,
    thread: JoinHandle<()>,
}

fn watch(launched: &Launched, patience: Duration) -> Result<Watch> {
    let (end, ended) = channel();
    let Launched { rank, ranks, .. } = *launched;
    let thread = std::thread::Builder::new().name("connecting".into()).spawn(move || {
        if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            terminal::set_silent(false);
            let seconds = patience.as_secs();
            terminal::say!(
                "error: rank {rank}: MPI did not connect {ranks} ranks within {seconds} s (--rank-timeout)"
            );
            std::process::exit(1);
        }
    });
    Ok(Watch { end, thread: thread.context("cannot start a thread")? })
}

impl Watch {
    /// Leaves no thread behind.
    fn end(self) {
        drop(self.end);
        let _ = self.thread.join(); // it does nothing that could fail
    }
}

/// Connects the GPUs of ranks that MPI connects already.
fn devices_beside(mpi: &Mpi, patience: Duration) -> Result<Arc<Nccl>> {
    const NAME: usize = 256;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut own = [0; NAME];
    let length = host.trim().floor_char_boundary(NAME);
    own[..length].copy_from_slice(&host.trim().as_bytes()[..length]);
    let mut all = vec![0; NAME * mpi.ranks()];
    mpi.all_gather(&own, &mut all)?;
    // Those of a machine take its devices in their order.
    let local = all.chunks_exact(NAME).take(mpi.rank()).filter(|host| *host == own).count();
    let one = OneOf { rank: mpi.rank(), ranks: mpi.ranks(), local };
    Ok(Arc::new(Nccl::connect(one, &Rendezvous::Broadcast(mpi), patience)?))
}
