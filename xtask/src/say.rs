//! What the tasks say while they work: to stderr, so that stdout holds results only.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Whether somebody watches: bars and colours, or plain lines.
pub(crate) fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Begins a step.
pub(crate) fn step(text: &str) {
    if on_terminal() && !no_colour() {
        eprintln!("\x1b[1;32m==>\x1b[0m \x1b[1m{text}\x1b[0m");
    } else {
        eprintln!("==> {text}");
    }
}

/// A line within a step.
pub(crate) fn line(text: &str) {
    eprintln!("    {text}");
}

/// Whether the reader asked for no colours (<https://no-color.org>: any value that is not empty).
pub(crate) fn no_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// A bar that counts to `total`; hidden where nobody watches.
pub(crate) fn bar(total: u64, unit: &str) -> ProgressBar {
    if !on_terminal() {
        return ProgressBar::hidden();
    }
    let style = format!("    [{{bar:32}}] {{pos}}/{{len}} {unit}, {{elapsed}}, {{eta}} left  {{wide_msg}}");
    let style = ProgressStyle::with_template(&style).expect("the template is fixed and valid");
    let bar = ProgressBar::new(total).with_style(style.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A turning wheel for a wait of unknown length; hidden where nobody watches.
pub(crate) fn spinner(text: &str) -> ProgressBar {
    if !on_terminal() {
        line(text);
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("    {spinner} {msg} ({elapsed})")
        .expect("the template is fixed and valid");
    let spinner = ProgressBar::new_spinner().with_style(style).with_message(text.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
