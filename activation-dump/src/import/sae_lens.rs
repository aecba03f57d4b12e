//! SAELens' cached activations: a Hugging Face `datasets` folder with a column for the hook, `[T, d]` a record, and, since
//! SAELens 5, `token_ids` `[T]`.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use arrow_stream::{Found, NumberType, TokenType, Wanted};
use terminal::foreign_path;

use super::element::{Element, TokenElement};
use super::source::{self, Division, Origin, Run, Source, Tokens};

/// The cache in `folder`; `hook` names the column of rows, where there are several.
pub(super) fn open(folder: &Path, hook: Option<&str>) -> Result<Source> {
    let state_path = folder.join("state.json");
    let state = source::json(&state_path)?;
    let listed = state["_data_files"].as_array().filter(|files| !files.is_empty());
    let listed = listed.with_context(|| format!("{} lists no files", foreign_path(&state_path)))?;
    let (mut files, mut runs, mut token_runs) = (Vec::new(), Vec::new(), Vec::new());
    let mut common: Option<Found> = None;
    for (index, entry) in listed.iter().enumerate() {
        let name = entry["filename"].as_str().unwrap_or_default();
        if name.is_empty() || name.contains(['/', '\\']) {
            bail!("entry {index} of {} does not name a file of the folder", foreign_path(&state_path));
        }
        let path = folder.join(name);
        let file = source::open(&path)?;
        let wanted = Wanted { rows: hook, tokens: "token_ids" };
        let bytes = source::size(&path, &file)?;
        let in_file = || format!("cannot import {}", foreign_path(&path));
        let found = arrow_stream::scan(&file, bytes, &wanted).with_context(in_file)?;
        for batch in &found.batches {
            let count = source::product(&[batch.records, found.length]).with_context(in_file)?;
            runs.push(Run { file: index, offset: batch.rows_at, count });
            token_runs.push(Run { file: index, offset: batch.tokens_at, count });
        }
        files.push(path);
        match &common {
            // An empty file says nothing of its records' size.
            None if found.batches.is_empty() => {}
            None => common = Some(found),
            Some(_) if found.batches.is_empty() => {}
            Some(first) => {
                let kind = |found: &Found| {
                    (found.name.clone(), found.numbers, found.length, found.width, found.tokens)
                };
                ensure!(
                    kind(first) == kind(&found),
                    "{} has other columns than the files before it",
                    foreign_path(&files[index])
                );
            }
        }
    }
    let found = common.with_context(|| format!("{} holds no record", foreign_path(folder)))?;
    let width = source::width(found.width).with_context(|| foreign_path(folder).to_string())?;
    let element = match found.numbers {
        NumberType::Half => Element::F16,
        NumberType::Single => Element::F32,
    };
    let tokens = found.tokens.map(|kind| match kind {
        TokenType::I32 => TokenElement::I32,
        TokenType::I64 => TokenElement::I64,
    });
    Ok(Source {
        files,
        element,
        width,
        stride: width as u64 * element.bytes(),
        runs,
        tokens: tokens.map(|element| Tokens { element, runs: token_runs }),
        division: Division::Whole(usize::try_from(found.length).unwrap_or(usize::MAX)),
        origin: Origin { hook: Some(found.name), ..Origin::default() },
    })
}
