//! A worker process without the rest of the executable; the tests start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    outrigger_native::serve_worker().into()
}
