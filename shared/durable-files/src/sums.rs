//! Checksums of the files of a folder, in the format of `sha256sum`.
//!
//! `SHA256SUMS` lies in the folder and has a line `HASH  NAME` for every other file there, so `sha256sum -c SHA256SUMS` gives
//! the same verdict as this module.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;

/// The file with the checksums.
pub const SUMS_FILE: &str = "SHA256SUMS";

/// Writes [`SUMS_FILE`] for the files in `folder`. This is the last step in filling a folder for [`crate::replace_folder`]
/// or [`crate::create_folder`].
///
/// # Errors
/// Errors of the operating system.
pub fn write_sums(folder: &Path) -> Result<(), Error> {
    write_sums_beside(folder, BTreeMap::new())
}

/// As [`write_sums`], where the checksums of some files are `known`, by name: those are not read again.
///
/// # Errors
/// Errors of the operating system.
pub fn write_sums_beside(folder: &Path, known: BTreeMap<String, String>) -> Result<(), Error> {
    let mut sums = known;
    for name in file_names(folder)? {
        let path = folder.join(&name);
        if let Entry::Vacant(place) = sums.entry(name) {
            place.insert(sum(&path)?);
        }
    }
    let mut text = String::new();
    for (name, hash) in sums {
        writeln!(text, "{hash}  {name}").expect("a string takes any text");
    }
    let sums = folder.join(SUMS_FILE);
    fs::write(&sums, text).map_err(Error::io("write", &sums))
}

/// The checksum of a file, as [`SUMS_FILE`] has it.
///
/// # Errors
/// Errors of the operating system.
pub fn sum(path: &Path) -> Result<String, Error> {
    hash_file(path).map_err(Error::io("read", path))
}

/// A folder whose files are checked as they are read if it has a [`SUMS_FILE`].
#[derive(Debug)]
pub struct CheckedFolder {
    path: PathBuf,
    sums: Option<BTreeMap<String, String>>,
}

impl CheckedFolder {
    /// Reads the checksums of `folder`. Folders of other programs and of older versions of this one have none.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the file of checksums cannot be parsed; errors of the operating system.
    pub fn open(folder: &Path) -> Result<CheckedFolder, Error> {
        Ok(CheckedFolder { path: folder.to_path_buf(), sums: read_sums(folder)? })
    }

    /// The content of the file `name`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the content is not what was written; errors of the operating system.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.path.join(name);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        if let Some(sums) = &self.sums {
            compare(sums.get(name), &hex(&Sha256::digest(&bytes)))
                .map_err(|reason| Error::Damaged { path, reason })?;
        }
        Ok(bytes)
    }

    /// Whether the file `name` exists, or the checksums say that it must.
    pub fn has(&self, name: &str) -> bool {
        self.path.join(name).exists() || self.sums.as_ref().is_some_and(|sums| sums.contains_key(name))
    }
}

/// The condition of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The content is what was written.
    Sound,
    /// The content is not what was written, for this reason.
    Damaged(String),
    /// Nothing is known about how it was written.
    Unchecked,
}

/// The condition of every file in `folder` and of every file that should be there, by name.
///
/// # Errors
/// Errors of the operating system while it lists the folder. A file that cannot be read is damaged.
pub fn check_folder(folder: &Path) -> Result<Vec<(PathBuf, Condition)>, Error> {
    let mut names = file_names(folder)?;
    let sums = match read_sums(folder) {
        Ok(sums) => sums,
        Err(Error::Damaged { path, reason }) => {
            let mut found = vec![(path, Condition::Damaged(reason))];
            found.extend(names.iter().map(|name| (folder.join(name), Condition::Unchecked)));
            return Ok(found);
        }
        Err(error) => return Err(error),
    };
    names.extend(sums.iter().flat_map(BTreeMap::keys).cloned());
    names.sort();
    names.dedup();
    let condition = |name: &String| match sums.as_ref().map(|sums| sums.get(name)) {
        None | Some(None) => Condition::Unchecked,
        Some(sum) => match hash_file(&folder.join(name)) {
            Ok(hash) => compare(sum, &hash).map_or_else(Condition::Damaged, |()| Condition::Sound),
            Err(error) => Condition::Damaged(error.to_string()),
        },
    };
    Ok(names.iter().map(|name| (folder.join(name), condition(name))).collect())
}

fn compare(expected: Option<&String>, found: &str) -> Result<(), String> {
    match expected {
        Some(expected) if expected == found => Ok(()),
        Some(expected) => Err(format!(
            "its SHA-256 is {}…, {SUMS_FILE} has {}…; if it was changed on purpose, remove {SUMS_FILE}",
            &found[..16],
            &expected[..16]
        )),
        None => Err(format!("{SUMS_FILE} does not list it")),
    }
}

