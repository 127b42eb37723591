//! What the listeners answer at which path, as a list: so that a test can walk all of it, and a route without an entry there is found.

use std::sync::Arc;

use axum::Router;
use axum::routing::MethodRouter;
use outrigger_protocol::Operation;

use crate::config::Contract;

use super::openapi::Describe;
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

/// A route, and what describes it.
#[derive(Clone, Copy)]
pub(super) struct Described {
    pub(super) route: Route,
    pub(super) describe: Describe,
}

/// Every route of every listener.
pub fn routes() -> Vec<Route> {
    [score::routes(None), observe::routes(None), admin::routes(None)]
        .into_iter()
        .flat_map(|routes| routes.list)
        .map(|described| described.route)
        .collect()
}

/// The routes of a listener while they are put together.
pub(super) struct Routes {
    listener: &'static str,
    router: Router<Arc<Replica>>,
    list: Vec<Described>,
    /// Those of them that are served.
    served: Vec<Described>,
    /// Whose routes are added now.
    contract: Option<Contract>,
    /// Whether they are served.
    on: bool,
    /// The contracts that are spoken.
    spoken: Vec<Contract>,
}

impl Routes {
    pub(super) fn new(listener: &'static str) -> Self {
        Self::spoken(listener, &Contract::ALL)
    }

    /// Those of a listener that speaks only some of the contracts; the list has the others', too.
    pub(super) fn spoken(listener: &'static str, spoken: &[Contract]) -> Self {
        let (list, served) = (Vec::new(), Vec::new());
        Self {
            listener,
            router: Router::new(),
            list,
            served,
            contract: None,
            on: true,
            spoken: spoken.to_vec(),
        }
    }

    /// Those of a contract follow.
    pub(super) fn of(self, contract: Contract) -> Self {
        let on = self.spoken.contains(&contract);
        Self { contract: Some(contract), on, ..self }
    }

    /// Those of no contract follow, which are served or not; the list has them all the same.
    pub(super) fn when(self, on: bool) -> Self {
        Self { contract: None, on, ..self }
    }

    /// Adds one, with what describes it.
    pub(super) fn at(
        mut self,
        path: &'static str,
        operation: Operation,
        methods: MethodRouter<Arc<Replica>>,
        describe: Describe,
    ) -> Self {
        let route = Route { listener: self.listener, path, operation, contract: self.contract };
        self.list.push(Described { route, describe });
        if !self.on {
            return self;
        }
        self.served.push(Described { route, describe });
        #[expect(clippy::disallowed_methods, reason = "the one place that lists what it adds")]
        let router = self.router.route(path, methods);
        Self { router, ..self }
    }

    /// What has been added and is served.
    pub(super) fn served(&self) -> Arc<[Described]> {
        self.served.as_slice().into()
    }

    /// The router, which lacks its fallback.
    pub(super) fn router(self) -> Router<Arc<Replica>> {
        self.router
    }
}
