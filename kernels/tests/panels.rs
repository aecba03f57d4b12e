//! Features in panels, and panels on ranks that are threads: any number of ranks does what one does, bit for bit.

use std::sync::Arc;
use std::time::Duration;

use example_steps::{PENALTIES, batch, new_features, relative_difference, spec, weights};
use kernels::activation::{Activation, ThresholdAverage};
use kernels::cpu::options::CpuOptions;
use kernels::cpu::step::CpuStep;
use kernels::dead::{DeadLoss, DeadLossKind};
use kernels::error::StepError;
use kernels::loss::{LossSpec, Mse, Penalty};
use kernels::outcome::StepReport;
use kernels::panels::Share;
use kernels::path::Path;
use kernels::prefixes::Prefixes;
use kernels::spec::{DecoderNorm, Schedule, StepSpec};
use kernels::state::{PanelStates, State};
use kernels::stats::Evaluation;
use ndarray::{ArrayView1, s};
use ranks::{Exchange, Threads};

const PANELS: usize = 8;
/// None of these is a multiple of the panels.
const WIDTH: usize = 21;
const FEATURES: usize = 100;
const ROWS: usize = 75;

fn panels(panels: usize) -> StepSpec {
    StepSpec { panels, ..spec(WIDTH, FEATURES, ROWS) }
}

