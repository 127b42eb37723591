//! What every answer shares: identifiers, versions, and how an error looks in each contract.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderValue, header};
use outrigger_auth::{Credentials, Grant, HeldKey, OfModel, PeerCertificate, Permit, Refusal};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::ids::RequestIds;
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{aml, grpc, headers, oip};

use super::cors::Cors;
use super::entire::entire;
use super::grpc::is_stream;
use super::orca;
use super::passing::Peer;
use super::permit::until_complete;
use crate::collection::Tap;
use crate::config::Contract;
use crate::replica::Replica;
use crate::telemetry::{self, Answered, Asked, asks_for_timing};

/// The most headers of a request. Hyper refuses more over HTTP/1.1 by itself; over HTTP/2 it counts none.
const MAX_HEADERS: usize = 100;

/// What an error looks like.
fn error_in(contract: Contract, error: &CallError) -> http::Response<Bytes> {
    match contract {
        Contract::Aml | Contract::Sagemaker => aml::encode_error(error),
        Contract::Oip | Contract::Vertex => oip::encode_error(error),
        Contract::Grpc | Contract::Tensorflow => grpc::encode_error(error),
    }
}

/// What a route comes to.
pub(super) type Answer = Result<Response, CallError>;

/// What a route asks the policy through, so that it asks for the operation that is counted, and so that the caller's place is
/// taken until the answer is complete.
pub(super) struct Gate<'a> {
    replica: &'a Replica,
    operation: Operation,
    /// Of the request's connection.
    certificate: Option<Arc<PeerCertificate>>,
    permit: OnceLock<Permit>,
    /// Where calls are collected.
    tap: Option<&'a Tap>,
}

impl Gate<'_> {
    /// Whether the caller may do what the route does, with `model` where it is about one. Asked once, before the body is read.
    pub(super) fn ask<'m>(
        &self,
        headers: &HeaderMap,
        model: impl Into<OfModel<'m>>,
    ) -> Result<Grant, CallError> {
        self.ask_for(self.operation, headers, model)
    }

    /// Whether the caller may do that at all, asked before the body is read where that says which model is meant. [`Gate::ask`] follows.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), CallError> {
        self.check_for(self.operation, headers)
    }

    /// The same of another operation, where what a route does is found out only then.
    pub(super) fn check_for(&self, operation: Operation, headers: &HeaderMap) -> Result<(), CallError> {
        self.replica.check(self.credentials(headers), operation).map_err(|refusal| self.refuse(refusal))
    }

    /// The key that a request came with, for what only who has one gets.
    pub(super) fn held(&self, headers: &HeaderMap) -> Result<HeldKey, CallError> {
        self.replica.held(headers).map_err(|refusal| self.refuse(refusal))
    }

    fn refuse(&self, refusal: Refusal) -> CallError {
        if let Some(error) = refusal.unknown() {
            self.replica.refuses(error, self.operation);
        }
        refusal.into()
    }

    /// The same for what it does beside that.
    pub(super) fn ask_for<'m>(
        &self,
        operation: Operation,
        headers: &HeaderMap,
        model: impl Into<OfModel<'m>>,
    ) -> Result<Grant, CallError> {
        let (model, credentials) = (model.into(), self.credentials(headers));
        let asked = self.replica.ask(credentials, operation, model);
        let grant = asked.map_err(|refusal| self.refuse(refusal))?;
        if let Some(tap) = self.tap {
            tap.allow(model);
        }
        if let Some(permit) = grant.permit() {
            // A second place would be held by the second grant itself.
            let _ = self.permit.set(permit);
        }
        Ok(grant)
    }

    fn credentials<'c>(&'c self, headers: &'c HeaderMap) -> Credentials<'c> {
        Credentials { headers, certificate: self.certificate.as_deref() }
    }
}

/// The certificate that was shown on a request's connection.
pub(super) fn certificate_of(extensions: &Extensions) -> Option<Arc<PeerCertificate>> {
    extensions.get::<Arc<PeerCertificate>>().cloned()
}

