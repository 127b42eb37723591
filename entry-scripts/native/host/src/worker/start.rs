//! START, READY and FAILED.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What of START matters to a native worker.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Start {
    pub(super) app_root: PathBuf,
    pub(super) native: PathBuf,
    #[serde(default)]
    pub(super) args: Vec<String>,
    /// Longest payload that the runtime takes.
    pub(super) max_payload: u64,
    /// Bytes of chunks before the first CREDIT.
    #[serde(default)]
    pub(super) window: u64,
    /// Bodies of at least so many bytes go into regions; 0: none do.
    #[serde(default)]
    pub(super) region_threshold: u64,
    /// Most living regions of ours.
    #[serde(default)]
    pub(super) regions: u32,
}

/// What READY says.
#[derive(Debug, Serialize)]
pub(super) struct Ready<'a> {
    mode: &'static str,
    kind: &'static str,
    headers: &'static str,
    methods: Vec<&'static str>,
    python: &'static str,
    script: &'a Path,
    swagger: Option<()>,
    sample: Option<()>,
}

impl<'a> Ready<'a> {
    pub(super) fn new(start: &'a Start, methods: Vec<&'static str>) -> Self {
        Self {
            mode: "native",
            kind: "sync",
            headers: "all",
            methods,
            python: "",
            script: &start.native,
            swagger: None,
            sample: None,
        }
    }
}

/// What FAILED says.
#[derive(Debug, Serialize)]
pub(super) struct Failed<'a> {
    pub(super) phase: &'a str,
    pub(super) message: String,
    pub(super) traceback: &'a str,
}

/// Paths that are no UTF-8 are what could fail, and START, which is JSON, has none.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
