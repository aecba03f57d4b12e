//! The two ways in which a step can be computed, and the choice between them where it depends on the steps before.

use serde::{Deserialize, Serialize};

/// Which way a step is computed. Both give the same numbers within rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Path {
    /// Dense products.
    Dense,
    /// Only the active pairs (row, feature) are touched after the encode.
    Sparse,
}

/// Decides which path a step takes, from what the steps before it found.
///
/// The sparse path cannot know beforehand whether a batch fits its lists; one that does not is refused by the
/// device and done again on the dense path. So the sparse path is tried when the dense one has found clearly
/// fewer active pairs than the lists hold, and after a refusal not before that number has fallen, or after a while.
///
/// The two paths round differently, so the choice is part of a run's state, and it does not depend on how far ahead of the
/// device steps are queued: step n knows what the steps up to n − 2 have found, also where n − 1 is finished already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathChoice {
    capacity: u64,
    /// The sparse path is tried once a dense step finds at most this many active pairs.
    limit: u64,
    next: Path,
    /// Dense steps since the last refusal.
    waited: u32,
    refused: bool,
    /// Dense steps that nobody was to know of yet, by their numbers, with their active pairs.
    found: Vec<(u64, u64)>,
}

/// Dense steps after a refusal, after which the sparse path is tried again though the batch has not become sparser.
const PATIENCE: u32 = 200;

impl PathChoice {
    /// For lists of `capacity` pairs and batches of `cells` = B·F. A run begins dense, as about half of all
    /// pairs are active at first, unless every pair fits.
    pub fn new(capacity: usize, cells: u64) -> PathChoice {
        let capacity = capacity as u64;
        let next = if capacity > 0 && capacity >= cells { Path::Sparse } else { Path::Dense };
        PathChoice { capacity, limit: capacity / 5 * 4, next, waited: 0, refused: false, found: Vec::new() }
    }

    /// The pairs that the lists hold.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The path that an evaluation takes now.
    pub fn next(&self) -> Path {
        self.next
    }

    /// The path that step number `step` takes. Nothing changes before that step is done: one that fails leaves no trace.
    pub fn of_step(&self, step: u64) -> Path {
        let mut then = self.clone();
        then.learn_before(step);
        then.next
    }

    /// Step number `step` was done; `active` pairs were found, if it was a dense one.
    pub fn done(&mut self, step: u64, active: Option<u64>) {
        self.learn_before(step);
        self.found.extend(active.map(|active| (step, active)));
    }

    /// Takes into account what step number `step` is to know.
    fn learn_before(&mut self, step: u64) {
        self.learn(self.found.iter().take_while(|(found, _)| found + 2 <= step).count());
    }

    /// Takes the first `count` of what dense steps found into account.
    fn learn(&mut self, count: usize) {
        for (_, active) in self.found.drain(..count).collect::<Vec<_>>() {
            self.after_dense(active);
        }
    }

    fn after_dense(&mut self, active: u64) {
        if self.refused {
            self.refused = false;
            self.waited = 0;
            // Why it was refused is known now: there were this many.
            self.limit = self.limit.min(active / 5 * 4);
        }
        self.waited += 1;
        let patient = self.waited <= PATIENCE;
        let limit = if patient { self.limit } else { self.capacity / 5 * 4 };
        if self.capacity > 0 && active <= limit {
            self.next = Path::Sparse;
        }
    }

    /// The device refused a sparse step because its candidates did not fit.
    pub fn after_refusal(&mut self) {
        // All before that step is known by now, however early it was finished.
        self.learn(self.found.len());
        self.refused = true;
        self.next = Path::Dense;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_turns_sparse_when_pairs_fit_and_back_when_refused() {
        let mut choice = PathChoice::new(1000, 100_000);
        assert_eq!(choice.next(), Path::Dense);
        choice.after_dense(900);
        assert_eq!(choice.next(), Path::Dense);
        choice.after_dense(800);
        assert_eq!(choice.next(), Path::Sparse);
        // 780 were active, but more than 1000 passed the screen: wait for clearly fewer.
        choice.after_refusal();
        assert_eq!(choice.next(), Path::Dense);
        choice.after_dense(780);
        choice.after_dense(700);
        assert_eq!(choice.next(), Path::Dense);
        choice.after_dense(620);
        assert_eq!(choice.next(), Path::Sparse);
    }

    #[test]
    fn the_choice_does_not_depend_on_how_early_steps_are_finished() {
        // What dense steps find, and the sparse ones that are refused: also right after a dense one.
        let active = |step: u64| if step < 30 { 1200 - 100 * step.min(11) } else { 70 - step / 8 };
        let overflows = |step: u64| [6, 7, 12, 31, 60].contains(&step);
        let paths = |ahead: usize| {
            let (mut choice, mut paths) = (PathChoice::new(1000, 100_000), vec![Path::Dense; 400]);
            let mut begun = std::collections::VecDeque::new();
            for step in 1..400 {
                begun.push_back((step, choice.of_step(step)));
                while begun.len() > ahead {
                    let (first, path) = begun.pop_front().unwrap();
                    if path == Path::Sparse && overflows(first) {
                        choice.after_refusal();
                        // It and those behind it begin anew.
                        begun.push_front((first, path));
                        begun.iter_mut().for_each(|(step, path)| *path = choice.of_step(*step));
                        continue;
                    }
                    choice.done(first, (path == Path::Dense).then(|| active(first)));
                    paths[first as usize] = path;
                }
            }
            paths[..398].to_vec()
        };
        let alone = paths(0);
        assert_eq!(alone, paths(1));
        let changes = alone.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes >= 5, "{changes}");
    }

    #[test]
    fn a_refused_sparse_path_is_tried_again_after_a_while() {
        let mut choice = PathChoice::new(1000, 100_000);
        choice.after_dense(100);
        choice.after_refusal();
        let waits = (0..).take_while(|_| {
            choice.after_dense(750);
            choice.next() == Path::Dense
        });
        assert_eq!(waits.count() as u32, PATIENCE);
    }

    #[test]
    fn lists_for_nothing_or_everything_leave_no_choice() {
        let mut never = PathChoice::new(0, 100);
        never.after_dense(0);
        assert_eq!(never.next(), Path::Dense);
        assert_eq!(PathChoice::new(100, 100).next(), Path::Sparse);
    }
}
