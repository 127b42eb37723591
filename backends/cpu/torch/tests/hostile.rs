//! Model files that mean harm, or are broken: each a clear error in one line, and the process goes on.

mod support;

use outrigger_backend::conformance::{fp32, infer, values};
use outrigger_backend::{Device, LoadOptions};
use outrigger_testkit::torchscript::{self, Module, Zip};
use support::{Folder, device, device_with, options, row};

/// Checks that the file is refused with these words, and that a good one loads afterwards.
fn refuses(folder: &Folder, device: &dyn Device, bytes: &[u8], words: &str) {
    let path = folder.write(bytes);
    let text = folder.refused(device.load(&options(&path, &[row("x", 3), row("y", 3)], &[])));
    assert!(text.contains(words), "{words}: {text}");
    let (model, instance) = folder.instance(device, &torchscript::add(), &[row("x", 3), row("y", 3)], &[]);
    let x = fp32(&[1, 3], &[1., 2., 3.]);
    assert_eq!(values(&infer(&*model, &*instance, &[x.clone(), x]).unwrap()[0]), [2., 4., 6.]);
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = Zip::default();
    files.iter().for_each(|(name, bytes)| zip.stored(name, bytes));
    zip.finish()
}

const PICKLE: &[u8] = b"\x80\x02c__torch__\nM\n)\x81}(X\x08\0\0\0training\x88ub.";
const CONSTANTS: (&str, &[u8]) = ("model/constants.pkl", b"\x80\x02).");
const VERSION: (&str, &[u8]) = ("model/version", b"3\n");

#[test]
fn what_is_no_torchscript_is_named() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let whole = torchscript::add().archive();
    for len in [whole.len() - 1, whole.len() / 2, 10, 0] {
        refuses(&folder, &*device, &whole[..len], "has no directory");
    }
    let state = archive(&[
        ("weights/data.pkl", b"\x80\x02}."),
        ("weights/data/0", &[0; 64]),
        ("weights/version", b"3\n"),
    ]);
    refuses(&folder, &*device, &state, "what `torch.save` writes");
    refuses(
        &folder,
        &*device,
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        "before PyTorch 1.6; save the module with `torch.jit.save",
    );
    refuses(
        &folder,
        &*device,
        b"\x08\x08\x12\x07pytorch:",
        "is no ZIP file: it begins with [08, 08, 12, 07]",
    );
    let error = device.load(&LoadOptions::of("/dev/zero")).err().unwrap().to_string();
    assert!(error.contains("is no plain file"), "{error}");
}

#[test]
fn broken_parts_are_errors() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let code = torchscript::add().code();
    let source = |code: &'static str| ("model/code/__torch__.py", code.as_bytes());
    let code = ("model/code/__torch__.py", code.as_bytes());
    let check = |files: &[(&str, &[u8])], words: &str| refuses(&folder, &*device, &archive(files), words);
    check(&[("model/data.pkl", PICKLE), code, CONSTANTS], "version");
    check(&[("model/data.pkl", PICKLE), CONSTANTS, VERSION], "its code is missing");
    check(&[("model/data.pkl", b"\x80\x02}."), code, CONSTANTS, VERSION], "its pickle begins with no class");
    check(&[("model/data.pkl", &PICKLE[..20]), code, CONSTANTS, VERSION], "");
    check(&[("model/data.pkl", PICKLE), code, ("model/constants.pkl", b"\x80\x02"), VERSION], "");
    check(&[("model/data.pkl", PICKLE), code, CONSTANTS, ("model/version", b"999999\n")], "");
    let head = "class M(Module):\n  training : bool\n  def forward(self: __torch__.M,\n    x: Tensor,\n    y: Tensor) -> Tensor:\n";
    let unknown = format!("{head}    return torch.no_such_operator(x, y)\n");
    check(
        &[("model/data.pkl", PICKLE), ("model/code/__torch__.py", unknown.as_bytes()), CONSTANTS, VERSION],
        "",
    );
    let broken = format!("{head}    return ((((\n");
    check(
        &[("model/data.pkl", PICKLE), ("model/code/__torch__.py", broken.as_bytes()), CONSTANTS, VERSION],
        "",
    );
    check(&[("model/data.pkl", PICKLE), source("nothing"), CONSTANTS, VERSION], "no method `forward`");
    // Where a tensor's bytes should be there are none.
    let mut cut = Zip::default();
    let whole = torchscript::mlp(&[3, 3]).archive();
    let at = whole.windows(2).position(|two| two == b"\x80\x02").unwrap();
    let len = whole[at..].iter().position(|byte| *byte == b'.').unwrap();
    let end = whole[at + len..].windows(2).position(|two| two == b"ub").unwrap() + at + len + 3;
    cut.stored("model/data.pkl", &whole[at..end]);
    cut.stored("model/code/__torch__.py", torchscript::mlp(&[3, 3]).code().as_bytes());
    cut.stored(CONSTANTS.0, CONSTANTS.1);
    cut.stored(VERSION.0, VERSION.1);
    let path = folder.write(&cut.finish());
    folder.refused(device.load(&options(&path, &[row("x", 3)], &[])));
}

