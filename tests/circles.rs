//! No file of a crate uses another that, by whatever way, uses it: what depends on what can be read from top to bottom.
//!
//! A file uses another where it names something of it, by `use` or by a path that begins with `crate`, `super` or a module
//! below it; a name that a file only passes on (`pub use`) is its own file's. Tests within files do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The path of a module below its crate: `["cuda", "step"]`; the crate's root is empty.
type Module = Vec<String>;

struct Crate {
    texts: BTreeMap<Module, String>,
}

impl Crate {
    fn read(src: &Path) -> Crate {
        let mut files = Vec::new();
        collect(src, &mut files);
        // A program's root comes before its library's, which takes its place.
        files.sort_by_key(|file| !file.ends_with("main.rs"));
        let texts = files.into_iter().map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            (module(file.strip_prefix(src).unwrap()), without_tests_and_words(&text))
        });
        Crate { texts: texts.collect() }
    }

    /// The file that `path`, as it stands in `from`, names something of.
    fn target(&self, from: &Module, path: &str, passed_on: usize) -> Option<Module> {
        let mut parts = path.split("::").map(str::trim).peekable();
        let mut module = match *parts.peek()? {
            "crate" => Module::new(),
            "super" | "self" => from.clone(),
            first => {
                let child: Module = from.iter().cloned().chain([first.to_owned()]).collect();
                self.texts.contains_key(&child).then(|| from.clone())?
            }
        };
        while let Some("crate" | "super" | "self") = parts.peek().copied() {
            if parts.next() == Some("super") {
                module.pop();
            }
        }
        while let Some(next) = parts.peek() {
            module.push((*next).to_owned());
            if !self.texts.contains_key(&module) {
                module.pop();
                break;
            }
            parts.next();
        }
        let Some(name) = parts.next().filter(|_| passed_on < 4) else { return Some(module) };
        // A name that the module passes on is where it comes from.
        let from_elsewhere =
            uses(self.texts.get(&module)?).into_iter().filter(|(public, _)| *public).find_map(|(_, path)| {
                let is_it = path.rsplit("::").next() == Some(name);
                is_it.then(|| self.target(&module, &path, passed_on + 1)).flatten()
            });
        Some(from_elsewhere.unwrap_or(module))
    }

    /// Which files each file uses.
    fn arrows(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let of = |module: &Module, text: &str| {
            let in_use = uses(text).into_iter().filter(|(public, _)| !public).map(|(_, path)| path);
            let paths = in_use.chain(inline_paths(text));
            let targets = paths.filter_map(|path| self.target(module, &path, 0));
            targets.filter(|target| target != module && self.texts.contains_key(target)).collect()
        };
        self.texts.iter().map(|(module, text)| (module, of(module, text))).collect()
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn module(file: &Path) -> Module {
    let file = file.with_extension("");
    let mut parts: Module = file.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// Rust without comments, without what is between quotation marks, and without the tests at a file's end.
fn without_tests_and_words(text: &str) -> String {
    let code: Vec<&str> = text
        .lines()
        .take_while(|line| *line != "mod tests {")
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let code = code.join("\n");
    code.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// The paths of a file's `use` items, and whether they are passed on.
fn uses(text: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    for item in text.split(';') {
        let Some(at) = start_of_use(item) else { continue };
        let line = item[..at].rsplit('\n').next().unwrap_or_default();
        let mut paths = Vec::new();
        expand("", &item[at + 4..], &mut paths);
        found.extend(paths.into_iter().map(|path| (line.trim_start().starts_with("pub"), path)));
    }
    found
}

/// The paths of a tree: `a::{b, c::{d, e}}` has a::b, a::c::d, a::c::e.
fn expand(before: &str, tree: &str, paths: &mut Vec<String>) {
    let (mut depth, mut start) = (0, 0);
    let mut branches = Vec::new();
    for (at, character) in tree.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    branches.push(&tree[start..]);
    for branch in branches.into_iter().map(str::trim).filter(|branch| !branch.is_empty()) {
        match (branch.find('{'), branch.ends_with('}')) {
            (Some(open), true) => {
                expand(&format!("{before}{}", &branch[..open]), &branch[open + 1..branch.len() - 1], paths);
            }
            _ => paths.push(format!("{before}{}", branch.split(" as ").next().unwrap_or_default())),
        }
    }
}

/// Paths outside of `use` items; those that begin with neither `crate`, `super` nor a module below name nothing of the crate.
fn inline_paths(text: &str) -> Vec<String> {
    let is_of_path = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
    let without_uses = text.split(';').map(|item| &item[..start_of_use(item).unwrap_or(item.len())]);
    let words = without_uses.flat_map(|item| item.split(|character| !is_of_path(character)));
    words.filter(|word| word.contains("::")).map(str::to_owned).collect()
}

/// Where the item, if it is one of `use`, has that word.
fn start_of_use(item: &str) -> Option<usize> {
    item.rfind("use ").filter(|at| *at == 0 || item[..*at].ends_with(['\n', ' ']))
}

/// A way from `from` back to it, if there is one.
fn circle(arrows: &BTreeMap<&Module, BTreeSet<Module>>, from: &Module) -> Option<Vec<Module>> {
    let mut came_from: BTreeMap<&Module, &Module> = BTreeMap::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        for target in &arrows[module] {
            if target == from {
                let mut way = vec![from.clone()];
                let mut at = module;
                while at != from {
                    way.push(at.clone());
                    at = came_from[at];
                }
                way.push(from.clone());
                way.reverse();
                return Some(way);
            }
            if !came_from.contains_key(target) {
                came_from.insert(target, module);
                next.push(target);
            }
        }
    }
    None
}

#[test]
fn no_files_use_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut crates: Vec<PathBuf> = [
        "activation-dump",
        "sae-trainer",
        "kernels",
        "kernels/emulation",
        "kernels/example-steps",
        "fuzz/targets",
    ]
    .map(|name| root.join(name))
    .into();
    crates.extend(fs::read_dir(root.join("shared")).unwrap().map(|entry| entry.unwrap().path()));
    let mut found = Vec::new();
    for folder in crates {
        let files = Crate::read(&folder.join("src"));
        let arrows = files.arrows();
        let mut told: BTreeSet<Module> = BTreeSet::new();
        for module in files.texts.keys().filter(|module| !module.is_empty()) {
            if told.contains(module) {
                continue;
            }
            if let Some(way) = circle(&arrows, module) {
                let name =
                    |module: &Module| if module.is_empty() { "lib".to_owned() } else { module.join("::") };
                found.push(format!(
                    "{}: {}",
                    folder.file_name().unwrap().display(),
                    way.iter().map(name).collect::<Vec<_>>().join(" → ")
                ));
                told.extend(way);
            }
        }
    }
    assert!(found.is_empty(), "files that use each other:\n{}", found.join("\n"));
}

#[test]
fn trees_of_use_are_taken_apart() {
    let text = "use a::{b, c::{d, e as f}};\npub(crate) use super::g;\nfn h() { crate::i::j(); }";
    let expected = [(false, "a::b"), (false, "a::c::d"), (false, "a::c::e"), (true, "super::g")];
    assert_eq!(uses(text), expected.map(|(public, path)| (public, path.to_owned())));
    assert!(inline_paths(text).contains(&"crate::i::j".to_owned()));
    let texts = [(vec!["a".to_owned()], "use super::b::x;"), (vec!["b".to_owned()], "use crate::a::y;")];
    let files = Crate { texts: texts.map(|(module, text)| (module, text.to_owned())).into() };
    assert_eq!(circle(&files.arrows(), &vec!["a".to_owned()]).map(|way| way.len()), Some(3));
    // A file that calls one below it, which takes a type from it.
    let below = vec!["p".to_owned(), "c".to_owned()];
    let texts = [(vec!["p".to_owned()], "fn f() { c::g(); }"), (below.clone(), "use super::T;")];
    let files = Crate { texts: texts.map(|(module, text)| (module, text.to_owned())).into() };
    assert!(circle(&files.arrows(), &below).is_some());
}
