//! What there is at each path: the functions that routes are added with.

mod admin;
mod collected;
mod description;
mod grpc;
mod observe;
mod sagemaker;
mod score;
mod v2;
mod vertex;

pub(in crate::http) use admin::{events, keys, label, logs, model, model_control, models, status};
pub(in crate::http) use collected::{collected, deletion, deletions, expire};
pub(in crate::http) use description::{document, page};
pub(in crate::http) use grpc::grpc;
pub(in crate::http) use observe::{busy, health, healthy, live, metrics, ready, started};
pub(in crate::http::openapi) use sagemaker::call as instances_call;
pub(in crate::http) use sagemaker::{invocations, invoke, loaded, loaded_one, ping};
pub(in crate::http) use score::{passed_on, root, score, swagger, token, token_keys};
pub(in crate::http::openapi) use v2::call;
pub(in crate::http) use v2::{
    all_regions, all_statistics, config, forget_all_regions, forget_region, index, infer, load, metadata,
    model_ready, region, register_region, server, server_live, server_ready, statistics, unload,
};
pub(in crate::http) use vertex::{health as vertex_health, predict as vertex_predict};
