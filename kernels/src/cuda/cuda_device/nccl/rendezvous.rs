//! How ranks learn where to meet: NCCL's unique id, which the first of them makes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ranks::Exchange;

use super::error::NcclError;
use super::library::{Functions, SUCCESS, UniqueId};

/// Where NCCL's first rank listens, as it reads that itself.
const COMM_ID: &str = "NCCL_COMM_ID";
/// Bytes in which a rank says which device it has, or why it has none.
const WORD: usize = 512;
/// The pause between two looks for a file.
const PAUSE: Duration = Duration::from_millis(20);

/// What tells the ranks where to meet.
pub enum Rendezvous<'a> {
    /// Ranks that exchange bytes already: by MPI.
    Broadcast(&'a dyn Exchange),
    /// The address at which the first rank listens, in the environment's `NCCL_COMM_ID`.
    Address,
    /// A file on a disk that all ranks share, which the first of them writes.
    File(PathBuf),
}

impl Rendezvous<'_> {
    /// From the environment of ranks that nothing else connects: `NCCL_COMM_ID`, or one port above `MASTER_PORT` at `MASTER_ADDR`, as
    /// torchrun and Kubernetes operators say it; otherwise a file beside `folder`, named by the job and by how often it was started.
    ///
    /// # Errors
    /// Neither an address nor a job, or a port that is none.
    pub fn of_environment(
        variable: impl Fn(&str) -> Option<String>,
        folder: &Path,
    ) -> Result<(Rendezvous<'static>, Option<String>), NcclError> {
        let value = |name| variable(name).filter(|value| !value.is_empty());
        if value(COMM_ID).is_some() {
            return Ok((Rendezvous::Address, None));
        }
        if let (Some(address), Some(port)) = (value("MASTER_ADDR"), value("MASTER_PORT")) {
            let next = port.trim().parse::<u16>().ok().and_then(|port| port.checked_add(1));
            let Some(next) = next else {
                let reason =
                    format!("MASTER_PORT is {port}, and one port above it is none: choose a lower one");
                return Err(NcclError::NoMeeting(reason));
            };
            return Ok((Rendezvous::Address, Some(format!("{}:{next}", bracketed(&address)))));
        }
        let job = value("SLURM_JOB_ID").or_else(|| value("SLURM_JOBID"));
        let Some(job) = job else {
            return Err(NcclError::NoMeeting(
                "nothing tells the ranks where to meet: start them with mpirun and an MPI library, or set MASTER_ADDR and MASTER_PORT \
                 for all of them"
                    .to_owned(),
            ));
        };
        let of_job =
            ["SLURM_STEP_ID", "SLURM_RESTART_COUNT"].map(|name| value(name).unwrap_or_else(|| "0".into()));
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push(format!(".nccl-{job}-{}-{}", of_job[0], of_job[1]));
        Ok((Rendezvous::File(folder.with_file_name(name)), None))
    }

    /// Sees to it that NCCL reads `address`, if there is one.
    ///
    /// # Safety
    /// No other thread reads or changes the environment meanwhile.
    pub unsafe fn announce(address: Option<&str>) {
        if let Some(address) = address {
            // SAFETY: the caller's promise.
            unsafe { std::env::set_var(COMM_ID, address) };
        }
    }

    /// Compares the ranks' devices, where that can be done before they are connected.
    pub(super) fn compare(&self, own: &Result<String, NcclError>, ranks: usize) -> Result<(), NcclError> {
        let Rendezvous::Broadcast(exchange) = self else { return own.clone().map(drop) };
        let mut word = vec![0; WORD];
        let (has_one, text) = match own {
            Ok(device) => (1, device.clone()),
            Err(error) => (2, error.to_string()),
        };
        let length = text.floor_char_boundary(WORD - 1);
        word[0] = has_one;
        word[1..=length].copy_from_slice(&text.as_bytes()[..length]);
        let mut all = vec![0; WORD * ranks];
        let refused = |rank, reason| NcclError::Refused { rank, ranks, reason };
        exchange.all_gather(&word, &mut all).map_err(|error| refused(exchange.rank(), error.to_string()))?;
        own.clone()?;
        let text = |rank: usize| {
            String::from_utf8_lossy(&all[rank * WORD + 1..][..WORD - 1]).trim_end_matches('\0').to_owned()
        };
        if let Some(rank) = (0..ranks).find(|rank| all[rank * WORD] != 1) {
            return Err(refused(exchange.rank(), format!("rank {rank}: {}", text(rank))));
        }
        for second in 0..ranks {
            if let Some(first) = (0..second).find(|first| text(*first) == text(second)) {
                return Err(NcclError::SameDevice { first, second, device: text(second) });
            }
        }
        Ok(())
    }

    /// The id, which rank 0 makes.
    pub(super) fn unique_id(
        &self,
        functions: &Functions,
        rank: usize,
        patience: Duration,
    ) -> Result<UniqueId, NcclError> {
        match self {
            // NCCL reads the address on every rank.
            Rendezvous::Address => made(functions),
            Rendezvous::Broadcast(exchange) => {
                let own = if rank == 0 { made(functions) } else { Ok(UniqueId([0; 128])) };
                let mut bytes = own.as_ref().map_or([0; 128], |id| id.0);
                let sent = exchange.broadcast(0, &mut bytes);
                own?;
                sent.map_err(|error| NcclError::NoMeeting(error.to_string()))?;
                match bytes.iter().any(|byte| *byte != 0) {
                    true => Ok(UniqueId(bytes)),
                    false => Err(NcclError::NoMeeting("NCCL on rank 0 has told no place to meet".to_owned())),
                }
            }
            Rendezvous::File(path) if rank == 0 => {
                let id = made(functions)?;
                write(path, &id)
                    .map_err(|error| NcclError::NoMeeting(format!("{}: {error}", path.display())))?;
                Ok(id)
            }
            Rendezvous::File(path) => read(path, patience),
        }
    }

    /// Takes the file away again.
    pub(super) fn leave(&self, rank: usize) {
        if let (Rendezvous::File(path), 0) = (self, rank) {
            // One that stays is of a job that does not come again.
            let _ = fs::remove_file(path);
        }
    }
}

