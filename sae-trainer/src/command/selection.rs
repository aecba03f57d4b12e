//! From flags to what selects active features, and to what trains those that have stopped firing.

use anyhow::{Context, Result, ensure};

use super::arguments::{
    ActivationChoice, AuxK, AuxLossChoice, DeadArguments, ReviveChoice, SelectionArguments, SettingArguments,
    Width,
};
use crate::engine::{Activation, DeadLoss, DeadLossKind, Prefixes, ThresholdAverage};

/// SAELens' bandwidth.
pub(crate) const DEFAULT_BANDWIDTH: f32 = 0.05;

/// The activation asked for, or that of the autoencoder that training starts from.
pub(super) fn activation_choice(
    arguments: &SettingArguments,
    initial: Option<Activation>,
) -> ActivationChoice {
    arguments.model.activation.unwrap_or(match initial {
        None | Some(Activation::Relu) => ActivationChoice::Relu,
        Some(Activation::TopK { .. }) => ActivationChoice::TopK,
        Some(Activation::BatchTopK { .. }) => ActivationChoice::BatchTopK,
        Some(Activation::JumpRelu { .. }) => ActivationChoice::JumpRelu,
    })
}

/// How active features are selected.
pub(super) fn activation(arguments: &SettingArguments, initial: Option<Activation>) -> Result<Activation> {
    let flags = &arguments.selection;
    let of_initial = initial.and_then(|initial| match initial {
        Activation::TopK { k } | Activation::BatchTopK { k, .. } => Some(k as u64),
        _ => None,
    });
    let k = usize::try_from(arguments.model.k.or(of_initial).unwrap_or(100))?;
    let average = ThresholdAverage::default();
    Ok(match activation_choice(arguments, initial) {
        ActivationChoice::Relu => Activation::Relu,
        ActivationChoice::TopK => Activation::TopK { k },
        ActivationChoice::BatchTopK => {
            let threshold = ThresholdAverage {
                rate: flags.threshold_rate.unwrap_or(average.rate),
                skipped_steps: flags.threshold_after.unwrap_or(average.skipped_steps),
                from_zero: flags.threshold_from_zero,
            };
            Activation::BatchTopK { k, threshold }
        }
        ActivationChoice::JumpRelu => Activation::JumpRelu {
            bandwidth: flags.bandwidth.map_or(DEFAULT_BANDWIDTH, |bandwidth| bandwidth as f32),
            to_input: flags.jump_to_input,
        },
    })
}

/// The prefixes of F = `features` features; one as wide as all of them is what there is anyway.
pub(super) fn prefixes(flags: &SelectionArguments, features: usize) -> Result<Prefixes> {
    let width = |width: &Width| match *width {
        Width::Features(width) => usize::try_from(width).unwrap_or(usize::MAX),
        Width::Share(share) => ((share * features as f64) as usize).max(1),
    };
    let mut widths: Vec<usize> = flags.matryoshka.iter().map(width).collect();
    widths.pop_if(|width| *width == features);
    ensure!(
        flags.matryoshka.is_empty() || !widths.is_empty(),
        "--matryoshka has no prefix besides all {features} features: give narrower ones, or leave it out"
    );
    let ascending = [0].iter().chain(&widths).zip(widths.iter().chain([&features])).all(|(a, b)| a < b);
    ensure!(
        ascending,
        "--matryoshka makes prefixes of {widths:?} of {features} features, but each must be wider than the one before it"
    );
    let many = || format!("--matryoshka takes at most {} prefixes", Prefixes::MOST);
    Prefixes::new(&widths, flags.matryoshka_weight.unwrap_or(1.0)).with_context(many)
}

/// The loss over dead features, which are those that did not fire in `dead_steps` steps.
pub(super) fn dead_loss(
    arguments: &SettingArguments,
    width: usize,
    dead_steps: u64,
) -> Result<Option<DeadLoss>> {
    let DeadArguments { aux_k, aux_coefficient, aux_loss, pre_activation_coefficient } = &arguments.dead;
    let ghost = arguments.length.revive == Some(ReviveChoice::Ghost);
    let pre_activation = pre_activation_coefficient.filter(|coefficient| *coefficient > 0.0);
    let asked = [
        (aux_k.is_some(), "--aux-k"),
        (ghost, "--revive ghost"),
        (pre_activation.is_some(), "--pre-activation-coefficient"),
    ];
    let asked: Vec<&str> = asked.into_iter().filter(|(asked, _)| *asked).map(|(_, flag)| flag).collect();
    ensure!(
        asked.len() <= 1,
        "{} are losses over the same dead features: leave all but one out",
        asked.join(" and ")
    );
    let kind = if let Some(k) = aux_k {
        let k = match k {
            AuxK::Half => (width / 2).max(1),
            AuxK::Count(k) => usize::try_from(*k)?,
        };
        ensure!(k >= 1, "--aux-k must be at least 1");
        match aux_loss.unwrap_or(AuxLossChoice::Normalised) {
            AuxLossChoice::Normalised => {
                DeadLossKind::AuxK { k, coefficient: aux_coefficient.unwrap_or(1.0 / 32.0) }
            }
            AuxLossChoice::Sum => DeadLossKind::AuxKSum { k, coefficient: aux_coefficient.unwrap_or(1.0) },
        }
    } else if ghost {
        DeadLossKind::Ghost
    } else if let Some(coefficient) = pre_activation {
        DeadLossKind::PreActivation { coefficient }
    } else {
        return Ok(None);
    };
    Ok(Some(DeadLoss { after_steps: dead_steps, kind }))
}
