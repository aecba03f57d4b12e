//! Kills the program, gracefully or not, then repeats the command.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::commands::{WRITERS, Writer};
use crate::contents;
use crate::ground::{Place, Undisturbed};
use crate::process::{self, Outcome};
use crate::shim::{self, Trouble};
use crate::tally::Counts;

const SIGNALS: [i32; 6] =
    [libc::SIGKILL, libc::SIGKILL, libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Signals at random moments, up to four one after the other.
pub(crate) fn at_any_moment(
    place: &Place<'_>,
    random: &mut ChaCha8Rng,
    counts: &mut Counts,
) -> Result<(), String> {
    let (writer, undisturbed) = pick(place, random);
    for _ in 0..random.random_range(1..=4) {
        let signal = SIGNALS[random.random_range(0..SIGNALS.len())];
        let moment = undisturbed.duration.mul_f64(random.random_range(0.0..1.1));
        let ended = process::run(place.command(writer.program, writer.line), &place.log, |child| {
            std::thread::sleep(moment);
            process::send(child, signal);
            // A polite signal is followed by an impolite one now and then.
            if signal != libc::SIGKILL && random.random_range(0..4) == 0 {
                std::thread::sleep(Duration::from_millis(random.random_range(0..20)));
                process::send(child, signal);
            }
        })?;
        match ended.outcome()? {
            Outcome::Stopped(by) if by == signal => counts.add("kills"),
            Outcome::Success => break,
            Outcome::Refused if writer.once => break,
            other => return Err(format!("{other:?} after signal {signal}: {}", ended.error())),
        }
    }
    ends_undisturbed(place, writer, undisturbed)
}

/// Signals at random calls on files, up to three one after the other.
pub(crate) fn at_any_call(
    place: &Place<'_>,
    random: &mut ChaCha8Rng,
    counts: &mut Counts,
) -> Result<(), String> {
    let (writer, undisturbed) = pick(place, random);
    for _ in 0..random.random_range(1..=3) {
        let signal = SIGNALS[random.random_range(0..SIGNALS.len())];
        if !die(place, writer, undisturbed, signal, random)? {
            break;
        }
        counts.add("kills");
    }
    ends_undisturbed(place, writer, undisturbed)
}

/// The power fails at a random call: what was written to a file after its last flush is gone, or a part of it.
pub(crate) fn power(place: &Place<'_>, random: &mut ChaCha8Rng, counts: &mut Counts) -> Result<(), String> {
    let (writer, undisturbed) = pick(place, random);
    for _ in 0..random.random_range(1..=2) {
        // What was there before the program began had time enough to get to the disk.
        let before = sizes(&place.folder);
        if !die(place, writer, undisturbed, libc::SIGKILL, random)? {
            break;
        }
        counts.add("kills");
        let mut durable = before;
        durable.extend(shim::flushed(&place.report()));
        for (path, inode, size) in files(&place.folder) {
            let kept = durable.get(&inode).copied().unwrap_or(0);
            if kept < size {
                let left = random.random_range(kept..=size);
                let file = fs::File::options().write(true).open(&path).expect("a file can be cut");
                file.set_len(left).expect("a file can be cut");
                counts.add("files cut short");
            }
        }
    }
    ends_undisturbed(place, writer, undisturbed)
}

/// Runs a writer into `signal` at a random call; whether it was stopped there.
fn die(
    place: &Place<'_>,
    writer: &Writer,
    undisturbed: &Undisturbed,
    signal: i32,
    random: &mut ChaCha8Rng,
) -> Result<bool, String> {
    let trouble = Trouble::signal(signal, random.random_range(1..=undisturbed.calls()));
    let ended = place.run(writer.program, writer.line, Some(&trouble))?;
    match ended.outcome()? {
        Outcome::Stopped(by) if by == signal => Ok(true),
        Outcome::Success => Ok(false),
        Outcome::Refused if writer.once => Ok(false),
        other => Err(format!("{other:?} after {}: {}", trouble.describe(), ended.error())),
    }
}

/// Gives the command again, which has to end as if nothing had happened.
pub(crate) fn ends_undisturbed(
    place: &Place<'_>,
    writer: &Writer,
    undisturbed: &Undisturbed,
) -> Result<(), String> {
    let ended = place.run(writer.program, writer.line, None)?;
    match ended.outcome()? {
        Outcome::Success => {}
        Outcome::Refused if writer.once => {}
        other => return Err(format!("given again, the command ended with {other:?}: {}", ended.error())),
    }
    match contents::difference(&undisturbed.contents, &place.left(writer)) {
        None => Ok(()),
        Some(difference) => Err(format!("given again, the command left something else: {difference}")),
    }
}

/// One of the writers, in an empty folder.
pub(crate) fn pick<'g>(place: &Place<'g>, random: &mut ChaCha8Rng) -> (&'static Writer, &'g Undisturbed) {
    place.clear();
    let which = random.random_range(0..WRITERS.len());
    (&WRITERS[which], &place.ground.undisturbed[which])
}

fn sizes(folder: &Path) -> HashMap<u64, u64> {
    files(folder).into_iter().map(|(_, inode, size)| (inode, size)).collect()
}

/// Path, inode and size of every file below `folder`.
fn files(folder: &Path) -> Vec<(PathBuf, u64, u64)> {
    let file = |path: PathBuf| {
        let about = fs::metadata(&path).expect("a file can be looked at");
        (path, about.ino(), about.size())
    };
    end_to_end::files_below(folder).into_iter().map(file).collect()
}
