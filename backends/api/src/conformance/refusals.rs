//! What a backend refuses, and with which error.

use super::{Fixtures, Skipped, fp32, infer, instance, load, need, open, run, tensor, values};
use crate::{Backend, BackendError, DataType, LoadOptions, Output, Tensor};

pub(super) fn wrong_inputs(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let (model, instance) = instance(&*device, &fixtures.add);
    let good = fp32(&[2, 3], &[0.; 6]);
    let wrong: [(&str, Vec<Tensor>); 7] = [
        ("too few", vec![good.clone()]),
        ("none", vec![]),
        ("too many", vec![good.clone(), good.clone(), good.clone()]),
        ("another type", vec![good.clone(), tensor(DataType::Int32, &[2, 3], &[0; 24])]),
        ("another rank", vec![good.clone(), fp32(&[6], &[0.; 6])]),
        ("another extent", vec![good.clone(), fp32(&[3, 2], &[0.; 6])]),
        ("unequal batches", vec![good.clone(), fp32(&[1, 3], &[0.; 3])]),
    ];
    for (what, inputs) in wrong {
        let error = run(&*instance, &inputs, vec![Output::allocate(0)]).err();
        assert!(matches!(error, Some(BackendError::Input(_))), "{what}: {error:?}");
    }
    infer(&*model, &*instance, &[good.clone(), good]).expect("an instance goes on after an error");
    Ok(())
}

pub(super) fn wrong_outputs(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let (_model, instance) = instance(&*device, &fixtures.add);
    let inputs = [fp32(&[1, 3], &[0.; 3]), fp32(&[1, 3], &[0.; 3])];
    for index in [1, usize::MAX] {
        let error = run(&*instance, &inputs, vec![Output::allocate(index)]).err();
        assert!(matches!(error, Some(BackendError::Input(_))), "output {index}: {error:?}");
    }
    run(&*instance, &inputs, vec![]).expect("no output asked for is nothing to do");
    Ok(())
}

pub(super) fn broken_files(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let whole = std::fs::read(&fixtures.add).expect("the fixture is there");
    let cases: [(&str, &[u8]); 3] = [
        ("empty", &[]),
        ("truncated", &whole[..whole.len() / 2]),
        ("garbage", b"\xff\x00 this is no model of any kind \xff\xff\xff\xff"),
    ];
    let mut paths =
        vec![("missing", fixtures.scratch.join("missing")), ("a folder", fixtures.scratch.clone())];
    for (what, bytes) in cases {
        let path = fixtures.scratch.join(what);
        std::fs::write(&path, bytes).expect("the scratch folder can be written");
        paths.push((what, path));
    }
    for (what, path) in paths {
        let error = load(&*device, &path).err();
        assert!(matches!(error, Some(BackendError::Load(_))), "{what}: {error:?}");
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(&*path.to_string_lossy()), "{what}: the message names the file: {text}");
        assert!(!text.contains('\n'), "{what}: the message is one line: {text}");
    }
    Ok(())
}

pub(super) fn unknown_settings(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let settings = vec![("no_such_setting".to_owned(), "1".to_owned())];
    let options = LoadOptions { settings, ..LoadOptions::of(&fixtures.add) };
    let error = device.load(&options).err();
    let named = matches!(&error, Some(BackendError::Load(text)) if text.contains("no_such_setting"));
    assert!(named, "a setting that is not known is named: {error:?}");
    let options = LoadOptions { format: Some("no such format".into()), ..LoadOptions::of(&fixtures.add) };
    let error = device.load(&options).err();
    assert!(matches!(error, Some(BackendError::Load(_))), "a format that is not known: {error:?}");
    Ok(())
}

pub(super) fn out_of_memory(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let path = need(&fixtures.outer, "whose result can be larger than memory")?;
    let device = open(backend);
    let (model, instance) = instance(&*device, path);
    // 2^42 elements of a few bytes each.
    let large = [fp32(&[1 << 20, 1], &vec![0.; 1 << 20]), fp32(&[1, 1 << 22], &vec![0.; 1 << 22])];
    let small = [fp32(&[2, 1], &[1., 2.]), fp32(&[1, 3], &[10., 20., 30.])];
    let is_typed = |error: BackendError| assert!(matches!(error, BackendError::OutOfMemory(_)), "{error:?}");
    for _ in 0..3 {
        match run(&*instance, &large, vec![Output::allocate(0)]).expect_err("there is no such memory") {
            // It may have a limit of its own below that.
            BackendError::Unsupported(text) => assert!(text.contains("bytes"), "{text}"),
            error => is_typed(error),
        }
        let outputs = infer(&*model, &*instance, &small).expect("the device goes on");
        assert_eq!(values(&outputs[0]), [11., 21., 31., 12., 22., 32.]);
    }
    is_typed(device.pinned(1 << 60).expect_err("there is no such memory"));
    if backend.info().devices[0].resident {
        is_typed(device.allocate(1 << 60).expect_err("there is no such memory"));
    }
    load(&*device, &fixtures.add).expect("models load all the same");
    Ok(())
}
