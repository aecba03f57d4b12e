//! Large files to the hub's storage, by Git LFS' batch API: in one piece (`basic`), or in parts (`multipart`, the hub's own).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use serde_json::{Value, json};
use terminal::foreign_path;

use crate::addition::Content;
use crate::client::{Client, Request, Sent};
use crate::{Error, Result, refused};

const KIND: &str = "application/vnd.git-lfs+json";
/// Files that are asked about at once.
const AT_ONCE: usize = 100;

/// A file to be stored.
pub(crate) struct Large<'a> {
    pub(crate) path: &'a str,
    pub(crate) content: &'a Content,
    pub(crate) bytes: u64,
    /// SHA-256 in hexadecimal digits, which names it.
    pub(crate) sha256: &'a str,
}

impl Large<'_> {
    /// The `bytes` from byte `start` on.
    fn part(&self, start: u64, bytes: u64) -> Result<Box<dyn Read + '_>> {
        match self.content {
            Content::Bytes(all) => Ok(Box::new(&all[start as usize..(start + bytes) as usize])),
            Content::File(path) => {
                let failed = |source| Error::Io { path: foreign_path(path).to_string(), source };
                let mut file = File::open(path).map_err(failed)?;
                file.seek(SeekFrom::Start(start)).map_err(failed)?;
                Ok(Box::new(file.take(bytes)))
            }
        }
    }
}

/// Stores those of `files` that the storage lacks; calls `stored` with the bytes of each, and whether it was there already.
pub(crate) fn store(
    client: &Client<'_>,
    repository: &str,
    revision: &str,
    files: &[Large<'_>],
    stored: &mut dyn FnMut(u64, bool),
) -> Result<()> {
    let url = format!("{}/{repository}.git/info/lfs/objects/batch", client.endpoint());
    for files in files.chunks(AT_ONCE) {
        let objects: Vec<Value> =
            files.iter().map(|file| json!({ "oid": file.sha256, "size": file.bytes })).collect();
        let asked = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": { "name": revision },
        });
        let doing = "asking where large files go";
        let answer = client.post(&url, &[("accept", KIND), ("content-type", KIND)], &asked, doing)?;
        if answer.status != 200 {
            return refused(format!(
                "{doing}: the hub answered with status {} ({})",
                answer.status,
                answer.told()
            ));
        }
        let told = answer.json(doing)?;
        for file in files {
            let of = |object: &&Value| object["oid"] == *file.sha256;
            let object = told["objects"].as_array().and_then(|objects| objects.iter().find(of));
            let Some(object) = object else {
                return refused(format!("{doing}: the hub says nothing of {}", file.path));
            };
            if let Some(message) = object["error"]["message"].as_str() {
                return refused(format!(
                    "the hub does not take {}: {}",
                    file.path,
                    terminal::foreign(message)
                ));
            }
            match object.get("actions").filter(|actions| !actions.is_null()) {
                None => stored(file.bytes, true),
                Some(actions) => {
                    send(client, file, actions)?;
                    stored(file.bytes, false);
                }
            }
        }
    }
    Ok(())
}

/// Does what the hub asks for.
fn send(client: &Client<'_>, file: &Large<'_>, actions: &Value) -> Result<()> {
    let doing = format!("uploading {}", file.path);
    let Some(url) = actions["upload"]["href"].as_str() else {
        return refused(format!("{doing}: the hub does not say where to"));
    };
    let url = own_address(client, url);
    let headers = &actions["upload"]["header"];
    let part_bytes = match &headers["chunk_size"] {
        Value::String(text) => text.parse().ok(),
        number => number.as_u64(),
    };
    match part_bytes.filter(|&bytes| bytes > 0) {
        Some(part_bytes) => in_parts(client, file, &url, headers, part_bytes)?,
        None => {
            let texts = headers.as_object().into_iter().flatten();
            let texts: Vec<(&str, &str)> =
                texts.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect();
            put(client, &url, &texts, file, (0, file.bytes), &doing)?;
        }
    }
    if let Some(url) = actions["verify"]["href"].as_str() {
        let asked = json!({ "oid": file.sha256, "size": file.bytes });
        let answer = client.post(&own_address(client, url), &[("accept", KIND)], &asked, &doing)?;
        if !(200..300).contains(&answer.status) {
            return refused(format!(
                "{doing}: what arrived is not what was sent (status {}: {})",
                answer.status,
                answer.told()
            ));
        }
    }
    Ok(())
}

/// Sends part after part, then says that all are there.
fn in_parts(
    client: &Client<'_>,
    file: &Large<'_>,
    url: &str,
    headers: &Value,
    part_bytes: u64,
) -> Result<()> {
    let doing = |part: u64| format!("uploading part {part} of {}", file.path);
    let mut parts: Vec<(u64, &str)> = headers
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(number, url)| Some((number.parse().ok()?, url.as_str()?)))
        .collect();
    parts.sort_unstable();
    if parts.len() as u64 != file.bytes.div_ceil(part_bytes) {
        return refused(format!(
            "uploading {}: the hub names {} parts of {part_bytes} bytes",
            file.path,
            parts.len()
        ));
    }
    let mut done = Vec::new();
    for ((_, url), number) in parts.into_iter().zip(1..) {
        let start = (number - 1) * part_bytes;
        let answer =
            put(client, url, &[], file, (start, part_bytes.min(file.bytes - start)), &doing(number))?;
        let Some(mark) = answer.headers.get("etag").and_then(|mark| mark.to_str().ok()) else {
            return refused(format!("{}: the storage does not say what arrived (etag)", doing(number)));
        };
        done.push(json!({ "partNumber": number, "etag": mark }));
    }
    let asked = json!({ "oid": file.sha256, "parts": done });
    let doing = format!("completing {}", file.path);
    let answer = client.post(url, &[("accept", KIND), ("content-type", KIND)], &asked, &doing)?;
    match answer.status {
        200..300 => Ok(()),
        status => refused(format!("{doing}: the storage answered with status {status} ({})", answer.told())),
    }
}

fn put(
    client: &Client<'_>,
    url: &str,
    headers: &[(&str, &str)],
    file: &Large<'_>,
    (start, bytes): (u64, u64),
    doing: &str,
) -> Result<crate::client::Answer> {
    let open = || file.part(start, bytes);
    let body = Sent::Stream(bytes, &open);
    let answer = client.send(&Request { method: "PUT", url, headers, body, doing })?;
    match answer.status {
        200..300 => Ok(answer),
        status => refused(format!("{doing}: the storage answered with status {status} ({})", answer.told())),
    }
}

/// A hub behind another address names its usual one.
fn own_address(client: &Client<'_>, url: &str) -> String {
    match url.strip_prefix("https://huggingface.co/") {
        Some(rest) => format!("{}/{rest}", client.endpoint()),
        None => url.to_owned(),
    }
}
