//! TensorBoard's event file of a run: the numbers of `metrics.jsonl` once more, in the format that TensorBoard reads.
//!
//! A file is a sequence of records, numbers little-endian:
//!
//! ```text
//! length u64 | crc of these 8 bytes u32 | data [length] | crc of the data u32      crc: CRC-32C, masked
//! ```
//!
//! The data of a record is a protobuf `Event`. These fields of tensorboard/compat/proto/{event,summary}.proto are used:
//!
//! ```text
//! Event    1 wall_time double   2 step int64   3 file_version string   5 summary Summary
//! Summary  1 value Value, repeated
//! Value    1 tag string   2 simple_value float
//! ```
//!
//! Written out here because it takes a page, and a crate would bring more than that.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use durable_files::Condition;
use serde_json::Value;
use terminal::foreign_path;

/// In a run's folder. TensorBoard knows such a file by the `tfevents` in its name.
const FOLDER: &str = "tensorboard";
const FILE: &str = "events.out.tfevents.sae-trainer";

/// The event file of a run under way.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

/// Where the event file of the run in `folder` lies.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join(FOLDER).join(FILE)
}

impl EventFile {
    /// Writes the file with an event for each of `lines` of the log, and leaves it open for more. Events that were in it
    /// keep their time; those of lines that the log has lost are gone.
    pub(crate) fn open<'a>(folder: &Path, lines: impl Iterator<Item = &'a Value>) -> Result<EventFile> {
        let path = path(folder);
        let error = || format!("cannot write {}", foreign_path(&path));
        fs::create_dir_all(folder.join(FOLDER)).with_context(error)?;
        let before = match fs::read(&path) {
            Err(failed) if failed.kind() == ErrorKind::NotFound => Vec::new(),
            bytes => bytes.with_context(|| format!("cannot read {}", foreign_path(&path)))?,
        };
        let times: HashMap<&[u8], f64> = records(&before).0.into_iter().filter_map(split_time).collect();
        let time_of = |rest: &[u8]| times.get(rest).copied().unwrap_or_else(now);
        let mut bytes = Vec::new();
        for rest in [version()].into_iter().chain(lines.map(scalars)) {
            bytes.extend(record(&event(time_of(&rest), &rest)));
        }
        durable_files::replace_file(&path, &bytes)?;
        let file = File::options().append(true).open(&path).with_context(error)?;
        Ok(EventFile { path, file })
    }

    /// Adds the event of a line of the log.
    pub(crate) fn add(&mut self, line: &Value) -> Result<()> {
        let record = record(&event(now(), &scalars(line)));
        let before = self.file.metadata().map(|metadata| metadata.len());
        let written = self.file.write_all(&record);
        if let (Err(_), Ok(before)) = (&written, before) {
            let _ = self.file.set_len(before); // the first error is the one to tell
        }
        written.with_context(|| format!("cannot write {}", foreign_path(&self.path)))
    }
}

