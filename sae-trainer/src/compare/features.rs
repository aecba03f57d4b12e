//! What two autoencoders have learned alike: for each feature of one its best match in the other, by the cosine similarity of
//! their decoder rows and of their encoder columns.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ndarray::{Array2, Axis};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sae::Sae;
use serde::Serialize;
use terminal::foreign_path;

use crate::autoencoder::load_and_tell;
use crate::laboratory::similarity::{Best, best, unit_rows};
use crate::report::table::{columns, grouped, share};

/// Random directions whose best match says what chance alone gives.
const DIRECTIONS: usize = 256;
/// The cosines above which features are counted, as in the literature.
const LEVELS: [f32; 3] = [0.9, 0.8, 0.7];
/// A feature whose best match is below this is in one autoencoder alone.
const ALONE: f32 = 0.5;
/// Most features that the text names.
const NAMED: usize = 10;
/// log10(1e-10), by which files mark a feature that never fired.
const SILENT: f32 = -9.9;

/// An autoencoder with its features as unit vectors.
pub(crate) struct Directions {
    folder: PathBuf,
    /// F.
    features: usize,
    /// The features that are compared: those that fire, where the file says which do.
    compared: Vec<u32>,
    /// [features compared, d], each row of norm 1 or 0.
    pub(crate) decoder: Array2<f32>,
    encoder: Array2<f32>,
}

/// The best match of each feature of `a` among those of `b`.
#[derive(Debug, Serialize)]
pub(crate) struct FeatureMatches {
    a: PathBuf,
    b: PathBuf,
    /// F of each.
    features_a: usize,
    features_b: usize,
    /// Of these, how many fire and so are compared.
    compared_a: usize,
    compared_b: usize,
    decoder: Similarity,
    encoder: Similarity,
    /// Features of `a` whose decoder row has a cosine below 0.5 with all of `b`, the lowest first.
    only_in_a: Vec<u32>,
    /// Features that are each other's best match, by their decoder rows.
    mutual: usize,
    #[serde(skip)]
    pub(crate) matches: Vec<FeatureMatch>,
}

/// How the best cosines are distributed.
#[derive(Debug, Serialize)]
struct Similarity {
    median: f32,
    mean: f32,
    over_0_9: f64,
    over_0_8: f64,
    over_0_7: f64,
    /// Median best cosine of random directions.
    chance: f32,
    /// Counts over 40 equal intervals of [-1, 1].
    histogram: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct FeatureMatch {
    pub(crate) feature: u32,
    pub(crate) decoder: Best,
    pub(crate) encoder: Best,
}

/// Matches the features of the first autoencoder with those of each other. A folder is a run or an autoencoder's own.
pub(super) fn match_features(folders: &[PathBuf]) -> Result<Vec<FeatureMatches>> {
    let [first, others @ ..] = folders else { return Ok(Vec::new()) };
    ensure!(!others.is_empty(), "features are compared between autoencoders: name at least two");
    let a = Directions::load(first)?;
    others.iter().map(|other| matches(&a, &Directions::load(other)?)).collect()
}

impl Directions {
    /// Of the run or autoencoder in `folder`.
    fn load(folder: &Path) -> Result<Directions> {
        let found = Directions::of(folder, &load_and_tell(folder)?);
        found.with_context(|| format!("no feature of {} fires", foreign_path(folder)))
    }

