//! A run's folder as several ranks have it: the first one writes, and all of them learn whether it could.

use std::path::{Path, PathBuf};

use anyhow::Result;
use sae::{Config, Sae};
use serde::Serialize;

use crate::engine::{PanelStates, State};
use crate::runs::checkpoint;
use crate::runs::folder::{RunConfig, RunFolder};
use crate::runs::panel_checkpoint;
use crate::runs::record::Summary;
use crate::runs::sliced_sae::SlicedSae;
use crate::runs::team::Team;
use crate::runs::together::{Others, write_together};

/// The folder of a run of one rank or of several. All ranks call the same methods at the same time.
#[derive(Debug)]
pub(crate) struct SharedFolder {
    path: PathBuf,
    /// On the first rank.
    folder: Option<RunFolder>,
    team: Team,
}

impl SharedFolder {
    /// As [`RunFolder::open`]; `prepare` is what the first rank does then.
    pub(crate) fn open(
        path: &Path,
        config: &RunConfig,
        team: &Team,
        prepare: impl FnOnce(&mut RunFolder) -> Result<()>,
    ) -> Result<SharedFolder> {
        let open = || {
            let mut folder = RunFolder::open(path, config)?;
            team.forget_notes(path);
            prepare(&mut folder)?;
            Ok(folder)
        };
        let folder = team.agree(team.leads().then(open).transpose())?;
        Ok(SharedFolder { path: path.to_path_buf(), folder, team: team.clone() })
    }

    /// Does `work` on the first rank.
    fn by_first<T>(&mut self, work: impl FnOnce(&mut RunFolder) -> Result<T>) -> Result<Option<T>> {
        let done = self.folder.as_mut().map(work).transpose();
        self.team.agree(done)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.team.count() > 1
    }

    /// As [`RunFolder::is_there`], as far as this rank can tell.
    pub(crate) fn is_there(&self) -> bool {
        self.folder.as_ref().is_none_or(RunFolder::is_there)
    }

    /// As [`RunFolder::record`].
    pub(crate) fn record(&mut self, record: &impl Serialize) -> Result<()> {
        self.by_first(|folder| folder.record(record)).map(drop)
    }

    /// Lines of `metrics.jsonl`; 0 on other ranks than the first.
    pub(crate) fn logged_lines(&self) -> u64 {
        self.folder.as_ref().map_or(0, RunFolder::logged_lines)
    }

    /// Writes the checkpoint of `state`, and keeps so many.
    pub(crate) fn checkpoint(&mut self, sae: &Sae, state: &State, keep: usize) -> Result<PathBuf> {
        let save = |folder: &Path, lines| checkpoint::save(folder, sae, state, Some(lines));
        let written = self.by_first(|folder| folder.checkpoint(state.step, keep, save))?;
        Ok(written.unwrap_or_else(|| self.path.clone()))
    }

    /// Writes the checkpoint of what all ranks have as their `own` panels, and keeps so many.
    pub(crate) fn checkpoint_panels(
        &mut self,
        config: &Config,
        own: &PanelStates,
        keep: usize,
    ) -> Result<PathBuf> {
        let step = own.panels[0].1.step;
        let lead = self.folder.as_mut().map(|folder| {
            move |others: &Others<'_>| {
                folder.checkpoint(step, keep, |path, lines| {
                    panel_checkpoint::save(path, config, own, lines, others)
                })
            }
        });
        let written = write_together(&self.team, lead, |new| panel_checkpoint::write_panels(new, own))?;
        Ok(written.unwrap_or_else(|| self.path.clone()))
    }

    /// As [`RunFolder::save_sae`].
    pub(crate) fn save_sae(&mut self, sae: &Sae) -> Result<PathBuf> {
        let save = |folder: &Path| Ok(sae.save(folder)?);
        let written = self.by_first(|folder| folder.save_sae(save))?;
        Ok(written.unwrap_or_else(|| self.path.clone()))
    }

    /// As [`RunFolder::save_sae`], of weights that the ranks have together.
    pub(crate) fn save_sliced_sae(&mut self, sae: &SlicedSae<'_>) -> Result<PathBuf> {
        let lead = self
            .folder
            .as_ref()
            .map(|folder| move |others: &Others<'_>| folder.save_sae(|folder| sae.save(folder, others)));
        let written = write_together(&self.team, lead, |new| sae.help(new))?;
        Ok(written.unwrap_or_else(|| self.path.clone()))
    }

    /// As [`RunFolder::save_summary`].
    pub(crate) fn save_summary(&mut self, summary: &Summary) -> Result<()> {
        self.by_first(|folder| folder.save_summary(summary)).map(drop)
    }
}
