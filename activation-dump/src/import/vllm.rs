//! What vLLM's `extract_hidden_states` leaves: a safetensors file for each request, with `hidden_states`
//! `[tokens, layers, d]` and `token_ids` `[tokens]`.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use terminal::foreign_path;

use super::element::{Element, TokenElement};
use super::source::{self, Division, Origin, Run, Source, Tokens};

/// The longest header that is read, in bytes: the format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// The requests in `files`, a context each; of the layers the one with number `layer`.
pub(super) fn open(files: Vec<PathBuf>, layer: Option<usize>) -> Result<Source> {
    let (mut runs, mut token_runs) = (Vec::new(), Vec::new());
    let mut common: Option<Request> = None;
    let mut chosen = None;
    for (index, path) in files.iter().enumerate() {
        let in_file = || format!("cannot import {}", foreign_path(path));
        let request = Request::read(path).with_context(in_file)?;
        let layer = source::one_layer(layer, request.layers).with_context(in_file)?;
        chosen = (request.layers > 1).then_some(layer);
        if let Some(first) = &common {
            let shape =
                |request: &Request| (request.layers, request.width, request.element, request.token_element);
            ensure!(
                shape(first) == shape(&request),
                "{} has {} layers of {} {} numbers, {} has {} of {} {}; requests of one import agree",
                foreign_path(path),
                request.layers,
                request.width,
                request.element.name(),
                foreign_path(&files[0]),
                first.layers,
                first.width,
                first.element.name()
            );
        }
        let before = layer as u64 * request.width as u64 * request.element.bytes();
        runs.push(Run { file: index, offset: request.rows_at + before, count: request.tokens });
        token_runs.push(Run { file: index, offset: request.tokens_at, count: request.tokens });
        common.get_or_insert(request);
    }
    let common = common.context("there is no .safetensors file to import")?;
    Ok(Source {
        files,
        element: common.element,
        width: common.width,
        stride: source::product(&[common.layers as u64, common.width as u64, common.element.bytes()])?,
        runs,
        tokens: Some(Tokens { element: common.token_element, runs: token_runs }),
        division: Division::Runs,
        origin: Origin { source_layer: chosen, ..Origin::default() },
    })
}

/// What the header of a request's file says.
struct Request {
    tokens: u64,
    layers: usize,
    width: usize,
    element: Element,
    token_element: TokenElement,
    /// Where its numbers begin.
    rows_at: u64,
    tokens_at: u64,
}

impl Request {
    fn read(path: &std::path::Path) -> Result<Request> {
        let mut file = source::open(path)?;
        let bytes = source::size(path, &file)?;
        let mut length = [0; 8];
        file.read_exact(&mut length).context("it is too short for a safetensors file")?;
        let length = u64::from_le_bytes(length);
        ensure!(
            length <= LONGEST_HEADER && length + 8 <= bytes,
            "it is cut short, or not a safetensors file: its header would have {length} bytes"
        );
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text)?;
        let header: Value = serde_json::from_slice(&text).context("its header is not JSON")?;
        let rows = Tensor::of(&header, "hidden_states")?;
        let ids = Tensor::of(&header, "token_ids")?;
        let (tokens, layers, width) = match rows.shape[..] {
            [tokens, layers, width] => (tokens, layers, width),
            [tokens, width] => (tokens, 1, width),
            _ => bail!("hidden_states has the shape {:?}; [tokens, layers, d] is expected", rows.shape),
        };
        ensure!(
            ids.shape == [tokens],
            "token_ids has the shape {:?}, and hidden_states {:?}: there is one token for each row",
            ids.shape,
            rows.shape
        );
        ensure!(tokens > 0, "it holds no token");
        let element = Element::named(rows.kind).context("of hidden_states")?;
        let token_element = match ids.kind {
            "I64" => TokenElement::I64,
            "I32" => TokenElement::I32,
            "U32" => TokenElement::U32,
            "U16" => TokenElement::U16,
            other => bail!("token_ids are of the type {other}; I64 is expected"),
        };
        let place = |tensor: &Tensor<'_>, element: u64| -> Result<u64> {
            let (from, to) = tensor.place;
            let needed = source::product(&[source::product(&tensor.shape)?, element])?;
            let there = to.checked_sub(from);
            ensure!(
                there == Some(needed),
                "{} has {there:?} bytes, and its shape calls for {needed}",
                tensor.name
            );
            let start = 8 + length + from.min(1 << 56);
            ensure!(
                start + needed <= bytes,
                "it is cut short: {} ends at byte {}, the file at {bytes}",
                tensor.name,
                start + needed
            );
            Ok(start)
        };
        Ok(Request {
            rows_at: place(&rows, element.bytes())?,
            tokens_at: place(&ids, token_element.bytes())?,
            tokens,
            layers: usize::try_from(layers)
                .ok()
                .filter(|layers| (1..=1 << 16).contains(layers))
                .context("no layers")?,
            width: source::width(width)?,
            element,
            token_element,
        })
    }
}

/// A tensor as the header describes it.
struct Tensor<'a> {
    name: &'static str,
    kind: &'a str,
    shape: Vec<u64>,
    /// First byte and one past the last, after the header.
    place: (u64, u64),
}

impl<'a> Tensor<'a> {
    fn of(header: &'a Value, name: &'static str) -> Result<Tensor<'a>> {
        let entry = header.get(name).with_context(|| format!("it has no tensor {name}"))?;
        let numbers =
            |value: &Value| -> Option<Vec<u64>> { value.as_array()?.iter().map(Value::as_u64).collect() };
        let parsed = || {
            let place = numbers(&entry["data_offsets"])?;
            let [from, to] = place[..] else { return None };
            Some(Tensor {
                name,
                kind: entry["dtype"].as_str()?,
                shape: numbers(&entry["shape"])?,
                place: (from, to),
            })
        };
        parsed().with_context(|| format!("its header does not describe the tensor {name}"))
    }
}
