//! Why a request failed, in words that say what to do and hold no key.

use std::error::Error as _;
use std::fmt;
use std::io::{self, ErrorKind};

use object_store::Error;

/// The longest text of a server that is repeated, in characters.
const LONGEST: usize = 200;
/// Beginnings of the variables that credentials come from.
const FAMILIES: [&str; 4] = ["AWS_", "GOOGLE_", "AZURE_", "SERVICE_ACCOUNT"];

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    text: String,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// There is no such object.
    Missing,
    /// There is one, or it is not the version that was to be replaced.
    Exists,
    /// Another try would fail as this one did.
    Refused,
    /// Another try may succeed.
    Passing,
}

impl Failure {
    /// What `error`, of a request to `bucket` at `server`, means.
    pub(crate) fn of(error: &Error, bucket: &str, server: &str) -> Failure {
        let whole = chain(error);
        let code = between(&whole, "<Code>", "</Code>").unwrap_or_default();
        let (kind, text) = match error {
            Error::NotFound { .. } if code == "NoSuchBucket" || whole.contains("ContainerNotFound") => {
                (Kind::Refused, format!("there is no bucket {bucket} at {server}"))
            }
            Error::NotFound { .. } => (Kind::Missing, "there is no such object".to_owned()),
            Error::AlreadyExists { .. } => (Kind::Exists, "there is such an object already".to_owned()),
            Error::Precondition { .. } => (Kind::Exists, "another process has replaced it".to_owned()),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (Kind::Refused, refusal(&whole, code)),
            Error::NotImplemented { .. } | Error::NotSupported { .. } => {
                (Kind::Refused, format!("{server} cannot do that: {}", told(&whole)))
            }
            _ if is_without_credentials(&whole) => (
                Kind::Refused,
                "no credentials were found: set those of your account in the environment (docs/buckets.md), or \
                 AWS_SKIP_SIGNATURE=true for a bucket that is open to everyone"
                    .to_owned(),
            ),
            _ if whole.contains("without LOCATION") => (
                Kind::Refused,
                "the bucket is in another region: AWS_REGION names it".to_owned(),
            ),
            _ => match status(&whole) {
                Some(status) => {
                    let passing = status >= 500 || status == 429 || status == 408;
                    let kind = if passing { Kind::Passing } else { Kind::Refused };
                    (kind, format!("{server} answered {status}{}", told_by(&whole, code)))
                }
                None => (Kind::Passing, format!("no answer from {server}: {}", told(&innermost(error)))),
            },
        };
        Failure { kind, text: without_secrets(&text) }
    }

    /// Of what came back.
    pub(crate) fn passing(text: String) -> Failure {
        Failure { kind: Kind::Passing, text }
    }

    /// What no other try can change.
    pub(crate) fn refused(text: impl Into<String>) -> Failure {
        Failure { kind: Kind::Refused, text: text.into() }
    }

    /// The same, with what was done about it.
    pub(crate) fn after(self, tries: u32, seconds: u64) -> Failure {
        let text =
            format!("{} ({tries} tries in {seconds} s); the same command goes on from here", self.text);
        Failure { text, ..self }
    }

    /// The same, where nobody waited for another try.
    pub(crate) fn unfinished(self) -> Failure {
        let text = format!("{}; given up, because the program was asked to stop", self.text);
        Failure { text, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        let kind = match failure.kind {
            Kind::Missing => ErrorKind::NotFound,
            Kind::Exists => ErrorKind::AlreadyExists,
            Kind::Refused => ErrorKind::PermissionDenied,
            Kind::Passing => ErrorKind::TimedOut,
        };
        io::Error::new(kind, failure)
    }
}

fn refusal(whole: &str, code: &str) -> String {
    let what = match code {
        "InvalidAccessKeyId" | "InvalidClientTokenId" => "its server does not know the access key",
        "SignatureDoesNotMatch" => "the secret key is not that of the access key",
        "ExpiredToken" => "the session token has expired",
        "RequestTimeTooSkewed" => "the clock of this machine is wrong",
        _ => "these credentials may not do that",
    };
    let code = if code.is_empty() { status(whole).unwrap_or(403).to_string() } else { code.to_owned() };
    format!("{what} ({code}); docs/buckets.md says where credentials come from and which rights they need")
}

/// Whether the credentials were looked for on the machine's own metadata server, where there is none.
fn is_without_credentials(whole: &str) -> bool {
    ["169.254.169.254", "metadata.google.internal", "169.254.170.2"].iter().any(|host| whole.contains(host))
}

/// The error and all that it came from.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push('\n');
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// What the error came from in the first place.
fn innermost(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = source.to_string();
        next = source.source();
    }
    text
}

/// The HTTP status that the text names.
fn status(whole: &str) -> Option<u16> {
    let after = whole.split_once("status code: ")?.1;
    after.get(..3)?.parse().ok()
}

/// `: SlowDown, please reduce your request rate`
fn told_by(whole: &str, code: &str) -> String {
    match between(whole, "<Message>", "</Message>") {
        Some(message) => format!(": {code}, {}", told(message)),
        None if code.is_empty() => String::new(),
        None => format!(": {code}"),
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

/// A foreign text in one short line, without the queries of addresses, which may hold signatures.
fn told(text: &str) -> String {
    let words = text
        .split_whitespace()
        .map(|word| if word.contains("://") { word.split('?').next().unwrap_or(word) } else { word });
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().take(LONGEST).collect()
}

/// The text without the values of variables that hold keys.
fn without_secrets(text: &str) -> String {
    let mut text = text.to_owned();
    for (name, value) in std::env::vars_os() {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        let is_key = ["KEY", "SECRET", "TOKEN", "SAS", "PASSWORD"].iter().any(|part| name.contains(part));
        if is_key && value.len() >= 8 && FAMILIES.iter().any(|family| name.starts_with(family)) {
            text = text.replace(value, "***");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(error: Error) -> Failure {
        Failure::of(&error, "acts", "s3.example.com")
    }

    fn generic(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn each_failure_says_whether_to_try_again_and_what_to_do() {
        let missing = |text: &str| Error::NotFound { path: "a".into(), source: text.to_owned().into() };
        for (error, kind, part) in [
            (missing("<Code>NoSuchBucket</Code>"), Kind::Refused, "no bucket acts at s3.example.com"),
            (missing("<Code>NoSuchKey</Code>"), Kind::Missing, "no such object"),
            (generic("http://169.254.169.254/latest failed"), Kind::Refused, "no credentials"),
            (
                generic("non-2xx status code: 503 Service Unavailable: <Code>SlowDown</Code>"),
                Kind::Passing,
                "503: SlowDown",
            ),
            (generic("non-2xx status code: 400 Bad Request: "), Kind::Refused, "answered 400"),
            (generic("Received redirect without LOCATION"), Kind::Refused, "AWS_REGION"),
            (
                generic("Connection refused (os error 111)"),
                Kind::Passing,
                "no answer from s3.example.com: Connection",
            ),
        ] {
            let failure = failure(error);
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.to_string().contains(part), "{failure}");
        }
    }

    #[test]
    fn neither_signatures_nor_what_a_server_repeats_of_them_is_told() {
        let body = "non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code><Message>no</Message>\
                    <AWSAccessKeyId>AKIAHUNTER2</AWSAccessKeyId><StringToSign>hunter2</StringToSign></Error>";
        let refused = failure(Error::PermissionDenied { path: "a".into(), source: body.into() });
        let address = failure(generic("error sending https://a.blob/x?sig=hunter2&se=1 now"));
        for failure in [refused, address] {
            let text = failure.to_string().to_lowercase();
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
