//! What was skipped: counts by kind, with the first few places of each.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::SerializeMap;

use crate::documents::{Damage, DamageKind, Place};

/// Places that are kept of each kind.
const KEPT: usize = 3;

/// The documents that gave no tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Skipped {
    kinds: BTreeMap<DamageKind, Kind>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Kind {
    documents: u64,
    /// Where, and what was found there.
    first: Vec<String>,
}

impl Skipped {
    /// Counts a document.
    pub(crate) fn add(&mut self, place: &Place, damage: &Damage) {
        let kind = self.kinds.entry(damage.kind).or_default();
        kind.documents += damage.documents;
        if kind.first.len() < KEPT {
            kind.first.push(match damage.kind {
                DamageKind::Empty => place.to_string(),
                _ => format!("{place}: {}", damage.what),
            });
        }
    }

    /// Documents in all.
    pub(crate) fn documents(&self) -> u64 {
        self.kinds.values().map(|kind| kind.documents).sum()
    }

    /// One line for each kind that occurred.
    pub(crate) fn lines(&self) -> Vec<String> {
        let line = |(kind, found): (&DamageKind, &Kind)| {
            let more = if found.documents > found.first.len() as u64 { "; …" } else { "" };
            let noun = match kind {
                DamageKind::UnreadableFile => "",
                _ if found.documents == 1 => " document",
                _ => " documents",
            };
            format!("skipped {}{noun} {} ({}{more})", found.documents, kind.name(), found.first.join("; "))
        };
        self.kinds.iter().map(line).collect()
    }
}

impl Serialize for Skipped {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.kinds.len()))?;
        for (kind, found) in &self.kinds {
            map.serialize_entry(kind.name(), found)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_the_first_few_are_named() {
        let mut skipped = Skipped::default();
        for line in 1..=5 {
            let place = Place { file: "a.jsonl".into(), inside: Some(("line", line)) };
            skipped.add(&place, &Damage::new(DamageKind::InvalidJson, "EOF"));
        }
        let place = Place { file: "b.parquet".into(), inside: Some(("row", 7)) };
        skipped.add(
            &place,
            &Damage { kind: DamageKind::UnreadableRows, what: "checksum".into(), documents: 40 },
        );
        assert_eq!(skipped.documents(), 45);
        assert_eq!(
            skipped.lines(),
            [
                "skipped 5 documents not JSON (a.jsonl line 1: EOF; a.jsonl line 2: EOF; a.jsonl line 3: EOF; …)",
                "skipped 40 documents in unreadable pages (b.parquet row 7: checksum; …)",
            ]
        );
        assert_eq!(serde_json::to_value(&skipped).unwrap()["not JSON"]["documents"], 5);
    }
}