/// The checksums of `folder` by name, if it has any.
fn read_sums(folder: &Path) -> Result<Option<BTreeMap<String, String>>, Error> {
    let path = folder.join(SUMS_FILE);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(Error::io("read", &path))?,
    };
    let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
    let text = String::from_utf8(text).map_err(|_| damaged("it is not text".into()))?;
    let mut sums = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let is_hash = |hash: &str| {
            hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        match line.split_once("  ") {
            // A name that leads elsewhere is none that was written here.
            Some((hash, name)) if is_hash(hash) && !name.is_empty() && !name.contains('/') => {
                sums.insert(name.to_owned(), hash.to_owned());
            }
            _ => return Err(damaged(format!("line {} is not a checksum and a name", at + 1))),
        }
    }
    match sums.is_empty() {
        true => Err(damaged("it is empty".into())),
        false => Ok(Some(sums)),
    }
}

/// The files in `folder` but the one with the checksums, sorted.
fn file_names(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let entry = entry.map_err(Error::io("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != SUMS_FILE && entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn hash_file(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

fn hex(hash: &[u8]) -> String {
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with two files and their checksums.
    fn setting() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b"), "abc").unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        write_sums(dir.path()).unwrap();
        dir
    }

    fn conditions(folder: &Path) -> Vec<(String, Condition)> {
        let all = check_folder(folder).unwrap().into_iter();
        all.map(|(path, condition)| (path.file_name().unwrap().to_str().unwrap().to_owned(), condition))
            .collect()
    }

    #[test]
    fn the_file_is_what_sha256sum_writes() {
        let dir = setting();
        // The examples of FIPS 180-2: of no byte and of "abc".
        assert_eq!(
            fs::read_to_string(dir.path().join(SUMS_FILE)).unwrap(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a\n\
             ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  b\n"
        );
    }

    #[test]
    fn checksums_that_are_known_are_not_formed_again() {
        let dir = setting();
        let whole = fs::read(dir.path().join(SUMS_FILE)).unwrap();
        let known = BTreeMap::from([("b".to_owned(), sum(&dir.path().join("b")).unwrap())]);
        fs::write(dir.path().join("b"), "changed").unwrap();
        write_sums_beside(dir.path(), known).unwrap();
        assert_eq!(fs::read(dir.path().join(SUMS_FILE)).unwrap(), whole);
        assert!(CheckedFolder::open(dir.path()).unwrap().read("b").is_err());
    }

    #[test]
    fn every_flipped_bit_is_found_and_named() {
        let dir = setting();
        let folder = CheckedFolder::open(dir.path()).unwrap();
        assert_eq!(folder.read("b").unwrap(), b"abc");
        for bit in 0..24 {
            let mut bytes = *b"abc";
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.path().join("b"), bytes).unwrap();
            let error = folder.read("b").unwrap_err().to_string();
            assert!(error.contains("/b is damaged: its SHA-256 is"), "{error}");
            assert!(matches!(&conditions(dir.path())[1].1, Condition::Damaged(_)));
        }
    }

    #[test]
    fn missing_and_added_files_are_told_apart() {
        let dir = setting();
        fs::remove_file(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("c"), "mine").unwrap();
        let found = conditions(dir.path());
        assert!(matches!(&found[0], (name, Condition::Damaged(_)) if name == "a"), "{found:?}");
        assert_eq!(found[1..], [("b".into(), Condition::Sound), ("c".into(), Condition::Unchecked)]);
        let folder = CheckedFolder::open(dir.path()).unwrap();
        assert!(folder.has("a") && folder.read("a").is_err());
        assert!(folder.read("c").unwrap_err().to_string().contains("does not list it"));
    }

    #[test]
    fn a_folder_without_checksums_is_read_as_it_is() {
        let dir = setting();
        fs::remove_file(dir.path().join(SUMS_FILE)).unwrap();
        assert_eq!(CheckedFolder::open(dir.path()).unwrap().read("b").unwrap(), b"abc");
        assert_eq!(conditions(dir.path())[1], ("b".into(), Condition::Unchecked));
    }

    #[test]
    fn a_file_of_checksums_that_is_none_is_damage() {
        let dir = setting();
        let sums = dir.path().join(SUMS_FILE);
        let whole = fs::read(&sums).unwrap();
        for text in [&b""[..], &whole[..70], b"\xff", b"x  a\n"] {
            fs::write(&sums, text).unwrap();
            match CheckedFolder::open(dir.path()) {
                Err(error) => assert!(matches!(error, Error::Damaged { .. }), "{error}"),
                // Cut within the second line's hash or before it, it no longer lists `b`.
                Ok(folder) => assert!(folder.read("b").is_err()),
            }
        }
        fs::write(&sums, format!("{}  ../a\n", "0".repeat(64))).unwrap();
        assert!(CheckedFolder::open(dir.path()).is_err());
    }
}
