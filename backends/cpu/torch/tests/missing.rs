//! Without libtorch, or with another one.

mod support;

use support::open;

#[test]
fn without_libtorch_there_are_no_devices_and_a_reason() {
    if let Some(reason) = &open(&[]).unwrap().info().reason {
        println!("skipped: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let check = |path: &str, expected: &str| {
        let backend = open(&[("libtorch", path)]).unwrap();
        let info = backend.info();
        assert!(info.devices.is_empty() && info.formats == ["torchscript"] && info.name == "cpu_torch");
        let reason = info.reason.as_deref().unwrap();
        assert_eq!(reason, format!("no libtorch 2.11.0; tried `{path}`: {expected}"));
        assert_eq!(backend.open(0).err().unwrap().to_string(), "there is no device number 0, only 0");
    };
    check("/nowhere", "there is no lib/libc10.so");
    let other = folder.path().display().to_string();
    std::fs::create_dir(folder.path().join("lib")).unwrap();
    for name in ["libc10.so", "libtorch_cpu.so"] {
        std::fs::write(folder.path().join("lib").join(name), "no library").unwrap();
    }
    check(&other, "does not say which version it is, in `build-version` or `version.py`");
    std::fs::write(folder.path().join("build-version"), "2.12.1").unwrap();
    check(&other, "is version 2.12.1");
    std::fs::write(folder.path().join("build-version"), "2.11.0").unwrap();
    // A process has one libtorch.
    let reason = open(&[("libtorch", &other)]).unwrap().info().reason.clone().unwrap();
    let path = folder.path().canonicalize().unwrap().join("lib/libtorch_cpu.so");
    assert!(reason.starts_with("this process has loaded `"), "{reason}");
    assert!(
        reason.ends_with(&format!("already, and keeps it; `{}` is another one", path.display())),
        "{reason}"
    );
    // After the failures the right one still works.
    assert_eq!(open(&[]).unwrap().info().devices.len(), 1);
}

#[test]
fn settings_that_are_wrong_are_named_with_and_without_libtorch() {
    for libtorch in [&[][..], &[("libtorch", "/nowhere")]] {
        let error = open(&[libtorch, &[("colour", "red")]].concat()).err().unwrap().to_string();
        assert!(error.contains("unknown setting `colour`; there are `libtorch`"), "{error}");
        let error = open(&[libtorch, &[("intra_threads", "many")]].concat()).err().unwrap().to_string();
        assert!(error.contains("setting `intra_threads` is `many`"), "{error}");
    }
}
