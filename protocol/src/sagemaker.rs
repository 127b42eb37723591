//! What SageMaker asks of a container: bodies of `/invocations` by their content type, and the lists of a multi-model container.
//!
//! Source: <https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html> and `mms-container-apis.html` beside it; for
//! tensors as bytes <https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md>.

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::{CallError, ErrorCode};
use crate::headers::APPLICATION_JSON;
use crate::json::scan::Scanner;

/// JSON of the Open Inference Protocol with bytes of tensors behind it.
const BINARY: &str = "application/vnd.sagemaker-triton.binary+json";
/// Its parameter: how many bytes are JSON.
const HEADER_SIZE: &str = "json-header-size";

/// How the body of a call is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON alone.
    Json,
    /// JSON of this length, and the bytes of tensors behind it.
    Binary(usize),
}

impl Form {
    /// What a content type says; JSON where there is none.
    ///
    /// # Errors
    /// [`ErrorCode::UnsupportedMediaType`] for another one, [`ErrorCode::BadRequest`] for a length that is none.
    pub fn of(content_type: Option<&HeaderValue>) -> Result<Self, CallError> {
        let Some(value) = content_type else { return Ok(Self::Json) };
        let mut parts = value.to_str().unwrap_or_default().split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        if media.is_empty() || media == "application/json" || media.ends_with("+json") && media != BINARY {
            return Ok(Self::Json);
        }
        if media != BINARY {
            let text = format!("the content type is neither application/json nor {BINARY}");
            return Err(CallError::new(ErrorCode::UnsupportedMediaType, text));
        }
        let size = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.trim() == HEADER_SIZE);
        let size = size.and_then(|(_, size)| size.trim().parse().ok());
        let wrong =
            || CallError::new(ErrorCode::BadRequest, format!("the content type has no `{HEADER_SIZE}`"));
        size.map(Self::Binary).ok_or_else(wrong)
    }

    /// The content type of an answer of which so many bytes are JSON, if anything follows them.
    pub fn header(json_length: Option<usize>) -> HeaderValue {
        let Some(length) = json_length else { return APPLICATION_JSON };
        HeaderValue::try_from(format!("{BINARY};{HEADER_SIZE}={length}")).unwrap_or(APPLICATION_JSON)
    }

    /// Says so in an answer.
    pub fn write(headers: &mut http::HeaderMap, json_length: Option<usize>) {
        headers.insert(CONTENT_TYPE, Self::header(json_length));
    }
}

/// Whether a body has `instances` rather than tensors. What is no JSON has neither; whoever reads it says so.
pub fn has_instances(body: &[u8]) -> bool {
    has_member(body, "instances")
}

/// Whether a text is an object with that member.
pub(crate) fn has_member(body: &[u8], wanted: &str) -> bool {
    let Ok(text) = std::str::from_utf8(body) else { return false };
    let mut scanner = Scanner::new(text, 256);
    let mut first = true;
    let mut next = || {
        if first {
            scanner.open_object().ok()?;
        }
        let member = scanner.member(first).ok()??;
        first = false;
        let found = member == wanted;
        if !found {
            scanner.skip_value(1).ok()?;
        }
        Some(found)
    };
    std::iter::from_fn(&mut next).any(|found| found)
}

/// A model that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// Its name.
    pub model_name: String,
    /// Where its files are: not told.
    pub model_url: String,
}

/// Those that are, a page at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelList {
    /// The models.
    pub models: Vec<Model>,
    /// What the next page is asked for with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_say_how_a_body_is_read() {
        let of = |text: &'static str| Form::of(Some(&HeaderValue::from_static(text)));
        assert_eq!(Form::of(None).unwrap(), Form::Json);
        for json in
            ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/x+json"]
        {
            assert_eq!(of(json).unwrap(), Form::Json, "{json}");
        }
        let binary = "application/vnd.sagemaker-triton.binary+json;json-header-size=123";
        assert_eq!(of(binary).unwrap(), Form::Binary(123));
        assert_eq!(Form::header(Some(123)), binary);
        assert_eq!(Form::header(None), "application/json");
        assert_eq!(of("text/csv").unwrap_err().code, ErrorCode::UnsupportedMediaType);
        for wrong in [
            "application/vnd.sagemaker-triton.binary+json",
            "application/vnd.sagemaker-triton.binary+json;json-header-size=x",
        ] {
            assert_eq!(of(wrong).unwrap_err().code, ErrorCode::BadRequest, "{wrong}");
        }
    }

    #[test]
    fn members_are_found_at_the_top() {
        assert!(has_instances(br#"{"a":{"b":[1]},"instances":[]"#));
        for body in
            [&br#"{"inputs":[{"instances":[]}]}"#[..], b"[\"instances\"]", b"", b"{", b"\xff", b"{\"a\":"]
        {
            assert!(!has_instances(body));
        }
    }
}
