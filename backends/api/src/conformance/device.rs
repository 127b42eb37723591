//! Memory that the device reads fastest, and memory of its own.

use super::{Fixtures, Skipped, fp32, instance, open, rows, run, settled, shape, skip, until, values};
use crate::{Backend, BackendError, DataType, Device, Output, Tensor};

pub(super) fn gives_pinned_memory(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let result = {
        let device = open(backend);
        for len in [0, 1, 64, 100, 1 << 20] {
            let mut buffer = device.pinned(len).expect("pinned memory");
            assert_eq!((buffer.len(), buffer.as_ptr() as usize % 64), (len, 0));
            assert!(buffer.iter().all(|byte| *byte == 0), "nobody else's bytes are in it");
            buffer.fill(7);
            assert!(buffer.freeze().iter().all(|byte| *byte == 7));
        }
        let (_model, instance) = instance(&*device, &fixtures.add);
        let mut x = device.pinned(24).expect("pinned memory");
        x.copy_from_slice(rows(2, 1.5).data());
        let x = Tensor::new(DataType::Fp32, shape(&[2, 3]), x.freeze()).expect("24 bytes");
        let place = device.pinned(24).expect("pinned memory");
        let address = place.as_ptr();
        let place = Output::place(0, DataType::Fp32, shape(&[2, 3]), place).expect("24 bytes");
        let result = run(&*instance, &[x.clone(), x], vec![place]).expect("add runs").remove(0);
        assert_eq!(result.data().as_ptr(), address, "pinned memory is a place like any");
        result
    };
    assert_eq!(values(&result), [3.; 6], "it outlives the device that gave it");
    Ok(())
}

pub(super) fn keeps_tensors(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    if !backend.info().devices[0].resident {
        return has_no_memory(&*device, fixtures);
    }
    let (model, instance) = instance(&*device, &fixtures.add);
    let x = uploaded(&*device, &rows(2, 1.));
    let sum =
        run(&*instance, &[x.clone(), rows(2, 2.)], vec![Output::resident(0)]).expect("add runs").remove(0);
    assert!(sum.resident().is_some() && sum.data().is_empty(), "{sum:?}");
    assert_eq!((sum.data_type(), sum.shape()), (DataType::Fp32, x.shape()));
    // The result of one run is the input of the next, of another instance too, and nothing comes to the host.
    let other = model.instance().expect("an instance");
    let again =
        run(&*other, &[sum.clone(), sum.clone()], vec![Output::resident(0)]).expect("add runs").remove(0);
    assert_eq!(downloaded(&*device, &sum), [3.; 6], "an input is only read");
    assert_eq!(downloaded(&*device, &again), [6.; 6]);
    for output in
        [Output::allocate(0), model.info().place_outputs(&[rows(2, 0.)], &[0]).expect("24 bytes").remove(0)]
    {
        let home = run(&*instance, &[again.clone(), x.clone()], vec![output]).expect("add runs");
        assert_eq!(values(&home[0]), [7.; 6], "a result comes to the host where that is asked");
    }
    let nothing = uploaded(&*device, &fp32(&[0, 3], &[]));
    let none =
        run(&*instance, &[nothing.clone(), nothing], vec![Output::resident(0)]).expect("add of nothing");
    assert_eq!((none[0].shape().extents(), downloaded(&*device, &none[0]).len()), ([0, 3].as_slice(), 0));

    let memory = again.resident().expect("it is on the device");
    for error in [device.upload(&[0; 23], memory), device.download(memory, &mut [0; 25])] {
        assert!(matches!(error, Err(BackendError::Input(_))), "another number of bytes: {error:?}");
    }
    drop((model, instance, other));
    assert_eq!(downloaded(&*device, &again), [6.; 6], "a result outlives the model that made it");
    Ok(())
}

fn has_no_memory(device: &dyn Device, fixtures: &Fixtures) -> Result<(), Skipped> {
    let unsupported = |error: Option<BackendError>| {
        assert!(matches!(error, Some(BackendError::Unsupported(_))), "{error:?}");
    };
    unsupported(device.allocate(8).err());
    let (_model, instance) = instance(device, &fixtures.add);
    unsupported(run(&*instance, &[rows(1, 1.), rows(1, 1.)], vec![Output::resident(0)]).err());
    run(&*instance, &[rows(1, 1.), rows(1, 1.)], vec![Output::allocate(0)]).expect("it goes on");
    Ok(())
}

pub(super) fn returns_memory(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    if !backend.info().devices[0].resident {
        return skip("the device has no memory of its own");
    }
    let held = || device.status().expect("it tells its status").memory_held;
    let before = settled(held);
    for round in 0..100 {
        let memory = device.allocate(1 << 20).expect("a megabyte");
        let bytes = vec![round; 1 << 20];
        device.upload(&bytes, &memory).expect("an upload");
        let other = memory.clone();
        drop(memory);
        let mut read = vec![0; 1 << 20];
        device.download(&other, &mut read).expect("a download");
        assert!(read == bytes, "a clone keeps it");
    }
    until("memory that nobody has is given back", || held() <= before);
    let (model, instance) = instance(&*device, &fixtures.add);
    for _ in 0..100 {
        run(&*instance, &[rows(1, 1.), rows(1, 1.)], vec![Output::resident(0)]).expect("add runs");
    }
    drop((model, instance));
    until("results that nobody has are given back", || held() <= before);
    Ok(())
}

fn uploaded(device: &dyn Device, tensor: &Tensor) -> Tensor {
    let memory = device.allocate(tensor.data().len()).expect("memory of the device's");
    device.upload(tensor.data(), &memory).expect("an upload");
    Tensor::on_device(tensor.data_type(), tensor.shape().clone(), memory).expect("as many bytes")
}

fn downloaded(device: &dyn Device, tensor: &Tensor) -> Vec<f32> {
    let memory = tensor.resident().expect("a tensor on the device");
    let mut bytes = vec![0; memory.len()];
    device.download(memory, &mut bytes).expect("a download");
    bytes.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}
