//! Flags as they are given, by name: on the command line, or in a TOML file, where `l1-coefficient = 8e-5` stands for
//! `--l1-coefficient 8e-5`.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use terminal::{foreign, foreign_path};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// A flag that is given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Flag {
    /// Without dashes: `l1-coefficient`.
    pub(crate) name: String,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// A flag without a value. A file can also switch it off, against what is below it.
    Switch(bool),
    /// The text behind each occurrence of the flag; several values of one are separated by commas.
    Texts(Vec<OsString>),
}

impl Flag {
    /// The flag on the command line: none where it is switched off.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let name = OsString::from(format!("--{}", self.name));
        match &self.value {
            Value::Switch(false) => Vec::new(),
            Value::Switch(true) => vec![name],
            // In one word, so that a text that begins with a dash is a value too.
            Value::Texts(texts) => {
                texts.iter().map(|text| [&name, text].map(OsString::as_os_str).join("=".as_ref())).collect()
            }
        }
    }
}

/// The flags of `command` that the command line gives.
pub(crate) fn from_command_line(command: &Command, matches: &ArgMatches) -> Vec<Flag> {
    let given = |flag: &&Arg| {
        let id = flag.get_id().as_str();
        flag.get_long().is_some() && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let flags = command.get_arguments().filter(given).map(|flag| {
        let occurrences = matches.get_raw_occurrences(flag.get_id().as_str()).into_iter().flatten();
        let texts = occurrences.map(|values| values.collect::<Vec<_>>().join(",".as_ref())).collect();
        let value = if takes_a_value(flag) { Value::Texts(texts) } else { Value::Switch(true) };
        Flag { name: flag.get_long().expect("only flags with a name are left").to_owned(), value }
    });
    flags.collect()
}

/// The flags of `command` that `text`, the TOML of `from`, gives.
///
/// # Errors
/// Name the place, the key and what it can be.
pub(crate) fn from_toml(command: &Command, text: &str, from: &str) -> Result<Vec<Flag>> {
    let place = |at: usize| format!("{from}, line {}", 1 + text[..at].matches('\n').count());
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        anyhow!("{}: {}", place(at), foreign(error.message()))
    })?;
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let flags = entries.into_iter().map(|(key, value)| {
        flag(command, key.get_ref(), value.get_ref()).with_context(|| place(key.span().start))
    });
    flags.collect()
}

fn flag(command: &Command, key: &str, value: &DeValue<'_>) -> Result<Flag> {
    ensure!(
        !matches!(value, DeValue::Table(_)),
        "{} is a table, but flags stand at the top level, without tables",
        foreign(key)
    );
    let Some(flag) = command.get_arguments().find(|flag| flag.get_long() == Some(key)) else {
        bail!("there is no flag --{}{}", foreign(key), similar(command, key));
    };
    ensure!(!matches!(key, "config" | "print-config"), "--{key} belongs on the command line");
    let value = match value {
        DeValue::Boolean(on) if !takes_a_value(flag) => Value::Switch(*on),
        _ if !takes_a_value(flag) => bail!("{key} takes no value; write {key} = true or {key} = false"),
        value => Value::Texts(texts(flag, key, value)?),
    };
    let flag = Flag { name: key.to_owned(), value };
    check(command, &flag)?;
    Ok(flag)
}

/// The texts that stand for a value: an array of one flag's values for one occurrence, or of paths for one occurrence each.
fn texts(flag: &Arg, key: &str, value: &DeValue<'_>) -> Result<Vec<OsString>> {
    let DeValue::Array(array) = value else { return Ok(vec![scalar(key, value)?.into()]) };
    ensure!(!array.is_empty(), "{key} has no value");
    ensure!(
        matches!(flag.get_action(), ArgAction::Append),
        "{key} takes one value; only sae-trainer sweep takes several"
    );
    let nested = array.iter().any(|item| matches!(item.get_ref(), DeValue::Array(_)));
    if !nested && !is_path(flag) {
        return Ok(vec![joined(key, array)?]);
    }
    let occurrence = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
        DeValue::Array(values) => joined(key, values),
        value => Ok(scalar(key, value)?.into()),
    };
    array.iter().map(occurrence).collect()
}

