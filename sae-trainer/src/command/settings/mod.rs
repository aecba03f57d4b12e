//! What the flags mean: every value that defines a run, with defaults filled in.
//!
//! The defaults are the configuration of E. Farrell, "Experiments with an alternative method to promote sparsity in sparse
//! autoencoders" (April 2024): approx-l0 with min-sparsity, the `centered` error, unit decoder norm, no pre-bias. The
//! coefficient is the middle of those swept there, and l1's is that of the L1 model in its comparison. The paper has no tanh
//! or log; their defaults give them the slope at zero that approx-l0 has with its own.

use anyhow::{Context, Result, ensure};
use sae::Init;
use serde::{Deserialize, Serialize};

use crate::command::arguments::{
    DecayChoice, DecoderBias, DecoderNormChoice, EncoderBias, InputScaleChoice, LengthArguments,
    PrecisionChoice, ReviveChoice, SettingArguments, Span,
};
use crate::command::row_settings::RowSettings;
use crate::command::selection;
use crate::engine::{Activation, Adam, DecoderNorm, StepSpec};

mod cosine;
mod identity;
mod initial;
mod loss;
mod names;
mod without_effect;

pub(crate) use cosine::Cosine;
pub(crate) use initial::Initial;
pub(crate) use without_effect::{flags_without_effect, refuse_flags_without_effect};

/// Rows that a run trains on: a number that JSON and float64 hold exactly.
const MOST_ROWS: u64 = 1 << 53;

/// Everything that defines a run, apart from the rows of the store and the weights of `--init-from`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Sizes, loss, optimizer: what a step is.
    pub(crate) step: StepSpec,
    /// Optimizer steps of the whole run.
    pub(crate) steps: u64,
    /// Seed of the initial weights and of the order of the rows.
    pub(crate) seed: u64,
    /// The learning rate after the warm-up.
    pub(crate) lr: f64,
    /// Steps over which the learning rate rises at the start.
    pub(crate) warmup_steps: u64,
    /// The warm-up of the learning rate begins at 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) warmup_from_zero: bool,
    /// How it falls between the warm-up and the last steps; without one it is constant there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cosine: Option<Cosine>,
    /// Steps over which it falls to 0 at the end.
    pub(crate) lr_decay_steps: u64,
    /// Steps over which the penalty's coefficient rises at the start.
    pub(crate) coefficient_warmup_steps: u64,
    /// That warm-up begins at 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) coefficient_warmup_from_zero: bool,
    /// Epsilon in equal parts of the run, as multiples of the loss's; the first is 1.
    pub(crate) epsilon_scales: Vec<f64>,
    /// The weights at the start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) init: Init,
    /// The decoder bias at the start.
    pub(crate) b_dec_init: DecoderBias,
    /// The encoder bias at the start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) b_enc_init: EncoderBias,
    /// The autoencoder that training starts from, instead of random weights.
    pub(crate) init_from: Option<std::path::PathBuf>,
    /// How rows are scaled.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) input_scale: InputScaleChoice,
    /// Rows of BOS tokens are left out.
    pub(crate) drop_bos: bool,
    /// Chunks of the store whose rows are mixed; `None` leaves it to the store.
    pub(crate) mixing_chunks: Option<usize>,
    /// How products are formed.
    #[serde(default)]
    pub(crate) precision: PrecisionChoice,
    /// What becomes of dead features.
    #[serde(default)]
    pub(crate) revive: Revive,
    /// JumpReLU's thresholds at the start.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) threshold_init: f64,
    /// A feature that has not fired in this many rows counts as dead.
    pub(crate) dead_rows: u64,
    /// Rows of the evaluation at the end.
    pub(crate) eval_rows: u64,
    /// Which rows of the stores are read.
    #[serde(default)]
    pub(crate) rows: RowSettings,
}

/// What becomes of dead features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Revive {
    /// Nothing.
    #[default]
    None,
    /// They get new weights, see [`crate::runs::revive`].
    Resample {
        /// Steps between two times.
        every: u64,
    },
}

