//! Errors are reported clearly, and break nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use activation_store::RowType;
use sae::Sae;

use crate::fixture::{Place, WIDTH, mixtures, text, write_store};

const SMALL: &str = "--store store --features 64 --batch 128 --steps 20";

#[test]
fn a_store_that_is_missing_or_damaged() {
    let place = Place::new();
    assert!(place.fail("--resume --out run").contains("there is no run in run"));
    assert!(place.fail("--store nowhere --out run").contains("no activation store at nowhere"));
    // One byte in the middle of a shard.
    let shard = place.path("store/activations/c/3/0");
    let mut bytes = fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&shard, bytes).unwrap();
    let told = place.fail(&format!("{SMALL} --steps 40 --out run").replace("--steps 20 ", ""));
    assert!(told.contains("c/3/0") && told.contains("damaged"), "{told}");
}

#[test]
fn a_store_with_fewer_rows_than_a_batch() {
    let place = Place::new();
    let told = place.fail("--store store --features 64 --batch 5k --out run");
    assert!(told.contains("4096 rows to train on, fewer than a batch of 5000"), "{told}");
    assert!(!place.path("run").exists());
}

#[test]
fn widths_that_do_not_fit() {
    let place = Place::new();
    write_store(&place.path("narrow"), 12, &mixtures(96, 1), RowType::F32);
    let told = place.fail(&format!("{SMALL} --store narrow --out run"));
    assert!(told.contains("16 wide") && told.contains("12"), "{told}");

    place.run(&format!("{SMALL} --out wide"));
    let told = place.fail("--store narrow --batch 128 --init-from wide/sae --out run");
    assert!(told.contains("reads rows of width 16") && told.contains("12 wide"), "{told}");

    let before = place.files("wide");
    let told = place.fail("--resume --out wide --store narrow");
    assert!(told.contains("width is 16 there and 12 here"), "{told}");
    assert_eq!(place.files("wide"), before);
    assert!(!place.path("run").exists());
}

#[test]
fn an_autoencoder_that_cannot_be_read() {
    let place = Place::new();
    let told = place.fail("--store store --init-from nowhere --out run");
    assert!(told.contains("cannot start from nowhere: cannot read nowhere"), "{told}");
}

#[test]
fn without_a_gpu_cuda_says_what_is_missing_and_auto_trains() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let place = Place::new();
    let told = place.fail(&format!("{SMALL} --device cuda --out run"));
    assert!(told.contains("--device cuda cannot be used") && told.contains("--device cpu"), "{told}");
    assert!(told.contains("libcuda.so.1") || told.contains("no usable device"), "{told}");
    assert!(!place.path("run").exists(), "a run that cannot start leaves nothing");
    let output = place.run(&format!("{SMALL} --device auto --out run"));
    let told = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = told.lines().filter(|line| line.starts_with("training on the CPU: ")).collect();
    assert_eq!(lines.len(), 1, "{told}");
    assert!(told.contains("cpu, "), "{told}");
}

#[test]
fn a_folder_that_is_no_run_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.path("thesis")).unwrap();
    fs::write(place.path("thesis/chapter"), "one").unwrap();
    let told = place.fail(&format!("{SMALL} --out thesis"));
    assert!(told.contains("thesis is not empty and not a run"), "{told}");
    assert_eq!(place.files("thesis").len(), 1);
    // An empty folder is as good as none, and so is one that a process was stopped in before it began.
    fs::create_dir(place.path("empty")).unwrap();
    place.run(&format!("{SMALL} --out empty"));
    fs::create_dir(place.path("begun")).unwrap();
    fs::write(place.path("begun/.lock"), "").unwrap();
    place.run(&format!("{SMALL} --out begun"));
}

#[test]
fn a_run_without_end_of_space_is_refused_before_it_starts() {
    let place = Place::new();
    let told = place.fail("--store store --features 2G --batch 1 --sparsity-window 1 --mse sum --out run");
    assert!(told.contains("free") && told.contains("need"), "{told}");
    assert!(!place.path("run").exists());
}

#[test]
fn counts_beyond_all_bounds_are_refused_before_anything_is_made() {
    let place = Place::new();
    let most = u64::MAX;
    for flags in [
        format!("--expansion {most}"),
        format!("--features {most}"),
        format!("--features 64 --steps {most}"),
        format!("--features 64 --sparsity-window {most}"),
        format!("--features 64 --batch {most}"),
    ] {
        let told = place.fail(&format!("--store store {flags} --out run"));
        assert!(told.contains("at most"), "{flags}: {told}");
    }
    let told = place.fail("--store store --features 64 --batch 4G --sparsity-window 1 --out run");
    assert!(told.contains("4096 rows to train on, fewer than a batch of 4000000000"), "{told}");
    assert!(place.fail(&format!("bench --width {most}")).contains("at most"));
    assert!(place.fail("bench --batch 4G").contains("at most"));
    assert!(!place.path("run").exists());
    // A length that nobody waits for and other counts without a bound.
    let long =
        format!("--eval-rows {most} --dead-rows {most} --warmup-steps {most} --keep-checkpoints 65535");
    place.run(&format!("{SMALL} {long} --checkpoint-every {most} --log-every {most} --out long"));
}

