//! However a dump is interrupted, resuming it ends with the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::small_stores::*;
use activation_store::{
    DiskHook, DiskStep, Layout, RowType, Store, StoreError, StoreSpec, StoreWriter, WriterOptions,
};

/// A temporary folder in memory where the system has one: these tests flush thousands of files.
fn fast_tempdir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Six windows of 100 rows and a short one; the boundaries fall inside of contexts, and inside of chunks of tokens.
fn spec() -> StoreSpec {
    let mut spec = small_spec(66);
    spec.layout = Layout { window_rows: 96, shard_rows: 48, chunk_rows: 16, zstd_level: 1 };
    spec
}

/// Writes from wherever the store in `dir` is to its end.
fn go_on(dir: &Path, spec: &StoreSpec, batch: u64, hook: Option<DiskHook>) -> Result<(), StoreError> {
    let options = WriterOptions { threads: 2, disk_hook: hook, ..WriterOptions::default() };
    let mut writer = StoreWriter::open(dir, spec, &options)?;
    append_all(&mut writer, spec, batch)?;
    writer.finish()?;
    Ok(())
}

fn reference(spec: &StoreSpec) -> tempfile::TempDir {
    let dir = fast_tempdir();
    go_on(dir.path(), spec, 9, None).unwrap();
    dir
}

/// A hook that lets `before` steps pass and fails the next one, and notes the steps.
fn fault(before: usize, error: io::ErrorKind, steps: &Arc<Mutex<Vec<DiskStep>>>) -> DiskHook {
    let (count, steps) = (AtomicUsize::new(0), steps.clone());
    DiskHook(Arc::new(move |step, _| {
        steps.lock().unwrap().push(step);
        if count.fetch_add(1, Ordering::SeqCst) == before { Err(error.into()) } else { Ok(()) }
    }))
}

#[test]
fn after_a_failure_of_any_step_a_dump_ends_with_the_same_bytes() {
    let spec = spec();
    let reference = reference(&spec);
    let steps = Arc::new(Mutex::new(Vec::new()));
    go_on(fast_tempdir().path(), &spec, 9, Some(fault(usize::MAX, io::ErrorKind::Other, &steps))).unwrap();
    let steps = std::mem::take(&mut *steps.lock().unwrap());
    for step in [
        DiskStep::Write,
        DiskStep::Sync,
        DiskStep::Rename,
        DiskStep::SyncFolder,
        DiskStep::Append,
        DiskStep::SyncJournal,
    ] {
        assert!(steps.contains(&step), "{step:?} never happens");
    }
    for (number, step) in steps.iter().enumerate() {
        let dir = fast_tempdir();
        let seen = Arc::default();
        let kind = if number % 2 == 0 { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
        let error = go_on(dir.path(), &spec, 9, Some(fault(number, kind, &seen))).unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }), "step {number} ({step:?}): {error}");
        assert!(!dir.path().join("writer.lock").exists());
        if let Ok(store) = Store::open(dir.path()) {
            // Only the flush of the very last rename can fail when all is there.
            assert_eq!((store.rows(), *step), (660, DiskStep::SyncFolder));
        }
        go_on(dir.path(), &spec, 7, None)
            .unwrap_or_else(|error| panic!("after step {number} ({step:?}): {error}"));
        assert_same_files(reference.path(), dir.path());
    }
}

#[test]
fn after_a_dead_commit_thread_a_dump_ends_with_the_same_bytes() {
    let spec = spec();
    let reference = reference(&spec);
    for before in [4, 30, 90] {
        let dir = fast_tempdir();
        let count = AtomicUsize::new(0);
        let dying = DiskHook(Arc::new(move |_, _| {
            assert_ne!(count.fetch_add(1, Ordering::SeqCst), before, "the disk's hook died");
            Ok(())
        }));
        let error = go_on(dir.path(), &spec, 9, Some(dying));
        let error = match error {
            Err(error) => error.to_string(),
            Ok(()) => panic!("step {before} is not of the threads behind the writer"),
        };
        assert!(error.contains("the disk's hook died"), "step {before}: {error}");
        assert!(Store::open(dir.path()).is_err());
        go_on(dir.path(), &spec, 7, None).unwrap();
        assert_same_files(reference.path(), dir.path());
    }
}

/// An unfinished store of five windows: its files.
fn unfinished(spec: &StoreSpec) -> BTreeMap<String, Vec<u8>> {
    let dir = fast_tempdir();
    let mut writer = StoreWriter::open(dir.path(), spec, &WriterOptions::default()).unwrap();
    writer.append(tokens(spec, 0, 50).view(), rows(spec, 0, 50).view()).unwrap();
    drop(writer);
    files(dir.path())
}

