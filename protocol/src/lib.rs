//! Request, answer and error codes, and the wire formats as pure functions between bytes and internal types.
//!
//! Nothing here reads a socket, waits, or knows a server framework: a front hands in a body or a header map
//! and gets back a call, and hands in a result and gets back an answer. [`error`] is the one list of what can
//! go wrong with a call and the one place where that becomes an HTTP status; each contract ([`aml`], [`oip`])
//! only chooses how the body looks. [`busy`] is where replica and router meet; [`orca`], [`knative`] and [`keda`] say the same in the
//! words of load balancers and scalers.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the data path never panics")]

pub mod aml;
pub mod busy;
pub mod call;
pub mod error;
pub mod grpc;
pub mod headers;
pub mod ids;
mod json;
pub mod keda;
pub mod knative;
pub mod modeldata;
pub mod oip;
pub mod operation;
pub mod orca;
pub mod priority;
pub mod rows;
pub mod sagemaker;
pub mod swagger;
pub mod tensorflow;
pub mod urgency;
pub mod vertex;
mod wire;

pub use busy::BusySnapshot;
pub use error::{CallError, ErrorCode};
pub use ids::{IdError, RequestIds};
pub use operation::Operation;
pub use priority::Priority;
pub use urgency::Urgency;
