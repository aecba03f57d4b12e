//! The examples' scripts: bash reads them, and every flag in them is one of the command's.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use end_to_end::{program, repository};

/// The calls of our programs in a script, as words.
fn calls(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.trim().trim_start_matches("exec ").trim_start());
    let ours = lines.filter(|line| line.starts_with("activation-dump ") || line.starts_with("sae-trainer "));
    ours.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn the_examples_are_scripts_whose_flags_exist() {
    let mut helps: BTreeMap<Vec<String>, String> = BTreeMap::new();
    let (mut scripts, mut checked) = (0, 0);
    for entry in fs::read_dir(repository().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "sh" && extension != "sbatch") {
            continue;
        }
        scripts += 1;
        assert!(Command::new("bash").arg("-n").arg(&path).status().unwrap().success(), "{}", path.display());
        for call in calls(&fs::read_to_string(&path).unwrap()) {
            let command: Vec<String> =
                call.iter().take(2).filter(|word| !word.starts_with('-')).cloned().collect();
            let help = helps.entry(command.clone()).or_insert_with(|| {
                let output = program(&command[0]).args(&command[1..]).arg("--help").output().unwrap();
                assert!(output.status.success(), "{command:?}");
                String::from_utf8(output.stdout).unwrap()
            });
            for flag in call.iter().filter(|word| word.starts_with("--")) {
                let known = help.split_whitespace().any(|word| word.trim_end_matches(',') == flag);
                assert!(known, "{}: {} has no {flag}", path.display(), command.join(" "));
                checked += 1;
            }
        }
    }
    assert!(scripts >= 3 && checked >= 20, "{scripts} scripts, {checked} flags");
}
