//! Features as a person reads them.

use terminal::{Piece, foreign, foreign_path};

use super::detail::{Detail, Excerpt, TokenSum};
use super::figures::{Figures, QUANTILES, TokenShare};
use super::index::Index;
use super::texts::Texts;
use crate::command::arguments::FeatureKind;
use crate::report::table::{columns, grouped, number, pairs, share};

/// Contexts that are shown of the largest, and of each sample.
const TOP: usize = 10;
const SAMPLE: usize = 3;
/// The samples that are shown: the lowest tenth, the middle, and those near a tenth of the maximum.
const SAMPLES: [usize; 3] = [0, 5, 10];

/// What an index holds.
pub(super) fn summary(index: &Index) -> String {
    let record = &index.record;
    let mut lines = vec![
        ("rows", grouped(record.rows())),
        ("activations", grouped(record.firings)),
        ("features", grouped(record.features as u64)),
    ];
    let kinds = FeatureKind::KINDS.iter().filter(|kind| record.texts || **kind != FeatureKind::Punctuation);
    lines.extend(kinds.map(|kind| (kind.name(), grouped(index.of_kind(*kind).count() as u64))));
    if record.clipped > 0 {
        lines.push(("beyond float16, clipped to 65504", grouped(record.clipped)));
    }
    format!("{} of {}\n{}", foreign(&record.hook), foreign_path(&record.store), pairs(&lines))
}

/// A line for each of some features.
pub(super) fn list(features: &[&Figures], texts: Option<&Texts>) -> String {
    let head =
        ["feature", "density", "maximum", "positional", "strongest token", "nearest", "cosine", "kinds"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(features.iter().map(|of| {
        let token = of.token.map_or(String::new(), |token| token_share(token, texts));
        let (nearest, cosine) =
            of.nearest.map_or_else(Default::default, |best| (best.feature.to_string(), cosine(best.cosine)));
        let (density, positional) = (number(of.density), share(of.positional_share));
        let maximum = number(f64::from(of.maximum));
        vec![of.feature.to_string(), density, maximum, positional, token, nearest, cosine, kinds(of)]
    }));
    columns(&rows)
}

fn cosine(cosine: f32) -> String {
    share(f64::from(cosine))
}

fn kinds(of: &Figures) -> String {
    of.kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

fn token_share(TokenShare { token, share }: TokenShare, texts: Option<&Texts>) -> String {
    format!("{} {:.0} %", token_name(token, texts.and_then(|texts| texts.of(token))), 100.0 * share)
}

/// A token's text, or its id.
fn token_name(token: u32, text: Option<&str>) -> String {
    text.map_or_else(|| format!("token {token}"), |text| format!("\"{}\"", foreign(text)))
}

/// Prints one feature; on a terminal, its contexts are coloured by activation.
pub(super) fn print(index: &Index, detail: &Detail) {
    let of = &detail.figures;
    let record = &index.record;
    let mut lines = vec![(
        "fires in",
        format!(
            "{} of {} rows, {} %",
            grouped(of.firings),
            grouped(record.rows()),
            number(100.0 * of.density)
        ),
    )];
    if of.firings > 0 {
        let quantiles = QUANTILES.iter().zip(&of.quantiles);
        let quantiles =
            quantiles.map(|(q, value)| format!("{} ({:.0} %)", number(f64::from(*value)), 100.0 * q));
        lines.push(("maximum, mean", format!("{}, {}", number(f64::from(of.maximum)), number(of.mean))));
        lines.push(("quantiles", quantiles.collect::<Vec<_>>().join(", ")));
        lines.push(("histogram", format!("{} up to the maximum, logarithmic", bars(&of.histogram))));
        lines.push(("explained by position", share(of.positional_share)));
        lines.push(("strongest tokens", tokens(&detail.tokens)));
        lines.push(("tokens before", tokens(&detail.tokens_before)));
    }
    if !of.kinds.is_empty() {
        lines.insert(0, ("is", kinds(of)));
    }
    let cofiring =
        detail.cofiring.iter().map(|other| format!("{} ({})", other.feature, share(other.jaccard)));
    lines.push(("fires with (Jaccard)", cofiring.collect::<Vec<_>>().join(", ")));
    let near = detail.neighbours.iter().map(|best| format!("{} ({})", best.feature, cosine(best.cosine)));
    lines.push(("nearest decoder rows", near.collect::<Vec<_>>().join(", ")));
    if let Some(logits) = &detail.logits {
        for (name, effects) in [("raises the logits of", &logits.top), ("lowers those of", &logits.bottom)] {
            let effects = effects.iter().map(|of| {
                format!("{} {}", token_name(of.token, of.text.as_deref()), number(f64::from(of.logit)))
            });
            lines.push((name, effects.collect::<Vec<_>>().join(", ")));
        }
    }
    terminal::report!("feature {} of {}\n{}", of.feature, foreign(&record.hook), pairs(&lines).trim_end());
    excerpts("largest activations, a context once", &detail.top, TOP, of.maximum);
    for sample in SAMPLES.iter().filter_map(|at| detail.samples.get(*at)) {
        excerpts(&sample.of, &sample.excerpts, SAMPLE, of.maximum);
    }
}

fn tokens(sums: &[TokenSum]) -> String {
    let sums = sums
        .iter()
        .take(6)
        .map(|of| format!("{} {:.0} %", token_name(of.token, of.text.as_deref()), 100.0 * of.share));
    sums.collect::<Vec<_>>().join(", ")
}

/// A bar for each count, its height by the count's logarithm.
fn bars(counts: &[u64]) -> String {
    let most = counts.iter().copied().max().unwrap_or(0) as f64;
    let bar = |count: &u64| match *count {
        0 => ' ',
        count => ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
            [(7.0 * (count as f64).ln_1p() / most.ln_1p()).round() as usize],
    };
    counts.iter().map(bar).collect()
}

fn excerpts(title: &str, excerpts: &[Excerpt], count: usize, maximum: f32) {
    if excerpts.is_empty() {
        return;
    }
    terminal::report!("{title}:");
    for excerpt in excerpts.iter().take(count) {
        let place = format!("{}:{}", excerpt.context, excerpt.position);
        let head = format!("  {:>8}  {place:>10}  ", number(f64::from(excerpt.activation)));
        let mut pieces = vec![Piece::plain(head)];
        for (at, token) in excerpt.tokens.iter().enumerate() {
            let activation = excerpt.activations[at];
            let text = excerpt.texts.as_ref().map_or_else(|| token.to_string(), |texts| texts[at].clone());
            let strength = (activation > 0.0).then_some(activation / maximum);
            pieces.push(Piece { text, strength, marked: excerpt.start + at == excerpt.position });
            if excerpt.texts.is_none() {
                pieces.push(Piece::plain(" "));
            }
        }
        terminal::write_shaded(&pieces);
    }
}
