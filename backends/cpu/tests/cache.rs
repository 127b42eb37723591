//! The cache of optimised models, through loads.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use outrigger_backend::conformance::{fp32, infer, instance, values};
use outrigger_backend::{Backend, LoadOptions};
use outrigger_testkit::onnx;

const CACHE: &str = "OUTRIGGER_TEST_CACHE";
const MODEL: &str = "OUTRIGGER_TEST_MODEL";

fn open(cache: &Path) -> Arc<dyn Backend> {
    let library = outrigger_testkit::onnxruntime();
    let settings = [("onnxruntime", library.as_path()), ("cache", cache)];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.display().to_string()));
    outrigger_cpu::open(&settings).unwrap()
}

fn run(backend: &dyn Backend, model: &Path) -> Vec<f32> {
    let (model, instance) = instance(&*backend.open(0).unwrap(), model);
    values(&infer(&*model, &*instance, &[fp32(&[1, 8], &[0.5; 8])]).unwrap()[0])
}

fn files(cache: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(cache.join("outrigger-cpu")).unwrap().map(|file| file.unwrap().path());
    all.filter(|path| path.extension().is_none_or(|extension| extension != "key")).collect()
}

#[test]
fn damaged_files_are_replaced_and_nobody_notices() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), folder.path().join("model.onnx"));
    std::fs::write(&model, onnx::mlp(&[8, 32, 4])).unwrap();
    let backend = open(&cache);
    let expected = run(&*backend, &model);
    let [file] = &files(&cache)[..] else { panic!("one file") };
    let whole = std::fs::read(file).unwrap();
    assert_eq!(run(&*backend, &model), expected);
    let damages: [fn(&mut Vec<u8>); 3] =
        [|bytes| bytes.truncate(bytes.len() / 2), |bytes| bytes[100] ^= 0x40, |bytes| bytes.clear()];
    for damage in damages {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        std::fs::write(file, bytes).unwrap();
        assert_eq!(run(&*backend, &model), expected);
        assert_eq!(std::fs::read(file).unwrap(), whole, "made again");
    }
    // A folder that is gone costs the cache and no load.
    std::fs::remove_dir_all(&cache).unwrap();
    assert_eq!(run(&*backend, &model), expected);
}

#[test]
fn what_cannot_be_kept_is_loaded_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let backend = open(&folder.path().join("cache"));
    let device = backend.open(0).unwrap();
    let model = folder.path().join("model.onnx");
    std::fs::write(folder.path().join("w.bin"), 2f32.to_le_bytes().repeat(8)).unwrap();
    let shape = [onnx::Dim::Named("n"), onnx::Dim::Fixed(8)];
    let mut graph = onnx::Graph::default();
    graph.input("x", outrigger_backend::DataType::Fp32, &shape);
    graph.external("w", &[8], &[("location", "w.bin")]);
    graph.node("Add", &["x", "w"], &["y"]);
    graph.output("y", outrigger_backend::DataType::Fp32, &shape);
    std::fs::write(&model, graph.model()).unwrap();
    assert_eq!(run(&*backend, &model), [2.5; 8]);
    // And what does not load says the same as without a cache.
    std::fs::write(&model, &onnx::mlp(&[8, 4])[..100]).unwrap();
    let error = device.load(&LoadOptions::of(&model)).err().unwrap().to_string();
    assert!(error.contains("is cut off"), "{error}");
    let mut unknown = onnx::Graph::default();
    unknown.input("x", outrigger_backend::DataType::Fp32, &shape);
    unknown.node("NoSuchOperator", &["x"], &["y"]);
    unknown.output("y", outrigger_backend::DataType::Fp32, &shape);
    std::fs::write(&model, unknown.model()).unwrap();
    let error = device.load(&LoadOptions::of(&model)).err().unwrap().to_string();
    assert!(error.contains("NoSuchOperator"), "{error}");
    assert_eq!(files(&folder.path().join("cache")), Vec::<PathBuf>::new());
}

/// What [`processes_share_a_folder`] starts.
#[test]
fn one_of_many() {
    let (Some(cache), Some(model)) = (std::env::var_os(CACHE), std::env::var_os(MODEL)) else { return };
    let backend = open(Path::new(&cache));
    let expected = run(&*backend, Path::new(&model));
    for _ in 0..20 {
        assert_eq!(run(&*backend, Path::new(&model)), expected);
        // So that others find it missing, half made or whole.
        files(Path::new(&cache)).iter().for_each(|file| {
            if file.extension().is_some_and(|extension| extension == "optimised") {
                let _ = std::fs::remove_file(file);
            }
        });
    }
    run(&*backend, Path::new(&model));
}

#[test]
fn processes_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), folder.path().join("model.onnx"));
    std::fs::write(&model, onnx::mlp(&[8, 256, 256, 4])).unwrap();
    let start = |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "one_of_many"]).env(CACHE, &cache).env(MODEL, &model);
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let children: Vec<_> = (0..4).map(start).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let files = files(&cache);
    let drafts =
        files.iter().filter(|file| file.extension().is_some_and(|extension| extension != "optimised"));
    assert_eq!((drafts.count(), files.len() <= 1), (0, true), "{files:?}");
}
