//! The version that is meant: one that is there, one of the registry, or one in a folder beside the first.

use std::path::PathBuf;
use std::sync::Arc;

use outrigger_store::id::version_of;
use outrigger_store::{Label, ModelId, ModelName, ModelWish, Which};
use tokio_util::sync::CancellationToken;

use super::named::{NamedModel, STABLE};
use super::refusal::{Refusal, shown};
use super::rollout::Rollouts;
use crate::fetching::Announced;
use crate::models::files::Files;
use crate::models::served::ServedModel;
use crate::models::wanted::{self, Wanted};

/// What the version with the highest number is called in a registry.
pub(super) const LATEST: &str = "latest";

impl Rollouts {
    /// The version that is meant, which may be one that has to be fetched or loaded.
    pub(super) async fn target(
        &self,
        named: &Arc<NamedModel>,
        which: &str,
        overtaken: &CancellationToken,
    ) -> Result<Arc<ServedModel>, Refusal> {
        if let Some(there) = named.find(which) {
            return Ok(there);
        }
        match self.registered.get(&named.name) {
            Some((id, _)) => {
                let id = self.resolve(&id.name, which).await?;
                match named.find(&id.version.to_string()) {
                    Some(there) => Ok(there),
                    None => self.registered_version(named, &id, overtaken).await,
                }
            }
            None => self.folder_version(named, which).await,
        }
    }

    async fn resolve(&self, name: &ModelName, which: &str) -> Result<ModelId, Refusal> {
        let no_version = || Refusal::NoVersion(shown(which));
        let which = match (version_of(which), which) {
            (Ok(version), _) => Which::Version(version),
            (_, LATEST) => Which::Latest,
            (_, label) => Which::Label(label.parse().map_err(|_| no_version())?),
        };
        let storage = self.storage.as_ref().ok_or_else(no_version)?;
        Ok(storage.resolve(&ModelWish { name: name.clone(), which }).await?)
    }

    /// One of the registry, which is fetched when it is loaded.
    async fn registered_version(
        &self,
        named: &Arc<NamedModel>,
        id: &ModelId,
        overtaken: &CancellationToken,
    ) -> Result<Arc<ServedModel>, Refusal> {
        self.check_room(named)?;
        let storage = self.storage.as_ref().ok_or_else(|| Refusal::NoVersion(id.to_string()))?;
        // What takes long is given up where it is not wanted any more; the rest is not left half done.
        let manifest = tokio::select! {
            manifest = storage.prepare(id) => manifest?,
            () = overtaken.cancelled() => return Err(Refusal::Overtaken),
        };
        let Announced { path, places, later } = storage.announce(&manifest).await?;
        let files = places.map_or(Files::Disk, Files::Awaited);
        let wanted = self.wanted(named, path, id.version.to_string(), files, true).await;
        let added = wanted
            .and_then(|wanted| Ok(self.models.add(wanted, later, Some((&manifest).into()), named.kind)?));
        match added {
            Ok(version) => {
                named.add(&version);
                Ok(version)
            }
            Err(refusal) => {
                self.let_go(id).await;
                Err(refusal)
            }
        }
    }

    /// One that lies beside the first one: `NAME/VERSION`.
    async fn folder_version(
        &self,
        named: &Arc<NamedModel>,
        which: &str,
    ) -> Result<Arc<ServedModel>, Refusal> {
        let said = self.config.models.get(&named.name).map(|model| model.path.clone());
        let folder = said.or_else(|| Some(self.config.model_dir.as_ref()?.join(&named.name)));
        let folder = folder.filter(|folder| folder.is_dir());
        let folder = folder.ok_or_else(|| Refusal::Alone(named.name.clone()))?;
        let number = version_of(which).map_err(|_| Refusal::NoVersion(shown(which)))?.to_string();
        let path = folder.join(&number);
        if !path.is_dir() {
            return Err(Refusal::NoFolder(path));
        }
        let wanted = self.wanted(named, path, number, Files::Disk, false).await?;
        // Its author may call it otherwise than its folder is called.
        let is_it = |there: &Arc<ServedModel>| there.wanted.path == wanted.path;
        if let Some(there) = named.versions().into_iter().find(is_it) {
            return Ok(there);
        }
        self.check_room(named)?;
        let text = wanted.version.as_str();
        if named.find(text).is_some() || [STABLE, LATEST].contains(&text) {
            return Err(Refusal::Taken(shown(text)));
        }
        let version = self.models.add(wanted, None, None, named.kind)?;
        named.add(&version);
        Ok(version)
    }

    async fn wanted(
        &self,
        named: &NamedModel,
        path: PathBuf,
        number: String,
        files: Files,
        registered: bool,
    ) -> Result<Wanted, Refusal> {
        let (config, name) = (Arc::clone(&self.config), named.name.clone());
        let mut model = config.models.get(&name).cloned().unwrap_or_default();
        (model.path, model.version) = (path, registered.then(|| number.clone()));
        let wanted = move || wanted::at(&config, &name, model, Some(number), &files);
        Ok(tokio::task::spawn_blocking(wanted).await??)
    }

    fn check_room(&self, named: &NamedModel) -> Result<(), Refusal> {
        match named.versions().len() {
            there if there >= self.config.rollout.versions => Err(Refusal::TooMany(there)),
            _ => Ok(()),
        }
    }

    /// A version of the registry is not served after all, or not any more.
    pub(super) async fn let_go(&self, id: &ModelId) {
        if let Some(storage) = &self.storage
            && let Err(error) = storage.let_go(id.clone()).await
        {
            tracing::warn!(%error, model = %id, "the files of a version were not removed");
        }
    }
}

/// Whether a version can be called so.
pub(super) fn can_be_called(label: &Label) -> bool {
    // That is what the registry calls the one with the highest number.
    label.as_str() != LATEST
}
