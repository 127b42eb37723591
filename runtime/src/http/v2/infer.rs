//! `POST /v2/models/{model}/infer`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::{HeaderMap, Method};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::headers;
use outrigger_protocol::oip;
use outrigger_protocol::operation::Operation;

use super::super::infer::{Asked, held};
use super::super::openapi::paths;
use super::super::pieces::Pieces;
use super::super::routes::Routes;
use super::super::wish::Wish;
use super::super::{model, tensors};
use super::{NamePath, of_model};
use crate::apart::apart;
use crate::replica::Replica;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.at("/v2/models/{model}/infer", Operation::Infer, any(infer), paths::infer).at(
        "/v2/models/{model}/versions/{version}/infer",
        Operation::Infer,
        any(infer),
        paths::infer,
    )
}

async fn infer(State(replica): State<Arc<Replica>>, path: NamePath, request: Request) -> Response {
    of_model(&replica, Operation::Infer, path, request, Method::POST, async |_, grant, path, parts, body| {
        let (serving, model) = model::find(&replica, &grant, &path.name, path.which.as_deref())?;
        let wish = Wish::of(&parts.headers)?;
        let json_length = json_length(&parts.headers)?;
        let body = tensors::read(&replica, &parts.headers, body, json_length).await?;
        let size = body.len();
        let which = path.which.as_deref();
        let asked = Asked { replica: &replica, grant: &grant, serving, model, which, wish, size };
        let inferred = asked
            .run(|info, regions| {
                let request = oip::Request { body: &body, json_length };
                let text = json_length.unwrap_or(size);
                apart(text, || oip::parse_infer(request, info, &replica.tensor_limits, regions))
            })
            .await?;
        drop(body);
        let notes = inferred.notes();
        let encoded = inferred.write(oip::encode_infer)?;
        let pieces = Pieces::body(held(&replica, encoded.pieces), None);
        let mut response = oip::encode_ok(encoded.json_length).map(|()| pieces);
        notes.put(response.headers_mut());
        Ok(response)
    })
    .await
}

/// How many bytes of the body are JSON, where the request says so.
fn json_length(request: &HeaderMap) -> Result<Option<usize>, CallError> {
    let Some(value) = request.get(headers::INFERENCE_HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || {
        let text = format!("the header `{}` takes a number of bytes", headers::INFERENCE_HEADER_LENGTH);
        CallError::new(ErrorCode::BadRequest, text)
    };
    length.ok_or_else(wrong).map(Some)
}
