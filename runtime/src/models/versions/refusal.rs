//! Why a version does not take another's place.

use std::path::PathBuf;

use outrigger_backend::chain;
use outrigger_protocol::error::{CallError, ErrorCode};

use super::named::NamedModel;
use crate::fetching::FetchingError;
use crate::models::ModelsError;

/// Longest text of others in a message, characters.
const SHOWN: usize = 100;

#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Fetching(#[from] FetchingError),
    #[error(transparent)]
    Models(#[from] ModelsError),
    #[error("it does not load: {0}")]
    Load(String),
    #[error("model `{0}` was not fetched, and is no folder of versions")]
    Alone(String),
    #[error("there is no `{}`", .0.display())]
    NoFolder(PathBuf),
    #[error("`{0}` is no version, and no label of one")]
    NoVersion(String),
    #[error("its model.toml says that it is version `{0}`, which is another one, or a label")]
    Taken(String),
    #[error("there are {0} versions of it already (rollout.versions); take a label from one of them")]
    TooMany(usize),
    #[error("another version has been asked for meanwhile")]
    Overtaken,
    #[error("it was broken off")]
    Broken(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Refusal {
    /// As whoever asked hears it.
    pub(super) fn into_error(self, named: &NamedModel, which: &str) -> CallError {
        let missing = matches!(&self, Self::Fetching(error) if error.is_not_found());
        let code = match &self {
            Self::Call(error) => return error.clone(),
            Self::NoFolder(_) | Self::NoVersion(_) => ErrorCode::ModelNotFound,
            _ if missing => ErrorCode::ModelNotFound,
            _ => ErrorCode::Conflict,
        };
        let (which, why) = (shown(which), chain(&self));
        CallError::new(code, format!("version `{which}` of model `{}` does not serve: {why}", named.name))
    }
}

/// The beginning of a text.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
