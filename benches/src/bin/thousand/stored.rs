//! Azurite with a registry of all models, and the folder in which replicas keep what they fetched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use outrigger_store::registry::{LocalModel, Push, Version};
use outrigger_store::{Location, ModelName, Registry};
use outrigger_testkit::Launch;
use outrigger_testkit::storage::Azurite;
use tokio::task::JoinSet;

use crate::configuration;
use crate::models::{self, Model};
use crate::options::{Load, Options};
use crate::replica::launch;

/// Models that are pushed at once.
const AT_ONCE: usize = 4;

/// A registry.
pub(crate) struct Stored {
    azurite: Azurite,
    registry: Registry,
    folder: PathBuf,
    pub(crate) models: Vec<Model>,
    /// Bytes of all files.
    pub(crate) size: u64,
    pub(crate) pushing: Duration,
}

impl Stored {
    /// Starts the storage, and pushes every model; `folder` is for whatever lies on disk.
    pub(crate) async fn fill(options: &Options, folder: &Path) -> anyhow::Result<Self> {
        Azurite::available().map_err(anyhow::Error::msg)?;
        let azurite = Azurite::start();
        azurite.create_container("models");
        let environment = azurite.environment().into_iter().collect();
        let registry = Registry::new(Location::open(configuration::REGISTRY, Path::new("/"), &environment)?);
        let models = models::models(options.models, options.megabytes, options.seed);
        let begun = Instant::now();
        let (mut size, mut pushes) = (0, JoinSet::new());
        for model in &models {
            if pushes.len() == AT_ONCE {
                size += pushed(&mut pushes).await?;
            }
            pushes.spawn(push(registry.clone(), model.clone(), folder.join(&model.name)));
        }
        while !pushes.is_empty() {
            size += pushed(&mut pushes).await?;
        }
        let pushing = begun.elapsed();
        println!(
            "{} models, {:.1} MB, pushed in {:.1} s",
            models.len(),
            size as f64 / 1e6,
            pushing.as_secs_f64()
        );
        Ok(Self { azurite, registry, folder: folder.to_owned(), models, size, pushing })
    }

    /// A replica of all of them, to be started.
    pub(crate) fn replica(&self, load: Load, memory: Option<u64>) -> anyhow::Result<Launch> {
        let text = configuration::registered(&self.folder, self.models.len(), load, memory);
        let launch = launch(text)?;
        Ok(self
            .azurite
            .environment()
            .into_iter()
            .fold(launch, |launch, (name, value)| launch.env(name, value)))
    }

    /// Has all manifests come by one request.
    pub(crate) async fn index(&self) -> anyhow::Result<()> {
        let indexed = self.registry.index().await?.context("it is not a folder")?;
        anyhow::ensure!(indexed.models == self.models.len(), "{indexed:?}");
        Ok(())
    }

    /// Has replicas begin with nothing. What they have fetched is put aside and not removed: ext4 without a journal takes long to find a place for a new file
    /// where many were removed just before.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        let aside = self.folder.join("aside");
        std::fs::create_dir_all(&aside)?;
        for name in ["cache", "root"] {
            let (path, count) = (self.folder.join(name), std::fs::read_dir(&aside)?.count());
            if path.exists() {
                std::fs::rename(&path, aside.join(count.to_string()))
                    .with_context(|| path.display().to_string())?;
            }
        }
        // Where models are laid out is looked for, and not made.
        Ok(std::fs::create_dir(self.folder.join("root"))?)
    }
}

async fn pushed(pushes: &mut JoinSet<anyhow::Result<u64>>) -> anyhow::Result<u64> {
    pushes.join_next().await.context("no push is under way")??
}

/// Pushes a model by way of a file, and returns how many bytes it has.
async fn push(registry: Registry, model: Model, file: PathBuf) -> anyhow::Result<u64> {
    let name = ModelName::new(model.name.clone())?;
    let at = file.clone();
    let model = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        std::fs::create_dir(&at)?;
        std::fs::write(at.join("model.onnx"), model.bytes())?;
        Ok(LocalModel::read(&at)?)
    });
    let push = Push {
        name,
        version: Version::Exactly(1),
        description: String::new(),
        tags: BTreeMap::new(),
        model: model.await??,
        unpack: false,
        key: None,
    };
    let manifest = registry.push(push, Arc::new(())).await?;
    std::fs::remove_dir_all(&file)?;
    Ok(manifest.size())
}
