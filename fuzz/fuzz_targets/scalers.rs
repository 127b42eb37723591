//! Messages of KEDA, Knative and ORCA: intervals and settings stay within their bounds, whatever is asked for.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use outrigger_fuzz::Input;
use outrigger_protocol::keda::{GetMetricsRequest, ScaledObjectRef, Trigger};
use outrigger_protocol::knative::Stat;
use outrigger_protocol::orca::{LoadReport, LoadReportRequest};
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.byte() % 5 {
        0 => {
            if let Some(request) = again::<LoadReportRequest>(input.rest()) {
                for least in [Duration::ZERO, Duration::from_millis(250)] {
                    let interval = request.interval(least);
                    assert!((least..=Duration::from_secs(86_400)).contains(&interval));
                }
            }
        }
        1 => drop(again::<LoadReport>(input.rest())),
        2 => drop(again::<Stat>(input.rest())),
        3 => drop(again::<GetMetricsRequest>(input.rest())),
        _ => {
            let Some(object) = again::<ScaledObjectRef>(input.rest()) else { return };
            match Trigger::read(&object.scaler_metadata) {
                Ok(Trigger { utilisation, active_for }) => {
                    assert!(utilisation > 0.0 && utilisation <= 10.0);
                    assert!(active_for <= Duration::from_secs(86_400));
                }
                // It goes back in a header.
                Err(error) => assert!(error.to_string().chars().count() < 200),
            }
        }
    }
});

/// Reads a message, and again what it is written as.
fn again<M: Message + Default>(bytes: &[u8]) -> Option<M> {
    let message = M::decode(bytes).ok()?;
    // Not by `==`: NaN is not itself, and entries of maps have no order.
    let written = message.encode_to_vec();
    let read = M::decode(&written[..]).expect("what is written can be read");
    assert_eq!(read.encode_to_vec().len(), written.len());
    Some(message)
}
