//! Damages files: everything that reads them must either give what it gave before or refuse.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use activation_store::{Store, StoreError};
use ndarray::Array2;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::commands::{ARTIFACTS, Artifact, Gives, WRITERS};
use crate::contents::{self, Contents, file_name};
use crate::ground::{Place, Prepared};
use crate::process::{Ended, Outcome};
use crate::tally::Counts;

/// One damaged file.
struct Damage {
    name: String,
    bytes: Option<Vec<u8>>,
    /// In words, for a report.
    what: String,
}

impl Damage {
    /// Whether lines of a log are gone, or there twice: a run goes on without them, and says so.
    fn takes_log_lines(&self) -> bool {
        self.name.ends_with("metrics.jsonl") && !self.what.ends_with("flipped")
    }

    /// Whether a run that was killed could have left this: a log without lines after the newest checkpoint, no summary.
    fn could_be_a_kill(&self, artifact: &Artifact, sound: &Contents) -> bool {
        if self.bytes.is_none() && self.name.ends_with("summary.json") {
            return true;
        }
        let Some(run) = self.name.strip_suffix("metrics.jsonl").filter(|_| artifact.tenths < 10) else {
            return false;
        };
        let steps = sound.keys().filter_map(|name| {
            let (step, _) = name.strip_prefix(run)?.strip_prefix("checkpoints/step-")?.split_once('/')?;
            step.parse::<u64>().ok()
        });
        let newest = steps.max().unwrap_or(0);
        let up_to_newest = |log: &[u8]| {
            let lines = log.split(|&b| b == b'\n').map(<[u8]>::to_vec);
            let step = |line: &[u8]| serde_json::from_slice::<serde_json::Value>(line).ok()?["step"].as_u64();
            lines.filter(|line| step(line).is_some_and(|step| step <= newest)).collect::<Vec<_>>()
        };
        up_to_newest(self.bytes.as_deref().unwrap_or_default()) == up_to_newest(&sound[&self.name])
    }

    /// Whether it is in what a stopped writer left, which the next one removes and nobody reads.
    fn is_in_remains(&self) -> bool {
        self.name.contains(".unfinished/")
    }
}

/// A bit of any file of any artifact, seen by one of the programs.
pub(crate) fn flip(place: &Place<'_>, random: &mut ChaCha8Rng, counts: &mut Counts) -> Result<(), String> {
    let (artifact, prepared) = pick(place, random);
    let damage = flipped_bit(&prepared.files, random);
    counts.add("flips");
    seen_by_a_program(place, artifact, prepared, &damage, random, counts)
}

/// A file that is cut, gone, partly zeros, longer, or another one.
pub(crate) fn spoil(place: &Place<'_>, random: &mut ChaCha8Rng, counts: &mut Counts) -> Result<(), String> {
    let (artifact, prepared) = pick(place, random);
    let damage = spoilt_file(&prepared.files, random);
    if damage.bytes.as_ref() == prepared.files.get(&damage.name) {
        return Ok(()); // it was put in its own place, or is the same as another
    }
    counts.add("files spoilt");
    seen_by_a_program(place, artifact, prepared, &damage, random, counts)
}

/// Flips a [`flip_of_a_store`] makes.
const FLIPS: u64 = 50;

/// Bits of a finished store, seen by the functions that all programs read stores with.
pub(crate) fn flip_of_a_store(
    place: &Place<'_>,
    random: &mut ChaCha8Rng,
    counts: &mut Counts,
) -> Result<(), String> {
    let prepared = &place.ground.artifacts[0];
    place.lay_out(&prepared.files, "store");
    let folder = place.folder.join("store");
    let sound = everything(&folder).expect("the store is sound");
    for _ in 0..FLIPS {
        let damage = flipped_bit(&prepared.files, random);
        let path = folder.join(&damage.name);
        std::fs::write(&path, damage.bytes.as_ref().expect("a flip leaves a file"))
            .expect("a file can be damaged");
        counts.add("flips");
        let read = catch_unwind(AssertUnwindSafe(|| {
            (activation_store::verify(&folder, &|_| {}), everything(&folder))
        }));
        let (verified, read) = read.map_err(|_| format!("{}: a panic", damage.what))?;
        if verified.is_ok_and(|report| report.problems.iter().all(|problem| problem.file != damage.name)) {
            return Err(format!("{}: verify does not find it", damage.what));
        }
        match read {
            Ok(read) if read == sound => counts.add("same results"),
            Ok(_) => return Err(format!("{}: other rows are read", damage.what)),
            Err(_) => counts.add("refused"),
        }
        std::fs::write(&path, &prepared.files[&damage.name]).expect("a file can be mended");
    }
    Ok(())
}

/// The bit patterns of the rows, their origins, and the tokens.
type Everything = (Array2<u32>, Vec<u64>, Array2<u32>);

