//! A repository of models, and commits to it.
//!
//! A commit takes four steps: ask how each file is to be sent, send the large ones to the storage, then all others and the names of
//! the large ones in one request, after which all of them are there. Before it, none is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use terminal::foreign_path;

use crate::addition::{Addition, Content};
use crate::client::{Answer, Client, Request, Sent};
use crate::lfs::{self, Large};
use crate::{Error, Hub, Result, refused};

/// Files that are asked about at once.
const AT_ONCE: usize = 256;
/// Bytes of a file's beginning, from which the hub tells what it is.
const SAMPLE: usize = 512;

/// What came of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The commit; `None` where the repository had all files already.
    pub commit: Option<String>,
    /// Paths of the files that it has.
    pub files: Vec<String>,
    /// Bytes that were sent to the storage, and bytes that it had already.
    pub sent: u64,
    /// Bytes of large files that were there already.
    pub there: u64,
}

/// A repository of models.
pub struct Repository<'a> {
    client: Client<'a>,
    /// `owner/name`.
    name: String,
    revision: String,
}

impl<'a> Repository<'a> {
    /// The repository `name` of `hub` at the branch `revision`; nothing is asked yet. `stopping` says whether to stop.
    ///
    /// # Errors
    /// A name that is none, a hub that may not be asked, and no token.
    pub fn new(
        hub: &'a Hub,
        name: &str,
        revision: &str,
        user_agent: &str,
        stopping: &'a dyn Fn() -> bool,
    ) -> Result<Repository<'a>> {
        let address = crate::Address::parse(&format!("hf://{name}@{revision}"));
        if !matches!(address, Ok(Some(address)) if address.folder.is_empty()) {
            return refused(format!("{name} at {revision} is not a repository: OWNER/NAME, at a branch"));
        }
        if hub.offline {
            return refused("HF_HUB_OFFLINE is set: nothing can be sent");
        }
        if hub.token.is_none() {
            return refused(
                "sending needs a token: set HF_TOKEN, or log in with `hf auth login` (https://huggingface.co/settings/tokens)",
            );
        }
        let client = Client::new(hub, user_agent, stopping);
        Ok(Repository { client, name: name.to_owned(), revision: revision.to_owned() })
    }

    /// Where a person finds it.
    pub fn url(&self) -> String {
        let place = if self.revision == "main" { String::new() } else { format!("/tree/{}", self.revision) };
        format!("{}/{}{place}", self.client.endpoint(), self.name)
    }

    /// Creates it, and its branch, where they are not there. With `private` it is created private, else as its owner's settings say.
    ///
    /// # Errors
    /// The hub's.
    pub fn create(&self, private: bool) -> Result<()> {
        let (owner, name) = self.name.split_once('/').unwrap_or_default();
        let mut asked = json!({ "name": name, "organization": owner, "type": "model" });
        if private {
            asked["visibility"] = "private".into();
        }
        let doing = format!("creating {}", self.name);
        let url = format!("{}/api/repos/create", self.client.endpoint());
        self.accepted(self.client.post(&url, &[], &asked, &doing)?, &doing, &[409])?;
        if self.revision != "main" {
            let doing = format!("creating the branch {}", self.revision);
            let url = format!("{}/branch/{}", self.api(), escaped(&self.revision));
            self.accepted(self.client.post(&url, &[], &json!({}), &doing)?, &doing, &[409])?;
        }
        Ok(())
    }

    /// The content of a file, or `None` if there is no such file.
    ///
    /// # Errors
    /// The hub's.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let url =
            format!("{}/{}/resolve/{}/{path}", self.client.endpoint(), self.name, escaped(&self.revision));
        let doing = format!("reading {path} of {}", self.name);
        let request = Request { method: "GET", url: &url, headers: &[], body: Sent::Nothing, doing: &doing };
        let answer = self.client.send(&request)?;
        match answer.status {
            404 => Ok(None),
            _ => self.accepted(answer, &doing, &[]).map(|answer| Some(answer.body)),
        }
    }

    /// Commits `additions`, those that the repository has already left out. `progress` is called with bytes of large files that
    /// are in the storage.
    ///
    /// # Errors
    /// The hub's, and files that cannot be read. Nothing is in the repository then; what reached the storage is not sent again.
    pub fn commit(
        &self,
        additions: &[Addition],
        summary: &str,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Pushed> {
        let files = additions.iter().map(Prepared::new).collect::<Result<Vec<_>>>()?;
        let mut modes = Vec::new();
        for files in files.chunks(AT_ONCE) {
            modes.extend(self.modes(files)?);
        }
        let (mut lines, mut large, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        for (file, mode) in files.iter().zip(&modes) {
            let path = &file.addition.path;
            if mode.ignored {
                return refused(format!("the repository's .gitignore keeps {path} out"));
            }
            let same = match (mode.large, &mode.oid) {
                (true, Some(oid)) => *oid == file.sha256,
                (false, Some(_)) => self.read(path)? == Some(file.read()?),
                (_, None) => false,
            };
            if same {
                continue;
            }
            paths.push(path.clone());
            lines.push(match mode.large {
                true => json!({ "key": "lfsFile", "value": {
                    "path": path, "algo": "sha256", "oid": file.sha256, "size": file.bytes,
                } }),
                false => json!({ "key": "file", "value": {
                    "content": STANDARD.encode(file.read()?), "path": path, "encoding": "base64",
                } }),
            });
            if mode.large {
                large.push(Large {
                    path,
                    content: &file.addition.content,
                    bytes: file.bytes,
                    sha256: &file.sha256,
                });
            }
        }
        let (mut sent, mut there) = (0, 0);
        let mut stored = |bytes, was_there: bool| {
            *(if was_there { &mut there } else { &mut sent }) += bytes;
            progress(bytes);
        };
        lfs::store(&self.client, &self.name, &self.revision, &large, &mut stored)?;
        if lines.is_empty() {
            return Ok(Pushed { commit: None, files: paths, sent, there });
        }
        lines.insert(0, json!({ "key": "header", "value": { "summary": summary, "description": "" } }));
        let body: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
        let url = format!("{}/commit/{}", self.api(), escaped(&self.revision));
        let doing = format!("committing to {}", self.name);
        let headers = &[("content-type", "application/x-ndjson")];
        let body = Sent::Bytes(&body);
        let answer =
            self.client.send(&Request { method: "POST", url: &url, headers, body, doing: &doing })?;
        let told = self.accepted(answer, &doing, &[])?.json(&doing)?;
        let commit = told["commitOid"].as_str().unwrap_or("unknown").to_owned();
        Ok(Pushed { commit: Some(commit), files: paths, sent, there })
    }

    /// How the hub wants each of `files`.
    fn modes(&self, files: &[Prepared<'_>]) -> Result<Vec<Mode>> {
        let describe = |file: &Prepared<'_>| json!({ "path": file.addition.path, "sample": STANDARD.encode(&file.sample), "size": file.bytes });
        let asked = json!({ "files": files.iter().map(describe).collect::<Vec<_>>() });
        let doing = format!("asking {} what it takes", self.name);
        let url = format!("{}/preupload/{}", self.api(), escaped(&self.revision));
        let told = self.accepted(self.client.post(&url, &[], &asked, &doing)?, &doing, &[])?.json(&doing)?;
        let mode = |file: &Prepared<'_>| {
            let path = &file.addition.path;
            let of = |entry: &&Value| entry["path"] == **path;
            match told["files"].as_array().and_then(|entries| entries.iter().find(of)) {
                None => refused(format!("{doing}: the hub says nothing of {path}")),
                Some(entry) => Ok(Mode {
                    // Storage takes no empty file.
                    large: entry["uploadMode"] == "lfs" && file.bytes > 0,
                    ignored: entry["shouldIgnore"] == Value::Bool(true),
                    oid: entry["oid"].as_str().map(str::to_owned),
                }),
            }
        };
        files.iter().map(mode).collect()
    }

    fn api(&self) -> String {
        format!("{}/api/models/{}", self.client.endpoint(), self.name)
    }

    /// The answer, if the hub did what was asked, or had `done` it before.
    fn accepted(&self, answer: Answer, doing: &str, done: &[u16]) -> Result<Answer> {
        let (status, told, name) = (answer.status, answer.told(), &self.name);
        match status {
            200..300 => Ok(answer),
            _ if done.contains(&status) => Ok(answer),
            401 | 403 => refused(format!(
                "{doing}: the token of HF_TOKEN, or of `hf auth login`, may not write to {name} (status {status}: {told})"
            )),
            404 => refused(format!(
                "{doing}: there is no repository {name} with the branch {} (status 404: {told}); --create makes it",
                self.revision
            )),
            _ => refused(format!("{doing}: the hub answered with status {status} ({told})")),
        }
    }
}

/// How the hub wants a file.
struct Mode {
    /// It goes to the storage, and only its name into the commit.
    large: bool,
    ignored: bool,
    /// What the repository has under this path: for a large file its SHA-256.
    oid: Option<String>,
}

/// A file that has been read once.
struct Prepared<'a> {
    addition: &'a Addition,
    bytes: u64,
    sample: Vec<u8>,
    sha256: String,
}

