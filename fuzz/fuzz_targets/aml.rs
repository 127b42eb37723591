//! AzureML's answers: any text of an error is JSON, and any description of a script is a document.
#![no_main]

use std::time::Duration;

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_protocol::swagger::{Schemas, ServiceInfo, Version, document};
use outrigger_protocol::{CallError, ErrorCode, aml, oip};
use outrigger_runtime::scripts::{Failure, Ready};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let time = input.take(12).iter().fold(0u128, |time, byte| time << 8 | u128::from(*byte));
    let seconds = u64::try_from(time >> 32).unwrap_or(u64::MAX);
    check_time(Duration::new(seconds, (time as u32) % 1_000_000_000));
    let Some(text) = input.text() else { return };
    for answer in [aml::encode_error, oip::encode_error] {
        let answer = answer(&CallError::new(ErrorCode::BadRequest, text.to_owned()));
        let body: Value = serde_json::from_slice(answer.body()).expect("it is JSON");
        let said = body.get("message").or(body.get("error")).and_then(Value::as_str);
        assert_eq!(said, Some(text));
    }
    let Ok(ready) = serde_json::from_str::<Ready>(text) else {
        let _ = serde_json::from_str::<Failure>(text);
        return;
    };
    let _ = (ready.versions(), ready.takes("POST"));
    let schemas = Schemas::from_ready(ready.swagger.as_ref());
    let service = ServiceInfo { title: ready.mode, version: ready.python, path_prefix: ready.script };
    for version in [None, Some("2"), Some("3"), Some("3.1"), Some(text)] {
        match document(version, &service, &schemas) {
            Ok(document) => drop(serde_json::from_slice::<Value>(&document).expect("it is JSON")),
            Err(said) => assert!(!said.is_empty()),
        }
    }
    let _ = Version::parse(Some(text), Version::ALL);
});

/// Three decimals, the nearest.
fn check_time(time: Duration) {
    let shown: HeaderValue = aml::milliseconds(time);
    let (whole, part) = shown.to_str().expect("digits").split_once('.').expect("a point");
    assert_eq!(part.len(), 3);
    let number = |text: &str| text.parse::<u128>().expect("digits");
    assert_eq!(number(whole) * 1000 + number(part), (time.as_nanos() + 500) / 1000);
}
