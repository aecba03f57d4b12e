//! What a run starts from: an autoencoder that is there, or weights that are drawn.

use anyhow::{Result, ensure};
use sae::{EncoderInit, Init};

use crate::command::arguments::{
    EncoderInitChoice, InitialNorm, InputScaleChoice, ModelArguments, SettingArguments,
};
use crate::engine::Activation;

/// The settings that the autoencoder named by `--init-from` fixes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Initial {
    pub(crate) activation: Activation,
    pub(crate) features: usize,
    pub(crate) pre_bias: bool,
    pub(crate) skip: bool,
    /// Its rows are scaled each.
    pub(crate) row_norm: bool,
}

/// An error if flags do not fit the autoencoder that training starts from.
pub(super) fn check(arguments: &SettingArguments, initial: Option<Initial>) -> Result<()> {
    let SettingArguments { data, rows, model, .. } = arguments;
    if let Some(initial) = initial {
        ensure!(
            initial.pre_bias || !model.pre_bias,
            "--pre-bias does not fit --init-from: that autoencoder was trained without it"
        );
        let scale = data.input_scale.unwrap_or_default();
        let fits = (scale == InputScaleChoice::RowNorm) == initial.row_norm;
        ensure!(
            fits || (initial.row_norm && data.input_scale.is_none()),
            "--input-scale does not fit --init-from: that autoencoder was trained {} row-norm",
            if initial.row_norm { "with" } else { "without" }
        );
    }
    ensure!(
        rows.target.is_empty() || initial.is_none_or(|initial| !initial.pre_bias),
        "--target does not fit --init-from: that autoencoder subtracts the decoder bias from what it reads, and a \
         transcoder's decoder bias is one of its target"
    );
    ensure!(
        rows.target.is_empty() || data.input_scale.unwrap_or_default() == InputScaleChoice::None,
        "--input-scale does not fit --target: rows of two places in a model have two scales; leave one of them out"
    );
    ensure!(
        !rows.target.is_empty() || !initial.is_some_and(|initial| initial.skip),
        "--init-from is a transcoder with a skip connection, which needs --target"
    );
    ensure!(
        !rows.target.is_empty() || !rows.skip,
        "--skip is for transcoders: what an autoencoder reads it would reconstruct without a feature; add --target"
    );
    Ok(())
}

/// The weights at the start, where they are drawn.
pub(super) fn resolve(flags: &ModelArguments) -> Init {
    Init {
        encoder: match flags.encoder_init {
            None | Some(EncoderInitChoice::Kaiming) => EncoderInit::Kaiming,
            Some(EncoderInitChoice::Transpose) => {
                EncoderInit::Transpose { scale: flags.encoder_init_scale.unwrap_or(1.0) }
            }
        },
        decoder_norm: match flags.decoder_init_norm {
            None => Some(1.0),
            Some(InitialNorm::Norm(norm)) => Some(norm),
            Some(InitialNorm::Free) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::settings::Settings;
    use crate::command::settings::identity::json;
    use crate::command::settings::tests::{arguments, error, resolve};

    #[test]
    fn the_initial_weights_are_those_asked_for() {
        assert_eq!(resolve(&[]).unwrap().init, Init::default());
        let words =
            ["--encoder-init", "transpose", "--encoder-init-scale", "0.5", "--decoder-init-norm", "0.1"];
        let expected = Init { encoder: EncoderInit::Transpose { scale: 0.5 }, decoder_norm: Some(0.1) };
        assert_eq!(resolve(&words).unwrap().init, expected);
        assert_eq!(resolve(&["--decoder-init-norm", "free"]).unwrap().init.decoder_norm, None);
        let told = error(&["--encoder-init-scale", "0.5"]);
        assert_eq!(told, "--encoder-init-scale has no effect without --encoder-init transpose");
        for words in [&words[..], &["--decoder-init-norm", "free"]] {
            let (flags, settings) = (arguments(words), resolve(words).unwrap());
            let again: SettingArguments =
                serde_json::from_value(serde_json::to_value(&flags).unwrap()).unwrap();
            assert_eq!(again, flags);
            assert_eq!(serde_json::from_value::<Settings>(json(&settings)).unwrap(), settings);
        }
    }

    #[test]
    fn an_initial_autoencoder_decides_size_and_pre_bias() {
        let initial = Some(Initial {
            activation: Activation::Relu,
            features: 99,
            pre_bias: true,
            skip: false,
            row_norm: false,
        });
        let settings = Settings::resolve(&arguments(&["--init-from", "x"]), 768, initial).unwrap();
        assert_eq!((settings.step.features, settings.step.pre_bias), (99, true));
        let initial = Some(Initial {
            activation: Activation::Relu,
            features: 99,
            pre_bias: false,
            skip: false,
            row_norm: false,
        });
        assert!(Settings::resolve(&arguments(&["--init-from", "x", "--pre-bias"]), 768, initial).is_err());
    }

    #[test]
    fn an_initial_autoencoder_keeps_its_row_norm() {
        let initial = |row_norm| {
            Some(Initial {
                activation: Activation::Relu,
                features: 99,
                pre_bias: false,
                skip: false,
                row_norm,
            })
        };
        let of = |words: &[&str], row_norm| Settings::resolve(&arguments(words), 768, initial(row_norm));
        assert_eq!(of(&[], true).unwrap().input_scale, InputScaleChoice::RowNorm);
        assert_eq!(of(&[], false).unwrap().input_scale, InputScaleChoice::None);
        let mean = of(&["--input-scale", "mean-norm"], false).unwrap();
        assert_eq!(mean.input_scale, InputScaleChoice::MeanNorm);
        assert!(of(&["--input-scale", "row-norm"], true).is_ok());
        for (flag, row_norm, told) in
            [("row-norm", false, "without"), ("none", true, "with"), ("mean-norm", true, "with")]
        {
            let error = of(&["--input-scale", flag], row_norm).unwrap_err().to_string();
            assert!(error.contains(&format!("was trained {told} row-norm")), "{error}");
        }
    }
}
