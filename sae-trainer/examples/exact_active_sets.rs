//! Compares the screened encode with the plain float32 product, on the rows of a store and a trained autoencoder.
//!
//!     exact_active_sets STORE SAE [ROWS [K]]
//!
//! For each batch of 4,096 rows it takes the active pairs of ReLU, of TopK and of BatchTopK from the plain product, from
//! screening on each grid, and from whichever training would choose. The sets must be the same, bit for bit.
//!
//! ReLU's set is that of the plain search, and values may differ from its own as far as the order of a float32 sum of d products
//! allows, (d + 2) · 2⁻²⁴ · (Σ|x_k w_k| + |b|) on either side. TopK's and BatchTopK's are chosen here from all z of the plain
//! product by their definition, without the cutoffs and margins of a search; k is K, or else the autoencoder's own, or 32. With 0 for
//! K, ReLU is all that is compared.
//!
//! The program prints what was compared, how many pairs are in one set and not in the other, and ReLU's largest difference of
//! values as a share of that bound. It ends with an error unless no pair differs.

use std::path::Path;

use activation_store::{BatchStream, Store, StreamOptions};
use anyhow::{Context, Result, ensure};
use kernels::cpu::Isa;
use kernels::cpu::encode::{Encode, EncodeBuffers, Grid, Search, encode_sparse, preactivations};
use kernels::cpu::largest::{Among, Largest, LargestMemory};
use kernels::cpu::options::CpuOptions;
use kernels::cpu::pairs::ActivePairs;
use kernels::parameters::transposed;
use rayon::prelude::*;
use sae::Sae;

const BATCH: usize = 4096;
const SEARCHES: [Search; 5] = [
    Search::Plain,
    Search::ScreenedOn(Grid::Bits8),
    Search::ScreenedOn(Grid::Bfloat16),
    Search::ScreenedOn(Grid::Bits16),
    Search::Screened,
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ensure!((2..=4).contains(&arguments.len()), "usage: exact_active_sets STORE SAE [ROWS [K]]");
    let store = Store::open(Path::new(&arguments[0]))?;
    let Sae { weights, config, .. } = Sae::load(Path::new(&arguments[1]))?;
    let rows = arguments.get(2).map_or(Ok(1_000_000), |rows| rows.parse::<usize>())?;
    let k = arguments.get(3).map_or(Ok(config.largest().unwrap_or(32)), |k| k.parse())?;
    let (d, f) = (weights.d_in(), weights.d_sae());
    ensure!(store.width() == d, "the store's rows have {} numbers, the autoencoder takes {d}", store.width());
    ensure!(k <= f, "k is {k}, but it must be at most {f}, the number of features");
    let encoder = transposed(weights.w_enc.view());
    let encoder = encoder.as_slice().context("not row-major")?;
    let bias = weights.b_enc.as_slice().context("not row-major")?;
    let mut stream =
        BatchStream::new(vec![store], StreamOptions { batch: BATCH, ..StreamOptions::default() })?;

    let isa = Isa::detect();
    let mut relu = Comparison::default();
    let kinds: &[Among] = if k == 0 { &[] } else { &[Among::Row, Among::Batch] };
    let mut largest: Vec<_> = kinds.iter().map(|among| (*among, Comparison::default())).collect();
    let mut buffers = Buffers { z: vec![0.0; BATCH * f], ..Buffers::default() };
    let (mut compared, mut worst) = (0, 0.0_f64);
    while compared < rows {
        let x = stream.next_batch()?.to_slice().expect("the rows of a batch lie side by side");
        let input = Encode { x, weights: encoder, bias, width: d };
        worst = worst.max(compare_relu(isa, input, &mut buffers, &mut relu)?);
        if k > 0 {
            preactivations(isa, input, &mut buffers.z);
        }
        for (among, comparison) in &mut largest {
            compare_largest(isa, input, k, *among, &mut buffers, comparison);
        }
        compared += BATCH;
    }
    println!("{compared} rows x {f} features, {}: {} pairs in each comparison", isa.name(), compared * f);
    relu.print("ReLU", compared);
    println!("  values differ by at most {worst:.3} of the rounding bound");
    for (among, comparison) in &largest {
        let name = if *among == Among::Row { "TopK" } else { "BatchTopK" };
        comparison.print(&format!("{name} with k {k}"), compared);
    }
    let differ: usize = largest.iter().map(|(_, of)| of).chain([&relu]).flat_map(|of| of.differ).sum();
    ensure!(differ == 0, "{differ} pairs are in one set and not in the other");
    ensure!(worst <= 1.0, "values differ by {worst:.2} times what rounding explains");
    Ok(())
}

/// What the comparisons of one activation found.
#[derive(Default)]
struct Comparison {
    /// Pairs in the sets of the plain product.
    active: usize,
    /// Of each search, the pairs in its set or in the plain product's and not in both.
    differ: [usize; SEARCHES.len()],
    /// Of each search, the pairs that screening left to form again.
    rechecked: [usize; SEARCHES.len()],
}

impl Comparison {
    fn print(&self, activation: &str, rows: usize) {
        let l0 = self.active as f64 / rows as f64;
        println!("{activation}: {} active pairs, L0 {l0:.1}", self.active);
        for (at, search) in SEARCHES.iter().enumerate() {
            let candidates = self.rechecked[at] as f64 / rows as f64;
            println!("  {search:?}: {} pairs differ; {candidates:.1} candidates a row", self.differ[at]);
        }
    }
}

