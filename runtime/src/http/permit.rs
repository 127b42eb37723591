//! A caller's place, taken until its answer is complete.

use axum::body::Body;
use axum::response::Response;
use outrigger_auth::Permit;

use crate::observed::{Observed, Observer};

/// Keeps `permit` until the last of the answer has been handed to the connection, or the client has gone. It is given back just
/// before the end goes out, so that a client which has a whole answer finds its place free. Bytes that wait in the
/// connection are counted elsewhere (`limits.answers`).
pub(super) fn until_complete(response: Response, permit: Option<Permit>) -> Response {
    match permit {
        Some(permit) => response.map(|body| {
            let over = http_body::Body::is_end_stream(&body);
            Body::new(Observed { body, observer: Permitted(Some(permit).filter(|_| !over)) })
        }),
        None => response,
    }
}

/// Who has the place of a caller.
struct Permitted(Option<Permit>);

impl Observer for Permitted {
    fn ends(&mut self, _is_whole: bool) {
        self.0 = None;
    }
}
