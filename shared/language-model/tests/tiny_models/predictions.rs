//! What the tiny models predict with something else at a hook, against `transformers` in float64.

use crate::models::{Golden, NAMES, all_hooks, copy, folder, runtime, worst_difference};
use language_model::{
    Checkpoint, Device, HookPoint, ModelPrecision, Products, SessionOptions, Site, SuffixModel, Unembedding,
};
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, concatenate, s};

const CPU: SessionOptions = SessionOptions {
    device: Device::Cpu,
    threads: 1,
    center: false,
    precision: None,
    products: Products::Exact,
};
/// Logits here are up to about 20, losses up to about 30.
const TOLERANCE: f32 = 5e-5;

fn load(checkpoint: &Checkpoint, hook: HookPoint) -> SuffixModel {
    SuffixModel::load(&runtime(), checkpoint, hook, &CPU).unwrap()
}

/// The model's own rows at a hook, `[contexts * length, d_model]`.
fn own_rows(golden: &Golden, hook: HookPoint, checkpoint: &Checkpoint) -> Array2<f32> {
    let rows = golden.rows(hook);
    let d = checkpoint.config().d_model;
    Array2::from_shape_vec((rows.len() / d, d), rows).unwrap()
}

/// Every model behind every hook, with its golden file and its own rows there, and what to call it in a message.
fn each_model(mut check: impl FnMut(&str, &SuffixModel, &Golden, Array2<f32>)) {
    for name in NAMES {
        let (checkpoint, golden) = (Checkpoint::open(&folder(name)).unwrap(), Golden::read(name));
        for hook in all_hooks(&checkpoint) {
            let own = own_rows(&golden, hook, &checkpoint);
            check(&format!("{name} {hook}"), &load(&checkpoint, hook), &golden, own);
        }
    }
}

#[test]
fn every_hook_can_be_given_and_the_prediction_agrees() {
    each_model(|name, model, golden, own| {
        let (ids, hook) = (golden.ids(), model.hook());
        let logits = model.logits(ids.view(), own.view()).unwrap();
        let worst = worst_difference(&logits, &golden.numbers("logits"));
        assert!(worst < TOLERANCE, "{name}: logits {worst:e}");

        let own = own.insert_axis(Axis(0));
        let zeros = Array3::zeros(own.dim());
        let variants = concatenate![Axis(0), own, zeros];
        let found = model.run(ids.view(), variants.view()).unwrap();
        assert!(found.kl.index_axis(Axis(0), 0).iter().all(|kl| *kl == 0.0), "{name}");
        for (found, expected) in [
            (found.loss.index_axis(Axis(0), 0), golden.numbers("loss")),
            (found.loss.index_axis(Axis(0), 1), golden.numbers(&format!("{hook}.zero.loss"))),
            (found.kl.index_axis(Axis(0), 1), golden.numbers(&format!("{hook}.zero.kl"))),
        ] {
            let worst = worst_difference(&found, &expected);
            assert!(worst < TOLERANCE, "{name}: {worst:e}");
        }
    });
}

#[test]
fn the_same_row_everywhere_predicts_the_same_at_each_position() {
    each_model(|name, model, golden, own| {
        let (ids, hook) = (golden.ids(), model.hook());
        // A row of the model's own beside the zeros.
        let same = ndarray::stack![Axis(0), Array1::zeros(own.ncols()), own.row(1)];
        let residual = !matches!(hook.site, Site::AttnOut | Site::MlpOut);
        let fixed = model.everywhere(same.view()).unwrap();
        assert_eq!(fixed.is_some(), residual, "{name}");
        let Some(fixed) = fixed else { return };

        let repeated = own.row(1).broadcast(own.dim()).unwrap().to_owned();
        let variants = ndarray::stack![Axis(0), own, repeated];
        let found = model.run_beside(ids.view(), variants.view(), fixed.view()).unwrap();
        for (found, expected) in [
            (found.loss.index_axis(Axis(0), 2), golden.numbers(&format!("{hook}.zero.loss"))),
            (found.kl.index_axis(Axis(0), 2), golden.numbers(&format!("{hook}.zero.kl"))),
            (found.loss.index_axis(Axis(0), 3), found.loss.index_axis(Axis(0), 1).iter().copied().collect()),
            (found.kl.index_axis(Axis(0), 3), found.kl.index_axis(Axis(0), 1).iter().copied().collect()),
        ] {
            let worst = worst_difference(&found, &expected);
            assert!(worst < TOLERANCE, "{name}: {worst:e}");
        }
    });
}