    /// Of `sae`, which is in `folder`; none if none of its features fires.
    pub(crate) fn of(folder: &Path, sae: &Sae) -> Option<Directions> {
        let Sae { weights, log_sparsity, .. } = sae;
        let fires = |feature: &u32| log_sparsity.as_ref().is_none_or(|of| of[*feature as usize] > SILENT);
        let compared: Vec<u32> = (0..weights.d_sae() as u32).filter(fires).collect();
        let at: Vec<usize> = compared.iter().map(|feature| *feature as usize).collect();
        let decoder = unit_rows(weights.w_dec.select(Axis(0), &at));
        let encoder = unit_rows(weights.w_enc.t().select(Axis(0), &at));
        let features = weights.d_sae();
        (!compared.is_empty()).then(|| Directions {
            folder: folder.to_owned(),
            features,
            compared,
            decoder,
            encoder,
        })
    }
}

/// Matches the features of `a` with those of `b`.
pub(crate) fn matches(a: &Directions, b: &Directions) -> Result<FeatureMatches> {
    let (width, other) = (a.decoder.ncols(), b.decoder.ncols());
    ensure!(
        width == other,
        "{} has rows of {width} numbers and {} of {other}: their features cannot be compared",
        foreign_path(&a.folder),
        foreign_path(&b.folder)
    );
    let decoder = best(a.decoder.view(), b.decoder.view());
    let encoder = best(a.encoder.view(), b.encoder.view());
    let back = best(b.decoder.view(), a.decoder.view());
    let mutual =
        decoder.iter().enumerate().filter(|(at, found)| back[found.feature as usize].feature as usize == *at);
    let mutual = mutual.count();
    let random = random_directions(width);
    let similarity =
        |of: &[Best], others: &Array2<f32>| Similarity::new(of, &best(random.view(), others.view()));
    let (of_decoder, of_encoder) = (similarity(&decoder, &b.decoder), similarity(&encoder, &b.encoder));
    let named = |best: Best| Best { feature: b.compared[best.feature as usize], ..best };
    let matches: Vec<FeatureMatch> = a
        .compared
        .iter()
        .zip(decoder.into_iter().zip(encoder))
        .map(|(feature, (decoder, encoder))| FeatureMatch {
            feature: *feature,
            decoder: named(decoder),
            encoder: named(encoder),
        })
        .collect();
    let mut alone: Vec<&FeatureMatch> = matches.iter().filter(|found| found.decoder.cosine < ALONE).collect();
    alone.sort_by(|a, b| a.decoder.cosine.total_cmp(&b.decoder.cosine));
    Ok(FeatureMatches {
        a: a.folder.clone(),
        b: b.folder.clone(),
        features_a: a.features,
        features_b: b.features,
        compared_a: a.compared.len(),
        compared_b: b.compared.len(),
        decoder: of_decoder,
        encoder: of_encoder,
        only_in_a: alone.iter().map(|found| found.feature).collect(),
        mutual,
        matches,
    })
}

/// [`DIRECTIONS`] directions, each the same in every comparison of one width: a vector of independent normal numbers points
/// anywhere alike.
fn random_directions(width: usize) -> Array2<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut uniform = || (f64::from(random.next_u32()) + 0.5) / 2f64.powi(32);
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    unit_rows(Array2::from_shape_simple_fn((DIRECTIONS, width), || normal() as f32))
}

impl Similarity {
    fn new(found: &[Best], random: &[Best]) -> Similarity {
        let over =
            |level: f32| found.iter().filter(|of| of.cosine > level).count() as f64 / found.len() as f64;
        let mut histogram = vec![0; 40];
        for of in found {
            histogram[((of.cosine + 1.0) * 20.0).clamp(0.0, 39.0) as usize] += 1;
        }
        let sum: f64 = found.iter().map(|of| f64::from(of.cosine)).sum();
        let [over_0_9, over_0_8, over_0_7] = LEVELS.map(over);
        Similarity {
            median: median(found),
            mean: (sum / found.len() as f64) as f32,
            over_0_9,
            over_0_8,
            over_0_7,
            chance: median(random),
            histogram,
        }
    }
}

fn median(found: &[Best]) -> f32 {
    let mut cosines: Vec<f32> = found.iter().map(|of| of.cosine).collect();
    cosines.sort_by(f32::total_cmp);
    (cosines[(cosines.len() - 1) / 2] + cosines[cosines.len() / 2]) / 2.0
}

/// The figures for a person.
pub(super) fn text(matches: &FeatureMatches) -> String {
    let FeatureMatches { decoder, encoder, .. } = matches;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let cosine = |value: f32| share(f64::from(value));
    let line =
        |name: &str, of: &dyn Fn(&Similarity) -> String| vec![name.to_owned(), of(decoder), of(encoder)];
    let rows = [
        vec!["  best cosine".to_owned(), "decoder".to_owned(), "encoder".to_owned()],
        line("  median", &|of| cosine(of.median)),
        line("  over 0.9", &|of| percent(of.over_0_9)),
        line("  over 0.8", &|of| percent(of.over_0_8)),
        line("  over 0.7", &|of| percent(of.over_0_7)),
        line("  median of random directions", &|of| cosine(of.chance)),
    ];
    let compared = |count: usize, of: usize| match count == of {
        true => grouped(of as u64),
        false => format!("{} of {}", grouped(count as u64), grouped(of as u64)),
    };
    let mut text = format!(
        "features of {} ({} that fire) in {} ({})\n{}",
        foreign_path(&matches.a),
        compared(matches.compared_a, matches.features_a),
        foreign_path(&matches.b),
        compared(matches.compared_b, matches.features_b),
        columns(&rows),
    );
    let alone = &matches.only_in_a;
    let named: Vec<String> = alone.iter().take(NAMED).map(u32::to_string).collect();
    let further = if alone.len() > NAMED { ", ..." } else { "" };
    let named = if named.is_empty() { String::new() } else { format!(": {}{further}", named.join(", ")) };
    writeln!(text, "  {} are each other's best match", grouped(matches.mutual as u64))
        .expect("text can be written");
    writeln!(text, "  {} have no match over {ALONE}{named}", grouped(alone.len() as u64))
        .expect("text can be written");
    text
}

