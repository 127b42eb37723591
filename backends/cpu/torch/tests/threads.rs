//! How many threads share a run. A process of its own, for it counts all of them.

mod support;

use outrigger_backend::LoadOptions;
use outrigger_backend::conformance::{fp32, infer};
use outrigger_testkit::torchscript::Module;
use support::{Folder, device_with, row};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn a_run_is_shared_by_as_many_threads_as_were_said() {
    let (Some(device), folder) = (device_with(&[("intra_threads", "1")]), Folder::new()) else { return };
    let module = Module::forward("x: Tensor", "Tensor", &["return torch.exp(x)"]);
    let path = folder.write(&module.archive());
    let width = 1 << 20;
    let x = fp32(&[1, width], &vec![0.5; width as usize]);
    let run = |intra_threads| {
        let options =
            LoadOptions { intra_threads, ..support::options(&path, &[row("x", width)], &[row("y", width)]) };
        let model = device.load(&options).unwrap();
        infer(&*model, &*model.instance().unwrap(), std::slice::from_ref(&x)).unwrap();
    };
    let before = threads();
    run(None);
    assert_eq!(threads(), before, "as the backend's setting says: the thread that calls");
    run(Some(3));
    assert_eq!(threads(), before + 2, "as the model's says: that thread and two more");
}
