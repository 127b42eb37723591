//! The suite that every backend passes in process, passed through a child.

use outrigger_backend::DataType;
use outrigger_backend::conformance::{self, Fixtures};
use outrigger_device_host::Options;

use crate::support::{example, executable};

#[test]
fn the_fake_conforms_through_a_child() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let types = [DataType::Fp32, DataType::Fp64, DataType::Uint8, DataType::Int64];
    let fixtures = Fixtures {
        add: write("add", "add \n"),
        identity: types
            .map(|data_type| (data_type, write(data_type.name(), &format!("identity {data_type}"))))
            .into(),
        nonzero: write("nonzero", "nonzero \n"),
        strings: Some(write("strings", "identity BYTES")),
        outer: Some(write("outer", "outer \n")),
        slow: Some(write("slow", "slow 60000")),
        weights: Some((write("weights", "weights 8388608"), 8 << 20)),
        scratch,
    };
    let options = Options::new(executable(), example("libdevice_host_adder.so"), "adder", &[]);
    let backend = outrigger_device_host::open(options).unwrap();
    assert_eq!(backend.info().name, "adder");
    conformance::all(&*backend, &fixtures);
}
