//! A dump into a bucket ends with the bytes of a dump into a folder, however it is interrupted.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::disk::DiskStep;
use crate::{StoreError, WriterOptions};

fn write(bucket: &Bucket, spec: &StoreSpec, hook: Option<DiskHook>) -> Result<()> {
    let mut writer = writer(bucket, spec, hook)?;
    write_rest(&mut writer, spec)
}

#[test]
fn a_bucket_holds_the_files_of_the_folder() {
    let spec = spec();
    let (dir, memory) = (local(&spec), Memory::new());
    write(&memory.bucket(), &spec, None).unwrap();
    assert_eq!(memory.objects(), files(dir.path()));
    // Once more, and it is found complete.
    let again = writer(&memory.bucket(), &spec, None).unwrap();
    assert!(again.is_complete() && again.contexts_done() == 66);
    drop(again);
    assert_eq!(memory.objects(), files(dir.path()));
}

/// A hook that notes the steps and fails step `before`.
fn fault(before: usize, steps: &Arc<Mutex<Vec<DiskStep>>>) -> DiskHook {
    let (count, steps) = (AtomicUsize::new(0), steps.clone());
    DiskHook(Arc::new(move |step, _| {
        steps.lock().unwrap().push(step);
        if count.fetch_add(1, Ordering::SeqCst) == before { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }))
}

#[test]
fn after_a_failure_of_any_step_a_dump_ends_with_the_same_bytes() {
    let spec = spec();
    let expected = files(local(&spec).path());
    let steps = Arc::default();
    write(&Memory::new().bucket(), &spec, Some(fault(usize::MAX, &steps))).unwrap();
    let steps = steps.lock().unwrap().len();
    assert!(steps > 60, "{steps}");
    for number in 0..steps {
        let memory = Memory::new();
        write(&memory.bucket(), &spec, Some(fault(number, &Arc::default()))).unwrap_err();
        assert!(!memory.objects().contains_key("writer.lock"), "step {number}");
        write(&memory.bucket(), &spec, None).unwrap();
        assert_eq!(memory.objects(), expected, "step {number}");
    }
}

#[test]
fn requests_that_fail_and_answers_that_get_lost_change_nothing() {
    let spec = spec();
    let expected = files(local(&spec).path());
    for fault in [Fault::Gone, Fault::Lost] {
        let memory = Memory::new();
        let bucket = memory.failing(at_first(&["put", "list", "get"], fault));
        write(&bucket, &spec, None).unwrap();
        assert_eq!(memory.objects(), expected, "{fault:?}");
    }
}

#[test]
fn a_bucket_that_stays_away_is_an_error_that_a_later_run_goes_on_from() {
    let spec = spec();
    let expected = files(local(&spec).path());
    let memory = Memory::new();
    let seen = AtomicUsize::new(0);
    let bucket = memory.failing(move |kind, name| {
        let gone =
            kind == "put" && name.starts_with("activations/") && seen.fetch_add(1, Ordering::SeqCst) >= 5;
        if gone { Fault::Gone } else { Fault::None }
    });
    let error = write(&bucket, &spec, None).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().contains("cannot write s3://bucket/acts/activations/c/"), "{error}");
    assert!(source.contains("no answer") && source.contains("same command"), "{source}");
    let again = writer(&memory.bucket(), &spec, None).unwrap();
    assert!(again.contexts_done() > 0, "the first windows are kept");
    drop(again);
    write(&memory.bucket(), &spec, None).unwrap();
    assert_eq!(memory.objects(), expected);
}

#[test]
fn no_line_of_the_journal_is_there_before_what_it_vouches_for() {
    let spec = spec();
    let (memory, order) = (Memory::new(), Arc::new(Mutex::new(Vec::new())));
    let noted = order.clone();
    // Even shards are slow.
    let bucket = memory.failing(move |kind, name| {
        if kind == "put" {
            noted.lock().unwrap().push(name.to_owned());
        }
        let even = name.strip_prefix("activations/c/").and_then(|rest| rest[..1].parse::<u32>().ok());
        if even.is_some_and(|number| number % 2 == 0) { Fault::Slow } else { Fault::None }
    });
    write(&bucket, &spec, None).unwrap();
    let order = order.lock().unwrap();
    let at = |name: &str| order.iter().position(|other| other == name).unwrap_or_else(|| panic!("{name}"));
    for line in 0..3 {
        // The first window's lines are its three shards' and its own.
        let line_at = at(&format!(".unfinished/journal/{line:012}"));
        assert!(
            at(&format!("activations/c/{line}/0")) < line_at && at(&format!("origin/c/{line}")) < line_at
        );
    }
    let last: Vec<&String> = order.iter().rev().take(2).rev().collect();
    assert_eq!(last, ["manifest", "zarr.json"]);
}

