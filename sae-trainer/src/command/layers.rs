//! The command line over a file over a preset: flags from all of them, where the upper one wins.
//!
//! What comes out is a command line again, which means what it would mean if it had been typed.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Arg, CommandFactory, Parser};
use terminal::foreign_path;

use crate::command::arguments::RecipeArguments;
use crate::command::flags::{self, Flag, Value};
use crate::command::line::{Command, CommandLine};
use crate::command::presets;
use crate::command::settings::{flags_without_effect, refuse_flags_without_effect};

/// The command line of this process with `--preset` and `--config` written out; `None` if `--print-config` was all it asked
/// for. A line that clap refuses ends the process, as does `--help`.
///
/// # Errors
/// A file that cannot be read, or flags that do not go together.
pub(crate) fn read(words: Vec<OsString>) -> Result<Option<CommandLine>> {
    let line = CommandLine::parse_from(&words);
    let (recipe, subcommand) = match &line.command {
        None => (&line.train.recipe, None),
        Some(Command::Sweep(sweep)) => (&sweep.recipe, Some("sweep")),
        Some(_) => return Ok(Some(line)),
    };
    if *recipe == RecipeArguments::default() {
        return Ok(Some(line));
    }
    let context = Layers::new(subcommand);
    let resolved = context.resolve(&words, recipe)?;
    let line = context.parse(&resolved)?;
    if !recipe.print_config {
        return Ok(Some(line));
    }
    if line.command.is_none() {
        refuse_flags_without_effect(&line.train.settings, None)?;
    }
    let apart = ["preset", "config", "print-config"];
    let printed: Vec<Flag> = resolved.into_iter().filter(|flag| !apart.contains(&&*flag.name)).collect();
    terminal::report!("{}", flags::to_toml(&context.command, &printed)?.trim_end());
    Ok(None)
}

/// Layers of flags of one command.
struct Layers {
    command: clap::Command,
    subcommand: Option<&'static str>,
}

impl Layers {
    fn new(subcommand: Option<&'static str>) -> Layers {
        let all = CommandLine::command();
        let command = match subcommand {
            None => all,
            Some(name) => all.find_subcommand(name).expect("the line has this subcommand").clone(),
        };
        Layers { command, subcommand }
    }

    /// The flags of `words`, and under them those of its file and its preset.
    fn resolve(&self, words: &[OsString], recipe: &RecipeArguments) -> Result<Vec<Flag>> {
        let all = CommandLine::command().get_matches_from(words);
        let matches = all.subcommand_matches(self.subcommand.unwrap_or_default()).unwrap_or(&all);
        let given = flags::from_command_line(&self.command, matches);
        let file = recipe.config.as_deref().map(|path| self.file(path)).transpose()?.unwrap_or_default();
        let named_by_the_file = file.iter().find(|flag| flag.name == "preset").map(|flag| &flag.value);
        let preset = match (&recipe.preset, named_by_the_file) {
            (Some(name), _) => Some(name.clone()),
            (None, Some(Value::Texts(names))) => names[0].to_str().map(str::to_owned),
            _ => None,
        };
        let preset = match preset.as_deref().and_then(presets::find) {
            Some(preset) => {
                flags::from_toml(&self.command, preset.flags, &format!("the preset {}", preset.name))?
            }
            None => Vec::new(),
        };
        let mut stack = Vec::new();
        let mut idle = Vec::new();
        for layer in [preset, file, given] {
            let layered = self.over(&layer, &stack);
            let now = self.without_effect(&layered)?;
            // A flag that has lost its effect to one above it goes; one that never had any is a mistake, and stays.
            let is_lost = |flag: &Flag| {
                now.contains(&flag.name)
                    && !idle.contains(&flag.name)
                    && !layer.iter().any(|own| own.name == flag.name)
            };
            stack = layered.into_iter().filter(|flag| !is_lost(flag)).collect();
            idle = now;
        }
        Ok(stack)
    }

    fn file(&self, path: &Path) -> Result<Vec<Flag>> {
        let shown = foreign_path(path).to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let given = flags::from_toml(&self.command, &text, &shown)?;
        self.parse(&given).with_context(|| format!("the flags of {shown} do not go together"))?;
        Ok(given)
    }

    /// `upper`, and those of `lower` that it neither repeats nor excludes.
    fn over(&self, upper: &[Flag], lower: &[Flag]) -> Vec<Flag> {
        let yields = |flag: &&Flag| {
            !upper.iter().any(|above| above.name == flag.name || self.exclude_each_other(above, flag))
        };
        lower.iter().filter(yields).chain(upper).cloned().collect()
    }

