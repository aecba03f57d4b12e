//! The tiny models of `tests/data` against what `transformers` computed for them in float64
//! (`tests/peers/make_tiny_models.py`).

use crate::models::{Golden, NAMES, all_hooks, copy, folder, runtime, worst_difference};
use language_model::{
    Checkpoint, Device, HookPoint, ModelPrecision, PrefixModel, Products, SessionOptions, Site, self_check,
};
use ndarray::{Array2, aview2, s};

const CPU: SessionOptions = SessionOptions {
    device: Device::Cpu,
    threads: 1,
    center: false,
    precision: None,
    products: Products::Exact,
};
/// Activations here are up to about 30.
const TOLERANCE: f32 = 2e-5;

#[test]
fn every_hook_of_every_block_agrees_with_transformers() {
    for name in NAMES {
        let (checkpoint, golden) = (Checkpoint::open(&folder(name)).unwrap(), Golden::read(name));
        let hooks = all_hooks(&checkpoint);
        let model = PrefixModel::load(&runtime(), &checkpoint, &hooks, &CPU).unwrap();
        let ids = golden.ids();
        let activations = model.run(ids.view()).unwrap();
        for (index, hook) in hooks.iter().enumerate() {
            let worst = worst_difference(&activations.rows(index), &golden.rows(*hook));
            assert!(worst < TOLERANCE, "{name} {hook}: {worst:e}");
        }
    }
}

#[test]
fn a_hook_alone_gives_the_same_as_among_all() {
    for name in NAMES {
        let (checkpoint, golden) = (Checkpoint::open(&folder(name)).unwrap(), Golden::read(name));
        let ids = golden.ids();
        for hook in all_hooks(&checkpoint) {
            let model = PrefixModel::load(&runtime(), &checkpoint, &[hook], &CPU).unwrap();
            let activations = model.run(ids.view()).unwrap();
            let worst = worst_difference(&activations.rows(0), &golden.rows(hook));
            assert!(worst < TOLERANCE, "{name} {hook}: {worst:e}");
        }
    }
}

#[test]
fn centring_subtracts_the_mean_of_each_row() {
    for name in NAMES {
        let (checkpoint, golden) = (Checkpoint::open(&folder(name)).unwrap(), Golden::read(name));
        let hooks = all_hooks(&checkpoint);
        let options = SessionOptions { center: true, ..CPU };
        let model = PrefixModel::load(&runtime(), &checkpoint, &hooks, &options).unwrap();
        let ids = golden.ids();
        let activations = model.run(ids.view()).unwrap();
        let d = checkpoint.config().d_model;
        for (index, hook) in hooks.iter().enumerate() {
            let mut expected = golden.rows(*hook);
            let plain = expected.clone();
            for row in expected.chunks_exact_mut(d) {
                let mean = row.iter().sum::<f32>() / d as f32;
                row.iter_mut().for_each(|x| *x -= mean);
            }
            let worst = worst_difference(&activations.rows(index), &expected);
            assert!(worst < TOLERANCE, "{name} {hook}: {worst:e}");
            assert!(
                worst_difference(&plain, &expected) > 100.0 * TOLERANCE,
                "{name} {hook} has no mean to remove"
            );
        }
    }
}

#[test]
fn outputs_keep_their_order_when_two_hooks_are_one_value() {
    let (checkpoint, golden) = (Checkpoint::open(&folder("gpt2")).unwrap(), Golden::read("gpt2"));
    let post = HookPoint { layer: 0, site: Site::ResidPost };
    let hooks = [HookPoint::resid_pre(1), HookPoint::resid_pre(0), post, HookPoint::resid_pre(1)];
    for center in [false, true] {
        let options = SessionOptions { center, ..CPU };
        let model = PrefixModel::load(&runtime(), &checkpoint, &hooks, &options).unwrap();
        assert_eq!(model.names()[1], "blocks.0.hook_resid_pre");
        assert_eq!(model.width(1), checkpoint.config().d_model);
        let ids = golden.ids();
        let activations = model.run(ids.view()).unwrap();
        assert_eq!(activations.rows(0), activations.rows(2));
        assert_eq!(activations.rows(0), activations.rows(3));
        assert_ne!(activations.rows(0), activations.rows(1));
    }
}

#[test]
fn contexts_are_independent_and_tokens_see_no_later_ones() {
    for name in NAMES {
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let last = HookPoint { layer: checkpoint.config().layers - 1, site: Site::ResidPost };
        let model = PrefixModel::load(&runtime(), &checkpoint, &[last], &CPU).unwrap();
        let both = model.run(aview2(&[[5, 6, 7], [8, 9, 10]])).unwrap();
        let second = model.run(aview2(&[[8, 9, 10]])).unwrap();
        assert!(
            worst_difference(&both.rows(0).slice(s![1.., .., ..]), &second.rows(0)) < TOLERANCE,
            "{name}"
        );
        let beginning = model.run(aview2(&[[8, 9]])).unwrap();
        assert!(
            worst_difference(&second.rows(0).slice(s![.., ..2, ..]), &beginning.rows(0)) < TOLERANCE,
            "{name}"
        );
    }
}

