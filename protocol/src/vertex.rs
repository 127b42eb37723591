//! What Vertex AI asks of a container: an answer is an object with `predictions`.
//!
//! Requests and results of models are [`rows`](crate::rows).
//!
//! Source: <https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements>.

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::sagemaker::has_member;

/// What a script gives back, as predictions; what is such an object already stays as it is.
pub fn predictions(result: Bytes) -> SmallVec<[Bytes; 3]> {
    if has_member(&result, "predictions") {
        return smallvec![result];
    }
    smallvec![Bytes::from_static(b"{\"predictions\":"), result, Bytes::from_static(b"}")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_put_where_they_belong() {
        for (result, expected) in [
            ("[1, 2]", r#"{"predictions":[1, 2]}"#),
            (r#"{"predictions": [1], "more": 2}"#, r#"{"predictions": [1], "more": 2}"#),
            (r#"{"a": {"predictions": 1}}"#, r#"{"predictions":{"a": {"predictions": 1}}}"#),
            ("null", r#"{"predictions":null}"#),
        ] {
            assert_eq!(predictions(Bytes::from_static(result.as_bytes())).concat(), expected.as_bytes());
        }
    }
}