impl Settings {
    /// The settings of `arguments` for rows of `width`.
    pub(crate) fn resolve(
        arguments: &SettingArguments,
        width: usize,
        initial: Option<Initial>,
    ) -> Result<Settings> {
        let SettingArguments { data, rows, model, length, .. } = arguments;
        let batch = data.batch.unwrap_or(4096);
        ensure!(batch >= 1, "--batch must be at least 1");
        let features = match (initial, model.features) {
            (Some(initial), _) => initial.features as u64,
            (None, Some(features)) => features,
            (None, None) => {
                let times = model.expansion.unwrap_or(32);
                (width as u64).checked_mul(times).with_context(|| {
                    let most = u64::from(u32::MAX) / width as u64;
                    format!("--expansion is {times}, and with rows of width {width} it can be at most {most}")
                })?
            }
        };
        initial::check(arguments, initial)?;
        refuse_flags_without_effect(arguments, initial)?;
        let (loss, epsilon_scales) = loss::resolve(arguments, initial)?;
        let features = usize::try_from(features)?;
        let dead_rows = length.dead_rows.unwrap_or(1_000_000);
        let step = StepSpec {
            width,
            features,
            batch: usize::try_from(batch)?,
            pre_bias: initial.map_or(model.pre_bias, |initial| initial.pre_bias),
            skip: rows.skip || initial.is_some_and(|initial| initial.skip),
            activation: selection::activation(arguments, initial.map(|initial| initial.activation))?,
            loss,
            decoder_norm: match model.decoder_norm.unwrap_or(DecoderNormChoice::Unit) {
                DecoderNormChoice::Unit => DecoderNorm::Unit,
                DecoderNormChoice::Tied => DecoderNorm::Tied,
                DecoderNormChoice::Free => DecoderNorm::Free,
            },
            adam: resolve_adam(length),
            sparsity_window: arguments.loss.sparsity_window.unwrap_or(300),
            prefixes: selection::prefixes(&arguments.selection, features)?,
            dead: selection::dead_loss(arguments, width, dead_rows.div_ceil(batch))?,
            rank_by_decoder_norm: arguments.selection.rank_by_decoder_norm,
            gradient_clip: length.clip_gradient,
            panels: usize::try_from(length.panels.unwrap_or(1))?,
        };
        step.validate()?;
        let steps = match (length.steps, length.tokens.unwrap_or(300_000_000)) {
            (Some(steps), _) => steps,
            (None, tokens) => tokens.div_ceil(batch),
        };
        let of_run = |span: Option<Span>| span.map_or(0, |span| span.of(steps));
        let lr = length.lr.unwrap_or(4e-4);
        let cosine = (length.lr_decay == Some(DecayChoice::Cosine)).then(|| Cosine {
            end: length.lr_end.unwrap_or(lr / 10.0),
            cycles: length.lr_cycles.unwrap_or(1),
        });
        let settings = Settings {
            step,
            steps,
            seed: data.seed.unwrap_or(0),
            lr,
            warmup_steps: of_run(length.warmup_steps),
            warmup_from_zero: length.warmup_from_zero,
            cosine,
            lr_decay_steps: of_run(length.lr_decay_steps),
            coefficient_warmup_steps: of_run(arguments.loss.coefficient_warmup_steps),
            coefficient_warmup_from_zero: arguments.loss.coefficient_warmup_from_zero,
            epsilon_scales,
            init: initial::resolve(model),
            b_dec_init: model.b_dec_init.unwrap_or(DecoderBias::Zeros),
            b_enc_init: model.b_enc_init.unwrap_or_default(),
            init_from: model.init_from.clone(),
            input_scale: match initial {
                Some(initial) if initial.row_norm => InputScaleChoice::RowNorm,
                _ => data.input_scale.unwrap_or_default(),
            },
            drop_bos: data.drop_bos,
            mixing_chunks: data.mixing_chunks,
            precision: length.precision.unwrap_or_default(),
            revive: match length.revive {
                None | Some(ReviveChoice::None | ReviveChoice::Ghost) => Revive::None,
                Some(ReviveChoice::Resample) => {
                    Revive::Resample { every: length.revive_every.unwrap_or(25_000) }
                }
            },
            threshold_init: match step.activation {
                Activation::JumpRelu { .. } => arguments.selection.threshold_init.unwrap_or(0.01),
                _ => 0.0,
            },
            dead_rows,
            eval_rows: length.eval_rows.unwrap_or(1_000_000),
            rows: RowSettings::resolve(rows),
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.steps >= 1, "a run needs at least 1 step");
        let most = MOST_ROWS / self.step.batch as u64;
        ensure!(
            self.steps <= most,
            "{} steps are too many: with batches of {} rows there can be at most {most}",
            self.steps,
            self.step.batch
        );
        // Flags are checked where they are parsed; these may come from an edited file.
        let positive = |value: f64| (value as f32).is_finite() && value as f32 > 0.0;
        ensure!(positive(self.lr), "lr is {}, but it must be a number above 0", self.lr);
        for scale in &self.epsilon_scales {
            ensure!(positive(*scale), "an epsilon is {scale} times the first one: all must be above 0");
        }
        ensure!(
            self.lr_decay_steps <= self.steps,
            "--lr-decay-steps is {}, more than the {} steps of the run",
            self.lr_decay_steps,
            self.steps
        );
        if let Some(norm) = self.init.decoder_norm {
            ensure!(
                positive(norm),
                "the norm of initial decoder rows is {norm}, but it must be a number above 0"
            );
        }
        if let Some(share) = self.b_enc_init.share(self.step.features) {
            ensure!(
                share > 0.0 && share < 1.0,
                "--b-enc-init asks for {} active features in a row, but there are {}: ask for fewer, or for a share of the \
                 rows, as in 0.1",
                share * self.step.features as f64,
                self.step.features
            );
        }
        self.check_cosine()?;
        ensure!(self.revive != Revive::Resample { every: 0 }, "--revive-every must be at least 1");
        ensure!(self.mixing_chunks != Some(0), "--mixing-chunks must be at least 1");
        ensure!(self.dead_rows >= 1 && self.eval_rows >= 1, "--dead-rows and --eval-rows must be at least 1");
        self.rows.check()
    }