#[test]
fn a_variant_predicts_the_same_alone_and_among_others() {
    let (checkpoint, golden) = (Checkpoint::open(&folder("llama")).unwrap(), Golden::read("llama"));
    let (ids, hook) = (golden.ids(), HookPoint { layer: 0, site: Site::MlpOut });
    let own = own_rows(&golden, hook, &checkpoint);
    let variants = ndarray::stack![Axis(0), own, &own * 0.5, &own * 2.0];
    let model = load(&checkpoint, hook);
    let among = model.run(ids.view(), variants.view()).unwrap();
    for (index, rows) in variants.outer_iter().enumerate() {
        let alone = model.run(ids.view(), rows.insert_axis(Axis(0))).unwrap();
        let worst =
            worst_difference(&alone.loss.index_axis(Axis(0), 0), &among.loss.index_axis(Axis(0), index));
        assert!(worst < TOLERANCE, "{index}: {worst:e}");
    }
    let first = model.run(ids.slice(s![..1, ..]), variants.slice(s![.., ..ids.ncols(), ..])).unwrap();
    assert!(worst_difference(&first.kl, &among.kl.slice(s![.., ..1, ..])) < TOLERANCE);
}

#[test]
fn half_precision_predicts_nearly_the_same() {
    let options = SessionOptions { precision: Some(ModelPrecision::Half), ..CPU };
    for name in NAMES {
        let (checkpoint, golden) = (Checkpoint::open(&folder(name)).unwrap(), Golden::read(name));
        let hook = HookPoint::resid_pre(1);
        let model = SuffixModel::load(&runtime(), &checkpoint, hook, &options).unwrap();
        let own = own_rows(&golden, hook, &checkpoint);
        let logits = model.logits(golden.ids().view(), own.view()).unwrap();
        let expected = golden.numbers("logits");
        let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let worst = worst_difference(&logits, &expected) / largest;
        assert!((1e-5..1e-2).contains(&worst), "{name}: {worst:e} of the largest logit");
    }
}

#[test]
fn the_unembedding_makes_the_logits_of_normed_rows() {
    for name in NAMES {
        let (checkpoint, golden) = (Checkpoint::open(&folder(name)).unwrap(), Golden::read(name));
        let config = checkpoint.config();
        let last = HookPoint { layer: config.layers - 1, site: Site::ResidPost };
        let rows = own_rows(&golden, last, &checkpoint);
        let Unembedding { weights, bias } = Unembedding::read(&checkpoint).unwrap();
        let scale = |row: ArrayView2<'_, f32>| {
            let mean = match config.norm {
                language_model::NormKind::LayerNorm => row.mean().unwrap(),
                language_model::NormKind::RmsNorm => 0.0,
            };
            let square = row.mapv(|x| (x - mean).powi(2)).mean().unwrap();
            (square + config.norm_epsilon).sqrt()
        };
        let mut normed = rows.clone();
        for mut row in normed.axis_chunks_iter_mut(Axis(0), 1) {
            let scale = scale(row.view());
            row /= scale;
        }
        let logits = normed.dot(&weights.t()) + &bias;
        let worst = worst_difference(&logits, &golden.numbers("logits"));
        assert!(worst < TOLERANCE, "{name}: {worst:e}");
    }
}

#[test]
fn what_cannot_be_spliced_is_refused() {
    let checkpoint = Checkpoint::open(&folder("gpt-neox")).unwrap();
    let error = |hook: &str| {
        let hook = hook.parse().unwrap();
        SuffixModel::load(&runtime(), &checkpoint, hook, &CPU).unwrap_err().to_string()
    };
    assert!(error("blocks.2.hook_resid_pre").contains("blocks.2"), "{}", error("blocks.2.hook_resid_pre"));
    assert!(error("blocks.0.hook_resid_mid").contains("resid_mid"), "{}", error("blocks.0.hook_resid_mid"));

    let model = load(&checkpoint, HookPoint::resid_pre(1));
    let ids = Array2::zeros((2, 3));
    for shape in [(1, 5, 16), (1, 6, 15), (0, 6, 16)] {
        let message = model.run(ids.view(), Array3::zeros(shape).view()).unwrap_err().to_string();
        assert!(message.contains("[variants, 6, 16]"), "{message}");
    }
    let message = model
        .run_beside(ids.view(), Array3::zeros((1, 6, 16)).view(), Array2::zeros((1, 5)).view())
        .unwrap_err()
        .to_string();
    assert!(message.contains("[.., 43]"), "{message}");
    assert!(model.run(Array2::from_elem((1, 1), 43).view(), Array3::zeros((1, 1, 16)).view()).is_err());

    // A model of which the configuration says that it has a head of its own, and the weights that it has none.
    let headless = copy("gpt2");
    let path = headless.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let untied = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    assert_ne!(untied, config);
    std::fs::write(&path, untied).unwrap();
    let checkpoint = Checkpoint::open(headless.path()).unwrap();
    let hook = HookPoint::resid_pre(1);
    let message = SuffixModel::load(&runtime(), &checkpoint, hook, &CPU).unwrap_err().to_string();
    assert!(message.contains("lm_head.weight"), "{message}");
    assert!(Unembedding::read(&checkpoint).is_err());
}
