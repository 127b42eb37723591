//! How far something has come: bars on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use outrigger_store::registry::{LocalFile, PushWatch};
use outrigger_store::{ManifestFile, ModelId, Watch};

use crate::table::size;

/// Files that are not larger are counted in the sum alone: their bars would be gone before anybody has read them.
const SMALL: u64 = 4 << 20;
/// Bars of files at once.
const MAX_BARS: usize = 16;

/// Shows how far all files together and each of the large ones have come.
pub(super) struct Progress {
    bars: MultiProgress,
    all: ProgressBar,
    files: Mutex<HashMap<String, ProgressBar>>,
    /// Whether there is a line for each file, for lack of a terminal.
    lines: bool,
}

impl Progress {
    /// For so many bytes.
    pub(super) fn new(what: &'static str, bytes: u64) -> Self {
        let lines = !std::io::stderr().is_terminal();
        let bars = MultiProgress::new();
        let all = bars.add(ProgressBar::new(bytes));
        all.set_style(style("{msg:12} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}"));
        all.set_message(what);
        if !lines {
            all.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bars, all, files: Mutex::default(), lines }
    }

    /// The same bytes are gone through once more, for something else.
    pub(super) fn restart(&self, what: &'static str) {
        self.all.reset();
        self.all.set_message(what);
    }

    /// Nothing more is shown.
    pub(super) fn finish(&self) {
        let files = std::mem::take(&mut *self.files.lock().unwrap_or_else(PoisonError::into_inner));
        files.into_values().for_each(|bar| bar.finish_and_clear());
        self.all.finish_and_clear();
    }

    /// A line that stays.
    pub(super) fn say(&self, text: &str) {
        if self.lines {
            eprintln!("{text}");
        } else {
            // What cannot be drawn is not worth failing for.
            let _ = self.bars.println(text);
        }
    }

    fn with_bar(&self, name: &str, length: u64, act: impl FnOnce(&ProgressBar)) {
        if length <= SMALL || self.lines {
            return;
        }
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(name) {
            if files.len() >= MAX_BARS {
                return;
            }
            let bar = self.bars.add(ProgressBar::new(length));
            bar.set_style(style("  {bar:20} {bytes:>10}/{total_bytes:10} {wide_msg}"));
            bar.set_message(name.to_owned());
            files.insert(name.to_owned(), bar);
        }
        if let Some(bar) = files.get(name) {
            act(bar);
        }
        if files.get(name).is_some_and(|bar| bar.position() >= length)
            && let Some(bar) = files.remove(name)
        {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Watch for Progress {
    fn begun(&self, file: &ManifestFile, here: u64) {
        self.all.inc(here);
        if here < file.size {
            self.with_bar(file.path.as_str(), file.size, |bar| bar.set_position(here));
        }
    }

    fn came(&self, file: &ManifestFile, bytes: u64) {
        self.all.inc(bytes);
        self.with_bar(file.path.as_str(), file.size, |bar| bar.inc(bytes));
    }

    fn anew(&self, file: &ManifestFile, lost: u64, why: &str) {
        self.all.set_position(self.all.position().saturating_sub(lost));
        self.with_bar(file.path.as_str(), file.size, |bar| bar.set_position(0));
        self.say(&format!("{}: from the beginning: {why}", file.path));
    }

    fn again(&self, file: &ManifestFile, why: &str, pause: Duration) {
        self.say(&format!("{}: again in {:.1} s: {why}", file.path, pause.as_secs_f64()));
    }

    fn waiting(&self, file: &ManifestFile) {
        self.say(&format!("{}: another process is fetching it; waiting", file.path));
    }

    fn ended(&self, file: &ManifestFile) {
        self.with_bar(file.path.as_str(), file.size, |bar| bar.set_position(file.size));
        if self.lines {
            eprintln!("{} {}", file.path, size(Some(file.size)));
        }
    }
}

impl PushWatch for Progress {
    fn hashed(&self, _: &LocalFile, bytes: u64) {
        self.all.inc(bytes);
    }

    fn claimed(&self, id: &ModelId) {
        self.restart("sending");
        self.say(&format!("pushing {id}"));
    }

    fn sent(&self, file: &LocalFile, bytes: u64) {
        self.all.inc(bytes);
        self.with_bar(file.path.as_str(), file.size, |bar| bar.inc(bytes));
        if self.lines && file.size <= bytes {
            eprintln!("{} {}", file.path, size(Some(file.size)));
        }
    }
}
