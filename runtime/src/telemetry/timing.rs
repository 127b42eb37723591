//! `Server-Timing` in answers: what of the phases is known when the head of the answer is.
//!
//! Source: W3C, *Server Timing*, section 3: a list of names, each with `dur` in milliseconds.

use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Passage, Phase};
use crate::config::Timing;

/// A request with this header is told how its time was spent, whatever the header says.
const TIMING: HeaderName = HeaderName::from_static("outrigger-timing");
/// Where it is told.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Whether an answer is to say how its time was spent.
pub(crate) fn asks_for_timing(timing: Timing, headers: &HeaderMap) -> bool {
    match timing {
        Timing::Off => false,
        Timing::Asked => headers.contains_key(TIMING),
        Timing::Always => true,
    }
}

impl Passage {
    /// Says so far how its time was spent.
    pub(crate) fn write_timing(&self, headers: &mut HeaderMap) {
        let mut text = String::with_capacity(192);
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        for phase in Phase::ALL {
            if let Some(spent) = self.spent(phase) {
                // Writing to a `String` cannot fail.
                let _ = write!(text, "{};dur={:.3}, ", phase.as_str(), millis(spent));
            }
        }
        let _ = write!(text, "total;dur={:.3}", millis(self.begun().elapsed()));
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(SERVER_TIMING, value);
        }
    }
}
