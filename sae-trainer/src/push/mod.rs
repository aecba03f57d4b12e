//! `sae-trainer push`: autoencoders to a repository of the Hugging Face hub, laid out as SAELens loads them: a folder each, and a
//! model card.

mod card;
mod subject;

use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use card::card;
use hub::{Addition, Content, Hub, Repository};
use human_units::format_bytes;
use serde_json::json;
use subject::{CARD, Subject};
use terminal::{Interrupt, foreign};

use crate::command::arguments::PushArguments;
use crate::report::progress::counted;

/// Uploads what the command line names. Returns the process' exit code.
pub(crate) fn push(arguments: &PushArguments) -> Result<ExitCode> {
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    let subjects = Subject::all(&arguments.saes, &arguments.id)?;
    let card = card(&arguments.repository, &arguments.revision, &subjects);
    let mut additions: Vec<Addition> = subjects.iter().flat_map(Subject::additions).collect();
    let bytes = subjects.iter().map(|subject| subject.bytes).sum();
    if arguments.dry_run {
        for subject in &subjects {
            terminal::say!(
                "  {}  {} in {} files",
                foreign(&subject.id),
                format_bytes(subject.bytes),
                subject.files.len()
            );
        }
        terminal::say!("{} for {}; nothing was sent", format_bytes(bytes), foreign(&arguments.repository));
        terminal::report!("{}", card.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    match upload(arguments, &subjects, &mut additions, card, &interrupt) {
        Err(error) if interrupt.requested().is_some() => {
            terminal::say!("{error:#}");
            Ok(ExitCode::from(interrupt.requested().unwrap_or(130)))
        }
        sent => sent.map(|()| ExitCode::SUCCESS),
    }
}

fn upload(
    arguments: &PushArguments,
    subjects: &[Subject],
    additions: &mut Vec<Addition>,
    card: String,
    interrupt: &Interrupt,
) -> Result<()> {
    let hub = Hub::from_environment();
    let stopping = || interrupt.flag().load(Ordering::Relaxed);
    let agent = concat!("sae-trainer/", env!("CARGO_PKG_VERSION"));
    let repository = Repository::new(&hub, &arguments.repository, &arguments.revision, agent, &stopping)?;
    if arguments.create {
        repository.create(arguments.private)?;
    }
    match repository.read(CARD)? {
        Some(_) if !arguments.replace_card => {
            terminal::say!("{CARD} is there already and stays; --replace-card writes a new one");
        }
        _ => additions.push(Addition { path: CARD.to_owned(), content: Content::Bytes(card.into_bytes()) }),
    }
    let ids: Vec<&str> = subjects.iter().map(|subject| subject.id.as_str()).collect();
    let summary = arguments.message.clone().unwrap_or_else(|| format!("Upload {}", ids.join(", ")));
    let total = subjects.iter().map(|subject| subject.bytes).sum();
    let bar = counted("uploading", total, "bytes");
    let pushed = repository.commit(additions, &summary, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    match &pushed.commit {
        Some(commit) => terminal::say!(
            "{} files committed to {} as {} ({} sent, {} were there already)",
            pushed.files.len(),
            repository.url(),
            foreign(commit.get(..12).unwrap_or(commit)),
            format_bytes(pushed.sent),
            format_bytes(pushed.there)
        ),
        None => terminal::say!("{} has all of it already", repository.url()),
    }
    terminal::say!("next: SAE.from_pretrained({:?}, {:?})", arguments.repository, ids[0]);
    if arguments.json {
        let told = json!({
            "url": repository.url(),
            "commit": pushed.commit,
            "ids": ids,
            "files": pushed.files,
            "bytes_sent": pushed.sent,
            "bytes_there": pushed.there,
        });
        terminal::report!("{}", serde_json::to_string_pretty(&told)?);
    }
    Ok(())
}
