//! Which errors come together.

use outrigger_protocol::error::ErrorCode::{self, *};

/// Of what is answered once everything is loaded.
pub(super) const LOADED: &[ErrorCode] = &[NotReady];
/// Of bodies that are read whole.
pub(super) const BODY: &[ErrorCode] = &[BadRequest, BodyTooLarge, BodyTimeout];
/// Of small ones in JSON.
pub(super) const SMALL: &[ErrorCode] = &[BadRequest, MalformedJson, BodyTooLarge, BodyTimeout];
/// Of what names a model.
pub(super) const NAMED: &[ErrorCode] = &[NotReady, ModelNotFound];
/// Of what may have to wait for a model to be loaded.
pub(super) const WAITS: &[ErrorCode] = &[
    BadRequest,
    NotReady,
    ModelNotFound,
    ModelUnavailable,
    ModelFailed,
    Overloaded,
    DeadlineExceeded,
    Draining,
    Internal,
];
/// Of what may load a model for who may call it, which counts as a call.
pub(super) const LOADS: &[ErrorCode] = &[RateLimited, TooManyCalls];
/// Of work for a lane.
pub(super) const WORK: &[ErrorCode] =
    &[RateLimited, TooManyCalls, NotReady, Overloaded, Draining, DeadlineExceeded, Internal];
/// Of calls of models.
pub(super) const INFER: &[ErrorCode] = &[
    MalformedJson,
    InvalidTensor,
    UnsupportedDatatype,
    UnsupportedMediaType,
    ModelNotFound,
    ModelUnavailable,
    ModelFailed,
    ResultNotFinite,
    Internal,
];
/// Of calls of scripts.
pub(super) const SCRIPT: &[ErrorCode] = &[
    MalformedJson,
    UnsupportedMediaType,
    ScriptError,
    ScriptResultUnserialisable,
    ResultNotFinite,
    ScoringTimeout,
    WorkerLost,
    ModelUnavailable,
    Internal,
];
/// Of calls of a server behind.
pub(super) const UPSTREAM: &[ErrorCode] = &[UpstreamFailed, UpstreamLost, UpstreamUnavailable];
