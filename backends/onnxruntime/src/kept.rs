//! A session, and what its provider does around its beginning and its end.

use std::sync::Arc;

use ort::session::Session;

use crate::provider::Provider;
use crate::runtime::Runtime;

/// Who is told of changes.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) runtime: &'static Runtime,
}

/// A session that tells its provider when it ends.
pub(crate) struct Kept {
    // The order of these three is the order of what happens at the end.
    _before: Before,
    session: Session,
    _after: After,
}

impl Kept {
    /// Makes a session.
    pub(crate) fn make<E>(told: &Told, make: impl FnOnce() -> Result<Session, E>) -> Result<Self, E> {
        told.provider.before_change();
        let after = After(told.clone());
        let session = make()?;
        drop(after);
        Ok(Self { _before: Before(told.clone()), session, _after: After(told.clone()) })
    }
}

impl std::ops::Deref for Kept {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

struct Before(Told);

impl Drop for Before {
    fn drop(&mut self) {
        self.0.provider.before_change();
    }
}

struct After(Told);

impl Drop for After {
    fn drop(&mut self) {
        self.0.provider.after_change(self.0.runtime);
    }
}
