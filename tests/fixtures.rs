//! What the end-to-end tests share: the built programs, a tiny language model, some text.

mod setting;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use activation_store::Store;
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

pub use setting::{LENGTH, Setting};

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// A command that runs one of the workspace's programs, built first where it is not up to date.
pub fn program(name: &str) -> Command {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        // target/PROFILE/deps/this-test
        let test = std::env::current_exe().expect("a running test has a path");
        let folder = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").to_owned();
        let mut build = Command::new(env!("CARGO"));
        // The same selection as in scripts/test: another one would build dependencies with other features.
        build.args(["build", "--quiet", "--workspace", "--bins", "--examples"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        // What cargo told this test of its own package, build scripts take for a change of theirs: the cryptography below
        // the hub's client, and all that is built on it, would be compiled again in every test run.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                build.env_remove(&*name);
            }
        }
        assert!(
            build.current_dir(repository()).status().expect("cargo runs").success(),
            "the programs do not build"
        );
        folder
    });
    let mut command = Command::new(folder.join(name));
    command.current_dir(repository());
    command
}

/// The command, hearing a closing terminal even where whoever started these tests does not (`nohup`).
pub fn hearing_hangups(mut command: Command) -> Command {
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

/// What a program printed, and how it ended.
pub struct Run {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Run {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Runs `name` to its end.
pub fn run<S: AsRef<std::ffi::OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Run {
    program(name).args(arguments).output().expect("the program starts").into()
}

/// Runs `name`, which must succeed.
pub fn run_ok<S: AsRef<std::ffi::OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Run {
    let run = run(name, arguments);
    assert_eq!(run.code, Some(0), "{name} failed:\n{}", run.stderr);
    run
}

/// Runs `name`, which must end with an error message (and no panic) that contains every one of `words`.
pub fn run_fails<S: AsRef<std::ffi::OsStr>>(
    name: &str,
    arguments: impl IntoIterator<Item = S>,
    words: &[&str],
) -> Run {
    let run = run(name, arguments);
    assert!(matches!(run.code, Some(1 | 2)), "{name} ended with {:?}:\n{}", run.code, run.stderr);
    assert!(!run.stderr.contains("panicked"), "{name} panicked:\n{}", run.stderr);
    for word in words {
        assert!(run.stderr.contains(word), "the message does not say {word:?}:\n{}", run.stderr);
    }
    run
}

/// Width, heads, blocks, positions and tokens of [`tiny_gpt2`]: the 256 bytes and a BOS.
pub const TINY: (usize, usize, usize, usize, usize) = (32, 4, 2, 64, 257);

/// Writes a GPT-2 with seeded random weights and a byte-level tokenizer without merges to `folder`.
pub fn tiny_gpt2(folder: &Path) {
    tiny_gpt2_with_positions(folder, TINY.3);
}

/// A [`tiny_gpt2`] for contexts of up to `positions` tokens.
pub fn tiny_gpt2_with_positions(folder: &Path, positions: usize) {
    let (width, heads, layers, _, vocabulary) = TINY;
    std::fs::create_dir_all(folder).expect("the folder can be made");
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
        "n_embd": width, "n_head": heads, "n_layer": layers, "n_positions": positions, "n_ctx": positions,
        "vocab_size": vocabulary, "layer_norm_epsilon": 1e-5, "bos_token_id": 256, "eos_token_id": 256,
    });
    write_json(&folder.join("config.json"), &config);
    write_json(&folder.join("tokenizer.json"), &byte_tokenizer());

    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut add = |name: String, shape: &[usize], center: f32| {
        let count: usize = shape.iter().product();
        let bytes =
            (0..count).flat_map(|_| (center + random.random_range(-0.3..0.3_f32)).to_le_bytes()).collect();
        tensors.insert(name, (shape.to_vec(), bytes));
    };
    add("wte.weight".into(), &[vocabulary, width], 0.0);
    add("wpe.weight".into(), &[positions, width], 0.0);
    for layer in 0..layers {
        for (name, shape, center) in [
            ("ln_1.weight", vec![width], 1.0),
            ("ln_1.bias", vec![width], 0.0),
            ("attn.c_attn.weight", vec![width, 3 * width], 0.0),
            ("attn.c_attn.bias", vec![3 * width], 0.0),
            ("attn.c_proj.weight", vec![width, width], 0.0),
            ("attn.c_proj.bias", vec![width], 0.0),
            ("ln_2.weight", vec![width], 1.0),
            ("ln_2.bias", vec![width], 0.0),
            ("mlp.c_fc.weight", vec![width, 4 * width], 0.0),
            ("mlp.c_fc.bias", vec![4 * width], 0.0),
            ("mlp.c_proj.weight", vec![4 * width, width], 0.0),
            ("mlp.c_proj.bias", vec![width], 0.0),
        ] {
            add(format!("h.{layer}.{name}"), &shape, center);
        }
    }
    add("ln_f.weight".into(), &[width], 1.0);
    add("ln_f.bias".into(), &[width], 0.0);
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shapes and bytes agree"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))
        .expect("the weights can be written");
}

/// GPT-2's byte alphabet as a vocabulary: one token a byte, `<|endoftext|>` is 256.
fn byte_tokenizer() -> serde_json::Value {
    // Printable bytes stand for themselves, the others for the characters from U+0100 on.
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 0x100;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256_u32 {
        let code = if printable(byte) {
            byte
        } else {
            shifted += 1;
            shifted - 1
        };
        vocabulary.insert(char::from_u32(code).expect("a letter").to_string(), byte.into());
    }
    vocabulary.insert("<|endoftext|>".into(), 256.into());
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{
            "id": 256, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []
        },
    })
}

