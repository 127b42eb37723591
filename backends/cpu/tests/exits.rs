//! The end of the process at any moment after models were unloaded. Each end is a child's, which is this test.

use std::process::Command;
use std::time::Duration;

use outrigger_backend::LoadOptions;
use outrigger_testkit::onnx;

const DELAY: &str = "OUTRIGGER_TEST_DELAY_US";

/// Memory goes back on a thread of its own a tenth of a second after an unload, by way of ONNX Runtime, which takes itself apart at the end.
#[test]
fn the_process_may_end_while_memory_goes_back() {
    if let Ok(delay) = std::env::var(DELAY) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, onnx::mlp(&[64, 512, 512, 10])).unwrap();
        let library = outrigger_testkit::onnxruntime().display().to_string();
        let device = outrigger_cpu::open(&[("onnxruntime".into(), library)]).unwrap().open(0).unwrap();
        drop(device.load(&LoadOptions::of(&path)).unwrap());
        drop(folder);
        std::thread::sleep(Duration::from_micros(delay.parse().unwrap()));
        return;
    }
    for delay in (97_000..106_000).step_by(300) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["the_process_may_end_while_memory_goes_back", "--exact"])
            .env(DELAY, delay.to_string())
            .output()
            .unwrap();
        assert!(output.status.success(), "{delay} µs: {}", output.status);
    }
}
