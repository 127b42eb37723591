//! Model files that mean harm, or are broken: each a clear error in one line, and the process goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use outrigger_backend::conformance::{fp32, infer, instance, values};
use outrigger_backend::{BackendError, DataType, Device, LoadOptions};
use outrigger_testkit::onnx::{self, Dim, Graph};

fn device() -> Arc<dyn Device> {
    let path = outrigger_testkit::onnxruntime().display().to_string();
    outrigger_cpu::open(&[("onnxruntime".into(), path)]).unwrap().open(0).unwrap()
}

/// `y = x + w`, with `w` as `constant` adds it.
fn model(constant: impl FnOnce(&mut Graph)) -> Vec<u8> {
    let mut graph = Graph::default();
    graph.input("x", DataType::Fp32, &[Dim::Fixed(4)]);
    constant(&mut graph);
    graph.node("Add", &["x", "w"], &["y"]);
    graph.output("y", DataType::Fp32, &[Dim::Fixed(4)]);
    graph.model()
}

fn external(entries: &[(&str, &str)]) -> Vec<u8> {
    model(|graph| graph.external("w", &[4], entries))
}

/// A folder of a model, with data in it and a secret beside it.
struct Folder {
    outer: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        let folder = Self { outer };
        std::fs::create_dir(folder.path()).unwrap();
        let numbers: Vec<u8> = [1f32, 2., 3., 4.].iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(folder.path().join("w.bin"), &numbers).unwrap();
        std::fs::write(folder.outer.path().join("secret"), &numbers).unwrap();
        folder
    }

    fn path(&self) -> PathBuf {
        self.outer.path().join("model")
    }

    fn write(&self, model: &[u8]) -> PathBuf {
        let path = self.path().join("model.onnx");
        std::fs::write(&path, model).unwrap();
        path
    }

    /// Checks that the model is refused with `words` in one line that names the file, and that a good one loads afterwards.
    fn refuses(&self, device: &dyn Device, model: &[u8], words: &[&str]) {
        let path = self.write(model);
        let options = LoadOptions::of(&path);
        let error = device.load(&options).err().unwrap_or_else(|| panic!("{words:?}: it loads"));
        assert!(matches!(error, BackendError::Load(_)), "{error:?}");
        let text = error.to_string();
        let file = path.display().to_string();
        let names = words.iter().chain(&[file.as_str()]).all(|word| text.contains(word));
        assert!(names && !text.contains('\n'), "{words:?}: {text}");
        self.runs(device, &external(&[("location", "w.bin")]));
    }

    fn runs(&self, device: &dyn Device, model: &[u8]) {
        let (model, instance) = instance(device, &self.write(model));
        let outputs = infer(&*model, &*instance, &[fp32(&[4], &[0.5; 4])]).unwrap();
        assert_eq!(values(&outputs[0]), [1.5, 2.5, 3.5, 4.5]);
    }
}

