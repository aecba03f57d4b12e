//! The small files of a store, copied into its folder in a cache.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::client::Bucket;
use super::files::BucketFiles;
use crate::catalog::Catalog;
use crate::files::Files;
use crate::journal::{self, Manifest};
use crate::metadata::ZARR_JSON;
use crate::paths::MANIFEST;
use crate::{Result, StoreError};

/// Reads the catalog of the store in `bucket` and copies its small files to a folder below `cache`, which it names: by the last
/// part of the store's address and the checksum of its manifest, so that a store that was written anew has a folder of its own.
///
/// # Errors
/// As of [`Catalog::read`]; a folder that cannot be written.
pub(super) fn copy(bucket: &Bucket, cache: &Path) -> Result<(PathBuf, Catalog)> {
    let direct = BucketFiles::new(bucket.clone());
    // Twice: damaged on their way, perhaps.
    let identity = match identity(&direct)?.map_or_else(|| identity(&direct), |found| Ok(Some(found)))? {
        Some(identity) => identity,
        None => {
            // It says what is wrong with them, or how far the store is.
            Catalog::read(&direct)?;
            return Err(StoreError::damaged(&bucket.path().join(MANIFEST), "it changes while it is read"));
        }
    };
    let dir = cache.join(format!("{}-{:08x}", bucket.address().name(), crc32c::crc32c(&identity.line)));
    if fs::read(dir.join(MANIFEST)).is_ok_and(|found| found != identity.line) {
        // Another store by the same name and checksum.
        fs::remove_dir_all(&dir).map_err(StoreError::io("remove", &dir))?;
    }
    let mirror = Mirror { direct, dir, identity };
    let catalog = Catalog::read(&mirror)?;
    for (name, content) in [(ZARR_JSON, &mirror.identity.group), (MANIFEST, &mirror.identity.line)] {
        mirror.keep(name, content).map_err(StoreError::io("write", &mirror.dir.join(name)))?;
    }
    Ok((mirror.dir, catalog))
}

/// What tells which store it is.
struct Identity {
    /// The metadata of its group.
    group: Vec<u8>,
    manifest: Manifest,
    /// The manifest as it is written.
    line: Vec<u8>,
}

/// The metadata and the manifest of a finished store, if they are those of each other.
fn identity(direct: &BucketFiles) -> Result<Option<Identity>> {
    let read = |name: &str| match direct.read(name) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(StoreError::io("read", &direct.place().join(name))),
    };
    let Some(group) = read(ZARR_JSON)? else {
        return Err(StoreError::NotFound(direct.place().to_path_buf()));
    };
    let Some(line) = read(MANIFEST)? else { return Ok(None) };
    let parsed = journal::parse_line::<Manifest>(&line).filter(|(_, length)| *length == line.len());
    let Some((manifest, _)) = parsed else { return Ok(None) };
    let fits = manifest.files.iter().any(|file| {
        file.name == ZARR_JSON && file.bytes == group.len() as u64 && file.crc32c == crc32c::crc32c(&group)
    });
    Ok(fits.then_some(Identity { group, manifest, line }))
}

/// Reads from the folder what is sound there, and from the bucket into the folder what is not.
struct Mirror {
    direct: BucketFiles,
    dir: PathBuf,
    /// Fresh from the bucket.
    identity: Identity,
}

impl Mirror {
    fn keep(&self, name: &str, content: &[u8]) -> io::Result<()> {
        write_file(&self.dir.join(name), content)
    }
}

/// Writes a file, which appears whole; folders come with it.
pub(super) fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Without waiting for the disk: each reader checks what it finds.
    let unfinished = durable_files::unfinished(path);
    fs::write(&unfinished, content)?;
    fs::rename(&unfinished, path)
}

impl Files for Mirror {
    fn place(&self) -> &Path {
        self.direct.place()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        match name {
            ZARR_JSON => return Ok(self.identity.group.clone()),
            MANIFEST => return Ok(self.identity.line.clone()),
            _ => {}
        }
        let recorded =
            self.identity.manifest.files.iter().find(|file| file.name == name).ok_or(ErrorKind::NotFound)?;
        let is_sound = |content: &[u8]| {
            content.len() as u64 == recorded.bytes && crc32c::crc32c(content) == recorded.crc32c
        };
        match fs::read(self.dir.join(name)) {
            Ok(content) if is_sound(&content) => return Ok(content),
            _ => {}
        }
        let mut content = self.direct.read(name)?;
        if !is_sound(&content) {
            // Damaged on its way, or in the bucket: whoever asks compares as well.
            content = self.direct.read(name)?;
        }
        if is_sound(&content) {
            self.keep(name, &content)?;
        }
        Ok(content)
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        self.direct.size(name)
    }

    fn checksum(&self, name: &str) -> io::Result<u32> {
        self.direct.checksum(name)
    }

    fn journal(&self) -> io::Result<Vec<u8>> {
        self.direct.journal()
    }
}
