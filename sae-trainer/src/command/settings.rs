//! What the flags mean: every value that defines a run, with defaults filled in.
//!
//! The defaults are the configuration of E. Farrell, "Experiments with an alternative method to promote sparsity in sparse
//! autoencoders" (April 2024): approx-l0 with min-sparsity, the `centered` error, unit decoder norm, no pre-bias. The
//! coefficient is the middle of those swept there, and l1's is that of the L1 model in its comparison. The paper has no tanh
//! or log; their defaults give them the slope at zero that approx-l0 has with its own.

use anyhow::{Context, Result, bail, ensure};
use sae::{EncoderInit, Init};
use serde::{Deserialize, Serialize};

use crate::command::arguments::{
    ActivationChoice, DecayChoice, DecoderBias, DecoderNormChoice, EncoderInitChoice, InitialNorm,
    InputScaleChoice, LengthArguments, LossArguments, ModelArguments, MseChoice, PenaltyChoice,
    PrecisionChoice, ReviveChoice, SettingArguments,
};
use crate::command::row_settings::RowSettings;
use crate::command::selection;
use crate::engine::{Activation, Adam, DecoderNorm, FrequencyPenalty, LossSpec, Mse, Penalty, StepSpec};

/// The penalty where none is asked for: the k largest need none.
fn penalty_of(arguments: &SettingArguments, initial: Option<Initial>) -> PenaltyChoice {
    let default = match selection::activation_choice(arguments, initial.map(|initial| initial.activation)) {
        ActivationChoice::TopK | ActivationChoice::BatchTopK => PenaltyChoice::None,
        ActivationChoice::JumpRelu => PenaltyChoice::Step,
        ActivationChoice::Relu => PenaltyChoice::ApproxL0,
    };
    arguments.loss.loss.unwrap_or(default)
}

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
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) threshold_init: f64,
    /// A feature that has not fired in this many rows counts as dead.
    pub(crate) dead_rows: u64,
    /// Rows of the evaluation at the end.
    pub(crate) eval_rows: u64,
    /// Which rows of the stores are read.
    #[serde(default)]
    pub(crate) rows: RowSettings,
}

/// A fall along half a cosine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cosine {
    /// The learning rate that it ends at.
    pub(crate) end: f64,
    /// How often it is gone through, each time from the top.
    pub(crate) cycles: u64,
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

/// The settings that the autoencoder named by `--init-from` fixes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Initial {
    pub(crate) activation: Activation,
    pub(crate) features: usize,
    pub(crate) pre_bias: bool,
    pub(crate) skip: bool,
    /// Its rows are scaled each.
    pub(crate) row_norm: bool,
}