fn made(functions: &Functions) -> Result<UniqueId, NcclError> {
    let mut id = UniqueId([0; 128]);
    // SAFETY: it may be written.
    match unsafe { (functions.get_unique_id)(&mut id) } {
        SUCCESS => Ok(id),
        status => Err(NcclError::NoMeeting(functions.explained(status, std::ptr::null_mut()))),
    }
}

/// An address of IPv6 in brackets, as NCCL reads it.
fn bracketed(address: &str) -> String {
    match address.contains(':') && !address.starts_with('[') {
        true => format!("[{address}]"),
        false => address.to_owned(),
    }
}

fn write(path: &Path, id: &UniqueId) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, id.0)?;
    fs::rename(&new, path)
}

fn read(path: &Path, patience: Duration) -> Result<UniqueId, NcclError> {
    let started = Instant::now();
    loop {
        if let Some(id) = fs::read(path).ok().and_then(|bytes| bytes.try_into().ok()) {
            return Ok(UniqueId(id));
        }
        if started.elapsed() > patience {
            return Err(NcclError::NoMeeting(format!(
                "rank 0 has not written {} within {} s, which all ranks have to share",
                path.display(),
                patience.as_secs_f64()
            )));
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<(Rendezvous<'static>, Option<String>), NcclError> {
        let value =
            |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        Rendezvous::of_environment(value, Path::new("runs/one"))
    }

    #[test]
    fn ranks_meet_where_the_environment_says() {
        let (way, address) = of(&[("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500")]).unwrap();
        assert!(matches!(way, Rendezvous::Address));
        assert_eq!(address.as_deref(), Some("node7:29501"));
        assert_eq!(
            of(&[("MASTER_ADDR", "fe80::1"), ("MASTER_PORT", "1")]).unwrap().1.as_deref(),
            Some("[fe80::1]:2")
        );
        let (way, address) =
            of(&[("NCCL_COMM_ID", "a:1"), ("MASTER_ADDR", "b"), ("MASTER_PORT", "2")]).unwrap();
        assert!(matches!(way, Rendezvous::Address) && address.is_none());
        let (way, _) =
            of(&[("SLURM_JOB_ID", "12"), ("SLURM_STEP_ID", "3"), ("SLURM_RESTART_COUNT", "1")]).unwrap();
        let Rendezvous::File(path) = way else { panic!("a job has a file") };
        assert_eq!(path, Path::new("runs/one.nccl-12-3-1"));
    }

    #[test]
    fn ranks_that_nothing_tells_where_to_meet_say_so() {
        assert!(of(&[]).err().unwrap().to_string().contains("MASTER_ADDR and MASTER_PORT"));
        let told = of(&[("MASTER_ADDR", "a"), ("MASTER_PORT", "65535")]).err().unwrap().to_string();
        assert!(told.contains("MASTER_PORT is 65535"), "{told}");
    }

    #[test]
    fn an_id_in_a_file_is_whole_or_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later/run.nccl-1-0-0");
        let told = read(&path, Duration::ZERO).err().unwrap().to_string();
        assert!(told.contains("rank 0 has not written") && told.contains("run.nccl-1-0-0"), "{told}");
        write(&path, &UniqueId([7; 128])).unwrap();
        assert_eq!(read(&path, Duration::ZERO).unwrap().0, [7; 128]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
