//! One feature in detail, from the index.

use std::collections::HashMap;

use ndarray::ArrayView1;
use serde::Serialize;

use super::figures::{Figures, position_means};
use super::firing::Firing;
use super::index::Index;
use super::texts::Texts;
use crate::laboratory::similarity::Best;

/// Contexts with the largest activations.
const TOP: usize = 20;
/// Activations that are shown of each sample.
const SAMPLE: usize = 5;
/// Tokens, features and logits that are listed.
pub(crate) const LISTED: usize = 10;
/// Tokens that are shown before an activation and behind it.
const BEFORE: usize = 20;
const BEHIND: usize = 8;

/// What is known of a feature.
#[derive(Debug, Serialize)]
pub(crate) struct Detail {
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// The contexts with the largest activations, each at its largest.
    pub(crate) top: Vec<Excerpt>,
    pub(crate) samples: Vec<Sample>,
    /// The mean activation at each position, over all its rows, [T].
    pub(crate) mean_by_position: Vec<f64>,
    pub(crate) tokens: Vec<TokenSum>,
    /// The same of the tokens that precede firings.
    pub(crate) tokens_before: Vec<TokenSum>,
    pub(crate) cofiring: Vec<Cofiring>,
    pub(crate) neighbours: Vec<Best>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) logits: Option<Logits>,
}

/// An activation with the text around it.
#[derive(Debug, Serialize)]
pub(crate) struct Excerpt {
    pub(crate) context: usize,
    pub(crate) position: usize,
    pub(crate) activation: f32,
    /// The position of the first token that is shown.
    pub(crate) start: usize,
    pub(crate) tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) texts: Option<Vec<String>>,
    /// Of the feature, at each token that is shown.
    pub(crate) activations: Vec<f32>,
}

/// Some of the activations of a range, evenly spread over it.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) of: String,
    pub(crate) excerpts: Vec<Excerpt>,
}

/// Firings at one token.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct TokenSum {
    pub(crate) token: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    pub(crate) firings: u64,
    pub(crate) mean: f64,
    /// Of the sum of all activations.
    pub(crate) share: f64,
}

/// Another feature that fires in the same rows.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Cofiring {
    pub(crate) feature: usize,
    /// Rows in which both fire.
    pub(crate) both: u64,
    /// Their share of the rows in which either fires.
    pub(crate) jaccard: f64,
}

/// What a decoder row adds to the logits, before the final norm's scale.
#[derive(Debug, Serialize)]
pub(crate) struct Logits {
    pub(crate) top: Vec<Effect>,
    pub(crate) bottom: Vec<Effect>,
}

/// On one token.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Effect {
    pub(crate) token: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    pub(crate) logit: f32,
}

/// What excerpts are cut from.
struct Cutting<'a> {
    firings: &'a [Firing],
    tokens: &'a [u32],
    length: usize,
    texts: Option<&'a Texts>,
}

/// What the details of all features of an index are made of.
pub(crate) struct Ground<'a> {
    pub(crate) index: &'a Index,
    /// By place.
    pub(crate) tokens: &'a [u32],
    pub(crate) texts: Option<&'a Texts>,
}

/// How a feature stands to others, and what it does.
pub(crate) struct Relations {
    pub(crate) cofiring: Vec<Cofiring>,
    /// The nearest decoder rows, the nearest first.
    pub(crate) neighbours: Vec<Best>,
    pub(crate) logits: Option<Logits>,
}

impl Detail {
    /// Of feature `feature`, which fires at `firings`.
    pub(crate) fn new(
        ground: &Ground<'_>,
        feature: usize,
        firings: &[Firing],
        relations: Relations,
    ) -> Detail {
        let Ground { index, tokens, texts } = *ground;
        let record = &index.record;
        let length = record.context_length;
        let cutting = Cutting { firings, tokens, length, texts };
        let mut sums = vec![0.0; length];
        for firing in firings {
            sums[firing.place() as usize % length] += f64::from(firing.activation());
        }
        let total = sums.iter().sum();
        let at = |firing: &Firing| Some(tokens[firing.place() as usize]);
        let before = |firing: &Firing| {
            let place = firing.place() as usize;
            (!place.is_multiple_of(length)).then(|| tokens[place - 1])
        };
        Detail {
            figures: index.figures[feature].clone(),
            top: top(firings, length).iter().map(|firing| cutting.excerpt(*firing)).collect(),
            samples: samples(firings)
                .into_iter()
                .map(|(of, firings)| Sample {
                    of,
                    excerpts: firings.into_iter().map(|firing| cutting.excerpt(firing)).collect(),
                })
                .collect(),
            mean_by_position: position_means(&sums, &record.rows_by_position),
            tokens: token_sums(firings, at, total, texts),
            tokens_before: token_sums(firings, before, total, texts),
            cofiring: relations.cofiring,
            neighbours: relations.neighbours.into_iter().take(LISTED).collect(),
            logits: relations.logits,
        }
    }
}

