//! `export --to neuronpedia`: what the features of an autoencoder respond to, as SAEDashboard writes it and Neuronpedia reads it.
//!
//! ```text
//! OUT/
//!     export.json                         what this is an export of
//!     dashboard/batch-N.json              SAEDashboard's batch files: `dashboard`
//!     bulk/MODEL/SOURCE/…                 Neuronpedia's bulk folder: `bulk`
//!     requests/request-N.json             bodies for its upload: `requests`, which `upload` sends
//!     uploaded.jsonl                      those that have been sent
//! ```
//!
//! `names` has what the model and the source are called, `choice` says which contexts are shown, `numbers` how numbers are rounded.

mod bulk;
mod choice;
mod dashboard;
mod names;
mod numbers;
mod record;
mod requests;
mod upload;

use std::fs;
use std::path::{Path, PathBuf};

use activation_store::Store;
use anyhow::{Context, Result, bail, ensure};
use durable_files::{available_space, create_folder, write_sums};
use human_units::{format_bytes, format_count};
use language_model::{Checkpoint, hub};
use ndarray::Array2;
use sae::Config;
use terminal::{Interrupt, foreign, foreign_path};

use self::bulk::{Bulk, Source};
use self::choice::Choice;
use self::dashboard::{Material, batches, token_texts};
use self::names::{Known, Names};
use self::record::Record;
use self::requests::Requests;
use self::upload::Server;
use crate::autoencoder::{address, autoencoder_of, load, load_and_tell};
use crate::command::arguments::{CacheArguments, FeaturesArguments, NeuronpediaArguments};
use crate::laboratory::features::{
    Index, RECORD, TOKENIZER, Texts, Unmasked, build, correlations, decoder, decoder_crc32c, folder_of,
    memory_of_correlations, unembedding,
};
use crate::report::progress::{counted, proceed};
use crate::report::table::grouped;

/// SAEDashboard's defaults.
const TOP: u64 = 20;
const INTERVALS: u64 = 5;
const INTERVAL_CONTEXTS: u64 = 5;
/// Norms so near 1 are 1 but for rounding.
const UNIT: f32 = 1e-5;
/// Bytes of a token with its value, and of a feature besides its contexts, about.
const TOKEN: u64 = 16;
const FEATURE: u64 = 4096;

