//! What all cases start from: inputs, the states of an undisturbed run, and how long and how many calls it takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use end_to_end::{gibberish, program, repository, tiny_gpt2};

use crate::commands::{ARTIFACTS, Gives, Reader, WRITERS, Writer};
use crate::contents::{self, Contents};
use crate::process::{self, Ended, Outcome};
use crate::shim::{self, Shim, Trouble};

/// The folder of all cases, in memory where the system has such a file system.
pub(crate) struct Ground {
    root: tempfile::TempDir,
    pub(crate) shim: Shim,
    /// For each of [`WRITERS`].
    pub(crate) undisturbed: Vec<Undisturbed>,
    /// For each of [`ARTIFACTS`].
    pub(crate) artifacts: Vec<Prepared>,
}

/// A command's run when nothing goes wrong.
pub(crate) struct Undisturbed {
    pub(crate) contents: Contents,
    pub(crate) duration: Duration,
    /// Calls on files, by kind.
    pub(crate) calls: BTreeMap<String, u64>,
    /// Bytes of all its files.
    pub(crate) bytes: u64,
}

/// An artifact without damage, and what its readers make of it.
pub(crate) struct Prepared {
    pub(crate) files: Contents,
    pub(crate) results: Vec<Results>,
}

/// What a reader printed, and the folder that it left.
#[derive(PartialEq)]
pub(crate) struct Results {
    pub(crate) output: String,
    pub(crate) folder: Contents,
}

/// The folder that one case at a time works in.
pub(crate) struct Place<'g> {
    pub(crate) ground: &'g Ground,
    /// Where commands run.
    pub(crate) folder: PathBuf,
    /// For what they print, and the shim's report.
    pub(crate) log: PathBuf,
}

impl Undisturbed {
    /// Calls on files of all kinds.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.values().sum()
    }
}

impl Ground {
    /// Makes the inputs, and runs everything once undisturbed.
    pub(crate) fn prepare() -> Ground {
        let root = tempfile::Builder::new().prefix("soak-").tempdir_in("/dev/shm");
        let root = root.or_else(|_| tempfile::tempdir()).expect("a temporary folder can be made");
        let shim = Shim::build(root.path());
        let mut ground = Ground { root, shim, undisturbed: Vec::new(), artifacts: Vec::new() };
        let inputs = ground.files().join("inputs");
        tiny_gpt2(&inputs.join("model"));
        gibberish(&inputs.join("text.jsonl"), 60);
        let place = ground.place("undisturbed");
        // The dump makes the store, and training on it the autoencoder, that the later ones need.
        let mut undisturbed = Vec::new();
        for (number, writer) in WRITERS.iter().enumerate() {
            undisturbed.push(place.undisturbed(writer));
            let made = match number {
                0 => Some(("store", "store")),
                2 => Some(("run/sae", "sae")),
                _ => None,
            };
            if let Some((from, to)) = made {
                contents::put(&contents::raw(&place.folder.join(from)), &inputs.join(to));
            }
        }
        let artifacts = ARTIFACTS.iter().map(|artifact| {
            let writer = &WRITERS[artifact.writer];
            let calls = undisturbed[artifact.writer].calls();
            place.clear();
            let trouble =
                (artifact.tenths < 10).then(|| Trouble::signal(libc::SIGKILL, artifact.tenths * calls / 10));
            place.run(writer.program, writer.line, trouble.as_ref()).expect("it ends");
            let files = contents::raw(&place.folder.join(writer.result));
            let results = artifact.readers.iter().map(|reader| {
                place.lay_out(&files, writer.result);
                let ended = place.run(reader.program, reader.line, None).expect("it ends");
                assert_eq!(
                    ended.outcome(),
                    Ok(Outcome::Success),
                    "{}: {}\n{}",
                    artifact.name,
                    reader.line,
                    ended.stderr
                );
                place.results(reader, &ended)
            });
            let results = results.collect();
            Prepared { files, results }
        });
        let artifacts = artifacts.collect();
        drop(place);
        (ground.undisturbed, ground.artifacts) = (undisturbed, artifacts);
        ground
    }

