//! Whether two stores hold the same tokens row by row: two hooks of one dump.

use std::fs;
use std::path::Path;

use rayon::prelude::*;

use crate::catalog::SmallFile;
use crate::{Result, Store, StoreError};

/// Fields of the specification in which the hooks of one dump may differ.
const OF_THE_HOOK: [&str; 8] = [
    "width",
    "row_type",
    "mantissa_bits",
    "clip",
    "provenance.hook",
    "provenance.layer",
    "provenance.centered",
    "provenance.extra.source_layer",
];

impl Store {
    /// Checks that row i of `other` is of the same token as row i of this store, for every i, and that both are cut into the
    /// same chunks: that they are two hooks of one dump. Batches of both in one order are then pairs.
    ///
    /// # Errors
    /// [`StoreError::NotAligned`] with every difference. A file that cannot be read.
    pub fn check_aligned(&self, other: &Store) -> Result<()> {
        let mut differences = self.spec().differences_beside(other.spec(), &OF_THE_HOOK);
        for (what, here, there) in
            [("rows", self.rows(), other.rows()), ("contexts", self.contexts(), other.contexts())]
        {
            if here != there {
                differences.push(format!("{what} are {here} there, {there} here"));
            }
        }
        if differences.is_empty() && !self.same_files(other, Store::origin_files)? {
            differences.push("the rows come from other places of the text".to_owned());
        }
        if differences.is_empty() && !self.same_files(other, Store::token_files)? {
            differences.push("the tokens are others".to_owned());
        }
        if differences.is_empty() {
            return Ok(());
        }
        let (dir, other) = (self.path().to_path_buf(), other.path().to_path_buf());
        Err(StoreError::NotAligned { dir, other, differences })
    }

    /// Whether these files of both stores are equal. The writer is deterministic, so that equal arrays are equal bytes;
    /// the recorded checksums do not tell, since a chunk ends with its own.
    fn same_files(&self, other: &Store, files: impl Fn(&Store) -> Vec<SmallFile>) -> Result<bool> {
        let (here, there) = (files(self), files(other));
        if here.len() != there.len() {
            return Ok(false);
        }
        let (folder, other) = (self.folder_with(&here)?, other.folder_with(&there)?);
        let read = |folder: &Path, name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(StoreError::io("read", &path))
        };
        let same = |file: &SmallFile| Ok(read(folder, &file.name)? == read(other, &file.name)?);
        let each: Vec<bool> = here.par_iter().map(same).collect::<Result<_>>()?;
        Ok(each.into_iter().all(|same| same))
    }
}
