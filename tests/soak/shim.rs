//! The disk that fails on request: `shim.c`, compiled and preloaded.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiled shim.
pub(crate) struct Shim(PathBuf);

/// What is to happen at which call; by default nothing, calls are only counted.
#[derive(Default)]
pub(crate) struct Trouble(Vec<(&'static str, String)>);

impl Trouble {
    /// `signal` before the `nth` call.
    pub(crate) fn signal(signal: i32, nth: u64) -> Trouble {
        Trouble::act(format!("signal:{signal}"), nth)
    }

    /// What `act` says, see `shim.c`, at the `nth` call.
    pub(crate) fn act(act: String, nth: u64) -> Trouble {
        Trouble(vec![("SOAK_ACT", act), ("SOAK_NTH", nth.to_string())])
    }

    /// A disk with space for this many bytes.
    pub(crate) fn room(bytes: u64) -> Trouble {
        Trouble(vec![("SOAK_ROOM", bytes.to_string())])
    }

    /// Of calls of `kind` alone.
    pub(crate) fn among(mut self, kind: &str) -> Trouble {
        self.0.push(("SOAK_CALLS", kind.to_owned()));
        self
    }

    /// In words.
    pub(crate) fn describe(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }
}

impl Shim {
    /// Compiles the shim into `folder`.
    pub(crate) fn build(folder: &Path) -> Shim {
        let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
        fs::write(&source, include_str!("shim.c")).expect("the shim can be written");
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]);
        let built = gcc.args([&library, &source]).arg("-ldl").status();
        assert!(built.is_ok_and(|status| status.success()), "gcc does not compile shim.c");
        Shim(library)
    }

    /// Has `command` run into `trouble` with files below `below`; what happens is noted in `report`.
    pub(crate) fn preload(&self, command: &mut Command, trouble: &Trouble, below: &Path, report: &Path) {
        let _ = fs::remove_file(report);
        command.env("LD_PRELOAD", &self.0).env("SOAK_BELOW", below).env("SOAK_REPORT", report);
        command.envs(trouble.0.iter().map(|(name, value)| (name, value)));
    }
}

/// The number of calls of each kind that a report counts.
pub(crate) fn counted(report: &Path) -> BTreeMap<String, u64> {
    let count = |line: String| {
        let mut words = line.strip_prefix("calls ")?.split(' ');
        Some((words.next_back()?.to_owned(), words.next()?.parse().ok()?))
    };
    lines(report).into_iter().filter_map(count).collect()
}

/// Whether a report says that the trouble came: anything but flushes and the counts.
pub(crate) fn came(report: &Path) -> bool {
    lines(report).iter().any(|line| !line.starts_with("synced ") && !line.starts_with("calls "))
}

/// How many bytes of each file were on the disk after its last flush, by inode.
pub(crate) fn flushed(report: &Path) -> HashMap<u64, u64> {
    let pair = |line: String| {
        let mut words = line.strip_prefix("synced ")?.split(' ');
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    lines(report).into_iter().filter_map(pair).collect()
}

fn lines(report: &Path) -> Vec<String> {
    fs::read_to_string(report).unwrap_or_default().lines().map(str::to_owned).collect()
}
