//! An object store some of whose requests fail.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The server is gone before it does anything.
    Gone,
    /// The request is carried out, and its answer lost.
    Lost,
    /// One bit of what comes is another.
    Flipped,
    /// Half of it comes, as if it were all.
    Short,
    /// The connection breaks in the middle.
    Broken,
    /// It takes a while.
    Slow,
    /// It may not be done.
    Forbidden,
}

type Plan = dyn Fn(&str, &str) -> Fault + Send + Sync;

/// A plan in which the first of several equal requests of these kinds has a `fault`.
pub(super) fn at_first(
    kinds: &'static [&'static str],
    fault: Fault,
) -> impl Fn(&str, &str) -> Fault + Send + Sync {
    let seen = Mutex::new(HashSet::new());
    move |kind, name| {
        let is_first = kinds.contains(&kind) && seen.lock().unwrap().insert(format!("{kind} {name}"));
        if is_first { fault } else { Fault::None }
    }
}

/// The store, and what becomes of each request: of its kind ("get", "put", "list") and its object, with `@` and the first byte if a
/// part of it is asked for.
pub(super) struct Faults {
    store: Arc<InMemory>,
    plan: Box<Plan>,
}

impl Faults {
    pub(super) fn new(
        store: Arc<InMemory>,
        plan: impl Fn(&str, &str) -> Fault + Send + Sync + 'static,
    ) -> Faults {
        Faults { store, plan: Box::new(plan) }
    }

    /// Fails, or says what is to become of the answer.
    async fn before(&self, kind: &str, path: &Path, part: &str) -> Result<Fault> {
        let fault = (self.plan)(kind, &format!("{}{part}", path.as_ref().trim_start_matches("acts/")));
        match fault {
            Fault::Gone => return Err(gone()),
            Fault::Forbidden => {
                return Err(Error::PermissionDenied {
                    path: path.to_string(),
                    source: "<Code>AccessDenied</Code>".into(),
                });
            }
            Fault::Slow => tokio::time::sleep(Duration::from_millis(30)).await,
            _ => {}
        }
        Ok(fault)
    }
}

fn gone() -> Error {
    Error::Generic { store: "memory", source: "the connection was closed".into() }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that fails")
    }
}

#[async_trait]
impl ObjectStore for Faults {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = self.before("put", path, "").await?;
        let put = self.store.put_opts(path, payload, options).await;
        if fault == Fault::Lost { Err(gone()) } else { put }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let from = match &options.range {
            Some(GetRange::Bounded(range)) => format!("@{}", range.start),
            _ => String::new(),
        };
        let fault = self.before("get", path, &from).await?;
        let is_head = options.head;
        let found = self.store.get_opts(path, options).await?;
        if is_head || matches!(fault, Fault::None | Fault::Slow) {
            return Ok(found);
        }
        let (meta, range, attributes, extensions) =
            (found.meta.clone(), found.range.clone(), found.attributes.clone(), found.extensions.clone());
        let mut content = found.bytes().await?.to_vec();
        let half = content.len() / 2;
        let pieces: Vec<Result<Bytes>> = match fault {
            Fault::Flipped => {
                content[half] ^= 4;
                vec![Ok(content.into())]
            }
            Fault::Short => vec![Ok(content[..half].to_vec().into())],
            Fault::Broken => vec![Ok(content[..half].to_vec().into()), Err(gone())],
            _ => vec![Err(gone())],
        };
        let payload = GetResultPayload::Stream(stream::iter(pieces).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match (self.plan)("list", "") {
            Fault::None => self.store.list(prefix),
            _ => stream::iter([Err(gone())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
