//! No damage goes unnoticed: not one bit, nor a missing, shortened or swapped file.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crate::small_stores::*;
use activation_store::{
    BatchStream, Part, RowFilter, RowType, Store, StoreError, StoreWriter, StreamOptions, WriterOptions,
    verify, verify_while,
};
use ndarray::{Array2, Array3};
use proptest::prelude::*;

/// A copy of one store: copying is much faster than writing, which waits for the disk.
fn sound_store() -> tempfile::TempDir {
    static STORE: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        write_store(dir.path(), &small_spec(107), 10);
        dir
    });
    let copy = tempfile::tempdir().unwrap();
    for (name, content) in files(STORE.path()) {
        let path = copy.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    copy
}

fn problems(dir: &Path) -> Vec<(String, Option<usize>)> {
    let report = verify(dir, &|_| {}).unwrap();
    report.problems.into_iter().map(|problem| (problem.file, problem.chunk)).collect()
}

/// Rows, origins, tokens.
type Everything = (Array2<f32>, Vec<u64>, Array2<u32>);

/// Reads every row, origin and token as a training run does.
fn read_everything(dir: &Path) -> Result<Everything, StoreError> {
    let store = Store::open(dir)?;
    Ok((
        store.read_rows(0..store.rows())?,
        store.origin(0..store.rows())?,
        store.context_tokens(0..store.contexts())?,
    ))
}

#[test]
fn a_sound_store_has_no_problem_and_every_byte_is_read() {
    let dir = sound_store();
    let report = verify(dir.path(), &|_| {}).unwrap();
    assert_eq!(report.problems, []);
    let files = files(dir.path());
    assert_eq!(report.files, files.len() as u64);
    assert_eq!(report.bytes, files.values().map(|file| file.len() as u64).sum::<u64>());
}

#[test]
fn a_check_that_is_stopped_reports_nothing() {
    let dir = sound_store();
    assert_eq!(verify_while(dir.path(), &|_| false).unwrap(), None);
    assert!(verify_while(dir.path(), &|_| true).unwrap().is_some());
}

#[test]
fn every_flipped_bit_is_found_and_none_is_read_as_data() {
    let dir = sound_store();
    let (rows, origins, tokens) = read_everything(dir.path()).unwrap();
    let same = |read: &Everything| {
        read.0.iter().zip(&rows).all(|(a, b)| a.to_bits() == b.to_bits())
            && read.1 == origins
            && read.2 == tokens
    };
    let files = files(dir.path());
    let mut seed = 12345_u64;
    let mut flips = 0;
    // Several bits of every file; and the total is over 500.
    while flips < 600 {
        for (name, content) in &files {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let bit = (seed >> 20) as usize % (8 * content.len());
            let mut damaged = content.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.path().join(name), &damaged).unwrap();
            let found = verify(dir.path(), &|_| {});
            let reported = found
                .as_ref()
                .is_ok_and(|report| report.problems.iter().any(|problem| problem.file == *name));
            assert!(reported, "bit {bit} of {name}: {found:?}");
            match read_everything(dir.path()) {
                Ok(read) => assert!(same(&read), "bit {bit} of {name} changed what is read"),
                // A bit in the few bytes that say what the folder is.
                Err(StoreError::NotAStore(_) | StoreError::Version { .. }) => assert_eq!(name, "zarr.json"),
                Err(error) => {
                    let file = name.rsplit('/').next().unwrap();
                    assert!(error.to_string().contains(file), "bit {bit} of {name}: {error}");
                }
            }
            fs::write(dir.path().join(name), content).unwrap();
            flips += 1;
        }
    }
    assert!(same(&read_everything(dir.path()).unwrap()));
}

#[test]
fn verify_reads_and_training_name_a_damaged_chunk() {
    let dir = sound_store();
    let name = "activations/c/1/0";
    let mut content = fs::read(dir.path().join(name)).unwrap();
    // Chunks 0 and 2 of 4: one bit each. Their places are in the index: 4 · 16 bytes and a checksum at the end.
    let index = content.len() - 68;
    let offset = |content: &[u8], chunk: usize| {
        u64::from_le_bytes(content[index + 16 * chunk..][..8].try_into().unwrap()) as usize
    };
    for chunk in [0, 2] {
        let place = offset(&content, chunk) + 40;
        content[place] ^= 4;
    }
    fs::write(dir.path().join(name), content).unwrap();
    assert_eq!(problems(dir.path()), [(name.to_owned(), Some(0)), (name.to_owned(), Some(2))]);
    let store = Store::open(dir.path()).unwrap();
    store.read_rows(80..96).unwrap();
    let error = store.read_rows(96..112).unwrap_err().to_string();
    assert!(
        error.starts_with("chunk 2 of ") && error.contains("activations/c/1/0 is damaged: its crc32c"),
        "{error}"
    );
    let options = StreamOptions { batch: 50, threads: 2, ..StreamOptions::default() };
    let mut stream = BatchStream::new(vec![store], options).unwrap();
    let error = stream.next_batch().unwrap_err().to_string();
    assert!(error.contains("activations/c/1/0 is damaged"), "{error}");
    let again = stream.next_batch().unwrap_err().to_string();
    assert!(again.contains("activations/c/1/0 is damaged"), "{again}");
}

