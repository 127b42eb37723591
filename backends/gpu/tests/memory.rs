//! What a program holds goes back with it. A process of its own, for others hold memory of the same device meanwhile.

mod support;

use std::sync::Arc;

use outrigger_backend::{DataType, TensorInfo};
use outrigger_gpu::Program;
use outrigger_processing::{Chain, Step};

use support::{Numbers, gpu};

#[test]
fn memory_is_bounded_and_goes_back() {
    let Some(gpu) = gpu() else { return };
    let infos =
        [TensorInfo { name: "x".into(), data_type: DataType::Fp32, shape: vec![-1], symbols: Vec::new() }];
    let half = Step::Convert { datatype: DataType::Fp16 };
    let single = Step::Convert { datatype: DataType::Fp32 };
    // Six steps, and never more than two tensors at once.
    let chain: Chain = [&half, &single, &half, &single, &half, &single].into_iter().cloned().collect();
    for _ in 0..20 {
        let program = Program::new(Arc::clone(&gpu), chain.clone(), &infos, &["x"]).unwrap();
        assert_eq!(gpu.held(), 0);
        let mut numbers = Numbers(1);
        for elements in 1..20 {
            program.run(&[numbers.measured(DataType::Fp32, &[elements * 1000], 9.)]).unwrap();
        }
        // Frames of the last eight shapes: a tensor of each type and what is read back, not seven and that.
        let frames: u64 = (12..20).map(|elements| elements * 1000 * (4 + 2 + 4)).sum();
        let held = program.held();
        assert!((frames..frames + 1024).contains(&held), "{held} held, {frames} expected");
        assert!(gpu.held() >= program.held());
        // Of two that are too many together the last stays, and by itself it stays however large it is.
        for (idle_bytes, kept) in [(430_000, 2), (400_000, 1), (0, 1)] {
            let program = Program::new(Arc::clone(&gpu), chain.clone(), &infos, &["x"]).unwrap();
            let program = program.keeping(idle_bytes);
            for elements in [20_000, 21_000] {
                program.run(&[numbers.measured(DataType::Fp32, &[elements], 9.)]).unwrap();
            }
            let expected = if kept == 2 { 410_000 } else { 210_000 };
            assert!((expected..expected + 1024).contains(&program.held()), "{} held", program.held());
        }
        drop(program);
        assert_eq!(gpu.held(), 0);
    }
}
