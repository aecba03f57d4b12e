//! The flags.
//!
//! Flags that define a run ([`SettingArguments`]) are recorded in its `config.json`. Flags that only say where and how
//! it is carried out ([`RunArguments`]) are not.

mod bench;
mod cache;
mod data;
mod dead;
mod files;
mod laboratory;
mod length;
mod loss;
mod model;
mod neuronpedia;
mod numbers;
mod push;
mod train;

pub(crate) use bench::BenchArguments;
pub(crate) use cache::CacheArguments;
pub(crate) use data::{InputScaleChoice, RowArguments};
pub(crate) use dead::{AuxK, AuxLossChoice, DeadArguments, ReviveChoice};
pub(crate) use files::{ExportArguments, ExportFormat, ImportArguments, VerifyArguments};
pub(crate) use laboratory::{
    CompareArguments, EvalArguments, FeatureKind, FeaturesArguments, ReportArguments, SpecialTokens,
};
pub(crate) use length::{DecayChoice, LengthArguments, PrecisionChoice, Span};
pub(crate) use loss::{LossArguments, MseChoice, PenaltyChoice};
pub(crate) use model::{
    ActivationChoice, DecoderBias, DecoderNormChoice, EncoderBias, EncoderInitChoice, InitialNorm,
    ModelArguments, SelectionArguments, Width,
};
pub(crate) use neuronpedia::NeuronpediaArguments;
pub(crate) use push::PushArguments;
pub(crate) use train::{DeviceChoice, RecipeArguments, RunArguments, SettingArguments, TrainArguments};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::{CommandFactory, Parser};

    use crate::command::line::{Command, CommandLine};

    fn parse(words: &[&str]) -> Result<CommandLine, clap::Error> {
        CommandLine::try_parse_from(["sae-trainer"].iter().chain(words))
    }

    #[test]
    fn the_definition_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn flags_without_a_subcommand_mean_training() {
        let line = parse(&["--store", "a", "--store", "b", "--tokens", "300M", "--features", "24k"]).unwrap();
        assert!(line.command.is_none());
        let settings = &line.train.settings;
        assert_eq!(settings.data.store, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!((settings.length.tokens, settings.model.features), (Some(300_000_000), Some(24_000)));
        assert!(matches!(parse(&["compare", "x", "y"]).unwrap().command, Some(Command::Compare(_))));
        assert!(parse(&["--store", "a", "compare", "x"]).is_err());
        assert!(parse(&["compare", "x", "--plot", "a.svg"]).is_ok());
        assert!(parse(&["compare", "x", "--plot", "a.png"]).unwrap_err().to_string().contains("a.png"));
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_flag() {
        for (flag, value) in [
            ("--lr", "0"),
            ("--lr", "-1"),
            ("--lr", "nan"),
            ("--lr", "inf"),
            ("--beta1", "1"),
            ("--decoder-init-norm", "0"),
            ("--encoder-init-scale", "-1"),
            ("--beta2", "-0.1"),
            ("--l0-coefficient", "-1"),
            ("--epsilon", "0.2,-1"),
            ("--tanh-scale", "1e-300"),
            ("--min-sparsity-target", "7"),
            ("--held-out", "1"),
            ("--held-out", "-0.1"),
            ("--max-norm", "0"),
        ] {
            let error = parse(&[flag, value]).unwrap_err().to_string();
            assert!(error.contains(flag) && error.contains("it must be"), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn flags_that_exclude_each_other_are_refused() {
        assert!(parse(&["--tokens", "1M", "--steps", "5"]).is_err());
        assert!(parse(&["--features", "64", "--expansion", "8"]).is_err());
        assert!(parse(&["--init-from", "x", "--expansion", "8"]).is_err());
    }
}
