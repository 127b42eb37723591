//! Files that are no libraries. A process of its own, for it must have no libtorch before.

mod support;

use support::open;

#[test]
fn what_is_no_library_does_not_load_and_the_right_one_does() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("lib")).unwrap();
    for name in ["libc10.so", "libtorch_cpu.so"] {
        std::fs::write(folder.path().join("lib").join(name), "no library").unwrap();
    }
    std::fs::write(folder.path().join("build-version"), "2.11.0").unwrap();
    let backend = open(&[("libtorch", &folder.path().display().to_string())]).unwrap();
    let reason = backend.info().reason.as_deref().unwrap();
    if reason.starts_with("no libtorch is set up") {
        println!("skipped: {reason}");
        return;
    }
    assert!(reason.starts_with("libtorch does not load: ") && reason.contains("file too short"), "{reason}");
    assert_eq!(open(&[]).unwrap().info().devices.len(), 1);
}
