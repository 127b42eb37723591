use outrigger_backend::DataType;
use outrigger_processing::Step;
use outrigger_testkit::vulkan;
use wgpu::BufferDescriptor;

use super::*;

fn gpu() -> Option<Arc<Gpu>> {
    let gpu = Gpu::list(true).and_then(|_| Gpu::open(0, true).map_err(|error| error.to_string()));
    vulkan::found(gpu).map(Arc::new)
}

#[test]
fn a_run_of_many_submissions_gives_the_same() {
    let Some(gpu) = gpu() else { return };
    let x = TensorInfo { name: "x".into(), data_type: DataType::Uint8, shape: vec![50, 37], symbols: vec![] };
    let chain: Chain = [Step::TopK { k: 5, axis: -1, indices: "i".into() }].into_iter().collect();
    let infos = std::slice::from_ref(&x);
    let data: Vec<u8> = (0..50 * 37).map(|at: u32| (at * at % 251) as u8).collect();
    let input = Tensor::new(x.data_type, Shape::new([50, 37]).unwrap(), data.into()).unwrap();
    let input = std::slice::from_ref(&input);
    let mut program = Program::new(gpu, chain, infos, &["x", "i"]).unwrap();
    let expected = program.plan.run(input).unwrap();
    program.idle.clear();
    // Three rows each time, of 9 looks at each of 37 and 6 pairs in 3 stages of sorting.
    program.bounds = Bounds { submission: 3 * (9 * 37 + 2 * 4 * 6), step: 1 << 20 };
    assert_eq!(program.run(input).unwrap(), expected);
    assert_eq!(program.run(input).unwrap(), expected);
    let earlier = program.idle.lock()[0].earlier.len();
    assert!(earlier >= 50 / 3, "{earlier}");
}

fn free(data_type: DataType, rank: usize) -> TensorInfo {
    TensorInfo { name: "x".into(), data_type, shape: vec![-1; rank], symbols: vec![] }
}

#[test]
fn what_is_free_is_no_reason_to_refuse_a_chain() {
    let Some(gpu) = gpu() else { return };
    for (k, extents) in [(5, [2, 3, 40]), (300, [1, 2, 400])] {
        let chain: Chain = [Step::TopK { k, axis: -1, indices: "i".into() }].into_iter().collect();
        let infos = [free(DataType::Uint8, 3)];
        let needs = Program::needs(&gpu, &chain, &infos, &["x", "i"]).unwrap();
        // One row, of 1024.
        assert!((1024..64 << 10).contains(&needs), "{k}: {needs}");
        let program = Program::new(Arc::clone(&gpu), chain, &infos, &["x", "i"]).unwrap();
        let elements = extents.iter().product::<i64>();
        let data: Vec<u8> = (0..elements).map(|at| (at * at % 251) as u8).collect();
        let input = Tensor::new(DataType::Uint8, Shape::new(extents).unwrap(), data.into()).unwrap();
        let input = std::slice::from_ref(&input);
        let plan = program.resolve(&[input[0].shape().clone()]).unwrap();
        assert_eq!(program.run(input).unwrap(), plan.run(input).unwrap());
    }
    // As large as all extents have to be it fits no device, and the extents of runs may be others.
    let wants_three = Step::Normalize { axis: 1, mean: vec![0.; 3], std: vec![1.; 3], scale: 1. };
    let top_k = Step::TopK { k: 300, axis: 0, indices: "i".into() };
    let chain: Chain = [wants_three, top_k].into_iter().collect();
    let needs = Program::needs(&gpu, &chain, &[free(DataType::Fp32, 2)], &["x"]).unwrap();
    assert_eq!(needs, 0);
    assert!(Program::new(Arc::clone(&gpu), chain, &[free(DataType::Fp32, 2)], &["x"]).is_ok());
}