    fn exclude_each_other(&self, one: &Flag, other: &Flag) -> bool {
        let named = |flag: &Flag| self.command.get_arguments().find(|arg| arg.get_long() == Some(&flag.name));
        let (Some(one), Some(other)) = (named(one), named(other)) else { return false };
        let excludes = |one: &Arg, other: &Arg| self.command.get_arg_conflicts_with(one).contains(&other);
        excludes(one, other) || excludes(other, one)
    }

    /// The names of the flags that have no effect next to the others, in a sweep in none of its points.
    fn without_effect(&self, flags: &[Flag]) -> Result<Vec<String>> {
        let line = self.parse(flags)?;
        let idle = match &line.command {
            Some(Command::Sweep(sweep)) => sweep.grid.without_effect()?,
            _ => flags_without_effect(&line.train.settings, None),
        };
        Ok(idle.into_iter().map(|flag| flag.trim_start_matches("--").to_owned()).collect())
    }

    fn parse(&self, flags: &[Flag]) -> Result<CommandLine> {
        let words = flags.iter().flat_map(Flag::words);
        // Without a word clap answers with the help; a run always computes somewhere.
        let filler = flags.is_empty().then(|| OsString::from("--device=auto"));
        let line = ["sae-trainer"].into_iter().chain(self.subcommand).map(OsString::from);
        CommandLine::try_parse_from(line.chain(words).chain(filler)).map_err(|error| flags::complaint(&error))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::arguments::SettingArguments;
    use crate::command::presets::PRESETS;
    use crate::command::settings::Settings;
    use crate::engine::Penalty;

    /// The flags that `line` amounts to, as words.
    fn resolved(line: &str) -> Result<String> {
        let words: Vec<OsString> =
            ["sae-trainer"].into_iter().chain(line.split(' ')).map(OsString::from).collect();
        let parsed = CommandLine::parse_from(&words);
        let (recipe, subcommand) = match &parsed.command {
            Some(Command::Sweep(sweep)) => (&sweep.recipe, Some("sweep")),
            _ => (&parsed.train.recipe, None),
        };
        let context = Layers::new(subcommand);
        let flags = context.resolve(&words, recipe)?;
        context.parse(&flags)?;
        let words: Vec<String> =
            flags.iter().flat_map(Flag::words).map(|word| word.into_string().unwrap()).collect();
        Ok(words.join(" "))
    }

    fn settings(line: &str) -> SettingArguments {
        CommandLine::parse_from(format!("sae-trainer {line}").split(' ')).train.settings
    }

    #[test]
    fn every_preset_parses_resolves_and_comes_back() {
        let context = Layers::new(None);
        for preset in &PRESETS {
            let line = resolved(&format!("--preset {}", preset.name)).unwrap();
            let arguments = settings(&line);
            Settings::resolve(&arguments, 768, None).unwrap();
            let flags = flags::from_toml(&context.command, preset.flags, "preset").unwrap();
            let again = flags::to_toml(&context.command, &flags).unwrap();
            assert_eq!(flags::from_toml(&context.command, &again, "again").unwrap(), flags);
            // A sweep starts from it too.
            let sweep = resolved(&format!("sweep --preset {} --lr 1e-3,1e-4", preset.name)).unwrap();
            assert!(sweep.contains("--mse=") && sweep.ends_with("--lr=1e-3,1e-4"), "{sweep}");
        }
    }

    #[test]
    fn the_post_is_the_default_but_for_the_initial_decoder() {
        let of = |line: &str| Settings::resolve(&settings(line), 768, None).unwrap();
        let post = of(&resolved("--preset post").unwrap());
        assert_eq!(post.init.decoder_norm, None);
        assert_eq!(Settings { init: sae::Init::default(), ..post }, of("--seed 0"));
    }

    #[test]
    fn the_recipes_of_2025_settle_what_their_sources_say() {
        let of = |line: &str| Settings::resolve(&settings(&resolved(line).unwrap()), 768, None).unwrap();
        let anthropic = of("--preset anthropic-2025 --steps 1000");
        assert_eq!((anthropic.coefficient_warmup_steps, anthropic.lr_decay_steps), (1000, 200));
        assert_eq!(anthropic.b_enc_init.share(anthropic.step.features), Some(10_000.0 / 24_576.0));
        let gemma = of("--preset gemma-scope-2");
        assert_eq!(gemma.step.loss.penalty, Penalty::Quadratic { target: 50.0 });
        assert_eq!((gemma.lr, gemma.step.adam.beta1, gemma.threshold_init), (7e-5, 0.0, 0.001));
        // Few features cannot have 10,000 active ones.
        let told = Settings::resolve(
            &settings(&resolved("--preset anthropic-2025 --features 512").unwrap()),
            768,
            None,
        );
        assert!(told.unwrap_err().to_string().contains("there are 512"));
        // With another activation what belongs to JumpReLU goes.
        let line = resolved("--preset anthropic-2025 --activation topk").unwrap();
        for gone in ["--b-enc-init", "--bandwidth", "--pre-activation-coefficient", "--jump-to-input"] {
            assert!(!line.contains(gone), "{gone} is still in {line}");
        }
    }

    #[test]
    fn the_upper_flag_wins_and_what_loses_its_effect_goes() {
        let line = resolved("--preset l1-reference --loss tanh --steps 5 --features 64 --lr 1e-3").unwrap();
        for gone in ["--l1-coefficient", "--tokens", "--expansion", "--lr=4e-4"] {
            assert!(!line.contains(gone), "{gone} is still in {line}");
        }
        for there in ["--pre-bias", "--loss=tanh", "--warmup-steps=5000", "--steps=5", "--features=64"] {
            assert!(line.contains(there), "{there} is not in {line}");
        }
        // What excludes several.
        let line = resolved("--preset l1-reference --init-from x").unwrap();
        for gone in ["--expansion", "--b-dec-init", "--decoder-init-norm"] {
            assert!(!line.contains(gone), "{gone} is still in {line}");
        }
        // What was asked for and cannot have an effect stays, and is refused.
        let line = resolved("--preset post --loss tanh --l1-coefficient 1").unwrap();
        assert!(line.contains("--l1-coefficient=1") && !line.contains("--l0-coefficient"), "{line}");
    }

    #[test]
    fn a_sweep_keeps_what_has_an_effect_on_one_of_its_points() {
        let line = resolved("sweep --preset l1-reference --loss l1,tanh").unwrap();
        assert!(line.contains("--l1-coefficient=8e-5"), "{line}");
        let line = resolved("sweep --preset l1-reference --loss log,tanh").unwrap();
        assert!(!line.contains("--l1-coefficient"), "{line}");
    }

    #[test]
    fn a_file_lies_between_preset_and_flags() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.into_os_string().into_string().unwrap()
        };
        let file = write("a.toml", "preset = \"l1-reference\"\nlr = 1e-3\nbatch = 64\npre-bias = false\n");
        let arguments = settings(&resolved(&format!("--config {file} --batch 32")).unwrap());
        assert_eq!((arguments.length.lr, arguments.data.batch), (Some(1e-3), Some(32)));
        assert_eq!((arguments.loss.l1_coefficient, arguments.model.pre_bias), (Some(8e-5), false));
        // The command line's preset takes the place of the file's.
        let arguments = settings(&resolved(&format!("--config {file} --preset post")).unwrap());
        assert_eq!((arguments.loss.l1_coefficient, arguments.loss.l0_coefficient), (None, Some(7e-5)));

        // A mistake within a file is one, whatever else is given.
        let file = write("b.toml", "loss = \"tanh\"\nl1-coefficient = 1e-3\n");
        assert!(resolved(&format!("--config {file} --lr 1e-3")).unwrap().contains("--l1-coefficient=1e-3"));
        let file = write("c.toml", "steps = 5\ntokens = 5\n");
        let told = format!("{:#}", resolved(&format!("--config {file}")).unwrap_err());
        assert!(told.contains("c.toml do not go together: the argument '--"), "{told}");
        let file = write("d.toml", "batch = [5, 6]\nlr = [1e-3, 1e-4]\n");
        let told = format!("{:#}", resolved(&format!("sweep --config {file}")).unwrap_err());
        assert!(told.contains("d.toml") && told.contains("--batch takes one value in a sweep"), "{told}");
        let told = resolved("--config /nowhere/x.toml").unwrap_err().to_string();
        assert_eq!(told, "cannot read /nowhere/x.toml");
        let file = write("empty.toml", "");
        assert_eq!(resolved(&format!("--config {file}")).unwrap(), format!("--config={file}"));
    }
}