fn put(files: &BTreeMap<String, Vec<u8>>, dir: &Path) {
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

#[test]
fn damage_in_an_unfinished_store_is_reported_and_rewritten() {
    let spec = spec();
    let reference = reference(&spec);
    let sound = unfinished(&spec);
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for (name, content) in sound.iter().filter(|(name, _)| name.as_str() != "zarr.json") {
        for damage in ["bit", "bit", "bit", "cut", "gone", "other"] {
            let dir = fast_tempdir();
            put(&sound, dir.path());
            let path = dir.path().join(name);
            let mut content = content.clone();
            match damage {
                "bit" => {
                    let byte = random(content.len());
                    content[byte] ^= 1 << random(8);
                }
                "cut" => content.truncate(random(content.len())),
                "other" => content = sound["activations/c/1/0"].clone(),
                _ => {}
            }
            if damage == "gone" { fs::remove_file(&path) } else { fs::write(&path, &content) }.unwrap();
            let changed = sound[name] != content || damage == "gone";
            let writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
            let told = writer.damage().join("; ");
            // A journal that ends early is what a crash leaves.
            if name != "journal" {
                assert_eq!(told.contains(name.as_str()), changed, "{damage} in {name}: {told:?}");
                assert!(writer.contexts_done() < 48 || !changed, "{damage} in {name}");
            }
            drop(writer);
            go_on(dir.path(), &spec, 9, None).unwrap_or_else(|error| panic!("{damage} in {name}: {error}"));
            assert_same_files(reference.path(), dir.path());
        }
    }
}

#[test]
fn a_damaged_line_of_the_journal_is_told_unless_it_is_the_last() {
    let spec = spec();
    let reference = reference(&spec);
    let sound = unfinished(&spec);
    let lines = sound["journal"].iter().filter(|&&byte| byte == b'\n').count();
    for line in [0, 3, lines - 2, lines - 1] {
        let dir = fast_tempdir();
        put(&sound, dir.path());
        let mut damaged: Vec<Vec<u8>> =
            sound["journal"].split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect();
        damaged[line][20] ^= 1;
        fs::write(dir.path().join("journal"), damaged.concat()).unwrap();
        let writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        let told = writer.damage().join("; ");
        assert_eq!(told.contains(&format!("line {} of the journal", line + 1)), line + 1 < lines, "{told}");
        drop(writer);
        go_on(dir.path(), &spec, 9, None).unwrap();
        assert_same_files(reference.path(), dir.path());
    }
}

#[test]
fn what_only_has_the_name_of_a_temporary_file_is_left_alone() {
    let spec = spec();
    let refused = |put: &dyn Fn(&Path)| {
        let dir = fast_tempdir();
        put(dir.path());
        let before = files(dir.path());
        let error = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::NotAStore(_) | StoreError::InTheWay(_)), "{error}");
        assert_eq!(files(dir.path()), before);
    };
    for folder in ["partial", ".unfinished"] {
        refused(&|dir| {
            fs::create_dir(dir.join(folder)).unwrap();
            fs::write(dir.join(folder).join("thesis.tex"), "years of work").unwrap();
        });
    }
    refused(&|dir| fs::write(dir.join("writer.lock"), "my notes on locks").unwrap());
    refused(&|dir| fs::write(dir.join(".unfinished"), "a file").unwrap());
    // Also where there is a store.
    let sound = unfinished(&spec);
    refused(&|dir| {
        put(&sound, dir);
        fs::create_dir(dir.join(".unfinished")).unwrap();
        fs::write(dir.join(".unfinished/thesis.tex"), "years of work").unwrap();
    });
}

#[test]
fn remains_under_their_old_name_are_removed_too() {
    let spec = spec();
    let reference = reference(&spec);
    let sound = unfinished(&spec);
    for folder in ["partial", ".unfinished"] {
        let dir = fast_tempdir();
        put(&sound, dir.path());
        fs::create_dir(dir.path().join(folder)).unwrap();
        for name in
            ["activations.c.10.0", "origin.c.3", "tokens.c.0.0", "stats.mean.c.0", "manifest", "zarr.json"]
        {
            fs::write(dir.path().join(folder).join(name), "half of it").unwrap();
        }
        go_on(dir.path(), &spec, 9, None).unwrap();
        assert_same_files(reference.path(), dir.path());
    }
    // A folder of that name that is somebody's is not in the way of the store.
    let dir = fast_tempdir();
    put(&sound, dir.path());
    fs::create_dir(dir.path().join("partial")).unwrap();
    fs::write(dir.path().join("partial/thesis.tex"), "years of work").unwrap();
    go_on(dir.path(), &spec, 9, None).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("partial/thesis.tex")).unwrap(), "years of work");
    Store::open(dir.path()).unwrap();
}

