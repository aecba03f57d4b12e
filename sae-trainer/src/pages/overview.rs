//! Runs side by side, as the numbers of tables and figures.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use kernels::loss::LossSpec;
use kernels::reference::{frequency_penalties, penalty, penalty_derivative};
use serde::Serialize;
use serde_json::{Value, json};
use terminal::{Interrupt, foreign_path};

use super::data::short;
use super::subjects::Subject;
use crate::autoencoder::load;
use crate::command::arguments::{FeatureKind, ReportArguments};
use crate::compare::features::{Directions, FeatureMatches, matches as match_features};
use crate::report::progress::{self, proceed};
use crate::runs::folder::{LoggedStep, logged_steps};
use crate::runs::record::Histogram;

/// Steps of a run that figures show, at most.
const STEPS: usize = 500;
/// Up to so many autoencoders each is matched with each, beyond with the first alone.
const ALL_PAIRS: usize = 6;
/// Between these frequencies' logarithms the power law is fitted: rows are too few below, and no feature fires in more than all.
const STRAIGHT: (f64, f64) = (-4.0, -1.0);
/// Points of a curve.
const POINTS: usize = 101;

/// The best matches of the features of autoencoders in others.
pub(super) struct Matches(Vec<(usize, usize, FeatureMatches)>);

impl Matches {
    /// Those of the features of autoencoder `a`: in which other, and what.
    pub(super) fn of(&self, a: usize) -> Vec<(usize, &FeatureMatches)> {
        self.0.iter().filter(|(of, ..)| *of == a).map(|(_, other, found)| (*other, found)).collect()
    }
}

/// Matches features between autoencoders whose decoders write as many numbers.
pub(super) fn matches(subjects: &[Subject], interrupt: &Interrupt) -> Result<Matches> {
    if subjects.len() < 2 {
        return Ok(Matches(Vec::new()));
    }
    let all = subjects.iter().map(|subject| Ok(Directions::of(&subject.folder, &load(&subject.sae)?)));
    let all: Vec<Option<Directions>> = all.collect::<Result<_>>()?;
    let mut pairs = Vec::new();
    for a in 0..all.len() {
        for b in (0..all.len()).filter(|b| *b != a && (all.len() <= ALL_PAIRS || a == 0 || *b == 0)) {
            if let (Some(of_a), Some(of_b)) = (&all[a], &all[b])
                && of_a.decoder.ncols() == of_b.decoder.ncols()
            {
                pairs.push((a, b, of_a, of_b));
            }
        }
    }
    let bar = progress::counted("matching", pairs.len() as u64, "pairs of autoencoders");
    let found = pairs.into_iter().map(|(a, b, of_a, of_b)| {
        proceed(interrupt)?;
        let found = match_features(of_a, of_b)?;
        bar.inc(1);
        Ok((a, b, found))
    });
    let found = found.collect::<Result<_>>()?;
    bar.finish_and_clear();
    Ok(Matches(found))
}

/// The course of a run, a column for each number.
#[derive(Debug, Default, Serialize)]
struct Course {
    step: Vec<u64>,
    tokens: Vec<u64>,
    l0: Vec<f64>,
    l1: Vec<f64>,
    mse_centered: Vec<f64>,
    explained_variance: Vec<f64>,
    dead_features: Vec<u64>,
}

/// A straight line in logarithms through how many features have which frequency.
#[derive(Debug, PartialEq, Serialize)]
struct PowerLaw {
    /// Features by frequency are proportional to frequency^slope.
    slope: f64,
    /// log10 of features per unit of frequency, at a frequency of 1.
    intercept: f64,
    from: f64,
    to: f64,
}

/// Curves of what a run's loss says of one activation a, and of one feature's frequency s.
#[derive(Debug, Serialize)]
struct Curves {
    a: Vec<f64>,
    penalty: Vec<f64>,
    derivative: Vec<f64>,
    log10_s: Vec<f64>,
    min_sparsity: Vec<f64>,
}

