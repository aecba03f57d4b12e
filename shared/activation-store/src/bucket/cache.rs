//! A folder for chunks of stores in buckets, its limit, and the requests that fill it.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use super::client::runtime;
use super::entry::{Entry, Here, PRESENT, punch};
use super::fetch;
use super::slots::{Claim, Key, Slots};
use crate::{CacheOptions, Result, StoreError};

/// Chunks on their way at a time, besides those that somebody waits for.
const AHEAD: usize = 64;
/// The file whose lock says who uses the folder.
const LOCK: &str = "cache.lock";

/// The chunks of stores in one folder. One process uses it; whoever opens it there again shares it.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) folder: PathBuf,
    limit: Option<u64>,
    state: Mutex<State>,
    /// A chunk has arrived, or has not.
    changed: Condvar,
    /// The lock is the open file's; the system releases it with the process, however that ends.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    slots: Slots,
    /// The stores that are open, by number.
    stores: Vec<Arc<Entry>>,
    /// Bytes of their files that are read as a whole, which stay.
    fixed: u64,
    /// Stores of earlier processes, the one used longest ago first.
    old: Vec<Old>,
    in_flight: usize,
}

/// A store that nobody has opened.
#[derive(Debug)]
struct Old {
    dir: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Cache {
    /// Opens the cache in a folder, or makes it.
    ///
    /// # Errors
    /// Another process has it; errors of the operating system.
    pub(super) fn open(options: &CacheOptions) -> Result<Arc<Cache>> {
        static OPEN: Mutex<Vec<Weak<Cache>>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|cache| cache.strong_count() > 0);
        fs::create_dir_all(&options.folder).map_err(StoreError::io("create", &options.folder))?;
        let folder = fs::canonicalize(&options.folder).map_err(StoreError::io("find", &options.folder))?;
        if let Some(cache) = open.iter().filter_map(Weak::upgrade).find(|cache| cache.folder == folder) {
            return Ok(cache);
        }
        let lock = lock(&folder)?;
        let state = State { old: old_stores(&folder)?, ..State::default() };
        let cache = Cache {
            folder,
            limit: options.size,
            state: Mutex::new(state),
            changed: Condvar::new(),
            _lock: lock,
        };
        let cache = Arc::new(cache);
        open.push(Arc::downgrade(&cache));
        Ok(cache)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self, what: String) -> StoreError {
        StoreError::Cache { dir: self.folder.clone(), what }
    }

    /// The number of the store in `dir`, if it is open already.
    pub(super) fn known(&self, dir: &Path) -> Option<(u32, Arc<Entry>)> {
        let state = self.lock();
        let number = state.stores.iter().position(|entry| entry.dir == dir)?;
        Some((number as u32, state.stores[number].clone()))
    }

    /// Says that the store in `dir` is in use, before its files are touched.
    pub(super) fn reclaim(&self, dir: &Path) {
        self.lock().old.retain(|old| old.dir != dir);
    }

    /// Takes in a store, of which the chunks `here` are in its folder. Its other files take `fixed` bytes, all of its chunks
    /// `chunks` bytes and the largest one `largest`.
    ///
    /// # Errors
    /// A limit below what the store cannot do without, a file system without room or that cannot give space back.
    pub(super) fn add(
        &self,
        entry: Entry,
        here: &[Here],
        [fixed, chunks, largest]: [u64; 3],
    ) -> Result<(u32, Arc<Entry>)> {
        let mut state = self.lock();
        let here_already = on_disk(&entry.dir, &mut HashSet::new());
        if let Some(limit) = self.limit {
            let least = state.fixed + fixed + 8 * largest;
            if limit < least {
                return Err(self.wrong(format!(
                    "{} MB are too few for {}: at least {} MB are needed",
                    limit / 1_000_000,
                    entry.bucket.path().display(),
                    least.div_ceil(1_000_000)
                )));
            }
            if limit < state.fixed + fixed + chunks {
                self.check_punching()?;
            }
        }
        let more = (fixed + chunks)
            .min(self.limit.unwrap_or(u64::MAX))
            .saturating_sub(here_already + bytes_of(&state));
        let available = durable_files::available_space(&self.folder)?;
        if more > available {
            return Err(self.wrong(format!(
                "{} more would take {} MB and its file system has {} MB free: limit the cache, or name a folder elsewhere",
                entry.bucket.path().display(),
                more / 1_000_000,
                available / 1_000_000
            )));
        }
        let (number, entry) = (state.stores.len() as u32, Arc::new(entry));
        for &Here { shard, chunk, bytes } in here {
            state.slots.found(Key { store: number, shard: shard as u32, chunk: chunk as u32 }, bytes);
        }
        state.fixed += fixed;
        state.stores.push(entry.clone());
        Ok((number, entry))
    }

    /// Whether the file system gives the space of a part of a file back.
    fn check_punching(&self) -> Result<()> {
        let path = self.folder.join(".punched");
        let punched = File::create(&path).and_then(|mut file| {
            file.write_all(&[1; 4096])?;
            punch(&file, &(0..4096))
        });
        let _ = fs::remove_file(&path); // it says nothing any more
        punched.map_err(|error| {
            self.wrong(format!(
                "its file system cannot give up parts of a file ({error}), so that the cache cannot stay below the size of the \
                 store: take a folder on ext4, xfs, btrfs or tmpfs, or a larger limit"
            ))
        })
    }

