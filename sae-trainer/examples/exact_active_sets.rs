//! Compares the screened encode with the plain float32 product, on the rows of a store and a trained autoencoder.
//!
//!     exact_active_sets STORE SAE [ROWS]
//!
//! For each batch of 4,096 rows it takes the active pairs from the plain product, from screening with 8 and with 16 bits, and
//! from whichever training would choose. The sets must be the same, bit for bit. Values may differ as far as the order of a
//! float32 sum of d products allows, (d + 2) · 2⁻²⁴ · (Σ|x_k w_k| + |b|) on either side. The program prints what was compared
//! and the largest difference as a share of that bound, and ends with an error at the first difference in a set.

use std::path::Path;

use activation_store::{BatchStream, Store, StreamOptions};
use anyhow::{Context, Result, bail, ensure};
use kernels::cpu::Isa;
use kernels::cpu::encode::{Encode, EncodeBuffers, Grid, Search, encode_sparse};
use kernels::cpu::pairs::ActivePairs;
use kernels::parameters::transposed;
use sae::Sae;

const BATCH: usize = 4096;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ensure!((2..=3).contains(&arguments.len()), "usage: exact_active_sets STORE SAE [ROWS]");
    let store = Store::open(Path::new(&arguments[0]))?;
    let weights = Sae::load(Path::new(&arguments[1]))?.weights;
    let rows = arguments.get(2).map_or(Ok(1_000_000), |rows| rows.parse::<usize>())?;
    let (d, f) = (weights.d_in(), weights.d_sae());
    ensure!(store.width() == d, "the store's rows have {} numbers, the autoencoder takes {d}", store.width());
    let encoder = transposed(weights.w_enc.view());
    let encoder = encoder.as_slice().context("not row-major")?;
    let bias = weights.b_enc.as_slice().context("not row-major")?;
    let mut stream =
        BatchStream::new(vec![store], StreamOptions { batch: BATCH, ..StreamOptions::default() })?;

    let isa = Isa::detect();
    let mut searches = [Search::ScreenedOn(Grid::Bits8), Search::ScreenedOn(Grid::Bits16), Search::Screened]
        .map(|search| (search, 0));
    let (mut buffers, mut plain, mut screened) =
        (EncodeBuffers::default(), ActivePairs::default(), ActivePairs::default());
    let (mut compared, mut active, mut worst) = (0, 0, 0.0_f64);
    while compared < rows {
        let x = stream.next_batch()?.to_slice().expect("the rows of a batch lie side by side");
        let input = Encode { x, weights: encoder, bias, width: d };
        let limit = BATCH * f;
        let find = |search, buffers: &mut EncodeBuffers, pairs: &mut ActivePairs| {
            encode_sparse(isa, input, search, limit, buffers, pairs).context("more pairs than there are")
        };
        find(Search::Plain, &mut buffers, &mut plain)?;
        for (search, rechecked) in &mut searches {
            *rechecked += find(*search, &mut buffers, &mut screened)?.rechecked;
            if screened.row_starts != plain.row_starts || screened.features != plain.features {
                bail!(
                    "{search:?}: another active set in the batch that begins at row {compared} of the stream"
                );
            }
            for row in 0..BATCH {
                let x = &x[row * d..][..d];
                let (features, values) = screened.of_row(row);
                for ((feature, value), expected) in features.iter().zip(values).zip(plain.of_row(row).1) {
                    if value == expected {
                        continue;
                    }
                    let w = &encoder[*feature as usize * d..][..d];
                    let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x * w).abs()).sum();
                    let sum = sum + f64::from(bias[*feature as usize].abs());
                    let bound = 2.0 * (d + 2) as f64 * 2f64.powi(-24) * sum;
                    worst = worst.max(f64::from((value - expected).abs()) / bound);
                }
            }
        }
        compared += BATCH;
        active += plain.len();
    }
    ensure!(worst <= 1.0, "values differ by {worst:.2} times what rounding explains");
    let l0 = active as f64 / compared as f64;
    println!("{compared} rows x {f} features, {}: {active} active pairs, L0 {l0:.1}", isa.name());
    for (search, rechecked) in searches {
        println!("{search:?}: the same set; {:.1} candidates a row", rechecked as f64 / compared as f64);
    }
    println!("values differ by at most {worst:.3} of the rounding bound");
    Ok(())
}