#[test]
fn runs_side_by_side_wait_for_each_other_s_memory() {
    let Some(gpu) = gpu() else { return };
    let chain: Chain = [Step::Softmax { axis: -1 }].into_iter().collect();
    let infos = [TensorInfo { shape: vec![100, 1000], ..free(DataType::Fp32, 2) }];
    let frame = Program::needs(&gpu, &chain, &infos, &["x"]).unwrap();
    drop(gpu);
    let gpu = Gpu::open(0, true).unwrap().within(Some(frame * 3 / 2));
    let program = Program::new(Arc::new(gpu), chain, &infos, &["x"]).unwrap();
    let data = vec![0; 4 * 100_000];
    let input = Tensor::new(DataType::Fp32, Shape::new([100, 1000]).unwrap(), data.into()).unwrap();
    let runs = |program: &Program| {
        (0..20).map(|_| program.run(std::slice::from_ref(&input))).collect::<Result<Vec<_>, _>>()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..3).map(|_| scope.spawn(|| runs(&program))).collect();
        for other in others {
            assert_eq!(other.join().unwrap().unwrap().len(), 20);
        }
    });
    assert_eq!(program.held(), frame);
    // Not for ever, and not where nothing comes back.
    let mut program = program;
    let taken = program.take(&[Shape::new([100, 1000]).unwrap()]).unwrap();
    assert!(matches!(program.run(std::slice::from_ref(&input)), Err(GpuError::OverBudget { .. })));
    program.patience = Duration::from_millis(1);
    let under_way = program.gpu.turns.begin(PATIENCE);
    assert!(matches!(program.run(std::slice::from_ref(&input)), Err(GpuError::OverBudget { .. })));
    drop((under_way, taken));
    assert!(program.run(std::slice::from_ref(&input)).is_ok());
}

#[test]
fn what_went_wrong_outside_of_any_run_is_told_once_and_loses_nothing() {
    let Some(gpu) = gpu() else { return };
    let x = TensorInfo { name: "x".into(), data_type: DataType::Uint8, shape: vec![4], symbols: vec![] };
    let chain: Chain = [Step::Convert { datatype: DataType::Fp32 }].into_iter().collect();
    let program = Program::new(Arc::clone(&gpu), chain, std::slice::from_ref(&x), &["x"]).unwrap();
    // Nobody waits for what becomes of it.
    let _ = gpu.device.create_buffer(&BufferDescriptor {
        label: None,
        size: 4,
        usage: BufferUsages::MAP_READ | BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    let input = Tensor::new(x.data_type, Shape::new([4]).unwrap(), vec![1, 2, 3, 4].into()).unwrap();
    assert!(program.run(std::slice::from_ref(&input)).is_ok());
    // A result that is mapped already cannot be mapped: the driver's word, and no lost device.
    let readback = program.idle.lock()[0].readback.buffer.clone();
    readback.map_async(MapMode::Read, .., |_| ());
    let error = program.run(std::slice::from_ref(&input)).unwrap_err();
    assert!(matches!(error, GpuError::Driver(_)), "{error:?}");
    let stray = gpu.take_stray().unwrap();
    assert!(stray.contains("MAP_READ"), "{stray}");
    assert_eq!((gpu.take_stray(), gpu.lost()), (None, None));
    assert!(program.run(std::slice::from_ref(&input)).is_ok());
}

#[test]
fn a_device_that_is_lost_says_so_from_then_on() {
    let Some(gpu) = gpu() else { return };
    let x = TensorInfo { name: "x".into(), data_type: DataType::Uint8, shape: vec![4], symbols: vec![] };
    let chain: Chain = [Step::Convert { datatype: DataType::Fp32 }].into_iter().collect();
    let program = Program::new(Arc::clone(&gpu), chain, std::slice::from_ref(&x), &["x"]).unwrap();
    let input = Tensor::new(x.data_type, Shape::new([4]).unwrap(), vec![1, 2, 3, 4].into()).unwrap();
    assert!(program.run(std::slice::from_ref(&input)).is_ok());
    // The way a driver's reset looks from here.
    gpu.device.destroy();
    let _ = gpu.device.poll(PollType::Poll);
    for _ in 0..2 {
        let error = program.run(std::slice::from_ref(&input)).unwrap_err();
        assert!(matches!(error, GpuError::Lost(_)), "{error:?}");
    }
    assert!(gpu.lost().is_some());
}