/// Writes the folder `out`, and sends its requests if asked to. Returns the process' exit code.
pub(super) fn export(sae: &Path, out: &Path, arguments: &NeuronpediaArguments) -> Result<u8> {
    let server = match arguments.upload {
        true => Some(Server::from_environment(arguments.server.as_deref())?),
        false => None,
    };
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.map_or_else(cores, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let done = pool.install(|| -> Result<()> {
        if out.symlink_metadata().is_ok() {
            ensure!(
                server.is_some(),
                "{0} exists; remove it, or name another with --out, or send what it holds with --upload",
                foreign_path(out)
            );
            check_same(sae, out, arguments)?;
        } else {
            write(sae, out, arguments, &interrupt)?;
        }
        server.map_or(Ok(()), |server| server.upload(out, &interrupt))
    });
    if let (Err(error), Some(code)) = (&done, interrupt.requested()) {
        terminal::say!("{error:#}");
        return Ok(code);
    }
    done.map(|()| 0)
}

/// Refuses to send what is not an export of this autoencoder, under the names asked for.
fn check_same(sae: &Path, out: &Path, arguments: &NeuronpediaArguments) -> Result<()> {
    let record = Record::read(out)?;
    let same = |asked: &Option<String>, there: &str| asked.as_ref().is_none_or(|asked| asked == there);
    let names = &record.names;
    let fits = same(&arguments.model_id, &names.model_id)
        && same(&arguments.set, &names.set)
        && arguments.layer.is_none_or(|layer| layer == names.layer)
        && arguments.suffix.as_ref().is_none_or(|suffix| Some(suffix) == names.suffix.as_ref())
        && record.decoder_crc32c == decoder_crc32c(&load(sae)?.weights.w_dec);
    ensure!(
        fits,
        "{} is an export of another autoencoder or under other names: {}/{}; remove it, or name another folder with --out",
        foreign_path(out),
        names.model_id,
        names.source()
    );
    Ok(())
}

/// What is exported.
struct Subject {
    sae: PathBuf,
    config: Config,
    index_folder: PathBuf,
    index: Index,
    store: Store,
    texts: Texts,
    model: Option<PathBuf>,
}

fn write(sae: &Path, out: &Path, arguments: &NeuronpediaArguments, interrupt: &Interrupt) -> Result<()> {
    let subject = Subject::open(sae, arguments, interrupt)?;
    let Subject { config, index, store, .. } = &subject;
    let record = &index.record;
    let names = Names::new(arguments, &Known { config, model: &record.model, hook: &record.hook })?;
    let features = arguments
        .features
        .and_then(|most| usize::try_from(most).ok())
        .unwrap_or(usize::MAX)
        .min(record.features);
    let tokens = store.context_tokens(0..record.contexts as u64)?.into_raw_vec_and_offset().0;
    ensure!(
        tokens == index.tokens()?,
        "the index in {} is not of the text of {}; name its store with --store, or remove it to have it made again",
        foreign_path(&subject.index_folder),
        foreign_path(store.path())
    );
    let choice = choice(arguments);
    subject.announce(choice, features, out)?;
    let mut left_out = arguments.drop_tokens.clone();
    left_out.push(store.spec().bos_token);
    let unmasked = Unmasked { tokens: &tokens, left_out: &left_out };
    let material = subject.material(choice, unmasked, features, interrupt)?;
    let release = arguments.release.clone().unwrap_or_else(|| names.set.clone());
    let source = Source {
        names: &names,
        release: &release,
        creator: arguments.creator.as_deref().unwrap_or("sae-trainer"),
        description: format!("{} features at {}", grouped(record.features as u64), record.hook),
        hook: &record.hook,
        dataset: &material.dataset,
        contexts: record.contexts,
        context_length: record.context_length,
        model_size: subject.model_size()?,
        crc32c: record.decoder_crc32c,
    };
    let mut left_out = 0;
    create_folder(out, |new| -> Result<()> {
        left_out = fill(new, &names, source, &material, features, interrupt)?;
        Ok(())
    })?;
    if left_out > 0 {
        terminal::say!(
            "{} features never fire in a place that is shown: Neuronpedia's upload takes none of these, so they are in dashboard/ and \
             bulk/ alone",
            grouped(left_out as u64)
        );
    }
    terminal::say!("{}/{} for Neuronpedia: {}", names.model_id, names.source(), foreign_path(out));
    Ok(())
}

/// Fills the folder `new`. Returns how many features are in no request.
fn fill(
    new: &Path,
    names: &Names,
    source: Source<'_>,
    material: &Material<'_>,
    features: usize,
    interrupt: &Interrupt,
) -> Result<usize> {
    let dashboard = new.join("dashboard");
    fs::create_dir(&dashboard).with_context(|| format!("cannot create {}", foreign_path(&dashboard)))?;
    let crc32c = source.crc32c;
    let bulk = Bulk::create(&new.join("bulk"), source)?;
    let folder = new.join("requests");
    let mut requests = Requests::create(&folder, names, features)?;
    let bar = counted("writing", features as u64, "features");
    for (number, range) in batches(features).into_iter().enumerate() {
        proceed(interrupt)?;
        let count = range.len() as u64;
        let batch = material.batch(names, range)?;
        let path = dashboard.join(format!("batch-{number}.json"));
        fs::write(&path, serde_json::to_vec(&batch)?)
            .with_context(|| format!("cannot write {}", foreign_path(&path)))?;
        bulk.add(number, &batch.features)?;
        requests.add(&batch.features)?;
        bar.inc(count);
    }
    bar.finish_and_clear();
    write_sums(&folder)?;
    Record::new(names, crc32c, features, requests.written).write(new)?;
    Ok(requests.left_out)
}

impl Subject {
    /// Opens what the flags name, and makes the index if it is not there.
    fn open(sae: &Path, arguments: &NeuronpediaArguments, interrupt: &Interrupt) -> Result<Subject> {
        let config = load_and_tell(sae)?.config;
        let index_folder = match &arguments.index {
            Some(folder) => folder.clone(),
            None if address(sae)?.is_some() => {
                bail!("{} is on the hub: --index names the folder of its index", foreign_path(sae))
            }
            None => folder_of(&autoencoder_of(sae)?),
        };
        let model = arguments.model.as_deref().map(hub::model).transpose()?;
        if !index_folder.join(RECORD).exists() {
            make_index(sae, &index_folder, model.as_deref(), arguments, interrupt)?;
        } else {
            ensure!(
                arguments.tokens.is_none(),
                "the index in {} is there already, so --tokens has no effect; remove it to have it made again",
                foreign_path(&index_folder)
            );
        }
        let index = Index::open(&index_folder)?;
        let path = arguments.store.as_ref().unwrap_or(&index.record.store);
        let store = Store::open(path).with_context(|| {
            format!("cannot open the store of the index in {}; --store names it", foreign_path(&index_folder))
        })?;
        let (record, from) = (&index.record, store.provenance());
        ensure!(
            record.hook == from.hook
                && record.model_hash == from.model_hash
                && record.tokenizer_hash == from.tokenizer_hash
                && record.context_length == store.context_length()
                && record.contexts as u64 <= store.contexts()
                && store.width() == config.d_in,
            "the index in {} is of {}, not of {}; name its store with --store, or another index with --index",
            foreign_path(&index_folder),
            foreign_path(&record.store),
            foreign_path(path)
        );
        ensure!(
            record.context_length > 1,
            "the contexts of {} are of one token, and none is shown without the token before it",
            foreign_path(path)
        );
        let texts = texts(arguments, model.as_deref(), &record.model, &record.tokenizer_hash)?;
        if model.is_none() {
            terminal::say!("without --model MODEL, what features do to the logits is left out");
        }
        Ok(Subject { sae: sae.to_owned(), config, index_folder, index, store, texts, model })
    }

    /// Says what it will take, and refuses what the disk has no room for.
    fn announce(&self, choice: Choice, features: usize, out: &Path) -> Result<()> {
        let record = &self.index.record;
        let contexts: u64 = self.index.figures[..features].iter().map(|of| choice.most(of.firings)).sum();
        // Each token in the batch file and in a request, and compressed in the bulk folder.
        let bytes =
            contexts * record.context_length as u64 * (2 * TOKEN + TOKEN / 4) + features as u64 * FEATURE;
        let (width, rows) = (self.store.width(), record.features as u64);
        let weights = 4 * width as u64 * (3 * rows + self.store.spec().vocabulary);
        terminal::say!(
            "{} features with {} contexts; memory about {}; disk about {} in {}",
            format_count(features as f64),
            format_count(contexts as f64),
            format_bytes(weights + memory_of_correlations(&self.index, width, features)),
            format_bytes(bytes),
            foreign_path(out)
        );
        let available = available_space(out)?;
        ensure!(
            bytes <= available,
            "the disk of {} has {} left; --features writes fewer features, --top and --intervals fewer contexts, --out another folder",
            foreign_path(out),
            format_bytes(available)
        );
        Ok(())
    }

    fn material<'a>(
        &'a self,
        choice: Choice,
        unmasked: Unmasked<'a>,
        features: usize,
        interrupt: &Interrupt,
    ) -> Result<Material<'a>> {
        let index = &self.index;
        decoder(index, &self.index_folder, &self.sae)?;
        let mut decoder = load(&self.sae)?.folded().weights.w_dec;
        let unembedding =
            self.model.as_ref().map(|model| unembedding(index, model, decoder.ncols())).transpose()?;
        let norms = unit(&mut decoder);
        let correlated = correlations(index, &self.store, unmasked, &norms, features, interrupt)?;
        Ok(Material {
            index,
            unmasked,
            texts: token_texts(self.texts.all()),
            decoder,
            norms,
            unembedding,
            correlated,
            choice,
            dataset: self.store.provenance().dataset.join(", "),
        })
    }

    /// d and blocks of the language model.
    fn model_size(&self) -> Result<Option<(usize, usize)>> {
        let size = |folder: &PathBuf| -> Result<(usize, usize)> {
            let checkpoint = Checkpoint::open(folder)?;
            Ok((checkpoint.config().d_model, checkpoint.config().layers))
        };
        self.model.as_ref().map(size).transpose()
    }
}