impl<'a> Prepared<'a> {
    fn new(addition: &'a Addition) -> Result<Prepared<'a>> {
        let mut hash = Sha256::new();
        let (mut bytes, mut sample) = (0, Vec::new());
        let mut take = |piece: &[u8]| {
            bytes += piece.len() as u64;
            sample.extend(&piece[..piece.len().min(SAMPLE - sample.len())]);
            hash.update(piece);
        };
        match &addition.content {
            Content::Bytes(all) => take(all),
            Content::File(path) => {
                let failed = |source| Error::Io { path: foreign_path(path).to_string(), source };
                let mut file = std::fs::File::open(path).map_err(failed)?;
                let mut buffer = vec![0; 1 << 20];
                loop {
                    match std::io::Read::read(&mut file, &mut buffer).map_err(failed)? {
                        0 => break,
                        read => take(&buffer[..read]),
                    }
                }
            }
        }
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Prepared { addition, bytes, sample, sha256 })
    }

    fn read(&self) -> Result<Vec<u8>> {
        match &self.addition.content {
            Content::Bytes(all) => Ok(all.clone()),
            Content::File(path) => std::fs::read(path)
                .map_err(|source| Error::Io { path: foreign_path(path).to_string(), source }),
        }
    }
}

/// A revision as a part of a path.
fn escaped(revision: &str) -> String {
    revision.replace('/', "%2F")
}
