//! The files of a store in a bucket, each read from there.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::OnceLock;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::client::{Bucket, Listed, runtime};
use crate::files::Files;

/// Folder of the journal's lines, an object each, until the store is complete. (There is then an object `journal`, and many tools
/// cannot copy a bucket with a name that is both an object's and a folder's.)
pub(super) const LINES: &str = ".unfinished/journal/";
/// Objects that are read at a time.
const AT_ONCE: usize = 64;

/// Name of line `number` of the journal; names are in the order of the lines.
pub(super) fn line_name(number: u64) -> String {
    format!("{LINES}{number:012}")
}

/// The number of the line with this name, if it is one.
pub(super) fn line_number(name: &str) -> Option<u64> {
    let number = name.strip_prefix(LINES)?.parse().ok()?;
    (line_name(number) == name).then_some(number)
}

/// The files of a store in a bucket.
#[derive(Debug)]
pub(super) struct BucketFiles {
    bucket: Bucket,
    /// What is there, by name, once somebody asked.
    listed: OnceLock<BTreeMap<String, Listed>>,
}

impl BucketFiles {
    pub(super) fn new(bucket: Bucket) -> BucketFiles {
        BucketFiles { bucket, listed: OnceLock::new() }
    }

    /// All objects, as they are when this is called first.
    pub(super) fn listed(&self) -> io::Result<&BTreeMap<String, Listed>> {
        if let Some(listed) = self.listed.get() {
            return Ok(listed);
        }
        let listed = runtime().map_err(io::Error::other)?.block_on(self.bucket.list())?;
        Ok(self.listed.get_or_init(|| listed))
    }
}

impl Files for BucketFiles {
    fn place(&self) -> &Path {
        self.bucket.path()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let (content, _) = runtime().map_err(io::Error::other)?.block_on(self.bucket.get(name))?;
        Ok(content.into())
    }

    fn size(&self, name: &str) -> io::Result<u64> {
        Ok(self.listed()?.get(name).ok_or(ErrorKind::NotFound)?.bytes)
    }

    fn checksum(&self, name: &str) -> io::Result<u32> {
        Ok(crc32c::crc32c(&self.read(name)?))
    }

    /// The lines from the first on, as far as none is missing.
    fn journal(&self) -> io::Result<Vec<u8>> {
        let listed = self.listed()?;
        let lines = (0..).map(line_name).take_while(|name| listed.contains_key(name));
        let lines = stream::iter(lines).map(|name| async move { self.bucket.get(&name).await });
        let lines = lines.buffered(AT_ONCE).try_collect::<Vec<_>>();
        let lines = runtime().map_err(io::Error::other)?.block_on(lines)?;
        Ok(lines.iter().flat_map(|(line, _)| line).copied().collect())
    }
}
