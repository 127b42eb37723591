//! What follows from a model's inputs and outputs: whether a call fits them, and which shapes its results will have.

use smallvec::{SmallVec, smallvec};

use crate::{BackendError, Buffer, ModelInfo, Output, Shape, Tensor, TensorInfo};

impl ModelInfo {
    /// Checks count, type, rank and fixed extents of `inputs`, and that free extents of one name are equal.
    ///
    /// # Errors
    /// [`BackendError::Input`], naming the input, what came and what the model takes.
    pub fn check_inputs(&self, inputs: &[Tensor]) -> Result<(), BackendError> {
        if inputs.len() != self.inputs.len() {
            return Err(BackendError::Input(format!(
                "{} inputs given, the model takes {}",
                inputs.len(),
                self.inputs.len()
            )));
        }
        let mut bound = Bound::default();
        for (info, tensor) in self.inputs.iter().zip(inputs) {
            check_input(info, tensor)?;
            bound.add(info, tensor)?;
        }
        Ok(())
    }

    /// Checks that each of `outputs` is one of the model's, asked for once, and that its
    /// place, if it has one, is of the model's type.
    ///
    /// # Errors
    /// [`BackendError::Input`].
    pub fn check_outputs(&self, outputs: &mut [Output]) -> Result<(), BackendError> {
        let mut seen: SmallVec<[bool; 32]> = smallvec![false; self.outputs.len()];
        for output in outputs {
            let index = output.index();
            let (Some(info), Some(seen)) = (self.outputs.get(index), seen.get_mut(index)) else {
                return Err(BackendError::Input(format!(
                    "output number {index} asked for, the model has {}",
                    self.outputs.len()
                )));
            };
            let name = &info.name;
            if std::mem::replace(seen, true) {
                return Err(BackendError::Input(format!("output `{name}` is asked for twice")));
            }
            if let Some((placed, ..)) = output.place_mut()
                && placed != info.data_type
            {
                return Err(BackendError::Input(format!(
                    "output `{name}` has a place of type {placed}, the model gives {}",
                    info.data_type
                )));
            }
        }
        Ok(())
    }

    /// The shape of each output for these inputs, as far as the model's text tells it: a free extent is known if an input
    /// has one of the same name. `None` where an extent stays unknown.
    pub fn resolve_outputs(&self, inputs: &[Tensor]) -> Vec<Option<Shape>> {
        let mut bound = Bound::default();
        for (info, tensor) in self.inputs.iter().zip(inputs) {
            // Extents that contradict each other are `check_inputs`' to report.
            let _ = bound.add(info, tensor);
        }
        self.outputs.iter().map(|info| bound.resolve(info)).collect()
    }

    /// Bytes that those of the outputs `indices` take whose shapes are known before the run; `usize::MAX` for more than can be
    /// counted. Free extents come from whoever sends the inputs, so this is to be held against a limit before memory is taken.
    pub fn output_bytes(&self, inputs: &[Tensor], indices: &[usize]) -> usize {
        let shapes = self.resolve_outputs(inputs);
        let known = indices
            .iter()
            .filter_map(|&index| Some((self.outputs.get(index)?, shapes.get(index)?.as_ref()?)));
        known
            .map(|(info, shape)| match info.data_type.size() {
                Some(_) => shape.bytes(info.data_type).unwrap_or(usize::MAX),
                None => 0,
            })
            .fold(0, usize::saturating_add)
    }

    /// Asks for the outputs `indices`: placed in fresh memory where the shape is known before the run, else allocated by
    /// the backend. An index that the model has not is left for [`ModelInfo::check_outputs`] to refuse.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`] if the memory cannot be had.
    pub fn place_outputs(&self, inputs: &[Tensor], indices: &[usize]) -> Result<Vec<Output>, BackendError> {
        let mut shapes = self.resolve_outputs(inputs);
        indices
            .iter()
            .map(|&index| {
                let shape = shapes.get_mut(index).and_then(Option::take);
                match (self.outputs.get(index), shape) {
                    (Some(info), Some(shape)) => place(index, info, shape),
                    _ => Ok(Output::allocate(index)),
                }
            })
            .collect()
    }
}

