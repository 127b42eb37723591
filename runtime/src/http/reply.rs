//! What every answer shares: identifiers, versions, and how an error looks in each contract.

use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, header};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::ids::RequestIds;
use outrigger_protocol::operation::Operation;
use outrigger_protocol::{aml, headers, oip};

use crate::replica::Replica;

/// Whose errors look how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contract {
    /// `{"message"}`.
    Aml,
    /// `{"error"}`.
    Oip,
}

impl Contract {
    fn error(self, error: &CallError) -> http::Response<Bytes> {
        match self {
            Self::Aml => aml::encode_error(error),
            Self::Oip => oip::encode_error(error),
        }
    }
}

/// What a route comes to.
pub(super) type Answer = Result<Response, CallError>;

/// Answers a request: checks what holds for all of them (identifiers, the size of the header block), has `then` do the work, gives
/// the outcome the contract's form, and counts it.
pub(super) async fn answer(
    replica: &Replica,
    contract: Contract,
    operation: Operation,
    request: Request,
    then: impl AsyncFnOnce(&RequestIds, Parts, Body) -> Answer,
) -> Response {
    let begun = Instant::now();
    let (parts, body) = request.into_parts();
    let trace_id = parts.headers.get(headers::TRACE_ID).cloned();
    let (ids, result) = match RequestIds::from_headers(&parts.headers) {
        Err(error) => (Err(error.clone()), Err(error.into())),
        Ok(ids) => {
            let result = match check_size(&parts, replica.config.limits.header) {
                Ok(()) => then(&ids, parts, body).await,
                Err(error) => Err(error),
            };
            (Ok(ids), result)
        }
    };
    let code = result.as_ref().err().map(|error| error.code);
    let mut response = result.unwrap_or_else(|error| contract.error(&error).map(Body::from));
    let headers = response.headers_mut();
    match ids {
        Ok(ids) => ids.write(headers),
        Err(error) => error.write(headers),
    }
    headers.insert(headers::MS_SERVER_VERSION, headers::SERVER_VERSION);
    if let Some(trace_id) = trace_id {
        headers.insert(headers::TRACE_ID, trace_id);
    }
    replica.metrics.request(operation, code, begun.elapsed());
    response
}

/// The header block as HTTP/1.1 writes it: name, colon, space, value, line end.
fn check_size(parts: &Parts, limit: usize) -> Result<(), CallError> {
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
