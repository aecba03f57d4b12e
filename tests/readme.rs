//! The README's commands, exactly as they are printed there.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use end_to_end::{gibberish, program, repository, tiny_gpt2_with_positions};

/// The lines of the README's code blocks that call one of the two programs.
fn commands() -> Vec<String> {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let blocks = readme.split("```").skip(1).step_by(2);
    let lines = blocks.flat_map(|block| block.lines().skip(1));
    let ours = lines.filter(|line| line.starts_with("activation-dump") || line.starts_with("sae-trainer"));
    ours.map(str::to_owned).collect()
}

/// What the hub's cache holds of `repository` after its files were fetched; returns their folder.
fn cached(home: &Path, repository: &str) -> std::path::PathBuf {
    let folder = home.join("hub").join(repository);
    std::fs::create_dir_all(folder.join("refs")).unwrap();
    std::fs::write(folder.join("refs/main"), "0123456789abcdef").unwrap();
    let snapshot = folder.join("snapshots/0123456789abcdef");
    std::fs::create_dir_all(&snapshot).unwrap();
    snapshot
}

/// `line` in `place`, with a hub's cache and no hub.
fn command(place: &Path, line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = program(words.next().unwrap());
    command.args(words).current_dir(place);
    command.env("HF_HOME", place.join("huggingface")).env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
    command
}

#[test]
fn the_commands_of_the_readme_work_as_they_stand() {
    let place = tempfile::tempdir().unwrap();
    let home = place.path().join("huggingface");
    tiny_gpt2_with_positions(&cached(&home, "models--openai-community--gpt2"), 128);
    let text = cached(&home, "datasets--Skylion007--openwebtext").join("train-00000-of-00001.jsonl");
    gibberish(&text, 400);

    let [dump, train, sweep] = &commands()[..] else { panic!("the README has {:?}", commands()) };
    assert_eq!(
        (&**dump, &**train),
        ("activation-dump --layer 1 --tokens 300M", "sae-trainer --loss approx-l0")
    );
    // Only the count is smaller: room for 300M rows, even of this model, is more than a machine may have.
    let output = command(place.path(), &dump.replace("300M", "30k")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Training takes its 300M rows until Ctrl-C.
    let mut training = command(place.path(), train).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = Vec::new();
    for line in BufReader::new(training.stderr.take().unwrap()).lines() {
        told.push(line.unwrap());
        if told.last().unwrap().starts_with("step ") {
            Command::new("kill").args(["-INT", &training.id().to_string()]).status().unwrap();
        }
    }
    assert_eq!(training.wait().unwrap().code(), Some(130), "{}", told.join("\n"));
    let store = "stores/gpt2-blocks.1.hook_resid_pre";
    assert_eq!(told[0], format!("--store is {store}, the only complete store under stores/"));
    assert!(place.path().join("runs/gpt2-blocks.1.hook_resid_pre-approx-l0-7e-5/sae/cfg.json").exists());

    let output = command(place.path(), &format!("{sweep} --steps 5")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(place.path().join("runs/l0/l0-coefficient-1.4e-4/sae/cfg.json").exists());
}