/// Everything that the first page shows.
pub(super) fn overview(
    arguments: &ReportArguments,
    subjects: &[Subject],
    matches: &Matches,
    texts: bool,
) -> Result<Value> {
    let evaluations = match &arguments.eval {
        Some(path) => evaluations(path)?,
        None => Vec::new(),
    };
    for evaluation in &evaluations {
        if !subjects.iter().any(|subject| is_of(evaluation, subject)) {
            terminal::say!("an evaluation of {} is of no autoencoder that is reported on", evaluation["sae"]);
        }
    }
    let runs = subjects.iter().map(|subject| {
        let evaluation = evaluations.iter().find(|evaluation| is_of(evaluation, subject));
        run(subject, evaluation)
    });
    Ok(json!({
        "program": concat!("sae-trainer ", env!("CARGO_PKG_VERSION")),
        "texts": texts,
        "kinds": FeatureKind::KINDS.map(FeatureKind::name),
        "runs": runs.collect::<Result<Vec<_>>>()?,
        "matches": matches.0.iter().map(|(a, b, found)| json!({"a": a, "b": b, "found": found})).collect::<Vec<_>>(),
    }))
}

fn run(subject: &Subject, evaluation: Option<&Value>) -> Result<Value> {
    let config = &subject.config;
    let mut found = json!({
        "name": subject.name,
        "folder": subject.folder.to_string_lossy(),
        "architecture": config.architecture,
        "width": config.d_in,
        "features": config.d_sae,
        "hook": config.metadata.hook_name,
        "model": config.metadata.model_name,
        "in_model": evaluation.and_then(|evaluation| evaluation.get("in_model")),
        "on_rows": evaluation.and_then(|evaluation| evaluation.get("on_rows")),
        "index": subject.indexed.as_ref().map(|indexed| {
            let record = &indexed.index.record;
            json!({
                "contexts": record.contexts, "context_length": record.context_length, "rows": record.rows(),
                "firings": record.firings, "hook": record.hook, "model": record.model,
            })
        }),
    });
    if let Some((config, summary)) = &subject.run {
        let loss = &config.settings.step.loss;
        found["summary"] = value(summary)?;
        found["settings"] = value(&config.settings)?;
        found["command_line"] = config.command_line.clone().into();
        found["stores"] = config.stores.iter().map(|store| store.path.to_string_lossy()).collect();
        found["target"] = loss.min_sparsity.map(|term| term.target).into();
        found["course"] = serde_json::to_value(Course::of(&logged_steps(&subject.folder)?))?;
        found["curves"] = serde_json::to_value(Curves::of(loss))?;
        found["power_law"] = serde_json::to_value(PowerLaw::of(&summary.evaluation.log10_frequency))?;
    }
    Ok(found)
}

/// As a file would have it: a float32 as the few digits that tell it from others, not as the float64 nearest to it.
fn value(of: &impl Serialize) -> Result<Value> {
    Ok(serde_json::from_str(&serde_json::to_string(of)?)?)
}

/// What `sae-trainer eval --json` printed.
fn evaluations(path: &Path) -> Result<Vec<Value>> {
    let read = || format!("cannot read {}", foreign_path(path));
    let text = fs::read(path).with_context(read)?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what sae-trainer eval --json prints", foreign_path(path)))
}

fn is_of(evaluation: &Value, subject: &Subject) -> bool {
    let whole = |path: &Path| path.canonicalize().ok();
    let named = evaluation["sae"].as_str().and_then(|path| whole(Path::new(path)));
    named.is_some() && (named == whole(&subject.folder) || named == whole(&subject.sae))
}

impl Course {
    fn of(steps: &[LoggedStep]) -> Course {
        let every = steps.len().div_ceil(STEPS).max(1);
        let mut course = Course::default();
        // With the last one, to which the others lead.
        for step in steps.iter().skip((steps.len() + every - 1) % every).step_by(every) {
            course.step.push(step.step);
            course.tokens.push(step.tokens);
            course.l0.push(short(step.l0));
            course.l1.push(short(step.l1));
            course.mse_centered.push(short(step.mse_centered));
            course.explained_variance.push(short(step.explained_variance));
            course.dead_features.push(step.dead_features);
        }
        course
    }
}

