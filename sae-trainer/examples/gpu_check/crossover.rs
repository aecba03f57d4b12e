//! The density at which gathering rows takes as long as dense products: steps at several L0, on both paths.

use std::time::Instant;

use anyhow::{Result, bail};
use ndarray::ArrayView2;
use sae::Weights;
use sae_trainer::engine::{
    CudaEngine, DeviceOptions, Engine, Path, Precision, Schedule, StepSpec, synthetic,
};
use serde_json::json;

use super::{Size, bench, device, figure, median};

/// Steps before the timed ones: the first is dense, then the path is found and the step recorded.
const WARM_UP: usize = 6;

/// Times steps at each of `densities` (active features of a row). Returns the number of failures.
pub(crate) fn find(precision: Precision, size: Size, steps: usize, densities: &[f64]) -> Result<usize> {
    let spec = bench::spec(size);
    let mut times = Vec::new();
    for l0 in densities {
        let (weights, batch) = synthetic(&spec, *l0, 0);
        // Lists with room for twice the pairs: it is sparse steps that are to be timed, whatever they cost.
        let share = (3.0 * l0 / spec.features as f64).min(1.0);
        let (sparse, found) = time(&spec, &weights, batch.view(), precision, share, steps)?;
        let (dense, _) = time(&spec, &weights, batch.view(), precision, 0.0, steps)?;
        let density = found / spec.features as f64;
        println!(
            "L0 {found:.1}, {:.3} % of the pairs: sparse {:.1} µs, dense {:.1} µs",
            100.0 * density,
            sparse * 1e6,
            dense * 1e6
        );
        let tokens_per_second = spec.batch as f64 / sparse.min(dense);
        figure::print(
            &format!("{precision:?}, L0 {found:.0}").to_lowercase(),
            json!({
                "l0": found, "density": density, "sparse_seconds": sparse, "dense_seconds": dense,
                "seconds": sparse.min(dense), "tokens_per_second": tokens_per_second,
            }),
        );
        times.push((density, sparse / dense));
    }
    let found = crossover(&times);
    match found {
        Some(density) => println!("sparse and dense steps take equally long at {:.3} %", 100.0 * density),
        None => println!("the same path was faster at every density"),
    }
    figure::print(&format!("{precision:?} crossover").to_lowercase(), json!({"density": found}));
    Ok(0)
}

/// The median time of a step, and the L0 of its batch. `share` is the part of all pairs that the lists hold.
fn time(
    spec: &StepSpec,
    weights: &Weights,
    batch: ArrayView2<'_, f32>,
    precision: Precision,
    share: f64,
    steps: usize,
) -> Result<(f64, f64)> {
    let options = DeviceOptions { precision, sparse_density: share };
    let mut engine = CudaEngine::new(device(false)?, *spec, weights, options)?;
    let schedule = Schedule::constant(0.0);
    let mut report = engine.step(batch.into(), &schedule)?;
    for _ in 1..WARM_UP {
        report = engine.step(batch.into(), &schedule)?;
    }
    let expected = if share > 0.0 { Path::Sparse } else { Path::Dense };
    let (l0, path) = (report.sums.l0(), report.path);
    if path != expected {
        bail!("steps at an L0 of {l0} were to be {expected:?}, but are {path:?}");
    }
    let mut seconds: Vec<f64> = Vec::new();
    for _ in 0..steps {
        let start = Instant::now();
        engine.step(batch.into(), &schedule)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok((median(&mut seconds), l0))
}

/// The density at which a ratio of 1 is passed first, between two measured ones on a straight line in logarithms.
fn crossover(times: &[(f64, f64)]) -> Option<f64> {
    times.windows(2).find_map(|pair| {
        let [(from, below), (to, above)] =
            [pair[0], pair[1]].map(|(density, ratio)| (density.ln(), ratio.ln()));
        let crosses = below <= 0.0 && above > 0.0;
        crosses.then(|| (from + (to - from) * -below / (above - below)).exp())
    })
}