    /// The folder below which calls can be made to fail.
    pub(crate) fn files(&self) -> PathBuf {
        self.root.path().join("files")
    }

    /// A new folder for a worker.
    pub(crate) fn place(&self, name: &str) -> Place<'_> {
        let (folder, log) = (self.files().join(name), self.root.path().join("logs").join(name));
        for new in [&folder, &log] {
            fs::create_dir_all(new).expect("a folder can be made");
        }
        Place { ground: self, folder, log }
    }
}

impl Place<'_> {
    /// Empties the folder.
    pub(crate) fn clear(&self) {
        for entry in fs::read_dir(&self.folder).expect("the folder is there").flatten() {
            let path = entry.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.expect("a case's files can be removed");
        }
    }

    /// Empties the folder and puts `files` at `name` in it.
    pub(crate) fn lay_out(&self, files: &Contents, name: &str) {
        self.clear();
        contents::put(files, &self.folder.join(name));
    }

    /// `program` with the words of `line`, here.
    pub(crate) fn command(&self, name: &str, line: &str) -> Command {
        let mut command = program(name);
        command.args(line.split_whitespace()).current_dir(&self.folder);
        command.env("ORT_DYLIB_PATH", onnxruntime());
        for launcher in ["RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "SLURM_NTASKS"] {
            command.env_remove(launcher);
        }
        command
    }

    /// Runs `program` to its end, in trouble where there is some.
    pub(crate) fn run(&self, program: &str, line: &str, trouble: Option<&Trouble>) -> Result<Ended, String> {
        let mut command = self.command(program, line);
        if let Some(trouble) = trouble {
            self.ground.shim.preload(&mut command, trouble, &self.ground.files(), &self.report());
        }
        process::run(command, &self.log, |_| {})
    }

    /// What the shim noted while the last program in trouble ran.
    pub(crate) fn report(&self) -> PathBuf {
        self.log.join("report")
    }

    /// What a writer has left here.
    pub(crate) fn left(&self, writer: &Writer) -> Contents {
        contents::lasting(&self.folder.join(writer.result), &self.folder)
    }

    /// What a reader gave.
    pub(crate) fn results(&self, reader: &Reader, ended: &Ended) -> Results {
        match reader.gives {
            Gives::Folder(name) => Results {
                output: String::new(),
                folder: contents::lasting(&self.folder.join(name), &self.folder),
            },
            _ => {
                let output = contents::without_clock(ended.stdout.as_bytes());
                let output = String::from_utf8(output).expect("what was a string still is one");
                Results { output, folder: Contents::new() }
            }
        }
    }

    fn undisturbed(&self, writer: &Writer) -> Undisturbed {
        let go = |trouble: Option<&Trouble>| {
            self.clear();
            let started = Instant::now();
            let ended = self.run(writer.program, writer.line, trouble).expect("it ends");
            assert_eq!(ended.outcome(), Ok(Outcome::Success), "{}\n{}", writer.name, ended.stderr);
            started.elapsed()
        };
        go(Some(&Trouble::default()));
        let calls = shim::counted(&self.report());
        let duration = go(None);
        let bytes = contents::raw(&self.folder).values().map(|bytes| bytes.len() as u64).sum();
        Undisturbed { contents: self.left(writer), duration, calls, bytes }
    }
}

/// ONNX Runtime's library as scripts/fetch-onnxruntime puts it, unless the environment names another.
fn onnxruntime() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return path.into();
    }
    let folder = repository().join("onnxruntime");
    let library =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("onnxruntime.so"));
    let found = end_to_end::files_below(&folder).into_iter().find(|path| library(path));
    found.unwrap_or_else(|| panic!("{} holds no library; run scripts/fetch-onnxruntime", folder.display()))
}