#[test]
fn numbers_that_somebody_wrote_into_config_json_are_checked_too() {
    let place = Place::new();
    place.run(&format!("{SMALL} --lr 1e-3 --out run"));
    let path = place.path("run/config.json");
    let config = crate::fixture::json(&path);
    for (argument, value) in [
        ("lr", serde_json::json!(-1.0)),
        ("lr", serde_json::json!(1e300)),
        ("steps", serde_json::json!(u64::MAX)),
        ("features", serde_json::json!(u64::MAX)),
        ("epsilon", serde_json::json!([0.2, -1.0])),
        ("batch", serde_json::json!(0)),
        ("l0_coefficient", serde_json::json!(-1)),
        ("min_sparsity_target", serde_json::json!(7)),
    ] {
        let mut config = config.clone();
        config["arguments"][argument] = value;
        fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
        let told = place.fail("--resume --out run");
        assert!(!told.contains("panicked") && !told.contains("continuing"), "{argument}: {told}");
    }
    let mut other = config.clone();
    other["format"] = 2.into();
    other["settings"] = "elsewhere".into();
    fs::write(&path, serde_json::to_vec(&other).unwrap()).unwrap();
    assert!(place.fail("--resume --out run").contains("has format 2; this program reads format 1"));
}

#[test]
fn a_diverged_run_names_the_step_and_keeps_good_checkpoints() {
    let place = Place::new();
    let told = place.fail(&format!("{SMALL} --lr 1e18 --mse sum --checkpoint-every 1 --out run"));
    assert!(told.contains("training stopped at step 2") && told.contains("rows of store"), "{told}");
    assert!(told.contains("run/checkpoints/step-00000001"), "{told}");
    // The first step was taken with finite weights; that the second was not taken is the point.
    Sae::load(&place.path("run/checkpoints/step-00000001")).unwrap();
    assert_eq!(fs::read_dir(place.path("run/checkpoints")).unwrap().count(), 1);
}

#[test]
fn nan_in_the_activations_names_the_store() {
    let place = Place::new();
    fill_a_chunk_with_nan(&place.path("store/activations/c/2/0"));
    let told = place.fail(&format!("{SMALL} --steps 40 --out run").replace("--steps 20 ", ""));
    assert!(told.contains("training stopped at step") && told.contains("NaN"), "{told}");
    assert!(told.contains("rows of store"), "{told}");
    let told = place.fail(&format!("{SMALL} --b-dec-init mean --out other"));
    assert!(told.contains("holds NaN"), "{told}");
}

/// Replaces the first chunk of a shard by one of the same length, with right checksums, that holds NaN.
pub(crate) fn fill_a_chunk_with_nan(shard: &Path) {
    let mut bytes = fs::read(shard).unwrap();
    let index = bytes.len() - (16 * 4 + 4); // four chunks a shard
    let length = u64::from_le_bytes(bytes[index + 8..index + 16].try_into().unwrap()) as usize;
    // 128 rows as byte planes: NaN is 0x7fc00000.
    let plane = 128 * WIDTH;
    let planes = [vec![0; 2 * plane], vec![0xc0; plane], vec![0x7f; plane]].concat();
    let mut chunk = zstd::bulk::compress(&planes, 1).unwrap();
    // A skippable frame fills the chunk up to the length of the one before.
    let padding = length - 4 - chunk.len() - 8;
    chunk.extend_from_slice(&0x184D_2A50_u32.to_le_bytes());
    chunk.extend_from_slice(&(padding as u32).to_le_bytes());
    chunk.resize(length - 4, 0);
    let checksum = crc32c::crc32c(&chunk);
    chunk.extend_from_slice(&checksum.to_le_bytes());
    bytes[..length].copy_from_slice(&chunk);
    fs::write(shard, bytes).unwrap();
}

/// The program under a limit on the size of a file, which stands for a full disk: a write fails.
fn with_file_limit(place: &Place, kilobytes: u32, line: &str) -> (Option<i32>, String) {
    let inner = place.command(line);
    let mut command = Command::new("bash");
    command
        .current_dir(place.path(""))
        .args(["-c", &format!("trap '' XFSZ; ulimit -f {kilobytes}; exec \"$0\" \"$@\"")])
        .arg(inner.get_program())
        .args(inner.get_args());
    let output = command.output().unwrap();
    (output.status.code(), text(&output.stderr))
}

#[test]
fn an_unwritable_checkpoint_leaves_the_one_before() {
    let place = Place::new();
    // A checkpoint's largest file has 2 · 2 · 16 · 4096 · 4 bytes = 1 MiB of moments and 16 KiB for
    // every batch of the window: the first fits under the limit, the third does not.
    let run = "--store store --features 4096 --batch 128 --steps 60 --checkpoint-every 20 --log-every 10";
    place.run(&format!("{run} --out straight"));
    let (code, told) = with_file_limit(&place, 1700, &format!("{run} --out run"));
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("cannot write the checkpoint run/checkpoints/step-00000040"), "{told}");
    assert!(told.contains("File too large"), "{told}");
    assert!(told.contains("the checkpoint of step 20 is the last one"), "{told}");
    let left: Vec<_> = fs::read_dir(place.path("run/checkpoints")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");

    place.run("--resume --out run --log-every 10");
    assert_eq!(place.sae_bytes("run"), place.sae_bytes("straight"));
    assert_eq!(place.metrics("run"), place.metrics("straight"));
}

#[test]
fn metrics_that_cannot_be_written_end_the_run() {
    let place = Place::new();
    let line = format!("{SMALL} --steps 3000 --log-every 1 --out run").replace("--steps 20 ", "");
    let (code, told) = with_file_limit(&place, 64, &line);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("cannot write run/metrics.jsonl"), "{told}");
}

#[test]
fn a_folder_that_cannot_be_made() {
    let place = Place::new();
    fs::write(place.path("file"), "").unwrap();
    let told = place.fail(&format!("{SMALL} --out file/run"));
    assert!(told.contains("cannot create file/run"), "{told}");
}
