//! The features of one autoencoder: a table of all, and a page of each, some features to a script.

use anyhow::Result;
use rayon::prelude::*;
use serde_json::{Value, json};
use terminal::Interrupt;

use super::data::{Data, short};
use super::subjects::{self, Indexed, Subject};
use crate::command::arguments::{FeatureKind, ReportArguments};
use crate::compare::features::FeatureMatches;
use crate::laboratory::features::{Detail, Details, Effect, Excerpt, Figures, Index, TokenSum};
use crate::laboratory::similarity::Best;
use crate::report::progress::{self, proceed};

/// Features whose pages are in one script.
const CHUNK: usize = 64;
/// Contexts of the largest activations on a page.
const TOP: usize = 15;
/// The samples on a page, by their number in [`Detail`]: the lowest tenth, three others, and those near a tenth of the maximum.
const SAMPLES: [usize; 5] = [0, 3, 6, 9, 10];
/// Excerpts of a sample.
const SAMPLE: usize = 3;
/// Tokens by which a feature is found.
const TOKENS: usize = 6;

/// What the pages of all features of an autoencoder are made of.
struct Pages<'a> {
    index: &'a Index,
    /// For each other autoencoder its number, and the best match of each feature that was compared.
    matches: Vec<(usize, Vec<Option<Best>>)>,
}

/// Writes the table and the pages of the autoencoder with this number.
pub(super) fn write(
    arguments: &ReportArguments,
    subject: &Subject,
    number: usize,
    indexed: &Indexed,
    matches: &[(usize, &FeatureMatches)],
    data: &mut Data,
    interrupt: &Interrupt,
) -> Result<()> {
    let index = &indexed.index;
    let features = index.record.features;
    let shown =
        arguments.features.and_then(|most| usize::try_from(most).ok()).unwrap_or(features).min(features);
    let model = subjects::model(arguments)?;
    let all = Details::new(index, &indexed.folder, &subject.sae, model.as_deref())?;
    let by_feature = |found: &FeatureMatches| {
        let mut all = vec![None; features];
        found.matches.iter().for_each(|of| all[of.feature as usize] = Some(of.decoder));
        all
    };
    let matches = matches.iter().map(|(other, found)| (*other, by_feature(found))).collect();
    let pages = Pages { index, matches };

    let bar = progress::counted(&format!("{}: writing", subject.name), shown as u64, "features");
    let mut strongest: Vec<Vec<u32>> = Vec::with_capacity(shown);
    for first in (0..shown).step_by(CHUNK) {
        proceed(interrupt)?;
        let chunk = first..(first + CHUNK).min(shown);
        let details = all.of(chunk.clone())?;
        strongest.extend(details.iter().map(|of| of.tokens.iter().take(TOKENS).map(|of| of.token).collect()));
        let written: Vec<Value> = details.par_iter().map(page).collect();
        data.put(&format!("{number}-features-{}", first / CHUNK), &written)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    data.put(&format!("{number}-features"), &pages.table(shown, &strongest))
}

impl Pages<'_> {
    /// A column for each number of the first `shown` features.
    fn table(&self, shown: usize, strongest: &[Vec<u32>]) -> Value {
        let figures = &self.index.figures[..shown];
        let column = |of: &dyn Fn(&Figures) -> Value| -> Vec<Value> { figures.iter().map(of).collect() };
        let number = |of: &dyn Fn(&Figures) -> f64| column(&|figures| short(of(figures)).into());
        let kinds = |of: &Figures| -> u32 {
            let is = |kind: &FeatureKind| of.kinds.contains(kind);
            FeatureKind::KINDS.iter().enumerate().map(|(at, kind)| u32::from(is(kind)) << at).sum()
        };
        let matches = self.matches.iter().map(|(other, best)| {
            json!({
                "run": other,
                "feature": best[..shown].iter().map(|best| best.map(|best| best.feature)).collect::<Vec<_>>(),
                "cosine": best[..shown].iter().map(|best| best.map(|best| short(f64::from(best.cosine)))).collect::<Vec<_>>(),
            })
        });
        json!({
            "features": self.index.record.features,
            "chunk": CHUNK,
            "firings": column(&|of| of.firings.into()),
            "density": number(&|of| of.density),
            "maximum": number(&|of| f64::from(of.maximum)),
            "mean": number(&|of| of.mean),
            "positional": number(&|of| of.positional_share),
            "punctuation": column(&|of| of.punctuation_share.map(short).into()),
            "kinds": column(&|of| kinds(of).into()),
            "nearest": column(&|of| of.nearest.map(|best| best.feature).into()),
            "cosine": column(&|of| of.nearest.map(|best| short(f64::from(best.cosine))).into()),
            "tokens": strongest,
            "matches": matches.collect::<Vec<_>>(),
        })
    }
}

/// A feature as its page reads it.
fn page(of: &Detail) -> Value {
    let samples = SAMPLES.iter().filter_map(|at| of.samples.get(*at)).map(|sample| {
        json!({"of": sample.of, "excerpts": sample.excerpts.iter().take(SAMPLE).map(excerpt).collect::<Vec<_>>()})
    });
    let sums = |of: &[TokenSum]| -> Vec<Value> {
        of.iter().map(|of| json!([of.token, of.firings, short(of.mean), short(of.share)])).collect()
    };
    let effects = |of: &[Effect]| -> Vec<Value> {
        of.iter().map(|of| json!([of.token, short(f64::from(of.logit))])).collect()
    };
    json!({
        "feature": of.figures.feature,
        "quantiles": of.figures.quantiles.iter().map(|q| short(f64::from(*q))).collect::<Vec<_>>(),
        "histogram": of.figures.histogram,
        "positions": of.mean_by_position.iter().map(|mean| short(*mean)).collect::<Vec<_>>(),
        "top": of.top.iter().take(TOP).map(excerpt).collect::<Vec<_>>(),
        "samples": samples.collect::<Vec<_>>(),
        "tokens": sums(&of.tokens),
        "before": sums(&of.tokens_before),
        "cofiring": of.cofiring.iter().map(|other| json!([other.feature, short(other.jaccard)])).collect::<Vec<_>>(),
        "neighbours": of.neighbours.iter().map(|best| json!([best.feature, short(f64::from(best.cosine))])).collect::<Vec<_>>(),
        "logits": of.logits.as_ref().map(|logits| json!({"top": effects(&logits.top), "bottom": effects(&logits.bottom)})),
    })
}

/// Context, position, first position shown, tokens, and the activations that are not 0 with their place among these.
fn excerpt(of: &Excerpt) -> Value {
    let activations = of.activations.iter().enumerate().filter(|(_, a)| **a > 0.0);
    let activations: Vec<Value> = activations.map(|(at, a)| json!([at, short(f64::from(*a))])).collect();
    json!([of.context, of.position, of.start, of.tokens, activations])
}
