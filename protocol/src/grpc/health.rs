//! The messages of gRPC's own health check.

#[expect(missing_docs, unreachable_pub, clippy::all, reason = "generated; the .proto has the words")]
mod v1 {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

pub use v1::health_check_response::ServingStatus;
pub use v1::{HealthCheckRequest, HealthCheckResponse};
