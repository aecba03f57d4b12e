//! The address of a folder on the hub: `hf://owner/repository/folder@revision`.

use std::fmt;

use crate::{Result, refused};

/// What such addresses begin with.
const SCHEME: &str = "hf://";

/// A folder of a repository of models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `owner/name`.
    pub repository: String,
    /// The folder in it, with `/` between its parts; empty for the repository itself.
    pub folder: String,
    /// A branch, tag or commit.
    pub revision: String,
}

impl Address {
    /// The address that `text` is, or `None` if it does not begin with `hf://`.
    ///
    /// # Errors
    /// One that begins so and is none.
    pub fn parse(text: &str) -> Result<Option<Address>> {
        let Some(rest) = text.strip_prefix(SCHEME) else { return Ok(None) };
        let wrong = || {
            refused(format!(
                "{text} is not an address on the hub: hf://OWNER/REPOSITORY/FOLDER, with @REVISION at its end"
            ))
        };
        let (path, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let [owner, name, folder @ ..] = &parts[..] else { return wrong() };
        let plain = |part: &&str| {
            let legal = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+=".contains(&b));
            legal && !part.is_empty() && !part.starts_with('.')
        };
        let revision_parts: Vec<&str> = revision.split('/').collect();
        if ![owner, name].into_iter().chain(folder).all(plain) || !revision_parts.iter().all(plain) {
            return wrong();
        }
        let repository = format!("{owner}/{name}");
        Ok(Some(Address { repository, folder: folder.join("/"), revision: revision.to_owned() }))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repository)?;
        if !self.folder.is_empty() {
            write!(f, "/{}", self.folder)?;
        }
        if self.revision != "main" { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written() {
        let address = |text: &str| Address::parse(text).unwrap().unwrap();
        let found = address("hf://me/saes/blocks.1/l0=5@refs/pr/3");
        assert_eq!(
            (&*found.repository, &*found.folder, &*found.revision),
            ("me/saes", "blocks.1/l0=5", "refs/pr/3")
        );
        assert_eq!(found.to_string(), "hf://me/saes/blocks.1/l0=5@refs/pr/3");
        assert_eq!(address("hf://me/saes/").to_string(), "hf://me/saes");
        assert_eq!(address("hf://me/saes/a").revision, "main");
        assert_eq!(Address::parse("runs/l0").unwrap(), None);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "hf://",
            "hf://me",
            "hf://me/",
            "hf:///saes",
            "hf://me/../x",
            "hf://me/a/../b",
            "hf://me/saes/a@",
            "hf://me/sa es",
            "hf://me/s/a@../x",
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains("hf://OWNER/REPOSITORY/FOLDER"), "{error}");
        }
    }
}
