//! Panels: neighbouring features that are summed by themselves, before the sums of all panels are added in a fixed binary tree.
//!
//! Ranks own neighbouring panels, as many each. A rank's panels are a subtree, so any number of ranks that divides the panels
//! adds the same numbers in the same order as one rank does:
//!
//! ```text
//! panels       0   1   2   3   4   5   6   7
//!               \ /     \ /     \ /     \ /        within a rank of two panels or more
//!                 \     /         \     /          … of four
//!                    \               /             … of all
//! ```

use std::ops::Range;

use ranks::Exchange;

use crate::dead::DeadLossKind;
use crate::error::StepError;
use crate::spec::StepSpec;

/// Which features a rank owns, panel by panel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Where each panel begins, and where the last one ends.
    starts: Vec<usize>,
    ranks: usize,
    rank: usize,
}

impl Share {
    /// The share of a rank of `exchange` in a step.
    ///
    /// # Errors
    /// Ranks that do not divide the panels, or a step whose parts cannot be computed panel by panel.
    pub fn new(spec: &StepSpec, exchange: &dyn Exchange) -> Result<Share, StepError> {
        let (panels, ranks) = (spec.panels, exchange.ranks());
        if !panels.is_multiple_of(ranks) || !ranks.is_power_of_two() {
            return Err(StepError::Ranks { ranks, panels });
        }
        match undivided(spec).filter(|_| panels > 1) {
            Some((what, instead)) => Err(StepError::Undivided { what, instead }),
            None => {
                let starts = (0..panels).map(|panel| spec.panel_features(panel).start);
                let starts = starts.chain([spec.features]).collect();
                Ok(Share { starts, ranks, rank: exchange.rank() })
            }
        }
    }

    /// The numbers of the panels that the rank owns.
    pub fn own(&self) -> Range<usize> {
        self.of_rank(self.rank)
    }

    /// The features of panel number `panel`.
    pub fn features_of(&self, panel: usize) -> Range<usize> {
        self.starts[panel]..self.starts[panel + 1]
    }

    /// The features of each rank, in their order.
    pub fn features_of_ranks(&self) -> Vec<Range<usize>> {
        let of_rank = |rank| {
            let panels = self.of_rank(rank);
            self.starts[panels.start]..self.starts[panels.end]
        };
        (0..self.ranks).map(of_rank).collect()
    }

    fn of_rank(&self, rank: usize) -> Range<usize> {
        let each = (self.starts.len() - 1) / self.ranks;
        rank * each..(rank + 1) * each
    }
}

/// The first part of a step that cannot be computed panel by panel, and what can be asked for in its place.
fn undivided(spec: &StepSpec) -> Option<(&'static str, &'static str)> {
    match spec.dead.map(|dead| dead.kind)? {
        DeadLossKind::AuxK { .. } | DeadLossKind::AuxKSum { .. } => {
            Some(("an auxiliary loss (--aux-k)", "use --revive resample in its place"))
        }
        DeadLossKind::Ghost => Some(("ghost gradients", "use --revive resample in their place")),
        DeadLossKind::PreActivation { .. } => None,
    }
}

/// Adds up a power of two of parts, which come in order: ((0+1)+(2+3))+….
#[derive(Debug)]
pub struct Tree<T> {
    /// Sums of 2^level parts, the levels falling.
    sums: Vec<(u32, T)>,
}

impl<T> Default for Tree<T> {
    fn default() -> Tree<T> {
        Tree { sums: Vec::new() }
    }
}

impl<T> Tree<T> {
    /// Adds the next part. `join` makes of two neighbouring sums the sum of both.
    pub fn add(&mut self, part: T, mut join: impl FnMut(T, T) -> T) {
        let (mut level, mut sum) = (0, part);
        while let Some((_, left)) = self.sums.pop_if(|(of_left, _)| *of_left == level) {
            sum = join(left, sum);
            level += 1;
        }
        self.sums.push((level, sum));
    }

