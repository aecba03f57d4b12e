//! The bodies of the requests that upload features: `POST /api/feature/upload-batch`, with the limits of its schema
//! (apps/webapp/app/api/feature/upload-batch/route.tsx of Neuronpedia).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use terminal::foreign_path;

use super::dashboard::{Activation, Feature};
use super::names::Names;

/// Features of a request.
const FEATURES: usize = 128;
/// Numbers of features go to this one.
const LARGEST_INDEX: usize = 10_000_000;
/// Tokens of a context.
const TOKENS: usize = 1024;
/// Tokens at each end of the logits.
const LOGITS: usize = 20;
/// The largest activation that the schema lets bound an interval.
const LARGEST: f64 = 99_999_999.0;
/// Bytes of a body, unless one feature has more. The host of Neuronpedia refuses more than 4.5 MB.
const BYTES: usize = 4_000_000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    model_id: &'a str,
    source: &'a str,
    features: &'a [Box<RawValue>],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Uploaded<'a> {
    index: usize,
    density: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logits: Vec<Logit<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bottom_logits: Vec<Logit<'a>>,
    activations: Vec<Shown<'a>>,
}

#[derive(Serialize)]
struct Logit<'a> {
    token: &'a str,
    value: f64,
}

/// The largest activations are of no interval: their quantiles are left out, since the schema has no room for SAEDashboard's -1.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    tokens: &'a [&'a str],
    values: &'a [f64],
    #[serde(skip_serializing_if = "Option::is_none")]
    quantile_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantile_max: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantile_fraction: Option<f64>,
}

/// The folder of the bodies, open.
pub(super) struct Requests<'a> {
    folder: PathBuf,
    names: &'a Names,
    source: String,
    pub(super) written: usize,
    /// Features without an activation to show, which the schema refuses.
    pub(super) left_out: usize,
}

impl Requests<'_> {
    pub(super) fn create<'a>(folder: &Path, names: &'a Names, features: usize) -> Result<Requests<'a>> {
        ensure!(
            features <= LARGEST_INDEX + 1,
            "Neuronpedia takes the numbers of features up to {LARGEST_INDEX}; --features writes the first of them"
        );
        fs::create_dir(folder).with_context(|| format!("cannot create {}", foreign_path(folder)))?;
        let source = names.source();
        Ok(Requests { folder: folder.to_owned(), names, source, written: 0, left_out: 0 })
    }

    /// Writes the requests of a batch.
    pub(super) fn add(&mut self, features: &[Feature<'_>]) -> Result<()> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        for feature in features {
            let Some(uploaded) = uploaded(feature) else {
                self.left_out += 1;
                continue;
            };
            let piece = to_raw_value(&uploaded)?;
            if pieces.len() == FEATURES || !pieces.is_empty() && bytes + piece.get().len() > BYTES {
                self.write(&pieces)?;
                (pieces, bytes) = (Vec::new(), 0);
            }
            bytes += piece.get().len() + 1;
            pieces.push(piece);
        }
        if pieces.is_empty() { Ok(()) } else { self.write(&pieces) }
    }

    fn write(&mut self, features: &[Box<RawValue>]) -> Result<()> {
        let body = Body { model_id: &self.names.model_id, source: &self.source, features };
        let path = self.folder.join(name(self.written));
        fs::write(&path, serde_json::to_vec(&body)?)
            .with_context(|| format!("cannot write {}", foreign_path(&path)))?;
        self.written += 1;
        Ok(())
    }
}

/// The file of a request.
pub(super) fn name(number: usize) -> String {
    format!("request-{number:05}.json")
}

fn uploaded<'a>(of: &'a Feature<'_>) -> Option<Uploaded<'a>> {
    let logits = |tokens: &'a [&'a str], values: &[f64]| {
        let pairs = tokens.iter().zip(values).take(LOGITS);
        pairs.map(|(token, value)| Logit { token, value: *value }).collect()
    };
    let activations: Vec<Shown<'a>> = of.activations.iter().filter_map(context).collect();
    (!activations.is_empty()).then(|| Uploaded {
        index: of.feature_index,
        density: of.frac_nonzero,
        top_logits: logits(&of.pos_str, &of.pos_values),
        bottom_logits: logits(&of.neg_str, &of.neg_values),
        activations,
    })
}

/// As many tokens as the schema lets through, around the one that the context was chosen for.
fn context<'a>(of: &'a Activation<'_>) -> Option<Shown<'a>> {
    let length = of.tokens.len().min(TOKENS);
    let first = of.qualifying_token_index.saturating_sub(TOKENS / 2).min(of.tokens.len() - length);
    let shown = first..first + length;
    let interval = |value: f64| (!of.top).then_some(value);
    (length > 0).then(|| Shown {
        tokens: &of.tokens[shown.clone()],
        values: &of.values[shown],
        quantile_min: interval(of.bin_min.min(LARGEST)),
        quantile_max: interval(of.bin_max.min(LARGEST)),
        quantile_fraction: interval(of.bin_contains),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A context of tokens with the text `token`.
    fn activation(token: &str, tokens: usize, at: usize) -> Activation<'_> {
        Activation {
            bin_min: -1.0,
            bin_max: 3.0,
            bin_contains: -1.0,
            tokens: vec![token; tokens],
            values: (0..tokens).map(|at| at as f64).collect(),
            qualifying_token_index: at,
            top: true,
        }
    }

    #[test]
    fn a_long_context_is_cut_around_its_token() {
        for (at, first) in [(0, 0), (600, 88), (2999, 1976)] {
            let of = activation("a", 3000, at);
            let cut = context(&of).unwrap();
            assert_eq!((cut.tokens.len(), cut.values.len()), (1024, 1024));
            assert_eq!(cut.values[0], f64::from(first));
            assert!(cut.values.contains(&(at as f64)) && cut.quantile_fraction.is_none());
        }
    }

    #[test]
    fn a_request_has_no_more_than_its_share_of_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names { model_id: "m".into(), layer: 1, set: "s".into(), suffix: None };
        let mut requests = Requests::create(&dir.path().join("requests"), &names, 8).unwrap();
        let long = "x".repeat(1000);
        // About a megabyte each, one of five, and one that never fires.
        let contexts = |count: usize| (0..count).map(|_| activation(&long, 1024, 5)).collect::<Vec<_>>();
        let sizes = [1, 1, 1, 1, 5, 0, 1, 1];
        let features: Vec<Feature<'_>> =
            sizes.iter().enumerate().map(|(index, size)| Feature::with(index, contexts(*size))).collect();
        requests.add(&features).unwrap();
        assert_eq!((requests.written, requests.left_out), (4, 1));
        let sent: Vec<Vec<u64>> = (0..4)
            .map(|number| {
                let body = fs::read(dir.path().join("requests").join(name(number))).unwrap();
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                let features = body["features"].as_array().unwrap();
                features.iter().map(|feature| feature["index"].as_u64().unwrap()).collect()
            })
            .collect();
        assert_eq!(sent, [vec![0, 1, 2], vec![3], vec![4], vec![6, 7]]);
    }
}
