//! Headers of requests: identifiers, deadlines and priorities, and what scalers and load balancers ask for.
#![no_main]

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_protocol::headers::{
    MS_CLIENT_REQUEST_ID, MS_REQUEST_ID, REQUEST_DEADLINE_MS, REQUEST_ID, REQUEST_PRIORITY,
};
use outrigger_protocol::ids::MAX_ID_CHARS;
use outrigger_protocol::{ErrorCode, IdError, RequestIds, Urgency, knative, orca};

const NAMES: [HeaderName; 7] = [
    REQUEST_ID,
    MS_REQUEST_ID,
    MS_CLIENT_REQUEST_ID,
    REQUEST_DEADLINE_MS,
    REQUEST_PRIORITY,
    header::ACCEPT,
    orca::FORMAT,
];

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut headers = HeaderMap::new();
    while !input.0.is_empty() {
        let name = &NAMES[input.below(NAMES.len() as u8)];
        if let Ok(value) = HeaderValue::from_bytes(input.piece()) {
            headers.append(name, value);
        }
    }
    identifiers(&headers);
    match Urgency::from_headers(&headers) {
        Ok(Urgency { deadline, .. }) => {
            assert!(deadline.is_none_or(|deadline| deadline <= Duration::from_secs(86_400)));
            if let (Some(deadline), Some(said)) = (deadline, headers.get(REQUEST_DEADLINE_MS)) {
                let said: u64 = said.to_str().expect("digits").parse().expect("digits");
                assert_eq!(deadline, Duration::from_millis(said.min(86_400_000)));
            }
        }
        Err(error) => assert_eq!(error.code, ErrorCode::BadRequest),
    }
    let _ = knative::is_asked(&headers);
    let _ = headers.get(orca::FORMAT).and_then(orca::Format::from_header);
});

/// What goes out is what came in, or ours, and never too long.
fn identifiers(headers: &HeaderMap) {
    let mut answer = HeaderMap::new();
    match RequestIds::from_headers(headers) {
        Ok(ids) => {
            ids.write(&mut answer);
            assert!(!ids.request_id().is_empty(), "logs name the request by it");
            assert_eq!(answer[REQUEST_ID].as_bytes(), ids.request_id().as_bytes());
            // What was answered is answered again to who sends it.
            let mut again = HeaderMap::new();
            RequestIds::from_headers(&answer).expect("it is short").write(&mut again);
            assert_eq!(again.get(REQUEST_ID), answer.get(REQUEST_ID));
            assert_eq!(again.get(MS_REQUEST_ID), answer.get(MS_REQUEST_ID));
        }
        Err(error) => {
            error.write(&mut answer);
            assert_eq!(answer.is_empty(), matches!(error, IdError::RequestId));
        }
    }
    assert!(answer.values().all(|id| !id.is_empty() && id.len() <= MAX_ID_CHARS));
}
