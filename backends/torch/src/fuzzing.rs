//! What `fuzz/` sees of archives: all that looks at one before libtorch does.

use std::path::Path;

use crate::archive::Contents;
use crate::forward::Forward;
use crate::habits::Habits;
use crate::limits::CODE_DEPTH;
use crate::nesting::nesting;
use crate::{archive, pickle};

/// Looks at the archive at a path: how many bytes its tensors have.
///
/// # Errors
/// Why it is no model.
pub fn archive(path: &Path, inflated_bytes: u64) -> Result<u64, String> {
    let Contents { file, tensor_bytes, forward, habits } =
        archive::inspect(path, inflated_bytes).map_err(|error| error.to_string())?;
    let _ = (file.path(), forward.inputs, forward.result, asked(habits));
    file.is_as_it_was().map_err(|error| error.to_string())?;
    Ok(tensor_bytes)
}

fn asked(habits: Habits) -> [bool; 3] {
    [habits.forks(), habits.touches_inputs(), habits.is_stateful()]
}

/// Checks a pickle whose tensors all have this many bytes.
///
/// # Errors
/// What is wrong with it.
pub fn pickle(bytes: &[u8], code_bytes: u64, tensor_bytes: u64) -> Result<(), String> {
    let limits = pickle::Limits::module(code_bytes);
    pickle::check(bytes, limits, |_| Some(tensor_bytes)).map_err(|error| error.to_string())
}

/// Looks at code: the arguments of `forward`, and whatever else is asked of it.
pub fn code(source: &str) -> Option<Vec<String>> {
    let mut habits = Habits::default();
    habits.add(source);
    let _ = (asked(habits), nesting(source, CODE_DEPTH));
    Forward::find(source, "M").ok().map(|forward| forward.inputs)
}
