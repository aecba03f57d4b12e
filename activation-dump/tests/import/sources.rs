//! Sources as other programs write them, and running the program on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use activation_store::Store;
use arrow_stream::{Columns, NumberType, StreamWriter};
use half::{bf16, f16};
use serde_json::json;

/// d of all sources here.
pub(crate) const WIDTH: usize = 6;

/// A number that float16 and bfloat16 hold exactly, another for every row and component (of the first few hundred rows).
pub(crate) fn number(row: usize, component: usize) -> f32 {
    // Eight bits of mantissa hold 0 to 255.
    ((row * 7 + component * 31) % 251) as f32 - 125.0
}

/// Rows `0..count` as bytes.
pub(crate) fn rows(count: usize, bytes: impl Fn(f32) -> Vec<u8>) -> Vec<u8> {
    (0..count)
        .flat_map(|row| (0..WIDTH).flat_map(move |component| [number(row, component)]))
        .flat_map(bytes)
        .collect()
}

pub(crate) fn single(number: f32) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

pub(crate) fn half(number: f32) -> Vec<u8> {
    f16::from_f32(number).to_le_bytes().to_vec()
}

pub(crate) fn brain(number: f32) -> Vec<u8> {
    bf16::from_f32(number).to_le_bytes().to_vec()
}

/// A .npy file.
pub(crate) fn npy(kind: &str, shape: &str, numbers: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.bytes());
    file.extend(numbers);
    file
}

/// A safetensors file as vLLM writes it: bfloat16 rows of `layers` layers, layer l's are those of layer 0 plus 1 each.
pub(crate) fn request(rows: std::ops::Range<usize>, layers: usize) -> Vec<u8> {
    let tokens = rows.len();
    let mut numbers = Vec::new();
    for row in rows.clone() {
        for layer in 0..layers {
            numbers.extend((0..WIDTH).flat_map(|component| brain(number(row, component) + layer as f32)));
        }
    }
    let ids: Vec<u8> = rows.flat_map(|row| (token(row) as i64).to_le_bytes()).collect();
    let end = numbers.len();
    let header = json!({
        "hidden_states": { "dtype": "BF16", "shape": [tokens, layers, WIDTH], "data_offsets": [0, end] },
        "token_ids": { "dtype": "I64", "shape": [tokens], "data_offsets": [end, end + ids.len()] },
    })
    .to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &numbers, &ids].concat()
}

/// The token of row `row` of every source with tokens.
pub(crate) fn token(row: usize) -> u32 {
    (row % 50) as u32 + 3
}

/// SAELens' cache of `records` records of 4 rows, in files of two records.
pub(crate) fn cache(folder: &Path, records: usize) {
    fs::create_dir_all(folder).unwrap();
    let mut names = Vec::new();
    for (number, first) in (0..records).step_by(2).enumerate() {
        let name = format!("data-{number:05}.arrow");
        let columns = Columns {
            rows: "blocks.3.hook_resid_pre",
            numbers: NumberType::Half,
            length: 4,
            width: WIDTH,
            tokens: Some("token_ids"),
            rows_metadata: &[],
            metadata: &[],
        };
        let mut writer = StreamWriter::new(Vec::new(), columns).unwrap();
        for record in first..records.min(first + 2) {
            let all = rows(record * 4 + 4, half);
            let tokens: Vec<i32> = (record * 4..record * 4 + 4).map(|row| token(row) as i32).collect();
            writer.write(&all[record * 4 * WIDTH * 2..], &tokens).unwrap();
        }
        fs::write(folder.join(&name), writer.finish().unwrap()).unwrap();
        names.push(json!({ "filename": name }));
    }
    fs::write(folder.join("state.json"), json!({ "_data_files": names }).to_string()).unwrap();
    fs::write(folder.join("dataset_info.json"), "{}").unwrap();
}

/// A folder, and the program run in it.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), bytes).unwrap();
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_activation-dump"));
        command.current_dir(self.folder.path()).arg("import").args(words);
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Imports, and opens the store `store`.
    pub(crate) fn import(&self, words: &[&str]) -> Store {
        let run = self.run(&[words, &["--out", "store"]].concat());
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        Store::open(&self.at("store")).unwrap()
    }

    /// Checks that the command is refused with a message that holds all `words`, and that no store is there.
    pub(crate) fn refuses(&self, arguments: &[&str], words: &[&str]) {
        let run = self.run(&[arguments, &["--out", "store"]].concat());
        let message = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{message}");
        for word in words {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
        assert!(!self.at("store").exists(), "{message}");
    }
}

/// The rows of a store by where they come from: context · T + position.
pub(crate) fn by_origin(store: &Store) -> BTreeMap<u64, Vec<f32>> {
    let origins = store.origin(0..store.rows()).unwrap();
    let rows = store.read_rows(0..store.rows()).unwrap();
    origins.into_iter().zip(rows.outer_iter().map(|row| row.to_vec())).collect()
}

/// Row `row` of the sources, plus `more`.
pub(crate) fn row(row: usize, more: f32) -> Vec<f32> {
    (0..WIDTH).map(|component| number(row, component) + more).collect()
}

/// Every file of a store but the one with its command line.
pub(crate) fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(path).unwrap());
            }
        }
    }
    found
}
