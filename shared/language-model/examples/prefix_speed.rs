//! Runs a model up to a hook on request and prints how long it took, for `scripts/bench-language-model` and
//! `scripts/bench-dump`.
//!
//!     prefix_speed [--exact-products] MODEL_FOLDER HOOK THREADS [IDS.safetensors]
//!
//! Products are computed as `activation-dump` does by default, on matrix units where there are any.
//! Each line on standard input, `CONTEXTS LENGTH`, is answered with the seconds of one run on that many
//! contexts; 0 contexts are as many as suit the model. With IDS.safetensors, which holds `ids`, int64 `[contexts, length]`, the answer is the seconds of as many
//! runs as all of its contexts of that length take.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use language_model::{Checkpoint, PrefixModel, Products, Runtime, SessionOptions};
use ndarray::ArrayView2;
use safetensors::SafeTensors;

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, arguments): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let products = if flags.is_empty() { Products::MatrixUnits } else { Products::Exact };
    let [model, hook, threads, files @ ..] = &arguments[..] else {
        return Err(
            "usage: prefix_speed [--exact-products] MODEL_FOLDER HOOK THREADS [IDS.safetensors]".into()
        );
    };
    let given = files.first().map(|file| ids(Path::new(file))).transpose()?;
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let options = SessionOptions { threads: threads.parse()?, products, ..SessionOptions::default() };
    let model = PrefixModel::load(&Runtime::load(None)?, &checkpoint, &[hook.parse()?], &options)?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (contexts, length) = line.split_once(' ').ok_or("expected CONTEXTS LENGTH")?;
        let (contexts, length): (usize, usize) = (contexts.parse()?, length.parse()?);
        let contexts = if contexts == 0 { model.suggested_contexts(length) } else { contexts };
        // The multiplier is prime: neighbours are far apart in the embedding, as in text.
        let vocabulary = checkpoint.config().vocabulary;
        let made = || (0..contexts * length).map(|i| (i * 7919 % vocabulary) as i64).collect();
        let ids: Vec<i64> = given.clone().unwrap_or_else(made);
        let start = Instant::now();
        let batches = Mutex::new(ids.chunks(contexts * length));
        let lane = || -> Result<(), language_model::Error> {
            loop {
                let Some(batch) = batches.lock().unwrap().next() else { return Ok(()) };
                let batch = ArrayView2::from_shape((batch.len() / length, length), batch).unwrap();
                let activations = model.run(batch)?;
                assert!(activations.rows(0).iter().all(|x| x.is_finite()));
            }
        };
        std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..model.lanes()).map(|_| scope.spawn(lane)).collect();
            lanes.into_iter().try_for_each(|lane| lane.join().unwrap())
        })?;
        println!("{}", start.elapsed().as_secs_f64());
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn ids(file: &Path) -> Result<Vec<i64>, Box<dyn Error>> {
    let bytes = std::fs::read(file)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let ids = file.tensor("ids")?;
    Ok(ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect())
}
