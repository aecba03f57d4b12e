//! Models and data sets, by their names on the Hugging Face hub.
//!
//! Everything goes through the hub's own cache folder, which the Python tools share, and honours their environment
//! variables: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_TOKEN_PATH`. Cached files are used
//! as they are, without asking the hub.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::Error;

/// The branch of a repository that is used if none is named.
const MAIN: &str = "main";
/// Branch on which the hub keeps every data set converted to parquet.
const PARQUET: &str = "refs/convert/parquet";
/// Kinds of text files, the best first; a data set is read from those of one kind.
const KINDS: [&[&str]; 3] =
    [&[".parquet"], &[".jsonl", ".jsonl.gz", ".jsonl.zst"], &[".txt", ".txt.gz", ".txt.zst"]];

/// A folder with the model `id_or_folder`: the folder itself if there is one of that name, else the
/// hub's snapshot, fetched into the cache if it is not there yet (`config.json`, the weights in
/// safetensors, `tokenizer.json` and its configuration).
///
/// # Errors
/// When the hub has no such model, cannot be reached, or may not be asked (`HF_HUB_OFFLINE`).
pub fn model(id_or_folder: &str) -> Result<PathBuf, Error> {
    let folder = Path::new(id_or_folder);
    if folder.is_dir() {
        return Ok(folder.to_path_buf());
    }
    Hub::from_environment().model(id_or_folder)
}

/// The data set `id` on the hub. Its files are its parquet files, or else jsonl, or else txt (each
/// also compressed), only those of the `train` split if it has one, in the order of their names.
/// None is fetched yet.
///
/// # Errors
/// When the hub has no such data set or it has no such files, or the hub cannot be reached, or
/// may not be asked (`HF_HUB_OFFLINE`), and the cache does not hold all of them.
pub fn dataset(id: &str) -> Result<Dataset, Error> {
    Hub::from_environment().dataset(id)
}

/// A data set on the hub, or the copy of it in the cache.
pub struct Dataset {
    id: String,
    revision: String,
    names: Vec<String>,
    source: Source,
}

enum Source {
    /// The folder of a snapshot that holds every file.
    Snapshot(PathBuf),
    Repository(Box<ApiRepo>, Box<Hub>),
}

impl Dataset {
    /// The commit that the files are of.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The files' names in the repository.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The file with this index, fetched into the cache if it is not there yet.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn file(&self, index: usize) -> Result<PathBuf, Error> {
        let name = &self.names[index];
        match &self.source {
            Source::Snapshot(folder) => Ok(folder.join(name)),
            Source::Repository(repository, hub) => {
                repository.get(name).map_err(|error| hub.failed("dataset", &self.id, &error))
            }
        }
    }

    /// Every file, fetched into the cache where needed.
    ///
    /// # Errors
    /// When one cannot be fetched.
    pub fn files(&self) -> Result<Vec<PathBuf>, Error> {
        (0..self.names.len()).map(|index| self.file(index)).collect()
    }
}

/// Where the hub and its cache are.
#[derive(Clone)]
struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
    progress: bool,
}

