//! What the backend gives is what Python's ONNX Runtime gives, in process, as a plug-in, and from the cache of optimised models.

#[path = "agreement/check.rs"]
mod check;

use check::Models;
use outrigger_backend::host;

fn settings() -> Vec<(String, String)> {
    vec![("onnxruntime".into(), outrigger_testkit::onnxruntime().display().to_string())]
}

#[test]
fn agrees_with_python() {
    let models = Models::make();
    models.agree(&*outrigger_cpu::open(&settings()).unwrap());

    let executable = std::env::current_exe().unwrap();
    let name = format!("{}outrigger_cpu{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let plugin = executable.parent().and_then(|deps| deps.parent()).unwrap().join(name);
    models.agree(&*host::load(&plugin, &settings()).unwrap());

    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings();
    settings.push(("cache".into(), cache.path().display().to_string()));
    let cached = outrigger_cpu::open(&settings).unwrap();
    let files = || std::fs::read_dir(cache.path().join("outrigger-cpu")).unwrap().count();
    assert_eq!(files(), 0);
    models.agree(&*cached);
    // A call for each model at least, and the second one of each has found the file.
    assert_eq!(files(), 11, "each model is kept once");
    models.agree(&*cached);
}