fn place(index: usize, info: &TensorInfo, shape: Shape) -> Result<Output, BackendError> {
    let Ok(bytes) = shape.bytes(info.data_type) else { return Ok(Output::allocate(index)) };
    let buffer = Buffer::zeroed(bytes)
        .map_err(|_| BackendError::OutOfMemory(format!("output `{}` takes {bytes} bytes", info.name)))?;
    Ok(Output::place(index, info.data_type, shape, buffer).unwrap_or_else(|_| Output::allocate(index)))
}

/// Extents by the name that the model gives them, and the input that said so. Models have few names, for which a list is
/// faster than a map, and this is made for each call.
#[derive(Default)]
struct Bound<'a>(SmallVec<[(&'a str, i64, &'a str); 4]>);

impl<'a> Bound<'a> {
    fn add(&mut self, info: &'a TensorInfo, tensor: &Tensor) -> Result<(), BackendError> {
        for ((declared, symbol), extent) in info.dimensions().zip(tensor.shape().extents()) {
            if declared >= 0 || symbol.is_empty() {
                continue;
            }
            let Some((first, from)) = self.find(symbol) else {
                self.0.push((symbol, *extent, &info.name));
                continue;
            };
            if first != *extent {
                return Err(BackendError::Input(format!(
                    "`{symbol}` is {first} in input `{from}` and {extent} in input `{}`",
                    info.name
                )));
            }
        }
        Ok(())
    }

    fn find(&self, symbol: &str) -> Option<(i64, &'a str)> {
        let found = self.0.iter().find(|(bound, ..)| *bound == symbol);
        found.map(|(_, extent, from)| (*extent, *from))
    }

    fn resolve(&self, info: &TensorInfo) -> Option<Shape> {
        let extents = info.dimensions().map(|(declared, symbol)| {
            if declared >= 0 { Some(declared) } else { self.find(symbol).map(|(extent, _)| extent) }
        });
        Shape::new(extents.collect::<Option<Vec<_>>>()?).ok()
    }
}

