//! The command line of a sweep: the flags of a run, some with several values, and the points of the grid that they span.
//!
//! A point is the command line of a single run, taken from the sweep's and read by the same parser. So it means what it
//! would mean alone, and its `config.json` is the one that the run would have alone.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use clap::error::{Error, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Parser};
use terminal::foreign_path;

use crate::command::arguments::{RecipeArguments, RunArguments, SettingArguments, TrainArguments};
use crate::command::settings::flags_without_effect;

/// More points than anyone trains at once are a mistake.
const MOST_POINTS: usize = 1000;

/// `sae-trainer sweep`: what is swept, and where and how.
#[derive(Debug)]
pub(crate) struct SweepArguments {
    pub(crate) grid: Grid,
    pub(crate) run: RunArguments,
    pub(crate) recipe: RecipeArguments,
}

/// The flags that define runs, with all their values.
#[derive(Debug)]
pub(crate) struct Grid {
    flags: Vec<Flag>,
}

/// A flag that was given.
#[derive(Debug)]
struct Flag {
    /// As on the command line.
    name: String,
    /// Its values, one point takes one of them.
    choices: Vec<Choice>,
}

/// One value of a flag.
#[derive(Debug)]
struct Choice {
    /// Its part of a point's name.
    name: String,
    /// Flag and value, as on the command line.
    words: Vec<OsString>,
}

/// One of the runs of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    /// Its folder's name: what tells it from the others, such as `l0-coefficient-5e-5_lr-1e-4`.
    pub(crate) name: String,
    /// The values that tell it from the others, by flag.
    pub(crate) varied: Vec<(String, String)>,
    /// The flags of the run, as on the command line.
    pub(crate) words: Vec<OsString>,
    /// The same, read.
    pub(crate) arguments: SettingArguments,
}

/// How a flag takes the values of several points.
#[derive(Clone, Copy, PartialEq)]
enum Variation {
    /// It does not: it determines the batches, which are the same for all points.
    Common,
    /// Separated by commas, or repeated.
    Commas,
    /// Repeated: a comma has another meaning in its value.
    Repeats,
}

fn variation(id: &str) -> Variation {
    match id {
        "store" | "batch" | "mixing_chunks" | "input_scale" | "seed" | "tokens" | "steps" | "eval_rows" => {
            Variation::Common
        }
        "held_out" | "eval_store" | "target" | "drop_tokens" | "max_norm" => Variation::Common,
        "epsilon" | "init_from" | "matryoshka" => Variation::Repeats,
        _ => Variation::Commas,
    }
}

/// Whether a run itself takes several values of the flag.
fn is_a_list(id: &str) -> bool {
    matches!(id, "store" | "eval_store" | "target" | "drop_tokens")
}

/// The flags that define a run, as the command line of a run has them.
fn setting_flags() -> Vec<Arg> {
    SettingArguments::augment_args(Command::new("")).get_arguments().cloned().collect()
}

fn takes_a_value(flag: &Arg) -> bool {
    matches!(flag.get_action(), ArgAction::Set | ArgAction::Append)
}

