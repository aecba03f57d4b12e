//! What lies in a folder, as far as it is the same every time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Files by name below a folder; a folder in which nothing lies has a name that ends with a slash.
pub(crate) type Contents = BTreeMap<String, Vec<u8>>;

/// Keys whose values the clock decides, and checksums over them.
const VARYING: [&str; 3] = ["timing", "session", "crc32c"];
/// The files that have such keys, one JSON value or one a line.
const WITH_CLOCK: [&str; 3] = ["metrics.jsonl", "summary.json", "sweep.json"];
/// Files that are there to be locked.
const LOCKS: [&str; 2] = [".lock", "writer.lock"];

/// The files below `folder`, byte by byte.
pub(crate) fn raw(folder: &Path) -> Contents {
    let mut found = Contents::new();
    collect(folder, "", &mut found);
    found
}

/// The files below `folder` without locks and without what the clock says. The path `place` reads "PLACE" in them.
pub(crate) fn lasting(folder: &Path, place: &Path) -> Contents {
    let mut found = raw(folder);
    found.retain(|name, _| !LOCKS.contains(&file_name(name)));
    for (name, bytes) in &mut found {
        if let Some(text) =
            std::str::from_utf8(bytes).ok().filter(|_| name.ends_with(".json") || name.ends_with(".jsonl"))
        {
            let text = text.replace(&place.display().to_string(), "PLACE");
            let with_clock = WITH_CLOCK.contains(&file_name(name));
            *bytes = if with_clock { without_clock(&text) } else { text }.into_bytes();
        }
    }
    found
}

/// JSON text without what the clock says; text that is not JSON as it is.
pub(crate) fn without_clock(text: &str) -> String {
    if let Ok(value) = serde_json::from_str(text) {
        return strip(value).to_string();
    }
    let line =
        |line: &str| serde_json::from_str(line).map_or(line.to_owned(), |value| strip(value).to_string());
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
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
        .filter(|(name, bytes)| found.get(*name).is_some_and(|there| there != *bytes))
        .map(|(name, _)| format!("{name} differs"));
    let all: Vec<String> = missing.chain(more).chain(other).take(5).collect();
    (!all.is_empty()).then(|| all.join(", "))
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