/// A line for each feature of the first autoencoder in every other, as CSV.
pub(super) fn csv(all: &[FeatureMatches]) -> String {
    let mut text = "other,feature,decoder_match,decoder_cosine,encoder_match,encoder_cosine\n".to_owned();
    for matches in all {
        let other = quoted(&foreign_path(&matches.b).to_string());
        for FeatureMatch { feature, decoder, encoder } in &matches.matches {
            let (Best { feature: row, cosine: of_row }, Best { feature: column, cosine: of_column }) =
                (decoder, encoder);
            writeln!(text, "{other},{feature},{row},{of_row},{column},{of_column}")
                .expect("text can be written");
        }
    }
    text
}

/// A field of CSV (RFC 4180).
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use sae::{Config, Metadata, Weights};

    /// An autoencoder whose features point along the rows of `decoder`, and the other way around in the encoder.
    fn saved(folder: &Path, decoder: Array2<f32>, log_sparsity: Option<Vec<f32>>) -> PathBuf {
        let (f, d) = decoder.dim();
        let mut weights = Weights::init(d, f, 0);
        weights.w_enc = -&decoder.t();
        weights.w_dec = decoder;
        let config = Config::standard(d, f, false, Metadata::default());
        Sae { weights, config, log_sparsity }.save(folder).unwrap();
        folder.to_owned()
    }

    #[test]
    fn a_planted_twin_an_opposite_and_a_stranger_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let a = array![[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]];
        let b = array![[0.0, -1.0, 0.0], [5.0, 0.0, 0.0], [1.0, 1.0, 0.0]];
        let silent = Some(vec![-1.0, -2.0, -3.0, -10.0]);
        let folders = [saved(&dir.path().join("a"), a, silent), saved(&dir.path().join("b"), b, None)];
        let all = match_features(&folders).unwrap();
        let [found] = &all[..] else { panic!("two autoencoders make one comparison") };
        let best: Vec<(u32, u32, f32)> =
            found.matches.iter().map(|of| (of.feature, of.decoder.feature, of.decoder.cosine)).collect();
        let diagonal = 0.5_f32.sqrt();
        assert_eq!(best.iter().map(|of| (of.0, of.1)).collect::<Vec<_>>(), [(0, 1), (1, 2), (2, 0)]);
        assert!((best[0].2 - 1.0).abs() < 1e-6 && (best[1].2 - diagonal).abs() < 1e-6 && best[2].2 == 0.0);
        assert!(found.matches.iter().all(|of| of.decoder == of.encoder), "both are turned around");
        assert_eq!((found.compared_a, found.features_a, found.compared_b), (3, 4, 3));
        assert_eq!((&found.only_in_a[..], found.mutual), (&[2][..], 1));
        assert!((found.decoder.median - diagonal).abs() < 1e-6);
        assert!(
            (found.decoder.over_0_9 - 1.0 / 3.0).abs() < 1e-9
                && (found.decoder.over_0_7 - 2.0 / 3.0).abs() < 1e-9
        );
        assert_eq!(found.decoder.histogram.iter().sum::<usize>(), 3);
        let csv = csv(&all);
        assert_eq!(csv.lines().count(), 4);
        assert!(csv.lines().nth(1).unwrap().ends_with(",0,1,1,1,1"), "{csv}");
        let text = text(found);
        assert!(
            text.contains("(3 of 4 that fire)") && text.contains("1 have no match over 0.5: 2"),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let narrow = saved(&dir.path().join("narrow"), array![[1.0, 0.0]], None);
        let wide = saved(&dir.path().join("wide"), array![[1.0, 0.0, 0.0]], None);
        let dead = saved(&dir.path().join("dead"), array![[1.0, 0.0]], Some(vec![-10.0]));
        let error = |folders: &[&PathBuf]| {
            let folders: Vec<PathBuf> = folders.iter().map(|folder| (*folder).clone()).collect();
            match_features(&folders).unwrap_err().to_string()
        };
        assert!(error(&[&narrow, &wide]).contains("2 numbers"));
        assert!(error(&[&narrow, &dead]).contains("no feature"));
        assert!(error(&[&narrow]).contains("at least two"));
    }

    #[test]
    fn a_name_with_a_comma_is_one_field() {
        assert_eq!((quoted("a/b"), quoted("l1,\"x\"")), ("a/b".into(), "\"l1,\"\"x\"\"\"".into()));
    }
}
