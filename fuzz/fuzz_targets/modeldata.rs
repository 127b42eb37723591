//! What scripts hand over for collection: any body and any headers are read or refused, and rows are part of their body.
#![no_main]

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_protocol::ErrorCode;
use outrigger_protocol::modeldata::{Event, Rows};

const NAMES: [&str; 7] =
    ["ce-type", "ce-time", "ce-x-request-id", "ce-model-version", "ce-agent", "trace-id", "content-type"];

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    if input.byte() % 2 == 0 {
        let body = Bytes::copy_from_slice(input.rest());
        match Rows::read(&body) {
            Ok(rows) => {
                let (all, part) = (body.as_ptr_range(), rows.rows.as_ptr_range());
                assert!(all.start <= part.start && part.end <= all.end, "not a copy");
                let _: serde_json::Value = serde_json::from_slice(&rows.rows).unwrap_or_default();
            }
            Err(error) => assert_eq!(error.code, ErrorCode::BadRequest),
        }
        return;
    }
    let mut headers = HeaderMap::new();
    while !input.0.is_empty() {
        let name = match NAMES.get(input.below(NAMES.len() as u8 + 1)) {
            Some(name) => HeaderName::from_static(name),
            None => {
                let name = [b"ce-", input.piece()].concat();
                let Ok(name) = HeaderName::from_bytes(&name) else { continue };
                name
            }
        };
        if let Ok(value) = HeaderValue::from_bytes(input.piece()) {
            headers.append(name, value);
        }
    }
    match Event::read(&headers) {
        Ok(event) => {
            assert!(!event.collection.is_empty());
            let plain =
                |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
            assert!(event.attributes.iter().all(|(name, value)| plain(name) && value.len() <= 1024));
        }
        Err(error) => assert_eq!(error.code, ErrorCode::BadRequest),
    }
});
