//! Notes that the ranks leave where all of them can read: when one is waited for in vain, the others can say who it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// The note of one rank, written anew from time to time as long as this lives.
#[derive(Debug)]
pub struct Notes {
    folder: PathBuf,
    rank: usize,
    ranks: usize,
    interval: Duration,
    step: Arc<AtomicU64>,
    /// Closed to end the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a rank noted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Note {
    host: String,
    process: u32,
    step: u64,
}

impl Notes {
    /// Begins to note in `folder`, which is made if it is not there, every `interval`.
    ///
    /// # Errors
    /// A folder in which nothing can be written.
    pub fn keep(
        folder: &Path,
        (rank, ranks): (usize, usize),
        step: u64,
        interval: Duration,
    ) -> io::Result<Notes> {
        fs::create_dir_all(folder)?;
        let step = Arc::new(AtomicU64::new(step));
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.split_whitespace().collect::<String>();
        let (path, current) = (path(folder, rank), Arc::clone(&step));
        let write = move || {
            let step = current.load(Ordering::Relaxed);
            fs::write(&path, format!("{host} {} {step}\n", std::process::id()))
        };
        write()?;
        let (end, ended) = channel();
        let thread = std::thread::Builder::new().name("notes".into()).spawn(move || {
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                // One that cannot be written is old, which is what it then says.
                let _ = write();
            }
        })?;
        let (folder, end, thread) = (folder.to_owned(), Some(end), Some(thread));
        Ok(Notes { folder, rank, ranks, interval, step, end, thread })
    }

    /// Notes that `step` steps are done.
    pub fn done(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Who is behind: ranks whose notes are missing or old, or otherwise those that have done the fewest steps.
    pub fn laggards(&self) -> String {
        let own = self.step.load(Ordering::Relaxed);
        let (mut silent, mut behind) = (Vec::new(), Vec::new());
        for rank in (0..self.ranks).filter(|rank| *rank != self.rank) {
            let Some((Note { host, process, step }, age)) = read(&path(&self.folder, rank)) else {
                silent.push(format!("rank {rank} has left no note"));
                continue;
            };
            let who = format!("rank {rank} (process {process} on {host}, step {step})");
            if age > 3 * self.interval + Duration::from_secs(1) {
                silent.push(format!("{who} was last heard of {} s ago", age.as_secs()));
            } else if step < own {
                behind.push(format!("{who} is behind"));
            }
        }
        match (silent.is_empty(), behind.is_empty()) {
            (false, _) => silent.join("; "),
            (true, false) => behind.join("; "),
            (true, true) => {
                format!("all ranks are alive at step {own}, so the connection between them is to blame")
            }
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(path(&self.folder, self.rank));
        // The last one out.
        let _ = fs::remove_dir(&self.folder);
    }
}

fn path(folder: &Path, rank: usize) -> PathBuf {
    folder.join(format!("rank-{rank:04}"))
}

/// A note and how old it is.
fn read(path: &Path) -> Option<(Note, Duration)> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace();
    let note = Note {
        host: words.next()?.to_owned(),
        process: words.next()?.parse().ok()?,
        step: words.next()?.parse().ok()?,
    };
    let written = fs::metadata(path).ok()?.modified().ok()?;
    Some((note, SystemTime::now().duration_since(written).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_is_behind_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("ranks");
        let long = Duration::from_secs(1000);
        let keep = |rank| Notes::keep(&folder, (rank, 3), 5, long).unwrap();
        let (first, second) = (keep(0), keep(1));
        first.done(7);
        assert_eq!(first.laggards(), "rank 2 has left no note");
        let third = keep(2);
        let told = first.laggards();
        assert!(told.contains("rank 1 (process ") && told.contains(", step 5) is behind; rank 2"), "{told}");
        assert!(second.laggards().contains("all ranks are alive at step 5"), "{}", second.laggards());
        drop((first, second, third));
        assert!(!folder.exists());
    }

    #[test]
    fn a_rank_that_notes_nothing_any_more_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::keep(dir.path(), (0, 2), 5, Duration::from_secs(1)).unwrap();
        let path = path(dir.path(), 1);
        fs::write(&path, "far 77 5\n").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(100)).unwrap();
        let told = notes.laggards();
        assert!(told.starts_with("rank 1 (process 77 on far, step 5) was last heard of 10"), "{told}");
    }
}
