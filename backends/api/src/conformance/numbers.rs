//! Numbers and strings, in and out.

use bytes::Bytes;

use super::{Fixtures, Skipped, fp32, infer, instance, need, open, run, tensor, values};
use crate::{Backend, Buffer, DataType, Output, Shape, Tensor};

pub(super) fn adds(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let (model, instance) = instance(&*device, &fixtures.add);
    for batch in [1i64, 2, 7, 100] {
        let x: Vec<f32> = (0..batch * 3).map(|number| number as f32).collect();
        let y: Vec<f32> = x.iter().map(|value| value * 0.5).collect();
        let inputs = [fp32(&[batch, 3], &x), fp32(&[batch, 3], &y)];
        let outputs = infer(&*model, &*instance, &inputs).expect("add runs");
        assert_eq!(outputs[0].shape().extents(), [batch, 3]);
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        assert_eq!(values(&outputs[0]), expected);
        assert_eq!((values(&inputs[0]), values(&inputs[1])), (x, y), "inputs are only read");
    }
    Ok(())
}

pub(super) fn carries_every_type(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    assert!(!fixtures.identity.is_empty());
    for (data_type, path) in &fixtures.identity {
        let (model, instance) = instance(&*device, path);
        assert_eq!(model.info().inputs[0].data_type, *data_type);
        let size = data_type.size().expect("a type with a size");
        // 0 and 1 only, which are valid bytes of every type.
        let bytes: Vec<u8> = (0..3 * 2 * size).map(|number| u8::from(number % 3 == 0)).collect();
        let input = tensor(*data_type, &[3, 2], &bytes);
        for placed in [true, false] {
            let inputs = std::slice::from_ref(&input);
            let outputs = if placed {
                infer(&*model, &*instance, inputs)
            } else {
                run(&*instance, inputs, vec![Output::allocate(0)])
            };
            let outputs = outputs.unwrap_or_else(|error| panic!("identity of {data_type}: {error}"));
            assert_eq!(outputs[0], input, "identity of {data_type}, placed: {placed}");
        }
    }
    Ok(())
}

pub(super) fn carries_strings(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let path = need(&fixtures.strings, "that takes strings")?;
    let (model, instance) = instance(&*open(backend), path);
    assert_eq!(
        (model.info().inputs[0].data_type, model.info().outputs[0].data_type),
        (DataType::Bytes, DataType::Bytes)
    );
    let long = "seemannsgarn ".repeat(10_000);
    let strings = ["a", "", "längér", "with\na line", long.as_str(), "日本"];
    for (rows, strings) in [(3, &strings[..]), (1, &strings[3..5]), (0, &[])] {
        let input =
            Tensor::strings(Shape::new([rows, 2]).expect("a shape"), strings).expect("as many strings");
        // Where the shape is known as where it is not: strings have no place.
        let outputs = infer(&*model, &*instance, std::slice::from_ref(&input)).expect("strings come back");
        assert_eq!(outputs[0], input);
        let outputs = run(&*instance, std::slice::from_ref(&input), vec![Output::allocate(0)]);
        let outputs = outputs.expect("strings come back");
        drop(input);
        assert_eq!(
            outputs[0].iter_strings().collect::<Vec<_>>(),
            strings.iter().map(|s| s.as_bytes()).collect::<Vec<_>>()
        );
    }
    Ok(())
}

pub(super) fn takes_empty_tensors(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let (model, instance) = instance(&*device, &fixtures.add);
    let inputs = [fp32(&[0, 3], &[]), fp32(&[0, 3], &[])];
    let placed = infer(&*model, &*instance, &inputs).expect("add of nothing, placed");
    let allocated = run(&*instance, &inputs, vec![Output::allocate(0)]).expect("add of nothing, allocated");
    for output in [&placed[0], &allocated[0]] {
        assert_eq!((output.shape().extents(), output.data().len()), ([0, 3].as_slice(), 0));
    }
    Ok(())
}

pub(super) fn writes_in_the_place(backend: &dyn Backend, fixtures: &Fixtures) -> Result<(), Skipped> {
    let device = open(backend);
    let (_model, instance) = instance(&*device, &fixtures.add);
    let inputs = [fp32(&[2, 3], &[1., 2., 3., 4., 5., 6.]), fp32(&[2, 3], &[10.; 6])];
    let buffer = Buffer::zeroed(24).expect("24 bytes");
    let address = buffer.as_ptr();
    let shape = Shape::new([2, 3]).expect("a shape");
    let place = Output::place(0, DataType::Fp32, shape, buffer).expect("24 bytes for 6 elements");
    let placed = run(&*instance, &inputs, vec![place]).expect("add runs");
    assert_eq!(placed[0].data().as_ptr(), address, "a placed output is written in its place");
    let allocated = run(&*instance, &inputs, vec![Output::allocate(0)]).expect("add runs");
    assert_eq!(placed, allocated);
    assert_eq!(values(&placed[0]), [11., 12., 13., 14., 15., 16.]);
    Ok(())
}

pub(super) fn allocates_what_it_cannot_foresee(
    backend: &dyn Backend,
    fixtures: &Fixtures,
) -> Result<(), Skipped> {
    let device = open(backend);
    let (model, instance) = instance(&*device, &fixtures.nonzero);
    for x in [&[0., 5., 0., 7., 9.][..], &[0.], &[]] {
        let input = fp32(&[x.len() as i64], x);
        let outputs = infer(&*model, &*instance, &[input]).expect("nonzero runs");
        let expected: Vec<u8> = (0i64..)
            .zip(x)
            .filter(|(_, value)| **value != 0.)
            .flat_map(|(index, _)| index.to_ne_bytes())
            .collect();
        assert_eq!(outputs[0].shape().extents(), [1, expected.len() as i64 / 8]);
        assert_eq!(outputs[0].data(), &expected);
    }
    Ok(())
}

pub(super) fn reads_inputs_of_any_alignment(
    backend: &dyn Backend,
    fixtures: &Fixtures,
) -> Result<(), Skipped> {
    let device = open(backend);
    let (model, instance) = instance(&*device, &fixtures.add);
    let x = fp32(&[1, 3], &[1., 2., 3.]);
    let mut shifted = vec![0; 64];
    let start = shifted.as_ptr().align_offset(64) % 4 + 1;
    shifted[start..start + 12].copy_from_slice(x.data());
    let data = Bytes::from(shifted).slice(start..start + 12);
    let unaligned = Tensor::new(DataType::Fp32, x.shape().clone(), data).expect("12 bytes");
    let outputs = infer(&*model, &*instance, &[unaligned, x]).expect("add runs");
    assert_eq!(values(&outputs[0]), [2., 4., 6.]);
    Ok(())
}
