//! TensorFlow Serving's `Predict`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::any;
use outrigger_auth::OfModel;
use outrigger_protocol::operation::Operation;
use outrigger_protocol::tensorflow::{encode_reply, parse_request, target};

use super::super::infer::Asked;
use super::super::model;
use super::super::openapi::paths;
use super::super::routes::Routes;
use super::infer::{answered, wish};
use super::{Messages, answer, said};
use crate::apart::apart;
use crate::config::Contract;
use crate::replica::Replica;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.of(Contract::Tensorflow).at(
        "/tensorflow.serving.PredictionService/Predict",
        Operation::Infer,
        any(predict),
        paths::grpc,
    )
}

async fn predict(State(replica): State<Arc<Replica>>, request: Request) -> Response {
    answer(&replica, Operation::Infer, request, async |gate, parts, body| {
        let grant = gate.ask(&parts.headers, OfModel::AskedLater)?;
        let wish = wish(&parts.headers)?;
        let most = replica.config.limits.body;
        let message = Messages::new(&replica, &parts.headers, body, most).only().await?;
        let target = target(&message)?;
        let name = model::name_or_default(&replica, said(target.model))?;
        let which = target.version.as_deref().and_then(said);
        let (serving, model) = model::find(&replica, &grant, &name, which)?;
        let (size, limits) = (message.len(), &replica.tensor_limits);
        let asked = Asked { replica: &replica, grant: &grant, serving, model, which, wish, size };
        let inferred = asked.run(|info, _| apart(size, || parse_request(&message, info, limits))).await?;
        let notes = inferred.notes();
        answered(&replica, inferred.write(encode_reply)?, notes)
    })
    .await
}