#[derive(Default)]
struct Buffers {
    encode: EncodeBuffers,
    largest: LargestMemory,
    plain: ActivePairs,
    found: ActivePairs,
    /// All z of the plain product, [B,F].
    z: Vec<f32>,
}

/// Compares the pairs above 0; returns the largest difference of values as a share of what rounding explains.
fn compare_relu(
    isa: Isa,
    input: Encode<'_>,
    buffers: &mut Buffers,
    comparison: &mut Comparison,
) -> Result<f64> {
    let Buffers { encode, plain, found, .. } = buffers;
    let limit = BATCH * input.bias.len();
    let mut find = |search, pairs: &mut ActivePairs| {
        encode_sparse(isa, input, search, limit, encode, pairs).context("more pairs than there are")
    };
    find(Search::Plain, plain)?;
    comparison.active += plain.len();
    let mut worst = 0.0_f64;
    for (at, search) in SEARCHES.into_iter().enumerate() {
        comparison.rechecked[at] += find(search, found)?.rechecked;
        for row in 0..BATCH {
            let (expected, got) = (plain.of_row(row), found.of_row(row));
            comparison.differ[at] += differing(expected.0, got.0);
            if expected.0 == got.0 {
                worst = worst.max(difference(input, row, expected, got.1));
            }
        }
    }
    Ok(worst)
}

/// The largest difference of a row's values as a share of what the order of a sum explains.
fn difference(input: Encode<'_>, row: usize, expected: (&[u32], &[f32]), got: &[f32]) -> f64 {
    let d = input.width;
    let x = &input.x[row * d..][..d];
    let share = |((feature, expected), value): ((&u32, &f32), &f32)| {
        if value == expected {
            return 0.0;
        }
        let w = &input.weights[*feature as usize * d..][..d];
        let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(x * w).abs()).sum();
        let sum = sum + f64::from(input.bias[*feature as usize].abs());
        f64::from((value - expected).abs()) / (2.0 * (d + 2) as f64 * 2f64.powi(-24) * sum)
    };
    expected.0.iter().zip(expected.1).zip(got).map(share).fold(0.0, f64::max)
}

/// Compares the largest pairs with those that the definition chooses from `buffers.z`.
fn compare_largest(
    isa: Isa,
    input: Encode<'_>,
    k: usize,
    among: Among,
    buffers: &mut Buffers,
    comparison: &mut Comparison,
) {
    let Buffers { encode, largest: memory, found, z, .. } = buffers;
    let expected = match among {
        Among::Row => largest_of_rows(z, input.bias.len(), k),
        Among::Batch => largest_of_batch(z, input.bias.len(), k),
    };
    comparison.active += expected.iter().map(Vec::len).sum::<usize>();
    for (at, search) in SEARCHES.into_iter().enumerate() {
        let products = CpuOptions::default().training_products();
        let largest = Largest { isa, input, search, products, k, among };
        comparison.rechecked[at] += largest.find(encode, memory, found);
        let rows = expected.iter().enumerate();
        comparison.differ[at] +=
            rows.map(|(row, expected)| differing(expected, found.of_row(row).0)).sum::<usize>();
    }
}

/// A z above 0, its feature and its row: of equal z the lower feature comes first, then the lower row.
type Place = (f32, u32, u32);

/// Leaves the `count` largest.
fn keep_largest(places: &mut Vec<Place>, count: usize) {
    if places.len() > count {
        places
            .select_nth_unstable_by(count - 1, |a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        places.truncate(count);
    }
}

/// The places of a row whose z are above 0.
fn positive(row: usize, z: &[f32]) -> impl Iterator<Item = Place> {
    let places = z.iter().zip(0..).map(move |(z, feature)| (*z, feature, row as u32));
    places.filter(|(z, ..)| *z > 0.0)
}

/// The features of each row's k largest z, ascending.
fn largest_of_rows(z: &[f32], features: usize, k: usize) -> Vec<Vec<u32>> {
    let of_row = |(row, z)| {
        let mut places: Vec<Place> = positive(row, z).collect();
        keep_largest(&mut places, k);
        let mut kept: Vec<u32> = places.iter().map(|place| place.1).collect();
        kept.sort_unstable();
        kept
    };
    z.par_chunks_exact(features).enumerate().map(of_row).collect()
}

/// The features of each row among the batch's k·B largest z, ascending.
fn largest_of_batch(z: &[f32], features: usize, k: usize) -> Vec<Vec<u32>> {
    let rows = z.chunks_exact(features);
    let mut kept = vec![Vec::new(); rows.len()];
    let count = k * rows.len();
    let mut places: Vec<Place> = rows.enumerate().flat_map(|(row, z)| positive(row, z)).collect();
    keep_largest(&mut places, count);
    places.iter().for_each(|(_, feature, row)| kept[*row as usize].push(*feature));
    kept.iter_mut().for_each(|features| features.sort_unstable());
    kept
}

/// How many features are in one of two ascending lists and not in the other.
fn differing(a: &[u32], b: &[u32]) -> usize {
    if a == b {
        return 0;
    }
    let common = a.iter().filter(|feature| b.binary_search(feature).is_ok()).count();
    a.len() + b.len() - 2 * common
}
