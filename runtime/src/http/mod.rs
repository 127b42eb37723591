//! The three listeners: *score* for the contracts, *observe* for probes and metrics, *admin* for management.

mod admin;
mod begun;
mod body;
mod collect;
mod collected;
mod cors;
mod entire;
mod given;
mod grpc;
mod head;
mod idle;
mod infer;
pub(crate) mod inflate;
mod keda;
mod labels;
mod logs;
mod model;
mod models;
mod observe;
mod openapi;
mod orca;
mod passing;
mod permit;
mod pieces;
mod reply;
mod routes;
mod rpc;
mod sagemaker;
mod score;
mod server;
mod stall;
mod tensors;
mod token;
mod v2;
mod vertex;
mod watch;
mod wish;

pub(crate) use openapi::Descriptions;
pub use routes::{Route, routes};
pub use server::{BindError, Bound};
pub(crate) use server::{Ends, Listener, Peers, Site, serve};

pub(crate) use admin::router as admin_router;
pub(crate) use collect::router as collect_router;
pub(crate) use observe::router as observe_router;
pub(crate) use score::router as score_router;
