//! A folder with the tiny model and some text, and dumps of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use activation_store::Store;
use serde_json::Value;

use crate::{Run, gibberish, program, rows_in_text_order, run_fails, tiny_gpt2};

/// Tokens of a context in a [`Setting`]'s dumps.
pub const LENGTH: usize = 16;

/// A folder with the tiny model and documents of text.
pub struct Setting {
    folder: tempfile::TempDir,
}

impl Setting {
    /// The model and `documents` documents.
    pub fn new(documents: usize) -> Setting {
        let setting = Setting { folder: tempfile::tempdir().expect("a folder can be made") };
        tiny_gpt2(&setting.at("model"));
        gibberish(&setting.at("text.jsonl"), documents);
        setting
    }

    /// A path in the folder.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path in the folder, as an argument.
    pub fn path(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    /// A dump of `contexts` contexts of the model into `out`, of the text unless `more` names another; float32, so that
    /// every bit counts.
    pub fn command(&self, out: &str, contexts: usize, more: &[&str]) -> Command {
        let mut command = program("activation-dump");
        command.args(["--context", "16", "--device", "cpu", "--json"]);
        if !more.contains(&"--dtype") {
            command.args(["--dtype", "f32"]);
        }
        command.arg("--tokens").arg((contexts * LENGTH).to_string());
        command.arg("--out").arg(self.at(out));
        if !more.contains(&"--onnx") {
            command.arg("--model").arg(self.at("model"));
        }
        if !more.contains(&"--dataset") {
            command.arg("--dataset").arg(self.at("text.jsonl"));
        }
        command.args(more);
        for (rank, size) in [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")] {
            command.env_remove(rank).env_remove(size);
        }
        command
    }

    /// Runs such a dump; returns its summary.
    pub fn dump(&self, out: &str, contexts: usize, more: &[&str]) -> Value {
        let run: Run = self.command(out, contexts, more).output().expect("the program starts").into();
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        serde_json::from_str(&run.stdout).expect("--json prints JSON")
    }

    /// Runs such a dump, which must fail with a message that contains `words`.
    pub fn dump_fails(&self, out: &str, contexts: usize, more: &[&str], words: &[&str]) {
        let run: Run = self.command(out, contexts, more).output().expect("the program starts").into();
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        for word in words {
            assert!(run.stderr.contains(word), "the message does not say {word:?}:\n{}", run.stderr);
        }
    }

    /// The arguments of a small dump into `store` that works, each of them unless it is in `more`, then `more`.
    pub fn arguments(&self, more: &[&str]) -> Vec<String> {
        let usual = [
            ("--model", self.path("model")),
            ("--dataset", self.path("text.jsonl")),
            ("--out", self.path("store")),
            ("--tokens", "3k".to_owned()),
            ("--context", LENGTH.to_string()),
        ];
        let mut arguments = Vec::new();
        for (flag, value) in usual {
            if !more.contains(&flag) {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        arguments
    }

    /// The small dump fails with `words` in its message and leaves no store that could pass for one.
    pub fn refuses(&self, more: &[&str], words: &[&str]) {
        run_fails("activation-dump", self.arguments(more), words);
        assert!(Store::open(&self.at("store")).is_err());
    }

    /// A store in the folder.
    pub fn store(&self, name: &str) -> Store {
        Store::open(&self.at(name)).expect("the store is whole")
    }

    /// Its rows in the order of the text.
    pub fn rows(&self, name: &str) -> Vec<(u64, Vec<f32>)> {
        rows_in_text_order(&self.store(name))
    }

    /// The texts of the documents.
    pub fn texts(&self) -> Vec<String> {
        let lines = std::fs::read_to_string(self.at("text.jsonl")).expect("the text is there");
        let text = |line: &str| -> Value { serde_json::from_str(line).expect("a document is JSON") };
        lines.lines().map(|line| text(line)["text"].as_str().expect("it has text").to_owned()).collect()
    }
}