fn check_input(info: &TensorInfo, tensor: &Tensor) -> Result<(), BackendError> {
    let name = &info.name;
    if tensor.data_type() != info.data_type {
        return Err(BackendError::Input(format!(
            "input `{name}` has type {}, the model takes {}",
            tensor.data_type(),
            info.data_type
        )));
    }
    let extents = tensor.shape().extents();
    let fits = |(declared, extent): (&i64, &i64)| *declared < 0 || declared == extent;
    if extents.len() != info.shape.len() || !info.shape.iter().zip(extents).all(fits) {
        return Err(BackendError::Input(format!(
            "input `{name}` has shape {extents:?}, the model takes {:?}",
            info.shape
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::DataType;

    fn tensor(data_type: DataType, extents: &[i64]) -> Tensor {
        let shape = Shape::new(extents).unwrap();
        let bytes = shape.bytes(data_type).unwrap();
        Tensor::new(data_type, shape, Bytes::from(vec![0; bytes])).unwrap()
    }

    /// x: FP32 [batch, 64], mask: INT64 [batch, length] → y: FP32 [batch, 10], attention: FP32 [batch, length, length],
    /// picked: INT64 [?], label: BYTES [batch]
    fn model() -> ModelInfo {
        use DataType::{Bytes, Fp32, Int64};
        ModelInfo {
            inputs: vec![
                TensorInfo::new("x", Fp32, &[(-1, "batch"), (64, "")]),
                TensorInfo::new("mask", Int64, &[(-1, "batch"), (-1, "length")]),
            ],
            outputs: vec![
                TensorInfo::new("y", Fp32, &[(-1, "batch"), (10, "")]),
                TensorInfo::new("attention", Fp32, &[(-1, "batch"), (-1, "length"), (-1, "length")]),
                TensorInfo::new("picked", Int64, &[(-1, "")]),
                TensorInfo::new("label", Bytes, &[(-1, "batch")]),
            ],
        }
    }

    #[test]
    fn inputs_that_do_not_fit_are_named() {
        use DataType::{Fp32, Fp64, Int64};
        let check = |inputs: &[Tensor], expected: Result<(), &str>| {
            let got = model().check_inputs(inputs).map_err(|error| error.to_string());
            assert_eq!(got, expected.map_err(str::to_owned));
        };
        let mask = tensor(Int64, &[2, 7]);
        check(&[tensor(Fp32, &[2, 64]), mask.clone()], Ok(()));
        check(&[tensor(Fp32, &[0, 64]), tensor(Int64, &[0, 0])], Ok(()));
        check(std::slice::from_ref(&mask), Err("1 inputs given, the model takes 2"));
        check(&[tensor(Fp64, &[2, 64]), mask.clone()], Err("input `x` has type FP64, the model takes FP32"));
        check(
            &[tensor(Fp32, &[2, 3]), mask.clone()],
            Err("input `x` has shape [2, 3], the model takes [-1, 64]"),
        );
        check(
            &[tensor(Fp32, &[64]), mask.clone()],
            Err("input `x` has shape [64], the model takes [-1, 64]"),
        );
        check(&[tensor(Fp32, &[3, 64]), mask], Err("`batch` is 3 in input `x` and 2 in input `mask`"));
    }

    #[test]
    fn free_extents_follow_the_inputs() {
        let check = |x: &[i64], mask: &[i64], expected: [Option<&[i64]>; 4]| {
            let inputs = [tensor(DataType::Fp32, x), tensor(DataType::Int64, mask)];
            let got = model().resolve_outputs(&inputs);
            let got: Vec<_> = got.iter().map(|shape| shape.as_ref().map(Shape::extents)).collect();
            assert_eq!(got, expected);
        };
        check(&[2, 64], &[2, 7], [Some(&[2, 10]), Some(&[2, 7, 7]), None, Some(&[2])]);
        check(&[0, 64], &[0, 1], [Some(&[0, 10]), Some(&[0, 1, 1]), None, Some(&[0])]);
        // Too few inputs leave unknown what they would have told.
        let got = model().resolve_outputs(&[tensor(DataType::Fp32, &[5, 64])]);
        assert_eq!(got, [Some(Shape::new([5, 10]).unwrap()), None, None, Some(Shape::new([5]).unwrap())]);
    }

    #[test]
    fn known_shapes_are_placed_and_the_rest_is_allocated() {
        let inputs = [tensor(DataType::Fp32, &[2, 64]), tensor(DataType::Int64, &[2, 7])];
        let mut outputs = model().place_outputs(&inputs, &[0, 1, 2, 3, 9]).unwrap();
        let placed: Vec<_> =
            outputs.iter_mut().map(|o| o.place_mut().map(|(.., bytes)| bytes.len())).collect();
        assert_eq!(placed, [Some(80), Some(392), None, None, None]);
    }

    #[test]
    fn outputs_that_the_model_has_not_are_refused() {
        let check = |mut outputs: Vec<Output>, expected: Result<(), &str>| {
            let got = model().check_outputs(&mut outputs).map_err(|error| error.to_string());
            assert_eq!(got, expected.map_err(str::to_owned));
        };
        let wrong = Output::place(0, DataType::Int64, Shape::new([1]).unwrap(), Buffer::zeroed(8).unwrap());
        check(vec![Output::allocate(2), Output::allocate(0)], Ok(()));
        check(vec![Output::allocate(4)], Err("output number 4 asked for, the model has 4"));
        check(vec![Output::allocate(1), Output::allocate(1)], Err("output `attention` is asked for twice"));
        check(vec![Output::allocate(3)], Ok(()));
        check(vec![wrong.unwrap()], Err("output `y` has a place of type INT64, the model gives FP32"));
    }
}