#[test]
fn claims_of_gigabytes_take_no_memory() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let claims = |method, size| {
        let mut zip = Zip::default();
        zip.claiming("model/data.pkl", PICKLE, method, size);
        zip.stored(CONSTANTS.0, CONSTANTS.1);
        zip.finish()
    };
    refuses(&folder, &*device, &claims(0, 1 << 31), "claims another size than it has");
    refuses(&folder, &*device, &claims(8, 1 << 31), "claims 2147483648 bytes, over the limit of 67108864");
}

#[test]
fn the_limit_of_code_can_be_set() {
    let Some(device) = device_with(&[("code_bytes", "1000"), ("intra_threads", "2")]) else { return };
    let folder = Folder::new();
    let mut zip = Zip::default();
    zip.claiming("model/data.pkl", b"\x03\0", 8, 1001);
    zip.stored(CONSTANTS.0, CONSTANTS.1);
    refuses(&folder, &*device, &zip.finish(), "claims 1001 bytes, over the limit of 1000");
}

#[test]
fn code_that_is_nested_does_not_overflow_the_stack() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let nested = |count: usize| {
        let (open, close) = ("torch.neg(".repeat(count), ")".repeat(count));
        Module::forward("x: Tensor,\n    y: Tensor", "Tensor", &[&format!("return {open}x{close}")])
    };
    folder.load(&*device, &nested(250), &[row("x", 3), row("y", 3)], &[]).unwrap();
    refuses(&folder, &*device, &nested(100_000).archive(), "its code is nested more than 256 deep");
    let operators = |count: usize| {
        let line = format!("return torch.add(x, {}y)", "-".repeat(count));
        Module::forward("x: Tensor,\n    y: Tensor", "Tensor", &[&line])
    };
    folder.load(&*device, &operators(250), &[row("x", 3), row("y", 3)], &[]).unwrap();
    refuses(&folder, &*device, &operators(100_000).archive(), "its code is nested more than 256 deep");
}

/// A shape that its bytes are too few for.
#[test]
fn a_tensor_larger_than_its_bytes_is_refused() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let module =
        Module::forward("x: Tensor, y: Tensor", "Tensor", &["return torch.add(x, torch.sum(self.w))"]);
    refuses(&folder, &*device, &module.weight("w", &[1 << 20], vec![0.; 4]).archive(), "");
}

/// What libtorch would call by a number that is none of a function's, walk through for hours, or end only with its stack.
#[test]
fn pickles_that_libtorch_would_follow_anywhere_are_refused() {
    let (Some(device), folder) = (device(), Folder::new()) else { return };
    let code = torchscript::add().code();
    let check = |constants: &[u8], words: &str| {
        let constants = [b"\x80\x02".as_slice(), constants, b"\x85."].concat();
        let files = [
            ("model/data.pkl", PICKLE),
            ("model/code/__torch__.py", code.as_bytes()),
            ("model/constants.pkl", &constants),
            VERSION,
        ];
        refuses(&folder, &*device, &archive(&files), words);
    };
    check(b"ctorch\nByteStorage\n)R", "it calls what is no function");
    check(b"Nr\xff\xff\xff\x7f", "it leaves out numbers for what it remembers");
    check(b"cos\nsystem\n)R", "its pickle refers to `os.system`, which is not known");
    check(b"]q\x00h\x00a", "it changes what it has remembered");
    let doubled: Vec<u8> = (0..60).flat_map(|at| [b'q', at, b'h', at, 0x86]).collect();
    check(&[b"N".as_slice(), &doubled].concat(), "values in values in more than 16777216 ways");
    check(&[b'N'; 3 << 20], "its pickle has more than 2097152 values");
}
