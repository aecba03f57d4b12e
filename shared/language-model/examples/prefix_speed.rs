//! Runs a model up to a hook on request and says how long it took; `scripts/bench-language-model` asks.
//!
//!     prefix_speed MODEL_FOLDER HOOK THREADS
//!
//! Each line on standard input, `CONTEXTS LENGTH`, is answered with the seconds of one run.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use language_model::{Checkpoint, Device, PrefixModel, Runtime, SessionOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, hook, threads] = &arguments[..] else {
        return Err("usage: prefix_speed MODEL_FOLDER HOOK THREADS".into());
    };
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let options =
        SessionOptions { device: Device::Auto, threads: threads.parse()?, center: false, precision: None };
    let model = PrefixModel::load(&Runtime::load(None)?, &checkpoint, &[hook.parse()?], &options)?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let (contexts, length) = line.split_once(' ').ok_or("expected CONTEXTS LENGTH")?;
        let (contexts, length): (usize, usize) = (contexts.parse()?, length.parse()?);
        // The multiplier is prime: neighbours are far apart in the embedding, as in text.
        let vocabulary = checkpoint.config().vocabulary;
        let ids: Vec<i64> = (0..contexts * length).map(|i| (i * 7919 % vocabulary) as i64).collect();
        let start = Instant::now();
        let activations = model.run(&ids, contexts, length)?;
        let seconds = start.elapsed().as_secs_f64();
        assert!(activations.rows(0).iter().all(|x| x.is_finite()));
        println!("{seconds}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
