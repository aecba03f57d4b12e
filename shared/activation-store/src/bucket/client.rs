//! Requests to a bucket, each repeated until it succeeds or cannot.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as ObjectPath;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig, UpdateVersion,
};
use tokio::runtime::Runtime;

use super::credentials::with_profile;
use super::failure::{Failure, Kind};
use super::retry::{Patience, repeat};
use crate::address::Address;
use crate::giving_up::asked;
use crate::{Result, StoreError};

/// How long a request is repeated before the first one has succeeded: a wrong server is told soon.
const PATIENCE_AT_FIRST: Duration = Duration::from_secs(8);
/// How long afterwards: a server or a network is back by then, or somebody has to look.
const PATIENCE: Duration = Duration::from_secs(120);
/// A connection on which nothing arrives for so long is given up. (While an object is sent, nothing does.)
const STALLED: &str = "20 seconds";
/// The longest request, so that a shard of 44 MB gets through a slow line.
const LONGEST: &str = "5 minutes";

/// What most of the requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write,
}

/// A folder in a bucket.
#[derive(Clone)]
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    address: Address,
    /// Its address, for messages.
    path: PathBuf,
    /// Who answers, for messages.
    server: String,
    patience: Arc<OnceLock<Duration>>,
    purpose: Purpose,
}

/// An object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) bytes: u64,
}

/// A version of an object, to be replaced only if it still is this one.
pub(crate) type Version = UpdateVersion;

impl fmt::Debug for Bucket {
    /// The client would show its keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.path).finish()
    }
}

impl Bucket {
    /// Prepares requests to `address`. No request is made yet.
    ///
    /// # Errors
    /// Settings in the environment or in `~/.aws` that are not what they should be.
    pub(crate) fn connect(address: &Address, purpose: Purpose) -> Result<Bucket> {
        // Others in this process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let wrong = |failure: Failure| StoreError::io("use", &address.path())(failure.into());
        let (store, server) = client(address, purpose).map_err(wrong)?;
        Ok(Bucket { purpose, ..Bucket::over(store, address, server) })
    }

    /// The folder `address` in `store`.
    pub(super) fn over(store: Arc<dyn ObjectStore>, address: &Address, server: String) -> Bucket {
        Bucket {
            store,
            address: address.clone(),
            path: address.path(),
            server,
            patience: Arc::default(),
            purpose: Purpose::Write,
        }
    }

    /// The same, whose every request is repeated for so long.
    pub(super) fn with_patience(self, patience: Duration) -> Bucket {
        Bucket { patience: Arc::new(OnceLock::from(patience)), ..self }
    }

