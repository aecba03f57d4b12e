//! Small stores, and runs of the program on them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use activation_store::{Layout, Provenance, RowType, Store, StoreSpec, StoreWriter, WriterOptions};
use ndarray::{Array2, ArrayView3};
use serde_json::Value;

pub(crate) const WIDTH: usize = 16;
pub(crate) const CONTEXT: usize = 8;
const DIRECTIONS: usize = 40;

/// A folder with a store in it.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// With the store `store`: 4,096 rows, every row the sum of three of 40 directions, and an offset.
    pub(crate) fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        write_store(&place.path("store"), WIDTH, &mixtures(512, 1), RowType::F32);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with the words of `line`, in this folder.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sae-trainer"));
        command.current_dir(self.folder.path()).args(line.split_whitespace());
        command
    }

    /// Runs the program, which has to succeed, and returns what it did.
    pub(crate) fn run(&self, line: &str) -> Output {
        let output = self.command(line).output().unwrap();
        assert!(output.status.success(), "{line}\n{}", text(&output.stderr));
        output
    }

    /// Runs the program, which has to fail with exit code 1, and returns its complaint.
    pub(crate) fn fail(&self, line: &str) -> String {
        let output = self.command(line).output().unwrap();
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}\n{complaint}");
        assert!(complaint.contains("error: "), "{complaint}");
        complaint
    }

    /// The lines of a run's `metrics.jsonl`, without what the clock says, the checksum, which covers that, and the run's id.
    pub(crate) fn metrics(&self, run: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines {
            line.as_object_mut()
                .unwrap()
                .retain(|name, _| !["timing", "crc32c", "run_id"].contains(&name.as_str()));
        }
        lines
    }

    /// The bytes of the files of a run's `sae/`.
    pub(crate) fn sae_bytes(&self, run: &str) -> Vec<Vec<u8>> {
        [sae::CONFIG_FILE, sae::WEIGHTS_FILE, sae::SPARSITY_FILE]
            .map(|name| std::fs::read(self.path(run).join("sae").join(name)).unwrap())
            .to_vec()
    }

    /// Every file under `folder` with its bytes, to see that nothing was touched.
    pub(crate) fn files(&self, folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![self.path(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    found.push((path, bytes));
                }
            }
        }
        found.sort();
        found
    }
}

/// Starts the program with the words of `line`; what it says is kept.
pub(crate) fn start(place: &Place, line: &str) -> Child {
    hearing_hangups(place.command(line)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until `ready`, while the program runs.
pub(crate) fn wait_for(child: &mut Child, what: &str, mut ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        assert!(child.try_wait().unwrap().is_none(), "the program ended before {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The lines of a file, as far as it is there.
pub(crate) fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Sends the program a signal, `-INT` for instance.
pub(crate) fn signal(child: &Child, signal: &str) {
    let done = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

/// The number `name` of an object.
pub(crate) fn number(value: &serde_json::Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no number `{name}` in {value}"))
}

/// A JSON file that was sealed, without its checksum.
pub(crate) fn json(path: &Path) -> Value {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("crc32c").expect("the file is sealed");
    value
}

/// Flips one bit of a file, counted from its start.
pub(crate) fn flip(path: &Path, bit: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[bit / 8] ^= 1 << (bit % 8);
    std::fs::write(path, bytes).unwrap();
}

/// Copies a folder with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// The command, hearing a closing terminal even where whoever started these tests does not (`nohup`).
fn hearing_hangups(mut command: Command) -> Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only a signal's disposition is set, which is allowed there.
    unsafe {
        command.pre_exec(|| match libc::signal(libc::SIGHUP, libc::SIG_DFL) {
            libc::SIG_ERR => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        })
    };
    command
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// All rows of a store, [rows, d].
pub(crate) fn rows(store: &Path) -> Vec<f32> {
    let store = Store::open(store).unwrap();
    store.read_rows(0..store.rows()).unwrap().into_iter().collect()
}

/// Rows of `contexts` contexts, [contexts · 8, 16].
pub(crate) fn mixtures(contexts: usize, seed: u64) -> Vec<f32> {
    // A linear congruential generator: the rows only have to be many, different and structured.
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    // The directions are the same for every seed.
    let direction = |j: usize, k: usize| ((j * 37 + k * 11 + j * k * 5) as f32).sin();
    let mut rows = Vec::new();
    for _ in 0..contexts * CONTEXT {
        let picks: [(usize, f32); 3] =
            std::array::from_fn(|_| ((next() * DIRECTIONS as f32) as usize, 0.5 + next()));
        rows.extend((0..WIDTH).map(|k| {
            0.3 * k as f32 + picks.iter().map(|(j, strength)| strength * direction(*j, k)).sum::<f32>()
        }));
    }
    rows
}

/// Writes `rows` [contexts · 8, width] as a store.
pub(crate) fn write_store(path: &Path, width: usize, rows: &[f32], row_type: RowType) {
    write_hook_store(path, "blocks.1.hook_resid_pre", width, rows, row_type);
}

/// As [`write_store`], of another hook of the same dump.
pub(crate) fn write_hook_store(path: &Path, hook: &str, width: usize, rows: &[f32], row_type: RowType) {
    let contexts = rows.len() / (CONTEXT * width);
    let spec = StoreSpec {
        row_type,
        vocabulary: 50_257,
        layout: Layout { window_rows: 1024, shard_rows: 512, chunk_rows: 128, zstd_level: 1 },
        provenance: Provenance {
            model: "gpt2-small".into(),
            model_hash: "0123".into(),
            hook: hook.into(),
            layer: 1,
            centered: true,
            dataset: vec!["openwebtext".into()],
            ..Provenance::default()
        },
        ..StoreSpec::new(width, CONTEXT, contexts as u64)
    };
    let mut writer = StoreWriter::open(path, &spec, &WriterOptions::default()).unwrap();
    // Every context begins with BOS, token 0.
    let tokens = Array2::from_shape_fn((contexts, CONTEXT), |(_, position)| position as u32);
    let rows = ArrayView3::from_shape((contexts, CONTEXT, width), rows).unwrap();
    writer.append(tokens.view(), rows).unwrap();
    writer.finish().unwrap();
}