#[test]
fn missing_shortened_and_swapped_files_are_found_at_opening() {
    let dir = sound_store();
    let files = files(dir.path());
    for (name, content) in &files {
        let path = dir.path().join(name);
        for length in [0, content.len() / 2, content.len() - 1] {
            fs::write(&path, &content[..length]).unwrap();
            assert!(Store::open(dir.path()).is_err(), "{name} cut to {length}");
            if name != "zarr.json" {
                assert_eq!(
                    problems(dir.path()).iter().filter(|(file, _)| file == name).count(),
                    1,
                    "{name} cut"
                );
            }
        }
        fs::remove_file(&path).unwrap();
        assert!(Store::open(dir.path()).is_err(), "{name} missing");
        fs::write(&path, content).unwrap();
    }
    assert!(Store::open(dir.path()).is_ok());
    for array in ["activations/c/0/0", "origin/c/0"] {
        let other = array.replace("c/0", "c/3");
        fs::write(dir.path().join(array), &files[&other]).unwrap();
        fs::write(dir.path().join(&other), &files[array]).unwrap();
        assert!(Store::open(dir.path()).is_err(), "{array} exchanged");
        assert_eq!(problems(dir.path()).len(), 2);
        fs::write(dir.path().join(array), &files[array]).unwrap();
        fs::write(dir.path().join(&other), &files[&other]).unwrap();
    }
}

#[test]
fn a_shard_that_changes_under_an_open_store_is_named() {
    let dir = sound_store();
    let files = files(dir.path());
    let name = "activations/c/1/0";
    let path = dir.path().join(name);
    // Several pages long, or a mapping of the file would not notice that it was cut.
    let options = StreamOptions { batch: 64, threads: 2, ..StreamOptions::default() };
    let changes: [(&str, &dyn Fn()); 4] = [
        ("bytes", &|| fs::write(&path, b"").unwrap()),
        ("bytes", &|| fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap()),
        ("gone", &|| fs::remove_file(&path).unwrap()),
        ("rewritten", &|| {
            let other = fs::File::options().write(true).open(&path).unwrap();
            other.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }),
    ];
    for (word, change) in changes {
        fs::write(&path, &files[name]).unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut stream = BatchStream::new(vec![store.clone()], options.clone()).unwrap();
        change();
        store.read_rows(0..16).unwrap();
        for error in [store.read_rows(80..96).unwrap_err(), stream.next_batch().unwrap_err()] {
            assert!(matches!(&error, StoreError::Changed { file, .. } if *file == path), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

#[test]
fn shards_of_equal_sizes_are_told_apart() {
    // Rows that do not compress: the indexes of the shards are equal, their last chunks are not.
    let dir = tempfile::tempdir().unwrap();
    let mut spec = small_spec(64);
    spec.row_type = RowType::F32;
    let mut random = 1_u64;
    let noise = Array3::from_shape_simple_fn((64, 10, 12), || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        f32::from_bits((random >> 32) as u32 & !(1 << 29)) // never infinite
    });
    let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
    writer.append(tokens(&spec, 0, 64).view(), noise.view()).unwrap();
    writer.finish().unwrap();
    let files = files(dir.path());
    let (first, second) = (&files["activations/c/2/0"], &files["activations/c/5/0"]);
    assert_eq!(first.len(), second.len());
    fs::write(dir.path().join("activations/c/2/0"), second).unwrap();
    fs::write(dir.path().join("activations/c/5/0"), first).unwrap();
    assert!(Store::open(dir.path()).is_err());
}

#[test]
fn another_format_version_is_named() {
    let dir = sound_store();
    let path = dir.path().join("zarr.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"format_version\": 1", "\"format_version\": 2")).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Version { found: 2, supported: 1, .. }), "{error}");
}