fn joined(key: &str, array: &DeArray<'_>) -> Result<OsString> {
    let texts: Vec<String> = array.iter().map(|item| scalar(key, item.get_ref())).collect::<Result<_>>()?;
    Ok(texts.join(",").into())
}

/// A number as it is written, so that it names a sweep's folder as it would on the command line.
fn scalar(key: &str, value: &DeValue<'_>) -> Result<String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Float(number) => Ok(number.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.to_string()),
        _ => bail!("{key} is neither a text nor a decimal number"),
    }
}

/// An error if the command line would refuse the flag for its value.
fn check(command: &Command, flag: &Flag) -> Result<()> {
    let words = [OsString::from("sae-trainer")].into_iter().chain(flag.words());
    // Without a value there is nothing to refuse, and a line without words is answered by the help.
    let alone = command.clone().arg_required_else_help(false).try_get_matches_from(words);
    alone.map(drop).map_err(|error| complaint(&error))
}

/// What clap complains of, without its advice.
pub(crate) fn complaint(error: &clap::Error) -> anyhow::Error {
    let text = error.to_string();
    let told = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    anyhow!("{}", told.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// `; did you mean lr-end?`, if a flag has a name like `key`.
fn similar(command: &Command, key: &str) -> String {
    let error = command.clone().try_get_matches_from(["sae-trainer".to_owned(), format!("--{key}")]).err();
    match error.as_ref().and_then(|error| error.get(ContextKind::SuggestedArg)) {
        Some(ContextValue::String(flag)) => format!("; did you mean {}?", flag.trim_start_matches("--")),
        _ => "; --help lists them".to_owned(),
    }
}

/// The flags as TOML that [`from_toml`] reads.
///
/// # Errors
/// A path that is not UTF-8.
pub(crate) fn to_toml(command: &Command, flags: &[Flag]) -> Result<String> {
    let mut lines = String::new();
    for Flag { name, value } in flags {
        let value = match value {
            Value::Switch(on) => on.to_string(),
            Value::Texts(texts) => {
                let is_path =
                    command.get_arguments().any(|flag| flag.get_long() == Some(name) && is_path(flag));
                let items = texts.iter().map(|text| items(text, is_path)).collect::<Result<Vec<_>>>()?;
                match &items[..] {
                    [one] if one.len() == 1 => one.concat(),
                    [one] => array(one),
                    several if is_path => array(&several.concat()),
                    // An array of its own for each time that the flag is given: a flat one is a single time.
                    several => array(&several.iter().map(|items| array(items)).collect::<Vec<_>>()),
                }
            }
        };
        lines += &format!("{name} = {value}\n");
    }
    Ok(lines)
}

fn array(items: &[String]) -> String {
    format!("[{}]", items.join(", "))
}

/// The values of one time that a flag is given.
fn items(text: &OsString, is_path: bool) -> Result<Vec<String>> {
    let text = text.to_str().with_context(|| {
        format!("{} is not UTF-8, and a TOML file cannot name it: rename it", foreign_path(Path::new(text)))
    })?;
    Ok(if is_path { vec![item(text)] } else { text.split(',').map(item).collect() })
}

fn item(text: &str) -> String {
    let is_number = match DeValue::parse(text).as_ref().map(Spanned::get_ref) {
        Ok(DeValue::Integer(number)) => number.to_string() == text,
        Ok(DeValue::Float(number)) => number.to_string() == text,
        _ => false,
    };
    if is_number { text.to_owned() } else { toml::Value::from(text).to_string() }
}

fn takes_a_value(flag: &Arg) -> bool {
    matches!(flag.get_action(), ArgAction::Set | ArgAction::Append)
}

fn is_path(flag: &Arg) -> bool {
    flag.get_value_parser().type_id() == TypeId::of::<PathBuf>()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::command::line::CommandLine;

    fn of_sweep() -> Command {
        CommandLine::command().find_subcommand("sweep").unwrap().clone()
    }

    fn error(command: &Command, text: &str) -> String {
        format!("{:#}", from_toml(command, text, "f.toml").unwrap_err())
    }

    #[test]
    fn a_line_is_the_flag_of_its_name() {
        let text = "\
            # the order is kept\n\
            tokens = \"300M\"\n\
            l1-coefficient = 8e-5\n\
            batch = 4_096\n\
            epsilon = [0.2, 1e-1]\n\
            pre-bias = true\n\
            drop-bos = false\n\
            store = [\"a,b\", '-c']\n";
        let flags = from_toml(&CommandLine::command(), text, "f.toml").unwrap();
        let words: Vec<OsString> = flags.iter().flat_map(Flag::words).collect();
        let expected = "--tokens=300M --l1-coefficient=8e-5 --batch=4096 --epsilon=0.2,1e-1 --pre-bias --store=a,b --store=-c";
        assert_eq!(words, expected.split(' ').collect::<Vec<_>>());
    }

    #[test]
    fn what_is_wrong_is_told_with_file_line_and_key() {
        let command = CommandLine::command();
        for (text, expected) in [
            (
                "\n\nl1-coeficient = 1",
                "f.toml, line 3: there is no flag --l1-coeficient; did you mean l1-coefficient?",
            ),
            (
                "l1_coefficient = 1",
                "f.toml, line 1: there is no flag --l1_coefficient; did you mean l1-coefficient?",
            ),
            ("zebra = 1", "f.toml, line 1: there is no flag --zebra; --help lists them"),
            ("lr = 1\nlr = 2", "f.toml, line 2: duplicate key"),
            ("lr = 1\n[loss]\nl1-coefficient = 1", "f.toml, line 2: loss is a table"),
            (
                "lr = -1",
                "f.toml, line 1: invalid value '-1' for '--lr <X>': it must be a number above 0, as in 0.2 or 7e-5",
            ),
            ("lr = [1e-3, 1e-4]", "f.toml, line 1: lr takes one value; only sae-trainer sweep takes several"),
            ("epsilon = []", "f.toml, line 1: epsilon has no value"),
            ("lr = 2020-01-01", "f.toml, line 1: lr is neither a text nor a decimal number"),
            (
                "pre-bias = 1",
                "f.toml, line 1: pre-bias takes no value; write pre-bias = true or pre-bias = false",
            ),
            ("lr = true", "f.toml, line 1: lr is neither a text nor a decimal number"),
            ("config = 'g.toml'", "f.toml, line 1: --config belongs on the command line"),
            ("lr = ", "f.toml, line 1: "),
        ] {
            let told = error(&command, text);
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn flags_come_back_from_the_toml_written_for_them() {
        let run = "--store=a --store=b,c --epsilon=0.2,0.1 --pre-bias --tokens=300M --lr=1e-3 --out=3 --device=cpu --seed=007";
        let sweep = "--store=a --epsilon=0.2 --epsilon=0.1 --lr=1e-3,1e-4 --activation=relu,topk --beta1=-0";
        for (command, line) in [(CommandLine::command(), run), (of_sweep(), sweep)] {
            let words: Vec<&str> = ["sae-trainer"].into_iter().chain(line.split(' ')).collect();
            let given = from_command_line(&command, &command.clone().get_matches_from(&words));
            assert_eq!(given.iter().flat_map(Flag::words).count(), words.len() - 1);
            let toml = to_toml(&command, &given).unwrap();
            let mut again = from_toml(&command, &toml, "f.toml").unwrap();
            assert_eq!(again, given, "{toml}");
            again.retain(|flag| flag.name == "lr");
            assert!(!to_toml(&command, &again).unwrap().contains('"'), "numbers stay numbers");
        }
    }
}
