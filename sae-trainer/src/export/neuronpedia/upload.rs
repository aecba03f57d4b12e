//! Sends the requests of an export, and remembers which have been sent.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use durable_files::{CheckedFolder, check_seal, sealed_line};
use serde::{Deserialize, Serialize};
use terminal::{Interrupt, foreign, foreign_path};
use ureq::Agent;
use ureq::http::Response;

use super::record::Record;
use super::requests::name;
use crate::report::progress::counted;

const SERVER: &str = "https://www.neuronpedia.org";
const ROUTE: &str = "api/feature/upload-batch";
/// Where the key comes from, and the header that it goes into.
const VARIABLE: &str = "NEURONPEDIA_API_KEY";
const HEADER: &str = "x-api-key";
/// The lines of this file are sealed.
const SENT: &str = "uploaded.jsonl";
/// Seconds before a request is sent again that the server could not take.
const WAITS: [u64; 3] = [1, 2, 4];
/// The most of an answer that is read, and shown.
const ANSWER: u64 = 1 << 16;
const SHOWN: usize = 2000;

/// Where to, and with what key. It has no `Debug`: the key is not to be printed.
pub(super) struct Server {
    url: String,
    key: String,
}

/// A request that has been sent.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Sent {
    server: String,
    request: String,
}

/// What became of a request.
enum Outcome {
    Taken,
    /// The server may take it later.
    Postponed(String),
}

impl Server {
    /// The one at `url`, or Neuronpedia itself, with the key in the environment.
    pub(super) fn from_environment(url: Option<&str>) -> Result<Server> {
        let url = url.unwrap_or(SERVER).trim_end_matches('/').to_owned();
        let host = |rest: &str| rest.split(['/', ':', '?', '#']).next().unwrap_or_default().to_owned();
        let local =
            |rest: &str| ["localhost", "127.0.0.1"].contains(&&*host(rest)) || rest.starts_with("[::1]");
        let fits = match url.split_once("://") {
            Some(("https", rest)) => !rest.is_empty(),
            Some(("http", rest)) => local(rest),
            _ => false,
        };
        ensure!(
            fits && !url.contains(['@', '?', '#']) && !url.chars().any(char::is_whitespace),
            "--server takes the address of a server, as in {SERVER}; with http:// only on this machine, since the key would go in the clear"
        );
        let key = std::env::var(VARIABLE).unwrap_or_default().trim().to_owned();
        ensure!(
            !key.is_empty(),
            "--upload needs the API key of your account on Neuronpedia (Settings there) in the environment variable {VARIABLE}"
        );
        ensure!(
            key.bytes().all(|b| b.is_ascii_graphic()),
            "the key in {VARIABLE} has characters that no key has"
        );
        Ok(Server { url, key })
    }

