//! Which stores lie in buckets: those whose path is `s3://BUCKET/FOLDER`, or the same with `gs://` or `az://`.

use std::path::{Path, PathBuf};

use crate::{Result, StoreError};

/// The schemes of buckets: of S3 and what speaks its protocol, of Google Cloud Storage, and of Azure Blob Storage.
const SCHEMES: [&str; 3] = ["s3", "gs", "az"];

/// Whether this build reads and writes stores in buckets: whether it has the feature `bucket`.
pub(crate) const BUCKETS: bool = cfg!(feature = "bucket");

/// A folder in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// "s3"
    pub(crate) scheme: &'static str,
    /// The bucket; with Azure, the container.
    pub(crate) bucket: String,
    /// The folder in it, without slashes at its ends.
    pub(crate) folder: String,
}

/// Whether `path` names a store in a bucket.
pub fn is_bucket(path: &Path) -> bool {
    path.to_str().is_some_and(|text| split(text).is_some())
}

/// Scheme and rest.
fn split(text: &str) -> Option<(&'static str, &str)> {
    SCHEMES.into_iter().find_map(|scheme| Some((scheme, text.strip_prefix(scheme)?.strip_prefix("://")?)))
}

impl Address {
    /// Takes `s3://BUCKET/FOLDER` apart.
    ///
    /// # Errors
    /// Of a bucket without a folder, and of what a bucket's address does not have: keys, a query. The text itself is not repeated
    /// where it may hold a key.
    pub(crate) fn parse(path: &Path) -> Result<Address> {
        let wrong = |what: &str| StoreError::Address { what: what.to_owned() };
        let text = path.to_str().ok_or_else(|| wrong("it is not UTF-8"))?;
        let (scheme, rest) =
            split(text).ok_or_else(|| wrong("it begins with none of s3://, gs:// and az://"))?;
        if rest.contains(['@', '?', '#']) {
            return Err(wrong("it holds more than a bucket and a folder; keys belong in the environment"));
        }
        let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let folder = folder.trim_end_matches('/');
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if bucket.is_empty() || !bucket.chars().all(is_name) {
            return Err(wrong("the name of a bucket has letters, digits and hyphens"));
        }
        if folder.is_empty() {
            return Err(wrong("a store has a folder in its bucket, as in s3://bucket/acts"));
        }
        if folder.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(wrong("a part of its path is empty or leads elsewhere"));
        }
        Ok(Address { scheme, bucket: bucket.to_owned(), folder: folder.to_owned() })
    }

    /// As it is written.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("{}/{}", self.root(), self.folder))
    }

    /// `s3://BUCKET`
    pub(crate) fn root(&self) -> String {
        format!("{}://{}", self.scheme, self.bucket)
    }

    /// The last part of its path.
    #[cfg(any(feature = "bucket", test))]
    pub(crate) fn name(&self) -> &str {
        self.folder.rsplit('/').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_bucket_and_a_folder() {
        let address = Address::parse(Path::new("s3://my-bucket/a/acts/")).unwrap();
        let parts = (address.scheme, &*address.bucket, &*address.folder, address.name());
        assert_eq!(parts, ("s3", "my-bucket", "a/acts", "acts"));
        assert_eq!(address.path(), Path::new("s3://my-bucket/a/acts"));
        for path in ["stores/gpt2", "s3:/a/b", "s3", "/s3://a/b", "http://a/b"] {
            assert!(!is_bucket(Path::new(path)), "{path}");
        }
        assert!(is_bucket(Path::new("gs://a/b")) && is_bucket(Path::new("az://")));
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_keys() {
        for path in ["s3://", "s3://a", "s3://a/", "s3:///a", "s3://a//b", "s3://a/../b", "s3://a b/c"] {
            assert!(matches!(Address::parse(Path::new(path)), Err(StoreError::Address { .. })), "{path}");
        }
        for path in ["s3://key:hunter2@a/b", "az://a/b?sig=hunter2", "s3://a/b#hunter2"] {
            let message = Address::parse(Path::new(path)).unwrap_err().to_string();
            assert!(message.contains("environment") && !message.contains("hunter2"), "{message}");
        }
    }
}