    /// Its address.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    fn object(&self, name: &str) -> ObjectPath {
        ObjectPath::from(format!("{}/{name}", self.address.folder))
    }

    fn failure(&self, error: &object_store::Error) -> Failure {
        Failure::of(error, &self.address.bucket, &self.server)
    }

    async fn repeat<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        attempt: impl FnMut() -> F,
    ) -> Result<T, Failure> {
        let patience = Patience {
            most: self.patience.get().copied().unwrap_or(PATIENCE_AT_FIRST),
            asked: asked(),
            finishes: self.purpose == Purpose::Write,
        };
        let done = repeat(patience, attempt).await;
        if !matches!(&done, Err(failure) if failure.kind == Kind::Passing) {
            // Somebody answered.
            self.patience.get_or_init(|| PATIENCE);
        }
        done
    }

    /// All of an object, and its version.
    pub(crate) async fn get(&self, name: &str) -> Result<(Bytes, Version), Failure> {
        let object = self.object(name);
        let get = || async {
            let found = self.store.get(&object).await.map_err(|error| self.failure(&error))?;
            let version = Version { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
            let expected = found.meta.size;
            let bytes = found.bytes().await.map_err(|error| self.failure(&error))?;
            self.check_length(&bytes, expected)?;
            Ok((bytes, version))
        };
        self.repeat(get).await
    }

    /// The bytes `range` of an object, and the bytes that it has in all. If those are fewer than the range's, nothing comes.
    pub(crate) async fn range(&self, name: &str, range: Range<u64>) -> Result<(Bytes, u64), Failure> {
        let object = self.object(name);
        let get = || async {
            let options =
                GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let found = self.store.get_opts(&object, options).await.map_err(|error| self.failure(&error))?;
            let size = found.meta.size;
            if size < range.end {
                return Ok((Bytes::new(), size));
            }
            if found.range != range {
                return Err(Failure::passing(format!(
                    "{} sent bytes {:?} of it, asked for were {range:?}",
                    self.server, found.range
                )));
            }
            let bytes = found.bytes().await.map_err(|error| self.failure(&error))?;
            self.check_length(&bytes, range.end - range.start)?;
            Ok((bytes, size))
        };
        self.repeat(get).await
    }

    fn check_length(&self, bytes: &Bytes, expected: u64) -> Result<(), Failure> {
        match bytes.len() as u64 == expected {
            true => Ok(()),
            false => {
                let what =
                    format!("{} sent {} bytes of it, asked for were {expected}", self.server, bytes.len());
                Err(Failure::passing(what))
            }
        }
    }

    /// The version of an object, if there is one.
    pub(crate) async fn version(&self, name: &str) -> Result<Option<Version>, Failure> {
        let object = self.object(name);
        let head = || async { self.store.head(&object).await.map_err(|error| self.failure(&error)) };
        match self.repeat(head).await {
            Ok(found) => Ok(Some(Version { e_tag: found.e_tag, version: found.version })),
            Err(failure) if failure.kind == Kind::Missing => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Every object below the folder, by its name there.
    pub(crate) async fn list(&self) -> Result<BTreeMap<String, Listed>, Failure> {
        let folder = ObjectPath::from(self.address.folder.as_str());
        let list = || async {
            let found = self.store.list(Some(&folder)).try_collect::<Vec<_>>().await;
            found.map_err(|error| self.failure(&error))
        };
        let found = self.repeat(list).await?;
        let below = format!("{folder}/");
        let name = |location: &ObjectPath| location.as_ref().strip_prefix(&below).map(str::to_owned);
        let named =
            found.iter().filter_map(|object| Some((name(&object.location)?, Listed { bytes: object.size })));
        Ok(named.collect())
    }

    /// Puts an object: a new one, or in place of the `old` version. That an equal one is there already is success; another one is
    /// [`Kind::Exists`].
    pub(crate) async fn put(
        &self,
        name: &str,
        content: &PutPayload,
        old: Option<&Version>,
    ) -> Result<Version, Failure> {
        let object = self.object(name);
        let mode = || old.cloned().map_or(PutMode::Create, PutMode::Update);
        let put = || async {
            let put = self.store.put_opts(&object, content.clone(), PutOptions::from(mode())).await;
            put.map_err(|error| self.failure(&error))
        };
        match self.repeat(put).await {
            Ok(put) => Ok(Version { e_tag: put.e_tag, version: put.version }),
            // Perhaps an earlier try got through, whose answer did not.
            Err(failure) if failure.kind == Kind::Exists => match self.get(name).await {
                Ok((found, version)) if is_equal(&found, content) => Ok(version),
                Err(failure) if failure.kind != Kind::Missing => Err(failure),
                _ => Err(failure),
            },
            Err(failure) => Err(failure),
        }
    }

    /// Deletes an object, if it is there.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), Failure> {
        let object = self.object(name);
        let delete = || async { self.store.delete(&object).await.map_err(|error| self.failure(&error)) };
        match self.repeat(delete).await {
            Err(failure) if failure.kind != Kind::Missing => Err(failure),
            _ => Ok(()),
        }
    }

    /// For `map_err` of a failed request about `name`.
    pub(crate) fn error(&self, action: &'static str, name: &str) -> impl FnOnce(Failure) -> StoreError {
        let path = self.path.join(name);
        move |failure| StoreError::io(action, &path)(failure.into())
    }
}

fn is_equal(found: &Bytes, content: &PutPayload) -> bool {
    let mut rest = &found[..];
    found.len() == content.content_length()
        && content.iter().all(|part| {
            let (front, back) = rest.split_at(part.len());
            rest = back;
            front == &part[..]
        })
}

/// The threads that requests are made on.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let start = || {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.clamp(1, 8))
            .thread_name("bucket")
            .enable_all()
            .build()
    };
    RUNTIME.get_or_init(start).as_ref().map_err(|error| {
        StoreError::thread("requests to a bucket")(std::io::Error::new(error.kind(), error.to_string()))
    })
}

/// A client for `address`, as the environment says, and who it talks to.
fn client(address: &Address, purpose: Purpose) -> Result<(Arc<dyn ObjectStore>, String), Failure> {
    let wrong = |error: object_store::Error| {
        Failure::refused(format!("its settings are incomplete: {}", Failure::of(&error, &address.bucket, "")))
    };
    // Repeated here, with the same patience for everything.
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff: Duration::from_millis(50), ..BackoffConfig::default() },
        max_retries: 1,
        retry_timeout: PATIENCE,
    };
    let mut timeouts = vec![(ClientConfigKey::Timeout, "TIMEOUT", LONGEST)];
    if purpose == Purpose::Read {
        timeouts.push((ClientConfigKey::ReadTimeout, "READ_TIMEOUT", STALLED));
    }
    let unset = |family: &str, name: &str| std::env::var_os(format!("{family}_{name}")).is_none();
    match address.scheme {
        "s3" => {
            let mut builder = with_profile(AmazonS3Builder::from_env())?;
            let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
            let endpoint = endpoint.iter().find_map(|key| builder.get_config_value(key));
            // Whoever names a server without TLS means it.
            if endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")) {
                builder = builder.with_allow_http(true);
            }
            for (key, name, value) in timeouts {
                if unset("AWS", name) {
                    builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
                }
            }
            let store = builder.with_bucket_name(&address.bucket).with_retry(retry).build().map_err(wrong)?;
            Ok((Arc::new(store), endpoint.unwrap_or_else(|| "amazonaws.com".to_owned())))
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env();
            for (key, name, value) in timeouts {
                if unset("GOOGLE", name) {
                    builder = builder.with_config(GoogleConfigKey::Client(key), value);
                }
            }
            let store = builder.with_bucket_name(&address.bucket).with_retry(retry).build().map_err(wrong)?;
            Ok((Arc::new(store), "storage.googleapis.com".to_owned()))
        }
        _ => {
            let mut builder = MicrosoftAzureBuilder::from_env();
            for (key, name, value) in timeouts {
                if unset("AZURE", name) {
                    builder = builder.with_config(AzureConfigKey::Client(key), value);
                }
            }
            let account = builder.get_config_value(&AzureConfigKey::AccountName).unwrap_or_default();
            let store =
                builder.with_container_name(&address.bucket).with_retry(retry).build().map_err(wrong)?;
            Ok((Arc::new(store), format!("the account {account} of Azure")))
        }
    }
}
