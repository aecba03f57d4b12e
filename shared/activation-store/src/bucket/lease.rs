//! Who writes a store: the object `writer.lock`, which its writer renews.
//!
//! It is advice. Whoever finds one that nobody renews takes it over, and the one before notices it before its next line of the
//! journal. What keeps two writers from spoiling a store is that every object is created once and every line has one place.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_store::PutPayload;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::client::{Bucket, Version, runtime};
use super::failure::{Failure, Kind};
use crate::lock::LOCK;
use crate::{Result, StoreError};

/// How often it is renewed.
const RENEWED: Duration = Duration::from_secs(10);
/// How long one of another machine must stay as it is until it counts as left behind.
const LEFT: Duration = Duration::from_secs(25);
/// How long it is tried to give it back.
const GIVEN_BACK: Duration = Duration::from_secs(3);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// What the object says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) host: String,
    /// Changes when the machine starts.
    pub(super) boot: String,
    pub(super) process: u32,
    /// When the process began, in the system's own units: another one by this number began at another time.
    pub(super) began: u64,
    /// Seconds since 1970, for people.
    pub(super) since: u64,
    /// Told from all others.
    pub(super) nonce: String,
    /// How often it was renewed.
    pub(super) renewed: u64,
}

impl Holder {
    /// This process.
    pub(super) fn this() -> Holder {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let process = std::process::id();
        Holder {
            host: line("/proc/sys/kernel/hostname"),
            boot: line("/proc/sys/kernel/random/boot_id"),
            process,
            began: began(process).unwrap_or(0),
            since: now.as_secs(),
            nonce: format!("{:016x}{:08x}", now.as_nanos() as u64, process),
            renewed: 0,
        }
    }

    /// "process 12 on node-3, which began 40 s ago"
    pub(super) fn who(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        format!("process {} on {}, since {} s", self.process, self.host, now.saturating_sub(self.since))
    }

    /// Whether the process runs on this machine; `None` if that cannot be told from here.
    fn runs(&self) -> Option<bool> {
        let this = Holder::this();
        let is_here = !self.host.is_empty() && (&self.host, &self.boot) == (&this.host, &this.boot);
        is_here.then(|| began(self.process) == Some(self.began))
    }

    fn content(&self) -> PutPayload {
        PutPayload::from(serde_json::to_vec(self).expect("plain data has a JSON form"))
    }
}

/// When a process of this machine began, in ticks since the machine's own beginning.
fn began(process: u32) -> Option<u64> {
    let line = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program comes in brackets and may hold anything.
    line.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The right to write a store, as far as others know of it. Dropping it removes the object.
#[derive(Debug)]
pub(super) struct Lease {
    bucket: Bucket,
    shared: Arc<Shared>,
    renewing: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    holder: Mutex<(Holder, Version)>,
    lost: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Holder, Version)> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Takes the lease of the store in `bucket`, at once if its holder ran on this machine and does not any more, or after
    /// a while if nobody renews it.
    ///
    /// # Errors
    /// [`StoreError::WrittenBy`] another process; a request that fails.
    pub(super) fn acquire(bucket: &Bucket) -> Result<Lease> {
        Lease::acquire_within(bucket, LEFT)
    }

    pub(super) fn acquire_within(bucket: &Bucket, left: Duration) -> Result<Lease> {
        let holder = Holder::this();
        let version = runtime()?.block_on(take(bucket, &holder, left))?;
        let shared = Arc::new(Shared { holder: Mutex::new((holder, version)), lost: AtomicBool::new(false) });
        let renewing = runtime()?.spawn(renew(bucket.clone(), shared.clone()));
        Ok(Lease { bucket: bucket.clone(), shared, renewing })
    }

    /// Checks that nobody has taken it over.
    ///
    /// # Errors
    /// [`StoreError::WrittenBy`] whoever has.
    pub(super) async fn check(&self) -> Result<()> {
        let ours = self.shared.lock().0.nonce.clone();
        match current(&self.bucket).await? {
            Some((holder, _)) if holder.nonce == ours => Ok(()),
            Some((holder, _)) => Err(written_by(&self.bucket, &holder)),
            None => Err(StoreError::WrittenBy {
                store: self.bucket.path().to_path_buf(),
                who: "another process, which has ended,".to_owned(),
            }),
        }
    }

    /// Who holds it now.
    pub(super) async fn who(&self) -> String {
        match current(&self.bucket).await {
            Ok(Some((holder, _))) if holder.nonce != self.shared.lock().0.nonce => holder.who(),
            _ => "another process".to_owned(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
        // One that stays behind is taken over: no reason to wait for a network that is gone.
        self.bucket = self.bucket.clone().with_patience(GIVEN_BACK);
        let Ok(runtime) = runtime() else { return };
        if !self.shared.lost.load(Ordering::Relaxed) && runtime.block_on(self.check()).is_ok() {
            let _ = runtime.block_on(self.bucket.delete(LOCK));
        }
    }
}

fn written_by(bucket: &Bucket, holder: &Holder) -> StoreError {
    StoreError::WrittenBy { store: bucket.path().to_path_buf(), who: holder.who() }
}

/// The holder, if there is one.
async fn current(bucket: &Bucket) -> Result<Option<(Holder, Version)>> {
    match bucket.get(LOCK).await {
        Ok((content, version)) => match serde_json::from_slice(&content) {
            Ok(holder) => Ok(Some((holder, version))),
            Err(_) => Err(StoreError::InTheWay(bucket.path().join(LOCK))),
        },
        Err(failure) if failure.kind == Kind::Missing => Ok(None),
        Err(failure) => Err(bucket.error("read", LOCK)(failure)),
    }
}

/// Puts `holder` in place of nobody, or of one who left.
async fn take(bucket: &Bucket, holder: &Holder, left: Duration) -> Result<Version> {
    loop {
        let before = current(bucket).await?;
        if let Some((other, version)) = &before {
            match other.runs() {
                Some(true) => return Err(written_by(bucket, other)),
                Some(false) => {}
                None => wait_until_left(bucket, other, version, left).await?,
            }
        }
        let old = before.as_ref().map(|(_, version)| version);
        match bucket.put(LOCK, &holder.content(), old).await {
            Ok(version) => return Ok(version),
            // Somebody was faster: look again who.
            Err(failure) if failure.kind == Kind::Exists => {}
            Err(failure) => return Err(bucket.error("write", LOCK)(failure)),
        }
    }
}

async fn wait_until_left(bucket: &Bucket, other: &Holder, version: &Version, left: Duration) -> Result<()> {
    terminal::say!(
        "{} was being written by {}; waiting {} s to see whether it still is",
        terminal::foreign_path(bucket.path()),
        terminal::foreign(&other.who()),
        left.as_secs()
    );
    let start = tokio::time::Instant::now();
    while start.elapsed() < left {
        tokio::time::sleep(LOOK.min(left)).await;
        match current(bucket).await? {
            Some((now, now_version)) if now != *other || now_version.e_tag != version.e_tag => {
                return Err(written_by(bucket, &now));
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
    Ok(())
}

async fn renew(bucket: Bucket, shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(RENEWED).await;
        let (holder, version) = {
            let held = shared.lock();
            let renewed = Holder { renewed: held.0.renewed + 1, ..held.0.clone() };
            (renewed, held.1.clone())
        };
        match bucket.put(LOCK, &holder.content(), Some(&version)).await {
            Ok(version) => *shared.lock() = (holder, version),
            Err(Failure { kind: Kind::Exists, .. }) => {
                shared.lost.store(true, Ordering::Relaxed);
                return;
            }
            // The next time, perhaps.
            Err(_) => {}
        }
    }
}
