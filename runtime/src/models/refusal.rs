//! Why a run has no result, as its caller sees it.

use std::time::Duration;

use outrigger_backend::BackendError;
use outrigger_protocol::error::{CallError, ErrorCode};

use super::instance::ModelInstance;
use super::job::Failure;

/// A backend's error as the caller sees it. What the caller did wrong is said in full; the rest is for the log.
pub(super) fn call_error(instance: &ModelInstance, failure: Failure) -> CallError {
    let model = instance.name.as_str();
    let error = match failure {
        Failure::Backend(error) => error,
        Failure::Late => return crate::scheduler::expired(),
        Failure::TooLarge { .. } => return CallError::new(ErrorCode::InvalidTensor, failure.to_string()),
    };
    match error {
        BackendError::Input(text) => CallError::new(ErrorCode::InvalidTensor, text),
        BackendError::Lost(_) => {
            // Said once by whoever looks after the device.
            tracing::debug!(model, %error, "a run was lost with its device");
            CallError::new(
                ErrorCode::ModelUnavailable,
                match &instance.place {
                    Some(place) => {
                        format!("the device of model `{model}`, {}, was lost during the call", place.device)
                    }
                    None => format!("the device of model `{model}` was lost during the call"),
                },
            )
            .with_retry_after(Duration::from_secs(1))
        }
        // Whoever it was for has left, or has been told that it is too late.
        BackendError::Cancelled => crate::scheduler::expired(),
        BackendError::OutOfMemory(_) => {
            tracing::error!(model, %error, "model ran out of memory");
            CallError::new(ErrorCode::ModelUnavailable, format!("model `{model}` ran out of memory"))
        }
        // A limit or a lack of the service's, of which its own words may be heard: what a call asks for is more, and no other time is better.
        BackendError::Unsupported(text) => {
            tracing::error!(model, error = text, "model cannot do what a call asks for");
            CallError::new(ErrorCode::ModelFailed, format!("model `{model}` failed: {text}"))
        }
        error => {
            tracing::error!(model, %error, "model failed");
            CallError::new(ErrorCode::ModelFailed, format!("model `{model}` failed; the log says why"))
        }
    }
}