/// Answers a request: checks what holds for all of them (identifiers, the size of the header block), has `then` do the work, gives
/// the outcome the contract's form, and counts it.
pub(super) async fn answer(
    replica: &Replica,
    contract: Contract,
    operation: Operation,
    request: Request,
    then: impl AsyncFnOnce(&Gate<'_>, &RequestIds, Parts, Body) -> Answer,
) -> Response {
    // It is one's own where a route is tried without a server.
    let begun = telemetry::with(|passage| passage.begun()).unwrap_or_else(Instant::now);
    let (parts, body) = request.into_parts();
    let trace_id = parts.headers.get(headers::TRACE_ID).cloned();
    let cors = Cors::of(&replica.config.score.cors_origins, &parts.method, &parts.headers);
    let (method, uri, version) = (parts.method.clone(), parts.uri.clone(), parts.version);
    let timing = asks_for_timing(replica.config.telemetry.timing, &parts.headers);
    let load = orca::wanted(replica, operation, &parts);
    let ids = RequestIds::from_headers(&parts.headers);
    let collecting = replica.collecting().filter(|_| operation.work() && !is_stream(parts.uri.path()));
    let tap = collecting.zip(ids.as_ref().ok());
    let tap = tap.and_then(|(collecting, ids)| Tap::new(collecting, &parts, ids.request_value(), begun));
    let certificate = certificate_of(&parts.extensions);
    let gate = Gate { replica, operation, certificate, permit: OnceLock::new(), tap: tap.as_ref() };
    telemetry::with(|passage| {
        let id = ids.as_ref().ok().map(|ids| ids.request_value().clone());
        let client_id = ids.as_ref().ok().and_then(|ids| ids.client_request_id().cloned());
        let route = parts.extensions.get::<MatchedPath>().cloned();
        let is_encrypted = parts.extensions.get::<Peer>().is_some_and(|peer| peer.is_encrypted);
        passage.asks(Asked { operation, method, uri, version, is_encrypted, route, id, client_id });
        passage.belongs(&parts.headers, operation);
    });
    let (ids, result) = match ids {
        // There, a URL that is not known is refused before anything else is looked at.
        Err(error) if replica.config.compat && operation == Operation::Nowhere => {
            (Err(error), Err(aml::not_found()))
        }
        Err(error) => (Err(error.clone()), Err(error.into())),
        Ok(ids) => {
            let result = match check_size(&parts, replica.config.limits.header) {
                Ok(()) => {
                    let mut body = entire(body, parts.version);
                    if let Some(tap) = &tap {
                        body = tap.request(body);
                    }
                    then(&gate, &ids, parts, body).await
                }
                Err(error) => Err(error),
            };
            (Ok(ids), result)
        }
    };
    let permit = gate.permit.into_inner().filter(|_| result.is_ok());
    let code = result.as_ref().err().map(|error| error.code);
    // The system that we succeed refuses these before its own code is reached, which would add the headers.
    let bare = replica.config.compat && result.as_ref().is_err_and(is_frameworks);
    let mut response = result.unwrap_or_else(|error| error_in(contract, &error).map(Body::from));
    if !bare {
        let headers = response.headers_mut();
        match &ids {
            Ok(ids) => ids.write(headers),
            Err(error) => error.write(headers),
        }
        if let Some(version) = &replica.config.score.server_version {
            headers.insert(headers::MS_SERVER_VERSION, version.clone());
        }
        if let Some(trace_id) = trace_id {
            headers.insert(headers::TRACE_ID, trace_id);
        }
        if let Some(cors) = cors {
            cors.write(headers);
        }
        if let Some(format) = load.filter(|_| orca::may_tell(code)) {
            outrigger_protocol::orca::write(headers, format, &replica.busy.snapshot());
        }
    }
    if let Some(tap) = tap {
        let model = telemetry::with(|passage| passage.model().map(Arc::from)).flatten();
        response = tap.response(response, model, code).await;
    }
    // The caller's place is taken for as long as the end of its answer waits to be kept, too.
    response = until_complete(response, permit);
    let at = Instant::now();
    telemetry::with(|passage| {
        if timing && !bare {
            passage.write_timing(response.headers_mut());
        }
        let length = http_body::Body::size_hint(response.body()).exact();
        passage.is_answered(Answered { status: response.status(), code, length, at });
    });
    replica.metrics.request(operation, code, at - begun);
    response
}

/// Whether an error is one that the framework of the system that we succeed answers by itself.
fn is_frameworks(error: &CallError) -> bool {
    error.message == aml::NOT_FOUND || error.message == aml::METHOD_NOT_ALLOWED_FOR_URL
}

/// The header block as HTTP/1.1 writes it: name, colon, space, value, line end.
fn check_size(parts: &Parts, limit: usize) -> Result<(), CallError> {
    if parts.headers.len() > MAX_HEADERS {
        let text = format!("there are more than {MAX_HEADERS} headers");
        return Err(CallError::new(ErrorCode::HeaderTooLarge, text));
    }
    let size: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let uri = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if size + uri > limit {
        let text = format!("URL and headers are larger than limits.header, {limit} bytes");
        return Err(CallError::new(ErrorCode::HeaderTooLarge, text));
    }
    Ok(())
}

/// 405 with the methods that there are.
pub(super) fn method_not_allowed(text: &'static str) -> CallError {
    CallError::new(ErrorCode::MethodNotAllowed, text)
}

/// A plain answer.
pub(super) fn plain(content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(Body::from(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
