//! How the learning rate falls.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::Settings;

/// A fall along half a cosine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cosine {
    /// The learning rate that it ends at.
    pub(crate) end: f64,
    /// How often it is gone through, each time from the top.
    pub(crate) cycles: u64,
}

impl Settings {
    pub(super) fn check_cosine(&self) -> Result<()> {
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
}

#[cfg(test)]
mod tests {
    use crate::command::settings::tests::error;

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
}