impl PowerLaw {
    /// Least squares in logarithms between the frequencies of [`STRAIGHT`]; none through fewer than three bins.
    fn of(histogram: &Histogram) -> Option<PowerLaw> {
        let width = histogram.bin_width;
        let points: Vec<(f64, f64)> = histogram
            .bins()
            .map(|(lowest, count)| (lowest + width / 2.0, count))
            .filter(|(at, count)| STRAIGHT.0 < *at && *at < STRAIGHT.1 && *count > 0)
            .map(|(at, count)| (at, (count as f64 / bin_span(at, width)).log10()))
            .collect();
        if points.len() < 3 {
            return None;
        }
        let n = points.len() as f64;
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (x, y) = (mean(&|point| point.0), mean(&|point| point.1));
        let slope = mean(&|point| (point.0 - x) * (point.1 - y)) / mean(&|point| (point.0 - x).powi(2));
        let ends = (points[0].0, points[points.len() - 1].0);
        Some(PowerLaw { slope, intercept: y - slope * x, from: ends.0, to: ends.1 })
    }
}

/// How much frequency a bin spans around 10^`at`.
fn bin_span(at: f64, width: f64) -> f64 {
    10_f64.powf(at + width / 2.0) - 10_f64.powf(at - width / 2.0)
}

impl Curves {
    fn of(loss: &LossSpec) -> Curves {
        let part = |at: usize| at as f64 / (POINTS - 1) as f64;
        let a: Vec<f64> = (0..POINTS).map(|at| 2.0 * part(at)).collect();
        let log10_s: Vec<f64> = (0..POINTS).map(|at| -10.0 + 10.0 * part(at)).collect();
        let curve = |at: &[f64], of: &dyn Fn(f64) -> f64| at.iter().map(|x| short(of(*x))).collect();
        Curves {
            penalty: curve(&a, &|a| penalty(loss.penalty, a)),
            derivative: curve(&a, &|a| penalty_derivative(loss.penalty, a)),
            min_sparsity: curve(&log10_s, &|log| frequency_penalties(loss, &[10_f64.powf(log)]).0),
            a,
            log10_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_power_law_is_found() {
        // Features whose density by frequency falls as frequency^-1.5, counted in bins.
        let mut frequencies = Vec::new();
        for (lowest, _) in Histogram::of([].into_iter()).bins() {
            let at = lowest + 0.125;
            let count = (10_f64.powf(-1.5 * at + 2.0) * bin_span(at, 0.25)).round() as usize;
            if (-4.0..-0.5).contains(&at) {
                frequencies.extend(std::iter::repeat_n(10_f64.powf(at), count));
            }
        }
        let found = PowerLaw::of(&Histogram::of(frequencies.into_iter())).unwrap();
        assert!((found.slope + 1.5).abs() < 0.05, "{found:?}");
        assert!((found.intercept - 2.0).abs() < 0.1, "{found:?}");
        assert_eq!(PowerLaw::of(&Histogram::of([1e-3, 1e-2].into_iter())), None);
    }

    #[test]
    fn a_long_course_is_thinned_out_and_keeps_its_end() {
        let steps: Vec<LoggedStep> = (1..=1201)
            .map(|step| {
                serde_json::from_value(json!({
                    "step": step, "tokens": step * 10, "l0": 3.0, "l1": 1.0, "mse_centered": null,
                    "explained_variance": 0.5, "dead_features": 2,
                }))
                .unwrap()
            })
            .collect();
        let course = Course::of(&steps);
        assert!(course.step.len() <= STEPS && course.step.is_sorted());
        assert_eq!((course.step.last(), course.tokens.last()), (Some(&1201), Some(&12010)));
        assert_eq!(Course::of(&steps[..3]).step, [1, 2, 3]);
    }
}
