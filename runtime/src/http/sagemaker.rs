//! SageMaker's routes: `/ping`, `/invocations`, and those of a multi-model container.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Method, StatusCode};
use outrigger_auth::OfModel;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use outrigger_protocol::sagemaker::{self, Form, Model, ModelList};
use outrigger_protocol::{aml, oip, rows};
use serde::Deserialize;

use super::infer::{Asked, held};
use super::openapi::paths;
use super::pieces::Pieces;
use super::reply::{Answer, Gate, answer, method_not_allowed, plain};
use super::routes::Routes;
use super::wish::Wish;
use super::{body, model, score, tensors};
use crate::apart::apart;
use crate::config::Contract;
use crate::replica::Replica;

/// Models on a page of which the size is not said.
const PAGE: usize = 100;

/// The routes.
pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .of(Contract::Sagemaker)
        .at("/ping", Operation::Health, any(ping), paths::ping)
        .at("/invocations", Operation::Score, any(invocations), paths::invocations)
        .at("/models", Operation::ModelMetadata, any(models), paths::loaded)
        .at("/models/{model}", Operation::ModelMetadata, any(one), paths::loaded_one)
        .at("/models/{model}/invoke", Operation::Infer, any(invoke), paths::invoke)
}

fn wrong_method() -> CallError {
    method_not_allowed(aml::METHOD_NOT_ALLOWED_FOR_URL)
}

async fn ping(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Sagemaker, Operation::Health, request, async |_, _, parts, _| {
        match parts.method {
            Method::GET | Method::HEAD if replica.is_ready() => Ok(plain("text/plain", "")),
            Method::GET | Method::HEAD => {
                let reason = replica.not_ready_because().unwrap_or_default();
                Err(CallError::new(ErrorCode::NotReady, reason))
            }
            _ => Err(wrong_method()),
        }
    })
    .await
}

/// A call of the script, or of the server behind, where there is one; else of a model.
async fn invocations(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Sagemaker, Operation::Score, request, async |gate, ids, parts, body| {
        if parts.method != Method::POST {
            return Err(wrong_method());
        }
        if replica.has_lane() {
            return score::answer_score(&replica, gate, ids, parts, body).await;
        }
        gate.check_for(Operation::Infer, &parts.headers)?;
        let name = model::name_or_default(&replica, None)?;
        call(&replica, gate, &name, parts, body).await
    })
    .await
}

async fn invoke(
    State(replica): State<Arc<Replica>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    answer(&replica, Contract::Sagemaker, Operation::Infer, request, async |gate, _, parts, body| {
        if parts.method != Method::POST {
            return Err(wrong_method());
        }
        let Ok(Path(name)) = path else {
            gate.ask(&parts.headers, None)?;
            return Err(no_name());
        };
        call(&replica, gate, &name, parts, body).await
    })
    .await
}

fn no_name() -> CallError {
    CallError::new(ErrorCode::ModelNotFound, "the model's name is not UTF-8")
}

/// A call of a model, by tensors or by instances.
async fn call(replica: &Replica, gate: &Gate<'_>, name: &str, parts: Parts, body: Body) -> Answer {
    let grant = gate.ask_for(Operation::Infer, &parts.headers, Some(name))?;
    let (serving, model) = model::find(replica, &grant, name, None)?;
    let wish = Wish::of(&parts.headers)?;
    let json_length = match Form::of(parts.headers.get(CONTENT_TYPE))? {
        Form::Json => None,
        Form::Binary(length) => Some(length),
    };
    let body = tensors::read(replica, &parts.headers, body, json_length).await?;
    let size = body.len();
    let by_rows = json_length.is_none() && apart(size, || sagemaker::has_instances(&body));
    let asked = Asked { replica, grant: &grant, serving, model, which: None, wish, size };
    let inferred = asked
        .run(|info, regions| {
            let text = json_length.unwrap_or(size);
            apart(text, || match by_rows {
                true => rows::parse_instances(&body, info, &replica.tensor_limits),
                false => {
                    let request = oip::Request { body: &body, json_length };
                    oip::parse_infer(request, info, &replica.tensor_limits, regions)
                }
            })
        })
        .await?;
    let notes = inferred.notes();
    let mut response = if by_rows {
        let predictions = inferred.write(rows::encode_predictions)?;
        plain("application/json", replica.busy.hold(predictions))
    } else {
        let encoded = inferred.write(oip::encode_infer)?;
        let mut response = Response::new(Pieces::body(held(replica, encoded.pieces), None));
        Form::write(response.headers_mut(), encoded.json_length);
        response
    };
    notes.put(response.headers_mut());
    Ok(response)
}

