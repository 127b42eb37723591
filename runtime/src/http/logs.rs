//! The last lines of the log, on the *admin* listener: as a list, or as they come.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::operation::Operation;
use serde::{Deserialize, Serialize};
use tokio::sync::watch::Receiver;

use super::models::refused;
use super::openapi::paths;
use super::routes::Routes;
use super::watch::{self, KEEP_ALIVE};
use crate::busy::Place;
use crate::replica::Replica;
use crate::telemetry::{KeptLine, KeptLines, Severity, Source, Wanted};

/// Lines of which nobody says how many...
const LINES: usize = 1000;
/// ...and at most.
pub(super) const MAX_LINES: usize = 100_000;

/// The route.
pub(super) fn routes(routes: Routes) -> Routes {
    routes.at("/logs", Operation::Status, get(logs), paths::logs)
}

/// What lines are asked for by.
#[derive(Deserialize)]
struct Asked {
    request: Option<String>,
    level: Option<Severity>,
    source: Option<Source>,
    lines: Option<usize>,
    watch: Option<String>,
}

/// Lines, the oldest first.
#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Lines {
    lines: Vec<KeptLine>,
}

async fn logs(State(replica): State<Arc<Replica>>, query: Result<Query<Asked>, QueryRejection>) -> Response {
    let Ok(Query(query)) = query else {
        let text = "the query is `request`, an id; `level`: trace, debug, info, warn or error; `source`: replica or script; `lines`, a number; `watch`";
        return refused(&CallError::new(ErrorCode::BadRequest, text));
    };
    let wanted = Wanted { request: query.request, level: query.level, source: query.source };
    let most = query.lines.unwrap_or(LINES).min(MAX_LINES);
    let Some(kept) = replica.log().filter(|kept| kept.keeps()).cloned() else {
        let text = "no lines of the log are kept (log.kept)";
        return refused(&CallError::new(ErrorCode::NotFound, text));
    };
    let reader = Reader::new(kept, wanted, most);
    if query.watch.is_none() {
        return Json(Lines { lines: reader.ready.iter().map(|line| KeptLine::clone(line)).collect() })
            .into_response();
    }
    let Some(place) = replica.watcher() else { return refused(&watch::no_place()) };
    let state = (reader, replica.observe_ends(), place);
    let events = stream::unfold(state, async |(mut reader, ends, place): (Reader, _, Place)| {
        tokio::select! {
            event = reader.next() => Some((Ok::<_, Infallible>(event?), (reader, ends, place))),
            () = tokio_util::sync::CancellationToken::cancelled(&ends) => None,
        }
    });
    watch::stream(Body::from_stream(events))
}

/// Somebody who reads lines.
struct Reader {
    kept: Arc<KeptLines>,
    wanted: Wanted,
    ready: VecDeque<Arc<KeptLine>>,
    /// The number of the next that may come.
    next: u64,
    more: Receiver<u64>,
}

impl Reader {
    fn new(kept: Arc<KeptLines>, wanted: Wanted, most: usize) -> Self {
        let mut more = kept.watch();
        more.mark_unchanged();
        let (lines, next) = kept.last(&wanted, most);
        Self { kept, wanted, ready: lines.into(), next, more }
    }

    /// The next line, or, after a while without one, an event that says that there is none. Of one who is slow the oldest are gone.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                // A line is texts; nothing in it can fail to be JSON.
                let json = serde_json::to_string(&*line).unwrap_or_default();
                return Some(format!("data: {json}\n\n").into());
            }
            let (lines, next, gone) = self.kept.since(&self.wanted, self.next);
            (self.ready, self.next) = (lines.into(), next);
            if gone > 0 {
                return Some(format!("event: gone\ndata: {gone}\n\n").into());
            }
            if self.ready.is_empty() {
                match tokio::time::timeout(KEEP_ALIVE, self.more.changed()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return None,
                    Err(_) => return Some(Bytes::from_static(b":\n\n")),
                }
            }
        }
    }
}
