//! A sweep's folder as several ranks have it: the first one writes, and all of them learn whether it could.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::folder::{SweepFolder, SweepRecord};
use crate::runs::record::Summary;
use crate::runs::team::Team;

/// The folder of a sweep of one rank or of several. All ranks call the same methods at the same time.
#[derive(Debug)]
pub(crate) struct SharedSweep {
    path: PathBuf,
    /// On the first rank.
    folder: Option<SweepFolder>,
    team: Team,
}

impl SharedSweep {
    /// As [`SweepFolder::open`].
    pub(crate) fn open(path: &Path, record: SweepRecord, team: &Team) -> Result<SharedSweep> {
        let open = || {
            let folder = SweepFolder::open(path, record)?;
            team.forget_notes(path);
            Ok(folder)
        };
        let folder = team.agree(team.leads().then(open).transpose())?;
        Ok(SharedSweep { path: path.to_path_buf(), folder, team: team.clone() })
    }

    /// Does `work` on the first rank.
    fn by_first(&mut self, work: impl FnOnce(&mut SweepFolder) -> Result<()>) -> Result<()> {
        let done = self.folder.as_mut().map_or(Ok(()), work);
        self.team.agree(done)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// As [`SweepFolder::diverged`].
    pub(crate) fn diverged(&mut self, folder: &Path, error: &anyhow::Error) -> Result<()> {
        self.by_first(|sweep| sweep.diverged(folder, error))
    }

    /// As [`SweepFolder::finished`].
    pub(crate) fn finished(&mut self, summaries: &[Summary]) -> Result<()> {
        self.by_first(|sweep| sweep.finished(summaries))
    }
}
