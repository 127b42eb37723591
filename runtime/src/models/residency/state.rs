//! Where a model is on its way to a device and back.

use serde::Serialize;

/// Whether a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// It is known where its files are; they are fetched with the first call that needs it.
    Registered,
    /// Its files are being fetched.
    Fetching,
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
    pub const ALL: [Self; 9] = [
        Self::Registered,
        Self::Fetching,
        Self::OnDisk,
        Self::Queued,
        Self::Loading,
        Self::Warming,
        Self::Ready,
        Self::Draining,
        Self::Failed,
    ];

    /// Whether it is on its way to calls.
    pub const fn is_under_way(self) -> bool {
        matches!(self, Self::Fetching | Self::Queued | Self::Loading | Self::Warming)
    }

    /// How near it is to calls: what is less is further.
    pub(super) const fn rank(self) -> u8 {
        match self {
            Self::Failed => 0,
            Self::Draining => 1,
            Self::Registered => 2,
            Self::OnDisk => 3,
            Self::Fetching => 4,
            Self::Queued => 5,
            Self::Loading => 6,
            Self::Warming => 7,
            Self::Ready => 8,
        }
    }

    /// Whether nothing is done about it, so that it may be taken away.
    pub(super) const fn is_at_rest(self) -> bool {
        matches!(self, Self::Registered | Self::OnDisk | Self::Failed)
    }

    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Fetching => "fetching",
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
