//! Learning rate, coefficient and epsilon as functions of the step.

use crate::command::settings::Settings;
use crate::engine::Schedule;

/// The schedule of `step`, counted from 0: warm-ups are min(1, (step+1)/N), the decay reaches its lowest
/// value above 0 in the last step.
pub(crate) fn at(settings: &Settings, step: u64) -> Schedule {
    let left = settings.steps.saturating_sub(step);
    let decay =
        if left < settings.lr_decay_steps { left as f64 / settings.lr_decay_steps as f64 } else { 1.0 };
    let parts = settings.epsilon_scales.len();
    let part = (u128::from(step) * parts as u128 / u128::from(settings.steps)) as usize;
    Schedule {
        lr: settings.lr * warmup(step, settings.warmup_steps) * decay,
        coefficient_scale: warmup(step, settings.coefficient_warmup_steps),
        epsilon_scale: settings.epsilon_scales[part.min(parts - 1)],
    }
}

fn warmup(step: u64, steps: u64) -> f64 {
    if step + 1 < steps { (step + 1) as f64 / steps as f64 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn settings(words: &[&str]) -> Settings {
        let line = ["sae-trainer", "--lr", "0.5"].iter().chain(words);
        let arguments = crate::command::line::CommandLine::try_parse_from(line).unwrap().train.settings;
        Settings::resolve(&arguments, 4, None).unwrap()
    }

    #[test]
    fn the_learning_rate_warms_up_stays_and_decays() {
        let settings = settings(&["--steps", "10", "--warmup-steps", "4", "--lr-decay-steps", "2"]);
        let rates: Vec<f64> = (0..10).map(|step| at(&settings, step).lr).collect();
        assert_eq!(rates, [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]);
    }

    #[test]
    fn without_flags_it_is_constant() {
        let settings = settings(&["--steps", "3"]);
        for step in 0..3 {
            assert_eq!(at(&settings, step), Schedule::constant(0.5));
        }
    }

    #[test]
    fn epsilon_changes_in_equal_parts_and_the_coefficient_grows() {
        let settings =
            settings(&["--steps", "6", "--epsilon", "0.4,0.2,0.1", "--coefficient-warmup-steps", "2"]);
        let scales: Vec<f64> = (0..6).map(|step| at(&settings, step).epsilon_scale).collect();
        assert_eq!(scales, [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]);
        let growth: Vec<f64> = (0..3).map(|step| at(&settings, step).coefficient_scale).collect();
        assert_eq!(growth, [0.5, 1.0, 1.0]);
    }
}
