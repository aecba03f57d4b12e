//! Recomputes the checksums of damaged files, so that fuzzing reaches the code behind the checks.

use std::path::Path;
use std::{fs, io};

use serde_json::Value;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Makes the manifest's entry fit the file `name` of the store.
pub(crate) fn manifest(ground: &Path, name: &str) {
    let bytes = read(ground, name);
    let mut manifest = json_line(&String::from_utf8_lossy(&read(ground, "manifest")));
    for file in manifest["files"].as_array_mut().expect("the manifest is sound") {
        if file["name"] == name {
            file["bytes"] = bytes.len().into();
            file["crc32c"] = crc32c::crc32c(&bytes).into();
        }
    }
    write(ground, "manifest", sealed(manifest.to_string().as_bytes()));
}

/// Gives the lines of the file `name` their checksums: of each, the first nine bytes are put in anew.
pub(crate) fn line(ground: &Path, name: &str) {
    let bytes = read(ground, name);
    let lines = bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    let lines: Vec<u8> = lines.flat_map(|line| sealed(line.get(9..).unwrap_or_default())).collect();
    write(ground, name, lines);
}

/// The same for the journal, which is in the manifest.
pub(crate) fn journal(ground: &Path, name: &str) {
    line(ground, name);
    manifest(ground, name);
}

/// Makes the journal's entry fit a file of the one shard.
pub(crate) fn shard(ground: &Path, name: &str) {
    let array = name.split('/').next().expect("a name has a first part");
    let bytes = read(ground, name);
    // The last chunk's checksum and the index of 16 bytes for each chunk, with its own: of a store with few rows, nearly all.
    edit_journal(ground, |line| {
        if let Some(file) = line.get_mut("shard").and_then(|shard| shard.get_mut(array)) {
            file["bytes"] = bytes.len().into();
            file["crc32c"] = crc32c::crc32c(&bytes).into();
            file["tail_crc32c"] = crc32c::crc32c(tail(&bytes)).into();
        }
    });
}

/// Makes the journal's entry fit the one file of tokens.
pub(crate) fn tokens(ground: &Path, name: &str) {
    let bytes = read(ground, name);
    edit_journal(ground, |line| {
        let chunks = line.get_mut("window").and_then(|window| window.get_mut("tokens"));
        for file in chunks.and_then(Value::as_array_mut).into_iter().flatten() {
            file["bytes"] = bytes.len().into();
            file["crc32c"] = crc32c::crc32c(&bytes).into();
            file["tail_crc32c"] = crc32c::crc32c(&bytes[bytes.len().saturating_sub(4)..]).into();
        }
    });
}

/// The index of a shard of the ground's store, which has one chunk, and the checksum before it.
fn tail(shard: &[u8]) -> &[u8] {
    &shard[shard.len().saturating_sub(4 + TAIL)..]
}

/// Bytes of the index and its checksum.
const TAIL: usize = 16 + 4;

fn edit_journal(ground: &Path, mut edit: impl FnMut(&mut Value)) {
    let text = String::from_utf8(read(ground, "journal")).expect("the journal is sound");
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut value = json_line(line);
        edit(&mut value);
        lines.extend(sealed(value.to_string().as_bytes()));
    }
    write(ground, "journal", lines);
    manifest(ground, "journal");
}

/// Writes the sound archive `sound` of torch to `to`, with the file `pickle` in place of its pickle.
pub(crate) fn archive(sound: &Path, pickle: &Path, to: &Path) {
    let open = |path: &Path| fs::File::open(path).expect("the file is there");
    let mut from = ZipArchive::new(open(sound)).expect("the archive is sound");
    let mut new = ZipWriter::new(fs::File::create(to).expect("a file can be made"));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for at in 0..from.len() {
        let mut file = from.by_index(at).expect("the archive is sound");
        let name = file.name().expect("a name is UTF-8").into_owned();
        new.start_file(&name, options).expect("a file can be begun");
        let copied = match name.ends_with("/data.pkl") {
            true => io::copy(&mut open(pickle), &mut new),
            false => io::copy(&mut file, &mut new),
        };
        copied.expect("a file can be written");
    }
    new.finish().expect("an archive can be written");
}

fn json_line(line: &str) -> Value {
    serde_json::from_str(&line[9..]).expect("the line is sound")
}

fn sealed(json: &[u8]) -> Vec<u8> {
    [format!("{:08x} ", crc32c::crc32c(json)).as_bytes(), json, b"\n"].concat()
}

fn read(ground: &Path, name: &str) -> Vec<u8> {
    fs::read(ground.join("store").join(name)).expect("the file is there")
}

fn write(ground: &Path, name: &str, bytes: Vec<u8>) {
    fs::write(ground.join("store").join(name), bytes).expect("a file can be written");
}