    /// Sends what is in `folder`, an export, and has not been sent yet.
    pub(super) fn upload(&self, folder: &Path, interrupt: &Interrupt) -> Result<()> {
        let record = Record::read(folder)?;
        let bodies = CheckedFolder::open(&folder.join("requests"))?;
        let mut sent = Log::open(folder)?;
        let total = record.requests;
        let earlier = (0..total).filter(|number| sent.has(&self.url, *number)).count();
        if earlier > 0 {
            terminal::say!("{earlier} of {total} requests have been sent before");
        }
        // An address that has moved is an error, since the key is not for another server.
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_global(Some(Duration::from_secs(600)))
            .user_agent(concat!("sae-trainer/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let bar = counted("uploading", total as u64, "requests").with_position(earlier as u64);
        bar.reset_eta();
        for number in 0..total {
            if sent.has(&self.url, number) {
                continue;
            }
            let so_far = || {
                let done = (0..total).filter(|number| sent.has(&self.url, *number)).count();
                format!("{done} of {total} requests have been sent; the same command goes on with the others")
            };
            let body = bodies.read(&name(number))?;
            self.send(&agent, &body, interrupt)
                .with_context(|| format!("cannot upload {}: {}", name(number), so_far()))?;
            sent.add(&self.url, number)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let (model, source) = (&record.names.model_id, record.names.source());
        terminal::say!("{total} requests uploaded: {}/{model}/{source}", self.url);
        Ok(())
    }

    /// Sends one request, several times if need be.
    fn send(&self, agent: &Agent, body: &[u8], interrupt: &Interrupt) -> Result<()> {
        let mut waits = WAITS.iter();
        loop {
            ensure!(!interrupt.flag().load(Ordering::Relaxed), "interrupted");
            let Outcome::Postponed(why) = self.attempt(agent, body)? else { return Ok(()) };
            let Some(seconds) = waits.next() else { bail!(why) };
            terminal::say!("{why}; trying again in {seconds} s");
            let end = Instant::now() + Duration::from_secs(*seconds);
            while Instant::now() < end && !interrupt.flag().load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn attempt(&self, agent: &Agent, body: &[u8]) -> Result<Outcome> {
        let url = format!("{}/{ROUTE}", self.url);
        let request = agent.post(&url).header(HEADER, &self.key).header("content-type", "application/json");
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => bail!(self.unsent(&error)),
        };
        let status = response.status().as_u16();
        let place = response.headers().get("location").and_then(|to| to.to_str().ok()).map(str::to_owned);
        if (200..300).contains(&status) {
            return Ok(Outcome::Taken);
        }
        let told = self.answer(&mut response);
        let server = &self.url;
        match status {
            401 => bail!("{server} does not accept the key in {VARIABLE} (status 401): {told}"),
            300..=399 => bail!(
                "{server} has moved to {} (status {status}); give the new address with --server",
                foreign(&place.unwrap_or_default())
            ),
            404 => bail!("{server} has no {ROUTE} (status 404): {told}"),
            429 => Ok(Outcome::Postponed(format!("{server} wants fewer requests (status 429): {told}"))),
            500.. => Ok(Outcome::Postponed(format!(
                "{server} failed (status {status}): {told}. It also does so if the source set does not exist or is not of this account"
            ))),
            _ => bail!("{server} refuses the request (status {status}): {told}"),
        }
    }

    /// Why a request got no answer.
    fn unsent(&self, error: &ureq::Error) -> String {
        let refused =
            [ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        let server = &self.url;
        let never = match error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
            ureq::Error::Io(error) => refused.contains(&error.kind()),
            ureq::Error::Timeout(of) => matches!(of, ureq::Timeout::Connect | ureq::Timeout::Resolve),
            _ => false,
        };
        let error = self.without_key(&error.to_string());
        match never {
            true => format!("{server} cannot be reached ({error})"),
            false => format!(
                "{server} did not answer ({error}); it may have taken the request all the same, and would then have its contexts twice"
            ),
        }
    }

    /// What the server says, as far as there is room.
    fn answer(&self, response: &mut Response<ureq::Body>) -> String {
        let text = response.body_mut().with_config().limit(ANSWER).lossy_utf8(true).read_to_string();
        let text = self.without_key(text.unwrap_or_default().trim());
        let shown: String = text.chars().take(SHOWN).collect();
        if shown.is_empty() { "no explanation".to_owned() } else { foreign(&shown).to_string() }
    }

    fn without_key(&self, text: &str) -> String {
        text.replace(&self.key, "<key>")
    }
}

/// The requests that have been sent.
struct Log {
    sent: BTreeSet<Sent>,
    file: File,
    path: std::path::PathBuf,
}

impl Log {
    fn open(folder: &Path) -> Result<Log> {
        let path = folder.join(SENT);
        let failed = || format!("cannot open {}", foreign_path(&path));
        let text =
            if path.exists() { fs::read_to_string(&path).with_context(failed)? } else { String::new() };
        // A line that a crash tore has no seal, and counts as not sent.
        let sealed = |line: &&str| check_seal(line.as_bytes()).is_ok_and(|sealed| sealed);
        let sent = text.lines().filter(sealed).filter_map(|line| serde_json::from_str(line).ok()).collect();
        let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(failed)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").with_context(failed)?;
        }
        Ok(Log { sent, file, path })
    }

    fn has(&self, server: &str, number: usize) -> bool {
        self.sent.contains(&Sent { server: server.to_owned(), request: name(number) })
    }

    /// Notes a request, and waits until that is on the disk.
    fn add(&mut self, server: &str, number: usize) -> Result<()> {
        let sent = Sent { server: server.to_owned(), request: name(number) };
        let line = sealed_line(&sent) + "\n";
        self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data()).with_context(|| {
            format!(
                "{} has been uploaded, but that cannot be noted in {}; the next upload sends it again",
                sent.request,
                foreign_path(&self.path)
            )
        })?;
        self.sent.insert(sent);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_counts_as_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path()).unwrap();
        log.add("https://a", 0).unwrap();
        log.add("https://a", 1).unwrap();
        let path = dir.path().join(SENT);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        let mut log = Log::open(dir.path()).unwrap();
        assert!(log.has("https://a", 0) && !log.has("https://a", 1) && !log.has("https://b", 0));
        log.add("https://a", 2).unwrap();
        let log = Log::open(dir.path()).unwrap();
        assert_eq!([0, 1, 2].map(|number| log.has("https://a", number)), [true, false, true]);
    }
}