fn everything(folder: &Path) -> Result<Everything, StoreError> {
    let store = Store::open(folder)?;
    let bits = store.read_rows(0..store.rows())?.mapv(f32::to_bits);
    Ok((bits, store.origin(0..store.rows())?, store.context_tokens(0..store.contexts())?))
}

/// Lays the damaged artifact out and has one of its readers, taken by chance, judge it.
fn seen_by_a_program(
    place: &Place<'_>,
    artifact: &Artifact,
    prepared: &Prepared,
    damage: &Damage,
    random: &mut ChaCha8Rng,
    counts: &mut Counts,
) -> Result<(), String> {
    let which = random.random_range(0..artifact.readers.len());
    let reader = &artifact.readers[which];
    let mut files = prepared.files.clone();
    match &damage.bytes {
        Some(bytes) => files.insert(damage.name.clone(), bytes.clone()),
        None => files.remove(&damage.name),
    };
    place.lay_out(&files, WRITERS[artifact.writer].result);
    let ended = place.run(reader.program, reader.line, None)?;
    let at = format!("{}: {}: `{} {}`", artifact.name, damage.what, reader.program, reader.line);
    judge(place, artifact, which, damage, prepared, &ended, counts).map_err(|error| format!("{at}: {error}"))
}

fn judge(
    place: &Place<'_>,
    artifact: &Artifact,
    which: usize,
    damage: &Damage,
    prepared: &Prepared,
    ended: &Ended,
    counts: &mut Counts,
) -> Result<(), String> {
    let reader = &artifact.readers[which];
    let (sound, sound_files) = (&prepared.results[which], &prepared.files);
    match ended.outcome()? {
        Outcome::Refused if is_named(damage, ended) => counts.add("refused"),
        Outcome::Refused => return Err(format!("the file is not named: {}", ended.error())),
        Outcome::Success if reader.gives == Gives::Verdict && is_noticed(damage, ended)? => {
            counts.add("unchecked, told")
        }
        Outcome::Success if reader.gives == Gives::Verdict && damage.is_in_remains() => {
            counts.add("in remains")
        }
        Outcome::Success
            if reader.gives == Gives::Verdict && damage.could_be_a_kill(artifact, sound_files) =>
        {
            counts.add("like a kill")
        }
        Outcome::Success if reader.gives == Gives::Verdict => return Err("no damage is noticed".to_owned()),
        Outcome::Success => {
            let mut found = place.results(reader, ended);
            if found.output != sound.output {
                return Err(format!("success, but it prints something else:\n{}", ended.stdout));
            }
            if let Some(before) = sound.folder.get(&damage.name).filter(|_| damage.takes_log_lines()) {
                found.folder.insert(damage.name.clone(), before.clone());
                counts.add("log lines lost");
            }
            if damage.name.ends_with("metrics.jsonl") {
                mend_counts_of_lines(&sound.folder, &mut found.folder);
            }
            let is_left = mend_what_is_left(damage, &sound.folder, &mut found.folder);
            if let Some(difference) = contents::difference(&sound.folder, &found.folder) {
                return Err(format!("success, but {difference}"));
            }
            if is_left {
                let (program, line) = artifact.verify;
                let verified = place.run(program, line, None)?;
                if !is_noticed(damage, &verified)? {
                    return Err("the damage is left, and not noticed by verify".to_owned());
                }
                counts.add("left for verify to find");
            } else {
                counts.add("same results");
            }
        }
        other => return Err(format!("{other:?}: {}", ended.error())),
    }
    Ok(())
}

/// A run that went on with another log counts other lines.
fn mend_counts_of_lines(sound: &Contents, found: &mut Contents) {
    fn remove(value: &mut serde_json::Value) {
        if let Some(object) = value.as_object_mut() {
            object.remove("logged_lines");
            object.values_mut().for_each(remove);
        }
        value.as_array_mut().into_iter().flatten().for_each(remove);
    }
    let without_count = |bytes: &[u8]| {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        remove(&mut value);
        Some(value)
    };
    for (name, bytes) in found.iter_mut().filter(|(name, _)| name.ends_with(".json")) {
        if let Some(before) = sound.get(name)
            && without_count(bytes).is_some_and(|rest| without_count(before) == Some(rest))
        {
            bytes.clone_from(before);
        }
    }
}

/// Repairs, in `found`, damage that was never read and so stayed where it was. Returns whether there was any.
fn mend_what_is_left(damage: &Damage, sound: &Contents, found: &mut Contents) -> bool {
    let Some(before) = sound.get(&damage.name) else { return false };
    let Some(after) = found.get(&damage.name) else {
        let is_left = damage.bytes.is_none();
        if is_left {
            found.insert(damage.name.clone(), before.clone());
        }
        return is_left;
    };
    let damaged = contents::normal(&damage.name, damage.bytes.clone().unwrap_or_default());
    let is_left =
        damaged == *after || (damage.name.ends_with(".jsonl") && is_left_in_log(before, after, &damaged));
    if !is_left || before == after {
        return false;
    }
    found.insert(damage.name.clone(), before.clone());
    true
}

