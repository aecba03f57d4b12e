//! Commits, against a server on this machine that answers as the hub and its storage do.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hub::{Addition, Content, Hub, Pushed, Repository};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const TOKEN: &str = "hf_test_0123456789";
/// Bytes of a part of a large file.
const PART: usize = 1000;

/// What the server has, and what happened.
#[derive(Default)]
struct State {
    repositories: BTreeSet<String>,
    /// Of the only repository, by path.
    files: BTreeMap<String, Vec<u8>>,
    /// By SHA-256.
    storage: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, BTreeMap<usize, Vec<u8>>>,
    commits: Vec<String>,
    requests: Vec<Request>,
    /// Statuses to answer with before anything else, by the beginning of the path.
    failures: Vec<(String, u16)>,
}

#[derive(Clone)]
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

#[derive(Clone)]
struct Server {
    state: Arc<Mutex<State>>,
    endpoint: String,
    /// Another address of the same server: the storage, which is not to see the token.
    storage: String,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server {
            state: Arc::default(),
            endpoint: format!("http://127.0.0.1:{port}"),
            storage: format!("http://localhost:{port}"),
        };
        let own = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || own.serve(stream));
            }
        });
        server
    }

    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read(&mut reader) {
            let mut state = self.state.lock().unwrap();
            state.requests.push(request.clone());
            let (status, headers, body) = self.answer(&mut state, &request);
            let head = format!("HTTP/1.1 {status} Said\r\n{headers}content-length: {}\r\n\r\n", body.len());
            drop(state);
            let mut stream = &stream;
            if stream.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                return;
            }
        }
    }

    fn answer(&self, state: &mut State, request: &Request) -> (u16, String, Vec<u8>) {
        let failure = state.failures.iter().position(|(path, _)| request.path.starts_with(path.as_str()));
        if let Some(failure) = failure {
            return (state.failures.remove(failure).1, String::new(), b"not now".to_vec());
        }
        let said = |status: u16, value: Value| (status, String::new(), value.to_string().into_bytes());
        let authorized =
            request.headers.get("authorization").is_some_and(|own| own == &format!("Bearer {TOKEN}"));
        if let Some(place) = request.path.strip_prefix("/storage/") {
            assert!(!request.headers.contains_key("authorization"), "the storage has seen the token");
            return self.store(state, place, request);
        }
        if !authorized {
            return said(401, json!({ "error": format!("who is {TOKEN}?") }));
        }
        let body = || -> Value { serde_json::from_slice(&request.body).unwrap() };
        let known = state.repositories.contains("me/saes");
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/api/repos/create") => {
                let name = format!(
                    "{}/{}",
                    body()["organization"].as_str().unwrap(),
                    body()["name"].as_str().unwrap()
                );
                if state.repositories.insert(name) {
                    said(200, json!({ "url": "x" }))
                } else {
                    said(409, json!({}))
                }
            }
            _ if !known => said(404, json!({ "error": "Repository not found" })),
            ("POST", "/api/models/me/saes/preupload/main") => {
                let files: Vec<Value> = body()["files"].as_array().unwrap().iter().map(|file| {
                    let path = file["path"].as_str().unwrap();
                    let large = path.ends_with(".safetensors");
                    let oid = state.files.get(path).map(|bytes| if large { sha256(bytes) } else { "git".to_owned() });
                    json!({ "path": path, "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": false, "oid": oid })
                }).collect();
                said(200, json!({ "files": files }))
            }
            ("POST", "/me/saes.git/info/lfs/objects/batch") => {
                assert_eq!(body()["transfers"], json!(["basic", "multipart"]));
                let objects: Vec<Value> = body()["objects"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|object| {
                        let (oid, size) =
                            (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
                        if state.storage.contains_key(oid) {
                            return json!({ "oid": oid, "size": size });
                        }
                        let verify = json!({ "href": format!("{}/me/saes/verify", self.endpoint) });
                        let place = format!("{}/storage/{oid}", self.storage);
                        let upload = match size > PART {
                            false => json!({ "href": place, "header": { "x-signed": "yes" } }),
                            true => {
                                let mut header = json!({ "chunk_size": PART.to_string() });
                                for part in 1..=size.div_ceil(PART) {
                                    header[format!("{part:05}")] = format!("{place}/{part}").into();
                                }
                                json!({ "href": format!("{place}/complete"), "header": header })
                            }
                        };
                        json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": verify } })
                    })
                    .collect();
                said(200, json!({ "transfer": "multipart", "objects": objects }))
            }
            ("POST", "/me/saes/verify") => {
                let there =
                    state.storage.get(body()["oid"].as_str().unwrap()).map(|bytes| bytes.len() as u64);
                if there == body()["size"].as_u64() { said(200, json!({})) } else { said(422, json!({})) }
            }
            ("POST", "/api/models/me/saes/commit/main") => {
                assert_eq!(request.headers["content-type"], "application/x-ndjson");
                let text = String::from_utf8(request.body.clone()).unwrap();
                let lines: Vec<Value> =
                    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                assert_eq!(lines[0]["key"], "header");
                for line in &lines[1..] {
                    let value = &line["value"];
                    let bytes = match line["key"].as_str().unwrap() {
                        "file" => STANDARD.decode(value["content"].as_str().unwrap()).unwrap(),
                        "lfsFile" => state.storage[value["oid"].as_str().unwrap()].clone(),
                        other => panic!("{other}"),
                    };
                    state.files.insert(value["path"].as_str().unwrap().to_owned(), bytes);
                }
                state.commits.push(lines[0]["value"]["summary"].as_str().unwrap().to_owned());
                said(200, json!({ "commitOid": format!("{:040}", state.commits.len()) }))
            }
            ("GET", path) => {
                match path.strip_prefix("/me/saes/resolve/main/").and_then(|name| state.files.get(name)) {
                    Some(bytes) => (200, String::new(), bytes.clone()),
                    None => said(404, json!({ "error": "Entry not found" })),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn store(&self, state: &mut State, place: &str, request: &Request) -> (u16, String, Vec<u8>) {
        let (oid, part) = place.split_once('/').unwrap_or((place, ""));
        match part {
            "" => {
                assert_eq!(request.headers["x-signed"], "yes");
                state.storage.insert(oid.to_owned(), request.body.clone());
            }
            "complete" => {
                let told: Value = serde_json::from_slice(&request.body).unwrap();
                let parts = state.parts[oid].clone();
                let named: Vec<Value> = parts
                    .keys()
                    .map(|number| json!({ "partNumber": number, "etag": format!("\"e{number}\"") }))
                    .collect();
                assert_eq!((&told["oid"], &told["parts"]), (&json!(oid), &json!(named)));
                let bytes: Vec<u8> = parts.into_values().flatten().collect();
                assert_eq!(sha256(&bytes), oid);
                state.storage.insert(oid.to_owned(), bytes);
            }
            number => {
                let number = number.parse().unwrap();
                state.parts.entry(oid.to_owned()).or_default().insert(number, request.body.clone());
                return (200, format!("ETag: \"e{number}\"\r\n"), Vec::new());
            }
        }
        (200, String::new(), Vec::new())
    }

    fn hub(&self, token: &str) -> Hub {
        let variables = [("HF_ENDPOINT", self.endpoint.clone()), ("HF_TOKEN", token.to_owned())];
        Hub::from_variables(|name| {
            variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.clone())
        })
    }

    fn paths(&self, method: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state
            .requests
            .iter()
            .filter(|request| request.method == method)
            .map(|request| request.path.clone())
            .collect()
    }

    fn fail(&self, path: &str, status: u16) {
        self.state.lock().unwrap().failures.push((path.to_owned(), status));
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut next = || {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())
    };
    let line = next()?;
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = next()?.split_once(':') {
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    assert!(!headers.contains_key("transfer-encoding"), "storage takes no body of unknown length");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    Some(Request { method: words.next()?, path: words.next()?, headers, body })
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A large file in three parts, one in one piece, and two small ones.
fn additions(folder: &std::path::Path) -> Vec<Addition> {
    let large: Vec<u8> = (0..2500_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(folder.join("large"), large).unwrap();
    let add = |path: &str, content: Content| Addition { path: path.to_owned(), content };
    vec![
        add("l0/sae_weights.safetensors", Content::File(folder.join("large"))),
        add("l0/sparsity.safetensors", Content::Bytes(vec![7; 100])),
        add("l0/cfg.json", Content::Bytes(b"{}".to_vec())),
        add("README.md", Content::Bytes(b"# saes\n".to_vec())),
    ]
}

fn commit(
    hub: &Hub,
    create: bool,
    additions: &[Addition],
    stopping: &dyn Fn() -> bool,
) -> hub::Result<Pushed> {
    let repository = Repository::new(hub, "me/saes", "main", "test", stopping)?;
    if create {
        repository.create(false)?;
    }
    repository.commit(additions, "Upload l0", &mut |_| ())
}

#[test]
fn a_commit_has_every_file_and_a_second_one_sends_nothing() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (hub, additions) = (server.hub(TOKEN), additions(dir.path()));
    let pushed = commit(&hub, true, &additions, &|| false).unwrap();
    assert_eq!((pushed.commit.is_some(), pushed.files.len(), pushed.sent, pushed.there), (true, 4, 2600, 0));
    let files = server.state.lock().unwrap().files.clone();
    assert_eq!(files["l0/sae_weights.safetensors"], std::fs::read(dir.path().join("large")).unwrap());
    assert_eq!(files["README.md"], b"# saes\n");
    assert_eq!(server.paths("PUT").len(), 4);

    let again = commit(&hub, true, &additions, &|| false).unwrap();
    assert_eq!(again, Pushed { commit: None, files: Vec::new(), sent: 0, there: 0 });
    assert_eq!((server.paths("PUT").len(), server.state.lock().unwrap().commits.len()), (4, 1));
}

#[test]
fn what_the_storage_has_is_not_sent_again() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (hub, additions) = (server.hub(TOKEN), additions(dir.path()));
    // The second large file is refused, so nothing is committed.
    let second = sha256(&[7; 100]);
    for _ in 0..5 {
        server.fail(&format!("/storage/{second}"), 403);
    }
    let error = commit(&hub, true, &additions, &|| false).unwrap_err().to_string();
    assert!(error.contains("l0/sparsity.safetensors") && error.contains("403"), "{error}");
    assert!(server.state.lock().unwrap().files.is_empty());
    server.state.lock().unwrap().failures.clear();
    let pushed = commit(&hub, true, &additions, &|| false).unwrap();
    assert_eq!((pushed.sent, pushed.there), (100, 2500));
}

#[test]
fn failures_that_may_pass_are_tried_again() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (hub, additions) = (server.hub(TOKEN), additions(dir.path()));
    server.fail("/api/models/me/saes/commit", 503);
    server.fail("/storage", 500);
    server.fail("/api/models/me/saes/preupload", 429);
    let pushed = commit(&hub, true, &additions, &|| false).unwrap();
    assert_eq!(pushed.files.len(), 4);
    assert_eq!(server.state.lock().unwrap().commits, ["Upload l0"]);
}

#[test]
fn refusals_say_what_to_do_and_never_the_token() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let additions = additions(dir.path());
    let error = commit(&server.hub(TOKEN), false, &additions, &|| false).unwrap_err().to_string();
    assert!(error.contains("--create") && error.contains("me/saes"), "{error}");
    let error = commit(&server.hub("hf_wrong"), true, &additions, &|| false).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN") && error.contains("401") && !error.contains("hf_wrong"), "{error}");
    let error = commit(&server.hub(""), true, &additions, &|| false).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN"), "{error}");
    // A server that repeats the token.
    server.state.lock().unwrap().repositories.insert("me/saes".to_owned());
    let repository = server.hub(TOKEN);
    let stopping = || false;
    assert!(Repository::new(&repository, "me", "main", "test", &stopping).is_err());
    let nobody = Hub { endpoint: "http://127.0.0.1:9".to_owned(), ..server.hub(TOKEN) };
    let stop = Cell::new(0);
    // Asked to stop while it waits for the second attempt.
    let error = commit(&nobody, true, &additions, &|| stop.replace(stop.get() + 1) > 3).unwrap_err();
    assert!(matches!(error, hub::Error::Interrupted), "{error}");
}

#[test]
fn an_interruption_commits_nothing_and_the_same_call_goes_on() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (hub, additions) = (server.hub(TOKEN), additions(dir.path()));
    let own = server.clone();
    // Once the storage has the first large file.
    let stopping = move || !own.state.lock().unwrap().storage.is_empty();
    let error = commit(&hub, true, &additions, &stopping).unwrap_err();
    assert!(matches!(error, hub::Error::Interrupted), "{error}");
    assert!(server.state.lock().unwrap().commits.is_empty());
    let pushed = commit(&hub, true, &additions, &|| false).unwrap();
    assert_eq!((pushed.sent, pushed.there, pushed.files.len()), (100, 2500, 4));
}
