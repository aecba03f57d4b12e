//! What comes out of a bucket is what is in the store, whatever happens on the way and in the cache.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::files::BucketFiles;
use super::*;
use crate::{BatchStream, Part, RowFilter, StoreError, StreamOptions};

/// Three epochs of batches, after a seek, of rows whose tokens and contexts decide.
fn batches(store: Store, threads: usize) -> Result<Vec<u32>> {
    let rows = RowFilter {
        drop_tokens: vec![1, 33],
        part: Part::Training { held_out: 0.1 },
        ..RowFilter::default()
    };
    let options = StreamOptions {
        batch: 50,
        seed: 3,
        mixing_chunks: Some(4),
        rows,
        threads,
        ..StreamOptions::default()
    };
    let mut stream = BatchStream::new(vec![store], options)?;
    stream.seek(5)?;
    let mut all = Vec::new();
    for _ in 0..30 {
        all.extend(stream.next_batch()?.iter().map(|value| value.to_bits()));
    }
    Ok(all)
}

/// A store in a folder, in a bucket, and its batches.
fn setting() -> (tempfile::TempDir, Memory, Vec<u32>) {
    let dir = local(&spec());
    let memory = Memory::with(dir.path());
    let expected = batches(Store::open(dir.path()).unwrap(), 2).unwrap();
    (dir, memory, expected)
}

/// Room for what always stays, and ten chunks.
fn limit(memory: &Memory) -> u64 {
    let summary = Store::out_of_reach(&BucketFiles::new(memory.bucket())).unwrap().summary();
    summary.stored_bytes - summary.activation_bytes + summary.activation_bytes * 10 / 42
}

/// A client that counts its requests for shards.
fn counting(memory: &Memory) -> (Bucket, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let bucket = memory.failing(move |kind, name| {
        counted.fetch_add(usize::from(kind == "get" && name.starts_with("activations/c/")), Ordering::SeqCst);
        Fault::None
    });
    (bucket, count)
}

#[test]
fn a_cache_cold_or_warm_gives_the_batches_of_the_folder() {
    let (dir, memory, expected) = setting();
    let folder = tempfile::tempdir().unwrap();
    for (round, threads) in [(0, 1), (1, 3)] {
        let (bucket, count) = counting(&memory);
        let store = open(&bucket, &cache(folder.path(), None)).unwrap();
        assert_eq!(batches(store.clone(), threads).unwrap(), expected);
        let plain = Store::open(dir.path()).unwrap();
        assert_eq!(store.read_rows(60..90).unwrap(), plain.read_rows(60..90).unwrap());
        assert_eq!(store.origin(60..90).unwrap(), plain.origin(60..90).unwrap());
        assert_eq!(store.context_tokens(3..9).unwrap(), plain.context_tokens(3..9).unwrap());
        assert_eq!(store.summary().stored_bytes, plain.summary().stored_bytes);
        store.check_aligned(&plain).unwrap();
        assert_eq!(store.canonical_path(), Path::new("s3://bucket/acts"));
        // 11 shards, of which each end and each of 42 chunks comes once.
        let requests = if round == 0 { 11 + 42 } else { 0 };
        assert_eq!(count.load(Ordering::SeqCst), requests);
    }
}

#[test]
fn a_full_cache_is_the_store_itself() {
    let (dir, memory, _) = setting();
    let folder = tempfile::tempdir().unwrap();
    let store = open(&memory.bucket(), &cache(folder.path(), None)).unwrap();
    store.read_rows(0..660).unwrap();
    store.origin(0..660).unwrap();
    store.context_tokens(0..66).unwrap();
    drop(store);
    let entry = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    let mut found = files(&entry);
    assert!(found.remove(".cache/present").unwrap().iter().filter(|mark| **mark == 1).count() == 42);
    assert_eq!(found, files(dir.path()));
    assert_eq!(crate::verify(&entry, &|_| ()).unwrap().problems, []);
}

#[test]
fn a_cache_below_the_stores_size_stays_below_its_limit() {
    let (_dir, memory, expected) = setting();
    let folder = tempfile::tempdir().unwrap();
    let too_small =
        open(&memory.bucket(), &cache(folder.path(), Some(limit(&memory) / 2))).unwrap_err().to_string();
    assert!(too_small.contains("too few") && too_small.contains("s3://bucket/acts"), "{too_small}");
    let (bucket, count) = counting(&memory);
    let store = open(&bucket, &cache(folder.path(), Some(limit(&memory)))).unwrap();
    assert_eq!(batches(store.clone(), 2).unwrap(), expected);
    let requests = count.load(Ordering::SeqCst) - 11;
    // 30 batches of 50 rows are about 3 epochs of 42 chunks.
    assert!((60..140).contains(&requests), "{requests} requests");
    let marks = files(folder.path()).into_iter().find(|(name, _)| name.ends_with("present")).unwrap().1;
    let present = marks.iter().filter(|mark| **mark == 1).count();
    assert!((6..=11).contains(&present), "{present} chunks");
}

