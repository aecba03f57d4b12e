//! The hub module against a cache on disk, and against a small server that answers as the hub does.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that holds `files` ("models/owner/name" and the like, then the file) and notes every request.
struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: &[(&str, &str, &str)]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(answers(files));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answers) = (Arc::clone(&log), Arc::clone(&answers));
                std::thread::spawn(move || serve(stream, &answers, &log));
            }
        });
        Server { endpoint, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// URL path to body, as the hub's API and its file server have them.
fn answers(files: &[(&str, &str, &str)]) -> HashMap<String, String> {
    let mut answers = HashMap::new();
    let mut listings: HashMap<String, Vec<String>> = HashMap::new();
    for (repository, name, body) in files {
        let path = repository.strip_prefix("models/").unwrap_or(repository);
        answers.insert(format!("/{path}/resolve/{COMMIT}/{name}"), body.to_string());
        listings.entry(repository.to_string()).or_default().push(format!(r#"{{"rfilename":"{name}"}}"#));
    }
    for (repository, siblings) in listings {
        let listing = format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, siblings.join(","));
        answers.insert(format!("/api/{repository}/revision/main"), listing);
    }
    answers
}

fn serve(mut stream: TcpStream, answers: &HashMap<String, String>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        let path = request.split(' ').nth(1).unwrap().to_string();
        let headers: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let range =
            headers.iter().find_map(|h| h.to_lowercase().strip_prefix("range: bytes=").map(str::to_string));
        log.lock().unwrap().push(path.clone());
        let answer = match (answers.get(&path), range) {
            (None, _) => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_string(),
            (Some(body), None) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
            (Some(body), Some(range)) => {
                let (first, last) = range.split_once('-').unwrap();
                let first: usize = first.parse().unwrap();
                let last = last.parse().map_or(body.len(), |last: usize| body.len().min(last + 1));
                let part = &body[first..last];
                format!(
                    "HTTP/1.1 206 Partial Content\r\nETag: \"{:x}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
                     Content-Range: bytes {first}-{}/{}\r\nContent-Length: {}\r\n\r\n{part}",
                    path.len() * 1000 + body.len(),
                    last - 1,
                    body.len(),
                    part.len()
                )
            }
        };
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn hub(endpoint: &str, cache: &Path) -> Hub {
    Hub {
        endpoint: endpoint.to_string(),
        cache: cache.to_path_buf(),
        token: None,
        offline: false,
        progress: false,
    }
}

/// Port 9 is the discard service's; nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:9";

#[test]
fn a_model_is_fetched_once_and_then_taken_from_the_cache() {
    let server = Server::start(&[
        ("models/owner/tiny", "config.json", "{}"),
        ("models/owner/tiny", "tokenizer.json", "{ }"),
        ("models/owner/tiny", "model.safetensors", "weights"),
        ("models/owner/tiny", "pytorch_model.bin", "not wanted"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let folder = hub(&server.endpoint, cache.path()).model("owner/tiny").unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("model.safetensors")).unwrap(), "weights");
    assert_eq!(std::fs::read_to_string(folder.join("config.json")).unwrap(), "{}");
    assert!(!server.requests().iter().any(|path| path.ends_with(".bin")));

    let before = server.requests().len();
    assert_eq!(hub(&server.endpoint, cache.path()).model("owner/tiny").unwrap(), folder);
    assert_eq!(hub(NOWHERE, cache.path()).model("owner/tiny").unwrap(), folder);
    assert_eq!(server.requests().len(), before);
}

#[test]
fn a_sharded_model_is_fetched_with_its_index() {
    let index =
        r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let server = Server::start(&[
        ("models/sharded", "config.json", "{}"),
        ("models/sharded", "tokenizer.json", "{}"),
        ("models/sharded", "model.safetensors.index.json", index),
        ("models/sharded", "model-00001-of-00002.safetensors", "first"),
        ("models/sharded", "model-00002-of-00002.safetensors", "second"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let folder = hub(&server.endpoint, cache.path()).model("sharded").unwrap();
    assert!(folder.join("model.safetensors.index.json").exists());
    assert_eq!(std::fs::read_to_string(folder.join("model-00002-of-00002.safetensors")).unwrap(), "second");
    assert_eq!(hub(NOWHERE, cache.path()).model("sharded").unwrap(), folder);
    std::fs::remove_file(folder.join("model-00001-of-00002.safetensors")).unwrap();
    assert!(hub(NOWHERE, cache.path()).model("sharded").is_err());
}

#[test]
fn train_files_come_in_order_and_are_fetched_one_by_one() {
    let server = Server::start(&[
        ("datasets/owner/text", "data/train-00001-of-00002.parquet", "second"),
        ("datasets/owner/text", "data/train-00000-of-00002.parquet", "first"),
        ("datasets/owner/text", "data/test-00000-of-00001.parquet", "held out"),
        ("datasets/owner/text", "../../outside.parquet", "never"),
        ("datasets/owner/text", "README.md", "about"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let dataset = hub(&server.endpoint, cache.path()).dataset("owner/text").unwrap();
    assert_eq!(dataset.names(), ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]);
    assert_eq!(dataset.revision(), COMMIT);
    assert_eq!(server.requests().len(), 1, "listing fetches nothing");

    assert_eq!(std::fs::read_to_string(dataset.file(0).unwrap()).unwrap(), "first");
    assert!(hub(NOWHERE, cache.path()).dataset("owner/text").is_err(), "half a dataset is not the dataset");
    let files = dataset.files().unwrap();
    assert_eq!(std::fs::read_to_string(&files[1]).unwrap(), "second");
    let cached = hub(NOWHERE, cache.path()).dataset("owner/text").unwrap();
    assert_eq!((cached.files().unwrap(), cached.revision()), (files, COMMIT));
}

#[test]
fn an_unreachable_hub_is_named_with_the_flags_for_local_files() {
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(NOWHERE, cache.path());
    let message = hub.model("openai-community/gpt2").unwrap_err().to_string();
    for part in [NOWHERE, "cannot be reached", "openai-community/gpt2", "--model FOLDER"] {
        assert!(message.contains(part), "{message}");
    }
    let message = hub.dataset("Skylion007/openwebtext").err().unwrap().to_string();
    for part in [NOWHERE, "cannot be reached", "Skylion007/openwebtext", "--dataset FILE"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn offline_means_that_nobody_is_asked() {
    let server = Server::start(&[("models/owner/tiny", "config.json", "{}")]);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { offline: true, ..hub(&server.endpoint, cache.path()) };
    let message = hub.model("owner/tiny").unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    assert!(server.requests().is_empty());
}

#[test]
fn what_the_hub_does_not_have_is_said_plainly() {
    let server = Server::start(&[
        ("models/owner/pickled", "config.json", "{}"),
        ("models/owner/pickled", "tokenizer.json", "{}"),
        ("models/owner/pickled", "pytorch_model.bin", ""),
        ("datasets/owner/images", "cat.png", ""),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&server.endpoint, cache.path());
    let message = |id: &str| hub.model(id).unwrap_err().to_string();
    assert!(message("owner/none").contains("there is no model owner/none"), "{}", message("owner/none"));
    assert!(message("owner/pickled").contains("no weights in safetensors"), "{}", message("owner/pickled"));
    assert!(message("../etc/passwd").contains("not the name of a model"), "{}", message("../etc/passwd"));
    let message = hub.dataset("owner/images").err().unwrap().to_string();
    assert!(message.contains("no parquet, jsonl or txt files"), "{message}");
}

#[test]
fn the_environment_decides_as_it_does_for_the_python_tools() {
    let with = |pairs: &[(&str, &str)]| {
        let pairs: HashMap<String, String> =
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Hub::from_variables(|name| pairs.get(name).cloned())
    };
    let plain = with(&[("HOME", "/home/u")]);
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache, Path::new("/home/u/.cache/huggingface/hub"));
    assert!(!plain.offline && plain.token.is_none());
    assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]).cache, Path::new("/c/huggingface/hub"));
    assert_eq!(with(&[("HF_HOME", "/hf")]).cache, Path::new("/hf/hub"));
    assert_eq!(with(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/x")]).cache, Path::new("/x"));
    assert_eq!(with(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    assert_eq!(with(&[("HF_TOKEN", "hf_abc")]).token.as_deref(), Some("hf_abc"));
    assert!(with(&[("HF_HUB_OFFLINE", "1")]).offline);
    assert!(!with(&[("HF_HUB_OFFLINE", "0")]).offline);
}