fn choice(arguments: &NeuronpediaArguments) -> Choice {
    let few = |asked: Option<u64>, default: u64| asked.unwrap_or(default) as usize;
    Choice {
        top: few(arguments.top, TOP),
        intervals: few(arguments.intervals, INTERVALS),
        each: few(arguments.interval_contexts, INTERVAL_CONTEXTS),
    }
}

/// Scales rows to norm 1, as SAELens' `fold_W_dec_norm` does, and returns what their norms were.
fn unit(decoder: &mut Array2<f32>) -> Vec<f32> {
    let scale = |mut row: ndarray::ArrayViewMut1<'_, f32>| {
        let norm = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-8) as f32;
        if (norm - 1.0).abs() < UNIT {
            return 1.0;
        }
        row.mapv_inplace(|x| x / norm);
        norm
    };
    decoder.rows_mut().into_iter().map(scale).collect()
}

fn make_index(
    sae: &Path,
    folder: &Path,
    model: Option<&Path>,
    arguments: &NeuronpediaArguments,
    interrupt: &Interrupt,
) -> Result<()> {
    let Some(path) = &arguments.store else {
        bail!(
            "there is no activation index in {}; name the store to make it of with --store STORE",
            foreign_path(folder)
        )
    };
    let store = Store::open(path)?;
    let from = store.provenance();
    let texts = texts(arguments, model, &from.model, &from.tokenizer_hash)?;
    let asked = FeaturesArguments {
        sae: sae.to_owned(),
        store: Some(path.clone()),
        cache: CacheArguments::default(),
        out: Some(folder.to_owned()),
        tokens: arguments.tokens,
        drop_bos: true,
        drop_tokens: arguments.drop_tokens.clone(),
        id: None,
        list: None,
        model: None,
        tokenizer: None,
        threads: arguments.threads,
        json: false,
    };
    build(&asked, &store, folder, Some(&texts), interrupt)?;
    terminal::say!("activation index: {}", foreign_path(folder));
    Ok(())
}

/// What tokens say, which every file is about: of the tokenizer that is named, or of the one beside the model.
fn texts(
    arguments: &NeuronpediaArguments,
    model: Option<&Path>,
    of_store: &str,
    known: &str,
) -> Result<Texts> {
    let in_folder = |path: &Path| if path.is_dir() { path.join(TOKENIZER) } else { path.to_owned() };
    let path = match (&arguments.tokenizer, model) {
        (Some(path), _) => in_folder(path),
        (None, Some(model)) => model.join(TOKENIZER),
        (None, None) => Path::new(of_store).join(TOKENIZER),
    };
    ensure!(
        path.exists(),
        "the texts of tokens are not known: there is no {}; name the model that made the store with --model, or its tokenizer.json \
         with --tokenizer (the store names {})",
        foreign_path(&path),
        foreign(of_store)
    );
    Texts::open(&path, known)
}