    /// Waits until a chunk is here. It stays until the claim is dropped.
    ///
    /// # Errors
    /// As of [`fetch::chunk`].
    pub(super) fn claim(self: &Arc<Self>, key: Key, entry: &Arc<Entry>) -> Result<Claimed> {
        let (shard, chunk) = (key.shard as usize, key.chunk as usize);
        let bytes = entry.chunk_bytes(shard, chunk);
        let mut state = self.lock();
        loop {
            match state.slots.claim(key, bytes) {
                Claim::Ready => {
                    drop(state);
                    self.fetch_more();
                    return Ok(Claimed { cache: self.clone(), key });
                }
                Claim::Wait => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Claim::Fetch => {
                    let fetched = self.make_room(&mut state).and_then(|()| {
                        drop(state);
                        runtime()?.block_on(fetch::chunk(entry.clone(), shard, chunk))
                    });
                    self.settle(key, fetched.is_ok());
                    fetched?;
                    state = self.lock();
                }
            }
        }
    }

    /// Fetches a chunk that is here once more, because what is here is damaged.
    pub(super) fn fetch_again(&self, key: Key, entry: &Arc<Entry>) -> Result<()> {
        runtime()?.block_on(fetch::chunk(entry.clone(), key.shard as usize, key.chunk as usize))
    }

    /// Has chunks fetched in this order for `reader`.
    pub(super) fn want(self: &Arc<Self>, reader: u64, chunks: impl IntoIterator<Item = (Key, u64)>) {
        self.lock().slots.want(reader, chunks);
        self.fetch_more();
    }

    /// Forgets what `reader` wants.
    pub(super) fn forget(&self, reader: u64) {
        self.lock().slots.forget(reader);
    }

    /// Starts requests, as many as may be on their way.
    fn fetch_more(self: &Arc<Self>) {
        let Ok(runtime) = runtime() else { return };
        loop {
            let mut state = self.lock();
            if state.in_flight >= AHEAD {
                return;
            }
            // Half of the room is for what was read already.
            let room = self.limit.map(|limit| limit.saturating_sub(state.fixed) / 2);
            let Some(key) = state.slots.next(room) else { return };
            let entry = state.stores[key.store as usize].clone();
            if self.make_room(&mut state).is_err() {
                // Whoever needs the chunk meets the same error, and tells it.
                state.slots.failed(key);
                self.changed.notify_all();
                return;
            }
            state.in_flight += 1;
            drop(state);
            let cache = self.clone();
            runtime.spawn(async move {
                let fetched = fetch::chunk(entry, key.shard as usize, key.chunk as usize).await;
                cache.lock().in_flight -= 1;
                // Whoever needs a chunk that did not come asks again, and is told why it does not.
                cache.settle(key, fetched.is_ok());
                cache.fetch_more();
            });
        }
    }

    /// Notes what became of a chunk on its way.
    fn settle(&self, key: Key, is_here: bool) {
        let mut state = self.lock();
        match is_here {
            true => state.slots.arrived(key),
            false => state.slots.failed(key),
        }
        self.changed.notify_all();
    }

    /// Takes things away until what is here and on its way is within the limit, or nothing may go.
    fn make_room(&self, state: &mut State) -> Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        while bytes_of(state) > limit {
            if let Some(old) = state.old.first() {
                fs::remove_dir_all(&old.dir).map_err(StoreError::io("remove", &old.dir))?;
                state.old.remove(0);
                continue;
            }
            let Some(key) = state.slots.evict() else { return Ok(()) };
            state.stores[key.store as usize].free(key.shard as usize, key.chunk as usize)?;
        }
        Ok(())
    }

    fn release(&self, key: Key) {
        self.lock().slots.release(key);
    }
}

/// A chunk that stays where it is.
#[derive(Debug)]
pub(super) struct Claimed {
    cache: Arc<Cache>,
    key: Key,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.cache.release(self.key);
    }
}

fn bytes_of(state: &State) -> u64 {
    state.slots.bytes() + state.fixed + state.old.iter().map(|old| old.bytes).sum::<u64>()
}

/// Locks the folder, or says who has it.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.map_err(StoreError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut who = String::new();
            let _ = file.read_to_string(&mut who); // another process is all that matters
            let who = if who.is_empty() { "another process" } else { who.trim() };
            let what = format!("{who} uses it: give this one another folder, or wait for that one to end");
            return Err(StoreError::Cache { dir: folder.to_path_buf(), what });
        }
        Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path)(error)),
    }
    let who = format!("process {}", std::process::id());
    file.set_len(0).and_then(|()| file.write_all(who.as_bytes())).map_err(StoreError::io("write", &path))?;
    Ok(file)
}

/// The stores in the folder.
fn old_stores(folder: &Path) -> Result<Vec<Old>> {
    let mut old = Vec::new();
    for found in fs::read_dir(folder).map_err(StoreError::io("read", folder))? {
        let dir = found.map_err(StoreError::io("read", folder))?.path();
        let Ok(present) = fs::metadata(dir.join(PRESENT)) else { continue };
        let used = present.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        old.push(Old { bytes: on_disk(&dir, &mut HashSet::new()), dir, used });
    }
    old.sort_by_key(|old| old.used);
    Ok(old)
}

/// Bytes that a folder takes on disk; what cannot be read takes none.
fn on_disk(folder: &Path, seen: &mut HashSet<u64>) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => on_disk(&entry.path(), seen),
        Ok(data) if seen.insert(data.ino()) => data.blocks() * 512,
        _ => 0,
    });
    bytes.sum()
}