impl Hub {
    fn from_environment() -> Hub {
        Hub::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Hub {
        let hub::Hub { endpoint, cache, token, offline } = hub::Hub::from_variables(variable);
        Hub { endpoint, cache, token: token.map(|token| token.secret().to_owned()), offline, progress: true }
    }

    fn model(&self, id: &str) -> Result<PathBuf, Error> {
        check_id("model", id)?;
        let repo = Repo::model(id.to_string());
        if let Some(folder) = self.cached_model(&repo) {
            return Ok(folder);
        }
        let (api, names, revision) = self.list("model", &repo)?;
        let has = |name: &str| names.iter().any(|other| other == name);
        let mut wanted = vec!["config.json", "tokenizer.json"];
        wanted.extend(["tokenizer_config.json"].into_iter().filter(|name| has(name)));
        if has("model.safetensors") {
            wanted.push("model.safetensors");
        } else {
            let shards = names.iter().map(String::as_str);
            wanted.extend(shards.filter(|name| {
                !name.contains('/') && name.starts_with("model") && name.contains(".safetensors")
            }));
        }
        if let Some(missing) = wanted.iter().find(|name| !has(name)) {
            return Err(Error::Hub(format!("the model {id} on {} has no {missing}", self.endpoint)));
        }
        if !wanted.iter().any(|name| name.ends_with(".safetensors")) {
            return Err(Error::Hub(format!(
                "the model {id} on {} has no weights in safetensors",
                self.endpoint
            )));
        }
        let pinned = api.repo(Repo::with_revision(id.to_string(), RepoType::Model, revision.clone()));
        for name in wanted {
            pinned.get(name).map_err(|error| self.failed("model", id, &error))?;
        }
        self.remember(&repo, &revision)
    }

    fn dataset(&self, id: &str) -> Result<Dataset, Error> {
        check_id("dataset", id)?;
        let branches = [MAIN, PARQUET]
            .map(|branch| Repo::with_revision(id.to_string(), RepoType::Dataset, branch.to_string()));
        if let Some(dataset) = branches.iter().find_map(|repo| self.cached_dataset(id, repo)) {
            return Ok(dataset);
        }
        for repo in &branches {
            let (api, names, revision) = match self.list("dataset", repo) {
                // Not every data set has been converted; what is said about it is what `main` lacks.
                Err(_) if repo.revision() == PARQUET => continue,
                listed => listed?,
            };
            let names = text_files(names);
            if names.is_empty() {
                continue;
            }
            let pinned = Repo::with_revision(id.to_string(), RepoType::Dataset, revision.clone());
            self.remember(repo, &revision)?;
            let source = Source::Repository(Box::new(api.repo(pinned)), Box::new(self.clone()));
            return Ok(Dataset { id: id.to_string(), revision, names, source });
        }
        Err(Error::Hub(format!(
            "the dataset {id} on {} has no parquet, jsonl or txt files; convert it, then use --dataset FILES",
            self.endpoint
        )))
    }

    /// The snapshot of a model in the cache if it is complete.
    fn cached_model(&self, repo: &Repo) -> Option<PathBuf> {
        let cached = Cache::new(self.cache.clone()).repo(repo.clone());
        let config = cached.get("config.json")?;
        cached.get("tokenizer.json")?;
        if cached.get("model.safetensors").is_none() {
            let index = std::fs::read_to_string(cached.get("model.safetensors.index.json")?).ok()?;
            let index: serde_json::Value = serde_json::from_str(&index).ok()?;
            for shard in index["weight_map"].as_object()?.values() {
                cached.get(shard.as_str()?)?;
            }
        }
        config.parent().map(Path::to_path_buf)
    }

    /// The snapshot of a data set in the cache if it is known to be complete: if its files are
    /// numbered (`train-00000-of-00080.parquet`) and all there.
    fn cached_dataset(&self, id: &str, repo: &Repo) -> Option<Dataset> {
        let cached = Cache::new(self.cache.clone()).repo(repo.clone());
        let reference = self.cache.join(repo.folder_name()).join("refs").join(repo.revision());
        let revision = std::fs::read_to_string(reference).ok()?.trim().to_string();
        let folder = cached.pointer_path(&revision);
        let names = text_files(names_below(&folder));
        let complete = !names.is_empty() && all_numbered(&names);
        complete.then(|| Dataset { id: id.to_string(), revision, names, source: Source::Snapshot(folder) })
    }

    /// The names of a repository's files, and the commit they are of.
    fn list(&self, kind: &str, repo: &Repo) -> Result<(Api, Vec<String>, String), Error> {
        let id = repo.url().trim_start_matches("datasets/").to_string();
        if self.offline {
            let problem = "HF_HUB_OFFLINE is set";
            return Err(Error::Hub(self.unreachable(kind, &id, problem)));
        }
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(self.progress)
            .with_retries(3)
            .build()
            .map_err(|error| self.failed(kind, &id, &error))?;
        let info = api.repo(repo.clone()).info().map_err(|error| self.failed(kind, &id, &error))?;
        // Names become paths in the cache.
        let plain = |name: &String| {
            Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        let names = info.siblings.into_iter().map(|file| file.rfilename).filter(plain).collect();
        Ok((api, names, info.sha))
    }

    /// Notes in the cache which commit the branch of `repo` is at; returns the commit's folder.
    fn remember(&self, repo: &Repo, revision: &str) -> Result<PathBuf, Error> {
        let cached = Cache::new(self.cache.clone()).repo(repo.clone());
        cached.create_ref(revision).map_err(Error::io(&self.cache))?;
        Ok(cached.pointer_path(revision))
    }

    fn failed(&self, kind: &str, id: &str, error: &ApiError) -> Error {
        let problem = error.to_string();
        // `ureq` says it so; anything else never reached a hub that answered.
        let status = problem.split("http status: ").nth(1).map(|code| code.trim().to_string());
        Error::Hub(match status.as_deref() {
            Some("401" | "403" | "404") => format!(
                "there is no {kind} {id} on {}, or it needs a token (HF_TOKEN); a local one is given as {}",
                self.endpoint,
                local_flags(kind)
            ),
            Some(code) => {
                format!("{} answered with status {code} when asked for the {kind} {id}", self.endpoint)
            }
            None => self.unreachable(kind, id, &problem),
        })
    }

    fn unreachable(&self, kind: &str, id: &str, problem: &str) -> String {
        format!(
            "the Hugging Face hub at {} cannot be reached ({problem}), and the {kind} {id} is not in the cache \
             ({}); local files do without: {}",
            self.endpoint,
            self.cache.display(),
            local_flags(kind)
        )
    }
}

fn local_flags(kind: &str) -> &'static str {
    match kind {
        "model" => "--model FOLDER (with config.json, model.safetensors and tokenizer.json)",
        _ => "--dataset FILE, FOLDER or GLOB (.txt, .jsonl, .parquet)",
    }
}

/// A repository's id is `name` or `owner/name`.
fn check_id(kind: &str, id: &str) -> Result<(), Error> {
    let plain = |part: &str| {
        let legal = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        legal && !part.is_empty() && !part.starts_with('.')
    };
    if id.split('/').count() <= 2 && id.split('/').all(plain) {
        return Ok(());
    }
    Err(Error::Hub(format!(
        "there is no folder {id}, and it is not the name of a {kind} on the hub (owner/name); a local one is given as {}",
        local_flags(kind)
    )))
}

/// The files of a data set to read, sorted: those of the best kind, of the train split if there is
/// one.
fn text_files(names: Vec<String>) -> Vec<String> {
    let of_kind = |kind: &&[&str]| -> Vec<String> {
        names.iter().filter(|name| kind.iter().any(|end| name.ends_with(end))).cloned().collect()
    };
    let mut files = KINDS.iter().map(of_kind).find(|files| !files.is_empty()).unwrap_or_default();
    if files.iter().any(|name| is_train(name)) {
        files.retain(|name| is_train(name));
    }
    files.sort();
    files
}

/// Whether "train" is a word of the file's path.
fn is_train(name: &str) -> bool {
    name.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "train")
}

/// Whether every file is one of a numbered series, `…-00000-of-00080…`, and every series is whole.
fn all_numbered(names: &[String]) -> bool {
    let parse = |name: &String| -> Option<(String, usize, usize)> {
        let (front, rest) = name.split_once("-of-")?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (series, number) = front.rsplit_once('-')?;
        Some((format!("{series}{}", &rest[digits..]), number.parse().ok()?, rest[..digits].parse().ok()?))
    };
    let Some(files) = names.iter().map(parse).collect::<Option<Vec<_>>>() else { return false };
    files.iter().all(|(series, _, count)| {
        (0..*count).all(|number| files.iter().any(|(s, n, c)| (s, n, c) == (series, &number, count)))
    })
}

/// The names of all files below `folder`, relative to it, with `/` between their parts.
fn names_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = vec![String::new()];
    while let Some(prefix) = open.pop() {
        for entry in std::fs::read_dir(folder.join(&prefix)).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() { open.push(format!("{name}/")) } else { names.push(name) }
        }
    }
    names
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
