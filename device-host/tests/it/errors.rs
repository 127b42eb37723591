//! What does not open, and says why.

use std::path::Path;

use outrigger_backend::{BackendError, host};
use outrigger_device_host::Options;

use crate::support::{executable, odd};

fn settings(key: &str, value: &str) -> Vec<(String, String)> {
    vec![(key.into(), value.into())]
}

fn both(library: &Path, settings: &[(String, String)]) -> [String; 2] {
    let inside = host::load(library, settings).err().expect("it does not open");
    let outside = outrigger_device_host::open(Options::new(executable(), library, "odd", settings));
    let outside = outside.err().expect("it does not open");
    [format!("{inside:?}"), format!("{outside:?}")]
}

#[test]
fn a_library_that_does_not_open_says_so_as_in_process() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.so");
    std::fs::write(&text, "no library").unwrap();
    for library in [Path::new("/nowhere/liboutrigger_x.so"), &text] {
        let [inside, outside] = both(library, &[]);
        assert_eq!(inside, outside);
    }
    let [inside, outside] = both(&odd(), &settings("what", "1"));
    assert_eq!(inside, outside);
    assert!(inside.contains("unknown setting `what`"), "{inside}");
}

#[test]
fn a_program_that_is_not_there_or_no_host_says_so() {
    for (program, why) in [
        ("/nowhere/outrigger", "could not be started"),
        ("/bin/true", "exited with code 0"),
        ("/bin/false", "exited with code 1"),
    ] {
        let error = outrigger_device_host::open(Options::new(program, odd(), "odd", &[])).err().unwrap();
        assert!(matches!(error, BackendError::Unavailable { .. }), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_program_that_says_nothing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("silent");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut options = Options::new(&program, odd(), "odd", &[]);
    options.timing.start = std::time::Duration::from_millis(200);
    let error = outrigger_device_host::open(options).err().unwrap();
    assert!(error.to_string().contains("did not get ready in time"), "{error}");
}

#[test]
fn what_is_no_child_of_a_replica_says_so_and_ends() {
    let output =
        std::process::Command::new(executable()).stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by the replica"));
}