#[test]
fn external_data_stays_in_the_models_folder() {
    let (folder, device) = (Folder::new(), device());
    let absolute = folder.outer.path().join("secret").display().to_string();
    for location in ["../secret", "inner/../../secret", &absolute, ""] {
        let outside = format!("external data `{location}` of `w` is outside the model's folder");
        folder.refuses(&*device, &external(&[("location", location)]), &[&outside]);
    }
    // Where two places are named, neither may be outside.
    for locations in [["w.bin", "../secret"], ["../secret", "w.bin"]] {
        let model = external(&locations.map(|location| ("location", location)));
        folder.refuses(&*device, &model, &["external data `../secret` of `w` is outside"]);
    }
    // ONNX Runtime's own mark for data at an address of the process.
    let address = [("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "4096"), ("length", "16")];
    folder.refuses(&*device, &external(&address), &["external data `*/_ORT_MEM_ADDR_/*` of `w`"]);
    folder.runs(&*device, &external(&[("location", "./w.bin"), ("offset", "0"), ("length", "16")]));
}

#[test]
#[cfg(unix)]
fn external_data_stays_there_through_links_too() {
    use std::os::unix::fs::symlink;
    let (folder, device) = (Folder::new(), device());
    symlink("../secret", folder.path().join("link")).unwrap();
    symlink("..", folder.path().join("up")).unwrap();
    symlink("w.bin", folder.path().join("own")).unwrap();
    for location in ["link", "up/secret"] {
        let outside = format!("external data `{location}` of `w` is outside the model's folder");
        folder.refuses(&*device, &external(&[("location", location)]), &[&outside]);
    }
    folder.runs(&*device, &external(&[("location", "own")]));
}

#[test]
fn claims_of_gigabytes_take_no_memory() {
    let (folder, device) = (Folder::new(), device());
    let huge = model(|graph| graph.initializer("w", &[1 << 30], &[]));
    folder.refuses(&*device, &huge, &["constant `w` claims 4294967296 bytes, the file has 0 for it"]);
    let overflow = model(|graph| graph.initializer("w", &[1 << 40, 1 << 40], &[]));
    folder.refuses(&*device, &overflow, &["constant `w` claims more elements than can be counted"]);
    let negative = model(|graph| graph.initializer("w", &[-4], &[]));
    folder.refuses(&*device, &negative, &["constant `w` has the extent -4"]);
    let claims = "external data `w.bin` of `w` claims 4294967296 bytes from byte 0, the file has 16";
    let entries = [("location", "w.bin"), ("length", "4294967296")];
    folder.refuses(&*device, &external(&entries), &[claims]);
    let entries = [("location", "w.bin"), ("offset", "18446744073709551615")];
    folder.refuses(&*device, &external(&entries), &["claims 16 bytes from byte 18446744073709551615"]);
    folder.refuses(&*device, &external(&[("location", "none.bin")]), &["`none.bin` of `w`: No such file"]);
}

#[test]
fn cut_off_and_strange_files_are_named() {
    let (folder, device) = (Folder::new(), device());
    let whole = onnx::mlp(&[8, 16, 4]);
    for len in [whole.len() - 1, whole.len() / 2, 10] {
        folder.refuses(&*device, &whole[..len], &["is cut off"]);
    }
    folder.refuses(&*device, b"", &["is empty"]);
    folder.refuses(&*device, b"\xff\x00 what is this", &["is no ONNX model"]);
    folder.refuses(&*device, &[0xff; 40], &["is no ONNX model"]);
    let mut unknown = Graph::default();
    unknown.input("x", DataType::Fp32, &[Dim::Fixed(4)]);
    unknown.node("NoSuchOperator", &["x"], &["y"]);
    unknown.output("y", DataType::Fp32, &[Dim::Fixed(4)]);
    folder.refuses(&*device, &unknown.model(), &["NoSuchOperator"]);
    // Graphs in attributes of nodes of graphs: fields 7, then 1, 5 and 6 over and over.
    let mut nested = Vec::new();
    for _ in 0..200 {
        for field in [6, 5, 1] {
            nested = message(field, &nested);
        }
    }
    folder.refuses(&*device, &message(7, &nested), &["is nested more than 100 deep"]);
    #[cfg(unix)]
    assert!(load_error(&*device, Path::new("/dev/zero")).contains("is no file"));
}

fn load_error(device: &dyn Device, path: &Path) -> String {
    device.load(&LoadOptions::of(path)).err().unwrap().to_string()
}

fn message(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
    out
}

/// ONNX Runtime makes sparse constants dense when it loads them: 180 bytes of file would be gigabytes of memory.
#[test]
fn sparse_constants_and_endless_lists_are_refused_before_they_take_memory() {
    let (folder, device) = (Folder::new(), device());
    // A model is graph 7; of a graph sparse constants are 15 and constants 5; of a sparse constant the extents are 3, of a constant 1.
    let sparse = |extents: &[u8]| message(7, &message(15, &message(3, extents)));
    let three_hundred_million = [0x80, 0xc6, 0x86, 0x8f, 1];
    folder.refuses(&*device, &sparse(&three_hundred_million), &["a sparse constant of 300000000 elements"]);
    let product = [three_hundred_million, three_hundred_million].concat().repeat(4);
    folder.refuses(&*device, &sparse(&product), &["a sparse constant of"]);
    let many = message(7, &message(5, &message(1, &vec![1; 100_000])));
    folder.refuses(&*device, &many, &["a constant with more than 256 extents or places"]);
    let long = message(7, &message(5, &message(8, &vec![b'a'; 5000])));
    folder.refuses(&*device, &long, &["a name or path of more than 4096 bytes"]);
}
