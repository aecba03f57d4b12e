//! `sae-trainer features`: what the features of an autoencoder respond to.
//!
//! - `build` encodes the rows of a store once: [`spill`] sorts what comes of it by feature, [`figures`] says what a feature's
//!   [`firing`]s tell, [`index`] is what is written.
//! - [`detail`] is what an index knows of one feature, `show` prints it; [`details`] makes those of all, for which [`rows`] turns the index
//!   around; `correlations` are those with other features and with the model's neurons, for exports; `texts` has what tokens say, `weights` what the index is of.

mod build;
mod correlations;
mod detail;
mod details;
mod figures;
mod firing;
mod index;
mod rows;
mod show;
mod spill;
mod texts;
mod weights;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use language_model::hub;
use serde_json::json;
use terminal::{Interrupt, foreign_path};

use super::similarity::{nearest_to, unit_rows};
use crate::autoencoder::{address, autoencoder_of};
use crate::command::arguments::{FeatureKind, FeaturesArguments};

pub(crate) use self::build::build;
pub(crate) use self::correlations::{
    Correlated, Correlation, Unmasked, correlations, memory as memory_of_correlations,
};
pub(crate) use self::detail::{Detail, Effect, Excerpt, TokenSum};
use self::detail::{Ground, Logits, Relations, cofiring};
pub(crate) use self::details::Details;
pub(crate) use self::figures::Figures;
pub(crate) use self::index::{Index, RECORD};
pub(crate) use self::texts::Texts;
pub(crate) use self::weights::{decoder, decoder_crc32c, unembedding};

/// Where an index lies in the folder of its autoencoder.
const FEATURES: &str = "features";
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// Makes the index if a store is given, and prints what is asked for of it. Returns the process' exit code.
pub(crate) fn features(arguments: &FeaturesArguments) -> Result<u8> {
    let folder = match &arguments.out {
        Some(out) => out.clone(),
        // Nothing is written beside the files that other programs fetched, too.
        None if address(&arguments.sae)?.is_some() => {
            bail!("{} is on the hub: --out names the folder of its index", arguments.sae.display())
        }
        None => folder_of(&autoencoder_of(&arguments.sae)?),
    };
    let model = arguments.model.as_deref().map(hub::model).transpose()?;
    let mut texts = None;
    match &arguments.store {
        Some(store) => {
            let store = arguments.cache.open(store)?;
            texts = open_texts(arguments, model.as_deref(), &store.provenance().tokenizer_hash)?;
            let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
            activation_store::give_up_once(interrupt.shared_flag());
            let built = build(arguments, &store, &folder, texts.as_ref(), &interrupt);
            if let (Err(error), Some(code)) = (&built, interrupt.requested()) {
                terminal::say!("{error:#}");
                return Ok(code);
            }
            built?;
            terminal::say!("activation index: {}", foreign_path(&folder));
        }
        None => ensure!(
            folder.join(RECORD).exists(),
            "there is no activation index in {}; sae-trainer features {} --store STORE makes it",
            foreign_path(&folder),
            foreign_path(&arguments.sae)
        ),
    }
    let index = Index::open(&folder)?;
    if texts.is_none() {
        texts = open_texts(arguments, model.as_deref(), &index.record.tokenizer_hash)?;
    }
    let texts = texts.as_ref();
    match (arguments.id, arguments.list) {
        (Some(feature), _) => {
            let found = detail(arguments, &index, &folder, feature as usize, model.as_deref(), texts)?;
            match arguments.json {
                true => terminal::report!("{}", serde_json::to_string(&found)?),
                false => show::print(&index, &found),
            }
        }
        (None, Some(kind)) => print_list(arguments, &index, kind, texts)?,
        (None, None) => print_summary(arguments, &index)?,
    }
    Ok(0)
}

/// In the folder of the autoencoder, or beside its file.
pub(crate) fn folder_of(autoencoder: &Path) -> PathBuf {
    if autoencoder.is_file() { autoencoder.with_extension(FEATURES) } else { autoencoder.join(FEATURES) }
}

/// What the tokens of a tokenizer with the hash `known` say: the one named, or the one in the model's folder if there is one.
fn open_texts(arguments: &FeaturesArguments, model: Option<&Path>, known: &str) -> Result<Option<Texts>> {
    let beside = || model.map(|folder| folder.join(TOKENIZER)).filter(|path| path.exists());
    let named = |path: &PathBuf| if path.is_dir() { path.join(TOKENIZER) } else { path.clone() };
    let path = arguments.tokenizer.as_ref().map(named).or_else(beside);
    path.map(|path| Texts::open(&path, known)).transpose()
}

fn print_summary(arguments: &FeaturesArguments, index: &Index) -> Result<()> {
    if arguments.json {
        let mut value = serde_json::to_value(&index.record)?;
        value["rows"] = index.record.rows().into();
        for kind in FeatureKind::KINDS {
            value["kinds"][kind.name()] = index.of_kind(kind).count().into();
        }
        terminal::report!("{value}");
    } else {
        terminal::report!("{}", show::summary(index).trim_end());
    }
    Ok(())
}

fn print_list(
    arguments: &FeaturesArguments,
    index: &Index,
    kind: FeatureKind,
    texts: Option<&Texts>,
) -> Result<()> {
    ensure!(
        kind != FeatureKind::Punctuation || index.record.texts,
        "token texts were not known when this index was made; make it again with --tokenizer FILE or --model MODEL"
    );
    let mut listed: Vec<&Figures> = index.of_kind(kind).collect();
    let by = |of: &Figures| match kind {
        FeatureKind::All | FeatureKind::Dead => 0.0,
        FeatureKind::Dense | FeatureKind::VeryDense => of.density,
        FeatureKind::Positional => of.positional_share,
        FeatureKind::Punctuation => of.punctuation_share.unwrap_or(0.0),
        FeatureKind::Twin => of.nearest.map_or(0.0, |best| f64::from(best.cosine)),
    };
    listed.sort_by(|a, b| by(b).total_cmp(&by(a)));
    match arguments.json {
        true => terminal::report!("{}", json!(listed)),
        false if listed.is_empty() => terminal::say!("no feature is {}", kind.name()),
        false => terminal::report!("{}", show::list(&listed, texts).trim_end()),
    }
    Ok(())
}

/// What is known of one feature.
fn detail(
    arguments: &FeaturesArguments,
    index: &Index,
    folder: &Path,
    feature: usize,
    model: Option<&Path>,
    texts: Option<&Texts>,
) -> Result<Detail> {
    let features = index.record.features;
    ensure!(
        feature < features,
        "there is no feature {feature}: the autoencoder has {features}, counted from 0"
    );
    let decoder = decoder(index, folder, &arguments.sae)?;
    let logits = match model {
        Some(model) => {
            let unembedding = unembedding(index, model, decoder.ncols())?;
            Some(Logits::of(unembedding.weights.dot(&decoder.row(feature)).view(), texts))
        }
        None => None,
    };
    let (firings, tokens) = (index.firings(feature)?, index.tokens()?);
    let mut own = vec![false; tokens.len()];
    firings.iter().for_each(|firing| own[firing.place() as usize] = true);
    let mut both = vec![0; features];
    index.each_firing(|other, place, _| both[other] += u64::from(own[place]))?;
    let relations = Relations {
        cofiring: cofiring(feature, both.into_iter().enumerate(), |of| index.figures[of].firings),
        neighbours: nearest_to(unit_rows(decoder).view(), feature),
        logits,
    };
    Ok(Detail::new(&Ground { index, tokens: &tokens, texts }, feature, &firings, relations))
}
