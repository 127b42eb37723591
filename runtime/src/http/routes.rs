//! What the listeners answer at which path, as a list: so that a test can walk all of it, and a route without an entry there is found.

use std::sync::Arc;

use axum::Router;
use axum::routing::MethodRouter;
use outrigger_protocol::Operation;

use super::{admin, observe, score};
use crate::replica::Replica;

/// A path, and the operation that a request there asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// `score`, `observe` or `admin`.
    pub listener: &'static str,
    /// The path, with `{names}` for what varies.
    pub path: &'static str,
    /// What is asked of the policy there.
    pub operation: Operation,
}

/// Every route of every listener.
pub fn routes() -> Vec<Route> {
    [score::routes(), observe::routes(), admin::routes()].into_iter().flat_map(|routes| routes.list).collect()
}

/// The routes of a listener while they are put together.
pub(super) struct Routes {
    listener: &'static str,
    router: Router<Arc<Replica>>,
    list: Vec<Route>,
}

impl Routes {
    pub(super) fn new(listener: &'static str) -> Self {
        Self { listener, router: Router::new(), list: Vec::new() }
    }

    /// Adds one.
    pub(super) fn at(
        mut self,
        path: &'static str,
        operation: Operation,
        methods: MethodRouter<Arc<Replica>>,
    ) -> Self {
        self.list.push(Route { listener: self.listener, path, operation });
        #[expect(clippy::disallowed_methods, reason = "the one place that lists what it adds")]
        let router = self.router.route(path, methods);
        Self { router, ..self }
    }

    /// What has been added.
    pub(super) fn list(&self) -> Vec<Route> {
        self.list.clone()
    }

    /// The router, which lacks its fallback.
    pub(super) fn router(self) -> Router<Arc<Replica>> {
        self.router
    }
}
