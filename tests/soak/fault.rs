//! Makes system calls fail, once or from then on, then repeats the command once the disk is well again.

use std::process::{Command, Stdio};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::commands::Writer;
use crate::contents;
use crate::ground::{Place, Undisturbed};
use crate::kill::{ends_undisturbed, pick};
use crate::process::{Ended, Outcome};
use crate::shim::{self, Trouble};
use crate::tally::Counts;

/// Kinds of calls and how they fail.
const FAULTS: [(&str, &[i32]); 10] = [
    ("open", &[libc::EIO, libc::EMFILE, libc::EACCES]),
    ("create", &[libc::ENOSPC, libc::EROFS, libc::EMFILE]),
    ("read", &[libc::EIO]),
    ("write", &[libc::ENOSPC, libc::EIO, libc::EFBIG]),
    ("fsync", &[libc::EIO, libc::ENOSPC]),
    ("rename", &[libc::EIO, libc::ENOSPC]),
    ("truncate", &[libc::ENOSPC, libc::EIO]),
    ("unlink", &[libc::EIO, libc::EROFS]),
    ("mkdir", &[libc::ENOSPC, libc::EMLINK]),
    ("mmap", &[libc::ENOMEM]),
];

/// A call of one kind fails, or all from then on.
pub(crate) fn of_a_call(
    place: &Place<'_>,
    random: &mut ChaCha8Rng,
    counts: &mut Counts,
) -> Result<(), String> {
    let (writer, undisturbed) = pick(place, random);
    let possible = FAULTS.iter().filter(|(kind, _)| undisturbed.calls[*kind] > 0);
    let possible: Vec<_> = possible.collect();
    let (kind, errors) = possible[random.random_range(0..possible.len())];
    let error = errors[random.random_range(0..errors.len())];
    let act = if random.random_range(0..3) == 0 { "broken" } else { "error" };
    let nth = random.random_range(1..=undisturbed.calls[*kind]);
    let trouble = Trouble::act(format!("{act}:{error}"), nth).among(kind);
    let ended = place.run(writer.program, writer.line, Some(&trouble))?;
    judge(place, writer, undisturbed, &ended, &trouble, counts)?;
    ends_undisturbed(place, writer, undisturbed)
}

/// Reads and writes move a part of their bytes, or are interrupted; nothing may come of it.
pub(crate) fn short(place: &Place<'_>, random: &mut ChaCha8Rng, counts: &mut Counts) -> Result<(), String> {
    let (writer, undisturbed) = pick(place, random);
    let kind = ["read", "write"][random.random_range(0..2)];
    let nth = random.random_range(1..=undisturbed.calls[kind].max(1));
    let trouble = Trouble::act("part".into(), nth).among(kind);
    let ended = place.run(writer.program, writer.line, Some(&trouble))?;
    if shim::came(&place.report()) {
        counts.add("faults");
    }
    match ended.outcome()? {
        Outcome::Success => same(place, writer, undisturbed, &trouble),
        other => Err(format!("{other:?} after {}: {}", trouble.describe(), ended.error())),
    }
}

/// The disk has too little room: a small file system where one may be mounted, now and then and elsewhere the shim's.
pub(crate) fn full(place: &Place<'_>, random: &mut ChaCha8Rng, counts: &mut Counts) -> Result<(), String> {
    let (writer, undisturbed) = pick(place, random);
    let room = random.random_range(0..undisturbed.bytes);
    let trouble = Trouble::room(room);
    let disk = (random.random_range(0..2) == 0).then(|| SmallDisk::mount(place, room)).flatten();
    let ended = place.run(writer.program, writer.line, disk.is_none().then_some(&trouble))?;
    if disk.is_some() {
        counts.add("file systems too small");
    }
    judge(place, writer, undisturbed, &ended, &trouble, counts)?;
    if let Some(disk) = &disk {
        disk.grow();
    }
    ends_undisturbed(place, writer, undisturbed)
}

/// A program in trouble either tells an error or does all of its work.
fn judge(
    place: &Place<'_>,
    writer: &Writer,
    undisturbed: &Undisturbed,
    ended: &Ended,
    trouble: &Trouble,
    counts: &mut Counts,
) -> Result<(), String> {
    if shim::came(&place.report()) {
        counts.add("faults");
    }
    match ended.outcome().map_err(|error| format!("after {}: {error}", trouble.describe()))? {
        Outcome::Refused => counts.add("errors told"),
        Outcome::Success => return same(place, writer, undisturbed, trouble),
        other => return Err(format!("{other:?} after {}: {}", trouble.describe(), ended.error())),
    }
    Ok(())
}

fn same(
    place: &Place<'_>,
    writer: &Writer,
    undisturbed: &Undisturbed,
    trouble: &Trouble,
) -> Result<(), String> {
    // Where removing fails, remains stay until the next time.
    match contents::difference(&undisturbed.contents, &contents::without_remains(place.left(writer))) {
        None => Ok(()),
        Some(difference) => Err(format!("success after {}, but {difference}", trouble.describe())),
    }
}

/// A small file system in memory at a place's folder; unmounted when dropped.
struct SmallDisk<'p>(&'p Place<'p>);

impl SmallDisk<'_> {
    /// `None` where the user may not mount.
    fn mount<'p>(place: &'p Place<'p>, bytes: u64) -> Option<SmallDisk<'p>> {
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={}k", bytes / 1024 + 4), "tmpfs"], place);
        mounted.then_some(SmallDisk(place))
    }

    fn grow(&self) {
        assert!(mount(&["-o", "remount,size=1g"], self.0), "a small file system cannot grow");
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0.folder).status();
    }
}

fn mount(options: &[&str], place: &Place<'_>) -> bool {
    let mut mount = Command::new("mount");
    mount.args(options).arg(&place.folder).stderr(Stdio::null());
    mount.status().is_ok_and(|status| status.success())
}
