//! A session, and what its provider does around its beginning and its end.

use std::sync::Arc;

use crate::editor::AnySession;
use crate::provider::Provider;
use crate::runtime::Runtime;

/// Who is told of changes.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) runtime: &'static Runtime,
}

impl Told {
    fn begin(&self) {
        if let Some(recordings) = self.provider.recordings() {
            recordings.enter();
        }
        self.provider.before_change();
        if let Some(turns) = self.provider.turns() {
            turns.take();
        }
    }

    fn end(&self) {
        if let Some(turns) = self.provider.turns() {
            turns.give_back();
        }
        self.provider.after_change(self.runtime);
        if let Some(recordings) = self.provider.recordings() {
            recordings.leave();
        }
    }
}

/// A session that tells its provider when it ends.
pub(crate) struct Kept {
    // The order of these three is the order of what happens at the end.
    _before: Before,
    session: AnySession,
    _after: After,
}

impl Kept {
    /// Makes a session.
    pub(crate) fn make<E>(told: &Told, make: impl FnOnce() -> Result<AnySession, E>) -> Result<Self, E> {
        told.begin();
        let after = After(told.clone());
        let session = make()?;
        drop(after);
        Ok(Self { _before: Before(told.clone()), session, _after: After(told.clone()) })
    }
}

impl std::ops::Deref for Kept {
    type Target = AnySession;

    fn deref(&self) -> &AnySession {
        &self.session
    }
}

struct Before(Told);

impl Drop for Before {
    fn drop(&mut self) {
        self.0.begin();
    }
}

struct After(Told);

impl Drop for After {
    fn drop(&mut self) {
        self.0.end();
    }
}
