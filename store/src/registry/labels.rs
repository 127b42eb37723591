//! Labels of versions, such as `stable`: each an object of its own that holds the number of its version, so that one write moves it.

use object_store::ObjectStoreExt as _;

use super::{Registry, small};
use crate::fetch::FetchError;
use crate::id::{Label, ModelId, ModelName, version_of};
use crate::location::Location;
use crate::manifest::MANIFEST;

/// The folder of a model's labels, beside its versions.
pub(super) const LABELS: &str = "labels";
/// Longest content of a label, bytes.
const MAX_BYTES: u64 = 64;

impl Registry {
    /// The version that a label stands for.
    ///
    /// # Errors
    /// [`FetchError::NotFound`] if the model has no such label, [`FetchError::Label`] if what it holds is no version.
    pub async fn labelled(&self, name: &ModelName, label: &Label) -> Result<ModelId, FetchError> {
        let at = self.labels_of(name).below(label.as_str());
        let bytes = small(&at, MAX_BYTES).await?.bytes;
        let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
        let version = version_of(text).map_err(|source| FetchError::Label { at: at.to_string(), source })?;
        Ok(ModelId { name: name.clone(), version })
    }

    /// Has a label stand for a version from now on.
    ///
    /// # Errors
    /// If there is no such version, or the label cannot be written.
    pub async fn label(&self, id: &ModelId, label: &Label) -> Result<(), FetchError> {
        let manifest = self.folder(id).below(MANIFEST);
        manifest.store().head(manifest.at()).await.map_err(|error| FetchError::of(&manifest, &error))?;
        let at = self.labels_of(&id.name).below(label.as_str());
        let text = format!("{}\n", id.version);
        at.store().put(at.at(), text.into()).await.map_err(|error| FetchError::of(&at, &error))?;
        Ok(())
    }

    /// Takes a label away.
    ///
    /// # Errors
    /// If there is none, or it cannot be removed.
    pub async fn unlabel(&self, name: &ModelName, label: &Label) -> Result<(), FetchError> {
        let at = self.labels_of(name).below(label.as_str());
        let error = |error| FetchError::of(&at, &error);
        // Not every storage says so itself.
        at.store().head(at.at()).await.map_err(error)?;
        at.store().delete(at.at()).await.map_err(error)
    }

    fn labels_of(&self, name: &ModelName) -> Location {
        self.at.below(name.as_str()).below(LABELS)
    }
}