impl Settings {
    /// The settings of `arguments` for rows of `width`.
    pub(crate) fn resolve(
        arguments: &SettingArguments,
        width: usize,
        initial: Option<Initial>,
    ) -> Result<Settings> {
        let SettingArguments { data, rows, model, loss, length, .. } = arguments;
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
        if let Some(initial) = initial {
            ensure!(
                initial.pre_bias || !model.pre_bias,
                "--pre-bias does not fit --init-from: that autoencoder was trained without it"
            );
            let scale = data.input_scale.unwrap_or_default();
            let fits = (scale == InputScaleChoice::RowNorm) == initial.row_norm;
            ensure!(
                fits || (initial.row_norm && data.input_scale.is_none()),
                "--input-scale does not fit --init-from: that autoencoder was trained {} row-norm",
                if initial.row_norm { "with" } else { "without" }
            );
        }
        ensure!(
            rows.target.is_empty() || initial.is_none_or(|initial| !initial.pre_bias),
            "--target does not fit --init-from: that autoencoder subtracts the decoder bias from what it reads, and a \
             transcoder's decoder bias is one of its target"
        );
        ensure!(
            rows.target.is_empty() || data.input_scale.unwrap_or_default() == InputScaleChoice::None,
            "--input-scale does not fit --target: rows of two places in a model have two scales; leave one of them out"
        );
        ensure!(
            !rows.target.is_empty() || !initial.is_some_and(|initial| initial.skip),
            "--init-from is a transcoder with a skip connection, which needs --target"
        );
        ensure!(
            !rows.target.is_empty() || !rows.skip,
            "--skip is for transcoders: what an autoencoder reads it would reconstruct without a feature; add --target"
        );
        refuse_flags_without_effect(arguments, initial)?;
        if let choice @ (PenaltyChoice::Step | PenaltyChoice::Quadratic) = penalty_of(arguments, initial) {
            ensure!(
                selection::activation_choice(arguments, initial.map(|initial| initial.activation))
                    == ActivationChoice::JumpRelu,
                "--loss {} needs --activation jump-relu, whose thresholds are all that follows the number of active features",
                value_name(&choice)
            );
        }
        let (loss, epsilon_scales) = resolve_loss(loss, penalty_of(arguments, initial))?;
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
            gradient_clip: length.clip_gradient,
        };
        step.validate()?;
        let steps = match (length.steps, length.tokens.unwrap_or(300_000_000)) {
            (Some(steps), _) => steps,
            (None, tokens) => tokens.div_ceil(batch),
        };
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
            warmup_steps: length.warmup_steps.unwrap_or(0),
            warmup_from_zero: length.warmup_from_zero,
            cosine,
            lr_decay_steps: length.lr_decay_steps.unwrap_or(0),
            coefficient_warmup_steps: arguments.loss.coefficient_warmup_steps.unwrap_or(0),
            coefficient_warmup_from_zero: arguments.loss.coefficient_warmup_from_zero,
            epsilon_scales,
            init: resolve_init(model),
            b_dec_init: model.b_dec_init.unwrap_or(DecoderBias::Zeros),
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
        self.check_cosine()?;
        ensure!(self.revive != Revive::Resample { every: 0 }, "--revive-every must be at least 1");
        ensure!(self.mixing_chunks != Some(0), "--mixing-chunks must be at least 1");
        ensure!(self.dead_rows >= 1 && self.eval_rows >= 1, "--dead-rows and --eval-rows must be at least 1");
        self.rows.check()
    }

    fn check_cosine(&self) -> Result<()> {
        let Some(Cosine { end, cycles }) = self.cosine else { return Ok(()) };
        ensure!(
            (0.0..=self.lr).contains(&end),
            "--lr-end is {end}, but it must be at least 0 and at most the learning rate, {}",
            self.lr
        );
        ensure!(
            end > 0.0 || self.lr_decay_steps == 0,
            "--lr-decay-steps has no effect where --lr-end is 0: the cosine has reached 0 before; leave one of them out"
        );
        let steps = self.cosine_steps();
        ensure!(
            steps >= 1,
            "--warmup-steps and --lr-decay-steps leave none of the {} steps of the run to --lr-decay cosine: shorten them",
            self.steps
        );
        ensure!(
            (1..=steps).contains(&cycles),
            "--lr-cycles is {cycles}, but it must be at least 1 and at most {steps}, the steps of the run without those of \
             --warmup-steps and --lr-decay-steps"
        );
        Ok(())
    }

    /// The steps between the warm-up and the last ones, over which a cosine extends.
    pub(crate) fn cosine_steps(&self) -> u64 {
        self.steps.saturating_sub(self.warmup_steps.saturating_add(self.lr_decay_steps))
    }

    /// Steps without firing after which a feature counts as dead.
    pub(crate) fn dead_steps(&self) -> u64 {
        self.dead_rows.div_ceil(self.step.batch as u64)
    }

    /// The penalty's name on the command line.
    pub(crate) fn penalty_name(&self) -> &'static str {
        match self.step.loss.penalty {
            Penalty::None => "none",
            Penalty::ApproxL0 { .. } => "approx-l0",
            Penalty::L1 => "l1",
            Penalty::Tanh { .. } => "tanh",
            Penalty::Log { .. } => "log",
            Penalty::Step => "step",
            Penalty::Quadratic { .. } => "quadratic",
        }
    }

    /// What makes the activations sparse: the penalty's name, or `topk-100`, or both.
    pub(crate) fn loss_name(&self) -> String {
        let selection = match self.step.activation {
            Activation::Relu => None,
            Activation::TopK { k } => Some(format!("topk-{k}")),
            Activation::BatchTopK { k, .. } => Some(format!("batch-topk-{k}")),
            Activation::JumpRelu { .. } => Some("jump-relu".to_owned()),
        };
        let penalty = Some(self.penalty_name()).filter(|name| *name != "none" || selection.is_none());
        let prefixes = (!self.step.prefixes.is_empty()).then_some("matryoshka");
        let names = [prefixes, selection.as_deref(), penalty].into_iter().flatten();
        names.collect::<Vec<_>>().join("-")
    }

    /// Where `other` differs, one sentence for each value; what may differ between the parts of a resumed
    /// run is left out.
    pub(crate) fn differences(&self, other: &Settings) -> Vec<String> {
        let mut found = Vec::new();
        compare("", &json(self), &json(other), &mut found);
        // Nothing before the last step depends on how many there are, unless the schedule is stretched.
        let stretched = self.lr_decay_steps > 0 || self.epsilon_scales.len() > 1 || self.cosine.is_some();
        found.retain(|(name, _)| name != "eval_rows" && (name != "steps" || stretched));
        found.into_iter().map(|(_, sentence)| sentence).collect()
    }
}