/// A small file system in memory; unmounted when dropped.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    /// `None` where the user may not mount.
    fn mount(kilobytes: u32) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={kilobytes}k");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| SmallDisk(dir))
    }

    fn resize(&self, kilobytes: u32) {
        let options = format!("remount,size={kilobytes}k");
        assert!(Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap().success());
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn after_a_full_disk_a_dump_ends_with_the_same_bytes() {
    let spec = spec();
    let reference = reference(&spec);
    let mut full = 0;
    for kilobytes in (16..200).step_by(8) {
        let Some(disk) = SmallDisk::mount(kilobytes) else {
            eprintln!(
                "SKIPPED: a small file system cannot be mounted here; the injected faults stand for it"
            );
            return;
        };
        let dir = disk.0.path().join("store");
        let options = WriterOptions { threads: 2, skip_space_check: true, ..WriterOptions::default() };
        let written = StoreWriter::open(&dir, &spec, &options).and_then(|mut writer| {
            append_all(&mut writer, &spec, 9)?;
            writer.finish()
        });
        if let Err(error) = written {
            let StoreError::Io { source, .. } = &error else { panic!("{kilobytes} kB: {error}") };
            assert_eq!(source.kind(), io::ErrorKind::StorageFull, "{kilobytes} kB: {error}");
            assert!(Store::open(&dir).is_err());
            full += 1;
        }
        disk.resize(4096);
        go_on(&dir, &spec, 7, None).unwrap();
        assert_same_files(reference.path(), &dir);
    }
    assert!(full > 5, "the disk was full only {full} times");
}

#[test]
fn a_journal_torn_at_any_byte_is_taken_up_before_the_tear() {
    let spec = spec();
    let reference = reference(&spec);
    let unfinished = fast_tempdir();
    let mut writer = StoreWriter::open(unfinished.path(), &spec, &WriterOptions::default()).unwrap();
    writer.append(tokens(&spec, 0, 50).view(), rows(&spec, 0, 50).view()).unwrap();
    drop(writer);
    let before = files(unfinished.path());
    let journal = &before["journal"];
    let mut done = Vec::new();
    for length in (0..=journal.len()).step_by(61).chain([journal.len()]) {
        let dir = fast_tempdir();
        for (name, content) in &before {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let torn = [&journal[..length], b"torn"].concat();
        fs::write(dir.path().join("journal"), torn).unwrap();
        let writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        done.push(writer.contexts_done());
        drop(writer);
        go_on(dir.path(), &spec, 9, None).unwrap();
        assert_same_files(reference.path(), dir.path());
    }
    done.dedup();
    // 96 rows a window, 10 rows a context: windows end in contexts 9, 19, 28, 38 and 48.
    assert_eq!(done, [0, 9, 19, 28, 38, 48]);
}

#[test]
fn a_dump_can_end_early_and_a_long_context_can_span_windows() {
    let mut spec = spec();
    spec.context_length = 250; // more than two windows
    spec.contexts = 9;
    let whole = fast_tempdir();
    go_on(whole.path(), &spec, 4, None).unwrap();
    for sent in 1..8 {
        let dir = fast_tempdir();
        let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        writer.append(tokens(&spec, 0, sent).view(), rows(&spec, 0, sent).view()).unwrap();
        drop(writer);
        go_on(dir.path(), &spec, 1, None).unwrap();
        assert_same_files(whole.path(), dir.path());
    }
    // The text ends after 7 of the 9 planned contexts; once in one go, once after an interruption.
    let ends_early = |interrupted: bool| {
        let dir = fast_tempdir();
        let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        if interrupted {
            writer.append(tokens(&spec, 0, 5).view(), rows(&spec, 0, 5).view()).unwrap();
            drop(writer);
            writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        }
        let done = writer.contexts_done();
        writer.append(tokens(&spec, done, 7 - done).view(), rows(&spec, done, 7 - done).view()).unwrap();
        assert_eq!(writer.finish().unwrap().contexts, 7);
        dir
    };
    assert_same_files(ends_early(false).path(), ends_early(true).path());
}

#[test]
fn bos_rows_dropped_at_a_windows_end_do_not_disturb_resuming() {
    for length in [3, 7, 16] {
        let mut spec = spec();
        (spec.context_length, spec.contexts, spec.drop_bos) = (length, 900 / length as u64, true);
        let reference = reference(&spec);
        for sent in (1..spec.contexts).step_by(11) {
            let dir = fast_tempdir();
            let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
            writer.append(tokens(&spec, 0, sent).view(), rows(&spec, 0, sent).view()).unwrap();
            drop(writer);
            go_on(dir.path(), &spec, 13, None).unwrap();
            assert_same_files(reference.path(), dir.path());
        }
    }
}

#[test]
fn shared_token_chunks_are_recorded_alike_after_interruption() {
    // 3 contexts a chunk of tokens; 96·1024 rows a window, so windows end within contexts and within chunks.
    let mut spec = StoreSpec::new(1, 170_000, 11);
    spec.row_type = RowType::F32;
    (spec.vocabulary, spec.bos_token) = (500, BOS);
    spec.layout = Layout { window_rows: 96 << 10, shard_rows: 48 << 10, chunk_rows: 16 << 10, zstd_level: 1 };
    let reference = reference(&spec);
    assert_eq!(files(reference.path()).keys().filter(|name| name.starts_with("tokens/c/")).count(), 4);
    let store = Store::open(reference.path()).unwrap();
    assert_eq!(store.context_tokens(0..11).unwrap(), tokens(&spec, 0, 11));
    assert_eq!(store.context_tokens(2..4).unwrap(), tokens(&spec, 2, 2));
    for sent in 1..11 {
        let dir = fast_tempdir();
        let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        writer.append(tokens(&spec, 0, sent).view(), rows(&spec, 0, sent).view()).unwrap();
        drop(writer);
        go_on(dir.path(), &spec, 1, None).unwrap();
        assert_same_files(reference.path(), dir.path());
    }
}

const CHILD_FOLDER: &str = "ACTIVATION_STORE_TEST_FOLDER";
const CHILD_STEP: &str = "ACTIVATION_STORE_TEST_STEP";

/// What the killed process runs: writes the store slowly enough to be hit anywhere, or kills itself before a step.
#[test]
#[ignore = "run by the tests that kill it"]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_FOLDER).map(PathBuf::from) else { return };
    let fatal = std::env::var(CHILD_STEP).ok().map(|step| step.parse::<usize>().unwrap());
    let count = AtomicUsize::new(0);
    let hook = DiskHook(Arc::new(move |_, _| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        match fatal {
            Some(fatal) if number == fatal => std::process::abort(),
            Some(_) => {}
            None => std::thread::sleep(Duration::from_micros(400)),
        }
        Ok(())
    }));
    go_on(&dir, &spec(), 3, Some(hook)).unwrap();
}

