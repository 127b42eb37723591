//! `POST /v2/models/{model}/infer`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, Method};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::headers;
use outrigger_protocol::oip;
use outrigger_protocol::operation::Operation;

use super::super::infer::{Asked, held};
use super::super::inflate::{self, Coding};
use super::super::openapi::paths;
use super::super::pieces::Pieces;
use super::super::routes::Routes;
use super::super::wish::Wish;
use super::super::{body, model};
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
        let limits = &replica.config.limits;
        let coding = Coding::of(&parts.headers, &CONTENT_ENCODING)?;
        let json_length = json_length(&parts.headers)?;
        // What lies behind the JSON is used where it is read to, so it is read to where a model can use it.
        let aligned = json_length.filter(|_| coding == Coding::Identity);
        let read = body::read_aligned(body, limits, &replica.busy, aligned).await?;
        let (body, reserved) = inflate::inflated(coding, read, limits, &replica.busy)?;
        let body = body::kept(body, reserved);
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
        let device = inferred.device();
        let encoded = inferred.write(oip::encode_infer)?;
        let pieces = Pieces::body(held(&replica, encoded.pieces), None);
        let mut response = oip::encode_ok(encoded.json_length).map(|()| pieces);
        if let Some(device) = device {
            response.headers_mut().insert(headers::DEVICE, device);
        }
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