#[test]
fn what_is_damaged_in_the_cache_is_fetched_again() {
    let (_dir, memory, expected) = setting();
    let folder = tempfile::tempdir().unwrap();
    let store = open(&memory.bucket(), &cache(folder.path(), None)).unwrap();
    batches(store, 2).unwrap();
    let damaged: Vec<PathBuf> = files(folder.path())
        .into_keys()
        .filter(|name| !name.contains("present") && name != "cache.lock")
        .map(|name| folder.path().join(name))
        .collect();
    assert!(damaged.len() > 20);
    for path in damaged {
        let length = fs::metadata(&path).unwrap().len();
        let file = fs::File::options().write(true).open(&path).unwrap();
        // Chunks, indexes, journal, statistics, origins, tokens.
        (0..length).step_by(97).for_each(|at| file.write_all_at(b"?", at).unwrap());
        file.write_all_at(b"?", length - 1).unwrap();
    }
    let (bucket, count) = counting(&memory);
    let store = open(&bucket, &cache(folder.path(), None)).unwrap();
    assert_eq!(batches(store, 2).unwrap(), expected);
    assert_eq!(count.load(Ordering::SeqCst), 11 + 42);
}

#[test]
fn what_is_damaged_while_it_is_read_is_fetched_again() {
    let (_dir, memory, expected) = setting();
    let folder = tempfile::tempdir().unwrap();
    let store = open(&memory.bucket(), &cache(folder.path(), None)).unwrap();
    assert_eq!(batches(store.clone(), 2).unwrap(), expected);
    for name in files(folder.path()).into_keys().filter(|name| name.contains("activations/c/")) {
        let file = fs::File::options().write(true).open(folder.path().join(name)).unwrap();
        file.write_all_at(b"?????", 3).unwrap();
    }
    assert_eq!(batches(store, 2).unwrap(), expected);
}

#[test]
fn nothing_wrong_gets_into_a_batch_whatever_happens_on_the_way() {
    let (_dir, memory, expected) = setting();
    let faults = [Fault::Gone, Fault::Flipped, Fault::Short, Fault::Broken, Fault::Slow, Fault::Lost];
    for fault in faults {
        let folder = tempfile::tempdir().unwrap();
        let bucket = memory.failing(at_first(&["get", "list"], fault));
        let store = open(&bucket, &cache(folder.path(), Some(limit(&memory)))).unwrap();
        assert_eq!(batches(store, 3).unwrap(), expected, "{fault:?}");
    }
}

