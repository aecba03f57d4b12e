//! The shards of saev (protocol 2 and its predecessor): `acts000000.bin` and so on, float32 `[examples, layers, tokens, d]`,
//! with `metadata.json` and `shards.json`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use terminal::foreign_path;

use super::element::Element;
use super::source::{self, Division, Origin, Run, Source};

/// The shards in `folder`; of the layers the one with number `layer`.
pub(super) fn open(folder: &Path, layer: Option<usize>) -> Result<Source> {
    let path = folder.join("metadata.json");
    let metadata = source::json(&path)?;
    let in_metadata = || format!("cannot import {}", foreign_path(&path));
    // Protocol 2 renamed them.
    let count = |names: [&str; 2]| {
        let value = names.iter().find_map(|name| metadata[*name].as_u64());
        value.with_context(|| format!("{} states no {}", foreign_path(&path), names[0]))
    };
    let width = source::width(count(["d_model", "d_vit"])?).with_context(in_metadata)?;
    let patches = count(["patches_per_ex", "n_patches_per_img"])?;
    let tokens = patches.saturating_add(u64::from(metadata["cls_token"] == Value::Bool(true)));
    ensure!(tokens > 0, "{} states examples without tokens", foreign_path(&path));
    if let Some(kind) = metadata["dtype"].as_str() {
        ensure!(kind == "float32", "{} states the dtype {kind:?}; float32 is expected", foreign_path(&path));
    }
    let layers = metadata["layers"].as_array().map_or(0, Vec::len);
    let layer = source::one_layer(layer, layers).with_context(in_metadata)?;

    let list = folder.join("shards.json");
    let shards = source::json(&list)?;
    let shards = shards.as_array().with_context(|| format!("{} is not a list", foreign_path(&list)))?;
    let layer_bytes = source::product(&[tokens, width as u64, 4]).with_context(in_metadata)?;
    let example_bytes = source::product(&[layers as u64, layer_bytes]).with_context(in_metadata)?;
    let (mut files, mut runs) = (Vec::new(), Vec::new());
    for (index, shard) in shards.iter().enumerate() {
        let name = shard["name"].as_str().unwrap_or_default();
        let examples = ["n_ex", "n_imgs"].iter().find_map(|key| shard[*key].as_u64());
        let Some(examples) = examples.filter(|_| is_shard(name)) else {
            bail!("entry {index} of {} does not name a shard and its examples", foreign_path(&list));
        };
        let path = folder.join(name);
        let bytes = source::size(&path, &source::open(&path)?)?;
        let needed = source::product(&[examples, example_bytes]).with_context(in_metadata)?;
        ensure!(
            needed == bytes,
            "{} is damaged: {} calls for {needed} bytes, and it has {bytes}",
            foreign_path(&path),
            foreign_path(&list)
        );
        let start = |example: u64| example * example_bytes + layer as u64 * layer_bytes;
        runs.extend((0..examples).map(|example| Run { file: index, offset: start(example), count: tokens }));
        files.push(path);
    }
    Ok(Source {
        files,
        element: Element::F32,
        width,
        stride: width as u64 * 4,
        runs,
        tokens: None,
        division: Division::Whole(usize::try_from(tokens).unwrap_or(usize::MAX)),
        origin: Origin {
            model: ["ckpt", "vit_ckpt"].iter().find_map(|key| metadata[*key].as_str()).map(str::to_owned),
            source_layer: (layers > 1).then_some(layer),
            ..Origin::default()
        },
    })
}

/// Names become paths: only those of the protocol do.
fn is_shard(name: &str) -> bool {
    let digits = name.strip_prefix("acts").and_then(|rest| rest.strip_suffix(".bin"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}
