//! The contents of a folder, as far as they are the same every time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Files by name below a folder; a folder in which nothing lies has a name that ends with a slash.
pub(crate) type Contents = BTreeMap<String, Vec<u8>>;

/// Keys whose values the clock decides, and checksums over them or over where the case took place.
const VARYING: [&str; 3] = ["timing", "session", "crc32c"];
/// The files that have such keys, one JSON value or one a line.
const WITH_CLOCK: [&str; 4] = ["metrics.jsonl", "summary.json", "sweep.json", "config.json"];
/// A line for each file of a folder: 64 digits, and its name.
const SUMS: &str = "SHA256SUMS";
/// Files that are there to be locked.
const LOCKS: [&str; 2] = [".lock", "writer.lock"];

/// The files below `folder`, byte by byte.
pub(crate) fn raw(folder: &Path) -> Contents {
    let mut found = Contents::new();
    collect(folder, "", &mut found);
    found
}

/// The files below `folder` without locks, without what the clock says, and without checkpoints but the newest of each run:
/// which older ones are kept depends on where it was stopped. The path `place` reads "PLACE" in them.
pub(crate) fn lasting(folder: &Path, place: &Path) -> Contents {
    let mut found = raw(folder);
    found.retain(|name, _| !LOCKS.contains(&file_name(name)));
    let old = old_checkpoints(&found);
    found.retain(|name, _| !old.iter().any(|checkpoint| name.starts_with(checkpoint)));
    for (name, bytes) in &mut found {
        let here = place.display().to_string();
        if let Ok(text) = str::from_utf8(bytes)
            && text.contains(&here)
        {
            *bytes = text.replace(&here, "PLACE").into_bytes();
        }
        *bytes = normal(name, std::mem::take(bytes));
    }
    found
}

/// The content of the file `name` without what the clock says.
pub(crate) fn normal(name: &str, bytes: Vec<u8>) -> Vec<u8> {
    match file_name(name) {
        // The hashes are over paths, too.
        SUMS => bytes.split(|&b| b == b'\n').filter_map(|line| line.get(64..)).collect::<Vec<_>>().concat(),
        name if WITH_CLOCK.contains(&name) => without_clock(&bytes),
        _ => bytes,
    }
}

/// The folders of whole checkpoints that are not the newest of their run, and of those that a run has set aside.
fn old_checkpoints(files: &Contents) -> Vec<String> {
    let mut names: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in files.keys() {
        if let Some(at) = name.find("checkpoints/step-") {
            let end = at + "checkpoints/".len();
            let end = end + name[end..].find('/').map_or(0, |slash| slash + 1);
            names.entry(name[..end].to_owned()).or_default().push(&name[end..]);
        }
    }
    let mut old: Vec<String> = Vec::new();
    let mut later = names.iter().peekable();
    while let Some((folder, files)) = later.next() {
        let run = &folder[..folder.rfind("step-").expect("it is in the name")];
        // A later one is whole too, but for a file that was removed on purpose.
        let is_whole = |of: &Vec<&str>| files.iter().filter(|file| !of.contains(file)).count() <= 1;
        let is_followed = later.peek().is_some_and(|(next, of)| next.starts_with(run) && is_whole(of));
        if is_followed || folder.ends_with(".damaged/") {
            old.push(folder.clone());
        }
    }
    old
}

/// JSON, whole or line by line, without what the clock says; what is not JSON as it is.
pub(crate) fn without_clock(bytes: &[u8]) -> Vec<u8> {
    let stripped = |json: &[u8]| Some(strip(serde_json::from_slice(json).ok()?).to_string().into_bytes());
    let line = |line: &[u8]| stripped(line).unwrap_or_else(|| line.to_vec());
    stripped(bytes).unwrap_or_else(|| bytes.split(|&b| b == b'\n').map(line).collect::<Vec<_>>().join(&b'\n'))
}

fn strip(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| !VARYING.contains(&key.as_str()));
            kept.map(|(key, value)| (key, strip(value))).collect()
        }
        Value::Array(values) => values.into_iter().map(strip).collect(),
        other => other,
    }
}

/// Where two folders' contents differ, in words; the first few places.
pub(crate) fn difference(expected: &Contents, found: &Contents) -> Option<String> {
    let missing =
        expected.keys().filter(|name| !found.contains_key(*name)).map(|name| format!("{name} is missing"));
    let more =
        found.keys().filter(|name| !expected.contains_key(*name)).map(|name| format!("{name} is left over"));
    let other = expected
        .iter()
        .filter_map(|(name, bytes)| Some((name, bytes, found.get(name).filter(|there| *there != bytes)?)))
        .map(|(name, bytes, there)| format!("{name} differs ({})", first_difference(bytes, there)));
    let all: Vec<String> = missing.chain(more).chain(other).take(5).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// Some bytes of both from a little before the first that differs.
fn first_difference(expected: &[u8], found: &[u8]) -> String {
    let same = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    let excerpt = |bytes: &[u8]| {
        let (begin, end) = (same.saturating_sub(20).min(bytes.len()), bytes.len().min(same + 40));
        bytes[begin..end].escape_ascii().to_string()
    };
    format!("at byte {same}: {}, not {}", excerpt(found), excerpt(expected))
}

/// `contents` without the remains of writers that were stopped, `.NAME.unfinished`.
pub(crate) fn without_remains(mut contents: Contents) -> Contents {
    contents.retain(|name, _| !name.contains(".unfinished"));
    contents
}

/// Puts `contents` into the new folder `folder`.
pub(crate) fn put(contents: &Contents, folder: &Path) {
    for (name, bytes) in contents {
        let path = folder.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(&path).expect("a folder can be made");
        } else {
            fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder can be made");
            fs::write(&path, bytes).expect("a file can be written");
        }
    }
}

/// The last part of a name with slashes.
pub(crate) fn file_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn collect(folder: &Path, below: &str, found: &mut Contents) {
    let entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
    if entries.is_empty() && !below.is_empty() {
        found.insert(below.to_owned(), Vec::new());
    }
    for entry in entries {
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{name}/"), found);
        } else if let Ok(bytes) = fs::read(entry.path()) {
            found.insert(name, bytes);
        }
    }
}
