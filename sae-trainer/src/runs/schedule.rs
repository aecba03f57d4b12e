//! Learning rate, coefficient and epsilon as functions of the step.

use crate::command::settings::Settings;
use crate::engine::Schedule;

/// The schedule of `step`, counted from 0: warm-ups are min(1, (step+1)/N), or min(1, step/N) where they begin at 0; the
/// decay reaches its lowest value above 0 in the last step.
pub(crate) fn at(settings: &Settings, step: u64) -> Schedule {
    let parts = settings.epsilon_scales.len();
    let part = (u128::from(step) * parts as u128 / u128::from(settings.steps)) as usize;
    Schedule {
        lr: learning_rate(settings, step),
        coefficient_scale: warmup(
            step,
            settings.coefficient_warmup_steps,
            settings.coefficient_warmup_from_zero,
        ),
        epsilon_scale: settings.epsilon_scales[part.min(parts - 1)],
    }
}

fn learning_rate(settings: &Settings, step: u64) -> f64 {
    let left = settings.steps.saturating_sub(step);
    let decay =
        if left < settings.lr_decay_steps { left as f64 / settings.lr_decay_steps as f64 } else { 1.0 };
    let warmup = warmup(step, settings.warmup_steps, settings.warmup_from_zero);
    match settings.cosine {
        Some(cosine) if left <= settings.lr_decay_steps => cosine.end * decay,
        Some(cosine) if step >= settings.warmup_steps => {
            let steps = settings.cosine_steps() / cosine.cycles;
            // Steps that are left over where the parts are not equal begin once more.
            let part = ((step - settings.warmup_steps) % steps) as f64 / steps as f64;
            let height = (1.0 + (std::f64::consts::PI * part).cos()) / 2.0;
            cosine.end + (settings.lr - cosine.end) * height
        }
        _ => settings.lr * warmup * decay,
    }
}

fn warmup(step: u64, steps: u64, from_zero: bool) -> f64 {
    let done = if from_zero { step } else { step + 1 };
    if done < steps { done as f64 / steps as f64 } else { 1.0 }
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

    /// The learning rates of PyTorch 2.11's schedulers as sae-lens 6.54.12 (`get_lr_scheduler`) and dictionary_learning
    /// 0.1.0 (`get_lr_schedule`) put them together, read from the optimizer before each step.
    #[test]
    fn the_schedules_of_saelens_and_dictionary_learning_step_by_step() {
        for (flags, expected) in [
            // get_lr_scheduler("constant", steps 10, lr 0.5, warm-up 4, decay 3)
            (
                "--steps 10 --warmup-steps 4 --lr-decay-steps 3",
                &[0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5, 0.33333333333333337, 0.16666666666666669][..],
            ),
            // get_lr_scheduler("cosineannealing", steps 11, lr 0.5, warm-up 3, decay 2, lr_end 0.05)
            (
                "--steps 11 --warmup-steps 3 --lr-decay cosine --lr-decay-steps 2",
                &[
                    0.16666666666666666,
                    0.3333333333333333,
                    0.5,
                    0.5,
                    0.4698557158514987,
                    0.3875,
                    0.275,
                    0.1625000000000001,
                    0.0801442841485013,
                    0.05,
                    0.025,
                ],
            ),
            // get_lr_scheduler("cosineannealing", steps 8, lr 0.5, lr_end 0.125)
            (
                "--steps 8 --lr-decay cosine --lr-end 0.125",
                &[
                    0.5,
                    0.48572741234586625,
                    0.4450825214724776,
                    0.38425314356845436,
                    0.3125,
                    0.24074685643154567,
                    0.17991747852752235,
                    0.13927258765413375,
                ],
            ),
            // get_lr_scheduler("cosineannealingwarmrestarts", steps 13, lr 0.5, warm-up 2, lr_end 0.05, num_cycles 3)
            (
                "--steps 13 --warmup-steps 2 --lr-decay cosine --lr-cycles 3",
                &[
                    0.25,
                    0.5,
                    0.5,
                    0.3875,
                    0.16250000000000006,
                    0.5,
                    0.3875,
                    0.16250000000000006,
                    0.5,
                    0.3875,
                    0.16250000000000006,
                    0.5,
                    0.3875,
                ],
            ),
            // LambdaLR(get_lr_schedule(10, warmup_steps 4, decay_start 7))
            (
                "--steps 10 --warmup-steps 4 --warmup-from-zero --lr-decay-steps 3",
                &[0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.3333333333333333, 0.16666666666666666],
            ),
        ] {
            let settings = settings(&flags.split(' ').collect::<Vec<_>>());
            let found: Vec<f64> = (0..settings.steps).map(|step| at(&settings, step).lr).collect();
            assert_eq!(found.len(), expected.len());
            // PyTorch forms each rate from the one before, so its rounding errors add up.
            let far = |(found, expected): (&f64, &f64)| (found - expected).abs() > 1e-14;
            assert!(!found.iter().zip(expected).any(far), "{flags}: {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn a_coefficient_can_begin_at_zero() {
        let words = ["--steps", "6", "--coefficient-warmup-steps", "3", "--coefficient-warmup-from-zero"];
        let settings = settings(&words);
        let growth: Vec<f64> = (0..5).map(|step| at(&settings, step).coefficient_scale).collect();
        // CoefficientScheduler(3, 1.0) of sae-lens 6.54.12.
        assert_eq!(growth, [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
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