fn spawn_child(dir: &Path, step: Option<usize>) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "interruption::child", "--ignored"]).env(CHILD_FOLDER, dir);
    if let Some(step) = step {
        command.env(CHILD_STEP, step.to_string());
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn killed_at_fifty_moments_a_dump_ends_with_the_same_bytes() {
    let spec = spec();
    let reference = reference(&spec);
    let whole = fast_tempdir();
    let start = Instant::now();
    assert!(spawn_child(whole.path(), None).wait().unwrap().success());
    let duration = start.elapsed();
    assert_same_files(reference.path(), whole.path());
    let mut interrupted = 0;
    for kill in 0..50_u64 {
        let dir = fast_tempdir();
        let mut child = spawn_child(dir.path(), None);
        let share = (kill * 7919 + 13) % 50;
        std::thread::sleep(duration * share as u32 / 50);
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        interrupted += u32::from(Store::open(dir.path()).is_err());
        go_on(dir.path(), &spec, 9, None).unwrap();
        assert_same_files(reference.path(), dir.path());
    }
    assert!(interrupted > 0, "none of 50 was hit before the end");
}

#[test]
fn a_process_that_dies_at_any_step_leaves_a_resumable_store() {
    let spec = spec();
    let reference = reference(&spec);
    // Between rename and journal, between a window's last shard and its line, in the middle of the last files, ….
    for step in (0..260).step_by(6) {
        let dir = fast_tempdir();
        let died = !spawn_child(dir.path(), Some(step)).wait().unwrap().success();
        assert_eq!(died, Store::open(dir.path()).is_err(), "step {step}");
        go_on(dir.path(), &spec, 9, None).unwrap();
        assert_same_files(reference.path(), dir.path());
    }
}
