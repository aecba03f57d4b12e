//! How numbers reach the pages.
//!
//! A browser lets a page that it opened from disk load scripts, and nothing else. So data are scripts: each calls `report.take` with its
//! name and one text, the base64 of compressed JSON (raw deflate, RFC 1951), which `DecompressionStream` takes apart.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use serde::Serialize;
use terminal::foreign_path;

/// The folder of the scripts.
const FOLDER: &str = "data";

/// Where data go.
pub(super) struct Data {
    place: Place,
    bytes: u64,
}

enum Place {
    Folder(PathBuf),
    /// Names and texts, for a page that holds them itself.
    Inline(Vec<(String, String)>),
}

impl Data {
    /// In scripts of a report's folder.
    pub(super) fn in_folder(report: &Path) -> Result<Data> {
        let folder = report.join(FOLDER);
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", foreign_path(&folder)))?;
        Ok(Data { place: Place::Folder(folder), bytes: 0 })
    }

    /// In memory.
    pub(super) fn inline() -> Data {
        Data { place: Place::Inline(Vec::new()), bytes: 0 }
    }

    /// Adds data under a name.
    pub(super) fn put(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = encoded(value)?;
        match &mut self.place {
            Place::Folder(folder) => {
                let script = format!("report.take(\"{name}\",\"{text}\")\n");
                let path = folder.join(format!("{name}.js"));
                fs::write(&path, &script).with_context(|| format!("cannot write {}", foreign_path(&path)))?;
                self.bytes += script.len() as u64;
            }
            Place::Inline(all) => all.push((name.to_owned(), text)),
        }
        Ok(())
    }

    /// The size of the scripts.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Names and texts of data in memory.
    pub(super) fn into_inline(self) -> Vec<(String, String)> {
        match self.place {
            Place::Inline(all) => all,
            Place::Folder(_) => Vec::new(),
        }
    }
}

/// Data as their script holds them.
fn encoded(value: &impl Serialize) -> Result<String> {
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
    deflate.write_all(&serde_json::to_vec(value)?)?;
    Ok(STANDARD.encode(deflate.finish()?))
}

/// A number with four significant digits, which is as many as a page shows.
pub(super) fn short(number: f64) -> f64 {
    format!("{number:.3e}").parse().expect("a printed number is one")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::DeflateDecoder;

    use super::*;

    #[test]
    fn what_is_put_can_be_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut data = Data::in_folder(dir.path()).unwrap();
        let value = vec!["</script>", "\u{2028}", "\"", "é"];
        data.put("a", &value).unwrap();
        let script = fs::read_to_string(dir.path().join("data/a.js")).unwrap();
        assert_eq!(data.bytes(), script.len() as u64);
        let text = script.strip_prefix("report.take(\"a\",\"").unwrap().strip_suffix("\")\n").unwrap();
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)));
        let mut json = String::new();
        DeflateDecoder::new(&STANDARD.decode(text).unwrap()[..]).read_to_string(&mut json).unwrap();
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), value);
    }
}
