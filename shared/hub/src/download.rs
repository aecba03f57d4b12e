//! The files of a folder of a repository, through the cache.

use std::path::{Component, Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::{Address, Error, Hub, Result, refused};

impl Hub {
    /// The folder on this machine with the files of `address`, below the cache. Those that have one of the `endings` are fetched, not
    /// what lies in folders below it. Where the cache has all files of one of the sets in `whole`, the hub is not asked.
    ///
    /// # Errors
    /// No such repository, folder or file; a hub that cannot be reached, or may not be asked.
    pub fn folder(&self, address: &Address, endings: &[&str], whole: &[&[&str]]) -> Result<PathBuf> {
        let Address { repository, folder, revision } = address;
        let repo = Repo::with_revision(repository.clone(), RepoType::Model, revision.clone());
        let cached = Cache::new(self.cache.clone()).repo(repo.clone());
        let within =
            |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        for set in whole {
            let files: Option<Vec<PathBuf>> = set.iter().map(|name| cached.get(&within(name))).collect();
            if let Some(parent) = files.as_ref().and_then(|files| files.first()?.parent()) {
                return Ok(parent.to_path_buf());
            }
        }
        if self.offline {
            return refused(self.unreachable(address, "HF_HUB_OFFLINE is set"));
        }
        let failed = |error: ApiError| Error::Refused(self.failed(address, &error));
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.as_ref().map(|token| token.secret().to_owned()))
            .with_retries(3)
            .build()
            .map_err(failed)?;
        let info = api.repo(repo).info().map_err(failed)?;
        let prefix = within("");
        let wanted = |name: &String| {
            // Names become paths in the cache.
            let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
            let own = name.strip_prefix(&prefix).is_some_and(|own| !own.is_empty() && !own.contains('/'));
            plain && own && endings.iter().any(|ending| name.ends_with(ending))
        };
        let names: Vec<String> =
            info.siblings.into_iter().map(|file| file.rfilename).filter(wanted).collect();
        if names.is_empty() {
            return refused(format!(
                "{address} holds no files of an autoencoder ({}); name the folder that has them",
                endings.join(", ")
            ));
        }
        let pinned = api.repo(Repo::with_revision(repository.clone(), RepoType::Model, info.sha.clone()));
        for name in &names {
            pinned.get(name).map_err(failed)?;
        }
        let noted = cached.create_ref(&info.sha);
        noted.map_err(|source| Error::Io { path: self.cache.display().to_string(), source })?;
        Ok(cached.pointer_path(&info.sha).join(folder))
    }

    fn failed(&self, address: &Address, error: &ApiError) -> String {
        let problem = self.without_token(&error.to_string());
        // `ureq` says it so; anything else never reached a hub that answered.
        match problem.split("http status: ").nth(1).map(str::trim) {
            Some("401" | "403" | "404") => {
                format!("there is no {address} on {}, or it needs a token (HF_TOKEN)", self.endpoint)
            }
            Some(code) => format!("{} answered with status {code} when asked for {address}", self.endpoint),
            None => self.unreachable(address, &problem),
        }
    }

    fn unreachable(&self, address: &Address, problem: &str) -> String {
        format!(
            "the Hugging Face hub at {} cannot be reached ({problem}), and {address} is not in the cache ({}); give a folder on \
             this machine",
            self.endpoint,
            self.cache.display()
        )
    }

    /// `text` without the secret.
    pub(crate) fn without_token(&self, text: &str) -> String {
        self.token.as_ref().map_or_else(|| text.to_owned(), |token| token.removed_from(text))
    }
}
