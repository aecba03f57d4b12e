//! Times steps of one autoencoder whose features are divided over threads as ranks:
//!
//!     rank_steps RANKS THREADS PANELS [FEATURES [WIDTH [BATCH]]]
//!
//! prints the fastest and the median step in milliseconds, of 20 after 5. THREADS are those of each rank. Rows are random, about 60
//! features are active in each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use example_steps::{batch, weights};
use kernels::activation::Activation;
use kernels::cpu::options::CpuOptions;
use kernels::cpu::step::CpuStep;
use kernels::loss::{LossSpec, Mse, Penalty};
use kernels::spec::{Schedule, StepSpec};
use ranks::Threads;

const WARM_UP: u64 = 5;
const STEPS: u64 = 20;

fn main() {
    let numbers = std::env::args().skip(1).map(|word| word.parse().expect("arguments are numbers"));
    let numbers: Vec<usize> = numbers.collect();
    let [ranks, threads, panels, ref sizes @ ..] = numbers[..] else {
        panic!("rank_steps RANKS THREADS PANELS [FEATURES [WIDTH [BATCH]]]");
    };
    let size = |at: usize, default| sizes.get(at).copied().unwrap_or(default);
    let loss = LossSpec { penalty: Penalty::L1, coefficient: 1e-4, ..LossSpec::reconstruction(Mse::Sum) };
    let spec = StepSpec::new(size(1, 768), size(0, 12_288), size(2, 4096), loss);
    let spec = StepSpec { panels, activation: Activation::Relu, ..spec };
    // z of random rows are about as wide as the rows are long.
    let mut initial = weights(&spec, 0.0);
    let deviation = initial.encoder.row(0).dot(&initial.encoder.row(0)).sqrt() * 0.577;
    initial.encoder_bias.fill(-2.58 * deviation);
    let rows = batch(&spec, 1);
    let run = |rank: Threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
        pool.install(|| {
            let mut step = CpuStep::shared(spec, CpuOptions::default(), initial.clone(), Arc::new(rank))
                .expect("the spec can be divided");
            let mut times = Vec::new();
            let mut active = 0.0;
            for _ in 0..WARM_UP + STEPS {
                let started = Instant::now();
                let report = step.step(rows.view().into(), &Schedule::constant(1e-7)).expect("a step");
                times.push(started.elapsed().as_secs_f64() * 1e3);
                active = report.sums.l0();
            }
            times.drain(..WARM_UP as usize);
            times.sort_by(f64::total_cmp);
            (times[0], times[times.len() / 2], active)
        })
    };
    let times = std::thread::scope(|scope| {
        let run = &run;
        let started: Vec<_> = Threads::new(ranks, Duration::from_secs(600))
            .into_iter()
            .map(|rank| scope.spawn(move || run(rank)))
            .collect();
        started.into_iter().map(|thread| thread.join().expect("a rank ends")).next_back()
    });
    let (fastest, median, active) = times.expect("there is a rank");
    println!(
        "{ranks} ranks of {threads} threads, {panels} panels: {fastest:.1} ms, median {median:.1} ms, L0 {active:.1}"
    );
}
