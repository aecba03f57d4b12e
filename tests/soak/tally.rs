//! Counts what was tried, and reports the counts.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Counts by what was counted.
#[derive(Default)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    /// One more of `what`.
    pub(crate) fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// All of `other` more.
    pub(crate) fn merge(&mut self, other: &Counts) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    fn describe(&self) -> String {
        self.0.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    }
}

/// A case that did not end as it has to.
pub(crate) struct Failure {
    /// KIND:NUMBER
    pub(crate) case: String,
    pub(crate) why: String,
}

/// The tally of one kind of cases.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) cases: u64,
    pub(crate) failures: Vec<Failure>,
    pub(crate) counts: Counts,
}

/// A line for each kind.
pub(crate) fn table(tallies: &BTreeMap<&'static str, Tally>) -> String {
    let line = |(kind, tally): (&&str, &Tally)| {
        format!(
            "{kind:12} {:6} cases {:4} failed   {}\n",
            tally.cases,
            tally.failures.len(),
            tally.counts.describe()
        )
    };
    tallies.iter().map(line).collect()
}

/// The same as JSON.
pub(crate) fn to_json(seed: u64, tallies: &BTreeMap<&'static str, Tally>) -> Value {
    let kinds = tallies.iter().map(|(kind, tally)| {
        let failures: Vec<Value> =
            tally.failures.iter().map(|failure| json!({"case": failure.case, "why": failure.why})).collect();
        (kind.to_string(), json!({"cases": tally.cases, "counts": tally.counts.0, "failures": failures}))
    });
    json!({"seed": seed, "kinds": kinds.collect::<serde_json::Map<_, _>>()})
}
