//! Requests to the hub and to its storage. They are sent again after failures that may pass; the token goes to the hub alone.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::Value;
use terminal::foreign;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body, SendBody};

use crate::{Error, Hub, Result, refused};

/// Seconds before a request is sent again.
const WAITS: [u64; 4] = [1, 2, 4, 8];
/// The longest that a server may ask to wait, in seconds.
const LONGEST_WAIT: u64 = 300;
/// The most of an answer that is read, and shown.
const ANSWER: u64 = 64 << 20;
const SHOWN: usize = 1000;

/// What a request sends.
pub(crate) enum Sent<'a> {
    Nothing,
    Bytes(&'a [u8]),
    /// So many bytes of a reader, which is made again for each attempt.
    Stream(u64, &'a dyn Fn() -> Result<Box<dyn Read + 'a>>),
}

/// A request.
pub(crate) struct Request<'a> {
    pub(crate) method: &'static str,
    pub(crate) url: &'a str,
    /// Names and values beside the token.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: Sent<'a>,
    /// What is done, as in "creating the repository".
    pub(crate) doing: &'a str,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self, doing: &str) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::Refused(format!("{doing}: the hub's answer is not JSON ({error})")))
    }

    /// What it says, as far as there is room.
    pub(crate) fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let shown: String = text.trim().chars().take(SHOWN).collect();
        if shown.is_empty() { "no explanation".to_owned() } else { foreign(&shown).to_string() }
    }
}

/// Sends requests.
pub(crate) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
    stopping: &'a dyn Fn() -> bool,
}

impl<'a> Client<'a> {
    pub(crate) fn new(hub: &'a Hub, user_agent: &str, stopping: &'a dyn Fn() -> bool) -> Client<'a> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // An address that has moved is an error: neither the token nor a commit is for another place.
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(300)))
            .user_agent(user_agent)
            .build()
            .into();
        Client { hub, agent, stopping }
    }

    /// The hub's endpoint.
    pub(crate) fn endpoint(&self) -> &str {
        &self.hub.endpoint
    }

    /// Sends JSON to the hub.
    pub(crate) fn post(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        value: &Value,
        doing: &str,
    ) -> Result<Answer> {
        let body = serde_json::to_vec(value).map_err(|error| Error::Refused(error.to_string()))?;
        let mut all = vec![("content-type", "application/json")];
        all.retain(|(name, _)| !headers.iter().any(|(own, _)| own == name));
        all.extend(headers);
        self.send(&Request { method: "POST", url, headers: &all, body: Sent::Bytes(&body), doing })
    }

    /// Sends a request, several times if need be. Any answer but "later" is returned.
    pub(crate) fn send(&self, request: &Request<'_>) -> Result<Answer> {
        let mut waits = WAITS.iter();
        loop {
            if (self.stopping)() {
                return Err(Error::Interrupted);
            }
            let (why, asked) = match self.attempt(request) {
                Ok(answer) if answer.status == 429 || answer.status >= 500 => {
                    let asked =
                        answer.headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                    let told = self.hub.without_token(&answer.told());
                    (
                        format!(
                            "{}: the server answered with status {} ({told})",
                            request.doing, answer.status
                        ),
                        asked,
                    )
                }
                Ok(answer) => return Ok(answer),
                Err(Error::Refused(why)) => (why, None),
                Err(other) => return Err(other),
            };
            let Some(wait) = waits.next() else { return refused(why) };
            let wait = asked.unwrap_or(*wait).clamp(*wait, LONGEST_WAIT);
            terminal::say!("{why}; trying again in {wait} s");
            let end = Instant::now() + Duration::from_secs(wait);
            while Instant::now() < end {
                if (self.stopping)() {
                    return Err(Error::Interrupted);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn attempt(&self, request: &Request<'_>) -> Result<Answer> {
        let mut builder = ureq::http::Request::builder().method(request.method).uri(request.url);
        for (name, value) in request.headers {
            builder = builder.header(*name, *value);
        }
        if let Some(token) = self.hub.token.as_ref().filter(|_| self.is_of_the_hub(request.url)) {
            builder = builder.header("authorization", format!("Bearer {}", token.secret()));
        }
        if let Sent::Stream(length, _) = request.body {
            // Storage takes no body of unknown length.
            builder = builder.header("content-length", length);
        }
        let unsent = |error: &dyn std::fmt::Display| {
            let error = self.hub.without_token(&error.to_string());
            Error::Refused(format!("{}: {} did not answer ({error})", request.doing, origin(request.url)))
        };
        let answered = match &request.body {
            Sent::Nothing => self.agent.run(builder.body(SendBody::none()).map_err(|error| unsent(&error))?),
            Sent::Bytes(bytes) => self.agent.run(builder.body(*bytes).map_err(|error| unsent(&error))?),
            Sent::Stream(_, open) => {
                let mut stream = Stoppable { reader: open()?, stopping: self.stopping };
                let body = SendBody::from_reader(&mut stream);
                self.agent.run(builder.body(body).map_err(|error| unsent(&error))?)
            }
        };
        let answer = answered.and_then(read);
        if (self.stopping)() {
            return Err(Error::Interrupted);
        }
        answer.map_err(|error| unsent(&error))
    }

    /// Whether `url` is the hub's own: the token is for nobody else.
    fn is_of_the_hub(&self, url: &str) -> bool {
        url.strip_prefix(self.endpoint()).is_some_and(|rest| rest.starts_with('/'))
    }
}

fn read(mut response: Response<Body>) -> Result<Answer, ureq::Error> {
    let body = response.body_mut().with_config().limit(ANSWER).read_to_vec()?;
    Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body })
}

/// The server of a URL: the rest may hold a signature.
fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    format!("{scheme}://{}", rest.split(['/', '?']).next().unwrap_or_default())
}

/// A reader that ends with an error once the work is to stop.
struct Stoppable<'a> {
    reader: Box<dyn Read + 'a>,
    stopping: &'a dyn Fn() -> bool,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if (self.stopping)() {
            return Err(std::io::Error::other("interrupted"));
        }
        self.reader.read(buffer)
    }
}
