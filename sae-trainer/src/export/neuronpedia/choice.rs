//! Which activations of a feature are shown in their contexts, as SAEDashboard chooses (sequence_data_generator.py): the largest, and
//! some of each of several equal intervals.
//!
//! SAEDashboard shows a context without its first token, so activations there are not chosen. It draws those of an interval at random, for
//! the lowest interval mostly zeros; here they are activations above 0, evenly spread over the text.

use super::numbers::{edges, printed, share};

/// How many are chosen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub(super) top: usize,
    pub(super) intervals: usize,
    /// Of each interval.
    pub(super) each: usize,
}

/// What the activations of a group have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Group {
    pub(super) min: f64,
    pub(super) max: f64,
    /// The share of all tokens in the interval.
    pub(super) contains: f64,
}

impl Group {
    /// Whether it is that of the largest activations.
    pub(super) fn is_top(self) -> bool {
        self.contains < 0.0
    }
}

impl Choice {
    /// How many are chosen of so many, at most.
    pub(super) fn most(self, activations: u64) -> u64 {
        let of_intervals = (self.intervals as u64).saturating_mul(activations.min(self.each as u64));
        activations.min(self.top as u64).saturating_add(of_intervals)
    }

    /// Of activations by place, in contexts of `length` tokens, `all` tokens altogether: places, each with its group.
    pub(super) fn of(self, activations: &[(u32, f32)], length: usize, all: u64) -> Vec<(Group, u32)> {
        let Some(maximum) = activations.iter().map(|(_, a)| *a).max_by(f32::total_cmp) else {
            return Vec::new();
        };
        let shown =
            || activations.iter().copied().filter(|(place, _)| !(*place as usize).is_multiple_of(length));
        let mut largest: Vec<(u32, f32)> = shown().collect();
        largest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let top = Group { min: -1.0, max: printed(f64::from(maximum), 3), contains: -1.0 };
        let mut chosen: Vec<(Group, u32)> =
            largest.iter().take(self.top).map(|(place, _)| (top, *place)).collect();
        let edges = edges(0.0, maximum, self.intervals.max(1));
        for at in (0..self.intervals).rev() {
            let (lower, upper) = (edges[at], edges[at + 1]);
            let within = |a: f32| lower <= a && a <= upper;
            let zeros = if at == 0 { all - activations.len() as u64 } else { 0 };
            let count = zeros + activations.iter().filter(|(_, a)| within(*a)).count() as u64;
            let group = Group {
                min: printed(f64::from(lower), 3),
                max: printed(f64::from(upper), 3),
                contains: share(f64::from(count as f32 / all as f32)),
            };
            let members: Vec<u32> = shown().filter(|(_, a)| within(*a)).map(|(place, _)| place).collect();
            let count = members.len().min(self.each);
            chosen.extend((0..count).map(|at| (group, members[(2 * at + 1) * members.len() / (2 * count)])));
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_then_each_interval_from_the_highest() {
        // Contexts of four tokens; the first, at the beginning of its context, is not shown but is the largest.
        let activations = [(0, 10.0), (1, 9.0), (5, 3.0), (6, 4.0), (7, 9.0), (9, 4.5), (11, 8.5)];
        let found = Choice { top: 2, intervals: 2, each: 2 }.of(&activations, 4, 100);
        let top = Group { min: -1.0, max: 10.0, contains: -1.0 };
        let high = Group { min: 5.0, max: 10.0, contains: 0.04 };
        let low = Group { min: 0.0, max: 5.0, contains: 0.96 };
        assert_eq!(found, [(top, 1), (top, 7), (high, 1), (high, 11), (low, 5), (low, 9)]);
        assert!(top.is_top() && !low.is_top());
        assert!(Choice { top: 2, intervals: 2, each: 2 }.of(&[], 4, 100).is_empty());
        assert_eq!(Choice { top: 1, intervals: 0, each: 2 }.of(&activations, 4, 100), [(top, 1)]);
    }
}