fn write_json(path: &Path, value: &serde_json::Value) {
    std::fs::write(path, value.to_string()).expect("the file can be written");
}

/// Writes `count` short documents of seeded gibberish as JSON lines.
pub fn gibberish(path: &Path, count: usize) {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut lines = String::new();
    for _ in 0..count {
        let length = random.random_range(1..400);
        let text: String = (0..length).map(|_| char::from(random.random_range(b' '..b'~'))).collect();
        lines.push_str(&json!({ "text": text }).to_string());
        lines.push('\n');
    }
    std::fs::write(path, lines).expect("the file can be written");
}

/// All rows of a store, in its order, `[rows, d]`.
pub fn all_rows(store: &Store) -> Array2<f32> {
    store.read_rows(0..store.rows()).expect("the store is whole")
}

/// The store's rows in the order of the text: sorted by their origins.
pub fn rows_in_text_order(store: &Store) -> Vec<(u64, Vec<f32>)> {
    let rows = all_rows(store);
    let origins = store.origin(0..store.rows()).expect("the store is whole");
    let mut sorted: Vec<_> =
        origins.into_iter().zip(rows.rows().into_iter().map(|row| row.to_vec())).collect();
    sorted.sort_by_key(|(origin, _)| *origin);
    sorted
}

/// Every file below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// The names of the files in `expected` that are absent or different in `found`.
pub fn differing_files(expected: &Path, found: &Path) -> Vec<String> {
    let differs = |file: &PathBuf| {
        let name = file.strip_prefix(expected).expect("the file lies below");
        let same = std::fs::read(file).ok() == std::fs::read(found.join(name)).ok();
        (!same).then(|| name.display().to_string())
    };
    files_below(expected).iter().filter_map(differs).collect()
}

/// Starts `command` again and again and interrupts it, softly and hard in turn, each time `first` + 25 ms · attempt later,
/// until it ends by itself or `attempts` are over. Returns how often it was interrupted.
pub fn interrupted(command: impl Fn() -> Command, attempts: u64, first: u64) -> usize {
    let mut interrupted = 0;
    for attempt in 0..attempts {
        let child = command().stderr(Stdio::piped()).spawn().expect("the program starts");
        std::thread::sleep(Duration::from_millis(first + 25 * attempt));
        let signal = if attempt % 2 == 0 { "-INT" } else { "-KILL" };
        Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
        let run = Run::from(child.wait_with_output().expect("it ends"));
        match run.code {
            Some(0) => break,
            Some(130) | None => interrupted += 1,
            Some(code) => panic!("a resumed dump ended with {code}:\n{}", run.stderr),
        }
    }
    interrupted
}
