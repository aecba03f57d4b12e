//! Products with weights on matrix units. Without such units there is nothing to test.

use crate::models::{Golden, NAMES, all_hooks, folder, runtime, worst_difference};
use language_model::{
    Checkpoint, Device, HookPoint, ModelPrecision, PrefixModel, Products, SessionOptions, Site,
};
use ndarray::{Array2, s};

const UNITS: SessionOptions = SessionOptions {
    device: Device::Cpu,
    threads: 1,
    center: false,
    precision: None,
    products: Products::MatrixUnits,
};

/// The model with products on matrix units, if there are any.
fn load(checkpoint: &Checkpoint, hooks: &[HookPoint], options: &SessionOptions) -> Option<PrefixModel> {
    let model = PrefixModel::load(&runtime(), checkpoint, hooks, options).unwrap();
    (model.products() == Products::MatrixUnits).then_some(model)
}

/// Of the largest activation. A product of two numbers is up to 3·2⁻¹⁸ off, 1.1e-5, and a block has six such products one behind
/// another; rows of 12 numbers average little of it out. A factor rounded to bfloat16 is 2e-3 off.
const TOLERANCE: f32 = 4e-5;

#[test]
fn every_hook_agrees_with_float64_as_far_as_three_parts_go() {
    for name in NAMES {
        let (checkpoint, golden) = (Checkpoint::open(&folder(name)).unwrap(), Golden::read(name));
        let hooks = all_hooks(&checkpoint);
        let Some(model) = load(&checkpoint, &hooks, &UNITS) else { return };
        let operators: Vec<_> = model.assignment().map(|(_, operator, _)| operator.to_string()).collect();
        assert!(operators.iter().any(|operator| operator.starts_with("Product")), "{operators:?}");
        assert!(!operators.iter().any(|operator| operator == "Gemm"), "{operators:?}");
        let ids = golden.ids();
        let activations = model.run(ids.view()).unwrap();
        for (index, hook) in hooks.iter().enumerate() {
            let expected = golden.rows(*hook);
            let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let worst = worst_difference(&activations.rows(index), &expected);
            assert!(worst <= TOLERANCE * largest, "{name} {hook}: {worst:e} of {largest}");
        }
    }
}

#[test]
fn no_bit_depends_on_threads_or_on_the_other_contexts() {
    for name in NAMES {
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let hooks = [HookPoint { layer: checkpoint.config().layers - 1, site: Site::ResidPost }];
        let ids = Array2::from_shape_fn((37, 7), |(i, j)| (i * 7 + j) as i64 * 5 % 37);
        let Some(one) = load(&checkpoint, &hooks, &UNITS) else { return };
        let expected = one.run(ids.view()).unwrap();
        for threads in [2, 3, 8] {
            let model = load(&checkpoint, &hooks, &SessionOptions { threads, ..UNITS }).unwrap();
            for _ in 0..5 {
                assert_eq!(model.run(ids.view()).unwrap().rows(0), expected.rows(0), "{name} {threads}");
            }
            for context in [0, 20, 36] {
                let alone = model.run(ids.slice(s![context..=context, ..])).unwrap();
                let among = expected.rows(0);
                assert_eq!(alone.rows(0), among.slice(s![context..=context, .., ..]), "{name} {context}");
            }
        }
    }
}

#[test]
fn sessions_on_several_threads_share_the_units() {
    let checkpoint = Checkpoint::open(&folder("gpt2")).unwrap();
    let hooks = [HookPoint::resid_pre(1)];
    let options = SessionOptions { threads: 2, ..UNITS };
    let Some(model) = load(&checkpoint, &hooks, &options) else { return };
    let ids = Array2::from_shape_fn((40, 12), |(i, j)| (12 * i + j) as i64 * 5 % 37);
    let expected = model.run(ids.view()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let model = load(&checkpoint, &hooks, &options).unwrap();
                for _ in 0..10 {
                    assert_eq!(model.run(ids.view()).unwrap().rows(0), expected.rows(0));
                }
            });
        }
    });
}

#[test]
fn half_precision_and_exact_products_use_none() {
    let checkpoint = Checkpoint::open(&folder("gpt2")).unwrap();
    let hooks = [HookPoint::resid_pre(1)];
    for options in [
        SessionOptions { precision: Some(ModelPrecision::Half), ..UNITS },
        SessionOptions { products: Products::Exact, ..UNITS },
    ] {
        let model = PrefixModel::load(&runtime(), &checkpoint, &hooks, &options).unwrap();
        assert_eq!(model.products(), Products::Exact);
        assert!(!model.assignment().any(|(_, operator, _)| operator.starts_with("Product")));
    }
}