/// Whether a log differs from the sound one by nothing but damaged lines, kept as they are. Whether a damaged line was one
/// of those that would be written again is not known to who keeps it, and a damaged newline makes one line of two.
fn is_left_in_log(sound: &[u8], found: &[u8], damaged: &[u8]) -> bool {
    let lines = |bytes: &'_ [u8]| bytes.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (sound, found, damaged) = (lines(sound), lines(found), lines(damaged));
    let (kept, same): (Vec<_>, Vec<_>) = found.into_iter().partition(|line| !sound.contains(line));
    let mut rest = sound.iter();
    let is_in_order = same.iter().all(|line| rest.any(|other| other == line));
    is_in_order
        && kept.iter().all(|line| damaged.contains(line))
        && sound.len() - same.len() <= kept.len() + 1
}

/// Whether a verify command noticed the damage: it names the file, as damaged or, where it is a checksum that is no longer
/// one, as unchecked.
fn is_noticed(damage: &Damage, ended: &Ended) -> Result<bool, String> {
    // Without its checksums a folder is unchecked.
    let unchecked = damage.name.strip_suffix("SHA256SUMS").unwrap_or(&damage.name);
    let is_unchecked =
        ended.stdout.lines().any(|line| line.starts_with("unchecked") && line.contains(unchecked));
    Ok(is_unchecked || ended.outcome()? == Outcome::Refused && is_named(damage, ended))
}

/// Whether the error names the damaged file, or its folder if that is what the damage made no sense of.
fn is_named(damage: &Damage, ended: &Ended) -> bool {
    let told = format!("{}{}", ended.stdout, ended.stderr);
    let folder = damage.name.rsplit('/').nth(1);
    let is_senseless = damage.bytes.is_none()
        || folder.is_some_and(|folder| folder.ends_with(".unfinished"))
        // It can name a file that is not there.
        || damage.name.ends_with("SHA256SUMS");
    told.contains(file_name(&damage.name))
        || (is_senseless && folder.is_none_or(|folder| told.contains(folder)))
        || (damage.name == "zarr.json"
            && (told.contains("no activation store") || told.contains("store holds ")))
}

fn pick<'g>(place: &Place<'g>, random: &mut ChaCha8Rng) -> (&'static Artifact, &'g Prepared) {
    let which = random.random_range(0..ARTIFACTS.len());
    (&ARTIFACTS[which], &place.ground.artifacts[which])
}

/// A file with something in it: in one case of two any file, in the other any byte of all files.
fn pick_file<'f>(files: &'f Contents, random: &mut ChaCha8Rng) -> (&'f str, &'f [u8]) {
    let full: Vec<_> = files.iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
    let which = if random.random_range(0..2) == 0 {
        random.random_range(0..full.len())
    } else {
        let mut byte = random.random_range(0..full.iter().map(|(_, bytes)| bytes.len()).sum());
        full.iter()
            .position(|(_, bytes)| {
                let here = byte < bytes.len();
                byte = byte.wrapping_sub(bytes.len());
                here
            })
            .expect("the byte is in one of the files")
    };
    (full[which].0, full[which].1)
}

fn flipped_bit(files: &Contents, random: &mut ChaCha8Rng) -> Damage {
    let (name, bytes) = pick_file(files, random);
    let bit = random.random_range(0..8 * bytes.len());
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    let what = format!("bit {bit} of {name} flipped");
    Damage { name: name.to_owned(), bytes: Some(bytes), what }
}

fn spoilt_file(files: &Contents, random: &mut ChaCha8Rng) -> Damage {
    let (name, sound) = pick_file(files, random);
    let mut bytes = sound.to_vec();
    let at = random.random_range(0..bytes.len());
    let what = match random.random_range(0..5) {
        0 => {
            bytes.truncate(at);
            format!("{name} cut to {at} bytes")
        }
        1 => {
            let end = bytes.len().min(at + 512);
            bytes[at..end].fill(0);
            format!("zeros from byte {at} of {name}")
        }
        2 => {
            bytes.extend_from_slice(&sound[at..]);
            format!("{name} followed by its end from byte {at}")
        }
        3 => {
            let (other, content) = pick_file(files, random);
            bytes = content.to_vec();
            format!("{other} in place of {name}")
        }
        _ => {
            let what = format!("{name} removed");
            return Damage { name: name.to_owned(), bytes: None, what };
        }
    };
    Damage { name: name.to_owned(), bytes: Some(bytes), what }
}
