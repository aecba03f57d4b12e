//! `sae-trainer report`: pages that a browser opens from disk, about runs and about the features of their autoencoders.
//!
//! - `subjects`: the runs and autoencoders that are reported on.
//! - `overview`: runs side by side, as the numbers of figures; `features`: the table of features and what is known of each;
//!   `contexts`: which features fire at each token of some contexts.
//! - `data`: how numbers reach the pages; `site`: the pages, which are files of this folder.

mod contexts;
mod data;
mod features;
mod overview;
mod site;
mod subjects;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use durable_files::{create_folder, replace_file};
use human_units::format_bytes;
use terminal::{Interrupt, foreign_path};

use self::data::Data;
use self::subjects::{Subject, Texts};
use crate::command::arguments::ReportArguments;

/// Writes the pages. Returns the process' exit code.
pub(crate) fn report(arguments: &ReportArguments) -> Result<u8> {
    let out = &arguments.out;
    ensure!(
        out.symlink_metadata().is_err(),
        "{} exists; remove it, or name another with --out",
        foreign_path(out)
    );
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.map_or_else(cores, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let written = pool.install(|| write(arguments, &interrupt));
    if let (Err(error), Some(code)) = (&written, interrupt.requested()) {
        terminal::say!("{error:#}");
        return Ok(code);
    }
    let bytes = written?;
    let page = if arguments.single_file { out.clone() } else { out.join(site::INDEX) };
    terminal::report!("report: {} ({})", foreign_path(&page), format_bytes(bytes));
    Ok(0)
}

/// Returns the size of what was written in bytes.
fn write(arguments: &ReportArguments, interrupt: &Interrupt) -> Result<u64> {
    let subjects = subjects::open(arguments)?;
    let texts = subjects::texts(arguments, &subjects)?;
    if arguments.single_file {
        let mut data = Data::inline();
        fill(arguments, &subjects, texts.as_ref(), &mut data, interrupt)?;
        let page = site::single_file(&data.into_inline());
        replace_file(&arguments.out, page.as_bytes())
            .with_context(|| format!("cannot write {}", foreign_path(&arguments.out)))?;
        return Ok(page.len() as u64);
    }
    let mut bytes = 0;
    create_folder(&arguments.out, |new: &Path| -> Result<()> {
        bytes = site::write(new)?;
        let mut data = Data::in_folder(new)?;
        fill(arguments, &subjects, texts.as_ref(), &mut data, interrupt)?;
        bytes += data.bytes();
        Ok(())
    })?;
    Ok(bytes)
}

fn fill(
    arguments: &ReportArguments,
    subjects: &[Subject],
    texts: Option<&Texts>,
    data: &mut Data,
    interrupt: &Interrupt,
) -> Result<()> {
    let matches = overview::matches(subjects, interrupt)?;
    data.put("overview", &overview::overview(arguments, subjects, &matches, texts.is_some())?)?;
    if let Some(texts) = texts {
        data.put("texts", &texts.all())?;
    }
    for (number, subject) in subjects.iter().enumerate() {
        if let Some(indexed) = &subject.indexed {
            let of_others = matches.of(number);
            features::write(arguments, subject, number, indexed, &of_others, data, interrupt)?;
            contexts::write(arguments, number, indexed, data, interrupt)?;
        }
    }
    Ok(())
}
