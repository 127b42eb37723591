//! What the backend gives is what Python's ONNX Runtime gives, in process and from the cache of optimised models. As a plug-in, and out of
//! process, `cli/tests/conformance` looks.

use outrigger_testkit::agreement::{Models, Tolerance};

fn settings() -> Vec<(String, String)> {
    vec![("onnxruntime".into(), outrigger_testkit::onnxruntime().display().to_string())]
}

#[test]
fn agrees_with_python() {
    let models = Models::onnx();
    models.agree(&*outrigger_cpu::open(&settings()).unwrap(), &Tolerance::CPU);

    let cache = tempfile::tempdir().unwrap();
    let mut settings = settings();
    settings.push(("cache".into(), cache.path().display().to_string()));
    let cached = outrigger_cpu::open(&settings).unwrap();
    let files = || {
        let all = std::fs::read_dir(cache.path().join("outrigger-cpu")).unwrap();
        let is_model = |path: std::path::PathBuf| path.extension().is_some_and(|end| end == "optimised");
        all.filter(|file| is_model(file.as_ref().unwrap().path())).count()
    };
    assert_eq!(files(), 0);
    models.agree(&*cached, &Tolerance::CPU);
    // A call for each model at least, and the second one of each has found the file.
    assert_eq!(files(), models.count(), "each model is kept once");
    models.agree(&*cached, &Tolerance::CPU);
}