    /// Takes out the sums that the next part completes, the nearest first. [`Tree::put`] takes the sum of all of them and that part.
    pub fn completed(&mut self) -> Vec<T> {
        let mut sums = Vec::new();
        while let Some((_, sum)) = self.sums.pop_if(|(level, _)| *level == sums.len() as u32) {
            sums.push(sum);
        }
        sums
    }

    /// Adds a part that was added to as many sums of [`Tree::completed`] as `level` says.
    pub fn put(&mut self, level: usize, sum: T) {
        self.sums.push((level as u32, sum));
    }

    /// The sum, None without parts.
    pub fn sum(mut self) -> Option<T> {
        debug_assert!(self.sums.len() <= 1, "the parts are a power of two");
        self.sums.pop().map(|(_, sum)| sum)
    }
}

#[cfg(test)]
mod tests {
    use ranks::{Alone, Threads};
    use std::time::Duration;

    use super::*;
    use crate::loss::{LossSpec, Mse};

    #[test]
    fn parts_are_added_in_a_binary_tree() {
        let join = |left: String, right: String| format!("({left}+{right})");
        let sum = |parts: std::ops::Range<usize>| {
            let mut tree = Tree::default();
            parts.for_each(|part| tree.add(part.to_string(), join));
            tree.sum().unwrap()
        };
        assert_eq!(sum(0..8), "(((0+1)+(2+3))+((4+5)+(6+7)))");
        // What a part completes may be added up elsewhere.
        let mut tree = Tree::default();
        for part in 0..8 {
            let completed = tree.completed();
            let level = completed.len();
            tree.put(level, completed.into_iter().fold(part.to_string(), |sum, left| join(left, sum)));
        }
        assert_eq!(tree.sum().unwrap(), sum(0..8));
        // Subtrees first.
        let mut tree = Tree::default();
        [0..4, 4..8].into_iter().for_each(|parts| tree.add(sum(parts), join));
        assert_eq!(tree.sum().unwrap(), sum(0..8));
        assert_eq!(Tree::<u8>::default().sum(), None);
    }

    #[test]
    fn every_feature_belongs_to_one_panel_of_one_rank() {
        let spec = StepSpec { panels: 8, ..StepSpec::new(3, 37, 5, LossSpec::reconstruction(Mse::Sum)) };
        for count in [1, 2, 4, 8] {
            let mut next = (0, 0);
            for rank in Threads::new(count, Duration::ZERO) {
                let share = Share::new(&spec, &rank).unwrap();
                let first = next.1;
                for panel in share.own() {
                    let features = share.features_of(panel);
                    assert_eq!((panel, features.start), next);
                    assert!(features.len() == 4 || features.len() == 5);
                    next = (panel + 1, features.end);
                }
                assert_eq!(share.features_of_ranks()[rank.rank()], first..next.1);
            }
            assert_eq!(next, (8, 37));
        }
    }

    #[test]
    fn what_cannot_be_divided_is_refused_by_name() {
        let spec = StepSpec { panels: 4, ..StepSpec::new(3, 37, 5, LossSpec::reconstruction(Mse::Sum)) };
        let told = |spec: &StepSpec, ranks: usize| {
            let ranks = Threads::new(ranks, Duration::ZERO);
            Share::new(spec, &ranks[0]).unwrap_err().to_string()
        };
        assert_eq!(
            told(&spec, 8),
            "8 ranks cannot share 4 panels of features: the number of ranks has to be a power of two that divides that of panels"
        );
        assert!(told(&spec, 3).contains("3 ranks"));
        let ghost = crate::dead::DeadLoss { kind: DeadLossKind::Ghost, after_steps: 1 };
        let spec = StepSpec { dead: Some(ghost), ..spec };
        assert!(told(&spec, 2).contains("ghost gradients") && told(&spec, 2).contains("--revive resample"));
        assert!(Share::new(&spec, &Alone).is_err());
        Share::new(&StepSpec { panels: 1, ..spec }, &Alone).unwrap();
    }
}