impl Args for SweepArguments {
    fn augment_args(command: Command) -> Command {
        let mut command = TrainArguments::augment_args(command);
        for flag in setting_flags() {
            let id = flag.get_id().as_str();
            if !takes_a_value(&flag) || is_a_list(id) {
                continue;
            }
            command = command.mut_arg(id, |flag| match variation(id) {
                // A list is read for all of them, so that the answer to one is a sentence.
                Variation::Common | Variation::Commas => flag.action(ArgAction::Append).value_delimiter(','),
                Variation::Repeats => flag.action(ArgAction::Append),
            });
        }
        command
            .mut_arg("epsilon", |flag| {
                flag.help(
                    "The epsilon of a run, or several, as in 0.2,0.1,0.05, which divide each run into equal \
                     parts; repeat the flag for several points [default: 0.2]",
                )
            })
            .mut_arg("out", |flag| {
                flag.help("Folder of the sweep, with a run's folder for each point [default: runs/STORE-sweep]")
            })
            .mut_arg("resume", |flag| {
                flag.help(
                    "Continue the sweep in --out, or start it if there is none. Other flags may be left out; only \
                     --steps, --tokens, --eval-rows and --eval-store may differ from the sweep's",
                )
            })
            .mut_arg("json", |flag| flag.help("Print sweep.json on standard output instead of the table"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SweepArguments {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Vec::new();
        for flag in setting_flags() {
            let id = flag.get_id().as_str();
            let given = matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
            if given {
                flags.push(Flag::read(&flag, matches)?);
            }
        }
        let recipe = RecipeArguments::from_arg_matches(matches)?;
        Ok(SweepArguments { grid: Grid { flags }, run: RunArguments::from_arg_matches(matches)?, recipe })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Flag {
    fn read(flag: &Arg, matches: &ArgMatches) -> Result<Flag, Error> {
        let id = flag.get_id().as_str();
        let name = format!("--{}", flag.get_long().expect("every setting has a long flag"));
        if !takes_a_value(flag) {
            let words = vec![name.clone().into()];
            return Ok(Flag { name, choices: vec![Choice { name: String::new(), words }] });
        }
        let occurrences: Vec<Vec<OsString>> = matches
            .get_raw_occurrences(id)
            .into_iter()
            .flatten()
            .map(|values| values.map(OsString::from).collect())
            .collect();
        if is_a_list(id) {
            let values = occurrences.into_iter().flatten();
            let words = values.flat_map(|value| [OsString::from(&name), value]).collect();
            return Ok(Flag { name, choices: vec![Choice { name: String::new(), words }] });
        }
        let values: Vec<OsString> = match variation(id) {
            Variation::Common | Variation::Commas => occurrences.into_iter().flatten().collect(),
            Variation::Repeats => occurrences.iter().map(|values| values.join(",".as_ref())).collect(),
        };
        for (at, value) in values.iter().enumerate() {
            if values[..at].contains(value) {
                let told = format!("{name} has the value {} twice", foreign_path(value.as_ref()));
                return Err(Error::raw(ErrorKind::ValueValidation, told));
            }
        }
        if variation(id) == Variation::Common && values.len() > 1 {
            let told = format!(
                "{name} takes one value in a sweep: all its points train on the same batches, read once. Start a \
                 sweep for each value"
            );
            return Err(Error::raw(ErrorKind::ValueValidation, told));
        }
        let choices = values.into_iter().enumerate().map(|(at, value)| Choice {
            name: match id {
                // A path cannot be a folder's name.
                "init_from" => (at + 1).to_string(),
                _ => value.to_string_lossy().into_owned(),
            },
            words: vec![OsString::from(&name), value],
        });
        Ok(Flag { choices: choices.collect(), name })
    }
}

impl Grid {
    /// Whether some flag has several values.
    pub(crate) fn varies(&self) -> bool {
        self.flags.iter().any(|flag| flag.choices.len() > 1)
    }

    /// Sets the store of all points if the command line does not.
    pub(crate) fn set_store(&mut self, path: &Path) {
        let name = "--store".to_owned();
        let words = vec![OsString::from(&name), path.as_os_str().to_owned()];
        self.flags.push(Flag { name, choices: vec![Choice { name: String::new(), words }] });
    }

    /// The flags of all points if none has several values.
    pub(crate) fn common(&self) -> Result<SettingArguments> {
        let words: Vec<OsString> =
            self.flags.iter().flat_map(|flag| &flag.choices[0].words).cloned().collect();
        read(&words)
    }

    /// Every combination of the flags' values. Where losses differ, a flag of one of them is left out of the points of
    /// the others.
    ///
    /// # Errors
    /// If no flag has several values, there are far too many combinations, or two points mean the same.
    pub(crate) fn points(&self) -> Result<Vec<Point>> {
        ensure!(
            self.varies(),
            "nothing varies in this sweep: give a flag several values, as in --l0-coefficient 5e-5,7e-5,1.4e-4"
        );
        let combinations = self.combinations()?;
        let ineffective =
            combinations.iter().map(|choices| without_effect(choices)).collect::<Result<Vec<_>>>()?;
        // One that has no effect anywhere stays, and is refused as in a single run.
        let somewhere = |flag: &str| ineffective.iter().any(|all| !all.contains(&flag));

        let mut points: Vec<Point> = Vec::new();
        for (choices, ineffective) in combinations.iter().zip(&ineffective) {
            let left_out = |flag: &Flag| ineffective.contains(&&*flag.name) && somewhere(&flag.name);
            let kept: Vec<(&Flag, &Choice)> =
                choices.iter().filter(|(flag, _)| !left_out(flag)).copied().collect();
            let point = Point::new(&kept)?;
            if points.iter().any(|other| other.name == point.name) {
                continue;
            }
            if let Some(same) = points.iter().find(|other| other.arguments == point.arguments) {
                bail!("the points {} and {} are the same run", same.name, point.name);
            }
            points.push(point);
        }
        Ok(points)
    }

    /// The flags that have no effect on any point.
    pub(crate) fn without_effect(&self) -> Result<Vec<&'static str>> {
        let combinations = self.combinations()?;
        let mut everywhere = without_effect(&combinations[0])?;
        for choices in &combinations[1..] {
            let here = without_effect(choices)?;
            everywhere.retain(|flag| here.contains(flag));
        }
        Ok(everywhere)
    }

    /// All combinations of one value per flag; the last flag changes fastest.
    fn combinations(&self) -> Result<Vec<Vec<(&Flag, &Choice)>>> {
        let count = self.flags.iter().try_fold(1, |count: usize, flag| count.checked_mul(flag.choices.len()));
        ensure!(
            count.is_some_and(|count| count <= MOST_POINTS),
            "these lists make more than {MOST_POINTS} points: shorten them"
        );
        let mut all = vec![Vec::new()];
        for flag in &self.flags {
            all = all
                .iter()
                .flat_map(|before| {
                    flag.choices.iter().map(move |choice| [&before[..], &[(flag, choice)]].concat())
                })
                .collect();
        }
        Ok(all)
    }
}

fn without_effect(choices: &[(&Flag, &Choice)]) -> Result<Vec<&'static str>> {
    Ok(flags_without_effect(&read(&words(choices))?, None))
}

impl Point {
    fn new(choices: &[(&Flag, &Choice)]) -> Result<Point> {
        let varied: Vec<(String, String)> = choices
            .iter()
            .filter(|(flag, _)| flag.choices.len() > 1)
            .map(|(flag, choice)| (flag.name.trim_start_matches("--").to_owned(), choice.name.clone()))
            .collect();
        let parts = varied.iter().map(|(flag, value)| match flag.as_str() {
            "loss" => value.clone(),
            flag => format!("{flag}-{value}"),
        });
        let words = words(choices);
        Ok(Point { name: parts.collect::<Vec<_>>().join("_"), arguments: read(&words)?, varied, words })
    }
}

fn words(choices: &[(&Flag, &Choice)]) -> Vec<OsString> {
    choices.iter().flat_map(|(_, choice)| &choice.words).cloned().collect()
}

/// The flags of a run.
fn read(words: &[OsString]) -> Result<SettingArguments> {
    if words.is_empty() {
        return Ok(SettingArguments::default());
    }
    let line = [OsString::from("sae-trainer")].into_iter().chain(words.iter().cloned());
    Ok(Alone::try_parse_from(line)?.train.settings)
}

/// The command line of a run without subcommands.
#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    train: TrainArguments,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::line::{Command as Subcommand, CommandLine};

    fn grid(line: &str) -> Grid {
        let words = ["sae-trainer", "sweep"].into_iter().chain(line.split_whitespace());
        match CommandLine::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).command {
            Some(Subcommand::Sweep(arguments)) => arguments.grid,
            _ => panic!("not a sweep"),
        }
    }

    fn names(line: &str) -> Vec<String> {
        grid(line).points().unwrap().into_iter().map(|point| point.name).collect()
    }

    fn refused(line: &str) -> String {
        let words = ["sae-trainer", "sweep"].into_iter().chain(line.split_whitespace());
        match CommandLine::try_parse_from(words) {
            Err(error) => error.to_string(),
            Ok(_) => grid(line).points().unwrap_err().to_string(),
        }
    }

    /// The flags of a single run.
    fn alone(line: &str) -> SettingArguments {
        let words = ["sae-trainer"].into_iter().chain(line.split_whitespace());
        CommandLine::try_parse_from(words).unwrap().train.settings
    }

    #[test]
    fn a_point_is_the_run_that_it_would_be_alone() {
        let points =
            grid("--store a --store b --pre-bias --batch 1k --l0-coefficient 5e-5,7e-5 --lr 1e-3").points();
        let points = points.unwrap();
        assert_eq!(points.len(), 2);
        assert_eq!(points[1].name, "l0-coefficient-7e-5");
        assert_eq!(points[1].varied, [("l0-coefficient".to_owned(), "7e-5".to_owned())]);
        let expected = "--store a --store b --batch 1k --pre-bias --l0-coefficient 7e-5 --lr 1e-3";
        assert_eq!(points[1].arguments, alone(expected));
        assert_eq!(points[1].words, expected.split(' ').map(OsString::from).collect::<Vec<_>>());
    }

    #[test]
    fn lists_span_a_grid() {
        let line = "--store s --features 1k,2k --l0-coefficient 5e-5,7e-5 --lr 1e-3";
        assert_eq!(
            names(line),
            [
                "features-1k_l0-coefficient-5e-5",
                "features-1k_l0-coefficient-7e-5",
                "features-2k_l0-coefficient-5e-5",
                "features-2k_l0-coefficient-7e-5",
            ]
        );
        // A flag given twice is a list too.
        assert_eq!(
            names(line),
            names(
                &line.replace("--lr 1e-3", "--lr 1e-3 ").replace("5e-5,7e-5", "5e-5 --l0-coefficient 7e-5")
            )
        );
    }

    #[test]
    fn a_flag_of_one_loss_does_not_multiply_the_points_of_another() {
        let line = "--store s --loss approx-l0,l1,none --l0-coefficient 5e-5,7e-5 --l1-coefficient 8e-5 \
                    --epsilon 0.2,0.1";
        let points = grid(line).points().unwrap();
        let found: Vec<&str> = points.iter().map(|point| &*point.name).collect();
        assert_eq!(found, ["approx-l0_l0-coefficient-5e-5", "approx-l0_l0-coefficient-7e-5", "l1", "none"]);
        assert_eq!(points[2].arguments, alone("--store s --loss l1 --l1-coefficient 8e-5"));
        assert_eq!(points[3].arguments, alone("--store s --loss none"));
        assert_eq!(points[0].arguments.loss.epsilon, [0.2, 0.1]);
        // One without effect on any point is left where a single run refuses it.
        let points = grid("--store s --loss l1 --l0-coefficient 5e-5 --lr 1e-3,1e-4").points().unwrap();
        assert!(points.iter().all(|point| point.arguments.loss.l0_coefficient.is_some()));
    }

    #[test]
    fn epsilons_in_commas_belong_to_one_run() {
        let points = grid("--store s --epsilon 0.2 --epsilon 0.2,0.1,0.05").points().unwrap();
        assert_eq!(
            points.iter().map(|point| &*point.name).collect::<Vec<_>>(),
            ["epsilon-0.2", "epsilon-0.2,0.1,0.05"]
        );
        assert_eq!(points[1].arguments.loss.epsilon, [0.2, 0.1, 0.05]);
    }

    #[test]
    fn what_cannot_vary_or_does_not_vary_is_refused_in_a_sentence() {
        for flag in
            ["--batch 64,128", "--seed 0,1", "--steps 5,6", "--tokens 1M --tokens 2M", "--eval-rows 1,2"]
        {
            let told = refused(&format!("--store s {flag} --lr 1e-3,1e-4"));
            let name = flag.split(' ').next().unwrap();
            assert!(told.contains(&format!("{name} takes one value in a sweep")), "{told}");
            assert!(told.contains("same batches"), "{told}");
        }
        assert!(refused("--store s --lr 1e-3").contains("nothing varies"));
        assert!(refused("--store s --lr 1e-3,-1").contains("--lr"));
        assert!(refused("--store s --lr 1e-3,,1e-4").contains("--lr"));
        assert!(refused("--store s --lr 1e-3,1e-3").contains("--lr has the value 1e-3 twice"));
        assert!(refused("--store s --lr 1e-3,0.001").contains("the same run"));
        assert!(refused("--store s --features 1k,2k --expansion 8").contains("cannot be used with"));
        let many = (1..=40).map(|value| value.to_string()).collect::<Vec<_>>().join(",");
        assert!(
            refused(&format!("--store s --lr {many} --features {many}")).contains("more than 1000 points")
        );
    }
}
