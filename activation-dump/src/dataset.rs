//! Resolves `--dataset` (files, folders, globs, hub ids and standard input) to one list of files in a fixed order.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use language_model::hub;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use terminal::{foreign, foreign_path};
use workers::Worker;

use crate::documents::{self, Document, Documents, ReadOptions, STANDARD_INPUT};

/// The files of a dataset, in the order in which they are read.
pub(crate) struct Dataset {
    files: Vec<Source>,
    hash: String,
}

/// One file.
#[derive(Clone)]
enum Source {
    Local(PathBuf),
    /// Fetched into the hub's cache when its turn comes.
    Hub(Arc<hub::Dataset>, usize),
    StandardInput,
}

impl Dataset {
    /// Finds the files that `names` stand for. Folders are searched recursively; files of a folder or
    /// glob come in the order of their names, the names in the order given.
    pub(crate) fn find(names: &[String]) -> Result<Dataset> {
        let mut files = Vec::new();
        let mut hash = Sha256::new();
        for name in names {
            let path = Path::new(name);
            let local = if name == STANDARD_INPUT {
                if files.iter().any(|file| matches!(file, Source::StandardInput)) {
                    bail!("--dataset {name} is given twice, but standard input can be read only once");
                }
                hash.update("standard input");
                files.push(Source::StandardInput);
                continue;
            } else if path.is_dir() {
                files_below(path)?
            } else if path.is_file() {
                vec![path.to_owned()]
            } else if name.contains(['*', '?', '[']) {
                files_matching(name)?
            } else if looks_like_hub_id(name) {
                let dataset = Arc::new(hub::dataset(name)?);
                hash.update(format!("{name}@{}\n", dataset.revision()));
                files
                    .extend((0..dataset.names().len()).map(|index| Source::Hub(Arc::clone(&dataset), index)));
                continue;
            } else if path.exists() {
                bail!(
                    "--dataset {}: it is neither a file nor a folder; what comes out of a pipe is read with `--dataset -`, \
                     from standard input",
                    foreign(name)
                );
            } else {
                bail!("--dataset {}: no such file or folder, and not a hub id (owner/name)", foreign(name));
            };
            for digest in local.par_iter().map(|file| sha256(file)).collect::<Result<Vec<_>>>()? {
                hash.update(digest);
            }
            files.extend(local.into_iter().map(Source::Local));
        }
        Ok(Dataset { files, hash: hex(&hash.finalize()) })
    }

    /// SHA-256 over the contents of the local files and the revisions of the hub's datasets, in order:
    /// the files' names and places do not matter. Standard input contributes nothing.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// Files in all.
    pub(crate) fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Whether no tokenizer is needed, because all files hold tokens.
    pub(crate) fn is_tokens(&self) -> bool {
        self.files.iter().all(|file| match file {
            Source::Local(path) => documents::is_tokens(path),
            Source::Hub(..) | Source::StandardInput => false,
        })
    }

    /// Every document of every file. While one file is read, the next hub file is fetched.
    pub(crate) fn documents(
        &self,
        options: &ReadOptions,
    ) -> impl Iterator<Item = Result<Document>> + Send + use<> {
        let (files, options) = (self.files.clone(), options.clone());
        let mut coming = files.first().map(fetch);
        (0..files.len()).flat_map(move |index| {
            let this = coming.take();
            coming = files.get(index + 1).map(fetch);
            let opened = this.map_or_else(|| Ok(empty()), |file| open(file?, &options));
            opened.unwrap_or_else(|error| Box::new(std::iter::once(Err(error))))
        })
    }
}

/// A file that is there or on its way.
enum Coming {
    Here(PathBuf),
    Fetched(Worker<Result<PathBuf, language_model::Error>>),
    StandardInput,
}

fn fetch(file: &Source) -> Result<Coming> {
    Ok(match file {
        Source::Local(path) => Coming::Here(path.clone()),
        Source::StandardInput => Coming::StandardInput,
        Source::Hub(dataset, index) => {
            let (dataset, index) = (Arc::clone(dataset), *index);
            let fetched = workers::spawn("fetching of text", move || dataset.file(index));
            Coming::Fetched(fetched.context("starting a thread that fetches text")?)
        }
    })
}

fn open(file: Coming, options: &ReadOptions) -> Result<Documents> {
    match file {
        Coming::Here(path) => documents::open(&path, options),
        Coming::StandardInput => documents::open_stream(std::io::stdin(), options),
        Coming::Fetched(thread) => documents::open(&thread.join()??, options),
    }
}

