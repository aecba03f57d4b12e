//! The thread that writes encoded shards to disk, and the files that complete a store.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use super::stages::{Commit, Counters, Emptied, lock};
use crate::codec::{CHECKSUM, ShardIndex};
use crate::disk::Written;
use crate::journal::{self, Entry, Manifest, ShardFile, TokenFile};
use crate::metadata::{self, Attributes, ZARR_JSON};
use crate::paths::{self, JOURNAL, MANIFEST};
use crate::statistics::Statistics;
use crate::target::Target;
use crate::{Result, StoreSpec};

/// Writes until nothing more comes.
pub(super) fn run(
    spec: &StoreSpec,
    target: &mut dyn Target,
    commits: &Receiver<Commit>,
    emptied: &Emptied,
    counters: &Counters,
) -> Result<()> {
    let mut token_files: BTreeMap<u64, TokenFile> = BTreeMap::new();
    while let Ok(commit) = commits.recv() {
        match commit {
            Commit::Tokens { chunk, encoded } => {
                let Written { bytes, crc32c } = target.publish(&paths::tokens(chunk), &encoded)?;
                let tail_crc32c = Some(crc32c::crc32c(&checksum(&encoded)));
                token_files.insert(chunk, TokenFile { chunk, bytes, crc32c, tail_crc32c });
            }
            Commit::Shard { shard, rows, activations, origin } => {
                let chunks = activations;
                let activations = publish_shard(target, spec, &paths::activations(shard), &chunks)?;
                lock(emptied).extend(chunks);
                let origin = publish_shard(target, spec, &paths::origin(shard), &origin)?;
                let entry = Entry::Shard { shard, rows, activations, origin };
                target.append(&journal::line(&entry))?;
                counters.rows_stored.fetch_add(rows, Ordering::Relaxed);
                counters.activation_bytes.fetch_add(activations.bytes, Ordering::Relaxed);
            }
            Commit::Window { window, from, to, clipped, statistics } => {
                // Every chunk that the contexts from `from` to `to` touch, also one that was written before `from`
                // because a context lies across it: so the line does not depend on where a dump was interrupted.
                let per_chunk = spec.token_chunk_contexts() as u64;
                let touched = to.contexts + u64::from(to.positions > 0);
                token_files.retain(|&chunk, _| chunk >= from.contexts / per_chunk);
                let tokens =
                    token_files.values().copied().filter(|file| file.chunk * per_chunk < touched).collect();
                let entry = Entry::Window {
                    window,
                    rows: statistics.rows(),
                    contexts: to.contexts,
                    positions: to.positions as u64,
                    clipped,
                    tokens,
                    statistics: statistics.to_hex(),
                };
                target.append(&journal::line(&entry))?;
            }
        }
    }
    target.flush()
}

/// A chunk ends with the checksum of what is before it.
fn checksum(chunk: &[u8]) -> [u8; CHECKSUM] {
    *chunk.last_chunk().expect("a chunk has a checksum")
}

fn publish_shard(
    target: &mut dyn Target,
    spec: &StoreSpec,
    name: &str,
    chunks: &[Vec<u8>],
) -> Result<ShardFile> {
    let index =
        ShardIndex::encode(chunks.iter().map(|chunk| chunk.len() as u64), spec.layout.chunks_per_shard());
    let whole = |chunk: &[u8]| {
        let checksum = checksum(chunk);
        crc32c::crc32c_append(u32::from_le_bytes(checksum), &checksum)
    };
    let mut parts: Vec<(&[u8], u32)> = chunks.iter().map(|chunk| (&chunk[..], whole(chunk))).collect();
    parts.push((&index, crc32c::crc32c(&index)));
    let Written { bytes, crc32c } = target.publish_parts(name, &parts)?;
    let last = checksum(chunks.last().expect("a shard has a chunk"));
    let tail_crc32c = crc32c::crc32c_append(crc32c::crc32c(&last), &index);
    Ok(ShardFile { bytes, crc32c, tail_crc32c })
}

/// Writes the metadata of the finished arrays, the statistics, the manifest and, last, the word "complete".
pub(super) fn complete(
    spec: &StoreSpec,
    target: &mut dyn Target,
    contexts: u64,
    clipped: u64,
    statistics: &Statistics,
) -> Result<()> {
    let mut manifest = Manifest::default();
    let mut publish = |name: &str, content: &[u8]| -> Result<()> {
        manifest.add(name, target.publish(name, content)?);
        Ok(())
    };
    let floats = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let rows = statistics.rows;
    publish("activations/zarr.json", &metadata::text(&metadata::activations(spec, rows)))?;
    publish("origin/zarr.json", &metadata::text(&metadata::origin(spec, rows)))?;
    publish("tokens/zarr.json", &metadata::text(&metadata::tokens(spec, contexts)))?;
    publish("stats/zarr.json", &metadata::text(&metadata::plain_group()))?;
    for (name, values) in [("mean", &statistics.mean), ("variance", &statistics.variance)] {
        publish(&format!("stats/{name}/zarr.json"), &metadata::text(&metadata::statistic(Some(spec.width))))?;
        publish(&format!("stats/{name}/c/0"), &floats(values))?;
    }
    for (name, value) in [("mean_norm", statistics.mean_norm), ("rows", rows as f64)] {
        publish(&format!("stats/{name}/zarr.json"), &metadata::text(&metadata::statistic(None)))?;
        publish(&format!("stats/{name}/c"), &floats(&[value]))?;
    }

    let journal = target.journal()?;
    target.add_journal(&journal)?;
    manifest.add(JOURNAL, Written { bytes: journal.len() as u64, crc32c: crc32c::crc32c(&journal) });
    let group = group_text(spec, Some((rows, contexts, clipped)));
    manifest.add(ZARR_JSON, Written { bytes: group.len() as u64, crc32c: crc32c::crc32c(&group) });
    target.publish(MANIFEST, &journal::line(&manifest))?;
    // Whoever sees the word sees everything.
    target.flush()?;
    target.publish(ZARR_JSON, &group)?;
    target.conclude()
}

/// The text of the group's metadata: of a new store, or of a finished one with its rows, contexts and clipped values.
pub(super) fn group_text(spec: &StoreSpec, finished: Option<(u64, u64, u64)>) -> Vec<u8> {
    let (rows, contexts, clipped) = finished.unwrap_or_default();
    let attributes = Attributes {
        format: "activation-store".to_owned(),
        format_version: metadata::FORMAT_VERSION,
        complete: finished.is_some(),
        rows,
        contexts,
        clipped,
        specification: spec.clone(),
    };
    metadata::text(&attributes.group())
}