#[test]
fn an_error_names_the_object_the_reason_and_what_to_do() {
    let (_dir, memory, _) = setting();
    for (fault, parts) in [
        (
            Fault::Gone,
            &[
                "cannot fetch s3://bucket/acts/activations/c/",
                "the connection was closed",
                "tries",
                "same command",
            ][..],
        ),
        (
            Fault::Forbidden,
            &["cannot fetch s3://bucket/acts/activations/c/", "AccessDenied", "docs/buckets.md"],
        ),
        (Fault::Flipped, &["of s3://bucket/acts/activations/c/", "crc32c", "bytes", "sound copy"]),
        (Fault::Short, &["cannot fetch s3://bucket/acts/activations/c/", "asked for"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        // Only chunks: they begin at their shard's beginning or end before its index.
        let seen = AtomicUsize::new(0);
        let bucket = memory.failing(move |_, name| {
            let later = name.starts_with("activations/c/") && seen.fetch_add(1, Ordering::SeqCst) >= 11;
            if later { fault } else { Fault::None }
        });
        let store = open(&bucket, &cache(folder.path(), None)).unwrap();
        let error = batches(store, 2).unwrap_err();
        let source = std::error::Error::source(&error).map_or(String::new(), |source| source.to_string());
        let message = format!("{error}: {source}");
        for part in parts {
            assert!(message.contains(part), "{part}: {message}");
        }
        let marks = files(folder.path()).into_iter().find(|(name, _)| name.ends_with("present")).unwrap().1;
        assert!(marks.iter().all(|mark| *mark == 0), "{fault:?}");
    }
}

#[test]
fn what_a_bucket_lacks_is_told_when_the_store_is_opened() {
    let (_dir, memory, _) = setting();
    let message = |memory: &Memory| {
        let folder = tempfile::tempdir().unwrap();
        let error = open(&memory.bucket(), &cache(folder.path(), None)).unwrap_err();
        let source = std::error::Error::source(&error).map_or(String::new(), |source| source.to_string());
        format!("{error}: {source}")
    };
    let shard = memory.objects()["activations/c/3/0"].clone();
    memory.put("activations/c/3/0", shard[1..].to_vec());
    assert!(
        message(&memory).contains("s3://bucket/acts/activations/c/3/0 is damaged"),
        "{}",
        message(&memory)
    );
    memory.put("activations/c/3/0", [&shard[1..], &[0]].concat());
    assert!(message(&memory).contains("its index is not"), "{}", message(&memory));
    memory.delete("activations/c/3/0");
    assert!(message(&memory).contains("activations/c/3/0: there is no such object"), "{}", message(&memory));
    memory.put("activations/c/3/0", shard);
    memory.delete("stats/mean/c/0");
    assert!(message(&memory).contains("stats/mean/c/0: there is no such object"), "{}", message(&memory));
    memory.delete("zarr.json");
    assert!(
        message(&memory).contains("there is no activation store at s3://bucket/acts"),
        "{}",
        message(&memory)
    );
}

#[test]
fn a_store_that_was_written_anew_takes_nothing_from_the_cache() {
    let (_dir, memory, expected) = setting();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(batches(open(&memory.bucket(), &cache(folder.path(), None)).unwrap(), 2).unwrap(), expected);
    let mut other = spec();
    other.seed = 8;
    let other_dir = local(&other);
    for (name, content) in files(other_dir.path()) {
        memory.put(&name, content);
    }
    let expected = batches(Store::open(other_dir.path()).unwrap(), 2).unwrap();
    // The old one goes when there is no room for both.
    let options = cache(folder.path(), Some(limit(&memory)));
    assert_eq!(batches(open(&memory.bucket(), &options).unwrap(), 2).unwrap(), expected);
    let folders =
        fs::read_dir(folder.path()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(folders.count(), 1);
}

#[test]
fn what_an_ended_process_left_half_done_is_not_taken_for_a_chunk() {
    let (_dir, memory, expected) = setting();
    let folder = tempfile::tempdir().unwrap();
    let store = open(&memory.bucket(), &cache(folder.path(), None)).unwrap();
    let entry = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    drop(store);
    // As a process that was ended while it wrote, and one that was ended while it took away.
    let shard = entry.join("activations/c/2/0");
    fs::File::options().write(true).open(&shard).unwrap().write_all_at(&[7; 300], 100).unwrap();
    let marks = fs::File::options().write(true).open(entry.join(".cache/present")).unwrap();
    marks.write_all_at(&[1], 4).unwrap();
    let store = open(&memory.bucket(), &cache(folder.path(), None)).unwrap();
    assert_eq!(batches(store, 2).unwrap(), expected);
}

#[test]
fn space_that_an_ended_process_left_taken_is_given_back() {
    let mut spec = spec();
    (spec.width, spec.contexts) = (4096, 40);
    spec.layout = Layout { window_rows: 256, shard_rows: 256, chunk_rows: 64, zstd_level: 1 };
    let dir = local(&spec);
    let memory = Memory::with(dir.path());
    let folder = tempfile::tempdir().unwrap();
    let store = open(&memory.bucket(), &cache(folder.path(), None)).unwrap();
    let entry = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    store.read_rows(0..256).unwrap();
    drop(store);
    let shard = entry.join("activations/c/0/0");
    let before = fs::metadata(&shard).unwrap().blocks();
    assert!(before * 512 > 300_000, "{before} blocks");
    fs::write(entry.join(".cache/present"), [0; 8]).unwrap();
    drop(open(&memory.bucket(), &cache(folder.path(), None)).unwrap());
    let after = fs::metadata(&shard).unwrap().blocks();
    assert!(after * 512 < 50_000, "{after} blocks of {before}");
}

#[test]
fn a_second_cache_in_a_folder_is_refused_and_one_process_shares_it() {
    let (_dir, memory, _) = setting();
    let folder = tempfile::tempdir().unwrap();
    let options = cache(folder.path(), None);
    let first = open(&memory.bucket(), &options).unwrap();
    let second = open(&memory.bucket(), &options).unwrap();
    assert_eq!(first.read_rows(0..9).unwrap(), second.read_rows(0..9).unwrap());
    drop((first, second));
    // As another process would.
    let lock = fs::File::options().write(true).open(folder.path().join("cache.lock")).unwrap();
    lock.lock().unwrap();
    let error = open(&memory.bucket(), &options).unwrap_err().to_string();
    assert!(
        error.contains(&format!("process {}", std::process::id())) && error.contains("another folder"),
        "{error}"
    );
}

#[test]
fn verify_names_the_damaged_objects_of_a_bucket() {
    let (_dir, memory, _) = setting();
    let store = Store::out_of_reach(&BucketFiles::new(memory.bucket())).unwrap();
    assert_eq!(store.rows(), 660);
    assert!(matches!(store.read_rows(0..1), Err(StoreError::InBucket(_))));
    let mut shard = memory.objects()["activations/c/3/0"].clone();
    let sound = crate::verify::verify_in(&BucketFiles::new(memory.bucket())).unwrap();
    assert_eq!((sound.problems, sound.files), (vec![], 15 + 22 + 1));
    shard[5] ^= 1;
    memory.put("activations/c/3/0", shard);
    memory.delete("origin/c/2");
    let found = crate::verify::verify_in(&BucketFiles::new(memory.bucket())).unwrap().problems;
    let named: Vec<_> = found.iter().map(|problem| (&*problem.file, problem.chunk)).collect();
    assert_eq!(named, [("origin/c/2", None), ("activations/c/3/0", Some(0))]);
}
