//! Where the hub and its cache are, and who asks.

use std::fmt;
use std::path::PathBuf;

/// A secret that no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The secret itself, for a header.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// `text` without it.
    pub(crate) fn removed_from(&self, text: &str) -> String {
        text.replace(&self.0, "<token>")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A hub, its cache on this machine, and who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// Who asks, where that is known.
    pub token: Option<Token>,
    /// Nothing may be asked of it.
    pub offline: bool,
}

impl Hub {
    /// What this process' variables say.
    pub fn from_environment() -> Hub {
        Hub::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// What `variable` says. The rules are those of Python's `huggingface_hub`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Hub {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let user_cache = || {
            let user = path("HOME").unwrap_or_default();
            path("XDG_CACHE_HOME").unwrap_or(user.join(".cache")).join("huggingface")
        };
        let home = path("HF_HOME").unwrap_or_else(user_cache);
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let saved = || std::fs::read_to_string(token_file).ok();
        let token = variable("HF_TOKEN").or_else(saved).map(|token| token.trim().to_owned());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default().to_uppercase();
        Hub {
            endpoint: variable("HF_ENDPOINT")
                .map_or("https://huggingface.co".to_owned(), |url| url.trim_end_matches('/').to_owned()),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token: token.filter(|token| !token.is_empty()).map(Token),
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_by_nothing() {
        let hub = Hub::from_variables(|name| (name == "HF_TOKEN").then(|| " hf_secret\n".to_owned()));
        assert_eq!(hub.token.as_ref().unwrap().secret(), "hf_secret");
        assert!(!format!("{hub:?}").contains("hf_secret"));
        assert_eq!(hub.token.unwrap().removed_from("got hf_secret!"), "got <token>!");
    }

    #[test]
    fn the_token_is_read_from_the_file_that_hugging_face_keeps() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_saved\n").unwrap();
        let home = dir.path().display().to_string();
        let hub = Hub::from_variables(|name| (name == "HF_HOME").then(|| home.clone()));
        assert_eq!(hub.token.unwrap().secret(), "hf_saved");
        assert_eq!(hub.cache, dir.path().join("hub"));
    }
}
