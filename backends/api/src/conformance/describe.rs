//! What a backend says of itself, its models and its devices.

use super::{Fixtures, Skipped, load, open};
use crate::{Backend, BackendError, DataType, Health};

pub(super) fn itself(backend: &dyn Backend, _: &Fixtures) -> Result<(), Skipped> {
    let info = backend.info();
    assert!(!info.name.is_empty() && !info.version.is_empty() && !info.formats.is_empty(), "{info:?}");
    assert!(!info.devices.is_empty(), "no device to test on: {:?}", info.reason);
    assert_eq!(info.reason, None, "a reason is given only where there are no devices");
    for (index, device) in info.devices.iter().enumerate() {
        assert!(device.name.ends_with(&format!(":{index}")), "{device:?}");
        backend.open(index).expect("it opens");
    }
    for index in [info.devices.len(), usize::MAX] {
        let error = backend.open(index).err();
        assert!(matches!(error, Some(BackendError::Input(_))), "device {index}: {error:?}");
    }
    Ok(())
}

pub(super) fn its_models(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let model = load(&*device, &fixtures.add).expect("add loads");
    let info = model.info();
    let names: Vec<_> = info.inputs.iter().chain(&info.outputs).map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["x", "y", "z"]);
    for tensor in info.inputs.iter().chain(&info.outputs) {
        assert_eq!((tensor.data_type, &tensor.shape), (DataType::Fp32, &vec![-1, 3]), "{tensor:?}");
        assert_eq!(tensor.symbols, ["batch", ""], "{tensor:?}");
    }
    let nonzero = load(&*device, &fixtures.nonzero).expect("nonzero loads");
    assert_eq!(nonzero.info().outputs[0].shape, [1, -1]);
    assert_eq!(nonzero.info().outputs[0].data_type, DataType::Int64);
    Ok(())
}

pub(super) fn its_status(backend: &dyn Backend, _: &Fixtures) -> Result<(), Skipped> {
    for (index, info) in backend.info().devices.iter().enumerate() {
        let device = backend.open(index).expect("it opens");
        // Often, for it is asked every second for as long as the process lives.
        for _ in 0..1000 {
            let status = device.status().expect("it tells its status");
            assert!(status.memory_free <= status.memory_total, "{status:?}");
            assert!(info.memory_total == 0 || status.memory_held <= info.memory_total, "{status:?}");
            assert_eq!(status.health, Health::Healthy);
        }
    }
    Ok(())
}
