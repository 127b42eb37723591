//! Who looks on while files come.

use std::time::Duration;

use crate::manifest::ManifestFile;

/// Is told what happens, on whatever thread it happens, and should be quick. All of it may be ignored.
pub trait Watch: Send + Sync {
    /// A file is begun with; every file of a manifest is, once, equal ones too. `here` bytes of it were there before. If that is all of it, nothing more is heard of it but its end.
    fn begun(&self, _file: &ManifestFile, _here: u64) {}

    /// Bytes of it have come.
    fn came(&self, _file: &ManifestFile, _bytes: u64) {}

    /// What has come of it, so many bytes with those that were there before, counts for nothing, and it begins anew.
    fn anew(&self, _file: &ManifestFile, _lost: u64, _why: &str) {}

    /// A request failed and is made again after a pause.
    fn again(&self, _file: &ManifestFile, _why: &str, _pause: Duration) {}

    /// Somebody else on this machine is fetching it; that is waited for.
    fn waiting(&self, _file: &ManifestFile) {}

    /// All of it has come, and its digest is right. So many bytes were hashed for that, more than it has where it came anew, and that took so long: time
    /// of the threads that hash, most of it while bytes come. Heard once of each file of which anything was fetched, before its end; equal ones are one.
    fn verified(&self, _file: &ManifestFile, _bytes: u64, _took: Duration) {}

    /// It is here, complete and verified.
    fn ended(&self, _file: &ManifestFile) {}
}

/// Nobody.
impl Watch for () {}

/// Whoever looks on, for files that have been counted as ended before: what happens is said, and nothing is counted twice: neither what comes
/// nor what is hashed.
pub(super) struct Again<'a>(pub(super) &'a dyn Watch);

impl Watch for Again<'_> {
    fn anew(&self, file: &ManifestFile, _: u64, why: &str) {
        self.0.anew(file, 0, why);
    }

    fn again(&self, file: &ManifestFile, why: &str, pause: Duration) {
        self.0.again(file, why, pause);
    }

    fn waiting(&self, file: &ManifestFile) {
        self.0.waiting(file);
    }
}