#[test]
fn a_second_writer_is_refused_and_told_who_the_first_is() {
    let spec = spec();
    let memory = Memory::new();
    let mut first = writer(&memory.bucket(), &spec, None).unwrap();
    let error = writer(&memory.bucket(), &spec, None).unwrap_err();
    let who = format!("process {}", std::process::id());
    assert!(matches!(&error, StoreError::WrittenBy { .. }) && error.to_string().contains(&who), "{error}");
    write_rest(&mut first, &spec).unwrap();
    drop(first);
    assert_eq!(memory.objects(), files(local(&spec).path()));
}

#[test]
fn a_writer_whose_lease_was_taken_over_stops_before_its_next_line() {
    let spec = spec();
    let memory = Memory::new();
    let mut first = writer(&memory.bucket(), &spec, None).unwrap();
    let other = super::super::lease::Holder {
        host: "node-7".to_owned(),
        nonce: "other".to_owned(),
        ..super::super::lease::Holder::this()
    };
    memory.put("writer.lock", serde_json::to_vec(&other).unwrap());
    let error = write_rest(&mut first, &spec).unwrap_err();
    assert!(error.to_string().contains("on node-7"), "{error}");
    drop(first);
    let objects = memory.objects();
    assert!(!objects.keys().any(|name| name.starts_with(".unfinished/journal/")), "no line was written");
    assert_eq!(objects["writer.lock"], serde_json::to_vec(&other).unwrap(), "the other's lease stays");
}

#[test]
fn a_lease_that_nobody_renews_is_taken_over_after_a_while() {
    use super::super::lease::{Holder, Lease};
    let memory = Memory::new();
    let other = Holder { host: "node-7".to_owned(), nonce: "other".to_owned(), ..Holder::this() };
    memory.put("writer.lock", serde_json::to_vec(&other).unwrap());
    let lease = Lease::acquire_within(&memory.bucket(), Duration::from_millis(20)).unwrap();
    assert_ne!(memory.objects()["writer.lock"], serde_json::to_vec(&other).unwrap());
    drop(lease);
    assert!(memory.objects().is_empty());
    // One of this machine whose process is gone is taken over at once.
    let gone = Holder { process: u32::MAX - 1, ..Holder::this() };
    memory.put("writer.lock", serde_json::to_vec(&gone).unwrap());
    drop(Lease::acquire_within(&memory.bucket(), Duration::from_secs(3600)).unwrap());
    memory.put("writer.lock", b"something else".to_vec());
    let error = Lease::acquire_within(&memory.bucket(), Duration::from_millis(1)).unwrap_err();
    assert!(matches!(error, StoreError::InTheWay(_)), "{error}");
}

#[test]
fn other_bytes_in_a_shards_place_are_never_overwritten() {
    let spec = spec();
    let memory = Memory::new();
    let first = writer(&memory.bucket(), &spec, None).unwrap();
    memory.put("activations/c/1/0", b"of another writer".to_vec());
    let mut first = first;
    let error = write_rest(&mut first, &spec).unwrap_err();
    assert!(error.to_string().contains("activations/c/1/0 holds other bytes"), "{error}");
    drop(first);
    assert_eq!(memory.objects()["activations/c/1/0"], b"of another writer");
    // Started again alone, the run clears what no line vouches for.
    write(&memory.bucket(), &spec, None).unwrap();
    assert_eq!(memory.objects(), files(local(&spec).path()));
}

#[test]
fn what_is_there_already_is_refused_unless_it_is_this_dump() {
    let spec = spec();
    let memory = Memory::new();
    memory.put("notes.txt", b"mine".to_vec());
    let refused =
        |memory: &Memory, spec: &StoreSpec| writer(&memory.bucket(), spec, None).map(drop).unwrap_err();
    assert!(matches!(refused(&memory, &spec), StoreError::NotAStore(_)));
    assert_eq!(memory.objects().len(), 1);
    memory.delete("notes.txt");
    let mut other = spec.clone();
    other.seed = 9;
    // Begun, and nothing stored.
    drop(writer(&memory.bucket(), &other, None).unwrap());
    write(&memory.bucket(), &spec, None).unwrap();
    assert_eq!(memory.objects(), files(local(&spec).path()));
    assert!(matches!(refused(&memory, &other), StoreError::Mismatch { .. }));
    let error = StoreWriter::open(Path::new("s3://bucket"), &spec, &WriterOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::Address { .. }), "{error}");
}

#[test]
fn a_lost_shard_is_written_again_with_all_that_follows() {
    let spec = spec();
    let memory = Memory::new();
    let seen = Arc::default();
    // Ends in the third window.
    write(&memory.bucket(), &spec, Some(fault(45, &seen))).unwrap_err();
    memory.delete("activations/c/4/0");
    let again = writer(&memory.bucket(), &spec, None).unwrap();
    assert!(again.damage().iter().any(|what| what.contains("activations/c/4/0")), "{:?}", again.damage());
    drop(again);
    write(&memory.bucket(), &spec, None).unwrap();
    assert_eq!(memory.objects(), files(local(&spec).path()));
}