    /// Steps without firing after which a feature counts as dead.
    pub(crate) fn dead_steps(&self) -> u64 {
        self.dead_rows.div_ceil(self.step.batch as u64)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn resolve_adam(flags: &LengthArguments) -> Adam {
    let default = Adam::default();
    let (beta1, beta2) = (flags.beta1.unwrap_or(default.beta1), flags.beta2.unwrap_or(default.beta2));
    Adam { beta1, beta2, ..default }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::arguments::SettingArguments;
    use crate::command::line::CommandLine;
    use crate::engine::{FrequencyPenalty, Mse, Penalty};

    /// The flags in the words of a command line.
    pub(super) fn arguments(words: &[&str]) -> SettingArguments {
        let line = ["sae-trainer", "--store", "s"].iter().chain(words);
        CommandLine::try_parse_from(line).unwrap().train.settings
    }

    pub(super) fn resolve(words: &[&str]) -> Result<Settings> {
        Settings::resolve(&arguments(words), 768, None)
    }

    pub(super) fn error(words: &[&str]) -> String {
        resolve(words).unwrap_err().to_string()
    }

    #[test]
    fn without_flags_it_is_the_reference_configuration() {
        let settings = resolve(&[]).unwrap();
        let step = &settings.step;
        assert_eq!((step.features, step.batch, step.sparsity_window), (24_576, 4096, 300));
        assert_eq!(settings.steps, 73_243); // 300M rows
        assert_eq!((settings.lr, settings.warmup_steps, settings.lr_decay_steps), (4e-4, 0, 0));
        assert_eq!(step.loss.mse, Mse::Centered);
        assert_eq!(step.loss.penalty, Penalty::ApproxL0 { epsilon: 0.2 });
        assert_eq!(step.loss.coefficient, 7e-5);
        assert_eq!(step.loss.min_sparsity, Some(FrequencyPenalty { coefficient: 1e-6, target: 1e-5 }));
        assert_eq!(step.loss.max_sparsity, None);
        assert_eq!(step.decoder_norm, DecoderNorm::Unit);
        assert_eq!(step.adam, Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 });
        assert!(!step.pre_bias && !settings.drop_bos);
    }

    #[test]
    fn topk_has_a_k_and_no_penalty_unless_asked_for() {
        let settings = resolve(&["--activation", "topk"]).unwrap();
        assert_eq!(settings.step.activation, Activation::TopK { k: 100 });
        assert_eq!(settings.step.loss.penalty, Penalty::None);
        assert_eq!((settings.step.loss.min_sparsity, settings.loss_name()), (None, "topk-100".to_owned()));
        let settings = resolve(&["--activation", "topk", "--k", "32", "--loss", "l1"]).unwrap();
        assert_eq!(settings.loss_name(), "topk-32-l1");
        assert_eq!(error(&["--k", "32"]), "--k has no effect without --activation topk or batch-topk");
        let told = error(&["--activation", "topk", "--features", "64"]);
        assert!(told.contains("k is 100") && told.contains("at most the number of features"), "{told}");
        assert!(error(&["--activation", "topk", "--k", "0"]).contains("at least 1"));
        // An autoencoder goes on as what it is.
        let initial = Initial {
            activation: Activation::TopK { k: 7 },
            features: 99,
            pre_bias: false,
            skip: false,
            row_norm: false,
        };
        let settings = Settings::resolve(&arguments(&[]), 768, Some(initial)).unwrap();
        assert_eq!(settings.step.activation, Activation::TopK { k: 7 });
    }

    #[test]
    fn excessive_counts_are_refused_with_the_limit() {
        let most = u64::MAX.to_string();
        for line in [
            "--expansion MOST",
            "--features MOST",
            "--features 4G",
            "--batch MOST",
            "--batch 4G --features 64",
            "--steps MOST",
            "--tokens MOST --batch 1 --features 64",
            "--sparsity-window MOST",
            "--sparsity-window 4000000000 --batch 1",
            "--features 1G --sparsity-window 10000",
        ] {
            let words: Vec<String> = line.split(' ').map(|word| word.replace("MOST", &most)).collect();
            let told = error(&words.iter().map(|word| &**word).collect::<Vec<_>>());
            assert!(told.contains("at most"), "{line}: {told}");
        }
        for line in
            ["--eval-rows MOST", "--dead-rows MOST", "--warmup-steps MOST", "--tokens 1000T --batch 1"]
        {
            let words: Vec<String> = line.split(' ').map(|word| word.replace("MOST", &most)).collect();
            let settings = resolve(&words.iter().map(|word| &**word).collect::<Vec<_>>());
            if let Ok(settings) = settings {
                let _ = (settings.dead_steps(), crate::runs::schedule::at(&settings, settings.steps - 1));
            }
        }
    }

    #[test]
    fn numbers_that_no_flag_can_give_are_refused_too() {
        for (name, value) in
            [("lr", -1.0), ("lr", f64::NAN), ("lr", 0.0), ("epsilon", -0.2), ("coefficient", -1.0)]
        {
            let mut arguments = arguments(&[]);
            match name {
                "lr" => arguments.length.lr = Some(value),
                "epsilon" => arguments.loss.epsilon = vec![0.2, value],
                _ => arguments.loss.l0_coefficient = Some(value),
            }
            let told = Settings::resolve(&arguments, 768, None).unwrap_err().to_string();
            assert!(told.contains(name) && told.contains(&value.to_string()) || name == "epsilon", "{told}");
        }
    }

    #[test]
    fn every_flag_arrives() {
        let settings = resolve(&[
            "--loss",
            "tanh",
            "--tanh-coefficient",
            "1e-4",
            "--tanh-scale",
            "3",
            "--mse",
            "sum",
            "--features",
            "2k",
            "--batch",
            "512",
            "--steps",
            "7",
            "--lr",
            "1e-3",
            "--warmup-steps",
            "2",
            "--lr-decay-steps",
            "3",
            "--decoder-norm",
            "tied",
            "--pre-bias",
            "--seed",
            "9",
            "--drop-bos",
            "--max-sparsity-coefficient",
            "2e-6",
            "--max-sparsity-target",
            "0.2",
            "--epsilon",
            "0.3",
            "--min-sparsity-coefficient",
            "0",
            "--sparsity-window",
            "11",
            "--b-dec-init",
            "mean",
            "--mixing-chunks",
            "5",
            "--dead-rows",
            "1000",
            "--eval-rows",
            "3k",
            "--weight-by-decoder-norm",
            "--coefficient-warmup-steps",
            "4",
            "--beta1",
            "0",
            "--beta2",
            "0.99",
        ])
        .unwrap();
        let step = &settings.step;
        assert_eq!((step.features, step.batch, settings.steps), (2000, 512, 7));
        assert_eq!(step.adam, Adam { beta1: 0.0, beta2: 0.99, epsilon: 1e-8 });
        assert_eq!(step.loss.penalty, Penalty::Tanh { scale: 3.0 });
        assert_eq!((step.loss.coefficient, step.loss.mse), (1e-4, Mse::Sum));
        assert_eq!((settings.lr, settings.warmup_steps, settings.lr_decay_steps), (1e-3, 2, 3));
        assert_eq!((step.decoder_norm, step.pre_bias, step.sparsity_window), (DecoderNorm::Tied, true, 11));
        assert_eq!(step.loss.min_sparsity, None);
        assert_eq!(step.loss.max_sparsity, Some(FrequencyPenalty { coefficient: 2e-6, target: 0.2 }));
        assert_eq!((step.loss.frequency_epsilon, step.loss.weight_by_decoder_norm), (0.3, true));
        assert_eq!((settings.seed, settings.drop_bos, settings.mixing_chunks), (9, true, Some(5)));
        assert_eq!((settings.dead_steps(), settings.eval_rows), (2, 3000));
        assert_eq!((settings.b_dec_init, settings.coefficient_warmup_steps), (DecoderBias::Mean, 4));
    }

    #[test]
    fn impossible_values_are_refused() {
        assert!(error(&["--steps", "0"]).contains("at least 1 step"));
        assert!(error(&["--steps", "5", "--lr-decay-steps", "6"]).contains("--lr-decay-steps"));
        assert!(error(&["--features", "0"]).contains("features"));
        assert!(error(&["--sparsity-window", "0"]).contains("sparsity_window"));
    }
}