impl Logits {
    /// Of what a direction adds to the logit of each token, [vocabulary].
    pub(crate) fn of(effects: ArrayView1<'_, f32>, texts: Option<&Texts>) -> Logits {
        let effect = |token: u32| Effect { token, text: text(token, texts), logit: effects[token as usize] };
        let largest = |sign: f32| {
            let by = |a: &u32, b: &u32| {
                let of = |token: &u32| sign * effects[*token as usize];
                of(b).total_cmp(&of(a)).then(a.cmp(b))
            };
            let mut order: Vec<u32> = (0..effects.len() as u32).collect();
            if order.len() > LISTED {
                order.select_nth_unstable_by(LISTED, by);
                order.truncate(LISTED);
            }
            order.sort_by(by);
            order.into_iter().map(effect).collect()
        };
        Logits { top: largest(1.0), bottom: largest(-1.0) }
    }
}

fn text(token: u32, texts: Option<&Texts>) -> Option<String> {
    texts.and_then(|texts| texts.of(token)).map(str::to_owned)
}

impl Cutting<'_> {
    fn excerpt(&self, firing: Firing) -> Excerpt {
        let place = firing.place() as usize;
        let (context, position) = (place / self.length, place % self.length);
        let start = position.saturating_sub(BEFORE);
        let end = (position + BEHIND + 1).min(self.length);
        let places = context * self.length + start..context * self.length + end;
        let activation = |place: usize| {
            let found = self.firings.binary_search_by_key(&(place as u32), |firing| firing.place());
            found.map_or(0.0, |at| self.firings[at].activation())
        };
        let tokens = &self.tokens[places.clone()];
        let texts = self.texts.map(|texts| {
            tokens.iter().map(|token| texts.of(*token).unwrap_or(&format!("{token}")).to_owned()).collect()
        });
        Excerpt {
            context,
            position,
            activation: firing.activation(),
            start,
            tokens: tokens.to_vec(),
            texts,
            activations: places.map(activation).collect(),
        }
    }
}

/// The largest firing, the first of equals, of each of the contexts in which that is largest.
fn top(firings: &[Firing], length: usize) -> Vec<Firing> {
    let context = |firing: &Firing| firing.place() as usize / length;
    let mut largest: Vec<Firing> = Vec::new();
    for firing in firings {
        match largest.last_mut() {
            Some(last) if context(last) == context(firing) => {
                if firing.bits() > last.bits() {
                    *last = *firing;
                }
            }
            _ => largest.push(*firing),
        }
    }
    // A stable sort: the first of equals stays first.
    largest.sort_by_key(|firing| std::cmp::Reverse(firing.bits()));
    largest.truncate(TOP);
    largest
}

/// Firings of each tenth by activation, the lowest first, and those nearest to a tenth of the maximum.
fn samples(firings: &[Firing]) -> Vec<(String, Vec<Firing>)> {
    let mut sorted = firings.to_vec();
    sorted.sort_by_key(|firing| firing.bits());
    let tenth = |of: usize| {
        let range = &sorted[of * sorted.len() / 10..(of + 1) * sorted.len() / 10];
        let count = range.len().min(SAMPLE);
        let spread = (0..count).map(|at| range[(2 * at + 1) * range.len() / (2 * count)]);
        (format!("{} to {} % of the activations, from the lowest", 10 * of, 10 * (of + 1)), spread.collect())
    };
    let mut all: Vec<(String, Vec<Firing>)> = (0..10).map(tenth).collect();
    let Some(largest) = sorted.last() else { return all };
    let distance = |firing: &Firing| (firing.activation() - largest.activation() / 10.0).abs();
    let mut near = sorted.clone();
    near.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.place().cmp(&b.place())));
    near.truncate(SAMPLE);
    all.push(("nearest to 10 % of the maximum".to_owned(), near));
    all
}

