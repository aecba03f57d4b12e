//! Runs every file of the corpora, and some thousand mutations of each target's files, without a fuzzer.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use fuzz_targets::{BoundedMemory, Ground, TARGETS, Target};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static MEMORY: BoundedMemory = BoundedMemory;

/// Changed files for each target.
const CHANGES: usize = 400;

/// The sound file, and what a fuzzer found worth keeping.
fn corpus(target: &Target, ground: &Ground) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target.name);
    let mut paths: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let found = paths.into_iter().map(|path| fs::read(path).unwrap());
    std::iter::once(ground.sound(target.file).to_vec()).chain(found).collect()
}

/// A few changes of the kinds that fuzzers make.
fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut ChaCha8Rng) {
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=bytes.len());
        let end = bytes.len().min(at + random.random_range(0..16));
        match random.random_range(0..7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes[at..end].fill([0, 0xff, b'9', b'"'][random.random_range(0..4)]),
            3 => bytes[at..end].iter_mut().for_each(|byte| *byte ^= 1 << random.random_range(0..8)),
            4 => {
                let number = [0, 1, u64::MAX, 1 << 32, (1 << 63) - 1, 1 << 40][random.random_range(0..6)];
                bytes.splice(at..end, number.to_le_bytes());
            }
            5 => {
                let number =
                    ["-1", "18446744073709551615", "1e400", "null", "{}", "[]"][random.random_range(0..6)];
                bytes.splice(at..end, number.bytes());
            }
            _ => {
                let from = random.random_range(0..=other.len());
                let to = other.len().min(from + random.random_range(0..64));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
}

/// Why a target does not read `bytes` as it should, if so.
fn fault(target: &Target, ground: &Ground, bytes: &[u8]) -> Option<String> {
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| target.run(ground, bytes)));
    let why = match result {
        Err(_) => "panics",
        Ok(()) if started.elapsed() > Duration::from_secs(60) => "takes more than a minute",
        Ok(()) => return None,
    };
    let path = std::env::temp_dir().join(format!("fuzz-{}", target.name));
    fs::write(&path, bytes).unwrap();
    Some(format!("{} {why} with {}", target.name, path.display()))
}

#[test]
fn every_target_reads_sound_and_changed_files_without_a_panic() {
    let ground = Ground::new();
    let first_fault = |target: &Target| {
        let corpus = corpus(target, &ground);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let changed = (0..CHANGES).map(|_| {
            let mut bytes = corpus[random.random_range(0..corpus.len())].clone();
            let other = &corpus[random.random_range(0..corpus.len())];
            change(&mut bytes, other, &mut random);
            bytes
        });
        corpus.iter().cloned().chain(changed).find_map(|bytes| fault(target, &ground, &bytes))
    };
    let faults: Vec<String> = TARGETS.iter().filter_map(first_fault).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