impl Settings {
    /// An id for a run that begins with these settings: a checksum of all but what may change when it is resumed.
    pub(crate) fn run_id(&self) -> String {
        let mut value = json(self);
        for what_may_change in ["steps", "eval_rows"] {
            value[what_may_change] = serde_json::Value::Null;
        }
        format!("{:08x}", crc32c::crc32c(value.to_string().as_bytes()))
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn json(settings: &Settings) -> serde_json::Value {
    serde_json::to_value(settings).expect("settings are plain data")
}

/// Walks two JSON values and notes the leaves that differ, with their dotted paths.
fn compare(
    path: &str,
    left: &serde_json::Value,
    right: &serde_json::Value,
    found: &mut Vec<(String, String)>,
) {
    use serde_json::Value;
    if let (Value::Object(left), Value::Object(right)) = (left, right) {
        let names: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
        for name in names {
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let value = |side: &serde_json::Map<String, Value>| side.get(name).cloned().unwrap_or_default();
            compare(&below, &value(left), &value(right), found);
        }
    } else if left != right {
        let name = path.trim_start_matches("step.").trim_start_matches("rows.");
        found.push((path.to_owned(), format!("{name} is {left} there and {right} here")));
    }
}

fn resolve_init(flags: &ModelArguments) -> Init {
    Init {
        encoder: match flags.encoder_init {
            None | Some(EncoderInitChoice::Kaiming) => EncoderInit::Kaiming,
            Some(EncoderInitChoice::Transpose) => {
                EncoderInit::Transpose { scale: flags.encoder_init_scale.unwrap_or(1.0) }
            }
        },
        decoder_norm: match flags.decoder_init_norm {
            None => Some(1.0),
            Some(InitialNorm::Norm(norm)) => Some(norm),
            Some(InitialNorm::Free) => None,
        },
    }
}

fn resolve_adam(flags: &LengthArguments) -> Adam {
    let default = Adam::default();
    let (beta1, beta2) = (flags.beta1.unwrap_or(default.beta1), flags.beta2.unwrap_or(default.beta2));
    Adam { beta1, beta2, ..default }
}

/// The loss, and epsilon in equal parts of the run as multiples of the loss's.
fn resolve_loss(flags: &LossArguments, choice: PenaltyChoice) -> Result<(LossSpec, Vec<f64>)> {
    let epsilons = if flags.epsilon.is_empty() { vec![0.2] } else { flags.epsilon.clone() };
    let epsilon = epsilons[0] as f32;
    let (penalty, coefficient) = match choice {
        PenaltyChoice::ApproxL0 => (Penalty::ApproxL0 { epsilon }, flags.l0_coefficient.unwrap_or(7e-5)),
        PenaltyChoice::L1 => (Penalty::L1, flags.l1_coefficient.unwrap_or(8e-5)),
        PenaltyChoice::Tanh => {
            let scale = flags.tanh_scale.unwrap_or(5.0) as f32;
            (Penalty::Tanh { scale }, flags.tanh_coefficient.unwrap_or(7e-5))
        }
        PenaltyChoice::Log => (Penalty::Log { epsilon }, flags.log_coefficient.unwrap_or(7e-5)),
        PenaltyChoice::Step => (Penalty::Step, flags.l0_coefficient.unwrap_or(7e-5)),
        PenaltyChoice::Quadratic => {
            let target =
                flags.target_l0.context("--loss quadratic needs the L0 to aim at: give --target-l0")?;
            (Penalty::Quadratic { target: target as f32 }, flags.l0_coefficient.unwrap_or(7e-5))
        }
        PenaltyChoice::None => (Penalty::None, 0.0),
    };
    let (min, max) = frequency_coefficients(flags, choice);
    let frequency_penalty =
        |coefficient, target| (coefficient != 0.0).then_some(FrequencyPenalty { coefficient, target });
    let loss = LossSpec {
        mse: match flags.mse.unwrap_or(MseChoice::Centered) {
            MseChoice::Sum => Mse::Sum,
            MseChoice::Centered => Mse::Centered,
            MseChoice::Uncentered => Mse::Uncentered,
        },
        penalty,
        coefficient,
        min_sparsity: frequency_penalty(min, flags.min_sparsity_target.unwrap_or(1e-5)),
        max_sparsity: frequency_penalty(max, flags.max_sparsity_target.unwrap_or(0.1)),
        mean_density: flags.mean_density_coefficient.unwrap_or(0.0),
        log_density: flags.log_density_coefficient.unwrap_or(0.0),
        frequency_epsilon: epsilon,
        weight_by_decoder_norm: flags.weight_by_decoder_norm,
    };
    Ok((loss, epsilons.iter().map(|e| e / epsilons[0]).collect()))
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// The name of a choice on the command line.
fn value_name(choice: &PenaltyChoice) -> String {
    let value = clap::ValueEnum::to_possible_value(choice).expect("every penalty has a name");
    value.get_name().to_owned()
}

/// A flag of another loss is a mistake, and is not ignored.
pub(crate) fn refuse_flags_without_effect(
    arguments: &SettingArguments,
    initial: Option<Initial>,
) -> Result<()> {
    let Some(flag) = flags_without_effect(arguments, initial).into_iter().next() else { return Ok(()) };
    match flag {
        "--min-sparsity-target" => {
            bail!("--min-sparsity-target has no effect without --min-sparsity-coefficient")
        }
        "--max-sparsity-target" => {
            bail!("--max-sparsity-target has no effect without --max-sparsity-coefficient")
        }
        "--k" => bail!("--k has no effect without --activation topk or batch-topk"),
        "--bandwidth" | "--threshold-init" | "--jump-to-input" | "--pre-activation-coefficient" => {
            bail!("{flag} has no effect without --activation jump-relu")
        }
        "--threshold-rate" | "--threshold-after" | "--threshold-from-zero" => {
            bail!("{flag} has no effect without --activation batch-topk")
        }
        "--matryoshka-weight" => bail!("--matryoshka-weight has no effect without --matryoshka"),
        "--aux-coefficient" | "--aux-loss" => bail!("{flag} has no effect without --aux-k"),
        "--revive-every" => bail!("--revive-every has no effect without --revive resample"),
        "--encoder-init-scale" => bail!("{flag} has no effect without --encoder-init transpose"),
        "--lr-end" | "--lr-cycles" => bail!("{flag} has no effect without --lr-decay cosine"),
        "--warmup-from-zero" => bail!("{flag} has no effect without --warmup-steps"),
        "--coefficient-warmup-from-zero" => bail!("{flag} has no effect without --coefficient-warmup-steps"),
        flag => {
            let choice = penalty_of(arguments, initial);
            let name = value_name(&choice);
            bail!("{flag} has no effect with --loss {name}; leave it out or choose another loss")
        }
    }
}

/// The flags that have no effect next to the others, such as `--l1-coefficient` with `--loss tanh`.
pub(crate) fn flags_without_effect(
    arguments: &SettingArguments,
    initial: Option<Initial>,
) -> Vec<&'static str> {
    let SettingArguments { model, selection, loss: flags, dead, length, .. } = arguments;
    use PenaltyChoice::{ApproxL0, L1, Log, None, Quadratic, Step, Tanh};
    let choice = penalty_of(arguments, initial);
    let activation = selection::activation_choice(arguments, initial.map(|initial| initial.activation));
    // What training starts from may be of any kind, as long as it has not been looked at.
    let unknown = initial.is_none() && model.init_from.is_some() && model.activation.is_none();
    let jump = unknown || activation == ActivationChoice::JumpRelu;
    let batch_topk = unknown || activation == ActivationChoice::BatchTopK;
    let given = |coefficient: Option<f64>| coefficient.is_some_and(|coefficient| coefficient != 0.0);
    let densities = given(flags.mean_density_coefficient) || given(flags.log_density_coefficient);
    let (min, max) = frequency_coefficients(flags, choice);
    let checks = [
        ("--l0-coefficient", flags.l0_coefficient.is_some(), matches!(choice, ApproxL0 | Step | Quadratic)),
        ("--target-l0", flags.target_l0.is_some(), choice == Quadratic),
        ("--l1-coefficient", flags.l1_coefficient.is_some(), choice == L1),
        ("--tanh-coefficient", flags.tanh_coefficient.is_some(), choice == Tanh),
        ("--tanh-scale", flags.tanh_scale.is_some(), choice == Tanh),
        ("--log-coefficient", flags.log_coefficient.is_some(), choice == Log),
        (
            "--epsilon",
            !flags.epsilon.is_empty(),
            matches!(choice, ApproxL0 | Log) || min != 0.0 || max != 0.0 || densities,
        ),
        ("--coefficient-warmup-steps", flags.coefficient_warmup_steps.is_some(), choice != None),
        (
            "--weight-by-decoder-norm",
            flags.weight_by_decoder_norm,
            !matches!(choice, None | Step | Quadratic),
        ),
        ("--min-sparsity-target", flags.min_sparsity_target.is_some(), min != 0.0),
        ("--max-sparsity-target", flags.max_sparsity_target.is_some(), max != 0.0),
        ("--k", model.k.is_some(), activation == ActivationChoice::TopK || batch_topk),
        ("--bandwidth", selection.bandwidth.is_some(), jump),
        ("--threshold-init", selection.threshold_init.is_some(), jump),
        ("--jump-to-input", selection.jump_to_input, jump),
        ("--threshold-rate", selection.threshold_rate.is_some(), batch_topk),
        ("--threshold-after", selection.threshold_after.is_some(), batch_topk),
        ("--threshold-from-zero", selection.threshold_from_zero, batch_topk),
        ("--matryoshka-weight", selection.matryoshka_weight.is_some(), !selection.matryoshka.is_empty()),
        ("--aux-coefficient", dead.aux_coefficient.is_some(), dead.aux_k.is_some()),
        ("--aux-loss", dead.aux_loss.is_some(), dead.aux_k.is_some()),
        ("--pre-activation-coefficient", given(dead.pre_activation_coefficient), jump),
        ("--revive-every", length.revive_every.is_some(), length.revive == Some(ReviveChoice::Resample)),
        (
            "--encoder-init-scale",
            model.encoder_init_scale.is_some(),
            model.encoder_init == Some(EncoderInitChoice::Transpose),
        ),
        ("--lr-end", length.lr_end.is_some(), length.lr_decay == Some(DecayChoice::Cosine)),
        ("--lr-cycles", length.lr_cycles.is_some(), length.lr_decay == Some(DecayChoice::Cosine)),
        ("--warmup-from-zero", length.warmup_from_zero, length.warmup_steps.is_some()),
        (
            "--coefficient-warmup-from-zero",
            flags.coefficient_warmup_from_zero,
            flags.coefficient_warmup_steps.is_some() && choice != None,
        ),
    ];
    checks.into_iter().filter(|(_, given, used)| *given && !used).map(|(flag, ..)| flag).collect()
}

/// The coefficients of min- and max-sparsity; 0 turns them off.
fn frequency_coefficients(flags: &LossArguments, choice: PenaltyChoice) -> (f64, f64) {
    use PenaltyChoice::{ApproxL0, Log, Tanh};
    let protects = matches!(choice, ApproxL0 | Tanh | Log);
    let min = flags.min_sparsity_coefficient.unwrap_or(if protects { 1e-6 } else { 0.0 });
    (min, flags.max_sparsity_coefficient.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::line::CommandLine;

    fn arguments(words: &[&str]) -> SettingArguments {
        let line = ["sae-trainer", "--store", "s"].iter().chain(words);
        CommandLine::try_parse_from(line).unwrap().train.settings
    }

    fn resolve(words: &[&str]) -> Result<Settings> {
        Settings::resolve(&arguments(words), 768, None)
    }

    fn error(words: &[&str]) -> String {
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
    fn l1_has_the_reference_coefficient_and_no_frequency_penalty() {
        let settings = resolve(&["--loss", "l1"]).unwrap();
        assert_eq!(settings.step.loss.penalty, Penalty::L1);
        assert_eq!(settings.step.loss.coefficient, 8e-5);
        assert_eq!(settings.step.loss.min_sparsity, None);
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
    fn several_epsilons_become_a_schedule() {
        let settings = resolve(&["--epsilon", "0.2,0.1,0.05"]).unwrap();
        assert_eq!(settings.step.loss.penalty, Penalty::ApproxL0 { epsilon: 0.2 });
        assert_eq!(settings.epsilon_scales, [1.0, 0.5, 0.25]);
    }

    #[test]
    fn flags_of_another_loss_are_refused_by_name() {
        assert!(
            error(&["--loss", "l1", "--l0-coefficient", "1e-4"]).contains("--l0-coefficient has no effect")
        );
        assert!(
            error(&["--loss", "l1", "--epsilon", "0.1"]).contains("--epsilon has no effect with --loss l1")
        );
        assert!(error(&["--loss", "none", "--weight-by-decoder-norm"]).contains("--weight-by-decoder-norm"));
        assert!(error(&["--max-sparsity-target", "0.2"]).contains("--max-sparsity-coefficient"));
        assert!(resolve(&["--loss", "l1", "--epsilon", "0.1", "--min-sparsity-coefficient", "1e-6"]).is_ok());
    }

    #[test]
    fn impossible_values_are_refused() {
        assert!(error(&["--steps", "0"]).contains("at least 1 step"));
        assert!(error(&["--steps", "5", "--lr-decay-steps", "6"]).contains("--lr-decay-steps"));
        assert!(error(&["--features", "0"]).contains("features"));
        assert!(error(&["--sparsity-window", "0"]).contains("sparsity_window"));
    }

    #[test]
    fn a_cosine_that_cannot_be_is_refused() {
        let cosine = |words: &[&str]| error(&[&["--steps", "10", "--lr-decay", "cosine"], words].concat());
        assert!(cosine(&["--lr-end", "1"]).contains("at most the learning rate, 0.0004"));
        assert!(cosine(&["--lr-end", "0", "--lr-decay-steps", "2"]).contains("leave one of them out"));
        assert!(cosine(&["--lr-cycles", "0"]).contains("at least 1"));
        let told = cosine(&["--lr-cycles", "5", "--warmup-steps", "3", "--lr-decay-steps", "3"]);
        assert!(told.contains("at most 4"), "{told}");
        assert!(cosine(&["--warmup-steps", "10"]).contains("leave none of the 10 steps"));
        assert_eq!(error(&["--lr-end", "1e-5"]), "--lr-end has no effect without --lr-decay cosine");
        assert_eq!(error(&["--warmup-from-zero"]), "--warmup-from-zero has no effect without --warmup-steps");
        let told = error(&["--coefficient-warmup-from-zero"]);
        assert_eq!(told, "--coefficient-warmup-from-zero has no effect without --coefficient-warmup-steps");
    }

    #[test]
    fn the_initial_weights_are_those_asked_for() {
        assert_eq!(resolve(&[]).unwrap().init, Init::default());
        let words =
            ["--encoder-init", "transpose", "--encoder-init-scale", "0.5", "--decoder-init-norm", "0.1"];
        let expected = Init { encoder: EncoderInit::Transpose { scale: 0.5 }, decoder_norm: Some(0.1) };
        assert_eq!(resolve(&words).unwrap().init, expected);
        assert_eq!(resolve(&["--decoder-init-norm", "free"]).unwrap().init.decoder_norm, None);
        let told = error(&["--encoder-init-scale", "0.5"]);
        assert_eq!(told, "--encoder-init-scale has no effect without --encoder-init transpose");
        for words in [&words[..], &["--decoder-init-norm", "free"]] {
            let (flags, settings) = (arguments(words), resolve(words).unwrap());
            let again: SettingArguments =
                serde_json::from_value(serde_json::to_value(&flags).unwrap()).unwrap();
            assert_eq!(again, flags);
            assert_eq!(serde_json::from_value::<Settings>(json(&settings)).unwrap(), settings);
        }
    }

    #[test]
    fn an_initial_autoencoder_decides_size_and_pre_bias() {
        let initial = Some(Initial {
            activation: Activation::Relu,
            features: 99,
            pre_bias: true,
            skip: false,
            row_norm: false,
        });
        let settings = Settings::resolve(&arguments(&["--init-from", "x"]), 768, initial).unwrap();
        assert_eq!((settings.step.features, settings.step.pre_bias), (99, true));
        let initial = Some(Initial {
            activation: Activation::Relu,
            features: 99,
            pre_bias: false,
            skip: false,
            row_norm: false,
        });
        assert!(Settings::resolve(&arguments(&["--init-from", "x", "--pre-bias"]), 768, initial).is_err());
    }

    #[test]
    fn an_initial_autoencoder_keeps_its_row_norm() {
        let initial = |row_norm| {
            Some(Initial {
                activation: Activation::Relu,
                features: 99,
                pre_bias: false,
                skip: false,
                row_norm,
            })
        };
        let of = |words: &[&str], row_norm| Settings::resolve(&arguments(words), 768, initial(row_norm));
        assert_eq!(of(&[], true).unwrap().input_scale, InputScaleChoice::RowNorm);
        assert_eq!(of(&[], false).unwrap().input_scale, InputScaleChoice::None);
        let mean = of(&["--input-scale", "mean-norm"], false).unwrap();
        assert_eq!(mean.input_scale, InputScaleChoice::MeanNorm);
        assert!(of(&["--input-scale", "row-norm"], true).is_ok());
        for (flag, row_norm, told) in
            [("row-norm", false, "without"), ("none", true, "with"), ("mean-norm", true, "with")]
        {
            let error = of(&["--input-scale", flag], row_norm).unwrap_err().to_string();
            assert!(error.contains(&format!("was trained {told} row-norm")), "{error}");
        }
    }

    #[test]
    fn only_length_and_evaluation_may_change_on_resume() {
        let run = resolve(&[]).unwrap();
        let longer = resolve(&["--steps", "100k", "--eval-rows", "5k"]).unwrap();
        assert_eq!(run.differences(&longer), Vec::<String>::new());
        let other = resolve(&["--lr", "1e-3", "--loss", "l1"]).unwrap();
        let sentences = run.differences(&other);
        assert!(sentences.contains(&"lr is 0.0004 there and 0.001 here".to_owned()), "{sentences:?}");
        assert!(sentences.iter().any(|s| s.starts_with("loss.penalty.kind")), "{sentences:?}");
        let decaying = resolve(&["--steps", "100", "--lr-decay-steps", "5"]).unwrap();
        let longer = resolve(&["--steps", "200", "--lr-decay-steps", "5"]).unwrap();
        assert_eq!(decaying.differences(&longer), ["steps is 100 there and 200 here"]);
        let cosine = resolve(&["--steps", "100", "--lr-decay", "cosine"]).unwrap();
        let longer = resolve(&["--steps", "200", "--lr-decay", "cosine"]).unwrap();
        assert_eq!(cosine.differences(&longer), ["steps is 100 there and 200 here"]);
    }

    #[test]
    fn settings_of_older_versions_mean_what_they_meant() {
        let settings = resolve(&["--warmup-steps", "3"]).unwrap();
        let written = json(&settings);
        for name in ["init", "input_scale", "cosine", "warmup_from_zero", "coefficient_warmup_from_zero"] {
            assert!(written.get(name).is_none(), "{name} changes the ids of runs that do not use it");
        }
        assert_eq!(serde_json::from_value::<Settings>(written).unwrap(), settings);
    }
}