/// Puts `content` at `name` and repairs every checksum above it, as a hostile or confused program would.
fn forge(dir: &Path, name: &str, content: &[u8]) {
    fs::write(dir.join(name), content).unwrap();
    let path = dir.join("manifest");
    let line = fs::read_to_string(&path).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&line[9..]).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        if file["name"] == name {
            file["bytes"] = content.len().into();
            file["crc32c"] = crc32c::crc32c(content).into();
        }
    }
    let json = manifest.to_string();
    fs::write(path, format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes()))).unwrap();
}

/// Replaces the `nth` number in a text by `value`.
fn replace_number(text: &str, nth: usize, value: &str) -> Option<String> {
    let mut numbers = Vec::new();
    let mut start = None;
    for (index, character) in text.char_indices() {
        match (character.is_ascii_digit(), start) {
            (true, None) => start = Some(index),
            (false, Some(from)) => {
                numbers.push(from..index);
                start = None;
            }
            _ => {}
        }
    }
    let range = numbers.get(nth % numbers.len().max(1))?.clone();
    Some(format!("{}{value}{}", &text[..range.start], &text[range.end..]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn lying_metadata_with_correct_checksums_never_panics(
        nth in 0_usize..200,
        value in prop_oneof![
            Just("0".to_owned()), Just("1".to_owned()), Just("18446744073709551615".to_owned()),
            Just("-1".to_owned()), Just("1e300".to_owned()), any::<u32>().prop_map(|n| n.to_string()),
        ],
        file in 0_usize..4,
    ) {
        let dir = sound_store();
        let name = ["zarr.json", "activations/zarr.json", "journal", "tokens/zarr.json"][file];
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        let changed = if name == "journal" {
            let mut lines: Vec<String> = text.lines().map(|line| line[9..].to_owned()).collect();
            let line = nth % lines.len();
            lines[line] = replace_number(&lines[line], nth / lines.len(), &value).unwrap_or_default();
            lines.iter().map(|json| format!("{:08x} {json}\n", crc32c::crc32c(json.as_bytes()))).collect()
        } else {
            replace_number(&text, nth, &value).unwrap()
        };
        forge(dir.path(), name, changed.as_bytes());
        if let Ok(store) = Store::open(dir.path()) {
            let _ = store.read_rows(0..1);
            let _ = store.origin(0..store.rows().min(100));
            let _ = store.context_tokens(0..store.contexts().min(10));
            let rows = RowFilter {
                drop_bos: true,
                part: Part::Training { held_out: 0.1 },
                ..RowFilter::default()
            };
            let options = StreamOptions { batch: 8, threads: 1, rows, ..StreamOptions::default() };
            if let Ok(mut stream) = BatchStream::new(vec![store], options) {
                let _ = stream.next_batch();
            }
        }
        let _ = verify(dir.path(), &|_| {});
    }

    #[test]
    fn arbitrary_small_files_give_an_error_and_never_a_panic(
        content in prop::collection::vec(any::<u8>(), 0..300), file in 0_usize..16,
    ) {
        let dir = sound_store();
        let names: Vec<String> = files(dir.path()).into_keys().collect();
        let name = &names[file % names.len()];
        if name == "manifest" {
            fs::write(dir.path().join(name), &content).unwrap();
        } else {
            forge(dir.path(), name, &content);
        }
        prop_assert!(read_everything(dir.path()).is_err(), "{}", name);
        let _ = verify(dir.path(), &|_| {});
    }
}

#[test]
fn chunks_of_tokens_of_equal_sizes_are_told_apart() {
    let mut spec = small_spec(64);
    spec.vocabulary = 1 << 16;
    let stores = [1, 2].map(|seed: u64| {
        let (dir, mut random) = (tempfile::tempdir().unwrap(), seed);
        let mut noise = tokens(&spec, 0, 64);
        noise.iter_mut().for_each(|token| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *token = (random >> 48) as u32;
        });
        let mut writer = StoreWriter::open(dir.path(), &spec, &WriterOptions::default()).unwrap();
        writer.append(noise.view(), Array3::zeros((64, 10, 12)).view()).unwrap();
        writer.finish().unwrap();
        dir
    });
    let name = "tokens/c/0/0";
    let [chunk, other] = stores.each_ref().map(|dir| fs::read(dir.path().join(name)).unwrap());
    assert!(chunk != other && chunk.len() == other.len());
    assert_eq!(
        crc32c::crc32c(&chunk),
        crc32c::crc32c(&other),
        "a checksum of the whole does not tell them apart"
    );
    let dir = stores[0].path();
    assert!(Store::open(dir).is_ok());
    fs::write(dir.join(name), other).unwrap();
    let error = Store::open(dir).unwrap_err().to_string();
    assert!(error.contains("tokens/c/0/0 is damaged") && error.contains("another of its length"), "{error}");
    assert_eq!(problems(dir), [(name.to_owned(), None)]);
}