/// What is to be loaded.
#[derive(Deserialize, schemars::JsonSchema)]
pub(super) struct Load {
    model_name: String,
}

/// The models that are loaded, or one more of them. Where its files are stands in the replica's configuration: a URL that is sent along is
/// not looked at.
async fn models(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Contract::Sagemaker, Operation::ModelMetadata, request, async |gate, _, parts, body| {
        match parts.method {
            Method::GET | Method::HEAD => {
                let grant = gate.ask(&parts.headers, OfModel::AskedLater)?;
                let query = parts.uri.query().unwrap_or_default();
                let after = score::query_value(query, "next_page_token").unwrap_or_default();
                let mut loaded = model::loaded_after(&replica, &grant, &after)?;
                let page: Vec<_> = loaded.by_ref().take(PAGE).map(shown).collect();
                let more = loaded.next().is_some();
                let next_page_token = page.last().filter(|_| more).map(|model| model.model_name.clone());
                Ok(axum::Json(ModelList { models: page, next_page_token }).into_response())
            }
            Method::POST => {
                let grant = gate.ask_for(Operation::ModelControl, &parts.headers, OfModel::AskedLater)?;
                let body = body::read_small(body, &replica.config.limits).await?;
                let Load { model_name } = serde_json::from_slice(&body).map_err(|error| {
                    let text = format!("the body is JSON such as {{\"model_name\": \"digits\"}}: {error}");
                    CallError::new(ErrorCode::BadRequest, text)
                })?;
                if model::is_loaded(&replica, &grant, &model_name)? {
                    return Err(CallError::new(ErrorCode::Conflict, "the model is loaded already"));
                }
                model::load(&replica, &grant, &parts.headers, &model_name, None).await?;
                Ok(StatusCode::OK.into_response())
            }
            _ => Err(wrong_method()),
        }
    })
    .await
}

async fn one(
    State(replica): State<Arc<Replica>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    answer(&replica, Contract::Sagemaker, Operation::ModelMetadata, request, async |gate, _, parts, _| {
        let name = path.as_ref().ok().map(|Path(name)| name.as_str());
        let not_loaded = || CallError::new(ErrorCode::ModelNotFound, "the model is not loaded");
        match parts.method {
            Method::GET | Method::HEAD => {
                let grant = gate.ask(&parts.headers, name)?;
                let name = name.ok_or_else(no_name)?;
                let loaded = model::is_loaded(&replica, &grant, name)?;
                let model = loaded.then(|| shown(name.to_owned())).ok_or_else(not_loaded)?;
                Ok(axum::Json(model).into_response())
            }
            Method::DELETE => {
                let grant = gate.ask_for(Operation::ModelControl, &parts.headers, name)?;
                let name = name.ok_or_else(no_name)?;
                if !model::is_loaded(&replica, &grant, name)? {
                    return Err(not_loaded());
                }
                model::unload(&replica, &grant, name).await?;
                Ok(StatusCode::OK.into_response())
            }
            _ => Err(wrong_method()),
        }
    })
    .await
}

fn shown(model_name: String) -> Model {
    Model { model_name, model_url: String::new() }
}
