//! What a run records: the lines of `metrics.jsonl`, and the summary.
//!
//! The crate's `README.md` describes every field. All fields except `timing` depend only on the run's settings and data, so a
//! resumed run writes the lines that an uninterrupted one would have written.

use kernels::stats::log10_frequency;
use serde::{Deserialize, Deserializer, Serialize};

use crate::command::settings::Settings;
use crate::engine::{Engine, Evaluation, Path, Schedule, StepError, StepReport, Sums};

/// One training step: the values of its batch, before the weights changed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct StepRecord {
    kind: &'static str,
    /// Steps done, this one included.
    pub(crate) step: u64,
    /// Rows trained on, this batch included.
    pub(crate) tokens: u64,
    lr: f64,
    coefficient_scale: f64,
    epsilon_scale: f64,
    loss: f64,
    mse: f64,
    penalty: f64,
    min_sparsity: f64,
    max_sparsity: f64,
    #[serde(flatten)]
    metrics: Metrics,
    features_below_target: usize,
    path: &'static str,
    rechecked: f64,
    pub(crate) timing: Timing,
}

/// The evaluation of the finished autoencoder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct EvaluationRecord {
    pub(crate) kind: String,
    pub(crate) step: u64,
    /// Rows evaluated.
    pub(crate) rows: u64,
    /// Rows that could be evaluated: those of one pass over what `evaluated_on` says.
    #[serde(alias = "rows_of_the_store")]
    pub(crate) rows_available: u64,
    /// Which rows these are. Older versions held none out.
    #[serde(default)]
    pub(crate) evaluated_on: EvaluatedOn,
    #[serde(flatten)]
    pub(crate) metrics: Metrics,
    #[serde(deserialize_with = "number")]
    pub(crate) penalty: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) decoder_norm_mean: f64,
    pub(crate) log10_frequency: Histogram,
}

/// Which rows an autoencoder is evaluated on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EvaluatedOn {
    /// Rows of the store that training saw too.
    #[default]
    TrainingRows,
    /// Rows of the store that training never sees.
    HeldOutRows,
    /// The rows of other stores.
    OtherStores,
}

impl EvaluatedOn {
    /// `held-out rows`
    pub(crate) fn words(self) -> &'static str {
        match self {
            EvaluatedOn::TrainingRows => "rows that training saw too",
            EvaluatedOn::HeldOutRows => "held-out rows",
            EvaluatedOn::OtherStores => "rows of other stores",
        }
    }
}

/// The rows of an evaluation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EvaluatedRows {
    pub(crate) on: EvaluatedOn,
    /// Rows that can be evaluated.
    pub(crate) available: u64,
}

/// Reads what is not a finite number, which JSON has as null: an undefined metric, NaN.
pub(crate) fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The metrics that step and evaluation share. NaN where a metric is undefined, in JSON null.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Metrics {
    #[serde(deserialize_with = "number")]
    pub(crate) l0: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) l0_std: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) l1: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) mse_centered: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) mse_uncentered: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) mse_sum: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) explained_variance: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) explained_variance_uncentered: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) cosine_similarity: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) l2_ratio: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) density: f64,
    pub(crate) dead_features: usize,
    /// The rows in which a dead feature did not fire.
    pub(crate) dead_rows: u64,
    pub(crate) features_over_1_percent: usize,
    pub(crate) features_over_10_percent: usize,
    pub(crate) features_over_20_percent: usize,
}

/// Timings, which differ from run to run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Timing {
    /// Since this process began to train.
    pub(crate) seconds: f64,
    /// Since the line before.
    pub(crate) tokens_per_second: f64,
}

/// How many features have a log10(frequency + 1e-10) in [-10 + k/4, -10 + (k+1)/4), for k = 0 to 39; the
/// last bin includes 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Histogram {
    lowest: f64,
    pub(crate) bin_width: f64,
    counts: Vec<usize>,
}

impl Histogram {
    /// The lower end and the count of every bin.
    pub(crate) fn bins(&self) -> impl Iterator<Item = (f64, usize)> {
        self.counts.iter().enumerate().map(|(at, &count)| (self.lowest + at as f64 * self.bin_width, count))
    }

    /// Of the features' frequencies.
    pub(crate) fn of(frequencies: impl Iterator<Item = f64>) -> Histogram {
        let mut counts = vec![0; 40];
        for s in frequencies {
            let bin = ((log10_frequency(s) + 10.0) * 4.0).max(0.0) as usize;
            counts[bin.min(39)] += 1;
        }
        Histogram { lowest: -10.0, bin_width: 0.25, counts }
    }
}

/// Features that did not fire in the last `dead_steps` batches, or in none if there were fewer.
pub(crate) fn dead_features<'a>(
    settings: &Settings,
    step: u64,
    steps_since_fired: impl Iterator<Item = &'a u64>,
) -> usize {
    let window = settings.dead_steps().min(step);
    steps_since_fired.filter(|&&since| since >= window).count()
}

/// How many features fire rarely or often.
struct Activity {
    dead_features: usize,
    dead_rows: u64,
    over: [usize; 3],
}

impl Metrics {
    /// Of an evaluation, in all of whose rows a dead feature is silent.
    pub(crate) fn of(evaluation: &Evaluation) -> Metrics {
        let activity = Activity {
            dead_features: evaluation.dead_features(),
            dead_rows: evaluation.sums.rows,
            over: [0.01, 0.1, 0.2].map(|density| evaluation.features_over(density)),
        };
        Metrics::new(&evaluation.sums, activity)
    }