#[test]
fn the_cpu_runs_where_there_is_no_cuda_and_says_so() {
    // The library of scripts/fetch-onnxruntime has no CUDA provider, whatever the machine has.
    let checkpoint = Checkpoint::open(&folder("gpt2")).unwrap();
    let options = SessionOptions { device: Device::Auto, ..CPU };
    let model = PrefixModel::load(&runtime(), &checkpoint, &[HookPoint::resid_pre(0)], &options).unwrap();
    assert_eq!(model.provider(), "CPUExecutionProvider");
    let options = SessionOptions { device: Device::Cuda, ..CPU };
    let error = PrefixModel::load(&runtime(), &checkpoint, &[HookPoint::resid_pre(0)], &options).unwrap_err();
    let message = error.to_string();
    for part in ["no CUDA", "libonnxruntime_providers_cuda.so", "does not exist"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn activations_outlive_the_model_and_cross_threads() {
    let (checkpoint, golden) = (Checkpoint::open(&folder("gpt2")).unwrap(), Golden::read("gpt2"));
    let hook = HookPoint::resid_pre(1);
    let model = PrefixModel::load(&runtime(), &checkpoint, &[hook], &CPU).unwrap();
    let ids = golden.ids();
    let activations = model.run(ids.view()).unwrap();
    drop(model);
    let worst = std::thread::spawn(move || worst_difference(&activations.rows(0), &golden.rows(hook)))
        .join()
        .unwrap();
    assert!(worst < TOLERANCE);
}

#[test]
fn half_precision_differs_by_the_rounding_of_float16() {
    let options = SessionOptions { precision: Some(ModelPrecision::Half), ..CPU };
    for name in NAMES {
        let (checkpoint, golden) = (Checkpoint::open(&folder(name)).unwrap(), Golden::read(name));
        let hooks = all_hooks(&checkpoint);
        let model = PrefixModel::load(&runtime(), &checkpoint, &hooks, &options).unwrap();
        let ids = golden.ids();
        let activations = model.run(ids.view()).unwrap();
        let mut worst_of_all = 0.0_f32;
        for (index, hook) in hooks.iter().enumerate() {
            let (found, expected) = (activations.rows(index), golden.rows(*hook));
            let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let worst = worst_difference(&found, &expected) / largest;
            // A rounding to 11 bits is 5e-4; a block makes several one after another.
            assert!(worst < 4e-3, "{name} {hook}: {worst:e} of the largest activation");
            assert_eq!(activations.half_rows(index).unwrap()[[0, 0, 3]].to_f32(), found[[0, 0, 3]]);
            worst_of_all = worst_of_all.max(worst);
        }
        assert!(worst_of_all > 1e-4, "{name} was not computed in half precision: {worst_of_all:e}");
    }
}

#[test]
fn the_self_check_tells_the_same_model_from_another() {
    let ids = Array2::from_shape_fn((2, 12), |(i, j)| (12 * i + j) as i64 * 5 % 37);
    let load = |path: &std::path::Path, precision| {
        let checkpoint = Checkpoint::open(path).unwrap();
        let options = SessionOptions { precision: Some(precision), ..CPU };
        PrefixModel::load(&runtime(), &checkpoint, &all_hooks(&checkpoint), &options).unwrap()
    };
    let reference = load(&folder("gpt2"), ModelPrecision::Full);
    let same = self_check(&reference, &reference, ids.view()).unwrap();
    assert_eq!((same.difference, same.tolerance), (0.0, 1e-3));
    let half = self_check(&load(&folder("gpt2"), ModelPrecision::Half), &reference, ids.view()).unwrap();
    assert!(half.difference > 1e-4 && half.difference < half.tolerance, "{half:?}");

    // Another GELU: a model that is nearly right.
    let wrong = copy("gpt2");
    let path = wrong.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap().replace("gelu_new", "relu");
    std::fs::write(&path, config).unwrap();
    for precision in [ModelPrecision::Full, ModelPrecision::Half] {
        let error = self_check(&load(wrong.path(), precision), &reference, ids.view()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("CPUExecutionProvider does not compute what the CPU computes"), "{message}");
        assert!(message.contains("blocks."), "{message}");
    }
}

#[test]
fn threads_that_share_a_model_get_their_own_results() {
    let checkpoint = Checkpoint::open(&folder("llama")).unwrap();
    let hook = HookPoint { layer: 1, site: Site::ResidPost };
    let model = PrefixModel::load(&runtime(), &checkpoint, &[hook], &CPU).unwrap();
    assert_eq!((model.lanes(), model.suggested_contexts(16)), (1, 8));
    let ids =
        |thread: usize| Array2::from_shape_fn((2, 12), |(i, j)| ((12 * i + j) * 3 + thread * 7) as i64 % 41);
    let alone: Vec<_> =
        (0..4).map(|thread| model.run(ids(thread).view()).unwrap().rows(0).into_owned()).collect();
    assert_ne!(alone[0], alone[1]);
    std::thread::scope(|scope| {
        for (thread, alone) in alone.iter().enumerate() {
            let (model, ids) = (&model, ids(thread));
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(model.run(ids.view()).unwrap().rows(0), *alone);
                }
            });
        }
    });
}