/// Whether the records of the event file `path` match their checksums; an incomplete last one, of a killed process, does not
/// count.
pub(crate) fn check(path: &Path) -> Condition {
    match fs::read(path) {
        Err(error) => Condition::Damaged(error.to_string()),
        Ok(bytes) => match records(&bytes).1 {
            None => Condition::Sound,
            Some(at) => Condition::Damaged(format!("the record at byte {at} does not match its checksum")),
        },
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

/// The data of the records up to the first that is incomplete or damaged, and where it is if it is damaged.
fn records(bytes: &[u8]) -> (Vec<&[u8]>, Option<usize>) {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while let Some((length, after)) = rest.split_first_chunk::<8>() {
        let damaged = Some(bytes.len() - rest.len());
        let Some((crc, after)) = after.split_first_chunk::<4>() else { break };
        if *crc != masked_crc(length) {
            return (found, damaged);
        }
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let Some((data, after)) = after.split_at_checked(length) else { break };
        let Some((crc, after)) = after.split_first_chunk::<4>() else { break };
        if *crc != masked_crc(data) {
            return (found, damaged);
        }
        found.push(data);
        rest = after;
    }
    (found, None)
}

/// TensorFlow's masked CRC-32C: of data that hold checksums themselves, a plain one would be weak.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// An `Event` of `time` and the fields after it.
fn event(time: f64, rest: &[u8]) -> Vec<u8> {
    [&[0x09], &time.to_le_bytes()[..], rest].concat()
}

/// The inverse of [`event`].
fn split_time(event: &[u8]) -> Option<(&[u8], f64)> {
    let (time, rest) = event.strip_prefix(&[0x09])?.split_first_chunk::<8>()?;
    Some((rest, f64::from_le_bytes(*time)))
}

/// What the first event says.
fn version() -> Vec<u8> {
    field(0x1a, b"brain.Event:2")
}

/// Step and summary of a line of the log: a scalar for each of its numbers, those of other kinds than a step with the kind
/// before the name.
fn scalars(line: &Value) -> Vec<u8> {
    let prefix = match line["kind"].as_str() {
        None | Some("step") => String::new(),
        Some(kind) => format!("{kind}/"),
    };
    let mut summary = Vec::new();
    numbers(&prefix, line, &mut |name, number| {
        let value =
            [field(0x0a, name.as_bytes()), vec![0x15], (number as f32).to_le_bytes().to_vec()].concat();
        summary.extend(field(0x0a, &value));
    });
    let step = line["step"].as_u64().unwrap_or(0);
    [vec![0x10], varint(step), field(0x2a, &summary)].concat()
}

/// Calls `each` with the numbers of an object and of those within it, `timing/seconds` for one.
fn numbers(prefix: &str, object: &Value, each: &mut impl FnMut(&str, f64)) {
    for (name, value) in object.as_object().into_iter().flatten() {
        match value {
            Value::Number(number) if name != "step" => {
                each(&format!("{prefix}{name}"), number.as_f64().unwrap_or(f64::NAN));
            }
            Value::Object(_) => numbers(&format!("{prefix}{name}/"), value, each),
            _ => {}
        }
    }
}

/// A field of variable length: its tag, its length, its content.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag], &varint(content.len() as u64)[..], content].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Written by the RecordWriter and the protobuf classes of tensorboard 2.21.0: at 1234.5 s the version and step 1 with
    /// l0 = 12.25 and lr = 4e-4; at 1235.75 s step 300 with evaluation/l0 = 0 and evaluation/mse_centered = -1.5; at 1236 s
    /// step 2^33 without a value.
    const GOLDEN: &[u8] = include_bytes!("../../tests/data/events.out.tfevents.golden");

    #[test]
    fn the_bytes_are_those_of_tensorboard() {
        let lines = [
            (
                1234.5,
                json!({"kind": "step", "step": 1, "l0": 12.25, "lr": 4e-4, "path": "dense", "null": null}),
            ),
            (
                1235.75,
                json!({"kind": "evaluation", "step": 300, "l0": 0, "mse_centered": -1.5, "counts": [1, 2]}),
            ),
            (1236.0, json!({"kind": "step", "step": 1_u64 << 33})),
        ];
        let mut bytes = record(&event(1234.5, &version()));
        for (time, line) in &lines {
            bytes.extend(record(&event(*time, &scalars(line))));
        }
        assert_eq!(bytes, GOLDEN);
    }

    #[test]
    fn records_end_where_a_file_is_cut_and_damage_is_found() {
        let (whole, damaged) = records(GOLDEN);
        assert_eq!((whole.len(), damaged), (4, None));
        for length in 0..GOLDEN.len() {
            let (found, damaged) = records(&GOLDEN[..length]);
            assert!(found.len() < 4 && found == whole[..found.len()] && damaged.is_none(), "{length} bytes");
        }
        for at in 0..GOLDEN.len() {
            let mut bytes = GOLDEN.to_vec();
            bytes[at] ^= 4;
            let (found, damaged) = records(&bytes);
            assert!(damaged.is_some_and(|start| start <= at), "byte {at}");
            assert_eq!(found, whole[..found.len()]);
        }
    }

    #[test]
    fn opened_again_it_has_the_lines_it_is_given_and_their_times() {
        let dir = tempfile::tempdir().unwrap();
        let line =
            |step: u64| json!({"kind": "step", "step": step, "timing": {"seconds": 0.5 * step as f64}});
        let lines: Vec<Value> = (1..=4).map(line).collect();
        let events =
            |bytes: &[u8]| -> Vec<Vec<u8>> { records(bytes).0.into_iter().map(<[u8]>::to_vec).collect() };
        let mut file = EventFile::open(dir.path(), [].into_iter()).unwrap();
        lines.iter().for_each(|line| file.add(line).unwrap());
        let before = fs::read(path(dir.path())).unwrap();
        assert_eq!(events(&before).len(), 5);

        // A killed process has left half of the next record, and lines after its last checkpoint.
        fs::write(path(dir.path()), [&before[..], &before[..20]].concat()).unwrap();
        let mut file = EventFile::open(dir.path(), lines[..2].iter()).unwrap();
        assert_eq!(events(&fs::read(path(dir.path())).unwrap()), events(&before)[..3]);
        file.add(&lines[2]).unwrap();
        let after = events(&fs::read(path(dir.path())).unwrap());
        assert_eq!((after.len(), split_time(&after[3]).unwrap().0), (4, &*scalars(&lines[2])));
        assert!(matches!(check(&path(dir.path())), Condition::Sound));

        // Where it is missing, it is made from the log.
        fs::remove_file(path(dir.path())).unwrap();
        EventFile::open(dir.path(), lines.iter()).unwrap();
        let again = events(&fs::read(path(dir.path())).unwrap());
        let rest = |events: &[Vec<u8>]| -> Vec<Vec<u8>> {
            events.iter().map(|event| split_time(event).unwrap().0.to_vec()).collect()
        };
        assert_eq!(rest(&again), rest(&events(&before)));
    }
}