fn empty() -> Documents {
    Box::new(std::iter::empty())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut tokens) = (Vec::new(), Vec::new());
    let mut folders = vec![folder.to_owned()];
    // Links can lead back to where the search has been.
    let mut seen = HashSet::new();
    while let Some(folder) = folders.pop() {
        let named = || format!("reading folder {}", foreign_path(&folder));
        if !seen.insert(folder.canonicalize().with_context(named)?) {
            continue;
        }
        for entry in std::fs::read_dir(&folder).with_context(named)? {
            let path = entry.with_context(named)?.path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.is_file() {
                continue; // a pipe would keep the search waiting
            } else if documents::is_text(&path) {
                found.push(path);
            } else if documents::is_tokens(&path) {
                tokens.push(path);
            }
        }
    }
    // A folder often holds the same text twice, as text and as tokens.
    if found.is_empty() {
        found = tokens;
    }
    if found.is_empty() {
        bail!(
            "{} has no file of text (.txt, .jsonl, .ndjson, also with .gz or .zst; .parquet) and none of tokens \
             (.bin, .npy)",
            foreign_path(folder)
        );
    }
    found.sort();
    Ok(found)
}

fn files_matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let paths = glob::glob(pattern).with_context(|| format!("--dataset {pattern} is not a glob"))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path?;
        if path.is_file() {
            found.push(path);
        }
    }
    if found.is_empty() {
        bail!("--dataset {pattern} matches no file");
    }
    Ok(found) // glob returns them sorted
}

/// `owner/name`, both made of the characters that the hub allows.
fn looks_like_hub_id(name: &str) -> bool {
    let legal = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    name.split_once('/')
        .is_some_and(|(owner, name)| legal(owner) && legal(name) && !is_file_name(Path::new(name)))
}

fn is_file_name(path: &Path) -> bool {
    documents::is_text(path) || documents::is_tokens(path)
}

fn sha256(path: &Path) -> Result<[u8; 32]> {
    let named = || format!("reading {}", foreign_path(path));
    let mut file = File::open(path).with_context(named)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).with_context(named)? {
            0 => return Ok(hash.finalize().into()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::Content;

    fn texts(names: &[&Path]) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|path| path.display().to_string()).collect();
        let options = ReadOptions { column: "text".to_owned(), format: None, vocabulary: 10, context: 4 };
        let text = |document: Result<Document>| match document?.content {
            Content::Text(text) => Ok(text),
            other => anyhow::bail!("{other:?}"),
        };
        Dataset::find(&names)?.documents(&options).map(text).collect()
    }

    #[test]
    fn folders_globs_and_files_are_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        for (name, text) in [("b.txt", "b"), ("a.txt", "a"), ("sub/c.txt", "c"), ("notes.md", "no")] {
            std::fs::write(at(name), text).unwrap();
        }
        assert_eq!(texts(&[folder.path()]).unwrap(), ["a", "b", "c"]);
        assert_eq!(texts(&[&at("*.txt")]).unwrap(), ["a", "b"]);
        assert_eq!(texts(&[&at("sub"), &at("a.txt")]).unwrap(), ["c", "a"]);
    }

    #[test]
    fn the_hash_follows_contents_and_order_and_not_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(at("a.txt"), "one").unwrap();
        std::fs::write(at("b.txt"), "two").unwrap();
        std::fs::write(at("c.txt"), "one").unwrap();
        let hash = |names: &[String]| Dataset::find(names).unwrap().hash().to_owned();
        assert_eq!(hash(&[at("a.txt"), at("b.txt")]), hash(&[at("c.txt"), at("b.txt")]));
        assert_ne!(hash(&[at("a.txt"), at("b.txt")]), hash(&[at("b.txt"), at("a.txt")]));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = |name: &str| format!("{:#}", Dataset::find(&[name.to_owned()]).err().unwrap());
        assert!(message("no/such/file.txt").contains("no/such/file.txt"));
        assert!(message("missing.parquet").contains("missing.parquet"));
        assert!(message(&folder.path().display().to_string()).contains("no file of text"));
        assert!(message("nothing/*.txt").contains("matches no file"));
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        assert!(looks_like_hub_id("Skylion007/openwebtext"));
        for path in ["text.jsonl", "a/b/c", "../text", "./text", "data/text.parquet", "/abs"] {
            assert!(!looks_like_hub_id(path), "{path}");
        }
    }
}
