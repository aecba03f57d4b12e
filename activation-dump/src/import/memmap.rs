//! The ActivationCache of dictionary_learning's fork by J. Minder: `shard_{i}.memmap`, plain rows `[n, d]` (bfloat16 as
//! int16), each with a `.meta` of its shape and type, and `config.json`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use terminal::foreign_path;

use super::element::Element;
use super::source::{self, Division, Origin, Run, Source};

/// The cache in `folder`.
pub(super) fn open(folder: &Path) -> Result<Source> {
    let config = source::json(&folder.join("config.json"))?;
    let shards = shards(folder, &config)?;
    let (mut files, mut runs) = (Vec::new(), Vec::new());
    let mut common: Option<(Element, usize)> = None;
    for index in 0..shards {
        let path = folder.join(format!("shard_{index}.memmap"));
        let meta = path.with_extension("meta");
        let described =
            shape(&source::json(&meta)?).with_context(|| format!("cannot import {}", foreign_path(&path)))?;
        let (rows, width, element) = described;
        let bytes = source::size(&path, &source::open(&path)?)?;
        let needed = source::product(&[rows, width as u64, element.bytes()])?;
        ensure!(
            needed == bytes,
            "{} is damaged: {} calls for {needed} bytes, and it has {bytes}",
            foreign_path(&path),
            foreign_path(&meta)
        );
        match common {
            None => common = Some((element, width)),
            Some(first) => ensure!(
                first == (element, width),
                "{} has rows of {width} {} numbers, the shards before it rows of {} {} numbers",
                foreign_path(&path),
                element.name(),
                first.1,
                first.0.name()
            ),
        }
        files.push(path);
        runs.push(Run { file: index, offset: 0, count: rows });
    }
    let (element, width) = common.context("the cache has no shard")?;
    let mut origin = Origin::default();
    if config["store_tokens"] == Value::Bool(true) {
        let note = "its tokens are in tokens.pt, which is not read: numpy.save them, and name the file with --tokens";
        origin.notes.push(note.to_owned());
    }
    if config["shuffle_shards"] == Value::Bool(true) {
        origin.notes.push(
            "its rows were shuffled, so contexts are rows that have nothing to do with each other".to_owned(),
        );
    }
    let stride = width as u64 * element.bytes();
    Ok(Source { files, element, width, stride, runs, tokens: None, division: Division::Rows, origin })
}

/// The number of shards, all of which are there.
fn shards(folder: &Path, config: &Value) -> Result<usize> {
    let exists = |index: usize| folder.join(format!("shard_{index}.memmap")).exists();
    let there = (0..).take_while(|&index| exists(index)).count();
    match config["shard_count"].as_u64() {
        Some(count) if count > there as u64 => bail!(
            "{} is incomplete: config.json counts {count} shards, and shard_{there}.memmap is missing",
            foreign_path(folder)
        ),
        Some(count) => Ok(count as usize),
        None => Ok(there),
    }
}

/// Rows, width and type that a `.meta` states.
fn shape(meta: &Value) -> Result<(u64, usize, Element)> {
    let sizes: Option<Vec<u64>> =
        meta["shape"].as_array().and_then(|sizes| sizes.iter().map(Value::as_u64).collect());
    let Some(&[rows, width]) = sizes.as_deref() else {
        bail!("its shape is {}, and [n, d] is expected", meta["shape"]);
    };
    let kind = meta["dtype"].as_str().context("its .meta states no dtype")?;
    Ok((rows, source::width(width)?, Element::named(kind)?))
}
