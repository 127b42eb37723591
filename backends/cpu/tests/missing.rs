//! Without ONNX Runtime's library. A process of its own: the library, once found, stays.

#[test]
fn without_the_library_there_are_no_devices_and_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    let check = |path: &str, expected: &str| {
        let backend = outrigger_cpu::open(&[("onnxruntime".into(), path.into())]).unwrap();
        let info = backend.info();
        assert!(info.devices.is_empty());
        let reason = info.reason.as_deref().unwrap();
        assert!(reason.contains(&format!("tried `{path}`: ")) && reason.contains(expected), "{reason}");
        let error = backend.open(0).err().unwrap().to_string();
        assert_eq!(error, "there is no device number 0, only 0");
    };
    check("/nowhere/libonnxruntime.so", "No such file");
    check(&text.display().to_string(), "file too short");
    check("libc.so.6", "exports no `OrtGetApiBase`");
    assert!(outrigger_cpu::open(&[("colour".into(), "red".into())]).is_err());
    // After the failures the right path still works.
    let path = outrigger_testkit::onnxruntime().display().to_string();
    let backend = outrigger_cpu::open(&[("onnxruntime".into(), path)]).unwrap();
    assert_eq!((backend.info().devices.len(), &backend.info().reason), (1, &None));
}
