//! What is tested: commands that write, the states that they leave, and the commands that read those.

/// A command that writes. It is given again, as it is, after whatever stopped it.
pub(crate) struct Writer {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) line: &'static str,
    /// The folder that it leaves.
    pub(crate) result: &'static str,
    /// Where its result is there, it is refused; the others have nothing left to do then.
    pub(crate) once: bool,
}

/// All commands run in a folder of their own beside `inputs`.
pub(crate) const WRITERS: [Writer; 7] = [
    Writer {
        name: "dump",
        program: "activation-dump",
        line: "--model ../inputs/model --dataset ../inputs/text.jsonl --context 16 --tokens 4800 --dtype f32 \
               --shuffle-memory 64KiB --batch 4 --threads 1 --device cpu --out store",
        result: "store",
        once: false,
    },
    Writer {
        name: "dump of two hooks",
        program: "activation-dump",
        line: "--model ../inputs/model --dataset ../inputs/text.jsonl --context 16 --tokens 3200 --layer 0,1 \
               --hook mlp_out --shuffle-memory 64KiB --batch 4 --threads 1 --device cpu --out stores",
        result: "stores",
        once: false,
    },
    Writer {
        name: "training",
        program: "sae-trainer",
        line: "--store ../inputs/store --features 48 --batch 64 --steps 60 --checkpoint-every 7 --log-every 3 \
               --eval-rows 256 --lr 3e-3 --revive resample --revive-every 20 --dead-rows 256 --threads 1 --device cpu \
               --resume --out run",
        result: "run",
        once: false,
    },
    Writer {
        name: "training from an autoencoder",
        program: "sae-trainer",
        line: "--store ../inputs/store --init-from ../inputs/sae --batch 64 --steps 30 --checkpoint-every 10 \
               --log-every 4 --eval-rows 256 --threads 1 --device cpu --resume --out run",
        result: "run",
        once: false,
    },
    Writer {
        name: "sweep",
        program: "sae-trainer",
        line: "sweep --store ../inputs/store --features 32 --batch 64 --steps 40 --checkpoint-every 9 --log-every 4 \
               --eval-rows 256 --threads 1 --device cpu --l0-coefficient 1e-4,1e-2 --lr 1e-3,3e-3 --resume --out sweep",
        result: "sweep",
        once: false,
    },
    Writer {
        name: "export to NumPy",
        program: "activation-dump",
        line: "export ../inputs/store --format npy --out exported",
        result: "exported",
        once: true,
    },
    Writer {
        name: "export to SAELens",
        program: "activation-dump",
        line: "export ../inputs/store --format sae-lens --out exported",
        result: "exported",
        once: true,
    },
];

/// Something on disk that is damaged, and everything that reads it.
pub(crate) struct Artifact {
    pub(crate) name: &'static str,
    /// The writer that made it, as an index into [`WRITERS`].
    pub(crate) writer: usize,
    /// In tenths, how far the writer had come when it was killed; 10 is finished.
    pub(crate) tenths: u64,
    pub(crate) readers: &'static [Reader],
    /// The command that finds damage wherever it is.
    pub(crate) verify: (&'static str, &'static str),
}

/// A command that reads an artifact.
pub(crate) struct Reader {
    pub(crate) program: &'static str,
    pub(crate) line: &'static str,
    pub(crate) gives: Gives,
}

/// What a reader's results are.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Gives {
    /// What it prints.
    Output,
    /// The folder that it leaves.
    Folder(&'static str),
    /// A verdict: damage anywhere has to be noticed.
    Verdict,
}

const fn reader(program: &'static str, line: &'static str, gives: Gives) -> Reader {
    Reader { program, line, gives }
}

/// Readers of `store`.
const OF_A_STORE: &[Reader] = &[
    reader("activation-dump", "verify store", Gives::Verdict),
    reader("activation-dump", "info store --json", Gives::Output),
    reader("activation-dump", "export store --format npy --out new", Gives::Folder("new")),
    reader(
        "sae-trainer",
        "--store store --features 32 --batch 64 --steps 10 --log-every 2 --eval-rows 256 --threads 1 --device cpu \
         --out new",
        Gives::Folder("new"),
    ),
];

/// Readers of a `store` whose dump was stopped.
const OF_A_STOPPED_STORE: &[Reader] = &[reader("activation-dump", WRITERS[0].line, Gives::Folder("store"))];

/// Readers of a finished `run`.
const OF_A_RUN: &[Reader] = &[
    reader("sae-trainer", "verify run", Gives::Verdict),
    reader("sae-trainer", "compare run --json", Gives::Output),
    reader(
        "sae-trainer",
        "--resume --out run --steps 70 --log-every 3 --threads 1 --device cpu",
        Gives::Folder("run"),
    ),
    reader(
        "sae-trainer",
        "--store ../inputs/store --init-from run/sae --batch 64 --steps 3 --eval-rows 256 --threads 1 --device cpu \
         --out new",
        Gives::Folder("new"),
    ),
];

/// Readers of a `run` that was stopped.
const OF_A_STOPPED_RUN: &[Reader] = &[
    reader("sae-trainer", "verify run", Gives::Verdict),
    reader("sae-trainer", WRITERS[2].line, Gives::Folder("run")),
];

/// Readers of a finished `sweep`.
const OF_A_SWEEP: &[Reader] = &[
    reader("sae-trainer", "verify sweep", Gives::Verdict),
    reader("sae-trainer", "compare sweep --json", Gives::Output),
    reader("sae-trainer", WRITERS[4].line, Gives::Folder("sweep")),
];

/// Readers of a `sweep` that was stopped.
const OF_A_STOPPED_SWEEP: &[Reader] = &[
    reader("sae-trainer", "verify sweep", Gives::Verdict),
    reader("sae-trainer", WRITERS[4].line, Gives::Folder("sweep")),
];

const VERIFY_STORE: (&str, &str) = ("activation-dump", "verify store");
const VERIFY_RUN: (&str, &str) = ("sae-trainer", "verify run");
const VERIFY_SWEEP: (&str, &str) = ("sae-trainer", "verify sweep");

const fn artifact(
    name: &'static str,
    writer: usize,
    tenths: u64,
    readers: &'static [Reader],
    verify: (&'static str, &'static str),
) -> Artifact {
    Artifact { name, writer, tenths, readers, verify }
}

pub(crate) const ARTIFACTS: [Artifact; 8] = [
    artifact("store", 0, 10, OF_A_STORE, VERIFY_STORE),
    artifact("store stopped early", 0, 4, OF_A_STOPPED_STORE, VERIFY_STORE),
    artifact("store stopped late", 0, 8, OF_A_STOPPED_STORE, VERIFY_STORE),
    artifact("run", 2, 10, OF_A_RUN, VERIFY_RUN),
    artifact("run stopped early", 2, 4, OF_A_STOPPED_RUN, VERIFY_RUN),
    artifact("run stopped late", 2, 8, OF_A_STOPPED_RUN, VERIFY_RUN),
    artifact("sweep", 4, 10, OF_A_SWEEP, VERIFY_SWEEP),
    artifact("sweep stopped", 4, 6, OF_A_STOPPED_SWEEP, VERIFY_SWEEP),
];
