//! The child alone, what `outrigger device-host` runs, for this crate's tests; or, as `device_host parent LIBRARY`, a process
//! that has such a child, prints its number, and waits to be killed.

use std::process::ExitCode;
use std::sync::Arc;

use outrigger_device_host::Options;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let (Some("parent"), Some(library)) = (arguments.get(1).map(String::as_str), arguments.get(2)) else {
        return outrigger_device_host::serve().into();
    };
    let mut options = Options::new(&arguments[0], library, "odd", &[]);
    options.on_change = Some(Arc::new(|health| println!("{}", health.pid.unwrap_or(0))));
    let backend = outrigger_device_host::open(options).expect("it opens");
    let _device = backend.open(0).expect("device 0 opens");
    loop {
        std::thread::park();
    }
}
