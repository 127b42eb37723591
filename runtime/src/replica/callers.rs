//! Who calls, and what they may do.

use std::sync::PoisonError;
use std::time::Instant;

use outrigger_auth::{AuthError, Credentials, Grant, HeldKey, Issued, Keys, OfModel, Refusal};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;

use super::Replica;
use crate::config::Endpoint;
use crate::keys::KeyReport;
use crate::telemetry::{self, Phase};

impl Replica {
    /// The keys that there were at the start, once, for showing on a terminal those that were made then; `None` where none are needed. Nobody
    /// else keeps them.
    pub fn take_keys(&self) -> Option<Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it gives tokens itself.
    pub(crate) fn gives_tokens(&self) -> bool {
        self.config.tokens.as_ref().is_some_and(|tokens| tokens.local.is_some())
    }

    /// The public keys of the tokens that it gives; nothing where it gives none.
    pub(crate) fn token_keys(&self) -> Option<String> {
        self.tokens.as_ref()?.jwks()
    }

    /// The key that a request came with.
    ///
    /// # Errors
    /// [`Refusal::Unauthenticated`] where there is none that holds, be it that a certificate says who calls.
    pub(crate) fn held(&self, headers: &::http::HeaderMap) -> Result<HeldKey, Refusal> {
        self.policy.held(headers)
    }

    /// Gives a token for a key.
    ///
    /// # Errors
    /// `not_found` where none are given, `internal` without random numbers.
    pub(crate) fn issue_token(&self, grant: &Grant, key: &HeldKey) -> Result<Issued, CallError> {
        let issued = self.tokens.as_ref().and_then(|keeper| keeper.issue(grant.name(), key));
        issued.ok_or_else(aml::not_found)?.map_err(|_| {
            CallError::new(ErrorCode::Internal, "there are no random numbers to make a token of")
        })
    }

    /// What may be told of the keys that hold now; `None` where none are needed.
    pub(crate) fn key_report(&self) -> Option<KeyReport> {
        self.keeper.as_ref().map(|keeper| keeper.report())
    }

    /// Whether the caller may do this; asked of the operation and the model, never of a URL.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn ask<'m>(
        &self,
        credentials: Credentials<'_>,
        operation: Operation,
        model: impl Into<OfModel<'m>>,
    ) -> Result<Grant, Refusal> {
        let since = Instant::now();
        let asked = self.policy.ask_telling(credentials, operation, model, since, is_of);
        telemetry::spent(Phase::Auth, since);
        asked
    }

    /// Whether the caller may do this on any model at all, for those who do not know yet of which it is asked.
    ///
    /// # Errors
    /// [`Refusal`]: who calls is not known, or may not.
    pub(crate) fn check(&self, credentials: Credentials<'_>, operation: Operation) -> Result<(), Refusal> {
        let since = Instant::now();
        let checked = self.policy.check(credentials, operation, is_of);
        telemetry::spent(Phase::Auth, since);
        checked
    }

    /// The same on the admin listener. On a Unix socket the system has said who is there; over TCP a key is needed, also where scoring
    /// needs none.
    ///
    /// # Errors
    /// `unauthenticated`, `forbidden`.
    pub(crate) fn ask_admin(
        &self,
        credentials: Credentials<'_>,
        operation: Operation,
    ) -> Result<Grant, CallError> {
        let asked = match self.config.listen.admin {
            Endpoint::Unix(_) => self.policy.local(operation),
            Endpoint::Tcp(_) => self.ask(credentials, operation, None),
        };
        asked.map_err(|refusal| {
            if let Some(error) = refusal.unknown() {
                self.refuses(error, operation);
            }
            refusal.into()
        })
    }

    /// Nobody knows who calls. That is told in the log, and who calls is told in part at most.
    pub(crate) fn refuses(&self, error: AuthError, operation: Operation) {
        // The request's own line says why; where it has none, or does not, this one does.
        let told = telemetry::with(|passage| {
            passage.is_refused(error);
            passage.asked().is_some() && passage.telemetry().tells_why()
        });
        if told != Some(true) {
            let (reason, operation) = (error.reason(), operation.as_str());
            tracing::info!(reason, operation, "refused, as nobody knows who calls");
        }
    }
}

/// The request that is being worked on is this caller's.
fn is_of(caller: &str) {
    telemetry::with(|passage| passage.is_of(caller));
}