/// The tokens with the largest sums of activations, the lowest id first of equals.
fn token_sums(
    firings: &[Firing],
    token: impl Fn(&Firing) -> Option<u32>,
    total: f64,
    texts: Option<&Texts>,
) -> Vec<TokenSum> {
    let mut sums: HashMap<u32, (u64, f64)> = HashMap::new();
    for firing in firings {
        if let Some(token) = token(firing) {
            let (count, sum) = sums.entry(token).or_default();
            *count += 1;
            *sum += f64::from(firing.activation());
        }
    }
    let mut sums: Vec<(u32, (u64, f64))> = sums.into_iter().collect();
    sums.sort_by(|(a, (_, of_a)), (b, (_, of_b))| of_b.total_cmp(of_a).then(a.cmp(b)));
    let listed = sums.into_iter().take(LISTED);
    let listed = listed.map(|(token, (firings, sum))| TokenSum {
        token,
        text: text(token, texts),
        firings,
        mean: sum / firings as f64,
        share: sum / total,
    });
    listed.collect()
}

/// The features that share most of their rows with `feature`: `both` has the rows that each shares with it, `firings` the rows of
/// each, of all or of those that were looked at.
pub(crate) fn cofiring(
    feature: usize,
    both: impl Iterator<Item = (usize, u64)>,
    firings: impl Fn(usize) -> u64,
) -> Vec<Cofiring> {
    let own = firings(feature);
    let others = both.filter(|(other, both)| *other != feature && *both > 0);
    let mut found: Vec<Cofiring> = others
        .map(|(other, both)| {
            let either = (own + firings(other)).saturating_sub(both);
            Cofiring { feature: other, both, jaccard: both as f64 / either as f64 }
        })
        .collect();
    found.sort_by(|a, b| b.jaccard.total_cmp(&a.jaccard).then(a.feature.cmp(&b.feature)));
    found.truncate(LISTED);
    found
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn firings(all: &[(u32, f32)]) -> Vec<Firing> {
        all.iter().map(|(place, a)| Firing::new(0, *place, f16::from_f32(*a))).collect()
    }

    fn values(firings: &[Firing]) -> Vec<(u32, f32)> {
        firings.iter().map(|firing| (firing.place(), firing.activation())).collect()
    }

    #[test]
    fn each_context_is_at_the_top_once() {
        let firings = firings(&[(0, 1.0), (2, 3.0), (3, 3.0), (4, 5.0), (9, 3.0)]);
        assert_eq!(values(&top(&firings, 4)), [(4, 5.0), (2, 3.0), (9, 3.0)]);
    }

    #[test]
    fn samples_reach_from_the_lowest_to_the_highest() {
        let all: Vec<(u32, f32)> = (0..100).map(|place| (place, 100.0 - place as f32)).collect();
        let found = samples(&firings(&all));
        assert_eq!(found.len(), 11);
        assert_eq!(values(&found[0].1), [(98, 2.0), (96, 4.0), (94, 6.0), (92, 8.0), (90, 10.0)]);
        assert_eq!(found[9].1.last().map(|firing| firing.activation()), Some(100.0));
        // A tenth of 100, and its neighbours on both sides.
        assert_eq!(values(&found[10].1), [(90, 10.0), (89, 11.0), (91, 9.0), (88, 12.0), (92, 8.0)]);
        assert!(samples(&[]).iter().all(|(_, firings)| firings.is_empty()));
    }

    #[test]
    fn an_excerpt_stays_within_its_context() {
        let tokens: Vec<u32> = (100..200).collect();
        let firings = firings(&[(50, 1.0), (51, 2.0), (99, 4.0)]);
        let cutting = Cutting { firings: &firings, tokens: &tokens, length: 50, texts: None };
        let excerpt = cutting.excerpt(firings[1]);
        assert_eq!((excerpt.context, excerpt.position, excerpt.start), (1, 1, 0));
        assert_eq!((excerpt.tokens[0], excerpt.tokens.len()), (150, 10));
        assert_eq!(&excerpt.activations[..3], [1.0, 2.0, 0.0]);
        let last = cutting.excerpt(firings[2]);
        assert_eq!((last.start, last.tokens.last(), last.tokens.len()), (29, Some(&199), 21));
    }
}
