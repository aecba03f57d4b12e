//! Exports a store's rows to another tool's format, for tests with that tool:
//!
//!     export_store STORE npy|sae-lens FOLDER

use std::path::Path;
use std::{env, process};

use activation_store::{ExportFormat, Store, export};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (store, format, out) = match &arguments[..] {
        [store, format, out] if format == "npy" => (store, ExportFormat::Npy, out),
        [store, format, out] if format == "sae-lens" => (store, ExportFormat::SaeLens, out),
        _ => {
            eprintln!("usage: export_store STORE npy|sae-lens FOLDER");
            process::exit(2);
        }
    };
    let exported =
        Store::open(Path::new(store)).and_then(|store| export(&store, format, Path::new(out), &mut |_| {}));
    match exported {
        Ok(summary) => {
            println!("{} rows in {} files, {} left out", summary.rows, summary.files, summary.rows_left_out)
        }
        Err(error) => {
            eprintln!("error: {error}");
            process::exit(1);
        }
    }
}
