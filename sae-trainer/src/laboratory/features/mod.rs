//! `sae-trainer features`: what the features of an autoencoder respond to.
//!
//! - `build` encodes the rows of a store once: [`spill`] sorts what comes of it by feature, [`figures`] says what a feature's
//!   [`firing`]s tell, [`index`] is what is written.
//! - [`detail`] reads one feature from the index, `show` prints it; `texts` has what tokens say.

mod build;
mod detail;
mod figures;
mod firing;
mod index;
mod show;
mod spill;
mod texts;

use std::path::{Path, PathBuf};

use activation_store::Store;
use anyhow::{Context, Result, ensure};
use language_model::{Checkpoint, Unembedding, hub};
use ndarray::ArrayView1;
use serde_json::json;
use terminal::{Interrupt, foreign, foreign_path};

use self::build::{build, decoder_crc32c};
use self::detail::{Detail, Logits};
use self::figures::Figures;
use self::index::{Index, RECORD};
use self::texts::Texts;
use super::similarity::{nearest_to, unit_rows};
use crate::autoencoder::{autoencoder_of, load};
use crate::command::arguments::{FeatureKind, FeaturesArguments};

/// Where an index lies in the folder of its autoencoder.
const FEATURES: &str = "features";
const TOKENIZER: &str = "tokenizer.json";

/// Makes the index if a store is given, and prints what is asked for of it. Returns the process' exit code.
pub(crate) fn features(arguments: &FeaturesArguments) -> Result<u8> {
    let folder = arguments.out.clone().unwrap_or_else(|| folder_of(&autoencoder_of(&arguments.sae)));
    let model = arguments.model.as_deref().map(hub::model).transpose()?;
    let mut texts = None;
    match &arguments.store {
        Some(store) => {
            let store = Store::open(store)?;
            texts = open_texts(arguments, model.as_deref(), &store.provenance().tokenizer_hash)?;
            let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
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
fn folder_of(autoencoder: &Path) -> PathBuf {
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
    let decoder = load(&arguments.sae)?.weights.w_dec;
    ensure!(
        decoder_crc32c(&decoder) == index.record.decoder_crc32c && decoder.nrows() == features,
        "the index in {} is not of the autoencoder in {} as it is now; remove it and make it again",
        foreign_path(folder),
        foreign_path(&arguments.sae)
    );
    let logits = model.map(|model| logits(index, model, decoder.row(feature), texts)).transpose()?;
    let neighbours = nearest_to(unit_rows(decoder).view(), feature);
    Detail::of(index, feature, neighbours, logits, texts)
}

/// What a direction adds to the logits of the model in `folder`, before the final norm divides by its scale.
fn logits(
    index: &Index,
    folder: &Path,
    direction: ArrayView1<'_, f32>,
    texts: Option<&Texts>,
) -> Result<Logits> {
    let checkpoint = Checkpoint::open(folder)?;
    let (record, found) = (&index.record, checkpoint.hash()?);
    ensure!(
        record.model_hash.is_empty() || record.model_hash == found,
        "{} is not the model of {}, which is {} with weights of SHA-256 {}; these have {found}",
        foreign_path(folder),
        foreign_path(&record.store),
        foreign(&record.model),
        foreign(&record.model_hash)
    );
    let unembedding = Unembedding::read(&checkpoint)?;
    ensure!(
        direction.len() == unembedding.weights.ncols(),
        "the decoder's rows have {} numbers, and the residual stream of {} has {}: they have no effect on logits of their own; \
         leave --model out, and name the tokenizer with --tokenizer",
        direction.len(),
        foreign_path(folder),
        unembedding.weights.ncols()
    );
    Ok(Logits::of(unembedding.weights.dot(&direction).view(), texts))
}
