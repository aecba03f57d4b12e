//! A folder that the ranks of a run fill together: the first one makes it, and gives it its name when all have written their parts.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result};

use crate::runs::team::Team;

/// The other ranks, as the first one sees them.
pub(crate) struct Others<'a> {
    team: &'a Team,
    told: Cell<bool>,
    /// What failed, if anything did, is not the first rank's own work.
    failed: Cell<bool>,
}

impl Others<'_> {
    /// Lets every rank write its part into the folder `new`, this one by `write`. Returns what each of them has to tell.
    ///
    /// # Errors
    /// Those of any rank; all ranks have one then.
    pub(crate) fn fill(
        &self,
        new: &Path,
        write: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Vec<String>> {
        self.told.set(true);
        self.failed.set(true);
        let path = new.to_str().map(str::to_owned).context("its path is not UTF-8");
        self.team.told_by_first(Some(path))?;
        let own = write(new);
        let own_is_sound = own.is_ok();
        let told = self.team.collect(own);
        self.failed.set(own_is_sound && told.is_err());
        told
    }

    /// An error of the first rank says so where there are others, as theirs do.
    fn attribute(&self, error: Error) -> Error {
        match self.team.count() > 1 && !self.failed.get() {
            true => error.context("rank 0"),
            false => error,
        }
    }
}

/// Writes a folder together: `lead`, which the first rank alone has, calls [`Others::fill`] once, and then the others write their
/// parts by `help`. Returns what `lead` does.
///
/// # Errors
/// Those of any rank; all ranks have one then.
pub(crate) fn write_together<T>(
    team: &Team,
    lead: Option<impl FnOnce(&Others<'_>) -> Result<T>>,
    help: impl FnOnce(&Path) -> Result<String>,
) -> Result<Option<T>> {
    let written = match lead {
        Some(lead) => {
            let others = Others { team, told: Cell::new(false), failed: Cell::new(false) };
            match lead(&others).map_err(|error| others.attribute(error)) {
                // The others wait to be told where.
                Err(error) if !others.told.get() => {
                    Err(team.told_by_first(Some(Err(error))).expect_err("the first rank has an error"))
                }
                written => written.map(Some),
            }
        }
        None => {
            let told = team.told_by_first(None);
            told.and_then(|new| team.collect(help(&PathBuf::from(new)))).map(|_| None)
        }
    };
    team.agree(written)
}
