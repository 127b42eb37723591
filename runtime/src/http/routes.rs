//! What the listeners answer at which path, as a list: so that a test can walk all of it, and a route without an entry there is found.

use std::sync::Arc;

use axum::Router;
use axum::routing::MethodRouter;
use outrigger_protocol::Operation;

use crate::config::Contract;

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
    /// The contract that it belongs to, which can be switched off.
    pub contract: Option<Contract>,
}

/// Every route of every listener.
pub fn routes() -> Vec<Route> {
    [score::routes(&Contract::ALL), observe::routes(), admin::routes()]
        .into_iter()
        .flat_map(|routes| routes.list)
        .collect()
}

/// The routes of a listener while they are put together.
pub(super) struct Routes {
    listener: &'static str,
    router: Router<Arc<Replica>>,
    list: Vec<Route>,
    /// Whose routes are added now.
    contract: Option<Contract>,
    /// The contracts that are spoken.
    spoken: Vec<Contract>,
}

impl Routes {
    pub(super) fn new(listener: &'static str) -> Self {
        Self::spoken(listener, &Contract::ALL)
    }

    /// Those of a listener that speaks only some of the contracts; the list has the others', too.
    pub(super) fn spoken(listener: &'static str, spoken: &[Contract]) -> Self {
        Self { listener, router: Router::new(), list: Vec::new(), contract: None, spoken: spoken.to_vec() }
    }

    /// Those of a contract follow.
    pub(super) fn of(self, contract: Contract) -> Self {
        Self { contract: Some(contract), ..self }
    }

    /// Adds one.
    pub(super) fn at(
        mut self,
        path: &'static str,
        operation: Operation,
        methods: MethodRouter<Arc<Replica>>,
    ) -> Self {
        let contract = self.contract;
        self.list.push(Route { listener: self.listener, path, operation, contract });
        if contract.is_some_and(|contract| !self.spoken.contains(&contract)) {
            return self;
        }
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
