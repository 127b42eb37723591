//! Why models cannot be served.

use std::path::PathBuf;

use outrigger_backend::BackendError;

use super::{NotBatchable, PluginError};
use crate::placement::{DeviceId, Unplaced};

/// Why models cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelsError {
    /// The backend's library is not there, or has no device.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// Models have no place.
    #[error("{}", no_place(.0))]
    NoPlace(Vec<Unplaced>),
    /// Two devices do not make the same of a model's file.
    #[error("model `{name}` has other inputs or outputs on {other} than on {first}")]
    Differs {
        /// The model.
        name: String,
        /// A device.
        first: DeviceId,
        /// Another one.
        other: DeviceId,
    },
    /// A model's file does not load.
    #[error("model `{name}` ({path}) does not load")]
    Load {
        /// The model.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: BackendError,
    },
    /// A model is said to batch and cannot.
    #[error(
        "`models.{name}.max_batch` is {max_batch}, and model `{name}` cannot run several calls at once: {reason}; set max_batch = 1, or export the model with a free first dimension, the rows, in every input and output"
    )]
    Batch {
        /// The model.
        name: String,
        /// What was asked for.
        max_batch: usize,
        /// Why it cannot.
        reason: Box<NotBatchable>,
    },
    /// A model's manifest is wrong, or not what the model is.
    #[error("{path}: {problem}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An ensemble's graph is wrong, or does not go with its models.
    #[error("{path}: {problem}")]
    Graph {
        /// The graph.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The models of an ensemble are more than devices hold.
    #[error("ensemble `{name}`: its models have no place beside each other: {}", no_place(.unplaced))]
    Together {
        /// The ensemble.
        name: String,
        /// Those that have none.
        unplaced: Vec<Unplaced>,
    },
    /// A model does not do with a sample what its manifest says.
    #[error("model `{name}` on {device}: sample {sample}: {problem}")]
    Sample {
        /// The model.
        name: String,
        /// The device.
        device: String,
        /// The sample's request.
        sample: String,
        /// What is wrong.
        problem: String,
    },
    /// A model's directory holds no file that could be it.
    #[error(
        "model `{name}`: {path} holds not exactly one model file; name it by `path`, or by `file` in its model.toml"
    )]
    NoFile {
        /// The model.
        name: String,
        /// Its directory.
        path: PathBuf,
    },
    /// The model directory cannot be read.
    #[error("directory {path} cannot be read")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing to serve.
    #[error("model_dir `{0}` holds no model file and there is no script")]
    Nothing(PathBuf),
    /// More models than allowed.
    #[error("{found} models found, limits.models is {limit}")]
    TooMany {
        /// Found.
        found: usize,
        /// Allowed.
        limit: usize,
    },
    /// Two files would be served under one name.
    #[error("two files for model `{name}`: {first} and {second}")]
    Twice {
        /// The model.
        name: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A model that came later is where no model was to be expected.
    #[error("model `{name}` would be on {device}, which no model that there was at the start may be on")]
    Unused {
        /// The model.
        name: String,
        /// The device.
        device: String,
    },
    /// There are no devices.
    #[error("there was no model at the start, and there are no devices")]
    NoDevices,
    /// A thread cannot be started.
    #[error("cannot start a thread for models")]
    Thread(#[source] std::io::Error),
}

/// So many models are named.
const SHOWN: usize = 10;

fn no_place(unplaced: &[Unplaced]) -> String {
    let mut models: Vec<&Unplaced> = Vec::new();
    for one in unplaced {
        if models.iter().all(|known| known.model != one.model) {
            models.push(one);
        }
    }
    let shown = models.iter().take(SHOWN).map(|one| {
        let tried: Vec<_> = one.tried.iter().map(ToString::to_string).collect();
        let copy = if one.instance == 0 { String::new() } else { format!("copy {} of ", one.instance + 1) };
        format!("{copy}model `{}` has no place: {}", one.model, tried.join("; "))
    });
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if models.len() > SHOWN {
        text.push_str(&format!("; and {} more", models.len() - SHOWN));
    }
    text
}
