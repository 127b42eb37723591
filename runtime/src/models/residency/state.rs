//! Where a model is on its way to a device and back.

use serde::Serialize;

/// Whether a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Its files are here; it is loaded with the first call that needs it.
    OnDisk,
    /// It waits for its turn to be loaded.
    Queued,
    /// It is being loaded.
    Loading,
    /// It is tried with its samples.
    Warming,
    /// Calls can have it.
    Ready,
    /// It takes no calls any more, and leaves; its memory counts until it has left.
    Draining,
    /// It did not load.
    Failed,
}

impl ModelState {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::OnDisk, Self::Queued, Self::Loading, Self::Warming, Self::Ready, Self::Draining, Self::Failed];

    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OnDisk => "on_disk",
            Self::Queued => "queued",
            Self::Loading => "loading",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}
