//! Flags that say nothing next to the others.

use anyhow::{Result, bail};

use super::initial::Initial;
use super::loss::{frequency_coefficients, penalty_of, value_name};
use crate::command::arguments::{
    ActivationChoice, DecayChoice, DecoderNormChoice, EncoderBias, EncoderInitChoice, PenaltyChoice,
    ReviveChoice, SettingArguments,
};
use crate::command::selection;

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
        "--b-enc-init" => bail!(
            "--b-enc-init has no effect with --activation topk or batch-topk, where k says how many features are active; leave \
             it out"
        ),
        "--rank-by-decoder-norm" => {
            let largest = matches!(
                selection::activation_choice(arguments, initial.map(|initial| initial.activation)),
                ActivationChoice::TopK | ActivationChoice::BatchTopK
            );
            bail!(
                "--rank-by-decoder-norm has no effect without {}",
                if largest { "--decoder-norm free" } else { "--activation topk or batch-topk" }
            )
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
    use PenaltyChoice::{ApproxL0, L1, Log, MeanQuadratic, None, Quadratic, Step, Tanh};
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
        (
            "--l0-coefficient",
            flags.l0_coefficient.is_some(),
            matches!(choice, ApproxL0 | Step | Quadratic | MeanQuadratic),
        ),
        ("--target-l0", flags.target_l0.is_some(), matches!(choice, Quadratic | MeanQuadratic)),
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
            !matches!(choice, None | Step | Quadratic | MeanQuadratic),
        ),
        ("--min-sparsity-target", flags.min_sparsity_target.is_some(), min != 0.0),
        ("--max-sparsity-target", flags.max_sparsity_target.is_some(), max != 0.0),
        ("--k", model.k.is_some(), activation == ActivationChoice::TopK || batch_topk),
        (
            "--b-enc-init",
            model.b_enc_init.is_some_and(|bias| bias != EncoderBias::Zeros),
            unknown || matches!(activation, ActivationChoice::Relu | ActivationChoice::JumpRelu),
        ),
        (
            "--rank-by-decoder-norm",
            selection.rank_by_decoder_norm,
            model.decoder_norm == Some(DecoderNormChoice::Free)
                && (unknown || matches!(activation, ActivationChoice::TopK | ActivationChoice::BatchTopK)),
        ),
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

#[cfg(test)]
mod tests {
    use crate::command::settings::tests::{error, resolve};

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
}