/// What `work` returns on each of so many ranks, each with a thread of its own.
fn on_ranks<R: Send>(ranks: usize, work: impl Fn(Arc<dyn Exchange>) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let run = |rank: Threads| {
            let work = &work;
            scope.spawn(move || {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
                pool.install(|| work(Arc::new(rank)))
            })
        };
        let threads: Vec<_> = Threads::new(ranks, Duration::from_secs(120)).into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// All numbers of a state, bit by bit.
fn bits(state: &State) -> Vec<u64> {
    let parameters = [&state.weights, &state.first_moments, &state.second_moments];
    let tensors = parameters.into_iter().flat_map(|parameters| parameters.tensors());
    let mut bits: Vec<u64> = tensors
        .flat_map(|(_, tensor)| tensor.iter().map(|v| u64::from(v.to_bits())).collect::<Vec<_>>())
        .collect();
    bits.extend(state.window.iter().map(|count| u64::from(*count)));
    bits.extend(&state.steps_since_fired);
    bits.extend([state.step, state.threshold.map_or(0, f64::to_bits)]);
    bits
}

/// What a run leaves.
#[derive(Debug, PartialEq)]
struct Left {
    reports: Vec<StepReport>,
    evaluation: Evaluation,
    errors: Vec<f32>,
    reconstruction: Vec<f32>,
    state: Vec<u64>,
}

fn options(sparse_density: f64) -> CpuOptions {
    CpuOptions { sparse_density, ..CpuOptions::default() }
}

/// Steps `steps` of `step`, and what is left then.
fn train(step: &mut CpuStep, steps: std::ops::Range<u64>) -> Left {
    let spec = *step.spec();
    let run = |at: u64| step.step(batch(&spec, at).view().into(), &Schedule::constant(1e-3)).unwrap();
    let reports = steps.map(run).collect();
    // Fewer rows than there are ranks in some.
    let rows = batch(&StepSpec { batch: 5, ..spec }, 50);
    let state = step.state().unwrap();
    let norm = |row: ArrayView1<'_, f32>| row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
    let norms: Vec<f64> = state.weights.decoder.rows().into_iter().map(norm).collect();
    assert_eq!(step.decoder_norms().unwrap(), norms);
    let norms: Vec<f64> = state.weights.encoder.rows().into_iter().map(norm).collect();
    assert_eq!(step.encoder_norms().unwrap(), norms);
    let shared = (&state.weights.decoder_bias, state.weights.skip.as_ref());
    assert_eq!(step.shared_weights(), shared);
    for panel in step.own_panels() {
        let (features, own) = step.panel_weights(panel);
        assert_eq!(features, spec.panel_features(panel));
        assert_eq!(own.decoder, state.weights.decoder.slice(s![features.clone(), ..]));
        assert_eq!(own.encoder, state.weights.encoder.slice(s![features, ..]));
        assert_eq!(own.decoder_bias, state.weights.decoder_bias);
        assert_eq!(own.skip.is_some(), spec.skip && panel == step.own_panels().start);
    }
    Left {
        reports,
        evaluation: step.evaluate(batch(&spec, 40).view().into()).unwrap(),
        errors: step.squared_errors(rows.view().into()).unwrap().to_vec(),
        reconstruction: step.reconstruct(rows.view()).unwrap().into_raw_vec_and_offset().0,
        state: bits(&state),
    }
}

/// Everything that panels are for, with what it is.
fn cases() -> Vec<(String, StepSpec)> {
    let base = panels(PANELS);
    let with = |penalty| LossSpec { penalty, ..base.loss };
    let mut cases: Vec<(String, StepSpec)> = PENALTIES
        .into_iter()
        .map(|penalty| (format!("{penalty:?}"), StepSpec { loss: with(penalty), ..base }))
        .collect();
    for mse in [Mse::Sum, Mse::Uncentered] {
        let loss =
            LossSpec { mse, weight_by_decoder_norm: false, mean_density: 0.1, log_density: 0.1, ..base.loss };
        cases.push((format!("{mse:?}"), StepSpec { loss, pre_bias: false, ..base }));
    }
    for decoder_norm in [DecoderNorm::Unit, DecoderNorm::Free] {
        let clipped = StepSpec { decoder_norm, gradient_clip: Some(1e-2), pre_bias: false, ..base };
        cases.push((format!("{decoder_norm:?}, clipped"), clipped));
    }
    let prefixes = Prefixes::new(&[3, 40, 77], 0.5).unwrap();
    let skip = StepSpec { skip: true, gradient_clip: Some(1e-2), ..base };
    cases.push(("skip".into(), skip));
    cases.push(("prefixes".into(), StepSpec { prefixes, ..skip }));

    let jump = |to_input| Activation::JumpRelu { bandwidth: 0.5, to_input };
    for (penalty, to_input) in [
        (Penalty::Step, true),
        (Penalty::Quadratic { target: 9.0 }, true),
        (Penalty::MeanQuadratic { target: 9.0 }, false),
    ] {
        let loss = LossSpec { weight_by_decoder_norm: false, ..with(penalty) };
        cases.push((format!("jump {penalty:?}"), StepSpec { activation: jump(to_input), loss, ..base }));
    }
    let kind = DeadLossKind::PreActivation { coefficient: 1e-2 };
    let dead = Some(DeadLoss { after_steps: 0, kind });
    cases.push(("pre-activation".into(), StepSpec { activation: jump(false), dead, ..base }));

    let batch_topk = |k| Activation::BatchTopK { k, threshold: ThresholdAverage::default() };
    for activation in [
        Activation::TopK { k: 7 },
        // More than a panel has.
        Activation::TopK { k: 20 },
        batch_topk(7),
        batch_topk(30),
    ] {
        cases.push((format!("{activation:?}"), StepSpec { activation, ..base }));
        let free = StepSpec {
            activation,
            rank_by_decoder_norm: true,
            decoder_norm: DecoderNorm::Free,
            prefixes,
            ..base
        };
        cases.push((format!("{activation:?}, ranked by norm"), free));
    }
    cases
}

#[test]
fn any_number_of_ranks_has_the_bits_of_one() {
    for (name, spec) in cases() {
        let initial = weights(&spec, 0.3);
        for sparse_density in [1.0, 0.3, -1.0] {
            let options = options(sparse_density);
            let run = |exchange| {
                train(&mut CpuStep::shared(spec, options, initial.clone(), exchange).unwrap(), 0..4)
            };
            let one = on_ranks(1, run).remove(0);
            for ranks in [2, 4, 8] {
                for (rank, left) in on_ranks(ranks, run).into_iter().enumerate() {
                    assert!(left == one, "{name}, density {sparse_density}: rank {rank} of {ranks}");
                }
            }
        }
    }
}

#[test]
fn a_run_goes_on_with_any_number_of_ranks() {
    for (name, spec) in cases() {
        let initial = weights(&spec, 0.3);
        let options = options(0.3);
        let begin = |exchange| CpuStep::shared(spec, options, initial.clone(), exchange).unwrap();
        let whole = on_ranks(1, |exchange| train(&mut begin(exchange), 0..6)).remove(0);
        for (before, after) in [(1, 8), (4, 2), (8, 1)] {
            let state = on_ranks(before, |exchange| {
                let mut step = begin(exchange);
                train(&mut step, 0..3);
                step.state().unwrap()
            });
            let rest = on_ranks(after, |exchange| {
                let mut step = begin(exchange);
                step.restore(state[0].clone()).unwrap();
                train(&mut step, 3..6)
            });
            for rest in rest {
                assert!(rest.state == whole.state, "{name}, {before} to {after} ranks");
                assert!(rest.reports == whole.reports[3..], "{name}, {before} to {after} ranks");
            }
        }
    }
}

#[test]
fn a_run_goes_on_from_states_of_single_panels() {
    for (name, spec) in cases().into_iter().filter(|(name, _)| ["skip", "prefixes", "L1"].contains(&&**name))
    {
        let initial = weights(&spec, 0.3);
        let begin = |exchange| CpuStep::shared(spec, options(0.3), initial.clone(), exchange).unwrap();
        let whole = on_ranks(1, |exchange| train(&mut begin(exchange), 0..6)).remove(0);
        for (before, after) in [(2, 8), (8, 4), (1, 2)] {
            let states = on_ranks(before, |exchange| {
                let mut step = begin(exchange);
                train(&mut step, 0..3);
                step.panel_states()
            });
            let totals = &states[0].window_totals;
            assert!(states.iter().all(|state| state.window_totals == *totals));
            let panels: Vec<_> = states.iter().flat_map(|state| state.panels.iter().cloned()).collect();
            let rest = on_ranks(after, |exchange| {
                let mut own = panels[Share::new(&spec, &*exchange).unwrap().own()].to_vec();
                let of_first = panels[0].1.clone();
                own[0].1.weights.skip = of_first.weights.skip;
                own[0].1.first_moments.skip = of_first.first_moments.skip;
                own[0].1.second_moments.skip = of_first.second_moments.skip;
                let states = PanelStates { panels: own, window_totals: totals.clone() };
                let step = CpuStep::of_panels(spec, options(0.3), states.clone(), exchange);
                let mut step = step.unwrap();
                let rest = train(&mut step, 3..6);
                step.restore_panels(states).unwrap();
                assert!(train(&mut step, 3..6) == rest);
                rest
            });
            for rest in rest {
                assert!(rest.state == whole.state, "{name}, {before} to {after} ranks");
            }
        }
        let mut step = CpuStep::new(spec, options(0.3), initial.clone()).unwrap();
        let mut states = step.panel_states();
        states.panels.swap(0, 1);
        let told = step.restore_panels(states).unwrap_err().to_string();
        assert!(told.contains("list of panels"), "{told}");
    }
}

#[test]
fn features_start_anew_on_any_number_of_ranks() {
    for (name, spec) in cases()
        .into_iter()
        .filter(|(name, _)| ["skip", "prefixes", "jump Step", "TopK { k: 7 }"].contains(&&**name))
    {
        let initial = weights(&spec, 0.3);
        // Of four panels; one of them twice.
        let new = new_features(WIDTH, &[0, 13, 14, 57, FEATURES - 1]);
        let begin = |exchange| CpuStep::shared(spec, options(0.3), initial.clone(), exchange).unwrap();
        let expected = on_ranks(1, |exchange| {
            let mut step = begin(exchange);
            train(&mut step, 0..3);
            let mut state = step.state().unwrap();
            state.replace(0, &new);
            assert_eq!(state.weights.encoder_bias[57], 0.0);
            assert_eq!(state.weights.encoder.row(57).to_vec(), new[3].encoder);
            assert!(state.first_moments.decoder.row(57).iter().all(|m| *m == 0.0));
            assert!(state.weights.threshold.as_ref().is_none_or(|threshold| threshold[57] == 0.25));
            step.restore(state).unwrap();
            train(&mut step, 3..5)
        });
        for ranks in [1, 2, 8] {
            let found = on_ranks(ranks, |exchange| {
                let mut step = begin(exchange);
                train(&mut step, 0..3);
                step.replace(&new);
                train(&mut step, 3..5)
            });
            assert!(found.iter().all(|left| *left == expected[0]), "{name}, {ranks} ranks");
        }
    }
}

#[test]
fn panels_differ_from_none_by_rounding_alone() {
    for (name, spec) in cases() {
        let initial = weights(&spec, 0.3);
        // Where a rounding decides which pair is active, the weights of two features differ; this many steps have none such.
        let run = |panels| {
            let spec = StepSpec { panels, ..spec };
            let options = CpuOptions { split_products: false, ..options(0.3) };
            let mut step = CpuStep::new(spec, options, initial.clone()).unwrap();
            let left = train(&mut step, 0..4);
            (left, step.state().unwrap())
        };
        let ((one, expected), (eight, state)) = (run(1), run(PANELS));
        for (got, expected) in eight.reports.iter().zip(&one.reports) {
            let (loss, of_one) = (got.terms.loss(), expected.terms.loss());
            assert!((loss - of_one).abs() < 1e-5 * of_one.abs(), "{name}: {loss} {of_one}");
            assert_eq!(got.sums.active, expected.sums.active, "{name}");
            assert_eq!(got.terms.below_target, expected.terms.below_target, "{name}");
        }
        for ((tensor, got), (_, expected)) in
            state.weights.tensors().into_iter().zip(expected.weights.tensors())
        {
            let wide: Vec<f64> = expected.iter().map(|v| f64::from(*v)).collect();
            let off = relative_difference(got.as_slice().unwrap(), &wide);
            assert!(off < 2e-5, "{name}, {tensor}: {off:e}");
        }
        assert_eq!(state.steps_since_fired, expected.steps_since_fired, "{name}");
        assert_eq!(eight.evaluation.firings.len(), FEATURES);
    }
}

#[test]
fn all_ranks_refuse_a_step_together_and_go_on() {
    let spec = panels(4);
    let initial = weights(&spec, 0.3);
    let now = Schedule::constant(1e-3);
    let run = |exchange| {
        let mut step = CpuStep::shared(spec, options(0.3), initial.clone(), exchange).unwrap();
        step.step(batch(&spec, 0).view().into(), &now).unwrap();
        let before = bits(&step.state().unwrap());
        let mut refused = Vec::new();
        let mut refuse = |rows: ndarray::Array2<f32>| {
            refused.push(step.step(rows.view().into(), &now).unwrap_err());
            assert!(bits(&step.state().unwrap()) == before);
        };
        let mut rows = batch(&spec, 1);
        rows[[70, 3]] = f32::NAN;
        refuse(rows);
        // Squares that float32 does not hold.
        refuse(batch(&spec, 1).mapv(|x| x * 1e30));
        // All rows equal their mean.
        refuse(ndarray::Array2::ones((ROWS, WIDTH)));
        let after = train(&mut step, 1..3);
        (refused, after)
    };
    let one = on_ranks(1, run).remove(0);
    assert_eq!(one.0[0], StepError::NonFiniteRow { row: 70 });
    assert!(matches!(one.0[1], StepError::NonFiniteLoss { step: 2, .. }), "{:?}", one.0[1]);
    assert!(matches!(one.0[2], StepError::ZeroNorm { row: 0, .. }));
    for ranks in [2, 4] {
        for (refused, after) in on_ranks(ranks, run) {
            // The loss itself may be NaN.
            assert_eq!(format!("{refused:?}"), format!("{:?}", one.0));
            assert!(after == one.1);
        }
    }
}

#[test]
fn a_divergence_on_one_rank_ends_all_at_the_same_step() {
    let loss = LossSpec::reconstruction(Mse::Sum);
    let spec = StepSpec { pre_bias: false, loss, decoder_norm: DecoderNorm::Unit, ..panels(4) };
    // One feature alone is active, and so trained. Its decoder row becomes longer than float32 can tell; no sum of all panels sees it.
    let mut initial = weights(&spec, 100.0);
    initial.encoder_bias[FEATURES - 1] = 1.0;
    let diverge = |exchange: Arc<dyn Exchange>| {
        let mut step = CpuStep::shared(spec, options(0.3), initial.clone(), exchange).unwrap();
        step.step(batch(&spec, 0).view().into(), &Schedule::constant(1e38)).unwrap_err()
    };
    for ranks in [1, 2, 4] {
        for error in on_ranks(ranks, diverge) {
            assert_eq!(error, StepError::Diverged { step: 1 }, "{ranks} ranks");
        }
    }
}

#[test]
fn one_panel_is_encoded_as_many() {
    let spec = StepSpec { activation: Activation::TopK { k: 9 }, ..panels(PANELS) };
    let rows = batch(&spec, 3);
    let encode = |panels| {
        let spec = StepSpec { panels, ..spec };
        let mut step = CpuStep::new(spec, CpuOptions::default(), weights(&spec, 0.3)).unwrap();
        step.encode(rows.view()).unwrap()
    };
    assert_eq!(encode(1), encode(PANELS));
    let refused = on_ranks(2, |exchange| {
        let mut step = CpuStep::shared(spec, CpuOptions::default(), weights(&spec, 0.3), exchange).unwrap();
        step.encode(rows.view()).unwrap_err().to_string()
    });
    assert!(refused[0].contains("in one process"), "{refused:?}");
}

#[test]
fn the_path_is_chosen_panel_by_panel() {
    // Features of the first half are active everywhere, the others seldom.
    let spec = StepSpec { pre_bias: false, ..panels(4) };
    let mut initial = weights(&spec, 1.0);
    initial.encoder_bias.slice_mut(ndarray::s![..FEATURES / 2]).fill(100.0);
    let run = |exchange| {
        let mut step = CpuStep::shared(spec, options(0.5), initial.clone(), exchange).unwrap();
        train(&mut step, 0..3)
    };
    let one = on_ranks(1, run).remove(0);
    assert!(one.reports.iter().all(|report| report.path == Path::Dense));
    assert!(on_ranks(4, run).iter().all(|left| *left == one));
}