    fn new(sums: &Sums, activity: Activity) -> Metrics {
        let [features_over_1_percent, features_over_10_percent, features_over_20_percent] = activity.over;
        Metrics {
            l0: sums.l0(),
            l0_std: sums.l0_std(),
            l1: sums.l1(),
            mse_centered: sums.mse_centered(),
            mse_uncentered: sums.mse_uncentered(),
            mse_sum: sums.mse_sum(),
            explained_variance: sums.explained_variance(),
            explained_variance_uncentered: sums.explained_variance_uncentered(),
            cosine_similarity: sums.cosine_similarity(),
            l2_ratio: sums.l2_ratio(),
            density: sums.density(),
            dead_features: activity.dead_features,
            dead_rows: activity.dead_rows,
            features_over_1_percent,
            features_over_10_percent,
            features_over_20_percent,
        }
    }
}

impl StepRecord {
    pub(crate) fn new(
        settings: &Settings,
        schedule: &Schedule,
        report: &StepReport,
        engine: &dyn Engine,
        timing: Timing,
    ) -> Result<StepRecord, StepError> {
        let batch = settings.step.batch as u64;
        let frequencies = engine.frequencies()?;
        let over = |limit: f32| frequencies.iter().filter(|&&s| s > limit).count();
        let silent = engine.steps_since_fired()?;
        let activity = Activity {
            dead_features: dead_features(settings, report.step, silent.iter()),
            dead_rows: settings.dead_steps().min(report.step) * batch,
            over: [over(0.01), over(0.1), over(0.2)],
        };
        let terms = &report.terms;
        Ok(StepRecord {
            kind: "step",
            step: report.step,
            tokens: report.step * batch,
            lr: schedule.lr,
            coefficient_scale: schedule.coefficient_scale,
            epsilon_scale: schedule.epsilon_scale,
            loss: terms.loss(),
            mse: terms.mse,
            penalty: terms.penalty,
            min_sparsity: terms.min_sparsity,
            max_sparsity: terms.max_sparsity,
            metrics: Metrics::new(&report.sums, activity),
            features_below_target: terms.below_target,
            path: match report.path {
                Path::Dense => "dense",
                Path::Sparse => "sparse",
            },
            rechecked: report.rechecked,
            timing,
        })
    }

    /// Features that had not fired for a while.
    pub(crate) fn dead_features(&self) -> usize {
        self.metrics.dead_features
    }
}

impl EvaluationRecord {
    pub(crate) fn new(
        step: u64,
        evaluation: &Evaluation,
        rows: EvaluatedRows,
        decoder_norm_mean: f64,
    ) -> EvaluationRecord {
        let sums = &evaluation.sums;
        EvaluationRecord {
            kind: "evaluation".into(),
            step,
            rows: sums.rows,
            rows_available: rows.available,
            evaluated_on: rows.on,
            metrics: Metrics::of(evaluation),
            penalty: sums.penalty(),
            decoder_norm_mean,
            log10_frequency: Histogram::of(evaluation.feature_densities().into_iter()),
        }
    }
}

/// A finished run in one object: `summary.json`, and what `--json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// The run's folder.
    pub(crate) run: std::path::PathBuf,
    pub(crate) program: String,
    /// What makes the activations sparse: the penalty's name, or `topk-100`.
    pub(crate) loss: String,
    pub(crate) coefficient: f64,
    pub(crate) width: usize,
    pub(crate) features: usize,
    pub(crate) batch: usize,
    pub(crate) steps: u64,
    /// Rows trained on, those of later passes over the store included.
    pub(crate) tokens: u64,
    /// Lines of `metrics.jsonl`; absent in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) logged_lines: Option<u64>,
    /// The id of the run that it belongs to; absent in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run_id: Option<String>,
    /// The part of the run trained by the process that finished it, and its speed.
    pub(crate) session: Session,
    pub(crate) evaluation: EvaluationRecord,
}

/// The speed of one process' part of a run, evaluation not included.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) steps: u64,
    #[serde(deserialize_with = "number")]
    pub(crate) seconds: f64,
    #[serde(deserialize_with = "number")]
    pub(crate) tokens_per_second: f64,
    /// Seconds in which training waited for rows of the store.
    #[serde(deserialize_with = "number")]
    pub(crate) waiting_seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_has_a_place_for_every_frequency() {
        let histogram = Histogram::of([0.0, 1.0, 0.5, 1e-5, 1e-4].into_iter());
        assert_eq!(histogram.counts.iter().sum::<usize>(), 5);
        assert_eq!(histogram.counts[0], 1); // dead
        assert_eq!(histogram.counts[39], 1); // always on
        assert_eq!(histogram.counts[38], 1); // log10 0.5 = -0.30
        assert_eq!(histogram.counts[20], 1); // -5 + 4e-6
        assert_eq!(histogram.counts[24], 1);
    }

    #[test]
    fn dead_means_silent_in_the_window_or_since_the_start() {
        use clap::Parser;
        let line = ["sae-trainer", "--batch", "10", "--dead-rows", "30"];
        let arguments = crate::command::line::CommandLine::try_parse_from(line).unwrap().train.settings;
        let settings = Settings::resolve(&arguments, 4, None).unwrap();
        // After 2 steps: one fired now, one in the first step, one never.
        assert_eq!(dead_features(&settings, 2, [0, 1, 2].iter()), 1);
        // After 9 steps, window of 3.
        assert_eq!(dead_features(&settings, 9, [0, 2, 3, 9].iter()), 2);
    }
}
