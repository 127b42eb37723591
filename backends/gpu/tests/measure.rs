//! A device can be measured, and what comes out makes sense.

mod support;

use std::time::Duration;

use outrigger_gpu::{Effort, Figure, measure};

#[test]
fn a_device_is_measured() {
    let Some(gpu) = support::gpu() else { return };
    let effort = Effort { rounds: 3, round: Duration::from_millis(2), bytes: 1 << 20, launches: 5 };
    let measured = measure(&gpu, effort).unwrap();
    assert_eq!(&measured.device, gpu.info());
    for Figure { best, worst } in [measured.bandwidth, measured.flops] {
        assert!(worst > 0. && best >= worst && best.is_finite(), "{measured:?}");
    }
    assert!(measured.launch.best > 0. && measured.launch.best <= measured.launch.worst, "{measured:?}");
    assert_eq!(gpu.held(), 0, "what was measured with goes back");
}
