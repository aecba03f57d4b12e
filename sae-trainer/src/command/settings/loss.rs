//! What the loss is: its penalty, and the coefficients that are not given.

use anyhow::{Context, Result, ensure};

use super::initial::Initial;
use crate::command::arguments::{
    ActivationChoice, LossArguments, MseChoice, PenaltyChoice, SettingArguments,
};
use crate::command::selection;
use crate::engine::{FrequencyPenalty, LossSpec, Mse, Penalty};

/// The penalty where none is asked for: the k largest need none.
pub(super) fn penalty_of(arguments: &SettingArguments, initial: Option<Initial>) -> PenaltyChoice {
    let default = match selection::activation_choice(arguments, initial.map(|initial| initial.activation)) {
        ActivationChoice::TopK | ActivationChoice::BatchTopK => PenaltyChoice::None,
        ActivationChoice::JumpRelu => PenaltyChoice::Step,
        ActivationChoice::Relu => PenaltyChoice::ApproxL0,
    };
    arguments.loss.loss.unwrap_or(default)
}

/// The loss, and epsilon in equal parts of the run as multiples of the loss's.
pub(super) fn resolve(
    arguments: &SettingArguments,
    initial: Option<Initial>,
) -> Result<(LossSpec, Vec<f64>)> {
    let (flags, choice) = (&arguments.loss, penalty_of(arguments, initial));
    if matches!(choice, PenaltyChoice::Step | PenaltyChoice::Quadratic | PenaltyChoice::MeanQuadratic) {
        ensure!(
            selection::activation_choice(arguments, initial.map(|initial| initial.activation))
                == ActivationChoice::JumpRelu,
            "--loss {} needs --activation jump-relu, whose thresholds are all that follows the number of active features",
            value_name(&choice)
        );
    }
    ensure!(
        choice != PenaltyChoice::MeanQuadratic || !arguments.selection.jump_to_input,
        "--jump-to-input does not go with --loss mean-quadratic, whose pseudo-gradient reaches the thresholds alone: leave one of \
         them out"
    );
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
        PenaltyChoice::Quadratic | PenaltyChoice::MeanQuadratic => {
            let needs = || format!("--loss {} needs the L0 to aim at: give --target-l0", value_name(&choice));
            let target = flags.target_l0.with_context(needs)? as f32;
            let penalty = match choice {
                PenaltyChoice::Quadratic => Penalty::Quadratic { target },
                _ => Penalty::MeanQuadratic { target },
            };
            (penalty, flags.l0_coefficient.unwrap_or(7e-5))
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

/// The name of a choice on the command line.
pub(super) fn value_name(choice: &PenaltyChoice) -> String {
    let value = clap::ValueEnum::to_possible_value(choice).expect("every penalty has a name");
    value.get_name().to_owned()
}

/// The coefficients of min- and max-sparsity; 0 turns them off.
pub(super) fn frequency_coefficients(flags: &LossArguments, choice: PenaltyChoice) -> (f64, f64) {
    use PenaltyChoice::{ApproxL0, Log, Tanh};
    let protects = matches!(choice, ApproxL0 | Tanh | Log);
    let min = flags.min_sparsity_coefficient.unwrap_or(if protects { 1e-6 } else { 0.0 });
    (min, flags.max_sparsity_coefficient.unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::settings::tests::resolve;

    #[test]
    fn l1_has_the_reference_coefficient_and_no_frequency_penalty() {
        let settings = resolve(&["--loss", "l1"]).unwrap();
        assert_eq!(settings.step.loss.penalty, Penalty::L1);
        assert_eq!(settings.step.loss.coefficient, 8e-5);
        assert_eq!(settings.step.loss.min_sparsity, None);
    }

    #[test]
    fn several_epsilons_become_a_schedule() {
        let settings = resolve(&["--epsilon", "0.2,0.1,0.05"]).unwrap();
        assert_eq!(settings.step.loss.penalty, Penalty::ApproxL0 { epsilon: 0.2 });
        assert_eq!(settings.epsilon_scales, [1.0, 0.5, 0.25]);
    }
}
