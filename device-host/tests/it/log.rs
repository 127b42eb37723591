//! What reaches the log.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use outrigger_backend::LoadOptions;

use crate::support::{doubles, hosted, until};

/// All that is logged in this process from the first call on.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn get() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self::default();
            let writer = log.clone();
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
            log
        })
    }

    fn lines_with(&self, text: &str) -> Vec<String> {
        let log = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_a_child_prints_is_logged_under_its_device_s_name() {
    let log = Log::get();
    let hosted = hosted();
    let second = hosted.backend.open(1).unwrap();
    for (device, name) in [(&hosted.device, "odd:0"), (&second, "odd:1")] {
        let model = device.load(&LoadOptions::of(hosted.file("say heave ho"))).unwrap();
        doubles(&*model.instance().unwrap(), 1., 1).unwrap();
        for stream in ["out", "err"] {
            let line = format!("{name}: say heave ho {stream}");
            until("the line", || log.lines_with(&line).len() == 1);
        }
    }
    let all = log.lines_with("say heave ho");
    assert_eq!(all.len(), 4, "{all:?}");
}
