//! What the script writes while it is examined: the runtime logs it, line by line, and here it is kept instead of shown.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that are kept.
const LINES: usize = 200;

/// The lines so far.
#[derive(Clone, Default)]
pub(super) struct Capture(Arc<Mutex<Vec<String>>>);

impl Capture {
    /// Begins; nothing else is logged from here on.
    pub(super) fn start() -> Self {
        let capture = Self::default();
        // It cannot have been started before: this is the only logging of this command.
        let _ = tracing_subscriber::registry().with(capture.clone()).try_init();
        capture
    }

    /// The lines.
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Subscriber> Layer<S> for Capture {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !event.metadata().target().starts_with("outrigger::script") {
            return;
        }
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES {
            let mut text = Text(String::new());
            event.record(&mut text);
            lines.push(text.0);
        }
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
